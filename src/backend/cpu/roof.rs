//! What this machine can do at most: bytes read from memory and int8 operations, per second.
//!
//! Owns: the two loops that do nothing else, on the widest instructions there are. Never: a model; what a share of the
//! roof means is `bench`'s to say.
//!
//! ```text
//! read   every rank sums its own part of one buffer, as large as the weights, again and again
//! int8   every rank multiplies and adds bytes in registers alone: no load, no store
//! ```

use crate::backend::crew::Crew;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes that all ranks read together, at least: the weights of a small model. A cache that holds them all is what the
/// roof then tells of, as it is what such a model is read from.
const WORKING_SET: usize = 96 << 20;
/// The same at most: more than any cache.
const WORKING_SET_MOST: usize = 1 << 30;
/// Bytes of one cache line, the unit of the reading loop.
const LINE: usize = 64;
/// How far ahead of the reading loop lines are asked for, in bytes: two pages, past where the hardware looks.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8192;

/// Bytes that all ranks read together for a model of so many bytes.
pub fn working_set(weights: usize) -> usize {
    weights.clamp(WORKING_SET, WORKING_SET_MOST)
}

/// A buffer that is read as fast as can be.
pub struct Memory {
    parts: Vec<memmap2::MmapMut>, // [rank]
}

impl Memory {
    /// [`working_set`] bytes for the ranks of `crew`, under huge-page advice, each part first touched by its own rank.
    pub fn new(crew: &Crew, weights: usize) -> io::Result<Memory> {
        let part = (working_set(weights) / crew.size()).next_multiple_of(LINE);
        let mut parts = Vec::with_capacity(crew.size());
        for _ in 0..crew.size() {
            let map = memmap2::MmapMut::map_anon(part)?;
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage); // a kernel without it reads small pages: that is its roof
            parts.push(std::sync::Mutex::new(map));
        }
        crew.run(&|rank| {
            let mut part = parts[rank].lock().unwrap_or_else(|torn| torn.into_inner());
            part.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
        });
        let whole = |part: std::sync::Mutex<_>| part.into_inner().unwrap_or_else(|torn| torn.into_inner());
        Ok(Memory { parts: parts.into_iter().map(whole).collect() })
    }

    /// Bytes per second that all ranks of the crew (the one it was made for) read together, over `passes` passes.
    pub fn read(&self, crew: &Crew, passes: u32) -> f64 {
        let took = together(crew, |rank| {
            for _ in 0..passes {
                std::hint::black_box(sum(&self.parts[rank]));
            }
        });
        let bytes: usize = self.parts.iter().map(|part| part.len()).sum();
        bytes as f64 * f64::from(passes) / took.as_secs_f64()
    }
}

/// Operations per second (a multiplication and an addition are two) that all ranks of the crew do together on bytes,
/// over `at_least` this long.
pub fn int8(crew: &Crew, at_least: Duration) -> f64 {
    let dots = Dots::best();
    let mut rounds = 1 << 10;
    loop {
        let took = together(crew, |_| {
            std::hint::black_box(dots.run(rounds));
        });
        if took >= at_least || rounds >= ROUNDS_MOST {
            return crew.size() as f64 * f64::from(rounds) * dots.operations() / took.as_secs_f64();
        }
        rounds *= 2;
    }
}

/// The instructions of the int8 roof, for people.
pub fn instructions() -> &'static str {
    match Dots::best() {
        #[cfg(target_arch = "x86_64")]
        Dots::Avx512 => "AVX-512 VNNI",
        #[cfg(target_arch = "x86_64")]
        Dots::AvxVnni => "AVX2 VNNI",
        #[cfg(target_arch = "x86_64")]
        Dots::Avx2 => "AVX2",
        #[cfg(target_arch = "aarch64")]
        Dots::Neon => "NEON dot product",
        Dots::Plain => "plain",
    }
}

/// How long `work` takes from the moment all ranks are awake until the last one is done.
fn together(crew: &Crew, work: impl Fn(usize) + Sync) -> Duration {
    let took = AtomicU64::new(0);
    crew.run(&|rank| {
        crew.barrier();
        let started = Instant::now();
        work(rank);
        crew.barrier();
        took.fetch_max(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    });
    Duration::from_nanos(took.into_inner().max(1))
}

/// The wrapping sum of all 8-byte words of whole lines.
fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function asks for.
            return unsafe { sum_avx512(bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { sum_avx2(bytes) };
        }
    }
    sum_lines(bytes)
}

/// # Safety
/// The processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn sum_avx512(bytes: &[u8]) -> u64 {
    sum_lines(bytes)
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_lines(bytes)
}

/// Inlined, so that it is compiled for the instructions of its caller. Two lines a step: their sums do not wait for
/// each other.
#[inline(always)]
fn sum_lines(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 2 * LINE / 8];
    let (steps, rest) = bytes.as_chunks::<{ 2 * LINE }>();
    for step in steps {
        prefetch(step);
        for (sum, word) in sums.iter_mut().zip(step.as_chunks().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    for (sum, word) in sums.iter_mut().zip(rest.as_chunks().0) {
        *sum = sum.wrapping_add(u64::from_le_bytes(*word));
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Asks for the two lines that lie [`AHEAD`] of this step.
#[inline(always)]
fn prefetch(step: &[u8; 2 * LINE]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let ahead = step.as_ptr().wrapping_add(AHEAD).cast::<i8>();
        // SAFETY: a prefetch reads nothing: an address outside any buffer is passed over by the processor.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(LINE));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = step;
}

/// A way to multiply and add bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dots {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Plain,
}

/// Sums that one round of the vector loops adds to: enough to hide an instruction's latency.
const CHAINS: usize = 12;
/// Bytes that one round of the plain loop multiplies.
const PLAIN_BYTES: usize = 256;
/// Rounds at most, so that no sum of 4 a round overflows; the plain loop's sums wrap.
const ROUNDS_MOST: u32 = 1 << 27;

impl Dots {
    fn best() -> Dots {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                return Dots::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
                return Dots::AvxVnni;
            }
            if is_x86_feature_detected!("avx2") {
                return Dots::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            return Dots::Neon;
        }
        Dots::Plain
    }

    /// Operations of one round.
    fn operations(self) -> f64 {
        let products = match self {
            #[cfg(target_arch = "x86_64")]
            Dots::Avx512 => CHAINS * 64,
            #[cfg(target_arch = "x86_64")]
            Dots::AvxVnni => CHAINS * 32,
            #[cfg(target_arch = "x86_64")]
            Dots::Avx2 => 4 * 8 * 32,
            #[cfg(target_arch = "aarch64")]
            Dots::Neon => CHAINS * 16,
            Dots::Plain => PLAIN_BYTES,
        };
        2.0 * products as f64
    }

    /// Does so many rounds on bytes that are all 1. The answer is one lane's sum: 4 a round, of the plain loop as many
    /// as it has bytes.
    fn run(self, rounds: u32) -> i32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` found AVX-512 with VNNI.
            Dots::Avx512 => unsafe { dots_avx512(rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` found AVX2 with VNNI.
            Dots::AvxVnni => unsafe { dots_avx_vnni(rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` found AVX2.
            Dots::Avx2 => unsafe { dots_avx2(rounds) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: `best` found the dot product.
            Dots::Neon => unsafe { dots_neon(rounds) },
            Dots::Plain => dots_plain(rounds),
        }
    }
}

/// # Safety
/// The processor has AVX-512F and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dots_avx512(rounds: u32) -> i32 {
    use std::arch::x86_64::{__m512i, _mm512_castsi512_si128, _mm512_set1_epi8, _mm512_setzero_si512};
    let (ones, zero) = (_mm512_set1_epi8(1), _mm512_setzero_si512());
    let mut sum: __m512i = zero;
    // SAFETY: registers only, all of them declared. The sums that are never read start with what was there.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpdpbusd {sum}, {a}, {b}",
            "vpdpbusd zmm1, {a}, {b}", "vpdpbusd zmm2, {a}, {b}", "vpdpbusd zmm3, {a}, {b}",
            "vpdpbusd zmm4, {a}, {b}", "vpdpbusd zmm5, {a}, {b}", "vpdpbusd zmm6, {a}, {b}",
            "vpdpbusd zmm7, {a}, {b}", "vpdpbusd zmm8, {a}, {b}", "vpdpbusd zmm9, {a}, {b}",
            "vpdpbusd zmm10, {a}, {b}", "vpdpbusd zmm11, {a}, {b}",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            sum = inout(zmm_reg) sum, a = in(zmm_reg) ones, b = in(zmm_reg) ones,
            out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
            out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            options(nomem, nostack),
        );
    }
    std::arch::x86_64::_mm_cvtsi128_si32(_mm512_castsi512_si128(sum))
}

/// # Safety
/// The processor has AVX2 and AVX-VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn dots_avx_vnni(rounds: u32) -> i32 {
    use std::arch::x86_64::{__m256i, _mm256_castsi256_si128, _mm256_set1_epi8, _mm256_setzero_si256};
    let ones = _mm256_set1_epi8(1);
    let mut sum: __m256i = _mm256_setzero_si256();
    // SAFETY: registers only, all of them declared. The sums that are never read start with what was there.
    unsafe {
        std::arch::asm!(
            "2:",
            "{{vex}} vpdpbusd {sum}, {a}, {b}",
            "{{vex}} vpdpbusd ymm1, {a}, {b}", "{{vex}} vpdpbusd ymm2, {a}, {b}", "{{vex}} vpdpbusd ymm3, {a}, {b}",
            "{{vex}} vpdpbusd ymm4, {a}, {b}", "{{vex}} vpdpbusd ymm5, {a}, {b}", "{{vex}} vpdpbusd ymm6, {a}, {b}",
            "{{vex}} vpdpbusd ymm7, {a}, {b}", "{{vex}} vpdpbusd ymm8, {a}, {b}", "{{vex}} vpdpbusd ymm9, {a}, {b}",
            "{{vex}} vpdpbusd ymm10, {a}, {b}", "{{vex}} vpdpbusd ymm11, {a}, {b}",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            sum = inout(ymm_reg) sum, a = in(ymm_reg) ones, b = in(ymm_reg) ones,
            out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nomem, nostack),
        );
    }
    std::arch::x86_64::_mm_cvtsi128_si32(_mm256_castsi256_si128(sum))
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn dots_avx2(rounds: u32) -> i32 {
    use std::arch::x86_64::{
        __m256i, _mm256_castsi256_si128, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256,
    };
    let (bytes, words) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    let mut sum: __m256i = _mm256_setzero_si256();
    // As the kernels of four bits do it: four sums of eight products each in words, which then go into four of
    // double words. That is nine instructions for four products; a product at a time takes twelve.
    // SAFETY: registers only, all of them declared. The sums that are never read start with what was there.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpmaddubsw ymm8, {bytes}, {bytes}", "vpmaddubsw ymm9, {bytes}, {bytes}",
            "vpmaddubsw ymm10, {bytes}, {bytes}", "vpmaddubsw ymm11, {bytes}, {bytes}",
            ".rept 7",
            "vpmaddubsw ymm4, {bytes}, {bytes}", "vpmaddubsw ymm5, {bytes}, {bytes}",
            "vpmaddubsw ymm6, {bytes}, {bytes}", "vpmaddubsw ymm7, {bytes}, {bytes}",
            "vpaddw ymm8, ymm8, ymm4", "vpaddw ymm9, ymm9, ymm5",
            "vpaddw ymm10, ymm10, ymm6", "vpaddw ymm11, ymm11, ymm7",
            ".endr",
            "vpmaddwd ymm8, ymm8, {words}", "vpmaddwd ymm9, ymm9, {words}",
            "vpmaddwd ymm10, ymm10, {words}", "vpmaddwd ymm11, ymm11, {words}",
            "vpaddd {sum}, {sum}, ymm8", "vpaddd ymm1, ymm1, ymm9",
            "vpaddd ymm2, ymm2, ymm10", "vpaddd ymm3, ymm3, ymm11",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            sum = inout(ymm_reg) sum, bytes = in(ymm_reg) bytes, words = in(ymm_reg) words,
            out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nomem, nostack),
        );
    }
    // The one sum that is read had eight products a round.
    std::arch::x86_64::_mm_cvtsi128_si32(_mm256_castsi256_si128(sum)) / 8
}

/// # Safety
/// The processor has the dot product of ARMv8.2.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dots_neon(rounds: u32) -> i32 {
    use std::arch::aarch64::{int32x4_t, vdupq_n_s8, vdupq_n_s32, vgetq_lane_s32};
    let ones = vdupq_n_s8(1);
    let mut sum: int32x4_t = vdupq_n_s32(0);
    // SAFETY: registers only, all of them declared. The sums that are never read start with what was there.
    unsafe {
        std::arch::asm!(
            "2:",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            "sdot v1.4s, {a:v}.16b, {b:v}.16b", "sdot v2.4s, {a:v}.16b, {b:v}.16b",
            "sdot v3.4s, {a:v}.16b, {b:v}.16b", "sdot v4.4s, {a:v}.16b, {b:v}.16b",
            "sdot v5.4s, {a:v}.16b, {b:v}.16b", "sdot v6.4s, {a:v}.16b, {b:v}.16b",
            "sdot v7.4s, {a:v}.16b, {b:v}.16b", "sdot v16.4s, {a:v}.16b, {b:v}.16b",
            "sdot v17.4s, {a:v}.16b, {b:v}.16b", "sdot v18.4s, {a:v}.16b, {b:v}.16b",
            "sdot v19.4s, {a:v}.16b, {b:v}.16b",
            "subs {rounds:w}, {rounds:w}, #1",
            "b.ne 2b",
            rounds = inout(reg) rounds.max(1) => _,
            sum = inout(vreg) sum, a = in(vreg) ones, b = in(vreg) ones,
            out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _,
            options(nomem, nostack),
        );
    }
    vgetq_lane_s32::<0>(sum)
}

/// What the compiler makes of the plain loop on any machine.
fn dots_plain(rounds: u32) -> i32 {
    let (a, b) = ([1i8; PLAIN_BYTES], [1i8; PLAIN_BYTES]);
    let mut sum = 0i32;
    for _ in 0..rounds.max(1) {
        let (a, b) = (std::hint::black_box(&a), std::hint::black_box(&b));
        let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b));
        sum = sum.wrapping_add(products.sum());
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that leaves bytes out, or does fewer operations than it is counted for, would raise the roof.
    #[test]
    fn the_loops_do_what_they_are_counted_for() {
        let bytes: Vec<u8> = (0..3 * LINE * 5).map(|at| ((at * at) >> 3) as u8).collect();
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let want = words.fold(0u64, |all, word| all.wrapping_add(word));
        assert_eq!(sum(&bytes), want);
        assert_eq!(sum_lines(&bytes), want);

        assert_eq!(dots_plain(1000), 1000 * PLAIN_BYTES as i32);
        #[cfg(target_arch = "x86_64")]
        {
            if Dots::best() == Dots::Avx512 {
                assert_eq!(Dots::Avx512.run(1000), 4000);
            }
            if is_x86_feature_detected!("avx2") {
                assert_eq!(Dots::Avx2.run(1000), 4000);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
                assert_eq!(Dots::AvxVnni.run(1000), 4000);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if Dots::best() == Dots::Neon {
            assert_eq!(Dots::Neon.run(1000), 4000);
        }
    }

    #[test]
    fn both_roofs_are_measured_on_any_number_of_threads() {
        for threads in [1, 3] {
            let crew = Crew::threads(threads);
            let memory = Memory::new(&crew, 0).expect("96 MB");
            for roof in [memory.read(&crew, 1), int8(&crew, Duration::from_millis(1))] {
                assert!(roof.is_finite() && roof > 0.0, "{roof}");
            }
        }
        assert!(!instructions().is_empty());
    }
}
