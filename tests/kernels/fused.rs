//! `fused_*` against the launches that each of them stands for, bit for bit: the rows made ready by `norm_quantize`, the
//! products by `gemv`, and what follows by `rotate_append` or `gate_quantize`. These have tests of their own.

use crate::gemv::packed;
use crate::harness::*;
use ptx_emulator::{Counts, Launch, Memory, Module, Parameters};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tartlet::model::quant::Quant;

mod faults;

const FORMATS: [(Quant, &str); 10] = [
    (Quant::Q4_0, "q4_0"),
    (Quant::Q4_1, "q4_1"),
    (Quant::Q5_0, "q5_0"),
    (Quant::Q5_1, "q5_1"),
    (Quant::Q8_0, "q8_0"),
    (Quant::Q4_K, "q4_k"),
    (Quant::Q5_K, "q5_k"),
    (Quant::Q6_K, "q6_k"),
    (Quant::F16, "f16"),
    (Quant::BF16, "bf16"),
];
const EPS: f32 = 1e-5;
const PAGES: usize = 4;

fn suffix(quant: Quant) -> &'static str {
    FORMATS.iter().find(|(of, _)| *of == quant).expect("a format with kernels").1
}

/// The kernels that the fused ones stand for, parsed once.
#[derive(Default)]
struct Parsed {
    modules: RefCell<HashMap<String, Rc<Module>>>,
    /// Of those that have one the module whose launches overlap.
    dependent: bool,
}

impl Parsed {
    fn get(&self, file: String) -> Rc<Module> {
        let parse = |file: &String| Rc::new(self.parse(file));
        self.modules.borrow_mut().entry(file).or_insert_with_key(parse).clone()
    }

    fn parse(&self, file: &str) -> Module {
        let later = if self.dependent { dependent_module(file) } else { None };
        later.unwrap_or_else(|| module(file))
    }
}

/// What a matrix is multiplied with.
struct Rows {
    columns: usize,
    tokens: usize,
    values: Vec<f32>,
    gain: Option<Vec<f32>>,
    /// They are made ready by a launch of their own.
    given: bool,
}

/// A device's memory with the rows on it, and what has been launched there.
struct Bed<'a> {
    parsed: &'a Parsed,
    memory: Memory,
    rows: &'a Rows,
    x: u64,
    gain: u64,
    /// Quants with scales, or bf16, or f16.
    ready: [u64; 4],
    seed: u64,
}

fn padded(columns: usize) -> usize {
    columns.next_multiple_of(64)
}

impl<'a> Bed<'a> {
    fn new(parsed: &'a Parsed, rows: &'a Rows, seed: u64) -> Result<Bed<'a>, Wrong> {
        let mut memory = Memory::new();
        let x = memory.upload("x", &to_bytes(&rows.values));
        memory.protect(x, true);
        let gain = rows.gain.as_ref().map_or(0, |gain| memory.upload("gain", &to_bytes(gain)));
        let mut bed = Bed { parsed, memory, rows, x, gain, ready: [0; 4], seed };
        let values = rows.tokens * padded(rows.columns);
        let [xq, bf16, f16] =
            [("xq", 1), ("bf16", 2), ("f16", 2)].map(|(name, bytes)| bed.memory.alloc(values * bytes, name));
        let xs = bed.memory.alloc(values / 32 * 8, "xs");
        bed.ready = [xq, xs, bf16, f16];
        for (file, to) in [("norm_quantize_f16.ptx", [0, 0, f16]), ("norm_quantize.ptx", [xq, xs, bf16])] {
            let addresses = [x, gain].into_iter().chain(to);
            let parameters = addresses.fold(Parameters::new(), Parameters::u64);
            let parameters = parameters.u32(rows.columns as u32).f32(EPS);
            let grid = [rows.tokens, rows.columns.div_ceil(8192)];
            bed.launch(&parsed.get(file.to_owned()), grid, 256, 0, parameters)?;
        }
        Ok(bed)
    }

    fn launch(
        &mut self,
        module: &Module,
        [x, y]: [usize; 2],
        threads: u32,
        shared: usize,
        parameters: Parameters,
    ) -> Result<Counts, Wrong> {
        let shape = Launch {
            grid: [x as u32, y as u32, 1],
            block: [threads, 1, 1],
            shared: shared as u32,
            parameters: parameters.bytes(),
        };
        Ok(launch(module, &mut self.memory, &shape, self.seed)?)
    }

    fn constant<T: Plain>(&mut self, name: &'static str, numbers: &[T]) -> u64 {
        let at = self.memory.upload(name, &to_bytes(numbers));
        self.memory.protect(at, true);
        at
    }

    /// A matrix's quants and scales; of floats no scales.
    fn matrix(&mut self, quant: Quant, n: usize, file: &[u8]) -> [u64; 2] {
        let [quants, scales] = packed(quant, n, self.rows.columns, file);
        let quants = self.constant("weights", &quants);
        [quants, if is_float(quant) { 0 } else { self.constant("scales", &scales) }]
    }

    /// Of the rows that were made ready those that the format reads.
    fn ready(&self, quant: Quant) -> Vec<u64> {
        let [xq, xs, bf16, f16] = self.ready;
        match quant {
            Quant::F16 => vec![f16],
            Quant::BF16 => vec![bf16],
            _ => vec![xq, xs],
        }
    }

    /// What all fused kernels are given first.
    fn parameters(&self, quant: Quant, [quants, scales]: [u64; 2], n: usize) -> Parameters {
        let mut addresses = vec![quants];
        addresses.extend((!is_float(quant)).then_some(scales));
        let ready = self.ready(quant);
        match self.rows.given {
            true => addresses.extend([0, 0].into_iter().chain(ready)),
            false => addresses.extend([self.x, self.gain].into_iter().chain(ready.iter().map(|_| 0))),
        }
        let parameters = addresses.into_iter().fold(Parameters::new(), Parameters::u64);
        let sizes = [self.rows.columns, n, self.rows.tokens];
        sizes.iter().fold(parameters, |list, &size| list.u32(size as u32)).f32(EPS)
    }

    /// The products by `gemv`, added to what is there if it says so.
    fn products(
        &mut self,
        quant: Quant,
        [quants, scales]: [u64; 2],
        n: usize,
        to: (u64, bool),
    ) -> Result<Counts, Wrong> {
        let module = self.parsed.get(format!("gemv_{}.ptx", suffix(quant)));
        self.products_by(&module, quant, [quants, scales], n, to)
    }

    fn products_by(
        &mut self,
        module: &Module,
        quant: Quant,
        [quants, scales]: [u64; 2],
        n: usize,
        (y, adds): (u64, bool),
    ) -> Result<Counts, Wrong> {
        let mut addresses = vec![quants];
        addresses.extend((!is_float(quant)).then_some(scales));
        addresses.extend(self.ready(quant));
        addresses.push(y);
        let parameters = addresses.into_iter().fold(Parameters::new(), Parameters::u64);
        let counts = [n, self.rows.columns.div_ceil(64), self.rows.tokens, adds.into()];
        let parameters = counts.iter().fold(parameters, |list, &count| list.u32(count as u32));
        let (grid, threads, shared) = crate::gemv::ctas(quant, n, self.rows.tokens);
        self.launch(module, [grid[0] as usize, 1], threads, shared as usize, parameters)
    }

    fn same<T: Plain + PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        [got, want]: [u64; 2],
        count: usize,
    ) -> Result<(), Wrong> {
        let read = |memory: &Memory, at| memory.read(at, count * size_of::<T>());
        let (got, want) = (read(&self.memory, got)?, read(&self.memory, want)?);
        same(what, &from_bytes::<T>(&got), &from_bytes::<T>(&want))
    }
}

impl Rows {
    fn seeded(quant: Quant, columns: usize, tokens: usize, normed: bool, seeded: &mut Seeded) -> Rows {
        let columns = whole(quant, columns);
        let gain = normed.then(|| (0..columns).map(|_| 1.0 + seeded.unit() / 2.0).collect());
        Rows { columns, tokens, values: seeded.normals(tokens * columns), gain, given: false }
    }

    /// Bytes of shared memory, as fused.inc has them.
    fn shared(&self, quant: Quant, least: usize) -> usize {
        let (pairs, unit) = (self.columns.div_ceil(64), if quant.block_len() > 32 { 4 } else { 1 });
        let run = pairs.div_ceil(4 * unit) * unit * if is_float(quant) { 2 } else { 1 };
        let row = if is_float(quant) { 528 } else { 656 };
        (4 * run.div_ceil(8) * self.tokens * row).max(least)
    }
}

// --- fused_output ---

fn output(
    parsed: &Parsed,
    module: &Module,
    quant: Quant,
    rows: &Rows,
    n: usize,
    seed: u64,
) -> Result<[Counts; 2], Wrong> {
    let mut bed = Bed::new(parsed, rows, seed)?;
    let seeded = &mut Seeded::new(seed);
    let file = blocks(quant, n, rows.columns, seeded);
    let matrix = bed.matrix(quant, n, &file);
    let adds = seed % 2 == 1;
    let count = rows.tokens * n;
    let before = to_bytes(&seeded.normals(count));
    let y = [(); 2].map(|()| match adds {
        true => bed.memory.upload("y", &before),
        false => bed.memory.alloc(count * 4, "y"),
    });
    let parameters = bed.parameters(quant, matrix, n).u64(y[0]).u32(adds.into());
    let fused = bed.launch(module, [n.div_ceil(32), 1], 256, rows.shared(quant, 5248), parameters)?;
    let plain = bed.products(quant, matrix, n, (y[1], adds))?;
    bed.same::<u32>(&format!("y of {n} x {}, {} tokens", rows.columns, rows.tokens), y, count)?;
    Ok([fused, plain])
}

/// One row, ragged tiles, runs that are empty or shorter, batches begun, whole and several, every count of tokens.
fn outputs(parsed: &Parsed, module: &Module, quant: Quant) -> Result<(), Wrong> {
    let shapes = [
        (1, 32, 1),
        (17, 192, 2),
        (32, 64, 8),
        (40, 576, 3),
        (9, 608, 7),
        (49, 2080, 4),
        (33, 4640, 5),
        (24, 1536, 6),
        (20, 8192, 1),
    ];
    for (seed, (n, columns, tokens)) in (0..).zip(shapes) {
        let seeded = &mut Seeded::new(seed + 50);
        let mut rows = Rows::seeded(quant, columns, tokens, seed % 3 == 0, seeded);
        rows.given = seed % 4 == 3;
        output(parsed, module, quant, &rows, n, seed)?;
    }
    Ok(())
}

// --- fused_gate_up ---

fn gate_up(
    parsed: &Parsed,
    module: &Module,
    quant: Quant,
    rows: &Rows,
    n: usize,
    seed: u64,
) -> Result<[Counts; 2], Wrong> {
    let mut bed = Bed::new(parsed, rows, seed)?;
    let file = blocks(quant, 2 * n, rows.columns, &mut Seeded::new(seed));
    let matrix = bed.matrix(quant, 2 * n, &file);
    let values = rows.tokens * padded(n);
    let to = [("quants", values), ("scales", values / 4), ("bf16", 2 * values), ("f16", 2 * values)];
    let to = to.map(|(name, bytes)| [(); 2].map(|()| bed.memory.alloc(bytes, name)));
    let gelu = seed % 3 == 2;
    let parameters = to.iter().fold(bed.parameters(quant, matrix, n), |list, to| list.u64(to[0]));
    let fused = bed.launch(
        module,
        [padded(n) / 32, 1],
        256,
        rows.shared(quant, 10_496),
        parameters.u32(gelu.into()),
    )?;

    let y = bed.memory.alloc(rows.tokens * 2 * n * 4, "gate and up");
    let plain = bed.products(quant, matrix, 2 * n, (y, false))?;
    let [quants, scales, bf16, f16] = to.map(|to| to[1]);
    for (file, to) in [("gate_quantize.ptx", [quants, scales, bf16]), ("gate_quantize_f16.ptx", [0, 0, f16])]
    {
        let addresses = [y, y + n as u64 * 4].into_iter().chain(to).chain([0]);
        let parameters = addresses.fold(Parameters::new(), Parameters::u64);
        let parameters = parameters.u32(n as u32).u32(2 * n as u32).u32(gelu.into());
        let module = parsed.get(file.to_owned());
        bed.launch(&module, [rows.tokens, padded(n).div_ceil(1024)], 256, 0, parameters)?;
    }
    bed.same::<i8>("quants", to[0], values)?;
    bed.same::<u32>("scales and sums", to[1], values / 16)?;
    bed.same::<u16>("bf16", to[2], values)?;
    bed.same::<u16>("f16", to[3], values)?;
    Ok([fused, plain])
}

/// Blocks that the rows' padding begins with, silu and gelu.
fn gates(parsed: &Parsed, module: &Module, quant: Quant) -> Result<(), Wrong> {
    let shapes = [(32, 32, 1), (96, 192, 2), (64, 576, 8), (160, 608, 3), (32, 2080, 5), (64, 4640, 1)];
    for (seed, (n, columns, tokens)) in (0..).zip(shapes) {
        let mut rows = Rows::seeded(quant, columns, tokens, seed != 1, &mut Seeded::new(seed + 70));
        rows.given = seed % 3 == 2;
        gate_up(parsed, module, quant, &rows, n, seed)?;
    }
    Ok(())
}

// --- fused_qkv ---

#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dims: usize,
    halves: bool,
    biased: bool,
    /// V is a launch of its own, as where its format differs.
    apart: bool,
}

fn qkv(
    parsed: &Parsed,
    module: &Module,
    quant: Quant,
    rows: &Rows,
    of: Heads,
    seed: u64,
) -> Result<[Counts; 2], Wrong> {
    let Heads { heads, kv_heads, head_dim, dims, .. } = of;
    let mut bed = Bed::new(parsed, rows, seed)?;
    let seeded = &mut Seeded::new(seed);
    let (all, tokens) = (heads + 2 * kv_heads, rows.tokens);
    let n = all * head_dim;
    let file = blocks(quant, n, rows.columns, seeded);
    let biases = [heads, kv_heads, kv_heads].map(|heads| seeded.normals(heads * head_dim));
    let biases = biases.map(|bias| if of.biased { bed.constant("bias", &bias) } else { 0 });
    let angles: Vec<f32> = (0..tokens * dims / 2).map(|_| 3.0 * seeded.unit()).collect();
    let turns: Vec<f32> = angles.iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
    let turns = bed.constant("turns", &turns);
    let mut slots: Vec<u32> = (0..PAGES as u32 * 16).collect();
    (0..tokens).for_each(|token| slots.swap(token, token + seeded.below(PAGES * 16 - token)));
    let slots = bed.constant("slots", &slots[..tokens]);
    let kept = PAGES * kv_heads * 16 * head_dim;
    let before: Vec<u16> = (0..kept).map(|_| seeded.bits() as u16).collect();
    let out = [(); 2].map(|()| bed.memory.alloc(tokens * heads * head_dim * 4, "out"));
    let keys = [(); 2].map(|()| bed.memory.upload("keys", &to_bytes(&before)));
    let values = [(); 2].map(|()| bed.memory.upload("values", &to_bytes(&before)));

    let cut = heads + kv_heads;
    let parts = if of.apart { vec![(0, cut), (cut, all)] } else { vec![(0, all)] };
    let mut fused = Counts::default();
    for (start, end) in parts {
        let row_bytes = head_dim * quant.row_bytes(rows.columns);
        let count = (end - start) * head_dim;
        let matrix = bed.matrix(quant, count, &file[start * row_bytes..end * row_bytes]);
        let addresses = biases.into_iter().chain([turns, slots, out[0], keys[0], values[0]]);
        let parameters = addresses.fold(bed.parameters(quant, matrix, count), Parameters::u64);
        let sizes = [start, heads, kv_heads, head_dim, dims, of.halves.into()];
        let parameters = sizes.iter().fold(parameters, |list, &size| list.u32(size as u32));
        fused = bed.launch(module, [count / 32, 1], 256, rows.shared(quant, 5248), parameters)?;
    }

    let matrix = bed.matrix(quant, n, &file);
    let y = bed.memory.alloc(tokens * n * 4, "q, k, v");
    let plain = bed.products(quant, matrix, n, (y, false))?;
    let starts = [0, heads, heads + kv_heads].map(|head| y + (head * head_dim * 4) as u64);
    let addresses = starts.into_iter().chain(biases).chain([0, 0, turns, slots, out[1], keys[1], values[1]]);
    let parameters = addresses.fold(Parameters::new(), Parameters::u64);
    let sizes = [heads, kv_heads, head_dim, dims, of.halves.into(), n, n, n];
    let parameters = sizes.iter().fold(parameters, |list, &size| list.u32(size as u32)).f32(EPS);
    bed.launch(&parsed.get("rotate_append.ptx".to_owned()), [all.div_ceil(4), tokens], 128, 0, parameters)?;
    bed.same::<u32>("queries", out, tokens * heads * head_dim)?;
    bed.same::<u16>("keys", keys, kept)?;
    bed.same::<u16>("values", values, kept)?;
    Ok([fused, plain])
}

const PLAIN: Heads =
    Heads { heads: 3, kv_heads: 1, head_dim: 64, dims: 64, halves: false, biased: false, apart: false };

/// Both pairings, heads of each size, turned in part or not at all, with and without bias, V alone.
fn projections(parsed: &Parsed, module: &Module, quant: Quant) -> Result<(), Wrong> {
    let cases = [
        (576, 1, PLAIN),
        (192, 3, Heads { heads: 2, kv_heads: 2, halves: true, biased: true, ..PLAIN }),
        (64, 8, Heads { heads: 2, head_dim: 128, dims: 96, halves: true, apart: true, ..PLAIN }),
        (608, 2, Heads { heads: 1, head_dim: 96, dims: 20, biased: true, ..PLAIN }),
        (2080, 1, Heads { heads: 1, head_dim: 256, dims: 256, halves: true, ..PLAIN }),
        (96, 5, Heads { heads: 2, head_dim: 32, dims: 0, halves: true, biased: true, apart: true, ..PLAIN }),
    ];
    for (seed, (columns, tokens, heads)) in (0..).zip(cases) {
        let mut rows = Rows::seeded(quant, columns, tokens, true, &mut Seeded::new(seed + 90));
        rows.given = seed == 2;
        qkv(parsed, module, quant, &rows, heads, seed)?;
    }
    Ok(())
}

type Cases = fn(&Parsed, &Module, Quant) -> Result<(), Wrong>;
const KERNELS: [(&str, Cases); 3] = [("output", outputs), ("gate_up", gates), ("qkv", projections)];

#[test]
fn what_is_fused_has_the_bits_of_its_parts() {
    for dependent in [false, true] {
        let parsed = Parsed { dependent, ..Parsed::default() };
        for (kernel, cases) in KERNELS {
            for (quant, suffix) in FORMATS {
                let file = format!("fused_{kernel}_{suffix}.ptx");
                passes(&file, cases(&parsed, &parsed.parse(&file), quant));
            }
        }
    }
}

/// What making rows ready costs every CTA, against the product by `gemv` alone: instructions, at a width of real models, and
/// the row twice with its gains once. Weights come once, and shared memory has no conflicts. A host chooses by these numbers.
#[test]
fn rows_are_made_ready_at_their_price() {
    let parsed = Parsed::default();
    let (quant, n, columns) = (Quant::Q4_0, 128, 4096);
    for (tokens, given, budgets) in [
        (1, false, [1.5, 1.3]),
        (2, false, [2.0, 1.5]),
        (4, false, [3.0, 2.0]),
        (1, true, [1.0; 2]),
        (2, true, [1.0; 2]),
        (8, true, [1.0; 2]),
    ] {
        let mut rows = Rows::seeded(quant, columns, tokens, true, &mut Seeded::new(3));
        rows.given = given;
        let runs = [
            ("output", output(&parsed, &module("fused_output_q4_0.ptx"), quant, &rows, n, 0)),
            ("gate_up", gate_up(&parsed, &module("fused_gate_up_q4_0.ptx"), quant, &rows, n / 2, 0)),
        ];
        for ((name, run), budget) in runs.into_iter().zip(budgets) {
            let Ok([fused, plain]) = run else { panic!("{name}: other bits") };
            let (instructions, sectors) = (fused.instructions as f64, fused.global_sectors as usize);
            let ratio = instructions / plain.instructions as f64;
            let what = format!("{name}, {tokens} tokens{}", if given { ", ready" } else { "" });
            println!(
                "{what}: {ratio:.2} times gemv's instructions, {sectors} sectors to {}",
                plain.global_sectors
            );
            let ready = if given { columns + columns / 4 } else { 3 * 4 * columns };
            let (rows, made) = if name == "output" { (32, n * 4) } else { (64, n / 2 * 5 + n / 8) };
            let read = quant.row_bytes(columns) * n + n / rows * tokens * ready;
            assert!(
                (read..=read + tokens * (made + 64)).contains(&(sectors * 32)),
                "{what}: {sectors} sectors"
            );
            assert!(ratio < budget, "{what}: {ratio} times the instructions");
            assert_eq!(fused.bank_conflicts, 0, "{what}");
        }
    }
}
