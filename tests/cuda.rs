//! The GPU path of the real binary, on a machine without a GPU: what it says without a driver, and what it does with the
//! stand-in driver, whose device is the PTX emulator, in health and in every kind of failure.

mod support;

use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::stand_in::stand_in;
use support::{Folder, binary, root, tartlet};

/// A self-test on the emulator takes 20 s of a core, which others may share.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs `tartlet selftest` to its end, which must come.
fn selftest(arguments: &[&str], told: &str) -> Output {
    let mut command = tartlet();
    command.arg("selftest").args(arguments).env("STAND_IN_DRIVER", told).env_remove("LD_LIBRARY_PATH");
    finish(command)
}

fn finish(mut command: Command) -> Output {
    fn reading(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            pipe.read_to_end(&mut all).expect("a pipe is readable");
            all
        })
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    // A report has more bytes than a pipe.
    let stdout = reading(child.stdout.take().expect("it is piped"));
    let stderr = reading(child.stderr.take().expect("it is piped"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is a child") {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().expect("it is a child");
            panic!("{command:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let [stdout, stderr] = [stdout, stderr].map(|read| read.join().expect("the reader ends"));
    Output { status, stdout, stderr }
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
    for part in [
        "registers",
        "gemv_q4_0",
        "launches as on the emulator",
        "apart, 4.9e-04 allowed",
        "gpu-check passed",
    ] {
        assert!(table.contains(part), "nothing of {part}:\n{table}");
    }
    let result = std::fs::read(bundle.folder.path("result.json")).expect("the result");
    let result: Value = serde_json::from_slice(&result).expect("JSON");
    assert_eq!(result["passed"], true);

    assert!(bundle.recorded.to_string().len() < 4 << 20, "the record has 4 MB at most");

    // A device that computes something else: other bits where bits are compared, other numbers where these are.
    let mut other = bundle.recorded.clone();
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
    bundle.record(&other);
    let output = bundle.check(&["--quick"], "");
    assert_eq!(output.status.code(), Some(1));
    let table = text(&output.stdout);
    assert_eq!(table.matches("NOT as on the emulator").count(), 2, "{table}");
    for launch in changed {
        let named = format!("NOT as on the emulator: {}, seed ", launch.as_str().expect("a name"));
        assert!(table.contains(&named), "{launch} is not named:\n{table}");
    }
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
    // A device that cannot be used, and a bundle that is not whole: the result says so too.
    let result = || -> Value {
        let result = std::fs::read(bundle.folder.path("result.json")).expect("the result");
        serde_json::from_slice(&result).expect("JSON")
    };
    one_sentence(bundle.check(&["--quick"], "no-device"), "sees no GPU");
    assert_eq!(result()["passed"], false);
    assert!(result()["why"].as_str().is_some_and(|why| why.contains("sees no GPU")), "{}", result());
    std::fs::remove_file(bundle.folder.path("recorded.json")).expect("it is there");
    one_sentence(bundle.check(&["--quick"], ""), "recorded.json cannot be read");
    assert_eq!(result()["passed"], false);
    assert!(result()["why"].as_str().is_some_and(|why| why.contains("recorded.json")), "{}", result());

    // Without Python the self-test alone runs, with its own words.
    for tool in ["sh", "dirname", "od", "tr", "uname", "grep", "cut", "sort", "tail", "getconf"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").expect("a PATH"))
            .map(|folder| folder.join(tool))
            .find(|path| path.is_file());
        std::fs::create_dir_all(bundle.folder.path("few")).expect("a folder");
        std::os::unix::fs::symlink(found.expect(tool), bundle.folder.path("few").join(tool)).expect("a link");
    }
    let mut command = Command::new(bundle.folder.path("check.sh"));
    command.env("PATH", bundle.folder.path("few")).env("STAND_IN_DRIVER", "no-device");
    command.arg("--libcuda").arg(stand_in()).args(["--patience", "3", "--quick", "--json"]);
    let output = finish(command);
    assert_eq!(output.status.code(), Some(70), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("There is no python3"), "{}", text(&output.stderr));
    assert!(sentence(&output).contains("sees no GPU"), "{}", sentence(&output));

    bundle.record(&bundle.recorded);
    bundle.program("getconf", "#!/bin/sh\necho glibc 2.17\n");
    one_sentence(bundle.check(&["--quick"], ""), "and this machine has glibc 2.17: run make gpu-check");
    bundle.program("getconf", "#!/bin/sh\nexit 1\n");
    one_sentence(bundle.check(&["--quick"], ""), "and this machine has another C library");
    std::fs::remove_file(bundle.folder.path("bin/getconf")).expect("it is there");
    bundle.program("uname", "#!/bin/sh\necho riscv64\n");
    one_sentence(bundle.check(&["--quick"], ""), "another kind of processor than this machine's riscv64");
    std::fs::remove_file(bundle.folder.path("bin/uname")).expect("it is there");
    // Nobody may write here, not even root.
    std::fs::remove_file(bundle.folder.path("result.json")).expect("it is there");
    std::fs::create_dir(bundle.folder.path("result.json")).expect("a folder in its place");
    one_sentence(bundle.check(&["--quick"], ""), "result.json cannot be written");
}
