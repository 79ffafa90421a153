//! A matrix of a GGUF file in the order in which the kernels' lanes read it: that of `mma.sync`'s operand A.
//!
//! Owns: where each bit goes, said once for both ways. Never: a value; nothing is computed, padding is zeros.
//!
//! A tile is 16 rows, a pair 64 columns (two blocks). Lane l of a warp has g = l / 4 and q = l % 4, and owns rows g and
//! g + 8 of a tile. What lies beyond the last row or column is zeros.
//!
//! ```text
//!       quants, 16 bytes a lane
//! 4 bit [tile][pair][lane] {row g, row g + 8: values 4q..4q+3 low, 16 + 4q.. high} of block 0, then of block 1
//! 5 bit as 4 bit; behind the pair [lane] 4 bytes: byte i has the fifth bits of values 4q + i and 16 + 4q + i,
//!       bit 4 (row g + 8) + 2 (16 on) + block
//! 6 bit as 4 bit; behind the pair [lane] {row g, row g + 8} 4 bytes: byte i has the upper two bits of the same values,
//!       at 4 (16 on) + 2 block
//! 8 bit [tile][pair][block][lane] {row g, row g + 8: values 4q..4q+3}, then {the same: values 16 + 4q..}
//! F16   [tile][16 columns][lane] {row g, row g + 8: values 2q, 2q + 1}, then {the same: values 8 + 2q, 9 + 2q}; BF16 too
//!
//!       scales, pair for pair; then, tile for tile behind them, superblock for superblock (256 columns)
//! Q4_0  [tile] [pair][g] {row g: d of block 0, of block 1; row g + 8: the same}; Q5_0 and Q8_0 too
//! Q4_1  [tile] [pair][g] the same of {d, m}; Q5_1 too
//! Q4_K  [tile] [superblock][row] 16 bytes: d, dmin and the 12 bytes of the file; Q5_K too
//! Q6_K  [tile] [pair][g] {row g, row g + 8} 4 bytes: scales of 16 values; [superblock][g] {row g, row g + 8} d
//! ```

use crate::model::quant::Quant;

/// Rows in a tile.
pub const TILE: usize = 16;
/// Columns in a pair of blocks; each row is filled up to a multiple.
pub const PAIR: usize = 64;

const BLOCK: usize = 32;
/// Columns, and pairs, of a superblock.
const SUPER: usize = 256;
const SUPER_PAIRS: usize = SUPER / PAIR;

/// How a matrix of `rows` rows and `columns` columns lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    quant: Quant,
    rows: usize,
    columns: usize,
}

/// Bytes that a format takes of a tile.
struct Sizes {
    /// Quants in a pair, and behind them their upper bits.
    low: usize,
    high: usize,
    /// Scales in a pair, and in a superblock.
    scales: usize,
    supers: usize,
}

/// Some bits that stay together: in the file, and in the quants or in the scales.
struct Run {
    file: usize,
    scales: bool,
    device: usize,
    bits: Bits,
}

/// Which bits of a run.
#[derive(Clone, Copy)]
enum Bits {
    /// So many bytes, whole.
    Bytes(usize),
    /// Of a word, those of the mask, as many places up in the file and on the device.
    Masked { mask: u32, file: usize, device: usize },
    /// Four bits of a word, on the device the bits so many places up in each of its bytes.
    Spread { file: usize, device: usize },
}

/// The low halves of four bytes.
const LOW: u32 = 0x0f0f_0f0f;

impl Layout {
    /// `None` for a format that no kernel reads, or where a row is no whole number of blocks.
    pub fn new(quant: Quant, rows: usize, columns: usize) -> Option<Layout> {
        let whole = columns.is_multiple_of(quant.block_len().max(BLOCK));
        (quant != Quant::F32 && whole).then_some(Layout { quant, rows, columns })
    }

    fn pairs(&self) -> usize {
        self.columns.div_ceil(PAIR)
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    fn sizes(&self) -> Sizes {
        let bits = |low, high| (TILE * PAIR * low / 8, TILE * PAIR * high / 8);
        let (low, high) = match self.quant {
            Quant::Q4_0 | Quant::Q4_1 | Quant::Q4_K => bits(4, 0),
            Quant::Q5_0 | Quant::Q5_1 | Quant::Q5_K => bits(4, 1),
            Quant::Q6_K => bits(4, 2),
            Quant::Q8_0 => bits(8, 0),
            Quant::F16 | Quant::BF16 | Quant::F32 => bits(16, 0),
        };
        let (scales, supers) = match self.quant {
            Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0 => (TILE * 2 * 2, 0),
            Quant::Q4_1 | Quant::Q5_1 => (TILE * 2 * 4, 0),
            Quant::Q4_K | Quant::Q5_K => (0, TILE * 16),
            Quant::Q6_K => (TILE * 4, TILE * 2),
            Quant::F16 | Quant::BF16 | Quant::F32 => (0, 0),
        };
        Sizes { low, high, scales, supers }
    }

    /// Bytes of the matrix in the file.
    pub fn file_bytes(&self) -> usize {
        self.rows * self.quant.row_bytes(self.columns)
    }

    /// Bytes of the quants on the device.
    pub fn quant_bytes(&self) -> usize {
        let Sizes { low, high, .. } = self.sizes();
        self.tiles() * self.pairs() * (low + high)
    }

    /// Bytes of the scales on the device.
    pub fn scale_bytes(&self) -> usize {
        let Sizes { scales, supers, .. } = self.sizes();
        self.tiles() * (self.pairs() * scales + self.columns / SUPER * supers)
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
            match run.bits {
                Bits::Bytes(len) => {
                    plane[run.device..][..len].copy_from_slice(&file[run.file..][..len]);
                }
                Bits::Masked { mask, file: up, device } => {
                    add(plane, run.device, (word(file, run.file) >> up & mask) << device);
                }
                Bits::Spread { file: up, device } => {
                    // Bit i of four at 7 i, then at 8 i: no two meet.
                    let four = (word(file, run.file) >> up & 15).wrapping_mul(0x0020_4081) & 0x0101_0101;
                    add(plane, run.device, four << device);
                }
            }
        });
    }

    /// From the device's order to the file's.
    ///
    /// # Panics
    /// As [`Layout::pack`].
    pub fn unpack(&self, quants: &[u8], scales: &[u8], file: &mut [u8]) {
        self.check(file, quants, scales);
        file.fill(0);
        self.runs(|run| {
            let plane = if run.scales { scales } else { quants };
            match run.bits {
                Bits::Bytes(len) => {
                    file[run.file..][..len].copy_from_slice(&plane[run.device..][..len]);
                }
                Bits::Masked { mask, file: up, device } => {
                    add(file, run.file, (word(plane, run.device) >> device & mask) << up);
                }
                Bits::Spread { file: up, device } => {
                    let four = word(plane, run.device) >> device & 0x0101_0101;
                    add(file, run.file, four.wrapping_mul(0x1020_4080) >> 28 << up);
                }
            }
        });
    }

    fn check(&self, file: &[u8], quants: &[u8], scales: &[u8]) {
        let lengths = (file.len(), quants.len(), scales.len());
        assert_eq!(lengths, (self.file_bytes(), self.quant_bytes(), self.scale_bytes()), "{self:?}");
    }

    /// Every bit of the rows, once.
    #[inline(always)]
    fn runs(&self, mut each: impl FnMut(Run)) {
        let row_bytes = self.quant.row_bytes(self.columns);
        let unit = self.quant.block_len().max(BLOCK);
        for row in 0..self.rows {
            for at in 0..self.columns / unit {
                let file = row * row_bytes + at * self.quant.row_bytes(unit);
                let place = Place { layout: self, sizes: self.sizes(), file, row, block: at * unit / BLOCK };
                match self.quant {
                    Quant::Q4_K => place.of_k(16, None, &mut each),
                    Quant::Q5_K => place.of_k(48, Some(16), &mut each),
                    Quant::Q6_K => place.of_six(&mut each),
                    Quant::F32 | Quant::F16 | Quant::BF16 => place.of_floats(&mut each),
                    _ => place.of_block(&mut each),
                }
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Bits join those that are there.
fn add(bytes: &mut [u8], at: usize, bits: u32) {
    for (byte, more) in bytes[at..][..4].iter_mut().zip(bits.to_le_bytes()) {
        *byte |= more;
    }
}

/// The block, or the superblock, of a row that goes to the device.
struct Place<'a> {
    layout: &'a Layout,
    sizes: Sizes,
    /// Where it begins in the file.
    file: usize,
    row: usize,
    /// Its first block of 32 columns.
    block: usize,
}

impl Place<'_> {
    fn tile(&self) -> usize {
        self.row / TILE
    }

    fn g(&self) -> usize {
        self.row % 8
    }

    /// 1 for row g + 8.
    fn upper(&self) -> usize {
        self.row % TILE / 8
    }

    /// Of the place's block `block`: where its pair's quants begin, and which one of the pair it is.
    fn quants(&self, block: usize) -> (usize, usize) {
        let at = self.block + block;
        let pair = self.tile() * self.layout.pairs() + at / 2;
        (pair * (self.sizes.low + self.sizes.high), at % 2)
    }

    /// Where the upper bits begin that lane `q` of the row's four has of that block's pair, and its share of 128 bits.
    fn high(&self, block: usize, q: usize) -> usize {
        let (pair, _) = self.quants(block);
        pair + self.sizes.low + (self.g() * 4 + q) * (self.sizes.high / 32)
    }

    /// Where the tile's scales begin, those of pairs or those of superblocks.
    fn scales(&self, supers: bool) -> usize {
        let pairs = self.layout.pairs();
        let tile = pairs * self.sizes.scales + self.layout.columns / SUPER * self.sizes.supers;
        self.tile() * tile + if supers { pairs * self.sizes.scales } else { 0 }
    }

    fn of_floats(&self, each: &mut impl FnMut(Run)) {
        let (pair, half) = self.quants(0);
        for (step, q) in (0..2).flat_map(|step| (0..4).map(move |q| (step, q))) {
            let file = self.file + step * 32 + q * 4;
            let device = pair + (half * 2 + step) * 512 + (self.g() * 4 + q) * 16 + self.upper() * 4;
            let bits = Bits::Bytes(4);
            each(Run { file, scales: false, device, bits });
            each(Run { file: file + 16, scales: false, device: device + 8, bits });
        }
    }

    /// A block of 32: d, perhaps m, perhaps 32 fifth bits, quants.
    fn of_block(&self, each: &mut impl FnMut(Run)) {
        let (pair, half) = self.quants(0);
        // A row's two blocks side by side.
        let head = self.sizes.scales / (TILE * 2);
        let device = self.scales(false)
            + self.block / 2 * self.sizes.scales
            + ((self.g() * 2 + self.upper()) * 2 + half) * head;
        each(Run { file: self.file, scales: true, device, bits: Bits::Bytes(head) });
        let fifth = self.file + head;
        let quants = fifth + if self.sizes.high > 0 { 4 } else { 0 };
        for q in 0..4 {
            let lane = (self.g() * 4 + q) * 16;
            let mut quant = |file: usize, device: usize| {
                each(Run { file: quants + file, scales: false, device: pair + device, bits: Bits::Bytes(4) });
            };
            if self.layout.quant == Quant::Q8_0 {
                let device = half * 512 + lane + self.upper() * 4;
                quant(q * 4, device);
                quant(16 + q * 4, device + 8);
            } else {
                quant(q * 4, lane + half * 8 + self.upper() * 4);
            }
            if self.sizes.high > 0 {
                for sixteen in 0..2 {
                    let field = 4 * self.upper() + 2 * sixteen + half;
                    let bits = Bits::Spread { file: 16 * sixteen + 4 * q, device: field };
                    each(Run { file: fifth, scales: false, device: self.high(0, q), bits });
                }
            }
        }
    }

    /// A superblock's nibbles: of each block where its 32 bytes begin, and how many places up they stand.
    fn nibbles(&self, of: impl Fn(usize) -> (usize, usize), each: &mut impl FnMut(Run)) {
        for (block, q) in (0..SUPER / BLOCK).flat_map(|block| (0..4).map(move |q| (block, q))) {
            let (pair, half) = self.quants(block);
            let (from, up) = of(block);
            let device = pair + (self.g() * 4 + q) * 16 + half * 8 + self.upper() * 4;
            for sixteen in 0..2 {
                let file = self.file + from + 16 * sixteen + 4 * q;
                let bits = Bits::Masked { mask: LOW, file: up, device: 4 * sixteen };
                each(Run { file, scales: false, device, bits });
            }
        }
    }

    /// Upper bits of a superblock, some of each value: of each pair where its bytes begin, and where its bits stand in them
    /// and in the bytes on the device; `wide` are those of two blocks.
    fn uppers(
        &self,
        of: impl Fn(usize) -> (usize, usize),
        to: usize,
        wide: usize,
        each: &mut impl FnMut(Run),
    ) {
        for (pair, q) in (0..SUPER_PAIRS).flat_map(|pair| (0..4).map(move |q| (pair, q))) {
            let (from, up) = of(pair);
            for sixteen in 0..2 {
                let mask = LOW & (0x0101_0101 * ((1 << wide) - 1));
                let bits = Bits::Masked { mask, file: up, device: to % 32 + wide * sixteen };
                let file = self.file + from + 16 * sixteen + 4 * q;
                each(Run { file, scales: false, device: self.high(2 * pair, q) + to / 32 * 4, bits });
            }
        }
    }

    /// d, dmin and 12 bytes of scales; perhaps 32 bytes of fifth bits; nibbles.
    fn of_k(&self, nibbles: usize, fifth: Option<usize>, each: &mut impl FnMut(Run)) {
        let device =
            self.scales(true) + self.block / (2 * SUPER_PAIRS) * self.sizes.supers + self.row % TILE * 16;
        each(Run { file: self.file, scales: true, device, bits: Bits::Bytes(16) });
        self.nibbles(|block| (nibbles + block / 2 * 32, block % 2 * 4), each);
        if let Some(fifth) = fifth {
            self.uppers(|pair| (fifth, 2 * pair), 4 * self.upper(), 2, each);
        }
    }

    /// 128 bytes of nibbles, 64 of upper bits, 16 scales, d.
    fn of_six(&self, each: &mut impl FnMut(Run)) {
        self.nibbles(|block| (block / 4 * 64 + block % 2 * 32, block % 4 / 2 * 4), each);
        self.uppers(|pair| (128 + pair / 2 * 32, pair % 2 * 4), 32 * self.upper(), 4, each);
        for pair in 0..SUPER_PAIRS {
            let device = self.scales(false)
                + (self.block / 2 + pair) * self.sizes.scales
                + (self.g() * 2 + self.upper()) * 4;
            each(Run { file: self.file + 192 + 4 * pair, scales: true, device, bits: Bits::Bytes(4) });
        }
        let device = self.scales(true)
            + self.block / (2 * SUPER_PAIRS) * self.sizes.supers
            + (self.g() * 2 + self.upper()) * 2;
        each(Run { file: self.file + 208, scales: true, device, bits: Bits::Bytes(2) });
    }
}
