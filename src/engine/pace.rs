//! How much a batch may hold, so that nobody waits long.
//!
//! Owns: what rows and slots have cost on this device, and when a batch has to measure that again. Never: which rows a
//! batch has; the schedule chooses within the budget.

use crate::backend::Batch;
use crate::engine::schedule::Budget;
use std::time::{Duration, Instant};

/// How long a long prompt's chunk may hold up the decodes that run beside it, ...
const CHUNK_BESIDE: Duration = Duration::from_millis(100);
/// ... how long a batch may run while guests of several subjects are there, though only one's have anything to compute: the
/// next step of the others waits for its end, ...
const CHUNK_SHARED: Duration = Duration::from_millis(40);
/// ... and how long a batch may run at all. The pages of one who is ended come back after it, which is promised within
/// 200 ms, and a newcomer waits for it; the estimate may be off by a half.
const CHUNK_ALONE: Duration = Duration::from_millis(130);
/// The part of the others' pause so far that one's batch may take: who comes back has lost no more of its time by it.
const PAUSE_PART: u32 = 4;
#[cfg(test)]
const PROMISED: Duration = Duration::from_millis(200);
/// Rows of a batch that may be had, however short it should be: fewer would read all weights for next to nothing, and teach
/// nothing of what a row costs. Only beside other subjects one has fewer, ...
const CHUNK_LEAST: u32 = 16;
/// ... but when that many batches in a row had fewer, one may have half as many again, so that enough are left of those
/// that would not fit whole: an estimate much too high would else keep all batches too small to correct it. The first
/// estimates are the worst, so such lessons come soon, and half as often after each.
const LESSON_FIRST: u32 = 4;
/// At last one step in so many is longer for it.
const LESSON_LAST: u32 = 256;
/// The first chunk's rows, before anything was measured.
const CHUNK_FIRST: u32 = 32;
/// Slots whose attention costs what the rest of a row does, before anything was measured. A row of a small model reads
/// 135 M weights and multiplies 35 k numbers per slot, which would be 4,000; attention runs less smoothly.
const ROW_FIRST: f64 = 512.0;
/// Bounds of what one batch may teach: a stall of the machine is not the device's pace.
const SURPRISE: f64 = 4.0;

/// What a batch may hold, from measured time: so much for each row, so much for each slot that a row sees. What
/// shares a batch never changes a number, so this may follow the clock.
pub(super) struct Pace {
    most: u32,
    /// Batches that may be under way at a time: the bounds hold for all of them together.
    depth: u32,
    /// None yet: no estimate.
    cost: Option<Cost>,
    /// Nanoseconds that a step of one row takes, nearly all of it for the weights; smoothed, once there was a small one.
    lone: Option<f64>,
    /// Batches since the last that taught what a row costs, or might have, ...
    untaught: u32,
    /// ... and after how many the next lesson is due.
    lesson: u32,
    /// What the device could have done until `asked`, in work.
    clock: f64,
    asked: Instant,
}

/// Nanoseconds, smoothed.
#[derive(Clone, Copy)]
struct Cost {
    row: f64,
    slot: f64,
    /// A batch has taught what a slot costs; until then it is in proportion to a row.
    slot_known: bool,
}

impl Pace {
    pub fn new(most: u32, depth: u32) -> Pace {
        let (untaught, lesson) = (0, LESSON_FIRST);
        Pace { most, depth, cost: None, lone: None, untaught, lesson, clock: 0.0, asked: Instant::now() }
    }

    /// `now` never goes back.
    pub fn budget(&mut self, now: Instant) -> Budget {
        let passed = now.saturating_duration_since(self.asked);
        self.asked = now;
        let Some(cost) = self.cost else {
            let work = (f64::from(CHUNK_FIRST) * ROW_FIRST) as u64;
            return Budget {
                rows: self.most,
                row: ROW_FIRST as u64,
                work,
                beside: work,
                apart: work,
                lesson: work,
                shared: work,
                pause_part: 1,
                now: 0,
            };
        };
        self.clock += passed.as_nanos() as f64 / cost.slot;
        let row = (cost.row / cost.slot) as u64;
        let within = |time: Duration| ((time / self.depth).as_nanos() as f64 / cost.slot) as u64;
        let least = u64::from(CHUNK_LEAST) * (row + u64::from(CHUNK_LEAST));
        Budget {
            rows: self.most,
            row,
            work: within(CHUNK_ALONE).max(least),
            beside: within(CHUNK_BESIDE).max(least),
            shared: within(CHUNK_SHARED).max(least),
            // At least one row, as of everything.
            apart: ((self.lone.unwrap_or(cost.row) / cost.slot) as u64).max(row + 1),
            lesson: if self.untaught < self.lesson { 0 } else { least + least / 2 },
            pause_part: u64::from(PAUSE_PART * self.depth),
            now: self.clock as u64,
        }
    }

    pub fn learn(&mut self, batch: &Batch, took: Duration) {
        let (mut rows, mut slots) = (0.0, 0.0);
        for sequence in &batch.sequences {
            let new = sequence.inputs.len() as f64;
            rows += new;
            slots += new * (f64::from(sequence.len) - (new - 1.0) / 2.0);
        }
        let cost = self.cost.unwrap_or(Cost { row: ROW_FIRST, slot: 1.0, slot_known: false });
        let (of_rows, of_slots) = (rows * cost.row, slots * cost.slot);
        let least = f64::from(CHUNK_LEAST) * cost.row;
        self.count_lesson(of_rows + of_slots >= least / 2.0, of_rows >= of_slots);
        if of_rows + of_slots < least {
            // A few rows cost what reading the weights costs, not what a row costs.
            if rows > 0.0 {
                let took = took.as_nanos() as f64;
                let others =
                    if self.cost.is_some() { (of_rows + of_slots) * (1.0 - 1.0 / rows) } else { 0.0 };
                let lone = (took - others).max(took / rows);
                self.lone = Some(self.lone.map_or(lone, |before| smooth(before, lone)));
            }
            return;
        }
        let took = took.as_nanos() as f64;
        let Some(before) = self.cost else {
            let scale = (took / (of_rows + of_slots)).max(1e-9);
            self.cost = Some(Cost { row: cost.row * scale, slot: cost.slot * scale, ..cost });
            return;
        };
        // The batch teaches about what it was mostly made of.
        self.cost = Some(if of_rows >= of_slots {
            let row = smooth(before.row, (took - of_slots) / rows);
            let slot = if before.slot_known { before.slot } else { row / ROW_FIRST };
            Cost { row, slot, ..before }
        } else {
            Cost { slot: smooth(before.slot, (took - of_rows) / slots), slot_known: true, ..before }
        });
    }

    /// Counts a batch of at least half a lesson's work, if `big`, of which rows are the most. If nobody has so much to do, the
    /// lesson stays due.
    fn count_lesson(&mut self, big: bool, of_rows: bool) {
        if self.untaught < self.lesson {
            self.untaught = if big && of_rows { 0 } else { self.untaught + 1 };
        } else if big {
            (self.untaught, self.lesson) = (0, (2 * self.lesson).min(LESSON_LAST));
        }
    }
}

fn smooth(before: f64, now: f64) -> f64 {
    (before * 3.0 + now.clamp(before / SURPRISE, before * SURPRISE)) / 4.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{DrawKey, Input, Mask, Sequence, TokenId};

    fn sequence() -> Sequence {
        Sequence {
            pages: Vec::new(),
            len: 0,
            inputs: Vec::new(),
            positions: Vec::new(),
            mask: Mask::Causal,
            outputs: Vec::new(),
            draw: DrawKey { seed: 0, queue: 0, pass: 0 },
        }
    }

    /// A device that takes what it takes; budgets are kept to it, whatever the contexts.
    #[test]
    fn a_batch_within_the_budget_takes_no_longer_than_it_should() {
        let (row_ns, slot_ns) = (5e6, 7e3);
        let time = |rows: f64, slots: f64| Duration::from_nanos((rows * row_ns + slots * slot_ns) as u64);
        let mut pace = Pace::new(1 << 20, 1);
        let chunk = |context: u32, rows: u32| {
            let inputs = vec![Input::Token(TokenId(0)); rows as usize];
            Sequence { len: context + rows, inputs, ..sequence() }
        };
        for round in 0..200 {
            let context = [0, 20_000, 300, 2_000][round % 4];
            let (rows, budget) = (4, pace.budget(pace.asked));
            let each = u64::from(rows) * (budget.row + u64::from(context));
            let sequences = vec![chunk(context, rows); (budget.work / each).max(1) as usize];
            let all = sequences.len() as f64 * f64::from(rows);
            let took = time(all, all * f64::from(context));
            let fits = took <= PROMISED || sequences.len() == 1;
            assert!(round < 40 || fits, "round {round}: {took:?} behind {context}");
            pace.learn(&Batch { sequences }, took);
        }
    }

    #[test]
    fn the_clock_of_a_budget_counts_what_the_device_could_have_done() {
        let mut pace = Pace::new(512, 1);
        let input = vec![Input::Token(TokenId(0)); 32];
        let batch = Batch { sequences: vec![Sequence { len: 32, inputs: input, ..sequence() }] };
        pace.learn(&batch, Duration::from_millis(32));
        let (before, since) = (pace.budget(pace.asked), pace.asked);
        let after = pace.budget(since + Duration::from_millis(100));
        let rows = (after.now - before.now) as f64 / after.row as f64;
        assert!((95.0..=105.0).contains(&rows), "a row a millisecond: {rows}");
    }
}
