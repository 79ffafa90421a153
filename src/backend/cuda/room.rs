//! What a step works in: activations, attention's scratch, logits, results, embedding slots.
//!
//! Owns: how large each buffer is, said once for the plan and for the device. Never: a weight, a page, nor what is written.

use super::launches::octets;
use super::plan::{split_bytes, splits, table_words};
use super::repack::PAIR;
use super::staging::{Kinds, least_bytes};
use crate::backend::sample::LOGITS_PER_MAXIMUM;
use crate::limits::{DISTRIBUTION_TOKENS, GPU_HEAD_ROWS};
use crate::model::shape::Shape;

/// Bytes of an entry of a distribution: an id and a probability.
pub(super) const ENTRY: usize = 8;
/// Where distributions begin in the results: behind a token of each row.
pub(super) const TOPS_AT: usize = GPU_HEAD_ROWS * 4;
/// Bytes of results at most.
pub(super) const RESULT_BYTES: usize = TOPS_AT + GPU_HEAD_ROWS * DISTRIBUTION_TOKENS as usize * ENTRY;

/// Sizes that the operator and the model choose.
#[derive(Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub shape: &'a Shape,
    pub kinds: &'a Kinds,
    /// Rows of a step at most.
    pub rows: usize,
    pub embeds: usize,
    pub pages: usize,
    /// Whether any layer norms what a block adds.
    pub post_norms: bool,
    /// Whether any matrix is multiplied with these.
    pub bf16: bool,
    pub f16: bool,
}

/// Activations as products read them, in the forms that any matrix reads; `B` as below.
pub(super) struct Ready<B> {
    pub xq: B,           // s8 [row][width]
    pub xs: B,           // {f32, s32} [row][width / 32]
    pub bf16: Option<B>, // bf16 [row][width]
    pub f16: Option<B>,  // f16, the same
}

/// All of it; `B` is a buffer, or to the plan its size.
pub(super) struct Room<B> {
    pub stream: B,         // f32 [row][hidden]
    pub branch: Option<B>, // f32 [row][hidden]
    pub ready: Ready<B>, // [row][hidden or heads * head_dim]: what comes out of norms, and what was attended
    pub inner: Ready<B>, // [row][ffn]: what the feed-forward's last matrix reads
    pub qkv: B, // f32, products as `Joined` has them: [row][heads][head_dim], [row][kv_heads][head_dim], the same
    pub q: B,   // f32 [row][heads][head_dim]
    pub attended: B, // f32 [row][heads][head_dim]
    pub sums: B, // f32 [row][head][split][head_dim]
    pub scales: B, // {f32, f32} [row][head][split]
    /// u32 [row][octet of a KV head's query heads]: 0 between launches. A step that fails or does not end may leave anything
    /// in them, and the process ends with it.
    pub tickets: B,
    pub gate_up: B, // f32, products as `Joined` has them: [row][ffn], [row][ffn]
    pub chosen: B,  // f32 [head row][hidden]
    pub logits: B,  // f32 [head row][vocab]
    pub best: B,    // u64 [head row][vocab / 256]
    pub weighed: B, // u64 [head row][vocab / 256]
    pub results: B, // u32 [head row], then {u32, f32} [head row][entries]
    pub embeds: B,  // f32 [slot][hidden]
    pub staged: B,  // what `staging.rs` has put together
}

impl<B> Room<B> {
    /// Has `take` make each of them, by its bytes.
    pub fn new<E>(bounds: Bounds, mut take: impl FnMut(usize) -> Result<B, E>) -> Result<Room<B>, E> {
        let Bounds { shape, kinds, rows, embeds, pages, post_norms, bf16, f16 } = bounds;
        let mut ready = |rows: usize, width: usize| {
            let values = rows * width.next_multiple_of(PAIR);
            Ok(Ready {
                xq: take(values)?,
                xs: take(values / 32 * 8)?,
                bf16: bf16.then(|| take(values * 2)).transpose()?,
                f16: f16.then(|| take(values * 2)).transpose()?,
            })
        };
        // The head's rows are activations too.
        let normed = ready(rows.max(GPU_HEAD_ROWS), shape.hidden.max(shape.q_width()))?;
        let inner = ready(rows, shape.ffn)?;
        let stretches = shape.vocab.div_ceil(LOGITS_PER_MAXIMUM);
        let parts = splits(pages);
        let sums = parts * shape.heads * shape.head_dim * 4;
        Ok(Room {
            stream: take(rows * shape.hidden * 4)?,
            branch: post_norms.then(|| take(rows * shape.hidden * 4)).transpose()?,
            ready: normed,
            inner,
            qkv: take(rows * (shape.q_width() + 2 * shape.kv_width()) * 4)?,
            q: take(rows * shape.q_width() * 4)?,
            attended: take(rows * shape.q_width() * 4)?,
            sums: take(sums)?,
            scales: take(parts * split_bytes(shape) - sums)?,
            tickets: take(rows * octets(shape.heads, shape.kv_heads) * 4)?,
            gate_up: take(2 * rows * shape.ffn * 4)?,
            chosen: take(GPU_HEAD_ROWS * shape.hidden * 4)?,
            logits: take(GPU_HEAD_ROWS * shape.vocab * 4)?,
            best: take(GPU_HEAD_ROWS * stretches * 8)?,
            weighed: take(GPU_HEAD_ROWS * stretches * 8)?,
            results: take(RESULT_BYTES)?,
            embeds: take(embeds.max(1) * shape.hidden * 4)?,
            staged: take(least_bytes(kinds, rows) + table_words(pages) * 4)?,
        })
    }
}

/// Bytes of all of it.
pub(super) fn bytes(bounds: Bounds) -> usize {
    let mut sum = 0;
    let taken: Result<Room<()>, std::convert::Infallible> = Room::new(bounds, |bytes| {
        sum += bytes;
        Ok(())
    });
    let Ok(_) = taken;
    sum
}
