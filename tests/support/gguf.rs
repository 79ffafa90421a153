//! A small GGUF writer, and models for tests that open files from outside: valid, seeded, of many formats.
//!
//! Owns: bytes. Never: the reader's code, of which it knows nothing.

/// xorshift64*: seeded numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..below`; 0 if that is empty.
    pub fn below(&mut self, below: usize) -> usize {
        (self.next() >> 33) as usize % below.max(1)
    }
}

/// A file in the making: metadata and tensors in the order of the calls.
#[derive(Default)]
struct Writer {
    pairs: u64,
    metadata: Vec<u8>,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>, // name, dims (row length first), format, bytes
}

impl Writer {
    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs += 1;
        self.metadata.extend(text(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
    }

    fn str(&mut self, key: &str, value: &str) {
        self.pair(key, 8, &text(value));
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.pair(key, 4, &value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.pair(key, 6, &value.to_le_bytes());
    }

    /// An array of items of one kind, already encoded.
    fn array(&mut self, key: &str, kind: u32, items: &[Vec<u8>]) {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((items.len() as u64).to_le_bytes());
        value.extend(items.concat());
        self.pair(key, 9, &value);
    }

    fn strings(&mut self, key: &str, items: &[String]) {
        self.array(key, 8, &items.iter().map(|item| text(item)).collect::<Vec<_>>());
    }

    fn i32s(&mut self, key: &str, items: &[i32]) {
        self.array(key, 5, &items.iter().map(|item| item.to_le_bytes().to_vec()).collect::<Vec<_>>());
    }

    fn f32s(&mut self, key: &str, items: &[f32]) {
        self.array(key, 6, &items.iter().map(|item| item.to_le_bytes().to_vec()).collect::<Vec<_>>());
    }

    /// A matrix of random bits under halves of about 2^-6, in a format of 32 values a block or of single values.
    fn matrix(&mut self, name: &str, rows: usize, row: usize, format: Format, random: &mut Random) {
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
        self.tensors.push((name.to_owned(), vec![row, rows], format.number, bytes));
    }

    fn gains(&mut self, name: &str, len: usize) {
        let ones = 1.0f32.to_le_bytes().repeat(len);
        self.tensors.push((name.to_owned(), vec![len], 0, ones));
    }

    fn bytes(self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pairs.to_le_bytes());
        out.extend(self.metadata);
        let mut data: Vec<u8> = Vec::new();
        for (name, dims, format, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
            out.extend(format.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

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

/// What both models have in common; `vocab` tokens.
fn decoder(architecture: &str, vocab: usize) -> Writer {
    let mut w = Writer::default();
    let key = |part: &str| format!("{architecture}.{part}");
    w.str("general.architecture", architecture);
    w.str("general.name", "Corpus");
    w.u32(&key("block_count"), 1);
    w.u32(&key("context_length"), 64);
    w.u32(&key("embedding_length"), HIDDEN as u32);
    w.u32(&key("feed_forward_length"), 32);
    w.u32(&key("attention.head_count"), 2);
    w.u32(&key("attention.head_count_kv"), 1);
    w.u32(&key("attention.key_length"), 16);
    w.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    w.f32(&key("rope.freq_base"), 10_000.0);
    w.u32(&key("rope.dimension_count"), 16);
    w.u32(&key("vocab_size"), vocab as u32);
    w
}

/// The matrices of the one block, in these formats.
fn block(w: &mut Writer, formats: [Format; 7], random: &mut Random) {
    let name = |part: &str| format!("blk.0.{part}.weight");
    let matrices = [
        ("attn_q", 32, HIDDEN),
        ("attn_k", 16, HIDDEN),
        ("attn_v", 16, HIDDEN),
        ("attn_output", HIDDEN, 32),
        ("ffn_gate", 32, HIDDEN),
        ("ffn_up", 32, HIDDEN),
        ("ffn_down", HIDDEN, 32),
    ];
    for ((part, rows, row), format) in matrices.into_iter().zip(formats) {
        w.matrix(&name(part), rows, row, format, random);
    }
    w.gains(&name("attn_norm"), HIDDEN);
    w.gains(&name("ffn_norm"), HIDDEN);
    w.gains("output_norm.weight", HIDDEN);
}

/// A llama with a byte-level vocabulary and a template of no known family; a format for each matrix.
pub fn bytelevel() -> Vec<u8> {
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

    let mut w = decoder("llama", tokens.len());
    w.str("tokenizer.ggml.model", "gpt2");
    w.str("tokenizer.ggml.pre", "llama-bpe");
    w.strings("tokenizer.ggml.tokens", &tokens);
    w.i32s("tokenizer.ggml.token_type", &kinds);
    w.strings("tokenizer.ggml.merges", &merges);
    w.u32("tokenizer.ggml.bos_token_id", plain as u32);
    w.u32("tokenizer.ggml.eos_token_id", plain as u32 + 1);
    w.str(
        "tokenizer.chat_template",
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.role + ': ' + \
         m.content|trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    );
    let mut random = Random::new(1);
    w.matrix("token_embd.weight", tokens.len(), HIDDEN, F16, &mut random);
    w.gains("rope_freqs.weight", 8);
    block(&mut w, [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16, F32], &mut random);
    w.bytes()
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

    let mut w = decoder("gemma3", tokens.len());
    w.u32("gemma3.attention.value_length", 16);
    w.u32("gemma3.attention.sliding_window", 8);
    w.str("tokenizer.ggml.model", "llama");
    w.strings("tokenizer.ggml.tokens", &tokens);
    w.f32s("tokenizer.ggml.scores", &scores);
    w.i32s("tokenizer.ggml.token_type", &kinds);
    w.u32("tokenizer.ggml.bos_token_id", 2);
    w.u32("tokenizer.ggml.eos_token_id", 1);
    w.u32("tokenizer.ggml.unknown_token_id", 3);
    w.pair("tokenizer.ggml.add_space_prefix", 7, &[0]);
    let mut random = Random::new(2);
    w.matrix("token_embd.weight", tokens.len(), HIDDEN, Q8_0, &mut random);
    block(&mut w, [Q8_0, BF16, F16, Q4_0, Q4_1, Q5_1, Q5_0], &mut random);
    for part in ["attn_q_norm", "attn_k_norm"] {
        w.gains(&format!("blk.0.{part}.weight"), 16);
    }
    for part in ["post_attention_norm", "post_ffw_norm"] {
        w.gains(&format!("blk.0.{part}.weight"), HIDDEN);
    }
    w.bytes()
}
