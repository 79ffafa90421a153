//! The chat of many apps, over HTTP: `/v1/models`, `/v1/chat/completions`, `/v1/completions`.
//!
//! usage, as a server instance: openai [--max-tokens N]
//!
//! A request is an instance of its own: it reads the body, asks the model, and answers whole or by server-sent events. N
//! (4,096) bounds every answer, and is what a chat gets that names no bound, if the model's context has room for it. What is asked again from the beginning, as
//! each turn of a chat is, the server has computed already. An answer can be held to a JSON schema (`response_format`).
//! When nobody reads an answer any more, it ends.

mod answer;
mod refusal;
mod reply;
mod request;
mod stops;
#[path = "../../chat/src/stream.rs"]
mod stream;

use inferlet::{Args, Model, get_all_models, get_arguments, get_instance_id, get_model};
use refusal::Refusal;
use reply::{DONE, Reply, Usage, event};
use request::Prompt;
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};
use wstd::http::body::{BodyForthcoming, IncomingBody, OutgoingBody};
use wstd::http::server::{Finished, Responder};
use wstd::http::{IntoBody, Request, Response};
use wstd::io::{AsyncRead, AsyncWrite};

/// A request's body: a long conversation.
const BODY: usize = 1 << 20;

const MAX_TOKENS: u32 = 4096;

/// What that API answers where a text names no bound.
const TEXT_TOKENS: u32 = 16;

#[wstd::http_server]
async fn main(request: Request<IncomingBody>, responder: Responder) -> Finished {
    match route(request).await {
        Ok(Answer::Body(body)) => respond(responder, 200, None, &body).await,
        Ok(Answer::Generate(work)) => work.answer(responder).await,
        Err((refusal, allow)) => respond(responder, refusal.status, allow, &refusal.to_json()).await,
    }
}

async fn respond(responder: Responder, status: u16, allow: Option<&str>, body: &Value) -> Finished {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    if let Some(allow) = allow {
        response = response.header("allow", allow);
    }
    let response = response.body(body.to_string().into_body()).expect("a status and headers of ours");
    responder.respond(response).await
}

enum Answer {
    Body(Value),
    Generate(Box<Work>),
}

/// What a request comes to, or a refusal and the methods that are allowed.
async fn route(request: Request<IncomingBody>) -> Result<Answer, (Refusal, Option<&'static str>)> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_end_matches('/');
    let only = |method: &'static str| match parts.method.as_str() {
        used if used == method => Ok(()),
        used => Err((Refusal::method(used, path, method), Some(method))),
    };
    if path == "/v1/models" {
        only("GET")?;
        return Ok(Answer::Body(reply::models(&get_all_models())));
    }
    if let Some(name) = path.strip_prefix("/v1/models/") {
        only("GET")?;
        let models = get_all_models();
        let known = models.iter().any(|model| model == name);
        return match known {
            true => Ok(Answer::Body(reply::model(name))),
            false => Err((Refusal::no_model(name, &models), None)),
        };
    }
    let chat = match path {
        "/v1/chat/completions" => true,
        "/v1/completions" => false,
        _ => return Err((Refusal::no_path(parts.uri.path()), None)),
    };
    only("POST")?;
    let work = match read(body).await {
        Ok(body) => Work::new(&body, chat).await,
        Err(refusal) => Err(refusal),
    };
    work.map(|work| Answer::Generate(Box::new(work))).map_err(|refusal| (refusal, None))
}

/// The body, as long as it is within its bound.
async fn read(mut body: IncomingBody) -> Result<Vec<u8>, Refusal> {
    let mut read = Vec::new();
    let mut piece = vec![0; 16 << 10];
    loop {
        match body.read(&mut piece).await {
            Ok(0) => return Ok(read),
            Ok(more) if read.len() + more > BODY => return Err(Refusal::too_large(BODY)),
            Ok(more) => read.extend_from_slice(&piece[..more]),
            Err(error) => return Err(Refusal::body(format!("the body broke off: {error}"))),
        }
    }
}

/// A request that can be answered.
struct Work {
    chat: bool,
    request: request::Request,
    model: Model,
    prompt: Vec<u32>,
    grammar: Option<(grammar::Grammar, grammar::Vocabulary)>,
    max_tokens: u32,
}

impl Work {
    async fn new(body: &[u8], chat: bool) -> Result<Work, Refusal> {
        let request = request::read(body, chat)?;
        let models = get_all_models();
        let known = models.contains(&request.model);
        let model = known.then(|| get_model(&request.model)).flatten();
        let model = model.ok_or_else(|| Refusal::no_model(&request.model, &models))?;
        let prompt = answer::prompt(&model, &request.prompt);
        let field = if matches!(request.prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
        if prompt.is_empty() {
            return Err(Refusal::field(field, format!("{field:?} has no text")));
        }
        let most = Args::from_vec(get_arguments().into_iter().map(Into::into).collect())
            .opt_value_from_str("--max-tokens")
            .map_err(|error| {
                Refusal::body(format!("this server was launched with wrong arguments: {error}"))
            })?
            .unwrap_or(MAX_TOKENS);
        let context = context_length().await;
        let left = context.saturating_sub(u32::try_from(prompt.len()).unwrap_or(u32::MAX));
        // Whoever names no number gets what is left of the context, and at least one token must be.
        let (least, asked) = match request.max_tokens {
            Some(asked) => (asked.min(most), asked),
            None => (1, if chat { most } else { TEXT_TOKENS }),
        };
        if least > left {
            return Err(Refusal::too_long(field, context, prompt.len(), least));
        }
        let max_tokens = asked.min(most).min(left);
        let grammar = match &request.schema {
            Some(schema) => {
                let vocabulary = constrain::vocabulary(&model);
                let wrong = |why: String| Refusal::field("response_format", why);
                let grammar = grammar::compile(schema, &vocabulary).map_err(wrong)?;
                // Said now; nobody could be told in the middle of an answer.
                grammar::Writer::new(&grammar, &vocabulary, max_tokens).map_err(wrong)?;
                Some((grammar, vocabulary))
            }
            None => None,
        };
        Ok(Work { chat, request, model, prompt, grammar, max_tokens })
    }

    async fn answer(self: Box<Self>, responder: Responder) -> Finished {
        let id = get_instance_id();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let Work { chat, ref request, ref model, ref grammar, max_tokens, .. } = *self;
        let reply = Reply { chat, id: &id, model: &request.model, created, usage_chunk: request.usage_chunk };
        let prompt = self.prompt.clone();
        let prompt_tokens = prompt.len();
        let usage = |completion| Usage { prompt: prompt_tokens, completion };
        let finish = |stopped| if stopped { "stop" } else { "length" };

        if !request.stream {
            let mut text = String::new();
            let show = async |piece: &str| {
                text += piece;
                true
            };
            let said = answer::generate(model, prompt, request, grammar.as_ref(), max_tokens, show).await;
            return match said {
                Ok(said) => {
                    let whole = reply.whole(&text, finish(said.stopped), usage(said.tokens));
                    respond(responder, 200, None, &whole).await
                }
                Err(error) => {
                    let failed = Refusal { status: 500, ..Refusal::body(format!("{error:#}")) };
                    respond(responder, 500, None, &failed.to_json()).await
                }
            };
        }

        let response = Response::builder()
            .header("content-type", "text/event-stream")
            .header("cache-control", "no-cache")
            .body(BodyForthcoming)
            .expect("headers of ours");
        let mut body = responder.start_response(response);
        let mut open = match reply.first() {
            Some(chunk) => send(&mut body, &event(&chunk)).await,
            None => true,
        };
        let show = async |piece: &str| {
            open = open && send(&mut body, &event(&reply.text(piece))).await;
            open
        };
        let said = answer::generate(model, prompt, request, grammar.as_ref(), max_tokens, show).await;
        let Ok(said) = said else { return Finished::fail(body) };
        let mut last = String::new();
        for chunk in reply.last(finish(said.stopped), usage(said.tokens)) {
            last += &event(&chunk);
        }
        if open && send(&mut body, &(last + DONE)).await {
            Finished::finish(body, Ok(()), None)
        } else {
            Finished::fail(body)
        }
    }
}

/// Tokens of prompt and answer together; no bound where the server tells of none.
async fn context_length() -> u32 {
    inferlet::debug_query("get_context_length").await.parse().unwrap_or(u32::MAX)
}

/// Whether it went out: nobody may be there any more.
async fn send(body: &mut OutgoingBody, text: &str) -> bool {
    body.write_all(text.as_bytes()).await.is_ok() && body.flush().await.is_ok()
}
