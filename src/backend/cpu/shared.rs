//! Memory that the ranks of a batch write together.
//!
//! Owns: the one place where several threads hold parts of one buffer. Never: what lies in it, nor who may write
//! which part: the phases of a batch (`forward.rs`) give every rank parts of its own, and a barrier stands between
//! writing a part and another rank's reading it.

use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::Range;

/// Numbers.
///
/// # Safety
/// Any bit pattern is a valid value, zeros too.
pub(super) unsafe trait Number: Copy + Send + Sync + 'static {}
// SAFETY: a float.
unsafe impl Number for f32 {}
// SAFETY: an integer.
unsafe impl Number for u16 {}
// SAFETY: an integer.
unsafe impl Number for i8 {}

/// A zeroed buffer; the system gives its memory as it is first written.
pub(super) struct Shared<T: Number> {
    /// Kept for the memory; read and written through `start` alone.
    _map: MmapMut,
    start: *mut T,
    len: usize,
    numbers: PhantomData<T>,
}

// SAFETY: the memory belongs to the value, and all access to it is through `part`, `part_mut` and `scatter`, whose callers
// vouch that no number is written while another thread uses it.
unsafe impl<T: Number> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Number> Sync for Shared<T> {}

impl<T: Number> Shared<T> {
    /// `len` zeros. Fails if the system has no room.
    pub fn new(len: usize) -> std::io::Result<Shared<T>> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut map = MmapMut::map_anon(bytes.max(1))?;
        let start = map.as_mut_ptr().cast(); // aligned to a page
        Ok(Shared { _map: map, start, len, numbers: PhantomData })
    }

    /// Numbers in the buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where number `number` lies: an address to prefetch, not to read.
    #[inline(always)]
    pub fn at(&self, number: usize) -> *const u8 {
        self.start.wrapping_add(number).cast_const().cast()
    }

    /// # Safety
    /// Nobody writes any number of `range` as long as the slice lives.
    #[inline(always)]
    pub unsafe fn part(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, initialised (zeros, then whole numbers), not written by the contract.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// # Safety
    /// Nobody else reads or writes any number of `range` as long as the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // that is what it is for
    pub unsafe fn part_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: as for `part`, and nobody else uses it by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Writes `numbers` (at least one) to `first` and each `stride`-th place after it.
    ///
    /// # Safety
    /// Nobody else reads or writes these places meanwhile; those between them are not touched.
    #[inline(always)]
    pub unsafe fn scatter(&self, first: usize, stride: usize, numbers: &[T]) {
        assert!(first + (numbers.len() - 1) * stride < self.len);
        for (i, number) in numbers.iter().enumerate() {
            // SAFETY: in bounds by the assertion, nobody else's by the contract.
            unsafe { self.start.add(first + i * stride).write(*number) };
        }
    }

    /// Copies numbers within the buffer.
    pub fn copy_within(&mut self, from: Range<usize>, to: usize) {
        // SAFETY: the buffer is borrowed exclusively.
        unsafe { self.part_mut(0..self.len) }.copy_within(from, to);
    }

    /// Makes numbers zero.
    pub fn clear(&mut self, range: Range<usize>)
    where
        T: Default,
    {
        // SAFETY: the buffer is borrowed exclusively.
        unsafe { self.part_mut(range) }.fill(T::default());
    }

    /// Adds the bits of these numbers to a checksum.
    #[cfg(any(test, feature = "toys"))]
    pub fn add_to(&mut self, range: Range<usize>, sum: &mut blake3::Hasher) {
        // SAFETY: the buffer is borrowed exclusively.
        let part = unsafe { self.part(range) };
        // SAFETY: the same memory; a `Number` has no padding.
        sum.update(unsafe { std::slice::from_raw_parts(part.as_ptr().cast(), size_of_val(part)) });
    }
}

/// A matrix of activations, a row per row of the batch; rows are filled up to whole vectors, with zeros.
pub(super) struct Plane {
    numbers: Shared<f32>,
    pub stride: usize,
}

impl Plane {
    pub fn new(rows: usize, width: usize) -> std::io::Result<Plane> {
        let stride = width.next_multiple_of(super::lanes::LANES);
        Ok(Plane { numbers: Shared::new(rows * stride)?, stride })
    }

    /// Part `range` of row `row`.
    ///
    /// # Safety
    /// Nobody writes it as long as the slice lives.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize, range: Range<usize>) -> &[f32] {
        assert!(range.end <= self.stride);
        // SAFETY: the caller's contract.
        unsafe { self.numbers.part(row * self.stride + range.start..row * self.stride + range.end) }
    }

    /// # Safety
    /// Nobody else reads or writes it as long as the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, row: usize, range: Range<usize>) -> &mut [f32] {
        assert!(range.end <= self.stride);
        // SAFETY: the caller's contract.
        unsafe { self.numbers.part_mut(row * self.stride + range.start..row * self.stride + range.end) }
    }
}
