//! The hyperparameters of a model.
//!
//! Owns: what a backend must know besides the tensors, and what follows from it for each layer. Never: a tensor
//! (`tensors.rs`), a key's range (`keys.rs`), nor what an architecture's name alone settles (`architecture.rs`).

use std::fmt;

use super::architecture::{ARCHITECTURES, Architecture};
use super::gguf::{Gguf, GgufError};
use super::keys::{Keys, optional_size};
pub use super::tensors::{Layer, RopeFactors, Weights};
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
    /// The slow pairs' angles are stretched, the fast ones' are not; in local layers none is.
    pub yarn: Option<Yarn>,
    /// Cosine and sine are multiplied by this: turned queries and keys grow by it.
    pub attention_scale: f32,
}

/// Stretched positions by pairs: Peng et al., "YaRN" (2023). Pairs that turn at least `fast` times within the
/// `original` context keep their angle, those that turn at most `slow` times divide it by `factor`, and those between
/// go over by their number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f32,
    pub original: u32,
    pub fast: f32,
    pub slow: f32,
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

impl Yarn {
    /// What the angle of a pair is multiplied by.
    fn stretch(&self, pair: usize, rope: &Rope) -> f64 {
        let (dims, base) = (rope.dims as f64, f64::from(rope.base));
        // The pair that turns so many times within the original context.
        let pair_of = |turns: f32| {
            let wave = f64::from(self.original) / (f64::from(turns) * std::f64::consts::TAU);
            dims * wave.ln() / (2.0 * base.ln())
        };
        let first = pair_of(self.fast).floor().max(0.0);
        let last = pair_of(self.slow).ceil().min(dims - 1.0).max(first + 0.001);
        let share = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
        1.0 - share + share / f64::from(self.factor)
    }
}

impl Shape {
    /// Reads and checks the hyperparameters; the vocabulary's size is compared with the embedding in
    /// [`Weights::read`] and with the tokenizer in `Model::open`.
    pub fn read(gguf: &Gguf) -> Result<Shape, ShapeError> {
        let table = Architecture::named(gguf.str("general.architecture")?)?;
        let keys = Keys { gguf, architecture: table.name };
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
            architecture: table.name.to_owned(),
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
    /// ([`RopeFactors::divisors`]).
    pub fn turns_of(&self, layer: usize, factors: Option<&[f32]>) -> Vec<f64> {
        let Rope { dims, base, local_base, linear_scale, yarn, .. } = self.rope;
        let local = self.window.is_some_and(|window| window.every > 0) && self.window_of(layer).is_some();
        let (base, scale, yarn) = if local { (local_base, 1.0, None) } else { (base, linear_scale, yarn) };
        let turn = |pair: usize| {
            let turn = f64::from(base).powf(-2.0 * pair as f64 / dims as f64) / f64::from(scale);
            let turn = yarn.map_or(turn, |yarn| turn * yarn.stretch(pair, &self.rope));
            factors.map_or(turn, |factors| turn / f64::from(factors[pair]))
        };
        (0..dims / 2).map(turn).collect()
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
            .tensor("token_embd.weight", &[64, 2], Quant::F32, vec![0; 512])
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
        let long = "y".repeat(1 << 20);
        for key in ["general.architecture", "llama.rope.scaling.type"] {
            assert!(said(toy().str(key, &long)).len() < 2000, "{key}");
        }
        for kind in ["dynamic", "longrope"] {
            let said = said(toy().str("llama.rope.scaling.type", kind));
            assert!(said.contains(&format!("`llama.rope.scaling.type` = {kind}")), "{said}");
        }
        let yarn = toy().str("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0);
        assert!(said(yarn.clone()).contains("no metadata key `llama.rope.scaling.original_context_length`"));
        let yarn = yarn.u32("llama.rope.scaling.original_context_length", 128);
        assert!(read(yarn.clone()).is_ok());
        for key in ["yarn_log_multiplier", "yarn_attn_factor", "yarn_ext_factor"] {
            let key = format!("llama.rope.scaling.{key}");
            let said = said(yarn.clone().f32(&key, 0.5));
            assert!(said.contains(&format!("`{key}` is 0.5, which Tartlet does not compute")), "{said}");
        }
        assert!(said(yarn.f32("llama.rope.freq_base", 1.0)).contains("should be above 1"));
        let mixed = toy().u32("llama.attention.sliding_window_pattern", 2);
        assert!(said(mixed).contains("sliding_window_pattern`, which Tartlet does not compute for `llama`"));
        assert!(
            said(toy().f32("llama.attention.temperature_scale", 0.1)).contains("temperature_scale` is 0.1")
        );
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

    /// The keys of published files, as their converters wrote them, in the numbers that a backend works with.
    #[test]
    fn published_files_are_read() {
        type Numbers<'a> = &'a [(&'a str, f32)];
        let header = |architecture: &str, layers, sizes: [u32; 5], numbers: Numbers| {
            let key = |key: &str| format!("{architecture}.{key}");
            let [context, hidden, ffn, heads, kv_heads] = sizes;
            let mut writer = keys(architecture, layers)
                .u32(&key("context_length"), context)
                .u32(&key("embedding_length"), hidden)
                .u32(&key("feed_forward_length"), ffn)
                .u32(&key("attention.head_count"), heads)
                .u32(&key("attention.head_count_kv"), kv_heads);
            for &(name, value) in numbers {
                let whole = name.contains("length") || name.contains("window") || name.contains("count");
                let name = key(name);
                writer = if whole { writer.u32(&name, value as u32) } else { writer.f32(&name, value) };
            }
            shape(writer)
        };
        let qwen = header("qwen2", 24, [32_768, 896, 4864, 14, 2], &[("rope.freq_base", 1e6)]); // Qwen2.5 0.5B
        assert_eq!((qwen.head_dim, qwen.rope.dims, qwen.rope.base), (64, 64, 1e6));
        assert_eq!((qwen.query_scale, qwen.window), (0.125, None));

        let head = [("attention.key_length", 128.0), ("attention.value_length", 128.0)];
        let qwen = header("qwen3", 28, [40_960, 1024, 3072, 16, 8], &head); // Qwen3 0.6B
        assert_eq!((qwen.q_width(), qwen.kv_width()), (2048, 1024));

        let caps = [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)];
        let window = ("attention.sliding_window", 4096.0);
        let gemma = |layers, sizes, head: f32, more: Numbers| {
            let head = [("attention.key_length", head), ("attention.value_length", head), window];
            header("gemma2", layers, sizes, &[&head[..], &caps, more].concat())
        };
        let small = gemma(26, [8192, 2304, 9216, 8, 4], 256.0, &[]); // Gemma 2 2B
        assert_eq!((small.embedding_scale, small.query_scale), (48.0, 1.0 / 16.0));
        let large = gemma(46, [8192, 4608, 36_864, 32, 16], 128.0, &[]); // Gemma 2 27B
        assert_eq!((large.query_scale, large.window_of(44)), (1.0 / 12.0, Some(4096)));
        assert_eq!((large.window_of(45), large.score_cap, large.logit_cap), (None, Some(50.0), Some(30.0)));

        let gemma = [
            ("attention.key_length", 256.0),
            ("attention.value_length", 256.0),
            ("attention.sliding_window", 1024.0),
            ("rope.freq_base", 1e6),
            ("rope.scaling.factor", 8.0),
        ];
        let gemma = header("gemma3", 34, [131_072, 2560, 10_240, 8, 4], &gemma); // Gemma 3 4B
        assert_eq!((gemma.rope.base, gemma.rope.local_base, gemma.rope.linear_scale), (1e6, 1e4, 8.0));
        assert_eq!(
            (gemma.query_scale, gemma.window_of(0), gemma.window_of(5)),
            (1.0 / 16.0, Some(1024), None)
        );

        let phi = [
            ("rope.scaling.original_context_length", 4096.0),
            ("rope.scaling.attn_factor", 1.190_238),
            ("rope.dimension_count", 96.0),
            ("rope.freq_base", 1e4),
            ("attention.sliding_window", 262_144.0),
        ];
        let phi = header("phi3", 32, [131_072, 3072, 8192, 24, 8], &phi); // Phi-4 mini
        assert_eq!((phi.head_dim, phi.rope.dims, phi.rope.attention_scale), (128, 96, 1.190_238));
        assert_eq!(phi.window, Some(Window { size: 262_144, every: 0 }));
        assert_eq!(
            header("phi3", 40, [16_384, 5120, 17_920, 40, 10], &[("attention.sliding_window", 0.0)]).window,
            None
        );
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
