//! Key-value pairs that guests keep, per subject.
//!
//! Owns: the pairs and their quotas. Never: waits on a read. Writes are async because an acknowledged write is a
//! durable one; this version holds everything in memory and acknowledges at once.

use crate::identity::Subject;
use crate::limits;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub struct Kvs {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    scopes: HashMap<Subject, Scope>,
    bytes: usize,
}

/// One subject's pairs.
#[derive(Default)]
struct Scope {
    pairs: BTreeMap<Arc<str>, Arc<str>>,
    bytes: usize,
}

/// Why a write was refused. `Display` is a sentence for the guest, naming the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    KeyTooLong(usize),
    ValueTooLong(usize),
    TooManyKeys,
    SubjectFull,
    BoxFull,
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
        }
    }
}

impl std::error::Error for Refusal {}

/// What a pair costs: its text and about what the map keeps beside it, so that empty values are not free.
fn cost(key: &str, value: &str) -> usize {
    key.len() + value.len() + limits::KVS_PAIR_OVERHEAD_BYTES
}

impl Kvs {
    pub fn get(&self, subject: &Subject, key: &str) -> Option<Arc<str>> {
        self.lock().scopes.get(subject)?.pairs.get(key).cloned()
    }

    pub fn exists(&self, subject: &Subject, key: &str) -> bool {
        self.lock().scopes.get(subject).is_some_and(|scope| scope.pairs.contains_key(key))
    }

    /// Sorted by bytes.
    pub fn keys(&self, subject: &Subject) -> Vec<Arc<str>> {
        self.lock().scopes.get(subject).map(|scope| scope.pairs.keys().cloned().collect()).unwrap_or_default()
    }

    /// Creates or overwrites. After an error the old value stands.
    pub async fn set(&self, subject: &Subject, key: &str, value: &str) -> Result<(), Refusal> {
        if key.len() > limits::KVS_KEY_BYTES {
            return Err(Refusal::KeyTooLong(key.len()));
        }
        if value.len() > limits::KVS_VALUE_BYTES {
            return Err(Refusal::ValueTooLong(value.len()));
        }
        let mut state = self.lock();
        let state = &mut *state;
        let (mut keys, mut bytes, mut before) = (0, 0, 0);
        if let Some(scope) = state.scopes.get(subject) {
            (keys, bytes) = (scope.pairs.len(), scope.bytes);
            before = scope.pairs.get(key).map_or(0, |old| cost(key, old));
        }
        let more = cost(key, value);
        if before == 0 && keys >= limits::KVS_KEYS_PER_SUBJECT {
            return Err(Refusal::TooManyKeys);
        }
        if bytes - before + more > limits::KVS_BYTES_PER_SUBJECT {
            return Err(Refusal::SubjectFull);
        }
        if state.bytes - before + more > limits::KVS_BYTES {
            return Err(Refusal::BoxFull);
        }
        let scope = state.scopes.entry(subject.clone()).or_default();
        scope.pairs.insert(key.into(), value.into());
        scope.bytes = bytes - before + more;
        state.bytes = state.bytes - before + more;
        Ok(())
    }

    /// True if there was such a key.
    pub async fn delete(&self, subject: &Subject, key: &str) -> Result<bool, Refusal> {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(scope) = state.scopes.get_mut(subject) else { return Ok(false) };
        let Some(old) = scope.pairs.remove(key) else { return Ok(false) };
        scope.bytes -= cost(key, &old);
        state.bytes -= cost(key, &old);
        if scope.pairs.is_empty() {
            state.scopes.remove(subject);
        }
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Sums and pairs change together, with no panic between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::block_on;

    #[test]
    fn pairs_are_per_subject_and_keys_come_sorted() {
        let kvs = Kvs::default();
        let (a, b) = (Subject::new("a"), Subject::new("b"));
        for key in ["z", "", "m"] {
            block_on(kvs.set(&a, key, &format!("value of {key}"))).unwrap();
        }
        assert_eq!(kvs.keys(&a).iter().map(|k| &**k).collect::<Vec<_>>(), ["", "m", "z"]);
        assert_eq!(kvs.get(&a, "m").as_deref(), Some("value of m"));
        assert!(kvs.exists(&a, "") && !kvs.exists(&b, "m") && kvs.keys(&b).is_empty());
        assert_eq!(block_on(kvs.delete(&b, "m")), Ok(false));
        assert_eq!(block_on(kvs.delete(&a, "m")), Ok(true));
        assert_eq!(kvs.get(&a, "m"), None);
    }

    #[test]
    fn quotas_hold_and_a_refused_write_changes_nothing() {
        let kvs = Kvs::default();
        let (a, b) = (Subject::new("a"), Subject::new("b"));
        let long = "k".repeat(limits::KVS_KEY_BYTES + 1);
        assert_eq!(block_on(kvs.set(&a, &long, "")), Err(Refusal::KeyTooLong(long.len())));
        let value = "v".repeat(limits::KVS_VALUE_BYTES);
        assert_eq!(
            block_on(kvs.set(&a, "k", &format!("{value}v"))),
            Err(Refusal::ValueTooLong(value.len() + 1))
        );
        let mut stored = 0;
        while block_on(kvs.set(&a, &stored.to_string(), &value)).is_ok() {
            stored += 1;
        }
        assert_eq!(block_on(kvs.set(&a, "last", &value)), Err(Refusal::SubjectFull));
        assert_eq!(kvs.keys(&a).len(), stored);
        block_on(kvs.set(&a, "0", &value)).expect("overwriting with as much always fits");
        block_on(kvs.set(&b, "0", &value)).expect("another subject has its own quota");
        for key in kvs.keys(&a) {
            block_on(kvs.delete(&a, &key)).unwrap();
        }
        block_on(kvs.delete(&b, "0")).unwrap();
        assert_eq!(kvs.lock().bytes, 0);
        assert!(kvs.lock().scopes.is_empty());
    }
}
