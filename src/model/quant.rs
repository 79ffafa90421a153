//! How numbers lie in a tensor's bytes, and how they become f32 again.
//!
//! Owns: the formats' block layout and the exact dequantisation (the same roundings, in the same order, as PyPI
//! `gguf`: the golden files depend on it). Never: matrix products; a backend has its own kernels and is measured
//! against these functions.

use std::fmt;

/// A tensor format that Tartlet computes with. A block is the smallest run of values that stands alone; a row is
/// whole blocks, so `row bytes = row length / block_len * block_bytes`. Fields lie in the order given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // The field's names, as every tool prints them.
pub enum Quant {
    F32,
    F16,
    BF16,
    /// 32 values: f16 scale, 32 × i8. `x = d * q`
    Q8_0,
    /// 32 values: f16 scale, 16 bytes of nibbles, value i low and value i + 16 high. `x = d * (q - 8)`
    Q4_0,
    /// 32 values: f16 scale, f16 minimum, nibbles as in Q4_0. `x = d * q + m`
    Q4_1,
    /// 32 values: f16 scale, u32 whose bit i is bit 4 of value i, nibbles as in Q4_0. `x = d * (q - 16)`
    Q5_0,
    /// 32 values: f16 scale, f16 minimum, fifth bits and nibbles as in Q5_0. `x = d * q + m`
    Q5_1,
    /// 256 values in 8 groups of 32: f16 scale, f16 minimum, the groups' scales and minima ([`group_scales`]), then 32
    /// bytes of nibbles for each two groups, the first group low. `x = (d * s) * q - (m * n)`
    Q4_K,
    /// 256 values in 8 groups of 32: as Q4_K, but 32 bytes before the nibbles hold the fifth bits, bit g of byte i
    /// that of value i in group g.
    Q5_K,
    /// 256 values in 16 groups of 16: nibbles (128 bytes), bits 4 and 5 (64 bytes), 16 × i8 group scales, f16 scale.
    /// Each half of 128 values is four runs of 32: run r takes its nibbles from bytes `32 * (r % 2)..` of the half's
    /// 64, low ones for r < 2, and its upper bits from bits 2 r and 2 r + 1 of the half's 32. `x = (d * s) * (q - 32)`
    Q6_K,
}

impl Quant {
    pub const ALL: [Quant; 11] = [
        Quant::F32,
        Quant::F16,
        Quant::BF16,
        Quant::Q8_0,
        Quant::Q4_0,
        Quant::Q4_1,
        Quant::Q5_0,
        Quant::Q5_1,
        Quant::Q4_K,
        Quant::Q5_K,
        Quant::Q6_K,
    ];

    /// The format with this number in a GGUF tensor record, or `None` if Tartlet does not compute with it.
    pub fn from_ggml(number: u32) -> Option<Quant> {
        Quant::ALL.into_iter().find(|q| q.ggml() == number)
    }

    /// The format's number in a GGUF tensor record.
    pub const fn ggml(self) -> u32 {
        match self {
            Quant::F32 => 0,
            Quant::F16 => 1,
            Quant::Q4_0 => 2,
            Quant::Q4_1 => 3,
            Quant::Q5_0 => 6,
            Quant::Q5_1 => 7,
            Quant::Q8_0 => 8,
            Quant::Q4_K => 12,
            Quant::Q5_K => 13,
            Quant::Q6_K => 14,
            Quant::BF16 => 30,
        }
    }

    /// Values in one block.
    pub const fn block_len(self) -> usize {
        match self {
            Quant::F32 | Quant::F16 | Quant::BF16 => 1,
            Quant::Q8_0 | Quant::Q4_0 | Quant::Q4_1 | Quant::Q5_0 | Quant::Q5_1 => 32,
            Quant::Q4_K | Quant::Q5_K | Quant::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Quant::F32 => 4,
            Quant::F16 | Quant::BF16 => 2,
            Quant::Q8_0 => 2 + 32,
            Quant::Q4_0 => 2 + 16,
            Quant::Q4_1 => 2 + 2 + 16,
            Quant::Q5_0 => 2 + 4 + 16,
            Quant::Q5_1 => 2 + 2 + 4 + 16,
            Quant::Q4_K => 2 + 2 + 12 + 128,
            Quant::Q5_K => 2 + 2 + 12 + 32 + 128,
            Quant::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of a row of `len` values, a multiple of [`Quant::block_len`].
    pub const fn row_bytes(self, len: usize) -> usize {
        len / self.block_len() * self.block_bytes()
    }

    /// Writes the exact f32 values of whole blocks: `bytes` are `values.len() / block_len` blocks.
    ///
    /// # Panics
    /// When the two lengths do not belong together: a mistake of the caller, never of a file (extents are
    /// checked when a tensor is looked up).
    pub fn dequantize(self, bytes: &[u8], values: &mut [f32]) {
        assert_eq!(values.len() % self.block_len(), 0, "{self}: whole blocks");
        assert_eq!(bytes.len(), self.row_bytes(values.len()), "{self}: bytes for {} values", values.len());
        match self {
            Quant::F32 => blocks(bytes, values, |&b, [x]| *x = f32::from_le_bytes(b)),
            Quant::F16 => blocks(bytes, values, |&[b0, b1], [x]| *x = half(b0, b1)),
            Quant::BF16 => blocks(bytes, values, |&[b0, b1], [x]| *x = f32::from_le_bytes([0, 0, b0, b1])),
            Quant::Q8_0 => blocks(bytes, values, q8_0),
            Quant::Q4_0 => blocks(bytes, values, q4_0),
            Quant::Q4_1 => blocks(bytes, values, q4_1),
            Quant::Q5_0 => blocks(bytes, values, q5_0),
            Quant::Q5_1 => blocks(bytes, values, q5_1),
            Quant::Q4_K => blocks(bytes, values, q4_k),
            Quant::Q5_K => blocks(bytes, values, q5_k),
            Quant::Q6_K => blocks(bytes, values, q6_k),
        }
    }
}

/// Block after block of `N` bytes and `V` values; [`Quant::dequantize`] has compared the lengths.
#[inline(always)]
fn blocks<const N: usize, const V: usize>(
    bytes: &[u8],
    values: &mut [f32],
    one: impl Fn(&[u8; N], &mut [f32; V]),
) {
    for (bytes, values) in bytes.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
        one(bytes, values);
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16_to_f32(u16::from_le_bytes([low, high]))
}

fn q8_0([d0, d1, q @ ..]: &[u8; Quant::Q8_0.block_bytes()], values: &mut [f32; 32]) {
    let d = half(*d0, *d1);
    for (x, &q) in values.iter_mut().zip(q) {
        *x = d * f32::from(q as i8);
    }
}

fn q4_0([d0, d1, q @ ..]: &[u8; Quant::Q4_0.block_bytes()], values: &mut [f32; 32]) {
    let d = half(*d0, *d1);
    nibbles(q, values, |q| d * (q - 8.0));
}

fn q4_1([d0, d1, m0, m1, q @ ..]: &[u8; Quant::Q4_1.block_bytes()], values: &mut [f32; 32]) {
    let (d, m) = (half(*d0, *d1), half(*m0, *m1));
    nibbles(q, values, |q| d * q + m);
}

/// The values of one block of nibbles, low ones first. Not inlined: a compiler that sees the loop over blocks too
/// vectorises across them, at half the speed, and this is most of the plain CPU backend's time.
#[inline(never)]
fn nibbles(quants: &[u8; 16], values: &mut [f32; 32], value: impl Fn(f32) -> f32) {
    for (i, &q) in quants.iter().enumerate() {
        values[i] = value(f32::from(q & 15));
        values[i + 16] = value(f32::from(q >> 4));
    }
}

fn q5_0([d0, d1, h0, h1, h2, h3, q @ ..]: &[u8; Quant::Q5_0.block_bytes()], values: &mut [f32; 32]) {
    let d = half(*d0, *d1);
    fives(u32::from_le_bytes([*h0, *h1, *h2, *h3]), q, values, |q| d * (q - 16.0));
}

fn q5_1([d0, d1, m0, m1, h0, h1, h2, h3, q @ ..]: &[u8; Quant::Q5_1.block_bytes()], values: &mut [f32; 32]) {
    let (d, m) = (half(*d0, *d1), half(*m0, *m1));
    fives(u32::from_le_bytes([*h0, *h1, *h2, *h3]), q, values, |q| d * q + m);
}

/// As [`nibbles`], with a fifth bit for each value.
fn fives(fifth: u32, quants: &[u8; 16], values: &mut [f32; 32], value: impl Fn(f32) -> f32) {
    let bit = |i: usize| (fifth >> i & 1) as u8 * 16;
    for (i, &q) in quants.iter().enumerate() {
        values[i] = value(f32::from(q & 15 | bit(i)));
        values[i + 16] = value(f32::from(q >> 4 | bit(i + 16)));
    }
}

/// The six-bit scales and minima of the 8 groups of a Q4_K or Q5_K block. Of groups 0 to 3 they are the low bits of
/// bytes 0 to 3 (scales) and 4 to 7 (minima); of groups 4 to 7 their low four bits are the nibbles of bytes 8 to 11,
/// and their upper two the upper two of the earlier bytes.
pub const fn group_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    let mut group = 0;
    while group < 4 {
        let (scale, minimum, low) = (packed[group], packed[group + 4], packed[group + 8]);
        scales[group] = scale & 63;
        minima[group] = minimum & 63;
        scales[group + 4] = low & 15 | scale >> 6 << 4;
        minima[group + 4] = low >> 4 | minimum >> 6 << 4;
        group += 1;
    }
    (scales, minima)
}

fn q4_k(block: &[u8; Quant::Q4_K.block_bytes()], values: &mut [f32; 256]) {
    let (head, quants) = block.split_at(16);
    eight_groups(head, &[0; 32], quants, values);
}

fn q5_k(block: &[u8; Quant::Q5_K.block_bytes()], values: &mut [f32; 256]) {
    let (head, rest) = block.split_at(16);
    let (fifth, quants) = rest.split_at(32);
    eight_groups(head, fifth, quants, values);
}

/// `head`: the two halves and the packed scales; `fifth`: 32 bytes; `quants`: 128 bytes of nibbles.
fn eight_groups(head: &[u8], fifth: &[u8], quants: &[u8], values: &mut [f32; 256]) {
    let (d, m) = (half(head[0], head[1]), half(head[2], head[3]));
    let mut packed = [0; 12];
    packed.copy_from_slice(&head[4..]);
    let (scales, minima) = group_scales(&packed);
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = (d * f32::from(scales[group]), m * f32::from(minima[group]));
        let quants = &quants[group / 2 * 32..][..32];
        for (i, x) in values.iter_mut().enumerate() {
            let q = quants[i] >> (group % 2 * 4) & 15 | (fifth[i] >> group & 1) << 4;
            *x = d * f32::from(q) - m;
        }
    }
}

fn q6_k(block: &[u8; Quant::Q6_K.block_bytes()], values: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half(d[0], d[1]);
    for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, run_of_half) = (run / 4, run % 4);
        let low = &low[half * 64 + run_of_half % 2 * 32..][..32];
        let high = &high[half * 32..][..32];
        for (i, x) in values.iter_mut().enumerate() {
            let q = low[i] >> (run_of_half / 2 * 4) & 15 | (high[i] >> (run_of_half * 2) & 3) << 4;
            let scale = scales[run * 2 + i / 16] as i8;
            *x = d * f32::from(scale) * (f32::from(q) - 32.0);
        }
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The exact f32 value of an IEEE half; infinities and NaN payloads are kept.
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10) & 0x1f;
    let fraction = u32::from(half) & 0x3ff;
    let magnitude = match exponent {
        // Subnormal halves are normal floats: fraction * 2^-24 is exact.
        0 => (fraction as f32 * f32::from_bits((127 - 24) << 23)).to_bits(),
        0x1f => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest half, ties to even, of numbers below 65,504; below 2^-14 halves count in steps of 2^-24.
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.abs();
    if magnitude < 2f32.powi(-14) {
        return sign | (magnitude + 0.5).to_bits().wrapping_sub(0.5f32.to_bits()) as u16;
    }
    let bits = magnitude.to_bits();
    sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64ct::{Base64, Encoding as _};

    #[test]
    fn every_half_has_its_value() {
        for half in 0..=u16::MAX {
            let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
            let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff));
            let got = f16_to_f32(half);
            let want = match exponent {
                0 => sign * fraction / 1024.0 * 2f64.powi(-14),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => {
                    assert!(got.is_nan(), "{half:#06x}");
                    continue;
                }
                e => sign * (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
            };
            assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{half:#06x}");
            assert!(exponent == 31 || f32_to_f16(got) == half, "{half:#06x}");
        }
    }

    /// The bytes that PyPI `gguf` makes of the same blocks (tests/golden/quant_cases.py).
    #[test]
    fn dequantises_like_the_reference() {
        let golden = include_str!("../../tests/golden/quant_cases.json");
        let golden: std::collections::HashMap<String, [String; 2]> = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.len(), Quant::ALL.len());
        for quant in Quant::ALL {
            let [bytes, want] =
                golden[&quant.to_string()].each_ref().map(|text| Base64::decode_vec(text).unwrap());
            let mut values = vec![0.0; want.len() / 4];
            quant.dequantize(&bytes, &mut values);
            let got: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let wrong = got.chunks(4).zip(want.chunks(4)).position(|(got, want)| got != want);
            assert_eq!((got.len(), wrong), (want.len(), None), "{quant}: the first wrong value's index");
        }
    }
}
