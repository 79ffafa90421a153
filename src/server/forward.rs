//! From an instance's events to its client's frames.
//!
//! Owns: their order: as the guest made them, a blob's chunks together, the last event exactly once; and the pause before
//! an instance's first blob. Never: writing to the socket; frames go into the connection's bounded queue, which is
//! how a slow reader holds back its guests.

use super::download;
use crate::identity::InstanceId;
use crate::limits;
use crate::runtime::{Ending, What, events};
use crate::wire::ServerMessage;
use async_tungstenite::tungstenite::protocol::Message;
use event_listener::Event;
use smol::Timer;
use smol::channel::Sender;
use smol::future::or;
use smol::lock::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Turns the events of one instance into frames, in order, the last one always. None: nobody reads any more.
pub async fn forward(
    instance: InstanceId,
    events: events::Receiver,
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
                let hash = download::hash(&blob).await;
                let _turn = shared.downloads.lock().await;
                for frame in download::frames(instance, &blob, hash) {
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
pub struct Shared {
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
    pub fn pong(&self, payload: &[u8]) {
        if let Ok(number) = payload.try_into().map(u64::from_be_bytes)
            && number <= self.pings.load(Ordering::Relaxed)
        {
            self.pongs.fetch_max(number, Ordering::Release);
            self.answered.notify(usize::MAX);
        }
    }
}
