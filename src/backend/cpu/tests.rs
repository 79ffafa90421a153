//! The backend against a naive forward pass in f64, and against itself on every path: a row's bits must not depend on what ran
//! beside it, on chunks, pages, or threads.

mod families;

use super::reference::{Reference, Rows};
use super::*;
use crate::backend::{DrawKey, EmbedId, Input, Mask, Output, Produced, Sampler, Sequence, TokenId, sample};
use crate::model::gguf::{Gguf, Quant};
use crate::model::toy::{Random, TOY_VOCAB, Toy};

const KEY: DrawKey = DrawKey { seed: 7, queue: 1, pass: 2 };

const EXACT: (bool, KvFormat) = (true, KvFormat::F32);

fn load_as((exact, kv): (bool, KvFormat), model: &Arc<Model>, page_size: u32, threads: usize) -> Cpu {
    let options = CpuOptions { pages: Some(64), page_size, embeds: 8, batch_tokens: 64, kv, exact };
    Cpu::load(model.clone(), options, Crew::threads(threads)).unwrap_or_else(|error| panic!("{error}"))
}

/// The plain path: exact weights, f32 K/V.
fn load(model: &Arc<Model>, page_size: u32, threads: usize) -> Cpu {
    load_as(EXACT, model, page_size, threads)
}

/// A sequence of a test: its inputs and masks from the first slot on.
#[derive(Clone)]
struct Text {
    inputs: Vec<Input>,
    positions: Vec<u32>,
    mask: Mask,
}

impl Text {
    fn of(tokens: impl IntoIterator<Item = usize>) -> Text {
        let inputs: Vec<Input> = tokens.into_iter().map(|id| Input::Token(TokenId(id as u32))).collect();
        Text { positions: (0..inputs.len() as u32).collect(), inputs, mask: Mask::Causal }
    }

    fn random(seed: u64, len: usize) -> Text {
        let mut random = Random::new(seed);
        Text::of((0..len).map(|_| random.below(TOY_VOCAB)))
    }

    /// Hides some of the earlier slots from every row, all slots from row `blind`, and makes the positions wild.
    fn masked(mut self, seed: u64, blind: usize) -> Text {
        let mut random = Random::new(seed);
        let row = |row: usize| {
            if row == blind {
                return vec![0, row as u32 + 1];
            }
            let mut runs = vec![0];
            let mut shown = true;
            for slot in 0..=row {
                if random.below(2) == 0 && slot < row {
                    runs.push(0);
                    shown = !shown;
                }
                if slot == row && !shown {
                    runs.push(0); // a row always sees itself
                }
                *runs.last_mut().expect("never empty") += 1;
            }
            runs
        };
        self.mask = Mask::Runs((0..self.inputs.len()).map(row).collect());
        self.positions = (0..self.inputs.len()).map(|_| random.next() as u32 >> random.below(31)).collect();
        self
    }

    /// The pass that appends rows `rows` after everything before them is there.
    fn pass(&self, rows: std::ops::Range<usize>, pages: &[PageId]) -> Sequence {
        let mask = match &self.mask {
            Mask::Causal => Mask::Causal,
            Mask::Runs(runs) => Mask::Runs(runs[rows.clone()].to_vec()),
        };
        let (inputs, positions) = (self.inputs[rows.clone()].to_vec(), self.positions[rows.clone()].to_vec());
        Sequence {
            pages: pages.to_vec(),
            len: rows.end as u32,
            inputs,
            positions,
            mask,
            outputs: vec![],
            draw: KEY,
        }
    }
}

/// All logits of a batch.
fn run(cpu: &mut Cpu, sequences: Vec<Sequence>) -> Vec<Vec<f32>> {
    let rows: Vec<usize> = (0..sequences.iter().map(|s| s.inputs.len()).sum()).collect();
    cpu.run_with_logits(&Batch { sequences }, &rows, &mut Outcome::default())
        .unwrap_or_else(|f| panic!("{f}"))
}

fn pages(first: u32, count: u32) -> Vec<PageId> {
    (first..first + count).map(PageId).collect()
}

/// The logits of every row of `text`, in passes of at most `chunk` rows, on the given pages.
fn logits(cpu: &mut Cpu, text: &Text, chunk: usize, pages: &[PageId]) -> Vec<Vec<f32>> {
    let len = text.inputs.len();
    let chunks = (0..len).step_by(chunk).map(|first| first..len.min(first + chunk));
    chunks.flat_map(|rows| run(cpu, vec![text.pass(rows, pages)])).collect()
}

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

/// What the formulas give for `text`.
fn naive(model: &Model, text: &Text, embeds: &[Vec<f64>]) -> Rows {
    Reference::of(model).run(&text.inputs, &text.positions, &text.mask, embeds)
}

fn assert_close(got: &[Vec<f32>], want: &[Vec<f64>], what: &str) {
    assert_eq!(got.len(), want.len());
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        for (id, (&got, &want)) in got.iter().zip(want).enumerate() {
            assert!(
                (f64::from(got) - want).abs() < 2e-4 * (1.0 + want.abs()),
                "{what}: row {row}, {id}: {got}, not {want}"
            );
        }
    }
}

fn toys() -> Vec<Toy> {
    let odd = Toy { heads: 3, kv_heads: 1, head_dim: 10, ffn: 37, ..Toy::default() }; // padding everywhere
    let mut toys = vec![Toy::default(), odd, Toy { tied_head: false, ..odd }];
    for (seed, format) in Quant::ALL.into_iter().enumerate() {
        let kv_heads = [1, 2, 4][seed % 3];
        toys.push(Toy { seed: seed as u64, kv_heads, tied_head: seed % 2 == 0, ..Toy::of(format) });
    }
    toys
}

#[test]
fn logits_are_those_of_the_formulas() {
    for toy in toys() {
        let model = toy.model();
        let mut cpu = load(&model, 4, 2);
        for (seed, text) in [(1, Text::random(1, 23)), (2, Text::random(2, 19).masked(3, 6))] {
            let want = naive(&model, &text, &[]).logits;
            let got = logits(&mut cpu, &text, 64, &pages(0, 6));
            assert_close(&got, &want, &format!("{toy:?}, seed {seed}"));
        }
    }
}

/// The plain path, and the widest with each precision of K/V.
const WAYS: [(bool, KvFormat); 4] =
    [EXACT, (false, KvFormat::F32), (false, KvFormat::F16), (false, KvFormat::Q8)];

#[test]
fn bits_do_not_depend_on_neighbours_chunks_pages_or_threads() {
    for (number, toy) in toys().into_iter().enumerate() {
        let model = toy.model();
        let way = WAYS[number % WAYS.len()];
        for way in [way, (false, KvFormat::F16)] {
            for (seed, text) in [(4, Text::random(4, 45)), (5, Text::random(5, 45).masked(6, 30))] {
                stays_the_same(way, &model, &text, &format!("{toy:?}, {way:?}, seed {seed}"));
            }
        }
    }
}

fn stays_the_same(way: (bool, KvFormat), model: &Arc<Model>, text: &Text, what: &str) {
    let want = bits(&logits(&mut load_as(way, model, 16, 1), text, 45, &pages(0, 3)));
    for (threads, page_size, chunk) in [(1, 16, 7), (2, 16, 45), (3, 4, 1), (2, 5, 16), (1, 64, 44)] {
        let mut cpu = load_as(way, model, page_size, threads);
        // Pages in any order, and used before by something else.
        let mut scattered = pages(3, 45u32.div_ceil(page_size));
        scattered.reverse();
        logits(&mut cpu, &Text::random(9, 40), 40, &scattered);
        let got = logits(&mut cpu, text, chunk, &scattered);
        assert!(bits(&got) == want, "{what}: {threads} threads, page size {page_size}, chunks of {chunk}");
    }

    // The last rows again, in a batch with fifteen others: short, long, masked, at its first row.
    let mut cpu = load_as(way, model, 16, 2);
    let mut others = vec![
        Text::random(10, 1),
        Text::random(11, 30),
        Text::random(12, 9).masked(13, 0),
        Text::random(14, 3),
    ];
    others.extend((20..31).map(|seed| Text::random(seed, 1)));
    logits(&mut cpu, text, 43, &pages(0, 3)); // 43 rows, then 2, which the batch computes again
    let mut batch: Vec<Sequence> = Vec::new();
    for (number, other) in others.iter().enumerate() {
        batch.push(other.pass(0..other.inputs.len(), &pages(10 + 2 * number as u32, 2)));
    }
    let before: usize = batch[..2].iter().map(|sequence| sequence.inputs.len()).sum();
    batch.insert(2, text.pass(43..45, &pages(0, 3)));
    let got = run(&mut cpu, batch);
    assert!(bits(&got[before..before + 2]) == want[43..], "{what}: in a batch");
}

/// A layer of a small model takes a decode 70 to 280 us: every barrier more is felt.
#[test]
fn a_decode_has_five_barriers_a_layer() {
    for (threads, rows) in [(1, 1), (2, 1), (2, 3), (3, 16)] {
        let met = [2, 5].map(|layers| {
            let model = Toy { layers, ..Toy::of(Quant::Q4_1) }.model();
            let crew = Crew::threads(threads);
            let options = CpuOptions {
                pages: Some(64),
                page_size: 16,
                embeds: 0,
                batch_tokens: 64,
                kv: KvFormat::F16,
                exact: false,
            };
            let mut cpu = Cpu::load(model, options, crew.clone()).unwrap_or_else(|error| panic!("{error}"));
            let texts: Vec<Text> = (0..rows).map(|seed| Text::random(seed, 18)).collect();
            let pass = |rows: std::ops::Range<usize>| -> Vec<Sequence> {
                texts.iter().zip(0..).map(|(text, n)| text.pass(rows.clone(), &pages(2 * n, 2))).collect()
            };
            for prompt in pass(0..17) {
                run(&mut cpu, vec![prompt]);
            }
            let before = crew.met();
            run(&mut cpu, pass(17..18));
            crew.met() - before
        });
        assert_eq!(met[1] - met[0], 3 * 5, "{rows} rows, {threads} threads");
    }
}

/// Long enough for several stretches of slots, which ranks attend apart when a row is alone.
#[test]
fn a_long_row_is_the_same_however_it_is_cut() {
    let model = Toy { head_dim: 20, ..Toy::default() }.model();
    for way in WAYS {
        for (seed, text) in [(70, Text::random(70, 700)), (71, Text::random(71, 700).masked(72, 650))] {
            let mut alone = load_as(way, &model, 16, 1);
            let want = bits(&logits(&mut alone, &text, 64, &pages(0, 44)));
            for (threads, page_size) in [(2, 16), (3, 11)] {
                let mut cpu = load_as(way, &model, page_size, threads);
                let own = pages(0, 700u32.div_ceil(page_size));
                for first in (0..640).step_by(64) {
                    run(&mut cpu, vec![text.pass(first..first + 64, &own)]);
                }
                for (row, want) in want.iter().enumerate().skip(640) {
                    let got = bits(&run(&mut cpu, vec![text.pass(row..row + 1, &own)]));
                    assert!(got[0] == *want, "{way:?}, seed {seed}, {threads} threads, row {row}");
                }
            }
        }
    }
}

/// Every vector path of this machine gives the bits of plain Rust with the same roundings.
#[test]
fn vector_paths_agree_bit_for_bit() {
    for (number, toy) in toys().into_iter().enumerate() {
        let model = toy.model();
        paths_agree(KvFormat::ALL[number % 3], &model, &format!("{toy:?}"));
    }
}

fn paths_agree(kv: KvFormat, model: &Arc<Model>, what: &str) {
    let text = Text::random(80, 21).masked(81, 6);
    let on = |path| {
        let mut cpu = load_as((false, kv), model, 16, 1);
        cpu.path = path;
        bits(&logits(&mut cpu, &text, 19, &pages(0, 2)))
    };
    let want = on(Path::Fused(lanes::Plain));
    for path in Path::all().filter(|path| !matches!(path, Path::Plain(_))) {
        assert!(on(path) == want, "{path}: {what}, {kv:?}");
    }
}

#[test]
fn runs_that_hide_nothing_are_causal_and_what_is_hidden_does_not_count() {
    let model = Toy::default().model();
    let mut cpu = load(&model, 4, 2);
    let causal = Text::random(20, 18);
    let mut runs = causal.clone();
    runs.mask = Mask::Runs((0..18).map(|row| vec![row + 1, 0, 0]).collect());
    let want = bits(&logits(&mut cpu, &causal, 18, &pages(0, 5)));
    assert!(bits(&logits(&mut cpu, &runs, 18, &pages(5, 5))) == want);

    // Two texts that differ in slots 2 and 3 only, which nobody after them sees.
    let hiding = |row: u32| if row < 4 { vec![row + 1] } else { vec![2, 2, row - 3] };
    let (mut one, mut other) = (causal.clone(), causal);
    (other.inputs[2], other.inputs[3]) = (Input::Token(TokenId(1)), Input::Token(TokenId(2)));
    (one.mask, other.mask) =
        (Mask::Runs((0..18).map(hiding).collect()), Mask::Runs((0..18).map(hiding).collect()));
    let (one, other) = (logits(&mut cpu, &one, 18, &pages(0, 5)), logits(&mut cpu, &other, 5, &pages(5, 5)));
    assert!(bits(&one[4..]) == bits(&other[4..]) && bits(&one[2..3]) != bits(&other[2..3]));
}

#[test]
fn embeds_go_out_after_the_last_layer_and_come_in_before_the_first() {
    let model = Toy::default().model();
    let mut cpu = load(&model, 4, 2);
    let text = Text::random(30, 6);
    let hidden = naive(&model, &text, &[]).hidden;
    let mut pass = text.pass(0..6, &pages(0, 2));
    let store = |row: u32, to: u32| Output::Embed { row, to: EmbedId(to) };
    pass.outputs = vec![store(5, 3), store(0, 7), store(2, 0), store(4, 0)]; // the last one to slot 0 stays
    let mut outcome = Outcome::default();
    cpu.run(&Batch { sequences: vec![pass] }, &mut outcome).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(outcome.produced, vec![vec![]]);

    let mut embeds = vec![Vec::new(); 8];
    (embeds[3], embeds[7], embeds[0]) = (hidden[5].clone(), hidden[0].clone(), hidden[4].clone());
    let mut text = Text::random(31, 5);
    for (row, embed) in [(0, 7), (2, 0), (3, 3)] {
        text.inputs[row] = Input::Embed(EmbedId(embed));
    }
    let want = naive(&model, &text, &embeds).logits;
    assert_close(&logits(&mut cpu, &text, 2, &pages(2, 2)), &want, "embeds as inputs, seed 31");
}

#[test]
fn outputs_come_in_the_order_asked_whatever_their_rows() {
    let model = Toy::default().model();
    let mut cpu = load(&model, 16, 2);
    let (long, short) = (Text::random(40, 50), Text::random(41, 3));
    let want = [logits(&mut cpu, &long, 50, &pages(0, 4)), logits(&mut cpu, &short, 3, &pages(4, 1))];
    // More rows than go through the head together, backwards, one of them twice, and a distribution between.
    let token = |row: u32, ordinal: u32, sampler| Output::Token { row, sampler, ordinal };
    let sampler = Sampler::TopKTopP { temperature: 0.9, k: 50, p: 0.95 };
    let mut passes = vec![long.pass(0..50, &pages(5, 4)), short.pass(0..3, &pages(9, 1))];
    passes[0].outputs = (0..50).map(|i| token(49 - i, i, sampler)).collect();
    passes[0].outputs.insert(10, Output::Distribution { row: 20, temperature: 0.5, top_k: 4 });
    passes[1].outputs = vec![token(2, 0, Sampler::Multinomial { temperature: 0.0 }), token(2, 1, sampler)];
    let mut outcome = Outcome::default();
    let batch = Batch { sequences: passes };
    cpu.run(&batch, &mut outcome).unwrap_or_else(|fault| panic!("{fault}"));

    let mut sampling = sample::Sampling::new(TOY_VOCAB);
    for ((sequence, logits), produced) in batch.sequences.iter().zip(&want).zip(&outcome.produced) {
        assert_eq!(produced.len(), sequence.outputs.len());
        for (output, produced) in sequence.outputs.iter().zip(produced) {
            let want = match *output {
                Output::Token { row, sampler, ordinal } => {
                    let random = sample::random(KEY, ordinal);
                    Produced::Token(sampling.token(sample::row_of(&logits[row as usize]), sampler, random))
                }
                Output::Distribution { row, temperature, top_k } => {
                    sampling.distribution(sample::row_of(&logits[row as usize]), temperature, top_k)
                }
                Output::Embed { .. } => unreachable!("none asked"),
            };
            assert_eq!(*produced, want, "{output:?}");
        }
    }
}

#[test]
fn a_copied_page_is_the_page_and_a_cleared_slot_is_zero() {
    let model = Toy::default().model();
    let mut cpu = load(&model, 4, 2);
    let text = Text::random(50, 10);
    let want = bits(&logits(&mut cpu, &text, 10, &pages(0, 3)));
    let fault = |fault: Fault| panic!("{fault}");
    cpu.copy_page(PageId(1), PageId(20)).unwrap_or_else(fault);
    logits(&mut cpu, &Text::random(51, 4), 4, &pages(1, 1)); // the original goes
    let moved = [PageId(0), PageId(20), PageId(2)];
    assert!(bits(&run(&mut cpu, vec![text.pass(9..10, &moved)])) == want[9..]);

    // Slots 2 and 3 of the page go, the others stay: a row that does not see the two finds nothing changed.
    let mut hiding = text.clone();
    hiding.mask =
        Mask::Runs((0..10).map(|row| if row < 9 { vec![row + 1] } else { vec![6, 2, 2] }).collect());
    let last = |cpu: &mut Cpu, text: &Text| bits(&run(cpu, vec![text.pass(9..10, &moved)]));
    let hidden = last(&mut cpu, &hiding);
    cpu.clear_page(PageId(20), 4).unwrap_or_else(fault); // nothing is left to clear
    assert!(last(&mut cpu, &text) == want[9..]);
    cpu.clear_page(PageId(20), 2).unwrap_or_else(fault);
    assert!(last(&mut cpu, &hiding) == hidden && last(&mut cpu, &text) != want[9..]);

    // Whatever the slots held, cleared they are alike.
    logits(&mut cpu, &Text::random(52, 4), 4, &pages(30, 1));
    for page in [20, 30] {
        cpu.clear_page(PageId(page), 0).unwrap_or_else(fault);
    }
    let other = [PageId(0), PageId(30), PageId(2)];
    assert!(bits(&run(&mut cpu, vec![text.pass(9..10, &other)])) == last(&mut cpu, &text));
}

/// The story: the zeros that fill up a row of the stream became NaN with a row that was not finite, and stayed so for
/// whoever had its place in the batches after.
#[test]
fn a_row_that_is_not_finite_leaves_nothing_to_later_batches() {
    let odd = Toy { heads: 3, kv_heads: 1, head_dim: 10, ffn: 37, tied_head: false, ..Toy::default() };
    let mut file = odd.writer();
    let embedding =
        file.tensors.iter_mut().find(|(name, ..)| name == "token_embd.weight").expect("a toy has it");
    let broken = 7;
    embedding.3[broken * 4 * 30..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let gguf = Gguf::from_bytes(file.bytes()).expect("values are not checked");
    let model = Arc::new(Model::read(gguf, "toy", None).expect("a toy is a llama"));
    let text = Text::of([1, 2, 3]);
    for way in WAYS {
        let want = bits(&logits(&mut load_as(way, &model, 16, 1), &text, 3, &pages(0, 1)));
        let mut cpu = load_as(way, &model, 16, 1);
        let not_finite = logits(&mut cpu, &Text::of([broken; 3]), 3, &pages(1, 1));
        assert!(not_finite.iter().flatten().any(|logit| logit.is_nan()), "{way:?}: the token does no harm");
        assert!(bits(&logits(&mut cpu, &text, 3, &pages(0, 1))) == want, "{way:?}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let model = Toy::default().model();
    let zero = CpuOptions {
        pages: Some(0),
        page_size: 16,
        embeds: 0,
        batch_tokens: 4,
        kv: KvFormat::F16,
        exact: false,
    };
    let refused =
        |options| Cpu::load(model.clone(), options, Crew::threads(1)).err().map(|error| error.to_string());
    assert!(refused(zero).is_some_and(|said| said.contains("pages is 0")));
    let vast = CpuOptions { pages: Some(u32::MAX), page_size: u32::MAX, ..zero };
    assert!(refused(vast).is_some_and(|said| said.contains("lower kv_tokens")));

    let mut cpu = load(&model, 16, 1);
    let batch = Batch { sequences: vec![Text::random(60, 65).pass(0..65, &pages(0, 5))] };
    assert!(cpu.run(&batch, &mut Outcome::default()).is_err_and(|fault| fault.0.contains("65 rows")));
    let mut outcome = Outcome { produced: vec![vec![Produced::Token(TokenId(1))]] };
    assert!(cpu.run(&Batch::default(), &mut outcome).is_ok() && outcome.produced.is_empty());
}
