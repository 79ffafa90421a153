//! Every kind of tokenizer against PyPI `tokenizers` and `sentencepiece`, on a corpus of hard texts.
//!
//! Owns: the vocabularies and the corpus of tests/golden/vocabularies.py, rebuilt from its file. The file has one
//! hash per text: for the tokens that the reference gives, run the script's `show` with the kind and the text.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::toy::{Items, Random, Writer, real_model};
use super::*;

#[derive(Deserialize)]
struct Golden {
    corpus: Corpus,
    byte_level: ByteLevel,
    pieces: BTreeMap<String, Pieces>,
    ids: BTreeMap<String, Vec<String>>, // kind -> hashes, 8 hexadecimal digits a text
}

#[derive(Deserialize)]
struct Corpus {
    seed: u64,
    random: usize,
    written: Vec<String>,
    long: Vec<(String, usize)>,
    pools: Vec<String>,
    parts: Vec<String>,
    broken: Vec<String>,
}

/// Tokens: the 256 letters, one for each merge, the special ones.
#[derive(Deserialize)]
struct ByteLevel {
    merges: Vec<String>,
    left_out: usize,
    specials: Vec<(String, i32)>,
}

#[derive(Deserialize)]
struct Pieces {
    pieces: Vec<String>,
    types: Vec<(usize, i32)>,
    scores: Vec<f32>,
    space_first: bool,
}

impl Corpus {
    fn texts(&self) -> Vec<String> {
        let mut random = Random::new(self.seed);
        let long = self.long.iter().map(|(text, count)| text.repeat(*count));
        let texts = self.written.iter().cloned().chain(long);
        texts.chain((0..self.random).map(|_| self.random_text(&mut random))).collect()
    }

    /// The same in tests/golden/vocabularies.py. What is not UTF-8 becomes U+FFFD.
    fn random_text(&self, random: &mut Random) -> String {
        let mut out = Vec::new();
        for _ in 0..1 + random.below(24) {
            match random.below(100) {
                0..20 => out.extend_from_slice(self.parts[random.below(self.parts.len())].as_bytes()),
                20..90 => {
                    let pool: Vec<char> = self.pools[random.below(self.pools.len())].chars().collect();
                    for _ in 0..1 + random.below(6) {
                        let c = pool[random.below(pool.len())];
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                90..97 => {
                    let c = char::from_u32(random.below(0x11_0000) as u32);
                    out.extend_from_slice(c.map(String::from).unwrap_or_default().as_bytes());
                }
                _ => {
                    let broken = &self.broken[random.below(self.broken.len())];
                    let byte = |at| u8::from_str_radix(&broken[at..at + 2], 16).unwrap();
                    out.extend((0..broken.len()).step_by(2).map(byte));
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl ByteLevel {
    fn writer(&self, pre: &str) -> Writer {
        let letters = crate::model::bytelevel::letters().map(String::from);
        let products = self.merges.iter().map(|merge| merge.replace(' ', ""));
        let specials = self.specials.iter().map(|(token, _)| token.clone());
        let tokens: Vec<String> = letters.into_iter().chain(products).chain(specials).collect();
        let mut types = vec![1; tokens.len() - self.specials.len()];
        types.extend(self.specials.iter().map(|&(_, kind)| kind));
        let merges = self.merges.iter().enumerate().filter(|(at, _)| at % self.left_out != 0);
        let merges: Vec<String> = merges.map(|(_, merge)| merge.clone()).collect();
        Writer::new()
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", pre)
            .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
            .array("tokenizer.ggml.token_type", Items::I32(&types))
            .array("tokenizer.ggml.merges", Items::Strings(&merges))
    }
}

impl Pieces {
    fn writer(&self) -> Writer {
        let mut types = vec![1; self.pieces.len()];
        self.types.iter().for_each(|&(at, kind)| types[at] = kind);
        Writer::new()
            .str("tokenizer.ggml.model", "llama")
            .array("tokenizer.ggml.tokens", Items::Strings(&self.pieces))
            .array("tokenizer.ggml.token_type", Items::I32(&types))
            .array("tokenizer.ggml.scores", Items::F32(&self.scores))
            .bool("tokenizer.ggml.add_space_prefix", self.space_first)
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/vocabularies.json")).unwrap()
}

/// FNV-1a over the ids.
fn hash(tokens: &[TokenId]) -> u32 {
    let bytes = tokens.iter().flat_map(|token| token.0.to_le_bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Compares all texts, and says which are wrong.
fn compare(kind: &str, tokenizer: &Tokenizer, golden: &Golden, texts: &[String]) {
    let hashes = golden.ids[kind].concat();
    assert!(texts.len() >= 2000 && hashes.len() == 8 * texts.len(), "{kind}");
    let mut wrong = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let tokens = tokenizer.encode(text);
        if format!("{:08x}", hash(&tokens)) != hashes[8 * at..8 * at + 8] {
            let ids: Vec<u32> = tokens.iter().take(40).map(|token| token.0).collect();
            wrong.push(format!("text {at}, {:?}: {ids:?}", text.chars().take(80).collect::<String>()));
        }
    }
    let some = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{kind}: {} of {} texts\n{some}", wrong.len(), texts.len());
}

#[test]
fn ids_are_those_of_the_references() {
    let golden = golden();
    let texts = golden.corpus.texts();
    for kind in golden.ids.keys() {
        let tokenizer = match golden.pieces.get(kind) {
            _ if kind == "smollm2" => Tokenizer::read(&Gguf::open(&real_model()).unwrap()),
            Some(pieces) => Tokenizer::read(&Gguf::from_bytes(pieces.writer().bytes()).unwrap()),
            None => Tokenizer::read(&Gguf::from_bytes(golden.byte_level.writer(kind).bytes()).unwrap()),
        };
        compare(kind, &tokenizer.unwrap(), &golden, &texts);
    }
}
