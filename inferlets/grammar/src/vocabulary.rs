//! The bytes of each token, and the longest token that begins a text.
//!
//! Owns: the vocabulary in one piece of memory. Never: what a text means.

use std::ops::Range;

pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where the bytes of token `id` lie; empty for what is no text, such as the end of an answer.
    spans: Vec<Range<u32>>,
    /// Ids by their bytes.
    sorted: Vec<u32>,
}

impl Vocabulary {
    /// `ids` and the bytes of each.
    pub fn new(ids: &[u32], texts: &[Vec<u8>]) -> Vocabulary {
        let mut bytes = Vec::with_capacity(texts.iter().map(Vec::len).sum());
        let mut spans = vec![0..0; ids.iter().max().map_or(0, |&id| id as usize + 1)];
        for (&id, text) in ids.iter().zip(texts) {
            let start = bytes.len() as u32;
            bytes.extend_from_slice(text);
            spans[id as usize] = start..bytes.len() as u32;
        }
        let mut sorted: Vec<u32> = ids.to_vec();
        let text = |id: u32| &bytes[spans[id as usize].start as usize..spans[id as usize].end as usize];
        sorted.retain(|&id| !text(id).is_empty());
        sorted.sort_unstable_by(|&a, &b| text(a).cmp(text(b)).then(a.cmp(&b)));
        Vocabulary { bytes, spans, sorted }
    }

    /// The bytes of a token; none of one that is no text.
    pub fn text(&self, id: u32) -> &[u8] {
        self.spans.get(id as usize).map_or(&[], |span| &self.bytes[span.start as usize..span.end as usize])
    }

    /// The longest token that `text` begins with, and its length.
    pub fn longest(&self, text: &[u8]) -> Option<(u32, usize)> {
        let (mut from, mut to) = (0, self.sorted.len());
        let mut best = None;
        for len in 1..=text.len() {
            // Those that begin with the first `len` bytes: shorter ones of the same beginning lie before them.
            let begin = |&id: &u32| &self.text(id)[..len.min(self.text(id).len())];
            from += self.sorted[from..to].partition_point(|id| begin(id) < &text[..len]);
            to = from + self.sorted[from..to].partition_point(|id| begin(id) <= &text[..len]);
            match self.sorted[from..to].first() {
                Some(&id) if self.text(id).len() == len => best = Some((id, len)),
                Some(_) => {}
                None => break,
            }
        }
        best
    }

    /// The token of this one byte.
    pub fn byte(&self, byte: u8) -> Option<u32> {
        self.longest(&[byte]).map(|(id, _)| id)
    }

    /// `text` as tokens, the longest first at each place; none if a byte has no token.
    pub fn tokens(&self, mut text: &[u8]) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        while !text.is_empty() {
            let (id, len) = self.longest(text)?;
            ids.push(id);
            text = &text[len..];
        }
        Some(ids)
    }
}
