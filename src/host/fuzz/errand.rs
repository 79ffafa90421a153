//! What a guest does between passes: pages, embeddings, exports and queues, in odd counts and under odd names.
//!
//! Owns: the errands, each with what may come of it. Never: passes.

use super::fault::Fate::{self, Either, Ends, Runs};
use super::guest::{COMMON, End, Guest, POLL};
use super::watched::{EMBEDS, PAGES};
use crate::host::bed::number;
use crate::limits;
use crate::model::toy::Random;

/// What the bystanders export their pages as. Who is of their subject may import and release it.
pub const KEPT: &str = "kept";
/// Other names, which several guests use.
const NAMES: [&str; 4] = ["a", "b", "ü", ""];

pub struct Errand {
    pub name: &'static str,
    pub fate: Fate,
    /// As of a [`Fault`](super::fault::Fault).
    pub words: &'static [&'static str],
    pub run: fn(&mut Guest, &mut Random) -> Result<(), End>,
}

macro_rules! errands {
    ($($name:literal $fate:ident $words:expr, $run:expr;)*) => {
        pub const ERRANDS: &[Errand] = &[$(Errand { name: $name, fate: $fate, words: &$words, run: $run }),*];
    };
}

const OUT: &str = "OOM unrecoverable: ";

errands! {
    "allocates some" Either [OUT], |g, r| g.allocate(0, 1 + r.below(4) as u32).map(drop);
    "allocates an embedding" Either [OUT], |g, _| g.allocate(1, 1).map(drop);
    "allocates none" Runs [], |g, r| g.allocate(r.below(2) as u64, 0).map(drop);
    "allocates more pages than there are" Ends [OUT], |g, r| {
        g.allocate(0, [PAGES + 1, 1 << 16, 1 << 31, u32::MAX][r.below(4)]).map(drop)
    };
    "allocates more embeddings than there are" Ends [OUT], |g, r| {
        g.allocate(1, [EMBEDS + 1, 1 << 16, 1 << 31, u32::MAX][r.below(4)]).map(drop)
    };
    "allocates what there is not" Ends ["resource-type"], |g, r| {
        g.allocate([2, 3, 1 << 31, u64::from(u32::MAX)][r.below(4)], 1).map(drop)
    };
    "gives some back" Runs [], |g, r| {
        let names: Vec<u32> = g.pages.iter().copied().filter(|_| r.below(2) == 0).collect();
        g.deallocate(0, &names)
    };
    "gives an embedding back" Runs [], |g, _| {
        let names: Vec<u32> = g.embeds.iter().map(|(id, _)| *id).take(1).collect();
        g.deallocate(1, &names)
    };
    "gives back what it does not hold" Ends ["ptrs"], |g, r| {
        g.deallocate(r.below(2) as u64, &[9999, u32::MAX])
    };
    "gives one back twice" Ends ["ptrs"], |g, _| g.deallocate(0, &[g.pages[0], g.pages[0]]);
    "gives back what it gave back" Either ["ptrs"], |g, _| {
        let freed: Vec<u32> = g.freed.iter().copied().take(1).collect();
        g.deallocate(0, &freed)
    };
    "gives back more than one may hold" Ends ["ptrs"], |g, _| {
        g.deallocate(0, &vec![1; limits::NAMES_PER_INSTANCE + 1])
    };
    "exports, some of it again and again" Either ["taken", "exports"], |g, r| {
        let names: Vec<u32> = (0..r.below(5)).map(|_| g.pages[r.below(g.pages.len())]).collect();
        g.export(0, &names, NAMES[r.below(4)].as_bytes())
    };
    "exports embeddings" Either ["taken", "exports"], |g, r| {
        let names: Vec<u32> = g.embeds.iter().map(|(id, _)| *id).collect();
        g.export(1, &names, NAMES[r.below(4)].as_bytes())
    };
    "exports what it does not hold" Ends ["ptrs"], |g, _| g.export(0, &[g.pages[0], u32::MAX], b"c");
    "exports under a long name" Ends ["name"], |g, _| {
        g.export(0, &[g.pages[0]], &vec![b'n'; limits::EXPORT_NAME_BYTES + 1])
    };
    "exports under no text" Ends ["UTF-8"], |g, _| g.export(0, &[g.pages[0]], &[b'a', 0xff, 0xfe]);
    "imports" Either ["exported"], |g, r| g.import(r.below(2) as u64, NAMES[r.below(4)]);
    "imports what a bystander exported" Either ["exported"], |g, _| g.import(0, KEPT);
    "imports what nobody exported" Ends ["exported"], |g, _| g.import(0, "nobody exported this");
    "releases" Either ["exported"], |g, r| g.release(r.below(2) as u64, NAMES[r.below(4)]);
    "releases what a bystander exported" Either ["exported"], |g, _| g.release(0, KEPT);
    "looks at the exports" Runs [], |g, r| g.exports(r.below(2) as u64).map(drop);
    "sets a priority" Runs [], |g, r| {
        let queue = number(g.queue.into());
        g.call(COMMON, "[method]queue.set-priority", &[&queue, &number(r.below(3) as u64)]).map(drop)
    };
    "sets a priority of no case" Ends ["case"], |g, r| {
        let queue = number(g.queue.into());
        g.call(COMMON, "[method]queue.set-priority", &[&queue, &number(3 + r.below(300) as u64)]).map(drop)
    };
    "goes on with another queue" Runs [], |g, _| {
        let queue = g.new_queue()?;
        let old = std::mem::replace(&mut g.queue, queue);
        Ok(g.bed.drop_handle(COMMON, "queue", old)?)
    };
    "drops a queue twice" Ends ["handle"], |g, _| {
        let queue = g.queue;
        g.bed.drop_handle(COMMON, "queue", queue)?;
        Ok(g.bed.drop_handle(COMMON, "queue", queue)?)
    };
    "waits for its queue" Runs [], |g, _| {
        let done = synchronize(g)?;
        let pollable = g.call(COMMON, "[method]synchronization-result.pollable", &[&number(done)])?;
        g.call(POLL, "[method]pollable.block", &[&number(pollable)])?;
        g.bed.drop_handle(POLL, "pollable", pollable as u32)?;
        Ok(g.bed.drop_handle(COMMON, "synchronization-result", done as u32)?)
    };
    "drops what it could have waited for" Runs [], |g, _| {
        let done = synchronize(g)?;
        Ok(g.bed.drop_handle(COMMON, "synchronization-result", done as u32)?)
    };
}

fn synchronize(guest: &mut Guest) -> Result<u64, End> {
    let queue = number(guest.queue.into());
    guest.call(COMMON, "[method]queue.synchronize", &[&queue])
}
