//! The tensors of a model, and the proof that they fit its shape.
//!
//! Owns: which tensors an architecture consists of, under which names, and how fused ones are cut. Never: a weight's
//! value. After [`Weights::read`] a backend need not check anything again.

use std::collections::HashSet;

use super::architecture::{Architecture, Factors};
use super::gguf::{Gguf, Tensor, optional};
use super::shape::{Shape, ShapeError};

/// All tensors of a model, dimensions and formats checked against its [`Shape`]. `[rows, row length]` each.
pub struct Weights<'a> {
    pub embedding: Tensor<'a>,   // [vocab, hidden]
    pub output_norm: Tensor<'a>, // [1, hidden]
    pub head: Tensor<'a>,        // [vocab, hidden]; the embedding itself if tied
    pub layers: Vec<Layer<'a>>,
    /// Divides pair i's angle, `[1, rope.dims / 2]`, if the model stretches its rope (Llama 3.1, Phi-3 with 128k).
    pub rope_factors: Option<Tensor<'a>>,
}

/// The tensors of one block. What is `None` is not computed: no bias is added, no norm is taken.
pub struct Layer<'a> {
    pub attn_norm: Tensor<'a>,              // [1, hidden]
    pub attn_q: Tensor<'a>,                 // [heads * head_dim, hidden]
    pub attn_k: Tensor<'a>,                 // [kv_heads * head_dim, hidden]
    pub attn_v: Tensor<'a>,                 // [kv_heads * head_dim, hidden]
    pub q_bias: Option<Tensor<'a>>,         // [1, heads * head_dim]
    pub k_bias: Option<Tensor<'a>>,         // [1, kv_heads * head_dim]
    pub v_bias: Option<Tensor<'a>>,         // [1, kv_heads * head_dim]
    pub q_norm: Option<Tensor<'a>>,         // [1, head_dim]: RMS norm of each head, before rope
    pub k_norm: Option<Tensor<'a>>,         // [1, head_dim]
    pub attn_output: Tensor<'a>,            // [hidden, heads * head_dim]
    pub attn_post_norm: Option<Tensor<'a>>, // [1, hidden]: of the attention's output, before it joins the stream
    pub ffn_norm: Tensor<'a>,               // [1, hidden]
    pub ffn_gate: Tensor<'a>,               // [ffn, hidden]
    pub ffn_up: Tensor<'a>,                 // [ffn, hidden]
    pub ffn_down: Tensor<'a>,               // [hidden, ffn]
    pub ffn_post_norm: Option<Tensor<'a>>,  // [1, hidden]: of the feed-forward's output
}

impl<'a> Weights<'a> {
    /// Looks up every tensor of the model and checks its dimensions and its format. A tensor in the file that
    /// this architecture does not have is refused too: leaving it out would give other numbers in silence.
    pub fn read(gguf: &'a Gguf, shape: &Shape) -> Result<Weights<'a>, ShapeError> {
        let table = Architecture::named(&shape.architecture)?;
        let mut taken = Taken { gguf, names: HashSet::new() };
        let Shape { hidden, ffn, vocab, head_dim, .. } = *shape;
        let (q, kv) = (shape.q_width(), shape.kv_width());
        let embedding = taken.one("token_embd.weight", vocab, hidden)?;
        let output_norm = taken.one("output_norm.weight", 1, hidden)?;
        let head = if shape.tied_head { embedding } else { taken.one("output.weight", vocab, hidden)? };
        let rope_factors = taken.rope_factors(table, shape)?;
        // Grows by what is there: `shape.layers` is bounded, the file decides.
        let mut layers = Vec::new();
        for layer in 0..shape.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let norm = |taken: &mut Taken<'a>, has: bool, part: &str, len| match has {
                true => taken.one(&name(part), 1, len).map(Some),
                false => Ok(None),
            };
            let [attn_q, attn_k, attn_v] = match gguf.has_tensor(&name("attn_qkv.weight")) {
                true => {
                    let fused = taken.one(&name("attn_qkv.weight"), q + 2 * kv, hidden)?;
                    [0..q, q..q + kv, q + kv..q + 2 * kv].map(|rows| fused.rows_of(rows))
                }
                false => [
                    taken.one(&name("attn_q.weight"), q, hidden)?,
                    taken.one(&name("attn_k.weight"), kv, hidden)?,
                    taken.one(&name("attn_v.weight"), kv, hidden)?,
                ],
            };
            let [ffn_gate, ffn_up] = match gguf.has_tensor(&name("ffn_gate.weight")) || !table.fused_gate {
                true => [
                    taken.one(&name("ffn_gate.weight"), ffn, hidden)?,
                    taken.one(&name("ffn_up.weight"), ffn, hidden)?,
                ],
                false => {
                    let fused = taken.one(&name("ffn_up.weight"), 2 * ffn, hidden)?;
                    [0..ffn, ffn..2 * ffn].map(|rows| fused.rows_of(rows))
                }
            };
            layers.push(Layer {
                attn_norm: taken.one(&name("attn_norm.weight"), 1, hidden)?,
                attn_q,
                attn_k,
                attn_v,
                q_bias: taken.if_there(&name("attn_q.bias"), 1, q)?,
                k_bias: taken.if_there(&name("attn_k.bias"), 1, kv)?,
                v_bias: taken.if_there(&name("attn_v.bias"), 1, kv)?,
                q_norm: norm(&mut taken, table.head_norms, "attn_q_norm.weight", head_dim)?,
                k_norm: norm(&mut taken, table.head_norms, "attn_k_norm.weight", head_dim)?,
                attn_output: taken.one(&name("attn_output.weight"), hidden, q)?,
                attn_post_norm: norm(&mut taken, table.post_norms, "post_attention_norm.weight", hidden)?,
                ffn_norm: taken.one(&name("ffn_norm.weight"), 1, hidden)?,
                ffn_gate,
                ffn_up,
                ffn_down: taken.one(&name("ffn_down.weight"), hidden, ffn)?,
                ffn_post_norm: norm(&mut taken, table.post_norms, "post_ffw_norm.weight", hidden)?,
            });
        }
        if let Some(extra) = gguf.tensors().find(|tensor| !taken.names.contains(tensor.name)) {
            return Err(ShapeError::Unsupported(format!(
                "the model has a tensor `{}` that `{}` as Tartlet computes it lacks; experts, other biases and \
                 further inputs are not supported",
                extra.name, shape.architecture
            )));
        }
        Ok(Weights { embedding, output_norm, head, layers, rope_factors })
    }
}

/// The tensors that a model's description has asked for so far.
struct Taken<'a> {
    gguf: &'a Gguf,
    names: HashSet<&'a str>,
}

impl<'a> Taken<'a> {
    /// The tensor of this name, with these dimensions.
    fn one(&mut self, name: &str, rows: usize, row: usize) -> Result<Tensor<'a>, ShapeError> {
        let tensor = self.gguf.tensor(name)?;
        if tensor.dims != [row, rows, 1, 1] {
            let (name, dims) = (name.to_owned(), tensor.dims);
            return Err(ShapeError::Tensor { name, dims, want: [rows, row] });
        }
        self.names.insert(tensor.name);
        Ok(tensor)
    }

    /// The same, or `None` if the file has no tensor of this name.
    fn if_there(&mut self, name: &str, rows: usize, row: usize) -> Result<Option<Tensor<'a>>, ShapeError> {
        if self.gguf.has_tensor(name) { self.one(name, rows, row).map(Some) } else { Ok(None) }
    }

    /// The divisors of the angles. Of Phi-3's two sets, which of them holds is settled once for the model, by the
    /// context it is made for: a page of keys must not change its meaning when its sequence grows.
    fn rope_factors(
        &mut self,
        table: &Architecture,
        shape: &Shape,
    ) -> Result<Option<Tensor<'a>>, ShapeError> {
        let pairs = shape.rope.dims / 2;
        match table.factors {
            Factors::None => Ok(None),
            Factors::One => self.if_there("rope_freqs.weight", 1, pairs),
            Factors::LongAndShort => {
                let long = self.if_there("rope_factors_long.weight", 1, pairs)?;
                let short = self.if_there("rope_factors_short.weight", 1, pairs)?;
                let key = format!("{}.rope.scaling.original_context_length", shape.architecture);
                let original = optional(self.gguf.u32(&key))?.unwrap_or(shape.context);
                Ok(if shape.context > original { long } else { short })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gguf::Quant;
    use super::super::toy::{Toy, Writer};
    use super::*;

    fn toy() -> Writer {
        Toy::default().writer()
    }

    fn refusal(writer: Writer) -> String {
        let gguf = Gguf::from_bytes(writer.bytes()).expect("the file itself is fine");
        let shape = Shape::read(&gguf).expect("the shape is fine");
        Weights::read(&gguf, &shape).err().expect("refused").to_string()
    }

    fn ones(writer: Writer, name: &str, dims: &[usize]) -> Writer {
        let bytes = 1f32.to_le_bytes().repeat(dims.iter().product());
        writer.tensor(name, dims, Quant::F32, bytes)
    }

    #[test]
    fn what_does_not_belong_is_named() {
        for (name, dims) in [
            ("blk.0.attn_output.bias", vec![64]),
            ("blk.1.ffn_gate_inp.weight", vec![64, 8]),
            ("blk.0.attn_q_norm.weight", vec![16]),
            ("rope_factors_long.weight", vec![8]),
        ] {
            let said = refusal(ones(toy(), name, &dims));
            assert!(said.contains(&format!("a tensor `{name}` that `llama`")), "{said}");
        }
        assert!(refusal(ones(toy(), "blk.0.attn_k.bias", &[64])).contains("asks for [32, 1, 1, 1]"));
        assert!(refusal(ones(toy(), "rope_freqs.weight", &[9])).contains("has dimensions [9, 1, 1, 1]"));
        let fused = ones(toy(), "blk.1.attn_qkv.weight", &[64, 127]);
        assert!(refusal(fused).contains("`blk.1.attn_qkv.weight` has dimensions [64, 127, 1, 1]"));
    }

    #[test]
    fn biases_and_factors_are_taken_where_they_are() {
        let writer = ones(ones(toy(), "rope_freqs.weight", &[8]), "blk.1.attn_v.bias", &[32]);
        let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
        let weights = Weights::read(&gguf, &Shape::read(&gguf).unwrap()).unwrap();
        assert!(weights.rope_factors.is_some() && weights.layers[0].v_bias.is_none());
        assert_eq!(weights.layers[1].v_bias.map(|bias| bias.rows()), Some(1));
    }

    /// The rows of a fused matrix are those of its parts, in the order q, k, v.
    #[test]
    fn fused_matrices_are_cut_by_rows() {
        let mut writer = toy();
        let whole = Gguf::from_bytes(toy().bytes()).unwrap();
        let mut bytes = Vec::new();
        for part in ["attn_q", "attn_k", "attn_v"] {
            let name = format!("blk.0.{part}.weight");
            bytes.extend_from_slice(whole.tensor(&name).unwrap().bytes);
            writer = writer.without(&name);
        }
        let fused = Gguf::from_bytes(
            writer.tensor("blk.0.attn_qkv.weight", &[64, 64 + 32 + 32], Quant::F32, bytes).bytes(),
        )
        .unwrap();
        let shape = Shape::read(&fused).unwrap();
        let (got, want) = (Weights::read(&fused, &shape).unwrap(), Weights::read(&whole, &shape).unwrap());
        let (got, want) = (&got.layers[0], &want.layers[0]);
        for (got, want) in [(got.attn_q, want.attn_q), (got.attn_k, want.attn_k), (got.attn_v, want.attn_v)] {
            assert_eq!((got.dims, got.bytes), (want.dims, want.bytes));
        }
    }
}
