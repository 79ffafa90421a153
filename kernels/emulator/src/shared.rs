//! A block's shared memory: its bytes, which of them are written or still in flight, who touched them last.

use crate::fault::{Kind, Stop, stop};
use crate::module::{SHARED_BASE, Stretch};
use crate::shadow::{Clash, Readers, Record, Witness, lane_of, readers, warp_of};

/// Of a byte. Not an enum: runs of it are compared as memory.
struct State;

impl State {
    const UNWRITTEN: u8 = 0;
    const WRITTEN: u8 = 1;
    /// The destination of a cp.async that nobody waited for.
    const IN_FLIGHT: u8 = 2;
    /// Between two variables.
    const NOBODYS: u8 = 3;
}

const WRITTEN: [u8; 16] = [State::WRITTEN; 16];

#[derive(Clone, Default)]
struct Cell {
    written: Record,
    read: Readers,
}

pub struct Shared {
    /// What of it is a variable.
    stretches: Vec<Stretch>,
    bytes: Vec<u8>,
    state: Vec<u8>,
    cells: Vec<Cell>,
    grain: u32,
}

impl Shared {
    /// The variables, the last of which has `dynamic` bytes.
    pub fn new(stretches: &[Stretch], dynamic: u32, grain: u32) -> Shared {
        let grain = grain.clamp(1, 4).trailing_zeros();
        let mut stretches = stretches.to_vec();
        if let Some(last) = stretches.last_mut() {
            last.bytes.end += dynamic;
        }
        let size = stretches.last().map_or(0, |last| last.bytes.end as usize);
        let mut shared = Shared {
            stretches,
            bytes: vec![0; size],
            state: vec![State::NOBODYS; size],
            cells: vec![Cell::default(); (size >> grain) + 1],
            grain,
        };
        shared.reset();
        shared
    }

    /// For the next block.
    pub fn reset(&mut self) {
        for stretch in &self.stretches {
            self.state[stretch.bytes.start as usize..stretch.bytes.end as usize].fill(State::UNWRITTEN);
        }
        self.cells.fill(Cell::default());
    }

    /// An access that no variable holds.
    fn outside<T>(&self, at: u64, size: u32, lane: u32) -> Result<T, Stop> {
        let sentence = match before(&self.stretches, at) {
            Some(Stretch { name, bytes }) => {
                let first = at - u64::from(bytes.start);
                format!(
                    "bytes {first} to {} of `{name}` in shared memory, which has {}",
                    first + u64::from(size),
                    bytes.len()
                )
            }
            None => format!("{size} bytes of shared memory at byte {at}"),
        };
        stop(Kind::OutOfBounds, lane, sentence)
    }

    /// The index of the first byte. What lies between variables is found by its state.
    fn place(&self, address: u64, size: u32, lane: u32) -> Result<usize, Stop> {
        let at = address.wrapping_sub(u64::from(SHARED_BASE));
        if (at as i64) < 0 {
            let sentence = format!("{size} bytes of shared memory at byte {} of all", at as i64);
            return stop(Kind::OutOfBounds, lane, sentence);
        }
        if at.checked_add(u64::from(size)).is_none_or(|end| end > self.bytes.len() as u64) {
            return self.outside(at, size, lane);
        }
        if address & u64::from(size - 1) != 0 {
            let sentence = format!(
                "{size} bytes of shared memory at {}: {address:#x} is no multiple of {size}",
                name(&self.stretches, at as usize)
            );
            return stop(Kind::Misaligned, lane, sentence);
        }
        Ok(at as usize)
    }

    /// The same for a write by `does`: nothing is in flight there.
    fn writable(&self, address: u64, size: u32, lane: u32, does: &str) -> Result<usize, Stop> {
        let at = self.place(address, size, lane)?;
        let states = &self.state[at..at + size as usize];
        match states.iter().copied().max() {
            Some(State::NOBODYS) => self.outside(at as u64, size, lane),
            Some(State::IN_FLIGHT) => {
                let sentence = format!("{does} {}, where a cp.async is in flight", name(&self.stretches, at));
                stop(Kind::CopyNotWaited, lane, sentence)
            }
            _ => Ok(at),
        }
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
            && let states = &self.state[range.clone()]
            && let Some(first) = states.iter().position(|&state| state != State::WRITTEN)
        {
            let name = name(&self.stretches, at + first);
            return match states[first] {
                _ if states.contains(&State::NOBODYS) => self.outside(at as u64, size, lane),
                State::IN_FLIGHT => {
                    let sentence =
                        format!("reads {name}, where a cp.async is in flight: its thread did not wait");
                    stop(Kind::CopyNotWaited, lane, sentence)
                }
                _ => stop(Kind::UninitialisedShared, lane, format!("reads {name}: nobody wrote it")),
            };
        }
        for cell in &mut self.cells[at >> self.grain..=(range.end - 1) >> self.grain] {
            match witness.read(lane, cell.written, cell.read, strong, false) {
                Ok(read) => cell.read = (read, readers(read, cell.read, warp_of(witness.stamp), lane)),
                Err(clash) => return race(&clash, witness, lane, name(&self.stretches, at), false),
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
                Err(clash) => return race(&clash, witness, lane, name(&self.stretches, at), true),
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
        let at = self.writable(address, size, lane, "writes")?;
        let range = at..at + size as usize;
        self.note_write(witness, lane, at, size, strong)?;
        self.state[range.clone()].fill(State::WRITTEN);
        self.bytes[range].copy_from_slice(&value.to_le_bytes()[..size as usize]);
        Ok(())
    }

    /// The destination of a cp.async: nobody may use it before the thread waits.
    pub fn poison(&mut self, witness: &Witness<'_>, lane: u32, address: u64, size: u32) -> Result<(), Stop> {
        let at = self.writable(address, size, lane, "copies to")?;
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

/// The variable that starts last before this byte.
fn before(stretches: &[Stretch], at: u64) -> Option<&Stretch> {
    stretches.iter().rev().find(|stretch| u64::from(stretch.bytes.start) <= at)
}

/// A byte for people.
fn name(stretches: &[Stretch], at: usize) -> String {
    match before(stretches, at as u64) {
        Some(stretch) => format!("byte {} of `{}`", at - stretch.bytes.start as usize, stretch.name),
        None => format!("byte {at} of shared memory"),
    }
}

fn race<T>(clash: &Clash, witness: &Witness<'_>, lane: u32, at: String, writes: bool) -> Result<T, Stop> {
    let does = if writes { "writes" } else { "reads" };
    let did = if clash.wrote { "wrote" } else { "read" };
    let (warp, other) = (warp_of(clash.with), lane_of(clash.with));
    let barrier = if warp == warp_of(witness.stamp) { "bar.warp.sync" } else { "barrier" };
    let sentence = format!("{does} {at}, which lane {other} of warp {warp} {did} with no {barrier} between");
    Err(Stop { kind: Kind::SharedRace, lane, sentence })
}
