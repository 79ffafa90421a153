//! What has been written so far, a byte at a time: every way to read it as the beginning of a value.
//!
//! Owns: stacks of what is still to come, one a way, and how few tokens end each. They share their lower parts, so a state
//! is cheap to copy and to try a token on. Never: tokens.

use super::frame::{Char, Decimal, Frame, NEVER};
use super::schema::{BEGIN, CLOSE, COLON, COMMA, END, Grammar, Node, OPEN, QUOTE};
use std::rc::Rc;

/// Ways that are followed at once. More are cut to the shortest ones, which allows less and nothing wrong; a schema that has
/// more in one place is refused.
pub const WAYS: usize = 64;

/// How deep what is still to come may lie by the model's choice. Readers of JSON have bounds of their own.
pub const DEPTH: u32 = 100;

type Stack = Option<Rc<Link>>;

struct Link {
    frame: Frame,
    below: Stack,
    /// Tokens that end all, from this frame down.
    least: u32,
    depth: u32,
}

fn least(stack: &Stack) -> u32 {
    stack.as_ref().map_or(0, |link| link.least)
}

#[derive(Clone)]
pub struct State {
    /// On top of each lies what takes the next byte. An empty one: the value is whole.
    stacks: Vec<Stack>,
}

impl State {
    pub fn new(grammar: &Grammar) -> State {
        let mut state = State { stacks: Vec::new() };
        state.open(grammar, push(grammar, &None, Frame::Value(grammar.root)));
        state.bound();
        state
    }

    /// Tokens that end the value, at least; `NEVER` if nothing can.
    pub fn least(&self) -> u32 {
        self.stacks.iter().map(least).min().unwrap_or(NEVER)
    }

    pub fn depth(&self) -> u32 {
        self.stacks.iter().flatten().map(|link| link.depth).max().unwrap_or(0)
    }

    /// Whether what is written is a whole value.
    pub fn whole(&self) -> bool {
        self.stacks.iter().any(Option::is_none)
    }

    /// Whether it is, and nothing may follow.
    pub fn over(&self) -> bool {
        self.stacks.iter().all(Option::is_none)
    }

    /// The text that must come next, if there is only one way.
    pub fn forced<'a>(&self, grammar: &'a Grammar) -> Option<&'a [u8]> {
        match &self.stacks[..] {
            [Some(link)] => text(grammar, link.frame),
            _ => None,
        }
    }

    /// Texts that may come next; of several in one place, the shortest.
    pub fn texts<'a>(&self, grammar: &'a Grammar) -> impl Iterator<Item = &'a [u8]> {
        self.stacks.iter().flatten().filter_map(|link| match link.frame {
            Frame::Texts(from, to, at) => {
                let texts = grammar.texts[from..to].iter();
                texts.min_by_key(|text| text.least[at]).map(|text| &text.bytes[at..])
            }
            frame => text(grammar, frame),
        })
    }

    /// Behind these bytes; none if they may not come.
    pub fn behind(&self, grammar: &Grammar, bytes: &[u8]) -> Option<State> {
        let mut bytes = bytes.iter();
        let mut state = self.next(grammar, *bytes.next()?)?;
        for &byte in bytes {
            state = state.next(grammar, byte)?;
        }
        Some(state)
    }

    fn next(&self, grammar: &Grammar, byte: u8) -> Option<State> {
        let mut next = State { stacks: Vec::new() };
        for link in self.stacks.iter().flatten() {
            let rest = match link.frame {
                Frame::Text(text, at) => {
                    let bytes = &grammar.texts[text].bytes;
                    if bytes[at] != byte {
                        continue;
                    } else if at + 1 == bytes.len() {
                        link.below.clone()
                    } else {
                        push(grammar, &link.below, Frame::Text(text, at + 1))
                    }
                }
                Frame::Texts(from, to, at) => {
                    let texts = &grammar.texts[from..to];
                    let mut first = from + texts.partition_point(|text| text.bytes[at] < byte);
                    let last = from + texts.partition_point(|text| text.bytes[at] <= byte);
                    if first < last && grammar.texts[first].bytes.len() == at + 1 {
                        next.open(grammar, link.below.clone());
                        first += 1;
                    }
                    match last - first {
                        0 => continue,
                        _ => push(grammar, &link.below, one_of(first, last, at + 1)),
                    }
                }
                Frame::Chars { need: 0, within: Char::Between, .. } if byte == b'"' => link.below.clone(),
                Frame::Chars { within: Char::Between, .. } if byte == b'"' => continue,
                Frame::Chars { need, room, within } => {
                    let Some((within, began)) = within.next(byte) else { continue };
                    if began && room == 0 {
                        continue;
                    }
                    let one = u32::from(began);
                    let frame = Frame::Chars { need: need.saturating_sub(one), room: room - one, within };
                    push(grammar, &link.below, frame)
                }
                Frame::Whole(whole) => match whole.next(byte) {
                    Some(whole) => push(grammar, &link.below, Frame::Whole(whole)),
                    None => continue,
                },
                Frame::Decimal(decimal) => match decimal.next(byte) {
                    Some(decimal) => push(grammar, &link.below, Frame::Decimal(decimal)),
                    None => continue,
                },
                Frame::Value(_) | Frame::Members(..) | Frame::Items(..) | Frame::Keys(..) => continue,
            };
            next.open(grammar, rest);
        }
        next.bound();
        (!next.stacks.is_empty()).then_some(next)
    }

    /// Adds a stack: what takes no byte itself gives way to what it may begin with.
    fn open(&mut self, grammar: &Grammar, stack: Stack) {
        let Some(link) = &stack else { return self.add(None) };
        let below = &link.below;
        match link.frame {
            Frame::Text(..) | Frame::Texts(..) | Frame::Chars { .. } => self.add(stack),
            Frame::Whole(whole) => {
                // It may be over, or go on.
                if whole.value.is_some() && whole.least() == 0 {
                    self.open(grammar, below.clone());
                }
                self.add(stack);
            }
            Frame::Decimal(decimal) => {
                if decimal.least() == 0 {
                    self.open(grammar, below.clone());
                }
                self.add(stack);
            }
            Frame::Value(node) => self.begin(grammar, node, below),
            Frame::Members(node, from, written) => {
                let Node::Object(properties) = &grammar.nodes[node] else { return };
                for (at, property) in properties.iter().enumerate().skip(from) {
                    let name = if written { property.later } else { property.first };
                    let rest = [Frame::Members(node, at + 1, true), Frame::Value(property.value)];
                    self.open(grammar, stacked(grammar, below, &rest, name));
                    if property.required {
                        return;
                    }
                }
                self.open(grammar, stacked(grammar, below, &[], CLOSE));
            }
            Frame::Items(node, count) => {
                let Node::Array { items, min, max } = grammar.nodes[node] else { return };
                if count >= min {
                    self.open(grammar, stacked(grammar, below, &[], END));
                }
                if count < max {
                    let rest = push(grammar, below, Frame::Items(node, count.saturating_add(1)));
                    let value = push(grammar, &rest, Frame::Value(items));
                    let separated = push(grammar, &value, Frame::Text(COMMA, 0));
                    self.open(grammar, if count == 0 { value } else { separated });
                }
            }
            Frame::Keys(node, count) => {
                let Node::Map(value) = grammar.nodes[node] else { return };
                self.open(grammar, stacked(grammar, below, &[], CLOSE));
                let key = Frame::Chars { need: 0, room: u32::MAX, within: Char::Between };
                let rest = [
                    Frame::Keys(node, count.saturating_add(1)),
                    Frame::Value(value),
                    Frame::Text(COLON, 0),
                    key,
                ];
                let quoted = stacked(grammar, below, &rest, QUOTE);
                let separated = push(grammar, &quoted, Frame::Text(COMMA, 0));
                self.open(grammar, if count == 0 { quoted } else { separated });
            }
        }
    }

    /// Begins a value of a node.
    fn begin(&mut self, grammar: &Grammar, number: usize, below: &Stack) {
        let stack = match &grammar.nodes[number] {
            &Node::Texts(from, to) if from == to => return,
            &Node::Texts(from, to) => push(grammar, below, one_of(from, to, 0)),
            Node::AnyOf(nodes) => {
                for &node in nodes {
                    self.begin(grammar, node, below);
                }
                return;
            }
            &Node::Chars(need, room) => {
                let chars = Frame::Chars { need, room, within: Char::Between };
                stacked(grammar, below, &[chars], QUOTE)
            }
            &Node::Whole(whole) => push(grammar, below, Frame::Whole(whole)),
            Node::Decimal => push(grammar, below, Frame::Decimal(Decimal::Start)),
            Node::Array { .. } => stacked(grammar, below, &[Frame::Items(number, 0)], BEGIN),
            Node::Object(_) => stacked(grammar, below, &[Frame::Members(number, 0, false)], OPEN),
            Node::Map(_) => stacked(grammar, below, &[Frame::Keys(number, 0)], OPEN),
        };
        self.open(grammar, stack);
    }

    /// Adds a stack that is there only once, unless nothing ends it.
    fn add(&mut self, stack: Stack) {
        let same = |other: &Stack| match (other, &stack) {
            (Some(other), Some(stack)) => {
                let below = match (&other.below, &stack.below) {
                    (Some(other), Some(stack)) => Rc::ptr_eq(other, stack),
                    (other, stack) => other.is_none() && stack.is_none(),
                };
                below && other.frame == stack.frame
            }
            (other, stack) => other.is_none() && stack.is_none(),
        };
        if least(&stack) < NEVER && !self.stacks.iter().any(same) {
            self.stacks.push(stack);
        }
    }

    fn bound(&mut self) {
        if self.stacks.len() > WAYS {
            self.stacks.sort_by_key(least);
            self.stacks.truncate(WAYS);
        }
    }
}

/// One of these texts from this byte on.
fn one_of(from: usize, to: usize, at: usize) -> Frame {
    if to - from == 1 { Frame::Text(from, at) } else { Frame::Texts(from, to, at) }
}

fn text(grammar: &Grammar, frame: Frame) -> Option<&[u8]> {
    match frame {
        Frame::Text(text, at) => Some(&grammar.texts[text].bytes[at..]),
        _ => None,
    }
}

/// These frames on a stack, and this text on top.
fn stacked(grammar: &Grammar, below: &Stack, frames: &[Frame], text: usize) -> Stack {
    let stack = frames.iter().fold(below.clone(), |stack, &frame| push(grammar, &stack, frame));
    push(grammar, &stack, Frame::Text(text, 0))
}

fn push(grammar: &Grammar, below: &Stack, frame: Frame) -> Stack {
    let own = match frame {
        Frame::Value(node) => grammar.least[node],
        Frame::Text(text, at) => grammar.texts[text].least[at],
        Frame::Texts(from, to, at) => {
            grammar.texts[from..to].iter().map(|text| text.least[at]).min().unwrap_or(NEVER)
        }
        Frame::Members(node, from, written) => match &grammar.nodes[node] {
            Node::Object(_) if !written => grammar.least[node] - 1,
            Node::Object(properties) => properties.get(from).map_or(1, |property| property.rest),
            _ => NEVER,
        },
        Frame::Items(node, count) => match grammar.nodes[node] {
            Node::Array { items, min, .. } => {
                let one = grammar.least[items].saturating_add(grammar.texts[COMMA].least[0]);
                min.saturating_sub(count).saturating_mul(one).saturating_add(1)
            }
            _ => NEVER,
        },
        Frame::Keys(..) => 1,
        Frame::Chars { within: Char::Utf8 { .. }, .. } if !grammar.partial => NEVER,
        Frame::Chars { need, within, .. } => need.saturating_add(within.least()).saturating_add(1),
        Frame::Whole(whole) => whole.least(),
        Frame::Decimal(decimal) => decimal.least(),
    };
    let least = least(below).saturating_add(own).min(NEVER);
    let depth = below.as_ref().map_or(0, |link| link.depth) + 1;
    Some(Rc::new(Link { frame, below: below.clone(), least, depth }))
}
