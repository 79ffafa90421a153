//! The hyperparameters of a model.
//!
//! Owns: the reading of `{architecture}.*`, the ranges in which they make sense, and what follows from them for each
//! layer. Never: a tensor (`tensors.rs`), nor what an architecture's name alone settles (`architecture.rs`).

use std::fmt;

use super::architecture::{ARCHITECTURES, Architecture, Factors, Windows};
use super::gguf::{Gguf, GgufError, optional};
pub use super::tensors::{Layer, Weights};
use crate::limits;

/// The dimensions of a decoder and its choices: all that a backend must know besides the tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// `llama`, `qwen2`, ... as the file says; no backend asks for it.
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
    /// Added to the mean square in every RMS norm.
    pub norm_eps: f32,
    /// Positions the model was trained for.
    pub context: u32,
    /// The output head is the embedding matrix (there is no `output.weight`).
    pub tied_head: bool,
    pub rope: Rope,
    /// Of the feed-forward's gate: `activation(gate . x) * (up . x)`.
    pub activation: Activation,
    /// A token's embedding row is multiplied by this.
    pub embedding_scale: f32,
    /// `score = q . k * query_scale`, before cap and mask.
    pub query_scale: f32,
    /// `score = cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// `logit = cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Sliding-window attention; [`Shape::window_of`] says which layers have it.
    pub window: Option<Window>,
}

/// Rotary position embedding: pair i of a head at position p turns by `p * turns[i]`; Su et al., "RoFormer" (2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The first so many values of a head are turned; even.
    pub dims: usize,
    /// Pair i's angle falls with `base^(-2i / dims)`.
    pub base: f32,
    /// The base in local layers ([`Window::every`]); else `base`.
    pub local_base: f32,
    pub pairing: Pairing,
    /// A position is divided by this, but not in local layers.
    pub linear_scale: f32,
    /// Cosine and sine are multiplied by this: turned queries and keys grow by it.
    pub attention_scale: f32,
}

/// Which values of a head turn together, i in `0..dims / 2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// (2i, 2i + 1)
    Adjacent,
    /// (i, i + dims / 2)
    Halves,
}

/// The feed-forward's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`; Hendrycks, Gimpel, "GELU" (2016).
    GeluTanh,
}

/// Attention to the latest slots only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Slots that a row sees, its own among them.
    pub size: usize,
    /// Layer l is global, and the others are local, if `(l + 1) % every == 0`. 0: every layer has the window, and
    /// none is called local.
    pub every: usize,
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
                let known = ARCHITECTURES.map(|row| format!("`{}`", row.name)).join(", ");
                write!(f, "the model's architecture is `{name}`; Tartlet computes {known}")
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
        let table = Architecture::named(&architecture)?;
        let keys = Keys { gguf, architecture: &architecture };
        keys.refuse_what_changes_the_numbers()?;

        let layers = keys.size("block_count", limits::MODEL_LAYERS)?;
        let hidden = keys.size("embedding_length", limits::MODEL_WIDTH)?;
        let heads = keys.size("attention.head_count", limits::MODEL_WIDTH)?;
        let kv_heads =
            optional_size(keys.size("attention.head_count_kv", limits::MODEL_WIDTH))?.unwrap_or(heads);
        let head_dim = keys.head_dim(hidden, heads)?;
        if heads % kv_heads != 0 {
            return Err(keys.range("attention.head_count_kv", kv_heads, format!("a divisor of {heads}")));
        }
        if heads * head_dim > limits::MODEL_WIDTH as usize {
            let want = format!("such that all heads have at most {} values", limits::MODEL_WIDTH);
            return Err(keys.range("attention.head_count", heads, want));
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
        let query_divisor = match table.wide_query_layers {
            Some(wide) if wide == layers => hidden as f32 / heads as f32,
            _ => head_dim as f32,
        };
        Ok(Shape {
            layers,
            hidden,
            ffn: keys.size("feed_forward_length", limits::MODEL_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            norm_eps,
            context: keys.size("context_length", limits::MODEL_CONTEXT)? as u32,
            tied_head: !gguf.has_tensor("output.weight"),
            rope: keys.rope(table, head_dim)?,
            activation: table.activation,
            embedding_scale: if table.scaled_embedding { (hidden as f32).sqrt() } else { 1.0 },
            query_scale: 1.0 / query_divisor.sqrt(),
            score_cap: keys.cap("attn_logit_softcapping", table.score_cap)?,
            logit_cap: keys.cap("final_logit_softcapping", table.logit_cap)?,
            window: keys.window(table)?,
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

    /// The window of a layer: a row in slot s sees slots `s + 1 - window ..= s`. `None`: all slots up to its own.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let Window { size, every } = self.window?;
        (every == 0 || !(layer + 1).is_multiple_of(every)).then_some(size)
    }

    /// Radians by which one position turns pair i of a head in this layer. `factors` divide the angles, one per pair
    /// ([`Weights::rope_factors`]).
    pub fn turns_of(&self, layer: usize, factors: Option<&[f32]>) -> Vec<f64> {
        let Rope { dims, base, local_base, linear_scale, .. } = self.rope;
        let local = self.window.is_some_and(|window| window.every > 0) && self.window_of(layer).is_some();
        let (base, scale) = if local { (local_base, 1.0) } else { (base, linear_scale) };
        let turn = |pair: usize| {
            let turn = f64::from(base).powf(-2.0 * pair as f64 / dims as f64) / f64::from(scale);
            factors.map_or(turn, |factors| turn / f64::from(factors[pair]))
        };
        (0..dims / 2).map(turn).collect()
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

    /// The number under `key`, or `default`; finite and at least `least`.
    fn at_least(&self, key: &str, least: f32, default: f32) -> Result<f32, ShapeError> {
        let value = optional(self.f32(key))?.unwrap_or(default);
        if !(value.is_finite() && value >= least) {
            return Err(self.range(key, value, format!("at least {least} and finite")));
        }
        Ok(value)
    }

    fn range(&self, key: &str, value: impl ToString, want: String) -> ShapeError {
        ShapeError::Range { key: self.full(key), value: value.to_string(), want }
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, ShapeError> {
        let key = optional_size(self.size("attention.key_length", limits::MODEL_HEAD))?;
        let value = optional_size(self.size("attention.value_length", limits::MODEL_HEAD))?;
        let head_dim = match key.or(value) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(self.range("attention.head_count", heads, format!("a divisor of {hidden}")));
            }
        };
        if let Some(value) = value
            && value != head_dim
        {
            return Err(self.range("attention.value_length", value, format!("the key length, {head_dim}")));
        }
        if head_dim % 2 != 0 || head_dim > limits::MODEL_HEAD as usize {
            let want = format!("such that a head has an even size of at most {}", limits::MODEL_HEAD);
            return Err(self.range("attention.head_count", heads, want));
        }
        Ok(head_dim)
    }

    fn rope(&self, table: &Architecture, head_dim: usize) -> Result<Rope, ShapeError> {
        let dims = optional_size(self.size("rope.dimension_count", limits::MODEL_HEAD))?.unwrap_or(head_dim);
        if dims % 2 != 0 || dims > head_dim {
            let want = format!("even and at most the head size, {head_dim}");
            return Err(self.range("rope.dimension_count", dims, want));
        }
        let base = self.at_least("rope.freq_base", 1.0, 10_000.0)?;
        let local_base = match table.window {
            Windows::Alternating { base: Some(local), .. } => {
                self.at_least("rope.freq_base_swa", 1.0, local)?
            }
            _ => base,
        };
        Ok(Rope {
            dims,
            base,
            local_base,
            pairing: table.pairing,
            linear_scale: self.linear_scale(table)?,
            attention_scale: self.at_least("rope.scaling.attn_factor", f32::MIN_POSITIVE, 1.0)?,
        })
    }

    /// How far positions are stretched in equal measure; a stretch of any other kind is refused.
    fn linear_scale(&self, table: &Architecture) -> Result<f32, ShapeError> {
        let scaling = self.full("rope.scaling.type");
        let kind = optional(self.gguf.str(&scaling))?.unwrap_or("linear");
        match kind {
            // `rope.scale_linear` is the older name; a factor of 0 stands for none.
            "linear" => {
                let older = self.at_least("rope.scale_linear", 0.0, 1.0)?;
                let factor = self.at_least("rope.scaling.factor", 0.0, older)?;
                Ok(if factor == 0.0 { 1.0 } else { factor })
            }
            "none" => Ok(1.0),
            // Its numbers are in the tensors of factors and in `rope.scaling.attn_factor`.
            "longrope" if table.factors == Factors::LongAndShort => Ok(1.0),
            kind => Err(ShapeError::Unsupported(format!(
                "the model stretches its positions (`{scaling}` = {kind}), which Tartlet does not compute"
            ))),
        }
    }

    /// A cap on scores or logits; 0 stands for none.
    fn cap(&self, key: &str, default: f32) -> Result<Option<f32>, ShapeError> {
        Ok(Some(self.at_least(key, 0.0, default)?).filter(|&cap| cap > 0.0))
    }

    fn window(&self, table: &Architecture) -> Result<Option<Window>, ShapeError> {
        // 0 stands for none.
        let key = "attention.sliding_window";
        let named = optional(self.gguf.u32(&self.full(key)))?.map(|size| size as usize);
        if let Some(size) = named
            && size > limits::MODEL_CONTEXT as usize
        {
            return Err(self.range(key, size, format!("at most {}", limits::MODEL_CONTEXT)));
        }
        let window = match table.window {
            Windows::None if named.is_some_and(|size| size > 0) => {
                return Err(ShapeError::Unsupported(format!(
                    "the model has `{}`, but not which layers it holds for: Tartlet does not compute it for `{}`",
                    self.full(key),
                    self.architecture
                )));
            }
            Windows::None => None,
            Windows::All => named.map(|size| Window { size, every: 0 }),
            Windows::Alternating { every, size, .. } => {
                let pattern = self.gguf.u32(&self.full("attention.sliding_window_pattern"));
                let every = optional(pattern)?.map_or(every, |every| every as usize);
                named.or(size).map(|size| Window { size, every })
            }
        };
        Ok(window.filter(|window| window.size > 0))
    }

    /// Options that would change the result and that Tartlet does not compute.
    fn refuse_what_changes_the_numbers(&self) -> Result<(), ShapeError> {
        if optional(self.gguf.u32(&self.full("expert_count")))?.is_some_and(|experts| experts > 0) {
            let what = "the model is a mixture of experts, which Tartlet does not compute";
            return Err(ShapeError::Unsupported(what.into()));
        }
        if optional(self.gguf.bool(&self.full("attention.causal")))? == Some(false) {
            let what = "the model attends in both directions: it makes embeddings and does not generate text";
            return Err(ShapeError::Unsupported(what.into()));
        }
        // Of the same numeric kind in every file; 0 and 1 both stand for "not used".
        for key in
            ["logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv"]
        {
            if let Some(value) = optional(self.f32(key))?
                && value != 0.0
                && value != 1.0
            {
                return Err(ShapeError::Unsupported(format!(
                    "the model's `{}` is {value}, which Tartlet does not compute",
                    self.full(key)
                )));
            }
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

    /// The keys that every file has, of one architecture and so many layers; no tensor but the embedding.
    fn keys(architecture: &str, layers: u32) -> Writer {
        let key = |key: &str| format!("{architecture}.{key}");
        Writer::new()
            .str("general.architecture", architecture)
            .u32(&key("block_count"), layers)
            .u32(&key("context_length"), 32_768)
            .u32(&key("embedding_length"), 64)
            .u32(&key("feed_forward_length"), 96)
            .u32(&key("attention.head_count"), 4)
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
            .tensor("token_embd.weight", &[64, 2], super::super::Quant::F32, vec![0; 512])
    }

    fn shape(writer: Writer) -> Shape {
        Shape::read(&Gguf::from_bytes(writer.bytes()).unwrap()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn unread(writer: Writer) -> String {
        Shape::read(&Gguf::from_bytes(writer.bytes()).unwrap()).expect_err("refused").to_string()
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
        let cases: [(&str, u32, &str); 13] = [
            ("llama.block_count", 0, "`llama.block_count` is 0, but should be from 1 to 512"),
            ("llama.block_count", 3, "no tensor `blk.2.attn_q.weight`"),
            ("llama.block_count", 1, "a tensor `blk.1.attn_norm.weight` that `llama`"),
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
            ("llama.attention.sliding_window", u32::MAX, "is 4294967295, but should be at most"),
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
        assert!(said(toy().f32("llama.rope.scaling.attn_factor", 0.0)).contains("attn_factor` is 0"));
        assert!(said(toy().f32("llama.rope.scaling.factor", -2.0)).contains("factor` is -2"));
        assert!(said(toy().f32("llama.attention.scale", 0.5)).contains("`llama.attention.scale` is 0.5"));
        assert!(said(toy().bool("llama.attention.causal", false)).contains("in both directions"));
        assert!(
            said(toy().str("general.architecture", "mamba")).contains(
                "is `mamba`; Tartlet computes `llama`, `qwen2`, `qwen3`, `gemma2`, `gemma3`, `phi3`"
            )
        );
        for kind in ["yarn", "longrope"] {
            let said = said(toy().str("llama.rope.scaling.type", kind));
            assert!(said.contains(&format!("`llama.rope.scaling.type` = {kind}")), "{said}");
        }
        assert!(unread(keys("qwen2", 2).u32("qwen2.attention.sliding_window", 8)).contains("which layers"));
        assert!(
            said(toy().without("llama.context_length")).contains("no metadata key `llama.context_length`")
        );
        assert!(said(toy().without("blk.1.ffn_up.weight")).contains("no tensor `blk.1.ffn_up.weight`"));
    }

    #[test]
    fn a_row_of_the_table_and_the_file_make_a_shape() {
        let llama = shape(keys("llama", 2));
        assert_eq!((llama.rope.pairing, llama.activation), (Pairing::Adjacent, Activation::Silu));
        assert_eq!((llama.embedding_scale, llama.query_scale, llama.window), (1.0, 0.25, None));
        let mistral = shape(keys("llama", 2).u32("llama.attention.sliding_window", 4096));
        assert_eq!([0, 1].map(|layer| mistral.window_of(layer)), [Some(4096); 2]);

        let qwen = shape(keys("qwen3", 2).u32("qwen3.attention.key_length", 128));
        assert_eq!((qwen.head_dim, qwen.rope.dims, qwen.rope.pairing), (128, 128, Pairing::Halves));

        let gemma2 = shape(keys("gemma2", 26));
        assert_eq!((gemma2.score_cap, gemma2.logit_cap), (Some(50.0), Some(30.0)));
        assert_eq!((gemma2.embedding_scale, gemma2.activation), (8.0, Activation::GeluTanh));
        assert_eq!([0, 1, 2, 25].map(|layer| gemma2.window_of(layer).is_some()), [true, false, true, false]);
        let wide = keys("gemma2", 46).u32("gemma2.attention.key_length", 8);
        assert_eq!(shape(wide).query_scale, 0.25);
        assert_eq!(shape(keys("gemma2", 26).f32("gemma2.attn_logit_softcapping", 0.0)).score_cap, None);

        let gemma3 = keys("gemma3", 26)
            .u32("gemma3.attention.sliding_window", 512)
            .f32("gemma3.rope.freq_base", 1e6)
            .f32("gemma3.rope.scaling.factor", 8.0);
        let shape3 = shape(gemma3.clone());
        assert_eq!((shape3.score_cap, shape3.logit_cap), (None, None));
        assert_eq!([4, 5, 6, 11].map(|layer| shape3.window_of(layer)), [Some(512), None, Some(512), None]);
        assert_eq!(shape3.turns_of(4, None)[1], 10_000f64.powf(-0.125));
        assert_eq!(shape3.turns_of(5, None)[1], 1e6f64.powf(-0.125) / 8.0);
        let every_third = shape(gemma3.u32("gemma3.attention.sliding_window_pattern", 3));
        assert_eq!([1, 2].map(|layer| every_third.window_of(layer)), [Some(512), None]);
        assert_eq!(shape(keys("gemma3", 26)).window, None);
    }

    #[test]
    fn angles_are_stretched_as_the_file_says() {
        let plain = shape(keys("llama", 2)).turns_of(0, None);
        assert_eq!((plain.len(), plain[0], plain[4]), (8, 1.0, 0.01));
        let factors: Vec<f32> = (1..=8).map(|factor| factor as f32).collect();
        let divided = shape(keys("llama", 2)).turns_of(0, Some(&factors));
        assert!((0..8).all(|pair| divided[pair] == plain[pair] / (pair + 1) as f64));
        let windowed = keys("llama", 2)
            .u32("llama.attention.sliding_window", 8)
            .str("llama.rope.scaling.type", "linear")
            .f32("llama.rope.scaling.factor", 4.0);
        assert_eq!(shape(windowed).turns_of(1, None)[0], 0.25);
        let older = keys("llama", 2).f32("llama.rope.scale_linear", 2.0);
        assert_eq!(shape(older).turns_of(1, None)[0], 0.5);
    }
}
