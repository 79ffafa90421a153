//! What instances share with the world and with each other: key-value pairs, topics, mailboxes.
//!
//! Owns: the data and its bounds, scoped by subject. Never: wasm, the engine, or who runs; callers name themselves.

pub mod kvs;
pub mod mailbox;
pub mod topics;

pub use kvs::Kvs;
pub use mailbox::Mailbox;
pub use topics::Topics;

/// The shared part; a mailbox belongs to one instance and lives with it.
#[derive(Default)]
pub struct Exchange {
    pub kvs: Kvs,
    pub topics: Topics,
}
