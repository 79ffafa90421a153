//! What a guest may ask of the engine, and what it answers: plain data.
//!
//! Owns: the vocabulary between `host` and `engine`. Never: state, pages, wasm. What arrives here has been
//! validated by the host as far as the guest's own words go (counts, ids it holds, masks, temperatures).

use crate::backend::{Mask, Produced, Sampler, TokenId};
use crate::identity::{InstanceId, Subject};
use smol::lock::OnceCell;
use std::sync::Arc;

/// A guest's name for a page or an embedding slot: per instance and kind, stable under copy on write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualId(pub u32);

/// The resource types of the contract that have storage (type 2, adapters, is refused in the host).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Page,
    Embed,
}

/// A stream of one instance: its operations take effect in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId {
    pub instance: InstanceId,
    /// Ordinal in the instance, from 0; keys the draws.
    pub ordinal: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// Written once by the engine, awaited (`wait`) or looked at (`get`) by the guest. Dropping it loses nothing.
pub type Reply<T> = Arc<OnceCell<T>>;

/// Why the engine did not do as asked. `Display` is a sentence for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An `import` of a name nobody exported in this subject's scope.
    NoSuchExport(String),
    /// An `export` under a name that is taken.
    NameTaken(String),
    /// Nothing can help: more is asked than the pool holds or than others can be made to give up.
    OutOfPages { asked: u32, capacity: u32, free: u32 },
    /// An id that the instance does not hold (named by kind and number).
    NotHeld(Kind, VirtualId),
    /// A bound of `limits.rs`, named.
    Full(&'static str, usize),
}

/// One forward pass as the guest built it, page names still virtual.
#[derive(Clone, Debug)]
pub struct Pass {
    pub pages: Vec<VirtualId>,
    /// Sequence length after the pass, the new rows included: page_size * (pages - 1) + last_len.
    pub len: u32,
    pub inputs: Vec<PassInput>,
    pub positions: Vec<u32>, // [row]
    pub mask: Mask,
    pub outputs: Vec<PassOutput>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassInput {
    Token(TokenId),
    Embed(VirtualId),
}

#[derive(Clone, Debug)]
pub enum PassOutput {
    Token { row: u32, sampler: Sampler },
    Distribution { row: u32, temperature: f32, top_k: u32 },
    Embed { row: u32, to: VirtualId },
}

/// What a pass yields: one entry per `Token` and `Distribution` output, in call order; or why it never ran
/// (its instance was ended, or the device failed).
pub type PassResult = Result<Vec<Produced>, Lost>;

/// The operation was given up with its instance or its device. `Display` says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost(pub String);

/// What waits in a queue.
pub enum Operation {
    Pass(Pass, Reply<PassResult>),
    /// Answers when everything earlier in the queue has taken effect.
    Synchronize(Reply<bool>),
}

/// How an instance left, which decides what becomes of its queued work and its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Queued passes that write exported pages still run.
    Completed,
    /// Queued work is dropped; exports whose contents were not yet written are withdrawn.
    Killed,
}

/// Everything that goes down to the engine, in the order sent.
pub enum Command {
    Join {
        instance: InstanceId,
        subject: Subject,
        seed: u64,
    },
    Leave {
        instance: InstanceId,
        how: Leave,
    },
    Allocate {
        instance: InstanceId,
        kind: Kind,
        count: u32,
        reply: Reply<Result<Vec<VirtualId>, Refusal>>,
    },
    Deallocate {
        instance: InstanceId,
        kind: Kind,
        ids: Vec<VirtualId>,
    },
    Export {
        instance: InstanceId,
        kind: Kind,
        ids: Vec<VirtualId>,
        name: String,
        reply: Reply<Result<(), Refusal>>,
    },
    Import {
        instance: InstanceId,
        kind: Kind,
        name: String,
        reply: Reply<Result<Vec<VirtualId>, Refusal>>,
    },
    Release {
        instance: InstanceId,
        kind: Kind,
        name: String,
        reply: Reply<Result<(), Refusal>>,
    },
    /// Names and page counts in the subject's scope, sorted by name.
    Exports {
        instance: InstanceId,
        kind: Kind,
        reply: Reply<Vec<(String, u32)>>,
    },
    Submit {
        queue: QueueId,
        operation: Operation,
    },
    SetPriority {
        queue: QueueId,
        priority: Priority,
    },
    /// Counters for `model_status`.
    Status {
        reply: Reply<Status>,
    },
}

/// `{model}.resource.N.*` and the count of instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub pages: Usage,
    pub embeds: Usage,
    pub instances: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub capacity: u32,
    pub used: u32,
    pub exported: u32,
}

/// What the engine tells upward on the channel it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// End this instance with event 5: an older one needs its pages.
    Evict(InstanceId),
}
