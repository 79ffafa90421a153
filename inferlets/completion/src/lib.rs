//! Continues a raw text: no chat template, nothing added. Returns what was generated.
//!
//! usage: completion [--max-tokens N] [--temperature T] [--top-p P] [--top-k K] PROMPT

use inferlet::stop_condition::{StopCondition, ends_with_any, max_len};
use inferlet::{Args, Context, Result, Sampler, ensure, get_auto_model};

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let max_tokens = args.opt_value_from_str("--max-tokens")?.unwrap_or(32);
    let temperature: f32 = args.opt_value_from_str("--temperature")?.unwrap_or(0.0);
    let top_p: f32 = args.opt_value_from_str("--top-p")?.unwrap_or(1.0);
    let top_k: Option<u32> = args.opt_value_from_str("--top-k")?;
    let prompt: String = args.free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");

    let model = get_auto_model();
    let mut context = Context::new(&model);
    context.fill(&prompt);

    let sampler = match top_k {
        Some(top_k) => Sampler::top_k_top_p(temperature, top_k, top_p),
        None => Sampler::top_p(temperature, top_p),
    };
    let stop = max_len(max_tokens).or(ends_with_any(model.eos_tokens()));
    Ok(context.generate(sampler, stop).await)
}
