//! What goes wrong: an error of the text, a fault of a run. Owns their sentences; decides nothing.

use std::fmt;

/// A PTX text that cannot be run: a syntax error, an unknown name, a type that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The source file by the `# LINE "file"` markers; empty without one.
    pub file: String,
    pub line: u32,
    pub sentence: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file.is_empty() { "ptx" } else { &self.file };
        write!(f, "{file}:{}: {}", self.line, self.sentence)
    }
}

impl std::error::Error for Error {}

/// The check that a kernel failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An access outside every buffer, or across the end of one.
    OutOfBounds,
    /// An address that is no multiple of the size of the whole access.
    Misaligned,
    /// A register read by a lane that never wrote it.
    UninitialisedRegister,
    UninitialisedShared,
    UninitialisedGlobal,
    UninitialisedLocal,
    /// Two threads of a block, one of them writing, with no barrier between.
    SharedRace,
    /// Two threads of a grid, one of them writing, with nothing that orders them.
    GlobalRace,
    /// A barrier that only a part of a warp reaches.
    BarrierDivergence,
    /// Threads wait at a barrier for others that never come.
    Deadlock,
    /// Bytes of a cp.async used before the thread that issued it waited.
    CopyNotWaited,
    /// An access, before griddepcontrol.wait, to a buffer that an earlier launch may still be writing.
    GridNotWaited,
    /// A thread exits with a cp.async still in flight.
    CopyPending,
    /// A member mask of a .sync operation that differs from the active lanes.
    MemberMask,
    /// A `bra.uni` that some active lanes take and others do not.
    NotUniform,
    /// mma, ldmatrix: less than the whole warp is active.
    PartialWarp,
    /// A store to a read-only buffer.
    ReadOnly,
    /// A .nc load of bytes that the same launch writes.
    NotCoherent,
    /// A warp ran more instructions than `Options::limit`.
    Endless,
    /// The kernel executed `trap`.
    Trap,
    /// A launch that a driver refuses: a wrong block, too much shared memory, parameters of another size.
    Launch,
    /// An access of the host that leaves a buffer or reads what nobody wrote.
    Host,
}

/// Why a run ended early. `Display` is one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    /// The kernel that ran; empty where the host is to blame.
    pub kernel: String,
    pub file: String,
    /// Zero where no instruction is to blame.
    pub line: u32,
    pub cta: [u32; 3],
    pub thread: [u32; 3],
    pub sentence: String,
}

impl Fault {
    pub(crate) fn of_host(kind: Kind, sentence: impl Into<String>) -> Fault {
        let (kernel, file) = (String::new(), String::new());
        Fault { kind, kernel, file, line: 0, cta: [0; 3], thread: [0; 3], sentence: sentence.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            let file = if self.file.is_empty() { "ptx" } else { &self.file };
            let ([x, y, z], [a, b, c]) = (self.thread, self.cta);
            write!(f, "{file}:{}: thread ({x},{y},{z}) of block ({a},{b},{c}): ", self.line)?;
        }
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Fault {}

/// A fault as the executing parts report it: they know the lane, not the line nor the block.
#[derive(Debug)]
pub(crate) struct Stop {
    pub kind: Kind,
    pub lane: u32,
    pub sentence: String,
}

pub(crate) fn stop<T>(kind: Kind, lane: u32, sentence: impl Into<String>) -> Result<T, Stop> {
    Err(Stop { kind, lane, sentence: sentence.into() })
}
