//! The tokens of a text, chosen one after the other.
//!
//! Owns: the choice, and that the text ends within its number of tokens. Never: where distributions come from.

use super::frame::NEVER;
use super::schema::Grammar;
use super::state::{DEPTH, State};
use super::vocabulary::Vocabulary;

pub struct Writer<'a> {
    grammar: &'a Grammar,
    vocabulary: &'a Vocabulary,
    state: State,
    /// Tokens that may still be written; never fewer than end the text.
    left: u32,
    ended: bool,
}

impl<'a> Writer<'a> {
    /// Writes what `grammar` allows in at most `tokens` tokens of the vocabulary it was compiled for.
    pub fn new(grammar: &'a Grammar, vocabulary: &'a Vocabulary, tokens: u32) -> Result<Writer<'a>, String> {
        let state = State::new(grammar);
        let least = state.least();
        if least > tokens {
            return Err(format!(
                "{tokens} tokens do not hold the shortest text of the schema, which may take {least}"
            ));
        }
        Ok(Writer { grammar, vocabulary, state, left: tokens, ended: false })
    }

    /// Whether nothing follows any more: by the grammar, by the number of tokens, or as the model wants.
    pub fn ended(&self) -> bool {
        self.ended || self.left == 0 || self.state.over()
    }

    /// The tokens up to the next choice, written.
    pub fn forced(&mut self) -> Vec<u32> {
        let mut state = self.state.clone();
        let (mut text, mut parts) = (Vec::new(), Vec::new());
        while let Some(part) = state.forced(self.grammar)
            && let Some(next) = state.behind(self.grammar, part)
        {
            text.extend_from_slice(part);
            parts.extend(self.vocabulary.tokens(part).unwrap_or_default());
            state = next;
        }
        // In one piece it mostly takes fewer tokens, but nothing says so; part by part it takes what was counted.
        let whole = self.vocabulary.tokens(&text).unwrap_or_default();
        let ids = if whole.len() <= parts.len() { whole } else { parts };
        self.left -= ids.len() as u32;
        self.state = state;
        ids
    }

    /// The first token in the order of choice that is allowed, written; none: the text ends here, as the model wants.
    /// `order` gives the candidates of a distribution, the first choice first; `stops` end an answer.
    pub fn choose(&mut self, order: impl IntoIterator<Item = u32>, stops: &[u32]) -> Option<u32> {
        let mut tried = [None; 256];
        for id in order {
            if stops.contains(&id) && self.state.whole() {
                self.ended = true;
                return None;
            }
            let text = self.vocabulary.text(id);
            let Some(&first) = text.first() else { continue };
            // Most of what is not allowed fails at its first byte.
            let begins = *tried[usize::from(first)]
                .get_or_insert_with(|| self.state.behind(self.grammar, &[first]).is_some());
            if begins && let Some(state) = self.behind(text, DEPTH) {
                return Some(self.write(id, state));
            }
        }
        if self.state.whole() {
            self.ended = true;
            return None;
        }
        let (id, state) = self.shortest()?;
        Some(self.write(id, state))
    }

    fn write(&mut self, id: u32, state: State) -> u32 {
        self.state = state;
        self.left -= 1;
        id
    }

    /// Behind this token, if it may come and the text can still end.
    fn behind(&self, text: &[u8], depth: u32) -> Option<State> {
        let state = self.state.behind(self.grammar, text)?;
        (state.least() < self.left && state.depth() <= depth).then_some(state)
    }

    /// The token that leaves the fewest to come: one of a text that is due, or of one byte.
    fn shortest(&self) -> Option<(u32, State)> {
        let due = self.state.texts(self.grammar).filter_map(|text| self.vocabulary.longest(text));
        let bytes = (b' '..=u8::MAX).filter_map(|byte| self.vocabulary.longest(&[byte]));
        let behind = |(id, _)| Some((id, self.state.behind(self.grammar, self.vocabulary.text(id))?));
        let best = due.chain(bytes).filter_map(behind).min_by_key(|(_, state)| state.least());
        best.filter(|(_, state)| state.least() < NEVER)
    }
}

/// Numbers that a seed repeats (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Above 0, at most 1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 * (0.5f64).powi(53) + (0.5f64).powi(54)
    }

    /// One entry of a distribution, which come the likeliest first, out of the likeliest that make up `top_p`.
    pub fn draw(&mut self, ids: &[u32], probabilities: &[f32], top_p: f32) -> Option<u32> {
        self.race(ids, probabilities, top_p).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, id)| id)
    }

    /// The entries in the order in which they would be drawn without putting any back. Those that do not belong to the
    /// likeliest which make up `top_p` come last, as they came.
    pub fn order(&mut self, ids: &[u32], probabilities: &[f32], top_p: f32) -> Vec<u32> {
        let mut race: Vec<(f64, u32)> = self.race(ids, probabilities, top_p).collect();
        let rest = ids[race.len()..].iter().copied();
        race.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        race.into_iter().map(|(_, id)| id).chain(rest).collect()
    }

    /// Each races to its end at a speed of its probability: when it is there.
    fn race(&mut self, ids: &[u32], probabilities: &[f32], top_p: f32) -> impl Iterator<Item = (f64, u32)> {
        let mut mass = 0.0;
        let within = move |(_, probability): &(&u32, &f32)| {
            let within = mass < top_p && **probability > 0.0;
            mass += **probability;
            within
        };
        let drawn = ids.iter().zip(probabilities).take_while(within);
        drawn.map(|(&id, &probability)| (-self.unit().ln() / f64::from(probability), id))
    }
}
