//! A layer's launches, of one to eight rows as few as there can be: products whose kernels make their rows ready and finish
//! what comes of them.
//!
//! Owns: when which of them takes the place of which launches; the bits are the same. Never: where an operand lies.

use super::launches::{FEW, Heads, Launches, Prepared, Projected, operand};
use super::module::number;
use super::weights::{Activations, Joined, Matrix, activations};
use super::{Argument, Error, Kernel};
use std::slice;

/// Rows of a CTA: two tiles.
const ROWS: usize = 32;
/// Columns that a CTA makes ready at most.
const COLUMNS: usize = 8192;
/// Rows that every CTA of 32 rows of a matrix makes ready for itself, rather than a launch for all. By count a product of one
/// takes 1.4 times the instructions, of two 1.9, and at about twice it is no longer bound by the memory of an H200.
const READY_ALONE: usize = 2;
/// Values that a multiprocessor makes ready in less than a launch takes, an estimate: narrow models have more rows ready so.
const READY_VALUES: usize = 8192;
/// Shared memory that a launch has without asking, less what is not dynamic.
const SHARED: usize = (48 << 10) - 256;
/// What the kernels join their sums in, of one matrix.
const JOIN: usize = 5248;

/// The kernels of one format.
pub(super) struct Fused {
    pub output: Kernel,
    pub qkv: Kernel,
    pub gate_up: Kernel,
}

/// Rows that are not ready for products.
#[derive(Clone, Copy)]
pub(super) struct Raw {
    pub x: u64,
    /// Of the norm, if they go through one.
    pub gain: Option<u64>,
    pub eps: f32,
    /// Where they go when a launch makes them ready.
    pub ready: Prepared,
}

impl Launches<'_> {
    /// The product of a matrix with rows is written to `y`, or added to it.
    pub fn output(&self, matrix: &Matrix, rows: Raw, y: u64, tokens: usize, adds: bool) -> Result<(), Error> {
        self.outputs(slice::from_ref(matrix), rows, y, tokens, adds)
    }

    /// The products of each matrix with the same rows, one behind the other.
    fn outputs(
        &self,
        matrices: &[Matrix],
        rows: Raw,
        y: u64,
        tokens: usize,
        adds: bool,
    ) -> Result<(), Error> {
        let ctas = |matrix: &Matrix| matrix.rows.div_ceil(ROWS);
        let alone = |it| self.shared(it, tokens, 1).is_some() && self.ready_alone(it, ctas(it), tokens);
        let alone = matrices.iter().all(alone);
        self.ready_unless(alone, matrices, rows, tokens)?;
        let mut to = y;
        for matrix in matrices {
            if alone {
                let rest = [Argument::Address(to), number(adds.into())];
                let size = [matrix.rows, tokens, ctas(matrix)];
                self.put_fused(
                    &self.kernels.fused(matrix.quant)?.output,
                    matrix,
                    (rows, alone),
                    size,
                    1,
                    &rest,
                )?;
            } else {
                self.product(matrix, rows.ready, to, tokens, adds)?;
            }
            to += (matrix.rows * tokens * 4) as u64;
        }
        Ok(())
    }

    /// Queries, keys and values of rows, turned and where attention reads them; `y`: room for products.
    pub fn qkv(
        &self,
        of: &Joined<3>,
        rows: Raw,
        y: u64,
        heads: &Heads,
        to: Projected,
        tokens: usize,
    ) -> Result<(), Error> {
        let Heads { heads: all, kv_heads, head_dim, dims, halves, .. } = *heads;
        let turns = head_dim.is_multiple_of(ROWS) && (!halves || dims.is_multiple_of(ROWS));
        let fits = of.matrices.iter().all(|matrix| self.shared(matrix, tokens, 1).is_some());
        // A head's norm wants all its values in one place.
        if !fits || !turns || to.gains != [None; 2] {
            self.outputs(&of.matrices, rows, y, tokens, false)?;
            return self.rotate_append(heads, of.products(y, tokens), to, tokens);
        }
        let ctas = |matrix: &Matrix| matrix.rows / ROWS;
        let alone = of.matrices.iter().all(|it| self.ready_alone(it, ctas(it), tokens));
        self.ready_unless(alone, &of.matrices, rows, tokens)?;
        let mut first = 0;
        for matrix in &of.matrices {
            let Projected { biases, turns, slots, out, pages, .. } = to;
            let mut rest: Vec<Argument> = biases.map(|place| Argument::Address(place.unwrap_or(0))).into();
            rest.extend([turns, slots, out, pages[0], pages[1]].map(Argument::Address));
            rest.extend([first, all, kv_heads, head_dim, dims, halves.into()].map(number));
            let size = [matrix.rows, tokens, ctas(matrix)];
            self.put_fused(&self.kernels.fused(matrix.quant)?.qkv, matrix, (rows, alone), size, 1, &rest)?;
            first += matrix.rows / head_dim;
        }
        Ok(())
    }

    /// `activation(gate) * up` of rows, ready for the next product; `y`: room for products.
    pub fn gate_up(
        &self,
        of: &Joined<2>,
        rows: Raw,
        y: u64,
        to: Prepared,
        [tokens, dim]: [usize; 2],
        gelu: bool,
    ) -> Result<(), Error> {
        let both = match &of.matrices[..] {
            [both] => self.shared(both, tokens, 2).map(|_| both),
            _ => None,
        };
        let Some(both) = both else {
            self.outputs(&of.matrices, rows, y, tokens, false)?;
            return self.gate_quantize(of.products(y, tokens), to, [tokens, dim], gelu);
        };
        let ctas = dim.next_multiple_of(2 * ROWS) / ROWS;
        let alone = self.ready_alone(both, ctas, tokens);
        self.ready_unless(alone, &of.matrices, rows, tokens)?;
        let mut rest: Vec<Argument> = [to.xq, to.xs, to.bf16, to.f16].map(Argument::Address).into();
        rest.push(number(gelu.into()));
        self.put_fused(
            &self.kernels.fused(both.quant)?.gate_up,
            both,
            (rows, alone),
            [dim, tokens, ctas],
            2,
            &rest,
        )
    }

    /// Makes rows ready for these matrices, unless each CTA does so alone.
    fn ready_unless(&self, alone: bool, matrices: &[Matrix], rows: Raw, tokens: usize) -> Result<(), Error> {
        if alone {
            return Ok(());
        }
        self.norm_quantize(rows.x, rows.gain, rows.ready, [tokens, matrices[0].columns], rows.eps)
    }

    /// Bytes of shared memory with so many rows; `None`: they are too many, or have too many columns.
    fn shared(&self, matrix: &Matrix, tokens: usize, joined: usize) -> Option<usize> {
        // As kernels/fused.inc has them: a row's bytes of eight steps, pairs that no cut between runs parts.
        let (row, steps) = match activations(matrix.quant) {
            Activations::Quants => (656, 1),
            Activations::Bf16 | Activations::F16 => (528, 2),
        };
        let unit = if matrix.quant.block_len() > 32 { 4 } else { 1 };
        let run = matrix.pairs().div_ceil(4 * unit) * unit * steps;
        let bytes = (4 * run.div_ceil(8) * tokens * row).max(joined * JOIN);
        (tokens <= FEW && matrix.columns <= COLUMNS && bytes <= SHARED).then_some(bytes)
    }

    /// Whether each CTA makes its rows ready for itself.
    fn ready_alone(&self, matrix: &Matrix, ctas: usize, tokens: usize) -> bool {
        let values = ctas.div_ceil(self.multiprocessors) * matrix.columns * tokens;
        tokens * ctas * ROWS <= READY_ALONE * matrix.rows.next_multiple_of(ROWS) || values <= READY_VALUES
    }

    /// A launch of any of them: with rows as they are, or ready; `joined`: of so many matrices sums are joined.
    fn put_fused(
        &self,
        kernel: &Kernel,
        matrix: &Matrix,
        (rows, alone): (Raw, bool),
        [n, tokens, ctas]: [usize; 3],
        joined: usize,
        rest: &[Argument],
    ) -> Result<(), Error> {
        let mut arguments = operand(matrix);
        let ready = match activations(matrix.quant) {
            Activations::Quants => vec![rows.ready.xq, rows.ready.xs],
            Activations::Bf16 => vec![rows.ready.bf16],
            Activations::F16 => vec![rows.ready.f16],
        };
        let (x, gain) = if alone { (rows.x, rows.gain.unwrap_or(0)) } else { (0, 0) };
        arguments.extend([x, gain].into_iter().chain(ready).map(Argument::Address));
        arguments.extend([matrix.columns, n, tokens].map(number));
        arguments.push(Argument::F32(rows.eps));
        arguments.extend(rest);
        let shared = self.shared(matrix, tokens, joined).unwrap_or(0);
        self.put(kernel, [ctas, 1, 1], 256, shared, &arguments)
    }
}
