//! The threads that run guests, and lend themselves to the engine's batches.
//!
//! Owns: the two run queues and the threads. Never: what a guest does in its slice; a guest is a future.
//!
//! Freshly woken guests go first: they wait for a model's answer no longer and will soon wait again. Those that have
//! used up a slice go last, though not never. Between two slices a worker looks whether the crew wants it for a
//! batch, so guests and kernels do not fight for a core. A worker with nothing to do sleeps on a condition variable.

use crate::backend::crew::Crew;
use crate::engine::Settle;
use crate::limits;
use async_task::Runnable;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// One slice in this many goes to a guest that used its last one up, even while others are freshly woken.
const EXHAUSTED_TURN: u32 = 16;

/// Cheap to clone. The threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Workers(Arc<Pool>);

struct Pool {
    shared: Arc<Shared>,
    crew: Arc<Crew>,
}

struct Shared {
    state: Mutex<State>,
    /// Something to run, a call of the crew, or the end.
    work: Condvar,
    /// No woken guest waits or runs.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    woken: VecDeque<Runnable>,
    exhausted: VecDeque<Runnable>,
    /// Guests that run now and came from `woken`.
    running: usize,
    /// Slices started, to give the exhausted their turn.
    slices: u32,
    ended: bool,
}

impl Workers {
    /// Starts `size` (at least 1) threads and the crew that they form.
    pub fn start(size: usize) -> io::Result<Workers> {
        let shared =
            Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), settled: Condvar::new() });
        let waker = shared.clone();
        let crew = Crew::new(size, move || {
            // Under the lock, so that no worker is between its look at the crew and its sleep.
            let _state = waker.lock();
            waker.work.notify_all();
        });
        let pool = Workers(Arc::new(Pool { shared, crew }));
        for rank in 0..size {
            let (shared, crew) = (pool.0.shared.clone(), pool.0.crew.clone());
            std::thread::Builder::new()
                .name(format!("worker-{rank}"))
                .stack_size(limits::WORKER_STACK_BYTES)
                .spawn(move || shared.work(&crew, rank))?;
        }
        Ok(pool)
    }

    /// The crew of these threads, for a backend.
    pub fn crew(&self) -> Arc<Crew> {
        self.0.crew.clone()
    }

    /// Runs a future to its end. It gets a [`Slice`] to give its thread up with.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, make: impl FnOnce(Slice) -> F) {
        let exhausted = Arc::new(AtomicBool::new(false));
        let future = make(Slice { exhausted: exhausted.clone() });
        // Weak: a guest that waits for ever must not keep the threads of a dropped pool alive.
        let shared: Weak<Shared> = Arc::downgrade(&self.0.shared);
        let schedule = move |runnable| {
            if let Some(shared) = shared.upgrade() {
                shared.push(runnable, exhausted.swap(false, Ordering::Relaxed));
            }
        };
        let (runnable, task) = async_task::spawn(future, schedule);
        task.detach();
        runnable.schedule();
    }
}

/// What a guest has of the thread it runs on.
#[derive(Clone)]
pub struct Slice {
    exhausted: Arc<AtomicBool>,
}

impl Slice {
    /// Gives the thread up and queues behind the freshly woken.
    pub fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        EndSlice { exhausted: Some(self.exhausted.clone()) }
    }
}

struct EndSlice {
    exhausted: Option<Arc<AtomicBool>>,
}

impl Future for EndSlice {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.exhausted.take() {
            Some(exhausted) => {
                exhausted.store(true, Ordering::Relaxed);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Settle for Workers {
    fn settle(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.0.shared.lock();
        while !state.settled() && !state.ended {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            let (next, _) =
                self.0.shared.settled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (woken, exhausted) = {
            let mut state = self.shared.lock();
            state.ended = true;
            (std::mem::take(&mut state.woken), std::mem::take(&mut state.exhausted))
        };
        // Outside the lock: dropping a guest may wake another.
        drop((woken, exhausted));
        self.shared.work.notify_all();
        self.shared.settled.notify_all();
    }
}

impl State {
    fn settled(&self) -> bool {
        self.woken.is_empty() && self.running == 0
    }

    /// The next guest, and whether it counts as woken.
    fn next(&mut self) -> Option<(Runnable, bool)> {
        self.slices = self.slices.wrapping_add(1);
        let turn = self.slices.is_multiple_of(EXHAUSTED_TURN).then(|| self.exhausted.pop_front()).flatten();
        let exhausted = |runnable| (runnable, false);
        turn.map(exhausted)
            .or_else(|| self.woken.pop_front().map(|runnable| (runnable, true)))
            .or_else(|| self.exhausted.pop_front().map(exhausted))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queues are whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, runnable: Runnable, exhausted: bool) {
        let mut state = self.lock();
        if state.ended {
            drop(state);
            return; // and the guest with it
        }
        match exhausted {
            true => state.exhausted.push_back(runnable),
            false => state.woken.push_back(runnable),
        }
        self.work.notify_one();
    }

    fn work(&self, crew: &Crew, rank: usize) {
        let mut state = self.lock();
        while !state.ended {
            if crew.wanted(rank) {
                drop(state);
                crew.serve(rank);
                state = self.lock();
            } else if let Some((runnable, woken)) = state.next() {
                state.running += woken as usize;
                drop(state);
                // A panic for a guest ends at the guest's border (`instance.rs`); this keeps the thread whatever comes.
                let outcome = catch_unwind(AssertUnwindSafe(|| runnable.run()));
                if outcome.is_err() {
                    tracing::error!(target: "runtime", "a guest's future panicked past its border");
                }
                state = self.lock();
                state.running -= woken as usize;
                if state.settled() {
                    self.settled.notify_all();
                }
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::channel;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_guest_that_spins_does_not_starve_others_nor_they_it() {
        let workers = Workers::start(1).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let spins = Arc::new(AtomicUsize::new(0));
        workers.spawn(|slice| {
            let (stop, spins) = (stop.clone(), spins.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    spins.fetch_add(1, Ordering::Relaxed);
                    slice.end().await;
                }
            }
        });
        // Two guests that wake each other without end: the woken queue is never empty for long.
        let (to_b, from_a) = channel::bounded::<()>(1);
        let (to_a, from_b) = channel::bounded::<()>(1);
        let (done, finished) = channel::bounded(1);
        workers.spawn(|_| async move {
            for _ in 0..10_000 {
                to_b.send(()).await.unwrap();
                from_b.recv().await.unwrap();
            }
            done.send(()).await.unwrap();
        });
        workers.spawn(|_| async move { while from_a.recv().await.is_ok() && to_a.send(()).await.is_ok() {} });
        smol::block_on(finished.recv()).unwrap();
        assert!(spins.load(Ordering::Relaxed) > 100);
        stop.store(true, Ordering::Relaxed);
    }

    #[test]
    fn settling_waits_for_the_woken_and_not_for_the_spinning() {
        let workers = Workers::start(2).unwrap();
        workers.spawn(|slice| async move {
            loop {
                slice.end().await;
            }
        });
        for _ in 0..100 {
            let ran = Arc::new(AtomicUsize::new(0));
            for _ in 0..8 {
                let ran = ran.clone();
                workers.spawn(move |_| async move {
                    ran.fetch_add(1, Ordering::Relaxed);
                });
            }
            workers.settle(Duration::from_secs(60));
            assert_eq!(ran.load(Ordering::Relaxed), 8);
        }
    }

    #[test]
    fn batches_and_guests_share_the_threads() {
        let workers = Workers::start(2).unwrap();
        let (sender, receiver) = channel::bounded::<()>(1);
        workers.spawn(|slice| async move {
            while receiver.try_recv().is_err() {
                slice.end().await;
            }
        });
        let crew = workers.crew();
        let shares = AtomicUsize::new(0);
        for _ in 0..50 {
            crew.run(&|_rank| {
                shares.fetch_add(1, Ordering::Relaxed);
                crew.barrier();
            });
        }
        assert_eq!(shares.load(Ordering::Relaxed), 100);
        smol::block_on(sender.send(())).unwrap();
    }

    #[test]
    fn dropping_the_pool_drops_its_guests() {
        let workers = Workers::start(1).unwrap();
        let alive = Arc::new(());
        let guest = alive.clone();
        workers.spawn(|slice| async move {
            let _guest = guest;
            loop {
                slice.end().await;
            }
        });
        drop(workers);
        while Arc::strong_count(&alive) > 1 {
            std::thread::yield_now();
        }
    }
}
