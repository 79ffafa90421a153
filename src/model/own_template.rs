//! A model's own template, a stranger's program: which of them may be tried, and with what in reach.
//!
//! Owns: the forms whose memory and time follow from the template's length, and the white space that plain minijinja
//! keeps. Never: whether a template serves guests (`chat.rs` tries that).
//!
//! The renderer's fuel counts steps, and a step may be as large as what earlier steps made: 35 times
//! `{% set x = x + x %}` fill any memory. So a stranger's template may loop over the messages, choose, and print; it
//! names no values, so nothing it made comes back to it, and it has only filters that make no text from a list.

use minijinja::value::Value;
use minijinja::{Environment, tests};

use crate::limits;

/// The template as plain minijinja should get it, or why it is not tried.
pub(super) fn admit(own: &str) -> Result<String, String> {
    if own.len() > limits::OWN_TEMPLATE_BYTES {
        let (len, limit) = (own.len(), limits::OWN_TEMPLATE_BYTES);
        return Err(format!("it has {len} bytes; own templates of up to {limit} are tried"));
    }
    let own = without_block_lines(own);
    // Multiplying a text, and making text of a list (which doubles each backslash in it), are one step as well.
    // Conversations have no use for either: any such sign may count, no need to tell code from text.
    if let Some(sign) = own.chars().find(|sign| ['*', '~'].contains(sign)) {
        return Err(format!("it has the sign `{sign}`, with which a text may grow without bound"));
    }
    // A tag begins with these two characters, wherever else they stand; the words of the one tag that names a value
    // are known, so that it ends where it seems to.
    for tag in own.split("{%").skip(1) {
        let tag = tag.split_once("%}").map_or(tag, |(tag, _)| tag);
        let mut words = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).split_whitespace();
        match words.next().unwrap_or_default() {
            "if" | "elif" | "else" | "endif" | "endfor" => {}
            "for" if words.clone().skip(1).eq(["in", "messages"]) => {}
            "for" => return Err("it loops over something else than the messages".to_owned()),
            other => {
                return Err(format!("it has a `{other}` tag: only those that choose and loop are tried"));
            }
        }
    }
    Ok(own)
}

/// What such a template has in reach.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.add_filter("trim", |text: &str| text.trim().to_owned());
    environment.add_filter("upper", |text: &str| text.to_uppercase());
    environment.add_filter("lower", |text: &str| text.to_lowercase());
    environment.add_filter("length", |value: &Value| value.len());
    environment.add_filter("default", |value: Value, other: Option<Value>| match value.is_undefined() {
        true => other.unwrap_or_default(),
        false => value,
    });
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("string", tests::is_string);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("iterable", tests::is_iterable);
    environment
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
