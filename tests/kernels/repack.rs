//! Repacking is a permutation: back is what was there, and each fragment is where the kernels look for it.

use crate::gemv::Block;
use crate::harness::{Seeded, blocks, is_float, whole};
use tartlet::backend::cuda::repack::Layout;
use tartlet::model::quant::Quant;

const FORMATS: [Quant; 10] = [
    Quant::F16,
    Quant::BF16,
    Quant::Q8_0,
    Quant::Q4_0,
    Quant::Q4_1,
    Quant::Q5_0,
    Quant::Q5_1,
    Quant::Q4_K,
    Quant::Q5_K,
    Quant::Q6_K,
];

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
            let columns = whole(quant, columns);
            let layout = Layout::new(quant, rows, columns).expect("a format with a kernel");
            let file = blocks(quant, rows, columns, &mut Seeded::new(seed as u64));
            let (quants, scales) = packed(&layout, &file);
            let mut back = vec![0; file.len()];
            layout.unpack(&quants, &scales, &mut back);
            assert!(back == file, "{quant} {rows} x {columns}, seed {seed}");
        }
    }
}

/// Each bit of a file is found at one place, and what is found nowhere is zero: of files that have one bit of each byte, or of
/// each third, seventh, ..., as many are found. A row's bits lie where no other's do.
#[test]
fn no_bit_is_lost_doubled_or_changed() {
    let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    for quant in FORMATS {
        for (rows, columns) in SHAPES {
            let columns = whole(quant, columns);
            let layout = Layout::new(quant, rows, columns).expect("a format with a kernel");
            for (bit, every) in (0..8).zip([1, 3, 7, 11, 97, 131, 211, 997]) {
                let byte = |at: usize| if at.is_multiple_of(every) { 1 << bit } else { 0 };
                let file: Vec<u8> = (0..layout.file_bytes()).map(byte).collect();
                let (quants, scales) = packed(&layout, &file);
                assert_eq!(
                    ones(&quants) + ones(&scales),
                    ones(&file),
                    "{quant} {rows} x {columns}, bit {bit}"
                );
            }
            let (quants, scales) = packed(&layout, &vec![0xff; layout.file_bytes()]);
            assert_eq!(ones(&quants) + ones(&scales), 8 * layout.file_bytes() as u32, "{quant}");
        }
    }
}

/// Value `i` of 0..8 (4q + i, then 16 + 4q + i - 4) that the packed bytes of `pair`'s quants have for a lane's row, 1 for row
/// g + 8, and block: as mma.m16n8k32.s8 wants them, less what the kernels subtract.
fn value(quant: Quant, pair: &[u8], lane: usize, [upper, block, i]: [usize; 3]) -> i32 {
    let (sixteen, i) = (i / 4, i % 4);
    let nibble = i32::from(pair[lane * 16 + block * 8 + upper * 4 + i] >> (4 * sixteen) & 15);
    match quant {
        Quant::Q8_0 => i32::from(pair[block * 512 + lane * 16 + sixteen * 8 + upper * 4 + i] as i8),
        Quant::Q4_0 => nibble - 8,
        Quant::Q4_1 | Quant::Q4_K => nibble,
        Quant::Q6_K => {
            let bits = pair[512 + lane * 8 + upper * 4 + i] >> (4 * sixteen + 2 * block) & 3;
            (nibble | i32::from(bits) << 4) - 32
        }
        _ => {
            let bit = pair[512 + lane * 4 + i] >> (4 * upper + 2 * sixteen + block) & 1;
            (nibble | i32::from(bit) << 4) - if quant == Quant::Q5_0 { 16 } else { 0 }
        }
    }
}

/// The fragments of `mma.m16n8k32.s8` and of `mma.m16n8k16.bf16`, as the PTX ISA draws them, from the packed bytes; and the
/// scales' bytes.
#[test]
fn lanes_find_their_fragments() {
    let rows = 40;
    for quant in FORMATS {
        let columns = whole(quant, 160) + if quant.block_len() == 256 { 256 } else { 0 };
        let layout = Layout::new(quant, rows, columns).expect("a format with a kernel");
        let file = blocks(quant, rows, columns, &mut Seeded::new(7));
        let (quants, scales) = packed(&layout, &file);
        let pairs = columns.div_ceil(64);
        let (pair_quants, tile_scales) = (quants.len() / 3 / pairs, scales.len() / 3);
        let unit = quant.block_len().max(32);
        for (tile, pair, lane, upper) in
            (0..3 * pairs * 64).map(|at| (at / 64 / pairs, at / 64 % pairs, at / 2 % 32, at % 2))
        {
            let (g, q) = (lane / 4, lane % 4);
            let row = tile * 16 + g + 8 * upper;
            // The row's bytes of the file, as many as whole pairs want, and where those of the pair begin.
            let mut bytes = vec![0; quant.row_bytes(columns.next_multiple_of(64.max(unit)))];
            let row_bytes = quant.row_bytes(columns);
            if row < rows {
                bytes[..row_bytes].copy_from_slice(&file[row * row_bytes..][..row_bytes]);
            }
            let of_pair = &quants[(tile * pairs + pair) * pair_quants..][..pair_quants];
            if is_float(quant) {
                for sixteen in 0..4 {
                    let at = (sixteen * 32 + lane) * 16 + upper * 4;
                    let from = |value: usize| &bytes[(pair * 64 + sixteen * 16 + value) * 2..][..4];
                    assert_eq!(&of_pair[at..][..4], from(2 * q), "{quant}");
                    assert_eq!(&of_pair[at + 8..][..4], from(8 + 2 * q), "{quant}");
                }
                continue;
            }
            let decoded: Vec<Block> =
                bytes.chunks(quant.block_bytes()).flat_map(|b| Block::of(quant, b)).collect();
            let of_tile = &scales[tile * tile_scales..][..tile_scales];
            for half in 0..2 {
                let block = pair * 2 + half;
                // What pads a row counts as zeros only by its scale.
                for i in (0..8).filter(|_| row < rows && block * 32 < columns) {
                    let want = decoded[block].quants[i / 4 * 16 + 4 * q + i % 4];
                    assert_eq!(
                        value(quant, of_pair, lane, [upper, half, i]),
                        want,
                        "{quant} row {row} block {block}"
                    );
                }
                match quant {
                    Quant::Q4_K | Quant::Q5_K => {
                        let at = pair / 4 * 256 + row % 16 * 16;
                        assert_eq!(
                            of_tile[at..][..16],
                            bytes[pair / 4 * quant.block_bytes()..][..16],
                            "{quant}"
                        );
                    }
                    Quant::Q6_K => {
                        let at = pair * 64 + g * 8 + upper * 4 + half * 2;
                        let own = &bytes[pair / 4 * 210..][..210];
                        assert_eq!(of_tile[at..][..2], own[192 + pair % 4 * 4 + half * 2..][..2]);
                        let at = pairs * 64 + pair / 4 * 32 + g * 4 + upper * 2;
                        assert_eq!(of_tile[at..][..2], own[208..]);
                    }
                    _ => {
                        let head = tile_scales / pairs / 32;
                        let at = pair * 32 * head + g * 4 * head + (upper * 2 + half) * head;
                        assert_eq!(
                            of_tile[at..][..head],
                            bytes[block * quant.block_bytes()..][..head],
                            "{quant}"
                        );
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
    assert_eq!(Layout::new(Quant::Q4_K, 16, 288), None);
}
