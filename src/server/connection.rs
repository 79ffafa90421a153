//! One connection's I/O: frames in, effects performed, frames out, and a clean end.
//!
//! Owns: the order of what the client sees (an answer to a launch before every frame of the instance, an instance's events in
//! order, the last one exactly once), the bounds on a client that does not read, and the end of all its instances
//! when it goes. Never: what a message means (`session`) or does (`house`).
//!
//! Three kinds of futures share one connection: the conversation reads frames and answers them, one forwarder per
//! instance turns events into frames, and the writer alone writes. They meet in a short bounded queue, so a slow
//! reader holds back its own instances and its own requests, nobody else's.

use super::backlog::Backlog;
use super::carrier::Carrier;
use super::forward::{Shared, forward};
use super::over::{Closing, Over, Until, Watch, refused};
use super::seats::Seat;
use super::session::{Effect, Session};
use super::{Door, House, Ready};
use crate::auth::Grant;
use crate::clock;
use crate::identity::{InstanceId, ProgramHash};
use crate::limits;
use crate::pacer::Pacer;
use crate::runtime::{Ending, events};
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use crate::wire::upload::Upload;
use crate::wire::{ClientMessage, ServerMessage, Undecodable};
use async_tungstenite::tungstenite::error::Error as WsError;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use futures_util::{Sink, SinkExt};
use smol::Executor;
use smol::channel::{Receiver, Sender};
use smol::future::{or, poll_once};
use smol::stream::{Stream, StreamExt};
use std::sync::Arc;
use std::time::Instant;

/// Serves one client until it, its token or the server ends.
pub async fn serve<H: House>(
    carrier: Carrier<
        impl Stream<Item = Result<Message, WsError>> + Unpin,
        impl Sink<Message, Error = WsError> + Unpin + Send + 'static,
        impl Future<Output = ()>,
    >,
    door: &Door<H>,
    seat: Seat,
    closing: Closing,
    pacer: Pacer,
) {
    let Carrier { incoming, outgoing, linger } = carrier;
    let (frames, outbox) = smol::channel::bounded(limits::FRAMES_IN_FLIGHT);
    let (ends, ended) = smol::channel::bounded(limits::INSTANCES);
    let executor = Executor::new();
    let mut writer = executor.spawn(write(outgoing, outbox));
    let mut connection = Connection {
        session: Session::new(door.verifier.as_ref(), door.uploads.clone(), seat),
        io: Io {
            door,
            frames,
            ends: Some(ends),
            shared: Shared::of_one_connection(),
            pacer,
            executor: &executor,
        },
        ended,
        since: clock::now(),
        closing,
    };
    executor
        .run(async {
            let over = or(connection.converse(incoming), async {
                (&mut writer).await;
                Over::Gone
            });
            let over = over.await;
            tracing::debug!(?over, "a connection ends");
            connection.part(over, writer, linger).await;
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
        self.end_instances(Ending::Disconnected);
    }
}

enum Input {
    /// A request is.
    Performed,
    Frame(Option<Result<Message, WsError>>),
    Ended(InstanceId),
    Over(Over),
}

/// What came of a request.
enum Performed {
    /// It is answered, if it is one that is.
    Answered,
    /// The client cannot be written to.
    Gone,
    /// There is an instance of the client's, and nobody has told it yet.
    Launched { corr_id: u32, ready: Ready, events: events::Receiver },
}

impl<H: House> Connection<'_, H> {
    /// Reads and answers until something ends it.
    async fn converse(&mut self, mut incoming: impl Stream<Item = Result<Message, WsError>> + Unpin) -> Over {
        let Connection { session, io, ended, since, closing } = self;
        let io = &*io;
        let mut backlog = Backlog::default();
        loop {
            // Most are performed at once.
            loop {
                if let Some(effect) = backlog.next() {
                    backlog.perform(Box::pin(io.perform(session.grant().cloned(), effect)));
                }
                poll_once(backlog.goes_on()).await;
                match backlog.performed() {
                    None => break,
                    Some(Performed::Answered) => {}
                    Some(Performed::Gone) => return Over::Gone,
                    Some(Performed::Launched { corr_id, ready, events }) => {
                        session.own(ready.instance);
                        backlog.perform(Box::pin(io.begin(corr_id, ready, events)));
                    }
                }
            }
            let watch = Watch { until: until(session, *since), closing };
            // A client that sends without pause must not outlive its token, nor starve the others.
            if let Some(over) = watch.passed() {
                return over;
            }
            smol::future::yield_now().await;
            let reads = backlog.has_room();
            let frame = async {
                match reads {
                    true => Input::Frame(incoming.next().await),
                    false => std::future::pending().await,
                }
            };
            let ends = async {
                match ended.recv().await {
                    Ok(instance) => Input::Ended(instance),
                    Err(_) => std::future::pending().await,
                }
            };
            let over = async { Input::Over(watch.ring().await) };
            let performed = async {
                backlog.goes_on().await;
                Input::Performed
            };
            let input = or(performed, or(frame, or(ends, over))).await;
            // A client that has read a last event finds the instance gone, whatever it asks next.
            while let Ok(instance) = ended.try_recv() {
                session.ended(instance);
            }
            let mut bytes = 0;
            let message = match input {
                Input::Performed => continue,
                Input::Frame(Some(Ok(Message::Binary(frame)))) => {
                    bytes = frame.len();
                    Some(ClientMessage::decode(&frame))
                }
                Input::Frame(Some(Ok(Message::Text(_)))) => Some(Err(Undecodable {
                    corr_id: None,
                    reason: "Text frames are not read; send MessagePack in binary frames".to_owned(),
                })),
                // Pings are answered by the carrier; a close is, too, on the next read, which then ends the stream.
                Input::Frame(Some(Ok(other))) => {
                    if let Message::Pong(payload) = other {
                        io.shared.pong(&payload);
                    }
                    None
                }
                Input::Frame(Some(Err(e))) => return refused(&e),
                Input::Frame(None) => return Over::Gone,
                Input::Ended(instance) => {
                    session.ended(instance);
                    continue;
                }
                Input::Over(over) => return over,
            };
            let urgent = matches!(&message, Some(Ok(message)) if session.is_urgent(message));
            if !urgent && let Some(over) = backlog.beside(io.rest(&watch)).await {
                return over;
            }
            let Some(message) = message else { continue };
            let stranger = session.grant().is_none();
            let effect = match message {
                Ok(message) => session.step(message, clock::date()),
                Err(undecodable) => match session.unreadable(undecodable, clock::now()) {
                    None => return Over::Noise,
                    denied => denied,
                },
            };
            if stranger && let Some(grant) = session.grant() {
                io.pacer.join(&io.door.house.pacer(&grant.subject)); // it is known now whom it serves
            }
            match effect {
                // Behind nothing.
                Some(effect @ Effect::Terminate { .. }) => drop(io.perform(None, effect).await),
                Some(effect) => backlog.push(effect, bytes),
                None => {}
            }
        }
    }

    fn end_instances(&self, ending: Ending) {
        #[cfg(test)]
        if planted(Bug::Orphans) {
            return;
        }
        for &instance in self.session.owned() {
            self.io.door.house.end(instance, ending.clone());
        }
    }

    /// Ends the instances; and where the client still listens, gives it their last events and a close frame.
    async fn part(&mut self, over: Over, writer: smol::Task<()>, linger: impl Future<Output = ()>) {
        let (ending, farewell) = over.terms();
        #[cfg(test)]
        let ending = if planted(Bug::WrongWord) { Ending::Disconnected } else { ending };
        self.end_instances(ending);
        let Some((code, reason)) = farewell else { return };
        let _hurry = self.io.pacer.hurry();
        self.io.ends = None;
        // Closed once every forwarder has sent the last event of its instance.
        let last_events = async { while self.ended.recv().await.is_ok() {} };
        or(last_events, clock::after(limits::FAREWELL)).await;
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let goodbye = async {
            if self.io.frames.send(close).await.is_ok() {
                self.io.frames.close();
                writer.await;
                linger.await;
            }
        };
        or(goodbye, clock::after(limits::FAREWELL)).await;
    }
}

/// When a conversation that began then must end.
fn until(session: &Session<'_>, since: Instant) -> Until {
    match session.grant() {
        None => Until::Instant(since + limits::AUTHENTICATE_WITHIN),
        Some(grant) => grant.expires.map_or(Until::Never, Until::Date),
    }
}

/// What performing an effect needs; all of it shared.
struct Io<'c, H> {
    door: &'c Door<H>,
    frames: Sender<Message>,
    /// A clone for each forwarder; none when no more will be started.
    ends: Option<Sender<InstanceId>>,
    shared: Arc<Shared>,
    /// Everyone's, until it is known whose.
    pacer: Pacer,
    executor: &'c Executor<'static>,
}

impl<H: House> Io<'_, H> {
    /// Before what a message asks for, if its subject has used more of the io thread than its part. What ended all meanwhile.
    async fn rest(&self, watch: &Watch<'_>) -> Option<Over> {
        let rest = self.pacer.rest()?;
        let rested = async {
            rest.await;
            None
        };
        or(rested, async { Some(watch.ring().await) }).await
    }

    /// `grant`: the client's rights.
    async fn perform(&self, grant: Option<Arc<Grant>>, effect: Effect) -> Performed {
        let house = &self.door.house;
        let known = |program: &str| ProgramHash::from_hex(program).filter(|hash| house.contains(hash));
        // A session makes of a stranger's requests none that needs them.
        let granted = || grant.as_deref().ok_or("Not authenticated".to_owned());
        let (corr_id, answer) = match effect {
            Effect::Answer { corr_id, answer } => (corr_id, answer),
            Effect::Deny(pause, told) => {
                clock::after(pause).await;
                return match told {
                    Some(message) => self.send(message).await,
                    None => Performed::Answered,
                };
            }
            Effect::Exists { corr_id, program } => (corr_id, Ok(known(&program).is_some().to_string())),
            Effect::Status { corr_id } => {
                let status = house.status().await;
                (corr_id, serde_json::to_string(&status).map_err(|e| e.to_string()))
            }
            Effect::Store { corr_id, upload } => {
                let stored = house.put(upload).await;
                (corr_id, stored.map(|hash| hash.to_string()))
            }
            Effect::Launch { corr_id, program, arguments } => {
                let (sender, events) = events::channel();
                let prepared = match (known(&program), granted()) {
                    (None, _) => Err(no_such_program(&program)),
                    (_, Err(stranger)) => Err(stranger),
                    (Some(hash), Ok(grant)) => house.prepare(&hash, arguments, grant, sender).await,
                };
                match prepared {
                    Ok(ready) => return Performed::Launched { corr_id, ready, events },
                    Err(refusal) => (corr_id, Err(refusal)),
                }
            }
            Effect::LaunchServer { corr_id, program, arguments, port } => {
                let served = match (known(&program), granted()) {
                    (None, _) => Err(no_such_program(&program)),
                    (_, Err(stranger)) => Err(stranger),
                    (Some(hash), Ok(grant)) => house.serve(&hash, arguments, grant, port).await,
                };
                (corr_id, served.map(|()| "server launched".to_owned()))
            }
            Effect::Servers { corr_id } => {
                let servers = granted().map(|grant| house.servers(grant));
                (corr_id, servers.and_then(|all| serde_json::to_string(&all).map_err(|e| e.to_string())))
            }
            Effect::StopServer { corr_id, server } => {
                let stopped = match granted() {
                    Ok(grant) => house.stop(&server, grant).await,
                    Err(stranger) => Err(stranger),
                };
                (corr_id, stopped.map(|()| "server stopped".to_owned()))
            }
            #[cfg(test)]
            Effect::Signal { .. } if planted(Bug::SignalsDropped) && self.frames.is_full() => {
                return Performed::Answered;
            }
            Effect::Signal { instance, message } => {
                house.signal(instance, message);
                return Performed::Answered;
            }
            Effect::GiveBlob { corr_id, instance, upload } => {
                house.give_blob(instance, shared_bytes(upload).await);
                (corr_id, Ok("Blob sent to instance".to_owned()))
            }
            Effect::Terminate { instance } => {
                house.end(instance, Ending::Aborted);
                return Performed::Answered;
            }
        };
        self.answer(corr_id, answer).await
    }

    /// The order matters: it is the client's already; it is answered, and only then able to send anything.
    async fn begin(&self, corr_id: u32, ready: Ready, events: events::Receiver) -> Performed {
        let instance = ready.instance;
        #[cfg(test)]
        if planted(Bug::StartsUnanswered) {
            self.forward(instance, events);
            (ready.start)();
            return self.answer(corr_id, Ok(instance.to_string())).await;
        }
        let answered = self.answer(corr_id, Ok(instance.to_string())).await;
        if let Performed::Answered = answered {
            self.forward(instance, events);
            (ready.start)();
        }
        answered
    }

    /// From now on the instance's events become frames.
    fn forward(&self, instance: InstanceId, received: events::Receiver) {
        let Some(ends) = self.ends.clone() else { return };
        let (frames, shared, pacer) = (self.frames.clone(), self.shared.clone(), self.pacer.clone());
        self.executor
            .spawn(async move {
                // None: nobody reads any more, and the connection is ending.
                let _ = forward(instance, received, &frames, &ends, &shared, &pacer).await;
            })
            .detach();
    }

    async fn answer(&self, corr_id: u32, answer: Result<String, String>) -> Performed {
        let successful = answer.is_ok();
        let (Ok(result) | Err(result)) = answer;
        self.send(ServerMessage::Response { corr_id, successful, result }).await
    }

    async fn send(&self, message: ServerMessage) -> Performed {
        match self.frames.send(Message::Binary(message.encode().into())).await {
            Ok(()) => Performed::Answered,
            Err(_) => Performed::Gone,
        }
    }
}

/// Copies the bytes behind a counted pointer; many of them elsewhere, for the io thread serves everyone.
async fn shared_bytes(upload: Upload) -> Arc<[u8]> {
    match upload.bytes.len() {
        0..=limits::IO_THREAD_BYTES => upload.bytes.into(),
        _ => smol::unblock(move || upload.as_ref().into()).await,
    }
}

fn no_such_program(program: &str) -> String {
    format!("No such program with hash={program}")
}

/// Writes frames as they come; those that are ready together go out together. Ends when there are no more, when the
/// client is gone, or when it does not read.
async fn write(mut outgoing: impl Sink<Message, Error = WsError> + Unpin, outbox: Receiver<Message>) {
    while let Ok(frame) = outbox.recv().await {
        let mut ready = Some(frame);
        while let Some(frame) = ready {
            #[cfg(test)]
            if planted(Bug::WrittenTwice) && !outbox.is_empty() && !taken(outgoing.feed(frame.clone())).await
            {
                return;
            }
            if !taken(outgoing.feed(frame)).await {
                return;
            }
            if outbox.is_empty() {
                smol::future::yield_now().await; // to those who have more frames and waited for room
            }
            ready = outbox.try_recv().ok();
        }
        if !taken(outgoing.flush()).await {
            return;
        }
    }
}

/// Whether the client takes what is written, within [`limits::READ_STALL`].
async fn taken(write: impl Future<Output = Result<(), WsError>>) -> bool {
    #[cfg(test)]
    if planted(Bug::EndlessPatience) {
        return write.await.is_ok();
    }
    let since = clock::now();
    let sent = async { write.await.is_ok() };
    let stalled = async {
        clock::after(limits::READ_STALL).await;
        true
    };
    let sent = or(sent, stalled).await;
    // The clock decides, not what came first: the kernel takes a little more from whoever tries, long before it says
    // that there is room, and each try at a timeout would buy a dead reader another one.
    let in_time = clock::now() - since < limits::READ_STALL;
    if sent && !in_time {
        tracing::info!("a client does not read; it is disconnected");
    }
    sent && in_time
}
