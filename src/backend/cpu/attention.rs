//! Attention of some rows' heads that share a KV head, over the slots that each row may see.
//!
//! Owns: the walk over pages, softmax, the weighted sum of values. Never: threads, or which rows go together.
//!
//! The slots are taken in stretches that begin at multiples of 256, whatever the batch. In a stretch: scores, their
//! largest, weights `exp(score - largest)`, the weights' sum (lane by lane, slot % 16), and the weighted sum of
//! values, slot by slot. Stretches are joined from the first to the last, as in Milakov, Gimelshein, "Online
//! normalizer calculation for softmax" (2018). So the bits follow from the row's own slots; pages, chunks, neighbours
//! and threads leave no trace. A hidden slot adds exactly nothing, and a row that sees none gets zeros.

use super::lanes::{LANES, Lanes, each};
use super::pages::{Kept, Kv, Layout};
use super::vector::{capped, exp};
use crate::backend::PageId;
use std::ops::Range;

/// Slots of a stretch.
pub(super) const STRETCH: usize = 256;
/// Queries that go through the pages together at most: their sums fill the registers.
pub(super) const QUERIES: usize = 12;
/// Values of the largest head that `limits` lets in.
const STRIDE: usize = crate::limits::MODEL_HEAD as usize;

/// Which slots a row sees.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    /// The row's own slot, the last that it may see.
    pub slot: usize,
    /// The first that it may see.
    pub first: usize,
    /// A bit per slot, if the row has a mask.
    pub mask: Option<&'a [u64]>,
}

impl Sight<'_> {
    /// Bits of slots `at..at + 16`.
    #[inline(always)]
    fn bits(&self, at: usize) -> u16 {
        // Bits below `end` of slots counted from `at`.
        let below = |end: usize| match end.saturating_sub(at) {
            count @ 0..16 => (1u16 << count) - 1,
            _ => u16::MAX,
        };
        let mut bits = below(self.slot + 1) & !below(self.first);
        if let Some(mask) = self.mask {
            let word = |index: usize| mask.get(index).copied().unwrap_or(0);
            let (index, shift) = (at / 64, at % 64);
            let pair = u128::from(word(index)) | u128::from(word(index + 1)) << 64;
            bits &= (pair >> shift) as u16;
        }
        bits
    }
}

/// What one head of one row has gathered.
#[derive(Clone, Copy)]
pub(super) struct Gathered {
    /// The largest score; minus infinity if nothing was seen.
    pub largest: f32,
    /// The sum of the weights.
    pub total: f32,
    /// The weighted sum of the values.
    pub values: [f32; STRIDE],
}

impl Gathered {
    pub const NOTHING: Gathered = Gathered { largest: f32::NEG_INFINITY, total: 0.0, values: [0.0; STRIDE] };

    /// Makes it nothing again, for a head of `stride` values.
    pub fn reset(&mut self, stride: usize) {
        (self.largest, self.total) = (f32::NEG_INFINITY, 0.0);
        self.values[..stride].fill(0.0);
    }

    /// Adds what the next stretch gave.
    #[inline(always)]
    pub fn join<L: Lanes>(&mut self, l: L, largest: f32, total: f32, values: &[f32]) {
        if largest == f32::NEG_INFINITY {
            return;
        }
        let both = self.largest.max(largest);
        // exp(-inf) is 0, which is what nothing weighs.
        let (a, b) = (one_exp(l, self.largest - both), one_exp(l, largest - both));
        self.largest = both;
        self.total = self.total * a + total * b;
        let (a, b) = (l.splat(a), l.splat(b));
        for (own, next) in
            self.values.as_chunks_mut::<LANES>().0.iter_mut().zip(values.as_chunks::<LANES>().0)
        {
            l.store(l.fma(l.load(next), b, l.mul(l.load(own), a)), own);
        }
    }

    /// The attention's answer.
    #[inline(always)]
    pub fn finish<L: Lanes>(&self, l: L, to: &mut [f32]) {
        let per = if self.total > 0.0 { 1.0 / self.total } else { 0.0 };
        let mut rest = to.len();
        for (to, value) in to.chunks_mut(LANES).zip(self.values.as_chunks::<LANES>().0) {
            let mut scaled = [0.0; LANES];
            l.store(l.mul(l.load(value), l.splat(per)), &mut scaled);
            to.copy_from_slice(&scaled[..rest.min(LANES)]);
            rest -= rest.min(LANES);
        }
    }
}

#[inline(always)]
fn one_exp<L: Lanes>(l: L, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    l.store(exp(l, l.splat(x)), &mut lanes);
    lanes[0]
}

/// A KV head of a sequence in one layer.
pub(super) struct View<'a, T: Kept> {
    pub kv: &'a Kv<T>,
    pub layout: Layout,
    pub kv_head: usize,
    /// The sequence's pages.
    pub pages: &'a [PageId],
    pub cap: Option<f32>,
}

/// A query: a head of a row, turned and scaled, and what the row sees.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    pub q: &'a [f32], // [head_dim] and more
    pub sight: Sight<'a>,
}

/// A rank's room.
pub(super) struct Room {
    scores: Box<[[f32; STRETCH + LANES]; QUERIES]>,
    /// The queries, value by value: [value of the head][query].
    queries: Vec<f32>,
    gathered: Box<[Gathered; QUERIES]>,
}

impl Room {
    pub fn new() -> Room {
        Room {
            scores: Box::new([[0.0; STRETCH + LANES]; QUERIES]),
            queries: vec![0.0; STRIDE * QUERIES],
            gathered: Box::new([Gathered::NOTHING; QUERIES]),
        }
    }
}

impl<T: Kept> View<'_, T> {
    /// Attends stretch `stretch` for 1 to 12 queries; `tell` gets each query's number and what it gathered.
    pub fn attend<L: Lanes>(
        &self,
        l: L,
        stretch: usize,
        queries: &[Query],
        room: &mut Room,
        mut tell: impl FnMut(usize, &Gathered),
    ) {
        let mut first = 0;
        while first < queries.len() {
            let some = &queries[first..];
            let count = match some.len() {
                12.. if L::COLUMNS >= 16 => self.some::<L, 12>(l, stretch, some, room),
                6.. if L::COLUMNS >= 16 => self.some::<L, 6>(l, stretch, some, room),
                4.. if L::COLUMNS >= 4 => self.some::<L, 4>(l, stretch, some, room),
                3.. if L::COLUMNS >= 4 => self.some::<L, 3>(l, stretch, some, room),
                2.. if L::COLUMNS >= 4 => self.some::<L, 2>(l, stretch, some, room),
                _ => self.some::<L, 1>(l, stretch, some, room),
            };
            for (i, gathered) in room.gathered[..count].iter().enumerate() {
                tell(first + i, gathered);
            }
            first += count;
        }
    }

    /// The first `N` queries; returns `N`.
    #[inline(never)]
    fn some<L: Lanes, const N: usize>(
        &self,
        l: L,
        stretch: usize,
        queries: &[Query],
        room: &mut Room,
    ) -> usize {
        l.enter(
            #[inline(always)]
            || {
                let queries: &[Query; N] = queries.first_chunk().expect("as many as were counted");
                let slots = stretch * STRETCH..(stretch + 1) * STRETCH;
                let seen = self.score(l, slots.clone(), queries, room);
                match (L::COLUMNS >= 16, N <= 3) {
                    (true, true) => self.gather::<L, N, 4>(l, slots, seen, room),
                    (true, false) => self.gather::<L, N, 2>(l, slots, seen, room),
                    (false, _) => self.gather::<L, N, 1>(l, slots, seen, room),
                }
                N
            },
        )
    }

    /// Fills `room` with the weights of the slots, their largest score and their sum. Returns the slots between the
    /// first and the last that any query sees.
    #[inline(always)]
    fn score<L: Lanes, const N: usize>(
        &self,
        l: L,
        slots: Range<usize>,
        queries: &[Query; N],
        room: &mut Room,
    ) -> Range<usize> {
        let Layout { page_size, head_dim, .. } = self.layout;
        let hidden = l.splat(f32::NEG_INFINITY);
        let last = queries.iter().map(|query| query.sight.slot).max().unwrap_or(0);
        let first = queries.iter().map(|query| query.sight.first).min().unwrap_or(0);
        let span = slots.start.max(first)..slots.end.min(last + 1);
        if span.is_empty() {
            for gathered in &mut room.gathered[..N] {
                gathered.largest = f32::NEG_INFINITY;
            }
            return 0..0;
        }
        // The vectors of scores that any query sees a slot of. The others' weights are zeros, which nobody adds or reads.
        let vectors = (span.start - slots.start) / LANES..(span.end - slots.start).div_ceil(LANES);
        for scores in &mut room.scores[..N] {
            for lanes in &mut scores.as_chunks_mut::<LANES>().0[vectors.clone()] {
                l.store(hidden, lanes);
            }
        }
        let turned = &mut room.queries.as_chunks_mut::<N>().0[..head_dim];
        for (i, query) in queries.iter().enumerate() {
            for (turned, q) in turned.iter_mut().zip(query.q) {
                turned[i] = *q;
            }
        }
        for page in span.start / page_size..=(span.end - 1) / page_size {
            let base = page * page_size;
            let within = span.start.max(base) - base..span.end.min(base + page_size) - base;
            for group in within.start / LANES..within.end.div_ceil(LANES) {
                let at = base + group * LANES;
                // Lanes of this group that are slots of this page and of this stretch.
                let end = span.end.min(base + page_size);
                let real = Sight { slot: end - 1, first: span.start, mask: None }.bits(at);
                let mut bits = [0; N];
                let mut any = 0;
                for (bits, query) in bits.iter_mut().zip(queries) {
                    *bits = query.sight.bits(at) & real;
                    any |= *bits;
                }
                if any == 0 {
                    continue;
                }
                // SAFETY: keys are written before the barrier that comes before attention.
                let keys =
                    unsafe { self.kv.keys.part(self.layout.keys(self.pages[page], self.kv_head, group)) };
                let keys = &keys.as_chunks::<LANES>().0[..head_dim];
                let mut sums = [l.splat(0.0); N];
                // The keys of the next page may lie anywhere: they are asked for as this one's are used, after the last
                // of them the first values.
                let next = if page == (span.end - 1) / page_size {
                    let first = span.start / page_size;
                    self.kv.values.at(self.layout.values(self.pages[first], self.kv_head, 0..0).start)
                } else {
                    self.kv.keys.at(self.layout.keys(self.pages[page + 1], self.kv_head, group).start)
                };
                for ((key, q), line) in keys.iter().zip(turned.iter()).zip(0..) {
                    l.prefetch(next.wrapping_add(line * size_of::<[T; LANES]>()));
                    let key = T::load(l, key);
                    each!(N, i => sums[i] = l.fma(key, l.splat(q[i]), sums[i]));
                }
                if T::SCALED {
                    let slots = group * LANES..(group + 1) * LANES;
                    let scales = self.layout.scales(self.pages[page], self.kv_head, slots);
                    // SAFETY: as above.
                    let scales = unsafe { self.kv.key_scales.part(scales) };
                    let scales = l.load(&scales.as_chunks::<LANES>().0[0]);
                    for sum in &mut sums {
                        *sum = l.mul(*sum, scales);
                    }
                }
                for i in 0..N {
                    let scores = l.select(bits[i], capped(l, sums[i], self.cap), hidden);
                    match at.checked_sub(slots.start) {
                        Some(at) => l.store(scores, lanes_mut(&mut room.scores[i], at)),
                        None => {
                            // A page that began in the stretch before.
                            let mut lanes = [0.0; LANES];
                            l.store(scores, &mut lanes);
                            let skip = slots.start - at;
                            room.scores[i][..LANES - skip].copy_from_slice(&lanes[skip..]);
                        }
                    }
                }
            }
        }
        for (scores, gathered) in room.scores[..N].iter_mut().zip(&mut room.gathered[..N]) {
            let scores = &mut scores.as_chunks_mut::<LANES>().0[vectors.clone()];
            let mut largest = hidden;
            for lanes in scores.iter() {
                largest = l.max(l.load(lanes), largest);
            }
            gathered.largest = l.largest(largest);
            let minus = l.splat(gathered.largest);
            let mut total = l.splat(0.0);
            for lanes in scores {
                // Of a query that sees nothing all are NaN here, which weighs nothing.
                let weight = exp(l, l.sub(l.load(lanes), minus));
                total = l.add(total, weight);
                l.store(weight, lanes);
            }
            gathered.total = l.sum(total);
        }
        span
    }

    /// The weighted sums of the values, `D` vectors of a head at a time.
    #[inline(always)]
    fn gather<L: Lanes, const N: usize, const D: usize>(
        &self,
        l: L,
        slots: Range<usize>,
        seen: Range<usize>,
        room: &mut Room,
    ) {
        let Layout { page_size, value_stride, .. } = self.layout;
        let vectors = value_stride / LANES;
        let mut from = 0;
        while from < vectors {
            // What is left of a head that is no multiple of this goes vector by vector.
            let wide = from + D <= vectors;
            if wide {
                self.gather_some::<L, N, D>(l, (slots.start, &seen, page_size), from, room);
                from += D;
            } else {
                self.gather_some::<L, N, 1>(l, (slots.start, &seen, page_size), from, room);
                from += 1;
            }
        }
    }

    #[inline(always)]
    fn gather_some<L: Lanes, const N: usize, const D: usize>(
        &self,
        l: L,
        (start, seen, page_size): (usize, &Range<usize>, usize),
        from: usize,
        room: &mut Room,
    ) {
        let stride = self.layout.value_stride;
        let mut sums = [[l.splat(0.0); D]; N];
        let scores = &room.scores[..N];
        let mut slot = seen.start;
        while slot < seen.end {
            let page = slot / page_size;
            let within = slot - page * page_size..seen.end.min((page + 1) * page_size) - page * page_size;
            let range = self.layout.values(self.pages[page], self.kv_head, within.clone());
            // SAFETY: values are written before the barrier that comes before attention.
            let values = unsafe { self.kv.values.part(range) };
            let scales = match T::SCALED {
                // SAFETY: as above.
                true => unsafe {
                    let scales = self.layout.scales(self.pages[page], self.kv_head, within.clone());
                    self.kv.value_scales.part(scales)
                },
                false => &[],
            };
            let next = self.pages[(page + 1).min(self.pages.len() - 1)];
            let next =
                self.kv.values.at(self.layout.values(next, self.kv_head, within.start..within.start).start);
            for (i, value) in values.chunks_exact(stride).enumerate() {
                let at = slot - start + i;
                if from == 0 {
                    for line in (0..stride * size_of::<T>()).step_by(64) {
                        l.prefetch(next.wrapping_add(i * stride * size_of::<T>() + line));
                    }
                }
                let value = &value[from * LANES..].as_chunks::<LANES>().0[..D];
                let scale = if T::SCALED { scales[i] } else { 1.0 };
                each!(D, d => {
                    let mut value = T::load(l, &value[d]);
                    if T::SCALED {
                        value = l.mul(value, l.splat(scale));
                    }
                    each!(N, n => sums[n][d] = l.fma(value, l.splat(scores[n][at]), sums[n][d]));
                });
            }
            slot += within.len();
        }
        for (gathered, sums) in room.gathered[..N].iter_mut().zip(sums) {
            let values = gathered.values.as_chunks_mut::<LANES>().0;
            for (value, sum) in values[from..from + D].iter_mut().zip(sums) {
                l.store(sum, value);
            }
        }
    }
}

/// The sixteen numbers from `at` on.
#[inline(always)]
fn lanes_mut(numbers: &mut [f32], at: usize) -> &mut [f32; LANES] {
    numbers[at..].first_chunk_mut().expect("there is a vector's room behind a stretch")
}
