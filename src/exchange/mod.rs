//! What instances share with the world and with each other: key-value pairs, topics, mailboxes.
//!
//! Owns: the data and its bounds, scoped by subject. Never: wasm, the engine, or who runs; callers name themselves.

pub mod kvs;
pub mod mailbox;
pub mod topics;

pub use kvs::{Kvs, KvsError};
pub use mailbox::Mailbox;
pub use topics::Topics;

use std::path::Path;

/// The shared part; a mailbox belongs to one instance and lives with it.
pub struct Exchange {
    pub kvs: Kvs,
    pub topics: Topics,
}

impl Exchange {
    /// With the key-value pairs that lie in the folder `state`.
    pub fn open(state: &Path) -> Result<Exchange, KvsError> {
        Ok(Exchange { kvs: Kvs::open(state)?, topics: Topics::default() })
    }
}

#[cfg(test)]
impl Default for Exchange {
    fn default() -> Exchange {
        Exchange { kvs: Kvs::in_memory(), topics: Topics::default() }
    }
}
