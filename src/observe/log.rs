//! The log: lines on standard error, level first, for a terminal and for the journal alike.
//!
//! Owns: how a line looks and which are shown. Never: what is worth a line; and no token and no prompt is ever
//! in one (their types do not print).

use std::io::IsTerminal;
use tracing::Level;

/// Starts the process-wide log. Called once, before anything else can speak; a second call is ignored, so that
/// tests may start several servers in one process.
pub fn start(level: Level) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // The journal stamps lines itself; a terminal wants the time since the start.
    let _ = match std::io::stderr().is_terminal() {
        true => lines.with_timer(tracing_subscriber::fmt::time::uptime()).try_init(),
        false => lines.without_time().try_init(),
    };
}
