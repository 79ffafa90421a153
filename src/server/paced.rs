//! A socket that lets others have their turn.
//!
//! Owns: a pause after a few reads in a row. A WebSocket reader asks for more until it has a message, and a client that
//! sends empty fragments without end never completes one; without the pause it alone would have the io thread. It is
//! a rest, if the subject has had its part of that thread: those who do not flood never have one. Never: frames.

use crate::pacer::Pacer;
use smol::Timer;
use smol::io::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Reads in a row before a pause: 64 KiB with the socket's buffers.
const READS: u8 = 4;
/// What it takes to read so much and to do what it says.
const READS_TAKE: Duration = Duration::from_micros(100);

pub struct Paced {
    stream: TcpStream,
    reads: u8,
    pacer: Pacer,
    rest: Option<Timer>,
}

impl Paced {
    pub fn new(stream: TcpStream, pacer: Pacer) -> Paced {
        Paced { stream, reads: 0, pacer, rest: None }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(rest) = &mut self.rest {
            ready!(Pin::new(rest).poll(cx));
            self.rest = None;
        }
        if self.reads == READS {
            self.reads = 0;
            self.rest = self.pacer.rest(READS_TAKE);
            if let Some(rest) = &mut self.rest {
                ready!(Pin::new(rest).poll(cx));
                self.rest = None; // so short that it is over
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.reads = if read.is_ready() { self.reads + 1 } else { 0 };
        read
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::or;
    use smol::io::{AsyncReadExt, AsyncWriteExt};
    use smol::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const READ: usize = 1000;

    /// The two ends of a connection.
    async fn pair(pacer: Pacer) -> (TcpStream, Paced) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Paced::new(listener.accept().await.unwrap().0, pacer))
    }

    #[test]
    fn after_a_rest_however_short_it_reads_on() {
        for rest in [Duration::from_nanos(1), Duration::from_millis(2)] {
            smol::block_on(async {
                let (mut client, mut socket) = pair(Pacer::new(Arc::new(move |_| rest))).await;
                client.write_all(&[7; 100 * READ]).await.unwrap();
                for _ in 0..100 {
                    socket.read_exact(&mut [0; READ]).await.unwrap();
                }
            });
        }
    }

    #[test]
    fn who_floods_rests_once_it_is_known_whose_it_is_and_nobody_else() {
        let told = Arc::new(AtomicUsize::new(0));
        let account = {
            let told = told.clone();
            move |_takes: Duration| {
                told.fetch_add(1, Ordering::Relaxed);
                Duration::from_secs(3600)
            }
        };
        smol::block_on(async {
            let pacer = Pacer::default();
            let (mut client, mut socket) = pair(pacer.clone()).await;
            let mut read = [0; READ];
            client.write_all(&[7; 10 * READ]).await.unwrap();
            for _ in 0..10 {
                socket.read_exact(&mut read).await.unwrap();
            }
            pacer.join(|| Pacer::new(Arc::new(account)));
            // One message after another is no flood, ...
            for _ in 0..10 {
                let waited = async {
                    smol::future::yield_now().await;
                    client.write_all(&[7]).await.unwrap();
                };
                smol::future::zip(waited, socket.read_exact(&mut read[..1])).await.1.unwrap();
            }
            assert_eq!(told.load(Ordering::Relaxed), 0);
            // ... and this is one.
            client.write_all(&[7; 10 * READ]).await.unwrap();
            let all = async {
                for reads in 0..10 {
                    socket.read_exact(&mut read).await.unwrap();
                    assert!(reads <= usize::from(READS), "it does not rest");
                }
                true
            };
            let late = async {
                Timer::after(Duration::from_millis(100)).await;
                false
            };
            assert!(!or(all, late).await);
            assert_eq!(told.load(Ordering::Relaxed), 1);
        });
    }
}
