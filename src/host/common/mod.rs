//! `inferlet:core/common`: models, queues, blobs, and the names of pages and embeddings.
//!
//! Owns: these resources. Never: pages themselves; the engine owns them and a guest's ids mean something only there.

mod blob;
mod model;
mod names;
mod queue;
mod resources;

pub use blob::{Blob, BlobResult};
pub use model::TRAITS;
pub use names::Names;
pub use queue::{DebugQueryResult, Queue, Queues, Stream, given_up, submit};

use super::{Interface, Trap};

pub fn interface() -> Interface {
    let interface = Interface::new("inferlet:core/common");
    resources::functions(queue::functions(model::functions(blob::functions(interface))))
}

/// A name that a guest gives to something.
fn check_name(name: &str, bound: usize) -> Result<(), Trap> {
    match name.len() > bound {
        true => Err(Trap::error(format!("name has {} bytes; at most {bound} are allowed", name.len()))),
        false => Ok(()),
    }
}
