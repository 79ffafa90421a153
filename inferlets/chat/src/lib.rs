//! A chat whose answers stream to the client as they are generated.
//!
//! usage: chat [--system TEXT] [--max-tokens N] [--temperature T] [--top-p P] [--top-k K] --user TEXT [--user TEXT]...
//!
//! Each `--user` is one turn; the KV pages of the turns before it stay, so a later turn costs only its own
//! tokens. Without `--user`, the remaining argument is the one turn. At temperature 0 (the default) the answer is the
//! likeliest one. The return value is the last answer.

mod stream;

use inferlet::{Args, ChatFormatter, Context, Result, Sampler, ensure, get_auto_model, send};
use stream::TextStream;

const DEFAULT_SYSTEM: &str = "You are a helpful assistant.";

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let system = args.opt_value_from_str("--system")?.unwrap_or_else(|| DEFAULT_SYSTEM.to_string());
    let max_tokens: usize = args.opt_value_from_str("--max-tokens")?.unwrap_or(256);
    let sampler = sampler(&mut args)?;
    let mut turns: Vec<String> = args.values_from_str("--user")?;
    if turns.is_empty()
        && let Some(turn) = args.opt_free_from_str::<String>()?
    {
        ensure!(
            !turn.starts_with("--"),
            "{turn} is no flag of chat; a question that begins so goes behind --user"
        );
        turns.push(turn);
    }
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!(!turns.is_empty(), "nothing to answer; ask with --user \"…\"");
    ensure!(max_tokens > 0, "--max-tokens must be at least 1");

    let model = get_auto_model();
    let stops = model.eos_tokens();
    let mut context = Context::new(&model);
    context.fill_system(&system);

    let mut answer = String::new();
    for (turn, user) in turns.iter().enumerate() {
        if turn > 0 {
            send("\n\n"); // between two answers
            context.fill(&end_of_answer(&context));
        }
        context.fill_user(user);
        answer = say(&mut context, &sampler, &stops, max_tokens).await;
    }
    Ok(answer)
}

/// Generates one answer into `context`, sends it piece by piece, and returns it whole.
async fn say(context: &mut Context, sampler: &Sampler, stops: &[Vec<u32>], max_tokens: usize) -> String {
    let tokenizer = context.tokenizer.clone();
    let mut stream = TextStream::new(|tokens| tokenizer.detokenize(tokens));
    let mut answer = String::new();
    let mut generated = Vec::new();
    while generated.len() < max_tokens {
        // One forward pass: everything pending goes in, one token comes out.
        let token = context.decode_step(sampler).await;
        generated.push(token);
        if stops.iter().any(|stop| generated.ends_with(stop)) {
            break; // the stop itself is part of what the template puts between two turns
        }
        context.fill_token(token);
        if let Some(text) = stream.push(token) {
            send(&text);
            answer += &text;
        }
    }
    if let Some(text) = stream.finish() {
        send(&text);
        answer += &text;
    }
    answer
}

/// What the model's template puts after an answer. The answer itself is in the context already, token by token as it
/// was generated, so it is not rendered again.
fn end_of_answer(context: &Context) -> String {
    const ANSWER: &str = "ANSWER";
    let mut message = ChatFormatter::new();
    message.assistant(ANSWER);
    let rendered = message.render(&context.model.get_prompt_template(), false);
    rendered.rsplit_once(ANSWER).map(|(_, end)| end.to_string()).unwrap_or_default()
}

fn sampler(args: &mut Args) -> Result<Sampler> {
    let temperature = args.opt_value_from_str("--temperature")?.unwrap_or(0.0);
    let top_p: Option<f32> = args.opt_value_from_str("--top-p")?;
    let top_k: Option<u32> = args.opt_value_from_str("--top-k")?;
    Ok(match (top_k, top_p) {
        (None, None) => Sampler::Multinomial { temperature },
        (None, Some(top_p)) => Sampler::top_p(temperature, top_p),
        (Some(top_k), None) => Sampler::top_k(temperature, top_k),
        (Some(top_k), Some(top_p)) => Sampler::top_k_top_p(temperature, top_k, top_p),
    })
}
