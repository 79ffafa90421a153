//! The prompt template and the stop strings that guests get.
//!
//! Owns: the choice of a template that is safe under the guests' rules, and the rules' own trial. Never: the
//! rendering of a conversation (guests do that), nor a tokenizer's work.
//!
//! The rules, made by the SDK: each message is rendered alone, by plain minijinja 2 with its default features, from
//! `messages` (one entry) and `add_generation_prompt`; an error panics the guest. A model's own template is written
//! for another renderer and for whole conversations: it may add a default system block to every user turn, call
//! functions that are not there, or want other white space. So families we know get a template of ours
//! (`families.rs`), and an own template of another family serves only if it passes [`trial`].

use std::fmt;

use minijinja::Environment;
use serde::Serialize;

use super::families::{FAMILIES, Family, PLAIN};
use super::gguf::{Gguf, GgufError, optional};
use super::tokenizer::Tokenizer;
use crate::limits;

/// What `get-prompt-template` and `get-stop-tokens` answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// minijinja source.
    pub template: String,
    /// Each is exactly one special token of the vocabulary. Empty only if the model has no end token at all.
    pub stops: Vec<String>,
    /// For people: where the template comes from.
    pub source: String,
}

/// Why there is no template. A model's own template never causes an error: the plain one takes its place.
#[derive(Debug)]
pub enum ChatError {
    Gguf(GgufError),
    /// The operator's template breaks the guests' rules.
    Override(String),
}

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChatError::Gguf(error) => error.fmt(f),
            ChatError::Override(what) => write!(
                f,
                "the configured prompt template cannot serve guests, which render each message alone with plain \
                 minijinja: {what}"
            ),
        }
    }
}

impl std::error::Error for ChatError {}

impl From<GgufError> for ChatError {
    fn from(error: GgufError) -> ChatError {
        ChatError::Gguf(error)
    }
}

impl Chat {
    /// Chooses the template: the operator's, ours for the model's family, the model's own, the plain one.
    pub fn choose(gguf: &Gguf, tokenizer: &Tokenizer, over: Option<&str>) -> Result<Chat, ChatError> {
        let own = optional(gguf.str("tokenizer.chat_template"))?;
        let family = Family::of(own, tokenizer);
        let (template, source) = match (over, family, own) {
            (Some(over), _, _) => {
                trial(over).map_err(ChatError::Override)?;
                (over.to_owned(), "the configured template".to_owned())
            }
            (None, Some(family), _) => (family.template.to_owned(), family.name.to_owned()),
            (None, None, Some(own)) => {
                let own = without_block_lines(own);
                match trial(&own) {
                    Ok(()) => (own, "the model's own template".to_owned()),
                    Err(why) => {
                        (PLAIN.to_owned(), format!("plain (the model's own template does not serve: {why})"))
                    }
                }
            }
            (None, None, None) => (PLAIN.to_owned(), "plain (the model has none)".to_owned()),
        };

        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let ends = ends.into_iter().filter_map(|key| gguf.u32(key).ok());
        let named = tokenizer.specials().filter(|(id, _)| ends.clone().any(|end| end == id.0));
        let mut stops: Vec<String> = Vec::new();
        for stop in family.iter().flat_map(|f| f.stops.iter().copied()).chain(named.map(|(_, text)| text)) {
            let alone = tokenizer.special(stop).is_some_and(|id| tokenizer.encode(stop) == [id]);
            if alone && !stops.iter().any(|known| known == stop) {
                stops.push(stop.to_owned());
            }
        }
        Ok(Chat { template, stops, source })
    }
}

impl Family {
    /// The family whose marks the model's own template bears, or, if it has none, whose tokens are all there.
    fn of(own: Option<&str>, tokenizer: &Tokenizer) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| {
            let marked = |mark: &&str| own.is_none_or(|own| own.contains(mark));
            let there = |mark: &&str| tokenizer.special(mark).is_some();
            family.marks.iter().all(|mark| marked(mark) && there(mark))
                && family.hints.iter().all(|hint| own.is_some_and(|own| own.contains(hint)))
        })
    }
}

/// A message as the SDK serialises it.
#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<Call>>,
}

#[derive(Serialize)]
struct Call {
    name: &'static str,
    arguments: serde_json::Value,
}

impl Message {
    const fn new(role: &'static str, content: &'static str) -> Message {
        Message { role, content, reasoning_content: None, tool_calls: None }
    }
}

/// Renders one message under the guests' rules.
fn render(template: &str, message: &Message, add_generation_prompt: bool) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(limits::TEMPLATE_STEPS));
    let context = minijinja::context! { messages => [message], add_generation_prompt };
    environment.render_str(template, context).map_err(|error| format!("for role {}, {error}", message.role))
}

/// Whether a template can serve guests: every role renders alone, with its content in it once, and a user's turn
/// brings no system block along.
fn trial(template: &str) -> Result<(), String> {
    if template.len() > limits::TEMPLATE_BYTES {
        return Err(format!("it has {} bytes; the limit is {}", template.len(), limits::TEMPLATE_BYTES));
    }
    const CONTENT: &str = "Quartz jackdaws";
    let call = Call { name: "lookup", arguments: serde_json::json!({"word": "quartz"}) };
    let rich = Message {
        reasoning_content: Some("They asked."),
        tool_calls: Some(vec![call]),
        ..Message::new("assistant", CONTENT)
    };
    let plain = ["system", "user", "assistant", "tool"].map(|role| Message::new(role, CONTENT));
    let mut system_head = String::new();
    for message in plain.iter().chain([&rich]) {
        for add_generation_prompt in [false, true] {
            let text = render(template, message, add_generation_prompt)?;
            let Some((head, tail)) = text.split_once(CONTENT) else {
                return Err(format!("the content of role {} is missing", message.role));
            };
            if tail.contains(CONTENT) {
                return Err(format!("the content of role {} appears twice", message.role));
            }
            match message.role {
                "system" => system_head = head.trim().to_owned(),
                _ if !system_head.is_empty() && head.contains(&system_head) && head.trim() != system_head => {
                    return Err(format!("role {} brings a system block along", message.role));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Templates are published for a renderer that drops the line break after a block tag and the indentation before
/// one. Plain minijinja keeps both, so they are taken out of the source: the same text comes out.
fn without_block_lines(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let indentation = out.trim_end_matches([' ', '\t']).len();
        let at_line_start = indentation == 0 || out[..indentation].ends_with('\n');
        if at_line_start && !tag[2..].starts_with('+') {
            out.truncate(indentation);
        }
        let len = tag_len(tag);
        out.push_str(&tag[..len]);
        rest = &tag[len..];
        if !out.ends_with("+%}") {
            rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')).unwrap_or(rest);
        }
    }
    out.push_str(rest);
    out
}

/// Bytes of the block tag or comment that `tag` begins with; all of it if it does not end.
fn tag_len(tag: &str) -> usize {
    if tag.starts_with("{#") {
        return tag.find("#}").map_or(tag.len(), |at| at + 2);
    }
    let (mut quote, mut escaped) = (None, false);
    for (at, byte) in tag.bytes().enumerate().skip(2) {
        match (quote, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'}') if tag.as_bytes()[at - 1] == b'%' && at > 2 => return at + 1,
            (None, _) => {}
        }
    }
    tag.len()
}
