//! Prefixes that were computed once, seen from outside with the real model: nobody can tell but by the work, and nobody
//! gets at what another subject has asked.

mod support;

use support::client::{Client, Ended};
use support::{Server, mint};

/// Some 60 tokens, which is three pages and a part.
const STORY: &str = "Once upon a time there was a small town by the sea, and in it lived an old baker who knew every child by \
                     name. Each morning, long before the sun came up, he lit the fire in his oven and";

async fn completion(client: &mut Client, prompt: &str) -> String {
    let Ended { event, text, .. } = client.run("completion", &["--max-tokens", "24", prompt]).await;
    assert_eq!(event, 1, "{prompt:?}: {text}");
    text
}

fn configured(engine: &str) -> Server {
    Server::configured(&format!("log = \"debug\"\n[engine]\n{engine}"))
}

/// For each instance that has ended, in the order launched: its rows that did not have to run.
fn known(server: &Server, instances: usize) -> Vec<u32> {
    let rows = |line: &str| -> u32 {
        let (_, rows) = line.split_once("rows=").expect("how many");
        rows.split(' ').next().and_then(|rows| rows.trim().parse().ok()).expect("a number")
    };
    let sum = |life: &String| life.lines().filter(|line| line.contains("known prefix")).map(rows).sum();
    server.lives(instances).iter().map(sum).collect()
}

#[test]
fn what_was_computed_before_is_not_computed_again_and_nothing_else_is_different() {
    let with = configured("");
    let without = configured("prefix_reuse = false");
    smol::block_on(async {
        let (mut client, mut other) = (Client::connect(&with).await, Client::connect(&without).await);
        let first = completion(&mut client, STORY).await;
        // As a chat goes on: what was asked, what was answered, what is asked next.
        let longer = format!("{STORY}{first} And then");
        for prompt in [STORY, &longer, &STORY[..STORY.len() / 2], &STORY[4..]] {
            assert_eq!(
                completion(&mut client, prompt).await,
                completion(&mut other, prompt).await,
                "{prompt:?}"
            );
        }
    });
    let [none, again, longer, shorter, different] = known(&with, 5)[..] else { panic!("five instances ran") };
    assert_eq!((none, different), (0, 0));
    assert!(again >= 32 && again % 16 == 0, "{again} rows of the same prompt");
    assert!(longer > again && longer % 16 == 0, "{longer} rows, of them of what was generated, and {again}");
    assert!(shorter >= 16 && shorter < again, "{shorter} rows of its half");
    assert_eq!(known(&without, 4), [0; 4]);
}

/// How fast an answer comes must not tell one subject what another has asked, unless it is marked as public.
#[test]
fn subjects_share_public_prefixes_and_nothing_else() {
    let server = Server::guarded();
    let public = server.folder.path("public.txt");
    std::fs::write(&public, STORY).expect("the folder can be written to");
    let config = server.folder.path("tartlet.toml");
    let text = "log = \"debug\"\n[model]\npublic_prefixes = [\"public.txt\"]";
    std::fs::write(&config, text).expect("the folder can be written to");
    let key = server.key();
    let public_key = format!("{}.pub", key.display());
    let server = server.restart(&["--public-key", &public_key, "--config", config.to_str().expect("UTF-8")]);
    smol::block_on(async {
        let secret = format!("My secret. {STORY}");
        let tokens = ["a", "b"].map(|subject| mint(&key, subject, &[]));
        let mut texts = Vec::new();
        for token in &tokens {
            let mut client = Client::connect_to(&server.url, Some(token)).await;
            for prompt in [STORY, &secret, &secret] {
                texts.push(completion(&mut client, prompt).await);
            }
        }
        assert_eq!(texts[..3], texts[3..]);
    });
    let [a, a_secret, a_again, b, b_secret, b_again] = known(&server, 6)[..] else {
        panic!("six instances ran")
    };
    assert_eq!((a, a_secret, b_secret), (0, 0, 0), "nobody had computed this for them");
    assert!(a_again >= 32 && b_again == a_again && b >= 32, "{a_again}, {b_again} and of the public {b}");
}

/// What is kept for nobody in particular is in nobody's way.
#[test]
fn kept_pages_go_when_pages_are_short() {
    let server = configured("kv_tokens = 256");
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let first = completion(&mut client, STORY).await;
        for number in 0..8 {
            // Some 190 tokens, which fills most of the pool.
            let words = format!("{number} ").repeat(80);
            completion(&mut client, &words).await;
        }
        assert_eq!(completion(&mut client, STORY).await, first);
        let status = client.query("model_status", "").await.expect("a status");
        assert!(status.contains("resource.0.available\":\"16\""), "all pages can be had: {status}");
    });
    let known = known(&server, 10);
    assert_eq!(known[9], 0, "the story was given up long ago: {known:?}");
}
