//! `wasi:io/poll` and `wasi:io/error`: what a guest can wait for, and why a stream failed.
//!
//! Owns: [`Pollable`], the one type behind every `pollable` of every interface and version. Never: what becomes ready,
//! which is whatever implements [`Readiness`]; streams, which are in `streams.rs`.

use crate::engine::operation::Reply;
use crate::host::abi::Borrow;
use crate::host::{Cx, Interface, Later, Trap};
use crate::limits;
use crate::runtime::table::Resource;
use crate::transfer::ErrorCode;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

pub fn interfaces() -> Vec<Interface> {
    vec![
        Interface::new("wasi:io/error@0.2")
            .resource::<IoError>()
            .call("[method]error.to-debug-string", describe),
        Interface::new("wasi:io/poll@0.2")
            .resource::<Pollable>()
            .call("[method]pollable.ready", ready)
            .wait("[method]pollable.block", block)
            .wait("poll", poll),
    ]
}

// ---- poll ----

/// Something that becomes ready and then stays so until the guest takes what is there. A pollable may outlive what it is of:
/// the bytes that it keeps so are counted in here, or dropped with that.
pub trait Readiness: Send + Sync + 'static {
    fn ready(&self) -> bool;
    /// Resolves once it is ready. Dropping the future loses nothing.
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// An engine's reply: ready once it is written.
impl<T: Send + Sync + 'static> Readiness for Reply<T> {
    fn ready(&self) -> bool {
        self.get().is_some()
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            (**self).wait().await;
        })
    }
}

/// Ready from the start.
struct Always;

impl Readiness for Always {
    fn ready(&self) -> bool {
        true
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// A guest's handle on a [`Readiness`].
#[derive(Clone)]
pub struct Pollable(Arc<dyn Readiness>);

impl Resource for Pollable {
    const NAME: &'static str = "pollable";
}

impl Pollable {
    pub fn new(of: Arc<dyn Readiness>) -> Pollable {
        Pollable(of)
    }

    pub fn always() -> Pollable {
        Pollable(Arc::new(Always))
    }
}

fn ready(cx: &mut Cx, pollable: Borrow<Pollable>) -> Result<bool, Trap> {
    Ok(cx.table.get(&pollable)?.0.ready())
}

fn block(cx: &mut Cx, pollable: Borrow<Pollable>) -> Result<Later<()>, Trap> {
    let Pollable(what) = cx.table.get(&pollable)?.clone();
    if what.ready() {
        return Ok(Later::ready(()));
    }
    Ok(Later::wait(async move {
        what.wait().await;
        Ok(())
    }))
}

/// Fuel of one pollable in a `poll`: a listener is made, linked and unlinked, some 200 ns.
const POLLABLE_FUEL: u64 = 200;

/// Waits until one of them is ready; answers the indices of all that are.
fn poll(cx: &mut Cx, pollables: Vec<Borrow<Pollable>>) -> Result<Later<Vec<u32>>, Trap> {
    if pollables.is_empty() {
        return Err(Trap::error("poll of an empty list would wait for ever"));
    }
    if pollables.len() > limits::POLLED {
        return Err(Trap::error(format!(
            "poll of {} pollables, and {} is the most",
            pollables.len(),
            limits::POLLED
        )));
    }
    let polled =
        pollables.iter().map(|pollable| cx.table.get(pollable).cloned()).collect::<Result<Vec<_>, _>>()?;
    // Each is looked at now, may be listened to, and is looked at again.
    cx.owe(polled.len(), POLLABLE_FUEL);
    let now = ready_among(&polled);
    if !now.is_empty() {
        return Ok(Later::ready(now));
    }
    Ok(Later::wait(async move {
        let mut waits: Vec<_> = polled.iter().map(|Pollable(what)| what.wait()).collect();
        poll_fn(|context| {
            // All are asked each time, so that each keeps the waker; it is one pass over a short list.
            let woken =
                waits.iter_mut().fold(false, |woken, wait| wait.as_mut().poll(context).is_ready() | woken);
            if woken { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        drop(waits);
        Ok(ready_among(&polled))
    }))
}

fn ready_among(polled: &[Pollable]) -> Vec<u32> {
    (0..).zip(polled).filter(|(_, Pollable(what))| what.ready()).map(|(i, _)| i).collect()
}

// ---- error ----

/// Why a stream's operation failed.
pub struct IoError(pub ErrorCode);

impl Resource for IoError {
    const NAME: &'static str = "error";
}

fn describe(cx: &mut Cx, error: Borrow<IoError>) -> Result<String, Trap> {
    Ok(cx.table.get(&error)?.0.to_string())
}
