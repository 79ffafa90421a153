//! Which backend runs a model.
//!
//! Owns: the choice between the GPU and the processor, and what the log says of it. Never: what either makes of a model.

use super::Backend;
use super::cpu::{Cpu, CpuError, CpuOptions, KvFormat};
use super::crew::Crew;
use super::cuda::{self, Cuda, CudaOptions};
use crate::model::Model;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// An NVIDIA GPU.
    Cuda,
    /// The processor.
    Cpu,
}

impl Which {
    pub fn name(self) -> &'static str {
        match self {
            Which::Cuda => "cuda",
            Which::Cpu => "cpu",
        }
    }

    pub fn named(name: &str) -> Option<Which> {
        [Which::Cuda, Which::Cpu].into_iter().find(|which| which.name() == name)
    }
}

/// What the operator chooses.
pub struct Options {
    /// None: the GPU, if it can be used and its kernels know the model, else the processor.
    pub which: Option<Which>,
    /// The driver's library; none: where it is usually found.
    pub libcuda: Option<PathBuf>,
    /// In all KV pages; none: as many as there is room for.
    pub kv_tokens: Option<u32>,
    pub page_size: u32,
    pub embeds: u32,
    pub batch_tokens: u32,
    pub kv: KvFormat,
}

/// Why there is no backend. `Display` is a sentence for the operator.
#[derive(Debug)]
pub enum NotLoaded {
    Cpu(CpuError),
    Cuda(cuda::NotLoaded),
}

impl NotLoaded {
    /// Whether the device is at fault, and neither the configuration nor the model.
    pub fn is_of_device(&self) -> bool {
        matches!(self, NotLoaded::Cuda(cuda::NotLoaded::Device(_)))
    }
}

impl fmt::Display for NotLoaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotLoaded::Cpu(why) => why.fmt(f),
            NotLoaded::Cuda(why) => why.fmt(f),
        }
    }
}

/// Prepares to run `model`; `crew` are the processor's threads. The calling thread is the one that runs batches.
pub fn load(model: Arc<Model>, options: &Options, crew: Arc<Crew>) -> Result<Box<dyn Backend>, NotLoaded> {
    let on_cpu = |model, crew| {
        let &Options { kv_tokens, page_size, embeds, batch_tokens, kv, .. } = options;
        let pages = kv_tokens.map(|tokens| tokens / page_size);
        let options = CpuOptions { pages, page_size, embeds, batch_tokens, kv, exact: false };
        Cpu::load(model, options, crew).map(boxed).map_err(NotLoaded::Cpu)
    };
    if options.which == Some(Which::Cpu) {
        return on_cpu(model, crew);
    }
    let &Options { kv_tokens, page_size, embeds, batch_tokens, kv, .. } = options;
    let libcuda = options.libcuda.clone();
    let on_cuda = CudaOptions { libcuda, kv_tokens, page_size, embeds, batch_tokens, kv };
    match Cuda::load(&model, &on_cuda) {
        Ok(cuda) => Ok(boxed(cuda)),
        // A device that is lost is not the processor's to replace: a new start may find it well.
        Err(why) if options.which.is_none() && !why.is_final() => {
            tracing::info!("the processor serves, and no GPU: {why}");
            on_cpu(model, crew)
        }
        Err(why) => Err(NotLoaded::Cuda(why)),
    }
}

fn boxed(backend: impl Backend + 'static) -> Box<dyn Backend> {
    Box::new(backend)
}
