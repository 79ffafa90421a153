//! What a run of `tartlet bench` must not leave behind.
//!
//! Owns: the folder for temporary files, the server process while one runs, and both ends of it: the usual one and
//! SIGINT. Never: what they are for.

use super::{BenchError, tell};
use async_signal::{Signal, Signals};
use smol::stream::StreamExt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Exit status after SIGINT or SIGTERM, as shells have it.
const EXIT_INTERRUPTED: i32 = 130;

/// What must not stay behind, however the measuring ends.
pub struct Leavings {
    folder: PathBuf,
    server: Arc<Mutex<Option<Child>>>,
}

impl Leavings {
    /// Makes the folder, and takes care of SIGINT and SIGTERM from now on.
    pub fn new() -> Result<Leavings, BenchError> {
        let system = |what| move |error| BenchError::System { what, error };
        let folder = std::env::temp_dir().join(format!("tartlet-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(system("make a folder for temporary files"))?;
        let leavings = Leavings { folder: folder.clone(), server: Arc::default() };
        let mut signals = Signals::new([Signal::Int, Signal::Term]).map_err(system("await signals"))?;
        let server = leavings.server.clone();
        let watch = move || {
            if smol::block_on(signals.next()).is_some() {
                // Held to the end: whoever is measuring neither starts another server nor reports that this one died.
                let mut server = lock(&server);
                end(&mut server);
                let _ = std::fs::remove_dir_all(&folder); // the system sweeps where it lies
                tell("");
                // Nobody may read any more: the end must not hang on that.
                let _ = writeln!(io::stderr(), "tartlet: The measuring was interrupted.");
                std::process::exit(EXIT_INTERRUPTED);
            }
        };
        std::thread::Builder::new()
            .name("bench-signals".into())
            .spawn(watch)
            .map_err(system("start a thread"))?;
        Ok(leavings)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a server, to be ended by [`Leavings::end_server`] or with all else; gives its process id and what it says.
    pub fn start_server(&self, command: &mut Command) -> io::Result<(u32, ChildStdout, ChildStderr)> {
        let mut server = lock(&self.server);
        end(&mut server);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let says = child.stdout.take().zip(child.stderr.take());
        let id = child.id();
        *server = Some(child);
        says.map(|(stdout, stderr)| (id, stdout, stderr)).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    pub fn end_server(&self) {
        end(&mut lock(&self.server));
    }
}

impl Drop for Leavings {
    fn drop(&mut self) {
        self.end_server();
        let _ = std::fs::remove_dir_all(&self.folder); // the system sweeps where it lies
    }
}

fn lock(server: &Mutex<Option<Child>>) -> MutexGuard<'_, Option<Child>> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the server, whatever it does: nobody else is connected to it.
fn end(server: &mut Option<Child>) {
    if let Some(mut child) = server.take() {
        let _ = child.kill(); // ended already
        let _ = child.wait();
    }
}
