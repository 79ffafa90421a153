//! The threads that run guests apart from the workers: the ender, and one of low priority for long instructions (`low.rs`).
//!
//! Owns: these two, and that subjects take turns at each. Never: which guests come here, which is the queues'.
//!
//! The ender drops what an instance leaves behind, thousands of handles perhaps, and tells its client; it runs no guest's
//! code. The other runs a single instruction of a guest at a time, one that fills, copies or grows memory by so much that
//! it needs the fuel of many slices and cannot be interrupted: 60 ms of processor time at the most. A worker would keep
//! guests waiting that long, and a batch. Beside a busy model that time may be spread over a second. Whoever decides on an
//! end of the guest meanwhile does not wait for it: the ender tells of the end, and the guest is dropped later.

use super::{Next, Shared, State, Waiting, run};
use crate::clock;
use crate::limits;
use crate::runtime::low::Low;
use async_task::Runnable;
use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Condvar, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

thread_local! {
    /// Guests that were woken in a turn on the thread of low priority, which queues nobody itself.
    static WOKEN: RefCell<Option<Vec<Waiting>>> = const { RefCell::new(None) };
}

impl Waiting {
    /// Into the queue that it belongs to, once there is a thread for that.
    pub(super) fn schedule(self) {
        let here = WOKEN.with_borrow_mut(|woken| match woken {
            Some(woken) => {
                woken.push(self);
                None
            }
            None => Some(self),
        });
        here.into_iter().for_each(Waiting::queue);
    }
}

impl Shared {
    pub(super) fn start_apart(self: &Arc<Self>) -> io::Result<()> {
        let end = |shared: &Shared| {
            shared.run_apart(
                &shared.ends,
                |state| {
                    state.ending.pop().map_or(Next::Nothing, |(subject, guest)| Next::Turn(subject, guest))
                },
                |state, subject, took| state.ending.over(subject, took.as_nanos() as u64),
                |runnable| {
                    let since = clock::computed();
                    run(runnable);
                    clock::computed().saturating_sub(since)
                },
            );
        };
        self.start_thread(thread::Builder::new().name("ender".into()), end)?;
        let mut low = Low::start("heavy".to_owned(), limits::WORKER_STACK_BYTES)?;
        let heavy = move |shared: &Shared| {
            shared.run_apart(
                &shared.heavies,
                |state| state.heavy.next(|subject| shared.is_busy_beside(subject), Instant::now()),
                |state, subject, took| state.heavy.over(subject, took, Instant::now()),
                |runnable| {
                    let turn = || {
                        WOKEN.set(Some(Vec::new()));
                        run(runnable);
                        WOKEN.take().unwrap_or_default()
                    };
                    let (woken, took) = low.run(turn);
                    woken.into_iter().for_each(Waiting::queue);
                    took
                },
            );
        };
        self.start_thread(thread::Builder::new().name("for-heavy".into()), heavy)
    }

    /// Gives those in one of the queues their turns, on this thread.
    fn run_apart(
        &self,
        wake: &Condvar,
        next: impl Fn(&mut State) -> Next<Waiting>,
        over: impl Fn(&mut State, usize, Duration),
        mut compute: impl FnMut(Runnable) -> Duration,
    ) {
        let mut state = self.lock();
        while !state.ended {
            match next(&mut state) {
                Next::Turn(number, Waiting { runnable, seat }) => {
                    drop(state);
                    let took = compute(runnable);
                    seat.computed(took, self.started.elapsed());
                    state = self.lock();
                    over(&mut state, number, took);
                    drop(seat); // only now may its number be another's
                }
                Next::Rest(least) => {
                    (state, _) = wake.wait_timeout(state, least).unwrap_or_else(PoisonError::into_inner);
                }
                Next::Nothing => state = wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
