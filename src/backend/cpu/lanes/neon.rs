//! NEON with dot products (ARMv8.2 and later): a vector is four registers.
//!
//! Owns: the instructions. Never: a decision whether the machine has them.
//!
//! All quarters are written out (`quarters!`): a closure around an intrinsic is compiled without the instruction set and
//! becomes a call. The dot product is inline assembly: its intrinsic is not stable yet.

use super::{Lanes, four};
use std::arch::aarch64::*;
use std::arch::asm;

/// Proof that the machine has NEON and its dot products.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon(());

impl Neon {
    pub fn new() -> Option<Neon> {
        let there = std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod");
        there.then_some(Neon(()))
    }
}

#[target_feature(enable = "neon,dotprod")]
fn enter<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Instructions of this set.
macro_rules! ask {
    ($call:expr) => {
        // SAFETY: `self` is the proof that the machine has the instruction; what is read or written lies in an array
        // of the very length.
        unsafe { $call }
    };
}

/// `$call` for each quarter of some vectors.
macro_rules! quarters {
    ($($x:ident),+ => $call:expr) => {
        ask!([
            { $(let $x = $x[0];)+ $call },
            { $(let $x = $x[1];)+ $call },
            { $(let $x = $x[2];)+ $call },
            { $(let $x = $x[3];)+ $call },
        ])
    };
}

/// The bit of each lane of a quarter.
const BITS: [[u32; 4]; 4] =
    [[1, 2, 4, 8], [0x10, 0x20, 0x40, 0x80], [0x100, 0x200, 0x400, 0x800], [0x1000, 0x2000, 0x4000, 0x8000]];

impl Lanes for Neon {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    const COLUMNS: usize = 4;

    #[inline(always)]
    fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        ask!(enter(work))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [float32x4_t; 4] {
        ask!([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [float32x4_t; 4] {
        let from = from.as_chunks::<4>().0;
        quarters!(from => vld1q_f32(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: [float32x4_t; 4], to: &mut [f32; 16]) {
        let to = to.as_mut_ptr();
        ask!({
            vst1q_f32(to, x[0]);
            vst1q_f32(to.add(4), x[1]);
            vst1q_f32(to.add(8), x[2]);
            vst1q_f32(to.add(12), x[3]);
        })
    }
    #[inline(always)]
    fn add(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b, c => vfmaq_f32(c, a, b))
    }
    /// Not `fmax`, which gives NaN if either is.
    #[inline(always)]
    fn max(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn above(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> u16 {
        let bits = BITS;
        let [w, x, y, z] = quarters!(a, b, bits => vandq_u32(vcgtq_f32(a, b), vld1q_u32(bits.as_ptr())));
        ask!(vaddvq_u32(vorrq_u32(vorrq_u32(w, x), vorrq_u32(y, z)))) as u16
    }
    #[inline(always)]
    fn abs(self, a: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a => vabsq_f32(a))
    }
    #[inline(always)]
    fn select(self, bits: u16, x: [float32x4_t; 4], other: [float32x4_t; 4]) -> [float32x4_t; 4] {
        let (set, lanes) = (u32::from(bits), BITS);
        quarters!(lanes, x, other => {
            vbslq_f32(vtstq_u32(vdupq_n_u32(set), vld1q_u32(lanes.as_ptr())), x, other)
        })
    }
    #[inline(always)]
    fn from_f16(self, from: &[u16; 16]) -> [float32x4_t; 4] {
        let from = from.as_chunks::<4>().0;
        quarters!(from => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.as_ptr()))))
    }
    #[inline(always)]
    fn to_f16(self, x: [float32x4_t; 4], to: &mut [u16; 16]) {
        let [w, x, y, z] = quarters!(x => vreinterpret_u16_f16(vcvt_f16_f32(x)));
        let to = to.as_mut_ptr();
        ask!({
            vst1_u16(to, w);
            vst1_u16(to.add(4), x);
            vst1_u16(to.add(8), y);
            vst1_u16(to.add(12), z);
        })
    }
    #[inline(always)]
    fn from_bf16(self, from: &[u16; 16]) -> [float32x4_t; 4] {
        let from = from.as_chunks::<4>().0;
        quarters!(from => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr()))))
    }
    #[inline(always)]
    fn round(self, x: [float32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(x => vcvtnq_s32_f32(x))
    }

    #[inline(always)]
    fn zero(self) -> [int32x4_t; 4] {
        self.splat_i(0)
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [int32x4_t; 4] {
        ask!([vdupq_n_s32(x); 4])
    }
    #[inline(always)]
    fn add_i(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(a, b => vaddq_s32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(a, b => vmulq_s32(a, b))
    }
    #[inline(always)]
    fn sum_i(self, x: [int32x4_t; 4]) -> i32 {
        ask!(vaddvq_s32(vaddq_s32(vaddq_s32(x[0], x[1]), vaddq_s32(x[2], x[3]))))
    }
    #[inline(always)]
    fn sum(self, x: [float32x4_t; 4]) -> f32 {
        ask!({
            let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        })
    }
    #[inline(always)]
    fn largest(self, x: [float32x4_t; 4]) -> f32 {
        // NaN gives way to the other operand, the second.
        let x = self.max(x, self.splat(f32::NEG_INFINITY));
        ask!(vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3]))))
    }
    #[inline(always)]
    fn float(self, x: [int32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(x => vcvtq_f32_s32(x))
    }
    #[inline(always)]
    fn from_bits(self, x: [int32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(x => vreinterpretq_f32_s32(x))
    }
    #[inline(always)]
    fn shl<const BY: u32>(self, x: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(x => vshlq_s32(x, vdupq_n_s32(BY as i32)))
    }
    #[inline(always)]
    fn from_i8(self, from: &[i8; 16]) -> [int32x4_t; 4] {
        ask!({
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ]
        })
    }
    #[inline(always)]
    fn from_u8(self, from: &[u8; 16]) -> [int32x4_t; 4] {
        let [w, x, y, z] = ask!({
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ]
        });
        let lanes = [w, x, y, z];
        quarters!(lanes => vreinterpretq_s32_u32(lanes))
    }
    #[inline(always)]
    fn to_i8(self, x: [int32x4_t; 4], to: &mut [i8; 16]) {
        ask!({
            let low = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
            let high = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        })
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a hint; it neither faults nor changes memory.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> [uint8x16_t; 4] {
        let from = from.as_chunks::<16>().0;
        quarters!(from => vld1q_u8(from.as_ptr()))
    }
    #[inline(always)]
    fn low_nibbles(self, x: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(x => vandq_u8(x, vdupq_n_u8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, x: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(x => vshrq_n_u8::<4>(x))
    }
    #[inline(always)]
    fn join_2<const SHIFT: u32>(self, low: [uint8x16_t; 4], x: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(low, x => {
            let x = vshlq_u8(x, vdupq_n_s8(-(SHIFT as i8)));
            vorrq_u8(low, vshlq_n_u8::<4>(vandq_u8(x, vdupq_n_u8(3))))
        })
    }
    #[inline(always)]
    fn dot_7(self, sum: [int32x4_t; 4], a: [uint8x16_t; 4], b: &[i8; 4]) -> [int32x4_t; 4] {
        let b = ask!(vreinterpretq_s8_s32(vdupq_n_s32(four(b))));
        quarters!(sum, a => sdot(sum, vreinterpretq_s8_u8(a), b)) // below 128, a byte is the same with a sign
    }
    #[inline(always)]
    fn start_8(self, _minus_sum: i32) -> [int32x4_t; 4] {
        self.zero()
    }
    /// With its upper bit turned, a byte is `a - 128` as the instruction reads it.
    #[inline(always)]
    fn dot_8(self, sum: [int32x4_t; 4], a: [uint8x16_t; 4], b: &[i8; 4]) -> [int32x4_t; 4] {
        let signed = quarters!(a => veorq_u8(a, vdupq_n_u8(0x80)));
        self.dot_7(sum, signed, b)
    }
}

/// Four dot products of four signed bytes each. Inlined like an intrinsic: where the caller has the instruction.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: registers alone; who may call this has the instruction.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
