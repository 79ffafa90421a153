//! Byte-pair merging: the tokens of one word.
//!
//! Owns: the order of merges (lowest rank first, leftmost among equals) and the table of a vocabulary that lists its
//! merges. Never: how text becomes words, nor what a token's bytes are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::vocabulary::{ID_BITS, mix, place, room, seed};
use crate::backend::TokenId;
use crate::limits;

/// What two neighbours become, and how early: lower ranks first.
#[derive(Clone, Copy)]
pub(super) struct Merge {
    pub rank: u32,
    pub product: u32,
}

/// Two neighbouring symbols of a word.
#[derive(Clone)]
pub(super) struct Pair {
    pub left: u32,
    pub right: u32,
    /// Where the second one begins.
    pub middle: usize,
    /// The positions that both take.
    pub span: Range<usize>,
}

/// Which two neighbouring tokens become which third: 16 bytes a merge.
pub(super) struct Merges {
    keys: Vec<u64>,  // left, right, product: 20 bits each; EMPTY: none
    ranks: Vec<u32>, // [keys]
    len: usize,
    seed: u64,
}

const EMPTY: u64 = u64::MAX;

impl Merges {
    /// Room for `merges` merges, and no more may be inserted.
    pub fn with_capacity(merges: usize) -> Merges {
        Merges { keys: vec![EMPTY; room(merges)], ranks: vec![0; room(merges)], len: 0, seed: seed() }
    }

    /// A later merge of the same pair replaces an earlier one, as in the reference tokenizer.
    pub fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let at = self.slot(left, right);
        self.len += usize::from(self.keys[at] == EMPTY);
        self.keys[at] = pair(left, right) << ID_BITS | u64::from(merge.product);
        self.ranks[at] = merge.rank;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn of(&self, left: u32, right: u32) -> Option<Merge> {
        let at = self.slot(left, right);
        let key = self.keys[at];
        let product = (key & ((1 << ID_BITS) - 1)) as u32;
        (key != EMPTY).then(|| Merge { rank: self.ranks[at], product })
    }

    /// Where this pair is, or else the empty place for it.
    fn slot(&self, left: u32, right: u32) -> usize {
        let pair = pair(left, right);
        let mut at = place(mix(self.seed, pair), self.keys.len());
        while self.keys[at] != EMPTY && self.keys[at] >> ID_BITS != pair {
            at = if at + 1 == self.keys.len() { 0 } else { at + 1 };
        }
        at
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

/// One word while it is merged. 12 bytes per position and 12 per pair that may merge, at most 3 pairs per position:
/// 48 bytes per byte of the word.
#[derive(Default)]
pub(super) struct Word {
    symbols: Vec<Symbol>,                        // by position
    last: u32,                                   // position of the last symbol
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>, // (rank, position of the left symbol, product)
}

/// A token of the word so far, in a doubly linked list over positions.
struct Symbol {
    token: u32, // GONE once merged into its left neighbour
    left: u32,  // NONE: it is the first
    right: u32, // as long as the word: it is the last
}

const GONE: u32 = u32::MAX;
const NONE: u32 = u32::MAX;

impl Word {
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Adds a symbol that takes `width` positions, at least 1.
    pub fn push(&mut self, token: u32, width: usize) {
        let at = self.symbols.len() as u32;
        let left = if at == 0 { NONE } else { self.last };
        self.symbols.push(Symbol { token, left, right: at + width as u32 });
        for _ in 1..width {
            self.symbols.push(Symbol { token: GONE, left: NONE, right: NONE });
        }
        self.last = at;
    }

    /// Merges until nothing is left to merge: O(n log n) for n symbols, however long the word is. `of` knows the
    /// merges; `queued` hears of each pair that may be merged.
    pub fn merge(&mut self, of: impl Fn(&Pair) -> Option<Merge>, mut queued: impl FnMut(&Pair, Merge)) {
        let end = self.symbols.len() as u32;
        let mut at = 0;
        while at < end {
            self.queue(at, &of, &mut queued);
            at = self.symbols[at as usize].right;
        }
        while let Some(Reverse((_, at, product))) = self.queue.pop() {
            // The pair may have changed since it was queued.
            let Some(pair) = self.pair(at) else { continue };
            if of(&pair).is_none_or(|merge| merge.product != product) {
                continue;
            }
            self.symbols[pair.middle].token = GONE;
            let after = self.symbols[pair.middle].right;
            let symbol = &mut self.symbols[at as usize];
            let left = symbol.left;
            (symbol.token, symbol.right) = (product, after);
            if after != end {
                self.symbols[after as usize].left = at;
                self.queue(at, &of, &mut queued);
            }
            if left != NONE {
                self.queue(left, &of, &mut queued);
            }
        }
    }

    /// The symbols from left to right: the positions each takes, and its token.
    pub fn symbols(&self) -> impl Iterator<Item = (Range<usize>, u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let symbol = self.symbols.get(at)?;
            let span = at..symbol.right as usize;
            at = span.end;
            Some((span, symbol.token))
        })
    }

    fn queue(
        &mut self,
        at: u32,
        of: &impl Fn(&Pair) -> Option<Merge>,
        queued: &mut impl FnMut(&Pair, Merge),
    ) {
        if let Some(pair) = self.pair(at)
            && let Some(merge) = of(&pair)
        {
            queued(&pair, merge);
            self.queue.push(Reverse((merge.rank, at, merge.product)));
        }
    }

    /// The symbol at `at` and its right neighbour, if both are there.
    fn pair(&self, at: u32) -> Option<Pair> {
        let left = &self.symbols[at as usize];
        if left.token == GONE {
            return None;
        }
        let right = self.symbols.get(left.right as usize)?;
        Some(Pair {
            left: left.token,
            right: right.token,
            middle: left.right as usize,
            span: at as usize..right.right as usize,
        })
    }
}

/// The tokens of a text so far, and the buffers that its words share.
pub(super) struct Encoding<'a> {
    pub tokens: Vec<TokenId>,
    word: Word,
    long_word: &'a Mutex<()>,
}

impl<'a> Encoding<'a> {
    pub fn new(long_word: &'a Mutex<()>) -> Encoding<'a> {
        Encoding { tokens: Vec::new(), word: Word::default(), long_word }
    }

    pub fn push(&mut self, id: u32) {
        self.tokens.push(TokenId(id));
    }

    /// Has `work` merge a word of `len` bytes. Those longer than [`limits::SHORT_WORD_BYTES`] wait for each other:
    /// many guests could ask at once, and the memory for one is 48 times its length.
    pub fn word(&mut self, len: usize, work: impl FnOnce(&mut Word, &mut Vec<TokenId>)) {
        if len <= limits::SHORT_WORD_BYTES {
            self.word.clear();
            return work(&mut self.word, &mut self.tokens);
        }
        let _turn = self.long_word.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut Word::default(), &mut self.tokens);
    }
}
