//! Lanes in plain Rust, for any machine; `FUSED` rounds like the vector paths, slowly where the machine cannot fuse.
//!
//! Owns: what each operation means. Never: an instruction of its own.

use super::Lanes;
use crate::model::quant::f16_to_f32;
use std::array::from_fn;

/// Sixteen lanes as arrays.
#[derive(Clone, Copy)]
pub(in super::super) struct Plain<const FUSED: bool>;

impl<const FUSED: bool> Lanes for Plain<FUSED> {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];

    const COLUMNS: usize = 1;

    fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }
    #[inline(always)]
    fn store(self, x: [f32; 16], to: &mut [f32; 16]) {
        *to = x;
    }
    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        if FUSED { from_fn(|i| a[i].mul_add(b[i], c[i])) } else { from_fn(|i| a[i] * b[i] + c[i]) }
    }
    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn above(self, a: [f32; 16], b: [f32; 16]) -> u16 {
        (0..16).fold(0, |bits, i| bits | u16::from(a[i] > b[i]) << i)
    }
    #[inline(always)]
    fn abs(self, a: [f32; 16]) -> [f32; 16] {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn select(self, bits: u16, x: [f32; 16], other: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if bits >> i & 1 == 1 { x[i] } else { other[i] })
    }
    #[inline(always)]
    fn from_f16(self, from: &[u16; 16]) -> [f32; 16] {
        from.map(f16_to_f32)
    }
    #[inline(always)]
    fn to_f16(self, x: [f32; 16], to: &mut [u16; 16]) {
        *to = x.map(f32_to_f16);
    }
    #[inline(always)]
    fn from_bf16(self, from: &[u16; 16]) -> [f32; 16] {
        from.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    fn round(self, x: [f32; 16]) -> [i32; 16] {
        x.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    fn zero(self) -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn add_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn mul_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn sum_i(self, x: [i32; 16]) -> i32 {
        x.into_iter().sum()
    }
    #[inline(always)]
    fn float(self, x: [i32; 16]) -> [f32; 16] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn from_bits(self, x: [i32; 16]) -> [f32; 16] {
        x.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn shl<const BY: u32>(self, x: [i32; 16]) -> [i32; 16] {
        x.map(|x| x << BY)
    }
    #[inline(always)]
    fn from_i8(self, from: &[i8; 16]) -> [i32; 16] {
        from.map(i32::from)
    }
    #[inline(always)]
    fn from_u8(self, from: &[u8; 16]) -> [i32; 16] {
        from.map(i32::from)
    }
    #[inline(always)]
    fn to_i8(self, x: [i32; 16], to: &mut [i8; 16]) {
        *to = x.map(|x| x as i8);
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }
    #[inline(always)]
    fn low_nibbles(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x & 15)
    }
    #[inline(always)]
    fn high_nibbles(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x >> 4)
    }
    #[inline(always)]
    fn join_2<const SHIFT: u32>(self, low: [u8; 64], x: [u8; 64]) -> [u8; 64] {
        from_fn(|i| low[i] | (x[i] >> SHIFT & 3) << 4)
    }
    #[inline(always)]
    fn dot_7(self, sum: [i32; 16], a: [u8; 64], b: &[i8; 4]) -> [i32; 16] {
        from_fn(|i| sum[i] + (0..4).map(|j| i32::from(a[4 * i + j]) * i32::from(b[j])).sum::<i32>())
    }
    #[inline(always)]
    fn start_8(self, minus_sum: i32) -> [i32; 16] {
        [minus_sum << 7; 16]
    }
    #[inline(always)]
    fn dot_8(self, sum: [i32; 16], a: [u8; 64], b: &[i8; 4]) -> [i32; 16] {
        self.dot_7(sum, a, b)
    }
}

/// The nearest half, ties to even; beyond the largest, infinity.
fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.abs();
    if magnitude.is_nan() {
        return sign | 0x7e00;
    }
    if magnitude < f32::from_bits((127 - 14) << 23) {
        // A subnormal half counts in steps of 2^-24; adding 2^-1 leaves just these steps in the float's fraction.
        return sign | (magnitude + 0.5).to_bits().wrapping_sub(0.5f32.to_bits()) as u16;
    }
    // Rounds at bit 13, ties to even; a carry runs into the exponent, as it should.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0xfff + (bits >> 13 & 1)) >> 13;
    sign | rounded.saturating_sub((127 - 15) << 10).min(0x7c00) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_and_ties_go_to_even() {
        for half in 0..0x7c00u16 {
            let (x, next) = (f16_to_f32(half), f16_to_f32(half + 1));
            assert_eq!(f32_to_f16(x), half);
            assert_eq!(f32_to_f16(-x), half | 0x8000);
            if half + 1 == 0x7c00 {
                continue;
            }
            let middle = (x + next) / 2.0;
            assert_eq!(f32_to_f16(middle), half + (half & 1), "{half:#06x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), half);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), half + 1);
        }
        assert_eq!([65519.9, 65520.0, f32::INFINITY].map(f32_to_f16), [0x7bff, 0x7c00, 0x7c00]);
        assert!(f16_to_f32(f32_to_f16(f32::NAN)).is_nan());
    }
}
