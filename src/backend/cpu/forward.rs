//! The forward pass of a batch, as every rank runs it.
//!
//! Owns: the phases of a batch, the pieces each is shared out in, and the barriers between them. Never: memory that
//! outlives the batch, nor the order of a sum (`matmul.rs`, `attention.rs`).
//!
//! A phase is a number of independent pieces: rows, heads of rows, rows of a matrix. Ranks claim pieces as they get
//! free; which rank computes a piece, and with which others, leaves no trace in its bits.
//!
//! Formulas: Touvron et al., "LLaMA" (2023); grouped heads: Ainslie et al., "GQA" (2023).

use super::attention::{View, rotate, turns_at, visible};
use super::matmul::{multiply, square_sum};
use super::outputs::Wants;
use super::pages::{Kv, Pages};
use super::scratch::{HEAD_ROWS, Plane, ROWS_PER_CLAIM, Rank, Scratch, hold, read, write};
use super::weights::{Layer, Matrix, Weights};
use crate::backend::crew::Crew;
use crate::backend::exp::exp;
use crate::backend::{Batch, Input, Sequence};
use crate::model::shape::Shape;
use std::ops::Range;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pieces that a rank should find in a matrix: enough that nobody waits long for the last one.
const CLAIMS_PER_RANK: usize = 8;

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
pub(super) struct Step<'a> {
    pub shape: &'a Shape,
    /// The mapped model file.
    pub file: &'a [u8],
    pub weights: &'a Weights,
    pub pages: &'a Pages,
    pub embeds: &'a RwLock<Plane>, // [embed, hidden]
    pub scratch: &'a Scratch,
    pub crew: &'a Crew,
    pub batch: &'a Batch,
    pub rows: &'a [Row],
    pub wants: &'a Wants<'a>,
    /// Zeros, one per phase.
    pub claims: &'a [AtomicUsize],
}

/// The claims of one phase.
#[derive(Clone, Copy)]
pub(super) struct Claims<'a>(&'a AtomicUsize);

impl<'a> Claims<'a> {
    /// Pieces of `0..count` that no other rank takes, until none is left.
    pub fn of(self, count: usize) -> impl Iterator<Item = usize> + 'a {
        std::iter::from_fn(move || {
            let piece = self.0.fetch_add(1, Ordering::Relaxed);
            (piece < count).then_some(piece)
        })
    }
}

/// The number of phases of a batch.
pub(super) fn phases(layers: usize, wants: &Wants) -> usize {
    1 + 8 * layers + 1 + 3 * wants.rows.len().div_ceil(HEAD_ROWS)
}

impl Step<'_> {
    /// The whole batch, as `rank` takes part in it.
    pub fn run(&self, rank: usize) {
        let room = &mut *hold(&self.scratch.ranks[rank]);
        let s = self.scratch;
        let mut claims = self.claims.iter();
        let mut phase = |work: &mut dyn FnMut(Claims)| {
            work(Claims(claims.next().expect("`phases` counts them all")));
            self.crew.barrier();
        };
        phase(&mut |claims| self.enter(claims));
        for (layer, kv) in self.weights.layers.iter().zip(&self.pages.layers) {
            let Layer { q, k, v, output, down, .. } = layer;
            phase(&mut |claims| self.norm(claims, &layer.attn_norm));
            phase(&mut |claims| {
                let planes = [(q, &s.q), (k, &s.k), (v, &s.v)];
                self.project(claims, room, &s.normed, &planes, |into, from| into.copy_from_slice(from));
            });
            phase(&mut |claims| self.append(claims, kv));
            phase(&mut |claims| self.attend(claims, room, kv));
            phase(&mut |claims| self.project(claims, room, &s.attended, &[(output, &s.stream)], add));
            phase(&mut |claims| self.norm(claims, &layer.ffn_norm));
            phase(&mut |claims| self.gate(claims, room, layer));
            phase(&mut |claims| self.project(claims, room, &s.inner, &[(down, &s.stream)], add));
        }
        phase(&mut |claims| self.store_embeds(claims));
        for group in self.wants.groups() {
            phase(&mut |claims| self.last_norm(claims, group.clone()));
            phase(&mut |claims| self.head(claims, room, group.len()));
            phase(&mut |claims| self.produce(claims, room, group.clone()));
        }
    }

    fn sequence(&self, row: Row) -> &Sequence {
        &self.batch.sequences[row.sequence]
    }

    /// The rows' first hidden states and the angles of their positions.
    fn enter(&self, claims: Claims) {
        let embeds = read(self.embeds);
        for piece in claims.of(self.rows.len()) {
            let row = self.rows[piece];
            let sequence = self.sequence(row);
            let stream = &mut *write(&self.scratch.stream);
            match sequence.inputs[row.index] {
                Input::Token(token) => {
                    let hidden = &mut stream.row_mut(piece)[..self.shape.hidden];
                    self.weights.embedding.dequantize(self.file, token.0 as usize, hidden);
                }
                Input::Embed(embed) => {
                    stream.row_mut(piece).copy_from_slice(embeds.row(embed.0 as usize));
                }
            }
            let turns = &mut *write(&self.scratch.turns);
            turns_at(sequence.positions[row.index], &self.weights.turns, turns.row_mut(piece));
        }
    }

    fn norm(&self, claims: Claims, gains: &[f32]) {
        let stream = read(&self.scratch.stream);
        for row in claims.of(self.rows.len()) {
            self.norm_row(stream.row(row), gains, &self.scratch.normed, row);
        }
    }

    /// `x / sqrt(mean(x^2) + eps) * gain`; Zhang, Sennrich, "Root mean square layer normalization" (2019).
    pub(super) fn norm_row(&self, x: &[f32], gains: &[f32], into: &RwLock<Plane>, row: usize) {
        let mean = square_sum(x) / self.shape.hidden as f32;
        let scale = 1.0 / (mean + self.shape.norm_eps).sqrt();
        let into = &mut *write(into);
        for ((into, x), gain) in into.row_mut(row).iter_mut().zip(x).zip(gains) {
            *into = x * scale * gain;
        }
    }

    /// The rows of `matrix` in each claim, the last one's perhaps fewer.
    fn rows_per_claim(&self, matrix: &Matrix) -> usize {
        let share = matrix.rows / (CLAIMS_PER_RANK * self.crew.size());
        share.clamp(4, ROWS_PER_CLAIM).next_multiple_of(4)
    }

    /// Multiplies the rows of plane `from` with each matrix; `commit(into, products)` puts them in its plane.
    fn project(
        &self,
        claims: Claims,
        room: &mut Rank,
        from: &RwLock<Plane>,
        planes: &[(&Matrix, &RwLock<Plane>)],
        commit: impl Fn(&mut [f32], &[f32]),
    ) {
        let from = read(from);
        let columns = from.rows(self.rows.len());
        let count = |matrix: &Matrix| matrix.rows.div_ceil(self.rows_per_claim(matrix));
        for mut piece in claims.of(planes.iter().map(|(matrix, _)| count(matrix)).sum()) {
            let mut planes = planes.iter();
            let (matrix, into) = loop {
                let (matrix, into) = planes.next().expect("pieces are counted over the planes");
                match piece.checked_sub(count(matrix)) {
                    Some(rest) => piece = rest,
                    None => break (matrix, into),
                }
            };
            let rows = self.claimed(matrix, piece);
            let product = &mut room.product[0][..self.rows.len() * rows.len()];
            multiply(matrix, self.file, rows.clone(), columns, &mut room.rows, product);
            let into = &mut *write(into);
            for (row, product) in product.chunks_exact(rows.len()).enumerate() {
                commit(&mut into.row_mut(row)[rows.clone()], product);
            }
        }
    }

    fn claimed(&self, matrix: &Matrix, piece: usize) -> Range<usize> {
        let rows = self.rows_per_claim(matrix);
        piece * rows..matrix.rows.min((piece + 1) * rows)
    }

    /// Puts the rows' keys, turned by their positions, and values into their slots.
    fn append(&self, claims: Claims, kv: &RwLock<Kv>) {
        let [k, v, turns] = [&self.scratch.k, &self.scratch.v, &self.scratch.turns].map(read);
        let (head_dim, page_size) = (self.shape.head_dim, self.pages.layout.page_size);
        for piece in claims.of(self.rows.len()) {
            let row = self.rows[piece];
            let page = self.sequence(row).pages[row.slot / page_size];
            let slot = row.slot % page_size;
            let kv = &mut *write(kv);
            for kv_head in 0..self.shape.kv_heads {
                let to = self.pages.layout.slots(page, kv_head, slot..slot + 1).start;
                let from = kv_head * head_dim..(kv_head + 1) * head_dim;
                let key = &mut kv.keys[to..to + head_dim];
                key.copy_from_slice(&k.row(piece)[from.clone()]);
                rotate(key, turns.row(piece), self.shape.rope.dims);
                kv.values[to..to + head_dim].copy_from_slice(&v.row(piece)[from]);
            }
        }
    }

    fn attend(&self, claims: Claims, room: &mut Rank, kv: &RwLock<Kv>) {
        let [q, turns] = [&self.scratch.q, &self.scratch.turns].map(read);
        let kv = read(kv);
        let Shape { heads, kv_heads, head_dim, .. } = *self.shape;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for piece in claims.of(self.rows.len() * heads) {
            let (row, head) = (piece / heads, piece % heads);
            let numbers = head * head_dim..(head + 1) * head_dim;
            let query = &mut room.query[..head_dim]; // the padding stays 0
            query.copy_from_slice(&q.row(row)[numbers.clone()]);
            rotate(query, turns.row(row), self.shape.rope.dims);
            query.iter_mut().for_each(|x| *x *= scale);

            let Row { slot, index, .. } = self.rows[row];
            let sequence = self.sequence(self.rows[row]);
            let kv_head = head / (heads / kv_heads);
            let view = View { kv: &kv, layout: self.pages.layout, kv_head, pages: &sequence.pages };
            let seen = visible(&sequence.mask, index, slot);
            view.attend(seen, slot + 1, &room.query, &mut room.scores, &mut room.attended);
            let attended = &mut *write(&self.scratch.attended);
            attended.row_mut(row)[numbers].copy_from_slice(&room.attended[..head_dim]);
        }
    }

    /// `silu(gate . x) * (up . x)`; Shazeer, "GLU variants improve transformer" (2020).
    fn gate(&self, claims: Claims, room: &mut Rank, layer: &Layer) {
        let normed = read(&self.scratch.normed);
        let columns = normed.rows(self.rows.len());
        let pieces = layer.gate.rows.div_ceil(self.rows_per_claim(&layer.gate));
        for piece in claims.of(pieces) {
            let rows = self.claimed(&layer.gate, piece);
            let [gate, up] = room.product.each_mut().map(|room| &mut room[..self.rows.len() * rows.len()]);
            multiply(&layer.gate, self.file, rows.clone(), columns, &mut room.rows, gate);
            multiply(&layer.up, self.file, rows.clone(), columns, &mut room.rows, up);
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate / (1.0 + exp(-*gate)) * *up;
            }
            let inner = &mut *write(&self.scratch.inner);
            for (row, product) in gate.chunks_exact(rows.len()).enumerate() {
                inner.row_mut(row)[rows.clone()].copy_from_slice(product);
            }
        }
    }

    /// The logits of the first `count` rows of the plane `last`.
    fn head(&self, claims: Claims, room: &mut Rank, count: usize) {
        let last = read(&self.scratch.last);
        let head = &self.weights.head;
        for piece in claims.of(head.rows.div_ceil(self.rows_per_claim(head))) {
            let rows = self.claimed(head, piece);
            let product = &mut room.product[0][..count * rows.len()];
            multiply(head, self.file, rows.clone(), last.rows(count), &mut room.rows, product);
            let logits = &mut *write(&self.scratch.logits);
            for (row, product) in product.chunks_exact(rows.len()).enumerate() {
                logits.row_mut(row)[rows.clone()].copy_from_slice(product);
            }
        }
    }
}

fn add(into: &mut [f32], from: &[f32]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
}
