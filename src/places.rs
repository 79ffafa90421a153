//! Places that several share: so many in all, and of these so many for each.
//!
//! Owns: who has how many. Never: what a place is for, or a wait for one.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Cheap to clone; all clones are one.
pub struct Places<K>(Arc<Shared<K>>);

struct Shared<K> {
    all: usize,
    each: usize,
    /// An entry for each place that is taken: at most `all`.
    taken: Mutex<Vec<K>>,
}

/// A place, until this is dropped.
pub struct Place<K: Eq> {
    places: Places<K>,
    who: K,
}

/// Why there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Whoever asked has so many, as many as one may.
    Each(usize),
    /// All together have so many.
    All(usize),
}

impl<K: Eq + Clone> Places<K> {
    pub fn new(all: usize, each: usize) -> Places<K> {
        Places(Arc::new(Shared { all, each, taken: Mutex::default() }))
    }

    pub fn take(&self, who: &K) -> Result<Place<K>, Full> {
        let mut taken = self.lock();
        if taken.len() >= self.0.all {
            return Err(Full::All(self.0.all));
        }
        if taken.iter().filter(|other| *other == who).count() >= self.0.each {
            return Err(Full::Each(self.0.each));
        }
        taken.push(who.clone());
        Ok(Place { places: self.clone(), who: who.clone() })
    }
}

impl<K> Places<K> {
    /// How many are.
    pub fn taken(&self) -> usize {
        self.lock().len()
    }

    /// Whole between any two statements here.
    fn lock(&self) -> MutexGuard<'_, Vec<K>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for Places<K> {
    fn clone(&self) -> Places<K> {
        Places(self.0.clone())
    }
}

impl<K: Eq> Place<K> {
    pub fn who(&self) -> &K {
        &self.who
    }
}

impl<K: Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(at) = taken.iter().position(|who| *who == self.who) {
            taken.swap_remove(at);
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Full::Each(limit) => write!(f, "{limit} are yours, the most that one may have"),
            Full::All(limit) => write!(f, "there are {limit}, the most that there may be"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_and_for_all_and_come_back() {
        let places = Places::new(3, 2);
        let mut held = vec![places.take(&"a").unwrap(), places.take(&"a").unwrap()];
        assert_eq!(places.take(&"a").err(), Some(Full::Each(2)));
        held.push(places.take(&"b").unwrap());
        assert_eq!((places.take(&"b").err(), places.taken()), (Some(Full::All(3)), 3));
        held.remove(0);
        assert!(places.clone().take(&"a").is_ok(), "all clones are one");
        assert_eq!((places.take(&"b").err(), places.taken()), (None, 2), "those were dropped at once");
    }
}
