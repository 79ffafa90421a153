//! So many at a time for each, and the others of its own wait: a line for everybody who has somebody there.
//!
//! Owns: the lines. Never: what one waits for, or how long; nor anybody's memory: a line goes with the last who is in it.

use smol::lock::Semaphore;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

pub struct Lines<K> {
    at_a_time: usize,
    lines: Mutex<HashMap<K, Weak<Semaphore>>>,
}

impl<K: Eq + Hash + Clone> Lines<K> {
    pub fn new(at_a_time: usize) -> Lines<K> {
        Lines { at_a_time, lines: Mutex::default() }
    }

    /// The line of one.
    pub fn of(&self, who: &K) -> Arc<Semaphore> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner); // whole between any two statements
        if let Some(line) = lines.get(who).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::new(Semaphore::new(self.at_a_time));
        lines.insert(who.clone(), Arc::downgrade(&line));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_line_as_long_as_somebody_is_in_it() {
        let lines = Lines::new(2);
        let first = lines.of(&"a").try_acquire_arc().expect("a place");
        let second = lines.of(&"a").try_acquire_arc().expect("another");
        assert!(lines.of(&"a").try_acquire_arc().is_none());
        assert!(lines.of(&"b").try_acquire_arc().is_some());
        drop(first);
        assert!(lines.of(&"a").try_acquire_arc().is_some());
        drop(second);
        lines.of(&"c");
        lines.of(&"d");
        assert_eq!(lines.lines.lock().unwrap().len(), 1, "those of nobody went");
    }
}
