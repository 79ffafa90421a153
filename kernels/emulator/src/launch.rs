//! A launch: the blocks of a grid, in an order that the seed decides, on one or several threads.

use crate::block::Block;
use crate::counts::{Counts, Tally};
use crate::execute::Machine;
use crate::fault::{Fault, Kind, Stop};
use crate::matrix::TensorCore;
use crate::memory::Memory;
use crate::module::Kernel;
use crate::order::Locations;
use crate::shadow::BLOCKS;
use crate::warp::{Position, Warp};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Blocks at work at once where they may wait for each other.
const RESIDENT: usize = 16;

pub struct Launch<'a> {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Laid out as the kernel's `.param`s.
    pub parameters: &'a [u8],
}

/// Builds a block of parameters, each at its natural alignment.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    bytes: Vec<u8>,
}

impl Parameters {
    pub fn new() -> Parameters {
        Parameters::default()
    }

    fn put(mut self, bytes: &[u8]) -> Parameters {
        self.bytes.resize(self.bytes.len().next_multiple_of(bytes.len()), 0);
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn u64(self, value: u64) -> Parameters {
        self.put(&value.to_le_bytes())
    }

    pub fn u32(self, value: u32) -> Parameters {
        self.put(&value.to_le_bytes())
    }

    pub fn i32(self, value: i32) -> Parameters {
        self.put(&value.to_le_bytes())
    }

    pub fn f32(self, value: f32) -> Parameters {
        self.put(&value.to_le_bytes())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::Deref for Parameters {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// 0: warps in order, each to its next barrier, approximations exact but for one rounding. Other seeds
    /// shuffle the warps and blocks, preempt them, and move approximations within their bounds.
    pub seed: u64,
    /// Threads that share the blocks, where nothing in the kernel lets blocks order each other.
    pub threads: usize,
    /// Instructions after which a warp counts as endless.
    pub limit: u64,
    /// Lanes that parted meet again only at operations that are `.sync`, as the PTX ISA promises it; by default also where
    /// they come to the same instruction, as devices mostly do it.
    pub independent: bool,
    /// mma of floats sums as tensor cores do, on the low side: what is aligned to the largest product and cut; by default it
    /// rounds once.
    pub truncating: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { seed: 0, threads: 1, limit: 4_000_000, independent: false, truncating: false }
    }
}

/// Runs a kernel over a grid. The first fault ends it.
pub fn launch(
    kernel: &Kernel,
    memory: &mut Memory,
    launch: &Launch<'_>,
    options: &Options,
) -> Result<Counts, Fault> {
    check(kernel, launch)?;
    let tag = memory.start(kernel);
    let blocks = launch.grid.iter().product::<u32>();
    let threads = if kernel.orders_blocks { 1 } else { options.threads.clamp(1, blocks as usize) };
    let run = Run {
        kernel,
        memory,
        launch,
        options,
        tag,
        blocks,
        crowded: threads > 1,
        next: AtomicU32::new(0),
        fault: Mutex::new(None),
    };
    let mut tallies = Vec::new();
    if threads == 1 {
        tallies.push(run.work());
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| run.work())).collect();
            for worker in workers {
                match worker.join() {
                    Ok(tally) => tallies.push(tally),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    let fault = run.fault.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    match fault {
        Some((_, fault)) => Err(fault),
        None => Ok(Tally::into_counts(&tallies, kernel)),
    }
}

/// What a driver refuses.
fn check(kernel: &Kernel, launch: &Launch<'_>) -> Result<(), Fault> {
    let refuse = |sentence: String| Err(Fault::of_host(Kind::Launch, format!("{}: {sentence}", kernel.name)));
    let product = |sizes: [u32; 3]| sizes.iter().try_fold(1u32, |all, &size| all.checked_mul(size));
    let threads = product(launch.block).unwrap_or(0);
    if threads == 0 || threads > 1024 || launch.block[2] > 64 {
        return refuse(format!("a block of {:?} threads", launch.block));
    }
    if let Some(most) = kernel.max_threads
        && threads > most
    {
        return refuse(format!("a block of {threads} threads, where its directive allows {most}"));
    }
    if let Some(required) = kernel.required
        && launch.block != required
    {
        return refuse(format!("a block of {:?}, where .reqntid demands {required:?}", launch.block));
    }
    let blocks = product(launch.grid).unwrap_or(0);
    if blocks == 0 || u64::from(blocks) >= BLOCKS || launch.grid[1] > 65_535 || launch.grid[2] > 65_535 {
        return refuse(format!("a grid of {:?} blocks", launch.grid));
    }
    if launch.parameters.len() != kernel.parameter_bytes() {
        let (given, wanted) = (launch.parameters.len(), kernel.parameter_bytes());
        return refuse(format!("{given} bytes of parameters, where it takes {wanted}"));
    }
    let shared = u64::from(kernel.dynamic) + u64::from(launch.shared);
    if shared > 227 * 1024 {
        return refuse(format!("{shared} bytes of shared memory"));
    }
    Ok(())
}

struct Run<'a> {
    kernel: &'a Kernel,
    memory: &'a Memory,
    launch: &'a Launch<'a>,
    options: &'a Options,
    tag: u64,
    blocks: u32,
    crowded: bool,
    next: AtomicU32,
    /// The fault of the earliest block that had one.
    fault: Mutex<Option<(u32, Fault)>>,
}

impl Run<'_> {
    /// A thread's share of the blocks.
    fn work(&self) -> Tally {
        let mut machine = Machine {
            kernel: self.kernel,
            memory: self.memory,
            parameters: self.launch.parameters,
            seed: self.options.seed,
            tensor: self.options.truncating.then(|| TensorCore::of(self.options.seed)),
            limit: self.options.limit,
            locations: Locations::default(),
            tally: Tally::new(self.kernel),
        };
        let resident = if self.kernel.orders_blocks { RESIDENT } else { 1 };
        let mut blocks: Vec<Block> = Vec::new();
        let mut spare: Vec<Block> = Vec::new();
        let mut random = Random(self.options.seed);
        loop {
            while blocks.len() < resident {
                let Some(block) = self.open(spare.pop()) else { break };
                blocks.push(block);
            }
            if blocks.is_empty() || self.failed() {
                return machine.tally;
            }
            let at = if self.options.seed == 0 { 0 } else { random.below(blocks.len()) };
            let turns = if resident == 1 { usize::MAX } else { 1 };
            for offset in 0..blocks.len() {
                let at = (at + offset) % blocks.len();
                self.turn(&mut machine, &mut blocks[at], &mut random, turns);
            }
            if self.failed() {
                return machine.tally;
            }
            let all = std::mem::take(&mut blocks);
            for block in all {
                if block.done() { spare.push(block) } else { blocks.push(block) }
            }
        }
    }

    fn failed(&self) -> bool {
        self.lock().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(u32, Fault)>> {
        self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The next block of the grid.
    fn open(&self, spare: Option<Block>) -> Option<Block> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if turn >= self.blocks {
            return None;
        }
        // Seeds start somewhere in the grid and go either way.
        let seed = self.options.seed;
        let from = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % u64::from(self.blocks);
        let number = match seed {
            0 => turn,
            _ if seed % 2 == 1 => self.blocks - 1 - (turn + from as u32) % self.blocks,
            _ => (turn + from as u32) % self.blocks,
        };
        let [x, y, _] = self.launch.grid;
        let at = [number % x, number / x % y, number / x / y];
        match spare {
            Some(mut block) => {
                block.reset(self.kernel, at, number);
                Some(block)
            }
            None => {
                let position = Position {
                    block: self.launch.block,
                    at,
                    grid: self.launch.grid,
                    dynamic: self.launch.shared,
                    shared: self.kernel.dynamic + self.launch.shared,
                };
                let independent = self.options.independent.then_some(seed ^ u64::from(number) << 40);
                Some(Block::new(self.kernel, position, (number, self.tag), self.crowded, independent))
            }
        }
    }

    /// Runs warps of a block, one after the other, until none can go on or for so many turns.
    fn turn(&self, machine: &mut Machine<'_>, block: &mut Block, random: &mut Random, turns: usize) {
        let warps = block.warps.len();
        let ordered = self.options.seed == 0;
        for _ in 0..turns {
            let ready = |warp: &Warp| !warp.done() && warp.waits.is_none();
            let from = if ordered { block.next } else { random.below(warps) };
            let Some(warp) = (0..warps).map(|n| (from + n) % warps).find(|&warp| ready(&block.warps[warp]))
            else {
                if let Some((warp, stop)) = block.stuck() {
                    // It waits behind the barrier.
                    block.warps[warp].pc -= 1;
                    self.report(block, warp, stop);
                }
                return;
            };
            block.next = warp + 1;
            // Even in order none runs for ever: it may wait for what another writes.
            let steps = if ordered { 10_000 } else { 1 + random.below(300) as u64 };
            if let Err(stop) = machine.run(block, warp, steps) {
                self.report(block, warp, stop);
                return;
            }
        }
    }

    fn report(&self, block: &Block, warp: usize, stop: Stop) {
        let instruction = &self.kernel.code[block.warps[warp].pc as usize];
        let fault = Fault {
            kind: stop.kind,
            kernel: self.kernel.name.clone(),
            file: self.kernel.files[instruction.file as usize].clone(),
            line: instruction.line,
            cta: block.position.at,
            thread: block.position.thread(warp as u32, stop.lane.min(31)),
            sentence: stop.sentence,
        };
        let mut first = self.lock();
        if first.as_ref().is_none_or(|(number, _)| block.number < *number) {
            *first = Some((block.number, fault));
        }
    }
}

/// A generator of few demands (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        ((u128::from(x) * most as u128) >> 64) as usize
    }
}
