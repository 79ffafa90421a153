//! Text to tokens and back, by the vocabulary of a GGUF file.
//!
//! Owns: which tokens are special, and what stands between them. Never: BOS or EOS on its own account (prompts are
//! text; what should be there is written there), the meaning of a special token (`chat.rs`), nor how text without
//! special tokens merges (`bytelevel.rs`, `sentencepiece.rs`).

use std::fmt;
use std::sync::Mutex;

use super::bytelevel::ByteLevel;
use super::describe::one_line;
use super::gguf::{Gguf, GgufError, Value, optional};
use super::merge::Encoding;
use super::sentencepiece::SentencePiece;
use super::split::PreTokenizer;
use super::vocabulary::{Kind, Specials, Vocabulary};
use crate::backend::TokenId;
use crate::limits;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

/// Shared by all guests; immutable.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    scheme: Scheme,
    /// Found in text before anything else.
    special: Specials,
    long_word: Mutex<()>,
}

/// How text without special tokens becomes tokens.
enum Scheme {
    ByteLevel(Box<ByteLevel>),
    SentencePiece(Box<SentencePiece>),
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
    /// The tokenizer changes text before it cuts it; the key that says so.
    Normalizer(&'static str),
    /// The vocabulary or the merges contradict themselves.
    Vocabulary(String),
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenizerError::Gguf(error) => error.fmt(f),
            TokenizerError::Model(name) => write!(
                f,
                "the model's tokenizer is of type `{name}`; Tartlet has byte-level BPE (`gpt2` in \
                 `tokenizer.ggml.model`) and SentencePiece BPE (`llama`)"
            ),
            TokenizerError::Splitter(name) => {
                let known: Vec<&str> = PreTokenizer::ALL.iter().map(|pre| pre.name).collect();
                write!(f, "the model's pre-tokenizer is `{name}`; Tartlet has {}", known.join(", "))
            }
            TokenizerError::Normalizer(key) => {
                write!(f, "the model's tokenizer changes text as `{key}` says, which Tartlet does not do")
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
        if !["gpt2", "llama"].contains(&model) {
            return Err(TokenizerError::Model(one_line(model)));
        }
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        if tokens.len() > limits::MODEL_VOCAB as usize {
            return damaged(format!("{} tokens; the limit is {}", tokens.len(), limits::MODEL_VOCAB));
        }
        // Before they are read: types of one byte each take eight in memory.
        const TYPES: &str = "tokenizer.ggml.token_type";
        if let Some(Value::Array { len }) =
            gguf.get(TYPES).filter(|types| *types != Value::Array { len: tokens.len() })
        {
            return damaged(format!("{} tokens have {len} types", tokens.len()));
        }
        let types = gguf.integers(TYPES)?;
        let kinds: Vec<Kind> = types
            .into_iter()
            .enumerate()
            .map(|(id, number)| Kind::of(id, number))
            .collect::<Result<_, _>>()?;

        let (scheme, vocabulary, special) = match model {
            "gpt2" => {
                let (scheme, vocabulary, special) = ByteLevel::read(gguf, &tokens, &kinds)?;
                (Scheme::ByteLevel(Box::new(scheme)), vocabulary, special)
            }
            _ => {
                let (scheme, vocabulary, special) = SentencePiece::read(gguf, &tokens, &kinds)?;
                (Scheme::SentencePiece(Box::new(scheme)), vocabulary, special)
            }
        };
        for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
            if let Some(id) = optional(gguf.u32(key))?.filter(|id| *id as usize >= tokens.len()) {
                return damaged(format!("`{key}` is {id}, past its end"));
            }
        }
        Ok(Tokenizer { vocabulary, scheme, special, long_word: Mutex::new(()) })
    }

    /// The tokens of `text`. Special tokens in it are honoured, the longest first; nothing is added at either end,
    /// but for the space that a SentencePiece vocabulary puts before a text.
    /// Time is near linear in the text's length, which the caller bounds by [`limits::TOKENIZED_BYTES`]. Memory is
    /// at most four bytes per byte of text, and the merge of one word: small for all but endless ones, and those
    /// wait for each other.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        let mut out = Encoding::new(&self.long_word);
        let encode = |part: &str, out: &mut Encoding<'_>| match &self.scheme {
            Scheme::ByteLevel(scheme) => scheme.encode(part, &self.vocabulary, out),
            Scheme::SentencePiece(scheme) => scheme.encode(part, &self.vocabulary, out),
        };
        let mut rest = text;
        while let Some((before, special, after)) = self.special.cut(&self.vocabulary, rest) {
            encode(before, &mut out);
            out.push(special);
            rest = after;
        }
        encode(rest, &mut out);
        out.tokens
    }

    /// The text of `tokens`: special ones verbatim, bytes that are not UTF-8 as U+FFFD. The space that a SentencePiece
    /// vocabulary puts before a text stays, since nobody knows whether the first token here is a text's first.
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
        Ok(self.vocabulary.raw(token.0))
    }

    /// Tokens in the vocabulary; ids are below it.
    pub fn vocab(&self) -> u32 {
        self.vocabulary.len() as u32
    }

    /// The tokens that are text, ids ascending, as raw bytes; special and unused ones are left out.
    pub fn vocabulary(&self) -> impl Iterator<Item = (TokenId, &[u8])> {
        let text = self.vocabulary.ids().filter(|&id| self.vocabulary.kind(id).text());
        text.map(|id| (TokenId(id), self.vocabulary.raw(id)))
    }

    /// The special token that is spelt exactly so.
    pub fn special(&self, text: &str) -> Option<TokenId> {
        self.all_specials().find_map(|special| special.spelt(&self.vocabulary, text.as_bytes())).map(TokenId)
    }

    /// All special tokens with their spelling.
    pub fn specials(&self) -> impl Iterator<Item = (TokenId, &str)> {
        let ids = self.all_specials().flat_map(|special| special.ids());
        ids.filter_map(|&id| Some((TokenId(id), std::str::from_utf8(self.vocabulary.raw(id)).ok()?)))
    }

    fn all_specials(&self) -> impl Iterator<Item = &Specials> {
        let user = match &self.scheme {
            Scheme::SentencePiece(scheme) => Some(scheme.user_defined()),
            Scheme::ByteLevel(_) => None,
        };
        std::iter::once(&self.special).chain(user)
    }

    /// For people: "byte-level BPE, smollm, 49152 tokens (17 special), 48900 merges".
    pub fn description(&self) -> String {
        let tokens = format!("{} tokens ({} special)", self.vocab(), self.specials().count());
        match &self.scheme {
            Scheme::ByteLevel(scheme) => {
                format!("byte-level BPE, {}, {tokens}, {} merges", scheme.pre.name, scheme.merges.len())
            }
            Scheme::SentencePiece(scheme) => {
                let space = if scheme.space_first { "a space" } else { "no space" };
                format!("SentencePiece BPE, {tokens}, {space} before a text")
            }
        }
    }
}

pub(super) fn damaged<T>(what: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Vocabulary(what))
}
