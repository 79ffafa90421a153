//! From a host that may be asked to a socket at an address that may be connected to.
//!
//! Owns: the one lookup of a request, the check of each address that it gives, and the connection to the very address that
//! was checked; a name that means something else a moment later changes nothing. Never: HTTP, or how long it may take.

use super::policy::{Host, Policy};
use crate::limits;
use crate::transfer::ErrorCode;
use smol::lock::Semaphore;
use smol::net::TcpStream;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;

/// Addresses of a name.
pub type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// From names to addresses.
pub trait Resolve: Send + Sync {
    fn resolve(&self, name: String, port: u16) -> Found;
}

/// The machine's own resolver.
pub struct System {
    /// A lookup cannot be broken off: it keeps its place when nobody waits for it any more.
    lookups: Arc<Semaphore>,
}

impl Default for System {
    fn default() -> System {
        System { lookups: Arc::new(Semaphore::new(limits::OUTGOING_LOOKUPS)) }
    }
}

impl Resolve for System {
    fn resolve(&self, name: String, port: u16) -> Found {
        let lookups = self.lookups.clone();
        Box::pin(async move {
            let place = lookups.acquire_arc().await;
            smol::unblock(move || {
                let found = (name, port).to_socket_addrs();
                drop(place);
                found.map(Iterator::collect)
            })
            .await
        })
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// For the guest alone.
    Code(ErrorCode),
    /// None of the addresses may be connected to; the first of them.
    Prohibited(SocketAddr),
}

/// Connects to the first of the host's addresses that may be connected to and answers.
pub async fn connect(
    resolver: &dyn Resolve,
    policy: &Policy,
    host: &Host,
    port: u16,
) -> Result<TcpStream, Failure> {
    let addresses = match host {
        Host::Address(address) => vec![SocketAddr::new(*address, port)],
        Host::Name(name) => resolver
            .resolve(name.clone(), port)
            .await
            .map_err(|cause| Failure::Code(ErrorCode::DnsError((Some(limited(&cause.to_string())), None))))?,
    };
    // What is looked at and what is connected to is one value.
    let addresses = addresses.into_iter().map(|found| SocketAddr::new(found.ip().to_canonical(), port));
    let (permitted, prohibited): (Vec<_>, Vec<_>) = addresses.partition(|address| policy.permits(*address));
    let mut last = match prohibited.first() {
        Some(address) => Failure::Prohibited(*address),
        None => Failure::Code(ErrorCode::DestinationNotFound),
    };
    for address in permitted.into_iter().take(limits::OUTGOING_ADDRESSES) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(cause) => last = Failure::Code(refused(&cause)),
        }
    }
    Err(last)
}

fn refused(cause: &io::Error) -> ErrorCode {
    match cause.kind() {
        io::ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
        io::ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
        io::ErrorKind::NetworkUnreachable => ErrorCode::DestinationIpUnroutable,
        _ => ErrorCode::DestinationUnavailable,
    }
}

fn limited(text: &str) -> String {
    text.chars().take(limits::OUTGOING_ERROR_CHARS).collect()
}
