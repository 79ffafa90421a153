//! Arithmetic: which function computes an opcode of this type, over the 32 lanes at once. Functions are
//! total: they run on lanes that are not active too, and the warp keeps what it wants.

use crate::bits::{Bits, Canonical, Float, Int};
use crate::exact;
use crate::float::{self, Mode, RN};
use crate::modifiers::Modifiers;
use crate::types::Type;

pub type Lanes = [u64; 32];
/// Three sources, the seed of the approximations, the result.
pub type Function = fn(&Lanes, &Lanes, &Lanes, u64, &mut Lanes);

/// An operation without side effects: what it computes and the types of its operands.
pub struct Alu {
    pub function: Function,
    pub to: Type,
    pub from: Vec<Type>,
}

pub fn alu(function: Function, to: Type, from: &[Type]) -> Option<Alu> {
    Some(Alu { function, to, from: from.to_vec() })
}

/// An integer operation over every width and sign.
trait OnInt {
    fn on<T: Int>(a: T, b: T, c: T) -> T;
}

fn int<T: Int, O: OnInt>(x: &Lanes, y: &Lanes, z: &Lanes, _: u64, out: &mut Lanes) {
    for i in 0..32 {
        out[i] = O::on(T::of(x[i]), T::of(y[i]), T::of(z[i])).bits();
    }
}

/// A floating-point operation over every format.
trait OnFloat {
    fn on<T: Float>(a: T, b: T, c: T) -> T;
}

fn float<T: Float, O: OnFloat, const FTZ: bool, const SAT: bool>(
    x: &Lanes,
    y: &Lanes,
    z: &Lanes,
    _: u64,
    out: &mut Lanes,
) {
    for i in 0..32 {
        let (mut a, mut b, mut c) = (T::of(x[i]), T::of(y[i]), T::of(z[i]));
        if FTZ {
            (a, b, c) = (a.flush(), b.flush(), c.flush());
        }
        let mut value = O::on(a, b, c);
        if FTZ {
            value = value.flush();
        }
        if SAT {
            value = value.saturate();
        }
        out[i] = value.bits();
    }
}

/// The same on both halves of a register.
fn halves<T: Float, O: OnFloat>(x: &Lanes, y: &Lanes, z: &Lanes, _: u64, out: &mut Lanes) {
    for i in 0..32 {
        let half = |by: u32| {
            O::on(T::of(x[i] >> by & 0xffff), T::of(y[i] >> by & 0xffff), T::of(z[i] >> by & 0xffff)).bits()
        };
        out[i] = half(16) << 16 | half(0);
    }
}

macro_rules! on_int {
    ($($name:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        struct $name;
        impl OnInt for $name {
            fn on<T: Int>($a: T, $b: T, $c: T) -> T { let _ = ($b, $c); $value }
        }
    )*};
}

macro_rules! on_float {
    ($($name:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        struct $name;
        impl OnFloat for $name {
            fn on<T: Float>($a: T, $b: T, $c: T) -> T { let _ = ($b, $c); $value }
        }
    )*};
}

on_int! {
    Add |a, b, c| a.plus(b);
    Sub |a, b, c| a.minus(b);
    MulLo |a, b, c| a.times(b);
    MulHi |a, b, c| a.times_high(b);
    MadLo |a, b, c| a.times(b).plus(c);
    MadHi |a, b, c| a.times_high(b).plus(c);
    Div |a, b, c| a.over(b);
    Rem |a, b, c| a.rest(b);
    Min |a, b, c| a.min(b);
    Max |a, b, c| a.max(b);
    Neg |a, b, c| T::of(0).minus(a);
    Abs |a, b, c| if a < T::of(0) { T::of(0).minus(a) } else { a };
    Sad |a, b, c| c.plus(if a < b { b.minus(a) } else { a.minus(b) });
    And |a, b, c| T::of(a.bits() & b.bits());
    Or |a, b, c| T::of(a.bits() | b.bits());
    Xor |a, b, c| T::of(a.bits() ^ b.bits());
    Not |a, b, c| T::of(!a.bits());
    Cnot |a, b, c| T::of(u64::from(a.bits() == 0));
    Copy |a, b, c| a;
    AddSat |a, b, c| a.plus_saturated(b);
    SubSat |a, b, c| a.minus_saturated(b);
}

on_float! {
    FAdd |a, b, c| a.plus(b);
    FSub |a, b, c| a.plus(b.negate());
    FMul |a, b, c| a.times(b);
    FFma |a, b, c| a.fused(b, c);
    FFmaRelu |a, b, c| { let value = a.fused(b, c); if value.wide() < 0.0 { T::of(0) } else { value } };
    FMin |a, b, c| a.least(b, false);
    FMax |a, b, c| a.most(b, false);
    FMinNan |a, b, c| a.least(b, true);
    FMaxNan |a, b, c| a.most(b, true);
    FNeg |a, b, c| a.negate();
    FAbs |a, b, c| if a.negative() { a.negate() } else { a };
    FDiv |a, b, c| a.over(b);
    FSqrt |a, b, c| a.root();
    FRcp |a, b, c| T::from_wide(1.0).over(a);
}

/// Directed rounding, of the exact result as far as 53 bits rounded to odd tell it.
macro_rules! directed {
    ($($name:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        struct $name<const M: Mode>;
        impl<const M: Mode> OnFloat for $name<M> {
            fn on<T: Float>($a: T, $b: T, $c: T) -> T {
                let ($a, $b, $c) = ($a.wide(), $b.wide(), $c.wide());
                let _ = ($b, $c);
                T::rounded($value, M)
            }
        }
    )*};
}

directed! {
    DAdd |a, b, c| float::add_odd(a, b);
    DSub |a, b, c| float::add_odd(a, -b);
    DMul |a, b, c| a * b;
    DFma |a, b, c| float::add_odd(a * b, c);
    DDiv |a, b, c| odd(a / b, (-(a / b)).mul_add(b, a) * b.signum());
    DSqrt |a, b, c| odd(a.sqrt(), (-a.sqrt()).mul_add(a.sqrt(), a));
    DRcp |a, b, c| odd(1.0 / a, (-(1.0 / a)).mul_add(a, 1.0) * a.signum());
}

/// A rounded `value` whose exact one lies on the side of `rest`, as odd.
fn odd(value: f64, rest: f64) -> f64 {
    let tiny = f64::MIN_POSITIVE;
    if rest == 0.0 || !rest.is_finite() { value } else { float::add_odd(value, tiny.copysign(rest)) }
}

macro_rules! ints {
    ($kind:expr, $op:ty) => {
        match $kind {
            Type::U16 => int::<u16, $op> as Function,
            Type::S16 => int::<i16, $op>,
            Type::U32 => int::<u32, $op>,
            Type::S32 => int::<i32, $op>,
            Type::U64 => int::<u64, $op>,
            Type::S64 => int::<i64, $op>,
            _ => return Ok(None),
        }
    };
}

macro_rules! bitwise {
    ($kind:expr, $op:ty) => {
        match $kind {
            Type::B16 => int::<u16, $op> as Function,
            Type::B32 => int::<u32, $op>,
            Type::B64 => int::<u64, $op>,
            _ => return Ok(None),
        }
    };
}

macro_rules! floats {
    ($kind:expr, $op:ty, $ftz:expr, $sat:expr) => {
        match ($kind, $ftz, $sat) {
            (Type::F32, false, false) => float::<f32, $op, false, false> as Function,
            (Type::F32, true, false) => float::<f32, $op, true, false>,
            (Type::F32, false, true) => float::<f32, $op, false, true>,
            (Type::F32, true, true) => float::<f32, $op, true, true>,
            (Type::F64, false, false) => float::<f64, $op, false, false>,
            (Type::F16, false, false) => float::<crate::bits::F16, $op, false, false>,
            (Type::F16, true, false) => float::<crate::bits::F16, $op, true, false>,
            (Type::F16, false, true) => float::<crate::bits::F16, $op, false, true>,
            (Type::F16, true, true) => float::<crate::bits::F16, $op, true, true>,
            (Type::Bf16, false, false) => float::<crate::bits::Bf16, $op, false, false>,
            (Type::F16x2, _, false) => halves::<crate::bits::F16, $op>,
            (Type::Bf16x2, false, false) => halves::<crate::bits::Bf16, $op>,
            _ => return Ok(None),
        }
    };
}

/// Rounded to nearest in every format, the other modes in f32.
macro_rules! rounded {
    ($kind:expr, $op:ty, $directed:ident, $mode:expr, $ftz:expr, $sat:expr) => {
        match $mode {
            float::RN => floats!($kind, $op, $ftz, $sat),
            _ if $kind != Type::F32 => return Err("this type rounds to nearest alone here".into()),
            float::RZ => floats!($kind, $directed<1>, $ftz, $sat),
            float::RM => floats!($kind, $directed<2>, $ftz, $sat),
            _ => floats!($kind, $directed<3>, $ftz, $sat),
        }
    };
}

/// Of f64, the operations that `exact` rounds otherwise than to nearest.
fn doubles<const M: Mode>(opcode: &str) -> Option<Function> {
    fn each(x: &Lanes, y: &Lanes, z: &Lanes, out: &mut Lanes, of: impl Fn(f64, f64, f64) -> f64) {
        for i in 0..32 {
            out[i] = of(f64::of(x[i]), f64::of(y[i]), f64::of(z[i])).canonical().bits();
        }
    }
    Some(match opcode {
        "add" => |x, y, z, _, out| each(x, y, z, out, |a, b, _| exact::fused(a, 1.0, b, M)),
        "sub" => |x, y, z, _, out| each(x, y, z, out, |a, b, _| exact::fused(b, -1.0, a, M)),
        // A zero of the product's sign adds nothing.
        "mul" => |x, y, z, _, out| {
            let zero = |a: f64, b: f64| 0.0f64.copysign(1.0f64.copysign(a) * 1.0f64.copysign(b));
            each(x, y, z, out, |a, b, _| exact::fused(a, b, zero(a, b), M));
        },
        "fma" | "mad" => |x, y, z, _, out| each(x, y, z, out, |a, b, c| exact::fused(a, b, c, M)),
        _ => return None,
    })
}

/// The operation of an opcode, if it is one of arithmetic.
pub fn resolve(opcode: &str, words: &mut Modifiers) -> Result<Option<Alu>, String> {
    let found = match opcode {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" | "sad"
        | "sqrt" | "rcp" | "mul24" | "mad24" => arithmetic(opcode, words)?,
        "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => crate::approximate::resolve(opcode, words)?,
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "mov" => logic(opcode, words)?,
        _ => crate::bitfield::resolve(opcode, words)?,
    };
    Ok(found)
}

fn arithmetic(opcode: &str, words: &mut Modifiers) -> Result<Option<Alu>, String> {
    let mode = words.rounding();
    let (ftz, sat) = (words.has("ftz"), words.has("sat"));
    let kind = words.kind()?;
    let three = matches!(opcode, "mad" | "fma" | "sad");
    let one = matches!(opcode, "neg" | "abs" | "sqrt" | "rcp");
    let operands = if one { 1 } else { 2 + usize::from(three) };
    if kind.float() {
        let m = mode.unwrap_or(RN);
        let cut = match m {
            _ if kind != Type::F64 || ftz || sat => None,
            float::RZ => doubles::<{ float::RZ }>(opcode),
            float::RM => doubles::<{ float::RM }>(opcode),
            float::RP => doubles::<{ float::RP }>(opcode),
            _ => None,
        };
        if let Some(function) = cut {
            return Ok(alu(function, kind, &vec![kind; operands]));
        }
        let function = match opcode {
            "add" => rounded!(kind, FAdd, DAdd, m, ftz, sat),
            "sub" => rounded!(kind, FSub, DSub, m, ftz, sat),
            "mul" => rounded!(kind, FMul, DMul, m, ftz, sat),
            "fma" | "mad" if mode.is_none() => return Err("a rounding is missing, .rn for instance".into()),
            "fma" if words.has("relu") => floats!(kind, FFmaRelu, ftz, sat),
            "fma" | "mad" => rounded!(kind, FFma, DFma, m, ftz, sat),
            "min" if words.has("NaN") => floats!(kind, FMinNan, ftz, sat),
            "min" => floats!(kind, FMin, ftz, sat),
            "max" if words.has("NaN") => floats!(kind, FMaxNan, ftz, sat),
            "max" => floats!(kind, FMax, ftz, sat),
            "neg" => floats!(kind, FNeg, ftz, sat),
            "abs" => floats!(kind, FAbs, ftz, sat),
            "div" | "sqrt" | "rcp" if mode.is_none() => {
                return crate::approximate::division(opcode, kind, ftz, words);
            }
            "div" => rounded!(kind, FDiv, DDiv, m, ftz, sat),
            "sqrt" => rounded!(kind, FSqrt, DSqrt, m, ftz, sat),
            "rcp" => rounded!(kind, FRcp, DRcp, m, ftz, sat),
            _ => return Ok(None),
        };
        return Ok(alu(function, kind, &vec![kind; operands]));
    }
    if mode.is_some() || ftz {
        return Err("an integer operation neither rounds nor flushes".into());
    }
    if words.has("wide") {
        return Ok(widening(opcode, kind));
    }
    let (low, high) = (words.has("lo"), words.has("hi"));
    if matches!(opcode, "mul" | "mad") && !(low || high) {
        return Err("one of .lo, .hi and .wide is missing".into());
    }
    if sat && !(matches!(opcode, "add" | "sub") && kind == Type::S32) {
        return Err(".sat belongs to add.s32 and sub.s32".into());
    }
    let function = match opcode {
        "add" if sat => int::<i32, AddSat>,
        "sub" if sat => int::<i32, SubSat>,
        "add" => ints!(kind, Add),
        "sub" => ints!(kind, Sub),
        "mul" if high => ints!(kind, MulHi),
        "mul" => ints!(kind, MulLo),
        "mad" if high => ints!(kind, MadHi),
        "mad" => ints!(kind, MadLo),
        "div" => ints!(kind, Div),
        "rem" => ints!(kind, Rem),
        "min" => ints!(kind, Min),
        "max" => ints!(kind, Max),
        "sad" => ints!(kind, Sad),
        "neg" if kind.signed() => ints!(kind, Neg),
        "abs" if kind.signed() => ints!(kind, Abs),
        _ => return Ok(None),
    };
    Ok(alu(function, kind, &vec![kind; operands]))
}

/// mul.wide and mad.wide: the result has twice the width.
fn widening(opcode: &str, kind: Type) -> Option<Alu> {
    let (function, wide): (Function, Type) = match kind {
        Type::U32 => (
            |x, y, z, _, out| {
                for i in 0..32 {
                    out[i] = (x[i] & 0xffff_ffff).wrapping_mul(y[i] & 0xffff_ffff).wrapping_add(z[i]);
                }
            },
            Type::U64,
        ),
        Type::S32 => (
            |x, y, z, _, out| {
                for i in 0..32 {
                    let product = i64::from(x[i] as i32) * i64::from(y[i] as i32);
                    out[i] = (product as u64).wrapping_add(z[i]);
                }
            },
            Type::S64,
        ),
        Type::U16 => (
            |x, y, z, _, out| {
                for i in 0..32 {
                    out[i] = u64::from(((x[i] & 0xffff) * (y[i] & 0xffff)).wrapping_add(z[i]) as u32);
                }
            },
            Type::U32,
        ),
        Type::S16 => (
            |x, y, z, _, out| {
                for i in 0..32 {
                    let product = i32::from(x[i] as i16) * i32::from(y[i] as i16);
                    out[i] = u64::from((product as u32).wrapping_add(z[i] as u32));
                }
            },
            Type::S32,
        ),
        _ => return None,
    };
    // A missing third operand reads as zero.
    match opcode {
        "mul" => alu(function, wide, &[kind, kind]),
        "mad" => alu(function, wide, &[kind, kind, wide]),
        _ => None,
    }
}

fn logic(opcode: &str, words: &mut Modifiers) -> Result<Option<Alu>, String> {
    let kind = words.kind()?;
    let two = [kind, kind];
    Ok(match opcode {
        "and" => alu(bitwise!(kind, And), kind, &two),
        "or" => alu(bitwise!(kind, Or), kind, &two),
        "xor" => alu(bitwise!(kind, Xor), kind, &two),
        "not" => alu(bitwise!(kind, Not), kind, &two[..1]),
        "cnot" => alu(bitwise!(kind, Cnot), kind, &two[..1]),
        "mov" => match kind.size() {
            2 => alu(int::<u16, Copy>, kind, &two[..1]),
            4 => alu(int::<u32, Copy>, kind, &two[..1]),
            8 => alu(int::<u64, Copy>, kind, &two[..1]),
            _ => None,
        },
        // Shifts clamp: at the width and beyond nothing is left but the sign.
        "shl" => {
            let function: Function = match kind {
                Type::B16 => |x, y, _, _, out| {
                    for i in 0..32 {
                        out[i] = if y[i] > 15 { 0 } else { x[i] << y[i] & 0xffff };
                    }
                },
                Type::B32 => |x, y, _, _, out| {
                    for i in 0..32 {
                        out[i] = if y[i] > 31 { 0 } else { x[i] << y[i] & 0xffff_ffff };
                    }
                },
                Type::B64 => |x, y, _, _, out| {
                    for i in 0..32 {
                        out[i] = if y[i] > 63 { 0 } else { x[i] << y[i] };
                    }
                },
                _ => return Ok(None),
            };
            alu(function, kind, &[kind, Type::U32])
        }
        "shr" => {
            macro_rules! shift {
                ($t:ty) => {
                    |x, y, _, _, out| {
                        for i in 0..32 {
                            let by = y[i].min(u64::from(<$t>::BITS - 1)) as u32;
                            let value = <$t as Bits>::of(x[i]) >> by;
                            let gone = <$t>::MIN == 0 && y[i] >= u64::from(<$t>::BITS);
                            out[i] = if gone { 0 } else { value.bits() };
                        }
                    }
                };
            }
            let function: Function = match kind {
                Type::B16 | Type::U16 => shift!(u16),
                Type::S16 => shift!(i16),
                Type::B32 | Type::U32 => shift!(u32),
                Type::S32 => shift!(i32),
                Type::B64 | Type::U64 => shift!(u64),
                Type::S64 => shift!(i64),
                _ => return Ok(None),
            };
            alu(function, kind, &[kind, Type::U32])
        }
        _ => None,
    })
}
