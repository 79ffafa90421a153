//! The accept loop that all listeners share.
//!
//! Owns: accepting for ever, the options of a socket, the border at which a panic of one connection stops, and the words for
//! one that has no place. Never: who has one, or what a connection says.

use super::upgrade;
use crate::limits;
use crate::places::Full;
use rustix::net::sockopt;
use smol::future::FutureExt;
use smol::net::{TcpListener, TcpStream};
use smol::{Async, Executor, Timer};
use std::io::{self, ErrorKind};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Spawns what `enter` makes of each connection, if there is a place for it. Never returns.
pub async fn accept<F, N>(
    listener: &TcpListener,
    executor: &Executor<'static>,
    enter: impl Fn(TcpStream) -> Result<F, Full>,
) -> N
where
    F: Future<Output = ()> + Send + 'static,
{
    let source = listener.clone().into();
    loop {
        let stream = match next(&source).await {
            Ok(stream) => stream,
            Err(e) => {
                // Out of file descriptors, most likely: the queue is still full of clients, so without a pause this
                // would spin.
                tracing::warn!("a connection cannot be accepted: {e}");
                Timer::after(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(e) = set_options(&stream) {
            tracing::debug!("socket options were not set: {e}");
        }
        match enter(stream.clone()) {
            Err(full) => turn_away(&stream, full),
            Ok(connection) => executor.spawn(bordered(connection)).detach(),
        }
        // Whoever connects faster than this accepts must not have the thread to himself; and one that made room has to go.
        smol::future::yield_now().await;
    }
}

/// The next connection. `TcpListener::accept` asks the system whenever its future is polled: here that is at each turn of the io
/// thread, and every time the system makes a socket and throws it away.
async fn next(source: &Arc<Async<std::net::TcpListener>>) -> io::Result<TcpStream> {
    loop {
        match source.get_ref().accept() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => source.readable().await?,
            accepted => return TcpStream::try_from(accepted?.0),
        }
    }
}

async fn bordered(connection: impl Future<Output = ()>) {
    if AssertUnwindSafe(connection).catch_unwind().await.is_err() {
        tracing::error!("a connection was ended by a fault of the server; the others go on");
    }
}

/// A peer that has vanished is found by its kernel's silence, never by its program's.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, limits::KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, limits::KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, limits::TCP_USER_TIMEOUT.as_millis() as u32)?;
    Ok(())
}

/// Says that there is no place, if that can be said at once.
fn turn_away(stream: &TcpStream, full: Full) {
    tracing::warn!("a connection is turned away: {full}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Neither one that has a place nor one that is turned away.
    #[test]
    fn between_two_that_come_all_others_have_a_turn() {
        const COME: usize = 32;
        for full in [false, true] {
            let told = Arc::new(Mutex::new(String::new()));
            let executor = Executor::new();
            let other = told.clone();
            let others = executor.spawn(async move {
                loop {
                    other.lock().unwrap().push('o');
                    smol::future::yield_now().await;
                }
            });
            smol::block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let _waiting: Vec<_> =
                    (0..COME).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
                let (all, come) = smol::channel::bounded(COME);
                let enter = |_| {
                    told.lock().unwrap().push('a');
                    all.try_send(()).unwrap();
                    if full { Err(Full::All(0)) } else { Ok(async {}) }
                };
                let accepts = accept::<_, ()>(&listener, &executor, enter);
                let over = async {
                    for _ in 0..COME {
                        come.recv().await.unwrap();
                    }
                };
                executor.run(over.or(accepts)).await;
            });
            drop(others);
            let told = told.lock().unwrap();
            assert_eq!(told.matches('a').count(), COME);
            assert!(!told.contains("aa"), "{told}");
        }
    }
}
