//! The GPU path of the real binary, on a machine without a GPU: what it says without a driver, and what it does with the
//! stand-in driver, whose device is the PTX emulator, in health and in every kind of failure.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use support::finish::{finish, text};
use support::stand_in::stand_in;
use support::{Folder, binary, root, tartlet};

/// Runs `tartlet selftest` to its end, which must come.
fn selftest(arguments: &[&str], told: &str) -> Output {
    let mut command = tartlet();
    command.arg("selftest").args(arguments).env("STAND_IN_DRIVER", told).env_remove("LD_LIBRARY_PATH");
    finish(command)
}

/// The same on the stand-in driver.
fn on_stand_in(arguments: &[&str], told: &str) -> Output {
    let library = stand_in().to_str().expect("UTF-8");
    selftest(&[&["--backend", "cuda", "--libcuda", library], arguments].concat(), told)
}

/// The line that `tartlet` wrote to standard error; the stand-in driver writes there too.
fn sentence(output: &Output) -> String {
    let said = text(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.starts_with("tartlet: ")).collect();
    assert_eq!(ours.len(), 1, "{said}");
    ours[0].to_owned()
}

/// The names of kernels/*.ptx, in order.
fn kernel_files() -> Vec<String> {
    let files = std::fs::read_dir(root().join("kernels")).expect("kernels/");
    let files = files.map(|entry| entry.expect("an entry").path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_selftest_passes_on_the_stand_in_driver() {
    let output = on_stand_in(&[], "");
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    for part in ["cuda: PTX emulator", "driver for CUDA 11.4", "memory ", "graph ", "GB/s", "selftest passed"]
    {
        assert!(table.contains(part), "nothing of {part}:\n{table}");
    }
    assert!(!table.contains("FAILED"), "{table}");
    // Warps in another order change nothing.
    let output = on_stand_in(&["--json"], "seed=3");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&report["passed"], &report["backend"]), (&true.into(), &"cuda".into()));
    let kernels: Vec<&str> =
        report["kernels"].as_array().expect("an array").iter().filter_map(|it| it["name"].as_str()).collect();
    let wanted = kernel_files();
    assert_eq!(kernels, wanted, "every kernel is loaded");
    let checks = report["checks"].as_array().expect("an array").iter();
    let rate = |check: &Value, of: &str| check[of].as_f64().is_some_and(|rate| rate > 0.0);
    let timed = checks
        .clone()
        .filter(|check| rate(check, "bytes_per_second") || rate(check, "operations_per_second"))
        .filter_map(|check| check["name"].as_str());
    let timed: Vec<&str> = timed.collect();
    for name in ["bandwidth", "gemv_q4_0, 1 token", "gemv_q4_0, 8 tokens"] {
        assert!(timed.contains(&name), "{name} is not timed: {timed:?}");
    }
    let launches = checks.filter_map(|check| check["launches"].as_array()).flatten();
    let launches: Vec<&str> = launches.filter_map(|launch| launch["launch"].as_str()).collect();
    for kernel in wanted {
        let is_in = |list: &[&str]| list.iter().any(|name| name.split(',').next() == Some(&kernel));
        assert!(is_in(&launches), "no launch of {kernel} is told: {launches:?}");
        // The copy's rate is the bandwidth.
        assert!(kernel == "copy" || is_in(&timed), "{kernel} is not timed: {timed:?}");
    }
    let mut once = launches.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), launches.len(), "each launch has a name of its own");

    // The modules that a device is given whose launches overlap compute the same bits.
    let output = on_stand_in(&["--json", "--untimed"], "seed=3 capability=90 version=12030");
    let other: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&other["passed"], &other["overlaps"]), (&true.into(), &true.into()));
    assert_eq!((&report["passed"], &report["overlaps"]), (&true.into(), &false.into()));
    let told = |report: &Value| -> Vec<Value> {
        let checks = report["checks"].as_array().expect("an array").iter();
        checks.filter_map(|check| check["launches"].as_array()).flatten().cloned().collect()
    };
    for (other, report) in told(&other).iter().zip(&told(&report)) {
        assert!(other == report, "{} comes out otherwise", report["launch"]);
    }
    assert_eq!(told(&other).len(), launches.len());
}

/// Found as a driver is found: by its name on the loader's path.
#[test]
fn the_driver_is_found_on_the_loaders_path() {
    let folder = Folder::new();
    std::os::unix::fs::symlink(stand_in(), folder.path("libcuda.so.1")).expect("a link");
    let mut command = tartlet();
    command.arg("selftest").env("LD_LIBRARY_PATH", folder.path(".")).env("STAND_IN_DRIVER", "no-device");
    // Without a device the processor is what there is.
    let table = text(&finish(command).stdout);
    assert!(table.starts_with("cpu: "), "{table}");
    let mut command = tartlet();
    command.args(["selftest", "--backend", "cuda"]);
    command.env("LD_LIBRARY_PATH", folder.path(".")).env("STAND_IN_DRIVER", "no-device");
    assert!(sentence(&finish(command)).contains("sees no GPU"));
}

#[test]
fn without_a_driver_there_is_a_sentence() {
    let folder = Folder::new();
    let nothing = folder.path("libcuda.so.1");
    let output = selftest(&["--backend", "cuda", "--libcuda", nothing.to_str().expect("UTF-8")], "");
    assert_eq!(output.status.code(), Some(70));
    assert!(output.stdout.is_empty());
    assert!(sentence(&output).contains("is no CUDA driver"), "{}", sentence(&output));
    // A library that is none.
    std::fs::write(&nothing, "not a library").expect("written");
    let output = selftest(&["--libcuda", nothing.to_str().expect("UTF-8")], "");
    assert_eq!(output.status.code(), Some(70));
    assert!(sentence(&output).contains("name NVIDIA's libcuda.so.1"), "{}", sentence(&output));
}

#[test]
fn the_processor_is_checked_too() {
    let output = selftest(&["--backend", "cpu"], "");
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}");
    for part in ["cpu: ", "exponentials", "draws", "vectors", "GB/s", "selftest passed"] {
        assert!(table.contains(part), "nothing of {part}:\n{table}");
    }
    for (arguments, part) in [
        (&["--backend", "tpu"][..], "neither cuda nor cpu"),
        (&["--backend", "cpu", "--hello"], "--hello is for a GPU"),
        (&["--backend", "cpu", "--golden", "g.json"], "--model and --golden go together"),
    ] {
        let output = selftest(arguments, "");
        assert_eq!(output.status.code(), Some(64));
        assert!(sentence(&output).contains(part));
    }
}

/// A box's factory test goes as far as the answers of its model.
#[test]
fn the_golden_prompts_are_a_check_like_the_others() {
    let (folder, model) = (Folder::new(), support::model());
    let model = model.to_str().expect("UTF-8");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/smollm2-135m-q4_1.json");
    let on_cpu =
        |golden: &str| selftest(&["--backend", "cpu", "--untimed", "--model", model, "--golden", golden], "");

    let output = on_cpu(golden);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}");
    assert!(table.contains("golden prompts               passed, 230 cases"), "{table}");

    // The best two tokens of every step in the other order.
    let mut prompts: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden).expect("a golden file")).expect("JSON");
    for step in prompts
        .as_array_mut()
        .expect("prompts")
        .iter_mut()
        .flat_map(|prompt| prompt["steps"].as_array_mut().expect("steps"))
    {
        let (best, second) = (step["top"][0][0].take(), step["top"][1][0].take());
        (step["top"][0][0], step["top"][1][0]) = (second, best);
    }
    let other = folder.path("other.json");
    std::fs::write(&other, prompts.to_string()).expect("written");
    let output = on_cpu(other.to_str().expect("UTF-8"));
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("golden prompts               FAILED: top1_clear is"), "{table}");
    assert!(table.contains("selftest FAILED"), "{table}");

    // A file that is not there is told before anything is checked.
    let output = on_cpu("absent.json");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    assert!(sentence(&output).contains("cannot read the golden file absent.json"), "{}", sentence(&output));
}

/// The least that a device can be asked for: one kernel, and a failure of it is told apart from all else.
#[test]
fn a_device_is_greeted() {
    let output = on_stand_in(&["--hello"], "");
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    let rows: Vec<&str> =
        table.lines().filter(|line| line.contains("passed, ") || line.starts_with("copy ")).collect();
    assert!(rows.len() == 2 && rows[1].starts_with("hello "), "one kernel, one check:\n{table}");
    for (told, part) in [
        ("jit", "INVALID_PTX"),
        ("lost@1", "The GPU is lost"),
        ("no-device", "sees no GPU"),
        // No other kernel is looked at.
        ("cuModuleLoadDataEx@2=9999", ""),
    ] {
        let output = on_stand_in(&["--hello"], told);
        assert_eq!(output.status.code(), Some(if part.is_empty() { 0 } else { 70 }), "{told}");
        assert!(text(&output.stderr).contains(part), "{told}: {}", text(&output.stderr));
    }
}

/// Each failure ends in its sentence and its status; none hangs, none is taken for a result. Behind a launch that never ends the
/// stand-in driver keeps a process that leaves by the usual exit, as a driver may.
#[test]
fn every_failure_ends_in_its_sentence() {
    for (told, part) in [
        ("no-device", "The driver sees no GPU"),
        ("version=11020", "offers CUDA 11.2, but the kernels need 11.4"),
        ("capability=75", "has compute capability 7.5, but the kernels need 8.0"),
        ("cuInit=803", "are of different versions: restart the machine"),
        ("cuInit=999", "The driver does not start (status 999)"),
        ("cuInit=34", "libstand_in_driver.so is no CUDA driver (it is a toolkit's stub)"),
        ("cuDriverGetVersion=34", "libstand_in_driver.so is no CUDA driver (it is a toolkit's stub)"),
        // Statuses that no driver has yet, from calls of every kind.
        ("cuDeviceGetCount=9999", "The driver refuses cuDeviceGetCount (status 9999)"),
        ("cuDeviceGetName=-1", "The driver refuses cuDeviceGetName (status -1)"),
        ("cuModuleLoadDataEx=9999", "The driver's compiler does not take the kernel"),
        ("cuMemAlloc_v2@3=9999", "The driver refuses cuMemAlloc_v2 (status 9999)"),
        ("cuLaunchKernel@2=2147483647", "The driver refuses cuLaunchKernel (status 2147483647)"),
        ("cuGraphLaunch=2", "no memory left for what cuGraphLaunch needs"),
        ("jit", "(INVALID_PTX, status 218): application ptx input, line 1"),
        ("cuMemAlloc_v2@1=2", "The GPU has no room for 2 bytes"),
        ("cuMemAlloc_v2@9=2", "The GPU has no room for "),
        ("memory=100000", "The GPU has no room for "),
        ("lost@1", "The GPU is lost, as cuEventQuery found (LAUNCH_FAILED, status 719)"),
        ("lost@12", "The GPU is lost, as cuEventQuery found"),
        ("hung@1", "did not end a step within"),
        ("hung@12", "did not end a step within"),
        ("cuDevicePrimaryCtxRetain=46", "is kept by another process"),
        ("cuEventQuery@20=721", "The GPU is lost, as cuEventQuery found (status 721)"),
        ("cuGraphInstantiateWithFlags=302", "The driver has no function cuGraphInstantiateWithFlags"),
        ("cuLaunchKernel@2=701", "The driver refuses cuLaunchKernel (LAUNCH_OUT_OF_RESOURCES, status 701)"),
        // Launches that overlap are what such a device is given.
        ("capability=90 version=12030 cuLaunchKernelEx=9999", "The driver refuses cuLaunchKernelEx"),
        ("cuStreamEndCapture=901", "The driver refuses cuStreamEndCapture"),
    ] {
        let output = on_stand_in(&[], told);
        assert_eq!(output.status.code(), Some(70), "{told}: {}", text(&output.stderr));
        // What was found before is told, and in which check the device failed.
        let table = text(&output.stdout);
        assert!(
            table.is_empty() || table.contains("FAILED: ") && table.contains("selftest FAILED"),
            "{table}"
        );
        assert!(sentence(&output).contains(part), "{told}: {}", sentence(&output));
        assert!(sentence(&output).ends_with('.'), "{told}: {}", sentence(&output));
    }
}

/// A driver that does not take some kernels is told apart from a device that fails: their rows say why, and so do those of
/// checks that need one; all else is checked.
#[test]
fn a_kernel_that_is_not_taken_fails_alone() {
    let output = on_stand_in(&["--json", "--untimed"], "jit@gemv_q8_0 jit@attend_128");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&report["passed"], &report["broken_off"]), (&false.into(), &Value::Null));
    let kernels = report["kernels"].as_array().expect("an array");
    assert!(!kernels.iter().any(|it| it["name"] == "gemv_q8_0" || it["name"] == "attend_128"));
    let checks = report["checks"].as_array().expect("an array").iter();
    let (passed, failed): (Vec<&Value>, Vec<&Value>) = checks.partition(|check| check["passed"] == true);
    for check in &failed {
        let (name, wrong) = (check["name"].as_str().expect("a name"), check["wrong"].as_str().expect("why"));
        let part = match name {
            "gemv_q8_0, load" | "attend_128, load" => "does not take the kernel",
            "attention" | "prefill" => "It needs the kernel attend_128, which was not loaded",
            // The products and what is compared with them.
            _ => "It needs the kernel gemv_q8_0, which was not loaded",
        };
        assert!(wrong.contains(part), "{name}: {wrong}");
    }
    let names = |checks: &[&Value]| checks.iter().map(|it| it["name"].to_string()).collect::<Vec<_>>();
    assert_eq!(
        names(&failed),
        [
            "\"attend_128, load\"",
            "\"gemv_q8_0, load\"",
            "\"gemv_q8_0\"",
            "\"fused_output_q8_0\"",
            "\"fused_qkv_q8_0\"",
            "\"fused_gate_up_q8_0\"",
            "\"attention\"",
            "\"prefill\""
        ]
    );
    assert_eq!(kernels.len() + 2, kernel_files().len());
    assert!(passed.iter().any(|check| check["name"] == "cap_logits"), "{:?}", names(&passed));

    // A driver that looks at it only when it is asked for says so there; a function that it lacks is lacking for all.
    let output = on_stand_in(&["--untimed"], "cuModuleGetFunction@2=9999");
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}{}", text(&output.stderr));
    assert!(table.contains(", load ") && table.contains("cuModuleGetFunction refuses it"), "{table}");

    // What was launched before a kernel was missed is waited for: its buffers are in use. Here it never ends.
    let output = on_stand_in(&[], "hung@sample_best jit@sample_weigh");
    assert_eq!(output.status.code(), Some(70), "{}", text(&output.stdout));
    assert!(sentence(&output).contains("did not end a step within"), "{}", sentence(&output));
}

/// A launch that is refused while the one before it never ends: nothing that this one uses is given back, where the driver
/// would wait for it. The stand-in driver runs work when somebody waits: that the first one hangs, and is said to, behind the
/// refusal shows that it was there.
#[test]
fn a_refusal_behind_a_hung_launch_does_not_hang() {
    let output = on_stand_in(&[], "hung@sample_best refused@sample_weigh=701");
    assert_eq!(output.status.code(), Some(70), "{}", text(&output.stderr));
    assert!(sentence(&output).contains("The driver refuses cuLaunchKernel"), "{}", sentence(&output));
    assert!(text(&output.stderr).contains("hangs, as told: sample_best\n"), "{}", text(&output.stderr));
}

/// The binary starts without a driver because it needs none, and a driver finds none of its functions in the binary.
#[test]
fn the_binary_neither_needs_nor_offers_the_driver() {
    let readelf = |flags: &[&str], file: &Path| {
        let output = Command::new("readelf").args(flags).arg(file).output().expect("readelf, of binutils");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let binary = binary();
    let needed = readelf(&["-W", "--dynamic"], &binary);
    let needed = needed.lines().filter(|line| line.contains("(NEEDED)"));
    let mut needed: Vec<&str> = needed.filter_map(|line| line.split(['[', ']']).nth(1)).collect();
    needed.sort();
    // The loader is named where the thread-local storage of shared libraries is.
    needed.retain(|name| !name.starts_with("ld-linux-"));
    assert_eq!(needed, ["libc.so.6", "libgcc_s.so.1", "libm.so.6"]);
    let functions = |file: &Path| -> Vec<String> {
        let listed = readelf(&["-W", "--dyn-syms"], file);
        let names = listed.lines().filter_map(|line| line.split_whitespace().nth(7));
        names.filter(|name| name.starts_with("cu")).map(str::to_owned).collect()
    };
    assert_eq!(functions(&binary), Vec::<String>::new());

    // Every function that the binary binds is there in the stand-in driver.
    let source = std::fs::read_to_string(root().join("src/backend/cuda/driver.rs")).expect("driver.rs");
    let list = source.split("\ndriver_functions! {").nth(1).and_then(|rest| rest.split('}').next());
    let lines = list.expect("the list").lines().filter_map(|line| line.trim().split_once('('));
    let mut bound: Vec<&str> = lines.map(|(name, _)| name).filter(|name| name.starts_with("cu")).collect();
    let mut offered = functions(stand_in());
    bound.sort();
    offered.sort();
    assert_eq!(offered, bound);
}
