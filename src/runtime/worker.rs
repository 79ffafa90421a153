//! The threads that run guests, and lend themselves to the engine's batches.
//!
//! Owns: the two run queues and the threads. Never: what a guest does in its slice; a guest is a future.
//!
//! Freshly woken guests go first: they wait for a model's answer no longer and will soon wait again. One that needs a few
//! slices for what it asks next (a pass for each branch of a tree) still counts as woken, or the batch would start with
//! half of it. Those that use up slice after slice take what is left over, and a small part of the time if nothing is.
//! In both queues subjects take turns (`fair.rs`). Between two slices a worker looks whether the crew wants it for a
//! batch, so guests and kernels do not fight for a core. A worker with nothing to do sleeps on a condition variable.
//!
//! Whoever is ended need not wait for a turn: a thread apart, the ender, drops what there is of it and tells its client,
//! though every worker has part in a batch. Nor does whoever ends by itself keep a worker, or a batch, with what it leaves
//! behind, nor with one instruction that takes long (`apart.rs`).
//!
//! Waking a thread takes some 30 µs, and a token would need it four times: the engine, a worker, the engine, the workers.
//! So while batches follow each other the engine's thread stands in for the first worker: it runs that worker's share
//! of the batch, then the guests whom the batch woke, then the next batch; and the other workers, once their share is
//! done, look out for the next one for a few microseconds before they sleep. There are never more threads that run
//! guests or batches than there are workers.

use super::aside::Aside;
use super::paced::{Next, Paced};
use super::subjects::Subjects;
use crate::backend::crew::Crew;
use crate::fair::Fair;
use crate::limits;
use async_task::Runnable;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

mod apart;
mod seat;
mod settle;
#[cfg(test)]
mod tests;

pub use seat::{Apart, Seat, Slice, Starting};
use seat::{Place, Waiting};
use settle::NOBODY;

/// Of so much time of the woken, as much as one part goes to guests that used their last slice up, ...
const EXHAUSTED_PART: i64 = 16;
/// ... saved up for no more than a slice.
const EXHAUSTED_SAVED: i64 = 200_000; // ns
/// What a guest may compute, beyond what it has waited for, before it counts as one that only computes. The engine waits for
/// the woken a bounded time, so what this can cost others is bounded too.
const BURST: Duration = Duration::from_millis(1);
/// Of so much time that a guest waits, one part makes up for as much that it has computed: a burst for each token of a
/// model, and no more than that for one that sleeps a moment again and again.
const WAITED_PART: u32 = 4;
/// What a turn counts for at most: a little more than a slice of fuel takes. If it took longer, the system had other uses
/// for the core.
const TURN_MOST: Duration = Duration::from_micros(250);
/// More than this is not held against it.
const COMPUTED_MOST: Duration = Duration::from_millis(20);
/// So many guests of a subject are made at a time by the workers, while others wait for the model. A program is in memory
/// and linked within some 100 µs, but a client can ask for hundreds at once.
const STARTS_AT_ONCE: usize = 4;
/// How long a thread that had part in a batch looks out for the next before it sleeps: far less than a batch.
const LOOKOUT: Duration = Duration::from_micros(200);
/// Looks of one thread before it reads the clock again.
const LOOKS: u32 = 64;

/// Cheap to clone. The threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Workers(Arc<Pool>);

struct Pool {
    shared: Arc<Shared>,
    crew: Arc<Crew>,
    aside: Aside,
}

struct Shared {
    size: usize,
    started: Instant,
    state: Mutex<State>,
    /// For all workers but the first: something to run, a call of the crew, or the end.
    work: Condvar,
    /// The same for the first.
    first: Condvar,
    /// A slice or a share of a batch is over: for the one stand-in that waits until the woken have run.
    settled: Condvar,
    /// Somebody is to be ended, or this is the end.
    ends: Condvar,
    /// Somebody's next instruction takes long, or this is the end.
    heavies: Condvar,
    subjects: Subjects,
    /// Copies of the state's counts, for those who look without the lock.
    woken: AtomicUsize,
    running: AtomicUsize,
    answered: AtomicUsize,
    /// [`State::model_is_for`], likewise.
    model_is_for: Arc<AtomicUsize>,
    /// Guests for another worker than the first.
    elsewhere: AtomicUsize,
}

struct State {
    woken: Fair<Waiting>,
    exhausted: Fair<Waiting>,
    /// Those whose end was decided: for the ender.
    ending: Fair<Waiting>,
    /// Those whose next instruction takes long: for the thread of low priority.
    heavy: Paced<Waiting>,
    /// Guests that run now and came from `woken`.
    running: usize,
    /// Guests whom the stand-in's last batch answered and who do what they will ask the next for.
    answered: usize,
    /// Batches that were answered, ...
    batches: u64,
    /// ... and whether the stand-in is giving the last one's answers.
    delivers: bool,
    /// Batches that have begun, ...
    begun: u64,
    /// ... and the two subjects who had part in one last, with the number of that.
    served: [Option<(usize, u64)>; 2], // [latest first]
    /// Of each subject, guests that are being made.
    starting: Vec<usize>, // [subject's number]
    /// Nanoseconds that the exhausted have coming, or that they were given too many.
    owed: i64,
    /// The thread that stands in for the first worker, ...
    stand_in: Option<ThreadId>,
    /// ... and whether it is busy: with a batch, in a slice, or asleep until others have settled.
    stand_in_busy: bool,
    /// Whether it sleeps.
    settling: bool,
    /// The first worker runs a guest or its share of a batch, and nobody stands in for it meanwhile.
    first_runs: bool,
    /// The crew's call wants the first worker itself.
    first_called: bool,
    first_sleeps: bool,
    /// Of the others, those that sleep and those that look out.
    sleeping: usize,
    looking: usize,
    ended: bool,
    /// Threads of the pool that have not ended, and whoever drops the pool.
    threads: usize,
}

impl Workers {
    /// Starts `size` (at least 1) threads and the crew that they form.
    pub fn start(size: usize) -> io::Result<Workers> {
        let subjects = Subjects::default();
        let model_is_for = Arc::new(AtomicUsize::new(NOBODY));
        let shared = Arc::new(Shared {
            size,
            started: Instant::now(),
            state: Mutex::new(State::new(&subjects)),
            work: Condvar::new(),
            first: Condvar::new(),
            settled: Condvar::new(),
            ends: Condvar::new(),
            heavies: Condvar::new(),
            subjects: subjects.clone(),
            woken: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            model_is_for: model_is_for.clone(),
            elsewhere: AtomicUsize::new(0),
        });
        // The crew's wake needs the crew: to serve on the thread of a stand-in, which is the one that calls it.
        let own = Arc::new(OnceLock::<Weak<Crew>>::new());
        let crew = {
            let (shared, own) = (shared.clone(), own.clone());
            Crew::new(size, move || {
                if shared.call()
                    && let Some(crew) = own.get().and_then(Weak::upgrade)
                {
                    crew.serve(0);
                    shared.stand_in_is(false); // from now on guests are woken that this thread has just computed for
                }
            })
        };
        own.get_or_init(|| Arc::downgrade(&crew));
        let busy = move |subject| settle::is_busy_beside(&model_is_for, subject);
        let aside = Aside::start(limits::ASIDE_THREADS, subjects, Box::new(busy))?;
        let pool = Workers(Arc::new(Pool { shared, crew, aside }));
        for rank in 0..size {
            let crew = pool.0.crew.clone();
            let thread = thread::Builder::new().name(format!("worker-{rank}"));
            let thread = thread.stack_size(limits::WORKER_STACK_BYTES);
            pool.0.shared.start_thread(thread, move |shared| shared.work(&crew, rank))?;
        }
        pool.0.shared.start_apart()?;
        Ok(pool)
    }

    /// The crew of these threads, for a backend.
    pub fn crew(&self) -> Arc<Crew> {
        self.0.crew.clone()
    }

    /// Where a guest's host calls have done what takes long.
    pub fn aside(&self) -> &Aside {
        &self.0.aside
    }

    /// Whether the model computes for somebody: a question for any thread, at any time.
    pub fn model_is_busy(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let model_is_for = self.0.shared.model_is_for.clone();
        move || settle::is_busy_beside(&model_is_for, NOBODY)
    }

    /// Runs a future to its end. It gets a [`Slice`] to give its thread up with.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, seat: &Seat, make: impl FnOnce(Slice) -> F) {
        let seat = seat.0.clone();
        let future = make(Slice(seat.clone()));
        let schedule = move |runnable| Waiting { runnable, seat: seat.clone() }.schedule();
        let (runnable, task) = async_task::spawn(future, schedule);
        task.detach();
        runnable.schedule();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.threads += 1; // this one, as long as it drops guests: they wake others
        drop(state);
        drop(Life(&self.shared));
        self.shared.ends.notify_all();
        self.shared.heavies.notify_all();
        self.shared.work.notify_all();
        self.shared.first.notify_all();
        self.shared.settled.notify_all();
    }
}

impl Waiting {
    /// Into the queue that it belongs to.
    fn queue(self) {
        match self.seat.shared.upgrade() {
            Some(shared) => {
                let exhausted = self.seat.is_exhausted(shared.started.elapsed());
                shared.push(self, exhausted);
            }
            None => std::mem::forget(self.runnable), // as in `push`
        }
    }
}

/// A guest to run.
struct Turn {
    guest: Waiting,
    /// Whether it counts as woken.
    woken: bool,
    /// It is one of the exhausted, and those who were woken wait for it.
    owed: bool,
}

impl State {
    fn new(subjects: &Subjects) -> State {
        State {
            woken: Fair::default(),
            exhausted: Fair::default(),
            ending: Fair::default(),
            heavy: Paced::new(subjects.clone()),
            running: 0,
            answered: 0,
            batches: 0,
            delivers: false,
            begun: 0,
            served: [None; 2],
            starting: Vec::new(),
            owed: 0,
            stand_in: None,
            stand_in_busy: false,
            settling: false,
            first_runs: false,
            first_called: false,
            first_sleeps: false,
            sleeping: 0,
            looking: 0,
            ended: false,
            threads: 0,
        }
    }

    fn queued(&self) -> usize {
        self.woken.len() + self.exhausted.len()
    }

    fn next(&mut self) -> Option<Turn> {
        let turn = (self.owed > 0).then(|| self.next_exhausted()).flatten();
        turn.or_else(|| self.next_woken()).or_else(|| self.next_exhausted())
    }

    /// The same, for another worker than the first.
    fn next_elsewhere(&mut self) -> Option<Turn> {
        if self.left_to_stand_in() { self.next_exhausted() } else { self.next() }
    }

    /// One woken guest is left to a stand-in that is free: that is the engine's own thread, which has in its caches what
    /// engine and guest share.
    fn left_to_stand_in(&self) -> bool {
        self.woken.len() == 1 && self.stand_in_free()
    }

    /// Guests that [`next_elsewhere`](State::next_elsewhere) has.
    fn elsewhere(&self) -> usize {
        self.queued() - usize::from(self.left_to_stand_in())
    }

    fn next_woken(&mut self) -> Option<Turn> {
        self.woken.pop().map(|(_, guest)| Turn { guest, woken: true, owed: false })
    }

    fn next_exhausted(&mut self) -> Option<Turn> {
        let owed = !self.woken.is_empty();
        self.exhausted.pop().map(|(_, guest)| Turn { guest, woken: false, owed })
    }

    /// Threads that will look at the queues without being told.
    fn looking(&self) -> usize {
        self.looking + usize::from(self.stand_in_free())
    }

    /// A turn took so many nanoseconds.
    fn over(&mut self, seat: &Place, woken: bool, owed: bool, took: u64) {
        let number = seat.number;
        let time = took.min(u64::from(u32::MAX)) as i64; // four seconds
        if woken {
            self.running -= 1;
            self.woken.over(number, took);
            self.owed = (self.owed + time / (EXHAUSTED_PART - 1)).min(EXHAUSTED_SAVED);
        } else {
            self.exhausted.over(number, took);
            self.owed -= if owed { time } else { 0 };
        }
    }

    fn stand_in_free(&self) -> bool {
        self.stand_in.is_some() && !self.stand_in_busy && !self.first_runs
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queues are whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who look without the lock.
    fn publish(&self, state: &State) {
        self.woken.store(state.woken.len(), Ordering::Relaxed);
        self.running.store(state.running, Ordering::Relaxed);
        self.answered.store(state.answered, Ordering::Relaxed);
        self.model_is_for.store(state.model_is_for(), Ordering::Relaxed);
        self.elsewhere.store(state.elsewhere(), Ordering::Relaxed);
    }

    fn push(&self, guest: Waiting, exhausted: bool) {
        let number = guest.seat.number;
        let mut state = self.lock();
        if state.ended {
            // Its waker may hold a lock that its end would take: one of those that see the pool off drops it, and none of
            // them is done while anybody waits here. After them there is only whoever wakes, and it is left as it is.
            return match state.threads {
                0 => std::mem::forget(guest.runnable),
                _ => state.ending.push(number, guest),
            };
        }
        let ending = guest.seat.ending.load(Ordering::Relaxed);
        let heavy = !ending && guest.seat.heavy.swap(false, Ordering::Relaxed);
        state.note(&guest.seat, !(ending || heavy || exhausted));
        let apart = if ending {
            state.ending.push(number, guest);
            Some(&self.ends)
        } else if heavy {
            state.heavy.push(number, guest);
            Some(&self.heavies)
        } else if exhausted {
            state.exhausted.push(number, guest);
            None
        } else {
            state.woken.push(number, guest);
            None
        };
        self.publish(&state);
        let worker = (state.queued() > state.looking()).then(|| self.sleeper(&mut state)).flatten();
        let settled = state.settling.then_some(&self.settled);
        // Woken within the lock they would have the core of this thread, and wait for it.
        drop(state);
        [apart, worker, settled].into_iter().flatten().for_each(Condvar::notify_one);
    }

    /// After the pool's end: drops all that wait, and whom that wakes. Nobody waits as long as the lock is held.
    fn drop_guests(&self) -> MutexGuard<'_, State> {
        loop {
            let mut state = self.lock();
            let State { woken, exhausted, ending, heavy, .. } = &mut *state;
            let guests =
                [std::mem::take(woken), std::mem::take(exhausted), std::mem::take(ending), heavy.clear()];
            if guests.iter().all(Fair::is_empty) {
                return state;
            }
            drop(state);
            // Outside the lock: dropping a guest may wake another.
            drop(guests);
        }
    }

    /// Starts a thread of the pool, which has `live` until the pool's end.
    fn start_thread(
        self: &Arc<Self>,
        thread: thread::Builder,
        live: impl FnOnce(&Shared) + Send + 'static,
    ) -> io::Result<()> {
        let shared = self.clone();
        self.lock().threads += 1;
        let life = move || {
            let _life = Life(&shared);
            live(&shared);
        };
        thread.spawn(life).map(drop).inspect_err(|_| self.lock().threads -= 1)
    }

    /// Gives a guest that waits for a turn to the ender.
    fn hurry(&self, seat: &Arc<Place>) {
        let mut state = self.lock();
        let is_it = |guest: &Waiting| Arc::ptr_eq(&guest.seat, seat);
        let woken = state.woken.take(seat.number, is_it);
        let woken = woken.or_else(|| state.exhausted.take(seat.number, is_it));
        let Some(guest) = woken.or_else(|| state.heavy.take(seat.number, is_it)) else { return };
        state.waits(seat);
        state.ending.push(seat.number, guest);
        self.publish(&state);
        let settled = state.settling.then_some(&self.settled);
        drop(state); // as in `push`
        [Some(&self.ends), settled].into_iter().flatten().for_each(Condvar::notify_one);
    }

    /// Where one worker that sleeps is woken, if there is one.
    fn sleeper(&self, state: &mut State) -> Option<&Condvar> {
        if state.stand_in.is_none() && std::mem::take(&mut state.first_sleeps) {
            Some(&self.first)
        } else {
            (state.sleeping > 0).then_some(&self.work)
        }
    }

    /// A call of the crew is open. True: the caller is to serve as the first worker; false: the first worker will.
    fn call(&self) -> bool {
        // Through the lock, so that no worker is between its look at the crew and its sleep.
        let mut state = self.lock();
        let stands_in = state.stand_in == Some(thread::current().id()) && !state.first_runs;
        state.first_called |= !stands_in;
        let sleep = state.sleeping > 0;
        drop(state); // as in `push`
        if !stands_in {
            self.first.notify_one();
        }
        if sleep {
            self.work.notify_all();
        }
        stands_in
    }

    /// Runs one slice of a guest.
    fn slice<'s>(&'s self, mut state: MutexGuard<'s, State>, turn: Turn) -> MutexGuard<'s, State> {
        state.running += turn.woken as usize;
        self.publish(&state);
        let Turn { guest: Waiting { runnable, seat }, woken, owed } = turn;
        let turn = seat.begin_turn();
        drop(state);
        let since = Instant::now();
        run(runnable);
        let took = since.elapsed();
        seat.computed(took, self.started.elapsed());
        let took = took.as_nanos() as u64;
        let mut state = self.lock();
        state.over(&seat, woken, owed, took);
        if seat.waits_since(turn) {
            state.waits(&seat);
        }
        self.publish(&state);
        if state.settling {
            self.settled.notify_all();
        }
        state
    }

    fn work(&self, crew: &Crew, rank: usize) {
        match rank {
            0 => self.work_first(crew),
            _ => self.work_other(crew, rank),
        }
    }

    fn work_first(&self, crew: &Crew) {
        let mut state = self.lock();
        while !state.ended {
            if std::mem::take(&mut state.first_called) {
                state.first_runs = true;
                drop(state);
                crew.serve(0);
                state = self.lock();
            } else if state.stand_in.is_none()
                && let Some(turn) = state.next()
            {
                state.first_runs = true;
                state = self.slice(state, turn);
            } else {
                state.first_sleeps = true;
                state = self.first.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.first_sleeps = false;
            }
            if std::mem::take(&mut state.first_runs) {
                self.publish(&state);
                if state.settling {
                    self.settled.notify_all(); // its stand-in may be waiting for the place
                }
            }
        }
    }

    fn work_other(&self, crew: &Crew, rank: usize) {
        let mut state = self.lock();
        // Until when this thread looks out: only after a batch, and between batches.
        let mut until: Option<Instant> = None;
        while !state.ended {
            if crew.wanted(rank) {
                drop(state);
                crew.serve(rank);
                until = Some(Instant::now() + LOOKOUT);
                state = self.lock();
            } else if let Some(turn) = state.next_elsewhere() {
                state = self.slice(state, turn);
                until = state.stand_in.map(|_| Instant::now() + LOOKOUT);
            } else if let Some(at) = until.filter(|at| Instant::now() < *at) {
                state.looking += 1;
                drop(state);
                look_out(at, || self.elsewhere.load(Ordering::Relaxed) > 0 || crew.wanted(rank));
                state = self.lock();
                state.looking -= 1;
            } else {
                state.sleeping += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
        }
    }
}

/// One of [`State::threads`], however it ends: under the lock that saw nobody wait, or whoever comes between is nobody's.
struct Life<'s>(&'s Shared);

impl Drop for Life<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.ended {
            drop(state);
            state = self.0.drop_guests();
        }
        state.threads -= 1;
    }
}

/// A turn of a guest. A panic for it ends at the guest's border (`instance.rs`); this keeps the thread whatever comes.
fn run(runnable: Runnable) {
    if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
        tracing::error!(target: "runtime", "a guest's future panicked past its border");
    }
}

/// Spins until `seen` (true) or `until` (false).
fn look_out(until: Instant, seen: impl Fn() -> bool) -> bool {
    loop {
        for _ in 0..LOOKS {
            if seen() {
                return true;
            }
            std::hint::spin_loop();
        }
        if Instant::now() >= until {
            return false;
        }
    }
}
