//! Long lists on their way to a guest or from one: in pieces, so that one holds its thread no longer than a slice of code
//! would.
//!
//! Owns: the pieces, lists whose items or bytes are fetched as they are lowered, and lists that stay in the guest until
//! they are lifted. Never: how one item is laid out (`values.rs`); when the next piece comes, which is the driver's.

use super::abi::{Flat, Lift, Lower, PIECE_BYTES, Source, Target, Value, too_much};
use super::shape::Shape;
use super::{Cx, Trap};
use crate::limits;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use wasmi::Val;

/// An argument that stays in the guest, which waits, until the host has lifted all of it.
pub struct Long<T> {
    at: usize,
    count: usize,
    _items: PhantomData<fn() -> T>,
}

/// What is to be done with a long argument once it is there.
pub struct Gather<T, R> {
    pub list: Long<T>,
    #[allow(clippy::type_complexity)]
    pub then: Box<dyn FnOnce(&mut Cx, Vec<T>) -> Result<R, Trap> + Send>,
}

impl<T: Lift> Long<T> {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn then<R>(
        self,
        then: impl FnOnce(&mut Cx, Vec<T>) -> Result<R, Trap> + Send + 'static,
    ) -> Result<Gather<T, R>, Trap> {
        Ok(Gather { list: self, then: Box::new(then) })
    }

    /// Lifts the next piece; `held` is what the host holds of the list before it.
    pub(super) fn piece(
        &mut self,
        from: &mut Source<'_>,
        items: &mut Vec<T>,
        held: usize,
    ) -> Result<(), Trap> {
        while !self.is_empty() && !from.slice_is_over() {
            let count = if T::NESTED { 1 } else { self.count.min(PIECE_BYTES / T::SIZE.max(1)) };
            from.admit(self.at, count, T::SIZE, T::ALIGN, size_of::<T>())?;
            items.reserve(count);
            match T::NESTED {
                true => items.push(T::load(from, self.at)?),
                false => items.append(&mut T::load_many(from, self.at, count)?),
            }
            self.at += count * T::SIZE;
            self.count -= count;
        }
        match held.saturating_add(from.held()) > limits::LIFTED_BYTES {
            true => Err(too_much(limits::LIFTED_BYTES)),
            false => Ok(()),
        }
    }
}

impl<T: Value> Value for Long<T> {
    const SIZE: usize = 8;
    const ALIGN: usize = 4;
    const FLAT: usize = 2;
    const NESTED: bool = true;
    fn shape() -> Shape {
        Vec::<T>::shape()
    }
}

impl<T: Lift> Lift for Long<T> {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Long<T>, Trap> {
        let (at, count) = (flat.u32()? as usize, flat.u32()? as usize);
        from.locate(at, count, T::SIZE, T::ALIGN)?;
        Ok(Long { at, count, _items: PhantomData })
    }
    fn load(_: &mut Source<'_>, _: usize) -> Result<Long<T>, Trap> {
        Err(Trap::error("a long list is an argument of its own"))
    }
}

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
