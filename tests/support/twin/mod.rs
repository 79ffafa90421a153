//! The backends' twins: one forward pass in plain Rust, with the GPU's arithmetic or the processor's. What a backend gives is
//! compared with its twin to the bit, whatever the model; so all in which backends differ is what their twins differ in.
//!
//! Owns: what is computed from what; the order in which numbers are added, as the heads of the kernels have it (`gpu.rs`) and
//! those of `src/backend/cpu` (`processor.rs`). Never: a backend's code: no kernel, no lanes, no staging.
//!
//! | | GPU | processor |
//! |---|---|---|
//! | a sum of squares | over threads, lanes, warps (`norm.inc`) | over sixteen lanes in four chains (`vector.rs`) |
//! | a product's blocks | four runs, added in their order (`gemv.inc`) | one after the other (`kernels.rs`) |
//! | weights of 16 bits | meet activations of as many | meet f32 |
//! | attention (`attend.inc`, `attention.rs`) | page by page; weights of f16, queries of 22 bits | all of a stretch in f32 |
//!
//! The first two are roundings of f32, some 2^-24 of a sum, the others of 16 bits, 2^-9 (bf16) and 2^-12 of a number. Before
//! quantised weights all of them end in activations of 8 bits: where one lies within such a rounding of the middle between two quants, it becomes the
//! other one, 1/127 of its block's largest away, and what depends on it is as far off as quantisation alone brings it.
//!
//! Of the 441 greedy tokens of `gpu_model.rs` 6 differ so. With the processor's attention in the GPU's place 1 does: of a model
//! with activations of 16 bits. Four of the other five quantised ones then agree to 1e-5, in one a quant is another. With the
//! processor's norms, products, or 16-bit activations instead, 6 differ as before.

mod gpu;
mod processor;

use crate::sums::{Block, f32_to_f16, is_float, runs, sum};
use std::sync::Arc;
use tartlet::backend::cpu::plain::{activated, capped, quantise};
use tartlet::backend::sample::{LOGITS_PER_MAXIMUM, Logits, Sampling, random};
use tartlet::backend::{
    Backend, Batch, EmbedId, Fault, Info, Input, Mask, Outcome, Output, PageId, Produced, Sequence,
};
use tartlet::model::quant::{Quant, f16_to_f32};
use tartlet::model::shape::{Pairing, Shape};
use tartlet::model::{Extent, Model};

const PAGE: usize = 16;

/// To the nearest half and back, within what halves have.
fn f16(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x.clamp(-65504.0, 65504.0)))
}

/// Whose arithmetic it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Gpu,
    Processor,
}

/// One head of one row.
struct Query<'a> {
    /// After RoPE, not scaled.
    q: &'a [f32],
    scale: f32,
    cap: Option<f32>,
    /// The first slot that the window leaves, and the end: the row's own slot is the last.
    first: usize,
    length: usize,
    /// Whether the row's mask shows a slot.
    shows: &'a dyn Fn(usize) -> bool,
    /// A slot's key, and its value.
    key: &'a dyn Fn(usize) -> &'a [f32],
    value: &'a dyn Fn(usize) -> &'a [f32],
}

impl Query<'_> {
    fn sees(&self, slot: usize) -> bool {
        (self.first..self.length).contains(&slot) && (self.shows)(slot)
    }
}

struct Matrix {
    quant: Quant,
    values: Vec<Vec<f32>>,   // [row][column]
    blocks: Vec<Vec<Block>>, // [row]; of floats none
}

/// A row of the batch as matrices read it.
struct Columns {
    values: Vec<f32>,
    quants: Vec<i8>,
    scales: Vec<(f32, i32)>,
}

impl Columns {
    fn of(values: Vec<f32>) -> Columns {
        let (quants, scales) = quantise(&values).expect("room for a row");
        Columns { values, quants, scales }
    }
}

impl Matrix {
    fn of(model: &Model, extent: &Extent) -> Matrix {
        let tensor = model.gguf.tensor_at(extent);
        let (quant, columns) = (tensor.kind, tensor.dims[0]);
        let values = |row| {
            let mut values = vec![0.0; columns];
            quant.dequantize(tensor.row(row), &mut values);
            values
        };
        let blocks = |row| {
            let blocks = tensor.row(row).chunks(quant.block_bytes()).filter(|_| !is_float(quant));
            blocks.flat_map(|bytes| Block::of(quant, bytes)).collect()
        };
        let rows = 0..tensor.rows();
        Matrix { quant, values: rows.clone().map(values).collect(), blocks: rows.map(blocks).collect() }
    }

    fn times(&self, side: Side, x: &Columns) -> Vec<f32> {
        if is_float(self.quant) {
            let x = &x.values;
            return match side {
                Side::Gpu => gpu::products(self.quant, &self.values, x),
                Side::Processor => processor::products(&self.values, x),
            };
        }
        let product = |blocks: &Vec<Block>| match side {
            Side::Gpu => {
                let runs = runs(self.quant, blocks.len()).map(|run| {
                    sum(&blocks[run.clone()], &x.quants[run.start * 32..], &x.scales[run.start..])
                });
                runs.reduce(|sum, next| sum + next).unwrap_or(0.0)
            }
            Side::Processor => sum(blocks, &x.quants, &x.scales),
        };
        self.blocks.iter().map(product).collect()
    }
}

/// What makes the queries, the keys or the values.
struct Projection {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
    /// Of each head.
    gain: Option<Vec<f32>>,
}

struct Layer {
    attn_norm: Vec<f32>,
    q: Projection,
    k: Projection,
    v: Projection,
    output: Matrix,
    attn_post_norm: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    ffn_post_norm: Option<Vec<f32>>,
    /// Radians by which one position turns each pair.
    turns: Vec<f64>,
    window: Option<usize>,
    /// [page * PAGE + slot][kv head][head dim]
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// A backend's twin.
pub struct Twin {
    side: Side,
    info: Info,
    shape: Shape,
    embedding: Matrix,
    head: Option<Matrix>,
    output_norm: Vec<f32>,
    layers: Vec<Layer>,
    embeds: Vec<Vec<f32>>,
    /// Of the last batch.
    made: Outcome,
}

impl Twin {
    /// Of a backend with these sizes.
    pub fn new(side: Side, model: &Arc<Model>, info: &Info) -> Twin {
        let (shape, weights) = (model.shape.clone(), &model.weights);
        let factors = weights.rope_factors.as_ref().map(|factors| &*factors.divisors);
        let vector = |extent: &Extent| model.gguf.tensor_at(extent).values();
        let if_there = |extent: &Option<Extent>| extent.as_ref().map(vector);
        let matrix = |extent: &Extent| Matrix::of(model, extent);
        let projection = |extent: &Extent, bias: &Option<Extent>, gain: Option<Vec<f32>>| Projection {
            matrix: matrix(extent),
            bias: if_there(bias),
            gain,
        };
        let slots = vec![vec![0.0; shape.kv_width()]; info.pages as usize * PAGE];
        let layer = |(number, layer): (usize, &tartlet::model::Layer)| Layer {
            attn_norm: vector(&layer.attn_norm),
            q: projection(&layer.attn_q, &layer.q_bias, if_there(&layer.q_norm)),
            k: projection(&layer.attn_k, &layer.k_bias, if_there(&layer.k_norm)),
            v: projection(&layer.attn_v, &layer.v_bias, None),
            output: matrix(&layer.attn_output),
            attn_post_norm: if_there(&layer.attn_post_norm),
            ffn_norm: vector(&layer.ffn_norm),
            gate: matrix(&layer.ffn_gate),
            up: matrix(&layer.ffn_up),
            down: matrix(&layer.ffn_down),
            ffn_post_norm: if_there(&layer.ffn_post_norm),
            turns: shape.turns_of(number, factors),
            window: shape.window_of(number),
            keys: slots.clone(),
            values: slots.clone(),
        };
        Twin {
            side,
            info: info.clone(),
            embedding: matrix(&weights.embedding),
            head: (!shape.tied_head).then(|| matrix(&weights.head)),
            output_norm: vector(&weights.output_norm),
            layers: weights.layers.iter().enumerate().map(layer).collect(),
            embeds: vec![vec![0.0; shape.hidden]; info.embeds as usize],
            made: Outcome::default(),
            shape,
        }
    }

    /// Every row of the batch through every layer: their hidden states.
    fn rows(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let Twin { shape, embedding, embeds, layers, side, .. } = self;
        let side = *side;
        let rows: Vec<(&Sequence, usize)> = batch
            .sequences
            .iter()
            .flat_map(|sequence| (0..sequence.inputs.len()).map(move |row| (sequence, row)))
            .collect();
        let enter = |&(sequence, row): &(&Sequence, usize)| match sequence.inputs[row] {
            Input::Token(token) => {
                let values = &embedding.values[token.0 as usize];
                values.iter().map(|x| x * shape.embedding_scale).collect()
            }
            Input::Embed(slot) => embeds[slot.0 as usize].clone(),
        };
        let mut stream: Vec<Vec<f32>> = rows.iter().map(enter).collect();
        for layer in layers {
            let project = |(x, (sequence, row)): (&Vec<f32>, &(&Sequence, usize))| {
                let x = Columns::of(normed(side, x, &layer.attn_norm, shape.norm_eps));
                let turns = turns(sequence.positions[*row], &layer.turns, shape.rope.attention_scale);
                let [q, k] = [&layer.q, &layer.k].map(|part| part.heads(side, &x, Some(&turns), shape));
                (q, k, layer.v.heads(side, &x, None, shape))
            };
            let projected: Vec<(Vec<f32>, Vec<f32>, Vec<f32>)> =
                stream.iter().zip(&rows).map(project).collect();
            for ((_, key, value), (sequence, row)) in projected.iter().zip(&rows) {
                let slot = place(sequence, slot_of(sequence, *row));
                layer.keys[slot] = key.iter().copied().map(f16).collect();
                layer.values[slot] = value.iter().copied().map(f16).collect();
            }
            for ((x, (q, ..)), (sequence, row)) in stream.iter_mut().zip(&projected).zip(&rows) {
                let attended = Columns::of(layer.attend(side, q, sequence, *row, shape));
                let y = layer.output.times(side, &attended);
                join(side, x, y, layer.attn_post_norm.as_deref(), shape.norm_eps);
                let inner = Columns::of(normed(side, x, &layer.ffn_norm, shape.norm_eps));
                let gate = activated(&layer.gate.times(side, &inner), shape.activation);
                let up = layer.up.times(side, &inner);
                let inner = Columns::of(gate.iter().zip(up).map(|(gate, up)| gate * up).collect());
                let y = layer.down.times(side, &inner);
                join(side, x, y, layer.ffn_post_norm.as_deref(), shape.norm_eps);
            }
        }
        stream
    }

    fn logits_of(&self, x: &[f32]) -> Vec<f32> {
        let side = self.side;
        let x = Columns::of(normed(side, x, &self.output_norm, self.shape.norm_eps));
        let logits = self.head.as_ref().unwrap_or(&self.embedding).times(side, &x);
        self.shape.logit_cap.map_or(logits.clone(), |cap| capped(&logits, cap))
    }
}

fn normed(side: Side, x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let norm = match side {
        Side::Gpu => crate::sums::norm(x, eps),
        Side::Processor => processor::norm(x, eps),
    };
    x.iter().zip(gain).map(|(x, gain)| x * norm * gain).collect()
}

/// Adds what a block gave to the stream.
fn join(side: Side, x: &mut [f32], y: Vec<f32>, post_norm: Option<&[f32]>, eps: f32) {
    let y = post_norm.map_or_else(|| y.clone(), |gain| normed(side, &y, gain, eps));
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Cosine and sine of each pair.
fn turns(position: u32, per_position: &[f64], scale: f32) -> Vec<[f32; 2]> {
    let turn = |turn: &f64| {
        let (sin, cos) = (f64::from(position) * turn).sin_cos();
        [cos, sin].map(|x| (x * f64::from(scale)) as f32)
    };
    per_position.iter().map(turn).collect()
}

fn slot_of(sequence: &Sequence, row: usize) -> usize {
    sequence.len as usize - sequence.inputs.len() + row
}

/// Where a sequence's slot lies.
fn place(sequence: &Sequence, slot: usize) -> usize {
    sequence.pages[slot / PAGE].0 as usize * PAGE + slot % PAGE
}

impl Projection {
    /// The heads, with bias and norm, turned if they are queries or keys.
    fn heads(&self, side: Side, x: &Columns, turns: Option<&[[f32; 2]]>, shape: &Shape) -> Vec<f32> {
        let mut all = self.matrix.times(side, x);
        if let Some(bias) = &self.bias {
            all.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
        let Some(turns) = turns else { return all };
        let turned = turns.len();
        let pairs = (0..shape.head_dim / 2).map(|pair| match shape.rope.pairing {
            Pairing::Halves if pair < turned => [pair, pair + turned],
            _ => [2 * pair, 2 * pair + 1],
        });
        let mut pairs: Vec<[usize; 2]> = pairs.collect();
        let mut order: Vec<usize> = (0..shape.head_dim).collect();
        if side == Side::Processor {
            // Its matrices have the rows of a pair side by side: so go its sums over a head.
            order = pairs.concat();
            pairs = (0..shape.head_dim / 2).map(|pair| [2 * pair, 2 * pair + 1]).collect();
        }
        for head in all.chunks_mut(shape.head_dim) {
            let mut x: Vec<f32> = order.iter().map(|&at| head[at]).collect();
            if let Some(gain) = &self.gain {
                let norm = match side {
                    Side::Gpu => gpu::head_norm(&x, &pairs, shape.norm_eps),
                    Side::Processor => processor::norm(&x, shape.norm_eps),
                };
                x.iter_mut().zip(&order).for_each(|(x, &at)| *x = *x * norm * gain[at]);
            }
            for ([first, second], [cos, sin]) in pairs.iter().zip(turns) {
                let (a, b) = (x[*first], x[*second]);
                x[*first] = a * cos - b * sin;
                x[*second] = a * sin + b * cos;
            }
            head.copy_from_slice(&x);
        }
        all
    }
}

impl Layer {
    fn attend(&self, side: Side, q: &[f32], sequence: &Sequence, row: usize, shape: &Shape) -> Vec<f32> {
        let (slot, dims) = (slot_of(sequence, row), shape.head_dim);
        let seen: Vec<bool> = match &sequence.mask {
            Mask::Causal => vec![true; slot + 1],
            Mask::Runs(runs) => {
                let runs = runs[row].iter().enumerate();
                runs.flat_map(|(run, &len)| vec![run % 2 == 0; len as usize]).collect()
            }
        };
        let group = shape.heads / shape.kv_heads;
        let head = |(head, q): (usize, &[f32])| {
            let own = head / group * dims..(head / group + 1) * dims;
            let query = Query {
                q,
                scale: shape.query_scale,
                cap: shape.score_cap,
                first: self.window.map_or(0, |window| (slot + 1).saturating_sub(window)),
                length: slot + 1,
                shows: &|slot| seen[slot],
                key: &|slot| &self.keys[place(sequence, slot)][own.clone()],
                value: &|slot| &self.values[place(sequence, slot)][own.clone()],
            };
            match side {
                Side::Gpu => gpu::attend(&query),
                Side::Processor => processor::attend(&query),
            }
        };
        q.chunks(dims).enumerate().flat_map(head).collect()
    }
}

impl Backend for Twin {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let hidden = self.rows(batch);
        self.made.produced.clear();
        let mut sampling = Sampling::new(self.shape.vocab);
        let mut first = 0;
        for sequence in &batch.sequences {
            let mut made = Vec::new();
            for output in &sequence.outputs {
                let (Output::Token { row, .. }
                | Output::Distribution { row, .. }
                | Output::Embed { row, .. }) = *output;
                let hidden = &hidden[first + row as usize];
                if let Output::Embed { to: EmbedId(to), .. } = output {
                    self.embeds[*to as usize] = hidden.clone();
                    continue;
                }
                let all = self.logits_of(hidden);
                let largest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let maxima: Vec<f32> = all.chunks(LOGITS_PER_MAXIMUM).map(largest).collect();
                let logits = Logits { all: &all, maxima: &maxima };
                made.push(match *output {
                    Output::Token { sampler, ordinal, .. } => {
                        Produced::Token(sampling.token(logits, sampler, random(sequence.draw, ordinal)))
                    }
                    Output::Distribution { temperature, top_k, .. } => {
                        sampling.distribution(logits, temperature, top_k)
                    }
                    Output::Embed { .. } => unreachable!("stored before"),
                });
            }
            self.made.produced.push(made);
            first += sequence.inputs.len();
        }
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome, _pause: bool) -> Result<bool, Fault> {
        std::mem::swap(outcome, &mut self.made);
        Ok(true)
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault> {
        for layer in &mut self.layers {
            for rows in [&mut layer.keys, &mut layer.values] {
                for slot in 0..PAGE {
                    rows[to.0 as usize * PAGE + slot] = rows[from.0 as usize * PAGE + slot].clone();
                }
            }
        }
        Ok(())
    }

    fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault> {
        for layer in &mut self.layers {
            for rows in [&mut layer.keys, &mut layer.values] {
                rows[page.0 as usize * PAGE..][from as usize..PAGE].iter_mut().for_each(|row| row.fill(0.0));
            }
        }
        Ok(())
    }
}
