//! What may be used: every quota by name, its text forms, and the values that hold for one launch.
//!
//! Owns: the table ([`Name`]), the values ([`Quotas`]), what a token lowers ([`Caps`]), the sentence for a quota that is
//! exceeded ([`Quota`]), and the counter that several share ([`Share`]). Never: what is counted; each layer counts
//! what it has.
//!
//! Three scopes. A quota without a prefix is one instance's, for its life. `subject_…` bounds what the live instances of
//! one token's subject have together, over all their connections. `total_…` is what the box has for everyone.
//! The defaults are `limits.rs`'s; `[quotas]` of the configuration sets them; a token's claim `quotas` lowers the
//! first two for what is launched with it, and raises nothing.

use crate::limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// As a value: no bound beside what the box has.
pub const NONE: u64 = u64::MAX;

/// What happens at the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The instance that asks for more ends with event 5; a launch is refused.
    Ends,
    /// The guest waits until there is room again.
    Waits,
}

/// A row of the table.
pub struct Row {
    pub name: Name,
    /// In the configuration, in a token's claim, and at `tartlet token mint --quota`.
    pub key: &'static str,
    /// In event 5.
    pub words: &'static str,
    pub default: u64,
    /// The most that the configuration may set.
    pub most: u64,
    pub over: Over,
}

macro_rules! quotas {
    ($($(#[doc = $doc:literal])* $name:ident: $key:literal, $words:literal, $default:expr, $most:expr, $over:ident;)*) => {
        /// One quota.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Name {
            $($(#[doc = $doc])* $name,)*
        }

        impl Name {
            /// All of them, in the order of their numbers.
            pub const TABLE: [Row; [$(Name::$name),*].len()] = [$(Row {
                name: Name::$name,
                key: $key,
                words: $words,
                default: $default,
                most: $most,
                over: Over::$over,
            }),*];
        }
    };
}

/// What a TOML number can say.
const ANY: u64 = i64::MAX as u64;

quotas! {
    /// Interpreted instructions, roughly, and what host calls charge.
    Fuel: "fuel", "fuel", limits::FUEL, ANY, Ends;
    /// The same in each second. A rate: who has used its share up waits for the next second's.
    FuelPerSecond: "fuel_per_second", "fuel per second", NONE, ANY, Waits;
    /// Linear memory, all memories of the program together.
    MemoryBytes: "memory_bytes", "memory bytes", limits::MEMORY_BYTES as u64, 1 << 32, Ends;
    /// Entries of all tables of the program together.
    TableElements: "table_elements", "table elements", limits::TABLE_ELEMENTS as u64, ANY, Ends;
    /// From launch to end, waiting included.
    WallClock: "wall_clock_seconds", "wall clock seconds", limits::WALL_CLOCK_SECONDS, ANY, Ends;
    /// KV pages that the instance names, imported ones included.
    KvPages: "kv_pages", "KV pages", limits::NAMES_PER_INSTANCE as u64, limits::NAMES_PER_INSTANCE as u64, Ends;
    /// Operations that are queued and not yet done.
    QueuedOperations: "queued_operations", "queued operations", limits::OPERATIONS_PER_INSTANCE as u64,
        limits::OPERATIONS_PER_INSTANCE as u64, Waits;
    /// Messages of its client that it has not read.
    UnreadMessages: "unread_messages", "messages not read", limits::MAILBOX_MESSAGES as u64, 1 << 20, Ends;
    /// Bytes of these.
    UnreadMessageBytes: "unread_message_bytes", "bytes of messages not read",
        limits::MAILBOX_MESSAGE_BYTES as u64, 1 << 32, Ends;
    /// Blobs of its client that it has not read.
    UnreadBlobs: "unread_blobs", "blobs not read", limits::MAILBOX_BLOBS as u64, 1 << 20, Ends;
    /// Bytes of these.
    UnreadBlobBytes: "unread_blob_bytes", "bytes of blobs not read", limits::MAILBOX_BLOB_BYTES as u64, 1 << 32, Ends;
    /// Standard output and error, as they stand in the log.
    LogBytes: "log_bytes", "log bytes", limits::LOG_BYTES as u64, ANY, Ends;
    /// Handles of all kinds.
    Handles: "handles", "handles", limits::HANDLES as u64, limits::HANDLES as u64, Ends;
    /// What the host keeps for them and behind them: blobs, also those on their way to the client, half-built passes, results.
    HeldBytes: "held_bytes", "bytes held by the host", limits::HELD_BYTES as u64, 1 << 32, Ends;

    /// Instances, those included whose last event is not sent yet, or whose last instruction is not over.
    SubjectInstances: "subject_instances", "instances of one subject",
        limits::INSTANCES_PER_SUBJECT as u64, limits::INSTANCES as u64, Ends;
    SubjectFuel: "subject_fuel", "fuel of one subject", NONE, ANY, Ends;
    SubjectFuelPerSecond: "subject_fuel_per_second", "fuel per second of one subject", NONE, ANY, Waits;
    /// Linear memory and tables beyond what each instance is sure of, and what the host holds beyond 1 MiB each.
    SubjectMemoryBytes: "subject_memory_bytes", "memory bytes of one subject",
        limits::MEMORY_BYTES_PER_SUBJECT as u64, ANY, Ends;
    /// KV pages in use, those included that only exports or queued operations still hold.
    SubjectKvPages: "subject_kv_pages", "KV pages of one subject", NONE, ANY, Ends;
    SubjectQueuedOperations: "subject_queued_operations", "queued operations of one subject",
        limits::OPERATIONS_PER_SUBJECT as u64, ANY, Waits;
    /// Bytes of messages and blobs of its clients that its instances have not read.
    SubjectUnreadBytes: "subject_unread_bytes", "bytes not read by one subject",
        limits::UNREAD_BYTES_PER_SUBJECT as u64, ANY, Ends;
    /// Bytes in the log of all its instances, those included that have ended. Time gives them back.
    SubjectLogBytes: "subject_log_bytes", "log bytes of one subject",
        limits::LOG_BYTES_PER_SUBJECT as u64, ANY, Ends;

    /// Instances, of everyone.
    TotalInstances: "total_instances", "instances of all together",
        limits::INSTANCES as u64, limits::INSTANCES as u64, Ends;
    /// As [`Name::SubjectMemoryBytes`], of everyone.
    TotalMemoryBytes: "total_memory_bytes", "memory bytes of all together",
        limits::MEMORY_POOL_BYTES as u64, ANY, Ends;
    /// As [`Name::SubjectUnreadBytes`], of everyone.
    TotalUnreadBytes: "total_unread_bytes", "bytes not read by all together",
        limits::UNREAD_BYTES as u64, ANY, Ends;
}

impl Name {
    pub fn row(self) -> &'static Row {
        const TABLE: &[Row] = &Name::TABLE;
        &TABLE[self as usize]
    }

    pub fn of(key: &str) -> Option<Name> {
        Name::TABLE.iter().find(|row| row.key == key).map(|row| row.name)
    }

    /// Whether it is everyone's, which no token may name.
    pub fn is_total(self) -> bool {
        self >= Name::TotalInstances
    }
}

/// The values that hold for one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas([u64; Name::TABLE.len()]);

impl Default for Quotas {
    /// Generous: they end what runs away, not what works hard.
    fn default() -> Quotas {
        Quotas(Name::TABLE.map(|row| row.default))
    }
}

impl Quotas {
    pub fn get(&self, name: Name) -> u64 {
        self.0[name as usize]
    }

    /// The same as a size in memory.
    pub fn size(&self, name: Name) -> usize {
        usize::try_from(self.get(name)).unwrap_or(usize::MAX)
    }

    pub fn with(mut self, name: Name, value: u64) -> Quotas {
        self.0[name as usize] = value;
        self
    }

    /// No value is raised.
    pub fn lowered(mut self, caps: &Caps) -> Quotas {
        for (&name, &cap) in &caps.0 {
            let value = &mut self.0[name as usize];
            *value = cap.min(*value);
        }
        self
    }

    /// The quota of this name, exceeded.
    pub fn over(&self, name: Name) -> Quota {
        Quota { name, limit: self.get(name) }
    }
}

/// A quota that was exceeded, with the value it has. `Display` is the text of event 5, and of a refused launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub name: Name,
    pub limit: u64,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota exceeded: {}, limit {}", self.name.row().words, self.limit)
    }
}

impl std::error::Error for Quota {}

/// What several have together, as one of them sees it: the common count, and the value that holds for itself.
#[derive(Clone, Debug)]
pub struct Share {
    held: Count,
    full: Quota,
}

/// A number that several hold.
pub type Count = Arc<AtomicU64>;

impl Share {
    pub fn new(held: &Count, full: Quota) -> Share {
        Share { held: held.clone(), full }
    }

    /// # Errors
    /// With so much more there would be more than the quota; nothing is taken.
    pub fn take(&self, more: u64) -> Result<(), Quota> {
        let fits = |held: u64| held.checked_add(more).filter(|held| *held <= self.full.limit);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| self.full)
    }

    /// More than was taken would be a fault of ours: it must not wrap around, and refuse everybody everything.
    pub fn give(&self, less: u64) {
        let left = |held: u64| Some(held.saturating_sub(less));
        let before = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        debug_assert!(before.is_ok_and(|held| held >= less), "{less} given back of {before:?}");
    }
}

/// The shares of one thing, in the subject's and in everyone's. Of each or of none is taken.
#[derive(Clone, Debug)]
pub struct Shares(pub [Share; 2]);

impl Shares {
    pub fn take(&self, more: u64) -> Result<(), Quota> {
        let [subject, total] = &self.0;
        subject.take(more)?;
        total.take(more).inspect_err(|_| subject.give(more))
    }

    pub fn give(&self, less: u64) {
        self.0.iter().for_each(|share| share.give(less));
    }
}

/// What a token lowers. As a claim: `{"fuel": 1000000, "kv_pages": 64}`.
///
/// A name that is none of the table's is an error and not ignored: it is written to limit somebody, and would let
/// everything through where it is misspelt, or where the server is older than the quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct Caps(BTreeMap<Name, u64>);

impl Caps {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From words like `fuel=1000000`; of one that is said twice the lower value counts.
    pub fn read<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Caps, String> {
        let mut caps = Caps::default();
        for word in words {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is no quota; write NAME=VALUE"))?;
            let value = value
                .parse()
                .map_err(|_| format!("the quota {key} is {value:?}, which is no whole number"))?;
            caps.add(key, value)?;
        }
        Ok(caps)
    }

    fn add(&mut self, key: &str, value: u64) -> Result<(), String> {
        let name = Name::of(key).ok_or_else(|| unknown(key))?;
        if name.is_total() {
            return Err(format!("the quota {key} is everyone's; only the server's configuration sets it"));
        }
        let cap = self.0.entry(name).or_insert(value);
        *cap = value.min(*cap);
        Ok(())
    }
}

/// The sentence for a name that is none.
pub fn unknown(key: &str) -> String {
    let keys: Vec<&str> = Name::TABLE.iter().map(|row| row.key).collect();
    let key: String = key.chars().take(64).collect();
    format!("there is no quota {key:?}; there are {}", keys.join(", "))
}

impl TryFrom<BTreeMap<String, u64>> for Caps {
    type Error = String;
    fn try_from(claim: BTreeMap<String, u64>) -> Result<Caps, String> {
        let mut caps = Caps::default();
        claim.iter().try_for_each(|(key, value)| caps.add(key, *value))?;
        Ok(caps)
    }
}

impl From<Caps> for BTreeMap<String, u64> {
    fn from(caps: Caps) -> BTreeMap<String, u64> {
        caps.0.into_iter().map(|(name, value)| (name.row().key.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_sound() {
        for (at, row) in Name::TABLE.iter().enumerate() {
            assert_eq!(row.name as usize, at, "{}", row.key);
            assert!(row.default == NONE || row.default <= row.most, "{}", row.key);
            assert_eq!(row.name.is_total(), row.key.starts_with("total_"));
            assert_eq!(Name::of(row.key), Some(row.name));
        }
        let words: BTreeSet<&str> = Name::TABLE.iter().map(|row| row.words).collect();
        assert_eq!(words.len(), Name::TABLE.len(), "each is told apart");
    }

    #[test]
    fn a_cap_lowers_and_never_raises() {
        let own = Quotas::default();
        let caps = Caps::read(["fuel=10", "log_bytes=99999999999", "subject_fuel=7", "fuel=20"]).unwrap();
        let lowered = own.lowered(&caps);
        assert_eq!((lowered.get(Name::Fuel), lowered.get(Name::SubjectFuel)), (10, 7));
        assert_eq!(lowered.get(Name::LogBytes), own.get(Name::LogBytes));
        assert_eq!(lowered.over(Name::Fuel).to_string(), "Quota exceeded: fuel, limit 10");
        assert_eq!(own.lowered(&Caps::default()), own);
    }

    #[test]
    fn of_both_shares_is_taken_or_of_none() {
        let counts = [Count::default(), Count::default()];
        let shares = |subject, total| {
            let quotas =
                Quotas::default().with(Name::SubjectUnreadBytes, subject).with(Name::TotalUnreadBytes, total);
            let names = [Name::SubjectUnreadBytes, Name::TotalUnreadBytes];
            (Shares([0, 1].map(|i| Share::new(&counts[i], quotas.over(names[i])))), quotas)
        };
        let ((wide, quotas), (narrow, lower)) = (shares(9, 10), shares(3, 10));
        assert_eq!(wide.take(4), Ok(()));
        assert_eq!(narrow.take(0), Err(lower.over(Name::SubjectUnreadBytes)), "what others have counts");
        assert_eq!(wide.take(6), Err(quotas.over(Name::SubjectUnreadBytes)));
        counts[1].fetch_add(5, Ordering::Relaxed); // another subject
        assert_eq!(wide.take(2), Err(quotas.over(Name::TotalUnreadBytes)));
        assert_eq!(wide.take(u64::MAX), Err(quotas.over(Name::SubjectUnreadBytes)));
        assert_eq!(wide.take(1), Ok(()));
        wide.give(5);
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [0, 5]);
    }

    #[test]
    fn what_is_no_quota_is_refused() {
        for (word, part) in [
            ("fule=1", "there is no quota \"fule\"; there are fuel, fuel_per_second"),
            ("fuel", "write NAME=VALUE"),
            ("fuel=-1", "no whole number"),
            ("fuel=many", "no whole number"),
            ("total_instances=1", "everyone's"),
        ] {
            let error = Caps::read([word]).unwrap_err();
            assert!(error.contains(part), "{word}: {error}");
        }
        let claim = |text: &str| serde_json::from_str::<Caps>(text);
        let text = r#"{"fuel":5,"kv_pages":3}"#;
        assert_eq!(serde_json::to_string(&claim(text).unwrap()).unwrap(), text);
        for wrong in [r#"{"fule":1}"#, r#"{"fuel":-1}"#, r#"{"fuel":1.5}"#, r#"{"fuel":"1"}"#, "3", "[]"] {
            assert!(claim(wrong).is_err(), "{wrong}");
        }
    }
}
