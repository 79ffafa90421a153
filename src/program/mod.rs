//! Guest programs: read, checked, translated, kept.
//!
//! Owns: [`Program`] and what makes one out of bytes. Never: an instance.

use crate::identity::ProgramHash;
use std::sync::Arc;

mod body;
pub mod component;
mod frame;
pub mod plan;
pub mod rejected;
mod shelf;
pub mod store;
pub mod translate;
mod types;

pub use rejected::Rejected;
pub use store::{Store, StoreError};
pub use translate::{Code, Translation};

/// What a program is for; one of the two at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub runs: bool,
    pub answers: bool,
}

/// A program in memory, validated and translated, for one subject: its instances share it, and its code with everybody's.
pub struct Program {
    pub hash: ProgramHash,
    pub code: Arc<Code>,
}

impl Program {
    /// Takes as long as [`Code::of`].
    pub fn of(component: &[u8]) -> Result<Arc<Program>, Rejected> {
        Ok(Arc::new(Program { hash: ProgramHash::of(component), code: Arc::new(Code::of(component)?) }))
    }

    /// One without code, for tests of what never runs it.
    #[cfg(test)]
    pub(crate) fn named(hash: ProgramHash) -> Arc<Program> {
        Arc::new(Program { hash, code: Arc::new(Code::none()) })
    }

    /// Whether an instance can be run for its own sake, and whether one can answer HTTP requests.
    pub fn kinds(&self) -> Kinds {
        let plan = &self.code.plan;
        Kinds { runs: plan.run.is_some(), answers: plan.handle.is_some() }
    }
}
