//! The tokens of a vocabulary: their bytes, their kinds, and the way from bytes to a token.
//!
//! Owns: that memory, packed: a quarter of a million tokens take some 5 MB. Never: how text becomes tokens.

use super::tokenizer::TokenizerError;
use crate::limits;
use std::hash::{BuildHasher, Hasher, RandomState};

/// What a token stands for (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text: part of the vocabulary that guests constrain their output with.
    Text,
    /// One byte of text, in a vocabulary that is not made of bytes throughout.
    Byte,
    /// Found in text before anything else, printed verbatim: the marks of a conversation.
    Control,
    /// The same; whoever made the vocabulary asked that this text be one token.
    UserDefined,
    /// The same; and what stands for text that has no token.
    Unknown,
    /// Never made from text.
    Unused,
}

impl Kind {
    pub fn of(id: usize, number: i64) -> Result<Kind, TokenizerError> {
        Ok(match number {
            1 => Kind::Text,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            0 | 5 => Kind::Unused,
            6 => Kind::Byte,
            other => {
                let what = format!("token {id} has the unknown type {other}");
                return Err(TokenizerError::Vocabulary(what));
            }
        })
    }

    /// Whether the token is found in text by its spelling, before the text is cut.
    pub fn special(self) -> bool {
        matches!(self, Kind::Control | Kind::UserDefined | Kind::Unknown)
    }

    /// Whether the token is text that a model may write.
    pub fn text(self) -> bool {
        matches!(self, Kind::Text | Kind::Byte)
    }
}

/// All tokens by id.
pub(super) struct Vocabulary {
    text: Vec<u8>,    // raw bytes of all tokens, one after the other
    starts: Vec<u32>, // [tokens + 1], into `text`
    kinds: Vec<Kind>, // [tokens]
}

impl Vocabulary {
    /// An empty one with room for `tokens` tokens.
    pub fn with_capacity(tokens: usize) -> Vocabulary {
        let mut starts = Vec::with_capacity(tokens + 1);
        starts.push(0);
        Vocabulary { text: Vec::new(), starts, kinds: Vec::with_capacity(tokens) }
    }

    /// Adds the next token; `write` appends its bytes.
    pub fn push(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), TokenizerError> {
        write(&mut self.text);
        let end = u32::try_from(self.text.len())
            .map_err(|_| TokenizerError::Vocabulary("its text takes 4 GiB".to_owned()))?;
        self.starts.push(end);
        self.kinds.push(kind);
        Ok(())
    }

    /// Gives back what was reserved for more.
    pub fn finish(&mut self) {
        self.text.shrink_to_fit();
    }

    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Ids, ascending.
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.kinds.len() as u32
    }

    /// Ids of the tokens of this kind, ascending.
    pub fn ids_of(&self, kind: Kind) -> impl Iterator<Item = u32> {
        self.ids().filter(move |&id| self.kind(id) == kind)
    }

    /// The bytes of token `id`, below [`Vocabulary::len`].
    pub fn raw(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.text[self.starts[id] as usize..self.starts[id + 1] as usize]
    }

    pub fn kind(&self, id: u32) -> Kind {
        self.kinds[id as usize]
    }
}

/// Token ids by their bytes: open addressing without the bytes, which the vocabulary has. 5.3 bytes a token. Part of
/// the hash stands beside the id, so that text that is no token is known without a look at another token's bytes.
#[derive(Default)]
pub(super) struct Index {
    slots: Vec<u32>, // EMPTY or tag << ID_BITS | id
    seed: u64,
}

const EMPTY: u32 = u32::MAX;
/// Tags are below this, so that none looks like EMPTY.
const TAGS: u64 = (1 << (32 - ID_BITS)) - 1;
/// Bits of a token's id in the packed tables.
pub(super) const ID_BITS: u32 = 20;
const _: () = assert!(limits::MODEL_VOCAB <= 1 << ID_BITS);

impl Index {
    /// Room for `tokens` tokens, and no more may be inserted.
    pub fn with_capacity(tokens: usize) -> Index {
        Index { slots: vec![EMPTY; room(tokens)], seed: seed() }
    }

    /// A later token replaces an earlier one of the same bytes, as in the reference tokenizers: whether it did.
    pub fn insert<'a>(&mut self, id: u32, bytes_of: impl Fn(u32) -> &'a [u8]) -> bool {
        let (at, tag) = self.slot(bytes_of(id), bytes_of);
        std::mem::replace(&mut self.slots[at], tag | id) != EMPTY
    }

    /// The token with exactly these bytes.
    pub fn find<'a>(&self, bytes: &[u8], bytes_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let slot = *self.slots.get(self.slot(bytes, bytes_of).0)?;
        (slot != EMPTY).then_some(slot & ((1 << ID_BITS) - 1))
    }

    /// Where these bytes are, or else the empty place for them; and their tag.
    fn slot<'a>(&self, bytes: &[u8], bytes_of: impl Fn(u32) -> &'a [u8]) -> (usize, u32) {
        let hash = hash(self.seed, bytes);
        let tag = (((hash & u64::from(u32::MAX)) * TAGS) >> 32) as u32;
        let mut at = place(hash, self.slots.len());
        while let Some(&slot) = self.slots.get(at)
            && slot != EMPTY
            && (slot >> ID_BITS != tag || bytes_of(slot & ((1 << ID_BITS) - 1)) != bytes)
        {
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        (at, tag << ID_BITS)
    }
}

/// Slots for `entries` entries: a third more, so that a search ends soon, and one that stays empty.
pub(super) fn room(entries: usize) -> usize {
    entries + entries / 3 + 1
}

/// Maps a hash to one of `slots` slots, by its upper bits.
pub(super) fn place(hash: u64, slots: usize) -> usize {
    ((u128::from(hash) * slots as u128) >> 64) as usize
}

/// What a table's hashes begin with: nobody can make a file whose entries all want the same slot.
pub(super) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Mixes one word into a hash.
pub(super) fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word ^ 0x243f_6a88_85a3_08d3) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let begin = mix(seed, bytes.len() as u64);
    let hash = words.iter().fold(begin, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(last))
}

/// The tokens that are found in text by their spelling.
#[derive(Default)]
pub(super) struct Specials {
    ids: Vec<u32>,    // sorted by their bytes
    first: Vec<bool>, // [256], whether one begins with this byte; empty without any
    trim: Vec<u32>,   // those that take the white space after them along, ascending
}

impl Specials {
    /// Those of `ids` that have a spelling, of [`limits::SPECIAL_TOKEN_BYTES`] at most; of equal ones the last.
    pub fn new(vocabulary: &Vocabulary, ids: impl Iterator<Item = u32>) -> Specials {
        let found = |id: &u32| (1..=limits::SPECIAL_TOKEN_BYTES).contains(&vocabulary.raw(*id).len());
        let mut ids: Vec<u32> = ids.filter(found).collect();
        ids.sort_unstable_by_key(|&id| (vocabulary.raw(id), std::cmp::Reverse(id)));
        ids.dedup_by_key(|id| vocabulary.raw(*id));
        ids.shrink_to_fit();
        let mut first = vec![false; if ids.is_empty() { 0 } else { 256 }];
        for &id in &ids {
            first[usize::from(vocabulary.raw(id)[0])] = true;
        }
        Specials { ids, first, trim: Vec::new() }
    }

    /// Lets all but `exempt` take the white space after them along.
    pub fn trim_after(&mut self, vocabulary: &Vocabulary, exempt: &[&[u8]]) {
        let trimming = |id: &u32| !exempt.contains(&vocabulary.raw(*id));
        self.trim = self.ids.iter().copied().filter(trimming).collect();
        self.trim.sort_unstable();
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The one that is spelt exactly so.
    pub fn spelt(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> Option<u32> {
        let at = self.ids.binary_search_by_key(&bytes, |&id| vocabulary.raw(id)).ok()?;
        Some(self.ids[at])
    }

    /// Cuts `text` at the first of them, the longest where several begin: what stands before it, the token, what
    /// follows.
    pub fn cut<'t>(&self, vocabulary: &Vocabulary, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let bytes = text.as_bytes();
        let (at, id) = bytes.iter().enumerate().find_map(|(at, &byte)| {
            let begins = *self.first.get(usize::from(byte))?;
            Some((at, begins.then(|| self.longest(vocabulary, &bytes[at..])).flatten()?))
        })?;
        // Both ends are borders of characters, since a token's spelling is whole characters.
        let after = text.get(at + vocabulary.raw(id).len()..)?;
        let after = if self.trim.binary_search(&id).is_ok() { after.trim_start() } else { after };
        Some((text.get(..at)?, id, after))
    }

    /// The longest one at the start of `bytes`: narrows the sorted list byte by byte.
    fn longest(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> Option<u32> {
        let mut left = self.ids.as_slice();
        let mut longest = None;
        for (at, byte) in bytes.iter().enumerate() {
            let from = left.partition_point(|&id| vocabulary.raw(id).get(at) < Some(byte));
            let to = left.partition_point(|&id| vocabulary.raw(id).get(at) <= Some(byte));
            left = &left[from..to];
            // Of those that share a prefix the shortest sorts first.
            match left.first() {
                None => break,
                Some(&id) if vocabulary.raw(id).len() == at + 1 => longest = Some(id),
                Some(_) => {}
            }
        }
        longest
    }
}
