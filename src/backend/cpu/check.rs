//! Whether this processor does what the CPU backend counts on: the numbers that no machine may change.
//!
//! Owns: the checks behind `tartlet selftest --backend cpu`. Never: how they are shown, nor a model; `tartlet eval`
//! compares one with golden logits.

use super::lanes::{LANES, Lanes, Path};
use super::roof;
use crate::backend::check::{BANDWIDTH, Check, Found, Report};
use crate::backend::crew::Crew;
use crate::backend::exp::exp_fixed;
use crate::backend::{DrawKey, Which, sample};
use crate::model::quant::f16_to_f32;

/// Values whose exponentials are summed up, and the sum: the same on every machine, as the formula is.
const EXPONENTIALS: u32 = 30_000;
const EXPONENTIAL_SUM: u64 = 0x000f_a200_0960_2614;
/// Draws whose bits are mixed, and the result: the same on every machine, as the formula is.
const DRAWS: u32 = 10_000;
const DRAWS_MIXED: u64 = 0x742e_bc06_f24e_dbfe;
/// Cases of the vector instructions.
const VECTORS: u32 = 1_000;
/// Key of their bytes.
const KEY: DrawKey = DrawKey { seed: 7, queue: 1, pass: 2 };
/// Times that memory is read; the best one counts.
const ROUNDS: u32 = 5;

/// Checks the processor that runs this; `timed`: how fast it reads, too.
pub fn check(timed: bool) -> Report {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let path = Path::widest();
    let plural = if threads == 1 { "thread" } else { "threads" };
    let check = |name: &str, found| Check { name: name.to_owned(), found };
    let mut checks = vec![
        check("exponentials", pinned(exponentials(), EXPONENTIAL_SUM, EXPONENTIALS)),
        check("draws", pinned(draws(), DRAWS_MIXED, DRAWS)),
        check("vectors", vectors(path)),
    ];
    if timed {
        checks.push(check(BANDWIDTH, bandwidth(threads)));
    }
    Report {
        backend: Which::Cpu,
        device: format!("{threads} {plural}, {path}"),
        overlaps: false,
        kernels: Vec::new(),
        checks,
        broken_off: None,
    }
}

fn pinned(got: u64, want: u64, cases: u32) -> Result<Found, String> {
    if got == want {
        Ok(Found::right(cases as usize))
    } else {
        Err(format!("{cases} values give {got:#018x}, not {want:#018x}"))
    }
}

fn exponentials() -> u64 {
    (0..EXPONENTIALS).fold(0u64, |sum, at| sum.wrapping_add(exp_fixed(at as f32 * -0.001)))
}

fn draws() -> u64 {
    (0..DRAWS).fold(0, |mixed: u64, ordinal| {
        let key = DrawKey { seed: 7, queue: ordinal % 3, pass: u64::from(ordinal / 3) };
        mixed.rotate_left(1) ^ sample::random(key, ordinal)
    })
}

/// The widest instructions against plain Rust: products of bytes, and every half made a float.
fn vectors(path: Path) -> Result<Found, String> {
    match path {
        Path::Plain(l) => l.enter(|| vectors_on(l)),
        #[cfg(target_arch = "x86_64")]
        Path::Avx512(l) => l.enter(|| vectors_on(l)),
        #[cfg(target_arch = "x86_64")]
        Path::AvxVnni(l) => l.enter(|| vectors_on(l)),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2(l) => l.enter(|| vectors_on(l)),
        #[cfg(target_arch = "aarch64")]
        Path::Neon(l) => l.enter(|| vectors_on(l)),
        #[cfg(test)]
        Path::Fused(l) => l.enter(|| vectors_on(l)),
    }
}

#[inline(always)]
fn vectors_on<L: Lanes>(l: L) -> Result<Found, String> {
    for case in 0..VECTORS {
        let byte = |at: usize| (sample::random(KEY, case * 68 + at as u32) >> 32) as u8;
        let a: [u8; 64] = std::array::from_fn(|at| byte(at) & 0x7f);
        let b: [i8; 4] = std::array::from_fn(|at| (byte(64 + at) as i8).max(-127));
        let got = l.sum_i(l.dot_7(l.zero(), l.bytes(&a), &b));
        let want: i32 = a.iter().zip(b.iter().cycle()).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        if got != want {
            return Err(format!("products of bytes, case {case}, sum up to {got}, not {want}"));
        }
    }
    for first in (0..=u16::MAX).step_by(LANES) {
        let halves: [u16; LANES] = std::array::from_fn(|at| first + at as u16);
        let mut got = [0.0; LANES];
        l.store(l.from_f16(&halves), &mut got);
        for (half, got) in halves.into_iter().zip(got) {
            let want = f16_to_f32(half);
            if got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan()) {
                return Err(format!("the half {half:#06x} becomes {got}, not {want}"));
            }
        }
    }
    Ok(Found::right(VECTORS as usize + (1 << 16)))
}

/// What all threads read from memory together.
fn bandwidth(threads: usize) -> Result<Found, String> {
    let crew = Crew::threads(threads);
    match roof::Memory::new(&crew, 0) {
        Ok(memory) => Ok(Found::rate((0..ROUNDS).map(|_| memory.read(&crew, 1)).fold(0.0, f64::max))),
        Err(cause) => Err(format!("no memory to read: {cause}")),
    }
}
