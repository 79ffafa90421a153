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
    waiting: Option<Waker>,
}

impl Promise {
    pub fn keep(self, outcome: Outcome) {
        self.0.lock().outcome = Some(outcome);
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
