//! The prompt template and the stop strings that guests get.
//!
//! Owns: the choice of a template that is safe under the guests' rules, and the rules' own trial. Never: the
//! rendering of a conversation (guests do that), nor a tokenizer's work.
//!
//! The rules, made by the SDK: each message is rendered alone, by plain minijinja 2 with its default features, from
//! `messages` (one entry) and `add_generation_prompt`; an error panics the guest. A model's own template is written
//! for another renderer and for whole conversations: it may add a default system block to every user turn, call
//! functions that are not there, or want other white space. So families we know get a template of ours
//! (`families.rs`), and an own template of another family serves only if it may be tried (`own_template.rs`) and passes
//! the [`trial`].

use std::fmt;

use minijinja::Environment;
use serde::Serialize;

use super::families::{FAMILIES, Family, PLAIN};
use super::gguf::{Gguf, GgufError, optional};
use super::own_template;
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
                trial(over, Environment::new()).map_err(ChatError::Override)?;
                (over.to_owned(), "the configured template".to_owned())
            }
            (None, Some(family), _) => (family.template.to_owned(), family.name.to_owned()),
            (None, None, Some(own)) => {
                let tried = own_template::admit(own)
                    .and_then(|own| trial(&own, own_template::environment()).map(|()| own));
                match tried {
                    Ok(own) => (own, "the model's own template".to_owned()),
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
fn render(
    environment: &Environment<'_>,
    template: &str,
    message: &Message,
    add_generation_prompt: bool,
) -> Result<String, String> {
    let context = minijinja::context! { messages => [message], add_generation_prompt };
    let text = environment.render_str(template, context);
    text.map_err(|error| format!("for role {}, {error}", message.role))
}

/// Whether a template can serve guests, given what it has in reach. On a thread of its own: minijinja walks a template
/// as deep as it nests, and should one bring the renderer to panic, it is the template that fails.
fn trial(template: &str, mut environment: Environment<'_>) -> Result<(), String> {
    if template.len() > limits::TEMPLATE_BYTES {
        return Err(format!("it has {} bytes; the limit is {}", template.len(), limits::TEMPLATE_BYTES));
    }
    environment.set_fuel(Some(limits::TEMPLATE_STEPS));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("template".to_owned())
            .stack_size(limits::TEMPLATE_STACK_BYTES)
            .spawn_scoped(scope, || renders_alone(template, &environment));
        let thread = thread.map_err(|error| format!("there is no thread to try it on: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("the renderer gave up".to_owned()))
    })
}

/// Every role renders alone, with its content in it once, and a user's turn brings no system block along.
fn renders_alone(template: &str, environment: &Environment<'_>) -> Result<(), String> {
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
            let text = render(environment, template, message, add_generation_prompt)?;
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
            .map(|(role, content, open)| {
                render(&Environment::new(), template, &Message::new(role, content), open).unwrap()
            })
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
        assert!(
            trial(SMOLLM2, Environment::new()).unwrap_err().contains("role user brings a system block along")
        );
    }

    /// The marks of these two are text. Each message is a text of its own, which the vocabulary begins with a space.
    #[test]
    fn marks_that_are_no_tokens() {
        let chat = |template| {
            choose(speaking(&["</s>"]).str("tokenizer.chat_template", template), None).unwrap().template
        };
        assert_eq!(
            conversation(&chat("[INST] <<SYS>>")),
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n [/INST][INST] One? [/INST]1 </s>[INST] Two? [/INST]"
        );
        assert_eq!(
            conversation(&chat("[INST] [/INST]")),
            "[INST] Be brief. [/INST][INST] One? [/INST]1</s>[INST] Two? [/INST]"
        );
    }

    #[test]
    fn every_template_of_ours_serves() {
        for template in FAMILIES.iter().map(|family| family.template).chain([PLAIN]) {
            trial(template, Environment::new()).unwrap_or_else(|why| panic!("{why}: {template}"));
            let call = Call { name: "look", arguments: serde_json::json!({"at": [1, "x"], "deep": null}) };
            let rich = Message {
                reasoning_content: Some("Hm."),
                tool_calls: Some(vec![call]),
                ..Message::new("assistant", " Wait ")
            };
            let text = render(&Environment::new(), template, &rich, false).unwrap();
            assert!(text.contains("\"name\": \"look\"") && text.contains("{\"at\": [1, \"x\"]"), "{text}");
            assert!(!text.contains("undefined") && !text.contains("none,"), "{text}");
            assert!(!text.starts_with(['\n', ' ']), "{text:?}");
        }
    }

    /// Whatever a stranger's template asks for, it gets no memory beyond what its length gives.
    #[test]
    fn a_template_that_asks_for_the_whole_memory_does_not_serve() {
        let content = "{{ messages[0].content }}";
        let doubled = format!("{content}{{% set x = 'xxxxxxxx' %}}{}", "{% set x = x + x %}".repeat(35));
        let nested = |open: &str, close: &str| {
            format!("{content}{{{{ {}'\\\\'{} }}}}", open.repeat(30), close.repeat(30))
        };
        let sum =
            |term: &str| format!("{content}{{{{ {} }}}}", vec![term; 8000 / (term.len() + 1)].join("+"));
        let cases = [
            (doubled.as_str(), "a `set` tag"),
            (&doubled.replace("{% set", "{%- \n set"), "a `set` tag"),
            ("{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('x') }}", "a `macro` tag"),
            ("{% filter upper %}x{% endfilter %}", "a `filter` tag"),
            ("{% for x in ['%}{% set x = x + x %}'] %}{% endfor %}", "over something else"),
            ("{% for m in messages recursive %}{{ loop([m, m]) }}{% endfor %}", "over something else"),
            (&nested("[", "]~''"), "the sign `~`"),
            (&nested("[", "]|trim"), "value is not a string"),
            (&nested("([", "]|join)"), "join is unknown"),
            ("{{ messages[0].content|indent(18446744073709551615) }}", "indent is unknown"),
            ("{{ messages[0].content }}{{ 'aa'|replace('a', 'aa') }}", "replace is unknown"),
            ("{{ messages[0].content }}{{ '%999999999999d'|format(1) }}", "format is unknown"),
            ("{{ messages[0].content }}{{ 'x' * 99999999 }}", "the sign `*`"),
            ("{{ messages[0].content }}{{ range(999999999999)|length }}", "range is unknown"),
            (&sum(content.trim_matches(['{', '}', ' '])), "appears twice"),
            (&sum("[]"), ""),
            (&sum("'x'"), ""),
            (&format!("{content}{{{{ {} 1 }}}}", "-".repeat(8000)), ""),
            (&format!("{content}{{{{ messages{} }}}}", ".a".repeat(4000)), "undefined value"),
            (&format!("{content}{{{{ 'x'{} }}}}", "|upper".repeat(1300)), ""),
        ];
        for (hostile, why) in cases {
            let (chat, hostile) = (own(hostile), &hostile[..hostile.len().min(80)]);
            match why {
                "" => assert_eq!(chat.source, "the model's own template", "{hostile}"),
                why => {
                    assert!(chat.template == PLAIN && chat.source.contains(why), "{hostile}: {}", chat.source)
                }
            }
        }
    }

    #[test]
    fn families_are_known_by_their_tokens() {
        // Special tokens, own template, source, stops.
        type Case<'a> = (&'a [&'a str], Option<&'a str>, &'a str, &'a [&'a str]);
        let cases: [Case<'_>; 11] = [
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
            (
                &["</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
                None,
                "Mistral (v7)",
                &["</s>"],
            ),
            (&["</s>", "<s>"], Some("{{ '<<SYS>>' }}[INST] [/INST]"), "Llama 2", &["</s>"]),
            (&["</s>", "<s>"], Some("[INST] [/INST]"), "Mistral (v1)", &["</s>"]),
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

        let refused: [(&str, &str); 5] = [
            ("{{ bos_token }}{{ raise_exception('no') }}", "raise_exception is unknown"),
            ("{% for m in messages %}{{ m.content.strip() }}{% endfor %}", "no method named strip"),
            (
                "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
                "the content of role system is missing",
            ),
            ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "appears twice"),
            ("{% for m in messages %}{{ m.content }}", "unexpected end of input"),
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
        assert_eq!(
            render(&Environment::new(), &chat.template, &Message::new("user", "x"), true).unwrap(),
            "[user] x"
        );
        let error = choose(toy(), Some("{{ nothing() }}")).unwrap_err().to_string();
        assert!(
            error.contains("configured prompt template") && error.contains("nothing is unknown"),
            "{error}"
        );
        let endless = "{% for i in range(10000) %}{% for i in range(10000) %}{% endfor %}{% endfor %}";
        assert!(choose(toy(), Some(endless)).unwrap_err().to_string().contains("ran out of fuel"));
        let long = format!("{{# {} #}}", "x".repeat(limits::TEMPLATE_BYTES));
        assert!(choose(toy(), Some(&long)).unwrap_err().to_string().contains("the limit is"));
    }
}
