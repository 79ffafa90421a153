//! What can go wrong between us and the device, sorted by who must act.
//!
//! Owns: the sentences, and which status of the driver means what. Never: what is done about it.

use super::driver;
use std::ffi::CStr;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// CUDA 11.4: the first whose compiler reads PTX 7.4. JetPack 5 has it, on aarch64 and glibc 2.31: a binary for that is built
/// there, since one that was built beside a newer glibc does not start (`tests/gpu/check.sh` says so).
pub const DRIVER_AT_LEAST: i32 = 11_040;
/// CUDA 12.3: the first that records launches which overlap. The devices that know them, and a version of PTX that is older.
pub const OVERLAP_DRIVER: i32 = 12_030;
pub const OVERLAP_CAPABILITY: (u32, u32) = (9, 0);
/// The kernels are written for this compute capability and any later one.
pub const CAPABILITY_AT_LEAST: (u32, u32) = (8, 0);

/// What a call of the driver returns (CUresult of cuda.h): any number, since younger drivers have more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Status(pub i32);

impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const NOT_INITIALIZED: Status = Status(3);
    pub const SYMBOL_NOT_FOUND: Status = Status(SYMBOL_NOT_FOUND);
    pub const NOT_READY: Status = Status(600);
}

// The other statuses that are told apart here.
const OUT_OF_MEMORY: i32 = 2;
const STUB_LIBRARY: i32 = 34;
const DEVICE_UNAVAILABLE: i32 = 46;
const NO_DEVICE: i32 = 100;
const JIT_COMPILER_NOT_FOUND: i32 = 221;
const UNSUPPORTED_PTX_VERSION: i32 = 222;
const SYMBOL_NOT_FOUND: i32 = 302;
const SYSTEM_DRIVER_MISMATCH: i32 = 803;

#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    // The operator: something is to be installed, chosen or freed.
    /// No library, or one that is no driver. `given`: the operator named it.
    NoDriver {
        given: Option<PathBuf>,
        why: String,
    },
    /// The driver offers this version of CUDA (11040 is 11.4).
    DriverTooOld {
        version: i32,
    },
    /// The library and the kernel's module are of different drivers.
    DriverMismatch,
    /// The driver has no function of this name.
    Absent {
        call: &'static str,
    },
    NoDevice,
    /// Another process has it, or nobody may.
    Busy,
    DeviceTooOld {
        name: String,
        capability: (u32, u32),
    },
    /// The driver does not start.
    NotReady {
        code: i32,
    },
    /// No room for a buffer, or (`wanted` is 0) for what `call` takes beside its buffers.
    OutOfMemory {
        call: &'static str,
        wanted: usize,
        free: usize,
    },

    // Whoever writes kernels and launches.
    /// The driver's compiler did not take a module; `log` is what it said.
    Kernel {
        module: String,
        code: i32,
        log: String,
    },
    /// A module has no such kernel, or a launch does not fit its kernel.
    Launch {
        kernel: String,
        why: String,
    },
    /// A check cannot be made: the driver did not take this kernel of it.
    Unloaded {
        kernel: String,
    },
    /// A call was refused that should not have been.
    Refused {
        call: &'static str,
        code: i32,
    },

    // Nobody: the device is beyond this process, which must start afresh.
    Lost {
        call: &'static str,
        code: i32,
    },
    /// A step did not end in the time it was given.
    Hung {
        after: Duration,
    },
}

impl Error {
    /// Whether the device can no longer be used by this process: not even its memory is given back.
    pub fn is_final(&self) -> bool {
        matches!(self, Error::Lost { .. } | Error::Hung { .. })
    }

    /// What `code`, answered by `call`, means. Which calls may answer "not ready" is theirs to know.
    fn of(call: &'static str, code: i32) -> Error {
        match code {
            // Its size is filled in by the allocation that knows it.
            OUT_OF_MEMORY => Error::OutOfMemory { call, wanted: 0, free: 0 },
            STUB_LIBRARY => {
                Error::NoDriver { given: None, why: "the first libcuda.so.1 is a toolkit's stub".to_owned() }
            }
            NO_DEVICE => Error::NoDevice,
            DEVICE_UNAVAILABLE => Error::Busy,
            SYMBOL_NOT_FOUND => Error::Absent { call },
            SYSTEM_DRIVER_MISMATCH => Error::DriverMismatch,
            code if lost(code) => Error::Lost { call, code },
            code if call == "cuInit" => Error::NotReady { code },
            code => Error::Refused { call, code },
        }
    }
}

/// Statuses after which every further call fails: uncorrectable memory and links (214, 220, 226), what a kernel did
/// (700, 702, 710, 714 to 719, 721), a context that is gone or was taken away (709, 810).
fn lost(code: i32) -> bool {
    matches!(code, 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 810)
}

/// Ok for success, else what the status means.
pub(super) fn judge(call: &'static str, status: Status) -> Result<(), Error> {
    if status == Status::SUCCESS { Ok(()) } else { Err(Error::of(call, status.0)) }
}

/// The driver's name of a status, without what all names begin with.
fn name(code: i32) -> String {
    let mut name = std::ptr::null();
    // SAFETY: `name` is written, if at all, with a pointer to a text that lives as long as the driver.
    let known = unsafe { driver::cuGetErrorName(Status(code), &mut name) } == Status::SUCCESS;
    if !known || name.is_null() {
        return format!("status {code}");
    }
    // SAFETY: the driver's own text, with its NUL.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    format!("{}, status {code}", name.trim_start_matches("CUDA_ERROR_"))
}

/// 11040 as "11.4".
pub(super) fn version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDriver { given: None, why } => write!(
                f,
                "No CUDA driver is found ({why}): install NVIDIA's driver, or say where its library lies with --libcuda PATH."
            ),
            Error::NoDriver { given: Some(path), why } => {
                write!(f, "{} is no CUDA driver ({why}): name NVIDIA's libcuda.so.1.", path.display())
            }
            Error::DriverTooOld { version: has } => write!(
                f,
                "The driver offers CUDA {}, but the kernels need {} or later: install a newer driver.",
                version(*has),
                version(DRIVER_AT_LEAST)
            ),
            Error::DriverMismatch => f.write_str(
                "The driver's library and its kernel module are of different versions: restart the machine, or install both anew.",
            ),
            Error::Absent { call } => {
                write!(f, "The driver has no function {call}: install a newer driver.")
            }
            Error::NoDevice => f.write_str(
                "The driver sees no GPU: see whether nvidia-smi lists one, and that CUDA_VISIBLE_DEVICES does not hide it.",
            ),
            Error::Busy => f.write_str(
                "The GPU is kept by another process or by its compute mode: end that process, or run nvidia-smi -c DEFAULT.",
            ),
            Error::DeviceTooOld { name, capability: (major, minor) } => write!(
                f,
                "The GPU {name} has compute capability {major}.{minor}, but the kernels need {}.{} or later: use another GPU.",
                CAPABILITY_AT_LEAST.0, CAPABILITY_AT_LEAST.1
            ),
            Error::NotReady { code } => write!(
                f,
                "The driver does not start ({}): see whether nvidia-smi works for this user; if it does not, restart the machine.",
                name(*code)
            ),
            Error::OutOfMemory { call, wanted: 0, .. } => {
                write!(f, "There is no memory left for what {call} needs: end what else uses the GPU and the machine.")
            }
            Error::OutOfMemory { wanted, free, .. } => write!(
                f,
                "The GPU has no room for {wanted} bytes, {free} are free: end what else uses it, or ask for less."
            ),
            Error::Kernel { module, code, log } => {
                let said = if log.is_empty() { "it says nothing more" } else { log.trim_end_matches('.') };
                let mend = match *code {
                    JIT_COMPILER_NOT_FOUND => "Install libnvidia-ptxjitcompiler of the same driver.",
                    UNSUPPORTED_PTX_VERSION => "Install a newer driver.",
                    _ => "Please report this with the GPU's name and the driver's version.",
                };
                write!(f, "The driver's compiler does not take the kernel {module} ({}): {said}. {mend}", name(*code))
            }
            Error::Launch { kernel, why } => {
                write!(f, "The kernel {kernel} cannot be launched so: {why}. This is a mistake of ours; please report it.")
            }
            Error::Unloaded { kernel } => {
                write!(f, "It needs the kernel {kernel}, which was not loaded: its own row says why.")
            }
            Error::Refused { call, code } => {
                write!(f, "The driver refuses {call} ({}). This is a mistake of ours; please report it.", name(*code))
            }
            Error::Lost { call, code } => write!(
                f,
                "The GPU is lost, as {call} found ({}): start the program again; if it happens again, the kernel log (dmesg) says more.",
                name(*code)
            ),
            Error::Hung { after } => write!(
                f,
                "The GPU did not end a step within {} s: start the program again; if it happens again, restart the machine.",
                after.as_secs_f32()
            ),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_mean_what_the_operator_must_do() {
        for (code, error) in [
            (2, Error::OutOfMemory { call: "cuInit", wanted: 0, free: 0 }),
            (999, Error::NotReady { code: 999 }),
            (46, Error::Busy),
            (100, Error::NoDevice),
            (302, Error::Absent { call: "cuInit" }),
            (803, Error::DriverMismatch),
            (700, Error::Lost { call: "cuInit", code: 700 }),
            (719, Error::Lost { call: "cuInit", code: 719 }),
        ] {
            assert_eq!(judge("cuInit", Status(code)), Err(error), "{code}");
        }
        assert_eq!(judge("cuInit", Status(0)), Ok(()));
        assert_eq!(
            judge("cuLaunchKernel", Status(1)),
            Err(Error::Refused { call: "cuLaunchKernel", code: 1 })
        );
    }

    /// Without a driver there are no names, and no sentence may need one.
    #[test]
    fn every_error_is_a_sentence_without_a_driver() {
        let text = || "x".to_owned();
        for error in [
            Error::NoDriver { given: None, why: text() },
            Error::NoDriver { given: Some("/a".into()), why: text() },
            Error::DriverTooOld { version: 11_020 },
            Error::DriverMismatch,
            Error::Absent { call: "cuInit" },
            Error::NoDevice,
            Error::Busy,
            Error::DeviceTooOld { name: text(), capability: (7, 5) },
            Error::NotReady { code: 999 },
            Error::OutOfMemory { call: "cuMemAlloc_v2", wanted: 2, free: 1 },
            Error::OutOfMemory { call: "cuGraphLaunch", wanted: 0, free: 0 },
            Error::Kernel { module: text(), code: 218, log: text() },
            Error::Launch { kernel: text(), why: text() },
            Error::Unloaded { kernel: text() },
            Error::Refused { call: "cuInit", code: 1 },
            Error::Lost { call: "cuInit", code: 700 },
            Error::Hung { after: Duration::from_millis(1500) },
        ] {
            let sentence = error.to_string();
            assert!(sentence.ends_with('.') && !sentence.contains('\n'), "{sentence}");
        }
        assert!(
            Error::DriverTooOld { version: 11_020 }
                .to_string()
                .contains("CUDA 11.2, but the kernels need 11.4")
        );
        assert!(Error::Lost { call: "cuInit", code: 700 }.to_string().contains("status 700"));
    }
}
