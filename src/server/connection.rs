//! One connection's I/O: frames in, effects performed, frames out, and a clean end.
//!
//! Owns: the order of what the client sees (an answer to a launch before every frame of the instance, an instance's events in
//! order, the last one exactly once), the bounds on a client that does not read, and the end of all its instances
//! when it goes. Never: what a message means (`session`) or does (`house`).
//!
//! Three kinds of futures share one connection: the conversation reads frames and answers them, one forwarder per
//! instance turns events into frames, and the writer alone writes. They meet in a short bounded queue, so a slow
//! reader holds back its own instances and its own requests, nobody else's.

use super::carrier::Carrier;
use super::forward::{Shared, forward};
use super::over::{Closing, Over, Until, Watch, refused};
use super::seats::Seat;
use super::session::{Effect, Session};
use super::{Door, House};
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
use smol::future::or;
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
    Frame(Option<Result<Message, WsError>>),
    Ended(InstanceId),
    Over(Over),
}

impl<H: House> Connection<'_, H> {
    /// Reads and answers until something ends it.
    async fn converse(&mut self, mut incoming: impl Stream<Item = Result<Message, WsError>> + Unpin) -> Over {
        loop {
            let watch = Watch { until: self.until(), closing: &self.closing };
            // A client that sends without pause must not outlive its token, nor starve the others.
            if let Some(over) = watch.passed() {
                return over;
            }
            smol::future::yield_now().await;
            let frame = async { Input::Frame(incoming.next().await) };
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
            let message = match input {
                Input::Frame(Some(Ok(Message::Binary(frame)))) => Some(ClientMessage::decode(&frame)),
                Input::Frame(Some(Ok(Message::Text(_)))) => Some(Err(Undecodable {
                    corr_id: None,
                    reason: "Text frames are not read; send MessagePack in binary frames".to_owned(),
                })),
                // Pings are answered by the carrier; a close is, too, on the next read, which then ends the stream.
                Input::Frame(Some(Ok(other))) => {
                    if let Message::Pong(payload) = other {
                        self.io.shared.pong(&payload);
                    }
                    None
                }
                Input::Frame(Some(Err(e))) => return refused(&e),
                Input::Frame(None) => return Over::Gone,
                Input::Ended(instance) => {
                    self.session.ended(instance);
                    continue;
                }
                Input::Over(over) => return over,
            };
            let urgent = matches!(&message, Some(Ok(message)) if self.session.is_urgent(message));
            if !urgent && let Some(over) = self.rest(&watch).await {
                return over;
            }
            let Some(message) = message else { continue };
            let stranger = self.session.grant().is_none();
            let effect = match message {
                Ok(message) => self.session.step(message, clock::date()),
                Err(undecodable) => match self.session.unreadable(undecodable, clock::now()) {
                    None => return Over::Noise,
                    denied => denied,
                },
            };
            if stranger {
                self.meet();
            }
            let Some(effect) = effect else { continue };
            let watch = Watch { until: self.until(), closing: &self.closing };
            let perform = self.io.perform(&mut self.session, effect);
            let over = async { Err(watch.ring().await) };
            if let Err(over) = or(async { perform.await.ok_or(Over::Gone) }, over).await {
                return over;
            }
        }
    }

    /// Whom it serves may be known now.
    fn meet(&self) {
        if let Some(grant) = self.session.grant() {
            self.io.pacer.join(&self.io.door.house.pacer(&grant.subject));
        }
    }

    /// Before what a message asks for, if its subject has used more of the io thread than its part. What ended all meanwhile.
    async fn rest(&self, watch: &Watch<'_>) -> Option<Over> {
        let rest = self.io.pacer.rest()?;
        let rested = async {
            rest.await;
            None
        };
        or(rested, async { Some(watch.ring().await) }).await
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

    fn until(&self) -> Until {
        match self.session.grant() {
            None => Until::Instant(self.since + limits::AUTHENTICATE_WITHIN),
            Some(grant) => grant.expires.map_or(Until::Never, Until::Date),
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
    /// None: the client cannot be written to.
    async fn perform(&self, session: &mut Session<'_>, effect: Effect) -> Option<()> {
        let house = &self.door.house;
        let known = |program: &str| ProgramHash::from_hex(program).filter(|hash| house.contains(hash));
        let (corr_id, answer) = match effect {
            Effect::Answer { corr_id, answer } => (corr_id, answer),
            Effect::Deny(pause, told) => {
                clock::after(pause).await;
                return match told {
                    Some(message) => self.send(message).await,
                    None => Some(()),
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
                let Some(hash) = known(&program) else {
                    return self.answer(corr_id, Err(no_such_program(&program))).await;
                };
                return self.launch(session, corr_id, hash, arguments).await;
            }
            Effect::LaunchServer { corr_id, program, arguments, port } => {
                let served = match known(&program) {
                    None => Err(no_such_program(&program)),
                    Some(hash) => house.serve(&hash, arguments, session.grant()?, port).await,
                };
                (corr_id, served.map(|()| "server launched".to_owned()))
            }
            Effect::Servers { corr_id } => {
                let servers = house.servers(session.grant()?);
                (corr_id, serde_json::to_string(&servers).map_err(|e| e.to_string()))
            }
            Effect::StopServer { corr_id, server } => {
                let stopped = house.stop(&server, session.grant()?).await;
                (corr_id, stopped.map(|()| "server stopped".to_owned()))
            }
            #[cfg(test)]
            Effect::Signal { .. } if planted(Bug::SignalsDropped) && self.frames.is_full() => {
                return Some(());
            }
            Effect::Signal { instance, message } => {
                house.signal(instance, message);
                return Some(());
            }
            Effect::GiveBlob { corr_id, instance, upload } => {
                house.give_blob(instance, shared_bytes(upload).await);
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
        let (events, received) = events::channel();
        let ready = match self.door.house.prepare(&program, arguments, session.grant()?, events).await {
            Ok(ready) => ready,
            Err(refusal) => return self.answer(corr_id, Err(refusal)).await,
        };
        let instance = ready.instance;
        session.own(instance);
        #[cfg(test)]
        if planted(Bug::StartsUnanswered) {
            self.forward(instance, received)?;
            (ready.start)();
            return self.answer(corr_id, Ok(instance.to_string())).await;
        }
        self.answer(corr_id, Ok(instance.to_string())).await?;
        self.forward(instance, received)?;
        (ready.start)();
        Some(())
    }

    /// From now on the instance's events become frames.
    fn forward(&self, instance: InstanceId, received: events::Receiver) -> Option<()> {
        let (frames, ends) = (self.frames.clone(), self.ends.clone()?);
        let (shared, pacer) = (self.shared.clone(), self.pacer.clone());
        self.executor
            .spawn(async move {
                // None: nobody reads any more, and the connection is ending.
                let _ = forward(instance, received, &frames, &ends, &shared, &pacer).await;
            })
            .detach();
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
