//! What is made of a batch's last hidden states.
//!
//! Owns: which rows need logits and who wants what of them, and the phases that make it. Never: how a token is drawn
//! (`sample.rs`).

use super::forward::{Claims, Step};
use super::scratch::{HEAD_ROWS, Rank, hold, read, write};
use crate::backend::{Batch, EmbedId, Outcome, Output, Produced, sample};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// One thing wanted of a row's logits.
struct Want<'a> {
    /// In the batch.
    row: usize,
    /// In [`Wants::rows`].
    head_row: usize,
    sequence: usize,
    what: What<'a>,
}

enum What<'a> {
    Output(&'a Output),
    Logits,
}

enum Made {
    Produced(Produced),
    Logits(Vec<f32>),
}

/// Everything wanted of a batch.
pub(super) struct Wants<'a> {
    list: Vec<Want<'a>>, // in the order asked
    by_row: Vec<usize>,  // indices in `list`, by ascending row
    /// The rows that need logits, ascending.
    pub rows: Vec<usize>,
    embeds: Vec<(usize, EmbedId)>,   // row in the batch; in the order asked
    made: Mutex<Vec<(usize, Made)>>, // index in `list`
}

impl<'a> Wants<'a> {
    /// The outputs of a batch, and after them the logits of the rows `logits` (counted over the batch).
    pub fn of(batch: &'a Batch, logits: &[usize]) -> Wants<'a> {
        let (mut list, mut embeds) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (sequence, part) in batch.sequences.iter().enumerate() {
            for output in &part.outputs {
                match *output {
                    Output::Token { row, .. } | Output::Distribution { row, .. } => {
                        let row = first + row as usize;
                        list.push(Want { row, head_row: 0, sequence, what: What::Output(output) });
                    }
                    Output::Embed { row, to } => embeds.push((first + row as usize, to)),
                }
            }
            first += part.inputs.len();
        }
        list.extend(logits.iter().map(|&row| Want { row, head_row: 0, sequence: 0, what: What::Logits }));

        let mut by_row: Vec<usize> = (0..list.len()).collect();
        by_row.sort_by_key(|&want| list[want].row);
        let mut rows: Vec<usize> = Vec::new();
        for &want in &by_row {
            if rows.last() != Some(&list[want].row) {
                rows.push(list[want].row);
            }
            list[want].head_row = rows.len() - 1;
        }
        Wants { list, by_row, rows, embeds, made: Mutex::default() }
    }

    /// [`Wants::rows`] in the portions that go through the head together.
    pub fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let len = self.rows.len();
        (0..len).step_by(HEAD_ROWS).map(move |first| first..len.min(first + HEAD_ROWS))
    }

    /// What has been made, in the order asked: the outcome, and the logits.
    pub fn finish(self, sequences: usize, outcome: &mut Outcome) -> Vec<Vec<f32>> {
        outcome.produced.clear();
        outcome.produced.resize_with(sequences, Vec::new);
        let mut made = self.made.into_inner().unwrap_or_else(PoisonError::into_inner);
        made.sort_by_key(|(want, _)| *want);
        let mut logits = Vec::new();
        for (want, made) in made {
            match made {
                Made::Produced(produced) => outcome.produced[self.list[want].sequence].push(produced),
                Made::Logits(row) => logits.push(row),
            }
        }
        logits
    }
}

impl Step<'_> {
    /// Stores hidden states as they leave the last layer. One piece, so that the last of two writers to a slot wins.
    pub(super) fn store_embeds(&self, claims: Claims) {
        for _ in claims.of(1) {
            let stream = read(&self.scratch.stream);
            let embeds = &mut *write(self.embeds);
            for &(row, to) in &self.wants.embeds {
                embeds.row_mut(to.0 as usize).copy_from_slice(stream.row(row));
            }
        }
    }

    pub(super) fn last_norm(&self, claims: Claims, group: Range<usize>) {
        let stream = read(&self.scratch.stream);
        for piece in claims.of(group.len()) {
            let row = stream.row(self.wants.rows[group.start + piece]);
            self.norm_row(row, &self.weights.output_norm, &self.scratch.last, piece);
        }
    }

    /// Everything wanted of a group of rows whose logits are there.
    pub(super) fn produce(&self, claims: Claims, room: &mut Rank, group: Range<usize>) {
        let wants = self.wants;
        let logits = read(&self.scratch.logits);
        let first = wants.by_row.partition_point(|&want| wants.list[want].head_row < group.start);
        let end = wants.by_row.partition_point(|&want| wants.list[want].head_row < group.end);
        for piece in claims.of(end - first) {
            let index = wants.by_row[first + piece];
            let want = &wants.list[index];
            let logits = &logits.row(want.head_row - group.start)[..self.shape.vocab];
            let made = match want.what {
                What::Logits => Made::Logits(logits.to_vec()),
                What::Output(&Output::Token { sampler, ordinal, .. }) => {
                    let random = sample::random(self.batch.sequences[want.sequence].draw, ordinal);
                    Made::Produced(Produced::Token(room.sampling.token(logits, sampler, random)))
                }
                What::Output(&Output::Distribution { temperature, top_k, .. }) => {
                    Made::Produced(room.sampling.distribution(logits, temperature, top_k))
                }
                What::Output(Output::Embed { .. }) => unreachable!("embeds are listed apart"),
            };
            hold(&wants.made).push((index, made));
        }
    }
}
