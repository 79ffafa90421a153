//! The device, its memory, its modules, and whether it is lost.
//!
//! Owns: the one state behind all calls. Never: raw pointers into the program, save pinned memory, which is its own.

use crate::script::Script;
use crate::status::*;
use crate::stream::{Event, Graph, Stream, Work};
use ptx_emulator::{Kernel, Memory, Module};
use std::alloc::Layout;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Shared memory of a CTA that nobody has to ask for, and nobody here asks for more.
pub const SHARED_USUAL: u32 = 48 << 10;
/// Registers of a multiprocessor, of which a CTA may have all.
pub const REGISTERS: u32 = 65_536;
/// Threads of a CTA at most.
pub const THREADS: u32 = 1024;
/// What a kernel counts that says nothing of its registers: the most that a thread can have.
const REGISTERS_UNKNOWN: u32 = 255;
/// Alignment of pinned memory: a page.
const PAGE: usize = 4096;

pub type Answer<T> = Result<T, Status>;

pub struct Driver {
    pub script: Script,
    pub initialised: bool,
    /// Holders of the primary context.
    pub retained: u32,
    /// Once the device is lost, every call answers this.
    pub lost: Option<Status>,
    pub memory: Memory,
    allocated: BTreeMap<u64, usize>, // address, bytes
    pinned: BTreeMap<usize, Layout>, // address
    modules: HashMap<u64, Arc<Loaded>>,
    functions: HashMap<u64, Arc<Function>>,
    pub streams: HashMap<u64, Stream>,
    pub events: HashMap<u64, Event>,
    pub graphs: HashMap<u64, Graph>,
    pub executables: HashMap<u64, Graph>,
    /// Launches that have run.
    pub launches: u64,
    next: u64,
}

pub struct Loaded {
    pub module: Module,
    /// Registers of a thread: the budget that the text declares.
    registers: u32,
}

pub struct Function {
    module: u64,
    pub loaded: Arc<Loaded>,
    pub name: String,
}

impl Function {
    pub fn kernel(&self) -> &ptx_emulator::Kernel {
        // The name was looked up when the function was made.
        self.loaded.module.kernel(&self.name).expect("a function is a kernel of its module")
    }

    pub fn registers(&self) -> u32 {
        self.loaded.registers
    }

    pub fn threads(&self) -> u32 {
        self.kernel().max_threads().unwrap_or(THREADS).min(THREADS)
    }
}

thread_local! {
    /// Whether this thread has made the primary context its own.
    static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// What must have happened before a call.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Needs {
    Nothing,
    Init,
    Context,
}

/// One call: counted, refused if the environment or the device's state says so, else done.
pub fn call(name: &'static str, needs: Needs, work: impl FnOnce(&mut Driver) -> Answer<()>) -> i32 {
    let mut driver = driver();
    if let Some(code) = driver.script.answer(name) {
        return code;
    }
    let may = match needs {
        Needs::Init | Needs::Context if !driver.initialised => Err(NOT_INITIALIZED),
        Needs::Context => match driver.lost {
            Some(status) => Err(status),
            None if !CURRENT.get() || driver.retained == 0 => Err(INVALID_CONTEXT),
            None => Ok(()),
        },
        _ => Ok(()),
    };
    match may.and_then(|()| work(&mut driver)) {
        Ok(()) => 0,
        Err(Status(code)) => code,
    }
}

fn driver() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| Mutex::new(Driver::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn make_current(current: bool) {
    CURRENT.set(current);
}

impl Driver {
    fn new() -> Driver {
        Driver {
            script: Script::of_environment(),
            initialised: false,
            retained: 0,
            lost: None,
            memory: Memory::new(),
            allocated: BTreeMap::new(),
            pinned: BTreeMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            launches: 0,
            next: 1,
        }
    }

    /// A handle that was never given out before; no address of the program is so low.
    pub fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The device is lost from here on; `why` goes to standard error.
    pub fn lose(&mut self, status: Status, why: &dyn std::fmt::Display) -> Status {
        eprintln!("stand-in driver: {why}");
        self.lost = Some(status);
        status
    }

    // --- memory ---

    pub fn memory_info(&self) -> (usize, usize) {
        let used: usize = self.allocated.values().sum();
        (self.script.memory - used, self.script.memory)
    }

    pub fn allocate(&mut self, bytes: usize) -> Answer<u64> {
        self.unsafe_in_capture()?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if bytes > self.memory_info().0 {
            return Err(OUT_OF_MEMORY);
        }
        let address = self.memory.alloc(bytes, "cuMemAlloc");
        self.allocated.insert(address, bytes);
        Ok(address)
    }

    /// As a driver does, ends all work first.
    pub fn free(&mut self, address: u64) -> Answer<()> {
        self.unsafe_in_capture()?;
        if !self.allocated.contains_key(&address) {
            return Err(INVALID_VALUE);
        }
        self.finish_all()?;
        self.allocated.remove(&address);
        self.memory.free(address).map_err(|fault| self.lose(ILLEGAL_ADDRESS, &fault))
    }

    /// Whether the bytes lie in one allocation.
    pub fn on_device(&self, address: u64, bytes: usize) -> bool {
        let before = self.allocated.range(..=address).next_back();
        before.is_some_and(|(first, size)| {
            address - first <= *size as u64 && bytes as u64 <= *size as u64 - (address - first)
        })
    }

    pub fn allocate_host(&mut self, bytes: usize) -> Answer<*mut u8> {
        self.unsafe_in_capture()?;
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| INVALID_VALUE)?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the layout has a size.
        let place = unsafe { std::alloc::alloc_zeroed(layout) };
        if place.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        self.pinned.insert(place.addr(), layout);
        Ok(place)
    }

    pub fn free_host(&mut self, place: *mut u8) -> Answer<()> {
        self.unsafe_in_capture()?;
        if !self.pinned.contains_key(&place.addr()) {
            return Err(INVALID_VALUE);
        }
        self.finish_all()?;
        if let Some(layout) = self.pinned.remove(&place.addr()) {
            // SAFETY: it was allocated with this layout, and no work knows it any more.
            unsafe { std::alloc::dealloc(place, layout) };
        }
        Ok(())
    }

    /// Whether the bytes lie in one pinned allocation.
    pub fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(first, layout)| {
            address - first <= layout.size() && bytes <= layout.size() - (address - first)
        })
    }

    // --- modules ---

    /// The error's text is what the compiler's log says.
    pub fn load(&mut self, text: &str) -> Result<u64, (Status, String)> {
        self.unsafe_in_capture().map_err(|status| (status, String::new()))?;
        let word = |name: &str| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next())
        };
        // CUDA 11.4 takes PTX up to 7.4, 12.4 up to 8.4, and so on.
        let offered = (self.script.version / 1000 - 4, self.script.version % 1000 / 10);
        let asked = word(".version").and_then(|version| version.split_once('.'));
        let asked =
            asked.and_then(|(major, minor)| Some((major.parse::<i32>().ok()?, minor.parse::<i32>().ok()?)));
        if asked.is_some_and(|asked| asked > offered) {
            let log = format!(
                "application ptx input: PTX {}.{} is the newest that this driver takes",
                offered.0, offered.1
            );
            return Err((UNSUPPORTED_PTX_VERSION, log));
        }
        let target = word(".target").and_then(|target| target.strip_prefix("sm_")?.parse::<i32>().ok());
        if target.is_some_and(|target| target > self.script.capability) {
            let log = format!("application ptx input: the device is sm_{}", self.script.capability);
            return Err((INVALID_PTX, log));
        }
        let module = Module::parse(text).map_err(|error| (INVALID_PTX, error.to_string()))?;
        if !self.script.takes(module.kernels().map(Kernel::name)) {
            return Err((INVALID_PTX, "application ptx input, line 1; error   : refused as told".to_owned()));
        }
        let budget = text.lines().find_map(|line| line.trim().strip_prefix("// registers:"));
        let registers = budget.or_else(|| word(".maxnreg")).and_then(|number| number.trim().parse().ok());
        let handle = self.handle();
        self.modules
            .insert(handle, Arc::new(Loaded { module, registers: registers.unwrap_or(REGISTERS_UNKNOWN) }));
        Ok(handle)
    }

    pub fn unload(&mut self, module: u64) -> Answer<()> {
        self.unsafe_in_capture()?;
        if !self.modules.contains_key(&module) {
            return Err(INVALID_HANDLE);
        }
        self.finish_all()?;
        self.modules.remove(&module);
        self.functions.retain(|_, function| function.module != module);
        Ok(())
    }

    pub fn function_of(&mut self, module: u64, name: &str) -> Answer<u64> {
        let loaded = self.modules.get(&module).ok_or(INVALID_HANDLE)?.clone();
        loaded.module.kernel(name).ok_or(NOT_FOUND)?;
        let function = Function { module, loaded, name: name.to_owned() };
        let handle = self.handle();
        self.functions.insert(handle, Arc::new(function));
        Ok(handle)
    }

    pub fn is_loaded(&self, function: &Function) -> bool {
        self.modules.contains_key(&function.module)
    }

    pub fn function(&self, handle: u64) -> Answer<&Arc<Function>> {
        self.functions.get(&handle).ok_or(INVALID_HANDLE)
    }

    // --- work ---

    /// Refuses what may not happen while this thread captures, and spoils the capture, as a driver does.
    pub fn unsafe_in_capture(&mut self) -> Answer<()> {
        let thread = std::thread::current().id();
        let mut found = false;
        for capture in self.streams.values_mut().filter_map(|stream| stream.capture.as_mut()) {
            if capture.thread == thread {
                capture.spoilt = true;
                found = true;
            }
        }
        if found { Err(CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Puts work into a stream, or into what the stream captures.
    pub fn enqueue(&mut self, stream: u64, work: Work) -> Answer<()> {
        let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        match &mut stream.capture {
            Some(capture) if capture.spoilt => Err(CAPTURE_INVALIDATED),
            Some(capture) => {
                capture.work.push(work);
                Ok(())
            }
            None => {
                stream.queue.push_back(work);
                Ok(())
            }
        }
    }
}
