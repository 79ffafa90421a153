//! Lists on their way to a guest: in pieces, so that a long one holds its thread no longer than a slice of code would.
//!
//! Owns: the pieces, and lists whose items or bytes are fetched as they are lowered. Never: how one item is laid out
//! (`values.rs`); when the next piece comes, which is the driver's.

use super::Trap;
use super::abi::{Lower, PIECE_BYTES, Target, Value};
use super::shape::Shape;
use std::ops::Range;
use std::sync::Arc;
use wasmi::Val;

/// A list whose items are made one by one as they are lowered: a vocabulary has a hundred thousand.
pub struct Made<T>(Box<dyn ExactSizeIterator<Item = T> + Send>);

impl<T> Made<T> {
    pub fn new(count: usize, make: impl Fn(usize) -> T + Send + 'static) -> Made<T> {
        Made(Box::new((0..count).map(make)))
    }
}

impl<T: Value> Value for Made<T> {
    const SIZE: usize = 8;
    const ALIGN: usize = 4;
    const FLAT: usize = 2;
    const NESTED: bool = true;
    fn shape() -> Shape {
        Vec::<T>::shape()
    }
}

impl<T: Lower> Lower for Made<T> {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Err(Trap::error("a list does not fit one number"))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        let count = self.0.len();
        let place = into.allocate(count.saturating_mul(T::SIZE), T::ALIGN)?;
        into.pair(at, place, count)?;
        fill(self.0, into, place)
    }
}

/// Bytes that are held elsewhere, and go into the guest from there.
pub struct Bytes(pub Arc<[u8]>, pub Range<usize>);

impl Value for Bytes {
    const SIZE: usize = 8;
    const ALIGN: usize = 4;
    const FLAT: usize = 2;
    const NESTED: bool = true;
    fn shape() -> Shape {
        Vec::<u8>::shape()
    }
}

impl Lower for Bytes {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Err(Trap::error("bytes do not fit one number"))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        let place = into.allocate(self.1.len(), 1)?;
        into.pair(at, place, self.1.len())?;
        copy(self, into, place)
    }
}

fn copy(Bytes(bytes, mut range): Bytes, into: &mut Target<'_>, mut at: usize) -> Result<(), Trap> {
    while !range.is_empty() {
        if into.slice_is_over() {
            into.leave(Box::new(move |into| copy(Bytes(bytes, range), into, at)));
            return Ok(());
        }
        let piece = range.start..range.end.min(range.start + PIECE_BYTES);
        into.write(at, bytes.get(piece.clone()).unwrap_or_default())?;
        at += piece.len();
        range.start = piece.end;
    }
    Ok(())
}

/// Lowers items that each need the allocator. What is more than a slice's work is left for the next go, or one call
/// would hold its thread, and every batch with it, for half a second.
pub(super) fn fill<T: Lower>(
    mut items: impl ExactSizeIterator<Item = T> + Send + 'static,
    into: &mut Target<'_>,
    mut at: usize,
) -> Result<(), Trap> {
    while items.len() > 0 {
        if into.slice_is_over() {
            into.leave(Box::new(move |into| fill(items, into, at)));
            return Ok(());
        }
        if let Some(item) = items.next() {
            item.store(into, at)?;
        }
        at += T::SIZE;
    }
    Ok(())
}

/// Lowers items of one size, from the last piece to the first: cutting off a list's end moves nothing else.
pub(super) fn pour<T: Lower>(mut items: Vec<T>, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
    let piece = (PIECE_BYTES / T::SIZE.max(1)).max(1);
    while items.len() > piece {
        if into.slice_is_over() {
            into.leave(Box::new(move |into| pour(items, into, at)));
            return Ok(());
        }
        let from = items.len() - piece;
        T::store_many(items.split_off(from), into, at + from * T::SIZE)?;
    }
    T::store_many(items, into, at)
}
