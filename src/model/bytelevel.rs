//! Byte-level BPE (`gpt2` in `tokenizer.ggml.model`): text is cut into words, and their bytes merge by a list.
//!
//! Owns: the letters that stand for bytes in such a vocabulary, and the bytes that start a word. Never: special
//! tokens, which stand outside of it.

use std::borrow::Cow;

use super::composed::composed;
use super::describe::one_line;
use super::gguf::Gguf;
use super::merge::{Encoding, Merge, Merges};
use super::split::PreTokenizer;
use super::tokenizer::{TokenizerError, damaged};
use super::vocabulary::{Index, Kind, Specials, Vocabulary};
use crate::backend::TokenId;

pub(super) struct ByteLevel {
    pub pre: &'static PreTokenizer,
    pub merges: Merges,
    /// The token of each single byte. A byte that the vocabulary lacks vanishes from the text, as in the reference
    /// tokenizer: real vocabularies lack only bytes that UTF-8 does not use or that their training text never had.
    bytes: [Option<u32>; 256],
    /// Words that are one token, whatever the merges say. Empty where the merges have the last word.
    whole: Index,
}

impl ByteLevel {
    /// Reads `tokenizer.ggml.*`; the special tokens come apart.
    pub fn read(
        gguf: &Gguf,
        tokens: &[&str],
        kinds: &[Kind],
    ) -> Result<(ByteLevel, Vocabulary, Specials), TokenizerError> {
        let name = gguf.str("tokenizer.ggml.pre")?;
        let pre = PreTokenizer::named(name).ok_or_else(|| TokenizerError::Splitter(one_line(name)))?;

        let alphabet = Alphabet::new();
        let mut vocabulary = Vocabulary::with_capacity(tokens.len());
        for (token, &kind) in tokens.iter().zip(kinds) {
            vocabulary.push(kind, |text| match kind.text() {
                true => alphabet.decode(token, text),
                false => text.extend_from_slice(token.as_bytes()),
            })?;
        }
        vocabulary.finish();

        // By their letters in the file. Of equal texts the last one counts.
        let letters = |id: u32| tokens[id as usize].as_bytes();
        let mut index = Index::with_capacity(tokens.len());
        let repeated = vocabulary.ids().filter(|&id| index.insert(id, letters)).count() > 0;
        let lasting = |id: u32| index.find(letters(id), letters) == Some(id);

        let listed = gguf.strings("tokenizer.ggml.merges")?;
        let mut merges = Merges::with_capacity(listed.len());
        let mut made = 0; // the last merge's product
        for (rank, merge) in listed.into_iter().enumerate() {
            let parts = merge.split_once(' ').filter(|(_, right)| !right.contains(' '));
            let Some((left, right)) = parts else {
                return damaged(format!("merge {rank}, `{}`, is not two tokens", one_line(merge)));
            };
            let find = |part: &str| match index.find(part.as_bytes(), letters) {
                Some(id) => Ok(id),
                None => {
                    let (merge, part) = (one_line(merge), one_line(part));
                    damaged(format!("merge {rank}, `{merge}`, needs the missing token `{part}`"))
                }
            };
            // Before their text is joined: what is no token may be as long as the file.
            let (first, second) = (find(left)?, find(right)?);
            // Tokens mostly stand in the order of the merges that make them: a look at the next one is faster than a
            // search, which misses every cache.
            let is_product = |&id: &u32| {
                let token = tokens.get(id as usize).and_then(|token| token.strip_prefix(left));
                !repeated && token == Some(right)
            };
            let product = match [made, made + 1].into_iter().find(is_product) {
                Some(id) => id,
                None => find(&[left, right].concat())?,
            };
            made = product;
            merges.insert(first, second, Merge { rank: rank as u32, product });
        }

        let mut bytes = [None; 256];
        for (byte, letter) in alphabet.letters.iter().enumerate() {
            bytes[byte] = index.find(letter.encode_utf8(&mut [0; 4]).as_bytes(), letters);
        }
        let mut whole = Index::default();
        if pre.whole_words {
            whole = Index::with_capacity(vocabulary.ids_of(Kind::Text).count());
            for id in vocabulary.ids_of(Kind::Text) {
                whole.insert(id, |id| vocabulary.raw(id));
            }
        }
        // A token that another one of the same text replaces is no special one either.
        let special = vocabulary.ids().filter(|&id| kinds[id as usize].special() && lasting(id));
        let special = Specials::new(&vocabulary, special);
        Ok((ByteLevel { pre, merges, bytes, whole }, vocabulary, special))
    }

    /// Appends the tokens of a text without special tokens.
    pub fn encode(&self, text: &str, vocabulary: &Vocabulary, out: &mut Encoding<'_>) {
        let text = if self.pre.composes { composed(text) } else { Cow::Borrowed(text) };
        self.pre.splitter.split(&text, |word| {
            if let Some(id) = self.whole.find(word.as_bytes(), |id| vocabulary.raw(id)) {
                return out.push(id);
            }
            out.word(word.len(), |symbols, tokens| {
                let first = word.bytes().filter_map(|byte| self.bytes[usize::from(byte)]);
                first.for_each(|token| symbols.push(token, 1));
                symbols.merge(|pair| self.merges.of(pair.left, pair.right), |_, _| {});
                tokens.extend(symbols.symbols().map(|(_, token)| TokenId(token)));
            });
        });
    }
}

/// The letters of a byte-level vocabulary in the order of the bytes they stand for.
pub fn letters() -> [char; 256] {
    Alphabet::new().letters
}

/// The printable letters that stand for the 256 bytes in a byte-level vocabulary: a byte that is printable in
/// Latin-1 stands for itself, the others take the letters from U+0100 on, in order.
struct Alphabet {
    letters: [char; 256],
    bytes: [Option<u8>; LETTERS], // by letter
}

/// The last letter is U+0143: 68 bytes are not printable.
const LETTERS: usize = 0x144;

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
        let mut bytes = [None; LETTERS];
        for (byte, &letter) in letters.iter().enumerate() {
            bytes[letter as usize] = Some(byte as u8);
        }
        Alphabet { letters, bytes }
    }

    /// Appends the bytes that `token` stands for; a token with any other letter stands for itself.
    fn decode(&self, token: &str, to: &mut Vec<u8>) {
        let start = to.len();
        for letter in token.chars() {
            match self.bytes.get(letter as usize).copied().flatten() {
                Some(byte) => to.push(byte),
                None => {
                    to.truncate(start);
                    to.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}
