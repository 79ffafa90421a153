//! What is made of a batch's last hidden states.
//!
//! Owns: which rows need logits and who wants what of them, and the phases that make it. Never: how a token is drawn
//! (`sample.rs`).

use super::forward::{Size, Step, Work};
use super::kernels::multiply;
use super::lanes::{LANES, Lanes};
use super::scratch::{HEAD_ROWS, Rank, hold};
use super::vector::{capped, norm};
use crate::backend::sample::{LOGITS_PER_MAXIMUM, Logits};
use crate::backend::{Batch, EmbedId, Outcome, Output, Produced, Sampler, sample};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Groups of the head's rows whose logits have one maximum: what a rank claims at a time.
pub(super) const HEAD_GROUPS: usize = LOGITS_PER_MAXIMUM / LANES;

/// One thing wanted of a row's logits.
#[derive(Clone, Copy)]
struct Want {
    /// In the batch.
    row: usize,
    /// In [`Wants::rows`].
    head_row: usize,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// Of a sequence, by its number, with its outcome.
    Token {
        sequence: usize,
        sampler: Sampler,
        ordinal: u32,
    },
    Distribution {
        sequence: usize,
        temperature: f32,
        top_k: u32,
    },
    Logits,
}

enum Made {
    Produced(Produced),
    Logits(Vec<f32>),
}

/// Everything wanted of a batch; kept between batches for its room.
#[derive(Default)]
pub(super) struct Wants {
    list: Vec<Want>,    // in the order asked
    by_row: Vec<usize>, // indices in `list`, by ascending row
    /// The rows that need logits, ascending.
    pub rows: Vec<usize>,
    embeds: Vec<(usize, EmbedId)>,   // row in the batch; in the order asked
    made: Mutex<Vec<(usize, Made)>>, // index in `list`
}

impl Wants {
    /// Takes note of the outputs of a batch, and after them of the logits of the rows `logits` (counted over the batch).
    pub fn note(&mut self, batch: &Batch, logits: &[usize]) {
        let Wants { list, by_row, rows, embeds, made } = self;
        list.clear();
        by_row.clear();
        rows.clear();
        embeds.clear();
        made.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let mut first = 0;
        for (sequence, part) in batch.sequences.iter().enumerate() {
            for output in &part.outputs {
                let (row, what) = match *output {
                    Output::Token { row, sampler, ordinal } => {
                        (row, What::Token { sequence, sampler, ordinal })
                    }
                    Output::Distribution { row, temperature, top_k } => {
                        (row, What::Distribution { sequence, temperature, top_k })
                    }
                    Output::Embed { row, to } => {
                        embeds.push((first + row as usize, to));
                        continue;
                    }
                };
                list.push(Want { row: first + row as usize, head_row: 0, what });
            }
            first += part.inputs.len();
        }
        list.extend(logits.iter().map(|&row| Want { row, head_row: 0, what: What::Logits }));

        by_row.extend(0..list.len());
        by_row.sort_unstable_by_key(|&want| (list[want].row, want));
        for &want in by_row.iter() {
            if rows.last() != Some(&list[want].row) {
                rows.push(list[want].row);
            }
            list[want].head_row = rows.len() - 1;
        }
    }

    /// [`Wants::rows`] in the portions that go through the head together.
    pub fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let len = self.rows.len();
        (0..len).step_by(HEAD_ROWS).map(move |first| first..len.min(first + HEAD_ROWS))
    }

    /// What has been made, in the order asked: the outcome, and the logits.
    pub fn finish(&mut self, sequences: usize, outcome: &mut Outcome) -> Vec<Vec<f32>> {
        outcome.produced.iter_mut().for_each(Vec::clear);
        outcome.produced.resize_with(sequences, Vec::new);
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner);
        made.sort_unstable_by_key(|(want, _)| *want);
        let mut logits = Vec::new();
        for (want, made) in made.drain(..) {
            match (made, self.list[want].what) {
                (Made::Logits(row), _) => logits.push(row),
                (
                    Made::Produced(produced),
                    What::Token { sequence, .. } | What::Distribution { sequence, .. },
                ) => outcome.produced[sequence].push(produced),
                (Made::Produced(_), What::Logits) => unreachable!("nothing is produced for logits"),
            }
        }
        logits
    }
}

impl<L: Lanes> Step<'_, L> {
    /// Stores hidden states as they leave the last layer. One rank's work, so that the last of two writers to a slot
    /// wins.
    pub(super) fn store_embeds(&self, rank: usize) {
        if rank > 0 {
            return;
        }
        for &(row, to) in &self.wants.embeds {
            let all = 0..self.shape.hidden;
            // SAFETY: this rank alone writes embeds, and nobody reads them before the next batch.
            let to = unsafe { self.embeds.row_mut(to.0 as usize, all.clone()) };
            // SAFETY: the stream is written before the barrier that ends the last layer.
            to.copy_from_slice(unsafe { self.scratch.stream.row(row, all) });
        }
    }

    /// Makes everything wanted of the rows that have outputs.
    pub(super) fn outputs(&self, rank: usize, room: &mut Rank) {
        let groups = self.wants.rows.len().div_ceil(HEAD_ROWS);
        for (number, group) in self.wants.groups().enumerate() {
            let last = number + 1 == groups;
            self.head(rank, room, group.clone(), if last { Work::Nothing } else { Work::Head });
            self.produce(rank, room, group);
            if !last {
                self.crew.barrier();
            }
        }
    }

    /// The logits of a group of rows, and the largest of each 256.
    fn head(&self, rank: usize, room: &mut Rank, group: Range<usize>, next: Work) {
        let (l, s, shape) = (self.l, self.scratch, self.shape);
        let Rank { columns, line, .. } = &mut *room;
        let line = &mut line[..s.stream.stride];
        l.enter(
            #[inline(always)]
            || {
                for (column, &row) in self.wants.rows[group.clone()].iter().enumerate() {
                    // SAFETY: the stream is written before the barrier that ends the last layer.
                    line.copy_from_slice(unsafe { s.stream.row(row, 0..s.stream.stride) });
                    norm(l, line, &self.weights.output_norm, shape.hidden, shape.norm_eps);
                    // SAFETY: the columns are the rank's own.
                    unsafe { columns.put(l, (0, column), line, shape.hidden) };
                }
            },
        );
        self.phase(rank, room, Size::LARGE, next, |room, part| self.head_part(room, part, group.len()));
    }

    /// [`HEAD_GROUPS`] groups of the logits of `count` rows, and the largest of each row.
    fn head_part(&self, room: &mut Rank, part: usize, count: usize) {
        let (l, s, shape) = (self.l, self.scratch, self.shape);
        let Rank { columns, products: [products, _], .. } = room;
        // SAFETY: the columns are the rank's own.
        let tile = unsafe { columns.tile(0, shape.hidden) };
        let head = &self.weights.head;
        let mut maxima = [[f32::NEG_INFINITY; LANES]; HEAD_ROWS];
        for group in part * HEAD_GROUPS..head.groups.min((part + 1) * HEAD_GROUPS) {
            multiply(l, (head, &self.weights.store), group, tile, count, products);
            let own = group * LANES..(group + 1) * LANES;
            // The rows that fill up the last group are no tokens.
            let real = match shape.vocab - own.start {
                LANES.. => u16::MAX,
                count => (1 << count) - 1,
            };
            l.enter(
                #[inline(always)]
                || {
                    for (column, product) in products[..count].iter().enumerate() {
                        // SAFETY: this rank has claimed these numbers of a row.
                        let to = unsafe { s.logits.row_mut(column, own.clone()) };
                        let logits = capped(l, l.load(product), shape.logit_cap);
                        l.store(logits, &mut to.as_chunks_mut::<LANES>().0[0]);
                        let logits = l.select(real, logits, l.splat(f32::NEG_INFINITY));
                        l.store(l.max(logits, l.load(&maxima[column])), &mut maxima[column]);
                    }
                },
            );
        }
        for (column, maxima) in maxima[..count].iter().enumerate() {
            let largest = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // SAFETY: this rank has claimed this number of a row.
            unsafe { s.maxima.row_mut(column, part..part + 1).fill(largest) };
        }
    }

    /// Everything wanted of a group of rows whose logits are there.
    fn produce(&self, rank: usize, room: &mut Rank, group: Range<usize>) {
        let (wants, s) = (self.wants, self.scratch);
        let first = wants.by_row.partition_point(|&want| wants.list[want].head_row < group.start);
        let end = wants.by_row.partition_point(|&want| wants.list[want].head_row < group.end);
        for &index in wants.by_row[first..end].iter().skip(rank).step_by(self.crew.size()) {
            let want = &wants.list[index];
            let row = want.head_row - group.start;
            // SAFETY: logits and maxima are written before the barrier that comes before this phase.
            let logits = unsafe {
                Logits {
                    all: s.logits.row(row, 0..self.shape.vocab),
                    maxima: s.maxima.row(row, 0..self.shape.vocab.div_ceil(LOGITS_PER_MAXIMUM)),
                }
            };
            let sampling = &mut room.sampling;
            let made = match want.what {
                What::Logits => Made::Logits(logits.all.to_vec()),
                What::Token { sequence, sampler, ordinal } => {
                    let random = sample::random(self.batch.sequences[sequence].draw, ordinal);
                    Made::Produced(Produced::Token(self.l.enter(
                        #[inline(always)]
                        || sampling.token(logits, sampler, random),
                    )))
                }
                What::Distribution { temperature, top_k, .. } => Made::Produced(self.l.enter(
                    #[inline(always)]
                    || sampling.distribution(logits, temperature, top_k),
                )),
            };
            hold(&wants.made).push((index, made));
        }
    }
}
