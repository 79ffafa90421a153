//! Unicode's composed form (NFC) by the tables of Unicode 9, as the reference tokenizer has them.
//!
//! Owns: which characters came later and would be moved or composed by the newer tables at hand. Never: a table of Unicode.

use std::borrow::Cow;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The composed form of a text. A character that Unicode 9 lacks stays where it is, and nothing composes with it or across
/// it: what stands between two of them is a text of its own.
pub(super) fn composed(text: &str) -> Cow<'_, str> {
    if text.split(later).all(is_nfc) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive(later) {
        let known = part.trim_end_matches(later);
        out.extend(known.nfc());
        out.push_str(&part[known.len()..]);
    }
    Cow::Owned(out)
}

fn later(c: char) -> bool {
    c as u32 >= LATER[0] && LATER.partition_point(|edge| *edge <= c as u32) % 2 == 1
}

/// The first of some characters, the first one after them, and so on. Where Unicode 18 (`unicode-normalization` 0.1.26) and
/// Unicode 9 (`unicode-normalization-alignments` 0.1.12, which PyPI `tokenizers` has) differ by class or parts: 227
/// characters, and between them such as are neither moved nor composed by either.
const LATER: [u32; 46] = [
    0x5c8, 0x5ca, 0x7fd, 0x7fe, 0x897, 0x8d4, 0x9fe, 0x9ff, 0xc3c, 0xc3d, 0xd3b, 0xd3d, 0xeba, 0xebb, 0x1715,
    0x1716, 0x1abf, 0x1af1, 0x1df6, 0x1dfb, 0xa82c, 0xa82d, 0x105c9, 0x105e5, 0x10d24, 0x10f86, 0x11070,
    0x11071, 0x1133b, 0x1133c, 0x11382, 0x113d1, 0x1145e, 0x1145f, 0x11839, 0x11a9a, 0x11d42, 0x16130,
    0x16d63, 0x16ff2, 0x1d127, 0x1d129, 0x1d250, 0x1d282, 0x1e08f, 0x1e6f6,
];
