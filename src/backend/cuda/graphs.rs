//! Steps that come again, recorded once.
//!
//! Owns: which graph is of which sizes and which envelope, and how many there are. Never: what is in one.

use super::staging::Sizes;
use super::{Error, Graph};
use crate::limits::GPU_GRAPHS;

/// What is the same in a step that comes again: its sizes, and the envelope that its results come back in.
pub(super) type Again = (Sizes, usize);

/// Graphs by what their step is; the one that was used last is the last. One that goes may still be under way: the driver
/// frees it then as it ends (cuGraphExecDestroy).
pub(super) struct Graphs<G = Graph>(Vec<(Again, G)>);

impl<G> Default for Graphs<G> {
    fn default() -> Graphs<G> {
        Graphs(Vec::with_capacity(GPU_GRAPHS))
    }
}

impl<G> Graphs<G> {
    /// The graph of this step; if there is none yet, what `record` makes.
    pub fn of(&mut self, again: Again, record: impl FnOnce() -> Result<G, Error>) -> Result<&G, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn the_graph_that_was_not_used_for_longest_goes() {
        let mut graphs = Graphs::default();
        let again = |rows, envelope| (Sizes { rows, ..Sizes::default() }, envelope);
        let made: Vec<Rc<usize>> = (0..=GPU_GRAPHS).map(Rc::new).collect();
        for (number, graph) in made[..GPU_GRAPHS].iter().enumerate() {
            graphs.of(again(number / 2, number % 2), || Ok(graph.clone())).expect("recorded");
        }
        // The first is used again, so the second goes. The same sizes in another envelope are another step.
        let first = graphs.of(again(0, 0), || panic!("it is there")).expect("known").clone();
        assert_eq!(*first, 0);
        graphs.of(again(GPU_GRAPHS, 0), || Ok(made[GPU_GRAPHS].clone())).expect("recorded");
        let gone = |graph: &&Rc<usize>| Rc::strong_count(graph) == 1;
        assert_eq!(made.iter().filter(gone).map(|graph| **graph).collect::<Vec<_>>(), [1]);
        // A step that is not recorded leaves all others.
        let refused = Error::NoDevice;
        assert_eq!(graphs.of(again(0, 1), || Err(refused.clone())), Err(refused));
        assert_eq!(made.iter().filter(gone).count(), 1);
    }
}
