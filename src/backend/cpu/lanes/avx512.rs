//! AVX-512 (F, BW, DQ, VL) with VNNI: a vector is one register.
//!
//! Owns: the intrinsics. Never: a decision whether the machine has them.

use super::{Lanes, four};
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512 F, BW, DQ, VL and VNNI, and AVX2, FMA and F16C beside.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(());

impl Avx512 {
    pub fn new() -> Option<Avx512> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn enter<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// An intrinsic of this instruction set.
macro_rules! ask {
    ($call:expr) => {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { $call }
    };
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const COLUMNS: usize = 16;

    fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        ask!(enter(work))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        ask!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        ask!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; 16]) {
        ask!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        ask!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        ask!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        ask!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        ask!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        ask!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        ask!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        ask!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn above(self, a: __m512, b: __m512) -> u16 {
        ask!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        ask!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn select(self, bits: u16, x: __m512, other: __m512) -> __m512 {
        ask!(_mm512_mask_blend_ps(bits, other, x))
    }
    #[inline(always)]
    fn from_f16(self, from: &[u16; 16]) -> __m512 {
        ask!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn to_f16(self, x: __m512, to: &mut [u16; 16]) {
        ask!(_mm256_storeu_si256(
            to.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        ))
    }
    #[inline(always)]
    fn from_bf16(self, from: &[u16; 16]) -> __m512 {
        ask!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            from.as_ptr().cast()
        )))))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        ask!(_mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        ask!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        ask!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        ask!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: __m512i, b: __m512i) -> __m512i {
        ask!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn sum_i(self, x: __m512i) -> i32 {
        ask!(_mm512_reduce_add_epi32(x))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        ask!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        // NaN gives way to the other operand, the second.
        let x = self.max(x, self.splat(f32::NEG_INFINITY));
        ask!(_mm512_reduce_max_ps(x))
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        ask!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn from_bits(self, x: __m512i) -> __m512 {
        ask!(_mm512_castsi512_ps(x))
    }
    #[inline(always)]
    fn shl<const BY: u32>(self, x: __m512i) -> __m512i {
        ask!(_mm512_slli_epi32::<BY>(x))
    }
    #[inline(always)]
    fn from_i8(self, from: &[i8; 16]) -> __m512i {
        ask!(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn from_u8(self, from: &[u8; 16]) -> __m512i {
        ask!(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn to_i8(self, x: __m512i, to: &mut [i8; 16]) {
        ask!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)))
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        ask!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> __m512i {
        ask!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn low_nibbles(self, x: __m512i) -> __m512i {
        ask!(_mm512_and_si512(x, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, x: __m512i) -> __m512i {
        ask!(_mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn join_2<const SHIFT: u32>(self, low: __m512i, x: __m512i) -> __m512i {
        ask!({
            let high = _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(x), _mm512_set1_epi8(3));
            _mm512_or_si512(low, _mm512_slli_epi16::<4>(high))
        })
    }
    #[inline(always)]
    fn dot_7(self, sum: __m512i, a: __m512i, b: &[i8; 4]) -> __m512i {
        ask!(_mm512_dpbusd_epi32(sum, a, _mm512_set1_epi32(four(b))))
    }
    #[inline(always)]
    fn start_8(self, minus_sum: i32) -> __m512i {
        ask!(_mm512_slli_epi32::<7>(_mm512_set1_epi32(minus_sum)))
    }
    #[inline(always)]
    fn dot_8(self, sum: __m512i, a: __m512i, b: &[i8; 4]) -> __m512i {
        self.dot_7(sum, a, b) // the instruction takes all of 0..256
    }
}
