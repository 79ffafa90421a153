//! Why a guest's call ends the guest, and what the client is told about it.
//!
//! Owns: [`Trap`] and the sentences for everything the interpreter itself can raise. Never: how an instance ends;
//! the runtime turns a trap into an event.

use super::Cx;
use crate::quota::Quota;
use std::fmt;
use wasmi::TrapCode;
use wasmi::errors::{ErrorKind, HostError};

/// A host function's refusal to go on: the guest ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Trap {
    /// The guest's mistake, a sentence: exception `Runtime error: Call error: {0}`.
    Error(String),
    /// An exception whose text is this whole sentence.
    Exception(String),
    /// A quota: event 5, its name and value.
    Quota(Quota),
    /// The guest asked to end (`wasi:cli/exit`).
    Exit { ok: bool },
    /// A fault of ours, not the guest's: a host function panicked.
    Panicked,
}

impl Trap {
    pub fn error(what: impl Into<String>) -> Trap {
        Trap::Error(what.into())
    }

    /// Says where a mistake was made; other traps already say what they must.
    pub fn within(self, place: &str) -> Trap {
        match self {
            Trap::Error(what) => Trap::Error(format!("{place}: {what}")),
            other => other,
        }
    }

    /// What the interpreter reports, as a trap.
    pub fn of(error: wasmi::Error, cx: &mut Cx) -> Trap {
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return trap.clone();
        }
        if let Some(quota) = cx.allowance.exceeded() {
            return Trap::Quota(quota);
        }
        let what = match error.as_trap_code() {
            Some(TrapCode::UnreachableCodeReached) => {
                "the program aborted (wasm `unreachable`); its last words are in the log"
            }
            Some(TrapCode::MemoryOutOfBounds) => "out of bounds memory access",
            Some(TrapCode::TableOutOfBounds) => "out of bounds table access",
            Some(TrapCode::IndirectCallToNull) => "call through an empty table entry",
            Some(TrapCode::IntegerDivisionByZero) => "integer division by zero",
            Some(TrapCode::IntegerOverflow) => "integer overflow",
            Some(TrapCode::BadConversionToInteger) => "a float does not fit the integer it is converted to",
            Some(TrapCode::StackOverflow) => "the call stack is exhausted (deep or endless recursion)",
            Some(TrapCode::BadSignature) => "call through a table entry of another type",
            Some(TrapCode::OutOfFuel) => "ran out of fuel in a call that cannot be suspended",
            Some(TrapCode::GrowthOperationLimited) => "memory or table growth refused",
            _ => match error.kind() {
                ErrorKind::Host(other) => return Trap::Error(other.to_string()),
                _ => return Trap::Error(error.to_string()),
            },
        };
        Trap::error(what)
    }
}

impl From<String> for Trap {
    fn from(what: String) -> Trap {
        Trap::Error(what)
    }
}

impl From<Quota> for Trap {
    fn from(quota: Quota) -> Trap {
        Trap::Quota(quota)
    }
}

impl From<&str> for Trap {
    fn from(what: &str) -> Trap {
        Trap::error(what)
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trap::Error(what) | Trap::Exception(what) => f.write_str(what),
            Trap::Quota(quota) => quota.fmt(f),
            Trap::Panicked => f.write_str("the server failed while it ran this instance; its log says where"),
            Trap::Exit { ok } => {
                f.write_str(if *ok { "the program exited" } else { "the program exited with an error" })
            }
        }
    }
}

impl HostError for Trap {}
