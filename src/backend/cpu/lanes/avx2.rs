//! AVX2 with FMA and F16C, and with VNNI in its short form where the machine has it: a vector is two registers.
//!
//! Owns: the intrinsics. Never: a decision whether the machine has them.
//!
//! Both halves are written out (`both!`): a closure around an intrinsic is compiled without the instruction set and
//! becomes a call.

use super::{Lanes, four};
use std::arch::x86_64::*;

/// Proof that the machine has AVX2, FMA and F16C; AVX-VNNI too if `VNNI`.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    pub fn new() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        there.then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enter<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn enter_vnni<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// An intrinsic of this instruction set.
macro_rules! ask {
    ($call:expr) => {
        // SAFETY: `self` is the proof that the machine has the instruction; what is read or written lies in an array
        // of the very length.
        unsafe { $call }
    };
}

/// `$call` for the low halves of some vectors, then for the high ones.
macro_rules! both {
    ($($x:ident),+ => $call:expr) => {
        ask!([{ $(let $x = $x[0];)+ $call }, { $(let $x = $x[1];)+ $call }])
    };
}

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const COLUMNS: usize = 4;

    #[inline(always)]
    fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        ask!(if VNNI { enter_vnni(work) } else { enter(work) })
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        ask!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [__m256; 2] {
        let from = from.as_ptr();
        ask!([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    fn store(self, x: [__m256; 2], to: &mut [f32; 16]) {
        let to = to.as_mut_ptr();
        ask!({
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        })
    }
    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b => _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b => _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b => _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b => _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        both!(a, b, c => _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b => _mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b => _mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn above(self, a: [__m256; 2], b: [__m256; 2]) -> u16 {
        let [low, high] = both!(a, b => _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)));
        (low | high << 8) as u16
    }
    #[inline(always)]
    fn abs(self, a: [__m256; 2]) -> [__m256; 2] {
        both!(a => _mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn select(self, bits: u16, x: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        let bits = i32::from(bits);
        let bits = [bits, bits >> 8];
        both!(bits, x, other => {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), lane), lane);
            _mm256_blendv_ps(other, x, _mm256_castsi256_ps(set))
        })
    }
    #[inline(always)]
    fn from_f16(self, from: &[u16; 16]) -> [__m256; 2] {
        let from: *const __m128i = from.as_ptr().cast();
        ask!([_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))])
    }
    #[inline(always)]
    fn to_f16(self, x: [__m256; 2], to: &mut [u16; 16]) {
        let to: *mut __m128i = to.as_mut_ptr().cast();
        ask!({
            _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        })
    }
    #[inline(always)]
    fn from_bf16(self, from: &[u16; 16]) -> [__m256; 2] {
        let from: *const __m128i = from.as_ptr().cast();
        let from = ask!([_mm_loadu_si128(from), _mm_loadu_si128(from.add(1))]);
        both!(from => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(from))))
    }
    #[inline(always)]
    fn round(self, x: [__m256; 2]) -> [__m256i; 2] {
        both!(x => _mm256_cvtps_epi32(x)) // ties to even: Rust leaves the rounding mode at its default
    }

    #[inline(always)]
    fn zero(self) -> [__m256i; 2] {
        ask!([_mm256_setzero_si256(); 2])
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [__m256i; 2] {
        ask!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn add_i(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both!(a, b => _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both!(a, b => _mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn sum_i(self, x: [__m256i; 2]) -> i32 {
        ask!({
            let eight = _mm256_add_epi32(x[0], x[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        })
    }
    #[inline(always)]
    fn sum(self, x: [__m256; 2]) -> f32 {
        ask!({
            let eight = _mm256_add_ps(x[0], x[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn largest(self, x: [__m256; 2]) -> f32 {
        // NaN gives way to the other operand, the second.
        let x = self.max(x, self.splat(f32::NEG_INFINITY));
        ask!({
            let eight = _mm256_max_ps(x[0], x[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn float(self, x: [__m256i; 2]) -> [__m256; 2] {
        both!(x => _mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn from_bits(self, x: [__m256i; 2]) -> [__m256; 2] {
        both!(x => _mm256_castsi256_ps(x))
    }
    #[inline(always)]
    fn shl<const BY: u32>(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_sll_epi32(x, _mm_cvtsi32_si128(BY as i32)))
    }
    #[inline(always)]
    fn from_i8(self, from: &[i8; 16]) -> [__m256i; 2] {
        let from = from.as_ptr();
        let from = ask!([_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())]);
        both!(from => _mm256_cvtepi8_epi32(from))
    }
    #[inline(always)]
    fn from_u8(self, from: &[u8; 16]) -> [__m256i; 2] {
        let from = from.as_ptr();
        let from = ask!([_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())]);
        both!(from => _mm256_cvtepu8_epi32(from))
    }
    #[inline(always)]
    fn to_i8(self, x: [__m256i; 2], to: &mut [i8; 16]) {
        ask!({
            // Packing works within 128 bits: quarters 0, 2, 1, 3, put in order before the next.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        })
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        ask!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> [__m256i; 2] {
        let from: *const __m256i = from.as_ptr().cast();
        ask!([_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))])
    }
    #[inline(always)]
    fn low_nibbles(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_and_si256(x, _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn join_2<const SHIFT: u32>(self, low: [__m256i; 2], x: [__m256i; 2]) -> [__m256i; 2] {
        both!(low, x => {
            let x = _mm256_srl_epi16(x, _mm_cvtsi32_si128(SHIFT as i32));
            let high = _mm256_and_si256(x, _mm256_set1_epi8(3));
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        })
    }
    /// Without VNNI, two products meet in 16 bits: at most 2 * 127 * 128 = 32,512 in size, so they never saturate.
    #[inline(always)]
    fn dot_7(self, sum: [__m256i; 2], a: [__m256i; 2], b: &[i8; 4]) -> [__m256i; 2] {
        let b = ask!(_mm256_set1_epi32(four(b)));
        if VNNI {
            return both!(sum, a => _mm256_dpbusd_avx_epi32(sum, a, b));
        }
        both!(sum, a => {
            let pairs = _mm256_maddubs_epi16(a, b);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    /// Without VNNI, bytes below 16 are summed in 16 bits: eight vectors' pairs are at most 8 * 2 * 15 * 127 = 30,480 in
    /// size.
    #[inline(always)]
    fn start_4(self, start: [__m256i; 2]) -> [__m256i; 2] {
        if VNNI { start } else { self.zero() }
    }
    #[inline(always)]
    fn dot_4(self, sum: [__m256i; 2], a: [__m256i; 2], b: &[i8; 4]) -> [__m256i; 2] {
        if VNNI {
            return self.dot_7(sum, a, b);
        }
        let b = ask!(_mm256_set1_epi32(four(b)));
        both!(sum, a => _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b)))
    }
    #[inline(always)]
    fn end_4(self, start: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        if VNNI {
            return sum;
        }
        both!(start, sum => _mm256_add_epi32(start, _mm256_madd_epi16(sum, _mm256_set1_epi16(1))))
    }
    #[inline(always)]
    fn start_8(self, minus_sum: i32) -> [__m256i; 2] {
        if VNNI { ask!([_mm256_set1_epi32(minus_sum << 7); 2]) } else { self.zero() }
    }
    /// VNNI takes all of 0..256 and counts 128 too much, which `start_8` took off. Else `a - 128` in -128..=127 is
    /// multiplied as |a - 128| and b with its sign: b is not -128, so its sign can be turned, and two products are at
    /// most 2 * 128 * 127 = 32,512 in size.
    #[inline(always)]
    fn dot_8(self, sum: [__m256i; 2], a: [__m256i; 2], b: &[i8; 4]) -> [__m256i; 2] {
        if VNNI {
            return self.dot_7(sum, a, b);
        }
        let b = ask!(_mm256_set1_epi32(four(b)));
        both!(sum, a => {
            let a = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
}
