//! The engine's thread: collect, choose, run, deliver, settle.
//!
//! Owns: the thread, the inbox, the pace (how many rows a batch may have so that nobody waits long). Never: a
//! decision about pages or order, which is [`State`]'s; a tensor, which is the backend's. An idle engine blocks on
//! its inbox; a lone request starts at once.

use crate::backend::{Backend, Fault, Info, Outcome};
use crate::engine::credit::Credits;
use crate::engine::job::Move;
use crate::engine::operation::{Command, Notice, Operation, QueueId};
use crate::engine::schedule::{Budget, Plan};
use crate::engine::state::State;
use crate::limits::ENGINE_INBOX;
use smol::channel::{Receiver, Sender, TrySendError};
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lets the guests that a batch woke go first, so that what they ask next joins the next batch.
pub trait Settle: Send {
    /// Blocks until the woken guests have run (each to its next wait or the end of its slice), `limit` at most.
    fn settle(&self, limit: Duration);
}

/// Nobody to wait for: for tests and for an engine without guests.
impl Settle for () {
    fn settle(&self, _limit: Duration) {}
}

/// Settling takes at most this share of the batch before it, ...
const SETTLE_SHARE: u32 = 4;
/// ... but always enough for a few slices of guests, ...
const SETTLE_LEAST: Duration = Duration::from_micros(500);
/// ... and never long enough to be felt.
const SETTLE_MOST: Duration = Duration::from_millis(10);

/// How long a long prompt's chunk may hold up the decodes that run beside it, ...
const CHUNK_BESIDE: Duration = Duration::from_millis(100);
/// ... and how long a chunk may run alone: what a newcomer waits at most.
const CHUNK_ALONE: Duration = Duration::from_millis(400);
/// Rows in a chunk at least: fewer would read all weights for next to nothing.
const CHUNK_LEAST: u32 = 16;
/// The first chunk's rows, before anything was measured.
const CHUNK_FIRST: u32 = 64;

/// The engine has stopped; so will the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the engine has stopped: the server must be started again")
    }
}

impl std::error::Error for Gone {}

/// The way to an engine. Cheap to clone; the engine ends when the last one is dropped.
#[derive(Clone)]
pub struct Handle {
    inbox: Sender<Command>,
    info: Arc<Info>,
}

impl Handle {
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Gives the command back when the inbox is full (then await [`Handle::send`]) or the engine is gone.
    pub fn try_send(&self, command: Command) -> Result<(), Command> {
        self.inbox.try_send(command).map_err(|refused| match refused {
            TrySendError::Full(command) | TrySendError::Closed(command) => command,
        })
    }

    /// Waits while the inbox is full. Commands of one sender arrive in the order sent.
    pub async fn send(&self, command: Command) -> Result<(), Gone> {
        self.inbox.send(command).await.map_err(|_| Gone)
    }

    /// Submits an operation of the instance that `credits` belongs to; waits while that instance has too much queued.
    pub async fn submit(&self, credits: &Credits, queue: QueueId, operation: Operation) -> Result<(), Gone> {
        let credit = credits.take(operation.words()).await;
        self.send(Command::Submit { queue, operation, credit }).await
    }
}

/// The engine: one thread, one backend.
pub struct Engine {
    backend: Box<dyn Backend>,
    settle: Box<dyn Settle>,
    inbox: Receiver<Command>,
    notices: Sender<Notice>,
    state: State,
    pace: Pace,
}

impl Engine {
    /// Starts the thread "engine". `notices` must never be full: give it room for one notice per instance.
    /// `on_fault` is called once, last, if the device fails or the engine panics: every waiting guest has then been
    /// answered that its work is lost, and the process should end.
    pub fn start(
        backend: Box<dyn Backend>,
        settle: Box<dyn Settle>,
        notices: Sender<Notice>,
        on_fault: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<Handle> {
        let info = Arc::new(backend.info().clone());
        let (sender, inbox) = smol::channel::bounded(ENGINE_INBOX);
        let pace = Pace::new(info.batch_tokens);
        let state = State::new(&info);
        let engine = Engine { backend, settle, inbox, notices, state, pace };
        std::thread::Builder::new().name("engine".into()).spawn(move || engine.live(on_fault))?;
        Ok(Handle { inbox: sender, info })
    }

    fn live(mut self, on_fault: impl FnOnce(String)) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.turns()));
        let why = match ended {
            Ok(Ok(())) => return, // Every handle is gone: nobody is left to tell.
            Ok(Err(fault)) => format!("the device failed: {fault}"),
            Err(panic) => format!("the engine panicked: {}", panic_text(&*panic)),
        };
        tracing::error!(target: "engine", "{why}; all work in progress is lost and the process ends");
        self.inbox.close();
        // What a panic left behind may be torn, but the replies in it are whole; telling them must not stop us.
        let told = catch_unwind(AssertUnwindSafe(|| {
            self.state.lose_everything(&why);
            while let Ok(command) = self.inbox.try_recv() {
                self.state.apply(command);
            }
        }));
        if told.is_err() {
            tracing::error!(target: "engine", "not every guest could be told");
        }
        on_fault(why);
    }

    fn turns(&mut self) -> Result<(), Fault> {
        let mut outcome = Outcome::default();
        loop {
            self.collect()?;
            let Some(plan) = self.state.plan(self.pace.budget()) else {
                match self.inbox.recv_blocking() {
                    Ok(command) => self.state.apply(command),
                    Err(_) => return Ok(()),
                }
                continue;
            };
            let took = self.run(&plan, &mut outcome)?;
            self.state.finish(plan, &mut outcome)?;
            self.settle(took)?;
        }
    }

    /// Takes what is in the inbox now; true if that woke a guest or may have.
    fn collect(&mut self) -> Result<bool, Fault> {
        let waiting = self.inbox.len(); // Not until it is empty: senders must not be able to hold us here.
        for _ in 0..waiting {
            match self.inbox.try_recv() {
                Ok(command) => self.state.apply(command),
                Err(_) => break,
            }
        }
        for notice in self.state.take_notices() {
            if let Err(TrySendError::Full(notice)) = self.notices.try_send(notice) {
                return Err(Fault(format!("no room to tell upward: {notice:?}")));
            }
        }
        Ok(self.state.take_answered() || waiting >= ENGINE_INBOX)
    }

    fn run(&mut self, plan: &Plan, outcome: &mut Outcome) -> Result<Duration, Fault> {
        let started = Instant::now();
        for step in &plan.moves {
            match *step {
                Move::Copy { from, to } => self.backend.copy_page(from, to)?,
                Move::Clear { page, from } => self.backend.clear_page(page, from)?,
            }
        }
        outcome.produced.clear();
        if !plan.batch.sequences.is_empty() {
            self.backend.run(&plan.batch, outcome)?;
        }
        let took = started.elapsed();
        self.pace.learn(plan, took);
        Ok(took)
    }

    /// Lets woken guests run while still collecting: an answer we give on the way (pages, names) wakes its guest too.
    fn settle(&mut self, batch: Duration) -> Result<(), Fault> {
        self.state.take_answered();
        let limit = (batch / SETTLE_SHARE).clamp(SETTLE_LEAST, SETTLE_MOST);
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.settle.settle(left);
            if !self.collect()? {
                return Ok(());
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Rows per batch from measured time. Which rows share a batch never changes a number, so this may follow the clock.
struct Pace {
    most: u32,
    /// Smoothed over batches that hold a chunk; none yet: no estimate.
    row: Option<Duration>,
}

impl Pace {
    fn new(most: u32) -> Pace {
        Pace { most, row: None }
    }

    fn budget(&self) -> Budget {
        let rows_in = |time: Duration| match self.row {
            None => CHUNK_FIRST,
            Some(row) => u32::try_from(time.as_nanos() / row.as_nanos().max(1)).unwrap_or(u32::MAX),
        };
        let bounded = |rows: u32| rows.max(CHUNK_LEAST).min(self.most);
        Budget {
            rows: self.most,
            beside: bounded(rows_in(CHUNK_BESIDE)),
            alone: bounded(rows_in(CHUNK_ALONE)),
        }
    }

    fn learn(&mut self, plan: &Plan, took: Duration) {
        let rows: usize = plan.batch.sequences.iter().map(|s| s.inputs.len()).sum();
        if rows < CHUNK_LEAST as usize {
            return; // A few rows cost what reading the weights costs, not what a row costs.
        }
        let row = took / rows as u32;
        self.row = Some(self.row.map_or(row, |before| (before * 3 + row) / 4));
    }
}
