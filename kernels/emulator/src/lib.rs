//! Runs PTX kernels on a processor, warp by warp, with the checks that a GPU does not make.

mod access;
mod alu;
mod atomics;
mod bitfield;
mod bits;
mod block;
mod convert;
mod copies;
mod counts;
mod decode;
mod decode_memory;
mod decode_warp;
mod exchange;
mod execute;
mod fault;
mod float;
mod instruction;
mod launch;
mod lexer;
mod matrix;
mod memory;
mod modifiers;
mod module;
mod names;
mod order;
mod parser;
mod shadow;
mod shared;
mod types;
mod warp;

pub use counts::{Counts, Executed};
pub use fault::{Error, Fault, Kind};
pub use launch::{Launch, Options, Parameters, launch};
pub use memory::Memory;
pub use module::{Kernel, Module, Parameter};
