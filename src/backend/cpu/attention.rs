//! Attention of one row and one head over the slots that the row may see.
//!
//! Owns: the walk over runs and pages, softmax, the weighted sum, and the rotation of positions. Never: threads.
//!
//! Numbers are added by the slot's place in the sequence: the sum of the weights by `slot % 16`, each output value
//! by rising slot. Pages, chunks and the length of the batch do not enter. A hidden slot adds nothing and is not
//! read; a row that sees nothing gets zeros.

use super::matmul::{dot_rows, padded, sum};
use super::pages::{Kv, Layout};
use crate::backend::exp::exp;
use crate::backend::{Mask, PageId};
use std::ops::Range;

/// The slots that row `row` of a sequence sees, in order: runs of a mask, or everything up to the row's own `slot`.
pub(super) fn visible(mask: &Mask, row: usize, slot: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (causal, runs): (_, &[u32]) = match mask {
        Mask::Causal => (Some(slot as u32 + 1), &[]),
        Mask::Runs(rows) => (None, &rows[row]),
    };
    let mut at = 0;
    causal.into_iter().chain(runs.iter().copied()).enumerate().filter_map(move |(run, len)| {
        let start = at;
        at += len as usize;
        (run % 2 == 0 && len > 0).then_some(start..at)
    })
}

/// A stretch of visible slots within one page.
struct Piece {
    page: PageId,
    /// In the page.
    slots: Range<usize>,
    /// The first one's place in the sequence.
    at: usize,
}

fn pieces<'a>(
    visible: impl Iterator<Item = Range<usize>> + 'a,
    pages: &'a [PageId],
    page_size: usize,
) -> impl Iterator<Item = Piece> + 'a {
    visible.flat_map(move |run| {
        (run.start / page_size..=(run.end - 1) / page_size).map(move |page| {
            let first = page * page_size;
            let slots = run.start.max(first)..run.end.min(first + page_size);
            Piece { page: pages[page], at: slots.start, slots: slots.start - first..slots.end - first }
        })
    })
}

/// One head's view of a layer's K/V.
pub(super) struct View<'a> {
    pub kv: &'a Kv,
    pub layout: Layout,
    pub kv_head: usize,
    /// The sequence's pages.
    pub pages: &'a [PageId],
}

impl View<'_> {
    /// `attended = softmax(query . keys) . values` over the `visible` slots, all below `len`. `query` is rotated and
    /// scaled; both vectors are padded like the keys. `scores` is room.
    pub fn attend(
        &self,
        visible: impl Iterator<Item = Range<usize>> + Clone,
        len: usize,
        query: &[f32],
        scores: &mut Vec<f32>,
        attended: &mut [f32],
    ) {
        let pieces = || pieces(visible.clone(), self.pages, self.layout.page_size);
        let slots = |piece: &Piece| self.layout.slots(piece.page, self.kv_head, piece.slots.clone());
        scores.clear();
        scores.resize(padded(len), 0.0);
        attended.fill(0.0);

        let mut largest = f32::NEG_INFINITY;
        for piece in pieces() {
            let scores = &mut scores[piece.at..][..piece.slots.len()];
            dot_rows(&self.kv.keys[slots(&piece)], query, scores);
            largest = scores.iter().copied().fold(largest, f32::max);
        }
        for piece in pieces() {
            let scores = &mut scores[piece.at..][..piece.slots.len()];
            scores.iter_mut().for_each(|score| *score = exp(*score - largest));
        }
        let total = sum(scores);
        for piece in pieces() {
            let values = self.kv.values[slots(&piece)].chunks_exact(self.layout.stride);
            for (&weight, value) in scores[piece.at..].iter().zip(values) {
                attended.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        if total > 0.0 {
            attended.iter_mut().for_each(|sum| *sum /= total);
        }
    }
}

/// Turns the pairs (2i, 2i + 1) of the first `dims` values of a head by the angles whose cos and sin are in `turns`.
pub(super) fn rotate(head: &mut [f32], turns: &[f32], dims: usize) {
    for (pair, turn) in head[..dims].chunks_exact_mut(2).zip(turns.chunks_exact(2)) {
        let (a, b, cos, sin) = (pair[0], pair[1], turn[0], turn[1]);
        (pair[0], pair[1]) = (a * cos - b * sin, a * sin + b * cos);
    }
}

/// cos and sin of the angle of each pair at `position`, computed in f64: any u32 is a fair position.
pub(super) fn turns_at(position: u32, per_position: &[f64], turns: &mut [f32]) {
    for (turn, per_position) in turns.chunks_exact_mut(2).zip(per_position) {
        let (sin, cos) = (f64::from(position) * per_position).sin_cos();
        (turn[0], turn[1]) = (cos as f32, sin as f32);
    }
}
