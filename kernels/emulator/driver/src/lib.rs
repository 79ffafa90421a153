//! A `libcuda.so.1` whose device is the PTX emulator: for machines without a GPU, and for failures that no GPU shows
//! when asked.
//!
//! A program finds it as it finds the driver: under the name `libcuda.so.1` in a folder of `LD_LIBRARY_PATH`, or by a
//! path. Nothing in the program is different: its calls, its marshalling, its waits are what is tested.
//!
//! Owns: the calls that Tartlet makes, as far as it makes them. Never: calls that it does not make.
//!
//! ```text
//! abi.rs     cu* functions: pointers in, statuses out      script.rs  how the environment says what fails
//! driver.rs  contexts, memory, modules, handles            status.rs  statuses
//! stream.rs  streams, events, capture, graphs
//! ```
//! It is stricter than a driver. Work runs as late as it may, when somebody asks for an event behind it; a program that
//! does not wait, reads what was there before. It refuses launches that a small device would refuse, calls that are
//! unsafe during a capture, addresses and handles that it did not give out. A fault of a kernel is a sentence on
//! standard error, and the device is lost.

mod abi;
mod driver;
mod script;
mod status;
mod stream;
#[cfg(test)]
mod tests;
