//! What time it is, and waiting for another time.
//!
//! Owns: the way to the clocks of the machine, for whatever a connection or an instance does by the clock. Never: how
//! long anything may take, which `limits` says. In tests a thread can have a clock of its own, which stands still until
//! it is moved (`fake`): the simulation's hours pass in milliseconds, and the same every time.
//!
//! Most waits are bounds that nobody comes to: one for each message, one for each instance. smol's timers wake the io thread
//! when they begin, from whatever thread, and that one then often its helper, ten times: as often as there was anything to
//! read, and each time a batch stood still. So who waits for long here waits in a list (`far.rs`).

use rustix::time::{ClockId, clock_gettime};
use smol::Timer;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

mod far;

pub use far::{Far, start};

/// The clock that never goes back.
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = fake::now() {
        return now;
    }
    Instant::now()
}

/// How long the calling thread has computed: at low priority it may wait far longer than it works.
pub fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The wall clock, which may be set.
pub fn date() -> OffsetDateTime {
    #[cfg(test)]
    if let Some(date) = fake::date() {
        return date;
    }
    OffsetDateTime::now_utc()
}

/// Waits until `time` has passed.
pub async fn after(time: Duration) {
    match now().checked_add(time) {
        Some(then) => at(then).await,
        None => std::future::pending().await,
    }
}

/// Waits until then.
pub async fn at(then: Instant) {
    #[cfg(test)]
    if fake::now().is_some() {
        return fake::at(then).await;
    }
    Wait::until(then).await;
}

/// Waits by the machine's clock, whatever a test has its thread believe.
pub enum Wait {
    Near(Timer),
    Far(Far),
}

impl Wait {
    pub fn until(then: Instant) -> Wait {
        far::at(then).map_or_else(|| Wait::Near(Timer::at(then)), Wait::Far)
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.get_mut() {
            Wait::Near(timer) => Pin::new(timer).poll(context).map(drop),
            Wait::Far(far) => Pin::new(far).poll(context),
        }
    }
}

/// A clock of this thread alone.
#[cfg(test)]
pub mod fake {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::future::poll_fn;
    use std::task::{Poll, Waker};
    use std::time::{Duration, Instant};
    use time::OffsetDateTime;

    struct Fake {
        started: Instant,
        passed: Duration,
        /// Who waits, by time, then in the order in which they began to.
        sleepers: BTreeMap<(Instant, u64), Waker>,
        slept: u64,
    }

    thread_local! {
        static FAKE: RefCell<Option<Fake>> = const { RefCell::new(None) };
    }

    /// What the wall clock says at the start: far ahead, for nobody signs a token that expired by today's.
    pub fn epoch() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(60_000)
    }

    /// While it is held, this thread has a clock that stands still.
    #[must_use]
    pub struct Hold(());

    impl Drop for Hold {
        fn drop(&mut self) {
            FAKE.set(None);
        }
    }

    pub fn set() -> Hold {
        let fake =
            Fake { started: Instant::now(), passed: Duration::ZERO, sleepers: BTreeMap::new(), slept: 0 };
        FAKE.set(Some(fake));
        Hold(())
    }

    /// What has passed since it was set.
    pub fn passed() -> Duration {
        with(|fake| fake.passed).unwrap_or_default()
    }

    /// Moves the clock to the next time that somebody waits for, and wakes whoever does. False: nobody waits.
    pub fn skip() -> bool {
        let Some(woken) = with(Fake::skip) else { return false };
        let any = !woken.is_empty();
        woken.into_iter().for_each(Waker::wake);
        any
    }

    pub(super) fn now() -> Option<Instant> {
        with(|fake| fake.started + fake.passed)
    }

    pub(super) fn date() -> Option<OffsetDateTime> {
        with(|fake| epoch() + fake.passed)
    }

    pub(super) async fn at(then: Instant) {
        let mut place = Place(None);
        poll_fn(|context| {
            if now().is_none_or(|now| then <= now) {
                return Poll::Ready(());
            }
            with(|fake| {
                let key = *place.0.get_or_insert_with(|| {
                    fake.slept += 1;
                    (then, fake.slept)
                });
                fake.sleepers.insert(key, context.waker().clone());
            });
            Poll::Pending
        })
        .await;
    }

    /// Of one who waits, among the sleepers.
    struct Place(Option<(Instant, u64)>);

    impl Drop for Place {
        fn drop(&mut self) {
            if let Some(key) = self.0 {
                with(|fake| fake.sleepers.remove(&key));
            }
        }
    }

    impl Fake {
        fn skip(&mut self) -> Vec<Waker> {
            let Some(&(next, _)) = self.sleepers.keys().next() else { return Vec::new() };
            self.passed = self.passed.max(next.duration_since(self.started));
            let rest = self.sleepers.split_off(&(next, u64::MAX));
            std::mem::replace(&mut self.sleepers, rest).into_values().collect()
        }
    }

    fn with<T>(act: impl FnOnce(&mut Fake) -> T) -> Option<T> {
        FAKE.try_with(|fake| fake.borrow_mut().as_mut().map(act)).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::or;

    #[test]
    fn a_fake_clock_stands_still_until_it_is_moved_and_wakes_who_is_due() {
        let hold = fake::set();
        let (start, day) = (now(), date());
        let executor = smol::LocalExecutor::new();
        let [long, short] = [7200, 3600].map(|seconds| executor.spawn(after(Duration::from_secs(seconds))));
        let given_up = executor.spawn(or(after(Duration::from_secs(60)), async {}));
        let turns = || while executor.try_tick() {};
        turns();
        assert!(given_up.is_finished() && !short.is_finished() && now() == start);
        assert!(fake::skip(), "the hour, for whoever waited for the minute waits no more");
        turns();
        assert!(short.is_finished() && !long.is_finished());
        assert_eq!((fake::passed(), date() - day), (Duration::from_secs(3600), time::Duration::hours(1)));
        assert!(fake::skip() && !fake::skip());
        turns();
        assert!(long.is_finished());
        drop(hold);
        assert_eq!(fake::passed(), Duration::ZERO);
    }
}
