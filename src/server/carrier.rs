//! What carries frames between a client and its connection.
//!
//! Owns: the three things that a connection wants of a socket ([`Carrier`]), and what they are for a WebSocket. Never: what a
//! frame says, or when one is written. The simulation has carriers of its own, without sockets.

use crate::pacer::Paced;
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use smol::io::AsyncReadExt;
use smol::net::TcpStream;

pub struct Carrier<I, O, L> {
    /// Frames of the client: a stream of messages; its end is the client's.
    pub incoming: I,
    /// Frames to the client: a sink of messages.
    pub outgoing: O,
    /// To be awaited after the last frame is written, or it may be lost.
    pub linger: L,
}

/// A WebSocket's.
pub fn of(
    socket: WebSocketStream<Paced>,
) -> Carrier<WebSocketReceiver<Paced>, WebSocketSender<Paced>, impl Future<Output = ()>> {
    let raw = socket.get_ref().stream().clone();
    let (outgoing, incoming) = socket.split();
    Carrier { incoming, outgoing, linger: linger(raw) }
}

/// Takes what the client still sends, until it closes: closing with unread bytes resets the connection, and the close
/// frame would be lost with it.
async fn linger(mut raw: TcpStream) {
    let _ = raw.shutdown(std::net::Shutdown::Write);
    let mut scrap = [0; 4096];
    while raw.read(&mut scrap).await.is_ok_and(|bytes| bytes > 0) {}
}
