//! What guests may call, and the state of one guest that these calls work on.
//!
//! Owns: [`Cx`] and the list of all interfaces. Never: scheduling, or when a guest runs.
//!
//! One file per WIT interface: a function is its arguments, its rights, its operation. The table a file gives is a
//! list of typed one-liners; `abi.rs` and `function.rs` do the rest:
//!
//! ```text
//! pub fn interface() -> Interface {
//!     Interface::new("inferlet:core/kvs")
//!         .call("store-get", store_get)        // fn(&mut Cx, String) -> Result<Option<String>, Trap>
//!         .wait("something-slow", slow)        // fn(&mut Cx, ..) -> Result<Later<R>, Trap>
//!         .resource::<Blob>()                  // impl Resource for Blob
//! }
//! ```

use crate::engine::{Handle, credit::Credits};
use crate::exchange::{Exchange, Mailbox};
use crate::identity::{InstanceId, Subject};
use crate::model::Model;
use crate::outgoing::Line;
use crate::runtime::aside::Aside;
use crate::runtime::quota::Allowance;
use crate::runtime::table::Table;
use crate::runtime::worker::Apart;
use crate::runtime::{Directory, Servers, events};
use std::sync::Arc;
use std::sync::LazyLock;

pub mod abi;
#[cfg(test)]
pub(crate) mod bed;
pub mod common;
pub mod forward;
pub mod function;
#[cfg(test)]
mod fuzz;
pub mod held;
pub mod kvs;
mod lists;
pub mod message;
pub mod runtime;
pub mod shape;
#[cfg(test)]
mod tests;
pub mod tokenize;
pub mod trap;
pub mod unsupported;
pub mod values;
mod variant;
pub mod wasi;
#[cfg(test)]
mod wit_check;

pub use function::{Interface, Later};
pub use trap::Trap;

/// The state of one guest: what its host functions see.
pub struct Cx {
    pub instance: InstanceId,
    pub subject: Subject,
    /// Of the launch request.
    pub arguments: Vec<String>,
    /// Keys every random draw made for this instance.
    pub seed: u64,
    /// What `set-return` was last given.
    pub returned: String,
    pub table: Table,
    /// The guest's queues.
    pub queues: common::Queues,
    /// The pages and embeddings that it holds.
    pub names: common::Names,
    /// What the host keeps for the guest behind handles.
    pub held: held::Meter,
    pub model: Arc<Model>,
    pub engine: Handle,
    /// Where calls have done what takes long.
    pub aside: Aside,
    /// Room for this instance's operations in the engine.
    pub credits: Credits,
    pub exchange: Arc<Exchange>,
    pub mailbox: Arc<Mailbox>,
    /// Where messages and blobs for the client go; await a full channel.
    pub events: events::Sender,
    /// Who else runs.
    pub directory: Directory,
    pub servers: Servers,
    /// The generator behind `wasi:random/insecure`.
    pub insecure: wasi::random::Insecure,
    /// Where its HTTP requests go.
    pub line: Line,
    /// What it prints.
    pub log: wasi::cli::Log,
    /// What the guest may use and has used.
    pub allowance: Allowance,
    /// What a suspended call waits for; the driver takes it.
    pub pending: Option<function::Pending>,
    /// Whether guest code that runs now may call the host.
    pub may_leave: bool,
    /// Held while guest code runs that nothing interrupts: its end may be told meanwhile.
    pub apart: Option<Apart>,
    /// Fuel for host work that the slice could not pay.
    pub owed_fuel: u64,
}

impl Cx {
    /// Charges the guest for work that the host does for it beside crossing the border; the call's end collects it.
    pub fn owe(&mut self, units: usize, fuel_each: u64) {
        self.owed_fuel = self.owed_fuel.saturating_add((units as u64).saturating_mul(fuel_each));
    }
}

/// Every interface that a guest may import.
pub fn interfaces() -> &'static [Interface] {
    static INTERFACES: LazyLock<Vec<Interface>> = LazyLock::new(|| {
        let mut all = wasi::interfaces();
        all.extend([
            common::interface(),
            runtime::interface(),
            forward::interface(),
            tokenize::interface(),
            message::interface(),
            kvs::interface(),
        ]);
        all.extend(unsupported::interfaces());
        all
    });
    &INTERFACES
}

/// The interface that an import names, whatever patch version it was built against: wasi 0.2 only ever grew.
pub fn interface(import: &str) -> Option<&'static Interface> {
    let name = without_patch(import);
    interfaces().iter().find(|interface| interface.name == name)
}

/// `wasi:io/poll@0.2.12` is `wasi:io/poll@0.2`. A pre-release stays as it is, and so matches nothing.
fn without_patch(import: &str) -> &str {
    let patch = import.rsplit_once('.').filter(|(name, patch)| {
        name.contains('@') && !patch.is_empty() && patch.bytes().all(|digit| digit.is_ascii_digit())
    });
    patch.map_or(import, |(name, _)| name)
}
