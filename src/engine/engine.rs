//! The engine's thread: collect, choose, submit, deliver, settle.
//!
//! Owns: the thread, the inbox, and the batches under way. Never: how much a batch may hold, which is [`Pace`]'s; a decision
//! about pages or order, which is [`State`]'s; a tensor, which is the backend's. An idle engine blocks on its inbox; a lone
//! request starts at once.
//!
//! # While a batch is under way
//! On a backend that computes by itself ([`Backend::depth`] above 1) this thread goes on: it carries out what guests ask, so
//! that the next batch's passes are ready when this one ends, and runs guests. A second batch is put behind the first when no
//! pass ends with that one, as between the chunks of a long prompt: then nobody is woken by it, and there is nothing to wait
//! for. Where guests wait for its tokens, what they ask next is worth more in the next batch than an early start of it: a
//! step reads all weights whether for half of the guests or for all, and guests once split between two batches would stay so.

use crate::backend::{Backend, Fault, Info, Outcome};
use crate::engine::credit::Credits;
use crate::engine::job::Move;
use crate::engine::operation::{Command, Notice, Operation, QueueId};
use crate::engine::pace::Pace;
use crate::engine::prefix::Reuse;
use crate::engine::schedule::Plan;
use crate::engine::state::State;
use crate::limits::{ENGINE_INBOX, WORKER_STACK_BYTES};
use crate::observe::stages::{self, Stage};
use smol::channel::{Receiver, Sender, TrySendError};
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lets the guests that a batch woke go first, so that what they ask next joins the next batch.
pub trait Settle: Send {
    /// The calling thread is going to run batches, and between them may do what there is to do for guests.
    fn attend(&self);
    /// Blocks until the woken guests have run (each to its next wait or for a few slices), `limit` at most.
    fn settle(&self, limit: Duration);
    /// The calling thread is about to sleep or to end.
    fn rest(&self);
}

/// Nobody to wait for: for tests and for an engine without guests.
impl Settle for () {
    fn attend(&self) {}
    fn settle(&self, _limit: Duration) {}
    fn rest(&self) {}
}

/// Settling takes at most this share of the batch before it, ...
const SETTLE_SHARE: u32 = 4;
/// ... but always enough for a few slices of guests, ...
const SETTLE_LEAST: Duration = Duration::from_micros(500);
/// ... and never long enough to be felt.
const SETTLE_MOST: Duration = Duration::from_millis(10);

/// While a batch is under way guests have the engine's thread for so long, then it looks at the device again.
const SPARE: Duration = Duration::from_micros(50);

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
    inbox: Sender<Command>,
    info: Arc<Info>,
}

impl Handle {
    /// One to whoever takes the commands out, in an engine's place.
    #[cfg(test)]
    pub(crate) fn to_nobody(info: Info) -> (Handle, Receiver<Command>) {
        let (inbox, commands) = smol::channel::bounded(ENGINE_INBOX);
        (Handle { inbox, info: Arc::new(info) }, commands)
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Gives the command back when the inbox is full (then await [`Handle::send`]) or the engine is gone.
    #[allow(clippy::result_large_err)] // The command itself comes back, as from any channel.
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
            self.collect();
            if self.has_room()
                && let Some(plan) = self.state.plan(self.pace.budget())
            {
                self.settle.attend();
                self.begin(plan)?;
            }
            if self.under_way.is_empty() {
                self.settle.rest();
                if !self.untold.is_empty() {
                    std::thread::sleep(UNTOLD_WAIT);
                    continue;
                }
                match self.inbox.recv_blocking() {
                    Ok(command) => self.state.apply(command),
                    Err(_) => return Ok(()),
                }
            } else if self.backend.collect(&mut outcome)? {
                self.end(&mut outcome)?;
            } else {
                self.settle.settle(SPARE);
            }
        }
    }

    /// Whether another batch may be put behind those under way.
    fn has_room(&self) -> bool {
        self.under_way.len() < self.backend.depth() && !self.under_way.iter().any(|batch| batch.plan.wakes)
    }

    /// Takes what is in the inbox now; true if that woke a guest or may have.
    fn collect(&mut self) -> bool {
        let waiting = self.inbox.len(); // Not until it is empty: senders must not be able to hold us here.
        for _ in 0..waiting {
            match self.inbox.try_recv() {
                Ok(command) => self.state.apply(command),
                Err(_) => break,
            }
        }
        self.untold.extend(self.state.take_notices());
        while let Some(notice) = self.untold.pop_front() {
            if let Err(TrySendError::Full(notice)) = self.notices.try_send(notice) {
                self.untold.push_front(notice);
                break;
            }
        }
        self.state.take_answered() || waiting >= ENGINE_INBOX
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
        self.state.finish(plan, outcome)?;
        if self.under_way.is_empty() {
            self.settle(took);
        }
        Ok(())
    }

    /// Lets woken guests run while still collecting: an answer we give on the way (pages, names) wakes its guest too.
    fn settle(&mut self, batch: Duration) {
        self.state.take_answered();
        let limit = (batch / SETTLE_SHARE).clamp(SETTLE_LEAST, SETTLE_MOST);
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.settle.settle(left);
            if !self.collect() {
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
mod tests {
    use super::*;
    use crate::backend::{Batch, Mask, PageId, Sampler, TokenId};
    use crate::engine::operation::{
        Kind, Lost, PageQuotas, Pass, PassInput, PassOutput, PassResult, Reply, VirtualId,
    };
    use crate::engine::simulation::fake::Fake;
    use crate::identity::{InstanceId, Subject};
    use std::sync::{Mutex, OnceLock};

    fn info() -> Info {
        Info {
            device: "fake".into(),
            page_size: 4,
            pages: 8,
            embeds: 1,
            batch_tokens: 16,
            vocab: 10,
            hidden: 1,
        }
    }

    /// A fake that fails from the batch `fails_at` on, and notes the size of each batch.
    struct Failing {
        fake: Fake,
        sizes: Arc<Mutex<Vec<usize>>>,
        fails_at: usize,
        how: fn() -> Fault,
    }

    impl Backend for Failing {
        fn info(&self) -> &Info {
            self.fake.info()
        }

        fn depth(&self) -> usize {
            self.fake.depth()
        }

        fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
            let mut sizes = self.sizes.lock().expect("no panic holds it");
            let fails = sizes.len() == self.fails_at;
            sizes.push(batch.sequences.len());
            drop(sizes);
            if fails { Err((self.how)()) } else { self.fake.submit(batch) }
        }

        fn collect(&mut self, outcome: &mut Outcome) -> Result<bool, Fault> {
            self.fake.collect(outcome)
        }

        fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault> {
            self.fake.copy_page(from, to)
        }

        fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault> {
            self.fake.clear_page(page, from)
        }
    }

    struct Guest {
        engine: Handle,
        credits: Credits,
        queue: QueueId,
    }

    impl Guest {
        fn join(engine: &Handle) -> Guest {
            let (engine, instance) = (engine.clone(), InstanceId::random());
            let (subject, seed, reply) = (Subject::everyone(), 1, Reply::default());
            let pages = Reply::clone(&reply);
            smol::block_on(async {
                engine.send(Command::Join { instance, subject, pages: PageQuotas::default(), seed }).await?;
                let kind = Kind::Page;
                engine.send(Command::Allocate { instance, kind, count: 1, reply }).await?;
                assert_eq!(pages.wait().await, &Ok(vec![VirtualId(0)]));
                Ok::<(), Gone>(())
            })
            .expect("the engine runs");
            let queue = QueueId { instance, ordinal: 0 };
            Guest { engine, credits: Credits::default(), queue }
        }

        /// One token more, behind `len`.
        fn decode(&self, len: u32) -> Result<Reply<PassResult>, Gone> {
            let reply = Reply::default();
            let sampler = Sampler::Multinomial { temperature: 0.0 };
            let pass = Pass {
                pages: vec![VirtualId(0)],
                len: len + 1,
                inputs: vec![PassInput::Token(TokenId(3))],
                positions: vec![len],
                mask: Mask::Causal,
                outputs: vec![PassOutput::Token { row: 0, sampler }],
            };
            let operation = Operation::Pass(pass, Reply::clone(&reply));
            smol::block_on(self.engine.submit(&self.credits, self.queue, operation))?;
            Ok(reply)
        }
    }

    struct World {
        engine: Handle,
        sizes: Arc<Mutex<Vec<usize>>>,
        faults: Receiver<String>,
        _notices: Receiver<Notice>,
    }

    fn start(settle: impl Settle + 'static, fails_at: usize, how: fn() -> Fault) -> World {
        start_deep(1, settle, fails_at, how)
    }

    fn start_deep(depth: usize, settle: impl Settle + 'static, fails_at: usize, how: fn() -> Fault) -> World {
        let sizes = Arc::<Mutex<Vec<usize>>>::default();
        let fake = Fake::new(info(), depth);
        let failing = Failing { fake, sizes: sizes.clone(), fails_at, how };
        let backend = move || Ok::<Box<dyn Backend>, ()>(Box::new(failing));
        let (notices, _notices) = smol::channel::bounded(8);
        let (tell, faults) = smol::channel::bounded(1);
        let engine = Engine::start(backend, Box::new(settle), Reuse::default(), notices, move |why| {
            let _ = tell.try_send(why);
        });
        World { engine: engine.expect("a thread"), sizes, faults, _notices }
    }

    fn no_fault() -> Fault {
        Fault("none expected".into())
    }

    /// Whoever starts it hears why there is none, and nobody is told of a fault.
    #[test]
    fn an_engine_without_a_backend_does_not_start() {
        type Made = Result<Box<dyn Backend>, &'static str>;
        let start = |backend: fn() -> Made| {
            let (notices, _notices) = smol::channel::bounded(1);
            let fault = |why| panic!("{why}");
            Engine::start(backend, Box::new(()), Reuse::default(), notices, fault).map(drop)
        };
        assert!(matches!(start(|| Err("no device")), Err(NotStarted::Backend("no device"))));
        assert!(matches!(start(|| panic!("as asked")), Err(NotStarted::Panicked)));
    }

    #[test]
    fn a_lone_request_is_answered_and_the_engine_ends_with_its_last_handle() {
        let World { engine, faults, .. } = start((), usize::MAX, no_fault);
        let guest = Guest::join(&engine);
        for len in 0..3 {
            let reply = guest.decode(len).expect("the engine runs");
            let made = smol::block_on(reply.wait());
            assert_eq!(made.as_ref().map(Vec::len), Ok(1));
        }
        drop((engine, guest));
        assert!(faults.recv_blocking().is_err(), "it ended, and without a fault");
    }

    #[test]
    fn a_fault_or_a_panic_is_told_to_every_guest_and_upward() {
        let panics: fn() -> Fault = || panic!("a planted panic");
        let faults: fn() -> Fault = || Fault("a planted fault".into());
        for (how, told) in
            [(faults, "the device failed: a planted fault"), (panics, "the engine panicked: a planted panic")]
        {
            let world = start((), 0, how);
            let guests = [0; 3].map(|_| Guest::join(&world.engine));
            // The first is sent before anything can fail; whoever comes too late is refused at once.
            let replies = guests.each_ref().map(|g| g.decode(0));
            assert!(replies[0].is_ok());
            for reply in replies.into_iter().flatten() {
                assert_eq!(smol::block_on(reply.wait()), &Err(Lost(told.into())));
            }
            assert_eq!(world.faults.recv_blocking().as_deref(), Ok(told));
            let (instance, how) = (guests[0].queue.instance, crate::engine::operation::Leave::Killed);
            let refused = smol::block_on(world.engine.send(Command::Leave { instance, how }));
            assert_eq!(refused, Err(Gone));
        }
    }

    /// Runs three guests, the way workers do: each decodes again once its answer is there.
    struct Workers(Arc<OnceLock<[Guest; 3]>>, Mutex<Vec<Reply<PassResult>>>);

    impl Settle for Workers {
        fn attend(&self) {}
        fn rest(&self) {}
        fn settle(&self, _limit: Duration) {
            let Some(guests) = self.0.get() else { return };
            let mut waiting = self.1.lock().expect("no panic holds it");
            let first = waiting.is_empty();
            if first || waiting.iter().all(|reply| reply.is_initialized()) {
                let len = u32::from(!first);
                *waiting = guests.iter().filter_map(|guest| guest.decode(len).ok()).collect();
            }
        }
    }

    #[test]
    fn what_woken_guests_ask_joins_the_next_batch() {
        let guests = Arc::new(OnceLock::new());
        let workers = Workers(guests.clone(), Mutex::default());
        let world = start(workers, usize::MAX, no_fault);
        let all = [0; 3].map(|_| Guest::join(&world.engine));
        assert!(guests.set(all).is_ok());
        let spark = Guest::join(&world.engine);
        let mut len = 0;
        while world.sizes.lock().expect("no panic holds it").iter().filter(|&&n| n >= 3).count() < 2 {
            let reply = spark.decode(len % 4).expect("the engine runs");
            assert!(smol::block_on(reply.wait()).is_ok());
            len += 1;
        }
    }
}
