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
use std::panic::{AssertUnwindSafe, catch_unwind};

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
                match multiplies_nothing(&own).and_then(|()| trial(&own)) {
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
    // Fuel counts steps, and one step of these takes as much memory as a number in the template says.
    for filter in ["indent", "batch", "slice", "format"] {
        environment.remove_filter(filter);
    }
    let context = minijinja::context! { messages => [message], add_generation_prompt };
    // A template is a stranger's program: should one bring the renderer to panic, it is the template that fails.
    let text = catch_unwind(AssertUnwindSafe(|| environment.render_str(template, context)));
    match text {
        Ok(text) => text.map_err(|error| format!("for role {}, {error}", message.role)),
        Err(_) => Err(format!("for role {}, the renderer gave up", message.role)),
    }
}

/// Keeps a model's own template from multiplying a text or a list, which is one step however large the product.
/// Templates of conversations have no use for it, so that any asterisk may count: no need to tell code from text.
fn multiplies_nothing(template: &str) -> Result<(), String> {
    match template.contains('*') {
        true => Err("it has an asterisk, which might multiply a text without bound".to_owned()),
        false => Ok(()),
    }
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
    let mut line_start = true; // whether `rest` begins a line of the source
    while let Some(at) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let (text, tag) = rest.split_at(at);
        let kept = text.trim_end_matches([' ', '\t']);
        let indents = if kept.is_empty() { line_start } else { kept.ends_with('\n') };
        out.push_str(if indents && !tag[2..].starts_with('+') { kept } else { text });
        let (tag, after) = tag.split_at(tag_len(tag));
        out.push_str(tag);
        let broken = after.strip_prefix("\r\n").or_else(|| after.strip_prefix('\n'));
        let broken = broken.filter(|_| !tag.ends_with("+%}"));
        line_start = broken.is_some();
        rest = broken.unwrap_or(after);
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

#[cfg(test)]
mod tests {
    use super::super::toy::{Items, Toy, Writer};
    use super::*;

    fn choose(writer: Writer, over: Option<&str>) -> Result<Chat, ChatError> {
        let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
        let tokenizer = Tokenizer::read(&gguf).unwrap();
        Chat::choose(&gguf, &tokenizer, over)
    }

    fn own(template: &str) -> Chat {
        choose(Toy::default().writer().str("tokenizer.chat_template", template), None).unwrap()
    }

    /// A vocabulary that has just these special tokens, the first of them the end.
    fn speaking(specials: &[&str]) -> Writer {
        let specials: Vec<String> = specials.iter().map(|special| special.to_string()).collect();
        Writer::new()
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-2")
            .array("tokenizer.ggml.tokens", Items::Strings(&specials))
            .array("tokenizer.ggml.token_type", Items::I32(&vec![3; specials.len()]))
            .array("tokenizer.ggml.merges", Items::Strings(&[]))
    }

    /// One turn after the other, as the SDK renders them.
    fn conversation(template: &str) -> String {
        let turns = [
            ("system", "Be brief.", false),
            ("user", "One?", true),
            ("assistant", "1", false),
            ("user", "Two?", true),
        ];
        turns
            .map(|(role, content, open)| render(template, &Message::new(role, content), open).unwrap())
            .concat()
    }

    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn one_system_block_in_a_conversation() {
        let chat = own(SMOLLM2);
        assert_eq!(
            (chat.source.as_str(), chat.stops.as_slice()),
            ("ChatML", &["<|im_end|>".to_owned(), "<|endoftext|>".to_owned()][..])
        );
        assert_eq!(
            conversation(&chat.template),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n\
             <|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
        );
        // The model's own would bring one along with every user turn.
        assert_eq!(conversation(SMOLLM2).matches("<|im_start|>system").count(), 4);
        assert!(trial(SMOLLM2).unwrap_err().contains("role user brings a system block along"));
    }

    #[test]
    fn every_template_of_ours_serves() {
        for template in FAMILIES.iter().map(|family| family.template).chain([PLAIN]) {
            trial(template).unwrap_or_else(|why| panic!("{why}: {template}"));
            let call = Call { name: "look", arguments: serde_json::json!({"at": [1, "x"], "deep": null}) };
            let rich = Message {
                reasoning_content: Some("Hm."),
                tool_calls: Some(vec![call]),
                ..Message::new("assistant", " Wait ")
            };
            let text = render(template, &rich, false).unwrap();
            assert!(text.contains("\"name\": \"look\"") && text.contains("{\"at\": [1, \"x\"]"), "{text}");
            assert!(!text.contains("undefined") && !text.contains("none,"), "{text}");
            assert!(!text.starts_with(['\n', ' ']), "{text:?}");
        }
    }

    /// A number in a stranger's template is no size of ours.
    #[test]
    fn a_template_that_asks_for_the_whole_memory_does_not_serve() {
        for hostile in [
            "{{ messages[0].content|indent(18446744073709551615) }}",
            "{{ messages[0].content|indent(999999999999) }}",
            "{{ messages[0].content }}{{ [1]|batch(18446744073709551615) }}",
            "{{ messages[0].content }}{{ [1]|batch(999999999999, 0)|length }}",
            "{{ messages[0].content }}{{ [1]|slice(999999999999)|list|length }}",
            "{{ messages[0].content }}{{ '%999999999999d'|format(1) }}",
            "{{ messages[0].content }}{{ ([1] * 999999999999)|list|length }}",
            "{{ messages[0].content }}{{ 'x' * 99999999 }}",
            "{{ messages[0].content }}{{ range(999999999999)|list|length }}",
            "{{ messages[0].content }}{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        ] {
            let chat = own(hostile);
            assert_eq!(chat.template, PLAIN, "{hostile}");
            assert!(chat.source.contains("does not serve"), "{hostile}: {}", chat.source);
        }
    }

    #[test]
    fn families_are_known_by_their_tokens() {
        // Special tokens, own template, source, stops.
        type Case<'a> = (&'a [&'a str], Option<&'a str>, &'a str, &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            (&["<|im_end|>", "<|im_start|>"], None, "ChatML", &["<|im_end|>"]),
            (
                &["<|im_end|>", "<|im_start|>"],
                Some("<|im_start|><|im_end|><tool_response>"),
                "Qwen",
                &["<|im_end|>"],
            ),
            (
                &["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"],
                None,
                "Phi (phi-4)",
                &["<|im_end|>", "<|endoftext|>"],
            ),
            (
                &["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                None,
                "Llama 3",
                &["<|eot_id|>", "<|end_of_text|>"],
            ),
            (&["<eos>", "<start_of_turn>", "<end_of_turn>"], None, "Gemma", &["<end_of_turn>", "<eos>"]),
            (
                &["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
                None,
                "Phi (phi-3)",
                &["<|end|>", "<|endoftext|>"],
            ),
            (&["</s>", "[INST]", "[/INST]"], None, "Mistral", &["</s>"]),
            (&["<end>"], None, "plain (the model has none)", &["<end>"]),
        ];
        for (specials, template, source, stops) in cases {
            let mut writer = speaking(specials).u32("tokenizer.ggml.eos_token_id", 0);
            if let Some(template) = template {
                writer = writer.str("tokenizer.chat_template", template);
            }
            let chat = choose(writer, None).unwrap();
            assert_eq!(
                (chat.source.as_str(), chat.stops),
                (source, stops.iter().map(|s| s.to_string()).collect())
            );
        }
        // A stop must be one special token: text, an empty one or an unknown one is none.
        assert!(
            choose(speaking(&[""]).u32("tokenizer.ggml.eos_token_id", 0), None).unwrap().stops.is_empty()
        );
        assert!(choose(speaking(&["<end>"]), None).unwrap().stops.is_empty());
    }

    #[test]
    fn an_own_template_serves_if_it_keeps_the_rules() {
        // Written for a renderer that drops the line breaks of blocks.
        let chat = own(
            "{%- for m in messages %}\n  {% if m.role == 'system' %}\nSYS {{ m.content }}\n  {%- else %}\n{{ m.role | upper }} {{ m.content }}\n{% endif %}\n{% endfor %}\n{# end #}\n{% if add_generation_prompt %}\nASSISTANT{% endif %}\n",
        );
        assert_eq!(chat.source, "the model's own template");
        assert_eq!(
            conversation(&chat.template),
            "SYS Be brief.USER One?\nASSISTANTASSISTANT 1\nUSER Two?\nASSISTANT"
        );

        let refused: [(&str, &str); 6] = [
            ("{{ bos_token }}{{ raise_exception('no') }}", "raise_exception is unknown"),
            ("{% for m in messages %}{{ m.content.strip() }}{% endfor %}", "no method named strip"),
            (
                "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
                "the content of role system is missing",
            ),
            ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "appears twice"),
            ("{% for m in messages %}{{ m.content }}", "unexpected end of input"),
            (
                "{% for i in range(10000) %}{% for i in range(10000) %}{% endfor %}{% endfor %}{{ messages[0].content }}",
                "engine ran out of fuel",
            ),
        ];
        for (template, want) in refused {
            let chat = own(template);
            assert!(chat.template == PLAIN && chat.source.contains(want), "{want}: {}", chat.source);
        }
    }

    #[test]
    fn the_operator_has_the_last_word_within_the_rules() {
        let toy = || Toy::default().writer();
        let chat =
            choose(toy(), Some("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")).unwrap();
        assert_eq!(render(&chat.template, &Message::new("user", "x"), true).unwrap(), "[user] x");
        let error = choose(toy(), Some("{{ nothing() }}")).unwrap_err().to_string();
        assert!(
            error.contains("configured prompt template") && error.contains("nothing is unknown"),
            "{error}"
        );
        let long = format!("{{# {} #}}", "x".repeat(limits::TEMPLATE_BYTES));
        assert!(choose(toy(), Some(&long)).unwrap_err().to_string().contains("the limit is"));
    }
}
