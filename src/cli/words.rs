//! Words to a verb and its flags, by the table.
//!
//! Owns: the parser and its sentences. Never: the table, or what a verb does.

use super::table::{VERBS, Verb};
use super::{Failure, help, overview, print};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Words of one verb, sorted out by the table.
pub(super) struct Words {
    pub verb: &'static Verb,
    flags: BTreeMap<&'static str, Vec<OsString>>,
    pub positional: Vec<OsString>,
    pub rest: Vec<String>,
}

impl Words {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains_key(flag)
    }

    pub fn path(&self, flag: &str) -> Option<PathBuf> {
        self.flags.get(flag).map(|values| PathBuf::from(&values[0]))
    }

    pub fn paths(&self, flag: &str) -> Vec<PathBuf> {
        self.flags.get(flag).into_iter().flatten().map(PathBuf::from).collect()
    }

    pub fn text(&self, flag: &str) -> Result<Option<String>, Failure> {
        self.flags.get(flag).map(|values| utf8(&values[0])).transpose()
    }

    pub fn texts(&self, flag: &str) -> Result<Vec<String>, Failure> {
        self.flags.get(flag).into_iter().flatten().map(utf8).collect()
    }

    pub fn required(&self, flag: &str) -> Result<PathBuf, Failure> {
        self.path(flag).ok_or_else(|| {
            Failure::usage(format!(
                "`{}` needs --{flag}; see `tartlet {} --help`.",
                self.verb.name, self.verb.name
            ))
        })
    }
}

/// Sorts words by the table. None: help or the version was asked for and printed.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Option<Words>, Failure> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut verb: Option<&'static Verb> = None;
    let mut named: Option<String> = None; // the first word of a two-word verb
    let mut flags: BTreeMap<&'static str, Vec<OsString>> = BTreeMap::new();
    let (mut positional, mut rest) = (Vec::new(), Vec::new());
    loop {
        // What follows `--` is the program's, flags and all; lexopt would hand it on as plain values.
        if let Some(found) = verb
            && found.rest.is_some()
            && let Some(mut raw) = parser.try_raw_args()
            && raw.peek().is_some_and(|word| word == "--")
        {
            raw.next();
            rest = raw.map(|word| utf8(&word)).collect::<Result<_, _>>()?;
            break;
        }
        let Some(argument) =
            parser.next().map_err(|e| Failure::usage(format!("{e}; see `tartlet --help`.")))?
        else {
            break;
        };
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => {
                print(&verb.map_or_else(|| overview(named.as_deref()), help))?;
                return Ok(None);
            }
            lexopt::Arg::Short('V') | lexopt::Arg::Long("version") => {
                print(&format!("tartlet {}\n", env!("CARGO_PKG_VERSION")))?;
                return Ok(None);
            }
            lexopt::Arg::Long(name) => {
                let name = name.to_owned();
                let Some(found) = verb else {
                    return Err(Failure::usage(format!(
                        "--{name} stands before a command; write the command first: `tartlet serve --{name} …`."
                    )));
                };
                let Some(flag) = found.flags.iter().find(|flag| flag.long == name) else {
                    return Err(unknown_flag(found, &name));
                };
                let word = match flag.value {
                    None => OsString::new(),
                    Some(shown) => parser.value().map_err(|_| {
                        Failure::usage(format!("--{name} needs a value: `--{name} {shown}`."))
                    })?,
                };
                let given = flags.entry(flag.long).or_default();
                if !given.is_empty() && !flag.many {
                    return Err(Failure::usage(format!("--{name} is given twice; keep one of them.")));
                }
                given.push(word);
            }
            lexopt::Arg::Short(short) => {
                return Err(Failure::usage(format!("There is no flag -{short}; see `tartlet --help`.")));
            }
            lexopt::Arg::Value(word) if verb.is_none() => {
                let word = utf8(&word)?;
                let name = named.take().map_or(word.clone(), |first| format!("{first} {word}"));
                verb = VERBS.iter().find(|verb| verb.name == name);
                if verb.is_none() {
                    if !VERBS.iter().any(|verb| verb.name.split(' ').next() == Some(&name)) {
                        return Err(Failure::usage(format!(
                            "There is no command `{name}`; `tartlet --help` lists them."
                        )));
                    }
                    named = Some(name);
                }
            }
            lexopt::Arg::Value(word) => positional.push(word),
        }
    }
    let Some(verb) = verb else {
        let sentence = match named {
            Some(first) => {
                let second: Vec<&str> =
                    VERBS.iter().filter_map(|verb| verb.name.strip_prefix(&format!("{first} "))).collect();
                format!("`tartlet {first}` needs one of: {}.", second.join(", "))
            }
            None => "No command given; `tartlet --help` lists them.".to_owned(),
        };
        return Err(Failure::usage(sentence));
    };
    if positional.len() != verb.positional.len() {
        let sentence = match verb.positional {
            [] => format!("`tartlet {}` takes no plain argument, but {:?} is one.", verb.name, positional[0]),
            wanted if positional.len() < wanted.len() => {
                format!(
                    "`tartlet {}` needs {}; see `tartlet {} --help`.",
                    verb.name,
                    wanted.join(" "),
                    verb.name
                )
            }
            wanted => format!(
                "`tartlet {}` takes only {}; {:?} is too much{}.",
                verb.name,
                wanted.join(" "),
                positional[wanted.len()],
                if verb.rest.is_some() { " (the program's own arguments follow after `--`)" } else { "" }
            ),
        };
        return Err(Failure::usage(sentence));
    }
    Ok(Some(Words { verb, flags, positional, rest }))
}

fn unknown_flag(verb: &Verb, name: &str) -> Failure {
    let near = verb.flags.iter().map(|flag| flag.long).min_by_key(|long| distance(long, name));
    let hint = match near {
        Some(long) if distance(long, name) <= 3 => format!("did you mean --{long}?"),
        _ => format!("see `tartlet {} --help`.", verb.name),
    };
    Failure::usage(format!("`tartlet {}` has no flag --{name}; {hint}", verb.name))
}

/// Levenshtein distance in characters; for hints on flags, so both are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

fn utf8(word: &OsString) -> Result<String, Failure> {
    word.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{word:?} is not valid UTF-8.")))
}

#[cfg(test)]
mod tests {
    use super::super::EXIT_USAGE;
    use super::*;

    fn sorted(words: &[&str]) -> Result<Words, String> {
        parse(words.iter().map(OsString::from).collect()).map(Option::unwrap).map_err(|failure| {
            assert_eq!(failure.status, EXIT_USAGE);
            failure.sentence
        })
    }

    #[test]
    fn words_are_sorted_by_the_table() {
        let words = sorted(&["run", "a.wasm", "--server=ws://x", "--", "--user", "hi", "--", "-x"]).unwrap();
        assert_eq!(words.verb.name, "run");
        assert_eq!(words.text("server").unwrap().as_deref(), Some("ws://x"));
        assert_eq!(words.positional, ["a.wasm"]);
        assert_eq!(words.rest, ["--user", "hi", "--", "-x"]);
        let words = sorted(&["serve", "--public-key", "a", "--no-auth", "--public-key", "b"]).unwrap();
        assert_eq!(words.paths("public-key"), [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(words.has("no-auth"));
        assert_eq!(sorted(&["token", "mint", "--sub", "a"]).unwrap().verb.name, "token mint");
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_mend() {
        for (words, sentence) in [
            (&["srve"] as &[&str], "There is no command `srve`; `tartlet --help` lists them."),
            (&[], "No command given; `tartlet --help` lists them."),
            (&["token"], "`tartlet token` needs one of: keygen, mint, inspect."),
            (
                &["--model", "x"],
                "--model stands before a command; write the command first: `tartlet serve --model …`.",
            ),
            (&["serve", "--modle", "x"], "`tartlet serve` has no flag --modle; did you mean --model?"),
            (&["serve", "--model"], "--model needs a value: `--model FILE`."),
            (&["serve", "--model", "a", "--model", "b"], "--model is given twice; keep one of them."),
            (&["run"], "`tartlet run` needs PROGRAM.wasm; see `tartlet run --help`."),
            (
                &["run", "a.wasm", "hello"],
                "`tartlet run` takes only PROGRAM.wasm; \"hello\" is too much (the program's own arguments follow after `--`).",
            ),
            (&["serve", "x"], "`tartlet serve` takes no plain argument, but \"x\" is one."),
        ] {
            assert_eq!(sorted(words).err().as_deref(), Some(sentence), "{words:?}");
        }
    }
}
