//! A JSON schema as nodes.
//!
//! Owns: which keywords there are and what each allows, and how many tokens a value of each node needs at least. What is
//! narrower than a schema is fine, wider never. Never: what has been written so far.

use super::apart::{Judge, plain};
use super::frame::{DIGITS, NEVER, WIDEST, Whole};
use super::state::WAYS;
use super::vocabulary::Vocabulary;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

pub(crate) enum Node {
    /// One of the texts from one place to another. They are sorted.
    Texts(usize, usize),
    AnyOf(Vec<usize>),
    /// A string of so many characters.
    Chars(u32, u32),
    Whole(Whole),
    Decimal,
    /// So many items of a node.
    Array {
        items: usize,
        min: u32,
        max: u32,
    },
    Object(Vec<Property>),
    /// An object of any keys with values of a node.
    Map(usize),
}

pub(crate) struct Property {
    pub name: String,
    /// `"name": `, and the same behind another property.
    pub first: usize,
    pub later: usize,
    pub value: usize,
    pub required: bool,
    /// Tokens that the rest of the object needs from here on, behind another property.
    pub rest: u32,
}

pub(crate) struct Text {
    pub bytes: Vec<u8>,
    /// The same for equal values, however they are written.
    pub value: String,
    /// Tokens of what follows each byte's place, the longest first.
    pub least: Vec<u32>,
}

/// The texts of every grammar, by their places among the texts.
pub(crate) const OPEN: usize = 0;
pub(crate) const CLOSE: usize = 1;
pub(crate) const BEGIN: usize = 2;
pub(crate) const END: usize = 3;
pub(crate) const QUOTE: usize = 4;
pub(crate) const COMMA: usize = 5;
pub(crate) const COLON: usize = 6;
const TEXTS: [&str; 7] = ["{", "}", "[", "]", "\"", ", ", ": "];

/// What a schema allows, in the tokens of one vocabulary.
pub struct Grammar {
    pub(crate) nodes: Vec<Node>,
    pub(crate) texts: Vec<Text>,
    pub(crate) root: usize,
    /// Tokens of the shortest value of each node.
    pub(crate) least: Vec<u32>,
    /// Whether each byte that ends a character of several has a token.
    pub(crate) partial: bool,
}

/// These say something to people only.
const ANNOTATIONS: [&str; 13] = [
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "discriminator",
];

/// Keywords that say all by themselves; beside them, only what says something to people.
const ALONE: [&str; 6] = ["$ref", "anyOf", "oneOf", "allOf", "const", "enum"];

const OBJECTS: [&str; 3] = ["properties", "required", "additionalProperties"];
const ARRAYS: [&str; 3] = ["items", "minItems", "maxItems"];
const STRINGS: [&str; 2] = ["minLength", "maxLength"];
const NUMBERS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];

/// The schema as a grammar, or a sentence that names what cannot be kept.
pub fn compile(schema: &Value, vocabulary: &Vocabulary) -> Result<Grammar, String> {
    let grammar =
        Grammar { nodes: Vec::new(), texts: Vec::new(), root: 0, least: Vec::new(), partial: false };
    let (known, narrowed, one_of) = (HashMap::new(), HashSet::new(), Vec::new());
    let mut compiler = Compiler { schema, vocabulary, grammar, known, narrowed, one_of, any: None };
    for text in TEXTS {
        compiler.text(text)?;
    }
    for byte in b"-0123456789" {
        vocabulary.byte(*byte).ok_or("the model's vocabulary has no token for a digit alone")?;
    }
    let root = compiler.node(schema, "#")?;
    // Now that every `$ref` has its node.
    let judge = Judge { grammar: &compiler.grammar, narrowed: &compiler.narrowed };
    for (at, nodes) in &compiler.one_of {
        judge.one_of(nodes, at)?;
    }
    let mut grammar = compiler.grammar;
    grammar.root = root;
    grammar.partial = [0x80, 0x90, 0xa0].iter().all(|&byte| vocabulary.byte(byte).is_some());
    if grammar.chases_itself() {
        return Err("a \"$ref\" of the schema leads to nothing but itself".to_owned());
    }
    grammar.count_ways()?;
    grammar.measure();
    if grammar.least[root] >= NEVER {
        return Err("no finite text is what the schema asks for".to_owned());
    }
    Ok(grammar)
}

struct Compiler<'a> {
    schema: &'a Value,
    vocabulary: &'a Vocabulary,
    grammar: Grammar,
    /// Nodes of what `$ref` names.
    known: HashMap<String, usize>,
    /// Nodes whose schema names no type.
    narrowed: HashSet<usize>,
    /// Where there is a `oneOf`, and its nodes.
    one_of: Vec<(String, Vec<usize>)>,
    any: Option<usize>,
}

impl Compiler<'_> {
    fn push(&mut self, node: Node) -> usize {
        self.grammar.nodes.push(node);
        self.grammar.nodes.len() - 1
    }

    fn text(&mut self, text: &str) -> Result<usize, String> {
        let bytes = text.as_bytes().to_vec();
        let mut least = vec![0; bytes.len() + 1];
        for at in (0..bytes.len()).rev() {
            let longest = self.vocabulary.longest(&bytes[at..]);
            let (_, len) = longest.ok_or_else(|| format!("the model's vocabulary cannot write {text:?}"))?;
            least[at] = 1 + least[at + len];
        }
        self.grammar.texts.push(Text { bytes, value: text.to_owned(), least });
        Ok(self.grammar.texts.len() - 1)
    }

    /// One of these values.
    fn values(&mut self, values: &[&Value]) -> Result<Node, String> {
        let mut texts: Vec<(String, &Value)> = values.iter().map(|&value| (written(value), value)).collect();
        texts.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        texts.dedup_by(|a, b| a.0 == b.0);
        let from = self.grammar.texts.len();
        for (text, value) in texts {
            let text = self.text(&text)?;
            self.grammar.texts[text].value = plain(value);
        }
        Ok(Node::Texts(from, self.grammar.texts.len()))
    }

    fn node(&mut self, schema: &Value, at: &str) -> Result<usize, String> {
        let keywords = match schema {
            Value::Bool(true) => return self.any(),
            Value::Bool(false) => return Ok(self.push(Node::AnyOf(Vec::new()))),
            Value::Object(keywords) => keywords,
            _ => return Err(format!("{at} of the schema is neither an object nor a truth value")),
        };
        let says = |keyword: &&String| !ANNOTATIONS.contains(&keyword.as_str());
        let known = |keyword: &str| {
            let shapes: [&[&str]; 4] = [&OBJECTS, &ARRAYS, &STRINGS, &NUMBERS];
            keyword == "type" || ALONE.contains(&keyword) || shapes.iter().any(|list| list.contains(&keyword))
        };
        if let Some(keyword) = keywords.keys().filter(says).find(|keyword| !known(keyword)) {
            return Err(format!("{keyword:?} at {at} of the schema is not supported"));
        }
        if let Some(&alone) = ALONE.iter().find(|&&keyword| keywords.contains_key(keyword)) {
            let lists = alone == "const" || alone == "enum";
            let beside = |keyword: &&String| *keyword != alone && !(lists && *keyword == "type");
            if let Some(other) = keywords.keys().filter(says).find(beside) {
                return Err(format!("{other:?} beside {alone:?} at {at} of the schema is not supported"));
            }
            return self.alone(alone, &keywords[alone], keywords, at);
        }
        let types = types(keywords, at)?;
        let mut nodes = Vec::new();
        for name in &types {
            nodes.push(self.of_type(name, keywords, at)?);
        }
        if !keywords.contains_key("type") {
            self.narrowed.extend(&nodes);
        }
        match nodes[..] {
            [] => self.any(),
            [node] => Ok(node),
            _ => Ok(self.push(Node::AnyOf(nodes))),
        }
    }

    fn alone(
        &mut self,
        keyword: &str,
        value: &Value,
        keywords: &Map<String, Value>,
        at: &str,
    ) -> Result<usize, String> {
        if keyword == "$ref" {
            return self.reference(value, at);
        }
        if keyword == "const" {
            return self.list(std::slice::from_ref(value), keywords, at);
        }
        let Value::Array(list) = value else {
            return Err(format!("{keyword:?} at {at} of the schema is not a list"));
        };
        if keyword == "enum" {
            return self.list(list, keywords, at);
        }
        let mut nodes = Vec::new();
        for (number, schema) in list.iter().enumerate() {
            nodes.push(self.node(schema, &format!("{at}/{keyword}/{number}"))?);
        }
        if keyword == "allOf" && nodes.len() != 1 {
            return Err(format!("\"allOf\" of several at {at} of the schema is not supported"));
        }
        if keyword == "oneOf" {
            self.one_of.push((at.to_owned(), nodes.clone()));
        }
        Ok(self.push(Node::AnyOf(nodes)))
    }

    /// A part of the same schema; the same node each time, or one that refers to itself would have no end.
    fn reference(&mut self, value: &Value, at: &str) -> Result<usize, String> {
        let name = value.as_str().unwrap_or_default();
        if let Some(&node) = self.known.get(name) {
            return Ok(node);
        }
        let part = name.strip_prefix('#').and_then(|pointer| self.schema.pointer(pointer));
        let part = part.ok_or_else(|| {
            format!("\"$ref\" at {at} of the schema names {value}, which is no part of this schema")
        })?;
        let node = self.push(Node::AnyOf(Vec::new()));
        self.known.insert(name.to_owned(), node);
        let target = self.node(part, name)?;
        self.grammar.nodes[node] = Node::AnyOf(vec![target]);
        Ok(node)
    }

    /// One of a list, as far as they are of the types that are named beside it.
    fn list(&mut self, list: &[Value], keywords: &Map<String, Value>, at: &str) -> Result<usize, String> {
        let types = types(keywords, at)?;
        let allowed = |value: &&Value| types.is_empty() || types.iter().any(|name| is_of(value, name));
        let values: Vec<&Value> = list.iter().filter(allowed).collect();
        let node = self.values(&values)?;
        Ok(self.push(node))
    }

    fn any(&mut self) -> Result<usize, String> {
        if let Some(any) = self.any {
            return Ok(any);
        }
        let any = self.push(Node::AnyOf(Vec::new()));
        self.any = Some(any);
        let nodes = [
            self.values(&[&Value::Null, &Value::Bool(false), &Value::Bool(true)])?,
            Node::Chars(0, u32::MAX),
            Node::Decimal,
            Node::Array { items: any, min: 0, max: u32::MAX },
            Node::Map(any),
        ];
        let nodes = nodes.map(|node| self.push(node));
        self.grammar.nodes[any] = Node::AnyOf(nodes.to_vec());
        Ok(any)
    }

    fn of_type(&mut self, name: &str, keywords: &Map<String, Value>, at: &str) -> Result<usize, String> {
        let node = match name {
            "null" => self.values(&[&Value::Null])?,
            "boolean" => self.values(&[&Value::Bool(false), &Value::Bool(true)])?,
            "string" => {
                Node::Chars(count(keywords, "minLength", 0, at)?, count(keywords, "maxLength", u32::MAX, at)?)
            }
            "integer" => Node::Whole(whole(keywords, at)?),
            "number" => match NUMBERS.iter().find(|&&keyword| keywords.contains_key(keyword)) {
                Some(keyword) => {
                    return Err(format!("{keyword:?} at {at} of the schema is supported for integers only"));
                }
                None => Node::Decimal,
            },
            "array" => {
                let items = match keywords.get("items") {
                    Some(items) => self.node(items, &format!("{at}/items"))?,
                    None => self.any()?,
                };
                let (min, max) =
                    (count(keywords, "minItems", 0, at)?, count(keywords, "maxItems", u32::MAX, at)?);
                Node::Array { items, min, max }
            }
            "object" => self.object(keywords, at)?,
            _ => return Err(format!("{name:?} at {at} of the schema is no type")),
        };
        Ok(self.push(node))
    }

    fn object(&mut self, keywords: &Map<String, Value>, at: &str) -> Result<Node, String> {
        let none = Map::new();
        let properties = match keywords.get("properties") {
            Some(Value::Object(properties)) => properties,
            Some(_) => return Err(format!("\"properties\" at {at} of the schema is not an object")),
            None => &none,
        };
        let mut required = Vec::new();
        for name in keywords.get("required").and_then(Value::as_array).into_iter().flatten() {
            required.push(name.as_str().ok_or_else(|| format!("\"required\" at {at} names {name}"))?);
        }
        let others = keywords.get("additionalProperties").unwrap_or(&Value::Bool(true));
        if properties.is_empty() && required.is_empty() && *others != Value::Bool(false) {
            return Ok(Node::Map(self.node(others, &format!("{at}/additionalProperties"))?));
        }
        let mut list = Vec::new();
        for (name, schema) in properties {
            let value = self.node(schema, &format!("{at}/properties/{name}"))?;
            list.push(self.property(name, value, required.contains(&name.as_str()))?);
        }
        for name in required {
            if !properties.contains_key(name) {
                let value = self.node(others, &format!("{at}/additionalProperties"))?;
                list.push(self.property(name, value, true)?);
            }
        }
        Ok(Node::Object(list))
    }

    fn property(&mut self, name: &str, value: usize, required: bool) -> Result<Property, String> {
        let first = format!("{}: ", Value::from(name));
        let later = self.text(&format!(", {first}"))?;
        Ok(Property { name: name.to_owned(), first: self.text(&first)?, later, value, required, rest: NEVER })
    }
}

/// The types that are allowed; none: all. Where none is named, the keywords tell of which they are.
fn types(keywords: &Map<String, Value>, at: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("\"type\" at {at} of the schema is neither a name nor a list of names");
    match keywords.get("type") {
        Some(Value::String(name)) => Ok(vec![name.clone()]),
        Some(Value::Array(names)) if !names.is_empty() => {
            names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
        None => {
            let shapes: [(&[&str], &str); 4] =
                [(&OBJECTS, "object"), (&ARRAYS, "array"), (&STRINGS, "string"), (&NUMBERS, "number")];
            let has = |list: &[&str]| list.iter().any(|&keyword| keywords.contains_key(keyword));
            Ok(shapes
                .iter()
                .filter(|(list, _)| has(list))
                .map(|(_, name)| (*name).to_owned())
                .take(1)
                .collect())
        }
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => {
            // 1.0 is an integer, too.
            name == "number" || name == "integer" && number.as_f64().is_none_or(|it| it.fract() == 0.0)
        }
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

fn count(keywords: &Map<String, Value>, keyword: &str, default: u32, at: &str) -> Result<u32, String> {
    let Some(value) = keywords.get(keyword) else { return Ok(default) };
    let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
    count.ok_or_else(|| format!("{keyword:?} at {at} of the schema is {value}, no count"))
}

fn whole(keywords: &Map<String, Value>, at: &str) -> Result<Whole, String> {
    let bound = |keyword: &str, default: f64| match keywords.get(keyword) {
        Some(value) => {
            value.as_f64().ok_or_else(|| format!("{keyword:?} at {at} of the schema is no number"))
        }
        None => Ok(default),
    };
    // Integers of so many digits are exact in a double, and none has more: that allows less. Bounds beyond stay beyond.
    let (widest, beyond) = (WIDEST as f64, 2.0 * WIDEST as f64);
    let min = bound("minimum", -widest)?.ceil().max(bound("exclusiveMinimum", -beyond)?.floor() + 1.0);
    let max = bound("maximum", widest)?.floor().min(bound("exclusiveMaximum", beyond)?.ceil() - 1.0);
    if min > widest || max < -widest {
        return Err(format!("the integers at {at} of the schema have more than {DIGITS} digits"));
    }
    Ok(Whole { min: min.max(-widest) as i64, max: max.min(widest) as i64, negative: false, value: None })
}

/// A value in the one form that is written.
fn written(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", "))
        }
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| {
                format!("{}: {}", Value::from(name.as_str()), written(value))
            };
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

impl Grammar {
    /// Refuses a schema that leaves more ways in one place than are followed.
    fn count_ways(&self) -> Result<(), String> {
        let refused = |what: &str| Err(format!("the schema has {what}, and {WAYS} are followed"));
        let mut begins = vec![1; self.nodes.len()];
        // No node is an alternative of itself, so this comes to an end.
        loop {
            let count = |node: &Node| match node {
                Node::AnyOf(nodes) => {
                    nodes.iter().fold(0usize, |sum, &node| sum.saturating_add(begins[node]))
                }
                _ => 1,
            };
            let counted: Vec<usize> = self.nodes.iter().map(count).collect();
            if counted == begins {
                break;
            }
            begins = counted;
        }
        if begins.iter().any(|&ways| ways > WAYS) {
            return refused("a value of too many alternatives");
        }
        for node in &self.nodes {
            let Node::Object(properties) = node else { continue };
            let runs = properties.split(|property| property.required);
            // One more for what follows them.
            if runs.into_iter().any(|run| run.len() + 1 > WAYS) {
                return refused("an object with too many properties that are not required");
            }
        }
        Ok(())
    }

    /// Finds how many tokens each node needs: what needs none of the others first, until nothing gets shorter.
    fn measure(&mut self) {
        self.least = vec![NEVER; self.nodes.len()];
        loop {
            let mut shorter = false;
            for number in 0..self.nodes.len() {
                let (least, texts) = (&self.least, &self.texts);
                let sum =
                    |parts: &[u32]| parts.iter().fold(0u32, |sum, part| sum.saturating_add(*part)).min(NEVER);
                let need = match &mut self.nodes[number] {
                    Node::Texts(from, to) => {
                        texts[*from..*to].iter().map(|text| text.least[0]).min().unwrap_or(NEVER)
                    }
                    Node::AnyOf(nodes) => nodes.iter().map(|&node| least[node]).min().unwrap_or(NEVER),
                    Node::Chars(min, max) if *min > *max => NEVER,
                    Node::Chars(min, _) => sum(&[2, *min]),
                    Node::Whole(whole) => whole.least(),
                    Node::Decimal => 1,
                    Node::Array { min, max, .. } if *min > *max => NEVER,
                    Node::Array { items, min, .. } => {
                        let separated = texts[COMMA].least[0].saturating_add(least[*items]);
                        let items = separated.saturating_mul(*min);
                        sum(&[items, 2]).min(NEVER)
                    }
                    Node::Object(properties) => {
                        let mut rest = 1;
                        let mut first = 1;
                        for property in properties.iter_mut().rev() {
                            if property.required {
                                let value = least[property.value];
                                first = sum(&[texts[property.first].least[0], value, rest]);
                                rest = sum(&[texts[property.later].least[0], value, rest]);
                            }
                            shorter |= rest < property.rest;
                            property.rest = rest;
                        }
                        sum(&[1, first])
                    }
                    Node::Map(_) => 2,
                };
                shorter |= need < self.least[number];
                self.least[number] = need;
            }
            if !shorter {
                return;
            }
        }
    }

    /// A node that is an alternative of itself, without a byte between.
    fn chases_itself(&self) -> bool {
        // Each round removes the nodes whose alternatives are all removed: what stays goes in circles.
        let mut open: Vec<bool> = self.nodes.iter().map(|node| matches!(node, Node::AnyOf(_))).collect();
        loop {
            let closed = |node: &Node| match node {
                Node::AnyOf(nodes) => nodes.iter().all(|&node| !open[node]),
                _ => true,
            };
            let next: Vec<bool> =
                self.nodes.iter().zip(&open).map(|(node, &open)| open && !closed(node)).collect();
            if next == open {
                return open.contains(&true);
            }
            open = next;
        }
    }
}
