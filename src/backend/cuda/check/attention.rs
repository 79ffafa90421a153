//! Attention of decode against its formula in f64, and of prefill against that of decode, bit for bit.
//!
//! Owns: pages, masks and rows that differ to the kernels, and how far a result may be off. Never: a digest: the kernels
//! take the device's own exponential, which devices do not share; between two of them a sample is compared.

use super::{Bed, Checked, Found, Launched, Seeded, norms::floats, same};
use crate::backend::cuda::launches::{octets, prefill_warps};
use crate::backend::cuda::module::number;
use crate::backend::cuda::{Argument, Buffer, Error};
use crate::model::quant::f16_to_f32;

const PAGE: usize = 16;
const SPLIT: usize = 256;
/// Threads of both kernels.
const BLOCK: u32 = 128;
/// How far the numbers of two devices may lie apart, as a root mean square: a weight's rounding to f16, as if every weight
/// were rounded the other way. In truth few are.
const APART: f64 = 1.0 / (1 << 11) as f64;
/// Those that are timed.
pub(super) const KERNELS: [&str; 9] = [
    "attend_64",
    "attend_96",
    "attend_128",
    "attend_256",
    "prefill_64",
    "prefill_96",
    "prefill_128",
    "prefill_256",
    COMBINE,
];
const COMBINE: &str = "attend_combine";
/// Sequences that attention is timed with, each with one row.
const TIMED_ROWS: usize = 8;
/// Rows of a prompt that prefill is timed with, and pages that each of them sees.
const TIMED_PROMPT: (usize, usize) = (512, 64);
/// Splits of each row that the join is timed with.
const TIMED_SPLITS: usize = 16;

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

const ROWS: [Row; 10] = [
    Row { first: 0, length: 1, mask: Mask::All },
    Row { first: 0, length: 37, mask: Mask::Some },
    Row { first: 0, length: 300, mask: Mask::All },
    Row { first: 250, length: 520, mask: Mask::Some },
    Row { first: 0, length: 270, mask: Mask::None },
    Row { first: 9, length: 9, mask: Mask::All },
    Row { first: 0, length: 0, mask: Mask::All },
    // One split to its end, and one slot more; a row that begins where a split does.
    Row { first: 0, length: 256, mask: Mask::All },
    Row { first: 17, length: 257, mask: Mask::Some },
    Row { first: 256, length: 511, mask: Mask::All },
];

/// Heads: their size, heads with keys and values, query heads for each of those, and the scores' cap (0: none).
const HEADS: [(usize, usize, usize, f32); 6] =
    [(64, 3, 3, 0.0), (64, 1, 8, 0.0), (128, 2, 4, 0.0), (64, 1, 1, 5.0), (96, 1, 2, 0.0), (256, 1, 2, 5.0)];
/// Of a prompt: heads as above, and rows, the last of so many slots: they begin within a page and pass the end of a split.
const PROMPTS: [(usize, usize, usize); 4] = [(64, 2, 3), (96, 1, 4), (128, 1, 4), (256, 1, 2)];
const PROMPT: (usize, usize) = (30, 270);

impl Row {
    fn sees(&self, slot: usize, words: &[u32]) -> bool {
        let masked = words[slot / 32] >> (slot % 32) & 1 == 1;
        (self.first..self.length).contains(&slot) && (self.mask == Mask::All || masked)
    }
}

/// What the kernels are told of their buffers.
#[derive(Clone, Copy)]
struct Sizes {
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    rows: usize,
    /// Of the longest row.
    pages: usize,
    /// Of a row of masks.
    words: usize,
}

/// Rows, their keys and values, and room for results, on the device.
struct On {
    sizes: Sizes,
    /// Queries, keys, values, table, rows, masks.
    given: [Buffer; 6],
    out: Buffer,
    sums: Buffer,
    scales: Buffer,
    tickets: Buffer,
}

impl On {
    fn new(bed: &mut Bed, sizes: Sizes, given: [Buffer; 6]) -> Result<On, Error> {
        let outputs = sizes.rows * sizes.heads();
        let out = bed.blank(outputs * sizes.head_dim * 4)?;
        let sums = bed.blank(outputs * sizes.splits() * sizes.head_dim * 4)?;
        let scales = bed.blank(outputs * sizes.splits() * 8)?;
        let tickets = bed.with(&vec![0; sizes.rows * octets(sizes.heads(), sizes.kv_heads) * 4])?;
        Ok(On { sizes, given, out, sums, scales, tickets })
    }

    /// # Safety
    /// It lives until the kernel is done.
    unsafe fn attend_later(&self, bed: &Bed, scale: f32, cap: f32) -> Result<(), Error> {
        let it = &self.sizes;
        let attend = bed.kernel(&format!("attend_{}", it.head_dim))?;
        let scratch = [&self.out, &self.sums, &self.scales, &self.tickets].map(Argument::Buffer);
        let mut arguments: Vec<Argument> = self.given.iter().map(Argument::Buffer).chain(scratch).collect();
        arguments.extend([it.kv_heads, it.group, it.pages, it.words, it.splits()].map(number));
        arguments.extend([scale, cap].map(Argument::F32));
        let grid = [it.splits(), octets(it.heads(), it.kv_heads), it.rows].map(|count| count as u32);
        // SAFETY: the buffers are as large as the kernel's head says; the rest is the caller's.
        unsafe { bed.stream.launch(attend, grid, [BLOCK, 1, 1], 0, &arguments) }
    }

    /// As many rows of one sequence as there are.
    ///
    /// # Safety
    /// It and the tiles, `{row, count}` each, live until the kernel is done.
    unsafe fn prefill_later(
        &self,
        bed: &Bed,
        (tiles, count): (&Buffer, usize),
        scale: f32,
    ) -> Result<(), Error> {
        let it = &self.sizes;
        let prefill = bed.kernel(&format!("prefill_{}", it.head_dim))?;
        let scratch = [&self.out, &self.sums, &self.scales, tiles].map(Argument::Buffer);
        let mut arguments: Vec<Argument> = self.given.iter().map(Argument::Buffer).chain(scratch).collect();
        arguments.extend([it.kv_heads, it.group, it.pages, it.words, it.splits(), 0].map(number));
        arguments.extend([scale, 0.0].map(Argument::F32));
        let grid = [it.splits(), it.kv_heads, count].map(|count| count as u32);
        let block = [32 * prefill_warps(it.head_dim) as u32, 1, 1];
        // SAFETY: the buffers are as large as the kernel's head says; the rest is the caller's.
        unsafe { bed.stream.launch(prefill, grid, block, 0, &arguments) }
    }

    /// # Safety
    /// It lives until the kernel is done.
    unsafe fn combine_later(&self, bed: &Bed) -> Result<(), Error> {
        let it = &self.sizes;
        let combine = bed.kernel(COMBINE)?;
        let joins = [&self.given[4], &self.sums, &self.scales, &self.out].map(Argument::Buffer);
        let joins = [&joins[..], &[it.heads(), it.head_dim, it.splits()].map(number)].concat();
        let grid = [it.heads() as u32, it.rows as u32, 1];
        // SAFETY: as above.
        unsafe { bed.stream.launch(combine, grid, [BLOCK, 1, 1], 0, &joins) }
    }
}

impl Sizes {
    /// All rows as one sequence's.
    fn tiles(&self) -> Vec<u32> {
        let most = 8 * prefill_warps(self.head_dim) / self.group;
        (0..self.rows)
            .step_by(most)
            .flat_map(|row| [row, most.min(self.rows - row)])
            .map(|it| it as u32)
            .collect()
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn splits(&self) -> usize {
        (self.pages * PAGE).div_ceil(SPLIT)
    }
}

/// Attention's results, and what it and the join of splits left.
type Ran = (Vec<f32>, [Launched; 2]);

/// One size of heads: what is on the device, and the same here.
struct Case {
    seed: u64,
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    scale: f32,
    cap: f32,
    /// Pages of the longest row.
    stride: usize,
    q: Vec<f32>,          // [row][head][head_dim]
    keys: Vec<u16>,       // [page][kv head][slot][head_dim]
    values: Vec<u16>,     // the same
    table: Vec<u32>,      // [row][stride]
    masks: Vec<Vec<u32>>, // [row][word]
}

impl Case {
    fn new((head_dim, kv_heads, group, cap): (usize, usize, usize, f32)) -> Case {
        let seed = (head_dim + group) as u64;
        let mut seeded = Seeded::new(seed);
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
            seed,
            head_dim,
            kv_heads,
            group,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap,
            stride,
            q: (0..ROWS.len() * kv_heads * group * head_dim).map(|_| seeded.unit()).collect(),
            keys,
            values,
            table,
            masks: ROWS.iter().map(|row| mask(row, &mut seeded)).collect(),
        }
    }

    /// [row][head][head_dim], as attention has it, and what it and the join of splits on its own left: the same.
    fn run(&self, bed: &mut Bed) -> Result<Result<Ran, String>, Error> {
        let rows = ROWS.iter().enumerate().flat_map(|(at, row)| {
            let mask = if row.mask == Mask::All { u32::MAX } else { at as u32 };
            [at as u32, row.length as u32, row.first as u32, mask]
        });
        let rows = words(&rows.collect::<Vec<_>>());
        let head_dim = self.head_dim;
        let sizes = Sizes {
            head_dim,
            kv_heads: self.kv_heads,
            group: self.group,
            rows: ROWS.len(),
            pages: self.stride,
            words: self.masks[0].len(),
        };
        let (keys, values) = (bed.with(&halves(&self.keys))?, bed.with(&halves(&self.values))?);
        let (q, table) = (bed.with(&floats(&self.q))?, bed.with(&words(&self.table))?);
        let (rows, masks) = (bed.with(&rows)?, bed.with(&words(&self.masks.concat()))?);
        let on = On::new(bed, sizes, [q, keys, values, table, rows, masks])?;
        let cap = if self.cap > 0.0 { ", capped" } else { "" };
        let shape =
            format!("{} rows of {} x {} heads of {head_dim}{cap}", ROWS.len(), self.kv_heads, self.group);
        let left = |kernel: &str, bytes: &[u8]| {
            Launched::near(format!("{kernel}, {shape}"), self.seed, bytes, APART)
        };
        // SAFETY: made for these sizes; it lives until `bytes` has waited.
        unsafe { on.attend_later(bed, self.scale, self.cap)? };
        let got = bed.bytes(&on.out)?;
        let parts = [&got[..], &bed.bytes(&on.sums)?].concat();
        if bed.bytes(&on.tickets)?.iter().any(|byte| *byte != 0) {
            return Ok(Err(format!("heads of {head_dim}: a ticket did not come back to 0")));
        }
        // SAFETY: as above.
        unsafe { on.combine_later(bed)? };
        let joined = bed.bytes(&on.out)?;
        if let Err(why) = same(&format!("attend_{head_dim} and {COMBINE}"), &got, &joined) {
            return Ok(Err(why));
        }
        let launches = [left(&format!("attend_{head_dim}"), &parts), left(COMBINE, &joined)];
        Ok(Ok((got.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), launches)))
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
    let mut launches = Vec::new();
    for size in HEADS {
        let case = Case::new(size);
        let (got, left) = match case.run(bed)? {
            Ok(ran) => ran,
            Err(why) => return Ok(Err(why)),
        };
        launches.extend(left);
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
    Ok(Ok(Found { launches, ..Found::right(HEADS.len() * ROWS.len()) }))
}

/// A prompt's rows by both kernels.
pub(super) fn prefill(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (head_dim, kv_heads, group) in PROMPTS {
        let mut case = Case::new((head_dim, kv_heads, group, 0.0));
        let (rows, length) = PROMPT;
        case.q = case.q.iter().copied().cycle().take(rows * kv_heads * group * head_dim).collect();
        let pages = length.div_ceil(PAGE);
        let sizes = Sizes { head_dim, kv_heads, group, rows, pages, words: 1 };
        // Every third row sees no more than 40 slots.
        let records = (0..rows).flat_map(|row| {
            let length = length - rows + 1 + row;
            let first = if row % 3 == 0 { length - 40 } else { 0 };
            [0, length as u32, first as u32, u32::MAX]
        });
        let records = words(&records.collect::<Vec<_>>());
        let (keys, values) = (bed.with(&halves(&case.keys))?, bed.with(&halves(&case.values))?);
        let (q, table) = (bed.with(&floats(&case.q))?, bed.with(&words(&case.table))?);
        let (records, masks) = (bed.with(&records)?, bed.blank(4)?);
        let on = On::new(bed, sizes, [q, keys, values, table, records, masks])?;
        let tiles = (&bed.with(&words(&sizes.tiles()))?, sizes.tiles().len() / 2);
        // SAFETY: made for these sizes; it lives until `bytes` has waited.
        unsafe { on.attend_later(bed, case.scale, 0.0)? };
        let want = bed.bytes(&on.out)?;
        // SAFETY: as above; what the first has left is not read again.
        unsafe {
            bed.stream.fill_later(&on.out, 0, on.out.size(), super::BEFORE)?;
            on.prefill_later(bed, tiles, case.scale)?;
            on.combine_later(bed)?;
        }
        let got = bed.bytes(&on.out)?;
        if let Err(why) = same(&format!("prefill_{head_dim}"), &got, &want) {
            return Ok(Err(why));
        }
        let shape = format!("{rows} rows of {kv_heads} x {group} heads of {head_dim}");
        launches.push(Launched::near(format!("prefill_{head_dim}, {shape}"), case.seed, &got, APART));
    }
    Ok(Ok(Found { launches, ..Found::right(PROMPTS.len() * PROMPT.0) }))
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn halves(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Bytes per second: of keys and values, of rows that see all their slots; of the join those of the parts; of a prompt's rows
/// as if each read its own.
pub(super) fn rate(bed: &mut Bed, kernel: &str) -> Checked {
    let (joins, prompt) = (kernel == COMBINE, kernel.starts_with("prefill"));
    let head_dim = kernel.rsplit('_').next().and_then(|dim| dim.parse().ok()).unwrap_or(128);
    let of_size = HEADS.iter().find(|heads| heads.0 == head_dim);
    let &(_, kv_heads, group, _) = of_size.unwrap_or(&HEADS[2]);
    let page_bytes = kv_heads * PAGE * head_dim * 2;
    let (rows, pages) = if joins {
        let row_bytes = kv_heads * group * TIMED_SPLITS * (head_dim + 2) * 4;
        (bed.rate_bytes() / row_bytes, TIMED_SPLITS * SPLIT / PAGE)
    } else if prompt {
        TIMED_PROMPT
    } else {
        (TIMED_ROWS, bed.rate_bytes() / (2 * TIMED_ROWS * page_bytes))
    };
    let sizes = Sizes { head_dim, kv_heads, group, rows, pages, words: 1 };
    // The join looks at no key. What blank memory says as numbers is small and finite.
    let slots = if joins {
        0
    } else if prompt {
        pages
    } else {
        rows * pages
    };
    let (keys, values) = (bed.blank(slots.max(1) * page_bytes)?, bed.blank(slots.max(1) * page_bytes)?);
    let q = bed.blank(rows * sizes.heads() * head_dim * 4)?;
    let table = bed.with(&words(&(0..slots.max(1) as u32).collect::<Vec<_>>()))?;
    let records =
        (0..rows as u32).flat_map(|row| [if prompt { 0 } else { row }, (pages * PAGE) as u32, 0, u32::MAX]);
    let (records, masks) = (bed.with(&words(&records.collect::<Vec<_>>()))?, bed.blank(4)?);
    let on = On::new(bed, sizes, [q, keys, values, table, records, masks])?;
    let tiles = (&bed.with(&words(&sizes.tiles()))?, sizes.tiles().len() / 2);
    let took = bed.time(&|| {
        // SAFETY: they live until the last wait.
        unsafe {
            match (joins, prompt) {
                (true, _) => on.combine_later(bed),
                (_, true) => on.prefill_later(bed, tiles, 0.1),
                _ => on.attend_later(bed, 0.1, 0.0),
            }
        }
    })?;
    let bytes = match joins {
        true => [&on.sums, &on.scales, &on.out].map(Buffer::size).iter().sum(),
        false => 2 * rows * pages * page_bytes,
    };
    Ok(Ok(Found::rate(bytes as f64 / took.as_secs_f64())))
}
