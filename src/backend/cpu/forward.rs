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
//! own: what it has claimed of a matrix' rows or of attention (`portions.rs`), or a share of the batch's rows.
//!
//! Formulas: Touvron et al., "LLaMA" (2023); grouped heads: Ainslie et al., "GQA" (2023).

use super::attend::Plan;
use super::kernels::{Products, multiply};
use super::lanes::{LANES, Lanes};
use super::outputs::{HEAD_GROUPS, Wants};
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

/// Bytes of its next work that a waiting rank asks for: about as many lines as it looks at the barrier before it yields.
const PREFETCHED: usize = 24 << 10;
/// Tiles of columns that a head of Q, K or V is multiplied with at a time, so that there are heads enough to share out.
const HEAD_TILES: usize = 4;

/// Rows with which a unit of a matrix is still some hundred nanoseconds of work.
const FEW: usize = 4;

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
    pub wants: &'a Wants,
}

/// What the ranks share out between two barriers, in units.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    /// A head of Q, K or V with [`HEAD_TILES`] tiles.
    Project(&'a Layer),
    /// A unit of [`Plan`].
    Attend,
    /// A group of a matrix.
    Groups(&'a Packed),
    /// [`HEAD_GROUPS`] groups of the head.
    Head,
    Nothing,
}

/// Of a phase's units.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// How many a rank claims at a time: some hundred nanoseconds of work.
    pub most: usize,
    /// How many another must have left to be worth some microseconds: the way there, and its cold memory.
    pub least: usize,
}

impl Size {
    pub const LARGE: Size = Size { most: 1, least: 1 };
    const SMALL: Size = Size { most: 2, least: 6 };
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
        let after = |number: usize| self.weights.layers.get(number).map_or(Work::Head, Work::Project);
        room.phase = 0;
        self.deal(rank, 0, after(0));
        self.enter_rows(rank);
        self.crew.barrier();
        each_format!(&self.pages.layers, layers => {
            for (number, (layer, kv)) in self.weights.layers.iter().zip(layers).enumerate() {
                self.project(rank, room, layer, kv);
                self.attend(rank, room, layer, kv);
                let post_norm = layer.attn_post_norm.as_deref();
                self.add(rank, room, (&layer.output, Source::Attended, post_norm), Work::Groups(&layer.gate));
                self.gate(rank, room, layer);
                let post_norm = layer.ffn_post_norm.as_deref();
                self.add(rank, room, (&layer.down, Source::Inner, post_norm), after(number + 1));
            }
        });
        self.store_embeds(rank);
        self.outputs(rank, room);
    }

    /// One phase: calls `work` for this rank's units and for what it takes over of others', until all ranks have come
    /// to the end. Deals what comes `next`.
    #[inline(always)]
    pub(super) fn phase(
        &self,
        rank: usize,
        room: &mut Rank,
        Size { most, least }: Size,
        next: Work,
        mut work: impl FnMut(&mut Rank, usize),
    ) {
        let portions = &self.scratch.portions;
        let phase = room.phase;
        let mut ahead = self.deal(rank, phase + 1, next).chunks(64);
        loop {
            while let Some(units) = portions.claim(phase, rank, most) {
                units.for_each(|unit| work(room, unit));
            }
            let idle = || ahead.by_ref().take(1).for_each(|line| self.l.prefetch(line.as_ptr()));
            if self.crew.barrier_or(idle, || portions.plenty(phase, rank, least)) {
                break;
            }
            portions.take_over(phase, rank, least);
        }
        room.phase += 1;
    }

    /// Deals `rank` its part of the work of phase `phase`. Returns the beginning of what it will read for that: who waits
    /// asks for it.
    fn deal(&self, rank: usize, phase: usize, work: Work) -> &[u8] {
        let portions = &self.scratch.portions;
        let units = match work {
            Work::Project(layer) => layer.heads() * self.head_parts(),
            Work::Attend => self.plan.units(),
            Work::Groups(matrix) => matrix.groups,
            Work::Head => self.weights.head.groups.div_ceil(HEAD_GROUPS),
            Work::Nothing => 0,
        };
        portions.deal(phase, rank, units);
        let first = portions.part(units, rank).start;
        let (matrix, group) = match work {
            _ if first == units => return &[],
            Work::Project(layer) => {
                let (_, part, head) = layer.head(first / self.head_parts());
                (&part.matrix, head * head_stride(self.shape) / LANES)
            }
            Work::Groups(matrix) => (matrix, first),
            Work::Head => (&self.weights.head, first * HEAD_GROUPS),
            Work::Attend | Work::Nothing => return &[],
        };
        let bytes = matrix.groups(&self.weights.store, group..matrix.groups);
        &bytes[..bytes.len().min(PREFETCHED)]
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
            let stream = unsafe { self.scratch.stream.row_mut(number, 0..self.scratch.stream.stride) };
            // What fills the row up takes part in its norms, and a row of another batch may have made it NaN.
            let (stream, filling) = stream.split_at_mut(hidden);
            filling.fill(0.0);
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

    /// Some tiles of the columns that [`prepare`](Step::prepare) made, each with its rows of the batch. `own` are the rank's.
    #[inline(always)]
    fn each_tile(
        &self,
        own: &Columns,
        width: usize,
        tiles: Range<usize>,
        mut work: impl FnMut(Tile, Range<usize>),
    ) {
        let columns = if self.tiles() == 1 { own } else { &self.scratch.columns };
        for tile in tiles {
            let rows = tile * TILE..self.rows.len().min((tile + 1) * TILE);
            // SAFETY: nobody writes these columns before the next barrier.
            work(unsafe { columns.tile(tile, width) }, rows);
        }
    }

    /// Parts of the batch's tiles that a head is multiplied with one after the other.
    fn head_parts(&self) -> usize {
        self.tiles().div_ceil(HEAD_TILES)
    }

    /// Queries into their plane, keys and values into their slots.
    fn project<T: Kept>(&self, rank: usize, room: &mut Rank, layer: &Layer, kv: &Kv<T>) {
        let width = self.prepare(rank, room, Source::Normed(&layer.attn_norm));
        let groups = head_stride(self.shape) / LANES;
        let parts = self.head_parts();
        let size = if self.rows.len() <= FEW { Size { most: 1, least: 2 } } else { Size::LARGE };
        self.phase(rank, room, size, Work::Attend, |room, unit| {
            let (kind, part, head) = layer.head(unit / parts);
            let first = unit % parts * HEAD_TILES;
            let tiles = first..self.tiles().min(first + HEAD_TILES);
            let Rank { columns, products: [products, _], heads: room, .. } = room;
            self.each_tile(columns, width, tiles, |tile, rows| {
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
        });
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
            // SAFETY: this rank has claimed this head of this row.
            let q = unsafe { self.scratch.q.row_mut(number, head * stride..(head + 1) * stride) };
            q.iter_mut().zip(x).for_each(|(q, x)| *q = *x * shape.query_scale);
            return;
        }
        let row = self.rows[number];
        let page = self.sequence(row).pages[row.slot / layout.page_size];
        let at = (page, head, row.slot % layout.page_size);
        // SAFETY: this rank has claimed this head of this row, and each row has a slot of its own.
        unsafe {
            match kind {
                1 => kv.put_key(l, layout, at, x),
                _ => kv.put_value(l, layout, at, x),
            }
        }
    }

    /// Multiplies and adds to the stream, or with `post_norm` puts the normed product there.
    fn add(
        &self,
        rank: usize,
        room: &mut Rank,
        (matrix, source, post_norm): (&Packed, Source, Option<&[f32]>),
        next: Work,
    ) {
        let width = self.prepare(rank, room, source);
        let (l, s) = (self.l, self.scratch);
        let to = if post_norm.is_none() { &s.stream } else { &s.branch };
        self.each_group(rank, room, width, next, |products, group, tile, rows| {
            let [products, _] = products;
            multiply(l, (matrix, &self.weights.store), group, tile, rows.len(), products);
            l.enter(
                #[inline(always)]
                || {
                    for (number, product) in rows.zip(products.iter()) {
                        // SAFETY: this rank has claimed these numbers of a row.
                        let to = unsafe { to.row_mut(number, group * LANES..(group + 1) * LANES) };
                        let to = &mut to.as_chunks_mut::<LANES>().0[0];
                        let old = if post_norm.is_none() { l.load(to) } else { l.splat(0.0) };
                        l.store(l.add(old, l.load(product)), to);
                    }
                },
            );
        });
        let Some(gains) = post_norm else { return };
        l.enter(
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
                    let scale = norm_scale(l, y, self.shape.hidden, self.shape.norm_eps);
                    for ((x, y), gain) in x.iter_mut().zip(y).zip(gains) {
                        *x += *y * scale * gain;
                    }
                }
            },
        );
        self.crew.barrier();
    }

    /// `activation(gate . x) * (up . x)`.
    fn gate(&self, rank: usize, room: &mut Rank, layer: &Layer) {
        let width = self.prepare(rank, room, Source::Normed(&layer.ffn_norm));
        let (l, store) = (self.l, &self.weights.store);
        self.each_group(rank, room, width, Work::Groups(&layer.down), |products, group, tile, rows| {
            let [gate, up] = products;
            multiply(l, (&layer.gate, store), group, tile, rows.len(), gate);
            multiply(l, (&layer.up, store), group, tile, rows.len(), up);
            l.enter(
                #[inline(always)]
                || {
                    for (number, (gate, up)) in rows.zip(gate.iter().zip(up.iter())) {
                        let own = group * LANES..(group + 1) * LANES;
                        // SAFETY: this rank has claimed these numbers of a row.
                        let to = unsafe { self.scratch.inner.row_mut(number, own) };
                        let active = gated(l, self.shape.activation, l.load(gate), l.load(up));
                        l.store(active, &mut to.as_chunks_mut::<LANES>().0[0]);
                    }
                },
            );
        });
    }

    /// The phase of a matrix: calls `work` for each of its groups with each tile of the columns.
    #[inline(always)]
    fn each_group(
        &self,
        rank: usize,
        room: &mut Rank,
        width: usize,
        next: Work,
        mut work: impl FnMut(&mut [Products; 2], usize, Tile, Range<usize>),
    ) {
        let size = if self.rows.len() <= FEW { Size::SMALL } else { Size::LARGE };
        self.phase(rank, room, size, next, |room, group| {
            let Rank { columns, products, .. } = room;
            self.each_tile(columns, width, 0..self.tiles(), |tile, rows| work(products, group, tile, rows));
        });
    }
}
