//! How each type crosses: numbers, text, lists, tuples, options, results, enums, handles.
//!
//! Owns: [`Lift`] and [`Lower`] of these types, as the canonical ABI lays them out. Never: an access to guest memory
//! of its own; `abi.rs` checks and makes them all.

use super::Trap;
use super::abi::{Flat, Lift, Lower, Source, Target, Value};
use super::lists::{fill, pour};
use super::shape::Shape;
use crate::runtime::table::Resource;
use std::marker::PhantomData;
use wasmi::Val;

/// What a type of two or more core values answers to [`Lower::lower`]; the call layer never asks.
fn not_one_value<T>() -> Result<T, Trap> {
    Err(Trap::error("the answer does not fit one number"))
}

// ---- numbers ----

const _: () = assert!(
    cfg!(target_endian = "little"),
    "a guest's numbers are little-endian, and copied as they lie there"
);

/// Copied whole: a build for size would take byte by byte from its own loop.
fn numbers<T: bytemuck::Pod>(from: &Source<'_>, at: usize, count: usize) -> Result<Vec<T>, Trap> {
    Ok(bytemuck::pod_collect_to_vec(from.slice(at, count * size_of::<T>())?))
}

macro_rules! number {
    ($($type:ty: $shape:ident, $flat:ident as $wide:ty, $val:ident;)*) => {$(
        impl Value for $type {
            const SIZE: usize = size_of::<$type>();
            const ALIGN: usize = size_of::<$type>();
            const FLAT: usize = 1;
            fn shape() -> Shape {
                Shape::$shape
            }
        }
        impl Lift for $type {
            fn lift(_: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Self, Trap> {
                flat.$flat().map(|bits| bits as $type)
            }
            fn load(from: &mut Source<'_>, at: usize) -> Result<Self, Trap> {
                from.bytes(at).map(<$type>::from_le_bytes)
            }
            fn load_many(from: &mut Source<'_>, at: usize, count: usize) -> Result<Vec<Self>, Trap> {
                numbers(from, at, count)
            }
        }
        impl Lower for $type {
            fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
                Ok(Val::$val(self as $wide))
            }
            fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
                into.write(at, &self.to_le_bytes())
            }
            fn store_many(items: Vec<Self>, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
                into.write(at, bytemuck::cast_slice(&items))
            }
        }
    )*};
}

number! {
    u8: U8, u32 as i32, I32;
    u16: U16, u32 as i32, I32;
    u32: U32, u32 as i32, I32;
    i32: S32, u32 as i32, I32;
    u64: U64, u64 as i64, I64;
    i64: S64, u64 as i64, I64;
}

impl Value for f32 {
    const SIZE: usize = 4;
    const ALIGN: usize = 4;
    const FLAT: usize = 1;
    fn shape() -> Shape {
        Shape::F32
    }
}

impl Lift for f32 {
    fn lift(_: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<f32, Trap> {
        flat.u32().map(f32::from_bits)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<f32, Trap> {
        from.bytes(at).map(f32::from_le_bytes)
    }
    fn load_many(from: &mut Source<'_>, at: usize, count: usize) -> Result<Vec<f32>, Trap> {
        numbers(from, at, count)
    }
}

impl Lower for f32 {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Ok(Val::F32(self.into()))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        into.write(at, &self.to_le_bytes())
    }
    fn store_many(items: Vec<f32>, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        into.write(at, bytemuck::cast_slice(&items))
    }
}

impl Value for bool {
    const SIZE: usize = 1;
    const ALIGN: usize = 1;
    const FLAT: usize = 1;
    fn shape() -> Shape {
        Shape::Bool
    }
}

impl Lift for bool {
    fn lift(_: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<bool, Trap> {
        flat.u32().map(|v| v != 0)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<bool, Trap> {
        from.bytes(at).map(|[v]| v != 0)
    }
}

impl Lower for bool {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Ok(Val::I32(self as i32))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        into.write(at, &[self as u8])
    }
}

// ---- strings and lists ----

impl Value for String {
    const SIZE: usize = 8;
    const ALIGN: usize = 4;
    const FLAT: usize = 2;
    const NESTED: bool = true;
    fn shape() -> Shape {
        Shape::String
    }
}

fn text(bytes: Vec<u8>) -> Result<String, Trap> {
    String::from_utf8(bytes).map_err(|e| {
        Trap::error(format!("the string is not UTF-8 at its byte {}", e.utf8_error().valid_up_to()))
    })
}

impl Lift for String {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<String, Trap> {
        text(Vec::lift(from, flat)?)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<String, Trap> {
        text(Vec::load(from, at)?)
    }
}

impl Lower for String {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        not_one_value()
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        self.into_bytes().store(into, at)
    }
}

impl<T: Value> Value for Vec<T> {
    const SIZE: usize = 8;
    const ALIGN: usize = 4;
    const FLAT: usize = 2;
    const NESTED: bool = true;
    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }
}

fn list<T: Lift>(from: &mut Source<'_>, at: u32, count: u32) -> Result<Vec<T>, Trap> {
    // Checked as a whole before anything is read, so that a claimed length alone never allocates.
    from.admit(at as usize, count as usize, T::SIZE, T::ALIGN, size_of::<T>())?;
    T::load_many(from, at as usize, count as usize)
}

impl<T: Lift> Lift for Vec<T> {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Vec<T>, Trap> {
        let (at, count) = (flat.u32()?, flat.u32()?);
        list(from, at, count)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<Vec<T>, Trap> {
        let (at, count) = (u32::load(from, at)?, u32::load(from, at + 4)?);
        list(from, at, count)
    }
}

impl<T: Lower> Lower for Vec<T> {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        not_one_value()
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        let count = self.len();
        let place = into.allocate(count.saturating_mul(T::SIZE), T::ALIGN)?;
        into.pair(at, place, count)?;
        match T::NESTED {
            true => fill(self.into_iter(), into, place),
            false => pour(self, into, place),
        }
    }
}

// ---- tuples (and records) ----

const fn align_up(at: usize, align: usize) -> usize {
    at.next_multiple_of(align)
}

pub(super) const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

macro_rules! tuple {
    ($($name:ident)*) => {
        #[allow(non_snake_case, unused_variables, unused_mut, unused_assignments, clippy::unused_unit)]
        const _: () = {
            impl<$($name: Value),*> Value for ($($name,)*) {
                const SIZE: usize = {
                    let mut at = 0;
                    $(at = align_up(at, $name::ALIGN) + $name::SIZE;)*
                    align_up(at, Self::ALIGN)
                };
                const ALIGN: usize = {
                    let mut align = 1;
                    $(align = max(align, $name::ALIGN);)*
                    align
                };
                const FLAT: usize = 0 $(+ $name::FLAT)*;
                const NESTED: bool = false $(|| $name::NESTED)*;
                fn shape() -> Shape {
                    Shape::Tuple(vec![$($name::shape()),*])
                }
            }
            impl<$($name: Lift),*> Lift for ($($name,)*) {
                fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Self, Trap> {
                    Ok(($($name::lift(from, flat)?,)*))
                }
                fn load(from: &mut Source<'_>, mut at: usize) -> Result<Self, Trap> {
                    $(
                        at = align_up(at, $name::ALIGN);
                        let $name = $name::load(from, at)?;
                        at += $name::SIZE;
                    )*
                    Ok(($($name,)*))
                }
            }
            impl<$($name: Lower),*> Lower for ($($name,)*) {
                fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
                    not_one_value()
                }
                fn store(self, into: &mut Target<'_>, mut at: usize) -> Result<(), Trap> {
                    let ($($name,)*) = self;
                    $(
                        at = align_up(at, size_align::<$name>().1);
                        let size = size_align::<$name>().0;
                        $name.store(into, at)?;
                        at += size;
                    )*
                    Ok(())
                }
            }
        };
    };
}

/// In a pattern a type parameter's name is a variable, so its constants are reached through this.
const fn size_align<T: Value>() -> (usize, usize) {
    (T::SIZE, T::ALIGN)
}

tuple!();
tuple!(A);
tuple!(A B);
tuple!(A B C);
tuple!(A B C D);
tuple!(A B C D E);
tuple!(A B C D E F);
tuple!(A B C D E F G);
tuple!(A B C D E F G H);

// ---- options, results, enums ----

/// Where a case's value stands behind its one-byte discriminant.
const fn payload(align: usize) -> usize {
    align_up(1, align)
}

pub(super) fn bad_case<T>(case: usize, of: &str) -> Result<T, Trap> {
    Err(Trap::error(format!("{case} is no case of {of}")))
}

impl<T: Value> Value for Option<T> {
    const ALIGN: usize = T::ALIGN;
    const SIZE: usize = align_up(payload(T::ALIGN) + T::SIZE, T::ALIGN);
    const FLAT: usize = 1 + T::FLAT;
    const NESTED: bool = T::NESTED;
    fn shape() -> Shape {
        Shape::Option(Box::new(T::shape()))
    }
}

impl<T: Lift> Lift for Option<T> {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Option<T>, Trap> {
        match flat.u32()? {
            0 => {
                flat.skip(T::FLAT);
                Ok(None)
            }
            1 => T::lift(from, flat).map(Some),
            case => bad_case(case as usize, "an option"),
        }
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<Option<T>, Trap> {
        match u8::load(from, at)? {
            0 => Ok(None),
            1 => T::load(from, at + payload(T::ALIGN)).map(Some),
            case => bad_case(case as usize, "an option"),
        }
    }
}

impl<T: Lower> Lower for Option<T> {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        not_one_value()
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        into.write(at, &[self.is_some() as u8])?;
        self.map_or(Ok(()), |value| value.store(into, at + payload(T::ALIGN)))
    }
}

/// A side `()` carries nothing, as `_` does in WIT.
fn side<T: Value>() -> Option<Box<Shape>> {
    (T::FLAT > 0).then(|| Box::new(T::shape()))
}

impl<T: Value, E: Value> Value for Result<T, E> {
    const ALIGN: usize = max(T::ALIGN, E::ALIGN);
    const SIZE: usize = align_up(payload(Self::ALIGN) + max(T::SIZE, E::SIZE), Self::ALIGN);
    const FLAT: usize = 1 + max(T::FLAT, E::FLAT);
    const NESTED: bool = T::NESTED || E::NESTED;
    fn shape() -> Shape {
        Shape::Result(side::<T>(), side::<E>())
    }
}

impl<T: Lift, E: Lift> Lift for Result<T, E> {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Self, Trap> {
        let (value, used) = match flat.u32()? {
            0 => (Ok(T::lift(from, flat)?), T::FLAT),
            1 => (Err(E::lift(from, flat)?), E::FLAT),
            case => return bad_case(case as usize, "a result"),
        };
        flat.skip(Self::FLAT - 1 - used);
        Ok(value)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<Self, Trap> {
        let place = at + payload(Self::ALIGN);
        match u8::load(from, at)? {
            0 => T::load(from, place).map(Ok),
            1 => E::load(from, place).map(Err),
            case => bad_case(case as usize, "a result"),
        }
    }
}

impl<T: Lower, E: Lower> Lower for Result<T, E> {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Ok(Val::I32(self.is_err() as i32))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        into.write(at, &[self.is_err() as u8])?;
        let place = at + payload(Self::ALIGN);
        match self {
            Ok(value) => value.store(into, place),
            Err(error) => error.store(into, place),
        }
    }
}

/// Makes an enum without payloads a WIT `enum`: its cases in WIT order, at most 256.
#[macro_export]
macro_rules! wit_enum {
    ($type:ty { $($case:ident),* $(,)? }) => {
        impl $crate::host::abi::Cases for $type {
            const CASES: &'static [Self] = &[$(<$type>::$case),*];
            fn case(self) -> u8 {
                self as u8
            }
        }
        $crate::host::abi::one_byte!($type, $crate::host::shape::Shape::Enum(<Self as $crate::host::abi::Cases>::CASES.len()));
    };
}

/// The cases of a WIT `enum` in order. Written by [`wit_enum!`](crate::wit_enum).
pub trait Cases: Copy + Send + Sync + 'static {
    const CASES: &'static [Self];
    /// The index in [`Cases::CASES`].
    fn case(self) -> u8;
    fn of(case: usize) -> Result<Self, Trap> {
        Self::CASES.get(case).copied().map_or_else(|| bad_case(case, "this enum"), Ok)
    }
}

/// The three traits for a type of [`Cases`].
#[doc(hidden)]
#[macro_export]
macro_rules! one_byte {
    ($type:ty, $shape:expr) => {
        impl $crate::host::abi::Value for $type {
            const SIZE: usize = 1;
            const ALIGN: usize = 1;
            const FLAT: usize = 1;
            fn shape() -> $crate::host::shape::Shape {
                $shape
            }
        }
        impl $crate::host::abi::Lift for $type {
            fn lift(
                _: &mut $crate::host::abi::Source<'_>,
                flat: &mut $crate::host::abi::Flat<'_>,
            ) -> Result<Self, $crate::host::Trap> {
                flat.u32().and_then(|case| <Self as $crate::host::abi::Cases>::of(case as usize))
            }
            fn load(from: &mut $crate::host::abi::Source<'_>, at: usize) -> Result<Self, $crate::host::Trap> {
                <u8 as $crate::host::abi::Lift>::load(from, at)
                    .and_then(|case| <Self as $crate::host::abi::Cases>::of(case as usize))
            }
        }
        impl $crate::host::abi::Lower for $type {
            fn lower(self, _: &mut $crate::host::abi::Target<'_>) -> Result<wasmi::Val, $crate::host::Trap> {
                Ok(wasmi::Val::I32($crate::host::abi::Cases::case(self) as i32))
            }
            fn store(
                self,
                into: &mut $crate::host::abi::Target<'_>,
                at: usize,
            ) -> Result<(), $crate::host::Trap> {
                <u8 as $crate::host::abi::Lower>::store($crate::host::abi::Cases::case(self), into, at)
            }
        }
    };
}
pub use one_byte;

// ---- handles ----

/// A resource that changes hands: lifted, it has left the guest's table; lowered, it enters it.
pub struct Own<R: Resource>(pub R);

/// A resource that the guest keeps: a checked handle, opened with `cx.table.get(borrow)`.
pub struct Borrow<R: Resource> {
    handle: u32,
    of: PhantomData<fn() -> R>,
}

impl<R: Resource> Borrow<R> {
    pub fn handle(&self) -> u32 {
        self.handle
    }
}

impl<R: Resource> Value for Own<R> {
    const SIZE: usize = 4;
    const ALIGN: usize = 4;
    const FLAT: usize = 1;
    fn shape() -> Shape {
        Shape::Own(R::NAME.to_owned())
    }
}

impl<R: Resource> Lift for Own<R> {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Own<R>, Trap> {
        let handle = flat.u32()?;
        from.cx.table.take(handle).map(Own)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<Own<R>, Trap> {
        let handle = u32::load(from, at)?;
        from.cx.table.take(handle).map(Own)
    }
}

impl<R: Resource> Lower for Own<R> {
    fn lower(self, into: &mut Target<'_>) -> Result<Val, Trap> {
        Ok(Val::I32(into.cx().table.insert(self.0)? as i32))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        let handle = into.cx().table.insert(self.0)?;
        handle.store(into, at)
    }
}

impl<R: Resource> Value for Borrow<R> {
    const SIZE: usize = 4;
    const ALIGN: usize = 4;
    const FLAT: usize = 1;
    fn shape() -> Shape {
        Shape::Borrow(R::NAME.to_owned())
    }
}

fn borrow<R: Resource>(from: &Source<'_>, handle: u32) -> Result<Borrow<R>, Trap> {
    from.cx.table.check::<R>(handle).map(|()| Borrow { handle, of: PhantomData })
}

impl<R: Resource> Lift for Borrow<R> {
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Borrow<R>, Trap> {
        let handle = flat.u32()?;
        borrow(from, handle)
    }
    fn load(from: &mut Source<'_>, at: usize) -> Result<Borrow<R>, Trap> {
        let handle = u32::load(from, at)?;
        borrow(from, handle)
    }
}
