//! The macro pass: from a handwritten kernel file to the PTX text that ptxas, the driver and the emulator read.
//!
//! Owns: the directives below, and that every emitted line is known by the line of the file it was written in. Never:
//! what an instruction means. Std only: `src/compute/build.rs` and the tests take this file by its path.
//!
//! PTX has no preprocessor. The spelling is that of the GNU assembler, one directive to a line:
//!
//! | directive | meaning |
//! |---|---|
//! | `.include "fmt/q4_0.inc"` | that file's lines, once; the path starts at the folder of the kernels |
//! | `.equ NAME, expression` | a number; later lines have it in place of NAME; may be set anew |
//! | `.macro NAME a, b=default` … `.endm` | `NAME 1, b=2` stands for the lines between, `\a` and `\b` replaced |
//! | `.irp x, a, b, c` … `.endr` | the lines between for each value of `\x` |
//! | `.rept expression` … `.endr` | the lines between, so many times |
//! | `.if expression` … `.else` … `.endif` | one of the two parts |
//!
//! `\@` is a number that is another in each expansion of a macro (labels, registers); `\(expression)` is its value, `\()`
//! nothing: it ends a name, as in `\a\()_high`. A macro's own registers stand in `{ .reg ... }`; an argument that one of
//! them would hide is an error. Expressions know integers, names of `.equ`, `( )`, unary `-` and
//! `* / %`, `+ -`, `<< >>`, `< <= > >= == !=`, `&`, `|`, in this order. An argument may hold commas within brackets.
//!
//! `griddepcontrol` stands in what is emitted, for a later target than the header's: `src/backend/cuda/kernels.rs` makes the
//! two modules of it, with and without.
//!
//! What is emitted has no comments; `# 12 "gemv.inc"` says that the next line is line 12 of that file. A line of a macro is
//! known by its place in the macro's file.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::rc::Rc;

/// Macros within macros, at most: one that calls itself ends here.
const DEPTH: usize = 64;

/// What is wrong with a kernel file, and where.
#[derive(Debug)]
pub struct Error {
    pub file: String,
    pub line: usize,
    pub sentence: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.sentence)
    }
}

impl std::error::Error for Error {}

/// The names of the kernel files, `*.ptx`, in the folder itself, sorted.
pub fn files(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".ptx") {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// The PTX text of `file` in `folder`.
pub fn expand(folder: &Path, file: &str) -> Result<String, Error> {
    expand_with(file, &|name| std::fs::read_to_string(folder.join(name)).map_err(|e| e.to_string()))
}

/// As [`expand`], the files' text from `read`.
pub fn expand_with(file: &str, read: &dyn Fn(&str) -> Result<String, String>) -> Result<String, Error> {
    let mut pass = Pass {
        read,
        macros: HashMap::new(),
        numbers: HashMap::new(),
        taken: HashSet::new(),
        expansions: 0,
        text: String::new(),
        next: ("".into(), 0),
    };
    let lines = pass.lines(file, &Line { file: file.into(), number: 1, text: String::new() })?;
    pass.run(&lines, 0)?;
    Ok(pass.text)
}

/// A line as it was written, or with a macro's arguments in place; without its comment.
#[derive(Clone)]
struct Line {
    file: Rc<str>,
    number: usize,
    text: String,
}

impl Line {
    fn error(&self, sentence: impl Into<String>) -> Error {
        Error { file: self.file.to_string(), line: self.number, sentence: sentence.into() }
    }

    /// The first word and what follows it.
    fn words(&self) -> (&str, &str) {
        let text = self.text.trim();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        (&text[..end], text[end..].trim())
    }
}

struct Macro {
    parameters: Vec<(String, Option<String>)>,
    body: Vec<Line>,
    defined: String,
}

struct Pass<'a> {
    read: &'a dyn Fn(&str) -> Result<String, String>,
    macros: HashMap<String, Rc<Macro>>,
    numbers: HashMap<String, i64>,
    taken: HashSet<String>,
    expansions: usize,
    text: String,
    /// What a reader of `text` takes the next line for.
    next: (Rc<str>, usize),
}

impl Pass<'_> {
    /// The lines of `file`, which `from` asks for.
    fn lines(&mut self, file: &str, from: &Line) -> Result<Vec<Line>, Error> {
        if !self.taken.insert(file.to_string()) {
            return Ok(Vec::new());
        }
        let text = (self.read)(file).map_err(|why| from.error(format!("{file} cannot be read: {why}")))?;
        let name: Rc<str> = file.into();
        let mut lines = Vec::new();
        for (at, text) in text.lines().enumerate() {
            let line = Line {
                file: name.clone(),
                number: at + 1,
                text: without_comment(text).trim_end().to_string(),
            };
            if line.text.contains("/*") {
                return Err(line.error("a comment starts with // here"));
            }
            lines.push(line);
        }
        Ok(lines)
    }

    fn run(&mut self, lines: &[Line], depth: usize) -> Result<(), Error> {
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            let line = &self.with_values(line)?;
            let (word, rest) = line.words();
            let mut last = at; // the line that ends this directive
            match word {
                "" => {}
                ".include" => {
                    let name = rest.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                    let name = name.ok_or_else(|| line.error(".include wants a file name in quotes"))?;
                    let lines = self.lines(name, line)?;
                    self.run(&lines, depth)?;
                }
                ".equ" => {
                    let (name, value) = rest
                        .split_once(',')
                        .filter(|(name, _)| name.starts_with(|c: char| c.is_ascii_uppercase()))
                        .filter(|(name, _)| name.trim().chars().all(in_name))
                        .ok_or_else(|| line.error(".equ wants a name in capitals, a comma, an expression"))?;
                    let value = self.value(value, line)?;
                    self.numbers.insert(name.trim().to_string(), value);
                }
                ".macro" => {
                    last = closing(lines, at, &[".macro"], ".endm")?;
                    self.define(line, rest, lines[at + 1..last].to_vec())?;
                }
                ".irp" => {
                    last = closing(lines, at, &[".irp", ".rept"], ".endr")?;
                    let values = arguments(rest);
                    let (name, values) = values
                        .split_first()
                        .filter(|(name, _)| is_name(name))
                        .ok_or_else(|| line.error(".irp wants a name and values, commas between"))?;
                    for value in values {
                        self.repeat(&lines[at + 1..last], &[(name.clone(), value.clone())], depth, line)?;
                    }
                }
                ".rept" => {
                    last = closing(lines, at, &[".irp", ".rept"], ".endr")?;
                    for _ in 0..self.value(rest, line)? {
                        self.repeat(&lines[at + 1..last], &[], depth, line)?;
                    }
                }
                ".if" => {
                    last = closing(lines, at, &[".if"], ".endif")?;
                    let body = &lines[at + 1..last];
                    let other = part(body);
                    let (yes, no) = (&body[..other], body.get(other + 1..).unwrap_or_default());
                    let taken = if self.value(rest, line)? != 0 { yes } else { no };
                    self.run(taken, depth)?;
                }
                ".endm" | ".endr" | ".else" | ".endif" => {
                    return Err(line.error(format!("{word} without its beginning")));
                }
                _ => match self.macros.get(word).cloned() {
                    Some(called) => self.call(line, word, rest, &called, depth)?,
                    None => self.emit(line)?,
                },
            }
            at = last + 1;
        }
        Ok(())
    }

    fn define(&mut self, line: &Line, rest: &str, body: Vec<Line>) -> Result<(), Error> {
        let (name, parameters) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        if !is_name(name) {
            return Err(line.error(".macro wants a name, then its parameters with commas between"));
        }
        if let Some(earlier) = self.macros.get(name) {
            return Err(line.error(format!("the macro {name} is there already: {}", earlier.defined)));
        }
        let mut list = Vec::new();
        for parameter in arguments(parameters) {
            let (name, default) = match parameter.split_once('=') {
                Some((name, default)) => (name.trim(), Some(default.trim().to_string())),
                None => (parameter.as_str(), None),
            };
            if !is_name(name) {
                return Err(line.error(format!("`{name}` is no name for a parameter")));
            }
            list.push((name.to_string(), default));
        }
        let defined = format!("{}:{}", line.file, line.number);
        self.macros.insert(name.to_string(), Rc::new(Macro { parameters: list, body, defined }));
        Ok(())
    }

    fn call(
        &mut self,
        line: &Line,
        name: &str,
        rest: &str,
        called: &Macro,
        depth: usize,
    ) -> Result<(), Error> {
        let mut given: Vec<Option<String>> = vec![None; called.parameters.len()];
        let mut place = 0;
        for argument in arguments(rest) {
            let keyword = argument.split_once('=').and_then(|(key, value)| {
                let at = called.parameters.iter().position(|(name, _)| name == key.trim())?;
                Some((at, value.trim().to_string()))
            });
            let (at, value) = keyword.unwrap_or_else(|| {
                place += 1;
                (place - 1, argument)
            });
            match given.get_mut(at) {
                Some(slot @ None) => *slot = Some(value),
                Some(Some(_)) => return Err(line.error(format!("{name} is given one argument twice"))),
                None => {
                    let most = called.parameters.len();
                    return Err(line.error(format!("{name} takes {most} arguments at most")));
                }
            }
        }
        let mut values = Vec::new();
        for ((parameter, default), given) in called.parameters.iter().zip(given) {
            let value = given.or_else(|| default.clone());
            let value =
                value.ok_or_else(|| line.error(format!("{name} wants its argument `{parameter}`")))?;
            values.push((parameter.clone(), value));
        }
        if let Some(hidden) = hidden(called, &values) {
            return Err(
                line.error(format!("the argument %{hidden} is hidden by {name}'s own register of that name"))
            );
        }
        self.expansions += 1;
        values.push(("@".into(), self.expansions.to_string()));
        self.repeat(&called.body, &values, depth, line).map_err(|mut error| {
            if error.sentence.len() < 400 {
                error.sentence += &format!(" (in {name}, from {}:{})", line.file, line.number);
            }
            error
        })
    }

    /// Runs `body` with `values` in place of the parameters.
    fn repeat(
        &mut self,
        body: &[Line],
        values: &[(String, String)],
        depth: usize,
        from: &Line,
    ) -> Result<(), Error> {
        if depth == DEPTH {
            return Err(from.error(format!("more than {DEPTH} expansions within each other")));
        }
        let put = |line: &Line| Line { text: with_arguments(&line.text, values), ..line.clone() };
        let body: Vec<Line> = body.iter().map(put).collect();
        self.run(&body, depth + 1)
    }

    /// The line with each `\(expression)` replaced by its value.
    fn with_values(&self, line: &Line) -> Result<Line, Error> {
        let mut text = String::new();
        let mut rest = line.text.as_str();
        while let Some(at) = rest.find("\\(") {
            text += &rest[..at];
            let inner = &rest[at + 2..];
            let end = closing_bracket(inner).ok_or_else(|| line.error("\\( is not closed"))?;
            if !inner[..end].trim().is_empty() {
                text += &self.value(&inner[..end], line)?.to_string();
            }
            rest = &inner[end + 1..];
        }
        Ok(Line { text: text + rest, ..line.clone() })
    }

    /// Writes a line of PTX, with numbers in place of names.
    fn emit(&mut self, line: &Line) -> Result<(), Error> {
        if let Some(at) = line.text.find('\\') {
            let name: String = line.text[at + 1..].chars().take_while(|&c| in_name(c)).collect();
            return Err(line.error(format!("no parameter is called \\{name} here")));
        }
        let (file, next) = &self.next;
        // An empty line is shorter than a marker.
        match line.number.checked_sub(*next) {
            Some(gap @ 0..8) if *file == line.file => self.text.extend(std::iter::repeat_n('\n', gap)),
            _ => self.text += &format!("# {} \"{}\"\n", line.number, line.file),
        }
        let mut rest = line.text.trim_start();
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            let end = match first {
                '"' => rest[1..].find('"').map_or(rest.len(), |at| at + 2),
                _ if in_name(first) => rest.find(|c| !in_name(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            let word = &rest[..end];
            match self.numbers.get(word) {
                Some(number) if !matches!(before, '.' | '%' | '$') => self.text += &number.to_string(),
                _ => self.text += word,
            }
            before = first;
            rest = &rest[end..];
        }
        self.text.push('\n');
        self.next = (line.file.clone(), line.number + 1);
        Ok(())
    }

    fn value(&self, text: &str, line: &Line) -> Result<i64, Error> {
        let mut expression = Expression { numbers: &self.numbers, rest: text.trim(), whole: text.trim() };
        expression.whole().map_err(|sentence| line.error(sentence))
    }
}

/// The operators, those that bind least first. A longer one stands before the one it begins with.
const OPERATORS: [&[&str]; 6] =
    [&["|"], &["&"], &["==", "!=", "<=", ">="], &["<<", ">>"], &["+", "-"], &["*", "/", "%"]];

struct Expression<'a> {
    numbers: &'a HashMap<String, i64>,
    rest: &'a str,
    whole: &'a str,
}

impl Expression<'_> {
    fn whole(&mut self) -> Result<i64, String> {
        let value = self.level(0)?;
        if !self.rest.is_empty() {
            return Err(format!("`{}` is left over in `{}`", self.rest, self.whole));
        }
        Ok(value)
    }

    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = OPERATORS.get(level) else { return self.operand() };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = self.operator(operators, level) {
            self.rest = self.rest[operator.len()..].trim_start();
            let right = self.level(level + 1)?;
            let value = match operator {
                "|" => Some(left | right),
                "&" => Some(left & right),
                "==" => Some(i64::from(left == right)),
                "!=" => Some(i64::from(left != right)),
                "<=" => Some(i64::from(left <= right)),
                ">=" => Some(i64::from(left >= right)),
                "<" => Some(i64::from(left < right)),
                ">" => Some(i64::from(left > right)),
                "<<" => u32::try_from(right).ok().and_then(|by| left.checked_shl(by)),
                ">>" => u32::try_from(right).ok().and_then(|by| left.checked_shr(by)),
                "+" => left.checked_add(right),
                "-" => left.checked_sub(right),
                "*" => left.checked_mul(right),
                "/" => left.checked_div(right),
                _ => left.checked_rem(right),
            };
            left = value.ok_or_else(|| format!("`{}` has no value", self.whole))?;
        }
        Ok(left)
    }

    fn operator(&self, operators: &[&'static str], level: usize) -> Option<&'static str> {
        let found = operators.iter().find(|operator| self.rest.starts_with(**operator)).copied();
        // `<` and `>` compare unless a shift begins there.
        let single = ["<", ">"].into_iter().find(|one| self.rest.starts_with(*one));
        let shift = self.rest.starts_with("<<") || self.rest.starts_with(">>");
        found.or_else(|| single.filter(|_| level == 2 && !shift))
    }

    fn operand(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('-') {
            self.rest = rest.trim_start();
            let value = self.operand()?;
            return value.checked_neg().ok_or_else(|| format!("`{}` has no value", self.whole));
        }
        if let Some(rest) = self.rest.strip_prefix('(') {
            self.rest = rest.trim_start();
            let value = self.level(0)?;
            let rest = self.rest.strip_prefix(')');
            self.rest = rest.ok_or_else(|| format!("a ) is missing in `{}`", self.whole))?.trim_start();
            return Ok(value);
        }
        let end = self.rest.find(|c| !in_name(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        let number = match word.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        };
        let value = number.or_else(|| self.numbers.get(word).copied());
        value.ok_or_else(|| match word {
            "" => format!("a number is missing in `{}`", self.whole),
            _ => format!("`{word}` is no number and no name of .equ"),
        })
    }
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_name(text: &str) -> bool {
    text.chars().all(in_name) && text.starts_with(|c: char| !c.is_ascii_digit())
}

fn without_comment(text: &str) -> &str {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        quoted ^= c == '"';
        if !quoted && text[at..].starts_with("//") {
            return &text[..at];
        }
    }
    text
}

/// The line that ends the block which line `at` begins; blocks of the same kind within it are passed over.
fn closing(lines: &[Line], at: usize, begins: &[&str], ends: &str) -> Result<usize, Error> {
    let mut open = 0;
    for (at, line) in lines.iter().enumerate().skip(at) {
        let (word, _) = line.words();
        if begins.contains(&word) {
            open += 1;
        } else if word == ends {
            open -= 1;
            if open == 0 {
                return Ok(at);
            }
        }
    }
    Err(lines[at].error(format!("{} without its {ends}", lines[at].words().0)))
}

/// Where the `.else` of a body stands, or its end.
fn part(body: &[Line]) -> usize {
    let mut open = 0;
    for (at, line) in body.iter().enumerate() {
        match line.words().0 {
            ".if" => open += 1,
            ".endif" => open -= 1,
            ".else" if open == 0 => return at,
            _ => {}
        }
    }
    body.len()
}

/// Where the bracket closes that is open at the start of `text`.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut open = 1;
    text.char_indices().find_map(|(at, c)| {
        open += i32::from(c == '(') - i32::from(c == ')');
        (open == 0).then_some(at)
    })
}

/// Split at the commas that stand in no brackets.
fn arguments(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut open = 0;
    for c in text.chars() {
        open += i32::from(matches!(c, '(' | '[' | '{')) - i32::from(matches!(c, ')' | ']' | '}'));
        match found.last_mut() {
            Some(last) if c != ',' || open > 0 => last.push(c),
            _ => found.push(String::new()),
        }
    }
    let found: Vec<String> = found.iter().map(|one| one.trim().to_string()).collect();
    if found.len() == 1 && found[0].is_empty() { Vec::new() } else { found }
}

/// A register in the arguments that a `.reg` in the macro's body declares anew: the body would mean its own.
fn hidden(called: &Macro, values: &[(String, String)]) -> Option<String> {
    let registers = |text: &str| -> Vec<String> {
        text.split('%').skip(1).map(|rest| rest.chars().take_while(|&c| in_name(c)).collect()).collect()
    };
    let own: Vec<String> = called
        .body
        .iter()
        .filter(|line| line.words().0 == ".reg")
        .flat_map(|line| registers(&line.text))
        .collect();
    values
        .iter()
        .flat_map(|(_, value)| registers(value))
        .find(|register| !register.is_empty() && own.contains(register))
}

/// `text` with each `\name` of `values` replaced; other names stay for whoever knows them.
fn with_arguments(text: &str, values: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    let mut unknown = false;
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        let after = &rest[at + 1..];
        let end = if after.starts_with('@') { 1 } else { after.find(|c| !in_name(c)).unwrap_or(after.len()) };
        let value = values.iter().find(|(name, _)| *name == after[..end]);
        match value {
            // An outer value must not lengthen the name of an inner parameter before it.
            Some((_, value)) if at == 0 && unknown => out.extend(["\\()", value]),
            Some((_, value)) => out += value,
            None => out += &rest[at..at + 1 + end],
        }
        unknown = value.is_none();
        rest = &after[end..];
    }
    out + rest
}

#[cfg(test)]
#[path = "expand/tests.rs"]
mod tests;
