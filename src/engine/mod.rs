//! Collect, choose, run, deliver: the one owner of a model, its KV pages and its device.

pub mod credit;
#[allow(clippy::module_inception)] // "engine" is the name of the thread and of what it is.
mod engine;
pub mod operation;
mod schedule;
mod state;

pub use engine::{Engine, Gone, Handle, Settle};
