//! Speculative decoding without a second model: guesses from the text itself are checked in one pass.
//!
//! usage: speculate [--ngram N] [--draft K] [--max-tokens M] [--plain] [--ids] PROMPT
//!
//! Where the last N tokens (3), or fewer, stood before, what followed them then is guessed to follow again, K tokens (8).
//! One pass computes the guesses behind what is known and gives the likeliest token behind each: a guess is right where
//! it is the token that the model gives behind all before it. What is wrong is cut off the KV pages and written over.
//! A row's numbers depend on nothing but the tokens before it, so the tokens are those of plain greedy decoding, bit for
//! bit, in fewer passes where a text repeats itself. `--plain` guesses nothing, for comparison. Returns the text; sends
//! how many tokens and passes it took, and with `--ids` the tokens.

mod draft;

use inferlet::api::{self, forward, runtime};
use inferlet::wstd::io::AsyncPollable;
use inferlet::{AnyhowContext, Args, Resource, Result, ensure, get_auto_model, send};

const PAGE: u32 = Resource::KvPage as u32;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let ngram: usize = args.opt_value_from_str("--ngram")?.unwrap_or(3);
    let draft: usize = args.opt_value_from_str("--draft")?.unwrap_or(8);
    let max_tokens: usize = args.opt_value_from_str("--max-tokens")?.unwrap_or(128);
    let (plain, ids) = (args.contains("--plain"), args.contains("--ids"));
    let prompt: String = args.free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    ensure!(ngram > 0 && draft > 0 && max_tokens > 0, "--ngram, --draft and --max-tokens must be at least 1");

    let stops = get_auto_model().eos_tokens();
    let mut text = Text::new()?;
    text.tokens = text.tokenizer.tokenize(&prompt);
    let begin = text.tokens.len();
    ensure!(begin > 0, "there is no PROMPT");

    let (mut passes, mut guessed, mut right) = (0, 0, 0);
    let mut ended = false;
    while !ended && text.tokens.len() < begin + max_tokens {
        // The pass gives one token more than it is asked to check.
        let room = begin + max_tokens - text.tokens.len() - 1;
        let guess = if plain { Vec::new() } else { draft::draft(&text.tokens, ngram, draft.min(room)) };
        let next = text.check(&guess).await?;
        passes += 1;
        guessed += guess.len();
        right += next.len() - 1;
        for token in next {
            text.tokens.push(token);
            ended = stops.iter().any(|stop| text.tokens[begin..].ends_with(stop));
            if ended {
                break;
            }
        }
    }
    let made = &text.tokens[begin..];
    send(&format!("{} tokens in {passes} passes; {right} of {guessed} guesses were right\n", made.len()));
    if ids {
        send(&format!("{}\n", made.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")));
    }
    Ok(text.tokenizer.detokenize(made))
}

/// Tokens, and KV pages that hold the first of them. By hand: the SDK's `Context` cannot ask for several outputs.
struct Text {
    queue: api::Queue,
    tokenizer: api::tokenize::Tokenizer,
    page_size: usize,
    pages: Vec<u32>,
    tokens: Vec<u32>,
    /// How many of `tokens` are computed; at least one is not.
    computed: usize,
}

impl Text {
    fn new() -> Result<Text> {
        let model = runtime::get_model(&get_auto_model().get_name()).context("the model is gone")?;
        Ok(Text {
            queue: model.create_queue(),
            tokenizer: api::tokenize::get_tokenizer(&model),
            page_size: model.get_kv_page_size() as usize,
            pages: Vec::new(),
            tokens: Vec::new(),
            computed: 0,
        })
    }

    /// One pass: computes the tokens that are not yet, and `guess` behind them. Returns the guesses that are right and the
    /// likeliest token behind the last of these: one token at least.
    async fn check(&mut self, guess: &[u32]) -> Result<Vec<u32>> {
        let input = [&self.tokens[self.computed..], guess].concat();
        let len = self.computed + input.len();
        self.resize(len);
        let positions: Vec<u32> = (self.computed as u32..len as u32).collect();
        // Behind the last token that is known, and behind each guess.
        let outputs: Vec<u32> = ((input.len() - guess.len() - 1) as u32..input.len() as u32).collect();

        let pass = forward::create_forward_pass(&self.queue);
        forward::input_tokens(&pass, &input, &positions);
        forward::kv_cache(&pass, &self.pages, ((len - 1) % self.page_size + 1) as u32);
        forward::output_tokens(&pass, &outputs, 0.0);
        let result = pass.execute().context("a pass with an output has a result")?;
        AsyncPollable::new(result.pollable()).wait_for().await;
        let mut likeliest = result.get_tokens().context("no tokens")?;

        let right = guess.iter().zip(&likeliest).take_while(|(guess, token)| guess == token).count();
        likeliest.truncate(right + 1);
        self.computed = self.tokens.len() + right;
        self.resize(self.computed);
        Ok(likeliest)
    }

    /// Holds as many pages as `len` tokens need. What stands behind them in the last page the next pass writes over.
    fn resize(&mut self, len: usize) {
        let need = len.div_ceil(self.page_size);
        if need > self.pages.len() {
            let more = (need - self.pages.len()) as u32;
            self.pages.extend(api::allocate_resources(&self.queue, PAGE, more));
        } else if need < self.pages.len() {
            api::deallocate_resources(&self.queue, PAGE, &self.pages.split_off(need));
        }
    }
}
