//! The device's memory: buffers at made-up addresses with gaps between, which bytes anybody wrote, and who
//! touched them last. Words are atomic, so that blocks may run on several threads.

use crate::fault::{Fault, Kind};
use crate::module::Kernel;
use crate::shadow::{ANY, Clash, TAGS, Witness};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};

/// Generic addresses of shared memory start here.
pub(crate) const SHARED_WINDOW: u64 = 0x7f00_0000_0000;
/// And those of local memory here.
pub(crate) const LOCAL_WINDOW: u64 = 0x7e00_0000_0000;
/// The first address of a module's variables, beyond all that is allocated.
const VARIABLES: u64 = 0x6000_0000_0000;
const FIRST: u64 = 0x10_0000_0000;
const GAP: u64 = 4096;
/// Cells of a page of the shadow.
const PAGE: usize = 1024;

/// Device memory. Buffers start uninitialised; what the host or a kernel reads before anybody wrote it is a
/// fault.
/// A module's `.global` variables come with the first launch of one of its kernels and stay.
pub struct Memory {
    buffers: Vec<Buffer>,
    freed: Vec<(u64, u64, String)>,
    next: u64,
    tag: u64,
    /// The number of the launch, and the first of those before it that may still run when it starts.
    pub(crate) launch: u64,
    running: u64,
    /// A thread of the launch let the next one start before it had waited for those before.
    early: AtomicBool,
}

/// Records of the cells of a buffer, 0 where none is. A page of them comes when its first record does: who reads what nobody
/// writes meets half as much memory.
#[derive(Default)]
struct Records {
    pages: Vec<OnceLock<Box<[AtomicU64]>>>,
}

impl Records {
    fn new(cells: usize) -> Records {
        Records { pages: std::iter::repeat_with(OnceLock::new).take(cells.div_ceil(PAGE)).collect() }
    }

    /// The cells of an access; an aligned one lies in one page.
    #[inline]
    fn of(&self, (first, last): (usize, usize)) -> &[AtomicU64] {
        let new = || std::iter::repeat_with(AtomicU64::default).take(PAGE).collect();
        &self.pages[first / PAGE].get_or_init(new)[first % PAGE..=last % PAGE]
    }

    /// The same, if the page has come.
    #[inline]
    fn known(&self, (first, last): (usize, usize)) -> Option<&[AtomicU64]> {
        Some(&self.pages[first / PAGE].get()?[first % PAGE..=last % PAGE])
    }
}

pub(crate) struct Buffer {
    pub base: u64,
    pub size: u64,
    pub name: String,
    pub read_only: bool,
    /// The last launch that wrote to it, 0 if none did.
    writer: AtomicU64,
    /// A launch that may still run wrote to it.
    pub pending: bool,
    words: Vec<AtomicU32>,
    /// Every byte is written.
    full: AtomicBool,
    /// Else four bits a word.
    written: Vec<AtomicU8>,
    reads: Records,
    writes: Records,
    /// Bytes of a cell as a power of two.
    grain: u32,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Memory {
    pub fn new() -> Memory {
        Memory {
            buffers: Vec::new(),
            freed: Vec::new(),
            next: FIRST,
            tag: 0,
            launch: 0,
            running: 1,
            early: AtomicBool::new(false),
        }
    }

    /// Room for so many bytes, uninitialised. Its address is a multiple of 256.
    pub fn alloc(&mut self, bytes: usize, name: &str) -> u64 {
        // No rounder than promised: a kernel that relies on more fails here.
        let base = self.next + 256 * (1 + 2 * (self.buffers.len() as u64 % 4));
        self.next = (base + bytes as u64 + GAP).next_multiple_of(GAP);
        self.insert(base, bytes, name);
        base
    }

    fn insert(&mut self, base: u64, bytes: usize, name: &str) -> &Buffer {
        let words = bytes.div_ceil(4);
        let buffer = Buffer {
            base,
            size: bytes as u64,
            name: name.to_string(),
            read_only: false,
            writer: AtomicU64::new(0),
            pending: false,
            words: std::iter::repeat_with(|| AtomicU32::new(0)).take(words).collect(),
            full: AtomicBool::new(bytes == 0),
            written: std::iter::repeat_with(|| AtomicU8::new(0)).take(words).collect(),
            reads: Records::default(),
            writes: Records::default(),
            grain: 2,
        };
        let at = self.buffers.partition_point(|buffer| buffer.base < base);
        self.buffers.insert(at, buffer);
        &self.buffers[at]
    }

    /// A buffer with these bytes.
    pub fn upload(&mut self, name: &str, bytes: &[u8]) -> u64 {
        let address = self.alloc(bytes.len(), name);
        if let Ok((buffer, _)) = self.find(address, bytes.len() as u64) {
            buffer.fill(0, bytes);
        }
        address
    }

    /// From now on a kernel's store to the buffer at this address is a fault, or no longer.
    pub fn protect(&mut self, address: u64, read_only: bool) {
        if let Some(buffer) = self.buffers.iter_mut().find(|buffer| buffer.holds(address)) {
            buffer.read_only = read_only;
            // Records of launches long past must not come back with it.
            (buffer.reads, buffer.writes) = Default::default();
        }
    }

    /// A copy from the host.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (buffer, offset) = self.host(address, bytes.len())?;
        buffer.fill(offset, bytes);
        Ok(())
    }

    /// A copy to the host.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, Fault> {
        let (buffer, offset) = self.host(address, bytes)?;
        if let Some(at) = (offset..offset + bytes as u64).find(|&at| !buffer.is_written(at, 1)) {
            let sentence = format!("the host reads byte {at} of `{}`, which nobody wrote", buffer.name);
            return Err(Fault::of_host(Kind::UninitialisedGlobal, sentence));
        }
        Ok(buffer.bytes(offset, bytes))
    }

    /// Gives a buffer back; its address is never used again.
    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        let Some(at) = self.buffers.iter().position(|buffer| buffer.base == address) else {
            return Err(Fault::of_host(Kind::Host, format!("{address:#x} is not the start of a buffer")));
        };
        let buffer = self.buffers.remove(at);
        self.freed.push((buffer.base, buffer.size, buffer.name));
        Ok(())
    }

    fn host(&self, address: u64, bytes: usize) -> Result<(&Buffer, u64), Fault> {
        self.find(address, bytes as u64).map_err(|sentence| Fault::of_host(Kind::OutOfBounds, sentence))
    }

    /// The buffer that holds all these bytes, and their offset in it.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Result<(&Buffer, u64), String> {
        let after = self.buffers.partition_point(|buffer| buffer.base <= address);
        let Some(buffer) = after.checked_sub(1).map(|at| &self.buffers[at]) else {
            return Err(self.nowhere(address, bytes));
        };
        let offset = address - buffer.base;
        if offset + bytes > buffer.size {
            if offset >= buffer.size + GAP {
                return Err(self.nowhere(address, bytes));
            }
            let (name, size) = (&buffer.name, buffer.size);
            return Err(format!("bytes {offset} to {} of `{name}`, which has {size}", offset + bytes));
        }
        Ok((buffer, offset))
    }

    fn nowhere(&self, address: u64, bytes: u64) -> String {
        let freed = self.freed.iter().find(|(base, size, _)| (*base..base + size).contains(&address));
        match freed {
            Some((base, _, name)) => format!("byte {} of `{name}`, which was freed", address - base),
            None => format!("{bytes} bytes at {address:#x}, where no buffer is"),
        }
    }

    /// A new launch; the variables of the kernel's module are there from the first on. Gives the tag of its
    /// records. One that `overlaps` starts while the one before runs, and while those run for which that one
    /// had not waited when it let others start; any other starts after all of them.
    pub(crate) fn start(&mut self, kernel: &Kernel) -> u64 {
        for global in kernel.globals.iter() {
            if self.buffers.binary_search_by_key(&global.address, |buffer| buffer.base).is_err() {
                self.insert(global.address, global.bytes.len(), &global.name).fill(0, &global.bytes);
            }
        }
        let early = std::mem::take(self.early.get_mut());
        self.running = match (kernel.overlaps, early) {
            (true, true) => self.running,
            (true, false) => self.launch,
            (false, _) => self.launch + 1,
        };
        self.launch += 1;
        for buffer in &mut self.buffers {
            let writer = *buffer.writer.get_mut();
            buffer.pending = writer > 0 && writer >= self.running;
        }
        self.tag = self.tag % TAGS + 1;
        let grain = kernel.global_grain.clamp(1, 4).trailing_zeros();
        // Nobody can race over what nobody may write.
        for buffer in self.buffers.iter_mut().filter(|buffer| !buffer.read_only) {
            let cells = (buffer.size >> grain) as usize + 1;
            if self.tag == 1 || buffer.grain != grain || buffer.reads.pages.is_empty() {
                buffer.grain = grain;
                (buffer.reads, buffer.writes) = (Records::new(cells), Records::new(cells));
            }
        }
        self.tag
    }

    pub(crate) fn launched_early(&self) {
        self.early.store(true, Relaxed);
    }
}

/// An address for a variable of so many bytes, which no other of any module has.
pub(crate) fn reserve(bytes: u64, align: u64) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(VARIABLES);
    let room = (bytes + 2 * GAP).next_multiple_of(GAP) + align;
    NEXT.fetch_add(room, Relaxed).next_multiple_of(align)
}

impl Buffer {
    /// This launch writes to it.
    #[inline]
    pub fn note_launch(&self, launch: u64) {
        if self.writer.load(Relaxed) != launch {
            self.writer.store(launch, Relaxed);
        }
    }

    pub fn holds(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.size.max(1)
    }

    /// Where these bytes lie in it, if all do.
    #[inline]
    pub fn offset(&self, address: u64, bytes: u32) -> Option<u64> {
        let offset = address.wrapping_sub(self.base);
        (offset < self.size && offset + u64::from(bytes) <= self.size).then_some(offset)
    }

    fn bytes(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes + 8);
        let (first, skip) = ((offset / 4) as usize, (offset % 4) as usize);
        for word in &self.words[first..(offset as usize + bytes).div_ceil(4)] {
            out.extend_from_slice(&word.load(Relaxed).to_le_bytes());
        }
        out.drain(..skip);
        out.truncate(bytes);
        out
    }

    fn fill(&self, offset: u64, bytes: &[u8]) {
        let whole = offset == 0 && bytes.len() as u64 == self.size;
        let aligned = offset.is_multiple_of(4);
        if !aligned {
            for (n, &byte) in bytes.iter().enumerate() {
                self.store(offset + n as u64, 1, u128::from(byte));
            }
            return;
        }
        let mut at = offset;
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            let mut all = [0; 4];
            all.copy_from_slice(word);
            self.words[(at / 4) as usize].store(u32::from_le_bytes(all), Relaxed);
            if !whole {
                self.written[(at / 4) as usize].store(15, Relaxed);
            }
            at += 4;
        }
        for &byte in words.remainder() {
            self.store(at, 1, u128::from(byte));
            at += 1;
        }
        if whole {
            self.full.store(true, Relaxed);
        }
    }

    /// Up to 16 bytes, aligned to their number.
    #[inline]
    pub fn load(&self, offset: u64, size: u32) -> u128 {
        let at = (offset / 4) as usize;
        let word = |n: usize| u128::from(self.words[at + n].load(Relaxed));
        match size {
            1 => word(0) >> (8 * (offset % 4)) & 0xff,
            2 => word(0) >> (8 * (offset % 4)) & 0xffff,
            4 => word(0),
            8 => word(0) | word(1) << 32,
            _ => word(0) | word(1) << 32 | word(2) << 64 | word(3) << 96,
        }
    }

    pub fn store(&self, offset: u64, size: u32, value: u128) {
        let word = (offset / 4) as usize;
        if size < 4 {
            let by = 8 * (offset % 4) as u32;
            let mask = ((1u32 << (8 * size)) - 1) << by;
            let new = (value as u32) << by & mask;
            let put = |old| Some(old & !mask | new);
            let _ = self.words[word].fetch_update(Relaxed, Relaxed, put);
            if !self.full.load(Relaxed) {
                self.written[word].fetch_or(((1u8 << size) - 1) << (offset % 4), Relaxed);
            }
            return;
        }
        let words = word..word + size as usize / 4;
        for (n, word) in self.words[words.clone()].iter().enumerate() {
            word.store((value >> (32 * n)) as u32, Relaxed);
        }
        if !self.full.load(Relaxed) {
            for written in &self.written[words] {
                written.store(15, Relaxed);
            }
        }
    }

    /// Is nothing of it unwritten?
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// The words from this offset on.
    #[inline]
    pub fn copy_words(&self, offset: u64, to: &mut [u32]) {
        let from = &self.words[(offset / 4) as usize..];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load(Relaxed));
    }

    #[inline]
    pub fn is_written(&self, offset: u64, size: u32) -> bool {
        if self.full.load(Relaxed) {
            return true;
        }
        let word = (offset / 4) as usize;
        if size < 4 {
            let mask = ((1u8 << size) - 1) << (offset % 4);
            return self.written[word].load(Relaxed) & mask == mask;
        }
        self.written[word..word + size as usize / 4].iter().all(|each| each.load(Relaxed) == 15)
    }

    /// The first and the last cell of an access.
    #[inline]
    fn cells(&self, offset: u64, size: u32) -> (usize, usize) {
        ((offset >> self.grain) as usize, ((offset + u64::from(size) - 1) >> self.grain) as usize)
    }

    /// Notes a read of these bytes by a lane.
    #[inline]
    pub fn note_read(
        &self,
        witness: &Witness<'_>,
        lane: u32,
        (offset, size): (u64, u32),
        strong: bool,
        constant: bool,
    ) -> Result<(), Clash> {
        if self.read_only {
            return Ok(());
        }
        let mine = witness.reader(lane, strong, constant);
        let cells = self.cells(offset, size);
        let writes = self.writes.known(cells);
        for (n, cell) in self.reads.of(cells).iter().enumerate() {
            let (written, read) = (writes.map_or(0, |writes| writes[n].load(Relaxed)), cell.load(Relaxed));
            // Mostly nobody wrote, and this thread is the first reader or was the last.
            if !witness.crowded && !witness.is_current(written) {
                if read == mine {
                    continue;
                }
                if !witness.is_current(read) {
                    cell.store(mine, Relaxed);
                    continue;
                }
            }
            self.note_read_slowly(witness, lane, (cell, cells.0 + n), strong, constant)?;
        }
        Ok(())
    }

    /// Where blocks run at once, the writer looks at reads after its own note, and the reader at writes after
    /// its: one of them sees the other.
    fn note_read_slowly(
        &self,
        witness: &Witness<'_>,
        lane: u32,
        (cell, number): (&AtomicU64, usize),
        strong: bool,
        constant: bool,
    ) -> Result<(), Clash> {
        let written = || self.writes.known((number, number)).map_or(0, |writes| writes[0].load(SeqCst));
        loop {
            let read = cell.load(Relaxed);
            let new = witness.read(lane, written(), (read, ANY), strong, constant)?;
            if new == read {
                return Ok(());
            }
            if !witness.crowded {
                cell.store(new, Relaxed);
                return Ok(());
            }
            if cell.compare_exchange(read, new, SeqCst, Relaxed).is_ok() {
                fence(SeqCst);
                return witness.read(lane, written(), (new, ANY), strong, constant).map(|_| ());
            }
        }
    }

    /// Notes a write of these bytes by a lane.
    pub fn note_write(
        &self,
        witness: &Witness<'_>,
        lane: u32,
        (offset, size): (u64, u32),
        strong: bool,
    ) -> Result<(), Clash> {
        let cells = self.cells(offset, size);
        for (n, cell) in self.writes.of(cells).iter().enumerate() {
            let read = || self.reads.known(cells).map_or(0, |reads| reads[n].load(SeqCst));
            let new = witness.write(lane, cell.load(Relaxed), (read(), ANY), strong)?;
            if !witness.crowded {
                cell.store(new, Relaxed);
                continue;
            }
            let before = cell.swap(new, SeqCst);
            fence(SeqCst);
            witness.write(lane, before, (read(), ANY), strong)?;
        }
        Ok(())
    }

    /// An atomic operation on 4 or 8 bytes; the old value. Kernels with atomics run on one thread.
    pub fn update(&self, offset: u64, size: u32, with: impl Fn(u64) -> u64) -> u64 {
        if size == 4 {
            let put = |old| Some(with(u64::from(old)) as u32);
            let old = self.words[(offset / 4) as usize].fetch_update(AcqRel, Relaxed, put);
            return u64::from(old.unwrap_or_default());
        }
        let old = self.load(offset, size) as u64;
        self.store(offset, size, u128::from(with(old)));
        old
    }
}
