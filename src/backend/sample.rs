//! The draws, the same on every backend.
