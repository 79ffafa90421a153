//! `sample_best`, `sample_weigh` and `sample_draw` against the processor's draws: the same token, whatever the logits.

mod faults;
mod top;

use crate::harness::{Plain, Seeded, Wrong, from_bytes, launch, module, passes, same, to_bytes};
use ptx_emulator::{Counts, Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::Sampler;
use tartlet::backend::cuda::draw::record;
use tartlet::backend::exp::exp_fixed;
use tartlet::backend::sample::{LOGITS_PER_MAXIMUM, Logits, Sampling};

/// A row to draw from, and how.
struct Row {
    logits: Vec<f32>,
    sampler: Sampler,
    random: u64,
}

impl Row {
    fn want(&self) -> u32 {
        let largest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let maxima: Vec<f32> = self.logits.chunks(LOGITS_PER_MAXIMUM).map(largest).collect();
        let logits = Logits { all: &self.logits, maxima: &maxima };
        Sampling::new(self.logits.len()).token(logits, self.sampler, self.random).0
    }
}

/// Logits of which there is one best place.
const STRETCH: usize = 256;

impl Row {
    /// `sample_best`'s definition: a token's place ascends by descending logit, then by id; NaN counts as -infinity, -0 as +0.
    fn place(&self, id: usize) -> u64 {
        let logit = if self.logits[id].is_nan() { f32::NEG_INFINITY } else { self.logits[id] + 0.0 };
        // Ascending as the numbers are, then turned round.
        let bits = logit.to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        u64::from(!ascending) << 21 | id as u64
    }

    /// The best of each stretch.
    fn places(&self) -> Vec<u64> {
        let ids: Vec<usize> = (0..self.logits.len()).collect();
        ids.chunks(STRETCH).filter_map(|ids| ids.iter().map(|&id| self.place(id)).min()).collect()
    }

    /// `sample_weigh`'s definition: the sum of each stretch's weights, of those that are the record's floor or more; none where
    /// the record is greedy or has a k that limits.
    fn sums(&self) -> Option<Vec<u64>> {
        let (record, vocab) = (record(self.sampler, self.random), self.logits.len());
        let floor = u64::get(&record[16..24]);
        let (k, divisor, temperature) =
            (u32::get(&record[24..28]), f32::get(&record[28..32]), f32::get(&record[44..48]));
        if divisor == 0.0 || (1..vocab).contains(&(k as usize)) {
            return None;
        }
        let largest = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max).min(f32::MAX);
        let weigh = |&logit: &f32| exp_fixed((logit.min(f32::MAX) - largest) / temperature);
        let kept = |part: &[f32]| {
            let numbers = part.iter().filter(|logit| !logit.is_nan());
            numbers.map(weigh).filter(|&weight| weight >= floor).sum()
        };
        Some(self.logits.chunks(STRETCH).map(kept).collect())
    }
}

struct Kernels<'a> {
    best: &'a Module,
    weigh: &'a Module,
    draw: &'a Module,
}

struct Modules([Module; 3]);

impl Modules {
    fn new() -> Modules {
        Modules(["sample_best.ptx", "sample_weigh.ptx", "sample_draw.ptx"].map(module))
    }

    fn kernels(&self) -> Kernels<'_> {
        let Modules([best, weigh, draw]) = self;
        Kernels { best, weigh, draw }
    }
}

/// The tokens of rows of one vocabulary, drawn in one launch, and what that cost.
fn run(kernels: &Kernels, rows: &[Row], seed: u64) -> Result<(Vec<u32>, Counts), Wrong> {
    let vocab = rows[0].logits.len();
    let stretches = vocab.div_ceil(LOGITS_PER_MAXIMUM);
    let mut memory = Memory::new();
    let all: Vec<f32> = rows.iter().flat_map(|row| &row.logits).copied().collect();
    let logits = memory.upload("logits", &to_bytes(&all));
    let records: Vec<u8> = rows.iter().flat_map(|row| record(row.sampler, row.random)).collect();
    let draws = memory.upload("draws", &records);
    memory.protect(logits, true);
    memory.protect(draws, true);
    let best = memory.alloc(rows.len() * stretches * 8, "best");
    let sums = memory.alloc(rows.len() * stretches * 8, "sums");
    let tokens = memory.alloc(rows.len() * 4, "tokens");

    let parameters = Parameters::new().u64(logits).u64(best).u32(vocab as u32);
    let grid = [vocab.div_ceil(2048) as u32, rows.len() as u32, 1];
    let shape = Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(kernels.best, &mut memory, &shape, seed)?;
    let places: Vec<u64> = rows.iter().flat_map(Row::places).collect();
    same("best", &from_bytes(&memory.read(best, places.len() * 8)?), &places)?;
    memory.protect(best, true);
    let parameters = Parameters::new().u64(logits).u64(best).u64(draws).u64(sums).u32(vocab as u32);
    let shape = Launch { parameters: parameters.bytes(), ..shape };
    launch(kernels.weigh, &mut memory, &shape, seed)?;
    for (at, row) in rows.iter().enumerate() {
        let Some(want) = row.sums() else { continue };
        let of_row = sums + (at * stretches * 8) as u64;
        same("sums", &from_bytes(&memory.read(of_row, stretches * 8)?), &want)?;
    }
    memory.protect(sums, true);
    let parameters =
        Parameters::new().u64(logits).u64(best).u64(sums).u64(draws).u64(tokens).u32(vocab as u32);
    let grid = [rows.len() as u32, 1, 1];
    let shape = Launch { grid, block: [512, 1, 1], shared: 0, parameters: parameters.bytes() };
    let counts = launch(kernels.draw, &mut memory, &shape, seed)?;
    Ok((from_bytes(&memory.read(tokens, rows.len() * 4)?), counts))
}

fn check(kernels: &Kernels, rows: &[Row], seed: u64) -> Result<(), Wrong> {
    let (got, _) = run(kernels, rows, seed)?;
    for (row, got) in rows.iter().zip(got) {
        let want = row.want();
        if got != want {
            let of = |token: u32| row.logits.get(token as usize).copied().unwrap_or(f32::NAN);
            return Err(Wrong::Result(format!(
                "{:?} of {} logits, random {:#x}, seed {seed}: token {got} ({}), not {want} ({})",
                row.sampler,
                row.logits.len(),
                row.random,
                of(got),
                of(want),
            )));
        }
    }
    Ok(())
}

/// Logits of every kind that matters.
fn logits(kind: usize, vocab: usize, seeded: &mut Seeded) -> Vec<f32> {
    let mut normal = |spread: f32| -> Vec<f32> { (0..vocab).map(|_| seeded.normal() * spread).collect() };
    match kind {
        0 => normal(3.0),
        1 => normal(12.0),
        2 => normal(0.01),
        3 => normal(2.0).iter().map(|logit| logit.round()).collect(),
        4 => vec![-7.25; vocab],
        5 => {
            let mut all = normal(4.0);
            for logit in &mut all {
                match seeded.below(9) {
                    0 => *logit = f32::NAN,
                    1 => *logit = f32::NEG_INFINITY,
                    2 => *logit = -0.0,
                    3 => *logit = 0.0,
                    _ => {}
                }
            }
            all
        }
        6 => (0..vocab).map(|id| if id % 3 == 0 { f32::NAN } else { f32::NEG_INFINITY }).collect(),
        7 => {
            let odd = [f32::MAX, f32::INFINITY, -f32::MAX, 1e-45, -1e-45, f32::MIN_POSITIVE];
            (0..vocab).map(|_| odd[seeded.below(odd.len())]).collect()
        }
        8 => {
            let mut all = vec![-100.0; vocab];
            all[seeded.below(vocab)] = 3.5;
            all
        }
        9 => (0..vocab).map(|_| f32::from_bits(seeded.below(40) as u32)).collect(), // subnormal
        _ => (0..vocab).map(|_| [0.0, -0.0, -1.0, -1.5][seeded.below(4)]).collect(),
    }
}
const KINDS: usize = 11;

fn sampler(vocab: usize, seeded: &mut Seeded) -> Sampler {
    const TEMPERATURES: [f32; 12] =
        [0.8, 1.0, 0.7, 1.7, 0.05, 30.0, 1e-45, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, 0.0, f32::NAN];
    const SHARES: [f32; 12] =
        [0.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0 - f32::EPSILON / 2.0, 1.0, 7.0, -1.0, f32::NAN];
    // The ordinary temperatures oftener than the others.
    let temperature = TEMPERATURES[seeded.below(12).min(seeded.below(12))];
    let p = SHARES[seeded.below(12)];
    let ks = [0, 1, 2, 7, 40, vocab as u32 / 2, vocab as u32 - 1, vocab as u32, u32::MAX];
    let k = ks[seeded.below(9)];
    match seeded.below(6) {
        0 => Sampler::Multinomial { temperature },
        1 => Sampler::TopK { temperature, k },
        2 => Sampler::TopP { temperature, p },
        3 => Sampler::MinP { temperature, p },
        _ => Sampler::TopKTopP { temperature, k, p },
    }
}

fn rows(vocab: usize, count: usize, seed: u64) -> Vec<Row> {
    let mut seeded = Seeded::new(seed);
    let row = |at: usize| {
        let logits = logits(at % KINDS, vocab, &mut seeded);
        let sampler = sampler(vocab, &mut seeded);
        let random = match seeded.below(8) {
            0 => 0,
            1 => u64::MAX,
            _ => seeded.bits(),
        };
        Row { logits, sampler, random }
    };
    (0..count).map(row).collect()
}

/// Rows whose draw falls on the border between two tokens, on either side of it: a weight off by one unit is noticed.
fn borders(vocab: usize, count: usize, seed: u64) -> Vec<Row> {
    let mut seeded = Seeded::new(seed);
    let row = |at: usize| {
        let logits: Vec<f32> = (0..vocab).map(|_| seeded.normal() * 3.0).collect();
        let temperature = 0.3 + seeded.unit().abs();
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |&logit: &f32| u128::from(exp_fixed((logit - largest) / temperature));
        let below: u128 = logits[..vocab / 2].iter().map(weigh).sum();
        let total: u128 = logits.iter().map(weigh).sum();
        let random = (below << 64).div_ceil(total) as u64 - at as u64 % 2;
        Row { logits, sampler: Sampler::Multinomial { temperature }, random }
    };
    (0..count).map(row).collect()
}

/// Shares that fall between two sums (the mass is rounded up, and is 1 at least), and a tie of the two zeros.
fn corners() -> Vec<Row> {
    // Weights 2^42, 2^18, 1: the share 1 - 2^-24 of their sum lies between 2^42 and 2^42 + 1.
    let mut second = -24.0 * std::f32::consts::LN_2;
    while exp_fixed(second) < 1 << 18 {
        second = second.next_up();
    }
    let logits = [0.0, second, -29.1];
    assert_eq!(logits.map(exp_fixed), [1 << 42, 1 << 18, 1]);
    let share =
        |p| Row { logits: logits.to_vec(), sampler: Sampler::TopP { temperature: 1.0, p }, random: u64::MAX };
    let mut rows: Vec<Row> = [0.0, f32::MIN_POSITIVE, 0.5, 1.0 - f32::EPSILON / 2.0].map(share).into();
    let sampler = Sampler::Multinomial { temperature: 0.0 };
    rows.push(Row { logits: vec![-1.0, -0.0, 0.0], sampler, random: 0 });
    rows
}

#[test]
fn borders_lie_where_the_processor_has_them() {
    let modules = Modules::new();
    let kernels = modules.kernels();
    passes("borders", check(&kernels, &borders(300, 60, 5), 5));
    passes("corners", check(&kernels, &corners(), 6));
}

#[test]
fn tokens_are_the_processors() {
    let modules = Modules::new();
    let kernels = modules.kernels();
    for (seed, vocab) in [1, 31, 256, 257, 1000, 2300].into_iter().enumerate() {
        let seed = seed as u64;
        passes(&format!("vocabulary of {vocab}"), check(&kernels, &rows(vocab, 60, seed), seed));
    }
}

/// Every sampler on logits such as a model gives, with a real vocabulary.
#[test]
fn a_real_vocabulary_is_sampled() {
    let modules = Modules::new();
    let kernels = modules.kernels();
    let mut seeded = Seeded::new(49152);
    let logits: Vec<f32> = (0..49152).map(|_| seeded.normal() * 3.0).collect();
    let temperature = 0.8;
    let samplers = [
        Sampler::Multinomial { temperature: 0.0 },
        Sampler::Multinomial { temperature },
        Sampler::TopK { temperature, k: 50 },
        Sampler::TopP { temperature, p: 0.95 },
        Sampler::MinP { temperature, p: 0.05 },
        Sampler::TopKTopP { temperature, k: 20000, p: 0.9 },
    ];
    let rows: Vec<Row> =
        samplers.map(|sampler| Row { logits: logits.clone(), sampler, random: seeded.bits() }).into();
    passes("49152 logits", check(&kernels, &rows, 1));
}

/// All draws of a row: each token comes where the processor has it, none is left out.
#[test]
fn a_rows_draws_cover_what_is_kept() {
    let modules = Modules::new();
    let kernels = modules.kernels();
    let mut seeded = Seeded::new(77);
    let logits: Vec<f32> = (0..300).map(|_| seeded.normal()).collect();
    let sampler = Sampler::TopKTopP { temperature: 1.3, k: 60, p: 0.8 };
    let row = |part: u64| Row { logits: logits.clone(), sampler, random: part << 57 };
    let rows: Vec<Row> = (0..128).map(row).collect();
    passes("128 draws", check(&kernels, &rows, 2));
    let mut tokens: Vec<u32> = rows.iter().map(Row::want).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert!((20..=60).contains(&tokens.len()), "{} tokens", tokens.len());
}

/// A row's token is the same alone and among others.
#[test]
fn rows_do_not_meet() {
    let modules = Modules::new();
    let kernels = modules.kernels();
    let together = rows(700, 12, 9);
    let tokens = |rows: &[Row]| run(&kernels, rows, 3);
    let all: Vec<u32> = together.iter().map(Row::want).collect();
    for (row, want) in together.into_iter().zip(all) {
        passes("a row alone", tokens(&[row]).and_then(|(got, _)| same("token", &got, &[want])));
    }
}

/// What sample_draw says in its head that a row costs, by how far from the best its tokens lie.
#[test]
fn a_row_costs_what_it_should() {
    let modules = Modules::new();
    let kernels = modules.kernels();
    let vocab = 49152;
    let mut seeded = Seeded::new(8);
    let mut spread = |spread: f32| -> Vec<f32> { (0..vocab).map(|_| seeded.normal() * spread).collect() };
    let cases = [
        ("a model's", spread(3.0), [60.0, 280.0]),
        ("flat", spread(0.01), [140.0, 300.0]),
        ("equal", vec![1.0; vocab], [350.0, 440.0]),
    ];
    for (name, logits, most) in cases {
        let temperature = 1.0;
        let samplers = [Sampler::TopK { temperature, k: 50 }, Sampler::TopP { temperature, p: 0.9 }];
        for (sampler, most) in samplers.into_iter().zip(most) {
            let row = Row { logits: logits.clone(), sampler, random: 1 << 63 };
            let Ok((_, counts)) = run(&kernels, &[row], 0) else { panic!("{name} logits") };
            let cost = counts.instructions as f64 / vocab as f64;
            println!("{name} logits, {sampler:?}: {cost:.1} thread-instructions a token of the vocabulary");
            assert!(cost < most, "{name} logits, {sampler:?}: {cost} thread-instructions a token");
        }
    }
}

/// The best places of other logits, or no places at all, give some token: the kernel ends.
#[test]
fn a_draw_ends_whatever_it_is_told() {
    let modules = Modules::new();
    let vocab = 700u32;
    for seed in 0..12 {
        let mut seeded = Seeded::new(seed);
        let mut memory = Memory::new();
        let logits = seeded.normals(vocab as usize);
        let logits = memory.upload("logits", &to_bytes(&logits));
        let places: Vec<u64> = (0..3).map(|_| [u64::MAX, 0, seeded.bits()][seeded.below(3)]).collect();
        let best = memory.upload("best", &to_bytes(&places));
        let sums = memory.upload("sums", &to_bytes(&[1u64, 0, 1]));
        let sampler = match seed % 2 {
            0 => Sampler::TopK { temperature: 1.0, k: 699 },
            _ => Sampler::TopP { temperature: 1.0, p: 0.99 },
        };
        let draws = memory.upload("draws", &record(sampler, seeded.bits()));
        let tokens = memory.alloc(4, "tokens");
        let parameters = Parameters::new().u64(logits).u64(best).u64(sums).u64(draws).u64(tokens).u32(vocab);
        let shape = Launch { grid: [1, 1, 1], block: [512, 1, 1], shared: 0, parameters: parameters.bytes() };
        if let Err(fault) = launch(modules.kernels().draw, &mut memory, &shape, seed) {
            assert_ne!(fault.kind, Kind::Endless, "places {places:x?}, seed {seed}: {fault}");
        }
    }
}

/// The quotient of the kernel's steps is that of a division, where the weight depends on it.
#[test]
fn quotients_are_rounded_as_a_division_rounds() {
    let mut seeded = Seeded::new(31);
    for _ in 0..2_000_000 {
        let bits = seeded.bits();
        // Mantissas of many ones and few, where rounding is hardest, as often as others.
        let mantissa = |bits: u32| match bits >> 30 {
            0 => bits & 0x7f_ffff,
            1 => bits & 0x7f | 0x7f_ff80,
            2 => bits & 0x7f_8000,
            _ => bits & 0xff,
        };
        let a = -f32::from_bits(0x3f80_0000 | mantissa(bits as u32));
        let divisor = f32::from_bits(0x3f80_0000 | mantissa((bits >> 32) as u32));
        let reciprocal = 1.0 / divisor;
        let mut quotient = a * reciprocal;
        for _ in 0..2 {
            quotient = (-quotient).mul_add(divisor, a).mul_add(reciprocal, quotient);
        }
        assert_eq!(quotient.to_bits(), (a / divisor).to_bits(), "{a} / {divisor}");
    }
}

/// The cases that the faults are run on.
fn cases(kernels: &Kernels) -> Result<(), Wrong> {
    check(kernels, &rows(257, 44, 100), 100)?;
    check(kernels, &borders(300, 12, 101), 101)?;
    check(kernels, &corners(), 102)?;
    check(kernels, &rows(2300, 22, 103), 103)
}
