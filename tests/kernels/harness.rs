//! What the kernels' tests share: seeded data, device buffers, launches under several seeds, and faults put in on purpose.
//!
//! Owns: how a test comes by a module and by numbers. Never: what a kernel computes.

use crate::expand;
pub use crate::sums::{bf16_to_f32, f32_to_bf16, f32_to_f16, has_minima, is_float, of_16, to_16};
use ptx_emulator::{Counts, Kind, Launch, Memory, Module, Options};
use std::path::{Path, PathBuf};
use tartlet::backend::cpu::plain::quantise;
use tartlet::backend::cuda::kernels;
use tartlet::model::quant::{Quant, f16_to_f32};

/// Where the kernels lie. Read at run time: an edited kernel needs no build.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Numbers that follow from a seed (splitmix64; Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Bell-shaped about 0, deviation 1: what activations look like.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() / 2.0
    }

    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// Any numbers as the bytes of a buffer, and back.
pub trait Plain: Copy {
    fn put(self, bytes: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($number:ty)*) => {$(
        impl Plain for $number {
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("as many bytes as the number has"))
            }
        }
    )*};
}
plain!(i8 u8 u16 i32 u32 u64 f32);

pub fn to_bytes<T: Plain>(numbers: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(numbers));
    numbers.iter().for_each(|number| number.put(&mut bytes));
    bytes
}

pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks(size_of::<T>()).map(T::get).collect()
}

/// `rows` rows of `columns` values as a GGUF file has them: every quant occurs, scales are those of real weights.
pub fn blocks(quant: Quant, rows: usize, columns: usize, seeded: &mut Seeded) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows * quant.row_bytes(columns));
    for _ in 0..rows * columns / quant.block_len() {
        match quant {
            Quant::F16 => f32_to_f16(seeded.normal() * 0.05).put(&mut bytes),
            Quant::BF16 => f32_to_bf16(seeded.normal() * 0.05).put(&mut bytes),
            Quant::F32 => (seeded.normal() * 0.05).put(&mut bytes),
            _ => {
                let block = bytes.len();
                for _ in 0..quant.block_bytes() {
                    let byte = seeded.bits() as u8;
                    // -128 is no quant of Q8_0: its quantisation ends at 127 both ways.
                    bytes.push(if quant == Quant::Q8_0 && byte == 0x80 { 0 } else { byte });
                }
                // Of a superblock the scale meets six or eight bits of a part's.
                let size = if quant.block_len() > 32 { 0.0005 } else { 0.02 };
                let (d, minimum) = match quant {
                    Quant::Q6_K => (quant.block_bytes() - 2, false),
                    Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0 => (0, false),
                    _ => (0, true),
                };
                let mut half = |at: usize, size: f32| {
                    let half = f32_to_f16(seeded.unit() * size).to_le_bytes();
                    bytes[block + at..][..2].copy_from_slice(&half);
                };
                half(d, size);
                if minimum {
                    half(2, 5.0 * size);
                }
            }
        }
    }
    bytes
}

/// `columns` filled up to whole blocks.
pub fn whole(quant: Quant, columns: usize) -> usize {
    columns.next_multiple_of(quant.block_len())
}

/// Activations as the matrix kernels read them.
pub struct Q8 {
    /// [token][columns rounded up to 64]
    pub quants: Vec<i8>,
    /// [token][block] scale and sum of the quants, padded as the quants are
    pub scales: Vec<(f32, i32)>,
}

impl Q8 {
    /// Rows of `columns` values as the processor's plain path quantises them.
    pub fn of(x: &[f32], columns: usize) -> Q8 {
        let (mut quants, mut scales) = (Vec::new(), Vec::new());
        for row in x.chunks(columns) {
            let (row_quants, row_scales) = quantise(row).expect("room for a row");
            quants.extend(row_quants);
            scales.extend(row_scales);
            if !columns.is_multiple_of(64) {
                quants.extend([0; 32]);
                scales.push((0.0, 0));
            }
        }
        Q8 { quants, scales }
    }

    /// The bytes of the two buffers.
    pub fn bytes(&self) -> [Vec<u8>; 2] {
        let mut scales = Vec::new();
        for &(d, sum) in &self.scales {
            d.put(&mut scales);
            sum.put(&mut scales);
        }
        [to_bytes(&self.quants), scales]
    }
}

/// The text of kernel file `file`, of which modules are made.
pub fn expanded(file: &str) -> String {
    expand::expand(&folder(), file).unwrap_or_else(|error| panic!("kernels/{error}"))
}

/// The module of kernel file `file`.
pub fn module(file: &str) -> Module {
    Module::parse(&kernels::plain(&expanded(file))).unwrap_or_else(|error| panic!("{error}"))
}

/// The one whose launches may overlap, where there is one.
pub fn dependent_module(file: &str) -> Option<Module> {
    kernels::dependent(&expanded(file))
        .map(|text| Module::parse(&text).unwrap_or_else(|error| panic!("{error}")))
}

/// How far a sum of `products` by mma.m16n8k16 may be from the exact one. A device adds them in blocks of 4 at least to what
/// it has, cuts each, and what it has, below 2^-23 of the greatest of them, and the new sum below 2^-23 of itself: 4 * 6 cuts
/// an mma. (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021: sm_70; sm_80 and later have
/// larger blocks and a bit or two more.)
pub fn mma_slack(products: &[f64]) -> f64 {
    let (mut sum, mut slack) = (0.0f64, 0.0);
    for mma in products.chunks(16) {
        slack += 24.0 * 2f64.powi(-23) * mma.iter().fold(sum.abs(), |size, product| size + product.abs());
        sum += mma.iter().sum::<f64>();
    }
    slack
}

/// Have launches of this seed tensor cores that truncate?
pub fn truncates(seed: u64) -> bool {
    seed & 2 == 2
}

/// Runs a launch of the only kernel of `module`; every second seed has independent lanes.
pub fn launch(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch,
    seed: u64,
) -> Result<Counts, ptx_emulator::Fault> {
    let kernel = module.kernels().next().expect("a kernel in the module");
    let (independent, truncating) = (seed & 1 == 1, truncates(seed));
    let options = Options { seed, independent, truncating, ..Options::default() };
    ptx_emulator::launch(kernel, memory, launch, &options)
}

/// A mistake in a kernel's source, and what must notice it.
pub struct Fault {
    /// What is wrong, for people.
    pub name: &'static str,
    /// The file of `kernels/` that the text stands in, once.
    pub file: &'static str,
    pub find: &'static str,
    pub replace: &'static str,
    pub caught: Caught,
}

macro_rules! fault {
    ($name:expr, $file:expr, $find:expr, $replace:expr, $caught:expr) => {
        Fault { name: $name, file: $file, find: $find, replace: $replace, caught: $caught }
    };
}
pub(crate) use fault;

/// What notices a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Caught {
    /// A check of the emulator.
    By(Kind),
    /// One of these, as the file's tiles lie and its copies are on their way.
    OneOf(&'static [Kind]),
    /// The comparison with the reference.
    WrongResult,
}

impl Caught {
    fn is(self, found: Option<Caught>) -> bool {
        match self {
            Caught::OneOf(kinds) => kinds.iter().any(|&kind| found == Some(Caught::By(kind))),
            caught => found == Some(caught),
        }
    }
}

/// How a run of a test's own cases ended badly.
pub enum Wrong {
    Fault(ptx_emulator::Fault),
    Result(String),
}

impl From<ptx_emulator::Fault> for Wrong {
    fn from(fault: ptx_emulator::Fault) -> Wrong {
        Wrong::Fault(fault)
    }
}

/// `Err` where two results differ: the first place at which they do.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) -> Result<(), Wrong> {
    if got.len() != want.len() {
        return Err(Wrong::Result(format!("{what}: {} elements, not {}", got.len(), want.len())));
    }
    match got.iter().zip(want).position(|(got, want)| got != want) {
        Some(at) => Err(Wrong::Result(format!("{what}[{at}] is {:?}, not {:?}", got[at], want[at]))),
        None => Ok(()),
    }
}

/// Fails a test with what went wrong in it.
pub fn passes(name: &str, ended: Result<(), Wrong>) {
    match ended {
        Ok(()) => {}
        Err(Wrong::Fault(fault)) => panic!("{name}: {fault}"),
        Err(Wrong::Result(what)) => panic!("{name}: {what}"),
    }
}

/// Puts each fault into kernel `kernel`, runs `cases`, and demands that the run ends as the fault says, in this kernel or where
/// the host reads what it left: what only a later kernel stumbles over was caught by accident. Prints the list.
pub fn each_is_caught(kernel: &str, faults: &[Fault], cases: impl Fn(&Module) -> Result<(), Wrong>) {
    each_is_caught_in(kernel, kernels::plain, faults, cases);
}

/// The same, of the module that `made` makes of the text.
pub fn each_is_caught_in(
    kernel: &str,
    made: fn(&str) -> String,
    faults: &[Fault],
    cases: impl Fn(&Module) -> Result<(), Wrong>,
) {
    let parse = |text: &str| Module::parse(&made(text));
    passes(kernel, cases(&parse(&expanded(kernel)).unwrap_or_else(|error| panic!("{error}"))));
    let mut wrong = Vec::new();
    println!("faults in {kernel}:");
    for fault in faults {
        let read = |name: &str| {
            let text = std::fs::read_to_string(folder().join(name)).map_err(|error| error.to_string())?;
            if name != fault.file {
                return Ok(text);
            }
            match text.matches(fault.find).count() {
                1 => Ok(text.replace(fault.find, fault.replace)),
                count => Err(format!("`{}` stands {count} times in it", fault.find)),
            }
        };
        let changed =
            expand::expand_with(kernel, &read).unwrap_or_else(|error| panic!("{}: {error}", fault.name));
        let changed = parse(&changed).unwrap_or_else(|error| panic!("{}: {error}", fault.name));
        let (caught, sentence) = match cases(&changed) {
            Ok(()) => (None, "nothing noticed it".to_string()),
            Err(Wrong::Fault(found)) if !["", kernel.trim_end_matches(".ptx")].contains(&&*found.kernel) => {
                (None, format!("it came out in {} alone: {found}", found.kernel))
            }
            Err(Wrong::Fault(found)) => (Some(Caught::By(found.kind)), found.to_string()),
            Err(Wrong::Result(what)) => (Some(Caught::WrongResult), what),
        };
        let by = caught.map_or("-".to_string(), |caught| format!("{caught:?}"));
        println!("  {:<44} {by:<24} {sentence}", fault.name);
        if !fault.caught.is(caught) {
            wrong.push(format!("{}: expected {:?}, found {by}: {sentence}", fault.name, fault.caught));
        }
    }
    assert!(wrong.is_empty(), "{kernel}:\n{}", wrong.join("\n"));
}

#[test]
fn halves_round_to_nearest_even() {
    for half in 0..0x7c00u16 {
        let x = f16_to_f32(half);
        assert_eq!(f32_to_f16(x), half);
        assert_eq!(f32_to_f16(-x), half | 0x8000);
        let next = if half == 0x7bff { 65536.0 } else { f16_to_f32(half + 1) };
        let middle = (x + next) / 2.0;
        assert_eq!(f32_to_f16(middle), half + (half & 1), "{middle}");
        assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), half + 1, "{middle}");
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    for bf16 in 0..0x7f7fu16 {
        let (x, next) = (bf16_to_f32(bf16), bf16_to_f32(bf16 + 1));
        let middle = f32::from_bits(x.to_bits() + 0x8000);
        assert!(x < middle && middle < next);
        assert_eq!(f32_to_bf16(middle), bf16 + (bf16 & 1), "{middle}");
        assert_eq!(f32_to_bf16(f32::from_bits(middle.to_bits() + 1)), bf16 + 1, "{middle}");
        assert_eq!(f32_to_bf16(-x), bf16 | 0x8000);
    }
}
