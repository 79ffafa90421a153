//! How fast the emulator runs the matrix-vector kernels of `kernels/` with all checks on:
//! `cargo run --release -p ptx-emulator --example speed [RUNS]`.
//!
//! Each kernel runs `RUNS` times, 9 unless said, with 1 and 8 tokens, on 1 and 2 threads. Printed are the median and, between
//! brackets, the quartiles of the millions of thread-instructions that a core did in a second of its own time, which what
//! else the machine does moves less than the clock; and the median by the clock.

use ptx_emulator::{Counts, Launch, Memory, Module, Options, Parameters, launch};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

#[path = "../../expand.rs"]
#[allow(dead_code, reason = "the rest is the build's and the tests'")]
mod expand;

/// Rows and columns of the matrix.
const ROWS: usize = 4096;
const K: usize = 4096;
/// A kernel, and the bytes of quants and of scales that 32 weights have.
const KERNELS: [(&str, usize, usize); 3] = [("gemv_q4_0", 16, 2), ("gemv_q4_1", 16, 4), ("gemv_q8_0", 32, 2)];

fn main() -> Result<(), Box<dyn Error>> {
    let runs: usize = std::env::args().nth(1).map_or(Ok(9), |runs| runs.parse())?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, quants, scales) in KERNELS {
        let module = Module::parse(&expand::expand(&folder, &format!("{name}.ptx"))?)?;
        for tokens in [1, 8] {
            for threads in [1, 2] {
                let (mut of_core, mut by_clock, mut millions) = (Vec::new(), Vec::new(), 0.0);
                for _ in 0..runs.max(1) {
                    let (counts, wall, cpu) = run(&module, name, [quants, scales], tokens, threads)?;
                    millions = counts.instructions as f64 / 1e6;
                    of_core.push(millions / cpu);
                    by_clock.push(millions / wall);
                }
                let [low, median, high] = quartiles(of_core);
                println!(
                    "{name}, {tokens} tokens, {threads} threads: {millions:.0} M thread-instructions, \
                     {median:.0} M/s of a core [{low:.0} to {high:.0}], {:.0} M/s by the clock",
                    quartiles(by_clock)[1],
                );
            }
        }
    }
    Ok(())
}

/// The lower one, the median, the upper one: of the numbers themselves, the nearest.
fn quartiles(mut of: Vec<f64>) -> [f64; 3] {
    of.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| of[(quarter * (of.len() - 1) + 2) / 4])
}

/// Seconds of CPU that the process used, in hundredths: others may share the machine.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn run(
    module: &Module,
    name: &str,
    [quants, scales]: [usize; 2],
    tokens: usize,
    threads: usize,
) -> Result<(Counts, f64, f64), Box<dyn Error>> {
    let Some(kernel) = module.kernel(name) else { return Err("no such kernel".into()) };
    let mut memory = Memory::new();
    let blocks = ROWS * K / 32;
    let quants: Vec<u8> = (0..blocks * quants).map(|n| (n * 37 % 251) as u8).collect();
    // 0x2c00 is 1/16 as f16. Of a vector's block: f32 scale, s32 sum of the quants.
    let weights = [
        memory.upload("quants", &quants),
        memory.upload("scales", &0x2c00u16.to_le_bytes().repeat(blocks * scales / 2)),
        memory.upload("xq", &vec![3; tokens * K]),
        memory.upload("xs", &[0.02f32.to_le_bytes(), 96i32.to_le_bytes()].concat().repeat(tokens * K / 32)),
    ];
    weights.iter().for_each(|&address| memory.protect(address, true));
    let y = memory.alloc(tokens * ROWS * 4, "y");
    let parameters = weights.into_iter().chain([y]).fold(Parameters::new(), Parameters::u64);
    let counts = [ROWS, K / 64, tokens, 0].map(|count| count as u32);
    let parameters = counts.into_iter().fold(parameters, Parameters::u32);
    let shape = Launch {
        grid: [ROWS as u32 / 16, 1, 1],
        block: [128, 1, 1],
        shared: 5248 * tokens as u32,
        parameters: parameters.bytes(),
    };
    let options = Options { seed: 1, threads, ..Options::default() };
    let (start, before) = (Instant::now(), cpu());
    let counts = launch(kernel, &mut memory, &shape, &options)?;
    Ok((counts, start.elapsed().as_secs_f64(), cpu() - before))
}
