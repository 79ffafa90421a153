//! A block of threads: its warps, its shared memory, its barriers.

use crate::fault::{Kind, Stop, stop};
use crate::instruction::BarrierResult;
use crate::module::Kernel;
use crate::order::Seen;
use crate::shadow::{Witness, stamp};
use crate::shared::Shared;
use crate::warp::{Position, Warp};

#[derive(Default)]
struct Barrier {
    /// Warps that arrived and wait, and how many threads arrived in all.
    waiting: Vec<usize>,
    threads: u32,
    /// Threads that complete it; none: all that live.
    count: Option<u32>,
    known: [u32; 32],
    /// A thread among them knows that the launches before are done.
    waited: bool,
    /// Of bar.red: threads whose predicate holds, and how many gave one.
    holds: u32,
    results: Vec<(usize, BarrierResult, u32)>,
}

pub struct Block {
    pub number: u32,
    pub tag: u64,
    pub position: Position,
    pub warps: Vec<Warp>,
    pub shared: Shared,
    barriers: Vec<Barrier>,
    pub time: u32,
    /// The warp whose turn it is, where they go in order.
    pub next: usize,
    /// What it has seen of other blocks, where blocks may order each other.
    pub seen: Option<Seen>,
    pub crowded: bool,
}

impl Block {
    /// `independent`: its lanes are, and this seed says who goes first.
    pub fn new(
        kernel: &Kernel,
        position: Position,
        (number, tag): (u32, u64),
        crowded: bool,
        independent: Option<u64>,
    ) -> Block {
        let warps = position.threads().div_ceil(32);
        Block {
            number,
            tag,
            warps: (0..warps).map(|warp| Warp::new(kernel, warp, &position, independent)).collect(),
            shared: Shared::new(&kernel.stretches, position.dynamic, kernel.shared_grain),
            barriers: std::iter::repeat_with(Barrier::default).take(16).collect(),
            time: 0,
            next: 0,
            seen: kernel.orders_blocks.then(Seen::default),
            crowded,
            position,
        }
    }

    /// The same threads again, for the next block.
    pub fn reset(&mut self, kernel: &Kernel, at: [u32; 3], number: u32) {
        self.position.at = at;
        self.number = number;
        self.time = 0;
        self.next = 0;
        self.seen = kernel.orders_blocks.then(Seen::default);
        self.shared.reset();
        for warp in &mut self.warps {
            warp.reset(kernel, &self.position);
        }
        for barrier in &mut self.barriers {
            *barrier = Barrier::default();
        }
    }

    /// A warp with the memory that it accesses.
    pub fn split(&mut self, warp: usize) -> (&mut Warp, &mut Shared, &mut Option<Seen>) {
        (&mut self.warps[warp], &mut self.shared, &mut self.seen)
    }

    pub fn tick(&mut self) -> u32 {
        self.time += 1;
        self.time
    }

    /// These lanes of a warp synchronise.
    pub fn synchronise_lanes(&mut self, warp: usize, mask: u32) {
        let (time, warps) = (self.tick(), self.warps.len());
        self.warps[warp].synchronise_lanes(time, mask, warps);
    }

    pub fn done(&self) -> bool {
        self.warps.iter().all(Warp::done)
    }

    /// All lanes of a warp arrive at a barrier.
    pub fn arrive(
        &mut self,
        warp: usize,
        id: u64,
        count: Option<u64>,
        waits: bool,
        result: (BarrierResult, u32),
    ) -> Result<(), Stop> {
        let lane = self.warps[warp].active.trailing_zeros();
        if id > 15 {
            return stop(Kind::BarrierDivergence, lane, format!("barrier {id}: there are 0 to 15"));
        }
        if let Some(count) = count
            && (count == 0 || count % 32 != 0)
        {
            let sentence = format!("a barrier for {count} threads: whole warps are wanted");
            return stop(Kind::BarrierDivergence, lane, sentence);
        }
        let time = self.tick();
        let warps = self.warps.len();
        let one = &mut self.warps[warp];
        one.synchronise(time, &[0; 32], warps);
        let known = one.known;
        let barrier = &mut self.barriers[id as usize];
        let count = count.map(|count| count as u32);
        if barrier.threads > 0 && barrier.count != count {
            let sentence = format!("barrier {id} with another number of threads than the others gave it");
            return stop(Kind::BarrierDivergence, lane, sentence);
        }
        barrier.count = count;
        barrier.waited |= one.waited != 0;
        barrier.threads += 32;
        barrier.holds += result.1.count_ones();
        for (all, each) in barrier.known.iter_mut().zip(known) {
            *all = each.max(*all);
        }
        if waits {
            one.waits = Some(id as usize);
            barrier.waiting.push(warp);
            barrier.results.push((warp, result.0, self.warps[warp].live));
        }
        self.settle(id as usize);
        Ok(())
    }

    /// Releases a barrier that has all its threads.
    fn settle(&mut self, id: usize) {
        let alive = self.warps.iter().filter(|warp| !warp.done()).count() as u32 * 32;
        let barrier = &mut self.barriers[id];
        if barrier.threads == 0 || barrier.threads < barrier.count.unwrap_or(alive) {
            return;
        }
        let barrier = std::mem::take(barrier);
        let warps = self.warps.len();
        for &warp in &barrier.waiting {
            let one = &mut self.warps[warp];
            one.waits = None;
            let time = one.time;
            one.synchronise(time, &barrier.known, warps);
            if barrier.waited {
                one.waited = u32::MAX;
            }
        }
        let given: u32 = barrier.results.iter().map(|(.., live)| live.count_ones()).sum();
        for (warp, result, live) in barrier.results {
            let one = &mut self.warps[warp];
            match result {
                BarrierResult::None => {}
                BarrierResult::Count { to, .. } => one.put(to, &[u64::from(barrier.holds); 32], live),
                BarrierResult::All { to, .. } => {
                    let all = if barrier.holds == given { u32::MAX } else { 0 };
                    one.put_predicate(to, all, live);
                }
                BarrierResult::Any { to, .. } => {
                    let any = if barrier.holds > 0 { u32::MAX } else { 0 };
                    one.put_predicate(to, any, live);
                }
            }
        }
    }

    /// A warp has exited: barriers for all living threads may be complete.
    pub fn left(&mut self) {
        for id in 0..self.barriers.len() {
            self.settle(id);
        }
    }

    /// Why nothing goes on: a warp that waits, and for what.
    pub fn stuck(&self) -> Option<(usize, Stop)> {
        let warp = self.warps.iter().position(|warp| warp.waits.is_some())?;
        let id = self.warps[warp].waits?;
        let barrier = &self.barriers[id];
        let alive = self.warps.iter().filter(|warp| !warp.done()).count() as u32 * 32;
        let sentence = format!(
            "waits at barrier {id} for {} threads, of which {} came and no more will",
            barrier.count.unwrap_or(alive),
            barrier.threads
        );
        let lane = self.warps[warp].live.trailing_zeros();
        Some((warp, Stop { kind: Kind::Deadlock, lane, sentence }))
    }

    pub fn stamp(&self, warp: usize) -> u64 {
        stamp(self.tag, self.number, warp as u32, self.warps[warp].time)
    }
}

/// The witness of a warp's accesses.
pub fn witness<'a>(stamp: u64, warp: &'a Warp, seen: Option<&'a Seen>, crowded: bool) -> Witness<'a> {
    let (known, least, waited, lanes) = (&warp.known, warp.least, warp.waited, warp.lanes.as_deref());
    Witness { stamp, known, least, lanes, waited, seen, crowded }
}
