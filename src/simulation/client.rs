//! Clients that are scripted: they ask, they read, and some of them misbehave.
//!
//! Owns: what a client sends, when, and whether it reads. Never: a judgement of what it is told; that is the ledger's.

use super::guest::{Part, Play};
use super::house::{self, PROGRAM};
use super::ledger::{Expect, Ledger};
use super::link::Link;
use super::lock;
use super::tasks::Spawner;
use crate::clock;
use crate::engine::simulation::random::Random;
use crate::identity::{InstanceId, ProgramHash};
use crate::limits;
use crate::wire::{ClientMessage, ServerMessage};
use async_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use async_tungstenite::tungstenite::protocol::Message;
use event_listener::Event;
use smol::future::or;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a client does, in steps: so many at least, and so many more.
const LINES: (u32, u32) = (3, 13);
/// A slow client's pause before a frame, at most: seven of them still make less than a stall.
const PAUSE_MS: u32 = 2_000;
/// How often a patient client looks after its instances, ending those that wait for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often at most: a flood read slowly takes some minutes.
const LOOKS: u32 = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// Reads at once.
    Prompt,
    /// Reads a frame every now and then.
    Slow,
    /// Stops reading after so many frames.
    Stalls(u32),
    /// Goes without a word after so many frames.
    Leaves(u32),
}

impl Temper {
    pub fn choose(random: &mut Random) -> Temper {
        match random.below(9) {
            0..4 => Temper::Prompt,
            4 | 5 => Temper::Slow,
            6 | 7 => Temper::Stalls(random.below(12)),
            _ => Temper::Leaves(random.below(30)),
        }
    }
}

/// What lets a client in.
pub struct Token {
    pub text: String,
    pub subject: &'static str,
    /// After which the server ends the connection.
    pub good_for: Option<Duration>,
}

pub struct Client {
    pub number: usize,
    pub temper: Temper,
    pub link: Link,
    pub ledger: Arc<Mutex<Ledger>>,
    pub random: Random,
    pub corr_id: u32,
    /// With what it is let in; none: everybody is.
    pub token: Option<Arc<Token>>,
    /// Not let in, and not going to be.
    pub stranger: bool,
    /// Whether it answers pings.
    pub pongs: bool,
    pub read: Arc<Event>,
}

/// The half that reads.
struct Reader {
    number: usize,
    temper: Temper,
    link: Link,
    ledger: Arc<Mutex<Ledger>>,
    pongs: bool,
    read: Arc<Event>,
}

impl Client {
    /// Both halves of it as tasks.
    pub fn start(self, spawner: &Spawner, reads: Random) {
        let half = Reader {
            number: self.number,
            temper: self.temper,
            link: self.link.clone(),
            ledger: self.ledger.clone(),
            pongs: self.pongs,
            read: self.read.clone(),
        };
        spawner.spawn(format!("reader {}", self.number), reader(half, reads));
        spawner.spawn(format!("client {}", self.number), self.converse());
    }

    async fn converse(mut self) {
        // False from any of these: nobody reads what it sends.
        let _ = self.script().await;
        if self.link.is_over() || !self.wait().await {
            return self.link.leave();
        }
        if self.random.one_in(2) {
            self.link.close(); // and reads on, to the end
            self.link.until_the_server_leaves().await;
        }
        self.link.leave();
    }

    async fn script(&mut self) -> bool {
        if let Some(token) = self.token.clone().filter(|_| !self.stranger) {
            let (corr_id, answer) = (self.next_id(), Ok(token.subject.to_owned()));
            let message = ClientMessage::Authenticate { corr_id, token: token.text.clone() };
            if !self.ask(message, Expect::Exactly(corr_id, answer)).await {
                return false;
            }
        }
        for _ in 0..LINES.0 + self.random.below(LINES.1) {
            if self.random.one_in(2) {
                self.pause().await;
            }
            let sent = match self.random.below(100) {
                0..30 => self.launch().await,
                30..52 => self.signal().await,
                52..66 => self.give_blob().await,
                66..74 => self.terminate().await,
                74..80 => self.exists().await,
                80..84 => self.status().await,
                84..88 => self.upload().await,
                88..92 => self.send_rubbish().await,
                92..98 => {
                    clock::after(Duration::from_millis(u64::from(self.random.below(8_000)))).await;
                    true
                }
                98 if self.random.one_in(3) => self.break_the_carrier().await,
                _ => self.launch().await,
            };
            if !sent {
                return false;
            }
        }
        true
    }

    /// Until it has read something, or for a while.
    async fn pause(&mut self) {
        let read = self.read.listen();
        or(read, clock::after(Duration::from_secs(1))).await;
    }

    /// Until all its instances have ended, as far as it knows. False: somebody has ended the connection.
    async fn wait(&mut self) -> bool {
        for _ in 0..LOOKS {
            loop {
                let read = self.read.listen();
                if self.link.is_over() {
                    return false;
                }
                let idle = {
                    let ledger = lock(&self.ledger);
                    ledger.untold(self.number).is_empty() && !ledger.waits(self.number)
                };
                if idle && !self.stranger {
                    return true;
                }
                let late = async {
                    clock::after(PATIENCE).await;
                    true
                };
                let come = async {
                    or(read, self.link.until_the_server_leaves()).await;
                    false
                };
                if or(come, late).await {
                    break;
                }
            }
            if !matches!(self.temper, Temper::Prompt | Temper::Slow) && self.random.one_in(4) {
                return true; // as if its instances had ended
            }
            let untold = lock(&self.ledger).untold(self.number);
            for instance in untold {
                let message = ClientMessage::TerminateInstance { instance_id: instance.to_string() };
                if !self.send(message).await {
                    return false;
                }
            }
        }
        panic!("client {} waits in vain: {:?}", self.number, lock(&self.ledger).untold(self.number));
    }

    // ---- what it asks ----

    fn next_id(&mut self) -> u32 {
        self.corr_id += 1;
        self.corr_id
    }

    async fn send(&self, message: ClientMessage) -> bool {
        self.link.send(Ok(Message::Binary(message.encode().into()))).await
    }

    async fn ask(&mut self, message: ClientMessage, expect: Expect) -> bool {
        let expect = match expect {
            Expect::Notice => Expect::Notice,
            _ if !self.stranger => expect,
            Expect::Launched(corr_id)
            | Expect::Exactly(corr_id, _)
            | Expect::Status(corr_id)
            | Expect::Blob(corr_id, ..) => Expect::Exactly(corr_id, Err("Not authenticated".to_owned())),
        };
        lock(&self.ledger).expects(self.number, expect);
        self.send(message).await
    }

    async fn launch(&mut self) -> bool {
        let corr_id = self.next_id();
        let part = match self.random.below(16) {
            0..5 => Part::Talks,
            5..10 => Part::Thinks,
            10..13 => Part::Hears,
            13 | 14 => Part::Waits,
            _ => Part::Floods,
        };
        let play = Play { client: self.number, part, seed: u64::from(self.random.below(u32::MAX)) };
        let program_hash = ProgramHash::of(PROGRAM).to_string();
        let message = ClientMessage::LaunchInstance { corr_id, program_hash, arguments: play.write() };
        self.ask(message, Expect::Launched(corr_id)).await
    }

    fn one_of_mine(&mut self) -> Option<InstanceId> {
        let known = lock(&self.ledger).known(self.number);
        self.random.pick(&known).copied()
    }

    async fn signal(&mut self) -> bool {
        let untold = lock(&self.ledger).untold(self.number);
        let Some(&instance) = self.random.pick(&untold) else { return true };
        for _ in 0..1 + self.random.below(4) {
            let message = format!("signal {}", self.next_id());
            lock(&self.ledger).texted(instance, &message);
            let instance_id = instance.to_string();
            if !self.send(ClientMessage::SignalInstance { instance_id, message }).await {
                return false;
            }
        }
        true
    }

    async fn give_blob(&mut self) -> bool {
        let last = lock(&self.ledger).last_told(self.number).filter(|_| self.random.one_in(2));
        let Some(instance) = last.or_else(|| self.one_of_mine()) else { return true };
        let corr_id = self.next_id();
        let blob: Arc<[u8]> = vec![corr_id as u8; self.random.below(200) as usize].into();
        let (blob_hash, total_chunks) =
            (blake3::hash(&blob).to_string(), 1 + u64::from(self.random.below(2)));
        let half = if total_chunks == 2 { blob.len() / 2 } else { 0 };
        for chunk_index in 0..total_chunks {
            let is_last = chunk_index + 1 == total_chunks;
            let message = ClientMessage::UploadBlob {
                corr_id,
                instance_id: instance.to_string(),
                blob_hash: blob_hash.clone(),
                chunk_index,
                total_chunks,
                chunk_data: if is_last { &blob[half..] } else { &blob[..half] }.to_vec(),
            };
            let sent = if is_last {
                let told = {
                    let mut ledger = lock(&self.ledger);
                    ledger.gave(instance, blob.clone());
                    ledger.is_told(instance)
                };
                self.ask(message, Expect::Blob(corr_id, instance, told)).await
            } else {
                self.send(message).await
            };
            if !sent {
                return false;
            }
        }
        true
    }

    async fn terminate(&mut self) -> bool {
        let Some(instance) = self.one_of_mine() else { return true };
        self.send(ClientMessage::TerminateInstance { instance_id: instance.to_string() }).await
    }

    async fn exists(&mut self) -> bool {
        let corr_id = self.next_id();
        let (record, expect) =
            house::exists(corr_id, if self.random.one_in(2) { PROGRAM } else { b"another" });
        self.ask(ClientMessage::Query { corr_id, subject: "program_exists".into(), record }, expect).await
    }

    async fn status(&mut self) -> bool {
        let corr_id = self.next_id();
        let message = ClientMessage::Query { corr_id, subject: "model_status".into(), record: String::new() };
        self.ask(message, Expect::Status(corr_id)).await
    }

    async fn upload(&mut self) -> bool {
        let corr_id = self.next_id();
        let (chunk_data, good) = match self.random.below(2) {
            0 => (b"bad".to_vec(), false),
            _ => (b"good".to_vec(), true),
        };
        let program_hash = ProgramHash::of(&chunk_data).to_string();
        let answer = if good { Ok(program_hash.clone()) } else { Err("this is no component".to_owned()) };
        let message = ClientMessage::UploadProgram {
            corr_id,
            program_hash,
            chunk_index: 0,
            total_chunks: 1,
            chunk_data,
        };
        self.ask(message, Expect::Exactly(corr_id, answer)).await
    }

    /// A few frames that are no messages: fewer than it is told about.
    async fn send_rubbish(&mut self) -> bool {
        lock(&self.ledger).expects(self.number, Expect::Notice);
        let frame = match self.random.one_in(2) {
            true => Message::text("hello"),
            false => Message::binary(b"\xc1".to_vec()),
        };
        const { assert!(limits::SERVER_EVENTS_PER_CONNECTION as u32 >= LINES.0 + LINES.1) };
        self.link.send(Ok(frame)).await
    }

    async fn break_the_carrier(&mut self) -> bool {
        let error = match self.random.one_in(2) {
            true => WsError::Capacity(CapacityError::MessageTooLong { size: 1, max_size: 0 }),
            false => WsError::ConnectionClosed,
        };
        self.link.send(Err(error)).await;
        false
    }
}

/// Reads to the end, each frame as its temper has it.
async fn reader(client: Reader, mut random: Random) {
    let Reader { number, temper, link, ledger, pongs, read } = client;
    for count in 0.. {
        match temper {
            Temper::Prompt => {}
            Temper::Slow => {
                if random.one_in(2) {
                    clock::after(Duration::from_millis(u64::from(random.below(PAUSE_MS)))).await;
                }
            }
            Temper::Stalls(after) if count >= after => return link.until_the_server_leaves().await,
            Temper::Leaves(after) if count >= after => return link.leave(),
            Temper::Stalls(_) | Temper::Leaves(_) => {}
        }
        let Some(frame) = link.receive().await else { break };
        match frame {
            Message::Binary(frame) => {
                let message = ServerMessage::decode(&frame).expect("a frame that can be read");
                lock(&ledger).arrives(number, message);
            }
            Message::Ping(payload) => {
                lock(&ledger).pinged(number);
                if pongs {
                    link.pong(payload);
                }
            }
            Message::Close(close) => lock(&ledger).closed(number, close.expect("a reason").code),
            other => panic!("no frame of ours: {other:?}"),
        }
        read.notify(usize::MAX);
    }
    link.close();
}
