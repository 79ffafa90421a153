//! A body on its way: a bounded pipe of bytes with an end that says how it ended.
//!
//! Owns: what is between a writer and a reader, at most [`limits::BODY_BYTES_IN_FLIGHT`], and the length that was
//! declared for it. Never: a wait; both ends are polled, each by one task at a time.

use super::ErrorCode;
use crate::limits;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use std::any::Any;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Counted for each chunk beside its bytes, so that many tiny ones are bounded too.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// The two ends of a body. `declared`: the length that it must have.
pub fn pipe(declared: Option<u64>) -> (Writer, Reader) {
    let state = Arc::new(Shared::new(State { left: declared, length: declared, ..State::default() }));
    (Writer(state.clone()), Reader(state))
}

/// A body without bytes.
pub fn empty() -> Reader {
    let (writer, reader) = pipe(Some(0));
    let _ = writer.finish(None); // nothing is missing
    reader
}

/// The end that makes the body. Dropping it unfinished breaks the body.
pub struct Writer(Arc<Shared>);

/// The end that takes it.
pub struct Reader(Arc<Shared>);

/// Why bytes, or an end, were not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody reads any more, or the body has ended.
    Closed,
    /// More bytes than were declared, or fewer; so many there were.
    Length(u64),
}

/// What is there to read.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    Bytes(Bytes),
    /// Nothing yet.
    Nothing,
    /// The end. Its trailers are [`Reader::trailers`]'s.
    End,
    Broken(ErrorCode),
}

struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`, overhead included.
    held: usize,
    /// Bytes that have gone in.
    written: u64,
    /// Bytes that must still come, where a length was declared.
    left: Option<u64>,
    length: Option<u64>,
    end: Option<Result<Option<HeaderMap>, ErrorCode>>,
    unread: bool,
    /// The reader wants only the end.
    discarding: bool,
    carried: Vec<Box<dyn Any + Send>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Writer {
    /// Whether somebody reads, or has read all that was declared.
    pub fn is_wanted(&self) -> bool {
        let state = self.0.lock();
        !state.unread || state.left == Some(0)
    }

    /// Bytes that may be written now; none: nobody reads any more.
    pub fn room(&self) -> Option<usize> {
        self.0.lock().room()
    }

    /// Ready when there is room, or nobody reads any more.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.room() != Some(0) {
            return Poll::Ready(());
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Ready once nobody reads any more. For the task that also waits for room.
    pub fn poll_unread(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.unread {
            return Poll::Ready(());
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Adds bytes. More than there is room for are taken too: who writes by chunks waits for any room.
    pub fn write(&self, bytes: Bytes) -> Result<(), Refused> {
        let mut state = self.0.lock();
        if state.room().is_none() {
            return Err(Refused::Closed);
        }
        let count = bytes.len() as u64;
        if state.left.is_some_and(|left| count > left) {
            return Err(Refused::Length(state.written + count));
        }
        state.left = state.left.map(|left| left - count);
        state.written += count;
        if count > 0 && !state.discarding {
            state.held += bytes.len() + CHUNK_OVERHEAD_BYTES;
            state.chunks.push_back(bytes);
        }
        wake(state, |state| &mut state.reader);
        Ok(())
    }

    /// The body is complete. One that is shorter than was declared is broken by this.
    pub fn finish(&self, trailers: Option<HeaderMap>) -> Result<(), Refused> {
        let state = self.0.lock();
        match state.left {
            Some(left) if left > 0 => {
                let written = state.written;
                drop(state);
                self.fail(ErrorCode::HttpRequestBodySize(Some(written)));
                Err(Refused::Length(written))
            }
            _ => {
                end(state, Ok(trailers));
                Ok(())
            }
        }
    }

    /// As [`Reader::carry`].
    pub fn carry(&self, what: Box<dyn Any + Send>) {
        self.0.lock().carried.push(what);
    }

    /// The body is broken, and this is why.
    pub fn fail(&self, why: ErrorCode) {
        end(self.0.lock(), Err(why));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        end(self.0.lock(), Err(ErrorCode::ConnectionTerminated));
    }
}

impl Reader {
    /// Takes at most `most` bytes.
    pub fn take(&self, most: usize) -> Taken {
        let mut state = self.0.lock();
        let Some(first) = state.chunks.front_mut() else {
            return match &state.end {
                None => Taken::Nothing,
                Some(Ok(_)) => Taken::End,
                Some(Err(why)) => Taken::Broken(why.clone()),
            };
        };
        let taken = if first.len() > most { first.split_to(most) } else { std::mem::take(first) };
        state.held -= taken.len();
        if state.chunks.front().is_some_and(Bytes::is_empty) {
            state.held -= CHUNK_OVERHEAD_BYTES;
            state.chunks.pop_front();
        }
        wake(state, |state| &mut state.writer);
        Taken::Bytes(taken)
    }

    /// The trailers of a body that has ended, if it has some. They are handed out once.
    pub fn trailers(&self) -> Option<HeaderMap> {
        self.0.lock().end.as_mut().and_then(|end| end.as_mut().ok()?.take())
    }

    /// Whether [`take`](Reader::take) would give something else than [`Taken::Nothing`].
    pub fn is_ready(&self) -> bool {
        self.0.lock().ready()
    }

    /// Whether all bytes were taken, and they are all that the body was to have.
    pub fn is_whole(&self) -> bool {
        let state = self.0.lock();
        state.chunks.is_empty() && (matches!(state.end, Some(Ok(_))) || state.left == Some(0))
    }

    /// Ready when [`take`](Reader::take) would give something else than [`Taken::Nothing`].
    pub fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.ready() {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Keeps something until both ends are gone: whoever counts the bytes of bodies.
    pub fn carry(&self, what: Box<dyn Any + Send>) {
        self.0.lock().carried.push(what);
    }

    /// Only the end is still wanted; bytes are dropped as they come.
    pub fn discard(&self) {
        let mut state = self.0.lock();
        state.discarding = true;
        state.chunks.clear();
        state.held = 0;
        wake(state, |state| &mut state.writer);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.unread = true;
        let chunks = std::mem::take(&mut state.chunks);
        wake(state, |state| &mut state.writer);
        drop(chunks);
    }
}

/// As hyper reads it.
impl Body for Reader {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        if self.poll_ready(context).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match self.take(usize::MAX) {
            Taken::Bytes(bytes) => Some(Ok(Frame::data(bytes))),
            Taken::End => self.trailers().map(|trailers| Ok(Frame::trailers(trailers))),
            Taken::Broken(why) => Some(Err(why)),
            Taken::Nothing => return Poll::Pending,
        })
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.chunks.is_empty() && matches!(state.end, Some(Ok(None)))
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl State {
    fn room(&self) -> Option<usize> {
        let free = limits::BODY_BYTES_IN_FLIGHT.saturating_sub(self.held + CHUNK_OVERHEAD_BYTES);
        (!self.unread && self.end.is_none()).then_some(free)
    }

    fn ready(&self) -> bool {
        !self.chunks.is_empty() || self.end.is_some()
    }
}

impl Shared {
    fn new(state: State) -> Shared {
        Shared(Mutex::new(state))
    }

    /// Whole between any two statements that can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first end counts.
fn end(mut state: MutexGuard<'_, State>, how: Result<Option<HeaderMap>, ErrorCode>) {
    if state.end.is_none() {
        state.end = Some(how);
        wake(state, |state| &mut state.reader);
    }
}

/// Outside the lock, for whoever wakes may run at once.
fn wake(mut state: MutexGuard<'_, State>, who: impl FnOnce(&mut State) -> &mut Option<Waker>) {
    let waker = who(&mut state).take();
    drop(state);
    waker.into_iter().for_each(Waker::wake);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize) -> Bytes {
        Bytes::from(vec![7; count])
    }

    #[test]
    fn a_full_pipe_makes_its_writer_wait_and_a_read_makes_room() {
        let (writer, reader) = pipe(None);
        let mut written = 0;
        while let Some(room @ 1..) = writer.room() {
            writer.write(bytes(room.min(1000))).expect("there is room");
            written += room.min(1000);
        }
        assert!(written <= limits::BODY_BYTES_IN_FLIGHT);
        assert_eq!(reader.take(10), Taken::Bytes(bytes(10)));
        assert_eq!(reader.take(usize::MAX), Taken::Bytes(bytes(990)), "the rest of the first chunk");
        assert!(writer.room() > Some(900));
        let mut tiny = 0;
        reader.discard();
        let (writer, _reader) = pipe(None);
        while writer.room() > Some(0) {
            writer.write(bytes(1)).expect("there is room");
            tiny += 1;
        }
        assert!(tiny <= limits::BODY_BYTES_IN_FLIGHT / CHUNK_OVERHEAD_BYTES, "{tiny} chunks of one byte");
    }

    #[test]
    fn an_end_comes_after_the_bytes_and_an_unfinished_body_is_broken() {
        let (writer, reader) = pipe(None);
        writer.write(bytes(3)).expect("somebody reads");
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        writer.finish(Some(trailers.clone())).expect("no length was declared");
        assert!(reader.is_ready() && !reader.is_whole());
        assert_eq!(reader.take(9), Taken::Bytes(bytes(3)));
        assert!(reader.is_whole());
        assert_eq!((reader.take(9), reader.take(9)), (Taken::End, Taken::End));
        assert_eq!(
            (reader.trailers(), reader.trailers()),
            (Some(trailers), None),
            "once, whoever saw the end"
        );

        let (writer, reader) = pipe(None);
        drop(writer);
        assert_eq!(reader.take(9), Taken::Broken(ErrorCode::ConnectionTerminated));
        assert!(!reader.is_whole() && reader.trailers().is_none());

        let (writer, reader) = pipe(None);
        drop(reader);
        assert_eq!((writer.room(), writer.write(bytes(1))), (None, Err(Refused::Closed)));
    }

    #[test]
    fn a_declared_length_is_kept() {
        let (writer, reader) = pipe(Some(5));
        assert_eq!(writer.write(bytes(6)), Err(Refused::Length(6)));
        writer.write(bytes(4)).expect("within the length");
        assert_eq!(writer.finish(None), Err(Refused::Length(4)));
        assert_eq!(reader.take(9), Taken::Bytes(bytes(4)));
        assert!(matches!(reader.take(9), Taken::Broken(_)));
    }
}
