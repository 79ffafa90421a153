//! `wasi:io`: what a guest can wait for, and byte streams.
//!
//! Owns: [`Pollable`], the one type behind every `pollable` of every interface and version; the streams, which are
//! a closed input and two outputs into the log. Never: what becomes ready, which is whatever implements
//! [`Readiness`].

use super::cli::Stream;
use crate::host::abi::{Borrow, Lower, Own, Target, Value};
use crate::host::shape::Shape;
use crate::host::{Cx, Interface, Later, Trap};
use crate::limits;
use crate::runtime::table::Resource;
use smol::lock::OnceCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use wasmi::Val;

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
        Interface::new("wasi:io/streams@0.2")
            .resource::<InputStream>()
            .resource::<OutputStream>()
            .call("[method]input-stream.read", read)
            .call("[method]input-stream.blocking-read", read)
            .call("[method]input-stream.skip", skip)
            .call("[method]input-stream.blocking-skip", skip)
            .call("[method]input-stream.subscribe", subscribe_input)
            .call("[method]output-stream.check-write", check_write)
            .call("[method]output-stream.write", write)
            .call("[method]output-stream.blocking-write-and-flush", write)
            .call("[method]output-stream.flush", flush)
            .call("[method]output-stream.blocking-flush", flush)
            .call("[method]output-stream.subscribe", subscribe_output)
            .call("[method]output-stream.write-zeroes", write_zeroes)
            .call("[method]output-stream.blocking-write-zeroes-and-flush", write_zeroes)
            .call("[method]output-stream.splice", splice)
            .call("[method]output-stream.blocking-splice", splice),
    ]
}

// ---- poll ----

/// Something that becomes ready and then stays so until the guest takes what is there.
pub trait Readiness: Send + Sync + 'static {
    fn ready(&self) -> bool;
    /// Resolves once it is ready. Dropping the future loses nothing.
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// An engine's reply: ready once it is written.
impl<T: Send + Sync + 'static> Readiness for OnceCell<T> {
    fn ready(&self) -> bool {
        self.get().is_some()
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            OnceCell::wait(self).await;
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
pub struct IoError(pub String);

impl Resource for IoError {
    const NAME: &'static str = "error";
}

fn describe(cx: &mut Cx, error: Borrow<IoError>) -> Result<String, Trap> {
    Ok(cx.table.get(&error)?.0.clone())
}

/// `stream-error`.
pub enum StreamError {
    Failed(IoError),
    Closed,
}

impl Value for StreamError {
    const SIZE: usize = 8;
    const ALIGN: usize = 4;
    const FLAT: usize = 2;
    fn shape() -> Shape {
        Shape::Variant(vec![Some(Own::<IoError>::shape()), None])
    }
}

impl Lower for StreamError {
    fn lower(self, _: &mut Target<'_>) -> Result<Val, Trap> {
        Err(Trap::error("a stream error does not fit one number"))
    }
    fn store(self, into: &mut Target<'_>, at: usize) -> Result<(), Trap> {
        match self {
            StreamError::Failed(error) => {
                0u8.store(into, at)?;
                Own(error).store(into, at + 4)
            }
            StreamError::Closed => 1u8.store(into, at),
        }
    }
}

// ---- streams ----

/// Standard input: there is none.
pub struct InputStream;

impl Resource for InputStream {
    const NAME: &'static str = "input-stream";
}

/// Standard output or error: lines in the log.
pub struct OutputStream(pub Stream);

impl Resource for OutputStream {
    const NAME: &'static str = "output-stream";
}

fn read(cx: &mut Cx, stream: Borrow<InputStream>, _len: u64) -> Result<Result<Vec<u8>, StreamError>, Trap> {
    cx.table.get(&stream)?;
    Ok(Err(StreamError::Closed))
}

fn skip(cx: &mut Cx, stream: Borrow<InputStream>, _len: u64) -> Result<Result<u64, StreamError>, Trap> {
    cx.table.get(&stream)?;
    Ok(Err(StreamError::Closed))
}

fn subscribe_input(cx: &mut Cx, stream: Borrow<InputStream>) -> Result<Own<Pollable>, Trap> {
    cx.table.get(&stream)?;
    Ok(Own(Pollable::always()))
}

fn check_write(cx: &mut Cx, stream: Borrow<OutputStream>) -> Result<Result<u64, StreamError>, Trap> {
    cx.table.get(&stream)?;
    Ok(Ok(limits::STREAM_WRITE_BYTES as u64))
}

/// Fuel of a byte that is escaped, and of a line of the log that is written: some 5 µs.
const PRINTED_BYTE_FUEL: u64 = 8;
const PRINTED_LINE_FUEL: u64 = 4_000;

fn write(cx: &mut Cx, stream: Borrow<OutputStream>, bytes: Vec<u8>) -> Result<Result<(), StreamError>, Trap> {
    permitted(bytes.len() as u64)?;
    let OutputStream(stream) = *cx.table.get(&stream)?;
    cx.owe(bytes.len(), PRINTED_BYTE_FUEL);
    cx.owe(bytes.iter().filter(|byte| **byte == b'\n').count(), PRINTED_LINE_FUEL);
    cx.log.write(stream, &bytes)?;
    Ok(Ok(()))
}

fn write_zeroes(
    cx: &mut Cx,
    stream: Borrow<OutputStream>,
    len: u64,
) -> Result<Result<(), StreamError>, Trap> {
    permitted(len)?;
    write(cx, stream, vec![0; len as usize])
}

fn permitted(len: u64) -> Result<(), Trap> {
    match len > limits::STREAM_WRITE_BYTES as u64 {
        true => Err(Trap::error(format!(
            "a write of {len} bytes, and check-write permits {}",
            limits::STREAM_WRITE_BYTES
        ))),
        false => Ok(()),
    }
}

fn flush(cx: &mut Cx, stream: Borrow<OutputStream>) -> Result<Result<(), StreamError>, Trap> {
    cx.table.get(&stream)?;
    Ok(Ok(()))
}

fn subscribe_output(cx: &mut Cx, stream: Borrow<OutputStream>) -> Result<Own<Pollable>, Trap> {
    cx.table.get(&stream)?;
    Ok(Own(Pollable::always()))
}

fn splice(
    cx: &mut Cx,
    stream: Borrow<OutputStream>,
    from: Borrow<InputStream>,
    _len: u64,
) -> Result<Result<u64, StreamError>, Trap> {
    cx.table.get(&stream)?;
    cx.table.get(&from)?;
    Ok(Err(StreamError::Closed))
}
