//! The handles of one instance.
//!
//! Owns: which number means which resource, each with its type; bounded. Never: what a resource does; dropping
//! its value is all there is to ending it.
//!
//! Handles start at 1, as the canonical ABI says, and a freed one is reused first. A guest may pass any number:
//! everything here answers with a sentence.

use crate::host::Trap;
use crate::host::abi::Borrow;
use crate::limits;
use crate::runtime::quota::Quota;
use std::any::Any;

/// A host type that guests hold by handle. `NAME` is its name in WIT.
pub trait Resource: Any + Send {
    const NAME: &'static str;
}

struct Held {
    name: &'static str,
    value: Box<dyn Any + Send>,
}

/// Handle h stands in slot h - 1.
#[derive(Default)]
pub struct Table {
    slots: Vec<Option<Held>>,
    free: Vec<u32>,
}

impl Table {
    /// Handles held now.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// # Errors
    /// The table holds [`limits::HANDLES`] already.
    pub fn insert<R: Resource>(&mut self, value: R) -> Result<u32, Trap> {
        let held = Some(Held { name: R::NAME, value: Box::new(value) });
        match self.free.pop() {
            Some(handle) => {
                self.slots[handle as usize - 1] = held;
                Ok(handle)
            }
            None if self.slots.len() < limits::HANDLES => {
                self.slots.push(held);
                Ok(self.slots.len() as u32)
            }
            None => Err(Trap::Quota(Quota::Handles(limits::HANDLES))),
        }
    }

    pub fn get<R: Resource>(&self, borrow: &Borrow<R>) -> Result<&R, Trap> {
        let held = self.held::<R>(borrow.handle())?;
        held.value.downcast_ref().ok_or_else(|| mistaken::<R>(borrow.handle(), held.name))
    }

    pub fn get_mut<R: Resource>(&mut self, borrow: &Borrow<R>) -> Result<&mut R, Trap> {
        self.check::<R>(borrow.handle())?;
        let held = self.slots[borrow.handle() as usize - 1].as_mut();
        held.and_then(|held| held.value.downcast_mut()).ok_or_else(|| absent::<R>(borrow.handle()))
    }

    /// The resource leaves the guest; its handle is free.
    pub fn take<R: Resource>(&mut self, handle: u32) -> Result<R, Trap> {
        self.check::<R>(handle)?;
        let held = self.slots[handle as usize - 1].take();
        self.free.push(handle);
        let value = held.and_then(|held| held.value.downcast().ok()).ok_or_else(|| absent::<R>(handle))?;
        Ok(*value)
    }

    /// That `handle` is held and of this type.
    pub fn check<R: Resource>(&self, handle: u32) -> Result<(), Trap> {
        let held = self.held::<R>(handle)?;
        if held.value.is::<R>() { Ok(()) } else { Err(mistaken::<R>(handle, held.name)) }
    }

    fn held<R: Resource>(&self, handle: u32) -> Result<&Held, Trap> {
        let slot = (handle as usize).checked_sub(1).and_then(|slot| self.slots.get(slot));
        slot.and_then(Option::as_ref).ok_or_else(|| absent::<R>(handle))
    }
}

fn absent<R: Resource>(handle: u32) -> Trap {
    Trap::error(format!("handle {handle} is not held, and a {} was expected", R::NAME))
}

fn mistaken<R: Resource>(handle: u32, name: &str) -> Trap {
    Trap::error(format!("handle {handle} is a {name}, not a {}", R::NAME))
}
