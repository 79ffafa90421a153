//! What a client has sent to one instance and the instance has not read yet: texts and blobs, apart.
//!
//! Owns: the two lanes, their order and bounds. Never: drops a message. A lane that is full says which quota it meets and the
//! caller ends the instance; a receive that is given up leaves its message for the next one.

use crate::limits;
use crate::quota::{Name, Quota, Quotas, Shares};
use event_listener::Event;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One per instance.
pub struct Mailbox {
    pub texts: Arc<Lane<String>>,
    pub blobs: Arc<Lane<Arc<[u8]>>>,
}

impl Mailbox {
    /// `shares`: what everyone's mailboxes hold, of which the bytes of both lanes are a part.
    pub fn new(quotas: &Quotas, shares: Shares) -> Mailbox {
        Mailbox {
            texts: Arc::new(Lane::new(quotas, shares.clone())),
            blobs: Arc::new(Lane::new(quotas, shares)),
        }
    }
}

/// What a lane carries, and which quotas bound it.
pub trait Letter: Send {
    const COUNT: Name;
    const BYTES: Name;
    fn bytes(&self) -> usize;
}

impl Letter for String {
    const COUNT: Name = Name::UnreadMessages;
    const BYTES: Name = Name::UnreadMessageBytes;
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Letter for Arc<[u8]> {
    const COUNT: Name = Name::UnreadBlobs;
    const BYTES: Name = Name::UnreadBlobBytes;
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// First in, first out: the receive asked for first gets the message that came first, in whatever order the
/// receives are looked at.
pub struct Lane<T: Letter> {
    state: Mutex<State<T>>,
    arrived: Event,
    count: Quota,
    bytes: Quota,
    shares: Shares,
}

struct State<T> {
    letters: VecDeque<T>,
    bytes: usize,
    /// Receives that have taken nothing yet, oldest first (ascending). Receive number r in this list is entitled
    /// to letter number r, so one that is given up passes its letter on by leaving the list.
    receives: VecDeque<u64>,
    next: u64,
}

impl<T: Letter> Lane<T> {
    fn new(quotas: &Quotas, shares: Shares) -> Lane<T> {
        let state = State { letters: VecDeque::new(), bytes: 0, receives: VecDeque::new(), next: 0 };
        Lane {
            state: Mutex::new(state),
            arrived: Event::new(),
            count: quotas.over(T::COUNT),
            bytes: quotas.over(T::BYTES),
            shares,
        }
    }

    /// Never blocks.
    ///
    /// # Errors
    /// The lane, or all of the subject or of everyone, would hold more than it may; the instance is to be ended.
    pub fn push(&self, letter: T) -> Result<(), Quota> {
        {
            let mut state = self.lock();
            if state.letters.len() as u64 >= self.count.limit {
                return Err(self.count);
            }
            let bytes = state.bytes + letter.bytes();
            if bytes as u64 > self.bytes.limit {
                return Err(self.bytes);
            }
            self.shares.take(letter.bytes() as u64)?;
            state.bytes = bytes;
            state.letters.push_back(letter);
        }
        self.arrived.notify(usize::MAX);
        Ok(())
    }

    /// Asks for the next letter nobody has asked for. None: as many have asked as may at a time.
    pub fn receive(self: &Arc<Self>) -> Option<Receive<T>> {
        let mut state = self.lock();
        if state.receives.len() >= limits::RECEIVES {
            return None;
        }
        let ticket = state.next;
        state.next += 1;
        state.receives.push_back(ticket);
        Some(Receive { lane: self.clone(), ticket })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change below is complete before anything can panic, so a poisoned lane is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Letter> Drop for Lane<T> {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.shares.give(bytes as u64);
    }
}

/// The right to one letter. Dropping it unread loses nothing.
pub struct Receive<T: Letter> {
    lane: Arc<Lane<T>>,
    ticket: u64,
}

impl<T: Letter> Receive<T> {
    /// True once [`take`](Receive::take) has something to give, and from then on.
    pub fn ready(&self) -> bool {
        let state = self.lane.lock();
        match state.receives.binary_search(&self.ticket) {
            Ok(rank) => rank < state.letters.len(),
            Err(_) => true,
        }
    }

    pub async fn wait(&self) {
        while !self.ready() {
            let arrived = self.lane.arrived.listen();
            if self.ready() {
                return;
            }
            arrived.await;
        }
    }

    /// The letter, once: None before it has come and after it was taken.
    pub fn take(&self) -> Option<T> {
        let mut state = self.lane.lock();
        let rank = state.receives.binary_search(&self.ticket).ok()?;
        let letter = state.letters.remove(rank)?;
        state.receives.remove(rank);
        state.bytes -= letter.bytes();
        self.lane.shares.give(letter.bytes() as u64);
        Some(letter)
    }
}

impl<T: Letter> Receive<T> {
    /// Gives the right up, as dropping it does; for a holder that cannot drop it because it is shared.
    pub fn abandon(&self) {
        {
            let mut state = self.lane.lock();
            let Ok(rank) = state.receives.binary_search(&self.ticket) else { return };
            state.receives.remove(rank);
        }
        // The letters move up by one receive: a later one may have become ready.
        self.lane.arrived.notify(usize::MAX);
    }
}

impl<T: Letter> Drop for Receive<T> {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Account;

    fn mailbox() -> Mailbox {
        let quotas = Quotas::default();
        Mailbox::new(&quotas, Account::alone().unread(&quotas))
    }

    use smol::future::{FutureExt, block_on};

    #[test]
    fn receives_get_letters_in_the_order_they_asked() {
        let mailbox = mailbox();
        let (first, second) = (mailbox.texts.receive().unwrap(), mailbox.texts.receive().unwrap());
        mailbox.texts.push("a".into()).unwrap();
        assert!(first.ready() && !second.ready());
        assert_eq!(second.take(), None);
        mailbox.texts.push("b".into()).unwrap();
        assert_eq!(second.take().as_deref(), Some("b"));
        assert_eq!(first.take().as_deref(), Some("a"));
        assert_eq!(first.take(), None);
        assert!(first.ready(), "a taken receive never makes a poll hang");
    }

    #[test]
    fn an_abandoned_receive_passes_its_letter_on() {
        let mailbox = mailbox();
        let (first, second) = (mailbox.texts.receive().unwrap(), mailbox.texts.receive().unwrap());
        mailbox.texts.push("a".into()).unwrap();
        let waiter = second.wait();
        let dropper = async { drop(first) };
        block_on(async { smol::future::zip(waiter, dropper).await });
        assert_eq!(second.take().as_deref(), Some("a"));
        assert_eq!(mailbox.texts.lock().bytes, 0);
    }

    #[test]
    fn a_waiting_receive_wakes_when_the_letter_comes() {
        let mailbox = Arc::new(mailbox());
        let receive = mailbox.blobs.receive().unwrap();
        let sender = mailbox.clone();
        let thread = std::thread::spawn(move || sender.blobs.push(vec![1, 2].into()));
        block_on(receive.wait());
        assert_eq!(receive.take().as_deref(), Some(&[1, 2][..]));
        thread.join().unwrap().unwrap();
        let idle = mailbox.blobs.receive().unwrap();
        let gave_up = async { smol::future::yield_now().await };
        block_on(idle.wait().or(gave_up));
        assert!(!idle.ready());
    }

    #[test]
    fn a_full_lane_names_its_quota_and_keeps_what_it_has() {
        let quotas = Quotas::default().with(Name::UnreadMessages, 5).with(Name::UnreadBlobBytes, 10);
        let quotas = quotas.with(Name::SubjectUnreadBytes, 14);
        let account = Account::alone();
        let mailbox = Mailbox::new(&quotas, account.unread(&quotas));
        for i in 0..5 {
            mailbox.texts.push(i.to_string()).unwrap();
        }
        assert_eq!(mailbox.texts.push("one more".into()), Err(quotas.over(Name::UnreadMessages)));
        let blob = |bytes: usize| -> Arc<[u8]> { vec![0; bytes].into() };
        assert_eq!(mailbox.blobs.push(blob(11)), Err(quotas.over(Name::UnreadBlobBytes)));
        assert_eq!(mailbox.blobs.push(blob(10)), Err(quotas.over(Name::SubjectUnreadBytes)));
        mailbox.blobs.push(blob(9)).unwrap();
        for i in 0..5 {
            assert_eq!(mailbox.texts.receive().unwrap().take(), Some(i.to_string()));
        }
        let other = Mailbox::new(&quotas, account.unread(&quotas));
        assert_eq!(other.texts.push("123456".into()), Err(quotas.over(Name::SubjectUnreadBytes)));
        drop(mailbox);
        assert_eq!(other.texts.push("123456".into()), Ok(()), "what nobody will read counts no more");
    }
}
