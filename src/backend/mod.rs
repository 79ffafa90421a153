//! What runs a batch. `Backend` is the seam: the engine decides what runs, a backend computes it.
//!
//! Owns: the vocabulary of a batch ([`Batch`], [`Outcome`]: plain data) and the trait. Never: who asked, in which
//! order, or what a page means to anybody; a backend sees physical ids only and trusts them.
//!
//! Numbers do not depend on neighbours: the bits of a row follow from model, tokens, positions and mask alone.

use std::fmt;

pub mod check;
pub mod choice;
pub mod cores;
pub mod cpu;
pub mod crew;
pub mod cuda;
pub mod exp;
pub mod heap;
pub mod sample;
pub mod turns;

pub use choice::Which;

/// A physical KV page: `page_size` slots of K and V in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// A physical embedding slot: one hidden-state row, `hidden` f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EmbedId(pub u32);

/// An entry of the model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub u32);

/// What a backend offers, fixed from load to end.
#[derive(Clone, Debug)]
pub struct Info {
    /// For people: "cpu, 2 threads, AVX-512, f16 K/V".
    pub device: String,
    /// Tokens per KV page.
    pub page_size: u32,
    /// KV pages in the pool; ids are `0..pages`.
    pub pages: u32,
    /// Embedding slots; ids are `0..embeds`.
    pub embeds: u32,
    /// Rows in one batch at most.
    pub batch_tokens: u32,
    /// Vocabulary size; token ids are below it.
    pub vocab: u32,
    /// Width of a hidden state, in f32.
    pub hidden: u32,
}

/// Sequences that run together. No sequence writes a slot that an earlier one in the batch reads or writes;
/// reading what an earlier one writes is fine for K/V: each layer appends the whole batch before it attends.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub sequences: Vec<Sequence>,
}

/// One pass, or one chunk of a long one: new rows at the tail of a paged sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The pages of the sequence in order, the new rows' slots included.
    pub pages: Vec<PageId>,
    /// Slots in use after this batch; the new rows are the last `inputs.len()` of them.
    pub len: u32,
    /// The new rows, 1 or more. Row i sits in slot `len - inputs.len() + i`.
    pub inputs: Vec<Input>,
    /// RoPE position per row. The guest's: may repeat, jump, go back, exceed the trained context.
    pub positions: Vec<u32>, // [row]
    /// Which slots each row attends.
    pub mask: Mask,
    /// What is wanted of the rows, in the order of the guest's calls.
    pub outputs: Vec<Output>,
    /// Key of this pass's draws; the output's own ordinal completes it.
    pub draw: DrawKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Token(TokenId),
    Embed(EmbedId),
}

/// Row i sees slots `0..=len - rows + i`, less what the mask takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    Causal,
    /// Per row: run lengths over its slots, the first run attends, the next is hidden, and so on (BRLE).
    /// The lengths of row i sum to exactly `len - rows + i + 1`.
    Runs(Vec<Vec<u32>>), // [row][run]
}

/// Key of the counter-based generator: (instance seed, queue ordinal in the instance, pass ordinal in the queue).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    pub seed: u64,
    pub queue: u32,
    pub pass: u64,
}

#[derive(Clone, Debug)]
pub enum Output {
    /// Sample one token after `row`. `ordinal`: the output's number in the whole pass, for the draw.
    Token { row: u32, sampler: Sampler, ordinal: u32 },
    /// The `top_k` most probable tokens of softmax(logits / temperature) after `row`, sorted descending.
    Distribution { row: u32, temperature: f32, top_k: u32 },
    /// Store the final hidden state of `row` (after the last layer, before the output norm).
    Embed { row: u32, to: EmbedId },
}

/// How a token is drawn from softmax(logits / temperature). Temperature 0 is greedy whatever the rest says.
/// Ties go to the lower id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    Multinomial {
        temperature: f32,
    },
    TopK {
        temperature: f32,
        k: u32,
    },
    TopP {
        temperature: f32,
        p: f32,
    },
    /// Keeps tokens whose probability is at least `p` times the largest.
    MinP {
        temperature: f32,
        p: f32,
    },
    TopKTopP {
        temperature: f32,
        k: u32,
        p: f32,
    },
}

/// What a batch made: per sequence, per `Token` and `Distribution` output, in the order asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub produced: Vec<Vec<Produced>>, // [sequence][output that yields]
}

#[derive(Clone, Debug, PartialEq)]
pub enum Produced {
    Token(TokenId),
    /// Sorted by descending logit, and so by probability; equal logits by ascending id.
    Distribution {
        ids: Vec<TokenId>,
        probs: Vec<f32>,
    },
}

/// The device failed: the step's results are void and the process must end (systemd starts it afresh).
#[derive(Clone, Debug)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Computes batches over its own paged K/V. Made and owned by one engine thread; the ids it is given were checked.
///
/// Batches, copies and clearings take effect in the order of the calls.
pub trait Backend {
    fn info(&self) -> &Info;

    /// Batches that may be under way at a time. 1: nothing is gained by a second one, as whoever submits one waits for it.
    fn depth(&self) -> usize {
        1
    }

    /// Begins a batch: appends the rows' K/V, attends, and makes the outputs. [`Backend::depth`] are under way at most.
    fn submit(&mut self, batch: &Batch) -> Result<(), Fault>;

    /// Overwrites `outcome` with what the batch that was submitted first has made, once it has ended. False: it is still
    /// under way; the call has taken some microseconds, or slept some more if it may `pause`, so that it may be asked again
    /// and again.
    fn collect(&mut self, outcome: &mut Outcome, pause: bool) -> Result<bool, Fault>;

    /// A batch alone: none is under way before or after.
    fn run(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), Fault> {
        self.submit(batch)?;
        while !self.collect(outcome, true)? {}
        Ok(())
    }

    /// Copies all layers of one page (copy on write).
    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault>;

    /// Zeroes K/V of slots `from..page_size` in all layers: a guest is about to attend slots that it never wrote,
    /// and must not see what an earlier owner of the page left there.
    fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault>;
}
