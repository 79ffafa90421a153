//! `sample_top` against the processor's distributions: the same tokens in the same order, the same probabilities to the bit.

use super::{KINDS, Kernels, Modules, logits};
use crate::harness::{
    Caught, Fault, Seeded, Wrong, each_is_caught, from_bytes, launch, module, passes, to_bytes,
};
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cuda::draw::record;
use tartlet::backend::sample::{LOGITS_PER_MAXIMUM, Logits, Sampling};
use tartlet::backend::{Produced, Sampler};
use tartlet::limits::DISTRIBUTION_TOKENS;

/// A row, and how much of its distribution is wanted.
struct Row {
    logits: Vec<f32>,
    temperature: f32,
    k: u32,
}

impl Row {
    /// Ids, and the bits of their probabilities.
    fn want(&self) -> Vec<[u32; 2]> {
        let largest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let maxima: Vec<f32> = self.logits.chunks(LOGITS_PER_MAXIMUM).map(largest).collect();
        let logits = Logits { all: &self.logits, maxima: &maxima };
        match Sampling::new(self.logits.len()).distribution(logits, self.temperature, self.k) {
            Produced::Distribution { ids, probs } => {
                ids.iter().zip(probs).map(|(id, prob)| [id.0, prob.to_bits()]).collect()
            }
            Produced::Token(_) => panic!("no distribution"),
        }
    }
}

fn check(kernels: &Kernels, top: &Module, rows: &[Row], seed: u64) -> Result<(), Wrong> {
    let vocab = rows[0].logits.len();
    let stretches = vocab.div_ceil(LOGITS_PER_MAXIMUM);
    let room = rows.iter().map(|row| row.k.min(DISTRIBUTION_TOKENS)).max().unwrap_or(0) as usize;
    let mut memory = Memory::new();
    let all: Vec<f32> = rows.iter().flat_map(|row| &row.logits).copied().collect();
    let records: Vec<u8> = rows
        .iter()
        .flat_map(|row| record(Sampler::Multinomial { temperature: row.temperature }, 0))
        .collect();
    let counts: Vec<u32> = rows.iter().map(|row| row.k).collect();
    let [logits, draws, counts] =
        [("logits", to_bytes(&all)), ("draws", records), ("counts", to_bytes(&counts))]
            .map(|(name, bytes)| memory.upload(name, &bytes));
    [logits, draws, counts].into_iter().for_each(|at| memory.protect(at, true));
    let [best, sums] = ["best", "sums"].map(|name| memory.alloc(rows.len() * stretches * 8, name));
    let out = memory.alloc(rows.len() * room.max(1) * 8, "top");

    let grid = [vocab.div_ceil(2048) as u32, rows.len() as u32, 1];
    let parameters = Parameters::new().u64(logits).u64(best).u32(vocab as u32);
    let shape = Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(kernels.best, &mut memory, &shape, seed)?;
    let parameters = Parameters::new().u64(logits).u64(best).u64(draws).u64(sums).u32(vocab as u32);
    launch(kernels.weigh, &mut memory, &Launch { parameters: parameters.bytes(), ..shape }, seed)?;
    memory.protect(best, true);
    let parameters = [logits, best, sums, draws, counts, out]
        .into_iter()
        .fold(Parameters::new(), |list, address| list.u64(address))
        .u32(vocab as u32)
        .u32(room as u32);
    let grid = [rows.len() as u32, 1, 1];
    let shape = Launch { grid, block: [512, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(top, &mut memory, &shape, seed)?;

    for (number, row) in rows.iter().enumerate() {
        let want = row.want();
        if want.is_empty() {
            continue;
        }
        let bytes = memory.read(out + (number * room * 8) as u64, want.len() * 8)?;
        let got: Vec<u32> = from_bytes(&bytes);
        for (place, (got, want)) in got.chunks(2).zip(&want).enumerate() {
            if got != want {
                return Err(Wrong::Result(format!(
                    "row {number} of {vocab} logits, temperature {}, k {}, seed {seed}, place {place}: token {} with {}, \
                     not {} with {}",
                    row.temperature,
                    row.k,
                    got[0],
                    f32::from_bits(got[1]),
                    want[0],
                    f32::from_bits(want[1]),
                )));
            }
        }
    }
    Ok(())
}

fn rows(vocab: usize, count: usize, seed: u64) -> Vec<Row> {
    const TEMPERATURES: [f32; 10] =
        [1.0, 0.7, 1.7, 0.05, 30.0, 0.0, 1e-45, f32::MAX, f32::INFINITY, f32::NAN];
    let seeded = &mut Seeded::new(seed);
    let row = |at: usize| {
        let temperature = TEMPERATURES[seeded.below(10).min(seeded.below(10))];
        let ks = [1, 2, 5, 32, 33, 0, 512, 513, 1000, 1024, vocab as u32];
        let k = ks[seeded.below(11)].min(DISTRIBUTION_TOKENS);
        Row { logits: logits(at % KINDS, vocab, seeded), temperature, k }
    };
    (0..count).map(row).collect()
}

#[test]
fn distributions_are_the_processors() {
    let (modules, top) = (Modules::new(), module("sample_top.ptx"));
    for (seed, vocab) in [1, 2, 31, 257, 1000, 1024, 1025, 2300].into_iter().enumerate() {
        let seed = seed as u64;
        passes(
            &format!("vocabulary of {vocab}"),
            check(&modules.kernels(), &top, &rows(vocab, 44, seed), seed),
        );
    }
}

#[test]
fn a_real_vocabulary_has_its_distributions() {
    let (modules, top) = (Modules::new(), module("sample_top.ptx"));
    let seeded = &mut Seeded::new(49152);
    let logits: Vec<f32> = (0..49152).map(|_| seeded.normal() * 3.0).collect();
    let row = |(temperature, k)| Row { logits: logits.clone(), temperature, k };
    let rows: Vec<Row> = [(1.0, 10), (0.8, 1024), (0.0, 5), (2.5, 0)].map(row).into();
    passes("49152 logits", check(&modules.kernels(), &top, &rows, 1));
}

/// The steps of the kernel's quotient, from reciprocals off by more than a device's: as f32 a division's.
#[test]
fn shares_are_those_of_a_division() {
    let seeded = &mut Seeded::new(53);
    for _ in 0..2_000_000 {
        let whole = (seeded.bits() >> 2 >> seeded.below(20) | 1 << 42) as f64;
        let part = (seeded.bits() >> 22 >> seeded.below(42)) as f64;
        let off = 1.0 + f64::from(seeded.unit()) * 2f64.powi(-22);
        let mut per = f64::from(1.0 / whole as f32) * off;
        for _ in 0..2 {
            per = (-whole).mul_add(per, 1.0).mul_add(per, per);
        }
        let share = part * per;
        let share = (-whole).mul_add(share, part).mul_add(per, share);
        assert_eq!((share as f32).to_bits(), ((part / whole) as f32).to_bits(), "{part} / {whole}");
    }
}

fn cases(kernels: &Kernels, top: &Module) -> Result<(), Wrong> {
    check(kernels, top, &rows(257, 22, 100), 100)?;
    check(kernels, top, &rows(2300, 22, 101), 101)
}

#[test]
fn faults_in_the_distribution_are_caught() {
    let fault = |name, find, replace, caught| Fault { name, file: "sample_top.ptx", find, replace, caught };
    let faults = [
        fault(
            "rows lie side by side, however long",
            "mul.wide.u32    %place, %row, %room;",
            "mul.wide.u32    %place, %row, %wanted;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "the k-th token is left out",
            "    cvt.u64.u32     %target, %index;\n",
            "    max.u32         %index, %index, 1;\n    sub.u32         %index, %index, 1;\n    cvt.u64.u32     %target, %index;\n",
            Caught::WrongResult,
        ),
        fault(
            "no barrier between clearing and gathering",
            "    bar.sync        0;\n    WALK",
            "    WALK",
            Caught::By(Kind::SharedRace),
        ),
        fault(
            "no barrier between the steps of the sort",
            "STRIDE:\n    bar.sync        0;\n",
            "STRIDE:\n",
            Caught::By(Kind::SharedRace),
        ),
        fault(
            "tokens beyond the limit are gathered",
            "    setp.le.and.u64 %there, %place, %limit, %there;\n",
            "",
            Caught::WrongResult,
        ),
        fault(
            "every run ascends",
            "    xor.pred        %swaps, %swaps, %descends;\n",
            "",
            Caught::WrongResult,
        ),
        fault(
            "half of it is sorted",
            "    setp.lt.u32     %there, %size, %wanted;\n    shl.b32         %size, %size, 1;\n",
            "    shl.b32         %size, %size, 1;\n    setp.lt.u32     %there, %size, %wanted;\n",
            Caught::WrongResult,
        ),
        fault(
            "a greedy row has weights",
            "    selp.f32        %z, %below, %z, %greedy;\n",
            "",
            Caught::WrongResult,
        ),
        fault(
            "the sum is of the first stretch",
            "    add.u32         %index, %stretch, %lane;\n    setp.lt.u32     %there, %index, %stretches;\n    mad.wide.u32    %at, %index, 8, %sums;",
            "    add.u32         %index, %stretch, %lane;\n    setp.lt.u32     %there, %index, 1;\n    mad.wide.u32    %at, %index, 8, %sums;",
            Caught::WrongResult,
        ),
        fault(
            "a weight is left out of the probability's last bit",
            "    cvt.rn.f32.f64  %z, %share;",
            "    cvt.rz.f32.f64  %z, %share;",
            Caught::WrongResult,
        ),
        fault(
            "the second entry of a thread is the first",
            "    add.u32         %index, %index, THREADS;\n    bra             ENTRY;",
            "    ret;",
            Caught::By(Kind::UninitialisedGlobal),
        ),
    ];
    let modules = Modules::new();
    each_is_caught("sample_top.ptx", &faults, |top| cases(&modules.kernels(), top));
}
