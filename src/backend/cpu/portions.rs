//! The work of a phase, dealt to the ranks in equal portions; who is done with his own takes from another's.
//!
//! Owns: which rank does which unit of work, exactly one each. Never: what a unit is; who does it leaves no trace in
//! the bits.
//!
//! Equal portions do not take equal time: a core is interrupted, or its neighbour gets more of the memory. A rank takes
//! units from the front of its portion, which costs a few nanoseconds as long as nobody else looks at it. One that has
//! waited at the barrier for a while looks, and takes half of what another has left, from the back.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is left of a rank's portion: first and end, 32 bits each. On a line of its own (two: processors fetch pairs).
#[repr(align(128))]
#[derive(Default)]
struct Portion(AtomicU64);

/// The portions of two phases: of the one that runs, and of the next, which each rank deals to itself before the
/// barrier between them. When a place is needed again, the phase that had it is a barrier back: nobody takes from it any
/// more, though one that is late to see the barrier open may still look.
pub(super) struct Portions {
    phases: [Box<[Portion]>; 2], // [phase % 2][rank]
}

impl Portions {
    pub fn new(ranks: usize) -> Portions {
        let portions = || (0..ranks).map(|_| Portion::default()).collect();
        Portions { phases: [portions(), portions()] }
    }

    /// An equal part of `units` units.
    pub fn part(&self, units: usize, rank: usize) -> Range<usize> {
        let ranks = self.phases[0].len();
        units * rank / ranks..units * (rank + 1) / ranks
    }

    /// Deals `rank` its part of the `units` units of phase `phase`.
    pub fn deal(&self, phase: usize, rank: usize, units: usize) {
        self.phases[phase % 2][rank].set(self.part(units, rank));
    }

    /// The next units of `rank`'s own portion, `most` (at least 1) at most.
    pub fn claim(&self, phase: usize, rank: usize, most: usize) -> Option<Range<usize>> {
        self.phases[phase % 2][rank].take(|left| left.start..left.end.min(left.start + most))
    }

    /// Whether another rank has `least` units or more that it has not begun.
    pub fn plenty(&self, phase: usize, rank: usize, least: usize) -> bool {
        self.others(phase, rank).any(|other| other.left().len() >= least)
    }

    /// Makes half of what another rank has left the portion of `rank`, whose own is empty, if that is `least` or more.
    /// Only before `rank` has come to the barrier that ends the phase, or after it has withdrawn from that: then nobody
    /// is beyond it.
    pub fn take_over(&self, phase: usize, rank: usize, least: usize) {
        let half = |left: Range<usize>| match left.len() {
            len if len < least => left.end..left.end,
            len => left.end - len.div_ceil(2)..left.end,
        };
        if let Some(units) = self.others(phase, rank).find_map(|other| other.take(half)) {
            self.phases[phase % 2][rank].set(units);
        }
    }

    /// The portions of the others, each rank's neighbour first.
    fn others(&self, phase: usize, rank: usize) -> impl Iterator<Item = &Portion> {
        let portions = &self.phases[phase % 2];
        (1..portions.len()).map(move |distance| &portions[(rank + distance) % portions.len()])
    }
}

impl Portion {
    /// Only the portion's rank, and only while it is empty or belongs to a phase that has not begun.
    fn set(&self, units: Range<usize>) {
        debug_assert!(u32::try_from(units.end).is_ok());
        self.0.store((units.start as u64) << 32 | units.end as u64, Ordering::Relaxed);
    }

    fn left(&self) -> Range<usize> {
        range(self.0.load(Ordering::Relaxed))
    }

    /// Takes what `choose` chooses of what is left: a part at its front or at its back; an empty one takes nothing.
    fn take(&self, choose: impl Fn(Range<usize>) -> Range<usize>) -> Option<Range<usize>> {
        // Relaxed: what a unit reads was written before a barrier, and what it writes is read after one.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let left = range(seen);
            let chosen = choose(left.clone());
            if chosen.is_empty() {
                return None;
            }
            let rest =
                if chosen.start == left.start { chosen.end..left.end } else { left.start..chosen.start };
            let new = (rest.start as u64) << 32 | rest.end as u64;
            match self.0.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(chosen),
                Err(now) => seen = now,
            }
        }
    }
}

fn range(bits: u64) -> Range<usize> {
    (bits >> 32) as usize..(bits as u32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_unit_is_done_once_however_the_ranks_hurry() {
        let sizes = [0, 1, 2, 3, 7, 36, 1000];
        for ranks in [1, 2, 3, 5] {
            let portions = Portions::new(ranks);
            let done = sizes.map(|units| (0..units).map(|_| AtomicU32::new(0)).collect::<Vec<_>>());
            let barrier = Barrier::new(ranks);
            let run = |rank: usize| {
                portions.deal(0, rank, sizes[0]);
                barrier.wait();
                for (phase, units) in done.iter().enumerate() {
                    let most = 1 + phase % 3;
                    while portions.phases[phase % 2].iter().any(|portion| !portion.left().is_empty()) {
                        while let Some(claimed) = portions.claim(phase, rank, most) {
                            assert!(!claimed.is_empty() && claimed.len() <= most);
                            for unit in claimed {
                                units[unit].fetch_add(1, Ordering::Relaxed);
                                if rank == phase % ranks {
                                    std::thread::yield_now(); // a straggler in each phase
                                }
                            }
                        }
                        portions.take_over(phase, rank, 1);
                    }
                    if let Some(&next) = sizes.get(phase + 1) {
                        portions.deal(phase + 1, rank, next);
                    }
                    barrier.wait();
                }
            };
            std::thread::scope(|scope| {
                let run = &run;
                (0..ranks).for_each(|rank| {
                    scope.spawn(move || run(rank));
                });
            });
            assert!(done.iter().flatten().all(|unit| unit.load(Ordering::Relaxed) == 1), "{ranks} ranks");
        }
    }

    #[test]
    fn half_of_what_another_has_left_changes_hands_but_no_scraps() {
        let portions = Portions::new(2);
        (0..2).for_each(|rank| portions.deal(0, rank, 16));
        let claims = |rank| std::iter::from_fn(|| portions.claim(0, rank, 3)).collect::<Vec<_>>();
        assert_eq!(claims(1), [8..11, 11..14, 14..16]);
        assert_eq!(portions.claim(0, 0, 1), Some(0..1));
        assert!(portions.plenty(0, 1, 7) && !portions.plenty(0, 1, 8));
        portions.take_over(0, 1, 4);
        assert_eq!(claims(1), [4..7, 7..8]);
        assert!(!portions.plenty(0, 1, 4));
        portions.take_over(0, 1, 4);
        assert_eq!((claims(1).len(), claims(0).first()), (0, Some(&(1..4))));
    }
}
