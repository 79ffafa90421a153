//! Text up to the first of some strings.
//!
//! Owns: what may be the beginning of one, held back until it is known. Never: tokens.

pub struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// None of them is empty.
    pub fn new(stops: Vec<String>) -> Stops {
        Stops { stops, held: String::new() }
    }

    /// Takes more text; returns what may be shown, and whether a stop follows it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let mut places = self.held.char_indices().map(|(at, _)| at);
        let at = places.find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no more text comes.
    pub fn finish(self) -> String {
        self.held
    }
}
