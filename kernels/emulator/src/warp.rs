//! A warp: its registers, which lanes are where, what it knows of the others. Steps no instruction itself.

use crate::alu::Lanes;
use crate::divergence::Divergence;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Origin, Slot, Special, Test};
use crate::local::Local;
use crate::module::Kernel;
use crate::order::Thread;
use crate::shadow::LaneTimes;

/// Bytes on their way by cp.async.
pub struct Flight {
    pub lane: u32,
    /// How many groups its thread had committed when it was issued.
    pub group: u32,
    pub to: u64,
    pub size: u32,
    pub value: u128,
    /// Where it comes from, and how many bytes of it: nobody may write there before it lands.
    pub from: u64,
    pub taken: u32,
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
    /// Where the other lanes are.
    pub ways: Divergence,
    /// The barrier at which it waits.
    pub waits: Option<usize>,
    pub time: u32,
    pub known: [u32; 32],
    pub least: u32,
    /// What the lanes know of each other, after some of them synchronised and before all did.
    pub lanes: Option<Box<LaneTimes>>,
    /// The lanes that there are.
    born: u32,
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
    pub fn new(kernel: &Kernel, number: u32, position: &Position, independent: Option<u64>) -> Warp {
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
            ways: Divergence::new(independent.map(|seed| seed ^ u64::from(number) << 32)),
            waits: None,
            time: 0,
            known: [0; 32],
            least: 0,
            lanes: None,
            born: 0,
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
        self.born = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
        (self.live, self.active, self.lanes) = (self.born, self.born, None);
        self.ways.reset();
        (self.pc, self.carry, self.waits) = (0, 0, None);
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

    /// Takes part in a synchronisation at this time, with what the others know.
    pub fn synchronise(&mut self, time: u32, known: &[u32; 32], warps: usize) {
        for (mine, &theirs) in self.known.iter_mut().zip(known) {
            *mine = theirs.max(*mine);
        }
        self.time = self.time.max(time);
        self.known[self.number as usize] = self.time;
        self.least = self.known[..warps].iter().copied().min().unwrap_or(0);
        self.lanes = None;
    }

    /// Lanes of the warp synchronise at this time: each has seen what any of them had, and what they did.
    pub fn synchronise_lanes(&mut self, time: u32, mask: u32, warps: usize) {
        if self.waited & mask != 0 {
            self.waited |= mask;
        }
        if mask == self.born {
            return self.synchronise(time, &[0; 32], warps);
        }
        let before = self.known[self.number as usize];
        let times = self.lanes.get_or_insert_with(|| Box::new([[before; 32]; 32]));
        let seen = std::array::from_fn(|other| match mask >> other & 1 {
            1 => time,
            _ => lanes(mask).map(|lane| times[lane as usize][other]).max().unwrap_or(before),
        });
        lanes(mask).for_each(|lane| times[lane as usize] = seen);
        self.time = time;
    }
}
