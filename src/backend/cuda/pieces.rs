//! How a batch is cut into steps: which rows of which sequences are launched together.
//!
//! Owns: the pieces, and what they take of a step's room. Never: where in a step anything stands (`staging.rs`), or a launch.

use super::plan::PAGE;
use crate::backend::{Batch, Mask, Sequence};
use std::ops::Range;

/// Rows of a sequence that attention takes one by one; more of them share pages.
pub(super) const FEW_ROWS: usize = 8;

/// Rows of one sequence that are in the same step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// Its number in the batch.
    pub sequence: usize,
    pub rows: Range<usize>,
}

/// Cuts a batch into steps that have no more than so many rows, and words of tables and masks. A later step sees what an
/// earlier one has appended, as a later row of the same batch would. Within a step sequences of few rows come first.
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
    steps.iter_mut().for_each(|step| behind(step, |piece| piece.rows.len() > FEW_ROWS));
    steps
}

/// Puts such ones behind the others, each kind in the order it had. (A sort by that would be 8 KB of code.)
pub(super) fn behind<T>(list: &mut Vec<T>, such: impl FnMut(&mut T) -> bool) {
    let last: Vec<T> = list.extract_if(.., such).collect();
    list.extend(last);
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
pub(super) fn words_of(sequence: &Sequence, rows: Range<usize>) -> usize {
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
pub(super) fn slots_of(sequence: &Sequence, row: usize) -> usize {
    sequence.len as usize - sequence.inputs.len() + row + 1
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backend::{DrawKey, Input, Output, PageId, TokenId};

    /// The last `rows` rows of a sequence of `len` slots.
    pub fn sequence(len: usize, rows: usize, mask: Mask, outputs: Vec<Output>) -> Sequence {
        Sequence {
            pages: (0..len.div_ceil(PAGE) as u32).map(PageId).collect(),
            len: len as u32,
            inputs: vec![Input::Token(TokenId(0)); rows],
            positions: vec![0; rows],
            mask,
            outputs,
            draw: DrawKey { seed: 0, queue: 0, pass: 0 },
        }
    }

    pub fn piece(sequence: usize, rows: Range<usize>) -> Piece {
        Piece { sequence, rows }
    }

    #[test]
    fn a_batch_is_cut_where_rows_or_words_run_out() {
        let long = || sequence(100, 10, Mask::Causal, Vec::new());
        let batch = Batch { sequences: vec![long(), sequence(3, 3, Mask::Causal, Vec::new()), long()] };
        let whole = vec![vec![piece(1, 0..3), piece(0, 0..10), piece(2, 0..10)]];
        assert_eq!(steps(&batch, 64, 1000), whole);
        // Ten rows and no more; the second sequence begins in the step that the first one filled.
        let by_rows =
            vec![vec![piece(0, 0..10)], vec![piece(1, 0..3), piece(2, 0..7)], vec![piece(2, 7..10)]];
        assert_eq!(steps(&batch, 10, 1000), by_rows);
        // A table of 100 slots has seven words: two of them do not fit into ten.
        assert_eq!(steps(&batch, 64, 10), vec![vec![piece(1, 0..3), piece(0, 0..10)], vec![piece(2, 0..10)]]);
        // Masks of 91 to 100 slots have three or four words a row.
        let masks = (91..=100).map(|slots| vec![1, slots - 1]).collect();
        let masked = Batch { sequences: vec![sequence(100, 10, Mask::Runs(masks), Vec::new())] };
        let cut = steps(&masked, 64, 20);
        assert_eq!(cut, vec![vec![piece(0, 0..4)], vec![piece(0, 4..7)], vec![piece(0, 7..10)]]);
        assert_eq!(steps(&masked, 64, 1).len(), 10, "one row goes on, whatever it takes");
        assert!(steps(&Batch::default(), 64, 10).is_empty());
    }
}
