//! Which pages and embeddings the guest holds, by the engine's answers so far.
//!
//! Owns: a copy of the names, so that a wrong one ends the guest at the very call and names the argument; the engine
//! would find it too, but only after the guest has gone on. Never: what a name stands for.
//!
//! The copy is exact: names act at once in call order, and only this guest's own calls give or take them.

use crate::engine::operation::{Kind, VirtualId};
use crate::host::Trap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clones are one set: a waiting call adds the names it was given when its answer comes.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    pages: Set,
    embeds: Set,
}

/// Numbers, 64 to a word. Names come counted up, so a sequence's pages share a few words.
#[derive(Default)]
struct Set(HashMap<u32, u64>);

impl Set {
    fn insert(&mut self, id: u32) {
        *self.0.entry(id / 64).or_default() |= 1 << (id % 64);
    }

    fn remove(&mut self, id: u32) -> bool {
        let Some(word) = self.0.get_mut(&(id / 64)) else { return false };
        let bit = 1 << (id % 64);
        let held = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            self.0.remove(&(id / 64));
        }
        held
    }
}

impl Held {
    fn of(&mut self, kind: Kind) -> &mut Set {
        match kind {
            Kind::Page => &mut self.pages,
            Kind::Embed => &mut self.embeds,
        }
    }
}

impl Names {
    pub fn add(&self, kind: Kind, ids: &[VirtualId]) {
        let mut held = self.lock();
        ids.iter().for_each(|id| held.of(kind).insert(id.0));
    }

    /// Gives them up; one that is not held (any more) is an error that names `argument`.
    pub fn remove(&self, kind: Kind, ids: &[VirtualId], argument: &str) -> Result<(), Trap> {
        let mut held = self.lock();
        match ids.iter().find(|id| !held.of(kind).remove(id.0)) {
            Some(id) => Err(not_held(kind, *id, argument)),
            None => Ok(()),
        }
    }

    /// All of them are held, or an error that names `argument`.
    pub fn check(
        &self,
        kind: Kind,
        ids: impl IntoIterator<Item = VirtualId>,
        argument: &str,
    ) -> Result<(), Trap> {
        let mut held = self.lock();
        let words = &held.of(kind).0;
        let (mut at, mut word) = (u32::MAX, 0);
        for VirtualId(id) in ids {
            if id / 64 != at {
                (at, word) = (id / 64, words.get(&(id / 64)).copied().unwrap_or(0));
            }
            if word & (1 << (id % 64)) == 0 {
                return Err(not_held(kind, VirtualId(id), argument));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Each change is one word; there is no half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_held(kind: Kind, id: VirtualId, argument: &str) -> Trap {
    Trap::error(format!("{argument} names {kind} {}, which this instance does not hold", id.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::toy::Random;
    use std::collections::HashSet;

    #[test]
    fn it_knows_what_a_plain_set_knows() {
        let (names, mut plain, mut random) = (Names::default(), HashSet::new(), Random::new(3));
        for round in 0..20_000 {
            let id = VirtualId(random.below(200) as u32);
            match random.below(3) {
                0 => {
                    names.add(Kind::Page, &[id]);
                    plain.insert(id);
                }
                1 => {
                    let removed = names.remove(Kind::Page, &[id], "ptrs").is_ok();
                    assert_eq!(removed, plain.remove(&id), "seed 3 round {round}");
                }
                _ => {
                    let held = names.check(Kind::Page, [id], "ptrs").is_ok();
                    assert_eq!(held, plain.contains(&id), "seed 3 round {round}");
                    assert!(names.check(Kind::Embed, [id], "ptrs").is_err());
                }
            }
        }
        assert!(names.lock().pages.0.len() <= 200usize.div_ceil(64));
    }
}
