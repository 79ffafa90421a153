//! Norms and the quantisation of activations, bit for bit.
//!
//! Owns: plain Rust that takes the kernel's steps in the kernel's order, as its head says it. Never: a tolerance.

use super::{Bed, Checked, Found, Launched, Seeded, same};
use crate::backend::cuda::module::number;
use crate::backend::cuda::repack::PAIR;
use crate::backend::cuda::{Argument, Buffer, Error, Kernel};

/// Values of a block.
pub(super) const BLOCK: usize = 32;

const NORM: &str = "norm_quantize";
/// Those that are timed: activations beside their quants are bf16, or f16.
pub(super) const KERNELS: [&str; 2] = [NORM, "norm_quantize_f16"];
/// Its threads, and the values that they take at a time and in all.
const NORM_BLOCK: u32 = 256;
const TURN: usize = 1024;
const CHUNK: usize = 8 * TURN;
pub(super) const EPSILON: f32 = 1e-5;
/// Values of a row that is timed.
const TIMED_DIM: usize = 4096;

/// Tokens, dim, and whether there is a gain: below a warp and below the block, an odd number of blocks, one turn and its half,
/// all turns, a second CTA.
const NORM_CASES: [(usize, usize, bool); 9] = [
    (1, 576, true),
    (3, 192, true),
    (2, 32, false),
    (2, 1536, true),
    (1, 8224, false),
    (1, 608, true),
    (2, 1056, true),
    (1, 8192, true),
    (1, HARD, false),
];
/// Values of the row that [`hard`] makes; no other case has as many.
const HARD: usize = 8 * BLOCK;

/// What the kernel makes of a row.
pub(super) struct Row {
    pub quants: Vec<u8>, // [padded]
    pub scales: Vec<u8>, // {f32 d, s32 sum} [padded / 32]
    pub halves: Vec<u8>, // bf16 [padded]
}

/// What a row is multiplied by, its squares summed in the kernels' order.
pub(super) fn norm(x: &[f32]) -> f32 {
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
}

/// The kernel's steps.
pub(super) fn norm_row(x: &[f32], gain: Option<&[f32]>) -> Row {
    match gain {
        None => prepared(x),
        Some(gain) => {
            let norm = norm(x);
            prepared(&x.iter().zip(gain).map(|(x, gain)| x * norm * gain).collect::<Vec<f32>>())
        }
    }
}

/// Values as products read them.
pub(super) fn prepared(x: &[f32]) -> Row {
    let padded = x.len().next_multiple_of(PAIR);
    let mut row = Row { quants: Vec::new(), scales: Vec::new(), halves: Vec::new() };
    for first in (0..padded).step_by(BLOCK) {
        let values: [f32; BLOCK] = std::array::from_fn(|at| x.get(first + at).copied().unwrap_or(0.0));
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

#[cold]
pub(super) fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Blocks that rounding and its guards are about: ties, zeros, what is about the least scale, the largest and the smallest.
fn hard(seeded: &mut Seeded) -> Vec<f32> {
    let least = 1e-30f32;
    let block = |value: &mut dyn FnMut(usize) -> f32| -> Vec<f32> { (0..BLOCK).map(value).collect() };
    [
        block(&mut |at| if at == BLOCK - 1 { 127.0 } else { at as f32 + 0.5 }),
        block(&mut |_| 0.0),
        block(&mut |at| if at == 7 { least } else { 0.0 }),
        block(&mut |at| if at == 7 { least.next_up() } else { 1e-38 }),
        block(&mut |_| seeded.unit() * 1e-29),
        block(&mut |_| seeded.unit() * 1e37),
        block(&mut |at| if at % 2 == 0 { -1.0 } else { 1.0 }),
        block(&mut |_| 1.0 + seeded.unit().abs()),
    ]
    .concat()
}

pub(super) fn norm_quantize(bed: &mut Bed) -> Checked {
    let kernel = bed.kernel(NORM)?;
    let mut launches = Vec::new();
    for (case, (tokens, dim, norms)) in NORM_CASES.into_iter().enumerate() {
        let mut seeded = Seeded::new(case as u64);
        let x: Vec<f32> = match dim {
            HARD => hard(&mut seeded),
            _ => (0..tokens * dim).map(|_| seeded.unit() * 3.0).collect(),
        };
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
        let on = On::new(bed, x, norms.then_some(gain), tokens, dim)?;
        // SAFETY: made for this size; it lives until `bytes` has waited.
        unsafe { on.later(bed, kernel)? };
        let On { xq, xs, xb, .. } = on;
        let mut all = Vec::new();
        for (name, got, want) in [("xq", xq, want.quants), ("xs", xs, want.scales), ("xb", xb, want.halves)] {
            let got = bed.bytes(&got)?;
            all.extend_from_slice(&got);
            if let Err(wrong) = same(&format!("{name} of {tokens} rows of {dim}"), &got, &want) {
                return Ok(Err(wrong));
            }
        }
        let gain = if norms { "with" } else { "without" };
        launches.push(Launched::exact(format!("{NORM}, {tokens} x {dim} {gain} a gain"), case as u64, &all));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Rows and what the kernel makes of them, on the device.
struct On {
    x: Buffer,
    gain: Option<Buffer>,
    xq: Buffer,
    xs: Buffer,
    xb: Buffer,
    tokens: usize,
    dim: usize,
}

impl On {
    fn new(bed: &mut Bed, x: Buffer, gain: Option<Buffer>, tokens: usize, dim: usize) -> Result<On, Error> {
        let padded = tokens * dim.next_multiple_of(PAIR);
        let (xq, xs, xb) = (bed.blank(padded)?, bed.blank(padded / BLOCK * 8)?, bed.blank(padded * 2)?);
        Ok(On { x, gain, xq, xs, xb, tokens, dim })
    }

    /// # Safety
    /// It lives until the kernel is done.
    unsafe fn later(&self, bed: &Bed, kernel: &Kernel) -> Result<(), Error> {
        let [x, xq, xs, xb] = [&self.x, &self.xq, &self.xs, &self.xb].map(Argument::Buffer);
        let gain = self.gain.as_ref().map_or(Argument::Address(0), Argument::Buffer);
        let arguments = [x, gain, xq, xs, xb, number(self.dim), Argument::F32(EPSILON)];
        let grid = [self.tokens as u32, self.dim.div_ceil(CHUNK) as u32, 1];
        // SAFETY: the buffers are as large as the kernel's head says; the rest is the caller's.
        unsafe { bed.stream.launch(kernel, grid, [NORM_BLOCK, 1, 1], 0, &arguments) }
    }
}

/// Bytes read and written per second.
pub(super) fn rate(bed: &mut Bed, kernel: &str) -> Checked {
    let kernel = bed.kernel(kernel)?;
    let tokens = bed.rate_bytes() / (4 * TIMED_DIM);
    let (x, gain) = (bed.blank(tokens * TIMED_DIM * 4)?, bed.blank(TIMED_DIM * 4)?);
    let on = On::new(bed, x, Some(gain), tokens, TIMED_DIM)?;
    // SAFETY: it lives until the last wait.
    let took = bed.time(&|| unsafe { on.later(bed, kernel) })?;
    let bytes = [&on.x, &on.xq, &on.xs, &on.xb].map(Buffer::size).iter().sum::<usize>();
    Ok(Ok(Found::rate(bytes as f64 / took.as_secs_f64())))
}
