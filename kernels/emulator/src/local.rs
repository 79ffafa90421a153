//! A warp's local memory: the bytes of each thread and which of them it wrote. Threads share none of it, so
//! nobody races over it.

use crate::fault::{Kind, Stop, stop};

/// Local memory starts here in every thread, so that a forgotten base is out of bounds.
pub const LOCAL_BASE: u64 = 1024;

pub struct Local {
    /// Bytes of a thread.
    size: usize,
    bytes: Vec<u8>,
    written: Vec<bool>,
}

impl Local {
    /// Of 32 threads.
    pub fn new(size: u32) -> Local {
        let all = size as usize * 32;
        Local { size: size as usize, bytes: vec![0; all], written: vec![false; all] }
    }

    /// For the next block.
    pub fn reset(&mut self) {
        self.written.fill(false);
    }

    /// Where the bytes of an access lie among those of all threads.
    fn range(&self, lane: u32, address: u64, size: u32, does: &str) -> Result<std::ops::Range<usize>, Stop> {
        let at = address.wrapping_sub(LOCAL_BASE);
        if at.checked_add(u64::from(size)).is_none_or(|end| end > self.size as u64) {
            let offset = address as i64 - LOCAL_BASE as i64;
            let sentence = format!("{does} {size} bytes of local memory at byte {offset} of {}", self.size);
            return stop(Kind::OutOfBounds, lane, sentence);
        }
        if address & u64::from(size - 1) != 0 {
            let sentence = format!("{does} {size} bytes of local memory at byte {at}, no multiple of {size}");
            return stop(Kind::Misaligned, lane, sentence);
        }
        let first = lane as usize * self.size + at as usize;
        Ok(first..first + size as usize)
    }

    pub fn load(&self, lane: u32, address: u64, size: u32) -> Result<u128, Stop> {
        let range = self.range(lane, address, size, "reads")?;
        if let Some(n) = self.written[range.clone()].iter().position(|written| !written) {
            let at = address - LOCAL_BASE + n as u64;
            let sentence = format!("reads local byte {at}, which the thread never wrote");
            return stop(Kind::UninitialisedLocal, lane, sentence);
        }
        let mut all = [0; 16];
        all[..size as usize].copy_from_slice(&self.bytes[range]);
        Ok(u128::from_le_bytes(all))
    }

    pub fn store(&mut self, lane: u32, address: u64, (size, value): (u32, u128)) -> Result<(), Stop> {
        let range = self.range(lane, address, size, "writes")?;
        self.written[range.clone()].fill(true);
        self.bytes[range].copy_from_slice(&value.to_le_bytes()[..size as usize]);
        Ok(())
    }
}
