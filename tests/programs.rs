//! Uploads that are no programs, or none that run here: each is refused by a sentence and leaves nothing behind.

mod support;

use support::client::Client;
use support::{Server, guest_bytes};

/// The smallest program: a core module and its `run`, with these parts around it.
fn component(imports: &str, module: &str, instance: &str, lift: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
            {imports}
            (core module $program
                (memory (export "memory") 1)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
                {module})
            {instance}
            (func $run (result (result (error string)))
                (canon lift (core func $i "run") (memory (core memory $i "memory")) {lift}))
            (instance $e (export "run" (func $run)))
            (export "inferlet:core/run" (instance $e)))"#
    );
    wat::parse_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

const RUN: &str = r#"(func (export "run") (result i32) i32.const 64)"#;
const INSTANCE: &str = "(core instance $i (instantiate $program))";

#[test]
fn the_smallest_program_runs() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let hash = client.upload(&component("", RUN, INSTANCE, "")).await.expect("a good program");
        let ended = client.run_hash(&hash, &[]).await;
        assert_eq!((ended.event, ended.text.as_str()), (1, ""));
    });
}

#[test]
fn what_is_no_program_is_refused_by_a_sentence() {
    let echo = guest_bytes("echo");
    let mut flipped = echo.clone();
    for at in (200..flipped.len()).step_by(501) {
        flipped[at] ^= 0x55;
    }
    let bell = r#"(import "acme:door/bell" (instance $bell (export "ring" (func))))
        (core func $ring (canon lower (func $bell "ring")))"#;
    let with_bell = r#"(core instance $i (instantiate $program
        (with "acme:door/bell" (instance (export "ring" (func $ring))))))"#;
    let ringing = format!(r#"(import "acme:door/bell" "ring" (func)) {RUN}"#);
    // The import must come before the memory, so the module is written out.
    let unknown_import = wat::parse_str(format!(
        r#"(component {bell}
            (core module $program {ringing} (memory (export "memory") 1))
            {with_bell}
            (func $run (result (result (error string))) (canon lift (core func $i "run") (memory (core memory $i "memory"))))
            (instance $e (export "run" (func $run)))
            (export "inferlet:core/run" (instance $e)))"#
    ))
    .expect("a component");
    let async_abi = wat::parse_str(
        r#"(component
            (core module $program
                (memory (export "memory") 1)
                (func (export "run") (result i32) i32.const 0)
                (func (export "callback") (param i32 i32 i32) (result i32) i32.const 0))
            (core instance $i (instantiate $program))
            (func $run async (result (result (error string)))
                (canon lift (core func $i "run") (memory (core memory $i "memory")) async (callback (core func $i "callback"))))
            (instance $e (export "run" (func $run)))
            (export "inferlet:core/run" (instance $e)))"#,
    )
    .expect("a component");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], ""),
        ("text", b"fn main() {}".to_vec(), ""),
        ("a core module", wat::parse_str("(module)").expect("a module"), "wasm32-wasip2"),
        ("async", async_abi, ""),
        ("an unknown import", unknown_import, "acme:door/bell"),
        ("no run", wat::parse_str("(component)").expect("a component"), "inferlet:core/run"),
        ("flipped bits", flipped, ""),
        ("only a header", echo[..8].to_vec(), ""),
        ("cut in the header", echo[..6].to_vec(), ""),
        ("cut in the middle", echo[..echo.len() / 2].to_vec(), ""),
        ("cut at the end", echo[..echo.len() - 1].to_vec(), ""),
        ("something after it", [echo.as_slice(), b"and more"].concat(), ""),
    ];
    let mut server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (name, bytes, part) in &cases {
            let why = client.upload(bytes).await.expect_err(name);
            println!("{name}: {why}");
            assert!(why.contains(part) && !why.is_empty(), "{name}: {why:?}");
            assert!(why.len() < 1000 && !why.contains('\n'), "{name} is one sentence: {why:?}");
            let hash = blake3::hash(bytes).to_hex();
            assert_eq!(client.query("program_exists", &hash).await, Ok("false".to_owned()), "{name}");
        }
        // Every place to cut: the reason differs, the refusal does not.
        for at in (0..echo.len()).step_by(echo.len() / 40) {
            client.upload(&echo[..at]).await.expect_err("it is cut");
        }
        assert_eq!(client.run("echo", &["--return", "the whole one works"]).await.event, 1);
    });
    server.assert_alive();
}

/// Well-formed programs that go wrong before or outside of `run`.
#[test]
fn programs_that_go_wrong_at_the_start_end_alone() {
    let module = |more: &str| format!("{RUN} {more}");
    let cases: Vec<(&str, Vec<u8>, bool)> = vec![
        // name, program, whether it needs to be terminated
        (
            "a start that spins",
            component("", &module("(func $s (loop br 0)) (start $s)"), INSTANCE, ""),
            true,
        ),
        (
            "a start that traps",
            component("", &module("(func $s unreachable) (start $s)"), INSTANCE, ""),
            false,
        ),
        (
            "a segment out of bounds",
            component("", &module(r#"(data (i32.const 70000) "x")"#), INSTANCE, ""),
            false,
        ),
        ("a table without end", component("", &module("(table 4000000000 funcref)"), INSTANCE, ""), false),
        (
            "a result outside memory",
            component("", r#"(func (export "run") (result i32) i32.const 0x7fff0000)"#, INSTANCE, ""),
            false,
        ),
        (
            "a result that is none of two",
            component("", &module("(data (i32.const 64) \"\\07\")"), INSTANCE, ""),
            false,
        ),
        (
            "an error text outside memory",
            component(
                "",
                &module(r#"(data (i32.const 64) "\01\00\00\00\00\00\ff\7f\ff\00\00\00")"#),
                INSTANCE,
                "",
            ),
            false,
        ),
        (
            "an error text that is no text",
            component(
                "",
                &module(
                    r#"(data (i32.const 64) "\01\00\00\00\50\00\00\00\02\00\00\00") (data (i32.const 0x50) "\ff\fe")"#,
                ),
                INSTANCE,
                "",
            ),
            false,
        ),
    ];
    let mut server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (name, bytes, endless) in &cases {
            // To refuse it at once is as good as to end it.
            let hash = match client.upload(bytes).await {
                Ok(hash) => hash,
                Err(why) => {
                    println!("{name}: refused: {why}");
                    continue;
                }
            };
            let instance = client.launch_hash(&hash, &[]).await;
            if *endless {
                smol::Timer::after(std::time::Duration::from_millis(300)).await;
                client.terminate(&instance).await;
            }
            let ended = client.end(&instance).await;
            println!("{name}: event {} {}", ended.event, ended.text);
            assert!([2, 3, 5].contains(&ended.event) && (ended.event == 2) <= *endless, "{name}: {ended:?}");
        }
        assert_eq!(client.run("echo", &["--return", "well"]).await.event, 1);
    });
    server.assert_alive();
}
