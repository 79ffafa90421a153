//! A carrier without a socket: two bounded pipes of frames, and a client at the other end.
//!
//! Owns: the frames on their way, how a writer finds a pipe full, and since when it does. Never: what a frame says. What
//! is checked here is what only the carrier can see: a client that does not read is given up after
//! [`limits::READ_STALL`] and not before, and nobody is given up without a reason.

use super::lock;
use crate::clock::fake;
use crate::engine::simulation::random::Random;
use crate::limits;
use crate::server::carrier::Carrier;
use async_tungstenite::tungstenite::Bytes;
use async_tungstenite::tungstenite::error::Error as WsError;
use async_tungstenite::tungstenite::protocol::Message;
use event_listener::Event;
use futures_util::Sink;
use smol::stream::Stream;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Frames on their way up before the client waits.
const UP: usize = 6;
/// Frames on their way down, at most; less in most histories.
pub const DOWN: u32 = 8;
/// Frames that a writer keeps unsent before it must wait, at most.
pub const UNSENT: u32 = 3;

/// The client's end. Clones are one link.
#[derive(Clone)]
pub struct Link {
    pipes: Arc<Mutex<Pipes>>,
    changed: Arc<Event>,
}

#[derive(Default)]
struct Pipes {
    up: VecDeque<Result<Message, WsError>>,
    down: VecDeque<Message>,
    unsent: VecDeque<Message>,
    capacity: usize,
    slack: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    lingerer: Option<Waker>,
    /// The client sends no more.
    up_closed: bool,
    /// It neither sends nor reads any more.
    client_left: bool,
    /// It broke the carrier.
    broken: bool,
    /// From when on the server may end it, whatever the client does.
    until: Option<Duration>,
    close_written: bool,
    /// The server sends no more.
    down_closed: bool,
    server_left: bool,
    /// Since when nothing has moved though something should, ...
    stuck_since: Option<Duration>,
    /// ... and since when there has been something unsent.
    unsent_since: Option<Duration>,
}

impl Pipes {
    fn move_down(&mut self) {
        while self.down.len() < self.capacity
            && let Some(frame) = self.unsent.pop_front()
        {
            self.down.push_back(frame);
            self.stuck_since = None;
        }
        if self.unsent.is_empty() {
            (self.stuck_since, self.unsent_since) = (None, None);
        } else {
            let now = fake::passed();
            self.stuck_since.get_or_insert(now);
            self.unsent_since.get_or_insert(now);
        }
    }
}

impl Link {
    pub fn new(random: &mut Random) -> Link {
        let (capacity, slack) = (1 + random.below(DOWN) as usize, random.below(UNSENT + 1) as usize);
        let pipes = Pipes { capacity, slack, ..Pipes::default() };
        Link { pipes: Arc::new(Mutex::new(pipes)), changed: Arc::default() }
    }

    /// The server's end, once.
    pub fn carrier(&self) -> Carrier<Incoming, Outgoing, impl Future<Output = ()> + Send + use<>> {
        let link = self.clone();
        let linger = poll_fn(move |context| {
            let mut pipes = lock(&link.pipes);
            if pipes.client_left || pipes.up_closed {
                return Poll::Ready(());
            }
            pipes.lingerer = Some(context.waker().clone());
            Poll::Pending
        });
        Carrier { incoming: Incoming(self.clone()), outgoing: Outgoing(self.clone()), linger }
    }

    /// False: nobody reads it.
    pub async fn send(&self, frame: Result<Message, WsError>) -> bool {
        loop {
            let changed = self.changed.listen();
            {
                let mut pipes = lock(&self.pipes);
                if pipes.server_left || pipes.up_closed || pipes.client_left {
                    return false;
                }
                if pipes.up.len() < UP {
                    pipes.broken |= frame.is_err();
                    pipes.up.push_back(frame);
                    wake(&mut pipes.reader);
                    return true;
                }
            }
            changed.await;
        }
    }

    /// Answers a ping. It takes no room: a client that waits for room before it reads on, while the server waits for it
    /// to read, would wait until it is given up.
    pub fn pong(&self, payload: Bytes) {
        let mut pipes = lock(&self.pipes);
        if !pipes.up_closed {
            pipes.up.push_back(Ok(Message::Pong(payload)));
            wake(&mut pipes.reader);
        }
    }

    /// The next frame; none when the server has sent its last.
    pub async fn receive(&self) -> Option<Message> {
        loop {
            let changed = self.changed.listen();
            {
                let mut pipes = lock(&self.pipes);
                if let Some(frame) = pipes.down.pop_front() {
                    wake(&mut pipes.writer);
                    return Some(frame);
                }
                if pipes.down_closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    pub async fn until_the_server_leaves(&self) {
        loop {
            let changed = self.changed.listen();
            if self.is_over() {
                return;
            }
            changed.await;
        }
    }

    pub fn is_over(&self) -> bool {
        let pipes = lock(&self.pipes);
        pipes.server_left || pipes.down_closed || pipes.client_left
    }

    /// Sends no more, and still reads.
    pub fn close(&self) {
        self.end(|pipes| pipes.up_closed = true);
    }

    /// Neither sends nor reads any more.
    pub fn leave(&self) {
        self.end(|pipes| pipes.client_left = true);
    }

    fn end(&self, how: impl FnOnce(&mut Pipes)) {
        let mut pipes = lock(&self.pipes);
        how(&mut pipes);
        wake(&mut pipes.reader);
        wake(&mut pipes.writer);
        wake(&mut pipes.lingerer);
        drop(pipes);
        self.changed.notify(usize::MAX);
    }

    /// Whether the server has a reason to think that this client is gone.
    pub fn fault(&self) -> Option<&'static str> {
        let pipes = lock(&self.pipes);
        let stalled = pipes.unsent_since.is_some_and(|since| fake::passed() - since >= limits::READ_STALL);
        let faults = [
            (pipes.broken, "has broken the carrier"),
            (stalled, "does not read"),
            (pipes.client_left || pipes.up_closed, "has left"),
        ];
        faults.into_iter().find(|(is_so, _)| *is_so).map(|(_, what)| what)
    }

    /// Whether it may end the connection.
    pub fn may_be_given_up(&self) -> bool {
        self.fault().is_some() || self.is_late()
    }

    /// From then on the server may end it.
    pub fn may_last_until(&self, then: Duration) {
        let mut pipes = lock(&self.pipes);
        pipes.until = Some(pipes.until.map_or(then, |until| until.min(then)));
    }

    pub fn is_late(&self) -> bool {
        lock(&self.pipes).until.is_some_and(|until| until <= fake::passed())
    }

    /// To be asked whenever time has passed.
    pub fn check(&self) {
        let pipes = lock(&self.pipes);
        if let Some(since) = pipes.stuck_since.filter(|_| !pipes.down_closed) {
            assert!(
                fake::passed() - since <= limits::READ_STALL,
                "a client that does not read stays connected"
            );
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Frames of the client, as the server reads them.
pub struct Incoming(Link);

impl Stream for Incoming {
    type Item = Result<Message, WsError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut pipes = lock(&self.0.pipes);
        if let Some(frame) = pipes.up.pop_front() {
            drop(pipes);
            self.0.changed.notify(usize::MAX);
            return Poll::Ready(Some(frame));
        }
        if pipes.up_closed || pipes.client_left {
            return Poll::Ready(None);
        }
        pipes.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        lock(&self.0.pipes).server_left = true;
        self.0.changed.notify(usize::MAX);
    }
}

/// Frames for the client, as the server writes them: kept back until it flushes or has too many.
pub struct Outgoing(Link);

impl Outgoing {
    fn until(&self, unsent: usize, context: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        let mut pipes = lock(&self.0.pipes);
        if pipes.client_left {
            return Poll::Ready(Err(WsError::ConnectionClosed));
        }
        if pipes.unsent.len() > unsent {
            pipes.move_down();
            self.0.changed.notify(usize::MAX);
        }
        if pipes.unsent.len() > unsent {
            pipes.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Sink<Message> for Outgoing {
    type Error = WsError;

    fn poll_ready(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        let slack = lock(&self.0.pipes).slack;
        self.until(slack, context)
    }

    fn start_send(self: Pin<&mut Self>, frame: Message) -> Result<(), WsError> {
        let mut pipes = lock(&self.0.pipes);
        if pipes.client_left {
            return Err(WsError::ConnectionClosed);
        }
        assert!(!pipes.close_written, "a frame after the last: {frame:?}");
        pipes.close_written = matches!(frame, Message::Close(_));
        pipes.unsent.push_back(frame);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        self.until(0, context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        self.poll_flush(context)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let said = lock(&self.0.pipes).close_written;
        assert!(
            std::thread::panicking() || said || self.0.may_be_given_up(),
            "a client is given up without a reason"
        );
        lock(&self.0.pipes).down_closed = true;
        self.0.changed.notify(usize::MAX);
    }
}
