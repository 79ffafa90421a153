//! Runs a guest's function in slices of fuel, and waits where its host calls wait.
//!
//! Owns: the loop call, pause, resume; the fuel a slice gets and the fuel a life has. Never: what is called, or what
//! becomes of the instance afterwards.
//!
//! A pause has one of two reasons. Out of fuel: the thread goes to somebody else, and the next slice is large enough
//! for the instruction that did not fit; if that alone is more than any slice, it runs on a thread apart. A host call that waits: its future is awaited, its answer lowered into the
//! guest, and the guest goes on. Dropping the future of [`Guest::call`] at a pause ends the guest.

use super::pace::Pace;
use super::quota::Name;
use super::worker::{Apart, Slice};
use crate::host::function::{Lowered, Pending, Suspended};
use crate::host::{Cx, Trap};
use crate::limits::WORKER_STACK_BYTES;
use crate::observe::stages::{self, Stage};
use std::future::poll_fn;
use std::task::Poll;
use wasmi::{AsContextMut, Func, ResumableCall, Store, Val};

/// Fuel of a slice: 50 to 220 µs of interpreted code on one x86-64 core, depending on the instructions, so that a
/// woken guest waits no longer than that for a thread. Only the filling, copying and growing of memory takes longer where the
/// memory was never used before: up to 1.6 ms for the 6 MB that this pays for.
pub const SLICE_FUEL: u64 = 100_000;
const _: () = assert!(SLICE_FUEL as usize * 256 < WORKER_STACK_BYTES);

/// A store whose code runs in slices.
pub struct Guest {
    pub store: Store<Cx>,
    slice: Slice,
    /// Fuel that the slice in progress was given and has not been accounted for.
    granted: u64,
    /// Fuel left in this life.
    left: u64,
    slice_fuel: u64,
    pace: Pace,
}

impl Guest {
    pub fn new(store: Store<Cx>, slice: Slice) -> Guest {
        Guest::with_slices(store, slice, SLICE_FUEL)
    }

    /// With slices of another size: any size gives the same results.
    pub fn with_slices(store: Store<Cx>, slice: Slice, slice_fuel: u64) -> Guest {
        let allowance = &store.data().allowance;
        let left = allowance.quotas.get(Name::Fuel);
        let pace = Pace::new(allowance.account().clone(), &allowance.quotas, slice_fuel);
        let slice_fuel = slice_fuel.min(pace.most());
        Guest { store, slice, granted: 0, left, slice_fuel, pace }
    }

    /// Calls `function` to its end.
    pub async fn call(&mut self, function: Func, arguments: &[Val], results: &mut [Val]) -> Result<(), Trap> {
        self.refuel(0)?;
        let mut call = function.call_resumable(&mut self.store, arguments, results);
        loop {
            self.store.data_mut().apart = None; // whatever it was, this is a pause
            call = match call {
                Ok(ResumableCall::Finished) => return Ok(()),
                Ok(ResumableCall::OutOfFuel(paused)) => {
                    let required = paused.required_fuel();
                    let apart = self.end_slice(required).await?;
                    self.refuel(required)?;
                    self.store.data_mut().apart = apart;
                    paused.resume(&mut self.store, results)
                }
                Ok(ResumableCall::HostTrap(paused)) => {
                    if paused.host_error().downcast_ref::<Suspended>().is_none() {
                        return Err(Trap::of(paused.into_host_error(), self.store.data_mut()));
                    }
                    let answer = self.answer().await?;
                    paused.resume(&mut self.store, answer.as_slice(), results)
                }
                Err(error) => return Err(Trap::of(error, self.store.data_mut())),
            }
        }
    }

    /// Gives code that cannot be suspended (a start function) fuel of its own.
    pub fn grant(&mut self, fuel: u64) -> Result<(), Trap> {
        self.account()?;
        self.set(fuel.min(self.left))
    }

    /// Awaits what the suspended host call waits for, and lowers it.
    async fn answer(&mut self) -> Result<Option<Val>, Trap> {
        let Some(mut pending) = self.store.data_mut().pending.take() else {
            return Err(Trap::error("a host function waits for nothing"));
        };
        let (finish, waited) = waiting(&mut pending).await;
        drop(pending);
        let mut finish = finish?;
        let instance = self.store.data().instance;
        if waited {
            stages::mark(Stage::Resumed, instance);
            // The thread was given up: a new slice. An answer that was there all along does not earn one, or a
            // guest could hold its thread with calls alone.
            self.account()?;
            self.pace.keep().await?;
            self.refuel(0)?;
        }
        loop {
            match finish(self.store.as_context_mut())? {
                Lowered::Done(value) => {
                    stages::mark(Stage::Returned, instance);
                    return Ok(value);
                }
                Lowered::More(next) => {
                    self.end_slice(0).await?;
                    self.refuel(0)?;
                    finish = next;
                }
            }
        }
    }

    /// Gives the thread up, until the next second where this one's fuel is used up. What comes then needs `required` fuel at
    /// once.
    async fn end_slice(&mut self, required: u64) -> Result<Option<Apart>, Trap> {
        self.account()?;
        self.pace.keep().await?;
        if required > SLICE_FUEL {
            return Ok(Some(self.slice.heavy().await));
        }
        self.slice.end().await;
        Ok(None)
    }

    /// Starts a slice with room for an instruction of `required` fuel.
    fn refuel(&mut self, required: u64) -> Result<(), Trap> {
        self.account()?;
        // Less than is required would be given in vain, again and again.
        if required > self.left {
            return Err(self.exhausted());
        }
        self.set(self.slice_fuel.max(required).min(self.left))
    }

    /// Takes what was used since the last slice began off the life's fuel.
    fn account(&mut self) -> Result<(), Trap> {
        let unused = self.store.get_fuel().unwrap_or(0);
        let owed = std::mem::take(&mut self.store.data_mut().owed_fuel);
        let used = self.granted.saturating_sub(unused).saturating_add(owed);
        self.granted = unused;
        self.pace.used(used);
        self.left = self.left.saturating_sub(used);
        if self.left > 0 { Ok(()) } else { Err(self.exhausted()) }
    }

    fn exhausted(&self) -> Trap {
        Trap::Quota(self.store.data().allowance.quotas.over(Name::Fuel))
    }

    fn set(&mut self, fuel: u64) -> Result<(), Trap> {
        self.granted = fuel;
        self.store.set_fuel(fuel).map_err(|error| Trap::error(error.to_string()))
    }
}

impl Drop for Guest {
    /// What the slice in progress has used is counted, however it came to its end.
    fn drop(&mut self) {
        let _ = self.account(); // nothing is left to refuse it
    }
}

/// The outcome, and whether it had to be waited for.
async fn waiting(pending: &mut Pending) -> (<Pending as Future>::Output, bool) {
    let mut waited = false;
    let outcome = poll_fn(|context| match pending.as_mut().poll(context) {
        Poll::Ready(outcome) => Poll::Ready(outcome),
        Poll::Pending => {
            waited = true;
            Poll::Pending
        }
    })
    .await;
    (outcome, waited)
}
