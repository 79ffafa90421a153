//! Collect, choose, run, deliver: the one owner of a model, its KV pages and its device.

mod check;
pub mod credit;
#[allow(clippy::module_inception)] // "engine" is the name of the thread and of what it is.
mod engine;
mod hazards;
mod inbox;
mod job;
pub mod operation;
mod pace;
mod pages;
mod policy;
mod prefix;
mod resolve;
mod schedule;
#[cfg(test)]
pub(crate) mod simulation;
mod state;
mod waiting;

pub use engine::{Engine, Gone, Handle, NotStarted, Settle};
#[cfg(test)]
pub(crate) use inbox::Sent;
pub use prefix::Reuse;
