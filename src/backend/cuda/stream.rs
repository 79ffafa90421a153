//! Streams: launches and copies in order, events, graphs, and the deadline of a step.
//!
//! Owns: the order of work and how long it may take. Never: what the work means.
//!
//! A wait is not the driver's, which knows no deadline: an event is recorded and asked for again and again. An error leaves
//! no work behind that anything could still be used by: it is waited for, or the device counts as lost.

use super::error::Status;
use super::{Argument, Buffer, Device, Error, Kernel, Pinned, driver};
use cust::sys;
use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Bytes that a copy of plain memory moves at a time.
const STAGE: usize = 1 << 20;
/// How long a wait asks without sleeping: a decoding step is often over by then, and a sleeping thread comes late.
const SPIN: Duration = Duration::from_micros(200);
/// How long it asks in one go, ...
const LOOK: Duration = Duration::from_micros(10);
/// ... and the sleep in place of that later on.
const PAUSE: Duration = Duration::from_micros(50);

/// Work in order, apart from the default stream.
pub struct Stream {
    device: Device,
    raw: sys::CUstream,
    /// How long whoever waits here waits.
    deadline: Duration,
    end: Event,
    stage: Pinned, // [STAGE]
    state: Cell<State>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// All work is done.
    Idle,
    /// Some may not be.
    Busy,
    /// What is put in is recorded.
    Capturing,
}

/// A point in a stream's work.
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

/// Recorded work, launched as one.
pub struct Graph {
    device: Device,
    raw: sys::CUgraphExec,
}

impl Device {
    /// A new stream; a step on it must end within `deadline`.
    pub fn stream(&self, deadline: Duration) -> Result<Stream, Error> {
        let end = self.event()?;
        let stage = self.pinned(STAGE)?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the place for the handle is ours.
        self.judge("cuStreamCreate", unsafe { driver::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { device: self.clone(), raw, deadline, end, stage, state: Cell::new(State::Idle) })
    }

    pub fn event(&self) -> Result<Event, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the place for the handle is ours.
        self.judge("cuEventCreate", unsafe { driver::cuEventCreate(&mut raw, 0) })?;
        Ok(Event { device: self.clone(), raw })
    }
}

impl Stream {
    /// Puts a launch into the stream: `grid` CTAs of `block` threads with `shared` bytes of dynamic shared memory.
    ///
    /// # Safety
    /// The kernel's contract holds: buffers are as large as it says, they and the kernel live until the work is done (and
    /// while a graph with it is launched), and nothing else uses meanwhile what it writes.
    pub unsafe fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &[Argument<'_>],
    ) -> Result<(), Error> {
        let mut bits = kernel.arguments(arguments)?;
        let mut places: Vec<*mut c_void> = bits.iter_mut().map(|bits| (&raw mut *bits).cast()).collect();
        if kernel.is_dependent() {
            let overlaps = driver::MAY_OVERLAP;
            let (stream, attributes) = (self.raw, &raw const overlaps);
            let config = driver::LaunchConfig { grid, block, shared, stream, attributes, count: 1 };
            // SAFETY: as below; the attribute is one, and what it allows the kernel bears: it waits itself.
            let status = unsafe {
                driver::cuLaunchKernelEx(&config, kernel.raw(), places.as_mut_ptr(), std::ptr::null_mut())
            };
            return self.put("cuLaunchKernelEx", status);
        }
        // SAFETY: one place for each parameter, each with as many bytes as it has (little-endian: the low ones come
        // first); the driver reads them before it returns. The rest is the caller's.
        let status = unsafe {
            driver::cuLaunchKernel(
                kernel.raw(),
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                self.raw,
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.put("cuLaunchKernel", status)
    }

    /// Puts a copy into the stream: the bytes `part` of `from` to `to` from `at` on.
    ///
    /// # Safety
    /// Until the copy is done (and while a graph with it is launched) both live, that part of `from` is not written, and
    /// nothing else uses that part of `to`.
    ///
    /// # Panics
    /// When `from` has no such part.
    pub unsafe fn upload_later(
        &self,
        from: &Pinned,
        part: Range<usize>,
        to: &Buffer,
        at: usize,
    ) -> Result<(), Error> {
        self.within(to, at, part.len())?;
        // SAFETY: both ranges exist; the rest is the caller's.
        unsafe { self.copy_in(&from[part], to, at) }
    }

    /// The other way: the bytes of `from` from `at` on to the bytes `part` of `to`.
    ///
    /// # Safety
    /// Until the copy is done (and while a graph with it is launched) both live, that part of `to` is not touched, and
    /// nothing else writes that part of `from`.
    ///
    /// # Panics
    /// When `to` has no such part.
    pub unsafe fn download_later(
        &self,
        from: &Buffer,
        at: usize,
        to: &mut Pinned,
        part: Range<usize>,
    ) -> Result<(), Error> {
        self.within(from, at, part.len())?;
        // SAFETY: both ranges exist; the rest is the caller's.
        unsafe { self.copy_out(from, at, &mut to[part]) }
    }

    /// Sets `count` bytes of `to` from `at` on to `byte`, in the order of the stream.
    ///
    /// # Safety
    /// Until it is done (and while a graph with it is launched) `to` lives and nothing else uses that part of it.
    pub unsafe fn fill_later(&self, to: &Buffer, at: usize, count: usize, byte: u8) -> Result<(), Error> {
        self.within(to, at, count)?;
        // SAFETY: the range exists; the rest is the caller's.
        let status = unsafe { driver::cuMemsetD8Async(to.address() + at as u64, byte, count, self.raw) };
        self.put("cuMemsetD8Async", status)
    }

    /// Copies `bytes` into `to` from `at` on, and waits until they are there.
    pub fn upload(&mut self, bytes: &[u8], to: &Buffer, at: usize) -> Result<(), Error> {
        self.within(to, at, bytes.len())?;
        for (part, chunk) in bytes.chunks(STAGE).enumerate() {
            self.stage[..chunk.len()].copy_from_slice(chunk);
            // SAFETY: the ranges exist; the stage is not touched until the wait below is over. After a wait that fails the
            // device is lost: nothing is copied any more, and the stage is not given back.
            unsafe { self.copy_in(&self.stage[..chunk.len()], to, at + part * STAGE)? };
            self.wait()?;
        }
        Ok(())
    }

    /// Copies from `from`, from `at` on, into `bytes`, once all that was put into the stream before is done.
    pub fn download(&mut self, from: &Buffer, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.within(from, at, bytes.len())?;
        for (part, chunk) in bytes.chunks_mut(STAGE).enumerate() {
            let to = &raw mut self.stage[..chunk.len()];
            // SAFETY: as in `upload`; the stage lives as long as the stream.
            unsafe { self.copy_out(from, at + part * STAGE, &mut *to)? };
            self.wait()?;
            chunk.copy_from_slice(&self.stage[..chunk.len()]);
        }
        Ok(())
    }

    /// Marks this point of the stream's work.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        // SAFETY: both handles are of this device and live.
        self.device.judge("cuEventRecord", unsafe { driver::cuEventRecord(event.raw, self.raw) })
    }

    /// Returns when all work so far is done. After an error (at the deadline, for one) the device counts as lost: what the
    /// work uses must neither be used again nor given back.
    pub fn wait(&self) -> Result<(), Error> {
        let started = Instant::now();
        self.or_abandoned(self.record(&self.end))?;
        while !self.has_passed(&self.end, started, true)? {}
        if self.state.get() == State::Busy {
            self.state.set(State::Idle);
        }
        Ok(())
    }

    /// Whether the work before `event` is done, which the device could begin at `since`. False: not yet, and if it may the
    /// call has paused. After an error the device counts as lost, as after that of [`Stream::wait`].
    pub fn has_passed(&self, event: &Event, since: Instant, pause: bool) -> Result<bool, Error> {
        self.or_abandoned(self.ask(event, since, pause))
    }

    fn ask(&self, event: &Event, since: Instant, pause: bool) -> Result<bool, Error> {
        let asked = Instant::now();
        let mut late = false;
        loop {
            let now = Instant::now();
            if event.is_past()? {
                return Ok(true);
            }
            let waited = now.saturating_duration_since(since);
            if waited > self.deadline {
                // Who comes late to ask, asks once more.
                if late {
                    return Err(self.device.note(Error::Hung { after: self.deadline }));
                }
                late = true;
                continue;
            }
            if !pause {
                return Ok(false);
            }
            if waited > SPIN {
                std::thread::sleep(PAUSE);
                return Ok(false);
            }
            if now.saturating_duration_since(asked) > LOOK {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Work that cannot be waited for is still on the device.
    fn or_abandoned<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if answer.is_err() && self.state.get() == State::Busy {
            self.device.abandon();
        }
        answer
    }

    /// What putting work in has said. If it was refused, what was put in before is waited for: whoever hears of the error
    /// gives back what that uses.
    fn put(&self, call: &'static str, status: Status) -> Result<(), Error> {
        let put = self.device.judge(call, status);
        match (&put, self.state.get()) {
            (Ok(()), State::Idle) => self.state.set(State::Busy),
            (Err(_), State::Busy) => self.settle(),
            _ => {}
        }
        put
    }

    /// Nothing is left to do, or the device is lost.
    fn settle(&self) {
        if self.state.get() == State::Busy && !self.device.is_lost() {
            // A wait that fails has said so to the device.
            let _ = self.wait();
        }
    }

    /// Records what `work` puts into the stream instead of doing it. Nothing may be allocated, freed or waited for
    /// meanwhile: the driver then refuses the graph.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<(), Error>) -> Result<Graph, Error> {
        // Of this thread alone: what other threads do with the device is no part of it.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        self.device
            .judge("cuStreamBeginCapture_v2", unsafe { driver::cuStreamBeginCapture_v2(self.raw, mode) })?;
        let before = self.state.replace(State::Capturing);
        let done = work(self);
        self.state.set(before);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the place for the handle is ours.
        let status = unsafe { driver::cuStreamEndCapture(self.raw, &mut graph) };
        // What went wrong first is what there is to say; a graph that is there is of no use then.
        let ended = done.and(self.device.judge("cuStreamEndCapture", status));
        let mut raw = std::ptr::null_mut();
        let made = ended.and_then(|()| {
            // SAFETY: the graph is whole, the place for the handle is ours.
            let status = unsafe { driver::cuGraphInstantiateWithFlags(&mut raw, graph, 0) };
            self.device.judge("cuGraphInstantiateWithFlags", status)
        });
        if !graph.is_null() {
            // SAFETY: it is ours, and what was made of it does not need it.
            let _ = unsafe { driver::cuGraphDestroy(graph) };
        }
        made.map(|()| Graph { device: self.device.clone(), raw })
    }

    /// Puts a graph's work into the stream.
    ///
    /// # Safety
    /// What is promised of each piece of its work holds now too.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), Error> {
        // SAFETY: both handles are of this device and live; the rest is the caller's.
        self.put("cuGraphLaunch", unsafe { driver::cuGraphLaunch(graph.raw, self.raw) })
    }

    /// # Safety
    /// The range of `to` exists, and the caller keeps `upload_later`'s promise.
    unsafe fn copy_in(&self, from: &[u8], to: &Buffer, at: usize) -> Result<(), Error> {
        let (place, bytes) = (to.address() + at as u64, from.len());
        // SAFETY: the caller's.
        let status = unsafe { driver::cuMemcpyHtoDAsync_v2(place, from.as_ptr().cast(), bytes, self.raw) };
        self.put("cuMemcpyHtoDAsync_v2", status)
    }

    /// # Safety
    /// The range of `from` exists, and the caller keeps `download_later`'s promise.
    unsafe fn copy_out(&self, from: &Buffer, at: usize, to: &mut [u8]) -> Result<(), Error> {
        let place = from.address() + at as u64;
        // SAFETY: the caller's.
        let status =
            unsafe { driver::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), place, to.len(), self.raw) };
        self.put("cuMemcpyDtoHAsync_v2", status)
    }

    fn within(&self, buffer: &Buffer, at: usize, bytes: usize) -> Result<(), Error> {
        match at.checked_add(bytes) {
            Some(end) if end <= buffer.size() => Ok(()),
            _ => Err(Error::Launch {
                kernel: "copy".to_owned(),
                why: format!("bytes {at} and {bytes} more leave a buffer of {}", buffer.size()),
            }),
        }
    }
}

impl Event {
    /// Whether the stream has passed it.
    pub fn is_past(&self) -> Result<bool, Error> {
        // SAFETY: the event lives.
        match unsafe { driver::cuEventQuery(self.raw) } {
            Status::NOT_READY => Ok(false),
            status => self.device.judge("cuEventQuery", status).map(|()| true),
        }
    }

    /// From `start` to this; both are past.
    pub fn since(&self, start: &Event) -> Result<Duration, Error> {
        let mut milliseconds = 0.0;
        // SAFETY: both events live, the place for an f32 is ours.
        let status = unsafe { driver::cuEventElapsedTime(&mut milliseconds, start.raw, self.raw) };
        self.device.judge("cuEventElapsedTime", status)?;
        Ok(Duration::from_secs_f32(milliseconds.max(0.0) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: it is ours and not used again. A status has nobody to go to.
            let _ = unsafe { driver::cuEventDestroy_v2(self.raw) };
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: as above.
            let _ = unsafe { driver::cuGraphExecDestroy(self.raw) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.settle();
        if !self.device.is_lost() {
            // SAFETY: as above.
            let _ = unsafe { driver::cuStreamDestroy_v2(self.raw) };
        }
    }
}
