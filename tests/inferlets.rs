//! What each of our example programs is for, seen from outside with the real model: a tree search, a shared prefix, a
//! beam search, an attention sink, guesses that are checked, instances that talk.

mod support;

use std::time::{Duration, Instant};
use support::Server;
use support::client::{Client, Ended, Event};

const STORY: &str = "Once upon a time";

/// Runs a program to a good end.
async fn run(client: &mut Client, guest: &str, arguments: &[&str]) -> Ended {
    let ended = client.run(guest, arguments).await;
    assert_eq!(ended.event, 1, "{guest} {arguments:?}: {ended:?}");
    ended
}

/// What the model says at temperature 0.
async fn greedy(client: &mut Client, max_tokens: &str, prompt: &str) -> String {
    run(client, "completion", &["--max-tokens", max_tokens, prompt]).await.text
}

/// Lines of a number and a text.
fn lines(text: &str) -> Vec<(f64, &str)> {
    let parts = text.lines().map(|line| line.split_once(' ').expect("a number and a text"));
    parts.map(|(number, text)| (number.parse().expect("a number"), text)).collect()
}

/// How many batches the engine ran between the launch and the end of each instance, one instance at a time.
fn batches(server: &Server, instances: usize) -> Vec<usize> {
    let count = |life: &String| life.lines().filter(|line| line.contains(" batch sequences=")).count();
    server.lives(instances).iter().map(count).collect()
}

/// The branches of a tree share batches, and what comes of it is what comes of one after the other.
#[test]
fn branches_share_batches() {
    const WIDE: [&str; 5] = ["--branches", "8", "--tokens", "12", STORY];
    const DEEP: [&str; 7] = ["--branches", "3", "--depth", "2", "--tokens", "6", STORY];
    let server = Server::configured("log = \"trace\"");
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (arguments, paths) in [(&WIDE[..], 8), (&DEEP, 9)] {
            let together = run(&mut client, "fork", arguments).await;
            let serial = run(&mut client, "fork", &[&["--serial"], arguments].concat()).await;
            assert_eq!(together.text, serial.text, "{arguments:?}");
            let paths_found = lines(&together.text);
            assert_eq!(paths_found.len(), paths, "{together:?}");
            assert!(paths_found.is_sorted_by(|a, b| a.0 >= b.0 && a.1 != b.1), "{together:?}");
        }
        let alone = run(&mut client, "fork", &["--branches", "1", "--tokens", "12", STORY]).await;
        assert_eq!(lines(&alone.text)[0].1, format!("{:?}", greedy(&mut client, "12", STORY).await));
    });
    let [wide, wide_serial, deep, deep_serial, ..] = batches(&server, 6)[..] else {
        panic!("six instances ran")
    };
    println!(
        "batches: {wide} of 8 branches together, {wide_serial} one after the other; {deep}, {deep_serial}"
    );
    // The first pass, then eleven of each of eight branches.
    assert!(wide_serial > 8 * 11 && 2 * wide <= wide_serial, "{wide} and {wide_serial}");
    assert!(2 * deep <= deep_serial, "{deep} and {deep_serial}");
}

/// Pages outlive who exported them; who imports them gets the numbers that recomputing gives, and leaves them alone.
#[test]
fn an_imported_prefix_gives_what_recomputing_gives() {
    const TEXT: &str = " and then the old king said";
    for kv_cache in ["f32", "f16", "q8"] {
        let server = Server::configured(&format!("[engine]\nkv_cache = \"{kv_cache}\"\n"));
        smol::block_on(async {
            // Less than a page, a page but one, a whole one, one more, some.
            for tokens in [1, 15, 16, 17, 70] {
                let name = &format!("{tokens} words");
                let maker = {
                    let mut client = Client::connect(&server).await;
                    run(&mut client, "prefix", &["--export", name, "the ".repeat(tokens).trim_end()]).await
                };
                assert_eq!(maker.text, format!("{name}: {tokens} tokens in {} pages", tokens.div_ceil(16)));

                let mut client = Client::connect(&server).await;
                let recomputed = run(&mut client, "prefix", &["--recompute", name, TEXT]).await.text;
                let best = lines(&recomputed);
                assert!(best.len() == 32 && best.is_sorted_by(|a, b| a.0 >= b.0), "{recomputed}");
                let mut importers = Vec::new();
                for text in [TEXT, "!", TEXT, TEXT] {
                    importers.push((text, client.launch("prefix", &["--import", name, text]).await));
                }
                for (text, importer) in importers {
                    let ended = client.end(&importer).await;
                    assert_eq!(ended.event, 1, "{name} of {kv_cache}: {ended:?}");
                    if text == TEXT {
                        // Not only within 1e-4: a row's bits depend on tokens, positions and mask alone.
                        assert_eq!(ended.text, recomputed, "{name} of {kv_cache}");
                    }
                }

                let released = run(&mut client, "prefix", &["--release", name]).await;
                assert_eq!(released.text, format!("{name} is released"));
                let gone = client.run("prefix", &["--import", name, TEXT]).await;
                assert_eq!(gone.event, 3, "{gone:?}");
                assert_eq!(gone.text, format!("Runtime error: there is no prefix {name}"));
            }
            // An instance's last event may come before its pages are back.
            let (mut client, since) = (Client::connect(&server).await, Instant::now());
            while pages(&mut client).await != (0, 0) {
                assert!(
                    since.elapsed() < support::PATIENCE,
                    "{:?} left of {kv_cache}",
                    pages(&mut client).await
                );
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        });
    }
}

/// KV pages in use, and exported names.
async fn pages(client: &mut Client) -> (usize, usize) {
    let status = client.query("model_status", "").await.expect("a status");
    let status: std::collections::BTreeMap<String, String> = serde_json::from_str(&status).expect("JSON");
    let get = |key: &str| {
        let (_, value) = status.iter().find(|(name, _)| name.ends_with(key)).expect("the key");
        value.parse().expect("a number")
    };
    (get("resource.0.used"), get("resource.0.exported_count"))
}

/// One beam is greedy. A few find texts at least as likely; no law says so, but these prompts do. Of two tokens, eight
/// beams find what a tree of eight branches finds.
#[test]
fn more_beams_find_likelier_texts() {
    const YES: &str = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n";
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for prompt in [STORY, "The capital of France is", "Water boils at", "def add(a, b):", YES] {
            let arguments = |width| ["--width", width, "--max-tokens", "16", prompt];
            let one = run(&mut client, "beam", &arguments("1")).await.text;
            let [(greedy_score, text)] = lines(&one)[..] else { panic!("one beam, one text: {one}") };
            assert_eq!(text, format!("{:?}", greedy(&mut client, "16", prompt).await));
            for width in ["4", "8"] {
                let found = run(&mut client, "beam", &arguments(width)).await.text;
                let found = lines(&found);
                assert_eq!(found.len().to_string(), width, "{found:?}");
                assert!(found.is_sorted_by(|a, b| a.0 >= b.0 && a.1 != b.1), "{found:?}");
                assert!(found[0].0 >= greedy_score, "{width} beams: {} and {greedy_score}", found[0].0);
                println!("{prompt:?}: {width} beams {}, greedy {greedy_score}", found[0].0);
            }
            let beam = run(&mut client, "beam", &["--width", "8", "--max-tokens", "2", prompt]).await.text;
            let tree = run(&mut client, "fork", &["--branches", "8", "--tokens", "2", prompt]).await.text;
            assert_eq!(lines(&beam)[0], lines(&tree)[0]);
        }
    });
}

/// Four windows of text with a window's pages; and while all is in the window, nothing is different.
#[test]
fn a_sink_goes_on_with_bounded_pages() {
    // The sink's page, four that the rest of a window fills, and one more where they begin and end within pages.
    const BOUND: usize = 6;
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let plain = greedy(&mut client, "60", STORY).await;

        let sink = client.launch("sink", &["--sink", "4", "--window", "64", STORY]).await;
        let (mut said, mut most) = (String::new(), 0);
        let report = loop {
            match client.event(&sink).await {
                Event::Message(text) => said += &text,
                Event::Ended(1, report) => break report,
                other => panic!("{other:?}"),
            }
            most = most.max(pages(&mut client).await.0);
        };
        assert_eq!(report, format!("256 tokens behind 4: at most {BOUND} pages, of 17 without dropping"));
        assert!(most <= BOUND, "{most} pages were in use");
        assert!(
            said.starts_with(&plain) && said.len() > 3 * plain.len(),
            "{said:?}, and without a sink {plain:?}"
        );

        let all = run(&mut client, "sink", &["--window", "1000", "--max-tokens", "100", STORY]).await;
        assert_eq!(all.text, "100 tokens behind 4: at most 7 pages, of 7 without dropping");
        assert!(all.messages.concat().starts_with(&plain), "{all:?}");
    });
}

/// Guesses change how many passes it takes, and not one token; neither do pages that a wrong guess was cut off, nor other
/// drafts. A text that repeats itself takes far fewer.
#[test]
fn guesses_save_passes_and_change_no_token() {
    const ROUND: &str = "The cat sat. The cat sat. The cat sat.";
    const CODE: &str = "def add(a, b):\n    return a + b\n\ndef sub(a, b):";
    /// (tokens, passes) of the report, the tokens, and the text.
    async fn speculate(
        client: &mut Client,
        arguments: &[&str],
        prompt: &str,
    ) -> (usize, usize, String, String) {
        let arguments = [&["--ids", "--max-tokens", "64"], arguments, &[prompt]].concat();
        let Ended { messages, text, .. } = run(client, "speculate", &arguments).await;
        let [report, ids] = &messages[..] else { panic!("a report and the tokens: {messages:?}") };
        let words: Vec<&str> = report.split(' ').collect();
        let number = |at: usize| words[at].parse().unwrap_or_else(|_| panic!("{report:?}"));
        assert_eq!(ids.split_whitespace().count(), number(0), "{report:?}");
        (number(0), number(3), ids.clone(), text)
    }
    const USUAL: &[&str] = &[];
    // Long drafts of one token of context are wrong most of the time, across several pages.
    let drafts = [&["--ngram", "1", "--draft", "40"][..], &["--draft", "1"], USUAL];
    for kv_cache in ["f32", "f16", "q8"] {
        let server = Server::configured(&format!("[engine]\nkv_cache = \"{kv_cache}\"\n"));
        smol::block_on(async {
            let mut client = Client::connect(&server).await;
            for prompt in [STORY, "The capital of France is", "Water boils at", ROUND, CODE] {
                let (tokens, passes, plain, text) = speculate(&mut client, &["--plain"], prompt).await;
                assert_eq!(passes, tokens, "{prompt:?}: a pass each");
                assert_eq!(text, greedy(&mut client, "64", prompt).await);
                for draft in drafts {
                    let (_, passes, ids, _) = speculate(&mut client, draft, prompt).await;
                    assert_eq!(ids, plain, "{prompt:?} {draft:?} of {kv_cache}");
                    assert!(passes <= tokens, "{prompt:?} {draft:?}: {passes} passes for {tokens} tokens");
                    println!("{prompt:?} {draft:?} of {kv_cache}: {tokens} tokens in {passes} passes");
                    if draft == USUAL && (prompt == ROUND || prompt == CODE) {
                        assert!(2 * passes < tokens, "{prompt:?}: {passes} passes for {tokens} tokens");
                    }
                }
            }
        });
    }
}

/// The leader hears each worker whole, in order and once, whoever is there first.
#[test]
fn a_swarm_loses_nothing() {
    let server = Server::open_with(&["--seed", "7"]);
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for first in [0, 2, 4] {
            let (mut leader, mut workers) = (String::new(), Vec::new());
            for number in 0..=4 {
                if number == first {
                    let arguments = ["--role", "leader", "--workers", "4", "Name a colour."];
                    leader = client.launch("swarm", &arguments).await;
                } else {
                    let temperature = format!("{}", 0.4 * f64::from(number));
                    let arguments = ["--role", "worker", "--max-tokens", "12", "--temperature", &temperature];
                    workers.push(client.launch("swarm", &arguments).await);
                }
            }
            let mut given = Vec::new();
            for worker in &workers {
                let ended = client.end(worker).await;
                assert_eq!(ended.event, 1, "leader at {first}, seed 7: {ended:?}");
                given.push(format!("{worker} {:?}", ended.text));
            }
            let ended = client.end(&leader).await;
            assert_eq!(ended.event, 1, "leader at {first}, seed 7: {ended:?}");
            let mut heard: Vec<&str> = ended.text.lines().collect();
            heard.sort();
            given.sort();
            assert_eq!(heard, given, "leader at {first}, seed 7");
            println!("leader at {first}, seed 7:\n{}", ended.text);
        }
    });
}
