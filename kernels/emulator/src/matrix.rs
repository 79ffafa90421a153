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
use crate::shared::Lanes;
use crate::warp::Warp;

/// Up to four matrices of 8 rows and 8 columns in shared memory, and the registers that hold their fragments.
#[derive(Clone, Debug)]
pub struct Matrices {
    /// Lane 8n + r has the address of row r of matrix n.
    pub address: Address,
    pub fragments: Box<[Slot]>,
    pub transposed: bool,
}

/// Where the two elements of a lane's fragment stand: (row, column).
fn pair(lane: usize, transposed: bool) -> [(usize, usize); 2] {
    let (row, column) = (lane / 4, lane % 4 * 2);
    [column, column + 1].map(|column| if transposed { (column, row) } else { (row, column) })
}

impl Machine<'_> {
    /// The address of each row; `used` are the lanes that give them.
    fn rows(&self, warp: &Warp, matrices: &Matrices, mask: u32, opcode: &str) -> Result<[[u64; 8]; 4], Stop> {
        whole(mask, opcode)?;
        let Matrices { address, fragments, .. } = matrices;
        warp.need(address.base, u32::MAX >> (32 - 8 * fragments.len()), self.kernel)?;
        let bases = &warp.registers[address.base as usize];
        let at = |lane: usize| bases[lane].wrapping_add_signed(address.offset) & 0xffff_ffff;
        Ok(std::array::from_fn(|n| std::array::from_fn(|row| at(n * 8 + row))))
    }

    pub fn load_matrices(
        &mut self,
        block: &mut Block,
        number: usize,
        matrices: &Matrices,
        mask: u32,
    ) -> Result<(), Stop> {
        let (stamp, crowded) = (block.stamp(number), block.crowded);
        let (warp, shared, seen) = block.split(number);
        let addresses = self.rows(warp, matrices, mask, "ldmatrix")?;
        let witness = witness(stamp, warp, seen.as_ref(), crowded);
        let mut fragments = [[0; 32]; 4];
        let count = matrices.fragments.len();
        for (n, (fragment, addresses)) in fragments.iter_mut().zip(&addresses).enumerate().take(count) {
            let mut rows = [[0u16; 8]; 8];
            for (row, values) in rows.iter_mut().enumerate() {
                let value =
                    shared.load(&witness, Lanes::one((n * 8 + row) as u32), addresses[row], 16, false)?;
                *values = std::array::from_fn(|column| (value >> (16 * column)) as u16);
            }
            self.tally.shared(addresses, 16, 0xff);
            let both = |lane: usize, transposed: bool| {
                let [low, high] = pair(lane, transposed).map(|(row, column)| u64::from(rows[row][column]));
                low | high << 16
            };
            *fragment = match matrices.transposed {
                true => std::array::from_fn(|lane| both(lane, true)),
                false => std::array::from_fn(|lane| both(lane, false)),
            };
        }
        // A destination may be the register of the addresses: written when all are read.
        for (&slot, fragment) in matrices.fragments.iter().zip(&fragments) {
            warp.put(slot, fragment, mask);
        }
        Ok(())
    }

    /// ldmatrix backwards. A row counts as written by the lane that gave its address.
    pub fn store_matrices(
        &mut self,
        block: &mut Block,
        number: usize,
        matrices: &Matrices,
        mask: u32,
    ) -> Result<(), Stop> {
        let (stamp, crowded) = (block.stamp(number), block.crowded);
        let (warp, shared, seen) = block.split(number);
        let addresses = self.rows(warp, matrices, mask, "stmatrix")?;
        let witness = witness(stamp, warp, seen.as_ref(), crowded);
        for (n, (&slot, addresses)) in matrices.fragments.iter().zip(&addresses).enumerate() {
            warp.need(slot, mask, self.kernel)?;
            let mut rows = [0u128; 8];
            for (lane, &both) in warp.registers[slot as usize].iter().enumerate() {
                for (half, (row, column)) in pair(lane, matrices.transposed).into_iter().enumerate() {
                    rows[row] |= u128::from(both >> (16 * half) & 0xffff) << (16 * column);
                }
            }
            for (row, &value) in rows.iter().enumerate() {
                shared.store(&witness, (n * 8 + row) as u32, addresses[row], (16, value), false)?;
            }
            self.tally.shared(addresses, 16, 0xff);
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

/// Without a tensor core to go by, mma of floats sums in f64 and rounds once.
pub fn multiply(
    warp: &mut Warp,
    op: &Op,
    mask: u32,
    kernel: &Kernel,
    tensor: Option<TensorCore>,
) -> Result<(), Stop> {
    let Op::Mma { factors, half, d, a, b, c, saturate } = op else { return Ok(()) };
    whole(mask, "mma")?;
    for &slot in a.iter().chain(b).chain(c) {
        warp.need(slot, mask, kernel)?;
    }
    match *factors {
        // Where k is 16, the other half of the columns is zeros.
        Factors::Bytes { a: a_signed, b: b_signed, .. } => {
            let rows = bytes::<16>(warp, a, a_signed);
            let columns = bytes::<8>(warp, b, b_signed);
            let mut out = [[0; 32]; 4];
            for (row, a) in rows.iter().enumerate() {
                for (column, dot) in products(a, &columns).into_iter().enumerate() {
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
            for (row, a) in rows.iter().enumerate() {
                let old: [f32; 8] = std::array::from_fn(|column| {
                    let (lane, n) = accumulator(row, column);
                    match half {
                        true => half_of(warp.registers[c[n / 2] as usize][lane], n),
                        false => f32::of(warp.registers[c[n] as usize][lane]),
                    }
                });
                let sums = match tensor {
                    None => exact(&a[..k], &columns, &old),
                    Some(core) => {
                        std::array::from_fn(|i| f64::from(core.sum(&a[..k], &columns[i][..k], old[i])))
                    }
                };
                for (column, sum) in sums.into_iter().enumerate() {
                    let (lane, n) = accumulator(row, column);
                    if *half {
                        out[n / 2][lane] |= u64::from(float::f64_to_f16(sum, float::RN)) << (16 * (n % 2));
                    } else {
                        out[n][lane] = (sum as f32).canonical().bits();
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

/// A row times eight columns. By itself it becomes multiplications of eight pairs each; amid other code, of single bytes.
#[inline(never)]
fn products(a: &[i16; 32], columns: &[[i16; 32]; 8]) -> [i32; 8] {
    columns.map(|b| a.iter().zip(&b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum())
}

/// Accumulator `n` of a lane where two halves share a register.
fn half_of(register: u64, n: usize) -> f32 {
    float::f16_to_f32((register >> (16 * (n % 2))) as u16)
}

/// A row times eight columns, plus what is there: products and sums in f64.
fn exact(a: &[f64], columns: &[[f64; 16]; 8], old: &[f32; 8]) -> [f64; 8] {
    let mut dots = [0.0; 8];
    for (k, a) in a.iter().enumerate() {
        // Eight columns side by side.
        for (dot, column) in dots.iter_mut().zip(columns) {
            *dot += a * column[k];
        }
    }
    std::array::from_fn(|column| f64::from(old[column]) + dots[column])
}

/// How a tensor core adds: a block of exact products and the sum so far, their significands aligned to the greatest exponent
/// among them and cut there; the new sum is cut to f32, toward zero. Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior
/// of NVIDIA tensor cores" (2021); Khattak, Mikaitis, "Accurate models of NVIDIA tensor cores" (2025).
#[derive(Clone, Copy, Debug)]
pub struct TensorCore {
    /// Products of a block.
    block: usize,
    /// Bits that are kept beyond the 24 of f32.
    extra: i32,
}

impl TensorCore {
    /// One of those that there are: as sm_70, sm_80 or sm_90 has it.
    pub fn of(seed: u64) -> TensorCore {
        let (block, extra) = [(4, 0), (8, 1), (16, 2)][(seed % 3) as usize];
        TensorCore { block, extra }
    }

    fn sum(self, a: &[f64], b: &[f64], old: f32) -> f32 {
        a.chunks(self.block).zip(b.chunks(self.block)).fold(old, |sum, (a, b)| self.add(a, b, sum))
    }

    fn add(self, a: &[f64], b: &[f64], old: f32) -> f32 {
        let products = || a.iter().zip(b).map(|(a, b)| a * b);
        let rounded = f64::from(old) + products().sum::<f64>();
        // A product of significands below 2 counts with the sum of their exponents, though it may be 2 or more.
        let exponents =
            a.iter().zip(b).filter(|(a, b)| **a * **b != 0.0).map(|(a, b)| exponent(*a) + exponent(*b));
        let old_exponent = (old != 0.0).then(|| exponent(old.into()));
        let Some(greatest) = exponents.chain(old_exponent).max().filter(|_| rounded.is_finite()) else {
            return rounded as f32;
        };
        let (by, back) = (self.extra + 23 - greatest, greatest - 23 - self.extra);
        let cut = |x: f64| (x * 2f64.powi(by)).trunc();
        // Whole numbers of at most 32 bits: their sum is exact.
        let sum = cut(old.into()) + products().map(cut).sum::<f64>();
        float::f64_to_f32(sum * 2f64.powi(back), float::RZ)
    }
}

/// Of a finite number that is not 0 (a subnormal f32 is a normal f64).
fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52 & 0x7ff) as i32 - 1023
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
        // Four lanes hold 16 bytes of a row on end.
        let (quads, _) = warp.registers[slot as usize].as_chunks::<4>();
        for (row, quad) in quads.iter().enumerate() {
            let mut bytes = [0; 16];
            for (four, &word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(quad) {
                *four = (word as u32).to_le_bytes();
            }
            let wide = match signed {
                true => bytes.map(|byte| i16::from(byte as i8)),
                false => bytes.map(i16::from),
            };
            out[row + n % groups * 8][n / groups * 16..][..16].copy_from_slice(&wide);
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
