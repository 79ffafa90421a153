//! Bugs that the simulations must find: each switches one rule off, in test builds only.
//!
//! Owns: which bug is planted, per thread. Never: part of the binary; whoever has a rule names its bug under `cfg(test)`.

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
    /// A pass is done when the first of two batches with rows of it has ended.
    FirstOfTwo,
    /// A chunk's outputs count from the chunk.
    ChunkOrdinals,
    /// A page that was written over is found by what it held.
    PrefixStale,
    /// A page is found before it has been written.
    PrefixUnwritten,
    /// What a dropped pass was to write counts as written.
    PrefixDropped,
    /// Pages are a prefix in whatever order they are listed.
    PrefixOrder,
    /// Tokens at other positions are the same prefix.
    PrefixPositions,
    /// Rows that do not attend all before them are the same prefix.
    PrefixMask,
    /// Anybody finds what anybody has computed.
    PrefixSubject,

    // ---- events, sessions, connections ----
    /// An event for which there is no room is dropped.
    LostWhenFull,
    /// An event that waits for room is sent again.
    SentTwice,
    /// The last event overtakes the one before it.
    EndOvertakes,
    /// Events are counted, not weighed.
    Unweighed,
    /// The last event is not waited with.
    EndNotAwaited,
    /// A forwarder that has sent the last event makes up another.
    SecondEnd,
    /// An instance runs before its launch is answered.
    StartsUnanswered,
    /// Blobs do not take turns.
    BlobsInterleave,
    /// What an instance says next goes between the chunks of its blob.
    TornBlobs,
    /// All connections' blobs take turns.
    OneTurnForAll,
    /// The first blob does not wait until its client knows the instance.
    Unintroduced,
    /// The client reads the last event before its session knows of it.
    EndsUnknown,
    /// A session keeps the instances that have ended.
    StillOwned,
    /// Instances outlive their connection.
    Orphans,
    /// A client that does not read is waited for.
    EndlessPatience,
    /// A frame is written again when others wait.
    WrittenTwice,
    /// The client is told of an end before the engine is.
    ToldTooEarly,
    /// Instances are told that their client is gone, whatever ended the connection.
    WrongWord,
    /// A signal is dropped while the client's frames wait.
    SignalsDropped,
}

/// Of these, some that must show through sessions and guests, too.
pub const ENGINE_FROM_ABOVE: [Bug; 5] =
    [Bug::Owners, Bug::CopyOnWrite, Bug::Hazards, Bug::QueueOrder, Bug::Withdrawal];

/// For the simulation of the whole box.
pub const BOX: [Bug; 19] = [
    Bug::LostWhenFull,
    Bug::SentTwice,
    Bug::EndOvertakes,
    Bug::Unweighed,
    Bug::EndNotAwaited,
    Bug::SecondEnd,
    Bug::StartsUnanswered,
    Bug::BlobsInterleave,
    Bug::TornBlobs,
    Bug::OneTurnForAll,
    Bug::Unintroduced,
    Bug::EndsUnknown,
    Bug::StillOwned,
    Bug::Orphans,
    Bug::EndlessPatience,
    Bug::WrittenTwice,
    Bug::ToldTooEarly,
    Bug::WrongWord,
    Bug::SignalsDropped,
];

/// For the simulation of the engine alone.
pub const ENGINE: [Bug; 18] = [
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
    Bug::FirstOfTwo,
    Bug::ChunkOrdinals,
    Bug::PrefixStale,
    Bug::PrefixUnwritten,
    Bug::PrefixOrder,
    Bug::PrefixPositions,
    Bug::PrefixMask,
    Bug::PrefixSubject,
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
