//! The matrix-matrix kernels against their own formula: bit for bit where sums are integers, and against gemv.
//!
//! Owns: the formula in the sheet's order of summation, the shapes, the faults put into `gemm.inc`. Never: repacking or
//! quantising, which have tests of their own.

use crate::harness::*;
use ptx_emulator::{Counts, Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cuda::repack::Layout;
use tartlet::model::quant::{Quant, f16_to_f32};

/// Columns of a pair of blocks: K is filled up to a multiple.
const PAIR: usize = 64;

/// A kernel and the tile of a CTA.
#[derive(Clone, Copy)]
struct Kernel {
    file: &'static str,
    quant: Quant,
    rows: usize,
    tokens: usize,
}

const KERNELS: [Kernel; 8] = [
    Kernel { file: "gemm_q4_0.ptx", quant: Quant::Q4_0, rows: 128, tokens: 64 },
    Kernel { file: "gemm_q4_1.ptx", quant: Quant::Q4_1, rows: 128, tokens: 64 },
    Kernel { file: "gemm_q8_0.ptx", quant: Quant::Q8_0, rows: 128, tokens: 64 },
    Kernel { file: "gemm_bf16.ptx", quant: Quant::BF16, rows: 128, tokens: 64 },
    Kernel { file: "gemm_q4_0_narrow.ptx", quant: Quant::Q4_0, rows: 64, tokens: 32 },
    Kernel { file: "gemm_q4_1_narrow.ptx", quant: Quant::Q4_1, rows: 64, tokens: 32 },
    Kernel { file: "gemm_q8_0_narrow.ptx", quant: Quant::Q8_0, rows: 64, tokens: 32 },
    Kernel { file: "gemm_bf16_narrow.ptx", quant: Quant::BF16, rows: 64, tokens: 32 },
];

/// (K, N, tokens): the model's shapes, one token and one more than a tile, ragged rows, K of one pair (three segments
/// empty), of half a pair more, of five pairs (segments of 2, 2, 1, 0) and of nine.
const SHAPES: [(usize, usize, usize); 7] = [
    (576, 192, 65),
    (192, 576, 17),
    (64, 100, 5),
    (96, 20, 33),
    (320, 130, 1),
    (576, 100, 8),
    (512, 16, 130),
];

/// y = x W^T, everything the kernels are given.
struct Product {
    quant: Quant,
    k: usize,
    n: usize,
    tokens: usize,
    /// As in a GGUF file.
    weights: Vec<u8>,
    /// s8 [token][padded k], or bf16.
    x: Vec<i8>,
    halves: Vec<u16>,
    /// [token][padded k / 32]
    scales: Vec<(f32, i32)>,
    /// What y holds before.
    before: Vec<f32>,
}

impl Product {
    fn new(quant: Quant, (k, n, tokens): (usize, usize, usize), seed: u64) -> Product {
        let mut seeded = Seeded::new(seed);
        let weights = blocks(quant, n, k, &mut seeded);
        let padded = k.next_multiple_of(PAIR);
        let (mut x, mut halves, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..tokens {
            for at in (0..padded).step_by(32) {
                let inside = at < k;
                let mut sum = 0;
                // Some blocks are all at the ends of the range: the largest sums there are.
                let extreme = seeded.below(8) == 0;
                for _ in 0..32 {
                    let q = if extreme { 127 } else { seeded.below(255) as i8 as i32 };
                    let q = if inside { q.max(-127) } else { 0 };
                    sum += q;
                    x.push(q as i8);
                    halves.push(if inside { f32_to_bf16(seeded.normal()) } else { 0 });
                }
                scales.push(if inside { (0.001 + 0.01 * seeded.unit().abs(), sum) } else { (0.0, 0) });
            }
        }
        let before = seeded.normals(tokens * n);
        Product { quant, k, n, tokens, weights, x, halves, scales, before }
    }

    fn pairs(&self) -> usize {
        self.k.div_ceil(PAIR)
    }

    /// The same product of some of the tokens.
    fn of(&self, tokens: &[usize]) -> Product {
        fn some<T: Copy>(all: &[T], tokens: usize, which: &[usize]) -> Vec<T> {
            let each = all.len() / tokens;
            which.iter().flat_map(|&token| all[token * each..][..each].iter().copied()).collect()
        }
        Product {
            quant: self.quant,
            k: self.k,
            n: self.n,
            tokens: tokens.len(),
            weights: self.weights.clone(),
            x: some(&self.x, self.tokens, tokens),
            halves: some(&self.halves, self.tokens, tokens),
            scales: some(&self.scales, self.tokens, tokens),
            before: some(&self.before, self.tokens, tokens),
        }
    }

    /// Block `block` of `row`: 32 integers, their scale, their minimum.
    fn block(&self, row: usize, block: usize) -> ([i32; 32], f32, f32) {
        let bytes = self.quant.row_bytes(32);
        let block = &self.weights[row * self.quant.row_bytes(self.k) + block * bytes..][..bytes];
        let half = |at: usize| f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
        let nibble = |at: usize, i: usize| i32::from(block[at + i % 16] >> (i / 16 * 4) & 15);
        match self.quant {
            Quant::Q4_0 => (std::array::from_fn(|i| nibble(2, i) - 8), half(0), 0.0),
            Quant::Q4_1 => (std::array::from_fn(|i| nibble(4, i)), half(0), half(2)),
            _ => (std::array::from_fn(|i| i32::from(block[2 + i] as i8)), half(0), 0.0),
        }
    }

    /// The four segments of K's pairs, as blocks of 32 that exist.
    fn segments(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (blocks, segment) = (self.k / 32, self.pairs().div_ceil(4) * 2);
        (0..4).map(move |s| (s * segment).min(blocks)..((s + 1) * segment).min(blocks))
    }

    /// y in f32, in the order of the sheet: quantised formats.
    fn exactly(&self) -> Vec<f32> {
        let mut y = vec![0.0; self.tokens * self.n];
        for row in 0..self.n {
            let blocks: Vec<_> = (0..self.k / 32).map(|block| self.block(row, block)).collect();
            for token in 0..self.tokens {
                let padded = self.pairs() * PAIR;
                let x = &self.x[token * padded..][..padded];
                let scales = &self.scales[token * padded / 32..][..padded / 32];
                let segments = self.segments().map(|segment| {
                    segment.fold(0.0f32, |acc, at| {
                        let (w, d, m) = &blocks[at];
                        let (xd, sum) = scales[at];
                        let x = &x[at * 32..][..32];
                        let product: i32 = w.iter().zip(x).map(|(w, x)| w * i32::from(*x)).sum();
                        let acc = (d * xd).mul_add(product as f32, acc);
                        if self.quant == Quant::Q4_1 { m.mul_add(xd * sum as f32, acc) } else { acc }
                    })
                });
                y[token * self.n + row] = segments.reduce(|a, b| a + b).expect("four segments");
            }
        }
        y
    }

    /// y in f64, and the sum of magnitudes beside each, which errors are measured by: bf16.
    fn nearly(&self) -> Vec<(f64, f64)> {
        let weight = |row: usize, k: usize| {
            let at = (row * self.k + k) * 2;
            f64::from(bf16_to_f32(u16::from_le_bytes([self.weights[at], self.weights[at + 1]])))
        };
        let x = |token: usize, k: usize| f64::from(bf16_to_f32(self.halves[token * self.pairs() * PAIR + k]));
        let one = |token: usize, row: usize| {
            (0..self.k)
                .map(|k| weight(row, k) * x(token, k))
                .fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()))
        };
        (0..self.tokens).flat_map(|token| (0..self.n).map(move |row| one(token, row))).collect()
    }

    /// y as the kernel computes it; `add` says whether onto what is there.
    fn run(
        &self,
        module: &Module,
        grid: [u32; 3],
        (threads, shared): (u32, u32),
        add: bool,
        seed: u64,
    ) -> Result<(Vec<f32>, Counts), Wrong> {
        let layout = Layout::new(self.quant, self.n, self.k).expect("a format with a kernel");
        let (mut quants, mut scales) = (vec![0; layout.quant_bytes()], vec![0; layout.scale_bytes()]);
        layout.pack(&self.weights, &mut quants, &mut scales);
        let mut memory = Memory::new();
        let mut constant = |name: &str, bytes: &[u8]| {
            let address = memory.upload(name, bytes);
            memory.protect(address, true);
            address
        };
        let mut parameters = Parameters::new().u64(constant("weights", &quants));
        if self.quant == Quant::BF16 {
            parameters = parameters.u64(constant("x", &to_bytes(&self.halves)));
        } else {
            parameters = parameters.u64(constant("scales", &scales));
            parameters = parameters.u64(constant("xq", &to_bytes(&self.x)));
            let pairs = self.scales.iter().flat_map(|(d, sum)| [d.to_bits(), *sum as u32]);
            parameters = parameters.u64(constant("xs", &to_bytes(&pairs.collect::<Vec<u32>>())));
        }
        // Without `add` nothing may be read of y: reading what nobody wrote is a fault.
        let bytes = self.before.len() * 4;
        let y = if add { memory.upload("y", &to_bytes(&self.before)) } else { memory.alloc(bytes, "y") };
        let counts = [self.n as u32, self.pairs() as u32, self.tokens as u32, u32::from(add)];
        parameters = counts.into_iter().fold(parameters.u64(y), Parameters::u32);
        let launched = Launch { grid, block: [threads, 1, 1], shared, parameters: parameters.bytes() };
        let counts = launch(module, &mut memory, &launched, seed)?;
        Ok((from_bytes(&memory.read(y, bytes)?), counts))
    }

    fn gemm(
        &self,
        kernel: &Kernel,
        module: &Module,
        add: bool,
        seed: u64,
    ) -> Result<(Vec<f32>, Counts), Wrong> {
        let grid = [self.tokens.div_ceil(kernel.tokens) as u32, self.n.div_ceil(kernel.rows) as u32, 1];
        self.run(module, grid, ((kernel.rows * kernel.tokens / 32) as u32, 0), add, seed)
    }

    /// y against the formula.
    fn check(&self, y: &[f32], add: bool) -> Result<(), Wrong> {
        let before = |at: usize| if add { self.before[at] } else { 0.0 };
        if self.quant == Quant::BF16 {
            let want = self.nearly();
            let wrong = y.iter().zip(&want).enumerate().find(|(at, (y, (want, magnitude)))| {
                let error = f64::from(**y) - want - f64::from(before(*at));
                // f32 sums of at most K / 16 mma results, each rounded; 2^-22 of the magnitudes is some ulp of them.
                error.is_nan() || error.abs() > 1e-6 + magnitude / f64::from(1 << 22)
            });
            return match wrong {
                Some((at, (y, (want, _)))) => {
                    let want = want + f64::from(before(at));
                    Err(Wrong::Result(format!("y[{at}] is {y}, not {want}")))
                }
                None => Ok(()),
            };
        }
        let mut want = self.exactly();
        if add {
            want.iter_mut().enumerate().for_each(|(at, want)| *want += before(at));
        }
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>();
        match bits(y) == bits(&want) {
            true => Ok(()),
            false => same("y", y, &want),
        }
    }
}

fn name(kernel: &Kernel, shape: (usize, usize, usize), seed: u64) -> String {
    format!("{} K, N, tokens {shape:?}, seed {seed}", kernel.file)
}

#[test]
fn products_are_those_of_the_formula() {
    for kernel in &KERNELS {
        let module = module(kernel.file);
        for (seed, shape) in (0..).zip(SHAPES) {
            let product = Product::new(kernel.quant, shape, seed);
            let add = seed % 2 == 1;
            let ended = product.gemm(kernel, &module, add, seed).and_then(|(y, _)| product.check(&y, add));
            passes(&name(kernel, shape, seed), ended);
        }
    }
}

#[test]
fn a_tokens_bits_depend_on_no_other_token() {
    for kernel in &KERNELS {
        let module = module(kernel.file);
        let shape = (320, 48, 70);
        let whole = Product::new(kernel.quant, shape, 11);
        let which = [69, 0, 33, 64, 7];
        let run = || -> Result<(), Wrong> {
            let (all, _) = whole.gemm(kernel, &module, false, 1)?;
            let all: Vec<f32> = which.iter().flat_map(|&token| all[token * 48..][..48].to_vec()).collect();
            let (some, _) = whole.of(&which).gemm(kernel, &module, false, 2)?;
            same("some", &some, &all)?;
            let (one, _) = whole.of(&which[..1]).gemm(kernel, &module, false, 3)?;
            same("one", &one, &all[..48])
        };
        passes(&name(kernel, shape, 11), run());
    }
}

#[test]
fn gemv_gives_the_same_bits() {
    for kernel in KERNELS.iter().filter(|kernel| kernel.quant != Quant::BF16) {
        let gemm = module(kernel.file);
        let gemv = module(&kernel.file.replace("gemm", "gemv").replace("_narrow", ""));
        for shape in [(576, 100, 8), (320, 48, 3), (1088, 16, 1)] {
            let product = Product::new(kernel.quant, shape, 5);
            let run = || -> Result<(), Wrong> {
                let (y, _) = product.gemm(kernel, &gemm, true, 1)?;
                let grid = [shape.1.div_ceil(16) as u32, 1, 1];
                let (vector, _) = product.run(&gemv, grid, (128, 5248 * shape.2 as u32), true, 2)?;
                same("y", &y, &vector)
            };
            passes(&name(kernel, shape, 5), run());
        }
    }
}

/// Shared memory without conflicts; weights and tokens read once for each CTA that needs them, in whole sectors.
#[test]
fn no_bank_conflicts_and_whole_sectors() {
    for kernel in &KERNELS {
        let shape = (576, 256, 128);
        let product = Product::new(kernel.quant, shape, 3);
        let run = product.gemm(kernel, &module(kernel.file), false, 3);
        let (_, counts) = run.unwrap_or_else(|wrong| match wrong {
            Wrong::Fault(fault) => panic!("{}: {fault}", kernel.file),
            Wrong::Result(what) => panic!("{}: {what}", kernel.file),
        });
        println!("{}: {counts:?}", kernel.file);
        assert_eq!(counts.bank_conflicts, 0, "{}", kernel.file);
        let layout = Layout::new(kernel.quant, shape.1, shape.0).expect("a format with a kernel");
        let weights = (layout.quant_bytes() + layout.scale_bytes()) * (shape.2 / kernel.tokens);
        let token = match kernel.quant {
            Quant::BF16 => shape.0 * 2,
            // Of a pair of {d, sum} a step reads 16 bytes, half a sector.
            _ => shape.0 + shape.0 / 64 * 32,
        };
        let x = token * shape.2 * (shape.1 / kernel.rows);
        let bytes = weights + x + shape.1 * shape.2 * 4;
        assert_eq!(counts.global_sectors * 32, bytes as u64, "{}", kernel.file);
    }
}

use Caught::{By, WrongResult};

const fn fault(name: &'static str, find: &'static str, replace: &'static str, caught: Caught) -> Fault {
    Fault { name, file: "gemm.inc", find, replace, caught }
}

const FAULTS: [Fault; 19] = [
    fault("no barrier", "    bar.sync        0;", "", By(Kind::UninitialisedShared)),
    fault(
        "a stage filled before the barrier",
        "    bar.sync        0;                      // as far as all did; and all have read the stage that is filled next\n    FILL\n",
        "    FILL\n    bar.sync        0;\n",
        By(Kind::SharedRace),
    ),
    fault(
        "a wait that lets one more in flight",
        "wait_group \\(STAGES - 2)",
        "wait_group \\(STAGES - 1)",
        By(Kind::CopyNotWaited),
    ),
    fault("copies in no group", "    cp.async.commit_group;", "", By(Kind::CopyNotWaited)),
    fault(
        "the ring turns one stage early",
        "%ring_end, %ring, \\(STAGES",
        "%ring_end, %ring, \\((STAGES - 1)",
        By(Kind::CopyNotWaited),
    ),
    fault(
        "shared memory one stage short",
        "stages[\\(STAGES ",
        "stages[\\((STAGES - 1) ",
        By(Kind::OutOfBounds),
    ),
    fault(
        "a stage past the end of K",
        "setp.lt.u32     %more",
        "setp.le.u32     %more",
        By(Kind::OutOfBounds),
    ),
    fault(
        "tokens past the end are read",
        "%ok, %t1, %tokens;",
        "%ok, %t1, 0x7fffffff;",
        By(Kind::OutOfBounds),
    ),
    fault(
        "row tiles past the end are read",
        "%ok, %t1, %row_tiles;",
        "%ok, %t1, 0x7fffffff;",
        By(Kind::OutOfBounds),
    ),
    fault("one row too many is stored", "setp.gt.and.s32 %ok", "setp.ge.and.s32 %ok", By(Kind::GlobalRace)),
    fault(
        "one token too many is stored",
        "setp.gt.s32     %token_ok",
        "setp.ge.s32     %token_ok",
        By(Kind::OutOfBounds),
    ),
    fault(
        "the last token's scales are not copied",
        "XS_COPIERS, TILE_TOKENS ",
        "XS_COPIERS, TILE_TOKENS - 1 ",
        By(Kind::UninitialisedShared),
    ),
    fault("operand B's halves swapped", "{%b0, %b1, %b2, %b3}", "{%b1, %b0, %b2, %b3}", WrongResult),
    fault("operand A of the other block", "w_\\i\\()_, \\block", "w_\\i\\()_, \\(1 - \\block)", WrongResult),
    fault(
        "read without the swizzle",
        "xor.b32         %t0, %t0, %t1;",
        "mov.b32         %t0, %t1;",
        WrongResult,
    ),
    fault("odd tokens with even tokens' scales", "\\(\\j * 8 * 16 + 16)", "\\(\\j * 8 * 16)", WrongResult),
    fault(
        "a row's scales by the token's lanes",
        "%t0, %g, \\(PAIR_SCALES",
        "%t0, %q, \\(PAIR_SCALES",
        WrongResult,
    ),
    fault("runs too long", "%run, %pairs, 3;", "%run, %pairs, 7;", WrongResult),
    fault(
        "a run's sums are not begun anew",
        "%acc_\\i\\j\\()_\\c;\n    mov.f32         %acc_\\i\\j\\()_\\c, 0f00000000;",
        "%acc_\\i\\j\\()_\\c;",
        WrongResult,
    ),
];

const FAULTS_OF_BF16: [Fault; 3] = [
    fault("half of K", "STEPS_A_PAIR, 1 + (PAIR_SCALES == 0)", "STEPS_A_PAIR, 1", WrongResult),
    fault(
        "a sum added to nothing",
        "    add.rn.f32      %total\\sum, %total\\sum, %acc\\sum;\n",
        "",
        WrongResult,
    ),
    Fault {
        name: "the first columns twice",
        file: "gemm_bf16.inc",
        find: "[\\quants + \\(\\quants_at + 512)]",
        replace: "[\\quants + \\(\\quants_at)]",
        caught: WrongResult,
    },
];

#[test]
fn each_fault_is_caught() {
    let cases = |kernel: Kernel, add: bool| {
        move |module: &Module| {
            for (seed, shape) in (20..).zip([(576, 100, 65), (320, 130, 5)]) {
                let product = Product::new(kernel.quant, shape, seed);
                let (y, _) = product.gemm(&kernel, module, add, seed)?;
                product.check(&y, add)?;
            }
            Ok(())
        }
    };
    each_is_caught(KERNELS[0].file, &FAULTS, cases(KERNELS[0], false));
    each_is_caught(KERNELS[3].file, &FAULTS_OF_BF16, cases(KERNELS[3], true));
}
