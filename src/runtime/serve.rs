//! HTTP server instances: a program that answers requests, each request by an instance of its own.
//!
//! Owns: what a server instance is ([`Server`]), and the list of those that there are ([`Servers`]), bounded for each
//! subject and in all. Never: sockets or the protocol; `server` has those, and gives requests to [`Runtime::answer`].

use super::{Ending, InstanceEvent, Launch, LaunchRefusal, Quotas, Runtime, events};
use crate::identity::{InstanceId, Subject};
use crate::limits;
use crate::outgoing::Allowed;
use crate::program::Program;
use crate::transfer::Call;
use smol::channel::{Receiver, Sender};
use smol::lock::OnceCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;

/// What a server instance is launched with.
pub struct Serve {
    pub program: Arc<Program>,
    /// Every instance that answers for it has these.
    pub arguments: Vec<String>,
    pub subject: Subject,
    pub quotas: Quotas,
    /// Whom they may call, besides those that every program may.
    pub http: Allowed,
    pub port: u16,
    /// When the token that launched it does; none: never.
    pub expires: Option<OffsetDateTime>,
}

/// A server instance. It lives until it is stopped, its token expires, or the box ends.
pub struct Server {
    pub id: InstanceId,
    pub serve: Serve,
    /// Requests that are being answered, and all that there were.
    pub answering: AtomicUsize,
    pub requests: AtomicU64,
    end: OnceCell<Ending>,
    stop: Sender<Infallible>,
    /// Closes when it is to end.
    pub stopping: Receiver<Infallible>,
    /// Closes when it has ended, its port free.
    gone: Receiver<Infallible>,
}

impl Server {
    /// It is to end, and so are the instances that answer for it. The first ending counts.
    pub fn end(&self, ending: Ending) {
        let _ = self.end.set_blocking(ending); // decided already
        self.stop.close();
    }

    /// Returns once it has ended.
    pub async fn gone(&self) {
        let _ = self.gone.recv().await; // an error: closed
    }

    /// How an instance ends that answered for it and is not wanted any more.
    pub fn ending(&self) -> Ending {
        self.end.get().cloned().unwrap_or(Ending::Disconnected)
    }
}

/// Why a server instance was not launched. `Display` is the answer for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeRefusal {
    Subject(usize),
    Full(usize),
}

impl fmt::Display for ServeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeRefusal::Subject(limit) => {
                write!(f, "{limit} server instances are yours, the most that one may have; stop one of them")
            }
            ServeRefusal::Full(limit) => {
                write!(f, "{limit} server instances are running, the most this server holds")
            }
        }
    }
}

/// All server instances. Cheap to clone; all clones are one list.
#[derive(Clone, Default)]
pub struct Servers(Arc<Mutex<BTreeMap<InstanceId, Arc<Server>>>>);

/// A server instance's place in the list, until this is dropped.
pub struct Place {
    pub server: Arc<Server>,
    servers: Servers,
    _here: Sender<Infallible>,
}

impl Servers {
    pub fn enter(&self, serve: Serve) -> Result<Place, ServeRefusal> {
        let mut servers = self.lock();
        let own = servers.values().filter(|server| server.serve.subject == serve.subject).count();
        if own >= limits::SERVERS_PER_SUBJECT {
            return Err(ServeRefusal::Subject(limits::SERVERS_PER_SUBJECT));
        }
        if servers.len() >= limits::SERVERS {
            return Err(ServeRefusal::Full(limits::SERVERS));
        }
        let (stop, stopping) = smol::channel::bounded(1);
        let (here, gone) = smol::channel::bounded(1);
        let server = Arc::new(Server {
            id: InstanceId::random(),
            serve,
            answering: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            end: OnceCell::new(),
            stop,
            stopping,
            gone,
        });
        servers.insert(server.id, server.clone());
        Ok(Place { server, servers: self.clone(), _here: here })
    }

    /// Those of one subject, or all of them; by port.
    pub fn of(&self, subject: Option<&Subject>) -> Vec<Arc<Server>> {
        let servers = self.lock();
        let whose = |server: &&Arc<Server>| subject.is_none_or(|subject| server.serve.subject == *subject);
        let mut found: Vec<Arc<Server>> = Vec::new();
        for server in servers.values().filter(whose) {
            let key = |server: &Server| (server.serve.port, server.id);
            let at = found.partition_point(|other| key(other) < key(server));
            found.insert(at, server.clone());
        }
        found
    }

    /// Whole between any two statements here.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Server>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.servers.lock().remove(&self.server.id);
    }
}

impl Runtime {
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Starts an instance that answers `call` for `server`. What it sends to a client of its own, it has none, is read by
    /// nobody but the caller; dropping the answer unread tells it that nobody wants it.
    pub fn answer(&self, server: &Arc<Server>, call: Call) -> Result<Answering, LaunchRefusal> {
        let Serve { program, arguments, subject, quotas, http, .. } = &server.serve;
        let (events, received) = events::channel();
        let launch = Launch {
            program: program.clone(),
            arguments: arguments.clone(),
            subject: subject.clone(),
            quotas: *quotas,
            http: http.clone(),
            events,
        };
        let prepared = self.prepare(launch)?;
        let instance = prepared.id();
        server.requests.fetch_add(1, Ordering::Relaxed);
        server.answering.fetch_add(1, Ordering::Relaxed);
        let life = Answering { runtime: self.clone(), server: server.clone(), instance, events: received };
        prepared.answer(call);
        Ok(life)
    }
}

/// An instance that answers a request. Dropping this ends it.
pub struct Answering {
    runtime: Runtime,
    server: Arc<Server>,
    pub instance: InstanceId,
    events: events::Receiver,
}

impl Answering {
    /// Waits for its end.
    pub async fn ended(&self) -> Ending {
        loop {
            match self.events.recv().await {
                Ok(InstanceEvent { what: super::What::Ended(ending), .. }) => return ending,
                Ok(_) => {} // a message to a client, and there is none
                Err(_) => return Ending::ServerError("The server lost the instance".to_owned()),
            }
        }
    }

    /// Ends it wherever it is.
    pub fn leash(&self) -> Leash {
        Leash { runtime: self.runtime.clone(), server: self.server.clone(), instance: self.instance }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.server.answering.fetch_sub(1, Ordering::Relaxed);
        self.leash().end(); // nothing, if it has ended
    }
}

/// A hold on an instance that answers a request.
pub struct Leash {
    runtime: Runtime,
    server: Arc<Server>,
    instance: InstanceId,
}

impl Leash {
    pub fn end(&self) {
        self.runtime.end(self.instance, self.server.ending());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ProgramHash;

    fn serve(subject: &str, port: u16) -> Serve {
        Serve {
            program: Program::named(ProgramHash::of(b"x")),
            arguments: vec![],
            subject: Subject::new(subject),
            quotas: Quotas::default(),
            http: Allowed::default(),
            port,
            expires: None,
        }
    }

    #[test]
    fn the_list_is_bounded_for_each_and_for_all_and_a_place_comes_back() {
        let servers = Servers::default();
        let mut places: Vec<Place> = vec![];
        for port in 0..limits::SERVERS_PER_SUBJECT {
            places.push(servers.enter(serve("a", port as u16)).unwrap_or_else(|refusal| panic!("{refusal}")));
        }
        let refused = servers.enter(serve("a", 99)).err();
        assert_eq!(refused, Some(ServeRefusal::Subject(limits::SERVERS_PER_SUBJECT)));
        let mut other = 0;
        while let Ok(place) = servers.enter(serve(&format!("s{other}"), 1)) {
            places.push(place);
            other += 1;
        }
        assert_eq!(places.len(), limits::SERVERS);
        assert_eq!(servers.of(Some(&Subject::new("a"))).len(), limits::SERVERS_PER_SUBJECT);
        places.truncate(1);
        assert_eq!(servers.of(None).len(), 1);
        assert!(servers.enter(serve("a", 99)).is_ok());
    }
}
