//! Guest programs: read, checked, translated, kept.

use crate::identity::ProgramHash;

pub mod store;

pub use store::{Rejected, Store};

/// A program that may run: validated and translated once, shared by its instances.
pub struct Program {
    pub hash: ProgramHash,
}
