//! How a process ends whose device is lost.
//!
//! Owns: whether the driver may have a part in the end. Never: the exit status, nor what is said before.
//!
//! The usual exit runs what libraries have registered for it. The driver's part waits for its device, and one that hangs would
//! keep the process for ever, where whoever starts it again waits for its end.

use std::ffi::c_int;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// From now on the process ends without the driver's part.
pub(super) fn without_the_driver() {
    AT_ONCE.store(true, Ordering::Relaxed);
}

/// Called last, with the exit status: returns if the process may end as usual. What was printed is out either way; the
/// log and standard error keep nothing back.
pub fn leave(status: u8) {
    // SAFETY: it is the C library's, and may be called at any time.
    unsafe extern "C" {
        safe fn _exit(status: c_int) -> !;
    }
    if AT_ONCE.load(Ordering::Relaxed) {
        // A closed pipe is no error here: nobody listens.
        let _ = std::io::stdout().flush();
        _exit(status.into());
    }
}
