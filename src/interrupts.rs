//! The signals that end a command before its work is done.
//!
//! Owns: which they are, and the status that a command then has. Never: what is removed or said.

use async_signal::{Signal, Signals};
use std::io;

/// Ctrl-C, a supervisor's word, a terminal that is gone. Not what our starter has us ignore, as `nohup` does.
pub fn interrupts() -> io::Result<Signals> {
    let ignored = ignored();
    let heard = |signal: &Signal| ignored & 1 << (*signal as i32 - 1) == 0;
    Signals::new([Signal::Int, Signal::Term, Signal::Hup].into_iter().filter(heard))
}

/// As shells have it: 128 and the signal's number.
pub fn status(signal: Signal) -> i32 {
    128 + signal as i32
}

/// A bit for each signal that is ignored, the lowest for the first.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default(); // without /proc we hear all
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}
