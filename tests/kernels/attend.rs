//! Attention (`attend_*`, `prefill_*`, `attend_combine`) against its formula in f64; a row at a time here, many rows of a
//! sequence in `prefill.rs`.

mod faults;
mod join;
mod prefill;

use crate::harness::{
    Seeded, Wrong, f32_to_f16, from_bytes, launch, mma_slack, module, passes, same, to_bytes,
};
use ptx_emulator::{Counts, Launch, Memory, Module, Parameters};
use tartlet::backend::cpu::plain;
use tartlet::model::quant::f16_to_f32;

const PAGE: usize = 16;
const SPLIT: usize = 256;
/// Sizes of heads that there are kernels for.
const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// A query row: what it sees of its sequence.
#[derive(Clone)]
struct Row {
    sequence: usize,
    first: usize,
    length: usize,
    /// A bit per slot.
    mask: Option<Vec<bool>>,
}

impl Row {
    fn of(sequence: usize, length: usize) -> Row {
        Row { sequence, first: 0, length, mask: None }
    }

    fn masked(self, sees: impl FnMut(usize) -> bool) -> Row {
        let mask = Some((0..self.length).map(sees).collect());
        Row { mask, ..self }
    }

    fn sees(&self, slot: usize) -> bool {
        (self.first..self.length).contains(&slot) && self.mask.as_ref().is_none_or(|mask| mask[slot])
    }
}

/// Sequences with their keys and values, and rows of queries.
#[derive(Clone)]
struct Case {
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    scale: f32,
    /// Of the scores; 0 is none.
    cap: f32,
    /// Of each sequence f16 `[slot][kv head][head dim]`.
    keys: Vec<Vec<u16>>,
    values: Vec<Vec<u16>>,
    rows: Vec<Row>,
    /// `[row][head][head dim]`
    queries: Vec<Vec<f32>>,
    /// Splits more than the rows have.
    room: usize,
    /// Decides where the pages lie.
    seed: u64,
}

impl Case {
    fn new(head_dim: usize, kv_heads: usize, group: usize, rows: Vec<Row>, seed: u64) -> Case {
        let mut seeded = Seeded::new(seed);
        let sequences = rows.iter().map(|row| row.sequence + 1).max().unwrap_or(0);
        let mut halves = |sequence| {
            let slots = rows.iter().filter(|row| row.sequence == sequence).map(|row| row.length).max();
            (0..slots.unwrap_or(0) * kv_heads * head_dim).map(|_| f32_to_f16(seeded.normal())).collect()
        };
        let keys = (0..sequences).map(&mut halves).collect();
        let values = (0..sequences).map(&mut halves).collect();
        let queries = rows.iter().map(|_| seeded.normals(kv_heads * group * head_dim)).collect();
        let scale = 1.5 / (head_dim as f32).sqrt();
        Case { head_dim, kv_heads, group, scale, cap: 0.0, keys, values, rows, queries, room: 0, seed }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// What the kernels give, `[row][head][head dim]`, and the counts of attention.
    fn run(&self, kernels: &Kernels, seed: u64) -> Result<(Vec<f32>, Counts), Wrong> {
        let Case { head_dim, kv_heads, group, .. } = *self;
        let mut memory = Memory::new();
        let input = |memory: &mut Memory, name, bytes: &[u8]| {
            let at = memory.upload(name, bytes);
            memory.protect(at, true);
            at
        };

        // Pages in any order, with some between that belong to nobody. What no row sees stays unwritten.
        let mut seeded = Seeded::new(self.seed ^ 0x9a9e);
        let pages_of: Vec<usize> =
            self.keys.iter().map(|keys| (keys.len() / (kv_heads * head_dim)).div_ceil(PAGE)).collect();
        let pages = pages_of.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        let stride = pages_of.iter().max().unwrap_or(&0) + 1;
        let page_bytes = kv_heads * PAGE * head_dim * 2;
        let keys = memory.alloc(pages * page_bytes, "keys");
        let values = memory.alloc(pages * page_bytes, "values");
        // A word of theirs that is seen.
        let mut made = 0;
        let table = memory.alloc(self.keys.len() * stride * 4, "table");
        for (sequence, &count) in pages_of.iter().enumerate() {
            for page in 0..count {
                let physical = free.swap_remove(seeded.below(free.len()));
                memory.write(table + (sequence * stride + page) as u64 * 4, &physical.to_le_bytes())?;
                for slot in page * PAGE..(page + 1) * PAGE {
                    if !self.rows.iter().any(|row| row.sequence == sequence && row.sees(slot)) {
                        continue;
                    }
                    for head in 0..kv_heads {
                        let from =
                            (slot * kv_heads + head) * head_dim..(slot * kv_heads + head + 1) * head_dim;
                        let to = (physical as usize * kv_heads + head) * PAGE + slot % PAGE;
                        let to = (to * head_dim * 2) as u64;
                        made = to;
                        memory.write(keys + to, &to_bytes(&self.keys[sequence][from.clone()]))?;
                        memory.write(values + to, &to_bytes(&self.values[sequence][from]))?;
                    }
                }
            }
        }
        let protects = !matches!(kernels.way, Way::Overlapping);
        for (buffer, protects) in [(keys, protects), (values, protects), (table, true)] {
            memory.protect(buffer, protects);
        }

        let longest = self.rows.iter().map(|row| row.length).max().unwrap_or(0);
        let words = longest.div_ceil(32) + 1;
        let (mut rows, mut masks) = (Vec::new(), Vec::new());
        for row in &self.rows {
            let mask = match &row.mask {
                None => u32::MAX,
                Some(mask) => {
                    let number = masks.len() / words;
                    // Bits beyond the row's length mean nothing: they are set.
                    masks.resize(masks.len() + words, u32::MAX);
                    for (slot, sees) in mask.iter().enumerate() {
                        masks[number * words + slot / 32] &= !(u32::from(!sees) << (slot % 32));
                    }
                    number as u32
                }
            };
            rows.extend([row.sequence as u32, row.length as u32, row.first as u32, mask]);
        }
        let rows = input(&mut memory, "rows", &to_bytes(&rows));
        let masks = if masks.is_empty() { 0 } else { input(&mut memory, "masks", &to_bytes(&masks)) };
        let q = input(&mut memory, "q", &to_bytes(&self.queries.concat()));
        memory.protect(q, protects);
        let splits = longest.div_ceil(SPLIT).max(1) + self.room;
        let outputs = self.rows.len() * self.heads();
        let out = memory.alloc(outputs * head_dim * 4, "out");
        let sums = memory.alloc(outputs * splits * head_dim * 4, "sums");
        let scales = memory.alloc(outputs * splits * 8, "scales");
        let octets = kv_heads * group.div_ceil(8);
        let tickets = memory.upload("tickets", &vec![0; self.rows.len() * octets * 4]);

        let shared =
            || Parameters::new().u64(q).u64(keys).u64(values).u64(table).u64(rows).u64(masks).u64(out);
        let sizes = |parameters: Parameters| {
            let heads = parameters.u32(kv_heads as u32).u32(group as u32);
            heads.u32(stride as u32).u32(words as u32).u32(splits as u32)
        };
        let mut counts = Counts::default();
        let block = [128, 1, 1];
        match kernels.way {
            Way::Rows | Way::Again | Way::Overlapping => {
                let parameters = sizes(shared().u64(sums).u64(scales).u64(tickets));
                let parameters = parameters.f32(self.scale).f32(self.cap);
                let grid = [splits, octets, self.rows.len()].map(|count| count as u32);
                let attend = Launch { grid, block, shared: 0, parameters: parameters.bytes() };
                if matches!(kernels.way, Way::Overlapping) {
                    let before = Module::parse(BEFORE).unwrap_or_else(|error| panic!("{error}"));
                    let made = [q, keys + made, values + made].into_iter();
                    let made = made.fold(Parameters::new(), Parameters::u64);
                    let made =
                        Launch { grid: [1; 3], block: [32, 1, 1], shared: 0, parameters: made.bytes() };
                    // The layer before, too: what it left in scratch may still be read.
                    launch(kernels.attend, &mut memory, &attend, seed)?;
                    launch(&before, &mut memory, &made, seed)?;
                }
                counts = launch(kernels.attend, &mut memory, &attend, seed)?;
                let drawn: Vec<u32> = from_bytes(&memory.read(tickets, self.rows.len() * octets * 4)?);
                same("tickets", &drawn, &vec![0; drawn.len()])?;
                if matches!(kernels.way, Way::Again) {
                    let first: Vec<u32> = from_bytes(&memory.read(out, outputs * head_dim * 4)?);
                    let again = |memory: &mut Memory, what: &str| {
                        let got: Vec<u32> = from_bytes(&memory.read(out, outputs * head_dim * 4)?);
                        same(what, &got, &first)
                    };
                    memory.write(out, &vec![0xff; first.len() * 4])?;
                    launch(kernels.attend, &mut memory, &attend, seed)?;
                    again(&mut memory, "out of a second launch")?;
                    let several = |row: &Row| row.first / SPLIT < row.length.max(1).div_ceil(SPLIT) - 1;
                    let width = self.heads() * head_dim * 4;
                    for (at, _) in self.rows.iter().enumerate().filter(|(_, row)| several(row)) {
                        memory.write(out + (at * width) as u64, &vec![0xff; width])?;
                    }
                    self.combine(kernels, &mut memory, [rows, sums, scales, out], splits, seed)?;
                    again(&mut memory, "out of attend_combine")?;
                }
            }
            // In two launches, each with scratch of its own rows.
            Way::Tiles(most) => {
                let tiles = self.tiles(most);
                let warps = prefill::warps(head_dim);
                for part in tiles.chunks(tiles.len().div_ceil(2)) {
                    let first = part[0][0];
                    let part_at = input(&mut memory, "tiles", &to_bytes(part.as_flattened()));
                    let skipped = u64::from(first) * (self.heads() * splits) as u64;
                    let scratch =
                        shared().u64(sums + skipped * head_dim as u64 * 4).u64(scales + skipped * 8);
                    let parameters = sizes(scratch.u64(part_at)).u32(first).f32(self.scale).f32(self.cap);
                    let grid = [splits, kv_heads, part.len()].map(|count| count as u32);
                    let block = [32 * warps as u32, 1, 1];
                    let prefill = Launch { grid, block, shared: 0, parameters: parameters.bytes() };
                    let part = launch(kernels.attend, &mut memory, &prefill, seed)?;
                    counts.warp_instructions += part.warp_instructions;
                    counts.global_sectors += part.global_sectors;
                    counts.bank_conflicts += part.bank_conflicts;
                }
                self.combine(kernels, &mut memory, [rows, sums, scales, out], splits, seed)?;
            }
        }
        Ok((from_bytes(&memory.read(out, outputs * head_dim * 4)?), counts))
    }

    /// Joins the splits of rows that have several.
    fn combine(
        &self,
        kernels: &Kernels,
        memory: &mut Memory,
        [rows, sums, scales, out]: [u64; 4],
        splits: usize,
        seed: u64,
    ) -> Result<(), Wrong> {
        let parameters = Parameters::new().u64(rows).u64(sums).u64(scales).u64(out);
        let parameters = parameters.u32(self.heads() as u32).u32(self.head_dim as u32).u32(splits as u32);
        let grid = [self.heads() as u32, self.rows.len() as u32, 1];
        let combine = Launch { grid, block: [128, 1, 1], shared: 0, parameters: parameters.bytes() };
        launch(kernels.combine, memory, &combine, seed)?;
        Ok(())
    }

    /// Rows that follow each other in a sequence, so many at most, and no more pairs with heads than a CTA has places for.
    fn tiles(&self, rows: usize) -> Vec<[u32; 2]> {
        let most = (8 * prefill::warps(self.head_dim) / self.group).min(rows);
        let mut tiles: Vec<[u32; 2]> = Vec::new();
        for (at, row) in self.rows.iter().enumerate() {
            match tiles.last_mut() {
                Some([_, count])
                    if (*count as usize) < most && self.rows[at - 1].sequence == row.sequence =>
                {
                    *count += 1;
                }
                _ => tiles.push([at as u32, 1]),
            }
        }
        tiles
    }

    /// Runs the case and compares with the formula.
    fn check(&self, kernels: &Kernels, seed: u64) -> Result<(), Wrong> {
        self.is_near(&self.run(kernels, seed)?.0)
    }

    /// What the processor's plain path gives, `[row][head][head dim]`.
    fn plain(&self) -> Vec<f32> {
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        let mut out = Vec::new();
        for (row, queries) in self.rows.iter().zip(&self.queries) {
            let sees: Vec<bool> = (0..row.length).map(|slot| row.sees(slot)).collect();
            for (head, query) in queries.chunks(head_dim).enumerate() {
                let of = |halves: &[Vec<u16>]| -> Vec<f32> {
                    let slots = halves[row.sequence].chunks(kv_heads * head_dim).take(row.length);
                    let from = head / self.group * head_dim;
                    slots.flat_map(|slot| &slot[from..][..head_dim]).map(|&half| f16_to_f32(half)).collect()
                };
                let query: Vec<f32> = query.iter().map(|q| q * self.scale).collect();
                let cap = (self.cap > 0.0).then_some(self.cap);
                let kv = [&of(&self.keys)[..], &of(&self.values)];
                out.extend(plain::attend(&query, kv, &sees, cap).expect("room for the slots"));
            }
        }
        out
    }

    /// Compares with the formula. What may differ:
    /// - a score, by what its mma's lose of q . k, and by 2^-21 of the sum of |q k|, since a query is kept to 22 bits; by
    ///   2^-19 of it, the cap and 1 on the way from there to the argument of the exponential and through it;
    /// - a weight, by e^(its score's error) and by that of the others in the total; by the rounding to f16, 2^-11 of it or
    ///   2^-25 of the largest where f16 is subnormal;
    /// - the sum of a warp's 4 pages, by what 4 mma's lose, 96 cuts of 2^-23 of the sum of |w v|; by 2^-19 in the joins.
    fn is_near(&self, got: &[f32]) -> Result<(), Wrong> {
        let Case { head_dim, kv_heads, group, .. } = *self;
        for (at, row) in self.rows.iter().enumerate() {
            for head in 0..self.heads() {
                let of = |halves: &[Vec<u16>], slot: usize| -> Vec<f64> {
                    let from = (slot * kv_heads + head / group) * head_dim;
                    let halves = &halves[row.sequence][from..from + head_dim];
                    halves.iter().map(|&half| f64::from(f16_to_f32(half))).collect()
                };
                let q = &self.queries[at][head * head_dim..(head + 1) * head_dim];
                let slots: Vec<usize> = (0..row.length).filter(|&slot| row.sees(slot)).collect();
                // The score, and how far the kernel's may be.
                let score = |&slot: &usize| {
                    let scaled = |(k, &q): (f64, &f32)| k * f64::from(q) * f64::from(self.scale);
                    let products: Vec<f64> = of(&self.keys, slot).into_iter().zip(q).map(scaled).collect();
                    let size: f64 = products.iter().map(|product| product.abs()).sum();
                    let (score, cap) = (products.iter().sum::<f64>(), f64::from(self.cap));
                    let off = mma_slack(&products) + size * 2f64.powi(-21);
                    let score = if cap > 0.0 { cap * (score / cap).tanh() } else { score };
                    (score, off + (score.abs() + cap + 1.0) * 2f64.powi(-19))
                };
                let scores: Vec<(f64, f64)> = slots.iter().map(score).collect();
                let largest = scores.iter().map(|score| score.0).fold(f64::NEG_INFINITY, f64::max);
                let weights = scores.iter().map(|(score, off)| ((score - largest).exp(), off.exp_m1()));
                let total: f64 = weights.clone().map(|(weight, _)| weight).sum();
                let off_total = weights.clone().map(|(weight, off)| weight * off).sum::<f64>() / total;
                let mut want = vec![(0.0, 0.0); head_dim];
                for (&slot, (weight, off)) in slots.iter().zip(weights) {
                    let weight = weight / total;
                    let off = off + off_total + 2f64.powi(-11) + 96.0 * 2f64.powi(-23) + 2f64.powi(-19);
                    let off = weight * off + 2f64.powi(-25) / total;
                    for ((want, slack), v) in want.iter_mut().zip(of(&self.values, slot)) {
                        *want += weight * v;
                        *slack += off * v.abs();
                    }
                }
                for (dim, (want, slack)) in want.into_iter().enumerate() {
                    let got = f64::from(got[(at * self.heads() + head) * head_dim + dim]);
                    let near = (got - want).abs() <= slack; // never with a NaN
                    if !near {
                        return Err(Wrong::Result(format!(
                            "row {at} ({} of {} slots), head {head}, dim {dim}: {got}, not {want} within {slack:e}",
                            slots.len(),
                            row.length
                        )));
                    }
                }
            }
        }
        Ok(())
    }
}

struct Kernels<'a> {
    attend: &'a Module,
    combine: &'a Module,
    way: Way,
}

/// What overlaps attention: it makes, anew, a word of the queries, of the keys and of the values, and lets others begin before
/// it knows that those before it are done.
const BEFORE: &str = ".version 7.8\n.target sm_90\n.address_size 64
.visible .entry before(.param .u64 q, .param .u64 keys, .param .u64 values) {
    .reg .pred %p; .reg .b64 %q, %keys, %values; .reg .b32 %word;
    griddepcontrol.launch_dependents;
    ld.param.u64 %q, [q]; ld.param.u64 %keys, [keys]; ld.param.u64 %values, [values];
    griddepcontrol.wait;
    mov.u32 %word, %tid.x; setp.ne.u32 %p, %word, 0; @%p ret;
    ld.global.u32 %word, [%q]; st.global.u32 [%q], %word;
    ld.global.u32 %word, [%keys]; st.global.u32 [%keys], %word;
    ld.global.u32 %word, [%values]; st.global.u32 [%values], %word;
    ret;
}";

/// Which kernel `attend` is: one for a row at a time, or for tiles of so many rows at most.
#[derive(Clone, Copy)]
enum Way {
    Rows,
    /// The same twice, as a graph is replayed, and then with the splits joined by attend_combine: each time the same bits.
    Again,
    /// Rows, while launches before it run on: the layer before, then what makes queries, keys and values.
    Overlapping,
    Tiles(usize),
}

fn attend(head_dim: usize) -> Module {
    module(&format!("attend_{head_dim}.ptx"))
}

/// Rows that differ to the kernels: masks of every kind, windows, several rows of a sequence, splits that see nothing.
fn odd_rows(seed: u64) -> Vec<Row> {
    let mut seeded = Seeded::new(seed);
    let mut random = move |_| seeded.below(3) > 0;
    vec![
        Row::of(1, 300).masked(&mut random),
        Row::of(0, 37),
        Row::of(0, 38).masked(|slot| slot / 16 != 1), // a page that is not seen
        Row::of(1, 260).masked(|_| false),            // nothing
        Row::of(1, 301).masked(|slot| slot >= 290),   // nothing in the first split
        Row::of(1, 302).masked(|slot| slot == 100),   // and in the second
        Row { first: 257, ..Row::of(1, 303) },        // a window within one split
        Row { first: 19, ..Row::of(1, 304) }.masked(&mut random), // and over two
        Row { first: 9, ..Row::of(2, 9) },            // an empty window
        Row::of(2, 0),                                // no slot at all
        Row::of(2, 64).masked(|slot| slot == 63),
    ]
}

/// A window over many splits, of which few slots are seen.
fn long_row() -> Row {
    let length = 81 * SPLIT + 3;
    Row { first: 600, ..Row::of(0, length) }.masked(|slot| slot % 197 == 0 || slot == length - 1)
}

#[test]
fn attention_is_its_formula() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let attend = attend(head_dim);
        let kernels = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
        for (seed, group) in [1, 3, 4, 8].into_iter().enumerate() {
            let lengths = [1, 15, 16, 17, 255, 256, 257, 600];
            let rows = lengths.into_iter().enumerate().map(|(sequence, length)| Row::of(sequence, length));
            let seed = (head_dim + seed) as u64;
            let name = format!("heads of {head_dim}, groups of {group}, seed {seed}");
            passes(&name, Case::new(head_dim, 2, group, rows.collect(), seed).check(&kernels, seed));
            let name = format!("odd rows, {name}");
            let odd = Case::new(head_dim, 1, group, odd_rows(seed), seed);
            passes(&name, odd.check(&kernels, seed + 1));
            // The processor's plain path lies within the same bounds of the same formula.
            passes(&format!("the processor, {name}"), odd.is_near(&odd.plain()));
        }
    }
}

/// More heads to a group than a CTA takes, and more splits than a team takes at once.
#[test]
fn wide_groups_and_many_splits() {
    let combine = module("attend_combine.ptx");
    for head_dim in [64, 96] {
        let attend = attend(head_dim);
        let kernels = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
        passes("groups of 11", Case::new(head_dim, 2, 11, vec![Row::of(0, 40)], 5).check(&kernels, 5));
        passes("80 splits", Case::new(head_dim, 1, 2, vec![long_row()], 6).check(&kernels, 6));
    }
}

/// Scores far apart and far from 0: the largest decides, nothing overflows.
#[test]
fn large_scores_have_their_softmax() {
    let combine = module("attend_combine.ptx");
    let attend = attend(64);
    let kernels = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
    for (seed, scale) in [(0, 30.0), (1, -30.0), (2, 0.0)] {
        let case = Case { scale, ..Case::new(64, 1, 4, vec![Row::of(0, 300), Row::of(0, 20)], seed) };
        passes(&format!("scale {scale}"), case.check(&kernels, seed));
        for cap in [0.5, 50.0] {
            let case = Case { cap, ..case.clone() };
            passes(&format!("scale {scale}, cap {cap}"), case.check(&kernels, seed));
        }
    }
}

/// A row's bits are the same alone and among others, wherever its pages lie, whatever the grid.
#[test]
fn rows_do_not_meet() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let attend = attend(head_dim);
        let kernels = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
        let run = |case: &Case| match case.run(&kernels, 7) {
            Ok((out, _)) => out,
            Err(Wrong::Fault(fault)) => panic!("{fault}"),
            Err(Wrong::Result(what)) => panic!("{what}"),
        };
        let mut rows = odd_rows(3);
        rows.push(Row::of(2, 600));
        let together = Case::new(head_dim, 2, 3, rows, 11);
        let all = run(&together);
        let width = together.heads() * head_dim;
        for at in 0..together.rows.len() {
            let mut alone = together.clone();
            (alone.rows, alone.queries) =
                (vec![together.rows[at].clone()], vec![together.queries[at].clone()]);
            (alone.room, alone.seed) = (at % 3, together.seed + 1);
            passes(
                &format!("row {at} alone"),
                same("out", &bits(&run(&alone)), &bits(&all[at * width..][..width])),
            );
        }
        // Wild neighbours: values that are no numbers.
        let mut wild = together.clone();
        wild.values[2].fill(0x7e00);
        wild.keys[2].fill(0x7c00);
        let kept = together.rows.iter().position(|row| row.sequence == 2).expect("such a row") * width;
        passes("wild neighbours", same("out", &bits(&run(&wild)[..kept]), &bits(&all[..kept])));
    }
}

/// Keys and values are read once, in whole sectors; nothing else weighs; shared memory is met without conflicts.
#[test]
fn memory_is_read_once_and_without_conflicts() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let attend = attend(head_dim);
        let kernels = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
        let case = Case::new(head_dim, 2, 4, vec![Row::of(0, 1024)], 1);
        let Ok((_, counts)) = case.run(&kernels, 1) else { panic!("attention of 1024 slots") };
        let sectors = (1024 * 2 * head_dim * 2 * 2 / 32) as u64;
        assert!(
            (sectors..sectors * 9 / 8).contains(&counts.global_sectors),
            "{} sectors",
            counts.global_sectors
        );
        assert_eq!(counts.bank_conflicts, 0);
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// The cases that the faults are run on.
fn cases(kernels: &Kernels, head_dim: usize) -> Result<(), Wrong> {
    for seed in 0..2 {
        Case::new(head_dim, 2, 3, odd_rows(seed), seed).check(kernels, seed)?;
    }
    Case::new(head_dim, 1, 8, vec![Row::of(0, 600)], 2).check(kernels, 2)?;
    // Large scores: what f16 cuts off of the query counts.
    let case = Case::new(head_dim, 1, 8, (0..4).map(|sequence| Row::of(sequence, 90)).collect(), 3);
    Case { scale: 4.0, ..case }.check(kernels, 3)?;
    Case::new(head_dim, 1, 1, vec![long_row()], 4).check(kernels, 4)
}
