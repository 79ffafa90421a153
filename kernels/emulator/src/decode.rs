//! Statements to instructions: which operation an opcode is, with all its operands checked. Memory, warp and
//! matrix operations are in `decode_memory` and `decode_warp`.

use crate::alu;
use crate::bits::{Bf16, F16, Float};
use crate::convert::Conversion;
use crate::instruction::{Carry, Compare, Logic, Op, Slot};
use crate::modifiers::Modifiers;
use crate::names::Names;
use crate::parser::Operand;
use crate::types::{Space, Type};
use std::cmp::Ordering;

pub type Result<T> = std::result::Result<T, String>;

/// One instruction's text on its way to an operation.
pub struct Reading<'a> {
    pub opcode: &'a str,
    pub words: Modifiers,
    pub operands: &'a [Operand],
    pub names: &'a mut Names,
}

impl Reading<'_> {
    pub fn count(&self, least: usize, most: usize) -> Result<()> {
        let count = self.operands.len();
        if (least..=most).contains(&count) {
            return Ok(());
        }
        Err(format!("{} operands where {} are wanted", count, least))
    }

    pub fn source(&mut self, at: usize, kind: Type) -> Result<Slot> {
        match self.operands.get(at) {
            Some(operand) => self.names.source(operand, kind),
            None => Err(format!("operand {} is missing", at + 1)),
        }
    }

    pub fn target(&mut self, at: usize, kind: Type) -> Result<Slot> {
        match self.operands.get(at) {
            Some(operand) => self.names.target(operand, kind),
            None => Err("the destination is missing".into()),
        }
    }

    /// `{a, b}`, or one operand as a vector of one.
    pub fn vector(operand: &Operand) -> Vec<Operand> {
        match operand {
            Operand::Vector(parts) => parts.clone(),
            other => vec![other.clone()],
        }
    }

    /// The operation, if the opcode is one of these modules'.
    pub fn op(&mut self) -> Result<Op> {
        let op = match self.opcode {
            "add" | "sub" | "mad" if self.words.has("cc") => self.carry(false, true)?,
            "addc" | "subc" | "madc" => {
                let gives = self.words.has("cc");
                self.carry(true, gives)?
            }
            "mov" => self.mov()?,
            "cvta" => self.cvta()?,
            "cvt" => self.cvt()?,
            "setp" => self.setp()?,
            "set" => self.set()?,
            "testp" => self.testp()?,
            "selp" => self.selp()?,
            "slct" => self.slct()?,
            "lop3" => {
                self.words.has("b32");
                self.count(5, 5)?;
                let Operand::Integer(table @ 0..=255) = self.operands[4] else {
                    return Err("lop3's table is a constant from 0 to 255".into());
                };
                let from =
                    [self.source(1, Type::B32)?, self.source(2, Type::B32)?, self.source(3, Type::B32)?];
                Op::Lop3 { to: self.target(0, Type::B32)?, from, table: table as u8 }
            }
            "bfi" => {
                self.count(5, 5)?;
                let kind = self.words.kind()?;
                let from = [
                    self.source(1, kind)?,
                    self.source(2, kind)?,
                    self.source(3, Type::U32)?,
                    self.source(4, Type::U32)?,
                ];
                Op::Insert { to: self.target(0, kind)?, from, width: u64::from(kind.bits()) }
            }
            "and" | "or" | "xor" | "not" if self.words.has("pred") => self.predicates()?,
            "prefetch" | "prefetchu" | "nanosleep" => self.hint()?,
            "createpolicy" => {
                let _ = self.words.one_of(&["fractional", "range", "cvt"]);
                self.words.take_hints();
                self.words.has("global");
                self.words.has("b64");
                self.count(1, 4)?;
                Op::Policy { to: self.target(0, Type::B64)? }
            }
            _ => match self.memory()? {
                Some(op) => op,
                None => match self.warp()? {
                    Some(op) => op,
                    None => self.arithmetic()?,
                },
            },
        };
        match self.words.rest() {
            None => Ok(op),
            Some(word) => Err(format!("`.{word}` is unknown to {} or out of place", self.opcode)),
        }
    }

    fn hint(&mut self) -> Result<Op> {
        self.count(1, 1)?;
        if self.opcode == "nanosleep" {
            self.words.kind()?;
            self.source(0, Type::U32)?;
            return Ok(Op::Nothing);
        }
        let space = self.words.space();
        let _ = self.words.one_of(&["L1", "L2", "evict_last"]);
        self.words.take_hints();
        self.names.address(&self.operands[0], space)?;
        Ok(Op::Nothing)
    }

    fn arithmetic(&mut self) -> Result<Op> {
        let Some(found) = alu::resolve(self.opcode, &mut self.words)? else {
            return Err(format!("{} is not supported with these types or modifiers", self.opcode));
        };
        self.count(found.from.len() + 1, found.from.len() + 1)?;
        let zero = self.names.constant(0);
        let mut from = [zero; 3];
        for (at, &kind) in found.from.iter().enumerate() {
            from[at] = self.source(at + 1, kind)?;
        }
        Ok(Op::Alu { function: found.function, to: self.target(0, found.to)?, from })
    }

    fn carry(&mut self, takes: bool, gives: bool) -> Result<Op> {
        let (low, high) = (self.words.has("lo"), self.words.has("hi"));
        let kind = self.words.kind()?;
        if !kind.integer() || kind.size() < 4 {
            return Err("a carry belongs to 32- and 64-bit integers".into());
        }
        let how = match self.opcode {
            "add" | "addc" => Carry::Add,
            "sub" | "subc" => Carry::Sub,
            _ if low => Carry::MadLo,
            _ if high => Carry::MadHi,
            _ => return Err("one of .lo and .hi is missing".into()),
        };
        let sources = if matches!(how, Carry::Add | Carry::Sub) { 2 } else { 3 };
        self.count(sources + 1, sources + 1)?;
        let zero = self.names.constant(0);
        let mut from = [zero; 3];
        for (at, slot) in from.iter_mut().enumerate().take(sources) {
            *slot = self.names.source(&self.operands[at + 1], kind)?;
        }
        Ok(Op::Carry { how, kind, to: self.target(0, kind)?, from, takes, gives })
    }

    fn mov(&mut self) -> Result<Op> {
        self.count(2, 2)?;
        if self.words.has("pred") {
            let from = self.names.test(&self.operands[1])?;
            return Ok(Op::PredMove { to: self.names.predicate(&self.operands[0])?, from });
        }
        match (&self.operands[0], &self.operands[1]) {
            (Operand::Vector(parts), from) => {
                let kind = self.words.kind()?;
                let part = part_of(kind, parts.len())?;
                let to = parts
                    .iter()
                    .map(|each| match each {
                        Operand::Name(name) if name == "_" => Ok(None),
                        each => self.names.target(each, part).map(Some),
                    })
                    .collect::<Result<_>>()?;
                Ok(Op::Unpack { to, from: self.names.source(from, kind)?, bits: part.bits() })
            }
            (to, Operand::Vector(parts)) => {
                let kind = self.words.kind()?;
                let part = part_of(kind, parts.len())?;
                let from = parts.iter().map(|each| self.names.source(each, part)).collect::<Result<_>>()?;
                Ok(Op::Pack { to: self.names.target(to, kind)?, from, bits: part.bits() })
            }
            (to, from) => {
                let Some(kind) = self.words.kind_if_any() else { return Err("the type is missing".into()) };
                let slot = self.names.mov_source(from, kind, false)?;
                let to = self.names.target(to, kind)?;
                let zero = self.names.constant(0);
                let mut words = Modifiers::new(&[format!("b{}", kind.bits())]);
                let Some(found) = alu::resolve("mov", &mut words)? else {
                    return Err(format!("mov has no type {kind:?}"));
                };
                Ok(Op::Alu { function: found.function, to, from: [slot, zero, zero] })
            }
        }
    }

    /// Global addresses are generic ones; shared and local ones have windows.
    fn cvta(&mut self) -> Result<Op> {
        let to = self.words.has("to");
        let space = self.words.space();
        let kind = self.words.kind()?;
        if kind != Type::U64 || space == Space::Generic {
            return Err("cvta needs a space and .u64".into());
        }
        self.count(2, 2)?;
        let from = self.names.mov_source(&self.operands[1], kind, false)?;
        let target = self.target(0, kind)?;
        let (opcode, by) = match (space, to) {
            (Space::Shared, true) => ("sub", crate::memory::SHARED_WINDOW),
            (Space::Shared, false) => ("add", crate::memory::SHARED_WINDOW),
            (Space::Local, true) => ("sub", crate::memory::LOCAL_WINDOW),
            (Space::Local, false) => ("add", crate::memory::LOCAL_WINDOW),
            (Space::Global, _) => ("add", 0),
            _ => return Err("only global, shared and local addresses are converted".into()),
        };
        let by = self.names.constant(by);
        let mut words = Modifiers::new(&["u64".to_string()]);
        match alu::resolve(opcode, &mut words)? {
            Some(found) => Ok(Op::Alu { function: found.function, to: target, from: [from, by, by] }),
            None => Err("no such conversion".into()),
        }
    }

    fn cvt(&mut self) -> Result<Op> {
        let how = Conversion::resolve(&mut self.words)?;
        let last = if how.packed() { 3 } else { 2 };
        self.count(last, last)?;
        let a = self.names.mov_source(&self.operands[1], how.from, true)?;
        let b = if how.packed() { self.source(2, how.from)? } else { self.names.constant(0) };
        let (to, mask) = self.names.wide_target(&self.operands[0], how.to)?;
        Ok(Op::Convert { how, to, mask, from: [a, b] })
    }

    fn comparison(&mut self) -> Result<(Option<Logic>, Type, Compare)> {
        let Some(name) = self.words.one_of(&COMPARISONS) else {
            return Err("the comparison is missing".into());
        };
        let logic = self.logic();
        let ftz = self.words.has("ftz");
        let kind = self.words.kind()?;
        let Some(compare) = compare(name, kind, ftz) else {
            return Err(format!("no comparison .{name} of {kind:?}"));
        };
        Ok((logic, kind, compare))
    }

    fn logic(&mut self) -> Option<Logic> {
        Some(match self.words.one_of(&["and", "or", "xor"])? {
            "and" => Logic::And,
            "or" => Logic::Or,
            _ => Logic::Xor,
        })
    }

    fn setp(&mut self) -> Result<Op> {
        let (logic, kind, compare) = self.comparison()?;
        let packed = kind == Type::F16x2;
        let most = if logic.is_some() { 4 } else { 3 };
        self.count(most, most)?;
        if packed && !matches!(self.operands[0], Operand::Pair(..)) {
            return Err("a packed comparison gives two predicates: p|q".into());
        }
        let (to, also) = self.pair(|names, operand| names.predicate(operand))?;
        let from = [self.source(1, kind)?, self.source(2, kind)?];
        let with = match logic {
            Some(logic) => Some((logic, self.names.test(&self.operands[3])?)),
            None => None,
        };
        Ok(Op::Setp { compare, packed, to, also, from, with })
    }

    /// `a|b` as the first operand: the second of them is a predicate.
    pub fn pair(&mut self, first: impl Fn(&Names, &Operand) -> Result<Slot>) -> Result<(Slot, Option<Slot>)> {
        match &self.operands[0] {
            Operand::Pair(a, b) => {
                let also = match b.as_ref() {
                    Operand::Name(name) if name == "_" => None,
                    other => Some(self.names.predicate(other)?),
                };
                Ok((first(self.names, a)?, also))
            }
            one => Ok((first(self.names, one)?, None)),
        }
    }

    fn set(&mut self) -> Result<Op> {
        let Some(name) = self.words.one_of(&COMPARISONS) else {
            return Err("the comparison is missing".into());
        };
        let logic = self.logic();
        let ftz = self.words.has("ftz");
        let (to, kind) = (self.words.kind()?, self.words.kind()?);
        let yes = match to {
            Type::U32 | Type::S32 => 0xffff_ffff,
            Type::F32 => u64::from(1.0f32.to_bits()),
            _ => return Err("set gives .u32, .s32 or .f32".into()),
        };
        let Some(compare) = compare(name, kind, ftz) else {
            return Err(format!("no comparison .{name} of {kind:?}"));
        };
        let most = if logic.is_some() { 4 } else { 3 };
        self.count(most, most)?;
        if kind == Type::F16x2 {
            return Err("a packed comparison is a setp here".into());
        }
        let from = [self.source(1, kind)?, self.source(2, kind)?];
        let with = match logic {
            Some(logic) => Some((logic, self.names.test(&self.operands[3])?)),
            None => None,
        };
        Ok(Op::Set { compare, to: self.target(0, to)?, from, with, yes })
    }

    fn testp(&mut self) -> Result<Op> {
        let tests = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let Some(name) = self.words.one_of(&tests) else { return Err("the test is missing".into()) };
        let kind = self.words.kind()?;
        self.count(2, 2)?;
        let test: fn(u64) -> bool = match (name, kind) {
            ("finite", Type::F32) => |bits| f32::from_bits(bits as u32).is_finite(),
            ("infinite", Type::F32) => |bits| f32::from_bits(bits as u32).is_infinite(),
            ("number", Type::F32) => |bits| !f32::from_bits(bits as u32).is_nan(),
            ("notanumber", Type::F32) => |bits| f32::from_bits(bits as u32).is_nan(),
            // Zero counts as normal.
            ("normal", Type::F32) => |bits| {
                let value = f32::from_bits(bits as u32);
                value.is_normal() || value == 0.0
            },
            ("subnormal", Type::F32) => |bits| f32::from_bits(bits as u32).is_subnormal(),
            ("finite", Type::F64) => |bits| f64::from_bits(bits).is_finite(),
            ("infinite", Type::F64) => |bits| f64::from_bits(bits).is_infinite(),
            ("number", Type::F64) => |bits| !f64::from_bits(bits).is_nan(),
            ("notanumber", Type::F64) => |bits| f64::from_bits(bits).is_nan(),
            ("normal", Type::F64) => |bits| {
                let value = f64::from_bits(bits);
                value.is_normal() || value == 0.0
            },
            ("subnormal", Type::F64) => |bits| f64::from_bits(bits).is_subnormal(),
            _ => return Err(format!("testp.{name} of {kind:?} is not supported")),
        };
        let from = self.source(1, kind)?;
        Ok(Op::Testp { test, to: self.names.predicate(&self.operands[0])?, from })
    }

    fn selp(&mut self) -> Result<Op> {
        self.count(4, 4)?;
        let kind = self.words.kind()?;
        let from = [self.source(1, kind)?, self.source(2, kind)?];
        let test = self.names.test(&self.operands[3])?;
        Ok(Op::Select { to: self.target(0, kind)?, from, test })
    }

    fn slct(&mut self) -> Result<Op> {
        self.count(4, 4)?;
        self.words.has("ftz");
        let (kind, by) = (self.words.kind()?, self.words.kind()?);
        if !matches!(by, Type::S32 | Type::F32) {
            return Err("slct decides by .s32 or .f32".into());
        }
        let from = [self.source(1, kind)?, self.source(2, kind)?];
        let sign = self.source(3, by)?;
        Ok(Op::SelectSign { to: self.target(0, kind)?, from, sign, float: by.float() })
    }

    fn predicates(&mut self) -> Result<Op> {
        self.count(2, 3)?;
        let to = self.names.predicate(&self.operands[0])?;
        if self.opcode == "not" {
            self.count(2, 2)?;
            let from = self.names.test(&self.operands[1])?;
            return Ok(Op::PredMove {
                to,
                from: crate::instruction::Test { negated: !from.negated, ..from },
            });
        }
        self.count(3, 3)?;
        let how = match self.opcode {
            "and" => Logic::And,
            "or" => Logic::Or,
            _ => Logic::Xor,
        };
        let from = [self.names.test(&self.operands[1])?, self.names.test(&self.operands[2])?];
        Ok(Op::PredLogic { how, to, from })
    }
}

fn part_of(kind: Type, parts: usize) -> Result<Type> {
    match (kind, parts) {
        (Type::B32, 2) => Ok(Type::B16),
        (Type::B64, 2) => Ok(Type::B32),
        (Type::B64, 4) => Ok(Type::B16),
        _ => Err(format!("mov packs no {parts} parts into {kind:?}")),
    }
}

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

fn compare(name: &str, kind: Type, ftz: bool) -> Option<Compare> {
    macro_rules! whole {
        ($t:ty) => {
            Some(match name {
                "eq" => |x, y| mask(|i| x[i] as $t == y[i] as $t),
                "ne" => |x, y| mask(|i| x[i] as $t != y[i] as $t),
                "lt" | "lo" => |x, y| mask(|i| (x[i] as $t) < y[i] as $t),
                "le" | "ls" => |x, y| mask(|i| x[i] as $t <= y[i] as $t),
                "gt" | "hi" => |x, y| mask(|i| x[i] as $t > y[i] as $t),
                "ge" | "hs" => |x, y| mask(|i| x[i] as $t >= y[i] as $t),
                _ => return None,
            })
        };
    }
    macro_rules! floats {
        ($t:ty, $ftz:literal) => {{
            fn pairs(x: u64, y: u64) -> (f64, f64) {
                use crate::bits::Bits;
                let (x, y) = (<$t>::of(x), <$t>::of(y));
                if $ftz { (x.flush().wide(), y.flush().wide()) } else { (x.wide(), y.wide()) }
            }
            fn all(x: &alu::Lanes, y: &alu::Lanes, of: impl Fn(Option<Ordering>) -> bool) -> u32 {
                mask(|i| {
                    let (x, y) = pairs(x[i], y[i]);
                    of(x.partial_cmp(&y))
                })
            }
            // Those in -u hold too where one operand is NaN.
            Some(match name {
                "eq" => |x, y| all(x, y, |order| order.is_some_and(Ordering::is_eq)),
                "ne" => |x, y| all(x, y, |order| order.is_some_and(Ordering::is_ne)),
                "lt" => |x, y| all(x, y, |order| order.is_some_and(Ordering::is_lt)),
                "le" => |x, y| all(x, y, |order| order.is_some_and(Ordering::is_le)),
                "gt" => |x, y| all(x, y, |order| order.is_some_and(Ordering::is_gt)),
                "ge" => |x, y| all(x, y, |order| order.is_some_and(Ordering::is_ge)),
                "equ" => |x, y| all(x, y, |order| order.is_none_or(Ordering::is_eq)),
                "neu" => |x, y| all(x, y, |order| order.is_none_or(Ordering::is_ne)),
                "ltu" => |x, y| all(x, y, |order| order.is_none_or(Ordering::is_lt)),
                "leu" => |x, y| all(x, y, |order| order.is_none_or(Ordering::is_le)),
                "gtu" => |x, y| all(x, y, |order| order.is_none_or(Ordering::is_gt)),
                "geu" => |x, y| all(x, y, |order| order.is_none_or(Ordering::is_ge)),
                "num" => |x, y| all(x, y, |order| order.is_some()),
                "nan" => |x, y| all(x, y, |order| order.is_none()),
                _ => return None,
            })
        }};
    }
    let unsigned_only = matches!(name, "lo" | "ls" | "hi" | "hs");
    let equality = matches!(name, "eq" | "ne");
    match kind {
        Type::B16 | Type::B32 | Type::B64 if !equality => None,
        Type::S16 | Type::S32 | Type::S64 if unsigned_only => None,
        Type::B16 | Type::U16 => whole!(u16),
        Type::S16 => whole!(i16),
        Type::B32 | Type::U32 => whole!(u32),
        Type::S32 => whole!(i32),
        Type::B64 | Type::U64 => whole!(u64),
        Type::S64 => whole!(i64),
        Type::F32 if ftz => floats!(f32, true),
        Type::F32 => floats!(f32, false),
        Type::F64 => floats!(f64, false),
        // Of a pair, the lower half.
        Type::F16 | Type::F16x2 if ftz => floats!(F16, true),
        Type::F16 | Type::F16x2 => floats!(F16, false),
        Type::Bf16 => floats!(Bf16, false),
        _ => None,
    }
}

/// The lanes for which it holds.
fn mask(of: impl Fn(usize) -> bool) -> u32 {
    (0..32).fold(0, |mask, i| mask | u32::from(of(i)) << i)
}
