//! The door: what apps connect to.
//!
//! Owns: [`listener`] sockets and how many may be open, [`upgrade`] from an HTTP request to a WebSocket, [`session`] the
//! pure state of one connection, [`connection`] its I/O over a [`carrier`] of frames, [`forward`] and [`download`] events and blobs to frames, [`over`] why and
//! when a connection ends, [`paced`] fairness between sockets; [`house`] names all that the door needs of the box behind it. Never: how programs are kept or run.
//!
//! One connection is one future with an executor of its own: dropping it, or a panic in it, ends that connection, its
//! uploads and its instances, and nothing else.

pub(crate) mod carrier;
pub(crate) mod connection;
mod download;
mod forward;
pub mod house;
mod listener;
mod over;
mod paced;
mod session;
#[cfg(test)]
mod tests;
mod upgrade;

use crate::auth::Verifier;
use crate::wire::upload::Budget;
use std::sync::Arc;

pub use house::{House, Ready, Served};
pub use listener::run;

/// What all connections share.
pub struct Door<H> {
    pub house: H,
    /// None: everyone is let in, in one scope.
    pub verifier: Option<Verifier>,
    /// `Host` names that are ours besides loopback ones and the address connected to; lower case, without port.
    pub hosts: Vec<String>,
    /// `Origin` values of web pages that may connect, exactly as browsers send them.
    pub origins: Vec<String>,
    pub(crate) uploads: Arc<Budget>,
}

impl<H: House> Door<H> {
    pub fn new(house: H, verifier: Option<Verifier>, hosts: Vec<String>, origins: Vec<String>) -> Door<H> {
        Door { house, verifier, hosts, origins, uploads: Arc::default() }
    }
}
