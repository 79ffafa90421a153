//! A decoding step of the CPU backend takes no memory: what it needs was taken when the model was loaded, or by the
//! first steps of a batch of its size.
//!
//! Owns: the count of every allocation of the process while steps run. Never: what a step computes.

#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which a part is used
mod gguf;
#[path = "support/models.rs"]
#[allow(dead_code)] // of which a part is used
mod models;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tartlet::backend::cpu::{Cpu, CpuOptions, KvFormat};
use tartlet::backend::crew::Crew;
use tartlet::backend::{
    Backend, Batch, DrawKey, Input, Mask, Outcome, Output, PageId, Sampler, Sequence, TokenId,
};
use tartlet::model::Model;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const PAGE_SIZE: u32 = 16;
/// Slots of a sequence in the end: two stretches of attention, which ranks attend apart.
const LEN: u32 = 288;
/// Steps after which nothing is new to the backend.
const FIRST: u32 = 272;

/// Sequence `number`, its row in slot `slot`: the first draws, the second takes the best, the third wants both of them.
fn row(number: u32, slot: u32) -> Sequence {
    let pages = LEN.div_ceil(PAGE_SIZE);
    let row = Output::Token { row: 0, sampler: Sampler::TopP { temperature: 1.0, p: 0.9 }, ordinal: 0 };
    let best = Output::Token { row: 0, sampler: Sampler::TopK { temperature: 0.0, k: 1 }, ordinal: 1 };
    Sequence {
        pages: (number * pages..(number + 1) * pages).map(PageId).collect(),
        len: slot + 1,
        inputs: vec![Input::Token(TokenId((slot + number) % 8))],
        positions: vec![slot],
        mask: Mask::Causal,
        outputs: match number {
            0 => vec![row],
            1 => vec![best],
            _ => vec![row, best],
        },
        draw: DrawKey { seed: 1, queue: number, pass: u64::from(slot) },
    }
}

#[test]
fn a_step_of_decoding_takes_no_memory() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("steps-{}.gguf", std::process::id()));
    std::fs::write(&path, models::bytelevel()).expect("the folder can be written to");
    let model = Arc::new(Model::open(&path, None, None).expect("a model"));
    std::fs::remove_file(&path).expect("it is there");
    for (threads, kv, exact) in
        [(1, KvFormat::F16, false), (2, KvFormat::Q8, false), (2, KvFormat::F32, true)]
    {
        let options =
            CpuOptions { pages: Some(128), page_size: PAGE_SIZE, embeds: 0, batch_tokens: 32, kv, exact };
        let mut cpu = Cpu::load(model.clone(), options, Crew::threads(threads)).expect("a backend");
        let mut outcome = Outcome::default();
        let mut taken = 0;
        for slot in 0..LEN {
            let batch = Batch { sequences: (0..3).map(|number| row(number, slot)).collect() };
            let before = ALLOCATIONS.load(Relaxed);
            cpu.run(&batch, &mut outcome).expect("a step");
            if slot >= FIRST {
                taken += ALLOCATIONS.load(Relaxed) - before;
            }
            // As the engine takes what a step gave.
            let given: Vec<usize> = outcome.produced.iter_mut().map(|made| made.drain(..).count()).collect();
            assert_eq!(given, [1, 1, 2]);
        }
        assert_eq!(taken, 0, "allocations in {} steps, {threads} threads, {kv:?}", LEN - FIRST);
    }
}
