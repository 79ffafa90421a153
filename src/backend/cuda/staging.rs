//! What a step is told: one block of the host's memory, one copy to the device.
//!
//! Owns: where in the block what stands, and what is written there of a batch. Never: a launch, nor what a row computes.
//!
//! ```text
//! turns   {f32 cos, f32 sin} [kind of turns][row][pair]
//! draws   48 bytes [head row]                          rows that become a token, then those that become a distribution
//! rows    {u32 table, length, first, mask} [window][row]
//! inputs  u32 [row]: a token, or an embedding slot     slots   u32 [row]: where its keys and values go
//! chosen  u32 [head row]: which row                    counts  u32 [distribution]
//! to      u32 [stored row]: an embedding slot          from    u32 [stored row]
//! tail    u32: page tables and masks, where `rows` say
//! ```
//! Where a part begins follows from the step's sizes alone; only the tail's length is the batch's. So a graph that was
//! recorded for these sizes finds everything again.

use super::draw::{RECORD, record};
use super::plan::{PAGE, SPLIT};
use super::repack::PAIR;
use super::{Error, Pinned};
use crate::backend::{Batch, EmbedId, Input, Mask, Output, Sampler, Sequence, sample};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Rows that go through the layers; 0: they have gone before, and only the head is left.
    pub rows: usize,
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
    Places::of(&Sizes { rows, splits: 0, tokens: 0, tops, entries: 0, stored: rows }, kinds).tail
}

/// Rows of one sequence that are in the same step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// Its number in the batch.
    pub sequence: usize,
    pub rows: Range<usize>,
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
    /// Takes note of what is wanted of the rows of `pieces`.
    pub fn note(&mut self, batch: &Batch, pieces: &[Piece]) {
        self.list.clear();
        self.stored.clear();
        let mut first = 0;
        for Piece { sequence, rows } in pieces {
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
            first += rows.len();
        }
        self.list.sort_by_key(|want| matches!(want.what, What::Top { .. })); // stable
    }
}

/// Cuts a batch into steps that have no more than so many rows, and words of tables and masks. A later step sees what an
/// earlier one has appended, as a later row of the same batch would.
pub(super) fn steps(batch: &Batch, rows: usize, words: usize) -> Vec<Vec<Piece>> {
    let mut steps = vec![Vec::new()];
    let (mut rows_left, mut words_left) = (rows, words);
    for (number, sequence) in batch.sequences.iter().enumerate() {
        let mut first = 0;
        while first < sequence.inputs.len() {
            let fit = fits(sequence, first, rows_left, words_left);
            if fit == first && (rows_left, words_left) != (rows, words) {
                steps.push(Vec::new());
                (rows_left, words_left) = (rows, words);
                continue;
            }
            // One row fits into an empty step: the room is made for the longest sequence.
            let end = fit.max(first + 1);
            rows_left -= end - first;
            words_left = words_left.saturating_sub(words_of(sequence, first..end));
            if let Some(step) = steps.last_mut() {
                step.push(Piece { sequence: number, rows: first..end });
            }
            first = end;
        }
    }
    steps.retain(|step| !step.is_empty());
    steps
}

/// The end of the longest run of rows from `first` on that fits.
fn fits(sequence: &Sequence, first: usize, rows: usize, words: usize) -> usize {
    let most = sequence.inputs.len().min(first + rows);
    let mut masks = 0;
    let ends = (first + 1..=most).take_while(|end| {
        masks += mask_words(sequence, end - 1);
        masks + slots_of(sequence, end - 1).div_ceil(PAGE) <= words
    });
    first + ends.count()
}

/// Words of a piece's table and masks at most.
fn words_of(sequence: &Sequence, rows: Range<usize>) -> usize {
    let table = slots_of(sequence, rows.end - 1).div_ceil(PAGE);
    table + rows.map(|row| mask_words(sequence, row)).sum::<usize>()
}

fn mask_words(sequence: &Sequence, row: usize) -> usize {
    match &sequence.mask {
        Mask::Causal => 0,
        Mask::Runs(_) => slots_of(sequence, row).div_ceil(32),
    }
}

/// Slots up to a row's own.
fn slots_of(sequence: &Sequence, row: usize) -> usize {
    sequence.len as usize - sequence.inputs.len() + row + 1
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
    /// room for `splits` at most.
    pub fn sizes(batch: &Batch, pieces: &[Piece], wants: &[Want], stored: usize, splits: usize) -> Sizes {
        let tops = wants.iter().filter_map(|want| match want.what {
            What::Top { k, .. } => Some(k as usize),
            What::Token { .. } => None,
        });
        let longest = |piece: &Piece| slots_of(&batch.sequences[piece.sequence], piece.rows.end - 1);
        let longest = pieces.iter().map(longest).max().unwrap_or(0);
        Sizes {
            rows: pieces.iter().map(|piece| piece.rows.len()).sum(),
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
        (pieces, wants, stored): (&[Piece], &[Want], &[(u32, EmbedId)]),
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

const _: () = assert!(PAIR >= 32 && RECORD % ALIGNED == 0);
