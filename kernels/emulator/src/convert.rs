//! cvt: from every number to every number, with PTX's rounding, saturation and NaN rules.

use crate::alu::Lanes;
use crate::bits::{Bf16, Bits, Canonical, F16, Float};
use crate::float::{self, Mode, RM, RN, RP, RZ};
use crate::modifiers::Modifiers;
use crate::types::Type;

#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    pub to: Type,
    pub from: Type,
    mode: Mode,
    /// To a whole number: .rni and the like.
    whole: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
}

/// A value between the two types.
enum Number {
    Whole(i128),
    Float(f64),
}

impl Conversion {
    pub fn resolve(words: &mut Modifiers) -> Result<Conversion, String> {
        let mode = words.rounding();
        let whole = words.one_of(&["rni", "rzi", "rmi", "rpi"]);
        let (ftz, sat, relu) = (words.has("ftz"), words.has("sat"), words.has("relu"));
        let (to, from) = (words.kind()?, words.kind()?);
        let packed = matches!(to, Type::F16x2 | Type::Bf16x2);
        if packed && from != Type::F32 {
            return Err(format!("no conversion from {from:?} to {to:?}"));
        }
        let narrows = to.float() && from.float() && to.size() < from.size() || packed;
        let needs = from.float() && to.integer() || from.integer() && to.float() || narrows;
        if needs && mode.is_none() && whole.is_none() {
            return Err("the rounding is missing".into());
        }
        if mode.is_some() && !needs {
            return Err("this conversion does not round".into());
        }
        if whole.is_some() && !(from.float() && (to.integer() || to == from)) {
            return Err("only a float is rounded to a whole number".into());
        }
        if from.float() && to.integer() && whole.is_none() {
            return Err("a float becomes an integer by .rni, .rzi, .rmi or .rpi".into());
        }
        let mode = match whole {
            Some("rni") => RN,
            Some("rzi") => RZ,
            Some("rmi") => RM,
            Some(_) => RP,
            None => mode.unwrap_or(RN),
        };
        Ok(Conversion { to, from, mode, whole: whole.is_some(), ftz, sat, relu })
    }

    /// The second source is the low half of a pair.
    pub fn packed(&self) -> bool {
        matches!(self.to, Type::F16x2 | Type::Bf16x2)
    }

    /// Integers come out extended to 64 bits: the destination register may be wider than the type.
    pub fn run(&self, x: &Lanes, y: &Lanes, out: &mut Lanes) {
        // The conversions of inner loops, apart from the general path.
        let plain = !(self.ftz || self.sat || self.relu || self.whole) && self.mode == RN;
        match (self.to, self.from) {
            (Type::F32, Type::F16) if plain => {
                each(out, x, |x| u64::from(float::f16_to_f32(x as u16).canonical().to_bits()));
            }
            (Type::F32, Type::Bf16) if plain => each(out, x, |x| float::bf16_to_f32(x as u16).bits()),
            (Type::F16, Type::F32) if plain => each(out, x, |x| u64::from(float::f32_to_f16(f32::of(x)))),
            (Type::Bf16, Type::F32) if plain => each(out, x, |x| u64::from(float::f32_to_bf16(f32::of(x)))),
            (Type::F32, Type::S32) if plain => each(out, x, |x| (x as i32 as f32).bits()),
            (Type::F32, Type::U32) if plain => each(out, x, |x| (x as u32 as f32).bits()),
            (Type::U64 | Type::U32, Type::U32) if plain => each(out, x, |x| x & 0xffff_ffff),
            (Type::S64, Type::S32) if plain => each(out, x, |x| x as i32 as i64 as u64),
            (Type::U32 | Type::S32, Type::U64 | Type::S64) if plain => each(out, x, |x| x & 0xffff_ffff),
            (Type::F16x2, _) if plain => {
                for i in 0..32 {
                    let half = |x: u64| u64::from(float::f32_to_f16(f32::of(x)));
                    out[i] = half(x[i]) << 16 | half(y[i]);
                }
            }
            (Type::Bf16x2, _) if plain => {
                for i in 0..32 {
                    let half = |x: u64| u64::from(float::f32_to_bf16(f32::of(x)));
                    out[i] = half(x[i]) << 16 | half(y[i]);
                }
            }
            (Type::F16x2, _) => {
                let one = Conversion { to: Type::F16, ..*self };
                each(out, x, |x| one.one(x) << 16);
                for i in 0..32 {
                    out[i] |= one.one(y[i]);
                }
            }
            (Type::Bf16x2, _) => {
                let one = Conversion { to: Type::Bf16, ..*self };
                each(out, x, |x| one.one(x) << 16);
                for i in 0..32 {
                    out[i] |= one.one(y[i]);
                }
            }
            _ => each(out, x, |x| self.one(x)),
        }
    }

    fn one(&self, bits: u64) -> u64 {
        let number = match self.from {
            Type::F16 => Number::Float(F16::of(bits).wide()),
            Type::Bf16 => Number::Float(Bf16::of(bits).wide()),
            Type::F32 if self.ftz => Number::Float(float::flush(f32::of(bits)).wide()),
            Type::F32 => Number::Float(f32::of(bits).wide()),
            Type::F64 => Number::Float(f64::of(bits)),
            kind if kind.signed() => Number::Whole(i128::from(kind.extend(bits) as i64)),
            kind => Number::Whole(i128::from(bits & kind.mask())),
        };
        match number {
            Number::Whole(value) if !self.to.float() => {
                // Without .sat the low bits; with it the nearest value of the type.
                let value = if self.sat { value.clamp(self.least(), self.most()) } else { value };
                self.to.extend(value as u64)
            }
            Number::Whole(value) => self.float_of(value),
            Number::Float(value) if self.to.float() => self.narrowed(value),
            Number::Float(value) => self.whole_of(value),
        }
    }

    fn least(&self) -> i128 {
        if self.to.signed() { -(1i128 << (self.to.bits() - 1)) } else { 0 }
    }

    fn most(&self) -> i128 {
        if self.to.signed() { (1i128 << (self.to.bits() - 1)) - 1 } else { (1i128 << self.to.bits()) - 1 }
    }

    fn whole_of(&self, value: f64) -> u64 {
        if value.is_nan() {
            // Zero, but the sign bit alone where one of the types is 64 bits wide.
            let wide = self.from == Type::F64 || self.to.size() == 8;
            return if wide { 1 << (self.to.bits() - 1) } else { 0 };
        }
        let whole = rounded(value, self.mode);
        // `as` saturates; the range of f64 that matters fits i128.
        self.to.extend((whole as i128).clamp(self.least(), self.most()) as u64)
    }

    fn float_of(&self, value: i128) -> u64 {
        let exact = value as f64;
        if exact as i128 == value {
            return self.narrowed(exact);
        }
        // More than 53 bits: keep what is lost as a sticky last bit.
        let shift = 11;
        let sticky = (value >> shift) | i128::from(value & ((1 << shift) - 1) != 0);
        match self.to {
            Type::F64 if self.mode == RN => (value as f64).bits(),
            Type::F64 => rounded_whole(value, self.mode).bits(),
            _ => self.narrowed(sticky as f64 * 2048.0),
        }
    }

    fn narrowed(&self, value: f64) -> u64 {
        let mut value = if self.whole { rounded(value, self.mode) } else { value };
        let mode = if self.whole { RN } else { self.mode };
        if self.sat {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        if self.relu && value <= 0.0 {
            value = 0.0;
        }
        match self.to {
            Type::F16 => u64::from(float::f64_to_f16(value, mode)),
            Type::Bf16 => u64::from(float::f64_to_bf16(value, mode)),
            Type::F32 => {
                let near = float::f64_to_f32(value, mode).canonical();
                (if self.ftz { float::flush(near) } else { near }).bits()
            }
            _ => value.canonical().bits(),
        }
    }
}

fn each(out: &mut Lanes, x: &Lanes, of: impl Fn(u64) -> u64) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = of(x);
    }
}

fn rounded(value: f64, mode: Mode) -> f64 {
    match mode {
        RN => value.round_ties_even(),
        RZ => value.trunc(),
        RM => value.floor(),
        _ => value.ceil(),
    }
}

/// A 64-bit integer as f64, rounded in a direction.
fn rounded_whole(value: i128, mode: Mode) -> f64 {
    let near = value as f64;
    let over = near as i128 - value;
    let down = match mode {
        RM => true,
        RP => false,
        _ => value > 0,
    };
    if over > 0 && down {
        near.next_down()
    } else if over < 0 && !down {
        near.next_up()
    } else {
        near
    }
}
