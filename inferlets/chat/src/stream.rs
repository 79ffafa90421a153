//! Tokens to text, in pieces that are whole characters.
//!
//! Owns: the tokens whose bytes do not yet end a character. Never: the model or the client.

/// A character has at most four bytes and a token at least one, so four tokens must end it; if they do not,
/// the model wrote bytes that are no UTF-8, and they are let through as they are printed.
const CHARACTER_TOKENS: usize = 4;

/// Collects tokens until `decode` makes whole characters of them.
pub struct TextStream<D> {
    decode: D,
    waiting: Vec<u32>,
}

impl<D: Fn(&[u32]) -> String> TextStream<D> {
    /// `decode` turns tokens into text and prints bytes that are no UTF-8 as U+FFFD.
    pub fn new(decode: D) -> Self {
        TextStream { decode, waiting: Vec::new() }
    }

    /// Takes the next token; returns the text that is ready to be shown.
    pub fn push(&mut self, token: u32) -> Option<String> {
        self.waiting.push(token);
        let text = (self.decode)(&self.waiting);
        if text.ends_with('\u{FFFD}') && self.waiting.len() < CHARACTER_TOKENS {
            return None; // perhaps the first bytes of a character
        }
        self.waiting.clear();
        (!text.is_empty()).then_some(text)
    }

    /// Returns what is left when no more tokens come.
    pub fn finish(self) -> Option<String> {
        let text = (self.decode)(&self.waiting);
        (!text.is_empty()).then_some(text)
    }
}
