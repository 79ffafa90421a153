//! The command line as a person meets it.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use support::{Folder, Server, guest, model, root, tartlet, tartlet_output};

#[test]
fn help_teaches() {
    for (arguments, parts) in [
        (&["--help"][..], &["serve", "run", "token", "model", "eval"][..]),
        (&["serve", "--help"], &["--model", "--no-auth", "listening on"]),
        (&["run", "--help"], &["--token-file", "-- "]),
        (&["token", "mint", "--help"], &["--ttl", "--sub"]),
        (&["eval", "--help"], &["--plain"]),
    ] {
        let output = tartlet_output(arguments);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success(), "{arguments:?}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?} says nothing of {part}:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{arguments:?} is too wide:\n{text}");
    }
    let output = tartlet_output(&["--version"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("tartlet {}\n", env!("CARGO_PKG_VERSION")));
}

/// The story: a token went into a full disk, and the command that made it said that all was well.
#[test]
fn what_was_not_written_was_not_said() {
    let arguments = ["--help", "--version", "selftest --backend cpu --json", "serve --print-config"];
    for arguments in arguments.map(|line| line.split(' ').collect::<Vec<_>>()) {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
        let output =
            tartlet().args(&arguments).stdout(full).stderr(Stdio::piped()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.lines().count() == 1 && said.contains("Standard output"), "{arguments:?}: {said}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = tartlet().args(&arguments).stdout(writer).output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: nobody wants to hear it");
    }
}

/// The story: output and errors of a run went to one full disk; the client ended with a panic, and the program with it.
#[test]
fn a_run_whose_messages_nobody_takes_says_so_at_once_and_fails() {
    let server = Server::small();
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("there is one");
    let run = |arguments: &[&str]| {
        let mut command = tartlet();
        command.arg("run").arg(guest("echo")).args(["--server", &server.url, "--"]).args(arguments);
        command.stdout(full());
        command
    };
    // It ends only when it is told to, which is after the sentence.
    let mut child = run(&["--messages", "forever", "one", "two", "three"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
    let sentence = said.next().expect("a sentence").expect("UTF-8");
    assert!(sentence.starts_with("tartlet: Standard output takes no more"), "{sentence}");
    assert_eq!(child.try_wait().expect("our child"), None, "the program goes on");
    let asked = std::process::Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
    assert!(asked.success());
    assert_eq!(child.wait().expect("our child").code(), Some(1));
    let rest: Vec<_> = said.map(|line| line.expect("UTF-8")).collect();
    assert!(!rest.iter().any(|line| line.contains("Standard output")), "it is said once: {rest:?}");

    let words = &["--return", "the value", "one", "two", "three"];
    let output = run(words).stderr(Stdio::piped()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let status = run(words).stderr(full()).status().expect("it runs");
    assert_eq!(status.code(), Some(1), "neither takes anything");
}

/// Status, and one sentence on standard error that names the thing.
#[test]
fn mistakes_are_a_sentence_and_a_status() {
    let folder = Folder::new();
    let garbage = folder.path("garbage.gguf");
    std::fs::write(&garbage, b"GGUF but not really").expect("written");
    let garbage = garbage.to_str().expect("UTF-8");
    let nowhere = folder.path("nowhere");
    let nowhere = nowhere.to_str().expect("UTF-8");
    let echo = guest("echo");
    let echo = echo.to_str().expect("UTF-8");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = &listener.local_addr().expect("it is bound").to_string();
    let free = "127.0.0.1:0";
    for (arguments, status, part) in [
        (&[][..], 64, "--help"),
        (&["bake"], 64, "bake"),
        (&["serve", "--modle", "x"], 64, "--model"),
        (&["serve", "--model"], 64, "--model"),
        (&["serve", "--model", "a", "--model", "b"], 64, "twice"),
        (&["serve", "left over"], 64, "left over"),
        (&["run"], 64, "PROGRAM.wasm"),
        (&["token"], 64, "mint"),
        (&["token", "mint", "--sub", "x"], 64, "--key"),
        (&["serve", "--no-auth", "--listen", free, "--model", nowhere], 78, "nowhere"),
        (&["serve", "--no-auth", "--listen", free, "--model", garbage], 78, "garbage.gguf"),
        (&["serve", "--no-auth", "--listen", taken, "--model", garbage], 1, "--listen"),
        (&["serve", "--no-auth", "--model", garbage, "--listen", "0.0.0.0:0"], 78, "loopback"),
        (&["serve", "--model", garbage, "--config", nowhere], 78, "nowhere"),
        (&["run", echo, "--server", "ws://127.0.0.1:1"], 1, "127.0.0.1:1"),
        (&["run", nowhere], 1, "nowhere"),
        (&["run", echo, "--token-file", nowhere], 1, "nowhere"),
        (&["token", "inspect", "--token-file", nowhere], 1, "nowhere"),
        (&["model", nowhere], 1, "nowhere"),
        (&["model", garbage], 1, "garbage.gguf"),
        (&["eval", "--model", garbage, nowhere], 1, ""),
    ] {
        let output = tartlet_output(arguments);
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(said.starts_with("tartlet: ") && said.lines().count() == 1, "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn a_model_is_described() {
    let model = model();
    let output = tartlet_output(&["model", model.to_str().expect("UTF-8")]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success());
    for part in ["llama", "576", "30", "49152", "Q4_1"] {
        assert!(text.contains(part), "nothing of {part}:\n{text}");
    }
}

#[test]
fn odd_files_are_described_or_refused() {
    let golden = |number: u32| root().join(format!("tests/golden/kquants-0000{number}-of-00003.gguf"));
    let said = |path: &std::path::Path| {
        let output = tartlet_output(&["model", path.to_str().expect("UTF-8")]);
        let (text, error) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
        (output.status.code(), text.expect("UTF-8") + &error.expect("UTF-8"))
    };
    // Any of a model's files shows the whole model, its K-quants among the formats.
    let (status, text) = said(&golden(2));
    for part in ["in 3 files, GGUF version 3", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "can serve it"] {
        assert!(text.contains(part), "nothing of {part}:\n{text}");
    }
    assert_eq!(status, Some(0));

    let folder = Folder::new();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path(name), bytes).expect("written");
        folder.path(name)
    };
    let bare = [&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat();
    // Mostly a hole, and larger than any memory.
    let vast = file("vast.gguf", &bare);
    std::fs::File::options().write(true).open(&vast).expect("opened").set_len(1 << 42).expect("grown");
    let fifo = folder.path("fifo.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
    let first = file("kquants-00001-of-00003.gguf", &std::fs::read(golden(1)).expect("golden"));
    let renamed = file("kquants.gguf", &std::fs::read(golden(3)).expect("golden"));
    let loose = folder.path("loose.gguf");
    std::os::unix::fs::symlink(folder.path("nothing"), &loose).expect("a link");
    for (path, status, part) in [
        (file("empty.gguf", b""), 1, "at byte 0: the magic `GGUF` is not there"),
        (
            file("bare.gguf", &bare),
            0,
            "cannot serve it: the GGUF file has no metadata key `general.architecture`",
        ),
        (vast, 0, "4096.00 GiB"),
        (file("cut.gguf", &bare[..20]), 1, "damaged at byte 16, the metadata count"),
        (file("counts.gguf", &[&bare[..8], &[0xff; 16]].concat()), 1, "it counts 18446744073709551615"),
        (file("text.gguf", b"GGUFFFFF"), 1, "version"),
        (fifo, 1, "not a regular file"),
        (folder.path("."), 1, "not a regular file"),
        (loose, 1, "No such file"),
        (first, 1, "`kquants-00002-of-00003.gguf`: cannot open the model file: No such file"),
        (renamed, 1, "its name does not end in `-00003-of-00003.gguf`"),
    ] {
        let (code, text) = said(&path);
        assert!(code == Some(status) && text.contains(part), "{}: {code:?}: {text}", path.display());
        assert!(status == 0 || text.lines().count() == 1, "{text}");
    }
}

/// One JSON object, of all prompts and of each.
#[test]
fn an_evaluation_is_one_json_object() {
    let output = tartlet()
        .args(["eval", "--kv", "q8", "--model"])
        .arg(model())
        .arg(root().join("tests/golden/smollm2-135m-q4_1.json"))
        .stderr(Stdio::inherit())
        .output()
        .expect("it runs");
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(report["device"].as_str().expect("a text").contains("q8 K/V"), "{report}");
    let prompts = report["prompts"].as_array().expect("a list");
    assert_eq!(prompts.len(), 8);
    for scores in prompts.iter().chain([&report]) {
        assert_eq!(scores["ids_equal"], true, "{scores}");
        for name in ["max_logit_diff", "top1", "top1_clear", "mean_kl"] {
            assert!(scores[name].is_number(), "{name}: {scores}");
        }
    }
}

#[test]
fn a_program_runs_from_the_command_line() {
    let server = Server::guarded();
    let token = server.folder.path("token");
    std::fs::write(&token, server.token.as_deref().expect("it is guarded")).expect("written");
    let run = |program: &str, arguments: &[&str]| {
        tartlet()
            .arg("run")
            .arg(guest(program))
            .args(["--server", &server.url, "--token-file"])
            .arg(&token)
            .arg("--")
            .args(arguments)
            .output()
            .expect("it runs")
    };
    let output = run("chat", &["--max-tokens", "24", "--user", "Tell me the capital of France."]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        output.status.success() && said.contains("Paris"),
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let output = run("echo", &["--return", "the value", "one", "two"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("one"), "{output:?}");

    let output = run("echo", &["--fail", "as asked"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("as asked"), "{output:?}");

    // The environment serves as well as a file, and without either the answer says what to do.
    let ask = |command: &mut std::process::Command| {
        command.arg("run").arg(guest("echo")).args(["--server", &server.url]).output().expect("it runs")
    };
    let with = ask(tartlet().env("TARTLET_TOKEN", server.token.as_deref().expect("it is guarded")));
    assert!(with.status.success(), "{with:?}");
    let without = ask(&mut tartlet());
    assert_eq!(without.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&without.stderr).contains("token"), "{without:?}");
}

#[test]
fn keys_and_tokens() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let path = |name: &str| folder.path(name).to_str().expect("UTF-8").to_owned();
    let (key, public, token) = (path("key"), path("key.pub"), path("token"));
    assert!(tartlet_output(&["token", "keygen", "--out", &key]).status.success());
    assert!(std::fs::read_to_string(&key).expect("written").starts_with("k4.secret."));
    assert!(std::fs::read_to_string(&public).expect("written").starts_with("k4.public."));
    let mode = |path: &str| std::fs::metadata(path).expect("written").permissions().mode() & 0o777;
    assert_eq!(mode(&key), 0o600);

    let secret = std::fs::read(&key).expect("written");
    assert!(
        !tartlet_output(&["token", "keygen", "--out", &key]).status.success(),
        "a key is not overwritten"
    );
    assert_eq!(std::fs::read(&key).expect("still there"), secret);

    let made = tartlet_output(&[
        "token", "mint", "--key", &key, "--sub", "kitchen", "--ttl", "12h", "--out", &token,
    ]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(mode(&token), 0o600);
    let shown = tartlet_output(&["token", "inspect", "--token-file", &token, "--public-key", &public]);
    let text = String::from_utf8(shown.stdout).expect("UTF-8");
    assert!(shown.status.success() && text.contains("kitchen") && text.contains("user"), "{text}");

    assert!(tartlet_output(&["token", "keygen", "--out", &path("other")]).status.success());
    let shown =
        tartlet_output(&["token", "inspect", "--token-file", &token, "--public-key", &path("other.pub")]);
    assert_eq!(shown.status.code(), Some(1));
}

/// A server that is asked to stop while programs run ends well and soon.
#[test]
fn a_server_stops_cleanly() {
    use support::client::Client;
    // The second also where a script has started the suite, and so ignores it. (Hang-ups may be ignored for good reason.)
    for signal in ["-TERM", "-INT"] {
        let mut server = Server::open();
        smol::block_on(async {
            let mut client = Client::connect(&server).await;
            client.launch("rogue", &["spin"]).await;
            client.launch("echo", &["--messages", "forever"]).await;
            let _chat =
                client.launch("chat", &["--max-tokens", "5000", "--user", "Count to one thousand."]).await;
        });
        let status = server.stop_by(signal);
        assert!(status.success(), "{signal}: {status}");
    }
}
