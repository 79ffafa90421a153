//! How long the system lets a thread run before another has its turn.
//!
//! Owns: the one call for it. Never: a thread, or which threads are hurried.
//!
//! Linux's scheduler (EEVDF, since 6.6) lets whoever runs finish its turn, some 3 ms, before one who wakes gets the core,
//! however nice the one and however urgent the other. A batch wakes its threads at every barrier: a single busy thread
//! of the lowest priority made a token three times as long. Who asks for shorter turns (since 6.12) interrupts the
//! longer ones. Older kernels take the request and have no use for it; their wake-ups look at priorities alone.

use std::io;
use std::time::Duration;

/// For threads that compute little at a time, and are waited for.
pub const SHORT: Duration = Duration::from_micros(100);
/// As the system has it by itself.
pub const USUAL: Duration = Duration::from_millis(3);

/// The kernel's `struct sched_attr`, in its first size but for the last two words.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64, // the length of a turn, in nanoseconds
    deadline: u64,
    period: u64,
}

#[cfg(target_arch = "x86_64")]
const SCHED_SETATTR: std::ffi::c_long = 314;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SCHED_SETATTR: std::ffi::c_long = 274;

/// Keeps the policy that the operator has chosen.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
const KEEP_POLICY: u64 = 0x08;

/// From now on the calling thread, and those that it starts, have this niceness and turns of this length.
///
/// # Errors
/// What the system says, as to one who asks for more urgency than it may have.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
pub fn take(nice: i32, length: Duration) -> io::Result<()> {
    unsafe extern "C" {
        fn syscall(number: std::ffi::c_long, ...) -> std::ffi::c_long;
    }
    let size = size_of::<Attributes>() as u32;
    let runtime = length.as_nanos() as u64;
    let attributes = Attributes { size, flags: KEEP_POLICY, nice, runtime, ..Attributes::default() };
    let (this, flags) = (0u32, 0u32);
    // SAFETY: sched_setattr(2) reads as many bytes of the attributes as they say that they have, and keeps nothing.
    match unsafe { syscall(SCHED_SETATTR, this, &raw const attributes, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Elsewhere nobody is asked.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
pub fn take(_nice: i32, _length: Duration) -> io::Result<()> {
    Ok(())
}
