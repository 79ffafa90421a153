//! The shapes that `tartlet synth` knows: those of four published models, a row each.
//!
//! Owns: their numbers, and which tensors a file of each has in which format. Never: a byte of a file.

use crate::model::Quant;

/// The shape of a published model.
pub struct Pattern {
    /// What `--shape` calls it.
    pub name: &'static str,
    /// Whose shape it is.
    pub of: &'static str,
    pub architecture: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: u32,
    pub rope_base: f32,
    pub norm_eps: f32,
    /// The output head is the embedding.
    pub tied_head: bool,
    /// Each query and key head has a norm of its own.
    pub head_norms: bool,
    /// By how much the slow pairs of the rope are stretched, as Llama 3.1 does it.
    pub stretch: Option<f64>,
    /// The pre-tokenizer.
    pub pre: &'static str,
    pub specials: &'static [&'static str],
    /// Which of the special tokens begins and ends a text.
    pub bos: usize,
    pub eos: usize,
}

const LLAMA_SPECIALS: &[&str] =
    &["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
const CHATML_SPECIALS: &[&str] = &["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const LLAMA_8B: Pattern = Pattern {
    name: "llama-8b",
    of: "Llama 3.1 8B",
    architecture: "llama",
    layers: 32,
    hidden: 4096,
    ffn: 14_336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128_256,
    context: 131_072,
    rope_base: 500_000.0,
    norm_eps: 1e-5,
    tied_head: false,
    head_norms: false,
    stretch: Some(8.0),
    pre: "llama-bpe",
    specials: LLAMA_SPECIALS,
    bos: 0,
    eos: 4,
};

/// Sources: the models' own `config.json`.
pub const PATTERNS: [Pattern; 4] = [
    Pattern {
        name: "smollm2-135m",
        of: "SmolLM2 135M",
        layers: 30,
        hidden: 576,
        ffn: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocab: 49_152,
        context: 8192,
        rope_base: 100_000.0,
        tied_head: true,
        stretch: None,
        pre: "smollm",
        specials: CHATML_SPECIALS,
        bos: 1,
        eos: 2,
        ..LLAMA_8B
    },
    Pattern {
        name: "llama-1b",
        of: "Llama 3.2 1B",
        layers: 16,
        hidden: 2048,
        ffn: 8192,
        head_dim: 64,
        tied_head: true,
        stretch: Some(32.0),
        ..LLAMA_8B
    },
    LLAMA_8B,
    Pattern {
        name: "qwen3-8b",
        of: "Qwen3 8B",
        architecture: "qwen3",
        layers: 36,
        ffn: 12_288,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1_000_000.0,
        norm_eps: 1e-6,
        head_norms: true,
        stretch: None,
        pre: "qwen2",
        specials: CHATML_SPECIALS,
        bos: 0,
        eos: 2,
        ..LLAMA_8B
    },
];

/// How far logits spread: a head of this deviation over sqrt(hidden) makes the best token about as likely as a real
/// model's in the middle of a text.
const SPREAD: f32 = 4.0;

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Contents {
    /// About 1 each.
    Gains,
    /// What divides the angles of the rope.
    Factors,
    /// Random values of this deviation.
    Values(f32),
}

/// A tensor of the file: `rows` of `row` values.
#[derive(Debug)]
pub struct Tensor {
    pub name: String,
    pub row: usize,
    pub rows: usize,
    pub quant: Quant,
    pub contents: Contents,
}

impl Tensor {
    pub fn bytes(&self) -> usize {
        self.quant.row_bytes(self.row) * self.rows
    }
}

impl Pattern {
    pub fn named(name: &str) -> Option<&'static Pattern> {
        const ALL: &[Pattern] = &PATTERNS;
        ALL.iter().find(|pattern| pattern.name == name)
    }

    /// All tensors of a file in `quant`; the one that makes the logits is the first, or the second of an untied head. That is more precise where `quant` has few bits, as
    /// in files that people use; and where rows are no whole blocks of a format, one of shorter blocks takes its place.
    pub fn tensors(&self, quant: Quant) -> Vec<Tensor> {
        let Pattern { hidden, ffn, vocab, head_dim, .. } = *self;
        let (q, kv) = (self.heads * head_dim, self.kv_heads * head_dim);
        let gains = |name: String, row| {
            let contents = Contents::Gains;
            Tensor { name, row, rows: 1, quant: Quant::F32, contents }
        };
        let matrix = |name: String, rows, row: usize, quant, deviation: f32| {
            let contents = Contents::Values(deviation / (row as f32).sqrt());
            Tensor { name, row, rows, quant: fitting(quant, row), contents }
        };
        let head = of_head(quant);
        let mut tensors = match self.tied_head {
            true => vec![matrix("token_embd.weight".to_owned(), vocab, hidden, head, SPREAD)],
            false => vec![
                matrix("token_embd.weight".to_owned(), vocab, hidden, quant, 1.0),
                matrix("output.weight".to_owned(), vocab, hidden, head, SPREAD),
            ],
        };
        tensors.push(gains("output_norm.weight".to_owned(), hidden));
        if self.stretch.is_some() {
            let contents = Contents::Factors;
            let name = "rope_freqs.weight".to_owned();
            tensors.push(Tensor { name, row: head_dim / 2, rows: 1, quant: Quant::F32, contents });
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let matrix = |part, rows, row| matrix(name(part), rows, row, quant, 1.0);
            tensors.push(gains(name("attn_norm"), hidden));
            tensors.push(matrix("attn_q", q, hidden));
            tensors.push(matrix("attn_k", kv, hidden));
            tensors.push(matrix("attn_v", kv, hidden));
            if self.head_norms {
                tensors.push(gains(name("attn_q_norm"), head_dim));
                tensors.push(gains(name("attn_k_norm"), head_dim));
            }
            tensors.push(matrix("attn_output", hidden, q));
            tensors.push(gains(name("ffn_norm"), hidden));
            tensors.push(matrix("ffn_gate", ffn, hidden));
            tensors.push(matrix("ffn_up", ffn, hidden));
            tensors.push(matrix("ffn_down", hidden, ffn));
        }
        tensors
    }

    /// The divisors of the rope's angles; Llama 3.1's own formula: pairs that turn at least 4 times in the original
    /// context keep their angle, those that turn at most once divide it, and between them it goes over smoothly.
    pub fn factors(&self, stretch: f64) -> Vec<f32> {
        const ORIGINAL: f64 = 8192.0;
        let (slow, fast) = (1.0, 4.0);
        let factor = |pair: usize| {
            let angle = f64::from(self.rope_base).powf(-2.0 * pair as f64 / self.head_dim as f64);
            let turns = ORIGINAL * angle / std::f64::consts::TAU;
            let share = ((turns - slow) / (fast - slow)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - share) / stretch + share)) as f32
        };
        (0..self.head_dim / 2).map(factor).collect()
    }
}

/// The format of the matrix that makes the logits.
fn of_head(quant: Quant) -> Quant {
    match quant {
        Quant::Q4_0 | Quant::Q4_1 | Quant::Q5_0 | Quant::Q5_1 | Quant::Q4_K | Quant::Q5_K => Quant::Q6_K,
        quant => quant,
    }
}

/// `quant`, or what takes its place for rows of this length.
fn fitting(quant: Quant, row: usize) -> Quant {
    match quant {
        _ if row.is_multiple_of(quant.block_len()) => quant,
        Quant::Q4_K => Quant::Q5_0,
        Quant::Q5_K => Quant::Q5_1,
        _ => Quant::Q8_0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The operations of a prompt follow from how many values the layers' matrices have.
    #[test]
    fn the_plan_of_gpu_check_counts_as_many_values() {
        let plan: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/gpu/plan.json")).expect("JSON");
        let mut counted = 0;
        let real = (&plan["real"]["bench"], "smollm2-135m");
        let models = plan["models"].as_array().expect("an array");
        let models = models.iter().map(|model| (model, model["shape"].as_str().expect("a name")));
        for (model, shape) in models.chain([real]) {
            let pattern = Pattern::named(shape).expect("a known shape");
            let tensors = pattern.tensors(Quant::BF16);
            let matrices = tensors.iter().filter(|it| it.name.starts_with("blk.") && it.rows > 1);
            let values: usize = matrices.map(|it| it.rows * it.row).sum();
            assert_eq!(model["values"], values, "{}", model["name"]);
            counted += 1;
        }
        assert!(counted > 0);
    }
}
