//! The unmodified `pie-client==0.1.0` of PyPI against the server: `conformance.py` holds the checks, one function
//! each; here each gets a server of its own, with authentication on.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};
use support::{Server, guest, mint, python, root, tartlet_output};

/// Runs one check of `conformance.py`.
fn check(name: &str) {
    let mut server = Server::guarded();
    let other = mint(&server.key(), "other", &["--ttl", "10m"]);
    let output = Command::new(python())
        .arg(root().join("tests/conformance.py"))
        .arg(name)
        .env("PYTHONUNBUFFERED", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TARTLET_URL", &server.url)
        .env("TARTLET_TOKEN", server.token.as_deref().expect("it is guarded"))
        .env("TARTLET_OTHER_TOKEN", other)
        .env("TARTLET_KEY", server.key())
        .env("TARTLET_GUESTS", guest("echo").parent().expect("a folder"))
        .output()
        .expect("Python runs");
    server.assert_alive();
    assert!(
        output.status.success(),
        "{name}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

macro_rules! checks {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}

checks! {
    authenticate
    upload_and_exists
    launch_with_arguments
    signals_and_messages
    blobs_both_ways
    terminate
    an_error_is_an_exception
    an_instant_end_is_not_lost
    two_clients_at_once
    disconnect_in_mid_run
    chat
    tokens_of_pyseto
}

/// Tokens that are none, or no longer.
#[test]
fn bad_tokens_are_refused() {
    use support::client::Client;
    use support::frame::Outgoing;
    let server = Server::guarded();
    let good = server.token.clone().expect("it is guarded");
    let stranger = server.folder.path("stranger");
    let made = tartlet_output(&["token", "keygen", "--out", stranger.to_str().expect("UTF-8")]);
    assert!(made.status.success());
    let foreign = mint(&stranger, "tester", &[]);
    let expired = mint(&server.key(), "tester", &["--ttl", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let tampered = good.replacen("v4.public.ey", "v4.public.ez", 1);
    let long = "v4.public.".to_owned() + &"A".repeat(500_000);
    smol::block_on(async {
        for token in [
            "",
            "secret",
            "v4.public.",
            "v4.local.AAAA",
            &good[..good.len() - 1],
            &long,
            &foreign,
            &expired,
            &tampered,
        ] {
            let mut client = Client::connect_only(&server.url).await;
            let since = Instant::now();
            let answer = client.ask(Outgoing::new("authenticate").with("token", token)).await;
            assert_eq!(answer, Err("Invalid token".to_owned()), "{:.60}", token);
            // So long at least, which is no matter of the machine.
            assert!(since.elapsed() >= Duration::from_millis(50), "no pause after a wrong token");
            let answer = client.query("program_exists", "x").await;
            assert_eq!(answer, Err("Not authenticated".to_owned()));
            let answer = client.ask(Outgoing::new("authenticate").with("token", good.as_str())).await;
            assert_eq!(answer, Ok("tester".to_owned()), "a second try is allowed");
            let answer = client.ask(Outgoing::new("authenticate").with("token", good.as_str())).await;
            assert_eq!(answer, Ok("Already authenticated".to_owned()));
        }
    });
    let log = server.log();
    for token in [&good, &foreign, &expired] {
        let signature = &token[token.len() - 40..];
        assert!(!log.contains(signature), "tokens are never logged");
    }
}

/// What is acknowledged is there after a restart.
#[test]
fn programs_outlive_the_server() {
    use support::client::Client;
    let server = Server::open();
    let hash = smol::block_on(async {
        let mut client = Client::connect(&server).await;
        client.upload(&support::guest_bytes("echo")).await.expect("a good program")
    });
    let server = server.restart(&["--no-auth"]);
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        assert_eq!(client.query("program_exists", &hash).await, Ok("true".to_owned()));
        assert_eq!(client.run("echo", &["--return", "still here"]).await.text, "still here");
    });
}
