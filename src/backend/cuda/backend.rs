//! The CUDA backend: a model on a GPU, through the kernels of `kernels/`.
//!
//! Owns: the device with all that is on it, taken at the start; a batch becomes steps, a step one copy there, launches (of
//! decoding: a recorded graph) and one copy back. Never: which pages belong to whom.

use super::coverage::covers;
use super::envelope::Envelopes;
use super::graphs::Graphs;
use super::launches::{Heads, Kernels, Launches, Planes, formats};
use super::pieces::{Piece, steps};
use super::plan::{self, Demand, Memory, TooLarge, plane_bytes, planes, table_words};
use super::room::{Bounds, ENTRY, Room, TOPS_AT, bytes};
use super::staging::{Kinds, Sizes, Staging, Tile, Wants, least_bytes, tiles};
use super::step::Step;
use super::weights::{self, Activations, Weights, activations};
use super::{Buffer, Device, Error, Graph, Pinned, Stream, kernels};
use crate::backend::cpu::KvFormat;
use crate::backend::{Backend, Batch, Fault, Info, Outcome, Output, PageId, Produced, Sampler, TokenId};
use crate::limits::{GPU_BATCHES, GPU_HEAD_ROWS, GPU_STEP};
use crate::model::shape::{Pairing, Shape};
use crate::model::{Layer, Model};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What the operator chooses.
pub struct CudaOptions {
    /// The driver's library; none: where it is usually found.
    pub libcuda: Option<PathBuf>,
    /// Tokens in all KV pages; none: as many as there is room for.
    pub kv_tokens: Option<u32>,
    /// Tokens per KV page.
    pub page_size: u32,
    /// Embedding slots.
    pub embeds: u32,
    /// Rows in one batch at most.
    pub batch_tokens: u32,
    pub kv: KvFormat,
}

/// Why a model cannot run on the GPU. `Display` is a sentence for the operator.
#[derive(Debug)]
pub enum NotLoaded {
    /// There is no device, or it does not do its part.
    Device(Error),
    /// The kernels do not know the model, or what the configuration wants; the sentence, without its end.
    Unknown(String),
    TooLarge(TooLarge),
}

impl NotLoaded {
    /// Whether this process can do nothing more with the device.
    pub fn is_final(&self) -> bool {
        matches!(self, NotLoaded::Device(error) if error.is_final())
    }
}

impl fmt::Display for NotLoaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotLoaded::Device(error) => error.fmt(f),
            NotLoaded::Unknown(what) => write!(f, "{what}: the processor (backend = \"cpu\") runs it."),
            NotLoaded::TooLarge(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for NotLoaded {}

impl From<Error> for NotLoaded {
    fn from(error: Error) -> NotLoaded {
        NotLoaded::Device(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault(error.to_string().trim_end_matches('.').to_owned()) // whoever tells of it goes on
    }
}

/// Whether there is a GPU whose kernels know the model; not, whether it has room for it.
pub fn usable(model: &Model, options: &CudaOptions) -> Result<(), NotLoaded> {
    let sources = kernels::all()?;
    Device::open(options.libcuda.as_deref())?;
    covers(model, options, &sources).map_err(NotLoaded::Unknown)
}

/// A model on a GPU. What is first here goes first: graphs before the kernels in them, the stream before what its work uses.
pub struct Cuda {
    graphs: Graphs,
    device: OnDevice,
    envelopes: Envelopes,
    info: Info,
    // Kept between batches for their room.
    wants: Wants,
    outcome: Outcome,
    /// Where logits go to, while somebody measures the model by them.
    measured: Option<Vec<Vec<f32>>>, // [row that has an output][vocab]
}

/// What is on the device, and what launches follow from.
struct OnDevice {
    stream: Stream,
    kernels: Kernels,
    weights: Weights,
    room: Room<Buffer>,
    /// Keys and values: [keys, values of layer 0, of layer 1, ..][page][kv head][slot][value], f16.
    pool: Buffer,
    pages: usize,
    model: Arc<Model>,
    heads: Heads,
    kinds: Kinds,
    multiprocessors: usize,
}

impl Cuda {
    /// Opens the GPU and prepares to run `model` on it, on this thread: compiles the kernels, brings the weights there, takes
    /// all memory that batches need.
    pub fn load(model: &Arc<Model>, options: &CudaOptions) -> Result<Cuda, NotLoaded> {
        let shape = &model.shape;
        let sources = kernels::all()?;
        // First of all: without a device there is nothing to say of the model.
        let device = Device::open(options.libcuda.as_deref())?;
        covers(model, options, &sources).map_err(NotLoaded::Unknown)?;
        let kernels = Kernels::load(&device, &sources, model)?;
        let mut stream = device.stream(GPU_STEP)?;
        let (kinds, rows, embeds) = (kinds(model), options.batch_tokens as usize, options.embeds as usize);
        let normed = |layer: &Layer| layer.attn_post_norm.is_some() || layer.ffn_post_norm.is_some();
        let post_norms = model.weights.layers.iter().any(normed);
        let reads = |form| formats(model).into_iter().any(|quant| activations(quant) == form);
        let (bf16, f16) = (reads(Activations::Bf16), reads(Activations::F16));
        let bounds = |pages| Bounds { shape, kinds: &kinds, rows, embeds, pages, post_norms, bf16, f16 };

        let memory = device.memory()?;
        let of_weights = weights::bytes(model).map_err(NotLoaded::Unknown)?;
        let demand = Demand::of(shape, of_weights, bytes(bounds(0)));
        let fit = |memory| plan::pages(memory, demand, options.kv_tokens).map_err(NotLoaded::TooLarge);
        fit(memory)?;
        let weights = Weights::load(model, &device, &mut stream)?;
        // What the weights have really taken: the driver rounds each buffer up.
        let count = fit(Memory { free: device.memory()?.free + of_weights, ..memory })?;
        let pages = count as usize;
        if let Err(error) = model.gguf.forget() {
            tracing::warn!(%error, "the model file's pages stay in memory beside the weights on the GPU");
        }
        let room = Room::new(bounds(pages), |bytes| device.buffer(bytes))?;
        let pool = device.buffer(planes(shape) * plane_bytes(shape) * pages)?;
        // A guest may read an embedding slot that nobody has written; and what comes back of results has gaps, as each
        // distribution has room for the longest. Attention's tickets begin at 0, and come back there by themselves.
        for buffer in [&room.embeds, &room.results, &room.tickets] {
            // SAFETY: it is new, and all of it is filled before anything else is put into the stream.
            unsafe { stream.fill_later(buffer, 0, buffer.size(), 0)? };
        }
        stream.wait()?;
        let mb = |bytes: usize| bytes / 1_000_000;
        tracing::info!(
            "of the GPU's {} MB {} were free: {} MB of weights, {} MB for batches, {} MB of KV pages",
            mb(memory.total),
            mb(memory.free),
            mb(of_weights),
            mb(bytes(bounds(pages))),
            mb(pool.size()),
        );
        let properties = device.properties();
        Ok(Cuda {
            graphs: Graphs::default(),
            envelopes: Envelopes::new(
                &device,
                least_bytes(&kinds, rows) + table_words(pages) * 4,
                shape.vocab as u32,
            )?,
            info: Info {
                device: format!("cuda, {}, f16 K/V", properties.name),
                page_size: options.page_size,
                pages: count,
                embeds: options.embeds,
                batch_tokens: options.batch_tokens,
                vocab: shape.vocab as u32,
                hidden: shape.hidden as u32,
            },
            device: OnDevice {
                stream,
                kernels,
                weights,
                room,
                pool,
                pages,
                heads: heads(shape),
                kinds,
                multiprocessors: properties.multiprocessors as usize,
                model: model.clone(),
            },
            wants: Wants::default(),
            outcome: Outcome::default(),
            measured: None,
        })
    }

    /// Runs a batch without outputs like [`Backend::run`] and hands out the raw logits ([vocab] each) of the rows `logits`,
    /// counted over the batch and ascending. For measuring a model (`eval`): no guest sees logits.
    pub fn run_with_logits(
        &mut self,
        batch: &Batch,
        logits: &[usize],
        outcome: &mut Outcome,
    ) -> Result<Vec<Vec<f32>>, Fault> {
        // Logits are made for a row that has an output.
        let (sampler, mut first) = (Sampler::Multinomial { temperature: 0.0 }, 0);
        let mut batch = batch.clone();
        for sequence in &mut batch.sequences {
            let rows = first..first + sequence.inputs.len();
            let wanted = logits.iter().filter(|row| rows.contains(row)).map(|row| (row - rows.start) as u32);
            sequence.outputs = wanted.map(|row| Output::Token { row, sampler, ordinal: 0 }).collect();
            first = rows.end;
        }
        self.measured = Some(Vec::with_capacity(logits.len()));
        let ran = self.run(&batch, outcome);
        outcome.produced.iter_mut().for_each(Vec::clear);
        let measured = self.measured.take().unwrap_or_default();
        ran.map(|()| measured)
    }

    /// Sends one step out: its rows through the layers, and all that is wanted of them.
    fn step(&mut self, batch: &Batch, pieces: &[Piece]) -> Result<(), Error> {
        self.wants.note(batch, pieces);
        // As many as go through the head at once; what is left has gone through the layers then.
        let (first, rest) = self.wants.list.split_at(self.wants.list.len().min(GPU_HEAD_ROWS));
        let rest = rest.chunks(GPU_HEAD_ROWS).map(|part| (&[][..], part, &[][..]));
        let splits = plan::splits(self.device.pages);
        for (pieces, part, stored) in std::iter::once((pieces, first, &self.wants.stored[..])).chain(rest) {
            let mut sizes = Staging::sizes(batch, pieces, part, stored.len(), splits);
            let most = self.device.heads.tile_rows().min(sizes.rows_at_once(splits));
            if most == 0 {
                sizes.few = sizes.rows;
            }
            let tiles = tiles(pieces, sizes.few, most);
            sizes.tiles = tiles.len();
            let kinds = &self.device.kinds;
            let (number, envelope) = self.envelopes.free(&self.device.stream)?;
            let bytes = envelope.staging.fill(batch, (pieces, &tiles), (part, stored), &sizes, kinds)?;
            let block = envelope.staging.block();
            // SAFETY: block and buffer live as long as the stream. Nobody touches the block before the envelope is back; in the
            // stream, what reads the buffer comes before the next copy into it.
            unsafe { self.device.stream.upload_later(block, 0..bytes, &self.device.room.staged, 0)? };
            // Steps of decoding come again and again.
            if !pieces.is_empty() && pieces.iter().all(|piece| piece.rows.len() == 1) {
                let record = || self.device.record(&sizes, &mut envelope.results);
                let graph = self.graphs.of((sizes, number), record)?;
                // SAFETY: what was recorded lives as long as the stream; its results are not touched before they are back.
                unsafe { self.device.stream.replay(graph)? };
            } else {
                self.device.put(&sizes, &tiles, &mut envelope.results)?;
            }
            self.envelopes.sent(number, sizes, part, &self.device.stream)?;
            if let Some(measured) = &mut self.measured {
                self.device.stream.wait()?;
                self.device.logits(part.len(), measured)?;
            }
        }
        Ok(())
    }
}

#[cfg(any(test, feature = "toys"))]
impl Cuda {
    /// A checksum of what the first slots of a page hold: for tests that nobody else's work changes it.
    pub fn page_checksum(&mut self, page: PageId, slots: u32) -> Result<blake3::Hash, Fault> {
        let OnDevice { stream, pool, pages, heads, model, .. } = &mut self.device;
        let mut sum = blake3::Hasher::new();
        let mut bytes = vec![0; slots as usize * heads.head_dim * 2];
        let of_head = plane_bytes(&model.shape) / heads.kv_heads;
        for page in (0..planes(&model.shape)).map(|plane| plane * *pages + page.0 as usize) {
            for head in 0..heads.kv_heads {
                stream.download(pool, (page * heads.kv_heads + head) * of_head, &mut bytes)?;
                sum.update(&bytes);
            }
        }
        Ok(sum.finalize())
    }
}

impl OnDevice {
    fn planes(&self) -> Planes {
        let shape = &self.model.shape;
        Planes { pool: self.pool.address(), count: planes(shape), stride: plane_bytes(shape) * self.pages }
    }

    fn launches(&self) -> Launches<'_> {
        Launches { stream: &self.stream, kernels: &self.kernels, multiprocessors: self.multiprocessors }
    }

    /// Puts a step that has been staged into the stream, and its results' way back.
    fn put(&self, sizes: &Sizes, tiles: &[Tile], results: &mut Pinned) -> Result<(), Error> {
        let step = Step {
            launches: self.launches(),
            shape: &self.model.shape,
            heads: &self.heads,
            kinds: &self.kinds,
            weights: &self.weights,
            room: &self.room,
            planes: self.planes(),
            pages: self.pages,
            tiles,
        };
        step.put(sizes)?;
        let tops = TOPS_AT..TOPS_AT + sizes.tops * sizes.entries * ENTRY;
        for part in [0..sizes.tokens * 4, tops] {
            if !part.is_empty() {
                // SAFETY: both live as long as the stream; the results are not touched before they are back, and in the stream
                // whatever writes the buffer again comes later.
                unsafe { self.stream.download_later(&self.room.results, part.start, results, part)? };
            }
        }
        Ok(())
    }

    /// Brings the logits of the last step's head rows here.
    fn logits(&mut self, rows: usize, to: &mut Vec<Vec<f32>>) -> Result<(), Error> {
        let mut bytes = vec![0; self.model.shape.vocab * 4];
        for row in 0..rows {
            self.stream.download(&self.room.logits, row * bytes.len(), &mut bytes)?;
            to.push(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect());
        }
        Ok(())
    }

    fn record(&self, sizes: &Sizes, results: &mut Pinned) -> Result<Graph, Error> {
        self.stream.capture(|_| self.put(sizes, &[], results))
    }
}

impl Backend for Cuda {
    fn info(&self) -> &Info {
        &self.info
    }

    fn depth(&self) -> usize {
        GPU_BATCHES
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let mut outcome = std::mem::take(&mut self.outcome);
        outcome.produced.iter_mut().for_each(Vec::clear);
        outcome.produced.resize_with(batch.sequences.len(), Vec::new);
        for (made, sequence) in outcome.produced.iter_mut().zip(&batch.sequences) {
            let yields = sequence.outputs.iter().filter(|output| !matches!(output, Output::Embed { .. }));
            made.resize(yields.count(), Produced::Token(TokenId(0)));
        }
        self.envelopes.open(outcome);
        let (rows, words) = (self.info.batch_tokens as usize, table_words(self.device.pages));
        for pieces in steps(batch, rows, words) {
            self.step(batch, &pieces)?;
        }
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome, pause: bool) -> Result<bool, Fault> {
        let Some(made) = self.envelopes.collect(&self.device.stream, pause)? else { return Ok(false) };
        self.outcome = std::mem::replace(outcome, made);
        Ok(true)
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault> {
        let bytes = plane_bytes(&self.device.model.shape);
        let (launches, planes) = (self.device.launches(), self.device.planes());
        Ok(launches.copy_page(planes, from.0, to.0, bytes)?)
    }

    fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault> {
        let (launches, planes) = (self.device.launches(), self.device.planes());
        Ok(launches.clear_page(planes, page.0, from, &self.device.heads)?)
    }
}

/// How rows differ from layer to layer of a model.
fn kinds(model: &Model) -> Kinds {
    let shape = &model.shape;
    let mut windows = Vec::new();
    for window in (0..shape.layers).map(|layer| shape.window_of(layer)) {
        if !windows.contains(&window) {
            windows.push(window);
        }
    }
    Kinds { turns: weights::turns(model), scale: shape.rope.attention_scale, windows }
}

fn heads(shape: &Shape) -> Heads {
    Heads {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: shape.query_scale,
        cap: shape.score_cap.unwrap_or(0.0),
        dims: shape.rope.dims,
        halves: shape.rope.pairing == Pairing::Halves,
        eps: shape.norm_eps,
    }
}
