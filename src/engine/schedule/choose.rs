//! Who is in the next batch, and how far.
//!
//! Owns: the order among the passes that may run, and the bounds of a batch. Never: what a pass touches, or when it may
//! run.
//!
//! Among subjects the one that was served least goes first, and while several have something ready no one's passes take
//! more than its part of the rows, or more work than [`Budget::apart`]: whoever has one row to run has it at least as
//! often as if the device were given to each subject in turn, however many rows the others have. The next to come waits for
//! the end of the batch. So one that has it alone takes no more than that either, or than the [`Budget::pause_part`]th part of
//! the time for which nobody else was served, came or went: who comes back after a pause waits a small part of it. Both bounds
//! give way to [`Budget::lesson`]. A subject with more
//! guests that wait than another has less still, down to a [`CROWD`]th: a crowd makes others' steps an eighth longer, not twice
//! as long. Priorities are a subject's own: they order its passes and nobody else's.
//!
//! Among the passes of one subject higher priority goes first (one that gets nothing rises a level every
//! [`AGE_BATCHES`] batches), short before long, the instance served least recently first; of one instance's passes that
//! are alike in these the first submitted, and one that does not fit keeps those behind it for the next batch. So a
//! turn looks at the first of each kind and at what it takes, not at all that waits. A batch is bounded in rows
//! and in work, so that it ends soon whatever the contexts are, and each pass goes as far as there is room. Neither
//! kind keeps the other waiting: beside short passes (decodes) the long ones (prompts) have at most [`Budget::beside`],
//! and for a long one that is as urgent as they, a part of what its subject has is kept.

use super::{Plan, Schedule};
use crate::engine::hazards::JobId;
use crate::engine::job::{Class, Work};
use crate::identity::Subject;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// A pass with at most this many rows left is short: a decode, a few speculated tokens, the end of a prompt.
pub(super) const SHORT_ROWS: u32 = 8;
/// Batches without service after which a pass counts as one priority level higher.
pub(super) const AGE_BATCHES: u64 = 16;
/// One part in so many of [`Budget::apart`] is what a subject has at least, however few guests of another wait.
const CROWD: usize = 8;
/// One part in so many of a batch is kept for a long pass; else decodes, each a whole batch's work deep in its context
/// or as many as a batch has rows, would leave it nothing.
const KEPT: u32 = 4;

/// What the next batch may cost. Work is counted in attended slots: a row costs as much as [`Budget::row`] of them, and
/// one for each slot that it sees, so a row deep in a context is dear however short its pass.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Rows in all, at least one.
    pub rows: u32,
    /// Slots whose attention costs what the rest of a row does.
    pub row: u64,
    /// Work in all. The first pass gets one row even if that is more, and so does the first long one that is as
    /// urgent as any.
    pub work: u64,
    /// Work of long passes together, when short ones run beside them.
    pub beside: u64,
    /// Work of one subject's passes, when another's run beside them: what a step of one row takes.
    pub apart: u64,
    /// What those of the subject whose pass was submitted first have even if that is more: nothing, but now and then enough
    /// to teach what a row costs.
    pub lesson: u64,
    /// Work in all while guests of several subjects are there, though only one's have anything ready: the others wait
    /// for the end of the batch when they have.
    pub shared: u64,
    /// The part of the time for which nobody else was served, came or went that a batch of one subject may take.
    pub pause_part: u64,
    /// What the device could have done until now, in work, since some moment in the past.
    pub now: u64,
}

impl Budget {
    /// Work of `rows` rows behind `context` slots.
    pub(super) fn cost(&self, context: u32, rows: u32) -> u64 {
        let rows = u64::from(rows);
        rows * (self.row + u64::from(context)) + rows * (rows + 1) / 2
    }

    /// The part that one may take of the pause of another who was last seen then.
    fn pause(&self, seen: u64) -> u64 {
        self.now.saturating_sub(seen) / self.pause_part
    }

    /// Work of a subject's passes when so many of them are ready, and so many of another's, which has the fewest.
    fn apart_of(&self, passes: usize, fewest: usize) -> u64 {
        let crowd = passes.min(CROWD * fewest);
        (u128::from(self.apart) * fewest as u128 / crowd as u128) as u64
    }

    /// Rows behind `context` slots that cost at most `work`: the root of [`Budget::cost`], rounded down.
    pub(super) fn rows_for(&self, work: u64, context: u32) -> u32 {
        let twice = 2 * (u128::from(self.row) + u128::from(context)) + 1;
        let rows = ((twice * twice + 8 * u128::from(work)).isqrt() - twice) / 2;
        u32::try_from(rows).unwrap_or(u32::MAX)
    }
}

/// Who goes first of one subject's: the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    level: u64,
    long: Reverse<bool>,
    served: Reverse<u64>,
    job: Reverse<JobId>,
}

/// What one subject may still have of the batch.
pub(super) struct Lot {
    subject: Subject,
    /// The pass of it that was submitted first.
    first: JobId,
    /// Of each class of each instance the one that is next, and those that others in the batch have let go.
    pub(super) rank: BinaryHeap<Rank>,
    /// How many may run.
    passes: usize,
    /// The highest priority among its passes.
    top: u64,
    rows: u32,
    work: u64,
    /// Of the work, what long passes may have.
    long_work: u64,
    /// Rows and work that short passes leave to a long one.
    kept: Option<(u32, u64)>,
    /// Something of it is in the batch.
    begun: bool,
}

impl Lot {
    fn new(subject: Subject, first: JobId) -> Lot {
        let rank = BinaryHeap::new();
        Lot {
            subject,
            first,
            rank,
            passes: 0,
            top: 0,
            rows: 0,
            work: 0,
            long_work: 0,
            kept: None,
            begun: false,
        }
    }
}

impl Schedule {
    pub(super) fn choose(&mut self, budget: Budget, plan: &mut Plan) {
        let mut lots = self.lots(budget);
        let alone = lots.len() == 1;
        let mut order: BinaryHeap<(Reverse<u64>, Reverse<usize>)> = lots
            .iter()
            .enumerate()
            .map(|(at, lot)| (Reverse(self.served(&lot.subject)), Reverse(at)))
            .collect();
        let (mut rows, mut work, mut done) = (budget.rows, budget.work, 0);
        while rows > 0
            && let Some((Reverse(served), Reverse(at))) = order.pop()
        {
            let lot = &mut lots[at];
            if work == 0 && !plan.runs.is_empty() && !(alone && lot.kept.is_some()) {
                break;
            }
            let Some((taken, cost)) = self.choose_of(lot, rows, work, budget, plan) else { continue };
            rows -= taken;
            work = work.saturating_sub(cost);
            self.pace = self.pace.max(served);
            if let Some(share) = self.shares.get_mut(&lot.subject) {
                share.served += cost;
                (share.seen, share.computed) = (None, true);
            }
            order.push((Reverse(served + cost), Reverse(at)));
            done += cost;
        }
        // The pause of those who are served, and of those who came or went, begins with the end of the batch.
        let ends = budget.now.saturating_add(if done > 0 { done.max(budget.apart) } else { 0 });
        self.shares.retain(|_, share| {
            let seen = *share.seen.get_or_insert(ends);
            share.guests > 0 || budget.pause(seen) < budget.work
        });
    }

    /// What is ready, by subject: whoever's first pass was submitted first comes first.
    pub(super) fn lots(&self, budget: Budget) -> Vec<Lot> {
        let mut lots: Vec<Lot> = Vec::new();
        let mut of: HashMap<&Subject, usize> = HashMap::new();
        for guest in self.guests.values() {
            for (class, id, passes) in guest.ready.heads() {
                let Some(rank) = self.rank(id) else { continue };
                let at = *of.entry(&guest.subject).or_insert(lots.len());
                if at == lots.len() {
                    lots.push(Lot::new(guest.subject.clone(), id));
                }
                let lot = &mut lots[at];
                lot.first = lot.first.min(id);
                lot.passes += passes;
                // Not their levels: with many decodes some have always waited long, and a prompt would never be as urgent.
                lot.top = lot.top.max(class.priority as u64);
                lot.rank.push(rank);
            }
        }
        lots.sort_unstable_by_key(|lot| lot.first);
        let any_short = lots.iter().any(|lot| lot.rank.iter().any(|r| !r.long.0));
        let parts = lots.len() as u32;
        let fewest = lots.iter().map(|lot| lot.passes).min().unwrap_or_default();
        for (at, lot) in lots.iter_mut().enumerate() {
            (lot.rows, lot.work) = match parts {
                1 => (budget.rows, budget.work.min(self.alone(lot, budget))),
                _ => {
                    let apart = budget.apart_of(lot.passes, fewest);
                    let lesson = if at == 0 { budget.lesson } else { 0 };
                    ((budget.rows / parts).max(1), budget.work.min(apart.max(lesson)))
                }
            };
            lot.long_work = if any_short { budget.beside.min(lot.work) } else { lot.work };
            let prompt = lot.rank.iter().filter(|r| r.long.0 && r.level >= lot.top).max();
            lot.kept = prompt.and_then(|r| self.kept(r.job.0, lot, budget));
        }
        lots
    }

    /// Takes the next pass of the lot into the batch, which has room for so many rows and so much work: rows and work of
    /// it. None: nothing more of the lot can be taken.
    fn choose_of(
        &mut self,
        lot: &mut Lot,
        rows: u32,
        work: u64,
        budget: Budget,
        plan: &mut Plan,
    ) -> Option<(u32, u64)> {
        while lot.rows > 0
            && (lot.work > 0 || lot.kept.is_some() || !lot.begun)
            && let Some(best) = lot.rank.pop()
        {
            let id = best.job.0;
            let Some(now) = self.rank(id) else { continue };
            if now < best {
                lot.rank.push(now); // Its instance was served since.
                continue;
            }
            let Some((context, class)) = self.context(id) else { continue };
            // However deep its context, the first gets on; else it would never.
            let mut least = u32::from(plan.runs.is_empty() || !lot.begun);
            let (rows_left, work_left) = if now.long.0 {
                least |= u32::from(now.level >= lot.top && lot.kept.take().is_some());
                (lot.rows, lot.work.min(lot.long_work))
            } else {
                let (kept_rows, kept_work) = lot.kept.unwrap_or_default();
                (lot.rows.saturating_sub(kept_rows), lot.work.saturating_sub(kept_work))
            };
            let allowed = budget.rows_for(work_left.min(work), context).max(least).min(rows_left).min(rows);
            let Some((taken, freed)) = self.take(id, allowed, plan) else { continue };
            let cost = budget.cost(context, taken);
            lot.begun = true;
            lot.rows -= taken;
            lot.work = lot.work.saturating_sub(cost);
            lot.long_work = lot.long_work.saturating_sub(if now.long.0 { cost } else { 0 });
            let next = self.next(id, class);
            lot.rank.extend(freed.into_iter().chain(next).filter_map(|id| self.rank(id)));
            return Some((taken, cost));
        }
        None
    }

    /// Rows and work that short passes of the lot leave to this long one.
    fn kept(&self, id: JobId, lot: &Lot, budget: Budget) -> Option<(u32, u64)> {
        let Work::Pass(_, pass) = &self.jobs.get(&id)?.work else { return None };
        // Of a batch of one row nothing can be kept; there only age helps.
        let rows = pass.left().min((lot.rows / KEPT).max(1)).min(lot.rows.saturating_sub(1));
        let work = budget.beside.min(lot.work / u64::from(KEPT));
        Some((rows, work.min(budget.cost(pass.context, rows))))
    }

    /// Slots that the next row of the pass sees behind it, and its class.
    fn context(&self, id: JobId) -> Option<(u32, Class)> {
        let job = self.jobs.get(&id)?;
        match &job.work {
            Work::Pass(_, pass) => Some((pass.context, job.ready?)),
            _ => None,
        }
    }

    /// The pass of this class that is next when `id` has been taken.
    fn next(&self, id: JobId, class: Class) -> Option<JobId> {
        let instance = self.jobs.get(&id)?.instance;
        self.guests.get(&instance)?.ready.after(class, id)
    }

    /// Work of a batch that the lot's subject has to itself, as nobody else has anything ready.
    fn alone(&self, lot: &Lot, budget: Budget) -> u64 {
        let others = self.shares.iter().filter(|(other, _)| **other != lot.subject);
        let beside = others.map(|(_, share)| {
            let most = if share.guests > 0 { budget.shared } else { budget.work };
            let pause = share.seen.map_or(0, |seen| budget.pause(seen));
            // All of its guests may come back.
            let apart = budget.apart_of(lot.passes, share.guests.max(1) as usize);
            most.min(apart.max(budget.lesson).max(pause))
        });
        beside.min().unwrap_or(budget.work)
    }

    fn served(&self, subject: &Subject) -> u64 {
        self.shares.get(subject).map_or(0, |share| share.served)
    }

    /// None: it is not ready, or has rows in this batch.
    fn rank(&self, id: JobId) -> Option<Rank> {
        let job = self.jobs.get(&id)?;
        let Class { priority, long } = job.ready?;
        let waited = self.batch.checked_sub(job.since)?;
        Some(Rank {
            level: priority as u64 + waited / AGE_BATCHES,
            long: Reverse(long),
            served: Reverse(self.guests.get(&job.instance).map_or(0, |g| g.served)),
            job: Reverse(id),
        })
    }
}
