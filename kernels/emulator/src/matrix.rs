//! ldmatrix, stmatrix and mma: fragments to matrices and back, the products between.
//!
//! g = lane / 4, q = lane % 4. A of 16-bit elements: register 0 holds row g, columns 2q and 2q+1; 1 row g+8;
//! 2 and 3 the same rows, columns 8 further. Bytes: four columns a register, 16 further. B likewise by
//! columns of 8. Accumulators 0 and 1: row g, columns 2q and 2q+1; 2 and 3: row g+8.

use crate::bits::{Bits, Canonical};
use crate::block::{Block, witness};
use crate::execute::Machine;
use crate::fault::{Kind, Stop, stop};
use crate::float;
use crate::instruction::{Address, Factors, Op, Slot};
use crate::module::Kernel;
use crate::warp::Warp;

impl Machine<'_> {
    pub fn load_matrix(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        to: &[Slot],
        transposed: bool,
        mask: u32,
    ) -> Result<(), Stop> {
        let stamp = block.stamp(number);
        let crowded = block.crowded;
        let (warp, shared, seen) = block.split(number);
        whole(mask, "ldmatrix")?;
        let used = if to.len() == 4 { u32::MAX } else { (1 << (8 * to.len())) - 1 };
        warp.need(address.base, used, self.kernel)?;
        let witness = witness(stamp, warp, seen.as_ref(), crowded);
        let mut fragments = [[0; 32]; 4];
        for (n, fragment) in fragments.iter_mut().enumerate().take(to.len()) {
            let mut rows = [0u128; 8];
            let mut addresses = [0; 8];
            for (row, value) in rows.iter_mut().enumerate() {
                let lane = n * 8 + row;
                let at = warp.registers[address.base as usize][lane];
                addresses[row] = at.wrapping_add_signed(address.offset) & 0xffff_ffff;
                *value = shared.load(&witness, lane as u32, addresses[row], 16, false)?;
            }
            self.tally.shared(&addresses, 16);
            let element = |row: usize, column: usize| (rows[row] >> (16 * column)) as u64 & 0xffff;
            *fragment = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, lane % 4 * 2);
                match transposed {
                    false => element(row, column) | element(row, column + 1) << 16,
                    true => element(column, row) | element(column + 1, row) << 16,
                }
            });
        }
        // A destination may be the register of the addresses: written when all are read.
        for (&slot, fragment) in to.iter().zip(&fragments) {
            warp.put(slot, fragment, mask);
        }
        Ok(())
    }

    /// ldmatrix backwards. A row counts as written by the lane that gave its address.
    pub fn store_matrix(
        &mut self,
        block: &mut Block,
        number: usize,
        address: &Address,
        from: &[Slot],
        transposed: bool,
        mask: u32,
    ) -> Result<(), Stop> {
        let stamp = block.stamp(number);
        let crowded = block.crowded;
        let (warp, shared, seen) = block.split(number);
        whole(mask, "stmatrix")?;
        let used = if from.len() == 4 { u32::MAX } else { (1 << (8 * from.len())) - 1 };
        warp.need(address.base, used, self.kernel)?;
        let witness = witness(stamp, warp, seen.as_ref(), crowded);
        for (n, &slot) in from.iter().enumerate() {
            warp.need(slot, mask, self.kernel)?;
            let fragment = &warp.registers[slot as usize];
            let element = |row: usize, column: usize| {
                let (row, column) = if transposed { (column, row) } else { (row, column) };
                u128::from(fragment[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff)
            };
            let mut addresses = [0; 8];
            for (row, slot) in addresses.iter_mut().enumerate() {
                let lane = n * 8 + row;
                let at = warp.registers[address.base as usize][lane];
                *slot = at.wrapping_add_signed(address.offset) & 0xffff_ffff;
                let value = (0..8).fold(0, |all, column| all | element(row, column) << (16 * column));
                shared.store(&witness, lane as u32, *slot, (16, value), false)?;
            }
            self.tally.shared(&addresses, 16);
        }
        Ok(())
    }
}

/// These operations are of the whole warp.
fn whole(mask: u32, opcode: &str) -> Result<(), Stop> {
    if mask == u32::MAX {
        return Ok(());
    }
    let sentence = format!("{opcode} with the lanes {mask:#010x}: it wants the whole warp");
    stop(Kind::PartialWarp, mask.trailing_zeros(), sentence)
}

pub fn multiply(warp: &mut Warp, op: &Op, mask: u32, kernel: &Kernel) -> Result<(), Stop> {
    let Op::Mma { factors, half, d, a, b, c, saturate } = op else { return Ok(()) };
    whole(mask, "mma")?;
    for &slot in a.iter().chain(b).chain(c) {
        warp.need(slot, mask, kernel)?;
    }
    match *factors {
        Factors::Bytes { k, a: a_signed, b: b_signed } => {
            let rows = bytes::<16>(warp, a, a_signed);
            let columns = bytes::<8>(warp, b, b_signed);
            let mut out = [[0; 32]; 4];
            for (row, a) in rows.iter().enumerate() {
                for (column, b) in columns.iter().enumerate() {
                    let dot: i32 =
                        a[..k].iter().zip(&b[..k]).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    let (lane, n) = accumulator(row, column);
                    let sum = warp.registers[c[n] as usize][lane] as i32;
                    let sum = if *saturate { sum.saturating_add(dot) } else { sum.wrapping_add(dot) };
                    out[n][lane] = u64::from(sum as u32);
                }
            }
            for (&slot, out) in d.iter().zip(&out) {
                warp.put(slot, out, mask);
            }
        }
        Factors::F16 { k } | Factors::Bf16 { k } => {
            let wide = match factors {
                Factors::F16 { .. } => float::f16_to_f32,
                _ => float::bf16_to_f32,
            };
            let rows = halves::<16>(warp, a, wide);
            // B by rows of eight columns, which are summed side by side.
            let columns = halves::<8>(warp, b, wide);
            let b: [[f64; 8]; 16] = std::array::from_fn(|k| columns.map(|column| column[k]));
            let mut out = [[0; 32]; 4];
            for (row, a) in rows.iter().enumerate() {
                // Products are exact in f64; the sum rounds once at the end. Devices truncate in between, so
                // that only a tolerance compares.
                let mut dots = [0.0; 8];
                for (a, b) in a[..k].iter().zip(&b) {
                    for (dot, b) in dots.iter_mut().zip(b) {
                        *dot += a * b;
                    }
                }
                for (column, dot) in dots.into_iter().enumerate() {
                    let (lane, n) = accumulator(row, column);
                    if *half {
                        let by = 16 * (n as u32 % 2);
                        let old = (warp.registers[c[n / 2] as usize][lane] >> by) as u16;
                        let sum = float::f64_to_f16(f64::from(float::f16_to_f32(old)) + dot, float::RN);
                        out[n / 2][lane] |= u64::from(sum) << by;
                    } else {
                        let old = f32::of(warp.registers[c[n] as usize][lane]);
                        out[n][lane] = ((f64::from(old) + dot) as f32).canonical().bits();
                    }
                }
            }
            for (&slot, out) in d.iter().zip(&out) {
                warp.put(slot, out, mask);
            }
        }
    }
    Ok(())
}

/// The lane and the register that hold an element of C and D.
fn accumulator(row: usize, column: usize) -> (usize, usize) {
    (row % 8 * 4 + column / 2, row / 8 * 2 + column % 2)
}

/// The rows of A (N = 16) or the columns of B (N = 8), of bytes.
fn bytes<const N: usize>(warp: &Warp, slots: &[Slot], signed: bool) -> [[i16; 32]; N] {
    let mut out = [[0; 32]; N];
    let groups = N / 8;
    for (n, &slot) in slots.iter().enumerate() {
        let register = &warp.registers[slot as usize];
        for (lane, &word) in register.iter().enumerate() {
            let row = lane / 4 + n % groups * 8;
            let column = lane % 4 * 4 + n / groups * 16;
            for (byte, value) in (word as u32).to_le_bytes().into_iter().enumerate() {
                out[row][column + byte] = if signed { i16::from(value as i8) } else { i16::from(value) };
            }
        }
    }
    out
}

fn halves<const N: usize>(warp: &Warp, slots: &[Slot], wide: fn(u16) -> f32) -> [[f64; 16]; N] {
    let mut out = [[0.0; 16]; N];
    let groups = N / 8;
    for (n, &slot) in slots.iter().enumerate() {
        let register = &warp.registers[slot as usize];
        for (lane, &word) in register.iter().enumerate() {
            let row = lane / 4 + n % groups * 8;
            let column = lane % 4 * 2 + n / groups * 8;
            out[row][column] = f64::from(wide(word as u16));
            out[row][column + 1] = f64::from(wide((word >> 16) as u16));
        }
    }
    out
}
