//! Places that several share: so many in all, and of these so many for each.
//!
//! Owns: who has how many, and who waits for one: at [`Places`] nobody does, at [`Awaited`] whoever finds none. Never: what a
//! place is for.

use crate::identity::Subject;
use smol::lock::{Semaphore, SemaphoreGuardArc};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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

/// Places that one waits for: of a subject so many, and of everyone all, as where there is one subject there is nobody to be fair
/// to. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Awaited(Arc<Semaphores>);

struct Semaphores {
    most: usize,
    each: usize,
    all: Arc<Semaphore>,
    /// Of those that have a place, or wait for one.
    of: Mutex<HashMap<Subject, Weak<Semaphore>>>,
}

/// A place that was waited for, among one's own and among all; until this is dropped.
pub struct Held {
    _own: SemaphoreGuardArc,
    _all: SemaphoreGuardArc,
}

impl Awaited {
    pub fn new(most: usize, each: usize) -> Awaited {
        Awaited(Arc::new(Semaphores {
            most,
            each,
            all: Arc::new(Semaphore::new(most)),
            of: Mutex::default(),
        }))
    }

    /// Waits among one's own first: for what all share nobody has more waiting than it may have.
    pub async fn take(&self, who: &Subject) -> Held {
        let own = one_of(&self.own(who)).await;
        Held { _own: own, _all: one_of(&self.0.all).await }
    }

    fn own(&self, who: &Subject) -> Arc<Semaphore> {
        // Whole between any two statements here.
        let mut of = self.0.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of.get(who).and_then(Weak::upgrade) {
            return known;
        }
        of.retain(|_, semaphore| semaphore.strong_count() > 0);
        let most = if *who == Subject::everyone() { self.0.most } else { self.0.each };
        let semaphore = Arc::new(Semaphore::new(most));
        of.insert(who.clone(), Arc::downgrade(&semaphore));
        semaphore
    }
}

/// A semaphore wakes nobody else while somebody that it woke has not heard so. Two places that come free just after that one has
/// looked in vain are told to it alone, and it takes one: so whoever has one wakes the next for what is left.
async fn one_of(semaphore: &Arc<Semaphore>) -> SemaphoreGuardArc {
    let place = semaphore.acquire_arc().await;
    drop(semaphore.try_acquire_arc()); // to give one back wakes
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::channel::{Receiver, Sender, bounded};
    use smol::future::{block_on, poll_once};
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};
    use std::thread;

    /// Holds up whoever drops it: who gives its future another waker, and has the semaphore's list of sleepers locked meanwhile.
    struct Gate {
        closed: Sender<()>,
        open: Receiver<Infallible>,
    }

    impl Wake for Gate {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Gate {
        fn drop(&mut self) {
            let _ = self.closed.try_send(());
            let _ = self.open.recv_blocking(); // an error: there is no closer any more
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// The story: one was woken for a place that another had taken. When it had looked in vain, and before it could sleep again,
    /// two came free: it had one, and the other stood idle beside a sleeper. Not every round comes to that; what is asked holds
    /// in each.
    #[test]
    fn of_places_that_come_free_together_none_stands_idle() {
        for _ in 0..50 {
            let (places, a) = (Awaited::new(3, 3), Subject::new("a"));
            let taken = || block_on(poll_once(Box::pin(places.take(&a))));
            let mut held: Vec<Held> = (0..3).filter_map(|_| taken()).collect();
            let got = Mutex::new(Vec::new());
            let wait = || {
                Box::pin(async {
                    let held = places.take(&a).await;
                    got.lock().unwrap().push(held);
                })
            };
            let (mut first, mut second) = (wait(), wait());
            assert!(block_on(poll_once(&mut first)).is_none());
            let ((closed, closes), (closer, open)) = (bounded(1), bounded(1));
            let gate = Waker::from(Arc::new(Gate { closed, open }));
            assert!(second.as_mut().poll(&mut Context::from_waker(&gate)).is_pending());
            drop(gate);
            drop(held.pop()); // the first is woken, ...
            held.insert(0, taken().expect("and who comes just now is before it"));
            let woken = [(); 2].map(|_| Arc::new(Woken::default()));
            let wakers = woken.clone().map(Waker::from);
            let (looks, looking) = bounded(1);
            thread::scope(|threads| {
                threads.spawn(|| {
                    assert!(second.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
                    held.truncate(1);
                });
                closes.recv_blocking().unwrap();
                threads.spawn(|| {
                    looks.try_send(()).unwrap();
                    let _ = first.as_mut().poll(&mut Context::from_waker(&wakers[0]));
                });
                looking.recv_blocking().unwrap();
                (0..100).for_each(|_| thread::yield_now()); // it finds none, and waits for the list
                drop(closer);
            });
            let mut waiting = [first, second];
            while let Some(i) = (0..2).find(|i| woken[*i].0.swap(false, Ordering::SeqCst)) {
                let _ = waiting[i].as_mut().poll(&mut Context::from_waker(&wakers[i]));
            }
            assert_eq!(got.lock().unwrap().len(), 2, "there were two, and whoever was woken has looked");
        }
    }

    #[test]
    fn who_has_its_part_waits_for_its_own_and_nobody_for_it() {
        let (places, everyone) = (Awaited::new(3, 2), Subject::everyone());
        let [a, b, c] = ["a", "b", "c"].map(Subject::new);
        let taken = |who| block_on(poll_once(Box::pin(places.take(who))));
        let mut held: Vec<Held> = [&a, &a].into_iter().filter_map(taken).collect();
        let mut waiting = Box::pin(places.take(&a));
        assert!(block_on(poll_once(&mut waiting)).is_none());
        assert!(taken(&b).is_some(), "and it is given back");
        held.extend(taken(&b));
        assert!(taken(&c).is_none(), "there are three");
        held.remove(0);
        held.push(block_on(waiting));
        assert_eq!(held.len(), 3);
        drop(held);
        assert!(taken(&c).is_some());
        assert_eq!(places.0.of.lock().unwrap().len(), 1, "nobody is remembered who has none");
        let held: Vec<Held> = (0..4).filter_map(|_| taken(&everyone)).collect();
        assert_eq!(held.len(), 3, "where there is one subject, it has all");
    }

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
