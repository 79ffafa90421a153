//! The shortest program that answers HTTP, by the published crate `wstd` alone: it greets, and echoes bodies, headers
//! and trailers as they come.

use wstd::http::body::{BodyForthcoming, IncomingBody, OutgoingBody};
use wstd::http::server::{Finished, Responder};
use wstd::http::{HeaderName, IntoBody, Request, Response, StatusCode};
use wstd::io::{copy, empty};

#[wstd::http_server]
async fn main(mut request: Request<IncomingBody>, responder: Responder) -> Finished {
    match request.uri().path() {
        "/" => responder.respond(Response::new("Hello, HTTP!\n".into_body())).await,
        "/echo" => {
            let mut body = responder.start_response(announcing(&request));
            let copied = copy(request.body_mut(), &mut body).await;
            trail(body, copied, request).await
        }
        "/echo-headers" => {
            let mut response = Response::new(empty());
            *response.headers_mut() = request.into_parts().0.headers;
            responder.respond(response).await
        }
        "/echo-trailers" => {
            let body = responder.start_response(announcing(&request));
            trail(body, Ok(()), request).await
        }
        _ => {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NOT_FOUND;
            responder.respond(response).await
        }
    }
}

/// A head that names the trailers to come, as HTTP wants it: those that the request names.
fn announcing(request: &Request<IncomingBody>) -> Response<BodyForthcoming> {
    let trailer = HeaderName::from_static("trailer");
    let mut response = Response::new(BodyForthcoming);
    for names in request.headers().get_all(&trailer) {
        response.headers_mut().append(&trailer, names.clone());
    }
    response
}

/// Ends the answer with the request's trailers.
async fn trail(body: OutgoingBody, written: std::io::Result<()>, request: Request<IncomingBody>) -> Finished {
    match request.into_body().finish().await {
        Ok(trailers) => Finished::finish(body, written, trailers),
        Err(_) => Finished::fail(body),
    }
}
