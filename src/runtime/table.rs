//! The handles of one instance.
//!
//! Owns: which number means which resource, each with its type; bounded in number, and counted with what the host holds for
//! the instance. Never: what a resource does; dropping its value is all there is to ending it.
//!
//! Handles start at 1, as the canonical ABI says, and a freed one is reused first. A guest may pass any number:
//! everything here answers with a sentence.

use crate::host::Trap;
use crate::host::abi::Borrow;
use crate::host::held::{Charge, Meter};
use crate::limits;
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
    /// What the values take, ...
    bytes: usize,
    /// ... counted together with the slots, which stay.
    charge: Charge,
}

/// A slot and its number among the free ones, twice: room is made for as many again.
const SLOT_BYTES: usize = 2 * (size_of::<Option<Held>>() + size_of::<u32>());

/// What a value of this type counts for, beside what it counts itself.
const fn weight<R>() -> usize {
    size_of::<R>() + limits::HANDLE_BYTES
}

impl Table {
    /// Empty.
    pub fn new(quotas: &Quotas, meter: &Meter) -> Table {
        let (slots, free, full) = (Vec::new(), Vec::new(), quotas.over(Name::Handles));
        Table { slots, free, full, bytes: 0, charge: meter.nothing() }
    }

    /// Handles held now.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its handles count for.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// # Errors
    /// The table holds as many as it may, or the host as much for this instance.
    pub fn insert<R: Resource>(&mut self, value: R) -> Result<u32, Trap> {
        let slots = self.slots.len() + usize::from(self.free.is_empty());
        if slots as u64 > self.full.limit {
            return Err(Trap::Quota(self.full));
        }
        let bytes = self.bytes + weight::<R>();
        self.charge.set(bytes + slots * SLOT_BYTES)?;
        self.bytes = bytes;
        let held = Some(Held { name: R::NAME, value: Box::new(value) });
        let handle = self.free.pop().unwrap_or(slots as u32);
        match self.slots.get_mut(handle as usize - 1) {
            Some(slot) => *slot = held,
            None => self.slots.push(held),
        }
        Ok(handle)
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
        self.bytes -= weight::<R>();
        self.charge.set(self.bytes + self.slots.len() * SLOT_BYTES)?;
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
    use crate::runtime::account::Account;

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

    fn table(quotas: &Quotas) -> (Table, Meter) {
        let meter = Meter::new(quotas, Account::alone().memory(quotas));
        (Table::new(quotas, &meter), meter)
    }

    #[test]
    fn handles_are_typed_and_forgeries_are_told() {
        let (mut table, _) = table(&Quotas::default());
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
        let (mut table, _) = table(&quotas);
        for _ in 0..9 {
            table.insert(Pear).unwrap();
        }
        assert_eq!(table.insert(Pear), Err(Trap::Quota(quotas.over(Name::Handles))));
        assert!(table.take::<Pear>(5).is_ok() && table.insert(Pear).is_ok());
    }

    /// The story: 65,536 handles of things that charged nothing took 20 MB of the host's memory in every instance.
    #[test]
    fn every_handle_counts_with_what_the_host_holds() {
        let each = weight::<Apple>() + SLOT_BYTES;
        let quotas = Quotas::default().with(Name::HeldBytes, 9 * each as u64);
        let (mut table, meter) = table(&quotas);
        for count in 1..=9 {
            assert_eq!(table.insert(Apple(count)), Ok(count));
            assert_eq!(meter.held(), count as usize * each);
        }
        assert_eq!(table.insert(Apple(10)), Err(Trap::Quota(quotas.over(Name::HeldBytes))));
        assert_eq!(table.take::<Apple>(3), Ok(Apple(3)));
        assert_eq!(meter.held(), 8 * each + SLOT_BYTES, "the slot stays");
        assert_eq!((table.insert(Apple(10)), table.len()), (Ok(3), 9));
        drop(table);
        assert_eq!(meter.held(), 0);
    }
}
