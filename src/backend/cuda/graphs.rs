//! Steps that come again, recorded once.
//!
//! Owns: which graph is of which sizes, and how many there are. Never: what is in one.

use super::staging::Sizes;
use super::{Error, Graph};
use crate::limits::GPU_GRAPHS;

/// Graphs by the sizes of their step; the one that was used last is the last.
#[derive(Default)]
pub(super) struct Graphs(Vec<(Sizes, Graph)>);

impl Graphs {
    /// The graph of these sizes; if there is none yet, what `record` makes.
    pub fn of(
        &mut self,
        sizes: &Sizes,
        record: impl FnOnce() -> Result<Graph, Error>,
    ) -> Result<&Graph, Error> {
        let graph = match self.0.iter().position(|(known, _)| known == sizes) {
            Some(at) => self.0.remove(at).1,
            None => {
                let graph = record()?;
                if self.0.len() == GPU_GRAPHS {
                    self.0.remove(0);
                }
                graph
            }
        };
        Ok(&self.0.push_mut((*sizes, graph)).1)
    }
}
