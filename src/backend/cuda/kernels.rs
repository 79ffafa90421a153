//! The kernels' PTX, as `build.rs` expands it from `kernels/*.ptx`.
//!
//! Owns: the table of texts. Never: a launch, nor what a kernel computes: each file of `kernels/` says so in its head.

/// A module of one kernel: the entry is called like the file.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub name: &'static str,
    /// PTX, lines marked with the source they stand for.
    pub text: &'static str,
}

/// All of them, by name.
pub const KERNELS: &[Source] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
