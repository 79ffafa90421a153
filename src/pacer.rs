//! The io thread's time, of which nobody who floods it has much while the model computes for others.
//!
//! Owns: the rest of whoever floods that thread, taken before it reads or calls more. Never: how long it is, which whoever
//! makes a [`Pacer`] knows; the end of a token, of an instance or of the server, which waits for nothing here. What a client says
//! waits behind its own flood, a rest at most for each 64 KiB.
//!
//! Everybody's bytes go through one thread, which shares the cores with the batches: a flood of them, however cheap each,
//! is paid with others' tokens. What rests takes nothing more, and so its peer waits, as for any slow reader. Paced are
//! whoever has more to say than it is read at once, and the requests of programs; not what the server writes.

use smol::Timer;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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
