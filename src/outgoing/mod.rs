//! HTTP that guests send: from a request as plain data to its response, or to why there is none.
//!
//! Owns: [`policy`] who may be asked, [`connect`] from a host to a socket at an address that was checked, [`client`] one
//! exchange; and here the bounds on how many there are. Never: guests, or what they do with an answer.
//!
//! ```text
//!  guest ──Asking::send──▶ bounded channel ──▶ Sending (io thread): policy, resolve, check, connect, exchange
//!    ◀──────────────────────── Promised, bodies ◀──────────────────────────────┘
//! ```
//! Each request has a connection of its own, to an address that was checked for it. Redirects are not followed, no proxy is
//! asked and nothing is kept: a guest sees what came, and asks again if it wants to.

pub mod client;
pub mod connect;
pub mod policy;

use crate::identity::InstanceId;
use crate::limits;
use crate::transfer::{ErrorCode, Promise, Promised, Reader, promise};
use connect::{Resolve, System};
use policy::{Allowed, Policy};
use smol::Executor;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::FutureExt;
use smol::lock::{Semaphore, SemaphoreGuardArc};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long the guest would wait for each step; never longer than the box does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub between_bytes: Option<Duration>,
}

/// One request on its way.
pub struct Job {
    pub request: http::Request<Reader>,
    pub times: Times,
    pub asker: Asker,
    pub promise: Promise,
    /// Closes when nobody waits for the response any more.
    pub unwanted: Receiver<Infallible>,
    /// Closes when the instance is gone.
    pub gone: Receiver<Infallible>,
    pub places: (SemaphoreGuardArc, SemaphoreGuardArc),
}

/// On whose behalf.
#[derive(Clone)]
pub struct Asker {
    pub instance: InstanceId,
    pub policy: Policy,
    warnings: Arc<AtomicUsize>,
}

impl Asker {
    pub fn new(instance: InstanceId, policy: Policy) -> Asker {
        Asker { instance, policy, warnings: Arc::default() }
    }

    /// For the operator, who alone can allow more. Only so often, or a guest could fill the log.
    pub fn warn(&self, sentence: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) < limits::OUTGOING_WARNINGS {
            true => tracing::warn!(target: "outgoing", instance = %self.instance, "{sentence}"),
            false => tracing::debug!(target: "outgoing", instance = %self.instance, "{sentence}"),
        }
    }
}

/// Where requests are given, by instances of one box. Cheap to clone.
#[derive(Clone)]
pub struct Outgoing {
    of_box: Allowed,
    jobs: Sender<Job>,
    places: Arc<Semaphore>,
}

/// What sends them; dropping it ends all exchanges.
pub struct Sending {
    jobs: Receiver<Job>,
    resolver: Arc<dyn Resolve>,
}

/// The place to give requests to, and what sends them. `of_box`: what every instance may ask.
pub fn outgoing(of_box: Allowed) -> (Outgoing, Sending) {
    let (sender, jobs) = bounded(limits::OUTGOING_REQUESTS);
    let places = Arc::new(Semaphore::new(limits::OUTGOING_REQUESTS));
    (Outgoing { of_box, jobs: sender, places }, Sending { jobs, resolver: Arc::new(System::default()) })
}

impl Outgoing {
    /// Whose requests come to nothing.
    #[cfg(test)]
    pub fn to_nobody() -> Outgoing {
        outgoing(Allowed::default()).0
    }

    /// For one instance. `of_token`: what its launcher's token allows beside.
    pub fn instance(&self, instance: InstanceId, of_token: Allowed) -> Asking {
        let (here, gone) = bounded(1);
        Asking {
            asker: Asker::new(instance, Policy { of_box: self.of_box.clone(), of_token }),
            outgoing: self.clone(),
            places: Arc::new(Semaphore::new(limits::OUTGOING_REQUESTS_PER_INSTANCE)),
            _here: here,
            gone,
        }
    }
}

/// Where one instance gives its requests. Dropping it ends them.
pub struct Asking {
    asker: Asker,
    outgoing: Outgoing,
    places: Arc<Semaphore>,
    _here: Sender<Infallible>,
    gone: Receiver<Infallible>,
}

/// Dropped before the response is there, it ends the request.
pub struct Wanted(#[expect(dead_code, reason = "it closes the channel when dropped")] Sender<Infallible>);

impl Asking {
    /// Sends a request, whose URI has a scheme and an authority. Whatever comes of it is in the promise.
    pub fn send(&self, request: http::Request<Reader>, times: Times) -> (Arc<Promised>, Wanted) {
        let (promise, promised) = promise();
        let (wanted, unwanted) = bounded(1);
        match self.places.try_acquire_arc().zip(self.outgoing.places.try_acquire_arc()) {
            None => promise.keep(Err(ErrorCode::ConnectionLimitReached)),
            Some(places) => {
                let (asker, gone) = (self.asker.clone(), self.gone.clone());
                // There is room for as many as there are places. Once the box is ending nobody sends any more, and the
                // promise is dropped unkept.
                let _ = self.outgoing.jobs.try_send(Job {
                    request,
                    times,
                    asker,
                    promise,
                    unwanted,
                    gone,
                    places,
                });
            }
        }
        (promised, Wanted(wanted))
    }
}

impl Sending {
    /// With another way from names to addresses.
    #[cfg(test)]
    fn with(self, resolver: Arc<dyn Resolve>) -> Sending {
        Sending { resolver, ..self }
    }

    pub async fn run(self) {
        let executor = Executor::new();
        let taken = async {
            while let Ok(job) = self.jobs.recv().await {
                let exchange = client::exchange(job, self.resolver.clone());
                let guarded = async {
                    if AssertUnwindSafe(exchange).catch_unwind().await.is_err() {
                        tracing::error!(target: "outgoing", "a request was ended by a fault of the server; others go on");
                    }
                };
                executor.spawn(guarded).detach();
            }
            std::future::pending().await // nobody can send any more; what is on its way goes on
        };
        executor.run(taken).await
    }
}

#[cfg(test)]
mod tests;
