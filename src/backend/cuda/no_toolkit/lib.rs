//! What the build scripts of `cust` and `cust_raw` ask for a CUDA toolkit, and end without one.
//!
//! Owns: the answer that none is needed. Never: a path of the machine: `driver.rs` opens the driver at run time, and of
//! `cust` the types alone are used, which are written down in it.

/// Links with nothing.
pub fn include_cuda() {}
