//! Small numbers for subjects, and how each shares the threads for long work and the io thread.
//!
//! Owns: which number is whose, and of each subject the long turns and translations that run, the rest after one, and what it
//! has used of the io thread. Never: a thread, a queue, what the work is, whether the model is busy.
//!
//! A number is a subject's as long as somebody holds it or its rest lasts: or whoever ends its last guest would have
//! rested.

use crate::clock;
use crate::identity::Subject;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After a long turn a subject rests so many times as long as that computed, ...
const RESTS: u32 = 3;
/// ... but not longer than this.
const REST_MOST: Duration = Duration::from_secs(10);
/// After a program of it was translated, at the usual priority, a subject's next one waits so many times as long, ...
const TRANSLATION_RESTS: u32 = 30;
/// ... but not longer than this: its connection waits meanwhile.
const TRANSLATION_REST_MOST: Duration = Duration::from_secs(8);
/// While others wait for the model a subject has one part in so many of the io thread, ...
const IO_PART: u32 = 32;
/// ... after it has had so much at once.
const IO_BURST: Duration = Duration::from_millis(10);
/// After so long everything is paid for.
const IO_OWED_MOST: Duration = Duration::from_secs(1);
/// How soon to ask again about a turn that runs.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Cheap to clone; all clones give out the same numbers.
#[derive(Clone, Default)]
pub(super) struct Subjects(Arc<Mutex<Numbers>>);

#[derive(Default)]
struct Numbers {
    of: HashMap<Subject, usize>,
    shares: Vec<Share>, // [number]
    free: Vec<usize>,
}

#[derive(Default)]
struct Share {
    holders: usize,
    /// On threads of low priority.
    long: Turns,
    translations: Turns,
    /// When its part of the io thread will have paid for what it has used of it.
    io_paid: [Option<Instant>; 2], // [Traffic]
}

#[derive(Default)]
struct Turns {
    running: usize,
    rests_until: Option<Instant>,
}

impl Turns {
    /// How long the next one has to wait while others wait for the model. Zero: no longer.
    fn wait(&self, now: Instant) -> Duration {
        match self.running {
            0 => self.rests_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
            _ => LOOK,
        }
    }
}

/// Who uses the io thread for a subject: it itself, or whoever visits its server instances, which it may not be able to help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Own,
    Visitors,
}

/// A subject's number, which is nobody else's until the last of these is dropped.
pub(super) struct Number {
    pub number: usize,
    /// It has just become this subject's: what a queue knows of it is another's.
    pub new: bool,
    subjects: Subjects,
}

/// A subject's turn to have a program translated, on a thread of the usual priority; over when this is dropped.
pub struct Turn {
    number: Number,
    took: Duration,
}

impl Turn {
    /// What the turn is for, on the calling thread.
    pub fn of<R>(mut self, work: impl FnOnce() -> R) -> R {
        let since = clock::computed();
        let made = catch_unwind(AssertUnwindSafe(work));
        self.took = clock::computed().saturating_sub(since);
        made.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut numbers = self.number.subjects.lock();
        let turns = &mut numbers.shares[self.number.number].translations;
        turns.running -= 1;
        let now = clock::now();
        let after = turns.rests_until.map_or(now, |until| until.max(now)) + self.took * TRANSLATION_RESTS;
        turns.rests_until = Some(after.min(now + TRANSLATION_REST_MOST));
    }
}

impl Subjects {
    pub fn enter(&self, subject: &Subject) -> Number {
        let (number, new) = self.lock().enter(subject, Instant::now());
        Number { number, new, subjects: self.clone() }
    }

    /// The numbers of the first two different subjects that have one. One that comes several times in a row is looked up
    /// once.
    pub fn first_two(&self, subjects: &mut dyn Iterator<Item = &Subject>) -> [Option<usize>; 2] {
        let (mut found, mut last) = ([None; 2], None);
        for subject in subjects {
            if last.replace(subject) == Some(subject) {
                continue;
            }
            match self.lock().of.get(subject).copied() {
                Some(number) if found[0].is_none() => found[0] = Some(number),
                Some(number) if found[0] != Some(number) => return [found[0], Some(number)],
                _ => {}
            }
        }
        found
    }

    /// A long turn of the subject begins; [`Subjects::over`] ends it.
    pub fn begin(&self, number: usize) {
        self.lock().shares[number].long.running += 1;
    }

    /// A translation of the subject begins.
    pub fn translates(&self, number: Number) -> Turn {
        self.lock().shares[number.number].translations.running += 1;
        Turn { number, took: Duration::ZERO }
    }

    /// How long its next one has to wait while others wait for the model.
    pub fn translation_waits(&self, number: usize, now: Instant) -> Duration {
        self.lock().shares[number].translations.wait(now)
    }

    /// One is over and has computed for so long.
    pub fn over(&self, number: usize, took: Duration, now: Instant) {
        let mut numbers = self.lock();
        let turns = &mut numbers.shares[number].long;
        turns.running -= 1;
        // Another thread's turn of it may have been longer.
        turns.rests_until = turns.rests_until.max(Some(now + (took * RESTS).min(REST_MOST)));
    }

    /// How long the subject has to wait for its next long turn while others wait for the model. Zero: no longer.
    pub fn waits(&self, number: usize, now: Instant) -> Duration {
        self.lock().shares[number].long.wait(now)
    }

    /// Something of the subject uses so much of the io thread while others wait for the model: how long until its part has paid
    /// for that.
    pub fn io(&self, number: usize, traffic: Traffic, takes: Duration, now: Instant) -> Duration {
        let io_paid = &mut self.lock().shares[number].io_paid[traffic as usize];
        let free = now + IO_BURST * IO_PART;
        let paid = io_paid.map_or(now, |paid| paid.max(now)) + takes * IO_PART;
        let paid = paid.min(free + IO_OWED_MOST);
        *io_paid = Some(paid);
        paid.saturating_duration_since(free)
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        // Whole between any two statements that can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbers {
    /// The subject's number, and whether it has just been given it.
    fn enter(&mut self, subject: &Subject, now: Instant) -> (usize, bool) {
        if let Some(number) = self.of.get(subject) {
            self.shares[*number].holders += 1;
            return (*number, false);
        }
        self.reclaim(now);
        let number = self.free.pop().unwrap_or_else(|| {
            self.shares.push(Share::default());
            self.shares.len() - 1
        });
        self.shares[number] = Share { holders: 1, ..Share::default() };
        self.of.insert(subject.clone(), number);
        (number, true)
    }

    /// Takes back the numbers that nobody holds and whose rest is over.
    fn reclaim(&mut self, now: Instant) {
        let Numbers { of, shares, free } = self;
        of.retain(|_, number| {
            let share = &shares[*number];
            let [own, visitors] = share.io_paid;
            let debts = [share.long.rests_until, share.translations.rests_until, own, visitors];
            let rests = debts.into_iter().flatten().any(|until| until > now);
            let kept = share.holders > 0 || rests;
            if !kept {
                free.push(*number);
            }
            kept
        });
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.subjects.lock().shares[self.number].holders -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The story: a client ran one long instruction in one guest after another. With each end the subject's number went,
    /// and its rest with it.
    #[test]
    fn a_rest_outlives_whoever_earned_it_and_then_the_number_is_anothers() {
        let (subjects, start) = (Subjects::default(), Instant::now());
        let (one, other) = (Subject::new("one"), Subject::new("other"));
        let first = subjects.enter(&one);
        subjects.begin(first.number);
        assert_eq!(subjects.waits(first.number, start), LOOK, "one turn at a time");
        subjects.over(first.number, Duration::from_secs(2), start);
        let number = first.number;
        drop(first);
        let second = subjects.enter(&other);
        assert_ne!(second.number, number);
        let again = subjects.enter(&one);
        assert_eq!((again.number, again.new), (number, false));
        assert_eq!(subjects.waits(number, start), Duration::from_secs(6));
        assert_eq!(subjects.waits(number, start + Duration::from_secs(6)), Duration::ZERO);
        drop(again);
        let (third, new) = subjects.lock().enter(&Subject::new("third"), start + Duration::from_secs(6));
        assert_eq!((third, new), (number, true));
        assert_eq!(subjects.waits(number, start), Duration::ZERO, "a newcomer has had no turn");
    }

    #[test]
    fn translations_wait_for_each_other_and_for_what_they_took_together_also_if_one_panics() {
        let subjects = Subjects::default();
        let enter = || subjects.enter(&Subject::new("one"));
        let held = enter();
        let (ms, start) = (Duration::from_millis(1), clock::now());
        let compute = || {
            let since = clock::computed();
            while clock::computed() - since < 5 * ms {}
        };
        let [first, second] = [subjects.translates(enter()), subjects.translates(enter())];
        first.of(compute);
        assert_eq!(subjects.translation_waits(held.number, start), LOOK, "the second runs");
        let panics = AssertUnwindSafe(|| {
            second.of(|| {
                compute();
                panic!("a mistake of the translator")
            })
        });
        assert!(catch_unwind(panics).is_err());
        let now = clock::now();
        let waits = subjects.translation_waits(held.number, now);
        assert!(waits + (now - start) >= 10 * ms * TRANSLATION_RESTS && waits <= TRANSLATION_REST_MOST);
        assert_eq!(subjects.waits(held.number, now), Duration::ZERO, "its guests' long work may go on");
        assert_eq!(subjects.translation_waits(held.number, now + TRANSLATION_REST_MOST), Duration::ZERO);
    }

    #[test]
    fn of_the_io_thread_a_subject_has_a_burst_and_then_its_part_in_turn() {
        let (subjects, start) = (Subjects::default(), Instant::now());
        let number = subjects.enter(&Subject::new("one"));
        let io =
            |takes: Duration, after: Duration| subjects.io(number.number, Traffic::Own, takes, start + after);
        let (ms, part) = (Duration::from_millis(1), IO_PART * Duration::from_millis(1));
        assert_eq!(io(IO_BURST, Duration::ZERO), Duration::ZERO);
        assert_eq!([io(ms, Duration::ZERO), io(ms, Duration::ZERO)], [part, 2 * part], "one after the other");
        assert_eq!(io(ms, 2 * part), part, "what rested goes on");
        assert_eq!(io(Duration::from_secs(5), 3 * part), IO_OWED_MOST, "however long it was");
        let visitors = subjects.io(number.number, Traffic::Visitors, IO_BURST, start + 3 * part);
        assert_eq!(visitors, Duration::ZERO, "they have a part of their own");
        // Who comes back with nothing left still owes.
        let one = number.number;
        drop(number);
        let now = start + 3 * part + IO_OWED_MOST;
        assert_ne!(subjects.lock().enter(&Subject::new("other"), now).0, one);
        let later = now + IO_BURST * IO_PART;
        assert_eq!(subjects.lock().enter(&Subject::new("third"), later), (one, true));
        assert_eq!(
            subjects.io(one, Traffic::Own, IO_BURST, later),
            Duration::ZERO,
            "a newcomer has its burst"
        );
    }
}
