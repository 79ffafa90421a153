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
