//! The memory-mapped GGUF reader (versions 2 and 3, little endian), of models in one file or several.
//!
//! Owns: the maps of the files, and what a model's metadata and tensors are by name. Never: what a key means
//! (`shape.rs`, `tokenizer.rs`, `chat.rs`), nor a copy of the weights.
//!
//! The files are input from outside. Every count is compared with the bytes that are left and with `limits.rs` before
//! anything is reserved for it; values stay in the map until they are asked for. A corrupt, truncated or foreign
//! file gives an error that names the field and its byte offset.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::cursor::{Cursor, Flaw, Record, format_name, kind};
pub use super::quant::{Quant, f16_to_f32};
use super::shard::{Bytes, Names, Place, Shard};
use super::sharded::Split;

/// An open model: metadata and tensors, by name.
pub struct Gguf {
    /// The files in their order; the first, which is always there, holds the metadata.
    shards: Vec<Shard>,
    names: Names,
}

/// A metadata value, borrowed from the map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any of the eight integer types.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    Bool(bool),
    Text(&'a str),
    /// Items are read by [`Gguf::strings`], [`Gguf::integers`] and [`Gguf::floats`].
    Array {
        len: usize,
    },
}

/// A tensor's bytes in the map and how to read them.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub kind: Quant,
    /// GGUF order: `dims[0]` is the row length, `dims[1]` the number of rows; unused ones are 1.
    pub dims: [usize; 4],
    /// Row after row, `kind.row_bytes(dims[0])` each, in whichever file; aligned to that file's alignment (32 by
    /// default).
    pub bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Rows of `dims[0]` values.
    pub fn rows(&self) -> usize {
        self.dims[1] * self.dims[2] * self.dims[3]
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.kind.row_bytes(self.dims[0])
    }

    /// All values: for small tensors.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.dims.iter().product()];
        self.kind.dequantize(self.bytes, &mut values);
        values
    }

    /// The bytes of row `row`, below [`Tensor::rows`].
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }
}

/// Where a tensor lies in its model's files, found by name and checked once: [`Gguf::tensor_at`] cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    place: Place,
    kind: Quant,
    dims: [usize; 4],
    /// Rows of the record before the first of these.
    skipped: usize,
}

impl Extent {
    /// The part that consists of these rows: fused matrices are cut so.
    pub fn rows_of(&self, rows: Range<usize>) -> Extent {
        assert!(rows.end <= self.dims[1..].iter().product(), "rows {rows:?} of {:?}", self.dims);
        Extent { dims: [self.dims[0], rows.len(), 1, 1], skipped: self.skipped + rows.start, ..*self }
    }
}

/// A tensor record, whether Tartlet computes with its format or not.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    pub name: &'a str,
    /// The format's name, as every tool prints it.
    pub format: String,
    pub dims: [usize; 4],
    /// Bytes in the file; `None` for a format whose size we do not know.
    pub bytes: Option<usize>,
}

/// Why a model file cannot be read, or lacks something. `Display` is the sentence for the operator.
#[derive(Debug)]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    Open { error: std::io::Error },
    /// Not a GGUF file, or not a flavour of it that we read.
    Foreign { offset: usize, what: String },
    /// One of the files that the model is cut into is not there, or does not belong to the others.
    Shard { file: String, what: String },
    /// The bytes contradict themselves, the file's length, or a limit.
    Corrupt { field: String, offset: usize, what: String },
    /// No such metadata key.
    Missing { key: String },
    /// The key is there with a value of another kind or range.
    Kind { key: String, want: &'static str, found: String },
    /// No such tensor.
    NoTensor { name: String },
    /// The tensor is there in a format that Tartlet does not compute with.
    Format { name: String, format: String },
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GgufError::Open { error } => write!(f, "cannot open the model file: {error}"),
            GgufError::Foreign { offset, what } => {
                write!(f, "not a GGUF file that Tartlet reads, at byte {offset}: {what}")
            }
            GgufError::Corrupt { field, offset, what } => write!(
                f,
                "the GGUF file is damaged at byte {offset}, {field}: {what}; fetch it again and compare its checksum"
            ),
            GgufError::Shard { file, what } => write!(f, "the model's file `{file}`: {what}"),
            GgufError::Missing { key } => write!(f, "the GGUF file has no metadata key `{key}`"),
            GgufError::Kind { key, want, found } => {
                write!(f, "the GGUF metadata key `{key}` should be {want}, but is {found}")
            }
            GgufError::NoTensor { name } => write!(f, "the GGUF file has no tensor `{name}`"),
            GgufError::Format { name, format } => {
                let known = Quant::ALL.map(|quant| quant.to_string()).join(", ");
                write!(
                    f,
                    "tensor `{name}` is of type {format}; Tartlet computes with {known}: convert the model to one \
                     of these"
                )
            }
        }
    }
}

impl std::error::Error for GgufError {}

/// `Missing` becomes `None`; every other error stays one.
pub fn optional<T>(result: Result<T, GgufError>) -> Result<Option<T>, GgufError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(GgufError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl GgufError {
    /// `key` holds `found`, where `want` is wanted.
    pub(super) fn kind(key: &str, want: &'static str, found: Value<'_>) -> GgufError {
        let found = match found {
            Value::Integer(n) => format!("the whole number {n}"),
            Value::Float(x) => format!("the number {x}"),
            Value::Bool(b) => b.to_string(),
            Value::Text(_) => "text".to_owned(),
            Value::Array { len } => format!("another array of {len} items"),
        };
        GgufError::Kind { key: key.to_owned(), want, found }
    }
}

impl Gguf {
    /// Maps the file and, if it is one of several that make the model, the others beside it, and checks their whole
    /// structure; the weights themselves are not touched.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        Gguf::read(path, map)
    }

    /// The same with files of memory, for tests.
    #[cfg(any(test, feature = "toys"))]
    pub(crate) fn from_files(
        files: &std::collections::BTreeMap<String, Vec<u8>>,
        path: &str,
    ) -> Result<Gguf, GgufError> {
        let absent = || GgufError::Open { error: std::io::ErrorKind::NotFound.into() };
        let find = |path: &Path| files.get(path.to_str()?).cloned().map(Bytes::Owned);
        Gguf::read(Path::new(path), |path| find(path).ok_or_else(absent))
    }

    /// The same with one file.
    #[cfg(any(test, feature = "toys"))]
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        let name = "model.gguf".to_owned();
        Gguf::from_files(&std::collections::BTreeMap::from([(name.clone(), bytes)]), &name)
    }

    /// `open` hands out the bytes of a file.
    fn read(path: &Path, open: impl Fn(&Path) -> Result<Bytes, GgufError>) -> Result<Gguf, GgufError> {
        let mut names = Names::new();
        let shard = Shard::read(open(path)?, 0, &mut names)?;
        let Some(split) = Split::of(&shard)? else { return Ok(Gguf { shards: vec![shard], names }) };
        drop(shard); // whichever of the files it is, they are read in their order
        let (shards, names) = split.read(&split.paths(path)?, open)?;
        Ok(Gguf { shards, names })
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.first().version
    }

    /// Files that the model consists of.
    pub fn files(&self) -> usize {
        self.shards.len()
    }

    /// Bytes of all its files.
    pub fn file_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes.len()).sum()
    }

    /// Gives the memory of all tensors' pages back to the system: for when the weights are held elsewhere. They stay
    /// readable; whoever reads one again has the system fetch its page again.
    pub fn forget(&self) -> std::io::Result<()> {
        for shard in &self.shards {
            match &shard.bytes {
                // SAFETY: what is seen through the map does not change: it is shared with the file and cannot be
                // written to, so a page that is dropped comes back with the same bytes of the file.
                Bytes::Mapped(map) => unsafe {
                    let len = map.len() - shard.data;
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, shard.data, len)?;
                },
                #[cfg(any(test, feature = "toys"))]
                Bytes::Owned(_) => {}
            }
        }
        Ok(())
    }

    /// The metadata value under `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.first().get(key)
    }

    /// Metadata keys in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.first().keys()
    }

    /// The text under `key`.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        match self.need(key)? {
            Value::Text(text) => Ok(text),
            other => Err(GgufError::kind(key, "text", other)),
        }
    }

    /// The number under `key`, of whichever integer type, if it fits u32.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        let value = self.need(key)?;
        match value {
            Value::Integer(n) => u32::try_from(n).ok(),
            _ => None,
        }
        .ok_or_else(|| GgufError::kind(key, "a whole number below 2^32", value))
    }

    /// The number under `key`, f32 or f64.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        match self.need(key)? {
            Value::Float(x) => Ok(x as f32),
            other => Err(GgufError::kind(key, "a floating-point number", other)),
        }
    }

    /// The truth value under `key`.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        match self.need(key)? {
            Value::Bool(b) => Ok(b),
            other => Err(GgufError::kind(key, "true or false", other)),
        }
    }

    /// The array of texts under `key`.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        const WANT: &str = "an array of text";
        let (mut cursor, kind, len) = self.array(key, WANT)?;
        if kind != kind::STRING {
            return Err(GgufError::kind(key, WANT, Value::Array { len }));
        }
        // `len` items were walked when the file was opened, at 8 bytes or more each.
        let items: Result<Vec<&str>, Flaw> = (0..len).map(|_| cursor.text()).collect();
        items.map_err(|flaw| flaw.at(&format!("the value of `{key}`")))
    }

    /// The array of integers under `key`, of whichever integer type of at most 32 bits.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, GgufError> {
        const WANT: &str = "an array of integers of at most 32 bits";
        let (mut cursor, kind, len) = self.array(key, WANT)?;
        if !matches!(kind, kind::U8 | kind::I8 | kind::U16 | kind::I16 | kind::U32 | kind::I32) {
            return Err(GgufError::kind(key, WANT, Value::Array { len }));
        }
        let items: Result<Vec<i64>, Flaw> =
            (0..len).map(|_| cursor.integer(kind).map(|n| n as i64)).collect();
        items.map_err(|flaw| flaw.at(&format!("the value of `{key}`")))
    }

    /// The array of numbers under `key`, f32.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        const WANT: &str = "an array of f32 numbers";
        let (mut cursor, kind, len) = self.array(key, WANT)?;
        if kind != kind::F32 {
            return Err(GgufError::kind(key, WANT, Value::Array { len }));
        }
        let items: Result<Vec<f32>, Flaw> = (0..len).map(|_| cursor.u32().map(f32::from_bits)).collect();
        items.map_err(|flaw| flaw.at(&format!("the value of `{key}`")))
    }

    /// Where the tensor called `name` is, if it is there in a format that Tartlet computes with.
    pub fn extent(&self, name: &str) -> Result<Extent, GgufError> {
        let missing = || GgufError::NoTensor { name: name.to_owned() };
        let place = *self.names.get(name).ok_or_else(missing)?;
        let record = self.record(place).1;
        let kind = Quant::from_ggml(record.number)
            .ok_or_else(|| GgufError::Format { name: name.to_owned(), format: format_name(record.number) })?;
        Ok(Extent { place, kind, dims: record.dims, skipped: 0 })
    }

    /// What lies at an extent of this model.
    pub fn tensor_at(&self, extent: &Extent) -> Tensor<'_> {
        let Extent { place, kind, dims, skipped } = *extent;
        let (shard, record) = self.record(place);
        let start = record.at + skipped * kind.row_bytes(dims[0]);
        let bytes = &shard.bytes[start..][..kind.row_bytes(dims.iter().product())];
        Tensor { name: &record.name, kind, dims, bytes }
    }

    /// The tensor called `name`, if it is there in a format that Tartlet computes with.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, GgufError> {
        self.extent(name).map(|extent| self.tensor_at(&extent))
    }

    /// Whether there is a tensor called `name`, in whichever format.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// All tensor records in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = Listed<'_>> {
        self.shards.iter().flat_map(|shard| &shard.records).map(|record| Listed {
            name: &record.name,
            format: format_name(record.number),
            dims: record.dims,
            bytes: Quant::from_ggml(record.number).map(|_| record.len),
        })
    }

    fn need(&self, key: &str) -> Result<Value<'_>, GgufError> {
        self.get(key).ok_or_else(|| GgufError::Missing { key: key.to_owned() })
    }

    /// A cursor on the first item of an array, the items' kind and their number.
    fn array(&self, key: &str, want: &'static str) -> Result<(Cursor<'_>, u32, usize), GgufError> {
        let value = self.need(key)?;
        let array = self.first().array(key).ok_or_else(|| GgufError::kind(key, want, value))?;
        array.map_err(|flaw| flaw.at(&format!("the value of `{key}`")))
    }

    fn record(&self, place: Place) -> (&Shard, &Record) {
        let shard = &self.shards[place.shard as usize];
        (shard, &shard.records[place.record as usize])
    }

    fn first(&self) -> &Shard {
        &self.shards[0]
    }
}

/// The bytes of a file.
fn map(path: &Path) -> Result<Bytes, GgufError> {
    let fail = |error| GgufError::Open { error };
    // Asked of the path first: opening a FIFO would wait for a writer.
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is not a regular file: give the path of a .gguf file")));
    }
    let file = File::open(path).map_err(fail)?;
    // SAFETY: the map is read only. That nobody writes to the file in place while it is served is the operator's contract
    // (models are replaced by rename): text is checked when it is read and then taken for text as long as a table is
    // built of it, and of a file that was shortened the kernel would end the process (SIGBUS).
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
    Ok(Bytes::Mapped(map))
}

#[cfg(test)]
mod tests {
    use super::super::toy::{Items, Writer};
    use super::*;

    fn refusal(bytes: Vec<u8>) -> String {
        Gguf::from_bytes(bytes).err().expect("refused").to_string()
    }

    #[test]
    fn values_come_back() {
        let words = ["a".to_owned(), String::new(), "é".to_owned()];
        let mut writer = Writer::new()
            .str("s", "text")
            .u32("n", 7)
            .f32("x", 0.1)
            .bool("b", true)
            .array("words", Items::Strings(&words))
            .array("numbers", Items::I32(&[-1, 2]))
            .tensor("t", &[2, 3], Quant::F32, (0..24).collect());
        for version in [2, 3] {
            writer.version = version;
            let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
            assert_eq!((gguf.version(), gguf.file_bytes()), (version, writer.bytes().len()));
            assert_eq!(gguf.str("s").unwrap(), "text");
            assert_eq!(
                (gguf.u32("n").unwrap(), gguf.f32("x").unwrap(), gguf.bool("b").unwrap()),
                (7, 0.1, true)
            );
            assert_eq!(gguf.strings("words").unwrap(), words);
            assert_eq!(gguf.integers("numbers").unwrap(), [-1, 2]);
            assert_eq!(gguf.get("words"), Some(Value::Array { len: 3 }));
            assert_eq!(gguf.keys().collect::<Vec<_>>(), ["s", "n", "x", "b", "words", "numbers"]);
            let tensor = gguf.tensor("t").unwrap();
            assert_eq!(
                (tensor.dims, tensor.rows(), tensor.row(2)),
                ([2, 3, 1, 1], 3, &(16..24).collect::<Vec<u8>>()[..])
            );
            assert!(optional(gguf.u32("absent")).unwrap().is_none());
            assert_eq!(
                gguf.u32("s").unwrap_err().to_string(),
                "the GGUF metadata key `s` should be a whole number below 2^32, but is text"
            );
            assert!(
                optional(gguf.strings("numbers")).is_err()
                    && gguf.integers("words").is_err()
                    && gguf.str("n").is_err()
            );
            assert_eq!(gguf.tensor("u").unwrap_err().to_string(), "the GGUF file has no tensor `u`");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_offset() {
        assert!(refusal(Vec::new()).contains("at byte 0: the magic `GGUF` is not there"));
        assert!(refusal(b"PK\x03\x04 not a model at all".to_vec()).contains("magic"));
        assert!(refusal(b"GGUF\x01\0\0\0".to_vec()).contains("version 1"));
        assert!(refusal(b"GGUF\0\0\0\x03".to_vec()).contains("big endian"));
        assert!(refusal(b"GGUF\x04\0\0\0".to_vec()).contains("version 4"));

        let counts = |tensors: u64, pairs: u64| {
            [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &pairs.to_le_bytes(), &[0; 64]].concat()
        };
        let said = refusal(counts(u64::MAX, 0));
        assert!(
            said.contains("byte 8, the tensor count: it counts 18446744073709551615, but only 72 bytes"),
            "{said}"
        );
        assert!(refusal(counts(0, 1 << 40)).contains("byte 16, the metadata count"));

        let twice = Writer::new().u32("aa", 1).u32("ab", 2).bytes();
        let at = twice.windows(2).position(|two| two == b"ab").unwrap();
        let mut same = twice.clone();
        same[at + 1] = b'a';
        assert!(refusal(same).contains("`aa`: the key appears twice"));

        let tensors = Writer::new().tensor("ta", &[1], Quant::F32, vec![0; 4]).tensor(
            "tb",
            &[1],
            Quant::F32,
            vec![0; 4],
        );
        let mut same = tensors.bytes();
        let at = same.windows(2).position(|two| two == b"tb").unwrap();
        same[at + 1] = b'a';
        assert!(refusal(same).contains("tensor `ta`: the name appears twice"));
        let mut unaligned = tensors.bytes();
        unaligned[at + 2 + 4 + 8 + 4] = 8;
        assert!(refusal(unaligned).contains("tensor `tb`: its data offset 8 is not a multiple of 32"));
        let mut far = tensors.bytes();
        far[at + 2 + 4 + 8 + 4 + 7] = 0x40;
        assert!(refusal(far).contains("the data of tensor `tb`: its 4 bytes"));
        let mut shared = tensors.bytes();
        shared[at + 2 + 4 + 8 + 4] = 0;
        assert!(refusal(shared).contains(
            "the data of the tensors: tensor `tb` begins there, within the 4 bytes of tensor `ta`; fetch it again"
        ));
        let mut wide = tensors.bytes();
        wide[at + 2 + 4..][..8].fill(0xff);
        assert!(refusal(wide).contains("multiply to more than any memory"));

        let with = |dims: &[usize], number| Writer::new().tensor_of("t", dims, number, vec![0; 64]).bytes();
        assert!(refusal(with(&[33], 8)).contains("rows of 33 values are not whole Q8_0 blocks of 32"));
        assert!(refusal(with(&[0], 0)).contains("a dimension of 0"));
        assert!(refusal(with(&[1; 5], 0)).contains("it has 5 dimensions"));
        assert!(refusal(with(&[1 << 20, 1 << 20, 1 << 20], 0)).contains("more than any memory"));
        assert!(refusal(with(&[128], 14)).contains("rows of 128 values are not whole Q6_K blocks of 256"));
        let other = Gguf::from_bytes(with(&[256], 10)).unwrap();
        let said = other.tensor("t").unwrap_err().to_string();
        assert!(
            said.contains("`t` is of type Q2_K; Tartlet computes with F32,") && said.contains("Q6_K"),
            "{said}"
        );

        assert!(refusal(Writer::new().u32("general.alignment", 33).bytes()).contains("`general.alignment`"));
        let mut deep = Writer::new().str("deep", "").bytes();
        deep.truncate(24 + 12);
        for _ in 0..100_000 {
            deep.extend(kind::ARRAY.to_le_bytes());
            deep.extend(if deep.len() == 40 { vec![] } else { 1u64.to_le_bytes().to_vec() });
        }
        assert!(refusal(deep).contains("the value of `deep`"));
    }

    /// The memory goes, the values stay.
    #[test]
    fn forgotten_pages_come_back() {
        let path = std::env::temp_dir().join(format!("tartlet-forget-{}.gguf", std::process::id()));
        let bytes: Vec<u8> = (0..1u32 << 16).flat_map(u32::to_le_bytes).collect();
        let writer = Writer::new().tensor("t", &[1 << 16], Quant::F32, bytes.clone());
        std::fs::write(&path, writer.bytes()).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let resident = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = maps.split_once(&*path.to_string_lossy()).expect("mapped").1;
            let line = ours.lines().find(|line| line.starts_with("Rss:")).expect("its size");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number")
        };
        for _ in 0..2 {
            assert!(gguf.tensor("t").unwrap().bytes == bytes);
            assert!(resident() >= 256, "{} KiB", resident());
            gguf.forget().unwrap();
            assert!(resident() < 16, "{} KiB", resident());
        }
    }

    #[test]
    fn a_path_that_is_no_model_is_an_error() {
        let said = |path: &str| Gguf::open(Path::new(path)).err().expect("refused").to_string();
        assert!(said("/nonexistent/model.gguf").starts_with("cannot open the model file: No such file"));
        assert!(said("/").contains("not a regular file"));
        assert!(said("/dev/zero").contains("not a regular file"));
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(said(manifest).contains("magic"));
    }
}
