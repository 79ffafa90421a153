//! Who touched which bytes last, and whether that is ordered before what touches them now.
//!
//! A record names a thread and the time of its warp: the block's count of synchronisations when the warp last
//! took part in one. A warp knows, of every warp of its block, up to which time it has seen it: an access is
//! ordered before another if its time is less than what the other's warp knows. Barriers exchange that
//! knowledge. From a `bar.warp.sync` of some lanes to the next of all of them, each lane has knowledge of its own
//! of the others. Blocks know of each other by atomics alone (`order`).

use crate::order::Seen;
use crate::warp::lanes;

/// tag 6 | block 21 | warp 5 | time 22 | lane 5 | flags 5.
pub type Record = u64;

/// The record of the last reader, and the lanes that it stands for where it stands for many, or the warps.
pub type Readers = (Record, u32);
/// Where nobody notes who read: the last reader counts for all its warp's lanes, and any warp may have read.
pub const ANY: u32 = u32::MAX;

/// Whom the `new` record of readers stands for, after a read by a lane of warp `warp`.
pub fn readers(new: Record, (old, before): Readers, warp: u32, lane: u32) -> u32 {
    match (new & MANY_WARPS != 0, old & MANY_WARPS != 0) {
        (true, true) => before | 1 << warp,
        (true, false) => 1 << warp_of(old) | 1 << warp,
        _ if new & MANY_LANES != 0 => before | 1 << lane,
        _ => 1 << lane,
    }
}

pub const STRONG: u64 = 1;
/// A `.nc` load was among the reads.
const CONSTANT: u64 = 2;
const MANY_LANES: u64 = 4;
const MANY_WARPS: u64 = 8;
const MANY_BLOCKS: u64 = 16;
const FLAGS: u64 = 31;
const LANE: u32 = 5;
const TIME: u32 = 10;
const WARP: u32 = 32;
const BLOCK: u32 = 37;
const TAG: u32 = 58;

pub const TAGS: u64 = 63;
pub const BLOCKS: u64 = 1 << 21;
pub const TIMES: u32 = (1 << 22) - 1;

pub fn block_of(record: Record) -> u32 {
    (record >> BLOCK & 0x1f_ffff) as u32
}

pub fn warp_of(record: Record) -> u32 {
    (record >> WARP & 31) as u32
}

pub fn lane_of(record: Record) -> u32 {
    (record >> LANE & 31) as u32
}

pub fn time_of(record: Record) -> u32 {
    (record >> TIME & 0x3f_ffff) as u32
}

/// The part of a record that all lanes of a warp share between two synchronisations.
pub fn stamp(tag: u64, block: u32, warp: u32, time: u32) -> Record {
    tag << TAG | u64::from(block) << BLOCK | u64::from(warp) << WARP | u64::from(time.min(TIMES)) << TIME
}

/// The record of one lane of the warp with this stamp.
pub fn record(stamp: Record, lane: u32) -> Record {
    stamp | u64::from(lane) << LANE
}

/// `[lane][other]`: up to which time the lane has seen the other.
pub type LaneTimes = [[u32; 32]; 32];

/// A warp that accesses memory.
pub struct Witness<'a> {
    pub stamp: Record,
    /// What it knows of each warp's time, and the least of it.
    pub known: &'a [u32; 32],
    pub least: u32,
    /// What its lanes know of each other, where that is more.
    pub lanes: Option<&'a LaneTimes>,
    /// The lanes that know that the launches before are done.
    pub waited: u32,
    /// What its block knows of others; none where nothing can order blocks.
    pub seen: Option<&'a Seen>,
    /// Blocks run on several threads at once.
    pub crowded: bool,
}

/// An access that nothing orders after `with`, or one that breaks the promise of `.nc`.
#[derive(Debug)]
pub struct Clash {
    pub with: Record,
    pub constant: bool,
    /// What the other did.
    pub wrote: bool,
}

impl Witness<'_> {
    pub fn record(&self, lane: u32) -> Record {
        record(self.stamp, lane)
    }

    #[inline]
    pub fn is_current(&self, record: Record) -> bool {
        record >> TAG == self.stamp >> TAG
    }

    /// The record of a lane that is the only reader.
    #[inline]
    pub fn reader(&self, lane: u32, strong: bool, constant: bool) -> Record {
        self.record(lane) | if strong { STRONG } else { 0 } | if constant { CONSTANT } else { 0 }
    }

    /// A record of another launch says nothing.
    #[inline]
    fn current(&self, record: Record) -> Record {
        if self.is_current(record) { record } else { 0 }
    }

    /// The common case: one warp of this block did it, and this one has seen it since.
    #[inline]
    fn ordered(&self, record: Record, who: u32, lane: u32) -> bool {
        let one = (record ^ self.stamp) >> BLOCK == 0 && record & (MANY_WARPS | MANY_BLOCKS) == 0;
        one && time_of(record) < self.known[warp_of(record) as usize]
            || self.ordered_otherwise(record, who, lane)
    }

    fn ordered_otherwise(&self, record: Record, who: u32, lane: u32) -> bool {
        if (record ^ self.stamp) >> BLOCK != 0 || record & MANY_BLOCKS != 0 {
            return match self.seen {
                None => false,
                Some(_) if block_of(record) == block_of(self.stamp) => true,
                Some(seen) => seen.covers(record, |by| self.ordered(by, 0, lane)),
            };
        }
        if record & MANY_WARPS != 0 {
            let time = time_of(record);
            return time < self.least || lanes(who).all(|warp| time < self.known[warp as usize]);
        }
        let own = (record ^ self.stamp) >> WARP == 0;
        if own && lane_of(record) == lane && record & MANY_LANES == 0
            || time_of(record) < self.known[warp_of(record) as usize]
        {
            return true;
        }
        own && self.lanes.is_some_and(|times| {
            let seen = |other: u32| other == lane || time_of(record) < times[lane as usize][other as usize];
            let last = 1 << lane_of(record);
            lanes(if record & MANY_LANES == 0 || who == ANY { last } else { who }).all(seen)
        })
    }

    /// The new record of readers after a read by `lane`.
    #[inline]
    pub fn read(
        &self,
        lane: u32,
        written: Record,
        (read, who): Readers,
        strong: bool,
        constant: bool,
    ) -> Result<Record, Clash> {
        let both_strong = |other: Record| strong && other & STRONG != 0;
        let written = self.current(written);
        if written != 0 {
            if constant {
                return Err(Clash { with: written, constant: true, wrote: true });
            }
            if !self.ordered(written, 0, lane) && !both_strong(written) {
                return Err(Clash { with: written, constant: false, wrote: true });
            }
        }
        let flag = if constant { CONSTANT } else { 0 };
        let mine = self.reader(lane, strong, constant);
        let read = self.current(read);
        if read == mine {
            return Ok(read);
        }
        if read & MANY_BLOCKS != 0 {
            return Ok((if strong { read } else { read & !STRONG }) | flag);
        }
        if read == 0 {
            return Ok(mine);
        }
        let kept = read & CONSTANT;
        if self.ordered(read, who, lane) {
            return Ok(mine | kept);
        }
        // Concurrent readers: the latest stands for all of them.
        let both = if strong { FLAGS } else { FLAGS & !STRONG };
        let flags = (read & FLAGS & both) | flag;
        if block_of(read) != block_of(mine) {
            return Ok((read & !FLAGS) | flags | MANY_BLOCKS);
        }
        let late = if time_of(read) > time_of(mine) { read } else { mine };
        let many = if warp_of(read) == warp_of(mine) { MANY_LANES } else { MANY_WARPS };
        Ok((late & !FLAGS) | flags | many)
    }

    /// The new record of the writer after a write by `lane`.
    pub fn write(
        &self,
        lane: u32,
        written: Record,
        (read, who): Readers,
        strong: bool,
    ) -> Result<Record, Clash> {
        let (written, read) = (self.current(written), self.current(read));
        let flag = if strong { STRONG } else { 0 };
        let both_strong = |other: Record| strong && other & STRONG != 0;
        if written != 0 && !self.ordered(written, 0, lane) && !both_strong(written) {
            return Err(Clash { with: written, constant: false, wrote: true });
        }
        if read != 0 {
            if read & CONSTANT != 0 {
                return Err(Clash { with: read, constant: true, wrote: false });
            }
            if !self.ordered(read, who, lane) && !both_strong(read) {
                return Err(Clash { with: read, constant: false, wrote: false });
            }
        }
        Ok(self.record(lane) | flag)
    }
}
