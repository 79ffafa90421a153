//! A tree search: after a prompt, each path forks into its likeliest next tokens, and all branches grow at once.
//!
//! usage: fork [--branches B] [--depth D] [--tokens N] [--serial] PROMPT
//!
//! D times (1), each path forks into the B (8) likeliest next tokens, and each branch goes on with the likeliest token
//! until it is N (16) tokens longer. What branches have in common is computed once: a fork shares its parent's full
//! KV pages. Branches wait for the model together, so their passes share batches; `--serial` grows one after the other,
//! for comparison. Returns the paths, best first, a line each: the sum of the tokens' log-probabilities, and the text.
//! How long the branches took is sent as a message.

use futures::future::join_all;
use inferlet::{Args, Context, Result, ensure, get_auto_model, send};
use std::time::Instant;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let branches: usize = args.opt_value_from_str("--branches")?.unwrap_or(8);
    let depth: usize = args.opt_value_from_str("--depth")?.unwrap_or(1);
    let tokens: usize = args.opt_value_from_str("--tokens")?.unwrap_or(16);
    let serial = args.contains("--serial");
    let prompt: String = args.free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!(branches > 0 && depth > 0 && tokens > 0, "--branches, --depth and --tokens must be at least 1");

    let model = get_auto_model();
    let stops = model.eos_tokens();
    let mut context = Context::new(&model);
    context.fill(&prompt);
    let tokenizer = context.tokenizer.clone();

    // The first split computes the prompt; all that follows stands on its pages.
    let mut paths = Path { context, tokens: Vec::new(), score: 0.0 }.split(branches, &stops).await;
    let since = Instant::now();
    for level in 1..=depth {
        all(paths.iter_mut().map(|path| path.grow(level * tokens, &stops)), serial).await;
        if level < depth {
            let split = all(paths.into_iter().map(|path| path.split(branches, &stops)), serial).await;
            paths = split.into_iter().flatten().collect();
        }
    }
    send(&format!("{} paths in {} ms", paths.len(), since.elapsed().as_millis()));

    paths.sort_by(|a, b| b.score.total_cmp(&a.score));
    let line = |path: &Path| format!("{:.6} {:?}", path.score, tokenizer.detokenize(&path.tokens));
    Ok(paths.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Waits for all at once, so that their passes share batches, or for one after the other.
async fn all<F: Future>(work: impl Iterator<Item = F>, serial: bool) -> Vec<F::Output> {
    if !serial {
        return join_all(work).await;
    }
    let mut done = Vec::new();
    for one in work {
        done.push(one.await);
    }
    done
}

/// From the prompt to a leaf of the tree.
struct Path {
    /// Prompt and tokens; the last token is still to be computed.
    context: Context,
    tokens: Vec<u32>,
    /// Sum of the tokens' log-probabilities.
    score: f64,
}

impl Path {
    /// Its likeliest continuations by one token, likeliest first. One that has ended stays as it is.
    async fn split(mut self, branches: usize, stops: &[Vec<u32>]) -> Vec<Path> {
        if self.ended(stops) {
            return vec![self];
        }
        let next = self.context.decode_step_dist().await;
        let fork = |(&token, &probability)| {
            let mut path =
                Path { context: self.context.fork(), tokens: self.tokens.clone(), score: self.score };
            path.push(token, probability);
            path
        };
        next.ids.iter().zip(&next.probs).take(branches).map(fork).collect()
    }

    /// Goes on with the likeliest token until there are `len` in all, or it ends.
    async fn grow(&mut self, len: usize, stops: &[Vec<u32>]) {
        while self.tokens.len() < len && !self.ended(stops) {
            let next = self.context.decode_step_dist().await;
            self.push(next.ids[0], next.probs[0]);
        }
    }

    fn push(&mut self, token: u32, probability: f32) {
        self.context.fill_token(token);
        self.tokens.push(token);
        self.score += f64::from(probability).ln();
    }

    fn ended(&self, stops: &[Vec<u32>]) -> bool {
        stops.iter().any(|stop| self.tokens.ends_with(stop))
    }
}
