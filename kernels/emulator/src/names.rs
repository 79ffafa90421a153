//! Names of a kernel's body: registers and labels in their scopes, constants and special registers as slots.
//! Turns operands into slots and checks their types.

use crate::instruction::{Address, Origin, Slot, Special, Test};
use crate::parser::{Operand, Variable};
use crate::types::{Space, Type};
use std::collections::HashMap;

#[derive(Clone, Debug)]
pub enum Named {
    Register(Slot, Type),
    Predicate(Slot),
    /// An address in a space.
    Variable(Space, u64),
}

#[derive(Default)]
pub struct Scope {
    pub names: HashMap<String, Named>,
    pub number: usize,
}

pub struct Names {
    pub scopes: Vec<Scope>,
    /// The scope around each scope, by number.
    pub parents: Vec<usize>,
    pub origins: Vec<Origin>,
    /// Names of the slots that are registers, and of the predicates.
    pub registers: Vec<String>,
    pub predicates: Vec<String>,
    slots: HashMap<Origin, Slot>,
    constants: [Option<Slot>; 2],
}

type Result<T> = std::result::Result<T, String>;

impl Names {
    pub fn new() -> Names {
        Names {
            scopes: vec![Scope::default()],
            parents: vec![0],
            origins: Vec::new(),
            registers: Vec::new(),
            predicates: Vec::new(),
            slots: HashMap::new(),
            constants: [None; 2],
        }
    }

    pub fn open(&mut self) {
        let number = self.parents.len();
        self.parents.push(self.scope());
        self.scopes.push(Scope { names: HashMap::new(), number });
    }

    pub fn close(&mut self) {
        self.scopes.pop();
    }

    pub fn scope(&self) -> usize {
        self.scopes.last().map_or(0, |scope| scope.number)
    }

    pub fn declare(&mut self, name: &str, named: Named) -> Result<()> {
        let Some(scope) = self.scopes.last_mut() else { return Err("no scope is open".into()) };
        match scope.names.insert(name.to_string(), named) {
            None => Ok(()),
            Some(_) => Err(format!("`{name}` is declared twice in one scope")),
        }
    }

    pub fn register(&mut self, name: &str, kind: Type) -> Result<()> {
        if matches!(kind, Type::B8 | Type::U8 | Type::S8 | Type::Bf16 | Type::Bf16x2) {
            return Err(format!("no register has the type {kind:?}"));
        }
        if kind == Type::Pred {
            self.predicates.push(name.to_string());
            return self.declare(name, Named::Predicate(self.predicates.len() as Slot - 1));
        }
        self.origins.push(Origin::Register);
        self.registers.push(name.to_string());
        self.declare(name, Named::Register(self.origins.len() as Slot - 1, kind))
    }

    pub fn variable(&mut self, variable: &Variable, address: u64) -> Result<()> {
        self.declare(&variable.name, Named::Variable(variable.space, address))
    }

    pub fn find(&self, name: &str) -> Result<&Named> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.names.get(name))
            .ok_or_else(|| format!("`{name}` is not declared"))
    }

    fn slot(&mut self, origin: Origin) -> Slot {
        *self.slots.entry(origin).or_insert_with(|| {
            self.origins.push(origin);
            self.registers.push(String::new());
            self.origins.len() as Slot - 1
        })
    }

    pub fn constant(&mut self, value: u64) -> Slot {
        self.slot(Origin::Constant(value))
    }

    /// A source operand of this type.
    pub fn source(&mut self, operand: &Operand, kind: Type) -> Result<Slot> {
        self.source_where(operand, kind, Type::fits)
    }

    /// The same, where the register may be wider (st, cvt).
    pub fn wide_source(&mut self, operand: &Operand, kind: Type) -> Result<Slot> {
        self.source_where(operand, kind, Type::fits_wider)
    }

    fn source_where(&mut self, operand: &Operand, kind: Type, fits: fn(Type, Type) -> bool) -> Result<Slot> {
        match operand {
            Operand::Name(name) if name == "WARP_SZ" => Ok(self.constant(32)),
            Operand::Name(name) => match self.find(name) {
                Ok(&Named::Register(slot, register)) if fits(kind, register) => Ok(slot),
                Ok(&Named::Register(_, register)) => Err(mismatch(name, register, kind)),
                Ok(Named::Predicate(_)) => Err(mismatch(name, Type::Pred, kind)),
                Ok(Named::Variable(..)) => Err(format!("`{name}` is an address: take it by mov")),
                Err(_) if special(name, None).is_some() => {
                    Err(format!("`{name}` is a special register: read it by mov or cvt"))
                }
                Err(error) => Err(error),
            },
            Operand::Part(name, part) => match special(name, Some(part)) {
                Some(_) => Err(format!("`{name}.{part}` is a special register: read it by mov or cvt")),
                None => Err(format!("`{name}.{part}` is unknown")),
            },
            &Operand::Integer(value) if !kind.float() => Ok(self.constant(value & kind.mask())),
            Operand::Integer(_) => {
                Err(format!("an integer where {kind:?} is wanted: write 0f3F800000 or 1.0"))
            }
            &Operand::Single(bits) if matches!(kind, Type::F32 | Type::B32) => {
                Ok(self.constant(u64::from(bits)))
            }
            &Operand::Double(bits) if matches!(kind, Type::F64 | Type::B64) => Ok(self.constant(bits)),
            &Operand::Double(bits) if kind == Type::F32 => {
                Ok(self.constant(u64::from((f64::from_bits(bits) as f32).to_bits())))
            }
            _ => Err(format!("no operand of type {kind:?}")),
        }
    }

    /// What mov and cvt take beyond that: special registers, addresses of variables.
    pub fn mov_source(&mut self, operand: &Operand, kind: Type, wider: bool) -> Result<Slot> {
        let found = match operand {
            Operand::Name(name) => match self.find(name) {
                Ok(&Named::Variable(_, address)) if kind.size() >= 4 && !kind.float() => {
                    return Ok(self.constant(address));
                }
                Ok(_) => None,
                Err(_) => special(name, None),
            },
            Operand::Part(name, part) => special(name, Some(part)),
            _ => None,
        };
        match found {
            Some((special, register)) if kind.fits(register) || wider && kind.size() <= register.size() => {
                Ok(self.slot(Origin::Special(special)))
            }
            Some((_, register)) => Err(mismatch("a special register", register, kind)),
            None if wider => self.wide_source(operand, kind),
            None => self.source(operand, kind),
        }
    }

    pub fn target(&self, operand: &Operand, kind: Type) -> Result<Slot> {
        match self.register_named(operand)? {
            (slot, register) if kind.fits(register) => Ok(slot),
            (_, register) => Err(mismatch(&name_of(operand), register, kind)),
        }
    }

    /// A destination that may be wider (ld, cvt), with the mask of its width.
    pub fn wide_target(&self, operand: &Operand, kind: Type) -> Result<(Slot, u64)> {
        match self.register_named(operand)? {
            (slot, register) if kind.fits_wider(register) => Ok((slot, register.mask())),
            (_, register) => Err(mismatch(&name_of(operand), register, kind)),
        }
    }

    fn register_named(&self, operand: &Operand) -> Result<(Slot, Type)> {
        let Operand::Name(name) = operand else { return Err("the destination must be a register".into()) };
        match self.find(name)? {
            &Named::Register(slot, kind) => Ok((slot, kind)),
            Named::Predicate(_) => Err(format!("`{name}` is a predicate")),
            Named::Variable(..) => Err(format!("`{name}` is no register")),
        }
    }

    pub fn predicate(&self, operand: &Operand) -> Result<Slot> {
        let Operand::Name(name) = operand else { return Err("a predicate is wanted".into()) };
        match self.find(name)? {
            &Named::Predicate(slot) => Ok(slot),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    pub fn test(&mut self, operand: &Operand) -> Result<Test> {
        match operand {
            Operand::Not(name) => {
                let slot = self.predicate(&Operand::Name(name.clone()))?;
                Ok(Test { slot, negated: true })
            }
            // A constant: the predicate that is always true, perhaps negated.
            &Operand::Integer(value) => {
                let slot = *self.constants[0].get_or_insert_with(|| {
                    self.predicates.push(String::new());
                    self.predicates.len() as Slot - 1
                });
                Ok(Test { slot, negated: value == 0 })
            }
            _ => Ok(Test { slot: self.predicate(operand)?, negated: false }),
        }
    }

    /// The predicate that is always true, where a constant asked for it.
    pub fn always(&self) -> Option<Slot> {
        self.constants[0]
    }

    pub fn address(&mut self, operand: &Operand, space: Space) -> Result<Address> {
        let Operand::Address(base, offset) = operand else {
            return Err("an address in [ ] is wanted".into());
        };
        let base = match base.as_ref() {
            Operand::Name(name) => match self.find(name)? {
                &Named::Register(slot, Type::B64 | Type::U64 | Type::S64) => slot,
                &Named::Register(slot, Type::B32 | Type::U32 | Type::S32)
                    if matches!(space, Space::Shared | Space::Const | Space::Param | Space::Local) =>
                {
                    slot
                }
                &Named::Register(..) => return Err(format!("`{name}` is no address of this space")),
                &Named::Variable(of, address) if of == space => self.constant(address),
                &Named::Variable(of, _) => {
                    return Err(format!("`{name}` lies in {of:?}, not in {space:?}"));
                }
                Named::Predicate(_) => return Err(format!("`{name}` is a predicate")),
            },
            &Operand::Integer(value) => self.constant(value),
            _ => return Err("this is no address".into()),
        };
        Ok(Address { space, base, offset: *offset })
    }
}

fn name_of(operand: &Operand) -> String {
    match operand {
        Operand::Name(name) => name.clone(),
        _ => "the operand".into(),
    }
}

fn mismatch(name: &str, register: Type, kind: Type) -> String {
    format!("`{name}` is {register:?} where {kind:?} is wanted")
}

fn special(name: &str, part: Option<&str>) -> Option<(Special, Type)> {
    let axis = match part {
        None => None,
        Some("x") => Some(0),
        Some("y") => Some(1),
        Some("z") => Some(2),
        Some(_) => return None,
    };
    let special = match (name, axis) {
        ("%tid", Some(axis)) => Special::Tid(axis),
        ("%ntid", Some(axis)) => Special::Ntid(axis),
        ("%ctaid", Some(axis)) => Special::Ctaid(axis),
        ("%nctaid", Some(axis)) => Special::Nctaid(axis),
        ("%laneid", None) => Special::Laneid,
        ("%warpid", None) => Special::Warpid,
        ("%nwarpid", None) => Special::Nwarpid,
        ("%lanemask_eq", None) => Special::LanemaskEq,
        ("%lanemask_le", None) => Special::LanemaskLe,
        ("%lanemask_lt", None) => Special::LanemaskLt,
        ("%lanemask_ge", None) => Special::LanemaskGe,
        ("%lanemask_gt", None) => Special::LanemaskGt,
        ("%smid", None) => Special::Smid,
        ("%nsmid", None) => Special::Nsmid,
        ("%dynamic_smem_size", None) => Special::DynamicShared,
        ("%total_smem_size", None) => Special::TotalShared,
        ("%clock" | "%clock_hi", None) => Special::Clock,
        ("%clock64" | "%globaltimer", None) => return Some((Special::Clock, Type::U64)),
        _ => return None,
    };
    Some((special, Type::U32))
}
