//! The thread "disk": it alone writes key-value pairs.
//!
//! Owns: the order of the writes, the transactions, and what is done when the disk fails. Never: answers a write before
//! it is durable; ends because of an error.
//!
//! It takes one write, and all others that wait by then, into one transaction: while a sync runs, the next ones gather. Where
//! they do not fit one, subjects take turns ([`super::turns`]): who overwrites long values without pause keeps nobody waiting
//! but its own.
//! While the model computes, the thread rests after each transaction, for a multiple of what that computed, so that programs
//! that write without pause take no more than a tenth of a core from those who wait for the model. Many who write
//! together lose little, as more of their writes share a transaction; whoever waits for each write, or comes while the
//! thread rests, waits up to [`REST_MOST`] more.
//!
//! # When the disk fails
//! redb refuses everything after an I/O error until its file is opened afresh, and a transaction whose sync failed may
//! be there then. So a failed batch remembers what it overwrote: the file is opened, these values are put back, and
//! only then are its writes refused. Until that has gone well, nothing is read or written; it is tried again with each
//! write and every [`limits::KVS_REOPEN_PAUSE`].

use super::file::{self, Open, PAIRS, caught};
use super::index::Draft;
use super::turns::Turns;
use super::{Refusal, Shared};
use crate::clock;
use crate::identity::Subject;
use crate::limits;
use crate::places::Held;
use redb::{Database, Durability, Error, ReadableTable};
use smol::Timer;
use smol::channel::{Receiver, Sender};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A rest is so many times as long as the transaction computed, ...
const RESTS: u32 = 9;
/// ... and no longer than this: a write that comes then waits for it.
const REST_MOST: Duration = Duration::from_millis(50);

/// What the thread is asked to do.
pub(super) enum Errand {
    Write(Write),
    /// A read failed: open the file afresh.
    Mend,
}

/// A value for a key, or none: the key goes.
pub(super) struct Write {
    pub subject: Subject,
    pub key: Arc<str>,
    pub value: Option<String>,
    /// Takes one answer: whether there was such a key.
    pub answer: Sender<Result<bool, Refusal>>,
    /// Its place among the writes on their way, until it is answered.
    pub _place: Held,
}

/// What a write replaced.
struct Replaced {
    subject: Subject,
    key: Arc<str>,
    value: Option<String>,
}

pub(super) struct Disk {
    path: PathBuf,
    shared: Arc<Shared>,
    errands: Receiver<Errand>,
    /// Writes that were taken from there, and have not had their turn: no more than there are places.
    waiting: Turns<Write>,
    open: Open,
    /// Of a batch whose commit failed, in the order of its writes.
    replaced: Vec<Replaced>,
}

impl Disk {
    pub fn new(path: &Path, shared: Arc<Shared>, errands: Receiver<Errand>, open: Open) -> Disk {
        Disk { path: path.to_owned(), shared, errands, waiting: Turns::default(), open, replaced: Vec::new() }
    }

    /// Until nobody can send any more, and all that was sent is answered.
    pub fn run(mut self) {
        while self.next() {
            let before = clock::computed();
            let batch = self.gather();
            let answers = self.keep(&batch);
            // By value: the place of each goes back with its answer, and not after the rest.
            for (write, answer) in batch.into_iter().zip(answers) {
                let _ = write.answer.try_send(answer); // its guest may have ended meanwhile
            }
            if self.shared.busy.get().is_some_and(|busy| busy()) {
                std::thread::sleep((RESTS * clock::computed().saturating_sub(before)).min(REST_MOST));
            }
        }
        self.shared.put(None);
    }

    /// Waits for something to do. False: there will be nothing any more.
    fn next(&mut self) -> bool {
        if !self.waiting.is_empty() {
            return true;
        }
        let errand = if self.shared.database().is_some() {
            self.errands.recv_blocking()
        } else {
            let pause = async {
                Timer::after(limits::KVS_REOPEN_PAUSE).await;
                Ok(Errand::Mend)
            };
            smol::block_on(smol::future::or(self.errands.recv(), pause))
        };
        errand.map(|errand| self.take(errand)).is_ok()
    }

    fn take(&mut self, errand: Errand) {
        match errand {
            Errand::Write(write) => self.waiting.push(&write.subject.clone(), write),
            Errand::Mend => self.shared.put(None),
        }
    }

    /// Of all that wait by now, in turns, what fits a batch.
    fn gather(&mut self) -> Vec<Write> {
        while let Ok(errand) = self.errands.try_recv() {
            self.take(errand);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < limits::KVS_BATCH_BYTES
            && let Some(write) = self.waiting.pop()
        {
            let old = self.shared.index().value_bytes(&write.subject, &write.key);
            bytes += write.value.as_ref().map_or(0, String::len) + old.unwrap_or(0);
            batch.push(write);
        }
        batch
    }

    /// Makes what the quotas allow of a batch, durably; an answer for each write.
    fn keep(&mut self, batch: &[Write]) -> Vec<Result<bool, Refusal>> {
        if let Err(cause) = self.mend() {
            return vec![Err(Refusal::NotKept(cause)); batch.len()];
        }
        let (mut answers, changes) = {
            let index = self.shared.index();
            let mut draft = Draft::of(&index);
            let bytes = |write: &Write| write.value.as_ref().map(String::len);
            let admit = |write: &Write| draft.admit(&write.subject, &write.key, bytes(write));
            let answers: Vec<_> = batch.iter().map(admit).collect();
            (answers, draft.changes())
        };
        if changes.is_empty() {
            return answers;
        }
        let writes = batch.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).map(|(write, _)| write);
        match commit(&self.shared, writes, &mut self.replaced) {
            Ok(()) => {
                self.shared.commits.fetch_add(1, Ordering::Relaxed);
                let mut index = self.shared.index();
                for (subject, key, value) in &changes {
                    index.note(subject, key, *value);
                }
            }
            Err(cause) => {
                let (path, cause) = (self.path.display(), cause.to_string());
                tracing::error!(target: "exchange", "key-value pairs were not kept in {path}: {cause}");
                for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
                    *answer = Err(Refusal::NotKept(cause.clone()));
                }
                self.shared.put(None);
                let _ = self.mend(); // what is still wrong is for the next one
            }
        }
        answers
    }

    /// Opens the file after a failure and puts back what a failed batch may have replaced.
    fn mend(&mut self) -> Result<(), String> {
        if self.shared.database().is_some() {
            return Ok(());
        }
        let opened = caught(|| {
            let database = (self.open)(&file::builder())?;
            put_back(&database, &self.replaced)?;
            Ok(database)
        });
        match opened {
            Ok(database) => {
                self.replaced = Vec::new();
                self.shared.put(Some(database));
                tracing::info!(target: "exchange", "key-value pairs are kept in {} again", self.path.display());
                Ok(())
            }
            Err(cause) => Err(cause.to_string()),
        }
    }
}

/// Gives the keys the values they had before a batch, where they have others.
fn put_back(database: &Database, replaced: &[Replaced]) -> Result<(), Error> {
    // The last first: of two writes of one key the earlier knows what was there.
    let before: HashMap<(&str, &str), Option<&str>> = replaced
        .iter()
        .rev()
        .map(|Replaced { subject, key, value }| ((subject.as_str(), &**key), value.as_deref()))
        .collect();
    if before.is_empty() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    let mut changed = false;
    {
        let mut pairs = transaction.open_table(PAIRS)?;
        for (place, value) in before {
            if pairs.get(place)?.as_ref().map(|now| now.value()) == value {
                continue;
            }
            changed = true;
            match value {
                Some(value) => drop(pairs.insert(place, value)?),
                None => drop(pairs.remove(place)?),
            }
        }
    }
    // A full disk left the old values where they were, and has no room for another transaction.
    if changed {
        transaction.commit()?
    } else {
        transaction.abort()?
    }
    Ok(())
}

/// One transaction, one sync. Leaves in `replaced` what the writes replaced if it fails.
fn commit<'a>(
    shared: &Shared,
    writes: impl Iterator<Item = &'a Write>,
    replaced: &mut Vec<Replaced>,
) -> Result<(), Error> {
    let database = shared.database();
    let Some(database) = &*database else { return Err(Error::DatabaseClosed) };
    caught(|| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut pairs = transaction.open_table(PAIRS)?;
            for Write { subject, key, value, .. } in writes {
                let place = (subject.as_str(), &**key);
                let old = match value {
                    Some(value) => pairs.insert(place, value.as_str())?,
                    None => pairs.remove(place)?,
                };
                let value = old.map(|old| old.value().to_owned());
                replaced.push(Replaced { subject: subject.clone(), key: key.clone(), value });
            }
        }
        transaction.commit()?;
        Ok(())
    })?;
    replaced.clear();
    Ok(())
}
