//! The CUDA backend beside the CPU backend, batch for batch, on the stand-in driver: the same tokens of each family, whatever
//! a batch is made of.
//!
//! One test: the stand-in driver is one device of one process.

mod support;

#[path = "support/decoders.rs"]
mod decoders;
#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which a part is used
mod gguf;

use decoders::{Decoder, FAMILIES};
use gguf::Random;
use std::sync::Arc;
use support::Folder;
use support::stand_in::stand_in;
use tartlet::backend::cpu::{Cpu, CpuOptions, KvFormat};
use tartlet::backend::crew::Crew;
use tartlet::backend::cuda::{Cuda, CudaOptions};
use tartlet::backend::{
    Backend, Batch, DrawKey, EmbedId, Input, Mask, Outcome, Output, PageId, Produced, Sampler, Sequence,
    TokenId,
};
use tartlet::model::Model;

const PAGE: usize = 16;
const PAGES: u32 = 64;
/// How far logits may lie apart: they are about 1, and activations have 7 bits.
const CLOSE: f32 = 0.03;
const GREEDY: Sampler = Sampler::Multinomial { temperature: 0.0 };

/// A sequence as the tests know it: its pages and all that is in them.
struct Chat {
    pages: Vec<PageId>,
    len: usize,
    last: TokenId,
}

/// Both backends, given the same.
struct Both {
    cpu: Cpu,
    cuda: Cuda,
    /// Draws of the two that differ, and all there were; the same of greedy tokens.
    draws: (usize, usize),
    greedy: (usize, usize),
    name: &'static str,
}

impl Both {
    fn load(decoder: Decoder) -> Both {
        let folder = Folder::new();
        let path = folder.path("model.gguf");
        std::fs::write(&path, decoder.bytes()).expect("written");
        let model = Arc::new(Model::open(&path, None, None).unwrap_or_else(|error| panic!("{error}")));
        let options = CpuOptions {
            pages: Some(PAGES),
            page_size: PAGE as u32,
            embeds: 8,
            batch_tokens: 64,
            kv: KvFormat::F16,
            exact: false,
        };
        let crew = Crew::threads(1);
        let cpu = Cpu::load(model.clone(), options, crew).unwrap_or_else(|error| panic!("{error}"));
        let options = CudaOptions {
            libcuda: Some(stand_in().to_owned()),
            kv_tokens: Some(PAGES * PAGE as u32),
            page_size: PAGE as u32,
            embeds: 8,
            batch_tokens: 64,
            kv: KvFormat::F16,
        };
        let cuda =
            Cuda::load(&model, &options).unwrap_or_else(|error| panic!("{}: {error}", decoder.architecture));
        Both { cpu, cuda, draws: (0, 0), greedy: (0, 0), name: decoder.architecture }
    }

    /// Runs a batch on both: distributions are as good as equal, a greedy token's logit is as good as the best; what is drawn
    /// is compared at the end.
    fn run(&mut self, batch: &Batch) -> Vec<Vec<Produced>> {
        let (mut want, mut got) = (Outcome::default(), Outcome::default());
        let rows: Vec<usize> = (0..batch.sequences.iter().map(|it| it.inputs.len()).sum()).collect();
        let logits =
            self.cpu.run_with_logits(batch, &rows, &mut want).unwrap_or_else(|fault| panic!("{fault}"));
        let mut first = 0;
        self.cuda.run(batch, &mut got).unwrap_or_else(|fault| panic!("{}: {fault}", self.name));
        assert_eq!(want.produced.len(), got.produced.len());
        for ((sequence, want), got) in batch.sequences.iter().zip(&want.produced).zip(&got.produced) {
            let outputs = sequence.outputs.iter().filter(|output| !matches!(output, Output::Embed { .. }));
            assert_eq!(want.len(), got.len());
            for ((output, want), got) in outputs.zip(want).zip(got) {
                match output {
                    Output::Token { sampler, .. } if *sampler != GREEDY => {
                        self.draws.0 += usize::from(want != got);
                        self.draws.1 += 1;
                    }
                    Output::Token { row, .. } => {
                        let (Produced::Token(got), Produced::Token(want)) = (got, want) else {
                            panic!("tokens")
                        };
                        let logits = &logits[first + *row as usize];
                        let [got, want] = [got, want].map(|token| logits[token.0 as usize]);
                        assert!(want - got <= CLOSE, "{}, {} slots: {got}, {want}", self.name, sequence.len);
                        self.greedy.0 += usize::from(want != got);
                        self.greedy.1 += 1;
                    }
                    _ => alike(self.name, got, want),
                }
            }
            first += sequence.inputs.len();
        }
        want.produced
    }

    fn each(&mut self, work: impl Fn(&mut dyn Backend)) {
        work(&mut self.cpu);
        work(&mut self.cuda);
    }
}

/// Probabilities agree to what the order of sums leaves open; so does the order, where they are not as good as equal.
fn alike(name: &str, got: &Produced, want: &Produced) {
    let (Produced::Distribution { ids: got_ids, probs: got }, Produced::Distribution { ids, probs }) =
        (got, want)
    else {
        panic!("{name}: no distributions: {got:?}, {want:?}");
    };
    assert_eq!(got.len(), probs.len(), "{name}");
    for (place, (got, want)) in got.iter().zip(probs).enumerate() {
        let close = (got - want).abs() <= 2.0 * CLOSE * want + 1e-7;
        assert!(close, "{name}: place {place} has {got}, not {want}");
    }
    let common = got_ids.iter().filter(|id| ids.contains(id)).count();
    assert!(common + 2 >= ids.len(), "{name}: {got_ids:?}, not {ids:?}");
}

/// A sequence of new rows at its end.
fn sequence(chat: &mut Chat, inputs: Vec<Input>, outputs: Vec<Output>) -> Sequence {
    let first = chat.len;
    chat.len += inputs.len();
    Sequence {
        pages: chat.pages[..chat.len.div_ceil(PAGE)].to_vec(),
        len: chat.len as u32,
        positions: (first as u32..chat.len as u32).collect(),
        mask: Mask::Causal,
        outputs,
        draw: DrawKey { seed: 7, queue: 1, pass: first as u64 },
        inputs,
    }
}

fn token(row: usize, sampler: Sampler) -> Output {
    Output::Token { row: row as u32, sampler, ordinal: row as u32 }
}

/// Pages in no order at all.
fn chats(count: usize, pages: usize, random: &mut Random) -> Vec<Chat> {
    let mut free: Vec<u32> = (0..PAGES).collect();
    let mut page = || PageId(free.swap_remove(random.below(free.len())));
    (0..count)
        .map(|_| Chat { pages: (0..pages).map(|_| page()).collect(), len: 0, last: TokenId(0) })
        .collect()
}

/// Prompts of several lengths in one batch, then decoding: one, some, and more than a vector product takes.
fn prompts_and_decoding(both: &mut Both, random: &mut Random) -> Vec<Chat> {
    let mut chats = chats(10, 4, random);
    for (part, lengths) in [[1, 7, 16, 17, 20], [2, 3, 5, 8, 30]].into_iter().enumerate() {
        let prompts = chats[part * 5..][..5].iter_mut().zip(lengths).map(|(chat, length)| {
            let tokens = (0..length).map(|_| Input::Token(TokenId(random.below(256) as u32)));
            let row = length - 1;
            let likely = Output::Distribution { row: row as u32, temperature: 1.0, top_k: 5 };
            sequence(chat, tokens.collect(), vec![likely, token(row, GREEDY)])
        });
        let batch = Batch { sequences: prompts.collect() };
        for (chat, made) in chats[part * 5..].iter_mut().zip(both.run(&batch)) {
            let Produced::Token(last) = made[1] else { panic!("a token") };
            chat.last = last;
        }
    }
    for count in [1, 1, 3, 8, 10, 10, 1] {
        let sequences = chats[..count].iter_mut().map(|chat| {
            let input = Input::Token(chat.last);
            sequence(chat, vec![input], vec![token(0, GREEDY)])
        });
        let batch = Batch { sequences: sequences.collect() };
        for (chat, made) in chats.iter_mut().zip(both.run(&batch)) {
            let Produced::Token(last) = made[0] else { panic!("a token") };
            chat.last = last;
        }
    }
    chats
}

/// Rows behind masks, several things wanted of one row, hidden states stored and put in.
fn all_that_a_batch_can_ask(both: &mut Both, chats: &mut [Chat], random: &mut Random) {
    let chat = &mut chats[4];
    let (first, rows) = (chat.len, 5);
    let inputs = (0..rows).map(|_| Input::Token(TokenId(random.below(256) as u32))).collect();
    let distribution = |row, temperature, top_k| Output::Distribution { row, temperature, top_k };
    let outputs = vec![
        distribution(4, 1.0, 10),
        token(0, GREEDY),
        Output::Embed { row: 2, to: EmbedId(3) },
        distribution(1, 1.0, 1000),
        token(4, GREEDY),
        Output::Embed { row: 4, to: EmbedId(3) },
        Output::Embed { row: 1, to: EmbedId(5) },
        distribution(2, 0.0, 3),
    ];
    let mut with_mask = sequence(chat, inputs, outputs);
    let run = |row: usize| -> Vec<u32> {
        let len = (first + row + 1) as u32;
        match row {
            0 => vec![len],
            1 => vec![0, 3, len - 3],
            2 => vec![5, 9, len - 14],
            3 => vec![1, len - 2, 1],
            _ => vec![2, 1, 4, 0, len - 7],
        }
    };
    with_mask.mask = Mask::Runs((0..rows).map(run).collect());
    with_mask.positions = vec![3, 70_000, 5, 5, 0];
    both.run(&Batch { sequences: vec![with_mask] });

    let stored = [3, 5].map(|slot| Input::Embed(EmbedId(slot)));
    let chat = &mut chats[1];
    let again = sequence(chat, stored.into(), vec![token(0, GREEDY), token(1, GREEDY)]);
    both.run(&Batch { sequences: vec![again] });

    // As many things wanted as go through the head in two goes.
    let chat = &mut chats[2];
    let inputs = (0..3).map(|_| Input::Token(TokenId(random.below(256) as u32))).collect();
    let samplers = [
        GREEDY,
        Sampler::Multinomial { temperature: 1.0 },
        Sampler::TopK { temperature: 0.9, k: 20 },
        Sampler::TopP { temperature: 1.1, p: 0.8 },
        Sampler::MinP { temperature: 0.8, p: 0.1 },
        Sampler::TopKTopP { temperature: 1.2, k: 30, p: 0.9 },
    ];
    let outputs = (0..70u32).map(|ordinal| {
        let sampler = samplers[ordinal as usize % samplers.len()];
        Output::Token { row: ordinal % 3, sampler, ordinal }
    });
    let many = sequence(chat, inputs, outputs.collect());
    both.run(&Batch { sequences: vec![many] });
}

/// A copy has what its original has; what was cleared is zeros.
fn pages_are_copied_and_cleared(both: &mut Both, chats: &mut [Chat]) {
    let free = (0..PAGES).map(PageId).find(|page| chats.iter().all(|chat| !chat.pages.contains(page)));
    let free = free.expect("not all are taken");
    let whole = chats[3].pages[0];
    both.each(|backend| {
        backend.copy_page(whole, free).expect("copied");
        backend.clear_page(free, 11).expect("cleared");
    });
    let chat = &mut chats[3];
    chat.pages[0] = free;
    let next = sequence(chat, vec![Input::Token(TokenId(65))], vec![token(0, GREEDY)]);
    both.run(&Batch { sequences: vec![next] });
}

/// More slots than a split has, so that several are joined.
fn a_long_sequence(both: &mut Both, random: &mut Random) {
    let mut chat = chats(1, 40, random).remove(0);
    for length in [60, 60, 60, 60, 40] {
        let inputs = (0..length).map(|_| Input::Token(TokenId(random.below(256) as u32))).collect();
        let chunk = sequence(&mut chat, inputs, vec![token(length - 1, GREEDY)]);
        both.run(&Batch { sequences: vec![chunk] });
    }
    for _ in 0..2 {
        let next = sequence(&mut chat, vec![Input::Token(TokenId(66))], vec![token(0, GREEDY)]);
        both.run(&Batch { sequences: vec![next] });
    }
}

/// A row has the same bits in a prompt of many rows, in one of few and alone: whatever launches it goes through.
fn rows_do_not_feel_how_they_come(both: &mut Both, random: &mut Random) {
    let tokens: Vec<TokenId> = (0..12).map(|_| TokenId(random.below(256) as u32)).collect();
    let mut ends = Vec::new();
    for lengths in [&[12][..], &[9, 3], &[4, 7, 1], &[1; 12]] {
        let mut chat = chats(1, 4, random).remove(0);
        let mut made = Vec::new();
        for &length in lengths {
            let inputs = tokens[chat.len..][..length].iter().map(|token| Input::Token(*token)).collect();
            let all = Output::Distribution { row: length as u32 - 1, temperature: 1.0, top_k: 320 };
            let part = sequence(&mut chat, inputs, vec![all]);
            let mut outcome = Outcome::default();
            let batch = Batch { sequences: vec![part] };
            both.cuda.run(&batch, &mut outcome).unwrap_or_else(|fault| panic!("{}: {fault}", both.name));
            made = outcome.produced;
        }
        ends.push(made);
    }
    assert!(ends.iter().all(|end| *end == ends[0]), "{}: {ends:?}", both.name);
}

#[test]
fn the_gpu_gives_what_the_processor_gives() {
    let (mut greedy, mut draws) = ((0, 0), (0, 0));
    for decoder in FAMILIES {
        let mut random = Random::new(decoder.seed);
        let mut both = Both::load(decoder);
        let mut chats = prompts_and_decoding(&mut both, &mut random);
        all_that_a_batch_can_ask(&mut both, &mut chats, &mut random);
        pages_are_copied_and_cleared(&mut both, &mut chats);
        rows_do_not_feel_how_they_come(&mut both, &mut random);
        if decoder.architecture == "llama" {
            a_long_sequence(&mut both, &mut random);
        }
        for (all, (other, of)) in [&mut greedy, &mut draws].into_iter().zip([both.greedy, both.draws]) {
            *all = (all.0 + other, all.1 + of);
        }
    }
    assert!(greedy.0 * 50 <= greedy.1, "{} of {} greedy tokens differ", greedy.0, greedy.1);
    // From the same logits draws are the same, as the self-test asks; from these a neighbour may be drawn.
    assert!(draws.0 * 6 <= draws.1, "{} of {} draws differ", draws.0, draws.1);
}
