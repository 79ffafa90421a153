//! How an instance ends, and what its client reads about it.
//!
//! Owns: [`Ending`], its event codes and its texts. Never: who decides.

use super::quota::Quota;
use crate::host::Trap;

/// The last event of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The program returned; its return value, or "".
    Completed(String),
    /// The client, or its operator, terminated it.
    Aborted,
    /// The program failed; the whole text.
    Exception(String),
    /// The server failed it.
    ServerError(String),
    /// The server was asked to end.
    Stopping,
    /// It asked for more than it may have; the whole text.
    OutOfResources(String),
    /// Its client is gone.
    Disconnected,
    /// The token it was launched with has expired.
    Expired,
}

impl Ending {
    /// Its pages were needed by an older instance.
    pub fn evicted() -> Ending {
        Ending::OutOfResources("Terminated by OOM killer for an older instance".to_owned())
    }

    pub fn quota(quota: Quota) -> Ending {
        Ending::OutOfResources(quota.to_string())
    }

    /// The program returned `Err(text)`.
    pub fn failed(text: &str) -> Ending {
        Ending::Exception(format!("Runtime error: {text}"))
    }

    /// A call trapped.
    pub fn trapped(trap: Trap) -> Ending {
        match trap {
            Trap::Error(what) => Ending::Exception(format!("Runtime error: Call error: {what}")),
            Trap::Exception(text) => Ending::Exception(text),
            Trap::Quota(quota) => Ending::quota(quota),
            Trap::Panicked => Ending::ServerError(trap.to_string()),
            Trap::Exit { ok: true } => Ending::Completed(String::new()),
            Trap::Exit { ok: false } => Ending::failed("the program exited with an error"),
        }
    }

    /// The program could not be set up.
    pub fn not_instantiated(trap: Trap) -> Ending {
        match trap {
            Trap::Error(what) => Ending::Exception(format!("Runtime error: Instantiation error: {what}")),
            other => Ending::trapped(other),
        }
    }

    /// The event code on the wire.
    pub fn code(&self) -> u32 {
        match self {
            Ending::Completed(_) => 1,
            Ending::Aborted => 2,
            Ending::Exception(_) | Ending::Disconnected | Ending::Expired => 3,
            Ending::ServerError(_) | Ending::Stopping => 4,
            Ending::OutOfResources(_) => 5,
        }
    }

    /// The event's message on the wire.
    pub fn message(&self) -> String {
        match self {
            Ending::Completed(text)
            | Ending::Exception(text)
            | Ending::ServerError(text)
            | Ending::OutOfResources(text) => text.clone(),
            Ending::Aborted => "Signal termination".to_owned(),
            Ending::Stopping => "The server is stopping".to_owned(),
            Ending::Disconnected => "socket terminated".to_owned(),
            Ending::Expired => "token expired".to_owned(),
        }
    }
}
