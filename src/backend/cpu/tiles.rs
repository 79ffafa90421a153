//! The columns that a matrix is multiplied with: activations, sixteen rows of the batch side by side.
//!
//! Owns: the quantisation of activations and how columns lie in memory. Never: a weight.
//!
//! Quantised, 32 values of a column become `x = d * q`: d = largest |x| / 127, q = x / d to the nearest integer, ties
//! to even. Beside them stand what weights with an offset or a minimum need: the sums of q.

use super::lanes::{LANES, Lanes};
use super::shared::{Number, Shared};

/// Columns in a tile.
pub(super) const TILE: usize = 16;
/// Values that share a scale.
pub(super) const BLOCK: usize = 32;

/// Below it a block counts as zeros: its scale's inverse would not be finite.
const SMALLEST: f32 = 1e-30;

/// 32 values of each of sixteen columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block {
    pub q: [[i8; BLOCK]; TILE],
    /// Scales.
    pub d: [f32; TILE],
    /// `d` times the sum of `q`.
    pub sum: [f32; TILE],
    /// Minus the sum of `q`: of all, of the first 16, of the last 16.
    pub minus: [[i32; TILE]; 3],
}

// SAFETY: arrays of integers and floats, nothing between them.
unsafe impl Number for Block {}
// SAFETY: floats.
unsafe impl Number for [f32; TILE] {}

impl Block {
    /// Puts 32 values into column `column`. A value that is not finite makes the column's numbers unspecified, not the
    /// others'.
    #[inline(always)]
    pub fn put<L: Lanes>(&mut self, l: L, column: usize, low: L::F, high: L::F) {
        let largest = l.largest(l.max(l.abs(low), l.abs(high)));
        let (d, per) = if largest > SMALLEST { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
        let per = l.splat(per);
        // What is not finite becomes a number too: no kernel meets -128, and no sum overflows.
        let (low, high) = (within(l, l.mul(low, per)), within(l, l.mul(high, per)));
        let (low, high) = (l.round(low), l.round(high));
        let (q, _) = self.q[column].as_chunks_mut::<LANES>();
        l.to_i8(low, &mut q[0]);
        l.to_i8(high, &mut q[1]);
        let (first, last) = (l.sum_i(low), l.sum_i(high));
        self.d[column] = d;
        self.sum[column] = d * (first + last) as f32;
        self.minus[0][column] = -(first + last);
        self.minus[1][column] = -first;
        self.minus[2][column] = -last;
    }
}

/// Within -127..=127, NaN too.
#[inline(always)]
fn within<L: Lanes>(l: L, x: L::F) -> L::F {
    l.max(l.min(x, l.splat(127.0)), l.splat(-127.0))
}

/// Sixteen columns of a matrix product; empty what no matrix of the model reads.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub blocks: &'a [Block],
    pub values: &'a [[f32; TILE]],
}

/// The columns of a matrix product: [tile][block or value][column], as integers, floats or both.
pub(super) struct Columns {
    blocks: Shared<Block>,
    values: Shared<[f32; TILE]>,
    integers: bool,
    floats: bool,
}

impl Columns {
    /// Room for `columns` columns of up to `width` values, as the matrices will read them.
    pub fn new(columns: usize, width: usize, (integers, floats): (bool, bool)) -> std::io::Result<Columns> {
        let tiles = columns.div_ceil(TILE);
        let some = |wanted, len| if wanted { tiles * len } else { 0 };
        Ok(Columns {
            blocks: Shared::new(some(integers, width / BLOCK))?,
            values: Shared::new(some(floats, width))?,
            integers,
            floats,
        })
    }

    /// Tile `tile` of columns of `width` values.
    ///
    /// # Safety
    /// Nobody writes the tile as long as the slices live.
    #[inline(always)]
    pub unsafe fn tile(&self, tile: usize, width: usize) -> Tile<'_> {
        let blocks = if self.integers { width / BLOCK } else { 0 };
        let values = if self.floats { width } else { 0 };
        // SAFETY: the caller's contract.
        unsafe {
            Tile {
                blocks: self.blocks.part(tile * blocks..(tile + 1) * blocks),
                values: self.values.part(tile * values..(tile + 1) * values),
            }
        }
    }

    /// Makes `x`, `width` values filled up to whole vectors, column `column` of tile `tile`.
    ///
    /// # Safety
    /// Nobody else reads or writes the tile meanwhile.
    #[inline(always)]
    pub unsafe fn put<L: Lanes>(&self, l: L, (tile, column): (usize, usize), x: &[f32], width: usize) {
        if self.integers {
            let len = width / BLOCK;
            // SAFETY: the caller's contract.
            let blocks = unsafe { self.blocks.part_mut(tile * len..(tile + 1) * len) };
            for (block, x) in blocks.iter_mut().zip(x.as_chunks::<LANES>().0.as_chunks::<2>().0) {
                block.put(l, column, l.load(&x[0]), l.load(&x[1]));
            }
        }
        if self.floats {
            // SAFETY: the caller's contract.
            let values = unsafe { self.values.part_mut(tile * width..(tile + 1) * width) };
            for (value, x) in values.iter_mut().zip(x) {
                value[column] = *x;
            }
        }
    }
}
