//! What of the device's memory is for what: all of it is taken at the start, and nothing in a step.
//!
//! Owns: how many KV pages there are, and the sentences where a model does not fit. Never: memory itself.

use crate::limits::{
    GPU_RESERVE_BYTES, GPU_RESERVE_SHARE, GPU_SPLITS, GPU_TABLE_WORDS, KV_TOKENS_FLOOR, KV_TOKENS_UNASKED,
};
use crate::model::shape::Shape;
use std::fmt;

/// Slots of a page: what attention reads at a time.
pub(super) const PAGE: usize = 16;
/// Slots of a split: what a CTA of attention takes.
pub(super) const SPLIT: usize = 256;

/// What a model asks for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Demand {
    pub weights: usize,
    /// What there is of scratch with no page at all.
    pub scratch: usize,
    /// Of each page: its keys and values in all layers, and what scratch grows by.
    pub page: usize,
}

/// What the device has, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub free: usize,
    pub total: usize,
}

/// Why a model does not fit. `Display` is a sentence for the operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TooLarge {
    /// Weights and scratch alone.
    Model { weights: usize, scratch: usize, has: usize, total: usize },
    /// So many tokens were asked for (none: the least that there must be), and there is room for fewer.
    Pages { asked: Option<u32>, least: u32, fit: u32, token: usize },
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: usize| bytes.div_ceil(1_000_000);
        match *self {
            TooLarge::Model { weights, scratch, has, total } => write!(
                f,
                "The model takes {} MB of the GPU's memory, {} MB for weights and {} MB for a batch, but of its {} MB {} MB can be \
                 had: take a model whose weights have at most {} MB, or backend = \"cpu\".",
                mb(weights + scratch),
                mb(weights),
                mb(scratch),
                total / 1_000_000,
                has / 1_000_000,
                has.saturating_sub(scratch) / 1_000_000,
            ),
            TooLarge::Pages { asked: Some(asked), fit, token, .. } => write!(
                f,
                "kv_tokens = {asked} takes {} MB of the GPU's memory, but beside the model there is room for {fit} tokens: lower \
                 kv_tokens, or take a smaller model.",
                mb(asked as usize * token),
            ),
            TooLarge::Pages { asked: None, least, fit, .. } => write!(
                f,
                "Beside the model the GPU's memory has room for {fit} tokens of KV pages, and a server wants {least}: take a smaller \
                 model, lower batch_tokens, or set kv_tokens to what shall be enough.",
            ),
        }
    }
}

/// Bytes of one plane of a page: keys, or values, of one layer.
pub(super) fn plane_bytes(shape: &Shape) -> usize {
    shape.kv_heads * PAGE * shape.head_dim * 2
}

/// Keys, and values, of each layer.
pub(super) fn planes(shape: &Shape) -> usize {
    2 * shape.layers
}

/// Splits of attention that there is room for, with so many pages in the pool.
pub(super) fn splits(pages: usize) -> usize {
    (pages * PAGE).div_ceil(SPLIT).max(GPU_SPLITS)
}

/// Bytes of what a split leaves: its sums, the largest score and the weights' sum, of each head.
pub(super) fn split_bytes(shape: &Shape) -> usize {
    shape.heads * (shape.head_dim * 4 + 8)
}

/// Words of tables and masks that a step has room for: a sequence of all pages, its mask, and as much again.
pub(super) fn table_words(pages: usize) -> usize {
    2 * pages + GPU_TABLE_WORDS
}

impl Demand {
    pub fn of(shape: &Shape, weights: usize, scratch: usize) -> Demand {
        let grows = split_bytes(shape).div_ceil(SPLIT / PAGE) + 2 * size_of::<u32>();
        Demand { weights, scratch, page: planes(shape) * plane_bytes(shape) + grows }
    }
}

/// How many KV pages there are: those that were `asked` for (in tokens), or all that is left, up to what `limits.rs` allows.
pub(super) fn pages(memory: Memory, demand: Demand, asked: Option<u32>) -> Result<u32, TooLarge> {
    let has = memory.free.saturating_sub(reserve(memory.total));
    let Some(left) = has.checked_sub(demand.weights.saturating_add(demand.scratch)) else {
        let Demand { weights, scratch, .. } = demand;
        return Err(TooLarge::Model { weights, scratch, has, total: memory.total });
    };
    let page = PAGE as u32;
    let fit = u32::try_from(left / demand.page).unwrap_or(u32::MAX / page);
    let (wanted, least) = match asked {
        Some(tokens) => (tokens / page, tokens / page),
        None => (KV_TOKENS_UNASKED / page, KV_TOKENS_FLOOR / page),
    };
    if fit < least {
        let token = demand.page.div_ceil(PAGE);
        return Err(TooLarge::Pages { asked, least: least * page, fit: fit * page, token });
    }
    Ok(wanted.min(fit))
}

/// Bytes that are left to the driver and to others.
fn reserve(total: usize) -> usize {
    (total / GPU_RESERVE_SHARE).min(GPU_RESERVE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: usize = 1 << 30;
    const DEMAND: Demand = Demand { weights: 5 * GB, scratch: GB / 2, page: 2 << 20 };

    #[test]
    fn what_is_left_becomes_pages() {
        // Of 8 GiB, half of one is kept back, and 5.5 go: 2 are left.
        let memory = Memory { free: 8 * GB, total: 8 * GB };
        assert_eq!(pages(memory, DEMAND, None), Ok(1024));
        assert_eq!(pages(memory, DEMAND, Some(1024 * 16 + 15)), Ok(1024));
        assert_eq!(pages(memory, DEMAND, Some(16)), Ok(1));
        let large = Memory { free: 1024 * GB, total: 1024 * GB };
        assert_eq!(pages(large, DEMAND, None), Ok(KV_TOKENS_UNASKED / 16));
        assert_eq!(pages(large, DEMAND, Some(1 << 22)), Ok(1 << 18), "who asks for more has more");
        // What others have of it is not there.
        let shared = Memory { free: 7 * GB, total: 8 * GB };
        assert_eq!(pages(shared, DEMAND, None), Ok(512));
    }

    #[test]
    fn what_does_not_fit_is_a_sentence_with_what_would() {
        let memory = Memory { free: 4 * GB, total: 4 * GB };
        let why = pages(memory, DEMAND, None).expect_err("5.5 GiB into 4").to_string();
        for part in ["takes 5906 MB", "5369 MB for weights", "of its 4294 MB 4026 MB", "at most 3489 MB"] {
            assert!(why.contains(part), "{why}");
        }
        let memory = Memory { free: 8 * GB, total: 8 * GB };
        let why = pages(memory, DEMAND, Some(1025 * 16)).expect_err("one page too many").to_string();
        assert!(
            why.starts_with("kv_tokens = 16400 takes 2150 MB") && why.contains("room for 16384 tokens"),
            "{why}"
        );
        let tight = Memory { free: 6 * GB + (GB >> 2), total: 8 * GB };
        let why = pages(tight, DEMAND, None).expect_err("128 pages are 2,048 tokens").to_string();
        assert!(why.contains("room for 2048 tokens") && why.contains("wants 4096"), "{why}");
        assert_eq!(pages(tight, DEMAND, Some(2048)), Ok(128), "who asks for little has it");
        for why in [
            TooLarge::Pages { asked: None, least: 1, fit: 0, token: 1 },
            TooLarge::Model { weights: 1, scratch: 1, has: 1, total: 1 },
        ] {
            assert!(why.to_string().ends_with('.'), "{why}");
        }
    }
}
