//! What the operator sees of the box.

pub mod log;
pub mod stages;
