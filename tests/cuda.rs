//! The GPU path of the real binary, on a machine without a GPU: what it says without a driver, and what it does with the
//! stand-in driver, whose device is the PTX emulator, in health and in every kind of failure.

mod support;

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;
use support::stand_in::stand_in;
use support::{Folder, PATIENCE, binary, root, tartlet};

/// Runs `tartlet selftest` to its end, which must come.
fn selftest(arguments: &[&str], told: &str) -> Output {
    let mut command = tartlet();
    command.arg("selftest").args(arguments).env("STAND_IN_DRIVER", told).env_remove("LD_LIBRARY_PATH");
    finish(command)
}

fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let started = Instant::now();
    while child.try_wait().expect("it is a child").is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().expect("it is a child");
            panic!("{command:?} did not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.wait_with_output().expect("it has ended")
}

/// The same on the stand-in driver.
fn on_stand_in(arguments: &[&str], told: &str) -> Output {
    let library = stand_in().to_str().expect("UTF-8");
    selftest(&[&["--backend", "cuda", "--libcuda", library], arguments].concat(), told)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The line that `tartlet` wrote to standard error; the stand-in driver writes there too.
fn sentence(output: &Output) -> String {
    let said = text(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.starts_with("tartlet: ")).collect();
    assert_eq!(ours.len(), 1, "{said}");
    ours[0].to_owned()
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
    let files = std::fs::read_dir(root().join("kernels")).expect("kernels/");
    let files = files.map(|entry| entry.expect("an entry").path());
    let mut wanted: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    wanted.sort();
    assert_eq!(kernels, wanted, "every kernel is loaded");
    let checks = report["checks"].as_array().expect("an array").iter();
    let timed = checks.filter(|check| check["bytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
    let timed: Vec<&str> = timed.filter_map(|check| check["name"].as_str()).collect();
    for name in
        ["bandwidth", "norm_quantize", "gemv_q4_0", "gemm_q8_0_narrow", "gemm_bf16", "attention", "sampling"]
    {
        assert!(timed.contains(&name), "{name} is not timed: {timed:?}");
    }
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
    let output = selftest(&["--backend", "tpu"], "");
    assert_eq!(output.status.code(), Some(64));
    assert!(sentence(&output).contains("neither cuda nor cpu"));
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
        ("cuModuleLoadDataEx@2=9999", "The driver's compiler does not take the kernel"),
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

/// A launch that is refused while the one before it never ends: nothing that this one uses is given back, where the driver
/// would wait for it.
#[test]
fn a_refusal_behind_a_hung_launch_does_not_hang() {
    // Two of the launches of one draw; launches are counted as they run, with a graph's, and calls as they are made.
    let told = "hung@393 cuLaunchKernel@390=701";
    let output = on_stand_in(&[], told);
    assert_eq!(output.status.code(), Some(70), "{}", text(&output.stderr));
    assert!(sentence(&output).contains("The driver refuses cuLaunchKernel"), "{}", sentence(&output));
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
    assert!(needed.contains("NEEDED"), "{needed}");
    assert!(!needed.contains("libcuda"), "{needed}");
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

/// What `make gpu-check` packs, the record made on the stand-in driver.
struct Bundle {
    folder: Folder,
    recorded: Value,
}

impl Bundle {
    fn new() -> Bundle {
        let folder = Folder::new();
        for file in ["check.sh", "check.py"] {
            std::fs::copy(root().join("tests/gpu").join(file), folder.path(file)).expect("copied");
        }
        std::os::unix::fs::symlink(binary(), folder.path("tartlet")).expect("a link");
        let recorded = on_stand_in(&["--json"], "");
        assert!(recorded.status.success(), "{}", text(&recorded.stderr));
        let recorded = serde_json::from_slice(&recorded.stdout).expect("JSON");
        let bundle = Bundle { folder, recorded };
        bundle.record(&bundle.recorded);
        bundle
    }

    fn record(&self, recorded: &Value) {
        std::fs::write(self.folder.path("recorded.json"), recorded.to_string()).expect("written");
    }

    /// Runs it on the stand-in driver, with programs of this folder before all others.
    fn check(&self, arguments: &[&str], told: &str) -> Output {
        let mut command = Command::new(self.folder.path("check.sh"));
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.folder.path("bin").display()));
        command.args(arguments).arg("--libcuda").arg(stand_in()).env("STAND_IN_DRIVER", told);
        finish(command)
    }

    /// A program of the bundle's own `bin`.
    fn program(&self, name: &str, script: &str) {
        std::fs::create_dir_all(self.folder.path("bin")).expect("a folder");
        let path = self.folder.path("bin").join(name);
        std::fs::write(&path, script).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    }
}

/// The bundle of `make gpu-check`, on the stand-in driver: what the device computes is compared with what was recorded.
#[test]
fn the_gpu_check_compares_with_what_was_recorded() {
    let bundle = Bundle::new();
    // Another order of warps is another device, to the kernels.
    let output = bundle.check(&["--quick"], "seed=5");
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    for part in ["registers", "gemv_q4_0", "as on the emulator", "apart, 4.9e-04 allowed", "gpu-check passed"]
    {
        assert!(table.contains(part), "nothing of {part}:\n{table}");
    }
    let result = std::fs::read(bundle.folder.path("result.json")).expect("the result");
    let result: Value = serde_json::from_slice(&result).expect("JSON");
    assert_eq!(result["passed"], true);

    // A device that computes something else: other bits where bits are compared, other numbers where these are.
    let mut other = bundle.recorded.clone();
    let checks = other["checks"].as_array_mut().expect("an array");
    let with_digest = checks.iter_mut().find(|check| check["digest"].is_string()).expect("a digest");
    with_digest["digest"] = "0".repeat(64).into();
    let with_sample = checks.iter_mut().find(|check| check["sample"].is_object()).expect("a sample");
    let numbers = with_sample["sample"]["numbers"].as_str().expect("digits");
    // 1.5 for the first number: the others are right.
    with_sample["sample"]["numbers"] = format!("0000c03f{}", &numbers[8..]).into();
    bundle.record(&other);
    let output = bundle.check(&["--quick"], "");
    assert_eq!(output.status.code(), Some(1));
    let table = text(&output.stdout);
    assert_eq!(table.matches("NOT as on the emulator").count(), 2, "{table}");
    // A device that cannot be used.
    let output = bundle.check(&["--quick"], "no-device");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("sees no GPU"), "{}", text(&output.stderr));
}

/// What the machine lacks is said in one sentence, and a sanitizer that hangs is ended with all that it has started.
#[test]
fn the_gpu_check_bears_with_its_machine() {
    let bundle = Bundle::new();
    let started = bundle.folder.path("started");
    // memcheck hangs behind the program that it has started; the others say what they were given.
    bundle.program(
        "compute-sanitizer",
        &format!(
            "#!/bin/sh\n[ \"$2\" = memcheck ] || {{ echo \"========= $*\"; exit 0; }}\nsleep 600 &\necho $! >{}\nwait\n",
            started.display()
        ),
    );
    let output = bundle.check(&["--patience", "2"], "");
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}{}", text(&output.stderr));
    assert!(table.contains("FAILED it did not end within 2 s"), "{table}");
    assert_eq!(table.matches("selftest --backend cuda --untimed --libcuda").count(), 3, "{table}");
    let child = std::fs::read_to_string(&started).expect("it was started");
    let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    // Gone, or a zombie until init has looked.
    assert!(state.is_empty() || state.contains(") Z "), "{state}");

    let one_sentence = |output: Output, part: &str| {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.lines().count() == 1 && said.contains(part), "{said}");
    };
    bundle.program("getconf", "#!/bin/sh\necho glibc 2.17\n");
    one_sentence(bundle.check(&["--quick"], ""), "and this machine has glibc 2.17: run make gpu-check");
    bundle.program("getconf", "#!/bin/sh\nexit 1\n");
    one_sentence(bundle.check(&["--quick"], ""), "and this machine has another C library");
    std::fs::remove_file(bundle.folder.path("bin/getconf")).expect("it is there");
    // Nobody may write here, not even root.
    std::fs::remove_file(bundle.folder.path("result.json")).expect("it is there");
    std::fs::create_dir(bundle.folder.path("result.json")).expect("a folder in its place");
    one_sentence(bundle.check(&["--quick"], ""), "result.json cannot be written");
}
