//! The keys `{architecture}.*` of a file.
//!
//! Owns: the range in which each makes sense, what its absence stands for, and the refusal of those that change the
//! numbers in a way that Tartlet does not compute. Never: a tensor.

use super::architecture::{Architecture, Factors, Windows};
use super::describe::one_line;
use super::gguf::{Gguf, GgufError, optional};
use super::shape::{Rope, ShapeError, Window, Yarn};
use crate::limits;

/// The keys of one architecture.
pub(super) struct Keys<'a> {
    pub gguf: &'a Gguf,
    pub architecture: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.gguf.f32(&self.full(key))
    }

    /// A number from 1 to `limit`.
    pub fn size(&self, key: &str, limit: u32) -> Result<usize, ShapeError> {
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

    pub fn range(&self, key: &str, value: impl ToString, want: String) -> ShapeError {
        ShapeError::Range { key: self.full(key), value: value.to_string(), want }
    }

    pub fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, ShapeError> {
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

    pub fn rope(&self, table: &Architecture, head_dim: usize) -> Result<Rope, ShapeError> {
        let dims = optional_size(self.size("rope.dimension_count", limits::MODEL_HEAD))?.unwrap_or(head_dim);
        if dims % 2 != 0 || dims > head_dim {
            let want = format!("even and at most the head size, {head_dim}");
            return Err(self.range("rope.dimension_count", dims, want));
        }
        let base = self.at_least("rope.freq_base", 1.0, table.rope_base)?;
        let local_base = match table.window {
            Windows::Alternating { base: Some(local), .. } => {
                self.at_least("rope.freq_base_swa", 1.0, local)?
            }
            _ => base,
        };
        let mut rope = Rope {
            dims,
            base,
            local_base,
            pairing: table.pairing,
            linear_scale: 1.0,
            yarn: None,
            attention_scale: self.at_least("rope.scaling.attn_factor", f32::MIN_POSITIVE, 1.0)?,
        };
        let scaling = self.full("rope.scaling.type");
        match optional(self.gguf.str(&scaling))?.unwrap_or("linear") {
            // `rope.scale_linear` is the older name; a factor of 0 stands for none.
            "linear" => {
                let older = self.at_least("rope.scale_linear", 0.0, 1.0)?;
                let factor = self.at_least("rope.scaling.factor", 0.0, older)?;
                rope.linear_scale = if factor == 0.0 { 1.0 } else { factor };
            }
            "none" => {}
            // Its numbers are in the tensors of factors and in `rope.scaling.attn_factor`.
            "longrope" if table.factors == Factors::LongAndShort => {}
            "yarn" => {
                let yarn = self.yarn(base)?;
                rope.attention_scale *= 0.1 * yarn.factor.ln() + 1.0;
                rope.yarn = Some(yarn);
            }
            kind => {
                let kind = one_line(kind);
                return Err(ShapeError::Unsupported(format!(
                    "the model stretches its positions (`{scaling}` = {kind}), which Tartlet does not compute"
                )));
            }
        }
        Ok(rope)
    }

    fn yarn(&self, base: f32) -> Result<Yarn, ShapeError> {
        // What these mean differs from reader to reader.
        self.refuse_unless("rope.scaling.yarn_log_multiplier", &[0.0])?;
        self.refuse_unless("rope.scaling.yarn_attn_factor", &[1.0])?;
        self.refuse_unless("rope.scaling.yarn_ext_factor", &[1.0])?;
        if base <= 1.0 {
            return Err(self.range(
                "rope.freq_base",
                base,
                "above 1 where YaRN stretches the positions".into(),
            ));
        }
        Ok(Yarn {
            factor: self.at_least("rope.scaling.factor", 1.0, 1.0)?,
            original: self.size("rope.scaling.original_context_length", limits::MODEL_CONTEXT)? as u32,
            fast: self.at_least("rope.scaling.yarn_beta_fast", f32::MIN_POSITIVE, 32.0)?,
            slow: self.at_least("rope.scaling.yarn_beta_slow", f32::MIN_POSITIVE, 1.0)?,
        })
    }

    /// A cap on scores or logits; 0 stands for none.
    pub fn cap(&self, key: &str, default: f32) -> Result<Option<f32>, ShapeError> {
        Ok(Some(self.at_least(key, 0.0, default)?).filter(|&cap| cap > 0.0))
    }

    pub fn window(&self, table: &Architecture) -> Result<Option<Window>, ShapeError> {
        // 0 stands for none.
        let (key, pattern) = ("attention.sliding_window", self.full("attention.sliding_window_pattern"));
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
            Windows::All if self.gguf.get(&pattern).is_some() => {
                return Err(ShapeError::Unsupported(format!(
                    "the model has `{pattern}`, which Tartlet does not compute for `{}`",
                    self.architecture
                )));
            }
            Windows::All => named.map(|size| Window { size, every: 0 }),
            Windows::Alternating { every, size, .. } => {
                let every = optional(self.gguf.u32(&pattern))?.map_or(every, |every| every as usize);
                named.or(size).map(|size| Window { size, every })
            }
        };
        Ok(window.filter(|window| window.size > 0))
    }

    /// Options that would change the result and that Tartlet does not compute.
    pub fn refuse_what_changes_the_numbers(&self) -> Result<(), ShapeError> {
        if optional(self.gguf.u32(&self.full("expert_count")))?.is_some_and(|experts| experts > 0) {
            let what = "the model is a mixture of experts, which Tartlet does not compute";
            return Err(ShapeError::Unsupported(what.into()));
        }
        if optional(self.gguf.bool(&self.full("attention.causal")))? == Some(false) {
            let what = "the model attends in both directions: it makes embeddings and does not generate text";
            return Err(ShapeError::Unsupported(what.into()));
        }
        // 0 and 1 both stand for "not used".
        for key in
            ["logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv"]
        {
            self.refuse_unless(key, &[0.0, 1.0])?;
        }
        self.refuse_unless("attention.temperature_scale", &[0.0])
    }

    /// A number that is refused unless it is absent or one of these.
    fn refuse_unless(&self, key: &str, neutral: &[f32]) -> Result<(), ShapeError> {
        match optional(self.f32(key))? {
            Some(value) if !neutral.contains(&value) => Err(ShapeError::Unsupported(format!(
                "the model's `{}` is {value}, which Tartlet does not compute",
                self.full(key)
            ))),
            _ => Ok(()),
        }
    }
}

/// An absent key is `None`; every other error stays one.
pub(super) fn optional_size(size: Result<usize, ShapeError>) -> Result<Option<usize>, ShapeError> {
    match size {
        Err(ShapeError::Gguf(GgufError::Missing { .. })) => Ok(None),
        size => size.map(Some),
    }
}
