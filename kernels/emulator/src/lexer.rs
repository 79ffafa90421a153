//! Text to tokens, with the source line that each came from. Knows the line markers, no instruction.

use crate::fault::Error;
use std::sync::Arc;

/// A line of the source, as the markers tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    pub line: u32,
}

impl Place {
    pub fn error<T>(&self, sentence: impl Into<String>) -> Result<T, Error> {
        Err(Error { file: self.file.to_string(), line: self.line, sentence: sentence.into() })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// A name: a register, label, opcode.
    Name(String),
    /// What follows a dot: `.u32`, `.L1::no_allocate`.
    Dot(String),
    Integer(u64),
    /// The bits of `0f3F800000`.
    Single(u32),
    /// The bits of `0d3FF0000000000000`, or a decimal number.
    Double(u64),
    Text(String),
    Sign(char),
}

#[derive(Clone, Debug)]
pub struct Token {
    pub word: Word,
    pub place: Place,
}

pub fn tokens(text: &str) -> Result<Vec<Token>, Error> {
    let mut place = Place { file: Arc::from(""), line: 1 };
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut fresh = true; // nothing but blanks so far on this line
    let run = |from: usize, fits: &dyn Fn(u8) -> bool| {
        bytes[from..].iter().position(|&b| !fits(b)).map_or(bytes.len(), |n| from + n)
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'$';
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\n' {
            place.line += 1;
            at += 1;
            fresh = true;
            continue;
        }
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if byte == b'#' && fresh {
            let end = run(at, &|b| b != b'\n');
            place = marker(&text[at..end], &place)?;
            at = end; // the newline then leads to the line named
            continue;
        }
        fresh = false;
        if bytes[at..].starts_with(b"//") {
            at = run(at, &|b| b != b'\n');
            continue;
        }
        if bytes[at..].starts_with(b"/*") {
            let Some(length) = text[at..].find("*/") else {
                return place.error("the comment has no end");
            };
            place.line += text[at..at + length].matches('\n').count() as u32;
            at += length + 2;
            continue;
        }
        let (word, end) = if byte == b'"' {
            let Some(length) = text[at + 1..].find('"') else {
                return place.error("the string has no end");
            };
            (Word::Text(text[at + 1..at + 1 + length].to_string()), at + length + 2)
        } else if byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%') {
            let end = run(at + 1, &named);
            (Word::Name(text[at..end].to_string()), end)
        } else if byte == b'.' && bytes.get(at + 1).is_some_and(|&b| named(b)) {
            let mut end = run(at + 1, &named);
            while bytes[end..].starts_with(b"::") {
                end = run(end + 2, &named);
            }
            (Word::Dot(text[at + 1..end].to_string()), end)
        } else if byte.is_ascii_digit() {
            let mut end = run(at, &|b| b.is_ascii_alphanumeric());
            let decimal = !text[at..end].starts_with("0x") && !text[at..end].starts_with("0X");
            // A fraction, and an exponent with its sign.
            if decimal && bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit)
            {
                end = run(end + 1, &|b| b.is_ascii_alphanumeric());
                if matches!(bytes[end - 1], b'e' | b'E') && matches!(bytes.get(end), Some(b'-' | b'+')) {
                    end = run(end + 1, &|b| b.is_ascii_digit());
                }
            }
            match number(&text[at..end]) {
                Some(word) => (word, end),
                None => return place.error(format!("`{}` is no number", &text[at..end])),
            }
        } else if byte.is_ascii() {
            (Word::Sign(byte as char), at + 1)
        } else {
            return place.error("a character that is not ASCII, outside a comment");
        };
        out.push(Token { word, place: place.clone() });
        at = end;
    }
    Ok(out)
}

/// `# 12 "file"` or `#line 12 "file"`: the next line is line 12 of that file.
fn marker(line: &str, place: &Place) -> Result<Place, Error> {
    let rest = line.trim_start_matches('#').trim_start();
    let rest = rest.strip_prefix("line").unwrap_or(rest).trim_start();
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let Ok(number) = rest[..digits].parse::<u32>() else {
        return place.error("PTX has no preprocessor: only `# LINE \"file\"` may follow a #");
    };
    let file = match rest[digits..].trim().strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        Some((file, _)) => Arc::from(file),
        None => place.file.clone(),
    };
    Ok(Place { file, line: number.saturating_sub(1) })
}

fn number(text: &str) -> Option<Word> {
    let lower = text.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0f") {
        return (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok().map(Word::Single))?;
    }
    if let Some(digits) = lower.strip_prefix("0d") {
        return (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok().map(Word::Double))?;
    }
    if lower.contains('.') {
        return lower.parse::<f64>().ok().map(|value| Word::Double(value.to_bits()));
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let value = if let Some(digits) = digits.strip_prefix("0x") {
        u64::from_str_radix(digits, 16)
    } else if let Some(digits) = digits.strip_prefix("0b") {
        u64::from_str_radix(digits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8)
    } else {
        digits.parse()
    };
    value.ok().map(Word::Integer)
}
