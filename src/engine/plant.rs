//! Bugs that the simulation must find: each switches one rule off, in test builds only.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A name given back keeps its page.
    Owners,
    /// A pass writes into pages that others refer to.
    CopyOnWrite,
    /// A copy is not ordered after what is still to be written to its source.
    CopyTooEarly,
    /// Operations on the same slots are not ordered, between queues and instances.
    Hazards,
    /// An embed is read in the batch that stores it.
    EmbedInBatch,
    /// Passes of one queue run in any order.
    QueueOrder,
    /// A killed instance's unfinished exports stay.
    Withdrawal,
    /// What importers need of a dead instance's work is dropped with the rest.
    KeptWork,
    /// A pass sees what an earlier owner left in a page.
    Clearing,
    /// A page returns to the pool while a queued operation names it.
    Holds,
    /// A chunk's outputs count from the chunk.
    ChunkOrdinals,
}

pub const ALL: [Bug; 11] = [
    Bug::Owners,
    Bug::CopyOnWrite,
    Bug::CopyTooEarly,
    Bug::Hazards,
    Bug::EmbedInBatch,
    Bug::QueueOrder,
    Bug::Withdrawal,
    Bug::KeptWork,
    Bug::Clearing,
    Bug::Holds,
    Bug::ChunkOrdinals,
];

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
