//! `tartlet serve --openai`: the unmodified `openai` client of PyPI (`openai_client.py` holds the checks, one function each), the
//! parts of the program that need no model, and where its file is looked for.

mod support;

#[allow(dead_code)] // the program uses all of it
#[path = "../inferlets/openai/src/refusal.rs"]
mod refusal;
#[allow(dead_code)]
#[path = "../inferlets/openai/src/request.rs"]
mod request;
#[path = "../inferlets/openai/src/stops.rs"]
mod stops;

use request::{Prompt, Role, read};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};
use stops::Stops;
use support::client::Client;
use support::{Folder, PATIENCE, Server, guest, python, root, small_model, tartlet};

/// Runs one check of `openai_client.py` against this server.
fn check(name: &str, server: &mut Server) {
    let log = server.log();
    let url = log.lines().find_map(|line| line.strip_prefix("openai on ")).expect("it says where");
    let output = Command::new(python())
        .arg(root().join("tests/openai_client.py"))
        .arg(name)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TARTLET_OPENAI", url)
        .output()
        .expect("Python runs");
    server.assert_alive();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {out}\n{err}");
}

macro_rules! checks {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name), &mut Server::open_with(&["--openai", "0"])); })*
    };
}

checks! {
    models
    a_chat_streamed_and_whole
    a_text_goes_on
    stop_strings_end_it
    seeds_repeat_themselves
    mistakes_are_answered_in_its_form
    answers_follow_a_schema
    thirty_two_at_once_all_finish
}

/// A prompt that is longer than what there is room for, or leaves too little of it, is told so in that API's form.
#[test]
fn what_the_context_does_not_hold_is_refused() {
    let folder = Folder::new();
    let config = folder.path("small.toml");
    std::fs::write(&config, "[engine]\nkv_tokens = 256\n").expect("the folder can be written to");
    let mut server = Server::open_with(&["--openai", "0", "--config", config.to_str().expect("UTF-8")]);
    check("what_the_context_does_not_hold_is_refused", &mut server);
}

/// Whoever goes away in the middle of an answer ends it, and its pages are back.
#[test]
fn who_leaves_stops_it() {
    let mut server = Server::open_with(&["--openai", "0"]);
    check("who_leaves_stops_it", &mut server);
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let since = Instant::now();
        loop {
            let status = client.query("model_status", "").await.expect("a status");
            let status: BTreeMap<String, String> = serde_json::from_str(&status).expect("JSON");
            let busy = ["instances.active_count", "resource.0.used"]
                .map(|key| status.iter().find(|(name, _)| name.ends_with(key)).expect("the key").1.clone());
            if busy == ["0", "0"] {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{status:?}");
            smol::Timer::after(Duration::from_millis(20)).await;
        }
    });
    // The log has how each ended: one listed the models, and none of the answers came to its own end.
    let ended = |how: &str| {
        let log = server.log();
        log.lines().filter(|line| line.contains(" ended ") && line.ends_with(how)).count()
    };
    assert_eq!((ended("code=1"), ended("code=3")), (1, 8), "{}", server.log());
}

/// A program that is not there, or is no server, ends the start with a sentence.
#[test]
fn what_cannot_serve_is_said_at_the_start() {
    let folder = Folder::new();
    for (program, said) in [
        (folder.path("none.wasm"), "cannot be read: No such file or directory"),
        (guest("echo"), "it does not export wasi:http/incoming-handler, so it answers no requests."),
        (small_model(), "kquants-00001-of-00003.gguf: "),
    ] {
        let config = folder.path("tartlet.toml");
        let text = format!("[openai]\nport = 0\nprogram = {:?}\n", program.display().to_string());
        std::fs::write(&config, text).expect("the folder can be written to");
        let output = tartlet()
            .args(["serve", "--no-auth", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--state")
            .arg(folder.path("state"))
            .arg("--model")
            .arg(small_model())
            .output()
            .expect("the binary runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{error}");
        assert!(error.contains("The program of --openai, ") && error.contains(said), "{error}");
    }
}

fn body(more: Value) -> Vec<u8> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x"});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body.to_string().into_bytes()
}

#[test]
fn a_request_is_read_as_that_api_has_it() {
    let plain = read(&body(json!({})), true).expect("a good request");
    assert_eq!((plain.temperature, plain.top_p, plain.max_tokens, plain.seed), (1.0, 1.0, None, None));
    assert!(!plain.stream && !plain.usage_chunk && plain.stops.is_empty() && plain.schema.is_none());
    let full = json!({
        "messages": [{"role": "developer", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
        "stream": true, "stream_options": {"include_usage": true}, "temperature": 0, "top_p": 0.5, "seed": -1,
        "stop": ["x", "y"], "max_tokens": 9, "max_completion_tokens": 7, "n": 1, "logprobs": false, "user": "u",
        "response_format": {"type": "json_object"}, "tools": [], "presence_penalty": 0.0, "frequency_penalty": null,
    });
    let full = read(&body(full), true).expect("a good request");
    assert_eq!(full.prompt, Prompt::Chat(vec![(Role::System, "a".into()), (Role::Assistant, "b".into())]));
    assert_eq!(
        (full.temperature, full.top_p, full.max_tokens, full.seed),
        (0.0, 0.5, Some(7), Some(u64::MAX))
    );
    assert!(full.stream && full.usage_chunk && full.stops == ["x", "y"]);
    assert_eq!(full.schema, Some(json!({"type": "object"})));
    for prompt in [json!("once"), json!(["once"])] {
        let text = read(&body(json!({"prompt": prompt, "stop": "z"})), false).expect("a good request");
        assert_eq!((text.prompt, text.stops), (Prompt::Text("once".into()), vec!["z".to_owned()]));
    }
}

#[test]
fn what_is_wrong_in_a_request_is_named() {
    for (more, param) in [
        (json!({"model": 3}), "model"),
        (json!({"model": null}), "model"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": 1}), "stream_options"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_completion_tokens": 1.5}), "max_completion_tokens"),
        (json!({"seed": "s"}), "seed"),
        (json!({"stop": [1]}), "stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"n": 2}), "n"),
        (json!({"tools": [{}]}), "tools"),
        (json!({"logit_bias": {"3": 1}}), "logit_bias"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
    ] {
        let refusal = read(&body(more.clone()), true).expect_err("a wrong request");
        assert_eq!((refusal.status, refusal.param.as_deref()), (400, Some(param)), "{more}");
        assert_eq!(refusal.to_json()["error"]["param"], param, "{more}");
    }
    for prompt in [json!(null), json!(""), json!([]), json!(["a", "b"]), json!([1, 2])] {
        let refusal = read(&body(json!({"prompt": prompt})), false).expect_err("a wrong prompt");
        assert_eq!(refusal.param.as_deref(), Some("prompt"), "{prompt}");
    }
}

/// However a text is cut into pieces, what is shown is what stands before the first stop, and no more is held back than may
/// still become one.
#[test]
fn stops_are_found_across_pieces() {
    let cases: [(&str, &[&str], &str, bool); 7] = [
        ("one two three", &["two"], "one ", true),
        ("one two three", &["three", "two"], "one ", true),
        ("aaab", &["aab"], "a", true),
        ("ababac", &["abac"], "ab", true),
        ("né à Paris", &["à P"], "né ", true),
        ("nothing", &["ingo", "\n"], "nothing", false),
        ("nothing", &[], "nothing", false),
    ];
    for (text, stops, shown, stopped) in cases {
        for len in 1..=text.len() {
            let mut filter = Stops::new(stops.iter().map(|&stop| stop.to_owned()).collect());
            let (mut out, mut ended, mut given) = (String::new(), false, 0);
            let longest = stops.iter().map(|stop| stop.len()).max().unwrap_or(1);
            let letters: Vec<char> = text.chars().collect();
            for piece in letters.chunks(len) {
                let piece: String = piece.iter().collect();
                let (more, stop) = filter.push(&piece);
                given += piece.len();
                out += &more;
                ended = stop;
                if ended {
                    break;
                }
                assert!(given - out.len() < longest, "{text:?} in pieces of {len}: {out:?} is shown");
            }
            if !ended {
                out += &filter.finish();
            }
            assert_eq!((out.as_str(), ended), (shown, stopped), "{text:?} in pieces of {len}");
        }
    }
    let mut filter = Stops::new(vec!["stop".to_owned()]);
    assert_eq!(filter.push("a sto"), ("a ".to_owned(), false));
    assert_eq!(filter.push("ne"), ("stone".to_owned(), false));
}
