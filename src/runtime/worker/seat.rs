//! A guest's place in the run queues, and what it has of the thread it runs on; what its subject has of the io thread.
//!
//! Owns: the marks that a guest's next turn is judged by. Never: the queues, or a thread; those are the parent's.

use super::settle::is_busy_beside;
use super::{BURST, COMPUTED_MOST, STARTS_AT_ONCE, Shared, TURN_MOST, WAITED_PART, Workers};
use crate::clock;
use crate::identity::Subject;
use crate::pacer::Pacer;
use crate::runtime::subjects::{LOOK, Number, Traffic, Turn};
use async_task::Runnable;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

/// A guest that has something to run.
pub(super) struct Waiting {
    pub runnable: Runnable,
    pub seat: Arc<Place>,
}

/// A guest's place in the run queues. Cheap to clone.
#[derive(Clone)]
pub struct Seat(pub(super) Arc<Place>);

/// The guest comes to a pause within a slice.
const NEAR: u8 = 0;
/// It is in the middle of something long.
const AWAY: u8 = 1;
/// It was, when its end was decided, and whoever decided tells of it.
const TOLD: u8 = 2;

pub(super) struct Place {
    // Weak: a guest that waits for ever must not keep the queues of a dropped pool alive.
    pub(super) shared: Weak<Shared>,
    /// Its subject's.
    pub(super) number: usize,
    _number: Number,
    /// The guest's next turn comes because a slice ended, and not because it was woken.
    pub(super) slice_ended: AtomicBool,
    /// Nanoseconds that it has computed, less its part of those that it has waited.
    pub(super) computed: AtomicU64,
    /// When its last turn was over, in nanoseconds since the pool's start.
    pub(super) turn_over: AtomicU64,
    /// Its next instruction takes long.
    pub(super) heavy: AtomicBool,
    /// It needs no turn any more, only an end.
    pub(super) ending: AtomicBool,
    /// Whether whoever ends it must wait for it: one of the three below.
    reach: AtomicU8,
    /// It is in a queue. The state's lock orders this and those that follow.
    pub(super) queued: AtomicBool,
    /// Its turns that have begun.
    turns: AtomicU64,
    /// The last batch that answered it, ...
    pub(super) batch: AtomicU64,
    /// ... and how often it was woken since then.
    pub(super) wakes: AtomicU32,
    /// The last batch that there was has answered it, and the next one waits for what it asks.
    pub(super) answered: AtomicBool,
}

impl Seat {
    /// Whoever polls the guest from now on must find that it is over. Its next turn is the ender's, at once. True, and once:
    /// it is in the middle of something long, in which it harms nobody, and its end is the caller's to tell.
    #[must_use]
    pub fn end(&self) -> bool {
        self.0.ending.store(true, Ordering::SeqCst); // before the look at `reach`: see `apart`
        if let Some(shared) = self.0.shared.upgrade() {
            shared.hurry(&self.0);
        }
        self.0.reach.compare_exchange(AWAY, TOLD, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whether [`end`](Seat::end) has left the guest's end to somebody to tell.
    pub fn is_told(&self) -> bool {
        self.0.reach.load(Ordering::SeqCst) == TOLD
    }
}

impl Place {
    /// The number of the turn. With the state's lock held.
    pub(super) fn begin_turn(&self) -> u64 {
        self.queued.store(false, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// That turn is over, and it neither waits for another nor has begun one: on another thread, before this one came to
    /// look.
    pub(super) fn waits_since(&self, turn: u64) -> bool {
        !self.queued.load(Ordering::Relaxed) && self.turns.load(Ordering::Relaxed) == turn
    }

    /// A turn of so long ended `now`.
    pub(super) fn computed(&self, took: Duration, now: Duration) {
        self.change(|computed| (computed + took.min(TURN_MOST)).min(COMPUTED_MOST));
        self.turn_over.store(now.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether its next turn, which it wants from `now` on, is one of the exhausted.
    pub(super) fn is_exhausted(&self, now: Duration) -> bool {
        let waited = match self.slice_ended.swap(false, Ordering::Relaxed) {
            true => Duration::ZERO,
            // One who is woken in its turn has waited since the last, for all that is known here: a slice too much.
            false => now.saturating_sub(Duration::from_nanos(self.turn_over.load(Ordering::Relaxed))),
        };
        self.change(|computed| computed.saturating_sub(waited / WAITED_PART)) > BURST
    }

    fn change(&self, change: impl Fn(Duration) -> Duration) -> Duration {
        let change = |nanoseconds| change(Duration::from_nanos(nanoseconds)).as_nanos() as u64;
        let before = self.computed.update(Ordering::Relaxed, Ordering::Relaxed, change);
        Duration::from_nanos(change(before))
    }
}

impl Workers {
    /// A place for a guest of this subject.
    pub fn seat(&self, subject: &Subject) -> Seat {
        let shared = &self.0.shared;
        let subject = self.enter(subject);
        let number = subject.number;
        Seat(Arc::new(Place {
            shared: Arc::downgrade(shared),
            number,
            _number: subject,
            slice_ended: AtomicBool::new(false),
            computed: AtomicU64::new(0),
            turn_over: AtomicU64::new(0),
            heavy: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            reach: AtomicU8::new(NEAR),
            queued: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            batch: AtomicU64::new(u64::MAX),
            wakes: AtomicU32::new(0),
            answered: AtomicBool::new(false),
        }))
    }
}

impl Workers {
    /// For what the io thread does for this subject.
    pub fn pacer(&self, subject: &Subject, traffic: Traffic) -> Pacer {
        let (subject, shared) = (self.enter(subject), &self.0.shared);
        let (model_is_for, subjects) = (shared.model_is_for.clone(), shared.subjects.clone());
        Pacer::new(Arc::new(move |takes| {
            let subject: &Number = &subject; // all of it is kept, or the number would be another's
            match is_busy_beside(&model_is_for, subject.number) {
                true => subjects.io(subject.number, traffic, takes, clock::now()),
                false => Duration::ZERO,
            }
        }))
    }

    /// Waits until a program of the subject may be translated.
    pub async fn translation(&self, subject: &Subject) -> Turn {
        let (number, shared) = (self.enter(subject), &self.0.shared);
        loop {
            let wait = match shared.is_busy_beside(number.number) {
                true => shared.subjects.translation_waits(number.number, clock::now()),
                false => Duration::ZERO,
            };
            if wait.is_zero() {
                return shared.subjects.translates(number);
            }
            clock::after(wait.min(LOOK)).await; // by then the rest may no longer be needed
        }
    }

    fn enter(&self, subject: &Subject) -> Number {
        let shared = &self.0.shared;
        let subject = shared.subjects.enter(subject);
        if subject.new {
            let mut state = shared.lock();
            state.begin(subject.number);
            shared.publish(&state);
            drop(state);
            self.0.aside.begin(subject.number);
        }
        subject
    }

    /// A place for what is left to do for this subject when an instance of it ends: its turns are the ender's.
    pub fn ender(&self, subject: &Subject) -> Seat {
        let seat = self.seat(subject);
        seat.0.ending.store(true, Ordering::Relaxed); // nobody has it yet
        seat
    }
}

/// What a guest has of the thread it runs on.
#[derive(Clone)]
pub struct Slice(pub(super) Arc<Place>);

impl Slice {
    /// Gives the thread up and queues behind the freshly woken.
    pub fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        EndSlice(Some(self.0.clone()))
    }

    /// The same, behind all who have not used up what they may.
    pub fn last(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.change(|computed| computed.max(2 * BURST));
        self.end()
    }

    /// Gives the thread up for one of low priority until its next wait: for an instruction that takes many slices. It is
    /// over when what comes of this is dropped.
    pub fn heavy(&self) -> impl Future<Output = Apart> + Send + use<> {
        let slice = self.clone();
        async move {
            loop {
                slice.0.heavy.store(true, Ordering::Relaxed); // `state`'s lock orders it
                slice.end().await;
                if let Some(apart) = slice.apart() {
                    return apart;
                }
            }
        }
    }

    /// Gives the thread up for good: the guest needs no turn any more, and what is left of its life is the ender's.
    pub fn leave(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.ending.store(true, Ordering::Relaxed); // `state`'s lock orders it
        self.end()
    }
}

/// A guest's stretch of code that nothing interrupts and that takes long. Its end may be told meanwhile: then what it says
/// to anybody afterwards comes too late.
pub struct Apart(Arc<Place>);

impl Slice {
    /// Such a stretch begins here, until that is dropped. None: the guest is to end, and its next pause is the last.
    fn apart(&self) -> Option<Apart> {
        self.0.reach.store(AWAY, Ordering::SeqCst); // before the look at `ending`: one of two who meet sees the other
        let apart = Apart(self.0.clone());
        (!self.0.ending.load(Ordering::SeqCst)).then_some(apart)
    }
}

impl Apart {
    /// The guest is within reach again; false: its end was told.
    pub fn is_back(&self) -> bool {
        self.0.reach.compare_exchange(AWAY, NEAR, Ordering::SeqCst, Ordering::SeqCst) != Err(TOLD)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.is_back();
    }
}

/// A guest that is being made, until this is dropped.
pub struct Starting(Arc<Place>);

impl Slice {
    pub fn starting(&self) -> Starting {
        self.0.starting(|guests| *guests += 1);
        Starting(self.0.clone())
    }
}

impl Starting {
    /// Its subject has so many that the workers leave them to the thread of low priority.
    pub fn in_a_crowd(&self) -> bool {
        let Some(shared) = self.0.shared.upgrade() else { return false };
        self.0.starting(|guests| *guests > STARTS_AT_ONCE) && shared.is_busy_beside(self.0.number)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starting(|guests| *guests -= 1);
    }
}

impl Place {
    /// Guests of its subject that are being made.
    fn starting<R: Default>(&self, with: impl FnOnce(&mut usize) -> R) -> R {
        let Some(shared) = self.shared.upgrade() else { return R::default() };
        let mut state = shared.lock();
        if state.starting.len() <= self.number {
            state.starting.resize(self.number + 1, 0);
        }
        with(&mut state.starting[self.number])
    }
}

struct EndSlice(Option<Arc<Place>>);

impl Future for EndSlice {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.0.take() {
            Some(seat) => {
                seat.slice_ended.store(true, Ordering::Relaxed);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}
