//! Operations on fields of bits and bytes: lop3, prmt, shf, bfe, bfi, counts, dp4a.

use crate::alu::{Alu, Function, Lanes};
use crate::modifiers::Modifiers;
use crate::types::Type;

pub fn resolve(opcode: &str, words: &mut Modifiers) -> Result<Option<Alu>, String> {
    let (function, to, from): (Function, Type, Vec<Type>) = match opcode {
        "prmt" => {
            let kind = words.kind()?;
            let function: Function = match words.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]) {
                None => |x, y, z, _, out| each(out, |i| permute(x[i], y[i], z[i])),
                Some("f4e") => |x, y, z, _, out| each(out, |i| bytes(x[i], y[i], |n| (z[i] & 3) + n)),
                Some("b4e") => {
                    |x, y, z, _, out| each(out, |i| bytes(x[i], y[i], |n| ((z[i] & 3) + 8 - n) & 7))
                }
                Some("rc8") => |x, y, z, _, out| each(out, |i| bytes(x[i], y[i], |_| z[i] & 3)),
                Some("ecl") => |x, y, z, _, out| each(out, |i| bytes(x[i], y[i], |n| n.max(z[i] & 3))),
                Some("ecr") => |x, y, z, _, out| each(out, |i| bytes(x[i], y[i], |n| n.min(z[i] & 3))),
                _ => |x, y, z, _, out| each(out, |i| bytes(x[i], y[i], |n| (z[i] & 1) * 2 + (n & 1))),
            };
            (function, kind, vec![kind; 3])
        }
        "shf" => {
            let left = words.has("l");
            let wrap = words.has("wrap");
            if !left && !words.has("r") || !wrap && !words.has("clamp") {
                return Err("shf needs .l or .r and .wrap or .clamp".into());
            }
            let kind = words.kind()?;
            let function: Function = match (left, wrap) {
                (true, true) => |x, y, z, _, out| each(out, |i| (y[i] << 32 | x[i]) << (z[i] & 31) >> 32),
                (true, false) => |x, y, z, _, out| {
                    each(out, |i| if z[i] > 31 { x[i] } else { (y[i] << 32 | x[i]) << z[i] >> 32 });
                },
                (false, true) => {
                    |x, y, z, _, out| each(out, |i| (y[i] << 32 | x[i]) >> (z[i] & 31) & 0xffff_ffff)
                }
                (false, false) => {
                    |x, y, z, _, out| each(out, |i| (y[i] << 32 | x[i]) >> z[i].min(32) & 0xffff_ffff)
                }
            };
            (function, kind, vec![kind, kind, Type::U32])
        }
        "bfe" => {
            let kind = words.kind()?;
            let function: Function = match kind {
                Type::U32 => |x, y, z, _, out| each(out, |i| extract(x[i], y[i], z[i], 32, false)),
                Type::S32 => |x, y, z, _, out| each(out, |i| extract(x[i], y[i], z[i], 32, true)),
                Type::U64 => |x, y, z, _, out| each(out, |i| extract(x[i], y[i], z[i], 64, false)),
                Type::S64 => |x, y, z, _, out| each(out, |i| extract(x[i], y[i], z[i], 64, true)),
                _ => return Ok(None),
            };
            (function, kind, vec![kind, Type::U32, Type::U32])
        }
        "popc" | "clz" | "brev" => {
            let kind = words.kind()?;
            let function: Function = match (opcode, kind) {
                ("popc", _) => |x, _, _, _, out| each(out, |i| u64::from(x[i].count_ones())),
                ("clz", Type::B32) => {
                    |x, _, _, _, out| each(out, |i| u64::from((x[i] as u32).leading_zeros()))
                }
                ("clz", Type::B64) => |x, _, _, _, out| each(out, |i| u64::from(x[i].leading_zeros())),
                ("brev", Type::B32) => {
                    |x, _, _, _, out| each(out, |i| u64::from((x[i] as u32).reverse_bits()))
                }
                ("brev", Type::B64) => |x, _, _, _, out| each(out, |i| x[i].reverse_bits()),
                _ => return Ok(None),
            };
            (function, if opcode == "brev" { kind } else { Type::U32 }, vec![kind])
        }
        "bfind" => {
            let amount = words.has("shiftamt");
            let kind = words.kind()?;
            let function: Function = match (kind, amount) {
                (Type::U32 | Type::U64, false) => |x, _, _, _, out| each(out, |i| highest(x[i])),
                (Type::S32, false) => {
                    |x, _, _, _, out| each(out, |i| highest(folded(Type::S32.extend(x[i]))))
                }
                (Type::S64, false) => |x, _, _, _, out| each(out, |i| highest(folded(x[i]))),
                (Type::U32, true) => |x, _, _, _, out| each(out, |i| amount_of(highest(x[i]), 31)),
                (Type::U64, true) => |x, _, _, _, out| each(out, |i| amount_of(highest(x[i]), 63)),
                (Type::S32, true) => {
                    |x, _, _, _, out| each(out, |i| amount_of(highest(folded(Type::S32.extend(x[i]))), 31))
                }
                (Type::S64, true) => |x, _, _, _, out| each(out, |i| amount_of(highest(folded(x[i])), 63)),
                _ => return Ok(None),
            };
            (function, Type::U32, vec![kind])
        }
        "dp4a" => {
            let (a, b) = (words.kind()?, words.kind()?);
            let function: Function = match (a, b) {
                (Type::S32, Type::S32) => dp4a::<true, true>,
                (Type::S32, Type::U32) => dp4a::<true, false>,
                (Type::U32, Type::S32) => dp4a::<false, true>,
                (Type::U32, Type::U32) => dp4a::<false, false>,
                _ => return Ok(None),
            };
            let sum = if a.signed() || b.signed() { Type::S32 } else { Type::U32 };
            (function, sum, vec![a, b, sum])
        }
        "dp2a" => {
            let low = words.has("lo");
            if !low && !words.has("hi") {
                return Err("dp2a needs .lo or .hi".into());
            }
            let (a, b) = (words.kind()?, words.kind()?);
            let function: Function = match (a.signed(), b.signed(), low) {
                (true, true, true) => dp2a::<true, true, 0>,
                (true, false, true) => dp2a::<true, false, 0>,
                (false, true, true) => dp2a::<false, true, 0>,
                (false, false, true) => dp2a::<false, false, 0>,
                (true, true, false) => dp2a::<true, true, 16>,
                (true, false, false) => dp2a::<true, false, 16>,
                (false, true, false) => dp2a::<false, true, 16>,
                (false, false, false) => dp2a::<false, false, 16>,
            };
            let sum = if a.signed() || b.signed() { Type::S32 } else { Type::U32 };
            (function, sum, vec![a, b, sum])
        }
        "copysign" => {
            let kind = words.kind()?;
            let function: Function = match kind {
                // The sign of a, the magnitude of b.
                Type::F32 => |x, y, _, _, out| each(out, |i| x[i] & 0x8000_0000 | y[i] & 0x7fff_ffff),
                Type::F64 => |x, y, _, _, out| each(out, |i| x[i] & 1 << 63 | y[i] & !(1 << 63)),
                _ => return Ok(None),
            };
            (function, kind, vec![kind; 2])
        }
        _ => return Ok(None),
    };
    Ok(Some(Alu { function, to, from }))
}

/// lop3: every bit looks itself up in the table. One pass over the lanes for each entry that is set.
pub fn lop3(a: &Lanes, b: &Lanes, c: &Lanes, table: u8) -> Lanes {
    let mut out = [0; 32];
    for entry in (0..8).filter(|entry| table >> entry & 1 == 1) {
        let flip = |bit: u8| if entry >> bit & 1 == 1 { 0 } else { u64::MAX };
        let [x, y, z] = [flip(2), flip(1), flip(0)];
        for i in 0..32 {
            out[i] |= (a[i] ^ x) & (b[i] ^ y) & (c[i] ^ z) & 0xffff_ffff;
        }
    }
    out
}

/// bfi, which has four sources as well: inserts the low `length` bits of `a` into `b` at `start`.
pub fn insert(a: u64, b: u64, start: u64, length: u64, width: u64) -> u64 {
    let (start, length) = (start & 0xff, length & 0xff);
    if start >= width || length == 0 {
        return b;
    }
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    let mask = ones << start & (u64::MAX >> (64 - width));
    b & !mask | a << start & mask
}

fn each(out: &mut Lanes, of: impl Fn(usize) -> u64) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = of(i);
    }
}

fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let all = b << 32 | a & 0xffff_ffff;
    (0..4).fold(0, |out, n| {
        let pick = selector >> (4 * n);
        let byte = all >> (8 * (pick & 7)) & 0xff;
        // The high bit of a selector replicates the byte's sign.
        let byte = if pick & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        out | byte << (8 * n)
    })
}

fn bytes(a: u64, b: u64, from: impl Fn(u64) -> u64) -> u64 {
    let all = b << 32 | a & 0xffff_ffff;
    (0..4).fold(0, |out, n| out | (all >> (8 * from(n)) & 0xff) << (8 * n))
}

fn extract(value: u64, start: u64, length: u64, width: u64, signed: bool) -> u64 {
    let (start, length) = (start & 0xff, length & 0xff);
    let value = if width == 32 { value & 0xffff_ffff } else { value };
    let sign = signed && length > 0 && value >> (start + length - 1).min(width - 1) & 1 == 1;
    let field = if start >= width { 0 } else { value >> start };
    let kept = length.min(width.saturating_sub(start));
    let ones = if kept >= 64 { u64::MAX } else { (1 << kept) - 1 };
    let out = field & ones | if sign { !ones } else { 0 };
    if width == 32 { out & 0xffff_ffff } else { out }
}

fn highest(value: u64) -> u64 {
    if value == 0 { 0xffff_ffff } else { 63 - u64::from(value.leading_zeros()) }
}

/// A negative number's highest bit that differs from the sign.
fn folded(value: u64) -> u64 {
    if (value as i64) < 0 { !value } else { value }
}

fn amount_of(highest: u64, top: u64) -> u64 {
    if highest == 0xffff_ffff { highest } else { top - highest }
}

fn dp4a<const A: bool, const B: bool>(x: &Lanes, y: &Lanes, z: &Lanes, _: u64, out: &mut Lanes) {
    fn byte<const SIGNED: bool>(word: u64, n: u32) -> i32 {
        let byte = (word >> (8 * n)) as u8;
        if SIGNED { i32::from(byte as i8) } else { i32::from(byte) }
    }
    for i in 0..32 {
        let dot = (0..4).fold(0i32, |sum, n| sum + byte::<A>(x[i], n) * byte::<B>(y[i], n));
        out[i] = u64::from((z[i] as u32).wrapping_add(dot as u32));
    }
}

fn dp2a<const A: bool, const B: bool, const AT: u32>(
    x: &Lanes,
    y: &Lanes,
    z: &Lanes,
    _: u64,
    out: &mut Lanes,
) {
    for i in 0..32 {
        let dot = (0..2).fold(0i32, |sum, n| {
            let (half, byte) = ((x[i] >> (16 * n)) as u16, (y[i] >> (AT + 8 * n)) as u8);
            let half = if A { i32::from(half as i16) } else { i32::from(half) };
            let byte = if B { i32::from(byte as i8) } else { i32::from(byte) };
            sum.wrapping_add(half.wrapping_mul(byte))
        });
        out[i] = u64::from((z[i] as u32).wrapping_add(dot as u32));
    }
}
