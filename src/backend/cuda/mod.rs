//! The way to an NVIDIA GPU: the driver's library opened at run time, kernels compiled by it from our PTX.
//!
//! Owns: what a backend launches on, and the check of it. Never: the PTX itself (`kernels/`), or a toolkit.
//!
//! ```text
//! driver.rs  cu* ─▶ libcuda.so.1                     error.rs   what a status means, who must act
//! device.rs  the GPU, opened and described           memory.rs  buffers there, pinned memory here
//! module.rs  PTX ─▶ kernels, their parameters        stream.rs  launches, events, graphs, deadlines
//! kernels.rs the PTX, as src/compute/build.rs expanded it        repack.rs  weights in the order of the kernels' lanes
//! draw.rs    how a row is drawn from                 check/     `tartlet selftest --backend cuda`
//! leave.rs   how a process ends whose device is lost
//! ```
//! Everything holds the device; a device that is lost is not spoken to any more, not even to free what is on it.

mod check;
mod device;
pub mod draw;
mod driver;
mod error;
pub mod kernels;
mod leave;
mod memory;
mod module;
pub mod repack;
mod stream;

pub use check::check;
pub use device::{Device, Properties};
pub use error::Error;
pub use leave::leave;
pub use memory::{Buffer, Pinned};
pub use module::{Argument, Kernel, KernelProperties};
pub use stream::{Event, Graph, Stream};
