//! The bundle of `make gpu-check`, on the stand-in driver: what it compares, what it says of a machine that lacks something,
//! and all its stages with a model of two layers in the real one's place.

mod support;

#[path = "support/decoders.rs"]
#[allow(dead_code)]
mod decoders;
#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which a part is used
mod gguf;

use decoders::LLAMA;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use support::bundle::{Bundle, row};
use support::finish::{finish, text};
use support::stand_in::stand_in;
use support::{binary, guest, tartlet};
use tartlet::backend::cpu::{Cpu, CpuOptions, KvFormat};
use tartlet::backend::crew::Crew;
use tartlet::backend::{Batch, DrawKey, Input, Mask, Outcome, PageId, Sequence, TokenId};
use tartlet::model::Model;

/// With the binary, and the record that it made on the stand-in driver.
fn bundle() -> Bundle {
    let bundle = Bundle::new();
    std::os::unix::fs::symlink(binary(), bundle.one("tartlet")).expect("a link");
    bundle.write("recorded.json", &recorded());
    bundle
}

/// What the self-test finds on the stand-in driver; it takes its time, so the tests share one.
fn recorded() -> Value {
    static RECORDED: OnceLock<Value> = OnceLock::new();
    let record = || {
        let mut selftest = tartlet();
        selftest.args(["selftest", "--backend", "cuda", "--json", "--libcuda"]).arg(stand_in());
        let recorded = finish(selftest);
        assert!(recorded.status.success(), "{}", text(&recorded.stderr));
        serde_json::from_slice(&recorded.stdout).expect("JSON")
    };
    RECORDED.get_or_init(record).clone()
}

/// The bundle of `make gpu-check`, on the stand-in driver: what the device computes is compared with what was recorded.
#[test]
fn the_gpu_check_compares_with_what_was_recorded() {
    let bundle = bundle();
    // Another order of warps is another device, to the kernels.
    let output = bundle.check(&["--call", "1"], "seed=5");
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    for part in [
        "registers",
        "gemv_q4_0",
        "launches as on the emulator",
        "apart, 4.9e-04 allowed",
        "gpu-check passed, 2 open (machine; PyTorch); the numbers",
    ] {
        assert!(table.contains(part), "nothing of {part}:\n{table}");
    }
    assert_eq!(row(&table, "hello").0, "ok", "{table}");
    assert_eq!(bundle.result()["passed"], true);

    assert!(recorded().to_string().len() < 4 << 20, "the record has 4 MB at most");

    // A device that computes something else: other bits where bits are compared, other numbers where these are.
    let mut other = recorded().clone();
    let launches = other["checks"]
        .as_array_mut()
        .expect("an array")
        .iter_mut()
        .filter_map(|it| it["launches"].as_array_mut());
    let mut launches: Vec<&mut Value> = launches.flatten().collect();
    let mut changed = Vec::new();
    let exact = launches.iter_mut().filter(|launch| launch["digest"].is_string()).nth(20).expect("a digest");
    exact["digest"] = "0".repeat(64).into();
    changed.push(exact["launch"].clone());
    let near = launches.iter_mut().find(|launch| launch["numbers"].is_string()).expect("numbers");
    // 1.5 for the first number: the others are right.
    near["numbers"] = format!("0000c03f{}", &near["numbers"].as_str().expect("digits")[8..]).into();
    changed.push(near["launch"].clone());
    // One of which nothing is expected; one that nobody recorded; a check that nobody recorded.
    let bare = launches.iter_mut().filter(|launch| launch["digest"].is_string()).nth(30).expect("a digest");
    bare.as_object_mut().expect("an object").remove("digest");
    changed.push(bare["launch"].clone());
    let renamed =
        launches.iter_mut().filter(|launch| launch["digest"].is_string()).nth(40).expect("a digest");
    changed.push(renamed["launch"].clone());
    renamed["launch"] = "of another".into();
    changed.push(renamed["launch"].clone());
    let gone = |check: &Value| check["name"] != "cap_logits";
    other["checks"].as_array_mut().expect("an array").retain(gone);
    bundle.write("recorded.json", &other);
    let output = bundle.check(&["--call", "1"], "");
    assert_eq!(output.status.code(), Some(1));
    let table = text(&output.stdout);
    assert_eq!(table.matches("NOT as on the emulator").count(), 5, "{table}");
    let (state, result) = row(&table, "cap_logits");
    assert!(state == "FAILED" && result.starts_with("not recorded on the emulator"), "{table}");
    for launch in changed {
        let named = format!("NOT as on the emulator: {}, seed ", launch.as_str().expect("a name"));
        assert!(table.contains(&named), "{launch} is not named:\n{table}");
    }
}

/// What the machine lacks is said in one sentence, and a sanitizer that hangs is ended with all that it has started.
#[test]
fn the_gpu_check_bears_with_its_machine() {
    let bundle = bundle();
    let started = bundle.folder.path("started");
    // memcheck hangs behind the program that it has started, racecheck finds something; the others say what they were given.
    bundle.program(
        "compute-sanitizer",
        &format!(
            "#!/bin/sh\n[ \"$2\" = racecheck ] && {{ echo '========= RACECHECK SUMMARY: 1 hazard'; exit 9; }}\n\
             [ \"$2\" = memcheck ] || {{ echo \"========= $*\"; exit 0; }}\nsleep 600 &\necho $! >{}\nwait\n",
            started.display()
        ),
    );
    bundle.write("plan.json", &json!({ "models": [], "real": {} }));
    let output = bundle.check(&["--call", "2", "--patience", "2"], "");
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}{}", text(&output.stderr));
    let state = |name: &str| row(&table, &format!("compute-sanitizer, {name}")).0;
    // What nobody knows is no failure; what was found is one.
    assert_eq!(
        ["memcheck", "racecheck", "initcheck", "synccheck"].map(state),
        ["open", "FAILED", "ok", "ok"],
        "{table}"
    );
    assert!(
        table.contains("it did not end within 2 s") && table.contains("RACECHECK SUMMARY: 1 hazard"),
        "{table}"
    );
    assert_eq!(table.matches("selftest --backend cuda --untimed --libcuda").count(), 2, "{table}");
    assert_eq!(row(&table, "real model").0, "FAILED", "there is no model.json: {table}");
    let child = std::fs::read_to_string(&started).expect("it was started");
    let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    // Gone, or a zombie until init has looked.
    assert!(state.is_empty() || state.contains(") Z "), "{state}");

    // A device that cannot be used: the first row says so, and nothing is tried that needs one.
    bundle.write(
        "plan.json",
        &json!({ "models": [{ "name": "none", "file": "none.gguf", "figures": ["roof"] }] }),
    );
    let output = bundle.check(&[], "no-device");
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}{}", text(&output.stderr));
    let (state, result) = row(&table, "hello");
    assert!(state == "FAILED" && result.contains("sees no GPU"), "{table}");
    assert_eq!(row(&table, "all else"), ("open".to_owned(), "the device does not greet".to_owned()));
    let result = bundle.result();
    assert!(
        result["passed"] == false && result["why"].as_str().is_some_and(|why| why.contains("sees no GPU")),
        "{result}"
    );

    // Without Python the self-test alone runs, with its own words.
    bundle.write("result.json", &json!({ "passed": true }));
    for tool in ["sh", "dirname", "rm", "od", "tr", "uname", "grep", "cut", "sort", "tail", "getconf"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").expect("a PATH"))
            .map(|folder| folder.join(tool))
            .find(|path| path.is_file());
        std::fs::create_dir_all(bundle.folder.path("few")).expect("a folder");
        std::os::unix::fs::symlink(found.expect(tool), bundle.folder.path("few").join(tool)).expect("a link");
    }
    let mut command = Command::new(bundle.one("check.sh"));
    command.env("PATH", bundle.folder.path("few")).env("STAND_IN_DRIVER", "no-device");
    command.arg("--libcuda").arg(stand_in()).args([
        "--patience",
        "3",
        "--call=1",
        "--quick",
        "--out",
        "/tmp",
        "--json",
    ]);
    let output = finish(command);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{said}");
    assert!(said.contains("There is no python3") && said.contains("sees no GPU"), "{said}");
    assert!(!bundle.one("result.json").exists(), "it is an earlier run's");

    let one_sentence = |part: &str| {
        let output = bundle.check(&["--quick"], "");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.lines().count() == 1 && said.contains(part), "{said}");
    };
    let lock = std::fs::File::open(bundle.one("check.py")).expect("it is there");
    lock.lock().expect("nobody else has it");
    one_sentence("another gpu-check runs from this folder");
    drop(lock);
    bundle.program("getconf", "#!/bin/sh\necho glibc 2.17\n");
    one_sentence("and this machine has glibc 2.17: run make gpu-check");
    bundle.program("getconf", "#!/bin/sh\nexit 1\n");
    one_sentence("and this machine has another C library");
    std::fs::remove_file(bundle.folder.path("bin/getconf")).expect("it is there");
    bundle.program("uname", "#!/bin/sh\necho riscv64\n");
    one_sentence("another kind of processor than this machine's riscv64");
    std::fs::remove_file(bundle.folder.path("bin/uname")).expect("it is there");
    std::fs::remove_file(bundle.one("plan.json")).expect("it is there");
    one_sentence("plan.json cannot be read");
    assert_eq!(bundle.result()["passed"], false);
    // Nobody may write here, not even root.
    std::fs::remove_file(bundle.one("result.json")).expect("it is there");
    std::fs::create_dir(bundle.one("result.json")).expect("a folder in its place");
    one_sentence("result.json cannot be written");
}

/// A golden file of a decoder: what the processor makes of a text, and of the tokens that it finds the best.
fn golden(path: &Path, words: &str, steps: usize) -> Value {
    let model = Arc::new(Model::open(path, None, None).unwrap_or_else(|error| panic!("{error}")));
    let options = CpuOptions {
        pages: Some(4),
        page_size: 16,
        embeds: 0,
        batch_tokens: 64,
        kv: KvFormat::F16,
        exact: false,
    };
    let mut cpu =
        Cpu::load(model.clone(), options, Crew::threads(1)).unwrap_or_else(|error| panic!("{error}"));
    let ids = model.tokenizer.encode(words);
    let (mut fed, mut made) = (ids.clone(), Vec::new());
    while made.len() < steps {
        let sequence = Sequence {
            pages: (0..4).map(PageId).collect(),
            len: fed.len() as u32,
            inputs: fed.iter().map(|&id| Input::Token(id)).collect(),
            positions: (0..fed.len() as u32).collect(),
            mask: Mask::Causal,
            outputs: Vec::new(),
            draw: DrawKey { seed: 0, queue: 0, pass: 0 },
        };
        let batch = Batch { sequences: vec![sequence] };
        let logits = cpu
            .run_with_logits(&batch, &[fed.len() - 1], &mut Outcome::default())
            .expect("no fault")
            .remove(0);
        let mut top: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, &it)| (id as u32, it.into())).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        top.truncate(10);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        fed.push(TokenId(top[0].0));
        made.push(json!({ "top": top, "logsumexp": sum.ln() }));
    }
    let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
    json!([{ "name": "fox", "text": words, "ids": ids, "steps": made }])
}

/// Every stage, with a small model in the place of each: what it finds, what it says where a part is missing or broken, and
/// that none stops the next.
#[test]
fn the_gpu_check_goes_through_all_its_stages() {
    let bundle = bundle();
    let model = bundle.one("small.gguf");
    std::fs::write(&model, LLAMA.bytes()).expect("written");
    bundle.write("golden.json", &golden(&model, "The quick brown fox", 4));
    for name in ["completion", "echo", "rogue"] {
        std::fs::copy(guest(name), bundle.one(&format!("programs/{name}.wasm"))).expect("copied");
    }
    let mut split = Command::new("python3");
    split
        .arg(bundle.one("split.py"))
        .arg(&model)
        .arg(bundle.one(""))
        .arg(bundle.folder.path("two"))
        .arg("50000");
    assert!(split.status().expect("python3 runs").success());
    let bench = |name: &str, more: &[&str]| {
        let figures = [&["roof", "prefill.5", "decode.8", "sequences.1", "sequences.2"], more].concat();
        json!({
            "name": name, "file": "small.gguf", "values": 100_000, "figures": figures,
            "bars": {
                "decode.8": [{ "of": "share", "bar": 0.0 }],
                "sequences.2": [{ "of": "times", "bar": 1000, "unit": "times" }],
            },
        })
    };
    bundle.write(
        "plan.json",
        &json!({
            "models": [
                { "name": "smallest", "shape": "smollm2-135m", "quant": "q4_0", "figures": [] },
                { "name": "unknown", "shape": "llama-7b", "quant": "q4_0", "figures": ["roof"] },
                bench("toy", &[]),
            ],
            "real": {
                "prompt": "fox",
                "bench": bench("real toy", &["tax"]),
                "chat": { "program": "completion.wasm", "arguments": ["--max-tokens", "3", "The fox"], "answer": "" },
            },
        }),
    );
    // As ncu's --csv does, of a prompt and a step.
    let launch = |id: u32, kernel: &str| {
        let line = |metric: &str, unit: &str, value: &str| {
            format!("\"{id}\",\"{kernel}\",\"{metric}\",\"{unit}\",\"{value}\"\n")
        };
        line("dram__bytes_read.sum", "byte", "1,000,000")
            + &line("dram__bytes_write.sum", "byte", "500,000")
            + &line("gpu__time_duration.sum", "ns", "2,000")
    };
    let kernels = ["embed_q8_0", "gemm_q4_0", "embed_q8_0", "gemv_q4_0", "gemv_q4_0"];
    let csv: String = (0..).zip(kernels).map(|(id, kernel)| launch(id, kernel)).collect();
    let csv = format!(
        "==PROF== Connected\n\"ID\",\"Kernel Name\",\"Metric Name\",\"Metric Unit\",\"Metric Value\"\n{csv}"
    );
    std::fs::write(bundle.folder.path("ncu.csv"), csv).expect("written");
    bundle.program(
        "ncu",
        &format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --log-file ] && cp {} \"$2\"; shift; done\n",
            bundle.folder.path("ncu.csv").display()
        ),
    );
    bundle.program(
        "llama-bench",
        "#!/bin/sh\necho '[{\"n_prompt\": 512, \"avg_ts\": 1000.5}, {\"n_prompt\": 0, \"avg_ts\": 90}]'\n",
    );

    let out = bundle.folder.path("out");
    std::fs::create_dir(&out).expect("a folder");
    let output = bundle.check(&["--call", "1", "--out", out.to_str().expect("UTF-8")], "");
    let table = text(&output.stdout);
    println!("{table}");
    // What is not known is told, and the next model is measured.
    assert_eq!(output.status.code(), Some(1), "{table}{}", text(&output.stderr));
    let (state, result) = row(&table, "unknown, made");
    assert!(state == "FAILED" && result.contains("--shape llama-7b is none of"), "{table}");
    assert_eq!(row(&table, "unknown, measured").0, "open", "{table}");
    let (state, result) = row(&table, "smallest, made");
    assert!(
        state == "ok"
            && !result.contains("random.gguf")
            && result.contains("the shape of SmolLM2 135M in Q4_0"),
        "{table}"
    );
    for (name, state, part) in [
        ("toy, roof.copy", "ok", "GB/s"),
        ("toy, prefill.5", "ok", "TFLOP/s"),
        ("toy, decode.8", "ok", "% of the copy; at least 0 % wanted"),
        ("toy, sequences.1", "ok", "tokens/s"),
        ("toy, sequences.2", "short", "times one; at least 1000 times wanted: missed"),
    ] {
        let (got, result) = row(&table, name);
        assert!(got == state && result.contains(part), "{name}:\n{table}");
    }
    let result = bundle.result();
    assert!(result["bench"]["toy"]["measures"].as_array().is_some_and(|all| all.len() == 5), "{result}");
    let brought = std::fs::read_to_string(out.join("result.json")).expect("it is written there too");
    assert!(brought.len() < 16_000_000 && brought == result_text(&bundle), "another result");

    // The second part is not here yet; then it is broken; then all is well.
    let second = bundle.folder.path("two/model.2");
    let whole = std::fs::read(&second).expect("a part");
    let mut broken = whole.clone();
    broken[100] ^= 1;
    for (part, state, says) in [
        (None, "open", "model.2 is not here: bring `two` beside `one`"),
        (Some(&broken), "FAILED", "its sha256 differs"),
        (Some(&whole), "ok", "of 2 parts"),
    ] {
        match part {
            None => std::fs::remove_file(&second).expect("it is there"),
            Some(bytes) => std::fs::write(&second, bytes).expect("written"),
        }
        let output = bundle.check(&["--call", "2", "--quick"], "");
        let table = text(&output.stdout);
        println!("{table}");
        assert_eq!(output.status.success(), state != "FAILED", "{table}{}", text(&output.stderr));
        let (got, result) = row(&table, "real model");
        assert!(got == state && result.contains(says), "{table}");
        if state != "ok" {
            assert_eq!(row(&table, "golden prompts, chat, speed").0, "open", "{table}");
            continue;
        }
        for (name, part) in [
            ("hello", "one kernel ran on PTX emulator"),
            ("golden prompts", " of them clear: top1_clear 1, top1 "),
            ("chat", "' in "),
            ("real toy, decode.8", "% of the copy"),
            ("real toy, tax.total", "µs"),
            ("llama.cpp", "prompt of 512 1,000.5 tokens/s, decode 90 tokens/s"),
            ("ncu", "3 launches, 3.0 MB of DRAM read and 1.5 MB written, 6 µs of kernels"),
        ] {
            let (got, result) = row(&table, name);
            assert!(got == "ok" && result.contains(part), "{name}:\n{table}");
        }
    }

    // A golden file that is another model's is told, and the chat goes on.
    let mut other = golden(&model, "The quick brown fox", 2);
    other[0]["steps"][1]["top"][0][1] = 30.0.into();
    bundle.write("golden.json", &other);
    let output = bundle.check(&["--call", "2", "--quick"], "");
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert_eq!(
        (row(&table, "golden prompts").0.as_str(), row(&table, "chat").0.as_str()),
        ("FAILED", "ok"),
        "{table}"
    );
    assert!(
        bundle.result()["why"].as_str().is_some_and(|why| why.starts_with("golden prompts: ")),
        "{table}"
    );

    // A call without time for anything does not pass.
    let output = bundle.check(&["--call", "2", "--quick", "--seconds", "0.5"], "");
    let table = text(&output.stdout);
    assert!(!output.status.success() && row(&table, "hello").1 == "no time was left", "{table}");
}

fn result_text(bundle: &Bundle) -> String {
    std::fs::read_to_string(bundle.one("result.json")).expect("the result")
}
