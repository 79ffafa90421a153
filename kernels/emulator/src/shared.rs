//! A block's shared memory: its bytes, which of them are written or still in flight, who touched them last.

use crate::fault::{Kind, Stop, stop};
use crate::module::{SHARED_BASE, Stretch};
use crate::shadow::{Clash, Readers, Record, Witness, lane_of, readers, warp_of};
use crate::warp;

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

/// So many bytes that are all written, as a number.
fn written(size: u32) -> u128 {
    u128::from_le_bytes([State::WRITTEN; 16]) >> (128 - 8 * size)
}

/// Up to 16 bytes as a number. The sizes of inner loops are copied without a call.
#[inline]
fn number(bytes: &[u8]) -> u128 {
    match (bytes.try_into(), bytes.try_into()) {
        (Ok(all), _) => u128::from_le_bytes(all),
        (_, Ok(all)) => u128::from(u32::from_le_bytes(all)),
        _ => bytes.iter().rev().fold(0, |all, &byte| all << 8 | u128::from(byte)),
    }
}

/// The reverse.
#[inline]
fn put(bytes: &mut [u8], number: u128) {
    let all = number.to_le_bytes();
    match bytes.len() {
        16 => bytes.copy_from_slice(&all),
        4 => bytes.copy_from_slice(&all[..4]),
        some => bytes.copy_from_slice(&all[..some]),
    }
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Cell {
    written: Record,
    read: Readers,
}

/// Some lanes of a warp, a bit for each, where others pass one lane's number.
#[derive(Clone, Copy)]
pub struct Lanes(pub u32);

impl Lanes {
    pub fn one(lane: u32) -> Lanes {
        Lanes(1 << lane)
    }
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
    #[inline]
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
        if number(states) & !written(size) == 0 {
            return Ok(at);
        }
        match states.iter().copied().max() {
            Some(State::NOBODYS) => self.outside(at as u64, size, lane),
            Some(State::IN_FLIGHT) => {
                let sentence = format!("{does} {}, where a cp.async is in flight", name(&self.stretches, at));
                stop(Kind::CopyNotWaited, lane, sentence)
            }
            _ => Ok(at),
        }
    }

    /// What some lanes of a warp read in one place.
    pub fn load(
        &mut self,
        witness: &Witness<'_>,
        Lanes(lanes): Lanes,
        address: u64,
        size: u32,
        strong: bool,
    ) -> Result<u128, Stop> {
        let lane = lanes.trailing_zeros();
        let at = self.place(address, size, lane)?;
        let range = at..at + size as usize;
        // Which byte it is matters only when one fails.
        if number(&self.state[range.clone()]) != written(size)
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
        let noted = self.note(at, size, |cell| {
            let mut read = cell.read;
            for lane in warp::lanes(lanes) {
                let new =
                    witness.read(lane, cell.written, read, strong, false).map_err(|clash| (lane, clash))?;
                read = (new, readers(new, read, warp_of(witness.stamp), lane));
            }
            Ok(Cell { read, ..cell })
        });
        if let Err((lane, clash)) = noted {
            return race(&clash, witness, lane, name(&self.stretches, at), false);
        }
        Ok(number(&self.bytes[range]))
    }

    fn note_write(
        &mut self,
        witness: &Witness<'_>,
        lane: u32,
        at: usize,
        size: u32,
        strong: bool,
    ) -> Result<(), Stop> {
        let noted = self.note(at, size, |cell| {
            let written = witness.write(lane, cell.written, cell.read, strong)?;
            Ok(Cell { written, read: if strong { cell.read } else { (0, 0) } })
        });
        match noted {
            Ok(()) => Ok(()),
            Err(clash) => race(&clash, witness, lane, name(&self.stretches, at), true),
        }
    }

    /// Notes an access in the cells of these bytes. Cells that are alike, as those of a vector mostly are, become alike:
    /// one of them is judged.
    #[inline]
    fn note<E>(&mut self, at: usize, size: u32, judge: impl Fn(Cell) -> Result<Cell, E>) -> Result<(), E> {
        let cells = &mut self.cells[at >> self.grain..=(at + size as usize - 1) >> self.grain];
        let mut before = cells[0];
        let mut after = judge(before)?;
        for cell in cells {
            if *cell != before {
                before = *cell;
                after = judge(before)?;
            }
            *cell = after;
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
        put(&mut self.state[range.clone()], written(size));
        put(&mut self.bytes[range], value);
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
        put(&mut self.state[at..at + size as usize], written(size));
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
