//! The main job: programs talk with the real model, one and many at a time.

mod support;

use std::time::{Duration, Instant};
use support::client::{Client, Event};
use support::{Folder, Server};

const FRANCE: &str = "Tell me the capital of France.";

#[test]
fn an_answer_streams_and_is_right() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let ended = client.run("chat", &["--max-tokens", "32", "--user", FRANCE]).await;
        assert_eq!(ended.event, 1, "{ended:?}");
        assert!(ended.text.contains("Paris"), "{ended:?}");
        assert!(ended.messages.len() > 3, "it streams: {ended:?}");
        assert_eq!(ended.messages.concat(), ended.text);
        assert!(!ended.text.contains("<|"), "no special token reaches the reader: {ended:?}");
    });
}

#[test]
fn the_first_thread_streams_a_token() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let ended = client.run("token", &[]).await;
        assert_eq!((ended.event, ended.text.as_str(), ended.messages.len()), (1, "", 1), "{ended:?}");
    });
}

/// The SDK renders every message alone, and the second turn builds on the pages of the first. What comes out must be
/// what the whole conversation gives in one piece: one system block, no turn lost, the same numbers.
#[test]
fn a_second_turn_continues_the_first() {
    const SECOND: &str = "Name a river that flows through it.";
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let turns = ["--system", "Be brief.", "--max-tokens", "40", "--user", FRANCE, "--user", SECOND];
        let ended = client.run("chat", &turns).await;
        assert_eq!(ended.event, 1, "{ended:?}");
        let said = ended.messages.concat();
        let first =
            said.strip_suffix(&ended.text).and_then(|said| said.strip_suffix("\n\n")).expect("two answers");

        let whole = format!(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n\
             {first}<|im_end|>\n<|im_start|>user\n{SECOND}<|im_end|>\n<|im_start|>assistant\n"
        );
        let again = client.run("completion", &["--max-tokens", "40", &whole]).await;
        assert_eq!(again.event, 1, "{again:?}");
        assert_eq!(again.text.strip_suffix("<|im_end|>").unwrap_or(&again.text), ended.text);
    });
}

#[test]
fn every_sampler_of_the_sdk_works() {
    let server = Server::open_with(&["--seed", "7"]);
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for options in [
            &["--temperature", "0.8"][..],
            &["--temperature", "0.8", "--top-p", "0.9"],
            &["--temperature", "0.8", "--top-k", "20"],
            &["--temperature", "0.8", "--top-k", "20", "--top-p", "0.9"],
        ] {
            let arguments = [options, &["--max-tokens", "6", "--user", FRANCE]].concat();
            let ended = client.run("chat", &arguments).await;
            assert_eq!(ended.event, 1, "{options:?}: {ended:?}");
            assert!(!ended.text.is_empty(), "{options:?}: {ended:?}");
        }
    });
}

#[test]
fn wrong_options_are_a_sentence() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for arguments in [
            &["--temprature", "1", "--user", "hi"][..],
            &["--max-tokens", "many", "--user", "hi"],
            &["--usr"],
            &[],
        ] {
            let ended = client.run("chat", arguments).await;
            assert_eq!(ended.event, 3, "{arguments:?}: {ended:?}");
            assert!(ended.text.starts_with("Runtime error: "), "{arguments:?}: {ended:?}");
            assert!(!ended.text.contains('\n'), "{arguments:?}: {ended:?}");
        }
    });
}

/// 64 at once: all finish, none starves, and each says exactly what it says alone, because a row's numbers do not
/// depend on the rows beside it.
#[test]
fn sixty_four_at_once() {
    const INSTANCES: usize = 64;
    const PROMPTS: [&str; 4] =
        ["The capital of France is", "Water boils at", "Once upon a time", "def add(a, b):"];
    const OPTIONS: [&str; 2] = ["--max-tokens", "8"];
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let mut alone = Vec::new();
        for prompt in PROMPTS {
            let ended = client.run("completion", &[OPTIONS.as_slice(), &[prompt]].concat()).await;
            assert_eq!(ended.event, 1, "{ended:?}");
            alone.push(ended.text);
        }

        let mut launched = Vec::new();
        for number in 0..INSTANCES {
            let prompt = PROMPTS[number % PROMPTS.len()];
            let instance = client.launch("completion", &[OPTIONS.as_slice(), &[prompt]].concat()).await;
            launched.push((instance, Instant::now()));
        }
        let mut took: Vec<Duration> = Vec::new();
        let mut open: Vec<usize> = (0..INSTANCES).collect();
        while !open.is_empty() {
            let frame = client.frame_within(support::PATIENCE).await.expect("somebody ends");
            let from = frame.instance_id.expect("only instances speak now");
            let number = launched.iter().position(|(id, _)| *id == from).expect("one of ours");
            assert_eq!(frame.event, Some(1), "{:?}", frame.message);
            assert_eq!(frame.message.as_ref(), Some(&alone[number % PROMPTS.len()]), "instance {number}");
            took.push(launched[number].1.elapsed());
            open.retain(|other| *other != number);
        }
        took.sort();
        let (median, slowest) = (took[INSTANCES / 2], took[INSTANCES - 1]);
        println!("{INSTANCES} instances: median {median:?}, slowest {slowest:?}");
        assert!(slowest <= 3 * median, "one starved: median {median:?}, slowest {slowest:?}");
    });
}

/// The same program and seed give the same tokens, drawn at random, on one thread or two, with the prompt in one chunk or
/// in many, alone or beside fifteen others.
#[test]
fn a_seed_gives_the_same_tokens_whatever_runs_beside_it() {
    let prompt = "One two three four five six seven eight nine ten eleven twelve. ".repeat(4);
    let arguments = ["--temperature", "1.0", "--top-p", "0.95", "--max-tokens", "24", &prompt];
    let folder = Folder::new();
    let mut said: Option<String> = None;
    for (threads, batch_tokens) in [(1, 256), (2, 256), (2, 13)] {
        let config = folder.path(&format!("{threads}-{batch_tokens}.toml"));
        // Else the second time most of the prompt would be found computed.
        let text =
            format!("[engine]\nthreads = {threads}\nbatch_tokens = {batch_tokens}\nprefix_reuse = false\n");
        std::fs::write(&config, text).expect("the folder can be written to");
        let config = config.to_str().expect("UTF-8");
        let server = Server::open_with(&["--seed", "7", "--config", config]);
        let what = format!("{threads} threads, batches of {batch_tokens}");
        smol::block_on(async {
            let mut client = Client::connect(&server).await;
            let alone = client.run("completion", &arguments).await;
            assert_eq!(alone.event, 1, "{what}: {alone:?}");
            assert_eq!(said.get_or_insert_with(|| alone.text.clone()), &alone.text, "{what}");
            let mut others = Vec::new();
            for number in 0..15 {
                let other = format!("Number {number} says:");
                let options = ["--temperature", "0.7", "--max-tokens", "40", &other];
                others.push(client.launch("completion", &options).await);
            }
            let own = client.launch("completion", &arguments).await;
            let beside = client.end(&own).await;
            assert_eq!(said.as_deref(), Some(beside.text.as_str()), "{what}, beside fifteen");
        });
    }
}

/// What one client does to its own instance reaches nobody else's.
#[test]
fn a_terminated_chat_stops_and_the_one_beside_it_goes_on() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let long = client.launch("chat", &["--max-tokens", "2000", "--user", "Count to one thousand."]).await;
        let Event::Message(_) = client.event(&long).await else { panic!("it speaks first") };
        client.terminate(&long).await;
        let ended = client.end(&long).await;
        assert_eq!((ended.event, ended.text.as_str()), (2, "Signal termination"));
        let ended = client.run("chat", &["--max-tokens", "16", "--user", FRANCE]).await;
        assert!(ended.text.contains("Paris"), "{ended:?}");
    });
}
