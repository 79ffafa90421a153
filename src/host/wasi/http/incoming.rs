//! What comes in, as a guest sees it: requests to answer, responses to its own requests, and their bodies.
//!
//! Owns: `incoming-request`, `response-outparam`, `incoming-response`, `incoming-body`, `future-trailers`. Never: where they
//! come from.

use super::fields::Fields;
use super::outgoing::OutgoingResponse;
use super::words::{Method, Scheme};
use crate::host::abi::{Borrow, Own};
use crate::host::held::Meter;
use crate::host::wasi::io::Pollable;
use crate::host::wasi::streams::InputStream;
use crate::host::{Cx, Interface, Trap};
use crate::runtime::table::Resource;
use crate::transfer::{ErrorCode, Promise, Reader, Taken};
use http::{StatusCode, request};
use std::sync::Arc;

pub fn functions(interface: Interface) -> Interface {
    interface
        .resource::<IncomingRequest>()
        .call("[method]incoming-request.method", method)
        .call("[method]incoming-request.path-with-query", path_with_query)
        .call("[method]incoming-request.scheme", scheme)
        .call("[method]incoming-request.authority", authority)
        .call("[method]incoming-request.headers", request_headers)
        .call("[method]incoming-request.consume", request_body)
        .resource::<ResponseOutparam>()
        .call("[static]response-outparam.set", answer)
        .resource::<IncomingResponse>()
        .call("[method]incoming-response.status", status)
        .call("[method]incoming-response.headers", response_headers)
        .call("[method]incoming-response.consume", response_body)
        .resource::<IncomingBody>()
        .call("[method]incoming-body.stream", stream)
        .call("[static]incoming-body.finish", finish)
        .resource::<FutureTrailers>()
        .call("[method]future-trailers.subscribe", subscribe)
        .call("[method]future-trailers.get", trailers)
}

/// A request to answer.
pub struct IncomingRequest {
    head: request::Parts,
    fields: Fields,
    body: Option<Reader>,
}

impl Resource for IncomingRequest {
    const NAME: &'static str = "incoming-request";
}

impl IncomingRequest {
    pub fn new(meter: &Meter, request: http::Request<Reader>) -> Result<IncomingRequest, Trap> {
        let (mut head, body) = request.into_parts();
        let fields = Fields::of_message(meter, std::mem::take(&mut head.headers))?;
        Ok(IncomingRequest { head, fields, body: Some(body) })
    }
}

fn method(cx: &mut Cx, request: Borrow<IncomingRequest>) -> Result<Method, Trap> {
    Ok(Method::of(&cx.table.get(&request)?.head.method))
}

fn path_with_query(cx: &mut Cx, request: Borrow<IncomingRequest>) -> Result<Option<String>, Trap> {
    Ok(cx.table.get(&request)?.head.uri.path_and_query().map(|path| path.as_str().to_owned()))
}

fn scheme(cx: &mut Cx, request: Borrow<IncomingRequest>) -> Result<Option<Scheme>, Trap> {
    Ok(cx.table.get(&request)?.head.uri.scheme().map(Scheme::of))
}

fn authority(cx: &mut Cx, request: Borrow<IncomingRequest>) -> Result<Option<String>, Trap> {
    Ok(cx.table.get(&request)?.head.uri.authority().map(|authority| authority.as_str().to_owned()))
}

fn request_headers(cx: &mut Cx, request: Borrow<IncomingRequest>) -> Result<Own<Fields>, Trap> {
    cx.table.get(&request)?.fields.shown(&cx.held).map(Own)
}

fn request_body(
    cx: &mut Cx,
    request: Borrow<IncomingRequest>,
) -> Result<Result<Own<IncomingBody>, ()>, Trap> {
    Ok(IncomingBody::once(&mut cx.table.get_mut(&request)?.body))
}

/// Where the answer to a request goes. Dropped unused, it is an answer too.
pub struct ResponseOutparam(pub Promise);

impl Resource for ResponseOutparam {
    const NAME: &'static str = "response-outparam";
}

fn answer(
    _: &mut Cx,
    Own(ResponseOutparam(promise)): Own<ResponseOutparam>,
    response: Result<Own<OutgoingResponse>, ErrorCode>,
) -> Result<(), Trap> {
    promise.keep(response.map(|Own(response)| response.into_response()));
    Ok(())
}

/// The response to a request of the guest.
pub struct IncomingResponse {
    status: StatusCode,
    fields: Fields,
    body: Option<Reader>,
}

impl Resource for IncomingResponse {
    const NAME: &'static str = "incoming-response";
}

impl IncomingResponse {
    pub fn new(meter: &Meter, response: http::Response<Reader>) -> Result<IncomingResponse, Trap> {
        let (head, body) = response.into_parts();
        let fields = Fields::of_message(meter, head.headers)?;
        Ok(IncomingResponse { status: head.status, fields, body: Some(body) })
    }
}

fn status(cx: &mut Cx, response: Borrow<IncomingResponse>) -> Result<u16, Trap> {
    Ok(cx.table.get(&response)?.status.as_u16())
}

fn response_headers(cx: &mut Cx, response: Borrow<IncomingResponse>) -> Result<Own<Fields>, Trap> {
    cx.table.get(&response)?.fields.shown(&cx.held).map(Own)
}

fn response_body(
    cx: &mut Cx,
    response: Borrow<IncomingResponse>,
) -> Result<Result<Own<IncomingBody>, ()>, Trap> {
    Ok(IncomingBody::once(&mut cx.table.get_mut(&response)?.body))
}

/// A body to read.
pub struct IncomingBody {
    body: Arc<Reader>,
    streamed: bool,
}

impl Resource for IncomingBody {
    const NAME: &'static str = "incoming-body";
}

impl IncomingBody {
    fn once(body: &mut Option<Reader>) -> Result<Own<IncomingBody>, ()> {
        body.take().map(|body| Own(IncomingBody { body: Arc::new(body), streamed: false })).ok_or(())
    }
}

fn stream(cx: &mut Cx, body: Borrow<IncomingBody>) -> Result<Result<Own<InputStream>, ()>, Trap> {
    let body = cx.table.get_mut(&body)?;
    match std::mem::replace(&mut body.streamed, true) {
        true => Ok(Err(())),
        false => Ok(Ok(Own(InputStream::Body(body.body.clone())))),
    }
}

/// What of the body was not read is not wanted any more.
fn finish(_: &mut Cx, Own(body): Own<IncomingBody>) -> Result<Own<FutureTrailers>, Trap> {
    body.body.discard();
    Ok(Own(FutureTrailers { body: body.body, taken: false }))
}

/// The end of a body.
pub struct FutureTrailers {
    body: Arc<Reader>,
    taken: bool,
}

impl Resource for FutureTrailers {
    const NAME: &'static str = "future-trailers";
}

fn subscribe(cx: &mut Cx, trailers: Borrow<FutureTrailers>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(cx.table.get(&trailers)?.body.clone())))
}

type Trailers = Result<Option<Own<Fields>>, ErrorCode>;

/// None: not there yet. `Err(())`: they were taken.
fn trailers(cx: &mut Cx, trailers: Borrow<FutureTrailers>) -> Result<Option<Result<Trailers, ()>>, Trap> {
    let future = cx.table.get_mut(&trailers)?;
    if future.taken {
        return Ok(Some(Err(())));
    }
    let end = match future.body.take(usize::MAX) {
        Taken::Bytes(_) | Taken::Nothing => return Ok(None),
        Taken::End => Ok(future.body.trailers()),
        Taken::Broken(why) => Err(why),
    };
    future.taken = true;
    Ok(Some(Ok(match end {
        Ok(Some(map)) => Ok(Some(Own(Fields::of_message(&cx.held, map)?))),
        Ok(None) => Ok(None),
        Err(why) => Err(why),
    })))
}
