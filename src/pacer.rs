//! The io thread's time, of which nobody has much for long while the model computes for others.
//!
//! Owns: the count of what each subject uses of that thread ([`Pacer::counted`]), and the rests of whoever has used more than its
//! part: before a read or a write of its sockets ([`Paced`]), and where else it asks for one. Never: what a subject's part is, which
//! whoever makes a [`Pacer`] knows; frames.
//!
//! Everybody's bytes go through one thread, which shares the cores with the batches: a flood of them, however cheap each,
//! is paid with others' tokens. What rests takes nothing more, and so its peer waits, as for any slow reader. A rest is short
//! where somebody may be about to say that it wants an end; what a client says waits behind its own flood. An end comes behind what
//! was sent before, so while one is under way nobody of its connection rests who sends ([`Pacer::hurry`]).

use event_listener::Event;
use smol::future::or;
use smol::io::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;
use smol::{Async, Timer};
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Reads in a row before a pause: 64 KiB with a WebSocket's buffers, 32 KiB with HTTP's.
const READS: u8 = 4;
/// The longest rest of what nothing waits behind, ...
const TURN_REST: Duration = Duration::from_secs(1);
/// ... of a flood, ...
const FLOOD_REST: Duration = Duration::from_millis(100);
/// ... and of everything else: an end is asked for through these too.
const REST: Duration = Duration::from_millis(10);
/// Rests end together, at multiples of this, and so up to this much later: each time that the thread wakes it takes a core from a
/// batch, whose other threads wait for that one.
const BEAT: Duration = Duration::from_millis(5);
/// What one poll counts as at most. One that took longer has run many tasks, or more likely has waited for its core; the thread's
/// own clock would know, but each look at that is a call of the system.
const POLL_MOST: Duration = Duration::from_millis(1);

/// Is told how much of the thread something of its subject takes, and says how long it is until its part has paid for that.
type Account = dyn Fn(Duration) -> Duration + Send + Sync;

/// One connection's, or a subject's. Clones stay the same one.
#[derive(Clone, Default)]
pub struct Pacer(Arc<Inner>);

#[derive(Default)]
struct Inner {
    account: RwLock<Option<Arc<Account>>>,
    /// What is about to end there.
    hurries: AtomicUsize,
    hurried: Event,
}

/// Something ends, until this is dropped.
pub struct Hurry(Pacer);

impl Pacer {
    pub fn new(account: Arc<Account>) -> Pacer {
        let pacer = Pacer::default();
        pacer.become_of(Some(account));
        pacer
    }

    /// From now on what it counts is the other one's.
    pub fn join(&self, other: &Pacer) {
        self.become_of(other.account());
    }

    fn become_of(&self, account: Option<Arc<Account>>) {
        *self.0.account.write().unwrap_or_else(PoisonError::into_inner) = account;
    }

    fn account(&self) -> Option<Arc<Account>> {
        self.0.account.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The rest before something behind which nothing waits and that takes so much at least: one after the other, as far as
    /// their rests are not the longest. None: it may go on. Nobody never rests.
    pub fn turn(&self, takes: Duration) -> Option<Timer> {
        self.owes(takes, TURN_REST).map(Timer::after)
    }

    /// The rest before more of what floods; none: it may go on.
    pub fn rest(&self) -> Option<Timer> {
        self.before(Duration::ZERO, FLOOD_REST)
    }

    fn before(&self, takes: Duration, most: Duration) -> Option<Timer> {
        self.owes(takes, most).map(|rest| Timer::at(beat(Instant::now() + rest)))
    }

    fn owes(&self, takes: Duration, most: Duration) -> Option<Duration> {
        let rest = self.account()?(takes).min(most);
        (!rest.is_zero()).then_some(rest)
    }

    /// Something begins to end.
    pub fn hurry(&self) -> Hurry {
        self.0.hurries.fetch_add(1, Ordering::Release);
        self.0.hurried.notify(usize::MAX);
        Hurry(self.clone())
    }

    /// Returns at once while something hurries, else when it begins to. Whoever has made what may be in its way rests no longer.
    pub async fn hurried(&self) {
        let hurried = self.0.hurried.listen();
        if self.0.hurries.load(Ordering::Acquire) == 0 {
            hurried.await;
        }
    }

    /// Rests from what floods, unless something hurries.
    pub async fn rested(&self) {
        if let Some(rest) = self.rest() {
            let over = async {
                rest.await;
            };
            or(over, self.hurried()).await;
        }
    }

    /// The same future, whose time on this thread counts as its subject's. In a box: a large one would be held twice.
    pub async fn counted<R>(&self, mut future: Pin<Box<dyn Future<Output = R> + Send + '_>>) -> R {
        poll_fn(|context| {
            let since = Instant::now();
            let polled = future.as_mut().poll(context);
            self.used(since.elapsed());
            polled
        })
        .await
    }

    fn used(&self, time: Duration) {
        if let Some(account) = self.account() {
            account(time.min(POLL_MOST));
        }
    }
}

/// The first beat at that time or later.
fn beat(then: Instant) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(Instant::now);
    let beats = then.saturating_duration_since(first).as_nanos().div_ceil(BEAT.as_nanos());
    first + Duration::from_nanos((beats * BEAT.as_nanos()) as u64)
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.0.hurries.fetch_sub(1, Ordering::Release);
    }
}

/// A socket that rests before it reads or writes if its subject has used more of the io thread than its part, and has a pause
/// after a few reads in a row. A WebSocket reader asks for more until it has a message, and a client that sends empty
/// fragments without end never completes one; without the pause it alone would have the io thread.
pub struct Paced {
    stream: TcpStream,
    /// The same, which can be asked whether there is something to read without asking the system.
    source: Arc<Async<std::net::TcpStream>>,
    /// There was nothing to read, and the system has not said since that there is. smol's own streams ask it all the same
    /// whenever anything else wakes their task, which takes the thread more time than many a message. (The word may come in
    /// vain, if another thread had the reactor when this one began to wait: then it comes once more.)
    dry: bool,
    row: u8,
    reads: Pacer,
    writes: Pacer,
    read_rest: Option<Timer>,
    write_rest: Option<Timer>,
}

impl Paced {
    /// Who rests before reads, and who before writes.
    pub fn new(stream: TcpStream, reads: Pacer, writes: Pacer) -> Paced {
        let source = stream.clone().into();
        let (read_rest, write_rest) = (None, None);
        Paced { stream, source, dry: false, row: 0, reads, writes, read_rest, write_rest }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Whether the rest that was begun, if one was, is over. A short one may be at once.
fn poll_rest(rest: &mut Option<Timer>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(timer) = rest {
        ready!(Pin::new(timer).poll(cx));
        *rest = None;
    }
    Poll::Ready(())
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(poll_rest(&mut this.read_rest, cx));
        if this.row == READS {
            this.row = 0;
            this.read_rest = this.reads.rest();
            ready!(poll_rest(&mut this.read_rest, cx));
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if this.dry {
                ready!(this.source.poll_readable(cx))?;
                this.dry = false;
                this.read_rest = this.reads.before(Duration::ZERO, REST);
                ready!(poll_rest(&mut this.read_rest, cx));
            }
            match this.source.get_ref().read(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => (this.dry, this.row) = (true, 0),
                read => {
                    this.row += 1;
                    return Poll::Ready(read);
                }
            }
        }
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.write_rest.is_none() {
            this.write_rest = this.writes.before(Duration::ZERO, REST);
        }
        ready!(poll_rest(&mut this.write_rest, cx));
        Pin::new(&mut this.stream).poll_write(cx, buf)
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
    use smol::future::poll_once;
    use smol::io::{AsyncReadExt, AsyncWriteExt};
    use smol::net::TcpListener;

    const READ: usize = 1000;

    /// The two ends of a connection.
    async fn pair(pacer: Pacer) -> (TcpStream, Paced) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Paced::new(listener.accept().await.unwrap().0, pacer.clone(), pacer))
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

    /// Lower bounds alone: a loaded machine is late.
    #[test]
    fn who_has_used_too_much_rests_before_a_read_or_write_and_longer_in_a_flood() {
        smol::block_on(async {
            let pacer = Pacer::default();
            let (mut client, mut socket) = pair(pacer.clone()).await;
            client.write_all(&[7; 10 * READ]).await.unwrap();
            let mut read = [0; READ];
            for _ in 0..10 {
                socket.read_exact(&mut read).await.unwrap();
            }
            let asked = Arc::new(AtomicUsize::new(0));
            let account = {
                let asked = asked.clone();
                move |_takes: Duration| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    Duration::from_secs(3600)
                }
            };
            pacer.join(&Pacer::new(Arc::new(account)));

            let since = Instant::now();
            for _ in 0..10 {
                let waited = async {
                    smol::future::yield_now().await;
                    client.write_all(&[7]).await.unwrap();
                };
                smol::future::zip(waited, socket.read_exact(&mut read[..1])).await.1.unwrap();
                socket.write_all(&[7]).await.unwrap();
            }
            assert!(since.elapsed() >= 20 * REST, "{:?}", since.elapsed());
            let rests = asked.swap(0, Ordering::Relaxed);
            assert!(rests >= 20, "{rests}");

            let since = Instant::now();
            client.write_all(&[7; 10 * READ]).await.unwrap();
            for _ in 0..10 {
                socket.read_exact(&mut read).await.unwrap();
            }
            let floods = 10 / u32::from(READS);
            assert!(since.elapsed() >= floods * FLOOD_REST, "{:?}", since.elapsed());

            let hurry = pacer.hurry();
            pacer.hurried().await;
            drop(hurry);
            assert!(poll_once(pacer.hurried()).await.is_none());
        });
    }

    #[test]
    fn what_a_future_takes_of_the_thread_is_its_subjects() {
        let told = Arc::new(std::sync::Mutex::new(vec![]));
        let account = {
            let told = told.clone();
            move |takes: Duration| {
                told.lock().unwrap().push(takes);
                Duration::from_secs(3600)
            }
        };
        let pacer = Pacer::new(Arc::new(account));
        let work = async {
            std::thread::sleep(POLL_MOST / 2);
            smol::future::yield_now().await;
            std::thread::sleep(2 * POLL_MOST);
            7
        };
        assert_eq!(smol::block_on(pacer.counted(Box::pin(work))), 7);
        let told = told.lock().unwrap();
        assert!(told.len() == 2 && told[0] >= POLL_MOST / 2 && told[1] == POLL_MOST, "{told:?}");
    }
}
