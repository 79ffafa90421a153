//! Queues as streams, hazards between them, and the choice of the next batch. Pure.

/// How many rows the next batch may have.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// In all.
    pub rows: u32,
    /// Of long passes together, when short ones run beside them.
    pub beside: u32,
    /// Of long passes together, when there are only such.
    pub alone: u32,
}
