//! `tartlet synth` from outside: its files load, compute and serve, a seed makes the same file again, and whatever goes
//! wrong leaves no file that is not whole.

mod support;

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::client::Client;
use support::{Folder, PATIENCE, Server, binary, tartlet};

/// Runs it for the smallest shape.
fn synth(out: &Path, arguments: &[&str]) -> Output {
    let mut command = tartlet();
    command.args(["synth", "--shape", "smollm2-135m"]).args(arguments).arg(out);
    command.output().expect("the binary runs")
}

fn made(out: &Path, arguments: &[&str]) -> String {
    let output = synth(out, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The sentence of a run that went wrong.
fn said(output: &Output, status: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(status), "{said}");
    let ours: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("tartlet: ")).collect();
    assert!(ours.len() == 1 && output.stdout.is_empty(), "{said}");
    ours[0].to_owned()
}

/// A golden file that holds every token for as likely as any other.
fn flat(tokens: u32) -> Value {
    let top: Vec<(u32, f64)> = (0..tokens).map(|id| (id, 0.0)).collect();
    // The word has its place by the alphabet, behind the bytes and all shorter ones.
    let id = 256 + 26 * 26 + 26 + 2;
    json!([{ "text": "abc", "ids": [id], "steps": [{ "top": top, "logsumexp": f64::from(tokens).ln() }] }])
}

#[test]
fn a_file_of_random_weights_computes_and_serves() {
    let folder = Folder::new();
    let golden = folder.path("flat.json");
    std::fs::write(&golden, flat(49_152).to_string()).expect("written");
    for (quant, parts) in [
        ("q4_0", &["in Q4_0, its head in Q8_0", "MB"][..]),
        ("q4_k", &["in Q4_K, its head in Q8_0"]),
        ("q6_k", &["in Q6_K"]),
        ("bf16", &["in BF16, random weights of seed 0, 270 MB"]),
    ] {
        let model = folder.path(&format!("{quant}.gguf"));
        let told = made(&model, &["--quant", quant]);
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        let command = |verb| {
            let mut command = tartlet();
            command.arg(verb);
            command
        };
        let described = command("model").arg(&model).output().expect("it runs");
        let described = String::from_utf8(described.stdout).expect("UTF-8");
        for part in ["134.5 M", "30 layers, hidden 576", "49152 tokens (3 special)", "can serve it"] {
            assert!(described.contains(part), "nothing of {part}:\n{described}");
        }
        let output = command("eval").arg("--model").arg(&model).arg(&golden).output().expect("it runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(report["ids_equal"], true, "{report}");
        // Logits are numbers of a usual size, and some tokens are far more likely than others.
        let figure = |name: &str| report[name].as_f64().unwrap_or(f64::INFINITY);
        assert!((4.0..100.0).contains(&figure("max_logit_diff")), "{report}");
        assert!((1.0..100.0).contains(&figure("mean_kl")), "{report}");
        if quant == "q4_0" {
            let server = Server::of(model, "", &["--backend", "cpu"]);
            let ended = smol::block_on(async {
                let mut client = Client::connect(&server).await;
                client.run("completion", &["--max-tokens", "4", "once upon a time"]).await
            });
            assert!(ended.event == 1 && !ended.text.is_empty(), "{ended:?}");
        }
    }
}

#[test]
fn a_seed_makes_the_same_file_again() {
    let folder = Folder::new();
    let [first, again, other] = ["first", "again", "other"].map(|name| folder.path(name));
    made(&first, &["--quant", "q4_1", "--seed", "7"]);
    made(&again, &["--quant", "Q4_1", "--seed", "7"]);
    made(&other, &["--quant", "q4_1", "--seed", "8"]);
    let read = |path: &Path| std::fs::read(path).expect("it was made");
    let bytes = read(&first);
    assert!(bytes == read(&again), "the same seed, another file");
    assert!(bytes.len() == read(&other).len() && bytes != read(&other), "another seed, the same file");
    // What is there is kept, unless it is said otherwise.
    let refused = said(&synth(&first, &["--quant", "q4_0"]), 1);
    assert!(refused.contains("it is there already") && refused.contains("--force"), "{refused}");
    assert!(bytes == read(&first));
    made(&first, &["--quant", "q4_1", "--seed", "8", "--force"]);
    assert!(read(&first) == read(&other));
    assert_eq!(std::fs::read_dir(folder.path("")).expect("a folder").count(), 3, "something else is left");
}

#[test]
fn a_wrong_word_is_a_sentence() {
    let folder = Folder::new();
    let out = folder.path("out.gguf");
    std::fs::create_dir(folder.path("folder")).expect("made");
    let busy = File::create(folder.path("busy.tartlet-part")).expect("made");
    busy.lock().expect("nobody else has it");
    let precious = folder.path("precious");
    std::fs::write(&precious, "of another").expect("written");
    std::os::unix::fs::symlink(&precious, folder.path("link.tartlet-part")).expect("a link");
    for (name, arguments, status, part) in [
        ("out.gguf", &["--quant", "q4_2"][..], 64, "--quant q4_2 is none of f32, f16, bf16, q8_0"),
        ("out.gguf", &["--quant", "q4_0", "--seed", "x"], 64, "--seed x is not a whole number"),
        ("out.gguf", &[], 64, "needs --quant"),
        ("folder", &["--quant", "q4_0", "--force"], 1, "it is there and is no file"),
        ("none/out.gguf", &["--quant", "q4_0"], 1, "No such file or directory"),
        ("busy", &["--quant", "q4_0"], 1, "busy.tartlet-part: another `tartlet synth` is writing it"),
        ("link", &["--quant", "q4_0"], 1, "link.tartlet-part: Too many levels of symbolic links"),
    ] {
        let sentence = said(&synth(&folder.path(name), arguments), status);
        assert!(sentence.contains(part), "{sentence}");
    }
    let mut command = tartlet();
    command.args(["synth", "--quant", "q4_0", "--shape", "llama-7b"]).arg(&out);
    let sentence = said(&command.output().expect("it runs"), 64);
    assert!(sentence.contains("--shape llama-7b is none of smollm2-135m, llama-1b"), "{sentence}");
    assert!(!out.exists());
    assert_eq!(std::fs::read(precious).expect("it stays"), b"of another");
}

/// Writes a large file, whose beginning is there once this returns.
fn writing(folder: &Folder, mut command: Command) -> Child {
    command.args(["synth", "--shape", "llama-8b", "--quant", "f16"]).arg(folder.path("out.gguf"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let started = Instant::now();
    let size = || std::fs::metadata(folder.path("out.gguf.tartlet-part")).map_or(0, |file| file.len());
    while size() < 16 << 20 {
        assert!(started.elapsed() < PATIENCE, "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn send(signal: &str, to: &Child) {
    let sent = Command::new("kill").args([signal, &to.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

/// What is in the folder.
fn left(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path("")).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

/// Neither under its name nor under any other: when the disk is full, and when somebody presses Ctrl-C, or hangs up.
#[test]
fn half_a_file_is_no_file() {
    let folder = Folder::new();
    // A file of more bytes than the system lets this process write: as a full disk, to whoever writes.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 20000; exec \"$@\"", "sh"]).arg(binary());
    command.args(["synth", "--shape", "smollm2-135m", "--quant", "q4_0"]).arg(folder.path("out.gguf"));
    let sentence = said(&command.output().expect("sh runs"), 1);
    assert!(
        sentence.contains("out.gguf: ") && sentence.contains("it takes 91 MB; nothing is left of it"),
        "{sentence}"
    );
    assert!(left(&folder).is_empty());

    for (signal, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let child = writing(&folder, tartlet());
        send(signal, &child);
        let output = child.wait_with_output().expect("our child");
        assert_eq!(said(&output, status), "The writing was interrupted; nothing is left of it.");
        assert!(left(&folder).is_empty());
    }

    // Under nohup a hang-up is nothing, and nobody reads this.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(binary());
    let mut child = writing(&folder, command);
    send("-HUP", &child);
    child.stderr = None;
    send("-INT", &child);
    assert_eq!(child.wait().expect("our child").code(), Some(130));
    assert!(left(&folder).is_empty());

    // Where it cannot be removed, nobody says that it was.
    let child = writing(&folder, tartlet());
    let part = folder.path("out.gguf.tartlet-part");
    std::fs::remove_file(&part).expect("it is there");
    std::fs::create_dir(&part).expect("a folder in its place");
    send("-INT", &child);
    let sentence = said(&child.wait_with_output().expect("our child"), 130);
    assert!(sentence.contains("out.gguf.tartlet-part is left, since it cannot be removed"), "{sentence}");
}

/// Of two that write the same file one is refused; what a killed one leaves is no hindrance; and what somebody makes in the
/// meantime stays.
#[test]
fn a_name_is_taken_by_who_has_it() {
    let folder = Folder::new();
    let out = folder.path("out.gguf");
    let mut child = writing(&folder, tartlet());
    let sentence = said(&synth(&out, &["--quant", "q4_0"]), 1);
    assert!(sentence.contains("another `tartlet synth` is writing it"), "{sentence}");
    child.kill().expect("our child");
    child.wait().expect("our child");
    assert_eq!(left(&folder), ["out.gguf.tartlet-part"]);

    let mut command = tartlet();
    command.args(["synth", "--shape", "smollm2-135m", "--quant", "bf16"]).arg(&out);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut told = String::new();
    let stderr = child.stderr.as_mut().expect("it is piped");
    BufReader::new(stderr).read_line(&mut told).expect("UTF-8");
    // The name was free when it began.
    assert!(told.starts_with("writing 270 MB to "), "{told}");
    std::fs::write(&out, "of another").expect("written");
    let sentence = said(&child.wait_with_output().expect("our child"), 1);
    assert!(
        sentence.contains("somebody else made it") && sentence.ends_with("; nothing is left of it"),
        "{sentence}"
    );
    assert_eq!(std::fs::read(&out).expect("it stays"), b"of another");
    assert_eq!(left(&folder), ["out.gguf"]);
}
