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
use stops::Stops;

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
