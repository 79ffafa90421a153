//! Reads a component: validates it once and interprets its core-instance graph into a [`Plan`].
//!
//! Owns: the walk over the binary, its index spaces, and every reason to refuse a component. Never: running it, or
//! translating it.
//!
//! Nothing here goes by the names that tools give their modules. Each `canon lower` says which function of which
//! interface it lowers, with which memory and allocator; aliases say which export of which instance is meant. So the
//! direct shape (program, shim, fixups), the one with the preview-1 adapter between, and whatever comes next are read
//! alike, as long as there is one memory and only the top component has code.

use super::body::Bodies;
use super::frame::{
    CoreInstance, Entity, Exports, Frame, Function, Lifted, at, bounded, composed, inconsistent,
    own_resources,
};
use super::plan::{Entry, Import, Item, Lowered, Plan, Step};
use super::rejected::Rejected;
use super::types::{Complaints, Resources};
use crate::host;
use crate::host::shape::{Shape, Signature};
use crate::limits;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use wasmparser::types::TypesRef;
use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentTypeRef, ElementItems, Instance, Parser, Payload, TypeBounds, ValidPayload, Validator,
};

/// Checks a component completely.
pub fn read(component: &[u8]) -> Result<Plan, Rejected> {
    if component.len() > limits::PROGRAM_BYTES {
        return Err(Rejected::TooLarge("bytes", component.len(), limits::PROGRAM_BYTES));
    }
    if Parser::is_core_wasm(component) {
        return Err(Rejected::CoreModule);
    }
    if !component.starts_with(b"\0asm") {
        return Err(Rejected::NotWasm);
    }
    let mut reader = Reader::default();
    for payload in Parser::new(0).parse_all(component) {
        reader.payload(payload?)?;
    }
    reader.plan()
}

impl From<wasmparser::BinaryReaderError> for Rejected {
    fn from(error: wasmparser::BinaryReaderError) -> Rejected {
        Rejected::Malformed { offset: error.offset(), what: error.message().to_owned() }
    }
}

/// What is known of a core module: enough to resolve and to bound it.
#[derive(Default)]
struct Module {
    range: Range<usize>,
    imports: Vec<(String, String)>,
    functions: usize,
    elements: usize,
    globals: usize,
    exports: usize,
}

#[derive(Default)]
struct Reader {
    validator: Validator,
    bodies: Bodies,
    modules: Vec<Module>,
    steps: Vec<Step>,
    memories: usize,
    resources: Resources,
    complaints: Complaints,
    /// Components that are open, outermost first.
    frames: Vec<Frame>,
    in_module: bool,
    whole: Option<Frame>,
}

impl Reader {
    fn payload(&mut self, payload: Payload<'_>) -> Result<(), Rejected> {
        if let Payload::ComponentCanonicalSection(section) = &payload {
            // Before the validator, whose words for what it does not know are for tool makers.
            section.clone().into_iter().try_for_each(|canon| synchronous(&canon?))?;
        }
        if let ValidPayload::Func(function, body) = self.validator.payload(&payload)? {
            self.bodies.check(function, &body)?;
            bounded("locals in its functions", self.bodies.locals, limits::PROGRAM_LOCALS)?;
            bounded("locals in one function", self.bodies.locals_of_one, limits::FUNCTION_LOCALS)?;
            return bounded(
                "values that instructions take and give beyond 4 each",
                self.bodies.moved,
                limits::PROGRAM_MOVED,
            );
        }
        match payload {
            Payload::Version { .. } if !self.in_module => self.frames.push(Frame::default()),
            Payload::End(_) if self.in_module => self.in_module = false,
            Payload::End(_) => self.close()?,
            Payload::ModuleSection { unchecked_range, .. } => {
                self.top("a module of its own")?;
                bounded("core modules", self.modules.len() + 1, limits::CORE_INSTANCES)?;
                let module = self.modules.len();
                self.frame()?.modules.push(module);
                self.modules.push(Module { range: unchecked_range, ..Module::default() });
                self.in_module = true;
            }
            _ if self.in_module => self.module(payload)?,
            Payload::ComponentSection { .. } => self.top("a component of its own")?,
            Payload::InstanceSection(section) => {
                self.top("core instances")?;
                section.into_iter().try_for_each(|instance| self.core_instance(instance?))?;
            }
            Payload::ComponentInstanceSection(section) => {
                section.into_iter().try_for_each(|instance| self.instance(instance?))?;
            }
            Payload::ComponentAliasSection(section) => {
                section.into_iter().try_for_each(|alias| self.alias(alias?))?
            }
            Payload::ComponentCanonicalSection(section) => {
                self.top("code")?;
                section.into_iter().try_for_each(|canon| self.canon(canon?))?;
            }
            Payload::ComponentImportSection(section) => {
                section.into_iter().try_for_each(|import| {
                    let import = import?;
                    self.import(import.name.0, import.ty)
                })?;
            }
            Payload::ComponentExportSection(section) => {
                section.into_iter().try_for_each(|export| {
                    let export = export?;
                    self.export(export.name.0, export.kind, export.index)
                })?;
            }
            Payload::ComponentStartSection { .. } => {
                return Err(Rejected::Unsupported(
                    "The component has a component-level start function, which is not run here".into(),
                ));
            }
            // Types are the validator's business, custom sections nobody's.
            _ => {}
        }
        Ok(())
    }

    // ---- inside a core module ----

    fn module(&mut self, payload: Payload<'_>) -> Result<(), Rejected> {
        let Some(module) = self.modules.last_mut() else { return Ok(()) };
        match payload {
            Payload::ImportSection(section) => {
                for import in section {
                    let import = import?;
                    module.imports.push((import.module.to_owned(), import.name.to_owned()));
                }
                bounded("imports in a core module", module.imports.len(), limits::PROGRAM_IMPORTS)?;
            }
            Payload::FunctionSection(section) => module.functions = section.count() as usize,
            Payload::ElementSection(section) => {
                for element in section {
                    module.elements += match element?.items {
                        ElementItems::Functions(items) => items.count() as usize,
                        ElementItems::Expressions(_, items) => items.count() as usize,
                    };
                }
            }
            Payload::GlobalSection(section) => module.globals = section.count() as usize,
            Payload::ExportSection(section) => module.exports = section.count() as usize,
            Payload::MemorySection(section) => {
                self.memories += section.count() as usize;
                if self.memories > limits::CORE_MEMORIES {
                    return Err(Rejected::Unsupported(format!(
                        "The component has {} memories, and a program has one here",
                        self.memories
                    )));
                }
                for memory in section {
                    let memory = memory?;
                    if memory.memory64 || memory.shared {
                        let kind = if memory.shared { "shared (threads)" } else { "64-bit" };
                        return Err(Rejected::Unsupported(format!(
                            "The component's memory is {kind}, which is not supported"
                        )));
                    }
                }
            }
            Payload::TableSection(section) => {
                bounded("tables in a core module", section.count() as usize, limits::CORE_TABLES)?
            }
            _ => {}
        }
        Ok(())
    }

    // ---- the index spaces of a component ----

    fn frame(&mut self) -> Result<&mut Frame, Rejected> {
        self.frames.last_mut().ok_or_else(inconsistent)
    }

    /// Nested components may only pass on what they are given; tools make those to name an export.
    fn top(&self, what: &str) -> Result<(), Rejected> {
        match self.frames.len() {
            0 | 1 => Ok(()),
            _ => Err(Rejected::Unsupported(format!(
                "A component inside the component has {what}: composed components are not run here, build the program as one"
            ))),
        }
    }

    fn types(&self) -> Result<TypesRef<'_>, Rejected> {
        self.validator.types(0).ok_or_else(inconsistent)
    }

    fn close(&mut self) -> Result<(), Rejected> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        match self.frames.last_mut() {
            Some(outer) => outer.components.push(frame.exports),
            None => self.whole = Some(frame),
        }
        Ok(())
    }

    fn import(&mut self, name: &str, ty: ComponentTypeRef) -> Result<(), Rejected> {
        if self.frames.len() > 1 {
            let frame = self.frame()?;
            match ty {
                ComponentTypeRef::Func(_) => frame.functions.push(Function::Argument(name.to_owned())),
                ComponentTypeRef::Type(_) => {}
                _ => {
                    return Err(Rejected::Unsupported(
                        "A component inside the component imports more than functions: composed components are not run here".into(),
                    ));
                }
            }
            return Ok(());
        }
        match ty {
            ComponentTypeRef::Instance(_) => {
                let types = self.validator.types(0).ok_or_else(inconsistent)?;
                // The section was validated as a whole, so the instance is found by its place, not as the last one.
                let index = self.frames.last().map_or(0, |frame| frame.instances.len()) as u32;
                if index >= types.component_instance_count() {
                    return Err(inconsistent());
                }
                let declared = types.component_instance_at(index);
                self.resources.import(name, declared, &types, &mut self.complaints);
                let functions = match host::interface(name) {
                    Some(interface) => {
                        let ours = interface.functions.iter();
                        ours.map(|f| (f.name.to_owned(), Entity::Function(Function::Host(f)))).collect()
                    }
                    None => Exports::new(),
                };
                self.frame()?.instances.push(Arc::new(functions));
            }
            ComponentTypeRef::Type(TypeBounds::Eq(_)) => {}
            _ => {
                self.complaints.unknown.push(name.to_owned());
                // Keeps the index spaces in step; the component is refused at its end with all complaints.
                if let ComponentTypeRef::Func(_) = ty {
                    self.frame()?.functions.push(Function::Argument(name.to_owned()));
                }
                if let ComponentTypeRef::Component(_) | ComponentTypeRef::Module(_) = ty {
                    return Err(Rejected::UnknownImports(std::mem::take(&mut self.complaints.unknown)));
                }
            }
        }
        Ok(())
    }

    fn export(&mut self, name: &str, kind: ComponentExternalKind, index: u32) -> Result<(), Rejected> {
        let frame = self.frame()?;
        let entity = frame.entity(kind, index)?;
        // An export is a new index of what it exports.
        match &entity {
            Entity::Function(function) => frame.functions.push(function.clone()),
            Entity::Instance(exports) => frame.instances.push(exports.clone()),
            Entity::Inert => {}
        }
        frame.exports.insert(name.to_owned(), entity);
        bounded("exports", frame.exports.len(), limits::PROGRAM_EXPORTS)
    }

    fn alias(&mut self, alias: ComponentAlias<'_>) -> Result<(), Rejected> {
        let frame = self.frame()?;
        match alias {
            ComponentAlias::CoreInstanceExport { kind, instance_index, name } => {
                let item = frame.core_export(instance_index, name)?;
                frame.core_space(kind)?.push(item);
            }
            ComponentAlias::InstanceExport { kind, instance_index, name } => {
                let found = at(&frame.instances, instance_index)?.get(name).cloned();
                match (kind, found) {
                    (ComponentExternalKind::Func, Some(Entity::Function(function))) => {
                        frame.functions.push(function)
                    }
                    // Unknown imports are refused together at the end; until then they hold their places.
                    (ComponentExternalKind::Func, _) => {
                        frame.functions.push(Function::Argument(name.to_owned()))
                    }
                    (ComponentExternalKind::Instance, Some(Entity::Instance(exports))) => {
                        frame.instances.push(exports)
                    }
                    (ComponentExternalKind::Instance, _) => frame.instances.push(Arc::default()),
                    (ComponentExternalKind::Type | ComponentExternalKind::Value, _) => {}
                    (ComponentExternalKind::Module | ComponentExternalKind::Component, _) => {
                        return composed();
                    }
                }
            }
            ComponentAlias::Outer { kind: wasmparser::ComponentOuterAliasKind::Type, .. } => {}
            ComponentAlias::Outer { .. } => return composed(),
        }
        Ok(())
    }

    fn core_instance(&mut self, instance: Instance<'_>) -> Result<(), Rejected> {
        let made = match instance {
            Instance::FromExports(exports) => {
                let frame = self.frame()?;
                let mut bundle = HashMap::new();
                for export in exports {
                    let item = at(frame.core_space(export.kind)?, export.index)?.clone();
                    bundle.insert(export.name.to_owned(), item);
                }
                CoreInstance::Bundle(bundle)
            }
            Instance::Instantiate { module_index, args } => {
                bounded("core instances", self.steps.len() + 1, limits::CORE_INSTANCES)?;
                let frame = self.frames.last().ok_or_else(inconsistent)?;
                let module = *at(&frame.modules, module_index)?;
                let given: HashMap<&str, u32> =
                    args.iter().map(|argument| (argument.name, argument.index)).collect();
                let imports = at(&self.modules, module as u32)?.imports.iter().map(|name| {
                    let instance = given.get(name.0.as_str()).ok_or_else(inconsistent)?;
                    Ok(Import { name: name.clone(), item: frame.core_export(*instance, &name.1)? })
                });
                let imports = imports.collect::<Result<_, Rejected>>()?;
                self.steps.push(Step { module, imports });
                CoreInstance::Step(self.steps.len() - 1)
            }
        };
        self.frame()?.core_instances.push(made);
        Ok(())
    }

    fn instance(&mut self, instance: ComponentInstance<'_>) -> Result<(), Rejected> {
        let frame = self.frame()?;
        let exports = match instance {
            ComponentInstance::FromExports(exports) => {
                let entities =
                    exports.iter().map(|e| Ok((e.name.0.to_owned(), frame.entity(e.kind, e.index)?)));
                entities.collect::<Result<Exports, Rejected>>()?
            }
            ComponentInstance::Instantiate { component_index, args } => {
                let mut given = Exports::new();
                for argument in &args {
                    given.insert(argument.name.to_owned(), frame.entity(argument.kind, argument.index)?);
                }
                let inner = at(&frame.components, component_index)?;
                let passed_on = inner.iter().map(|(name, entity)| {
                    let entity = match entity {
                        Entity::Function(Function::Argument(argument)) => given.get(argument).cloned(),
                        other => Some(other.clone()),
                    };
                    entity.map(|entity| (name.clone(), entity)).ok_or_else(inconsistent)
                });
                passed_on.collect::<Result<Exports, Rejected>>()?
            }
        };
        frame.instances.push(Arc::new(exports));
        Ok(())
    }

    fn canon(&mut self, canon: CanonicalFunction) -> Result<(), Rejected> {
        match canon {
            CanonicalFunction::Lower { func_index, options } => {
                let frame = self.frame()?;
                let item = match at(&frame.functions, func_index)? {
                    Function::Host(function) => {
                        let options = frame.options(&options)?;
                        Item::Lowered(Arc::new(Lowered {
                            function,
                            memory: options.memory,
                            realloc: options.realloc,
                        }))
                    }
                    // An unknown import: it holds its place until all complaints are told.
                    Function::Argument(name) => {
                        Item::Export { instance: usize::MAX, name: name.as_str().into() }
                    }
                    Function::Lifted(_) => return composed(),
                };
                frame.core_functions.push(item);
            }
            CanonicalFunction::Lift { core_func_index, type_index, options } => {
                let types = self.types()?;
                let run = Signature {
                    parameters: vec![],
                    result: Some(Shape::Result(None, Some(Box::new(Shape::String)))),
                };
                let own = |name: &str| Shape::Own(name.to_owned());
                let handle = Signature {
                    parameters: vec![own("incoming-request"), own("response-outparam")],
                    result: None,
                };
                let (runs, handles) = match types.component_any_type_at(type_index) {
                    wasmparser::component_types::ComponentAnyTypeId::Func(id) => {
                        (self.resources.same(&run, id, &types), self.resources.same(&handle, id, &types))
                    }
                    _ => (false, false),
                };
                let frame = self.frame()?;
                let options = frame.options(&options)?;
                let function = at(&frame.core_functions, core_func_index)?.clone();
                let entry = Entry { function, memory: options.memory, post_return: options.post_return };
                frame.functions.push(Function::Lifted(Arc::new(Lifted { entry, runs, handles })));
            }
            CanonicalFunction::ResourceDrop { resource } => {
                let ours = self.resources.of(&self.types()?, resource);
                let complaints = !self.complaints.unknown.is_empty();
                let item = match ours {
                    Some(resource) => Item::Drop(resource),
                    None if complaints => Item::Export { instance: usize::MAX, name: "".into() },
                    None => return own_resources(),
                };
                self.frame()?.core_functions.push(item);
            }
            // `synchronous` lets only these through besides.
            _ => return own_resources(),
        }
        Ok(())
    }

    // ---- the whole ----

    fn plan(mut self) -> Result<Plan, Rejected> {
        let frame = self.whole.take().ok_or_else(inconsistent)?;
        for list in [&mut self.complaints.unknown, &mut self.complaints.other_types] {
            list.sort_unstable();
            list.dedup();
        }
        if !self.complaints.unknown.is_empty() {
            return Err(Rejected::UnknownImports(self.complaints.unknown));
        }
        if !self.complaints.other_types.is_empty() {
            return Err(Rejected::OtherTypes(self.complaints.other_types));
        }
        let (run, handle) = frame.entries()?;
        // What each instance of the program costs, over all the modules it is made of.
        let of = |count: fn(&Module) -> usize| {
            self.steps.iter().map(|step| count(&self.modules[step.module])).sum()
        };
        bounded("functions", of(|module| module.functions), limits::PROGRAM_FUNCTIONS)?;
        bounded("globals", of(|module| module.globals), limits::PROGRAM_GLOBALS)?;
        bounded("core imports", of(|module| module.imports.len()), limits::PROGRAM_IMPORTS)?;
        bounded("core exports", of(|module| module.exports), limits::PROGRAM_EXPORTS)?;
        let bytes = |module: &Module| {
            module.functions * limits::PROGRAM_CODE_BYTES_PER_FUNCTION
                + module.elements * limits::PROGRAM_CODE_BYTES_PER_ELEMENT
        };
        let bytes_beside = self.modules.iter().map(bytes).sum::<usize>()
            + self.bodies.moved * limits::PROGRAM_CODE_BYTES_PER_MOVED;
        let modules = self.modules.into_iter().map(|module| module.range).collect();
        Ok(Plan { modules, bytes_beside, steps: self.steps, run, handle })
    }
}

/// Refuses what belongs to newer formats, in words for the author of a program.
fn synchronous(canon: &CanonicalFunction) -> Result<(), Rejected> {
    let options = match canon {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => options,
        CanonicalFunction::ResourceDrop { .. } => return Ok(()),
        CanonicalFunction::ResourceNew { .. } | CanonicalFunction::ResourceRep { .. } => {
            return own_resources();
        }
        CanonicalFunction::ThreadSpawnRef { .. }
        | CanonicalFunction::ThreadSpawnIndirect { .. }
        | CanonicalFunction::ThreadAvailableParallelism => return Err(Rejected::Asynchronous("threads")),
        _ => return Err(Rejected::Asynchronous("the asynchronous component ABI (WASI 0.3)")),
    };
    options.iter().try_for_each(|option| match option {
        CanonicalOption::UTF8
        | CanonicalOption::Memory(_)
        | CanonicalOption::Realloc(_)
        | CanonicalOption::PostReturn(_) => Ok(()),
        CanonicalOption::UTF16 | CanonicalOption::CompactUTF16 => Err(Rejected::Unsupported(
            "The component passes strings as UTF-16, and only UTF-8 is supported".into(),
        )),
        CanonicalOption::Async | CanonicalOption::Callback(_) => {
            Err(Rejected::Asynchronous("the asynchronous component ABI (WASI 0.3)"))
        }
    })
}

#[cfg(test)]
pub mod tests;
