//! Dot products and matrix products, in one order of summation.
//!
//! Owns: the order in which products over K are added, whatever the number of rows and columns. Never: where the
//! numbers come from, nor threads.
//!
//! The order. Term k goes to lane `k % 16`; each lane adds its terms by rising k; then the lanes are added in a fixed
//! tree. Vectors are padded with zeros to whole steps of 16, so there is no remainder and no second order. Several
//! rows and columns are only taken together to keep the adders busy: each result is what it would be alone.

use super::weights::Matrix;
use std::array::from_fn;
use std::ops::Range;

/// Lanes of a sum, and the step to which vectors are padded.
pub(super) const LANES: usize = 16;

/// `len` rounded up to whole steps of [`LANES`].
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(LANES)
}

/// Four lanes: what every machine of today multiplies at once. Written out, because the compiler turns exactly this
/// into vector instructions, at any number of accumulators.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Four([f32; 4]);

impl Four {
    #[inline(always)]
    fn of(values: &[f32]) -> Four {
        Four([values[0], values[1], values[2], values[3]])
    }

    /// `self + a * b`, rounded twice.
    #[inline(always)]
    fn plus_product(self, Four(a): Four, Four(b): Four) -> Four {
        let Four(s) = self;
        Four([s[0] + a[0] * b[0], s[1] + a[1] * b[1], s[2] + a[2] * b[2], s[3] + a[3] * b[3]])
    }

    #[inline(always)]
    fn plus(self, Four(b): Four) -> Four {
        let Four(a) = self;
        Four([a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]])
    }
}

/// The fixed tree over a sum's lanes: 16 to 8 to 4 to 2 to 1.
#[inline(always)]
fn tree(lanes: [Four; LANES / 4]) -> f32 {
    let Four([a, b, c, d]) = lanes[0].plus(lanes[2]).plus(lanes[1].plus(lanes[3]));
    (a + c) + (b + d)
}

/// R x C dot products of padded vectors.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "`quarter` indexes the innermost of three dimensions")]
fn dots<const R: usize, const C: usize>(rows: [&[f32]; R], columns: [&[f32]; C]) -> [[f32; R]; C] {
    let len = rows[0].len();
    // Said once here, so that the loop below needs no checks.
    let rows: [&[f32]; R] = from_fn(|r| &rows[r][..len]);
    let columns: [&[f32]; C] = from_fn(|c| &columns[c][..len]);
    let mut sums = [[[Four([0.0; 4]); LANES / 4]; R]; C];
    for step in 0..len / LANES {
        for quarter in 0..LANES / 4 {
            let at = step * LANES + quarter * 4;
            let row: [Four; R] = from_fn(|r| Four::of(&rows[r][at..at + 4]));
            for c in 0..C {
                let column = Four::of(&columns[c][at..at + 4]);
                for r in 0..R {
                    sums[c][r][quarter] = sums[c][r][quarter].plus_product(row[r], column);
                }
            }
        }
    }
    from_fn(|c| from_fn(|r| tree(sums[c][r])))
}

/// The sum of a padded vector's squares.
pub(super) fn square_sum(vector: &[f32]) -> f32 {
    dots([vector], [vector])[0][0]
}

/// The sum of a padded vector.
pub(super) fn sum(vector: &[f32]) -> f32 {
    let mut lanes = [Four([0.0; 4]); LANES / 4];
    for step in vector.chunks_exact(LANES) {
        for (lane, four) in lanes.iter_mut().zip(step.chunks_exact(4)) {
            *lane = lane.plus(Four::of(four));
        }
    }
    tree(lanes)
}

/// The dot product of `vector` (padded) with each of `rows` (padded, one after the other).
pub(super) fn dot_rows(rows: &[f32], vector: &[f32], products: &mut [f32]) {
    products_of(rows, vector, vector.len(), |_, row, product| products[row] = product);
}

/// `store(column, row, dot product)` for all of `rows` and `columns`, `stride` values each (padded).
#[inline(always)]
fn products_of(rows: &[f32], columns: &[f32], stride: usize, mut store: impl FnMut(usize, usize, f32)) {
    let (row_count, column_count) = (rows.len() / stride, columns.len() / stride);
    let row = |r: usize| &rows[r * stride..][..stride];
    let column = |c: usize| &columns[c * stride..][..stride];
    let mut c = 0;
    while c < column_count {
        let pair = c + 2 <= column_count;
        let mut r = 0;
        while r + 4 <= row_count {
            let four = from_fn(|i| row(r + i));
            if pair {
                let products = dots::<4, 2>(four, [column(c), column(c + 1)]);
                (0..4).for_each(|i| store(c, r + i, products[0][i]));
                (0..4).for_each(|i| store(c + 1, r + i, products[1][i]));
            } else {
                let products = dots::<4, 1>(four, [column(c)]);
                (0..4).for_each(|i| store(c, r + i, products[0][i]));
            }
            r += 4;
        }
        for r in r..row_count {
            store(c, r, dots::<1, 1>([row(r)], [column(c)])[0][0]);
            if pair {
                store(c + 1, r, dots::<1, 1>([row(r)], [column(c + 1)])[0][0]);
            }
        }
        c += if pair { 2 } else { 1 };
    }
}

/// Rows that are made f32 at once for many columns: they stay in a core's cache while the columns pass by.
const ROWS_AT_ONCE: usize = 16;

/// Room for the f32 values of the rows in work.
pub(super) struct Rows(Vec<f32>);

impl Rows {
    /// For matrices of up to `width` values a row.
    pub fn new(width: usize) -> Rows {
        Rows(vec![0.0; ROWS_AT_ONCE * padded(width)])
    }
}

/// `product[column][row - rows.start] = matrix[row] . columns[column]` for a range of the matrix' rows.
///
/// `columns`: [column, padded(width)]; `product`: [column, rows.len()].
pub(super) fn multiply(
    matrix: &Matrix,
    file: &[u8],
    rows: Range<usize>,
    columns: &[f32],
    Rows(values): &mut Rows,
    product: &mut [f32],
) {
    let stride = padded(matrix.width);
    // For one column a row is used once: fewer rows leave the nearest cache to it.
    let at_once = if columns.len() == stride { 4 } else { ROWS_AT_ONCE };
    for first in rows.clone().step_by(at_once) {
        let count = at_once.min(rows.end - first);
        for (i, row) in values.chunks_exact_mut(stride).take(count).enumerate() {
            let (row, padding) = row.split_at_mut(matrix.width);
            matrix.dequantize(file, first + i, row);
            padding.fill(0.0);
        }
        let (offset, width) = (first - rows.start, rows.len());
        products_of(&values[..count * stride], columns, stride, |column, row, value| {
            product[column * width + offset + row] = value;
        });
    }
}
