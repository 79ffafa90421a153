//! Memory, the copy kernel, graphs, and how fast memory is copied.
//!
//! Owns: what must be right before any other kernel is looked at.

use super::{BEFORE, Bed, Checked, Found, Launched, Seeded, same};
use crate::backend::cuda::{Argument, Buffer, Error, Kernel, Stream};

/// The copy kernel; see its head for the contract.
pub(super) const COPY: &str = "copy";
/// Threads of its CTAs.
const COPY_BLOCK: u32 = 256;
/// Vectors that a CTA of it copies in one step.
const COPY_STEP: u32 = 4 * COPY_BLOCK;
/// Bytes of its vectors.
const VECTOR: usize = 16;

/// What is copied to the device comes back, of any length and from any place; what is filled is filled.
pub(super) fn memory(bed: &mut Bed) -> Checked {
    const CASES: [(usize, usize); 5] = [(0, 1), (1, 3), (256, 4096), (13, 65_537), (0, (1 << 20) + 12)];
    for (at, bytes) in CASES {
        let mut want = vec![BEFORE; at + bytes + 1];
        let buffer = bed.blank(want.len())?;
        want[at..at + bytes].copy_from_slice(&Seeded::new(bytes as u64).bytes(bytes));
        bed.stream.upload(&want[at..at + bytes], &buffer, at)?;
        if let Err(wrong) = same(&format!("{bytes} bytes at {at}"), &bed.bytes(&buffer)?, &want) {
            return Ok(Err(wrong));
        }
    }
    Ok(Ok(Found::right(CASES.len())))
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
pub(super) fn copies(bed: &mut Bed) -> Checked {
    const CASES: [(u32, u32); 6] = [(0, 1), (1, 1), (255, 2), (1024, 1), (1025, 1), (9000, 3)];
    let copy = bed.kernel(COPY)?;
    let mut launches = Vec::new();
    for (count, ctas) in CASES {
        let bytes = count as usize * VECTOR;
        let mut want = Seeded::new(count.into()).bytes(bytes + VECTOR);
        let (from, to) = (bed.with(&want)?, bed.blank(bytes + VECTOR)?);
        // SAFETY: both have one vector more than is copied, and live until `bytes` has waited.
        unsafe { copy_later(&bed.stream, copy, [&to, &from], count, ctas)? };
        want[bytes..].fill(BEFORE);
        let (what, got) = (format!("{count} vectors by {ctas} CTAs"), bed.bytes(&to)?);
        if let Err(wrong) = same(&what, &got, &want) {
            return Ok(Err(wrong));
        }
        launches.push(Launched::exact(format!("copy, {what}"), count.into(), &got));
    }
    Ok(Ok(Found::launches(launches)))
}

/// A recorded chain does nothing while it is recorded, and each time it is launched all of it, in its order.
pub(super) fn graph(bed: &mut Bed) -> Checked {
    const COUNT: u32 = 2000;
    const REPLAYS: u32 = 3;
    let copy = bed.kernel(COPY)?;
    let bytes = COUNT as usize * VECTOR;
    let (first, middle, last) = (bed.blank(bytes)?, bed.blank(bytes)?, bed.blank(bytes)?);
    let (mut input, mut output) = (bed.device.pinned(bytes)?, bed.device.pinned(bytes)?);
    // SAFETY: all of it outlives the last wait, and is touched between the end of a replay and the next one alone.
    let chain = bed.stream.capture(|stream| unsafe {
        stream.upload_later(&input, 0..bytes, &first, 0)?;
        stream.fill_later(&middle, 0, bytes, BEFORE)?;
        copy_later(stream, copy, [&middle, &first], COUNT - 1, 2)?;
        copy_later(stream, copy, [&last, &middle], COUNT, 1)?;
        stream.download_later(&last, 0, &mut output, 0..bytes)
    })?;
    for replay in 0..REPLAYS {
        let mut want = Seeded::new(replay.into()).bytes(bytes);
        input.copy_from_slice(&want);
        output.fill(0);
        // SAFETY: as above.
        unsafe { bed.stream.replay(&chain)? };
        bed.stream.wait()?;
        want[bytes - VECTOR..].fill(BEFORE);
        if let Err(wrong) = same(&format!("replay {replay}"), &output, &want) {
            return Ok(Err(wrong));
        }
    }
    Ok(Ok(Found::right(REPLAYS as usize)))
}

/// Bytes read and written per second by the copy kernel.
pub(super) fn bandwidth(bed: &mut Bed) -> Checked {
    let copy = bed.kernel(COPY)?;
    let bytes = bed.rate_bytes().next_multiple_of(VECTOR);
    let (from, to) = (bed.blank(bytes)?, bed.blank(bytes)?);
    // A copy that does nothing is quick.
    let ends = [0, bytes - VECTOR];
    let mark = Seeded::new(0).bytes(VECTOR);
    for at in ends {
        bed.stream.upload(&mark, &from, at)?;
    }
    let count = (bytes / VECTOR) as u32;
    // Eight CTAs fill a multiprocessor with threads; each has several steps.
    let ctas = (8 * bed.device.properties().multiprocessors).clamp(1, count.div_ceil(COPY_STEP));
    // SAFETY: both have `count` vectors, and live until the last wait.
    let took = bed.time(&|| unsafe { copy_later(&bed.stream, copy, [&to, &from], count, ctas) })?;
    for at in ends {
        let mut got = vec![0; VECTOR];
        bed.stream.download(&to, at, &mut got)?;
        if let Err(wrong) = same(&format!("{VECTOR} bytes at {at}"), &got, &mark) {
            return Ok(Err(wrong));
        }
    }
    Ok(Ok(Found::rate(2.0 * bytes as f64 / took.as_secs_f64())))
}
