//! The shortest inferlet that uses the model: sends the one token most likely to follow a prompt.
//!
//! usage: token [PROMPT]

use inferlet::{Args, Context, Result, Sampler, get_auto_model, send};

#[inferlet::main]
async fn main(mut args: Args) -> Result<()> {
    let prompt = args.opt_free_from_str()?.unwrap_or_else(|| "The capital of France is".to_string());
    let mut context = Context::new(&get_auto_model());
    context.fill(&prompt);
    let token = context.decode_step(&Sampler::greedy()).await;
    send(&context.tokenizer.detokenize(&[token]));
    Ok(())
}
