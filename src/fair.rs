//! Who of those that wait has the next turn: the subject that was served least, and of its own the one that waits longest.
//!
//! Owns: the queue of each subject, what each was served, and the order among them. Never: a thread, a clock, what waits.
//! Pure: the same calls give the same turns. A turn costs the logarithm of the number of subjects, and as much again for
//! each that may not have it.
//!
//! A subject saves nothing up: one that was idle is where those are that were not, so it has its turn soon, but not many
//! in a row. Turns are of bounded length, and each guest waits at most once, so within a subject first come, first
//! served is fair.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// What waits, by subject; subjects are small numbers.
pub struct Fair<T> {
    subjects: Vec<Share<T>>, // [subject]
    /// What a subject was served when it was put here, and when that was: once for each subject with someone waiting.
    order: BinaryHeap<Entry>,
    /// What the subject whose turn came last had been served before.
    pace: u64,
    entered: u64,
    len: usize,
}

/// What its subject was served then, how many had come before, and the subject.
type Entry = (Reverse<u64>, Reverse<u64>, usize);

struct Share<T> {
    served: u64,
    waiting: VecDeque<T>,
    /// Turns that have begun and are not over.
    running: usize,
    in_order: bool,
}

impl<T> Default for Fair<T> {
    fn default() -> Fair<T> {
        Fair { subjects: Vec::new(), order: BinaryHeap::new(), pace: 0, entered: 0, len: 0 }
    }
}

impl<T> Fair<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How often somebody has come to wait where nobody of its subject was.
    #[cfg(test)]
    pub fn entered(&self) -> u64 {
        self.entered
    }

    /// The number is a new subject's from now on, which begins where the others are, whatever of the old one still waits.
    pub fn begin(&mut self, subject: usize) {
        let pace = self.pace;
        self.share(subject).served = pace;
    }

    pub fn push(&mut self, subject: usize, one: T) {
        let pace = self.pace;
        let share = self.share(subject);
        if share.waiting.is_empty() && share.running == 0 {
            share.served = share.served.max(pace);
        }
        share.waiting.push_back(one);
        self.len += 1;
        self.enter(subject);
    }

    /// Begins a turn; [`Fair::over`] ends it.
    pub fn pop(&mut self) -> Option<(usize, T)> {
        self.pop_of(|_| true)
    }

    /// The same among some of the subjects.
    pub fn pop_of(&mut self, may: impl Fn(usize) -> bool) -> Option<(usize, T)> {
        let mut others = Vec::new(); // takes memory only for those who may not
        let turn = self.pop_among(may, &mut others);
        self.order.extend(others);
        turn
    }

    fn pop_among(&mut self, may: impl Fn(usize) -> bool, others: &mut Vec<Entry>) -> Option<(usize, T)> {
        while let Some(entry) = self.order.pop() {
            let (Reverse(served), _, subject) = entry;
            if !may(subject) {
                others.push(entry);
                continue;
            }
            let share = &mut self.subjects[subject];
            share.in_order = false;
            if served == share.served
                && let Some(one) = share.waiting.pop_front()
            {
                share.running += 1;
                self.len -= 1;
                self.pace = self.pace.max(served);
                self.enter(subject);
                return Some((subject, one));
            }
            self.enter(subject); // It was served since.
        }
        None
    }

    /// A turn of the subject is over and took so much.
    pub fn over(&mut self, subject: usize, took: u64) {
        let share = self.share(subject);
        share.running = share.running.saturating_sub(1);
        share.served = share.served.saturating_add(took);
    }

    /// Takes one out of the subject's queue before its turn.
    pub fn take(&mut self, subject: usize, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let waiting = &mut self.share(subject).waiting;
        let at = waiting.iter().position(is_it)?;
        let one = waiting.remove(at);
        self.len -= usize::from(one.is_some());
        one
    }

    fn enter(&mut self, subject: usize) {
        let share = &mut self.subjects[subject];
        if !share.in_order && !share.waiting.is_empty() {
            share.in_order = true;
            self.entered += 1;
            self.order.push((Reverse(share.served), Reverse(self.entered), subject));
        }
    }

    fn share(&mut self, subject: usize) -> &mut Share<T> {
        while self.subjects.len() <= subject {
            let waiting = VecDeque::new();
            self.subjects.push(Share { served: 0, waiting, running: 0, in_order: false });
        }
        &mut self.subjects[subject]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    /// Subjects of random sizes whose guests always want a turn, on several threads, with turns of random length.
    #[test]
    fn subjects_share_alike_and_so_do_the_guests_of_each() {
        for seed in 1..=200 {
            println!("seed {seed}");
            let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
            let sizes: Vec<u64> = (0..2 + dice.below(5)).map(|_| 4 + dice.below(200)).collect();
            let mut fair = Fair::default();
            let (mut had, mut turns) = (vec![0; sizes.len()], vec![]);
            for (subject, size) in sizes.iter().enumerate() {
                turns.push(vec![0u32; *size as usize]);
                (0..*size).for_each(|guest| fair.push(subject, guest));
            }
            let threads = 1 + dice.below(4) as usize;
            let mut running = Vec::new();
            for _ in 0..20_000 {
                if running.len() < threads {
                    let (subject, guest) = fair.pop().expect("all wait, or nearly");
                    turns[subject][guest as usize] += 1;
                    running.push((subject, guest));
                } else {
                    let (subject, guest) = running.swap_remove(dice.below(threads as u64) as usize);
                    let took = 1 + dice.below(200);
                    had[subject] += took;
                    fair.over(subject, took);
                    fair.push(subject, guest);
                }
            }
            let (least, most) = (had.iter().min().expect("several"), had.iter().max().expect("several"));
            assert!(most - least <= 200 * (threads as u64 + 1), "{had:?} of {sizes:?}");
            for turns in turns {
                let (least, most) = (turns.iter().min().expect("some"), turns.iter().max().expect("some"));
                // One whose turns are long has fewer.
                assert!(most - least <= 4 + least / 5, "within a subject {least} to {most}");
            }
        }
    }

    /// Whoever comes after a pause is next but for those whose turn has begun, and has saved up no second turn in a row.
    #[test]
    fn a_newcomer_is_next_among_hundreds_and_then_takes_turns() {
        let mut fair = Fair::default();
        (0..200).for_each(|guest| fair.push(0, guest));
        for round in 0..50 {
            let (subject, guest) = fair.pop().expect("they wait");
            assert_eq!(subject, 0, "in round {round}");
            fair.push(1, 1000);
            fair.push(1, 1001);
            fair.over(0, 100);
            fair.push(0, guest);
            let order: Vec<usize> = (0..3)
                .map(|_| {
                    let (subject, guest) = fair.pop().expect("they wait");
                    fair.over(subject, 100);
                    if subject == 0 {
                        fair.push(0, guest);
                    }
                    subject
                })
                .collect();
            assert!(order[0] == 1 && order.iter().filter(|s| **s == 1).count() == 2, "{order:?}");
        }
    }

    /// The story: a number whose old subject still had something waiting began at nothing, and came before all others for minutes.
    #[test]
    fn a_number_begins_where_the_others_are_though_something_waits() {
        let mut fair = Fair::default();
        for _ in 0..10 {
            fair.push(0, "old");
            fair.push(1, "other");
            while let Some((subject, _)) = fair.pop() {
                fair.over(subject, 100);
            }
        }
        fair.push(0, "left behind");
        fair.begin(0);
        (0..10).for_each(|_| fair.push(0, "new"));
        (0..10).for_each(|_| fair.push(1, "other"));
        let next: Vec<&str> = (0..8)
            .filter_map(|_| {
                let (subject, one) = fair.pop()?;
                fair.over(subject, 100);
                Some(one)
            })
            .collect();
        let others = next.iter().filter(|one| **one == "other").count();
        assert!((3..=5).contains(&others), "{next:?}");
    }

    #[test]
    fn one_that_is_taken_out_has_no_turn_and_nobody_loses_theirs() {
        let mut fair = Fair::default();
        [(0, 1), (0, 2), (1, 3)].into_iter().for_each(|(subject, one)| fair.push(subject, one));
        assert_eq!((fair.take(0, |one| *one == 1), fair.take(0, |one| *one == 1)), (Some(1), None));
        assert_eq!(fair.take(1, |one| *one == 3), Some(3));
        assert_eq!(fair.len(), 1);
        assert_eq!(fair.pop(), Some((0, 2)));
        assert!(fair.pop().is_none() && fair.is_empty());
        fair.push(1, 4);
        assert_eq!(fair.pop(), Some((1, 4)));
    }
}
