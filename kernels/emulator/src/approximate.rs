//! Approximate operations: computed in f64, rounded once, and moved by the seed within the bounds that the
//! PTX ISA states. The same operands give the same bits wherever they are met.

use crate::alu::{Alu, Function, Lanes, alu};
use crate::bits::{Bf16, Bits, Canonical, F16, Float};
use crate::float::{self, blur, noise};
use crate::modifiers::Modifiers;
use crate::types::Type;

/// A unary operation in f32 of (the operand in f64, noise between -1 and 1).
macro_rules! unary {
    ($ftz:expr, |$a:ident, $noise:ident| $value:expr) => {
        if $ftz {
            (|x, _, _, seed, out| {
                for i in 0..32 {
                    let ($a, $noise) = (f64::from(float::flush(f32::of(x[i]))), noise(seed, x[i]));
                    out[i] = float::flush($value).canonical().bits();
                }
            }) as Function
        } else {
            (|x, _, _, seed, out| {
                for i in 0..32 {
                    let ($a, $noise) = (f64::from(f32::of(x[i])), noise(seed, x[i]));
                    let value: f32 = $value;
                    out[i] = value.canonical().bits();
                }
            }) as Function
        }
    };
}

pub fn resolve(opcode: &str, words: &mut Modifiers) -> Result<Option<Alu>, String> {
    if !words.has("approx") {
        return Err(".approx is missing".into());
    }
    let ftz = words.has("ftz");
    let kind = words.kind()?;
    if kind != Type::F32 {
        return halves(opcode, kind);
    }
    let function = match opcode {
        // 2 ulp; of 0 it is 1.
        "ex2" => unary!(ftz, |a, noise| blur(a.exp2(), if a == 0.0 { 0.0 } else { 2.0 }, noise)),
        // 2^-22.9 relative
        "rsqrt" => unary!(ftz, |a, noise| {
            blur(if a == 0.0 { f64::INFINITY.copysign(a) } else { 1.0 / a.sqrt() }, 1.0, noise)
        }),
        "lg2" => unary!(ftz, |a, noise| logarithm(a, noise)),
        "sin" => unary!(ftz, |a, noise| on_the_circle(a.sin(), a, noise)),
        "cos" => unary!(ftz, |a, noise| on_the_circle(a.cos(), a, noise)),
        // 2^-11 relative
        "tanh" if !ftz => {
            unary!(false, |a, noise| (a.tanh() * (1.0 + noise / 2100.0)).clamp(-1.0, 1.0) as f32)
        }
        _ => return Ok(None),
    };
    Ok(alu(function, kind, &[kind]))
}

/// 2^-22: absolute between 0.5 and 2, where the result passes 0, else relative.
fn logarithm(a: f64, noise: f64) -> f32 {
    let exact = a.log2();
    if a > 0.5 && a < 2.0 { (exact + noise * 2f64.powi(-22)) as f32 } else { blur(exact, 1.0, noise) }
}

/// sin and cos: 2^-20.5 absolute within two turns about 0, 2^-14.7 within a hundred half turns, more beyond.
fn on_the_circle(exact: f64, angle: f64, noise: f64) -> f32 {
    let turns = angle.abs() / std::f64::consts::TAU;
    let bound = if turns <= 1.0 { 2f64.powf(-20.5) } else { 2f64.powf(-14.7) * (turns / 50.0).max(1.0) };
    (exact + noise * bound).clamp(-1.0, 1.0) as f32
}

/// div.approx, div.full, rcp.approx, sqrt.approx.
pub fn division(opcode: &str, kind: Type, ftz: bool, words: &mut Modifiers) -> Result<Option<Alu>, String> {
    let Some(form) = words.one_of(&["approx", "full"]) else {
        return Err("one of .rn, .rz, .rm, .rp and .approx is missing".into());
    };
    if kind != Type::F32 || form == "full" && opcode != "div" {
        return Ok(None);
    }
    Ok(match opcode {
        "div" => {
            let function = match (form == "full", ftz) {
                (false, false) => quotient::<false, false>,
                (false, true) => quotient::<false, true>,
                (true, false) => quotient::<true, false>,
                (true, true) => quotient::<true, true>,
            };
            alu(function, kind, &[kind, kind])
        }
        // 1 ulp; sqrt 2^-23 relative
        "rcp" => alu(unary!(ftz, |a, noise| blur(1.0 / a, 1.0, noise)), kind, &[kind]),
        _ => alu(unary!(ftz, |a, noise| blur(a.sqrt(), 1.0, noise)), kind, &[kind]),
    })
}

/// 2 ulp; div.approx gives 0 for divisors above 2^126, and NaN where it divides infinity by them.
fn quotient<const FULL: bool, const FTZ: bool>(x: &Lanes, y: &Lanes, _: &Lanes, seed: u64, out: &mut Lanes) {
    let flush = |value: f32| if FTZ { float::flush(value) } else { value };
    for i in 0..32 {
        let (a, b) = (flush(f32::of(x[i])), flush(f32::of(y[i])));
        let near = if !FULL && b.is_finite() && b.abs() > 2f32.powi(126) {
            if a.is_finite() { 0.0 } else { f32::NAN }
        } else {
            blur(f64::from(a) / f64::from(b), 2.0, noise(seed, x[i] << 32 | y[i]))
        };
        out[i] = flush(near).canonical().bits();
    }
}

/// ex2 and tanh of f16, bf16 and their pairs: relative errors of 2^-9.9 and 2^-10.9 in f16, 2^-8 in bf16.
fn halves(opcode: &str, kind: Type) -> Result<Option<Alu>, String> {
    fn run<T: Float>(x: &Lanes, seed: u64, out: &mut Lanes, halves: u32, bound: f64, of: fn(f64) -> f64) {
        for i in 0..32 {
            out[i] = (0..halves).fold(0, |all, half| {
                let bits = x[i] >> (16 * half) & 0xffff;
                let near = of(T::of(bits).wide()) * (1.0 + float::noise(seed, bits) * bound);
                all | T::from_wide(near).bits() << (16 * half)
            });
        }
    }
    let function: Function = match (opcode, kind) {
        ("ex2", Type::F16) => |x, _, _, seed, out| run::<F16>(x, seed, out, 1, 0.0005, f64::exp2),
        ("ex2", Type::F16x2) => |x, _, _, seed, out| run::<F16>(x, seed, out, 2, 0.0005, f64::exp2),
        ("tanh", Type::F16) => |x, _, _, seed, out| run::<F16>(x, seed, out, 1, 0.0002, f64::tanh),
        ("tanh", Type::F16x2) => |x, _, _, seed, out| run::<F16>(x, seed, out, 2, 0.0002, f64::tanh),
        ("tanh", Type::Bf16) => |x, _, _, seed, out| run::<Bf16>(x, seed, out, 1, 0.002, f64::tanh),
        ("tanh", Type::Bf16x2) => |x, _, _, seed, out| run::<Bf16>(x, seed, out, 2, 0.002, f64::tanh),
        _ => return Ok(None),
    };
    Ok(Some(Alu { function, to: kind, from: vec![kind] }))
}
