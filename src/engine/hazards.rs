//! Which queued operations must wait for which, because they touch the same slots.
//!
//! Owns: for each physical page and embed the accesses of the operations that are queued. Never: what an operation
//! is, or when it runs. Every conflict with an earlier-submitted operation, on any queue or instance, is an edge.

use crate::engine::operation::Kind;
use crate::engine::pages::Physical;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};

/// Submission number: operations are ordered by it, and it is never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// An access of one operation: slots `from..to` of a page. An embed has the one slot 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub kind: Kind,
    pub at: Physical,
    pub from: u32,
    pub to: u32,
    pub write: bool,
}

/// An operation that must come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub first: JobId,
    /// K/V that it writes is read, nothing else: then both may share a batch, in this order. (An embed is stored at
    /// the end of a batch, so reading one is not such a case.)
    pub planned_is_enough: bool,
}

#[derive(Default)]
pub struct Hazards {
    pages: Vec<Accesses>,  // [physical page]
    embeds: Vec<Accesses>, // [physical embed]
}

#[derive(Clone, Default)]
struct Accesses {
    reads: Vec<Span>,
    writes: Vec<Span>,
}

#[derive(Clone, Copy)]
struct Span {
    job: JobId,
    from: u32,
    to: u32,
}

impl Hazards {
    pub fn new(pages: u32, embeds: u32) -> Hazards {
        Hazards {
            pages: vec![Accesses::default(); pages as usize],
            embeds: vec![Accesses::default(); embeds as usize],
        }
    }

    /// Notes what a newly submitted operation touches, each page at most once to read and once to write; one edge to each operation that must come before it.
    pub fn enter(&mut self, job: JobId, touches: &[Touch]) -> Vec<Edge> {
        let mut edges = Vec::new();
        for touch in touches {
            let accesses = self.at(touch.kind, touch.at);
            let meets = |span: &&Span| span.job != job && span.from < touch.to && touch.from < span.to;
            let edge = |span: &Span, planned_is_enough| Edge { first: span.job, planned_is_enough };
            let soft = !touch.write && touch.kind == Kind::Page;
            #[cfg(test)]
            let soft = soft || !touch.write && planted(Bug::EmbedInBatch);
            edges.extend(accesses.writes.iter().filter(meets).map(|span| edge(span, soft)));
            if touch.write {
                edges.extend(accesses.reads.iter().filter(meets).map(|span| edge(span, false)));
            }
            let span = Span { job, from: touch.from, to: touch.to };
            let list = if touch.write { &mut accesses.writes } else { &mut accesses.reads };
            list.push(span);
        }
        #[cfg(test)]
        if planted(Bug::Hazards) {
            return Vec::new();
        }
        edges.sort_unstable();
        edges.dedup_by_key(|edge| edge.first); // The strictest comes first.
        edges
    }

    /// The operation is done or dropped.
    pub fn leave(&mut self, job: JobId, touches: &[Touch]) {
        for touch in touches {
            let accesses = self.at(touch.kind, touch.at);
            let list = if touch.write { &mut accesses.writes } else { &mut accesses.reads };
            list.retain(|span| span.job != job);
        }
    }

    /// Queued operations that write the page.
    pub fn writers(&self, kind: Kind, at: Physical) -> impl Iterator<Item = JobId> {
        self.look(kind, at).writes.iter().map(|span| span.job)
    }

    /// Queued operations that read the page.
    pub fn readers(&self, kind: Kind, at: Physical) -> impl Iterator<Item = JobId> {
        self.look(kind, at).reads.iter().map(|span| span.job)
    }

    fn look(&self, kind: Kind, at: Physical) -> &Accesses {
        match kind {
            Kind::Page => &self.pages[at.0 as usize],
            Kind::Embed => &self.embeds[at.0 as usize],
        }
    }

    fn at(&mut self, kind: Kind, at: Physical) -> &mut Accesses {
        match kind {
            Kind::Page => &mut self.pages[at.0 as usize],
            Kind::Embed => &mut self.embeds[at.0 as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(from: u32, to: u32, write: bool) -> Touch {
        Touch { kind: Kind::Page, at: Physical(0), from, to, write }
    }

    #[test]
    fn only_overlapping_slots_conflict_and_reads_never_do() {
        let mut hazards = Hazards::new(1, 0);
        let (a, b, c, d) = (JobId(0), JobId(1), JobId(2), JobId(3));
        assert!(hazards.enter(a, &[touch(0, 4, true)]).is_empty());
        let after_write = [Edge { first: a, planned_is_enough: true }];
        assert_eq!(hazards.enter(b, &[touch(0, 4, false)]), after_write);
        let beside = [touch(0, 4, false), touch(4, 8, true)];
        assert_eq!(hazards.enter(c, &beside), after_write, "c writes beside what a and b use");
        let strict = |first| Edge { first, planned_is_enough: false };
        assert_eq!(hazards.enter(d, &[touch(3, 5, true)]), [a, b, c].map(strict));
        hazards.leave(a, &[touch(0, 4, true)]);
        assert_eq!(hazards.writers(Kind::Page, Physical(0)).collect::<Vec<_>>(), [c, d]);
        assert_eq!(hazards.readers(Kind::Page, Physical(0)).collect::<Vec<_>>(), [b, c]);
    }
}
