//! What waits in the schedule: a pass with its pages resolved, cut into chunks as the batches have room.
//!
//! Owns: what is left of a pass and what it has yielded so far. Never: when it runs, or who holds its pages.
//! An output belongs to the chunk that has its row and keeps its ordinal in the whole pass, so chunks never show.

use crate::backend::{DrawKey, Input, Mask, Output, PageId, Produced, Sequence};
use crate::engine::credit::Credit;
use crate::engine::hazards::{JobId, Touch};
use crate::engine::operation::{PassResult, Priority, QueueId, Reply};
use crate::identity::InstanceId;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};

/// An operation in the schedule.
pub struct Job {
    pub instance: InstanceId,
    pub work: Work,
    /// Everything it reads and writes; it holds these pages until it is done.
    pub touches: Vec<Touch>,
    /// Jobs that must be done before this may run.
    pub after_done: u32,
    /// Jobs that must be done, or be in the same batch before this, whole.
    pub after_planned: u32,
    pub then: Vec<Then>,
    /// Batches under way that have rows of it.
    pub under_way: u32,
    /// Nobody needs it any more: it goes when no batch under way has rows of it.
    pub dropped: bool,
    /// The batch since which it could have run and got nothing.
    pub since: u64,
    /// Where it stands among the passes that may run now, if it is one.
    pub ready: Option<Class>,
    /// Its room in the instance's allowance, given back on drop.
    pub credit: Option<Credit>,
}

/// What is served in one row: of one instance's passes that are alike in this, the first submitted goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    pub priority: Priority,
    /// Whether it has many rows left.
    pub long: bool,
}

/// A job that waits for this one.
#[derive(Clone, Copy, Debug)]
pub struct Then {
    pub job: JobId,
    /// Being in the same batch before it is enough.
    pub planned: bool,
}

pub enum Work {
    Pass(QueueId, Box<PassWork>),
    Synchronize(Reply<bool>),
    Move(Move),
}

/// What must be done to pages before the batch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Copy {
        from: PageId,
        to: PageId,
    },
    /// Zero the slots from `from` on: a pass is about to see them, and whoever had the page before left them full.
    Clear {
        page: PageId,
        from: u32,
    },
}

/// A pass, as much of it as has not run.
pub struct PassWork {
    pub pages: Vec<PageId>,
    pub page_size: u32,
    /// Slots in use before the next row.
    pub context: u32,
    /// Rows that have gone into batches.
    pub begun: u32,
    pub inputs: Vec<Input>,   // [row - begun]
    pub positions: Vec<u32>,  // [row - begun]
    pub mask: Mask,           // [row - begun]
    pub outputs: Vec<Output>, // rows count from the pass's first
    pub draw: DrawKey,
    /// Per output that yields: what it yielded.
    pub yielded: Vec<Option<Produced>>,
    pub reply: Reply<PassResult>,
}

impl PassWork {
    pub fn left(&self) -> u32 {
        self.inputs.len() as u32
    }

    /// The next `rows` rows (1..=left), and which entries of `yielded` their outputs fill, in order.
    pub fn slice(&mut self, rows: u32) -> (Sequence, Vec<usize>) {
        let (start, end) = (self.begun, self.begun + rows);
        let (mut outputs, mut fills, mut yielding) = (Vec::new(), Vec::new(), 0);
        for output in &self.outputs {
            let mut output = output.clone();
            let yields = !matches!(output, Output::Embed { .. });
            let (Output::Token { row, .. } | Output::Distribution { row, .. } | Output::Embed { row, .. }) =
                &mut output;
            if (start..end).contains(row) {
                *row -= start;
                #[cfg(test)]
                if let Output::Token { ordinal, .. } = &mut output
                    && planted(Bug::ChunkOrdinals)
                {
                    *ordinal = outputs.len() as u32;
                }
                outputs.push(output);
                fills.extend(yields.then_some(yielding));
            }
            yielding += usize::from(yields);
        }
        let len = self.context + rows;
        let sequence = Sequence {
            pages: self.pages[..len.div_ceil(self.page_size) as usize].to_vec(),
            len,
            inputs: front(&mut self.inputs, rows),
            positions: front(&mut self.positions, rows),
            mask: match &mut self.mask {
                Mask::Causal => Mask::Causal,
                Mask::Runs(masks) => Mask::Runs(front(masks, rows)),
            },
            outputs,
            draw: self.draw,
        };
        self.context = len;
        self.begun = end;
        (sequence, fills)
    }
}

/// Takes the first `count` items off, without a copy when that is all.
fn front<T>(items: &mut Vec<T>, count: u32) -> Vec<T> {
    let rest = items.split_off(count as usize);
    std::mem::replace(items, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Sampler, TokenId};

    #[test]
    fn chunks_carry_their_own_rows_outputs_and_masks() {
        let token =
            |row, ordinal| Output::Token { row, sampler: Sampler::Multinomial { temperature: 0.0 }, ordinal };
        let mut pass = PassWork {
            pages: vec![PageId(7), PageId(8), PageId(9)],
            page_size: 2,
            context: 1,
            begun: 0,
            inputs: (0..4).map(|t| Input::Token(TokenId(t))).collect(),
            positions: vec![1, 2, 3, 4],
            mask: Mask::Runs(vec![vec![2], vec![3], vec![0, 1, 3], vec![5]]),
            outputs: vec![token(3, 0), token(0, 1), token(2, 2), token(0, 3)],
            draw: DrawKey { seed: 1, queue: 2, pass: 3 },
            yielded: vec![None; 4],
            reply: Reply::default(),
        };
        let (first, fills) = pass.slice(2);
        assert_eq!((first.pages, first.len), (vec![PageId(7), PageId(8)], 3));
        assert_eq!((first.positions, fills), (vec![1, 2], vec![1, 3]));
        assert_eq!(first.mask, Mask::Runs(vec![vec![2], vec![3]]));
        assert_eq!(pass.left(), 2);
        let (second, fills) = pass.slice(2);
        assert_eq!((second.pages.len(), second.len, fills), (3, 5, vec![0, 2]));
        assert_eq!(second.mask, Mask::Runs(vec![vec![0, 1, 3], vec![5]]));
        let rows: Vec<(u32, u32)> = second
            .outputs
            .iter()
            .map(|o| match o {
                Output::Token { row, ordinal, .. } => (*row, *ordinal),
                _ => (99, 99),
            })
            .collect();
        assert_eq!(rows, [(1, 0), (0, 2)], "rows of the chunk, ordinals of the pass");
        assert_eq!((pass.left(), second.draw), (0, first.draw));
    }
}
