//! One request of a server instance: let in, given to an instance of its own, and answered by it.
//!
//! Owns: which requests reach a program, the bytes of their bodies on the way in, and the answer where the program
//! gives none. Never: the protocol (hyper's), or sockets.
//!
//! Whatever takes the answer away (a client that is gone, a stopped server instance) drops a future or a body here, and
//! with it the instance ends. One whose answer is out, or of which no body is wanted, has a while to end by itself.

use super::names::Names;
use crate::limits;
use crate::pacer::Pacer;
use crate::runtime::serve::{Answering, Leash, Server};
use crate::runtime::{Ending, Runtime};
use crate::transfer::{self, Call, ErrorCode, Promised, Reader, Writer};
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use smol::channel::{Receiver, Sender};
use smol::future::{or, poll_once, yield_now};
use smol::lock::{OnceCell, Semaphore};
use smol::{Executor, Task, Timer};
use std::borrow::Cow;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Where the requests of one server instance are taken.
pub struct Desk {
    runtime: Runtime,
    server: Arc<Server>,
    names: Arc<Names>,
    /// Requests that may be answered at a time.
    places: Arc<Semaphore>,
    /// Weak: what runs on it holds this desk.
    executor: Weak<Executor<'static>>,
    /// Of its visitors.
    pacer: Pacer,
}

/// An answer that is not the program's.
struct Refusal(StatusCode, Cow<'static, str>);

/// What comes first of a request that was given to an instance.
enum First {
    Settled,
    Refused(Refusal),
}

impl Desk {
    pub fn new(
        runtime: Runtime,
        server: Arc<Server>,
        names: Arc<Names>,
        executor: Weak<Executor<'static>>,
        pacer: Pacer,
    ) -> Desk {
        let places = Arc::new(Semaphore::new(limits::HTTP_REQUESTS));
        Desk { runtime, server, names, places, executor, pacer }
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        Ok(self.respond(request).await.unwrap_or_else(Refusal::response))
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Answer>, Refusal> {
        if let Some(rest) = self.pacer.turn(Duration::ZERO) {
            rest.await;
        }
        self.admit(&request)?;
        let (mut head, mut body) = request.into_parts();
        let declared = body.size_hint().exact();
        if declared.is_some_and(|length| length > limits::HTTP_BODY_BYTES) {
            return Err(too_large());
        }
        let place = self.place().await?;
        // Asked for, the body makes hyper send `100 Continue`, which it does no more once there is an answer.
        let mut early = None;
        if head.headers.contains_key(header::EXPECT) {
            early = poll_once(next(&mut body)).await;
            yield_now().await;
        }
        let host = head.headers.get(header::HOST).cloned();
        head.uri = absolute(head.uri, host, self.server.serve.port);
        let (asks_head, (writer, reader)) = (head.method == Method::HEAD, transfer::pipe(declared));
        let (promise, promised) = transfer::promise();
        let call = Call { request: Request::from_parts(head, reader), answer: promise };
        let life = self
            .runtime
            .answer(&self.server, call)
            .map_err(|refusal| Refusal(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string().into()))?;
        let (rest, answered) = smol::channel::bounded(1);
        let held = Held { leash: Some(life.leash()), rest };
        let ending = Arc::new(OnceCell::new());
        let told = ending.clone();
        // The place is taken for as long as there is an instance, whatever becomes of its answer.
        self.spawn(async move {
            let _place = place;
            let _ = told.set(last(&life, &answered).await).await; // nobody else tells
        })?
        .detach();
        let mut upload = self.spawn(receive(early, body, writer))?;
        match first(&promised, &mut upload).await {
            First::Refused(refusal) => return Err(refusal),
            First::Settled => {}
        }
        let Some(outcome) = promised.take() else {
            return Err(unanswered(&ending).await);
        };
        let (head, body) = match outcome {
            Ok(response) => response.into_parts(),
            Err(code) => {
                held.release();
                return Err(failed(&code));
            }
        };
        upload.detach();
        let answer = match asks_head || without_body(head.status) {
            true => held.give_up(body),
            false => Answer::new(body, Some(held)),
        };
        Ok(Response::from_parts(head, answer))
    }

    /// Whether the request may pass at all.
    fn admit(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        let hosts = request.headers().get_all(header::HOST);
        self.admit_for(hosts.iter().map(HeaderValue::as_bytes), request)?;
        if let Some(authority) = request.uri().authority() {
            self.admit_for(std::iter::once(authority.as_str().as_bytes()), request)?;
        }
        match *request.method() == Method::CONNECT {
            true => Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "There are no tunnels here.".into())),
            false => Ok(()),
        }
    }

    fn admit_for<'h>(
        &self,
        hosts: impl Iterator<Item = &'h [u8]>,
        request: &'h Request<Incoming>,
    ) -> Result<(), Refusal> {
        let origins = request.headers().get_all(header::ORIGIN);
        let origins = origins.iter().map(HeaderValue::as_bytes);
        let sites = request.headers().get_all("sec-fetch-site").iter().map(HeaderValue::as_bytes);
        self.names.admit(hosts, origins, sites, IpAddr::V4(Ipv4Addr::LOCALHOST)).map_err(|stranger| {
            let status = if stranger.malformed { StatusCode::BAD_REQUEST } else { StatusCode::FORBIDDEN };
            Refusal(status, stranger.sentence.into())
        })
    }

    async fn place(&self) -> Result<smol::lock::SemaphoreGuardArc, Refusal> {
        let late = async {
            Timer::after(limits::HTTP_PLACE_WAIT).await;
            None
        };
        or(async { Some(self.places.acquire_arc().await) }, late).await.ok_or_else(|| {
            let full =
                format!("{} requests are being answered, the most there may be.", limits::HTTP_REQUESTS);
            Refusal(StatusCode::SERVICE_UNAVAILABLE, full.into())
        })
    }

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<Task<T>, Refusal> {
        let stopping = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "The server instance is ending.".into());
        Ok(self.executor.upgrade().ok_or_else(stopping)?.spawn(future))
    }
}

/// The life of an instance to its end, which is decided a while after its answer, if it does not come by itself.
async fn last(life: &Answering, answered: &Receiver<Reader>) -> Ending {
    let overstays = async {
        // Closed, or with the body that nobody wants: kept, for whoever writes it shall not find it closed.
        let _body = answered.recv().await;
        Timer::after(limits::HTTP_AFTERWARDS).await;
    };
    let ended = async { Some(life.ended().await) };
    let late = async {
        overstays.await;
        None
    };
    if let Some(ending) = or(ended, late).await {
        return ending;
    }
    life.leash().end();
    life.ended().await
}

/// Answers that have no body, whatever their program writes.
fn without_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The instance's answer; or that of a request whose body cannot be taken, or that took too long.
async fn first(promised: &Promised, upload: &mut Task<Result<(), Refusal>>) -> First {
    let settled = async {
        poll_fn(|context| promised.poll_settled(context)).await;
        First::Settled
    };
    let refused = async {
        match upload.await {
            Err(refusal) => First::Refused(refusal),
            Ok(()) => std::future::pending().await,
        }
    };
    let late = async {
        Timer::after(limits::HTTP_ANSWER_WITHIN).await;
        First::Refused(Refusal(StatusCode::GATEWAY_TIMEOUT, "The program did not answer in time.".into()))
    };
    // A body that breaks off is a refusal first, whatever the instance makes of what it hears then.
    or(refused, or(settled, late)).await
}

/// A piece of a body; none at its end.
type Piece = Option<Result<Frame<Bytes>, hyper::Error>>;

async fn next(body: &mut Incoming) -> Piece {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

/// Takes a body in, as fast as the instance reads it, and no slower than a client may be.
async fn receive(mut early: Option<Piece>, mut body: Incoming, writer: Writer) -> Result<(), Refusal> {
    let (mut bytes, mut waited) = (0, Duration::ZERO);
    loop {
        poll_fn(|context| writer.poll_room(context)).await;
        if writer.room().is_none() {
            return Ok(()); // the instance reads no further
        }
        let earned = Duration::from_secs(bytes / limits::HTTP_BODY_BYTES_PER_SECOND);
        let patience = (limits::HTTP_BODY_PATIENCE + earned).saturating_sub(waited);
        let since = Instant::now();
        let frame = async {
            match early.take() {
                Some(piece) => Some(piece),
                None => Some(next(&mut body).await),
            }
        };
        let late = async {
            Timer::after(patience).await;
            None
        };
        let frame = or(frame, late).await;
        waited += since.elapsed();
        match frame {
            None => {
                writer.fail(ErrorCode::ConnectionReadTimeout);
                return Err(Refusal(
                    StatusCode::REQUEST_TIMEOUT,
                    "The request's body came too slowly.".into(),
                ));
            }
            Some(None) => {
                finish(&writer, None);
                return Ok(());
            }
            Some(Some(Err(_))) => {
                writer.fail(ErrorCode::ConnectionTerminated);
                return Ok(());
            }
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    bytes += data.len() as u64;
                    if bytes > limits::HTTP_BODY_BYTES {
                        writer.fail(ErrorCode::HttpRequestBodySize(Some(limits::HTTP_BODY_BYTES)));
                        return Err(too_large());
                    }
                    if writer.write(data).is_err() {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    finish(&writer, frame.into_trailers().ok());
                    return Ok(());
                }
            },
        }
    }
}

/// hyper has kept the declared length; an instance that reads no further needs no end.
fn finish(writer: &Writer, trailers: Option<http::HeaderMap>) {
    let _ = writer.finish(trailers);
}

/// The request's target as the program sees it: with a scheme and an authority.
fn absolute(uri: Uri, host: Option<HeaderValue>, port: u16) -> Uri {
    let authority = match uri.authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => match host.as_ref().and_then(|host| host.to_str().ok()) {
            Some(host) => host.to_owned(),
            None => format!("{}:{port}", Ipv4Addr::LOCALHOST),
        },
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let whole = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    whole.unwrap_or(uri)
}

fn too_large() -> Refusal {
    let sentence = format!("The request's body has more than {} bytes.", limits::HTTP_BODY_BYTES);
    Refusal(StatusCode::PAYLOAD_TOO_LARGE, sentence.into())
}

/// The instance will not answer any more. Mostly it is ending, and what exactly went wrong stands in the log.
async fn unanswered(ending: &OnceCell<Ending>) -> Refusal {
    let ended = async { Some(ending.wait().await) };
    let late = async {
        Timer::after(limits::HTTP_AFTERWARDS).await;
        None
    };
    match or(ended, late).await {
        Some(Ending::OutOfResources(_) | Ending::Aborted | Ending::Expired | Ending::Stopping) => {
            Refusal(StatusCode::SERVICE_UNAVAILABLE, "The program was ended before it answered.".into())
        }
        Some(_) => {
            let sentence = "The program ended and had not answered; the server's log says why.";
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, sentence.into())
        }
        None => {
            let sentence = "The program threw its way to answer away, and runs on.";
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, sentence.into())
        }
    }
}

/// The program's answer is an error.
fn failed(code: &ErrorCode) -> Refusal {
    let status = match code {
        ErrorCode::InternalError(_) | ErrorCode::ConfigurationError => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_GATEWAY,
    };
    Refusal(status, format!("The program answered with an error: {code}").into())
}

impl Refusal {
    fn response(self) -> Response<Answer> {
        let Refusal(status, sentence) = self;
        let text = format!("{sentence}\n");
        let (writer, reader) = transfer::pipe(Some(text.len() as u64));
        // The pipe is empty and its reader here.
        let _ = writer.write(text.into()).and_then(|()| writer.finish(None));
        let mut response = Response::new(Answer::new(reader, None));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A hold on the instance. Dropped, it ends the instance, unless that has answered.
struct Held {
    leash: Option<Leash>,
    /// Closes when the instance has answered.
    rest: Sender<Reader>,
}

impl Held {
    /// All that was wanted of the instance is there; it has a while to end by itself.
    fn release(mut self) {
        self.leash = None;
    }

    /// The same, where the body is wanted by nobody.
    fn give_up(self, body: Reader) -> Answer {
        body.discard();
        let _ = self.rest.try_send(body); // the instance has ended
        self.release();
        Answer::new(transfer::empty(), None)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(leash) = self.leash.take() {
            leash.end();
        }
    }
}

/// The body of an answer. Dropped before all of it was taken, it ends its instance.
pub struct Answer {
    body: Reader,
    held: Option<Held>,
    /// The body is broken, and hyper is about to be told.
    breaks: bool,
}

impl Answer {
    fn new(body: Reader, held: Option<Held>) -> Answer {
        Answer { body, held, breaks: false }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(held) = self.held.take()
            && self.body.is_whole()
        {
            held.release();
        }
    }
}

/// Nothing in it is pinned.
impl Unpin for Answer {}

impl Body for Answer {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // hyper drops what it has not sent yet when a body breaks; what came before shall reach the client.
        if matches!(frame, Poll::Ready(Some(Err(_)))) && !std::mem::replace(&mut self.breaks, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
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
