//! The programs that clients have uploaded: content-addressed by BLAKE3, durable, bounded.
//!
//! Owns: the folder and the index over it. Never: who may upload or launch.
//!
//! A program is a file `{hash}.{owner}.wasm`: the owner, 16 hex digits of a hash, is the subject that brought it, and each
//! subject has a share of the store. `{hash}.wasm` is nobody's: put there by hand, or by everyone, where all are one. It is written beside its place, synced, renamed, and the folder synced, so
//! after a power cut it is there whole or not at all; what it left unfinished is swept at the next start. A file
//! whose content is not what its name says is moved aside, never run.

use super::shelf::Shelf;
use super::{Code, Program, Rejected, Translation};
use crate::identity::{ProgramHash, Subject};
use crate::limits;
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
    shelf: Shelf,
    /// Held while a program is written, so that the bounds hold and nothing is written twice.
    writing: Arc<smol::lock::Mutex<()>>,
}

#[derive(Default)]
struct Index {
    programs: HashMap<ProgramHash, Kept>,
}

struct Kept {
    path: PathBuf,
    /// Held while it is translated: others wait and find it.
    translating: Arc<smol::lock::Mutex<()>>,
    bytes: usize,
    owner: Option<Owner>,
}

/// Who brought a program, as its file's name says it.
#[derive(Clone, PartialEq, Eq)]
struct Owner(String);

impl Owner {
    fn of(subject: &Subject) -> Option<Owner> {
        let mut digits = blake3::hash(subject.as_str().as_bytes()).to_hex();
        digits.truncate(16);
        (*subject != Subject::everyone()).then(|| Owner(digits.to_string()))
    }

    fn is_one(text: &str) -> bool {
        text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }
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
            } else if let Some(name) = name.strip_suffix(SUFFIX) {
                let (hash, owner) = match name.split_once('.') {
                    Some((hash, owner)) if Owner::is_one(owner) => (hash, Some(Owner(owner.to_owned()))),
                    Some(_) => continue, // not ours
                    None => (name, None),
                };
                index.admit(hash, owner, &path).map_err(failed)?;
            }
        }
        tracing::info!(target: "program", "{} programs in {}", index.programs.len(), dir.display());
        let (dir, index) = (dir.to_owned(), Mutex::new(index));
        Ok(Store(Arc::new(Shared { dir, index, shelf: Shelf::default(), writing: Arc::default() })))
    }

    /// Checks, translates and keeps a subject's program; it is on the disk when this answers. One that is there already is
    /// answered at once. What is begun goes on when nobody waits for it any more: until then it holds `component`,
    /// with whatever counts its bytes, and its place among those that translate or write. `translate` has the translation done:
    /// [`Code::translate`], when it is the subject's turn.
    pub async fn put<B, T>(
        &self,
        subject: &Subject,
        component: B,
        translate: impl FnOnce(Translation) -> T,
    ) -> Result<ProgramHash, Rejected>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
        T: Future<Output = Result<Arc<Program>, Rejected>>,
    {
        let component = Arc::new(component);
        let bytes = component.clone();
        let hash = smol::unblock(move || ProgramHash::of((*bytes).as_ref())).await;
        if self.contains(&hash) {
            return Ok(hash);
        }
        let owner = Owner::of(subject);
        // Also before the work: a full share is asked for in vain as often as somebody likes.
        self.0.lock().room(owner.as_ref(), (*component).as_ref().len())?;
        let (bytes, shared, brings) = (component.clone(), self.0.clone(), subject.clone());
        let translation = move || {
            let program = Program::of((*bytes).as_ref())?;
            // Before it is written: however many wait for that, what is in memory is bounded.
            let _no_room = shared.shelf.keep(program.clone(), &brings);
            Ok(program)
        };
        let program = translate(Translation::new(translation)).await?;
        smol::unblock(move || drop(program)).await; // which takes milliseconds where there was no room for it
        let (shared, alone) = (self.0.clone(), self.0.writing.lock_arc().await);
        smol::unblock(move || {
            let _alone = alone;
            shared.keep(hash, owner, (*component).as_ref())
        })
        .await
    }

    /// A program for a subject to run, which is translated first unless it is in memory; as in [`Store::put`]. It stays
    /// there as long as anybody has it.
    pub async fn get<T>(
        &self,
        subject: &Subject,
        hash: &ProgramHash,
        translate: impl FnOnce(Translation) -> T,
    ) -> Result<Option<Arc<Program>>, Rejected>
    where
        T: Future<Output = Result<Arc<Program>, Rejected>>,
    {
        let (path, bytes, translating) = match self.0.lock().programs.get(hash) {
            Some(kept) => (kept.path.clone(), kept.bytes, kept.translating.clone()),
            None => return Ok(None),
        };
        if let Some(program) = self.0.shelf.find(hash, subject)? {
            return Ok(Some(program));
        }
        self.0.shelf.has_room(subject, Code::bytes_of(bytes))?;
        let (shared, hash, subject) = (self.0.clone(), *hash, subject.clone());
        let translation = move || {
            if let Some(program) = shared.shelf.find(&hash, &subject)? {
                return Ok(program);
            }
            let not_kept = |why: &str| Rejected::NotKept(format!("{}: {why}", path.display()));
            let component = fs::read(&path).map_err(|error| not_kept(&error.to_string()))?;
            let found = ProgramHash::of(&component);
            if found != hash {
                return Err(not_kept("it is damaged; upload it again after the server's next start"));
            }
            shared.shelf.keep(Program::of(&component)?, &subject)
        };
        translate(Translation::new(translation).alone(translating)).await.map(Some)
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
    fn keep(
        &self,
        hash: ProgramHash,
        owner: Option<Owner>,
        component: &[u8],
    ) -> Result<ProgramHash, Rejected> {
        {
            let index = self.lock();
            if index.programs.contains_key(&hash) {
                return Ok(hash);
            }
            index.room(owner.as_ref(), component.len())?;
        }
        let path = match &owner {
            Some(Owner(digits)) => self.dir.join(format!("{hash}.{digits}{SUFFIX}")),
            None => self.dir.join(format!("{hash}{SUFFIX}")),
        };
        write_durably(&path, component).map_err(|e| Rejected::NotKept(e.to_string()))?;
        let kept = Kept { path, translating: Arc::default(), bytes: component.len(), owner };
        self.lock().programs.insert(hash, kept);
        Ok(hash)
    }
}

impl Index {
    /// Whether there is room for a program of so many bytes.
    fn room(&self, owner: Option<&Owner>, more: usize) -> Result<(), Rejected> {
        let (mut all, mut own) = ([1, more], [1, more]);
        for kept in self.programs.values() {
            let is_own = owner.is_some() && owner == kept.owner.as_ref();
            for sum in std::iter::once(&mut all).chain(is_own.then_some(&mut own)) {
                *sum = [sum[0] + 1, sum[1] + kept.bytes];
            }
        }
        if all[0] > limits::PROGRAMS || all[1] > limits::PROGRAM_STORE_BYTES {
            return Err(Rejected::StoreFull);
        }
        if own[0] > limits::PROGRAMS_PER_SUBJECT || own[1] > limits::PROGRAM_STORE_BYTES_PER_SUBJECT {
            return Err(Rejected::ShareFull);
        }
        Ok(())
    }

    /// Takes a file found at start, if it is what its name says.
    fn admit(&mut self, name: &str, owner: Option<Owner>, path: &Path) -> io::Result<()> {
        let len = fs::metadata(path)?.len();
        let claimed = ProgramHash::from_hex(name);
        let fits = self.room(owner.as_ref(), len as usize).is_ok();
        if len > limits::PROGRAM_BYTES as u64 || claimed.is_none() || !fits {
            tracing::warn!(target: "program", "{} is no program or does not fit the store; ignored", path.display());
            return Ok(());
        }
        let found = ProgramHash::of(&fs::read(path)?);
        if claimed != Some(found) {
            tracing::warn!(target: "program", "{} is damaged; moved aside, upload it again", path.display());
            return fs::rename(path, path.with_extension("damaged"));
        }
        // Of two files of one program the same counts at each start, whatever the order of the folder.
        if self.programs.get(&found).is_some_and(|kept| *kept.path < *path) {
            return Ok(());
        }
        let kept = Kept { path: path.to_owned(), translating: Arc::default(), bytes: len as usize, owner };
        self.programs.insert(found, kept);
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
    use crate::program::translate::Work;
    use crate::program::translate::tests::PLACES_TAKEN;
    use smol::future;

    /// At once.
    async fn translate(translation: Translation) -> Result<Arc<Program>, Rejected> {
        Code::translate(&Subject::everyone(), translation).await
    }

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("tartlet-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    /// The same store with this shelf, on which there may be nothing yet.
    fn with_shelf(store: Store, shelf: Shelf) -> Store {
        let index = Mutex::new(std::mem::take(&mut *store.0.lock()));
        Store(Arc::new(Shared { dir: store.0.dir.clone(), index, shelf, writing: Arc::default() }))
    }

    #[test]
    fn a_program_that_went_for_another_is_translated_again() {
        let dir = folder("shelf");
        let nobody = Subject::everyone();
        let programs = [MINIMAL.to_owned(), MINIMAL.replace("const 16", "const 32")];
        let programs = programs.map(|text| wat::parse_str(text).unwrap());
        let one = Code::of(&programs[0]).unwrap().bytes;
        let store = with_shelf(Store::open(&dir).unwrap(), Shelf::of(one + one / 2));
        let put = |program: &Vec<u8>| smol::block_on(store.put(&nobody, program.clone(), translate));
        let hashes = [put(&programs[0]).unwrap(), put(&programs[1]).unwrap()];
        let get = |of: usize| smol::block_on(store.get(&nobody, &hashes[of], translate));
        let first = get(0).unwrap().expect("it is kept");
        assert_eq!(get(1).err(), Some(Rejected::CodeFull), "while an instance has the other");
        let (hash, gone) = (first.hash, Arc::downgrade(&first.code));
        drop(first);
        assert!(hash == hashes[0] && gone.upgrade().is_some(), "nobody needs its room");
        assert!(get(1).unwrap().is_some_and(|program| program.kinds().runs));
        assert!(gone.upgrade().is_none());
        assert!(get(0).unwrap().is_some());
        fs::remove_dir_all(&dir).unwrap();
    }

    /// The story: two launches of one program took both places of those who translate, and one of them only waited.
    #[test]
    fn who_waits_for_anothers_translation_takes_no_place() {
        let _taken = PLACES_TAKEN.lock();
        let dir = folder("alone");
        let nobody = Subject::everyone();
        let store = Store::open(&dir).unwrap();
        let programs = [MINIMAL.to_owned(), MINIMAL.replace("const 16", "const 32")];
        let hashes = programs.map(|text| {
            let component = wat::parse_str(text).unwrap();
            smol::block_on(store.put(&nobody, component, translate)).unwrap()
        });
        let store = with_shelf(store, Shelf::default());
        let (begun, begins) = smol::channel::unbounded();
        let (over, ends) = smol::channel::bounded::<()>(1);
        let get = |of: usize| {
            let (begun, ends) = (begun.clone(), ends.clone());
            let held_up = move |work: Work| {
                begun.send_blocking(of).expect("the test listens");
                let _closed = ends.recv_blocking();
                work()
            };
            store.get(&nobody, &hashes[of], |translation| {
                Code::translate(&nobody, translation.within(held_up))
            })
        };
        smol::block_on(async {
            let both = future::zip(get(0), get(0));
            let watched = async {
                let mut first = [begins.recv().await.unwrap(), begins.recv().await.unwrap()];
                first.sort_unstable();
                over.close();
                first
            };
            let ((both, other), began) = future::zip(future::zip(both, get(1)), watched).await;
            let [one, same] = [both.0, both.1].map(|got| got.unwrap().expect("it is kept"));
            assert!(Arc::ptr_eq(&one, &same) && other.unwrap().is_some());
            assert_eq!(began, [0, 1], "the second launch of the first kept the other program out");
        });
        fs::remove_dir_all(&dir).unwrap();
    }

    /// The story: whoever waited for its subject's place held the program meanwhile, and others waited for all of that subject's.
    #[test]
    fn who_waits_for_its_own_place_holds_no_program_up() {
        let _taken = PLACES_TAKEN.lock();
        let dir = folder("place");
        let [a, b] = ["a", "b"].map(Subject::new);
        let store = Store::open(&dir).unwrap();
        let programs = [MINIMAL.to_owned(), MINIMAL.replace("const 16", "const 32")];
        let hashes = programs
            .map(|text| smol::block_on(store.put(&a, wat::parse_str(text).unwrap(), translate)).unwrap());
        let store = with_shelf(store, Shelf::default());
        let (begun, begins) = smol::channel::bounded(1);
        let (over, ends) = smol::channel::bounded::<()>(1);
        let held_up = move |work: Work| {
            begun.send_blocking(()).expect("the test listens");
            let _closed = ends.recv_blocking();
            work()
        };
        smol::block_on(async {
            let first =
                store.get(&b, &hashes[0], |translation| Code::translate(&b, translation.within(held_up)));
            let mut first = Box::pin(first);
            future::or(async { drop((&mut first).await) }, async { begins.recv().await.unwrap() }).await;
            let mut second =
                Box::pin(store.get(&b, &hashes[1], |translation| Code::translate(&b, translation)));
            assert!(future::poll_once(&mut second).await.is_none(), "it waits for its own");
            let others = store.get(&a, &hashes[1], |translation| Code::translate(&a, translation));
            assert!(others.await.unwrap().is_some());
            over.close();
            assert!(first.await.unwrap().is_some() && second.await.unwrap().is_some());
        });
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn programs_survive_a_restart_and_damage_is_noticed() {
        let dir = folder("restart");
        let nobody = Subject::everyone();
        let component = wat::parse_str(MINIMAL).unwrap();
        let store = Store::open(&dir).unwrap();
        let hash = smol::block_on(store.put(&nobody, component.clone(), translate)).unwrap();
        assert_eq!(smol::block_on(store.put(&nobody, component.clone(), translate)), Ok(hash));
        assert!(store.contains(&hash));

        fs::write(dir.join("half.unfinished"), b"...").unwrap();
        fs::write(dir.join("notes.txt"), b"not ours").unwrap();
        let store = Store::open(&dir).unwrap();
        let get = |store: &Store| smol::block_on(store.get(&nobody, &hash, translate));
        let program = get(&store).unwrap().expect("found again");
        assert!(
            program.kinds().runs && Arc::ptr_eq(&program, &get(&store).unwrap().unwrap()),
            "translated once"
        );
        assert!(!dir.join("half.unfinished").exists() && dir.join("notes.txt").exists());

        fs::write(dir.join(format!("{hash}.wasm")), b"\0asm something else").unwrap();
        let once_more = with_shelf(store, Shelf::default());
        assert!(
            matches!(get(&once_more), Err(Rejected::NotKept(_))),
            "nor is it run if that happens meanwhile"
        );
        let store = Store::open(&dir).unwrap();
        assert!(!store.contains(&hash), "a damaged program is not offered");
        assert_eq!(
            smol::block_on(store.put(&nobody, component, translate)),
            Ok(hash),
            "and can be uploaded again"
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Also after a restart; and a program that somebody has brought is everyone's to launch.
    #[test]
    fn one_subject_fills_its_share_and_no_more() {
        let dir = folder("shares");
        let program = |number: usize| {
            let mut component = wat::parse_str(MINIMAL).unwrap();
            component.extend([0, 10, 1, b'n']); // a custom section: a name of one byte and eight of data
            component.extend(number.to_le_bytes());
            component
        };
        let put = |store: &Store, who: &str, number| {
            smol::block_on(store.put(&Subject::new(who), program(number), translate))
        };
        let store = Store::open(&dir).unwrap();
        let by_hand = ProgramHash::of(&program(0));
        fs::write(dir.join(format!("{by_hand}.wasm")), program(0)).unwrap();
        assert!(put(&store, "greedy", 1).is_ok());
        // As though it had brought these: writing each durably takes a while.
        let Owner(owner) = Owner::of(&Subject::new("greedy")).expect("it is somebody");
        for number in 2..=limits::PROGRAMS_PER_SUBJECT {
            let hash = ProgramHash::of(&program(number));
            fs::write(dir.join(format!("{hash}.{owner}.wasm")), program(number)).unwrap();
        }
        // One twice, and one that its operator has put aside.
        fs::write(dir.join(format!("{by_hand}.{}.wasm", "f".repeat(16))), program(0)).unwrap();
        fs::write(dir.join(format!("{}.old.wasm", ProgramHash::of(&program(9999)))), program(9999)).unwrap();
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.list().len(), 1 + limits::PROGRAMS_PER_SUBJECT);
        assert_eq!(put(&store, "greedy", 1000), Err(Rejected::ShareFull));
        assert_eq!(put(&store, "greedy", 7), Ok(ProgramHash::of(&program(7))), "it is there");
        assert_eq!(put(&store, "modest", 7), Ok(ProgramHash::of(&program(7))), "for everyone");
        assert!(
            put(&store, "", 2000).is_ok()
                && put(&store, "modest", 1000).is_ok()
                && put(&store, "greedy", 1000).is_ok()
        );
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
            let put = async { drop(store.put(&Subject::everyone(), watched, translate).await) };
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
        assert_eq!(
            smol::block_on(store.put(&Subject::everyone(), b"hello".to_vec(), translate)),
            Err(Rejected::NotWasm)
        );
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
