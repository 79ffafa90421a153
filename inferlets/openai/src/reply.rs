//! What is answered: bodies and chunks of that API.
//!
//! Owns: the form. Never: what the model says.

use serde_json::{Value, json};

/// One answer's name, in a chat or behind a text.
pub struct Reply<'a> {
    pub chat: bool,
    /// Of the request, and so of its answer.
    pub id: &'a str,
    pub model: &'a str,
    /// In seconds since 1970.
    pub created: u64,
    /// Whether each chunk has a place for the usage, which the last one fills.
    pub usage_chunk: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub prompt: usize,
    pub completion: usize,
}

impl Usage {
    fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// `stop`: the model or a stop string ended it; `length`: the number of tokens did.
pub type Finish = &'static str;

impl Reply<'_> {
    fn of(&self, object: &str, choices: Value) -> Value {
        let prefix = if self.chat { "chatcmpl" } else { "cmpl" };
        json!({
            "id": format!("{prefix}-{}", self.id),
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// The whole answer.
    pub fn whole(&self, text: &str, finish: Finish, usage: Usage) -> Value {
        let object = if self.chat { "chat.completion" } else { "text_completion" };
        let choice = if self.chat {
            let message = json!({"role": "assistant", "content": text, "refusal": null});
            json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish})
        } else {
            json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish})
        };
        let mut body = self.of(object, json!([choice]));
        body["usage"] = usage.to_json();
        body
    }

    fn chunk(&self, choices: Value) -> Value {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.of(object, choices);
        if self.usage_chunk {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn piece(&self, delta: Value, text: &str, finish: Option<Finish>) -> Value {
        let choice = if self.chat {
            json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish})
        } else {
            json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish})
        };
        self.chunk(json!([choice]))
    }

    /// The first chunk says whose the answer is; one behind a text has none.
    pub fn first(&self) -> Option<Value> {
        self.chat.then(|| self.piece(json!({"role": "assistant", "content": ""}), "", None))
    }

    pub fn text(&self, text: &str) -> Value {
        self.piece(json!({"content": text}), text, None)
    }

    /// The last chunks.
    pub fn last(&self, finish: Finish, usage: Usage) -> Vec<Value> {
        let mut chunks = vec![self.piece(json!({}), "", Some(finish))];
        if self.usage_chunk {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage.to_json();
            chunks.push(chunk);
        }
        chunks
    }
}

/// A chunk as a server-sent event.
pub fn event(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

/// The end of all events.
pub const DONE: &str = "data: [DONE]\n\n";

pub fn models(names: &[String]) -> Value {
    json!({"object": "list", "data": names.iter().map(|name| model(name)).collect::<Vec<_>>()})
}

pub fn model(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "tartlet"})
}
