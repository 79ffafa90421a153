//! The shortest program that answers HTTP, by the published crate `wstd` alone: it greets, and echoes bodies, headers
//! and trailers as they come.

use wstd::http::body::{BodyForthcoming, IncomingBody};
use wstd::http::server::{Finished, Responder};
use wstd::http::{IntoBody, Request, Response, StatusCode};
use wstd::io::{copy, empty};

#[wstd::http_server]
async fn main(mut request: Request<IncomingBody>, responder: Responder) -> Finished {
    match request.uri().path() {
        "/" => responder.respond(Response::new("Hello, HTTP!\n".into_body())).await,
        "/echo" => {
            let mut body = responder.start_response(Response::new(BodyForthcoming));
            let copied = copy(request.body_mut(), &mut body).await;
            Finished::finish(body, copied, None)
        }
        "/echo-headers" => {
            let mut response = Response::new(empty());
            *response.headers_mut() = request.into_parts().0.headers;
            responder.respond(response).await
        }
        "/echo-trailers" => {
            let body = responder.start_response(Response::new(BodyForthcoming));
            let (trailers, read) = match request.into_body().finish().await {
                Ok(trailers) => (trailers, Ok(())),
                Err(error) => (None, Err(std::io::Error::other(error))),
            };
            Finished::finish(body, read, trailers)
        }
        _ => {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NOT_FOUND;
            responder.respond(response).await
        }
    }
}
