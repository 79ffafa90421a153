//! The CPU backend: every vector instruction of the machine, one order for every sum.
//!
//! Owns: K/V pages, embedding slots and scratch of one model; a batch is one call of the crew. Never: which pages
//! belong to whom.
//!
//! ```text
//! Cpu ── weights.rs   which matrix where           └ packed.rs     sixteen rows interleaved, once in memory
//!     ── pages.rs     K/V                          ── scratch.rs   activations, each rank's room
//!     ── forward.rs   the phases of a batch        ── outputs.rs   head, sampling, embeds
//!        ├ portions.rs  who does what of a phase
//!        ├ tiles.rs   rows of the batch, quantised └ kernels.rs    products, in one order
//!        ├ attend.rs  who attends what             └ attention.rs  softmax and sums over pages
//!        └ vector.rs  norms, rotations, activations
//!     lanes/          the machine's vectors under all of them     shared.rs  memory that ranks write together
//!     memory.rs       how many pages there is room for     check.rs    `tartlet selftest --backend cpu`
//!     plain.rs        its steps one at a time, for what is compared with them
//! ```
//! The instruction set is chosen when the model is loaded ([`Path`]). [`CpuOptions::exact`] makes all weights f32
//! and plain Rust their kernels: slow, and what everything else is measured against.

mod attend;
mod attention;
mod check;
mod forward;
mod kernels;
mod lanes;
mod memory;
mod outputs;
mod packed;
mod pages;
pub mod plain;
mod portions;
#[cfg(test)]
mod reference;
pub mod roof;
mod scratch;
mod shared;
#[cfg(test)]
mod tests;
mod tiles;
mod vector;
mod weights;

use super::crew::Crew;
use super::{Backend, Batch, Fault, Info, Outcome, PageId};
use crate::limits::{KV_SHARE, KV_TOKENS_FLOOR};
use crate::model::Model;
use crate::model::shape::Shape;
use attend::Plan;
pub use check::check;
use forward::{Row, Step};
use lanes::{Lanes, Path};
pub use memory::free as free_memory;
use outputs::Wants;
pub use pages::KvFormat;
use pages::Pages;
use scratch::Scratch;
use shared::Plane;
use std::fmt;
use std::sync::Arc;
use weights::Weights;

/// The sizes that the operator chooses.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// KV pages in the pool; [`Cpu::page_bytes`] says what one takes. None: as many as a share of the memory holds that
    /// is free once the weights are there, which the log then says.
    pub pages: Option<u32>,
    /// Tokens per KV page.
    pub page_size: u32,
    /// Embedding slots.
    pub embeds: u32,
    /// Rows in one batch at most.
    pub batch_tokens: u32,
    /// How precisely keys and values are kept.
    pub kv: KvFormat,
    /// Exact weights as f32 (four bytes each), plain Rust instead of vector instructions.
    pub exact: bool,
}

/// Why a model cannot be loaded. `Display` is a sentence for the operator.
#[derive(Debug)]
pub enum CpuError {
    /// One of [`CpuOptions`] is 0, by name.
    Zero(&'static str),
    /// The system has no room for so many KV pages.
    TooLarge(u32),
    /// The system has no room for the weights: bytes that they take, and that are free where that is known to be fewer.
    Weights { packed: usize, free: Option<u64> },
    /// The system has no room for what a batch of so many rows needs.
    Scratch(u32),
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::Zero(option) => write!(f, "{option} is 0: the CPU backend needs at least one"),
            CpuError::TooLarge(pages) => {
                write!(f, "{pages} KV pages do not fit into this machine's memory: lower kv_tokens")
            }
            CpuError::Weights { packed, free } => {
                write!(f, "the weights take {} MB as the CPU backend packs them, ", packed / 1_000_000)?;
                match free {
                    Some(free) => write!(f, "but this machine has {} MB free", free / 1_000_000)?,
                    None => f.write_str("which this machine does not have")?,
                }
                f.write_str(": take a smaller model or one of fewer bits")
            }
            CpuError::Scratch(rows) => {
                write!(f, "batches of {rows} rows do not fit into this machine's memory: lower batch_tokens")
            }
        }
    }
}

impl std::error::Error for CpuError {}

/// A model on the CPU.
pub struct Cpu {
    model: Arc<Model>,
    path: Path,
    info: Info,
    weights: Weights,
    pages: Pages,
    embeds: Plane, // [embed, hidden]
    scratch: Scratch,
    crew: Arc<Crew>,
    // Kept between batches for their room.
    rows: Vec<Row>,
    plan: Plan,
    wants: Wants,
    /// What the batch submitted last has made, until it is collected.
    made: Outcome,
}

impl Cpu {
    /// Prepares to run `model` with the threads of `crew`: packs its weights and gives the file's pages back.
    /// Allocates what every batch needs (what only some do, masks and the parts of long sequences, is kept once it was
    /// needed); K/V pages take memory as they are first written.
    pub fn load(model: Arc<Model>, options: CpuOptions, crew: Arc<Crew>) -> Result<Cpu, CpuError> {
        let CpuOptions { pages, page_size, embeds, batch_tokens, kv, exact } = options;
        for (option, value) in
            [("pages", pages.unwrap_or(1)), ("page_size", page_size), ("batch_tokens", batch_tokens)]
        {
            if value == 0 {
                return Err(CpuError::Zero(option));
            }
        }
        let shape = &model.shape;
        let page_bytes = Cpu::page_bytes(shape, page_size, kv);
        // Asked for as a whole and given back: the system may grant each layer's pages where it cannot hold them all.
        let room = |bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
        if let Some(pages) = pages
            && !page_bytes.checked_mul(pages as usize).is_some_and(room)
        {
            return Err(CpuError::TooLarge(pages));
        }
        let path = if exact { Path::plain() } else { Path::widest() };
        let weights = Weights::read(&model, exact, crew.size(), memory::free())?;
        if let Err(error) = model.gguf.forget() {
            tracing::warn!(%error, "the model file's pages stay in memory beside the packed weights");
        }
        let pages = pages.unwrap_or_else(|| {
            let free = memory::free().unwrap_or(0);
            let pages = memory::pages(free, page_bytes, page_size);
            tracing::info!(
                "{pages} KV pages of {page_size} tokens, {} MB when all are in use: 1/{KV_SHARE} of the {} MB that are free, \
                 {KV_TOKENS_FLOOR} tokens at least",
                pages as usize * page_bytes / 1_000_000,
                free / 1_000_000,
            );
            pages
        });
        let threads = if crew.size() == 1 { "thread" } else { "threads" };
        let weight = if exact { ", exact weights" } else { "" };
        let info = Info {
            device: format!("cpu, {} {threads}, {path}{weight}, {} K/V", crew.size(), kv.name()),
            page_size,
            pages,
            embeds,
            batch_tokens,
            vocab: shape.vocab as u32,
            hidden: shape.hidden as u32,
        };
        let no_room = |_| CpuError::Scratch(batch_tokens);
        Ok(Cpu {
            path,
            info,
            pages: Pages::new(shape, page_size, pages, kv)?,
            embeds: Plane::new(embeds as usize, shape.hidden).map_err(no_room)?,
            scratch: Scratch::new(shape, &weights, &options, crew.size()).map_err(no_room)?,
            plan: Plan::new(shape).map_err(no_room)?,
            weights,
            model,
            crew,
            rows: Vec::with_capacity(batch_tokens as usize),
            wants: Wants::default(),
            made: Outcome::default(),
        })
    }

    /// Bytes that the packed weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.store.len()
    }

    /// Bytes that one KV page of a model takes.
    pub fn page_bytes(shape: &Shape, page_size: u32, kv: KvFormat) -> usize {
        Pages::page_bytes(shape, page_size, kv)
    }

    /// Runs a batch like [`Backend::run`] and hands out the raw logits ([vocab] each) of the rows `logits`, counted
    /// over the batch. For measuring a model (`eval`): no guest sees logits.
    pub fn run_with_logits(
        &mut self,
        batch: &Batch,
        logits: &[usize],
        outcome: &mut Outcome,
    ) -> Result<Vec<Vec<f32>>, Fault> {
        self.rows.clear();
        for (sequence, part) in batch.sequences.iter().enumerate() {
            let first = part.len as usize - part.inputs.len();
            let rows = 0..part.inputs.len();
            self.rows.extend(rows.map(|index| Row { sequence, index, slot: first + index }));
        }
        let (rows, limit) = (self.rows.len(), self.info.batch_tokens as usize);
        if rows > limit {
            return Err(Fault(format!("a batch of {rows} rows, but the backend has room for {limit}")));
        }
        self.wants.note(batch, logits);
        if rows > 0 {
            self.plan.make(batch, &self.rows, self.crew.size());
            match self.path {
                Path::Plain(l) => self.step(l, batch),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512(l) => self.step(l, batch),
                #[cfg(target_arch = "x86_64")]
                Path::AvxVnni(l) => self.step(l, batch),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2(l) => self.step(l, batch),
                #[cfg(target_arch = "aarch64")]
                Path::Neon(l) => self.step(l, batch),
                #[cfg(test)]
                Path::Fused(l) => self.step(l, batch),
            }
        }
        Ok(self.wants.finish(batch.sequences.len(), outcome))
    }

    fn step<L: Lanes>(&self, l: L, batch: &Batch) {
        let step = Step {
            l,
            shape: &self.model.shape,
            embedding: self.model.gguf.tensor_at(&self.model.weights.embedding),
            weights: &self.weights,
            pages: &self.pages,
            embeds: &self.embeds,
            scratch: &self.scratch,
            crew: &self.crew,
            batch,
            rows: &self.rows,
            plan: &self.plan,
            wants: &self.wants,
        };
        self.crew.run(&|rank| step.run(rank));
    }
}

#[cfg(any(test, feature = "toys"))]
impl Cpu {
    /// A checksum of what the first slots of a page hold: for tests that nobody else's work changes it.
    pub fn page_checksum(&mut self, page: PageId, slots: u32) -> blake3::Hash {
        self.pages.checksum(page, slots)
    }
}

impl Backend for Cpu {
    fn info(&self) -> &Info {
        &self.info
    }

    /// Computes it: there is no other processor to do so meanwhile.
    fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let mut made = std::mem::take(&mut self.made);
        self.run_with_logits(batch, &[], &mut made)?;
        self.made = made;
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome, _pause: bool) -> Result<bool, Fault> {
        std::mem::swap(outcome, &mut self.made);
        Ok(true)
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault> {
        self.pages.copy(from, to);
        Ok(())
    }

    fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault> {
        self.pages.clear(page, from as usize);
        Ok(())
    }
}
