//! What a run of `tartlet bench` must not leave behind.
//!
//! Owns: the folders for temporary files, the server process while one runs, and both ends of it: the usual one and
//! a signal. Never: what they are for.

use super::BenchError;
use crate::interrupts::when_interrupted;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file system in memory, on every Linux with a usual C library.
const MEMORY: &str = "/dev/shm";

/// What must not stay behind, however the measuring ends.
pub struct Leavings {
    folder: PathBuf,
    /// The same in memory, where the system has such a place.
    memory: Option<PathBuf>,
    server: Arc<Mutex<Option<Child>>>,
}

impl Leavings {
    /// Makes the folder, and takes care of signals from now on.
    pub fn new() -> Result<Leavings, BenchError> {
        let system = |what| move |error| BenchError::System { what, error };
        let name = format!("tartlet-bench-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        make(&folder).map_err(|error| {
            let mend = "remove what stands there, or name another place for temporary files in TMPDIR";
            BenchError::File(
                folder.clone(),
                format!("a folder of this run's own cannot be made: {error}; {mend}"),
            )
        })?;
        let memory = Path::new(MEMORY).join(&name);
        let memory = make(&memory).is_ok().then_some(memory);
        let leavings = Leavings { folder, memory, server: Arc::default() };
        let (folders, server) = (leavings.folders(), leavings.server.clone());
        let ended = when_interrupted("bench-signals", move |interrupt| {
            // Held to the end: whoever is measuring neither starts another server nor reports that this one died.
            let mut server = lock(&server);
            end(&mut server);
            remove(&folders);
            interrupt.leave("The measuring was interrupted.".to_owned());
        });
        ended.map_err(system("await signals"))?;
        Ok(leavings)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is a file system in memory to write to.
    pub fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// A folder where keeping a file takes no disk's time, if there is one; else the usual one.
    pub fn memory(&self) -> &Path {
        self.memory.as_ref().unwrap_or(&self.folder)
    }

    fn folders(&self) -> Vec<PathBuf> {
        self.memory.iter().chain([&self.folder]).cloned().collect()
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
        remove(&self.folders());
    }
}

/// A folder of our own that was not there: where everyone may write, somebody may have laid one, or a link, for us.
fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

fn remove(folders: &[PathBuf]) {
    for folder in folders {
        let _ = std::fs::remove_dir_all(folder); // the system sweeps where they lie
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_is_ours_alone_or_none() {
        let place = std::env::temp_dir().join(format!("tartlet-leavings-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&place); // of a process that had our number
        make(&place).unwrap();
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(make(&place).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let link = place.join("link");
        std::os::unix::fs::symlink(&place, &link).unwrap();
        assert_eq!(make(&link).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        remove(&[place]);
    }
}
