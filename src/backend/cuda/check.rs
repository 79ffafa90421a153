//! Whether this GPU with this driver does what the kernels count on.
//!
//! Owns: the checks behind `tartlet selftest --backend cuda`. Never: how they are shown.

use super::kernels::KERNELS;
use super::{Argument, Buffer, Device, Error, Kernel, Stream};
use crate::backend::check::{Check, Compiled, Found, Report};
use std::path::Path;
use std::time::Duration;

/// The copy kernel; see its head for the contract.
const COPY: &str = "copy";
/// Threads of its CTAs.
const COPY_BLOCK: u32 = 256;
/// Vectors that a CTA of it copies in one step.
const COPY_STEP: u32 = 4 * COPY_BLOCK;
/// Bytes of its vectors.
const VECTOR: usize = 16;

/// A step here takes milliseconds; one that takes so long will not end.
const DEADLINE: Duration = Duration::from_secs(4);
/// Bytes that the bandwidth is measured with: far more than any cache, and at most this share of the memory.
const BANDWIDTH_BYTES: usize = 256 << 20;
const BANDWIDTH_SHARE: usize = 64;
/// Times that the copy is timed; the best one counts, as it is the device's and not the machine's.
const ROUNDS: usize = 5;
/// What memory holds before something else is written.
const BEFORE: u8 = 0xA5;

/// Opens the device and checks it. The error: the device cannot be used at all, or no longer.
pub fn check(libcuda: Option<&Path>) -> Result<Report, Error> {
    let device = Device::open(libcuda)?;
    let kernels = KERNELS.iter().map(|source| device.kernel(source.name, source.text));
    let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    let of = |name: &str| {
        kernels.iter().find(|kernel| kernel.name() == name).ok_or_else(|| Error::Launch {
            kernel: name.to_owned(),
            why: "there is no such kernel".to_owned(),
        })
    };
    let copy = of(COPY)?;
    let mut stream = device.stream(DEADLINE)?;
    let checks = vec![
        named("memory", memory(&device, &mut stream)?),
        named("copy", copies(&device, &mut stream, copy)?),
        named("graph", graph(&device, &mut stream, copy)?),
        named("bandwidth", bandwidth(&device, &mut stream, copy)?),
    ];
    Ok(Report {
        backend: "cuda",
        device: describe(&device),
        kernels: kernels.iter().map(compiled).collect(),
        checks,
    })
}

fn named(name: &str, found: Result<Found, String>) -> Check {
    Check { name: name.to_owned(), found }
}

fn describe(device: &Device) -> String {
    let it = device.properties();
    format!(
        "{}, compute capability {}.{}, {} multiprocessors, {} MB, driver for CUDA {}.{}",
        it.name,
        it.capability.0,
        it.capability.1,
        it.multiprocessors,
        it.memory / 1_000_000,
        it.driver / 1000,
        it.driver % 1000 / 10
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

/// Bytes that repeat only after 2^32: an address that is off shows.
fn pattern(bytes: usize, seed: u32) -> Vec<u8> {
    let word = |at: u32| (at ^ seed).wrapping_mul(0x9E37_79B1).rotate_left(15).wrapping_mul(0x85EB_CA77);
    (0..bytes.div_ceil(4) as u32).flat_map(|at| word(at).to_le_bytes()).take(bytes).collect()
}

fn same(what: &str, got: &[u8], want: &[u8]) -> Result<(), String> {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        Some(at) => Err(format!("{what}: byte {at} is {:#04x}, not {:#04x}", got[at], want[at])),
        None => Ok(()),
    }
}

/// What is copied to the device comes back, of any length and from any place; what is filled is filled.
fn memory(device: &Device, stream: &mut Stream) -> Result<Result<Found, String>, Error> {
    const CASES: [(usize, usize); 5] = [(0, 1), (1, 3), (256, 4096), (13, 65_537), (0, (1 << 20) + 12)];
    for (at, bytes) in CASES {
        let buffer = device.buffer(at + bytes + 1)?;
        // SAFETY: the buffer is this function's, and lives until `download` has waited.
        unsafe { stream.fill_later(&buffer, 0, buffer.size(), BEFORE)? };
        let mut want = vec![BEFORE; buffer.size()];
        want[at..at + bytes].copy_from_slice(&pattern(bytes, bytes as u32));
        stream.upload(&want[at..at + bytes], &buffer, at)?;
        let mut got = vec![0; buffer.size()];
        stream.download(&buffer, 0, &mut got)?;
        if let Err(wrong) = same(&format!("{bytes} bytes at {at}"), &got, &want) {
            return Ok(Err(wrong));
        }
    }
    Ok(Ok(Found::Right(CASES.len())))
}

/// Puts a copy of the first `count` vectors into the stream.
///
/// # Safety
/// Both buffers have as many, live until it is done, and nothing else uses `to` meanwhile.
unsafe fn copy_later(
    stream: &Stream,
    copy: &Kernel,
    [to, from]: [&Buffer; 2],
    count: u32,
    ctas: u32,
) -> Result<(), Error> {
    let arguments = [Argument::Buffer(to), Argument::Buffer(from), Argument::U32(count)];
    // SAFETY: the kernel writes and reads `count` vectors; the rest is the caller's.
    unsafe { stream.launch(copy, [ctas, 1, 1], [COPY_BLOCK, 1, 1], 0, &arguments) }
}

/// The kernel copies as many vectors as it is told, and leaves alone what follows.
fn copies(device: &Device, stream: &mut Stream, copy: &Kernel) -> Result<Result<Found, String>, Error> {
    const CASES: [(u32, u32); 6] = [(0, 1), (1, 1), (255, 2), (1024, 1), (1025, 1), (9000, 3)];
    for (count, ctas) in CASES {
        let bytes = count as usize * VECTOR;
        let (from, to) = (device.buffer(bytes + VECTOR)?, device.buffer(bytes + VECTOR)?);
        let source = pattern(from.size(), count);
        stream.upload(&source, &from, 0)?;
        // SAFETY: both have one vector more than is copied, and live until `download` has waited.
        unsafe {
            stream.fill_later(&to, 0, to.size(), BEFORE)?;
            copy_later(stream, copy, [&to, &from], count, ctas)?;
        }
        let mut got = vec![0; to.size()];
        stream.download(&to, 0, &mut got)?;
        let want = [&source[..bytes], &[BEFORE; VECTOR]].concat();
        if let Err(wrong) = same(&format!("{count} vectors by {ctas} CTAs"), &got, &want) {
            return Ok(Err(wrong));
        }
    }
    Ok(Ok(Found::Right(CASES.len())))
}

/// A recorded chain does nothing while it is recorded, and each time it is launched all of it, in its order.
fn graph(device: &Device, stream: &mut Stream, copy: &Kernel) -> Result<Result<Found, String>, Error> {
    const COUNT: u32 = 2000;
    const REPLAYS: u32 = 3;
    let bytes = COUNT as usize * VECTOR;
    let (first, middle, last) = (device.buffer(bytes)?, device.buffer(bytes)?, device.buffer(bytes)?);
    let (mut input, mut output) = (device.pinned(bytes)?, device.pinned(bytes)?);
    // SAFETY: all of it outlives the last wait, and between the replays' ends and the next replay alone is it touched.
    let chain = stream.capture(|stream| unsafe {
        stream.upload_later(&input, &first, 0)?;
        stream.fill_later(&middle, 0, bytes, BEFORE)?;
        copy_later(stream, copy, [&middle, &first], COUNT - 1, 2)?;
        copy_later(stream, copy, [&last, &middle], COUNT, 1)?;
        stream.download_later(&last, 0, &mut output)
    })?;
    let (from, to) = (bytes - VECTOR, bytes);
    for replay in 0..REPLAYS {
        let want = pattern(bytes, replay);
        input.copy_from_slice(&want);
        output.fill(0);
        // SAFETY: as above.
        unsafe { stream.replay(&chain)? };
        stream.wait()?;
        let want = [&want[..from], &[BEFORE; VECTOR]].concat();
        if let Err(wrong) = same(&format!("replay {replay}"), &output[..to], &want) {
            return Ok(Err(wrong));
        }
    }
    Ok(Ok(Found::Right(REPLAYS as usize)))
}

/// Bytes read and written per second by the copy kernel.
fn bandwidth(device: &Device, stream: &mut Stream, copy: &Kernel) -> Result<Result<Found, String>, Error> {
    let properties = device.properties();
    let bytes = BANDWIDTH_BYTES.min(properties.memory / BANDWIDTH_SHARE).next_multiple_of(VECTOR);
    let (from, to) = (device.buffer(bytes)?, device.buffer(bytes)?);
    let count = (bytes / VECTOR) as u32;
    // Eight CTAs fill a multiprocessor with threads; each has several steps.
    let ctas = (8 * properties.multiprocessors).clamp(1, count.div_ceil(COPY_STEP));
    let (before, after) = (device.event()?, device.event()?);
    // SAFETY: both live until the last wait.
    unsafe { stream.fill_later(&from, 0, bytes, BEFORE)? };
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        stream.record(&before)?;
        // SAFETY: as above, and both have `count` vectors.
        unsafe { copy_later(stream, copy, [&to, &from], count, ctas)? };
        stream.record(&after)?;
        stream.wait()?;
        best = best.min(after.since(&before)?);
    }
    if best.is_zero() {
        return Ok(Err(format!("a copy of {bytes} bytes took no time by the device's clock")));
    }
    Ok(Ok(Found::Rate(2.0 * bytes as f64 / best.as_secs_f64())))
}
