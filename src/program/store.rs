//! The programs that clients have uploaded: content-addressed by BLAKE3, durable, bounded.
//!
//! Owns: the folder and the index over it. Never: who may upload or launch.
//!
//! A program is a file `{hash}.wasm`. It is written beside its place, synced, renamed, and the folder synced, so
//! after a power cut it is there whole or not at all; what it left unfinished is swept at the next start. A file
//! whose content is not what its name says is moved aside, never run.

use super::{Code, Program, Rejected};
use crate::identity::ProgramHash;
use crate::limits;
use smol::lock::OnceCell;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why the store's folder cannot be used.
#[derive(Debug)]
pub struct StoreError {
    dir: PathBuf,
    error: io::Error,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dir, error) = (self.dir.display(), &self.error);
        write!(
            f,
            "Programs cannot be kept in {dir}: {error}. Name a folder that can be written to with --state DIR."
        )
    }
}

impl std::error::Error for StoreError {}

/// Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    index: Mutex<Index>,
    /// Held while a program is written, so that the bounds hold and nothing is written twice.
    writing: Arc<smol::lock::Mutex<()>>,
}

#[derive(Default)]
struct Index {
    programs: HashMap<ProgramHash, Arc<Program>>,
    bytes: usize,
}

const SUFFIX: &str = ".wasm";
const UNFINISHED: &str = ".unfinished";

impl Store {
    /// Opens the store in `dir`, which is made if it is missing, and checks every file in it.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let failed = |error| StoreError { dir: dir.to_owned(), error };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut index = Index::default();
        for file in fs::read_dir(dir).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(UNFINISHED) {
                fs::remove_file(&path).map_err(failed)?;
            } else if let Some(hash) = name.strip_suffix(SUFFIX) {
                index.admit(hash, &path).map_err(failed)?;
            }
        }
        tracing::info!(target: "program", "{} programs in {}", index.programs.len(), dir.display());
        Ok(Store(Arc::new(Shared { dir: dir.to_owned(), index: Mutex::new(index), writing: Arc::default() })))
    }

    /// Checks, translates and keeps a program; it is on the disk when this answers. One that is there already is
    /// answered at once. What is begun goes on when nobody waits for it any more: until then it holds `component`,
    /// with whatever counts its bytes, and its place among those that translate or write.
    pub async fn put<B>(&self, component: B) -> Result<ProgramHash, Rejected>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let component = Arc::new(component);
        let bytes = component.clone();
        let hash = smol::unblock(move || ProgramHash::of((*bytes).as_ref())).await;
        if self.contains(&hash) {
            return Ok(hash);
        }
        let bytes = component.clone();
        let code = Code::translate(move || Code::of((*bytes).as_ref())).await?;
        let (shared, alone) = (self.0.clone(), self.0.writing.lock_arc().await);
        smol::unblock(move || {
            let _alone = alone;
            shared.keep(hash, (*component).as_ref(), code)
        })
        .await
    }

    pub fn get(&self, hash: &ProgramHash) -> Option<Arc<Program>> {
        self.0.lock().programs.get(hash).cloned()
    }

    pub fn contains(&self, hash: &ProgramHash) -> bool {
        self.0.lock().programs.contains_key(hash)
    }

    /// Every program, in no order.
    pub fn list(&self) -> Vec<ProgramHash> {
        self.0.lock().programs.keys().copied().collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Index> {
        // Every change under the lock is complete before anything can panic.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the program and notes it. For one at a time.
    fn keep(&self, hash: ProgramHash, component: &[u8], code: Code) -> Result<ProgramHash, Rejected> {
        {
            let index = self.lock();
            if index.programs.contains_key(&hash) {
                return Ok(hash);
            }
            if !index.holds(component.len()) {
                return Err(Rejected::StoreFull);
            }
        }
        let path = self.dir.join(format!("{hash}{SUFFIX}"));
        write_durably(&path, component).map_err(|e| Rejected::NotKept(e.to_string()))?;
        let mut index = self.lock();
        index.bytes += component.len();
        let code = OnceCell::from(Arc::new(code));
        index.programs.insert(hash, Arc::new(Program { hash, path, code }));
        Ok(hash)
    }
}

impl Index {
    fn holds(&self, more: usize) -> bool {
        self.programs.len() < limits::PROGRAMS && self.bytes + more <= limits::PROGRAM_STORE_BYTES
    }

    /// Takes a file found at start, if it is what its name says.
    fn admit(&mut self, name: &str, path: &Path) -> io::Result<()> {
        let len = fs::metadata(path)?.len();
        let claimed = ProgramHash::from_hex(name);
        if len > limits::PROGRAM_BYTES as u64 || claimed.is_none() || !self.holds(len as usize) {
            tracing::warn!(target: "program", "{} is no program or does not fit the store; ignored", path.display());
            return Ok(());
        }
        let found = ProgramHash::of(&fs::read(path)?);
        if claimed != Some(found) {
            tracing::warn!(target: "program", "{} is damaged; moved aside, upload it again", path.display());
            return fs::rename(path, path.with_extension("damaged"));
        }
        self.bytes += len as usize;
        self.programs.insert(found, Arc::new(Program::on_disk(found, path.to_owned())));
        Ok(())
    }
}

/// Whole or not at all, whenever the power goes.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Whoever else writes in the same folder: never the same half-written file.
    let beside = path.with_extension(format!("{}{UNFINISHED}", std::process::id()));
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::component::tests::MINIMAL;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("tartlet-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn programs_survive_a_restart_and_damage_is_noticed() {
        let dir = folder("restart");
        let component = wat::parse_str(MINIMAL).unwrap();
        let store = Store::open(&dir).unwrap();
        let hash = smol::block_on(store.put(component.clone())).unwrap();
        assert_eq!(smol::block_on(store.put(component.clone())), Ok(hash));
        assert!(store.contains(&hash));

        fs::write(dir.join("half.unfinished"), b"...").unwrap();
        fs::write(dir.join("notes.txt"), b"not ours").unwrap();
        let store = Store::open(&dir).unwrap();
        let program = store.get(&hash).expect("found again");
        assert!(smol::block_on(program.code()).is_ok());
        assert!(!dir.join("half.unfinished").exists() && dir.join("notes.txt").exists());

        fs::write(dir.join(format!("{hash}.wasm")), b"\0asm something else").unwrap();
        let store = Store::open(&dir).unwrap();
        assert!(!store.contains(&hash), "a damaged program is not offered");
        assert_eq!(smol::block_on(store.put(component)), Ok(hash), "and can be uploaded again");
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Bytes that can only be read once the test has seen somebody try.
    struct Watched {
        bytes: Vec<u8>,
        read: smol::channel::Sender<()>,
        free: smol::channel::Receiver<()>,
    }

    impl AsRef<[u8]> for Watched {
        fn as_ref(&self) -> &[u8] {
            let _full = self.read.try_send(());
            let _closed = self.free.recv_blocking();
            &self.bytes
        }
    }

    #[test]
    fn what_an_abandoned_upload_holds_stays_counted_while_somebody_works_on_it() {
        let dir = folder("abandoned");
        let store = Store::open(&dir).unwrap();
        let (read, reading) = smol::channel::bounded(1);
        let (free, until) = smol::channel::bounded(1);
        let watched = Watched { bytes: wat::parse_str(MINIMAL).unwrap(), read, free: until };
        smol::block_on(async {
            let put = async { drop(store.put(watched).await) };
            smol::future::or(put, async { reading.recv().await.unwrap() }).await;
            assert!(!reading.is_closed(), "dropped while it is read");
            free.close();
            while reading.recv().await.is_ok() {} // until it is dropped
        });
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_is_kept_of_a_refused_program() {
        let dir = folder("refused");
        let store = Store::open(&dir).unwrap();
        assert_eq!(smol::block_on(store.put(b"hello".to_vec())), Err(Rejected::NotWasm));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
