//! What was said and what arrived: the record that every frame is held against.
//!
//! Owns: per instance what its guest sent and how it ended, per client what it asked and what it may be told next.
//! Never: how any of it gets from one to the other, which is what the simulation is about.

use super::link::{DOWN, Link, UNSENT};
use super::trace::Trace;
use crate::clock::fake;
use crate::engine::operation::Notice;
use crate::host::Trap;
use crate::identity::InstanceId;
use crate::limits;
use crate::runtime::directory::Entry;
use crate::runtime::{Directory, Ending, Name, Quotas};
use crate::wire::ServerMessage;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use smol::lock::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A client that reads and answers pings at once is answered, and its talkers are heard out, within this. Nobody who is
/// slow is gone so soon.
const PROMPT: Duration = Duration::from_secs(1);

pub struct Ledger {
    pub trace: Trace,
    quotas: Quotas,
    directory: Directory,
    lives: BTreeMap<InstanceId, Life>,
    clients: Vec<View>,
    /// Told to their clients as ended: the engine must know by its next turn.
    pub gone: Vec<InstanceId>,
    stopping: bool,
    /// The first thing wrong that was seen from within a guest, whose panics are its own affair.
    pub fault: Option<String>,
}

/// An instance, from its launch on.
struct Life {
    client: usize,
    instance: InstanceId,
    /// Not the entry: it would keep the channel of its events open.
    end: Arc<OnceCell<Ending>>,
    /// It says a few things and waits for nothing but its reader.
    talks: bool,
    started: Option<Duration>,
    said: VecDeque<Said>,
    said_bytes: usize,
    /// Of what it said, the longest.
    longest: usize,
    /// The end of its own that it came to, if nobody ended it before.
    own: Option<Ending>,
    asked: Vec<Ending>,
    notice: Option<Notice>,
    over: bool,
    told: bool,
    known: Option<Duration>,
    texts: VecDeque<String>,
    blobs: VecDeque<Arc<[u8]>>,
}

/// What a guest gave to its channel.
#[derive(Debug, PartialEq)]
pub enum Said {
    Message(String),
    Blob(Arc<[u8]>),
}

impl Said {
    fn bytes(&self) -> usize {
        match self {
            Said::Message(text) => text.len(),
            Said::Blob(blob) => blob.len(),
        }
    }
}

/// What a client asked for, and so what it must be answered.
pub enum Expect {
    Launched(u32),
    Exactly(u32, Result<String, String>),
    Status(u32),
    /// With whether it had read the instance's last event when it asked.
    Blob(u32, InstanceId, bool),
    Notice,
}

/// A connection, as its client sees it.
struct View {
    link: Link,
    prompt: bool,
    expected: VecDeque<(Duration, Expect)>,
    pings: usize,
    introduced: BTreeSet<InstanceId>,
    download: Option<Download>,
    last_told: Option<InstanceId>,
    closed: bool,
    over: bool,
}

/// A blob that has begun to come.
struct Download {
    instance: InstanceId,
    next: u64,
    total: u64,
    bytes: Vec<u8>,
}

impl Ledger {
    pub fn new(trace: Trace, quotas: Quotas, directory: Directory) -> Ledger {
        Ledger {
            trace,
            quotas,
            directory,
            lives: BTreeMap::new(),
            clients: Vec::new(),
            gone: Vec::new(),
            stopping: false,
            fault: None,
        }
    }

    pub fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fault.get_or_insert_with(what);
        }
    }

    fn life(&mut self, instance: InstanceId) -> &mut Life {
        self.lives.get_mut(&instance).expect("an instance that nobody launched")
    }

    // ---- what happens behind the door ----

    /// The server is about to stop.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.clients.iter().for_each(|view| view.link.may_last_until(fake::passed()));
    }

    pub fn launched(&mut self, client: usize, entry: &Entry, talks: bool) {
        let life = Life {
            client,
            talks,
            started: None,
            said: VecDeque::new(),
            said_bytes: 0,
            longest: 0,
            own: None,
            asked: Vec::new(),
            notice: None,
            over: false,
            told: false,
            known: None,
            texts: VecDeque::new(),
            blobs: VecDeque::new(),
            instance: entry.instance,
            end: entry.end.clone(),
        };
        let instance = life.instance;
        assert!(self.lives.insert(instance, life).is_none(), "two instances of one name");
    }

    pub fn started(&mut self, instance: InstanceId) {
        self.life(instance).started = Some(fake::passed());
    }

    /// A guest's event was taken.
    pub fn said(&mut self, instance: InstanceId, what: Said) {
        let life = self.life(instance);
        life.said_bytes += what.bytes();
        life.longest = life.longest.max(what.bytes());
        life.said.push_back(what);
        // What may be on its way behind the channel: with the forwarder, the writer, and between them and the client.
        let behind = limits::FRAMES_IN_FLIGHT + (DOWN + UNSENT) as usize + 3;
        let (events, bytes) = (life.said.len(), life.said_bytes);
        let most = limits::EVENT_BYTES_IN_FLIGHT + (behind + 1) * life.longest;
        let bounded = events <= limits::EVENTS_IN_FLIGHT + behind && bytes <= most;
        self.must(bounded, || format!("{events} events of {bytes} bytes that nobody has read"));
    }

    /// A guest came to its own end.
    pub fn ends(&mut self, instance: InstanceId, ending: Ending) {
        let life = self.life(instance);
        life.own = Some(ending);
        let goes_on = life.end.get().is_some();
        self.must(!goes_on, || format!("{instance} was ended and goes on"));
    }

    /// A connection has this instance ended.
    pub fn asked(&mut self, instance: InstanceId, ending: Ending) {
        let (stopping, life) = (self.stopping, self.lives.get_mut(&instance));
        let life = life.expect("an instance that nobody launched");
        let link = &self.clients[life.client].link;
        match &ending {
            Ending::Aborted => {}
            Ending::Stopping => assert!(stopping, "it does not stop"),
            Ending::Expired => assert!(link.is_late(), "its token is good"),
            Ending::Disconnected => {
                let is_first = life.asked.is_empty() && !life.over && !std::thread::panicking();
                assert!(!is_first || link.fault().is_some(), "its client is there");
            }
            other => panic!("{other:?} is not for a connection to decide"),
        }
        life.asked.push(ending);
    }

    pub fn given_up(&mut self, notice: &Notice) {
        let instance = notice.instance();
        let before = self.life(instance).notice.replace(notice.clone());
        assert!(before.is_none(), "{instance} is given up twice");
    }

    pub fn life_is_over(&mut self, instance: InstanceId) {
        self.life(instance).over = true;
    }

    pub fn connection_is_over(&mut self, client: usize) {
        self.clients[client].over = true;
        let fault = self.clients[client].link.fault();
        self.trace.note(|| format!("{client} {}", fault.unwrap_or("is well")));
    }

    // ---- what a guest hears ----

    pub fn texted(&mut self, instance: InstanceId, text: &str) {
        self.life(instance).texts.push_back(text.to_owned());
    }

    pub fn gave(&mut self, instance: InstanceId, blob: Arc<[u8]>) {
        self.life(instance).blobs.push_back(blob);
    }

    pub fn heard_text(&mut self, instance: InstanceId, text: &str) {
        let sent = self.life(instance).texts.pop_front();
        self.must(sent.as_deref() == Some(text), || format!("{instance} hears {text}, sent was {sent:?}"));
    }

    pub fn heard_blob(&mut self, instance: InstanceId, blob: &[u8]) {
        let sent = self.life(instance).blobs.pop_front();
        self.must(sent.as_deref() == Some(blob), || {
            format!("{instance} is given another blob than was sent")
        });
    }

    // ---- what a client asks and is told ----

    pub fn connects(&mut self, link: Link, prompt: bool) -> usize {
        self.clients.push(View {
            link,
            prompt,
            expected: VecDeque::new(),
            pings: 0,
            introduced: BTreeSet::new(),
            download: None,
            last_told: None,
            closed: false,
            over: false,
        });
        self.clients.len() - 1
    }

    pub fn expects(&mut self, client: usize, expect: Expect) {
        self.clients[client].expected.push_back((fake::passed(), expect));
    }

    /// Its instances that it knows and whose end it has not been told.
    pub fn untold(&self, client: usize) -> Vec<InstanceId> {
        let mine = self.lives.iter().filter(|(_, life)| life.client == client && !life.told);
        mine.filter(|(_, life)| life.known.is_some()).map(|(id, _)| *id).collect()
    }

    /// Its instances that it knows.
    pub fn known(&self, client: usize) -> Vec<InstanceId> {
        let mine = self.lives.iter().filter(|(_, life)| life.client == client && life.known.is_some());
        mine.map(|(id, _)| *id).collect()
    }

    /// Of its instances, the one whose end it was told last.
    pub fn last_told(&self, client: usize) -> Option<InstanceId> {
        self.clients[client].last_told
    }

    pub fn is_told(&mut self, instance: InstanceId) -> bool {
        self.life(instance).told
    }

    pub fn waits(&self, client: usize) -> bool {
        !self.clients[client].expected.is_empty()
    }

    pub fn pinged(&mut self, client: usize) {
        self.clients[client].pings += 1;
    }

    /// The server has said why it ends the connection, and says no more.
    pub fn closed(&mut self, client: usize, code: CloseCode) {
        let untold = self.untold(client).len();
        let view = &mut self.clients[client];
        let why = match code {
            CloseCode::Away => self.stopping,
            CloseCode::Policy => view.link.is_late(),
            CloseCode::Size => view.link.fault() == Some("has broken the carrier"),
            _ => false,
        };
        assert!(why, "closed with {code:?} for no reason");
        assert!(!view.prompt || untold == 0, "closed before {untold} last events");
        assert!(!view.closed, "closed twice");
        assert!(view.download.is_none() || view.link.may_be_given_up(), "closed in the middle of a blob");
        view.closed = true;
        self.trace.note(|| format!("{client} gets the close frame"));
    }

    /// A frame has come: is it one that may come now?
    pub fn arrives(&mut self, client: usize, message: ServerMessage) {
        self.trace.note(|| match &message {
            ServerMessage::DownloadBlob { instance_id, chunk_index, .. } => {
                format!("{client} gets chunk {chunk_index} of {instance_id}")
            }
            other => format!("{client} gets {:.120}", format!("{other:?}")),
        });
        assert!(!self.clients[client].closed, "a frame after the last");
        match message {
            ServerMessage::Response { corr_id, successful, result } => {
                self.answered(client, corr_id, if successful { Ok(result) } else { Err(result) });
            }
            ServerMessage::ServerEvent { .. } => {
                let expected = self.clients[client].expected.pop_front();
                assert!(matches!(expected, Some((_, Expect::Notice))), "a notice of nothing");
            }
            ServerMessage::InstanceEvent { instance_id, event: 0, message } => {
                let instance = self.of(client, &instance_id);
                self.told(client, instance, Said::Message(message));
            }
            ServerMessage::InstanceEvent { instance_id, event, message } => {
                let instance = self.of(client, &instance_id);
                self.ended(client, instance, event, &message);
            }
            ServerMessage::DownloadBlob {
                instance_id,
                blob_hash,
                chunk_index,
                total_chunks,
                chunk_data,
                ..
            } => {
                let instance = self.of(client, &instance_id);
                let view = &mut self.clients[client];
                view.introduced.insert(instance);
                assert!(view.introduced.len() <= view.pings, "a blob of an instance that was not introduced");
                let download = view.download.get_or_insert_with(|| Download {
                    instance,
                    next: 0,
                    total: total_chunks,
                    bytes: Vec::new(),
                });
                assert_eq!(
                    (download.instance, download.next),
                    (instance, chunk_index),
                    "chunks of two blobs"
                );
                assert_eq!(download.total, total_chunks);
                download.bytes.extend(chunk_data);
                download.next += 1;
                if download.next == total_chunks {
                    let bytes = std::mem::take(&mut download.bytes);
                    view.download = None;
                    assert_eq!(blake3::hash(&bytes).to_hex().as_str(), blob_hash);
                    self.told(client, instance, Said::Blob(bytes.into()));
                }
            }
        }
    }

    /// The instance that a frame is about: this client's, known to it, and not ended.
    fn of(&mut self, client: usize, instance: &str) -> InstanceId {
        let instance: InstanceId = instance.parse().expect("an id");
        let life = self.life(instance);
        assert_eq!(life.client, client, "another client's instance");
        assert!(life.known.is_some(), "the launch is not answered yet");
        assert!(!life.told, "after the last event");
        instance
    }

    fn told(&mut self, client: usize, instance: InstanceId, what: Said) {
        let download = self.clients[client].download.as_ref();
        assert!(download.is_none_or(|d| d.instance != instance), "in the middle of a blob");
        let life = self.life(instance);
        let said = life.said.pop_front();
        assert!(said.as_ref() == Some(&what), "an event is lost, doubled or out of order");
        life.said_bytes -= what.bytes();
    }

    fn ended(&mut self, client: usize, instance: InstanceId, code: u32, text: &str) {
        let quotas = self.quotas;
        let download = self.clients[client].download.as_ref();
        assert!(download.is_none_or(|d| d.instance != instance), "in the middle of a blob");
        let prompt = self.clients[client].prompt;
        let life = self.life(instance);
        assert!(life.said.is_empty(), "the last event overtakes {} others", life.said.len());
        life.told = true;
        let ending = life.ending(&quotas);
        assert_eq!((code, text), (ending.code(), &*ending.message()), "another end");
        if let Some(known) = life.known.filter(|_| prompt && life.talks) {
            assert!(fake::passed() - known <= PROMPT, "a talker is held up");
        }
        assert!(self.directory.find(instance).is_none(), "ended and still to be found");
        self.gone.push(instance);
        self.clients[client].last_told = Some(instance);
    }

    fn answered(&mut self, client: usize, corr_id: u32, answer: Result<String, String>) {
        let view = &mut self.clients[client];
        let (asked, expected) = view.expected.pop_front().expect("an answer to nothing");
        assert!(!view.prompt || fake::passed() - asked <= PROMPT, "an answer is held up");
        match expected {
            Expect::Launched(expected) => {
                assert_eq!(corr_id, expected, "another answer is due");
                let instance: InstanceId = answer.expect("launched").parse().expect("an id");
                let life = self.life(instance);
                assert!(life.client == client && life.known.is_none(), "launched once, for this client");
                life.known = Some(fake::passed());
            }
            Expect::Exactly(expected, text) => assert_eq!((corr_id, answer), (expected, text)),
            Expect::Status(expected) => {
                assert_eq!(corr_id, expected, "another answer is due");
                assert!(answer.is_ok_and(|text| text.contains("instances.active_count")));
            }
            Expect::Blob(expected, instance, told) => {
                assert_eq!(corr_id, expected, "another answer is due");
                let not_owned = format!("Instance not owned by client: {instance}");
                match answer {
                    Ok(text) => assert!(!told && text == "Blob sent to instance", "{text}; told: {told}"),
                    Err(text) => {
                        assert_eq!(text, not_owned);
                        let ends = self.life(instance).is_ending();
                        assert!(ends, "an instance that lives is not owned");
                    }
                }
            }
            Expect::Notice => panic!("an answer where a notice is due"),
        }
    }

    // ---- what must hold whenever nothing more can happen at this time ----

    pub fn check(&self) {
        for view in &self.clients {
            view.link.check();
        }
        for (instance, life) in &self.lives {
            let orphan = self.clients[life.client].over && life.started.is_some() && !life.over;
            assert!(!orphan, "{instance} outlives its connection");
        }
    }

    pub fn check_the_end(&self) {
        self.check();
        for (client, view) in self.clients.iter().enumerate() {
            assert!(view.over, "the connection of {client} has not ended");
        }
        for (instance, life) in &self.lives {
            assert!(life.over || life.started.is_none(), "{instance} is still there");
        }
    }
}

impl Life {
    /// It has come to an end that its client may not have been told yet.
    fn is_ending(&self) -> bool {
        self.own.is_some() || self.end.get().is_some() || self.over
    }

    /// How it ended, by what is on record.
    fn ending(&self, quotas: &Quotas) -> Ending {
        if let Some(own) = &self.own {
            return own.clone();
        }
        let Some(decided) = self.end.get() else {
            let started = self.started.expect("it ran");
            let wall_clock = Duration::from_secs(quotas.get(Name::WallClock));
            assert!(fake::passed() - started >= wall_clock, "ended by nobody");
            return Ending::quota(quotas.over(Name::WallClock));
        };
        let noticed = self.notice.as_ref().map(|notice| match notice {
            Notice::Evict(_) => Ending::evicted(),
            Notice::OutOfPages { why, .. } => Ending::Exception(format!("OOM unrecoverable: {why}")),
            Notice::Quota { quota, .. } => Ending::quota(*quota),
            Notice::Misuse { what, .. } => Ending::trapped(Trap::error(what.clone())),
        });
        let reasons = self.asked.first().into_iter().chain(&noticed);
        assert!(reasons.clone().any(|reason| reason == decided), "nobody decided on {decided:?}");
        decided.clone()
    }
}
