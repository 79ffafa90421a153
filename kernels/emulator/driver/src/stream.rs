//! Streams, events, captures and graphs: work and when it runs.
//!
//! Owns: the order. Work waits in its stream until somebody asks for an event behind it, or frees memory.

use crate::driver::{Answer, Driver, Function, REGISTERS, SHARED_USUAL, THREADS};
use crate::status::*;
use ptx_emulator::{Launch, Options};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Whether a launch has begun that never ends.
static HUNG: AtomicBool = AtomicBool::new(false);

/// What runs when the process leaves by the usual exit: as a driver does, it waits for the work.
// SAFETY: the section holds addresses of functions without arguments, which the loader calls at the end.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

extern "C" fn at_exit() {
    while HUNG.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[derive(Clone)]
pub enum Work {
    Launch {
        function: Arc<Function>,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        parameters: Vec<u8>,
        /// It may begin before the work before it has ended. (A kernel that waits runs as if it did, whether it may or not.)
        overlaps: bool,
    },
    /// From pinned memory.
    Upload {
        from: usize,
        to: u64,
        bytes: usize,
    },
    /// To pinned memory.
    Download {
        from: u64,
        to: usize,
        bytes: usize,
    },
    Fill {
        to: u64,
        byte: u8,
        bytes: usize,
    },
    /// `ticket`: of several records of one event the last one counts.
    Record {
        event: u64,
        ticket: u64,
    },
}

#[derive(Default)]
pub struct Stream {
    pub queue: VecDeque<Work>,
    pub capture: Option<Capture>,
    /// Its next launch never ends.
    hung: bool,
}

pub struct Capture {
    pub thread: ThreadId,
    pub work: Vec<Work>,
    /// Something happened that a capture does not bear.
    pub spoilt: bool,
}

pub type Graph = Arc<[Work]>;

pub struct Event {
    /// Whether its time may be asked for.
    pub timed: bool,
    pub state: EventState,
}

#[derive(Clone, Copy)]
pub enum EventState {
    /// Never recorded: as good as past.
    New,
    Waits {
        stream: u64,
        ticket: u64,
    },
    /// Recorded in a capture: no time of its own.
    Captured,
    Past(Instant),
}

impl Driver {
    /// Checks a launch as a driver does when it is asked, before it is in any stream.
    pub fn launch(
        &mut self,
        function: &Arc<Function>,
        stream: u64,
        [grid, block]: [[u32; 3]; 2],
        shared: u32,
        parameters: Vec<u8>,
        overlaps: bool,
    ) -> Answer<()> {
        if let Some(code) = self.script.refuses(&function.name) {
            return Err(Status(code));
        }
        let grid_fits =
            (1..=i32::MAX as u32).contains(&grid[0]) && grid[1..].iter().all(|n| (1..=65_535).contains(n));
        let block_fits =
            block.iter().all(|n| *n >= 1) && block[0] <= THREADS && block[1] <= THREADS && block[2] <= 64;
        let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
        if !grid_fits || !block_fits || threads > u64::from(function.threads()) {
            return Err(INVALID_VALUE);
        }
        if function.kernel().shared_bytes() + shared > SHARED_USUAL {
            return Err(INVALID_VALUE);
        }
        // Registers are given to warps, 8 a thread at a time.
        let warps = threads.div_ceil(32) as u32;
        if warps * 32 * function.registers().next_multiple_of(8) > REGISTERS {
            return Err(LAUNCH_OUT_OF_RESOURCES);
        }
        let function = function.clone();
        self.enqueue(stream, Work::Launch { function, grid, block, shared, parameters, overlaps })
    }

    pub fn record(&mut self, event: u64, stream: u64) -> Answer<()> {
        if !self.events.contains_key(&event) {
            return Err(INVALID_HANDLE);
        }
        let ticket = self.handle();
        let capturing = self.streams.get(&stream).ok_or(INVALID_HANDLE)?.capture.is_some();
        self.enqueue(stream, Work::Record { event, ticket })?;
        let event = self.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        event.state = if capturing { EventState::Captured } else { EventState::Waits { stream, ticket } };
        Ok(())
    }

    /// The first question runs the work and is still answered with "not ready": whoever asks but once sees that.
    pub fn query(&mut self, event: u64) -> Answer<()> {
        let state = self.events.get(&event).ok_or(INVALID_HANDLE)?.state;
        self.unsafe_in_capture()?;
        match state {
            EventState::New | EventState::Past(_) => Ok(()),
            EventState::Captured => Err(CAPTURED_EVENT),
            EventState::Waits { stream, ticket } => {
                self.run_until(stream, Some(ticket))?;
                Err(NOT_READY)
            }
        }
    }

    pub fn milliseconds(&self, start: u64, end: u64) -> Answer<f32> {
        let at = |event| match self.events.get(&event) {
            Some(Event { timed: true, state: EventState::Past(at) }) => Ok(*at),
            Some(Event { timed: true, state: EventState::Waits { .. } }) => Err(NOT_READY),
            _ => Err(INVALID_HANDLE),
        };
        Ok(at(end)?.saturating_duration_since(at(start)?).as_secs_f32() * 1e3)
    }

    pub fn destroy_stream(&mut self, stream: u64) -> Answer<()> {
        // Its work would still run; here it runs at once.
        self.finish(stream)?;
        self.streams.remove(&stream);
        Ok(())
    }

    // --- captures and graphs ---

    pub fn begin_capture(&mut self, stream: u64) -> Answer<()> {
        let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        if stream.capture.is_some() {
            return Err(ILLEGAL_STATE);
        }
        stream.capture =
            Some(Capture { thread: std::thread::current().id(), work: Vec::new(), spoilt: false });
        Ok(())
    }

    pub fn end_capture(&mut self, stream: u64) -> Answer<u64> {
        let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        let capture = stream.capture.take_if(|capture| capture.thread == std::thread::current().id());
        let Some(capture) = capture else {
            return Err(if stream.capture.is_some() { CAPTURE_WRONG_THREAD } else { ILLEGAL_STATE });
        };
        if capture.spoilt {
            return Err(CAPTURE_INVALIDATED);
        }
        let handle = self.handle();
        self.graphs.insert(handle, capture.work.into());
        Ok(handle)
    }

    pub fn instantiate(&mut self, graph: u64) -> Answer<u64> {
        let graph = self.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        if self.script.graphs {
            let launched = graph.iter().filter_map(|work| match work {
                Work::Launch { function, overlaps, .. } => {
                    Some(format!("{}{}", if *overlaps { "+" } else { "" }, function.name))
                }
                _ => None,
            });
            eprintln!("stand-in driver: graph: {}", launched.collect::<Vec<_>>().join(" "));
        }
        let handle = self.handle();
        self.executables.insert(handle, graph);
        Ok(handle)
    }

    pub fn replay(&mut self, executable: u64, stream: u64) -> Answer<()> {
        let graph = self.executables.get(&executable).ok_or(INVALID_HANDLE)?.clone();
        // A driver may run what was unloaded, or something else that lies there now.
        let mut launched = graph.iter().filter_map(|work| match work {
            Work::Launch { function, .. } => Some(function),
            _ => None,
        });
        if !launched.all(|function| self.is_loaded(function)) {
            return Err(INVALID_HANDLE);
        }
        for work in graph.iter() {
            self.enqueue(stream, work.clone())?;
        }
        Ok(())
    }

    // --- running ---

    pub fn finish_all(&mut self) -> Answer<()> {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.finish(stream))
    }

    fn finish(&mut self, stream: u64) -> Answer<()> {
        self.run_until(stream, None)?;
        if self.streams[&stream].hung {
            // A driver waits for the work here, for ever.
            loop {
                std::thread::park();
            }
        }
        Ok(())
    }

    /// Runs what waits in a stream, up to the record with this ticket or to its end.
    fn run_until(&mut self, stream: u64, last: Option<u64>) -> Answer<()> {
        loop {
            let waiting = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
            if waiting.hung {
                return Ok(());
            }
            let Some(work) = waiting.queue.pop_front() else { return Ok(()) };
            let is_last = matches!(&work, Work::Record { ticket, .. } if Some(*ticket) == last);
            self.run(stream, work)?;
            if is_last {
                return Ok(());
            }
        }
    }

    fn run(&mut self, stream: u64, work: Work) -> Answer<()> {
        let fault = match work {
            Work::Launch { function, grid, block, shared, parameters, .. } => {
                self.launches += 1;
                if self.script.hangs(self.launches, &function.name) {
                    eprintln!("stand-in driver: launch {} hangs, as told: {}", self.launches, function.name);
                    self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?.hung = true;
                    HUNG.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                if self.script.lost == Some(self.launches) {
                    let why = format!("the device is lost in {}, as told", function.name);
                    return Err(self.lose(LAUNCH_FAILED, &why));
                }
                let launch = Launch { grid, block, shared, parameters: &parameters };
                let options = Options { seed: self.script.seed, ..Options::default() };
                ptx_emulator::launch(function.kernel(), &mut self.memory, &launch, &options).err()
            }
            Work::Upload { from, to, bytes } => {
                if !self.is_pinned(from, bytes) {
                    return Err(self.lose(ILLEGAL_ADDRESS, &"a copy reads pinned memory that was freed"));
                }
                // SAFETY: the range is pinned memory, which is this driver's until it is freed; the program has promised
                // not to write it while the copy is on its way.
                let source =
                    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(from), bytes) };
                self.memory.write(to, source).err()
            }
            Work::Download { from, to, bytes } => {
                if !self.is_pinned(to, bytes) {
                    return Err(self.lose(ILLEGAL_ADDRESS, &"a copy writes pinned memory that was freed"));
                }
                match self.memory.read(from, bytes) {
                    Ok(found) => {
                        let target: *mut u8 = std::ptr::with_exposed_provenance_mut(to);
                        // SAFETY: as above, for both sides.
                        unsafe { target.copy_from_nonoverlapping(found.as_ptr(), bytes) };
                        None
                    }
                    Err(fault) => Some(fault),
                }
            }
            Work::Fill { to, byte, bytes } => self.memory.write(to, &vec![byte; bytes]).err(),
            Work::Record { event, ticket } => {
                if let Some(Event { state, .. }) = self.events.get_mut(&event)
                    && matches!(state, EventState::Waits { ticket: newest, .. } if *newest == ticket)
                {
                    *state = EventState::Past(Instant::now());
                }
                None
            }
        };
        match fault {
            Some(fault) => Err(self.lose(ILLEGAL_ADDRESS, &fault)),
            None => Ok(()),
        }
    }
}
