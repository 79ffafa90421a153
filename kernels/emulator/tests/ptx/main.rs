//! The emulator against plain Rust arithmetic, and each of its checks against a small faulty kernel.

mod arithmetic;
mod copies;
mod faults;
mod forms;
mod harness;
mod lanes;
mod matrices;
mod memory;
mod numbers;
mod order;
mod overlap;
mod warps;
