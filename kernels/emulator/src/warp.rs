//! A warp: its registers, which lanes are where, what it knows of the others. Steps no instruction itself.

use crate::alu::Lanes;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Origin, Slot, Special, Test};
use crate::local::Local;
use crate::module::Kernel;
use crate::order::Thread;

/// Bytes on their way by cp.async.
pub struct Flight {
    pub lane: u32,
    /// How many groups its thread had committed when it was issued.
    pub group: u32,
    pub to: u64,
    pub size: u32,
    pub value: u128,
}

pub struct Warp {
    pub number: u32,
    pub registers: Vec<Lanes>,
    /// Which lanes of a register hold something.
    pub ready: Vec<u32>,
    pub predicates: Vec<u32>,
    pub predicates_ready: Vec<u32>,
    pub carry: u32,
    /// Where the active lanes are.
    pub pc: u32,
    pub active: u32,
    /// Lanes that exist and have not exited.
    pub live: u32,
    /// Where the other lanes are, and the least of it.
    parked: [u32; 32],
    pub merge: u32,
    /// The barrier at which it waits.
    pub waits: Option<usize>,
    pub time: u32,
    pub known: [u32; 32],
    pub least: u32,
    /// The lanes that know that the launches before are done: griddepcontrol.wait, or a barrier behind it.
    pub waited: u32,
    pub local: Local,
    pub flights: Vec<Flight>,
    pub groups: [u32; 32],
    /// Of the lanes; only where blocks may order each other.
    pub threads: Vec<Thread>,
    pub executed: u64,
}

/// What a warp's special registers need to know of its place.
pub struct Position {
    pub block: [u32; 3],
    pub at: [u32; 3],
    pub grid: [u32; 3],
    /// Bytes of dynamic and of all shared memory.
    pub dynamic: u32,
    pub shared: u32,
}

impl Position {
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        let linear = warp * 32 + lane;
        let [x, y, _] = self.block;
        [linear % x, linear / x % y, linear / x / y]
    }
}

/// The lanes of a mask, ascending.
pub fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

impl Warp {
    pub fn new(kernel: &Kernel, number: u32, position: &Position) -> Warp {
        let mut warp = Warp {
            number,
            registers: vec![[0; 32]; kernel.origins.len()],
            ready: vec![0; kernel.origins.len()],
            predicates: vec![0; kernel.predicates.len()],
            predicates_ready: vec![0; kernel.predicates.len()],
            carry: 0,
            pc: 0,
            active: 0,
            live: 0,
            parked: [0; 32],
            merge: u32::MAX,
            waits: None,
            time: 0,
            known: [0; 32],
            least: 0,
            waited: 0,
            local: Local::new(kernel.local),
            flights: Vec::new(),
            groups: [0; 32],
            threads: Vec::new(),
            executed: 0,
        };
        if kernel.orders_blocks {
            warp.threads.resize_with(32, Thread::default);
        }
        warp.reset(kernel, position);
        warp
    }

    /// Ready for a block.
    pub fn reset(&mut self, kernel: &Kernel, position: &Position) {
        for (slot, origin) in kernel.origins.iter().enumerate() {
            match *origin {
                Origin::Register => self.ready[slot] = 0,
                Origin::Constant(value) => {
                    self.registers[slot] = [value; 32];
                    self.ready[slot] = u32::MAX;
                }
                Origin::Special(special) => {
                    self.registers[slot] =
                        std::array::from_fn(|lane| self.special(special, lane as u32, position));
                    self.ready[slot] = u32::MAX;
                }
            }
        }
        self.predicates_ready.fill(0);
        if let Some(always) = kernel.always {
            self.predicates[always as usize] = u32::MAX;
            self.predicates_ready[always as usize] = u32::MAX;
        }
        let left = position.threads() - self.number * 32;
        self.live = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
        self.active = self.live;
        (self.pc, self.merge, self.carry, self.waits) = (0, u32::MAX, 0, None);
        (self.time, self.known, self.least, self.groups) = (0, [0; 32], 0, [0; 32]);
        self.waited = if kernel.overlaps { 0 } else { u32::MAX };
        self.executed = 0;
        self.local.reset();
        self.flights.clear();
        for thread in &mut self.threads {
            *thread = Thread::default();
        }
    }

    fn special(&self, special: Special, lane: u32, position: &Position) -> u64 {
        let value = match special {
            Special::Tid(axis) => position.thread(self.number, lane)[axis],
            Special::Ntid(axis) => position.block[axis],
            Special::Ctaid(axis) => position.at[axis],
            Special::Nctaid(axis) => position.grid[axis],
            Special::Laneid => lane,
            Special::Warpid => self.number,
            Special::Nwarpid => position.threads().div_ceil(32),
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => ((1 << lane) - 1) | 1 << lane,
            Special::LanemaskGe => !((1 << lane) - 1),
            Special::LanemaskGt => !(((1 << lane) - 1) | 1 << lane),
            Special::Smid | Special::Clock => 0,
            Special::Nsmid => 1,
            Special::DynamicShared => position.dynamic,
            Special::TotalShared => position.shared,
        };
        u64::from(value)
    }

    pub fn done(&self) -> bool {
        self.live == 0
    }

    /// Are these lanes of the register written?
    #[inline]
    pub fn need(&self, slot: Slot, mask: u32, kernel: &Kernel) -> Result<(), Stop> {
        let missing = mask & !self.ready[slot as usize];
        if missing == 0 {
            return Ok(());
        }
        let name = &kernel.registers[slot as usize];
        let sentence = format!("reads register {name}, which it never wrote");
        stop(Kind::UninitialisedRegister, missing.trailing_zeros(), sentence)
    }

    /// The lanes of `mask` for which a predicate holds.
    #[inline]
    pub fn test(&self, test: Test, mask: u32, kernel: &Kernel) -> Result<u32, Stop> {
        let missing = mask & !self.predicates_ready[test.slot as usize];
        if missing != 0 {
            let name = &kernel.predicates[test.slot as usize];
            let sentence = format!("reads predicate {name}, which it never wrote");
            return stop(Kind::UninitialisedRegister, missing.trailing_zeros(), sentence);
        }
        let value = self.predicates[test.slot as usize];
        Ok(mask & if test.negated { !value } else { value })
    }

    #[inline]
    pub fn put(&mut self, slot: Slot, values: &Lanes, mask: u32) {
        let register = &mut self.registers[slot as usize];
        if mask == u32::MAX {
            *register = *values;
        } else {
            for lane in lanes(mask) {
                register[lane as usize] = values[lane as usize];
            }
        }
        self.ready[slot as usize] |= mask;
    }

    #[inline]
    pub fn put_predicate(&mut self, slot: Slot, value: u32, mask: u32) {
        let predicate = &mut self.predicates[slot as usize];
        *predicate = *predicate & !mask | value & mask;
        self.predicates_ready[slot as usize] |= mask;
    }

    /// Sends the lanes of `taken` to `target`, the other active ones to the next instruction.
    pub fn branch(&mut self, taken: u32, target: u32) {
        let stay = self.active & !taken;
        if stay == 0 {
            self.pc = target;
            return;
        }
        if taken == 0 {
            self.pc += 1;
            return;
        }
        for lane in lanes(taken) {
            self.parked[lane as usize] = target;
        }
        self.active = stay;
        self.pc += 1;
        self.regroup();
    }

    /// These lanes are done; the others of the active ones go on behind.
    pub fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        self.active &= !mask;
        self.pc += 1;
        if self.active == 0 && self.live != 0 {
            self.regroup();
        }
    }

    /// Lanes with the lowest position run first.
    pub fn regroup(&mut self) {
        for lane in lanes(self.active) {
            self.parked[lane as usize] = self.pc;
        }
        let pc = lanes(self.live).map(|lane| self.parked[lane as usize]).min().unwrap_or(0);
        self.pc = pc;
        self.active = 0;
        self.merge = u32::MAX;
        for lane in lanes(self.live) {
            let at = self.parked[lane as usize];
            if at == pc {
                self.active |= 1 << lane;
            } else {
                self.merge = self.merge.min(at);
            }
        }
    }

    /// Sends each of the active lanes to its own target.
    pub fn scatter(&mut self, targets: &[u32; 32], mask: u32) {
        let stay = self.active & !mask;
        for lane in lanes(stay) {
            self.parked[lane as usize] = self.pc + 1;
        }
        for lane in lanes(mask) {
            self.parked[lane as usize] = targets[lane as usize];
        }
        self.active = 0;
        self.regroup();
    }

    /// Takes part in a synchronisation at this time, with what the others know.
    pub fn synchronise(&mut self, time: u32, known: &[u32; 32], warps: usize) {
        for (mine, &theirs) in self.known.iter_mut().zip(known) {
            *mine = theirs.max(*mine);
        }
        self.time = self.time.max(time);
        self.known[self.number as usize] = self.time;
        self.least = self.known[..warps].iter().copied().min().unwrap_or(0);
    }
}
