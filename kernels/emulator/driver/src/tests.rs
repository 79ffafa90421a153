//! What a driver refuses and Tartlet never does: calls made here as a program makes them, through the C side.
//!
//! The driver is one for the whole process, so every test has handles of its own and leaves the device in health.

use crate::abi::*;
use crate::status::{INVALID_HANDLE, INVALID_VALUE, NOT_READY, Status};
use std::ffi::{CString, c_int, c_void};
use std::ptr::{null, null_mut};

type Handle = *mut c_void;

/// Stores nothing, has 24 bytes of local memory.
const IDLE: &str = ".version 7.4
.target sm_80
.address_size 64
.visible .entry idle()
{
    .local .align 8 .b8 kept[24];
    ret;
}
";

fn well(code: c_int) {
    assert_eq!(Status(code), Status(0));
}

fn refused(code: c_int, with: Status) {
    assert_eq!(Status(code), with);
}

/// Makes the device this thread's.
fn open() {
    let mut context = null_mut();
    // SAFETY: cuda.h's order of calls; the place for the handle is ours.
    unsafe {
        well(cuInit(0));
        well(cuDevicePrimaryCtxRetain(&mut context, 0));
        well(cuCtxSetCurrent(context));
    }
}

/// A place for a handle is given to `make`.
fn made(make: impl FnOnce(*mut Handle) -> c_int) -> Handle {
    let mut handle = null_mut();
    well(make(&mut handle));
    handle
}

/// The module of [`IDLE`] and its kernel.
fn idle() -> (Handle, Handle) {
    let text = CString::new(IDLE).expect("no NUL");
    // SAFETY: the text and the name end with a NUL; there are no options.
    let module =
        made(|to| unsafe { cuModuleLoadDataEx(to, text.as_ptr().cast(), 0, null_mut(), null_mut()) });
    // SAFETY: as above.
    let kernel = made(|to| unsafe { cuModuleGetFunction(to, module, c"idle".as_ptr()) });
    (module, kernel)
}

fn stream() -> Handle {
    // SAFETY: the place is ours.
    made(|to| unsafe { cuStreamCreate(to, 1) })
}

fn launch(kernel: Handle, [x, y, z]: [u32; 3], stream: Handle) -> c_int {
    // SAFETY: the kernel has no parameters.
    unsafe { cuLaunchKernel(kernel, x, y, z, 32, 1, 1, 0, stream, null_mut(), null_mut()) }
}

#[test]
fn a_kernel_ends_with_its_module() {
    open();
    let ((module, kernel), stream) = (idle(), stream());
    well(launch(kernel, [1; 3], stream));
    // SAFETY: the handles are live until they are given back.
    unsafe {
        well(cuStreamBeginCapture_v2(stream, 1));
        well(launch(kernel, [1; 3], stream));
        let graph = made(|to| cuStreamEndCapture(stream, to));
        let executable = made(|to| cuGraphInstantiateWithFlags(to, graph, 0));
        well(cuGraphLaunch(executable, stream));
        well(cuModuleUnload(module));
        refused(launch(kernel, [1; 3], stream), INVALID_HANDLE);
        refused(cuFuncGetAttribute(&mut 0, 4, kernel), INVALID_HANDLE);
        refused(cuGraphLaunch(executable, stream), INVALID_HANDLE);
        refused(cuModuleUnload(module), INVALID_HANDLE);
    }
}

#[test]
fn an_event_without_timing_has_no_time() {
    open();
    let stream = stream();
    // SAFETY: the places are ours, the handles live.
    unsafe {
        let [timed, plain, also_timed] = [0, 2, 1].map(|flags| made(|to| cuEventCreate(to, flags)));
        for event in [timed, plain, also_timed] {
            well(cuEventRecord(event, stream));
            refused(cuEventQuery(event), NOT_READY);
            well(cuEventQuery(event));
        }
        let mut time = -1.0;
        refused(cuEventElapsedTime(&mut time, timed, plain), INVALID_HANDLE);
        refused(cuEventElapsedTime(&mut time, plain, timed), INVALID_HANDLE);
        assert_eq!(time, -1.0);
        well(cuEventElapsedTime(&mut time, timed, also_timed));
        assert!(time >= 0.0);
        refused(cuEventCreate(&mut null_mut(), 8), INVALID_VALUE);
    }
}

#[test]
fn an_option_that_the_compiler_does_not_know_is_refused() {
    open();
    let text = CString::new(IDLE).expect("no NUL");
    let mut log = [1u8; 64];
    // The log for errors, its size, and one of the future.
    let mut options = [5, 6, 77];
    let mut values: [*mut c_void; 3] =
        [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len()), null_mut()];
    // SAFETY: as many options as values, the log as long as it says.
    let mut load = |count| unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        cuModuleLoadDataEx(&mut null_mut(), text.as_ptr().cast(), count, options, values)
    };
    refused(load(3), INVALID_VALUE);
    well(load(2));
    // SAFETY: the missing arrays are what is tested.
    let ended =
        unsafe { cuModuleLoadDataEx(&mut null_mut(), text.as_ptr().cast(), 1, null_mut(), null_mut()) };
    refused(ended, INVALID_VALUE);
    // SAFETY: the same for the text.
    refused(unsafe { cuModuleLoadDataEx(&mut null_mut(), null(), 0, null_mut(), null_mut()) }, INVALID_VALUE);
}

#[test]
fn local_memory_is_the_modules() {
    open();
    let (_, kernel) = idle();
    let mut bytes = 0;
    // SAFETY: the place is ours, the kernel lives.
    well(unsafe { cuFuncGetAttribute(&mut bytes, 3, kernel) });
    assert_eq!(bytes, 24);
}

#[test]
fn a_grid_is_long_in_x_alone() {
    open();
    let ((_, kernel), stream) = (idle(), stream());
    well(launch(kernel, [65_536, 1, 1], stream));
    well(launch(kernel, [1, 65_535, 1], stream));
    for grid in [[1, 65_536, 1], [1, 1, 65_536], [1 << 31, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]] {
        refused(launch(kernel, grid, stream), INVALID_VALUE);
    }
}
