//! The fused products of a layer, bit for bit against the launches that each stands for, on the same device.
//!
//! Owns: which launches those are. Never: what is right of these; they have checks of their own.

use super::norms::{BLOCK, EPSILON, floats};
use super::products::{APART, PRODUCTS, Product, blocks, is_float};
use super::{Argument, Bed, Buffer, Checked, Error, Found, Launched, Seeded, same};
use crate::backend::cuda::module::number;
use crate::backend::cuda::repack::{PAIR, TILE};
use crate::model::quant::Quant;

#[derive(Clone, Copy)]
pub(super) enum What {
    Output,
    /// Query heads, and heads of keys.
    Qkv(usize, usize),
    GateUp,
}

/// A kernel of one format.
pub(super) struct Fused {
    what: What,
    quant: Quant,
    suffix: &'static str,
}

/// Of each format that a product with one vector has a kernel for.
pub(super) fn all() -> impl Iterator<Item = Fused> {
    let fused = |what, product: &Product| {
        product.kernel.strip_prefix("gemv_").map(|suffix| Fused { what, quant: product.quant, suffix })
    };
    let of = move |what| PRODUCTS.iter().filter_map(move |product| fused(what, product));
    [What::Output, What::Qkv(0, 0), What::GateUp].into_iter().flat_map(of)
}

/// Columns and tokens, and whether the rows are ready: an odd number of blocks, one pair, several batches of a run.
const SIZES: [(usize, usize, bool); 3] = [(608, 2, false), (64, 8, true), (2304, 1, false)];
const HEAD_DIM: usize = 64;
/// Rows of the matrix of `fused_output`, and of gate and of up.
const ROWS: usize = 40;
const INNER: usize = 96;
/// Columns of the matrix that is timed.
const TIMED_COLUMNS: usize = 4096;
const SLOTS: usize = 16;

/// All that the launches are given; what of it a kernel does not know is empty, or nearly so.
struct On {
    quant: Quant,
    columns: usize,
    tokens: usize,
    given: bool,
    weights: Buffer,
    scales: Buffer,
    x: Buffer,
    gain: Buffer,
    ready: [Buffer; 4], // quants, their scales, bf16, f16
    turns: Buffer,
    slots: Buffer,
    y: Buffer, // f32 [token][row of the matrix]
}

/// What a launch writes.
struct Made(Vec<(&'static str, Buffer)>);

impl On {
    fn new(
        bed: &mut Bed,
        quant: Quant,
        [n, columns, tokens]: [usize; 3],
        given: bool,
        file: &[u8],
        seeded: &mut Seeded,
    ) -> Result<On, Error> {
        let [weights, scales] = bed.packed(quant, n, columns, file)?;
        let mut numbers = |count: usize| floats(&(0..count).map(|_| seeded.unit()).collect::<Vec<f32>>());
        let (x, gain, turns) = (numbers(tokens * columns), numbers(columns), numbers(tokens * HEAD_DIM));
        let padded = tokens * columns.next_multiple_of(PAIR);
        let slots: Vec<u8> = (0..tokens as u32).rev().flat_map(|slot| (2 * slot).to_le_bytes()).collect();
        Ok(On {
            quant,
            columns,
            tokens,
            given,
            weights,
            scales,
            x: bed.with(&x)?,
            gain: bed.with(&gain)?,
            ready: [
                bed.blank(padded)?,
                bed.blank(padded / BLOCK * 8)?,
                bed.blank(padded * 2)?,
                bed.blank(padded * 2)?,
            ],
            turns: bed.with(&turns)?,
            slots: bed.with(&slots)?,
            y: bed.blank(tokens * n * 4)?,
        })
    }

    fn operand(&self) -> Vec<Argument<'_>> {
        let scales = (!is_float(self.quant)).then_some(&self.scales);
        [Some(&self.weights), scales].into_iter().flatten().map(Argument::Buffer).collect()
    }

    fn ready(&self) -> Vec<Argument<'_>> {
        let [quants, scales, bf16, f16] = &self.ready;
        let read = match self.quant {
            Quant::BF16 => vec![bf16],
            Quant::F16 => vec![f16],
            _ => vec![quants, scales],
        };
        read.into_iter().map(Argument::Buffer).collect()
    }

    /// Bytes of shared memory of a launch, as kernels/fused.inc has them.
    fn shared(&self, joined: usize) -> u32 {
        let (row, steps) = if is_float(self.quant) { (528, 2) } else { (656, 1) };
        let unit = if self.quant.block_len() > BLOCK { 4 } else { 1 };
        let run = self.columns.div_ceil(PAIR).div_ceil(4 * unit) * unit * steps;
        (4 * run.div_ceil(8) * self.tokens * row).max(5248 * joined) as u32
    }
}

impl Fused {
    pub fn name(&self) -> String {
        let what = match self.what {
            What::Output => "output",
            What::Qkv(..) => "qkv",
            What::GateUp => "gate_up",
        };
        format!("fused_{what}_{}", self.suffix)
    }

    /// Rows of the matrix.
    fn rows(&self, what: What) -> usize {
        match what {
            What::Output => ROWS,
            What::Qkv(heads, kv_heads) => (heads + 2 * kv_heads) * HEAD_DIM,
            What::GateUp => 2 * INNER,
        }
    }

    /// Room for what a launch writes.
    fn made(&self, bed: &mut Bed, what: What, n: usize, tokens: usize) -> Result<Made, Error> {
        let inner = tokens * (n / 2).next_multiple_of(PAIR);
        let sizes = match what {
            What::Output => vec![("y", tokens * n * 4)],
            What::Qkv(heads, kv_heads) => {
                let kept = kv_heads * SLOTS * HEAD_DIM * 2;
                vec![("queries", tokens * heads * HEAD_DIM * 4), ("keys", kept), ("values", kept)]
            }
            What::GateUp => {
                vec![
                    ("quants", inner),
                    ("scales", inner / BLOCK * 8),
                    ("bf16", inner * 2),
                    ("f16", inner * 2),
                ]
            }
        };
        let made = sizes.into_iter().map(|(name, bytes)| Ok((name, bed.blank(bytes)?)));
        Ok(Made(made.collect::<Result<_, Error>>()?))
    }

    /// Puts the fused launch into the stream.
    ///
    /// # Safety
    /// All lives until it is done, and was made for a matrix of `n` rows.
    unsafe fn later(&self, bed: &Bed, on: &On, made: &Made, what: What, n: usize) -> Result<(), Error> {
        let none = Argument::Address(0);
        let mut arguments = on.operand();
        let ready = on.ready();
        match on.given {
            true => arguments.extend([none, none].into_iter().chain(ready)),
            false => {
                arguments.extend([&on.x, &on.gain].map(Argument::Buffer));
                arguments.extend(ready.iter().map(|_| none));
            }
        }
        let rows = if matches!(what, What::GateUp) { n / 2 } else { n };
        arguments.extend([on.columns, rows, on.tokens].map(number));
        arguments.push(Argument::F32(EPSILON));
        let outputs = made.0.iter().map(|(_, buffer)| Argument::Buffer(buffer));
        let (ctas, joined) = match what {
            What::Output => {
                arguments.extend(outputs.chain([number(0)]));
                (n.div_ceil(2 * TILE), 1)
            }
            What::Qkv(heads, kv_heads) => {
                arguments.extend([
                    none,
                    none,
                    none,
                    Argument::Buffer(&on.turns),
                    Argument::Buffer(&on.slots),
                ]);
                let sizes = [0, heads, kv_heads, HEAD_DIM, HEAD_DIM, 1];
                arguments.extend(outputs.chain(sizes.map(number)));
                (n / (2 * TILE), 1)
            }
            What::GateUp => {
                arguments.extend(outputs.chain([number(0)]));
                (rows.next_multiple_of(PAIR) / BLOCK, 2)
            }
        };
        let kernel = bed.kernel(&self.name())?;
        // SAFETY: the caller's.
        unsafe { bed.stream.launch(kernel, [ctas as u32, 1, 1], [256, 1, 1], on.shared(joined), &arguments) }
    }

    /// Puts the launches that it stands for into the stream, and before them the one that makes the rows ready.
    ///
    /// # Safety
    /// As [`Fused::later`].
    unsafe fn parts_later(&self, bed: &Bed, on: &On, made: &Made, what: What, n: usize) -> Result<(), Error> {
        let none = Argument::Address(0);
        let [quants, scales, bf16, f16] = on.ready.each_ref().map(Argument::Buffer);
        let [x, gain, y] = [&on.x, &on.gain, &on.y].map(Argument::Buffer);
        let sizes = [number(on.columns), Argument::F32(EPSILON)];
        let mut product = on.operand();
        product.extend(on.ready().into_iter().chain([y]));
        product.extend([n, on.columns.div_ceil(PAIR), on.tokens, 0].map(number));
        let shared = if is_float(self.quant) { 4224 } else { 5248 } * on.tokens as u32;
        let gemv = bed.kernel(&format!("gemv_{}", self.suffix))?;
        let grid = [n.div_ceil(TILE) as u32, 1, 1];
        // SAFETY: the caller's.
        unsafe {
            let arguments = [x, gain, quants, scales, bf16, sizes[0], sizes[1]];
            bed.launch("norm_quantize", [on.tokens, 1], 256, &arguments)?;
            let arguments = [x, gain, none, none, f16, sizes[0], sizes[1]];
            bed.launch("norm_quantize_f16", [on.tokens, 1], 256, &arguments)?;
            bed.stream.launch(gemv, grid, [128, 1, 1], shared, &product)?;
        }
        let part = |row: usize| Argument::Address(on.y.address() + (row * 4) as u64);
        let outputs: Vec<Argument> = made.0.iter().map(|(_, buffer)| Argument::Buffer(buffer)).collect();
        match what {
            What::Output => Ok(()), // in y
            What::Qkv(heads, kv_heads) => {
                let starts = [0, heads, heads + kv_heads].map(|head| part(head * HEAD_DIM));
                let mut arguments = [&starts[..], &[none; 5]].concat();
                arguments.extend([&on.turns, &on.slots].map(Argument::Buffer));
                arguments.extend(outputs);
                arguments.extend([heads, kv_heads, HEAD_DIM, HEAD_DIM, 1, n, n, n].map(number));
                arguments.push(Argument::F32(EPSILON));
                let ctas = (heads + 2 * kv_heads).div_ceil(4);
                // SAFETY: the caller's.
                unsafe { bed.launch("rotate_append", [ctas, on.tokens], 128, &arguments) }
            }
            What::GateUp => {
                let sizes = [n / 2, n, 0].map(number);
                let grid = [on.tokens, (n / 2).next_multiple_of(PAIR).div_ceil(1024)];
                let [quants, scales, bf16, f16] = [0, 1, 2, 3].map(|at| outputs[at]);
                let first = [&[part(0), part(n / 2), quants, scales, bf16, none][..], &sizes].concat();
                let second = [&[part(0), part(n / 2), none, none, f16, none][..], &sizes].concat();
                // SAFETY: the caller's.
                unsafe {
                    bed.launch("gate_quantize", grid, 256, &first)?;
                    bed.launch("gate_quantize_f16", grid, 256, &second)
                }
            }
        }
    }
}

pub(super) fn check(bed: &mut Bed, fused: &Fused) -> Checked {
    let mut launches = Vec::new();
    for (case, (columns, tokens, given)) in SIZES.into_iter().enumerate() {
        let what = if matches!(fused.what, What::Qkv(..)) { What::Qkv(3, 1) } else { fused.what };
        let seeded = &mut Seeded::new(case as u64);
        let (n, columns) = (fused.rows(what), columns.next_multiple_of(fused.quant.block_len()));
        let file = blocks(fused.quant, n, columns, seeded);
        let on = On::new(bed, fused.quant, [n, columns, tokens], given, &file, seeded)?;
        let (made, parts) = (fused.made(bed, what, n, tokens)?, fused.made(bed, what, n, tokens)?);
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe {
            fused.parts_later(bed, &on, &parts, what, n)?;
            fused.later(bed, &on, &made, what, n)?;
        }
        let (mut all, mut near) = (Vec::new(), Vec::new());
        for ((name, got), (_, want)) in made.0.iter().zip(&parts.0) {
            let want = if matches!(what, What::Output) { &on.y } else { want };
            let (got, want) = (bed.bytes(got)?, bed.bytes(want)?);
            if let Err(wrong) = same(&format!("{name} of {tokens} rows of {columns}"), &got, &want) {
                return Ok(Err(wrong));
            }
            match *name {
                "y" | "queries" => near.extend_from_slice(&got),
                "bf16" => near.extend(got.as_chunks::<2>().0.iter().flat_map(|x| [0, 0, x[0], x[1]])),
                _ => {}
            }
            all.extend(got);
        }
        let name = format!("{}, {tokens} tokens of {columns}", fused.name());
        // How a tensor core sums floats up is its own.
        launches.push(match is_float(fused.quant) {
            true => Launched::near(name, case as u64, &near, APART),
            false => Launched::exact(name, case as u64, &all),
        });
    }
    Ok(Ok(Found::launches(launches)))
}

/// Bytes of weights per second, with one token whose row is made ready by every CTA.
pub(super) fn rate(bed: &mut Bed, fused: &Fused) -> Checked {
    let row_bytes = fused.quant.row_bytes(TIMED_COLUMNS);
    let heads = (bed.rate_bytes() / row_bytes / HEAD_DIM).max(3);
    let (what, n) = (fused.what, heads * HEAD_DIM);
    let what = if matches!(what, What::Qkv(..)) { What::Qkv(heads - 2, 1) } else { what };
    let seeded = &mut Seeded::new(0);
    let tile = blocks(fused.quant, TILE, TIMED_COLUMNS, seeded);
    let on = On::new(bed, fused.quant, [n, TIMED_COLUMNS, 1], false, &tile, seeded)?;
    let made = fused.made(bed, what, n, 1)?;
    // SAFETY: made for this size; it lives until the last wait.
    let took = bed.time(&|| unsafe { fused.later(bed, &on, &made, what, n) })?;
    let bytes = on.weights.size() + on.scales.size();
    Ok(Ok(Found::rate(bytes as f64 / took.as_secs_f64())))
}
