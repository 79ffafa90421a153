//! What the bundle of `make gpu-check` makes of what programs say, and of its own end: a script stands for the binary.

mod support;

use serde_json::{Value, json};
use std::process::{Command, Stdio};
use support::bundle::{Bundle, row};
use support::finish::{finish, text};
use support::{Folder, root, tartlet};

/// What a script says that stands for the binary, after a self-test in which nothing is checked.
fn pretending(bundle: &Bundle, overlaps: bool, of_synth: &str) -> Command {
    let script = format!(
        "#!/bin/sh\ncase $1 in\nselftest) echo '{{\"device\": \"none\", \"overlaps\": {overlaps}, \"passed\": true, \"kernels\": [], \"checks\": []}}';;\n\
         bench) cat {};;\nsynth) for out; do :; done; {of_synth};;\nesac\n",
        bundle.one("bench.json").display()
    );
    bundle.program("tartlet", &script);
    std::fs::rename(bundle.folder.path("bin/tartlet"), bundle.one("tartlet")).expect("moved");
    bundle.write("recorded.json", &json!({ "checks": [] }));
    std::fs::create_dir(bundle.folder.path("scratch")).expect("a folder");
    // check.sh wants a program of this machine.
    let mut command = Command::new("python3");
    command.arg("-B").arg(bundle.one("check.py")).args(["--call", "1"]);
    command.env("TMPDIR", bundle.folder.path("scratch"));
    command
}

fn scratch(bundle: &Bundle) -> usize {
    std::fs::read_dir(bundle.folder.path("scratch")).expect("a folder").count()
}

/// A bar that nothing can be held against is neither met nor missed, and no figure stands in for another.
#[test]
fn what_nobody_knows_is_open() {
    let bundle = Bundle::new();
    let measure = |name: &str, median: f64| json!({ "name": name, "median": median, "unit": "tokens/s" });
    let mut slow = measure("decode.2", 1e6);
    slow["share"] = 0.1.into();
    let measures = [measure("prefill.5", 1e6), measure("decode.1", 1e6), slow, measure("sequences.4", 1e6)];
    bundle.write("bench.json", &json!({ "measures": measures, "notes": [] }));
    let share = json!([{ "of": "share", "bar": 0.5 }]);
    // A killed maker leaves what it has begun, and the next one must not find it.
    let script = "[ \"$(ls \"${out%/*}\")\" = '' ] || exit 1; touch \"$out.tartlet-part\"; kill -9 $$";
    let mut command = pretending(&bundle, false, script);
    bundle.write(
        "plan.json",
        &json!({ "room_mb": 1_000_000_000, "models": [
            { "name": "killed", "shape": "a", "quant": "b", "figures": [] },
            { "name": "killed too", "shape": "a", "quant": "b", "figures": [] },
            {
                "name": "toy", "file": "plan.json", "values": 1000, "figures": ["prefill.5", "decode.1", "decode.2", "tax"],
                "bars": {
                    "prefill.5": share, "decode.1": share,
                    "decode.2": [{ "of": "share", "bar": 0.5 }, { "of": "times", "bar": 2 }],
                    "sequences.4": [{ "of": "times", "bar": 2, "unit": "times" }],
                    "decode.9": [{ "of": "median", "bar": 1 }],
                },
            },
        ] }),
    );
    command.env("PYTHONPATH", bundle.folder.path("no-torch"));
    std::fs::create_dir(bundle.folder.path("no-torch")).expect("a folder");
    std::fs::write(bundle.folder.path("no-torch/torch.py"), "raise ImportError").expect("written");
    let output = finish(command);
    let table = text(&output.stdout);
    println!("{table}");
    for name in ["killed", "killed too"] {
        let (state, result) = row(&table, &format!("{name}, made"));
        assert!(state == "FAILED" && result.ends_with("it ended with status -9 and said nothing"), "{table}");
    }
    for (name, state, part) in [
        ("prefill.5", "open", "at least 50 % wanted: that is not known"),
        ("decode.1", "open", "at least 50 % wanted: that is not known"),
        ("decode.2", "short", "at least 50 % wanted: missed; at least 2 wanted: that is not known"),
        ("sequences.4", "open", "at least 2 times wanted: that is not known"),
        ("decode.9", "open", "it was not measured"),
        ("tax", "open", "it was not measured"),
    ] {
        let (got, result) = row(&table, &format!("toy, {name}"));
        assert!(got == state && result.contains(part), "{name}:\n{table}");
    }
    assert!(
        table.contains("gpu-check 2 FAILED, 1 short, 7 open (machine; PyTorch; toy, prefill.5; "),
        "{table}"
    );
    assert_eq!(bundle.result()["open"].as_array().map(Vec::len), Some(7));
    assert_eq!(scratch(&bundle), 0);
}

/// What `make gpu-check` ships asks for what the binary has, and every bar is of a figure that is asked for.
#[test]
fn the_plan_asks_for_what_there_is() {
    let plan = std::fs::read(root().join("tests/gpu/plan.json")).expect("the plan");
    let plan: Value = serde_json::from_slice(&plan).expect("JSON");
    let models = plan["models"].as_array().expect("an array");
    let names: Vec<&str> = models.iter().filter_map(|model| model["name"].as_str()).collect();
    assert_eq!(
        names,
        ["8B q4_0", "1B bf16", "1B q4_0", "135M q4_1"],
        "the largest first: it is what a card is lent for"
    );
    let folder = Folder::new();
    let there = folder.path("there.gguf");
    std::fs::write(&there, "").expect("written");
    let said = |words: &[&str]| {
        let mut command = tartlet();
        command.args(words);
        text(&finish(command).stderr)
    };
    for model in models {
        let [shape, quant] = ["shape", "quant"].map(|of| model[of].as_str().expect("a name"));
        let said = said(&["synth", "--shape", shape, "--quant", quant, there.to_str().expect("UTF-8")]);
        assert!(said.contains("is there"), "{shape} in {quant} is known: {said}");
    }
    let (mut overlapping, mut held) = (0, 0);
    for model in models.iter().chain([&plan["real"]["bench"]]) {
        let figures = model["figures"].as_array().expect("an array").iter();
        let figures: Vec<&str> = figures.map(|figure| figure.as_str().expect("a figure")).collect();
        let absent = folder.path("absent.gguf");
        let mut words = vec!["bench", "--model", absent.to_str().expect("UTF-8")];
        words.extend(figures.iter().flat_map(|figure| ["--only", figure]));
        let said = said(&words);
        assert!(said.contains("absent.gguf"), "{figures:?} are known: {said}");
        for (of, bars) in model["bars"].as_object().into_iter().flatten() {
            let asked = figures.iter().any(|figure| format!("{of}.").starts_with(&format!("{figure}.")));
            assert!(asked, "{}: {of} has a bar, and is not measured", model["name"]);
            held += 1;
            for bar in bars.as_array().expect("an array") {
                let words = ["of", "bar", "unit", "most", "overlapping", "goal"];
                assert!(bar.as_object().expect("a bar").keys().all(|key| words.contains(&&**key)), "{bar}");
                let kind = bar["of"].as_str().expect("of what");
                let known = match of.split('.').next() {
                    Some("sequences") => ["median", "times"],
                    _ => ["median", "share"],
                };
                assert!(known.contains(&kind), "{of}: {bar}");
                overlapping += usize::from(bar["overlapping"].is_number());
                // From the easiest to the hardest.
                let steps = ["bar", "overlapping", "goal"].into_iter().filter_map(|it| bar[it].as_f64());
                let steps: Vec<f64> = steps.collect();
                assert!(bar["bar"].is_number(), "{bar}");
                assert!(
                    if bar["most"] == true { steps.is_sorted_by(|a, b| a >= b) } else { steps.is_sorted() },
                    "{bar}"
                );
            }
        }
    }
    assert_eq!(
        (held, overlapping),
        (9, 1),
        "figures with bars, and bars that are higher where launches overlap"
    );
    let programs = plan["real"]["chat"]["program"].as_str().expect("a program");
    let makefile = std::fs::read_to_string(root().join("Makefile")).expect("the Makefile");
    assert!(makefile.contains(&format!("$(addprefix $(GUESTS)/,{programs} ")), "the bundle has {programs}");
}

/// Where launches overlap the bar is another; a goal that is not reached is told, and no more.
#[test]
fn a_bar_is_held_against_the_device() {
    for (overlaps, state, part) in [
        (false, "ok", "at least 50 % (goal 80 %) wanted"),
        (true, "short", "at least 60 % (goal 80 %) wanted: missed"),
    ] {
        let bundle = Bundle::new();
        let measure = json!({ "name": "decode.1", "median": 1.0, "unit": "tokens/s", "share": 0.55 });
        bundle.write("bench.json", &json!({ "measures": [measure], "notes": [] }));
        let command = pretending(&bundle, overlaps, "exit 1");
        let bar = json!({ "of": "share", "bar": 0.5, "overlapping": 0.6, "goal": 0.8 });
        bundle.write(
            "plan.json",
            &json!({ "models": [{
                "name": "toy", "file": "plan.json", "values": 1, "figures": ["decode.1"], "bars": { "decode.1": [bar] },
            }] }),
        );
        let table = text(&finish(command).stdout);
        let (got, result) = row(&table, "toy, decode.1");
        assert!(got == state && result.ends_with(part), "{overlaps}:\n{table}");
        assert_eq!(bundle.result()["overlaps"], overlaps);
    }
}

/// Whoever presses Ctrl-C, hangs up or ends it otherwise gets a sentence and no remains.
#[test]
fn an_interrupted_gpu_check_leaves_nothing_behind() {
    for (signal, status) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let bundle = Bundle::new();
        let started = bundle.folder.path("started");
        let script = format!(
            "sleep 600 & echo $! > {0}.part; mv {0}.part {0}; touch \"$out\"; wait",
            started.display()
        );
        let mut command = pretending(&bundle, false, &script);
        let model = json!({ "name": "long", "shape": "a", "quant": "b", "figures": [] });
        bundle.write("plan.json", &json!({ "room_mb": 1_000_000_000, "models": [model] }));
        let mut killer = Command::new("sh");
        // Beside us, as a terminal is.
        killer
            .args(["-c", "while ! [ -e \"$1\" ]; do sleep 0.05; done; kill -\"$2\" \"$3\"", "sh"])
            .arg(&started);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3 runs");
        assert!(killer.args([signal, &child.id().to_string()]).status().expect("sh runs").success());
        let output = child.wait_with_output().expect("our child");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert_eq!(
            said,
            format!(
                "gpu-check: it was interrupted (SIG{signal}) after 4 rows; they are in result.json, and nothing else is left\n"
            )
        );
        assert_eq!(scratch(&bundle), 0);
        let sleeper = std::fs::read_to_string(&started).expect("it was started");
        let state = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
        assert_eq!(bundle.result()["passed"], false);
    }
}
