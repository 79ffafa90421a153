//! The door's listener: a seat for each connection, the handshake, the end of all.
//!
//! Owns: the handshake, which holds nobody else up and has a limit, and what becomes of connections when the server stops.
//! Never: what a connection says.

use super::accept::accept;
use super::over::Closing;
use super::seats::Seat;
use super::upgrade::{self, Judgement};
use super::{Door, House};
use super::{carrier, connection};
use crate::identity::Subject;
use crate::limits;
use crate::pacer::{Paced, Pacer};
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use smol::future::or;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use smol::{Executor, Timer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;

/// Serves `listener` until `shutdown`; then closes every connection with 1001 and ends its instances, within a
/// bounded time. Dropping the future ends everything at once.
pub async fn run<H: House>(listener: TcpListener, door: Door<H>, shutdown: impl Future<Output = ()>) {
    let door = Arc::new(door);
    let executor = Executor::new();
    let (stop, closing) = smol::channel::bounded(1);
    let (here, gone) = smol::channel::bounded::<Infallible>(1);
    // What it holds goes when nobody is accepted any more.
    let enter = move |stream| {
        let (seat, pushed) = door.seats.enter()?;
        let (door, closing, here) = (door.clone(), closing.clone(), here.clone());
        Ok(async move {
            let _here = here;
            let pushed = async {
                let _ = pushed.recv().await; // an error: closed
                tracing::debug!("a stranger makes room for another");
            };
            or(pushed, serve(stream, &door, seat, closing)).await;
        })
    };
    executor
        .run(async {
            or(shutdown, accept(&listener, &executor, enter)).await;
            drop(listener);
            stop.close();
            let all_gone = async {
                let _ = gone.recv().await; // an error: nobody is here
            };
            let late = async {
                Timer::after(limits::SHUTDOWN).await;
            };
            or(all_gone, late).await;
        })
        .await;
}

async fn serve<H: House>(stream: TcpStream, door: &Door<H>, seat: Seat, closing: Closing) {
    let late = async {
        Timer::after(limits::HANDSHAKE_WITHIN).await;
        Err(io::Error::from(io::ErrorKind::TimedOut))
    };
    // All who have not said who they are share what everyone has.
    let pacer = door.house.pacer(&Subject::everyone());
    let own = pacer.clone();
    let served = async move {
        match or(shake_hands(stream, door, &own), late).await {
            Ok(Some(socket)) => connection::serve(carrier::of(socket), door, seat, closing, own).await,
            Ok(None) => {}
            Err(e) => tracing::debug!("a handshake failed: {e}"),
        }
    };
    pacer.counted(Box::pin(served)).await;
}

/// None: the request was refused.
async fn shake_hands<H: House>(
    mut stream: TcpStream,
    door: &Door<H>,
    pacer: &Pacer,
) -> io::Result<Option<WebSocketStream<Paced>>> {
    let local = stream.local_addr()?.ip();
    let mut read = Vec::with_capacity(1024);
    loop {
        match upgrade::judge(&read, &door.names, local) {
            Judgement::More => {
                let mut more = [0; 1024];
                match stream.read(&mut more).await? {
                    0 => return Ok(None),
                    bytes => read.extend_from_slice(&more[..bytes]),
                }
            }
            Judgement::Refused(reply) => {
                stream.write_all(&reply).await?;
                stream.close().await?;
                return Ok(None);
            }
            Judgement::Welcome { reply, head } => {
                stream.write_all(&reply).await?;
                let rest = read.split_off(head);
                let socket = WebSocketStream::from_partially_read(
                    // Forwarders rest, not what they have made: an end may be behind it.
                    Paced::new(stream, pacer.clone(), Pacer::default()),
                    rest,
                    Role::Server,
                    Some(frame_limits()),
                );
                return Ok(Some(socket.await));
            }
        }
    }
}

/// One frame is one message, so both have the frame's limit.
fn frame_limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(limits::SOCKET_BUFFER_BYTES)
        .write_buffer_size(limits::SOCKET_BUFFER_BYTES)
        .max_write_buffer_size(limits::SOCKET_BUFFER_BYTES + 2 * limits::SERVER_FRAME_BYTES)
        .max_message_size(Some(limits::CLIENT_FRAME_BYTES))
        .max_frame_size(Some(limits::CLIENT_FRAME_BYTES))
}
