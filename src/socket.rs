//! A socket and a clock as hyper wants them.
//!
//! Owns: the adapter from smol's traits to hyper's, and the end of a peer that takes nothing. Never: HTTP, or whose socket
//! it is.

use crate::clock::Wait;
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use smol::io::{AsyncRead, AsyncWrite};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Bytes of one read; hyper's buffer grows with it.
const READ_BYTES: usize = 8 * 1024;

/// Nothing of it is pinned.
pub struct Socket<S> {
    stream: S,
    /// How long the peer may take nothing of what is written.
    stall: Duration,
    /// Runs while it takes nothing.
    stalled: Option<smol::Timer>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub fn new(stream: S, stall: Duration) -> Socket<S> {
        Socket { stream, stall, stalled: None }
    }
}

impl<S: AsyncRead + Unpin> Read for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_BYTES];
        let room = buffer.remaining().min(READ_BYTES);
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut bytes[..room]))?;
        buffer.put_slice(&bytes[..read]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Write for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| smol::Timer::after(stall));
        Pin::new(stalled).poll(context).map(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// The timers of `clock`.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait::until(deadline))
    }
}

impl Sleep for Wait {}
