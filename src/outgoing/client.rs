//! One request of a guest and its response, over a connection of their own.
//!
//! Owns: HTTP/1.1 as hyper speaks it, the bounds on both messages, and what a failure is called. A redirect is a response
//! like any other: following it would be another request, which the guest makes or not. Never: who may be called.

use super::connect::{Lookup, connect};
use super::{Job, Within, timed};
use crate::limits;
use crate::pacer::{Paced, Pacer};
use crate::socket::Socket;
use crate::transfer::{ErrorCode, Promise, Reader, Writer, pipe};
use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use smol::Timer;
use smol::future::or;
use smol::net::TcpStream;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// What one takes of the io thread at least, beside what it is seen to.
const TAKES: Duration = Duration::from_micros(100);

/// Carries a request out, at most for [`limits::OUTGOING_WITHIN`].
pub(super) async fn carry_out(job: Job, lookup: Lookup) {
    let late = async {
        Timer::after(limits::OUTGOING_WITHIN).await;
    };
    let pacer = job.pacer.clone();
    pacer.counted(Box::pin(or(exchange(job, &lookup), late))).await;
}

async fn exchange(job: Job, lookup: &Lookup) {
    let Job { request, target, allowed, within, promise, wanted, refusals, place, pacer } = job;
    let unwanted = async {
        let _ = wanted.recv().await; // an error: the guest has let go
        None
    };
    let connected = async {
        if let Some(rest) = pacer.turn(TAKES) {
            rest.await;
        }
        Some(connect(&target, (place.1.who(), &allowed), lookup, within.connect, &refusals).await)
    };
    match or(unwanted, connected).await {
        Some(Ok(stream)) => {
            let unwanted = async {
                let _ = wanted.recv().await;
                Err(ErrorCode::ConnectionTerminated)
            };
            converse(stream, request, within, promise, unwanted, &pacer).await;
        }
        Some(Err(why)) => {
            // The guest still writes its body, and then learns the reason.
            request.body().discard();
            promise.keep(Err(why));
            let _ = wanted.recv().await;
        }
        None => {}
    }
    drop(place);
}

async fn converse(
    stream: TcpStream,
    request: http::Request<Reader>,
    within: Within,
    promise: Promise,
    unwanted: impl Future<Output = Result<http::Response<Incoming>, ErrorCode>>,
    pacer: &Pacer,
) {
    let Within { answer, silence, .. } = within;
    // Nobody's: a rest within a read would count as the peer's silence, so it is taken between two pieces.
    let stream = Paced::new(stream, Pacer::default(), Pacer::default());
    let handshake = http1::Builder::new()
        .max_buf_size(limits::HTTP_HEAD_BYTES)
        .max_headers(limits::HTTP_HEAD_FIELDS)
        .handshake(Socket::new(stream, silence))
        .await;
    let (mut sender, connection) = match handshake {
        Ok(parts) => parts,
        Err(e) => return promise.keep(Err(code(&e))),
    };
    let request = request.map(|body| Bounded { body, bytes: 0 });
    let exchanged = async {
        let answered = async { sender.send_request(request).await.map_err(|e| code(&e)) };
        let answered = timed(answer, ErrorCode::HttpResponseTimeout, answered);
        match or(unwanted, answered).await.and_then(acceptable) {
            Err(why) => promise.keep(Err(why)),
            Ok(response) => {
                let (head, body) = response.into_parts();
                let (writer, reader) = pipe(None);
                promise.keep(Ok(http::Response::from_parts(head, reader)));
                let read = async {
                    if let Err(why) = pass_on(body, &writer, silence, pacer).await {
                        writer.fail(why);
                    }
                };
                or(poll_fn(|context| writer.poll_unread(context)), read).await;
            }
        }
    };
    let driven = async {
        // What went wrong is told by the request or its response.
        let _ = connection.await;
        pending().await
    };
    or(exchanged, driven).await;
}

fn acceptable(response: http::Response<Incoming>) -> Result<http::Response<Incoming>, ErrorCode> {
    let length = response.body().size_hint().lower();
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Err(ErrorCode::HttpUpgradeFailed),
        _ if length > limits::OUTGOING_BODY_BYTES => Err(ErrorCode::HttpResponseBodySize(Some(length))),
        _ => Ok(response),
    }
}

/// Gives the body on as the guest takes it.
async fn pass_on(mut body: Incoming, to: &Writer, silence: Duration, pacer: &Pacer) -> Result<(), ErrorCode> {
    let mut bytes = 0;
    loop {
        poll_fn(|context| to.poll_room(context)).await;
        if let Some(rest) = pacer.rest() {
            rest.await;
        }
        let next = async {
            let next = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            next.transpose().map_err(|e| code(&e))
        };
        let Some(frame) = timed(silence, ErrorCode::ConnectionReadTimeout, next).await? else { break };
        // Of a body that nobody reads any more, or that has ended, the rest is not wanted.
        match frame.into_data() {
            Ok(data) => {
                bytes += data.len() as u64;
                if bytes > limits::OUTGOING_BODY_BYTES {
                    return Err(ErrorCode::HttpResponseBodySize(Some(bytes)));
                }
                let _ = to.write(data);
            }
            Err(frame) => {
                let _ = to.finish(frame.into_trailers().ok());
            }
        }
    }
    let _ = to.finish(None);
    Ok(())
}

/// A request's body, up to its bound. It does not rest: its time counts as the peer's.
struct Bounded {
    body: Reader,
    bytes: u64,
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            if self.bytes > limits::OUTGOING_BODY_BYTES {
                return Poll::Ready(Some(Err(ErrorCode::HttpRequestBodySize(Some(self.bytes)))));
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What hyper says, in the words of `wasi:http`.
fn code(error: &hyper::Error) -> ErrorCode {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(own) = cause.downcast_ref::<ErrorCode>() {
            return own.clone();
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::UnexpectedEof => ErrorCode::HttpResponseIncomplete,
                io::ErrorKind::TimedOut => ErrorCode::ConnectionWriteTimeout,
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ErrorCode::HttpProtocolError,
                _ => ErrorCode::ConnectionTerminated,
            };
        }
        source = cause.source();
    }
    if error.is_parse_too_large() {
        ErrorCode::HttpResponseHeaderSectionSize(Some(limits::HTTP_HEAD_BYTES as u32))
    } else if error.is_parse() {
        ErrorCode::HttpProtocolError
    } else if error.is_incomplete_message() {
        ErrorCode::HttpResponseIncomplete
    } else {
        ErrorCode::ConnectionTerminated
    }
}
