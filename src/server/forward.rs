//! From an instance's events to its client's frames.
//!
//! Owns: their order: as the guest made them, a blob's chunks together, the last event exactly once; the pause before an
//! instance's first blob; and the rests of one that floods. Never: writing to the socket; frames go into the connection's bounded
//! queue, which is how a slow reader holds back its guests.

use super::download;
use crate::clock;
use crate::identity::InstanceId;
use crate::limits;
use crate::pacer::Pacer;
use crate::runtime::events::{self, Weighed};
use crate::runtime::{Ending, What};
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use crate::wire::ServerMessage;
use async_tungstenite::tungstenite::protocol::Message;
use event_listener::Event;
use smol::channel::{RecvError, Sender, TryRecvError};
use smol::future::or;
use smol::lock::Semaphore;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Messages in a row before a rest, if the subject has used more of the io thread than its part. A message that comes now and
/// then never rests, each piece of a blob does.
const ROW: usize = 8;

/// Turns the events of one instance into frames, in order, the last one always; once that one is known, nobody of the connection
/// rests before it is on its way. None: nobody reads any more.
pub async fn forward(
    instance: InstanceId,
    events: events::Receiver,
    frames: &Sender<Message>,
    ends: &Sender<InstanceId>,
    shared: &Shared,
    pacer: &Pacer,
) -> Option<()> {
    let ending = async {
        events.ending().await;
        let _hurry = pacer.hurry();
        std::future::pending().await
    };
    or(pass_on(instance, &events, frames, ends, shared, pacer), ending).await
}

async fn pass_on(
    instance: InstanceId,
    events: &events::Receiver,
    frames: &Sender<Message>,
    ends: &Sender<InstanceId>,
    shared: &Shared,
    pacer: &Pacer,
) -> Option<()> {
    let event = |event, message| {
        let instance_id = instance.to_string();
        Message::Binary(ServerMessage::InstanceEvent { instance_id, event, message }.encode().into())
    };
    let (mut introduced, mut row) = (false, 0);
    loop {
        let next = match events.try_recv_weighed() {
            Err(TryRecvError::Empty) => {
                row = 0;
                events.recv_weighed().await
            }
            next => {
                row += 1;
                if row % ROW == 0 {
                    pacer.rested().await;
                }
                next.map_err(|_| RecvError)
            }
        };
        // On its way until its last frame is: its guest waits, and its instance keeps its place.
        let (what, _weight) = match next {
            Ok(Weighed { event, weight }) => (event.what, Some(weight)),
            // A channel that closes without a last event still makes one: clients wait for it.
            Err(RecvError) => {
                (What::Ended(Ending::ServerError("The server lost the instance".to_owned())), None)
            }
        };
        match what {
            #[cfg(test)]
            What::Message(text) if planted(Bug::EndOvertakes) && events.is_at_its_last() => {
                let Ok(What::Ended(ending)) = events.try_recv().map(|last| last.what) else { continue };
                ends.send(instance).await.ok()?;
                frames.send(event(ending.code(), ending.message())).await.ok()?;
                return frames.send(event(0, text)).await.ok();
            }
            #[cfg(test)]
            What::Message(text) if planted(Bug::SentTwice) && frames.is_full() => {
                frames.send(event(0, text.clone())).await.ok()?;
                frames.send(event(0, text)).await.ok()?;
            }
            What::Message(text) => frames.send(event(0, text)).await.ok()?,
            What::Blob(blob) => {
                #[cfg(test)]
                if planted(Bug::Unintroduced) {
                    introduced = true;
                }
                if !introduced {
                    shared.settle(frames).await?;
                    introduced = true;
                }
                let hash = download::hash(&blob.bytes).await;
                let turn = shared.downloads.acquire().await;
                #[cfg(test)]
                let turn = (!planted(Bug::BlobsInterleave)).then_some(turn);
                for frame in download::frames(instance, &blob.bytes, hash) {
                    pacer.rested().await;
                    #[cfg(test)]
                    if planted(Bug::TornBlobs)
                        && let Ok(What::Message(text)) = events.try_recv().map(|next| next.what)
                    {
                        frames.send(event(0, text)).await.ok()?;
                    }
                    frames.send(Message::Binary(frame.encode().into())).await.ok()?;
                }
                drop(turn);
                smol::future::yield_now().await; // to whoever waits for a turn, whom the executor runs next: an instance may have many blobs
            }
            #[cfg(test)]
            What::Ended(ending) if planted(Bug::SecondEnd) || planted(Bug::EndsUnknown) => {
                frames.send(event(ending.code(), ending.message())).await.ok()?;
                if planted(Bug::EndsUnknown) {
                    clock::after(std::time::Duration::from_millis(1)).await;
                    return ends.send(instance).await.ok();
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
pub struct Shared {
    /// One blob at a time. Not a lock: smol's goes by how long somebody has waited, and a replay must not.
    downloads: Semaphore,
    /// Pings sent and answered, counted; a ping carries its number.
    pings: AtomicU64,
    pongs: AtomicU64,
    answered: Event,
}

impl Default for Shared {
    fn default() -> Shared {
        let (pings, pongs) = (AtomicU64::new(0), AtomicU64::new(0));
        Shared { downloads: Semaphore::new(1), pings, pongs, answered: Event::new() }
    }
}

#[cfg(test)]
thread_local! {
    static EVERYBODYS: Arc<Shared> = Arc::default();
}

impl Shared {
    /// For the forwarders of one more connection.
    pub fn of_one_connection() -> Arc<Shared> {
        #[cfg(test)]
        if planted(Bug::OneTurnForAll) {
            return EVERYBODYS.with(Arc::clone);
        }
        Arc::default()
    }

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
        or(answered, clock::after(limits::PONG_WAIT)).await;
        Some(())
    }

    /// A pong answers its ping and all earlier ones: a peer may answer only the latest.
    pub fn pong(&self, payload: &[u8]) {
        if let Ok(number) = payload.try_into().map(u64::from_be_bytes)
            && number <= self.pings.load(Ordering::Relaxed)
        {
            self.pongs.fetch_max(number, Ordering::Release);
            self.answered.notify(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::common::Blob;
    use crate::host::held::Meter;
    use crate::quota::Quotas;
    use crate::runtime::InstanceEvent;
    use crate::runtime::account::Account;
    use smol::Timer;
    use smol::future::poll_once;
    use std::time::{Duration, Instant};

    /// The story: blobs of many instances of one client waited for their turn, each 64 MiB and none counted, and more of each
    /// instance behind it.
    #[test]
    fn a_blob_counts_until_its_last_frame_is_made() {
        const BYTES: usize = 3 * limits::EVENT_BYTES_IN_FLIGHT;
        let (instance, quotas) = (InstanceId::from_bits(1), Quotas::default());
        let account = Account::alone();
        let meter = Meter::new(&quotas, account.memory(&quotas));
        let (sender, events) = events::channel();
        let blob = Blob::new(vec![7; BYTES].into(), &meter).expect("it is small enough");
        sender.try_send(InstanceEvent { instance, what: What::Blob(blob) }).expect("there is room");
        let (frames, outbox) = smol::channel::bounded(1);
        let (told, ended) = smol::channel::unbounded();
        let (shared, pacer) = (Shared::default(), Pacer::default());
        smol::block_on(async {
            let forwards = async {
                forward(instance, events, &frames, &told, &shared, &pacer).await;
            };
            let reads = async {
                let end = InstanceEvent { instance, what: What::Ended(Ending::Aborted) };
                let mut ends = Box::pin(sender.send(end));
                assert!(matches!(outbox.recv().await, Ok(Message::Ping(_))));
                shared.pong(&1u64.to_be_bytes());
                // One more is in the queue, and one waits for room.
                for _ in 0..BYTES.div_ceil(limits::CHUNK_BYTES) - 1 {
                    assert!(matches!(outbox.recv().await, Ok(Message::Binary(_))));
                    assert!(poll_once(&mut ends).await.is_none(), "the instance keeps its place");
                    assert_eq!(meter.held(), BYTES);
                }
                for _ in 0..2 {
                    assert!(matches!(outbox.recv().await, Ok(Message::Binary(_))));
                }
                ends.await.expect("somebody reads");
                assert_eq!(meter.held(), 0);
                assert!(matches!(outbox.recv().await, Ok(Message::Binary(_))), "the last event");
            };
            smol::future::zip(forwards, reads).await;
        });
        drop(ended); // until now, or nobody would read any more
    }

    /// Lower bounds of time, and one that is a tenth of what the rests would take.
    #[test]
    fn a_flood_rests_unless_its_instance_ends() {
        const MESSAGES: usize = 64;
        let instance = InstanceId::from_bits(1);
        let pacer = Pacer::new(Arc::new(|_| Duration::from_secs(3600)));
        let message = |text: &str| InstanceEvent { instance, what: What::Message(text.to_owned()) };
        let forwarded = |rounds: usize, ends: bool| {
            let (sender, events) = events::bounded(rounds * MESSAGES + 1);
            for _ in 0..rounds * MESSAGES {
                sender.try_send(message("more")).expect("there is room");
            }
            if ends {
                let what = What::Ended(Ending::Aborted);
                sender.try_send(InstanceEvent { instance, what }).expect("there is room");
            }
            let (frames, outbox) = smol::channel::unbounded();
            let (told, ended) = smol::channel::unbounded();
            let pacer = pacer.clone();
            async move {
                let shared = Shared::default();
                let all = async {
                    for _ in 0..rounds * MESSAGES + usize::from(ends) {
                        outbox.recv().await.expect("a frame");
                    }
                };
                let forwards = async {
                    forward(instance, events, &frames, &told, &shared, &pacer).await;
                    std::future::pending().await
                };
                or(all, forwards).await;
                drop((sender, ended)); // until now, or nobody would read any more
            }
        };
        smol::block_on(async {
            let since = Instant::now();
            forwarded(1, false).await;
            let flood = since.elapsed();
            assert!(flood >= Duration::from_millis(100) * (MESSAGES / ROW - 1) as u32, "{flood:?}");
            let late = async { _ = Timer::after(flood * 2).await };
            let ended = async {
                forwarded(20, true).await;
                true
            };
            assert!(
                or(ended, async {
                    late.await;
                    false
                })
                .await,
                "a twentieth of it, with rests, took {flood:?}"
            );
        });
    }
}
