//! The forward pass by the formulas, in f64, one row after the other: what every faster path is compared with.
//!
//! Owns: every choice that a [`Shape`] has, written down once without regard for speed. Never: part of the binary,
//! nor anything of the fast path's.

use crate::backend::{Input, Mask};
use crate::model::shape::{Activation, Pairing, Rope, Shape};
use crate::model::{Extent, Model};

/// A model in f64.
pub(super) struct Reference {
    shape: Shape,
    embedding: Matrix,
    output_norm: Vec<f64>,
    head: Option<Matrix>, // the embedding itself if absent
    layers: Vec<Layer>,
}

struct Matrix {
    row: usize,
    values: Vec<f64>,
}

struct Layer {
    attn_norm: Vec<f64>,
    q: Projection,
    k: Projection,
    v: Matrix,
    v_bias: Option<Vec<f64>>,
    output: Matrix,
    attn_post_norm: Option<Vec<f64>>,
    ffn_norm: Vec<f64>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    ffn_post_norm: Option<Vec<f64>>,
    /// Radians per position, by pair.
    turns: Vec<f64>,
    window: Option<usize>,
}

/// What makes the queries or the keys.
struct Projection {
    matrix: Matrix,
    bias: Option<Vec<f64>>,
    /// Of each head.
    norm: Option<Vec<f64>>,
}

/// What a pass gives, one entry per row.
pub(super) struct Rows {
    pub logits: Vec<Vec<f64>>,
    /// After the last layer, before the last norm.
    pub hidden: Vec<Vec<f64>>,
}

impl Reference {
    pub fn of(model: &Model) -> Reference {
        let shape = model.shape.clone();
        let weights = &model.weights;
        let factors = weights.rope_factors.as_ref().map(|factors| &*factors.divisors);
        let tensor = |extent: &Extent| model.gguf.tensor_at(extent);
        let vector = |extent: &Extent| tensor(extent).values().into_iter().map(f64::from).collect();
        let matrix = |extent: &Extent| Matrix { row: tensor(extent).dims[0], values: vector(extent) };
        let projection = |part: &Extent, bias: &Option<Extent>, norm: &Option<Extent>| Projection {
            matrix: matrix(part),
            bias: bias.as_ref().map(vector),
            norm: norm.as_ref().map(vector),
        };
        let layers = weights.layers.iter().enumerate().map(|(number, layer)| Layer {
            attn_norm: vector(&layer.attn_norm),
            q: projection(&layer.attn_q, &layer.q_bias, &layer.q_norm),
            k: projection(&layer.attn_k, &layer.k_bias, &layer.k_norm),
            v: matrix(&layer.attn_v),
            v_bias: layer.v_bias.as_ref().map(vector),
            output: matrix(&layer.attn_output),
            attn_post_norm: layer.attn_post_norm.as_ref().map(vector),
            ffn_norm: vector(&layer.ffn_norm),
            gate: matrix(&layer.ffn_gate),
            up: matrix(&layer.ffn_up),
            down: matrix(&layer.ffn_down),
            ffn_post_norm: layer.ffn_post_norm.as_ref().map(vector),
            turns: shape.turns_of(number, factors),
            window: shape.window_of(number),
        });
        Reference {
            layers: layers.collect(),
            embedding: matrix(&weights.embedding),
            output_norm: vector(&weights.output_norm),
            head: (!shape.tied_head).then(|| matrix(&weights.head)),
            shape,
        }
    }

    /// A sequence from its first slot on. `embeds` are what [`Input::Embed`] names.
    pub fn run(&self, inputs: &[Input], positions: &[u32], mask: &Mask, embeds: &[Vec<f64>]) -> Rows {
        let shape = &self.shape;
        let mut cache = vec![(Vec::new(), Vec::new()); shape.layers]; // keys and values, by slot
        let mut rows = Rows { logits: Vec::new(), hidden: Vec::new() };
        for (row, (input, &position)) in inputs.iter().zip(positions).enumerate() {
            let mut x = match input {
                Input::Token(token) => self.embed(token.0 as usize),
                Input::Embed(embed) => embeds[embed.0 as usize].clone(),
            };
            let seen = seen(mask, row);
            for (layer, (keys, values)) in self.layers.iter().zip(&mut cache) {
                let h = self.norm(&x, &layer.attn_norm);
                let [q, k] = [&layer.q, &layer.k].map(|part| self.project(part, &h, &layer.turns, position));
                let mut v = layer.v.times(&h);
                if let Some(bias) = &layer.v_bias {
                    add(&mut v, bias);
                }
                keys.push(k);
                values.push(v);
                let first = layer.window.map_or(0, |window| (row + 1).saturating_sub(window));
                let slots: Vec<usize> = (first..=row).filter(|&slot| seen[slot]).collect();
                let y = layer.output.times(&self.attend(&q, &slots, keys, values));
                self.join(&mut x, y, layer.attn_post_norm.as_deref());

                let h = self.norm(&x, &layer.ffn_norm);
                let gate = layer.gate.times(&h).into_iter().map(|g| activate(shape.activation, g));
                let inner: Vec<f64> = gate.zip(layer.up.times(&h)).map(|(g, u)| g * u).collect();
                self.join(&mut x, layer.down.times(&inner), layer.ffn_post_norm.as_deref());
            }
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            let logits = head.times(&self.norm(&x, &self.output_norm));
            rows.logits.push(logits.into_iter().map(|logit| cap(logit, shape.logit_cap)).collect());
            rows.hidden.push(x);
        }
        rows
    }

    fn embed(&self, token: usize) -> Vec<f64> {
        let scale = f64::from(self.shape.embedding_scale);
        self.embedding.rows().nth(token).expect("a token").iter().map(|x| x * scale).collect()
    }

    /// RMS norm: `x / sqrt(mean(x^2) + eps) * gain`.
    fn norm(&self, x: &[f64], gains: &[f64]) -> Vec<f64> {
        let scale = (dot(x, x) / x.len() as f64 + f64::from(self.shape.norm_eps)).sqrt();
        x.iter().zip(gains).map(|(x, gain)| x / scale * gain).collect()
    }

    /// The block's output `y` joins the stream.
    fn join(&self, x: &mut [f64], y: Vec<f64>, post_norm: Option<&[f64]>) {
        add(x, &post_norm.map_or(y.clone(), |gains| self.norm(&y, gains)));
    }

    /// Queries or keys: matrix, bias, norm of each head, rope.
    fn project(&self, part: &Projection, h: &[f64], turns: &[f64], position: u32) -> Vec<f64> {
        let mut heads = part.matrix.times(h);
        if let Some(bias) = &part.bias {
            add(&mut heads, bias);
        }
        for head in heads.chunks_exact_mut(self.shape.head_dim) {
            if let Some(gains) = &part.norm {
                head.copy_from_slice(&self.norm(head, gains));
            }
            rotate(head, &self.shape.rope, turns, position);
        }
        heads
    }

    fn attend(&self, q: &[f64], slots: &[usize], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let shape = &self.shape;
        let mut attended = vec![0.0; q.len()];
        for head in 0..shape.heads {
            let of = |head: usize| head * shape.head_dim..(head + 1) * shape.head_dim;
            let (q_head, kv_head) = (of(head), of(head / (shape.heads / shape.kv_heads)));
            let score = |slot: usize| {
                let score = dot(&q[q_head.clone()], &keys[slot][kv_head.clone()]);
                cap(score * f64::from(shape.query_scale), shape.score_cap)
            };
            let largest = slots.iter().map(|&slot| score(slot)).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = slots.iter().map(|&slot| (score(slot) - largest).exp()).sum();
            for &slot in slots {
                let weight = (score(slot) - largest).exp() / total;
                let value = &values[slot][kv_head.clone()];
                attended[q_head.clone()].iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * v);
            }
        }
        attended
    }
}

impl Matrix {
    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.row)
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        self.rows().map(|row| dot(row, x)).collect()
    }
}

/// Whether row `row` sees each slot up to its own, windows apart.
fn seen(mask: &Mask, row: usize) -> Vec<bool> {
    match mask {
        Mask::Causal => vec![true; row + 1],
        Mask::Runs(rows) => {
            let runs = rows[row].iter().enumerate();
            runs.flat_map(|(run, &len)| vec![run % 2 == 0; len as usize]).collect()
        }
    }
}

fn rotate(head: &mut [f64], rope: &Rope, turns: &[f64], position: u32) {
    for (pair, turn) in turns.iter().enumerate() {
        let (one, other) = match rope.pairing {
            Pairing::Adjacent => (2 * pair, 2 * pair + 1),
            Pairing::Halves => (pair, pair + rope.dims / 2),
        };
        let (sin, cos) = (f64::from(position) * turn).sin_cos();
        let (sin, cos) = (sin * f64::from(rope.attention_scale), cos * f64::from(rope.attention_scale));
        (head[one], head[other]) = (head[one] * cos - head[other] * sin, head[one] * sin + head[other] * cos);
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn cap(x: f64, cap: Option<f32>) -> f64 {
    cap.map(f64::from).map_or(x, |cap| cap * (x / cap).tanh())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(into: &mut [f64], from: &[f64]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
}

/// All values of a tensor, as its format has them.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::TokenId;
    use crate::model::specimens::{Specimen, specimens};

    /// The largest distance from the golden logits, and in which row.
    fn distance(specimen: &Specimen, reference: &Reference) -> (f64, usize) {
        let inputs: Vec<Input> = specimen.tokens.iter().map(|&token| Input::Token(TokenId(token))).collect();
        let positions: Vec<u32> = (0..inputs.len() as u32).collect();
        let got = reference.run(&inputs, &positions, &Mask::Causal, &[]).logits;
        let width = specimen.logits[0].len();
        assert_eq!((got.len(), got[0].len()), (specimen.logits.len(), width * specimen.every));
        let rows = got.iter().zip(&specimen.logits).enumerate().map(|(row, (got, want))| {
            let got = got.iter().step_by(specimen.every);
            let far = got.zip(want).map(|(got, want)| (got - want).abs() / (1.0 + want.abs()));
            (far.fold(0.0, f64::max), row)
        });
        rows.max_by(|a, b| a.0.total_cmp(&b.0)).expect("rows")
    }

    #[test]
    fn every_family_computes_what_transformers_computes() {
        for specimen in specimens() {
            let (far, row) = distance(&specimen, &Reference::of(&specimen.model()));
            assert!(far < 2e-5, "{}: row {row} is {far:e} away", specimen.name);
        }
    }

    type Change = fn(&mut Reference);

    /// Each model with one of its choices made otherwise: a choice that the golden logits did not notice would be one
    /// that no test holds.
    #[test]
    fn the_golden_logits_notice_every_choice() {
        fn each(reference: &mut Reference, change: fn(&mut Layer)) {
            reference.layers.iter_mut().for_each(change);
        }
        let otherwise: [(&str, &str, Change); 28] = [
            ("llama-2", "pairing", |r| r.shape.rope.pairing = Pairing::Halves),
            ("llama-2", "own head", |r| r.head = None),
            ("llama-3.2", "factors", |r| {
                let plain = r.shape.turns_of(0, None);
                r.layers.iter_mut().for_each(|layer| layer.turns.clone_from(&plain));
            }),
            ("mistral", "window", |r| each(r, |layer| layer.window = layer.window.map(|w| w + 1))),
            ("qwen2", "pairing", |r| r.shape.rope.pairing = Pairing::Adjacent),
            ("qwen2", "query bias", |r| each(r, |layer| layer.q.bias = None)),
            ("qwen2", "key bias", |r| each(r, |layer| layer.k.bias = None)),
            ("qwen2", "value bias", |r| each(r, |layer| layer.v_bias = None)),
            ("qwen3", "query norm", |r| each(r, |layer| layer.q.norm = None)),
            ("qwen3", "key norm", |r| each(r, |layer| layer.k.norm = None)),
            ("qwen3-yarn", "attention scale", |r| r.shape.rope.attention_scale = 1.0),
            ("qwen3-yarn", "stretch of slow pairs", |r| {
                r.shape.rope.yarn = None;
                let plain = r.shape.turns_of(0, None);
                r.layers.iter_mut().for_each(|layer| layer.turns.clone_from(&plain));
            }),
            ("gemma-2", "activation", |r| r.shape.activation = Activation::Silu),
            ("gemma-2", "embedding scale", |r| r.shape.embedding_scale = 1.0),
            ("gemma-2", "query scale", |r| r.shape.query_scale *= 1.1),
            ("gemma-2", "score cap", |r| r.shape.score_cap = None),
            ("gemma-2", "logit cap", |r| r.shape.logit_cap = None),
            ("gemma-2", "attention's norm", |r| each(r, |layer| layer.attn_post_norm = None)),
            ("gemma-2", "feed-forward's norm", |r| each(r, |layer| layer.ffn_post_norm = None)),
            ("gemma-2", "local layers", |r| r.layers[1].window = Some(8)),
            ("gemma-2", "global layers", |r| r.layers[2].window = None),
            ("gemma-3", "local layers", |r| r.layers[5].window = Some(8)),
            ("gemma-3", "global layers", |r| r.layers[6].window = None),
            ("gemma-3", "local base", |r| r.layers[4].turns.clone_from(&r.shape.turns_of(5, None))),
            ("gemma-3", "linear scale", |r| r.layers[5].turns.iter_mut().for_each(|t| *t *= 8.0)),
            ("phi-3", "window", |r| each(r, |layer| layer.window = None)),
            ("phi-4-mini", "attention scale", |r| r.shape.rope.attention_scale = 1.0),
            ("phi-4-mini", "partial rope", |r| r.shape.rope.dims += 4),
        ];
        let specimens = specimens();
        for (name, choice, change) in otherwise {
            let specimen = specimens.iter().find(|specimen| specimen.name == name).expect("a specimen");
            let mut reference = Reference::of(&specimen.model());
            change(&mut reference);
            let (far, _) = distance(specimen, &reference);
            assert!(far > 1e-3, "{name}: without its {choice} it is only {far:e} away");
        }
    }
}
