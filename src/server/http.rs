//! The server instances of programs: their ports, on loopback alone, and HTTP/1.1 on them.
//!
//! Owns: accepting, the bounds on what a client may send and how slowly, and the step from a request to an instance that
//! answers it ([`request`](super::request)). Never: what is answered, or who may launch a server instance.
//!
//! One server instance is one future with an executor of its own: dropping it closes its port and its connections and
//! ends the instances that answer for it, and nothing else.

use super::listener::{set_options, turn_away};
use super::names::Names;
use super::over::{Over, Until, Watch};
use super::request::Desk;
use super::socket::{Clock, Socket};
use crate::limits;
use crate::runtime::serve::{Place, Serve};
use crate::runtime::{Ending, Runtime};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use smol::channel::{Receiver, Sender};
use smol::future::{FutureExt, or};
use smol::lock::Semaphore;
use smol::net::{TcpListener, TcpStream};
use smol::{Executor, Timer};
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Where server instances are launched. Cheap to clone.
#[derive(Clone)]
pub struct Hall {
    runtime: Runtime,
    bound: Sender<Bound>,
}

/// A server instance whose port is its own.
struct Bound {
    place: Place,
    listener: TcpListener,
}

/// What serves them; dropping it ends them all.
pub struct Serving {
    runtime: Runtime,
    names: Names,
    bound: Receiver<Bound>,
}

/// The place to launch server instances at, and what serves them.
pub fn hall(runtime: Runtime, names: Names) -> (Hall, Serving) {
    let (sender, bound) = smol::channel::bounded(limits::SERVERS_LAUNCHING);
    (Hall { runtime: runtime.clone(), bound: sender }, Serving { runtime, names, bound })
}

impl Hall {
    /// Binds the port (0: a free one) and returns it; from then on it is served. The error is for the client.
    pub async fn open(&self, mut serve: Serve) -> Result<u16, String> {
        let port = serve.port;
        let refused = |cause| format!("Port {port} cannot be listened on: {cause}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(refused)?;
        let port = listener.local_addr().map_err(refused)?.port();
        serve.port = port;
        let place = self.runtime.servers().enter(serve).map_err(|refusal| refusal.to_string())?;
        tracing::info!(target: "http", server = %place.server.id, port, "a server instance is launched");
        let stopping = |_| "The server is stopping".to_owned();
        self.bound.send(Bound { place, listener }).await.map_err(stopping)?;
        Ok(port)
    }
}

impl Serving {
    pub async fn run(self) {
        let executor = Executor::new();
        let names = Arc::new(self.names);
        let launched = async {
            while let Ok(bound) = self.bound.recv().await {
                executor.spawn(serve(bound, self.runtime.clone(), names.clone())).detach();
            }
            std::future::pending().await // nobody can launch any more; those that run go on
        };
        executor.run(launched).await
    }
}

/// Serves one server instance to its end.
async fn serve(bound: Bound, runtime: Runtime, names: Arc<Names>) {
    let Bound { place, listener } = bound;
    let server = place.server.clone();
    let executor = Arc::new(Executor::new());
    let desk = Arc::new(Desk::new(runtime, server.clone(), names, Arc::downgrade(&executor)));
    let until = server.serve.expires.map_or(Until::Never, Until::Date);
    let watch = Watch { until, closing: &server.stopping };
    let over = executor.run(or(watch.ring(), accept(&listener, &desk, &executor))).await;
    let ending = match over {
        Over::TokenExpired => Ending::Expired,
        _ => Ending::Aborted,
    };
    tracing::info!(target: "http", server = %server.id, ?over, "a server instance ends");
    server.end(ending); // before the executor goes, and with it all that answers for this one
}

async fn accept(listener: &TcpListener, desk: &Arc<Desk>, executor: &Executor<'static>) -> Over {
    let places = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("a connection cannot be accepted: {e}");
                Timer::after(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.try_acquire_arc() else {
            turn_away(&stream, limits::HTTP_CONNECTIONS);
            continue;
        };
        let desk = desk.clone();
        let connection = async move {
            let _place = place;
            if AssertUnwindSafe(converse(stream, desk)).catch_unwind().await.is_err() {
                tracing::error!("a connection was ended by a fault of the server; the others go on");
            }
        };
        executor.spawn(connection).detach();
    }
}

/// One connection: requests and their answers, one after the other.
async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    if let Err(e) = set_options(&stream) {
        tracing::debug!("socket options were not set: {e}");
    }
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { desk.answer(request).await }
    });
    let connection = http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(limits::HTTP_HEAD_WITHIN)
        .max_buf_size(limits::HTTP_HEAD_BYTES)
        .max_headers(limits::HTTP_HEAD_FIELDS)
        .serve_connection(Socket::new(stream), service);
    if let Err(e) = connection.await {
        tracing::debug!(target: "http", "a connection ended: {e}");
    }
}
