//! Collect, choose, run, deliver: the one owner of a model, its KV pages and its device.

pub mod operation;
