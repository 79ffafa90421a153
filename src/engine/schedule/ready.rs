//! The passes of one instance that may run now.
//!
//! Owns: the order in which those of each class are served: as they were submitted. Never: the order between classes, or
//! between instances, which follows from what was served and how long each waited (`choose.rs`).
//!
//! A turn asks for the first of each class and goes on from there, so it costs what it takes, however much waits.

use crate::engine::hazards::JobId;
use crate::engine::job::Class;
use crate::engine::operation::Priority;
use std::collections::BTreeSet;
use std::ops::Bound;

const CLASSES: [Class; 6] = {
    use Priority::{High, Low, Normal};
    [
        Class { priority: Low, long: false },
        Class { priority: Low, long: true },
        Class { priority: Normal, long: false },
        Class { priority: Normal, long: true },
        Class { priority: High, long: false },
        Class { priority: High, long: true },
    ]
};

#[derive(Default)]
pub(super) struct Ready([BTreeSet<JobId>; CLASSES.len()]);

impl Ready {
    fn place(class: Class) -> usize {
        2 * class.priority as usize + usize::from(class.long)
    }

    pub fn insert(&mut self, class: Class, id: JobId) {
        self.0[Ready::place(class)].insert(id);
    }

    pub fn remove(&mut self, class: Class, id: JobId) {
        self.0[Ready::place(class)].remove(&id);
    }

    /// The first of each class that has any, and how many there are of it.
    pub fn heads(&self) -> impl Iterator<Item = (Class, JobId, usize)> {
        let of = |class| (class, &self.0[Ready::place(class)]);
        CLASSES.into_iter().map(of).filter_map(|(class, ids)| Some((class, *ids.first()?, ids.len())))
    }

    /// The one that is served after `id`, of the same class.
    pub fn after(&self, class: Class, id: JobId) -> Option<JobId> {
        let behind = (Bound::Excluded(id), Bound::Unbounded);
        self.0[Ready::place(class)].range(behind).next().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_place() {
        let mut ready = Ready::default();
        for (place, class) in CLASSES.into_iter().enumerate() {
            assert_eq!(Ready::place(class), place);
            ready.insert(class, JobId(place as u64 + 10));
            ready.insert(class, JobId(place as u64));
        }
        let heads: Vec<_> = (0..).zip(CLASSES).map(|(place, class)| (class, JobId(place), 2)).collect();
        assert_eq!(ready.heads().collect::<Vec<_>>(), heads);
        assert_eq!(ready.after(CLASSES[4], JobId(4)), Some(JobId(14)));
        ready.remove(CLASSES[4], JobId(14));
        assert_eq!(ready.after(CLASSES[4], JobId(4)), None);
    }
}
