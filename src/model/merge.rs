//! Byte-pair merging: the tokens of one word.
//!
//! Owns: the merge table and the order of merges (lowest rank first, leftmost among equals). Never: how text becomes
//! words, nor what a token's bytes are.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// Which two neighbouring tokens become which third, and how early.
#[derive(Default)]
pub(super) struct Merges {
    table: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>, // (left, right) -> merge
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    product: u32,
}

/// Buffers that one text's words share. 12 bytes per symbol and 12 per pair that may merge, at most 3 pairs per
/// symbol: 48 bytes per byte of the longest word.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>, // (rank, position of the left symbol, product)
}

/// A token of the word so far, in a doubly linked list over positions.
struct Symbol {
    token: u32, // GONE once merged into its left neighbour
    left: u32,  // END: none
    right: u32, // END: none
}

const END: u32 = u32::MAX;
const GONE: u32 = u32::MAX;

impl Merges {
    /// A later merge of the same pair replaces an earlier one, as in the reference tokenizer.
    pub fn insert(&mut self, left: u32, right: u32, rank: u32, product: u32) {
        self.table.insert(pair(left, right), Merge { rank, product });
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    fn of(&self, left: u32, right: u32) -> Option<Merge> {
        self.table.get(&pair(left, right)).copied()
    }

    /// Calls `emit` with the tokens of a word that starts as `first`, in order. O(n log n) for n symbols, however
    /// long the word is.
    pub fn tokens(&self, first: impl Iterator<Item = u32>, scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
        let Scratch { symbols, queue } = scratch;
        symbols.clear();
        queue.clear();
        for (at, token) in first.enumerate() {
            let at = at as u32;
            symbols.push(Symbol { token, left: at.wrapping_sub(1), right: at + 1 });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.right = END;
        for (at, two) in symbols.windows(2).enumerate() {
            if let Some(Merge { rank, product }) = self.of(two[0].token, two[1].token) {
                queue.push(Reverse((rank, at as u32, product)));
            }
        }
        while let Some(Reverse((_, at, product))) = queue.pop() {
            let Symbol { token, left, right } = symbols[at as usize];
            if token == GONE || right == END {
                continue;
            }
            // The pair may have changed since it was queued.
            let next = &mut symbols[right as usize];
            if self.of(token, next.token).is_none_or(|merge| merge.product != product) {
                continue;
            }
            next.token = GONE;
            let after = next.right;
            symbols[at as usize] = Symbol { token: product, left, right: after };
            if after != END {
                symbols[after as usize].left = at;
                if let Some(Merge { rank, product }) = self.of(product, symbols[after as usize].token) {
                    queue.push(Reverse((rank, at, product)));
                }
            }
            if left != END
                && let Some(Merge { rank, product }) = self.of(symbols[left as usize].token, product)
            {
                queue.push(Reverse((rank, left, product)));
            }
        }
        // The first symbol is never merged into a left neighbour.
        let mut at = 0;
        while at != END {
            let symbol = &symbols[at as usize];
            emit(symbol.token);
            at = symbol.right;
        }
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// One multiplication: the keys are two small numbers from the model's own file, and this is the inner loop.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        let mixed = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}
