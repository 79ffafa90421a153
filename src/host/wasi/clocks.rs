//! `wasi:clocks`: a monotonic clock that starts with the process, the wall clock, and timers.

use super::io::{Pollable, Readiness};
use crate::host::abi::Own;
use crate::host::{Cx, Interface, Trap};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub fn interfaces() -> Vec<Interface> {
    vec![
        Interface::new("wasi:clocks/monotonic-clock@0.2")
            .call("now", now)
            .call("resolution", resolution)
            .call("subscribe-instant", subscribe_instant)
            .call("subscribe-duration", subscribe_duration),
        Interface::new("wasi:clocks/wall-clock@0.2")
            .call("now", wall_now)
            .call("resolution", wall_resolution),
    ]
}

/// Nanoseconds since the clock's start.
type Nanoseconds = u64;

/// A guest sees no uptime of the machine, only of this process.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now(_: &mut Cx) -> Result<Nanoseconds, Trap> {
    Ok(START.elapsed().as_nanos() as u64)
}

fn resolution(_: &mut Cx) -> Result<Nanoseconds, Trap> {
    Ok(1)
}

fn subscribe_instant(_: &mut Cx, when: Nanoseconds) -> Result<Own<Pollable>, Trap> {
    Ok(timer(START.checked_add(Duration::from_nanos(when))))
}

fn subscribe_duration(_: &mut Cx, duration: Nanoseconds) -> Result<Own<Pollable>, Trap> {
    Ok(timer(Instant::now().checked_add(Duration::from_nanos(duration))))
}

/// Ready at an instant; one beyond the clock's range never is.
struct Timer(Option<Instant>);

fn timer(at: Option<Instant>) -> Own<Pollable> {
    Own(Pollable::new(Arc::new(Timer(at))))
}

impl Readiness for Timer {
    fn ready(&self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            match self.0 {
                Some(at) => {
                    smol::Timer::at(at).await;
                }
                None => std::future::pending().await,
            }
        })
    }
}

/// `datetime`: seconds since 1970, nanoseconds.
type Datetime = (u64, u32);

fn wall_now(_: &mut Cx) -> Result<Datetime, Trap> {
    // A box without a set clock may stand before 1970; guests are then told 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((since.as_secs(), since.subsec_nanos()))
}

fn wall_resolution(_: &mut Cx) -> Result<Datetime, Trap> {
    Ok((0, 1))
}
