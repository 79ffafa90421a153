//! What blocks know of each other: atomics and fences of global memory, as acquire and release.
//!
//! A publication says up to which times a block's warps are seen by who acquires it. A release by a thread
//! publishes what its warp knows, and all of other blocks that it knows. What a thread acquires the others of its
//! block know once they are ordered behind it, by a barrier as with any access.

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

    fn is_by(&self, other: &Publication) -> bool {
        (self.warp, self.lane) == (other.warp, other.lane)
    }
}

/// What is published, by block.
#[derive(Clone, Default)]
struct Published {
    of: HashMap<u32, Vec<Publication>>,
}

impl Published {
    fn join(&mut self, other: &Published) {
        for (&block, all) in &other.of {
            for each in all {
                self.add(block, each);
            }
        }
    }

    fn add(&mut self, block: u32, new: &Publication) {
        let all = self.of.entry(block).or_default();
        // A later one by the same thread says all that an earlier did.
        if all.iter().any(|old| old.is_by(new) && old.time >= new.time) {
            return;
        }
        all.retain(|old| !old.is_by(new));
        all.push(new.clone());
    }
}

/// What the threads of one block have seen of others, and which of them saw it when.
#[derive(Default)]
pub struct Seen {
    of: HashMap<u32, Vec<(Publication, Record)>>,
}

impl Seen {
    /// `knows`: whether the thread that asks is ordered behind what the record says.
    pub fn covers(&self, record: Record, knows: impl Fn(Record) -> bool) -> bool {
        let covers = |(each, by): &(Publication, Record)| each.covers(record) && knows(*by);
        self.of.get(&block_of(record)).is_some_and(|all| all.iter().any(covers))
    }

    fn acquire(&mut self, published: &Published, by: Record) {
        let thread = |record: Record| (warp_of(record), lane_of(record));
        for (&block, all) in &published.of {
            let seen = self.of.entry(block).or_default();
            for new in all {
                let has = |(old, saw): &(Publication, Record)| {
                    old.is_by(new) && old.time >= new.time && thread(*saw) == thread(by)
                };
                if !seen.iter().any(has) {
                    seen.push((new.clone(), by));
                }
            }
        }
    }
}

/// What the fences of a thread leave for its next strong accesses.
#[derive(Default)]
pub struct Thread {
    /// Published by the last fence, effective at the next strong write.
    fenced: Option<Published>,
    /// Read by strong reads, acquired at the next fence.
    pending: Published,
}

/// One thread at work.
pub struct Actor<'a> {
    /// It, and its time.
    pub own: Record,
    /// What its warp knows of the others, and the thread of the warp's lanes.
    pub known: &'a [u32; 32],
    pub lanes: [u32; 32],
    pub seen: &'a mut Seen,
    pub thread: &'a mut Thread,
}

/// The locations of a launch by which blocks speak with each other.
#[derive(Default)]
pub struct Locations {
    at: HashMap<u64, Published>,
}

impl Locations {
    /// A strong write to this address that orders no other block: who reads it acquires nothing.
    pub fn end(&mut self, address: u64) {
        self.at.remove(&address);
    }
}

impl Actor<'_> {
    fn publication(&self) -> Published {
        let (warp, lane, time) = (warp_of(self.own), lane_of(self.own), time_of(self.own));
        let own = Publication { known: *self.known, warp, lane, time, lanes: self.lanes };
        let mut all = Published::default();
        for (&block, seen) in &self.seen.of {
            seen.iter().filter(|(_, by)| own.covers(*by)).for_each(|(each, _)| all.add(block, each));
        }
        all.add(block_of(self.own), &own);
        all
    }

    pub fn fence(&mut self) {
        let pending = std::mem::take(&mut self.thread.pending);
        self.seen.acquire(&pending, self.own);
        self.thread.fenced = Some(self.publication());
    }

    /// Before or with a strong read of this address.
    pub fn reads(&mut self, locations: &Locations, address: u64, acquire: bool) {
        if let Some(at) = locations.at.get(&address) {
            if acquire { self.seen.acquire(at, self.own) } else { self.thread.pending.join(at) }
        }
    }

    /// A strong write to this address. A plain store to it ends what earlier ones had published; an atomic
    /// continues it.
    pub fn writes(&mut self, locations: &mut Locations, address: u64, release: bool, atomic: bool) {
        let published = if release { Some(self.publication()) } else { self.thread.fenced.clone() };
        if !atomic {
            locations.end(address);
        }
        if let Some(published) = published {
            locations.at.entry(address).or_default().join(&published);
        }
    }
}
