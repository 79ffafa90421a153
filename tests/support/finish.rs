//! Commands that take long, and must end.
//!
//! Owns: their output and their end. Never: what they do.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A self-test on the emulator takes 20 s of a core, which others may share.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a command to its end, which must come.
pub fn finish(mut command: Command) -> Output {
    fn reading(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            pipe.read_to_end(&mut all).expect("a pipe is readable");
            all
        })
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    // A report has more bytes than a pipe.
    let stdout = reading(child.stdout.take().expect("it is piped"));
    let stderr = reading(child.stderr.take().expect("it is piped"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is a child") {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().expect("it is a child");
            panic!("{command:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let [stdout, stderr] = [stdout, stderr].map(|read| read.join().expect("the reader ends"));
    Output { status, stdout, stderr }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
