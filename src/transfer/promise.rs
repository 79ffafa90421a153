//! An answer that is awaited: made once by one side, taken once by the other.

use super::Outcome;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A promise and what it promises.
pub fn promise() -> (Promise, Arc<Promised>) {
    let promised = Arc::new(Promised::default());
    (Promise(promised.clone()), promised)
}

/// The side that answers. Dropping it unkept is noticed by the other.
pub struct Promise(Arc<Promised>);

/// The side that waits. For one task at a time.
#[derive(Default)]
pub struct Promised {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    /// Nothing will come any more that is not there.
    settled: bool,
    /// Nobody will take it.
    unwanted: bool,
    waiting: Option<Waker>,
}

impl Promise {
    pub fn keep(self, outcome: Outcome) {
        let mut state = self.0.lock();
        if !state.unwanted {
            state.outcome = Some(outcome);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.lock();
            state.settled = true;
            state.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Promised {
    /// Whether the promise was kept or dropped.
    pub fn is_settled(&self) -> bool {
        self.lock().settled
    }

    /// What it came to; none if it was dropped, or has been taken.
    pub fn take(&self) -> Option<Outcome> {
        self.lock().outcome.take()
    }

    /// Nobody will take it, though somebody may still wait for it to be settled: what it comes to, now or later, is dropped.
    pub fn abandon(&self) {
        let outcome = {
            let mut state = self.lock();
            state.unwanted = true;
            state.outcome.take()
        };
        drop(outcome); // outside the lock: whoever makes its body is woken
    }

    /// Ready once it is settled.
    pub fn poll_settled(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.settled {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whole between any two statements that can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{Writer, pipe};

    /// A response, and who makes its body.
    fn response() -> (Writer, Outcome) {
        let (writer, reader) = pipe(None);
        (writer, Ok(http::Response::new(reader)))
    }

    /// The story: a guest dropped a response that had come and kept a pollable of it, and so the response, which counted no
    /// more.
    #[test]
    fn what_nobody_will_take_is_dropped_whenever_it_comes() {
        for kept_first in [true, false] {
            let ((promise, promised), (writer, outcome)) = (promise(), response());
            match kept_first {
                true => {
                    promise.keep(outcome);
                    assert!(writer.room().is_some());
                    promised.abandon();
                }
                false => {
                    promised.abandon();
                    assert!(!promised.is_settled(), "somebody may still wait for it");
                    promise.keep(outcome);
                }
            }
            assert_eq!(writer.room(), None, "nobody reads it");
            assert!(promised.is_settled() && promised.take().is_none());
        }
    }
}
