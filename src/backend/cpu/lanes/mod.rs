//! Sixteen lanes: the machine's vectors under the kernels' own words, and the choice of the widest ones at run time.
//!
//! Owns: the trait [`Lanes`], one implementation per instruction set, and [`Path`]. Never: an algorithm; the kernels
//! are written once, over the trait.
//!
//! Integer operations are exact, so they agree on every path. Float operations round once each, and [`Lanes::fma`]
//! rounds once on the paths that fuse (AVX-512, AVX2, NEON): those three give the same bits. `plain` rounds the product too; its
//! bits are its own, the same on every machine.
//!
//! How a kernel gets its instructions: [`Lanes::enter`] calls a closure inside a function compiled for the
//! instruction set, and everything generic over `Lanes` is inlined into it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(test)]
pub(super) mod tests;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use plain::Plain;
use std::fmt;

/// `$body` for each `$i` in `0..$count`, at most 16, written out: left as a loop, the compiler keeps the sums in memory.
macro_rules! each {
    ($count:expr, $i:ident => $body:expr) => {
        each!(@ $count, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $count:expr, $i:ident, $body:expr, $($n:literal)*) => {
        $(if $n < $count {
            let $i = $n;
            $body;
        })*
    };
}
pub(super) use each;

/// The instruction set that a model runs on.
#[derive(Clone, Copy)]
pub(super) enum Path {
    Plain(Plain<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// Plain, with the roundings of the vector paths.
    #[cfg(test)]
    Fused(Plain<true>),
}

impl Path {
    /// For any machine.
    pub fn plain() -> Path {
        Path::Plain(Plain)
    }

    /// The widest that this machine has.
    pub fn widest() -> Path {
        Path::all().next().unwrap_or(Path::plain())
    }

    /// Those that this machine has, the widest first.
    pub fn all() -> impl Iterator<Item = Path> {
        #[cfg(target_arch = "x86_64")]
        let vectors =
            [Avx512::new().map(Path::Avx512), Avx2::new().map(Path::AvxVnni), Avx2::new().map(Path::Avx2)];
        #[cfg(target_arch = "aarch64")]
        let vectors = [Neon::new().map(Path::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let vectors = [];
        vectors.into_iter().flatten().chain([Path::plain()])
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Plain(_) => "plain",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Path::AvxVnni(_) => "AVX2 with VNNI",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Path::Neon(_) => "NEON",
            #[cfg(test)]
            Path::Fused(_) => "plain, fused",
        })
    }
}

/// f32, i32 and 4-byte groups in one vector.
pub(super) const LANES: usize = 16;

/// One instruction set. All methods but [`enter`](Lanes::enter) must run inside `enter`: elsewhere the machine may
/// lack the instructions. Only [`Path`] makes a value of an implementation, after asking the machine.
#[allow(clippy::wrong_self_convention)] // `from_f16` and its like convert to this path's vectors; `self` is the path
pub(super) trait Lanes: Copy + Send + Sync + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 bytes: 16 groups of 4.
    type B: Copy;

    /// Columns that a matrix kernel keeps in registers.
    const COLUMNS: usize;

    /// Runs `work`, compiled for this instruction set.
    fn enter<R>(self, work: impl FnOnce() -> R) -> R;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; 16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger one; `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller one; `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lanes in which `a > b`, never for NaN.
    fn above(self, a: Self::F, b: Self::F) -> u16;
    fn abs(self, a: Self::F) -> Self::F;
    /// `x` where the bit of its lane in `bits` is set, else `other`.
    fn select(self, bits: u16, x: Self::F, other: Self::F) -> Self::F;
    /// 16 IEEE halves, exactly.
    fn from_f16(self, from: &[u16; 16]) -> Self::F;
    /// To the nearest half, ties to even; beyond the largest half, infinity.
    fn to_f16(self, x: Self::F, to: &mut [u16; 16]);
    /// 16 bfloat16, exactly.
    fn from_bf16(self, from: &[u16; 16]) -> Self::F;
    /// Rounded to the nearest integer, ties to even; |x| below 2^31.
    fn round(self, x: Self::F) -> Self::I;

    fn zero(self) -> Self::I;
    fn splat_i(self, x: i32) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// To the nearest f32.
    fn float(self, x: Self::I) -> Self::F;
    /// The lanes as floats: a reinterpretation.
    fn from_bits(self, x: Self::I) -> Self::F;
    /// Shifts each lane left by `BY` bits.
    fn shl<const BY: u32>(self, x: Self::I) -> Self::I;
    /// 16 signed bytes.
    fn from_i8(self, from: &[i8; 16]) -> Self::I;
    /// 16 unsigned bytes.
    fn from_u8(self, from: &[u8; 16]) -> Self::I;
    /// The low bytes of lanes that lie in -128..=127.
    fn to_i8(self, x: Self::I, to: &mut [i8; 16]);

    /// Brings the line at `at` near; any address will do.
    fn prefetch(self, _at: *const u8) {}

    fn bytes(self, from: &[u8; 64]) -> Self::B;
    fn low_nibbles(self, x: Self::B) -> Self::B;
    fn high_nibbles(self, x: Self::B) -> Self::B;
    /// `low | (x >> SHIFT & 3) << 4` per byte.
    fn join_2<const SHIFT: u32>(self, low: Self::B, x: Self::B) -> Self::B;
    /// Lane l: `sum` plus the dot product of bytes 4l..4l+4 of `a`, unsigned and below 128, and the four `b`, signed and
    /// not -128.
    fn dot_7(self, sum: Self::I, a: Self::B, b: &[i8; 4]) -> Self::I;
    /// What up to eight [`dot_4`](Lanes::dot_4) in a row begin with, to be added to `start` in the end.
    #[inline(always)]
    fn start_4(self, start: Self::I) -> Self::I {
        start
    }
    /// [`dot_7`](Lanes::dot_7) for `a` below 16, between [`start_4`](Lanes::start_4) and [`end_4`](Lanes::end_4).
    #[inline(always)]
    fn dot_4(self, sum: Self::I, a: Self::B, b: &[i8; 4]) -> Self::I {
        self.dot_7(sum, a, b)
    }
    /// `start` plus all the products.
    #[inline(always)]
    fn end_4(self, _start: Self::I, sum: Self::I) -> Self::I {
        sum
    }
    /// What [`dot_8`](Lanes::dot_8) begins with, given minus the sum of all `b` that will come.
    fn start_8(self, minus_sum: i32) -> Self::I;
    /// The same for bytes that stand for `a - 128`: begun with [`start_8`](Lanes::start_8), the result is exact.
    fn dot_8(self, sum: Self::I, a: Self::B, b: &[i8; 4]) -> Self::I;

    /// All lanes' sum.
    fn sum_i(self, x: Self::I) -> i32;

    /// All lanes' sum, in the order of [`fold`].
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        fold(lanes, |a, b| a + b)
    }

    /// The largest lane; NaN lanes do not count.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// The four bytes as an instruction wants them in each lane.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn four(b: &[i8; 4]) -> i32 {
    i32::from_ne_bytes([b[0] as u8, b[1] as u8, b[2] as u8, b[3] as u8])
}

/// Halves onto halves: 8, 4, 2, 1.
fn fold(mut lanes: [f32; 16], with: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = with(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}
