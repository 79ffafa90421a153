//! cp.async: bytes leave global memory when it is issued, and arrive when its thread waits; until then nobody of the block may
//! write over them where they came from. What other blocks write is a race like any other's.

use crate::access::Near;
use crate::block::{Block, witness};
use crate::execute::Machine;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Address, Order, Slot};
use crate::shadow::Witness;
use crate::warp::{Flight, lanes};

impl<'a> Machine<'a> {
    pub fn copy(
        &mut self,
        block: &mut Block,
        number: usize,
        (to, from): (&Address, &Address),
        bytes: u32,
        taken: Option<Slot>,
        mask: u32,
    ) -> Result<(), Stop> {
        let stamp = block.stamp(number);
        let crowded = block.crowded;
        let (warp, shared, seen) = block.split(number);
        for slot in [to.base, from.base].into_iter().chain(taken) {
            warp.need(slot, mask, self.kernel)?;
        }
        let (mut sources, mut targets) = ([0; 32], [0; 32]);
        let (mut read, mut count) = (0, 0);
        let mut near = None;
        for lane in lanes(mask) {
            let i = lane as usize;
            let taken = match taken {
                Some(slot) => warp.registers[slot as usize][i],
                None => u64::from(bytes),
            };
            if taken > u64::from(bytes) {
                let sentence = format!("a cp.async of {bytes} bytes takes {taken}");
                return stop(Kind::OutOfBounds, lane, sentence);
            }
            let target = warp.registers[to.base as usize][i].wrapping_add_signed(to.offset) & 0xffff_ffff;
            let source = warp.registers[from.base as usize][i].wrapping_add_signed(from.offset);
            let witness = witness(stamp, warp, seen.as_ref(), crowded);
            let value = self.source(&mut near, &witness, lane, source, (bytes, taken as u32))?;
            shared.poison(&witness, lane, target, bytes)?;
            let group = warp.groups[i];
            warp.flights.push(Flight {
                lane,
                group,
                to: target,
                size: bytes,
                value,
                from: source,
                taken: taken as u32,
            });
            (targets[count], count) = (target, count + 1);
            if taken > 0 {
                (sources[read], read) = (source, read + 1);
            }
        }
        self.count(&targets[..count], bytes, Some(mask));
        self.count(&sources[..read], bytes, None);
        Ok(())
    }

    /// What a cp.async reads: the first `taken` bytes, zeros behind.
    fn source(
        &self,
        near: &mut Near<'a>,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        (bytes, taken): (u32, u32),
    ) -> Result<u128, Stop> {
        let order = Order::default();
        if taken == bytes {
            return self.fetch(near, witness, lane, address, bytes, order);
        }
        if !address.is_multiple_of(u64::from(bytes)) {
            let sentence = format!("copies {bytes} bytes from {address:#x}, no multiple of {bytes}");
            return stop(Kind::Misaligned, lane, sentence);
        }
        (0..taken).try_fold(0, |all, n| {
            let byte = self.fetch(near, witness, lane, address + u64::from(n), 1, order)?;
            Ok(all | byte << (8 * n))
        })
    }

    /// Writes of `size` bytes each leave alone what copies are still to read.
    pub fn spares_sources(
        &self,
        block: &Block,
        written: &[(u32, u64)], // lane, address
        size: u32,
    ) -> Result<(), Stop> {
        let flights =
            || block.warps.iter().flat_map(|warp| warp.flights.iter().map(|flight| (warp.number, flight)));
        if flights().next().is_none() {
            return Ok(());
        }
        for &(lane, at) in written {
            let meets = |flight: &Flight| {
                at < flight.from + u64::from(flight.taken) && flight.from < at + u64::from(size)
            };
            if let Some((warp, flight)) = flights().find(|(_, flight)| meets(flight)) {
                let sentence = format!(
                    "writes {at:#x}, which a cp.async of lane {} of warp {warp} is still to read: it did not wait",
                    flight.lane
                );
                return stop(Kind::CopyNotWaited, lane, sentence);
            }
        }
        Ok(())
    }

    /// The copies of all but the last `left` groups arrive.
    pub fn copy_wait(
        &mut self,
        block: &mut Block,
        number: usize,
        left: Option<u32>,
        mask: u32,
    ) -> Result<(), Stop> {
        let stamp = block.stamp(number);
        let crowded = block.crowded;
        let (warp, shared, seen) = block.split(number);
        let mut flights = std::mem::take(&mut warp.flights);
        let witness = witness(stamp, warp, seen.as_ref(), crowded);
        let mut failed = Ok(());
        flights.retain(|flight| {
            let mine = mask >> flight.lane & 1 == 1;
            let landed =
                mine && left.is_none_or(|left| flight.group + left < warp.groups[flight.lane as usize]);
            if landed && failed.is_ok() {
                failed = shared.land(&witness, flight.lane, flight.to, flight.size, flight.value);
            }
            !landed
        });
        warp.flights = flights;
        failed
    }
}
