//! `prefill_*`: the bits that a row has from `attend_*`, whatever it shares a tile with.

use super::{Case, HEAD_DIMS, Kernels, Row, Way, attend, bits, odd_rows};
use crate::harness::{Seeded, Wrong, module, passes, same};
use ptx_emulator::Module;

/// Warps of a CTA: each has 8 pairs of a row and a head.
pub fn warps(head_dim: usize) -> usize {
    if head_dim == 256 { 4 } else { 8 }
}

fn prefill(head_dim: usize) -> Module {
    module(&format!("prefill_{head_dim}.ptx"))
}

/// Rows of a prompt that begins at slot `first`.
fn chunk(sequence: usize, first: usize, rows: usize) -> impl Iterator<Item = Row> {
    (first + 1..=first + rows).map(move |length| Row::of(sequence, length))
}

/// Chunks that begin within a page and pass the end of a split, windows whose edges differ, masks of every kind.
pub fn chunks(rows: usize, seed: u64) -> Vec<Row> {
    let mut seeded = Seeded::new(seed);
    let mut all: Vec<Row> = chunk(0, 5, rows).collect();
    all.extend(chunk(1, 249, rows));
    all.extend(chunk(2, 300, rows).map(|row| Row { first: row.length - 41, ..row }));
    for (number, row) in chunk(3, 30 + seeded.below(240), rows).enumerate() {
        let length = row.length;
        let of_pages = seeded.below(4);
        all.push(match number % 5 {
            0 => row,
            1 => row.masked(|_| seeded.below(3) > 0),
            2 => row.masked(|_| false),
            3 => row.masked(|slot| slot + 1 == length),
            _ => row.masked(|slot| slot / 16 % 4 == of_pages),
        });
    }
    all
}

fn out(case: &Case, kernels: &Kernels, seed: u64) -> Vec<u32> {
    match case.run(kernels, seed) {
        Ok((out, _)) => bits(&out),
        Err(Wrong::Fault(fault)) => panic!("seed {seed}: {fault}"),
        Err(Wrong::Result(what)) => panic!("seed {seed}: {what}"),
    }
}

#[test]
fn a_tile_gives_each_row_the_bits_that_it_has_alone() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let (attend, prefill) = (attend(head_dim), prefill(head_dim));
        let by_rows = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
        for (number, group) in [1, 3, 4, 8, 16].into_iter().enumerate() {
            let seed = (head_dim + number) as u64;
            let mut rows = chunks(if group < 4 { 22 } else { 10 }, seed);
            rows.extend(odd_rows(seed).into_iter().map(|row| Row { sequence: row.sequence + 4, ..row }));
            let case =
                Case { cap: if group == 4 { 5.0 } else { 0.0 }, ..Case::new(head_dim, 1, group, rows, seed) };
            let name = format!("heads of {head_dim}, groups of {group}, seed {seed}");
            let want = out(&case, &by_rows, seed);
            for tile in [64, 7] {
                let by_tiles = Kernels { attend: &prefill, combine: &combine, way: Way::Tiles(tile) };
                let got = out(&case, &by_tiles, seed);
                passes(&format!("{name}, tiles of {tile}"), same("out", &got, &want));
            }
        }
    }
}

#[test]
fn prefill_is_attentions_formula() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let prefill = prefill(head_dim);
        let kernels = Kernels { attend: &prefill, combine: &combine, way: Way::Tiles(64) };
        let seed = head_dim as u64;
        let name = format!("heads of {head_dim}, seed {seed}");
        passes(&name, Case::new(head_dim, 2, 3, chunks(9, seed), seed).check(&kernels, seed));
    }
}

/// A prompt of 256 tokens, whose slots lie in one split: what a row costs for each slot that it sees.
#[test]
fn a_tile_shares_what_it_reads() {
    let combine = module("attend_combine.ptx");
    println!("for each row and slot that it sees: instructions of warps, sectors of global memory");
    for (head_dim, group, fewer) in [(64, 3, [3, 10]), (128, 4, [2, 8])] {
        let case = Case::new(head_dim, 1, group, chunk(0, 0, 256).collect(), 1);
        let pairs: usize = case.rows.iter().map(|row| row.length).sum();
        let counts = |attend: &Module, way| {
            let Ok((_, counts)) = case.run(&Kernels { attend, combine: &combine, way }, 1) else {
                panic!("a prompt of 256 tokens")
            };
            assert_eq!(counts.bank_conflicts, 0);
            [counts.warp_instructions, counts.global_sectors]
        };
        let rows = counts(&attend(head_dim), Way::Rows);
        let tiles = counts(&prefill(head_dim), Way::Tiles(64));
        for (name, counts) in [("attend", rows), ("prefill", tiles)] {
            let [instructions, sectors] = counts.map(|count| count as f64 / pairs as f64);
            println!("  {name}_{head_dim}, groups of {group}: {instructions:.2}, {sectors:.3}");
        }
        for (what, fewer) in fewer.into_iter().enumerate() {
            assert!(tiles[what] * fewer < rows[what], "{rows:?}, {tiles:?}");
        }
    }
}
