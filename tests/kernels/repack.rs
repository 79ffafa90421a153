//! Repacking is a permutation: back is what was there, and each fragment is where the kernels look for it.

use crate::harness::{Seeded, blocks};
use tartlet::backend::cuda::repack::Layout;
use tartlet::model::quant::Quant;

const FORMATS: [Quant; 4] = [Quant::Q4_0, Quant::Q4_1, Quant::Q8_0, Quant::BF16];

/// Full tiles and ragged ones, even and odd numbers of blocks.
const SHAPES: [(usize, usize); 7] =
    [(16, 64), (1, 32), (17, 96), (576, 576), (48, 192), (15, 32), (33, 1536)];

fn packed(layout: &Layout, file: &[u8]) -> (Vec<u8>, Vec<u8>) {
    // Whatever lay there before is gone.
    let (mut quants, mut scales) = (vec![0xaa; layout.quant_bytes()], vec![0xaa; layout.scale_bytes()]);
    layout.pack(file, &mut quants, &mut scales);
    (quants, scales)
}

#[test]
fn there_and_back_is_the_file() {
    for quant in FORMATS {
        for (seed, (rows, columns)) in SHAPES.into_iter().enumerate() {
            let layout = Layout::new(quant, rows, columns).expect("a format with a kernel");
            let file = blocks(quant, rows, columns, &mut Seeded::new(seed as u64));
            let (quants, scales) = packed(&layout, &file);
            let mut back = vec![0; file.len()];
            layout.unpack(&quants, &scales, &mut back);
            assert!(back == file, "{quant} {rows} x {columns}, seed {seed}");
        }
    }
}

/// Each byte of a file of different bytes is found at one place, and what is found nowhere is zero.
#[test]
fn no_byte_is_lost_doubled_or_changed() {
    for quant in FORMATS {
        for (rows, columns) in SHAPES {
            let layout = Layout::new(quant, rows, columns).expect("a format with a kernel");
            let mut seen = vec![0i64; 256];
            for round in 0..2 {
                // Bytes of one row stand apart from those of others in one of the rounds.
                let file: Vec<u8> = (0..layout.file_bytes())
                    .map(|at| if round == 0 { at % 255 + 1 } else { at / 97 % 255 + 1 } as u8)
                    .collect();
                let (quants, scales) = packed(&layout, &file);
                seen.fill(0);
                quants.iter().chain(&scales).for_each(|&byte| seen[usize::from(byte)] += 1);
                file.iter().for_each(|&byte| seen[usize::from(byte)] -= 1);
                let padding = (quants.len() + scales.len() - file.len()) as i64;
                assert_eq!(seen[0], padding, "{quant} {rows} x {columns}");
                assert!(seen[1..].iter().all(|&count| count == 0), "{quant} {rows} x {columns}");
            }
        }
    }
}

/// The fragments of `mma.m16n8k32.s8` and of `mma.m16n8k16.bf16`, as the PTX ISA draws them, from the packed bytes.
#[test]
fn lanes_find_their_fragments() {
    let (rows, columns) = (40, 160);
    for quant in FORMATS {
        let layout = Layout::new(quant, rows, columns).expect("a format with a kernel");
        let file = blocks(quant, rows, columns, &mut Seeded::new(7));
        let (quants, scales) = packed(&layout, &file);
        let row_bytes = quant.row_bytes(columns);
        let pairs = columns.div_ceil(64);
        for (tile, pair, lane) in
            (0..3).flat_map(|t| (0..pairs).flat_map(move |p| (0..32).map(move |l| (t, p, l))))
        {
            let (g, q) = (lane / 4, lane % 4);
            for (half, high) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (row, block) = (tile * 16 + g + 8 * high, pair * 2 + half);
                let inside = row < rows && block < columns / 32;
                let block = inside.then(|| {
                    let bytes = quant.row_bytes(32);
                    &file[row * row_bytes + block * bytes..][..bytes]
                });
                let of = |from: usize, len: usize| block.map_or(vec![0; len], |b| b[from..][..len].to_vec());
                match quant {
                    Quant::Q4_0 | Quant::Q4_1 => {
                        let head = quant.block_bytes() - 16;
                        let at = ((tile * pairs + pair) * 32 + lane) * 16 + half * 8 + high * 4;
                        assert_eq!(quants[at..][..4], of(head + 4 * q, 4));
                        let at = (tile * pairs + pair) * 32 * head + g * 4 * head + (high * 2 + half) * head;
                        assert_eq!(scales[at..][..head], of(0, head));
                    }
                    Quant::Q8_0 => {
                        let at = (((tile * pairs + pair) * 2 + half) * 32 + lane) * 16 + high * 4;
                        assert_eq!(quants[at..][..4], of(2 + 4 * q, 4));
                        assert_eq!(quants[at + 8..][..4], of(2 + 16 + 4 * q, 4));
                        let at = (tile * pairs + pair) * 64 + g * 8 + high * 4 + half * 2;
                        assert_eq!(scales[at..][..2], of(0, 2));
                    }
                    _ => {
                        for step in 0..2 {
                            let sixteen = (tile * pairs + pair) * 4 + half * 2 + step;
                            let at = (sixteen * 32 + lane) * 16 + high * 4;
                            assert_eq!(quants[at..][..4], of((step * 16 + 2 * q) * 2, 4));
                            assert_eq!(quants[at + 8..][..4], of((step * 16 + 8 + 2 * q) * 2, 4));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_no_kernel_reads_has_no_layout() {
    for quant in Quant::ALL {
        assert_eq!(Layout::new(quant, 16, 256).is_some(), FORMATS.contains(&quant), "{quant}");
    }
    assert_eq!(Layout::new(Quant::BF16, 16, 33), None);
}
