//! How a row of logits is drawn from, as `sample_weigh` and `sample_draw` read it.
//!
//! Owns: the 48 bytes of the kernels' record, whose meaning stands in the head of `kernels/sample_draw.ptx`. Never: how a
//! token is drawn.

use crate::backend::Sampler;
use crate::backend::exp::FIXED_BITS;

/// Bytes of a record.
pub const RECORD: usize = 48;

/// The record of a row that is drawn from as `sampler` says, with `random` from [`random`](crate::backend::sample::random).
pub fn record(sampler: Sampler, random: u64) -> [u8; RECORD] {
    let (temperature, k, p, least) = match sampler {
        Sampler::Multinomial { temperature } => (temperature, 0, 1.0, None),
        Sampler::TopK { temperature, k } => (temperature, k, 1.0, None),
        Sampler::TopP { temperature, p } => (temperature, 0, p, None),
        Sampler::MinP { temperature, p } => (temperature, 0, 1.0, Some(p)),
        Sampler::TopKTopP { temperature, k, p } => (temperature, k, p, None),
    };
    let fixed = |p: f32| (f64::from(p).clamp(0.0, 1.0) * 2f64.powi(64)) as u128;
    let share = if p < 1.0 { fixed(p) as u64 } else { u64::MAX };
    let floor = least.map_or(0, |p| ((fixed(p) << FIXED_BITS).div_ceil(1 << 64) as u64).max(1));
    let (divisor, scale, scale_again) = if temperature.is_nan() || temperature <= 0.0 {
        (0.0, 0.0, 0.0)
    } else if temperature == f32::INFINITY {
        (1.0, 0.0, 1.0)
    } else {
        // In f64 no temperature is subnormal.
        let exponent = (f64::from(temperature).to_bits() >> 52) as i32 - 1023;
        let half = exponent / 2;
        let divisor = f64::from(temperature) * 2f64.powi(-exponent);
        (divisor as f32, 2f32.powi(-half), 2f32.powi(half - exponent))
    };
    let wide = [random, share, floor].map(u64::to_le_bytes);
    let floats = [divisor, 1.0 / divisor, scale, scale_again, temperature].map(f32::to_bits);
    let narrow = [k, floats[0], floats[1], floats[2], floats[3], floats[4]].map(u32::to_le_bytes);
    let mut record = [0; RECORD];
    let (first, rest) = record.split_at_mut(24);
    first.copy_from_slice(wide.as_flattened());
    rest.copy_from_slice(narrow.as_flattened());
    record
}
