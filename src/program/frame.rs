//! The index spaces of a component, and what stands in them.
//!
//! Owns: what an index means, resolved as far as a plan needs it. Never: the binary (`component.rs` reads that) or a
//! type (the validator's).

use super::plan::{Entry, Item};
use super::rejected::Rejected;
use crate::host::function::HostFunction;
use std::collections::HashMap;
use std::sync::Arc;
use wasmparser::{CanonicalOption, ComponentExternalKind, ExternalKind};

/// A component while its sections go by. Index spaces are vectors; positions in them are the binary's indices.
#[derive(Default)]
pub struct Frame {
    pub modules: Vec<usize>,
    pub core_instances: Vec<CoreInstance>,
    pub core_functions: Vec<Item>,
    pub core_tables: Vec<Item>,
    pub core_memories: Vec<Item>,
    pub core_globals: Vec<Item>,
    pub functions: Vec<Function>,
    pub instances: Vec<Arc<Exports>>,
    pub components: Vec<Exports>,
    pub exports: Exports,
}

/// An instance made of core items.
pub enum CoreInstance {
    /// By this step of the plan.
    Step(usize),
    /// A bundle of items under names.
    Bundle(HashMap<String, Item>),
}

/// A component-level function.
#[derive(Clone)]
pub enum Function {
    Host(&'static HostFunction),
    Lifted(Arc<Lifted>),
    /// What the enclosing component gives a nested one under this name.
    Argument(String),
}

pub struct Lifted {
    pub entry: Entry,
    /// Whether its type is that of `run`, or of `handle`.
    pub runs: bool,
    pub handles: bool,
}

pub type Exports = HashMap<String, Entity>;

#[derive(Clone)]
pub enum Entity {
    Function(Function),
    /// Shared, because instances may hold instances: copies could double at each level.
    Instance(Arc<Exports>),
    /// A type: nothing to link.
    Inert,
}

/// The canonical options that matter, resolved.
#[derive(Default)]
pub struct Options {
    pub memory: Option<Item>,
    pub realloc: Option<Item>,
    pub post_return: Option<Item>,
}

impl Frame {
    pub fn core_space(&mut self, kind: ExternalKind) -> Result<&mut Vec<Item>, Rejected> {
        match kind {
            ExternalKind::Func => Ok(&mut self.core_functions),
            ExternalKind::Table => Ok(&mut self.core_tables),
            ExternalKind::Memory => Ok(&mut self.core_memories),
            ExternalKind::Global => Ok(&mut self.core_globals),
            ExternalKind::Tag => Err(Rejected::Unsupported(
                "The component uses WebAssembly exceptions, which are not supported".into(),
            )),
        }
    }

    pub fn core_export(&self, instance: u32, name: &str) -> Result<Item, Rejected> {
        match at(&self.core_instances, instance)? {
            CoreInstance::Step(step) => Ok(Item::Export { instance: *step, name: name.into() }),
            CoreInstance::Bundle(bundle) => bundle.get(name).cloned().ok_or_else(inconsistent),
        }
    }

    pub fn entity(&self, kind: ComponentExternalKind, index: u32) -> Result<Entity, Rejected> {
        match kind {
            ComponentExternalKind::Func => Ok(Entity::Function(at(&self.functions, index)?.clone())),
            ComponentExternalKind::Instance => Ok(Entity::Instance(at(&self.instances, index)?.clone())),
            ComponentExternalKind::Type | ComponentExternalKind::Value => Ok(Entity::Inert),
            ComponentExternalKind::Module | ComponentExternalKind::Component => composed(),
        }
    }

    pub fn options(&self, options: &[CanonicalOption]) -> Result<Options, Rejected> {
        let mut resolved = Options::default();
        for option in options {
            match option {
                CanonicalOption::Memory(i) => resolved.memory = Some(at(&self.core_memories, *i)?.clone()),
                CanonicalOption::Realloc(i) => resolved.realloc = Some(at(&self.core_functions, *i)?.clone()),
                CanonicalOption::PostReturn(i) => {
                    resolved.post_return = Some(at(&self.core_functions, *i)?.clone())
                }
                _ => {}
            }
        }
        Ok(resolved)
    }

    /// What starts a program (`run`), what answers a request (`handle`): one of them at least.
    pub fn entries(&self) -> Result<(Option<Entry>, Option<Entry>), Rejected> {
        let run = self.entry(&RUNS, "run", |lifted| lifted.runs, "() -> result<_, string>")?;
        let handle = self.entry(&HANDLES, "handle", |lifted| lifted.handles, HANDLE_TYPE)?;
        if run.is_none() && handle.is_none() {
            let mut names: Vec<String> = self.exports.keys().cloned().collect();
            names.sort_unstable();
            return Err(Rejected::NoEntry(names));
        }
        Ok((run, handle))
    }

    fn entry(
        &self,
        interfaces: &[&str],
        function: &str,
        fits: impl Fn(&Lifted) -> bool,
        ty: &str,
    ) -> Result<Option<Entry>, Rejected> {
        let found = self.exports.iter().find_map(|(name, entity)| match entity {
            Entity::Instance(exports) if interfaces.contains(&name.split('@').next().unwrap_or(name)) => {
                exports.get(function)
            }
            _ => None,
        });
        match found {
            Some(Entity::Function(Function::Lifted(lifted))) if fits(lifted) => {
                Ok(Some(lifted.entry.clone()))
            }
            Some(_) => Err(Rejected::OtherTypes(vec![format!("the export {function} is {ty} here")])),
            None => Ok(None),
        }
    }
}

/// The interfaces whose `run` starts a program, without version.
const RUNS: [&str; 2] = ["inferlet:core/run", "pie:inferlet/run"];
/// The one whose `handle` answers a request.
const HANDLES: [&str; 1] = ["wasi:http/incoming-handler"];
const HANDLE_TYPE: &str = "(incoming-request, response-outparam)";

pub fn at<T>(space: &[T], index: u32) -> Result<&T, Rejected> {
    space.get(index as usize).ok_or_else(inconsistent)
}

pub fn bounded(what: &'static str, is: usize, limit: usize) -> Result<(), Rejected> {
    if is > limit { Err(Rejected::TooLarge(what, is, limit)) } else { Ok(()) }
}

/// The validator has admitted something that this reader cannot follow.
pub fn inconsistent() -> Rejected {
    Rejected::Unsupported("The component is put together in a way that is not supported here".into())
}

pub fn composed<T>() -> Result<T, Rejected> {
    Err(Rejected::Unsupported(
        "Composed components are not run here: build the program as one component".into(),
    ))
}

pub fn own_resources<T>() -> Result<T, Rejected> {
    Err(Rejected::Unsupported(
        "The component defines resource types of its own, which an inferlet cannot export".into(),
    ))
}
