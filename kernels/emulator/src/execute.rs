//! Steps a warp through its instructions: arithmetic and control here, the rest in `access`, `exchange`,
//! `matrix`.

use crate::block::Block;
use crate::counts::Tally;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{BarrierResult, Carry, Logic, Op, Slot, Test};
use crate::matrix::TensorCore;
use crate::memory::Memory;
use crate::module::Kernel;
use crate::order::Locations;
use crate::warp::{Warp, lanes};
use crate::{bitfield, exchange, matrix};

/// What the blocks of a launch share, as one thread of the emulator sees it.
pub struct Machine<'a> {
    pub kernel: &'a Kernel,
    pub memory: &'a Memory,
    pub parameters: &'a [u8],
    pub seed: u64,
    /// How mma of floats sums; none: with one rounding.
    pub tensor: Option<TensorCore>,
    /// Instructions that a warp may run.
    pub limit: u64,
    pub locations: Locations,
    pub tally: Tally,
}

impl Machine<'_> {
    /// Runs a warp until it waits, is done or has run so many instructions. On a fault the warp's `pc` names
    /// the instruction.
    pub fn run(&mut self, block: &mut Block, number: usize, steps: u64) -> Result<(), Stop> {
        let kernel = self.kernel;
        if block.warps[number].ways.is_apart() {
            block.warps[number].turn();
        }
        for _ in 0..steps {
            let warp = &mut block.warps[number];
            if warp.pc >= warp.ways.merge {
                warp.regroup();
            }
            let instruction = &kernel.code[warp.pc as usize];
            let mut mask = warp.active;
            if let Some(test) = instruction.guard {
                mask = warp.test(test, mask, kernel)?;
            }
            if warp.ways.is_apart()
                && let Some(members) = instruction.op.meets()
                && mask != 0
            {
                if let Some(slot) = members {
                    warp.need(slot, mask, kernel)?;
                }
                match warp.meet(mask, members) {
                    Some(together) => mask = together,
                    None => continue,
                }
            }
            self.tally.at = warp.pc;
            let executed = &mut self.tally.executed[warp.pc as usize];
            executed.warps += 1;
            executed.threads += u64::from(mask.count_ones());
            warp.executed += 1;
            if warp.executed > self.limit {
                let sentence = format!("the warp ran {} instructions and has no end", self.limit);
                return stop(Kind::Endless, warp.active.trailing_zeros(), sentence);
            }
            match &instruction.op {
                Op::Branch { target, uniform } => {
                    if *uniform && mask != 0 && mask != warp.active {
                        let sentence = "bra.uni, but not all active lanes go the same way";
                        return stop(Kind::NotUniform, mask.trailing_zeros(), sentence);
                    }
                    warp.branch(mask, *target);
                    continue;
                }
                Op::BranchIndex { index, targets } => {
                    self.branch_index(warp, *index, targets, mask)?;
                    continue;
                }
                Op::Exit => {
                    if exit(warp, mask)? {
                        block.left();
                        return Ok(());
                    }
                    continue;
                }
                _ if mask == 0 => {}
                Op::Barrier { id, count, waits, result } => {
                    self.barrier(block, number, (*id, *count), *waits, *result, mask)?;
                    let warp = &mut block.warps[number];
                    warp.pc += 1;
                    if warp.waits.is_some() {
                        return Ok(());
                    }
                    continue;
                }
                op => self.step(block, number, op, mask)?,
            }
            block.warps[number].pc += 1;
        }
        Ok(())
    }

    fn step(&mut self, block: &mut Block, number: usize, op: &Op, mask: u32) -> Result<(), Stop> {
        let kernel = self.kernel;
        let warp = &mut block.warps[number];
        match op {
            Op::Alu { function, to, from } => {
                for &slot in from {
                    warp.need(slot, mask, kernel)?;
                }
                let [a, b, c] = from.map(|slot| &warp.registers[slot as usize]);
                let mut out = [0; 32];
                function(a, b, c, self.seed, &mut out);
                warp.put(*to, &out, mask);
            }
            Op::Convert { how, to, mask: width, from } => {
                for &slot in from {
                    warp.need(slot, mask, kernel)?;
                }
                let [a, b] = from.map(|slot| &warp.registers[slot as usize]);
                let mut out = [0; 32];
                how.run(a, b, &mut out);
                out.iter_mut().for_each(|value| *value &= width);
                warp.put(*to, &out, mask);
            }
            Op::Lop3 { to, from, table } => {
                for &slot in from {
                    warp.need(slot, mask, kernel)?;
                }
                let [a, b, c] = from.map(|slot| &warp.registers[slot as usize]);
                let out = bitfield::lop3(a, b, c, *table);
                warp.put(*to, &out, mask);
            }
            Op::Insert { to, from, width } => {
                for &slot in from {
                    warp.need(slot, mask, kernel)?;
                }
                let [a, b, c, d] = from.map(|slot| &warp.registers[slot as usize]);
                let out = std::array::from_fn(|i| bitfield::insert(a[i], b[i], c[i], d[i], *width));
                warp.put(*to, &out, mask);
            }
            Op::Carry { .. } => self.carry(warp, op, mask)?,
            Op::Setp { compare, packed, to, also, from, with } => {
                let holds = self.compared(warp, *compare, from, mask)?;
                let with = self.combiner(warp, *with, mask)?;
                warp.put_predicate(*to, with(holds), mask);
                if let Some(also) = also {
                    let holds = match packed {
                        false => !holds & mask,
                        true => {
                            let [a, b] =
                                from.map(|slot| warp.registers[slot as usize].map(|both| both >> 16));
                            compare(&a, &b) & mask
                        }
                    };
                    warp.put_predicate(*also, with(holds), mask);
                }
            }
            Op::Set { compare, to, from, with, yes } => {
                let holds = self.compared(warp, *compare, from, mask)?;
                let holds = self.combiner(warp, *with, mask)?(holds);
                let out = std::array::from_fn(|i| if holds >> i & 1 == 1 { *yes } else { 0 });
                warp.put(*to, &out, mask);
            }
            Op::Testp { test, to, from } => {
                warp.need(*from, mask, kernel)?;
                let values = &warp.registers[*from as usize];
                let holds = lanes(mask)
                    .filter(|&lane| test(values[lane as usize]))
                    .fold(0, |all, lane| all | 1 << lane);
                warp.put_predicate(*to, holds, mask);
            }
            Op::Select { to, from, test } => {
                // What is not selected may be unwritten: nothing of it is seen.
                let first = warp.test(*test, mask, kernel)?;
                warp.need(from[0], first, kernel)?;
                warp.need(from[1], mask & !first, kernel)?;
                let [a, b] = from.map(|slot| &warp.registers[slot as usize]);
                let out = std::array::from_fn(|i| if first >> i & 1 == 1 { a[i] } else { b[i] });
                warp.put(*to, &out, mask);
            }
            Op::SelectSign { to, from, sign, float } => {
                for slot in [from[0], from[1], *sign] {
                    warp.need(slot, mask, kernel)?;
                }
                let [a, b, c] = [from[0], from[1], *sign].map(|slot| &warp.registers[slot as usize]);
                let first = |bits: u64| match float {
                    true => f32::from_bits(bits as u32) >= 0.0,
                    false => bits as i32 >= 0,
                };
                let out = std::array::from_fn(|i| if first(c[i]) { a[i] } else { b[i] });
                warp.put(*to, &out, mask);
            }
            Op::PredLogic { how, to, from } => {
                let (a, b) = (warp.test(from[0], mask, kernel)?, warp.test(from[1], mask, kernel)?);
                warp.put_predicate(*to, combine(*how, a, b), mask);
            }
            Op::PredMove { to, from } => {
                let value = warp.test(*from, mask, kernel)?;
                warp.put_predicate(*to, value, mask);
            }
            Op::Pack { to, from, bits } => {
                for &slot in from {
                    warp.need(slot, mask, kernel)?;
                }
                let mut out = [0; 32];
                for (n, &slot) in from.iter().enumerate() {
                    let part = &warp.registers[slot as usize];
                    for i in 0..32 {
                        out[i] |= part[i] << (n as u32 * bits);
                    }
                }
                warp.put(*to, &out, mask);
            }
            Op::Unpack { to, from, bits } => {
                warp.need(*from, mask, kernel)?;
                let all = warp.registers[*from as usize];
                for (n, slot) in to.iter().enumerate() {
                    let Some(slot) = slot else { continue };
                    let out = all.map(|value| value >> (n as u32 * bits) & ((1 << bits) - 1));
                    warp.put(*slot, &out, mask);
                }
            }
            Op::Load { address, kind, to, order } => {
                self.load(block, number, address, *kind, to, *order, mask)?
            }
            Op::Store { address, kind, from, order } => {
                self.store(block, number, address, *kind, from, *order, mask)?;
            }
            Op::Atom { .. } => self.atom(block, number, op, mask)?,
            Op::Copy { to, from, bytes, taken } => {
                self.copy(block, number, (to, from), *bytes, *taken, mask)?;
            }
            Op::CopyCommit => lanes(mask).for_each(|lane| warp.groups[lane as usize] += 1),
            Op::CopyWait(left) => self.copy_wait(block, number, *left, mask)?,
            Op::WarpBarrier { members } => {
                warp.need(*members, mask, kernel)?;
                let members = exchange::members(warp, *members, mask)?;
                // Lanes with like masks synchronise: mostly all of them.
                let mut left = mask;
                while left != 0 {
                    let together = members[left.trailing_zeros() as usize];
                    block.synchronise_lanes(number, together);
                    left &= !together;
                }
            }
            Op::Fence { wide } => self.fence(block, number, *wide, mask),
            Op::Shuffle { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } | Op::Elect { .. } => {
                exchange::run(warp, op, mask, kernel)?;
            }
            Op::ActiveMask { to } => warp.put(*to, &[u64::from(mask); 32], mask),
            Op::Mma { .. } => matrix::multiply(warp, op, mask, kernel, self.tensor)?,
            Op::LoadMatrices(matrices) => self.load_matrices(block, number, matrices, mask)?,
            Op::StoreMatrices(matrices) => self.store_matrices(block, number, matrices, mask)?,
            Op::Trap => return stop(Kind::Trap, mask.trailing_zeros(), "executes trap"),
            Op::GridWait => warp.waited |= mask,
            Op::GridLaunch => {
                if mask & !warp.waited != 0 {
                    self.memory.launched_early();
                }
            }
            Op::Nothing => {}
            Op::Policy { to } => warp.put(*to, &[0; 32], mask),
            Op::Branch { .. } | Op::BranchIndex { .. } | Op::Exit | Op::Barrier { .. } => {}
        }
        Ok(())
    }

    fn compared(
        &self,
        warp: &Warp,
        compare: crate::instruction::Compare,
        from: &[Slot; 2],
        mask: u32,
    ) -> Result<u32, Stop> {
        for &slot in from {
            warp.need(slot, mask, self.kernel)?;
        }
        Ok(compare(&warp.registers[from[0] as usize], &warp.registers[from[1] as usize]) & mask)
    }

    fn combiner(
        &self,
        warp: &Warp,
        with: Option<(Logic, Test)>,
        mask: u32,
    ) -> Result<impl Fn(u32) -> u32 + use<>, Stop> {
        let with = match with {
            None => None,
            Some((logic, test)) => Some((logic, warp.test(test, mask, self.kernel)?)),
        };
        Ok(move |holds| match with {
            None => holds,
            Some((logic, other)) => combine(logic, holds, other),
        })
    }

    fn carry(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<(), Stop> {
        let Op::Carry { how, kind, to, from, takes, gives } = op else { return Ok(()) };
        for &slot in from {
            warp.need(slot, mask, self.kernel)?;
        }
        let bits = kind.bits();
        let (mut out, mut carries) = ([0; 32], 0u32);
        for (i, out) in out.iter_mut().enumerate() {
            let [a, b, c] = from.map(|slot| u128::from(warp.registers[slot as usize][i] & kind.mask()));
            let carried = u128::from(*takes && warp.carry >> i & 1 == 1);
            let high = || {
                let signed = |value: u128| i128::from(kind.extend(value as u64) as i64);
                let product = if kind.signed() { (signed(a) * signed(b)) as u128 } else { a * b };
                product >> bits & u128::from(kind.mask())
            };
            let sum = match how {
                Carry::Add => a + b + carried,
                // The carry of a subtraction is its borrow.
                Carry::Sub => a.wrapping_sub(b).wrapping_sub(carried),
                Carry::MadLo => ((a * b) & u128::from(kind.mask())) + c + carried,
                Carry::MadHi => high() + c + carried,
            };
            *out = sum as u64 & kind.mask();
            carries |= u32::from(sum >> bits & 1 == 1) << i;
        }
        warp.put(*to, &out, mask);
        if *gives {
            warp.carry = warp.carry & !mask | carries & mask;
        }
        Ok(())
    }

    fn branch_index(&self, warp: &mut Warp, index: Slot, targets: &[u32], mask: u32) -> Result<(), Stop> {
        warp.need(index, mask, self.kernel)?;
        let mut to = [0; 32];
        for lane in lanes(mask) {
            let index = warp.registers[index as usize][lane as usize];
            let Some(&target) = targets.get(index as usize) else {
                return stop(
                    Kind::OutOfBounds,
                    lane,
                    format!("branches to entry {index} of {}", targets.len()),
                );
            };
            to[lane as usize] = target;
        }
        warp.scatter(&to, mask);
        Ok(())
    }

    fn barrier(
        &mut self,
        block: &mut Block,
        number: usize,
        (id, count): (Slot, Option<Slot>),
        waits: bool,
        result: BarrierResult,
        mask: u32,
    ) -> Result<(), Stop> {
        let warp = &block.warps[number];
        if mask != warp.live {
            let away = warp.live & !mask;
            let sentence = format!("lanes {away:#010x} of the warp do not reach the barrier with the others");
            return stop(Kind::BarrierDivergence, mask.trailing_zeros(), sentence);
        }
        let one = |slot: Slot| -> Result<u64, Stop> {
            warp.need(slot, mask, self.kernel)?;
            Ok(warp.registers[slot as usize][mask.trailing_zeros() as usize])
        };
        let id = one(id)?;
        let count = match count {
            Some(count) => Some(one(count)?),
            None => None,
        };
        let holds = match result {
            BarrierResult::None => 0,
            BarrierResult::Count { of, .. }
            | BarrierResult::All { of, .. }
            | BarrierResult::Any { of, .. } => warp.test(of, mask, self.kernel)?,
        };
        block.arrive(number, id, count, waits, (result, holds))
    }
}

fn combine(how: Logic, a: u32, b: u32) -> u32 {
    match how {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// Ends these lanes. Is the whole warp done?
fn exit(warp: &mut Warp, mask: u32) -> Result<bool, Stop> {
    if let Some(flight) = warp.flights.iter().find(|flight| mask >> flight.lane & 1 == 1) {
        return stop(Kind::CopyPending, flight.lane, "exits with a cp.async in flight");
    }
    warp.exit(mask);
    Ok(warp.done())
}
