//! Every capacity of the box: name, value, unit, and the reason for the value.
//!
//! Owns: the numbers, and the asserts that tie them together. Never: a number that is not a bound (tuning lives
//! with the code it tunes). A bound that is full is answered with a sentence; nothing grows past what stands here.

// ---- the wire ----

/// Bytes of one upload chunk; part of the frozen protocol (stock clients send exactly this).
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes of one frame from a client: a chunk, its envelope, and as much again for long arguments.
pub const CLIENT_FRAME_BYTES: usize = 1024 * 1024;
/// Bytes of one frame to a client: stock clients close the connection at 1 MiB.
pub const SERVER_FRAME_BYTES: usize = 1_000_000;
/// Bytes of a guest's `send`: one frame less the envelope (type, ids, lengths: under 200 bytes).
pub const MESSAGE_BYTES: usize = SERVER_FRAME_BYTES - 1_000;

const _: () = assert!(CHUNK_BYTES + 4096 <= CLIENT_FRAME_BYTES);
const _: () = assert!(CHUNK_BYTES + 4096 <= SERVER_FRAME_BYTES);

// ---- the configuration ----

/// Tokens per KV page at most: beyond this a page is no longer a unit of sharing.
pub const PAGE_TOKENS_MAX: u32 = 256;
/// Tokens in all KV pages at most; keeps `page * page_size` and byte offsets of one layer within 40 bits.
pub const KV_TOKENS_MAX: u32 = 1 << 24;
/// Embedding slots at most; 64 Ki rows of a wide model are half a gigabyte.
pub const EMBEDS_MAX: u32 = 1 << 16;
/// Rows in a batch at most: bounds the scratch memory of a step.
pub const BATCH_TOKENS_MAX: u32 = 8192;
/// Threads at most: one word of flags per thread in the crew.
pub const THREADS_MAX: usize = 64;
