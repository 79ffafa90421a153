//! What every batch needs while it runs, allocated once at load.
//!
//! Owns: the planes that the ranks fill and read in turns, and each rank's own room. Never: anything that outlives
//! a batch.

use super::CpuOptions;
use super::attention::{self, Gathered, QUERIES};
use super::kernels::Products;
use super::lanes::LANES;
use super::portions::Portions;
use super::shared::{Plane, Shared};
use super::tiles::{Columns, TILE};
use super::weights::Weights;
use crate::backend::sample::{LOGITS_PER_MAXIMUM, Sampling};
use crate::model::shape::Shape;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows that go through the head together: one tile.
pub(super) const HEAD_ROWS: usize = TILE;

pub(super) struct Scratch {
    /// cos and sin of pair i at 2i and 2i + 1, for each kind of layer.
    pub turns: Vec<Plane>, // [kind][row, rope dims]
    /// The residual stream.
    pub stream: Plane, // [row, hidden]
    /// What a block adds to the stream, where it is normed first.
    pub branch: Plane, // [row, hidden]
    pub q: Plane,        // [row, heads * head_dim filled up]
    pub attended: Plane, // [row, heads * head_dim]
    pub inner: Plane,    // [row, ffn]
    pub logits: Plane,   // [head row, vocab]
    pub maxima: Plane,   // [head row, vocab / LOGITS_PER_MAXIMUM]
    /// The input of the next matrices, of batches of more than one tile.
    pub columns: Columns,
    pub portions: Portions,
    pub ranks: Vec<Mutex<Rank>>, // [rank]
}

/// A rank's own room.
pub(super) struct Rank {
    /// Of the batch, counted from 0.
    pub phase: usize,
    /// The input of the next matrices, of batches of one tile.
    pub columns: Columns,
    pub products: [Products; 2],
    /// A head of sixteen rows.
    pub heads: Vec<f32>, // [column, head_dim filled up]
    pub line: Vec<f32>, // a row of any plane
    pub attention: attention::Room,
    pub joined: Box<[Gathered; QUERIES]>,
    pub sampling: Sampling,
}

/// Values of a head with what fills it up to whole vectors.
pub(super) fn head_stride(shape: &Shape) -> usize {
    shape.head_dim.next_multiple_of(LANES)
}

impl Scratch {
    pub fn new(
        shape: &Shape,
        weights: &Weights,
        options: &CpuOptions,
        ranks: usize,
    ) -> std::io::Result<Scratch> {
        let rows = options.batch_tokens as usize;
        let Shape { hidden, ffn, vocab, heads, .. } = *shape;
        let widest = hidden.max(ffn).max(shape.q_width());
        let rank = || -> std::io::Result<Mutex<Rank>> {
            Ok(Mutex::new(Rank {
                phase: 0,
                columns: Columns::new(TILE, widest, weights.kinds)?,
                products: [[[0.0; LANES]; TILE]; 2],
                heads: vec![0.0; TILE * head_stride(shape)],
                line: vec![0.0; widest.next_multiple_of(LANES)],
                attention: attention::Room::new(),
                joined: Box::new([Gathered::NOTHING; QUERIES]),
                sampling: Sampling::new(vocab),
            }))
        };
        let normed = weights.layers.iter().any(|l| l.attn_post_norm.is_some() || l.ffn_post_norm.is_some());
        let turns = weights.turns.iter().map(|turns| Plane::new(rows, 2 * turns.len()));
        Ok(Scratch {
            turns: turns.collect::<Result<_, _>>()?,
            stream: Plane::new(rows, hidden)?,
            branch: Plane::new(if normed { rows } else { 0 }, hidden)?,
            q: Plane::new(rows, heads * head_stride(shape))?,
            attended: Plane::new(rows, shape.q_width())?,
            inner: Plane::new(rows, ffn)?,
            logits: Plane::new(HEAD_ROWS, vocab)?,
            maxima: Plane::new(HEAD_ROWS, vocab.div_ceil(LOGITS_PER_MAXIMUM))?,
            columns: Columns::new(if rows > TILE { rows } else { 0 }, widest, weights.kinds)?,
            portions: Portions::new(ranks),
            ranks: (0..ranks).map(|_| rank()).collect::<Result<_, _>>()?,
        })
    }
}

/// Parts of attention that several ranks make for the same rows: [piece][number].
pub(super) type Pieces = Shared<f32>;

/// Poison means that a rank has panicked; the call of the crew passes that panic on, and what the room holds then no
/// longer matters.
pub(super) fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
