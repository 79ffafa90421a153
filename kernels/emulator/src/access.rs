//! Accesses to global memory, with every check of an address, and the stores of a warp; `load`, `atomics` and `copies` go
//! through them.

use crate::block::{Block, witness};
use crate::execute::Machine;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Address, Order, Slot};
use crate::memory::{Buffer, LOCAL_WINDOW, SHARED_WINDOW};
use crate::order::{Actor, Seen};
use crate::shadow::{Clash, Witness, block_of, lane_of, record, warp_of};
use crate::types::{Space, Type};
use crate::warp::{Warp, lanes};

/// Where an access goes once a generic address is resolved.
pub enum Place {
    Shared(u64),
    Local(u64),
    Global(u64),
}

/// Resolves a generic address.
pub fn place(space: Space, base: u64, offset: i64) -> Place {
    let at = base.wrapping_add_signed(offset);
    match space {
        Space::Shared => Place::Shared(at & 0xffff_ffff),
        Space::Local => Place::Local(at & 0xffff_ffff),
        Space::Generic if at >= SHARED_WINDOW => Place::Shared(at - SHARED_WINDOW),
        Space::Generic if at >= LOCAL_WINDOW => Place::Local(at - LOCAL_WINDOW),
        _ => Place::Global(at),
    }
}

/// The buffer that a warp's last lane used: the next one mostly uses it too.
pub type Near<'a> = Option<&'a Buffer>;

impl<'a> Machine<'a> {
    /// The buffer of an access, after the checks of its address and that no launch before may still write it.
    #[inline]
    fn buffer(
        &self,
        near: &mut Near<'a>,
        waited: u32,
        address: u64,
        size: u32,
        lane: u32,
        does: &str,
    ) -> Result<(&'a Buffer, u64), Stop> {
        if address & u64::from(size - 1) != 0 {
            let sentence = format!("{does} {size} bytes at {address:#x}, no multiple of {size}");
            return stop(Kind::Misaligned, lane, sentence);
        }
        if let Some(buffer) = near
            && let Some(offset) = buffer.offset(address, size)
        {
            return Ok((buffer, offset));
        }
        match self.memory.find(address, u64::from(size)) {
            Ok((buffer, offset)) if buffer.pending && waited >> lane & 1 == 0 => {
                let name = &buffer.name;
                let sentence = format!(
                    "{does} byte {offset} of `{name}` before griddepcontrol.wait: an earlier launch may write it"
                );
                stop(Kind::GridNotWaited, lane, sentence)
            }
            Ok((buffer, offset)) => {
                // One that is still written is looked at for each lane.
                *near = (!buffer.pending).then_some(buffer);
                Ok((buffer, offset))
            }
            Err(sentence) => stop(Kind::OutOfBounds, lane, format!("{does} {sentence}")),
        }
    }

    #[inline]
    pub fn fetch(
        &self,
        near: &mut Near<'a>,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        size: u32,
        order: Order,
    ) -> Result<u128, Stop> {
        let (buffer, offset) = self.buffer(near, witness.waited, address, size, lane, "reads")?;
        if !buffer.is_written(offset, size) {
            let sentence = format!("reads byte {offset} of `{}`, which nobody wrote", buffer.name);
            return stop(Kind::UninitialisedGlobal, lane, sentence);
        }
        match buffer.note_read(witness, lane, (offset, size), order.strong, order.constant) {
            Ok(()) => Ok(buffer.load(offset, size)),
            Err(clash) => self.clash(&clash, lane, buffer, offset, "reads"),
        }
    }

    pub fn clash<T>(
        &self,
        clash: &Clash,
        lane: u32,
        buffer: &Buffer,
        offset: u64,
        does: &str,
    ) -> Result<T, Stop> {
        let (block, warp, other) = (block_of(clash.with), warp_of(clash.with), lane_of(clash.with));
        let who = format!("lane {other} of warp {warp} of block number {block}");
        let name = &buffer.name;
        if clash.constant {
            let sentence = match clash.wrote {
                true => format!("reads byte {offset} of `{name}` by .nc, which {who} wrote in this launch"),
                false => format!("writes byte {offset} of `{name}`, which {who} read by .nc in this launch"),
            };
            return stop(Kind::NotCoherent, lane, sentence);
        }
        let did = if clash.wrote { "wrote" } else { "read" };
        let sentence =
            format!("{does} byte {offset} of `{name}`, which {who} {did}, and nothing orders the two");
        stop(Kind::GlobalRace, lane, sentence)
    }

    /// `shared`: the lanes, of an access to shared memory.
    pub fn count(&mut self, addresses: &[u64], size: u32, shared: Option<u32>) {
        match (addresses.is_empty(), shared) {
            (true, _) => {}
            (_, Some(mask)) => self.tally.shared(addresses, size, mask),
            _ => self.tally.global(addresses.iter().copied(), size),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub fn store(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        kind: Type,
        from: &[Slot],
        order: Order,
        mask: u32,
    ) -> Result<(), Stop> {
        let stamp = block.stamp(number);
        let crowded = block.crowded;
        let (warp, shared, seen) = block.split(number);
        warp.need(address.base, mask, self.kernel)?;
        for &slot in from {
            warp.need(slot, mask, self.kernel)?;
        }
        let size = kind.size() * from.len() as u32;
        let mut addresses = [0; 32];
        let mut count = 0;
        let (mut written, mut globals) = ([(0, 0); 32], 0);
        let mut in_shared = false;
        let mut near = None;
        for lane in lanes(mask) {
            let base = warp.registers[address.base as usize][lane as usize];
            let value = from.iter().rev().fold(0u128, |all, &slot| {
                let part = warp.registers[slot as usize][lane as usize] & kind.mask();
                all << (kind.bits() % 128) | u128::from(part)
            });
            match place(address.space, base, address.offset) {
                Place::Shared(at) => {
                    in_shared = true;
                    (addresses[count], count) = (at, count + 1);
                    let witness = witness(stamp, warp, seen.as_ref(), crowded);
                    shared.store(&witness, lane, at, (size, value), order.strong)?;
                }
                Place::Local(at) => warp.local.store(lane, at, (size, value))?,
                Place::Global(at) => {
                    (addresses[count], count) = (at, count + 1);
                    (written[globals], globals) = ((lane, at), globals + 1);
                    match seen {
                        Some(seen) if order.wide => {
                            let mut actor = actor(stamp, warp, seen, lane);
                            actor.writes(&mut self.locations, at, order.release, false);
                        }
                        Some(_) if order.strong => self.locations.end(at),
                        _ => {}
                    }
                    let witness = witness(stamp, warp, seen.as_ref(), crowded);
                    self.put(&mut near, &witness, lane, at, (size, value), order)?;
                }
            }
        }
        self.spares_sources(block, &written[..globals], size)?;
        if order.release {
            self.advance(block, number);
        }
        self.count(&addresses[..count], size, in_shared.then_some(mask));
        Ok(())
    }

    fn put(
        &self,
        near: &mut Near<'a>,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        (size, value): (u32, u128),
        order: Order,
    ) -> Result<(), Stop> {
        let buffer = self.writable(near, witness, lane, address, size, order)?;
        buffer.0.store(buffer.1, size, value);
        Ok(())
    }

    pub fn writable(
        &self,
        near: &mut Near<'a>,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        size: u32,
        order: Order,
    ) -> Result<(&'a Buffer, u64), Stop> {
        let (buffer, offset) = self.buffer(near, witness.waited, address, size, lane, "writes")?;
        if buffer.read_only {
            let sentence = format!("writes byte {offset} of `{}`, which is read-only", buffer.name);
            return stop(Kind::ReadOnly, lane, sentence);
        }
        match buffer.note_write(witness, lane, (offset, size), order.strong) {
            Ok(()) => {
                buffer.note_launch(self.memory.launch);
                Ok((buffer, offset))
            }
            Err(clash) => self.clash(&clash, lane, buffer, offset, "writes"),
        }
    }
}

/// A lane of a warp where blocks may order each other.
pub fn actor<'a>(stamp: u64, warp: &'a mut Warp, seen: &'a mut Seen, lane: u32) -> Actor<'a> {
    let known = &warp.known;
    let lanes = match &warp.lanes {
        Some(times) => times[lane as usize],
        None => [known[warp.number as usize]; 32],
    };
    Actor { own: record(stamp, lane), known, lanes, seen, thread: &mut warp.threads[lane as usize] }
}
