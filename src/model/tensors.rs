//! The tensors of a model, and the proof that they fit its shape.
//!
//! Owns: which tensors an architecture consists of, under which names, and how fused ones are cut. Never: a weight's
//! value, but for the few factors of the rope: they are hyperparameters that happen to lie in a tensor. After
//! [`Weights::read`] a backend need not check anything again.

use std::collections::HashSet;

use super::architecture::{Architecture, Factors};
use super::gguf::{Extent, Gguf, optional};
use super::shape::{Shape, ShapeError};

/// Where all tensors of a model are, dimensions and formats checked against its [`Shape`]. `[rows, row length]` each.
pub struct Weights {
    pub embedding: Extent,   // [vocab, hidden]
    pub output_norm: Extent, // [1, hidden]
    pub head: Extent,        // [vocab, hidden]; the embedding itself if tied
    pub layers: Vec<Layer>,
    /// If the model stretches its rope by a tensor (Llama 3.1, Phi-3 with 128k).
    pub rope_factors: Option<RopeFactors>,
}

/// What divides the angles of the rope.
pub struct RopeFactors {
    /// The tensor.
    pub name: &'static str,
    /// Of pair i's angle: finite and above 0.
    pub divisors: Vec<f32>, // [rope.dims / 2]
}

/// The tensors of one block. What is `None` is not computed: no bias is added, no norm is taken.
pub struct Layer {
    pub attn_norm: Extent,              // [1, hidden]
    pub attn_q: Extent,                 // [heads * head_dim, hidden]
    pub attn_k: Extent,                 // [kv_heads * head_dim, hidden]
    pub attn_v: Extent,                 // [kv_heads * head_dim, hidden]
    pub q_bias: Option<Extent>,         // [1, heads * head_dim]
    pub k_bias: Option<Extent>,         // [1, kv_heads * head_dim]
    pub v_bias: Option<Extent>,         // [1, kv_heads * head_dim]
    pub q_norm: Option<Extent>,         // [1, head_dim]: RMS norm of each head, before rope
    pub k_norm: Option<Extent>,         // [1, head_dim]
    pub attn_output: Extent,            // [hidden, heads * head_dim]
    pub attn_post_norm: Option<Extent>, // [1, hidden]: of the attention's output, before it joins the stream
    pub ffn_norm: Extent,               // [1, hidden]
    pub ffn_gate: Extent,               // [ffn, hidden]
    pub ffn_up: Extent,                 // [ffn, hidden]
    pub ffn_down: Extent,               // [hidden, ffn]
    pub ffn_post_norm: Option<Extent>,  // [1, hidden]: of the feed-forward's output
}

impl Weights {
    /// Looks up every tensor of the model and checks its dimensions and its format. A tensor in the file that
    /// this architecture does not have is refused too: leaving it out would give other numbers in silence.
    pub fn read(gguf: &Gguf, shape: &Shape) -> Result<Weights, ShapeError> {
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
            let norm = |taken: &mut Taken, has: bool, part: &str, len| match has {
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
    fn one(&mut self, name: &str, rows: usize, row: usize) -> Result<Extent, ShapeError> {
        let extent = self.gguf.extent(name)?;
        let tensor = self.gguf.tensor_at(&extent);
        if tensor.dims != [row, rows, 1, 1] {
            let (name, dims) = (name.to_owned(), tensor.dims);
            return Err(ShapeError::Tensor { name, dims, want: [rows, row] });
        }
        self.names.insert(tensor.name);
        Ok(extent)
    }

    /// The same, or `None` if the file has no tensor of this name.
    fn if_there(&mut self, name: &str, rows: usize, row: usize) -> Result<Option<Extent>, ShapeError> {
        if self.gguf.has_tensor(name) { self.one(name, rows, row).map(Some) } else { Ok(None) }
    }

    /// What divides the angles, if anything does.
    ///
    /// Of Phi-3's two sets one holds for the whole model, by the context it is made for: the long one for a model of
    /// 128k. `transformers` takes the short one for as long as a sequence fits the original context. Here keys stay in
    /// the pages where they were turned, and sequences share pages: one that grows past that border would read keys
    /// of two meanings. llama.cpp, too, settles it once. The price: up to the original context such a model's numbers
    /// are those of its long set.
    fn rope_factors(
        &mut self,
        table: &Architecture,
        shape: &Shape,
    ) -> Result<Option<RopeFactors>, ShapeError> {
        const ONE: &str = "rope_freqs.weight";
        const LONG: &str = "rope_factors_long.weight";
        const SHORT: &str = "rope_factors_short.weight";
        match table.factors {
            Factors::None => Ok(None),
            Factors::One if !self.gguf.has_tensor(ONE) => Ok(None),
            Factors::One => self.divisors(ONE, shape).map(Some),
            Factors::LongAndShort if !self.gguf.has_tensor(LONG) && !self.gguf.has_tensor(SHORT) => Ok(None),
            Factors::LongAndShort => {
                let key = format!("{}.rope.scaling.original_context_length", shape.architecture);
                let original = optional(self.gguf.u32(&key))?.unwrap_or(shape.context);
                let (chosen, other) = if shape.context > original { (LONG, SHORT) } else { (SHORT, LONG) };
                self.if_there(other, 1, shape.rope.dims / 2)?;
                self.divisors(chosen, shape).map(Some)
            }
        }
    }

    /// The factors in this tensor. One that is no number, or 0, would make every angle of its pair so.
    fn divisors(&mut self, name: &'static str, shape: &Shape) -> Result<RopeFactors, ShapeError> {
        let extent = self.one(name, 1, shape.rope.dims / 2)?;
        let divisors = self.gguf.tensor_at(&extent).values();
        match divisors.iter().position(|divisor| !(divisor.is_finite() && *divisor > 0.0)) {
            Some(pair) => Err(ShapeError::Unsupported(format!(
                "tensor `{name}` divides the angle of pair {pair} by {}, but a factor of the rope is a finite number \
                 above 0; convert the model again",
                divisors[pair]
            ))),
            None => Ok(RopeFactors { name, divisors }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gguf::Quant;
    use super::super::specimens::specimens;
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
        assert_eq!(weights.layers[1].v_bias.map(|bias| gguf.tensor_at(&bias).rows()), Some(1));
    }

    fn with_factors(writer: Writer, name: &str, factors: [f32; 8]) -> Writer {
        writer.tensor(
            name,
            &[8],
            Quant::F32,
            factors.iter().flat_map(|factor| factor.to_le_bytes()).collect(),
        )
    }

    #[test]
    fn a_factor_that_no_angle_can_be_divided_by_is_refused() {
        for factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let said = refusal(with_factors(
                toy(),
                "rope_freqs.weight",
                [1.0, 1.0, factor, 1.0, 1.0, 1.0, 1.0, 1.0],
            ));
            assert!(said.contains("`rope_freqs.weight` divides the angle of pair 2 by"), "{factor}: {said}");
        }
    }

    /// The set for the context that the model is made for is the one that counts; the other may be absent, but not be
    /// taken in its place.
    #[test]
    fn the_chosen_one_of_two_sets_of_factors_must_be_there() {
        const LONG: &str = "rope_factors_long.weight";
        const SHORT: &str = "rope_factors_short.weight";
        let phi3 = |context: u32| {
            specimens()
                .into_iter()
                .find(|specimen| specimen.name == "phi-4-mini")
                .map(|specimen| specimen.writer().u32("phi3.context_length", context))
                .expect("a specimen")
        };
        let original = 32;
        for (context, chosen, other) in [(original, SHORT, LONG), (original + 1, LONG, SHORT)] {
            let both = phi3(context).u32("phi3.rope.scaling.original_context_length", original);
            for writer in [both.clone(), both.clone().without(other)] {
                let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
                let weights = Weights::read(&gguf, &Shape::read(&gguf).unwrap()).unwrap();
                let factors = weights.rope_factors.expect("there are factors");
                assert_eq!((factors.name, factors.divisors), (chosen, gguf.tensor(chosen).unwrap().values()));
            }
            let said = refusal(both.clone().without(chosen));
            assert_eq!(said, format!("the GGUF file has no tensor `{chosen}`"));
            let none = Gguf::from_bytes(both.without(chosen).without(other).bytes()).unwrap();
            let weights = Weights::read(&none, &Shape::read(&none).unwrap()).unwrap();
            assert!(weights.rope_factors.is_none());
        }
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
            let (got, want) = (fused.tensor_at(&got), whole.tensor_at(&want));
            assert_eq!((got.dims, got.bytes), (want.dims, want.bytes));
        }
    }
}
