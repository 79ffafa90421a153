//! Who runs, whose, and which program.
//!
//! Owns: the list of live instances, bounded, and for each the two ways to reach it: its mailbox and its end.
//! Never: a guest's state, or the guest's future; those are with the worker that runs it.
//!
//! An instance can be found from `prepare` until it has ended, and takes its place in the list until its client has
//! been given its last event: one that is not read must not make room for another.

use super::LaunchRefusal;
use super::account::{Account, All};
use super::ending::Ending;
use crate::exchange::Mailbox;
use crate::identity::{InstanceId, ProgramHash, Subject};
use crate::quota::{Name, Quotas};
use smol::lock::OnceCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One live instance, as others may know it.
#[derive(Clone)]
pub struct Entry {
    pub instance: InstanceId,
    pub program: ProgramHash,
    pub subject: Subject,
    /// What its subject has.
    pub(crate) account: Arc<Account>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Written once: the ending that somebody else decided on.
    pub(crate) end: Arc<OnceCell<Ending>>,
    /// Only its last event is still to be sent.
    pub(crate) ended: bool,
}

/// Cheap to clone; all clones are one directory.
#[derive(Clone, Default)]
pub struct Directory {
    entries: Arc<Mutex<HashMap<InstanceId, Entry>>>,
}

impl Directory {
    pub fn count(&self) -> usize {
        self.lock().values().filter(|entry| !entry.ended).count()
    }

    pub fn find(&self, instance: InstanceId) -> Option<Entry> {
        self.lock().get(&instance).filter(|entry| !entry.ended).cloned()
    }

    /// How many instances one subject has.
    pub fn count_of(&self, subject: &Subject) -> usize {
        self.lock().values().filter(|entry| entry.subject == *subject).count()
    }

    /// The instances of one subject, by id.
    pub fn of(&self, subject: &Subject) -> Vec<Entry> {
        let entries = self.lock();
        let mut found: Vec<Entry> =
            entries.values().filter(|e| !e.ended && e.subject == *subject).cloned().collect();
        found.sort_unstable_by_key(|entry| entry.instance);
        found
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    /// Enters one more instance of the subject, if there may be one. `make` gets the account that all of a subject share.
    pub(crate) fn enter(
        &self,
        subject: &Subject,
        quotas: &Quotas,
        all: &Arc<All>,
        make: impl FnOnce(Arc<Account>) -> Entry,
    ) -> Result<Entry, LaunchRefusal> {
        let mut entries = self.lock();
        let mut others = entries.values().filter(|entry| entry.subject == *subject).peekable();
        let account = others.peek().map(|entry| entry.account.clone());
        for (count, name) in [(others.count(), Name::SubjectInstances), (entries.len(), Name::TotalInstances)]
        {
            if count >= quotas.size(name) {
                return Err(LaunchRefusal::Full(quotas.over(name)));
            }
        }
        let entry = make(account.unwrap_or_else(|| Arc::new(Account::new(all))));
        entries.insert(entry.instance, entry.clone());
        Ok(entry)
    }

    /// It cannot be found any more.
    pub(crate) fn end(&self, instance: InstanceId) {
        if let Some(entry) = self.lock().get_mut(&instance) {
            entry.ended = true;
        }
    }

    /// Its place is free.
    pub(crate) fn leave(&self, instance: InstanceId) {
        self.lock().remove(&instance);
    }

    /// The map is whole between any two statements here, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
