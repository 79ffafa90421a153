//! Futures on one thread, in an order that a seed decides.
//!
//! Owns: the tasks and who of them is ready. Never: a thread, or the clock. Some tasks are lazy: they come last for as
//! long as others are ready, as one does whose thread has no core, or whose client is far away.

use super::lock;
use crate::engine::simulation::random::Random;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One turn in so many may be a lazy task's though others are ready.
const LAZY_TURN: u32 = 16;

#[derive(Default)]
pub struct Tasks {
    tasks: BTreeMap<u64, Task>,
    ready: Arc<Mutex<Vec<u64>>>,
    spawner: Spawner,
    spawned: u64,
}

struct Task {
    name: String,
    future: Boxed,
    flag: Arc<Flag>,
    lazy: bool,
}

/// Wakes its task.
struct Flag {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Spawner(Arc<Mutex<Vec<(String, Boxed)>>>);

impl Spawner {
    pub fn spawn(&self, name: String, future: impl Future<Output = ()> + Send + 'static) {
        lock(&self.0).push((name, Box::pin(future)));
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Flag>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.ready).push(self.task);
        }
    }
}

impl Tasks {
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Those that have not ended.
    pub fn names(&self) -> Vec<&str> {
        self.tasks.values().map(|task| task.name.as_str()).collect()
    }

    pub fn any_ready(&self) -> bool {
        !lock(&self.ready).is_empty() || !lock(&self.spawner.0).is_empty()
    }

    /// Polls one of those that are ready. Whom.
    pub fn tick(&mut self, random: &mut Random) -> Option<u64> {
        self.adopt(random);
        let task = self.choose(random)?;
        let Some(Task { future, flag, .. }) = self.tasks.get_mut(&task) else { return Some(task) };
        flag.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(flag.clone());
        if let Poll::Ready(()) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.tasks.remove(&task);
        }
        Some(task)
    }

    pub fn name(&self, task: u64) -> &str {
        self.tasks.get(&task).map_or("one that has ended", |task| &task.name)
    }

    fn adopt(&mut self, random: &mut Random) {
        let new = std::mem::take(&mut *lock(&self.spawner.0));
        for (name, future) in new {
            self.spawned += 1;
            let flag = Flag { task: self.spawned, queued: AtomicBool::new(true), ready: self.ready.clone() };
            let task = Task { name, future, flag: Arc::new(flag), lazy: random.one_in(4) };
            self.tasks.insert(self.spawned, task);
            lock(&self.ready).push(self.spawned);
        }
    }

    fn choose(&self, random: &mut Random) -> Option<u64> {
        let mut ready = lock(&self.ready);
        if ready.is_empty() {
            return None;
        }
        let lazy = |task: &u64| self.tasks.get(task).is_some_and(|task| task.lazy);
        let eager: Vec<usize> = (0..ready.len()).filter(|&at| !lazy(&ready[at])).collect();
        let at = match random.pick(&eager) {
            Some(&at) if !random.one_in(LAZY_TURN) => at,
            _ => random.below(ready.len() as u32) as usize,
        };
        Some(ready.remove(at))
    }
}
