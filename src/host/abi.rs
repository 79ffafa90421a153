//! The canonical ABI: values lifted out of a guest and lowered into it.
//!
//! Owns: [`Lift`] and [`Lower`] for every type that crosses, and the only code that reads or writes guest memory,
//! every access checked. Never: what a function means; that is in the interface files.
//!
//! Nothing a guest writes is trusted: pointers, lengths, handles, discriminants and UTF-8 are checked, and what one
//! call may make the host hold is bounded ([`limits::LIFTED_BYTES`]), because lists in memory may overlap and so
//! claim far more than the guest owns.

use super::shape::Shape;
use super::{Cx, Trap};
use crate::limits;
use crate::runtime::table::Resource;
use std::marker::PhantomData;
use wasmi::{AsContextMut, Func, Memory, StoreContextMut, Val};

/// The options of one `canon lower` or `canon lift`, resolved in a running instance. Strings are UTF-8.
#[derive(Clone, Copy, Default)]
pub struct Canon {
    pub memory: Option<Memory>,
    pub realloc: Option<Func>,
}

/// A type that the canonical ABI can carry.
pub trait Value: Sized + Send + 'static {
    /// Bytes in guest memory.
    const SIZE: usize;
    /// Alignment in guest memory, a power of two.
    const ALIGN: usize;
    /// Core values when carried outside memory.
    const FLAT: usize;
    fn shape() -> Shape;
}

/// A value that a guest can give.
pub trait Lift: Value {
    /// Takes [`Value::FLAT`] core values.
    fn lift(from: &mut Source<'_>, flat: &mut Flat<'_>) -> Result<Self, Trap>;

    /// Reads it from guest memory at `at`, which the caller has aligned.
    fn load(from: &mut Source<'_>, at: usize) -> Result<Self, Trap>;

    /// Reads `count` of them in a row; one copy for types of one size everywhere.
    fn load_many(from: &mut Source<'_>, at: usize, count: usize) -> Result<Vec<Self>, Trap> {
        (0..count).map(|i| Self::load(from, at + i * Self::SIZE)).collect()
    }
}

/// A value that a guest can be given.
pub trait Lower: Value {
    /// As one core value. Only asked of types whose [`Value::FLAT`] is 1.
    fn lower(self, into: &mut Target<'_>) -> Result<Val, Trap>;

    /// Writes it to guest memory at `at`, which the caller has aligned.
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap>;

    /// Writes all of them in a row; one copy for types of one size everywhere.
    fn store_many(items: Vec<Self>, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        items.into_iter().enumerate().try_for_each(|(i, item)| item.store(into, at + i * Self::SIZE))
    }
}

/// The core values of a call, taken from the front.
pub struct Flat<'a>(std::slice::Iter<'a, Val>);

impl<'a> Flat<'a> {
    pub fn new(values: &'a [Val]) -> Flat<'a> {
        Flat(values.iter())
    }

    /// The next value's bits. Inside a variant a case's value may travel in a wider core type; the low bits are it.
    fn bits(&mut self) -> Result<u64, Trap> {
        match self.0.next() {
            Some(Val::I32(v)) => Ok(*v as u32 as u64),
            Some(Val::I64(v)) => Ok(*v as u64),
            Some(Val::F32(v)) => Ok(v.to_bits() as u64),
            Some(Val::F64(v)) => Ok(v.to_bits()),
            _ => Err(Trap::error("the call carries fewer numbers than its type has")),
        }
    }

    pub fn u32(&mut self) -> Result<u32, Trap> {
        self.bits().map(|bits| bits as u32)
    }

    pub fn u64(&mut self) -> Result<u64, Trap> {
        self.bits()
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.0.next();
        }
    }
}

/// Where values are lifted from: the guest's memory and its handles.
pub struct Source<'a> {
    memory: &'a [u8],
    cx: &'a mut Cx,
    /// Bytes read so far, as guest and host count them, whichever is more.
    read: usize,
}

impl<'a> Source<'a> {
    pub fn new(ctx: &'a mut StoreContextMut<'_, Cx>, memory: Option<Memory>) -> Source<'a> {
        match memory {
            Some(memory) => {
                let (bytes, cx) = memory.data_and_store_mut(ctx);
                Source { memory: bytes, cx, read: 0 }
            }
            None => Source { memory: &[], cx: ctx.data_mut(), read: 0 },
        }
    }

    /// Bytes lifted so far; what the call is charged for.
    pub fn read(&self) -> usize {
        self.read
    }

    /// Reads what a guest's function returned through a pointer.
    pub fn load_at<T: Lift>(&mut self, pointer: u32) -> Result<T, Trap> {
        let at = pointer as usize;
        self.admit(at, 1, T::SIZE, T::ALIGN, 0)?;
        T::load(self, at)
    }

    /// Admits a list: `count` items at a guest's pointer, aligned, inside memory, within what one call may make the
    /// host hold. `held` is the size of one item on our side.
    fn admit(&mut self, at: usize, count: usize, size: usize, align: usize, held: usize) -> Result<(), Trap> {
        if !at.is_multiple_of(align) {
            return Err(Trap::error(format!("the pointer {at:#x} is not aligned to {align} bytes")));
        }
        self.slice(at, count.saturating_mul(size))?;
        self.read = self.read.saturating_add(count.saturating_mul(size.max(held)));
        match self.read > limits::LIFTED_BYTES {
            true => Err(Trap::error(format!(
                "the arguments hold more than {} bytes, the most one call may pass",
                limits::LIFTED_BYTES
            ))),
            false => Ok(()),
        }
    }

    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], Trap> {
        let memory = self.memory;
        at.checked_add(len).and_then(|end| memory.get(at..end)).ok_or_else(|| outside(at, len, memory.len()))
    }

    fn bytes<const N: usize>(&mut self, at: usize) -> Result<[u8; N], Trap> {
        let bytes = self.slice(at, N)?;
        bytes.try_into().map_err(|_| outside(at, N, self.memory.len()))
    }
}

fn outside(at: usize, len: usize, size: usize) -> Trap {
    Trap::error(format!("{len} bytes at {at:#x} lie outside the guest's memory of {size} bytes"))
}

/// Where values are lowered to: the guest's memory, through its own allocator, and its handles.
pub struct Target<'a> {
    ctx: StoreContextMut<'a, Cx>,
    canon: Canon,
    written: usize,
}

impl<'a> Target<'a> {
    pub fn new(ctx: StoreContextMut<'a, Cx>, canon: Canon) -> Target<'a> {
        Target { ctx, canon, written: 0 }
    }

    /// Bytes lowered so far; what the call is charged for.
    pub fn written(&self) -> usize {
        self.written
    }

    pub fn cx(&mut self) -> &mut Cx {
        self.ctx.data_mut()
    }

    /// Writes a result through the pointer that the guest passed for it.
    pub fn store_at<R: Lower>(&mut self, value: R, pointer: u32) -> Result<(), Trap> {
        let at = pointer as usize;
        if !at.is_multiple_of(R::ALIGN) {
            return Err(Trap::error(format!(
                "the result pointer {at:#x} is not aligned to {} bytes",
                R::ALIGN
            )));
        }
        value.store(self, at)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), Trap> {
        let Some(memory) = self.canon.memory else {
            return Err(Trap::error("the component gave this function no memory to answer in"));
        };
        self.written += bytes.len();
        let memory = memory.data_mut(self.ctx.as_context_mut());
        let size = memory.len();
        match at.checked_add(bytes.len()).and_then(|end| memory.get_mut(at..end)) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(outside(at, bytes.len(), size)),
        }
    }

    /// Asks the guest's own allocator for memory. Even an empty list needs a pointer that the guest may own.
    ///
    /// The nested call cannot be suspended, so it runs on a fuel grant of its own, which is then charged; and the
    /// allocator may not call the host, or host and guest could recurse without end.
    fn allocate(&mut self, size: usize, align: usize) -> Result<usize, Trap> {
        let Some(realloc) = self.canon.realloc else {
            return Err(Trap::error("the component gave this function no allocator to answer with"));
        };
        let size = i32::try_from(size).map_err(|_| {
            Trap::error(format!("an answer of {size} bytes is more than a guest can address"))
        })?;
        let mut place = [Val::I32(0)];
        let arguments = [Val::I32(0), Val::I32(0), Val::I32(align as i32), Val::I32(size)];
        let fuel = self.ctx.get_fuel().unwrap_or(0);
        let refuel = |ctx: &mut StoreContextMut<'_, Cx>, fuel| {
            // Fails only where fuel is off, and it is on in every engine of ours.
            let _ = ctx.set_fuel(fuel);
        };
        refuel(&mut self.ctx, limits::ALLOCATOR_FUEL);
        self.cx().may_leave = false;
        let outcome = realloc.call(self.ctx.as_context_mut(), &arguments, &mut place);
        self.cx().may_leave = true;
        let used = limits::ALLOCATOR_FUEL - self.ctx.get_fuel().unwrap_or(0).min(limits::ALLOCATOR_FUEL);
        refuel(&mut self.ctx, fuel);
        super::function::charge(&mut self.ctx, used);
        outcome.map_err(|error| Trap::of(error, self.cx()).within("cabi_realloc"))?;
        let place = match place {
            [Val::I32(place)] => place as u32 as usize,
            _ => return Err(Trap::error("cabi_realloc did not answer with a pointer")),
        };
        if !place.is_multiple_of(align) {
            return Err(Trap::error(format!(
                "cabi_realloc answered {place:#x}, which is not aligned to {align} bytes"
            )));
        }
        Ok(place)
    }

    /// Two words, pointer and length, as lists and strings are held in memory.
    fn pair(&mut self, at: usize, place: usize, count: usize) -> Result<(), Trap> {
        let mut words = [0; 8];
        words[..4].copy_from_slice(&(place as u32).to_le_bytes());
        words[4..].copy_from_slice(&(count as u32).to_le_bytes());
        self.write(at, &words)
    }
}

/// What a type of two or more core values answers to [`Lower::lower`]; the call layer never asks.
fn not_one_value<T>() -> Result<T, Trap> {
    Err(Trap::error("the answer does not fit one number"))
}

// ---- numbers ----

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
                let (items, _) = from.slice(at, count * Self::SIZE)?.as_chunks();
                Ok(items.iter().map(|bytes| <$type>::from_le_bytes(*bytes)).collect())
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
                let bytes: Vec<u8> = items.into_iter().flat_map(<$type>::to_le_bytes).collect();
                into.write(at, &bytes)
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
}

impl Lower for f32 {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Ok(Val::F32(self.into()))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        into.write(at, &self.to_le_bytes())
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
        T::store_many(self, into, place)?;
        into.pair(at, place, count)
    }
}

// ---- tuples (and records) ----

const fn align_up(at: usize, align: usize) -> usize {
    at.next_multiple_of(align)
}

const fn max(a: usize, b: usize) -> usize {
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

fn bad_case<T>(case: usize, of: &str) -> Result<T, Trap> {
    Err(Trap::error(format!("{case} is no case of {of}")))
}

impl<T: Value> Value for Option<T> {
    const ALIGN: usize = T::ALIGN;
    const SIZE: usize = align_up(payload(T::ALIGN) + T::SIZE, T::ALIGN);
    const FLAT: usize = 1 + T::FLAT;
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
