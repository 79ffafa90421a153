//! What a batch needs while it runs, allocated once at load.
//!
//! Owns: the planes that the ranks fill and read in turns, and each rank's own room. Never: anything that outlives
//! a batch.
//!
//! A plane is behind a lock so that sharing it is plain safe code: a phase either reads a plane (all ranks hold the
//! read lock) or commits finished pieces to it (short write locks). No phase does both, so nobody waits long.

use super::CpuOptions;
use super::matmul::{Rows, padded};
use crate::backend::sample::Sampling;
use crate::model::shape::Shape;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Rows that go through the head and the sampler together: their logits are the largest plane.
pub(super) const HEAD_ROWS: usize = 32;
/// Rows of a matrix that a rank takes on at once, at most.
pub(super) const ROWS_PER_CLAIM: usize = 64;

/// A matrix of activations: rows of `stride` numbers, of which those past the width stay 0.
pub(super) struct Plane {
    numbers: Vec<f32>,
    stride: usize,
}

impl Plane {
    pub fn new(rows: usize, width: usize) -> RwLock<Plane> {
        let stride = padded(width);
        RwLock::new(Plane { numbers: vec![0.0; rows * stride], stride })
    }

    /// Row `row` with its padding.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.stride..][..self.stride]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.numbers[row * self.stride..][..self.stride]
    }

    /// The first `rows` rows.
    pub fn rows(&self, rows: usize) -> &[f32] {
        &self.numbers[..rows * self.stride]
    }
}

pub(super) struct Scratch {
    /// cos and sin of pair i at 2i and 2i + 1.
    pub turns: RwLock<Plane>, // [row, rope_dims]
    /// The residual stream.
    pub stream: RwLock<Plane>, // [row, hidden]
    pub normed: RwLock<Plane>,   // [row, hidden]
    pub q: RwLock<Plane>,        // [row, heads * head_dim]
    pub k: RwLock<Plane>,        // [row, kv_heads * head_dim]
    pub v: RwLock<Plane>,        // [row, kv_heads * head_dim]
    pub attended: RwLock<Plane>, // [row, heads * head_dim]
    pub inner: RwLock<Plane>,    // [row, ffn]
    pub last: RwLock<Plane>,     // [head row, hidden]
    pub logits: RwLock<Plane>,   // [head row, vocab]
    pub ranks: Vec<Mutex<Rank>>, // [rank]
}

/// A rank's own room.
pub(super) struct Rank {
    pub rows: Rows,
    /// Products of one claim, and a second set for the gate.
    pub product: [Vec<f32>; 2], // [row, ROWS_PER_CLAIM]
    pub scores: Vec<f32>,   // [slot]; grows to the longest sequence seen
    pub query: Vec<f32>,    // [stride of a head]
    pub attended: Vec<f32>, // [stride of a head]
    pub sampling: Sampling,
}

impl Scratch {
    pub fn new(shape: &Shape, options: &CpuOptions, ranks: usize) -> Scratch {
        let rows = options.batch_tokens as usize;
        let Shape { hidden, ffn, vocab, head_dim, rope, .. } = *shape;
        let (q, kv) = (shape.q_width(), shape.kv_width());
        let rank = || Rank {
            rows: Rows::new(hidden.max(ffn).max(q)),
            product: [(); 2].map(|()| vec![0.0; rows.max(HEAD_ROWS) * ROWS_PER_CLAIM]),
            scores: Vec::new(),
            query: vec![0.0; padded(head_dim)],
            attended: vec![0.0; padded(head_dim)],
            sampling: Sampling::new(vocab),
        };
        Scratch {
            turns: Plane::new(rows, rope.dims),
            stream: Plane::new(rows, hidden),
            normed: Plane::new(rows, hidden),
            q: Plane::new(rows, q),
            k: Plane::new(rows, kv),
            v: Plane::new(rows, kv),
            attended: Plane::new(rows, q),
            inner: Plane::new(rows, ffn),
            last: Plane::new(HEAD_ROWS, hidden),
            logits: Plane::new(HEAD_ROWS, vocab),
            ranks: (0..ranks).map(|_| Mutex::new(rank())).collect(),
        }
    }
}

// Poison means that a rank has panicked; the call of the crew passes that panic on, and what the planes hold then no
// longer matters.

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
