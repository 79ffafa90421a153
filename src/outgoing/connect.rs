//! From a host to a connection: look its name up once, judge each address, connect to the very address that was judged.
//!
//! Owns: that order, its time, and what a failure on the way is called. Never: what is said over the socket, or who may be called.

use super::policy::{Allowed, Host, Target};
use super::{Refusals, timed};
use crate::limits;
use crate::transfer::ErrorCode;
use smol::lock::Semaphore;
use smol::net::TcpStream;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// A connection to `target`, whose host may be called. Addresses are tried one after the other, each for its share of what is
/// left of the time.
pub async fn connect(
    target: &Target,
    allowed: &Allowed,
    lookup: &Lookup,
    within: Duration,
    refusals: &Refusals,
) -> Result<TcpStream, ErrorCode> {
    let deadline = Instant::now() + within;
    let addresses = match &target.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => {
            let found = async { lookup(name.clone()).await.map_err(|e| dns_error(e.to_string())) };
            timed(within, ErrorCode::DnsTimeout, found).await?
        }
    };
    let mut failed = dns_error(format!("{target} has no address"));
    let tried = addresses.len().clamp(1, limits::ADDRESSES_TRIED);
    for (address, left) in addresses.into_iter().take(tried).zip((1..=tried as u32).rev()) {
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
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        match timed(share, ErrorCode::ConnectionTimeout, connected).await {
            Ok(stream) => return Ok(stream),
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
