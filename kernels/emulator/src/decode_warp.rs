//! Decodes barriers, exchanges between the lanes of a warp, matrix operations. Branches are `module`'s: they
//! need the labels.

use crate::decode::{Reading, Result};
use crate::instruction::{Atomic, BarrierResult, Factors, Op, Shuffle, Slot, Vote};
use crate::matrix::Matrices;
use crate::parser::Operand;
use crate::types::{Space, Type};

impl Reading<'_> {
    pub fn warp(&mut self) -> Result<Option<Op>> {
        Ok(Some(match self.opcode {
            "bar" | "barrier" => self.barrier()?,
            "shfl" => self.shuffle()?,
            "vote" => self.vote()?,
            "match" => self.matching()?,
            "redux" => self.redux()?,
            "elect" => self.elect()?,
            "activemask" => {
                self.words.has("b32");
                self.count(1, 1)?;
                Op::ActiveMask { to: self.target(0, Type::B32)? }
            }
            "griddepcontrol" => match self.words.one_of(&["wait", "launch_dependents"]) {
                None => return Err("griddepcontrol needs .wait or .launch_dependents".into()),
                Some("wait") => Op::GridWait,
                Some(_) => Op::GridLaunch,
            },
            "ldmatrix" | "stmatrix" => self.matrices()?,
            "mma" => self.mma()?,
            "ret" | "exit" => {
                self.words.has("uni");
                self.count(0, 0)?;
                Op::Exit
            }
            "trap" => Op::Trap,
            _ => return Ok(None),
        }))
    }

    fn need_sync(&mut self) -> Result<()> {
        if self.words.has("sync") { Ok(()) } else { Err(format!("{}.sync is wanted", self.opcode)) }
    }

    fn barrier(&mut self) -> Result<Op> {
        self.words.has("cta");
        if self.opcode == "bar" && self.words.has("warp") {
            self.need_sync()?;
            self.count(1, 1)?;
            return Ok(Op::WarpBarrier { members: self.source(0, Type::B32)? });
        }
        self.words.has("aligned");
        if self.words.has("red") {
            return self.barrier_result();
        }
        let waits = match self.words.one_of(&["sync", "arrive"]) {
            Some(word) => word == "sync",
            None => return Err("one of .sync, .arrive, .red is missing".into()),
        };
        self.count(1 + usize::from(!waits), 2)?;
        let id = self.source(0, Type::U32)?;
        let count = if self.operands.len() > 1 { Some(self.source(1, Type::U32)?) } else { None };
        Ok(Op::Barrier { id, count, waits, result: BarrierResult::None })
    }

    fn barrier_result(&mut self) -> Result<Op> {
        let how = self.words.one_of(&["popc", "and", "or"]);
        let kind = self.words.kind()?;
        self.count(3, 4)?;
        let last = self.operands.len() - 1;
        let of = self.names.test(&self.operands[last])?;
        let id = self.source(1, Type::U32)?;
        let count = if last == 3 { Some(self.source(2, Type::U32)?) } else { None };
        let result = match (how, kind) {
            (Some("popc"), Type::U32) => BarrierResult::Count { to: self.target(0, kind)?, of },
            (Some("and"), Type::Pred) => {
                BarrierResult::All { to: self.names.predicate(&self.operands[0])?, of }
            }
            (Some("or"), Type::Pred) => {
                BarrierResult::Any { to: self.names.predicate(&self.operands[0])?, of }
            }
            _ => return Err("bar.red is .popc.u32, .and.pred or .or.pred".into()),
        };
        Ok(Op::Barrier { id, count, waits: true, result })
    }

    fn shuffle(&mut self) -> Result<Op> {
        self.need_sync()?;
        let how = match self.words.one_of(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Bfly,
            Some(_) => Shuffle::Idx,
            None => return Err("the mode is missing".into()),
        };
        if !self.words.has("b32") {
            return Err("shfl exchanges .b32".into());
        }
        self.count(5, 5)?;
        let (to, found) = self.pair(|names, operand| names.target(operand, Type::B32))?;
        Ok(Op::Shuffle {
            how,
            to,
            found,
            from: self.source(1, Type::B32)?,
            by: self.source(2, Type::B32)?,
            clamp: self.source(3, Type::B32)?,
            members: self.source(4, Type::B32)?,
        })
    }

    fn vote(&mut self) -> Result<Op> {
        self.need_sync()?;
        let how = match self.words.one_of(&["all", "any", "uni", "ballot"]) {
            Some("all") => Vote::All,
            Some("any") => Vote::Any,
            Some("uni") => Vote::Uni,
            Some(_) => Vote::Ballot,
            None => return Err("the mode is missing".into()),
        };
        let kind = self.words.kind()?;
        self.count(3, 3)?;
        let to = match (how, kind) {
            (Vote::Ballot, Type::B32) => self.target(0, kind)?,
            (Vote::All | Vote::Any | Vote::Uni, Type::Pred) => self.names.predicate(&self.operands[0])?,
            _ => return Err("vote gives .pred, its ballot .b32".into()),
        };
        let of = self.names.test(&self.operands[1])?;
        Ok(Op::Vote { how, to, of, members: self.source(2, Type::B32)? })
    }

    fn matching(&mut self) -> Result<Op> {
        let all = match self.words.one_of(&["any", "all"]) {
            Some(word) => word == "all",
            None => return Err("one of .any and .all is missing".into()),
        };
        self.need_sync()?;
        let kind = self.words.kind()?;
        if !matches!(kind, Type::B32 | Type::B64) {
            return Err("match compares .b32 or .b64".into());
        }
        self.count(3, 3)?;
        let (to, found) = self.pair(|names, operand| names.target(operand, Type::B32))?;
        let from = self.source(1, kind)?;
        Ok(Op::Match { to, all: all.then_some(found), from, members: self.source(2, Type::B32)? })
    }

    fn redux(&mut self) -> Result<Op> {
        self.need_sync()?;
        let word = self.words.one_of(&["add", "min", "max", "and", "or", "xor"]);
        let kind = self.words.kind()?;
        let how = match (word, kind) {
            (Some("add"), Type::U32 | Type::S32) => Atomic::Add,
            (Some("min"), Type::U32 | Type::S32) => Atomic::Min,
            (Some("max"), Type::U32 | Type::S32) => Atomic::Max,
            (Some("and"), Type::B32) => Atomic::And,
            (Some("or"), Type::B32) => Atomic::Or,
            (Some("xor"), Type::B32) => Atomic::Xor,
            _ => return Err("redux adds and compares .u32 and .s32, combines .b32".into()),
        };
        self.count(3, 3)?;
        let (from, members) = (self.source(1, kind)?, self.source(2, Type::B32)?);
        Ok(Op::Redux { how, signed: kind.signed(), to: self.target(0, kind)?, from, members })
    }

    fn elect(&mut self) -> Result<Op> {
        self.need_sync()?;
        self.count(2, 2)?;
        let Operand::Pair(to, leader) = &self.operands[0] else {
            return Err("elect.sync gives a register and a predicate: d|p".into());
        };
        let to = match to.as_ref() {
            Operand::Name(name) if name == "_" => None,
            to => Some(self.names.target(to, Type::B32)?),
        };
        let leader = self.names.predicate(leader)?;
        Ok(Op::Elect { to, leader, members: self.source(1, Type::B32)? })
    }

    /// ldmatrix and stmatrix.
    fn matrices(&mut self) -> Result<Op> {
        self.need_sync()?;
        if !self.words.has("aligned") || !self.words.has("m8n8") {
            return Err(format!("{}.sync.aligned.m8n8 is wanted", self.opcode));
        }
        let count = match self.words.one_of(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err("the number of matrices is missing: .x1, .x2 or .x4".into()),
        };
        let transposed = self.words.has("trans");
        if self.words.one_of(&["shared", "shared::cta"]).is_none() || !self.words.has("b16") {
            return Err(format!("{} is of .shared.b16", self.opcode));
        }
        self.count(2, 2)?;
        let loads = self.opcode == "ldmatrix";
        let (at, of) = if loads { (1, 0) } else { (0, 1) };
        let address = self.names.address(&self.operands[at], Space::Shared)?;
        let fragments = self.fragment(of, count, Type::B32, loads)?;
        let matrices = Matrices { address, fragments, transposed };
        Ok(if loads { Op::LoadMatrices(matrices) } else { Op::StoreMatrices(matrices) })
    }

    fn fragment(&mut self, at: usize, count: usize, kind: Type, target: bool) -> Result<Box<[Slot]>> {
        let parts = Reading::vector(&self.operands[at]);
        if parts.len() != count {
            return Err(format!("operand {} has {} registers where {count} are wanted", at + 1, parts.len()));
        }
        parts
            .iter()
            .map(|part| if target { self.names.target(part, kind) } else { self.names.source(part, kind) })
            .collect()
    }

    fn mma(&mut self) -> Result<Op> {
        self.need_sync()?;
        if !self.words.has("aligned") {
            return Err("mma.sync.aligned is wanted".into());
        }
        let shapes = ["m16n8k8", "m16n8k16", "m16n8k32"];
        let k = match self.words.one_of(&shapes) {
            Some("m16n8k8") => 8,
            Some("m16n8k16") => 16,
            Some(_) => 32,
            None => return Err("of the shapes, m16n8k8, m16n8k16 and m16n8k32 are supported".into()),
        };
        if !self.words.has("row") || !self.words.has("col") {
            return Err("mma takes A by .row and B by .col".into());
        }
        let saturate = self.words.has("satfinite");
        let kinds = [self.words.kind()?, self.words.kind()?, self.words.kind()?, self.words.kind()?];
        let (factors, per_register) = match (kinds[1], kinds[2], k) {
            (Type::F16, Type::F16, 8 | 16) => (Factors::F16 { k }, 2),
            (Type::Bf16, Type::Bf16, 8 | 16) => (Factors::Bf16 { k }, 2),
            (Type::S8 | Type::U8, Type::S8 | Type::U8, 16 | 32) => {
                (Factors::Bytes { k, a: kinds[1].signed(), b: kinds[2].signed() }, 4)
            }
            _ => return Err(format!("no m16n8k{k} of {:?} and {:?}", kinds[1], kinds[2])),
        };
        let half = kinds[0] == Type::F16 && matches!(factors, Factors::F16 { .. });
        let sum = match factors {
            Factors::Bytes { .. } => Type::S32,
            _ if half => Type::F16,
            _ => Type::F32,
        };
        if kinds[0] != sum || kinds[3] != sum {
            return Err(format!("the accumulators must be {sum:?}"));
        }
        if saturate && sum != Type::S32 {
            return Err(".satfinite belongs to integers".into());
        }
        self.count(4, 4)?;
        let (sums, kind) = if half { (2, Type::B32) } else { (4, sum) };
        let elements = 16 * k / 32 / per_register;
        let d = self.fragment(0, sums, kind, true)?;
        let a = self.fragment(1, elements, Type::B32, false)?;
        let b = self.fragment(2, elements / 2, Type::B32, false)?;
        let c = self.fragment(3, sums, kind, false)?;
        Ok(Op::Mma { factors, half, d, a, b, c, saturate })
    }
}
