//! Byte-level BPE from the vocabulary and the merges of a GGUF file.
//!
//! Owns: text to tokens and back, and which tokens are special. Never: BOS or EOS on its own account (prompts are
//! text; what should be there is written there), nor the meaning of a special token (`chat.rs`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::gguf::{Gguf, GgufError, optional};
use super::merge::{Merges, Scratch};
use super::split::Splitter;
use crate::backend::TokenId;
use crate::limits;

/// Shared by all guests; immutable.
pub struct Tokenizer {
    splitter: Splitter,
    splitter_name: String,
    merges: Merges,
    /// The token of each single byte. A byte that the vocabulary lacks vanishes from the text, as in the reference
    /// tokenizer: real vocabularies lack only bytes that UTF-8 does not use or that their training text never had.
    bytes: [Option<u32>; 256],
    text: Vec<u8>,     // raw bytes of all tokens, one after the other
    starts: Vec<u32>,  // [vocab + 1], into `text`
    kinds: Vec<Kind>,  // [vocab]
    special: Vec<u32>, // ids of special tokens, sorted by their bytes
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    /// Words longer than [`limits::SHORT_WORD_BYTES`] are merged one at a time: many guests could ask at once, and
    /// the memory for one is 48 times its length.
    long_word: Mutex<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text: part of the vocabulary that guests constrain their output with.
    Text,
    /// Control or user-defined: found in text before anything else, printed verbatim.
    Special,
    /// Unused or unknown: never made from text.
    Idle,
}

/// A token id outside the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken {
    pub token: TokenId,
    /// Tokens in the vocabulary; ids are below it.
    pub vocab: u32,
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token id {} is outside the vocabulary of {} tokens", self.token.0, self.vocab)
    }
}

impl std::error::Error for BadToken {}

/// Why the file's tokenizer cannot be used.
#[derive(Debug)]
pub enum TokenizerError {
    Gguf(GgufError),
    /// A kind of tokenizer that we do not have.
    Model(String),
    /// A pre-tokenizer that we do not have.
    Splitter(String),
    /// The vocabulary or the merges contradict themselves.
    Vocabulary(String),
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenizerError::Gguf(error) => error.fmt(f),
            TokenizerError::Model(name) => write!(
                f,
                "the model's tokenizer is of type `{name}`; Tartlet has byte-level BPE (`gpt2` in `tokenizer.ggml.model`)"
            ),
            TokenizerError::Splitter(name) => {
                let known: Vec<&str> = Splitter::NAMES.iter().map(|(name, _)| *name).collect();
                write!(f, "the model's pre-tokenizer is `{name}`; Tartlet has {}", known.join(", "))
            }
            TokenizerError::Vocabulary(what) => write!(f, "the model's vocabulary is damaged: {what}"),
        }
    }
}

impl std::error::Error for TokenizerError {}

impl From<GgufError> for TokenizerError {
    fn from(error: GgufError) -> TokenizerError {
        TokenizerError::Gguf(error)
    }
}

impl Tokenizer {
    /// Reads `tokenizer.ggml.*`.
    pub fn read(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        let model = gguf.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::Model(model.to_owned()));
        }
        let pre = gguf.str("tokenizer.ggml.pre")?;
        let splitter = Splitter::named(pre).ok_or_else(|| TokenizerError::Splitter(pre.to_owned()))?;
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let types = gguf.integers("tokenizer.ggml.token_type")?;
        if tokens.len() > limits::MODEL_VOCAB as usize {
            return damaged(format!("{} tokens; the limit is {}", tokens.len(), limits::MODEL_VOCAB));
        }
        if types.len() != tokens.len() {
            return damaged(format!("{} tokens have {} types", tokens.len(), types.len()));
        }

        let alphabet = Alphabet::new();
        // Of equal texts the last one counts, as in the reference tokenizer.
        let ids: HashMap<&str, u32> =
            tokens.iter().enumerate().map(|(id, token)| (*token, id as u32)).collect();
        let (mut text, mut starts, mut kinds) = (Vec::new(), vec![0], Vec::new());
        for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
            let kind = match kind {
                1 | 6 => Kind::Text,
                3 | 4 => Kind::Special,
                0 | 2 | 5 => Kind::Idle,
                other => return damaged(format!("token {id} has the unknown type {other}")),
            };
            match kind {
                Kind::Text => alphabet.decode(token, &mut text),
                Kind::Special | Kind::Idle => text.extend_from_slice(token.as_bytes()),
            }
            kinds.push(kind);
            starts.push(u32::try_from(text.len()).or_else(|_| damaged("4 GiB of text".into()))?);
        }

        let mut merges = Merges::default();
        for (rank, merge) in gguf.strings("tokenizer.ggml.merges")?.into_iter().enumerate() {
            let parts = merge.split_once(' ').filter(|(_, right)| !right.contains(' '));
            let Some((left, right)) = parts else {
                return damaged(format!("merge {rank}, `{merge}`, is not two tokens"));
            };
            let find = |part: &str| match ids.get(part) {
                Some(&id) => Ok(id),
                None => damaged(format!("merge {rank}, `{merge}`, needs the missing token `{part}`")),
            };
            let product = [left, right].concat();
            merges.insert(find(left)?, find(right)?, rank as u32, find(&product)?);
        }

        let mut bytes = [None; 256];
        for (byte, letter) in alphabet.letters.iter().enumerate() {
            bytes[byte] = ids.get(letter.encode_utf8(&mut [0; 4]) as &str).copied();
        }
        let mut special: Vec<u32> = (0..tokens.len())
            .filter(|&id| kinds[id] == Kind::Special && !tokens[id].is_empty())
            .map(|id| ids[tokens[id]])
            .filter(|&id| kinds[id as usize] == Kind::Special)
            .collect();
        special.sort_unstable_by_key(|&id| tokens[id as usize]);
        special.dedup();

        let end = |key| -> Result<Option<TokenId>, TokenizerError> {
            match optional(gguf.u32(key))? {
                Some(id) if id as usize >= tokens.len() => damaged(format!("`{key}` is {id}, past its end")),
                id => Ok(id.map(TokenId)),
            }
        };
        let (bos, eos) = (end("tokenizer.ggml.bos_token_id")?, end("tokenizer.ggml.eos_token_id")?);
        let splitter_name = pre.to_owned();
        Ok(Tokenizer {
            splitter,
            splitter_name,
            merges,
            bytes,
            text,
            starts,
            kinds,
            special,
            bos,
            eos,
            long_word: Mutex::new(()),
        })
    }

    /// The tokens of `text`. Special tokens in it are honoured, the longest first; nothing is added at either end.
    /// Time is near linear in the text's length, which the caller bounds by [`limits::TOKENIZED_BYTES`]. Memory is
    /// at most four bytes per byte of text, and the merge of one word: small for all but endless ones, and those
    /// wait for each other.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        let mut scratch = Scratch::default();
        let mut rest = text;
        while !rest.is_empty() {
            let found =
                (0..rest.len()).find_map(|at| self.special_at(&rest.as_bytes()[at..]).map(|id| (at, id)));
            let (at, special) = found.map_or((rest.len(), None), |(at, id)| (at, Some(id)));
            self.splitter.split(&rest[..at], |word| {
                let first = word.bytes().filter_map(|byte| self.bytes[usize::from(byte)]);
                let emit = |id| tokens.push(TokenId(id));
                if word.len() <= limits::SHORT_WORD_BYTES {
                    return self.merges.tokens(first, &mut scratch, emit);
                }
                let _turn = self.long_word.lock().unwrap_or_else(PoisonError::into_inner);
                self.merges.tokens(first, &mut Scratch::default(), emit);
            });
            let Some(special) = special else { break };
            tokens.push(TokenId(special));
            rest = &rest[at + self.raw(special).len()..];
        }
        tokens
    }

    /// The text of `tokens`: special ones verbatim, bytes that are not UTF-8 as U+FFFD.
    pub fn decode(&self, tokens: &[TokenId]) -> Result<String, BadToken> {
        let bytes = self.decode_bytes(tokens)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// The bytes of `tokens`, which may end within a character.
    pub fn decode_bytes(&self, tokens: &[TokenId]) -> Result<Vec<u8>, BadToken> {
        let mut bytes = Vec::with_capacity(self.decoded_len(tokens)?);
        for &token in tokens {
            bytes.extend_from_slice(self.bytes_of(token)?);
        }
        Ok(bytes)
    }

    /// How many bytes [`Self::decode_bytes`] gives. The text is at most three times as long: each byte that is no
    /// UTF-8 becomes U+FFFD.
    pub fn decoded_len(&self, tokens: &[TokenId]) -> Result<usize, BadToken> {
        tokens.iter().try_fold(0, |len, &token| Ok(len + self.bytes_of(token)?.len()))
    }

    /// The raw bytes of one token.
    pub fn bytes_of(&self, token: TokenId) -> Result<&[u8], BadToken> {
        if token.0 >= self.vocab() {
            return Err(BadToken { token, vocab: self.vocab() });
        }
        Ok(self.raw(token.0))
    }

    /// Tokens in the vocabulary; ids are below it.
    pub fn vocab(&self) -> u32 {
        self.kinds.len() as u32
    }

    /// The tokens that are text, ids ascending, as raw bytes; special and unused ones are left out.
    pub fn vocabulary(&self) -> impl Iterator<Item = (TokenId, &[u8])> {
        (0..self.vocab())
            .filter(|&id| self.kinds[id as usize] == Kind::Text)
            .map(|id| (TokenId(id), self.raw(id)))
    }

    /// The special token that is spelt exactly so.
    pub fn special(&self, text: &str) -> Option<TokenId> {
        let at = self.special.binary_search_by_key(&text.as_bytes(), |&id| self.raw(id)).ok()?;
        Some(TokenId(self.special[at]))
    }

    /// All special tokens with their spelling.
    pub fn specials(&self) -> impl Iterator<Item = (TokenId, &str)> {
        self.special.iter().filter_map(|&id| Some((TokenId(id), std::str::from_utf8(self.raw(id)).ok()?)))
    }

    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// For people: "byte-level BPE, smollm, 49152 tokens (17 special), 48900 merges".
    pub fn description(&self) -> String {
        format!(
            "byte-level BPE, {}, {} tokens ({} special), {} merges",
            self.splitter_name,
            self.vocab(),
            self.special.len(),
            self.merges.len()
        )
    }

    fn raw(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.text[self.starts[id] as usize..self.starts[id + 1] as usize]
    }

    /// The longest special token at the start of `bytes`: narrows the sorted list byte by byte.
    fn special_at(&self, bytes: &[u8]) -> Option<u32> {
        let mut left = self.special.as_slice();
        let mut longest = None;
        for (at, byte) in bytes.iter().enumerate() {
            let from = left.partition_point(|&id| self.raw(id).get(at) < Some(byte));
            let to = left.partition_point(|&id| self.raw(id).get(at) <= Some(byte));
            left = &left[from..to];
            // Of those that share a prefix the shortest sorts first.
            match left.first() {
                None => break,
                Some(&id) if self.raw(id).len() == at + 1 => longest = Some(id),
                Some(_) => {}
            }
        }
        longest
    }
}

fn damaged<T>(what: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Vocabulary(what))
}

/// The letters of a byte-level vocabulary in the order of the bytes they stand for.
#[cfg(test)]
pub(super) fn letters() -> [char; 256] {
    Alphabet::new().letters
}

/// The printable letters that stand for the 256 bytes in a byte-level vocabulary: a byte that is printable in
/// Latin-1 stands for itself, the others take the letters from U+0100 on, in order.
struct Alphabet {
    letters: [char; 256],
    bytes: HashMap<char, u8>,
}

impl Alphabet {
    fn new() -> Alphabet {
        let mut next = 0x100u32;
        let letters = std::array::from_fn(|byte| match byte as u8 {
            byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
        });
        let bytes = letters.iter().enumerate().map(|(byte, &letter)| (letter, byte as u8)).collect();
        Alphabet { letters, bytes }
    }

    /// Appends the bytes that `token` stands for; a token with any other letter stands for itself.
    fn decode(&self, token: &str, to: &mut Vec<u8>) {
        let start = to.len();
        for letter in token.chars() {
            match self.bytes.get(&letter) {
                Some(&byte) => to.push(byte),
                None => {
                    to.truncate(start);
                    to.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::toy::{Items, TOY_SPECIALS, Toy, Writer, real_model};
    use super::*;

    fn ids(tokens: &[TokenId]) -> Vec<u32> {
        tokens.iter().map(|token| token.0).collect()
    }

    fn real() -> Tokenizer {
        Tokenizer::read(&Gguf::open(&real_model()).unwrap()).unwrap()
    }

    #[derive(serde::Deserialize)]
    struct Prompt {
        text: String,
        ids: Vec<u32>,
        greedy: Vec<u32>,
        greedy_text: String,
    }

    #[test]
    fn golden_prompts() {
        let golden = include_str!("../../tests/golden/smollm2-135m-q4_1.json");
        let golden: Vec<Prompt> = serde_json::from_str(golden).unwrap();
        let tokenizer = real();
        for prompt in golden {
            assert_eq!(ids(&tokenizer.encode(&prompt.text)), prompt.ids, "{:?}", prompt.text);
            let greedy: Vec<TokenId> = prompt.greedy.into_iter().map(TokenId).collect();
            assert_eq!(tokenizer.decode(&greedy).unwrap(), prompt.greedy_text);
        }
    }

    /// What PyPI `tokenizers` makes of tricky texts (tests/golden/tokenizer_cases.py).
    #[test]
    fn tricky_texts_as_in_the_reference() {
        let golden = include_str!("../../tests/golden/tokenizer_cases.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let cases: Vec<(String, Vec<u32>)> = serde_json::from_value(golden["tokens"].clone()).unwrap();
        assert!(cases.len() > 150);
        let tokenizer = real();
        for (text, want) in cases {
            assert_eq!(ids(&tokenizer.encode(&text)), want, "{text:?}");
        }
    }

    #[test]
    fn decoding_is_for_every_token_and_no_other() {
        let tokenizer = real();
        assert_eq!(tokenizer.decode(&[TokenId(1), TokenId(2)]).unwrap(), "<|im_start|><|im_end|>");
        let bad = tokenizer.decode(&[TokenId(5), TokenId(49152)]).unwrap_err();
        assert_eq!(bad.to_string(), "token id 49152 is outside the vocabulary of 49152 tokens");
        assert!(tokenizer.bytes_of(TokenId(u32::MAX)).is_err());
        // One token of a character's three bytes.
        let half: Vec<TokenId> = tokenizer.encode("ᚠ")[..1].to_vec();
        assert_eq!(tokenizer.decode(&half).unwrap(), "\u{fffd}");
        assert_eq!(tokenizer.decode_bytes(&half).unwrap().first(), Some(&0xe1));
        assert_eq!(
            tokenizer.decoded_len(&[TokenId(1), half[0]]),
            Ok("<|im_start|>".len() + tokenizer.bytes_of(half[0]).unwrap().len())
        );
        assert_eq!(tokenizer.decoded_len(&[TokenId(1), TokenId(49152)]), Err(bad));

        let listed: Vec<(TokenId, &[u8])> = tokenizer.vocabulary().collect();
        assert_eq!(listed.len(), 49152 - 17);
        assert!(listed.windows(2).all(|two| two[0].0 < two[1].0));
        let (the, bytes) = listed.iter().find(|(_, bytes)| bytes == b" the").unwrap();
        assert_eq!(tokenizer.decode_bytes(&[*the]).unwrap(), *bytes);
        assert_eq!(tokenizer.specials().count(), 17);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(TokenId(1)), Some(TokenId(2))));
    }

    /// Any sequence of tokens decodes; text comes back whole.
    #[test]
    fn text_survives_the_round_trip() {
        let toy = Toy::default().model();
        for text in ["", "a", "naïve\u{0}日本\u{10ffff}", "<|im_start|>user\n<|im_end|><|im_"] {
            let tokens = toy.tokenizer.encode(text);
            assert_eq!(toy.tokenizer.decode(&tokens).unwrap(), text);
        }
        let every: Vec<TokenId> = (0..toy.tokenizer.vocab()).map(TokenId).collect();
        assert!(toy.tokenizer.decode(&every).unwrap().contains(TOY_SPECIALS[1]));
        assert_eq!(toy.tokenizer.encode("[unused 300]").len(), "[unused 300]".len());
    }

    /// Half a megabyte without a single word border. Quadratic work would take hours here, not a moment.
    #[test]
    fn one_endless_word() {
        let tokenizer = real();
        for part in ["a", "ab", "qu", "日", "-", " ", "<"] {
            let text = part.repeat((1 << 19) / part.len());
            let tokens = tokenizer.encode(&text);
            assert!(!tokens.is_empty() && tokens.len() < text.len());
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }
    }

    /// A small vocabulary of single letters with the given further tokens and merges.
    fn with(more: &[(&str, i32)], merges: &[&str]) -> Writer {
        let letters = "abcdefghijklmnopqrstuvwxyz<>|".chars().map(|c| (c.to_string(), 1));
        let more = more.iter().map(|(token, kind)| (token.to_string(), *kind));
        let (tokens, types): (Vec<String>, Vec<i32>) = letters.chain(more).unzip();
        let merges: Vec<String> = merges.iter().map(|merge| merge.to_string()).collect();
        Writer::new()
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-2")
            .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
            .array("tokenizer.ggml.token_type", Items::I32(&types))
            .array("tokenizer.ggml.merges", Items::Strings(&merges))
    }

    fn read(writer: Writer) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::read(&Gguf::from_bytes(writer.bytes()).unwrap())
    }

    #[test]
    fn the_longest_special_token_wins() {
        let tokenizer = read(with(&[("<a", 3), ("<a>", 4), ("<a>b", 3), ("<c>", 5), ("", 3)], &[])).unwrap();
        let spelt = |text: &str| -> Vec<String> {
            tokenizer.encode(text).iter().map(|&t| tokenizer.decode(&[t]).unwrap()).collect()
        };
        assert_eq!(spelt("x<a>bc<a>c<a<a"), ["x", "<a>b", "c", "<a>", "c", "<a", "<a"]);
        assert_eq!(spelt("<c>"), ["<", "c", ">"], "an unused token is no special one");
        assert_eq!(
            tokenizer.special("<a>").map(|id| tokenizer.decode(&[id]).unwrap()).as_deref(),
            Some("<a>")
        );
        assert_eq!(tokenizer.special("<c>"), None);
        assert_eq!(spelt("aXb"), ["a", "b"], "a byte that the vocabulary lacks vanishes");
    }

    #[test]
    fn merges_go_by_rank_then_from_the_left() {
        let tokens = [("ab", 1), ("bc", 1), ("abc", 1), ("aa", 1), ("aaaa", 1)];
        let spelt = |merges: &[&str], text: &str| -> Vec<String> {
            let tokenizer = read(with(&tokens, merges)).unwrap();
            tokenizer.encode(text).iter().map(|&t| tokenizer.decode(&[t]).unwrap()).collect()
        };
        assert_eq!(spelt(&["a b", "b c", "ab c"], "abcbc"), ["abc", "bc"]);
        assert_eq!(spelt(&["b c", "a b", "a bc"], "abcab"), ["abc", "ab"]);
        assert_eq!(spelt(&["a a"], "aaaaa"), ["aa", "aa", "a"]);
        assert_eq!(spelt(&["a a", "aa aa"], "aaaaaaa"), ["aaaa", "aa", "a"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |writer: Writer| read(writer).err().expect("refused").to_string();
        assert!(said(with(&[], &["a b"])).contains("merge 0, `a b`, needs the missing token `ab`"));
        assert!(said(with(&[("ab", 1)], &["a", "a b"])).contains("merge 0, `a`, is not two tokens"));
        assert!(said(with(&[("x", 9)], &[])).contains("token 29 has the unknown type 9"));
        assert!(
            said(with(&[], &[]).u32("tokenizer.ggml.eos_token_id", 29))
                .contains("`tokenizer.ggml.eos_token_id` is 29")
        );
        let spm = Writer::new().str("tokenizer.ggml.model", "llama");
        assert!(said(spm.clone()).contains("type `llama`; Tartlet has byte-level BPE"));
        assert!(said(Writer::new()).contains("no metadata key `tokenizer.ggml.model`"));
        let other = Writer::new().str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "tekken");
        assert!(said(other).contains("`tekken`; Tartlet has smollm, gpt-2, llama-bpe, qwen2"));
    }
}
