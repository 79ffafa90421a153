//! The redb file behind the key-value pairs: making, opening, reading.
//!
//! Owns: its name, its table, and the sentences of a start that fails. Never: decides what is written.

use super::index::Index;
use crate::identity::Subject;
use crate::limits;
use redb::{Builder, Database, DatabaseError, Error, ReadableDatabase, ReadableTable, TableDefinition};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Subject and key to value.
pub(super) const PAIRS: TableDefinition<(&str, &str), &str> = TableDefinition::new("pairs");

const NAME: &str = "kvs.redb";

/// Opens the database with what the caller has told the builder.
pub(super) type Open = Box<dyn Fn(&Builder) -> Result<Database, DatabaseError> + Send>;

/// Why the pairs cannot be kept. `Display` is one sentence that names the file and the mend.
#[derive(Debug)]
pub enum KvsError {
    /// Another server has the file open.
    Taken(PathBuf),
    /// No such database, or not a whole one.
    Damaged {
        file: PathBuf,
        what: String,
    },
    /// It cannot be made, read or written.
    Unusable {
        file: PathBuf,
        what: String,
    },
    /// More than all subjects together may have.
    TooLarge {
        file: PathBuf,
        bytes: usize,
    },
    Thread(io::Error),
}

impl fmt::Display for KvsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvsError::Taken(file) => write!(
                f,
                "The key-value pairs in {} are in use by another server: stop it, or give this one a folder of its own \
                 with --state DIR.",
                file.display()
            ),
            KvsError::Damaged { file, what } => write!(
                f,
                "The key-value pairs in {} cannot be read ({what}): put a copy of the file in its place, or move it \
                 away to start without any.",
                file.display()
            ),
            KvsError::Unusable { file, what } => write!(
                f,
                "Key-value pairs cannot be kept in {}: {what}. Name a folder that can be written to with --state DIR.",
                file.display()
            ),
            KvsError::TooLarge { file, bytes } => write!(
                f,
                "The key-value pairs in {} take {bytes} bytes and this server keeps at most {}: start the server that \
                 wrote them and delete some, or move the file away to start without any.",
                file.display(),
                limits::KVS_BYTES
            ),
            KvsError::Thread(error) => write!(f, "The disk thread cannot be started: {error}."),
        }
    }
}

impl std::error::Error for KvsError {}

impl KvsError {
    fn of(file: &Path, error: Error) -> KvsError {
        let file = file.to_owned();
        match error {
            Error::DatabaseAlreadyOpen => KvsError::Taken(file),
            Error::Io(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                KvsError::Damaged { file, what: error.to_string() }
            }
            Error::Io(error) => KvsError::Unusable { file, what: error.to_string() },
            other => KvsError::Damaged { file, what: other.to_string() },
        }
    }
}

/// Everything that touches the database runs in this: redb panics where it finds what it cannot have written, and a
/// damaged file is no reason to lose the thread.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let panicked = |_| Err(Error::Corrupted("the store panicked; standard error says where".to_owned()));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(limits::KVS_CACHE_BYTES);
    builder
}

/// Makes the folder and the file if they are missing, and answers the file's path.
///
/// A new database is made beside its place and renamed, since redb does not take one whose making was cut short.
pub(super) fn prepare(state: &Path) -> Result<PathBuf, KvsError> {
    let path = state.join(NAME);
    let unusable = |error: io::Error| KvsError::Unusable { file: path.clone(), what: error.to_string() };
    fs::create_dir_all(state).map_err(unusable)?;
    let folder = File::open(state).map_err(unusable)?;
    folder.lock().map_err(unusable)?; // two servers that start at once make one file
    if !path.try_exists().map_err(unusable)? {
        let beside = state.join(format!("{NAME}.unfinished"));
        fs::write(&beside, b"").map_err(unusable)?; // whatever is left of a making that was cut short
        let made = caught(|| builder().create(&beside).map_err(Error::from));
        drop(made.map_err(|error| KvsError::of(&path, error))?);
        fs::rename(&beside, &path).map_err(unusable)?;
        folder.sync_all().map_err(unusable)?;
        if let Some(above) = state.parent().filter(|above| !above.as_os_str().is_empty()) {
            File::open(above).and_then(|above| above.sync_all()).map_err(unusable)?;
        }
    }
    Ok(path)
}

/// Opens the database, with every page checked, and reads which keys there are.
///
/// Each start does what a start after a power cut must: what the quotas allow is read in a fraction of a second, and
/// damage shows here, as a sentence, not later in a guest's call.
pub(super) fn load(path: &Path, open: &Open) -> Result<(Database, Index), KvsError> {
    let (database, index) = caught(|| {
        let database = open(builder().set_check_integrity_on_open(true))?;
        let index = index_of(&database)?;
        Ok((database, index))
    })
    .map_err(|error| KvsError::of(path, error))?;
    if index.bytes() > limits::KVS_BYTES {
        return Err(KvsError::TooLarge { file: path.to_owned(), bytes: index.bytes() });
    }
    for subject in index.over_quota() {
        tracing::warn!(
            target: "exchange",
            "subject {:?} has more key-value pairs in {} than its quota; it can delete, and add none",
            subject.as_str(),
            path.display()
        );
    }
    Ok((database, index))
}

fn index_of(database: &Database) -> Result<Index, Error> {
    let mut index = Index::default();
    let read = database.begin_read()?;
    let pairs = match read.open_table(PAIRS) {
        Ok(pairs) => pairs,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(index), // nothing was ever written
        Err(error) => return Err(error.into()),
    };
    let mut subject = Subject::everyone(); // pairs come sorted: one allocation for each subject
    for pair in pairs.iter()? {
        let (place, value) = pair?;
        let (of, key) = place.value();
        if subject.as_str() != of {
            subject = Subject::new(of);
        }
        index.note(&subject, &Arc::from(key), Some(value.value().len()));
    }
    Ok(index)
}

/// The value of a key that the index has.
pub(super) fn read(database: &Database, subject: &Subject, key: &str) -> Result<Option<String>, Error> {
    caught(|| {
        let pairs = database.begin_read()?.open_table(PAIRS)?;
        Ok(pairs.get((subject.as_str(), key))?.map(|value| value.value().to_owned()))
    })
}
