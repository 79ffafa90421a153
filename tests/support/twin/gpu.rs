//! The GPU's arithmetic, where it is not the processor's: `gemv.inc` of floats, `rotate_append.ptx`, `attend.inc` and
//! `attend_combine.ptx`.
//!
//! Owns: the order of these sums. Never: where keys and values lie.
//!
//! A tensor core's sums, and approximations, are here what the emulator makes of them: exact, rounded once.

use super::{Query, f16};
use crate::sums::{of_16, to_16};
use tartlet::model::quant::Quant;

const PAGE: usize = 16;
const SPLIT: usize = 256;
/// Warps of a CTA: each takes every fourth page of a split.
const WARPS: usize = 4;

/// What was gathered: the largest score, in powers of 2, the weights' sum, the weighted sum of the values.
#[derive(Clone)]
struct Gathered {
    m: f32,
    l: f32,
    sum: Vec<f32>,
}

/// `sum` plus a product of 16 numbers each.
fn mma(sum: f32, a: &[f32], b: &[f32]) -> f32 {
    let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    (f64::from(sum) + dot) as f32
}

/// A subnormal number as 0.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn ex2(x: f32) -> f32 {
    flushed(f64::from(flushed(x)).exp2() as f32)
}

fn rcp(x: f32) -> f32 {
    flushed((1.0 / f64::from(flushed(x))) as f32)
}

/// The products of floats' rows with as many activations: mma after mma of 16 columns in each of four runs.
pub fn products(quant: Quant, rows: &[Vec<f32>], x: &[f32]) -> Vec<f32> {
    let cut = |x: f32| if quant == Quant::F16 { x.clamp(-65504.0, 65504.0) } else { x };
    let x: Vec<f32> = x.iter().map(|&x| of_16(quant, to_16(quant, cut(x)))).collect();
    let run = x.len().div_ceil(64).div_ceil(4) * 64;
    let of_run = |(weights, x): (&[f32], &[f32])| {
        weights.chunks(16).zip(x.chunks(16)).fold(0.0, |sum, (weights, x)| mma(sum, weights, x))
    };
    let row = |weights: &Vec<f32>| {
        weights.chunks(run).zip(x.chunks(run)).map(of_run).reduce(|sum, next| sum + next).unwrap_or(0.0)
    };
    rows.iter().map(row).collect()
}

/// What a head is multiplied by: a lane has every 32nd pair.
pub fn head_norm(head: &[f32], pairs: &[[usize; 2]], eps: f32) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (pair, at) in pairs.iter().enumerate() {
        let lane = &mut lanes[pair % 32];
        *lane = at.iter().fold(*lane, |sum, &at| head[at].mul_add(head[at], sum));
    }
    for distance in [16, 8, 4, 2, 1] {
        lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ distance]);
    }
    1.0 / (lanes[0] / head.len() as f32 + eps).sqrt()
}

/// A head's output.
pub fn attend(query: &Query) -> Vec<f32> {
    query.output()
}

/// By what to multiply what was gathered under `m`, where `top` is the largest.
fn factor(m: f32, top: f32) -> f32 {
    ex2(m - if top == f32::NEG_INFINITY { 0.0 } else { top })
}

impl Query<'_> {
    fn output(&self) -> Vec<f32> {
        let end = self.length.max(1) - 1;
        let (end, first) = (end / SPLIT, self.first / SPLIT);
        let first = first.min(end);
        let splits: Vec<Gathered> = (first..=end).map(|split| self.split(split)).collect();
        match &splits[..] {
            [one] => one.output(),
            several => combine(several, self.q.len()),
        }
    }

    fn split(&self, split: usize) -> Gathered {
        let warps: Vec<Gathered> = (0..WARPS).map(|warp| self.warp(split, warp)).collect();
        let mut all = warps[0].clone();
        for warp in &warps[1..] {
            all.rise(all.m.max(warp.m));
            all.add(warp);
        }
        all
    }

    fn warp(&self, split: usize, warp: usize) -> Gathered {
        let log2_e = std::f32::consts::LOG2_E;
        let scale = self.scale * log2_e;
        let scaled: Vec<f32> = self.q.iter().map(|q| q * scale).collect();
        let upper: Vec<f32> = scaled.iter().map(|&q| f16(q)).collect();
        let lower: Vec<f32> = scaled.iter().zip(&upper).map(|(q, upper)| f16(q - upper)).collect();
        let dims = self.q.len();
        let mut m = f32::NEG_INFINITY;
        let (mut l, mut sum) = ([0.0f32; 4], vec![0.0f32; dims]);
        for page in (warp..SPLIT / PAGE).step_by(WARPS) {
            let slots = split * SPLIT + page * PAGE..split * SPLIT + (page + 1) * PAGE;
            if !slots.clone().any(|slot| self.sees(slot)) {
                continue;
            }
            let score = |slot: usize| {
                if !self.sees(slot) {
                    return f32::NEG_INFINITY;
                }
                let of = |q: &[f32]| {
                    q.chunks(16).zip((self.key)(slot).chunks(16)).fold(0.0, |sum, (q, k)| mma(sum, q, k))
                };
                let score = of(&upper) + of(&lower);
                self.cap.map_or(score, |cap| {
                    let cap = cap * log2_e;
                    let per_cap = rcp(cap) * (2.0 * log2_e);
                    (rcp(ex2(score * per_cap) + 1.0) * cap).mul_add(-2.0, cap)
                })
            };
            let scores: Vec<f32> = slots.clone().map(score).collect();
            let top = scores.iter().copied().fold(m, f32::max);
            let old = ex2(m - top);
            m = top;
            let weights: Vec<f32> = scores.iter().map(|score| ex2(score - top)).collect();
            for (quad, l) in l.iter_mut().enumerate() {
                let [a, b, c, d] = [0, 1, 8, 9].map(|slot| weights[2 * quad + slot]);
                *l = l.mul_add(old, (a + b) + (c + d));
            }
            let weights: Vec<f32> = weights.into_iter().map(f16).collect();
            for (dim, sum) in sum.iter_mut().enumerate() {
                let value = |slot| if self.sees(slot) { (self.value)(slot)[dim] } else { 0.0 };
                let values: Vec<f32> = slots.clone().map(value).collect();
                *sum = mma(*sum * old, &values, &weights);
            }
        }
        Gathered { m, l: (l[0] + l[1]) + (l[2] + l[3]), sum }
    }
}

impl Gathered {
    /// The largest score becomes `m`, which is no less.
    fn rise(&mut self, m: f32) {
        let factor = factor(self.m, m);
        self.m = m;
        self.l *= factor;
        self.sum.iter_mut().for_each(|x| *x *= factor);
    }

    /// Takes in what was gathered under a largest score that is no larger.
    fn add(&mut self, next: &Gathered) {
        let factor = factor(next.m, self.m);
        self.l = next.l.mul_add(factor, self.l);
        self.sum.iter_mut().zip(&next.sum).for_each(|(x, next)| *x = next.mul_add(factor, *x));
    }

    fn output(&self) -> Vec<f32> {
        let per = if self.l == 0.0 { 0.0 } else { rcp(self.l) };
        self.sum.iter().map(|x| x * per).collect()
    }
}

/// Every so manieth split by a part, four at a time; then the parts in their order.
fn combine(splits: &[Gathered], dims: usize) -> Vec<f32> {
    let nothing = || Gathered { m: f32::NEG_INFINITY, l: 0.0, sum: vec![0.0; dims] };
    let parts = 128 / (dims / 4);
    let part = |number: usize| {
        let own: Vec<&Gathered> = splits.iter().skip(number).step_by(parts).collect();
        let mut all = nothing();
        for four in own.chunks(4) {
            all.rise(four.iter().map(|next| next.m).fold(all.m, f32::max));
            four.iter().for_each(|next| all.add(next));
        }
        all
    };
    let parts: Vec<Gathered> = (0..parts).map(part).collect();
    let mut all = nothing();
    all.rise(parts.iter().map(|part| part.m).fold(f32::NEG_INFINITY, f32::max));
    parts.iter().for_each(|part| all.add(part));
    all.output()
}
