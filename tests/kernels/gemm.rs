//! `gemm_*` against the definition that the matrix-vector kernels have, bit for bit, and against these; floats against f64,
//! with their `gemv_*`.

use crate::gemv::{self, launched, near_the_processor, packed, product};
use crate::harness::*;
use ptx_emulator::{Counts, Kind, Module};
use tartlet::backend::cuda::repack::Layout;
use tartlet::model::quant::Quant;

/// A kernel, its tile of rows and tokens, its block.
#[derive(Clone, Copy)]
pub struct Kernel {
    pub file: &'static str,
    quant: Quant,
    rows: usize,
    tokens: usize,
    threads: u32,
    /// Thread-instructions for 1,000 products, at most.
    budget: f64,
}

const fn kernel(
    file: &'static str,
    quant: Quant,
    [rows, tokens, threads]: [usize; 3],
    budget: f64,
) -> Kernel {
    Kernel { file, quant, rows, tokens, threads: threads as u32, budget }
}

const WIDE: [usize; 3] = [128, 64, 256];
const WIDER: [usize; 3] = [128, 128, 256];
const NARROW: [usize; 3] = [64, 32, 64];
const VECTOR: [usize; 3] = [16, 8, 128];

pub const KERNELS: [Kernel; 20] = [
    kernel("gemm_q4_0.ptx", Quant::Q4_0, WIDE, 195.0),
    kernel("gemm_q4_1.ptx", Quant::Q4_1, WIDE, 250.0),
    kernel("gemm_q8_0.ptx", Quant::Q8_0, WIDE, 177.0),
    kernel("gemm_bf16.ptx", Quant::BF16, WIDER, 80.0),
    kernel("gemm_q4_0_narrow.ptx", Quant::Q4_0, NARROW, 200.0),
    kernel("gemm_q4_1_narrow.ptx", Quant::Q4_1, NARROW, 255.0),
    kernel("gemm_q8_0_narrow.ptx", Quant::Q8_0, NARROW, 182.0),
    kernel("gemm_bf16_narrow.ptx", Quant::BF16, NARROW, 110.0),
    kernel("gemm_f16.ptx", Quant::F16, WIDER, 80.0),
    kernel("gemm_f16_narrow.ptx", Quant::F16, NARROW, 110.0),
    kernel("gemm_q5_0.ptx", Quant::Q5_0, WIDE, 215.0),
    kernel("gemm_q5_0_narrow.ptx", Quant::Q5_0, NARROW, 220.0),
    kernel("gemm_q5_1.ptx", Quant::Q5_1, WIDE, 270.0),
    kernel("gemm_q5_1_narrow.ptx", Quant::Q5_1, NARROW, 275.0),
    kernel("gemm_q4_k.ptx", Quant::Q4_K, WIDE, 280.0),
    kernel("gemm_q4_k_narrow.ptx", Quant::Q4_K, NARROW, 285.0),
    kernel("gemm_q5_k.ptx", Quant::Q5_K, WIDE, 300.0),
    kernel("gemm_q5_k_narrow.ptx", Quant::Q5_K, NARROW, 305.0),
    kernel("gemm_q6_k.ptx", Quant::Q6_K, WIDE, 295.0),
    kernel("gemm_q6_k_narrow.ptx", Quant::Q6_K, NARROW, 300.0),
];

/// Matrix-vector kernels whose sums are those of mma alone, as here.
pub const VECTORS: [Kernel; 2] =
    [kernel("gemv_bf16.ptx", Quant::BF16, VECTOR, 450.0), kernel("gemv_f16.ptx", Quant::F16, VECTOR, 450.0)];

impl Kernel {
    /// Grid, threads and dynamic shared memory of a product of `n` rows.
    fn ctas(&self, n: usize, tokens: usize) -> ([u32; 3], u32, u32) {
        if self.rows == 16 {
            return gemv::ctas(self.quant, n, tokens);
        }
        ([tokens.div_ceil(self.tokens) as u32, n.div_ceil(self.rows) as u32, 1], self.threads, 0)
    }
}

/// (N, K, tokens): widths of the model, one token and one more than a tile, ragged rows; K of one pair (three runs are
/// empty), of half a pair more, of five pairs (runs of 2, 2, 1 and 0), of nine and of seventeen.
const SHAPES: [(usize, usize, usize); 9] = [
    (192, 576, 65),
    (576, 192, 17),
    (100, 64, 5),
    (20, 96, 33),
    (130, 320, 1),
    (100, 576, 8),
    (16, 512, 130),
    (1, 1088, 2),
    (576, 576, 130),
];

/// One launch's numbers.
struct Case {
    quant: Quant,
    n: usize,
    k: usize,
    tokens: usize,
    /// The matrix as a GGUF file has it.
    file: Vec<u8>,
    /// The activations as the processor takes them, and as the kernels do.
    values: Vec<f32>,
    x: Q8,
    /// The activations as bf16 or f16: [token][columns rounded up to 64].
    halves: Vec<u16>,
    /// What lies in y before, if the product is added to it.
    before: Option<Vec<f32>>,
}

impl Case {
    fn seeded(quant: Quant, (n, k, tokens): (usize, usize, usize), seed: u64) -> Case {
        let mut seeded = Seeded::new(seed);
        let k = whole(quant, k);
        let file = blocks(quant, n, k, &mut seeded);
        let mut x = seeded.normals(tokens * k);
        // Blocks of equal numbers have the largest sums that there are.
        for block in x.chunks_mut(32) {
            if seeded.below(8) == 0 {
                block.fill(block[0]);
            }
        }
        let before = (seed % 2 == 1).then(|| seeded.normals(tokens * n));
        let rounded = |x: &f32| if is_float(quant) { of_16(quant, to_16(quant, *x)) } else { *x };
        let values = x.iter().map(rounded).collect();
        let halves = padded_halves(quant, &x, k);
        Case { quant, n, k, tokens, file, values, x: Q8::of(&x, k), halves, before }
    }

    /// The same with some of its tokens.
    fn of(&self, tokens: &[usize]) -> Case {
        fn some<T: Copy>(all: &[T], from: usize, tokens: &[usize]) -> Vec<T> {
            let each = all.len() / from;
            tokens.iter().flat_map(|&token| all[token * each..][..each].iter().copied()).collect()
        }
        Case {
            quant: self.quant,
            n: self.n,
            k: self.k,
            tokens: tokens.len(),
            file: self.file.clone(),
            values: some(&self.values, self.tokens, tokens),
            x: Q8 {
                quants: some(&self.x.quants, self.tokens, tokens),
                scales: some(&self.x.scales, self.tokens, tokens),
            },
            halves: some(&self.halves, self.tokens, tokens),
            before: self.before.as_ref().map(|before| some(before, self.tokens, tokens)),
        }
    }

    fn launched(
        &self,
        module: &Module,
        ctas: ([u32; 3], u32, u32),
        seed: u64,
    ) -> Result<(Vec<f32>, Counts), Wrong> {
        let [weights, scales] = packed(self.quant, self.n, self.k, &self.file);
        let [xq, xs] = self.x.bytes();
        let given = match is_float(self.quant) {
            true => vec![("weights", weights), ("x", to_bytes(&self.halves))],
            false => vec![("weights", weights), ("scales", scales), ("x", xq), ("xs", xs)],
        };
        launched(module, ctas, [self.n, self.k, self.tokens], given, &self.before, seed)
    }

    fn run(&self, kernel: &Kernel, module: &Module, seed: u64) -> Result<(Vec<f32>, Counts), Wrong> {
        self.launched(module, kernel.ctas(self.n, self.tokens), seed)
    }

    fn run_gemv(&self, module: &Module, seed: u64) -> Result<(Vec<f32>, Counts), Wrong> {
        self.launched(module, gemv::ctas(self.quant, self.n, self.tokens), seed)
    }

    /// [token][row], the order of every sum as the kernels have it.
    fn want(&self) -> Vec<f32> {
        let (padded, row_bytes) = (self.k.next_multiple_of(64), self.quant.row_bytes(self.k));
        let mut y = Vec::new();
        for token in 0..self.tokens {
            let quants = &self.x.quants[token * padded..][..padded];
            let scales = &self.x.scales[token * padded / 32..][..padded / 32];
            y.extend(self.file.chunks(row_bytes).map(|row| product(self.quant, row, quants, scales)));
        }
        if let Some(before) = &self.before {
            y.iter_mut().zip(before).for_each(|(y, before)| *y += before);
        }
        y
    }

    /// Floats: the sums in f64, and how far a device may be from each: by what its mma's lose in each run, and by the joins.
    fn near(&self) -> Vec<(f64, f64)> {
        let run = self.k.div_ceil(64).div_ceil(4) * 64;
        let weights: Vec<f64> =
            from_bytes(&self.file).into_iter().map(|w| f64::from(of_16(self.quant, w))).collect();
        let mut y = Vec::new();
        for x in self.values.chunks(self.k) {
            for row in weights.chunks(self.k) {
                let products: Vec<f64> = row.iter().zip(x).map(|(w, &x)| w * f64::from(x)).collect();
                let before = self.before.as_ref().map_or(0.0, |before| f64::from(before[y.len()]));
                let (mut sum, mut size, mut off) = (before, before.abs(), 0.0);
                for run in products.chunks(run) {
                    let part: f64 = run.iter().sum();
                    (sum, size, off) = (sum + part, size + part.abs(), off + mma_slack(run));
                }
                y.push((sum, off + 4.0 * 2f64.powi(-24) * size));
            }
        }
        y
    }

    /// Floats, where an mma rounds once: the order of the sums as the kernels have it.
    fn want_of_floats(&self) -> Vec<f32> {
        let run = self.k.div_ceil(64).div_ceil(4) * 64;
        let weights: Vec<f32> = from_bytes(&self.file).into_iter().map(|w| of_16(self.quant, w)).collect();
        let mut y = Vec::new();
        for x in self.values.chunks(self.k) {
            for row in weights.chunks(self.k) {
                let runs = row.chunks(run).zip(x.chunks(run)).map(|(row, x)| {
                    row.chunks(16).zip(x.chunks(16)).fold(0.0f32, |acc, (row, x)| {
                        let dot: f64 = row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        (f64::from(acc) + dot) as f32
                    })
                });
                let sum = runs.fold(0.0, |sum, run| sum + run);
                y.push(self.before.as_ref().map_or(sum, |before| sum + before[y.len()]));
            }
        }
        y
    }

    fn check(&self, kernel: &Kernel, module: &Module, seed: u64) -> Result<(), Wrong> {
        let (y, _) = self.run(kernel, module, seed)?;
        let what =
            format!("y of {} {} x {}, {} tokens, seed {seed}", kernel.file, self.n, self.k, self.tokens);
        if !is_float(self.quant) {
            return same(&what, &bits(&y), &bits(&self.want()));
        }
        if !truncates(seed) {
            return same(&what, &bits(&y), &bits(&self.want_of_floats()));
        }
        let far = |(_, (y, (want, off))): &(usize, (&f32, &(f64, f64)))| {
            let error = (f64::from(**y) - want).abs();
            error.is_nan() || error > *off
        };
        match y.iter().zip(&self.near()).enumerate().find(far) {
            Some((at, (y, (want, _)))) => Err(Wrong::Result(format!("{what}[{at}] is {y}, not {want}"))),
            None => Ok(()),
        }
    }
}

fn padded_halves(quant: Quant, x: &[f32], columns: usize) -> Vec<u16> {
    let row = |row: &[f32]| {
        let mut halves: Vec<u16> = row.iter().map(|&x| to_16(quant, x)).collect();
        halves.resize(columns.next_multiple_of(64), 0);
        halves
    };
    x.chunks(columns).flat_map(row).collect()
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn products_have_the_bits_of_their_definition() {
    for kernel in KERNELS.iter().chain(&VECTORS) {
        let module = module(kernel.file);
        let mut seed = 0;
        let mut check = |(n, k, tokens): (usize, usize, usize)| {
            let tokens = if kernel.rows == 16 { tokens.min(kernel.tokens) } else { tokens };
            let shape = (n, k, tokens);
            passes(kernel.file, Case::seeded(kernel.quant, shape, seed).check(kernel, &module, seed));
            seed += 1;
        };
        SHAPES.into_iter().for_each(&mut check);
        for drawn in 100..106 {
            let mut seeded = Seeded::new(drawn);
            check((1 + seeded.below(200), 32 * (1 + seeded.below(40)), 1 + seeded.below(100)));
        }
    }
}

#[test]
fn products_are_near_the_processors() {
    for kernel in &KERNELS {
        let module = module(kernel.file);
        for (seed, shape) in (0..).zip([(130, 192, 33), (40, 576, 5)]) {
            let case = Case { before: None, ..Case::seeded(kernel.quant, shape, seed) };
            let near = || {
                let (y, _) = case.run(kernel, &module, seed)?;
                near_the_processor((case.quant, case.n, case.k), &case.file, &case.values, &y)
            };
            passes(&format!("{} {shape:?}, seed {seed}", kernel.file), near());
        }
    }
}

#[test]
fn matrix_vector_kernels_give_the_same_bits() {
    for kernel in &KERNELS {
        let gemm = module(kernel.file);
        let gemv = module(&kernel.file.replace("gemm", "gemv").replace("_narrow", ""));
        for (seed, shape) in (0..).zip([(100, 576, 8), (48, 320, 3), (16, 1088, 1)]) {
            let case = Case::seeded(kernel.quant, shape, seed);
            let both = || -> Result<(), Wrong> {
                let (y, _) = case.run(kernel, &gemm, seed)?;
                same("y", &bits(&y), &bits(&case.run_gemv(&gemv, seed)?.0))
            };
            passes(&format!("{} {shape:?}, seed {seed}", kernel.file), both());
        }
    }
}

/// Among many, among others in another order, or alone beside a token that is not finite: the same bits.
#[test]
fn a_token_does_not_feel_its_neighbours() {
    for kernel in &KERNELS {
        let module = module(kernel.file);
        let n = 48;
        let whole = Case::seeded(kernel.quant, (n, 320, 70), 11);
        let which = [69, 0, 33, 64, 7];
        // Seeds of one device: their tensor cores are alike.
        let all = || -> Result<(), Wrong> {
            let (many, _) = whole.run(kernel, &module, 3)?;
            let want: Vec<f32> = which.iter().flat_map(|&token| many[token * n..][..n].to_vec()).collect();
            let (some, _) = whole.of(&which).run(kernel, &module, 6)?;
            same("five tokens", &bits(&some), &bits(&want))?;
            let mut beside = whole.of(&which[..2]);
            let second = beside.x.scales.len() / 2;
            beside.x.scales[second..].fill((f32::INFINITY, 77));
            let second = beside.halves.len() / 2;
            beside.halves[second..].fill(to_16(kernel.quant, f32::INFINITY));
            let (two, _) = beside.run(kernel, &module, 15)?;
            same("the first of two", &bits(&two[..n]), &bits(&want[..n]))
        };
        passes(kernel.file, all());
    }
}

/// Thread-instructions for 1,000 products stay within a budget; shared memory without a conflict; each operand read once by each CTA that needs it, in whole sectors, but for the
/// tokens' scales: of {d, sum} a stage takes 16 bytes.
#[test]
fn a_launch_costs_what_it_should() {
    let (n, k) = (256, 576);
    for kernel in KERNELS.iter().chain(&VECTORS) {
        let tokens = if kernel.rows == 16 { 8 } else { 128 };
        let case = Case { before: None, ..Case::seeded(kernel.quant, (n, k, tokens), 3) };
        let k = case.k;
        let counts = match case.run(kernel, &module(kernel.file), 0) {
            Ok((_, counts)) => counts,
            Err(_) => panic!("{} runs", kernel.file),
        };
        let thousands = (n * k * tokens) as f64 / 1e3;
        let cost = counts.instructions as f64 / thousands;
        println!(
            "{:<22} {cost:.1} thread-instructions, {:.3} sectors, {:.3} accesses to shared memory",
            kernel.file,
            counts.global_sectors as f64 / thousands,
            counts.shared_accesses as f64 / thousands
        );
        assert!(cost < kernel.budget, "{}: {cost} thread-instructions for 1,000 products", kernel.file);
        assert_eq!(counts.bank_conflicts, 0, "{}", kernel.file);
        let layout = Layout::new(kernel.quant, n, k).expect("a format with a kernel");
        let weights = (layout.quant_bytes() + layout.scale_bytes()) * (tokens / kernel.tokens);
        let token = if is_float(kernel.quant) { 2 * k } else { k + k / 64 * 32 };
        let bytes = weights + token * tokens * (n / kernel.rows) + n * tokens * 4;
        assert_eq!(counts.global_sectors * 32, bytes as u64, "{}", kernel.file);
    }
}

use Caught::{By, OneOf, WrongResult};

const fn fault(name: &'static str, find: &'static str, replace: &'static str, caught: Caught) -> Fault {
    Fault { name, file: "gemm.inc", find, replace, caught }
}

/// Of every format.
const FAULTS: [Fault; 16] = [
    fault(
        "no barrier",
        "    bar.sync        0;",
        "",
        OneOf(&[Kind::UninitialisedShared, Kind::SharedRace, Kind::CopyNotWaited]),
    ),
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
        ".equ SHARED, SUPERS_AT +",
        ".equ SHARED, SUPERS_AT - STAGE_BYTES +",
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
        OneOf(&[Kind::OutOfBounds, Kind::UninitialisedGlobal]),
    ),
    fault(
        "row tiles past the end are read",
        "%ok, %t1, %row_tiles;",
        "%ok, %t1, 0x7fffffff;",
        By(Kind::OutOfBounds),
    ),
    fault(
        "one row too many is stored",
        "setp.gt.and.s32 %ok",
        "setp.ge.and.s32 %ok",
        OneOf(&[Kind::GlobalRace, Kind::OutOfBounds]),
    ),
    fault(
        "one token too many is stored",
        "setp.gt.s32     %token_ok",
        "setp.ge.s32     %token_ok",
        By(Kind::OutOfBounds),
    ),
    fault("operand B's halves swapped", "{%b0, %b1, %b2, %b3}", "{%b1, %b0, %b2, %b3}", WrongResult),
    fault("operand A of the other block", "w_\\i\\()_, \\block", "w_\\i\\()_, \\(1 - \\block)", WrongResult),
    fault(
        "read without the swizzle",
        "xor.b32         %t0, %t0, %t1;",
        "mov.b32         %t0, %t1;",
        WrongResult,
    ),
    fault(
        "runs too long",
        "%run, %pairs, \\(4 * RUN_PAIRS - 1);",
        "%run, %pairs, \\(8 * RUN_PAIRS - 1);",
        WrongResult,
    ),
    fault(
        "a run's sums are not begun anew",
        "%acc_\\i\\j\\()_\\c;\n    mov.f32         %acc_\\i\\j\\()_\\c, 0f00000000;",
        "%acc_\\i\\j\\()_\\c;",
        WrongResult,
    ),
];

const FAULTS_OF_SCALES: [Fault; 3] = [
    fault(
        "the last token's scales are not copied",
        "XS_COPIERS, TILE_TOKENS ",
        "XS_COPIERS, TILE_TOKENS - 1 ",
        By(Kind::UninitialisedShared),
    ),
    fault("odd tokens with even tokens' scales", "\\(\\j * 8 * 16 + 16)", "\\(\\j * 8 * 16)", WrongResult),
    fault(
        "a row's scales by the token's lanes",
        "%t0, %g, \\(PAIR_SCALES",
        "%t0, %q, \\(PAIR_SCALES",
        WrongResult,
    ),
];

const FAULTS_OF_FLOATS: [Fault; 3] = [
    fault("half of K", "STEPS_A_PAIR, 1 + FLOATS", "STEPS_A_PAIR, 1", WrongResult),
    fault(
        "a sum added to nothing",
        "    add.rn.f32      %total\\sum, %total\\sum, %acc\\sum;\n",
        "",
        WrongResult,
    ),
    Fault {
        name: "the first columns twice",
        file: "fmt/floats.inc",
        find: "[\\quants + \\(\\quants_at + 512)]",
        replace: "[\\quants + \\(\\quants_at)]",
        caught: WrongResult,
    },
];

/// Both ends ragged, an empty run; seeds that add and seeds that store.
pub fn cases(kernel: &Kernel, module: &Module) -> Result<(), Wrong> {
    for (seed, shape) in (20..).zip([(100, 576, 65), (130, 320, 5)]) {
        Case::seeded(kernel.quant, shape, seed).check(kernel, module, seed)?;
    }
    Ok(())
}

/// The same for kernels of 8 tokens at most.
pub fn vector_cases(kernel: &Kernel, module: &Module) -> Result<(), Wrong> {
    for (seed, shape) in (20..).zip([(100, 576, 8), (30, 2080, 3), (16, 96, 1)]) {
        Case::seeded(kernel.quant, shape, seed).check(kernel, module, seed)?;
    }
    Ok(())
}

/// In every file that has what a fault changes.
fn each_of(kernel: &Kernel) {
    let only: &[Fault] = if is_float(kernel.quant) { &FAULTS_OF_FLOATS } else { &FAULTS_OF_SCALES };
    for faults in [&FAULTS[..], only] {
        each_is_caught(kernel.file, faults, |module| cases(kernel, module));
    }
}

#[test]
fn faults_in_the_loop_are_caught() {
    KERNELS[..4].iter().for_each(each_of);
}

#[test]
fn faults_in_narrow_loops_are_caught() {
    KERNELS[4..8].iter().for_each(each_of);
}
