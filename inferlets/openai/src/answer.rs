//! One answer: from tokens to pieces of text, to whoever waits for them.
//!
//! Owns: the model's part of a request. Never: HTTP.

use super::request::{Prompt, Request, Role};
use super::stops::Stops;
use super::stream::TextStream;
use constrain::{Choice, Passes};
use grammar::{Grammar, Random, Vocabulary};
use inferlet::wasi::random::random::get_random_u64;
use inferlet::{AnyhowContext, ChatFormatter, Context, Model, Result, Sampler};

/// What an answer took and how it ended.
pub struct Said {
    pub tokens: usize,
    /// Whether the model or a stop string ended it, not the number of tokens.
    pub stopped: bool,
}

/// The request as tokens.
pub fn prompt(model: &Model, prompt: &Prompt) -> Vec<u32> {
    let tokenizer = model.get_tokenizer();
    match prompt {
        Prompt::Text(text) => tokenizer.tokenize(text),
        Prompt::Chat(messages) => {
            let mut chat = ChatFormatter::new();
            for (role, text) in messages {
                match role {
                    Role::System => chat.system(text),
                    Role::User => chat.user(text),
                    Role::Assistant => chat.assistant(text),
                }
            }
            tokenizer.tokenize(&chat.render(&model.get_prompt_template(), true))
        }
    }
}

/// Generates at most so many tokens behind `prompt`. `show` gets the text as it comes, and says whether anyone waits for
/// more.
pub async fn generate(
    model: &Model,
    prompt: Vec<u32>,
    request: &Request,
    grammar: Option<&(Grammar, Vocabulary)>,
    max_tokens: u32,
    show: impl AsyncFnMut(&str) -> bool,
) -> Result<Said> {
    let tokenizer = model.get_tokenizer();
    let decode = |tokens: &[u32]| tokenizer.detokenize(tokens);
    let mut speech = Speech {
        text: TextStream::new(decode),
        stops: Stops::new(request.stops.clone()),
        said: Said { tokens: 0, stopped: false },
        show,
    };
    if let Some((grammar, vocabulary)) = grammar {
        let seed = request.seed.unwrap_or_else(get_random_u64);
        let choice = Choice { temperature: request.temperature, top_p: request.top_p, seed, max_tokens };
        let mut goes_on = true;
        constrain::write(model, &prompt, grammar, vocabulary, &choice, async |tokens| {
            for &token in tokens {
                goes_on = goes_on && speech.push(token).await;
            }
            goes_on
        })
        .await?;
        // It ends where the schema ends.
        speech.said.stopped = true;
        return Ok(speech.finish(goes_on).await);
    }

    let ends: Vec<Vec<u32>> = model.eos_tokens();
    let mut next = Next::new(model, prompt, request)?;
    let mut goes_on = true;
    while goes_on && speech.said.tokens < max_tokens as usize {
        let token = next.token().await?;
        if ends.iter().any(|end| end[..] == [token]) {
            speech.said.stopped = true;
            break;
        }
        goes_on = speech.push(token).await;
    }
    Ok(speech.finish(goes_on).await)
}

/// Where tokens come from.
enum Next {
    /// The server draws.
    Drawn(Context, Sampler),
    /// A seed draws: the server's draws are its own, so these are made here, from the likeliest 1,024.
    Seeded { passes: Passes, due: Vec<u32>, random: Random, temperature: f32, top_p: f32 },
}

impl Next {
    fn new(model: &Model, prompt: Vec<u32>, request: &Request) -> Result<Next> {
        let (temperature, top_p) = (request.temperature, request.top_p);
        if let Some(seed) = request.seed
            && temperature > 0.0
        {
            let (passes, random) = (Passes::new(model)?, Random::new(seed));
            return Ok(Next::Seeded { passes, due: prompt, random, temperature, top_p });
        }
        let mut context = Context::new(model);
        context.fill_tokens(prompt);
        let whole = top_p >= 1.0;
        let sampler =
            if whole { Sampler::Multinomial { temperature } } else { Sampler::top_p(temperature, top_p) };
        Ok(Next::Drawn(context, sampler))
    }

    async fn token(&mut self) -> Result<u32> {
        match self {
            Next::Drawn(context, sampler) => {
                let token = context.decode_step(sampler).await;
                context.fill_token(token);
                Ok(token)
            }
            Next::Seeded { passes, due, random, temperature, top_p } => {
                let (ids, probabilities) = passes.next(due, *temperature).await?;
                let token = random.draw(&ids, &probabilities, *top_p).context("an empty distribution")?;
                *due = vec![token];
                Ok(token)
            }
        }
    }
}

/// Tokens as pieces of text up to a stop string.
struct Speech<D, S> {
    text: TextStream<D>,
    stops: Stops,
    said: Said,
    show: S,
}

impl<D: Fn(&[u32]) -> String, S: AsyncFnMut(&str) -> bool> Speech<D, S> {
    /// Whether it goes on.
    async fn push(&mut self, token: u32) -> bool {
        self.said.tokens += 1;
        let Some(text) = self.text.push(token) else { return true };
        let (text, stopped) = self.stops.push(&text);
        self.said.stopped |= stopped;
        let wanted = text.is_empty() || (self.show)(&text).await;
        wanted && !stopped
    }

    /// Shows what was held back, if nothing cut it off.
    async fn finish(mut self, goes_on: bool) -> Said {
        if goes_on {
            let (mut text, stopped) = self.stops.push(&self.text.finish().unwrap_or_default());
            if !stopped {
                text += &self.stops.finish();
            }
            self.said.stopped |= stopped;
            if !text.is_empty() {
                (self.show)(&text).await;
            }
        }
        self.said
    }
}
