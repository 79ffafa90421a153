//! Guest programs: read, checked, translated, kept.
//!
//! Owns: [`Program`] and what makes one out of bytes. Never: an instance.

use crate::identity::ProgramHash;
use smol::lock::OnceCell;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

mod body;
pub mod component;
mod frame;
pub mod plan;
pub mod rejected;
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

/// A program in the store: validated and translated once, shared by its instances.
pub struct Program {
    pub hash: ProgramHash,
    /// Where its bytes are, for one that was found on the disk and has not run yet.
    path: PathBuf,
    code: OnceCell<Arc<Code>>,
}

impl Program {
    pub(crate) fn on_disk(hash: ProgramHash, path: PathBuf) -> Program {
        Program { hash, path, code: OnceCell::new() }
    }

    /// One that is nowhere but in memory, for tests of what runs it.
    #[cfg(test)]
    pub(crate) fn in_memory(component: &[u8]) -> Result<Arc<Program>, Rejected> {
        let code = OnceCell::new();
        let _ = code.set_blocking(Arc::new(Code::of(component)?));
        Ok(Arc::new(Program { hash: ProgramHash::of(component), path: PathBuf::new(), code }))
    }

    /// Whether an instance can be run for its own sake, and whether one can answer HTTP requests.
    pub async fn kinds(&self) -> Result<Kinds, Rejected> {
        let code = self.code().await?;
        Ok(Kinds { runs: code.plan.run.is_some(), answers: code.plan.handle.is_some() })
    }

    /// The translated program. Translated by the first caller, off its thread; the others wait. A failure (of the
    /// disk) is not remembered.
    pub async fn code(&self) -> Result<Arc<Code>, Rejected> {
        let load = || async {
            let path = self.path.clone();
            let translation = move || match fs::read(&path) {
                Ok(component) => Code::of(&component),
                Err(error) => Err(Rejected::NotKept(format!("{}: {error}", path.display()))),
            };
            Code::translate(Box::new(translation)).await.map(Arc::new)
        };
        self.code.get_or_try_init(load).await.cloned()
    }
}
