//! Walks the bytes of a GGUF file: lengths, names, values, tensor records.
//!
//! Owns: the encoding of GGUF's values and tensor records, and the checks of every length against what is left.
//! Never: what stands where in a file (`gguf.rs`), nor memory for a value.

use super::gguf::GgufError;
use super::quant::Quant;
use crate::limits;
use std::sync::Arc;

/// Numbers of the metadata value types.
pub(super) mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// A reading position in the file.
pub(super) struct Cursor<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

/// What is wrong at a byte; the caller knows the field's name.
#[derive(Debug)]
pub(super) struct Flaw {
    pub offset: usize,
    pub what: String,
}

impl Flaw {
    pub fn at(self, field: &str) -> GgufError {
        GgufError::Corrupt { field: field.to_owned(), offset: self.offset, what: self.what }
    }
}

/// One tensor as the file describes it: `bytes[at..][..len]`. `len` is 0 for a format we do not know the size of.
pub(super) struct Record {
    pub name: Arc<str>,
    pub number: u32,
    pub dims: [usize; 4],
    pub at: usize,
    pub len: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn flaw<T>(&self, what: String) -> Result<T, Flaw> {
        Err(Flaw { offset: self.at, what })
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Flaw> {
        if len > self.left() {
            return self.flaw(format!("{len} bytes are wanted and {} are left", self.left()));
        }
        let taken = &self.bytes[self.at..][..len];
        self.at += len;
        Ok(taken)
    }

    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Flaw> {
        self.array_of().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Flaw> {
        self.array_of().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `each` bytes: never more than fit into what is left, nor than `limit`.
    pub fn count(&mut self, each: usize, limit: usize) -> Result<usize, Flaw> {
        let offset = self.at;
        let claimed = self.u64()?;
        let room = self.left() / each;
        let flaw = |what| Flaw { offset, what };
        let count = usize::try_from(claimed)
            .ok()
            .filter(|&count| count <= room)
            .ok_or_else(|| flaw(format!("it counts {claimed}, but only {} bytes are left", self.left())))?;
        if count > limit {
            return Err(flaw(format!("it counts {count}; the limit is {limit}")));
        }
        Ok(count)
    }

    /// A text of any length that the file holds.
    pub fn text(&mut self) -> Result<&'a str, Flaw> {
        let len = self.count(1, usize::MAX)?;
        let offset = self.at;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|error| Flaw {
            offset: offset + error.valid_up_to(),
            what: "the text is not UTF-8".into(),
        })
    }

    /// The name of a key or a tensor.
    pub fn name(&mut self) -> Result<&'a str, Flaw> {
        let offset = self.at;
        let name = self.text()?;
        if name.is_empty() || name.len() > limits::GGUF_NAME_BYTES {
            let what =
                format!("a name of {} bytes; 1 to {} are possible", name.len(), limits::GGUF_NAME_BYTES);
            return Err(Flaw { offset, what });
        }
        Ok(name)
    }

    /// An integer of the given kind.
    pub fn integer(&mut self, kind: u32) -> Result<i128, Flaw> {
        Ok(match kind {
            kind::U8 => u8::from_le_bytes(self.array_of()?).into(),
            kind::I8 => i8::from_le_bytes(self.array_of()?).into(),
            kind::U16 => u16::from_le_bytes(self.array_of()?).into(),
            kind::I16 => i16::from_le_bytes(self.array_of()?).into(),
            kind::U32 => u32::from_le_bytes(self.array_of()?).into(),
            kind::I32 => i32::from_le_bytes(self.array_of()?).into(),
            kind::U64 => u64::from_le_bytes(self.array_of()?).into(),
            kind::I64 => i64::from_le_bytes(self.array_of()?).into(),
            _ => return self.flaw(format!("value type {kind} is not an integer")),
        })
    }

    /// The item kind and the length of an array, leaving the cursor on the first item.
    pub fn array_head(&mut self) -> Result<(u32, usize), Flaw> {
        let offset = self.at;
        let kind = self.u32()?;
        let each = match kind {
            kind::STRING => 8,
            kind::ARRAY => 12,
            _ => scalar_bytes(kind)
                .ok_or_else(|| Flaw { offset, what: format!("arrays of value type {kind} are unknown") })?,
        };
        Ok((kind, self.count(each, limits::GGUF_ARRAY_ITEMS)?))
    }

    /// Passes over one value, checking all of it.
    pub fn skip(&mut self, kind: u32, depth: usize) -> Result<(), Flaw> {
        match kind {
            kind::BOOL => {
                let offset = self.at;
                match self.take(1)? {
                    [0 | 1] => Ok(()),
                    other => Err(Flaw { offset, what: format!("{} is neither true nor false", other[0]) }),
                }
            }
            kind::STRING => self.text().map(drop),
            kind::ARRAY if depth == limits::GGUF_ARRAY_DEPTH => {
                self.flaw(format!("arrays nest deeper than {}", limits::GGUF_ARRAY_DEPTH))
            }
            kind::ARRAY => {
                let (item, len) = self.array_head()?;
                match scalar_bytes(item) {
                    // `array_head` has checked that so many fit.
                    Some(each) if item != kind::BOOL => self.take(len * each).map(drop),
                    _ => (0..len).try_for_each(|_| self.skip(item, depth + 1)),
                }
            }
            _ => match scalar_bytes(kind) {
                Some(len) => self.take(len).map(drop),
                None => self.flaw(format!("value type {kind} is unknown")),
            },
        }
    }

    /// The tensor record under the cursor, past its name. `at` is still relative to the data.
    pub fn record(&mut self, name: Arc<str>, alignment: usize) -> Result<Record, Flaw> {
        let start = self.at;
        let flaw = |offset, what: String| Flaw { offset, what };
        let count = self.u32()? as usize;
        if !(1..=4).contains(&count) {
            return Err(flaw(start, format!("it has {count} dimensions; 1 to 4 are possible")));
        }
        let mut dims = [1usize; 4];
        let mut values = 1usize;
        for dim in &mut dims[..count] {
            let offset = self.at;
            let n = self.u64()?;
            *dim = usize::try_from(n)
                .ok()
                .filter(|&n| n > 0)
                .ok_or_else(|| flaw(offset, format!("a dimension of {n}")))?;
            // Twice as a signed number: no later product of a size in bits or bytes can overflow.
            values = values
                .checked_mul(*dim)
                .filter(|&v| v <= isize::MAX as usize / 64)
                .ok_or_else(|| flaw(offset, "its dimensions multiply to more than any memory".into()))?;
        }
        let offset = self.at;
        let number = self.u32()?;
        let len = match Quant::from_ggml(number) {
            Some(kind) if dims[0] % kind.block_len() != 0 => {
                let what =
                    format!("rows of {} values are not whole {kind} blocks of {}", dims[0], kind.block_len());
                return Err(flaw(offset, what));
            }
            Some(kind) => kind.row_bytes(values),
            // Refused when somebody asks for it; a file may still be described.
            None => 0,
        };
        let offset = self.at;
        let at = self.u64()?;
        let at = usize::try_from(at)
            .ok()
            .filter(|at| at % alignment == 0)
            .ok_or_else(|| flaw(offset, format!("its data offset {at} is not a multiple of {alignment}")))?;
        Ok(Record { name, number, dims, at, len })
    }
}

fn scalar_bytes(kind: u32) -> Option<usize> {
    Some(match kind {
        kind::U8 | kind::I8 | kind::BOOL => 1,
        kind::U16 | kind::I16 => 2,
        kind::U32 | kind::I32 | kind::F32 => 4,
        kind::U64 | kind::I64 | kind::F64 => 8,
        _ => return None,
    })
}

/// The name of a tensor format, as every tool prints it.
pub(super) fn format_name(number: u32) -> String {
    if let Some(quant) = Quant::from_ggml(number) {
        return quant.to_string();
    }
    let name = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return format!("number {number}, unknown to Tartlet,"),
    };
    name.to_owned()
}
