//! Whether the kernels know a model, and the configuration that it is to run with.
//!
//! Owns: the sentences that say what they do not know. Never: whether there is room (`plan.rs`).

use super::CudaOptions;
use super::kernels::Source;
use super::launches::{formats, has_embedding, has_products};
use super::plan::PAGE;
use super::weights::{layout, matrices};
use crate::backend::cpu::KvFormat;
use crate::model::Model;

/// Sizes of heads that attention has a kernel for.
const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];
/// Values of a row that goes through a norm at most.
const NORMED: usize = 8192;
/// Rows of a launch at most.
const ROWS: u32 = 65_535;
/// The least and the most that logits may be capped to.
const CAPS: std::ops::RangeInclusive<f32> = 8.673_617_4e-19..=1.152_921_5e18; // 2^-60, 2^60

/// The error is one sentence, without its end.
pub(super) fn covers(model: &Model, options: &CudaOptions, sources: &[Source]) -> Result<(), String> {
    let shape = &model.shape;
    if options.page_size as usize != PAGE {
        return Err(format!("a GPU's KV pages have {PAGE} tokens, but page_size is {}", options.page_size));
    }
    if options.kv != KvFormat::F16 {
        return Err(format!("a GPU keeps keys and values as f16, but kv_cache is {}", options.kv.name()));
    }
    if options.batch_tokens > ROWS {
        return Err(format!(
            "a GPU's batches have {ROWS} rows at most, but batch_tokens is {}",
            options.batch_tokens
        ));
    }
    if !HEAD_DIMS.contains(&shape.head_dim) {
        return Err(format!(
            "the GPU's kernels know heads of {} values, but the model's have {}",
            HEAD_DIMS.map(|dim| dim.to_string()).join(", "),
            shape.head_dim
        ));
    }
    if shape.hidden > NORMED {
        return Err(format!(
            "the GPU's kernels norm up to {NORMED} values, but the model's rows have {}",
            shape.hidden
        ));
    }
    if !shape.hidden.is_multiple_of(32) || !shape.ffn.is_multiple_of(32) {
        return Err(format!(
            "the GPU's kernels read rows of whole blocks of 32 values, but the model's have {} and {}",
            shape.hidden, shape.ffn
        ));
    }
    if shape.norm_eps == 0.0 {
        return Err(
            "the GPU's kernels add something above 0 to each norm's mean square, but the model adds 0"
                .to_owned(),
        );
    }
    if shape.logit_cap.is_some_and(|cap| !CAPS.contains(&cap)) {
        return Err(
            "the model's logits are capped to a number that the GPU's kernels do not compute with".to_owned()
        );
    }
    let layers = &model.weights.layers;
    let all = layers.iter().flat_map(matrices).chain([&model.weights.embedding, &model.weights.head]);
    for extent in all {
        layout(&model.gguf.tensor_at(extent))?;
    }
    let unknown = formats(model).into_iter().find(|quant| !has_products(sources, *quant));
    if let Some(quant) = unknown {
        return Err(format!("the GPU has no kernel for products with {quant}, which the model has"));
    }
    let embedding = model.gguf.tensor_at(&model.weights.embedding).kind;
    if !has_embedding(sources, embedding) {
        return Err(format!("the GPU has no kernel for an embedding in {embedding}, which the model has"));
    }
    Ok(())
}
