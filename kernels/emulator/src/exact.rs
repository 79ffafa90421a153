//! Directed rounding in f64: a * b + c exactly, as integers, then cut once. Knows no instruction.

use crate::float::{Mode, RM, RP};

/// mantissa * 2^exponent
#[derive(Clone, Copy)]
struct Parts {
    negative: bool,
    mantissa: u128,
    exponent: i32,
}

impl Parts {
    fn of(value: f64) -> Parts {
        let (field, fraction) = ((value.to_bits() >> 52 & 0x7ff) as i32, value.to_bits() & ((1 << 52) - 1));
        let mantissa = u128::from(if field == 0 { fraction } else { fraction | 1 << 52 });
        Parts { negative: value.is_sign_negative(), mantissa, exponent: field.max(1) - 1075 }
    }

    /// The highest bit at 125: sums do not overflow, and a product has 20 zeros at its end.
    fn aligned(self) -> Parts {
        let by = self.mantissa.leading_zeros() as i32 - 2;
        Parts { mantissa: self.mantissa << by, exponent: self.exponent - by, ..self }
    }

    /// The lowest bit stands for all that a cut to 53 bits drops.
    fn plus(self, other: Parts) -> Parts {
        let (a, b) = (self.aligned(), other.aligned());
        let (big, small) = if (a.exponent, a.mantissa) < (b.exponent, b.mantissa) { (b, a) } else { (a, b) };
        let gap = (big.exponent - small.exponent).min(126) as u32;
        let lost = small.mantissa & ((1 << gap) - 1) != 0;
        let small_mantissa = small.mantissa >> gap | u128::from(lost);
        let mantissa = match big.negative == small.negative {
            true => big.mantissa + small_mantissa,
            false => big.mantissa - small_mantissa,
        };
        Parts { mantissa, ..big }
    }

    /// Cut to a f64 toward zero, or away from it where the mode goes that way.
    fn round(self, mode: Mode) -> f64 {
        let away = if self.negative { mode == RM } else { mode == RP };
        let top = 127 - self.mantissa.leading_zeros() as i32;
        let mut quantum = (top + self.exponent - 52).max(-1074);
        let drop = quantum - self.exponent;
        let (mut kept, rest) = match drop {
            ..=0 => (self.mantissa << -drop, false),
            1..128 => (self.mantissa >> drop, self.mantissa & ((1 << drop) - 1) != 0),
            _ => (0, true),
        };
        kept += u128::from(rest && away);
        if kept == 1 << 53 {
            (kept, quantum) = (kept >> 1, quantum + 1);
        }
        let magnitude = match (quantum > 971, away) {
            (true, true) => f64::INFINITY,
            (true, false) => f64::MAX,
            // Less than 2^52 of the least quantum is subnormal, of exponent 0.
            _ if kept < 1 << 52 => f64::from_bits(kept as u64),
            _ => f64::from_bits(((quantum + 1075) as u64) << 52 | kept as u64 & ((1 << 52) - 1)),
        };
        if self.negative { -magnitude } else { magnitude }
    }
}

/// a * b + c rounded once: not to nearest.
pub fn fused(a: f64, b: f64, c: f64, mode: Mode) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    let (x, y, addend) = (Parts::of(a), Parts::of(b), Parts::of(c));
    let product = Parts {
        negative: x.negative != y.negative,
        mantissa: x.mantissa * y.mantissa,
        exponent: x.exponent + y.exponent,
    };
    let sum = match (product.mantissa, addend.mantissa) {
        (0, 0) if product.negative == addend.negative => return c,
        (0, 0) => Parts { mantissa: 0, ..product },
        (0, _) => return c,
        (_, 0) => product.aligned(),
        _ => product.plus(addend),
    };
    match sum.mantissa {
        // Zero from unlike signs is positive, but for rounding down.
        0 if mode == RM => -0.0,
        0 => 0.0,
        _ => sum.round(mode),
    }
}
