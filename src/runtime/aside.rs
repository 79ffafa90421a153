//! Work that host calls leave for other threads, as it takes long and cannot be cut into slices: a long text to tokenize.
//!
//! Owns: these threads and the order in which they come to what waits: subjects take turns, as in the run queues. Never:
//! guest code; what the work is.
//!
//! What computes is of low priority, so that guests and batches keep the cores, and has no hand in the queue (`low.rs`).
//! What nobody waits for any more is taken out of the queue; once it has begun it goes on, and its thread with it, so no
//! more of it runs than there are threads.

use super::low::Low;
use super::paced::{Next, Paced};
use super::subjects::{Number, Subjects};
use crate::host::Trap;
use crate::identity::Subject;
use smol::channel;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// Of the threads that compute: as `std` has it.
const STACK_BYTES: usize = 2 << 20;

/// Cheap to clone. The threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Aside(Arc<Threads>);

struct Threads(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    subjects: Subjects,
    busy: Busy,
}

/// Whether the model computes for others than the subject of this number.
pub(super) type Busy = Box<dyn Fn(usize) -> bool + Send + Sync>;

struct State {
    waiting: Paced<Task>,
    /// Tasks made so far.
    made: u64,
    ended: bool,
}

struct Task {
    ordinal: u64,
    work: Work,
    subject: Arc<Number>,
}

/// What comes of it tells whoever waits.
type Work = Box<dyn FnOnce() -> Box<dyn FnOnce() + Send> + Send>;

/// The hold of who waits for a task.
struct Ticket {
    ordinal: u64,
    subject: Arc<Number>,
    shared: Arc<Shared>,
}

impl Aside {
    pub(super) fn start(threads: usize, subjects: Subjects, busy: Busy) -> io::Result<Aside> {
        let waiting = Paced::new(subjects.clone());
        let state = Mutex::new(State { waiting, made: 0, ended: false });
        let shared = Shared { state, work: Condvar::new(), subjects, busy };
        let aside = Aside(Arc::new(Threads(Arc::new(shared))));
        for number in 0..threads {
            let shared = aside.0.0.clone();
            let low = Low::start(format!("aside-{number}"), STACK_BYTES)?;
            thread::Builder::new().name(format!("for-aside-{number}")).spawn(move || shared.run(low))?;
        }
        Ok(aside)
    }

    /// For one without guests: nobody else waits for the model.
    #[cfg(test)]
    pub fn alone(threads: usize) -> Aside {
        Aside::start(threads, Subjects::default(), Box::new(|_| false)).expect("threads")
    }

    /// The number is a new subject's from now on.
    pub(super) fn begin(&self, subject: usize) {
        self.0.0.lock().waiting.begin(subject);
    }

    /// Has the work done when its subject's turn comes. Dropping the future gives it up, if it has not begun.
    ///
    /// # Errors
    /// The work panicked.
    pub fn run<R: Send + 'static>(
        &self,
        subject: &Subject,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Pin<Box<dyn Future<Output = Result<R, Trap>> + Send>> {
        let (done, answer) = channel::bounded(1);
        let work: Work = Box::new(move || {
            // Dropping `done` tells too, which is not for this thread.
            let made = catch_unwind(AssertUnwindSafe(work));
            Box::new(move || match made {
                Ok(made) => drop(done.try_send(made)), // fails if nobody waits any more
                Err(_) => tracing::error!(target: "runtime", "work for a guest panicked"),
            })
        });
        let ticket = self.0.0.push(subject, work);
        Box::pin(async move {
            let answer = answer.recv().await;
            drop(ticket);
            answer.map_err(|_| Trap::Panicked)
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queue is whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, subject: &Subject, work: Work) -> Ticket {
        let subject = Arc::new(self.subjects.enter(subject));
        let mut state = self.lock();
        if subject.new {
            state.waiting.begin(subject.number);
        }
        let ordinal = state.made;
        state.made += 1;
        state.waiting.push(subject.number, Task { ordinal, work, subject: subject.clone() });
        // Not one: that could be the thread which waits for the end of a rest, and nobody would see to that then.
        self.work.notify_all();
        Ticket { ordinal, subject, shared: self.clone() }
    }

    fn run(&self, mut low: Low) {
        let mut state = self.lock();
        while !state.ended {
            match state.waiting.next(&self.busy, Instant::now()) {
                Next::Turn(number, task) => {
                    drop(state);
                    let (tell, took) = low.run(task.work);
                    tell();
                    state = self.lock();
                    state.waiting.over(number, took, Instant::now());
                    drop(task.subject); // only now may its number be another's
                }
                Next::Rest(least) => {
                    (state, _) = self.work.wait_timeout(state, least).unwrap_or_else(PoisonError::into_inner);
                }
                Next::Nothing => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let is_it = |task: &Task| task.ordinal == self.ordinal;
        let given_up = self.shared.lock().waiting.take(self.subject.number, is_it);
        drop(given_up); // outside the lock: it may be large
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.lock();
            state.ended = true;
            state.waiting.clear()
        };
        drop(waiting);
        self.0.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::worker::Workers;
    use smol::future::or;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The story: a guest that was ended while its text was tokenized gave its place back at once, and each of a row of
    /// such guests had a thread of its own.
    #[test]
    fn work_that_nobody_waits_for_keeps_its_thread_until_it_is_over() {
        let aside = Aside::alone(2);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (begun, begins) = channel::bounded(10);
        let (over, ends) = channel::bounded::<()>(1);
        let held_up = || {
            let (running, most, begun, ends) = (running.clone(), most.clone(), begun.clone(), ends.clone());
            aside.run(&Subject::everyone(), move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _ = begun.try_send(());
                let _closed = ends.recv_blocking();
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        smol::block_on(async {
            for _ in 0..2 {
                let mut abandoned = Box::pin(held_up());
                or(async { drop((&mut abandoned).await) }, async { begins.recv().await.unwrap() }).await;
            }
            let given_up = held_up();
            let next = held_up();
            drop(given_up);
            over.close();
            assert_eq!(next.await, Ok(()));
        });
        assert_eq!((most.load(Ordering::SeqCst), begins.len()), (2, 1), "one was given up before it began");
    }

    #[test]
    fn subjects_take_turns() {
        let aside = Aside::alone(1);
        let (over, ends) = channel::bounded::<()>(1);
        let order = Arc::new(Mutex::new(vec![]));
        let work = |who: &'static str| {
            let (ends, order) = (ends.clone(), order.clone());
            aside.run(&Subject::new(who), move || {
                let _closed = ends.recv_blocking();
                order.lock().unwrap().push(who);
            })
        };
        let many: Vec<_> = (0..20).map(|_| work("many")).collect();
        let one = work("one");
        over.close();
        smol::block_on(async {
            one.await.unwrap();
            for each in many {
                each.await.unwrap();
            }
        });
        let order = order.lock().unwrap();
        assert!(order.iter().position(|who| *who == "one") <= Some(1), "{order:?}");
    }

    /// The story: the panic closed the channel on the thread of low priority, which queues nobody, and its guest was in no
    /// queue any more.
    #[test]
    fn a_panic_of_the_work_is_its_guests_and_the_threads_go_on() {
        let workers = Workers::start(1).expect("threads");
        let (told, tells) = channel::bounded(1);
        let aside = workers.aside().clone();
        workers.spawn(&workers.seat(&Subject::everyone()), |_slice| async move {
            let everyone = Subject::everyone();
            let panicked = aside.run(&everyone, || panic!("a mistake of the host")).await;
            let name = aside.run(&everyone, || thread::current().name().map(str::to_owned)).await;
            told.send((panicked, name)).await.expect("the test waits");
        });
        let (panicked, name) = tells.recv_blocking().expect("the guest goes on");
        assert_eq!(panicked, Err::<(), _>(Trap::Panicked));
        assert!(name.expect("no panic").is_some_and(|name| name.starts_with("aside-")));
    }
}
