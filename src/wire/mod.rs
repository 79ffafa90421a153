//! What goes over the WebSocket: the vocabulary that server and client share.
//!
//! Owns: [`message`] the messages and their MessagePack form, [`outline`] the check of a frame before it is decoded,
//! [`upload`] chunks back to bytes. Never: sockets, instances, rights.

pub mod message;
mod outline;
pub mod upload;

pub use message::{ClientMessage, ServerInstance, ServerMessage, Undecodable};
