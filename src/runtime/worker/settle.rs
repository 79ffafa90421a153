//! What the engine's thread does for guests between two batches.
//!
//! Owns: for whom the next batch waits, and how long. Never: who of them runs first, which is the queues'; how long in all,
//! which is the engine's.
//!
//! It waits for those whom the last batch answered, until each has come to its next wait: what they ask joins the batch.
//! For the others it waits a part of that time, or a client who wakes or starts guests by the hundred would have a part
//! of every batch's time for them.

use super::{LOOKOUT, Place, Shared, State, Turn, Workers, look_out};
use crate::engine::Settle;
use crate::identity::Subject;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// Of so much time that a batch may wait for guests, one part goes to those whom it has not answered.
const OTHERS_PART: u32 = 4;
/// Waits for something else than the model, a page say, that the next batch waits out with a guest whom it has answered.
/// Two who wake each other would have as much of every batch's time as there is.
const WAKES_MOST: u32 = 8;
/// The model is busy for a subject that has part in one of the last so many batches.
const RECENT: u64 = 16;
/// Whom batches are for, in one word: a subject's number, or one of these.
pub(super) const NOBODY: usize = usize::MAX;
const SEVERAL: usize = usize::MAX - 1;

impl Settle for Workers {
    fn attend(&self, whom: &mut dyn Iterator<Item = &Subject>) {
        // Before the workers' lock: a batch has as many sequences as guests, and these wait for it.
        let numbers = self.0.shared.subjects.first_two(whom);
        let mut state = self.0.shared.lock();
        state.stand_in = Some(thread::current().id());
        state.stand_in_busy = true;
        state.begins(numbers.into_iter().flatten());
        self.0.shared.publish(&state);
    }

    fn deliver(&self) {
        let mut state = self.0.shared.lock();
        (state.batches, state.delivers) = (state.batches + 1, true);
    }

    fn settle(&self, since: Instant, limit: Duration) {
        self.0.shared.settle(since, limit);
    }

    fn lend(&self) -> bool {
        self.0.shared.lend()
    }

    fn rest(&self) {
        self.0.shared.rest();
    }
}

impl State {
    /// Nobody is left to wait for; `all`: nor anybody whom it is no loss to start the batch without.
    pub(super) fn settled(&self, all: bool) -> bool {
        self.answered == 0 && (!all || self.woken.is_empty() && self.running == 0)
    }

    /// The guest is queued among the woken, or for something else.
    pub(super) fn note(&mut self, seat: &Place, woken: bool) {
        seat.queued.store(true, Ordering::Relaxed);
        if !woken {
            return self.waits(seat);
        }
        if self.delivers && self.stand_in == Some(thread::current().id()) {
            seat.batch.store(self.batches, Ordering::Relaxed);
            seat.wakes.store(0, Ordering::Relaxed);
        }
        // One that was answered and has waited for something else since is not done; nor is one at the end of a slice.
        if seat.batch.load(Ordering::Relaxed) == self.batches
            && !seat.answered.load(Ordering::Relaxed)
            && seat.wakes.fetch_add(1, Ordering::Relaxed) <= WAKES_MOST
        {
            seat.answered.store(true, Ordering::Relaxed);
            self.answered += 1;
        }
    }

    /// A batch begins in which these subjects have part; of more than two any two. One that only moves pages is none.
    fn begins(&mut self, whom: impl Iterator<Item = usize>) {
        let mut whom = whom.peekable();
        self.begun += u64::from(whom.peek().is_some());
        for subject in whom {
            let [latest, _] = self.served;
            if latest.is_some_and(|(other, _)| other != subject) {
                self.served[1] = latest;
            }
            self.served[0] = Some((subject, self.begun));
        }
    }

    /// The number is a new subject's from now on: no batch was for it.
    pub(super) fn begin(&mut self, number: usize) {
        self.woken.begin(number);
        self.exhausted.begin(number);
        self.ending.begin(number);
        self.heavy.begin(number);
        let others = |served: &(usize, u64)| served.0 != number;
        let [latest, before] = self.served.map(|served| served.filter(others));
        self.served = if latest.is_some() { [latest, before] } else { [before, None] };
    }

    /// While batches follow each other: whose they are.
    pub(super) fn model_is_for(&self) -> usize {
        let recent = |served: Option<(usize, u64)>| {
            served.filter(|(_, batch)| self.stand_in.is_some() && self.begun - batch < RECENT)
        };
        match self.served.map(recent) {
            [Some(_), Some(_)] => SEVERAL,
            [Some((subject, _)), None] | [None, Some((subject, _))] => subject,
            [None, None] => NOBODY,
        }
    }

    /// No batch need wait for the guest.
    pub(super) fn waits(&mut self, seat: &Place) {
        self.answered -= usize::from(seat.answered.swap(false, Ordering::Relaxed));
    }
}

/// Batches follow each other, and others than this subject have part in them.
pub(super) fn is_busy_beside(model_is_for: &AtomicUsize, subject: usize) -> bool {
    let whose = model_is_for.load(Ordering::Relaxed);
    whose != NOBODY && whose != subject
}

impl Shared {
    pub(super) fn is_busy_beside(&self, subject: usize) -> bool {
        is_busy_beside(&self.model_is_for, subject)
    }

    /// Runs woken guests until all have come to their next wait, here and on the other threads; those that the thread's
    /// batch has not answered no longer than a part of the time.
    pub(super) fn settle(&self, since: Instant, limit: Duration) {
        let mut state = self.lock();
        (state.stand_in_busy, state.delivers) = (false, false);
        self.publish(&state);
        let here = state.stand_in == Some(thread::current().id());
        let (all_until, end) = (since + if here { limit / OTHERS_PART } else { limit }, since + limit);
        while !state.ended {
            let now = Instant::now();
            if state.settled(now < all_until) {
                break;
            }
            if now >= end {
                return;
            }
            let end = if state.answered > 0 { end } else { all_until };
            // The first worker may still be in the slice that it was in when somebody came to stand in for it.
            if here && !state.first_runs {
                // The only worker gives the exhausted their turn, too.
                let turn = if self.size == 1 { state.next() } else { state.next_woken() };
                if let Some(turn) = turn {
                    state = self.slice_here(state, turn);
                    continue;
                }
            }
            if !state.first_runs {
                drop(state);
                let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
                let all = now < all_until;
                let changed = || match count(&self.woken) {
                    0 => count(&self.answered) == 0 && (!all || count(&self.running) == 0),
                    _ => here,
                };
                let seen = look_out(end.min(now + LOOKOUT), changed);
                state = self.lock();
                if seen || (here && !state.woken.is_empty()) {
                    continue;
                }
            }
            (state.stand_in_busy, state.settling) = (here, true);
            self.publish(&state);
            let left = end.saturating_duration_since(Instant::now());
            let waited = self.settled.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            (state.stand_in_busy, state.settling) = (false, false);
            self.publish(&state);
        }
        // There is no other worker whose turn these could be, as long as batches follow each other.
        if here
            && self.size == 1
            && !state.first_runs
            && let Some(turn) = state.next_exhausted()
        {
            drop(self.slice_here(state, turn));
        }
    }

    /// Runs a slice of a guest in the first worker's place, while no batch keeps this thread. It counts as busy all the same:
    /// whoever is woken need not wait for it.
    pub(super) fn lend(&self) -> bool {
        if self.size > 1 && self.woken.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut state = self.lock();
        if state.stand_in != Some(thread::current().id()) || state.first_runs {
            return false;
        }
        // The only worker gives the exhausted their turn, too.
        let turn = if self.size == 1 { state.next() } else { state.next_woken() };
        turn.map(|turn| drop(self.slice(state, turn))).is_some()
    }

    pub(super) fn slice_here<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        turn: Turn,
    ) -> MutexGuard<'s, State> {
        state.stand_in_busy = true;
        let mut state = self.slice(state, turn);
        state.stand_in_busy = false;
        self.publish(&state);
        state
    }

    pub(super) fn stand_in_is(&self, busy: bool) {
        let mut state = self.lock();
        state.stand_in_busy = busy;
        self.publish(&state);
    }

    /// Nobody stands in for the first worker any more.
    pub(super) fn rest(&self) {
        let mut state = self.lock();
        if state.stand_in.take().is_some() {
            self.publish(&state);
            for _ in state.looking..state.queued().min(self.size) {
                self.sleeper(&mut state).into_iter().for_each(Condvar::notify_one);
            }
        }
    }
}
