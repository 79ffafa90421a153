//! One GGUF file: header, metadata, tensor records, all of it checked against the file's bytes.
//!
//! Owns: where each value and each tensor lies in one file. Never: how several files make a model (`sharded.rs`), the
//! map itself (`gguf.rs`), nor what a key means.

use std::collections::HashMap;
use std::sync::Arc;

use super::cursor::{Cursor, Flaw, Record, kind};
use super::gguf::{GgufError, Value};
use crate::limits;

/// Where each tensor of a model is, by name: over all its files. The name itself is the record's.
pub(super) type Names = HashMap<Arc<str>, Place>;

/// A tensor record: which file, which of its records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub shard: u32,
    pub record: u32,
}

/// Where a file's bytes are.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    #[cfg(any(test, feature = "toys"))]
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            #[cfg(any(test, feature = "toys"))]
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// One checked file.
pub(super) struct Shard {
    pub bytes: Bytes,
    pub version: u32,
    /// Where the tensors' data begins.
    pub data: usize,
    pub records: Vec<Record>,
    metadata: Metadata,
}

/// Metadata in file order, and by key.
#[derive(Default)]
struct Metadata {
    entries: Vec<Entry>,
    keys: HashMap<Arc<str>, u32>, // key -> index in `entries`
}

/// One metadata value: its payload is `bytes[at..]`, checked when the file was read.
struct Entry {
    key: Arc<str>,
    kind: u32,
    at: usize,
}

impl Shard {
    /// Reads file number `shard` of a model, whose tensors are `names` so far.
    pub fn read(bytes: Bytes, shard: u32, names: &mut Names) -> Result<Shard, GgufError> {
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        let version = version(&mut cursor)?;
        // The smallest tensor record is 24 bytes (empty name, no dims), the smallest metadata entry 13.
        let tensors = cursor.count(24, limits::GGUF_TENSORS).map_err(|flaw| flaw.at("the tensor count"))?;
        let pairs = cursor.count(13, limits::GGUF_KEYS).map_err(|flaw| flaw.at("the metadata count"))?;

        let mut metadata = Metadata::default();
        for index in 0..pairs {
            metadata.read_next(&mut cursor, index as u32)?;
        }

        let alignment = alignment(&bytes, &metadata)?;
        let mut records = Vec::new();
        for record in 0..tensors as u32 {
            let start = cursor.at;
            let name = cursor.name().map_err(|flaw| flaw.at(&format!("the name of tensor {record}")))?;
            let in_tensor = |flaw: Flaw| flaw.at(&format!("tensor `{name}`"));
            let own: Arc<str> = name.into();
            if names.insert(own.clone(), Place { shard, record }).is_some() {
                return Err(in_tensor(Flaw { offset: start, what: "the name appears twice".into() }));
            }
            records.push(cursor.record(own, alignment).map_err(in_tensor)?);
        }

        // Tensor offsets count from here.
        let data = cursor.at.next_multiple_of(alignment);
        for record in &mut records {
            let end = data.checked_add(record.at).and_then(|at| at.checked_add(record.len));
            if end.is_none_or(|end| end > bytes.len()) {
                let what = format!(
                    "its {} bytes at data offset {} reach past the end of the file ({} bytes)",
                    record.len,
                    record.at,
                    bytes.len()
                );
                return Err(Flaw { offset: data, what }.at(&format!("the data of tensor `{}`", record.name)));
            }
            record.at += data;
        }
        let data = data.min(bytes.len());
        refuse_shared_bytes(&records)?;
        Ok(Shard { bytes, version, data, records, metadata })
    }

    /// The metadata value under `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(&self.bytes, key)
    }

    /// Metadata keys in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.entries.iter().map(|entry| &*entry.key)
    }

    /// A cursor on the first item of the array under `key`, the items' kind and their number.
    pub fn array(&self, key: &str) -> Option<Result<(Cursor<'_>, u32, usize), Flaw>> {
        let entry = self.metadata.entry(key).filter(|entry| entry.kind == kind::ARRAY)?;
        let mut cursor = Cursor { bytes: &self.bytes, at: entry.at };
        Some(cursor.array_head().map(|(kind, len)| (cursor, kind, len)))
    }
}

impl Metadata {
    fn read_next(&mut self, cursor: &mut Cursor<'_>, index: u32) -> Result<(), GgufError> {
        let start = cursor.at;
        let key = cursor.name().map_err(|flaw| flaw.at(&format!("the key of metadata {index}")))?;
        let in_key = |flaw: Flaw| flaw.at(&format!("the value of `{key}`"));
        let own: Arc<str> = key.into();
        if self.keys.insert(own.clone(), index).is_some() {
            let flaw = Flaw { offset: start, what: "the key appears twice".into() };
            return Err(flaw.at(&format!("`{key}`")));
        }
        let kind = cursor.u32().map_err(in_key)?;
        self.entries.push(Entry { key: own, kind, at: cursor.at });
        cursor.skip(kind, 0).map_err(in_key)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key).map(|&index| &self.entries[index as usize])
    }

    /// `None` if there is no such key, or if the file changed under us since it was read.
    fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let entry = self.entry(key)?;
        let mut cursor = Cursor { bytes, at: entry.at };
        Some(match entry.kind {
            kind::F32 => Value::Float(f64::from(f32::from_bits(cursor.u32().ok()?))),
            kind::F64 => Value::Float(f64::from_bits(cursor.u64().ok()?)),
            kind::BOOL => Value::Bool(cursor.take(1).ok()? == [1]),
            kind::STRING => Value::Text(cursor.text().ok()?),
            kind::ARRAY => Value::Array { len: cursor.array_head().ok()?.1 },
            kind => Value::Integer(cursor.integer(kind).ok()?),
        })
    }
}

/// A byte belongs to one tensor. Otherwise a small file could stand for any number of large matrices, each of which a
/// backend packs for itself.
fn refuse_shared_bytes(records: &[Record]) -> Result<(), GgufError> {
    // A tensor of a format that we do not know has no extent that could be compared.
    let extents = (0u32..).zip(records).filter(|(_, record)| record.len > 0);
    let mut by_start: Vec<(usize, u32)> = extents.map(|(number, record)| (record.at, number)).collect();
    by_start.sort_unstable();
    let by_start: Vec<&Record> = by_start.iter().map(|(_, number)| &records[*number as usize]).collect();
    match by_start.windows(2).find(|two| two[0].at + two[0].len > two[1].at) {
        Some(two) => {
            let (first, second) = (&two[0].name, &two[1].name);
            let what = format!(
                "tensor `{second}` begins there, within the {} bytes of tensor `{first}`",
                two[0].len
            );
            Err(Flaw { offset: two[1].at, what }.at("the data of the tensors"))
        }
        None => Ok(()),
    }
}

/// The magic and the version, 2 or 3.
fn version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let foreign = |offset, what: &str| GgufError::Foreign { offset, what: what.to_owned() };
    if cursor.bytes.get(..4) != Some(b"GGUF".as_slice()) {
        return Err(foreign(0, "the magic `GGUF` is not there"));
    }
    cursor.at = 4;
    match cursor.u32().map_err(|flaw| flaw.at("the version"))? {
        version @ (2 | 3) => Ok(version),
        1 => Err(foreign(4, "version 1 is out of use; convert the model again")),
        v if v.swap_bytes() <= 3 => Err(foreign(4, "it is big endian; convert it to little endian")),
        v => Err(foreign(4, &format!("version {v}; versions 2 and 3 are supported"))),
    }
}

/// `general.alignment` of the tensor data, 32 when absent.
fn alignment(bytes: &[u8], metadata: &Metadata) -> Result<usize, GgufError> {
    let Some(entry) = metadata.entry("general.alignment") else { return Ok(32) };
    let alignment = match metadata.get(bytes, "general.alignment") {
        Some(Value::Integer(n)) => usize::try_from(n).ok(),
        _ => None,
    };
    alignment.filter(|n| n.is_power_of_two() && (8..=limits::GGUF_ALIGNMENT).contains(n)).ok_or_else(|| {
        let what = format!("should be a power of two from 8 to {}", limits::GGUF_ALIGNMENT);
        Flaw { offset: entry.at, what }.at("`general.alignment`")
    })
}
