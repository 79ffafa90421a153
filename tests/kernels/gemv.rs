//! `gemv_*` against exact integer sums, scaled and added in the order that `gemv.inc` names: bit for bit; and against the
//! processor's plain path. Those of float formats stand beside their `gemm_*`.

use crate::harness::*;
pub use crate::sums::{Block, product};
use ptx_emulator::{Counts, Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cpu::plain::{products, quantise};
use tartlet::backend::cuda::repack::Layout;
use tartlet::model::quant::Quant;

const FORMATS: [(Quant, &str); 8] = [
    (Quant::Q4_0, "gemv_q4_0.ptx"),
    (Quant::Q4_1, "gemv_q4_1.ptx"),
    (Quant::Q5_0, "gemv_q5_0.ptx"),
    (Quant::Q5_1, "gemv_q5_1.ptx"),
    (Quant::Q8_0, "gemv_q8_0.ptx"),
    (Quant::Q4_K, "gemv_q4_k.ptx"),
    (Quant::Q5_K, "gemv_q5_k.ptx"),
    (Quant::Q6_K, "gemv_q6_k.ptx"),
];

/// Blocks of a file in the kernels' order: quants and scales.
pub fn packed(quant: Quant, n: usize, k: usize, file: &[u8]) -> [Vec<u8>; 2] {
    let layout = Layout::new(quant, n, k).expect("a format with a kernel");
    let (mut quants, mut scales) = (vec![0; layout.quant_bytes()], vec![0; layout.scale_bytes()]);
    layout.pack(file, &mut quants, &mut scales);
    [quants, scales]
}

/// `Err` where products `y` of a matrix with activations `x` are further from the processor's plain path, which adds them in
/// another order, than the roundings of both may bring them: of each block's term three, of each sum one or two.
pub fn near_the_processor(
    (quant, n, k): (Quant, usize, usize),
    file: &[u8],
    x: &[f32],
    y: &[f32],
) -> Result<(), Wrong> {
    let plain = products(quant, [n, k], file, x).expect("room for the products");
    let mut values = vec![0.0; n * k];
    quant.dequantize(file, &mut values);
    let x: Vec<f32> = match is_float(quant) {
        true => x.to_vec(),
        false => x
            .chunks(32)
            .flat_map(|block| {
                let (quants, scales) = quantise(block).expect("room for a block");
                quants.into_iter().map(move |q| f32::from(q) * scales[0].0)
            })
            .collect(),
    };
    // Float formats round for each value.
    let roundings = if is_float(quant) { k } else { 4 * k / 32 + 8 };
    for (at, (got, want)) in y.iter().zip(&plain).enumerate() {
        let (token, row) = (at / n, at % n);
        let terms = values[row * k..][..k].iter().zip(&x[token * k..]);
        let size: f64 = terms.map(|(w, x)| f64::from(w * x).abs()).sum();
        // With a minimum a block is two terms, each larger than the sum of them.
        let size = if has_minima(quant) { 4.0 * size } else { size };
        let slack = roundings as f64 * 2f64.powi(-24) * size + 1e-30;
        let near = (f64::from(*got) - f64::from(*want)).abs() <= slack; // never with a NaN
        if !near {
            return Err(Wrong::Result(format!(
                "y[{at}] is {got}, where the processor has {want}, slack {slack:e}"
            )));
        }
    }
    Ok(())
}

/// Grid, threads and dynamic shared memory of a matrix-vector product.
pub fn ctas(quant: Quant, n: usize, tokens: usize) -> ([u32; 3], u32, u32) {
    let shared = if is_float(quant) { 4224 } else { 5248 };
    ([n.div_ceil(16) as u32, 1, 1], 128, shared * tokens as u32)
}

/// Runs a product of `n` rows and `k` columns, whose buffers before y are `given`; what is in y afterwards. It is added to
/// what was there `before`, if anything was.
pub fn launched(
    module: &Module,
    (grid, threads, shared): ([u32; 3], u32, u32),
    [n, k, tokens]: [usize; 3],
    given: impl IntoIterator<Item = (&'static str, Vec<u8>)>,
    before: &Option<Vec<f32>>,
    seed: u64,
) -> Result<(Vec<f32>, Counts), Wrong> {
    let mut memory = Memory::new();
    let mut parameters = Parameters::new();
    for (name, bytes) in given {
        let at = memory.upload(name, &bytes);
        memory.protect(at, true);
        parameters = parameters.u64(at);
    }
    let y = match before {
        Some(before) => memory.upload("y", &to_bytes(before)),
        None => memory.alloc(tokens * n * 4, "y"),
    };
    let counts = [n, k.div_ceil(64), tokens, before.is_some().into()];
    let parameters = counts.iter().fold(parameters.u64(y), |list, &count| list.u32(count as u32));
    let shape = Launch { grid, block: [threads, 1, 1], shared, parameters: parameters.bytes() };
    let counts = launch(module, &mut memory, &shape, seed)?;
    Ok((from_bytes(&memory.read(y, tokens * n * 4)?), counts))
}

/// One launch's numbers.
struct Case {
    quant: Quant,
    n: usize,
    k: usize,
    tokens: usize,
    file: Vec<u8>,
    /// The activations, and what the kernels read of them.
    values: Vec<f32>,
    x: Q8,
    /// What lies in y before, if the product is added to it.
    before: Option<Vec<f32>>,
}

impl Case {
    fn seeded(quant: Quant, (n, k, tokens): (usize, usize, usize), seed: u64) -> Case {
        let mut seeded = Seeded::new(seed);
        let k = whole(quant, k);
        let file = blocks(quant, n, k, &mut seeded);
        let values = seeded.normals(tokens * k);
        let before = (seed % 2 == 1).then(|| seeded.normals(tokens * n));
        Case { quant, n, k, tokens, file, x: Q8::of(&values, k), values, before }
    }

    fn run(&self, module: &Module, seed: u64) -> Result<(Vec<f32>, Counts), Wrong> {
        let [quants, scales] = packed(self.quant, self.n, self.k, &self.file);
        let [xq, xs] = self.x.bytes();
        let given = [("weights", quants), ("scales", scales), ("x", xq), ("xs", xs)];
        launched(
            module,
            ctas(self.quant, self.n, self.tokens),
            [self.n, self.k, self.tokens],
            given,
            &self.before,
            seed,
        )
    }

    /// [token][row]
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

    fn check(&self, module: &Module, seed: u64) -> Result<(), Wrong> {
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>();
        let (y, _) = self.run(module, seed)?;
        let what =
            format!("y of {} {} x {}, {} tokens, seed {seed}", self.quant, self.n, self.k, self.tokens);
        same(&what, &bits(&y), &bits(&self.want()))
    }
}

/// One row, ragged rows, an odd number of blocks, empty runs, less than a batch, more than two batches, 1 to 8 tokens.
pub fn cases(quant: Quant, module: &Module) -> Result<(), Wrong> {
    let shapes = [
        (1, 32, 1),
        (17, 192, 2),
        (16, 64, 8),
        (40, 576, 3),
        (9, 608, 7),
        (20, 2080, 4),
        (5, 4640, 5),
        (24, 1536, 6),
        (576, 576, 1),
    ];
    for (seed, shape) in shapes.into_iter().enumerate() {
        Case::seeded(quant, shape, seed as u64).check(module, seed as u64)?;
    }
    Ok(())
}

#[test]
fn products_have_the_bits_of_their_definition() {
    for (quant, file) in FORMATS {
        let module = module(file);
        passes(file, cases(quant, &module));
        for seed in 100..108 {
            let mut seeded = Seeded::new(seed);
            let shape = (1 + seeded.below(50), 32 * (1 + seeded.below(60)), 1 + seeded.below(8));
            passes(file, Case::seeded(quant, shape, seed).check(&module, seed));
        }
    }
}

#[test]
fn products_are_near_the_processors() {
    for (quant, file) in FORMATS {
        let module = module(file);
        for (seed, shape) in (0..).zip([(17, 192, 2), (40, 576, 3), (20, 2080, 8)]) {
            let case = Case { before: None, ..Case::seeded(quant, shape, seed) };
            let near = || {
                let (y, _) = case.run(&module, seed)?;
                near_the_processor((quant, case.n, case.k), &case.file, &case.values, &y)
            };
            passes(&format!("{file} {shape:?}, seed {seed}"), near());
        }
    }
}

/// The definition itself against exact arithmetic over the values that the file stands for.
#[test]
fn the_definition_is_near_exact_arithmetic() {
    for (quant, _) in FORMATS {
        let case = Case::seeded(quant, (8, 2080, 1), 2);
        let mut values = vec![0.0f32; 8 * case.k];
        quant.dequantize(&case.file, &mut values);
        for (row, got) in values.chunks(case.k).zip(case.want()) {
            let x = |k: usize| f64::from(case.x.scales[k / 32].0) * f64::from(case.x.quants[k]);
            let products: Vec<f64> = row.iter().enumerate().map(|(k, &w)| f64::from(w) * x(k)).collect();
            let (exact, size) = (products.iter().sum::<f64>(), products.iter().map(|p| p.abs()).sum::<f64>());
            assert!((f64::from(got) - exact).abs() < 1e-6 * size, "{quant}: {got}, not {exact}");
        }
    }
}

/// Token by token, or all at once beside a token of infinite scale: the same bits.
#[test]
fn a_token_does_not_feel_its_neighbours() {
    for (quant, file) in FORMATS {
        let module = module(file);
        let run = |case: &Case| match case.run(&module, 1) {
            Ok((y, _)) => y.into_iter().map(f32::to_bits).collect::<Vec<u32>>(),
            Err(Wrong::Fault(fault)) => panic!("{file}: {fault}"),
            Err(Wrong::Result(what)) => panic!("{file}: {what}"),
        };
        let (n, k) = (24, whole(quant, 608));
        let padded = k.next_multiple_of(64);
        let mut all = Case::seeded(quant, (n, k, 8), 4);
        let together = run(&all);
        for token in 0..8 {
            let alone = Case {
                tokens: 1,
                x: Q8 {
                    quants: all.x.quants[token * padded..][..padded].to_vec(),
                    scales: all.x.scales[token * padded / 32..][..padded / 32].to_vec(),
                },
                file: all.file.clone(),
                ..Case::seeded(quant, (n, k, 1), 4)
            };
            assert!(run(&alone) == together[token * n..][..n], "{file}: token {token}");
        }
        all.x.scales[3 * padded / 32..4 * padded / 32].fill((f32::INFINITY, 77));
        let beside = run(&all);
        for token in (0..8).filter(|&token| token != 3) {
            assert!(beside[token * n..][..n] == together[token * n..][..n], "{file}: token {token}");
        }
    }
}

/// What a launch costs at a width of real models: each byte of the matrix comes once, a tile's vectors once; shared memory
/// has no conflicts; thread-instructions per byte of the matrix in the file stay within a budget. (Of a superblock's scales
/// ptxas makes floats once, where the text does for each pair: for Q4_K on sm_90 it leaves 5.1 instructions a byte.)
#[test]
fn a_launch_costs_what_it_should() {
    let budgets =
        [[4.0, 4.5], [4.7, 5.2], [9.0, 9.0], [9.0, 9.0], [2.0, 2.3], [9.0, 9.0], [9.0, 9.0], [9.0, 9.0]];
    for ((quant, file), budgets) in FORMATS.into_iter().zip(budgets) {
        for (tokens, budget) in [1, 8].into_iter().zip(budgets) {
            let (n, k) = (32, 4096);
            let case = Case::seeded(quant, (n, k, tokens), 6);
            let counts = match case.run(&module(file), 0) {
                Ok((_, counts)) => counts,
                Err(Wrong::Fault(fault)) => panic!("{file}: {fault}"),
                Err(Wrong::Result(what)) => panic!("{file}: {what}"),
            };
            let cost = counts.instructions as f64 / case.file.len() as f64;
            println!(
                "{file}, {tokens} tokens: {cost:.3} thread-instructions a byte, {} sectors",
                counts.global_sectors
            );
            let bytes = case.file.len() + n / 16 * tokens * (k + k / 4) + tokens * n * 4;
            assert_eq!(counts.global_sectors as usize, bytes / 32, "{file}, {tokens} tokens");
            assert_eq!(counts.bank_conflicts, 0, "{file}, {tokens} tokens");
            assert!(cost < budget, "{file}, {tokens} tokens: {cost} thread-instructions a byte");
        }
    }
}

const WRONG: Caught = Caught::WrongResult;

const FAULTS: &[Fault] = &[
    fault!(
        "copies are used before they are waited for",
        "gemv.inc",
        "cp.async.wait_group 0;",
        "cp.async.wait_group 1;",
        Caught::By(Kind::CopyNotWaited)
    ),
    fault!(
        "no barrier of the warp after its copies",
        "gemv.inc",
        "    bar.warp.sync   0xffffffff;",
        "",
        Caught::By(Kind::SharedRace)
    ),
    fault!(
        "no barrier before the runs are joined",
        "gemv.inc",
        "    bar.sync        0;\n",
        "",
        Caught::By(Kind::SharedRace)
    ),
    fault!(
        "warps share a buffer",
        "gemv.inc",
        "    shl.b32         %place, %place, 1;\n",
        "",
        Caught::By(Kind::CopyNotWaited)
    ),
    fault!(
        "the buffers' distance keeps its sign",
        "gemv.inc",
        "    neg.s32         %flip, %flip;\n",
        "",
        Caught::By(Kind::SharedRace)
    ),
    fault!(
        "two lanes too many copy scales",
        "gemv.inc",
        "setp.lt.u32     %is_s, %lane, BATCH;",
        "setp.le.u32     %is_s, %lane, \\(BATCH + 1);",
        Caught::By(Kind::CopyNotWaited)
    ),
    fault!(
        "copies go past the run's end",
        "gemv.inc",
        "setp.lt.s32     %some_q, %lane_step, %unstaged;",
        "setp.le.s32     %some_q, %lane_step, %unstaged;",
        Caught::By(Kind::OutOfBounds)
    ),
    fault!(
        "the last run goes past the end",
        "gemv.inc",
        "    min.u32         %end, %end, %steps;\n",
        "",
        Caught::By(Kind::OutOfBounds)
    ),
    fault!(
        "weights are read a pair past the end",
        "gemv.inc",
        "setp.gt.s32     %more, %left, \\j;",
        "setp.ge.s32     %more, %left, \\j;",
        Caught::By(Kind::OutOfBounds)
    ),
    fault!(
        "scales of an earlier pair",
        "gemv.inc",
        "%s, \\j * PAIR_SCALES, guard",
        "%s, \\j / 2 * PAIR_SCALES, guard",
        WRONG
    ),
    fault!(
        "the vector's halves lie 32 bytes apart",
        "gemv.inc",
        "mad.lo.u32      %column, %token, 16, %column;",
        "mad.lo.u32      %column, %token, 32, %column;",
        Caught::By(Kind::UninitialisedShared)
    ),
    fault!(
        "the vectors' scales are those of the pair before",
        "gemv.inc",
        "[%even + \\(ROW_SCALES + \\j * 16)]",
        "[%even + \\(ROW_SCALES + \\j / 2 * 16)]",
        WRONG
    ),
    fault!(
        "absent tokens are not the last one",
        "gemv.inc",
        "    and.b32         %token, %lane, 7;\n    min.u32         %token, %token, %last;\n",
        "    and.b32         %token, %lane, 7;\n",
        Caught::By(Kind::UninitialisedShared)
    ),
    fault!(
        "a token more is stored",
        "gemv.inc",
        "setp.lt.u32     %token_there, %token, %tokens;",
        "setp.le.u32     %token_there, %token, %tokens;",
        Caught::By(Kind::OutOfBounds)
    ),
    fault!(
        "a row more is stored",
        "gemv.inc",
        "setp.lt.and.u32 %row_there, %row, %n, %token_there;",
        "setp.le.and.u32 %row_there, %row, %n, %token_there;",
        Caught::By(Kind::OutOfBounds)
    ),
    fault!(
        "the runs are cut unevenly",
        "gemv.inc",
        "add.u32         %run, %pairs, \\(4 * RUN_PAIRS - 1);",
        "add.u32         %run, %pairs, \\(4 * RUN_PAIRS);",
        WRONG
    ),
    fault!(
        "the runs are added in another order",
        "gemv.inc",
        "    add.rn.f32      %part0, %part0, %part1;\n    add.rn.f32      %part0, %part0, %part2;\n",
        "    add.rn.f32      %part0, %part0, %part2;\n    add.rn.f32      %part0, %part0, %part1;\n",
        WRONG
    ),
    fault!(
        "rows g and g + 8 change places",
        "gemv.inc",
        "[%place + 32], %acc2",
        "[%place + 32], %acc0",
        WRONG
    ),
    fault!(
        "scales of the other block",
        "quant.inc",
        "%\\d\\()\\(2 + \\block), \\even_d",
        "%\\d\\()\\(3 - \\block), \\even_d",
        WRONG
    ),
    fault!("row g's weights twice", "quant.inc", "\\high_row, 0x0f0f0f0f;", "\\low_row, 0x0f0f0f0f;", WRONG),
    fault!(
        "high nibbles where low ones belong",
        "quant.inc",
        "shr.u32     %upper, \\high_row, 4;",
        "shr.u32     %upper, \\high_row, 0;",
        WRONG
    ),
    fault!(
        "an offset of 7",
        "fmt/scales_d.inc",
        "\\odd_sum, OFFSET, SUM_START;",
        "\\odd_sum, 7, SUM_START;",
        WRONG
    ),
    fault!(
        "the even token's offset for the odd one",
        "fmt/scales_d.inc",
        "\\odd_sum, OFFSET, SUM_START;",
        "\\even_sum, OFFSET, SUM_START;",
        WRONG
    ),
    fault!(
        "scales of the wrong rows",
        "gemv.inc",
        "mad.wide.u32    %s, %g, \\(PAIR_SCALES / 8), %s;",
        "mad.wide.u32    %s, %q, \\(PAIR_SCALES / 8), %s;",
        WRONG
    ),
];

#[test]
fn faults_in_the_loop_are_caught() {
    each_is_caught("gemv_q4_0.ptx", FAULTS, |module| cases(Quant::Q4_0, module));
}
