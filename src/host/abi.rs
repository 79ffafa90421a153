//! The canonical ABI: values lifted out of a guest and lowered into it.
//!
//! Owns: [`Lift`] and [`Lower`], and the only code that reads or writes guest memory, every access checked. Never:
//! how one type is laid out (`values.rs`); what a function means (the interface files).
//!
//! Nothing a guest writes is trusted: pointers, lengths, handles, discriminants and UTF-8 are checked, and what one
//! call may make the host hold is bounded, because lists in memory may overlap and so claim far more than the guest owns.
//! What is lifted in one go is bounded so that no worker is kept by it ([`limits::LIFTED_AT_ONCE_BYTES`],
//! [`limits::LIFTED_ITEMS`]); longer lists come in pieces (`lists.rs`).

use super::function::nested;
use super::shape::Shape;
use super::{Cx, Trap};
use crate::limits;
use crate::runtime::slice::SLICE_FUEL;
use wasmi::{AsContextMut, Func, Memory, StoreContextMut, Val};

pub use super::values::{Borrow, Cases, Own, one_byte};

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
    /// Whether lowering it asks the guest's allocator.
    const NESTED: bool = false;
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
        from.count(count)?;
        (0..count).map(|i| Self::load(from, at + i * Self::SIZE)).collect()
    }
}

/// A value that a guest can be given.
pub trait Lower: Value {
    /// Fuel of the work that it was to make it, where nobody knew how much before it was there. It is charged first, so
    /// that a guest pays that cannot take the answer.
    fn fuel(&self) -> u64 {
        0
    }

    /// As one core value. Only asked of types whose [`Value::FLAT`] is 1.
    fn lower(self, into: &mut Target<'_>) -> Result<Val, Trap>;

    /// Writes it to guest memory at `at`, which the caller has aligned.
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap>;

    /// Writes all of them in a row; one copy for types of one size everywhere.
    fn store_many(items: Vec<Self>, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        items.into_iter().enumerate().try_for_each(|(i, item)| item.store(into, at + i * Self::SIZE))
    }
}

/// An answer whose guest pays so much for it.
pub struct Charged<R> {
    pub answer: R,
    pub fuel: u64,
}

impl<R: Value> Value for Charged<R> {
    const SIZE: usize = R::SIZE;
    const ALIGN: usize = R::ALIGN;
    const FLAT: usize = R::FLAT;
    const NESTED: bool = R::NESTED;
    fn shape() -> Shape {
        R::shape()
    }
}

impl<R: Lower> Lower for Charged<R> {
    fn fuel(&self) -> u64 {
        self.fuel
    }
    fn lower(self, into: &mut Target<'_>) -> Result<Val, Trap> {
        self.answer.lower(into)
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        self.answer.store(into, at)
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

    pub(super) fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.0.next();
        }
    }
}

/// Bytes lifted or lowered for one unit of fuel.
pub const BYTES_PER_FUEL: usize = 16;
/// Fuel of each list or string lifted beside its bytes: an allocation made and given back, some 40 ns. Without it a mask
/// of a million short rows would cost its guest what a few hundred instructions do.
const LIST_FUEL: u64 = 32;

pub fn fuel_of_bytes(bytes: usize) -> u64 {
    (bytes / BYTES_PER_FUEL) as u64
}

/// Where values are lifted from: the guest's memory and its handles.
pub struct Source<'a> {
    memory: &'a [u8],
    pub(super) cx: &'a mut Cx,
    /// Bytes read so far, as guest and host count them, whichever is more.
    read: usize,
    /// Lists read so far, each of which the host allocates.
    lists: usize,
    /// Items read so far that are looked at one by one.
    items: usize,
}

impl<'a> Source<'a> {
    pub fn new(ctx: &'a mut StoreContextMut<'_, Cx>, memory: Option<Memory>) -> Source<'a> {
        match memory {
            Some(memory) => {
                let (bytes, cx) = memory.data_and_store_mut(ctx);
                Source { memory: bytes, cx, read: 0, lists: 0, items: 0 }
            }
            None => Source { memory: &[], cx: ctx.data_mut(), read: 0, lists: 0, items: 0 },
        }
    }

    /// Fuel for what was lifted so far.
    pub fn fuel(&self) -> u64 {
        fuel_of_bytes(self.read) + self.lists as u64 * LIST_FUEL
    }

    /// Bytes that the host holds of it.
    pub fn held(&self) -> usize {
        self.read + self.lists * limits::ALLOCATION_BYTES
    }

    /// Whether that was about a slice's work.
    pub fn slice_is_over(&self) -> bool {
        self.read >= PIECE_BYTES || self.lists >= LISTS_AT_ONCE
    }

    /// So many items follow that are looked at one by one.
    fn count(&mut self, items: usize) -> Result<(), Trap> {
        self.items = self.items.saturating_add(items);
        match self.items > limits::LIFTED_ITEMS {
            true => Err(Trap::error(format!(
                "the arguments hold more than {} lists or handles, the most one call may pass",
                limits::LIFTED_ITEMS
            ))),
            false => Ok(()),
        }
    }

    /// Reads what a guest's function returned through a pointer.
    pub fn load_at<T: Lift>(&mut self, pointer: u32) -> Result<T, Trap> {
        let at = pointer as usize;
        self.admit(at, 1, T::SIZE, T::ALIGN, 0)?;
        T::load(self, at)
    }

    /// Admits a list: `count` items at a guest's pointer, aligned, inside memory, within what one call may make the
    /// host hold. `held` is the size of one item on our side.
    pub(super) fn admit(
        &mut self,
        at: usize,
        count: usize,
        size: usize,
        align: usize,
        held: usize,
    ) -> Result<(), Trap> {
        self.locate(at, count, size, align)?;
        self.lists += 1;
        self.read = self.read.saturating_add(count.saturating_mul(size.max(held)));
        match self.read > limits::LIFTED_AT_ONCE_BYTES {
            true => Err(too_much(limits::LIFTED_AT_ONCE_BYTES)),
            false => Ok(()),
        }
    }

    /// That a list is where a guest says, without reading it.
    pub(super) fn locate(&self, at: usize, count: usize, size: usize, align: usize) -> Result<(), Trap> {
        if !at.is_multiple_of(align) {
            return Err(Trap::error(format!("the pointer {at:#x} is not aligned to {align} bytes")));
        }
        self.slice(at, count.saturating_mul(size)).map(drop)
    }

    pub(super) fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], Trap> {
        let memory = self.memory;
        at.checked_add(len).and_then(|end| memory.get(at..end)).ok_or_else(|| outside(at, len, memory.len()))
    }

    pub(super) fn bytes<const N: usize>(&mut self, at: usize) -> Result<[u8; N], Trap> {
        let bytes = self.slice(at, N)?;
        bytes.try_into().map_err(|_| outside(at, N, self.memory.len()))
    }
}

pub(super) fn too_much(bytes: usize) -> Trap {
    Trap::error(format!("the arguments hold more than {bytes} bytes, the most one call may pass"))
}

fn outside(at: usize, len: usize, size: usize) -> Trap {
    Trap::error(format!("{len} bytes at {at:#x} lie outside the guest's memory of {size} bytes"))
}

/// Bytes lifted or lowered in one go: a slice's worth at what they are charged.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Lists lifted in one go: about a slice, as each is an allocation.
const LISTS_AT_ONCE: usize = 1024;
/// Calls of the guest's allocator in one go: about a slice, as each takes some microseconds of interpreted code.
const ALLOCATIONS_AT_ONCE: usize = 24;

/// Where values are lowered to: the guest's memory, through its own allocator, and its handles.
pub struct Target<'a> {
    ctx: StoreContextMut<'a, Cx>,
    canon: Canon,
    written: usize,
    allocations: usize,
    /// Fuel of these calls.
    spent: i64,
    rest: Vec<Rest>,
}

/// Items of a list that are still to be lowered.
pub type Rest = Box<dyn FnOnce(&mut Target<'_>) -> Result<(), Trap> + Send>;

impl<'a> Target<'a> {
    pub fn new(ctx: StoreContextMut<'a, Cx>, canon: Canon) -> Target<'a> {
        Target { ctx, canon, written: 0, allocations: 0, spent: 0, rest: Vec::new() }
    }

    /// Whether this call has had a slice's worth of its thread: counted in bytes, and for the guest's allocator in
    /// calls and in fuel, as it may be slow on purpose.
    pub fn slice_is_over(&self) -> bool {
        self.written >= PIECE_BYTES
            || self.allocations >= ALLOCATIONS_AT_ONCE
            || self.spent >= SLICE_FUEL as i64
    }

    /// Leaves a part for the next go.
    pub fn leave(&mut self, rest: Rest) {
        self.rest.push(rest);
    }

    /// What did not fit one go. The guest must not run before all of it is lowered, each into a fresh target.
    pub fn rest(self) -> Vec<Rest> {
        self.rest
    }

    /// Fuel for the bytes lowered so far.
    pub fn fuel(&self) -> u64 {
        fuel_of_bytes(self.written)
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

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), Trap> {
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
    /// The allocator may not call the host, or host and guest could recurse without end.
    pub(super) fn allocate(&mut self, size: usize, align: usize) -> Result<usize, Trap> {
        let Some(realloc) = self.canon.realloc else {
            return Err(Trap::error("the component gave this function no allocator to answer with"));
        };
        let size = i32::try_from(size).map_err(|_| {
            Trap::error(format!("an answer of {size} bytes is more than a guest can address"))
        })?;
        let mut place = [Val::I32(0)];
        let arguments = [Val::I32(0), Val::I32(0), Val::I32(align as i32), Val::I32(size)];
        self.allocations += 1;
        let account = self.balance();
        self.cx().may_leave = false;
        let outcome = nested(&mut self.ctx, realloc, &arguments, &mut place, limits::ALLOCATOR_FUEL);
        self.cx().may_leave = true;
        self.spent += account.saturating_sub(self.balance());
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

    /// Fuel left to the guest, less what it owes; only differences mean anything.
    fn balance(&mut self) -> i64 {
        let fuel = self.ctx.get_fuel().unwrap_or(0) as i64;
        fuel.saturating_sub(self.cx().owed_fuel as i64)
    }

    /// Two words, pointer and length, as lists and strings are held in memory.
    pub(super) fn pair(&mut self, at: usize, place: usize, count: usize) -> Result<(), Trap> {
        let mut words = [0; 8];
        words[..4].copy_from_slice(&(place as u32).to_le_bytes());
        words[4..].copy_from_slice(&(count as u32).to_le_bytes());
        self.write(at, &words)
    }
}
