//! The arithmetic of the processor's vector paths: `vector.rs`, `kernels.rs` of floats, `attention.rs`.
//!
//! Owns: the order of these sums. Never: where keys and values lie.

use super::Query;
use tartlet::backend::cpu::plain::capped;
use tartlet::backend::exp::{LN2_HIGH, LN2_LOW};

const LANES: usize = 16;
/// Slots of a stretch.
const STRETCH: usize = 256;

/// Halves onto halves.
fn fold(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// What a row is multiplied by. Of each 64 values vector v goes to chain v; what is left behind them, to chain 0.
pub fn norm(x: &[f32], eps: f32) -> f32 {
    let width = x.len();
    let whole = width.next_multiple_of(LANES) / (4 * LANES) * (4 * LANES);
    let mut chains = [[0.0f32; LANES]; 4];
    for (at, &x) in x.iter().enumerate() {
        let chain = if at < whole { at / LANES % 4 } else { 0 };
        let sum = &mut chains[chain][at % LANES];
        *sum = x.mul_add(x, *sum);
    }
    let [a, b, c, d] = chains;
    let total = fold(std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane])));
    1.0 / (total / width as f32 + eps).sqrt()
}

/// The products of floats' rows: value by value.
pub fn products(rows: &[Vec<f32>], x: &[f32]) -> Vec<f32> {
    let row = |weights: &Vec<f32>| weights.iter().zip(x).fold(0.0, |sum, (w, x)| f32::mul_add(*w, *x, sum));
    rows.iter().map(row).collect()
}

fn exp(x: f32) -> f32 {
    if x.is_nan() || x <= -87.0 {
        return 0.0;
    }
    let x = x.min(88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = (-n).mul_add(LN2_LOW, (-n).mul_add(LN2_HIGH, x));
    let taylor = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let p = taylor.into_iter().fold(1.0f32 / 5040.0, |p, term| p.mul_add(r, term));
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// A head's output: stretch after stretch.
pub fn attend(query: &Query) -> Vec<f32> {
    let q: Vec<f32> = query.q.iter().map(|q| q * query.scale).collect();
    let (mut largest, mut total, mut sums) = (f32::NEG_INFINITY, 0.0f32, vec![0.0f32; q.len()]);
    for first in (0..query.length).step_by(STRETCH) {
        let score = |slot: usize| {
            if !query.sees(slot) {
                return f32::NEG_INFINITY;
            }
            let score = q.iter().zip((query.key)(slot)).fold(0.0, |sum, (q, k)| f32::mul_add(*k, *q, sum));
            query.cap.map_or(score, |cap| capped(&[score], cap)[0])
        };
        let slots = first..query.length.min(first + STRETCH);
        let scores: Vec<f32> = slots.clone().map(score).collect();
        let own = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if own == f32::NEG_INFINITY {
            continue;
        }
        let weights: Vec<f32> = scores.iter().map(|score| exp(score - own)).collect();
        let mut lanes = [0.0f32; LANES];
        weights.iter().enumerate().for_each(|(slot, weight)| lanes[slot % LANES] += weight);
        let mut gathered = vec![0.0f32; q.len()];
        for (slot, weight) in slots.zip(weights).filter(|(slot, _)| query.sees(*slot)) {
            let value = (query.value)(slot);
            gathered.iter_mut().zip(value).for_each(|(sum, value)| *sum = value.mul_add(weight, *sum));
        }
        let both = largest.max(own);
        let (a, b) = (exp(largest - both), exp(own - both));
        largest = both;
        total = total * a + fold(lanes) * b;
        sums.iter_mut().zip(gathered).for_each(|(sum, next)| *sum = next.mul_add(b, *sum * a));
    }
    let per = if total > 0.0 { 1.0 / total } else { 0.0 };
    sums.iter().map(|sum| sum * per).collect()
}
