//! Sampling: the very tokens that the processor draws, and the very distributions that it makes.
//!
//! Owns: rows of logits that have ties, holes and edges. Never: how a token is drawn;
//! `backend/sample.rs` is the reference.

use super::{BEFORE, Bed, Checked, Found, Seeded, norms::floats, same};
use crate::backend::cuda::draw::record;
use crate::backend::cuda::{Argument, Buffer, Error};
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
const KINDS: usize = 3;
/// Logits of a row that is timed, and of these rows the most.
const TIMED_VOCABULARY: usize = 131_072;
const TIMED_ROWS: usize = 64;

/// Logits: smooth; of few values, so that most tie; with NaN, infinities and both zeros among them.
fn logits(kind: usize, vocab: usize, seeded: &mut Seeded) -> Vec<f32> {
    let mut one = || {
        let smooth = (seeded.unit() + seeded.unit() + seeded.unit()) * 4.0;
        match (kind, seeded.bits() % 8) {
            (0, _) => smooth,
            (1, _) => smooth.round(),
            (_, 0) => f32::NAN,
            (_, 1) => f32::NEG_INFINITY,
            (_, 2) => -0.0,
            (_, 3) => 0.0,
            _ => smooth,
        }
    };
    (0..vocab).map(|_| one()).collect()
}

fn maxima(logits: &[f32]) -> Vec<f32> {
    let largest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.chunks(LOGITS_PER_MAXIMUM).map(largest).collect()
}

fn want(logits: &[f32], sampler: Sampler, random: u64) -> u32 {
    let logits = Logits { all: logits, maxima: &maxima(logits) };
    Sampling::new(logits.all.len()).token(logits, sampler, random).0
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
    let mut digest = blake3::Hasher::new();
    for (case, vocab) in VOCABULARIES.into_iter().enumerate() {
        let mut seeded = Seeded::new(case as u64);
        let (mut all, mut records, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for kind in 0..KINDS {
            for sampler in SAMPLERS {
                let (row, random) = (logits(kind, vocab, &mut seeded), seeded.bits());
                wanted.push(want(&row, sampler, random));
                records.extend(record(sampler, random));
                all.extend(row);
            }
        }
        let on = On::new(bed, &all, &records, vocab)?;
        // SAFETY: it lives until `bytes` has waited.
        unsafe { on.later(bed)? };
        let got = bed.bytes(&on.tokens)?;
        digest.update(&got);
        for ((row, got), want) in got.as_chunks::<4>().0.iter().enumerate().zip(wanted) {
            let got = u32::from_le_bytes(*got);
            if got != want {
                let sampler = SAMPLERS[row % SAMPLERS.len()];
                return Ok(Err(format!("row {row} of {vocab} logits, {sampler:?}: token {got}, not {want}")));
            }
        }
    }
    let digest = Some(digest.finalize().to_hex().to_string());
    let rate = bed.rate(rate)?;
    Ok(Ok(Found { digest, rate, ..Found::right(VOCABULARIES.len() * KINDS * SAMPLERS.len()) }))
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
}

impl On {
    fn new(bed: &mut Bed, logits: &[f32], records: &[u8], vocab: usize) -> Result<On, Error> {
        let rows = logits.len() / vocab;
        let stretches = rows * vocab.div_ceil(LOGITS_PER_MAXIMUM) * 8;
        let (logits, records) = (bed.with(&floats(logits))?, bed.with(records)?);
        let (places, sums) = (bed.blank(stretches)?, bed.blank(stretches)?);
        Ok(On { vocab, rows, logits, records, places, sums, tokens: bed.blank(rows * 4)? })
    }

    /// # Safety
    /// It lives until the kernels are done.
    unsafe fn later(&self, bed: &Bed) -> Result<(), Error> {
        let (best, weigh) = (bed.kernel("sample_best")?, bed.kernel("sample_weigh")?);
        let draw = bed.kernel("sample_draw")?;
        let count = Argument::U32(self.vocab as u32);
        let [logits, places, sums, records, tokens] =
            [&self.logits, &self.places, &self.sums, &self.records, &self.tokens].map(Argument::Buffer);
        let all = [self.vocab.div_ceil(ALL_LOGITS) as u32, self.rows as u32, 1];
        let to_sums = [logits, places, records, sums, count];
        let to_tokens = [logits, places, sums, records, tokens, count];
        // SAFETY: the buffers are as large as the kernels' heads say; the rest is the caller's.
        unsafe {
            bed.stream.launch(best, all, [ALL_BLOCK, 1, 1], 0, &[logits, places, count])?;
            bed.stream.launch(weigh, all, [ALL_BLOCK, 1, 1], 0, &to_sums)?;
            bed.stream.launch(draw, [self.rows as u32, 1, 1], [DRAW_BLOCK, 1, 1], 0, &to_tokens)
        }
    }
}

/// How rows' distributions are asked for, each with each kind of logits: the temperature, and how many tokens. Of 0: none.
const TOPS: [(f32, u32); 5] = [(1.0, 1), (0.8, 32), (2.0, TOP_ROOM as u32), (0.0, 5), (1.0, 0)];
/// Entries from one row to the next.
const TOP_ROOM: usize = limits::DISTRIBUTION_TOKENS as usize;

pub(super) fn distributions(bed: &mut Bed) -> Checked {
    let mut digest = blake3::Hasher::new();
    for (case, vocab) in VOCABULARIES.into_iter().enumerate() {
        let mut seeded = Seeded::new(case as u64);
        let (mut all, mut records, mut counts, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (temperature, k) in TOPS {
            for kind in 0..KINDS {
                let row = logits(kind, vocab, &mut seeded);
                wanted.push(want_top(&row, temperature, k));
                records.extend(record(Sampler::Multinomial { temperature }, 0));
                counts.extend(k.to_le_bytes());
                all.extend(row);
            }
        }
        let on = On::new(bed, &all, &records, vocab)?;
        let (counts, top) = (bed.with(&counts)?, bed.blank(wanted.len() * TOP_ROOM * 8)?);
        let mut arguments: Vec<Argument> =
            [&on.logits, &on.places, &on.sums, &on.records, &counts, &top].map(Argument::Buffer).into();
        arguments.extend([vocab, TOP_ROOM].map(|count| Argument::U32(count as u32)));
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe {
            on.later(bed)?;
            bed.launch("sample_top", [wanted.len(), 1], DRAW_BLOCK, &arguments)?;
        }
        let got = bed.bytes(&top)?;
        for (row, (got, want)) in got.chunks(TOP_ROOM * 8).zip(wanted).enumerate() {
            let (got, beyond) = got.split_at(want.len());
            digest.update(got);
            let untouched = beyond.iter().all(|byte| *byte == BEFORE);
            let right =
                if untouched { same("entries", got, &want) } else { Err("more than it should".to_owned()) };
            if let Err(wrong) = right {
                return Ok(Err(format!("row {row} of {vocab} logits: {wrong}")));
            }
        }
    }
    let digest = Some(digest.finalize().to_hex().to_string());
    Ok(Ok(Found { digest, ..Found::right(VOCABULARIES.len() * KINDS * TOPS.len()) }))
}

/// Bytes of logits per second, drawn from by top-p, read once (the kernels read them twice and a few of them again).
fn rate(bed: &mut Bed) -> Result<f64, Error> {
    let rows = (bed.rate_bytes() / (4 * TIMED_VOCABULARY)).clamp(1, TIMED_ROWS);
    let mut seeded = Seeded::new(0);
    let logits = logits(0, TIMED_VOCABULARY, &mut seeded).repeat(rows);
    let sampler = Sampler::TopP { temperature: 0.8, p: 0.95 };
    let records: Vec<u8> = (0..rows).flat_map(|_| record(sampler, seeded.bits())).collect();
    let on = On::new(bed, &logits, &records, TIMED_VOCABULARY)?;
    // SAFETY: it lives until the last wait.
    let took = bed.time(|| unsafe { on.later(bed) })?;
    Ok((logits.len() * 4) as f64 / took.as_secs_f64())
}
