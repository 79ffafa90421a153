//! Whether a value could be of two schemas at once.
//!
//! Owns: what `oneOf` asks: values as they compare, and nodes that share none. Never: what is not certain; it counts as shared.

use super::schema::{Grammar, Node};
use serde_json::Value;
use std::collections::HashSet;

/// What is known of the nodes of a schema.
pub(crate) struct Judge<'a> {
    pub grammar: &'a Grammar,
    /// Nodes whose schema names no type: it allows every value of the types that its keywords do not speak of, too.
    pub narrowed: &'a HashSet<usize>,
}

impl Judge<'_> {
    /// Whether no value can be two of the nodes of a `oneOf`, which is here; else a sentence.
    pub fn one_of(&self, nodes: &[usize], at: &str) -> Result<(), String> {
        let mut pairs = (0..nodes.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        if let Some((a, b)) = pairs.find(|&(a, b)| !self.apart(nodes[a], nodes[b], 8)) {
            return Err(format!(
                "\"oneOf\" at {at} of the schema is not supported where one value may be both number {b} and number \
                     {a}; \"anyOf\" is"
            ));
        }
        Ok(())
    }

    /// Whether no value is one of both, as far as types, constants, and required properties tell.
    fn apart(&self, a: usize, b: usize, depth: usize) -> bool {
        let Some(depth) = depth.checked_sub(1) else { return false };
        if self.narrowed.contains(&a) || self.narrowed.contains(&b) {
            return false; // what its schema allows is more than the node
        }
        let kind = |node: &Node| match node {
            Node::Chars(..) => Some(b"\"".as_slice()),
            Node::Whole(_) | Node::Decimal => Some(b"-0123456789".as_slice()),
            Node::Array { .. } => Some(b"[".as_slice()),
            Node::Object(_) | Node::Map(_) => Some(b"{".as_slice()),
            Node::Texts(..) | Node::AnyOf(_) => None,
        };
        let texts = |from: usize, to: usize| self.grammar.texts[from..to].iter();
        match (&self.grammar.nodes[a], &self.grammar.nodes[b]) {
            (Node::AnyOf(nodes), _) => nodes.iter().all(|&node| self.apart(node, b, depth)),
            (_, Node::AnyOf(nodes)) => nodes.iter().all(|&node| self.apart(a, node, depth)),
            (&Node::Texts(a, to), &Node::Texts(b, end)) => {
                let values: HashSet<&str> = texts(a, to).map(|text| text.value.as_str()).collect();
                texts(b, end).all(|text| !values.contains(text.value.as_str()))
            }
            (&Node::Texts(from, to), node) | (node, &Node::Texts(from, to)) => {
                let first = kind(node).unwrap_or_default();
                texts(from, to).all(|text| !first.contains(&text.bytes[0]))
            }
            (Node::Object(a), Node::Object(b)) => a.iter().any(|a| {
                let same = b.iter().find(|b| b.name == a.name && b.required && a.required);
                same.is_some_and(|b| self.apart(a.value, b.value, depth))
            }),
            (a, b) => kind(a) != kind(b),
        }
    }
}

/// A value in a form that is the same for equal values: numbers by what they are, members by their names. Numbers that a double
/// does not tell apart count as equal.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("{:e}", number.as_f64().unwrap_or(f64::NAN) + 0.0),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let member =
                |(name, value): (&String, &Value)| format!("{}:{}", Value::from(name.as_str()), plain(value));
            let mut members: Vec<String> = members.iter().map(member).collect();
            members.sort();
            format!("{{{}}}", members.join(","))
        }
        _ => value.to_string(),
    }
}
