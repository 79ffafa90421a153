//! What a lane's 64 bits mean: the numbers of PTX as Rust's, with the wrapping and the NaNs that PTX has.

use crate::float::{self, Mode, NAN32};

/// A number in the low bits of a register.
pub trait Bits: Copy {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
}

pub trait Int: Bits + Ord {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn times_high(self, other: Self) -> Self;
    /// All ones where the divisor is zero, as devices do; PTX leaves it open.
    fn over(self, other: Self) -> Self;
    fn rest(self, other: Self) -> Self;
    fn plus_saturated(self, other: Self) -> Self;
    fn minus_saturated(self, other: Self) -> Self;
}

macro_rules! int {
    ($($name:ident $unsigned:ident $wide:ident)*) => {$(
        impl Bits for $name {
            fn of(bits: u64) -> $name { bits as $name }
            fn bits(self) -> u64 { self as $unsigned as u64 }
        }
        impl Int for $name {
            fn plus(self, other: $name) -> $name { self.wrapping_add(other) }
            fn minus(self, other: $name) -> $name { self.wrapping_sub(other) }
            fn times(self, other: $name) -> $name { self.wrapping_mul(other) }
            fn times_high(self, other: $name) -> $name {
                ((self as $wide).wrapping_mul(other as $wide) >> $name::BITS) as $name
            }
            fn over(self, other: $name) -> $name {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            fn rest(self, other: $name) -> $name {
                if other == 0 { self } else { self.wrapping_rem(other) }
            }
            fn plus_saturated(self, other: $name) -> $name { self.saturating_add(other) }
            fn minus_saturated(self, other: $name) -> $name { self.saturating_sub(other) }
        }
    )*};
}

int! { u16 u16 u32  i16 u16 i32  u32 u32 u64  i32 u32 i64  u64 u64 u128  i64 u64 i128 }

/// Numbers of a floating format. Results that are NaN are PTX's NaN.
pub trait Float: Bits {
    fn wide(self) -> f64;
    fn rounded(value: f64, mode: Mode) -> Self;
    fn from_wide(value: f64) -> Self {
        Self::rounded(value, float::RN)
    }
    fn negative(self) -> bool;
    fn negate(self) -> Self;
    /// Subnormals to zero, where .ftz does so.
    fn flush(self) -> Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn fused(self, other: Self, addend: Self) -> Self;
    fn over(self, other: Self) -> Self;
    fn root(self) -> Self;

    /// To 0..=1, NaN to 0.
    fn saturate(self) -> Self {
        let value = self.wide();
        if value > 1.0 {
            Self::from_wide(1.0)
        } else if value > 0.0 {
            self
        } else {
            Self::of(0)
        }
    }

    /// The lesser; a number wins over NaN unless `nan`; -0 is less than +0.
    fn least(self, other: Self, nan: bool) -> Self {
        let (a, b) = (self.wide(), other.wide());
        if a.is_nan() || b.is_nan() {
            return Self::number(self, other, nan);
        }
        if a < b || a == b && self.negative() { self } else { other }
    }

    fn most(self, other: Self, nan: bool) -> Self {
        let (a, b) = (self.wide(), other.wide());
        if a.is_nan() || b.is_nan() {
            return Self::number(self, other, nan);
        }
        if a > b || a == b && other.negative() { self } else { other }
    }

    /// Of two operands, one of which is NaN: the number, if that is wanted and there is one.
    fn number(a: Self, b: Self, nan: bool) -> Self {
        match (a.wide().is_nan(), b.wide().is_nan()) {
            (false, _) if !nan => a,
            (_, false) if !nan => b,
            _ => Self::from_wide(f64::NAN),
        }
    }
}

/// NaN as PTX gives it.
pub trait Canonical {
    fn canonical(self) -> Self;
}

impl Canonical for f32 {
    fn canonical(self) -> f32 {
        if self.is_nan() { f32::from_bits(NAN32) } else { self }
    }
}

impl Canonical for f64 {
    fn canonical(self) -> f64 {
        if self.is_nan() { f64::from_bits(0x7fff_ffff_ffff_ffff) } else { self }
    }
}

impl Bits for f32 {
    fn of(bits: u64) -> f32 {
        f32::from_bits(bits as u32)
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Float for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn rounded(value: f64, mode: Mode) -> f32 {
        float::f64_to_f32(value, mode).canonical()
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
    fn negate(self) -> f32 {
        -self
    }
    fn flush(self) -> f32 {
        float::flush(self)
    }
    fn plus(self, other: f32) -> f32 {
        (self + other).canonical()
    }
    fn times(self, other: f32) -> f32 {
        (self * other).canonical()
    }
    fn fused(self, other: f32, addend: f32) -> f32 {
        // The product is exact in f64; the odd sum rounds once.
        (float::add_odd(f64::from(self) * f64::from(other), f64::from(addend)) as f32).canonical()
    }
    fn over(self, other: f32) -> f32 {
        (self / other).canonical()
    }
    fn root(self) -> f32 {
        self.sqrt().canonical()
    }
}

impl Bits for f64 {
    fn of(bits: u64) -> f64 {
        f64::from_bits(bits)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Float for f64 {
    fn wide(self) -> f64 {
        self
    }
    fn rounded(value: f64, _: Mode) -> f64 {
        value.canonical()
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
    fn negate(self) -> f64 {
        -self
    }
    fn flush(self) -> f64 {
        self
    }
    fn plus(self, other: f64) -> f64 {
        (self + other).canonical()
    }
    fn times(self, other: f64) -> f64 {
        (self * other).canonical()
    }
    fn fused(self, other: f64, addend: f64) -> f64 {
        self.mul_add(other, addend).canonical()
    }
    fn over(self, other: f64) -> f64 {
        (self / other).canonical()
    }
    fn root(self) -> f64 {
        self.sqrt().canonical()
    }
}

/// The bits of an f16.
#[derive(Clone, Copy, PartialEq)]
pub struct F16(pub u16);

/// The bits of a bf16.
#[derive(Clone, Copy, PartialEq)]
pub struct Bf16(pub u16);

macro_rules! half {
    ($name:ident, $wide:path, $narrow:path, $subnormal:expr) => {
        impl Bits for $name {
            fn of(bits: u64) -> $name {
                $name(bits as u16)
            }
            fn bits(self) -> u64 {
                u64::from(self.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &$name) -> Option<std::cmp::Ordering> {
                self.wide().partial_cmp(&other.wide())
            }
        }

        impl Float for $name {
            fn wide(self) -> f64 {
                f64::from($wide(self.0))
            }
            fn rounded(value: f64, mode: Mode) -> $name {
                $name($narrow(value, mode))
            }
            fn negative(self) -> bool {
                self.0 & 0x8000 != 0
            }
            fn negate(self) -> $name {
                $name(self.0 ^ 0x8000)
            }
            fn flush(self) -> $name {
                if self.0 & $subnormal == 0 { $name(self.0 & 0x8000) } else { self }
            }
            fn plus(self, other: $name) -> $name {
                $name::from_wide(float::add_odd(self.wide(), other.wide()))
            }
            fn times(self, other: $name) -> $name {
                $name::from_wide(self.wide() * other.wide())
            }
            fn fused(self, other: $name, addend: $name) -> $name {
                $name::from_wide(float::add_odd(self.wide() * other.wide(), addend.wide()))
            }
            fn over(self, other: $name) -> $name {
                $name::from_wide(self.wide() / other.wide())
            }
            fn root(self) -> $name {
                $name::from_wide(self.wide().sqrt())
            }
        }
    };
}

half!(F16, float::f16_to_f32, float::f64_to_f16, 0x7c00);
half!(Bf16, float::bf16_to_f32, float::f64_to_bf16, 0x7f80);
