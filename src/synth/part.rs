//! A file while it is being written, under a name of its own beside its later one.
//!
//! Owns: both names. The later one is never that of a file that is not whole, and never taken from a file that somebody
//! else has made; whatever ends the writing, half a file is removed, and that of a killed process by the next. Never: what
//! is written.

use super::SynthError;
use crate::interrupts::when_interrupted;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Behind the later name. Nobody else calls a file so: one that no process holds locked is of a process that was killed.
const SUFFIX: &str = ".tartlet-part";
const THERE: &str = "it is there already: name another file, or replace it by --force";

pub struct Part {
    out: PathBuf,
    force: bool,
    /// Locked as long as we live.
    file: File,
    left: Left,
}

/// The path of what must be removed; none: nothing. Whoever removes or renames it holds this.
type Left = Arc<Mutex<Option<PathBuf>>>;

impl Part {
    pub fn create(out: &Path, force: bool) -> Result<Part, SynthError> {
        let wrong = |path: &Path, why: &str| SynthError::File(path.to_owned(), why.to_owned());
        match fs::symlink_metadata(out) {
            Ok(there) if !there.is_file() && !there.is_symlink() => {
                return Err(wrong(out, "it is there and is no file: name another"));
            }
            Ok(_) if !force => return Err(wrong(out, THERE)),
            _ => {}
        }
        let mut path = OsString::from(out);
        path.push(SUFFIX);
        let path = PathBuf::from(path);
        let left = Left::default();
        // Held until there is something to remove: no signal comes between.
        let mut known = lock(&left);
        remove_when_interrupted(left.clone()).map_err(|error| wrong(&path, &error.to_string()))?;
        let file = ours(&path).map_err(|why| wrong(&path, &why))?;
        *known = Some(path);
        drop(known);
        Ok(Part { out: out.to_owned(), force, file, left })
    }

    pub fn put(&mut self, bytes: &[u8], total: usize) -> Result<(), SynthError> {
        self.file.write_all(bytes).map_err(|error| {
            self.failed(format!("{error}; it takes {} MB", total / 1_000_000)) // most likely the disk is full
        })
    }

    /// Gives it its name, once all of it is on the disk.
    pub fn finish(self) -> Result<(), SynthError> {
        let named = self.file.sync_all().and_then(|()| self.name());
        named.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                self.failed(format!("while this was written, somebody else made it: {THERE}"))
            }
            _ => self.failed(error.to_string()),
        })
    }

    fn name(&self) -> io::Result<()> {
        let mut left = lock(&self.left);
        let Some(part) = left.as_ref() else { return Ok(()) };
        if self.force {
            fs::rename(part, &self.out)?;
        } else {
            match renameat_with(CWD, part, CWD, &self.out, RenameFlags::NOREPLACE) {
                // A file system that cannot, as NFS: a link is never made over a file either.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    fs::hard_link(part, &self.out)?;
                    fs::remove_file(part)?;
                }
                renamed => renamed?,
            }
        }
        *left = None;
        Ok(())
    }

    /// Why there is no file, and what has become of its beginning.
    fn failed(&self, why: String) -> SynthError {
        SynthError::File(self.out.clone(), format!("{why}; {}", remove(&mut lock(&self.left))))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        remove(&mut lock(&self.left));
    }
}

/// The file of this path, empty and locked.
fn ours(path: &Path) -> Result<File, String> {
    let told = |error: io::Error| error.to_string();
    loop {
        let mut options = File::options();
        let options = options.write(true).create(true).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(path).map_err(told)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = "another `tartlet synth` is writing it: wait for that one, or name another file";
                return Err(why.to_owned());
            }
            Err(TryLockError::Error(error)) => return Err(format!("it cannot be locked: {error}")),
        }
        let held = file.metadata().map_err(told)?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                if held.len() == 0 {
                    return Ok(file);
                }
                // Of a killed process. It is not written over: where files are linked, it may be one that is whole by now.
                fs::remove_file(path).map_err(told)?;
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(told(error)),
            // Whoever held it has renamed or removed it in the meantime.
            _ => {}
        }
    }
}

/// Whoever presses Ctrl-C gets a sentence, and the disk its room back.
fn remove_when_interrupted(left: Left) -> io::Result<()> {
    when_interrupted("synth-signals", move |interrupt| {
        // Held to the end: nothing is renamed any more.
        let mut left = lock(&left);
        // Else it has its name, and the process is about to end.
        if left.is_some() {
            let left = remove(&mut left);
            interrupt.leave(format!("The writing was interrupted; {left}."));
        }
    })
}

/// What is left then, in words.
fn remove(left: &mut Option<PathBuf>) -> String {
    match left.take().map(|path| (fs::remove_file(&path), path)) {
        Some((Err(error), path)) if error.kind() != ErrorKind::NotFound => {
            format!("{} is left, since it cannot be removed ({error}): remove it", path.display())
        }
        _ => "nothing is left of it".to_owned(),
    }
}

fn lock(left: &Left) -> MutexGuard<'_, Option<PathBuf>> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}
