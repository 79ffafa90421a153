//! The exponential whose bits are the same everywhere.
//!
//! Owns: [`exp_fixed`], made of f32 multiplications, additions and bit moves only, each rounded on its own (never
//! fused), so any machine and any backend that takes the same steps gets the same bits, and a loop of it vectorises
//! without special instructions. Never: whose probability it is (`sample.rs`).
//!
//! `exp(x) = 2^n * exp(r)` with `n = round(x / ln 2)` and `r = x - n ln 2` in two steps, `|r| <= 0.347`; `exp(r)` is
//! the Taylor polynomial of degree 7, whose remainder (5e-9) is below half a unit in the last place of f32.

use std::f32::consts::LOG2_E;

/// ln 2 in two parts: `n * LN2_HIGH` is exact for |n| <= 2^14 (the constant has 10 significant bits).
pub const LN2_HIGH: f32 = 0.693_359_4; // 355 / 512
pub const LN2_LOW: f32 = -2.121_944_4e-4; // ln 2 - LN2_HIGH
/// 1.5 * 2^23: adding it rounds to an integer (ties to even), which then stands in the sum's low bits.
const ROUNDER: f32 = 12_582_912.0;

/// `exp(z)` for `z <= 0` as an integer: 2^42 at 0, rounded down; 0 for NaN and from about -29.1 down.
#[inline(always)]
pub fn exp_fixed(z: f32) -> u64 {
    if !(z > -30.0 && z <= 0.0) {
        return 0;
    }
    let (fraction, rounded) = parts(z);
    // `fraction` lies in 0.5..2, so this product is a whole number, and exact.
    let mantissa = (fraction * (1 << 24) as f32) as i32 as u64;
    let halvings = ROUNDER.to_bits() - rounded.to_bits();
    (mantissa << (FIXED_BITS - 24)) >> halvings
}

/// `exp_fixed(0)` is 2 to this. A vocabulary of 2^20 tokens sums up to 2^62 at most.
pub const FIXED_BITS: u32 = 42;

const _: () = assert!((crate::limits::MODEL_VOCAB as u64) << FIXED_BITS <= 1 << 62);

/// `(exp(r), ROUNDER + n)` for -30 < x <= 0.
#[inline(always)]
fn parts(x: f32) -> (f32, f32) {
    let rounded = x * LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    (p, rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_point_agrees_and_ends_at_zero() {
        let one = (1u64 << FIXED_BITS) as f64;
        let mut z = 0.0f32;
        while z > -30.0 {
            let (got, want) = (exp_fixed(z) as f64, f64::from(z).exp() * one);
            assert!((got - want).abs() <= want * 3e-7 + 1.0, "exp_fixed({z}) = {got}, not {want}");
            z -= 0.001_3;
        }
        assert_eq!(exp_fixed(0.0), 1 << FIXED_BITS);
        assert_eq!(exp_fixed(-0.0), 1 << FIXED_BITS);
        for z in [f32::NAN, f32::NEG_INFINITY, -30.0, -1e30, f32::INFINITY, 0.1] {
            assert_eq!(exp_fixed(z), 0, "{z}");
        }
    }

    /// Other backends repeat these steps: the bits are part of the contract between them.
    #[test]
    fn the_bits_are_pinned() {
        let fixed = [-0.1f32, -1.0, -5.5, -20.25].map(exp_fixed);
        assert_eq!(fixed, [3_979_517_100_032, 1_617_950_932_992, 17_973_811_200, 7_059]);
    }
}
