//! The CUDA backend and the CPU backend, batch for batch, on the stand-in driver: each gives what its twin gives, to the bit,
//! whatever a batch is made of; and both give the same tokens wherever one leads.
//!
//! One test: the stand-in driver is one device of one process.

mod support;

#[path = "support/decoders.rs"]
mod decoders;
#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which a part is used
mod gguf;
#[path = "support/sums.rs"]
#[allow(dead_code)] // of which a part is used
mod sums;
#[path = "support/twin/mod.rs"]
mod twin;

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
use twin::{Side, Twin};

const PAGE: usize = 16;
const PAGES: u32 = 64;
/// A probability that has all the bits of an f32: below it the fixed point of the sums shows.
const LIKELY: f32 = 1e-4;
const GREEDY: Sampler = Sampler::Multinomial { temperature: 0.0 };

/// A sequence as the tests know it: its pages and all that is in them.
struct Chat {
    pages: Vec<PageId>,
    len: usize,
    last: TokenId,
}

/// Both backends and their twins, given the same.
struct Both {
    cpu: Cpu,
    cuda: Cuda,
    twins: Twins,
    tally: Tally,
    name: &'static str,
    /// Of each page the slots that have been written since the start, the first ones.
    written: Vec<u32>,
}

struct Twins {
    cpu: Twin,
    cuda: Twin,
}

/// What the backends made of the same batches.
#[derive(Default)]
struct Tally {
    /// Greedy tokens, and those in which the backends differ.
    greedy: usize,
    greedy_apart: usize,
    /// The same of tokens that were drawn.
    drawn: usize,
    drawn_apart: usize,
    /// How far the backends' logarithms of a likely token's probability lie apart at most.
    apart: f32,
    /// How far the best token leads at least, in the same measure.
    lead: Option<f32>,
    /// Slots that batches found written and left as they were.
    kept: u64,
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
        let twin = |side| Twin::new(side, &model, cuda.info());
        let twins = Twins { cpu: twin(Side::Processor), cuda: twin(Side::Gpu) };
        Both {
            cpu,
            cuda,
            twins,
            tally: Tally::default(),
            name: decoder.architecture,
            written: vec![0; PAGES as usize],
        }
    }

    /// Runs a batch on all: each backend makes what its twin makes, every token and every probability.
    fn run(&mut self, batch: &Batch) -> Vec<Vec<Produced>> {
        self.run_all(std::slice::from_ref(batch))
    }

    /// Some batches, all under way on the GPU together; what the last one makes. What was written before the slots that they
    /// write stays as it is.
    fn run_all(&mut self, batches: &[Batch]) -> Vec<Vec<Produced>> {
        // Of each page, how many of its slots have been written, and stay.
        let mut kept = self.written.clone();
        for (page, slot) in batches.iter().flat_map(slots) {
            kept[page] = kept[page].min(slot);
            self.written[page] = self.written[page].max(slot + 1);
        }
        self.tally.kept += kept.iter().map(|slots| u64::from(*slots)).sum::<u64>();
        let before = self.checksums(&kept);
        let last = self.made(batches);
        for (page, (before, after)) in before.iter().zip(self.checksums(&kept)).enumerate() {
            let (name, slots) = (self.name, kept[page]);
            assert_eq!(*before, after, "{name}: the first {slots} slots of page {page} have changed");
        }
        last
    }

    /// Of each page what its first slots hold, on the processor and on the GPU.
    fn checksums(&mut self, slots: &[u32]) -> Vec<[blake3::Hash; 2]> {
        let of = |(page, &slots): (u32, &u32)| {
            let on_gpu = self.cuda.page_checksum(PageId(page), slots);
            [self.cpu.page_checksum(PageId(page), slots), on_gpu.unwrap_or_else(|fault| panic!("{fault}"))]
        };
        (0..).zip(slots).map(of).collect()
    }

    fn made(&mut self, batches: &[Batch]) -> Vec<Vec<Produced>> {
        for batch in batches {
            self.cuda.submit(batch).unwrap_or_else(|fault| panic!("{fault}"));
        }
        let mut last = Vec::new();
        for batch in batches {
            let collect = |backend: &mut dyn Backend| {
                let mut outcome = Outcome::default();
                while !backend.collect(&mut outcome, true).unwrap_or_else(|fault| panic!("{fault}")) {}
                outcome.produced
            };
            let run = |backend: &mut dyn Backend| {
                backend.submit(batch).unwrap_or_else(|fault| panic!("{fault}"));
                collect(backend)
            };
            let on_gpu = collect(&mut self.cuda);
            assert_eq!(on_gpu, run(&mut self.twins.cuda), "{}: the GPU, beside its twin", self.name);
            let on_cpu = run(&mut self.cpu);
            // A processor without vectors that we know rounds in an order of its own.
            if !self.cpu.info().device.contains(", plain") {
                assert_eq!(on_cpu, run(&mut self.twins.cpu), "{}: the processor, beside its twin", self.name);
            }
            for ((sequence, cpu), gpu) in batch.sequences.iter().zip(&on_cpu).zip(&on_gpu) {
                let yields = |output: &&Output| !matches!(output, Output::Embed { .. });
                let outputs = sequence.outputs.iter().filter(yields).zip(cpu.iter().zip(gpu));
                outputs.for_each(|(output, (cpu, gpu))| self.tally.note(output, cpu, gpu));
            }
            last = on_cpu;
        }
        last
    }

    fn each(&mut self, work: impl Fn(&mut dyn Backend)) {
        let Both { cpu, cuda, twins, .. } = self;
        let all: [&mut dyn Backend; 4] = [cpu, cuda, &mut twins.cpu, &mut twins.cuda];
        all.into_iter().for_each(work);
    }
}

impl Tally {
    fn note(&mut self, output: &Output, cpu: &Produced, gpu: &Produced) {
        match (output, cpu, gpu) {
            (Output::Token { sampler, .. }, ..) => {
                let (all, apart) = match *sampler == GREEDY {
                    true => (&mut self.greedy, &mut self.greedy_apart),
                    false => (&mut self.drawn, &mut self.drawn_apart),
                };
                *all += 1;
                *apart += usize::from(cpu != gpu);
            }
            (
                Output::Distribution { temperature: 1.0, .. },
                Produced::Distribution { ids, probs },
                Produced::Distribution { ids: gpu_ids, probs: gpu_probs },
            ) => {
                let of_gpu = |id: &TokenId| gpu_ids.iter().position(|own| own == id);
                for (id, prob) in ids.iter().zip(probs).filter(|(_, prob)| **prob > LIKELY) {
                    let Some(at) = of_gpu(id) else { continue };
                    self.apart = self.apart.max((prob.ln() - gpu_probs[at].ln()).abs());
                }
                let lead = probs[0].ln() - probs[1].max(f32::MIN_POSITIVE).ln();
                self.lead = Some(self.lead.map_or(lead, |least| least.min(lead)));
            }
            _ => {}
        }
    }
}

/// The slots that a batch writes: page, slot in it.
fn slots(batch: &Batch) -> impl Iterator<Item = (usize, u32)> {
    batch.sequences.iter().flat_map(|sequence| {
        let first = sequence.len as usize - sequence.inputs.len();
        let place = |slot: usize| (sequence.pages[slot / PAGE].0 as usize, (slot % PAGE) as u32);
        (first..sequence.len as usize).map(place)
    })
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
fn prompts_and_decoding(both: &mut Both, random: &mut Random, decoding: &[usize]) -> Vec<Chat> {
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
    for count in decoding {
        let sequences = chats[..*count].iter_mut().map(|chat| {
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
    let mut chunk = |length: usize| {
        let inputs = (0..length).map(|_| Input::Token(TokenId(random.below(256) as u32))).collect();
        let chunk = sequence(&mut chat, inputs, vec![token(length - 1, GREEDY)]);
        Batch { sequences: vec![chunk] }
    };
    // The second of two is written and launched while the first runs.
    for lengths in [&[60, 60][..], &[60, 60], &[40]] {
        let chunks: Vec<Batch> = lengths.iter().map(|length| chunk(*length)).collect();
        both.run_all(&chunks);
    }
    for _ in 0..2 {
        let next = sequence(&mut chat, vec![Input::Token(TokenId(66))], vec![token(0, GREEDY)]);
        both.run(&Batch { sequences: vec![next] });
    }
}

/// A prompt has the same probabilities, to the bit, however it is cut: rows that go one by one, rows
/// that share pages, rows whose launches are fused.
fn chunks_do_not_matter(both: &mut Both, random: &mut Random) {
    let prompt: Vec<Input> = (0..40).map(|_| Input::Token(TokenId(random.below(256) as u32))).collect();
    let mut cut = |lengths: &[usize]| {
        let mut chat = chats(1, 4, random).remove(0);
        let mut made = Outcome::default();
        for &length in lengths {
            let inputs = prompt[chat.len..][..length].to_vec();
            let all = Output::Distribution { row: length as u32 - 1, temperature: 1.0, top_k: 100 };
            let chunk = sequence(&mut chat, inputs, vec![all]);
            both.cuda
                .run(&Batch { sequences: vec![chunk] }, &mut made)
                .unwrap_or_else(|fault| panic!("{fault}"));
        }
        made.produced
    };
    let whole = cut(&[40]);
    for lengths in [&[8, 9, 3, 20][..], &[23, 17], &[4, 7, 1, 28], &[1, 1, 1, 1, 36]] {
        assert_eq!(cut(lengths), whole, "{lengths:?}");
    }
}

#[test]
fn the_gpu_gives_what_the_processor_gives() {
    for decoder in FAMILIES {
        let mut random = Random::new(decoder.seed);
        let mut both = Both::load(decoder);
        let mut chats = prompts_and_decoding(&mut both, &mut random, &[1, 1, 3, 8, 10, 10, 1]);
        all_that_a_batch_can_ask(&mut both, &mut chats, &mut random);
        pages_are_copied_and_cleared(&mut both, &mut chats);
        chunks_do_not_matter(&mut both, &mut Random::new(decoder.seed + 100));
        if decoder.architecture == "llama" {
            a_long_sequence(&mut both, &mut random);
        }
        let Tally { greedy, greedy_apart, drawn, drawn_apart, apart, kept, .. } = both.tally;
        assert!(
            kept > 1000,
            "{}: {kept} slots were looked at that others have written",
            decoder.architecture
        );
        println!(
            "{}: {greedy_apart} of {greedy} greedy tokens and {drawn_apart} of {drawn} drawn ones are other ones on the GPU; \
             logits are {apart} apart at most",
            decoder.architecture
        );
    }
    for decoder in FAMILIES {
        let mut both = Both::load(Decoder { leads: true, ..decoder });
        prompts_and_decoding(&mut both, &mut Random::new(decoder.seed), &[1, 3, 10]);
        let Tally { greedy, greedy_apart, apart, lead, .. } = both.tally;
        let lead = lead.expect("there were distributions");
        println!(
            "{}: the best of {greedy} tokens lead by {lead}, logits are {apart} apart",
            decoder.architecture
        );
        assert!(lead > 2.0 * apart, "{}: these do not lead", decoder.architecture);
        assert_eq!(greedy_apart, 0, "{}: of {greedy} greedy tokens", decoder.architecture);
    }
}
