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
//! On them stands the backend:
//! ```text
//! backend.rs   a batch becomes steps                 plan.rs      how much memory is for what
//! ├ pieces.rs    which rows are in which
//! ├ envelope.rs  what goes there, what comes back    coverage.rs  which models the kernels know
//! │ └ staging.rs   what a step is told, in one copy  weights.rs   matrices and vectors there
//! ├ step.rs      its launches, in their order        room.rs      what a step works in
//! │ ├ fused.rs     a layer's, as few as can be
//! │ └ launches.rs  each kernel's grid, arguments
//! └ graphs.rs    steps that come again, recorded
//! ```
//! Everything holds the device; a device that is lost is not spoken to any more, not even to free what is on it.

mod backend;
mod check;
mod coverage;
mod device;
pub mod draw;
mod driver;
mod envelope;
mod error;
mod fused;
mod graphs;
pub mod kernels;
mod launches;
mod leave;
mod memory;
mod module;
mod pieces;
mod plan;
pub mod repack;
mod room;
mod staging;
mod step;
mod stream;
mod weights;

pub use backend::{Cuda, CudaOptions, NotLoaded, usable};
pub use check::{bandwidth, check, hello};
pub use device::{Device, Properties};
pub use error::Error;
pub use leave::leave;
pub use memory::{Buffer, Pinned};
pub use module::{Argument, Kernel, KernelProperties};
pub use plan::TooLarge;
pub use stream::{Event, Graph, Stream};
