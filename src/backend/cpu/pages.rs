//! The paged K/V of all layers.
//!
//! Owns: where a slot's key and value lie, in which precision, and copying and clearing of pages. Never: whose a page
//! is, nor which slots a row may see.
//!
//! ```text
//! keys    [kv head][page][group of 16 slots][value of the head][slot of the group]   a vector holds 16 slots
//! values  [kv head][page][slot][value of the head, filled up to whole vectors]       a vector holds 16 values
//! scales  [kv head][page][slot], of keys and of values, for q8 alone
//! ```
//! Who attends reads one KV head of many pages: where these are neighbours in the pool they are neighbours for him too,
//! and a processor that looks ahead finds the next page by itself (a Xeon: 5 to 15 % more tokens/s behind 4,096 slots).
//! A page whose size is no multiple of 16 leaves the rest of its last group of keys unused.

use super::CpuError;
use super::lanes::{LANES, Lanes};
use super::shared::{Number, Shared};
use crate::backend::PageId;
use crate::model::shape::Shape;
use std::ops::Range;

/// How precisely keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    F32,
    /// IEEE half; larger values become the largest half.
    #[default]
    F16,
    /// 8 bits and, per slot and head, an f32 scale.
    Q8,
}

impl KvFormat {
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];

    /// As the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8 => "q8",
        }
    }

    pub fn named(name: &str) -> Option<KvFormat> {
        KvFormat::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Bytes of one number, and of the scale of a head's numbers in one slot.
    const fn bytes(self) -> (usize, usize) {
        match self {
            KvFormat::F32 => (4, 0),
            KvFormat::F16 => (2, 0),
            KvFormat::Q8 => (1, 4),
        }
    }
}

/// A number as a page keeps it.
pub(super) trait Kept: Number + Default {
    /// Whether a head's numbers in one slot share a scale.
    const SCALED: bool;
    fn load<L: Lanes>(l: L, from: &[Self; LANES]) -> L::F;
    fn store<L: Lanes>(l: L, x: L::F, to: &mut [Self; LANES]);
}

impl Kept for f32 {
    const SCALED: bool = false;
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[f32; LANES]) -> L::F {
        l.load(from)
    }
    #[inline(always)]
    fn store<L: Lanes>(l: L, x: L::F, to: &mut [f32; LANES]) {
        l.store(finite(l, x, f32::MAX), to);
    }
}

impl Kept for u16 {
    const SCALED: bool = false;
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[u16; LANES]) -> L::F {
        l.from_f16(from)
    }
    #[inline(always)]
    fn store<L: Lanes>(l: L, x: L::F, to: &mut [u16; LANES]) {
        l.to_f16(finite(l, x, 65504.0), to);
    }
}

impl Kept for i8 {
    const SCALED: bool = true;
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[i8; LANES]) -> L::F {
        l.float(l.from_i8(from))
    }
    #[inline(always)]
    fn store<L: Lanes>(l: L, x: L::F, to: &mut [i8; LANES]) {
        l.to_i8(l.round(finite(l, x, 127.0)), to);
    }
}

/// Within `-largest..=largest`, NaN too: a slot is hidden by multiplying with 0, so none may hold what is not finite.
#[inline(always)]
fn finite<L: Lanes>(l: L, x: L::F, largest: f32) -> L::F {
    l.max(l.min(x, l.splat(largest)), l.splat(-largest))
}

/// How slots lie in a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Pages of the pool.
    pages: usize,
    pub page_size: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Groups of sixteen slots in a page.
    groups: usize,
    /// Numbers of a value.
    pub value_stride: usize,
}

impl Layout {
    fn new(shape: &Shape, page_size: u32, pages: u32) -> Layout {
        Layout::of(pages as usize, page_size as usize, shape.kv_heads, shape.head_dim)
    }

    pub fn of(pages: usize, page_size: usize, kv_heads: usize, head_dim: usize) -> Layout {
        let (groups, value_stride) = (page_size.div_ceil(LANES), head_dim.next_multiple_of(LANES));
        Layout { pages, page_size, kv_heads, head_dim, groups, value_stride }
    }

    fn head(&self, page: PageId, kv_head: usize) -> usize {
        kv_head * self.pages + page.0 as usize
    }

    /// The keys of group `group` of a page: [value of the head][slot].
    #[inline(always)]
    pub fn keys(&self, page: PageId, kv_head: usize, group: usize) -> Range<usize> {
        let len = self.head_dim * LANES;
        let at = (self.head(page, kv_head) * self.groups + group) * len;
        at..at + len
    }

    /// The values of some slots of a page.
    #[inline(always)]
    pub fn values(&self, page: PageId, kv_head: usize, slots: Range<usize>) -> Range<usize> {
        let at = self.head(page, kv_head) * self.page_size;
        (at + slots.start) * self.value_stride..(at + slots.end) * self.value_stride
    }

    /// The scales of some slots of a page; up to whole groups there is room.
    #[inline(always)]
    pub fn scales(&self, page: PageId, kv_head: usize, slots: Range<usize>) -> Range<usize> {
        let at = self.head(page, kv_head) * self.groups * LANES;
        at + slots.start..at + slots.end
    }

    /// Numbers of a KV head in a page: keys, values, scales.
    fn part(&self) -> [usize; 3] {
        let slots = self.groups * LANES;
        [slots * self.head_dim, self.page_size * self.value_stride, slots]
    }
}

/// Keys and values of one layer.
pub(super) struct Kv<T: Kept> {
    pub keys: Shared<T>,
    pub values: Shared<T>,
    pub key_scales: Shared<f32>,
    pub value_scales: Shared<f32>,
}

impl<T: Kept> Kv<T> {
    /// Zeroed pages. Fails if the system has no room.
    pub fn new(layout: Layout) -> std::io::Result<Kv<T>> {
        let [keys, values, scales] = layout.part().map(|len| len * layout.kv_heads * layout.pages);
        let scales = if T::SCALED { scales } else { 0 };
        Ok(Kv {
            keys: Shared::new(keys)?,
            values: Shared::new(values)?,
            key_scales: Shared::new(scales)?,
            value_scales: Shared::new(scales)?,
        })
    }

    /// Puts a head's key and value, both filled up to whole vectors with zeros, into a slot.
    ///
    /// # Safety
    /// Nobody else reads or writes this slot of this head meanwhile.
    #[inline(always)]
    pub unsafe fn put_key<L: Lanes>(&self, l: L, layout: Layout, at: (PageId, usize, usize), key: &[f32]) {
        let (page, kv_head, slot) = at;
        let per = match T::SCALED {
            false => 1.0,
            true => {
                let (scale, per) = scale_of(l, key);
                // SAFETY: the caller's contract.
                unsafe { self.key_scales.part_mut(layout.scales(page, kv_head, slot..slot + 1)).fill(scale) };
                per
            }
        };
        let group = layout.keys(page, kv_head, slot / LANES);
        for (at, key) in (0..layout.head_dim).step_by(LANES).zip(key.as_chunks::<LANES>().0) {
            let mut kept = [T::default(); LANES];
            T::store(l, l.mul(l.load(key), l.splat(per)), &mut kept);
            let kept = &kept[..LANES.min(layout.head_dim - at)];
            // SAFETY: of the group's slots only this one is written; the rest is the caller's contract.
            unsafe { self.keys.scatter(group.start + at * LANES + slot % LANES, LANES, kept) };
        }
    }

    /// # Safety
    /// As for [`put_key`](Kv::put_key).
    #[inline(always)]
    pub unsafe fn put_value<L: Lanes>(
        &self,
        l: L,
        layout: Layout,
        at: (PageId, usize, usize),
        value: &[f32],
    ) {
        let (page, kv_head, slot) = at;
        // SAFETY: the caller's contract.
        let to = unsafe { self.values.part_mut(layout.values(page, kv_head, slot..slot + 1)) };
        let per = match T::SCALED {
            false => 1.0,
            true => {
                let (scale, per) = scale_of(l, value);
                // SAFETY: the caller's contract.
                unsafe {
                    self.value_scales.part_mut(layout.scales(page, kv_head, slot..slot + 1)).fill(scale)
                };
                per
            }
        };
        for (to, value) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(value.as_chunks::<LANES>().0) {
            T::store(l, l.mul(l.load(value), l.splat(per)), to);
        }
    }

    fn copy(&mut self, layout: Layout, from: PageId, to: PageId) {
        let [keys, values, scales] = layout.part();
        for kv_head in 0..layout.kv_heads {
            let (from, to) = (layout.head(from, kv_head), layout.head(to, kv_head));
            self.keys.copy_within(from * keys..(from + 1) * keys, to * keys);
            self.values.copy_within(from * values..(from + 1) * values, to * values);
            if T::SCALED {
                self.key_scales.copy_within(from * scales..(from + 1) * scales, to * scales);
                self.value_scales.copy_within(from * scales..(from + 1) * scales, to * scales);
            }
        }
    }

    fn clear(&mut self, layout: Layout, page: PageId, from: usize) {
        for kv_head in 0..layout.kv_heads {
            self.values.clear(layout.values(page, kv_head, from.min(layout.page_size)..layout.page_size));
            for slot in from..layout.page_size {
                let group = layout.keys(page, kv_head, slot / LANES);
                for at in group.step_by(LANES) {
                    self.keys.clear(at + slot % LANES..at + slot % LANES + 1);
                }
            }
            if T::SCALED && from < layout.page_size {
                let slots = layout.scales(page, kv_head, from..layout.page_size);
                self.key_scales.clear(slots.clone());
                self.value_scales.clear(slots);
            }
        }
    }
}

/// The scale that makes a head's numbers 8 bits, and what to multiply with.
#[inline(always)]
fn scale_of<L: Lanes>(l: L, numbers: &[f32]) -> (f32, f32) {
    let mut largest = l.splat(0.0);
    for x in numbers.as_chunks::<LANES>().0 {
        largest = l.max(l.abs(l.load(x)), largest);
    }
    // Half the range: 127 times a scale that was rounded up must not overflow either.
    let largest = l.largest(largest).min(f32::MAX / 2.0);
    if largest > 1e-30 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) }
}

#[cfg(any(test, feature = "toys"))]
impl<T: Kept> Kv<T> {
    fn add_to(&mut self, layout: Layout, page: PageId, slots: usize, sum: &mut blake3::Hasher) {
        for kv_head in 0..layout.kv_heads {
            self.values.add_to(layout.values(page, kv_head, 0..slots), sum);
            for group in 0..slots.div_ceil(LANES) {
                let here = LANES.min(slots - group * LANES);
                let keys = layout.keys(page, kv_head, group).step_by(LANES);
                keys.for_each(|at| self.keys.add_to(at..at + here, sum));
            }
            if T::SCALED {
                self.key_scales.add_to(layout.scales(page, kv_head, 0..slots), sum);
                self.value_scales.add_to(layout.scales(page, kv_head, 0..slots), sum);
            }
        }
    }
}

/// One layer after the other.
pub(super) enum Layers {
    F32(Vec<Kv<f32>>),
    F16(Vec<Kv<u16>>),
    Q8(Vec<Kv<i8>>),
}

/// All pages.
pub(super) struct Pages {
    pub layout: Layout,
    pub layers: Layers,
}

/// Does the same to the layers of each format.
macro_rules! each_format {
    ($layers:expr, $of:ident => $body:expr) => {
        match $layers {
            Layers::F32($of) => $body,
            Layers::F16($of) => $body,
            Layers::Q8($of) => $body,
        }
    };
}
pub(super) use each_format;

impl Pages {
    /// Zeroed pages. The system gives the memory as it is first written.
    pub fn new(shape: &Shape, page_size: u32, pages: u32, format: KvFormat) -> Result<Pages, CpuError> {
        fn layers<T: Kept>(count: usize, layout: Layout, pages: u32) -> Result<Vec<Kv<T>>, CpuError> {
            (0..count).map(|_| Kv::new(layout).map_err(|_| CpuError::TooLarge(pages))).collect()
        }
        let layout = Layout::new(shape, page_size, pages);
        let count = shape.layers;
        let layers = match format {
            KvFormat::F32 => Layers::F32(layers(count, layout, pages)?),
            KvFormat::F16 => Layers::F16(layers(count, layout, pages)?),
            KvFormat::Q8 => Layers::Q8(layers(count, layout, pages)?),
        };
        Ok(Pages { layout, layers })
    }

    /// Bytes of one page in all layers.
    pub fn page_bytes(shape: &Shape, page_size: u32, format: KvFormat) -> usize {
        let [keys, values, scales] = Layout::new(shape, page_size, 1).part();
        let (number, scale) = format.bytes();
        shape.layers * shape.kv_heads * ((keys + values) * number + 2 * scales * scale)
    }

    pub fn copy(&mut self, from: PageId, to: PageId) {
        let layout = self.layout;
        each_format!(&mut self.layers, layers => layers.iter_mut().for_each(|kv| kv.copy(layout, from, to)));
    }

    /// Zeroes the slots from `from` on.
    pub fn clear(&mut self, page: PageId, from: usize) {
        let layout = self.layout;
        each_format!(&mut self.layers, layers => layers.iter_mut().for_each(|kv| kv.clear(layout, page, from)));
    }
}

#[cfg(any(test, feature = "toys"))]
impl Pages {
    /// Of all that the first slots of a page hold, in all layers.
    pub fn checksum(&mut self, page: PageId, slots: u32) -> blake3::Hash {
        let (layout, mut sum) = (self.layout, blake3::Hasher::new());
        each_format!(&mut self.layers, layers => {
            layers.iter_mut().for_each(|kv| kv.add_to(layout, page, slots as usize, &mut sum));
        });
        sum.finalize()
    }
}
