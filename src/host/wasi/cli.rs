//! `wasi:cli`: arguments, an empty environment, exit, and standard streams: input closed, output into the log.
//!
//! Owns: [`Log`], a guest's output as lines. Never: a terminal; there is none.

use super::streams::{InputStream, OutputStream};
use crate::host::abi::Own;
use crate::host::{Cx, Interface, Trap};
use crate::identity::InstanceId;
use crate::limits;
use crate::quota::{Name, Quota, Quotas, Share};
use crate::runtime::table::Resource;
use std::collections::VecDeque;

pub fn interfaces() -> Vec<Interface> {
    vec![
        Interface::new("wasi:cli/environment@0.2")
            .call("get-environment", environment)
            .call("get-arguments", arguments)
            .call("initial-cwd", initial_cwd),
        Interface::new("wasi:cli/exit@0.2").call("exit", exit).call("exit-with-code", exit_with_code),
        Interface::new("wasi:cli/stdin@0.2").call("get-stdin", stdin),
        Interface::new("wasi:cli/stdout@0.2").call("get-stdout", stdout),
        Interface::new("wasi:cli/stderr@0.2").call("get-stderr", stderr),
        Interface::new("wasi:cli/terminal-input@0.2").resource::<TerminalInput>(),
        Interface::new("wasi:cli/terminal-output@0.2").resource::<TerminalOutput>(),
        Interface::new("wasi:cli/terminal-stdin@0.2").call("get-terminal-stdin", terminal_input),
        Interface::new("wasi:cli/terminal-stdout@0.2").call("get-terminal-stdout", terminal_output),
        Interface::new("wasi:cli/terminal-stderr@0.2").call("get-terminal-stderr", terminal_output),
    ]
}

fn environment(_: &mut Cx) -> Result<Vec<(String, String)>, Trap> {
    Ok(vec![])
}

/// As a C program has them: a name for itself first.
fn arguments(cx: &mut Cx) -> Result<Vec<String>, Trap> {
    Ok(std::iter::once("inferlet".to_owned()).chain(cx.arguments.iter().cloned()).collect())
}

fn initial_cwd(_: &mut Cx) -> Result<Option<String>, Trap> {
    Ok(None)
}

fn exit(_: &mut Cx, status: Result<(), ()>) -> Result<(), Trap> {
    Err(Trap::Exit { ok: status.is_ok() })
}

fn exit_with_code(_: &mut Cx, code: u8) -> Result<(), Trap> {
    Err(Trap::Exit { ok: code == 0 })
}

fn stdin(_: &mut Cx) -> Result<Own<InputStream>, Trap> {
    Ok(Own(InputStream::Closed))
}

fn stdout(_: &mut Cx) -> Result<Own<OutputStream>, Trap> {
    Ok(Own(OutputStream::Log(Stream::Out)))
}

fn stderr(_: &mut Cx) -> Result<Own<OutputStream>, Trap> {
    Ok(Own(OutputStream::Log(Stream::Err)))
}

/// No value of it exists.
enum TerminalInput {}

impl Resource for TerminalInput {
    const NAME: &'static str = "terminal-input";
}

/// No value of it exists.
enum TerminalOutput {}

impl Resource for TerminalOutput {
    const NAME: &'static str = "terminal-output";
}

fn terminal_input(_: &mut Cx) -> Result<Option<Own<TerminalInput>>, Trap> {
    Ok(None)
}

fn terminal_output(_: &mut Cx) -> Result<Option<Own<TerminalOutput>>, Trap> {
    Ok(None)
}

// ---- the log ----

/// Fuel of a byte that is escaped, and of a line of the log that is written: some 5 µs.
const PRINTED_BYTE_FUEL: u64 = 8;
const PRINTED_LINE_FUEL: u64 = 4_000;

/// Prints for a guest, which pays for it.
pub fn print(cx: &mut Cx, stream: Stream, bytes: &[u8]) -> Result<(), Trap> {
    cx.owe(bytes.len(), PRINTED_BYTE_FUEL);
    cx.owe(bytes.iter().filter(|byte| **byte == b'\n').count(), PRINTED_LINE_FUEL);
    cx.log.write(stream, bytes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// What a guest prints, as lines in the server's log: whole, tagged, escaped, bounded.
pub struct Log {
    instance: InstanceId,
    out: Vec<u8>,
    err: Vec<u8>,
    /// Bytes that may still be printed.
    left: u64,
    full: Quota,
    /// What the subject's instances print together.
    share: Share,
    /// The last lines of standard error: what a panic says before it aborts.
    last_words: VecDeque<String>,
}

impl Log {
    pub fn new(instance: InstanceId, quotas: &Quotas, share: Share) -> Log {
        let full = quotas.over(Name::LogBytes);
        let (out, err, last_words) = (Vec::new(), Vec::new(), VecDeque::new());
        Log { instance, out, err, left: full.limit, full, share, last_words }
    }

    /// # Errors
    /// With this the instance, or its subject, would have printed more than it may.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Trap> {
        let len = bytes.len() as u64;
        let left = self.left.checked_sub(len).ok_or(self.full)?;
        self.share.take(len)?;
        self.left = left;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = self.line(stream);
            let whole = piece.ends_with(b"\n");
            line.extend_from_slice(piece);
            if whole || line.len() >= limits::LOG_LINE_BYTES {
                self.print(stream);
            }
        }
        Ok(())
    }

    /// What the guest last said on standard error, in one line; empty if it said nothing.
    pub fn last_words(&mut self) -> String {
        self.print(Stream::Err);
        Vec::from(std::mem::take(&mut self.last_words)).join(" ")
    }

    fn line(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        }
    }

    fn print(&mut self, stream: Stream) {
        let bytes = std::mem::take(self.line(stream));
        let text = escaped(&bytes);
        if text.is_empty() {
            return;
        }
        match stream {
            Stream::Out => tracing::info!(target: "guest", instance = %self.instance, "{text}"),
            Stream::Err => {
                tracing::warn!(target: "guest", instance = %self.instance, "{text}");
                if text.starts_with("note: run with `RUST_BACKTRACE") {
                    return;
                }
                if text.contains("panicked at") {
                    self.last_words.clear();
                }
                if self.last_words.len() == LAST_WORDS {
                    self.last_words.pop_front();
                }
                self.last_words.push_back(text);
            }
        }
    }
}

/// Lines of standard error that an abort is reported with.
const LAST_WORDS: usize = 4;

/// Unfinished lines are printed at the end.
impl Drop for Log {
    fn drop(&mut self) {
        self.print(Stream::Out);
        self.print(Stream::Err);
        self.share.give(self.full.limit - self.left);
    }
}

/// A line without its end, control characters written out so that no guest can forge lines or drive a terminal.
fn escaped(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => safe.push(' '),
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                safe.extend(c.escape_default());
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Account;

    fn log(quotas: &Quotas, account: &Account) -> Log {
        Log::new(InstanceId::random(), quotas, account.log(quotas))
    }

    #[test]
    fn a_guest_cannot_forge_a_line() {
        assert_eq!(escaped(b"a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb");
        assert_eq!(escaped("x\u{202e}y\0".as_bytes()), "x\\u{202e}y\\u{0}");
    }

    #[test]
    fn last_words_start_at_the_panic() {
        let mut log = log(&Quotas::default(), &Account::alone());
        log.write(Stream::Err, b"before\n\nthread 'main' panicked at src/lib.rs:3:5:\nno ").unwrap();
        log.write(Stream::Err, b"luck\nnote: run with `RUST_BACKTRACE=1`\n").unwrap();
        assert_eq!(log.last_words(), "thread 'main' panicked at src/lib.rs:3:5: no luck");
    }

    #[test]
    fn printing_is_bounded() {
        let quotas = Quotas::default().with(Name::LogBytes, 10).with(Name::SubjectLogBytes, 15);
        let account = Account::alone();
        let mut log = log(&quotas, &account);
        assert_eq!(log.write(Stream::Out, b"0123456789"), Ok(()));
        assert_eq!(log.write(Stream::Out, b"x"), Err(Trap::Quota(quotas.over(Name::LogBytes))));
        let mut another = super::tests::log(&quotas, &account);
        let full = Err(Trap::Quota(quotas.over(Name::SubjectLogBytes)));
        assert_eq!(another.write(Stream::Out, b"012345"), full);
        drop(log);
        assert_eq!(another.write(Stream::Out, b"012345"), Ok(()));
    }
}
