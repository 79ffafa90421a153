//! What stands in a synthesised file before its weights: metadata, a vocabulary, where each tensor lies.
//!
//! Owns: these bytes, as GGUF's documentation has them. Never: a weight.
//!
//! The vocabulary has the real one's size and is quick to make: all bytes, then words of two, three, four small letters
//! by the alphabet, each made by a merge of the word before its last letter; then the special tokens. So text becomes
//! tokens and tokens become text, and a program that looks at all tokens has as many to look at.

use super::shapes::{Pattern, Tensor};
use crate::model::{Quant, byte_letters};

/// Tensors begin at multiples of this.
const ALIGNMENT: usize = 32;

/// Numbers of the metadata's types.
mod kind {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const TEXT: i32 = 1;
const CONTROL: i32 = 3;

/// Bytes to fill with zeros up to where a tensor may begin, behind `len` bytes.
pub fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT) - len
}

/// The whole header, the padding before the first tensor included.
pub fn header(pattern: &Pattern, quant: Quant, seed: u64, tensors: &[Tensor]) -> Vec<u8> {
    let metadata = metadata(pattern, quant, seed);
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(metadata.count.to_le_bytes());
    out.extend(metadata.bytes);
    let mut at = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        let dims = &[tensor.row as u64, tensor.rows as u64][..if tensor.rows > 1 { 2 } else { 1 }];
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(tensor.quant.ggml().to_le_bytes());
        out.extend((at as u64).to_le_bytes());
        at += tensor.bytes();
        at += padding(at);
    }
    out.resize(out.len() + padding(out.len()), 0);
    out
}

/// Metadata entries.
#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn entry(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.count += 1;
        text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        &mut self.bytes
    }

    fn str(&mut self, key: &str, value: &str) {
        text(self.entry(key, kind::STRING), value);
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.entry(key, kind::U32).extend((value as u32).to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, kind::F32).extend(value.to_le_bytes());
    }

    fn array<T>(&mut self, key: &str, kind: u32, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
        let bytes = self.entry(key, kind::ARRAY);
        bytes.extend(kind.to_le_bytes());
        bytes.extend((items.len() as u64).to_le_bytes());
        items.iter().for_each(|item| write(bytes, item));
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn metadata(pattern: &Pattern, quant: Quant, seed: u64) -> Metadata {
    let mut all = Metadata::default();
    all.str("general.architecture", pattern.architecture);
    all.str("general.name", &format!("{} of random weights", pattern.of));
    all.str("general.description", &format!("made by `tartlet synth`, seed {seed}; it knows nothing"));
    all.u32("general.file_type", file_type(quant));
    all.u32("general.quantization_version", 2);
    let key = |part: &str| format!("{}.{part}", pattern.architecture);
    for (part, value) in [
        ("block_count", pattern.layers),
        ("context_length", pattern.context as usize),
        ("embedding_length", pattern.hidden),
        ("feed_forward_length", pattern.ffn),
        ("attention.head_count", pattern.heads),
        ("attention.head_count_kv", pattern.kv_heads),
        ("attention.key_length", pattern.head_dim),
        ("attention.value_length", pattern.head_dim),
        ("rope.dimension_count", pattern.head_dim),
        ("vocab_size", pattern.vocab),
    ] {
        all.u32(&key(part), value);
    }
    all.f32(&key("rope.freq_base"), pattern.rope_base);
    all.f32(&key("attention.layer_norm_rms_epsilon"), pattern.norm_eps);

    let (tokens, merges) = vocabulary(pattern);
    let first_special = tokens.len() - pattern.specials.len();
    let kinds: Vec<i32> =
        (0..tokens.len()).map(|id| if id < first_special { TEXT } else { CONTROL }).collect();
    all.str("tokenizer.ggml.model", "gpt2");
    all.str("tokenizer.ggml.pre", pattern.pre);
    all.array("tokenizer.ggml.tokens", kind::STRING, &tokens, |out, token| text(out, token));
    all.array("tokenizer.ggml.token_type", kind::I32, &kinds, |out, kind| out.extend(kind.to_le_bytes()));
    all.array("tokenizer.ggml.merges", kind::STRING, &merges, |out, merge| text(out, merge));
    all.u32("tokenizer.ggml.bos_token_id", first_special + pattern.bos);
    all.u32("tokenizer.ggml.eos_token_id", first_special + pattern.eos);
    all.entry("tokenizer.ggml.add_bos_token", kind::BOOL).push(0);
    all
}

/// Tokens and merges.
fn vocabulary(pattern: &Pattern) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = byte_letters().iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    let words = pattern.vocab - tokens.len() - pattern.specials.len();
    let mut begins: Vec<String> = ('a'..='z').map(String::from).collect();
    while merges.len() < words {
        let longer: Vec<(&String, char)> =
            begins.iter().flat_map(|begin| ('a'..='z').map(move |last| (begin, last))).collect();
        let of = &longer[..longer.len().min(words - merges.len())];
        merges.extend(of.iter().map(|(begin, last)| format!("{begin} {last}")));
        let made: Vec<String> = of.iter().map(|(begin, last)| format!("{begin}{last}")).collect();
        tokens.extend_from_slice(&made);
        begins = made;
    }
    tokens.extend(pattern.specials.iter().map(|special| (*special).to_owned()));
    (tokens, merges)
}

/// What `general.file_type` calls a file that is mostly of this format.
fn file_type(quant: Quant) -> usize {
    match quant {
        Quant::F32 => 0,
        Quant::F16 => 1,
        Quant::Q4_0 => 2,
        Quant::Q4_1 => 3,
        Quant::Q8_0 => 7,
        Quant::Q5_0 => 8,
        Quant::Q5_1 => 9,
        Quant::Q4_K => 14,
        Quant::Q5_K => 16,
        Quant::Q6_K => 18,
        Quant::BF16 => 32,
    }
}
