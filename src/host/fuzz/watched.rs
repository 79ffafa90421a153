//! The CPU backend with a window: which pages a guest's pass was run on, and what they hold now.
//!
//! Owns: the backend of the house that is fuzzed, and what was last seen of each guest. Never: what should be there.

use crate::backend::cpu::{Cpu, CpuOptions, KvFormat};
use crate::backend::crew::Crew;
use crate::backend::{Backend, Batch, Fault, Info, Outcome, PageId};
use crate::model::Model;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

pub const PAGES: u32 = 64;
pub const PAGE: u32 = 4;
pub const EMBEDS: u32 = 16;
/// Less than a long pass has: some run in chunks.
const BATCH_TOKENS: u32 = 16;

/// What the engine's thread runs, and the test looks into.
#[derive(Clone)]
pub struct Watched {
    info: Info,
    inside: Arc<Mutex<Inside>>,
}

struct Inside {
    cpu: Cpu,
    /// The pages of each guest's last pass. A guest is known by the seed of its draws.
    pages: HashMap<u64, Vec<PageId>>,
    shared_batches: usize,
}

impl Watched {
    pub fn new(model: &Arc<Model>) -> Watched {
        let options = CpuOptions {
            pages: Some(PAGES),
            page_size: PAGE,
            embeds: EMBEDS,
            batch_tokens: BATCH_TOKENS,
            kv: KvFormat::default(),
            exact: false,
        };
        let cpu = Cpu::load(model.clone(), options, Crew::threads(1)).expect("a toy is small");
        let info = cpu.info().clone();
        Watched {
            info,
            inside: Arc::new(Mutex::new(Inside { cpu, pages: HashMap::new(), shared_batches: 0 })),
        }
    }

    /// Where the last pass of the guest with this seed ran: its pages, in the order it named them.
    pub fn pages_of(&self, seed: u64) -> Vec<PageId> {
        self.inside().pages.get(&seed).cloned().unwrap_or_default()
    }

    /// Of the first slots. What lies behind those that were written is nobody's: it is cleared once somebody looks.
    pub fn checksum(&self, page: PageId, slots: u32) -> blake3::Hash {
        self.inside().cpu.page_checksum(page, slots)
    }

    /// Batches in which passes of several guests ran.
    pub fn shared_batches(&self) -> usize {
        self.inside().shared_batches
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no panic holds it")
    }
}

impl Backend for Watched {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let mut inside = self.inside();
        for sequence in &batch.sequences {
            inside.pages.insert(sequence.draw.seed, sequence.pages.clone());
        }
        let first = batch.sequences.first().map(|sequence| sequence.draw.seed);
        let shared = batch.sequences.iter().any(|sequence| Some(sequence.draw.seed) != first);
        inside.shared_batches += usize::from(shared);
        inside.cpu.submit(batch)
    }

    fn collect(&mut self, outcome: &mut Outcome, pause: bool) -> Result<bool, Fault> {
        self.inside().cpu.collect(outcome, pause)
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault> {
        self.inside().cpu.copy_page(from, to)
    }

    fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault> {
        self.inside().cpu.clear_page(page, from)
    }
}
