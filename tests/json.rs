//! JSON that follows its schema, always: the grammar alone under noise, and the program `json` with a model of noise and
//! with the real one. What is right is asked of PyPI's `jsonschema`, which shares no line with us.

mod support;

#[allow(dead_code, unused_imports)] // the guest programs use all of it
#[path = "../inferlets/grammar/src/lib.rs"]
mod grammar;

use grammar::{Random, Vocabulary, Writer, compile};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};
use support::client::Client;
use support::{Server, python};

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "additionalProperties": false,
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 20},
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "height": {"type": "number"},
                "married": {"type": ["boolean", "null"]},
                "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 3},
            },
            "required": ["name", "age", "hobbies"]}),
        json!({"enum": ["red", "green", {"r": 1, "g": [2, 3]}, null, -1.5]}),
        json!({"type": "array", "maxItems": 4, "items": {"type": "integer", "exclusiveMinimum": -20, "maximum": 3000}}),
        // A tree: a schema that holds itself.
        json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["value", "next"],
            "properties": {"value": {"const": "π \"quoted\" \\ \u{7}"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "left": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}}}}),
        json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}}, "required": ["kind", "radius"]},
            {"type": "object", "properties": {"kind": {"enum": ["square", "cube"]}, "side": {"type": "integer", "minimum": 1}},
                "required": ["kind", "side"]},
            {"type": "string", "minLength": 3, "maxLength": 3}]}),
        json!({"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}}),
        json!({"type": "object", "properties": {"a": {}, "b": {"allOf": [{"type": "string"}]}}, "required": ["c", "b"]}),
        json!({"type": "integer", "minimum": -7, "maximum": -7}),
        json!({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}),
        json!({"type": "array", "minItems": 3, "maxItems": 5, "items": {"type": "integer", "minimum": 17, "maximum": 2300}}),
        json!({"type": "string", "minLength": 5}),
        json!({"type": "integer", "minimum": -1e300, "maximum": -999_999_999_999_990i64}),
        json!({"type": "array", "items": {"type": "integer", "exclusiveMinimum": 999_999_999_999_000u64, "maximum": u64::MAX}}),
        json!({"oneOf": [{"const": 1}, {"enum": [2, 2.5, "1"]}, {"type": "boolean"}]}),
        json!({"enum": [1, 12, 123, 1234, "1", "12", [1], [1, 2]]}),
        json!({}),
    ]
}

/// Asks `jsonschema` of each pair of a schema and a text.
fn assert_valid(pairs: &[(Value, String)]) {
    assert!(!pairs.is_empty());
    let check = "import json, jsonschema, sys\n\
        def no(constant): raise ValueError(constant + ' is no JSON')\n\
        for number, line in enumerate(sys.stdin):\n\
        \x20   schema, text = json.loads(line)\n\
        \x20   text.encode()\n\
        \x20   try:\n\
        \x20       jsonschema.Draft202012Validator(schema).validate(json.loads(text, parse_constant=no))\n\
        \x20   except Exception as error:\n\
        \x20       sys.exit(f'{number}: {text!r} of {schema}: {error}')\n\
        print(number + 1)\n";
    let mut child = Command::new(python())
        .args(["-c", check])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python runs");
    let lines: String = pairs.iter().map(|(schema, text)| format!("{}\n", json!([schema, text]))).collect();
    // It may end at the first that is wrong, and says which.
    let _ = child.stdin.take().expect("piped").write_all(lines.as_bytes());
    let output = child.wait_with_output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), pairs.len().to_string());
    for (schema, text) in pairs {
        serde_json::from_str::<Value>(text).unwrap_or_else(|error| panic!("{text:?} of {schema}: {error}"));
    }
}

/// Every byte, and tokens that cross all borders there are. Token 300 ends an answer.
fn vocabulary() -> Vocabulary {
    let mut texts: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let more = [
        "\", \"",
        "\": ",
        "\": \"",
        "{\"",
        "\"}",
        "}}",
        "]}",
        "[[",
        ", ",
        "null}",
        "true",
        "fal",
        "12",
        "-3",
        "0.",
        "name\": \"",
        "\\u",
        "\\ud8",
        "\\\"",
        "é",
        "日本",
        "  ",
        "kind\": \"c",
        "value",
        "\"]",
        "999",
    ];
    texts.extend(more.map(|text| text.as_bytes().to_vec()));
    texts.extend([vec![0xe6, 0x97], vec![0xa5, b'"'], vec![0xf0, 0x9f]]);
    let ids: Vec<u32> = (0..texts.len() as u32).collect();
    Vocabulary::new(&ids, &texts)
}

const END: u32 = 300;

/// A text of a schema by noise: each distribution holds a few tokens, mostly none that is allowed.
fn noise(
    schema: &Value,
    vocabulary: &Vocabulary,
    random: &mut Random,
    tokens: u32,
) -> Result<String, String> {
    let grammar = compile(schema, vocabulary)?;
    let mut writer = Writer::new(&grammar, vocabulary, tokens)?;
    let (mut text, mut written) = (Vec::new(), 0);
    while !writer.ended() {
        for id in writer.forced() {
            text.extend_from_slice(vocabulary.text(id));
            written += 1;
        }
        if writer.ended() {
            break;
        }
        let few: Vec<u32> = (0..30).map(|_| (random.unit() * 301.0) as u32).collect();
        let Some(id) = writer.choose(few, &[END]) else { break };
        text.extend_from_slice(vocabulary.text(id));
        written += 1;
    }
    assert!(written <= tokens, "{written} tokens, {tokens} allowed: {schema}");
    Ok(String::from_utf8(text).unwrap_or_else(|error| panic!("{error}: {schema}")))
}

/// Whatever a model offers and however few tokens there are, from the fewest on.
#[test]
fn noise_becomes_what_the_schema_says() {
    const SEED: u64 = 20_261_128;
    let vocabulary = vocabulary();
    let mut random = Random::new(SEED);
    let mut pairs = Vec::new();
    for schema in schemas() {
        let fewest = (0..).find(|&tokens| noise(&schema, &vocabulary, &mut random, tokens).is_ok());
        let fewest = fewest.expect("some number is enough");
        let mut lengths = Vec::new();
        for more in 0..200 {
            let tokens = fewest + more % 97;
            let text = noise(&schema, &vocabulary, &mut random, tokens).expect("enough tokens");
            lengths.push(text.len());
            pairs.push((schema.clone(), text));
        }
        lengths.sort();
        println!("seed {SEED}: {} to {} bytes of {schema}", lengths[0], lengths[lengths.len() - 1]);
    }
    assert_valid(&pairs);
}

/// The text as a model would write it that offers one letter at a time.
fn spelled(schema: &Value, vocabulary: &Vocabulary, text: &str) -> String {
    let grammar = compile(schema, vocabulary).unwrap_or_else(|why| panic!("{why}: {schema}"));
    let mut writer = Writer::new(&grammar, vocabulary, 10_000).expect("enough tokens");
    let mut written = Vec::new();
    while !writer.ended() {
        written.extend(writer.forced().into_iter().flat_map(|id| vocabulary.text(id).to_vec()));
        let next = text.as_bytes().get(written.len()).map_or(END, |&byte| u32::from(byte));
        let Some(id) = writer.choose([next], &[END]) else { break };
        written.extend_from_slice(vocabulary.text(id));
    }
    String::from_utf8(written).expect("UTF-8")
}

/// However many there are, and however long: none is out of the model's reach.
#[test]
fn every_one_of_many_can_be_written() {
    let vocabulary = vocabulary();
    let many: Vec<String> = (0..500).map(|number| format!("{}{number}", "x".repeat(number / 5))).collect();
    for value in &many {
        let text = Value::from(value.as_str()).to_string();
        assert_eq!(spelled(&json!({"enum": many}), &vocabulary, &text), text);
    }
    let optional = |count: usize| {
        let names = (0..count).map(|number| (format!("p{number:02}"), json!({"type": "null"})));
        json!({"type": "object", "properties": names.collect::<serde_json::Map<_, _>>()})
    };
    for name in ["p00", "p31", "p62"] {
        let text = format!("{{\"{name}\": null}}");
        assert_eq!(spelled(&optional(63), &vocabulary, &text), text);
    }
    let refused = compile(&optional(64), &vocabulary).err();
    let sentence =
        "the schema has an object with too many properties that are not required, and 64 are followed";
    assert_eq!(refused.as_deref(), Some(sentence));
    let anything: Vec<Value> = (0..65).map(|length| json!({"type": "string", "minLength": length})).collect();
    assert!(compile(&json!({"anyOf": anything[..64]}), &vocabulary).is_ok());
    assert!(compile(&json!({"anyOf": anything}), &vocabulary).is_err());
}

/// A `oneOf` is one only where no value is two of it, whatever of each we would write.
#[test]
fn one_of_is_taken_where_no_value_could_be_two() {
    let vocabulary = vocabulary();
    let kind = |kind: Value| json!({"type": "object", "properties": {"kind": kind}, "required": ["kind"]});
    let untyped = json!({"properties": {"kind": {"const": "a"}}, "required": ["kind"]});
    // {"x": "text"} is the second and the third, which shows only once the first is known.
    let recursive = json!({"$ref": "#/$defs/x", "$defs": {"x": {"oneOf": [{"type": "string"},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"]},
        {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}]}}});
    let of = |a: Value, b: Value| json!({"oneOf": [a, b]});
    for (schema, taken) in [
        (of(json!({"const": 1}), json!({"const": 2})), true),
        (of(json!({"const": 1}), json!({"const": 1.0})), false),
        (
            of(json!({"enum": [[1, {"a": 2, "b": 0}]]}), json!({"enum": [[1.0, {"b": -0.0, "a": 2.0}]]})),
            false,
        ),
        (of(json!({"type": "integer", "enum": [1, 2.0]}), json!({"const": 2})), false),
        (of(kind(json!({"const": "a"})), kind(json!({"const": "b"}))), true),
        (of(kind(json!({"const": 1})), kind(json!({"const": 1.0}))), false),
        (of(kind(json!({"const": 1})), kind(json!({"minLength": 2}))), false),
        (of(kind(json!({"const": 1})), kind(json!({"type": "string"}))), true),
        (of(untyped.clone(), json!({"type": "string"})), false),
        (of(untyped, kind(json!({"const": "b"}))), false),
        (of(json!({"maximum": 3}), json!({"type": "string"})), false),
        (of(json!({}), json!({"type": "string"})), false),
        (recursive, false),
    ] {
        let compiled = compile(&schema, &vocabulary);
        assert_eq!(compiled.is_ok(), taken, "{schema}: {:?}", compiled.err());
    }
}

/// What cannot be kept is refused by a sentence that names it.
#[test]
fn a_schema_that_cannot_be_kept_is_refused_by_name() {
    let vocabulary = vocabulary();
    let recursive = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]});
    for (schema, sentence) in [
        (json!({"type": "string", "pattern": "a+"}), "\"pattern\" at # of the schema is not supported"),
        (
            json!({"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 3}}}),
            "\"multipleOf\" at #/properties/n of the schema is not supported",
        ),
        (
            json!({"type": "number", "minimum": 1}),
            "\"minimum\" at # of the schema is supported for integers only",
        ),
        (json!({"$ref": "#/a", "a": {"$ref": "#/a"}}), "\"a\" at # of the schema is not supported"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "a \"$ref\" of the schema leads to nothing but itself",
        ),
        (
            json!({"$ref": "http://x/y"}),
            "\"$ref\" at # of the schema names \"http://x/y\", which is no part of this schema",
        ),
        (recursive, "no finite text is what the schema asks for"),
        (
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
            "no finite text is what the schema asks for",
        ),
        (
            json!({"type": "integer", "minimum": 1e16}),
            "the integers at # of the schema have more than 15 digits",
        ),
        (
            json!({"items": {"type": "integer", "exclusiveMaximum": i64::MIN}}),
            "the integers at #/items of the schema have more than 15 digits",
        ),
        (json!({"enum": []}), "no finite text is what the schema asks for"),
        (json!({"type": "text"}), "\"text\" at # of the schema is no type"),
        (json!({"type": 3}), "\"type\" at # of the schema is neither a name nor a list of names"),
        (json!([]), "# of the schema is neither an object nor a truth value"),
        (json!({"type": "string", "minLength": -1}), "\"minLength\" at # of the schema is -1, no count"),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
            "\"oneOf\" at # of the schema is not supported where one value may be both number 0 and number 1; \"anyOf\" is",
        ),
        (
            json!({"anyOf": [{"type": "integer"}], "type": "string"}),
            "\"type\" beside \"anyOf\" at # of the schema is not supported",
        ),
    ] {
        assert_eq!(compile(&schema, &vocabulary).err().as_deref(), Some(sentence), "{schema}");
    }
    let bare = Vocabulary::new(&[0, 1], &[b"{".to_vec(), b"}".to_vec()]);
    let refused = compile(&json!({}), &bare).err();
    assert_eq!(refused.as_deref(), Some("the model's vocabulary cannot write \"[\""));
}

/// A hundred of a hundred from a model whose weights are noise, at every temperature.
#[test]
fn a_hundred_of_a_hundred_from_a_model_of_noise() {
    let server = Server::small();
    let mut pairs = Vec::new();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for number in 0..100 {
            let schema = &schemas()[number % schemas().len()];
            let temperature = ["1", "0", "2.5"][number / schemas().len() % 3];
            let (text, seed) = (schema.to_string(), number.to_string());
            let arguments = [
                "--schema",
                &text,
                "--temperature",
                temperature,
                "--seed",
                &seed,
                "--max-tokens",
                "150",
                "Say.",
            ];
            let ended = client.run("json", &arguments).await;
            assert_eq!(ended.event, 1, "{arguments:?}: {ended:?}");
            pairs.push((schema.clone(), ended.text));
        }
        let again = client
            .run(
                "json",
                &["--schema", "{}", "--temperature", "1", "--seed", "5", "--max-tokens", "150", "Say."],
            )
            .await;
        let same = client
            .run(
                "json",
                &["--schema", "{}", "--temperature", "1", "--seed", "5", "--max-tokens", "150", "Say."],
            )
            .await;
        assert_eq!(again, same, "a seed repeats its draws");
        let refused = client.run("json", &["--schema", "{\"format\": \"date\"}", "Say."]).await;
        assert_eq!(refused.text, "Runtime error: \"format\" at # of the schema is not supported");
        let short =
            client.run("json", &["--schema", "{\"minLength\": 30}", "--max-tokens", "20", "Say."]).await;
        assert_eq!(
            short.text,
            "Runtime error: 20 tokens do not hold the shortest text of the schema, which may take 32"
        );
    });
    assert_valid(&pairs);
}

/// The real model fills in what it was told.
#[test]
fn the_real_model_fills_in_what_it_knows() {
    let server = Server::open();
    let mut pairs = Vec::new();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let question = "Anna is 31 years old and married. She is 1.7 m tall and likes chess.";
        for schema in schemas() {
            for temperature in ["0", "0.8"] {
                let text = schema.to_string();
                let arguments = [
                    "--schema",
                    &text,
                    "--temperature",
                    temperature,
                    "--seed",
                    "1",
                    "--max-tokens",
                    "100",
                    question,
                ];
                let ended = client.run("json", &arguments).await;
                assert_eq!(ended.event, 1, "{arguments:?}: {ended:?}");
                pairs.push((schema.clone(), ended.text));
            }
        }
    });
    assert_valid(&pairs);
    let person: Value = serde_json::from_str(&pairs[0].1).expect("JSON");
    assert_eq!((&person["name"], &person["age"]), (&json!("Anna"), &json!(31)), "{person}");
}
