//! What goes out, as a guest makes it: responses, requests of its own, and their bodies.
//!
//! Owns: `outgoing-response`, `outgoing-request`, `request-options`, `outgoing-body`, `future-incoming-response`, and the
//! function that sends a request off. Never: where they go.

use super::fields::Fields;
use super::incoming::IncomingResponse;
use super::words::{Method, Scheme};
use crate::host::abi::{Borrow, Own};
use crate::host::held::{Charge, Meter};
use crate::host::wasi::io::{Pollable, Readiness};
use crate::host::wasi::streams::OutputStream;
use crate::host::{Cx, Interface, Trap};
use crate::limits;
use crate::outgoing::{Hold, Sent, Within};
use crate::runtime::table::Resource;
use crate::transfer::{ErrorCode, Promised, Reader, Refused, Writer, empty, pipe};
use http::header::CONTENT_LENGTH;
use http::{StatusCode, Uri};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub fn functions(interface: Interface) -> Interface {
    let interface = interface
        .resource::<OutgoingResponse>()
        .call("[constructor]outgoing-response", new_response)
        .call("[method]outgoing-response.status-code", status_code)
        .call("[method]outgoing-response.set-status-code", set_status_code)
        .call("[method]outgoing-response.headers", response_headers)
        .call("[method]outgoing-response.body", response_body)
        .resource::<OutgoingRequest>()
        .call("[constructor]outgoing-request", new_request)
        .call("[method]outgoing-request.method", method)
        .call("[method]outgoing-request.set-method", set_method)
        .call("[method]outgoing-request.path-with-query", path_with_query)
        .call("[method]outgoing-request.set-path-with-query", set_path_with_query)
        .call("[method]outgoing-request.scheme", scheme)
        .call("[method]outgoing-request.set-scheme", set_scheme)
        .call("[method]outgoing-request.authority", authority)
        .call("[method]outgoing-request.set-authority", set_authority)
        .call("[method]outgoing-request.headers", request_headers)
        .call("[method]outgoing-request.body", request_body)
        .resource::<OutgoingBody>()
        .call("[method]outgoing-body.write", write)
        .call("[static]outgoing-body.finish", finish)
        .resource::<FutureIncomingResponse>()
        .call("[method]future-incoming-response.subscribe", subscribe)
        .call("[method]future-incoming-response.get", response);
    interface
        .resource::<RequestOptions>()
        .call("[constructor]request-options", |_: &mut Cx| Ok(Own(RequestOptions::default())))
        .call("[method]request-options.connect-timeout", |cx: &mut Cx, options| {
            get(cx, options, |o| o.connect)
        })
        .call("[method]request-options.set-connect-timeout", |cx: &mut Cx, options, time| {
            set(cx, options, time, |o| &mut o.connect)
        })
        .call("[method]request-options.first-byte-timeout", |cx: &mut Cx, options| {
            get(cx, options, |o| o.first_byte)
        })
        .call("[method]request-options.set-first-byte-timeout", |cx: &mut Cx, options, time| {
            set(cx, options, time, |o| &mut o.first_byte)
        })
        .call("[method]request-options.between-bytes-timeout", |cx: &mut Cx, options| {
            get(cx, options, |o| o.between_bytes)
        })
        .call("[method]request-options.set-between-bytes-timeout", |cx: &mut Cx, options, time| {
            set(cx, options, time, |o| &mut o.between_bytes)
        })
}

/// `wasi:http/outgoing-handler`, where a request that a guest has made is sent off.
pub fn handler() -> Interface {
    Interface::new("wasi:http/outgoing-handler@0.2").call("handle", handle)
}

/// Fuel of one request: a connection and the heads of two messages take the io thread some 100 µs.
const REQUEST_FUEL: u64 = 100_000;

/// A request that is not made, for whatever reason, has that reason as its response: programs look for it there.
fn handle(
    cx: &mut Cx,
    Own(request): Own<OutgoingRequest>,
    options: Option<Own<RequestOptions>>,
) -> Result<Result<Own<FutureIncomingResponse>, ErrorCode>, Trap> {
    cx.owed_fuel += REQUEST_FUEL;
    let options = options.map_or_else(RequestOptions::default, |Own(options)| options);
    let request = match request.into_request() {
        Ok(request) => request,
        Err(why) => return Ok(Err(why)),
    };
    let charge = cx.held.charge(limits::HTTP_HEAD_BYTES + limits::BODY_BYTES_IN_FLIGHT)?;
    let within = Within::new(options.connect, options.first_byte, options.between_bytes);
    let Sent { promised, hold } = cx.line.send(request, within);
    Ok(Ok(Own(FutureIncomingResponse { promised, waiting: Some(Waiting { charge, _hold: hold }) })))
}

// ---- what a message is made of ----

/// Fields and body of a message in the making.
struct Content {
    fields: Fields,
    /// What its body is read from, once the guest has asked for it.
    body: Option<Reader>,
}

impl Content {
    fn new(fields: Fields) -> Content {
        Content { fields, body: None }
    }

    /// The body to write, once. A `Content-Length` among the fields is what it must come to.
    fn open(&mut self, meter: &Meter) -> Result<Result<Own<OutgoingBody>, ()>, Trap> {
        let declared = match self.fields.map().get(CONTENT_LENGTH) {
            None => None,
            Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
                Some(length) => Some(length),
                None => return Ok(Err(())),
            },
        };
        if self.body.is_some() {
            return Ok(Err(()));
        }
        let (writer, reader) = pipe(declared);
        reader.carry(Box::new(meter.charge(limits::BODY_BYTES_IN_FLIGHT)?));
        self.body = Some(reader);
        Ok(Ok(Own(OutgoingBody { body: Arc::new(writer), streamed: false, finished: false })))
    }

    fn body(&mut self) -> Reader {
        self.body.take().unwrap_or_else(empty)
    }
}

// ---- responses ----

/// A response in the making.
pub struct OutgoingResponse {
    status: StatusCode,
    content: Content,
}

impl Resource for OutgoingResponse {
    const NAME: &'static str = "outgoing-response";
}

impl OutgoingResponse {
    pub fn into_response(mut self) -> http::Response<Reader> {
        let mut response = http::Response::new(self.content.body());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.content.fields.into_map();
        response
    }
}

fn new_response(_: &mut Cx, Own(fields): Own<Fields>) -> Result<Own<OutgoingResponse>, Trap> {
    Ok(Own(OutgoingResponse { status: StatusCode::OK, content: Content::new(fields) }))
}

fn status_code(cx: &mut Cx, response: Borrow<OutgoingResponse>) -> Result<u16, Trap> {
    Ok(cx.table.get(&response)?.status.as_u16())
}

/// A final one: informational ones are the protocol's.
fn set_status_code(
    cx: &mut Cx,
    response: Borrow<OutgoingResponse>,
    status: u16,
) -> Result<Result<(), ()>, Trap> {
    let response = cx.table.get_mut(&response)?;
    match StatusCode::from_u16(status) {
        Ok(status) if !status.is_informational() => {
            response.status = status;
            Ok(Ok(()))
        }
        _ => Ok(Err(())),
    }
}

fn response_headers(cx: &mut Cx, response: Borrow<OutgoingResponse>) -> Result<Own<Fields>, Trap> {
    cx.table.get(&response)?.content.fields.shown(&cx.held).map(Own)
}

fn response_body(
    cx: &mut Cx,
    response: Borrow<OutgoingResponse>,
) -> Result<Result<Own<OutgoingBody>, ()>, Trap> {
    cx.table.get_mut(&response)?.content.open(&cx.held)
}

// ---- requests ----

/// A request in the making.
pub struct OutgoingRequest {
    method: Method,
    path_with_query: Option<String>,
    scheme: Option<Scheme>,
    authority: Option<String>,
    content: Content,
    /// For the texts among these.
    texts: Charge,
}

impl Resource for OutgoingRequest {
    const NAME: &'static str = "outgoing-request";
}

impl OutgoingRequest {
    /// With an absolute URI: `https` and `/` stand for what the guest left out.
    pub fn into_request(mut self) -> Result<http::Request<Reader>, ErrorCode> {
        let scheme = self.scheme.as_ref().map_or(Some(http::uri::Scheme::HTTPS), Scheme::as_http);
        let authority = self.authority.take().ok_or(ErrorCode::HttpRequestUriInvalid)?;
        let uri = Uri::builder()
            .scheme(scheme.ok_or(ErrorCode::HttpRequestUriInvalid)?)
            .authority(authority)
            .path_and_query(self.path_with_query.take().unwrap_or_else(|| "/".to_owned()))
            .build()
            .map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
        let mut request = http::Request::new(self.content.body());
        *request.method_mut() = self.method.as_http().ok_or(ErrorCode::HttpRequestMethodInvalid)?;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.content.fields.into_map();
        Ok(request)
    }

    /// Sets a part, if it is valid, and counts its text in the place of the old one's.
    fn set<T: Text>(
        &mut self,
        part: impl FnOnce(&mut OutgoingRequest) -> &mut T,
        value: T,
        valid: impl FnOnce(&T) -> bool,
    ) -> Result<Result<(), ()>, Trap> {
        if value.bytes() > limits::URI_BYTES || !valid(&value) {
            return Ok(Err(()));
        }
        let new = value.bytes();
        let old = std::mem::replace(part(self), value).bytes();
        self.texts.set(self.texts.bytes() - old + new)?;
        Ok(Ok(()))
    }
}

/// A part of a request that may be a text.
trait Text {
    fn bytes(&self) -> usize;
}

impl Text for Method {
    fn bytes(&self) -> usize {
        match self {
            Method::Other(name) => name.len(),
            _ => 0,
        }
    }
}

impl Text for Scheme {
    fn bytes(&self) -> usize {
        match self {
            Scheme::Other(name) => name.len(),
            _ => 0,
        }
    }
}

impl Text for String {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl<T: Text> Text for Option<T> {
    fn bytes(&self) -> usize {
        self.as_ref().map_or(0, Text::bytes)
    }
}

fn new_request(cx: &mut Cx, Own(fields): Own<Fields>) -> Result<Own<OutgoingRequest>, Trap> {
    Ok(Own(OutgoingRequest {
        method: Method::Get,
        path_with_query: None,
        scheme: None,
        authority: None,
        content: Content::new(fields),
        texts: cx.held.nothing(),
    }))
}

type Request = Borrow<OutgoingRequest>;

fn method(cx: &mut Cx, request: Request) -> Result<Method, Trap> {
    Ok(cx.table.get(&request)?.method.clone())
}

fn set_method(cx: &mut Cx, request: Request, method: Method) -> Result<Result<(), ()>, Trap> {
    cx.table.get_mut(&request)?.set(
        |request| &mut request.method,
        method,
        |method| method.as_http().is_some(),
    )
}

fn path_with_query(cx: &mut Cx, request: Request) -> Result<Option<String>, Trap> {
    Ok(cx.table.get(&request)?.path_with_query.clone())
}

fn set_path_with_query(cx: &mut Cx, request: Request, path: Option<String>) -> Result<Result<(), ()>, Trap> {
    let valid = |path: &Option<String>| {
        path.as_ref().is_none_or(|path| path.parse::<http::uri::PathAndQuery>().is_ok())
    };
    cx.table.get_mut(&request)?.set(|request| &mut request.path_with_query, path, valid)
}

fn scheme(cx: &mut Cx, request: Request) -> Result<Option<Scheme>, Trap> {
    Ok(cx.table.get(&request)?.scheme.clone())
}

fn set_scheme(cx: &mut Cx, request: Request, scheme: Option<Scheme>) -> Result<Result<(), ()>, Trap> {
    let valid = |scheme: &Option<Scheme>| scheme.as_ref().is_none_or(|scheme| scheme.as_http().is_some());
    cx.table.get_mut(&request)?.set(|request| &mut request.scheme, scheme, valid)
}

fn authority(cx: &mut Cx, request: Request) -> Result<Option<String>, Trap> {
    Ok(cx.table.get(&request)?.authority.clone())
}

fn set_authority(cx: &mut Cx, request: Request, authority: Option<String>) -> Result<Result<(), ()>, Trap> {
    let valid = |authority: &Option<String>| {
        authority.as_ref().is_none_or(|authority| authority.parse::<http::uri::Authority>().is_ok())
    };
    cx.table.get_mut(&request)?.set(|request| &mut request.authority, authority, valid)
}

fn request_headers(cx: &mut Cx, request: Request) -> Result<Own<Fields>, Trap> {
    cx.table.get(&request)?.content.fields.shown(&cx.held).map(Own)
}

fn request_body(cx: &mut Cx, request: Request) -> Result<Result<Own<OutgoingBody>, ()>, Trap> {
    cx.table.get_mut(&request)?.content.open(&cx.held)
}

/// How long the guest would wait for each step.
#[derive(Default)]
pub struct RequestOptions {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub between_bytes: Option<Duration>,
}

impl Resource for RequestOptions {
    const NAME: &'static str = "request-options";
}

/// In nanoseconds.
fn get(
    cx: &mut Cx,
    options: Borrow<RequestOptions>,
    time: impl FnOnce(&RequestOptions) -> Option<Duration>,
) -> Result<Option<u64>, Trap> {
    Ok(time(cx.table.get(&options)?).map(|time| time.as_nanos() as u64))
}

fn set(
    cx: &mut Cx,
    options: Borrow<RequestOptions>,
    nanoseconds: Option<u64>,
    time: impl FnOnce(&mut RequestOptions) -> &mut Option<Duration>,
) -> Result<Result<(), ()>, Trap> {
    *time(cx.table.get_mut(&options)?) = nanoseconds.map(Duration::from_nanos);
    Ok(Ok(()))
}

// ---- bodies ----

/// A body to write. Dropped unfinished, it is broken.
pub struct OutgoingBody {
    body: Arc<Writer>,
    streamed: bool,
    finished: bool,
}

impl Resource for OutgoingBody {
    const NAME: &'static str = "outgoing-body";
}

impl Drop for OutgoingBody {
    fn drop(&mut self) {
        if !self.finished {
            self.body.fail(ErrorCode::ConnectionTerminated); // its stream may live on
        }
    }
}

fn write(cx: &mut Cx, body: Borrow<OutgoingBody>) -> Result<Result<Own<OutputStream>, ()>, Trap> {
    let body = cx.table.get_mut(&body)?;
    match std::mem::replace(&mut body.streamed, true) {
        true => Ok(Err(())),
        false => Ok(Ok(Own(OutputStream::Body(body.body.clone())))),
    }
}

fn finish(
    _: &mut Cx,
    Own(mut body): Own<OutgoingBody>,
    trailers: Option<Own<Fields>>,
) -> Result<Result<(), ErrorCode>, Trap> {
    body.finished = true;
    let trailers = trailers.map(|Own(fields)| {
        let (map, charge) = fields.into_parts();
        body.body.carry(Box::new(charge)); // of a message that may never be sent
        map
    });
    Ok(match body.body.finish(trailers) {
        Err(Refused::Length(bytes)) => Err(ErrorCode::HttpResponseBodySize(Some(bytes))),
        // Somebody who has stopped reading wants no end either.
        Ok(()) | Err(Refused::Closed) => Ok(()),
    })
}

// ---- the answer to a request ----

/// The response that a request of the guest will have. Dropping it untaken gives the request up.
pub struct FutureIncomingResponse {
    promised: Arc<Promised>,
    /// None: the response was taken.
    waiting: Option<Waiting>,
}

struct Waiting {
    /// For the response's head and body.
    charge: Charge,
    _hold: Hold,
}

impl Resource for FutureIncomingResponse {
    const NAME: &'static str = "future-incoming-response";
}

impl Drop for FutureIncomingResponse {
    fn drop(&mut self) {
        // A pollable of it may outlive it, and the charge does not.
        self.promised.abandon();
    }
}

impl Readiness for Promised {
    fn ready(&self) -> bool {
        self.is_settled()
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(poll_fn(|context| self.poll_settled(context)))
    }
}

fn subscribe(cx: &mut Cx, future: Borrow<FutureIncomingResponse>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(cx.table.get(&future)?.promised.clone())))
}

type Response = Result<Own<IncomingResponse>, ErrorCode>;

/// None: not there yet. `Err(())`: it was taken.
fn response(
    cx: &mut Cx,
    future: Borrow<FutureIncomingResponse>,
) -> Result<Option<Result<Response, ()>>, Trap> {
    let future = cx.table.get_mut(&future)?;
    if !future.promised.is_settled() {
        return Ok(None);
    }
    let Some(Waiting { mut charge, .. }) = future.waiting.take() else { return Ok(Some(Err(()))) };
    let outcome = future.promised.take().unwrap_or(Err(ErrorCode::ConnectionTerminated));
    let response = match outcome {
        Ok(response) => {
            charge.set(limits::BODY_BYTES_IN_FLIGHT)?; // the head counts as fields
            response.body().carry(Box::new(charge));
            Ok(Own(IncomingResponse::new(&cx.held, response)?))
        }
        Err(why) => Err(why),
    };
    Ok(Some(Ok(response)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bed::{Bed, number};
    use crate::transfer::promise;
    use wasmi::Val;

    const TYPES: &str = "wasi:http/types@0.2.4";
    const POLL: &str = "wasi:io/poll@0.2.4";

    #[test]
    fn trailers_count_for_as_long_as_their_body() {
        let mut bed = Bed::new();
        let held = |bed: &mut Bed| bed.cx().held.held() - bed.cx().table.bytes();
        let new = |bed: &mut Bed| number(bed.call(TYPES, "[constructor]fields", &[]).unwrap());
        let fields = new(&mut bed);
        let response = bed.call(TYPES, "[constructor]outgoing-response", &[&fields]).unwrap();
        let at = bed.call(TYPES, "[method]outgoing-response.body", &[&number(response)]).unwrap();
        let body = number(bed.u32_at(at + 4).into());
        let before = held(&mut bed);
        let trailers = new(&mut bed);
        let (name, value) = (bed.text("x"), bed.bytes(&[b'y'; 10_000]));
        bed.call(TYPES, "[method]fields.append", &[&trailers, &name, &value]).unwrap();
        let some = [Val::I32(1), trailers[0].clone()];
        bed.call(TYPES, "[static]outgoing-body.finish", &[&body, &some]).unwrap();
        assert!(held(&mut bed) >= before + 10_000, "{before}");
        bed.drop_handle(TYPES, "outgoing-response", response as u32).unwrap();
        assert_eq!(held(&mut bed), 0);
    }

    /// The story: a guest let responses come, took a pollable of each and dropped the future. The charge went with that; the
    /// pollable kept head and body, as many as there may be handles.
    #[test]
    fn a_response_that_was_not_taken_goes_with_its_future_whoever_waits_for_it() {
        let mut bed = Bed::new();
        let ((promise, promised), (writer, reader)) = (promise(), pipe(None));
        let future = bed.cx().table.insert(FutureIncomingResponse { promised, waiting: None }).unwrap();
        let subscribed =
            bed.call(TYPES, "[method]future-incoming-response.subscribe", &[&number(future.into())]);
        let pollable: [Val; 1] = number(subscribed.unwrap());
        promise.keep(Ok(http::Response::new(reader)));
        assert!(writer.room().is_some());
        bed.drop_handle(TYPES, "future-incoming-response", future).unwrap();
        assert_eq!(writer.room(), None, "nobody will read it");
        assert_eq!(bed.call(POLL, "[method]pollable.ready", &[&pollable]), Ok(1));
    }
}
