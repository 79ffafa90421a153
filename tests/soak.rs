//! Thousands of launches of mixed programs leave nothing behind: no page, no handle, no file, no thread, no memory.
//!
//! Owns: which lives programs lead here, and what a server at rest must look like. Never: what a program is for.
//!
//! `TARTLET_SOAK` says how many launches (300); `make soak` runs 10,000. They come in rounds of several connections at
//! once. After each round everybody has gone, and the server is looked at once it is at rest.

#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which only the random numbers are used
mod gguf;
mod support;

use gguf::Random;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::client::{Client, Event};
use support::frame::Outgoing;
use support::{PATIENCE, Server, guest_bytes};

/// Launches in the suite.
const LAUNCHES: usize = 300;
/// Rounds that they come in, and connections at once in each.
const ROUNDS: usize = 20;
const CONNECTIONS: usize = 4;
/// Rounds before memory is compared: a quarter. Before them every life is led once, since code is translated as it is
/// first run, and every program is uploaded that ever will be, since the store keeps each.
const WARM_UP: usize = ROUNDS / 4;
/// What memory is at a time is the middle one of so many looks: heaps are never twice alike.
const LOOKS: usize = 5;
/// Programs of our own making that the server has not seen: the bytes of others and a section that says nothing.
const VARIANTS: usize = 6;
/// As many pages as are soon used up: 256 of 16 tokens.
const CONFIG: &str = "[engine]\nkv_tokens = 4096\nseed = 1\n";

const GUESTS: [&str; 11] =
    ["beam", "chat", "completion", "echo", "fork", "ledger", "prefix", "rogue", "sink", "swarm", "token"];

/// What comes of a life that nobody else's want of pages cuts short.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It completes.
    Completes,
    /// It ends by a fault of its own.
    Fails,
    /// By a quota.
    Quota,
    /// It takes all pages and asks for more.
    TakesAllPages,
    /// It hears these words, says them, and completes.
    Echoes,
    /// It completes once those beside it have; when one of these is cut short, it waits in vain and is terminated.
    Leads,
    /// It would not end, and is terminated.
    Terminated,
}
use Fate::*;

struct Life {
    program: String,
    arguments: Vec<String>,
    fate: Fate,
}

fn life(fate: Fate, program: &str, arguments: &[&str]) -> Life {
    let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
    Life { program: program.to_owned(), arguments, fate }
}

/// How many kinds of lives there are, some of them several times: that often they come.
const KINDS: usize = 40;

/// Lives that are led at the same time. `who` is a name that no other connection uses.
fn lives(kind: usize, random: &mut Random, who: &str) -> Vec<Life> {
    let prompt = ["the", "the in the in", "Once upon a time there was a pie."][random.below(3)];
    let one = |fate, program, arguments: &[&str]| vec![life(fate, program, arguments)];
    match kind {
        0..=2 => one(Completes, "chat", &["--max-tokens", "6", "--user", prompt]),
        3..=5 => one(Completes, "completion", &["--max-tokens", "8", "--temperature", "0.8", prompt]),
        6..=8 => one(Completes, "token", &[prompt]),
        9 => one(Completes, "fork", &["--branches", "3", "--tokens", "4", prompt]),
        10 => one(Completes, "beam", &["--width", "3", "--max-tokens", "4", prompt]),
        11 => one(Completes, "sink", &["--window", "16", "--max-tokens", "40", prompt]),
        12 => one(Completes, "ledger", &["write", who, "0", "6"]),
        13 => one(Completes, "ledger", &["read", who]),
        14..=16 => one(Completes, "echo", &["--return", "all", "--blob", "5000", "one", "two"]),
        17..=19 => one(Echoes, "echo", &["--messages", "2"]),
        20 => one(Fails, "echo", &["--fail", "as asked"]),
        21..=22 => one(Terminated, "echo", &["--messages", "forever"]),
        23 => one(Terminated, "sink", &["--max-tokens", "1000000", prompt]),
        24 => one(Terminated, "rogue", &["spin"]),
        25 => one(Terminated, "rogue", &["sleep-long"]),
        26 => one(Terminated, "rogue", &["receive-forever"]),
        27 => one(TakesAllPages, "rogue", &["page-hoard"]),
        28 => one(Completes, "rogue", &["execute-flood"]),
        29 if random.below(4) == 0 => one(Quota, "rogue", &[HOARDS[random.below(HOARDS.len())]]),
        29 => one(Fails, "rogue", &["recurse"]),
        30..=33 => one(Fails, "rogue", &[FAULTS[random.below(FAULTS.len())]]),
        34..=35 => one(Completes, &format!("variant {}", random.below(VARIANTS)), &[]),
        36..=37 => {
            let topic = format!("{who} {}", random.next());
            let worker = ["--role", "worker", "--topic", &topic, "--max-tokens", "4"];
            let leader = ["--role", "leader", "--topic", &topic, "--workers", "2", prompt];
            vec![
                life(Completes, "swarm", &worker),
                life(Leads, "swarm", &leader),
                life(Completes, "swarm", &worker),
            ]
        }
        _ => one(Completes, "prefix", &["--export", &format!("{who} {}", random.next()), prompt]),
    }
}

/// Modes of `rogue` that take memory by the hundred MB, or handles by the ten thousand.
const HOARDS: [&str; 5] = ["allocate", "blob-hoard", "handle-hoard", "pass-hoard", "grow"];

/// Modes of `rogue` that end it at once.
const FAULTS: [&str; 16] = [
    "panic",
    "unreachable",
    "load",
    "call-null",
    "exit",
    "fail",
    "pointer-list",
    "length-list-wraps",
    "handle-dropped",
    "page-unknown",
    "page-freed-twice",
    "mask-row-long",
    "token-unknown",
    "temperature-nan",
    "send-giant",
    "return-giant",
];

#[derive(Debug, Default)]
struct Tally {
    launches: usize,
    /// Ends by what they were.
    ends: BTreeMap<u32, usize>,
    out_of_pages: usize,
    left_running: usize,
    refused: usize,
    connections: usize,
}

struct Soak {
    server: Server,
    /// Hash by program.
    programs: BTreeMap<String, String>,
    /// Under which pages were exported that perhaps nobody gave back.
    names: RefCell<Vec<String>>,
    tally: RefCell<Tally>,
}

impl Soak {
    /// One connection of a round.
    async fn connection(&self, number: usize, launches: usize, mut random: Random) {
        let (random, who) = (&mut random, format!("connection {number}"));
        let mut client = self.connect().await;
        let mut launched = 0;
        while launched < launches {
            let stays = random.below(25) > 0;
            let lives = lives(random.below(KINDS), random, &who);
            launched += self.together(&mut client, lives, stays, random).await;
            if !stays {
                client = self.connect().await; // The other one goes without a word.
            }
            if random.below(10) == 0 {
                self.be_refused(&mut client, random).await;
            }
        }
    }

    /// One that leads every life once, and takes its turns at the hoards.
    async fn warm_connection(&self, number: usize) {
        let (random, who) = (&mut Random::new(number as u64), format!("warm {number}"));
        let mut client = self.connect().await;
        let hoards = (0..HOARDS.len()).map(|i| HOARDS[(i + number) % HOARDS.len()]);
        for life in hoards.map(|mode| life(Quota, "rogue", &[mode])) {
            self.together(&mut client, vec![life], true, random).await;
        }
        for life in FAULTS.map(|mode| life(Fails, "rogue", &[mode])) {
            self.together(&mut client, vec![life], true, random).await;
        }
        for kind in 0..KINDS {
            let lives = lives(kind, random, &who);
            self.together(&mut client, lives, true, random).await;
        }
    }

    /// Launches them and, if the client stays, waits for their ends; how many launches that were.
    async fn together(
        &self,
        client: &mut Client,
        lives: Vec<Life>,
        stays: bool,
        random: &mut Random,
    ) -> usize {
        let mut running = Vec::new();
        for life in lives {
            if life.arguments.first().is_some_and(|word| word == "--export") {
                self.names.borrow_mut().push(life.arguments[1].clone());
            }
            running.push((self.launch(client, &life).await, life));
        }
        if !stays {
            self.tally.borrow_mut().left_running += running.len();
            return running.len();
        }
        running.sort_by_key(|(_, life)| life.fate == Leads);
        let mut short = false;
        for (instance, life) in &running {
            short |= self.live(client, instance, life, short, random).await;
        }
        match &running[0].1.arguments[..] {
            [word, name, ..] if word == "--export" => {
                self.go_on_with_prefix(client, name, random).await;
                3
            }
            _ => running.len(),
        }
    }

    async fn connect(&self) -> Client {
        self.tally.borrow_mut().connections += 1;
        Client::connect(&self.server).await
    }

    async fn launch(&self, client: &mut Client, life: &Life) -> String {
        self.tally.borrow_mut().launches += 1;
        let arguments: Vec<&str> = life.arguments.iter().map(String::as_str).collect();
        client.launch_hash(&self.programs[&life.program], &arguments).await
    }

    /// To its end; true if it was cut short by others' want of pages.
    async fn live(
        &self,
        client: &mut Client,
        instance: &str,
        life: &Life,
        in_vain: bool,
        random: &mut Random,
    ) -> bool {
        match life.fate {
            Leads if in_vain => client.terminate(instance).await,
            Terminated => {
                smol::Timer::after(Duration::from_millis(random.below(4) as u64)).await;
                client.terminate(instance).await;
            }
            Echoes => {
                for word in ["over", "and out"] {
                    client.signal(instance, word).await;
                    assert_eq!(client.event(instance).await, Event::Message(word.to_owned()));
                }
            }
            _ => {}
        }
        let ended = client.end(instance).await;
        // Whoever takes all pages takes them from those that are younger, and leaves others none.
        let wanting = ended.text.contains("OOM");
        let as_it_should = match life.fate {
            Completes | Echoes => ended.event == 1,
            Leads => ended.event == if in_vain { 2 } else { 1 },
            Fails => ended.event == 3,
            Quota => matches!(ended.event, 1 | 5),
            TakesAllPages => wanting,
            Terminated => ended.event == 2,
        };
        assert!(as_it_should || wanting, "{} {:?}: {ended:?}", life.program, life.arguments);
        let mut tally = self.tally.borrow_mut();
        *tally.ends.entry(ended.event).or_default() += 1;
        tally.out_of_pages += usize::from(wanting);
        wanting
    }

    /// What one life exported, the next imports, and the last gives back.
    async fn go_on_with_prefix(&self, client: &mut Client, who: &str, random: &mut Random) {
        let import = life(Completes, "prefix", &["--import", who, " in the"]);
        let instance = self.launch(client, &import).await;
        if random.below(4) == 0 {
            client.terminate(&instance).await;
        }
        client.end(&instance).await;
        self.release(client, who).await;
    }

    /// There may be nothing to give back: who was to export it had no pages, or was cut off.
    async fn release(&self, client: &mut Client, who: &str) {
        let release = life(Completes, "prefix", &["--release", who]);
        let instance = self.launch(client, &release).await;
        let ended = client.end(&instance).await;
        assert!(matches!(ended.event, 1 | 3), "{ended:?}");
    }

    /// Uploads and launches that come to nothing.
    async fn be_refused(&self, client: &mut Client, random: &mut Random) {
        let echo = guest_bytes("echo");
        let refused = match random.below(4) {
            0 => client.upload(&echo[..echo.len() / 2]).await,
            1 => client.upload(&random.next().to_le_bytes().repeat(30_000)).await,
            2 => {
                let nothing = Outgoing::new("launch_instance").with("program_hash", "4711");
                client.ask(nothing.with("arguments", &["one"][..])).await
            }
            _ => {
                assert_eq!(client.upload(&echo).await.as_ref(), Ok(&self.programs["echo"]), "it is known");
                return;
            }
        };
        assert!(refused.is_err(), "{refused:?}");
        self.tally.borrow_mut().refused += 1;
    }

    /// Several connections at once, until all of them have gone.
    async fn at_once<F: Future<Output = ()>>(&self, connection: impl Fn(usize) -> F) {
        let executor = smol::LocalExecutor::new();
        let tasks: Vec<_> = (0..CONNECTIONS).map(|number| executor.spawn(connection(number))).collect();
        let all = async {
            for task in tasks {
                task.await;
            }
        };
        executor.run(all).await;
    }

    /// Waits until nobody lives and nothing is held for the dead, then until files and threads are as they were.
    async fn rest(&self, idle: Option<&Rest>) -> Rest {
        let since = Instant::now();
        loop {
            let [instances, pages, exports, embeds, exported_embeds] = self.used().await;
            if [instances, pages, exports, embeds, exported_embeds] == [0; 5] {
                break;
            }
            if instances == 0 && exports > 0 {
                let names = self.names.borrow().clone();
                let mut client = Client::connect(&self.server).await;
                for name in names {
                    self.release(&mut client, &name).await;
                }
            }
            assert!(since.elapsed() < PATIENCE, "{instances} instances, {pages} pages, {exports} exports");
            smol::Timer::after(Duration::from_millis(20)).await;
        }
        self.names.borrow_mut().clear();
        // What was freed goes back to the system a second after the last end, and our own question may still be open.
        smol::Timer::after(Duration::from_millis(1500)).await;
        loop {
            let rest = Rest::of(&self.server);
            let Some(idle) = idle else { return rest };
            if (idle.files, &idle.threads) == (rest.files, &rest.threads) {
                return rest;
            }
            assert!(since.elapsed() < PATIENCE, "{rest:?}, and when it was idle {idle:?}");
            smol::Timer::after(Duration::from_millis(50)).await;
        }
    }

    /// What `model_status` says is in use: instances, pages, exported pages, embeddings, exported embeddings.
    async fn used(&self) -> [usize; 5] {
        let mut client = Client::connect(&self.server).await;
        let status = client.query("model_status", "").await.expect("a status");
        let status: BTreeMap<String, String> = serde_json::from_str(&status).expect("JSON");
        let counts = [".active_count", ".0.used", ".0.exported_count", ".1.used", ".1.exported_count"];
        counts.map(|count| {
            let (_, value) = status.iter().find(|(name, _)| name.ends_with(count)).expect("the count");
            value.parse().expect("a number")
        })
    }
}

/// A server at rest.
#[derive(Clone, Debug)]
struct Rest {
    /// KiB that it took itself: what lies in files (the program, the model) is the kernel's to keep or to drop.
    own: usize,
    /// KiB with those.
    resident: usize,
    files: usize,
    /// Its threads by name, without the next.
    threads: Vec<String>,
    /// Threads of the pool for heavy work on programs and blobs. They stay once made, as many as had work at once.
    pool: usize,
    /// Files of its state, and their bytes.
    kept: usize,
    kept_bytes: u64,
}

/// What is compared.
type Figure = fn(&Rest) -> usize;

impl Rest {
    fn of(server: &Server) -> Rest {
        let (mut kept, mut kept_bytes) = (0, 0);
        let mut folders = vec![server.folder.path("state")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
                let found = entry.metadata().expect("it is there");
                if found.is_dir() {
                    folders.push(entry.path());
                } else {
                    kept += 1;
                    kept_bytes += found.len();
                }
            }
        }
        let (pool, threads): (Vec<_>, _) =
            server.threads().into_iter().partition(|name| name.starts_with("blocking"));
        Rest {
            own: own(server),
            resident: server.memory_kib("VmRSS"),
            files: server.open_files(),
            threads,
            pool: pool.len(),
            kept,
            kept_bytes,
        }
    }
}

/// The same program under another hash: with a custom section at its end.
fn variant(program: &[u8], number: usize) -> Vec<u8> {
    let mut variant = program.to_vec();
    variant.extend([0, 2, 1, b'0' + number as u8]); // a custom section of two bytes: a name of one
    variant
}

#[test]
fn nothing_is_left_of_many_launches() {
    let launches = std::env::var("TARTLET_SOAK").map_or(LAUNCHES, |count| count.parse().expect("a number"));
    let mut soak = Soak {
        server: Server::small_with(CONFIG),
        programs: BTreeMap::new(),
        names: RefCell::default(),
        tally: RefCell::default(),
    };
    smol::block_on(async {
        // Threads of the start may still be about to end.
        smol::Timer::after(Duration::from_secs(2)).await;
        let idle = soak.rest(None).await;
        println!("idle: {idle:?}");
        let mut client = Client::connect(&soak.server).await;
        for guest in GUESTS {
            let hash = client.upload(&guest_bytes(guest)).await.expect("it is a program");
            soak.programs.insert(guest.to_owned(), hash);
        }
        for number in 0..VARIANTS {
            let program = variant(&guest_bytes(["token", "echo"][number % 2]), number);
            let hash = client.upload(&program).await.expect("it is a program");
            soak.programs.insert(format!("variant {number}"), hash);
        }
        drop(client);

        let since = Instant::now();
        soak.at_once(|number| soak.warm_connection(number)).await;
        let warm = soak.rest(Some(&idle)).await;
        let mut looks = Vec::new();
        for round in 0..ROUNDS {
            let seed = |number| Random::new((round * CONNECTIONS + number) as u64);
            let each = launches / ROUNDS / CONNECTIONS;
            assert!(each > 0, "TARTLET_SOAK is at least {}", ROUNDS * CONNECTIONS);
            soak.at_once(|number| soak.connection(number, each, seed(number))).await;
            let rest = soak.rest(Some(&idle)).await;
            let launched = soak.tally.borrow().launches;
            println!(
                "{launched} launches after {:.0?}: {} KiB, with files {} KiB",
                since.elapsed(),
                rest.own,
                rest.resident
            );
            assert!(rest.pool <= 2 * CONNECTIONS, "{rest:?}");
            assert_eq!(rest.kept, warm.kept, "files of the state");
            assert!(rest.kept_bytes <= 2 * warm.kept_bytes, "{warm:?} once warm, now {rest:?}");
            looks.push(rest);
        }
        println!("{:?} in {:.0?}", soak.tally.borrow(), since.elapsed());
        let middle = |looks: &[Rest], of: Figure| {
            let mut figures: Vec<usize> = looks.iter().map(of).collect();
            figures.sort();
            figures[looks.len() / 2]
        };
        let (before, after) = (&looks[WARM_UP - LOOKS..WARM_UP], &looks[ROUNDS - LOOKS..]);
        let figures: [(&str, Figure); 2] = [("own", |rest| rest.own), ("resident", |rest| rest.resident)];
        for (name, of) in figures {
            let (before, after) = (middle(before, of), middle(after, of));
            println!("{name} memory: {before} KiB once warm, {after} KiB at the end");
            assert!(
                100 * after <= 105 * before,
                "{name} memory: {before} KiB once warm, {after} KiB at the end"
            );
        }
    });
    soak.server.assert_alive();
}

/// What an instance takes beside the pages of its context, which this model hardly has: its own memory, and what the host
/// keeps for it.
const LIVE: usize = 200;
const LIVE_KIB: usize = 320 * 1000;

/// KiB that the server has written and no file holds.
fn own(server: &Server) -> usize {
    server.memory_kib("RssAnon") + server.memory_kib("RssShmem")
}

#[test]
fn two_hundred_live_chats_fit() {
    let mut server = Server::small();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let mut live = Vec::new();
        let chat = ["--max-tokens", "1000000", "--user", "the"];
        let first = client.launch("chat", &chat).await;
        client.event(&first).await;
        let hash = blake3::hash(&guest_bytes("chat")).to_hex().to_string();
        let before = own(&server);
        let mut second = Client::connect(&server).await;
        for number in 0..LIVE {
            let client = if number % 2 == 0 { &mut client } else { &mut second };
            live.push(client.launch_hash(&hash, &chat).await);
        }
        for (number, instance) in live.iter().enumerate() {
            let client = if number % 2 == 0 { &mut client } else { &mut second };
            assert!(matches!(client.event(instance).await, Event::Message(_)), "it lives and says something");
        }
        let taken = own(&server).saturating_sub(before);
        println!("{LIVE} live chats take {taken} KiB, {} KiB each", taken / LIVE);
        assert!(taken <= LIVE_KIB, "{LIVE} live chats take {taken} KiB");
    });
    server.assert_alive();
}

/// What the host keeps for an instance beside its linear memory, at most.
const BESIDE_KIB: usize = 256;
/// The linear memory of a program of Rust is at least its stack, and the interpreter writes zeros to all of it.
const STACK_KIB: usize = 1024;

#[test]
fn an_instance_takes_little_beside_its_memory() {
    let mut server = Server::small();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let first = client.launch("echo", &["--messages", "forever"]).await;
        let hash = blake3::hash(&guest_bytes("echo")).to_hex().to_string();
        let before = own(&server);
        let mut live = Vec::new();
        for _ in 0..LIVE {
            live.push(client.launch_hash(&hash, &["--messages", "forever"]).await);
        }
        for instance in live.iter().chain([&first]) {
            client.signal(instance, "are you there?").await;
            assert!(matches!(client.event(instance).await, Event::Message(_)));
        }
        let taken = own(&server).saturating_sub(before);
        println!("{LIVE} live echos take {taken} KiB, {} KiB each", taken / LIVE);
        assert!(taken <= LIVE * (STACK_KIB + BESIDE_KIB), "{} KiB each", taken / LIVE);
    });
    server.assert_alive();
}
