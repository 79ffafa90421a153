//! What a layer does between products: heads turned and kept, the gate, a second norm, the cap; bit for bit.
//!
//! Owns: plain Rust that takes the kernels' steps in the kernels' order, as their heads say it. Never: a tolerance.

use super::norms::{BLOCK, EPSILON, floats, norm, prepared};
use super::{Bed, Checked, Found, Launched, Rate, Seeded, same};
use crate::backend::cpu::plain::{activated, capped};
use crate::backend::cuda::module::number;
use crate::backend::cuda::{Argument, Error};
use crate::model::quant::f32_to_f16;
use crate::model::shape::Activation;

/// Values of a row, or logits, that a CTA takes.
const CHUNK: usize = 1024;
/// Slots of a page.
const SLOTS: usize = 16;

#[cold]
fn normal(count: usize, seeded: &mut Seeded) -> Vec<f32> {
    (0..count).map(|_| seeded.unit() + seeded.unit() + seeded.unit()).collect()
}

/// Rows with heads of Q, of K and of V.
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// The first so many values of a head are turned.
    dims: usize,
    halves: bool,
    biased: bool,
    normed: bool,
}

const HEADS: [Heads; 3] = [
    Heads { heads: 9, kv_heads: 3, head_dim: 64, dims: 64, halves: false, biased: false, normed: false },
    Heads { heads: 4, kv_heads: 2, head_dim: 128, dims: 128, halves: true, biased: false, normed: true },
    Heads { heads: 2, kv_heads: 1, head_dim: 96, dims: 48, halves: true, biased: true, normed: true },
];
const ROWS: usize = 3;
/// Where the rows go: another page each, in a pool of 3.
const KEPT_AT: [u32; ROWS] = [2 * 16 + 5, 15, 16];
const PAGES: usize = 3;

impl Heads {
    fn pair(&self, pair: usize) -> [usize; 2] {
        let apart = self.halves && pair < self.dims / 2;
        if apart { [pair, pair + self.dims / 2] } else { [2 * pair, 2 * pair + 1] }
    }

    /// The kernel's steps on a head of Q or K.
    fn turned(&self, mut x: Vec<f32>, gain: &[f32], turns: &[f32]) -> Vec<f32> {
        if self.normed {
            let mut lanes = [0f32; 32];
            for pair in 0..self.head_dim / 2 {
                let sum = &mut lanes[pair % 32];
                self.pair(pair).into_iter().for_each(|at| *sum = x[at].mul_add(x[at], *sum));
            }
            for distance in [16, 8, 4, 2, 1] {
                lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ distance]);
            }
            let norm = 1.0 / (lanes[0] / self.head_dim as f32 + EPSILON).sqrt();
            x.iter_mut().zip(gain).for_each(|(x, gain)| *x = *x * norm * gain);
        }
        for (pair, [cos, sin]) in turns.as_chunks::<2>().0.iter().enumerate() {
            let [first, second] = self.pair(pair);
            let (a, b) = (x[first], x[second]);
            (x[first], x[second]) = (a * cos - b * sin, a * sin + b * cos);
        }
        x
    }

    fn check(&self, bed: &mut Bed, seed: u64) -> Result<Result<Vec<u8>, String>, Error> {
        let Heads { heads, kv_heads, head_dim, dims, .. } = *self;
        let seeded = &mut Seeded::new(seed);
        let all = heads + 2 * kv_heads;
        let products = normal(ROWS * all * head_dim, seeded);
        let (bias, gain) = (normal(all * head_dim, seeded), normal(head_dim, seeded));
        let turns: Vec<f32> = (0..ROWS * dims / 2)
            .flat_map(|_| {
                let (sin, cos) = (f64::from(seeded.unit()) * 3.0).sin_cos();
                [cos as f32, sin as f32]
            })
            .collect();
        let before = vec![0; PAGES * kv_heads * SLOTS * head_dim * 2];
        let (mut queries, mut kept) = (Vec::new(), [before.clone(), before.clone()]);
        for (at, x) in products.chunks(head_dim).enumerate() {
            let (row, head) = (at / all, at % all);
            let bias = self.biased.then(|| &bias[head * head_dim..]);
            let x = x.iter().enumerate().map(|(i, x)| bias.map_or(*x, |bias| x + bias[i])).collect();
            let turns = &turns[row * dims..][..dims];
            if head < heads {
                queries.extend(self.turned(x, &gain, turns));
                continue;
            }
            let (of, head) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
            let x = if of == 0 { self.turned(x, &gain, turns) } else { x };
            let slot = KEPT_AT[row] as usize;
            let at = ((slot / SLOTS * kv_heads + head) * SLOTS + slot % SLOTS) * head_dim * 2;
            let halves = x.iter().flat_map(|x| f32_to_f16(*x).to_le_bytes());
            kept[of][at..][..head_dim * 2].iter_mut().zip(halves).for_each(|(to, half)| *to = half);
        }

        let places: Vec<u8> = KEPT_AT.iter().flat_map(|place| place.to_le_bytes()).collect();
        let (products, bias, gain) =
            (bed.with(&floats(&products))?, bed.with(&floats(&bias))?, bed.with(&floats(&gain))?);
        let (turns, places) = (bed.with(&floats(&turns))?, bed.with(&places)?);
        let (out, keys, values) = (bed.blank(queries.len() * 4)?, bed.with(&before)?, bed.with(&before)?);
        let part = |address: u64, head: usize, wanted: bool| {
            Argument::Address(if wanted { address + (head * head_dim * 4) as u64 } else { 0 })
        };
        let starts = [0, heads, heads + kv_heads];
        let mut arguments: Vec<Argument> = starts.map(|head| part(products.address(), head, true)).into();
        arguments.extend(starts.map(|head| part(bias.address(), head, self.biased)));
        arguments.extend([part(gain.address(), 0, self.normed); 2]);
        arguments.extend([&turns, &places, &out, &keys, &values].map(Argument::Buffer));
        arguments.extend([heads, kv_heads, head_dim, dims, self.halves.into()].map(number));
        arguments.extend([number(all * head_dim); 3]);
        arguments.push(Argument::F32(EPSILON));
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe { bed.launch("rotate_append", [all.div_ceil(4), ROWS], 128, &arguments)? };
        let mut found = Vec::new();
        for (name, on, want) in
            [("queries", &out, &floats(&queries)), ("keys", &keys, &kept[0]), ("values", &values, &kept[1])]
        {
            let got = bed.bytes(on)?;
            if let Err(wrong) = same(&format!("{name} of {heads} heads of {head_dim}"), &got, want) {
                return Ok(Err(wrong));
            }
            found.extend(got);
        }
        Ok(Ok(found))
    }
}

pub(super) fn heads(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (case, heads) in HEADS.iter().enumerate() {
        match heads.check(bed, case as u64)? {
            Ok(found) => {
                let Heads { heads, kv_heads, head_dim, .. } = heads;
                let name =
                    format!("rotate_append, {ROWS} rows of {heads} and {kv_heads} heads of {head_dim}");
                launches.push(Launched::exact(name, case as u64, &found));
            }
            Err(wrong) => return Ok(Err(wrong)),
        }
    }
    Ok(Ok(Found::launches(launches)))
}

/// Rows, values of a row, and the activation.
const GATES: [(usize, usize, Activation); 4] = [
    (1, 1536, Activation::Silu),
    (3, 96, Activation::GeluTanh),
    (2, 1056, Activation::Silu),
    (1, 2048, Activation::GeluTanh),
];

pub(super) fn gate(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (case, (rows, dim, activation)) in GATES.into_iter().enumerate() {
        let seeded = &mut Seeded::new(case as u64);
        let gate: Vec<f32> = normal(rows * dim, seeded).iter().map(|x| x * 6.0).collect();
        let up = normal(rows * dim, seeded);
        let inner: Vec<f32> =
            activated(&gate, activation).iter().zip(&up).map(|(gate, up)| gate * up).collect();
        let padded = rows * dim.next_multiple_of(64);
        let (gate, up) = (bed.with(&floats(&gate))?, bed.with(&floats(&up))?);
        let (xq, xs, xb) = (bed.blank(padded)?, bed.blank(padded / BLOCK * 8)?, bed.blank(padded * 2)?);
        let y = bed.blank(rows * dim * 4)?;
        let mut arguments: Vec<Argument> = [&gate, &up, &xq, &xs, &xb, &y].map(Argument::Buffer).into();
        arguments.extend([dim, dim, usize::from(activation == Activation::GeluTanh)].map(number));
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe { bed.launch("gate_quantize", [rows, dim.div_ceil(CHUNK)], 256, &arguments)? };
        let wanted: Vec<_> = inner.chunks(dim).map(prepared).collect();
        let mut all = Vec::new();
        for (name, on, want) in [
            ("y", &y, floats(&inner)),
            ("xq", &xq, wanted.iter().flat_map(|row| row.quants.clone()).collect()),
            ("xs", &xs, wanted.iter().flat_map(|row| row.scales.clone()).collect()),
            ("xb", &xb, wanted.iter().flat_map(|row| row.halves.clone()).collect()),
        ] {
            let got = bed.bytes(on)?;
            all.extend_from_slice(&got);
            if let Err(wrong) = same(&format!("{name} of {rows} rows of {dim}, {activation:?}"), &got, &want)
            {
                return Ok(Err(wrong));
            }
        }
        let name = format!("gate_quantize, {rows} rows of {dim}, {activation:?}");
        launches.push(Launched::exact(name, case as u64, &all));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Rows of halves through a norm, as they are, and through the gate.
pub(super) fn halves(bed: &mut Bed) -> Checked {
    const DIM: usize = 1056;
    let seeded = &mut Seeded::new(0);
    let [x, gain, up] = [(); 3].map(|()| normal(DIM, seeded));
    let normed = norm(&x);
    let wanted = [
        x.iter().zip(&gain).map(|(x, gain)| x * normed * gain).collect::<Vec<f32>>(),
        x.clone(),
        activated(&x, Activation::Silu).iter().zip(&up).map(|(gate, up)| gate * up).collect(),
    ];
    let (x, gain, up) = (bed.with(&floats(&x))?, bed.with(&floats(&gain))?, bed.with(&floats(&up))?);
    let none = Argument::Address(0);
    let mut launches = Vec::new();
    for (case, want) in wanted.iter().enumerate() {
        let xb = bed.blank(DIM.next_multiple_of(64) * 2)?;
        let [from, gain, up, to] = [&x, &gain, &up, &xb].map(Argument::Buffer);
        let gain = if case == 0 { gain } else { none };
        let (normed, gated) = ("norm_quantize_f16", "gate_quantize_f16");
        // SAFETY: made for this size; they live until `bytes` has waited.
        unsafe {
            if case < 2 {
                let arguments = [from, gain, none, none, to, number(DIM), Argument::F32(EPSILON)];
                bed.launch(normed, [1, 1], 256, &arguments)?;
            } else {
                let sizes = [DIM, DIM, 0].map(number);
                let arguments = [&[from, up, none, none, to, none][..], &sizes].concat();
                bed.launch(gated, [1, DIM.div_ceil(CHUNK)], 256, &arguments)?;
            }
        }
        let mut want: Vec<u8> = want.iter().flat_map(|x| f32_to_f16(*x).to_le_bytes()).collect();
        want.resize(xb.size(), 0);
        let got = bed.bytes(&xb)?;
        if let Err(wrong) = same(&format!("row {case}"), &got, &want) {
            return Ok(Err(wrong));
        }
        let kernel = if case < 2 { normed } else { gated };
        launches.push(Launched::exact(format!("{kernel}, row {case}"), case as u64, &got));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Rows, and values of a row.
const POST_NORMS: [(usize, usize); 3] = [(1, 32), (2, 2304), (1, 8192)];

pub(super) fn post_norm(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (case, (rows, dim)) in POST_NORMS.into_iter().enumerate() {
        let seeded = &mut Seeded::new(case as u64);
        let [stream, x, gain] = [rows * dim, rows * dim, dim].map(|count| normal(count, seeded));
        let added = stream.chunks(dim).zip(x.chunks(dim)).flat_map(|(stream, x)| {
            let norm = norm(x);
            let added = stream.iter().zip(x).zip(&gain);
            added.map(move |((stream, x), gain)| stream + x * norm * gain)
        });
        let want = floats(&added.collect::<Vec<f32>>());
        let (stream, x, gain) =
            (bed.with(&floats(&stream))?, bed.with(&floats(&x))?, bed.with(&floats(&gain))?);
        let [to, from, gains] = [&stream, &x, &gain].map(Argument::Buffer);
        let arguments = [to, from, gains, number(dim), Argument::F32(EPSILON)];
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe { bed.launch("add_normed", [rows, 1], 256, &arguments)? };
        let got = bed.bytes(&stream)?;
        let what = format!("{rows} rows of {dim}");
        if let Err(wrong) = same(&what, &got, &want) {
            return Ok(Err(wrong));
        }
        launches.push(Launched::exact(format!("add_normed, {what}"), case as u64, &got));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Logits, and their cap.
const CAPS: [(usize, f32); 2] = [(2500, 30.0), (1, 50.0)];

pub(super) fn cap(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (case, (count, cap)) in CAPS.into_iter().enumerate() {
        let seeded = &mut Seeded::new(case as u64);
        let mut logits: Vec<f32> = normal(count, seeded).iter().map(|x| x * 40.0).collect();
        // Far out, and about 0, where quotients are the hardest.
        logits.iter_mut().step_by(3).for_each(|logit| *logit *= 1e-7);
        logits.iter_mut().skip(1).step_by(7).for_each(|logit| *logit *= 1e30);
        let on = bed.with(&floats(&logits))?;
        let arguments = [Argument::Buffer(&on), number(count), Argument::F32(cap)];
        // SAFETY: made for so many; it lives until `bytes` has waited.
        unsafe { bed.launch("cap_logits", [count.div_ceil(CHUNK), 1], 256, &arguments)? };
        let got = bed.bytes(&on)?;
        let what = format!("{count} logits");
        if let Err(wrong) = same(&what, &got, &floats(&capped(&logits, cap))) {
            return Ok(Err(wrong));
        }
        launches.push(Launched::exact(format!("cap_logits, {what}"), case as u64, &got));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Values of a row that is timed, and heads of Q, of K or V, and their values.
const TIMED_DIM: usize = 4096;
const TIMED_HEADS: [usize; 3] = [32, 8, 128];

pub(super) const RATES: [Rate; 5] = [
    ("rotate_append", heads_rate),
    ("gate_quantize", |bed| gate_rate(bed, "gate_quantize")),
    ("gate_quantize_f16", |bed| gate_rate(bed, "gate_quantize_f16")),
    ("add_normed", post_norm_rate),
    ("cap_logits", cap_rate),
];

fn rate(bed: &Bed, bytes: usize, work: &dyn Fn() -> Result<(), Error>) -> Checked {
    let took = bed.time(work)?;
    Ok(Ok(Found::rate(bytes as f64 / took.as_secs_f64())))
}

/// Bytes per second: of products, of what they are turned by, of queries, keys and values.
fn heads_rate(bed: &mut Bed) -> Checked {
    let [heads, kv_heads, head_dim] = TIMED_HEADS;
    let all = heads + 2 * kv_heads;
    let rows = bed.rate_bytes() / (4 * all * head_dim);
    let kept = rows.next_multiple_of(SLOTS) * kv_heads * head_dim * 2;
    let places: Vec<u8> = (0..rows as u32).flat_map(u32::to_le_bytes).collect();
    let (products, turns, places) =
        (bed.blank(rows * all * head_dim * 4)?, bed.blank(rows * head_dim * 4)?, bed.with(&places)?);
    let (out, keys, values) = (bed.blank(rows * heads * head_dim * 4)?, bed.blank(kept)?, bed.blank(kept)?);
    let part = |head: usize| Argument::Address(products.address() + (head * head_dim * 4) as u64);
    let mut arguments: Vec<Argument> = [0, heads, heads + kv_heads].map(part).into();
    // Neither bias nor gain.
    arguments.extend([Argument::Address(0); 5]);
    arguments.extend([&turns, &places, &out, &keys, &values].map(Argument::Buffer));
    arguments.extend([heads, kv_heads, head_dim, head_dim, 0].map(number));
    arguments.extend([number(all * head_dim); 3]);
    arguments.push(Argument::F32(EPSILON));
    let bytes = [&products, &turns, &out, &keys, &values].map(|buffer| buffer.size()).iter().sum();
    // SAFETY: made for these sizes; they live until the last wait.
    rate(bed, bytes, &|| unsafe { bed.launch("rotate_append", [all.div_ceil(4), rows], 128, &arguments) })
}

/// Bytes read and written per second, all outputs wanted.
fn gate_rate(bed: &mut Bed, kernel: &str) -> Checked {
    let rows = bed.rate_bytes() / (8 * TIMED_DIM);
    let values = rows * TIMED_DIM;
    let [gate, up, y] = [bed.blank(values * 4)?, bed.blank(values * 4)?, bed.blank(values * 4)?];
    let [xq, xs, xb] = [bed.blank(values)?, bed.blank(values / BLOCK * 8)?, bed.blank(values * 2)?];
    let buffers = [&gate, &up, &xq, &xs, &xb, &y];
    let mut arguments: Vec<Argument> = buffers.map(Argument::Buffer).into();
    arguments.extend([TIMED_DIM, TIMED_DIM, 0].map(number));
    let bytes = buffers.map(|buffer| buffer.size()).iter().sum();
    // SAFETY: made for these sizes; they live until the last wait.
    rate(bed, bytes, &|| unsafe { bed.launch(kernel, [rows, TIMED_DIM / CHUNK], 256, &arguments) })
}

/// Bytes read and written per second.
fn post_norm_rate(bed: &mut Bed) -> Checked {
    let rows = bed.rate_bytes() / (4 * TIMED_DIM);
    let [stream, x] = [bed.blank(rows * TIMED_DIM * 4)?, bed.blank(rows * TIMED_DIM * 4)?];
    let gain = bed.blank(TIMED_DIM * 4)?;
    let [to, from, gains] = [&stream, &x, &gain].map(Argument::Buffer);
    let arguments = [to, from, gains, number(TIMED_DIM), Argument::F32(EPSILON)];
    // SAFETY: made for these sizes; they live until the last wait.
    rate(bed, 3 * stream.size(), &|| unsafe { bed.launch("add_normed", [rows, 1], 256, &arguments) })
}

/// Bytes read and written per second.
fn cap_rate(bed: &mut Bed) -> Checked {
    let count = bed.rate_bytes() / 4;
    let logits = bed.blank(count * 4)?;
    let arguments = [Argument::Buffer(&logits), number(count), Argument::F32(30.0)];
    // SAFETY: made for so many; it lives until the last wait.
    rate(bed, 2 * logits.size(), &|| unsafe {
        bed.launch("cap_logits", [count.div_ceil(CHUNK), 1], 256, &arguments)
    })
}
