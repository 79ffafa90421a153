//! Guests that run: launched, fed, ended, told about.
//!
//! Owns: the facade that sessions use ([`Runtime`]), and below it everything between a program and its last event.
//! Never: the wire, sockets, tokens; what a host function does.

use crate::engine;
use crate::exchange::{Exchange, Mailbox};
use crate::host::common::Blob;
use crate::identity::{InstanceId, Subject};
use crate::model::Model;
use crate::outgoing::{Allowed, Outgoing};
use crate::pacer::Pacer;
use crate::program::Program;
use crate::transfer::Call;
use account::All;
use directory::Entry;
use smol::channel::Receiver;
use smol::lock::OnceCell;
use std::fmt;
use std::sync::Arc;

pub mod account;
pub mod aside;
pub mod directory;
pub mod ending;
pub mod events;
pub mod instance;
mod low;
pub mod pace;
mod paced;
#[cfg(test)]
mod preview1;
pub mod quota;
pub mod serve;
pub mod slice;
mod subjects;
pub mod table;
#[cfg(test)]
mod tests;
pub mod worker;

pub use directory::Directory;
pub use ending::Ending;
pub use quota::{Name, Quota, Quotas};
pub use serve::Servers;
pub use subjects::{Traffic, Turn};
pub use worker::Workers;

/// What one instance is launched with.
pub struct Launch {
    pub program: Arc<Program>,
    pub arguments: Vec<String>,
    pub subject: Subject,
    /// What it may use: the box's values, lowered by the token's claims.
    pub quotas: Quotas,
    /// Whom it may call, besides those that every program may.
    pub http: Allowed,
    /// Where its events go. A full channel makes the guest wait; a closed one ends it.
    pub events: events::Sender,
}

/// An event of one instance, in the order the guest made them.
#[derive(Debug)]
pub struct InstanceEvent {
    pub instance: InstanceId,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Message(String),
    /// Counted with what the host holds for its guest, until it is dropped.
    Blob(Blob),
    /// The last event, exactly once, however the instance ends.
    Ended(Ending),
}

/// Why an instance was not launched. `Display` is the answer for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchRefusal {
    /// As many instances live as the subject, or the box, may have.
    Full(Quota),
}

impl fmt::Display for LaunchRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaunchRefusal::Full(quota) => quota.fmt(f),
        }
    }
}

impl std::error::Error for LaunchRefusal {}

/// What a runtime is made of.
pub struct RuntimeParts {
    pub engine: engine::Handle,
    pub model: Arc<Model>,
    pub workers: Workers,
    pub exchange: Arc<Exchange>,
    /// What the box's configuration lets everyone have; a [`Launch`] has them, lowered.
    pub quotas: Quotas,
    /// Where the requests go that programs make.
    pub outgoing: Outgoing,
    /// The seed of every instance, for repeatable runs; each gets a random one otherwise.
    pub seed: Option<u64>,
}

/// What an instance lives for.
enum Errand {
    Run,
    Answer(Box<Call>),
}

/// Launches, feeds and ends instances. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    parts: Arc<RuntimeParts>,
    directory: Directory,
    all: Arc<All>,
    servers: Servers,
    leaving: Receiver<()>,
}

impl Runtime {
    pub fn new(parts: RuntimeParts) -> Runtime {
        let (all, leaving) = All::new();
        let (directory, servers) = (Directory::default(), Servers::default());
        Runtime { parts: Arc::new(parts), directory, servers, all, leaving }
    }

    /// Hears when instances have gone and their memory is about to be free, of several at least once. For one listener.
    pub fn leaving(&self) -> &Receiver<()> {
        &self.leaving
    }

    /// Registers an instance. It can be named, fed and ended from now on, and runs from [`Prepared::start`] on.
    pub fn prepare(&self, launch: Launch) -> Result<Prepared, LaunchRefusal> {
        self.prepare_as(InstanceId::random(), launch)
    }

    /// Under an id that nobody has.
    pub(crate) fn prepare_as(&self, instance: InstanceId, launch: Launch) -> Result<Prepared, LaunchRefusal> {
        let entry = self.directory.enter(&launch.subject, &launch.quotas, &self.all, |account| Entry {
            instance,
            program: launch.program.hash,
            subject: launch.subject.clone(),
            mailbox: Arc::new(Mailbox::new(&launch.quotas, account.unread(&launch.quotas))),
            account,
            end: Arc::new(OnceCell::new()),
            seat: self.parts.workers.seat(&launch.subject),
            events: launch.events.clone(),
            told: Arc::default(),
            ended: false,
        })?;
        Ok(Prepared { runtime: self.clone(), entry, launch: Some(launch) })
    }

    /// Gives the instance a message of its client. Never dropped: a full mailbox ends the instance.
    pub fn signal(&self, instance: InstanceId, message: String) {
        self.deliver(instance, |mailbox| mailbox.texts.push(message));
    }

    /// Gives the instance a blob of its client. Never dropped: a full mailbox ends the instance.
    pub fn give_blob(&self, instance: InstanceId, blob: Arc<[u8]>) {
        self.deliver(instance, |mailbox| mailbox.blobs.push(blob));
    }

    /// Ends the instance, wherever it is, soon; its last event says how. The first ending decided on counts.
    pub fn end(&self, instance: InstanceId, ending: Ending) {
        if let Some(entry) = self.directory.find(instance) {
            self.end_one(&entry, ending);
        }
    }

    /// Ends every instance, as [`Runtime::end`] ends one.
    pub fn end_all(&self, ending: Ending) {
        for entry in self.directory.all() {
            self.end_one(&entry, ending.clone());
        }
    }

    /// For what the io thread does for this subject.
    pub fn pacer(&self, subject: &Subject, traffic: Traffic) -> Pacer {
        self.parts.workers.pacer(subject, traffic)
    }

    /// Waits until a program of the subject may be translated.
    pub async fn translation(&self, subject: &Subject) -> Turn {
        self.parts.workers.translation(subject).await
    }

    /// What everyone may have.
    pub fn quotas(&self) -> &Quotas {
        &self.parts.quotas
    }

    pub fn outgoing(&self) -> &Outgoing {
        &self.parts.outgoing
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    fn end_one(&self, entry: &Entry, ending: Ending) {
        if entry.end(ending.clone()) {
            let seat = self.parts.workers.ender(&entry.subject);
            let (runtime, entry) = (self.clone(), entry.clone());
            self.parts.workers.spawn(&seat, |_| async move {
                let _told = Told(&entry); // though it should panic
                instance::tell(&runtime, &entry, ending).await;
            });
        }
    }

    fn deliver(&self, instance: InstanceId, push: impl FnOnce(&Mailbox) -> Result<(), Quota>) {
        let Some(entry) = self.directory.find(instance) else { return };
        if let Err(quota) = push(&entry.mailbox) {
            self.end_one(&entry, Ending::quota(quota));
        }
    }
}

/// An instance's place in the directory, which it has until its future is gone, whatever that does: its reader waits for the
/// last of those who could send.
struct Stay<'r>(&'r Runtime, InstanceId);

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.0.directory.leave(self.1);
    }
}

/// Somebody tells of the entry's end, until this is dropped.
struct Told<'e>(&'e Entry);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let _ = self.0.told.set_blocking(()); // once
    }
}

/// An instance that is registered and does not run yet. Dropping it unregisters it, silently.
pub struct Prepared {
    runtime: Runtime,
    entry: Entry,
    launch: Option<Launch>,
}

impl Prepared {
    pub fn id(&self) -> InstanceId {
        self.entry.instance
    }

    /// Lets it run. Its last event is sent whatever happens from now on.
    pub fn start(self) {
        self.set_off(Errand::Run);
    }

    /// Lets it answer a request, which is all its life.
    pub fn answer(self, call: Call) {
        self.set_off(Errand::Answer(Box::new(call)));
    }

    fn set_off(mut self, errand: Errand) {
        if let Some(launch) = self.launch.take() {
            let (runtime, entry) = (self.runtime.clone(), self.entry.clone());
            let seat = entry.seat.clone();
            self.runtime.parts.workers.spawn(&seat, |slice| {
                let starting = slice.starting(); // from now on, or those that wait for a worker would be no crowd
                async move {
                    let _stay = Stay(&runtime, entry.instance);
                    let quotas = launch.quotas;
                    let run = instance::run(&runtime, &entry, launch, errand, (slice, starting));
                    instance::live(&runtime, &entry, &quotas, run).await;
                }
            });
        }
    }

    /// The same life, for another to run, with `guest` in the place of its program.
    #[cfg(test)]
    pub(crate) fn scripted<F: Future<Output = Ending> + Send>(
        mut self,
        guest: impl FnOnce(Entry, Launch) -> F + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let launch = self.launch.take().expect("nothing else takes it");
        let (runtime, entry) = (self.runtime.clone(), self.entry.clone());
        async move {
            let _stay = Stay(&runtime, entry.instance);
            let quotas = launch.quotas;
            let run = async {
                match instance::join(&runtime, &entry, &quotas).await {
                    Ok(_) => guest(entry.clone(), launch).await,
                    Err(gone) => Ending::ServerError(gone.to_string()),
                }
            };
            instance::live(&runtime, &entry, &quotas, run).await;
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.launch.is_some() {
            self.runtime.directory.leave(self.entry.instance);
        }
    }
}
