//! Whether this GPU with this driver does what the kernels count on.
//!
//! Owns: the checks behind `tartlet selftest --backend cuda`. Never: how they are shown.
//!
//! ```text
//! basics.rs     memory, the copy kernel, graphs, the bandwidth
//! norms.rs      norms and quantisation, bit for bit against plain Rust
//! products.rs   products of a matrix with one vector, a few, many: the same
//! fused.rs      products with what stands about them in a layer, against the launches of each alone
//! attention.rs  attention against its formula, many rows against one
//! sampling.rs   the tokens that the processor draws, and its distributions
//! rows.rs       rows of the embedding, rows and pages copied
//! layers.rs     what a layer does between products, bit for bit
//! ```
//! A check says of each launch what came out, for the comparison with another device (`make gpu-check`); what a kernel's time
//! is has a row of its own for each kernel and each way to use it.

mod attention;
mod basics;
mod fused;
mod layers;
mod norms;
mod products;
mod rows;
mod sampling;

use super::error;
use super::kernels::{self, Source};
use super::repack::{Layout, TILE};
use super::{Argument, Buffer, Device, Error, Kernel, Stream};
use crate::backend::check::{BANDWIDTH, Check, Compiled, Found, Launched, Report};
use crate::backend::{DrawKey, Which, sample};
use crate::model::Quant;
use std::path::Path;
use std::time::Duration;

/// A step here takes milliseconds; one that takes so long will not end.
const DEADLINE: Duration = Duration::from_secs(4);
/// The same where something between us and the device makes it hundreds of times slower.
const DEADLINE_UNTIMED: Duration = Duration::from_secs(600);
/// Times that something is timed; the best one counts, as it is the device's and not the machine's. One that takes so long is
/// no device's: it is timed once.
const ROUNDS: usize = 5;
const ONCE: Duration = Duration::from_millis(100);
/// What memory holds before something else is written.
const BEFORE: u8 = 0xA5;
/// Bytes that rates are measured with, in turn from the first to the last: four times the largest cache of a GPU (126 MB), so
/// that of these even one that replaces at random keeps 2 % for the next round; and at most this share of the memory, which
/// is four times the cache on smaller ones too.
const RATE_BYTES: usize = 512 << 20;
const RATE_SHARE: usize = 64;

/// What a check found, or how it ended when the device did not do its part at all.
type Checked = Result<Result<Found, String>, Error>;
/// A kernel, and what takes its time.
type Rate = (&'static str, fn(&mut Bed) -> Checked);

/// Opens the device and checks it; `timed`: with rates, and with the deadline of a device that nothing slows down. The
/// error: the device cannot be used at all.
pub fn check(libcuda: Option<&Path>, timed: bool) -> Result<Report, Error> {
    let device = Device::open(libcuda)?;
    let (kernels, mut checks) = load(&device, &kernels::all()?)?;
    let deadline = if timed { DEADLINE } else { DEADLINE_UNTIMED };
    let mut bed = Bed { stream: device.stream(deadline)?, device: &device, kernels: &kernels, timed };
    let broken_off = all(&mut bed, &mut checks).err().map(|error| error.to_string());
    Ok(Report {
        backend: Which::Cuda,
        device: describe(&device),
        overlaps: device.overlaps(),
        kernels: kernels.iter().map(compiled).collect(),
        checks,
        broken_off,
    })
}

/// The kernels that the driver takes, and a failed check for each that it does not: what is wrong with one says nothing of
/// the others. The error: it takes none, or cannot be asked.
fn load(device: &Device, sources: &[Source]) -> Result<(Vec<Kernel>, Vec<Check>), Error> {
    let (mut kernels, mut failed) = (Vec::new(), Vec::new());
    for source in sources {
        match device.kernel(&source.name, &source.module(device)) {
            Ok(kernel) => kernels.push(kernel),
            Err(error @ (Error::Kernel { .. } | Error::Launch { .. })) => failed.push((&source.name, error)),
            Err(error) => return Err(error),
        }
    }
    if kernels.is_empty() && !failed.is_empty() {
        return Err(failed.swap_remove(0).1);
    }
    let row = |(name, error): (&String, Error)| Check {
        name: format!("{name}, load"),
        found: Err(error.to_string()),
    };
    Ok((kernels, failed.into_iter().map(row).collect()))
}

/// The least that a device can be asked for: it is opened, takes one kernel, and this copies what it should.
pub fn hello(libcuda: Option<&Path>) -> Result<Report, Error> {
    with_copy(libcuda, |bed| {
        let (found, broken_off) = match basics::copies(bed) {
            Ok(found) => (found, None),
            Err(error) => (Err(error.to_string()), Some(error.to_string())),
        };
        Ok(Report {
            backend: Which::Cuda,
            device: describe(bed.device),
            overlaps: bed.device.overlaps(),
            kernels: bed.kernels.iter().map(compiled).collect(),
            checks: vec![Check { name: "hello".to_owned(), found }],
            broken_off,
        })
    })
}

/// Bytes per second that a copy on the device reads and writes; what was wrong with the copy.
pub fn bandwidth(libcuda: Option<&Path>) -> Result<Result<f64, String>, Error> {
    with_copy(libcuda, |bed| Ok(basics::bandwidth(bed)?.map(|found| found.rate.unwrap_or(0.0))))
}

/// What needs no kernel but the copy: the others are not compiled.
fn with_copy<T>(libcuda: Option<&Path>, work: impl FnOnce(&mut Bed) -> Result<T, Error>) -> Result<T, Error> {
    let device = Device::open(libcuda)?;
    let sources = kernels::all()?;
    let copies = sources.iter().filter(|source| source.name == basics::COPY);
    let kernels = copies.map(|source| device.kernel(&source.name, &source.text));
    let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    let stream = device.stream(DEADLINE)?;
    work(&mut Bed { stream, device: &device, kernels: &kernels, timed: true })
}

/// One after the other, until the device fails.
fn all(bed: &mut Bed, checks: &mut Vec<Check>) -> Result<(), Error> {
    let mut add = |name: &str, checked: Checked| {
        let (found, error) = match checked {
            Ok(found) => (found, None),
            // Told where it was loaded; the device is as good as before.
            Err(error @ Error::Unloaded { .. }) => (Err(error.to_string()), None),
            Err(error) => (Err(error.to_string()), Some(error)),
        };
        checks.push(Check { name: name.to_owned(), found });
        error.map_or(Ok(()), Err)
    };
    add("memory", basics::memory(bed))?;
    add("copy", basics::copies(bed))?;
    add("graph", basics::graph(bed))?;
    add("norm_quantize", norms::norm_quantize(bed))?;
    for product in &products::PRODUCTS {
        add(product.kernel, products::check(bed, product))?;
    }
    for fused in fused::all() {
        add(&fused.name(), fused::check(bed, &fused))?;
    }
    add("attention", attention::attention(bed))?;
    add("prefill", attention::prefill(bed))?;
    add("sampling", sampling::sampling(bed))?;
    add("distributions", sampling::distributions(bed))?;
    add("embedding", rows::embedding(bed))?;
    add("copy_rows", rows::copies(bed))?;
    add("pages", rows::pages(bed))?;
    add("rotate_append", layers::heads(bed))?;
    add("gate_quantize", layers::gate(bed))?;
    add("halves", layers::halves(bed))?;
    add("add_normed", layers::post_norm(bed))?;
    add("cap_logits", layers::cap(bed))?;
    if !bed.timed {
        return Ok(());
    }
    add(BANDWIDTH, basics::bandwidth(bed))?;
    for kernel in norms::KERNELS {
        add(&format!("{kernel}, rate"), norms::rate(bed, kernel))?;
    }
    for product in &products::PRODUCTS {
        for &tokens in product.timed_tokens() {
            let name = match tokens {
                1 => format!("{}, 1 token", product.kernel),
                _ => format!("{}, {tokens} tokens", product.kernel),
            };
            add(&name, products::rate(bed, product, tokens))?;
        }
    }
    for fused in fused::all() {
        add(&format!("{}, 1 token", fused.name()), fused::rate(bed, &fused))?;
    }
    for kernel in attention::KERNELS {
        add(&format!("{kernel}, rate"), attention::rate(bed, kernel))?;
    }
    for kernel in sampling::KERNELS {
        add(&format!("{kernel}, rate"), sampling::rate(bed, kernel))?;
    }
    for (kernel, rate) in rows::RATES.iter().chain(&layers::RATES) {
        add(&format!("{kernel}, rate"), rate(bed))?;
    }
    for (kernel, quant) in rows::EMBEDDINGS {
        add(&format!("{kernel}, rate"), rows::embedding_rate(bed, kernel, quant))?;
    }
    Ok(())
}

/// What every check works with.
struct Bed<'a> {
    device: &'a Device,
    stream: Stream,
    kernels: &'a [Kernel],
    /// Whether rates are measured.
    timed: bool,
}

// `cold`, so that they are in the binary once: this crate is built for speed, and inlined at each of a hundred calls they
// take 33 KB of it.
impl<'a> Bed<'a> {
    /// One that was loaded. The error comes when the stream is at its end: whoever leaves by it gives back buffers.
    #[cold]
    fn kernel(&self, name: &str) -> Result<&'a Kernel, Error> {
        match self.kernels.iter().find(|kernel| kernel.name() == name) {
            Some(kernel) => Ok(kernel),
            None => {
                self.stream.wait()?;
                Err(Error::Unloaded { kernel: name.to_owned() })
            }
        }
    }

    /// A buffer with these bytes.
    #[cold]
    fn with(&mut self, bytes: &[u8]) -> Result<Buffer, Error> {
        let buffer = self.device.buffer(bytes.len())?;
        self.stream.upload(bytes, &buffer, 0)?;
        Ok(buffer)
    }

    /// The quants and the scales of a matrix of `rows` rows, which in the file's order are those of `file`, over and over: whole
    /// tiles of them, if not all. Half a gigabyte is packed in no time so.
    #[cold]
    fn packed(
        &mut self,
        quant: Quant,
        rows: usize,
        columns: usize,
        file: &[u8],
    ) -> Result<[Buffer; 2], Error> {
        let wrong = |why| Error::Launch { kernel: quant.to_string(), why };
        let layout = |rows| {
            let layout = Layout::new(quant, rows, columns);
            layout.ok_or_else(|| wrong(format!("no layout for {columns} columns")))
        };
        let given = file.len() / layout(1)?.file_bytes();
        let whole = given == rows || given.is_multiple_of(TILE) && rows.is_multiple_of(given);
        let layout = layout(given)?;
        if !whole || layout.file_bytes() != file.len() {
            return Err(wrong(format!("{rows} rows are not {given} over and over")));
        }
        let (mut quants, mut scales) = (vec![0; layout.quant_bytes()], vec![0; layout.scale_bytes()]);
        layout.pack(file, &mut quants, &mut scales);
        let scales = scales.repeat(rows / given);
        // Floats have no scales, but a buffer has a byte.
        let scales = if scales.is_empty() { &[0][..] } else { &scales };
        Ok([self.with(&quants.repeat(rows / given))?, self.with(scales)?])
    }

    /// A buffer whose bytes are all [`BEFORE`].
    #[cold]
    fn blank(&mut self, bytes: usize) -> Result<Buffer, Error> {
        let buffer = self.device.buffer(bytes)?;
        // SAFETY: the buffer is new, so nothing else uses it.
        unsafe { self.stream.fill_later(&buffer, 0, bytes, BEFORE)? };
        self.stream.wait()?;
        Ok(buffer)
    }

    /// What is in a buffer once all work is done.
    #[cold]
    fn bytes(&mut self, buffer: &Buffer) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; buffer.size()];
        self.stream.download(buffer, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Puts a kernel into the stream.
    ///
    /// # Safety
    /// The arguments are what the kernel's head says, and live until it is done.
    #[cold]
    unsafe fn launch(
        &self,
        name: &str,
        grid: [usize; 2],
        block: u32,
        arguments: &[Argument],
    ) -> Result<(), Error> {
        let grid = [grid[0] as u32, grid[1] as u32, 1];
        // SAFETY: the caller's.
        unsafe { self.stream.launch(self.kernel(name)?, grid, [block, 1, 1], 0, arguments) }
    }

    /// The shortest time by the device's clock of `work`, which is done some times over.
    #[cold]
    fn time(&self, work: &dyn Fn() -> Result<(), Error>) -> Result<Duration, Error> {
        let (before, after) = (self.device.event()?, self.device.event()?);
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            self.stream.record(&before)?;
            work()?;
            self.stream.record(&after)?;
            self.stream.wait()?;
            best = best.min(after.since(&before)?);
            if best > ONCE {
                break;
            }
        }
        Ok(best.max(Duration::from_nanos(1)))
    }

    /// Bytes that rates are measured with on this device.
    fn rate_bytes(&self) -> usize {
        RATE_BYTES.min(self.device.properties().memory / RATE_SHARE)
    }
}

fn describe(device: &Device) -> String {
    let it = device.properties();
    format!(
        "{}, compute capability {}.{}, {} multiprocessors, {} MB, driver for CUDA {}",
        it.name,
        it.capability.0,
        it.capability.1,
        it.multiprocessors,
        it.memory / 1_000_000,
        error::version(it.driver)
    )
}

fn compiled(kernel: &Kernel) -> Compiled {
    let it = kernel.properties();
    Compiled {
        name: kernel.name().to_owned(),
        registers: it.registers,
        spilled: it.local_bytes,
        shared: it.shared_bytes,
    }
}

/// Numbers that follow from a seed.
struct Seeded {
    key: DrawKey,
    next: u32,
}

impl Seeded {
    fn new(seed: u64) -> Seeded {
        Seeded { key: DrawKey { seed, queue: 0, pass: 0 }, next: 0 }
    }

    #[cold]
    fn bits(&mut self) -> u64 {
        self.next += 1;
        sample::random(self.key, self.next)
    }

    #[cold]
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.bits().to_le_bytes()).take(count).collect()
    }

    /// In -1 .. 1.
    #[cold]
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The first byte that differs.
#[cold]
fn same(what: &str, got: &[u8], want: &[u8]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} bytes, not {}", got.len(), want.len()));
    }
    match got.iter().zip(want).position(|(got, want)| got != want) {
        Some(at) => Err(format!("{what}: byte {at} is {:#04x}, not {:#04x}", got[at], want[at])),
        None => Ok(()),
    }
}
