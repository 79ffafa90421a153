//! Waits of about a second and more, in a list.
//!
//! Owns: the list, and the thread that wakes who is due. Never: a short wait, which smol's timers are for.
//!
//! To wait, and to wait no longer, are a lock and a place in the list, and wake nobody: the thread looks through the list when
//! the first wait that it saw is over, though that may be given up, and is told of sooner ones alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// What is sooner is not for this list. A wait of one second, which is that much shorter when it comes here, is.
const FAR: Duration = Duration::from_millis(900);
/// The thread wakes others, and does nothing else.
const STACK_BYTES: usize = 256 << 10;

#[derive(Default)]
struct List {
    waiting: Mutex<Waiting>,
    /// Somebody is to be woken sooner than the thread would look.
    sooner: Condvar,
}

#[derive(Default)]
struct Waiting {
    places: Vec<Option<(Instant, Waker)>>,
    free: Vec<usize>,
    /// When the thread looks again by itself; none: never.
    looks: Option<Instant>,
}

/// None: the system gave no thread for it.
static LIST: LazyLock<Option<&'static List>> = LazyLock::new(|| {
    let list: &'static List = Box::leak(Box::default());
    let thread = thread::Builder::new().name("clock".into()).stack_size(STACK_BYTES);
    thread.spawn(|| list.wake()).ok().map(|_| list)
});

/// Starts the thread, if it does not run yet, with the calling thread's cores and priority.
pub fn start() {
    LazyLock::force(&LIST);
}

/// A wait in the list; none: it is too soon for that.
pub fn at(then: Instant) -> Option<Far> {
    let far = then.saturating_duration_since(Instant::now()) >= FAR;
    far.then_some(())?;
    LIST.map(|list| Far { list, then, place: None })
}

/// Waits until then.
pub struct Far {
    list: &'static List,
    then: Instant,
    /// Its number, and who was told of last.
    place: Option<(usize, Waker)>,
}

impl Future for Far {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.then {
            return Poll::Ready(());
        }
        if self.place.as_ref().is_none_or(|(_, waker)| !waker.will_wake(context.waker())) {
            let place = self.place.take().map(|(place, _)| place);
            let place = self.list.enter(place, self.then, context.waker());
            self.place = Some((place, context.waker().clone()));
        }
        Poll::Pending
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some((place, _)) = self.place {
            let mut waiting = self.list.lock();
            let waker = waiting.places[place].take();
            waiting.free.push(place);
            drop(waiting);
            drop(waker); // without the lock: it may be the last of its task
        }
    }
}

impl List {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is to be woken then, in the place that it has, if it has one.
    fn enter(&self, place: Option<usize>, then: Instant, waker: &Waker) -> usize {
        let mut waiting = self.lock();
        let place = place.or_else(|| waiting.free.pop()).unwrap_or(waiting.places.len());
        if place == waiting.places.len() {
            waiting.places.push(None);
        }
        let before = waiting.places[place].replace((then, waker.clone()));
        let sooner = waiting.looks.is_none_or(|looks| then < looks);
        drop(waiting);
        drop(before);
        if sooner {
            self.sooner.notify_one();
        }
        place
    }

    fn wake(&self) {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let (mut due, mut next) = (Vec::new(), None::<Instant>);
            for place in &mut waiting.places {
                match place {
                    Some((then, _)) if *then <= now => due.extend(place.take()),
                    Some((then, _)) => next = Some(next.map_or(*then, |next| next.min(*then))),
                    None => {}
                }
            }
            waiting.looks = next;
            if !due.is_empty() {
                drop(waiting);
                for (_, waker) in due {
                    // Whoever it wakes may not take all others with it.
                    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                        tracing::error!(target: "clock", "a waker panicked");
                    }
                }
                waiting = self.lock();
                continue; // to see who has come meanwhile
            }
            let left = next.map_or(Duration::MAX, |next| next - now);
            waiting = self.sooner.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::{or, poll_once};
    use std::sync::Arc;
    use std::task::Wake;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {
            panic!("the clock goes on all the same");
        }
    }

    fn waits(then: Instant) -> Far {
        Far { list: LIST.expect("a thread"), then, place: None }
    }

    #[test]
    fn who_waits_is_woken_in_time_whoever_gave_up_before_and_whoever_polls() {
        let (since, ms) = (Instant::now(), Duration::from_millis(1));
        assert!(at(since + FAR).is_none(), "too soon for the list");
        assert!(at(since + 3600 * FAR).is_some());
        let (mut soon, hour) = (waits(since + 200 * ms), since + 3600 * FAR);
        // First polled for somebody else, and beside one who panics.
        let nobody = Waker::from(Arc::new(Nobody));
        let mut panics = waits(since + 150 * ms);
        for far in [&mut soon, &mut panics] {
            assert!(Pin::new(far).poll(&mut Context::from_waker(&nobody)).is_pending());
        }
        smol::block_on(async {
            assert!(poll_once(waits(since + 100 * ms)).await.is_none(), "given up");
            or(soon, or(waits(hour), waits(hour))).await;
        });
        let took = since.elapsed();
        assert!(took >= 200 * ms && took < 1000 * FAR, "{took:?}");
        let waiting = LIST.expect("a thread").lock();
        let left = waiting.places.iter().flatten().any(|(then, _)| *then == hour);
        assert!(!left, "whoever waits no longer is in no list");
    }
}
