//! Waits of a second and more, in a list.
//!
//! Owns: the list, and the thread that wakes who is due. Never: a short wait, which smol's timers are for.
//!
//! To wait, and to wait no longer, are a lock and a place in the list, and wake nobody: the thread looks through the list when
//! the first wait that it saw is over, though that may be given up, and is told of sooner ones alone.

use std::pin::Pin;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// What is sooner is not for this list.
const FAR: Duration = Duration::from_secs(1);
/// The thread wakes others, and does nothing else.
const STACK_BYTES: usize = 64 << 10;

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
                due.into_iter().for_each(|(_, waker)| waker.wake());
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
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn who_waits_is_woken_in_time_whoever_gave_up_before_and_whoever_polls() {
        let since = Instant::now();
        assert!(at(since + FAR / 2).is_none(), "too soon for the list");
        let mut soon = at(since + FAR + Duration::from_millis(200)).expect("a thread");
        let waits = [3600, 3601].map(|seconds| at(since + Duration::from_secs(seconds)).expect("a thread"));
        // First polled for somebody else.
        let nobody = Waker::from(Arc::new(Nobody));
        assert!(Pin::new(&mut soon).poll(&mut Context::from_waker(&nobody)).is_pending());
        smol::block_on(async {
            let given_up = at(since + FAR + Duration::from_millis(100)).expect("a thread");
            assert!(poll_once(given_up).await.is_none());
            let [first, second] = waits;
            or(soon, or(first, second)).await;
        });
        let took = since.elapsed();
        assert!(took > FAR && took < Duration::from_secs(3000), "{took:?}");
        let waiting = LIST.expect("a thread").lock();
        let left = waiting.places.iter().flatten().any(|(then, _)| *then == since + 3600 * FAR);
        assert!(!left, "whoever waits no longer is in no list");
    }
}
