//! The real binary serves a model from a GPU, on the stand-in driver: what it answers, what it says where it cannot, and how
//! it ends when the device fails in the middle of a batch.

mod support;

#[path = "support/decoders.rs"]
#[allow(dead_code)]
mod decoders;
#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which a part is used
mod gguf;

use decoders::{Decoder, FAMILIES, Format, LLAMA, Q4_0, Q4_K, Q6_K};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use support::client::{Client, Ended};
use support::stand_in::stand_in;
use support::{Folder, PATIENCE, Server, small_model, tartlet};

const PROMPT: &str = "The quick brown fox jumps over the lazy dog";

/// A file with a decoder in it.
fn file(folder: &Folder, decoder: Decoder) -> PathBuf {
    let path = folder.path("decoder.gguf");
    std::fs::write(&path, decoder.bytes()).expect("written");
    path
}

fn completion(server: &Server, tokens: &str) -> Ended {
    completion_of(server, PROMPT, tokens)
}

fn completion_of(server: &Server, prompt: &str, tokens: &str) -> Ended {
    smol::block_on(async {
        let mut client = Client::connect(server).await;
        client.run("completion", &["--max-tokens", tokens, prompt]).await
    })
}

/// The log, once this is in it.
fn logged(server: &Server, part: &str) -> String {
    let started = Instant::now();
    loop {
        let log = server.log();
        if log.contains(part) {
            return log;
        }
        assert!(started.elapsed() < PATIENCE, "nothing of {part}: {log}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `tartlet serve` where it does not come to serve.
fn refused(model: &PathBuf, told: &str, flags: &[&str], config: &str) -> Output {
    let folder = Folder::new();
    let path = folder.path("tartlet.toml");
    std::fs::write(&path, config).expect("written");
    let mut command = tartlet();
    command.arg("serve").arg("--model").arg(model).arg("--state").arg(folder.path("state"));
    command.args(["--no-auth", "--listen", "127.0.0.1:0", "--config"]).arg(path).args(flags);
    command.env("STAND_IN_DRIVER", told).env_remove("LD_LIBRARY_PATH");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let started = Instant::now();
    while child.try_wait().expect("it is a child").is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().expect("it is a child");
            panic!("{command:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("it has ended")
}

fn sentence(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("tartlet: ")).collect();
    assert_eq!(ours.len(), 1, "{said}");
    ours[0].to_owned()
}

/// Of each family, greedily: the best token leads by more than what the backends' arithmetic differs in. The prompt is more than
/// the first batch holds, so the second is put behind it while it runs. On a device whose launches overlap, too.
#[test]
fn a_program_hears_the_same_from_the_gpu_and_the_processor() {
    for decoder in FAMILIES {
        let folder = Folder::new();
        let model = file(&folder, Decoder { leads: true, ..decoder });
        let on_cpu = Server::of(model.clone(), "", &["--backend", "cpu"]);
        let want = completion(&on_cpu, "12");
        assert_eq!(want.event, 1, "{want:?}");
        assert!(!want.text.is_empty());
        for (told, overlap) in [("graphs", false), ("graphs capability=90 version=12030", true)] {
            let on_gpu = Server::on_stand_in(model.clone(), told, &[]);
            logged(&on_gpu, "cuda, PTX emulator (stand-in driver, no GPU), f16 K/V; ");
            let got = completion(&on_gpu, "12");
            let name = decoder.architecture;
            assert_eq!((got.event, &got.text), (want.event, &want.text), "{name}, {told}");
            let log = logged(&on_gpu, if overlap { " +attend_" } else { " attend_" });
            assert_eq!(log.contains(" +"), overlap, "{name}, {told}: {log}");
        }
    }
}

/// Runs `tartlet eval` of a model and a golden file in the same folder.
fn evaluated(folder: &Folder, flags: &[&str]) -> Output {
    let mut command = tartlet();
    command.arg("eval").arg("--model").arg(folder.path("decoder.gguf")).args(flags);
    command.arg(folder.path("golden.json")).env_remove("LD_LIBRARY_PATH").env_remove("STAND_IN_DRIVER");
    command.output().expect("the binary runs")
}

/// Against the same golden file the GPU's logits are as far off as the processor's: those of the prompt's last row, and
/// those of each token behind it.
#[test]
fn logits_of_the_gpu_are_measured_as_the_processors() {
    let folder = Folder::new();
    file(&folder, LLAMA);
    let top: Vec<(u32, f64)> = (0..decoders::VOCAB as u32).map(|id| (id, 0.0)).collect();
    let step = json!({ "top": top, "logsumexp": (decoders::VOCAB as f64).ln() });
    let prompt = |name: &str, steps: usize| json!({ "name": name, "text": PROMPT, "ids": [], "greedy": [7, 8, 9], "steps": vec![step.clone(); steps] });
    let golden = json!([prompt("short", 1), prompt("long", 4)]);
    std::fs::write(folder.path("golden.json"), golden.to_string()).expect("written");
    let library = stand_in().to_str().expect("UTF-8");
    let cuda = ["--backend", "cuda", "--libcuda", library];
    let report = |flags: &[&str]| -> Value {
        let output = evaluated(&folder, flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let (want, got) = (report(&[]), report(&cuda));
    assert!(want["device"].as_str().is_some_and(|device| device.starts_with("cpu, ")), "{want}");
    assert!(got["device"].as_str().is_some_and(|device| device.starts_with("cuda, PTX emulator")), "{got}");
    for prompt in 0..2 {
        let [want, got] = [&want["prompts"][prompt], &got["prompts"][prompt]];
        for (name, within) in [("max_logit_diff", 0.03), ("mean_kl", 0.01)] {
            let [want, got] = [&want[name], &got[name]].map(|it| it.as_f64().expect("a number"));
            assert!(want > 0.1 && (want - got).abs() < within, "{name}: {want} and {got}");
        }
        assert_eq!(want["steps"], got["steps"]);
    }
    let part = report(&[&cuda[..], &["--prompt", "long", "--steps", "2"]].concat());
    assert!(part["steps"] == 2 && part["prompts"][0]["name"] == "long", "{part}");

    let absent = folder.path("libcuda.so.1");
    let absent = ["--backend", "cuda", "--libcuda", absent.to_str().expect("UTF-8")];
    for (flags, status, part) in [
        (&["--strict"][..], 1, "ids_equal is false"),
        (&["--prompt", "none"], 1, "it has no prompt `none`"),
        (&["--steps", "0"], 64, "--steps 0 is not"),
        (&["--backend", "tpu"], 64, "neither cuda nor cpu"),
        (&["--backend", "cuda", "--plain"], 64, "--plain is a path of the processor"),
        (&absent, 70, "is no CUDA driver"),
        (&[&cuda[..], &["--kv", "q8"]].concat(), 1, "f16, but kv_cache is q8"),
    ] {
        let output = evaluated(&folder, flags);
        assert!(sentence(&output).contains(part), "{}", sentence(&output));
        assert_eq!(output.status.code(), Some(status), "{flags:?}");
    }
}

/// Where device and driver know launches that overlap, they do, and what is said is the same.
#[test]
fn launches_overlap_where_they_can() {
    let folder = Folder::new();
    let model = file(&folder, Decoder { formats: &[Q4_0], ..LLAMA });
    let mut said = Vec::new();
    for (told, overlap) in [
        ("graphs capability=90 version=12030", true),
        ("graphs capability=90 version=12020", false),
        ("graphs capability=89 version=12030", false),
    ] {
        let server = Server::on_stand_in(model.clone(), told, &[]);
        let heard = completion(&server, "8");
        assert_eq!(heard.event, 1, "{told}: {heard:?}");
        said.push(heard.text);
        let log = server.log();
        let layer =
            "fused_qkv_q4_0 +attend_64 +fused_output_q4_0 +fused_gate_up_q4_0 +gemv_q4_0 +fused_qkv_q4_0";
        assert_eq!(log.contains(layer), overlap, "{told}: {log}");
        assert_eq!(log.contains(" +"), overlap, "{told}: {log}");
    }
    assert!(said.iter().all(|text| *text == said[0] && !text.is_empty()), "{said:?}");
}

/// With `cuda` nothing else serves in the GPU's place.
#[test]
fn a_gpu_that_cannot_be_used_is_a_sentence() {
    let folder = Folder::new();
    let model = file(&folder, LLAMA);
    let absent = folder.path("libcuda.so.1");
    let absent = ["--backend", "cuda", "--libcuda", absent.to_str().expect("UTF-8")];
    let there = ["--backend", "cuda", "--libcuda", stand_in().to_str().expect("UTF-8")];
    let wide = Folder::new();
    let wide = file(&wide, Decoder { head_dim: 32, ..LLAMA });
    for (model, told, flags, config, status, parts) in [
        (&model, "", absent, "", 70, &["is no CUDA driver"][..]),
        (&model, "no-device", there, "", 70, &["sees no GPU"]),
        (&model, "capability=75", there, "", 70, &["kernels need 8.0"]),
        (&model, "jit", there, "", 70, &["INVALID_PTX", "application ptx input, line 1"]),
        (&model, "cuMemAlloc_v2@3=2", there, "", 70, &["The GPU has no room for "]),
        (&model, "memory=2000000", there, "", 78, &["The model takes ", "of its 2 MB 1 MB can be had"]),
        (
            &model,
            "",
            there,
            "[engine]\nkv_tokens = 1000000",
            78,
            &["kv_tokens = 1000000 takes ", "room for "],
        ),
        (
            &model,
            "",
            there,
            "[engine]\npage_size = 32",
            78,
            &["KV pages have 16 tokens, but page_size is 32"],
        ),
        (&model, "", there, "[engine]\nkv_cache = \"q8\"", 78, &["f16, but kv_cache is q8"]),
        (&wide, "", there, "", 78, &["heads of 64, 96, 128, 256 values, but the model's have 32"]),
        (&small_model(), "", there, "", 78, &["the GPU"]),
        (&model, "", ["--backend", "tpu", "--seed", "1"], "", 78, &["none of auto, cuda, cpu"]),
    ] {
        let output = refused(model, told, &flags, config);
        let said = sentence(&output);
        assert_eq!(output.status.code(), Some(status), "{told} {config}: {said}");
        assert!(output.stdout.is_empty(), "{told} {config}: it served");
        for part in parts {
            assert!(said.contains(part), "{told} {config}: {said}");
        }
        assert!(said.ends_with('.'), "{said}");
    }
}

/// Left to itself the server takes the processor where the GPU cannot be used, and says why in one line.
#[test]
fn the_processor_serves_where_no_gpu_can() {
    let folder = Folder::new();
    let model = file(&folder, LLAMA);
    let library = stand_in().to_str().expect("UTF-8");
    let absent = folder.path("libcuda.so.1");
    let absent = absent.to_str().expect("UTF-8");
    for (flags, config, part) in [
        (["--libcuda", absent], "", "is no CUDA driver"),
        (["--libcuda", library], "kv_cache = \"f32\"", "f16, but kv_cache is f32"),
        (["--libcuda", library], "kv_tokens = 16000000", "there is room for "),
    ] {
        let server = Server::of(model.clone(), &format!("[engine]\n{config}"), &flags);
        let log = logged(&server, " cpu, ");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("the processor serves")).collect();
        assert!(lines.len() == 1 && lines[0].contains(part), "{log}");
    }
    // A GPU that can be used is.
    let server = Server::of(model, "", &["--libcuda", library]);
    logged(&server, "cuda, PTX emulator");
}

/// Whatever happens to the device, clients hear of it, the process ends by itself, and a new one serves.
#[test]
fn a_device_that_fails_in_a_batch_ends_the_process_and_its_clients_hear_why() {
    let folder = Folder::new();
    let model = file(&folder, LLAMA);
    let mut last = None;
    for (told, part) in [
        // In the prompt's batch, and in a graph of a later step.
        ("lost@5", "The GPU is lost, as cuEventQuery found (LAUNCH_FAILED, status 719)"),
        ("lost@200", "The GPU is lost, as cuEventQuery found"),
        ("hung@20", "The GPU did not end a step within 10 s"),
        ("cuMemcpyHtoDAsync_v2@60=719", "The GPU is lost, as cuMemcpyHtoDAsync_v2 found"),
        ("cuLaunchKernel@20=701", "The driver refuses cuLaunchKernel"),
        ("cuGraphInstantiateWithFlags=2", "no memory left for what cuGraphInstantiateWithFlags needs"),
        ("cuGraphLaunch@3=700", "The GPU is lost, as cuGraphLaunch found"),
    ] {
        let mut server = Server::on_stand_in(model.clone(), told, &[]);
        let heard = completion(&server, "64");
        assert_eq!(heard.event, 4, "{told}: {heard:?}");
        assert!(heard.text.contains(part), "{told}: {heard:?}");
        assert_eq!(server.ended().code(), Some(70), "{told}");
        let log = server.log();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains("all work in progress is lost")).collect();
        assert!(lines.len() == 1 && lines[0].contains(part), "{log}");
        assert!(log.lines().any(|line| line.starts_with("tartlet: the device failed: ")), "{log}");
        last = Some(server);
    }
    let server = last.expect("there were some").start_again(&[
        "--no-auth",
        "--backend",
        "cuda",
        "--libcuda",
        stand_in().to_str().expect("UTF-8"),
    ]);
    assert_eq!(completion(&server, "3").event, 1);
}

/// What the first token alone is decoded by: a layer is five launches, but for what a model has that nobody else does; behind
/// a long prompt too, whose slots lie in several splits.
#[test]
fn a_decoded_token_takes_five_launches_a_layer() {
    let one = Decoder { formats: &[Q4_0], ..LLAMA };
    // Embedding, head, then of each layer Q, K, V, output, gate, up, down.
    const MIXED: [Format; 16] =
        [Q4_K, Q4_K, Q4_K, Q4_K, Q6_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K, Q6_K, Q4_K, Q4_K, Q4_K, Q4_K];
    let wide = Decoder { head_dim: 128, hidden: 256, ffn: 256, ..LLAMA };
    let long = PROMPT.repeat(8);
    assert!(long.len() > 256, "a byte is a token");
    for (decoder, layer) in [
        (one, "fused_qkv_q4_0 attend_64 fused_output_q4_0 fused_gate_up_q4_0 gemv_q4_0"),
        (
            Decoder { architecture: "qwen2", ..one },
            "fused_qkv_q4_0 attend_64 fused_output_q4_0 fused_gate_up_q4_0 gemv_q4_0",
        ),
        // Heads are normed whole.
        (
            Decoder { architecture: "qwen3", ..one },
            "fused_output_q4_0 rotate_append attend_64 fused_output_q4_0 fused_gate_up_q4_0 gemv_q4_0",
        ),
        // What a block adds is normed.
        (
            Decoder { architecture: "gemma2", ..one },
            "fused_qkv_q4_0 attend_64 fused_output_q4_0 add_normed fused_gate_up_q4_0 gemv_q4_0 add_normed",
        ),
        // V's format is another.
        (
            Decoder { formats: &MIXED, ..wide },
            "fused_qkv_q4_k fused_qkv_q6_k attend_128 fused_output_q4_k fused_gate_up_q4_k gemv_q4_k",
        ),
    ] {
        let folder = Folder::new();
        let model = file(&folder, decoder);
        for prompt in [PROMPT, &long] {
            let server = Server::on_stand_in(model.clone(), "graphs", &[]);
            assert_eq!(completion_of(&server, prompt, "3").event, 1);
            let log = server.log();
            let graph = log.lines().find_map(|line| line.strip_prefix("stand-in driver: graph: "));
            let graph = graph.unwrap_or_else(|| panic!("no graph: {log}"));
            let (embed, rest) = graph.split_once(' ').expect("more than one launch");
            assert!(embed.starts_with("embed_"), "{graph}");
            assert!(rest.starts_with(&format!("{layer} {layer} copy_rows norm_quantize gemv_")), "{graph}");
        }
    }
}
