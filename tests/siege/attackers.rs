//! The third, who tries everything it can name, in a process of its own.
//!
//! Owns: what it tries, the process, and what is told to it: whose instances there are, and when to stop. Never: what becomes of
//! what it tries.
//!
//! The process is this test's program, started with the lowest priority. In one process with the honest apps it shared smol's
//! reactor with them: a thread of an attacker, which had the core when nobody else wanted it, was the one to wake an honest app.

use super::gguf::Random;
use super::support::client::{CHUNK, Client};
use super::support::frame::Outgoing;
use super::support::{Server, free_port, guest_bytes, mint};
use super::{PREFIX, TEST, wait};
use async_tungstenite::tungstenite::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Of the process: the system's number of the least urgent.
const LOWEST: i32 = 19;
/// What the process is told: its URL, its token, where its own HTTP server is to listen, and its seeds.
const ORDERS: &str = "TARTLET_SIEGE_ORDERS";
/// In its output: the attackers begin.
const BEGUN: &str = "begun";
/// Before what it has tried.
const TRIED: &str = "tried ";

pub const KINDS: [&str; 18] = [
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
pub const REACHED: [&str; 4] =
    ["a door that opened", "a program that was new", "a call that arrived", "a stranger that was named"];

const PROGRAMS: [&str; 7] = ["rogue", "completion", "prefix", "echo", "web", "openai", "call"];

/// What the third has tried, and what came of some of it: how often.
pub type Tally = BTreeMap<String, usize>;

/// To the process that runs now, whose instance an honest app has launched last.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Option<ChildStdin>>>);

impl Told {
    pub fn launched(&self, whose: &str, instance: &str) {
        if let Some(told) = &mut *self.0.lock().expect("unpoisoned") {
            writeln!(told, "{whose} {instance}").expect("the attackers' process ended early");
        }
    }
}

/// The process.
pub struct Attackers {
    child: Child,
    output: BufReader<ChildStdout>,
    told: Told,
}

impl Attackers {
    /// One attacker for each seed. Returns when they begin.
    pub fn start(server: &Server, seeds: Range<u64>, told: &Told) -> Attackers {
        let peer = format!("127.0.0.1:{}", free_port());
        let token = mint(&server.key(), "mallory", &["--http", &peer]);
        let orders = format!("{} {token} {peer} {} {}", server.url, seeds.start, seeds.end);
        let mut child = Command::new(std::env::current_exe().expect("a program"))
            .args(["--exact", "--nocapture", TEST])
            .env(ORDERS, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        *told.0.lock().expect("unpoisoned") = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut attackers = Attackers { child, output, told: told.clone() };
        let begun = attackers.output.by_ref().lines().map_while(Result::ok).any(|line| line == BEGUN);
        assert!(begun, "the attackers' process ended before it began");
        attackers
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lets each finish what it tries: what all have tried.
    pub fn stop(mut self) -> Tally {
        drop(self.told.0.lock().expect("unpoisoned").take());
        let mut output = String::new();
        self.output.read_to_string(&mut output).expect("text");
        assert!(self.child.wait().expect("it was started").success(), "an attacker was surprised: {output}");
        let tried = output.lines().find_map(|line| line.strip_prefix(TRIED)).expect("what they have tried");
        serde_json::from_str(tried).expect("JSON")
    }
}

/// Whatever fails, no process is left.
impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, if all went well
        let _ = self.child.wait();
    }
}

/// What the process does, if this is it: false, it is not.
pub fn attacked() -> bool {
    let Ok(orders) = std::env::var(ORDERS) else { return false };
    let [url, token, peer, first, last] =
        orders.split(' ').collect::<Vec<_>>().try_into().expect("five orders");
    // The threads that it starts are no more urgent.
    rustix::process::setpriority_process(None, LOWEST).expect("a thread may be less urgent");
    let tally = Arc::default();
    rude_peer(peer, &tally);
    let (programs, modes) = smol::block_on(async {
        let mut client = Client::connect_to(url, Some(token)).await;
        let mut programs = Vec::new();
        for program in PROGRAMS {
            programs.push(client.upload(&guest_bytes(program)).await.expect("a good program"));
        }
        let modes = client.run_hash(&programs[0], &["modes"]).await.text;
        let modes: Vec<String> = modes.split_whitespace().map(str::to_owned).collect();
        (<[String; PROGRAMS.len()]>::try_from(programs).expect("as many"), modes)
    });
    println!("\n{BEGUN}");
    let [first, last] = [first, last].map(|seed| seed.parse::<u64>().expect("a seed"));
    let targets: Targets = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let attackers: Vec<_> = (first..last)
        .map(|seed| {
            let mut attacker = Attacker {
                url: url.to_owned(),
                token: token.to_owned(),
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
                while !stop.load(Ordering::Relaxed) {
                    smol::block_on(attacker.attack());
                }
            })
        })
        .collect();
    for told in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (whose, instance) = told.split_once(' ').expect("whose, and which");
        targets.lock().expect("unpoisoned").insert(whose.to_owned(), instance.to_owned());
    }
    stop.store(true, Ordering::Relaxed);
    attackers.into_iter().for_each(|attacker| attacker.join().expect("an attacker was surprised"));
    let tally = tally.lock().expect("unpoisoned");
    println!("\n{TRIED}{}", serde_json::to_string(&*tally).expect("JSON"));
    true
}

/// The instance that each honest app has launched last, by its name.
type Targets = Arc<Mutex<BTreeMap<String, String>>>;

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
    targets: Targets,
    random: Random,
    tally: Arc<Mutex<Tally>>,
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
                    let targets = self.targets.lock().expect("unpoisoned").clone();
                    for target in targets.into_values() {
                        self.note(REACHED[3]);
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
        *self.tally.lock().expect("unpoisoned").entry(what.to_owned()).or_default() += 1;
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
fn rude_peer(address: &str, tally: &Arc<Mutex<Tally>>) {
    let listener = TcpListener::bind(address).expect("a free port");
    let tally = tally.clone();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            *tally.lock().expect("unpoisoned").entry(REACHED[2].to_owned()).or_default() += 1;
            std::thread::spawn(move || {
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
}

fn launch(hash: &str, arguments: &[&str]) -> Outgoing {
    Outgoing::new("launch_instance").with("program_hash", hash).with("arguments", arguments)
}

/// The connection may be gone by now; that is as good.
async fn say(client: &mut Client, bytes: Vec<u8>) {
    let _ = client.socket.send(Message::binary(bytes)).await;
}

/// The one kind that is asked for, if one is.
pub fn only_kind() -> Option<&'static str> {
    let asked = std::env::var("TARTLET_SIEGE_KIND").ok()?;
    Some(
        KINDS
            .into_iter()
            .find(|kind| *kind == asked)
            .unwrap_or_else(|| panic!("{asked} is none of {KINDS:?}")),
    )
}
