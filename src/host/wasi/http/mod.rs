//! `wasi:http`: requests and responses as a guest sees them, in both directions.
//!
//! Owns: the list of interfaces; one file for the header fields, one for what comes in, one for what goes out, one for
//! the words that both use. Never: sockets or the protocol; a message is `http`'s head and a body of
//! [`transfer`](crate::transfer), and what becomes of it is the business of whoever holds the other end.

use crate::host::Interface;

mod fields;
mod incoming;
mod outgoing;
mod words;

pub use incoming::{IncomingRequest, ResponseOutparam};
pub use outgoing::{FutureIncomingResponse, OutgoingRequest, RequestOptions};

pub fn interfaces() -> Vec<Interface> {
    let types = Interface::new("wasi:http/types@0.2");
    let types = words::functions(fields::functions(types));
    vec![outgoing::functions(incoming::functions(types)), outgoing::handler()]
}
