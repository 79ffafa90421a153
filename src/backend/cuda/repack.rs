//! A matrix of a GGUF file in the order in which the kernels' lanes read it: that of `mma.sync`'s operand A.
//!
//! Owns: where each byte goes, said once for both ways. Never: a byte's value; nothing is computed, padding is zeros.
//!
//! A tile is 16 rows, a pair 64 columns (two blocks). Lane l of a warp has g = l / 4 and q = l % 4, and owns rows g and
//! g + 8 of a tile. What lies beyond the last row or column is zeros.
//!
//! ```text
//!       quants, 16 bytes a lane                                          scales
//! Q4_0  [tile][pair][lane] {row g, row g + 8: bytes 4q..4q+3} of         [tile][pair][g] {row g: d of block 0, of block 1;
//!       block 0, then of block 1                                         row g + 8: the same}
//! Q4_1  as Q4_0                                                          as Q4_0, {d, m} in place of d
//! Q8_0  [tile][pair][block][lane] {row g, row g + 8: values 4q..4q+3},   as Q4_0
//!       then {the same: values 16 + 4q..}
//! BF16  [tile][16 columns][lane] {row g, row g + 8: values 2q, 2q + 1},  none
//!       then {the same: values 8 + 2q, 9 + 2q}
//! ```

use crate::model::quant::Quant;

/// Rows in a tile.
pub const TILE: usize = 16;
/// Columns in a pair of blocks; each row is filled up to a multiple.
pub const PAIR: usize = 64;

/// How a matrix of `rows` rows and `columns` columns lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    quant: Quant,
    rows: usize,
    columns: usize,
}

/// Some bytes that stay together: in the file, and in the quants or in the scales.
struct Run {
    file: usize,
    scales: bool,
    device: usize,
    len: usize,
}

impl Layout {
    /// `None` for a format that no kernel reads, or where a row is no whole number of blocks of 32.
    pub fn new(quant: Quant, rows: usize, columns: usize) -> Option<Layout> {
        let known = matches!(quant, Quant::Q4_0 | Quant::Q4_1 | Quant::Q8_0 | Quant::BF16);
        (known && columns.is_multiple_of(32)).then_some(Layout { quant, rows, columns })
    }

    fn pairs(&self) -> usize {
        self.columns.div_ceil(PAIR)
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Bytes of quants in one pair of one tile.
    fn pair_quants(&self) -> usize {
        match self.quant {
            Quant::BF16 => TILE * PAIR * 2,
            Quant::Q8_0 => TILE * PAIR,
            _ => TILE * PAIR / 2,
        }
    }

    /// Bytes of scales in one pair of one tile.
    fn pair_scales(&self) -> usize {
        match self.quant {
            Quant::BF16 => 0,
            Quant::Q4_1 => TILE * 2 * 4,
            _ => TILE * 2 * 2,
        }
    }

    /// Bytes of the matrix in the file.
    pub fn file_bytes(&self) -> usize {
        self.rows * self.quant.row_bytes(self.columns)
    }

    /// Bytes of the quants on the device.
    pub fn quant_bytes(&self) -> usize {
        self.tiles() * self.pairs() * self.pair_quants()
    }

    /// Bytes of the scales on the device.
    pub fn scale_bytes(&self) -> usize {
        self.tiles() * self.pairs() * self.pair_scales()
    }

    /// From the file's order to the device's.
    ///
    /// # Panics
    /// When a length is not that of the layout: a mistake of the caller, never of a file.
    pub fn pack(&self, file: &[u8], quants: &mut [u8], scales: &mut [u8]) {
        self.check(file, quants, scales);
        quants.fill(0);
        scales.fill(0);
        self.runs(|run| {
            let plane = if run.scales { &mut *scales } else { &mut *quants };
            plane[run.device..][..run.len].copy_from_slice(&file[run.file..][..run.len]);
        });
    }

    /// From the device's order to the file's.
    ///
    /// # Panics
    /// As [`Layout::pack`].
    pub fn unpack(&self, quants: &[u8], scales: &[u8], file: &mut [u8]) {
        self.check(file, quants, scales);
        self.runs(|run| {
            let plane = if run.scales { scales } else { quants };
            file[run.file..][..run.len].copy_from_slice(&plane[run.device..][..run.len]);
        });
    }

    fn check(&self, file: &[u8], quants: &[u8], scales: &[u8]) {
        let lengths = (file.len(), quants.len(), scales.len());
        assert_eq!(lengths, (self.file_bytes(), self.quant_bytes(), self.scale_bytes()), "{self:?}");
    }

    /// Every byte of the rows, once.
    #[inline(always)]
    fn runs(&self, mut each: impl FnMut(Run)) {
        let row_bytes = self.quant.row_bytes(self.columns);
        for row in 0..self.rows {
            let (tile, g, high) = (row / TILE, row % 8, row % TILE / 8);
            for block in 0..self.columns / 32 {
                let (pair, half) = (tile * self.pairs() + block / 2, block % 2);
                let file = row * row_bytes + block * self.quant.row_bytes(32);
                let quants = pair * self.pair_quants();
                let scales = pair * self.pair_scales();
                let head = self.quant.row_bytes(32) % 16;
                if head > 0 {
                    // Two bytes, or four of Q4_1: a row's two blocks side by side.
                    let device = scales + ((g * 2 + high) * 2 + half) * head;
                    each(Run { file, scales: true, device, len: head });
                }
                for q in 0..4 {
                    let lane = (g * 4 + q) * 16;
                    let mut quant = |from: usize, to: usize| {
                        each(Run { file: file + head + from, scales: false, device: quants + to, len: 4 });
                    };
                    match self.quant {
                        Quant::BF16 => {
                            for step in 0..2 {
                                let to = (half * 2 + step) * 512 + lane + high * 4;
                                quant(step * 32 + q * 4, to);
                                quant(step * 32 + 16 + q * 4, to + 8);
                            }
                        }
                        Quant::Q8_0 => {
                            let to = half * 512 + lane + high * 4;
                            quant(q * 4, to);
                            quant(16 + q * 4, to + 8);
                        }
                        _ => quant(q * 4, lane + half * 8 + high * 4),
                    }
                }
            }
        }
    }
}
