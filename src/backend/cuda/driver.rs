//! The CUDA driver, bound at run time.
//!
//! Owns: the functions `cu*` and where they lead. Never: a call of one; `device.rs` and its neighbours make those.
//!
//! Each function is listed once, with cuda.h's name and signature: [`load`] opens the driver's library and looks all of
//! them up, and the function of the same name here leads there. So the binary starts on a machine without a driver.
//!
//! `cust` gives the types (handles, attributes, options), and the compiler compares these signatures with its own. No
//! status passes through it: its `CUresult` is a Rust enum of the statuses of CUDA 11.4, and to hold any other in it, as
//! a younger driver may return, is undefined behaviour. All that `cust` does beyond its types ends in such a call (even
//! its `Drop`s), so none of it is used; nor can it be by mistake: nothing in the binary defines the symbols that it
//! calls, and such a program does not link.

#![allow(non_snake_case, reason = "the driver's names")]

use super::Error;
use super::error::Status;
use cust::sys::*;
use libloading::Library;
use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the driver's library may lie, in the order of trying: on the loader's path, where containers mount it, and
/// where JetPack 5 and 6 keep it.
const PLACES: [&str; 4] = [
    "libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
];

/// cuda.h's CUlaunchConfig.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: CUstream,
    pub attributes: *const LaunchAttribute,
    pub count: u32,
}

/// cuda.h's CUlaunchAttribute: which one, and 64 bytes for its value.
#[repr(C)]
pub(super) struct LaunchAttribute {
    pub id: u64, // an int and its padding: little-endian
    pub value: [u64; 8],
}

/// CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, allowed.
pub(super) const MAY_OVERLAP: LaunchAttribute = LaunchAttribute { id: 6, value: [1, 0, 0, 0, 0, 0, 0, 0] };

static FOUND: OnceLock<Result<Functions, Error>> = OnceLock::new();

macro_rules! driver_functions {
    ($($(#[$compared:meta])? $name:ident($($argument:ident: $type:ty),* $(,)?))*) => {
        // Not the least difference to what `cust` declares. Nothing is left of this in the binary.
        $(
            $(#[$compared])?
            // SAFETY: nothing is called.
            const _: unsafe extern "C" fn($($type),*) -> CUresult = cust::sys::$name;
        )*

        /// The driver's functions; none where the installed driver is too old to have it.
        struct Functions {
            // SAFETY: the signatures are cuda.h's, whose functions keep theirs for as long as they keep their names.
            $($name: Option<unsafe extern "C" fn($($type),*) -> Status>,)*
        }

        impl Functions {
            fn of(library: &Library) -> Functions {
                Functions {
                    // SAFETY: as above; null is none. What is found lives as long as the library, which is never closed.
                    $($name: unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }.map_or(None, |it| *it),)*
                }
            }
        }

        $(
            /// cuda.h's function of this name.
            ///
            /// # Safety
            /// That of cuda.h: handles are live ones of the driver, pointers lead to what the function says.
            #[allow(clippy::too_many_arguments, reason = "cuda.h's signature")]
            pub(super) unsafe fn $name($($argument: $type),*) -> Status {
                match FOUND.get() {
                    // SAFETY: the caller's.
                    Some(Ok(Functions { $name: Some(function), .. })) => unsafe { function($($argument),*) },
                    Some(Ok(_)) => Status::SYMBOL_NOT_FOUND,
                    _ => Status::NOT_INITIALIZED,
                }
            }
        )*
    };
}

driver_functions! {
    cuCtxSetCurrent(context: CUcontext)
    cuDeviceGet(to: *mut CUdevice, ordinal: i32)
    cuDeviceGetAttribute(to: *mut i32, attribute: CUdevice_attribute, device: CUdevice)
    cuDeviceGetCount(to: *mut i32)
    cuDeviceGetName(to: *mut c_char, room: i32, device: CUdevice)
    cuDevicePrimaryCtxRelease_v2(device: CUdevice)
    cuDevicePrimaryCtxRetain(to: *mut CUcontext, device: CUdevice)
    cuDeviceTotalMem_v2(to: *mut usize, device: CUdevice)
    cuDriverGetVersion(to: *mut i32)
    cuEventCreate(to: *mut CUevent, flags: u32)
    cuEventDestroy_v2(event: CUevent)
    cuEventElapsedTime(to: *mut f32, start: CUevent, end: CUevent)
    cuEventQuery(event: CUevent)
    cuEventRecord(event: CUevent, stream: CUstream)
    cuFuncGetAttribute(to: *mut i32, attribute: CUfunction_attribute, function: CUfunction)
    #[cfg(false)] // `cust` lets it take a `CUresult`
    cuGetErrorName(status: Status, to: *mut *const c_char)
    cuGraphDestroy(graph: CUgraph)
    cuGraphExecDestroy(executable: CUgraphExec)
    cuGraphInstantiateWithFlags(to: *mut CUgraphExec, graph: CUgraph, flags: u64)
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream)
    cuInit(flags: u32)
    cuLaunchKernel(
        function: CUfunction,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: CUstream,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    )
    #[cfg(false)] // younger than what `cust` declares
    cuLaunchKernelEx(
        config: *const LaunchConfig,
        function: CUfunction,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    )
    cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize)
    cuMemAlloc_v2(to: *mut CUdeviceptr, bytes: usize)
    cuMemFreeHost(place: *mut c_void)
    cuMemFree_v2(address: CUdeviceptr)
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize)
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream)
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream)
    cuMemsetD8Async(to: CUdeviceptr, byte: u8, bytes: usize, stream: CUstream)
    cuModuleGetFunction(to: *mut CUfunction, module: CUmodule, name: *const c_char)
    cuModuleLoadDataEx(
        to: *mut CUmodule,
        image: *const c_void,
        count: u32,
        options: *mut CUjit_option,
        values: *mut *mut c_void,
    )
    cuModuleUnload(module: CUmodule)
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode)
    cuStreamCreate(to: *mut CUstream, flags: u32)
    cuStreamDestroy_v2(stream: CUstream)
    cuStreamEndCapture(stream: CUstream, to: *mut CUgraph)
}

/// Opens the driver's library, here alone if `path` is given, and looks its functions up. The first call decides; later
/// ones answer what it found.
pub fn load(path: Option<&Path>) -> Result<(), Error> {
    match FOUND.get_or_init(|| find(path)) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.clone()),
    }
}

fn find(path: Option<&Path>) -> Result<Functions, Error> {
    let places = match path {
        Some(path) => vec![path.to_owned()],
        None => PLACES.iter().map(PathBuf::from).collect(),
    };
    let mut causes = Vec::new();
    for place in &places {
        match open(place) {
            Ok(functions) => return Ok(functions),
            Err(cause) => causes.push(cause),
        }
    }
    Err(Error::NoDriver { given: path.map(Path::to_owned), why: telling(&places, causes) })
}

fn open(place: &Path) -> Result<Functions, String> {
    // SAFETY: the library's initialisers run; that of the driver is made for it.
    let library = unsafe { Library::new(place) }.map_err(|cause| cause.to_string())?;
    let functions = Functions::of(&library);
    if functions.cuInit.is_none() {
        return Err("it has no function cuInit".to_owned());
    }
    std::mem::forget(library); // the functions are in it
    Ok(functions)
}

/// The cause that tells most, of one for each place: of the first library that is there and does not load; where there is
/// none at all, that of the first place.
fn telling(places: &[PathBuf], mut causes: Vec<String>) -> String {
    let absent = |(place, cause): (&PathBuf, &String)| {
        // In the loader's words. A library that is there and needs another that is not is spoken of by the other's name.
        cause.contains(&*place.to_string_lossy()) && cause.ends_with("No such file or directory")
    };
    let there = places.iter().zip(&causes).position(|both| !absent(both));
    let at = there.unwrap_or(0);
    let cause = causes.swap_remove(at);
    let place = places[at].to_string_lossy();
    if at == 0 || cause.contains(&*place) { cause } else { format!("{place}: {cause}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_does_not_load_tells_more_than_none() {
        let places = ["libcuda.so.1", "/a/libcuda.so.1", "/b/libcuda.so.1"].map(PathBuf::from);
        let absent =
            |place: &str| format!("{place}: cannot open shared object file: No such file or directory");
        let none = [absent("libcuda.so.1"), absent("/a/libcuda.so.1"), absent("/b/libcuda.so.1")];
        assert_eq!(telling(&places, none.to_vec()), none[0]);
        for (at, cause, told) in [
            (0, absent("libnvidia.so"), absent("libnvidia.so")),
            (1, "/a/libcuda.so.1: file too short".to_owned(), "/a/libcuda.so.1: file too short".to_owned()),
            (2, absent("libnvidia.so"), format!("/b/libcuda.so.1: {}", absent("libnvidia.so"))),
            (
                2,
                "it has no function cuInit".to_owned(),
                "/b/libcuda.so.1: it has no function cuInit".to_owned(),
            ),
        ] {
            let mut causes = none.to_vec();
            causes[at] = cause;
            assert_eq!(telling(&places, causes), told);
        }
    }
}
