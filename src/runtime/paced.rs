//! Work that takes long, for threads of low priority: whose turn it is, and whose it is not yet.
//!
//! Owns: the queue, in which subjects take turns (`fair.rs`) unless they rest (`subjects.rs`). Never: a thread, what the
//! work is, whether the model is busy.
//!
//! Low priority alone does not keep such threads from those that are waited for: a system gives turns of some
//! milliseconds, and a batch has a barrier every tenth of one. So while the model is busy for others, a subject has one
//! such turn at a time, and a part of one thread's time.

use super::subjects::{LOOK, Subjects};
use crate::fair::Fair;
use std::cell::Cell;
use std::time::{Duration, Instant};

pub(super) struct Paced<T> {
    fair: Fair<T>,
    subjects: Subjects,
}

/// What a thread is to do.
pub(super) enum Next<T> {
    /// The turn of this subject has begun; [`Paced::over`] ends it.
    Turn(usize, T),
    /// All who wait have to rest: ask again then.
    Rest(Duration),
    Nothing,
}

impl<T> Paced<T> {
    pub fn new(subjects: Subjects) -> Paced<T> {
        Paced { fair: Fair::default(), subjects }
    }

    /// The number is a new subject's from now on.
    pub fn begin(&mut self, subject: usize) {
        self.fair.begin(subject);
    }

    /// How often somebody has come to wait where nobody of its subject was.
    #[cfg(test)]
    pub fn entered(&self) -> u64 {
        self.fair.entered()
    }

    pub fn push(&mut self, subject: usize, one: T) {
        self.fair.push(subject, one);
    }

    /// `busy`: whether the model computes for others than the subject.
    pub fn next(&mut self, busy: impl Fn(usize) -> bool, now: Instant) -> Next<T> {
        // Whether a rest is still needed may change before it is over.
        let least = Cell::new(LOOK);
        let may = |subject: usize| {
            let left = if busy(subject) { self.subjects.waits(subject, now) } else { Duration::ZERO };
            least.set(least.get().min(if left.is_zero() { LOOK } else { left }));
            left.is_zero()
        };
        match self.fair.pop_of(may) {
            Some((subject, one)) => {
                self.subjects.begin(subject);
                Next::Turn(subject, one)
            }
            None if self.fair.is_empty() => Next::Nothing,
            None => Next::Rest(least.get()),
        }
    }

    /// A turn of the subject is over and has computed for so long.
    pub fn over(&mut self, subject: usize, took: Duration, now: Instant) {
        self.fair.over(subject, took.as_nanos() as u64);
        self.subjects.over(subject, took, now);
    }

    /// Takes out all that wait.
    pub fn clear(&mut self) -> Fair<T> {
        std::mem::take(&mut self.fair)
    }

    /// Takes one out of the subject's queue before its turn.
    pub fn take(&mut self, subject: usize, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        self.fair.take(subject, is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Subject;

    #[test]
    fn while_the_model_is_busy_for_others_a_subject_rests_and_keeps_nobody_waiting() {
        let subjects = Subjects::default();
        let _held = ["a", "b"].map(|name| subjects.enter(&Subject::new(name)));
        let mut paced = Paced::new(subjects);
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let busy = |_subject: usize| true;
        (0..4).for_each(|one| paced.push(0, one));
        assert!(matches!(paced.next(busy, start), Next::Turn(0, 0)));
        assert!(matches!(paced.next(busy, start), Next::Rest(least) if least == LOOK), "one turn at a time");
        paced.over(0, Duration::from_millis(10), after(10));
        assert!(
            matches!(paced.next(busy, after(11)), Next::Rest(least) if least == LOOK),
            "it asks again soon"
        );
        assert!(matches!(paced.next(busy, after(38)), Next::Rest(least) if least == LOOK / 10));
        paced.push(1, 10);
        assert!(matches!(paced.next(busy, after(11)), Next::Turn(1, 10)));
        paced.over(1, Duration::from_millis(1), after(12));
        assert!(matches!(paced.next(busy, after(39)), Next::Rest(_)));
        assert!(matches!(paced.next(busy, after(40)), Next::Turn(0, 1)));
        paced.over(0, Duration::from_secs(60), after(90));
        let for_it_alone = |subject: usize| subject != 0;
        assert!(
            matches!(paced.next(for_it_alone, after(90)), Next::Turn(0, 2)),
            "nobody else needs the core"
        );
        assert!(matches!(paced.next(for_it_alone, after(90)), Next::Turn(0, 3)), "nor the second thread");
        (0..2).for_each(|_| paced.over(0, Duration::from_secs(60), after(100)));
        assert!(matches!(paced.next(busy, after(5000)), Next::Nothing));
        paced.push(0, 4);
        assert!(matches!(paced.next(busy, after(10_100)), Next::Turn(0, 4)), "however long it was");
    }
}
