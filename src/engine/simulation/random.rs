//! What a seed decides: numbers, choices, and well-formed passes of whoever holds some pages.
//!
//! Owns: the generator. Never: the machine's randomness; the same seed makes the same choices everywhere.

use super::fake::mix;
use crate::backend::{Mask, Sampler, TokenId};
use crate::engine::operation::{Kind, Pass, PassInput, PassOutput, VirtualId};

/// Slots in a page of the simulated box.
pub const PAGE: u32 = 4;

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

/// What a guest can name.
#[derive(Default)]
pub struct Held {
    pub pages: Vec<VirtualId>,
    pub embeds: Vec<VirtualId>,
    /// Of the embeds, those that have been written.
    pub written: Vec<VirtualId>,
}

impl Random {
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0, 77) % u64::from(bound)) as u32
    }

    /// Another one, whose choices have nothing to do with what this one still chooses.
    pub fn split(&mut self) -> Random {
        Random(u64::from(self.below(u32::MAX)) << 20)
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.below(items.len() as u32) as usize])
    }

    /// One or more of these, up to `most`, in any order; none of none.
    pub fn some<T: Clone>(&mut self, items: &[T], most: u32) -> Vec<T> {
        let mut left = items.to_vec();
        let count = (1 + self.below(most)).min(left.len() as u32);
        (0..count).map(|_| left.swap_remove(self.below(left.len() as u32) as usize)).collect()
    }

    pub fn kind(&mut self) -> Kind {
        if self.one_in(4) { Kind::Embed } else { Kind::Page }
    }

    pub fn name(&mut self) -> String {
        ["x", "y", "z"][self.below(3) as usize].into()
    }

    /// Run lengths that sum to `total`.
    fn runs(&mut self, total: u32) -> Vec<u32> {
        let (mut left, mut runs) = (total, Vec::new());
        while left > 0 {
            let run = self.below(left + 1);
            runs.push(run);
            left -= run;
        }
        let attends = runs.iter().step_by(2).any(|&run| run > 0);
        if attends { runs } else { vec![total] } // A row that attends nothing is malformed.
    }

    /// A token that is nearly always the same: guests compute what others have.
    fn common_token(&mut self) -> PassInput {
        PassInput::Token(TokenId(u32::from(self.one_in(12))))
    }

    fn common_position(&mut self, slot: u32) -> u32 {
        slot % PAGE + u32::from(self.one_in(40))
    }

    /// A pass of common rows that fill pages, from slot `context` of `pages` on.
    pub fn prompt(&mut self, pages: Vec<VirtualId>, context: u32) -> Pass {
        let spare = if self.one_in(4) { self.below(PAGE) } else { 0 };
        let len = PAGE * pages.len() as u32 - spare;
        let rows = len - context;
        let inputs = (0..rows).map(|_| self.common_token()).collect();
        let positions = (context..len).map(|slot| self.common_position(slot)).collect();
        let sampler = Sampler::Multinomial { temperature: 1.0 };
        let outputs = match self.below(4) {
            0 => Vec::new(),
            _ => vec![PassOutput::Token { row: rows - 1, sampler }],
        };
        Pass { pages, len, inputs, positions, mask: Mask::Causal, outputs }
    }

    /// A well-formed pass on what its guest holds, in a pool of `capacity` pages; none without a page. `common`: of rows
    /// that others may have computed.
    pub fn pass(&mut self, held: &Held, capacity: u32, common: bool) -> Option<Pass> {
        let mut pages = self.some(&held.pages, 5);
        let count = pages.len() as u32;
        if count == 0 {
            return None;
        }
        let len = PAGE * (count - 1) + 1 + self.below(PAGE);
        let rows = match self.below(4) {
            0 if common => len,
            0 | 1 if !common => 1,
            _ => 1 + self.below(len.min(14)),
        };
        let context = len - rows;
        if context >= 2 * PAGE && self.one_in(4) {
            pages[0] = pages[1]; // Seen twice, which is odd and allowed.
        }
        let (mut len, mut context) = (len, context);
        if context >= PAGE && self.one_in(6) {
            let room = capacity - count; // No more pages than there are, repeats counted.
            let again = self.below(room.min(9) + 1);
            pages.splice(0..0, vec![pages[0]; again as usize]);
            (len, context) = (len + again * PAGE, context + again * PAGE);
        }
        let input = |random: &mut Random| match random.pick(&held.written) {
            _ if common => random.common_token(),
            Some(&id) if random.one_in(3) => PassInput::Embed(id),
            _ => PassInput::Token(TokenId(random.below(100))),
        };
        let inputs = (0..rows).map(|_| input(self)).collect();
        let position = |random: &mut Random, slot| match common {
            true => random.common_position(slot),
            false => random.below(1000),
        };
        let positions = (context..len).map(|slot| position(self, slot)).collect();
        let causal = if common { !self.one_in(8) } else { self.one_in(2) };
        let mask = if causal {
            Mask::Causal
        } else {
            Mask::Runs((0..rows).map(|row| self.runs(context + row + 1)).collect())
        };
        let mut free = held.embeds.clone();
        let outputs = (0..self.below(4)).filter_map(|_| {
            let row = self.below(rows);
            match self.below(3) {
                0 => {
                    let sampler = Sampler::Multinomial { temperature: 1.0 };
                    Some(PassOutput::Token { row, sampler })
                }
                1 => Some(PassOutput::Distribution { row, temperature: 1.0, top_k: 1 }),
                _ => free.pop().map(|to| PassOutput::Embed { row, to }),
            }
        });
        let outputs = outputs.collect();
        Some(Pass { pages, len, inputs, positions, mask, outputs })
    }
}
