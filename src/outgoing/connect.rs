//! From a host to a connection: look its name up once, judge each address, connect to the very address that was judged.
//!
//! Owns: that order, its time, and what a failure on the way is called. Never: what is said over the socket, or who may be called.

use super::policy::{Allowed, Host, Target};
use super::{Refusals, timed};
use crate::identity::Subject;
use crate::limits;
use crate::places::Awaited;
use crate::transfer::ErrorCode;
use smol::net::TcpStream;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Addresses = io::Result<Vec<IpAddr>>;

/// The addresses of a name, which a program of this subject asks for. Tests have names of their own.
pub type Lookup =
    Arc<dyn Fn(&Subject, String) -> Pin<Box<dyn Future<Output = Addresses> + Send>> + Send + Sync>;

/// The system's.
pub fn system() -> Lookup {
    bounded(|name| {
        let found = (name, 0).to_socket_addrs()?;
        Ok(found.map(|address| address.ip()).collect())
    })
}

/// A bounded number at a time, of one subject and in all, each on a thread of its own.
pub fn bounded(resolve: impl Fn(&str) -> Addresses + Send + Sync + 'static) -> Lookup {
    let places = Awaited::new(limits::LOOKUPS, limits::LOOKUPS_PER_SUBJECT);
    let resolve = Arc::new(resolve);
    Arc::new(move |who, name| {
        let (who, places, resolve) = (who.clone(), places.clone(), resolve.clone());
        Box::pin(async move {
            let place = places.take(&who).await;
            // The thread keeps the place: it works on when nobody waits any more.
            smol::unblock(move || {
                let _place = place;
                resolve(&name)
            })
            .await
        })
    })
}

/// A connection to `target`, whose host may be called. Addresses are tried one after the other, each for its share of what is
/// left of the time.
pub async fn connect(
    target: &Target,
    (who, allowed): (&Subject, &Allowed),
    lookup: &Lookup,
    within: Duration,
    refusals: &Refusals,
) -> Result<TcpStream, ErrorCode> {
    let deadline = Instant::now() + within;
    let addresses = match &target.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => {
            let found = async { lookup(who, name.clone()).await.map_err(|e| dns_error(e.to_string())) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::{block_on, poll_once};
    use std::sync::{Mutex, mpsc};

    /// Whose server of names never answers has no more threads than his part; the others' names are looked up.
    #[test]
    fn one_subjects_lookups_leave_places_to_others() {
        let (answer, never) = mpsc::channel::<()>();
        let never = Mutex::new(never);
        let lookup = bounded(move |name| {
            if name == "stuck" {
                let _closed = never.lock().unwrap().recv();
            }
            Ok(vec![IpAddr::from([192, 0, 2, 1])])
        });
        let [greedy, honest] = ["greedy", "honest"].map(Subject::new);
        block_on(async {
            let mut stuck: Vec<_> =
                (0..2 * limits::LOOKUPS).map(|_| lookup(&greedy, "stuck".to_owned())).collect();
            for one in &mut stuck {
                assert!(poll_once(one).await.is_none());
            }
            drop(stuck.split_off(limits::LOOKUPS)); // gone, whether it waits or has a thread
            assert_eq!(lookup(&honest, "fine".to_owned()).await.unwrap().len(), 1);
            drop(answer);
            for one in stuck {
                assert_eq!(one.await.unwrap().len(), 1, "its turn comes");
            }
        });
    }
}
