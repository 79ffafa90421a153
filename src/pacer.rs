//! The io thread's time, of which nobody who floods it has much while the model computes for others.
//!
//! Owns: the rest of whoever floods that thread, taken before it reads or calls more; [`Paced`], the socket that so lets others
//! have their turn. Never: how long a rest is, which whoever makes a [`Pacer`] knows; frames; the end of a token, of an instance or
//! of the server, which waits for nothing here. What a client says waits behind its own flood, a rest at most for each few reads.
//!
//! Everybody's bytes go through one thread, which shares the cores with the batches: a flood of them, however cheap each,
//! is paid with others' tokens. What rests takes nothing more, and so its peer waits, as for any slow reader. Paced are
//! whoever has more to say than it is read at once, and the requests of programs with their responses; not what the server writes.

use smol::io::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;
use smol::{Async, Timer};
use std::io::{self, ErrorKind, Read as _};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Reads in a row before a pause: 64 KiB with a WebSocket's buffers, 32 KiB with HTTP's.
const READS: u8 = 4;
/// What it takes to read so much and to do what it says, about.
const READS_TAKE: Duration = Duration::from_micros(100);

/// Is told how much of the thread something of its subject takes, and says how long that rests before.
type Account = dyn Fn(Duration) -> Duration + Send + Sync;

/// One subject's, or nobody's yet. Clones stay the same one.
#[derive(Clone, Default)]
pub struct Pacer(Arc<OnceLock<Arc<Account>>>);

impl Pacer {
    pub fn new(account: Arc<Account>) -> Pacer {
        Pacer(Arc::new(OnceLock::from(account)))
    }

    /// From now on it is for whom the other one is, if it was for nobody.
    pub fn join(&self, other: impl FnOnce() -> Pacer) {
        if self.0.get().is_none()
            && let Some(account) = other().0.get()
        {
            self.0.get_or_init(|| account.clone());
        }
    }

    /// The rest before something that takes about so much; none: it may begin. Nobody never rests.
    pub fn rest(&self, takes: Duration) -> Option<Timer> {
        let rest = self.0.get()?(takes);
        (!rest.is_zero()).then(|| Timer::after(rest))
    }
}

/// A socket with a pause after a few reads in a row. A WebSocket reader asks for more until it has a message, and a client that
/// sends empty fragments without end never completes one; without the pause it alone would have the io thread. It is
/// a rest, if the subject has had its part of that thread: those who do not flood never have one.
pub struct Paced {
    stream: TcpStream,
    /// The same, which can be asked whether there is something to read without asking the system.
    source: Arc<Async<std::net::TcpStream>>,
    /// There was nothing to read, and the system has not said since that there is. smol's own streams ask it all the same
    /// whenever anything else wakes their task, which takes the thread more time than many a message. (The word may come in
    /// vain, if another thread had the reactor when this one began to wait: then it comes once more.)
    dry: bool,
    reads: u8,
    pacer: Pacer,
    rest: Option<Timer>,
}

impl Paced {
    pub fn new(stream: TcpStream, pacer: Pacer) -> Paced {
        let source = stream.clone().into();
        Paced { stream, source, dry: false, reads: 0, pacer, rest: None }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn poll_source(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            if self.dry {
                ready!(self.source.poll_readable(cx))?;
                self.dry = false;
            }
            match self.source.get_ref().read(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.dry = true,
                read => return Poll::Ready(read),
            }
        }
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
        let read = self.poll_source(cx, buf);
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
