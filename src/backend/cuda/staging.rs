//! What a step is told: one block of the host's memory, one copy to the device.
//!
//! Owns: where in the block what stands, and what is written there of a batch. Never: a launch, nor what a row computes.
//!
//! ```text
//! turns   {f32 cos, f32 sin} [kind of turns][row][pair]
//! draws   48 bytes [head row]                          rows that become a token, then those that become a distribution
//! rows    {u32 table, length, first, mask} [window][row]
//! tiles   {u32 row, count} [tile]
//! inputs  u32 [row]: a token, or an embedding slot     slots   u32 [row]: where its keys and values go
//! chosen  u32 [head row]: which row                    counts  u32 [distribution]
//! to      u32 [stored row]: an embedding slot          from    u32 [stored row]
//! tail    u32: page tables and masks, where `rows` say
//! ```
//! Where a part begins follows from the step's sizes alone; only the tail's length is the batch's. So a graph that was
//! recorded for these sizes finds everything again.

use super::draw::{RECORD, record};
use super::pieces::{FEW_ROWS, Piece, behind, slots_of, words_of};
use super::plan::{PAGE, SPLIT};
use super::{Error, Pinned};
use crate::backend::{Batch, EmbedId, Input, Mask, Output, Sampler, sample};
use crate::limits::GPU_HEAD_ROWS;
use std::ops::Range;

/// Bit of an input that names an embedding slot.
const IS_EMBED: u32 = 1 << 31;
/// A row without a mask.
const NO_MASK: u32 = u32::MAX;
/// Parts begin at multiples of this.
const ALIGNED: usize = 16;

/// How rows differ from layer to layer.
pub(super) struct Kinds {
    /// Radians by which one position turns each pair of a head.
    pub turns: Vec<Vec<f64>>,
    /// What cosines and sines are multiplied by.
    pub scale: f32,
    /// Slots that a row sees at most.
    pub windows: Vec<Option<usize>>,
}

impl Kinds {
    /// Bytes of one kind of turns of one row.
    fn turn_bytes(&self) -> usize {
        self.turns.first().map_or(0, Vec::len) * 8
    }
}

/// What the launches of a step follow from, all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Rows that go through the layers; 0: they have gone before, and only the head is left.
    pub rows: usize,
    /// Of these the first, which attention takes one by one.
    pub few: usize,
    /// Tiles that it takes the others in.
    pub tiles: usize,
    /// Splits of the longest row, rounded up so that few numbers occur.
    pub splits: usize,
    /// Head rows that become tokens.
    pub tokens: usize,
    /// Head rows behind them that become distributions.
    pub tops: usize,
    /// Entries of each distribution that there is room for.
    pub entries: usize,
    /// Rows that are stored in embedding slots.
    pub stored: usize,
}

impl Sizes {
    pub fn head_rows(&self) -> usize {
        self.tokens + self.tops
    }

    /// Rows that one launch of attention takes, with scratch for so many splits.
    pub fn rows_at_once(&self, room: usize) -> usize {
        match self.splits {
            0 | 1 => usize::MAX, // they leave nothing to be joined
            some => (room / some).max(1),
        }
    }
}

/// Rows of one sequence that share pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// The first, in the step.
    pub row: usize,
    pub count: usize,
}

/// The rows behind the first `few` in tiles of so many rows at most, which no two sequences share.
pub(super) fn tiles(pieces: &[Piece], few: usize, most: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut first = 0;
    for piece in pieces {
        let end = first + piece.rows.len();
        if first >= few {
            let rows = (first..end).step_by(most.max(1));
            tiles.extend(rows.map(|row| Tile { row, count: most.min(end - row) }));
        }
        first = end;
    }
    tiles
}

/// Where the parts of a block begin, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub turns: usize,
    /// From one kind of turns to the next.
    pub turns_stride: usize,
    pub draws: usize,
    pub rows: usize,
    /// From one window to the next.
    pub rows_stride: usize,
    pub tiles: usize,
    pub inputs: usize,
    pub slots: usize,
    pub chosen: usize,
    pub counts: usize,
    pub to: usize,
    pub from: usize,
    pub tail: usize,
}

impl Places {
    pub fn of(sizes: &Sizes, kinds: &Kinds) -> Places {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let begin = end;
            end += bytes.next_multiple_of(ALIGNED);
            begin
        };
        let (turns_stride, rows_stride) = (sizes.rows * kinds.turn_bytes(), sizes.rows * 16);
        Places {
            turns: take(turns_stride * kinds.turns.len()),
            turns_stride,
            draws: take(sizes.head_rows() * RECORD),
            rows: take(rows_stride * kinds.windows.len()),
            rows_stride,
            tiles: take(sizes.tiles * 8),
            inputs: take(sizes.rows * 4),
            slots: take(sizes.rows * 4),
            chosen: take(sizes.head_rows() * 4),
            counts: take(sizes.tops * 4),
            to: take(sizes.stored * 4),
            from: take(sizes.stored * 4),
            tail: take(0),
        }
    }
}

/// Bytes of a block without its tail, of so many rows.
pub(super) fn least_bytes(kinds: &Kinds, rows: usize) -> usize {
    let tops = GPU_HEAD_ROWS;
    let sizes = Sizes { rows, few: 0, tiles: rows, splits: 0, tokens: 0, tops, entries: 0, stored: rows };
    Places::of(&sizes, kinds).tail
}

/// One thing wanted of a row's logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// In the step.
    row: u32,
    /// Whose it is: a sequence of the batch, and the number of what that sequence yields.
    pub sequence: usize,
    pub number: usize,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Token { sampler: Sampler, random: u64 },
    Top { temperature: f32, k: u32 },
}

/// What a step makes: tokens before distributions, and rows to store.
#[derive(Default)]
pub(super) struct Wants {
    pub list: Vec<Want>,
    /// Rows of the step and where they go; the last one for a slot.
    pub stored: Vec<(u32, EmbedId)>,
}

impl Wants {
    /// Takes note of what is wanted of the rows of `pieces`, in the batch's order.
    pub fn note(&mut self, batch: &Batch, pieces: &[Piece]) {
        self.list.clear();
        self.stored.clear();
        let mut end = 0;
        let begin = |piece: &Piece| {
            end += piece.rows.len();
            end - piece.rows.len()
        };
        let mut ordered: Vec<(usize, &Piece)> = pieces.iter().map(begin).zip(pieces).collect();
        ordered.sort_by_key(|(_, piece)| piece.sequence);
        for (first, Piece { sequence, rows }) in ordered {
            let part = &batch.sequences[*sequence];
            let mut yields = 0;
            for output in &part.outputs {
                let (row, what) = match *output {
                    Output::Token { row, sampler, ordinal } => {
                        (row, Some(What::Token { sampler, random: sample::random(part.draw, ordinal) }))
                    }
                    Output::Distribution { row, temperature, top_k } => {
                        (row, Some(What::Top { temperature, k: top_k }))
                    }
                    Output::Embed { row, .. } => (row, None),
                };
                let number = yields;
                yields += usize::from(what.is_some());
                if !rows.contains(&(row as usize)) {
                    continue;
                }
                let row = (first + row as usize - rows.start) as u32;
                match (what, output) {
                    (Some(what), _) => self.list.push(Want { row, sequence: *sequence, number, what }),
                    (None, Output::Embed { to, .. }) => {
                        self.stored.retain(|(_, before)| before != to);
                        self.stored.push((row, *to));
                    }
                    _ => {}
                }
            }
        }
        behind(&mut self.list, |want| matches!(want.what, What::Top { .. }));
    }
}

/// The block in the host's memory.
pub(super) struct Staging {
    block: Pinned,
}

impl Staging {
    pub fn new(block: Pinned) -> Staging {
        Staging { block }
    }

    pub fn block(&self) -> &Pinned {
        &self.block
    }

    /// The sizes of a step of these pieces (none: its rows have gone through the layers before) that makes `wants`, with
    /// room for `splits` at most and no tiles yet.
    pub fn sizes(batch: &Batch, pieces: &[Piece], wants: &[Want], stored: usize, splits: usize) -> Sizes {
        let tops = wants.iter().filter_map(|want| match want.what {
            What::Top { k, .. } => Some(k as usize),
            What::Token { .. } => None,
        });
        let longest = |piece: &Piece| slots_of(&batch.sequences[piece.sequence], piece.rows.end - 1);
        let longest = pieces.iter().map(longest).max().unwrap_or(0);
        Sizes {
            rows: pieces.iter().map(|piece| piece.rows.len()).sum(),
            few: pieces.iter().map(|piece| piece.rows.len()).filter(|rows| *rows <= FEW_ROWS).sum(),
            tiles: 0,
            splits: longest.div_ceil(SPLIT).next_power_of_two().min(splits),
            tokens: wants.len() - tops.clone().count(),
            tops: tops.clone().count(),
            entries: tops.max().map_or(0, |k| k.max(1).next_power_of_two()),
            stored,
        }
    }

    /// Writes all that a step of these sizes is told; returns how many bytes that takes.
    pub fn fill(
        &mut self,
        batch: &Batch,
        (pieces, tiles): (&[Piece], &[Tile]),
        (wants, stored): (&[Want], &[(u32, EmbedId)]),
        sizes: &Sizes,
        kinds: &Kinds,
    ) -> Result<usize, Error> {
        let places = Places::of(sizes, kinds);
        let room = self.block.len();
        let wrong = || Error::Launch {
            kernel: "staging".to_owned(),
            why: format!("a step has more than {room} bytes"),
        };
        let words: usize =
            pieces.iter().map(|piece| words_of(&batch.sequences[piece.sequence], piece.rows.clone())).sum();
        let bytes = places.tail + words * 4;
        let mut block = Block(self.block.get_mut(..bytes).ok_or_else(wrong)?);
        let (mut number, mut tail) = (0, 0);
        for Piece { sequence, rows } in pieces {
            let part = &batch.sequences[*sequence];
            let table = tail;
            let pages = &part.pages[..slots_of(part, rows.end - 1).div_ceil(PAGE)];
            for page in pages {
                block.put(places.tail, tail, page.0);
                tail += 1;
            }
            for row in rows.clone() {
                let length = slots_of(part, row);
                let slot = length - 1;
                let mask = match &part.mask {
                    Mask::Runs(runs) if hides(&runs[row]) => {
                        let begin = tail;
                        tail += length.div_ceil(32);
                        block.bits(places.tail + begin * 4..places.tail + tail * 4, &runs[row]);
                        begin as u32
                    }
                    _ => NO_MASK,
                };
                block.put(
                    places.inputs,
                    number,
                    match part.inputs[row] {
                        Input::Token(token) => token.0,
                        Input::Embed(slot) => IS_EMBED | slot.0,
                    },
                );
                let page = part.pages[slot / PAGE].0;
                block.put(places.slots, number, page * PAGE as u32 + (slot % PAGE) as u32);
                for (kind, window) in kinds.windows.iter().enumerate() {
                    let first = window.map_or(0, |window| length.saturating_sub(window));
                    let words = [table as u32, length as u32, first as u32, mask];
                    for (at, word) in words.into_iter().enumerate() {
                        block.put(places.rows + kind * places.rows_stride, number * 4 + at, word);
                    }
                }
                for (kind, turns) in kinds.turns.iter().enumerate() {
                    let place = places.turns + kind * places.turns_stride + number * kinds.turn_bytes();
                    block.turns(place, part.positions[row], turns, kinds.scale);
                }
                number += 1;
            }
        }
        for (at, tile) in tiles.iter().enumerate() {
            block.put(places.tiles, 2 * at, tile.row as u32);
            block.put(places.tiles, 2 * at + 1, tile.count as u32);
        }
        for (at, want) in wants.iter().enumerate() {
            let drawn = match want.what {
                What::Token { sampler, random } => record(sampler, random),
                What::Top { temperature, k } => {
                    block.put(places.counts, at - sizes.tokens, k);
                    record(Sampler::Multinomial { temperature }, 0)
                }
            };
            block.0[places.draws + at * RECORD..][..RECORD].copy_from_slice(&drawn);
            block.put(places.chosen, at, want.row);
        }
        for (at, (row, to)) in stored.iter().enumerate() {
            block.put(places.to, at, to.0);
            block.put(places.from, at, *row);
        }
        Ok(places.tail + tail * 4)
    }
}

/// Whether a row's runs hide anything.
fn hides(runs: &[u32]) -> bool {
    runs.iter().skip(1).step_by(2).any(|run| *run > 0)
}

/// The bytes that are being written.
struct Block<'a>(&'a mut [u8]);

impl Block<'_> {
    /// Word `number` of the part at `place`.
    fn put(&mut self, place: usize, number: usize, word: u32) {
        self.0[place + number * 4..][..4].copy_from_slice(&word.to_le_bytes());
    }

    /// A bit for each slot: runs that are seen and hidden in turn.
    fn bits(&mut self, bytes: Range<usize>, runs: &[u32]) {
        let bytes = &mut self.0[bytes];
        bytes.fill(0);
        let mut slot = 0usize;
        for (number, run) in runs.iter().enumerate() {
            let end = slot + *run as usize;
            if number % 2 == 0 {
                set(bytes, slot..end);
            }
            slot = end;
        }
    }

    /// cos and sin of each pair's angle; computed in f64: any u32 is a fair position.
    fn turns(&mut self, place: usize, position: u32, turns: &[f64], scale: f32) {
        let to = self.0[place..][..turns.len() * 8].as_chunks_mut::<8>().0;
        for (to, turn) in to.iter_mut().zip(turns) {
            let (sin, cos) = (f64::from(position) * turn).sin_cos();
            let both = [cos, sin].map(|it| ((it * f64::from(scale)) as f32).to_le_bytes());
            to.copy_from_slice(both.as_flattened());
        }
    }
}

/// Sets the bits of a range, whole bytes at once.
fn set(bytes: &mut [u8], bits: Range<usize>) {
    let (first, last) = (bits.start.next_multiple_of(8).min(bits.end), bits.end / 8 * 8);
    for bit in (bits.start..first).chain(last.max(first)..bits.end) {
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    if first < last {
        bytes[first / 8..last / 8].fill(u8::MAX);
    }
}

// One draw is where the kernels look for it, whichever is the first.
const _: () = assert!(RECORD.is_multiple_of(ALIGNED));

#[cfg(test)]
mod tests {
    use super::super::pieces::steps;
    use super::super::pieces::tests::{piece, sequence};
    use super::*;

    #[test]
    fn tokens_come_before_distributions_and_the_last_one_is_stored() {
        let greedy =
            |row| Output::Token { row, sampler: Sampler::Multinomial { temperature: 0.0 }, ordinal: row };
        let outputs = vec![
            Output::Distribution { row: 1, temperature: 1.0, top_k: 5 },
            greedy(0),
            Output::Embed { row: 0, to: EmbedId(4) },
            greedy(2),
            Output::Embed { row: 2, to: EmbedId(4) },
        ];
        let sequences = vec![sequence(4, 2, Mask::Causal, Vec::new()), sequence(3, 3, Mask::Causal, outputs)];
        let batch = Batch { sequences };
        let mut wants = Wants::default();
        let pieces = [piece(0, 0..2), piece(1, 0..3)];
        wants.note(&batch, &pieces);
        let told: Vec<_> = wants.list.iter().map(|want| (want.row, want.sequence, want.number)).collect();
        assert_eq!(told, [(2, 1, 1), (4, 1, 2), (3, 1, 0)]);
        assert_eq!(wants.stored, [(4, EmbedId(4))]);
        let sizes = Staging::sizes(&batch, &pieces, &wants.list, wants.stored.len(), 64);
        assert_eq!(
            sizes,
            Sizes { rows: 5, few: 5, tiles: 0, splits: 1, tokens: 2, tops: 1, entries: 8, stored: 1 }
        );
        // What another step has is not this one's.
        wants.note(&batch, &[piece(1, 1..2)]);
        let told: Vec<_> = wants.list.iter().map(|want| (want.row, want.sequence, want.number)).collect();
        assert_eq!((told, wants.stored.len()), (vec![(0, 1, 0)], 0));
        // What comes last in the batch is stored, not what comes last in the step.
        let stores = |len| vec![Output::Embed { row: len as u32 - 1, to: EmbedId(4) }];
        let batch =
            Batch { sequences: [2, 20, 3].map(|len| sequence(len, len, Mask::Causal, stores(len))).into() };
        let step = steps(&batch, 64, 1000).remove(0);
        assert_eq!(step, [piece(0, 0..2), piece(2, 0..3), piece(1, 0..20)]);
        wants.note(&batch, &step);
        assert_eq!(wants.stored, [(4, EmbedId(4))]);
    }

    #[test]
    fn tiles_have_rows_of_one_sequence() {
        let pieces = [piece(1, 0..8), piece(4, 3..4), piece(0, 0..20), piece(2, 5..14)];
        let batch = Batch { sequences: (0..5).map(|_| sequence(60, 60, Mask::Causal, Vec::new())).collect() };
        assert_eq!(Staging::sizes(&batch, &pieces, &[], 0, 64).few, 9);
        let tile = |row, count| Tile { row, count };
        assert_eq!(tiles(&pieces, 9, 16), [tile(9, 16), tile(25, 4), tile(29, 9)]);
        assert_eq!(tiles(&pieces, 38, 16), []);
    }

    #[test]
    fn parts_begin_aligned_and_depend_on_sizes_alone() {
        let kinds = Kinds { turns: vec![vec![1.0; 3]; 2], scale: 1.0, windows: vec![None, Some(5)] };
        let sizes = Sizes { rows: 3, few: 1, tiles: 2, splits: 1, tokens: 2, tops: 1, entries: 4, stored: 1 };
        let places = Places::of(&sizes, &kinds);
        let begins = [places.turns, places.draws, places.rows, places.tiles, places.inputs, places.slots];
        let begins =
            [&begins[..], &[places.chosen, places.counts, places.to, places.from, places.tail]].concat();
        assert_eq!(begins, [0, 144, 288, 384, 400, 416, 432, 448, 464, 480, 496]);
        assert!(least_bytes(&kinds, 3) >= places.tail);
    }

    #[test]
    fn runs_become_bits() {
        for runs in [vec![5], vec![0, 3, 30], vec![9, 1, 0, 7, 50], vec![8, 8, 16], vec![31, 1, 1, 1, 30]] {
            let slots: u32 = runs.iter().sum();
            let mut bytes = vec![0xaa; slots.div_ceil(32) as usize * 4];
            let len = bytes.len();
            Block(&mut bytes).bits(0..len, &runs);
            let seen = |slot: u32| {
                let mut left = slot;
                let run = runs.iter().position(|run| {
                    let here = left < *run;
                    left = left.saturating_sub(*run);
                    here
                });
                run.is_some_and(|run| run % 2 == 0)
            };
            for slot in 0..len as u32 * 8 {
                let bit = bytes[slot as usize / 8] >> (slot % 8) & 1 == 1;
                assert_eq!(bit, seen(slot), "{runs:?}, slot {slot}");
            }
            assert_eq!(hides(&runs), (0..slots).any(|slot| !seen(slot)), "{runs:?}");
        }
    }
}
