//! What the environment tells the stand-in to be, and how to fail.
//!
//! `STAND_IN_DRIVER` holds words with blanks between them:
//!
//! | word | the driver |
//! |---|---|
//! | `version=11020` | offers CUDA 11.2 (11.4 if not told) |
//! | `capability=75` | has a device of compute capability 7.5 (8.0) |
//! | `memory=BYTES` | has so much memory (128 MiB) |
//! | `seed=N` | runs warps in the order of seed N (0) |
//! | `no-device` | sees no device |
//! | `graphs` | says of each graph, as it is made, which kernels it launches: `graph: one +two three`; `+`: it may begin before the one before it has ended |
//! | `jit` | takes no PTX |
//! | `jit@KERNEL` | takes no PTX with an entry of this name |
//! | `lost@N` | is lost in the N-th launch |
//! | `hung@N` | never ends the N-th launch, nor the process that leaves by the usual exit then |
//! | `hung@KERNEL` | the same for the first launch of the kernel of this name |
//! | `refused@KERNEL=CODE` | answers every launch of the kernel of this name with status CODE |
//! | `cuNAME=CODE` | answers every call of cuNAME with status CODE |
//! | `cuNAME@N=CODE` | answers the N-th call so, counted from 1 |
//!
//! A word that is none of these ends the process with a sentence: a test with a typo would test nothing.

use std::collections::HashMap;

/// A launch that something happens to.
#[derive(Debug)]
pub enum Doomed {
    /// Counted from 1 as launches run, those of graphs too.
    Number(u64),
    /// The first of this kernel.
    Of(String),
}

#[derive(Debug)]
pub struct Script {
    pub version: i32,
    /// 80 is 8.0.
    pub capability: i32,
    pub memory: usize,
    pub seed: u64,
    pub no_device: bool,
    pub graphs: bool,
    jit: bool,
    /// Kernels whose PTX is not taken.
    jit_of: Vec<String>,
    pub lost: Option<u64>,
    pub hung: Option<Doomed>,
    /// Kernel, status.
    refused: Option<(String, i32)>,
    /// Function, the call counted from 1 (none: each), status.
    answers: Vec<(String, Option<u64>, i32)>,
    calls: HashMap<&'static str, u64>,
}

impl Script {
    pub fn of_environment() -> Script {
        let words = std::env::var("STAND_IN_DRIVER").unwrap_or_default();
        Script::parse(&words).unwrap_or_else(|word| {
            eprintln!("stand-in driver: `{word}` in STAND_IN_DRIVER is nothing that it can be told");
            std::process::exit(2)
        })
    }

    /// The error is the word that is none.
    fn parse(words: &str) -> Result<Script, String> {
        let mut script = Script {
            version: 11_040,
            capability: 80,
            memory: 128 << 20,
            seed: 0,
            no_device: false,
            graphs: false,
            jit: false,
            jit_of: Vec::new(),
            lost: None,
            hung: None,
            refused: None,
            answers: Vec::new(),
            calls: HashMap::new(),
        };
        for word in words.split_whitespace() {
            script.word(word).ok_or_else(|| word.to_owned())?;
        }
        Ok(script)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        // Where a number may stand, a kernel's name is no word: none begins with a digit.
        let (name, at) = name.split_once('@').map_or((name, None), |(name, at)| (name, Some(at)));
        match (name, at, value) {
            ("hung", Some(kernel), None) if names_a_kernel(kernel) => {
                self.hung = Some(Doomed::Of(kernel.to_owned()));
                return Some(());
            }
            ("jit", Some(kernel), None) if names_a_kernel(kernel) => {
                self.jit_of.push(kernel.to_owned());
                return Some(());
            }
            ("refused", Some(kernel), Some(code)) if names_a_kernel(kernel) => {
                self.refused = Some((kernel.to_owned(), code.parse().ok()?));
                return Some(());
            }
            _ => {}
        }
        let number = match at {
            Some(number) => Some(number.parse().ok().filter(|number| *number > 0)?),
            None => None,
        };
        match (name, number, value) {
            ("version", None, Some(value)) => self.version = value.parse().ok()?,
            ("capability", None, Some(value)) => self.capability = value.parse().ok()?,
            ("memory", None, Some(value)) => self.memory = value.parse().ok()?,
            ("seed", None, Some(value)) => self.seed = value.parse().ok()?,
            ("no-device", None, None) => self.no_device = true,
            ("graphs", None, None) => self.graphs = true,
            ("jit", None, None) => self.jit = true,
            ("lost", Some(number), None) => self.lost = Some(number),
            ("hung", Some(number), None) => self.hung = Some(Doomed::Number(number)),
            (name, number, Some(value)) if name.starts_with("cu") => {
                self.answers.push((name.to_owned(), number, value.parse().ok()?));
            }
            _ => return None,
        }
        Some(())
    }

    /// Counts a call; the status that it is to be answered with, if any.
    pub fn answer(&mut self, call: &'static str) -> Option<i32> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let told =
            self.answers.iter().find(|(name, number, _)| name == call && number.is_none_or(|n| n == *count));
        told.map(|(_, _, code)| *code)
    }

    /// Whether a module with these entries is taken.
    pub fn takes<'a>(&self, mut entries: impl Iterator<Item = &'a str>) -> bool {
        !self.jit && entries.all(|entry| !self.jit_of.iter().any(|name| name == entry))
    }

    /// The status that a launch of this kernel is to be answered with, if any.
    pub fn refuses(&self, kernel: &str) -> Option<i32> {
        self.refused.as_ref().filter(|(name, _)| name == kernel).map(|(_, code)| *code)
    }

    /// Whether this launch, the `number`-th that runs, is never to end.
    pub fn hangs(&self, number: u64, kernel: &str) -> bool {
        match &self.hung {
            Some(Doomed::Number(hung)) => *hung == number,
            Some(Doomed::Of(hung)) => hung == kernel,
            None => false,
        }
    }
}

fn names_a_kernel(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_alphabetic())
}
