//! Beam search: of all continuations by one token the likeliest few are kept, step by step.
//!
//! usage: beam [--width K] [--max-tokens N] PROMPT
//!
//! K (4, at most 32) beams live at a time, each a fork of the one it continues; a step of the search is one pass of
//! each, all in one batch. Width 1 is greedy. A wider search mostly finds likelier texts, though nothing binds it to:
//! what is dropped does not come back. Returns the texts found, best first, a line each: the sum of the tokens'
//! log-probabilities, and the text. The sum is not divided by a length, so of two that end the shorter is favoured.

use futures::future::join_all;
use inferlet::{Args, Context, Result, ensure, get_auto_model};

/// Entries of a distribution that the SDK asks for.
const WIDEST: usize = 32;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let width: usize = args.opt_value_from_str("--width")?.unwrap_or(4);
    let max_tokens: usize = args.opt_value_from_str("--max-tokens")?.unwrap_or(32);
    let prompt: String = args.free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!((1..=WIDEST).contains(&width), "--width must be from 1 to {WIDEST}");
    ensure!(max_tokens > 0, "--max-tokens must be at least 1");

    let model = get_auto_model();
    let stops = model.eos_tokens();
    let mut context = Context::new(&model);
    context.fill(&prompt);
    let tokenizer = context.tokenizer.clone();

    let mut beams = vec![Beam { context, text: Text::default() }]; // best first, all of one length
    let mut found: Vec<Text> = Vec::new();
    while let Some(Beam { text: best, .. }) = beams.first() {
        // Sums only fall, so what is found and no worse than the best beam stays the best.
        if best.tokens.len() == max_tokens || found.iter().any(|text| text.score >= best.score) {
            break;
        }
        let next = join_all(beams.iter_mut().map(|beam| beam.context.decode_step_dist())).await;
        let mut steps = Vec::new();
        for (beam, next) in beams.iter().zip(&next) {
            // At most `width` of one beam can be among the best `width` of all.
            for (&token, &probability) in next.ids.iter().zip(&next.probs).take(width) {
                steps.push((&beam.context, beam.text.then(token, probability)));
            }
        }
        steps.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
        let mut kept = Vec::new();
        for (context, text) in steps.into_iter().take(width) {
            match stops.iter().any(|stop| text.tokens.ends_with(stop)) {
                true => found.push(text),
                false => kept.push(Beam::fork(context, text)),
            }
        }
        beams = kept;
    }

    found.extend(beams.into_iter().map(|beam| beam.text));
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let line = |text: &Text| format!("{:.6} {:?}", text.score, tokenizer.detokenize(&text.tokens));
    Ok(found.iter().take(width).map(line).collect::<Vec<_>>().join("\n"))
}

#[derive(Default)]
struct Text {
    tokens: Vec<u32>,
    /// Sum of the tokens' log-probabilities.
    score: f64,
}

impl Text {
    fn then(&self, token: u32, probability: f32) -> Text {
        let tokens = self.tokens.iter().copied().chain([token]).collect();
        Text { tokens, score: self.score + f64::from(probability).ln() }
    }
}

/// A text and its keys and values, but for those of the last token.
struct Beam {
    context: Context,
    text: Text,
}

impl Beam {
    /// `text` is what `parent` holds and one token more. Full pages are shared; the tokens of a last page that is not
    /// full are computed again, for both go on writing there.
    fn fork(parent: &Context, text: Text) -> Beam {
        let mut context = parent.fork();
        context.fill_tokens(text.tokens.last().copied().into_iter().collect());
        Beam { context, text }
    }
}
