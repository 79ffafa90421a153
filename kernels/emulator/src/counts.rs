//! What a launch did: instructions, global sectors, bank conflicts.

use crate::module::Kernel;
use std::collections::BTreeMap;

/// How often an opcode ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    pub warps: u64,
    /// Lanes that the guard let through.
    pub threads: u64,
    /// Further passes that its bank conflicts in shared memory cost.
    pub bank_conflicts: u64,
}

/// The counts of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Per thread, without those that their guard held back.
    pub instructions: u64,
    /// Per warp, as issued.
    pub warp_instructions: u64,
    /// 32-byte sectors that the warps' global accesses touched.
    pub global_sectors: u64,
    /// Bytes that the threads asked of global memory, read and written.
    pub global_bytes: u64,
    /// Accesses of warps to shared memory, and the further passes that their bank conflicts cost.
    pub shared_accesses: u64,
    pub bank_conflicts: u64,
    /// By the opcode with its modifiers.
    pub by_opcode: BTreeMap<String, Executed>,
    /// By source file and line.
    pub by_line: BTreeMap<(String, u32), Executed>,
}

/// The counts of one thread of the emulator, by instruction.
pub struct Tally {
    pub executed: Vec<Executed>,
    /// The instruction at work.
    pub at: u32,
    pub global_sectors: u64,
    pub global_bytes: u64,
    pub shared_accesses: u64,
    pub bank_conflicts: u64,
}

impl Tally {
    pub fn new(kernel: &Kernel) -> Tally {
        Tally {
            executed: vec![Executed::default(); kernel.code.len()],
            at: 0,
            global_sectors: 0,
            global_bytes: 0,
            shared_accesses: 0,
            bank_conflicts: 0,
        }
    }

    /// An access to shared memory by these lanes of a warp, whose addresses are aligned: 32 banks of 4 bytes serve 128 bytes
    /// of distinct words at a time.
    pub fn shared(&mut self, addresses: &[u64], size: u32, mask: u32) {
        self.shared_accesses += 1;
        // Wide accesses go by halves or quarters of the warp, whichever of their lanes take part.
        let lanes = 128 / size.max(4);
        let of_phase = u32::MAX >> (32 - lanes);
        let mut left = addresses;
        for first in (0..32).step_by(lanes as usize) {
            let count = (mask >> first & of_phase).count_ones() as usize;
            let (phase, rest) = left.split_at(count.min(left.len()));
            left = rest;
            if phase.is_empty() {
                continue;
            }
            let conflicts = u64::from(passes(phase, size) - 1);
            self.executed[self.at as usize].bank_conflicts += conflicts;
            self.bank_conflicts += conflicts;
        }
    }

    /// A warp's access to global memory, an address for each lane.
    pub fn global(&mut self, addresses: impl Iterator<Item = u64>, size: u32) {
        let mut sectors = Distinct::default();
        for address in addresses {
            self.global_bytes += u64::from(size);
            sectors.insert(address / 32);
        }
        self.global_sectors += sectors.numbers().len() as u64;
    }

    pub fn into_counts(all: &[Tally], kernel: &Kernel) -> Counts {
        let mut counts = Counts::default();
        for tally in all {
            counts.global_sectors += tally.global_sectors;
            counts.global_bytes += tally.global_bytes;
            counts.shared_accesses += tally.shared_accesses;
            counts.bank_conflicts += tally.bank_conflicts;
            for (executed, instruction) in tally.executed.iter().zip(&kernel.code) {
                if executed.warps == 0 {
                    continue;
                }
                counts.instructions += executed.threads;
                counts.warp_instructions += executed.warps;
                let opcode = kernel.opcodes[instruction.name as usize].clone();
                let place = (kernel.files[instruction.file as usize].clone(), instruction.line);
                for entry in
                    [counts.by_opcode.entry(opcode).or_default(), counts.by_line.entry(place).or_default()]
                {
                    entry.warps += executed.warps;
                    entry.threads += executed.threads;
                    entry.bank_conflicts += executed.bank_conflicts;
                }
            }
        }
        counts
    }
}

/// How often the banks serve these lanes.
fn passes(addresses: &[u64], size: u32) -> u32 {
    // Mostly once: each bank has one word.
    let words = size.div_ceil(4);
    let (mut busy, mut free) = (0u32, true);
    for (n, address) in addresses.iter().enumerate() {
        let banks = ((1 << words) - 1) << (address / 4 % 32);
        free &= busy & banks == 0 || addresses[..n].contains(address);
        busy |= banks;
    }
    if free {
        return 1;
    }
    let mut seen = [[0u64; 32]; 2];
    let mut depth = [0u32; 32];
    for &address in addresses {
        for word in address / 4..(address + u64::from(size)).div_ceil(4) {
            let bank = (word % 32) as usize;
            // The first two words of a bank are remembered, further ones always count.
            let known = depth[bank].min(2) as usize;
            if (0..known).any(|n| seen[n][bank] == word) {
                continue;
            }
            if known < 2 {
                seen[known][bank] = word;
            }
            depth[bank] += 1;
        }
    }
    depth.into_iter().max().unwrap_or(1)
}

/// The distinct ones of up to 32 numbers, which mostly ascend or are few.
#[derive(Default)]
pub struct Distinct {
    numbers: [u64; 32],
    count: usize,
    greatest: u64,
}

impl Distinct {
    /// Which of them this one is.
    #[inline]
    pub fn insert(&mut self, number: u64) -> usize {
        if self.count == 0 || number > self.greatest {
            self.greatest = number;
        } else if let Some(at) = self.numbers().iter().rposition(|&known| known == number) {
            return at;
        }
        self.numbers[self.count] = number;
        self.count += 1;
        self.count - 1
    }

    pub fn numbers(&self) -> &[u64] {
        &self.numbers[..self.count]
    }
}
