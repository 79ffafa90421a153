//! A model that writes what a grammar allows.
//!
//! Owns: the passes. A distribution of 1,024 entries, as many as the server gives, offers the next token; what needs no
//! choice is computed along with it. Never: what is allowed, which the grammar says.

use grammar::{Grammar, Random, Vocabulary, Writer};
use inferlet::api::{self, forward, runtime};
use inferlet::wstd::io::AsyncPollable;
use inferlet::{AnyhowContext, Model, Resource, Result, anyhow};

const PAGE: u32 = Resource::KvPage as u32;

/// The most that a server gives.
const ENTRIES: u32 = 1024;

pub struct Choice {
    /// 0: the likeliest token that is allowed.
    pub temperature: f32,
    /// Only the likeliest tokens that make up this much together, unless none of them is allowed.
    pub top_p: f32,
    pub seed: u64,
    pub max_tokens: u32,
}

/// The vocabulary of a model.
pub fn vocabulary(model: &Model) -> Vocabulary {
    let (ids, texts) = model.get_tokenizer().get_vocabs();
    Vocabulary::new(&ids, &texts)
}

/// Writes behind `prompt` what `grammar` allows. `wrote` gets the tokens as they come, and says
/// whether it shall go on.
pub async fn write(
    model: &Model,
    prompt: &[u32],
    grammar: &Grammar,
    vocabulary: &Vocabulary,
    choice: &Choice,
    mut wrote: impl AsyncFnMut(&[u32]) -> bool,
) -> Result<()> {
    let stops: Vec<u32> =
        model.eos_tokens().iter().filter(|stop| stop.len() == 1).map(|stop| stop[0]).collect();
    let mut writer = Writer::new(grammar, vocabulary, choice.max_tokens).map_err(|why| anyhow!(why))?;
    let mut random = Random::new(choice.seed);
    let mut passes = Passes::new(model)?;
    let mut due = prompt.to_vec();
    loop {
        let forced = writer.forced();
        if !forced.is_empty() && !wrote(&forced).await {
            return Ok(());
        }
        due.extend(forced);
        if writer.ended() {
            return Ok(());
        }
        // At 0 a distribution has one entry, and that may not be allowed.
        let temperature = if choice.temperature == 0.0 { 1.0 } else { choice.temperature };
        let (ids, probabilities) = passes.next(&due, temperature).await?;
        let order =
            if choice.temperature == 0.0 { ids } else { random.order(&ids, &probabilities, choice.top_p) };
        let Some(token) = writer.choose(order, &stops) else { return Ok(()) };
        if !wrote(&[token]).await {
            return Ok(());
        }
        due = vec![token];
    }
}

/// Tokens in KV pages. By hand: the SDK's `Context` asks for 32 entries of a distribution, never for more.
pub struct Passes {
    queue: api::Queue,
    page_size: usize,
    pages: Vec<u32>,
    len: usize,
}

impl Passes {
    pub fn new(model: &Model) -> Result<Passes> {
        let model = runtime::get_model(&model.get_name()).context("the model is gone")?;
        let page_size = model.get_kv_page_size() as usize;
        Ok(Passes { queue: model.create_queue(), page_size, pages: Vec::new(), len: 0 })
    }

    /// What may come behind these tokens, the likeliest first.
    pub async fn next(&mut self, tokens: &[u32], temperature: f32) -> Result<(Vec<u32>, Vec<f32>)> {
        let positions: Vec<u32> = (self.len as u32..(self.len + tokens.len()) as u32).collect();
        self.len += tokens.len();
        let more = self.len.div_ceil(self.page_size) - self.pages.len();
        self.pages.extend(api::allocate_resources(&self.queue, PAGE, more as u32));

        let pass = forward::create_forward_pass(&self.queue);
        forward::input_tokens(&pass, tokens, &positions);
        forward::kv_cache(&pass, &self.pages, ((self.len - 1) % self.page_size + 1) as u32);
        forward::output_distributions(&pass, &[tokens.len() as u32 - 1], temperature, Some(ENTRIES));
        let result = pass.execute().context("a pass with an output has a result")?;
        AsyncPollable::new(result.pollable()).wait_for().await;
        result.get_distributions().and_then(|mut all| all.pop()).context("no distribution")
    }
}

impl Drop for Passes {
    fn drop(&mut self) {
        api::deallocate_resources(&self.queue, PAGE, &self.pages);
    }
}
