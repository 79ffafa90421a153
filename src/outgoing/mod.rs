//! HTTP requests that guests make: whom they may call, and the client that calls.
//!
//! Owns: the step from a guest's request to the io thread ([`Line::send`]), and how many are on their way at once. Never:
//! what a guest sees, which is `host/wasi/http`; TLS, which this binary does not speak.
//!
//! ```text
//!  guest ──Request<Reader>──▶ Line: may it? is there a place? ──Job──▶ Sending: look up, judge, connect, converse
//!    ▲                                                                     │
//!    └──────────── Promised: Result<Response<Reader>, ErrorCode> ◀─────────┘
//! ```

use crate::identity::{InstanceId, Subject};
use crate::limits;
use crate::pacer::Pacer;
use crate::places::{self, Full, Places};
use crate::transfer::{ErrorCode, Promise, Promised, Reader, promise};
use connect::Lookup;
use http::header::{HOST, HeaderValue};
use http::uri::Scheme;
use http::{Method, Uri};
use smol::channel::{Receiver, Sender};
use smol::future::{FutureExt, or};
use smol::{Executor, Timer};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

mod client;
mod connect;
pub mod policy;
#[cfg(test)]
mod tests;

pub use policy::Allowed;
use policy::Target;

/// What a guest that asks for https is told.
const NO_TLS: &str = "https is not spoken by this server: send http to a TLS proxy beside it (stunnel, for one), whose \
                      address its owner allows under [http]";

/// Where instances get their lines. Cheap to clone.
#[derive(Clone)]
pub struct Outgoing {
    allowed: Arc<Allowed>,
    on_their_way: OnTheirWay,
    jobs: Sender<Job>,
}

/// What carries requests out; dropping it ends them all.
pub struct Sending {
    jobs: Receiver<Job>,
    lookup: Lookup,
}

/// `allowed`: whom every program may call.
pub fn outgoing(allowed: Allowed) -> (Outgoing, Sending) {
    with_lookup(allowed, connect::system())
}

fn with_lookup(allowed: Allowed, lookup: Lookup) -> (Outgoing, Sending) {
    let (sender, jobs) = smol::channel::bounded(limits::OUTGOING);
    (
        Outgoing { allowed: Arc::new(allowed), on_their_way: OnTheirWay::new(), jobs: sender },
        Sending { jobs, lookup },
    )
}

/// A request that may be made, on its way to the io thread.
struct Job {
    request: http::Request<Reader>,
    target: Target,
    allowed: Allowed,
    within: Within,
    promise: Promise,
    /// Closes when the guest waits for the response no more.
    wanted: Receiver<Infallible>,
    refusals: Refusals,
    place: Place,
    pacer: Pacer,
}

impl Sending {
    pub async fn run(self) {
        let executor = Executor::new();
        let sent = async {
            while let Ok(job) = self.jobs.recv().await {
                let exchange = AssertUnwindSafe(client::carry_out(job, self.lookup.clone())).catch_unwind();
                let told = async {
                    if exchange.await.is_err() {
                        tracing::error!(
                            "a program's request was ended by a fault of the server; others go on"
                        );
                    }
                };
                executor.spawn(told).detach();
            }
            std::future::pending().await // nobody can send any more; what is on its way goes on
        };
        executor.run(sent).await
    }
}

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Within {
    connect: Duration,
    answer: Duration,
    silence: Duration,
}

impl Within {
    /// What the guest would wait, where that is less than the box would.
    pub fn new(connect: Option<Duration>, answer: Option<Duration>, silence: Option<Duration>) -> Within {
        let bounded = |wish: Option<Duration>, bound: Duration| wish.map_or(bound, |wish| wish.min(bound));
        Within {
            connect: bounded(connect, limits::OUTGOING_CONNECT_WITHIN),
            answer: bounded(answer, limits::OUTGOING_ANSWER_WITHIN),
            silence: bounded(silence, limits::OUTGOING_SILENCE),
        }
    }
}

/// A request that was made, or refused, which its promise tells.
pub struct Sent {
    pub promised: Arc<Promised>,
    /// The request is given up when this is dropped before the promise is kept.
    pub hold: Hold,
}

/// What the guest holds on to while it waits.
pub struct Hold {
    _wanted: Sender<Infallible>,
    /// The body of a refused request: what the guest writes goes nowhere, and then it learns the reason.
    _refused: Option<Reader>,
}

/// One instance's way out.
pub struct Line {
    instance: InstanceId,
    subject: Subject,
    /// Of the box, and of the token that launched it.
    allowed: Allowed,
    outgoing: Outgoing,
    refusals: Refusals,
    pacer: Pacer,
}

impl Outgoing {
    /// Whether every program may call the box itself at this port: then none of them may be who answers there.
    pub fn calls_own_port(&self, port: u16) -> bool {
        self.allowed.is_own_port(port)
    }

    /// For one instance, which may call whom the token that launched it allows, too.
    pub fn line(&self, instance: InstanceId, subject: Subject, more: &Allowed, pacer: Pacer) -> Line {
        let allowed = self.allowed.and(more);
        Line { instance, subject, allowed, outgoing: self.clone(), refusals: Refusals::of(instance), pacer }
    }
}

impl Line {
    /// Sends a request off, whose URI is absolute. Never waits.
    pub fn send(&self, mut request: http::Request<Reader>, within: Within) -> Sent {
        let (promise, promised) = promise();
        let (sender, wanted) = smol::channel::bounded(1);
        let refused = match self.judge(&mut request) {
            Ok((target, place)) => {
                let (allowed, refusals) = (self.allowed.clone(), self.refusals.clone());
                let pacer = self.pacer.clone();
                let job = Job { request, target, allowed, within, promise, wanted, refusals, place, pacer };
                // As many may wait as have a place; closed: the server is ending, and the promise is dropped unkept.
                let _ = self.outgoing.jobs.try_send(job);
                None
            }
            Err(why) => {
                request.body().discard();
                promise.keep(Err(why));
                Some(request.into_body())
            }
        };
        Sent { promised, hold: Hold { _wanted: sender, _refused: refused } }
    }

    /// Makes the request one for its target, if it may be made.
    fn judge(&self, request: &mut http::Request<Reader>) -> Result<(Target, Place), ErrorCode> {
        let uri = request.uri();
        let authority = uri.authority().ok_or(ErrorCode::HttpRequestUriInvalid)?.as_str();
        if uri.scheme() == Some(&Scheme::HTTPS) {
            self.refusals.tell(&format!("{authority} cannot be called: {NO_TLS}"));
            return Err(ErrorCode::internal(NO_TLS));
        }
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(ErrorCode::HttpRequestUriInvalid);
        }
        if request.method() == Method::CONNECT {
            return Err(ErrorCode::HttpRequestMethodInvalid);
        }
        let target: Target = authority.parse().map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
        if !self.allowed.host(&target) {
            self.refusals.tell(&format!(
                "{target} may not be called: if programs may call it, add \"{target}\" to allow under [http], or to the \
                 token's claim http"
            ));
            return Err(ErrorCode::HttpRequestDenied);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path: Uri = path.parse().map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
        let host = HeaderValue::try_from(target.to_string()).map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
        let place = self.outgoing.on_their_way.take(self.instance, &self.subject);
        let place = place.map_err(|_| ErrorCode::ConnectionLimitReached)?;
        *request.uri_mut() = path;
        request.headers_mut().insert(HOST, host);
        Ok((target, place))
    }
}

/// Tells the log what an instance was refused: every time at first, then ever more rarely, for a guest can ask for ever.
#[derive(Clone)]
struct Refusals {
    instance: InstanceId,
    count: Arc<AtomicU32>,
}

impl Refusals {
    fn of(instance: InstanceId) -> Refusals {
        Refusals { instance, count: Arc::default() }
    }

    fn tell(&self, what: &str) {
        let count = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count.is_power_of_two() {
            tracing::warn!(target: "http", instance = %self.instance, refused = count, "{what}");
        }
    }
}

/// Who has requests on their way.
#[derive(Clone)]
struct OnTheirWay {
    of_instance: Places<InstanceId>,
    of_subject: Places<Subject>,
}

/// A request's place among its instance's, and among its subject's.
type Place = (places::Place<InstanceId>, places::Place<Subject>);

impl OnTheirWay {
    fn new() -> OnTheirWay {
        OnTheirWay {
            of_instance: Places::new(limits::OUTGOING, limits::OUTGOING_PER_INSTANCE),
            of_subject: Places::new(limits::OUTGOING, limits::OUTGOING_PER_SUBJECT),
        }
    }

    fn take(&self, instance: InstanceId, subject: &Subject) -> Result<Place, Full> {
        Ok((self.of_instance.take(&instance)?, self.of_subject.take(subject)?))
    }
}

/// `work`, or `late` once its time is over.
async fn timed<T>(
    within: Duration,
    late: ErrorCode,
    work: impl Future<Output = Result<T, ErrorCode>>,
) -> Result<T, ErrorCode> {
    let over = async {
        Timer::after(within).await;
        Err(late)
    };
    or(work, over).await
}
