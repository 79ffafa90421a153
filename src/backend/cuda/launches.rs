//! Each kernel's launch: grid, block, shared memory, the order of its arguments, as its head says them.
//!
//! Owns: that, and which kernels a model needs. Never: where an operand lies, nor the order of launches (`step.rs`).

use super::fused::Fused;
use super::kernels::Source;
use super::module::number;
use super::plan::PAGE;
use super::weights::{Activations, Matrix, activations, matrices};
use super::{Argument, Device, Error, Kernel, Stream};
use crate::backend::sample::LOGITS_PER_MAXIMUM;
use crate::model::Model;
use crate::model::quant::Quant;

/// Tokens of a matrix-vector product at most.
pub(super) const FEW: usize = 8;
/// Bytes of dynamic shared memory that one takes for each token; of bf16 fewer.
const FEW_SHARED: usize = 5248;
/// Rows and tokens of a CTA of a matrix-matrix product of many tokens, and of few.
const WIDE: (usize, usize) = (128, 64);
const WIDE_FLOATS: (usize, usize) = (128, 128);
const NARROW: (usize, usize) = (64, 32);
/// Values that a CTA of `norm_quantize` takes.
const NORM_CHUNK: usize = 8192;
/// Values of a row that a CTA of the small kernels takes.
const CHUNK: usize = 1024;
/// Pairs of a row and a head of one KV head's group that a warp of prefill has.
const PAIRS: usize = 8;
/// Logits that a CTA of the kernels that look at all of them takes.
const LOGITS: usize = 8 * LOGITS_PER_MAXIMUM;

/// The products with matrices of one format, of any number of tokens.
struct Product {
    vector: Kernel,
    wide: Kernel,
    narrow: Kernel,
    fused: Fused,
}

/// Every kernel that a model needs.
pub(super) struct Kernels {
    products: Vec<(Quant, Product)>,
    embed: Kernel,
    attend: Kernel,
    prefill: Kernel,
    /// To quants and bf16, and to f16; so is the gate's.
    norm_quantize: [Kernel; 2],
    rotate_append: Kernel,
    attend_combine: Kernel,
    gate_quantize: [Kernel; 2],
    copy_rows: Kernel,
    add_normed: Kernel,
    cap_logits: Kernel,
    sample_best: Kernel,
    sample_weigh: Kernel,
    sample_draw: Kernel,
    sample_top: Kernel,
    copy_page: Kernel,
    clear_page: Kernel,
}

/// The formats of a model's matrices that products are made with.
pub(super) fn formats(model: &Model) -> Vec<Quant> {
    let layers = model.weights.layers.iter().flat_map(matrices);
    let kinds = layers.chain([&model.weights.head]).map(|extent| model.gguf.tensor_at(extent).kind);
    let mut formats: Vec<Quant> = Vec::new();
    for kind in kinds {
        if !formats.contains(&kind) {
            formats.push(kind);
        }
    }
    formats
}

fn named<'a>(sources: &'a [Source], name: &str) -> Option<&'a Source> {
    sources.iter().find(|source| source.name == name)
}

/// Names of a format's kernels begin and end so.
fn of_format(kernel: &str, quant: Quant, end: &str) -> String {
    format!("{kernel}_{}{end}", quant.to_string().to_lowercase())
}

/// Whether there are kernels for products with this format: a format has all of them or none.
pub(super) fn has_products(sources: &[Source], quant: Quant) -> bool {
    named(sources, &of_format("gemv", quant, "")).is_some()
}

pub(super) fn has_embedding(sources: &[Source], quant: Quant) -> bool {
    named(sources, &of_format("embed", quant, "")).is_some()
}

impl Kernels {
    /// Has the driver compile what `model` needs.
    pub fn load(device: &Device, sources: &[Source], model: &Model) -> Result<Kernels, Error> {
        let load = |name: &str| {
            let absent =
                || Error::Launch { kernel: name.to_owned(), why: "there is no such kernel".to_owned() };
            let source = named(sources, name).ok_or_else(absent)?;
            device.kernel(&source.name, &source.module(device))
        };
        let product = |quant: Quant| {
            let kernel = |what: &str, end: &str| load(&of_format(what, quant, end));
            let fused = Fused {
                output: kernel("fused_output", "")?,
                qkv: kernel("fused_qkv", "")?,
                gate_up: kernel("fused_gate_up", "")?,
            };
            let (vector, wide) = (kernel("gemv", "")?, kernel("gemm", "")?);
            Ok((quant, Product { vector, wide, narrow: kernel("gemm", "_narrow")?, fused }))
        };
        let embedding = model.gguf.tensor_at(&model.weights.embedding).kind;
        Ok(Kernels {
            products: formats(model).into_iter().map(product).collect::<Result<_, Error>>()?,
            embed: load(&of_format("embed", embedding, ""))?,
            attend: load(&format!("attend_{}", model.shape.head_dim))?,
            prefill: load(&format!("prefill_{}", model.shape.head_dim))?,
            norm_quantize: [load("norm_quantize")?, load("norm_quantize_f16")?],
            rotate_append: load("rotate_append")?,
            attend_combine: load("attend_combine")?,
            gate_quantize: [load("gate_quantize")?, load("gate_quantize_f16")?],
            copy_rows: load("copy_rows")?,
            add_normed: load("add_normed")?,
            cap_logits: load("cap_logits")?,
            sample_best: load("sample_best")?,
            sample_weigh: load("sample_weigh")?,
            sample_draw: load("sample_draw")?,
            sample_top: load("sample_top")?,
            copy_page: load("copy_page")?,
            clear_page: load("clear_page")?,
        })
    }

    fn product(&self, quant: Quant) -> Result<&Product, Error> {
        let found = self.products.iter().find(|(of, _)| *of == quant).map(|(_, product)| product);
        found.ok_or_else(|| Error::Launch {
            kernel: quant.to_string(),
            why: "there is no product of this format".to_owned(),
        })
    }

    pub fn fused(&self, quant: Quant) -> Result<&Fused, Error> {
        Ok(&self.product(quant)?.fused)
    }
}

/// Rows as products read them: addresses of quants, of scales and sums, of bf16, of f16; 0: they are not wanted.
#[derive(Clone, Copy)]
pub(super) struct Prepared {
    pub xq: u64,
    pub xs: u64,
    pub bf16: u64,
    pub f16: u64,
}

impl Prepared {
    /// Has `put` launch what is wanted of two kernels, with three addresses: one makes quants and bf16, the other f16.
    fn each(
        self,
        [first, second]: &[Kernel; 2],
        put: impl Fn(&Kernel, [u64; 3]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.xq | self.bf16 != 0 {
            put(first, [self.xq, self.xs, self.bf16])?;
        }
        if self.f16 != 0 { put(second, [0, 0, self.f16]) } else { Ok(()) }
    }
}

/// Sizes of attention that no step changes.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Of scores.
    pub scale: f32,
    /// Of scores; 0: none.
    pub cap: f32,
    /// Values of a head that are turned, and whether the halves are pairs.
    pub dims: usize,
    pub halves: bool,
    pub eps: f32,
}

/// CTAs of attention that a split of a row has: each takes eight query heads of a KV head at most.
pub(super) fn octets(heads: usize, kv_heads: usize) -> usize {
    kv_heads * (heads / kv_heads).div_ceil(8)
}

/// Warps of a CTA of prefill.
pub(super) fn prefill_warps(head_dim: usize) -> usize {
    if head_dim > 128 { 4 } else { 8 }
}

impl Heads {
    /// Rows of a sequence that a CTA of prefill takes at most; 0: one has too many heads.
    pub fn tile_rows(&self) -> usize {
        PAIRS * prefill_warps(self.head_dim) / (self.heads / self.kv_heads)
    }
}

/// What is done to products that become queries, keys and values, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Projected {
    pub biases: [Option<u64>; 3],
    /// Of queries and of keys.
    pub gains: [Option<u64>; 2],
    pub turns: u64,
    pub slots: u64,
    pub out: u64,
    /// Of keys and of values, one layer's.
    pub pages: [u64; 2],
}

/// A pool of pages as the kernels are told of it.
#[derive(Clone, Copy)]
pub(super) struct Planes {
    pub pool: u64,
    /// Keys and values of each layer.
    pub count: usize,
    /// Bytes from one to the next.
    pub stride: usize,
}

/// What launches go through. All addresses are of buffers that [`Cuda`](super::Cuda) holds.
#[derive(Clone, Copy)]
pub(super) struct Launches<'a> {
    pub stream: &'a Stream,
    pub kernels: &'a Kernels,
    pub multiprocessors: usize,
}

fn at(address: u64) -> Argument<'static> {
    Argument::Address(address)
}

impl Launches<'_> {
    pub(super) fn put(
        &self,
        kernel: &Kernel,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        arguments: &[Argument],
    ) -> Result<(), Error> {
        let grid = grid.map(|count| count as u32);
        // SAFETY: the operands are buffers of `Room`, `Weights` and the pool, made for the largest sizes of a step, which live
        // as long as the stream; the stream's order alone uses them. Each kernel's head says what it reads and writes.
        unsafe { self.stream.launch(kernel, grid, [block, 1, 1], shared as u32, arguments) }
    }

    /// Tokens' rows of the embedding, or embedding slots, into the stream.
    pub fn embed(
        &self,
        matrix: &Matrix,
        [inputs, embeds, stream]: [u64; 3],
        rows: usize,
        scale: f32,
    ) -> Result<(), Error> {
        let scales = matrix.scales.as_ref().map_or(at(0), Argument::Buffer);
        let mut arguments = vec![Argument::Buffer(&matrix.quants), scales];
        arguments.extend([inputs, embeds, stream].map(at));
        arguments.extend([number(matrix.columns), Argument::F32(scale)]);
        let grid = [matrix.columns.div_ceil(CHUNK), rows, 1];
        self.put(&self.kernels.embed, grid, 128, 0, &arguments)
    }

    /// Rows through a norm, if there is a gain, as products read them.
    pub fn norm_quantize(
        &self,
        x: u64,
        gain: Option<u64>,
        to: Prepared,
        [rows, dim]: [usize; 2],
        eps: f32,
    ) -> Result<(), Error> {
        let grid = [rows, dim.div_ceil(NORM_CHUNK), 1];
        to.each(&self.kernels.norm_quantize, |kernel, [xq, xs, halves]| {
            let addresses = [x, gain.unwrap_or(0), xq, xs, halves].map(at);
            let arguments = [&addresses[..], &[number(dim), Argument::F32(eps)]].concat();
            self.put(kernel, grid, 256, 0, &arguments)
        })
    }

    /// `y` becomes the product of a matrix with `tokens` rows, or it is added to what is there. The bits are the same whichever
    /// kernel makes them.
    pub fn product(
        &self,
        matrix: &Matrix,
        x: Prepared,
        y: u64,
        tokens: usize,
        adds: bool,
    ) -> Result<(), Error> {
        let Product { vector, wide, narrow, .. } = self.kernels.product(matrix.quant)?;
        let mut arguments = operand(matrix);
        match activations(matrix.quant) {
            Activations::Quants => arguments.extend([x.xq, x.xs].map(at)),
            Activations::Bf16 => arguments.push(at(x.bf16)),
            Activations::F16 => arguments.push(at(x.f16)),
        }
        arguments.push(at(y));
        arguments.extend([matrix.rows, matrix.pairs(), tokens, adds.into()].map(number));
        if tokens <= FEW {
            let grid = [matrix.rows.div_ceil(16), 1, 1];
            return self.put(vector, grid, 128, FEW_SHARED * tokens, &arguments);
        }
        let ctas = |(rows, of): (usize, usize)| [tokens.div_ceil(of), matrix.rows.div_ceil(rows), 1];
        let quants = activations(matrix.quant) == Activations::Quants;
        let grid = ctas(if quants { WIDE } else { WIDE_FLOATS });
        if grid[0] * grid[1] >= self.multiprocessors {
            return self.put(wide, grid, 256, 0, &arguments);
        }
        self.put(narrow, ctas(NARROW), 64, 0, &arguments)
    }

    /// Bias, norm of each head, rotation of products, each with so many values between two rows; queries to where attention reads them, keys and values into their pages.
    pub fn rotate_append(
        &self,
        heads: &Heads,
        qkv: [(u64, usize); 3],
        to: Projected,
        rows: usize,
    ) -> Result<(), Error> {
        let Projected { biases, gains, turns, slots, out, pages } = to;
        let mut arguments: Vec<Argument> = qkv.map(|(place, _)| at(place)).into();
        arguments.extend(biases.into_iter().chain(gains).map(|place| at(place.unwrap_or(0))));
        arguments.extend([turns, slots, out, pages[0], pages[1]].map(at));
        let Heads { heads, kv_heads, head_dim, dims, halves, eps, .. } = *heads;
        arguments.extend([heads, kv_heads, head_dim, dims, halves.into()].map(number));
        arguments.extend(qkv.map(|(_, stride)| number(stride)));
        arguments.push(Argument::F32(eps));
        let grid = [(heads + 2 * kv_heads).div_ceil(4), rows, 1];
        self.put(&self.kernels.rotate_append, grid, 128, 0, &arguments)
    }

    /// What rows attend to. `tail` has tables and masks; a row says itself where its own begin, so both strides are 1. Rows in
    /// several splits are joined there too: prefill alone leaves that to a launch of its own.
    pub fn attend(
        &self,
        heads: &Heads,
        [q, keys, values]: [u64; 3],
        [rows_at, tail]: [u64; 2],
        [out, sums, scales, tickets]: [u64; 4],
        [rows, splits]: [usize; 2],
    ) -> Result<(), Error> {
        let Heads { kv_heads, scale, cap, .. } = *heads;
        let mut arguments: Vec<Argument> =
            [q, keys, values, tail, rows_at, tail, out, sums, scales, tickets].map(at).into();
        arguments.extend([kv_heads, heads.heads / kv_heads, 1, 1, splits].map(number));
        arguments.extend([scale, cap].map(Argument::F32));
        let grid = [splits, octets(heads.heads, kv_heads), rows];
        self.put(&self.kernels.attend, grid, 128, 0, &arguments)
    }

    /// The same, to the bit, of rows in so many tiles, which are rows `first` to `first + rows` of the step. Places are of the
    /// step's first row, scratch of the tiles'.
    pub fn prefill(
        &self,
        heads: &Heads,
        [q, keys, values]: [u64; 3],
        [rows_at, tail, tiles_at]: [u64; 3],
        [out, sums, scales]: [u64; 3],
        [first, rows, tiles, splits]: [usize; 4],
    ) -> Result<(), Error> {
        let Heads { heads: all, kv_heads, head_dim, scale, cap, .. } = *heads;
        let mut arguments: Vec<Argument> =
            [q, keys, values, tail, rows_at, tail, out, sums, scales, tiles_at].map(at).into();
        arguments.extend([kv_heads, all / kv_heads, 1, 1, splits, first].map(number));
        arguments.extend([scale, cap].map(Argument::F32));
        let block = 32 * prefill_warps(head_dim) as u32;
        self.put(&self.kernels.prefill, [splits, kv_heads, tiles], block, 0, &arguments)?;
        if splits == 1 {
            return Ok(());
        }
        let (rows_at, out) = (rows_at + (first * 16) as u64, out + (first * all * head_dim * 4) as u64);
        let mut arguments: Vec<Argument> = [rows_at, sums, scales, out].map(at).into();
        arguments.extend([all, head_dim, splits].map(number));
        self.put(&self.kernels.attend_combine, [all, rows, 1], 128, 0, &arguments)
    }

    /// `activation(gate) * up`, as products read it; both with as many values between rows.
    pub fn gate_quantize(
        &self,
        [gate, up]: [(u64, usize); 2],
        to: Prepared,
        [rows, dim]: [usize; 2],
        gelu: bool,
    ) -> Result<(), Error> {
        let grid = [rows, dim.next_multiple_of(64).div_ceil(CHUNK), 1];
        to.each(&self.kernels.gate_quantize, |kernel, [xq, xs, halves]| {
            let addresses = [gate.0, up.0, xq, xs, halves, 0].map(at);
            let arguments = [&addresses[..], &[dim, gate.1, gelu.into()].map(number)].concat();
            self.put(kernel, grid, 256, 0, &arguments)
        })
    }

    /// `stream += norm(x) * gain`.
    pub fn add_normed(
        &self,
        [stream, x, gain]: [u64; 3],
        [rows, dim]: [usize; 2],
        eps: f32,
    ) -> Result<(), Error> {
        let arguments = [at(stream), at(x), at(gain), number(dim), Argument::F32(eps)];
        self.put(&self.kernels.add_normed, [rows, 1, 1], 256, 0, &arguments)
    }

    /// Rows of `from` to rows of `to`; a list that is `None` counts from 0.
    pub fn copy_rows(
        &self,
        [to, from]: [u64; 2],
        lists: [Option<u64>; 2],
        [rows, dim]: [usize; 2],
    ) -> Result<(), Error> {
        let [to_rows, from_rows] = lists.map(|place| at(place.unwrap_or(0)));
        let arguments = [at(to), at(from), to_rows, from_rows, number(dim)];
        self.put(&self.kernels.copy_rows, [dim.div_ceil(CHUNK), rows, 1], 256, 0, &arguments)
    }

    pub fn cap_logits(&self, logits: u64, count: usize, cap: f32) -> Result<(), Error> {
        let arguments = [at(logits), number(count), Argument::F32(cap)];
        self.put(&self.kernels.cap_logits, [count.div_ceil(CHUNK), 1, 1], 256, 0, &arguments)
    }

    /// The best logit of each stretch, and where it counts how much each weighs.
    pub fn weigh(
        &self,
        [logits, best, draws, weighed]: [u64; 4],
        [rows, vocab]: [usize; 2],
    ) -> Result<(), Error> {
        let grid = [vocab.div_ceil(LOGITS), rows, 1];
        self.put(&self.kernels.sample_best, grid, 256, 0, &[at(logits), at(best), number(vocab)])?;
        let arguments = [at(logits), at(best), at(draws), at(weighed), number(vocab)];
        self.put(&self.kernels.sample_weigh, grid, 256, 0, &arguments)
    }

    /// A token of each row.
    pub fn draw(
        &self,
        [logits, best, weighed, draws, tokens]: [u64; 5],
        [rows, vocab]: [usize; 2],
    ) -> Result<(), Error> {
        let arguments = [at(logits), at(best), at(weighed), at(draws), at(tokens), number(vocab)];
        self.put(&self.kernels.sample_draw, [rows, 1, 1], 512, 0, &arguments)
    }

    /// The most probable tokens of each row, as many as its count says.
    pub fn top(
        &self,
        [logits, best, weighed, draws, counts, top]: [u64; 6],
        [rows, vocab, entries]: [usize; 3],
    ) -> Result<(), Error> {
        let mut arguments: Vec<Argument> = [logits, best, weighed, draws, counts, top].map(at).into();
        arguments.extend([vocab, entries].map(number));
        self.put(&self.kernels.sample_top, [rows, 1, 1], 512, 0, &arguments)
    }

    pub fn copy_page(&self, planes: Planes, from: u32, to: u32, page_bytes: usize) -> Result<(), Error> {
        let count = page_bytes / 16;
        let ids = [from, to].map(Argument::U32);
        let arguments = [at(planes.pool), ids[0], ids[1], number(count), number(planes.stride / 16)];
        self.put(&self.kernels.copy_page, [count.div_ceil(256), planes.count, 1], 256, 0, &arguments)
    }

    pub fn clear_page(&self, planes: Planes, page: u32, first: u32, heads: &Heads) -> Result<(), Error> {
        let ids = [page, first.min(PAGE as u32)].map(Argument::U32);
        let stride = number(planes.stride / 16);
        let arguments = [at(planes.pool), ids[0], ids[1], number(heads.head_dim), stride];
        self.put(&self.kernels.clear_page, [heads.kv_heads, planes.count, 1], 128, 0, &arguments)
    }
}

/// A matrix as products are told of it: formats without scales have no argument for them.
pub(super) fn operand(matrix: &Matrix) -> Vec<Argument<'_>> {
    [Some(&matrix.quants), matrix.scales.as_ref()].into_iter().flatten().map(Argument::Buffer).collect()
}
