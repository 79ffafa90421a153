//! The launches of one step, in their order.
//!
//! Owns: what is computed from what. Never: how a kernel is launched (`launches.rs`), nor whether the launches are done at
//! once or recorded.
//!
//! ```text
//! embed ▸ of each layer: (norm, quantise ▸ Q K V ▸ bias, norm, RoPE, append) ▸ attend ▸ (quantise ▸ output + stream) ▸
//!         (norm, quantise ▸ gate, up ▸ activation, quantise) ▸ down + stream ▸ store ▸
//! choose ▸ norm, quantise ▸ head ▸ cap ▸ best, weigh ▸ draw, top
//! ```
//! What stands in brackets is one launch where `fused.rs` finds that it can be. Attention of a prompt's rows has a second one
//! where they lie in several splits.

use super::fused::Raw;
use super::launches::{Heads, Launches, Planes, Prepared, Projected};
use super::plan::splits;
use super::room::{Ready, Room, TOPS_AT};
use super::staging::{Kinds, Places, Sizes, Tile};
use super::weights::{Activations, Layer, Matrix, Weights, activations};
use super::{Buffer, Error};
use crate::model::shape::{Activation, Shape};
use std::slice;

/// Where everything is that a step works with.
pub(super) struct Step<'a> {
    pub launches: Launches<'a>,
    pub shape: &'a Shape,
    pub heads: &'a Heads,
    pub kinds: &'a Kinds,
    pub weights: &'a Weights,
    pub room: &'a Room<Buffer>,
    pub planes: Planes,
    pub pages: usize,
    /// The rows behind the first `few`, as attention takes them.
    pub tiles: &'a [Tile],
}

impl Step<'_> {
    /// Puts all of it into the stream.
    pub fn put(&self, sizes: &Sizes) -> Result<(), Error> {
        let places = Places::of(sizes, self.kinds);
        if sizes.rows > 0 {
            self.embed(sizes, &places)?;
            for (number, layer) in self.weights.layers.iter().enumerate() {
                self.attention(sizes, &places, number, layer)?;
                self.feed_forward(sizes, layer)?;
            }
        }
        if sizes.stored > 0 {
            let lists = [places.to, places.from].map(|place| Some(self.staged(place)));
            let (to, from) = (self.room.embeds.address(), self.room.stream.address());
            self.launches.copy_rows([to, from], lists, [sizes.stored, self.shape.hidden])?;
        }
        if sizes.head_rows() > 0 { self.head(sizes, &places) } else { Ok(()) }
    }

    fn staged(&self, place: usize) -> u64 {
        self.room.staged.address() + place as u64
    }

    fn embed(&self, sizes: &Sizes, places: &Places) -> Result<(), Error> {
        let to = [self.staged(places.inputs), self.room.embeds.address(), self.room.stream.address()];
        self.launches.embed(&self.weights.embedding, to, sizes.rows, self.shape.embedding_scale)
    }

    /// Where rows go for these matrices, in the forms that they read.
    fn prepared(&self, matrices: &[Matrix], room: &Ready<Buffer>) -> Prepared {
        let want = |form| matrices.iter().any(|matrix| activations(matrix.quant) == form);
        let if_wanted =
            |form, buffer: Option<&Buffer>| buffer.filter(|_| want(form)).map_or(0, Buffer::address);
        Prepared {
            xq: if_wanted(Activations::Quants, Some(&room.xq)),
            xs: if_wanted(Activations::Quants, Some(&room.xs)),
            bf16: if_wanted(Activations::Bf16, room.bf16.as_ref()),
            f16: if_wanted(Activations::F16, room.f16.as_ref()),
        }
    }

    /// Rows for these matrices, through a norm if there is a gain.
    fn raw(&self, x: &Buffer, gain: Option<&Buffer>, matrices: &[Matrix]) -> Raw {
        let ready = self.prepared(matrices, &self.room.ready);
        Raw { x: x.address(), gain: gain.map(Buffer::address), eps: self.shape.norm_eps, ready }
    }

    fn attention(&self, sizes: &Sizes, places: &Places, number: usize, layer: &Layer) -> Result<(), Error> {
        let Step { launches, room, .. } = self;
        let place = |buffer: &Option<Buffer>| buffer.as_ref().map(Buffer::address);
        let plane = |at: usize| self.planes.pool + (at * self.planes.stride) as u64;
        let pages = [2 * number, 2 * number + 1].map(plane);
        let projected = Projected {
            biases: [&layer.q_bias, &layer.k_bias, &layer.v_bias].map(place),
            gains: [&layer.q_norm, &layer.k_norm].map(place),
            turns: self.staged(places.turns + layer.turns * places.turns_stride),
            slots: self.staged(places.slots),
            out: room.q.address(),
            pages,
        };
        let rows = self.raw(&room.stream, Some(&layer.attn_norm), &layer.qkv.matrices);
        launches.qkv(&layer.qkv, rows, room.qkv.address(), self.heads, projected, sizes.rows)?;
        self.attend(sizes, places, pages, layer)?;
        let rows = self.raw(&room.attended, None, slice::from_ref(&layer.output));
        self.add(layer.attn_post_norm.as_ref(), sizes.rows, |to, adds| {
            launches.output(&layer.output, rows, to, sizes.rows, adds)
        })
    }

    /// As many rows at a time as attention's scratch holds splits of.
    fn attend(
        &self,
        sizes: &Sizes,
        places: &Places,
        [keys, values]: [u64; 2],
        layer: &Layer,
    ) -> Result<(), Error> {
        let window = self.kinds.windows.iter().position(|window| *window == layer.window).unwrap_or(0);
        let rows_at = self.staged(places.rows + window * places.rows_stride);
        let at_once = sizes.rows_at_once(splits(self.pages));
        let room = self.room;
        for first in (0..sizes.few).step_by(at_once) {
            let skipped = (first * self.shape.q_width() * 4) as u64;
            let count = at_once.min(sizes.few - first);
            self.launches.attend(
                self.heads,
                [room.q.address() + skipped, keys, values],
                [rows_at + (first * 16) as u64, self.staged(places.tail)],
                [
                    room.attended.address() + skipped,
                    room.sums.address(),
                    room.scales.address(),
                    room.tickets.address(),
                ],
                [count, sizes.splits],
            )?;
        }
        let largest = self.tiles.iter().map(|tile| tile.count).max().unwrap_or(1);
        let tiles_at_once = (at_once / largest).max(1);
        let mut tiles_at = self.staged(places.tiles);
        for part in self.tiles.chunks(tiles_at_once) {
            let (first, rows) = (part[0].row, part.iter().map(|tile| tile.count).sum());
            self.launches.prefill(
                self.heads,
                [room.q.address(), keys, values],
                [rows_at, self.staged(places.tail), tiles_at],
                [&room.attended, &room.sums, &room.scales].map(Buffer::address),
                [first, rows, part.len(), sizes.splits],
            )?;
            tiles_at += (part.len() * 8) as u64;
        }
        Ok(())
    }

    fn feed_forward(&self, sizes: &Sizes, layer: &Layer) -> Result<(), Error> {
        let Step { launches, room, shape, .. } = self;
        let rows = self.raw(&room.stream, Some(&layer.ffn_norm), &layer.gate_up.matrices);
        let inner = self.prepared(slice::from_ref(&layer.down), &room.inner);
        let gelu = shape.activation == Activation::GeluTanh;
        let size = [sizes.rows, shape.ffn];
        launches.gate_up(&layer.gate_up, rows, room.gate_up.address(), inner, size, gelu)?;
        self.add(layer.ffn_post_norm.as_ref(), sizes.rows, |to, adds| {
            launches.product(&layer.down, inner, to, sizes.rows, adds)
        })
    }

    /// Has `product` added to the stream, or with `post_norm` the normed product.
    fn add(
        &self,
        post_norm: Option<&Buffer>,
        rows: usize,
        product: impl Fn(u64, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stream = self.room.stream.address();
        match (post_norm, &self.room.branch) {
            (Some(gain), Some(branch)) => {
                product(branch.address(), false)?;
                let places = [stream, branch.address(), gain.address()];
                self.launches.add_normed(places, [rows, self.shape.hidden], self.shape.norm_eps)
            }
            _ => product(stream, true),
        }
    }

    /// What is wanted of the rows' logits.
    fn head(&self, sizes: &Sizes, places: &Places) -> Result<(), Error> {
        let Step { launches, room, shape, weights, .. } = self;
        let (rows, vocab) = (sizes.head_rows(), shape.vocab);
        let chosen = room.chosen.address();
        let lists = [None, Some(self.staged(places.chosen))];
        launches.copy_rows([chosen, room.stream.address()], lists, [rows, shape.hidden])?;
        let head = weights.head();
        let x = self.prepared(slice::from_ref(head), &room.ready);
        let gain = Some(weights.output_norm.address());
        launches.norm_quantize(chosen, gain, x, [rows, shape.hidden], shape.norm_eps)?;
        let logits = room.logits.address();
        launches.product(head, x, logits, rows, false)?;
        if let Some(cap) = shape.logit_cap {
            launches.cap_logits(logits, rows * vocab, cap)?;
        }
        let (best, weighed) = (room.best.address(), room.weighed.address());
        let (draws, results) = (self.staged(places.draws), room.results.address());
        launches.weigh([logits, best, draws, weighed], [rows, vocab])?;
        if sizes.tokens > 0 {
            launches.draw([logits, best, weighed, draws, results], [sizes.tokens, vocab])?;
        }
        if sizes.tops > 0 {
            let behind = |place: u64, bytes: usize| place + (sizes.tokens * bytes) as u64;
            let stretches = vocab.div_ceil(crate::backend::sample::LOGITS_PER_MAXIMUM);
            let operands = [
                behind(logits, vocab * 4),
                behind(best, stretches * 8),
                behind(weighed, stretches * 8),
                behind(draws, super::draw::RECORD),
                self.staged(places.counts),
                results + TOPS_AT as u64,
            ];
            launches.top(operands, [sizes.tops, vocab, sizes.entries])?;
        }
        Ok(())
    }
}
