//! A program that answers HTTP for the tests: what it does is the path of the request.
//!
//! Owns: one behaviour per path, good and bad. Never: a page for people.

use inferlet::stop_condition::max_len;
use inferlet::{Context, Sampler, get_arguments, get_auto_model};
use wstd::http::body::{BodyForthcoming, IncomingBody, OutgoingBody};
use wstd::http::server::{Finished, Responder};
use wstd::http::{IntoBody, Request, Response, StatusCode};
use wstd::io::{AsyncRead, AsyncWrite, copy};
use wstd::time::Duration;

#[wstd::http_server]
async fn main(mut request: Request<IncomingBody>, responder: Responder) -> Finished {
    let start = |responder: Responder| responder.start_response(Response::new(BodyForthcoming));
    let path = request.uri().path_and_query().map_or("", |path| path.as_str()).to_owned();
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let number = query.split("&").next().and_then(|number| number.parse().ok()).unwrap_or(0u64);
    match path {
        // What it was asked.
        "/seen" => {
            let mut seen = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                seen += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            say(responder, StatusCode::OK, seen).await
        }
        "/arguments" => {
            let theirs: Vec<String> = std::env::args().skip(1).collect();
            let text = format!("{:?} {:?}\n", get_arguments(), theirs);
            say(responder, StatusCode::OK, text).await
        }
        "/servers" => {
            let count = inferlet::debug_query("get_server_instance_count").await;
            say(responder, StatusCode::OK, count).await
        }
        // Bodies, both ways.
        "/echo" => {
            let mut body = start(responder);
            let copied = copy(request.body_mut(), &mut body).await;
            Finished::finish(body, copied, None)
        }
        "/count" => {
            let (mut buffer, mut bytes) = (vec![0; 64 * 1024], 0);
            loop {
                match request.body_mut().read(&mut buffer).await {
                    Ok(0) => break say(responder, StatusCode::OK, format!("{bytes} bytes\n")).await,
                    Ok(read) => bytes += read,
                    Err(_) => break say(responder, StatusCode::BAD_REQUEST, "broken\n".into()).await,
                }
            }
        }
        // Answers before it has read anything, and never reads.
        "/deaf" => say(responder, StatusCode::OK, "not listening\n".into()).await,
        // So many bytes as fast as they are taken; then the end.
        "/flood" => {
            let mut body = start(responder);
            let written = flood(&mut body, number).await;
            Finished::finish(body, written, None)
        }
        // A line now, another after each pause, without end.
        "/drip" => {
            let mut body = start(responder);
            loop {
                body.write_all(b"drip\n").await.expect("somebody reads");
                wstd::task::sleep(Duration::from_millis(number)).await;
            }
        }
        // Answers with that status and a body, and after a while has something to write down; another asks for it.
        "/afterwards" => {
            let status = StatusCode::from_u16(number as u16).unwrap_or_default();
            let response = Response::builder().status(status).body(BodyForthcoming).expect("a status");
            let mut body = responder.start_response(response);
            let written = body.write_all(b"and now to work\n").await;
            wstd::task::sleep(Duration::from_millis(300)).await;
            inferlet::store_set("afterwards", request.uri().query().unwrap_or_default());
            Finished::finish(body, written, None)
        }
        "/afterwards-kept" => {
            let kept = inferlet::store_get("afterwards").unwrap_or_default();
            say(responder, StatusCode::OK, kept).await
        }
        // Three that live on: behind a whole answer, behind a broken one, and without any.
        "/lives-on" => {
            let _ = say(responder, StatusCode::OK, "all of it\n".into()).await;
            for_ever().await
        }
        "/lives-on-broken" => {
            let mut body = start(responder);
            body.write_all(b"so far").await.expect("somebody reads");
            let _ = Finished::fail(body);
            for_ever().await
        }
        "/lives-on-silent" => {
            drop(responder);
            for_ever().await
        }
        // Ends of other kinds.
        "/trap" => panic!("before the head"),
        "/trap-late" => {
            let mut body = start(responder);
            body.write_all(b"so far").await.expect("somebody reads");
            panic!("after the head")
        }
        "/unfinished" => {
            let mut body = start(responder);
            body.write_all(b"so far").await.expect("somebody reads");
            Finished::fail(body)
        }
        // It exits as a program may: well, and without an answer.
        "/silent" => {
            drop(responder);
            std::process::exit(0)
        }
        "/never" => {
            let _kept = responder;
            for_ever().await
        }
        "/spin" => loop {
            std::hint::spin_loop()
        },
        // Tokens of the model, each as it comes.
        "/tokens" => {
            let mut body = start(responder);
            let mut context = Context::new(&get_auto_model());
            context.fill("The capital of France is");
            for _ in 0..number {
                let token = context.decode_step(&Sampler::greedy()).await;
                context.fill_token(token);
                let text = context.tokenizer.detokenize(&[token]);
                body.write_all(text.as_bytes()).await.expect("somebody reads");
            }
            Finished::finish(body, Ok(()), None)
        }
        // Holds pages, says so, and waits.
        "/hold" => {
            let mut context = Context::new(&get_auto_model());
            context.fill("The capital of France is");
            let text = context.generate(Sampler::greedy(), max_len(2)).await;
            let mut body = start(responder);
            body.write_all(text.as_bytes()).await.expect("somebody reads");
            for_ever().await
        }
        _ => say(responder, StatusCode::NOT_FOUND, "no such behaviour\n".into()).await,
    }
}

async fn for_ever() -> ! {
    loop {
        wstd::task::sleep(Duration::from_secs(3600)).await;
    }
}

async fn say(responder: Responder, status: StatusCode, text: String) -> Finished {
    let mut response = Response::new(text.into_body());
    *response.status_mut() = status;
    responder.respond(response).await
}

async fn flood(body: &mut OutgoingBody, bytes: u64) -> std::io::Result<()> {
    let chunk = [b'x'; 16 * 1024];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(chunk.len() as u64);
        body.write_all(&chunk[..now as usize]).await?;
        left -= now;
    }
    Ok(())
}
