//! The GPU's twin: the forward pass in plain Rust with the kernels' arithmetic, so that what the device gives is compared to
//! the bit, whatever the model.
//!
//! Owns: what is computed from what, and in which order numbers are added, as the heads of the kernels say. Never: anything
//! of the device's own code: no kernel, no launch, no staging.
//!
//! Beside the processor's vector paths four things differ, and nothing else:
//! - a sum of squares goes over threads and lanes (`norm.inc`), there over sixteen lanes;
//! - a product's blocks are added in four runs (`gemv.inc`), there one after the other;
//! - weights of 16 bits meet activations of 16 bits, there of f32;
//! - attention's weights are f16 in the weighted sum, its queries have 22 bits, its sums go page by page, and its powers are of
//!   2 (`attend.inc`); there all of it is f32.
//!
//! The first two are roundings of f32. But after each of the four activations become quants of 8 bits, and where one falls to
//! the other side of a half its quant differs by one, 1/127 of its block's largest: that is what brings logits apart.

mod attend;

use crate::sums::{Block, f32_to_f16, is_float, norm, of_16, product, to_16};
use attend::{Query, mma};
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

struct Matrix {
    quant: Quant,
    columns: usize,
    /// As the file has them.
    rows: Vec<Vec<u8>>,
}

/// A row of the batch as matrices read it.
struct Columns {
    values: Vec<f32>,
    quants: Vec<i8>,
    scales: Vec<(f32, i32)>,
}

impl Columns {
    fn of(values: Vec<f32>) -> Columns {
        let (mut quants, mut scales) = quantise(&values).expect("room for a row");
        quants.resize(quants.len().next_multiple_of(64), 0);
        scales.resize(quants.len() / 32, (0.0, 0));
        Columns { values, quants, scales }
    }
}

impl Matrix {
    fn of(model: &Model, extent: &Extent) -> Matrix {
        let tensor = model.gguf.tensor_at(extent);
        let rows = (0..tensor.rows()).map(|row| tensor.row(row).to_vec()).collect();
        Matrix { quant: tensor.kind, columns: tensor.dims[0], rows }
    }

    fn values(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.columns];
        self.quant.dequantize(&self.rows[row], &mut values);
        values
    }

    fn times(&self, x: &Columns) -> Vec<f32> {
        if !is_float(self.quant) {
            return self.rows.iter().map(|row| product(self.quant, row, &x.quants, &x.scales)).collect();
        }
        let cut = |x: f32| if self.quant == Quant::F16 { x.clamp(-65504.0, 65504.0) } else { x };
        let x: Vec<f32> =
            x.values.iter().map(|&x| of_16(self.quant, to_16(self.quant, cut(x)))).collect();
        let run = self.columns.div_ceil(64).div_ceil(4) * 64;
        let of_run = |(weights, x): (&[f32], &[f32])| {
            weights.chunks(16).zip(x.chunks(16)).fold(0.0, |sum, (weights, x)| mma(sum, weights, x))
        };
        let row = |row| {
            let weights = self.values(row);
            let mut sums = weights.chunks(run).zip(x.chunks(run)).map(of_run);
            let first = sums.next().unwrap_or(0.0);
            sums.fold(first, |sum, next| sum + next)
        };
        (0..self.rows.len()).map(row).collect()
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

/// A model on the device that is none.
pub struct Twin {
    info: Info,
    shape: Shape,
    embedding: Matrix,
    head: Option<Matrix>,
    output_norm: Vec<f32>,
    layers: Vec<Layer>,
    embeds: Vec<Vec<f32>>,
    /// Of the last batch: a row's logits, where something was wanted of them.
    pub logits: Vec<Option<Vec<f32>>>, // [row of the batch]
}

impl Twin {
    /// With a backend's sizes.
    pub fn new(model: &Arc<Model>, info: &Info) -> Twin {
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
            info: info.clone(),
            embedding: matrix(&weights.embedding),
            head: (!shape.tied_head).then(|| matrix(&weights.head)),
            output_norm: vector(&weights.output_norm),
            layers: weights.layers.iter().enumerate().map(layer).collect(),
            embeds: vec![vec![0.0; shape.hidden]; info.embeds as usize],
            shape,
            logits: Vec::new(),
        }
    }

    /// Every row of the batch through every layer: their hidden states.
    fn rows(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let Twin { shape, embedding, embeds, layers, .. } = self;
        let rows: Vec<(&Sequence, usize)> = batch
            .sequences
            .iter()
            .flat_map(|sequence| (0..sequence.inputs.len()).map(move |row| (sequence, row)))
            .collect();
        let enter = |&(sequence, row): &(&Sequence, usize)| match sequence.inputs[row] {
            Input::Token(token) => {
                let values = embedding.values(token.0 as usize);
                values.into_iter().map(|x| x * shape.embedding_scale).collect()
            }
            Input::Embed(slot) => embeds[slot.0 as usize].clone(),
        };
        let mut stream: Vec<Vec<f32>> = rows.iter().map(enter).collect();
        for layer in layers {
            let project = |(x, (sequence, row)): (&Vec<f32>, &(&Sequence, usize))| {
                let x = Columns::of(normed(x, &layer.attn_norm, shape.norm_eps));
                let turns = turns(sequence.positions[*row], &layer.turns, shape.rope.attention_scale);
                let [q, k] = [&layer.q, &layer.k].map(|part| part.heads(&x, Some(&turns), shape));
                (q, k, layer.v.heads(&x, None, shape))
            };
            let projected: Vec<(Vec<f32>, Vec<f32>, Vec<f32>)> =
                stream.iter().zip(&rows).map(project).collect();
            for ((_, key, value), (sequence, row)) in projected.iter().zip(&rows) {
                let slot = place(sequence, slot_of(sequence, *row));
                layer.keys[slot] = key.iter().copied().map(f16).collect();
                layer.values[slot] = value.iter().copied().map(f16).collect();
            }
            for ((x, (q, ..)), (sequence, row)) in stream.iter_mut().zip(&projected).zip(&rows) {
                let attended = Columns::of(layer.attend(q, sequence, *row, shape));
                let y = layer.output.times(&attended);
                join(x, y, layer.attn_post_norm.as_deref(), shape.norm_eps);
                let inner = Columns::of(normed(x, &layer.ffn_norm, shape.norm_eps));
                let gate = activated(&layer.gate.times(&inner), shape.activation);
                let up = layer.up.times(&inner);
                let inner = Columns::of(gate.iter().zip(up).map(|(gate, up)| gate * up).collect());
                let y = layer.down.times(&inner);
                join(x, y, layer.ffn_post_norm.as_deref(), shape.norm_eps);
            }
        }
        stream
    }

    fn logits_of(&self, x: &[f32]) -> Vec<f32> {
        let x = Columns::of(normed(x, &self.output_norm, self.shape.norm_eps));
        let logits = self.head.as_ref().unwrap_or(&self.embedding).times(&x);
        self.shape.logit_cap.map_or(logits.clone(), |cap| capped(&logits, cap))
    }
}

fn normed(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let norm = norm(x, eps);
    x.iter().zip(gain).map(|(x, gain)| x * norm * gain).collect()
}

/// Adds what a block gave to the stream.
fn join(x: &mut [f32], y: Vec<f32>, post_norm: Option<&[f32]>, eps: f32) {
    let y = post_norm.map_or_else(|| y.clone(), |gain| normed(&y, gain, eps));
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
    fn heads(&self, x: &Columns, turns: Option<&[[f32; 2]]>, shape: &Shape) -> Vec<f32> {
        let mut all = self.matrix.times(x);
        if let Some(bias) = &self.bias {
            all.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
        let Some(turns) = turns else { return all };
        let turned = turns.len();
        let pairs: Vec<[usize; 2]> = (0..shape.head_dim / 2)
            .map(|pair| match shape.rope.pairing {
                Pairing::Halves if pair < turned => [pair, pair + turned],
                _ => [2 * pair, 2 * pair + 1],
            })
            .collect();
        for head in all.chunks_mut(shape.head_dim) {
            if let Some(gain) = &self.gain {
                let norm = head_norm(head, &pairs, shape.norm_eps);
                head.iter_mut().zip(gain).for_each(|(x, gain)| *x = *x * norm * gain);
            }
            for ([first, second], [cos, sin]) in pairs.iter().zip(turns) {
                let (a, b) = (head[*first], head[*second]);
                head[*first] = a * cos - b * sin;
                head[*second] = a * sin + b * cos;
            }
        }
        all
    }
}

/// What a head is multiplied by: a lane has every 32nd pair.
fn head_norm(head: &[f32], pairs: &[[usize; 2]], eps: f32) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (pair, at) in pairs.iter().enumerate() {
        let lane = &mut lanes[pair % 32];
        *lane = at.iter().fold(*lane, |sum, &at| head[at].mul_add(head[at], sum));
    }
    for distance in [16, 8, 4, 2, 1] {
        lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ distance]);
    }
    1.0 / (lanes[0] / head.len() as f32 + eps).sqrt()
}

impl Layer {
    fn attend(&self, q: &[f32], sequence: &Sequence, row: usize, shape: &Shape) -> Vec<f32> {
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
                sees: &|slot| seen[slot],
                key: &|slot| &self.keys[place(sequence, slot)][own.clone()],
                value: &|slot| &self.values[place(sequence, slot)][own.clone()],
            };
            query.attend()
        };
        q.chunks(dims).enumerate().flat_map(head).collect()
    }
}

impl Backend for Twin {
    fn info(&self) -> &Info {
        &self.info
    }

    fn run(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), Fault> {
        let hidden = self.rows(batch);
        self.logits = vec![None; hidden.len()];
        outcome.produced.clear();
        let mut sampling = Sampling::new(self.shape.vocab);
        let mut first = 0;
        for sequence in &batch.sequences {
            let mut made = Vec::new();
            for output in &sequence.outputs {
                let (Output::Token { row, .. } | Output::Distribution { row, .. } | Output::Embed { row, .. }) =
                    *output;
                let row = first + row as usize;
                if let Output::Embed { to: EmbedId(to), .. } = output {
                    self.embeds[*to as usize] = hidden[row].clone();
                    continue;
                }
                let all = self.logits[row].take().unwrap_or_else(|| self.logits_of(&hidden[row]));
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
                self.logits[row] = Some(all);
            }
            outcome.produced.push(made);
            first += sequence.inputs.len();
        }
        Ok(())
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
