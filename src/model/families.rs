//! Prompt templates of our own for the families of chat models.
//!
//! Owns: per family, how to know it, its template, its stop strings. Never: the choice (`chat.rs`).
//!
//! Each template renders any one message alone under plain minijinja 2 (see `chat.rs`): no default system block, no
//! BOS, nothing beyond minijinja's own functions. Reasoning becomes a `<think>` block; a tool's answer takes the
//! family's own form, or that of a user where the family has none; a role the family lacks speaks as the user.

/// A family of chat models.
#[derive(Debug)]
pub(super) struct Family {
    /// For people.
    pub name: &'static str,
    /// Special tokens of the vocabulary that the model's own template (if it has one) must name.
    pub marks: &'static [&'static str],
    /// Further text that tells this family from a later one with the same marks; asks for an own template.
    pub hints: &'static [&'static str],
    /// minijinja source.
    pub template: &'static str,
    /// Those that the vocabulary has become stop strings.
    pub stops: &'static [&'static str],
}

/// The narrower families first.
pub(super) const FAMILIES: [Family; 10] = [
    Family {
        name: "Phi (phi-4)",
        marks: &["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
        hints: &[],
        template: PHI4,
        stops: &["<|im_end|>", "<|endoftext|>"],
    },
    Family {
        name: "Qwen",
        marks: &["<|im_start|>", "<|im_end|>"],
        hints: &["<tool_response>"],
        template: QWEN,
        stops: &["<|im_end|>", "<|endoftext|>"],
    },
    Family {
        name: "ChatML",
        marks: &["<|im_start|>", "<|im_end|>"],
        hints: &[],
        template: CHATML,
        stops: &["<|im_end|>", "<|endoftext|>"],
    },
    Family {
        name: "Llama 3",
        marks: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        hints: &[],
        template: LLAMA3,
        stops: &["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"],
    },
    Family {
        name: "Gemma",
        marks: &["<start_of_turn>", "<end_of_turn>"],
        hints: &[],
        template: GEMMA,
        stops: &["<end_of_turn>", "<eos>"],
    },
    Family {
        name: "Phi (phi-3)",
        marks: &["<|user|>", "<|assistant|>", "<|end|>"],
        hints: &[],
        template: PHI3,
        stops: &["<|end|>", "<|endoftext|>"],
    },
    Family {
        name: "Mistral (v7)",
        marks: &["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"],
        hints: &[],
        template: MISTRAL7,
        stops: &["</s>"],
    },
    Family {
        name: "Mistral",
        marks: &["[INST]", "[/INST]"],
        hints: &[],
        template: MISTRAL,
        stops: &["</s>"],
    },
    Family { name: "Llama 2", marks: &[], hints: &["[INST]", "<<SYS>>"], template: LLAMA2, stops: &["</s>"] },
    Family {
        name: "Mistral (v1)",
        marks: &[],
        hints: &["[INST]", "[/INST]"],
        template: MISTRAL1,
        stops: &["</s>"],
    },
];

const CHATML: &str = r#"{% for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#;

const QWEN: &str = r#"{% for message in messages -%}
{% if message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' ~ message.content ~ '\n</tool_response>' }}
{%- else %}
{{- '<|im_start|>' ~ message.role ~ '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#;

const PHI4: &str = r#"{% for message in messages -%}
{{ '<|im_start|>' ~ ('user' if message.role == 'tool' else message.role) ~ '<|im_sep|>' }}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"#;

const LLAMA3: &str = r#"{% for message in messages -%}
{{ '<|start_header_id|>' ~ ('ipython' if message.role == 'tool' else message.role) ~ '<|end_header_id|>\n\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"#;

const GEMMA: &str = r#"{% for message in messages -%}
{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"#;

const PHI3: &str = r#"{% for message in messages -%}
{{ '<|' ~ ('user' if message.role == 'tool' else message.role) ~ '|>\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"#;

// The assistant's turn begins where `[/INST]` ends, so a generation prompt is nothing.
const MISTRAL: &str = r#"{% for message in messages -%}
{% if message.role == 'assistant' %}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS][{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}]' }}
{%- endfor %}
{{- '</s>' }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]' ~ message.content ~ '[/TOOL_RESULTS]' }}
{%- else %}
{{- '[INST]' ~ message.content ~ '[/INST]' }}
{%- endif %}
{%- endfor %}"#;

const MISTRAL7: &str = r#"{% for message in messages -%}
{% if message.role == 'assistant' %}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS][{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}]' }}
{%- endfor %}
{{- '</s>' }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]' ~ message.content ~ '[/TOOL_RESULTS]' }}
{%- elif message.role == 'system' %}
{{- '[SYSTEM_PROMPT]' ~ message.content ~ '[/SYSTEM_PROMPT]' }}
{%- else %}
{{- '[INST]' ~ message.content ~ '[/INST]' }}
{%- endif %}
{%- endfor %}"#;

// The marks of the two below are text, not tokens. No space begins a message: the vocabulary puts one before a text.
// A system block is a turn of its own, since whoever renders a user's message does not know what came before it.
const LLAMA2: &str = r#"{% for message in messages -%}
{% if message.role == 'assistant' %}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- ' </s>' }}
{%- elif message.role == 'system' %}
{{- '[INST] <<SYS>>\n' ~ message.content | trim ~ '\n<</SYS>>\n\n [/INST]' }}
{%- else %}
{{- '[INST] ' ~ message.content | trim ~ ' [/INST]' }}
{%- endif %}
{%- endfor %}"#;

const MISTRAL1: &str = r#"{% for message in messages -%}
{% if message.role == 'assistant' %}
{%- if message.reasoning_content %}{{ '<think>\n' ~ message.reasoning_content ~ '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- '</s>' }}
{%- else %}
{{- '[INST] ' ~ message.content ~ ' [/INST]' }}
{%- endif %}
{%- endfor %}"#;

/// For a model of no known family: the roles in words.
pub(super) const PLAIN: &str = r#"{% for message in messages -%}
{{ {'system': 'Instructions', 'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'}[message.role] or message.role }}
{{- ': ' ~ message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments ~ '}' }}
{%- endfor %}
{{- '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"#;
