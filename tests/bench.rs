//! `tartlet bench` from outside: a short run gives every figure it promises as JSON, compares with itself, leaves
//! nothing behind when it is interrupted, and says what is wrong with a wrong request. No time is judged here.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Folder, PATIENCE, guest, model, tartlet};

fn bench(temporary: &Path, flags: &[&str]) -> Command {
    let mut command = tartlet();
    command.env("TMPDIR", temporary).arg("bench").arg("--model").arg(model()).args(flags);
    command
}

/// Standard output of a run that goes well.
fn measured(mut command: Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn every_figure_is_there_and_sane() {
    let folder = Folder::new();
    let inferlets = guest("echo").parent().expect("a folder").display().to_string();
    let only = "roof prefill.24 decode.20 sequences.3 sequences.300 tax launch kill fair socket server";
    let mut flags = vec!["--json", "--threads", "2", "--inferlets", &inferlets];
    flags.extend(only.split(' ').flat_map(|section| ["--only", section]));
    let json = measured(bench(&folder.path(""), &flags));
    let report: Value = serde_json::from_str(&json).expect("one JSON object");
    println!("{report:#}");

    let figure = |name: &str| {
        let found = report["measures"].as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
        found.unwrap_or_else(|| panic!("no figure {name}"))
    };
    let number = |name: &str, field: &str| figure(name)[field].as_f64().expect("a number");
    let names = "roof.read_1 roof.read_2 roof.int8_1 roof.int8_2 prefill.24 decode.20 sequences.3 \
                 tax.interval tax.step tax.total tax.stage_wake tax.stage_guest tax.stage_host tax.stage_validation \
                 tax.stage_queue tax.slow tax.together launch.cold launch.durable launch.known \
                 kill.loop kill.loop_slowest kill.call kill.call_slowest kill.pass kill.pass_slowest kill.flood kill.flood_slowest \
                 kill.fill kill.left kill.expired \
                 fair.alone fair.beside fair.wait_alone fair.wait_beside fair.gap socket.serial socket.flight \
                 socket.blob server.ready server.anonymous \
                 server.anonymous_beside";
    for name in names.split_whitespace() {
        let [low, median, high] = ["low", "median", "high"].map(|field| number(name, field));
        assert!(0.0 < low && low <= median && median <= high && high.is_finite(), "{name}");
        assert!(number(name, "samples") >= 5.0, "{name}");
        assert!(!figure(name)["label"].as_str().expect("a text").is_empty(), "{name}");
    }
    for name in ["prefill.24", "decode.20", "sequences.3"] {
        assert!(number(name, "share") > 0.0, "{name}");
    }
    assert!(number("server.idle", "median") >= 0.0);
    // A chat may be faster by chance when others loop beside it.
    assert!(number("fair.lost", "median") < 100.0 && number("fair.lost", "samples") >= 5.0);
    assert!(report["model"]["packed_bytes"].as_u64() > Some(80_000_000), "the weights are packed");
    assert!(
        number("tax.step", "median") < number("tax.interval", "median"),
        "the step is within the interval"
    );
    // Each is a median of its own, so they sum to the whole about, not exactly.
    let parts = ["wake", "guest", "host", "validation", "queue"];
    let parts: f64 = parts.iter().map(|part| number(&format!("tax.stage_{part}"), "median")).sum();
    let whole = number("tax.total", "median");
    assert!((0.7..1.3).contains(&(parts / whole)), "the stages sum to {parts}, the tax is {whole}");
    let (anonymous, beside) =
        (number("server.anonymous", "median"), number("server.anonymous_beside", "median"));
    let packed = report["model"]["packed_bytes"].as_f64().expect("a number") / 1e6;
    assert!((anonymous - beside - packed).abs() < 0.01, "{anonymous} MB, {beside} MB beside {packed} MB");
    // README has 3.1 and 9.7 MB; another build, beside other tests, may have some more.
    assert!(beside <= 40.0, "{beside} MB beside the packed weights");
    assert!(figure("sequences.3")["label"].as_str().is_some_and(|label| label.contains("context 64")));
    assert_eq!(report["model"]["threads"], 2);
    let notes: Vec<&str> =
        report["notes"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(notes[0], "sequences.300 is left out: a batch has 256 rows, one for each sequence.");
    // Beside other tests the machine is busy, which is told too, as is a cache that the roof's bytes fit into.
    let of_the_machine = ["Others took ", "The last caches of this machine hold "];
    let rest = notes[1..].iter().filter(|note| !of_the_machine.iter().any(|start| note.starts_with(start)));
    assert!(
        rest.clone().count() == 2
            && rest.clone().any(|note| note.starts_with("A stage mark costs "))
            && rest.clone().any(|note| note.starts_with("Of 210 instances the slowest was ended in ")),
        "{notes:?}"
    );
    assert!(report["others"].as_f64().is_some_and(|others| (0.0..1.0).contains(&others)));

    // The same again in short, for people, against what was just written.
    let before = folder.path("before.json");
    std::fs::write(&before, &json).expect("written");
    let flags = ["--threads", "2", "--only", "decode.20", "--only", "tax", "--against"];
    let mut command = bench(&folder.path(""), &flags);
    command.arg(&before);
    let table = measured(command);
    println!("{table}");
    assert!(
        table.contains("one sequence at context 20") && table.contains(" of 1 figures changed"),
        "{table}"
    );
    assert!(table.contains("--inferlets"), "what was left out is said:\n{table}");
    left_nothing(&folder, None);
}

/// Whoever presses Ctrl-C gets a sentence, and neither a server nor a folder stays behind; also when nobody reads it.
#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    for (signal, status, read) in [("-INT", 130, true), ("-TERM", 143, false), ("-HUP", 129, true)] {
        let folder = Folder::new();
        let mut child = bench(&folder.path(""), &["--only", "server"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stderr = child.stderr.take().filter(|_| read);
        let since = Instant::now();
        // Its configuration for the server is the last thing it writes before it starts one.
        let config = folder.path(&format!("tartlet-bench-{}", child.id())).join("bench.toml");
        while !config.exists() {
            assert!(since.elapsed() < PATIENCE, "nothing was started");
            std::thread::sleep(Duration::from_millis(5));
        }
        let asked = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        assert!(asked.success());
        assert_eq!(child.wait().expect("our child").code(), Some(status), "{signal}");
        if let Some(stderr) = &mut stderr {
            let mut said = String::new();
            // Ends only when nobody holds the pipe any more: the server it started is gone too.
            std::io::Read::read_to_string(stderr, &mut said).expect("UTF-8");
            assert_eq!(said, "tartlet: The measuring was interrupted.\n");
        }
        left_nothing(&folder, Some(child.id()));
    }
}

fn left_nothing(folder: &Folder, child: Option<u32>) {
    let left = std::fs::read_dir(folder.path("")).expect("the folder").map(|entry| entry.expect("an entry"));
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "before.json").collect();
    assert!(left.is_empty(), "{left:?}");
    if let Some(child) = child {
        assert!(!Path::new("/dev/shm").join(format!("tartlet-bench-{child}")).exists());
    }
}

#[test]
fn a_wrong_request_is_a_sentence() {
    let folder = Folder::new();
    let nowhere = folder.path("nowhere").display().to_string();
    let other = folder.path("other.json");
    std::fs::write(&other, "{}").expect("written");
    let other = other.display().to_string();
    for (flags, status, part) in [
        (&["--threads", "none"] as &[&str], 64, "--threads none is not a whole number"),
        (&["--threads", "0"], 64, "threads = 0 is outside"),
        (&["--only", "taxes"], 64, "none of roof, prefill"),
        (&["--backend", "tpu"], 64, "none of auto, cuda, cpu"),
        (&["--backend", "cuda", "--libcuda", &nowhere, "--only", "roof"], 70, "is no CUDA driver"),
        (&["--backend", "cuda", "--libcuda", &nowhere, "--only", "decode"], 70, "is no CUDA driver"),
        (&["--against", &nowhere], 1, "nowhere"),
        (&["--against", &other], 1, "is not what `tartlet bench --json` writes"),
        (&["--inferlets", &nowhere], 1, "`make inferlets`"),
        (
            &["--only", "sequences.300"],
            1,
            "nothing is left to measure: sequences.300 is left out: a batch has",
        ),
        (&["--only", "sequences.100000", "--only", "prefill.9000"], 1, "the model's context has 8192 tokens"),
        (&["--only", "tax"], 1, "nothing is left to measure: "),
        (&["--config", &nowhere], 78, "nowhere cannot be read"),
    ] {
        let output = bench(&folder.path(""), flags).output().expect("it runs");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(status), "{flags:?}: {said}");
        assert!(said.starts_with("tartlet: ") && said.lines().count() == 1 && said.contains(part), "{said}");
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
    let none = tartlet().args(["bench", "--config", "/dev/null"]).output().expect("it runs");
    assert_eq!(none.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&none.stderr).contains("No model: give --model FILE.gguf"), "{none:?}");
}

/// What a box serves is measured without naming it again: its model, its sizes, and none of its keys.
#[test]
fn a_configuration_names_the_model_and_the_engine() {
    let folder = Folder::new();
    let config = folder.path("tartlet.toml");
    let text = format!(
        "listen = \"0.0.0.0:80\"\n[model]\npath = {:?}\n[engine]\nkv_cache = \"q8\"\nbatch_tokens = 8\nthreads = 1\n",
        model()
    );
    std::fs::write(&config, text).expect("written");
    let mut command = tartlet();
    command.env("TMPDIR", folder.path("")).args(["bench", "--json", "--config"]).arg(&config);
    command.args(["--only", "sequences.2", "--only", "sequences.9", "--only", "server"]);
    let report: Value = serde_json::from_str(&measured(command)).expect("one JSON object");
    let device = report["model"]["device"].as_str().expect("a text");
    assert!(device.contains("1 thread,") && device.ends_with("q8 K/V"), "{device}");
    assert_eq!(report["notes"][0], "sequences.9 is left out: a batch has 8 rows, one for each sequence.");
    let names: Vec<&str> = report["measures"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert!(names.starts_with(&["sequences.2", "server.ready"]), "{names:?}");
}
