//! Who runs, whose, and which program.
//!
//! Owns: the list of live instances, bounded, and for each the ways to reach it, its mailbox and its end, and whom it tells; and the accounts
//! of subjects that have an instance or have not paid for one.
//! Never: a guest's state, or the guest's future; those are with the worker that runs it.
//!
//! An instance can be found from `prepare` until it has ended, and takes its place in the list until its client has
//! been given its last event, for one that is not read must not make room for another; and until the guest is gone, which may
//! be in the middle of something long.

use super::LaunchRefusal;
use super::account::{Account, All};
use super::ending::Ending;
use super::events;
use super::worker::Seat;
use crate::exchange::Mailbox;
use crate::identity::{InstanceId, ProgramHash, Subject};
use crate::limits;
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
    /// Where it waits for a thread.
    pub(crate) seat: Seat,
    /// Where its last event goes, ...
    pub(crate) events: events::Sender,
    /// ... and that it was sent, where the guest was in the middle of something.
    pub(crate) told: Arc<OnceCell<()>>,
    /// Nothing is left but to send its last event, or to drop it.
    pub(crate) ended: bool,
}

impl Entry {
    /// Ends the instance, if nobody has decided on another end: wherever it is, and before anything else that waits. True:
    /// the guest cannot hear of it soon, and the end is the caller's to tell.
    #[must_use]
    pub(crate) fn end(&self, ending: Ending) -> bool {
        // It may wait behind many for a turn, or for a batch.
        self.end.set_blocking(ending).is_ok() && self.seat.end()
    }
}

/// Cheap to clone; all clones are one directory.
#[derive(Clone, Default)]
pub struct Directory {
    lists: Arc<Mutex<Lists>>,
}

#[derive(Default)]
struct Lists {
    entries: HashMap<InstanceId, Entry>,
    accounts: HashMap<Subject, Arc<Account>>,
}

impl Lists {
    /// The subject's account, the one it had if it still counts.
    fn account(&mut self, subject: &Subject, all: &Arc<All>) -> Arc<Account> {
        if let Some(account) = self.accounts.get(subject) {
            return account.clone();
        }
        let in_use = |account: &Arc<Account>| Arc::strong_count(account) > 1;
        self.accounts.retain(|_, account| in_use(account) || account.owes() || account.holds());
        if self.accounts.len() >= limits::ACCOUNTS {
            // Whoever owes least is forgiven, and last of all one whose results the engine still makes.
            let idle = self.accounts.iter().filter(|(_, account)| !in_use(account));
            let least = idle.min_by_key(|(_, account)| (account.holds(), account.paid()));
            if let Some(least) = least.map(|(who, _)| who.clone()) {
                self.accounts.remove(&least);
            }
        }
        let account = Arc::new(Account::new(all));
        self.accounts.insert(subject.clone(), account.clone());
        account
    }
}

impl Directory {
    pub fn count(&self) -> usize {
        self.lock().entries.values().filter(|entry| !entry.ended).count()
    }

    pub fn find(&self, instance: InstanceId) -> Option<Entry> {
        self.lock().entries.get(&instance).filter(|entry| !entry.ended).cloned()
    }

    /// How many instances one subject has.
    pub fn count_of(&self, subject: &Subject) -> usize {
        self.lock().entries.values().filter(|entry| entry.subject == *subject).count()
    }

    /// The instances of one subject, by id.
    pub fn of(&self, subject: &Subject) -> Vec<Entry> {
        let lists = self.lock();
        let mut found: Vec<Entry> = Vec::new();
        for entry in lists.entries.values().filter(|e| !e.ended && e.subject == *subject) {
            let at = found.partition_point(|other| other.instance < entry.instance);
            found.insert(at, entry.clone());
        }
        found
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        self.lock().entries.values().cloned().collect()
    }

    /// Enters one more instance of the subject, if there may be one. `make` gets the account that all of a subject share.
    pub(crate) fn enter(
        &self,
        subject: &Subject,
        quotas: &Quotas,
        all: &Arc<All>,
        make: impl FnOnce(Arc<Account>) -> Entry,
    ) -> Result<Entry, LaunchRefusal> {
        let mut lists = self.lock();
        let entries = &lists.entries;
        let others = entries.values().filter(|entry| entry.subject == *subject).count();
        for (count, name) in [(others, Name::SubjectInstances), (entries.len(), Name::TotalInstances)] {
            if count >= quotas.size(name) {
                return Err(LaunchRefusal::Full(quotas.over(name)));
            }
        }
        let entry = make(lists.account(subject, all));
        lists.entries.insert(entry.instance, entry.clone());
        Ok(entry)
    }

    /// It cannot be found any more.
    pub(crate) fn end(&self, instance: InstanceId) {
        if let Some(entry) = self.lock().entries.get_mut(&instance) {
            entry.ended = true;
        }
    }

    /// Its place is free.
    pub(crate) fn leave(&self, instance: InstanceId) {
        self.lock().entries.remove(&instance);
    }

    /// The maps are whole between any two statements here, so a panic elsewhere does not spoil them.
    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_kept_until_what_outlived_its_instances_is_gone() {
        let (all, _leaving) = All::new();
        let (mut lists, quotas) = (Lists::default(), Quotas::default());
        let gone = Subject::new("gone");
        let memory = lists.account(&gone, &all).memory(&quotas);
        memory.take(quotas.get(Name::SubjectMemoryBytes)).expect("it is the subject's");
        drop(lists.account(&Subject::new("other"), &all));
        assert!(lists.account(&gone, &all).memory(&quotas).take(1).is_err(), "all of it is taken");
        memory.give(quotas.get(Name::SubjectMemoryBytes));
        drop(lists.account(&Subject::new("third"), &all));
        assert!(!lists.accounts.contains_key(&gone));
    }

    /// The story: a subject whose programs live shortly began each second's fuel anew with every one of them.
    #[test]
    fn an_account_is_kept_until_what_was_used_is_paid_for() {
        let (all, _leaving) = All::new();
        let mut lists = Lists::default();
        let [short, idle] = ["short", "idle"].map(Subject::new);
        let account = lists.account(&short, &all);
        drop(lists.account(&idle, &all));
        account.spend(all.second(), 1_000_000, 10);
        let first = Arc::downgrade(&account);
        drop(account);
        drop(lists.account(&Subject::new("other"), &all));
        assert!(!lists.accounts.contains_key(&idle), "it owes nothing");
        assert!(Arc::ptr_eq(&lists.account(&short, &all), &first.upgrade().expect("it is kept")));
        // Many that owe: there is a bound, and those that owe most are kept.
        for who in 0..2 * limits::ACCOUNTS {
            let account = lists.account(&Subject::new(&who.to_string()), &all);
            account.spend(all.second(), 100, 10);
        }
        assert_eq!(lists.accounts.len(), limits::ACCOUNTS);
        assert!(lists.accounts.contains_key(&short));
    }
}
