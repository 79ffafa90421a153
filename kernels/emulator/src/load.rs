//! Loads of a warp: what each lane reads, with every check, then where it goes. Stores are `access`'s.

use crate::access::{Place, actor, place};
use crate::block::{Block, witness};
use crate::counts::Distinct;
use crate::execute::Machine;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Address, Order, Slot};
use crate::module::CONST_BASE;
use crate::shared::Lanes;
use crate::types::{Space, Type};
use crate::warp::{Warp, lanes};

/// What each lane reads, in words.
type Values = [[u32; 4]; 32];

fn words(value: u128) -> [u32; 4] {
    std::array::from_fn(|n| (value >> (32 * n)) as u32)
}

impl Machine<'_> {
    #[allow(clippy::too_many_arguments)]
    pub fn load(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        kind: Type,
        to: &[Option<(Slot, u64)>],
        order: Order,
        mask: u32,
    ) -> Result<(), Stop> {
        let warp = &block.warps[number];
        warp.need(address.base, mask, self.kernel)?;
        let size = kind.size() * to.len() as u32;
        let values = match address.space {
            Space::Param => table(warp, address, size, mask, (self.parameters, 0, "parameters"))?,
            Space::Const => {
                table(warp, address, size, mask, (&self.kernel.constants, CONST_BASE, "constants"))?
            }
            Space::Shared => self.load_shared(block, number, address, size, order, mask)?,
            _ => match self.load_together(block, number, address, size, order, mask)? {
                Some(values) => values,
                None => self.load_each(block, number, address, size, order, mask)?,
            },
        };
        spread(&mut block.warps[number], kind, to, &values, mask);
        Ok(())
    }

    fn load_shared(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        size: u32,
        order: Order,
        mask: u32,
    ) -> Result<Values, Stop> {
        let (stamp, crowded) = (block.stamp(number), block.crowded);
        let (warp, shared, seen) = block.split(number);
        let witness = witness(stamp, warp, seen.as_ref(), crowded);
        let base = &warp.registers[address.base as usize];
        let (mut addresses, mut count) = ([0; 32], 0);
        // Lanes that read the same bytes read them together.
        let (mut distinct, mut which, mut readers) = (Distinct::default(), [0; 32], [0u32; 32]);
        for lane in lanes(mask) {
            let at = base[lane as usize].wrapping_add_signed(address.offset) & 0xffff_ffff;
            (addresses[count], count) = (at, count + 1);
            let n = distinct.insert(at);
            which[lane as usize] = n;
            readers[n] |= 1 << lane;
        }
        let mut read = [[0; 4]; 32];
        for (n, &at) in distinct.numbers().iter().enumerate() {
            read[n] = words(shared.load(&witness, Lanes(readers[n]), at, size, order.strong)?);
        }
        self.tally.shared(&addresses[..count], size, mask);
        Ok(which.map(|n| read[n]))
    }

    /// The common case of a global load: every lane's bytes are aligned, in one buffer, all of it written, by no launch that
    /// may still run. What is not so is looked at lane by lane.
    fn load_together(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        size: u32,
        order: Order,
        mask: u32,
    ) -> Result<Option<Values>, Stop> {
        if address.space != Space::Global || order.strong || size < 4 {
            return Ok(None);
        }
        let (stamp, crowded) = (block.stamp(number), block.crowded);
        let (warp, _, seen) = block.split(number);
        let at = warp.registers[address.base as usize].map(|base| base.wrapping_add_signed(address.offset));
        let first = at[mask.trailing_zeros() as usize];
        let Ok((buffer, _)) = self.memory.find(first, u64::from(size)) else { return Ok(None) };
        let offsets = at.map(|at| at.wrapping_sub(buffer.base));
        let most = buffer.size - u64::from(size);
        let fits = |offset: u64| offset <= most && offset & u64::from(size - 1) == 0;
        let fitting = (0..32).fold(0, |all, i| all | u32::from(fits(offsets[i])) << i);
        if !buffer.is_full() || mask & !fitting != 0 || buffer.pending && mask & !warp.waited != 0 {
            return Ok(None);
        }
        if !buffer.read_only {
            let witness = witness(stamp, warp, seen.as_ref(), crowded);
            for lane in lanes(mask) {
                let range = (offsets[lane as usize], size);
                if let Err(clash) = buffer.note_read(&witness, lane, range, false, order.constant) {
                    return self.clash(&clash, lane, buffer, range.0, "reads");
                }
            }
        }
        let mut values = [[0; 4]; 32];
        for lane in lanes(mask) {
            buffer.copy_words(offsets[lane as usize], &mut values[lane as usize][..size as usize / 4]);
        }
        self.tally.global(lanes(mask).map(|lane| at[lane as usize]), size);
        Ok(Some(values))
    }

    /// Lane by lane, wherever a generic address leads.
    fn load_each(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        size: u32,
        order: Order,
        mask: u32,
    ) -> Result<Values, Stop> {
        let (stamp, crowded) = (block.stamp(number), block.crowded);
        let (warp, shared, seen) = block.split(number);
        let mut values = [[0; 4]; 32];
        let (mut addresses, mut count) = ([0; 32], 0);
        let mut in_shared = false;
        let mut near = None;
        for lane in lanes(mask) {
            let base = warp.registers[address.base as usize][lane as usize];
            let value = match place(address.space, base, address.offset) {
                Place::Shared(at) => {
                    in_shared = true;
                    (addresses[count], count) = (at, count + 1);
                    let witness = witness(stamp, warp, seen.as_ref(), crowded);
                    shared.load(&witness, Lanes::one(lane), at, size, order.strong)?
                }
                Place::Local(at) => warp.local.load(lane, at, size)?,
                Place::Global(at) => {
                    (addresses[count], count) = (at, count + 1);
                    if order.wide
                        && let Some(seen) = seen
                    {
                        actor(stamp, warp, seen, lane).reads(&self.locations, at, order.acquire);
                    }
                    let witness = witness(stamp, warp, seen.as_ref(), crowded);
                    self.fetch(&mut near, &witness, lane, at, size, order)?
                }
            };
            values[lane as usize] = words(value);
        }
        self.count(&addresses[..count], size, in_shared.then_some(mask));
        Ok(values)
    }
}

/// From the parameters or the constant bank, whose first byte has the address `from`. Mostly all lanes read the same.
fn table(
    warp: &Warp,
    address: &Address,
    size: u32,
    mask: u32,
    (bytes, from, what): (&[u8], u64, &str),
) -> Result<Values, Stop> {
    let mut values = [[0; 4]; 32];
    let mut before = None;
    for lane in lanes(mask) {
        let base = warp.registers[address.base as usize][lane as usize];
        let at = base.wrapping_add_signed(address.offset).wrapping_sub(from);
        let value = match before {
            Some((same, value)) if same == at => value,
            _ => words(entry(bytes, at, size, lane, what)?),
        };
        (values[lane as usize], before) = (value, Some((at, value)));
    }
    Ok(values)
}

fn entry(bytes: &[u8], at: u64, size: u32, lane: u32, what: &str) -> Result<u128, Stop> {
    if !at.is_multiple_of(u64::from(size)) {
        return stop(Kind::Misaligned, lane, format!("reads {size} bytes of the {what} at byte {at}"));
    }
    let end = at.checked_add(u64::from(size)).filter(|&end| end <= bytes.len() as u64);
    let Some(end) = end else {
        let sentence = format!("reads {size} bytes of the {what} at byte {at} of {}", bytes.len());
        return stop(Kind::OutOfBounds, lane, sentence);
    };
    let mut all = [0; 16];
    all[..size as usize].copy_from_slice(&bytes[at as usize..end as usize]);
    Ok(u128::from_le_bytes(all))
}

/// The parts of what each lane read, one after the other, go to registers, extended to their width.
fn spread(warp: &mut Warp, kind: Type, to: &[Option<(Slot, u64)>], values: &Values, mask: u32) {
    for (n, slot) in to.iter().enumerate() {
        let Some((slot, width)) = *slot else { continue };
        let out = match kind.size() {
            4 if kind.signed() => values.map(|value| i64::from(value[n] as i32) as u64 & width),
            4 => values.map(|value| u64::from(value[n]) & width),
            8 => values.map(|value| u64::from(value[2 * n]) | u64::from(value[2 * n + 1]) << 32),
            size => {
                let (word, by) = (n * size as usize / 4, n as u32 * kind.bits() % 32);
                values.map(|value| kind.extend(u64::from(value[word] >> by)) & width)
            }
        };
        warp.put(slot, &out, mask);
    }
}
