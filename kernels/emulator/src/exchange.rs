//! Operations between the lanes of a warp: shfl, vote, match, redux, elect, and the check of their members.

use crate::alu::Lanes;
use crate::fault::{Kind, Stop, stop};
use crate::instruction::{Atomic, Op, Shuffle, Slot, Vote};
use crate::module::Kernel;
use crate::warp::{Warp, lanes};

/// The member mask of each lane, checked: it holds the lane and only lanes that are here.
pub fn members(warp: &Warp, slot: Slot, mask: u32) -> Result<[u32; 32], Stop> {
    let values = &warp.registers[slot as usize];
    let mut out = [0; 32];
    for lane in lanes(mask) {
        let members = values[lane as usize] as u32;
        if members & 1 << lane == 0 {
            let sentence = format!("member mask {members:#010x} lacks the lane itself");
            return stop(Kind::MemberMask, lane, sentence);
        }
        if members & !mask != 0 {
            let sentence = format!("member mask {members:#010x} where the active lanes are {mask:#010x}");
            return stop(Kind::MemberMask, lane, sentence);
        }
        out[lane as usize] = members;
    }
    Ok(out)
}

pub fn run(warp: &mut Warp, op: &Op, mask: u32, kernel: &Kernel) -> Result<(), Stop> {
    match op {
        Op::Shuffle { how, to, found, from, by, clamp, members: slot } => {
            for &slot in [from, by, clamp, slot] {
                warp.need(slot, mask, kernel)?;
            }
            let members = members(warp, *slot, mask)?;
            let [values, by, clamp] = [from, by, clamp].map(|&slot| &warp.registers[slot as usize]);
            let (mut out, mut inside) = ([0; 32], 0u32);
            for lane in lanes(mask) {
                let i = lane as usize;
                let (source, valid) = partner(*how, lane, by[i] as u32, clamp[i] as u32);
                if members[i] >> source & 1 == 0 {
                    let sentence = format!("reads lane {source}, which is no member of {:#010x}", members[i]);
                    return stop(Kind::MemberMask, lane, sentence);
                }
                out[i] = values[source as usize];
                inside |= u32::from(valid) << lane;
            }
            warp.put(*to, &out, mask);
            if let Some(found) = found {
                warp.put_predicate(*found, inside, mask);
            }
        }
        Op::Vote { how, to, of, members: slot } => {
            warp.need(*slot, mask, kernel)?;
            let holds = warp.test(*of, mask, kernel)?;
            let members = members(warp, *slot, mask)?;
            let mut out: Lanes = [0; 32];
            let mut result = 0;
            for lane in lanes(mask) {
                let all = members[lane as usize];
                let some = holds & all;
                out[lane as usize] = u64::from(some);
                let holds = match how {
                    Vote::All => some == all,
                    Vote::Any => some != 0,
                    Vote::Uni => some == 0 || some == all,
                    Vote::Ballot => false,
                };
                result |= u32::from(holds) << lane;
            }
            match how {
                Vote::Ballot => warp.put(*to, &out, mask),
                _ => warp.put_predicate(*to, result, mask),
            }
        }
        Op::Match { to, all, from, members: slot } => {
            warp.need(*slot, mask, kernel)?;
            warp.need(*from, mask, kernel)?;
            let members = members(warp, *slot, mask)?;
            let values = warp.registers[*from as usize];
            let mut out: Lanes = [0; 32];
            let mut result = 0;
            for lane in lanes(mask) {
                let mine = members[lane as usize];
                let same = lanes(mine)
                    .filter(|&other| values[other as usize] == values[lane as usize])
                    .fold(0u32, |all, other| all | 1 << other);
                result |= u32::from(same == mine) << lane;
                let shown = if all.is_some() && same != mine { 0 } else { same };
                out[lane as usize] = u64::from(shown);
            }
            warp.put(*to, &out, mask);
            if let Some(Some(found)) = all {
                warp.put_predicate(*found, result, mask);
            }
        }
        Op::Redux { how, signed, to, from, members: slot } => {
            warp.need(*slot, mask, kernel)?;
            warp.need(*from, mask, kernel)?;
            let members = members(warp, *slot, mask)?;
            let values = warp.registers[*from as usize];
            let mut out: Lanes = [0; 32];
            for lane in lanes(mask) {
                let all = lanes(members[lane as usize]).map(|other| values[other as usize] as u32);
                let value = match (how, signed) {
                    (Atomic::Add, _) => all.reduce(u32::wrapping_add),
                    (Atomic::And, _) => all.reduce(|a, b| a & b),
                    (Atomic::Or, _) => all.reduce(|a, b| a | b),
                    (Atomic::Xor, _) => all.reduce(|a, b| a ^ b),
                    (Atomic::Min, false) => all.min(),
                    (Atomic::Min, true) => all.min_by_key(|&value| value as i32),
                    (_, false) => all.max(),
                    (_, true) => all.max_by_key(|&value| value as i32),
                };
                out[lane as usize] = u64::from(value.unwrap_or(0));
            }
            warp.put(*to, &out, mask);
        }
        Op::Elect { to, leader, members: slot } => {
            warp.need(*slot, mask, kernel)?;
            let members = members(warp, *slot, mask)?;
            let mut out: Lanes = [0; 32];
            let mut result = 0;
            for lane in lanes(mask) {
                let first = members[lane as usize].trailing_zeros();
                out[lane as usize] = u64::from(first);
                result |= u32::from(first == lane) << lane;
            }
            if let Some(to) = to {
                warp.put(*to, &out, mask);
            }
            warp.put_predicate(*leader, result, mask);
        }
        _ => {}
    }
    Ok(())
}

/// The lane that shfl reads, and whether it lies in the segment: else it is the lane itself.
fn partner(how: Shuffle, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (by, segment, limit) = (by & 31, clamp >> 8 & 31, clamp & 31);
    let most = lane & segment | limit & !segment;
    let least = lane & segment;
    let (source, valid) = match how {
        Shuffle::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= most as i32),
        Shuffle::Down => (lane + by, lane + by <= most),
        Shuffle::Bfly => (lane ^ by, (lane ^ by) <= most),
        Shuffle::Idx => {
            let source = least | by & !segment;
            (source, source <= most)
        }
    };
    if valid { (source, true) } else { (lane, false) }
}
