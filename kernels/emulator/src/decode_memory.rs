//! Decodes loads, stores, atomics, asynchronous copies and fences.

use crate::decode::{Reading, Result};
use crate::instruction::{Atomic, Op, Order};
use crate::parser::Operand;
use crate::types::{Space, Type};

impl Reading<'_> {
    pub fn memory(&mut self) -> Result<Option<Op>> {
        Ok(Some(match self.opcode {
            "ld" | "ldu" => self.load()?,
            "st" => self.store()?,
            "atom" | "red" => self.atom()?,
            "cp" => self.copy()?,
            "membar" => match self.words.one_of(&["gl", "cta", "sys"]) {
                None => return Err("membar needs a level".into()),
                level => Op::Fence { wide: level != Some("cta") },
            },
            "fence" => {
                if self.words.one_of(&["acq_rel", "sc"]).is_none() {
                    return Err("only fence.acq_rel and fence.sc are supported".into());
                }
                match self.words.one_of(&["gpu", "cta", "sys"]) {
                    None => return Err("the fence's scope is missing".into()),
                    level => Op::Fence { wide: level != Some("cta") },
                }
            }
            _ => return Ok(None),
        }))
    }

    fn order(&mut self, release: bool) -> Result<Order> {
        let mut order = Order::default();
        match self.words.one_of(&["volatile", "relaxed", "acquire", "release", "acq_rel", "weak"]) {
            Some("weak") | None => {}
            Some("acquire") if release => return Err("a store does not acquire".into()),
            Some("release") if !release => return Err("a load does not release".into()),
            Some("acq_rel") => return Err(".acq_rel belongs to atomics".into()),
            Some(word) => {
                order.strong = true;
                order.acquire = word == "acquire";
                order.release = word == "release";
                let scope = self.words.one_of(&["gpu", "cta", "sys"]);
                if scope.is_none() && word != "volatile" {
                    return Err("the scope is missing: .gpu, .cta or .sys".into());
                }
                order.wide = scope != Some("cta");
            }
        }
        Ok(order)
    }

    /// `.v2`, `.v4` or nothing.
    fn width(&mut self) -> usize {
        match self.words.one_of(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        }
    }

    fn load(&mut self) -> Result<Op> {
        let mut order = self.order(false)?;
        let space = self.words.space();
        order.constant = self.words.has("nc") || self.opcode == "ldu";
        if order.constant && space != Space::Global {
            return Err(".nc belongs to .global".into());
        }
        let (kind, parts) = self.vector_of(0, space, order)?;
        let to = parts
            .iter()
            .map(|part| match part {
                Operand::Name(name) if name == "_" && parts.len() > 1 => Ok(None),
                part => self.names.wide_target(part, kind).map(Some),
            })
            .collect::<Result<_>>()?;
        Ok(Op::Load { address: self.names.address(&self.operands[1], space)?, kind, to, order })
    }

    fn store(&mut self) -> Result<Op> {
        let order = self.order(true)?;
        let space = self.words.space();
        if matches!(space, Space::Const | Space::Param) {
            return Err(format!("no store to {space:?}"));
        }
        let (kind, parts) = self.vector_of(1, space, order)?;
        let from = parts.iter().map(|part| self.names.wide_source(part, kind)).collect::<Result<_>>()?;
        Ok(Op::Store { address: self.names.address(&self.operands[0], space)?, kind, from, order })
    }

    /// What loads and stores have in common behind their order and space: hints, the type, the registers of operand `at`.
    fn vector_of(&mut self, at: usize, space: Space, order: Order) -> Result<(Type, Vec<Operand>)> {
        if space == Space::Local && order.strong {
            return Err("a local access orders nothing".into());
        }
        let policy = self.words.has("L2::cache_hint");
        self.words.take_hints();
        let width = self.width();
        let kind = self.words.kind()?;
        self.count(2 + usize::from(policy), 2 + usize::from(policy))?;
        if policy {
            self.source(2, Type::B64)?;
        }
        let parts = Reading::vector(&self.operands[at]);
        if parts.len() != width {
            return Err(format!("{} registers for a vector of {width}", parts.len()));
        }
        if kind.size() as usize * width > 16 || kind == Type::Pred {
            return Err("a vector has at most 16 bytes".into());
        }
        Ok((kind, parts))
    }

    fn atom(&mut self) -> Result<Op> {
        let mut order = Order { strong: true, ..Order::default() };
        match self.words.one_of(&["relaxed", "acquire", "release", "acq_rel"]) {
            Some("acquire") => order.acquire = true,
            Some("release") => order.release = true,
            Some("acq_rel") => (order.acquire, order.release) = (true, true),
            _ => {}
        }
        order.wide = self.words.one_of(&["gpu", "cta", "sys"]) != Some("cta");
        let space = self.words.space();
        if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
            return Err(format!("no atomic operation in {space:?}"));
        }
        let names = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
        let how = match self.words.one_of(&names) {
            Some("add") => Atomic::Add,
            Some("min") => Atomic::Min,
            Some("max") => Atomic::Max,
            Some("and") => Atomic::And,
            Some("or") => Atomic::Or,
            Some("xor") => Atomic::Xor,
            Some("exch") => Atomic::Exch,
            Some("cas") => Atomic::Cas,
            Some("inc") => Atomic::Inc,
            Some("dec") => Atomic::Dec,
            _ => return Err("the atomic's operation is missing".into()),
        };
        let unflushed = self.words.has("noftz");
        self.words.take_hints();
        let kind = self.words.kind()?;
        let fits = match how {
            Atomic::Add => matches!(
                kind,
                Type::U32 | Type::S32 | Type::U64 | Type::F32 | Type::F64 | Type::F16 | Type::F16x2
            ),
            Atomic::Min | Atomic::Max => matches!(kind, Type::U32 | Type::S32 | Type::U64 | Type::S64),
            Atomic::And | Atomic::Or | Atomic::Xor => matches!(kind, Type::B32 | Type::B64),
            Atomic::Exch => matches!(kind, Type::B32 | Type::B64),
            Atomic::Cas => matches!(kind, Type::B16 | Type::B32 | Type::B64),
            Atomic::Inc | Atomic::Dec => kind == Type::U32,
        };
        if !fits {
            return Err(format!("no atomic operation {how:?} of {kind:?}"));
        }
        if matches!(kind, Type::F16 | Type::F16x2) && !unflushed {
            return Err("16-bit atomics need .noftz".into());
        }
        let returns = self.opcode == "atom";
        let (to, rest) = match returns {
            true => (Some(self.target(0, kind)?), &self.operands[1..]),
            false => (None, self.operands),
        };
        let sources = if how == Atomic::Cas { 2 } else { 1 };
        if rest.len() != 1 + sources || how == Atomic::Cas && !returns {
            return Err(format!("{} operands where {} are wanted", rest.len(), 1 + sources));
        }
        let a = self.names.source(&rest[1], kind)?;
        let b = if sources == 2 { self.names.source(&rest[2], kind)? } else { a };
        Ok(Op::Atom { address: self.names.address(&rest[0], space)?, how, kind, to, from: [a, b], order })
    }

    fn copy(&mut self) -> Result<Op> {
        if !self.words.has("async") {
            return Err("only cp.async is supported".into());
        }
        if self.words.has("commit_group") {
            self.count(0, 0)?;
            return Ok(Op::CopyCommit);
        }
        if self.words.has("wait_all") {
            self.count(0, 0)?;
            return Ok(Op::CopyWait(None));
        }
        if self.words.has("wait_group") {
            self.count(1, 1)?;
            let Operand::Integer(groups) = self.operands[0] else {
                return Err("cp.async.wait_group takes a constant".into());
            };
            return Ok(Op::CopyWait(Some(groups as u32)));
        }
        let all = self.words.has("cg");
        if !all && !self.words.has("ca") {
            return Err("cp.async needs .ca or .cg".into());
        }
        if self.words.one_of(&["shared", "shared::cta"]).is_none() || !self.words.has("global") {
            return Err("cp.async copies to .shared from .global".into());
        }
        let policy = self.words.has("L2::cache_hint");
        self.words.take_hints();
        self.count(3 + usize::from(policy), 4 + usize::from(policy))?;
        let Operand::Integer(bytes @ (4 | 8 | 16)) = self.operands[2] else {
            return Err("cp.async copies 4, 8 or 16 bytes".into());
        };
        if all && bytes != 16 {
            return Err("cp.async.cg copies 16 bytes".into());
        }
        let taken = match self.operands.len() - usize::from(policy) {
            4 => Some(self.source(3, Type::U32)?),
            _ => None,
        };
        if policy {
            self.source(self.operands.len() - 1, Type::B64)?;
        }
        let to = self.names.address(&self.operands[0], Space::Shared)?;
        let from = self.names.address(&self.operands[1], Space::Global)?;
        Ok(Op::Copy { to, from, bytes: bytes as u32, taken })
    }
}
