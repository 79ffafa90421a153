//! Standard output of a command that ends, and its sentences on standard error.
//!
//! Owns: what counts as written. Never: what is said.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// Writes and flushes. Help goes to a pipe as often as to a terminal, and whoever closes that wants no more of it.
///
/// # Errors
/// A sentence: nobody may take for said what a full disk did not take.
pub fn write(bytes: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("Standard output takes no more ({error}): make room where it goes to."))
        }
        _ => Ok(()),
    }
}

/// A sentence on standard error, if that takes it: nobody is left to tell that it does not, and `eprintln!` would panic.
pub fn complain(sentence: impl Display) {
    let _ = writeln!(io::stderr(), "tartlet: {sentence}");
}
