//! One connection's I/O: frames in, effects performed, frames out, and a clean end.
//!
//! Owns: the order of what the client sees (an answer to a launch before every frame of the instance, an instance's events in
//! order, the last one exactly once), the bounds on a client that does not read, and the end of all its instances
//! when it goes. Never: what a message means (`session`) or does (`house`).
//!
//! Three kinds of futures share one connection: the conversation reads frames and answers them, one forwarder per
//! instance turns events into frames, and the writer alone writes. They meet in a short bounded queue, so a slow
//! reader holds back its own instances and its own requests, nobody else's.

use super::session::{Effect, Session};
use super::{Door, House, download};
use crate::identity::{InstanceId, ProgramHash};
use crate::limits;
use crate::runtime::{Ending, InstanceEvent, What};
use crate::wire::{ClientMessage, ServerMessage, Undecodable};
use async_tungstenite::tungstenite::error::Error as WsError;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use event_listener::Event;
use smol::channel::{Receiver, Sender};
use smol::future::or;
use smol::lock::Mutex;
use smol::net::TcpStream;
use smol::stream::StreamExt;
use smol::{Executor, Timer};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Closed (never written) when the server stops.
pub type Closing = Receiver<Infallible>;

/// Why a conversation ended.
#[derive(Debug)]
enum Over {
    /// The client left, or cannot be written to.
    Gone,
    /// The client broke the carrier's rules.
    Refused(CloseCode, &'static str),
    /// Nobody authenticated in time.
    Stranger,
    TokenExpired,
    Stopping,
}

impl Over {
    /// How the client's instances end, and what is said to the client.
    fn terms(&self) -> (Ending, Option<(CloseCode, &'static str)>) {
        match self {
            Over::Gone => (Ending::Disconnected, None),
            Over::Refused(code, reason) => (Ending::Disconnected, Some((*code, reason))),
            Over::Stranger => (Ending::Disconnected, Some((CloseCode::Policy, "not authenticated in time"))),
            Over::TokenExpired => (Ending::Expired, Some((CloseCode::Policy, "token expired"))),
            Over::Stopping => (
                Ending::ServerError("The server is stopping".to_owned()),
                Some((CloseCode::Away, "server stopping")),
            ),
        }
    }
}

/// Serves one client until it, its token or the server ends.
pub async fn serve<H: House>(socket: WebSocketStream<TcpStream>, door: &Door<H>, closing: Closing) {
    let raw = socket.get_ref().clone();
    let (sender, receiver) = socket.split();
    let (frames, outbox) = smol::channel::bounded(limits::FRAMES_IN_FLIGHT);
    let (ends, ended) = smol::channel::bounded(limits::INSTANCES_PER_CONNECTION);
    let executor = Executor::new();
    let mut writer = executor.spawn(write(sender, outbox));
    let mut connection = Connection {
        session: Session::new(door.verifier.as_ref(), door.uploads.clone()),
        io: Io { door, frames, ends: Some(ends), shared: Arc::default(), executor: &executor },
        ended,
        since: Instant::now(),
        closing,
    };
    executor
        .run(async {
            let over = or(connection.converse(receiver), async {
                (&mut writer).await;
                Over::Gone
            });
            let over = over.await;
            tracing::debug!(?over, "a connection ends");
            connection.part(over, writer, raw).await;
        })
        .await;
}

struct Connection<'c, H: House> {
    session: Session<'c>,
    io: Io<'c, H>,
    /// Instances whose last event is about to be sent; closed when all of them have had it.
    ended: Receiver<InstanceId>,
    since: Instant,
    closing: Closing,
}

/// However a connection ends, also by a panic, its instances end with it. The first ending given to one counts.
impl<H: House> Drop for Connection<'_, H> {
    fn drop(&mut self) {
        self.session
            .owned()
            .iter()
            .for_each(|&instance| self.io.door.house.end(instance, Ending::Disconnected));
    }
}

enum Input {
    Frame(Option<Result<Message, WsError>>),
    Ended(InstanceId),
    Over(Over),
}

impl<H: House> Connection<'_, H> {
    /// Reads and answers until something ends it.
    async fn converse(&mut self, mut receiver: WebSocketReceiver<TcpStream>) -> Over {
        loop {
            let watch = Watch { until: self.until(), closing: &self.closing };
            // A client that sends without pause must not outlive its token, nor starve the others.
            if let Some(over) = watch.passed() {
                return over;
            }
            smol::future::yield_now().await;
            let frame = async { Input::Frame(receiver.next().await) };
            let ended = async {
                match self.ended.recv().await {
                    Ok(instance) => Input::Ended(instance),
                    Err(_) => std::future::pending().await,
                }
            };
            let over = async { Input::Over(watch.ring().await) };
            let input = or(frame, or(ended, over)).await;
            // A client that has read a last event finds the instance gone, whatever it asks next.
            while let Ok(instance) = self.ended.try_recv() {
                self.session.ended(instance);
            }
            let effect = match input {
                Input::Frame(Some(Ok(Message::Binary(frame)))) => match ClientMessage::decode(&frame) {
                    Ok(message) => self.session.step(message, OffsetDateTime::now_utc()),
                    Err(undecodable) => self.session.unreadable(undecodable),
                },
                Input::Frame(Some(Ok(Message::Text(_)))) => self.session.unreadable(Undecodable {
                    corr_id: None,
                    reason: "Text frames are not read; send MessagePack in binary frames".to_owned(),
                }),
                Input::Frame(Some(Ok(Message::Pong(payload)))) => {
                    self.io.shared.pong(&payload);
                    None
                }
                // Pings are answered by the carrier; a close is, too, on the next read, which then ends the stream.
                Input::Frame(Some(Ok(_))) => None,
                Input::Frame(Some(Err(e))) => return refused(&e),
                Input::Frame(None) => return Over::Gone,
                Input::Ended(instance) => {
                    self.session.ended(instance);
                    None
                }
                Input::Over(over) => return over,
            };
            let Some(effect) = effect else { continue };
            let watch = Watch { until: self.until(), closing: &self.closing };
            let perform = self.io.perform(&mut self.session, effect);
            let over = async { Err(watch.ring().await) };
            if let Err(over) = or(async { perform.await.ok_or(Over::Gone) }, over).await {
                return over;
            }
        }
    }

    fn until(&self) -> Until {
        match self.session.grant() {
            None => Until::Instant(self.since + limits::AUTHENTICATE_WITHIN),
            Some(grant) => grant.expires.map_or(Until::Never, Until::Date),
        }
    }

    /// Ends the instances; and where the client still listens, gives it their last events and a close frame.
    async fn part(&mut self, over: Over, writer: smol::Task<()>, raw: TcpStream) {
        let (ending, farewell) = over.terms();
        for &instance in self.session.owned() {
            self.io.door.house.end(instance, ending.clone());
        }
        let Some((code, reason)) = farewell else { return };
        self.io.ends = None;
        // Closed once every forwarder has sent the last event of its instance.
        let last_events = async { while self.ended.recv().await.is_ok() {} };
        let late = async {
            Timer::after(limits::FAREWELL).await;
        };
        or(last_events, late).await;
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let goodbye = async {
            if self.io.frames.send(close).await.is_ok() {
                self.io.frames.close();
                writer.await;
                linger(raw).await;
            }
        };
        let late = async {
            Timer::after(limits::FAREWELL).await;
        };
        or(goodbye, late).await;
    }
}

/// What performing an effect needs; all of it shared.
struct Io<'c, H> {
    door: &'c Door<H>,
    frames: Sender<Message>,
    /// A clone for each forwarder; none when no more will be started.
    ends: Option<Sender<InstanceId>>,
    shared: Arc<Shared>,
    executor: &'c Executor<'static>,
}

impl<H: House> Io<'_, H> {
    /// None: the client cannot be written to.
    async fn perform(&self, session: &mut Session<'_>, effect: Effect) -> Option<()> {
        let house = &self.door.house;
        let known = |program: &str| ProgramHash::from_hex(program).filter(|hash| house.contains(hash));
        let (corr_id, answer) = match effect {
            Effect::Answer { corr_id, answer } => (corr_id, answer),
            Effect::Notify(message) => return self.send(ServerMessage::ServerEvent { message }).await,
            Effect::Exists { corr_id, program } => (corr_id, Ok(known(&program).is_some().to_string())),
            Effect::Status { corr_id } => {
                let status = house.status().await;
                (corr_id, serde_json::to_string(&status).map_err(|e| e.to_string()))
            }
            Effect::Store { corr_id, upload } => {
                let stored = house.put(upload.bytes).await;
                drop(upload.held); // counted until the house had dealt with them
                (corr_id, stored.map(|hash| hash.to_string()))
            }
            Effect::Launch { corr_id, program, arguments } => {
                let Some(hash) = known(&program) else {
                    return self.answer(corr_id, Err(no_such_program(&program))).await;
                };
                return self.launch(session, corr_id, hash, arguments).await;
            }
            Effect::LaunchServer { corr_id, program } => {
                let why = match known(&program) {
                    None => no_such_program(&program),
                    Some(_) => "This server does not serve HTTP programs; use launch_instance".to_owned(),
                };
                (corr_id, Err(why))
            }
            Effect::Signal { instance, message } => {
                house.signal(instance, message);
                return Some(());
            }
            Effect::GiveBlob { corr_id, instance, upload } => {
                house.give_blob(instance, upload.bytes.into());
                (corr_id, Ok("Blob sent to instance".to_owned()))
            }
            Effect::Terminate { instance } => {
                house.end(instance, Ending::Aborted);
                return Some(());
            }
        };
        self.answer(corr_id, answer).await
    }

    /// The order matters: registered, answered, and only then able to send anything.
    async fn launch(
        &self,
        session: &mut Session<'_>,
        corr_id: u32,
        program: ProgramHash,
        arguments: Vec<String>,
    ) -> Option<()> {
        let subject = session.grant()?.subject.clone();
        let (events, received) = smol::channel::bounded(limits::EVENTS_IN_FLIGHT);
        let ready = match self.door.house.prepare(&program, arguments, subject, events) {
            Ok(ready) => ready,
            Err(refusal) => return self.answer(corr_id, Err(refusal)).await,
        };
        let instance = ready.instance;
        session.own(instance);
        self.answer(corr_id, Ok(instance.to_string())).await?;
        let (frames, ends, shared) = (self.frames.clone(), self.ends.clone()?, self.shared.clone());
        self.executor
            .spawn(async move {
                // None: nobody reads any more, and the connection is ending.
                let _ = forward(instance, received, &frames, &ends, &shared).await;
            })
            .detach();
        (ready.start)();
        Some(())
    }

    async fn answer(&self, corr_id: u32, answer: Result<String, String>) -> Option<()> {
        let successful = answer.is_ok();
        let (Ok(result) | Err(result)) = answer;
        self.send(ServerMessage::Response { corr_id, successful, result }).await
    }

    async fn send(&self, message: ServerMessage) -> Option<()> {
        self.frames.send(Message::Binary(message.encode().into())).await.ok()
    }
}

fn no_such_program(program: &str) -> String {
    format!("No such program with hash={program}")
}

/// Turns the events of one instance into frames, in order, the last one always. None: nobody reads any more.
async fn forward(
    instance: InstanceId,
    events: Receiver<InstanceEvent>,
    frames: &Sender<Message>,
    ends: &Sender<InstanceId>,
    shared: &Shared,
) -> Option<()> {
    let event = |event, message| {
        let instance_id = instance.to_string();
        Message::Binary(ServerMessage::InstanceEvent { instance_id, event, message }.encode().into())
    };
    let mut introduced = false;
    loop {
        // A channel that closes without a last event still makes one: clients wait for it.
        let what = events.recv().await.map_or_else(
            |_| What::Ended(Ending::ServerError("The server lost the instance".to_owned())),
            |event| event.what,
        );
        match what {
            What::Message(text) => frames.send(event(0, text)).await.ok()?,
            What::Blob(blob) => {
                if !introduced {
                    shared.settle(frames).await?;
                    introduced = true;
                }
                let _turn = shared.downloads.lock().await;
                for frame in download::frames(instance, &blob) {
                    frames.send(Message::Binary(frame.encode().into())).await.ok()?;
                }
            }
            What::Ended(ending) => {
                ends.send(instance).await.ok()?; // before the client can know
                return frames.send(event(ending.code(), ending.message())).await.ok();
            }
        }
    }
}

/// What the forwarders of one connection share.
#[derive(Default)]
struct Shared {
    /// One blob at a time.
    downloads: Mutex<()>,
    /// Pings sent and answered, counted; a ping carries its number.
    pings: AtomicU64,
    pongs: AtomicU64,
    answered: Event,
}

impl Shared {
    /// Waits until the client has read what was sent before: pie-client drops a blob of an instance that it does not
    /// know yet. A client that answers no pings is waited for only so long. None: nobody reads any more.
    async fn settle(&self, frames: &Sender<Message>) -> Option<()> {
        let number = self.pings.fetch_add(1, Ordering::Relaxed) + 1;
        frames.send(Message::Ping(number.to_be_bytes().to_vec().into())).await.ok()?;
        let answered = async {
            loop {
                let listener = self.answered.listen();
                if self.pongs.load(Ordering::Acquire) >= number {
                    return;
                }
                listener.await;
            }
        };
        let late = async {
            Timer::after(limits::PONG_WAIT).await;
        };
        or(answered, late).await;
        Some(())
    }

    /// A pong answers its ping and all earlier ones: a peer may answer only the latest.
    fn pong(&self, payload: &[u8]) {
        if let Ok(number) = payload.try_into().map(u64::from_be_bytes)
            && number <= self.pings.load(Ordering::Relaxed)
        {
            self.pongs.fetch_max(number, Ordering::Release);
            self.answered.notify(usize::MAX);
        }
    }
}

/// Writes frames as they come. Ends when there are no more, when the client is gone, or when it has not taken one
/// frame in [`limits::READ_STALL`].
async fn write(mut sender: WebSocketSender<TcpStream>, outbox: Receiver<Message>) {
    while let Ok(frame) = outbox.recv().await {
        let sent = async { sender.send(frame).await.is_ok() };
        let stalled = async {
            Timer::after(limits::READ_STALL).await;
            tracing::info!("a client does not read; it is disconnected");
            false
        };
        if !or(sent, stalled).await {
            return;
        }
    }
}

/// Takes what the client still sends, until it closes: closing with unread bytes resets the connection, and the close
/// frame would be lost with it.
async fn linger(mut raw: TcpStream) {
    use smol::io::AsyncReadExt;
    let _ = raw.shutdown(std::net::Shutdown::Write);
    let mut scrap = [0; 4096];
    while raw.read(&mut scrap).await.is_ok_and(|bytes| bytes > 0) {}
}

fn refused(error: &WsError) -> Over {
    match error {
        WsError::Capacity(_) => Over::Refused(CloseCode::Size, "a frame may have 1 MiB"),
        WsError::Protocol(_) => Over::Refused(CloseCode::Protocol, "not the WebSocket protocol"),
        WsError::Utf8(_) => Over::Refused(CloseCode::Invalid, "a text frame that is not UTF-8"),
        _ => Over::Gone,
    }
}

/// When a conversation must end whatever the client does.
#[derive(Clone, Copy)]
enum Until {
    Never,
    Instant(Instant),
    /// By the wall clock, which may be set while we wait.
    Date(OffsetDateTime),
}

struct Watch<'c> {
    until: Until,
    closing: &'c Closing,
}

impl Watch<'_> {
    fn passed(&self) -> Option<Over> {
        if self.closing.is_closed() {
            return Some(Over::Stopping);
        }
        match self.until {
            Until::Instant(at) if at <= Instant::now() => Some(Over::Stranger),
            Until::Date(at) if at <= OffsetDateTime::now_utc() => Some(Over::TokenExpired),
            _ => None,
        }
    }

    /// Waits until it has passed.
    async fn ring(&self) -> Over {
        loop {
            if let Some(over) = self.passed() {
                return over;
            }
            let timer = match self.until {
                Until::Never => Timer::never(),
                Until::Instant(at) => Timer::at(at),
                Until::Date(at) => {
                    // A clock that is set forward is noticed within the cap.
                    let left = Duration::try_from(at - OffsetDateTime::now_utc()).unwrap_or_default();
                    Timer::after(left.min(limits::CLOCK_CHECK) + Duration::from_millis(1))
                }
            };
            let stopped = async {
                let _ = self.closing.recv().await; // an error: closed
            };
            let rang = async {
                timer.await;
            };
            or(stopped, rang).await;
        }
    }
}
