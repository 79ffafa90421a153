//! The engine's thread over a fake backend: who is answered, what shares a batch, and how it ends.

use super::*;
use crate::backend::{Batch, Mask, PageId, Sampler, TokenId};
use crate::engine::operation::{
    Kind, Lost, PageQuotas, Pass, PassInput, PassOutput, PassResult, Reply, Status, VirtualId,
};
use crate::engine::simulation::fake::Fake;
use crate::identity::{InstanceId, Subject};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

fn info() -> Info {
    Info { device: "fake".into(), page_size: 4, pages: 8, embeds: 1, batch_tokens: 8, vocab: 10, hidden: 1 }
}

/// A fake that fails from the batch `fails_at` on, notes the size of each batch, and ends none while it is `held`.
struct Failing {
    fake: Fake,
    held: Arc<AtomicBool>,
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

    fn collect(&mut self, outcome: &mut Outcome, pause: bool) -> Result<bool, Fault> {
        if self.held.load(Ordering::Relaxed) {
            std::thread::yield_now();
            return Ok(false);
        }
        self.fake.collect(outcome, pause)
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
        Guest::of(engine, Subject::everyone())
    }

    fn of(engine: &Handle, subject: Subject) -> Guest {
        let (engine, instance) = (engine.clone(), InstanceId::random());
        let (seed, reply) = (1, Reply::default());
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
        self.pass(vec![VirtualId(0)], len, 1)
    }

    /// So many tokens behind `len`.
    fn pass(&self, pages: Vec<VirtualId>, len: u32, rows: u32) -> Result<Reply<PassResult>, Gone> {
        self.pass_into(Reply::default(), pages, len, rows)
    }

    fn pass_into(
        &self,
        reply: Reply<PassResult>,
        pages: Vec<VirtualId>,
        len: u32,
        rows: u32,
    ) -> Result<Reply<PassResult>, Gone> {
        let sampler = Sampler::Multinomial { temperature: 0.0 };
        let pass = Pass {
            pages,
            len: len + rows,
            inputs: vec![PassInput::Token(TokenId(3)); rows as usize],
            positions: (len..len + rows).collect(),
            mask: Mask::Causal,
            outputs: vec![PassOutput::Token { row: rows - 1, sampler }],
        };
        let operation = Operation::Pass(pass, Reply::clone(&reply));
        smol::block_on(self.engine.submit(&self.credits, self.queue, operation))?;
        Ok(reply)
    }
}

struct World {
    engine: Handle,
    sizes: Arc<Mutex<Vec<usize>>>,
    held: Arc<AtomicBool>,
    faults: Receiver<String>,
    _notices: Receiver<Notice>,
}

fn start(settle: impl Settle + 'static, fails_at: usize, how: fn() -> Fault) -> World {
    start_deep(1, settle, fails_at, how)
}

fn start_deep(depth: usize, settle: impl Settle + 'static, fails_at: usize, how: fn() -> Fault) -> World {
    let sizes = Arc::<Mutex<Vec<usize>>>::default();
    let fake = Fake::new(info(), depth);
    let held = Arc::<AtomicBool>::default();
    let failing = Failing { fake, held: held.clone(), sizes: sizes.clone(), fails_at, how };
    let backend = move || Ok::<Box<dyn Backend>, ()>(Box::new(failing));
    let (notices, _notices) = smol::channel::bounded(8);
    let (tell, faults) = smol::channel::bounded(1);
    let engine = Engine::start(backend, Box::new(settle), Reuse::default(), notices, move |why| {
        let _ = tell.try_send(why);
    });
    World { engine: engine.expect("a thread"), sizes, held, faults, _notices }
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

/// The subjects of each batch, in their order.
#[derive(Clone, Default)]
struct Attended(Arc<Mutex<Vec<Vec<Subject>>>>);

impl Attended {
    fn batches(&self) -> Vec<Vec<Subject>> {
        self.0.lock().expect("no panic holds it").clone()
    }
}

impl Settle for Attended {
    fn attend(&self, whom: &mut dyn Iterator<Item = &Subject>) {
        let whom: Vec<Subject> = whom.cloned().collect();
        if !whom.is_empty() {
            self.0.lock().expect("no panic holds it").push(whom); // else it only moves pages
        }
    }
    fn deliver(&self) {}
    fn settle(&self, _since: Instant, _limit: Duration) {}
    fn lend(&self) -> bool {
        false
    }
    fn rest(&self) {}
}

#[test]
fn the_workers_hear_whom_each_batch_is_for() {
    let [one, two] = ["one", "two"].map(Subject::new);
    let attended = Attended::default();
    let world = start_deep(2, attended.clone(), usize::MAX, no_fault);
    let first = Guest::of(&world.engine, two.clone());
    world.held.store(true, Ordering::Relaxed);
    let mut replies = vec![first.decode(0).expect("the engine runs")];
    while world.sizes.lock().expect("no panic holds it").is_empty() {
        std::thread::yield_now();
    }
    let others = [&one, &two].map(|subject| Guest::of(&world.engine, subject.clone()));
    replies.extend(others.iter().map(|guest| guest.decode(0).expect("the engine runs")));
    for guest in &others {
        heard(guest);
    }
    world.held.store(false, Ordering::Relaxed);
    for reply in replies {
        assert!(smol::block_on(reply.wait()).is_ok());
    }
    let mut batches = attended.batches();
    batches.iter_mut().for_each(|batch| batch.sort_by_key(|subject| *subject == two));
    assert_eq!(batches, [vec![two.clone()], vec![one, two.clone()]]);

    // A chunk in the middle of a prompt answers nobody, and is somebody's all the same.
    let attended = Attended::default();
    let world = start_deep(2, attended.clone(), usize::MAX, no_fault);
    let guest = Guest::of(&world.engine, two.clone());
    let (kind, reply) = (Kind::Page, Reply::default());
    let command = Command::Allocate { instance: guest.queue.instance, kind, count: 6, reply };
    smol::block_on(world.engine.send(command)).expect("the engine runs");
    let prompt = guest.pass((0..7).map(VirtualId).collect(), 0, 28).expect("the engine runs");
    assert!(smol::block_on(prompt.wait()).is_ok());
    assert_eq!(attended.batches(), vec![vec![two]; 4]);
}

/// Runs three guests, the way workers do: each decodes again once its answer is there.
struct Workers(Arc<OnceLock<[Guest; 3]>>, Mutex<Vec<Reply<PassResult>>>);

impl Settle for Workers {
    fn attend(&self, _whom: &mut dyn Iterator<Item = &Subject>) {}
    fn deliver(&self) {}
    fn lend(&self) -> bool {
        false
    }
    fn rest(&self) {}
    fn settle(&self, _since: Instant, _limit: Duration) {
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

/// The engine has carried out all that was sent before for the guest's subject.
fn heard(guest: &Guest) -> Status {
    let (exports, status) = (Reply::default(), Reply::default());
    let (instance, kind, reply) = (guest.queue.instance, Kind::Page, Reply::clone(&exports));
    smol::block_on(async {
        guest.engine.send(Command::Exports { instance, kind, reply }).await?;
        exports.wait().await;
        guest.engine.send(Command::Status { reply: Reply::clone(&status) }).await?;
        Ok::<Status, Gone>(status.wait().await.clone())
    })
    .expect("the engine runs")
}

#[test]
fn guests_are_heard_while_a_batch_is_under_way_and_what_they_ask_joins_the_next() {
    let world = start_deep(2, (), usize::MAX, no_fault);
    let batches = || world.sizes.lock().expect("no panic holds it").clone();
    let first = Guest::join(&world.engine);
    world.held.store(true, Ordering::Relaxed);
    let mut replies = vec![first.decode(0).expect("the engine runs")];
    while batches().is_empty() {
        std::thread::yield_now();
    }
    // They get pages, and their passes wait: the first guest's next one is to join them.
    let others = [0; 2].map(|_| Guest::join(&world.engine));
    replies.extend(others.iter().map(|guest| guest.decode(0).expect("the engine runs")));
    assert_eq!((heard(&first).instances, heard(&first).pages.used), (3, 3));
    assert_eq!(batches(), [1]);
    world.held.store(false, Ordering::Relaxed);
    for reply in replies {
        assert_eq!(smol::block_on(reply.wait()).as_ref().map(Vec::len), Ok(1));
    }
    assert_eq!(batches(), [1, 2]);
}

/// What a guest dropped before its pass has run is made all the same: until then whoever counts its bytes counts them.
#[test]
fn what_a_reply_carries_is_there_until_its_pass_has_run_or_never_will() {
    for ends in [false, true] {
        let world = start_deep(2, (), usize::MAX, no_fault);
        let guest = Guest::join(&world.engine);
        world.held.store(true, Ordering::Relaxed);
        let first = guest.decode(0).expect("the engine runs");
        while world.sizes.lock().expect("no panic holds it").is_empty() {
            std::thread::yield_now();
        }
        let charge = Arc::new(());
        let counted = Arc::downgrade(&charge);
        drop(guest.pass_into(Reply::carrying(charge), vec![VirtualId(0)], 1, 1).expect("the engine runs"));
        heard(&guest);
        assert!(counted.upgrade().is_some(), "the guest has let go, the engine not");
        if ends {
            let instance = guest.queue.instance;
            let leave = Command::Leave { instance, how: crate::engine::operation::Leave::Killed };
            smol::block_on(world.engine.send(leave)).expect("the engine runs");
        }
        world.held.store(false, Ordering::Relaxed);
        let first = smol::block_on(first.wait()).is_ok();
        assert!(first || ends);
        while counted.upgrade().is_some() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_chunks_of_a_prompt_follow_each_other_without_a_pause() {
    let begin = |fails_at| {
        let world = start_deep(2, (), fails_at, || Fault("a planted fault".into()));
        let guest = Guest::join(&world.engine);
        let (kind, reply) = (Kind::Page, Reply::default());
        let command = Command::Allocate { instance: guest.queue.instance, kind, count: 6, reply };
        smol::block_on(world.engine.send(command)).expect("the engine runs");
        world.held.store(true, Ordering::Relaxed);
        // Four chunks: two are under way together, the third waits for room.
        let prompt = guest.pass((0..7).map(VirtualId).collect(), 0, 28).expect("the engine runs");
        (world, guest, prompt)
    };
    // If the second fails, the first is lost too.
    let (world, _guest, prompt) = begin(1);
    let told = "the device failed: a planted fault";
    assert_eq!(smol::block_on(prompt.wait()), &Err(Lost(told.into())));
    assert_eq!(world.faults.recv_blocking().as_deref(), Ok(told));

    let (world, guest, prompt) = begin(usize::MAX);
    let batches = || world.sizes.lock().expect("no panic holds it").len();
    while batches() < 2 {
        std::thread::yield_now();
    }
    // Whoever is ended then is ended at once; the pages come back when what is under way has ended.
    let instance = guest.queue.instance;
    let leave = Command::Leave { instance, how: crate::engine::operation::Leave::Killed };
    smol::block_on(world.engine.send(leave)).expect("the engine runs");
    let status = heard(&guest);
    assert_eq!((status.instances, status.pages.used), (0, 7));
    world.held.store(false, Ordering::Relaxed);
    assert!(smol::block_on(prompt.wait()).is_err());
    while heard(&guest).pages.used > 0 {
        std::thread::yield_now();
    }
    assert_eq!(batches(), 2, "of one who is gone nothing more is begun");
}

/// The story: 128 commands that named 65,536 pages each were carried out in one go of half a second, in which no batch began.
#[test]
fn a_heap_of_heavy_commands_is_carried_out_in_turns_and_in_order() {
    let backend = Fake::new(info(), 1);
    let (handle, channel) = Handle::to_nobody(info());
    let inbox = Inbox::new(channel);
    let (notices, _notices) = smol::channel::bounded(8);
    let state = State::new(&info(), &Reuse::default());
    let (untold, under_way, ended) = (VecDeque::new(), VecDeque::new(), Instant::now());
    let pace = Pace::new(info().batch_tokens, 1);
    let (backend, settle) = (Box::new(backend), Box::new(()));
    let mut engine = Engine { backend, settle, inbox, notices, untold, state, pace, under_way, ended };

    let (kind, pages) = (Kind::Page, PageQuotas::default());
    let join = |instance| Command::Join { instance, subject: Subject::everyone(), pages, seed: 1 };
    let send = |command| assert!(handle.try_send(command).is_ok());
    let [maker, importer] = [1, 2].map(InstanceId::from_bits);
    send(join(maker));
    send(Command::Allocate { instance: maker, kind, count: 1, reply: Reply::default() });
    let ids = vec![VirtualId(0); crate::limits::NAMES_PER_INSTANCE];
    send(Command::Export { instance: maker, kind, ids, name: "x".into(), reply: Reply::default() });
    while !engine.inbox.is_empty() {
        engine.collect();
    }
    // The same instance again and again: out of order it would not be there, or not have room.
    let imports = [(); 8].map(|()| Reply::default());
    for reply in &imports {
        send(join(importer));
        let (name, reply) = ("x".into(), Reply::clone(reply));
        send(Command::Import { instance: importer, kind, name, reply });
        send(Command::Leave { instance: importer, how: crate::engine::operation::Leave::Killed });
    }
    let (other, subject) = (InstanceId::from_bits(3), Subject::new("other"));
    send(Command::Join { instance: other, subject, pages, seed: 1 });
    let given = Reply::default();
    send(Command::Allocate { instance: other, kind, count: 1, reply: Reply::clone(&given) });
    let mut turns = 0;
    while !engine.inbox.is_empty() {
        engine.collect();
        turns += 1;
        assert!(turns < 2 || given.get().is_some_and(Result::is_ok), "another waits for all of them");
    }
    assert!(turns > 2, "all in one go");
    assert!(imports.iter().all(|reply| matches!(reply.get(), Some(Ok(ids)) if ids.len() == 1 << 16)));
    engine.state.check();
}
