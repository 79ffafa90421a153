//! The threads that a batch borrows: a fixed number of ranks, one call at a time, and a barrier inside the call.
//!
//! Owns: the hand-over of one closure to every rank, its end, and the barrier. Never: what the closure does, nor, for a
//! crew made by [`Crew::new`], the threads: those belong to somebody else, who lends them between slices of other
//! work. The erasure of the closure's lifetime happens here and nowhere else.
//!
//! ```text
//! engine:  run(work) ── opens call n ── wake() ── waits ············· all ranks done ── returns
//! rank r:        wanted(r)? ── serve(r): work(r) ── barrier ── … ── done
//! ```
//! A crew without a call costs nothing: no thread of it spins, and its own threads sleep on a condition variable.

use super::cores::Cores;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Looks at a barrier before sleeping: some 40 µs, longer than ranks of one phase drift apart, and about what it takes to
/// be woken. The core is not offered to others meanwhile: the system would give it to any thread, however nice, until
/// its next tick, which may be 4 ms away, and nothing would tell it that the others have come.
const SPINS: u32 = 1600;
/// Looks after which a rank that could help asks whether it should; it takes the other ranks some hundred nanoseconds.
const PATIENCE: u32 = 64;

/// The lower half of a meeting's state.
const ARRIVED: u64 = u32::MAX as u64;

type Work = dyn Fn(usize) + Sync;

/// Threads that compute one closure together, each on a core of its own if they are as many (`cores.rs`). See the module's
/// picture.
pub struct Crew {
    shared: Arc<Shared>,
    /// Threads of its own, for a crew made by [`Crew::threads`]; ended when the crew is dropped.
    own: Option<Own>,
}

struct Shared {
    wake: Box<dyn Fn() + Send + Sync>,
    /// Held for the length of a call: calls never overlap.
    turn: Mutex<()>,
    /// The number of the open call, or of the last one; the first is 1.
    call: AtomicU64,
    /// What the open call does and whom to tell of its end.
    job: Mutex<Option<Job>>,
    /// The last call each rank has taken on.
    taken: Box<[AtomicU64]>, // [rank]
    /// Ranks that have not finished the open call.
    pending: AtomicUsize,
    /// The first panic of the open call.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    meeting: Meeting,
    cores: Cores,
}

#[derive(Clone)]
struct Job {
    /// Borrowed from the caller of `run`; the lifetime is a lie that `run` makes true by not returning early.
    work: &'static Work,
    caller: Thread,
}

/// The barrier's state.
struct Meeting {
    /// Rounds that were complete, in the upper half; ranks that have come for the next one, in the lower.
    state: AtomicU64,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

struct Own {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Gate {
    closing: Mutex<bool>,
    opened: Condvar,
}

impl Crew {
    /// A crew of `size` (at least 1) threads that belong to somebody else. `wake` is called on the engine's thread
    /// when a call is open: every rank for which [`wanted`](Crew::wanted) holds must then come to
    /// [`serve`](Crew::serve), however late.
    pub fn new(size: usize, wake: impl Fn() + Send + Sync + 'static) -> Arc<Crew> {
        Arc::new(Crew { shared: Arc::new(Shared::new(size, Box::new(wake))), own: None })
    }

    /// A crew with `size` (at least 1) threads of its own. They sleep between calls and end with the crew.
    pub fn threads(size: usize) -> Arc<Crew> {
        let gate = Arc::new(Gate::default());
        let wake = {
            let gate = gate.clone();
            Box::new(move || {
                let _closing = lock(&gate.closing); // so that no rank is between its look and its sleep
                gate.opened.notify_all();
            })
        };
        let shared = Arc::new(Shared::new(size, wake));
        let threads = (0..shared.size())
            .map(|rank| {
                let (shared, gate) = (shared.clone(), gate.clone());
                thread::Builder::new()
                    .name(format!("crew-{rank}"))
                    .spawn(move || {
                        while gate.wait(|| shared.wanted(rank)) {
                            shared.serve(rank)
                        }
                    })
                    .expect("the system gives no more threads")
            })
            .collect();
        Arc::new(Crew { shared, own: Some(Own { gate, threads }) })
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.shared.size()
    }

    /// How often all ranks have met so far.
    #[cfg(test)]
    pub fn met(&self) -> u64 {
        self.shared.meeting.state.load(Ordering::Relaxed) >> ARRIVED.count_ones()
    }

    /// Calls `work(rank)` once for every rank, each on that rank's thread, and returns when all have finished. The
    /// calling thread spins for a moment, then sleeps; unless `wake` serves a rank on it. Calls from several threads take turns.
    ///
    /// # Panics
    /// If a rank panicked: with the first one's payload, after all ranks have left. The crew stays usable.
    /// Calling it from inside `work` never returns.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        self.shared.run(work);
    }

    /// Whether an open call still lacks this rank. Cheap: two loads.
    pub fn wanted(&self, rank: usize) -> bool {
        self.shared.wanted(rank)
    }

    /// Takes on this rank's share of the open call, if there is one and nobody has taken it. Never panics on behalf
    /// of the work: its panic belongs to the caller of [`run`](Crew::run).
    pub fn serve(&self, rank: usize) {
        self.shared.serve(rank);
    }

    /// Inside `work`: returns when every rank has come here as often as this one; what they wrote before is visible
    /// after. Spins for some microseconds, then sleeps.
    ///
    /// # Panics
    /// If a rank has finished or panicked without coming: the meeting can never be complete.
    pub fn barrier(&self) {
        self.shared.barrier(|| (), || false);
    }

    /// The same, for a rank that could take over work of others. Before each look it calls `idle`, a few nanoseconds of
    /// work that may as well not be done. When it has waited for a while it asks `help`; if that says so, it has not
    /// come to the barrier after all: false, and it must come again. True: all have met. Neither may panic: the others
    /// count on who has come.
    pub fn barrier_or(&self, idle: impl FnMut(), help: impl FnMut() -> bool) -> bool {
        self.shared.barrier(idle, help)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let Some(own) = self.own.take() else { return };
        *lock(&own.gate.closing) = true;
        own.gate.opened.notify_all();
        for thread in own.threads {
            let _ = thread.join(); // serve catches every panic of the work
        }
    }
}

impl Gate {
    /// Sleeps until `wanted` holds (true) or the gate closes (false).
    fn wait(&self, wanted: impl Fn() -> bool) -> bool {
        let mut closing = lock(&self.closing);
        while !*closing && !wanted() {
            closing = self.opened.wait(closing).unwrap_or_else(PoisonError::into_inner);
        }
        !*closing
    }
}

impl Shared {
    fn new(size: usize, wake: Box<dyn Fn() + Send + Sync>) -> Shared {
        assert!(size >= 1, "a crew needs at least one rank");
        Shared {
            wake,
            turn: Mutex::new(()),
            call: AtomicU64::new(0),
            job: Mutex::new(None),
            taken: (0..size).map(|_| AtomicU64::new(0)).collect(),
            pending: AtomicUsize::new(0),
            panic: Mutex::new(None),
            meeting: Meeting {
                state: AtomicU64::new(0),
                sleepers: AtomicUsize::new(0),
                bed: Mutex::new(()),
                alarm: Condvar::new(),
            },
            cores: Cores::each(size),
        }
    }

    fn size(&self) -> usize {
        self.taken.len()
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        let turn = lock(&self.turn);
        // SAFETY: only the lifetime changes. The reference is used by ranks that took on this call (`serve`), each
        // before it counts itself out of `pending`; `All` below keeps this frame, and with it the borrow, alive
        // until `pending` is 0, on the way of a panic of `wake` too. A rank cannot take on a call that has ended:
        // it must be the first to move its own `taken` from the number before to this call's, and a call ends only
        // after every rank's `taken` was moved. What stays behind in `job` is taken out before `run` returns.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Work>(work) };
        *lock(&self.job) = Some(Job { work, caller: thread::current() });
        self.meeting.state.fetch_and(!ARRIVED, Ordering::Relaxed); // a call that panicked may have left some waiting
        self.pending.store(self.size(), Ordering::Relaxed);
        let all = All(self);
        self.call.fetch_add(1, Ordering::Release); // publishes all of the above
        (self.wake)();
        drop(all);
        if let Some(payload) = lock(&self.panic).take() {
            drop(turn); // not poisoned: the crew goes on
            resume_unwind(payload);
        }
    }

    fn wanted(&self, rank: usize) -> bool {
        self.taken[rank].load(Ordering::Relaxed) != self.call.load(Ordering::Acquire)
    }

    fn serve(&self, rank: usize) {
        let call = self.call.load(Ordering::Acquire);
        let before = call.wrapping_sub(1);
        // Fails when there is no call, or this rank is already taken: by another thread, or earlier by this one.
        if self.taken[rank].compare_exchange(before, call, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        self.cores.settle(rank);
        let job = lock(&self.job).clone().expect("an open call has its job");
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (job.work)(rank))) {
            lock(&self.panic).get_or_insert(payload);
        }
        let last = self.pending.fetch_sub(1, Ordering::AcqRel) == 1;
        self.meeting.rouse(); // those who wait for this rank at a barrier find it gone
        if last {
            job.caller.unpark();
        }
    }

    fn barrier(&self, mut idle: impl FnMut(), mut help: impl FnMut() -> bool) -> bool {
        let meeting = &self.meeting;
        let come = meeting.state.fetch_add(1, Ordering::AcqRel) + 1;
        let round = come & !ARRIVED;
        if (come & ARRIVED) as usize == self.size() {
            // Nobody else changes it now: all others wait, and none of them withdraws from a full round.
            meeting.state.store(round.wrapping_add(ARRIVED + 1), Ordering::SeqCst);
            meeting.rouse();
            return true;
        }
        let over = || {
            // `pending` first: a rank that left did so after the last round that it completed.
            let missing = self.pending.load(Ordering::SeqCst) < self.size();
            let met = meeting.state.load(Ordering::SeqCst) & !ARRIVED != round;
            assert!(met || !missing, "another rank left the call while this one waited for it at a barrier");
            met
        };
        for look in 1..=SPINS {
            if over() {
                return true;
            }
            if look % PATIENCE == 0 && help() && self.withdraw(round) {
                return false;
            }
            idle();
            std::hint::spin_loop();
        }
        meeting.sleep(over);
        true
    }

    /// Takes a rank's coming back, unless all have come.
    fn withdraw(&self, round: u64) -> bool {
        let state = &self.meeting.state;
        let less = |now: u64| {
            let open = now & !ARRIVED == round && ((now & ARRIVED) as usize) < self.size();
            open.then(|| now - 1)
        };
        state.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }
}

impl Meeting {
    /// Counted as a sleeper first, then a look, then sleep; [`rouse`](Meeting::rouse) changes first and looks for
    /// sleepers after (all sequentially consistent), so one of the two sees the other.
    fn sleep(&self, over: impl Fn() -> bool) {
        let mut bed = lock(&self.bed);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let woken = Awake(self);
        while !over() {
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        drop(woken);
    }

    fn rouse(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = lock(&self.bed);
            self.alarm.notify_all();
        }
    }
}

/// Counts a sleeper out again, also when `over` panics.
struct Awake<'a>(&'a Meeting);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Its end waits for all ranks, whichever way the frame is left.
struct All<'a>(&'a Shared);

impl Drop for All<'_> {
    fn drop(&mut self) {
        let over = || self.0.pending.load(Ordering::Acquire) == 0;
        // One that served a rank itself ends with the others; being woken would take longer than they drift apart.
        if !(0..SPINS).any(|_| {
            over() || {
                std::hint::spin_loop();
                false
            }
        }) {
            while !over() {
                thread::park();
            }
        }
        lock(&self.0.job).take();
    }
}

/// No data behind these locks can be left half-written, so poison (a panic elsewhere) is passed over.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    #[test]
    fn every_rank_runs_once_per_call_thousands_of_times() {
        for size in [1, 2, 5] {
            let crew = Crew::threads(size);
            let counts: Vec<AtomicUsize> = (0..size).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..3000 {
                crew.run(&|rank| {
                    counts[rank].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 3000));
        }
    }

    #[test]
    fn what_is_written_before_a_barrier_is_seen_after() {
        let crew = Crew::threads(4); // more than there are cores: sleeping at the barrier is exercised too
        let cells: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..50 {
            cells.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
            crew.run(&|rank| {
                for round in 1..=20 {
                    if rank == round % 4 {
                        thread::sleep(Duration::from_micros(200)); // a straggler
                    }
                    cells[rank].store(round, Ordering::Relaxed);
                    crew.barrier();
                    assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) == round));
                    crew.barrier();
                }
            });
        }
    }

    /// Ranks that are done early take over what a slow one has not begun.
    #[test]
    fn who_waits_may_help_and_nobody_leaves_before_all_is_done() {
        for size in [2, 3, 5] {
            let crew = Crew::threads(size);
            let (open, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let helped = AtomicUsize::new(0);
            crew.run(&|rank| {
                for round in 1..=200 {
                    if rank == round % size {
                        open.store(8, Ordering::SeqCst);
                    }
                    crew.barrier();
                    let take = || {
                        let less = |left: usize| left.checked_sub(1);
                        open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
                    };
                    let own = rank == round % size;
                    let mut left = own;
                    loop {
                        while left && take() {
                            thread::sleep(Duration::from_micros(20));
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                        if crew.barrier_or(|| (), || open.load(Ordering::SeqCst) > 0) {
                            break;
                        }
                        helped.fetch_add(1, Ordering::SeqCst);
                        left = true;
                    }
                    assert_eq!(done.load(Ordering::SeqCst), 8 * round);
                    crew.barrier();
                }
            });
            assert!(helped.into_inner() > 0, "nobody helped");
        }
    }

    #[test]
    fn a_panicking_rank_is_the_callers_panic_and_the_crew_lives_on() {
        let crew = Crew::threads(3);
        for _ in 0..20 {
            let payload = catch_unwind(AssertUnwindSafe(|| {
                crew.run(&|rank| {
                    crew.barrier();
                    if rank == 1 {
                        panic!("rank one fell");
                    }
                    crew.barrier(); // the others must not wait here for ever
                });
            }))
            .expect_err("the panic was lost");
            // The other ranks panic too, but only after they find rank one gone.
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"rank one fell"));
            let sum = AtomicUsize::new(0);
            crew.run(&|rank| {
                crew.barrier();
                sum.fetch_add(rank, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 3);
        }
    }

    #[test]
    fn lent_threads_may_come_late_or_too_often_and_a_rank_is_taken_once() {
        let woken = Arc::new(AtomicUsize::new(0));
        let crew = {
            let woken = woken.clone();
            Crew::new(2, move || {
                woken.fetch_add(1, Ordering::Relaxed);
            })
        };
        assert!(!crew.wanted(0) && !crew.wanted(1));
        crew.serve(0); // nothing is open: nothing happens
        let closed = AtomicBool::new(false);
        let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
        thread::scope(|scope| {
            for lender in 0..4 {
                let (crew, closed) = (&crew, &closed); // two lenders per rank compete for it
                scope.spawn(move || {
                    while !closed.load(Ordering::Relaxed) {
                        if crew.wanted(lender % 2) {
                            thread::sleep(Duration::from_micros(50 * lender as u64));
                            crew.serve(lender % 2);
                        }
                        thread::yield_now();
                    }
                });
            }
            for _ in 0..200 {
                crew.run(&|rank| {
                    crew.barrier();
                    counts[rank].fetch_add(1, Ordering::Relaxed);
                });
            }
            closed.store(true, Ordering::Relaxed);
        });
        assert_eq!(counts.map(AtomicUsize::into_inner), [200, 200]);
        assert_eq!(woken.load(Ordering::Relaxed), 200);
    }

    #[test]
    fn dropping_a_crew_ends_its_threads() {
        let crew = Crew::threads(2);
        let alive = Arc::downgrade(&crew.shared);
        crew.run(&|_| {});
        drop(crew);
        assert!(alive.upgrade().is_none(), "a thread still holds the crew's state");
    }
}
