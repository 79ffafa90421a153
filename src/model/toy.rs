//! Models for tests: a seeded two-layer llama with a byte vocabulary, and where the real one is.
//!
//! Owns: files that are valid by construction. Never: part of the binary.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Model;
use super::gguf::{Gguf, Quant};
pub use writer::{Items, Random, Writer};

// The tests from outside write files by the same hand.
#[path = "../../tests/support/gguf.rs"]
#[allow(clippy::should_implement_trait, clippy::new_without_default)]
mod writer;

/// The real model, `TARTLET_MODEL` or the one that `make model` fetches. Tests that need it fail without it.
pub fn real_model() -> std::path::PathBuf {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::path::PathBuf::from(std::env::var_os("TARTLET_MODEL").unwrap_or(fetched.into()));
    assert!(path.is_file(), "{} is not there: run `make model`", path.display());
    path
}

impl Writer {
    /// Leaves out the key or the tensor of this name.
    pub fn without(mut self, name: &str) -> Writer {
        self.metadata.retain(|(key, _)| key != name);
        self.tensors.retain(|(tensor, ..)| tensor != name);
        self
    }

    /// `dims[0]` is the row length; `bytes` are in the format's own layout.
    pub fn tensor(self, name: &str, dims: &[usize], format: Quant, bytes: Vec<u8>) -> Writer {
        assert_eq!(bytes.len(), format.row_bytes(dims.iter().product()), "{name}");
        self.tensor_of(name, dims, format.ggml(), bytes)
    }

    /// The vocabulary of every toy.
    pub fn vocabulary(self) -> Writer {
        let mut tokens: Vec<String> =
            super::bytelevel::letters().iter().map(|letter| letter.to_string()).collect();
        tokens.extend(TOY_SPECIALS.map(str::to_owned));
        tokens.extend((tokens.len()..TOY_VOCAB).map(|id| format!("[unused {id}]")));
        let types: Vec<i32> = (0..TOY_VOCAB)
            .map(|id| {
                if id < 256 {
                    1
                } else if id < 259 {
                    3
                } else {
                    5
                }
            })
            .collect();
        self.str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "smollm")
            .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
            .array("tokenizer.ggml.token_type", Items::I32(&types))
            .array("tokenizer.ggml.merges", Items::Strings(&[]))
            .u32("tokenizer.ggml.bos_token_id", 257)
            .u32("tokenizer.ggml.eos_token_id", 258)
            .bool("tokenizer.ggml.add_bos_token", false)
    }

    /// The model in several files, by name: `STEM-00001-of-0000N.gguf` and so on. The first has the metadata and the
    /// first tensors.
    pub fn files(&self, stem: &str, count: usize) -> BTreeMap<String, Vec<u8>> {
        let each = self.tensors.len().div_ceil(count);
        let file = |number: usize| {
            let mut file = if number == 0 { self.clone() } else { Writer::new() };
            file.tensors = self.tensors.iter().skip(number * each).take(each).cloned().collect();
            let file = file
                .u32("split.no", number as u32)
                .u32("split.count", count as u32)
                .u32("split.tensors.count", self.tensors.len() as u32);
            (format!("{stem}-{:05}-of-{count:05}.gguf", number + 1), file.bytes())
        };
        (0..count).map(file).collect()
    }
}

impl Random {
    /// Roughly normal, mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// The dimensions and the weight format of a toy.
#[derive(Clone, Copy, Debug)]
pub struct Toy {
    pub seed: u64,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    /// Format of the matrices; norms are F32.
    pub format: Quant,
    pub tied_head: bool,
}

impl Default for Toy {
    /// Two layers, hidden 64, 4 heads of 16 over 2 kv heads, F32.
    fn default() -> Toy {
        Toy {
            seed: 1,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            format: Quant::F32,
            tied_head: true,
        }
    }
}

impl Toy {
    /// A toy whose rows are whole blocks of `format`: hidden 128, or 256 for formats with blocks of 256.
    pub fn of(format: Quant) -> Toy {
        let wide = format.block_len() > 32;
        let (head_dim, ffn) = if wide { (64, 256) } else { (32, 96) };
        Toy { format, head_dim, ffn, ..Toy::default() }
    }
}

/// Special tokens of every toy: ids 256, 257, 258.
pub const TOY_SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Tokens of every toy: the 256 bytes in their order, then [`TOY_SPECIALS`], then 61 unused ones.
pub const TOY_VOCAB: usize = 320;

impl Toy {
    /// A model that is ready to be loaded by a backend.
    pub fn model(self) -> Arc<Model> {
        let gguf = Gguf::from_bytes(self.writer().bytes()).expect("a toy is valid");
        Arc::new(Model::read(gguf, "toy", None).expect("a toy is a llama"))
    }

    /// The file, still to be changed by a test.
    pub fn writer(self) -> Writer {
        let Toy { layers, heads, kv_heads, head_dim, ffn, .. } = self;
        let hidden = heads * head_dim;
        let mut w = Writer::new()
            .str("general.architecture", "llama")
            .str("general.name", "Toy")
            .u32("llama.block_count", layers as u32)
            .u32("llama.context_length", 512)
            .u32("llama.embedding_length", hidden as u32)
            .u32("llama.feed_forward_length", ffn as u32)
            .u32("llama.attention.head_count", heads as u32)
            .u32("llama.attention.head_count_kv", kv_heads as u32)
            .u32("llama.rope.dimension_count", head_dim as u32)
            .u32("llama.vocab_size", TOY_VOCAB as u32)
            .f32("llama.rope.freq_base", 10_000.0)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .vocabulary();

        let mut random = Random::new(self.seed);
        let mut matrix = |w: Writer, name: &str, rows: usize, row: usize| {
            let bytes = random_bytes(self.format, rows * row, 1.0 / (row as f32).sqrt(), &mut random);
            w.tensor(name, &[row, rows], self.format, bytes)
        };
        let norm = |w: Writer, name: &str| {
            let ones = (0..hidden).flat_map(|i| (1.0 + i as f32 / 1024.0).to_le_bytes()).collect();
            w.tensor(name, &[hidden], Quant::F32, ones)
        };
        w = matrix(w, "token_embd.weight", TOY_VOCAB, hidden);
        for layer in 0..layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            w = norm(w, &name("attn_norm"));
            w = matrix(w, &name("attn_q"), hidden, hidden);
            w = matrix(w, &name("attn_k"), kv_heads * head_dim, hidden);
            w = matrix(w, &name("attn_v"), kv_heads * head_dim, hidden);
            w = matrix(w, &name("attn_output"), hidden, hidden);
            w = norm(w, &name("ffn_norm"));
            w = matrix(w, &name("ffn_gate"), ffn, hidden);
            w = matrix(w, &name("ffn_up"), ffn, hidden);
            w = matrix(w, &name("ffn_down"), hidden, ffn);
        }
        w = norm(w, "output_norm.weight");
        if !self.tied_head {
            w = matrix(w, "output.weight", TOY_VOCAB, hidden);
        }
        w
    }
}

/// `values` random values of about the given deviation, in a format's layout.
pub fn random_bytes(format: Quant, values: usize, deviation: f32, random: &mut Random) -> Vec<u8> {
    // Halves of powers of two keep the exponent arithmetic of a writer out of a test.
    let half = |x: f32| ((x.log2().round() as i32 + 15).clamp(1, 30) as u16) << 10;
    let times = |half: u16, log: u16| half + (log << 10);
    let any_bytes = |out: &mut Vec<u8>, count: usize, random: &mut Random| {
        out.extend((0..count).map(|_| random.next() as u8));
    };
    let mut out = Vec::with_capacity(format.row_bytes(values));
    for _ in 0..values / format.block_len() {
        match format {
            Quant::F32 => out.extend((random.normal() * deviation).to_le_bytes()),
            Quant::BF16 => {
                let bits = (random.normal() * deviation).to_bits();
                out.extend(((bits >> 16) as u16).to_le_bytes());
            }
            Quant::F16 => {
                let sign = (random.next() & 0x8000) as u16;
                let fraction = (random.next() & 0x3ff) as u16;
                out.extend((sign | half(deviation) | fraction).to_le_bytes());
            }
            Quant::Q8_0 => {
                out.extend(half(deviation / 64.0).to_le_bytes());
                any_bytes(&mut out, 32, random);
            }
            Quant::Q4_0 => {
                out.extend(half(deviation / 4.0).to_le_bytes());
                any_bytes(&mut out, 16, random);
            }
            Quant::Q4_1 => {
                let scale = half(deviation / 4.0);
                out.extend(scale.to_le_bytes());
                out.extend((0x8000 | times(scale, 3)).to_le_bytes()); // minimum: -8 scales
                any_bytes(&mut out, 16, random);
            }
            Quant::Q5_0 => {
                out.extend(half(deviation / 8.0).to_le_bytes());
                any_bytes(&mut out, 4 + 16, random);
            }
            Quant::Q5_1 => {
                let scale = half(deviation / 8.0);
                out.extend(scale.to_le_bytes());
                out.extend((0x8000 | times(scale, 4)).to_le_bytes()); // minimum: -16 scales
                any_bytes(&mut out, 4 + 16, random);
            }
            // Group scales and minima are any bits: 32 of 64 on average.
            Quant::Q4_K | Quant::Q5_K => {
                let (fifth, log) = if format == Quant::Q4_K { (0, 3) } else { (32, 4) };
                let scale = half(deviation / if format == Quant::Q4_K { 256.0 } else { 512.0 });
                out.extend(scale.to_le_bytes());
                out.extend(times(scale, log).to_le_bytes());
                any_bytes(&mut out, 12 + fifth + 128, random);
            }
            Quant::Q6_K => {
                any_bytes(&mut out, 128 + 64 + 16, random);
                out.extend(half(deviation / 1024.0).to_le_bytes());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_makes_a_model() {
        for format in Quant::ALL {
            for tied_head in [true, false] {
                let toy = Toy { tied_head, ..Toy::of(format) };
                let model = toy.model();
                assert_eq!(model.shape.hidden, 4 * toy.head_dim);
                assert_eq!(model.chat.source, "ChatML");
                let mut row = vec![0.0; model.shape.hidden];
                format.dequantize(model.gguf.tensor("token_embd.weight").unwrap().row(7), &mut row);
                let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
                assert!((1e-4..1.0).contains(&mean_square), "{format}: {mean_square}");
            }
        }
    }
}
