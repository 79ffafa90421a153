//! Two honest apps beside a third that tries everything it can name. They lose nothing: every event comes, in order, with
//! the tokens of an undisturbed run; what they exported and stored is there; and when the third has gone, so have its
//! pages.
//!
//! Owns: what the third tries. Never: what becomes of it, which `hostile.rs` and `isolation.rs` look at one by one.
//!
//! `TARTLET_SIEGE` says for how many seconds (60), and that the real model is to answer: `make hostile` takes five minutes.
//! `TARTLET_SIEGE_KIND` names one of [`KINDS`], and nothing else is tried: how much of the honest ones' speed it takes.
//! How fast the honest ones are is printed, not asserted. The attackers are threads of this process; they run at the lowest
//! priority, as what they compute for themselves takes no more time from the server's cores than the system gives such a
//! process, which is not the server's to say. What both took is printed beside it.

#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which only the random numbers are used
mod gguf;
mod support;

use async_tungstenite::tungstenite::Message;
use gguf::Random;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::client::{CHUNK, Client, Ended};
use support::frame::Outgoing;
use support::{PATIENCE, Server, free_port, guest_bytes, mint};

/// Seconds of the siege in the suite.
const SECONDS: u64 = 60;
/// It comes in so many turns, with peace before and after each: the machine is another one every few seconds.
const TURNS: usize = 5;
/// Peace takes one part in so many of a turn.
const PEACE: f64 = 3.0;
/// Connections that attack at a time, each of which may open a few more.
const ATTACKERS: u64 = 6;
/// Of their threads: the system's number of the least urgent.
const LOWEST: i32 = 19;
const PREFIX: &str = "Once upon a time there was a pie that nobody could eat.";

/// What an honest app does in one round, and everything that it hears.
type Round = Vec<Ended>;

/// An app that does the same again and again.
struct Honest {
    name: &'static str,
    client: Client,
    programs: BTreeMap<&'static str, String>,
    /// The instance that runs now: for those who want to end other people's.
    target: Arc<Mutex<String>>,
}

impl Honest {
    async fn new(server: &Server, name: &'static str, target: Arc<Mutex<String>>) -> Honest {
        let token = mint(&server.key(), name, &[]);
        let mut client = Client::connect_to(&server.url, Some(&token)).await;
        let mut programs = BTreeMap::new();
        for program in ["chat", "echo", "ledger", "prefix"] {
            programs.insert(program, client.upload(&guest_bytes(program)).await.expect("a good program"));
        }
        Honest { name, client, programs, target }
    }

    async fn run(&mut self, program: &str, arguments: &[&str]) -> Ended {
        let instance = self.client.launch_hash(&self.programs[program], arguments).await;
        *self.target.lock().expect("unpoisoned") = instance.clone();
        if program == "echo" {
            // What is said while it runs comes back, each word once and in order.
            for word in 0..20 {
                self.client.signal(&instance, &word.to_string()).await;
            }
        }
        let ended = self.client.end(&instance).await;
        assert_eq!(ended.event, 1, "{}: {program} {arguments:?}: {ended:?}", self.name);
        ended
    }

    /// What it keeps from round to round.
    async fn settle(&mut self) {
        self.run("prefix", &["--export", self.name, PREFIX]).await;
        self.run("ledger", &["write", self.name, "0", "6"]).await;
    }

    async fn round(&mut self) -> Round {
        let chat = ["--max-tokens", "24", "--temperature", "0.8", "--user", "Tell me of the sea."];
        vec![
            self.run("chat", &chat).await,
            self.run("prefix", &["--import", self.name, " Then"]).await,
            self.run("echo", &["--messages", "20"]).await,
            self.run("ledger", &["read", self.name]).await,
        ]
    }

    /// Rounds until `stop`, each equal to the `first`; the seconds of each.
    fn go_on(mut self, first: Round, stop: Arc<AtomicBool>) -> JoinHandle<(Honest, Vec<f64>)> {
        std::thread::spawn(move || {
            let mut rounds = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                let round = smol::block_on(self.round());
                assert_eq!(round, first, "round {} of {}", rounds.len(), self.name);
                rounds.push(since.elapsed().as_secs_f64());
            }
            (self, rounds)
        })
    }
}

const KINDS: [&str; 18] = [
    "noise",
    "oversized",
    "unfinished",
    "hundred",
    "unread",
    "stores",
    "exports",
    "races",
    "decodes",
    "handshakes",
    "forged",
    "blobs",
    "strangers",
    "doors",
    "asks",
    "calls",
    "compiles",
    "loops",
];

/// What some of these are nothing without.
const REACHED: [&str; 3] = ["a door that opened", "a program that was new", "a call that arrived"];

const PROGRAMS: [&str; 7] = ["rogue", "completion", "prefix", "echo", "web", "openai", "call"];

/// What the third has tried, and what came of some of it: how often.
type Tally = Arc<Mutex<BTreeMap<&'static str, usize>>>;

struct Attacker {
    url: String,
    token: String,
    /// Hashes of those in [`PROGRAMS`].
    programs: [String; PROGRAMS.len()],
    /// An HTTP server of its own, which its programs may call.
    peer: String,
    /// The one thing that it tries.
    only: Option<&'static str>,
    modes: Vec<String>,
    targets: [Arc<Mutex<String>>; 2],
    random: Random,
    tally: Tally,
}

impl Attacker {
    async fn attack(&mut self) {
        let kind = self.only.unwrap_or_else(|| KINDS[self.random.below(KINDS.len())]);
        self.note(kind);
        let mut client = Client::connect_to(&self.url, Some(&self.token)).await;
        let [rogue, completion, prefix, echo, web, openai, call] = self.programs.clone();
        let pause = 100 + self.random.below(1500) as u64;
        match kind {
            "noise" => {
                for _ in 0..200 {
                    let mut bytes = launch(&rogue, &["return"]).with("corr_id", 9).bytes();
                    for _ in 0..1 + self.random.below(8) {
                        let at = self.random.below(bytes.len());
                        bytes[at] = self.random.next() as u8;
                    }
                    say(&mut client, bytes).await;
                }
            }
            "oversized" => say(&mut client, vec![0; 3 << 20]).await,
            "unfinished" => {
                for number in 0..40 {
                    let chunk = Outgoing::new("upload_program").with("corr_id", number);
                    let chunk = chunk.with("program_hash", "x").with("chunk_index", 0);
                    let chunk = chunk.with("total_chunks", 3).with("chunk_data", &[7u8; CHUNK][..]);
                    say(&mut client, chunk.bytes()).await;
                }
                wait(pause).await;
            }
            // Whatever they are, and nobody waits for an answer.
            "hundred" => {
                for number in 0..100 {
                    let mode = self.modes[self.random.below(self.modes.len())].clone();
                    say(&mut client, launch(&rogue, &[&mode]).with("corr_id", number).bytes()).await;
                }
                wait(pause).await;
            }
            "unread" => {
                self.begin(&mut client, &rogue, &["send-forever"], 10).await;
                self.begin(&mut client, &rogue, &["blob-giant"], 4).await;
                wait(2 * pause).await;
            }
            "stores" => {
                for mode in ["store-flood", "broadcast-flood", "subscribe-hoard", "log", "vocabulary-flood"] {
                    self.begin(&mut client, &rogue, &[mode], 3).await;
                }
                wait(pause).await;
            }
            "exports" => {
                for _ in 0..8 {
                    let name = format!("siege {}", self.random.below(50));
                    self.begin(&mut client, &prefix, &["--export", &name, PREFIX], 1).await;
                }
                self.begin(&mut client, &rogue, &["page-hoard"], 4).await;
                wait(pause).await;
            }
            // The end comes, and once, whoever wins.
            "races" => {
                for program in [&rogue, &completion, &echo] {
                    let begun = self.begin(&mut client, program, &["send-flood"], 10).await;
                    for instance in begun.iter().chain(&begun) {
                        client.terminate(instance).await;
                    }
                    for instance in &begun {
                        client.end(instance).await;
                    }
                    wait(20).await;
                    let again =
                        client.early(|frame| begun.iter().any(|i| frame.instance_id.as_ref() == Some(i)));
                    assert_eq!(again, 0, "an end comes once");
                }
            }
            "decodes" => {
                let endless = ["--max-tokens", "100000", "--temperature", "1.5", "1 2 3 4 5 6 7"];
                self.begin(&mut client, &completion, &endless, 40).await;
                let long = "all work and no play ".repeat(200 + self.random.below(100));
                self.begin(&mut client, &completion, &["--max-tokens", "3", &long], 4).await;
                wait(2 * pause).await;
            }
            "handshakes" => {
                let address = self.url.strip_prefix("ws://").expect("a WebSocket address");
                let streams: Vec<_> = (0..6).filter_map(|_| TcpStream::connect(address).ok()).collect();
                for mut stream in &streams {
                    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgr");
                }
                wait(pause).await;
            }
            "forged" => {
                for _ in 0..4 {
                    let mut forged = self.token.clone();
                    forged.replace_range(60..61, if &forged[60..61] == "A" { "B" } else { "A" });
                    let mut other = Client::connect_only(&self.url).await;
                    let authenticate = Outgoing::new("authenticate").with("token", forged.as_str());
                    assert!(other.ask(authenticate).await.is_err(), "a forged token");
                }
            }
            "blobs" => {
                for instance in self.begin(&mut client, &echo, &["--messages", "forever"], 3).await {
                    let _ = client.upload_blob(&instance, &vec![7; 6 << 20]).await;
                    for _ in 0..2000 {
                        client.signal(&instance, "again").await;
                    }
                }
                wait(pause).await;
            }
            // Other people's instances are none of its business.
            "strangers" => {
                for _ in 0..20 {
                    for target in self.targets.clone() {
                        let target = target.lock().expect("unpoisoned").clone();
                        client.terminate(&target).await;
                        client.signal(&target, "not for you").await;
                        let _ = client.upload_blob(&target, b"nor this").await;
                    }
                    wait(10).await;
                }
                self.begin(&mut client, &prefix, &["--import", "alice", "mine"], 1).await;
                self.begin(&mut client, &prefix, &["--release", "bob"], 1).await;
            }
            // Programs of its own that answer HTTP, and all that a rude client does to them.
            "doors" => {
                let Some(port) = self.open_door(&mut client, &web).await else { return };
                let streams: Vec<_> =
                    (0..60).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
                for (number, mut stream) in streams.iter().enumerate() {
                    let host = format!("Host: localhost:{port}\r\n");
                    let _ = match number % 4 {
                        0 => stream.write_all(b"GET / HTTP/1.1\r\nHo"),
                        1 => stream.write_all(format!("GET / HTTP/1.1\r\n{host}\r\n").repeat(20).as_bytes()),
                        2 => stream.write_all(
                            format!("POST / HTTP/1.1\r\n{host}Content-Length: 9999999\r\n\r\nno more")
                                .as_bytes(),
                        ),
                        _ => stream.write_all(&[self.random.next() as u8; 2000]),
                    };
                }
                wait(pause).await;
                close_doors(&mut client).await;
            }
            // The API of OpenAI on a door of its own, and answers that nobody waits for.
            "asks" => {
                let Some(port) = self.open_door(&mut client, &openai).await else { return };
                let streams: Vec<_> =
                    (0..40).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
                for (number, mut stream) in streams.iter().enumerate() {
                    let body = match number % 4 {
                        0 => r#"{"model": 7, "messages": [[["#.repeat(100),
                        1 => format!(r#"{{"model": "x", "prompt": "{}"}}"#, "pie ".repeat(20_000)),
                        _ => r#"{"model": "x", "stream": true, "max_tokens": 2000, "messages": [{"role": "user", "content": "Go on."}]}"#.into(),
                    };
                    let path = if number % 4 == 1 { "completions" } else { "chat/completions" };
                    let head = format!(
                        "POST /v1/{path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json"
                    );
                    let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                }
                wait(pause).await;
                close_doors(&mut client).await;
            }
            // Its programs call a server that is as rude as it is, and one that they may not call: this one.
            "calls" => {
                let (rude, forbidden) = (format!("http://{}/", self.peer), self.url.replace("ws:", "http:"));
                self.begin(&mut client, &call, &["crowd", &rude, "50"], 4).await;
                self.begin(&mut client, &call, &["hold", &rude], 4).await;
                self.begin(&mut client, &call, &["post", &rude, "100000000"], 4).await;
                self.begin(&mut client, &call, &["insist", &forbidden, "1000"], 4).await;
                wait(pause).await;
            }
            // Programs that nobody has seen yet.
            "compiles" => {
                for _ in 0..4 {
                    let mut program = guest_bytes("chat");
                    program.extend([0, 10, 1, b'n']); // a custom section: a name of one byte and eight of data
                    program.extend(self.random.next().to_le_bytes());
                    // The store may be full by now.
                    if let Ok(hash) = client.upload(&program).await {
                        self.note(REACHED[1]);
                        self.begin(&mut client, &hash, &["--help"], 5).await;
                    }
                }
                wait(pause).await;
            }
            _ => {
                self.begin(&mut client, &rogue, &["spin"], 30).await;
                self.begin(&mut client, &rogue, &["tokenize-forever"], 10).await;
                wait(2 * pause).await;
            }
        }
        if self.random.below(2) == 0 {
            let _ = client.socket.close(None).await; // else it goes without a word
        }
    }

    fn note(&self, what: &'static str) {
        *self.tally.lock().expect("unpoisoned").entry(what).or_default() += 1;
    }

    /// The port on which a program of its own answers; none when it has as many as it may.
    async fn open_door(&self, client: &mut Client, program: &str) -> Option<u16> {
        let port = free_port();
        let door = Outgoing::new("launch_server_instance").with("program_hash", program);
        let door = door.with("port", i64::from(port)).with("arguments", &[][..] as &[&str]);
        client.ask(door).await.ok()?;
        self.note(REACHED[0]);
        Some(port)
    }

    /// Launches as many as it may; those that were.
    async fn begin(&self, client: &mut Client, hash: &str, arguments: &[&str], count: usize) -> Vec<String> {
        let mut begun = Vec::new();
        for _ in 0..count {
            begun.extend(client.ask(launch(hash, arguments)).await);
        }
        begun
    }
}

async fn close_doors(client: &mut Client) {
    let listed = client.query("server_instances", "").await.unwrap_or_default();
    let listed: Vec<BTreeMap<String, Value>> = serde_json::from_str(&listed).unwrap_or_default();
    for door in listed.iter().filter_map(|door| door.get("id")?.as_str()) {
        let _ = client.ask(Outgoing::new("stop_server_instance").with("server_id", door)).await;
    }
}

/// An HTTP server on loopback that answers as none should: not at all, byte by byte, with a head or a body without end.
fn rude_peer(tally: &Tally) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let tally = tally.clone();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            *tally.lock().expect("unpoisoned").entry(REACHED[2]).or_default() += 1;
            std::thread::spawn(move || {
                rustix::process::setpriority_process(None, LOWEST).expect("a thread may be less urgent");
                let (start, more, times, pause) = match number % 4 {
                    0 => ("", "", 1, 100),
                    1 => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", 1, 1),
                    2 => ("HTTP/1.1 200 OK\r\n", "X-More: and more\r\n", 4000, 5),
                    _ => ("HTTP/1.1 200 OK\r\n\r\n", "pie and pie and pie and ", 4000, 5),
                };
                let more = more.repeat(times);
                let mut stream = &stream;
                let until = Instant::now() + Duration::from_secs(2);
                let mut alive = stream.write_all(start.as_bytes());
                while alive.is_ok() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(pause));
                    alive = stream.write_all(more.as_bytes());
                }
            });
        }
    });
    address
}

fn launch(hash: &str, arguments: &[&str]) -> Outgoing {
    Outgoing::new("launch_instance").with("program_hash", hash).with("arguments", arguments)
}

/// The one kind that is asked for, if one is.
fn only_kind() -> Option<&'static str> {
    let asked = std::env::var("TARTLET_SIEGE_KIND").ok()?;
    Some(
        KINDS
            .into_iter()
            .find(|kind| *kind == asked)
            .unwrap_or_else(|| panic!("{asked} is none of {KINDS:?}")),
    )
}

/// The connection may be gone by now; that is as good.
async fn say(client: &mut Client, bytes: Vec<u8>) {
    let _ = client.socket.send(Message::binary(bytes)).await;
}

async fn wait(ms: u64) {
    smol::Timer::after(Duration::from_millis(ms)).await;
}

/// Instances and KV pages in use, and pages that are exported.
async fn used(client: &mut Client) -> [usize; 3] {
    let status = client.query("model_status", "").await.expect("a status");
    let status: BTreeMap<String, String> = serde_json::from_str(&status).expect("JSON");
    [".active_count", ".0.used", ".0.exported_count"].map(|count| {
        let (_, value) = status.iter().find(|(name, _)| name.ends_with(count)).expect("the count");
        value.parse().expect("a number")
    })
}

/// Seconds of a processor that a process has taken so far.
fn seconds_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is there");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number"));
    ticks.sum::<u64>() as f64 / 100.0
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().expect("there were rounds")
}

#[test]
fn honest_apps_lose_nothing_beside_one_that_tries_everything() {
    let asked = std::env::var("TARTLET_SIEGE").ok();
    let seconds = asked.as_ref().map_or(SECONDS, |text| text.parse().expect("a number"));
    let model = if asked.is_some() { support::model() } else { support::small_model() };
    // Every instance draws from one seed, so that the same run gives the same tokens.
    let mut server = Server::guarded_with(model, "[engine]\nseed = 7\n");
    let targets = [Arc::new(Mutex::default()), Arc::new(Mutex::default())];
    let mut honest: Vec<(Honest, Round)> = ["alice", "bob"]
        .into_iter()
        .zip(&targets)
        .map(|(name, target)| {
            smol::block_on(async {
                let mut honest = Honest::new(&server, name, target.clone()).await;
                honest.settle().await;
                let first = honest.round().await;
                (honest, first)
            })
        })
        .collect();
    let mut watcher =
        smol::block_on(Client::connect_to(&server.url, Some(&mint(&server.key(), "watcher", &[]))));
    let kept = smol::block_on(used(&mut watcher));

    let mut medians = [Vec::new(), Vec::new()]; // [honest][phase]
    let tally = Tally::default();
    let peer = rude_peer(&tally);
    for phase in 0..=2 * TURNS as u64 {
        let besieged = phase % 2 == 1;
        let stop = Arc::new(AtomicBool::new(false));
        let firsts: Vec<Round> = honest.iter().map(|(_, first)| first.clone()).collect();
        let running: Vec<_> =
            honest.drain(..).map(|(honest, first)| honest.go_on(first, stop.clone())).collect();
        let seeds = phase * ATTACKERS..(phase + u64::from(besieged)) * ATTACKERS;
        let attackers = attackers(&server, &targets, &peer, seeds, &stop, &tally);
        let (own, theirs) = (seconds_of("self"), seconds_of(&server.id().to_string()));
        let turn = seconds as f64 / TURNS as f64;
        let until = Instant::now() + Duration::from_secs_f64(if besieged { turn } else { turn / PEACE });
        while Instant::now() < until && !running.iter().any(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        for ((running, first), medians) in running.into_iter().zip(firsts).zip(&mut medians) {
            let (one, rounds) = running.join().expect("an honest app heard something else than alone");
            println!(
                "besieged {besieged}: {} had {} rounds of {:.2} s",
                one.name,
                rounds.len(),
                median(&rounds)
            );
            medians.push(median(&rounds));
            honest.push((one, first));
        }
        attackers.into_iter().for_each(|attacker| attacker.join().expect("an attacker was surprised"));
        println!(
            "processor: {:.1} s here, {:.1} s of the server",
            seconds_of("self") - own,
            seconds_of(&server.id().to_string()) - theirs
        );
    }
    let tally = tally.lock().expect("unpoisoned").clone();
    println!("{tally:?}");
    for what in KINDS.iter().chain(&REACHED).filter(|_| only_kind().is_none()) {
        assert!(tally.contains_key(what), "{what}: not once");
    }
    for ((honest, _), medians) in honest.iter().zip(&medians) {
        let turns = medians.windows(3).step_by(2);
        let mut kept: Vec<f64> = turns.map(|turn| 50.0 * (turn[0] + turn[2]) / turn[1]).collect();
        kept.sort_by(f64::total_cmp);
        println!(
            "{} has {:.0} % of the speed in peace ({:.0} to {:.0})",
            honest.name,
            median(&kept),
            kept[0],
            kept[TURNS - 1]
        );
    }

    // Its instances and pages are gone, but for what it exported; theirs are there.
    server.assert_alive();
    smol::block_on(async {
        let since = Instant::now();
        loop {
            let [instances, pages, exported] = used(&mut watcher).await;
            if instances == 0 && pages == exported && exported >= kept[2] {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{instances} instances, {pages} pages, {exported} exported");
            wait(50).await;
        }
        for (honest, first) in &mut honest {
            assert_eq!(honest.round().await, *first, "{} afterwards", honest.name);
        }
    });
}

fn attackers(
    server: &Server,
    targets: &[Arc<Mutex<String>>; 2],
    peer: &str,
    seeds: Range<u64>,
    stop: &Arc<AtomicBool>,
    tally: &Tally,
) -> Vec<JoinHandle<()>> {
    if seeds.is_empty() {
        return Vec::new();
    }
    let token = mint(&server.key(), "mallory", &["--http", peer]);
    let (programs, modes) = smol::block_on(async {
        let mut client = Client::connect_to(&server.url, Some(&token)).await;
        let mut programs = Vec::new();
        for program in PROGRAMS {
            programs.push(client.upload(&guest_bytes(program)).await.expect("a good program"));
        }
        let modes = client.run_hash(&programs[0], &["modes"]).await.text;
        let modes: Vec<String> = modes.split_whitespace().map(str::to_owned).collect();
        (<[String; PROGRAMS.len()]>::try_from(programs).expect("as many"), modes)
    });
    seeds
        .map(|seed| {
            println!("an attacker with seed {seed}");
            let mut attacker = Attacker {
                url: server.url.clone(),
                token: token.clone(),
                programs: programs.clone(),
                modes: modes.clone(),
                peer: peer.to_owned(),
                only: only_kind(),
                targets: targets.clone(),
                random: Random::new(seed),
                tally: tally.clone(),
            };
            let stop = stop.clone();
            std::thread::spawn(move || {
                rustix::process::setpriority_process(None, LOWEST).expect("a thread may be less urgent");
                while !stop.load(Ordering::Relaxed) {
                    smol::block_on(attacker.attack());
                }
            })
        })
        .collect()
}
