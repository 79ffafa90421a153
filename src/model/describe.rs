//! What `tartlet model FILE` prints: a GGUF file on one screen.
//!
//! Owns: the words. Never: a refusal; a file that Tartlet cannot serve is described too, with the reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Weights;
use super::chat::Chat;
use super::gguf::Gguf;
use super::shape::{Pairing, Rope, Shape};
use super::tokenizer::Tokenizer;
use crate::limits;

/// A description for the terminal, a line per fact, ending with whether Tartlet can serve the file.
pub(super) fn describe(gguf: &Gguf) -> String {
    let mut out = String::new();
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14}{}", one_line(&value));
    };
    let text = |key: &str| gguf.str(key).ok().map(one_line);

    fact("name", text("general.name").unwrap_or_else(|| "(none)".into()));
    for (name, key) in [("by", "general.organization"), ("licence", "general.license")] {
        if let Some(value) = text(key) {
            fact(name, value);
        }
    }
    fact("architecture", text("general.architecture").unwrap_or_else(|| "(none)".into()));
    fact("parameters", format!("{} in {} tensors", count(parameters(gguf)), gguf.tensors().count()));

    let shape = Shape::read(gguf);
    if let Ok(shape) = &shape {
        fact(
            "shape",
            format!(
                "{} layers, hidden {}, ffn {}, {} heads of {}, {} kv heads, {} head",
                shape.layers,
                shape.hidden,
                shape.ffn,
                shape.heads,
                shape.head_dim,
                shape.kv_heads,
                if shape.tied_head { "tied" } else { "separate" }
            ),
        );
        let factors = Weights::read(gguf, shape).ok().and_then(|weights| weights.rope_factors);
        fact("rope", rope(shape, factors.map(|factors| factors.name)));
        if let Some(window) = shape.window {
            let layers = (0..shape.layers).filter(|&layer| shape.window_of(layer).is_some()).count();
            fact("window", format!("{} tokens in {layers} of {} layers", window.size, shape.layers));
        }
        let caps = [("scores", shape.score_cap), ("logits", shape.logit_cap)];
        let caps: Vec<String> =
            caps.into_iter().filter_map(|(of, cap)| cap.map(|cap| format!("{of} at {cap}"))).collect();
        if !caps.is_empty() {
            fact("caps", caps.join(", "));
        }
        fact("context", format!("{} tokens", shape.context));
        // K and V of all layers, as the configuration has them unless it says otherwise.
        let kv = 2 * 2 * shape.kv_width() * shape.layers;
        fact("kv cache", format!("{} per token in f16", bytes(kv)));
    }

    let tokenizer = Tokenizer::read(gguf);
    if let Ok(tokenizer) = &tokenizer {
        fact("tokenizer", tokenizer.description());
        if let Ok(chat) = Chat::choose(gguf, tokenizer, None) {
            fact("template", chat.source);
            fact("stops", if chat.stops.is_empty() { "(none)".into() } else { chat.stops.join(" ") });
        }
    }

    let mut formats: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let (tensors, total) = formats.entry(tensor.format).or_default();
        *tensors += 1;
        *total += tensor.bytes.unwrap_or(0);
    }
    let more = formats.len().saturating_sub(limits::MODEL_FORMATS);
    let mut label = "tensors";
    for (format, (tensors, total)) in formats.into_iter().take(limits::MODEL_FORMATS) {
        let size = if total > 0 { bytes(total) } else { "size unknown".into() };
        fact(
            label,
            format!("{format:<6}{size:>12} in {tensors} tensor{}", if tensors == 1 { "" } else { "s" }),
        );
        label = "";
    }
    if more > 0 {
        fact(label, format!("and {more} more format{}", if more == 1 { "" } else { "s" }));
    }
    let (label, files) = match gguf.files() {
        1 => ("file", String::new()),
        files => ("files", format!(" in {files} files")),
    };
    fact(label, format!("{}{files}, GGUF version {}", bytes(gguf.file_bytes()), gguf.version()));

    let refusal = match (&shape, &tokenizer) {
        (Err(error), _) => Some(error.to_string()),
        (_, Err(error)) => Some(error.to_string()),
        (Ok(shape), Ok(tokenizer)) if tokenizer.vocab() as usize != shape.vocab => {
            Some(format!("{} tokens for {} embeddings", tokenizer.vocab(), shape.vocab))
        }
        (Ok(shape), Ok(tokenizer)) => match (Weights::read(gguf, shape), Chat::choose(gguf, tokenizer, None))
        {
            (Err(error), _) => Some(error.to_string()),
            (_, Err(error)) => Some(error.to_string()),
            _ => None,
        },
    };
    match refusal {
        None => fact("tartlet", "can serve it".into()),
        Some(why) => fact("tartlet", format!("cannot serve it: {why}")),
    }
    out
}

/// A text with foreign parts, for terminals and logs: no control character of a file reaches them, nor more of it
/// than fits on a screen. Whoever writes a file's text into a sentence asks for it first: the text may be as long as
/// the file, and a sentence is written out several times until it is read.
pub(super) fn one_line(text: &str) -> String {
    let printed = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(limits::MODEL_TEXT_CHARS).map(printed).collect();
    if line.len() < text.len() && text.chars().nth(limits::MODEL_TEXT_CHARS).is_some() {
        line += " (and so on)";
    }
    line
}

/// One line: name, architecture, parameters, the format that most bytes have.
pub(super) fn line(gguf: &Gguf) -> String {
    let name = one_line(gguf.str("general.name").unwrap_or("unnamed"));
    let architecture = gguf.str("general.architecture").unwrap_or("unknown"); // one of ours
    let mut formats: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in gguf.tensors() {
        *formats.entry(tensor.format).or_default() += tensor.bytes.unwrap_or(0);
    }
    let most =
        formats.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(String::new(), |(format, _)| format);
    one_line(&format!("{name}, {architecture}, {} parameters, {most}", count(parameters(gguf))))
}

/// Its base, how much of a head it turns, and what a plain Llama's has not.
fn rope(shape: &Shape, factors: Option<&str>) -> String {
    let Rope { dims, base, local_base, pairing, linear_scale, yarn, attention_scale } = shape.rope;
    let mut text = format!("base {base}, {dims} of {} values", shape.head_dim);
    if pairing == Pairing::Halves {
        text += " in halves";
    }
    if local_base != base {
        let _ = write!(text, ", base {local_base} within the window");
    }
    if linear_scale != 1.0 {
        let _ = write!(text, ", positions / {linear_scale}");
    }
    if let Some(yarn) = yarn {
        let _ = write!(text, ", YaRN {} beyond {}", yarn.factor, yarn.original);
    }
    if let Some(tensor) = factors {
        let _ = write!(text, ", {tensor}");
    }
    if attention_scale != 1.0 {
        let _ = write!(text, ", turned values * {attention_scale:.3}");
    }
    text
}

fn parameters(gguf: &Gguf) -> u128 {
    // Each product was checked to fit; the sum of 65,536 of them fits here.
    gguf.tensors().map(|t| t.dims.iter().product::<usize>() as u128).sum()
}

/// 134515008 as "134.5 M".
fn count(n: u128) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// 98362432 as "93.8 MiB".
fn bytes(n: usize) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::gguf::Quant;
    use super::super::specimens::specimens;
    use super::super::toy::{Items, Toy, Writer};
    use super::*;

    fn described(writer: Writer) -> String {
        describe(&Gguf::from_bytes(writer.bytes()).unwrap())
    }

    #[test]
    fn one_screen() {
        let text = described(Toy { format: Quant::Q8_0, ..Toy::default() }.writer());
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
        for fact in [
            "name          Toy",
            "2 layers, hidden 64",
            "context       512 tokens",
            "ChatML",
            "Q8_0",
            "can serve it",
        ] {
            assert!(text.contains(fact), "{fact}: {text}");
        }
    }

    #[test]
    fn what_a_family_adds_is_shown() {
        let text = |name: &str| {
            let specimens = specimens();
            described(specimens.iter().find(|specimen| specimen.name == name).expect("a specimen").writer())
        };
        for (name, facts) in [
            ("llama-2", &["base 10000, 16 of 16 values\n"][..]),
            ("llama-3.2", &["base 500000, 16 of 16 values, rope_freqs.weight\n"]),
            ("qwen2", &["base 1000000, 16 of 16 values in halves\n"]),
            (
                "gemma-2",
                &["window        8 tokens in 2 of 4 layers\n", "caps          scores at 2, logits at 6\n"],
            ),
            ("gemma-3", &["base 10000 within the window, positions / 8\n", "8 tokens in 6 of 7 layers\n"]),
            ("phi-3", &["window        8 tokens in 2 of 2 layers\n"]),
            ("phi-4-mini", &["12 of 16 values in halves, rope_factors_long.weight, turned values * 1.225\n"]),
        ] {
            let text = text(name);
            assert!(text.contains("can serve it\n") && text.lines().count() <= 24, "{text}");
            for fact in facts {
                assert!(text.contains(fact), "{fact}: {text}");
            }
            assert_eq!(text.contains("window "), ["gemma-2", "gemma-3", "phi-3"].contains(&name), "{text}");
        }
    }

    /// A file for somebody else's program is described all the same, and its text cannot play with the terminal.
    #[test]
    fn what_cannot_be_served_is_described_with_the_reason() {
        let other = Writer::new()
            .str("general.architecture", "whisper")
            .str("general.name", "a\u{1b}[2Jb\u{9b}c")
            .tensor_of("t", &[256, 1 << 20], 10, Vec::new());
        let text = described(other);
        assert!(text.contains("a [2Jb c") && text.contains("268.4 M in 1 tensors"), "{text}");
        assert!(text.contains("Q2_K  size unknown in 1 tensor\n"), "{text}");
        assert!(text.contains("cannot serve it: the model's architecture is `whisper`"), "{text}");
        assert!(described(Writer::new()).contains("cannot serve it"));
        let tensor = |writer: Writer, n: u32| writer.tensor_of(&n.to_string(), &[1], 1000 + n, Vec::new());
        let text = described((0..100).fold(Toy::default().writer(), tensor));
        assert!(
            text.contains("\n              and 94 more formats\n") && text.lines().count() <= 24,
            "{text}"
        );
        assert!(described(Toy::default().writer().str("tokenizer.ggml.pre", "viking")).contains("`viking`"));
        let untold = Toy::default().writer().array("tokenizer.chat_template", Items::I32(&[1]));
        assert!(
            described(untold).contains("cannot serve it: the GGUF metadata key `tokenizer.chat_template`")
        );
    }
}
