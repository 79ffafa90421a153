//! Which keys there are and how long their values, per subject; what may be added.
//!
//! Owns: keys, lengths, sums and quotas. Never: a value, or a disk.

use super::Refusal;
use crate::identity::Subject;
use crate::limits;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Of what is durable.
#[derive(Default)]
pub(super) struct Index {
    scopes: HashMap<Subject, Scope>,
    bytes: usize,
}

/// One subject's keys.
#[derive(Default)]
struct Scope {
    /// Key to bytes of its value.
    values: BTreeMap<Arc<str>, usize>,
    bytes: usize,
}

/// What a pair costs: its text and about what is kept beside it, so that empty values are not free.
fn cost(key: &str, value_bytes: usize) -> usize {
    key.len() + value_bytes + limits::KVS_PAIR_OVERHEAD_BYTES
}

impl Index {
    /// How long the value of this key is, if there is one.
    pub fn value_bytes(&self, subject: &Subject, key: &str) -> Option<usize> {
        self.scopes.get(subject)?.values.get(key).copied()
    }

    /// Sorted by bytes.
    pub fn keys(&self, subject: &Subject) -> Vec<Arc<str>> {
        self.scopes.get(subject).map(|scope| scope.values.keys().cloned().collect()).unwrap_or_default()
    }

    /// What all pairs cost.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The subjects that have more than their quota, as a file from elsewhere may give them.
    pub fn over_quota(&self) -> impl Iterator<Item = &Subject> {
        let over = |scope: &Scope| {
            scope.bytes > limits::KVS_BYTES_PER_SUBJECT || scope.values.len() > limits::KVS_KEYS_PER_SUBJECT
        };
        self.scopes.iter().filter(move |(_, scope)| over(scope)).map(|(subject, _)| subject)
    }

    /// Takes note of a key whose value has so many bytes now, or that is gone.
    pub fn note(&mut self, subject: &Subject, key: &Arc<str>, value_bytes: Option<usize>) {
        let scope = self.scopes.entry(subject.clone()).or_default();
        let before = match value_bytes {
            Some(bytes) => scope.values.insert(key.clone(), bytes),
            None => scope.values.remove(key),
        };
        let (before, after) =
            (before.map_or(0, |bytes| cost(key, bytes)), value_bytes.map_or(0, |bytes| cost(key, bytes)));
        scope.bytes = scope.bytes - before + after;
        self.bytes = self.bytes - before + after;
        if scope.values.is_empty() {
            self.scopes.remove(subject);
        }
    }
}

/// Writes that are to be made on top of an index, in their order; the index learns of them once they are durable.
pub(super) struct Draft<'a> {
    index: &'a Index,
    scopes: HashMap<Subject, Sums>,
    bytes: usize,
}

/// One subject's sums with the draft's writes, and what these change.
struct Sums {
    keys: usize,
    bytes: usize,
    values: HashMap<Arc<str>, Option<usize>>,
}

/// A key, and the bytes of its value or that it is gone.
pub(super) type Change = (Subject, Arc<str>, Option<usize>);

impl<'a> Draft<'a> {
    pub fn of(index: &'a Index) -> Draft<'a> {
        Draft { index, scopes: HashMap::new(), bytes: index.bytes }
    }

    /// Takes a write of a value with so many bytes, or of none, if the quotas allow it. Answers whether there was such
    /// a key. What does not grow is always allowed.
    pub fn admit(
        &mut self,
        subject: &Subject,
        key: &Arc<str>,
        value: Option<usize>,
    ) -> Result<bool, Refusal> {
        let index = self.index;
        let sums = self.scopes.entry(subject.clone()).or_insert_with(|| {
            let scope = index.scopes.get(subject);
            Sums {
                keys: scope.map_or(0, |scope| scope.values.len()),
                bytes: scope.map_or(0, |scope| scope.bytes),
                values: HashMap::new(),
            }
        });
        let old = sums.values.get(key).copied().unwrap_or_else(|| index.value_bytes(subject, key));
        let before = old.map_or(0, |bytes| cost(key, bytes));
        let after = value.map_or(0, |bytes| cost(key, bytes));
        if after > before {
            if old.is_none() && sums.keys >= limits::KVS_KEYS_PER_SUBJECT {
                return Err(Refusal::TooManyKeys);
            }
            if sums.bytes - before + after > limits::KVS_BYTES_PER_SUBJECT {
                return Err(Refusal::SubjectFull);
            }
            if self.bytes - before + after > limits::KVS_BYTES {
                return Err(Refusal::BoxFull);
            }
        }
        if old.is_some() || value.is_some() {
            sums.keys = sums.keys - usize::from(old.is_some()) + usize::from(value.is_some());
            sums.bytes = sums.bytes - before + after;
            self.bytes = self.bytes - before + after;
            sums.values.insert(key.clone(), value);
        }
        Ok(old.is_some())
    }

    pub fn changes(self) -> Vec<Change> {
        let of = |(subject, sums): (Subject, Sums)| {
            sums.values.into_iter().map(move |(key, value)| (subject.clone(), key, value))
        };
        self.scopes.into_iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Arc<str> {
        text.into()
    }

    /// An index of what these writes make.
    fn index(writes: &[(&Subject, String, usize)]) -> Index {
        let mut index = Index::default();
        for (subject, name, bytes) in writes {
            index.note(subject, &key(name), Some(*bytes));
        }
        index
    }

    #[test]
    fn the_quota_of_keys_counts_what_the_draft_adds_and_takes_away() {
        let (a, b) = (Subject::new("a"), Subject::new("b"));
        let most = limits::KVS_KEYS_PER_SUBJECT;
        let full = index(&(1..most).map(|i| (&a, i.to_string(), 1)).collect::<Vec<_>>());
        let mut draft = Draft::of(&full);
        assert_eq!(draft.admit(&a, &key("last"), Some(1)), Ok(false));
        assert_eq!(draft.admit(&a, &key("one more"), Some(1)), Err(Refusal::TooManyKeys));
        assert_eq!(draft.admit(&a, &key("last"), Some(2)), Ok(true), "overwriting adds no key");
        assert_eq!(draft.admit(&b, &key("one more"), Some(1)), Ok(false), "another subject has its own");
        assert_eq!(draft.admit(&a, &key("1"), None), Ok(true));
        assert_eq!(draft.admit(&a, &key("1"), None), Ok(false), "it is gone in this draft");
        assert_eq!(draft.admit(&a, &key("one more"), Some(1)), Ok(false));
        assert_eq!(full.keys(&a).len(), most - 1, "a draft changes nothing");
    }

    #[test]
    fn the_quotas_of_bytes_hold_for_a_subject_and_for_all() {
        let subjects: Vec<Subject> = (0..=limits::KVS_BYTES / limits::KVS_BYTES_PER_SUBJECT)
            .map(|i| Subject::new(&i.to_string()))
            .collect();
        let room = limits::KVS_BYTES_PER_SUBJECT - cost("k", 0);
        let mut index = Index::default();
        let mut draft = Draft::of(&index);
        for subject in &subjects[..subjects.len() - 1] {
            assert_eq!(draft.admit(subject, &key("k"), Some(room + 1)), Err(Refusal::SubjectFull));
            assert_eq!(draft.admit(subject, &key("k"), Some(room)), Ok(false));
            assert_eq!(draft.admit(subject, &key("k"), Some(room + 1)), Err(Refusal::SubjectFull));
        }
        let last = &subjects[subjects.len() - 1];
        assert_eq!(draft.admit(last, &key("k"), Some(0)), Err(Refusal::BoxFull));
        let changes = draft.changes();
        for (subject, key, value) in &changes {
            index.note(subject, key, *value);
        }
        assert_eq!(index.bytes(), limits::KVS_BYTES);
        assert_eq!(index.over_quota().count(), 0);
        for (subject, key, _) in &changes {
            index.note(subject, key, None);
        }
        assert_eq!(index.bytes(), 0);
        assert!(index.scopes.is_empty(), "a scope goes with its last key");
    }

    #[test]
    fn who_has_more_than_the_quota_may_only_shrink() {
        let a = Subject::new("a");
        let index = index(&[(&a, "k".to_owned(), limits::KVS_BYTES_PER_SUBJECT + 10)]);
        assert_eq!(index.over_quota().collect::<Vec<_>>(), [&a]);
        let mut draft = Draft::of(&index);
        assert_eq!(draft.admit(&a, &key("l"), Some(0)), Err(Refusal::SubjectFull));
        assert_eq!(draft.admit(&a, &key("k"), Some(limits::KVS_BYTES_PER_SUBJECT + 9)), Ok(true));
        assert_eq!(draft.admit(&a, &key("k"), None), Ok(true));
        assert_eq!(draft.admit(&a, &key("l"), Some(0)), Ok(false));
    }
}
