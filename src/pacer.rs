//! The io thread's time, of which no subject takes much while the model computes for others.
//!
//! Owns: the rest of a connection or an exchange between two of its turns on that thread. Never: how long a subject has to
//! rest, which whoever makes a [`Pacer`] knows; what the work is.
//!
//! Everybody's bytes go through one thread, which shares the cores with the batches: a flood of them, however cheap each,
//! is paid with others' tokens. What rests reads nothing, and so its peer waits: on the socket, as with any slow reader.

use crate::clock;
use smol::Timer;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Is told how long something of its subject has just computed, and says how long that rests now.
type Account = dyn Fn(Duration) -> Duration + Send + Sync;

/// Has what is done for one subject rest, once it is known for which. Clones stay the same one.
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

    /// The work, with rests.
    pub fn pace<'w>(&self, work: impl Future<Output = ()> + Send + 'w) -> Paced<'w> {
        Paced { pacer: self.clone(), work: Box::pin(work), rest: None }
    }
}

pub struct Paced<'w> {
    pacer: Pacer,
    work: Pin<Box<dyn Future<Output = ()> + Send + 'w>>,
    rest: Option<Timer>,
}

impl Future for Paced<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(rest) = &mut self.rest {
                ready!(Pin::new(rest).poll(context));
                self.rest = None;
            }
            let before = clock::computed();
            let polled = self.work.as_mut().poll(context);
            let took = clock::computed().saturating_sub(before);
            let rest = self.pacer.0.get().map_or(Duration::ZERO, |account| account(took));
            if polled.is_ready() || rest.is_zero() {
                return polled;
            }
            self.rest = Some(Timer::after(rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    #[test]
    fn once_its_subject_is_known_work_rests_and_has_no_turn_however_often_it_is_woken() {
        let (turns, told) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let account: Arc<Account> = {
            let told = told.clone();
            Arc::new(move |_| {
                told.fetch_add(1, Ordering::Relaxed);
                Duration::from_secs(3600)
            })
        };
        let pacer = Pacer::default();
        let mut paced = pacer.pace(async {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                smol::future::yield_now().await;
            }
        });
        let mut wake = |times: usize| {
            for _ in 0..times {
                let polled = Pin::new(&mut paced).poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending());
            }
            turns.load(Ordering::Relaxed)
        };
        assert_eq!(wake(3), 3, "it is nobody's");
        pacer.join(Pacer::default);
        assert_eq!(wake(1), 4, "and still is");
        pacer.join(|| Pacer::new(account));
        pacer.join(|| unreachable!("it is somebody's"));
        assert_eq!((wake(3), told.load(Ordering::Relaxed)), (5, 1));
    }
}
