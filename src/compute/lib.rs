//! What computes tokens: a package of its own because Cargo chooses how to optimise by the package. The box around it
//! is built for size, and the loops here for speed: built for size, they take twice as long over a prompt.
//!
//! Owns: which modules these are. Never: code. Their files lie where the map of `src/lib.rs` says, and the box calls
//! them by that map's names (`crate::backend`), as they do each other. None of them names a module of the box.

#[path = "../backend/mod.rs"]
pub mod backend;
#[path = "../limits.rs"]
pub mod limits;
#[path = "../model/mod.rs"]
pub mod model;
