//! A model's weights on the device.
//!
//! Owns: which matrix and which vector lies in which buffer, and their way there: some rows at a time, in the order of the
//! kernels' lanes. Never: that order (`repack.rs`), nor a kernel.

use super::repack::{Layout, PAIR, TILE};
use super::{Buffer, Device, Error, Stream};
use crate::limits::GPU_UPLOAD_BYTES;
use crate::model::gguf::{Extent, Gguf, Tensor};
use crate::model::quant::Quant;
use crate::model::{self, Model};

/// A matrix of the model.
pub(super) struct Matrix {
    pub quant: Quant,
    pub rows: usize,
    pub columns: usize,
    pub quants: Buffer,
    /// Of formats whose scales lie apart.
    pub scales: Option<Buffer>,
}

/// Matrices that the same activations are multiplied with. Neighbours of one format lie one behind the other as one matrix:
/// one launch makes their products.
pub(super) struct Joined<const N: usize> {
    pub matrices: Vec<Matrix>,
    /// Of each that went in: which of `matrices` it is part of, and its first row there.
    parts: [(usize, usize); N],
}

impl<const N: usize> Joined<N> {
    /// Where each one's part of the products begins, and how many values lie between two tokens': `y` has those of so many
    /// tokens, matrix after matrix.
    pub fn products(&self, y: u64, tokens: usize) -> [(u64, usize); N] {
        self.parts.map(|(number, row)| {
            let before: usize = self.matrices[..number].iter().map(|matrix| matrix.rows * tokens).sum();
            (y + ((before + row) * 4) as u64, self.matrices[number].rows)
        })
    }
}

/// What the numbers are that a matrix is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activations {
    /// s8 with a scale and a sum for each 32.
    Quants,
    Bf16,
    F16,
}

/// What a format's kernels multiply with.
pub(super) fn activations(quant: Quant) -> Activations {
    match quant {
        Quant::BF16 => Activations::Bf16,
        Quant::F16 => Activations::F16,
        _ => Activations::Quants,
    }
}

pub(super) struct Layer {
    pub attn_norm: Buffer, // f32 [hidden]; so are all vectors
    /// Queries', keys' and values'.
    pub qkv: Joined<3>,
    pub q_bias: Option<Buffer>,
    pub k_bias: Option<Buffer>,
    pub v_bias: Option<Buffer>,
    pub q_norm: Option<Buffer>,
    pub k_norm: Option<Buffer>,
    pub output: Matrix,
    pub attn_post_norm: Option<Buffer>,
    pub ffn_norm: Buffer,
    pub gate_up: Joined<2>,
    pub down: Matrix,
    pub ffn_post_norm: Option<Buffer>,
    /// Which of [`turns`].
    pub turns: usize,
    /// Slots that a row sees at most.
    pub window: Option<usize>,
}

pub(super) struct Weights {
    pub embedding: Matrix,
    /// None: the embedding itself.
    pub head: Option<Matrix>,
    pub output_norm: Buffer,
    pub layers: Vec<Layer>,
}

impl Weights {
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

/// Every matrix of a layer.
pub(super) fn matrices(layer: &model::Layer) -> [&Extent; 7] {
    [
        &layer.attn_q,
        &layer.attn_k,
        &layer.attn_v,
        &layer.attn_output,
        &layer.ffn_gate,
        &layer.ffn_up,
        &layer.ffn_down,
    ]
}

/// Every vector of a layer.
fn vectors(layer: &model::Layer) -> impl Iterator<Item = &Extent> {
    let some = [
        &layer.q_bias,
        &layer.k_bias,
        &layer.v_bias,
        &layer.q_norm,
        &layer.k_norm,
        &layer.attn_post_norm,
        &layer.ffn_post_norm,
    ];
    some.into_iter().flatten().chain([&layer.attn_norm, &layer.ffn_norm])
}

/// Radians by which one position turns each pair of a head: of the first layer, then of those that differ.
pub(super) fn turns(model: &Model) -> Vec<Vec<f64>> {
    let mut turns: Vec<Vec<f64>> = Vec::new();
    for own in (0..model.shape.layers).map(|layer| turns_of(model, layer)) {
        if !turns.contains(&own) {
            turns.push(own);
        }
    }
    turns
}

fn turns_of(model: &Model, layer: usize) -> Vec<f64> {
    let factors = model.weights.rope_factors.as_ref().map(|factors| &*factors.divisors);
    model.shape.turns_of(layer, factors)
}

/// How a matrix lies on the device; the error names the tensor and what no kernel reads.
pub(super) fn layout(tensor: &Tensor) -> Result<Layout, String> {
    Layout::new(tensor.kind, tensor.rows(), tensor.dims[0]).ok_or_else(|| {
        format!(
            "the GPU's kernels do not read `{}`, {} rows of {} values in {}",
            tensor.name,
            tensor.rows(),
            tensor.dims[0],
            tensor.kind
        )
    })
}

/// Bytes that the weights take on the device.
pub(super) fn bytes(model: &Model) -> Result<usize, String> {
    let of_matrix = |extent: &Extent| {
        layout(&model.gguf.tensor_at(extent)).map(|layout| layout.quant_bytes() + layout.scale_bytes())
    };
    let of_vector = |extent: &Extent| model.gguf.tensor_at(extent).dims[0] * 4;
    let weights = &model.weights;
    let mut sum = of_matrix(&weights.embedding)? + of_vector(&weights.output_norm);
    if !model.shape.tied_head {
        sum += of_matrix(&weights.head)?;
    }
    for layer in &weights.layers {
        sum += vectors(layer).map(of_vector).sum::<usize>();
        for matrix in matrices(layer) {
            sum += of_matrix(matrix)?;
        }
    }
    Ok(sum)
}

/// Where weights go to, and how.
struct Way<'a> {
    gguf: &'a Gguf,
    device: &'a Device,
    stream: &'a mut Stream,
    /// Kept from one part to the next for their room.
    quants: Vec<u8>,
    scales: Vec<u8>,
}

impl Weights {
    /// Brings all weights of a model whose [`bytes`] are known onto the device.
    pub fn load(model: &Model, device: &Device, stream: &mut Stream) -> Result<Weights, Error> {
        let mut way = Way { gguf: &model.gguf, device, stream, quants: Vec::new(), scales: Vec::new() };
        let (shape, weights) = (&model.shape, &model.weights);
        let turns = turns(model);
        let mut layers = Vec::with_capacity(shape.layers);
        for (number, layer) in weights.layers.iter().enumerate() {
            let own = turns_of(model, number);
            layers.push(Layer {
                attn_norm: way.vector(&layer.attn_norm)?,
                qkv: way.joined([&layer.attn_q, &layer.attn_k, &layer.attn_v])?,
                q_bias: way.if_there(&layer.q_bias)?,
                k_bias: way.if_there(&layer.k_bias)?,
                v_bias: way.if_there(&layer.v_bias)?,
                q_norm: way.if_there(&layer.q_norm)?,
                k_norm: way.if_there(&layer.k_norm)?,
                output: way.matrix(&layer.attn_output)?,
                attn_post_norm: way.if_there(&layer.attn_post_norm)?,
                ffn_norm: way.vector(&layer.ffn_norm)?,
                gate_up: way.joined([&layer.ffn_gate, &layer.ffn_up])?,
                down: way.matrix(&layer.ffn_down)?,
                ffn_post_norm: way.if_there(&layer.ffn_post_norm)?,
                turns: turns.iter().position(|turns| *turns == own).unwrap_or(0),
                window: shape.window_of(number),
            });
        }
        Ok(Weights {
            embedding: way.matrix(&weights.embedding)?,
            head: if shape.tied_head { None } else { Some(way.matrix(&weights.head)?) },
            output_norm: way.vector(&weights.output_norm)?,
            layers,
        })
    }
}

impl Way<'_> {
    fn vector(&mut self, extent: &Extent) -> Result<Buffer, Error> {
        let values = self.gguf.tensor_at(extent).values();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let buffer = self.device.buffer(bytes.len())?;
        self.stream.upload(&bytes, &buffer, 0)?;
        Ok(buffer)
    }

    fn if_there(&mut self, extent: &Option<Extent>) -> Result<Option<Buffer>, Error> {
        extent.as_ref().map(|extent| self.vector(extent)).transpose()
    }

    fn matrix(&mut self, extent: &Extent) -> Result<Matrix, Error> {
        self.stacked(&[self.gguf.tensor_at(extent)])
    }

    fn joined<const N: usize>(&mut self, extents: [&Extent; N]) -> Result<Joined<N>, Error> {
        let tensors = extents.map(|extent| self.gguf.tensor_at(extent));
        // A row tile is one matrix's: what follows ragged rows begins anew.
        let joins = |a: &Tensor, b: &Tensor| {
            a.kind == b.kind && a.dims[0] == b.dims[0] && a.rows().is_multiple_of(TILE)
        };
        let (mut matrices, mut parts, mut at) = (Vec::new(), [(0, 0); N], 0);
        for stack in tensors.chunk_by(joins) {
            let mut row = 0;
            for tensor in stack {
                parts[at] = (matrices.len(), row);
                row += tensor.rows();
                at += 1;
            }
            matrices.push(self.stacked(stack)?);
        }
        Ok(Joined { matrices, parts })
    }

    /// One matrix of tensors of one format and as many columns, of whole tiles each but the last.
    fn stacked(&mut self, tensors: &[Tensor]) -> Result<Matrix, Error> {
        let (mut quant_bytes, mut scale_bytes) = (0, 0);
        for tensor in tensors {
            let whole = layout(tensor).map_err(|why| unread(tensor, why))?;
            quant_bytes += whole.quant_bytes();
            scale_bytes += whole.scale_bytes();
        }
        let quants = self.device.buffer(quant_bytes)?;
        let scales = match scale_bytes {
            0 => None,
            bytes => Some(self.device.buffer(bytes)?),
        };
        let (mut quants_at, mut scales_at) = (0, 0);
        for tensor in tensors {
            self.bring(tensor, (&quants, &mut quants_at), (scales.as_ref(), &mut scales_at))?;
        }
        let rows = tensors.iter().map(Tensor::rows).sum();
        Ok(Matrix { quant: tensors[0].kind, rows, columns: tensors[0].dims[0], quants, scales })
    }

    /// A tensor to where it stands in these buffers, which then is the next one's place.
    fn bring(
        &mut self,
        tensor: &Tensor,
        (quants, quants_at): (&Buffer, &mut usize),
        (scales, scales_at): (Option<&Buffer>, &mut usize),
    ) -> Result<(), Error> {
        let (rows, columns) = (tensor.rows(), tensor.dims[0]);
        // Whole tiles at a time: a tile's bytes follow those of the one before it.
        let row_bytes = tensor.row_bytes();
        let at_a_time = (GPU_UPLOAD_BYTES / (row_bytes * TILE)).max(1) * TILE;
        for first in (0..rows).step_by(at_a_time) {
            let count = at_a_time.min(rows - first);
            let part = Tensor { dims: [columns, count, 1, 1], ..*tensor };
            let part = layout(&part).map_err(|why| unread(tensor, why))?;
            self.quants.resize(part.quant_bytes(), 0);
            self.scales.resize(part.scale_bytes(), 0);
            let file = &tensor.bytes[first * row_bytes..][..count * row_bytes];
            part.pack(file, &mut self.quants, &mut self.scales);
            self.stream.upload(&self.quants, quants, *quants_at)?;
            if let Some(scales) = scales {
                self.stream.upload(&self.scales, scales, *scales_at)?;
            }
            *quants_at += self.quants.len();
            *scales_at += self.scales.len();
        }
        Ok(())
    }
}

fn unread(tensor: &Tensor, why: String) -> Error {
    Error::Launch { kernel: tensor.name.to_owned(), why }
}

impl Matrix {
    /// Pairs of blocks in a row.
    pub fn pairs(&self) -> usize {
        self.columns.div_ceil(PAIR)
    }
}
