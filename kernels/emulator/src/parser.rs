//! Tokens to statements: the grammar of PTX. Resolves no name and checks no type.

use crate::fault::Error;
use crate::lexer::{Place, Token, Word, tokens};
use crate::types::{Space, Type};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Name(String),
    /// `%tid.x`
    Part(String, String),
    /// Two's complement.
    Integer(u64),
    Single(u32),
    Double(u64),
    Vector(Vec<Operand>),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `!%p`
    Not(String),
    /// `a | b`
    Pair(Box<Operand>, Box<Operand>),
}

#[derive(Clone, Debug)]
pub struct Instruction {
    /// The predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    pub opcode: String,
    pub modifiers: Vec<String>,
    pub operands: Vec<Operand>,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub struct Variable {
    pub space: Space,
    pub kind: Type,
    pub align: u32,
    pub name: String,
    /// Elements; none for `name[]`.
    pub count: Option<u64>,
    pub values: Vec<Operand>,
    pub external: bool,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub enum Statement {
    Open,
    Close,
    Label(String, Place),
    /// `name<count>` declares name0 to name(count-1).
    Registers(Type, Vec<(String, Option<u64>)>, Place),
    Variable(Variable),
    /// `name: .branchtargets a, b;`
    Targets(String, Vec<String>),
    Instruction(Instruction),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub place: Place,
    pub parameters: Vec<Variable>,
    /// `.maxntid 128, 1, 1` and the like: name and values.
    pub tuning: Vec<(String, Vec<u64>)>,
    pub body: Vec<Statement>,
}

#[derive(Default)]
pub struct Text {
    pub variables: Vec<Variable>,
    pub entries: Vec<Entry>,
}

pub fn parse(text: &str) -> Result<Text, Error> {
    Parser { tokens: tokens(text)?, at: 0 }.text()
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Word> {
        self.tokens.get(self.at).map(|token| &token.word)
    }

    fn place(&self) -> Place {
        match self.tokens.get(self.at).or(self.tokens.last()) {
            Some(token) => token.place.clone(),
            None => Place { file: Arc::from(""), line: 1 },
        }
    }

    fn error<T>(&self, wanted: &str) -> Result<T, Error> {
        let found = match self.peek() {
            None => "the end of the text".to_string(),
            Some(Word::Name(name)) => format!("`{name}`"),
            Some(Word::Dot(name)) => format!("`.{name}`"),
            Some(Word::Sign(sign)) => format!("`{sign}`"),
            Some(Word::Text(_)) => "a string".to_string(),
            Some(_) => "a number".to_string(),
        };
        self.place().error(format!("expected {wanted}, found {found}"))
    }

    fn take(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(&Word::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: char) -> Result<(), Error> {
        if self.take(sign) { Ok(()) } else { self.error(&format!("`{sign}`")) }
    }

    fn take_dot(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Some(Word::Dot(dot)) if dot == name);
        self.at += usize::from(found);
        found
    }

    fn dot(&mut self) -> Option<String> {
        let Some(Word::Dot(name)) = self.peek() else { return None };
        let name = name.clone();
        self.at += 1;
        Some(name)
    }

    fn name(&mut self) -> Result<String, Error> {
        let Some(Word::Name(name)) = self.peek() else { return self.error("a name") };
        let name = name.clone();
        self.at += 1;
        Ok(name)
    }

    fn text(mut self) -> Result<Text, Error> {
        let mut text = Text::default();
        while self.peek().is_some() {
            let Some(Word::Dot(directive)) = self.peek() else { return self.error("a directive") };
            match directive.clone().as_str() {
                "version" | "target" | "address_size" | "file" => self.skip_directive(),
                "visible" | "weak" => self.at += 1,
                "entry" => {
                    self.at += 1;
                    let entry = self.entry()?;
                    text.entries.push(entry);
                }
                "extern" | "shared" | "const" | "global" => {
                    let variable = self.variable()?;
                    text.variables.push(variable);
                }
                "func" => return self.error("no .func: ptxas leaves a real call, write a macro"),
                _ => return self.error("a directive of a module"),
            }
        }
        Ok(text)
    }

    /// What is of no consequence here: everything to the next directive on a later line.
    fn skip_directive(&mut self) {
        let line = self.place();
        self.at += 1;
        while self.peek().is_some() && self.place() == line {
            self.at += 1;
        }
    }

    fn entry(&mut self) -> Result<Entry, Error> {
        let place = self.place();
        let name = self.name()?;
        let mut parameters = Vec::new();
        if self.take('(') && !self.take(')') {
            loop {
                parameters.push(self.parameter()?);
                if !self.take(',') {
                    break;
                }
            }
            self.expect(')')?;
        }
        let mut tuning = Vec::new();
        while let Some(directive) = self.dot() {
            let mut values = Vec::new();
            if matches!(self.peek(), Some(Word::Integer(_))) {
                values.push(self.constant()? as u64);
                while self.take(',') {
                    values.push(self.constant()? as u64);
                }
            } else if matches!(self.peek(), Some(Word::Text(_))) {
                self.at += 1;
                self.take(';');
            }
            tuning.push((directive, values));
        }
        self.expect('{')?;
        let mut body = Vec::new();
        let mut depth = 1;
        while depth > 0 {
            let statement = self.statement()?;
            match statement {
                Some(Statement::Open) => depth += 1,
                Some(Statement::Close) => depth -= 1,
                _ => {}
            }
            body.extend(statement);
        }
        body.pop();
        Ok(Entry { name, place, parameters, tuning, body })
    }

    fn parameter(&mut self) -> Result<Variable, Error> {
        let place = self.place();
        if !self.take_dot("param") {
            return self.error("`.param`");
        }
        let (mut align, mut kind) = (None, None);
        while let Some(word) = self.dot() {
            match word.as_str() {
                // `.ptr .global .align 16` promises something of what the pointer points to.
                "ptr" | "global" | "shared" | "const" | "local" => {}
                "align" if kind.is_none() => align = Some(self.constant()? as u32),
                "align" => drop(self.constant()?),
                word => match Type::named(word) {
                    Some(named) => kind = Some(named),
                    None => return place.error(format!("`.{word}` is no type of a parameter")),
                },
            }
        }
        let Some(kind) = kind else { return self.error("the parameter's type") };
        let name = self.name()?;
        let mut count = Some(1u64);
        if self.take('[') {
            count = Some(self.constant()? as u64);
            self.expect(']')?;
        }
        let align = align.unwrap_or(kind.size());
        let (space, values) = (Space::Param, Vec::new());
        Ok(Variable { space, kind, align, name, count, values, external: false, place })
    }

    fn variable(&mut self) -> Result<Variable, Error> {
        let place = self.place();
        let external = self.take_dot("extern");
        let space = match self.dot().as_deref() {
            Some("shared") => Space::Shared,
            Some("const") => Space::Const,
            Some("local") => Space::Local,
            Some("global") => Space::Global,
            _ => return self.error("a state space"),
        };
        let mut align = None;
        if self.take_dot("align") {
            align = Some(self.constant()? as u32);
        }
        let kind = match self.dot().as_deref().map(Type::named) {
            Some(Some(kind)) if kind != Type::Pred => kind,
            _ => return place.error("a variable needs a type"),
        };
        let name = self.name()?;
        let mut count = Some(1u64);
        while self.take('[') {
            if self.take(']') {
                count = None;
                continue;
            }
            let size = self.constant()? as u64;
            count = count.and_then(|count| count.checked_mul(size));
            self.expect(']')?;
        }
        let mut values = Vec::new();
        if self.take('=') {
            if self.take('{') {
                self.values(&mut values)?;
            } else {
                values.push(self.operand()?);
            }
            count = count.or(Some(values.len() as u64));
        }
        self.expect(';')?;
        let align = align.unwrap_or(kind.size());
        Ok(Variable { space, kind, align, name, count, values, external, place })
    }

    /// The rest of `{ 1, { 2, 3 } }` after its first brace.
    fn values(&mut self, values: &mut Vec<Operand>) -> Result<(), Error> {
        while !self.take('}') {
            if self.take('{') {
                self.values(values)?;
            } else {
                values.push(self.operand()?);
            }
            if !self.take(',') && self.peek() != Some(&Word::Sign('}')) {
                return self.error("`,` or `}`");
            }
        }
        Ok(())
    }

    fn statement(&mut self) -> Result<Option<Statement>, Error> {
        let place = self.place();
        if self.take('{') {
            return Ok(Some(Statement::Open));
        }
        if self.take('}') {
            return Ok(Some(Statement::Close));
        }
        if self.take(';') {
            return Ok(None);
        }
        if let Some(Word::Dot(directive)) = self.peek() {
            return match directive.clone().as_str() {
                "reg" => self.registers().map(Some),
                "shared" | "const" | "local" | "extern" => {
                    self.variable().map(|variable| Some(Statement::Variable(variable)))
                }
                "loc" | "pragma" | "file" => {
                    self.skip_directive();
                    Ok(None)
                }
                _ => self.error("a statement"),
            };
        }
        let guard = if self.take('@') {
            let negated = self.take('!');
            Some((self.name()?, negated))
        } else {
            None
        };
        let opcode = self.name()?;
        if guard.is_none() && self.take(':') {
            if self.take_dot("branchtargets") {
                let mut targets = vec![self.name()?];
                while self.take(',') {
                    targets.push(self.name()?);
                }
                self.expect(';')?;
                return Ok(Some(Statement::Targets(opcode, targets)));
            }
            return Ok(Some(Statement::Label(opcode, place)));
        }
        let mut modifiers = Vec::new();
        while let Some(modifier) = self.dot() {
            modifiers.push(modifier);
        }
        let mut operands = Vec::new();
        if !self.take(';') {
            loop {
                operands.push(self.operand()?);
                if !self.take(',') {
                    break;
                }
            }
            self.expect(';')?;
        }
        Ok(Some(Statement::Instruction(Instruction { guard, opcode, modifiers, operands, place })))
    }

    fn registers(&mut self) -> Result<Statement, Error> {
        let place = self.place();
        self.at += 1;
        let kind = match self.dot().as_deref().map(Type::named) {
            Some(Some(kind)) => kind,
            _ => return place.error("a register needs a type"),
        };
        let mut names = Vec::new();
        loop {
            let name = self.name()?;
            let mut count = None;
            if self.take('<') {
                count = Some(self.sum()? as u64);
                self.expect('>')?;
            }
            names.push((name, count));
            if !self.take(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(Statement::Registers(kind, names, place))
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        let first = self.simple()?;
        if self.take('|') {
            let second = self.simple()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple(&mut self) -> Result<Operand, Error> {
        if self.take('!') {
            return self.name().map(Operand::Not);
        }
        if self.take('[') {
            let base = self.simple()?;
            let mut offset = 0;
            if self.take('+') {
                offset = self.constant()?;
            }
            self.expect(']')?;
            return Ok(Operand::Address(Box::new(base), offset));
        }
        if self.take('{') {
            let mut parts = vec![self.simple()?];
            while self.take(',') {
                parts.push(self.simple()?);
            }
            self.expect('}')?;
            return Ok(Operand::Vector(parts));
        }
        match self.peek().cloned() {
            Some(Word::Name(name)) => {
                self.at += 1;
                Ok(match self.dot() {
                    Some(part) => Operand::Part(name, part),
                    None => Operand::Name(name),
                })
            }
            Some(Word::Single(bits)) => {
                self.at += 1;
                Ok(Operand::Single(bits))
            }
            Some(Word::Double(bits)) => {
                self.at += 1;
                Ok(Operand::Double(bits))
            }
            Some(Word::Sign('-')) => match self.tokens.get(self.at + 1).map(|token| &token.word) {
                Some(&Word::Double(bits)) => {
                    self.at += 2;
                    Ok(Operand::Double((-f64::from_bits(bits)).to_bits()))
                }
                _ => Ok(Operand::Integer(self.constant()? as u64)),
            },
            Some(Word::Integer(_) | Word::Sign('(' | '~')) => Ok(Operand::Integer(self.constant()? as u64)),
            _ => self.error("an operand"),
        }
    }

    /// A constant expression: shifts over sums over products, as in C.
    fn constant(&mut self) -> Result<i64, Error> {
        let mut value = self.sum()?;
        loop {
            let sign = match (self.peek(), self.tokens.get(self.at + 1).map(|token| &token.word)) {
                (Some(Word::Sign(a @ ('<' | '>'))), Some(Word::Sign(b))) if a == b => *a,
                _ => return Ok(value),
            };
            self.at += 2;
            let by = self.sum()? as u32;
            value = if sign == '<' { value.wrapping_shl(by) } else { value.wrapping_shr(by) };
        }
    }

    fn sum(&mut self) -> Result<i64, Error> {
        let mut value = self.product()?;
        loop {
            if self.take('+') {
                value = value.wrapping_add(self.product()?);
            } else if self.take('-') {
                value = value.wrapping_sub(self.product()?);
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<i64, Error> {
        let mut value = self.factor()?;
        loop {
            let (times, by, rest) = (self.take('*'), self.take('/'), self.take('%'));
            if !(times || by || rest) {
                return Ok(value);
            }
            let factor = self.factor()?;
            value = match (times, by) {
                (true, _) => value.wrapping_mul(factor),
                _ if factor == 0 => return self.error("a divisor other than 0"),
                (_, true) => value.wrapping_div(factor),
                _ => value.wrapping_rem(factor),
            };
        }
    }

    fn factor(&mut self) -> Result<i64, Error> {
        if self.take('-') {
            return Ok(self.factor()?.wrapping_neg());
        }
        if self.take('~') {
            return Ok(!self.factor()?);
        }
        if self.take('(') {
            let value = self.constant()?;
            self.expect(')')?;
            return Ok(value);
        }
        let Some(&Word::Integer(value)) = self.peek() else { return self.error("a constant") };
        self.at += 1;
        Ok(value as i64)
    }
}
