//! Random weights, in the layout of each format.
//!
//! Owns: the seeded numbers, and scales that give a matrix its deviation. Never: quantisation: the quants are the random
//! bytes themselves, so that gigabytes take seconds.

use crate::model::Quant;
use crate::model::quant::f32_to_f16;

/// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
pub struct Random(u64);

impl Random {
    /// Numbers of their own for each tensor of a file.
    pub fn new(seed: u64, tensor: usize) -> Random {
        let mut random = Random(seed);
        Random(random.next() ^ (tensor as u64).wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn bytes(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        words.iter_mut().for_each(|word| *word = self.next().to_le_bytes());
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Gains of a norm: 1, give or take an eighth.
pub fn gains(out: &mut [u8], random: &mut Random) {
    random.bytes(out);
    for gain in out.as_chunks_mut().0 {
        *gain = (1.0 + uniform(u32::from_le_bytes(*gain)) / 8.0).to_le_bytes();
    }
}

/// Of -1 to 1.
fn uniform(bits: u32) -> f32 {
    bits as i32 as f32 / (1u32 << 31) as f32
}

/// Scales that a block may have: they differ, so that one which is read from the wrong place is seen.
const SCALES: usize = 16;

/// Makes whole blocks of a format.
pub struct Filler {
    quant: Quant,
    /// Of the values of formats without scales.
    reach: f32,
    /// A scale, and a minimum that brings the mean about to 0.
    scales: [[[u8; 2]; 2]; SCALES],
}

impl Filler {
    /// For values of this deviation.
    pub fn new(quant: Quant, deviation: f32) -> Filler {
        // The deviation of quants of every kind under a scale of 1, and what a minimum takes away from each.
        let (spread, least) = match quant {
            Quant::F32 | Quant::F16 | Quant::BF16 => (1.0, 0.0),
            Quant::Q8_0 => (73.6, 0.0),
            Quant::Q4_0 => (4.61, 0.0),
            Quant::Q4_1 => (4.61, -7.5),
            Quant::Q5_0 => (9.23, 0.0),
            Quant::Q5_1 => (9.23, -15.5),
            // Group scales are 32 to 63, about 48.4.
            Quant::Q4_K => (48.4 * 4.61, 7.5),
            Quant::Q5_K => (48.4 * 9.23, 15.5),
            Quant::Q6_K => (48.4 * 18.5, 0.0),
        };
        let scales = std::array::from_fn(|number| {
            let scale = deviation / spread * (0.9 + 0.2 * number as f32 / (SCALES - 1) as f32);
            [scale, scale * least].map(|number| f32_to_f16(number).to_le_bytes())
        });
        Filler { quant, reach: deviation * 3f32.sqrt(), scales }
    }

    /// Fills `out`, whole blocks.
    pub fn fill(&self, out: &mut [u8], random: &mut Random) {
        random.bytes(out);
        match self.quant {
            Quant::F32 => out
                .as_chunks_mut()
                .0
                .iter_mut()
                .for_each(|value| *value = self.value(u32::from_le_bytes(*value)).to_le_bytes()),
            Quant::F16 => self.halves(out, |value| f32_to_f16(value).to_le_bytes()),
            Quant::BF16 => self.halves(out, |value| ((value.to_bits() >> 16) as u16).to_le_bytes()),
            Quant::Q8_0 => self.blocks::<{ Quant::Q8_0.block_bytes() }>(out, |block, [scale, _]| {
                // Quantisers never make -128.
                block.iter_mut().for_each(|quant| *quant = (*quant).max(1) ^ 0x80);
                block[..2].copy_from_slice(&scale);
            }),
            Quant::Q4_0 => self.blocks::<{ Quant::Q4_0.block_bytes() }>(out, with_scale),
            Quant::Q4_1 => self.blocks::<{ Quant::Q4_1.block_bytes() }>(out, with_minimum),
            Quant::Q5_0 => self.blocks::<{ Quant::Q5_0.block_bytes() }>(out, with_scale),
            Quant::Q5_1 => self.blocks::<{ Quant::Q5_1.block_bytes() }>(out, with_minimum),
            Quant::Q4_K => self.blocks::<{ Quant::Q4_K.block_bytes() }>(out, with_groups),
            Quant::Q5_K => self.blocks::<{ Quant::Q5_K.block_bytes() }>(out, with_groups),
            Quant::Q6_K => self.blocks::<{ Quant::Q6_K.block_bytes() }>(out, |block, [scale, _]| {
                block[192..208].iter_mut().for_each(|group| *group = 32 | *group & 31);
                block[208..].copy_from_slice(&scale);
            }),
        }
    }

    fn value(&self, bits: u32) -> f32 {
        uniform(bits) * self.reach
    }

    fn halves(&self, out: &mut [u8], of: impl Fn(f32) -> [u8; 2]) {
        for value in out.as_chunks_mut().0 {
            *value = of(self.value(u32::from(u16::from_le_bytes(*value)) << 16));
        }
    }

    /// Each block with the scales that one of its own random bytes chooses.
    fn blocks<const N: usize>(&self, out: &mut [u8], mend: impl Fn(&mut [u8; N], [[u8; 2]; 2])) {
        for block in out.as_chunks_mut::<N>().0 {
            let scales = self.scales[usize::from(block[0]) % SCALES];
            mend(block, scales);
        }
    }
}

fn with_scale<const N: usize>(block: &mut [u8; N], [scale, _]: [[u8; 2]; 2]) {
    block[..2].copy_from_slice(&scale);
}

fn with_minimum<const N: usize>(block: &mut [u8; N], scales: [[u8; 2]; 2]) {
    block[..4].copy_from_slice(scales.as_flattened());
}

/// Group scales of 32 to 63, and the same for each group's minimum (`quant::group_scales` has the layout).
fn with_groups<const N: usize>(block: &mut [u8; N], scales: [[u8; 2]; 2]) {
    with_minimum(block, scales);
    for group in 4..8 {
        block[group] |= 0xa0;
        block[group + 4] = block[group];
        block[group + 8] = block[group + 8] & 15 | block[group + 8] << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every format: the deviation that was asked for, no mean to speak of, and other values from another seed.
    #[test]
    fn weights_have_their_deviation() {
        for quant in Quant::ALL {
            let make = |seed| {
                let mut bytes = vec![0; quant.row_bytes(1 << 16)];
                Filler::new(quant, 0.02).fill(&mut bytes, &mut Random::new(seed, 3));
                let mut values = vec![0.0; 1 << 16];
                quant.dequantize(&bytes, &mut values);
                values
            };
            let values = make(5);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let deviation = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
            assert!(
                (0.018..0.022).contains(&deviation) && mean.abs() < 0.003,
                "{quant}: {mean} ± {deviation}"
            );
            assert!(values == make(5) && values != make(6), "{quant}");
        }
    }
}
