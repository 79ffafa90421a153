//! The hyperparameters of a model and the proof that its tensors fit them.
//!
//! Owns: the reading of `{architecture}.*`, the ranges in which they make sense, and the table of tensors that a
//! Llama-family model consists of. Never: a weight's value. After [`Shape::read`] and [`Weights::read`] a backend
//! need not check anything again.

use std::fmt;

use super::gguf::{Gguf, GgufError, Tensor, optional};
use crate::limits;

/// The dimensions of a Llama-family model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// `llama`.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream, in values.
    pub hidden: usize,
    /// Width of the feed-forward's inner layer.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values per head; even.
    pub head_dim: usize,
    /// Rows of the embedding = tokens of the vocabulary.
    pub vocab: usize,
    /// Base of the rotary angles: pair i of position p turns by `p * rope_base^(-2i / rope_dims)`.
    pub rope_base: f32,
    /// The first so many values of a head are rotated, in interleaved pairs (2i, 2i + 1); even.
    pub rope_dims: usize,
    /// Added to the mean square in RMS norm.
    pub norm_eps: f32,
    /// Positions the model was trained for.
    pub context: u32,
    /// The output head is the embedding matrix (there is no `output.weight`).
    pub tied_head: bool,
}

/// All tensors of a model, dimensions and formats checked against its [`Shape`]. `[rows, row length]` each.
pub struct Weights<'a> {
    pub embedding: Tensor<'a>,   // [vocab, hidden]
    pub output_norm: Tensor<'a>, // [1, hidden]
    pub head: Tensor<'a>,        // [vocab, hidden]; the embedding itself if tied
    pub layers: Vec<Layer<'a>>,
    /// Divides pair i's angle, `[1, rope_dims / 2]`, if the model stretches its rope (Llama 3.1 and later).
    pub rope_factors: Option<Tensor<'a>>,
}

/// The tensors of one block.
pub struct Layer<'a> {
    pub attn_norm: Tensor<'a>,   // [1, hidden]
    pub attn_q: Tensor<'a>,      // [heads * head_dim, hidden]
    pub attn_k: Tensor<'a>,      // [kv_heads * head_dim, hidden]
    pub attn_v: Tensor<'a>,      // [kv_heads * head_dim, hidden]
    pub attn_output: Tensor<'a>, // [hidden, heads * head_dim]
    pub ffn_norm: Tensor<'a>,    // [1, hidden]
    pub ffn_gate: Tensor<'a>,    // [ffn, hidden]
    pub ffn_up: Tensor<'a>,      // [ffn, hidden]
    pub ffn_down: Tensor<'a>,    // [hidden, ffn]
}

/// Why a model is not one that Tartlet computes.
#[derive(Debug)]
pub enum ShapeError {
    /// The file lacks something or has it in another form.
    Gguf(GgufError),
    /// An architecture we do not have.
    Architecture(String),
    /// A hyperparameter outside the range in which it makes sense.
    Range { key: String, value: String, want: String },
    /// A tensor whose dimensions contradict the hyperparameters.
    Tensor { name: String, dims: [usize; 4], want: [usize; 2] },
    /// Something in the file that changes the numbers and that we do not compute.
    Unsupported(String),
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShapeError::Gguf(error) => error.fmt(f),
            ShapeError::Architecture(name) => {
                write!(f, "the model's architecture is `{name}`; Tartlet computes the Llama family (`llama`)")
            }
            ShapeError::Range { key, value, want } => {
                write!(f, "the model's `{key}` is {value}, but should be {want}")
            }
            ShapeError::Tensor { name, dims, want: [rows, row] } => write!(
                f,
                "tensor `{name}` has dimensions {dims:?}, but the model's shape asks for [{row}, {rows}, 1, 1]"
            ),
            ShapeError::Unsupported(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ShapeError {}

impl From<GgufError> for ShapeError {
    fn from(error: GgufError) -> ShapeError {
        ShapeError::Gguf(error)
    }
}

impl Shape {
    /// Reads and checks the hyperparameters; the vocabulary's size is compared with the embedding in
    /// [`Weights::read`] and with the tokenizer in `Model::open`.
    pub fn read(gguf: &Gguf) -> Result<Shape, ShapeError> {
        let architecture = gguf.str("general.architecture")?.to_owned();
        if architecture != "llama" {
            return Err(ShapeError::Architecture(architecture));
        }
        if let Some(parts @ 2..) = optional(gguf.u32("split.count"))? {
            let what =
                format!("the model is split into {parts} files; join them into one (gguf-split --merge)");
            return Err(ShapeError::Unsupported(what));
        }
        let keys = Keys { gguf, architecture: &architecture };
        keys.refuse_what_changes_the_numbers()?;

        let hidden = keys.size("embedding_length", limits::MODEL_WIDTH)?;
        let heads = keys.size("attention.head_count", limits::MODEL_WIDTH)?;
        let kv_heads =
            optional_size(keys.size("attention.head_count_kv", limits::MODEL_WIDTH))?.unwrap_or(heads);
        let head_dim = optional_size(keys.size("attention.key_length", limits::MODEL_HEAD))?;
        let value_dim = optional_size(keys.size("attention.value_length", limits::MODEL_HEAD))?;
        let head_dim = match head_dim.or(value_dim) {
            Some(head_dim) => head_dim,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(keys.range("attention.head_count", heads, format!("a divisor of {hidden}")));
            }
        };
        if value_dim.is_some_and(|value_dim| value_dim != head_dim) {
            let want = format!("the key length, {head_dim}");
            return Err(keys.range("attention.value_length", value_dim.unwrap_or(0), want));
        }
        if head_dim % 2 != 0 || head_dim > limits::MODEL_HEAD as usize {
            let want = format!("such that a head has an even size of at most {}", limits::MODEL_HEAD);
            return Err(keys.range("attention.head_count", heads, want));
        }
        if heads % kv_heads != 0 {
            return Err(keys.range("attention.head_count_kv", kv_heads, format!("a divisor of {heads}")));
        }
        if heads * head_dim > limits::MODEL_WIDTH as usize {
            let want = format!("such that all heads have at most {} values", limits::MODEL_WIDTH);
            return Err(keys.range("attention.head_count", heads, want));
        }
        let rope_dims =
            optional_size(keys.size("rope.dimension_count", limits::MODEL_HEAD))?.unwrap_or(head_dim);
        if rope_dims % 2 != 0 || rope_dims > head_dim {
            let want = format!("even and at most the head size, {head_dim}");
            return Err(keys.range("rope.dimension_count", rope_dims, want));
        }
        let rope_base = optional(keys.f32("rope.freq_base"))?.unwrap_or(10_000.0);
        if !(rope_base.is_finite() && rope_base >= 1.0) {
            return Err(keys.range("rope.freq_base", rope_base, "at least 1 and finite".into()));
        }
        let norm_eps = keys.f32("attention.layer_norm_rms_epsilon")?;
        if !(0.0..1.0).contains(&norm_eps) {
            return Err(keys.range("attention.layer_norm_rms_epsilon", norm_eps, "from 0 to below 1".into()));
        }
        let rows = gguf.tensor("token_embd.weight")?.dims[1];
        let vocab = optional_size(keys.size("vocab_size", limits::MODEL_VOCAB))?.unwrap_or(rows);
        if vocab != rows || vocab > limits::MODEL_VOCAB as usize {
            let want = format!("the rows of `token_embd.weight` ({rows}), at most {}", limits::MODEL_VOCAB);
            return Err(keys.range("vocab_size", vocab, want));
        }
        Ok(Shape {
            layers: keys.size("block_count", limits::MODEL_LAYERS)?,
            hidden,
            ffn: keys.size("feed_forward_length", limits::MODEL_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            rope_base,
            rope_dims,
            norm_eps,
            context: keys.size("context_length", limits::MODEL_CONTEXT)? as u32,
            tied_head: !gguf.has_tensor("output.weight"),
            architecture,
        })
    }

    /// Values of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key heads together; the same for the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl<'a> Weights<'a> {
    /// Looks up every tensor of the model and checks its dimensions and its format. A tensor in the file that
    /// this family does not have is refused too: leaving it out would give other numbers in silence.
    pub fn read(gguf: &'a Gguf, shape: &Shape) -> Result<Weights<'a>, ShapeError> {
        let mut taken = 0;
        let mut take = |name: &str, rows: usize, row: usize| {
            let tensor = gguf.tensor(name)?;
            if tensor.dims != [row, rows, 1, 1] {
                let (name, dims) = (name.to_owned(), tensor.dims);
                return Err(ShapeError::Tensor { name, dims, want: [rows, row] });
            }
            taken += 1;
            Ok(tensor)
        };
        let Shape { hidden, ffn, vocab, .. } = *shape;
        let (q, kv) = (shape.q_width(), shape.kv_width());
        let embedding = take("token_embd.weight", vocab, hidden)?;
        let output_norm = take("output_norm.weight", 1, hidden)?;
        let head = if shape.tied_head { embedding } else { take("output.weight", vocab, hidden)? };
        let rope_factors = match gguf.has_tensor("rope_freqs.weight") {
            true => Some(take("rope_freqs.weight", 1, shape.rope_dims / 2)?),
            false => None,
        };
        // Grows by what is there: `shape.layers` is bounded, the file decides.
        let mut layers = Vec::new();
        for layer in 0..shape.layers {
            let mut take = |part: &str, rows, row| take(&format!("blk.{layer}.{part}.weight"), rows, row);
            layers.push(Layer {
                attn_norm: take("attn_norm", 1, hidden)?,
                attn_q: take("attn_q", q, hidden)?,
                attn_k: take("attn_k", kv, hidden)?,
                attn_v: take("attn_v", kv, hidden)?,
                attn_output: take("attn_output", hidden, q)?,
                ffn_norm: take("ffn_norm", 1, hidden)?,
                ffn_gate: take("ffn_gate", ffn, hidden)?,
                ffn_up: take("ffn_up", ffn, hidden)?,
                ffn_down: take("ffn_down", hidden, ffn)?,
            });
        }
        let weights = Weights { embedding, output_norm, head, layers, rope_factors };
        if taken != gguf.tensors().count() {
            let known = weights.names();
            let extra = gguf.tensors().find(|t| !known.contains(t.name)).map_or("", |t| t.name);
            let what = format!(
                "the model has a tensor `{extra}` that the Llama family as Tartlet computes it lacks; \
                 biases, experts and further inputs are not supported"
            );
            return Err(ShapeError::Unsupported(what));
        }
        Ok(weights)
    }

    fn names(&self) -> std::collections::HashSet<&str> {
        let layers = self.layers.iter().flat_map(|l| {
            let attention = [l.attn_norm, l.attn_q, l.attn_k, l.attn_v, l.attn_output];
            attention.into_iter().chain([l.ffn_norm, l.ffn_gate, l.ffn_up, l.ffn_down])
        });
        let ends = [self.embedding, self.output_norm, self.head].into_iter().chain(self.rope_factors);
        ends.chain(layers).map(|t| t.name).collect()
    }
}

/// The keys of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.gguf.f32(&self.full(key))
    }

    /// A number from 1 to `limit`.
    fn size(&self, key: &str, limit: u32) -> Result<usize, ShapeError> {
        let size = self.gguf.u32(&self.full(key))?;
        if !(1..=limit).contains(&size) {
            return Err(self.range(key, size, format!("from 1 to {limit}")));
        }
        Ok(size as usize)
    }

    fn range(&self, key: &str, value: impl ToString, want: String) -> ShapeError {
        ShapeError::Range { key: self.full(key), value: value.to_string(), want }
    }

    /// Options of the family that would change the result and that Tartlet does not compute.
    fn refuse_what_changes_the_numbers(&self) -> Result<(), ShapeError> {
        let scaling = self.full("rope.scaling.type");
        let factor = optional(self.f32("rope.scaling.factor"))?.unwrap_or(1.0);
        if let Some(kind) = optional(self.gguf.str(&scaling))?
            && kind != "none"
            && !(kind == "linear" && factor == 1.0)
        {
            return Err(ShapeError::Unsupported(format!(
                "the model stretches its positions (`{scaling}` = {kind}), which Tartlet does not compute"
            )));
        }
        if optional(self.gguf.u32(&self.full("expert_count")))?.is_some_and(|experts| experts > 0) {
            let what = "the model is a mixture of experts, which Tartlet does not compute";
            return Err(ShapeError::Unsupported(what.into()));
        }
        Ok(())
    }
}

/// An absent key is `None`; every other error stays one.
fn optional_size(size: Result<usize, ShapeError>) -> Result<Option<usize>, ShapeError> {
    match size {
        Err(ShapeError::Gguf(GgufError::Missing { .. })) => Ok(None),
        size => size.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::super::gguf::Quant;
    use super::super::toy::{Toy, Writer};
    use super::*;

    fn read(writer: Writer) -> Result<Shape, ShapeError> {
        let gguf = Gguf::from_bytes(writer.bytes()).expect("the file itself is fine");
        let shape = Shape::read(&gguf)?;
        Weights::read(&gguf, &shape).map(|_| shape)
    }

    fn said(writer: Writer) -> String {
        read(writer).expect_err("refused").to_string()
    }

    fn toy() -> Writer {
        Toy::default().writer()
    }

    #[test]
    fn hyperparameters_have_their_defaults() {
        let least = toy()
            .without("llama.rope.dimension_count")
            .without("llama.rope.freq_base")
            .without("llama.vocab_size");
        assert_eq!(read(least).unwrap(), read(toy()).unwrap());
        let square = Toy { kv_heads: 4, ..Toy::default() }.writer().without("llama.attention.head_count_kv");
        assert_eq!(read(square).unwrap().kv_heads, 4);
        let shape = read(Toy { tied_head: false, ..Toy::default() }.writer()).unwrap();
        assert!(!shape.tied_head);
        assert_eq!((shape.q_width(), shape.kv_width()), (64, 32));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases: [(&str, u32, &str); 12] = [
            ("llama.block_count", 0, "`llama.block_count` is 0, but should be from 1 to 512"),
            ("llama.block_count", 3, "no tensor `blk.2.attn_norm.weight`"),
            ("llama.block_count", 1, "a tensor `blk.1.attn_norm.weight` that the Llama family"),
            ("llama.embedding_length", u32::MAX, "`llama.embedding_length` is 4294967295"),
            ("llama.embedding_length", 72, "`token_embd.weight` has dimensions [64, 320, 1, 1]"),
            (
                "llama.attention.head_count",
                5,
                "`llama.attention.head_count` is 5, but should be a divisor of 64",
            ),
            ("llama.attention.head_count", 64, "a head has an even size"),
            (
                "llama.attention.head_count_kv",
                3,
                "`llama.attention.head_count_kv` is 3, but should be a divisor of 4",
            ),
            ("llama.attention.value_length", 8, "`llama.rope.dimension_count` is 16"),
            ("llama.rope.dimension_count", 18, "even and at most the head size, 16"),
            (
                "llama.vocab_size",
                321,
                "`llama.vocab_size` is 321, but should be the rows of `token_embd.weight` (320)",
            ),
            ("llama.expert_count", 8, "mixture of experts"),
        ];
        for (key, value, want) in cases {
            let said = said(toy().u32(key, value));
            assert!(said.contains(want), "{key} = {value}: {said}");
        }
        assert!(
            said(toy().u32("llama.attention.key_length", 16).u32("llama.attention.value_length", 8))
                .contains("should be the key length, 16")
        );
        assert!(said(toy().f32("llama.attention.layer_norm_rms_epsilon", f32::NAN)).contains("is NaN"));
        assert!(said(toy().f32("llama.rope.freq_base", f32::INFINITY)).contains("is inf"));
        assert!(
            said(toy().str("general.architecture", "gemma3"))
                .contains("is `gemma3`; Tartlet computes the Llama family")
        );
        assert!(
            said(toy().str("llama.rope.scaling.type", "yarn")).contains("`llama.rope.scaling.type` = yarn")
        );
        assert!(said(toy().u32("split.count", 2)).contains("split into 2 files"));
        assert!(
            said(toy().without("llama.context_length")).contains("no metadata key `llama.context_length`")
        );
        assert!(said(toy().without("blk.1.ffn_up.weight")).contains("no tensor `blk.1.ffn_up.weight`"));
        let q6_k = toy().tensor_of("blk.1.ffn_up.weight", &[64, 96], 14, Vec::new());
        assert!(said(q6_k).contains("`blk.1.ffn_up.weight` is of type Q6_K"));
        let bias = toy().tensor("blk.0.attn_q.bias", &[64], Quant::F32, vec![0; 256]);
        assert!(said(bias).contains("a tensor `blk.0.attn_q.bias`"));
    }

    #[test]
    fn stretched_rope_brings_its_factors() {
        let writer = toy().tensor("rope_freqs.weight", &[8], Quant::F32, vec![0; 32]);
        let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
        let shape = Shape::read(&gguf).unwrap();
        assert!(Weights::read(&gguf, &shape).unwrap().rope_factors.is_some());
        let wrong = toy().tensor("rope_freqs.weight", &[9], Quant::F32, vec![0; 36]);
        assert!(said(wrong).contains("`rope_freqs.weight` has dimensions [9, 1, 1, 1]"));
    }
}
