//! An answer that is JSON of a schema, whatever the model would rather say.
//!
//! usage: json --schema SCHEMA [--system TEXT] [--max-tokens N] [--temperature T] [--top-p P] [--seed S] QUESTION
//!
//! SCHEMA is a JSON schema; a file's goes in as `--schema "$(cat FILE)"`. The answer parses and validates, always, and
//! ends within N (256) tokens: each token is chosen among those that the schema allows (`inferlets/grammar` says how). At
//! temperature 0 (the default) it is the likeliest of them, else one that is drawn; S makes the draws repeatable. A
//! schema with keywords that are not supported is refused. Returns the answer.

use constrain::Choice;
use inferlet::wasi::random::random::get_random_u64;
use inferlet::{AnyhowContext, Args, Context, Result, anyhow, ensure, get_auto_model};

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let schema: String = args.value_from_str("--schema")?;
    let system: Option<String> = args.opt_value_from_str("--system")?;
    let max_tokens: u32 = args.opt_value_from_str("--max-tokens")?.unwrap_or(256);
    let temperature: f32 = args.opt_value_from_str("--temperature")?.unwrap_or(0.0);
    let top_p: f32 = args.opt_value_from_str("--top-p")?.unwrap_or(1.0);
    let seed: u64 = args.opt_value_from_str("--seed")?.unwrap_or_else(get_random_u64);
    let question: String = args.free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!(temperature >= 0.0 && top_p > 0.0, "--temperature must be at least 0, and --top-p above 0");

    let system = system.unwrap_or_else(|| format!("Answer with JSON that follows this schema: {schema}"));
    let schema = serde_json::from_str(&schema).context("the schema is no JSON")?;
    let model = get_auto_model();
    let vocabulary = constrain::vocabulary(&model);
    let grammar = grammar::compile(&schema, &vocabulary).map_err(|why| anyhow!(why))?;

    let mut context = Context::new(&model);
    context.fill_system(&system);
    context.fill_user(&question);
    let choice = Choice { temperature, top_p, seed, max_tokens };
    let mut answer = Vec::new();
    constrain::write(&model, &context.token_ids_pending, &grammar, &vocabulary, &choice, async |tokens| {
        tokens.iter().for_each(|&token| answer.extend_from_slice(vocabulary.text(token)));
        true
    })
    .await?;
    String::from_utf8(answer).context("the answer is no UTF-8")
}
