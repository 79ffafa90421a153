//! Two-layer decoders of each family, of sizes that the GPU's kernels know and the emulator bears; heads are as wide as the
//! families' own.
//!
//! Owns: what stands in the files: seeded weights of the size that a trained model's have. Never: how a file is written
//! (`gguf.rs`).

use crate::gguf::{Items, Random, Writer};

/// A format of matrices: its number, values and bytes of a block, where in it halves are, and what stands in their upper byte,
/// so that values are about a tenth. Of single values it is the upper byte of each, but for the sign.
#[derive(Clone, Copy)]
pub struct Format {
    number: u32,
    values: usize,
    bytes: usize,
    halves: &'static [(usize, u8)],
}

const fn format(number: u32, values: usize, bytes: usize, halves: &'static [(usize, u8)]) -> Format {
    Format { number, values, bytes, halves }
}

pub const F16: Format = format(1, 1, 2, &[(0, 0x2c)]);
pub const Q4_0: Format = format(2, 32, 18, &[(0, 0x24)]);
pub const Q4_1: Format = format(3, 32, 20, &[(0, 0x24), (2, 0xb0)]);
pub const Q5_0: Format = format(6, 32, 22, &[(0, 0x20)]);
pub const Q5_1: Format = format(7, 32, 24, &[(0, 0x20), (2, 0xb0)]);
pub const Q8_0: Format = format(8, 32, 34, &[(0, 0x14)]);
pub const Q4_K: Format = format(12, 256, 144, &[(0, 0x0c), (2, 0x18)]);
pub const Q5_K: Format = format(13, 256, 176, &[(0, 0x08), (2, 0x18)]);
pub const Q6_K: Format = format(14, 256, 210, &[(208, 0x04)]);
pub const BF16: Format = format(30, 1, 2, &[(0, 0x3d)]);
const F32: u32 = 0;

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
    /// Width of the stream; of the feed-forward's inner layer.
    pub hidden: usize,
    pub ffn: usize,
    pub seed: u64,
    /// The head has the embedding's rows, in another order: after each token another leads by far, as a trained model's best
    /// mostly does, by more than any rounding. Else it has rows of its own, and tokens may be as good as equal.
    pub leads: bool,
}

/// The plain one.
pub const LLAMA: Decoder = Decoder {
    architecture: "llama",
    formats: &[Q8_0, Q4_0, Q4_1],
    head_dim: 64,
    hidden: 128,
    ffn: 192,
    seed: 1,
    leads: false,
};

/// At least one of each family, and together every format.
pub const FAMILIES: [Decoder; 7] = [
    LLAMA,
    Decoder { architecture: "qwen2", formats: &[Q4_0], seed: 2, ..LLAMA },
    Decoder { architecture: "qwen3", formats: &[Q8_0, Q5_0], head_dim: 128, seed: 3, ..LLAMA },
    Decoder { architecture: "gemma2", formats: &[Q5_1, Q8_0], head_dim: 256, seed: 4, ..LLAMA },
    Decoder { architecture: "gemma3", formats: &[F16, BF16, Q4_1], head_dim: 256, seed: 5, ..LLAMA },
    Decoder { architecture: "phi3", formats: &[BF16], head_dim: 96, seed: 6, ..LLAMA },
    Decoder {
        architecture: "llama",
        formats: &[Q6_K, Q4_K, Q5_K],
        head_dim: 128,
        hidden: 256,
        ffn: 256,
        seed: 7,
        leads: false,
    },
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
        let Decoder { hidden, ffn, .. } = self;
        let gemma = self.architecture.starts_with("gemma");
        let mut it = Making { writer: self.keys(), random: Random::new(self.seed), made: 0, of: self };
        let (q, kv) = (HEADS * self.head_dim, KV_HEADS * self.head_dim);
        it.embedding();
        if self.leads {
            it.embedding_in_another_order();
        } else if !self.tied() {
            it.matrix("output.weight", VOCAB, hidden);
        }
        it.gains("output_norm.weight", hidden);
        for layer in 0..2 {
            let name = |part: &str| format!("blk.{layer}.{part}");
            it.gains(&name("attn_norm.weight"), hidden);
            if self.architecture == "phi3" {
                it.matrix(&name("attn_qkv.weight"), q + 2 * kv, hidden);
                it.matrix(&name("ffn_up.weight"), 2 * ffn, hidden);
            } else {
                for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                    it.matrix(&name(&format!("{part}.weight")), rows, hidden);
                    if self.architecture == "qwen2" {
                        it.vector(&name(&format!("{part}.bias")), rows, 0.0);
                    }
                }
                it.matrix(&name("ffn_gate.weight"), ffn, hidden);
                it.matrix(&name("ffn_up.weight"), ffn, hidden);
            }
            if matches!(self.architecture, "qwen3" | "gemma3") {
                it.gains(&name("attn_q_norm.weight"), self.head_dim);
                it.gains(&name("attn_k_norm.weight"), self.head_dim);
            }
            it.matrix(&name("attn_output.weight"), hidden, q);
            it.gains(&name("ffn_norm.weight"), hidden);
            it.matrix(&name("ffn_down.weight"), hidden, ffn);
            if gemma {
                it.gains(&name("post_attention_norm.weight"), hidden);
                it.gains(&name("post_ffw_norm.weight"), hidden);
            }
        }
        if self.architecture == "llama" {
            it.vector("rope_freqs.weight", self.head_dim / 2, 1.0);
        }
        it.writer.bytes()
    }

    fn tied(self) -> bool {
        self.architecture == "qwen2" && !self.leads
    }

    fn keys(self) -> Writer {
        let key = |part: &str| format!("{}.{part}", self.architecture);
        let w = Writer::new()
            .str("general.architecture", self.architecture)
            .str("general.name", "Decoder")
            .u32(&key("block_count"), 2)
            .u32(&key("context_length"), 4096)
            .u32(&key("embedding_length"), self.hidden as u32)
            .u32(&key("feed_forward_length"), self.ffn as u32)
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
        let power = if self.of.tied() || scaled { 0 } else { 3 };
        self.sized("token_embd.weight", VOCAB, self.of.hidden, power + u8::from(self.of.leads));
    }

    /// After each letter and each line's end comes another one.
    fn embedding_in_another_order(&mut self) {
        self.made += 1;
        let (_, dims, format, bytes) = self.writer.tensors.last().expect("the embedding is there").clone();
        let letters: Vec<usize> = (b' '..=b'~').chain([b'\n']).map(usize::from).collect();
        let before = |token: usize| match letters.iter().position(|letter| *letter == token) {
            Some(at) => letters[(at + 37) % letters.len()],
            None => token,
        };
        let rows: Vec<&[u8]> = bytes.chunks(bytes.len() / VOCAB).collect();
        let rows: Vec<u8> = (0..VOCAB).flat_map(|token| rows[before(token)]).copied().collect();
        self.put("output.weight", &dims, format, rows);
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
            for (place, upper) in format.halves {
                let there = &mut bytes[start + place + 1];
                *there = match format.number {
                    30 => *there & 0x80 | (upper + power / 2), // eight bits of exponent
                    1 => *there & 0x83 | (upper + 4 * power),
                    _ => upper + 4 * power,
                };
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
