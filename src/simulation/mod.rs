//! The box on one thread: connections, sessions, instances, engine and pages, through random histories by a clock that
//! only the simulation moves.
//!
//! Owns: one history, from its seed to its end, and what must hold at each step of it. Never: part of the binary.
//!
//! Real are the door's side of a connection (conversation, session, forwarders, writer), the channel of events, the
//! runtime with the order of a life, and the engine's state, pages and schedule. In place of the rest stand a carrier without
//! a socket ([`link`]), a backend that hashes, guests ([`guest`]) and clients ([`client`]) that follow a script, and a clock
//! that stands still while anybody has something to do ([`crate::clock::fake`]). What arrives is held against what was
//! sent ([`ledger`]), contents against the serial oracle of the engine's own simulation.
//!
//! `history(seed)` replays what a failure names, and `TARTLET_SEEDS=11..12 cargo test simulation::everything` a few of them,
//! or many more. The bugs of [`plant`] are each found.

mod client;
mod guest;
mod house;
mod ledger;
mod link;
pub mod plant;
mod tasks;
mod trace;

use crate::appliance::end_given_up;
use crate::auth::{Claims, Role, SecretKey, Verifier, mint};
use crate::backend::Info;
use crate::clock::{self, fake};
use crate::engine::operation::{Command, Notice, Operation};
use crate::engine::simulation::random::{PAGE, Random};
use crate::engine::simulation::rig::Rig;
use crate::engine::{self, Sent};
use crate::exchange::Exchange;
use crate::limits;
use crate::model::Model;
use crate::model::toy::Toy;
use crate::pacer::Pacer;
use crate::runtime::{Name, Quotas, Runtime, RuntimeParts, Workers};
use crate::server::{Door, connection};
use client::{Client, Temper, Token};
use house::Scripted;
use ledger::Ledger;
use link::Link;
use plant::Bug;
use smol::channel::{Receiver, Sender, TrySendError};
use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tasks::Tasks;
use trace::Trace;

/// What runs instead, to look into a failure or to look further: a range of seeds, "11..12".
const SEEDS: &str = "TARTLET_SEEDS";
/// Lines of a history that are printed when it fails.
const LAST_LINES: usize = 60;
/// Histories of one test run, by two threads.
const HISTORIES: u64 = 10_000;
/// A planted bug must show within so many.
const HISTORIES_PER_BUG: u64 = 1_000;
/// Histories that are run twice.
const REPLAYS: u64 = 300;
/// Steps of one history: a tenth of it is much.
const STEPS: u64 = 1_000_000;
/// How long an instance may live: as long as it needs, or less.
const WALL_CLOCKS: [u64; 2] = [600, 12];

/// One half of all histories. One that fails says its seed, and is told once more.
fn run(half: u64) {
    let range = std::env::var(SEEDS).ok();
    let range = range.as_deref().and_then(|range| range.split_once(".."));
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{SEEDS} is no range of seeds"));
    let seeds = range.map_or(0..HISTORIES, |(from, to)| number(from)..number(to));
    for seed in seeds.filter(|seed| seed % 2 == half) {
        if let Err(panic) = catch_unwind(|| history(seed, Trace::default())) {
            eprintln!("simulation::history({seed}) failed; {SEEDS}={seed}..{} runs it alone", seed + 1);
            let _ = catch_unwind(|| history(seed, Trace::with_lines()));
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn everything_said_arrives_once_and_in_order_first_half() {
    run(0);
}

#[test]
fn everything_said_arrives_once_and_in_order_second_half() {
    run(1);
}

#[test]
fn a_seed_has_one_history() {
    for seed in 0..REPLAYS {
        let [first, second] = [0; 2].map(|_| history(seed, Trace::default()));
        if first.digest != second.digest {
            let [first, second] =
                [0; 2].map(|_| history(seed, Trace::with_lines()).lines.unwrap_or_default());
            let at = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
            let from = at.saturating_sub(5);
            let (first, second) = (first.get(from..=at), second.get(from..=at));
            panic!("history({seed}) goes two ways from step {at}:\n{first:#?}\n{second:#?}");
        }
    }
}

/// A simulation in which nothing happens finds nothing wrong.
#[test]
fn all_that_may_happen_does() {
    let lines: Vec<String> =
        (0..REPLAYS).flat_map(|seed| history(seed, Trace::with_lines()).lines.unwrap_or_default()).collect();
    let counts = EVENTS.map(|event| (event, lines.iter().filter(|line| line.contains(event)).count()));
    println!("{} steps of {REPLAYS} histories: {counts:?}", lines.len());
    let missing: Vec<&str> =
        counts.into_iter().filter(|(_, count)| *count < 5).map(|(event, _)| event).collect();
    assert!(missing.is_empty(), "hardly ever: {missing:?}");
}

/// Parts of lines of a [`Trace`].
const EVENTS: [&str; 30] = [
    "event: 0",
    "event: 1",
    "Signal termination",
    "Runtime error: as scripted",
    "Runtime error: Call error",
    "the server failed while",
    "The server is stopping",
    "token expired",
    "OOM killer",
    "wall clock",
    "gets chunk 1",
    "gets chunk 2",
    "successful: true",
    "Blob sent to instance",
    "Not authenticated",
    "not owned",
    "ServerEvent",
    "gets the close frame",
    "does not read",
    "has left",
    "has broken the carrier",
    "Evict",
    "Misuse",
    "allocate",
    "pass",
    "export",
    "import",
    "release",
    "synchronize",
    "status",
];

#[test]
fn every_planted_bug_is_found() {
    let bugs = plant::BOX.into_iter().chain(plant::ENGINE_FROM_ABOVE);
    let found: Vec<(Bug, Option<u64>)> = bugs.map(|bug| (bug, found(bug))).collect();
    println!("{found:?}");
    let missed: Vec<Bug> = found.into_iter().filter(|(_, seed)| seed.is_none()).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// The seed that shows it.
fn found(bug: Bug) -> Option<u64> {
    (0..HISTORIES_PER_BUG).find(|&seed| {
        let found = catch_unwind(|| {
            plant::plant(Some(bug));
            history(seed, Trace::default());
        });
        plant::plant(None);
        found.is_err()
    })
}

fn history(seed: u64, trace: Trace) -> Trace {
    let _clock = fake::set();
    World::new(seed, trace).run()
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(lines) = &lock(&self.ledger).trace.lines
        {
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            last.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A command's name, for the trace.
fn name(command: &Command) -> &'static str {
    match command {
        Command::Join { .. } => "join",
        Command::Leave { .. } => "leave",
        Command::Allocate { .. } => "allocate",
        Command::Deallocate { .. } => "deallocate",
        Command::Export { .. } => "export",
        Command::Import { .. } => "import",
        Command::Release { .. } => "release",
        Command::Exports { .. } => "exports",
        Command::Submit { operation: Operation::Pass(..), .. } => "pass",
        Command::Submit { operation: Operation::Synchronize(_), .. } => "synchronize",
        Command::Close { .. } => "close",
        Command::SetPriority { .. } => "set priority",
        Command::Status { .. } => "status",
    }
}

/// What is between any two statements of ours is whole, whatever has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct World {
    random: Random,
    tasks: Tasks,
    ledger: Arc<Mutex<Ledger>>,
    runtime: Runtime,
    door: Arc<Door<Scripted>>,
    rig: Rig,
    inbox: Receiver<Sent>,
    /// Commands may have come, or work is left.
    engine_has_work: bool,
    notices: Sender<Notice>,
    untold: VecDeque<Notice>,
    /// Closed when the server stops; dropped, it is closed too.
    _stop: Sender<Infallible>,
}

/// What all histories share: nothing in it changes.
struct Fixed {
    workers: Workers,
    verifier: Verifier,
    tokens: [Arc<Token>; 3],
    model: Arc<Model>,
    exchange: Arc<Exchange>,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| {
        let key = SecretKey::generate().expect("random numbers");
        let tokens = [("a", None), ("b", None), ("a", Some(Duration::from_secs(8)))];
        let tokens = tokens.map(|(subject, good_for)| {
            let ttl = good_for.unwrap_or(Duration::from_secs(24 * 3600));
            let claims = Claims { iat: None, ..Claims::at(fake::epoch(), subject, Role::User, ttl) };
            let text = mint(&key, &claims).expect("a good token").expose().to_owned();
            Arc::new(Token { text, subject, good_for })
        });
        Fixed {
            workers: Workers::start(1).expect("a thread"), // which never has anything to do
            verifier: Verifier::new(vec![key.public()], HashSet::new()),
            tokens,
            model: Toy::default().model(),
            exchange: Arc::default(),
        }
    })
}

impl World {
    fn new(seed: u64, trace: Trace) -> World {
        let mut random = Random(seed << 32);
        let info = Info {
            device: "fake".into(),
            page_size: PAGE,
            pages: random.below(14) + 6,
            embeds: random.below(5) + 2,
            batch_tokens: 16,
            vocab: 100,
            hidden: 1,
        };
        let (engine, inbox) = engine::Handle::to_nobody(info.clone());
        let fixed = fixed();
        let wall_clock = WALL_CLOCKS[usize::from(random.one_in(3))];
        let quotas = Quotas::default().with(Name::WallClock, wall_clock);
        let runtime = Runtime::new(RuntimeParts {
            engine: engine.clone(),
            model: fixed.model.clone(),
            workers: fixed.workers.clone(),
            exchange: fixed.exchange.clone(),
            quotas,
            outgoing: crate::outgoing::outgoing(Default::default()).0,
            seed: Some(seed),
        });
        let tasks = Tasks::default();
        let ledger = Arc::new(Mutex::new(Ledger::new(trace, quotas, runtime.directory().clone())));
        let house = Scripted {
            seed,
            runtime: runtime.clone(),
            engine,
            spawner: tasks.spawner(),
            ledger: ledger.clone(),
            launched: Mutex::new(0),
        };
        let guarded = random.one_in(2);
        let door = Door::new(house, guarded.then(|| fixed.verifier.clone()), Default::default());
        let (notices, given_up) = smol::channel::bounded(1 + random.below(3) as usize);
        tasks.spawner().spawn("notices".to_owned(), end_given_up(runtime.clone(), given_up));
        let (stop, closing) = smol::channel::bounded(1);
        let mut world = World {
            random,
            tasks,
            ledger,
            runtime,
            door: Arc::new(door),
            rig: Rig::new(info, 1),
            inbox,
            engine_has_work: false,
            notices,
            untold: VecDeque::new(),
            _stop: stop.clone(),
        };
        for _ in 0..1 + world.random.below(4) {
            world.connect(&closing);
        }
        if world.random.one_in(5) {
            world.stop_some_time(stop);
        }
        world
    }

    fn connect(&mut self, closing: &Receiver<Infallible>) {
        let random = &mut self.random;
        let link = Link::new(random);
        let temper = Temper::choose(random);
        let token = self.door.verifier.as_ref().map(|_| fixed().tokens[random.below(3) as usize].clone());
        let stranger = token.is_some() && random.one_in(12);
        let good_for = token.as_ref().and_then(|token| token.good_for);
        let until = if stranger { Some(limits::AUTHENTICATE_WITHIN) } else { good_for };
        until.into_iter().for_each(|until| link.may_last_until(until));
        let pongs = !random.one_in(4);
        let number = lock(&self.ledger).connects(link.clone(), temper == Temper::Prompt && pongs);
        let client = Client {
            number,
            temper,
            link: link.clone(),
            ledger: self.ledger.clone(),
            random: random.split(),
            corr_id: 0,
            token,
            stranger,
            pongs,
            read: Arc::default(),
        };
        client.start(&self.tasks.spawner(), random.split());
        let (door, ledger, closing) = (self.door.clone(), self.ledger.clone(), closing.clone());
        self.tasks.spawner().spawn(format!("connection {number}"), async move {
            let (seat, _) = door.seats.enter().unwrap_or_else(|full| panic!("{full}"));
            connection::serve(link.carrier(), &door, seat, closing, Pacer::default()).await;
            lock(&ledger).connection_is_over(number);
        });
    }

    fn stop_some_time(&mut self, stop: Sender<Infallible>) {
        let when = Duration::from_millis(u64::from(self.random.below(3_000)));
        let ledger = self.ledger.clone();
        self.tasks.spawner().spawn("stop".to_owned(), async move {
            clock::after(when).await;
            lock(&ledger).stop();
            stop.close();
        });
    }

    fn run(mut self) -> Trace {
        for _ in 0..STEPS {
            let ready = self.tasks.any_ready();
            self.engine_has_work |= !self.inbox.is_empty() || !self.untold.is_empty();
            if ready && !(self.engine_has_work && self.random.one_in(3)) {
                self.tick();
            } else if self.engine_has_work {
                self.turn();
            } else if self.tasks.names() == ["notices"] {
                return self.end();
            } else {
                lock(&self.ledger).check();
                assert!(fake::skip(), "stuck: {:?}", self.tasks.names());
                let now = fake::passed();
                lock(&self.ledger).trace.note(|| format!("{now:?}"));
            }
        }
        panic!("no end: {:?}", self.tasks.names());
    }

    fn tick(&mut self) {
        let task = self.tasks.tick(&mut self.random);
        let mut ledger = lock(&self.ledger);
        ledger.trace.step(task.unwrap_or(0), || format!("run {}", self.tasks.name(task.unwrap_or(0))));
        if let Some(fault) = ledger.fault.take() {
            drop(ledger);
            panic!("{fault}");
        }
    }

    /// What the engine's thread does in a turn: collect, choose, run, deliver.
    fn turn(&mut self) {
        for _ in 0..self.inbox.len() {
            let Ok(Sent { command, .. }) = self.inbox.try_recv() else { break };
            lock(&self.ledger).trace.note(|| name(&command).to_owned());
            let notices = self.rig.send(command);
            self.given_up(notices);
        }
        // Who has been told of an end was told after the engine.
        let gone = std::mem::take(&mut lock(&self.ledger).gone);
        let still = gone.into_iter().find(|id| self.rig.knows(*id) && !self.rig.waits(*id));
        assert!(still.is_none(), "{still:?} has had its last event and is in the engine");
        while let Some(notice) = self.untold.pop_front() {
            if let Err(TrySendError::Full(notice)) = self.notices.try_send(notice) {
                self.untold.push_front(notice);
                break;
            }
        }
        let ran = self.rig.turn(&mut self.random);
        self.engine_has_work = ran.is_some();
        match ran {
            Some(notices) => self.given_up(notices),
            None => assert!(self.rig.is_idle(), "queued work cannot run"),
        }
        self.rig.check();
        lock(&self.ledger).trace.step(u64::from(self.engine_has_work), || "the engine's turn".to_owned());
    }

    fn given_up(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            let mut ledger = lock(&self.ledger);
            ledger.given_up(&notice);
            ledger.trace.note(|| format!("{notice:?}"));
            self.untold.push_back(notice);
        }
    }

    /// Everybody has gone: what is left?
    fn end(mut self) -> Trace {
        let mut ledger = lock(&self.ledger);
        ledger.check_the_end();
        assert!(self.runtime.directory().all().is_empty(), "somebody is listed");
        assert_eq!(self.door.uploads.held(), 0, "uploads are held");
        self.rig.check_the_end(&["", "a", "b"]);
        std::mem::take(&mut ledger.trace)
    }
}
