//! How a component is brought to life: core modules to instantiate, in order, each with its imports resolved.
//!
//! Owns: the plan, as data. Never: bytes, types, or a running instance; `component.rs` makes it from the former and
//! `runtime/instance.rs` follows it to the latter. Shims, fixups and adapters are modules like any other here.

use crate::host::function::{HostFunction, HostResource};
use std::ops::Range;
use std::sync::Arc;

/// A checked component.
#[derive(Clone)]
pub struct Plan {
    /// Where the core modules stand in the component's bytes.
    pub modules: Vec<Range<usize>>,
    /// Bytes of memory that its translation takes beside what the component's length says.
    pub bytes_beside: usize,
    /// To be done in this order. Step i makes core instance i.
    pub steps: Vec<Step>,
    /// `inferlet:core/run`: () -> result<_, string>.
    pub run: Option<Entry>,
    /// `wasi:http/incoming-handler`: (incoming-request, response-outparam). One of the two is there.
    pub handle: Option<Entry>,
}

/// Instantiate one module.
#[derive(Clone)]
pub struct Step {
    /// Index in [`Plan::modules`].
    pub module: usize,
    /// In the order of the module's import section; [`Code`](super::Code) has them in the interpreter's.
    pub imports: Vec<Import>,
}

/// What one import of a core module is given.
#[derive(Clone)]
pub struct Import {
    /// The import's module and field names.
    pub name: (String, String),
    pub item: Item,
}

/// What a core module is given, or what a canonical option names.
#[derive(Clone)]
pub enum Item {
    /// An export of the core instance that an earlier step made.
    Export { instance: usize, name: Arc<str> },
    /// A host function through `canon lower`.
    Lowered(Arc<Lowered>),
    /// `canon resource.drop` of a host resource.
    Drop(&'static HostResource),
}

/// One `canon lower`: the function and where its values go. Strings are UTF-8.
pub struct Lowered {
    pub function: &'static HostFunction,
    pub memory: Option<Item>,
    pub realloc: Option<Item>,
}

/// A lifted function that starts a program: its core function and options.
#[derive(Clone)]
pub struct Entry {
    pub function: Item,
    pub memory: Option<Item>,
    pub post_return: Option<Item>,
}
