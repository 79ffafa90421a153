//! Where the lanes of a warp are: how they part at a branch, which of them run, where they meet again.
//!
//! Together, the ones with the lowest position run first and meet whoever stands there already: what a device mostly
//! does. Independent, lanes that parted meet again only where the PTX ISA promises it, at operations that are `.sync`, and
//! the seed says which go first. Knows no instruction.

use crate::instruction::Slot;
use crate::warp::{Warp, lanes};

/// Lanes that run together, later.
struct Group {
    pc: u32,
    lanes: u32,
    /// For others, at an operation that is `.sync`.
    waits: bool,
}

pub struct Divergence {
    /// Where the lanes are that do not run, and the least of it, if lanes meet by themselves.
    parked: [u32; 32],
    pub merge: u32,
    pub independent: bool,
    /// The groups that do not run, if they do not.
    apart: Vec<Group>,
    random: u64,
}

impl Divergence {
    /// All lanes together, at the start. `seed` is for independent ones.
    pub fn new(independent: Option<u64>) -> Divergence {
        Divergence {
            parked: [0; 32],
            merge: u32::MAX,
            independent: independent.is_some(),
            apart: Vec::new(),
            random: independent.unwrap_or(0),
        }
    }

    pub fn reset(&mut self) {
        self.merge = u32::MAX;
        self.apart.clear();
    }

    /// Do some lanes wait their turn apart from those that run?
    pub fn is_apart(&self) -> bool {
        !self.apart.is_empty()
    }

    fn below(&mut self, most: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.random) * most as u128) >> 64) as usize
    }
}

impl Warp {
    /// Sends the lanes of `taken` to `target`, the other active ones to the next instruction.
    pub fn branch(&mut self, taken: u32, target: u32) {
        let stay = self.active & !taken;
        if stay == 0 {
            self.pc = target;
            return;
        }
        self.pc += 1;
        if taken == 0 {
            return;
        }
        self.active = stay;
        if self.ways.independent {
            self.ways.apart.push(Group { pc: target, lanes: taken, waits: false });
            return self.turn();
        }
        for lane in lanes(taken) {
            self.ways.parked[lane as usize] = target;
        }
        self.regroup();
    }

    /// Sends each of the active lanes to its own target.
    pub fn scatter(&mut self, targets: &[u32; 32], mask: u32) {
        if self.ways.independent {
            let mut left = mask;
            while left != 0 {
                let pc = targets[left.trailing_zeros() as usize];
                let all = lanes(left)
                    .filter(|&lane| targets[lane as usize] == pc)
                    .fold(0, |all, lane| all | 1 << lane);
                self.ways.apart.push(Group { pc, lanes: all, waits: false });
                left &= !all;
            }
            self.active &= !mask;
            self.pc += 1;
            return self.turn();
        }
        let stay = self.active & !mask;
        for lane in lanes(stay) {
            self.ways.parked[lane as usize] = self.pc + 1;
        }
        for lane in lanes(mask) {
            self.ways.parked[lane as usize] = targets[lane as usize];
        }
        self.active = 0;
        self.regroup();
    }

    /// These lanes are done; the others of the active ones go on behind.
    pub fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        self.active &= !mask;
        self.pc += 1;
        if self.active == 0 && self.live != 0 {
            if self.ways.independent { self.turn() } else { self.regroup() }
        }
    }

    /// Lanes with the lowest position run first.
    pub fn regroup(&mut self) {
        for lane in lanes(self.active) {
            self.ways.parked[lane as usize] = self.pc;
        }
        let pc = lanes(self.live).map(|lane| self.ways.parked[lane as usize]).min().unwrap_or(0);
        self.pc = pc;
        self.active = 0;
        self.ways.merge = u32::MAX;
        for lane in lanes(self.live) {
            let at = self.ways.parked[lane as usize];
            if at == pc {
                self.active |= 1 << lane;
            } else {
                self.ways.merge = self.ways.merge.min(at);
            }
        }
    }

    /// Independent lanes: any group that can go on is the next to run.
    pub fn turn(&mut self) {
        if self.active != 0 {
            self.ways.apart.push(Group { pc: self.pc, lanes: self.active, waits: false });
        }
        if self.ways.apart.iter().all(|group| group.waits) {
            // Those for whom they wait are gone: each looks once more who is there.
            self.ways.apart.iter_mut().for_each(|group| group.waits = false);
        }
        let ready = self.ways.apart.iter().filter(|group| !group.waits).count();
        let chosen = self.ways.below(ready);
        let at = self.ways.apart.iter().enumerate().filter(|(_, group)| !group.waits).nth(chosen);
        if let Some((at, _)) = at {
            let group = self.ways.apart.swap_remove(at);
            (self.pc, self.active) = (group.pc, group.lanes);
        }
    }

    /// The lanes of `mask` come to an operation that is `.sync`, of the `members` that a register names or of the whole warp.
    /// Who waits there already joins them: all who execute it. None: somebody is still on the way, and another group runs.
    pub fn meet(&mut self, mask: u32, members: Option<Slot>) -> Option<u32> {
        let pc = self.pc;
        let wanted = match members {
            Some(slot) => {
                lanes(mask).fold(0, |all, lane| all | self.registers[slot as usize][lane as usize] as u32)
            }
            None => self.live,
        };
        let waiting = |group: &Group| if group.waits && group.pc == pc { group.lanes & wanted } else { 0 };
        let here = self.ways.apart.iter().fold(mask, |all, group| all | waiting(group));
        if wanted & !here == 0 {
            for group in &mut self.ways.apart {
                group.lanes &= !waiting(group);
            }
            self.ways.apart.retain(|group| group.lanes != 0);
            self.active |= here;
            return Some(here);
        }
        if self.ways.apart.iter().all(|group| group.waits) {
            // Nobody else can come: the operation's own check says who is missing.
            return Some(mask);
        }
        self.ways.apart.push(Group { pc, lanes: mask, waits: true });
        self.active &= !mask;
        self.pc += 1; // for those that pass by
        if self.active == 0 {
            self.turn();
        }
        None
    }
}
