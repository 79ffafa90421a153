//! The CUDA driver, bound at run time.
//!
//! Owns: the symbols `cu*` and where they lead. Never: a call of one; `device.rs` and its neighbours make those.
//!
//! `cust` calls plain `cu*` symbols. Each of them is defined here as one jump through a slot; [`load`] opens the
//! driver's library and fills the slots. So the binary starts on a machine without a driver. The jumps touch no
//! argument, whatever the function's signature is.
//!
//! To add a function: call it, build, and put the name that the linker misses into the list.

use super::Error;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Where the driver's library may lie, in the order of trying: on the loader's path, where containers mount it, and
/// where JetPack 5 and 6 keep it.
const PLACES: [&str; 4] = [
    "libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
];

type Slot = AtomicPtr<c_void>;

/// What a function of the driver answers until [`load`] has succeeded.
extern "C" fn not_loaded() -> i32 {
    super::error::NOT_INITIALIZED
}

/// What a function answers that the installed driver does not have.
extern "C" fn not_exported() -> i32 {
    super::error::SYMBOL_NOT_FOUND
}

macro_rules! driver_functions {
    ($($name:ident)*) => {
        #[allow(non_upper_case_globals, reason = "named like the functions that lead through them")]
        mod slot {
            $(pub static $name: super::Slot = super::Slot::new(super::not_loaded as *mut _);)*
        }

        /// Names, as the loader wants them, and slots.
        static SLOTS: &[(&str, &Slot)] = &[$((concat!(stringify!($name), "\0"), &slot::$name)),*];

        $(
            // SAFETY: nothing else in the binary has the name, which is what `cust` calls.
            #[unsafe(no_mangle)]
            // SAFETY: it is the jump alone: no argument, no register of the caller's and no stack is touched. x16 is
            // the register that the procedure call standard of aarch64 leaves to such jumps.
            #[unsafe(naked)]
            #[allow(non_snake_case, reason = "the driver's name")]
            extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                std::arch::naked_asm!("jmp qword ptr [rip + {}]", sym slot::$name);
                #[cfg(target_arch = "aarch64")]
                std::arch::naked_asm!(
                    "adrp x16, {0}",
                    "ldr x16, [x16, :lo12:{0}]",
                    "br x16",
                    sym slot::$name
                );
            }
        )*
    };
}

driver_functions! {
    cuCtxSetCurrent
    cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetName
    cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDeviceTotalMem_v2
    cuDriverGetVersion
    cuEventCreate cuEventDestroy_v2 cuEventElapsedTime cuEventQuery cuEventRecord
    cuFuncGetAttribute cuFuncSetAttribute
    cuGetErrorName cuGetErrorString
    cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch
    cuInit
    cuLaunchKernel
    cuMemAllocHost_v2 cuMemAlloc_v2 cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2
    cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemsetD8Async
    cuModuleGetFunction cuModuleLoadDataEx cuModuleUnload
    cuStreamBeginCapture_v2 cuStreamCreate cuStreamDestroy_v2 cuStreamEndCapture
}

/// Opens the driver's library, here alone if `path` is given, and binds the functions. The first call decides; later
/// ones answer what it found.
pub fn load(path: Option<&Path>) -> Result<(), Error> {
    static FOUND: OnceLock<Result<(), Error>> = OnceLock::new();
    FOUND.get_or_init(|| bind(path)).clone()
}

fn bind(path: Option<&Path>) -> Result<(), Error> {
    let places = match path {
        Some(path) => vec![path.to_owned()],
        None => PLACES.iter().map(PathBuf::from).collect(),
    };
    let mut causes = Vec::new();
    for place in &places {
        // SAFETY: the library's initialisers run; that of the driver is made for it.
        match unsafe { libloading::Library::new(place) } {
            Ok(library) => return fill(library, place),
            Err(cause) => causes.push(cause.to_string()),
        }
    }
    // What the first place says matters most: a library that is there and does not fit, or that nothing is there.
    Err(Error::NoDriver { given: path.map(Path::to_owned), why: causes.swap_remove(0) })
}

fn fill(library: libloading::Library, place: &Path) -> Result<(), Error> {
    let find = |name: &str| {
        // SAFETY: only the address is taken; how the function is called is `cust`'s to know.
        unsafe { library.get::<*mut c_void>(name.as_bytes()) }.map(|symbol| *symbol).ok()
    };
    if find("cuInit\0").is_none() {
        let why = "it has no function cuInit".to_owned();
        return Err(Error::NoDriver { given: Some(place.to_owned()), why });
    }
    for (name, slot) in SLOTS {
        slot.store(find(name).unwrap_or(not_exported as *mut c_void), Ordering::Release);
    }
    std::mem::forget(library); // the slots point into it
    Ok(())
}
