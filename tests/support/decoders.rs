//! Two-layer decoders of each family, of sizes that the GPU's kernels know and the emulator bears: heads of 64.
//!
//! Owns: what stands in the files: seeded weights of the size that a trained model's have. Never: how a file is written
//! (`gguf.rs`).

use crate::gguf::{Items, Random, Writer};

/// A format of matrices: its number, values and bytes of a block, and what stands in the upper byte of the halves that it
/// begins with, so that values are about a tenth (those of single values: about a twentieth).
#[derive(Clone, Copy)]
pub struct Format {
    number: u32,
    values: usize,
    bytes: usize,
    halves: &'static [u8],
}

const fn format(number: u32, values: usize, bytes: usize, halves: &'static [u8]) -> Format {
    Format { number, values, bytes, halves }
}

pub const Q4_0: Format = format(2, 32, 18, &[0x24]);
pub const Q4_1: Format = format(3, 32, 20, &[0x24, 0xb0]);
pub const Q8_0: Format = format(8, 32, 34, &[0x14]);
pub const BF16: Format = format(30, 1, 2, &[]);
const F32: u32 = 0;

const HIDDEN: usize = 128;
const FFN: usize = 192;
const HEADS: usize = 2;
const KV_HEADS: usize = 1;
/// Tokens: the bytes, three special ones, and some that stand for nothing.
pub const VOCAB: usize = 320;

/// One model.
#[derive(Clone, Copy)]
pub struct Decoder {
    pub architecture: &'static str,
    /// Of the embedding, and of a layer's matrices in turn.
    pub formats: &'static [Format],
    pub head_dim: usize,
    pub seed: u64,
}

/// Plain, with every format that has kernels since the first ones.
pub const LLAMA: Decoder =
    Decoder { architecture: "llama", formats: &[Q8_0, Q4_0, Q4_1], head_dim: 64, seed: 1 };

/// One of each family.
pub const FAMILIES: [Decoder; 6] = [
    LLAMA,
    Decoder { architecture: "qwen2", formats: &[Q4_0], head_dim: 64, seed: 2 },
    Decoder { architecture: "qwen3", formats: &[Q8_0, Q4_1], head_dim: 128, seed: 3 },
    Decoder { architecture: "gemma2", formats: &[Q8_0], head_dim: 64, seed: 4 },
    Decoder { architecture: "gemma3", formats: &[Q4_1, Q8_0], head_dim: 64, seed: 5 },
    Decoder { architecture: "phi3", formats: &[BF16], head_dim: 64, seed: 6 },
];

struct Making {
    writer: Writer,
    random: Random,
    made: usize,
    of: Decoder,
}

impl Decoder {
    /// The file.
    pub fn bytes(self) -> Vec<u8> {
        let gemma = self.architecture.starts_with("gemma");
        let mut it = Making { writer: self.keys(), random: Random::new(self.seed), made: 0, of: self };
        let (q, kv) = (HEADS * self.head_dim, KV_HEADS * self.head_dim);
        it.embedding();
        if !self.tied() {
            it.matrix("output.weight", VOCAB, HIDDEN);
        }
        it.gains("output_norm.weight", HIDDEN);
        for layer in 0..2 {
            let name = |part: &str| format!("blk.{layer}.{part}");
            it.gains(&name("attn_norm.weight"), HIDDEN);
            if self.architecture == "phi3" {
                it.matrix(&name("attn_qkv.weight"), q + 2 * kv, HIDDEN);
                it.matrix(&name("ffn_up.weight"), 2 * FFN, HIDDEN);
            } else {
                for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                    it.matrix(&name(&format!("{part}.weight")), rows, HIDDEN);
                    if self.architecture == "qwen2" {
                        it.vector(&name(&format!("{part}.bias")), rows, 0.0);
                    }
                }
                it.matrix(&name("ffn_gate.weight"), FFN, HIDDEN);
                it.matrix(&name("ffn_up.weight"), FFN, HIDDEN);
            }
            if matches!(self.architecture, "qwen3" | "gemma3") {
                it.gains(&name("attn_q_norm.weight"), self.head_dim);
                it.gains(&name("attn_k_norm.weight"), self.head_dim);
            }
            it.matrix(&name("attn_output.weight"), HIDDEN, q);
            it.gains(&name("ffn_norm.weight"), HIDDEN);
            it.matrix(&name("ffn_down.weight"), HIDDEN, FFN);
            if gemma {
                it.gains(&name("post_attention_norm.weight"), HIDDEN);
                it.gains(&name("post_ffw_norm.weight"), HIDDEN);
            }
        }
        if self.architecture == "llama" {
            it.vector("rope_freqs.weight", self.head_dim / 2, 1.0);
        }
        it.writer.bytes()
    }

    fn tied(self) -> bool {
        self.architecture == "qwen2"
    }

    fn keys(self) -> Writer {
        let key = |part: &str| format!("{}.{part}", self.architecture);
        let w = Writer::new()
            .str("general.architecture", self.architecture)
            .str("general.name", "Decoder")
            .u32(&key("block_count"), 2)
            .u32(&key("context_length"), 4096)
            .u32(&key("embedding_length"), HIDDEN as u32)
            .u32(&key("feed_forward_length"), FFN as u32)
            .u32(&key("attention.head_count"), HEADS as u32)
            .u32(&key("attention.head_count_kv"), KV_HEADS as u32)
            .u32(&key("attention.key_length"), self.head_dim as u32)
            .u32(&key("attention.value_length"), self.head_dim as u32)
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
            .f32(&key("rope.freq_base"), 10_000.0)
            .u32(&key("rope.dimension_count"), self.head_dim as u32);
        // Shorter than the prompts of the tests.
        let w = if self.architecture.starts_with("gemma") {
            w.u32(&key("attention.sliding_window"), 12)
        } else {
            w
        };
        vocabulary(w)
    }
}

/// The bytes as tokens, and the special tokens of ChatML.
fn vocabulary(w: Writer) -> Writer {
    let mut others = 256u32..;
    let letters = (0..=255u8).map(|byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => others.next().and_then(char::from_u32).expect("a letter"),
    });
    let mut tokens: Vec<String> = letters.map(String::from).collect();
    let mut kinds = vec![1; tokens.len()];
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned));
    kinds.extend([3; 3]);
    tokens.extend((tokens.len()..VOCAB).map(|id| format!("[unused {id}]")));
    kinds.resize(VOCAB, 5);
    w.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
        .array("tokenizer.ggml.token_type", Items::I32(&kinds))
        .array("tokenizer.ggml.merges", Items::Strings(&[]))
        .u32("tokenizer.ggml.bos_token_id", 257)
        .u32("tokenizer.ggml.eos_token_id", 258)
        .bool("tokenizer.ggml.add_bos_token", false)
}

impl Making {
    fn put(&mut self, name: &str, dims: &[usize], format: u32, bytes: Vec<u8>) {
        let writer = std::mem::replace(&mut self.writer, Writer::new());
        self.writer = writer.tensor_of(name, dims, format, bytes);
    }

    /// Rows eight times as large as what a layer adds: few of the next tokens are as good as equal, so that the order of a
    /// sum decides. Where the embedding is the head too, that would make every token follow itself; Gemma scales its rows.
    fn embedding(&mut self) {
        let scaled = self.of.architecture.starts_with("gemma");
        self.sized("token_embd.weight", VOCAB, HIDDEN, if self.of.tied() || scaled { 0 } else { 3 });
    }

    fn matrix(&mut self, name: &str, rows: usize, row: usize) {
        self.sized(name, rows, row, 0);
    }

    /// Any quants under scales of one size; in a format of single values, values of one size, either sign. All times 2^power.
    fn sized(&mut self, name: &str, rows: usize, row: usize, power: u8) {
        let format = self.of.formats[self.made % self.of.formats.len()];
        self.made += 1;
        let mut bytes = Vec::new();
        for _ in 0..rows * row / format.values {
            let start = bytes.len();
            bytes.extend((0..format.bytes).map(|_| self.random.next() as u8));
            for (field, upper) in format.halves.iter().enumerate() {
                bytes[start + 2 * field + 1] = *upper + 4 * power;
            }
            if format.halves.is_empty() {
                let last = bytes.len() - 1;
                bytes[last] = bytes[last] & 0x80 | (0x3d + power / 2);
            }
        }
        self.put(name, &[row, rows], format.number, bytes);
    }

    fn gains(&mut self, name: &str, len: usize) {
        self.vector(name, len, 1.0);
    }

    /// Numbers around `middle`.
    fn vector(&mut self, name: &str, len: usize, middle: f32) {
        let numbers = (0..len).map(|_| middle + self.random.below(1000) as f32 / 2000.0 - 0.25);
        let bytes = numbers.flat_map(f32::to_le_bytes).collect();
        self.put(name, &[len], F32, bytes);
    }
}
