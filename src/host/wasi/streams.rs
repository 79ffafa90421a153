//! `wasi:io/streams`: bytes to and from a guest: standard input, which is closed, two outputs into the log, and the
//! bodies of HTTP messages.
//!
//! Owns: what each operation means for each kind. Never: where a body's bytes come from or go to.

use super::cli::{self, Stream};
use super::io::{IoError, Pollable, Readiness};
use crate::host::abi::{BYTES_PER_FUEL, Borrow, Lower, Own, Target, Value};
use crate::host::shape::Shape;
use crate::host::{Cx, Interface, Later, Trap};
use crate::limits::{LOG_WRITE_BYTES, STREAM_WRITE_BYTES};
use crate::runtime::table::Resource;
use crate::transfer::{ErrorCode, Reader, Refused, Taken, Writer};
use bytes::Bytes;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use wasmi::Val;

pub fn interface() -> Interface {
    Interface::new("wasi:io/streams@0.2")
        .resource::<InputStream>()
        .resource::<OutputStream>()
        .call("[method]input-stream.read", read)
        .wait("[method]input-stream.blocking-read", blocking_read)
        .call("[method]input-stream.skip", skip)
        .wait("[method]input-stream.blocking-skip", blocking_skip)
        .call("[method]input-stream.subscribe", subscribe_input)
        .call("[method]output-stream.check-write", check_write)
        .call("[method]output-stream.write", write)
        .wait("[method]output-stream.blocking-write-and-flush", blocking_write)
        .call("[method]output-stream.flush", flush)
        .call("[method]output-stream.blocking-flush", flush)
        .call("[method]output-stream.subscribe", subscribe_output)
        .call("[method]output-stream.write-zeroes", write_zeroes)
        .wait("[method]output-stream.blocking-write-zeroes-and-flush", blocking_write_zeroes)
        .call("[method]output-stream.splice", splice)
        .wait("[method]output-stream.blocking-splice", blocking_splice)
}

/// What a guest reads.
pub enum InputStream {
    /// Standard input: there is none.
    Closed,
    Body(Arc<Reader>),
}

impl Resource for InputStream {
    const NAME: &'static str = "input-stream";
}

/// What a guest writes. A body is flushed by being written: whoever takes it takes what is there.
#[derive(Clone)]
pub enum OutputStream {
    /// Standard output or error: lines in the log.
    Log(Stream),
    Body(Arc<Writer>),
}

impl Resource for OutputStream {
    const NAME: &'static str = "output-stream";
}

impl Readiness for Reader {
    fn ready(&self) -> bool {
        self.is_ready()
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(poll_fn(|context| self.poll_ready(context)))
    }
}

impl Readiness for Writer {
    fn ready(&self) -> bool {
        self.room() != Some(0)
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(poll_fn(|context| self.poll_room(context)))
    }
}

/// `stream-error`.
pub enum StreamError {
    Failed(ErrorCode),
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
            StreamError::Failed(why) => {
                0u8.store(into, at)?;
                Own(IoError(why)).store(into, at + 4)
            }
            StreamError::Closed => 1u8.store(into, at),
        }
    }
}

impl From<Refused> for StreamError {
    fn from(refused: Refused) -> StreamError {
        match refused {
            Refused::Closed => StreamError::Closed,
            Refused::Length(bytes) => StreamError::Failed(ErrorCode::HttpResponseBodySize(Some(bytes))),
        }
    }
}

type Answer<T> = Result<T, StreamError>;

// ---- input ----

/// At most as much as a write carries.
fn most(len: u64) -> usize {
    len.min(STREAM_WRITE_BYTES as u64) as usize
}

/// What is there; nothing is no bytes.
fn take(body: &Reader, len: u64) -> Answer<Bytes> {
    match body.take(most(len)) {
        Taken::Bytes(bytes) => Ok(bytes),
        Taken::Nothing => Ok(Bytes::new()),
        Taken::End => Err(StreamError::Closed),
        Taken::Broken(why) => Err(StreamError::Failed(why)),
    }
}

fn body(cx: &Cx, stream: &Borrow<InputStream>) -> Result<Option<Arc<Reader>>, Trap> {
    Ok(match cx.table.get(stream)? {
        InputStream::Closed => None,
        InputStream::Body(body) => Some(body.clone()),
    })
}

fn read(cx: &mut Cx, stream: Borrow<InputStream>, len: u64) -> Result<Answer<Vec<u8>>, Trap> {
    Ok(body(cx, &stream)?.map_or(Err(StreamError::Closed), |body| take(&body, len).map(Vec::from)))
}

fn blocking_read(cx: &mut Cx, stream: Borrow<InputStream>, len: u64) -> Result<Later<Answer<Vec<u8>>>, Trap> {
    let Some(body) = body(cx, &stream)? else { return Ok(Later::ready(Err(StreamError::Closed))) };
    Ok(Later::wait(async move {
        body.wait().await;
        Ok(take(&body, len).map(Vec::from))
    }))
}

fn skip(cx: &mut Cx, stream: Borrow<InputStream>, len: u64) -> Result<Answer<u64>, Trap> {
    let count = |bytes: Bytes| bytes.len() as u64;
    Ok(body(cx, &stream)?.map_or(Err(StreamError::Closed), |body| take(&body, len).map(count)))
}

fn blocking_skip(cx: &mut Cx, stream: Borrow<InputStream>, len: u64) -> Result<Later<Answer<u64>>, Trap> {
    let Some(body) = body(cx, &stream)? else { return Ok(Later::ready(Err(StreamError::Closed))) };
    Ok(Later::wait(async move {
        body.wait().await;
        Ok(take(&body, len).map(|bytes| bytes.len() as u64))
    }))
}

fn subscribe_input(cx: &mut Cx, stream: Borrow<InputStream>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(body(cx, &stream)?.map_or_else(Pollable::always, |body| Pollable::new(body))))
}

// ---- output ----

fn output(cx: &Cx, stream: &Borrow<OutputStream>) -> Result<OutputStream, Trap> {
    cx.table.get(stream).cloned()
}

impl OutputStream {
    fn room(&self) -> Answer<usize> {
        match self {
            OutputStream::Log(_) => Ok(LOG_WRITE_BYTES),
            OutputStream::Body(body) => body.room().ok_or(StreamError::Closed),
        }
    }

    fn write(&self, cx: &mut Cx, bytes: Bytes) -> Result<Answer<()>, Trap> {
        match self {
            OutputStream::Log(stream) => cli::print(cx, *stream, &bytes).map(Ok),
            OutputStream::Body(body) => Ok(body.write(bytes).map_err(StreamError::from)),
        }
    }
}

fn check_write(cx: &mut Cx, stream: Borrow<OutputStream>) -> Result<Answer<u64>, Trap> {
    Ok(output(cx, &stream)?.room().map(|room| room as u64))
}

fn write(cx: &mut Cx, stream: Borrow<OutputStream>, bytes: Vec<u8>) -> Result<Answer<()>, Trap> {
    let stream = output(cx, &stream)?;
    match stream.room() {
        Ok(room) => {
            permitted(bytes.len() as u64, room)?;
            stream.write(cx, bytes.into())
        }
        Err(error) => Ok(Err(error)),
    }
}

fn blocking_write(
    cx: &mut Cx,
    stream: Borrow<OutputStream>,
    bytes: Vec<u8>,
) -> Result<Later<Answer<()>>, Trap> {
    let stream = output(cx, &stream)?;
    let most = if matches!(stream, OutputStream::Log(_)) { LOG_WRITE_BYTES } else { STREAM_WRITE_BYTES };
    permitted(bytes.len() as u64, most)?;
    match stream {
        OutputStream::Body(body) if !body.ready() => Ok(Later::wait(async move {
            body.wait().await;
            Ok(body.write(bytes.into()).map_err(StreamError::from))
        })),
        ready => ready.write(cx, bytes.into()).map(Later::ready),
    }
}

fn write_zeroes(cx: &mut Cx, stream: Borrow<OutputStream>, len: u64) -> Result<Answer<()>, Trap> {
    let bytes = zeroes(cx, len)?;
    write(cx, stream, bytes)
}

fn blocking_write_zeroes(
    cx: &mut Cx,
    stream: Borrow<OutputStream>,
    len: u64,
) -> Result<Later<Answer<()>>, Trap> {
    let bytes = zeroes(cx, len)?;
    blocking_write(cx, stream, bytes)
}

/// Made by the host, so they are charged as if they had crossed.
fn zeroes(cx: &mut Cx, len: u64) -> Result<Vec<u8>, Trap> {
    permitted(len, STREAM_WRITE_BYTES)?;
    cx.owe(len as usize / BYTES_PER_FUEL, 1);
    Ok(vec![0; len as usize])
}

fn permitted(len: u64, room: usize) -> Result<(), Trap> {
    match len > room as u64 {
        true => Err(Trap::error(format!("a write of {len} bytes, and check-write permits {room}"))),
        false => Ok(()),
    }
}

fn flush(cx: &mut Cx, stream: Borrow<OutputStream>) -> Result<Answer<()>, Trap> {
    Ok(match output(cx, &stream)? {
        OutputStream::Body(body) if !body.is_wanted() => Err(StreamError::Closed),
        _ => Ok(()),
    })
}

fn subscribe_output(cx: &mut Cx, stream: Borrow<OutputStream>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(match output(cx, &stream)? {
        OutputStream::Log(_) => Pollable::always(),
        OutputStream::Body(body) => Pollable::new(body),
    }))
}

// ---- from one to the other ----

fn splice(
    cx: &mut Cx,
    stream: Borrow<OutputStream>,
    from: Borrow<InputStream>,
    len: u64,
) -> Result<Answer<u64>, Trap> {
    let (stream, from) = (output(cx, &stream)?, body(cx, &from)?);
    let Some(from) = from else { return Ok(Err(StreamError::Closed)) };
    let bytes = match stream.room().and_then(|room| take(&from, len.min(room as u64))) {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Err(error)),
    };
    let count = bytes.len() as u64;
    cx.owe(count as usize / BYTES_PER_FUEL, 1);
    Ok(stream.write(cx, bytes)?.map(|()| count))
}

/// Waits until both are ready, and answers 0 if it had to: the caller asks again for the rest, as it always must.
fn blocking_splice(
    cx: &mut Cx,
    stream: Borrow<OutputStream>,
    from: Borrow<InputStream>,
    len: u64,
) -> Result<Later<Answer<u64>>, Trap> {
    let (source, sink) = (body(cx, &from)?, output(cx, &stream)?);
    let waits = source.as_ref().is_some_and(|source| !source.ready())
        || matches!(&sink, OutputStream::Body(sink) if !sink.ready());
    if !waits {
        return splice(cx, stream, from, len).map(Later::ready);
    }
    Ok(Later::wait(async move {
        if let Some(source) = source {
            source.wait().await;
        }
        if let OutputStream::Body(sink) = sink {
            sink.wait().await;
        }
        Ok(Ok(0))
    }))
}
