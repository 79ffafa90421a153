//! The channel from a guest to whoever reads its events, bounded in events and in bytes.
//!
//! Owns: the two ends and the count of the bytes between them. Never: what an event says or who reads it. A guest that
//! sends many short messages should not wait for its reader after every few, and one that sends long ones should
//! not park many of them: so the bytes are bounded, and the number only so that empty ones are too.

use super::{InstanceEvent, What};
use crate::limits::{EVENT_BYTES_IN_FLIGHT, EVENTS_IN_FLIGHT};
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use event_listener::Event;
use smol::channel::{self, RecvError, TryRecvError, TrySendError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A channel with room for [`EVENTS_IN_FLIGHT`] events and [`EVENT_BYTES_IN_FLIGHT`].
pub fn channel() -> (Sender, Receiver) {
    bounded(EVENTS_IN_FLIGHT)
}

/// One with room for fewer events.
pub fn bounded(events: usize) -> (Sender, Receiver) {
    let (sender, receiver) = channel::bounded(events);
    let scale = Arc::<Scale>::default();
    (Sender { events: sender, scale: scale.clone() }, Receiver { events: receiver, scale })
}

/// The guest's end. Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    events: channel::Sender<Weighed>,
    scale: Arc<Scale>,
}

/// The reader's end, the only one.
pub struct Receiver {
    events: channel::Receiver<Weighed>,
    scale: Arc<Scale>,
}

/// Bytes on their way, and whether the last event is, or waits for room.
#[derive(Default)]
struct Scale {
    bytes: AtomicUsize,
    freed: Event,
    ending: AtomicBool,
    ends: Event,
}

/// An event on its way.
pub struct Weighed {
    pub event: InstanceEvent,
    pub weight: Weight,
}

/// An event's bytes, counted until this is dropped.
pub struct Weight {
    bytes: usize,
    scale: Arc<Scale>,
}

impl Sender {
    /// Gives the event back if there is no room, or nobody reads.
    pub fn try_send(&self, event: InstanceEvent) -> Result<(), InstanceEvent> {
        let weighed = self.weigh(event)?;
        self.events.try_send(weighed).map_err(|unsent| match unsent {
            TrySendError::Full(weighed) | TrySendError::Closed(weighed) => weighed.event,
        })
    }

    /// Waits for room. Gives the event back if nobody reads. Dropping the future loses the event and nothing else.
    pub async fn send(&self, mut event: InstanceEvent) -> Result<(), InstanceEvent> {
        loop {
            let freed = self.scale.freed.listen();
            match self.weigh(event) {
                Ok(weighed) => return self.events.send(weighed).await.map_err(|unsent| unsent.0.event),
                #[cfg(test)]
                Err(_) if planted(Bug::LostWhenFull) => return Ok(()),
                Err(back) => event = back,
            }
            freed.await;
        }
    }

    /// Counts the event, if it fits. One that is larger than all the room fits when nothing else is on its way.
    fn weigh(&self, event: InstanceEvent) -> Result<Weighed, InstanceEvent> {
        let bytes = match &event.what {
            What::Message(text) => text.len(),
            What::Blob(blob) => blob.bytes.len(),
            What::Ended(_) => {
                self.scale.ending.store(true, Ordering::Release);
                self.scale.ends.notify(usize::MAX);
                0 // one in an instance's life
            }
        };
        let fits = |held: usize| held == 0 || held.saturating_add(bytes) <= EVENT_BYTES_IN_FLIGHT;
        #[cfg(test)]
        let fits = |held: usize| fits(held) || planted(Bug::Unweighed);
        let counted = self.scale.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            fits(held).then(|| held.saturating_add(bytes))
        });
        match counted {
            Ok(_) => Ok(Weighed { event, weight: Weight { bytes, scale: self.scale.clone() } }),
            Err(_) => Err(event),
        }
    }

    /// Whether an event that is larger than all the room is on its way.
    pub fn is_overfull(&self) -> bool {
        self.scale.bytes.load(Ordering::Acquire) > EVENT_BYTES_IN_FLIGHT
    }

    /// Returns once there is none.
    pub async fn caught_up(&self) {
        loop {
            let freed = self.scale.freed.listen();
            if !self.is_overfull() {
                return;
            }
            freed.await;
        }
    }
}

impl Receiver {
    /// The next event; an error when there is none left and no sender. It is on its way no more.
    pub async fn recv(&self) -> Result<InstanceEvent, RecvError> {
        self.recv_weighed().await.map(|weighed| weighed.event)
    }

    pub fn try_recv(&self) -> Result<InstanceEvent, TryRecvError> {
        self.try_recv_weighed().map(|weighed| weighed.event)
    }

    /// The same for whoever carries it on: it is on its way for as long as its weight is kept.
    pub async fn recv_weighed(&self) -> Result<Weighed, RecvError> {
        self.events.recv().await
    }

    pub fn try_recv_weighed(&self) -> Result<Weighed, TryRecvError> {
        self.events.try_recv()
    }

    /// Returns once nothing but the last event can follow what is on its way.
    pub async fn ending(&self) {
        let ends = self.scale.ends.listen();
        if !self.scale.ending.load(Ordering::Acquire) {
            ends.await;
        }
    }

    /// Whether the next event is the last one for sure.
    #[cfg(test)]
    pub fn is_at_its_last(&self) -> bool {
        self.events.len() == 1 && self.events.sender_count() == 0
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // The channel keeps what was not read for as long as there is a sender, who may be waiting for that room.
        self.events.close();
        while self.events.try_recv().is_ok() {}
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.scale.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if self.bytes > 0 {
            self.scale.freed.notify(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::InstanceId;
    use crate::runtime::Ending;
    use smol::future::poll_once;

    fn message(bytes: usize) -> InstanceEvent {
        InstanceEvent { instance: InstanceId::from_bits(1), what: What::Message("x".repeat(bytes)) }
    }

    #[test]
    fn bytes_and_events_are_bounded_and_one_too_large_goes_alone() {
        let (sender, receiver) = channel();
        for _ in 0..EVENTS_IN_FLIGHT {
            assert!(sender.try_send(message(0)).is_ok());
        }
        assert!(sender.try_send(message(0)).is_err(), "as many as there may be");
        while receiver.try_recv().is_ok() {}

        assert!(sender.try_send(message(EVENT_BYTES_IN_FLIGHT + 1)).is_ok());
        assert!(sender.try_send(message(1)).is_err() && sender.try_send(message(0)).is_err());
        assert!(receiver.try_recv().is_ok() && sender.try_send(message(EVENT_BYTES_IN_FLIGHT)).is_ok());
        assert!(sender.try_send(message(1)).is_err());
    }

    #[test]
    fn an_event_is_on_its_way_for_as_long_as_its_weight_is_kept() {
        let (sender, receiver) = channel();
        assert!(sender.try_send(message(EVENT_BYTES_IN_FLIGHT + 1)).is_ok() && sender.is_overfull());
        let Ok(Weighed { event, weight }) = receiver.try_recv_weighed() else { panic!("it was sent") };
        drop(event);
        let mut caught_up = Box::pin(sender.caught_up());
        smol::block_on(async {
            assert!(poll_once(&mut caught_up).await.is_none() && sender.try_send(message(0)).is_err());
            drop(weight);
            caught_up.await;
        });
        assert!(!sender.is_overfull() && sender.try_send(message(EVENT_BYTES_IN_FLIGHT)).is_ok());
        assert!(!sender.is_overfull(), "as many as fit");
    }

    #[test]
    fn the_end_is_known_before_there_is_room_for_it() {
        let (sender, receiver) = bounded(1);
        assert!(sender.try_send(message(1)).is_ok());
        let end = InstanceEvent { instance: InstanceId::from_bits(1), what: What::Ended(Ending::Aborted) };
        smol::block_on(async {
            assert!(poll_once(receiver.ending()).await.is_none());
            let mut ended = Box::pin(sender.send(end));
            let mut ending = Box::pin(receiver.ending());
            assert!(
                poll_once(&mut ending).await.is_none() && poll_once(&mut ended).await.is_none(),
                "no room"
            );
            ending.await;
            receiver.ending().await;
            assert!(matches!(receiver.recv().await.unwrap().what, What::Message(_)));
            ended.await.unwrap();
            assert!(matches!(receiver.recv().await.unwrap().what, What::Ended(_)));
        });
    }

    #[test]
    fn who_waits_for_bytes_goes_on_when_they_are_read_or_nobody_reads_any_more() {
        let (sender, receiver) = channel();
        assert!(sender.try_send(message(EVENT_BYTES_IN_FLIGHT)).is_ok());
        let waiting = std::thread::spawn({
            let sender = sender.clone();
            move || smol::block_on(sender.send(message(EVENT_BYTES_IN_FLIGHT))).is_ok()
        });
        let sizes: Vec<usize> = smol::block_on(async {
            let mut sizes = vec![];
            for _ in 0..2 {
                match receiver.recv().await.expect("two are sent").what {
                    What::Message(text) => sizes.push(text.len()),
                    other => panic!("{other:?}"),
                }
            }
            sizes
        });
        assert!(waiting.join().expect("it does not panic"));
        assert_eq!(sizes, [EVENT_BYTES_IN_FLIGHT; 2]);

        assert!(sender.try_send(message(EVENT_BYTES_IN_FLIGHT)).is_ok());
        let waiting = std::thread::spawn(move || smol::block_on(sender.send(message(1))).is_ok());
        drop(receiver);
        assert!(!waiting.join().expect("it does not panic"), "nobody reads");
    }
}
