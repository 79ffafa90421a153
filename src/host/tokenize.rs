//! `inferlet:core/tokenize`: text to tokens and back.

use super::abi::{Borrow, Own};
use super::lists::Made;
use super::{Cx, Interface, Later, Trap};
use crate::backend::TokenId;
use crate::limits;
use crate::model::Model;
use crate::runtime::table::Resource;
use std::sync::Arc;

/// Bytes of text beyond which tokenizing leaves the worker for a thread that may be busy for long: milliseconds to a second,
/// in which guests and batches would wait. Below, it takes about a slice.
const LONG_TEXT: usize = 16 * 1024;
/// Fuel for each byte tokenized and each token detokenized: about what the same loop would cost the guest.
const FUEL_PER_BYTE: u64 = 16;
/// Fuel for each token of the vocabulary beside its bytes.
const FUEL_PER_TOKEN: u64 = 32;

pub fn interface() -> Interface {
    Interface::new("inferlet:core/tokenize")
        .resource::<Tokenizer>()
        .call("get-tokenizer", tokenizer)
        .wait("[method]tokenizer.tokenize", tokenize)
        .wait("[method]tokenizer.detokenize", detokenize)
        .call("[method]tokenizer.get-vocabs", vocabulary)
}

struct Tokenizer(Arc<Model>);

impl Resource for Tokenizer {
    const NAME: &'static str = "tokenizer";
}

fn tokenizer(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<Own<Tokenizer>, Trap> {
    Ok(Own(Tokenizer(cx.table.get(&model)?.clone())))
}

/// Special tokens in the text are honoured; none are added.
fn tokenize(cx: &mut Cx, tokenizer: Borrow<Tokenizer>, text: String) -> Result<Later<Vec<u32>>, Trap> {
    if text.len() > limits::TOKENIZED_BYTES {
        return Err(Trap::error(format!(
            "text has {} bytes; at most {} are tokenized at once",
            text.len(),
            limits::TOKENIZED_BYTES
        )));
    }
    let model = cx.table.get(&tokenizer)?.0.clone();
    cx.owe(text.len(), FUEL_PER_BYTE);
    let bytes = text.len();
    let work = move || model.tokenizer.encode(&text).into_iter().map(|TokenId(id)| id).collect();
    match bytes > LONG_TEXT {
        true => elsewhere(cx, bytes + size_of::<u32>() * bytes, work), // a token has a byte at least
        false => Ok(Later::ready(work())),
    }
}

/// Does the work on another thread. What it takes and makes is some `bytes`, held until the guest has the answer.
fn elsewhere<R: Send + 'static>(
    cx: &Cx,
    bytes: usize,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<Later<R>, Trap> {
    let held = cx.held.charge(bytes)?;
    let answer = cx.aside.run(&cx.subject, work);
    Ok(Later::wait(async move {
        let answer = answer.await;
        drop(held);
        answer
    }))
}

/// Special tokens come out verbatim, what is not UTF-8 as U+FFFD.
fn detokenize(cx: &mut Cx, tokenizer: Borrow<Tokenizer>, tokens: Vec<u32>) -> Result<Later<String>, Trap> {
    if tokens.len() > limits::DETOKENIZED_TOKENS {
        return Err(Trap::error(format!(
            "tokens has {} items; at most {} are detokenized at once",
            tokens.len(),
            limits::DETOKENIZED_TOKENS
        )));
    }
    let tokens: Vec<TokenId> = tokens.into_iter().map(TokenId).collect();
    let model = cx.table.get(&tokenizer)?.0.clone();
    cx.owe(tokens.len(), FUEL_PER_BYTE);
    // A vocabulary may have entries of any length: what comes out is measured before it is made.
    let bytes = model.tokenizer.decoded_len(&tokens).map_err(|bad| Trap::error(format!("tokens: {bad}")))?;
    if bytes > limits::DETOKENIZED_BYTES {
        return Err(Trap::error(format!(
            "tokens stand for {bytes} bytes of text; at most {} are made at once",
            limits::DETOKENIZED_BYTES
        )));
    }
    cx.owe(bytes, 1);
    let long = tokens.len().max(bytes) > LONG_TEXT;
    let held = size_of::<TokenId>() * tokens.len() + bytes;
    // Every id was looked up above: no token is bad now.
    let work = move || model.tokenizer.decode(&tokens).unwrap_or_default();
    match long {
        true => elsewhere(cx, held, work),
        false => Ok(Later::ready(work())),
    }
}

/// Ids ascending, raw bytes, special tokens left out. The one big answer: its fuel is charged by token too.
fn vocabulary(cx: &mut Cx, tokenizer: Borrow<Tokenizer>) -> Result<(Vec<u32>, Made<Vec<u8>>), Trap> {
    let model = cx.table.get(&tokenizer)?.0.clone();
    let ids: Vec<u32> = model.tokenizer.vocabulary().map(|(TokenId(id), _)| id).collect();
    cx.owe(ids.len(), FUEL_PER_TOKEN);
    let (count, each) = (ids.len(), ids.clone());
    // Every id is of the vocabulary.
    let bytes = move |i: usize| model.tokenizer.decode_bytes(&[TokenId(each[i])]).unwrap_or_default();
    Ok((ids, Made::new(count, bytes)))
}
