//! A model's weights, ready for the kernels.
//!
//! Owns: which matrix stands in which order, and the small vectors as f32. Never: a product, or how a matrix is packed.

use super::CpuError;
use super::lanes::LANES;
use super::packed::{Order, Packed, Packing, Store, is_float};
use crate::model::shape::Pairing;
use crate::model::{Extent, Model};

pub(super) struct Layer {
    pub attn_norm: Vec<f32>, // [hidden]
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    pub output: Packed,                   // [hidden, heads * head_dim]
    pub attn_post_norm: Option<Vec<f32>>, // [hidden]
    pub ffn_norm: Vec<f32>,               // [hidden]
    pub gate: Packed,                     // [ffn, hidden]
    pub up: Packed,                       // [ffn, hidden]
    pub down: Packed,                     // [hidden, ffn]
    pub ffn_post_norm: Option<Vec<f32>>,  // [hidden]
    /// Slots that a row sees at most.
    pub window: Option<usize>,
    /// Which of [`Weights::turns`].
    pub turns: usize,
}

impl Layer {
    /// Heads of Q, K and V together.
    pub fn heads(&self) -> usize {
        self.q.count + self.k.count + self.v.count
    }

    /// Of head `number` of these: 0, 1 or 2 for Q, K or V; that projection; the head's number in it.
    pub fn head(&self, number: usize) -> (usize, &Heads, usize) {
        let (queries, keys) = (self.q.count, self.q.count + self.k.count);
        match number {
            number if number < queries => (0, &self.q, number),
            number if number < keys => (1, &self.k, number - queries),
            number => (2, &self.v, number - keys),
        }
    }
}

/// The projection to queries, keys or values: whole groups per head.
pub(super) struct Heads {
    pub count: usize,
    pub matrix: Packed, // [head, head_dim filled up to groups]
    /// In the matrix' order.
    pub bias: Option<Vec<f32>>,
    /// Gains of the norm of each head, in the matrix' order.
    pub norm: Option<Vec<f32>>,
}

pub(super) struct Weights {
    pub store: Store,
    pub output_norm: Vec<f32>, // [hidden]
    pub head: Packed,          // [vocab, hidden]
    pub layers: Vec<Layer>,
    /// Radians by which one position turns pair i of a head: of the first layer, then of those that differ.
    pub turns: Vec<Vec<f64>>, // [kind][rope dims / 2]
    /// Whether any matrix multiplies integers, and floats.
    pub kinds: (bool, bool),
}

impl Weights {
    /// Packs all matrices on `threads` threads; `exact` makes them f32. `free`: bytes that they may take, if that is known.
    pub fn read(model: &Model, exact: bool, threads: usize, free: Option<u64>) -> Result<Weights, CpuError> {
        let (shape, tensors) = (&model.shape, &model.weights);
        let factors = tensors.rope_factors.as_ref().map(|factors| &*factors.divisors);
        let tensor = |extent: &Extent| model.gguf.tensor_at(extent);
        let gains = |extent: &Extent| {
            let mut values = tensor(extent).values();
            values.resize(values.len().next_multiple_of(LANES), 0.0); // whole vectors
            values
        };
        let halves = match shape.rope.pairing {
            Pairing::Adjacent => 0,
            Pairing::Halves => shape.rope.dims,
        };
        let turned = Order::Heads { dim: shape.head_dim, halves };
        let as_is = Order::Heads { dim: shape.head_dim, halves: 0 };

        let mut plan = Packing::default();
        let mut turns: Vec<Vec<f64>> = Vec::new();
        let mut layers = Vec::with_capacity(shape.layers);
        for (number, layer) in tensors.layers.iter().enumerate() {
            let own = shape.turns_of(number, factors);
            let known = turns.iter().position(|turns| *turns == own);
            let mut heads = |matrix: &Extent, bias: &Option<Extent>, norm: &Option<Extent>, order: Order| {
                let vector = |extent| order.vector(&tensor(extent).values());
                let matrix = plan.add(tensor(matrix), order, exact);
                Heads {
                    count: matrix.groups / shape.head_dim.div_ceil(LANES),
                    matrix,
                    bias: bias.as_ref().map(vector),
                    norm: norm.as_ref().map(vector),
                }
            };
            layers.push(Layer {
                attn_norm: gains(&layer.attn_norm),
                q: heads(&layer.attn_q, &layer.q_bias, &layer.q_norm, turned),
                k: heads(&layer.attn_k, &layer.k_bias, &layer.k_norm, turned),
                v: heads(&layer.attn_v, &layer.v_bias, &None, as_is),
                output: plan.add(tensor(&layer.attn_output), Order::File, exact),
                attn_post_norm: layer.attn_post_norm.as_ref().map(gains),
                ffn_norm: gains(&layer.ffn_norm),
                gate: plan.add(tensor(&layer.ffn_gate), Order::File, exact),
                up: plan.add(tensor(&layer.ffn_up), Order::File, exact),
                down: plan.add(tensor(&layer.ffn_down), Order::File, exact),
                ffn_post_norm: layer.ffn_post_norm.as_ref().map(gains),
                window: shape.window_of(number),
                turns: known.unwrap_or(turns.len()),
            });
            if known.is_none() {
                turns.push(own);
            }
        }
        let head = plan.add(tensor(&tensors.head), Order::File, exact);
        let kinds = plan.formats().fold((false, false), |(integers, floats), format| {
            (integers || !is_float(format), floats || is_float(format))
        });
        // Some formats grow by half. The system grants more than it has, and ends who then takes it.
        let packed = plan.bytes();
        if let Some(free) = free.filter(|free| *free < packed as u64) {
            return Err(CpuError::Weights { packed, free: Some(free) });
        }
        let store = plan.pack(threads).map_err(|_| CpuError::Weights { packed, free: None })?;
        Ok(Weights { store, output_norm: gains(&tensors.output_norm), head, layers, turns, kinds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::Quant;
    use crate::model::toy::Toy;

    /// The story: of a model of five bits the file fitted, what was packed of it did not, and the system ended the server.
    #[test]
    fn weights_that_grow_beyond_what_is_free_are_refused() {
        let model = Toy::of(Quant::Q5_0).model();
        let read = |free| Weights::read(&model, false, 1, free);
        let packed = read(None).expect("nobody says what is free").store.len() as u64;
        let matrices = model.gguf.tensors().filter(|tensor| tensor.dims[1] > 1);
        let file: usize = matrices.filter_map(|tensor| tensor.bytes).sum();
        assert!(packed > 3 * file as u64 / 2, "{packed} of {file}");
        assert!(read(Some(packed)).is_ok());
        let said = read(Some(packed - 1)).err().expect("one byte is missing").to_string();
        assert!(said.contains("as the CPU backend packs them, but this machine has"), "{said}");
    }
}
