//! Instances that work together by topics: a leader asks, workers answer token by token, the leader collects.
//!
//! usage: swarm --role leader [--topic NAME] [--workers N] QUESTION
//!        swarm --role worker [--topic NAME] [--temperature T] [--max-tokens N]
//!
//! Start them in any order, on one topic (`swarm`). The leader returns the first N (2) answers, a line each: who gave
//! it, and the text; a worker returns its own. A topic keeps its last 64 posts for a slow subscriber, and posts are
//! numbered: a leader who falls farther behind takes no answer with a gap for a whole one.

use inferlet::api::message::{Subscription, subscribe};
use inferlet::wstd::io::AsyncPollable;
use inferlet::{Args, Context, Result, Sampler, bail, broadcast, ensure, get_auto_model, get_instance_id};
use std::collections::BTreeMap;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let role: String = args.value_from_str("--role")?;
    let topic: String = args.opt_value_from_str("--topic")?.unwrap_or_else(|| "swarm".to_string());
    let workers: usize = args.opt_value_from_str("--workers")?.unwrap_or(2);
    let temperature = args.opt_value_from_str("--temperature")?.unwrap_or(0.0);
    let max_tokens: usize = args.opt_value_from_str("--max-tokens")?.unwrap_or(24);
    let question: Option<String> = args.opt_free_from_str()?;
    let unknown = args.finish();
    ensure!(unknown.is_empty(), "arguments not understood: {unknown:?}");
    match (role.as_str(), question) {
        ("leader", Some(question)) => lead(&topic, workers, &question).await,
        ("worker", None) => work(&topic, &Sampler::Multinomial { temperature }, max_tokens).await,
        _ => bail!("--role is leader, with a question, or worker, without one"),
    }
}

/// Posts of a worker, each behind its id: `ready`; its tokens, numbered from 0; `end`, numbered too.
async fn lead(topic: &str, workers: usize, question: &str) -> Result<String> {
    let posts = subscribe(&format!("{topic}/answers"));
    let ask = || broadcast(&format!("{topic}/question"), question);
    ask(); // reaches the workers that are there already

    let tokenizer = get_auto_model().get_tokenizer();
    let mut coming: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut answers = Vec::new();
    while answers.len() < workers {
        let post = next(&posts).await;
        match post.split(' ').collect::<Vec<_>>()[..] {
            [_, "ready"] => ask(), // it came later than the question; the others look no more
            [worker, number, what] => {
                let answer = coming.entry(worker.to_string()).or_default();
                ensure!(number == answer.len().to_string(), "post {} of {worker} is lost", answer.len());
                match what {
                    "end" => answers.push(format!("{worker} {:?}", tokenizer.detokenize(answer))),
                    token => answer.push(token.parse()?),
                }
            }
            _ => bail!("{post:?} is no post of a worker"),
        }
    }
    Ok(answers.join("\n"))
}

async fn work(topic: &str, sampler: &Sampler, max_tokens: usize) -> Result<String> {
    let question = subscribe(&format!("{topic}/question"));
    let id = get_instance_id();
    let post = |what: String| broadcast(&format!("{topic}/answers"), &format!("{id} {what}"));
    post("ready".to_string()); // reaches a leader that is there already

    let model = get_auto_model();
    let mut context = Context::new(&model);
    context.fill_user(&next(&question).await);
    let stops = model.eos_tokens();
    let mut answer = Vec::new();
    while answer.len() < max_tokens && !stops.iter().any(|stop| answer.ends_with(stop)) {
        let token = context.decode_step(sampler).await;
        context.fill_token(token);
        post(format!("{} {token}", answer.len()));
        answer.push(token);
    }
    post(format!("{} end", answer.len()));
    Ok(context.tokenizer.detokenize(&answer))
}

/// The next post. The SDK's own `subscribe` yields one and hears nothing of what comes before it is called again.
async fn next(subscription: &Subscription) -> String {
    loop {
        if let Some(post) = subscription.get() {
            return post;
        }
        AsyncPollable::new(subscription.pollable()).wait_for().await;
    }
}
