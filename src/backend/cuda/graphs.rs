//! Steps that come again, recorded once.
//!
//! Owns: which graph is of which sizes and which envelope, and how many there are. Never: what is in one.

use super::staging::Sizes;
use super::{Error, Graph};
use crate::limits::GPU_GRAPHS;

/// What is the same in a step that comes again: its sizes, and the envelope that its results come back in.
pub(super) type Again = (Sizes, usize);

/// Graphs by what their step is; the one that was used last is the last.
#[derive(Default)]
pub(super) struct Graphs(Vec<(Again, Graph)>);

impl Graphs {
    /// The graph of this step; if there is none yet, what `record` makes.
    pub fn of(
        &mut self,
        again: Again,
        record: impl FnOnce() -> Result<Graph, Error>,
    ) -> Result<&Graph, Error> {
        let graph = match self.0.iter().position(|(known, _)| *known == again) {
            Some(at) => self.0.remove(at).1,
            None => {
                let graph = record()?;
                if self.0.len() == GPU_GRAPHS {
                    self.0.remove(0);
                }
                graph
            }
        };
        Ok(&self.0.push_mut((again, graph)).1)
    }
}
