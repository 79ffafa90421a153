//! What a guest may ask of the engine, and what it answers: plain data.
//!
//! Owns: the vocabulary between `host` and `engine`. Never: state, pages, wasm. What arrives here has been
//! validated by the host as far as the guest's own words go (counts, ids it holds, masks, temperatures).

use crate::backend::{Mask, Produced, Sampler, TokenId};
use crate::engine::credit::Credit;
use crate::identity::{InstanceId, Subject};
use crate::quota::{Name, Quota, Quotas};
use smol::lock::OnceCell;
use std::any::Any;
use std::fmt;
use std::ops::Deref;
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
/// It may carry whoever counts its bytes, which are there until the last that knows the reply lets go of it: a guest's result,
/// a pollable, or the engine.
pub struct Reply<T> {
    written: Arc<OnceCell<T>>,
    carried: Option<Arc<dyn Any + Send + Sync>>,
}

impl<T> Reply<T> {
    /// One that keeps something until it is gone.
    pub fn carrying(what: impl Any + Send + Sync) -> Reply<T> {
        Reply { carried: Some(Arc::new(what)), ..Reply::default() }
    }

    /// The same, without what it carries.
    pub fn bare(self) -> Reply<T> {
        Reply { carried: None, ..self }
    }
}

impl<T> Clone for Reply<T> {
    fn clone(&self) -> Reply<T> {
        Reply { written: self.written.clone(), carried: self.carried.clone() }
    }
}

impl<T> Default for Reply<T> {
    fn default() -> Reply<T> {
        Reply { written: Arc::default(), carried: None }
    }
}

impl<T> From<T> for Reply<T> {
    /// Written already.
    fn from(value: T) -> Reply<T> {
        Reply { written: Arc::new(OnceCell::from(value)), carried: None }
    }
}

impl<T> Deref for Reply<T> {
    type Target = OnceCell<T>;
    fn deref(&self) -> &OnceCell<T> {
        &self.written
    }
}

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
    /// A quota of the instance or its subject, which ends it.
    Quota(Quota),
    /// The engine has already given the instance up; its end is on the way.
    Ended,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoSuchExport(name) => write!(f, "nothing is exported under the name {name:?}"),
            Refusal::NameTaken(name) => {
                write!(f, "the name {name:?} is taken: release it or export under another")
            }
            Refusal::OutOfPages { asked, capacity, free } => {
                write!(f, "{asked} asked, {free} free of {capacity}, and no newer instance to take them from")
            }
            Refusal::NotHeld(kind, id) => write!(f, "this instance holds no {kind} {}", id.0),
            Refusal::Full(what, bound) => write!(f, "at most {bound} {what}: give some back first"),
            Refusal::Quota(quota) => quota.fmt(f),
            Refusal::Ended => f.write_str("the instance has been ended"),
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Page => "page",
            Kind::Embed => "embed",
        })
    }
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

impl PassOutput {
    /// The row it is of.
    pub fn row(&self) -> u32 {
        let (PassOutput::Token { row, .. }
        | PassOutput::Distribution { row, .. }
        | PassOutput::Embed { row, .. }) = *self;
        row
    }
}

/// What a pass yields: one entry per `Token` and `Distribution` output, in call order; or why it never ran
/// (its instance was ended, or the device failed).
pub type PassResult = Result<Vec<Produced>, Lost>;

/// The operation was given up with its instance or its device. `Display` says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost(pub String);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

/// What waits in a queue.
pub enum Operation {
    Pass(Pass, Reply<PassResult>),
    /// Answers true when everything earlier in the queue has taken effect, false when it was given up.
    Synchronize(Reply<bool>),
}

impl Operation {
    /// What it costs to keep queued, in u32s: the argument of [`crate::engine::credit::Credits::take`].
    pub fn words(&self) -> usize {
        match self {
            Operation::Pass(pass, _) => {
                let runs = match &pass.mask {
                    Mask::Causal => 0,
                    Mask::Runs(rows) => rows.iter().map(|row| ROW_WORDS + row.len()).sum(),
                };
                PAGE_WORDS * pass.pages.len() + 3 * pass.inputs.len() + 8 * pass.outputs.len() + runs
            }
            Operation::Synchronize(_) => 0,
        }
    }
}

/// A page of a queued pass: its two names, what the pass does to it, and what others must wait for (44 bytes).
const PAGE_WORDS: usize = 11;
/// A mask row beside its runs: the list that holds them (24 bytes), and the least that an allocation takes.
const ROW_WORDS: usize = 14;

/// How an instance left, which decides what becomes of its queued work and its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Queued passes that write exported pages still run; what waits for pages is dropped, as nobody could see it.
    Completed,
    /// Queued work is dropped; exports whose contents were not yet written are withdrawn.
    Killed,
}

/// KV pages that an instance may name, and that may be its subject's meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageQuotas {
    pub own: u32,
    pub subject: u32,
}

impl PageQuotas {
    pub fn of(quotas: &Quotas) -> PageQuotas {
        let pages = |name| u32::try_from(quotas.get(name)).unwrap_or(u32::MAX);
        PageQuotas { own: pages(Name::KvPages), subject: pages(Name::SubjectKvPages) }
    }
}

impl Default for PageQuotas {
    /// No bound beside what there is.
    fn default() -> PageQuotas {
        PageQuotas { own: u32::MAX, subject: u32::MAX }
    }
}

/// Everything that goes down to the engine, in the order sent.
pub enum Command {
    Join {
        instance: InstanceId,
        subject: Subject,
        pages: PageQuotas,
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
    /// Resolved at once, in the order sent: names, owners and copies on write are decided here; contents follow the
    /// queue. A malformed or impossible operation ends the instance (see [`Notice`]).
    Submit {
        queue: QueueId,
        operation: Operation,
        /// Room in the instance's allowance; [`crate::engine::Handle::submit`] takes it and sends.
        credit: Credit,
    },
    /// The guest dropped its queue: what is queued still runs, then the queue is forgotten. Never sent to again.
    Close {
        queue: QueueId,
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

impl Command {
    /// What it costs to keep on its way, in u32s; see [`Operation::words`].
    pub fn words(&self) -> usize {
        match self {
            Command::Deallocate { ids, .. } => ids.len(),
            _ => 0,
        }
    }

    /// Who asks; nobody for [`Command::Status`].
    pub fn instance(&self) -> Option<InstanceId> {
        match self {
            Command::Join { instance, .. }
            | Command::Leave { instance, .. }
            | Command::Allocate { instance, .. }
            | Command::Deallocate { instance, .. }
            | Command::Export { instance, .. }
            | Command::Import { instance, .. }
            | Command::Release { instance, .. }
            | Command::Exports { instance, .. } => Some(*instance),
            Command::Submit { queue, .. } | Command::Close { queue } | Command::SetPriority { queue, .. } => {
                Some(queue.instance)
            }
            Command::Status { .. } => None,
        }
    }
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

/// What the engine tells upward on the channel it was given: at most one per instance, which the engine has then
/// given up already (its later commands are answered [`Refusal::Ended`] or [`Lost`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// End this instance with event 5: an older one needs its pages.
    Evict(InstanceId),
    /// End this instance with event 3, `OOM unrecoverable: {why}`: a pass of it needs a page (its own copy of a shared
    /// one) and nothing can help.
    OutOfPages { instance: InstanceId, why: String },
    /// End this instance with event 5: a pass of it needs a page (its own copy of a shared one) beyond this quota.
    Quota { instance: InstanceId, quota: Quota },
    /// End this instance with event 3, `Runtime error: Call error: {what}`: it named what it does not hold, or a pass
    /// was malformed. `what` names the argument.
    Misuse { instance: InstanceId, what: String },
}

impl Notice {
    /// Whom it ends.
    pub fn instance(&self) -> InstanceId {
        match self {
            Notice::Evict(instance)
            | Notice::OutOfPages { instance, .. }
            | Notice::Quota { instance, .. }
            | Notice::Misuse { instance, .. } => *instance,
        }
    }
}
