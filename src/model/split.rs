//! Cuts text into the words within which byte pairs may merge (the "pre-tokenizer").
//!
//! Owns: the cutting rules of the pre-tokenizers we know, written by hand over Unicode classes, with exactly the
//! result of the regular expressions they are published as. Never: vocabulary or merges.
//!
//! Letters (`\p{L}`) and numbers (`\p{N}`) come from `unicode-general-category`, in the Unicode version of the
//! reference tokenizer; std's `is_alphabetic` would count combining vowel signs and letter-like numbers too
//! (6,403 code points differ). White space and the digits that `smollm` cuts out are std's own classes there as here.

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// A pre-tokenizer, by its name in `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splitter {
    /// `gpt-2`: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `smollm`: every digit alone, then GPT-2's expression on what lies between.
    Smollm,
    /// `llama-bpe`: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
    /// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// `qwen2`: as `llama-bpe`, but every number alone.
    Qwen2,
}

impl Splitter {
    pub const NAMES: [(&str, Splitter); 4] = [
        ("smollm", Splitter::Smollm),
        ("gpt-2", Splitter::Gpt2),
        ("llama-bpe", Splitter::Llama3),
        ("qwen2", Splitter::Qwen2),
    ];

    pub fn named(name: &str) -> Option<Splitter> {
        Splitter::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, splitter)| splitter)
    }

    /// Calls `word` with each word of `text` in order; together they are the text. Linear in its length.
    pub fn split<'a>(self, text: &'a str, mut word: impl FnMut(&'a str)) {
        if self != Splitter::Smollm {
            return self.words(text, &mut word);
        }
        // A digit ends the text for what stands before it: the look-ahead for white space must not see it.
        let mut rest = text;
        while let Some((at, digit)) = rest.char_indices().find(|(_, c)| c.is_numeric()) {
            self.words(&rest[..at], &mut word);
            word(&rest[at..at + digit.len_utf8()]);
            rest = &rest[at + digit.len_utf8()..];
        }
        self.words(rest, &mut word);
    }

    fn words<'a>(self, text: &'a str, word: &mut impl FnMut(&'a str)) {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let len = match self {
                Splitter::Gpt2 | Splitter::Smollm => gpt2_word(rest, first),
                Splitter::Llama3 => llama3_word(rest, first, 3),
                Splitter::Qwen2 => llama3_word(rest, first, 1),
            };
            let (head, tail) = rest.split_at(len);
            word(head);
            rest = tail;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            ' ' | '\t'..='\r' => Class::Space,
            _ => Class::Other,
        };
    }
    match get_general_category(c) {
        Category::UppercaseLetter
        | Category::LowercaseLetter
        | Category::TitlecaseLetter
        | Category::ModifierLetter
        | Category::OtherLetter => Class::Letter,
        Category::DecimalNumber | Category::LetterNumber | Category::OtherNumber => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        _ => Class::Other,
    }
}

/// Bytes of the longest prefix whose characters are all of class `want`.
fn run(text: &str, want: Class) -> usize {
    text.find(|c| class(c) != want).unwrap_or(text.len())
}

/// Bytes of `\s+(?!\S)|\s+` at the start of `text`: all white space at the end of the text, else all but its last
/// character, else that one.
fn white_space(text: &str) -> usize {
    let len = run(text, Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

/// Bytes of `'s|'t|'re|'ve|'m|'ll|'d` at the start of `text`, or 0. `fold` maps a character to its lower case.
fn contraction(text: &str, fold: impl Fn(char) -> char) -> usize {
    let mut chars = text.char_indices();
    if !matches!(chars.next(), Some((_, '\''))) {
        return 0;
    }
    let Some((at, first)) = chars.next() else { return 0 };
    let first_end = at + first.len_utf8();
    match (fold(first), chars.next()) {
        ('s' | 't' | 'm' | 'd', _) => first_end,
        ('r' | 'v', Some((at, second))) if fold(second) == 'e' => at + second.len_utf8(),
        ('l', Some((at, second))) if fold(second) == 'l' => at + second.len_utf8(),
        _ => 0,
    }
}

/// Bytes of the first match of GPT-2's expression; `first` is the first character.
fn gpt2_word(text: &str, first: char) -> usize {
    let short = contraction(text, |c| c);
    if short > 0 {
        return short;
    }
    // ` ?` before a run of one class: the space belongs to the word.
    let space = usize::from(first == ' ');
    match text[space..].chars().next().map(class) {
        None | Some(Class::Space) => white_space(text),
        Some(wanted) => space + run(&text[space..], wanted),
    }
}

/// Bytes of the first match of Llama 3's expression; numbers come in groups of up to `digits`.
fn llama3_word(text: &str, first: char, digits: usize) -> usize {
    // Case folding of the expression: the long s is an s too.
    let short = contraction(text, |c| if c == 'ſ' { 's' } else { c.to_ascii_lowercase() });
    if short > 0 {
        return short;
    }
    let of_first = class(first);
    let after = &text[first.len_utf8()..];
    if of_first == Class::Letter {
        return run(text, Class::Letter);
    }
    // `[^\r\n\p{L}\p{N}]?\p{L}+`
    if of_first != Class::Number && !matches!(first, '\r' | '\n') {
        let letters = run(after, Class::Letter);
        if letters > 0 {
            return first.len_utf8() + letters;
        }
    }
    if of_first == Class::Number {
        let numbers = text.chars().take_while(|&c| class(c) == Class::Number);
        return numbers.take(digits).map(char::len_utf8).sum();
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    let space = usize::from(first == ' ');
    let others = run(&text[space..], Class::Other);
    if others > 0 {
        let end = space + others;
        let breaks = text[end..].find(|c| !matches!(c, '\r' | '\n')).unwrap_or(text.len() - end);
        return end + breaks;
    }
    // `\s*[\r\n]+`: up to the last line break of the white space.
    let spaces = &text[..run(text, Class::Space)];
    match spaces.rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white_space(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that PyPI `tokenizers` cuts by the published expressions (tests/golden/tokenizer_cases.py).
    #[test]
    fn cuts_like_the_expressions() {
        let golden = include_str!("../../tests/golden/tokenizer_cases.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        for (name, splitter) in Splitter::NAMES {
            if splitter == Splitter::Smollm {
                continue; // Its words show in the tokens: tokenizer.rs.
            }
            let cases = golden["splits"][name].as_array().unwrap();
            assert!(cases.len() > 100, "{name}");
            for case in cases {
                let text = case[0].as_str().unwrap();
                let mut words = Vec::new();
                splitter.split(text, |word| words.push(word));
                let lengths: Vec<usize> = words.iter().map(|word| word.chars().count()).collect();
                assert_eq!(serde_json::json!(lengths), case[1], "{name} {text:?} {words:?}");
                assert_eq!(words.concat(), text, "{name}");
            }
        }
    }
}
