//! The engine's thread: collect, choose, submit, deliver, settle.
//!
//! Owns: the thread, the [`Inbox`] whose commands subjects take turns at, and the batches under way. Never: how much a batch may
//! hold, which is [`Pace`]'s; a decision about pages or order, which is [`State`]'s; a tensor, which is the backend's. An idle
//! engine blocks on its inbox; a lone request starts at once.
//!
//! # While a batch is under way
//! On a backend that computes by itself ([`Backend::depth`] above 1) this thread goes on: it carries out what guests ask, so
//! that the next batch's passes are ready when this one ends, and runs guests. A second batch is put behind the first when no
//! pass ends with that one, as between the chunks of a long prompt: then nobody is woken by it, and there is nothing to wait
//! for. Where guests wait for its tokens, what they ask next is worth more in the next batch than an early start of it: a
//! step reads all weights whether for half of the guests or for all, and guests once split between two batches would stay so.

use crate::backend::{Backend, Fault, Info, Outcome};
use crate::engine::credit::Credits;
use crate::engine::inbox::{Inbox, Sent};
use crate::engine::job::Move;
use crate::engine::operation::{Command, Notice, Operation, QueueId};
use crate::engine::pace::Pace;
use crate::engine::prefix::Reuse;
use crate::engine::schedule::Plan;
use crate::engine::state::State;
use crate::identity::Subject;
use crate::limits::{ENGINE_INBOX, WORKER_STACK_BYTES};
use crate::observe::stages::{self, Stage};
#[cfg(test)]
use smol::channel::Receiver;
use smol::channel::{Sender, TrySendError};
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lets the guests that a batch woke go first, so that what they ask next joins the next batch.
pub trait Settle: Send {
    /// The calling thread is going to run a batch for these subjects, one of whom may come several times, and between batches
    /// may do what there is to do for guests.
    fn attend(&self, whom: &mut dyn Iterator<Item = &Subject>);
    /// Whom the calling thread wakes from now until it settles is answered by the batch that has just ended.
    fn deliver(&self);
    /// Blocks until the woken guests have run (each to its next wait or for a few slices), until `limit` after `since` at
    /// most; it may be called again with the same two.
    fn settle(&self, since: Instant, limit: Duration);
    /// Runs a slice of a guest, if one waits for its turn and nobody else has it: a batch is under way elsewhere, and the
    /// calling thread will look after it again soon. False: nobody was there.
    fn lend(&self) -> bool;
    /// The calling thread is about to sleep or to end.
    fn rest(&self);
}

/// Nobody to wait for: for tests and for an engine without guests.
impl Settle for () {
    fn attend(&self, _whom: &mut dyn Iterator<Item = &Subject>) {}
    fn deliver(&self) {}
    fn settle(&self, _since: Instant, _limit: Duration) {}
    fn lend(&self) -> bool {
        false
    }
    fn rest(&self) {}
}

/// Settling takes at most this share of the batch before it, ...
const SETTLE_SHARE: u32 = 4;
/// ... but always enough for a few slices of guests, ...
const SETTLE_LEAST: Duration = Duration::from_micros(500);
/// ... and never long enough to be felt.
const SETTLE_MOST: Duration = Duration::from_millis(10);

/// Commands are carried out for so long before the thread looks after its batches again. Most take half a microsecond; a
/// few hundred that name 65,536 pages each would keep the device idle for half a second.
const COLLECT: Duration = Duration::from_millis(1);

/// How soon an idle engine tries again to tell what found the channel upward full.
const UNTOLD_WAIT: Duration = Duration::from_millis(5);

/// The engine has stopped; so will the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the engine has stopped: the server must be started again")
    }
}

impl std::error::Error for Gone {}

/// Why there is no engine.
#[derive(Debug)]
pub enum NotStarted<E> {
    /// The system gives no thread.
    Thread(std::io::Error),
    /// The backend was not made.
    Backend(E),
    /// What makes it has panicked, and said so.
    Panicked,
}

/// The way to an engine. Cheap to clone; the engine ends when the last one is dropped.
#[derive(Clone)]
pub struct Handle {
    inbox: Sender<Sent>,
    info: Arc<Info>,
}

impl Handle {
    /// One to whoever takes the commands out, in an engine's place.
    #[cfg(test)]
    pub(crate) fn to_nobody(info: Info) -> (Handle, Receiver<Sent>) {
        let (inbox, commands) = smol::channel::bounded(ENGINE_INBOX);
        (Handle { inbox, info: Arc::new(info) }, commands)
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Gives the command back when the inbox is full (then await [`Handle::send`]) or the engine is gone.
    #[allow(clippy::result_large_err)] // The command itself comes back, as from any channel.
    pub fn try_send(&self, command: Command) -> Result<(), Command> {
        self.try_post(Sent { command, credit: None })
    }

    /// The same of one that has no answer to wait for: while too many of its instance, whose `credits` are, are on their way or
    /// queued, it comes back too (then await [`Handle::tell`]).
    #[allow(clippy::result_large_err)]
    pub fn try_tell(&self, credits: &Credits, command: Command) -> Result<(), Command> {
        match credits.try_take(command.words()) {
            None => Err(command),
            credit => self.try_post(Sent { command, credit }),
        }
    }

    #[allow(clippy::result_large_err)]
    fn try_post(&self, sent: Sent) -> Result<(), Command> {
        self.inbox.try_send(sent).map_err(|refused| match refused {
            TrySendError::Full(sent) | TrySendError::Closed(sent) => sent.command,
        })
    }

    /// Waits while the inbox is full. Commands of one sender arrive in the order sent.
    pub async fn send(&self, command: Command) -> Result<(), Gone> {
        self.inbox.send(Sent { command, credit: None }).await.map_err(|_| Gone)
    }

    /// Like [`Handle::send`], of one that has no answer to wait for: waits while too many such are.
    pub async fn tell(&self, credits: &Credits, command: Command) -> Result<(), Gone> {
        let credit = Some(credits.take(command.words()).await);
        self.inbox.send(Sent { command, credit }).await.map_err(|_| Gone)
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
    inbox: Inbox,
    notices: Sender<Notice>,
    /// Notices that found the channel full: at most one per instance.
    untold: VecDeque<Notice>,
    state: State,
    pace: Pace,
    /// The first goes first.
    under_way: VecDeque<UnderWay>,
    /// When the last batch ended.
    ended: Instant,
}

/// A batch that has been submitted.
struct UnderWay {
    plan: Plan,
    since: Instant,
}

impl Engine {
    /// Starts the thread "engine", which makes its backend itself: a device belongs to one thread. `reuse`: which
    /// prefixes it may find again. `notices` wants room for one notice per instance; while it is full they wait here.
    /// `on_fault` is called once, last, if the device fails or the engine panics: every waiting guest has then been
    /// answered that its work is lost, and the process should end.
    pub fn start<E: Send + 'static>(
        backend: impl FnOnce() -> Result<Box<dyn Backend>, E> + Send + 'static,
        settle: Box<dyn Settle>,
        reuse: Reuse,
        notices: Sender<Notice>,
        on_fault: impl FnOnce(String) + Send + 'static,
    ) -> Result<Handle, NotStarted<E>> {
        let (sender, inbox) = smol::channel::bounded(ENGINE_INBOX);
        let (made, ready) = std::sync::mpsc::sync_channel(1);
        let life = move || {
            let backend = match backend() {
                Ok(backend) => backend,
                Err(why) => {
                    let _ = made.send(Err(why)); // whoever starts the engine waits for it
                    return;
                }
            };
            let info = Arc::new(backend.info().clone());
            let pace = Pace::new(info.batch_tokens, backend.depth() as u32);
            let state = State::new(&info, &reuse);
            let _ = made.send(Ok(info));
            let (untold, under_way, ended) = (VecDeque::new(), VecDeque::new(), Instant::now());
            let inbox = Inbox::new(inbox);
            let engine = Engine { backend, settle, inbox, notices, untold, state, pace, under_way, ended };
            engine.live(on_fault);
        };
        // It runs guests too, so it has a worker's stack.
        let thread = std::thread::Builder::new().name("engine".into()).stack_size(WORKER_STACK_BYTES);
        thread.spawn(life).map_err(NotStarted::Thread)?;
        match ready.recv() {
            Ok(Ok(info)) => Ok(Handle { inbox: sender, info }),
            Ok(Err(why)) => Err(NotStarted::Backend(why)),
            Err(_) => Err(NotStarted::Panicked),
        }
    }

    fn live(mut self, on_fault: impl FnOnce(String)) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.turns()));
        self.settle.rest(); // Those who are told that their work is lost still have to run.
        let why = match ended {
            // Every handle is gone: nobody is left to tell. Dropping `on_fault` after the backend says that its memory is free.
            Ok(Ok(())) => return drop(self),
            Ok(Err(fault)) => format!("the device failed: {fault}"),
            Err(panic) => format!("the engine panicked: {}", panic_text(&*panic)),
        };
        tracing::error!(target: "engine", "{why}; all work in progress is lost and the process ends");
        self.inbox.close();
        // What a panic left behind may be torn, but the replies in it are whole; telling them must not stop us.
        let told = catch_unwind(AssertUnwindSafe(|| {
            self.state.lose_everything(&why);
            self.inbox.take_in();
            while let Some((_, sent)) = self.inbox.next() {
                self.state.apply(sent.command);
            }
        }));
        if told.is_err() {
            tracing::error!(target: "engine", "not every guest could be told");
        }
        on_fault(why);
    }

    fn turns(&mut self) -> Result<(), Fault> {
        let mut outcome = Outcome::default();
        // Guests wait for this thread as well: no pause while it can run one.
        let mut lent = false;
        loop {
            self.collect();
            let plan = if self.has_room() {
                let budget = self.pace.budget(Instant::now());
                self.state.plan(budget)
            } else {
                None
            };
            let begins = plan.is_some();
            if let Some(plan) = plan {
                self.settle
                    .attend(&mut plan.instances().filter_map(|instance| self.state.subject_of(instance)));
                self.begin(plan)?;
            }
            if self.under_way.is_empty() {
                // There was something to move, and nothing to compute; or there is more to carry out.
                if begins || !self.inbox.is_empty() || self.state.has_more() {
                    continue;
                }
                self.settle.rest();
                if !self.untold.is_empty() {
                    std::thread::sleep(UNTOLD_WAIT);
                    continue;
                }
                if self.inbox.wait().is_err() {
                    return Ok(());
                }
            } else if self.backend.collect(&mut outcome, !lent)? {
                self.end(&mut outcome)?;
            } else {
                lent = self.settle.lend();
            }
        }
    }

    /// Whether another batch may be put behind those under way.
    fn has_room(&self) -> bool {
        self.under_way.len() < self.backend.depth() && !self.under_way.iter().any(|batch| batch.plan.wakes)
    }

    /// Carries out what has been sent by now, as far as it comes in [`COLLECT`]; true if that woke a guest or may have, or if there
    /// is more.
    fn collect(&mut self) -> bool {
        let full = self.inbox.take_in();
        let since = Instant::now();
        let mut before = since;
        while let Some((row, sent)) = self.inbox.next() {
            self.state.apply(sent.command);
            drop(sent.credit);
            let now = Instant::now();
            self.inbox.over(row, now - before);
            before = now;
            if now - since >= COLLECT {
                break; // What is left stays there, in its order.
            }
        }
        self.state.go_on();
        self.untold.extend(self.state.take_notices());
        while let Some(notice) = self.untold.pop_front() {
            if let Err(TrySendError::Full(notice)) = self.notices.try_send(notice) {
                self.untold.push_front(notice);
                break;
            }
        }
        self.state.take_answered() || full || !self.inbox.is_empty() || self.state.has_more()
    }

    /// Moves what is to be moved, and submits the batch.
    fn begin(&mut self, plan: Plan) -> Result<(), Fault> {
        for step in &plan.moves {
            match *step {
                Move::Copy { from, to } => self.backend.copy_page(from, to)?,
                Move::Clear { page, from } => self.backend.clear_page(page, from)?,
            }
        }
        let since = Instant::now(); // Moves are not the pace of rows.
        if plan.batch.sequences.is_empty() {
            self.settle.deliver();
            self.state.finish(plan, &mut Outcome::default())?;
            self.settle(Duration::ZERO);
            return Ok(());
        }
        tracing::trace!(sequences = plan.batch.sequences.len(), "batch");
        mark_all(Stage::Started, &plan);
        self.backend.submit(&plan.batch)?;
        self.under_way.push_back(UnderWay { plan, since });
        Ok(())
    }

    /// The first of the batches under way has ended.
    fn end(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        let Some(UnderWay { plan, since }) = self.under_way.pop_front() else { return Ok(()) };
        mark_all(Stage::Finished, &plan);
        // It has run since it was submitted, or since the one before it ended.
        let now = Instant::now();
        let took = now.saturating_duration_since(since.max(self.ended));
        self.ended = now;
        self.pace.learn(&plan.batch, took);
        // With another batch behind it, it wakes nobody.
        let wakes = self.under_way.is_empty();
        if wakes {
            self.settle.deliver();
        }
        self.state.finish(plan, outcome)?;
        if wakes {
            self.settle(took);
        }
        Ok(())
    }

    /// Lets woken guests run while still collecting: an answer we give on the way (pages, names) wakes its guest too.
    fn settle(&mut self, batch: Duration) {
        self.state.take_answered();
        let limit = (batch / SETTLE_SHARE).clamp(SETTLE_LEAST, SETTLE_MOST);
        let since = Instant::now();
        loop {
            self.settle.settle(since, limit);
            if !self.collect() || since.elapsed() >= limit {
                return;
            }
        }
    }
}

fn mark_all(stage: Stage, plan: &Plan) {
    if stages::recording() {
        plan.instances().for_each(|instance| stages::mark(stage, instance));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests;
