//! Small models for tests that open files from outside: valid, seeded, of many formats.
//!
//! Owns: what stands in the files. Never: how a file is written (`gguf.rs`).

use crate::gguf::{Items, Random, Writer};

/// A tensor format: its number, values and bytes of a block, halves at the block's start.
#[derive(Clone, Copy)]
struct Format {
    number: u32,
    values: usize,
    bytes: usize,
    halves: usize,
}

const fn format(number: u32, values: usize, bytes: usize, halves: usize) -> Format {
    Format { number, values, bytes, halves }
}

const F32: Format = format(0, 1, 4, 0);
const F16: Format = format(1, 1, 2, 0);
const Q4_0: Format = format(2, 32, 18, 1);
const Q4_1: Format = format(3, 32, 20, 2);
const Q5_0: Format = format(6, 32, 22, 1);
const Q5_1: Format = format(7, 32, 24, 2);
const Q8_0: Format = format(8, 32, 34, 1);
const BF16: Format = format(30, 1, 2, 0);

const HIDDEN: usize = 32;

/// A matrix of random bits under halves of about 2^-6, in a format of 32 values a block or of single values.
fn matrix(w: Writer, name: &str, rows: usize, row: usize, format: Format, random: &mut Random) -> Writer {
    let mut bytes = Vec::new();
    for _ in 0..rows * row / format.values {
        let start = bytes.len();
        bytes.extend((0..format.bytes).map(|_| random.next() as u8));
        for field in 0..format.halves {
            bytes[start + 2 * field + 1] = 0x24;
        }
        if format.halves == 0 {
            // The upper byte of a float: 2^-5 or so, either sign.
            let upper = if format.number == F16.number { 0x28 } else { 0x3d };
            let last = bytes.len() - 1;
            bytes[last] = bytes[last] & 0x80 | upper;
        }
    }
    w.tensor_of(name, &[row, rows], format.number, bytes)
}

fn gains(w: Writer, name: &str, len: usize) -> Writer {
    w.tensor_of(name, &[len], F32.number, 1.0f32.to_le_bytes().repeat(len))
}

/// What all of them have in common: so many layers, values of the feed-forward's inner layer, tokens.
fn decoder(architecture: &str, layers: usize, ffn: usize, vocab: usize) -> Writer {
    let key = |part: &str| format!("{architecture}.{part}");
    Writer::new()
        .str("general.architecture", architecture)
        .str("general.name", "Corpus")
        .u32(&key("block_count"), layers as u32)
        .u32(&key("context_length"), 64)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), ffn as u32)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("attention.head_count_kv"), 1)
        .u32(&key("attention.key_length"), 16)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 10_000.0)
        .u32(&key("rope.dimension_count"), 16)
        .u32(&key("vocab_size"), vocab as u32)
}

/// The matrices of a layer, in these formats.
fn block(mut w: Writer, layer: usize, ffn: usize, formats: [Format; 7], random: &mut Random) -> Writer {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let matrices = [
        ("attn_q", 32, HIDDEN),
        ("attn_k", 16, HIDDEN),
        ("attn_v", 16, HIDDEN),
        ("attn_output", HIDDEN, 32),
        ("ffn_gate", ffn, HIDDEN),
        ("ffn_up", ffn, HIDDEN),
        ("ffn_down", HIDDEN, ffn),
    ];
    for ((part, rows, row), format) in matrices.into_iter().zip(formats) {
        w = matrix(w, &name(part), rows, row, format, random);
    }
    gains(gains(w, &name("attn_norm"), HIDDEN), &name("ffn_norm"), HIDDEN)
}

/// A llama of so many layers with a byte-level vocabulary and a template of no known family; its norm at the end, and
/// an embedding of this format.
fn llama(layers: usize, ffn: usize, embedding: Format, random: &mut Random) -> Writer {
    let mut others = 256u32..;
    let letters = (0..=255u8).map(|byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => others.next().and_then(char::from_u32).expect("a letter"),
    });
    let mut tokens: Vec<String> = letters.map(String::from).collect();
    let merges = ["t h", "th e", "i n", "Ġ the"].map(str::to_owned);
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let plain = tokens.len();
    tokens.extend(["<s>", "</s>", "[unused]"].map(str::to_owned));
    let mut kinds = vec![1; plain];
    kinds.extend([3, 3, 5]);

    let w = decoder("llama", layers, ffn, tokens.len())
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "llama-bpe")
        .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
        .array("tokenizer.ggml.token_type", Items::I32(&kinds))
        .array("tokenizer.ggml.merges", Items::Strings(&merges))
        .u32("tokenizer.ggml.bos_token_id", plain as u32)
        .u32("tokenizer.ggml.eos_token_id", plain as u32 + 1)
        .str(
            "tokenizer.chat_template",
            "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.role + ': ' + \
             m.content|trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        );
    gains(
        matrix(w, "token_embd.weight", tokens.len(), HIDDEN, embedding, random),
        "output_norm.weight",
        HIDDEN,
    )
}

/// A llama of one layer; a format for each matrix.
pub fn bytelevel() -> Vec<u8> {
    let mut random = Random::new(1);
    let w = gains(llama(1, 32, F16, &mut random), "rope_freqs.weight", 8);
    block(w, 0, 32, [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16, F32], &mut random).bytes()
}

/// A llama of forty layers: most of the file are their matrices, and little the words about them.
pub fn deep() -> Vec<u8> {
    const FFN: usize = 1024;
    let mut random = Random::new(3);
    let w = llama(40, FFN, Q4_0, &mut random);
    (0..40).fold(w, |w, layer| block(w, layer, FFN, [Q4_0; 7], &mut random)).bytes()
}

/// A Gemma 3 with a SentencePiece vocabulary.
pub fn sentencepiece() -> Vec<u8> {
    let mut tokens: Vec<String> =
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"].map(str::to_owned).into();
    let mut kinds = vec![3, 3, 3, 2, 4, 4];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    let pieces = ["▁", "a", "e", "h", "n", "t", "▁t", "he", "▁the", "an", "▁an", "▁▁"];
    tokens.extend(pieces.map(str::to_owned));
    kinds.extend([1; 12]);
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();

    let mut random = Random::new(2);
    let w = decoder("gemma3", 1, 32, tokens.len())
        .u32("gemma3.attention.value_length", 16)
        .u32("gemma3.attention.sliding_window", 8)
        .str("tokenizer.ggml.model", "llama")
        .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
        .array("tokenizer.ggml.scores", Items::F32(&scores))
        .array("tokenizer.ggml.token_type", Items::I32(&kinds))
        .u32("tokenizer.ggml.bos_token_id", 2)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .u32("tokenizer.ggml.unknown_token_id", 3)
        .bool("tokenizer.ggml.add_space_prefix", false);
    let w = matrix(w, "token_embd.weight", tokens.len(), HIDDEN, Q8_0, &mut random);
    let w = gains(w, "output_norm.weight", HIDDEN);
    let w = block(w, 0, 32, [Q8_0, BF16, F16, Q4_0, Q4_1, Q5_1, Q5_0], &mut random);
    let w = gains(gains(w, "blk.0.attn_q_norm.weight", 16), "blk.0.attn_k_norm.weight", 16);
    gains(gains(w, "blk.0.post_attention_norm.weight", HIDDEN), "blk.0.post_ffw_norm.weight", HIDDEN).bytes()
}
