//! Key-value pairs that guests keep, per subject: what was acknowledged is there after a power cut.
//!
//! Owns: the handle that callers hold, and the sentences of a refusal. Never: makes a caller wait for a disk's sync
//! where a future can.
//!
//! - [`index`]: which keys there are and how long their values; the quotas. Pure.
//! - [`file`]: the redb file: opening, reading, and the sentences of a start that fails.
//! - [`disk`]: the thread "disk", the only one that writes. It takes all that waits into one transaction with one sync.
//! - [`turns`]: whose write is next where not all fit one transaction. Pure.
//!
//! # Where a read looks
//! Values lie in the file alone, so that 256 MiB of them take no memory from the model: redb keeps 4 MiB, and the system's
//! page cache what it can spare. A read of a pair in neither waits for the disk as a worker does that touches weights
//! which are not in memory yet. Keys and lengths lie in memory: existence, lists and quotas never ask the disk.
//!
//! # What a read sees
//! Only what is durable. A write reaches the snapshot that reads see, and the index, by the commit that makes it durable
//! and before it is acknowledged. So an acknowledged write is seen by every read that follows, and one under way by none,
//! not by its own guest either (which waits in that call): nothing that anybody has seen is undone by a power cut.
//!
//! # Order
//! A subject's writes are made in the order in which they came into the channel: an instance has one at a time, and a call
//! that begins after another was answered is behind it. Between subjects, who share no key, there is no order but turns. A
//! guest that ends while its write is on the way leaves it there: it is made, and nobody waits for the answer.

mod disk;
mod file;
mod index;
#[cfg(test)]
mod tests;
mod turns;

pub use file::KvsError;

use crate::identity::Subject;
use crate::limits;
use crate::places::Awaited;
use disk::{Disk, Errand, Write};
use file::Open;
use index::Index;
use redb::Database;
use smol::channel::Sender;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

/// The pairs of all subjects. Dropping it ends the thread "disk" after the writes that it has.
pub struct Kvs {
    shared: Arc<Shared>,
    errands: Sender<Errand>,
    /// Of writes on their way.
    places: Awaited,
    disk: Mutex<Option<JoinHandle<()>>>,
}

/// What readers and the thread "disk" share. Only that thread changes it.
struct Shared {
    index: Mutex<Index>,
    /// None after a failure, until the file could be opened afresh. The lock is taken for writing only to put a database
    /// in or out, never during a commit, so that readers do not wait for a sync.
    database: RwLock<Option<Database>>,
    /// Transactions made durable.
    commits: AtomicU64,
    /// Whether somebody waits for the model.
    busy: OnceLock<Busy>,
}

type Busy = Box<dyn Fn() -> bool + Send + Sync>;

/// Why a read or a write was refused. `Display` is a sentence for the guest, naming the quota or the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    KeyTooLong(usize),
    ValueTooLong(usize),
    TooManyKeys,
    SubjectFull,
    BoxFull,
    /// The disk failed; the old value stands.
    NotKept(String),
    NotRead(String),
    /// The server is ending.
    Closed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::KeyTooLong(n) => {
                write!(f, "a key of {n} bytes; at most {} are allowed", limits::KVS_KEY_BYTES)
            }
            Refusal::ValueTooLong(n) => {
                write!(f, "a value of {n} bytes; at most {} are allowed", limits::KVS_VALUE_BYTES)
            }
            Refusal::TooManyKeys => {
                write!(f, "{} keys are stored; delete some first", limits::KVS_KEYS_PER_SUBJECT)
            }
            Refusal::SubjectFull => {
                write!(
                    f,
                    "the quota of {} stored bytes is full; delete some keys",
                    limits::KVS_BYTES_PER_SUBJECT
                )
            }
            Refusal::BoxFull => {
                write!(f, "the store of this server is full ({} bytes for all subjects)", limits::KVS_BYTES)
            }
            Refusal::NotKept(cause) => {
                write!(f, "the write was not kept and the old value stands ({cause}); try again later")
            }
            Refusal::NotRead(cause) => write!(f, "the value cannot be read ({cause}); try again later"),
            Refusal::Closed => f.write_str("the server is ending and keeps nothing more"),
        }
    }
}

impl std::error::Error for Refusal {}

impl Kvs {
    /// Opens, or makes, the file in the folder `state`.
    ///
    /// # Errors
    /// [`KvsError`]: another server has it, it is damaged, or it cannot be written.
    pub fn open(state: &Path) -> Result<Kvs, KvsError> {
        let path = file::prepare(state)?;
        let open = path.clone();
        Kvs::start(&path, Box::new(move |builder| builder.create(&open)))
    }

    /// In memory, for tests of what stands above it.
    #[cfg(test)]
    pub fn in_memory() -> Kvs {
        let open: Open =
            Box::new(|builder| builder.create_with_backend(redb::backends::InMemoryBackend::new()));
        Kvs::start(Path::new("memory"), open).expect("memory is no disk")
    }

    /// Opens what is in the file called `path` and starts the thread.
    fn start(path: &Path, open: Open) -> Result<Kvs, KvsError> {
        let (database, index) = file::load(path, &open)?;
        tracing::info!(target: "exchange", "{} bytes of key-value pairs in {}", index.bytes(), path.display());
        let shared = Arc::new(Shared {
            index: Mutex::new(index),
            database: RwLock::new(Some(database)),
            commits: AtomicU64::new(0),
            busy: OnceLock::new(),
        });
        let (errands, receiver) = smol::channel::bounded(limits::KVS_WRITES_IN_FLIGHT);
        let disk = Disk::new(path, shared.clone(), receiver, open);
        let disk = std::thread::Builder::new()
            .name("disk".into())
            .spawn(move || disk.run())
            .map_err(KvsError::Thread)?;
        let places = Awaited::new(limits::KVS_WRITES_IN_FLIGHT, limits::KVS_WRITES_PER_SUBJECT);
        Ok(Kvs { shared, errands, places, disk: Mutex::new(Some(disk)) })
    }

    /// From now on writing leaves the processor to others while `busy` holds. Once.
    pub fn yield_while(&self, busy: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.shared.busy.set(Box::new(busy));
    }

    /// # Errors
    /// [`Refusal::NotRead`]: the disk failed.
    pub fn get(&self, subject: &Subject, key: &str) -> Result<Option<String>, Refusal> {
        if !self.exists(subject, key) {
            return Ok(None);
        }
        let read = match &*self.shared.database() {
            Some(database) => file::read(database, subject, key),
            None => return Err(Refusal::NotRead("its file is being opened afresh".to_owned())),
        };
        read.map_err(|cause| {
            let _ = self.errands.try_send(Errand::Mend); // full: the next write finds the failure itself
            Refusal::NotRead(cause.to_string())
        })
    }

    pub fn exists(&self, subject: &Subject, key: &str) -> bool {
        self.shared.index().value_bytes(subject, key).is_some()
    }

    /// Sorted by bytes.
    pub fn keys(&self, subject: &Subject) -> Vec<Arc<str>> {
        self.shared.index().keys(subject)
    }

    /// Creates or overwrites; durable when it answers. After an error the old value stands.
    pub async fn set(&self, subject: &Subject, key: &str, value: String) -> Result<(), Refusal> {
        if key.len() > limits::KVS_KEY_BYTES {
            return Err(Refusal::KeyTooLong(key.len()));
        }
        if value.len() > limits::KVS_VALUE_BYTES {
            return Err(Refusal::ValueTooLong(value.len()));
        }
        self.write(subject, key, Some(value)).await.map(drop)
    }

    /// True if there was such a key; durable when it answers. After an error the old value stands.
    pub async fn delete(&self, subject: &Subject, key: &str) -> Result<bool, Refusal> {
        if key.len() > limits::KVS_KEY_BYTES {
            return Ok(false); // nobody could set it
        }
        self.write(subject, key, None).await
    }

    async fn write(&self, subject: &Subject, key: &str, value: Option<String>) -> Result<bool, Refusal> {
        let place = self.places.take(subject).await;
        let (answer, answered) = smol::channel::bounded(1);
        let write = Write { subject: subject.clone(), key: key.into(), value, answer, _place: place };
        self.errands.send(Errand::Write(write)).await.map_err(|_| Refusal::Closed)?;
        answered.recv().await.unwrap_or(Err(Refusal::Closed))
    }

    /// Makes the writes that were sent, closes the file and ends the thread. Later calls are refused.
    pub fn close(&self) {
        self.errands.close();
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        if disk.is_some_and(|disk| disk.join().is_err()) {
            tracing::error!(target: "exchange", "the disk thread panicked");
        }
    }

    /// Transactions made durable since the start.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

impl Drop for Kvs {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        // Sums and lengths change together, with no panic between.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        // Only a whole value is ever put in or out.
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the reads that have begun; dropping the database that was there closes its file.
    fn put(&self, database: Option<Database>) {
        let before = {
            let mut place = self.database.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *place, database)
        };
        drop(before); // after the lock: closing writes
    }
}
