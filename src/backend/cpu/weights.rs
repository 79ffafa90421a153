//! The weights as they lie in the mapped file.
//!
//! Owns: where each matrix is, and its rows as exact f32. Never: a copy of a matrix. Only the norms' gains, a few
//! kilobytes, and the rope's angles are kept as numbers.

use crate::model::gguf::{Gguf, Quant, Tensor};
use crate::model::shape::{self, Activation, Pairing, Shape, ShapeError};

/// A matrix in the file: `rows` rows of `width` values.
pub(super) struct Matrix {
    kind: Quant,
    /// Offset of the first row in the file.
    at: usize,
    pub rows: usize,
    pub width: usize,
}

impl Matrix {
    fn of(gguf: &Gguf, tensor: &Tensor) -> Matrix {
        let at = tensor.bytes.as_ptr().addr() - gguf.file().as_ptr().addr();
        Matrix { kind: tensor.kind, at, rows: tensor.rows(), width: tensor.dims[0] }
    }

    /// Writes the values of row `row`, `width` of them.
    pub fn dequantize(&self, file: &[u8], row: usize, values: &mut [f32]) {
        let bytes = self.kind.row_bytes(self.width);
        self.kind.dequantize(&file[self.at + row * bytes..][..bytes], values);
    }
}

pub(super) struct Layer {
    pub attn_norm: Vec<f32>, // [hidden]
    pub q: Matrix,           // [heads * head_dim, hidden]
    pub k: Matrix,           // [kv_heads * head_dim, hidden]
    pub v: Matrix,           // [kv_heads * head_dim, hidden]
    pub output: Matrix,      // [hidden, heads * head_dim]
    pub ffn_norm: Vec<f32>,  // [hidden]
    pub gate: Matrix,        // [ffn, hidden]
    pub up: Matrix,          // [ffn, hidden]
    pub down: Matrix,        // [hidden, ffn]
}

pub(super) struct Weights {
    pub embedding: Matrix,     // [vocab, hidden]
    pub output_norm: Vec<f32>, // [hidden]
    pub head: Matrix,          // [vocab, hidden]; the embedding itself if tied
    pub layers: Vec<Layer>,
    /// Angle in radians by which one position turns pair i of a head.
    pub turns: Vec<f64>, // [rope_dims / 2]
}

impl Weights {
    pub fn read(gguf: &Gguf, shape: &Shape) -> Result<Weights, ShapeError> {
        let tensors = shape::Weights::read(gguf, shape)?;
        refuse_what_is_not_computed(shape, &tensors)?;
        if gguf.files() > 1 {
            let what = "the CPU backend does not compute a model in several files yet";
            return Err(ShapeError::Unsupported(what.to_owned()));
        }
        let matrix = |tensor: &Tensor| Matrix::of(gguf, tensor);
        let layers = tensors.layers.iter().map(|layer| Layer {
            attn_norm: values(&layer.attn_norm),
            q: matrix(&layer.attn_q),
            k: matrix(&layer.attn_k),
            v: matrix(&layer.attn_v),
            output: matrix(&layer.attn_output),
            ffn_norm: values(&layer.ffn_norm),
            gate: matrix(&layer.ffn_gate),
            up: matrix(&layer.ffn_up),
            down: matrix(&layer.ffn_down),
        });
        let factors = tensors.rope_factors.as_ref().map(values);
        Ok(Weights {
            embedding: matrix(&tensors.embedding),
            output_norm: values(&tensors.output_norm),
            head: matrix(&tensors.head),
            layers: layers.collect(),
            turns: shape.turns_of(0, factors.as_deref()),
        })
    }
}

/// This forward pass is the plain Llama one.
fn refuse_what_is_not_computed(shape: &Shape, tensors: &shape::Weights) -> Result<(), ShapeError> {
    let plain = shape.rope.pairing == Pairing::Adjacent
        && shape.rope.attention_scale == 1.0
        && shape.activation == Activation::Silu
        && shape.embedding_scale == 1.0
        && shape.query_scale == 1.0 / (shape.head_dim as f32).sqrt()
        && (shape.score_cap, shape.logit_cap, shape.window) == (None, None, None)
        && tensors.layers.iter().all(|layer| {
            let biases = [layer.q_bias, layer.k_bias, layer.v_bias];
            let norms = [layer.q_norm, layer.k_norm, layer.attn_post_norm, layer.ffn_post_norm];
            biases.iter().chain(&norms).all(Option::is_none)
        });
    match plain {
        true => Ok(()),
        false => {
            let what = format!("the CPU backend does not compute this `{}` model yet", shape.architecture);
            Err(ShapeError::Unsupported(what))
        }
    }
}

/// All values of a small tensor.
fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.dims.iter().product()];
    tensor.kind.dequantize(tensor.bytes, &mut values);
    values
}
