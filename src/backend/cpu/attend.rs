//! Who attends what: a batch's attention in units that ranks claim as they get free.
//!
//! Owns: the cut into units, masks as bits, and the pieces of a long row that several ranks attend together. Never: the
//! sums (`attention.rs`): how the work is cut leaves no trace in the bits.
//!
//! A unit is a KV head of a few rows of one sequence, which share its reading. Where that gives too few units for the
//! ranks (one long sequence that decodes), each stretch of the slots is a unit of its own: its piece is put aside, and
//! whoever needs the row joins its pieces in order.

use super::attention::{Gathered, QUERIES, Query, STRETCH, Sight, View};
use super::forward::{Row, Size, Step, Work};
use super::lanes::{LANES, Lanes};
use super::pages::{Kept, Kv};
use super::scratch::{Pieces, Rank, head_stride};
use super::weights::Layer;
use crate::backend::{Batch, Mask};
use crate::limits::ATTENTION_PIECES_BYTES;
use crate::model::shape::Shape;
use std::ops::Range;

/// Units that a rank should find: fewer, and the rows are cut into stretches.
const UNITS_PER_RANK: usize = 4;

/// Consecutive rows of one sequence.
struct Block {
    sequence: usize,
    /// In the batch.
    rows: Range<usize>,
    /// Of the last row's slots.
    stretches: usize,
    /// Pieces of the blocks before.
    first_piece: usize,
}

/// How a batch is attended; kept between batches for its room.
pub(super) struct Plan {
    blocks: Vec<Block>,
    /// A bit per slot of each row with a mask.
    masks: Vec<u64>,
    /// Where a row's bits begin, if it has any.
    mask_of: Vec<Option<usize>>, // [row]
    split: bool,
    /// (largest, total, values) of each (row, head, stretch), if split.
    pieces: Pieces,
    piece_len: usize,
    heads: usize,
    kv_heads: usize,
}

impl Plan {
    pub fn new(shape: &Shape) -> std::io::Result<Plan> {
        Ok(Plan {
            blocks: Vec::new(),
            masks: Vec::new(),
            mask_of: Vec::new(),
            split: false,
            pieces: Pieces::new(0)?,
            piece_len: LANES + head_stride(shape),
            heads: shape.heads,
            kv_heads: shape.kv_heads,
        })
    }

    /// Plans a batch.
    pub fn make(&mut self, batch: &Batch, rows: &[Row], ranks: usize) {
        self.blocks.clear();
        let at_once = (QUERIES / (self.heads / self.kv_heads)).max(1);
        let (mut first, mut pieces) = (0, 0);
        while first < rows.len() {
            let sequence = rows[first].sequence;
            let count = rows[first..].iter().take(at_once).take_while(|row| row.sequence == sequence).count();
            let last = rows[first + count - 1].slot;
            let stretches = last / STRETCH + 1;
            self.blocks.push(Block { sequence, rows: first..first + count, stretches, first_piece: pieces });
            pieces += count * self.heads * stretches;
            first += count;
        }
        let units = self.blocks.len() * self.kv_heads;
        self.split =
            ranks > 1 && units < UNITS_PER_RANK * ranks && self.blocks.iter().any(|b| b.stretches > 1);
        // Slower, and the same to the bit.
        self.split &= pieces * self.piece_len * size_of::<f32>() <= ATTENTION_PIECES_BYTES;
        if self.split && self.pieces.len() < pieces * self.piece_len {
            match Pieces::new((pieces * self.piece_len).next_power_of_two()) {
                Ok(pieces) => self.pieces = pieces,
                Err(_) => self.split = false,
            }
        }
        self.read_masks(batch, rows);
    }

    fn read_masks(&mut self, batch: &Batch, rows: &[Row]) {
        self.masks.clear();
        self.mask_of.clear();
        for row in rows {
            let Mask::Runs(runs) = &batch.sequences[row.sequence].mask else {
                self.mask_of.push(None);
                continue;
            };
            let start = self.masks.len();
            self.mask_of.push(Some(start));
            self.masks.resize(start + (row.slot + 1).div_ceil(64), 0);
            let words = &mut self.masks[start..];
            let mut at = 0;
            for (run, &len) in runs[row.index].iter().enumerate() {
                let end = at + len as usize;
                if run % 2 == 0 && at < end {
                    set_bits(words, at..end);
                }
                at = end;
            }
        }
    }

    /// Whether rows lie in pieces after attention.
    pub fn split(&self) -> bool {
        self.split
    }

    /// How many units every layer has.
    pub fn units(&self) -> usize {
        let per_block = |block: &Block| self.kv_heads * if self.split { block.stretches } else { 1 };
        self.blocks.iter().map(per_block).sum()
    }

    /// The block, KV head and, if split, the stretch of a unit.
    fn unit(&self, mut unit: usize) -> (&Block, usize, Option<usize>) {
        if !self.split {
            return (&self.blocks[unit / self.kv_heads], unit % self.kv_heads, None);
        }
        for block in &self.blocks {
            let own = self.kv_heads * block.stretches;
            if unit < own {
                return (block, unit / block.stretches, Some(unit % block.stretches));
            }
            unit -= own;
        }
        unreachable!("units are counted over the blocks")
    }

    /// Where a piece lies: (largest, total), then the values at 16.
    fn piece(&self, block: &Block, row: usize, head: usize, stretch: usize) -> Range<usize> {
        let number = ((row - block.rows.start) * self.heads + head) * block.stretches + stretch;
        let at = (block.first_piece + number) * self.piece_len;
        at..at + self.piece_len
    }
}

fn set_bits(words: &mut [u64], bits: Range<usize>) {
    let (first, last) = (bits.start / 64, (bits.end - 1) / 64);
    let from = u64::MAX << (bits.start % 64);
    let to = u64::MAX >> (63 - (bits.end - 1) % 64);
    if first == last {
        words[first] |= from & to;
        return;
    }
    words[first] |= from;
    words[first + 1..last].fill(u64::MAX);
    words[last] |= to;
}

impl<L: Lanes> Step<'_, L> {
    /// Attends all rows, together with the other ranks.
    pub(super) fn attend<T: Kept>(&self, rank: usize, room: &mut Rank, layer: &Layer, kv: &Kv<T>) {
        self.phase(rank, room, Size::LARGE, Work::Groups(&layer.output), |room, unit| {
            let (block, kv_head, stretch) = self.plan.unit(unit);
            let group = self.shape.heads / self.shape.kv_heads;
            let queries = block.rows.len() * group;
            for first in (0..queries).step_by(QUERIES) {
                let some = first..queries.min(first + QUERIES);
                self.attend_some(room, (block, kv_head, stretch), some, layer, kv);
            }
        });
    }

    /// Some queries of a unit: numbers in (row, head of the group).
    fn attend_some<T: Kept>(
        &self,
        room: &mut Rank,
        (block, kv_head, stretch): (&Block, usize, Option<usize>),
        numbers: Range<usize>,
        layer: &Layer,
        kv: &Kv<T>,
    ) {
        let (l, shape, plan) = (self.l, self.shape, self.plan);
        let group = shape.heads / shape.kv_heads;
        let stride = head_stride(shape);
        let of = |number: usize| (block.rows.start + number / group, kv_head * group + number % group);
        let query = |number: usize| {
            let (row, head) = of(number);
            let slot = self.rows[row].slot;
            let mask = plan.mask_of[row].map(|at| &plan.masks[at..at + (slot + 1).div_ceil(64)]);
            let first = layer.window.map_or(0, |window| (slot + 1).saturating_sub(window));
            // SAFETY: queries are written before the barrier that comes before attention.
            let q = unsafe { self.scratch.q.row(row, head * stride..(head + 1) * stride) };
            Query { q, sight: Sight { slot, first, mask } }
        };
        let mut queries = [query(numbers.start); QUERIES];
        for (to, number) in queries.iter_mut().zip(numbers.clone()) {
            *to = query(number);
        }
        let queries = &queries[..numbers.len()];
        let pages = &self.batch.sequences[block.sequence].pages;
        let view = View { kv, layout: self.pages.layout, kv_head, pages, cap: shape.score_cap };

        if let Some(stretch) = stretch {
            view.attend(l, stretch, queries, &mut room.attention, |i, gathered| {
                let (row, head) = of(numbers.start + i);
                // SAFETY: the unit is one that this rank has claimed, and the piece is of this unit.
                let piece = unsafe { plan.pieces.part_mut(plan.piece(block, row, head, stretch)) };
                (piece[0], piece[1]) = (gathered.largest, gathered.total);
                piece[LANES..].copy_from_slice(&gathered.values[..stride]);
            });
            return;
        }
        room.joined[..numbers.len()].iter_mut().for_each(|joined| joined.reset(stride));
        let first = queries.iter().map(|query| query.sight.first).min().unwrap_or(0) / STRETCH;
        let last = queries.iter().map(|query| query.sight.slot).max().unwrap_or(0) / STRETCH;
        for stretch in first..=last {
            let joined = &mut room.joined;
            view.attend(l, stretch, queries, &mut room.attention, |i, gathered| {
                l.enter(
                    #[inline(always)]
                    || joined[i].join(l, gathered.largest, gathered.total, &gathered.values[..stride]),
                );
            });
        }
        l.enter(
            #[inline(always)]
            || {
                for (i, number) in numbers.enumerate() {
                    let (row, head) = of(number);
                    let own = head * shape.head_dim..(head + 1) * shape.head_dim;
                    // SAFETY: the unit is one that this rank has claimed, and it alone writes these heads of these rows.
                    room.joined[i].finish(l, unsafe { self.scratch.attended.row_mut(row, own) });
                }
            },
        );
    }

    /// What all heads of a row gathered, from its pieces.
    #[inline(always)]
    pub(super) fn join_pieces(&self, number: usize, joined: &mut Gathered, to: &mut [f32]) {
        let (l, shape, plan) = (self.l, self.shape, self.plan);
        let block = plan.blocks.iter().find(|block| block.rows.contains(&number));
        let block = block.expect("every row is in a block");
        for head in 0..shape.heads {
            joined.reset(head_stride(shape));
            for stretch in 0..block.stretches {
                // SAFETY: pieces are written before the barrier that ends attention.
                let piece = unsafe { plan.pieces.part(plan.piece(block, number, head, stretch)) };
                joined.join(l, piece[0], piece[1], &piece[LANES..]);
            }
            joined.finish(l, &mut to[head * shape.head_dim..(head + 1) * shape.head_dim]);
        }
    }
}
