//! Which queued operations must wait for which, because they touch the same slots.
//!
//! Owns: for each physical page and embed the accesses of the operations that are queued. Never: what an operation
//! is, or when it runs. Every conflict with an earlier-submitted operation, on any queue or instance, is an edge.

use crate::engine::operation::Kind;
use crate::engine::pages::Physical;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use smallvec::SmallVec;

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
    reads: Spans,
    writes: Spans,
}

/// Accesses that a page has room for by itself. More are allocated, and freed with the last of them: a few bytes kept for each
/// of thousands of pages, from whenever it first had that many, would lie all over the heap and hold it apart.
const SPANS: usize = 2;

/// Accesses of one kind to one page, by job: one of each at the most. Thousands may read a page, and leave in any order;
/// so one that leaves is only marked, and they are swept out together once they are more than half.
#[derive(Clone, Default)]
struct Spans {
    all: SmallVec<[Span; SPANS]>,
    left: u32,
}

#[derive(Clone, Copy)]
struct Span {
    job: JobId,
    from: u32,
    to: u32,
}

impl Span {
    /// Its job has left: it covers nothing.
    fn has_left(&self) -> bool {
        self.from == self.to
    }
}

impl Spans {
    fn iter(&self) -> impl Iterator<Item = &Span> {
        self.all.iter().filter(|span| !span.has_left())
    }

    /// Jobs come in the order of their numbers.
    fn enter(&mut self, span: Span) {
        debug_assert!(span.from < span.to && self.all.last().is_none_or(|last| last.job < span.job));
        self.all.push(span);
    }

    fn leave(&mut self, job: JobId) {
        let Ok(at) = self.all.binary_search_by_key(&job, |span| span.job) else { return };
        self.all[at].to = self.all[at].from;
        self.left += 1;
        if self.left as usize * 2 > self.all.len() {
            self.all.retain(|span| !span.has_left());
            self.left = 0;
            let room = (2 * self.all.len()).next_power_of_two();
            if self.all.len() <= SPANS {
                self.all.shrink_to_fit();
            } else if self.all.capacity() > 2 * room {
                self.all.grow(room);
            }
        }
    }
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
            list.enter(span);
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
            list.leave(job);
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

    /// The story: 32 instances with 256 passes each over the same 184 pages, and every pass that was done looked through
    /// all the others' accesses to each page: seconds of the engine's thread.
    #[test]
    fn thousands_read_a_page_and_leave_in_any_order() {
        let mut hazards = Hazards::new(1, 0);
        let read = [touch(0, 4, false)];
        (0..8192).for_each(|job| assert!(hazards.enter(JobId(job), &read).is_empty()));
        // Those of one instance, last first, then the next one's; one of them stays.
        let jobs = (0..32).flat_map(|instance| (0..256).rev().map(move |pass| JobId(pass * 32 + instance)));
        let mut sweeps = 0;
        for job in jobs.filter(|job| *job != JobId(77)) {
            hazards.leave(job, &read);
            let spans = &hazards.pages[0].reads;
            assert!(spans.left as usize * 2 <= spans.all.len(), "those that left are swept out, ...");
            let room = spans.all.capacity();
            assert!(room <= SPANS.max(8 * spans.all.len()), "their room goes too: {room}");
            sweeps += usize::from(spans.left == 0);
        }
        assert!(sweeps <= 14, "... {sweeps} times and not each time");
        assert_eq!(hazards.readers(Kind::Page, Physical(0)).collect::<Vec<_>>(), [JobId(77)]);
        assert!(!hazards.pages[0].reads.all.spilled(), "the page has room for one by itself");
        assert_eq!(hazards.enter(JobId(9000), &[touch(0, 1, true)]).len(), 1);
    }
}
