//! Sampling: the very tokens that the processor draws, and the very distributions that it makes.
//!
//! Owns: rows of logits that have ties, holes and edges. Never: how a token is drawn;
//! `backend/sample.rs` is the reference.

use super::{BEFORE, Bed, Checked, Found, Launched, Seeded, norms::floats, same};
use crate::backend::cuda::draw::record;
use crate::backend::cuda::module::number;
use crate::backend::cuda::{Argument, Buffer, Error};
use crate::backend::exp::exp_fixed;
use crate::backend::sample::{LOGITS_PER_MAXIMUM, Logits, Sampling};
use crate::backend::{Produced, Sampler};
use crate::limits;

/// Threads of the two kernels that look at all logits, and the logits that a CTA of them takes.
const ALL_BLOCK: u32 = 256;
const ALL_LOGITS: usize = 2048;
const DRAW_BLOCK: u32 = 512;

/// Sizes of vocabularies.
const VOCABULARIES: [usize; 4] = [1, 300, 4099, 49_152];
/// How rows are drawn from, each with each kind of logits.
const SAMPLERS: [Sampler; 6] = [
    Sampler::Multinomial { temperature: 0.0 },
    Sampler::Multinomial { temperature: 0.8 },
    Sampler::TopK { temperature: 1.3, k: 40 },
    Sampler::TopP { temperature: 1.0, p: 0.9 },
    Sampler::MinP { temperature: 0.7, p: 0.05 },
    Sampler::TopKTopP { temperature: 2.0, k: 100, p: 0.95 },
];
/// Those that are timed, in the order in which they run.
pub(super) const KERNELS: [&str; 4] = [BEST, WEIGH, DRAW, TOP];
const BEST: &str = "sample_best";
const WEIGH: &str = "sample_weigh";
const DRAW: &str = "sample_draw";
const TOP: &str = "sample_top";
/// Logits of a row that is timed.
const TIMED_VOCABULARY: usize = 131_072;
/// Tokens of a distribution that is timed.
const TIMED_TOP: u32 = 32;

/// A row to draw from.
struct Row {
    logits: Vec<f32>,
    sampler: Sampler,
    random: u64,
}

/// Kinds of logits; those of a real vocabulary are the first ones.
const KINDS: usize = 7;
const KINDS_OF_MANY: usize = 3;
const MANY: usize = 10_000;

/// Logits: smooth; of few values, so that most tie; with NaN, infinities and both zeros among them; all equal; none that is a
/// number; of every size that floats have; subnormal.
fn logits(kind: usize, vocab: usize, seeded: &mut Seeded) -> Vec<f32> {
    const SIZES: [f32; 6] = [f32::MAX, f32::INFINITY, -f32::MAX, 1e-45, -1e-45, f32::MIN_POSITIVE];
    let mut one = || {
        let smooth = (seeded.unit() + seeded.unit() + seeded.unit()) * 4.0;
        let bits = seeded.bits();
        match (kind, bits % 8) {
            (0, _) => smooth,
            (1, _) => smooth.round(),
            (2, 0) | (4, 0..4) => f32::NAN,
            (2, 1) | (4, _) => f32::NEG_INFINITY,
            (2, 2) => -0.0,
            (2, 3) => 0.0,
            (2, _) => smooth,
            (3, _) => -7.25,
            (5, _) => SIZES[(bits >> 8) as usize % SIZES.len()],
            (_, _) => f32::from_bits((bits >> 8) as u32 % 40),
        }
    };
    (0..vocab).map(|_| one()).collect()
}

/// Rows of one vocabulary: each kind of logits with each sampler.
fn rows(vocab: usize, seed: u64) -> Vec<Row> {
    let mut seeded = Seeded::new(seed);
    let kinds = if vocab < MANY { KINDS } else { KINDS_OF_MANY };
    let each = (0..kinds).flat_map(|kind| SAMPLERS.map(|sampler| (kind, sampler)));
    each.map(|(kind, sampler)| Row {
        logits: logits(kind, vocab, &mut seeded),
        sampler,
        random: seeded.bits(),
    })
    .collect()
}

/// Rows whose draw falls on the border between two tokens, on either side of it: a weight off by one unit is noticed.
fn borders(vocab: usize, seed: u64) -> Vec<Row> {
    const COUNT: u64 = 12;
    let mut seeded = Seeded::new(seed);
    let row = |at: u64| {
        let logits = logits(0, vocab, &mut seeded);
        let temperature = 0.3 + seeded.unit().abs();
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |logit: &f32| u128::from(exp_fixed((logit - largest) / temperature));
        let below: u128 = logits[..vocab / 2].iter().map(weigh).sum();
        let total: u128 = logits.iter().map(weigh).sum();
        let random = (below << 64).div_ceil(total) as u64 - at % 2;
        Row { logits, sampler: Sampler::Multinomial { temperature }, random }
    };
    (0..COUNT).map(row).collect()
}

/// A share of the mass that falls between two sums: the mass is rounded up, and is 1 at least. The second logit weighs about
/// 2^-24 of the first, the third one unit.
fn corners() -> Vec<Row> {
    let logits = [0.0, -24.0 * std::f32::consts::LN_2, -29.1];
    let row =
        |p| Row { logits: logits.into(), sampler: Sampler::TopP { temperature: 1.0, p }, random: u64::MAX };
    [0.0, f32::MIN_POSITIVE, 0.5, 1.0 - f32::EPSILON / 2.0].map(row).into()
}

fn maxima(logits: &[f32]) -> Vec<f32> {
    let largest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.chunks(LOGITS_PER_MAXIMUM).map(largest).collect()
}

/// What the processor draws.
fn want(Row { logits, sampler, random }: &Row) -> u32 {
    let logits = Logits { all: logits, maxima: &maxima(logits) };
    Sampling::new(logits.all.len()).token(logits, *sampler, *random).0
}

/// Ids and bits of probabilities in turn.
fn want_top(logits: &[f32], temperature: f32, k: u32) -> Vec<u8> {
    let logits = Logits { all: logits, maxima: &maxima(logits) };
    match Sampling::new(logits.all.len()).distribution(logits, temperature, k) {
        Produced::Token(_) => Vec::new(),
        Produced::Distribution { ids, probs } => {
            let pairs = ids.iter().zip(probs);
            pairs.flat_map(|(id, prob)| [id.0.to_le_bytes(), prob.to_le_bytes()].concat()).collect()
        }
    }
}

pub(super) fn sampling(bed: &mut Bed) -> Checked {
    let seeds = 0..VOCABULARIES.len() as u64;
    let mut cases: Vec<_> =
        seeds.zip(VOCABULARIES).map(|(seed, vocab)| (seed, vocab, rows(vocab, seed))).collect();
    let next = cases.len() as u64;
    cases.push((next, VOCABULARIES[1], borders(VOCABULARIES[1], next)));
    cases.push((next + 1, 3, corners()));
    let (mut count, mut launches) = (0, Vec::new());
    for (seed, vocab, rows) in cases {
        let all: Vec<f32> = rows.iter().flat_map(|row| &row.logits).copied().collect();
        let records: Vec<u8> = rows.iter().flat_map(|row| record(row.sampler, row.random)).collect();
        let on = On::new(bed, &all, &records, &vec![0; rows.len() * 4], vocab)?;
        for kernel in [BEST, WEIGH, DRAW] {
            // SAFETY: it lives until `bytes` has waited.
            unsafe { on.later(bed, kernel)? };
        }
        for (kernel, left) in [(BEST, &on.places), (WEIGH, &on.sums), (DRAW, &on.tokens)] {
            let name = format!("{kernel}, {} rows of {vocab}", rows.len());
            launches.push(Launched::exact(name, seed, &bed.bytes(left)?));
        }
        let got = bed.bytes(&on.tokens)?;
        for ((at, got), row) in got.as_chunks::<4>().0.iter().enumerate().zip(&rows) {
            let (got, want) = (u32::from_le_bytes(*got), want(row));
            if got != want {
                return Ok(Err(format!(
                    "row {at} of {vocab} logits, {:?}: token {got}, not {want}",
                    row.sampler
                )));
            }
        }
        count += rows.len();
    }
    Ok(Ok(Found { launches, ..Found::right(count) }))
}

/// Rows of logits, how each is drawn from, and room for what the kernels make of them, on the device.
struct On {
    vocab: usize,
    rows: usize,
    logits: Buffer,
    records: Buffer,
    places: Buffer,
    sums: Buffer,
    tokens: Buffer,
    /// Of a distribution: how many tokens, and room for them.
    counts: Buffer,
    top: Buffer,
}

impl On {
    fn new(bed: &mut Bed, logits: &[f32], records: &[u8], counts: &[u8], vocab: usize) -> Result<On, Error> {
        let rows = logits.len() / vocab;
        let stretches = rows * vocab.div_ceil(LOGITS_PER_MAXIMUM) * 8;
        let (logits, records) = (bed.with(&floats(logits))?, bed.with(records)?);
        let (places, sums) = (bed.blank(stretches)?, bed.blank(stretches)?);
        let (counts, top) = (bed.with(counts)?, bed.blank(rows * TOP_ROOM * 8)?);
        Ok(On { vocab, rows, logits, records, places, sums, tokens: bed.blank(rows * 4)?, counts, top })
    }

    /// One of [`KERNELS`]; those before it have run.
    ///
    /// # Safety
    /// It lives until the kernel is done.
    unsafe fn later(&self, bed: &Bed, kernel: &str) -> Result<(), Error> {
        let count = number(self.vocab);
        let [logits, places, sums, records] =
            [&self.logits, &self.places, &self.sums, &self.records].map(Argument::Buffer);
        let [tokens, counts, top] = [&self.tokens, &self.counts, &self.top].map(Argument::Buffer);
        let all = [self.vocab.div_ceil(ALL_LOGITS), self.rows];
        let (grid, block, arguments) = match kernel {
            BEST => (all, ALL_BLOCK, vec![logits, places, count]),
            WEIGH => (all, ALL_BLOCK, vec![logits, places, records, sums, count]),
            DRAW => ([self.rows, 1], DRAW_BLOCK, vec![logits, places, sums, records, tokens, count]),
            _ => {
                let room = number(TOP_ROOM);
                ([self.rows, 1], DRAW_BLOCK, vec![logits, places, sums, records, counts, top, count, room])
            }
        };
        // SAFETY: the buffers are as large as the kernel's head says; the rest is the caller's.
        unsafe { bed.launch(kernel, grid, block, &arguments) }
    }
}

/// How rows' distributions are asked for, each with each kind of logits: the temperature, and how many tokens. Of 0: none.
const TOPS: [(f32, u32); 5] = [(1.0, 1), (0.8, 32), (2.0, TOP_ROOM as u32), (0.0, 5), (1.0, 0)];
/// Entries from one row to the next.
const TOP_ROOM: usize = limits::DISTRIBUTION_TOKENS as usize;

pub(super) fn distributions(bed: &mut Bed) -> Checked {
    let (mut count, mut launches) = (0, Vec::new());
    for (case, vocab) in VOCABULARIES.into_iter().enumerate() {
        let seed = case as u64;
        let mut seeded = Seeded::new(seed);
        let (mut all, mut records, mut counts, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (temperature, k) in TOPS {
            for kind in 0..if vocab < MANY { KINDS } else { KINDS_OF_MANY } {
                let row = logits(kind, vocab, &mut seeded);
                wanted.push(want_top(&row, temperature, k));
                records.extend(record(Sampler::Multinomial { temperature }, 0));
                counts.extend(k.to_le_bytes());
                all.extend(row);
            }
        }
        let on = On::new(bed, &all, &records, &counts, vocab)?;
        for kernel in [BEST, WEIGH, TOP] {
            // SAFETY: it lives until `bytes` has waited.
            unsafe { on.later(bed, kernel)? };
        }
        let got = bed.bytes(&on.top)?;
        launches.push(Launched::exact(format!("{TOP}, {} rows of {vocab}", wanted.len()), seed, &got));
        count += wanted.len();
        for (row, (got, want)) in got.chunks(TOP_ROOM * 8).zip(wanted).enumerate() {
            let (got, beyond) = got.split_at(want.len());
            let untouched = beyond.iter().all(|byte| *byte == BEFORE);
            let right =
                if untouched { same("entries", got, &want) } else { Err("more than it should".to_owned()) };
            if let Err(wrong) = right {
                return Ok(Err(format!("row {row} of {vocab} logits: {wrong}")));
            }
        }
    }
    Ok(Ok(Found { launches, ..Found::right(count) }))
}

/// Bytes of logits per second, as if the kernel read each once; the draw, which is by top-p, and the distribution pass most
/// of them by and read some again.
pub(super) fn rate(bed: &mut Bed, kernel: &str) -> Checked {
    let rows = (bed.rate_bytes() / (4 * TIMED_VOCABULARY)).max(1);
    let mut seeded = Seeded::new(0);
    let logits = logits(0, TIMED_VOCABULARY, &mut seeded).repeat(rows);
    let sampler = Sampler::TopP { temperature: 0.8, p: 0.95 };
    let records: Vec<u8> = (0..rows).flat_map(|_| record(sampler, seeded.bits())).collect();
    let counts: Vec<u8> = (0..rows).flat_map(|_| TIMED_TOP.to_le_bytes()).collect();
    let on = On::new(bed, &logits, &records, &counts, TIMED_VOCABULARY)?;
    for before in [BEST, WEIGH].into_iter().take_while(|before| *before != kernel) {
        // SAFETY: it lives until the last wait.
        unsafe { on.later(bed, before)? };
    }
    // SAFETY: as above.
    let took = bed.time(&|| unsafe { on.later(bed, kernel) })?;
    Ok(Ok(Found::rate((logits.len() * 4) as f64 / took.as_secs_f64())))
}
