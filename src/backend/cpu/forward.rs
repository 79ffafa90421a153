//! The forward pass of a batch, as every rank runs it.
//!
//! Owns: the phases of a batch, each rank's share of them, and the barriers between them. Never: memory that outlives
//! the batch, nor the order of a sum (`kernels.rs`, `attention.rs`, `vector.rs`).
//!
//! ```text
//! a layer:  norm, quantise ▸ Q K V, bias, norm, RoPE, append ║ attend ║ quantise ▸ output + stream ║
//!           norm, quantise ▸ gate · up ║ quantise ▸ down + stream ║
//! ```
//! ║ is a barrier: five a layer. ▸ is one too when the batch is more than a tile of sixteen rows: then the ranks share
//! out the rows to quantise; for one tile each rank does all of it, which takes less time than to meet. A layer that
//! norms what a block adds (Gemma) meets twice more. Between two barriers a rank writes parts of planes that are its
//! own: a share of a matrix' rows, of the batch's rows, or what it claims of attention.
//!
//! Formulas: Touvron et al., "LLaMA" (2023); grouped heads: Ainslie et al., "GQA" (2023).

use super::attend::Plan;
use super::kernels::{Products, multiply};
use super::lanes::{LANES, Lanes};
use super::outputs::Wants;
use super::packed::Packed;
use super::pages::{Kept, Kv, Layers, Pages, each_format};
use super::scratch::{Rank, Scratch, head_stride, hold};
use super::shared::Plane;
use super::tiles::{Columns, TILE, Tile};
use super::vector::{gated, norm, norm_scale, rotate, turns_at};
use super::weights::{Heads, Layer, Weights};
use crate::backend::crew::Crew;
use crate::backend::{Batch, Input, Sequence};
use crate::model::gguf::Tensor;
use crate::model::shape::Shape;
use std::ops::Range;

/// Bytes of the next matrix that a waiting rank asks for: some of its nearest cache.
const PREFETCHED: usize = 128 << 10;

/// One row of the batch.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub sequence: usize,
    /// Its index in the sequence's new rows.
    pub index: usize,
    /// Its slot in the sequence.
    pub slot: usize,
}

/// A batch on its way, shared by all ranks.
pub(super) struct Step<'a, L> {
    pub l: L,
    pub shape: &'a Shape,
    /// In the file: a token takes one row of it.
    pub embedding: Tensor<'a>,
    pub weights: &'a Weights,
    pub pages: &'a Pages,
    pub embeds: &'a Plane, // [embed, hidden]
    pub scratch: &'a Scratch,
    pub crew: &'a Crew,
    pub batch: &'a Batch,
    pub rows: &'a [Row],
    pub plan: &'a Plan,
    pub wants: &'a Wants<'a>,
}

/// What becomes the columns of a matrix product.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// The stream, normed with these gains.
    Normed(&'a [f32]),
    Attended,
    Inner,
}

impl<L: Lanes> Step<'_, L> {
    /// The whole batch, as `rank` takes part in it.
    pub fn run(&self, rank: usize) {
        let room = &mut *hold(&self.scratch.ranks[rank]);
        self.enter_rows(rank);
        self.crew.barrier();
        each_format!(&self.pages.layers, layers => {
            for (number, (layer, kv)) in self.weights.layers.iter().zip(layers).enumerate() {
                self.layer(rank, room, (number, layer), kv);
            }
        });
        self.store_embeds(rank);
        self.outputs(rank, room);
    }

    fn layer<T: Kept>(&self, rank: usize, room: &mut Rank, (number, layer): (usize, &Layer), kv: &Kv<T>) {
        self.project(rank, room, layer, kv);
        self.meet(rank, &layer.output);
        self.attend(room, number, layer, kv);
        self.meet(rank, &layer.output);
        self.add(rank, room, &layer.output, Source::Attended, layer.attn_post_norm.as_deref());
        self.meet(rank, &layer.gate);
        self.gate(rank, room, layer);
        self.meet(rank, &layer.down);
        self.add(rank, room, &layer.down, Source::Inner, layer.ffn_post_norm.as_deref());
        self.meet(
            rank,
            self.weights.layers.get(number + 1).map_or(&self.weights.head, |next| &next.q.matrix),
        );
    }

    /// A barrier. Who waits asks for the beginning of its share of the next matrix.
    fn meet(&self, rank: usize, next: &Packed) {
        let share = next.groups(&self.weights.store, self.share(next.groups, rank));
        let mut lines = share[..share.len().min(PREFETCHED)].chunks(64);
        self.crew.barrier_with(|| match lines.next() {
            Some(line) => {
                self.l.prefetch(line.as_ptr());
                true
            }
            None => false,
        });
    }

    pub(super) fn sequence(&self, row: Row) -> &Sequence {
        &self.batch.sequences[row.sequence]
    }

    /// A rank's share of `count` equal things.
    pub(super) fn share(&self, count: usize, rank: usize) -> Range<usize> {
        let ranks = self.crew.size();
        count * rank / ranks..count * (rank + 1) / ranks
    }

    /// The rows' first hidden states and the angles of their positions.
    fn enter_rows(&self, rank: usize) {
        let Shape { hidden, embedding_scale, rope, .. } = *self.shape;
        for number in self.share(self.rows.len(), rank) {
            let row = self.rows[number];
            let sequence = self.sequence(row);
            // SAFETY: the row is of this rank's share.
            let stream = unsafe { self.scratch.stream.row_mut(number, 0..hidden) };
            match sequence.inputs[row.index] {
                Input::Token(token) => {
                    self.embedding.kind.dequantize(self.embedding.row(token.0 as usize), stream);
                    stream.iter_mut().for_each(|x| *x *= embedding_scale);
                }
                Input::Embed(embed) => {
                    // SAFETY: embeds are written after the last layer.
                    stream.copy_from_slice(unsafe { self.embeds.row(embed.0 as usize, 0..hidden) });
                }
            }
            for (turns, per_position) in self.scratch.turns.iter().zip(&self.weights.turns) {
                // SAFETY: the row is of this rank's share.
                let turns = unsafe { turns.row_mut(number, 0..rope.dims) };
                turns_at(sequence.positions[row.index], per_position, rope.attention_scale, turns);
            }
        }
    }

    /// Tiles of the batch.
    fn tiles(&self) -> usize {
        self.rows.len().div_ceil(TILE)
    }

    /// Makes `source` columns: all of them, or with the others a share each. Returns the values of a column.
    fn prepare(&self, rank: usize, room: &mut Rank, source: Source) -> usize {
        let width = match source {
            Source::Normed(_) => self.shape.hidden,
            Source::Attended => self.shape.q_width(),
            Source::Inner => self.shape.ffn,
        };
        let tiles = if self.tiles() == 1 { 0..1 } else { self.share(self.tiles(), rank) };
        self.l.enter(
            #[inline(always)]
            || {
                for number in tiles.start * TILE..self.rows.len().min(tiles.end * TILE) {
                    self.prepare_row(room, source, width, number);
                }
            },
        );
        if self.tiles() > 1 {
            self.crew.barrier();
        }
        width
    }

    #[inline(always)]
    fn prepare_row(&self, room: &mut Rank, source: Source, width: usize, number: usize) {
        let (l, s) = (self.l, self.scratch);
        let Rank { columns, line, joined, .. } = room;
        let line = &mut line[..width.next_multiple_of(LANES)];
        let x: &[f32] = match source {
            Source::Normed(gains) => {
                // SAFETY: the phase before has written the plane, and its barrier has been passed.
                line.copy_from_slice(unsafe { s.stream.row(number, 0..s.stream.stride) });
                norm(l, line, gains, width, self.shape.norm_eps);
                line
            }
            Source::Attended if self.plan.split() => {
                self.join_pieces(number, &mut joined[0], line);
                line
            }
            // SAFETY: as above.
            Source::Attended => unsafe { s.attended.row(number, 0..s.attended.stride) },
            // SAFETY: as above.
            Source::Inner => unsafe { s.inner.row(number, 0..s.inner.stride) },
        };
        let columns = if self.tiles() == 1 { &*columns } else { &s.columns };
        // SAFETY: the columns are the rank's own, or the tile is of its share.
        unsafe { columns.put(l, (number / TILE, number % TILE), x, width) };
    }

    /// The tiles of columns that [`prepare`](Step::prepare) made, each with its rows of the batch. `own` are the rank's.
    #[inline(always)]
    fn each_tile(&self, own: &Columns, width: usize, mut work: impl FnMut(Tile, Range<usize>)) {
        let columns = if self.tiles() == 1 { own } else { &self.scratch.columns };
        for tile in 0..self.tiles() {
            let rows = tile * TILE..self.rows.len().min((tile + 1) * TILE);
            // SAFETY: nobody writes these columns before the next barrier.
            work(unsafe { columns.tile(tile, width) }, rows);
        }
    }

    /// Queries into their plane, keys and values into their slots.
    fn project<T: Kept>(&self, rank: usize, room: &mut Rank, layer: &Layer, kv: &Kv<T>) {
        let width = self.prepare(rank, room, Source::Normed(&layer.attn_norm));
        let Shape { heads, kv_heads, .. } = *self.shape;
        let groups = head_stride(self.shape) / LANES;
        let Rank { columns, products: [products, _], heads: room, .. } = room;
        let parts = [(&layer.q, heads), (&layer.k, kv_heads), (&layer.v, kv_heads)];
        // Heads are shared out by the bytes of their weights.
        let bytes = |part: &Heads, count: usize| part.matrix.bytes() / count;
        let total: usize = parts.iter().map(|(part, _)| part.matrix.bytes()).sum();
        let bounds = self.share(total, rank);
        let mut at = 0;
        for (kind, (part, count)) in parts.into_iter().enumerate() {
            for head in 0..count {
                let middle = at + bytes(part, count) / 2;
                at += bytes(part, count);
                if !bounds.contains(&middle) {
                    continue;
                }
                self.each_tile(columns, width, |tile, rows| {
                    self.project_head((products, room), (part, head, groups), tile, rows.len());
                    self.l.enter(
                        #[inline(always)]
                        || {
                            for (column, number) in rows.enumerate() {
                                self.finish_head(room, column, number, (kind, part, head), layer, kv);
                            }
                        },
                    );
                });
            }
        }
    }

    /// The products of one head with the columns of a tile, into `room`: [column, head].
    fn project_head(
        &self,
        (products, room): (&mut Products, &mut [f32]),
        (part, head, groups): (&Heads, usize, usize),
        tile: Tile,
        count: usize,
    ) {
        for group in 0..groups {
            let matrix = (&part.matrix, &self.weights.store);
            multiply(self.l, matrix, head * groups + group, tile, count, products);
            for (product, to) in products[..count].iter().zip(room.chunks_exact_mut(groups * LANES)) {
                to[group * LANES..][..LANES].copy_from_slice(product);
            }
        }
    }

    #[inline(always)]
    fn finish_head<T: Kept>(
        &self,
        room: &mut [f32],
        column: usize,
        number: usize,
        (kind, part, head): (usize, &Heads, usize),
        layer: &Layer,
        kv: &Kv<T>,
    ) {
        let (l, shape, layout) = (self.l, self.shape, self.pages.layout);
        let stride = head_stride(shape);
        let x = &mut room[column * stride..][..stride];
        if let Some(bias) = &part.bias {
            x.iter_mut().zip(&bias[head * stride..][..stride]).for_each(|(x, bias)| *x += bias);
        }
        if let Some(gains) = &part.norm {
            norm(l, x, gains, shape.head_dim, shape.norm_eps);
        }
        if kind < 2 {
            // SAFETY: written by `enter_rows`, a barrier ago.
            let turns = unsafe { self.scratch.turns[layer.turns].row(number, 0..shape.rope.dims) };
            rotate(x, turns.as_chunks::<2>().0);
        }
        if kind == 0 {
            // SAFETY: the head is of this rank's share.
            let q = unsafe { self.scratch.q.row_mut(number, head * stride..(head + 1) * stride) };
            q.iter_mut().zip(x).for_each(|(q, x)| *q = *x * shape.query_scale);
            return;
        }
        let row = self.rows[number];
        let page = self.sequence(row).pages[row.slot / layout.page_size];
        let at = (page, head, row.slot % layout.page_size);
        // SAFETY: the head is of this rank's share, and it alone writes its slots.
        unsafe {
            match kind {
                1 => kv.put_key(l, layout, at, x),
                _ => kv.put_value(l, layout, at, x),
            }
        }
    }

    /// Multiplies and adds to the stream, or with `post_norm` puts the normed product there.
    fn add(&self, rank: usize, room: &mut Rank, matrix: &Packed, source: Source, post_norm: Option<&[f32]>) {
        let width = self.prepare(rank, room, source);
        let s = self.scratch;
        let Rank { columns, products: [products, _], .. } = room;
        for group in self.share(matrix.groups, rank) {
            let own = group * LANES..(group + 1) * LANES;
            self.each_tile(columns, width, |tile, rows| {
                multiply(self.l, (matrix, &self.weights.store), group, tile, rows.len(), products);
                let l = self.l;
                let to = if post_norm.is_none() { &s.stream } else { &s.branch };
                l.enter(
                    #[inline(always)]
                    || {
                        for (number, product) in rows.zip(products.iter()) {
                            // SAFETY: these numbers of a row are of this rank's share.
                            let to = unsafe { to.row_mut(number, own.clone()) };
                            let to = &mut to.as_chunks_mut::<LANES>().0[0];
                            let old = if post_norm.is_none() { l.load(to) } else { l.splat(0.0) };
                            l.store(l.add(old, l.load(product)), to);
                        }
                    },
                );
            });
        }
        let Some(gains) = post_norm else { return };
        self.crew.barrier();
        self.l.enter(
            #[inline(always)]
            || {
                for number in self.share(self.rows.len(), rank) {
                    // SAFETY: the row is of this rank's share, and the barrier has been passed.
                    let (x, y) = unsafe {
                        (
                            s.stream.row_mut(number, 0..s.stream.stride),
                            s.branch.row(number, 0..s.branch.stride),
                        )
                    };
                    let scale = norm_scale(self.l, y, self.shape.hidden, self.shape.norm_eps);
                    for ((x, y), gain) in x.iter_mut().zip(y).zip(gains) {
                        *x += *y * scale * gain;
                    }
                }
            },
        );
    }

    /// `activation(gate . x) * (up . x)`.
    fn gate(&self, rank: usize, room: &mut Rank, layer: &Layer) {
        let width = self.prepare(rank, room, Source::Normed(&layer.ffn_norm));
        let store = &self.weights.store;
        let Rank { columns, products: [gate, up], .. } = room;
        for group in self.share(layer.gate.groups, rank) {
            let own = group * LANES..(group + 1) * LANES;
            self.each_tile(columns, width, |tile, rows| {
                multiply(self.l, (&layer.gate, store), group, tile, rows.len(), gate);
                multiply(self.l, (&layer.up, store), group, tile, rows.len(), up);
                let l = self.l;
                l.enter(
                    #[inline(always)]
                    || {
                        for (number, (gate, up)) in rows.zip(gate.iter().zip(up.iter())) {
                            // SAFETY: these numbers of a row are of this rank's share.
                            let to = unsafe { self.scratch.inner.row_mut(number, own.clone()) };
                            let active = gated(l, self.shape.activation, l.load(gate), l.load(up));
                            l.store(active, &mut to.as_chunks_mut::<LANES>().0[0]);
                        }
                    },
                );
            });
        }
    }
}
