//! Why there is no answer, in the form of that API.
//!
//! Owns: status codes and the body of an error. Never: when there is one.

use serde_json::{Value, json};

#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub message: String,
    /// The field that is to blame.
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

impl Refusal {
    fn new(status: u16, message: String) -> Refusal {
        Refusal { status, message, param: None, code: None }
    }

    /// The body as a whole is to blame.
    pub fn body(message: impl Into<String>) -> Refusal {
        Refusal::new(400, message.into())
    }

    /// A field is to blame.
    pub fn field(name: &str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(name.to_owned()), ..Refusal::new(400, message.into()) }
    }

    pub fn unsupported(name: &str) -> Refusal {
        let message = format!("{name:?} is not supported here; leave it out");
        Refusal { code: Some("unsupported_parameter"), ..Refusal::field(name, message) }
    }

    pub fn no_model(name: &str, models: &[String]) -> Refusal {
        let message = format!("the model {name:?} does not exist; there is {}", models.join(", "));
        Refusal {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Refusal::new(404, message)
        }
    }

    pub fn no_path(path: &str) -> Refusal {
        let known = "/v1/models, /v1/chat/completions and /v1/completions";
        Refusal {
            code: Some("unknown_url"),
            ..Refusal::new(404, format!("there is no {path} here, but {known}"))
        }
    }

    pub fn method(method: &str, path: &str, allowed: &str) -> Refusal {
        let message = format!("{path} answers {allowed}, not {method}");
        Refusal { code: Some("method_not_allowed"), ..Refusal::new(405, message) }
    }

    pub fn too_large(bound: usize) -> Refusal {
        Refusal::new(413, format!("the body has more than {bound} bytes"))
    }

    /// A prompt, or a prompt and its answer, is longer than the server takes.
    pub fn too_long(field: &str, most: u32, prompt: usize, answer: u32) -> Refusal {
        let message = format!(
            "the model's context holds {most} tokens here; {prompt} are in {field:?}, and {answer} in the answer"
        );
        Refusal { code: Some("context_length_exceeded"), ..Refusal::field(field, message) }
    }

    pub fn to_json(&self) -> Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}
