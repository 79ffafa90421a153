//! A forward pass while the guest builds it, and the check that turns it into an operation.
//!
//! Owns: every rule about the arguments of a pass: counts, geometry, masks, ranges. Never: the engine, handles or
//! guest memory; it is pure. What leaves here ([`Pass`]) can be run by any backend without another look, except that
//! the ids it names must be the instance's: the engine, which owns the names, checks that.

use crate::backend::{Mask, Produced, Sampler, TokenId};
use crate::engine::operation::{Pass, PassInput, PassOutput, VirtualId};
use crate::limits;
use std::collections::HashSet;
use std::fmt;

/// Entries of a distribution when the guest names no top-k.
const DISTRIBUTION_DEFAULT: u32 = 32;

/// What a row of a mask takes beside its runs: its place, and the least that an allocation takes, which rows of few runs are.
const MASK_ROW_BYTES: usize = size_of::<Vec<u32>>() + limits::ALLOCATION_BYTES;

/// What the guest has said so far. `execute` takes it all, so that the same handle starts empty again, as on Pie.
#[derive(Debug, Default)]
pub struct Draft {
    pages: Vec<VirtualId>,
    last_len: u32,
    /// Tokens and embeddings in the order of the calls.
    inputs: Vec<PassInput>,
    positions: Vec<u32>, // [row]
    mask: Vec<Vec<u32>>, // [row][run]; none: causal
    runs: usize,         // of all rows
    outputs: Vec<PassOutput>,
    /// Entries of all distributions asked for.
    entries: usize,
}

/// A mistake in a pass. `Display` is a sentence for the guest that names the argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Mistake {
    /// Two lists that go together have different lengths.
    Lengths {
        this: &'static str,
        items: usize,
        other: &'static str,
        others: usize,
    },
    /// A list is longer than a bound of `limits.rs`.
    TooMany {
        what: &'static str,
        items: usize,
        bound: usize,
    },
    Token {
        index: usize,
        token: u32,
        vocab: u32,
    },
    Number {
        what: &'static str,
        value: f32,
        range: &'static str,
    },
    TopKZero,
    NoInputs,
    NoPages,
    /// More pages than the device has: some are named again and again, and each mention costs every row.
    MorePages {
        pages: usize,
        pool: u32,
    },
    LastPageLen {
        len: u32,
        page_size: u32,
    },
    /// More new rows than the pages hold.
    TooShort {
        rows: usize,
        len: u32,
    },
    /// A page that this pass writes stands in the list twice.
    PageTwice(VirtualId),
    MaskRows {
        rows: usize,
        inputs: usize,
    },
    MaskSum {
        row: usize,
        sum: u64,
        slots: u32,
    },
    /// A row whose mask hides everything: its attention would be a division by zero.
    MaskEmpty {
        row: usize,
    },
    Index {
        index: u32,
        inputs: usize,
    },
    /// Two outputs store to one embedding.
    StoredTwice(VirtualId),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Mistake::Lengths { this, items, other, others } => {
                write!(f, "{items} {this} but {others} {other}; there must be one for each")
            }
            Mistake::TooMany { what, items, bound } => {
                write!(f, "{items} {what}; at most {bound} are allowed in one pass")
            }
            Mistake::Token { index, token, vocab } => {
                write!(f, "input-tokens[{index}] is {token}, but the vocabulary has {vocab} tokens")
            }
            Mistake::Number { what, value, range } => write!(f, "{what} is {value}; it must be {range}"),
            Mistake::TopKZero => f.write_str("top-k is 0; it must be at least 1"),
            Mistake::NoInputs => f.write_str(
                "the pass has no input tokens or embeddings (each execute takes what was set; set it again)",
            ),
            Mistake::NoPages => f.write_str("the pass has no kv pages to write to; call kv-cache first"),
            Mistake::MorePages { pages, pool } => {
                write!(f, "kv-page-ptrs names {pages} pages; the model has {pool} in all")
            }
            Mistake::LastPageLen { len, page_size } => {
                write!(f, "last-kv-page-len is {len}; it must be 1 to {page_size}, the page size")
            }
            Mistake::TooShort { rows, len } => write!(
                f,
                "the kv pages hold {len} tokens but the pass adds {rows}; kv-page-ptrs and last-kv-page-len must count the new tokens too"
            ),
            Mistake::PageTwice(id) => {
                write!(f, "kv-page-ptrs names page {} twice, and this pass writes it", id.0)
            }
            Mistake::MaskRows { rows, inputs } => {
                write!(
                    f,
                    "the attention mask has {rows} rows for {inputs} inputs; there must be one for each"
                )
            }
            Mistake::MaskSum { row, sum, slots } => write!(
                f,
                "the runs of attention mask row {row} add up to {sum}; that row covers {slots} tokens (all before it and itself)"
            ),
            Mistake::MaskEmpty { row } => write!(f, "attention mask row {row} hides every token"),
            Mistake::Index { index, inputs } => {
                write!(f, "output index {index} is out of range: the pass has {inputs} inputs")
            }
            Mistake::StoredTwice(id) => write!(f, "emb-ptrs stores to embedding {} twice", id.0),
        }
    }
}

impl std::error::Error for Mistake {}

impl Draft {
    /// Bytes it holds, about.
    pub fn bytes(&self) -> usize {
        4 * (self.pages.len() + self.positions.len() + self.runs)
            + MASK_ROW_BYTES * self.mask.len()
            + size_of::<PassInput>() * self.inputs.len()
            + size_of::<PassOutput>() * self.outputs.len()
    }

    /// Runs of its mask, and rows of it, each of which is at least one.
    pub fn runs(&self) -> usize {
        self.runs.max(self.mask.len())
    }

    /// Bytes of what it will yield, about: ids and probabilities.
    pub fn result_bytes(&self) -> usize {
        size_of::<Produced>() * self.outputs.len() + 8 * self.entries
    }

    /// Replaces the mask. BRLE: per row, lengths of runs that attend, hide, attend, ...
    pub fn mask(&mut self, rows: Vec<Vec<u32>>) -> Result<(), Mistake> {
        mask_rows(rows.len())?;
        let runs = rows.iter().map(Vec::len).sum();
        bounded("runs in the attention mask", runs, limits::PASS_RUNS)?;
        self.runs = runs;
        self.mask = rows;
        Ok(())
    }

    /// Replaces the pages. At most as many as the `pool` has, repeated ones counted: a context is never longer than
    /// what the device can hold.
    pub fn kv_cache(&mut self, pages: Vec<u32>, last_len: u32, pool: u32) -> Result<(), Mistake> {
        bounded("kv pages", pages.len(), limits::NAMES_PER_INSTANCE)?;
        if pages.len() > pool as usize {
            return Err(Mistake::MorePages { pages: pages.len(), pool });
        }
        self.pages = pages.into_iter().map(VirtualId).collect();
        self.last_len = last_len;
        Ok(())
    }

    /// Adds tokens behind the inputs so far.
    pub fn input_tokens(&mut self, tokens: Vec<u32>, positions: Vec<u32>, vocab: u32) -> Result<(), Mistake> {
        same("input tokens", tokens.len(), "positions", positions.len())?;
        bounded("inputs", self.inputs.len() + tokens.len(), limits::PASS_ROWS)?;
        if let Some(index) = tokens.iter().position(|token| *token >= vocab) {
            return Err(Mistake::Token { index, token: tokens[index], vocab });
        }
        self.inputs.extend(tokens.into_iter().map(|token| PassInput::Token(TokenId(token))));
        self.positions.extend(positions);
        Ok(())
    }

    /// Adds embeddings behind the inputs so far.
    pub fn input_embeddings(&mut self, ids: Vec<u32>, positions: Vec<u32>) -> Result<(), Mistake> {
        same("embeddings", ids.len(), "positions", positions.len())?;
        bounded("inputs", self.inputs.len() + ids.len(), limits::PASS_ROWS)?;
        self.inputs.extend(ids.into_iter().map(|id| PassInput::Embed(VirtualId(id))));
        self.positions.extend(positions);
        Ok(())
    }

    /// Keeps hidden states. Indices count the inputs of this pass; checked at the end, when they are all there.
    pub fn output_embeddings(&mut self, ids: Vec<u32>, indices: Vec<u32>) -> Result<(), Mistake> {
        same("embeddings", ids.len(), "indices", indices.len())?;
        self.outputs(indices.len())?;
        let outputs = ids.into_iter().zip(indices);
        self.outputs.extend(outputs.map(|(id, row)| PassOutput::Embed { row, to: VirtualId(id) }));
        Ok(())
    }

    /// A `top_k` beyond the cap or the vocabulary yields what there is.
    pub fn output_distributions(
        &mut self,
        indices: Vec<u32>,
        temperature: f32,
        top_k: Option<u32>,
        vocab: u32,
    ) -> Result<(), Mistake> {
        let temperature = check_temperature(temperature)?;
        let top_k = top_k.unwrap_or(DISTRIBUTION_DEFAULT).min(limits::DISTRIBUTION_TOKENS).min(vocab);
        if top_k == 0 {
            return Err(Mistake::TopKZero);
        }
        self.outputs(indices.len())?;
        let entries = self.entries + indices.len() * top_k as usize;
        bounded("distribution entries", entries, limits::PASS_DISTRIBUTION_ENTRIES)?;
        self.entries = entries;
        self.outputs.extend(indices.into_iter().map(|row| PassOutput::Distribution {
            row,
            temperature,
            top_k,
        }));
        Ok(())
    }

    /// One draw per index.
    pub fn output_tokens(&mut self, indices: Vec<u32>, sampler: Sampler) -> Result<(), Mistake> {
        let sampler = check_sampler(sampler)?;
        self.outputs(indices.len())?;
        self.outputs.extend(indices.into_iter().map(|row| PassOutput::Token { row, sampler }));
        Ok(())
    }

    /// Everything that can only be checked together, then the pass; the draft is empty afterwards, even on error.
    pub fn take(&mut self, page_size: u32) -> Result<Pass, Mistake> {
        let Draft { pages, last_len, inputs, positions, mask, outputs, .. } = std::mem::take(self);
        let rows = inputs.len();
        if rows == 0 {
            return Err(Mistake::NoInputs);
        }
        if pages.is_empty() {
            return Err(Mistake::NoPages);
        }
        if last_len == 0 || last_len > page_size {
            return Err(Mistake::LastPageLen { len: last_len, page_size });
        }
        // NAMES_PER_INSTANCE pages of PAGE_TOKENS_MAX tokens fit a u32 (asserted in `limits.rs`).
        let len = page_size * (pages.len() as u32 - 1) + last_len;
        let Some(context) = len.checked_sub(rows as u32) else {
            return Err(Mistake::TooShort { rows, len });
        };
        written_once(&pages, (context / page_size) as usize)?;
        let out_of_range = outputs.iter().map(row_of).find(|index| *index as usize >= rows);
        if let Some(index) = out_of_range {
            return Err(Mistake::Index { index, inputs: rows });
        }
        stored_once(&outputs)?;
        let mask = check_mask(mask, rows, context)?;
        Ok(Pass { pages, len, inputs, positions, mask, outputs })
    }

    fn outputs(&self, more: usize) -> Result<(), Mistake> {
        bounded("outputs", self.outputs.len() + more, limits::PASS_OUTPUTS)
    }
}

/// That a mask may have so many rows.
pub fn mask_rows(rows: usize) -> Result<(), Mistake> {
    bounded("attention mask rows", rows, limits::PASS_ROWS)
}

/// Whether a pass answers with tokens or distributions.
pub fn yields(pass: &Pass) -> bool {
    pass.outputs.iter().any(|output| !matches!(output, PassOutput::Embed { .. }))
}

fn row_of(output: &PassOutput) -> u32 {
    match *output {
        PassOutput::Token { row, .. }
        | PassOutput::Distribution { row, .. }
        | PassOutput::Embed { row, .. } => row,
    }
}

fn bounded(what: &'static str, items: usize, bound: usize) -> Result<(), Mistake> {
    if items > bound { Err(Mistake::TooMany { what, items, bound }) } else { Ok(()) }
}

fn same(this: &'static str, items: usize, other: &'static str, others: usize) -> Result<(), Mistake> {
    if items == others { Ok(()) } else { Err(Mistake::Lengths { this, items, other, others }) }
}

fn check_temperature(value: f32) -> Result<f32, Mistake> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(value),
        false => Err(Mistake::Number { what: "temperature", value, range: "finite and not negative" }),
    }
}

/// The contract refuses what is negative or not a number; more than all is all.
fn check_share(what: &'static str, value: f32) -> Result<f32, Mistake> {
    match value >= 0.0 {
        true => Ok(value.min(1.0)),
        false => Err(Mistake::Number { what, value, range: "zero or more" }),
    }
}

fn check_top_k(k: u32) -> Result<u32, Mistake> {
    if k == 0 { Err(Mistake::TopKZero) } else { Ok(k) }
}

fn check_sampler(sampler: Sampler) -> Result<Sampler, Mistake> {
    Ok(match sampler {
        Sampler::Multinomial { temperature } => {
            Sampler::Multinomial { temperature: check_temperature(temperature)? }
        }
        Sampler::TopK { temperature, k } => {
            Sampler::TopK { temperature: check_temperature(temperature)?, k: check_top_k(k)? }
        }
        Sampler::TopP { temperature, p } => {
            Sampler::TopP { temperature: check_temperature(temperature)?, p: check_share("top-p", p)? }
        }
        Sampler::MinP { temperature, p } => {
            Sampler::MinP { temperature: check_temperature(temperature)?, p: check_share("min-p", p)? }
        }
        Sampler::TopKTopP { temperature, k, p } => Sampler::TopKTopP {
            temperature: check_temperature(temperature)?,
            k: check_top_k(k)?,
            p: check_share("top-p", p)?,
        },
    })
}

/// Reading one page in two places is odd but harmless; one that is written must have one place.
fn written_once(pages: &[VirtualId], first_written: usize) -> Result<(), Mistake> {
    let (read, written) = pages.split_at(first_written);
    let mut seen = HashSet::with_capacity(written.len());
    if let Some(twice) = written.iter().find(|page| !seen.insert(**page)) {
        return Err(Mistake::PageTwice(*twice));
    }
    match read.iter().find(|page| seen.contains(page)) {
        Some(twice) => Err(Mistake::PageTwice(*twice)),
        None => Ok(()),
    }
}

fn stored_once(outputs: &[PassOutput]) -> Result<(), Mistake> {
    let mut seen = HashSet::new();
    let stored = outputs.iter().filter_map(|output| match output {
        PassOutput::Embed { to, .. } => Some(*to),
        _ => None,
    });
    match { stored }.find(|id| !seen.insert(*id)) {
        Some(id) => Err(Mistake::StoredTwice(id)),
        None => Ok(()),
    }
}

/// Checks each row's sum and brings it to its shortest form. The SDK always sends a mask; one that hides nothing is
/// the causal one, which costs nothing to keep and little to run.
fn check_mask(mask: Vec<Vec<u32>>, rows: usize, context: u32) -> Result<Mask, Mistake> {
    if mask.is_empty() {
        return Ok(Mask::Causal);
    }
    if mask.len() != rows {
        return Err(Mistake::MaskRows { rows: mask.len(), inputs: rows });
    }
    let mut short = Vec::with_capacity(rows);
    for (row, runs) in mask.into_iter().enumerate() {
        let slots = context + row as u32 + 1;
        let sum: u64 = runs.iter().map(|run| u64::from(*run)).sum();
        if sum != u64::from(slots) {
            return Err(Mistake::MaskSum { row, sum, slots });
        }
        let runs = shortest(runs);
        if runs.len() == 2 && runs[0] == 0 {
            return Err(Mistake::MaskEmpty { row });
        }
        short.push(runs);
    }
    match short.iter().all(|runs| runs.len() == 1) {
        true => Ok(Mask::Causal),
        false => Ok(Mask::Runs(short)),
    }
}

/// The same row with no run of length 0 but a leading one. The sum of `runs` fits a u32.
fn shortest(runs: Vec<u32>) -> Vec<u32> {
    if runs.iter().skip(1).all(|run| *run > 0) {
        return runs;
    }
    let mut short: Vec<u32> = Vec::with_capacity(runs.len());
    for (i, run) in runs.into_iter().enumerate().filter(|(i, run)| *i == 0 || *run > 0) {
        // Even runs attend. One that would come to stand on the other side continues the one before it.
        let same_side = i % 2 == short.len() % 2;
        match short.last_mut() {
            Some(last) if !same_side => *last += run,
            _ => short.push(run),
        }
    }
    short
}

#[cfg(test)]
mod tests;
