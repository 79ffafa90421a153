//! Matrix products: one vector, a few, many; those of quantised formats bit for bit, of bf16 and f16 within their roundings.
//!
//! Owns: plain Rust that takes the kernels' steps in the kernels' order, as their heads say it, and which kernel is
//! launched how.

use super::norms::{BLOCK, Row, floats, norm_row};
use super::{Bed, Checked, Found, Launched, Seeded, same};
use crate::backend::cuda::module::number;
use crate::backend::cuda::repack::{PAIR, TILE};
use crate::backend::cuda::{Argument, Buffer, Error, Kernel};
use crate::model::quant::{Quant, f16_to_f32, group_scales};

/// A kernel, the format that it reads, and what a CTA of it makes of the product.
pub(super) struct Product {
    pub kernel: &'static str,
    pub(super) quant: Quant,
    cta: Cta,
}

/// Its rows, tokens (none: all of them) and threads.
#[derive(Clone, Copy)]
struct Cta {
    rows: usize,
    tokens: Option<usize>,
    threads: u32,
}

const VECTOR: Cta = Cta { rows: TILE, tokens: None, threads: 128 };
const WIDE: Cta = Cta { rows: 128, tokens: Some(64), threads: 256 };
const WIDER: Cta = Cta { rows: 128, tokens: Some(128), threads: 256 };
const NARROW: Cta = Cta { rows: 64, tokens: Some(FEW_TOKENS), threads: 64 };
const FEW_TOKENS: usize = 32;

const fn product(kernel: &'static str, quant: Quant, cta: Cta) -> Product {
    Product { kernel, quant, cta }
}

pub(super) const PRODUCTS: [Product; 30] = [
    product("gemv_q4_0", Quant::Q4_0, VECTOR),
    product("gemv_q4_1", Quant::Q4_1, VECTOR),
    product("gemv_q5_0", Quant::Q5_0, VECTOR),
    product("gemv_q5_1", Quant::Q5_1, VECTOR),
    product("gemv_q8_0", Quant::Q8_0, VECTOR),
    product("gemv_q4_k", Quant::Q4_K, VECTOR),
    product("gemv_q5_k", Quant::Q5_K, VECTOR),
    product("gemv_q6_k", Quant::Q6_K, VECTOR),
    product("gemv_f16", Quant::F16, VECTOR),
    product("gemv_bf16", Quant::BF16, VECTOR),
    product("gemm_q4_0", Quant::Q4_0, WIDE),
    product("gemm_q4_0_narrow", Quant::Q4_0, NARROW),
    product("gemm_q4_1", Quant::Q4_1, WIDE),
    product("gemm_q4_1_narrow", Quant::Q4_1, NARROW),
    product("gemm_q5_0", Quant::Q5_0, WIDE),
    product("gemm_q5_0_narrow", Quant::Q5_0, NARROW),
    product("gemm_q5_1", Quant::Q5_1, WIDE),
    product("gemm_q5_1_narrow", Quant::Q5_1, NARROW),
    product("gemm_q8_0", Quant::Q8_0, WIDE),
    product("gemm_q8_0_narrow", Quant::Q8_0, NARROW),
    product("gemm_q4_k", Quant::Q4_K, WIDE),
    product("gemm_q4_k_narrow", Quant::Q4_K, NARROW),
    product("gemm_q5_k", Quant::Q5_K, WIDE),
    product("gemm_q5_k_narrow", Quant::Q5_K, NARROW),
    product("gemm_q6_k", Quant::Q6_K, WIDE),
    product("gemm_q6_k_narrow", Quant::Q6_K, NARROW),
    product("gemm_f16", Quant::F16, WIDER),
    product("gemm_f16_narrow", Quant::F16, NARROW),
    product("gemm_bf16", Quant::BF16, WIDER),
    product("gemm_bf16_narrow", Quant::BF16, NARROW),
];

/// Bytes of dynamic shared memory that a matrix-vector product takes for each token: quantised, and of floats.
const VECTOR_SHARED: u32 = 5248;
const VECTOR_SHARED_OF_FLOATS: u32 = 4224;
/// Columns of the matrix that is timed.
const TIMED_COLUMNS: usize = 4096;
/// How far the numbers of two devices may lie apart in products of bf16 and f16, as a root mean square: up to 134 additions of a
/// tensor core, each of which may cut off a unit of f32's last place or two, one after the other, with as much again to spare.
pub(super) const APART: f64 = 1.0 / (1 << 13) as f64;
/// Tokens that a wide product is timed with; fewer where the device's memory is not that of a GPU.
const TIMED_TOKENS: usize = 512;

/// A product's size.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    columns: usize,
    tokens: usize,
    /// Whether the product is added to what is there.
    adds: bool,
}

const fn size(rows: usize, columns: usize, tokens: usize, adds: bool) -> Size {
    Size { rows, columns, tokens, adds }
}

/// Up to eight tokens, for any kernel: widths of a model, one row, ragged rows, columns of half a pair, of one pair (three runs
/// are empty), of an odd number of blocks (608, 4640), of runs of unequal length (1088).
const FEW: [Size; 9] = [
    size(192, 576, 1, false),
    size(576, 192, 8, true),
    size(16, 32, 3, false),
    size(5, 1536, 5, true),
    size(33, 2144, 2, false),
    size(9, 608, 7, true),
    size(1, 1088, 2, false),
    size(5, 4640, 4, true),
    size(40, 64, 6, false),
];
/// More than a tile's worth, and one token more.
const MANY: [Size; 4] =
    [size(150, 576, 70, true), size(129, 64, 33, false), size(20, 96, 65, true), size(16, 1088, 130, false)];

impl Product {
    fn sizes(&self) -> impl Iterator<Item = Size> {
        let whole =
            |size: Size| Size { columns: size.columns.next_multiple_of(self.quant.block_len()), ..size };
        FEW.into_iter().chain(MANY.into_iter().filter(|_| self.cta.tokens.is_some())).map(whole)
    }

    /// With how many tokens its time is taken: the fewest and the most, or a tile of them.
    pub fn timed_tokens(&self) -> &'static [usize] {
        match self.cta.tokens {
            None => &[1, 8],
            Some(FEW_TOKENS) => &[FEW_TOKENS],
            Some(_) => &[TIMED_TOKENS],
        }
    }

    /// Puts a product into the stream: of weights, scales, vectors, their scales and the result the addresses.
    ///
    /// # Safety
    /// The buffers are as large as the kernel's head says for this size, and live until it is done.
    unsafe fn later(&self, bed: &Bed, kernel: &Kernel, buffers: &On, size: Size) -> Result<(), Error> {
        let [weights, scales, x, xs, y] =
            [&buffers.weights, &buffers.scales, &buffers.x, &buffers.xs, &buffers.y];
        let mut arguments: Vec<Argument> = match is_float(self.quant) {
            true => [weights, x, y].map(Argument::Buffer).into(),
            false => [weights, scales, x, xs, y].map(Argument::Buffer).into(),
        };
        let pairs = size.columns.div_ceil(PAIR);
        arguments.extend([size.rows, pairs, size.tokens, size.adds.into()].map(number));
        let ctas = size.rows.div_ceil(self.cta.rows) as u32;
        let shared = if is_float(self.quant) { VECTOR_SHARED_OF_FLOATS } else { VECTOR_SHARED };
        let (grid, shared) = match self.cta.tokens {
            None => ([ctas, 1, 1], shared * size.tokens as u32),
            Some(tokens) => ([size.tokens.div_ceil(tokens) as u32, ctas, 1], 0),
        };
        // SAFETY: the caller's.
        unsafe { bed.stream.launch(kernel, grid, [self.cta.threads, 1, 1], shared, &arguments) }
    }
}

/// A product's operands on the device.
struct On {
    weights: Buffer,
    scales: Buffer,
    x: Buffer,
    xs: Buffer,
    y: Buffer,
}

impl On {
    fn new(
        bed: &mut Bed,
        quant: Quant,
        file: &[u8],
        size: Size,
        vectors: &[Row],
        y: &[f32],
    ) -> Result<On, Error> {
        let [weights, scales] = bed.packed(quant, size.rows, size.columns, file)?;
        let all = |part: fn(&Row) -> &[u8]| vectors.iter().flat_map(part).copied().collect::<Vec<u8>>();
        let x = match quant {
            Quant::BF16 => all(|row| &row.halves),
            Quant::F16 => all(|row| &row.halves).as_chunks().0.iter().flat_map(|x| to_f16(*x)).collect(),
            _ => all(|row| &row.quants),
        };
        Ok(On {
            weights,
            scales,
            x: bed.with(&x)?,
            xs: bed.with(&all(|row| &row.scales))?,
            y: bed.with(&floats(y))?,
        })
    }
}

pub(super) fn is_float(quant: Quant) -> bool {
    matches!(quant, Quant::F16 | Quant::BF16)
}

/// A bf16 below 2^16 as f16: exact from 2^-14 on, else 0.
fn to_f16(bf16: [u8; 2]) -> [u8; 2] {
    let bits = u16::from_le_bytes(bf16);
    let exponent = (bits >> 7 & 0xff).saturating_sub(127 - 15);
    let magnitude = if exponent > 0 { exponent << 10 | (bits & 0x7f) << 3 } else { 0 };
    (bits & 0x8000 | magnitude).to_le_bytes()
}

fn half(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Blocks of a format, as a file has them: any quants; scales and values of size 2^-7 or so, of either sign.
pub(super) fn blocks(quant: Quant, rows: usize, columns: usize, seeded: &mut Seeded) -> Vec<u8> {
    let mut bytes = seeded.bytes(rows * quant.row_bytes(columns));
    if quant == Quant::BF16 {
        bytes.chunks_mut(2).for_each(|value| value[1] = value[1] & 0x80 | 0x3c);
        return bytes;
    }
    for block in bytes.chunks_mut(quant.block_bytes()) {
        let halves: &[usize] = match quant {
            Quant::Q4_1 | Quant::Q5_1 | Quant::Q4_K | Quant::Q5_K => &[0, 2],
            Quant::Q6_K => &[208],
            _ => &[0],
        };
        for at in halves {
            block[at + 1] = block[at + 1] & 0x83 | 0x20; // the exponent
        }
        if quant == Quant::Q8_0 {
            block[2..].iter_mut().filter(|quant| **quant == 0x80).for_each(|quant| *quant = 0);
        }
    }
    bytes
}

/// 32 weights: scale, minimum, and the integers that the scale is multiplied with (of Q6_K times those of the halves).
struct Block {
    d: f32,
    minimum: Option<f32>,
    integers: Vec<i32>,
}

/// The blocks of a row. Their integers are what the row stands for when its scales are 1.
fn blocks_of(quant: Quant, row: &[u8]) -> Vec<Block> {
    const ONE: [u8; 2] = 0x3c00u16.to_le_bytes();
    let mut values = vec![0.0; quant.block_len()];
    let mut blocks = Vec::new();
    for bytes in row.chunks(quant.block_bytes()) {
        let mut ones = bytes.to_vec();
        let mut six = ([1; 8], [0; 8]);
        let (d, minimum) = match quant {
            Quant::Q4_K | Quant::Q5_K => {
                six = group_scales(&std::array::from_fn(|i| bytes[4 + i]));
                ones[..16].copy_from_slice(&[ONE[0], ONE[1], 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
                (half(bytes), Some(-half(&bytes[2..])))
            }
            Quant::Q6_K => {
                ones[208..].copy_from_slice(&ONE);
                (half(&bytes[208..]), None)
            }
            Quant::Q4_1 | Quant::Q5_1 => {
                six.1 = [1; 8];
                ones[..4].copy_from_slice(&[ONE[0], ONE[1], 0, 0]);
                (half(bytes), Some(half(&bytes[2..])))
            }
            _ => {
                ones[..2].copy_from_slice(&ONE);
                (half(bytes), None)
            }
        };
        quant.dequantize(&ones, &mut values);
        for (at, values) in values.chunks(BLOCK).enumerate() {
            blocks.push(Block {
                d: d * f32::from(six.0[at]),
                minimum: minimum.map(|minimum| minimum * f32::from(six.1[at])),
                integers: values.iter().map(|value| *value as i32).collect(),
            });
        }
    }
    blocks
}

/// One row times one vector in the kernels' order.
fn in_order(quant: Quant, row: &[Block], vector: &Row) -> f32 {
    let unit = quant.block_len().max(PAIR) / BLOCK;
    let run = row.len().div_ceil(unit).div_ceil(4).max(1) * unit;
    let four = |at: usize| -> [u8; 4] { std::array::from_fn(|i| vector.scales[at + i]) };
    let mut sums = [0f32; 4];
    for (at, (block, x)) in row.iter().zip(vector.quants.chunks(BLOCK)).enumerate() {
        let sum = &mut sums[at / run];
        let (xd, xsum) = (f32::from_le_bytes(four(8 * at)), i32::from_le_bytes(four(8 * at + 4)));
        let exact: i32 = block.integers.iter().zip(x).map(|(weight, x)| weight * i32::from(*x as i8)).sum();
        *sum = (block.d * xd).mul_add(exact as f32, *sum);
        if let Some(minimum) = block.minimum {
            *sum = minimum.mul_add(xd * xsum as f32, *sum);
        }
    }
    sums[0] + sums[1] + sums[2] + sums[3]
}

/// One row of floats times one vector, and how far f32 sums may be off: each of the additions rounds (or cuts off) a unit in
/// the last place of no more than the sum of all magnitudes.
fn in_f64(quant: Quant, row: &[u8], vector: &Row) -> (f64, f64) {
    let bf16 = |bytes: [u8; 2]| f64::from(f32::from_le_bytes([0, 0, bytes[0], bytes[1]]));
    let (row, vector) = (row.as_chunks().0.iter(), vector.halves.as_chunks().0.iter());
    let products = row.zip(vector).map(|(w, x)| match quant {
        Quant::F16 => f64::from(half(w)) * f64::from(half(&to_f16(*x))),
        _ => bf16(*w) * bf16(*x),
    });
    let (mut sum, mut size, mut count) = (0.0, 0.0, 0.0);
    for product in products {
        (sum, size, count) = (sum + product, size + product.abs(), count + 1.0);
    }
    (sum, size * count * 2f64.powi(-23))
}

/// Whether the results of a case are what they should be; what was there before is `old`.
fn judge(
    quant: Quant,
    file: &[u8],
    size: Size,
    vectors: &[Row],
    old: &[f32],
    got: &[u8],
) -> Result<(), String> {
    let what = format!("{} vectors times {} x {}", size.tokens, size.rows, size.columns);
    let rows = file.chunks(quant.row_bytes(size.columns));
    let base = |old: f32| if size.adds { old } else { 0.0 };
    if !is_float(quant) {
        let rows: Vec<Vec<Block>> = rows.map(|row| blocks_of(quant, row)).collect();
        let pairs = vectors.iter().flat_map(|vector| rows.iter().map(move |row| (row, vector)));
        let one = |((row, vector), old): ((&Vec<Block>, _), &f32)| {
            let product = in_order(quant, row, vector);
            if size.adds { old + product } else { product }
        };
        return same(&what, got, &floats(&pairs.zip(old).map(one).collect::<Vec<_>>()));
    }
    let pairs = vectors.iter().flat_map(|vector| rows.clone().map(move |row| (row, vector)));
    for (at, (((row, vector), old), got)) in pairs.zip(old).zip(got.as_chunks::<4>().0).enumerate() {
        let (sum, slack) = in_f64(quant, row, vector);
        let (got, want) = (f64::from(f32::from_le_bytes(*got)), sum + f64::from(base(*old)));
        // The last addition rounds too; NaN is off by more than anything.
        let close = (got - want).abs() <= slack + want.abs() * 2f64.powi(-23);
        if !close {
            return Err(format!("{what}: number {at} is {got}, not {want} within {slack:e}"));
        }
    }
    Ok(())
}

pub(super) fn check(bed: &mut Bed, product: &Product) -> Checked {
    let kernel = bed.kernel(product.kernel)?;
    let quant = product.quant;
    let mut launches = Vec::new();
    for (case, size) in product.sizes().enumerate() {
        let mut seeded = Seeded::new(case as u64);
        let file = blocks(quant, size.rows, size.columns, &mut seeded);
        let x: Vec<f32> = (0..size.tokens * size.columns).map(|_| seeded.unit()).collect();
        let vectors: Vec<Row> = x.chunks(size.columns).map(|x| norm_row(x, None)).collect();
        let old: Vec<f32> = (0..size.tokens * size.rows).map(|_| seeded.unit()).collect();
        let on = On::new(bed, quant, &file, size, &vectors, &old)?;
        // SAFETY: made for this size; it lives until `bytes` has waited.
        unsafe { product.later(bed, kernel, &on, size)? };
        let got = bed.bytes(&on.y)?;
        if let Err(wrong) = judge(quant, &file, size, &vectors, &old, &got) {
            return Ok(Err(wrong));
        }
        let Size { rows, columns, tokens, adds } = size;
        let added = if adds { ", added" } else { "" };
        let name = format!("{}, {tokens} tokens times {rows} x {columns}{added}", product.kernel);
        // How a tensor core sums floats up is its own: no two generations need agree.
        launches.push(match is_float(quant) {
            true => Launched::near(name, case as u64, &got, APART),
            false => Launched::exact(name, case as u64, &got),
        });
    }
    Ok(Ok(Found::launches(launches)))
}

/// Bytes of weights, vectors and results per second, unless so many tokens share the weights that these are not what takes the
/// time; of products of matrices operations per second.
pub(super) fn rate(bed: &mut Bed, product: &Product, tokens: usize) -> Checked {
    let kernel = bed.kernel(product.kernel)?;
    let row_bytes = product.quant.row_bytes(TIMED_COLUMNS);
    let shared = tokens > FEW_TOKENS;
    let tokens = tokens.min(bed.rate_bytes() >> 15);
    let rows = (bed.rate_bytes() / if shared { 8 } else { 1 } / row_bytes).next_multiple_of(TILE);
    let size = size(rows, TIMED_COLUMNS, tokens, false);
    let vectors: Vec<Row> = (0..tokens).map(|_| norm_row(&[0.5; TIMED_COLUMNS], None)).collect();
    let tile = blocks(product.quant, TILE, TIMED_COLUMNS, &mut Seeded::new(0));
    let on = On::new(bed, product.quant, &tile, size, &vectors, &vec![0.0; rows * tokens])?;
    // SAFETY: made for this size; it lives until the last wait.
    let took = bed.time(&|| unsafe { product.later(bed, kernel, &on, size) })?.as_secs_f64();
    let bytes = [&on.weights, &on.scales, &on.x, &on.xs, &on.y].map(Buffer::size).iter().sum::<usize>();
    let operations = 2.0 * (rows * TIMED_COLUMNS * tokens) as f64 / took;
    let operations = product.cta.tokens.map(|_| operations);
    let rate = (!shared).then_some(bytes as f64 / took);
    Ok(Ok(Found { rate, operations, ..Found::default() }))
}
