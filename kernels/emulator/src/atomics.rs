//! Atomics and fences: what they compute and what they order.

use crate::access::{Place, actor, place};
use crate::bits::{Bits, F16, Float};
use crate::block::{Block, witness};
use crate::execute::Machine;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Atomic, Op};
use crate::shared::Lanes;
use crate::types::Type;
use crate::warp::lanes;

impl Machine<'_> {
    /// A later access of the warp must not pass for one before its release.
    pub fn advance(&self, block: &mut Block, number: usize) {
        block.warps[number].time = block.tick();
    }

    pub fn fence(&mut self, block: &mut Block, number: usize, wide: bool, mask: u32) {
        if !wide {
            return;
        }
        let stamp = block.stamp(number);
        let (warp, _, seen) = block.split(number);
        if let Some(seen) = seen {
            for lane in lanes(mask) {
                actor(stamp, warp, seen, lane).fence();
            }
        }
        self.advance(block, number);
    }

    pub fn atom(&mut self, block: &mut Block, number: usize, op: &Op, mask: u32) -> Result<(), Stop> {
        let Op::Atom { address, how, kind, to, from, order } = op else { return Ok(()) };
        let stamp = block.stamp(number);
        let crowded = block.crowded;
        let (warp, shared, seen) = block.split(number);
        warp.need(address.base, mask, self.kernel)?;
        for &slot in from {
            warp.need(slot, mask, self.kernel)?;
        }
        let size = kind.size();
        let mut addresses = [0; 32];
        let mut count = 0;
        let (mut written, mut globals) = ([(0, 0); 32], 0);
        let mut in_shared = false;
        let mut near = None;
        for lane in lanes(mask) {
            let base = warp.registers[address.base as usize][lane as usize];
            let [a, b] = from.map(|slot| warp.registers[slot as usize][lane as usize]);
            let update = |old: u64| apply(*how, *kind, old, a, b);
            let old = match place(address.space, base, address.offset) {
                Place::Shared(at) => {
                    in_shared = true;
                    (addresses[count], count) = (at, count + 1);
                    let witness = witness(stamp, warp, seen.as_ref(), crowded);
                    let old = shared.load(&witness, Lanes::one(lane), at, size, true)?;
                    shared.store(&witness, lane, at, (size, u128::from(update(old as u64))), true)?;
                    old as u64
                }
                Place::Local(_) => {
                    return stop(
                        Kind::OutOfBounds,
                        lane,
                        "an atomic operation in local memory, which has none",
                    );
                }
                Place::Global(at) => {
                    (addresses[count], count) = (at, count + 1);
                    (written[globals], globals) = ((lane, at), globals + 1);
                    match seen {
                        Some(seen) if order.wide => {
                            let mut actor = actor(stamp, warp, seen, lane);
                            actor.reads(&self.locations, at, order.acquire);
                            actor.writes(&mut self.locations, at, order.release, true);
                        }
                        Some(_) => self.locations.end(at),
                        None => {}
                    }
                    let witness = witness(stamp, warp, seen.as_ref(), crowded);
                    let old = self.fetch(&mut near, &witness, lane, at, size, *order)?;
                    let (buffer, offset) = self.writable(&mut near, &witness, lane, at, size, *order)?;
                    if size < 4 {
                        buffer.store(offset, size, u128::from(update(old as u64)));
                        old as u64
                    } else {
                        buffer.update(offset, size, update)
                    }
                }
            };
            if let Some(to) = to {
                warp.registers[*to as usize][lane as usize] = old;
            }
        }
        if let Some(to) = to {
            warp.ready[*to as usize] |= mask;
        }
        self.spares_sources(block, &written[..globals], size)?;
        if order.release {
            self.advance(block, number);
        }
        self.count(&addresses[..count], size, in_shared.then_some(mask));
        Ok(())
    }
}

/// The new value of an atomic operation.
fn apply(how: Atomic, kind: Type, old: u64, a: u64, b: u64) -> u64 {
    let signed = |value: u64| kind.extend(value) as i64;
    let value = match how {
        Atomic::Add => match kind {
            Type::F32 => (f32::of(old).plus(f32::of(a))).bits(),
            Type::F64 => (f64::of(old).plus(f64::of(a))).bits(),
            Type::F16 => F16::of(old).plus(F16::of(a)).bits(),
            Type::F16x2 => {
                let half = |by: u32| F16::of(old >> by & 0xffff).plus(F16::of(a >> by & 0xffff)).bits() << by;
                half(0) | half(16)
            }
            _ => old.wrapping_add(a),
        },
        Atomic::Min if kind.signed() => signed(old).min(signed(a)) as u64,
        Atomic::Max if kind.signed() => signed(old).max(signed(a)) as u64,
        Atomic::Min => old.min(a),
        Atomic::Max => old.max(a),
        Atomic::And => old & a,
        Atomic::Or => old | a,
        Atomic::Xor => old ^ a,
        Atomic::Exch => a,
        Atomic::Cas => {
            if old == a {
                b
            } else {
                old
            }
        }
        Atomic::Inc => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        Atomic::Dec => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    };
    value & kind.mask()
}
