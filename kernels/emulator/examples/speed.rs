//! How fast the emulator runs two quantised matrix-vector products with all checks on:
//! `cargo run --release -p ptx-emulator --example speed`.

use ptx_emulator::{Counts, Launch, Memory, Module, Options, Parameters, launch};
use std::time::Instant;

const ROWS: u32 = 4096;
const K: u32 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let module = Module::parse(include_str!("gemv.ptx"))?;
    for read_only in [true, false] {
        for threads in [1, 2] {
            for name in ["gemv_mma", "gemv_dp4a"] {
                let (counts, wall, cpu) = run(&module, name, threads, read_only)?;
                println!(
                    "{name:9} {threads} threads, weights {}: {:.0} M thread instructions, {:.0} M/s wall, \
                     {:.0} M/s of CPU; {:.0} M weights/s of CPU",
                    if read_only { "read-only" } else { "writable " },
                    counts.instructions as f64 / 1e6,
                    counts.instructions as f64 / 1e6 / wall,
                    counts.instructions as f64 / 1e6 / cpu,
                    f64::from(ROWS * K) / 1e6 / cpu
                );
            }
        }
    }
    Ok(())
}

/// Seconds of CPU that the process used: others may share the machine.
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
    threads: usize,
    read_only: bool,
) -> Result<(Counts, f64, f64), Box<dyn std::error::Error>> {
    let Some(kernel) = module.kernel(name) else { return Err("no such kernel".into()) };
    let mut memory = Memory::new();
    let mma = name == "gemv_mma";
    let weights = (ROWS * K) as usize;
    let quants: Vec<u8> =
        (0..if mma { weights / 2 } else { weights }).map(|n| (n * 37 % 251) as u8).collect();
    let scale = if mma {
        0x2c00u16.to_le_bytes().repeat(weights / 32)
    } else {
        0.01f32.to_le_bytes().repeat(weights / 32)
    };
    let quants = memory.upload("quants", &quants);
    let scales = memory.upload("scales", &scale);
    let x = memory.upload("x", &vec![3; 8 * K as usize]);
    let xs = memory.upload("xs", &0.02f32.to_le_bytes().repeat(8 * K as usize / 32));
    let y = memory.alloc(8 * ROWS as usize * 4, "y");
    for address in [quants, scales, x, xs] {
        memory.protect(address, read_only);
    }
    let parameters = Parameters::new().u64(quants).u64(scales).u64(x).u64(xs).u64(y);
    let parameters = if mma { parameters.u32(K / 64).u32(ROWS) } else { parameters.u32(K / 32) };
    let blocks = if mma { ROWS / 64 } else { ROWS / 4 };
    let launched =
        Launch { grid: [blocks, 1, 1], block: [128, 1, 1], shared: 0, parameters: parameters.bytes() };
    let options = Options { seed: 1, threads, ..Options::default() };
    let (start, before) = (Instant::now(), cpu());
    let counts = launch(kernel, &mut memory, &launched, &options)?;
    Ok((counts, start.elapsed().as_secs_f64(), cpu() - before))
}
