//! Runs PTX kernels on a processor, warp by warp, with the checks that a GPU does not make.
//!
//! The text is the one that ptxas and a driver take; nothing is compiled. A kernel that runs here without a
//! fault, under several seeds, does not read what nobody wrote, does not leave its buffers, has no race
//! between two barriers, and waits for what it copies. It says nothing about time.
//!
//! ```
//! use ptx_emulator::{Launch, Memory, Module, Options, Parameters, launch};
//!
//! let module = Module::parse(
//!     ".version 7.4
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry twice(.param .u64 numbers) {
//!          .reg .b64 %at;
//!          .reg .b32 %thread, %number;
//!          ld.param.u64    %at, [numbers];
//!          mov.u32         %thread, %tid.x;
//!          mad.wide.u32    %at, %thread, 4, %at;
//!          ld.global.u32   %number, [%at];
//!          add.u32         %number, %number, %number;
//!          st.global.u32   [%at], %number;
//!          ret;
//!      }",
//! )?;
//! let mut memory = Memory::new();
//! let numbers = memory.upload("numbers", &7u32.to_le_bytes().repeat(64));
//! let parameters = Parameters::new().u64(numbers);
//! let shape = Launch { grid: [1, 1, 1], block: [64, 1, 1], shared: 0, parameters: &parameters };
//! let kernel = module.kernel("twice").expect("the entry above");
//! let counts = launch(kernel, &mut memory, &shape, &Options::default())?;
//! assert_eq!(memory.read(numbers, 4)?, 14u32.to_le_bytes());
//! assert_eq!((counts.warp_instructions, counts.global_sectors), (14, 16));
//!
//! // One thread too many. The fault reads:
//! // ptx:10: thread (64,0,0) of block (0,0,0): reads bytes 256 to 260 of `numbers`, which has 256
//! let shape = Launch { block: [65, 1, 1], ..shape };
//! let fault = launch(kernel, &mut memory, &shape, &Options::default()).expect_err("out of bounds");
//! assert_eq!((fault.line, fault.thread), (10, [64, 0, 0]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is checked
//!
//! | [`Kind`] | |
//! |---|---|
//! | `OutOfBounds`, `Misaligned` | every access, of the whole vector; buffers lie 4 KiB apart, variables of shared memory 1 KiB |
//! | `UninitialisedRegister` | per lane; what selp does not select may be unwritten |
//! | `UninitialisedShared`, `UninitialisedGlobal`, `UninitialisedLocal` | per byte |
//! | `SharedRace`, `GlobalRace` | two threads, one of them writing, that nothing orders: see below |
//! | `BarrierDivergence`, `Deadlock` | a barrier wants all living lanes of a warp, and its number of threads |
//! | `CopyNotWaited`, `CopyPending` | bytes of a cp.async land when their own thread waits, and are left alone till then, here and there |
//! | `GridNotWaited` | before `griddepcontrol.wait`, buffers that the launches before wrote: see below |
//! | `MemberMask`, `PartialWarp` | members of .sync operations are active; matrices have whole warps |
//! | `NotUniform` | `bra.uni` is taken by all active lanes or by none |
//! | `ReadOnly`, `NotCoherent` | [`Memory::protect`]; bytes read by `.nc` do not change during the launch |
//! | `Endless`, `Trap` | [`Options::limit`] |
//!
//! A register of the wrong type or width, a modifier that an opcode lacks, a label out of sight are errors of
//! [`Module::parse`], as with ptxas. Errors and faults name the source file and line by the text's `# LINE
//! "file"` markers.
//!
//! # What orders two accesses
//!
//! The program order of a thread; barriers, named ones for the warps that take part; `bar.warp.sync` for the
//! lanes that it names (a shuffle does not). Blocks order each other in global memory by release and acquire:
//! `.release` and `.acquire` on atomics, loads and stores, or a fence before and behind a relaxed one, none of them of
//! scope `.cta`. What one thread acquired the others of its block have behind the next barrier.
//! Concurrent atomics, volatile and relaxed accesses are no race among themselves.
//!
//! Threads of one block are ordered by barriers alone: flags in memory that the warps of a block poll are
//! reported as races. Of several blocks that read a word, the first stands for all when a later block writes it
//! behind an acquire; of several lanes that read one of global memory, the last, when one that `bar.warp.sync` of
//! some lanes ordered writes it; of several that read one of shared memory, all count as reading when the last did.
//!
//! A kernel with a `griddepcontrol.wait` counts as launched before the previous launch on the same [`Memory`]
//! ended: until a thread waits, or meets one that did at a barrier, it may touch no buffer that the previous
//! launch wrote. Where a thread of that one called `launch_dependents` before its own wait, the launches that
//! it overlapped count too. A kernel without the wait starts when all before it have ended.
//!
//! # Seeds
//!
//! Seed 0 runs the warps in order, each to its next barrier (or for 10,000 instructions). Any other seed
//! shuffles blocks and warps, preempts them, and moves the approximate operations within the bounds that the
//! PTX ISA states: the same operands give the same bits everywhere, as on a device. A result that depends on
//! more than those bounds is a defect of the kernel. mma of integers is exact. mma of floats sums in f64 and rounds
//! once; with [`Options::truncating`] it aligns, cuts and truncates as tensor cores do, those of sm_70, sm_80 or
//! sm_90 as the seed says. A kernel's bounds should hold under both: no device promises either.
//!
//! By default lanes that parted at a branch meet wherever they come to the same instruction. With
//! [`Options::independent`] they meet only where the PTX ISA promises it, at operations that are `.sync` (barriers and
//! matrices, which are `.aligned` too, among them), and the seed says which lanes go first.
//!
//! # What it lacks
//!
//! Calls, textures, clusters, wgmma, tensor copies; mbarrier and cp.async that arrives at one, which pay where copies
//! of whole tensors signal them, from sm_90 on, and not for rings that a warp or a block waits for by group; the tests of
//! packed numbers but `setp.f16x2`. Lanes that wait for each other at two operations, which sm_70 lets pass if they
//! are alike, are a fault. div, sqrt and rcp of f64 round to nearest alone. Local accesses are not counted. Clocks
//! stand at 0, `%smid` is 0.
//!
//! # How it works
//!
//! `lexer`, `parser`, `names` and `decode*` turn the text into instructions whose operands are slots of the
//! register file; constants and special registers are slots as well. `alu`, `approximate`, `bitfield` and
//! `convert` choose, once per instruction of the text, a function over the 32 lanes. `execute` steps a warp, whose
//! lanes `divergence` parts and joins. `load`, `access`, `atomics`, `copies`, `exchange` and `matrix` are the
//! other instructions; `memory`, `shared` and `local` hold the bytes, `shadow` who touched them last, `order`
//! what blocks know of each other. `launch` takes the blocks of a grid in turn, on several threads where the
//! kernel has nothing by which blocks could order each other.

mod access;
mod alu;
mod approximate;
mod atomics;
mod bitfield;
mod bits;
mod block;
mod convert;
mod copies;
mod counts;
mod decode;
mod decode_memory;
mod decode_warp;
mod divergence;
mod exact;
mod exchange;
mod execute;
mod fault;
mod float;
mod instruction;
mod launch;
mod lexer;
mod load;
mod local;
mod matrix;
mod memory;
mod modifiers;
mod module;
mod names;
mod order;
mod parser;
mod shadow;
mod shared;
mod types;
mod warp;

pub use counts::{Counts, Executed};
pub use fault::{Error, Fault, Kind};
pub use launch::{Launch, Options, Parameters, launch};
pub use memory::Memory;
pub use module::{Kernel, Module, Parameter};
