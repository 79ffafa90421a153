//! What is asked: the body of a request, checked.
//!
//! Owns: every field that is read, and which may not be ignored. A field that nobody knows is ignored, as that API does it;
//! one that is known, changes the answer and is not kept is refused. Never: the model.

use super::refusal::Refusal;
use serde_json::{Map, Value};

/// As many stop strings as that API takes.
const STOPS: usize = 4;

#[derive(Debug, PartialEq)]
pub struct Request {
    pub model: String,
    pub prompt: Prompt,
    pub stream: bool,
    /// A last chunk that says how many tokens there were.
    pub usage_chunk: bool,
    pub max_tokens: Option<u32>,
    pub temperature: f32,
    pub top_p: f32,
    pub seed: Option<u64>,
    pub stops: Vec<String>,
    pub schema: Option<Value>,
}

#[derive(Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    /// Role and text of each.
    Chat(Vec<(Role, String)>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// These change an answer, so they are ignored only where they say what is done anyway.
fn harmless(name: &str, value: &Value) -> bool {
    match name {
        "n" | "best_of" => *value == 1,
        "presence_penalty" | "frequency_penalty" => value.as_f64() == Some(0.0),
        "logprobs" | "echo" | "suffix" | "audio" => *value == false || *value == 0 || *value == "",
        "top_logprobs" => *value == 0,
        "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
        "logit_bias" => value.as_object().is_some_and(Map::is_empty),
        _ => true,
    }
}

/// Reads the body of `/v1/chat/completions`, or else of `/v1/completions`.
pub fn read(body: &[u8], chat: bool) -> Result<Request, Refusal> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::body(format!("the body is no JSON: {error}")))?;
    let Value::Object(mut fields) = body else {
        return Err(Refusal::body("the body is not a JSON object"));
    };
    // `null` is as good as nothing.
    fields.retain(|_, value| !value.is_null());
    if let Some((name, _)) = fields.iter().find(|(name, value)| !harmless(name, value)) {
        return Err(Refusal::unsupported(name));
    }
    let fields = Fields(fields);
    let model = fields.get("model", "a string", |value| value.as_str().map(str::to_owned))?;
    let model = model.ok_or_else(|| Refusal::field("model", "\"model\" is missing"))?;
    let tokens = |value: &Value| value.as_u64().filter(|&tokens| tokens > 0);
    let max_tokens = match fields.get("max_completion_tokens", "a whole number above 0", tokens)? {
        Some(tokens) => Some(tokens),
        None => fields.get("max_tokens", "a whole number above 0", tokens)?,
    };
    let within = |low: f64, high: f64| {
        move |value: &Value| value.as_f64().filter(|number| (low..=high).contains(number)).map(|it| it as f32)
    };
    let options = |value: &Value| match value.get("include_usage") {
        None | Some(Value::Null) => value.is_object().then_some(false),
        Some(usage) => usage.as_bool(),
    };
    let seed = |value: &Value| value.as_u64().or(value.as_i64().map(i64::cast_unsigned));
    Ok(Request {
        model,
        prompt: if chat { messages(&fields)? } else { prompt(&fields)? },
        stream: fields.get("stream", "true or false", Value::as_bool)?.unwrap_or(false),
        usage_chunk: fields.get("stream_options", "an object", options)?.unwrap_or(false),
        max_tokens: max_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
        temperature: fields.get("temperature", "a number from 0 to 2", within(0.0, 2.0))?.unwrap_or(1.0),
        top_p: fields
            .get("top_p", "a number above 0, at most 1", within(f64::from(f32::MIN_POSITIVE), 1.0))?
            .unwrap_or(1.0),
        seed: fields.get("seed", "a whole number", seed)?,
        stops: fields
            .get("stop", "a string or a list of up to 4, none of them empty", stops)?
            .unwrap_or_default(),
        schema: schema(&fields)?,
    })
}

struct Fields(Map<String, Value>);

impl Fields {
    fn get<T>(
        &self,
        name: &str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let wrong = || Refusal::field(name, format!("{name:?} must be {what}, not {value}"));
        read(value).map(Some).ok_or_else(wrong)
    }
}

fn stops(value: &Value) -> Option<Vec<String>> {
    let stops = match value {
        Value::String(stop) => vec![stop.clone()],
        Value::Array(stops) => {
            stops.iter().map(|stop| stop.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    (stops.len() <= STOPS && stops.iter().all(|stop| !stop.is_empty())).then_some(stops)
}

/// A text; of the forms with several prompts, the one with one.
fn prompt(fields: &Fields) -> Result<Prompt, Refusal> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(texts) if texts.len() == 1 => texts[0].as_str().map(str::to_owned),
        _ => None,
    };
    match fields.get("prompt", "one string", text)? {
        Some(text) if !text.is_empty() => Ok(Prompt::Text(text)),
        Some(_) => Err(Refusal::field("prompt", "\"prompt\" is empty")),
        None => Err(Refusal::field("prompt", "\"prompt\" is missing")),
    }
}

fn messages(fields: &Fields) -> Result<Prompt, Refusal> {
    let messages = fields.get("messages", "a list", |value| value.as_array().cloned())?.unwrap_or_default();
    if messages.is_empty() {
        return Err(Refusal::field("messages", "\"messages\" has no message"));
    }
    let mut chat = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        let param = |field: &str| format!("messages[{number}].{field}");
        let role = match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            _ => {
                let roles = "a role is system, developer, user or assistant";
                return Err(Refusal::field(&param("role"), roles));
            }
        };
        let content = message.get("content").and_then(content).ok_or_else(|| {
            Refusal::field(
                &param("content"),
                "a message's content is a string or a list of parts of type text",
            )
        })?;
        chat.push((role, content));
    }
    Ok(Prompt::Chat(chat))
}

fn content(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let text = |part: &Value| match part["type"].as_str() {
                Some("text") => part["text"].as_str().map(str::to_owned),
                _ => None,
            };
            parts.iter().map(text).collect()
        }
        _ => None,
    }
}

/// The schema that an answer must follow.
fn schema(fields: &Fields) -> Result<Option<Value>, Refusal> {
    let Some(format) = fields.0.get("response_format") else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(serde_json::json!({"type": "object"}))),
        Some("json_schema") => match format["json_schema"].get("schema") {
            Some(schema) => Ok(Some(schema.clone())),
            None => Err(Refusal::field("response_format.json_schema", "\"schema\" is missing")),
        },
        _ => Err(Refusal::field("response_format", "its type is text, json_object or json_schema")),
    }
}
