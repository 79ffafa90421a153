//! A thread of low priority that computes for another, and takes no lock.
//!
//! Owns: the thread, and the hand-over of one piece of work and of what comes of it. Never: a queue, or what the work is.
//!
//! Beside a busy model such a thread has a thirtieth of a core, and loses it wherever it is. Where that is within a lock,
//! everybody who wants the lock waits for the next time it has the core: an end that takes 0.5 ms in the median took up to
//! 99, and both threads of a batch stood still for 5. So whoever has a queue keeps it on a thread of the usual priority,
//! which hands the work over and sleeps until it is done. Between the two there is a flag, and a thread to wake.

use crate::backend::turns;
use crate::clock;
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// By so much nicer than the threads of guests and batches: beside a busy one it gets a thirtieth of a core.
const NICER: i32 = 15;
/// The system's greatest.
const NICEST: i32 = 19;

/// The thread; it ends when this is dropped.
pub(super) struct Low {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

type Work = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// Either side opens the drawer only while the other waits for it, so nobody waits for its lock.
#[derive(Default)]
struct Desk {
    drawer: Mutex<Option<Drawer>>,
    /// The drawer is the low thread's.
    handed: AtomicBool,
    ended: AtomicBool,
}

enum Drawer {
    Work(Work, Thread),
    Done(thread::Result<Box<dyn Any + Send>>, Duration),
}

impl Low {
    pub fn start(name: String, stack: usize) -> io::Result<Low> {
        let desk = Arc::new(Desk::default());
        let own = desk.clone();
        let thread = thread::Builder::new().name(name).stack_size(stack).spawn(move || own.serve())?;
        Ok(Low { desk, thread: Some(thread) })
    }

    /// Has the work done there and sleeps meanwhile. Answers what came of it, and the processor time it took.
    ///
    /// # Panics
    /// If the work does. What it owned was dropped there then: let it catch its panics where that tells anybody anything.
    pub fn run<R: Send + 'static>(&mut self, work: impl FnOnce() -> R + Send + 'static) -> (R, Duration) {
        let Some(low) = &self.thread else { unreachable!("it is there until it is dropped") };
        let work: Work = Box::new(move || Box::new(work()));
        *self.desk.open() = Some(Drawer::Work(work, thread::current()));
        self.desk.handed.store(true, Ordering::Release);
        low.thread().unpark();
        while self.desk.handed.load(Ordering::Acquire) {
            thread::park();
        }
        match self.desk.open().take() {
            Some(Drawer::Done(Ok(made), took)) => (*made.downcast().expect("what this work makes"), took),
            Some(Drawer::Done(Err(panic), _)) => resume_unwind(panic),
            _ => unreachable!("it gives the drawer back with what it has made"),
        }
    }
}

impl Desk {
    fn open(&self) -> MutexGuard<'_, Option<Drawer>> {
        self.drawer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        lower_priority();
        while !self.ended.load(Ordering::Acquire) {
            if !self.handed.load(Ordering::Acquire) {
                thread::park();
                continue;
            }
            let Some(Drawer::Work(work, whose)) = self.open().take() else { unreachable!("work was handed") };
            let since = clock::computed();
            let made = catch_unwind(AssertUnwindSafe(work));
            let took = clock::computed().saturating_sub(since);
            *self.open() = Some(Drawer::Done(made, took));
            self.handed.store(false, Ordering::Release);
            whose.unpark();
        }
    }
}

impl Drop for Low {
    fn drop(&mut self) {
        self.desk.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // every panic of the work is caught
        }
    }
}

/// Makes the calling thread, and only that, one for long work.
fn lower_priority() {
    let lower = || {
        let nice = rustix::process::getpriority_process(None)?;
        turns::take((nice + NICER).min(NICEST), turns::USUAL)
    };
    if let Err(error) = lower() {
        tracing::warn!(target: "runtime", "a thread for long work keeps its priority: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_there_in_turn_and_its_panic_is_the_askers() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let mut low = Low::start("low".to_owned(), 1 << 20).unwrap();
        let alive = Arc::downgrade(&low.desk);
        for number in 0..1000 {
            let (made, _) = low.run(move || (number, thread::current().name().map(str::to_owned)));
            assert_eq!(made, (number, Some("low".to_owned())));
        }
        let panics = AssertUnwindSafe(|| low.run(|| -> i32 { panic!("a mistake of the host") }));
        assert!(catch_unwind(panics).is_err());
        let here = niceness();
        assert_eq!(low.run(niceness).0, (here + NICER).min(NICEST));
        assert_eq!(niceness(), here);
        drop(low);
        assert!(alive.upgrade().is_none(), "its thread has ended");
    }
}
