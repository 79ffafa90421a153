//! Attention of decode against its formula in f64.
//!
//! Owns: pages, masks and rows that differ to the kernels, and how far a result may be off. Never: a digest: the kernels
//! take the device's own exponential, which devices do not share.

use super::{Bed, Checked, Found, Seeded, norms::floats};
use crate::backend::cuda::{Argument, Buffer, Error};
use crate::model::quant::f16_to_f32;

const PAGE: usize = 16;
const SPLIT: usize = 256;
/// Threads of both kernels.
const BLOCK: u32 = 128;

/// Slots that a row sees, of a sequence of its own: `first..length`, of those as the mask says.
#[derive(Clone, Copy)]
struct Row {
    first: usize,
    length: usize,
    mask: Mask,
}

#[derive(Clone, Copy, PartialEq)]
enum Mask {
    All,
    /// About half of them.
    Some,
    None,
}

const ROWS: [Row; 7] = [
    Row { first: 0, length: 1, mask: Mask::All },
    Row { first: 0, length: 37, mask: Mask::Some },
    Row { first: 0, length: 300, mask: Mask::All },
    Row { first: 250, length: 520, mask: Mask::Some },
    Row { first: 0, length: 270, mask: Mask::None },
    Row { first: 9, length: 9, mask: Mask::All },
    Row { first: 0, length: 0, mask: Mask::All },
];

/// Heads: their size, heads with keys and values, query heads for each of those, and the scores' cap (0: none).
const HEADS: [(usize, usize, usize, f32); 4] =
    [(64, 3, 3, 0.0), (64, 1, 8, 0.0), (128, 2, 4, 0.0), (64, 1, 1, 5.0)];

impl Row {
    fn sees(&self, slot: usize, words: &[u32]) -> bool {
        let masked = words[slot / 32] >> (slot % 32) & 1 == 1;
        (self.first..self.length).contains(&slot) && (self.mask == Mask::All || masked)
    }
}

/// One size of heads: what is on the device, and the same here.
struct Case {
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    scale: f32,
    cap: f32,
    /// Pages of the longest row, and splits.
    stride: usize,
    splits: usize,
    q: Vec<f32>,          // [row][head][head_dim]
    keys: Vec<u16>,       // [page][kv head][slot][head_dim]
    values: Vec<u16>,     // the same
    table: Vec<u32>,      // [row][stride]
    masks: Vec<Vec<u32>>, // [row][word]
}

impl Case {
    fn new((head_dim, kv_heads, group, cap): (usize, usize, usize, f32)) -> Case {
        let mut seeded = Seeded::new((head_dim + group) as u64);
        let longest = ROWS.iter().map(|row| row.length).max().unwrap_or(0);
        let stride = longest.div_ceil(PAGE);
        let pages = ROWS.len() * stride;
        // Of size 1/4 to 2, of either sign.
        let mut halves = |count: usize| -> Vec<u16> {
            let half = |bits: u64| (bits & 0x83ff) as u16 | ((13 + (bits >> 20) % 3) << 10) as u16;
            (0..count).map(|_| half(seeded.bits())).collect()
        };
        let (keys, values) =
            (halves(pages * kv_heads * PAGE * head_dim), halves(pages * kv_heads * PAGE * head_dim));
        let mut free: Vec<u32> = (0..pages as u32).collect();
        let table = (0..pages).map(|_| free.swap_remove(seeded.bits() as usize % free.len())).collect();
        let words = longest.div_ceil(32);
        let mask = |row: &Row, seeded: &mut Seeded| -> Vec<u32> {
            (0..words).map(|_| if row.mask == Mask::None { 0 } else { seeded.bits() as u32 }).collect()
        };
        Case {
            head_dim,
            kv_heads,
            group,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap,
            stride,
            splits: longest.div_ceil(SPLIT),
            q: (0..ROWS.len() * kv_heads * group * head_dim).map(|_| seeded.unit()).collect(),
            keys,
            values,
            table,
            masks: ROWS.iter().map(|row| mask(row, &mut seeded)).collect(),
        }
    }

    /// [row][head][head_dim], as the kernels have it.
    fn run(&self, bed: &mut Bed) -> Result<Vec<f32>, Error> {
        let attend = bed.kernel(if self.head_dim == 64 { "attend_64" } else { "attend_128" })?;
        let combine = bed.kernel("attend_combine")?;
        let words =
            |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let halves =
            |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let rows = ROWS.iter().enumerate().flat_map(|(at, row)| {
            let mask = if row.mask == Mask::All { u32::MAX } else { at as u32 };
            [at as u32, row.length as u32, row.first as u32, mask]
        });
        let heads = self.kv_heads * self.group;
        let outputs = ROWS.len() * heads;
        let q = bed.with(&floats(&self.q))?;
        let (keys, values) = (bed.with(&halves(&self.keys))?, bed.with(&halves(&self.values))?);
        let table = bed.with(&words(&self.table))?;
        let rows = bed.with(&words(&rows.collect::<Vec<_>>()))?;
        let masks = bed.with(&words(&self.masks.concat()))?;
        let out = bed.blank(outputs * self.head_dim * 4)?;
        let sums = bed.blank(outputs * self.splits * self.head_dim * 4)?;
        let scales = bed.blank(outputs * self.splits * 8)?;
        let buffers: [&Buffer; 9] = [&q, &keys, &values, &table, &rows, &masks, &out, &sums, &scales];
        let number = |count: usize| Argument::U32(count as u32);
        let mut arguments: Vec<Argument> = buffers.map(Argument::Buffer).into();
        arguments
            .extend([self.kv_heads, self.group, self.stride, self.masks[0].len(), self.splits].map(number));
        arguments.extend([self.scale, self.cap].map(Argument::F32));
        let joins = [&rows, &sums, &scales, &out].map(Argument::Buffer);
        let joins = [&joins[..], &[heads, self.head_dim, self.splits].map(number)].concat();
        let grid =
            [self.splits, self.kv_heads * self.group.div_ceil(8), ROWS.len()].map(|count| count as u32);
        // SAFETY: the buffers are as large as the kernels' heads say, and live until `bytes` has waited.
        unsafe {
            bed.stream.launch(attend, grid, [BLOCK, 1, 1], 0, &arguments)?;
            bed.stream.launch(combine, [heads as u32, ROWS.len() as u32, 1], [BLOCK, 1, 1], 0, &joins)?;
        }
        let got = bed.bytes(&out)?;
        Ok(got.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// A vector of `of` (keys or values).
    fn vector(&self, of: &[u16], row: usize, slot: usize, kv_head: usize) -> Vec<f64> {
        let page = self.table[row * self.stride + slot / PAGE] as usize;
        let at = ((page * self.kv_heads + kv_head) * PAGE + slot % PAGE) * self.head_dim;
        of[at..at + self.head_dim].iter().map(|half| f64::from(f16_to_f32(*half))).collect()
    }

    /// The formula, and how far a result may be off: a weight is rounded to f16 (2^-11 of it, or 2^-25 of the largest where
    /// f16 is subnormal); a score, and with it the weight, is f32 made of the query to 22 bits.
    fn want(&self, row: usize, head: usize) -> Vec<(f64, f64)> {
        let sees = |slot: &usize| ROWS[row].sees(*slot, &self.masks[row]);
        let slots: Vec<usize> = (0..ROWS[row].length).filter(sees).collect();
        let at = (row * self.kv_heads * self.group + head) * self.head_dim;
        let score = |slot: &usize| {
            let key = self.vector(&self.keys, row, *slot, head / self.group);
            let dot: f64 = self.q[at..].iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
            let (score, cap) = (dot * f64::from(self.scale), f64::from(self.cap));
            if cap > 0.0 { cap * (score / cap).tanh() } else { score }
        };
        let scores: Vec<f64> = slots.iter().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut sums = vec![(0.0, 0.0); self.head_dim];
        for (slot, score) in slots.iter().zip(scores) {
            let weight = (score - largest).exp() / total;
            let off = 2f64.powi(-16) + (score.abs() + f64::from(self.cap)) * 2f64.powi(-19);
            let off = weight * (2f64.powi(-11) + off) + 2f64.powi(-25) / total;
            let value = self.vector(&self.values, row, *slot, head / self.group);
            for ((sum, slack), value) in sums.iter_mut().zip(value) {
                *sum += weight * value;
                *slack += off * value.abs();
            }
        }
        sums
    }
}

pub(super) fn attention(bed: &mut Bed) -> Checked {
    for size in HEADS {
        let case = Case::new(size);
        let got = case.run(bed)?;
        let heads = case.kv_heads * case.group;
        for (at, got) in got.chunks(case.head_dim).enumerate() {
            let (row, head) = (at / heads, at % heads);
            for (dim, (got, (want, slack))) in got.iter().zip(case.want(row, head)).enumerate() {
                // NaN is off by more than anything.
                let close = (f64::from(*got) - want).abs() <= slack;
                if !close {
                    return Ok(Err(format!(
                        "heads of {}, row {row}, head {head}, dim {dim}: {got}, not {want} within {slack:e}",
                        case.head_dim
                    )));
                }
            }
        }
    }
    Ok(Ok(Found::right(HEADS.len() * ROWS.len())))
}
