//! One exchange: a request of a guest, its connection, its response.
//!
//! Owns: the order, the times and sizes of both messages, and the case of `error-code` for each thing that goes wrong. Never:
//! which hosts and addresses are allowed, or the protocol (hyper's).
//!
//! Whoever waits may go at any time: a response that nobody wants any more, or an instance that has ended, drops the exchange
//! and its connection.

use super::connect::{Failure, Resolve, connect};
use super::policy::Host;
use super::{Asker, Job, Times};
use crate::limits;
use crate::socket::Socket;
use crate::transfer::{self, ErrorCode, Promise, Reader, Writer};
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use smol::Timer;
use smol::channel::Receiver;
use smol::future::or;
use smol::net::TcpStream;
use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Where a request goes.
struct Target {
    host: Host,
    port: u16,
    /// As the guest wrote it.
    authority: HeaderValue,
}

/// From a job to the last byte of its response.
pub async fn exchange(job: Job, resolver: Arc<dyn Resolve>) {
    let Job { request, times, asker, promise, unwanted, gone, places } = job;
    let deadline = Instant::now() + limits::OUTGOING_WITHIN;
    let life = async {
        let arrived =
            or(async { Some(arrive(&request, times, &asker, &*resolver).await) }, closed(&unwanted)).await;
        match arrived {
            None => {}
            Some(Ok((stream, target))) => {
                let sent = converse(stream, target, request, times, deadline, promise, &unwanted);
                sent.await;
                drop(places);
            }
            Some(Err(code)) => {
                promise.keep(Err(code));
                drop(places);
                // Whoever still writes the request shall learn of this, and not of a body that nobody reads.
                let body = request.into_body();
                body.discard();
                let left = async { closed::<()>(&unwanted).await.unwrap_or_default() };
                or(poll_fn(|context| body.poll_ready(context)), left).await;
            }
        }
    };
    let left = async { closed::<()>(&gone).await.unwrap_or_default() };
    let late = async {
        Timer::at(deadline).await;
    };
    or(life, or(left, late)).await;
}

async fn closed<T>(channel: &Receiver<Infallible>) -> Option<T> {
    let _ = channel.recv().await; // nothing is ever sent: closed
    None
}

/// What a future comes to within this time.
async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    let late = async {
        Timer::after(time).await;
        None
    };
    or(async { Some(future.await) }, late).await
}

/// A connection to where the request goes, if it may go there.
async fn arrive(
    request: &Request<Reader>,
    times: Times,
    asker: &Asker,
    resolver: &dyn Resolve,
) -> Result<(TcpStream, Target), ErrorCode> {
    let target = target(request)?;
    let Target { host, port, .. } = &target;
    let named = |host: &Host| match port {
        80 => host.to_string(),
        port => format!("{host}:{port}"),
    };
    let mend = |host: &Host| {
        format!(
            "add \"{}\" to allow under [http] in tartlet.toml, or to the claim http of its token",
            named(host)
        )
    };
    if !asker.policy.allows(host, *port) {
        asker.warn(&format!("{} is not asked for a program that may not: {}.", named(host), mend(host)));
        return Err(ErrorCode::HttpRequestDenied);
    }
    let time = times.connect.unwrap_or(Duration::MAX).min(limits::OUTGOING_CONNECT_WITHIN);
    match within(time, connect(resolver, &asker.policy, host, *port)).await {
        None => Err(ErrorCode::ConnectionTimeout),
        Some(Ok(stream)) => Ok((stream, target)),
        Some(Err(Failure::Code(code))) => Err(code),
        Some(Err(Failure::Prohibited(address))) => {
            asker.warn(&format!(
                "{host} is at {}, which is no address of the public internet: {}.",
                address.ip(),
                mend(&Host::Address(address.ip()))
            ));
            Err(ErrorCode::DestinationIpProhibited)
        }
    }
}

fn target(request: &Request<Reader>) -> Result<Target, ErrorCode> {
    let uri = request.uri();
    let authority = uri.authority().ok_or(ErrorCode::HttpRequestUriInvalid)?;
    if uri.scheme() == Some(&Scheme::HTTPS) {
        return Err(ErrorCode::internal(format!(
            "https is not spoken here: run a TLS proxy for {} on this machine or in its network, allow its address, and ask it \
             by http",
            authority.host()
        )));
    }
    if uri.scheme() != Some(&Scheme::HTTP) || authority.as_str().contains('@') {
        return Err(ErrorCode::HttpRequestUriInvalid);
    }
    if *request.method() == Method::CONNECT {
        return Err(ErrorCode::HttpRequestMethodInvalid);
    }
    // A port that is written and is none is no port to guess.
    let port = match authority.as_str().len() > authority.host().len() {
        true => authority.port_u16().filter(|port| *port > 0).ok_or(ErrorCode::HttpRequestUriInvalid)?,
        false => 80,
    };
    let host = authority.host().parse().map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    let written = HeaderValue::from_str(authority.as_str()).map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
    Ok(Target { host, port, authority: written })
}

/// Sends the request, keeps the promise, and passes the response's body on.
async fn converse(
    stream: TcpStream,
    target: Target,
    mut request: Request<Reader>,
    times: Times,
    deadline: Instant,
    promise: Promise,
    unwanted: &Receiver<Infallible>,
) {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // From a path that was part of a sound URI.
    *request.uri_mut() = path.parse().unwrap_or(Uri::from_static("/"));
    request.headers_mut().insert(header::HOST, target.authority);
    let declared = request.body().size_hint().exact();
    if declared.is_some_and(|length| length > limits::OUTGOING_BODY_BYTES) {
        return promise.keep(Err(ErrorCode::HttpRequestBodySize(declared)));
    }
    let request = request.map(|body| Counted { body, left: limits::OUTGOING_BODY_BYTES });
    let handshake = http1::Builder::new()
        .max_buf_size(limits::HTTP_HEAD_BYTES)
        .max_headers(limits::HTTP_HEAD_FIELDS)
        .handshake(Socket::new(stream))
        .await;
    let (mut sender, connection) = match handshake {
        Ok(pair) => pair,
        Err(cause) => return promise.keep(Err(code(&cause))),
    };
    let driven = async {
        let _ = connection.await; // whoever waits for an answer is told by its own future
        std::future::pending().await
    };
    let talk = async {
        let time = times.first_byte.unwrap_or(Duration::MAX).min(limits::OUTGOING_FIRST_BYTE_WITHIN);
        let first =
            or(async { Some(within(time, sender.send_request(request)).await) }, closed(unwanted)).await;
        match first {
            None => {}
            Some(None) => promise.keep(Err(ErrorCode::ConnectionReadTimeout)),
            Some(Some(Err(cause))) => promise.keep(Err(code(&cause))),
            Some(Some(Ok(response))) => {
                if let Some((body, writer)) = hand_over(response, promise) {
                    receive(body, writer, times, deadline).await;
                }
            }
        }
    };
    or(talk, driven).await;
}

/// Gives the head to who asked; what is left is the body and where it goes.
fn hand_over(response: Response<Incoming>, promise: Promise) -> Option<(Incoming, Writer)> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        promise.keep(Err(ErrorCode::HttpUpgradeFailed)); // nobody asked for one
        return None;
    }
    let (head, body) = response.into_parts();
    let declared = body.size_hint().exact();
    if declared.is_some_and(|length| length > limits::OUTGOING_BODY_BYTES) {
        promise.keep(Err(ErrorCode::HttpResponseBodySize(declared)));
        return None;
    }
    let (writer, reader) = transfer::pipe(declared);
    promise.keep(Ok(Response::from_parts(head, reader)));
    Some((body, writer))
}

/// Passes a body on as fast as the guest reads it.
async fn receive(mut body: Incoming, writer: Writer, times: Times, deadline: Instant) {
    let between = times.between_bytes.unwrap_or(Duration::MAX).min(limits::OUTGOING_BETWEEN_BYTES);
    let mut bytes = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if within(left, poll_fn(|context| writer.poll_room(context))).await.is_none() {
            return writer.fail(ErrorCode::HttpResponseTimeout);
        }
        if writer.room().is_none() {
            return; // the guest reads no further
        }
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        match within(between.min(left), frame).await {
            None => return writer.fail(ErrorCode::ConnectionReadTimeout),
            Some(None) => return finish(&writer, None),
            Some(Some(Err(cause))) => return writer.fail(code(&cause)),
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    bytes += data.len() as u64;
                    if bytes > limits::OUTGOING_BODY_BYTES {
                        return writer
                            .fail(ErrorCode::HttpResponseBodySize(Some(limits::OUTGOING_BODY_BYTES)));
                    }
                    if writer.write(data).is_err() {
                        return; // the guest reads no further; hyper has kept the declared length
                    }
                }
                Err(frame) => return finish(&writer, frame.into_trailers().ok()),
            },
        }
    }
}

/// hyper has kept the declared length; a guest that reads no further needs no end.
fn finish(writer: &Writer, trailers: Option<http::HeaderMap>) {
    let _ = writer.finish(trailers);
}

/// The case of `error-code` for what hyper says.
fn code(cause: &hyper::Error) -> ErrorCode {
    let mut next: Option<&(dyn Error + 'static)> = cause.source();
    while let Some(inner) = next {
        if let Some(ours) = inner.downcast_ref::<ErrorCode>() {
            return ours.clone(); // of the request's body
        }
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::TimedOut => ErrorCode::ConnectionWriteTimeout,
                io::ErrorKind::UnexpectedEof => ErrorCode::HttpResponseIncomplete,
                _ => ErrorCode::ConnectionTerminated,
            };
        }
        next = inner.source();
    }
    if cause.is_parse_too_large() {
        ErrorCode::HttpResponseHeaderSectionSize(Some(limits::HTTP_HEAD_BYTES as u32))
    } else if cause.is_parse() {
        ErrorCode::HttpProtocolError
    } else if cause.is_incomplete_message() {
        ErrorCode::HttpResponseIncomplete
    } else {
        ErrorCode::ConnectionTerminated
    }
}

/// A request's body, no longer than it may be.
struct Counted {
    body: Reader,
    left: u64,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            match self.left.checked_sub(bytes) {
                Some(left) => self.left = left,
                None => {
                    return Poll::Ready(Some(Err(ErrorCode::HttpRequestBodySize(Some(
                        limits::OUTGOING_BODY_BYTES,
                    )))));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
