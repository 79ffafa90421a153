//! A block's shared memory: its bytes, which of them are written or still in flight, who touched them last.

use crate::fault::{Kind, Stop, stop};
use crate::module::SHARED_BASE;
use crate::shadow::{Clash, Readers, Record, Witness, lane_of, readers, warp_of};

/// Of a byte. Not an enum: runs of it are compared as memory.
struct State;

impl State {
    const UNWRITTEN: u8 = 0;
    const WRITTEN: u8 = 1;
    /// The destination of a cp.async that nobody waited for.
    const IN_FLIGHT: u8 = 2;
}

const WRITTEN: [u8; 16] = [State::WRITTEN; 16];

#[derive(Clone, Default)]
struct Cell {
    written: Record,
    read: Readers,
}

pub struct Shared {
    bytes: Vec<u8>,
    state: Vec<u8>,
    cells: Vec<Cell>,
    grain: u32,
}

impl Shared {
    pub fn new(bytes: u32, grain: u32) -> Shared {
        let grain = grain.clamp(1, 4).trailing_zeros();
        let size = bytes as usize;
        Shared {
            bytes: vec![0; size],
            state: vec![State::UNWRITTEN; size],
            cells: vec![Cell::default(); (size >> grain) + 1],
            grain,
        }
    }

    /// For the next block.
    pub fn reset(&mut self) {
        self.state.fill(State::UNWRITTEN);
        self.cells.fill(Cell::default());
    }

    /// The index of the first byte.
    fn place(&self, address: u64, size: u32, lane: u32) -> Result<usize, Stop> {
        let at = address.wrapping_sub(u64::from(SHARED_BASE));
        if at.checked_add(u64::from(size)).is_none_or(|end| end > self.bytes.len() as u64) {
            let sentence = format!(
                "{size} bytes of shared memory at byte {} of {}",
                address as i64 - i64::from(SHARED_BASE),
                self.bytes.len()
            );
            return stop(Kind::OutOfBounds, lane, sentence);
        }
        if address & u64::from(size - 1) != 0 {
            let sentence = format!("{size} bytes of shared memory at byte {at}, no multiple of {size}");
            return stop(Kind::Misaligned, lane, sentence);
        }
        Ok(at as usize)
    }

    pub fn load(
        &mut self,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        size: u32,
        strong: bool,
    ) -> Result<u128, Stop> {
        let at = self.place(address, size, lane)?;
        let range = at..at + size as usize;
        // Whole comparisons are by words; which byte it is matters only when one fails.
        if self.state[range.clone()] != WRITTEN[..size as usize]
            && let Some(state) = self.state[range.clone()].iter().find(|&&state| state != State::WRITTEN)
        {
            return match *state {
                State::IN_FLIGHT => stop(
                    Kind::CopyNotWaited,
                    lane,
                    format!("reads shared byte {at}, where a cp.async is in flight: its thread did not wait"),
                ),
                _ => stop(
                    Kind::UninitialisedShared,
                    lane,
                    format!("reads shared byte {at}, which nobody wrote"),
                ),
            };
        }
        for cell in &mut self.cells[at >> self.grain..=(range.end - 1) >> self.grain] {
            match witness.read(lane, cell.written, cell.read, strong, false) {
                Ok(read) => cell.read = (read, readers(read, cell.read, warp_of(witness.stamp), lane)),
                Err(clash) => return race(&clash, witness, lane, at, false).map(|()| 0),
            }
        }
        let mut all = [0; 16];
        all[..size as usize].copy_from_slice(&self.bytes[range]);
        Ok(u128::from_le_bytes(all))
    }

    fn note_write(
        &mut self,
        witness: &Witness<'_>,
        lane: u32,
        at: usize,
        size: u32,
        strong: bool,
    ) -> Result<(), Stop> {
        for cell in &mut self.cells[at >> self.grain..=(at + size as usize - 1) >> self.grain] {
            match witness.write(lane, cell.written, cell.read, strong) {
                Ok(written) => *cell = Cell { written, read: if strong { cell.read } else { (0, 0) } },
                Err(clash) => return race(&clash, witness, lane, at, true),
            }
        }
        Ok(())
    }

    pub fn store(
        &mut self,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        (size, value): (u32, u128),
        strong: bool,
    ) -> Result<(), Stop> {
        let at = self.place(address, size, lane)?;
        let range = at..at + size as usize;
        if self.state[range.clone()].contains(&State::IN_FLIGHT) {
            let sentence = format!("writes shared byte {at}, where a cp.async is in flight");
            return stop(Kind::CopyNotWaited, lane, sentence);
        }
        self.note_write(witness, lane, at, size, strong)?;
        self.state[range.clone()].fill(State::WRITTEN);
        self.bytes[range].copy_from_slice(&value.to_le_bytes()[..size as usize]);
        Ok(())
    }

    /// The destination of a cp.async: nobody may use it before the thread waits.
    pub fn poison(&mut self, witness: &Witness<'_>, lane: u32, address: u64, size: u32) -> Result<(), Stop> {
        let at = self.place(address, size, lane)?;
        if self.state[at..at + size as usize].contains(&State::IN_FLIGHT) {
            let sentence = format!("copies to shared byte {at}, where another cp.async is in flight");
            return stop(Kind::CopyNotWaited, lane, sentence);
        }
        self.note_write(witness, lane, at, size, false)?;
        self.state[at..at + size as usize].fill(State::IN_FLIGHT);
        Ok(())
    }

    /// The bytes of a cp.async arrive.
    pub fn land(
        &mut self,
        witness: &Witness<'_>,
        lane: u32,
        address: u64,
        size: u32,
        value: u128,
    ) -> Result<(), Stop> {
        let at = self.place(address, size, lane)?;
        self.state[at..at + size as usize].fill(State::WRITTEN);
        self.store(witness, lane, address, (size, value), false)
    }
}

fn race(clash: &Clash, witness: &Witness<'_>, lane: u32, at: usize, writes: bool) -> Result<(), Stop> {
    let does = if writes { "writes" } else { "reads" };
    let did = if clash.wrote { "wrote" } else { "read" };
    let (warp, other) = (warp_of(clash.with), lane_of(clash.with));
    let barrier = if warp == warp_of(witness.stamp) { "bar.warp.sync" } else { "barrier" };
    let sentence =
        format!("{does} shared byte {at}, which lane {other} of warp {warp} {did} with no {barrier} between");
    Err(Stop { kind: Kind::SharedRace, lane, sentence })
}
