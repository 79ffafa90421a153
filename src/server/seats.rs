//! Who has a connection to the door: those who have said who they are, and strangers.
//!
//! Owns: the two bounds, apart. Whoever is known keeps its seat, at most so many of one subject. Strangers have few, and one more
//! takes the seat of the one that has been here longest without a word: so nobody is kept out by those who only wait.
//! Never: sockets.

use crate::identity::Subject;
use crate::limits;
use crate::places::{Full, Place, Places};
use smol::channel::{Receiver, Sender};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What strangers leave to the others.
const KNOWN: usize = limits::CONNECTIONS - limits::STRANGERS;

pub struct Seats {
    known: Places<Subject>,
    strangers: Strangers,
    /// Whether one must say who one is.
    guarded: bool,
}

/// Of each what makes it go, the one that came first in front.
type Strangers = Arc<Mutex<VecDeque<Sender<Infallible>>>>;

/// A seat, until this is dropped.
pub struct Seat {
    known: Places<Subject>,
    own: Option<Place<Subject>>,
    strangers: Strangers,
    pushed: Sender<Infallible>,
}

/// Closes when a stranger has to make room.
pub type Pushed = Receiver<Infallible>;

impl Seats {
    pub fn new(guarded: bool) -> Seats {
        let known = match guarded {
            true => Places::new(KNOWN, limits::CONNECTIONS_PER_SUBJECT),
            // All are one.
            false => Places::new(limits::CONNECTIONS, limits::CONNECTIONS),
        };
        Seats { known, strangers: Strangers::default(), guarded }
    }

    /// A seat for somebody new.
    pub fn enter(&self) -> Result<(Seat, Pushed), Full> {
        let (pushed, leaves) = smol::channel::bounded(1);
        let mut own = None;
        if !self.guarded {
            own = Some(self.known.take(&Subject::everyone())?);
        } else if self.known.taken() >= KNOWN {
            return Err(Full::All(KNOWN)); // nobody could become known
        } else {
            let mut strangers = lock(&self.strangers);
            if strangers.len() >= limits::STRANGERS
                && let Some(longest) = strangers.pop_front()
            {
                longest.close();
            }
            strangers.push_back(pushed.clone());
        }
        let (known, strangers) = (self.known.clone(), self.strangers.clone());
        Ok((Seat { known, own, strangers, pushed }, leaves))
    }
}

impl Seat {
    /// The stranger is this subject's.
    pub fn keep_for(&mut self, subject: &Subject) -> Result<(), Full> {
        self.own = Some(self.known.take(subject)?);
        self.stand_up();
        Ok(())
    }

    fn stand_up(&self) {
        lock(&self.strangers).retain(|other| !other.same_channel(&self.pushed));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stand_up();
    }
}

/// Whole between any two statements here.
fn lock(strangers: &Strangers) -> MutexGuard<'_, VecDeque<Sender<Infallible>>> {
    strangers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_make_room_for_each_other_and_the_known_for_nobody() {
        let seats = Seats::new(true);
        let subject = |name: &str| Subject::new(name);
        let enter = || seats.enter().unwrap_or_else(|full| panic!("{full}"));
        let (mut honest, honest_leaves) = enter();
        honest.keep_for(&subject("honest")).unwrap();
        let mut strangers: Vec<_> = (0..limits::STRANGERS).map(|_| enter()).collect();
        assert!(strangers.iter().all(|(_, leaves)| !leaves.is_closed()));
        let (mut newest, newest_leaves) = enter();
        assert!(strangers[0].1.is_closed() && !strangers[1].1.is_closed(), "the one that came first goes");
        newest.keep_for(&subject("honest")).unwrap();
        strangers.truncate(1);
        assert!(!newest_leaves.is_closed() && !honest_leaves.is_closed());

        let mut greedy = Vec::new();
        let refused = loop {
            let (mut seat, _) = enter();
            match seat.keep_for(&subject("greedy")) {
                Ok(()) => greedy.push(seat),
                Err(full) => break full,
            }
        };
        assert_eq!(refused, Full::Each(limits::CONNECTIONS_PER_SUBJECT));
        assert_eq!(greedy.len(), limits::CONNECTIONS_PER_SUBJECT);
        let (mut third, _) = enter();
        third.keep_for(&subject("honest")).unwrap();
    }

    #[test]
    fn without_tokens_all_are_one() {
        let seats = Seats::new(false);
        let taken: Vec<_> = std::iter::from_fn(|| seats.enter().ok()).collect();
        assert_eq!(taken.len(), limits::CONNECTIONS);
        assert!(taken.iter().all(|(_, leaves)| !leaves.is_closed()));
    }
}
