//! Products of packed weights and columns: sixteen rows of a matrix, one to sixteen columns.
//!
//! Owns: the order of every sum in a matrix product. Never: threads, memory, or what a product is for.
//!
//! The order, the same for any number of columns: a row and a column begin with 0; block by block, ascending, the
//! products of 32 integers are summed exactly, made a float, multiplied by both scales and added, then the minimum's
//! share is added. Float formats add value by value. Exact: dot products of integers, scales times d of the K formats.

use super::lanes::{LANES, Lanes, each};
use super::packed::{Packed, SUPER, Store};
use super::tiles::{Block, TILE, Tile};
use crate::model::gguf::Quant;
use std::marker::PhantomData;

#[cfg(test)]
mod tests;

/// How far before its use a line of weights is asked for, in bytes. At 16 columns a processor's own look-ahead ends too
/// soon: measured on Zen 5, 10.7 GB/s of weights without and 22 with this distance, the same from 4 to 8 KiB. Into all
/// caches: asked for non-temporally, so that they pass by the second, one sequence's decode falls from 490 to 114
/// tokens/s on a Xeon (Sapphire Rapids), and what a program finds cold after a batch is no less.
const AHEAD: usize = 4096;

/// Products of one group: [column][row of the group].
pub(super) type Products = [[f32; LANES]; TILE];

/// The products of group `group` of `matrix` with the first `count` (1 to 16) columns of a tile; what the others of
/// `products` hold then is nobody's business.
pub(super) fn multiply<L: Lanes>(
    l: L,
    (matrix, store): (&Packed, &Store),
    group: usize,
    Tile { blocks, values }: Tile,
    count: usize,
    products: &mut Products,
) {
    let parts = matrix.parts(store, group);
    match matrix.format {
        Quant::F32 => by_columns(l, Floats(parts[0], PhantomData::<Single>), values, count, products),
        Quant::F16 => by_columns(l, Floats(parts[0], PhantomData::<Half>), values, count, products),
        Quant::BF16 => by_columns(l, Floats(parts[0], PhantomData::<Brain>), values, count, products),
        Quant::Q4_0 => by_columns(l, Integers::<Nibbles, D<3>>::of(parts), blocks, count, products),
        Quant::Q4_1 => by_columns(l, Integers::<Nibbles, DM>::of(parts), blocks, count, products),
        Quant::Q4_K => by_columns(l, Integers::<Nibbles, K>::of(parts), blocks, count, products),
        Quant::Q5_0 => by_columns(l, Integers::<Bytes, D<4>>::of(parts), blocks, count, products),
        Quant::Q5_1 => by_columns(l, Integers::<Bytes, DM>::of(parts), blocks, count, products),
        Quant::Q5_K => by_columns(l, Integers::<Bytes, K>::of(parts), blocks, count, products),
        Quant::Q8_0 => by_columns(l, Integers::<Shifted, D<7>>::of(parts), blocks, count, products),
        Quant::Q6_K => by_columns(l, Six(parts), blocks, count, products),
    }
}

/// The weights of a group in one format.
trait Weights<L: Lanes>: Copy {
    /// What sixteen columns have for one step: a block of 32 quantised values, or one float.
    type Columns;
    /// The weights of a step, ready to be multiplied.
    type Ready: Copy;
    /// Bytes of a step's integers or floats.
    const STEP: usize;
    /// The integers or floats of the group.
    fn bytes(&self) -> &[u8];
    /// Bytes of the scales behind them.
    fn scales(&self) -> usize {
        0
    }
    fn ready(self, l: L, step: usize) -> Self::Ready;
    /// `sum` plus the products of a step with one column.
    fn add(l: L, ready: &Self::Ready, columns: &Self::Columns, column: usize, sum: L::F) -> L::F;
    /// The same for some columns.
    #[inline(always)]
    fn add_some<const N: usize>(
        l: L,
        ready: &Self::Ready,
        columns: &Self::Columns,
        first: usize,
        sums: &mut [L::F; N],
    ) {
        each!(N, i => sums[i] = Self::add(l, ready, columns, first + i, sums[i]));
    }
}

fn by_columns<L: Lanes, W: Weights<L>>(
    l: L,
    weights: W,
    columns: &[W::Columns],
    count: usize,
    products: &mut Products,
) {
    // Rather some columns too many than the weights once more: a tile has sixteen, used or not.
    let mut first = 0;
    while first < count {
        first += match count - first {
            9.. if L::COLUMNS >= 16 => some_columns::<L, W, 16>(l, weights, columns, first, products),
            5.. if L::COLUMNS >= 16 => some_columns::<L, W, 8>(l, weights, columns, first, products),
            2.. if L::COLUMNS >= 4 => some_columns::<L, W, 4>(l, weights, columns, first, products),
            _ => some_columns::<L, W, 1>(l, weights, columns, first, products),
        };
    }
}

/// The products with `COUNT` columns from `first` on, which it returns. The weights of a step are made ready once.
#[inline(never)]
fn some_columns<L: Lanes, W: Weights<L>, const COUNT: usize>(
    l: L,
    weights: W,
    columns: &[W::Columns],
    first: usize,
    products: &mut Products,
) -> usize {
    l.enter(
        #[inline(always)]
        || {
            let products = &mut products[first..first + COUNT];
            let mut sums = [l.splat(0.0); COUNT];
            // The scales behind the integers are asked for too: each step takes its share of the group.
            let share = (W::STEP + weights.scales() / columns.len().max(1)).next_multiple_of(64);
            let ahead = weights.bytes().as_ptr().wrapping_add(AHEAD);
            for (step, columns) in columns.iter().enumerate() {
                let ahead = ahead.wrapping_add(step * share);
                each!(W::STEP.div_ceil(64) + 1, line => l.prefetch(ahead.wrapping_add(line * 64)));
                let ready = weights.ready(l, step);
                W::add_some(l, &ready, columns, first, &mut sums);
            }
            for (product, sum) in products.iter_mut().zip(sums) {
                l.store(sum, product);
            }
            COUNT
        },
    )
}

/// `N` bytes of the `i`-th of equal parts.
#[inline(always)]
fn at<const N: usize>(bytes: &[u8], i: usize) -> &[u8; N] {
    &bytes.as_chunks::<N>().0[i]
}

/// Sixteen halves of bytes that were packed as native u16.
#[inline(always)]
fn halves(bytes: &[u8; 2 * LANES]) -> [u16; LANES] {
    let mut halves = [0; LANES];
    for (half, two) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *half = u16::from_ne_bytes(*two);
    }
    halves
}

#[inline(always)]
fn signed(bytes: &[u8; LANES]) -> [i8; LANES] {
    let mut signed = [0; LANES];
    for (signed, byte) in signed.iter_mut().zip(bytes) {
        *signed = *byte as i8;
    }
    signed
}

/// Floats of kind `V`.
struct Floats<'a, V>(&'a [u8], PhantomData<V>);

impl<V> Clone for Floats<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Floats<'_, V> {}

impl<L: Lanes, V: Value> Weights<L> for Floats<'_, V> {
    type Columns = [f32; TILE];
    type Ready = L::F;
    const STEP: usize = V::STEP;

    fn bytes(&self) -> &[u8] {
        self.0
    }

    #[inline(always)]
    fn ready(self, l: L, step: usize) -> L::F {
        V::values(l, self.0, step)
    }

    #[inline(always)]
    fn add(l: L, ready: &L::F, columns: &[f32; TILE], column: usize, sum: L::F) -> L::F {
        l.fma(*ready, l.splat(columns[column]), sum)
    }
}

trait Value {
    /// Bytes of one value of all rows.
    const STEP: usize;

    fn values<L: Lanes>(l: L, bytes: &[u8], step: usize) -> L::F;
}

struct Single;

impl Value for Single {
    const STEP: usize = 64;

    #[inline(always)]
    fn values<L: Lanes>(l: L, bytes: &[u8], step: usize) -> L::F {
        let mut values = [0.0; LANES];
        for (value, four) in values.iter_mut().zip(at::<64>(bytes, step).as_chunks::<4>().0) {
            *value = f32::from_ne_bytes(*four);
        }
        l.load(&values)
    }
}

struct Half;

impl Value for Half {
    const STEP: usize = 32;

    #[inline(always)]
    fn values<L: Lanes>(l: L, bytes: &[u8], step: usize) -> L::F {
        l.from_f16(&halves(at(bytes, step)))
    }
}

struct Brain;

impl Value for Brain {
    const STEP: usize = 32;

    #[inline(always)]
    fn values<L: Lanes>(l: L, bytes: &[u8], step: usize) -> L::F {
        l.from_bf16(&halves(at(bytes, step)))
    }
}

/// Integers `Q` with scales `S`.
struct Integers<'a, Q, S> {
    quants: &'a [u8],
    scales: &'a [u8],
    supers: &'a [u8],
    kind: PhantomData<(Q, S)>,
}

impl<Q, S> Clone for Integers<'_, Q, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q, S> Copy for Integers<'_, Q, S> {}

impl<'a, Q, S> Integers<'a, Q, S> {
    fn of([quants, scales, supers]: [&'a [u8]; 3]) -> Self {
        Integers { quants, scales, supers, kind: PhantomData }
    }
}

impl<L: Lanes, Q: Quants, S: Scales> Weights<L> for Integers<'_, Q, S> {
    type Columns = Block;
    type Ready = ([L::B; 8], L::F, Option<L::F>);
    const STEP: usize = Q::STEP;

    fn bytes(&self) -> &[u8] {
        self.quants
    }

    fn scales(&self) -> usize {
        self.scales.len() + self.supers.len()
    }

    #[inline(always)]
    fn ready(self, l: L, step: usize) -> Self::Ready {
        let (d, minimum) = S::scales(l, self.scales, self.supers, step);
        (Q::quants(l, self.quants, step), d, minimum)
    }

    #[inline(always)]
    fn add(l: L, ready: &Self::Ready, columns: &Block, column: usize, sum: L::F) -> L::F {
        let mut dot = Self::start(l, columns, column);
        for (weights, four) in ready.0.iter().zip(columns.q[column].as_chunks::<4>().0) {
            dot = Q::dot(l, dot, *weights, four);
        }
        Self::end(l, ready, columns, column, dot, sum)
    }

    /// Where registers are few, a vector of weights goes through all columns before the next.
    #[inline(always)]
    fn add_some<const N: usize>(
        l: L,
        ready: &Self::Ready,
        columns: &Block,
        first: usize,
        sums: &mut [L::F; N],
    ) {
        if L::COLUMNS >= 16 {
            each!(N, i => sums[i] = <Self as Weights<L>>::add(l, ready, columns, first + i, sums[i]));
            return;
        }
        let mut dots = [l.zero(); N];
        each!(N, i => dots[i] = Self::start(l, columns, first + i));
        each!(8, j => each!(N, i => {
            let four = &columns.q[first + i].as_chunks::<4>().0[j];
            dots[i] = Q::dot(l, dots[i], ready.0[j], four);
        }));
        each!(N, i => sums[i] = Self::end(l, ready, columns, first + i, dots[i], sums[i]));
    }
}

impl<Q: Quants, S: Scales> Integers<'_, Q, S> {
    /// What the products of a block and a column begin with.
    #[inline(always)]
    fn start<L: Lanes>(l: L, columns: &Block, column: usize) -> L::I {
        Q::start(l, S::start(l, columns.minus[0][column]))
    }

    /// `sum` plus the products of a block and a column, scaled.
    #[inline(always)]
    fn end<L: Lanes>(
        l: L,
        (_, d, minimum): &([L::B; 8], L::F, Option<L::F>),
        columns: &Block,
        column: usize,
        dot: L::I,
        sum: L::F,
    ) -> L::F {
        let dot = Q::end(l, S::start(l, columns.minus[0][column]), dot);
        let sum = l.fma(l.float(dot), l.mul(*d, l.splat(columns.d[column])), sum);
        match minimum {
            Some(minimum) => l.fma(*minimum, l.splat(columns.sum[column]), sum),
            None => sum,
        }
    }
}

trait Quants {
    /// Bytes of a block.
    const STEP: usize;

    fn quants<L: Lanes>(l: L, bytes: &[u8], block: usize) -> [L::B; 8];
    /// What the sum of a block's products begins with, if it is to be counted from `start`.
    #[inline(always)]
    fn start<L: Lanes>(_l: L, start: L::I) -> L::I {
        start
    }
    #[inline(always)]
    fn dot<L: Lanes>(l: L, sum: L::I, weights: L::B, four: &[i8; 4]) -> L::I {
        l.dot_7(sum, weights, four)
    }
    /// The sum, counted from `start`.
    #[inline(always)]
    fn end<L: Lanes>(_l: L, _start: L::I, sum: L::I) -> L::I {
        sum
    }
}

struct Nibbles;

impl Quants for Nibbles {
    const STEP: usize = 256;

    #[inline(always)]
    fn quants<L: Lanes>(l: L, bytes: &[u8], block: usize) -> [L::B; 8] {
        let v = at::<256>(bytes, block).as_chunks::<64>().0;
        let (a, b, c, d) = (l.bytes(&v[0]), l.bytes(&v[1]), l.bytes(&v[2]), l.bytes(&v[3]));
        [
            l.low_nibbles(a),
            l.low_nibbles(b),
            l.low_nibbles(c),
            l.low_nibbles(d),
            l.high_nibbles(a),
            l.high_nibbles(b),
            l.high_nibbles(c),
            l.high_nibbles(d),
        ]
    }
    #[inline(always)]
    fn start<L: Lanes>(l: L, start: L::I) -> L::I {
        l.start_4(start)
    }
    #[inline(always)]
    fn dot<L: Lanes>(l: L, sum: L::I, weights: L::B, four: &[i8; 4]) -> L::I {
        l.dot_4(sum, weights, four)
    }
    #[inline(always)]
    fn end<L: Lanes>(l: L, start: L::I, sum: L::I) -> L::I {
        l.end_4(start, sum)
    }
}

/// Bytes below 128.
struct Bytes;

impl Quants for Bytes {
    const STEP: usize = 512;

    #[inline(always)]
    fn quants<L: Lanes>(l: L, bytes: &[u8], block: usize) -> [L::B; 8] {
        let v = at::<512>(bytes, block).as_chunks::<64>().0;
        let (a, b, c, d) = (l.bytes(&v[0]), l.bytes(&v[1]), l.bytes(&v[2]), l.bytes(&v[3]));
        [a, b, c, d, l.bytes(&v[4]), l.bytes(&v[5]), l.bytes(&v[6]), l.bytes(&v[7])]
    }
}

/// Bytes that stand for themselves less 128.
struct Shifted;

impl Quants for Shifted {
    const STEP: usize = 512;

    #[inline(always)]
    fn quants<L: Lanes>(l: L, bytes: &[u8], block: usize) -> [L::B; 8] {
        Bytes::quants(l, bytes, block)
    }
    #[inline(always)]
    fn dot<L: Lanes>(l: L, sum: L::I, weights: L::B, four: &[i8; 4]) -> L::I {
        l.dot_8(sum, weights, four)
    }
}

trait Scales {
    /// What the sum of a block's products begins with, given minus the sum of the column's integers.
    #[inline(always)]
    fn start<L: Lanes>(l: L, _minus: i32) -> L::I {
        l.zero()
    }
    /// d and, if the format has one, the minimum that is added to every value of the block.
    fn scales<L: Lanes>(l: L, scales: &[u8], supers: &[u8], block: usize) -> (L::F, Option<L::F>);
}

/// `x = d * (q - 2^SHIFT)`.
struct D<const SHIFT: u32>;

impl<const SHIFT: u32> Scales for D<SHIFT> {
    #[inline(always)]
    fn start<L: Lanes>(l: L, minus: i32) -> L::I {
        if SHIFT == 7 { l.start_8(minus) } else { l.shl::<SHIFT>(l.splat_i(minus)) }
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, scales: &[u8], _: &[u8], block: usize) -> (L::F, Option<L::F>) {
        (l.from_f16(&halves(at(scales, block))), None)
    }
}

/// `x = d * q + m`.
struct DM;

impl Scales for DM {
    #[inline(always)]
    fn scales<L: Lanes>(l: L, scales: &[u8], _: &[u8], block: usize) -> (L::F, Option<L::F>) {
        let d = l.from_f16(&halves(at(scales, 2 * block)));
        (d, Some(l.from_f16(&halves(at(scales, 2 * block + 1)))))
    }
}

/// `x = (d * scale) * q - dmin * minimum`.
struct K;

impl Scales for K {
    #[inline(always)]
    fn scales<L: Lanes>(l: L, scales: &[u8], supers: &[u8], block: usize) -> (L::F, Option<L::F>) {
        let d = l.from_f16(&halves(at(supers, 2 * (block / SUPER))));
        let dmin = l.from_f16(&halves(at(supers, 2 * (block / SUPER) + 1)));
        let scale = l.float(l.from_u8(at(scales, 2 * block)));
        let minimum = l.float(l.from_u8(at(scales, 2 * block + 1)));
        (l.mul(d, scale), Some(l.mul(l.sub(l.splat(0.0), dmin), minimum)))
    }
}

/// Q6_K: `x = d * scale * (q - 32)`, a scale for 16 values.
#[derive(Clone, Copy)]
struct Six<'a>([&'a [u8]; 3]);

impl<L: Lanes> Weights<L> for Six<'_> {
    type Columns = Block;
    type Ready = ([L::B; 8], L::F, [L::I; 2]);
    const STEP: usize = 384;

    fn bytes(&self) -> &[u8] {
        self.0[0]
    }

    fn scales(&self) -> usize {
        self.0[1].len() + self.0[2].len()
    }

    #[inline(always)]
    fn ready(self, l: L, step: usize) -> Self::Ready {
        let Six([quants, scales, supers]) = self;
        let v = at::<384>(quants, step).as_chunks::<64>().0;
        let (a, b, c, d) = (l.bytes(&v[0]), l.bytes(&v[1]), l.bytes(&v[2]), l.bytes(&v[3]));
        let (x, y) = (l.bytes(&v[4]), l.bytes(&v[5]));
        let weights = [
            l.join_2::<0>(l.low_nibbles(a), x),
            l.join_2::<0>(l.low_nibbles(b), y),
            l.join_2::<2>(l.low_nibbles(c), x),
            l.join_2::<2>(l.low_nibbles(d), y),
            l.join_2::<4>(l.high_nibbles(a), x),
            l.join_2::<4>(l.high_nibbles(b), y),
            l.join_2::<6>(l.high_nibbles(c), x),
            l.join_2::<6>(l.high_nibbles(d), y),
        ];
        let first = l.from_i8(&signed(at(scales, 2 * step)));
        let last = l.from_i8(&signed(at(scales, 2 * step + 1)));
        (weights, l.from_f16(&halves(at(supers, step / SUPER))), [first, last])
    }

    #[inline(always)]
    fn add(l: L, (weights, d, scales): &Self::Ready, columns: &Block, column: usize, sum: L::F) -> L::F {
        let four = columns.q[column].as_chunks::<4>().0;
        let mut first = l.shl::<5>(l.splat_i(columns.minus[1][column]));
        let mut last = l.shl::<5>(l.splat_i(columns.minus[2][column]));
        for j in 0..4 {
            first = l.dot_7(first, weights[j], &four[j]);
            last = l.dot_7(last, weights[j + 4], &four[j + 4]);
        }
        let dot = l.add_i(l.mul_i(first, scales[0]), l.mul_i(last, scales[1]));
        l.fma(l.float(dot), l.mul(*d, l.splat(columns.d[column])), sum)
    }
}
