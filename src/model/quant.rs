//! How numbers lie in a tensor's bytes, and how they become f32 again.
//!
//! Owns: the formats' block layout and the exact dequantisation (the same roundings, in the same order, as PyPI
//! `gguf`: the golden files depend on it). Never: matrix products; a backend has its own kernels and is measured
//! against these functions.

use std::fmt;

/// A tensor format that Tartlet computes with. A block is the smallest run of values that stands alone; a row is
/// whole blocks, so `row bytes = row length / block_len * block_bytes`.
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
}

impl Quant {
    pub const ALL: [Quant; 6] = [Quant::F32, Quant::F16, Quant::BF16, Quant::Q8_0, Quant::Q4_0, Quant::Q4_1];

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
            Quant::Q8_0 => 8,
            Quant::BF16 => 30,
        }
    }

    /// Values in one block.
    pub const fn block_len(self) -> usize {
        match self {
            Quant::F32 | Quant::F16 | Quant::BF16 => 1,
            Quant::Q8_0 | Quant::Q4_0 | Quant::Q4_1 => 32,
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
        let blocks = bytes.chunks_exact(self.block_bytes());
        match self {
            Quant::F32 => {
                for (x, b) in values.iter_mut().zip(blocks) {
                    *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Quant::F16 => {
                for (x, b) in values.iter_mut().zip(blocks) {
                    *x = f16_to_f32(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            Quant::BF16 => {
                for (x, b) in values.iter_mut().zip(blocks) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                }
            }
            Quant::Q8_0 => {
                for (x, b) in values.chunks_exact_mut(32).zip(blocks) {
                    let d = f16_to_f32(u16::from_le_bytes([b[0], b[1]]));
                    for (x, &q) in x.iter_mut().zip(&b[2..]) {
                        *x = d * f32::from(q as i8);
                    }
                }
            }
            Quant::Q4_0 => {
                let blocks = bytes.as_chunks::<{ Quant::Q4_0.block_bytes() }>().0;
                for (x, [d0, d1, q @ ..]) in values.as_chunks_mut().0.iter_mut().zip(blocks) {
                    let d = f16_to_f32(u16::from_le_bytes([*d0, *d1]));
                    nibbles(q, x, |q| d * (q - 8.0));
                }
            }
            Quant::Q4_1 => {
                let blocks = bytes.as_chunks::<{ Quant::Q4_1.block_bytes() }>().0;
                for (x, [d0, d1, m0, m1, q @ ..]) in values.as_chunks_mut().0.iter_mut().zip(blocks) {
                    let d = f16_to_f32(u16::from_le_bytes([*d0, *d1]));
                    let m = f16_to_f32(u16::from_le_bytes([*m0, *m1]));
                    nibbles(q, x, |q| d * q + m);
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }

    /// The bytes that PyPI `gguf` makes of the same blocks (tests/golden/quant_cases.py).
    #[test]
    fn dequantises_like_the_reference() {
        let golden = include_str!("../../tests/golden/quant_cases.json");
        let golden: std::collections::HashMap<String, [String; 2]> = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.len(), Quant::ALL.len());
        let unhex = |text: &str| -> Vec<u8> {
            text.as_bytes()
                .chunks(2)
                .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
                .collect()
        };
        for quant in Quant::ALL {
            let [bytes, want] = golden[&quant.to_string()].each_ref().map(|text| unhex(text));
            let mut values = vec![0.0; want.len() / 4];
            quant.dequantize(&bytes, &mut values);
            let got: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert!(got == want, "{quant}: {values:?}");
        }
    }
}
