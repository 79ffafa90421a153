//! Sockets: accept, bound their number, shake hands, hand over.
//!
//! Owns: the accept loop, which nothing slow can hold up (the handshake runs beside it, with a limit), socket options, and
//! the border at which a panic of one connection stops. Never: what a connection says.

use super::over::Closing;
use super::paced::Paced;
use super::upgrade::{self, Judgement};
use super::{Door, House};
use super::{carrier, connection};
use crate::limits;
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use rustix::net::sockopt;
use smol::future::{FutureExt, or};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::lock::Semaphore;
use smol::net::{TcpListener, TcpStream};
use smol::{Executor, Timer};
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Serves `listener` until `shutdown`; then closes every connection with 1001 and ends its instances, within a
/// bounded time. Dropping the future ends everything at once.
pub async fn run<H: House>(listener: TcpListener, door: Door<H>, shutdown: impl Future<Output = ()>) {
    let door = Arc::new(door);
    let executor = Executor::new();
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let (stop, closing) = smol::channel::bounded(1);
    executor
        .run(async {
            or(shutdown, accept(&listener, &door, &executor, &places, &closing)).await;
            drop(listener);
            stop.close();
            let all_gone = async {
                for _ in 0..limits::CONNECTIONS {
                    places.acquire_arc().await.forget();
                }
            };
            let late = async {
                Timer::after(limits::SHUTDOWN).await;
            };
            or(all_gone, late).await;
        })
        .await;
}

async fn accept<H: House>(
    listener: &TcpListener,
    door: &Arc<Door<H>>,
    executor: &Executor<'static>,
    places: &Arc<Semaphore>,
    closing: &Closing,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, most likely: the queue is still full of clients, so without a pause this
                // would spin.
                tracing::warn!("a connection cannot be accepted: {e}");
                Timer::after(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.try_acquire_arc() else {
            turn_away(&stream, limits::CONNECTIONS);
            continue;
        };
        let (door, closing) = (door.clone(), closing.clone());
        let connection = async move {
            let _place = place;
            let served = AssertUnwindSafe(serve(stream, &door, closing)).catch_unwind().await;
            if served.is_err() {
                tracing::error!("a connection was ended by a fault of the server; the others go on");
            }
        };
        executor.spawn(connection).detach();
    }
}

async fn serve<H: House>(stream: TcpStream, door: &Door<H>, closing: Closing) {
    if let Err(e) = set_options(&stream) {
        tracing::debug!("socket options were not set: {e}");
    }
    let late = async {
        Timer::after(limits::HANDSHAKE_WITHIN).await;
        Err(io::Error::from(io::ErrorKind::TimedOut))
    };
    match or(shake_hands(stream, door), late).await {
        Ok(Some(socket)) => connection::serve(carrier::of(socket), door, closing).await,
        Ok(None) => {}
        Err(e) => tracing::debug!("a handshake failed: {e}"),
    }
}

/// None: the request was refused.
async fn shake_hands<H: House>(
    mut stream: TcpStream,
    door: &Door<H>,
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
                    Paced::new(stream),
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

/// A peer that has vanished is found by its kernel's silence, never by its program's.
pub(super) fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, limits::KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, limits::KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, limits::TCP_USER_TIMEOUT.as_millis() as u32)?;
    Ok(())
}

/// Says that there is no place, if that can be said at once.
pub(super) fn turn_away(stream: &TcpStream, limit: usize) {
    tracing::warn!("{limit} connections are open; another one is turned away");
    let reply = upgrade::refusal(
        "503 Service Unavailable",
        "The server has as many connections as it may; try again.",
    );
    let _ = rustix::net::send(
        stream,
        &reply,
        rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
    );
}
