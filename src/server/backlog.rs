//! What a client has asked for and has not been given yet.
//!
//! Owns: their order, one after the other as they came, and how many are read while one takes its time. Never: what one means
//! (`session`), or how it is performed (`connection`).
//!
//! A launch may wait for its program's translation, an upload for the disk. The client is read meanwhile, as long as not too much
//! waits: it may leave, or want an end, which waits for nothing, and so somebody has to look.

use super::session::Effect;
use crate::limits;
use smol::future::or;
use std::collections::VecDeque;
use std::pin::Pin;

pub type Performing<'p, P> = Pin<Box<dyn Future<Output = P> + Send + 'p>>;

/// `P`: what comes of one that was performed.
pub struct Backlog<'p, P> {
    performing: Option<Performing<'p, P>>,
    performed: Option<P>,
    waiting: VecDeque<(Effect, usize)>,
    /// Of the frames of those that wait.
    bytes: usize,
    /// The last one takes its time so that no more are read.
    denies: bool,
}

impl<P> Default for Backlog<'_, P> {
    fn default() -> Self {
        Backlog { performing: None, performed: None, waiting: VecDeque::new(), bytes: 0, denies: false }
    }
}

impl<'p, P> Backlog<'p, P> {
    /// Whether another may be read.
    pub fn has_room(&self) -> bool {
        !self.denies
            && self.waiting.len() < limits::REQUESTS_AHEAD
            && self.bytes < limits::REQUEST_BYTES_AHEAD
    }

    /// Another, whose frame had so many bytes.
    pub fn push(&mut self, effect: Effect, bytes: usize) {
        self.denies = matches!(effect, Effect::Deny(pause, _) if !pause.is_zero());
        self.bytes += bytes;
        self.waiting.push_back((effect, bytes));
    }

    /// The one whose turn it is; none while another is performed.
    pub fn next(&mut self) -> Option<Effect> {
        if self.performing.is_some() || self.performed.is_some() {
            return None;
        }
        let (effect, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(effect)
    }

    /// Begins with what [`Backlog::next`] was, or with what follows from it.
    pub fn perform(&mut self, performing: Performing<'p, P>) {
        self.performing = Some(performing);
    }

    /// Goes on with the one that is performed until that is done; for ever if none is.
    pub async fn goes_on(&mut self) {
        let Some(performing) = &mut self.performing else { return std::future::pending().await };
        self.performed = Some(performing.as_mut().await);
        self.performing = None;
        self.denies &= !self.waiting.is_empty();
    }

    /// What came of the one that is done, once.
    pub fn performed(&mut self) -> Option<P> {
        self.performed.take()
    }

    /// Something else, while it goes on: whoever holds what others wait for must not stand still.
    pub async fn beside<T>(&mut self, other: impl Future<Output = T>) -> T {
        let going_on = async {
            self.goes_on().await;
            std::future::pending().await
        };
        or(other, going_on).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::{poll_once, yield_now};
    use std::time::Duration;

    fn request() -> Effect {
        Effect::Status { corr_id: 0 }
    }

    #[test]
    fn one_is_performed_at_a_time_and_so_many_wait() {
        smol::block_on(async {
            let (go, gone) = smol::channel::bounded(1);
            let mut backlog = Backlog::default();
            assert!(poll_once(backlog.goes_on()).await.is_none(), "there is nothing to do");
            backlog.push(request(), 0);
            assert!(backlog.next().is_some());
            backlog.perform(Box::pin(async { gone.recv().await.unwrap() }));
            for _ in 0..limits::REQUESTS_AHEAD {
                assert!(backlog.has_room());
                backlog.push(request(), 1);
            }
            assert!(!backlog.has_room() && backlog.next().is_none());
            assert!(poll_once(backlog.goes_on()).await.is_none());
            go.send(7).await.unwrap();
            backlog.beside(yield_now()).await;
            // Nothing else is begun before it is known what came of it.
            assert!(backlog.next().is_none() && poll_once(backlog.goes_on()).await.is_none());
            assert_eq!((backlog.performed(), backlog.performed()), (Some(7), None));
            assert!(backlog.next().is_some() && backlog.has_room());
        });
    }

    #[test]
    fn nothing_is_read_behind_a_long_frame_or_a_denial() {
        let mut backlog = Backlog::<()>::default();
        backlog.push(request(), limits::REQUEST_BYTES_AHEAD);
        assert!(!backlog.has_room() && backlog.next().is_some() && backlog.has_room());
        backlog.push(Effect::Deny(Duration::ZERO, None), 10);
        assert!(backlog.has_room() && backlog.next().is_some(), "it does not pause");
        backlog.push(Effect::Deny(Duration::from_millis(1), None), 10);
        assert!(!backlog.has_room());
        let _denial = backlog.next();
        assert!(!backlog.has_room(), "nor while it pauses");
        backlog.perform(Box::pin(async {}));
        smol::block_on(backlog.goes_on());
        assert!(backlog.has_room());
    }
}
