//! Text without end in bounded memory: an attention sink (StreamingLLM, arXiv:2309.17453).
//!
//! usage: sink [--sink S] [--window W] [--max-tokens N] PROMPT
//!
//! Each token attends to the first S tokens (4), to which a model gives the attention that it has no other use for, and
//! to the last W (128), itself included. What lies between is masked, and its pages are given back, so that pages stay
//! bounded however long the text gets: N tokens, by default four windows. The text streams and does not stop at the
//! model's end of text. Returns how many pages it held at most.
//!
//! Positions go on counting, as the SDK does it: the distance to the sink grows with the text, and no farther than the
//! model was trained for is it known to work well.

use inferlet::{Args, Context, Result, Sampler, ensure, get_auto_model, send};

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let sink: usize = args.opt_value_from_str("--sink")?.unwrap_or(4);
    let window: usize = args.opt_value_from_str("--window")?.unwrap_or(128);
    let max_tokens: usize = args.opt_value_from_str("--max-tokens")?.unwrap_or(4 * window);
    let prompt: String = args.free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!(window > 0, "--window must be at least 1: a token attends to itself");

    let mut context = Context::new(&get_auto_model());
    context.fill(&prompt);
    let prompt_tokens = context.token_ids_pending.len();

    let mut most = 0;
    let mut waiting = Vec::new();
    for _ in 0..max_tokens {
        let token = context.decode_step(&Sampler::greedy()).await;
        most = most.max(context.kv_pages.len());

        // For all tokens to come, so before the next one is filled in: it takes the mask as it is then.
        let len = context.token_ids.len() + 1;
        context.mask_token_range(sink, len.saturating_sub(window), true);
        context.drop_masked_kv_pages();
        context.fill_token(token);

        waiting.push(token);
        let text = context.tokenizer.detokenize(&waiting);
        if !text.ends_with('\u{FFFD}') {
            send(&text); // whole characters only
            waiting.clear();
        }
    }
    let whole = (prompt_tokens + max_tokens - 1).div_ceil(context.kv_page_size); // the last token is not computed
    Ok(format!(
        "{max_tokens} tokens behind {prompt_tokens}: at most {most} pages, of {whole} without dropping"
    ))
}
