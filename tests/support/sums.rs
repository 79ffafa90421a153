//! What the kernels compute, in plain Rust and to the bit: their roundings, their norm, their products.
//!
//! Owns: the order of these sums, as the kernels' heads have it. Never: a kernel, nor a launch.

use std::ops::Range;
use tartlet::model::quant::{Quant, f16_to_f32, group_scales};

/// To the nearest half, ties to even; what is too large is infinite.
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    // The magnitudes of halves ascend as their bits do: find the two about x.
    let x = x.abs();
    let below = (0..15).rev().fold(0, |half, bit| {
        let next = half | 1 << bit;
        if next <= 0x7c00 && f16_to_f32(next) <= x { next } else { half }
    });
    let value = |half: u16| if half == 0x7c00 { 65536.0 } else { f64::from(f16_to_f32(half)) };
    let (low, high) = (value(below), value((below + 1).min(0x7c00)));
    let x = f64::from(x);
    let up = x - low > high - x || x - low == high - x && below & 1 == 1;
    sign | if up && below < 0x7c00 { below + 1 } else { below }
}

/// To the nearest bf16, ties to even; of numbers that are finite.
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Whether the format's values are multiplied as they are, by activations of 16 bits.
pub fn is_float(quant: Quant) -> bool {
    matches!(quant, Quant::F16 | Quant::BF16)
}

/// Whether the format has minima: of a block a product is two terms.
pub fn has_minima(quant: Quant) -> bool {
    matches!(quant, Quant::Q4_1 | Quant::Q5_1 | Quant::Q4_K | Quant::Q5_K)
}

/// To f16 or bf16, as the format of the weights has it, and back.
pub fn to_16(quant: Quant, x: f32) -> u16 {
    if quant == Quant::F16 { f32_to_f16(x) } else { f32_to_bf16(x) }
}

pub fn of_16(quant: Quant, x: u16) -> f32 {
    if quant == Quant::F16 { f16_to_f32(x) } else { bf16_to_f32(x) }
}

/// What a row is multiplied by, summed as norm.inc sums.
pub fn norm(x: &[f32], eps: f32) -> f32 {
    let mut squares = [0.0f32; 256];
    for turn in x.chunks(1024) {
        for (square, four) in squares.iter_mut().zip(turn.chunks(4)) {
            *square = four.iter().fold(*square, |sum, &x| x.mul_add(x, sum));
        }
    }
    let mut total = 0.0;
    for warp in squares.as_chunks::<32>().0 {
        let mut lanes = *warp;
        for distance in [16, 8, 4, 2, 1] {
            lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ distance]);
        }
        total += lanes[0];
    }
    1.0 / (total / x.len() as f32 + eps).sqrt()
}

/// A block of 32 weights: scale, minimum, quants, and what the sum of each half's products is multiplied with.
pub struct Block {
    d: f32,
    m: Option<f32>,
    pub quants: [i32; 32],
    halves: [i32; 2],
}

impl Block {
    /// The blocks of one block of the file, which may be a superblock.
    pub fn of(quant: Quant, bytes: &[u8]) -> Vec<Block> {
        let half = |at: usize| f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let bits = |at: usize, up: usize, mask: u8| i32::from(bytes[at] >> up & mask);
        let fifth = |at: usize, i: usize| bits(at + i / 8, i % 8, 1) << 4;
        let nibble = |at: usize, i: usize| bits(at + i % 16, i / 16 * 4, 15);
        let one = |m: Option<f32>, value: &dyn Fn(usize) -> i32| {
            vec![Block { d: half(0), m, quants: std::array::from_fn(value), halves: [1, 1] }]
        };
        match quant {
            Quant::Q4_0 => one(None, &|i| nibble(2, i) - 8),
            Quant::Q4_1 => one(Some(half(2)), &|i| nibble(4, i)),
            Quant::Q5_0 => one(None, &|i| (nibble(6, i) | fifth(2, i)) - 16),
            Quant::Q5_1 => one(Some(half(2)), &|i| nibble(8, i) | fifth(4, i)),
            Quant::Q8_0 => one(None, &|i| i32::from(bytes[2 + i] as i8)),
            Quant::Q4_K | Quant::Q5_K => {
                let (scales, minima) = group_scales(bytes[4..16].try_into().expect("12 bytes"));
                let (five, quants) = if quant == Quant::Q5_K { (1, 48) } else { (0, 16) };
                let block = |at: usize| Block {
                    d: half(0) * f32::from(scales[at]),
                    m: Some(-half(2) * f32::from(minima[at])),
                    quants: std::array::from_fn(|i| {
                        bits(quants + at / 2 * 32 + i, at % 2 * 4, 15) | (bits(16 + i, at, five) << 4)
                    }),
                    halves: [1, 1],
                };
                (0..8).map(block).collect()
            }
            Quant::Q6_K => {
                let block = |at: usize| Block {
                    d: half(208),
                    m: None,
                    quants: std::array::from_fn(|i| {
                        let low = bits(at / 4 * 64 + at % 2 * 32 + i, at % 4 / 2 * 4, 15);
                        (low | bits(128 + at / 4 * 32 + i, at % 4 * 2, 3) << 4) - 32
                    }),
                    halves: [0, 1].map(|half| i32::from(bytes[192 + 2 * at + half] as i8)),
                };
                (0..8).map(block).collect()
            }
            _ => panic!("{quant} has no blocks"),
        }
    }
}

/// The product of one row and one token, added up as every matrix kernel does it: four runs of pairs of blocks, or of
/// superblocks, block after block in each, the runs in their order.
pub fn product(quant: Quant, row: &[u8], quants: &[i8], scales: &[(f32, i32)]) -> f32 {
    let blocks: Vec<Block> =
        row.chunks(quant.block_bytes()).flat_map(|bytes| Block::of(quant, bytes)).collect();
    let runs = runs(quant, blocks.len());
    runs.map(|run| sum(&blocks[run.clone()], &quants[run.start * 32..], &scales[run.start..]))
        .reduce(|sum, next| sum + next)
        .unwrap_or(0.0)
}

/// The runs that a row of so many blocks is cut into; those that are not there add nothing.
pub fn runs(quant: Quant, blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let unit = quant.block_len().max(64) / 32;
    let run = blocks.div_ceil(unit).div_ceil(4) * unit;
    (0..blocks).step_by(run.max(1)).map(move |first| first..blocks.min(first + run))
}

/// The products of a row's blocks, one after the other.
pub fn sum(blocks: &[Block], quants: &[i8], scales: &[(f32, i32)]) -> f32 {
    let mut acc = 0.0;
    for (block, (quants, &(d, sum))) in blocks.iter().zip(quants.chunks(32).zip(scales)) {
        let products: Vec<i32> = block.quants.iter().zip(quants).map(|(&w, &x)| w * i32::from(x)).collect();
        let halves =
            products.chunks(16).zip(block.halves).map(|(half, scale)| half.iter().sum::<i32>() * scale);
        acc = (block.d * d).mul_add(halves.sum::<i32>() as f32, acc);
        if let Some(m) = block.m {
            acc = m.mul_add(d * sum as f32, acc);
        }
    }
    acc
}
