//! A decoded instruction: registers are slots, immediates and special registers are slots too, labels are
//! positions. Data only.

use crate::alu::Function;
use crate::convert::Conversion;
use crate::matrix::Matrices;
use crate::types::{Space, Type};

/// A position in a warp's register file.
pub type Slot = u32;

/// A predicate, perhaps negated.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub slot: Slot,
    pub negated: bool,
}

/// An address: a register (or a constant) and a displacement.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub space: Space,
    pub base: Slot,
    pub offset: i64,
}

/// How an access orders others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Order {
    /// volatile, relaxed, acquire, release: concurrent accesses of this kind are no race.
    pub strong: bool,
    /// Strong beyond the block: by these alone blocks order each other.
    pub wide: bool,
    pub acquire: bool,
    pub release: bool,
    /// `.nc`: the bytes must not change during the launch.
    pub constant: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    Add,
    Sub,
    MadLo,
    MadHi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// What bar.red computes over the threads.
#[derive(Clone, Copy, Debug)]
pub enum BarrierResult {
    None,
    Count { to: Slot, of: Test },
    All { to: Slot, of: Test },
    Any { to: Slot, of: Test },
}

/// The matrices of mma: 16 rows, 8 columns, and k of one of these types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    F16 {
        k: usize,
    },
    Bf16 {
        k: usize,
    },
    /// Signs of A and B.
    Bytes {
        k: usize,
        a: bool,
        b: bool,
    },
}

pub type Compare = fn(&crate::alu::Lanes, &crate::alu::Lanes) -> u32;

pub enum Op {
    /// Up to three sources; those that an operation lacks read as the zero constant.
    Alu {
        function: Function,
        to: Slot,
        from: [Slot; 3],
    },
    /// `mask` is the width of the destination register.
    Convert {
        how: Conversion,
        to: Slot,
        mask: u64,
        from: [Slot; 2],
    },
    Lop3 {
        to: Slot,
        from: [Slot; 3],
        table: u8,
    },
    Insert {
        to: Slot,
        from: [Slot; 4],
        width: u64,
    },
    Carry {
        how: Carry,
        kind: Type,
        to: Slot,
        from: [Slot; 3],
        takes: bool,
        gives: bool,
    },
    /// `also` takes what fails, or, of a packed comparison, what holds for the upper halves.
    Setp {
        compare: Compare,
        packed: bool,
        to: Slot,
        also: Option<Slot>,
        from: [Slot; 2],
        with: Option<(Logic, Test)>,
    },
    Set {
        compare: Compare,
        to: Slot,
        from: [Slot; 2],
        with: Option<(Logic, Test)>,
        yes: u64,
    },
    Testp {
        test: fn(u64) -> bool,
        to: Slot,
        from: Slot,
    },
    Select {
        to: Slot,
        from: [Slot; 2],
        test: Test,
    },
    /// slct: by the sign of the third.
    SelectSign {
        to: Slot,
        from: [Slot; 2],
        sign: Slot,
        float: bool,
    },
    PredLogic {
        how: Logic,
        to: Slot,
        from: [Test; 2],
    },
    PredMove {
        to: Slot,
        from: Test,
    },
    /// Parts of `bits` bits, the lowest first, into one register.
    Pack {
        to: Slot,
        from: Box<[Slot]>,
        bits: u32,
    },
    Unpack {
        to: Box<[Option<Slot>]>,
        from: Slot,
        bits: u32,
    },
    Load {
        address: Address,
        kind: Type,
        to: Box<[Option<(Slot, u64)>]>,
        order: Order,
    },
    Store {
        address: Address,
        kind: Type,
        from: Box<[Slot]>,
        order: Order,
    },
    Atom {
        address: Address,
        how: Atomic,
        kind: Type,
        to: Option<Slot>,
        from: [Slot; 2],
        order: Order,
    },
    Copy {
        to: Address,
        from: Address,
        bytes: u32,
        taken: Option<Slot>,
    },
    CopyCommit,
    /// Waits until at most so many groups are in flight; none: for all, committed or not.
    CopyWait(Option<u32>),
    /// `waits` is false for bar.arrive.
    Barrier {
        id: Slot,
        count: Option<Slot>,
        waits: bool,
        result: BarrierResult,
    },
    WarpBarrier {
        members: Slot,
    },
    Fence {
        wide: bool,
    },
    Shuffle {
        how: Shuffle,
        to: Slot,
        found: Option<Slot>,
        from: Slot,
        by: Slot,
        clamp: Slot,
        members: Slot,
    },
    Vote {
        how: Vote,
        to: Slot,
        of: Test,
        members: Slot,
    },
    Match {
        to: Slot,
        all: Option<Option<Slot>>,
        from: Slot,
        members: Slot,
    },
    Redux {
        how: Atomic,
        signed: bool,
        to: Slot,
        from: Slot,
        members: Slot,
    },
    ActiveMask {
        to: Slot,
    },
    Elect {
        to: Option<Slot>,
        leader: Slot,
        members: Slot,
    },
    Mma {
        factors: Factors,
        half: bool,
        d: Box<[Slot]>,
        a: Box<[Slot]>,
        b: Box<[Slot]>,
        c: Box<[Slot]>,
        saturate: bool,
    },
    LoadMatrices(Matrices),
    StoreMatrices(Matrices),
    Branch {
        target: u32,
        /// `.uni`: all active lanes go the same way.
        uniform: bool,
    },
    BranchIndex {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    /// griddepcontrol.wait
    GridWait,
    /// griddepcontrol.launch_dependents
    GridLaunch,
    /// prefetch, nanosleep.
    Nothing,
    /// createpolicy: any value, for hints alone.
    Policy {
        to: Slot,
    },
}

impl Op {
    /// Does it wait for other lanes: the members that a register names, or the whole warp?
    pub fn meets(&self) -> Option<Option<Slot>> {
        match *self {
            Op::WarpBarrier { members }
            | Op::Shuffle { members, .. }
            | Op::Vote { members, .. }
            | Op::Match { members, .. }
            | Op::Redux { members, .. }
            | Op::Elect { members, .. } => Some(Some(members)),
            Op::Barrier { .. } | Op::Mma { .. } | Op::LoadMatrices(_) | Op::StoreMatrices(_) => Some(None),
            _ => None,
        }
    }
}

pub struct Instruction {
    pub op: Op,
    pub guard: Option<Test>,
    pub file: u16,
    pub line: u32,
    /// Index of the opcode's whole text in the kernel's list.
    pub name: u16,
}

/// What a slot holds when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    Register,
    Constant(u64),
    Special(Special),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Laneid,
    Warpid,
    Nwarpid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    Smid,
    Nsmid,
    DynamicShared,
    TotalShared,
    Clock,
}
