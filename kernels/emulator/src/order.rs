//! What blocks know of each other: atomics and fences of global memory, as acquire and release.
//!
//! A publication says up to which times a block's warps are seen by who acquires it. A release by a thread
//! publishes what its warp knows, and all that its block had acquired. Acquiring holds for the whole block,
//! from then on.

use crate::shadow::{Record, block_of, lane_of, time_of, warp_of};
use std::collections::HashMap;

#[derive(Clone)]
struct Publication {
    known: [u32; 32],
    /// The releasing thread, up to whose time its own accesses are covered, and what it knows of its warp's lanes.
    warp: u32,
    lane: u32,
    time: u32,
    lanes: [u32; 32],
}

impl Publication {
    fn covers(&self, record: Record) -> bool {
        let (warp, lane, time) = (warp_of(record), lane_of(record), time_of(record));
        time < self.known[warp as usize]
            || warp == self.warp && time < self.lanes[lane as usize]
            || warp == self.warp && lane == self.lane && time <= self.time
    }
}

/// What one block has seen of others.
#[derive(Clone, Default)]
pub struct Seen {
    of: HashMap<u32, Vec<Publication>>,
}

impl Seen {
    pub fn covers(&self, record: Record) -> bool {
        self.of.get(&block_of(record)).is_some_and(|all| all.iter().any(|each| each.covers(record)))
    }

    fn join(&mut self, other: &Seen) {
        for (&block, all) in &other.of {
            for each in all {
                self.publish(block, each);
            }
        }
    }

    fn publish(&mut self, block: u32, new: &Publication) {
        let all = self.of.entry(block).or_default();
        // A later one by the same thread says all that the earlier did.
        all.retain(|old| old.warp != new.warp || old.lane != new.lane);
        all.push(new.clone());
    }
}

/// What the fences of a thread leave for its next strong accesses.
#[derive(Default)]
pub struct Thread {
    /// Published by the last fence, effective at the next strong write.
    fenced: Option<Seen>,
    /// Read by strong reads, acquired at the next fence.
    pending: Seen,
}

/// One thread at work.
pub struct Actor<'a> {
    pub block: u32,
    pub warp: u32,
    pub lane: u32,
    pub time: u32,
    /// What its warp knows of the others, and the thread of the warp's lanes.
    pub known: &'a [u32; 32],
    pub lanes: [u32; 32],
    pub seen: &'a mut Seen,
    pub thread: &'a mut Thread,
}

/// The locations of a launch by which blocks speak with each other.
#[derive(Default)]
pub struct Locations {
    at: HashMap<u64, Seen>,
}

impl Actor<'_> {
    fn publication(&self) -> Seen {
        let mut all = self.seen.clone();
        let Actor { warp, lane, time, lanes, .. } = *self;
        let own = Publication { known: *self.known, warp, lane, time, lanes };
        all.publish(self.block, &own);
        all
    }

    pub fn fence(&mut self) {
        let pending = std::mem::take(&mut self.thread.pending);
        self.seen.join(&pending);
        self.thread.fenced = Some(self.publication());
    }

    /// Before or with a strong read of this address.
    pub fn reads(&mut self, locations: &Locations, address: u64, acquire: bool) {
        if let Some(at) = locations.at.get(&address) {
            if acquire { self.seen.join(at) } else { self.thread.pending.join(at) }
        }
    }

    /// A strong write to this address. A plain store to it ends what earlier ones had published; an atomic
    /// continues it.
    pub fn writes(&mut self, locations: &mut Locations, address: u64, release: bool, atomic: bool) {
        let published = if release { Some(self.publication()) } else { self.thread.fenced.clone() };
        if !atomic {
            locations.at.remove(&address);
        }
        if let Some(published) = published {
            locations.at.entry(address).or_default().join(&published);
        }
    }
}
