//! The server instances of programs: their ports, on loopback alone, and HTTP/1.1 on them.
//!
//! Owns: accepting, the bounds on what a client may send and how slowly, and the step from a request to an instance that
//! answers it ([`request`](super::request)). Never: what is answered, or who may launch a server instance.
//!
//! One server instance is one future with an executor of its own: dropping it closes its port and its connections and
//! ends the instances that answer for it, and nothing else.

use super::accept::accept;
use super::names::Names;
use super::over::{Over, Until, Watch};
use super::request::Desk;
use crate::identity::{InstanceId, Subject};
use crate::limits;
use crate::pacer::{Paced, Pacer};
use crate::places::Places;
use crate::runtime::serve::{Place, Serve};
use crate::runtime::{Ending, Runtime, Traffic};
use crate::socket::{Clock, Socket};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smol::Executor;
use smol::Timer;
use smol::channel::{Receiver, Sender};
use smol::future::or;
use smol::net::{TcpListener, TcpStream};
use std::net::Ipv4Addr;
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
        let connections = Connections {
            of_server: Places::new(limits::HTTP_CONNECTIONS, limits::HTTP_CONNECTIONS_PER_SERVER),
            of_subject: Places::new(limits::HTTP_CONNECTIONS, limits::HTTP_CONNECTIONS_PER_SUBJECT),
        };
        let launched = async {
            while let Ok(bound) = self.bound.recv().await {
                let serving = serve(bound, self.runtime.clone(), names.clone(), connections.clone());
                executor.spawn(serving).detach();
            }
            std::future::pending().await // nobody can launch any more; those that run go on
        };
        executor.run(launched).await
    }
}

/// Who has connections to server instances.
#[derive(Clone)]
struct Connections {
    of_server: Places<InstanceId>,
    of_subject: Places<Subject>,
}

/// Serves one server instance to its end.
async fn serve(bound: Bound, runtime: Runtime, names: Arc<Names>, connections: Connections) {
    let Bound { place, listener } = bound;
    let server = place.server.clone();
    let (executor, pacer) =
        (Arc::new(Executor::new()), runtime.pacer(&server.serve.subject, Traffic::Visitors));
    let desk = Arc::new(Desk::new(runtime, server.clone(), names, Arc::downgrade(&executor), pacer.clone()));
    let until = server.serve.expires.map_or(Until::Never, Until::Date);
    let watch = Watch { until, closing: &server.stopping };
    let enter = |stream| {
        let of_server = connections.of_server.take(&server.id)?;
        let of_subject = connections.of_subject.take(&server.serve.subject)?;
        let (desk, pacer) = (desk.clone(), pacer.clone());
        Ok(async move {
            let _places = (of_server, of_subject);
            pacer.counted(Box::pin(converse(stream, desk, pacer.clone()))).await;
        })
    };
    let over = executor.run(or(watch.ring(), accept(&listener, &executor, enter))).await;
    let ending = match over {
        Over::TokenExpired => Ending::Expired,
        _ => Ending::Aborted,
    };
    tracing::info!(target: "http", server = %server.id, ?over, "a server instance ends");
    server.end(ending); // before the executor goes, and with it all that answers for this one
}

/// One connection: requests and their answers, one after the other.
async fn converse(stream: TcpStream, desk: Arc<Desk>, pacer: Pacer) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { desk.answer(request).await }
    });
    let socket = Paced::new(stream.clone(), pacer.clone(), pacer);
    let connection = http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(limits::HTTP_HEAD_WITHIN)
        .max_buf_size(limits::HTTP_HEAD_BYTES)
        .max_headers(limits::HTTP_HEAD_FIELDS)
        .serve_connection(Socket::new(socket, limits::HTTP_READ_STALL), service);
    let served = async {
        if let Err(e) = connection.await {
            tracing::debug!(target: "http", "a connection ended: {e}");
        }
    };
    or(served, gone(&stream)).await;
}

/// Returns once the client has gone. hyper, which reads, sees it only where nothing lies before the end: not behind a body
/// that its program does not read, nor behind a next request. Behind more than the kernel takes, nobody sees it: there keep-alive
/// and the limits of an answer have the last word.
async fn gone(stream: &TcpStream) {
    loop {
        Timer::after(limits::HTTP_LOOK).await;
        let mut state = [PollFd::new(stream, PollFlags::RDHUP)];
        // Errors and the end of both directions are always told.
        if poll(&mut state, Some(&Timespec::default())).is_ok_and(|told| told > 0) {
            return;
        }
    }
}
