//! A walk over one MessagePack frame that decodes nothing: is it one map with named fields, within bounds?
//!
//! Owns: the bounds on nesting and on the number of values, which keep a hostile frame from becoming a deep recursion
//! or a tower of small allocations; and the `corr_id`, found even in a frame that goes bad further on, and the `type`. Never:
//! what the fields mean.

use crate::limits;

/// What is found on the walk: the first of each at the top that can be read.
#[derive(Default)]
pub struct Outline<'a> {
    pub corr_id: Option<u32>,
    /// The text of `type`.
    pub kind: Option<&'a [u8]>,
}

/// Walks `frame`, and tells what it has found also when the walk then fails. The error is a phrase that completes
/// "the frame is …".
pub fn check<'a>(frame: &'a [u8], seen: &mut Outline<'a>) -> Result<(), &'static str> {
    let mut walk = Walk { rest: frame, values: 0 };
    let fields = match walk.head()? {
        Head::Map(fields) => fields,
        _ => return Err("no map with named fields"),
    };
    for _ in 0..fields {
        let Head::Text(name) = walk.head()? else {
            return Err("a map with a field name that is no string");
        };
        let before = walk.rest;
        walk.skip(1)?;
        let value = &before[..before.len() - walk.rest.len()];
        if name == b"corr_id" && seen.corr_id.is_none() {
            seen.corr_id = unsigned(value);
        } else if name == b"type"
            && seen.kind.is_none()
            && let Ok(Head::Text(kind)) = (Walk { rest: value, values: 0 }).head()
        {
            seen.kind = Some(kind);
        }
    }
    if walk.rest.is_empty() { Ok(()) } else { Err("longer than its message") }
}

struct Walk<'a> {
    rest: &'a [u8],
    values: usize,
}

/// What starts at a position. Scalars, bin and ext are passed over whole.
enum Head<'a> {
    Scalar,
    Text(&'a [u8]),
    /// Elements that follow.
    Array(usize),
    /// Pairs that follow.
    Map(usize),
}

impl<'a> Walk<'a> {
    fn head(&mut self) -> Result<Head<'a>, &'static str> {
        self.values += 1;
        if self.values > limits::FRAME_VALUES {
            return Err("made of more values than any message needs");
        }
        let marker = self.take(1)?[0];
        Ok(match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Head::Scalar,
            0x80..=0x8f => Head::Map(usize::from(marker & 0x0f)),
            0x90..=0x9f => Head::Array(usize::from(marker & 0x0f)),
            0xa0..=0xbf => Head::Text(self.take(usize::from(marker & 0x1f))?),
            0xc1 => return Err("not MessagePack"),
            0xc4..=0xc6 => self.sized(marker - 0xc4, 0)?,
            0xc7..=0xc9 => self.sized(marker - 0xc7, 1)?,
            0xca => self.scalar(4)?,
            0xcb => self.scalar(8)?,
            0xcc..=0xcf => self.scalar(1 << (marker - 0xcc))?,
            0xd0..=0xd3 => self.scalar(1 << (marker - 0xd0))?,
            0xd4..=0xd8 => self.scalar(1 + (1 << (marker - 0xd4)))?,
            0xd9..=0xdb => {
                let length = self.length(1 << (marker - 0xd9))?;
                Head::Text(self.take(length)?)
            }
            0xdc | 0xdd => Head::Array(self.length(2 << (marker - 0xdc))?),
            0xde | 0xdf => Head::Map(self.length(2 << (marker - 0xde))?),
        })
    }

    /// Passes over one value that lies `depth` levels deep.
    fn skip(&mut self, depth: usize) -> Result<(), &'static str> {
        let inside = match self.head()? {
            Head::Scalar | Head::Text(_) => return Ok(()),
            Head::Array(elements) => elements,
            Head::Map(pairs) => pairs.saturating_mul(2),
        };
        if depth >= limits::FRAME_DEPTH {
            return Err("nested deeper than any message");
        }
        // A claimed count costs nothing: each value takes at least one byte of what is there.
        (0..inside).try_for_each(|_| self.skip(depth + 1))
    }

    fn scalar(&mut self, bytes: usize) -> Result<Head<'a>, &'static str> {
        self.take(bytes).map(|_| Head::Scalar)
    }

    /// A payload of 1, 2 or 4 length bytes (by `width`), then `extra` bytes and the payload.
    fn sized(&mut self, width: u8, extra: usize) -> Result<Head<'a>, &'static str> {
        let length = self.length(1 << width)?;
        self.scalar(length.saturating_add(extra))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, &'static str> {
        Ok(self.take(bytes)?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or("cut short")?;
        self.rest = rest;
        Ok(taken)
    }
}

/// The value of an encoded unsigned integer that fits u32; encoders may choose any width.
fn unsigned(value: &[u8]) -> Option<u32> {
    let (&marker, digits) = value.split_first()?;
    match marker {
        0x00..=0x7f => Some(u32::from(marker)),
        0xcc..=0xcf => {
            u32::try_from(digits.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte))).ok()
        }
        // A positive number in a signed width.
        0xd0..=0xd3 if digits.first().is_some_and(|&byte| byte < 0x80) => {
            u32::try_from(digits.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte))).ok()
        }
        _ => None,
    }
}
