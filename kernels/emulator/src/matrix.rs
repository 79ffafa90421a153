//! mma: fragments to matrices and back, the products between.
//!
//! g = lane / 4, q = lane % 4. A of 16-bit elements: register 0 holds row g, columns 2q and 2q+1; 1 row g+8;
//! 2 and 3 the same rows, columns 8 further. Bytes: four columns a register, 16 further. B likewise by columns
//! of 8. Accumulators 0 and 1: row g, columns 2q and 2q+1; 2 and 3: row g+8.

use crate::access::whole;
use crate::bits::{Bits, Canonical};
use crate::fault::Stop;
use crate::float;
use crate::instruction::{Factors, Op, Slot};
use crate::module::Kernel;
use crate::warp::Warp;

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
            for row in 0..16 {
                for column in 0..8 {
                    let dot: i32 = rows[row][..k]
                        .iter()
                        .zip(&columns[column][..k])
                        .map(|(&a, &b)| i32::from(a) * i32::from(b))
                        .sum();
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
            let columns = halves::<8>(warp, b, wide);
            let mut out = [[0; 32]; 4];
            for row in 0..16 {
                for column in 0..8 {
                    // Products are exact in f64; the sum rounds once at the end. Devices truncate in between, so that
                    // only a tolerance compares.
                    let dot: f64 = (0..k).map(|k| rows[row][k] * columns[column][k]).sum();
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
