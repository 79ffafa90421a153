//! `inferlet:core/forward`: passes through the model.
//!
//! Owns: the pass under construction and the result to come, as guests hold them. Never: what a correct pass is,
//! which is [`draft`]'s, nor when it runs, which is the engine's.
//!
//! `execute` takes what was set since the last one: executing the same handle again without setting it up again is a
//! mistake (on Pie too it would run nothing). A result may be read any number of times.

pub mod draft;

use super::abi::{Borrow, Own};
use super::common::{Names, Queue, Stream, given_up, submit};
use super::held::Charge;
use super::lists::{Gather, Long};
use super::wasi::io::Pollable;
use super::{Cx, Interface, Later, Trap};
use crate::backend::{Produced, Sampler, TokenId};
use crate::engine::operation::{Kind, Operation, Pass, PassInput, PassOutput, PassResult, Reply};
use crate::runtime::table::Resource;
use draft::{Draft, Mistake};
use std::sync::Arc;

pub fn interface() -> Interface {
    Interface::new("inferlet:core/forward")
        .resource::<ForwardPass>()
        .resource::<ForwardPassResult>()
        .wait("[method]forward-pass.execute", execute)
        .call("[method]forward-pass-result.pollable", pollable)
        .wait("[method]forward-pass-result.get-distributions", get_distributions)
        .wait("[method]forward-pass-result.get-tokens", get_tokens)
        .call("create-forward-pass", create)
        .gather("attention-mask", attention_mask)
        .call("kv-cache", kv_cache)
        .call("input-embeddings", input_embeddings)
        .call("input-tokens", input_tokens)
        .call("output-embeddings", output_embeddings)
        .call("output-distributions", output_distributions)
        .call("output-tokens", output_tokens)
        .call("output-tokens-top-k", output_top_k)
        .call("output-tokens-top-p", output_top_p)
        .call("output-tokens-min-p", output_min_p)
        .call("output-tokens-top-k-top-p", output_top_k_top_p)
}

/// Fuel for each row of a pass: what the engine does for one before it runs, or because it need not run, takes some 15 to
/// 30 ns of a thread that everybody waits for.
const FUEL_PER_ROW: u64 = 16;

/// Fuel for each page of it: found by name, its contents, what waits for it, and held; some 30 ns of that thread.
const FUEL_PER_PAGE: u64 = 16;
/// Fuel for each run of its mask: summed, shortened and copied.
const FUEL_PER_RUN: u64 = 4;

/// A pass that the guest is building, for one queue.
pub struct ForwardPass {
    queue: Arc<Stream>,
    draft: Draft,
    held: Charge,
}

impl Resource for ForwardPass {
    const NAME: &'static str = "forward-pass";
}

/// The reply carries the charge for what the pass yields.
struct ForwardPassResult(Reply<PassResult>);

impl Resource for ForwardPassResult {
    const NAME: &'static str = "forward-pass-result";
}

impl From<Mistake> for Trap {
    fn from(mistake: Mistake) -> Trap {
        Trap::error(mistake.to_string())
    }
}

fn create(cx: &mut Cx, queue: Borrow<Queue>) -> Result<Own<ForwardPass>, Trap> {
    let queue = cx.table.get(&queue)?.0.clone();
    Ok(Own(ForwardPass { queue, draft: Draft::default(), held: cx.held.nothing() }))
}

/// Changes a pass and counts what it holds now.
fn edit(
    cx: &mut Cx,
    pass: &Borrow<ForwardPass>,
    change: impl FnOnce(&mut Draft) -> Result<(), Mistake>,
) -> Result<(), Trap> {
    let pass = cx.table.get_mut(pass)?;
    change(&mut pass.draft)?;
    pass.held.set(pass.draft.bytes())
}

fn attention_mask(
    _: &mut Cx,
    pass: Borrow<ForwardPass>,
    mask: Long<Vec<u32>>,
) -> Result<Gather<Vec<u32>, ()>, Trap> {
    draft::mask_rows(mask.len())?;
    mask.then(move |cx, mask| edit(cx, &pass, |draft| draft.mask(mask)))
}

fn kv_cache(cx: &mut Cx, pass: Borrow<ForwardPass>, pages: Vec<u32>, last_len: u32) -> Result<(), Trap> {
    let pool = cx.engine.info().pages;
    edit(cx, &pass, |draft| draft.kv_cache(pages, last_len, pool))
}

fn input_embeddings(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    embeddings: Vec<u32>,
    positions: Vec<u32>,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.input_embeddings(embeddings, positions))
}

fn input_tokens(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
) -> Result<(), Trap> {
    let vocab = cx.engine.info().vocab;
    edit(cx, &pass, |draft| draft.input_tokens(tokens, positions, vocab))
}

fn output_embeddings(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    embeddings: Vec<u32>,
    indices: Vec<u32>,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.output_embeddings(embeddings, indices))
}

fn output_distributions(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    indices: Vec<u32>,
    temperature: f32,
    top_k: Option<u32>,
) -> Result<(), Trap> {
    let vocab = cx.engine.info().vocab;
    edit(cx, &pass, |draft| draft.output_distributions(indices, temperature, top_k, vocab))
}

fn output_tokens(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    indices: Vec<u32>,
    temperature: f32,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.output_tokens(indices, Sampler::Multinomial { temperature }))
}

fn output_top_k(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    indices: Vec<u32>,
    temperature: f32,
    k: u32,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.output_tokens(indices, Sampler::TopK { temperature, k }))
}

fn output_top_p(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    indices: Vec<u32>,
    temperature: f32,
    p: f32,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.output_tokens(indices, Sampler::TopP { temperature, p }))
}

fn output_min_p(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    indices: Vec<u32>,
    temperature: f32,
    p: f32,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.output_tokens(indices, Sampler::MinP { temperature, p }))
}

fn output_top_k_top_p(
    cx: &mut Cx,
    pass: Borrow<ForwardPass>,
    indices: Vec<u32>,
    temperature: f32,
    k: u32,
    p: f32,
) -> Result<(), Trap> {
    edit(cx, &pass, |draft| draft.output_tokens(indices, Sampler::TopKTopP { temperature, k, p }))
}

/// Queues the pass. No result when neither tokens nor distributions were asked for; it runs in order all the same.
fn execute(cx: &mut Cx, pass: Borrow<ForwardPass>) -> Result<Later<Option<Own<ForwardPassResult>>>, Trap> {
    let page_size = cx.engine.info().page_size;
    let building = cx.table.get_mut(&pass)?;
    let (result_bytes, runs) = (building.draft.result_bytes(), building.draft.runs());
    let pass = building.draft.take(page_size)?;
    building.held.set(0)?;
    let queue = building.queue.id;
    check_names(&cx.names, &pass)?;
    cx.owe(pass.rows() + pass.outputs.len(), FUEL_PER_ROW);
    cx.owe(pass.pages.len(), FUEL_PER_PAGE);
    cx.owe(runs, FUEL_PER_RUN);
    let (reply, result) = match draft::yields(&pass) {
        true => {
            let reply = Reply::carrying(cx.held.charge(result_bytes)?);
            (reply.clone(), Some(Own(ForwardPassResult(reply))))
        }
        false => (Reply::default(), None),
    };
    Ok(submit(cx, queue, Operation::Pass(pass, reply), result))
}

fn check_names(names: &Names, pass: &Pass) -> Result<(), Trap> {
    names.check(Kind::Page, pass.pages.iter().copied(), "kv-page-ptrs")?;
    let read = pass.inputs.iter().filter_map(|input| match *input {
        PassInput::Embed(id) => Some(id),
        PassInput::Token(_) => None,
    });
    names.check(Kind::Embed, read, "emb-ptrs of input-embeddings")?;
    let stored = pass.outputs.iter().filter_map(|output| match *output {
        PassOutput::Embed { to, .. } => Some(to),
        PassOutput::Token { .. } | PassOutput::Distribution { .. } => None,
    });
    names.check(Kind::Embed, stored, "emb-ptrs of output-embeddings")
}

fn pollable(cx: &mut Cx, result: Borrow<ForwardPassResult>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(Arc::new(cx.table.get(&result)?.0.clone()))))
}

/// What the pass produced, seen through `pick`; none while it has not run.
fn read<R: Send + 'static>(
    cx: &mut Cx,
    result: &Borrow<ForwardPassResult>,
    pick: impl Fn(&Produced) -> Option<R>,
) -> Result<Later<Option<Vec<R>>>, Trap> {
    match cx.table.get(result)?.0.get() {
        None => Ok(Later::ready(None)),
        Some(Ok(produced)) => Ok(Later::ready(Some(produced.iter().filter_map(pick).collect()))),
        Some(Err(lost)) => Ok(Later::wait(given_up(lost.to_string()))),
    }
}

/// Token ids, most probable first, and their probabilities.
type Distribution = (Vec<u32>, Vec<f32>);

/// In the order of the calls that asked for them.
fn get_distributions(
    cx: &mut Cx,
    result: Borrow<ForwardPassResult>,
) -> Result<Later<Option<Vec<Distribution>>>, Trap> {
    read(cx, &result, |produced| match produced {
        Produced::Distribution { ids, probs } => {
            Some((ids.iter().map(|TokenId(id)| *id).collect(), probs.clone()))
        }
        Produced::Token(_) => None,
    })
}

/// In the order of the calls that asked for them.
fn get_tokens(cx: &mut Cx, result: Borrow<ForwardPassResult>) -> Result<Later<Option<Vec<u32>>>, Trap> {
    read(cx, &result, |produced| match produced {
        Produced::Token(TokenId(id)) => Some(*id),
        Produced::Distribution { .. } => None,
    })
}
