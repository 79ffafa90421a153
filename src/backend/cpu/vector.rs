//! What is done to a row of activations, in lanes: norms, rotations, activation functions.
//!
//! Owns: the formulas and the order of their sums. Never: where a row comes from.
//!
//! The sum of a row's squares adds lane by lane (value i to lane i % 16) in four chains: of each 64 values, vector v to
//! chain v; what is left behind the last 64, to chain 0. Then (0 + 1) + (2 + 3), and the lanes are folded onto each other.

use super::lanes::{LANES, Lanes};
use crate::backend::exp::{LN2_HIGH, LN2_LOW};
use crate::model::shape::Activation;
use std::f32::consts::LOG2_E;

/// `exp(x)` to about one unit in the last place for x <= 88, flat above; 0 below -87 and for NaN.
#[inline(always)]
pub(super) fn exp<L: Lanes>(l: L, x: L::F) -> L::F {
    let within = l.above(x, l.splat(-87.0));
    let x = l.select(within, x, l.splat(0.0));
    let x = l.min(x, l.splat(88.0));
    let n = l.round(l.mul(x, l.splat(LOG2_E)));
    let minus_n = l.float(l.mul_i(n, l.splat_i(-1)));
    let r = l.fma(minus_n, l.splat(LN2_LOW), l.fma(minus_n, l.splat(LN2_HIGH), x));
    // Taylor to degree 7: for |r| <= 0.347 what is left out is below half a unit in the last place.
    let mut p = l.splat(1.0 / 5040.0);
    p = l.fma(p, r, l.splat(1.0 / 720.0));
    p = l.fma(p, r, l.splat(1.0 / 120.0));
    p = l.fma(p, r, l.splat(1.0 / 24.0));
    p = l.fma(p, r, l.splat(1.0 / 6.0));
    p = l.fma(p, r, l.splat(0.5));
    p = l.fma(p, r, l.splat(1.0));
    p = l.fma(p, r, l.splat(1.0));
    let power = l.from_bits(l.shl::<23>(l.add_i(n, l.splat_i(127))));
    l.select(within, l.mul(p, power), l.splat(0.0))
}

/// `tanh(x) = 1 - 2 / (exp(2x) + 1)`.
#[inline(always)]
pub(super) fn tanh<L: Lanes>(l: L, x: L::F) -> L::F {
    let e = exp(l, l.add(x, x));
    l.sub(l.splat(1.0), l.div(l.splat(2.0), l.add(e, l.splat(1.0))))
}

/// `cap * tanh(x / cap)`; NaN stays NaN, which `exp` would make a number.
#[inline(always)]
pub(super) fn capped<L: Lanes>(l: L, x: L::F, cap: Option<f32>) -> L::F {
    let Some(cap) = cap else { return x };
    let number = l.above(x, l.splat(-1.0)) | l.above(l.splat(0.0), x);
    l.select(number, l.mul(l.splat(cap), tanh(l, l.div(x, l.splat(cap)))), x)
}

/// `activation(gate) * up`; Shazeer, "GLU variants improve transformer" (2020).
#[inline(always)]
pub(super) fn gated<L: Lanes>(l: L, activation: Activation, gate: L::F, up: L::F) -> L::F {
    let one = l.splat(1.0);
    let active = match activation {
        Activation::Silu => l.div(gate, l.add(one, exp(l, l.sub(l.splat(0.0), gate)))),
        Activation::GeluTanh => {
            let cube = l.mul(l.mul(gate, gate), gate);
            let inner = l.fma(l.splat(0.044_715), cube, gate);
            let tanh = tanh(l, l.mul(l.splat(0.797_884_6), inner)); // sqrt(2 / pi)
            l.mul(l.mul(l.splat(0.5), gate), l.add(one, tanh))
        }
    };
    l.mul(active, up)
}

/// In the module's order, over whole vectors of `x`.
#[inline(always)]
fn sum_of_squares<L: Lanes>(l: L, x: &[f32]) -> f32 {
    // Four chains: the sum of a row must not wait for one addition after the other.
    let zero = l.splat(0.0);
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    let (fours, rest) = x.as_chunks::<LANES>().0.as_chunks::<4>();
    for [x, y, z, w] in fours {
        let (x, y, z, w) = (l.load(x), l.load(y), l.load(z), l.load(w));
        a = l.fma(x, x, a);
        b = l.fma(y, y, b);
        c = l.fma(z, z, c);
        d = l.fma(w, w, d);
    }
    for x in rest {
        let x = l.load(x);
        a = l.fma(x, x, a);
    }
    l.sum(l.add(l.add(a, b), l.add(c, d)))
}

/// What a row of `width` values is multiplied by in RMS norm: `1 / sqrt(mean(x^2) + eps)`; Zhang, Sennrich, "Root mean square
/// layer normalization" (2019). `x` is filled up to whole vectors with zeros.
#[inline(always)]
pub(super) fn norm_scale<L: Lanes>(l: L, x: &[f32], width: usize, eps: f32) -> f32 {
    1.0 / (sum_of_squares(l, x) / width as f32 + eps).sqrt()
}

/// `x = x * scale * gain`, in place, over whole vectors.
#[inline(always)]
pub(super) fn norm<L: Lanes>(l: L, x: &mut [f32], gains: &[f32], width: usize, eps: f32) {
    let scale = l.splat(norm_scale(l, x, width, eps));
    for (x, gain) in x.as_chunks_mut::<LANES>().0.iter_mut().zip(gains.as_chunks::<LANES>().0) {
        l.store(l.mul(l.mul(l.load(x), scale), l.load(gain)), x);
    }
}

/// Turns the pairs (2i, 2i + 1) of the first values of a head by the angles whose (cos, sin) are in `turns`.
#[inline(always)]
pub(super) fn rotate(head: &mut [f32], turns: &[[f32; 2]]) {
    for (pair, [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}

/// cos and sin of the angle of each pair at `position`, times `scale`; computed in f64: any u32 is a fair position.
pub(super) fn turns_at(position: u32, per_position: &[f64], scale: f32, turns: &mut [f32]) {
    for ([cos, sin], per_position) in turns.as_chunks_mut::<2>().0.iter_mut().zip(per_position) {
        let (s, c) = (f64::from(position) * per_position).sin_cos();
        (*cos, *sin) = ((c * f64::from(scale)) as f32, (s * f64::from(scale)) as f32);
    }
}
