//! The door: what apps connect to.
//!
//! Owns: [`accept`] sockets, [`seats`] whose they may be and how many, [`listener`] the handshake, [`upgrade`] from an HTTP
//! request to a WebSocket, [`session`] the pure state of one connection, [`connection`] its I/O over a [`carrier`] of frames,
//! [`backlog`] what it has been asked for, [`forward`] and [`download`] events and blobs to frames, [`over`] why and when a
//! connection ends, [`names`] whose requests may pass; [`http`] the server instances of programs and [`request`] what becomes of a
//! request; [`house`] names all that the door needs of the box behind it. Never: how programs are kept or run.
//!
//! One connection is one future with an executor of its own: dropping it, or a panic in it, ends that connection, its
//! uploads and its instances, and nothing else.

mod accept;
mod backlog;
pub(crate) mod carrier;
pub(crate) mod connection;
mod download;
mod forward;
pub mod house;
pub mod http;
mod listener;
mod names;
mod over;
mod request;
mod seats;
mod session;
#[cfg(test)]
mod tests;
mod upgrade;

use crate::auth::Verifier;
use crate::wire::upload::Budget;
use seats::Seats;
use std::sync::Arc;

pub use house::{House, Ready, Served};
pub use listener::run;
pub use names::Names;

/// What all connections share.
pub struct Door<H> {
    pub house: H,
    /// None: everyone is let in, in one scope.
    pub verifier: Option<Verifier>,
    pub names: Names,
    pub(crate) uploads: Arc<Budget>,
    pub(crate) seats: Seats,
}

impl<H: House> Door<H> {
    pub fn new(house: H, verifier: Option<Verifier>, names: Names) -> Door<H> {
        let seats = Seats::new(verifier.is_some());
        Door { house, verifier, names, uploads: Arc::default(), seats }
    }
}
