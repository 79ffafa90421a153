//! Norms, quantisation of activations, and matrix-vector products, bit for bit.
//!
//! Owns: plain Rust that takes the kernels' steps in the kernels' order, as their heads say it. Never: a tolerance.

use super::{Bed, Checked, Found, Seeded, same};
use crate::backend::cuda::repack::{Layout, PAIR, TILE};
use crate::backend::cuda::{Argument, Buffer, Error, Kernel, Stream};
use crate::model::quant::{Quant, f16_to_f32};

/// Values of a block.
const BLOCK: usize = 32;

// --- norm_quantize ---

const NORM: &str = "norm_quantize";
/// Its threads, and the values that they take at a time and in all.
const NORM_BLOCK: u32 = 256;
const TURN: usize = 1024;
const CHUNK: usize = 8 * TURN;
const EPSILON: f32 = 1e-5;

/// Tokens, dim, and whether there is a gain.
const NORM_CASES: [(usize, usize, bool); 5] =
    [(1, 576, true), (3, 192, true), (2, 32, false), (2, 1536, true), (1, 8224, false)];

/// What the kernel makes of a row.
struct Row {
    quants: Vec<u8>, // [padded]
    scales: Vec<u8>, // {f32 d, s32 sum} [padded / 32]
    halves: Vec<u8>, // bf16 [padded]
}

/// The kernel's steps.
fn norm_row(x: &[f32], gain: Option<&[f32]>) -> Row {
    let norm = gain.map(|_| {
        let mut squares = [0f32; NORM_BLOCK as usize]; // [thread]
        for (at, x) in x.iter().enumerate() {
            let square = &mut squares[at % TURN / 4];
            *square = x.mul_add(*x, *square);
        }
        for distance in [16, 8, 4, 2, 1] {
            squares = std::array::from_fn(|thread| squares[thread] + squares[thread ^ distance]);
        }
        let sum = squares.chunks(32).map(|warp| warp[0]).reduce(|sum, warp| sum + warp).unwrap_or(0.0);
        1.0 / (sum / x.len() as f32 + EPSILON).sqrt()
    });
    let value = |at: usize| match (norm, gain) {
        (Some(norm), Some(gain)) => x[at] * norm * gain[at],
        _ => x[at],
    };
    let padded = x.len().next_multiple_of(PAIR);
    let mut row = Row { quants: Vec::new(), scales: Vec::new(), halves: Vec::new() };
    for first in (0..padded).step_by(BLOCK) {
        let values: [f32; BLOCK] =
            std::array::from_fn(|at| if first + at < x.len() { value(first + at) } else { 0.0 });
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let (scale, inverse) = if largest > 1e-30 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
        let quants = values.map(|value| (value * inverse).clamp(-127.0, 127.0).round_ties_even() as i8);
        let sum: i32 = quants.iter().map(|quant| i32::from(*quant)).sum();
        row.quants.extend(quants.map(|quant| quant as u8));
        row.scales.extend([scale.to_bits().to_le_bytes(), sum.to_le_bytes()].concat());
        row.halves.extend(values.iter().flat_map(|value| to_bf16(*value).to_le_bytes()));
    }
    row
}

/// To the nearest, ties to even; of finite numbers.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub(super) fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub(super) fn norm_quantize(bed: &mut Bed) -> Checked {
    let kernel = bed.kernel(NORM)?;
    let mut digest = blake3::Hasher::new();
    for (case, (tokens, dim, norms)) in NORM_CASES.into_iter().enumerate() {
        let mut seeded = Seeded::new(case as u64);
        let x: Vec<f32> = (0..tokens * dim).map(|_| seeded.unit() * 3.0).collect();
        let gain: Vec<f32> = (0..dim).map(|_| 1.0 + seeded.unit() / 2.0).collect();
        let rows = x.chunks(dim).map(|x| norm_row(x, norms.then_some(&gain)));
        let want = rows.reduce(|mut all, row| {
            all.quants.extend(row.quants);
            all.scales.extend(row.scales);
            all.halves.extend(row.halves);
            all
        });
        let Some(want) = want else { continue };
        let (x, gain) = (bed.with(&floats(&x))?, bed.with(&floats(&gain))?);
        let xq = bed.blank(want.quants.len())?;
        let xs = bed.blank(want.scales.len())?;
        let xb = bed.blank(want.halves.len())?;
        let gain = if norms { Argument::Buffer(&gain) } else { Argument::Address(0) };
        let arguments = [
            Argument::Buffer(&x),
            gain,
            Argument::Buffer(&xq),
            Argument::Buffer(&xs),
            Argument::Buffer(&xb),
            Argument::U32(dim as u32),
            Argument::F32(EPSILON),
        ];
        let grid = [tokens as u32, dim.div_ceil(CHUNK) as u32, 1];
        // SAFETY: the buffers are as large as the kernel's head says, and live until `bytes` has waited.
        unsafe { bed.stream.launch(kernel, grid, [NORM_BLOCK, 1, 1], 0, &arguments)? };
        for (name, got, want) in [("xq", xq, want.quants), ("xs", xs, want.scales), ("xb", xb, want.halves)] {
            let got = bed.bytes(&got)?;
            digest.update(&got);
            if let Err(wrong) = same(&format!("{name} of {tokens} rows of {dim}"), &got, &want) {
                return Ok(Err(wrong));
            }
        }
    }
    Ok(Ok(Found { digest: Some(digest.finalize().to_hex().to_string()), ..Found::right(NORM_CASES.len()) }))
}

// --- matrix-vector products ---

/// Kernels and the formats that they read.
pub(super) const VECTOR_PRODUCTS: [(&str, Quant); 3] =
    [("gemv_q4_0", Quant::Q4_0), ("gemv_q4_1", Quant::Q4_1), ("gemv_q8_0", Quant::Q8_0)];

const PRODUCT_BLOCK: u32 = 128;
/// Bytes of dynamic shared memory for each token.
const PRODUCT_SHARED: u32 = 5248;
/// Columns of the matrix that is timed.
const TIMED_COLUMNS: usize = 4096;

/// A matrix-vector product's size.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    columns: usize,
    tokens: usize,
    /// Whether the product is added to what is there.
    adds: bool,
}

const PRODUCT_CASES: [Size; 5] = [
    Size { rows: 192, columns: 576, tokens: 1, adds: false },
    Size { rows: 576, columns: 192, tokens: 8, adds: true },
    Size { rows: 16, columns: 32, tokens: 3, adds: false },
    Size { rows: 5, columns: 1536, tokens: 5, adds: true },
    Size { rows: 33, columns: 2144, tokens: 2, adds: false },
];

/// Blocks of a format, as a file has them: any quants, scales about 2^-7, of either sign.
fn blocks(quant: Quant, rows: usize, columns: usize, seeded: &mut Seeded) -> Vec<u8> {
    let mut bytes = seeded.bytes(rows * quant.row_bytes(columns));
    let heads = if quant == Quant::Q4_1 { 2 } else { 1 };
    for block in bytes.chunks_mut(quant.row_bytes(BLOCK)) {
        let (scales, quants) = block.split_at_mut(2 * heads);
        for scale in scales.chunks_mut(2) {
            scale[1] = scale[1] & 0x83 | 0x20; // the exponent
        }
        if quant == Quant::Q8_0 {
            quants.iter_mut().filter(|quant| **quant == 0x80).for_each(|quant| *quant = 0);
        }
    }
    bytes
}

/// One row times one vector in the kernel's order.
fn product(quant: Quant, row: &[u8], vector: &Row) -> f32 {
    let pairs = vector.quants.len() / PAIR;
    let run = pairs.div_ceil(4).max(1);
    let width = quant.row_bytes(BLOCK);
    let half = |bytes: &[u8]| f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
    let four = |at: usize| -> [u8; 4] { std::array::from_fn(|i| vector.scales[at + i]) };
    let mut sums = [0f32; 4];
    for (at, x) in vector.quants.chunks(BLOCK).enumerate() {
        let sum = &mut sums[at / 2 / run];
        let (xd, xsum) = (f32::from_le_bytes(four(8 * at)), i32::from_le_bytes(four(8 * at + 4)));
        // A row of an odd number of blocks is filled up with one of zeros.
        let Some(block) = row.get(at * width..(at + 1) * width) else {
            *sum = (0.0 * xd).mul_add(0.0, *sum);
            continue;
        };
        let weight = |i: usize| match quant {
            Quant::Q8_0 => i32::from(block[2 + i] as i8),
            Quant::Q4_1 => i32::from(block[4 + i % 16] >> (4 * (i / 16)) & 15),
            _ => i32::from(block[2 + i % 16] >> (4 * (i / 16)) & 15) - 8,
        };
        let exact: i32 = x.iter().enumerate().map(|(i, x)| weight(i) * i32::from(*x as i8)).sum();
        *sum = (half(block) * xd).mul_add(exact as f32, *sum);
        if quant == Quant::Q4_1 {
            *sum = half(&block[2..]).mul_add(xd * xsum as f32, *sum);
        }
    }
    sums[0] + sums[1] + sums[2] + sums[3]
}

/// The matrix on the device.
fn packed(
    bed: &mut Bed,
    quant: Quant,
    file: &[u8],
    [rows, columns]: [usize; 2],
) -> Result<[Buffer; 2], Error> {
    let layout = Layout::new(quant, rows, columns)
        .ok_or_else(|| Error::Launch { kernel: quant.to_string(), why: format!("{columns} columns") })?;
    let (mut quants, mut scales) = (vec![0; layout.quant_bytes()], vec![0; layout.scale_bytes()]);
    layout.pack(file, &mut quants, &mut scales);
    Ok([bed.with(&quants)?, bed.with(&scales)?])
}

/// Puts a product into the stream.
///
/// # Safety
/// The buffers are as large as the kernel's head says for this size, and live until it is done.
unsafe fn product_later(
    stream: &Stream,
    kernel: &Kernel,
    [quants, scales, xq, xs, y]: [&Buffer; 5],
    size: Size,
) -> Result<(), Error> {
    let arguments = [
        Argument::Buffer(quants),
        Argument::Buffer(scales),
        Argument::Buffer(xq),
        Argument::Buffer(xs),
        Argument::Buffer(y),
        Argument::U32(size.rows as u32),
        Argument::U32(size.columns.div_ceil(PAIR) as u32),
        Argument::U32(size.tokens as u32),
        Argument::U32(size.adds.into()),
    ];
    let grid = [size.rows.div_ceil(TILE) as u32, 1, 1];
    let shared = PRODUCT_SHARED * size.tokens as u32;
    // SAFETY: the caller's.
    unsafe { stream.launch(kernel, grid, [PRODUCT_BLOCK, 1, 1], shared, &arguments) }
}

pub(super) fn vector_product(bed: &mut Bed, name: &str, quant: Quant) -> Checked {
    let kernel = bed.kernel(name)?;
    let mut digest = blake3::Hasher::new();
    for (case, size) in PRODUCT_CASES.into_iter().enumerate() {
        let Size { rows, columns, tokens, adds } = size;
        let mut seeded = Seeded::new(case as u64);
        let file = blocks(quant, rows, columns, &mut seeded);
        let x: Vec<f32> = (0..tokens * columns).map(|_| seeded.unit()).collect();
        let vectors: Vec<Row> = x.chunks(columns).map(|x| norm_row(x, None)).collect();
        let old: Vec<f32> = (0..tokens * rows).map(|_| seeded.unit()).collect();
        let mut want = old.clone();
        for (y, vector) in want.chunks_mut(rows).zip(&vectors) {
            for (y, row) in y.iter_mut().zip(file.chunks(quant.row_bytes(columns))) {
                let product = product(quant, row, vector);
                *y = if adds { *y + product } else { product };
            }
        }
        let all = |part: fn(&Row) -> &[u8]| vectors.iter().flat_map(part).copied().collect::<Vec<u8>>();
        let [quants, scales] = packed(bed, quant, &file, [rows, columns])?;
        let (xq, xs) = (bed.with(&all(|row| &row.quants))?, bed.with(&all(|row| &row.scales))?);
        let y = bed.with(&floats(&old))?;
        // SAFETY: made for this size above; they live until `bytes` has waited.
        unsafe { product_later(&bed.stream, kernel, [&quants, &scales, &xq, &xs, &y], size)? };
        let got = bed.bytes(&y)?;
        digest.update(&got);
        if let Err(wrong) = same(&format!("{tokens} vectors times {rows} x {columns}"), &got, &floats(&want))
        {
            return Ok(Err(wrong));
        }
    }
    let rate = Some(rate(bed, kernel, quant)?);
    let digest = Some(digest.finalize().to_hex().to_string());
    Ok(Ok(Found { digest, rate, ..Found::right(PRODUCT_CASES.len()) }))
}

/// Bytes of weights per second for one token.
fn rate(bed: &mut Bed, kernel: &Kernel, quant: Quant) -> Result<f64, Error> {
    let bytes = bed.rate_bytes();
    let rows = (bytes / quant.row_bytes(TIMED_COLUMNS)).next_multiple_of(TILE);
    let size = Size { rows, columns: TIMED_COLUMNS, tokens: 1, adds: false };
    let vector = norm_row(&[0.5; TIMED_COLUMNS], None);
    let row = blocks(quant, 1, TIMED_COLUMNS, &mut Seeded::new(0));
    let [quants, scales] = packed(bed, quant, &row.repeat(rows), [rows, TIMED_COLUMNS])?;
    let (xq, xs, y) = (bed.with(&vector.quants)?, bed.with(&vector.scales)?, bed.blank(4 * rows)?);
    // SAFETY: made for this size above; they live until the last wait.
    let took =
        bed.time(|stream| unsafe { product_later(stream, kernel, [&quants, &scales, &xq, &xs, &y], size) })?;
    Ok((rows * quant.row_bytes(TIMED_COLUMNS)) as f64 / took.as_secs_f64())
}
