//! The threads that a batch borrows.
