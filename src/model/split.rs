//! Cuts text into the words within which byte pairs may merge (the "pre-tokenizer").
//!
//! Owns: the cutting rules of the pre-tokenizers we know, written by hand over Unicode classes, with exactly the
//! result of the regular expressions they are published as. Never: vocabulary or merges.
//!
//! Letters (`\p{L}`) and numbers (`\p{N}`) come from `unicode-general-category`, in the Unicode version of the
//! reference tokenizer; std's `is_alphabetic` would count combining vowel signs and letter-like numbers too
//! (6,403 code points differ). White space and the digits that `smollm` cuts out are std's own classes there as here.

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// What `tokenizer.ggml.pre` names.
#[derive(Debug)]
pub struct PreTokenizer {
    pub name: &'static str,
    pub splitter: Splitter,
    /// Whether text is brought into Unicode's composed form first (NFC), by the tables of Unicode 9 as in the reference
    /// tokenizer: it leaves combining marks that came later in the order in which they stand.
    pub composes: bool,
    /// Whether a word that is a token needs no merges to become it.
    pub whole_words: bool,
}

impl PreTokenizer {
    /// As the models' own `tokenizer.json` have it; where several names mean the same, by llama.cpp's list of them.
    pub const ALL: [PreTokenizer; 11] = [
        PreTokenizer::new("smollm", Splitter::Smollm),
        PreTokenizer::new("gpt-2", Splitter::Gpt2),
        PreTokenizer { whole_words: true, ..PreTokenizer::new("llama-bpe", Splitter::Llama3) },
        PreTokenizer { whole_words: true, ..PreTokenizer::new("llama3", Splitter::Llama3) },
        PreTokenizer { whole_words: true, ..PreTokenizer::new("llama-v3", Splitter::Llama3) },
        PreTokenizer::new("dbrx", Splitter::Llama3),
        PreTokenizer { composes: true, ..PreTokenizer::new("qwen2", Splitter::Qwen2) },
        PreTokenizer::new("deepseek-r1-qwen", Splitter::Qwen2),
        PreTokenizer { whole_words: true, ..PreTokenizer::new("tekken", Splitter::Tekken) },
        PreTokenizer::new("gpt-4o", Splitter::Gpt4o),
        PreTokenizer::new("llama4", Splitter::Gpt4o),
    ];

    const fn new(name: &'static str, splitter: Splitter) -> PreTokenizer {
        PreTokenizer { name, splitter, composes: false, whole_words: false }
    }

    pub fn named(name: &str) -> Option<&'static PreTokenizer> {
        const ALL: &[PreTokenizer] = &PreTokenizer::ALL;
        ALL.iter().find(|known| known.name == name)
    }
}

/// The rules that cut text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splitter {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every digit alone, then GPT-2's expression on what lies between.
    Smollm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
    /// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// As Llama 3's, but every number alone.
    Qwen2,
    /// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|
    /// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|
    /// ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Tekken,
    /// As Tekken's, but a contraction of Llama 3's belongs to the letters before it, and numbers come in threes.
    Gpt4o,
}

impl Splitter {
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
                Splitter::Tekken => cased_word(rest, first, 1, false),
                Splitter::Gpt4o => cased_word(rest, first, 3, true),
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
    let short = contraction(text, fold);
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
    no_letters(text, first, digits, &['\r', '\n'])
}

/// Bytes of the first match of GPT-4o's expression; numbers come in groups of up to `digits`.
fn cased_word(text: &str, first: char, digits: usize, contractions: bool) -> usize {
    let after = match first {
        '\r' | '\n' => None,
        _ if matches!(class(first), Class::Letter | Class::Number) => None,
        _ => Some(&text[first.len_utf8()..]),
    };
    // `[^\r\n\p{L}\p{N}]?` takes the first character if the rest matches so.
    let led = |rule: fn(&str) -> usize| match after.map_or(0, rule) {
        0 => rule(text),
        letters => first.len_utf8() + letters,
    };
    let letters = match led(capitals_then_small) {
        0 => led(capitals),
        letters => letters,
    };
    if letters == 0 {
        return no_letters(text, first, digits, &['\r', '\n', '/']);
    }
    let short = if contractions { contraction(&text[letters..], fold) } else { 0 };
    letters + short
}

/// Bytes of `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+` at the start of `text`, or 0.
fn capitals_then_small(text: &str) -> usize {
    let head = capitals(text);
    match text[head..].find(|c| !case(c).small) {
        Some(0) => {}
        Some(small) => return head + small,
        None if head < text.len() => return text.len(),
        None => {}
    }
    // Nothing small follows: the last one of the head that may be small too is the end.
    let last = text[..head].char_indices().rev().find(|(_, c)| case(*c).small);
    last.map_or(0, |(at, c)| at + c.len_utf8())
}

/// Bytes of `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*` at the start of `text`. Nothing small can follow where it is a word's
/// whole match: [`capitals_then_small`] comes first.
fn capitals(text: &str) -> usize {
    text.find(|c| !case(c).capital).unwrap_or(text.len())
}

/// Which of a word's two halves a character may stand in. Letters without case and marks may stand in both.
struct Case {
    capital: bool,
    small: bool,
}

fn case(c: char) -> Case {
    let (capital, small) = match get_general_category(c) {
        Category::UppercaseLetter | Category::TitlecaseLetter => (true, false),
        Category::LowercaseLetter => (false, true),
        Category::ModifierLetter | Category::OtherLetter => (true, true),
        Category::NonspacingMark | Category::SpacingMark | Category::EnclosingMark => (true, true),
        _ => (false, false),
    };
    Case { capital, small }
}

/// The case folding of the expressions: the long s is an s too.
fn fold(c: char) -> char {
    if c == 'ſ' { 's' } else { c.to_ascii_lowercase() }
}

/// Bytes of `\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[tail]*|\s*[\r\n]+|\s+(?!\S)|\s+` at the start of `text`.
fn no_letters(text: &str, first: char, digits: usize, tail: &[char]) -> usize {
    if class(first) == Class::Number {
        let numbers = text.chars().take_while(|&c| class(c) == Class::Number);
        return numbers.take(digits).map(char::len_utf8).sum();
    }
    let space = usize::from(first == ' ');
    let others = run(&text[space..], Class::Other);
    if others > 0 {
        let end = space + others;
        return text[end..].find(|c| !tail.contains(&c)).map_or(text.len(), |more| end + more);
    }
    // `\s*[\r\n]+`: up to the last line break of the white space.
    let spaces = &text[..run(text, Class::Space)];
    match spaces.rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white_space(text),
    }
}
