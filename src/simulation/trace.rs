//! What a history did, in order: to be compared with its replay, and read when it fails.
//!
//! Owns: a digest of all steps, and their text where somebody wants it. Never: anything of the machine (times, ids,
//! addresses) that a replay would not have.

use crate::engine::simulation::fake::mix;

#[derive(Default)]
pub struct Trace {
    pub digest: u64,
    pub steps: u64,
    /// None: nobody reads them.
    pub lines: Option<Vec<String>>,
}

impl Trace {
    pub fn with_lines() -> Trace {
        Trace { lines: Some(Vec::new()), ..Trace::default() }
    }

    /// A step by its number.
    pub fn step(&mut self, number: u64, line: impl FnOnce() -> String) {
        self.steps += 1;
        self.digest = mix(self.digest, number);
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    /// A step by its text.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        let digest = line.as_bytes().chunks(8).fold(self.digest, |digest, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(digest, u64::from_le_bytes(word))
        });
        (self.digest, self.steps) = (digest, self.steps + 1);
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }
}
