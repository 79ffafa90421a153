//! The table of architectures: what sets one decoder family apart from the next, a row each.
//!
//! Owns: the choices that a file does not state and that its architecture's name stands for. Never: a number that
//! the file states (`shape.rs`), nor a formula (`backend/`). All rows share one description of a layer: RMS norm,
//! rotary grouped-head attention, gated feed-forward. An architecture that fits it needs a row here and nothing else.

use super::describe::one_line;
use super::shape::{Activation, Pairing, ShapeError};

/// What the name of an architecture says about its files and its arithmetic.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    pub pairing: Pairing,
    pub activation: Activation,
    /// The embedding row is multiplied by sqrt(hidden).
    pub scaled_embedding: bool,
    /// Each query and key head goes through an RMS norm of its own before rope.
    pub head_norms: bool,
    /// The outputs of attention and feed-forward go through an RMS norm before they join the stream.
    pub post_norms: bool,
    /// `ffn_up` may hold the gate's rows too, before its own.
    pub fused_gate: bool,
    pub factors: Factors,
    pub window: Windows,
    /// The base of the rope where the file does not say.
    pub rope_base: f32,
    /// What caps scores and logits where the file does not say; 0 for none.
    pub score_cap: f32,
    pub logit_cap: f32,
    /// The size with so many layers scales its queries by hidden / heads in place of the head's size. No key of
    /// GGUF tells; the other readers of these files go by the number of layers as well.
    pub wide_query_layers: Option<usize>,
}

/// Tensors that divide the angles of the rope.
#[derive(Debug, PartialEq)]
pub(super) enum Factors {
    None,
    /// `rope_freqs.weight`, if the file has it.
    One,
    /// `rope_factors_long.weight` and `rope_factors_short.weight`, if the file has them.
    LongAndShort,
}

/// Which layers see a limited number of slots.
#[derive(Debug)]
pub(super) enum Windows {
    /// None do; a file that names a window is refused.
    None,
    /// All do, if the file names a window.
    All,
    /// All but every `every`th (unless the file says otherwise) do, if the file or `size` names a window; those turn
    /// by a base of their own if `base` is there.
    Alternating { every: usize, size: Option<usize>, base: Option<f32> },
}

/// The plain decoder that the other rows differ from.
const LLAMA: Architecture = Architecture {
    name: "llama",
    pairing: Pairing::Adjacent,
    activation: Activation::Silu,
    scaled_embedding: false,
    head_norms: false,
    post_norms: false,
    fused_gate: false,
    factors: Factors::One,
    window: Windows::All,
    rope_base: 10_000.0,
    score_cap: 0.0,
    logit_cap: 0.0,
    wide_query_layers: None,
};

const QWEN2: Architecture = Architecture {
    name: "qwen2",
    pairing: Pairing::Halves,
    factors: Factors::None,
    window: Windows::None,
    ..LLAMA
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    pairing: Pairing::Halves,
    activation: Activation::GeluTanh,
    scaled_embedding: true,
    post_norms: true,
    factors: Factors::None,
    window: Windows::Alternating { every: 2, size: Some(4096), base: None },
    score_cap: 50.0,
    logit_cap: 30.0,
    wide_query_layers: Some(46),
    ..LLAMA
};

/// Sources: Touvron et al., "LLaMA" (2023), and Jiang et al., "Mistral 7B" (2023), for `llama`; Yang et al., "Qwen2"
/// (2024) and "Qwen3" (2025); Gemma team, "Gemma 2" (2024) and "Gemma 3" (2025); Abdin et al., "Phi-3" (2024).
pub(super) const ARCHITECTURES: [Architecture; 6] = [
    LLAMA,
    QWEN2,
    Architecture { name: "qwen3", head_norms: true, ..QWEN2 },
    GEMMA2,
    Architecture {
        name: "gemma3",
        head_norms: true,
        window: Windows::Alternating { every: 6, size: None, base: Some(10_000.0) },
        rope_base: 1_000_000.0,
        score_cap: 0.0,
        logit_cap: 0.0,
        wide_query_layers: Some(62),
        ..GEMMA2
    },
    Architecture {
        name: "phi3",
        pairing: Pairing::Halves,
        fused_gate: true,
        factors: Factors::LongAndShort,
        ..LLAMA
    },
];

impl Architecture {
    /// The row of this name.
    pub fn named(name: &str) -> Result<&'static Architecture, ShapeError> {
        const TABLE: &[Architecture] = &ARCHITECTURES;
        TABLE.iter().find(|row| row.name == name).ok_or_else(|| ShapeError::Architecture(one_line(name)))
    }
}
