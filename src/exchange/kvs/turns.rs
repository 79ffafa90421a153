//! Whose write is next: subjects with something waiting take turns, and a subject's own come in the order they came in.
//!
//! Owns: the order. Never: a bound, which is how many writes may be on their way; what a write is. Pure.
//!
//! So whoever comes waits for one write of each other subject, and not for all that one of them has sent.

use crate::identity::Subject;
use std::collections::{HashMap, VecDeque};

pub(super) struct Turns<T> {
    /// Of subjects with something waiting.
    waiting: HashMap<Subject, VecDeque<T>>,
    /// The same subjects, each once, the next one first.
    order: VecDeque<Subject>,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { waiting: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn push(&mut self, subject: &Subject, one: T) {
        if let Some(waiting) = self.waiting.get_mut(subject) {
            return waiting.push_back(one);
        }
        self.waiting.insert(subject.clone(), VecDeque::from([one]));
        self.order.push_back(subject.clone());
    }

    pub fn pop(&mut self) -> Option<T> {
        let subject = self.order.pop_front()?;
        let waiting = self.waiting.get_mut(&subject)?;
        let one = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&subject);
        } else {
            self.order.push_back(subject);
        }
        one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_take_turns_and_each_keeps_its_own_order() {
        let (mut turns, [a, b, c]) = (Turns::default(), ["a", "b", "c"].map(Subject::new));
        (0..4).for_each(|one| turns.push(&a, one));
        (10..12).for_each(|one| turns.push(&b, one));
        assert_eq!([(); 2].map(|_| turns.pop()), [Some(0), Some(10)]);
        turns.push(&c, 20);
        turns.push(&a, 4);
        let rest: Vec<i32> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(rest, [1, 11, 20, 2, 3, 4]);
        assert!(turns.is_empty() && turns.waiting.is_empty());
        turns.push(&b, 12);
        assert!(!turns.is_empty() && turns.pop() == Some(12));
    }
}
