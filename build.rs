//! Folds functions of the same code into one in the release binary, where the linker can: LLD does, GNU ld refuses.
//!
//! Owns: that argument of the link. Never: the kernels, which `src/compute/build.rs` packs.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

const FOLD: &str = "-Wl,--icf=all";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    if std::env::var("PROFILE")? == "release" && folds()? {
        println!("cargo::rustc-link-arg-bins={FOLD}");
    }
    Ok(())
}

/// Asks the linker itself, by a program of nothing: which one it is depends on the target, the toolchain and its flags.
fn folds() -> Result<bool, Box<dyn Error>> {
    let variable = |name: &str| std::env::var_os(name).ok_or(format!("cargo sets {name}"));
    let folder = PathBuf::from(variable("OUT_DIR")?);
    let source = folder.join("nothing.rs");
    std::fs::write(&source, "fn main() {}")?;
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .arg(&source)
        .arg("--target")
        .arg(variable("TARGET")?)
        .args(["-C".to_owned(), format!("link-arg={FOLD}")]);
    rustc.arg("-o").arg(folder.join("nothing"));
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut argument = OsString::from("linker=");
        argument.push(linker);
        rustc.arg("-C").arg(argument);
    }
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    Ok(rustc.output()?.status.success())
}
