//! The door as a whole, over loopback, with a scripted house behind it: a guest does what its arguments say.

use super::*;
use crate::auth::{Claims, Grant, Role, SecretKey, Token, mint};
use crate::client::{Client, Event};
use crate::host::common::Blob;
use crate::identity::{InstanceId, ProgramHash, Subject};
use crate::limits;
use crate::pacer::Pacer;
use crate::runtime::{Ending, InstanceEvent, What, events};
use crate::wire::upload::Upload;
use crate::wire::{ClientMessage, ServerMessage};
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::Message;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use smol::channel::{Receiver, Sender};
use smol::future::or;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use smol::stream::StreamExt;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

mod crowd;
mod debt;

/// What a test waits for before it calls the server stuck.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Script(Arc<Played>);

#[derive(Default)]
struct Played {
    programs: Mutex<HashSet<ProgramHash>>,
    guests: Mutex<HashMap<InstanceId, Guest>>,
    /// Whether every subject has used far more of the io thread than its part.
    owes: AtomicBool,
    /// How instances were told to end at first, in order.
    told: Mutex<Vec<(InstanceId, Ending)>>,
}

struct Guest {
    inbox: Sender<String>,
    end: Sender<Ending>,
}

impl House for Script {
    fn contains(&self, program: &ProgramHash) -> bool {
        self.0.programs.lock().unwrap().contains(program)
    }

    async fn put(&self, program: Upload) -> Result<ProgramHash, String> {
        if program.bytes.starts_with(b"bad") {
            return Err("this is no component".to_owned());
        }
        let hash = ProgramHash::of(&program.bytes);
        self.0.programs.lock().unwrap().insert(hash);
        Ok(hash)
    }

    async fn prepare(
        &self,
        _program: &ProgramHash,
        arguments: Vec<String>,
        grant: &Grant,
        events: events::Sender,
    ) -> Result<Ready, String> {
        let subject = grant.subject.clone();
        match arguments.first().map(String::as_str) {
            Some("panic") => panic!("a fault of the house, as scripted"),
            Some("full") => return Err("no place".to_owned()),
            Some("never") => std::future::pending().await,
            _ => {}
        }
        let instance = InstanceId::random();
        let (inbox, signals) = smol::channel::unbounded();
        let (end, ended) = smol::channel::unbounded();
        self.0.guests.lock().unwrap().insert(instance, Guest { inbox, end });
        let start = move || smol::spawn(play(instance, arguments, subject, events, signals, ended)).detach();
        Ok(Ready { instance, start: Box::new(start) })
    }

    fn pacer(&self, _subject: &Subject) -> Pacer {
        match self.0.owes.load(Ordering::Relaxed) {
            true => Pacer::new(Arc::new(|_| PATIENCE)),
            false => Pacer::default(),
        }
    }

    fn signal(&self, instance: InstanceId, message: String) {
        let _ = self.0.guests.lock().unwrap()[&instance].inbox.try_send(message);
    }

    fn give_blob(&self, instance: InstanceId, blob: Arc<[u8]>) {
        self.signal(instance, format!("a blob of {}", blob.len()));
    }

    fn end(&self, instance: InstanceId, ending: Ending) {
        let mut told = self.0.told.lock().unwrap();
        if told.iter().all(|(known, _)| *known != instance) {
            told.push((instance, ending.clone()));
        }
        let _ = self.0.guests.lock().unwrap()[&instance].end.try_send(ending); // it may have ended by itself
    }

    async fn status(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("m.model.name".to_owned(), "m".to_owned())])
    }
}

/// Each argument is a step: `say TEXT`, `blob BYTES`, `hear` (a signal, and say it), `whose`, `flood`, `wait`, `vanish`.
async fn play(
    instance: InstanceId,
    steps: Vec<String>,
    subject: Subject,
    events: events::Sender,
    signals: Receiver<String>,
    ended: Receiver<Ending>,
) {
    let send = async |what| events.send(InstanceEvent { instance, what }).await.is_ok();
    let acts = async {
        for step in &steps {
            let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
            match verb {
                "say" => drop(send(What::Message(rest.to_owned())).await),
                "whose" => drop(send(What::Message(subject.as_str().to_owned())).await),
                "blob" => drop(send(What::Blob(Blob::nobodys(blob(rest.parse().unwrap())))).await),
                "hear" => drop(send(What::Message(signals.recv().await.unwrap())).await),
                "flood" => while send(What::Message("x".repeat(100_000))).await {},
                "wait" => std::future::pending().await,
                "vanish" => return None,
                other => panic!("no such step: {other}"),
            }
        }
        Some(Ending::Completed("done".to_owned()))
    };
    if let Some(ending) = or(acts, async { ended.recv().await.ok() }).await {
        send(What::Ended(ending)).await;
    }
}

fn blob(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8).collect()
}

/// A server on a thread of its own.
struct Server {
    url: String,
    house: Script,
    stop: Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(verifier: Option<Verifier>) -> Server {
        let listener = smol::block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let house = Script::default();
        let door = Door::new(
            house.clone(),
            verifier,
            Names { hosts: vec![], origins: vec!["https://app.example".to_owned()] },
        );
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let shutdown = async move {
            let _ = stopped.recv().await; // closed
        };
        let thread = std::thread::spawn(move || smol::block_on(run(listener, door, shutdown)));
        Server { url, house, stop, thread: Some(thread) }
    }

    fn open() -> Server {
        Server::start(None)
    }

    async fn client(&self) -> Client {
        Client::connect(&self.url).await.unwrap()
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.url.strip_prefix("ws://").unwrap()).await.unwrap()
    }

    async fn raw(&self) -> Raw {
        let (socket, _) = async_tungstenite::client_async(&self.url, self.tcp().await).await.unwrap();
        Raw { socket, program: String::new() }
    }

    /// Waits until `count` instances were told to end, and says how.
    async fn told(&self, count: usize) -> Vec<Ending> {
        loop {
            let told = self.house.0.told.lock().unwrap().clone();
            if told.len() >= count {
                return told.into_iter().map(|(_, ending)| ending).collect();
            }
            smol::Timer::after(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.close();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server ended by a panic");
    }
}

/// A client that sees frames as they come.
struct Raw {
    socket: WebSocketStream<TcpStream>,
    program: String,
}

impl Raw {
    async fn send(&mut self, message: ClientMessage) {
        self.socket.send(Message::Binary(message.encode().into())).await.unwrap();
    }

    async fn next(&mut self) -> Message {
        self.socket.next().await.expect("a frame").expect("a good frame")
    }

    /// The next message; pings are answered on the way.
    async fn message(&mut self) -> ServerMessage {
        loop {
            if let Message::Binary(frame) = self.next().await {
                return ServerMessage::decode(&frame).unwrap();
            }
        }
    }

    /// The code of the close frame that ends the connection, messages before it passed over.
    async fn close_code(&mut self) -> CloseCode {
        loop {
            if let Message::Close(close) = self.next().await {
                return close.expect("a reason").code;
            }
        }
    }

    async fn upload(&mut self) {
        let (program_hash, chunk_data) = (ProgramHash::of(b"program").to_string(), b"program".to_vec());
        self.program = program_hash.clone();
        self.send(ClientMessage::UploadProgram {
            corr_id: 0,
            program_hash,
            chunk_index: 0,
            total_chunks: 1,
            chunk_data,
        })
        .await;
        assert!(matches!(self.message().await, ServerMessage::Response { successful: true, .. }));
    }

    async fn launch(&mut self, corr_id: u32, steps: &[&str]) {
        let arguments = steps.iter().map(|step| step.to_string()).collect();
        self.send(ClientMessage::LaunchInstance { corr_id, program_hash: self.program.clone(), arguments })
            .await;
    }
}

fn test<T>(body: impl Future<Output = T>) -> T {
    smol::block_on(or(body, async {
        smol::Timer::after(PATIENCE).await;
        panic!("the server is stuck");
    }))
}

async fn launch(client: &mut Client, steps: &[&str]) -> String {
    let hash = client.upload_program(b"program").await.unwrap();
    client.launch(&hash, steps.iter().map(|step| step.to_string()).collect()).await.unwrap()
}

fn completed() -> Event {
    Event::Ended { code: 1, text: "done".to_owned() }
}

#[test]
fn a_session_from_upload_to_the_last_event() {
    let server = Server::open();
    test(async {
        let mut client = server.client().await;
        let program = blob(2 * limits::CHUNK_BYTES + 1);
        let hash = blake3::hash(&program).to_hex().to_string();
        assert!(!client.program_exists(&hash).await.unwrap());
        assert_eq!(client.upload_program(&program).await.unwrap(), hash);
        assert!(client.program_exists(&hash).await.unwrap());
        assert!(!client.program_exists("nonsense").await.unwrap());
        let refused = client.upload_program(b"bad").await.unwrap_err();
        assert_eq!(refused.to_string(), "The server did not take the program: this is no component.");
        let unknown = client.launch("nonsense", vec![]).await.unwrap_err();
        assert!(unknown.to_string().contains("No such program with hash=nonsense"), "{unknown}");
        let full = client.launch(&hash, vec!["full".to_owned()]).await.unwrap_err();
        assert!(full.to_string().contains("no place"));
        assert_eq!(client.query("model_status", "").await.unwrap(), r#"{"m.model.name":"m"}"#);

        let instance = launch(&mut client, &["say a", "hear", "whose", "hear", "wait"]).await;
        client.signal(&instance, "from outside").await.unwrap();
        client.upload_blob(&instance, &blob(300_000)).await.unwrap();
        for text in ["a", "from outside", "", "a blob of 300000"] {
            assert_eq!(client.next_event(&instance).await.unwrap(), Event::Message(text.to_owned()));
        }
        client.terminate(&instance).await.unwrap();
        let ended = Event::Ended { code: 2, text: "Signal termination".to_owned() };
        assert_eq!(client.next_event(&instance).await.unwrap(), ended);
        let gone = client.upload_blob(&instance, b"late").await.unwrap_err().to_string();
        assert!(gone.contains(&format!("Instance not owned by client: {instance}")), "{gone}");

        let instance = launch(&mut client, &["vanish"]).await;
        let lost = client.next_event(&instance).await.unwrap();
        assert!(matches!(lost, Event::Ended { code: 4, .. }), "{lost:?}");
        client.close().await;
    });
}

/// Programs that end at once: the answer to the launch is the first frame of each, the last event comes, once.
#[test]
fn nothing_comes_before_the_launch_is_answered_and_nothing_is_lost() {
    let server = Server::open();
    test(async {
        let mut raw = server.raw().await;
        raw.upload().await;
        let many = 100;
        for corr_id in 1..=many {
            raw.launch(corr_id, &["say a", "say b"]).await;
        }
        let mut seen: HashMap<String, Vec<String>> = HashMap::new();
        while seen.values().map(Vec::len).sum::<usize>() < 3 * many as usize || seen.len() < many as usize {
            match raw.message().await {
                ServerMessage::Response { successful, result, .. } => {
                    assert!(successful && seen.insert(result, vec![]).is_none());
                }
                ServerMessage::InstanceEvent { instance_id, message, .. } => {
                    seen.get_mut(&instance_id).expect("answered before").push(message);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(seen.values().all(|events| *events == ["a", "b", "done"]));
    });
}

#[test]
fn blobs_come_whole_one_at_a_time_and_after_a_pong() {
    let server = Server::open();
    test(async {
        let mut client = server.client().await;
        let sizes = ["blob 0", "blob 1", "blob 262144", "blob 800000", "say after"];
        let instance = launch(&mut client, &sizes).await;
        for bytes in [0, 1, 262_144, 800_000] {
            assert_eq!(client.next_event(&instance).await.unwrap(), Event::Blob(blob(bytes)));
        }
        assert_eq!(client.next_event(&instance).await.unwrap(), Event::Message("after".to_owned()));
        assert_eq!(client.next_event(&instance).await.unwrap(), completed());

        let mut raw = server.raw().await;
        raw.upload().await;
        let guests = 5;
        for corr_id in 0..guests {
            raw.launch(corr_id, &["blob 700000"]).await;
        }
        let (mut pings, mut blobs, mut open) = (0, 0, None);
        while blobs < guests {
            let frame = match raw.next().await {
                Message::Ping(_) => {
                    pings += 1;
                    continue;
                }
                Message::Binary(frame) => frame,
                other => panic!("{other:?}"),
            };
            let ServerMessage::DownloadBlob { instance_id, chunk_index, total_chunks, .. } =
                ServerMessage::decode(&frame).unwrap()
            else {
                continue;
            };
            assert!(pings > blobs, "a ping goes before the first blob of each instance");
            let (owner, next) = open.take().unwrap_or((instance_id.clone(), 0));
            assert_eq!((&owner, next), (&instance_id, chunk_index), "another blob came in between");
            match chunk_index + 1 == total_chunks {
                true => blobs += 1,
                false => open = Some((owner, next + 1)),
            }
        }
        assert_eq!(pings, guests);
    });
}

#[test]
fn a_client_that_leaves_takes_its_instances_along() {
    let server = Server::open();
    test(async {
        let mut stays = server.client().await;
        let instance = launch(&mut stays, &["hear"]).await;
        let mut leaves = server.raw().await;
        leaves.upload().await;
        leaves.launch(1, &["wait"]).await;
        leaves.launch(2, &["flood"]).await;
        for _ in 0..2 {
            while !matches!(leaves.message().await, ServerMessage::Response { .. }) {}
        }
        drop(leaves);
        assert_eq!(server.told(2).await, [Ending::Disconnected, Ending::Disconnected]);
        stays.signal(&instance, "still here").await.unwrap();
        assert_eq!(stays.next_event(&instance).await.unwrap(), Event::Message("still here".to_owned()));
    });
}

/// The story: while a program was translated for a launch, or an upload written, nobody read what its client sent.
#[test]
fn an_end_or_a_leave_is_seen_while_a_request_takes_its_time() {
    let server = Server::open();
    test(async {
        let mut raw = server.raw().await;
        raw.upload().await;
        let mut instances = vec![];
        for corr_id in 0..2 {
            raw.launch(corr_id, &["wait"]).await;
            match raw.message().await {
                ServerMessage::Response { successful: true, result, .. } => instances.push(result),
                other => panic!("{other:?}"),
            }
        }
        raw.launch(2, &["never"]).await;
        raw.send(ClientMessage::Query { corr_id: 3, subject: "model_status".into(), record: String::new() })
            .await;
        raw.send(ClientMessage::TerminateInstance { instance_id: instances[0].clone() }).await;
        match raw.message().await {
            ServerMessage::InstanceEvent { instance_id, event: 2, .. } => {
                assert_eq!(instance_id, instances[0])
            }
            other => panic!("{other:?}, though what came before is not answered yet"),
        }
        drop(raw);
        assert_eq!(server.told(2).await, [Ending::Aborted, Ending::Disconnected]);
    });
}

/// Its requests go unanswered and its guests wait; others are served as ever; in the end it is disconnected.
#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let server = Server::open();
    test(async {
        let mut silent = server.raw().await;
        silent.upload().await;
        // They flood once all are launched: an answer would have to wait behind what the client does not read.
        let mut floods = vec![];
        for corr_id in 0..5 {
            silent.launch(corr_id, &["hear", "flood"]).await;
            match silent.message().await {
                ServerMessage::Response { successful: true, result, .. } => floods.push(result),
                other => panic!("{other:?}"),
            }
        }
        for instance_id in floods {
            silent.send(ClientMessage::SignalInstance { instance_id, message: "now".to_owned() }).await;
        }
        let mut client = server.client().await;
        for round in 0..50 {
            let instance = launch(&mut client, &["say a"]).await;
            assert_eq!(
                client.next_event(&instance).await.unwrap(),
                Event::Message("a".to_owned()),
                "{round}"
            );
            assert_eq!(client.next_event(&instance).await.unwrap(), completed());
        }
        assert_eq!(server.told(5).await, vec![Ending::Disconnected; 5]);
        drop(silent);
    });
}

#[test]
fn a_server_that_stops_says_so_to_everyone() {
    let server = Server::open();
    test(async {
        let mut raw = server.raw().await;
        raw.upload().await;
        raw.launch(1, &["wait"]).await;
        assert!(matches!(raw.message().await, ServerMessage::Response { .. }));
        let mut idle = server.raw().await;
        idle.upload().await;
        server.stop.close();
        let last = raw.message().await;
        assert!(matches!(last, ServerMessage::InstanceEvent { event: 4, .. }), "{last:?}");
        assert_eq!(raw.close_code().await, CloseCode::Away);
        assert_eq!(idle.close_code().await, CloseCode::Away);
    });
}

fn guarded() -> (Server, SecretKey) {
    let key = SecretKey::generate().unwrap();
    (Server::start(Some(Verifier::new(vec![key.public()], HashSet::new()))), key)
}

#[test]
fn a_token_decides_whose_the_instances_are_and_until_when() {
    let (server, key) = guarded();
    test(async {
        let mut client = server.client().await;
        let stranger = client.program_exists("x").await.unwrap_err();
        assert!(stranger.to_string().contains("--token-file"), "{stranger}");
        let bad = client.authenticate(&Token::new("v4.public.nonsense")).await.unwrap_err();
        assert!(bad.to_string().contains("Invalid token"), "{bad}");
        let token = mint(&key, &Claims::new("app", Role::User, Duration::from_secs(3600))).unwrap();
        assert_eq!(client.authenticate(&token).await.unwrap(), "app");
        let instance = launch(&mut client, &["whose"]).await;
        assert_eq!(client.next_event(&instance).await.unwrap(), Event::Message("app".to_owned()));

        let mut raw = server.raw().await;
        let short = mint(&key, &Claims::new("app", Role::User, Duration::from_secs(2))).unwrap();
        raw.send(ClientMessage::Authenticate { corr_id: 1, token: short.expose().to_owned() }).await;
        assert!(matches!(raw.message().await, ServerMessage::Response { successful: true, .. }));
        raw.upload().await;
        raw.launch(2, &["wait"]).await;
        assert!(matches!(raw.message().await, ServerMessage::Response { successful: true, .. }));
        let expired = raw.message().await;
        assert!(matches!(expired, ServerMessage::InstanceEvent { event: 3, .. }), "{expired:?}");
        assert_eq!(raw.close_code().await, CloseCode::Policy);
        assert_eq!(server.told(1).await[0], Ending::Expired);
        assert!(client.program_exists("x").await.is_ok(), "the other token is still good");
    });
}

/// A panic while one connection is served closes that one and ends its instances; the others go on.
#[test]
fn a_fault_ends_one_connection_alone() {
    let server = Server::open();
    test(async {
        let mut other = server.client().await;
        let mut raw = server.raw().await;
        raw.upload().await;
        raw.launch(1, &["wait"]).await;
        assert!(matches!(raw.message().await, ServerMessage::Response { successful: true, .. }));
        raw.launch(2, &["panic"]).await;
        while let Some(Ok(_)) = raw.socket.next().await {}
        assert_eq!(server.told(1).await, [Ending::Disconnected]);
        assert!(!other.program_exists("x").await.unwrap());
        assert!(!server.client().await.program_exists("x").await.unwrap());
    });
}

#[test]
fn bad_frames_are_told_about_and_oversized_ones_or_very_many_end_the_connection() {
    let server = Server::open();
    test(async {
        let mut raw = server.raw().await;
        for _ in 0..50 {
            raw.socket.send(Message::text("hello")).await.unwrap();
            raw.socket.send(Message::binary(b"\x81\xa4type".to_vec())).await.unwrap();
        }
        raw.socket.send(Message::binary(b"\x82\xa4type\xa4what\xa7corr_id\x07".to_vec())).await.unwrap();
        let mut told = 0;
        loop {
            match raw.message().await {
                ServerMessage::ServerEvent { .. } => told += 1,
                ServerMessage::Response { corr_id, successful, .. } => {
                    assert_eq!((corr_id, successful, told), (7, false, limits::SERVER_EVENTS_PER_CONNECTION));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        raw.socket.send(Message::binary(vec![0; limits::CLIENT_FRAME_BYTES + 1])).await.unwrap();
        assert_eq!(raw.close_code().await, CloseCode::Size);

        let mut raw = server.raw().await;
        for _ in 0..2 * limits::UNREADABLE_FRAMES {
            raw.socket.send(Message::text("hello")).await.unwrap(); // which takes ten milliseconds each
        }
        assert_eq!(raw.close_code().await, CloseCode::Policy, "it says nothing else");
    });
}

/// Fragments that never make a message: the sender's own affair.
#[test]
fn endless_fragments_hold_up_nobody_else() {
    let server = Server::open();
    test(async {
        let flooding = server.raw().await.socket.into_inner();
        let mut pipe = flooding.clone();
        let flood = smol::spawn(async move {
            // A binary frame that does not end, then continuations of no bytes; masked with zeros, as clients must.
            let mut frames = vec![0x02, 0x80, 0, 0, 0, 0];
            (0..10_000).for_each(|_| frames.extend([0x00, 0x80, 0, 0, 0, 0]));
            while pipe.write_all(&frames).await.is_ok() {
                frames[0] = 0x00;
            }
        });
        let mut client = server.client().await;
        for _ in 0..100 {
            assert!(!client.program_exists("x").await.unwrap());
        }
        flood.cancel().await;
    });
}
