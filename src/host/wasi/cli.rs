//! `wasi:cli`: arguments, an empty environment, exit, and standard streams: input closed, output into the log.
//!
//! Owns: [`Log`], a guest's output as lines. Never: a terminal; there is none.

use super::streams::{InputStream, OutputStream};
use crate::host::abi::Own;
use crate::host::{Cx, Interface, Trap};
use crate::identity::InstanceId;
use crate::limits;
use crate::quota::{Name, Quota, Quotas};
use crate::runtime::account::Account;
use crate::runtime::table::Resource;
use std::collections::VecDeque;
use std::sync::Arc;

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
    /// Where it counts what the subject's instances print together, ...
    account: Arc<Account>,
    /// ... and what they may.
    subject: Quota,
    /// The last lines of standard error: what a panic says before it aborts.
    last_words: VecDeque<String>,
}

impl Log {
    pub fn new(instance: InstanceId, quotas: &Quotas, account: Arc<Account>) -> Log {
        let (full, subject) = (quotas.over(Name::LogBytes), quotas.over(Name::SubjectLogBytes));
        let (out, err, last_words) = (Vec::new(), Vec::new(), VecDeque::new());
        Log { instance, out, err, left: full.limit, full, account, subject, last_words }
    }

    /// # Errors
    /// With this the instance, or its subject, would have printed more than it may.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Trap> {
        let len = bytes.len() as u64;
        self.charge(len, len)?;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = self.line(stream);
            let whole = piece.ends_with(b"\n");
            line.extend_from_slice(piece);
            if whole || line.len() >= limits::LOG_LINE_BYTES {
                let (text, more) = self.finish(stream);
                if !text.is_empty() {
                    self.charge(more, more + limits::LOG_LINE_TAG_BYTES as u64)?;
                    self.print(stream, text);
                }
            }
        }
        Ok(())
    }

    /// What the guest last said on standard error, in one line; empty if it said nothing.
    pub fn last_words(&mut self) -> String {
        self.end(Stream::Err);
        Vec::from(std::mem::take(&mut self.last_words)).join(" ")
    }

    fn charge(&mut self, own: u64, subjects: u64) -> Result<(), Quota> {
        let left = self.left.checked_sub(own).ok_or(self.full)?;
        self.account.print(subjects, self.subject)?;
        self.left = left;
        Ok(())
    }

    /// The line as it is to stand in the log, and how many bytes longer than what was charged.
    fn finish(&mut self, stream: Stream) -> (String, u64) {
        let bytes = std::mem::take(self.line(stream));
        let text = escaped(&bytes);
        let more = text.len().saturating_sub(bytes.len()) as u64;
        (text, more)
    }

    /// Prints a line that the guest will not finish. It cannot be told any more that there is no room; its subject is.
    fn end(&mut self, stream: Stream) {
        let (text, more) = self.finish(stream);
        if !text.is_empty() {
            self.account.printed(more + limits::LOG_LINE_TAG_BYTES as u64, self.subject);
            self.print(stream, text);
        }
    }

    fn line(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        }
    }

    fn print(&mut self, stream: Stream, text: String) {
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
        self.end(Stream::Out);
        self.end(Stream::Err);
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
    use crate::clock;

    fn log(quotas: &Quotas, account: &Arc<Account>) -> Log {
        Log::new(InstanceId::random(), quotas, account.clone())
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
        assert_eq!(another.write(Stream::Out, b"01234"), Ok(()));
    }

    /// The story: one short life after another printed as much as an instance may, and each end gave it back; the journal grew.
    #[test]
    fn what_was_printed_counts_after_the_end_and_time_gives_it_back() {
        let hold = clock::fake::set();
        let (most, second) = (36_000_000, std::time::Duration::from_secs(1));
        let quotas = Quotas::default().with(Name::SubjectLogBytes, most);
        let account = Account::alone();
        let full = Err(Trap::Quota(quotas.over(Name::SubjectLogBytes)));
        let pass = |time| {
            smol::block_on(smol::future::or(clock::at(clock::now() + time), async {
                smol::future::yield_now().await;
                clock::fake::skip();
                std::future::pending().await
            }))
        };
        let line = [b"x".repeat(3_999), b"\n".to_vec()].concat();
        let counts = (line.len() + limits::LOG_LINE_TAG_BYTES) as u64;
        let lives = |most: u64| {
            let printed = |_: &u64| log(&quotas, &account).write(Stream::Out, &line);
            let lives = (0..most).map(|life| printed(&life)).take_while(Result::is_ok).count() as u64;
            (lives, printed(&0))
        };
        assert_eq!(lives(100_000), (most / counts, full.clone()));
        assert!(account.owes(), "it is kept, though nobody of the subject is left");
        pass(10 * second);
        assert_eq!(lives(100_000), ((most % counts + 10 * most / 3600) / counts, full.clone()));
        pass(limits::LOG_BYTES_BACK_WITHIN);
        assert!(!account.owes());
        assert_eq!(lives(100_000), (most / counts, full), "and no more is saved up");
        drop(hold);
    }

    #[test]
    fn what_is_written_out_counts_as_it_is_written() {
        let quotas = Quotas::default().with(Name::LogBytes, 100).with(Name::SubjectLogBytes, 1000);
        let account = Account::alone();
        let mut log = log(&quotas, &account);
        let full = Err(Trap::Quota(quotas.over(Name::LogBytes)));
        assert_eq!(log.write(Stream::Out, &[b"\0".repeat(15), b"\n".to_vec()].concat()), Ok(()), "75 bytes");
        assert_eq!(log.write(Stream::Out, &[b"\0".repeat(6), b"\n".to_vec()].concat()), full, "30 bytes");
        drop(log);
        // Nobody can be told of a line that is not ended; it counts all the same.
        let mut log = super::tests::log(&quotas.with(Name::LogBytes, 1000), &account);
        assert_eq!(log.write(Stream::Out, &b"\0".repeat(200)), Ok(()));
        drop(log);
        let mut log = super::tests::log(&quotas, &account);
        assert_eq!(log.write(Stream::Out, b"x"), Err(Trap::Quota(quotas.over(Name::SubjectLogBytes))));
    }
}
