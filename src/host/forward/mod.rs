//! `inferlet:core/forward`: passes through the model.

pub mod draft;
