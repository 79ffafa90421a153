//! From a host to a socket: look its name up once, judge each address, connect to the very address that was judged.
//!
//! Owns: that order, and what a failure on the way is called. Never: what is said over the socket, or who may be called.

use super::policy::{Allowed, Host, Target};
use super::{Refusals, timed};
use crate::limits;
use crate::transfer::ErrorCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use smol::io::{AsyncRead, AsyncWrite};
use smol::lock::Semaphore;
use smol::net::TcpStream;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

type Addresses = io::Result<Vec<IpAddr>>;

/// The addresses of a name. Tests have names of their own.
pub type Lookup = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Addresses> + Send>> + Send + Sync>;

/// The system's, a bounded number at a time.
pub fn system() -> Lookup {
    let places = Arc::new(Semaphore::new(limits::LOOKUPS));
    Arc::new(move |name| {
        let places = places.clone();
        Box::pin(async move {
            let place = places.acquire_arc().await;
            // The thread keeps the place: it works on when nobody waits any more.
            smol::unblock(move || {
                let _place = place;
                let found = (name.as_str(), 0).to_socket_addrs()?;
                Ok(found.map(|address| address.ip()).collect())
            })
            .await
        })
    })
}

/// A socket to `target`, whose host may be called. Addresses are tried one after the other, each for its share of the time.
pub async fn connect(
    target: &Target,
    allowed: &Allowed,
    lookup: &Lookup,
    within: Duration,
    refusals: &Refusals,
) -> Result<Socket, ErrorCode> {
    let addresses = match &target.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => {
            let found = async { lookup(name.clone()).await.map_err(|e| dns_error(e.to_string())) };
            timed(within, ErrorCode::DnsTimeout, found).await?
        }
    };
    let mut failed = dns_error(format!("{target} has no address"));
    let tried = addresses.len().clamp(1, limits::ADDRESSES_TRIED);
    for address in addresses.into_iter().take(tried) {
        let address = SocketAddr::new(address, target.port);
        if !allowed.address(address) {
            let entry = Target::literal(address);
            refusals.tell(&format!(
                "{target} is at {address}, an address that is not public: if programs may call it, add \"{entry}\" to \
                 allow under [http], or to the token's claim http"
            ));
            failed = ErrorCode::DestinationIpProhibited;
            continue;
        }
        let connected = async { TcpStream::connect(address).await.map_err(|e| refused(&e)) };
        match timed(within / tried as u32, ErrorCode::ConnectionTimeout, connected).await {
            Ok(stream) => return Ok(Socket(stream)),
            Err(why) => failed = why,
        }
    }
    Err(failed)
}

fn dns_error(what: String) -> ErrorCode {
    ErrorCode::DnsError((Some(what), None))
}

fn refused(cause: &io::Error) -> ErrorCode {
    match cause.kind() {
        io::ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
        io::ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
        io::ErrorKind::NetworkUnreachable => ErrorCode::DestinationIpUnroutable,
        _ => ErrorCode::DestinationUnavailable,
    }
}

/// A connection as hyper wants it.
pub struct Socket(TcpStream);

/// Bytes of one read.
const READ_BYTES: usize = 8 * 1024;

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_BYTES];
        let room = buffer.remaining().min(READ_BYTES);
        let read = ready!(Pin::new(&mut self.0).poll_read(context, &mut bytes[..room]))?;
        buffer.put_slice(&bytes[..read]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(context)
    }
}
