//! Every kernel, run by the emulator and assembled by ptxas; and the macro pass that both read them through.
//!
//! The emulator runs the text that the device's driver is given, with checks that no device makes. After an edit of a
//! kernel alone, the built test can be run again as it is: `target/debug/deps/kernels-*`.

#[path = "../../kernels/expand.rs"]
mod expand;
#[path = "../support/sums.rs"]
mod sums;

mod attend;
mod copies;
mod divide;
mod embed;
mod formats;
mod fused;
mod gate;
mod gemm;
mod gemv;
mod harness;
mod heads;
mod norm;
mod post_norm;
mod ptxas;
mod repack;
mod sample;

/// What the binary has is the folder, expanded: `src/compute/build.rs` is not told of files that were not there.
#[test]
fn every_kernel_is_embedded() {
    let files = expand::files(&harness::folder()).expect("the folder of the kernels");
    let embedded = tartlet::backend::cuda::kernels::all().expect("what was packed");
    let names: Vec<String> = embedded.iter().map(|kernel| format!("{}.ptx", kernel.name)).collect();
    assert_eq!(names, files, "touch src/compute/build.rs");
    for (kernel, file) in embedded.iter().zip(&files) {
        let text = expand::expand(&harness::folder(), file).expect("it expands");
        assert!(kernel.text.ends_with(&text), "{file} is another in the binary");
    }
}

/// The faults are put in one by one by the tests that own them; this counts what they wrote down.
#[test]
fn faults_are_written_down_by_the_hundred() {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")];
    let mut faults = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source of ours");
            let lines = text.lines().map(str::trim_start);
            // What begins one, as most are written.
            let begins = |line: &str| ["fault!(", "fault(", "Fault {"].iter().any(|it| line.starts_with(it));
            faults += lines.filter(|line| begins(line)).count();
        }
    }
    println!("{faults} faults");
    assert!(faults >= 300, "{faults}");
}
