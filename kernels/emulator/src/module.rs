//! A parsed module and its kernels: variables laid out, labels resolved, instructions decoded.

use crate::decode::Reading;
use crate::fault::Error;
use crate::instruction::{Instruction, Op, Origin, Slot};
use crate::lexer::Place;
use crate::local::LOCAL_BASE;
use crate::memory;
use crate::modifiers::Modifiers;
use crate::names::{Named, Names};
use crate::parser::{self, Entry, Operand, Statement, Variable};
use crate::types::{Space, Type};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Shared memory starts here, so that a forgotten base is out of bounds.
pub(crate) const SHARED_BASE: u32 = 1024;
/// Bytes between two variables of shared memory that belong to none: who leaves one does not come out in the next. A multiple
/// of the banks' 128 bytes and of any alignment in use, so that both are as on a device, where the variables adjoin.
const SHARED_GAP: u64 = 1024;
/// The first address of the constant bank.
pub(crate) const CONST_BASE: u64 = 256;

/// A PTX text, its names resolved and its types checked.
pub struct Module {
    kernels: Vec<Kernel>,
}

impl Module {
    pub fn parse(text: &str) -> Result<Module, Error> {
        let text = parser::parse(text)?;
        let mut kernels = Vec::new();
        let globals = globals(&text.variables)?;
        for entry in &text.entries {
            kernels.push(Building::new(entry, &text.variables, globals.clone())?.kernel(entry)?);
        }
        Ok(Module { kernels })
    }

    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }
}

/// A variable of the module in global memory, as it starts.
pub(crate) struct Global {
    pub name: String,
    pub address: u64,
    pub bytes: Vec<u8>,
}

/// A variable in shared memory, as it lies behind [`SHARED_BASE`].
#[derive(Clone)]
pub(crate) struct Stretch {
    pub name: String,
    pub bytes: Range<u32>,
}

/// Where a parameter lies in the block of bytes that a launch takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub offset: u32,
    pub size: u32,
    pub align: u32,
}

/// An entry function, ready to launch.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    /// Bytes of static shared memory, and where dynamic memory starts behind them.
    pub(crate) shared: u32,
    pub(crate) dynamic: u32,
    /// The variables in static shared memory with their gaps; the last one is what dynamic memory starts with, of no bytes.
    pub(crate) stretches: Vec<Stretch>,
    /// Bytes of local memory of a thread.
    pub(crate) local: u32,
    pub(crate) max_threads: Option<u32>,
    pub(crate) required: Option<[u32; 3]>,
    pub(crate) tuning: Vec<(String, Vec<u64>)>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) origins: Vec<Origin>,
    /// Names of slots and predicates; empty for what is no register.
    pub(crate) registers: Vec<String>,
    pub(crate) predicates: Vec<String>,
    pub(crate) always: Option<Slot>,
    pub(crate) constants: Arc<[u8]>,
    pub(crate) globals: Arc<[Global]>,
    pub(crate) files: Vec<String>,
    pub(crate) opcodes: Vec<String>,
    /// Atomics, fences or strong accesses reach global memory: blocks may order each other.
    pub(crate) orders_blocks: bool,
    /// It has a griddepcontrol.wait: until then the launches before it may still run.
    pub(crate) overlaps: bool,
    /// The finest stores to shared and to global memory, in bytes, at most 4.
    pub(crate) shared_grain: u32,
    pub(crate) global_grain: u32,
}

impl Kernel {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The size of the block of parameters.
    pub fn parameter_bytes(&self) -> usize {
        self.parameters.last().map_or(0, |last| (last.offset + last.size) as usize)
    }

    /// Bytes of static shared memory.
    pub fn shared_bytes(&self) -> u32 {
        self.shared
    }

    /// Bytes of local memory of a thread.
    pub fn local_bytes(&self) -> u32 {
        self.local
    }

    /// The greatest block, by .maxntid or .reqntid.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }

    /// The block that .reqntid demands.
    pub fn required_block(&self) -> Option<[u32; 3]> {
        self.required
    }

    /// A directive such as `minnctapersm` or `maxnreg`, with its values.
    pub fn directive(&self, name: &str) -> Option<&[u64]> {
        self.tuning.iter().find(|(each, _)| each == name).map(|(_, values)| values.as_slice())
    }

    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}

/// A branch whose label comes later.
struct Fixup {
    at: usize,
    scope: usize,
    targets: Vec<String>,
    place: Place,
}

struct Building {
    names: Names,
    /// Bytes of static shared memory so far, and in all.
    shared: u64,
    dynamic: u64,
    stretches: Vec<Stretch>,
    /// Variables of static shared memory that there are in all.
    statics: u64,
    local: u64,
    constants: Vec<u8>,
    globals: Arc<[Global]>,
    labels: HashMap<(usize, String), u32>,
    lists: HashMap<String, Vec<String>>,
    fixups: Vec<Fixup>,
    code: Vec<Instruction>,
    files: Vec<String>,
    opcodes: Vec<String>,
}

fn align_up(value: u64, align: u32) -> u64 {
    value.next_multiple_of(u64::from(align.max(1)))
}

impl Building {
    fn new(entry: &Entry, variables: &[Variable], globals: Arc<[Global]>) -> Result<Building, Error> {
        let mut this = Building {
            names: Names::new(),
            shared: 0,
            dynamic: 0,
            stretches: Vec::new(),
            statics: 0,
            local: 0,
            constants: Vec::new(),
            globals,
            labels: HashMap::new(),
            lists: HashMap::new(),
            fixups: Vec::new(),
            code: Vec::new(),
            files: Vec::new(),
            opcodes: Vec::new(),
        };
        // Dynamic memory lies behind all that is static, wherever it is declared.
        let inner = entry.body.iter().filter_map(|statement| match statement {
            Statement::Variable(variable) => Some(variable),
            _ => None,
        });
        let mut total = 0;
        let mut align = 16;
        for variable in variables.iter().chain(inner).filter(|variable| variable.space == Space::Shared) {
            match (variable.external, variable.count) {
                (false, Some(count)) => {
                    total = align_up(total, variable.align) + count * u64::from(variable.kind.size());
                    this.statics += 1;
                }
                _ => align = align.max(variable.align),
            }
        }
        this.dynamic = align_up(total, align);
        for variable in variables {
            this.variable(variable)?;
        }
        Ok(this)
    }

    fn variable(&mut self, variable: &Variable) -> Result<(), Error> {
        let place = &variable.place;
        if !variable.align.is_power_of_two() {
            return place.error("an alignment is a power of two");
        }
        let size = u64::from(variable.kind.size());
        let address = match (variable.space, variable.external, variable.count) {
            (Space::Shared, true, _) => u64::from(SHARED_BASE) + self.dynamic + self.statics * SHARED_GAP,
            (Space::Shared, false, Some(count)) => {
                self.shared = align_up(self.shared, variable.align);
                let at = self.shared + self.stretches.len() as u64 * SHARED_GAP;
                self.shared += count * size;
                let bytes = at as u32..(at + count * size) as u32;
                self.stretches.push(Stretch { name: variable.name.clone(), bytes });
                u64::from(SHARED_BASE) + at
            }
            (Space::Const, false, Some(count)) => {
                let at = align_up(self.constants.len() as u64, variable.align);
                self.constants.resize(at as usize, 0);
                self.constants.extend(initial(variable, count)?);
                CONST_BASE + at
            }
            (Space::Global, false, Some(_)) => {
                match self.globals.iter().find(|global| global.name == variable.name) {
                    Some(global) => global.address,
                    None => return place.error("a .global variable stands outside of the kernels"),
                }
            }
            (Space::Local, false, Some(count)) => {
                if !variable.values.is_empty() {
                    return place.error("a .local variable has no initial value");
                }
                self.local = align_up(self.local, variable.align);
                let at = self.local;
                self.local += count * size;
                LOCAL_BASE + at
            }
            _ => return place.error("a variable without a size must be .extern .shared"),
        };
        self.names.variable(variable, address).or_else(|sentence| place.error(sentence))
    }

    fn kernel(mut self, entry: &Entry) -> Result<Kernel, Error> {
        let mut parameters = Vec::new();
        let mut end = 0;
        for parameter in &entry.parameters {
            let offset = align_up(end, parameter.align);
            let size = parameter.count.unwrap_or(0) * u64::from(parameter.kind.size());
            end = offset + size;
            parameters.push(Parameter {
                name: parameter.name.clone(),
                offset: offset as u32,
                size: size as u32,
                align: parameter.align,
            });
            let named = Named::Variable(Space::Param, offset);
            self.names.declare(&parameter.name, named).or_else(|sentence| parameter.place.error(sentence))?;
        }
        if end > 4096 {
            return entry.place.error("more than 4096 bytes of parameters");
        }
        self.names.open();
        for statement in &entry.body {
            self.statement(statement)?;
        }
        self.instruction_at(Op::Exit, None, &entry.place, "ret");
        self.resolve()?;
        let product = |name: &str| {
            entry.tuning.iter().find(|(each, _)| each == name).map(|(_, values)| {
                let mut all = [1u32; 3];
                for (slot, value) in all.iter_mut().zip(values) {
                    *slot = *value as u32;
                }
                all
            })
        };
        let required = product("reqntid");
        let most = required.or(product("maxntid")).map(|block| block.iter().product());
        let (shared_grain, global_grain) = grains(&self.code);
        let always = self.names.always();
        let dynamic = (self.dynamic + self.statics * SHARED_GAP) as u32;
        self.stretches.push(Stretch { name: "dynamic memory".to_string(), bytes: dynamic..dynamic });
        Ok(Kernel {
            name: entry.name.clone(),
            parameters,
            shared: self.shared as u32,
            dynamic: self.dynamic as u32,
            stretches: self.stretches,
            local: self.local as u32,
            max_threads: most,
            required,
            tuning: entry.tuning.clone(),
            orders_blocks: self.code.iter().any(|each| orders_blocks(&each.op)),
            overlaps: self.code.iter().any(|each| matches!(each.op, Op::GridWait)),
            shared_grain,
            global_grain,
            code: self.code,
            predicates: self.names.predicates,
            always,
            origins: self.names.origins,
            registers: self.names.registers,
            constants: self.constants.into(),
            globals: self.globals,
            files: self.files,
            opcodes: self.opcodes,
        })
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), Error> {
        match statement {
            Statement::Open => self.names.open(),
            Statement::Close => self.names.close(),
            Statement::Label(name, place) => {
                let key = (self.names.scope(), name.clone());
                if self.labels.insert(key, self.code.len() as u32).is_some() {
                    return place.error(format!("the label `{name}` stands twice in one scope"));
                }
            }
            Statement::Targets(name, targets) => {
                self.lists.insert(name.clone(), targets.clone());
            }
            Statement::Registers(kind, names, place) => {
                for (name, count) in names {
                    match count {
                        None => self.names.register(name, *kind).or_else(|s| place.error(s))?,
                        Some(count) => {
                            for n in 0..*count {
                                let name = format!("{name}{n}");
                                self.names.register(&name, *kind).or_else(|s| place.error(s))?;
                            }
                        }
                    }
                }
            }
            Statement::Variable(variable) => self.variable(variable)?,
            Statement::Instruction(instruction) => self.instruction(instruction)?,
        }
        Ok(())
    }

    fn instruction(&mut self, text: &parser::Instruction) -> Result<(), Error> {
        let place = &text.place;
        let guard = match &text.guard {
            None => None,
            Some((name, negated)) => {
                let operand = if *negated { Operand::Not(name.clone()) } else { Operand::Name(name.clone()) };
                Some(self.names.test(&operand).or_else(|sentence| place.error(sentence))?)
            }
        };
        let mut full = text.opcode.clone();
        for word in &text.modifiers {
            full.push('.');
            full.push_str(word);
        }
        let op = match text.opcode.as_str() {
            "bra" => self.branch(text)?,
            "brx" => self.branch_index(text)?,
            _ => Reading {
                opcode: &text.opcode,
                words: Modifiers::new(&text.modifiers),
                operands: &text.operands,
                names: &mut self.names,
            }
            .op()
            .or_else(|sentence| place.error(format!("{full}: {sentence}")))?,
        };
        self.instruction_at(op, guard, place, &full);
        Ok(())
    }

    fn instruction_at(
        &mut self,
        op: Op,
        guard: Option<crate::instruction::Test>,
        place: &Place,
        opcode: &str,
    ) {
        let index = |list: &mut Vec<String>, item: &str| match list.iter().position(|each| each == item) {
            Some(at) => at as u16,
            None => {
                list.push(item.to_string());
                list.len() as u16 - 1
            }
        };
        let file = index(&mut self.files, &place.file);
        let name = index(&mut self.opcodes, opcode);
        self.code.push(Instruction { op, guard, file, line: place.line, name });
    }

    fn branch(&mut self, text: &parser::Instruction) -> Result<Op, Error> {
        let known = text.modifiers.iter().all(|word| word == "uni");
        let [Operand::Name(label)] = text.operands.as_slice() else {
            return text.place.error("bra takes a label");
        };
        if !known {
            return text.place.error("bra has no modifier but .uni");
        }
        self.fixup(vec![label.clone()], &text.place);
        Ok(Op::Branch { target: 0, uniform: !text.modifiers.is_empty() })
    }

    fn branch_index(&mut self, text: &parser::Instruction) -> Result<Op, Error> {
        let [index, Operand::Name(list)] = text.operands.as_slice() else {
            return text.place.error("brx.idx takes an index and a list of labels");
        };
        let index = self.names.source(index, Type::U32).or_else(|sentence| text.place.error(sentence))?;
        let Some(targets) = self.lists.get(list).cloned() else {
            return text.place.error(format!("`{list}` is no .branchtargets above"));
        };
        self.fixup(targets, &text.place);
        Ok(Op::BranchIndex { index, targets: Box::default() })
    }

    fn fixup(&mut self, targets: Vec<String>, place: &Place) {
        let (at, scope) = (self.code.len(), self.names.scope());
        self.fixups.push(Fixup { at, scope, targets, place: place.clone() });
    }

    /// Labels are visible in their scope and all inside it.
    fn resolve(&mut self) -> Result<(), Error> {
        for fixup in &self.fixups {
            let mut found = Vec::new();
            for name in &fixup.targets {
                let mut scope = fixup.scope;
                loop {
                    if let Some(&target) = self.labels.get(&(scope, name.clone())) {
                        found.push(target);
                        break;
                    }
                    if scope == 0 {
                        return fixup.place.error(format!("no label `{name}` is in sight"));
                    }
                    scope = self.names.parents[scope];
                }
            }
            match &mut self.code[fixup.at].op {
                Op::Branch { target, .. } => *target = found[0],
                Op::BranchIndex { targets, .. } => *targets = found.into(),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first bytes of a variable: what has no value is zero.
fn initial(variable: &Variable, count: u64) -> Result<Vec<u8>, Error> {
    let size = variable.kind.size() as usize;
    let mut bytes = vec![0; count as usize * size];
    if variable.values.len() as u64 > count {
        return variable.place.error("more values than elements");
    }
    for (value, element) in variable.values.iter().zip(bytes.chunks_mut(size)) {
        let Some(bits) = value_of(value, variable.kind) else {
            return variable.place.error("this is no constant of the variable's type");
        };
        element.copy_from_slice(&bits.to_le_bytes()[..size]);
    }
    Ok(bytes)
}

/// The module's variables in global memory, each at an address of its own in this process.
fn globals(variables: &[Variable]) -> Result<Arc<[Global]>, Error> {
    let mut found = Vec::new();
    for variable in variables.iter().filter(|variable| variable.space == Space::Global) {
        let Some(count) = variable.count else { continue };
        let bytes = initial(variable, count)?;
        let align = u64::from(variable.align.max(1));
        let address = memory::reserve(bytes.len() as u64, align);
        found.push(Global { name: variable.name.clone(), address, bytes });
    }
    Ok(found.into())
}

fn value_of(value: &Operand, kind: Type) -> Option<u64> {
    match *value {
        Operand::Integer(value) if !kind.float() => Some(value & kind.mask()),
        Operand::Integer(value) if kind == Type::F32 => Some(u64::from((value as i64 as f32).to_bits())),
        Operand::Single(bits) if kind.size() == 4 => Some(u64::from(bits)),
        Operand::Double(bits) if kind.size() == 8 => Some(bits),
        Operand::Double(bits) if kind == Type::F32 => {
            Some(u64::from((f64::from_bits(bits) as f32).to_bits()))
        }
        _ => None,
    }
}

fn orders_blocks(op: &Op) -> bool {
    let reaches = |space| matches!(space, Space::Global | Space::Generic);
    match op {
        Op::Fence { wide } => *wide,
        Op::Load { address, order, .. } | Op::Store { address, order, .. } => {
            reaches(address.space) && order.strong
        }
        Op::Atom { address, .. } => reaches(address.space),
        _ => false,
    }
}

fn grains(code: &[Instruction]) -> (u32, u32) {
    let (mut shared, mut global) = (4, 4);
    for each in code {
        let (space, size) = match &each.op {
            Op::Store { address, kind, from, .. } => (address.space, kind.size() * from.len() as u32),
            Op::Atom { address, kind, .. } => (address.space, kind.size()),
            _ => continue,
        };
        if matches!(space, Space::Shared | Space::Generic) {
            shared = size.min(shared);
        }
        if matches!(space, Space::Global | Space::Generic) {
            global = size.min(global);
        }
    }
    (shared, global)
}
