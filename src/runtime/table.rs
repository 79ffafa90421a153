//! The handles of one instance.
//!
//! Owns: which number means which resource, each with its type; bounded. Never: what a resource does; dropping
//! its value is all there is to ending it.
//!
//! Handles start at 1, as the canonical ABI says, and a freed one is reused first. A guest may pass any number:
//! everything here answers with a sentence.

use crate::host::Trap;
use crate::host::abi::Borrow;
use crate::quota::{Name, Quota, Quotas};
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
pub struct Table {
    slots: Vec<Option<Held>>,
    free: Vec<u32>,
    full: Quota,
}

impl Table {
    /// Empty.
    pub fn new(quotas: &Quotas) -> Table {
        Table { slots: Vec::new(), free: Vec::new(), full: quotas.over(Name::Handles) }
    }

    /// Handles held now.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// # Errors
    /// The table holds as many as it may.
    pub fn insert<R: Resource>(&mut self, value: R) -> Result<u32, Trap> {
        let held = Some(Held { name: R::NAME, value: Box::new(value) });
        match self.free.pop() {
            Some(handle) => {
                self.slots[handle as usize - 1] = held;
                Ok(handle)
            }
            None if (self.slots.len() as u64) < self.full.limit => {
                self.slots.push(held);
                Ok(self.slots.len() as u32)
            }
            None => Err(Trap::Quota(self.full)),
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
    Trap::error(format!("handle {handle} is not held, and one of type {} was expected", R::NAME))
}

fn mistaken<R: Resource>(handle: u32, name: &str) -> Trap {
    Trap::error(format!("handle {handle} is of type {name}, not {}", R::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Apple(u32);
    impl Resource for Apple {
        const NAME: &'static str = "apple";
    }

    #[derive(Debug)]
    struct Pear;
    impl Resource for Pear {
        const NAME: &'static str = "pear";
    }

    #[test]
    fn handles_are_typed_and_forgeries_are_told() {
        let mut table = Table::new(&Quotas::default());
        let (first, second) = (table.insert(Apple(7)).unwrap(), table.insert(Pear).unwrap());
        assert_eq!((first, second, table.len()), (1, 2, 2));
        for forged in [0, 3, u32::MAX] {
            let what = format!("handle {forged} is not held, and one of type apple was expected");
            assert_eq!(table.check::<Apple>(forged), Err(Trap::Error(what)));
        }
        assert_eq!(
            table.take::<Apple>(second).unwrap_err(),
            Trap::error("handle 2 is of type pear, not apple")
        );
        assert_eq!(table.take::<Apple>(first), Ok(Apple(7)));
        assert!(table.take::<Apple>(first).is_err(), "it has left");
        assert_eq!(table.insert(Apple(8)), Ok(first), "a freed handle is used again");
    }

    #[test]
    fn the_table_is_bounded() {
        let quotas = Quotas::default().with(Name::Handles, 9);
        let mut table = Table::new(&quotas);
        for _ in 0..9 {
            table.insert(Pear).unwrap();
        }
        assert_eq!(table.insert(Pear), Err(Trap::Quota(quotas.over(Name::Handles))));
        assert!(table.take::<Pear>(5).is_ok() && table.insert(Pear).is_ok());
    }
}
