//! Tartlet: Pie, the programmable LLM serving system, as firmware for one edge GPU box.

pub mod auth;
pub mod backend;
pub mod client;
pub mod engine;
pub mod eval;
pub mod exchange;
pub mod host;
pub mod identity;
pub mod limits;
pub mod model;
pub mod observe;
pub mod program;
pub mod runtime;
pub mod server;
pub mod wire;
