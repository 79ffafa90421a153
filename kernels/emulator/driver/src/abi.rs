//! The functions of the driver: what a program calls.
//!
//! Owns: the C side: pointers are written and read here, nothing is decided. The names and signatures are cuda.h's.

use crate::driver::{Answer, Function, Needs, REGISTERS, SHARED_USUAL, THREADS, call, make_current};
use crate::status::{self, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NO_DEVICE, NOT_SUPPORTED};
use crate::stream::{Event, EventState, Stream, Work};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// A handle as the program holds it.
type Handle = *mut c_void;

/// The handle of the primary context.
const CONTEXT: u64 = 1;
/// Under this the device is listed.
const NAME: &CStr = c"PTX emulator (stand-in driver, no GPU)";

// CUevent_flags
const EVENT_BLOCKING_SYNC: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;

// CUjit_option: those that are known here.
const JIT_INFO_LOG: c_int = 3;
const JIT_INFO_LOG_BYTES: c_int = 4;
const JIT_ERROR_LOG: c_int = 5;
const JIT_ERROR_LOG_BYTES: c_int = 6;

fn handle(number: u64) -> Handle {
    std::ptr::without_provenance_mut(number as usize)
}

fn number(handle: Handle) -> u64 {
    handle.addr() as u64
}

/// Writes an answer.
///
/// # Safety
/// `to` is null or the program's place for a `T`.
unsafe fn put<T>(to: *mut T, value: T) -> Answer<()> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's.
    unsafe { to.write(value) };
    Ok(())
}

/// A function of the driver: `name(arguments) needs what => what it does`, with `d` for the driver's state.
///
/// SAFETY of every one of them is that of cuda.h: pointers are null or the program's own, as large as the function says,
/// and texts end with a NUL.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) $needs:ident |$d:ident| $body:block)*) => {
        $(
            // SAFETY: the name is what this library is for; see above for the rest.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "cuda.h's name")]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
                call(stringify!($name), Needs::$needs, |$d| {
                    let _ = &$d; // some need no state
                    // SAFETY: see above.
                    #[allow(unused_unsafe, reason = "some touch no pointer")]
                    unsafe { $body }
                })
            }
        )*
    };
}

functions! {
    // --- the driver and its device ---
    cuInit(flags: c_uint) Nothing |d| {
        if d.script.no_device {
            return Err(NO_DEVICE);
        }
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        d.initialised = true;
        Ok(())
    }
    cuDriverGetVersion(to: *mut c_int) Nothing |d| { put(to, d.script.version) }
    cuGetErrorName(code: c_int, to: *mut *const c_char) Nothing |d| { describe(code, to) }
    cuDeviceGetCount(to: *mut c_int) Init |d| { put(to, 1) }
    cuDeviceGet(to: *mut c_int, ordinal: c_int) Init |d| {
        only(ordinal)?;
        put(to, ordinal)
    }
    cuDeviceGetName(to: *mut c_char, room: c_int, device: c_int) Init |d| {
        only(device)?;
        let name = NAME.to_bytes_with_nul();
        if to.is_null() || (room as usize) < name.len() {
            return Err(INVALID_VALUE);
        }
        to.cast::<u8>().copy_from_nonoverlapping(name.as_ptr(), name.len());
        Ok(())
    }
    cuDeviceTotalMem_v2(to: *mut usize, device: c_int) Init |d| {
        only(device)?;
        put(to, d.script.memory)
    }
    cuDeviceGetAttribute(to: *mut c_int, attribute: c_int, device: c_int) Init |d| {
        only(device)?;
        let value = match attribute {
            1 => THREADS as c_int,       // MAX_THREADS_PER_BLOCK
            8 => SHARED_USUAL as c_int,  // MAX_SHARED_MEMORY_PER_BLOCK
            10 => 32,                    // WARP_SIZE
            12 => REGISTERS as c_int,    // MAX_REGISTERS_PER_BLOCK
            16 => 2,                     // MULTIPROCESSOR_COUNT
            75 => d.script.capability / 10, // COMPUTE_CAPABILITY_MAJOR
            76 => d.script.capability % 10, // COMPUTE_CAPABILITY_MINOR
            _ => return Err(INVALID_VALUE),
        };
        put(to, value)
    }
    cuDevicePrimaryCtxRetain(to: *mut Handle, device: c_int) Init |d| {
        only(device)?;
        put(to, handle(CONTEXT))?;
        d.retained += 1;
        Ok(())
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) Init |d| {
        only(device)?;
        d.retained = d.retained.checked_sub(1).ok_or(status::INVALID_CONTEXT)?;
        Ok(())
    }
    cuCtxSetCurrent(context: Handle) Init |d| {
        match number(context) {
            0 | CONTEXT => {
                make_current(!context.is_null());
                Ok(())
            }
            _ => Err(status::INVALID_CONTEXT),
        }
    }

    // --- memory ---
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) Context |d| {
        let (is_free, of) = d.memory_info();
        put(free, is_free)?;
        put(total, of)
    }
    cuMemAlloc_v2(to: *mut u64, bytes: usize) Context |d| {
        let address = d.allocate(bytes)?;
        put(to, address)
    }
    cuMemFree_v2(address: u64) Context |d| { d.free(address) }
    cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize) Context |d| {
        let place = d.allocate_host(bytes)?;
        put(to, place.cast())
    }
    cuMemFreeHost(place: *mut c_void) Context |d| { d.free_host(place.cast()) }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) Context |d| {
        copy_fits(d.on_device(to, bytes), d.is_pinned(from.addr(), bytes))?;
        d.enqueue(number(stream), Work::Upload { from: from.expose_provenance(), to, bytes })
    }
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) Context |d| {
        copy_fits(d.on_device(from, bytes), d.is_pinned(to.addr(), bytes))?;
        d.enqueue(number(stream), Work::Download { from, to: to.expose_provenance(), bytes })
    }
    cuMemsetD8Async(to: u64, byte: u8, bytes: usize, stream: Handle) Context |d| {
        if !d.on_device(to, bytes) {
            return Err(INVALID_VALUE);
        }
        d.enqueue(number(stream), Work::Fill { to, byte, bytes })
    }

    // --- modules ---
    cuModuleLoadDataEx(
        to: *mut Handle,
        image: *const c_void,
        count: c_uint,
        options: *mut c_int,
        values: *mut *mut c_void
    ) Context |d| {
        if image.is_null() {
            return Err(INVALID_VALUE);
        }
        let (options, values) = jit_options(count, options, values)?;
        let text = CStr::from_ptr(image.cast()).to_str().map_err(|_| status::INVALID_PTX)?;
        let loaded = d.load(text);
        let said = loaded.as_ref().err().map_or("", |(_, log)| log);
        write_log(said, [JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES], options, values);
        write_log("", [JIT_INFO_LOG, JIT_INFO_LOG_BYTES], options, values);
        put(to, handle(loaded.map_err(|(status, _)| status)?))
    }
    cuModuleUnload(module: Handle) Context |d| { d.unload(number(module)) }
    cuModuleGetFunction(to: *mut Handle, module: Handle, name: *const c_char) Context |d| {
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| status::NOT_FOUND)?;
        let function = d.function_of(number(module), name)?;
        put(to, handle(function))
    }
    cuFuncGetAttribute(to: *mut c_int, attribute: c_int, function: Handle) Context |d| {
        let function = d.function(number(function))?;
        let value = match attribute {
            0 => function.threads(),                          // MAX_THREADS_PER_BLOCK
            1 => function.kernel().shared_bytes(),            // SHARED_SIZE_BYTES
            2 => 0,                                           // CONST_SIZE_BYTES
            3 => function.kernel().local_bytes(),             // LOCAL_SIZE_BYTES
            4 => function.registers(),                        // NUM_REGS
            _ => return Err(INVALID_VALUE),
        };
        put(to, value as c_int)
    }

    // --- streams and events ---
    cuStreamCreate(to: *mut Handle, flags: c_uint) Context |d| {
        // Others wait for the default stream, which nobody here has.
        if flags != 1 {
            return Err(NOT_SUPPORTED);
        }
        let stream = d.handle();
        d.streams.insert(stream, Stream::default());
        put(to, handle(stream))
    }
    cuStreamDestroy_v2(stream: Handle) Context |d| { d.destroy_stream(number(stream)) }
    cuEventCreate(to: *mut Handle, flags: c_uint) Context |d| {
        if flags & !(EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING) != 0 {
            return Err(INVALID_VALUE);
        }
        let event = d.handle();
        d.events.insert(event, Event { timed: flags & EVENT_DISABLE_TIMING == 0, state: EventState::New });
        put(to, handle(event))
    }
    cuEventDestroy_v2(event: Handle) Context |d| {
        d.events.remove(&number(event)).map(drop).ok_or(INVALID_HANDLE)
    }
    cuEventRecord(event: Handle, stream: Handle) Context |d| { d.record(number(event), number(stream)) }
    cuEventQuery(event: Handle) Context |d| { d.query(number(event)) }
    cuEventElapsedTime(to: *mut f32, start: Handle, end: Handle) Context |d| {
        put(to, d.milliseconds(number(start), number(end))?)
    }

    // --- launches and graphs ---
    cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: Handle,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    ) Context |d| {
        let function = d.function(number(function))?.clone();
        let parameters = parameters(&function, arguments, extra)?;
        let sizes = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
        d.launch(&function, number(stream), sizes, shared, parameters, false)
    }
    cuLaunchKernelEx(
        config: *const LaunchConfig,
        function: Handle,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    ) Context |d| {
        if config.is_null() {
            return Err(INVALID_VALUE);
        }
        let LaunchConfig { grid, block, shared, stream, attributes, count } = config.read();
        let mut overlaps = false;
        for at in 0..count as usize {
            if attributes.is_null() {
                return Err(INVALID_VALUE);
            }
            match attributes.add(at).read() {
                LaunchAttribute { id: MAY_OVERLAP, value, .. } => overlaps = value[0] as u32 != 0,
                _ => return Err(NOT_SUPPORTED),
            }
        }
        let function = d.function(number(function))?.clone();
        let parameters = parameters(&function, arguments, extra)?;
        d.launch(&function, number(stream), [grid, block], shared, parameters, overlaps)
    }
    cuStreamBeginCapture_v2(stream: Handle, mode: c_int) Context |d| {
        // Thread-local, which is what `unsafe_in_capture` keeps.
        if mode != 1 {
            return Err(NOT_SUPPORTED);
        }
        d.begin_capture(number(stream))
    }
    cuStreamEndCapture(stream: Handle, to: *mut Handle) Context |d| {
        let graph = d.end_capture(number(stream));
        put(to, handle(*graph.as_ref().unwrap_or(&0)))?;
        graph.map(drop)
    }
    cuGraphInstantiateWithFlags(to: *mut Handle, graph: Handle, flags: u64) Context |d| {
        if flags != 0 {
            return Err(NOT_SUPPORTED);
        }
        let executable = d.instantiate(number(graph))?;
        put(to, handle(executable))
    }
    cuGraphLaunch(executable: Handle, stream: Handle) Context |d| { d.replay(number(executable), number(stream)) }
    cuGraphExecDestroy(executable: Handle) Context |d| {
        d.executables.remove(&number(executable)).map(drop).ok_or(INVALID_HANDLE)
    }
    cuGraphDestroy(graph: Handle) Context |d| {
        d.graphs.remove(&number(graph)).map(drop).ok_or(INVALID_HANDLE)
    }
}

// CUlaunchConfig, CUlaunchAttribute
#[repr(C)]
pub struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared: c_uint,
    pub stream: Handle,
    pub attributes: *const LaunchAttribute,
    pub count: c_uint,
}

#[repr(C)]
pub struct LaunchAttribute {
    pub id: c_uint,
    pub padding: c_uint,
    pub value: [u64; 8],
}

/// CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
pub const MAY_OVERLAP: c_uint = 6;

/// What a launch is given, as the kernel's parameters lie.
///
/// # Safety
/// That of cuLaunchKernel.
unsafe fn parameters(
    function: &Function,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Answer<Vec<u8>> {
    if !extra.is_null() {
        return Err(NOT_SUPPORTED);
    }
    let declared = function.kernel().parameters();
    let bytes = declared.iter().map(|it| it.offset as usize + it.size as usize).max().unwrap_or(0);
    let mut parameters = vec![0u8; bytes];
    for (at, it) in declared.iter().enumerate() {
        // SAFETY: the program's list has a place for each parameter, of the parameter's size.
        unsafe {
            if arguments.is_null() || (*arguments.add(at)).is_null() {
                return Err(INVALID_VALUE);
            }
            let argument = (*arguments.add(at)).cast::<u8>();
            let to = &mut parameters[it.offset as usize..][..it.size as usize];
            to.as_mut_ptr().copy_from_nonoverlapping(argument, to.len());
        }
    }
    Ok(parameters)
}

/// There is one device.
fn only(device: c_int) -> Answer<()> {
    if device == 0 { Ok(()) } else { Err(INVALID_DEVICE) }
}

/// A copy's device side must lie in an allocation. Its host side must be pinned: a driver would copy other memory too, but
/// not later.
fn copy_fits(on_device: bool, is_pinned: bool) -> Answer<()> {
    match (on_device, is_pinned) {
        (true, true) => Ok(()),
        (true, false) => Err(NOT_SUPPORTED),
        (false, _) => Err(INVALID_VALUE),
    }
}

/// # Safety
/// `to` is null or the program's place for a pointer.
unsafe fn describe(code: c_int, to: *mut *const c_char) -> Answer<()> {
    let name = status::name(code).ok_or(INVALID_VALUE)?;
    // SAFETY: the caller's.
    unsafe { put(to, name.as_ptr()) }
}

/// The options of a module's compilation and their values. One that is not known here is refused: its value would be
/// passed over in silence.
///
/// # Safety
/// `options` and `values` are null or have `count` entries each, which are the program's.
unsafe fn jit_options<'a>(
    count: c_uint,
    options: *const c_int,
    values: *mut *mut c_void,
) -> Answer<(&'a [c_int], &'a mut [*mut c_void])> {
    if count == 0 {
        return Ok((&[], &mut []));
    }
    if options.is_null() || values.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's.
    let options = unsafe { std::slice::from_raw_parts(options, count as usize) };
    // SAFETY: the caller's.
    let values = unsafe { std::slice::from_raw_parts_mut(values, count as usize) };
    let known = [JIT_INFO_LOG, JIT_INFO_LOG_BYTES, JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES];
    if options.iter().all(|option| known.contains(option)) {
        Ok((options, values))
    } else {
        Err(INVALID_VALUE)
    }
}

/// Writes the compiler's log to where the options say, with its NUL, and how long it became.
///
/// # Safety
/// The log's value leads to as many bytes as its size's says.
unsafe fn write_log(said: &str, [log, log_bytes]: [c_int; 2], options: &[c_int], values: &mut [*mut c_void]) {
    let (Some(at), Some(size_at)) =
        (options.iter().position(|it| *it == log), options.iter().position(|it| *it == log_bytes))
    else {
        return;
    };
    let bytes = said.len().min(values[size_at].addr().saturating_sub(1));
    let place = values[at].cast::<u8>();
    if !place.is_null() && values[size_at].addr() > 0 {
        // SAFETY: the place has room for one byte more than is copied.
        unsafe {
            place.copy_from_nonoverlapping(said.as_ptr(), bytes);
            place.add(bytes).write(0);
        }
    }
    values[size_at] = std::ptr::without_provenance_mut(bytes);
}
