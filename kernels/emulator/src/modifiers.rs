//! The dotted words of an opcode, taken one by one: one that nobody takes is an error, as in ptxas.

use crate::float::{Mode, RM, RN, RP, RZ};
use crate::types::{Space, Type};

pub struct Modifiers {
    words: Vec<String>,
    taken: Vec<bool>,
}

impl Modifiers {
    pub fn new(words: &[String]) -> Modifiers {
        Modifiers { words: words.to_vec(), taken: vec![false; words.len()] }
    }

    /// Is this word there? Takes it.
    pub fn has(&mut self, word: &str) -> bool {
        self.position(|each| each == word).is_some()
    }

    fn position(&mut self, wanted: impl Fn(&str) -> bool) -> Option<usize> {
        let at = (0..self.words.len()).find(|&at| !self.taken[at] && wanted(&self.words[at]))?;
        self.taken[at] = true;
        Some(at)
    }

    /// The first word of these that is there.
    pub fn one_of<'a>(&mut self, words: &[&'a str]) -> Option<&'a str> {
        words.iter().find(|word| self.has(word)).copied()
    }

    /// The next type.
    pub fn kind(&mut self) -> Result<Type, String> {
        self.kind_if_any().ok_or_else(|| "the type is missing".to_string())
    }

    pub fn kind_if_any(&mut self) -> Option<Type> {
        let at = self.position(|word| Type::named(word).is_some())?;
        Type::named(&self.words[at])
    }

    pub fn rounding(&mut self) -> Option<Mode> {
        let word = self.one_of(&["rn", "rz", "rm", "rp"])?;
        Some(match word {
            "rn" => RN,
            "rz" => RZ,
            "rm" => RM,
            _ => RP,
        })
    }

    pub fn space(&mut self) -> Space {
        match self.one_of(&["global", "shared::cta", "shared", "const", "param", "local"]) {
            Some("global") => Space::Global,
            Some("shared" | "shared::cta") => Space::Shared,
            Some("const") => Space::Const,
            Some("param") => Space::Param,
            Some(_) => Space::Local,
            None => Space::Generic,
        }
    }

    /// Words about caches, which change no result.
    pub fn take_hints(&mut self) {
        let hints = ["L1::", "L2::", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "level::"];
        while self
            .position(|word| {
                hints.iter().any(|hint| word == *hint || hint.ends_with(':') && word.starts_with(hint))
            })
            .is_some()
        {}
    }

    /// The first word that nobody took.
    pub fn rest(&self) -> Option<&str> {
        (0..self.words.len()).find(|&at| !self.taken[at]).map(|at| self.words[at].as_str())
    }
}
