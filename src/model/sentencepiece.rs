//! SentencePiece BPE (`llama` in `tokenizer.ggml.model`): the characters of a text merge by the scores of the pieces
//! they make; a character without a piece becomes its bytes.
//!
//! Owns: pieces, scores, the space before a text. Never: control tokens, which stand outside of it.
//!
//! A piece writes a space as U+2581. Here it is a space again, in pieces and in text alike: shorter, and what a token
//! prints.

use std::borrow::Cow;
use std::collections::HashMap;

use super::describe::one_line;
use super::gguf::{Gguf, optional};
use super::merge::{Encoding, Merge, Pair, Word};
use super::tokenizer::{TokenizerError, damaged};
use super::vocabulary::{Index, Kind, Specials, Vocabulary};
use crate::backend::TokenId;
use crate::limits;

/// How a piece writes a space.
const SPACE: &str = "\u{2581}";
/// A symbol whose text is no piece.
const NO_PIECE: u32 = u32::MAX - 1;
/// Phi-3's marks take the white space after them along: the line break that its template writes after `<|user|>` was
/// never seen in training. A GGUF file does not say so; the model's own `tokenizer.json` does (`rstrip`), for all
/// but these.
const PHI3_EXEMPT: [&[u8]; 3] = [b"<unk>", b"<s>", b"<|endoftext|>"];

pub(super) struct SentencePiece {
    /// What merges can make.
    pieces: Index,
    ranks: Vec<u32>, // [vocab], from the scores: the highest first
    /// Bytes of the longest piece.
    longest: usize,
    /// The tokens of single bytes, if the vocabulary has all 256.
    bytes: Option<Box<[u32; 256]>>,
    /// Stands for characters that have neither piece nor bytes; several in a row are one.
    unknown: Option<u32>,
    /// Symbols that are never cut nor merged.
    user: Specials,
    /// Whether a text begins with a space that it does not have.
    pub space_first: bool,
    /// Bytes after which some piece goes on with a space. After any other byte a space begins a word that can be merged
    /// alone, and no merge is lost: in most vocabularies every word.
    joins: [bool; 256],
    /// Some piece that merges can make is not to be used: it falls into its parts again.
    falls_apart: bool,
}

impl SentencePiece {
    /// Reads `tokenizer.ggml.*`; the control tokens come apart.
    pub fn read(
        gguf: &Gguf,
        tokens: &[&str],
        kinds: &[Kind],
    ) -> Result<(SentencePiece, Vocabulary, Specials), TokenizerError> {
        for key in ["tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces"] {
            if !matches!(gguf.get(key), None | Some(super::gguf::Value::Bool(false))) {
                return Err(TokenizerError::Normalizer(key));
            }
        }
        let scores = gguf.floats("tokenizer.ggml.scores")?;
        if scores.len() != tokens.len() {
            return damaged(format!("{} tokens have {} scores", tokens.len(), scores.len()));
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return damaged(format!("the score of token {id} is not a number"));
        }

        let mut vocabulary = Vocabulary::with_capacity(tokens.len());
        let mut bytes = [None; 256];
        for (id, (token, &kind)) in tokens.iter().zip(kinds).enumerate() {
            match kind {
                Kind::Control | Kind::Unknown => {
                    vocabulary.push(kind, |text| text.extend_from_slice(token.as_bytes()))?
                }
                Kind::Byte => {
                    let Some(byte) = byte_of(token) else {
                        let token = one_line(token);
                        return damaged(format!("token {id}, `{token}`, should stand for one byte"));
                    };
                    bytes[usize::from(byte)] = Some(id as u32);
                    vocabulary.push(kind, |text| text.push(byte))?;
                }
                Kind::Text | Kind::UserDefined | Kind::Unused => vocabulary
                    .push(kind, |text| text.extend_from_slice(token.replace(SPACE, " ").as_bytes()))?,
            }
        }
        vocabulary.finish();
        let bytes: Option<Vec<u32>> = bytes.into_iter().collect();
        let unknown = match optional(gguf.u32("tokenizer.ggml.unknown_token_id"))? {
            Some(id) if id as usize >= tokens.len() => {
                return damaged(format!("`tokenizer.ggml.unknown_token_id` is {id}, past its end"));
            }
            Some(id) => Some(id),
            None => vocabulary.ids_of(Kind::Unknown).next(),
        };

        let space_first = optional(gguf.bool("tokenizer.ggml.add_space_prefix"))?.unwrap_or(true);
        let (pieces, falls_apart) = pieces(&vocabulary);
        let raw = |id| vocabulary.raw(id);
        let made = || vocabulary.ids().filter(|&id| pieces.find(raw(id), raw) == Some(id));
        let longest = made().map(|id| raw(id).len()).max().unwrap_or(0);
        let merged =
            |&id: &u32| vocabulary.kind(id) != Kind::UserDefined || space_first && raw(id).starts_with(b" ");
        // Where a piece falls apart depends on the whole text before it.
        let mut joins = [falls_apart; 256];
        for two in made().filter(merged).flat_map(|id| raw(id).windows(2)) {
            joins[usize::from(two[0])] |= two[1] == b' ';
        }
        let mut user = Specials::new(&vocabulary, vocabulary.ids_of(Kind::UserDefined));
        let mut control = Specials::new(
            &vocabulary,
            vocabulary.ids_of(Kind::Control).chain(vocabulary.ids_of(Kind::Unknown)),
        );
        if optional(gguf.str("general.architecture"))? == Some("phi3") {
            user.trim_after(&vocabulary, &PHI3_EXEMPT);
            control.trim_after(&vocabulary, &PHI3_EXEMPT);
        }
        let made = SentencePiece {
            ranks: scores.into_iter().map(rank).collect(),
            longest,
            bytes: bytes.and_then(|bytes| bytes.into_boxed_slice().try_into().ok()),
            unknown,
            user,
            space_first,
            joins,
            falls_apart,
            pieces,
        };
        Ok((made, vocabulary, control))
    }

    pub fn user_defined(&self) -> &Specials {
        &self.user
    }

    /// Appends the tokens of a text without control tokens. The space before a text is one before each part between
    /// special tokens, as in the tokenizers that Llama 2 and its kin were converted to.
    pub fn encode(&self, text: &str, vocabulary: &Vocabulary, out: &mut Encoding<'_>) {
        let text = match text.contains(SPACE) {
            true => Cow::Owned(text.replace(SPACE, " ")),
            false => Cow::Borrowed(text),
        };
        let mut rest: &str = &text;
        while let Some((before, id, after)) = self.user.cut(vocabulary, rest) {
            self.part(before, vocabulary, out);
            out.push(id);
            rest = after;
        }
        self.part(rest, vocabulary, out);
    }

    fn part(&self, text: &str, vocabulary: &Vocabulary, out: &mut Encoding<'_>) {
        if text.is_empty() {
            return;
        }
        let text = match self.space_first {
            true => Cow::Owned([" ", text].concat()),
            false => Cow::Borrowed(text),
        };
        let mut after_unknown = false;
        let mut start = 0;
        while start < text.len() {
            let len = self.word_len(&text.as_bytes()[start..]);
            let word = &text[start..start + len];
            out.word(len, |symbols, tokens| {
                self.merge(word, vocabulary, symbols, tokens, &mut after_unknown)
            });
            start += len;
        }
    }

    /// Appends the tokens of one word. `after_unknown`: the last token stands for unknown characters.
    fn merge(
        &self,
        word: &str,
        vocabulary: &Vocabulary,
        symbols: &mut Word,
        tokens: &mut Vec<TokenId>,
        after_unknown: &mut bool,
    ) {
        for (at, c) in word.char_indices() {
            let text = &word.as_bytes()[at..at + c.len_utf8()];
            symbols.push(self.piece(text, vocabulary).unwrap_or(NO_PIECE), text.len());
        }
        let of = |pair: &Pair| {
            let product = self.piece(&word.as_bytes()[pair.span.clone()], vocabulary)?;
            Some(Merge { rank: self.ranks[product as usize], product })
        };
        // Where an unused piece falls apart: at the last place where it was seen, as in the reference tokenizer.
        let mut seams: HashMap<u32, usize> = HashMap::new();
        symbols.merge(of, |pair, merge| {
            if self.falls_apart && vocabulary.kind(merge.product) == Kind::Unused {
                seams.insert(merge.product, pair.middle - pair.span.start);
            }
        });

        let mut write = Write { pieces: self, vocabulary, seams: &seams, tokens, after_unknown };
        symbols.symbols().for_each(|(span, token)| write.symbol(&word[span], token));
    }

    /// Bytes up to the next space that begins a word.
    fn word_len(&self, text: &[u8]) -> usize {
        let begins = |two: &[u8]| two[1] == b' ' && !self.joins[usize::from(two[0])];
        text.windows(2).position(begins).map_or(text.len(), |at| at + 1)
    }

    fn piece(&self, text: &[u8], vocabulary: &Vocabulary) -> Option<u32> {
        match text.len() <= self.longest {
            true => self.pieces.find(text, |id| vocabulary.raw(id)),
            false => None,
        }
    }
}

/// What merges can make, and whether some of it is unused and falls into its parts again.
fn pieces(vocabulary: &Vocabulary) -> (Index, bool) {
    let raw = |id| vocabulary.raw(id);
    let mut pieces = Index::with_capacity(vocabulary.len());
    // User-defined symbols are found before anything merges; but the space before a text may complete one.
    let used = vocabulary.ids_of(Kind::Text).chain(vocabulary.ids_of(Kind::UserDefined));
    for id in used {
        pieces.insert(id, raw);
    }
    // An unused character is as good as none. Nor can longer ones be made that only pad the vocabulary. Parts come
    // before what they make.
    let mut unused: Vec<(usize, u32)> = vocabulary
        .ids_of(Kind::Unused)
        .filter(|&id| raw(id).len() <= limits::UNUSED_PIECE_BYTES && pieces.find(raw(id), raw).is_none())
        .map(|id| (raw(id).len(), id))
        .collect();
    unused.sort_unstable();
    let mut falls_apart = false;
    for (_, id) in unused {
        if two_parts(raw(id), |part| pieces.find(part, raw).is_some()) {
            pieces.insert(id, raw);
            falls_apart = true;
        }
    }
    (pieces, falls_apart)
}

/// The tokens of one word's symbols.
struct Write<'a> {
    pieces: &'a SentencePiece,
    vocabulary: &'a Vocabulary,
    seams: &'a HashMap<u32, usize>,
    tokens: &'a mut Vec<TokenId>,
    after_unknown: &'a mut bool,
}

impl Write<'_> {
    /// Goes as deep as an unused piece has characters, at most [`limits::UNUSED_PIECE_BYTES`].
    fn symbol(&mut self, text: &str, token: u32) {
        if let Some(&seam) = self.seams.get(&token) {
            for part in [&text[..seam], &text[seam..]] {
                self.symbol(part, self.pieces.piece(part.as_bytes(), self.vocabulary).unwrap_or(NO_PIECE));
            }
            return;
        }
        let unknown = token == NO_PIECE && self.pieces.bytes.is_none();
        match &self.pieces.bytes {
            _ if token != NO_PIECE => self.tokens.push(TokenId(token)),
            Some(bytes) => self.tokens.extend(text.bytes().map(|byte| TokenId(bytes[usize::from(byte)]))),
            None if *self.after_unknown => {}
            None => self.tokens.extend(self.pieces.unknown.map(TokenId)),
        }
        *self.after_unknown = unknown;
    }
}

/// Ranks are in the order of the scores, the highest first, and equal for equal scores.
fn rank(score: f32) -> u32 {
    // -0 is 0. The bits of positive numbers are in their order, those of negative ones in the reverse one.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !bits & 0x7fff_ffff }
}

/// The byte that `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn one_character(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.chars().count() == 1)
}

/// Whether `text` can be cut into two parts, each a single character or a piece.
fn two_parts(text: &[u8], is_piece: impl Fn(&[u8]) -> bool) -> bool {
    let part = |part: &[u8]| is_piece(part) || one_character(part);
    (1..text.len()).any(|at| part(&text[..at]) && part(&text[at..]))
}
