//! The matrices as the kernels read them: sixteen rows interleaved, once in memory.
//!
//! Owns: the layout of each format, packing it from a file's tensor, and the memory. Never: a product.
//!
//! A group is sixteen rows. It holds, one after the other: the integers of all its blocks, the scales of all its
//! blocks, and for the K formats the scales of its superblocks (8 blocks of 32).
//! ```text
//! integers, a block of 32 values k:  vector j = 0..8, lane r: values 4j..4j + 4 of row r, a byte each
//!   nibbles   4 vectors; vector j and j + 4 share one, low and high half           Q4_0 Q4_1 Q4_K
//!   bytes     8 vectors; Q8_0 as q + 128, so that all are unsigned                 Q5_0 Q5_1 Q5_K Q8_0
//!   six       4 vectors of low nibbles as above, 2 of the upper two bits           Q6_K
//! scales of a block, row by row:  d | d, m | scale, minimum | scale of values 0..16, of 16..32
//! of a superblock:                                d, dmin   | d
//! floats: value k of all rows, then value k + 1 of all rows
//! ```

use super::lanes::LANES;
use super::tiles::BLOCK;
use crate::model::gguf::{Quant, Tensor};
use crate::model::quant::group_scales;
use memmap2::{Advice, MmapMut};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Blocks of a superblock of the K formats.
pub(super) const SUPER: usize = 8;
/// Groups that a thread packs at a time.
const GROUPS_PER_JOB: usize = 16;

/// Where the parts of a group lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of a block's integers; of one value of all rows for the float formats.
    pub quants: usize,
    /// Bytes of a block's scales.
    pub scales: usize,
    /// Bytes of a superblock's scales.
    pub supers: usize,
}

impl Layout {
    pub const fn of(format: Quant) -> Layout {
        let (quants, scales, supers) = match format {
            Quant::F32 => (64, 0, 0),
            Quant::F16 | Quant::BF16 => (32, 0, 0),
            Quant::Q4_0 => (256, 32, 0),
            Quant::Q4_1 => (256, 64, 0),
            Quant::Q4_K => (256, 32, 64),
            Quant::Q5_0 | Quant::Q8_0 => (512, 32, 0),
            Quant::Q5_1 => (512, 64, 0),
            Quant::Q5_K => (512, 32, 64),
            Quant::Q6_K => (384, 32, 32),
        };
        Layout { quants, scales, supers }
    }

    /// Bytes of a group of rows of `width` values; groups begin at multiples of 64.
    fn group(&self, format: Quant, width: usize) -> usize {
        let blocks = if is_float(format) { width } else { width / BLOCK };
        (blocks * (self.quants + self.scales) + blocks / SUPER * self.supers).next_multiple_of(64)
    }
}

/// Whether the format's values are multiplied as floats, by columns that are not quantised.
pub(super) const fn is_float(format: Quant) -> bool {
    matches!(format, Quant::F32 | Quant::F16 | Quant::BF16)
}

/// Which row of a tensor stands where in the packed matrix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// As in the file; the last group is filled up with zeros.
    File,
    /// Heads of `dim` rows, each filled up to whole groups. The first `halves` rows of a head, if any, are pairs
    /// (i, i + halves / 2) and become neighbours: RoPE then knows one kind of pair.
    Heads { dim: usize, halves: usize },
}

impl Order {
    /// Rows of the packed matrix of a tensor of `rows` rows: a multiple of 16.
    pub fn rows(self, rows: usize) -> usize {
        match self {
            Order::File => rows.next_multiple_of(LANES),
            Order::Heads { dim, .. } => rows / dim * dim.next_multiple_of(LANES),
        }
    }

    /// The tensor's row that stands at row `row` of the packed matrix; `None` is a row of zeros.
    pub fn source(self, row: usize, rows: usize) -> Option<usize> {
        match self {
            Order::File => (row < rows).then_some(row),
            Order::Heads { dim, halves } => {
                let padded = dim.next_multiple_of(LANES);
                let (head, at) = (row / padded, row % padded);
                let within = if at < halves { at / 2 + at % 2 * (halves / 2) } else { at };
                (at < dim).then_some(head * dim + within)
            }
        }
    }

    /// A vector of the tensor's rows (a bias, a gain) in packed order, with zeros where rows are.
    pub fn vector(self, values: &[f32]) -> Vec<f32> {
        let row = |row| self.source(row, values.len()).map_or(0.0, |at| values[at]);
        (0..self.rows(values.len())).map(row).collect()
    }
}

/// A packed matrix: where it lies and what it is.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub format: Quant,
    /// Values of a row.
    pub width: usize,
    /// Groups of sixteen rows.
    pub groups: usize,
    group_bytes: usize,
    /// Offset in the [`Store`].
    at: usize,
}

impl Packed {
    /// The bytes of some groups, one after the other.
    pub fn groups<'a>(&self, store: &'a Store, groups: Range<usize>) -> &'a [u8] {
        &store.bytes[self.at + groups.start * self.group_bytes..self.at + groups.end * self.group_bytes]
    }

    /// The integers (or floats), the scales and the superblocks' scales of group `group`.
    pub fn parts<'a>(&self, store: &'a Store, group: usize) -> [&'a [u8]; 3] {
        split(self.groups(store, group..group + 1), self.format, self.width)
    }

    /// Bytes of the whole matrix.
    pub fn bytes(&self) -> usize {
        self.groups * self.group_bytes
    }
}

fn split(group: &[u8], format: Quant, width: usize) -> [&[u8]; 3] {
    let layout = Layout::of(format);
    let blocks = if is_float(format) { width } else { width / BLOCK };
    let (quants, rest) = group.split_at(blocks * layout.quants);
    let (scales, rest) = rest.split_at(blocks * layout.scales);
    [quants, scales, &rest[..blocks / SUPER * layout.supers]]
}

/// The memory of all packed matrices.
pub(super) struct Store {
    bytes: MmapMut,
}

impl Store {
    /// Bytes of all matrices.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Matrices that will be packed into one [`Store`].
#[derive(Default)]
pub(super) struct Packing<'a> {
    sources: Vec<(Packed, Tensor<'a>, Order)>,
    bytes: usize,
}

impl<'a> Packing<'a> {
    /// Adds a matrix, in its own format or as exact f32.
    pub fn add(&mut self, tensor: Tensor<'a>, order: Order, exact: bool) -> Packed {
        let format = if exact { Quant::F32 } else { tensor.kind };
        let width = tensor.dims[0];
        let group_bytes = Layout::of(format).group(format, width);
        let groups = order.rows(tensor.rows()) / LANES;
        let packed = Packed { format, width, groups, group_bytes, at: self.bytes };
        self.bytes += packed.bytes();
        self.sources.push((packed.clone(), tensor, order));
        packed
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The packed matrices' formats.
    pub fn formats(&self) -> impl Iterator<Item = Quant> {
        self.sources.iter().map(|(packed, ..)| packed.format)
    }

    /// Packs everything, on `threads` threads. Fails if the system has no room.
    pub fn pack(self, threads: usize) -> std::io::Result<Store> {
        let mut bytes = MmapMut::map_anon(self.bytes.max(1))?;
        // Fewer TLB misses; a system without huge pages serves as well, a little slower.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(Advice::HugePage);
        let mut jobs = Vec::new();
        let mut rest = &mut bytes[..];
        for (packed, tensor, order) in &self.sources {
            let (own, after) = rest.split_at_mut(packed.bytes());
            rest = after;
            let parts = own.chunks_mut(GROUPS_PER_JOB * packed.group_bytes).enumerate();
            jobs.extend(parts.map(|(part, own)| (own, part * GROUPS_PER_JOB, packed, tensor, *order)));
        }
        let jobs = Mutex::new(jobs.into_iter());
        let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut rows = Rows::default();
                    while let Some((own, first, packed, tensor, order)) = next() {
                        for (group, own) in own.chunks_exact_mut(packed.group_bytes).enumerate() {
                            rows.gather(tensor, order, first + group);
                            rows.pack(tensor.kind, packed, own);
                        }
                    }
                });
            }
        });
        Ok(Store { bytes })
    }
}

/// The sixteen rows of a group as the file has them.
#[derive(Default)]
struct Rows<'a> {
    rows: [&'a [u8]; LANES], // an empty one stands for zeros
    values: Vec<f32>,
}

impl<'a> Rows<'a> {
    fn gather(&mut self, tensor: &Tensor<'a>, order: Order, group: usize) {
        self.rows = std::array::from_fn(|lane| match order.source(group * LANES + lane, tensor.rows()) {
            Some(row) => tensor.row(row),
            None => &[],
        });
    }

    fn pack(&mut self, from: Quant, packed: &Packed, to: &mut [u8]) {
        to.fill(0);
        if from != packed.format || is_float(from) {
            return self.pack_floats(from, packed, to);
        }
        let Layout { quants, scales, supers } = Layout::of(from);
        let blocks = packed.width / BLOCK;
        let (to_quants, rest) = to.split_at_mut(blocks * quants);
        let (to_scales, rest) = rest.split_at_mut(blocks * scales);
        let to_supers = &mut rest[..blocks / SUPER * supers];
        for (lane, row) in self.rows.into_iter().enumerate().filter(|(_, row)| !row.is_empty()) {
            let file_blocks = row.chunks_exact(from.block_bytes());
            if from.block_len() == BLOCK {
                for (block, bytes) in file_blocks.enumerate() {
                    let q = &mut to_quants[block * quants..][..quants];
                    pack_block(from, bytes, lane, q, &mut to_scales[block * scales..][..scales]);
                }
            } else {
                for (block, bytes) in file_blocks.enumerate() {
                    let own = block * SUPER..(block + 1) * SUPER;
                    let q = &mut to_quants[own.start * quants..own.end * quants];
                    let s = &mut to_scales[own.start * scales..own.end * scales];
                    pack_super(from, bytes, lane, q, s, &mut to_supers[block * supers..][..supers]);
                }
            }
        }
    }

    /// Values of two or four bytes; any format becomes f32 when the packed one is.
    fn pack_floats(&mut self, from: Quant, packed: &Packed, to: &mut [u8]) {
        self.values.resize(packed.width, 0.0);
        for (lane, row) in self.rows.into_iter().enumerate().filter(|(_, row)| !row.is_empty()) {
            if packed.format == Quant::F32 {
                from.dequantize(row, &mut self.values);
                for (to, value) in to.as_chunks_mut::<64>().0.iter_mut().zip(&self.values) {
                    to[4 * lane..][..4].copy_from_slice(&value.to_ne_bytes());
                }
            } else {
                let values = row.as_chunks::<2>().0.iter().map(|x| u16::from_le_bytes(*x));
                for (to, value) in to.as_chunks_mut::<32>().0.iter_mut().zip(values) {
                    to[2 * lane..][..2].copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
    }
}

/// Puts a half of the file into lane `lane` of sixteen.
fn put_half(half: &[u8], lane: usize, to: &mut [u8]) {
    to[2 * lane..][..2].copy_from_slice(&u16::from_le_bytes([half[0], half[1]]).to_ne_bytes());
}

/// Values 4j..4j + 4 of lane `lane`.
fn put_four(four: [u8; 4], j: usize, lane: usize, to: &mut [u8]) {
    to[64 * j + 4 * lane..][..4].copy_from_slice(&four);
}

fn pack_block(from: Quant, bytes: &[u8], lane: usize, to: &mut [u8], scales: &mut [u8]) {
    put_half(bytes, lane, scales);
    let with_minimum = matches!(from, Quant::Q4_1 | Quant::Q5_1);
    let mut bytes = &bytes[2..];
    if with_minimum {
        put_half(bytes, lane, &mut scales[32..]);
        bytes = &bytes[2..];
    }
    match from {
        // The file's nibbles are as the vectors want them: value i low, value i + 16 high.
        Quant::Q4_0 | Quant::Q4_1 => {
            for (j, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                put_four(*four, j, lane, to);
            }
        }
        Quant::Q5_0 | Quant::Q5_1 => {
            let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let bit = |i: usize| ((fifth >> i & 1) as u8) << 4;
            for j in 0..4 {
                let four: [usize; 4] = std::array::from_fn(|i| 4 * j + i);
                put_four(four.map(|i| bytes[4 + i] & 15 | bit(i)), j, lane, to);
                put_four(four.map(|i| bytes[4 + i] >> 4 | bit(i + 16)), j + 4, lane, to);
            }
        }
        Quant::Q8_0 => {
            for (j, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                put_four(four.map(|q| q ^ 0x80), j, lane, to);
            }
        }
        _ => unreachable!("{from} has no blocks of 32"),
    }
}

fn pack_super(from: Quant, bytes: &[u8], lane: usize, to: &mut [u8], scales: &mut [u8], supers: &mut [u8]) {
    let per_block = Layout::of(from).quants;
    if from == Quant::Q6_K {
        // 128 low nibbles, 64 upper pairs of bits, 16 scales, d.
        let (low, rest) = bytes.split_at(128);
        let (upper, rest) = rest.split_at(64);
        put_half(&rest[16..], lane, supers);
        for block in 0..SUPER {
            // Two halves of 128 values; in each, blocks 0 and 2 share bytes of nibbles, and all four share bytes of pairs.
            let (half, part) = (block / 4, block % 4);
            let nibble = |i: usize| low[64 * half + 32 * (part % 2) + i] >> (4 * (part / 2)) & 15;
            let pair = |i: usize| upper[32 * half + i] >> (2 * part) & 3;
            let to = &mut to[block * per_block..][..per_block];
            for j in 0..4 {
                put_four(
                    std::array::from_fn(|i| nibble(4 * j + i) | nibble(4 * j + i + 16) << 4),
                    j,
                    lane,
                    to,
                );
            }
            for j in 0..2 {
                // Vectors j, j + 2, j + 4, j + 6 of pairs share one.
                let byte = |i: usize| (0..4).fold(0, |byte, k| byte | pair(4 * (j + 2 * k) + i) << (2 * k));
                put_four(std::array::from_fn(byte), 4 + j, lane, to);
            }
            let scales = &mut scales[block * 2 * LANES..];
            (scales[lane], scales[LANES + lane]) = (rest[2 * block], rest[2 * block + 1]);
        }
        return;
    }
    // Q4_K, Q5_K: d, dmin, 8 scales and 8 minima of 6 bits, then (Q5_K) the fifth bits, then the nibbles.
    put_half(bytes, lane, supers);
    put_half(&bytes[2..], lane, &mut supers[32..]);
    let (mut six, rest) = ([0; 12], &bytes[16..]);
    six.copy_from_slice(&bytes[4..16]);
    let (six_scales, six_minima) = group_scales(&six);
    let (fifth, nibbles) = if from == Quant::Q5_K { rest.split_at(32) } else { (&[][..], rest) };
    for block in 0..SUPER {
        let block_scales = &mut scales[block * 2 * LANES..];
        (block_scales[lane], block_scales[LANES + lane]) = (six_scales[block], six_minima[block]);
        let nibble = |i: usize| nibbles[32 * (block / 2) + i] >> (4 * (block % 2)) & 15;
        let to = &mut to[block * per_block..][..per_block];
        for j in 0..4 {
            let four: [usize; 4] = std::array::from_fn(|i| 4 * j + i);
            if from == Quant::Q4_K {
                put_four(four.map(|i| nibble(i) | nibble(i + 16) << 4), j, lane, to);
            } else {
                let value = |i: usize| nibble(i) | (fifth[i] >> block & 1) << 4;
                put_four(four.map(value), j, lane, to);
                put_four(four.map(|i| value(i + 16)), j + 4, lane, to);
            }
        }
    }
}
