//! A prefix that is computed once: one instance exports its KV pages under a name, others import them and go on.
//!
//! usage: prefix --export NAME TEXT       compute TEXT and export its pages, which outlive this instance
//!        prefix --import NAME TEXT       go on with TEXT behind the pages of NAME
//!        prefix --recompute NAME TEXT    the same without the pages, for comparison
//!        prefix --release NAME           give the pages back
//!
//! Going on returns the 32 likeliest next tokens, a line each: probability and text. Pages do not say which tokens they
//! hold; a key-value pair of the same name does.

use inferlet::api::{self, forward, runtime};
use inferlet::wstd::io::AsyncPollable;
use inferlet::{AnyhowContext, Args, Context, Resource, Result, bail, ensure, get_auto_model};
use inferlet::{store_delete, store_get, store_set};

const PAGE: u32 = Resource::KvPage as u32;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let export: Option<String> = args.opt_value_from_str("--export")?;
    let import: Option<String> = args.opt_value_from_str("--import")?;
    let recompute: Option<String> = args.opt_value_from_str("--recompute")?;
    let release: Option<String> = args.opt_value_from_str("--release")?;
    let text: String = args.opt_free_from_str()?.unwrap_or_default();
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!(release.is_some() || !text.is_empty(), "there is no TEXT");

    match (export, import, recompute, release) {
        (Some(name), None, None, None) => make(&name, &text).await,
        (None, Some(name), None, None) => go_on(&name, true, &text).await,
        (None, None, Some(name), None) => go_on(&name, false, &text).await,
        (None, None, None, Some(name)) => {
            get_auto_model().create_queue().release_exported_resources(Resource::KvPage, &name);
            store_delete(&name);
            Ok(format!("{name} is released"))
        }
        _ => bail!("one of --export, --import, --recompute and --release, with a name"),
    }
}

async fn make(name: &str, text: &str) -> Result<String> {
    let mut context = Context::new(&get_auto_model());
    context.fill(text);
    // Queues the pass. Nobody has to wait for it: whoever imports the pages has its passes run after this one.
    context.flush().await;
    let pages = context.get_kv_page_ptrs();
    context.queue.export_resource(Resource::KvPage, &pages, name);
    let tokens: Vec<String> = context.token_ids.iter().map(u32::to_string).collect();
    store_set(name, &tokens.join(" "));
    Ok(format!("{name}: {} tokens in {} pages", tokens.len(), pages.len()))
}

/// The SDK's `Context` cannot be made of imported pages (their type has no name outside), so this is a pass by hand.
async fn go_on(name: &str, import: bool, text: &str) -> Result<String> {
    let model = runtime::get_model(&get_auto_model().get_name()).context("the model is gone")?;
    let (queue, tokenizer) = (model.create_queue(), api::tokenize::get_tokenizer(&model));
    let prefix = store_get(name).with_context(|| format!("there is no prefix {name}"))?;
    let mut tokens = prefix.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let prefix_len = tokens.len();
    tokens.extend(tokenizer.tokenize(text));

    let held = if import { prefix_len } else { 0 };
    let mut pages = if import { api::import_resources(&queue, PAGE, name) } else { Vec::new() };
    // The last imported page is mostly not full. What is written there is written to a copy: the others keep theirs.
    let page_size = model.get_kv_page_size() as usize;
    let more = tokens.len().div_ceil(page_size) - pages.len();
    pages.extend(api::allocate_resources(&queue, PAGE, more as u32));
    let last_page_len = (tokens.len() - 1) % page_size + 1;

    let pass = forward::create_forward_pass(&queue);
    let positions: Vec<u32> = (held as u32..tokens.len() as u32).collect();
    forward::input_tokens(&pass, &tokens[held..], &positions);
    forward::kv_cache(&pass, &pages, last_page_len as u32);
    forward::output_distributions(&pass, &[positions.len() as u32 - 1], 1.0, Some(32));
    let result = pass.execute().context("a pass with an output has a result")?;
    AsyncPollable::new(result.pollable()).wait_for().await;
    let (ids, probabilities) =
        result.get_distributions().and_then(|mut all| all.pop()).context("no distribution")?;

    let line = |(id, probability): (&u32, &f32)| format!("{probability} {:?}", tokenizer.detokenize(&[*id]));
    Ok(ids.iter().zip(&probabilities).map(line).collect::<Vec<_>>().join("\n"))
}
