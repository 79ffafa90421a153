//! The CPU backend, plain: exact weights, f32 everywhere, one order for every sum. The oracle of all faster kernels.
//!
//! Owns: K/V pages, embedding slots and scratch of one model; a batch is one call of the crew. Never: which pages
//! belong to whom, or special instructions: what is here runs on any machine the compiler knows.
//!
//! ```text
//! Cpu ── weights.rs   where the matrices lie in the mapped file
//!     ── pages.rs     K/V                          ── scratch.rs    activations, each rank's room
//!     ── forward.rs   the phases of a batch        ── outputs.rs    head, sampling, embeds
//!        └ matmul.rs  products, in one order       └ attention.rs   one head of one row
//! ```

mod attention;
mod forward;
mod matmul;
mod outputs;
mod pages;
#[cfg(test)]
mod reference;
mod scratch;
#[cfg(test)]
mod tests;
mod weights;

use super::crew::Crew;
use super::{Backend, Batch, Fault, Info, Outcome, PageId};
use crate::model::Model;
use crate::model::shape::{Shape, ShapeError};
use forward::{Row, Step};
use outputs::Wants;
use pages::Pages;
use scratch::{Plane, Scratch};
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, RwLock};
use weights::Weights;

/// The sizes that the operator chooses.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// KV pages in the pool; [`Cpu::page_bytes`] says what one takes.
    pub pages: u32,
    /// Tokens per KV page.
    pub page_size: u32,
    /// Embedding slots.
    pub embeds: u32,
    /// Rows in one batch at most.
    pub batch_tokens: u32,
}

/// Why a model cannot be loaded. `Display` is a sentence for the operator.
#[derive(Debug)]
pub enum CpuError {
    Shape(ShapeError),
    /// One of [`CpuOptions`] is 0, by name.
    Zero(&'static str),
    /// The system has no room for so many KV pages.
    TooLarge(u32),
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::Shape(error) => error.fmt(f),
            CpuError::Zero(option) => write!(f, "{option} is 0: the CPU backend needs at least one"),
            CpuError::TooLarge(pages) => {
                write!(f, "{pages} KV pages do not fit into this machine's memory: configure fewer")
            }
        }
    }
}

impl std::error::Error for CpuError {}

/// A model on the CPU.
pub struct Cpu {
    model: Arc<Model>,
    info: Info,
    weights: Weights,
    pages: Pages,
    embeds: RwLock<Plane>, // [embed, hidden]
    scratch: Scratch,
    crew: Arc<Crew>,
    // Kept between batches for their room.
    rows: Vec<Row>,
    claims: Vec<AtomicUsize>,
}

impl Cpu {
    /// Prepares to run `model` with the threads of `crew`. Allocates everything a batch needs; K/V pages take memory
    /// as they are first written.
    pub fn load(model: Arc<Model>, options: CpuOptions, crew: Arc<Crew>) -> Result<Cpu, CpuError> {
        let CpuOptions { pages, page_size, embeds, batch_tokens } = options;
        for (option, value) in [("pages", pages), ("page_size", page_size), ("batch_tokens", batch_tokens)] {
            if value == 0 {
                return Err(CpuError::Zero(option));
            }
        }
        let shape = &model.shape;
        // Asked for and given back: where the real allocations would end the process, this one fails.
        let room = |bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
        if !Cpu::page_bytes(shape, page_size).checked_mul(pages as usize).is_some_and(room) {
            return Err(CpuError::TooLarge(pages));
        }
        let info = Info {
            device: match crew.size() {
                1 => "cpu, 1 thread, plain f32".into(),
                threads => format!("cpu, {threads} threads, plain f32"),
            },
            page_size,
            pages,
            embeds,
            batch_tokens,
            vocab: shape.vocab as u32,
            hidden: shape.hidden as u32,
        };
        Ok(Cpu {
            info,
            weights: Weights::read(&model.gguf, shape).map_err(CpuError::Shape)?,
            pages: Pages::new(shape, page_size, pages),
            embeds: Plane::new(embeds as usize, shape.hidden),
            scratch: Scratch::new(shape, &options, crew.size()),
            model,
            crew,
            rows: Vec::with_capacity(batch_tokens as usize),
            claims: Vec::new(),
        })
    }

    /// Bytes that one KV page of a model takes.
    pub fn page_bytes(shape: &Shape, page_size: u32) -> usize {
        Pages::page_bytes(shape, page_size)
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
        let wants = Wants::of(batch, logits);
        if rows > 0 {
            self.claims.clear();
            self.claims.resize_with(forward::phases(self.weights.layers.len(), &wants), AtomicUsize::default);
            let step = Step {
                shape: &self.model.shape,
                file: self.model.gguf.file(),
                weights: &self.weights,
                pages: &self.pages,
                embeds: &self.embeds,
                scratch: &self.scratch,
                crew: &self.crew,
                batch,
                rows: &self.rows,
                wants: &wants,
                claims: &self.claims,
            };
            self.crew.run(&|rank| step.run(rank));
        }
        Ok(wants.finish(batch.sequences.len(), outcome))
    }
}

impl Backend for Cpu {
    fn info(&self) -> &Info {
        &self.info
    }

    fn run(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), Fault> {
        self.run_with_logits(batch, &[], outcome).map(drop)
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
