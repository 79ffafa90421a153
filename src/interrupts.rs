//! The signals that end a command before its work is done, or a server.
//!
//! Owns: which they are, the thread that hears them, and how a command's process then ends. Never: what is removed before, or
//! how a server ends.

use async_signal::{Signal, Signals};
use smol::stream::StreamExt;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Nobody may read what is said any more, and whoever waits to write it holds standard error: the end waits so long for it.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// The command, or the server, is to end.
pub struct Interrupt(Signal);

/// Calls `end` on a thread of this name at the first of Ctrl-C, a supervisor's word, a terminal that is gone. Not what our
/// starter has us ignore, as `nohup` does.
pub fn when_interrupted(name: &str, end: impl FnOnce(Interrupt) + Send + 'static) -> io::Result<()> {
    hear(name, &[], end)
}

/// As [`when_interrupted`], for a server: a script starts it with Ctrl-C ignored, and may still mean it to end by that signal.
pub fn when_told_to_end(name: &str, end: impl FnOnce(Interrupt) + Send + 'static) -> io::Result<()> {
    hear(name, &[Signal::Int, Signal::Term], end)
}

/// Hears these even if they are ignored.
fn hear(name: &str, even: &[Signal], end: impl FnOnce(Interrupt) + Send + 'static) -> io::Result<()> {
    let ignored = ignored();
    let heard = |signal: &Signal| even.contains(signal) || ignored & 1 << (*signal as i32 - 1) == 0;
    let mut signals = Signals::new([Signal::Int, Signal::Term, Signal::Hup].into_iter().filter(heard))?;
    let watch = move || {
        // Not `smol::block_on`, which would have this thread wait for everybody's sockets.
        if let Some(Ok(signal)) = smol::future::block_on(signals.next()) {
            end(Interrupt(signal));
        }
    };
    thread::Builder::new().name(name.into()).spawn(watch).map(drop)
}

impl Interrupt {
    /// Ends the process with a sentence, and with 128 and the signal's number, as shells have it.
    pub fn leave(self, sentence: String) -> ! {
        let (said, told) = mpsc::sync_channel(1);
        let say = move || {
            let mut stderr = io::stderr();
            let over = if stderr.is_terminal() { "\r\x1b[K" } else { "" }; // how far it was
            let _ = writeln!(stderr, "{over}tartlet: {sentence}"); // nobody is left to tell
            let _ = said.send(());
        };
        if thread::Builder::new().spawn(say).is_ok() {
            let _ = told.recv_timeout(SAID_WITHIN);
        }
        std::process::exit(128 + self.0 as i32);
    }
}

/// A bit for each signal that is ignored, the lowest for the first.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default(); // without /proc we hear all
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}
