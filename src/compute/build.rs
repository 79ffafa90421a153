//! Expands the kernels: each `kernels/*.ptx` to plain PTX, and packs all of them, name and text in turn, into one file of
//! OUT_DIR, which `src/backend/cuda/kernels.rs` embeds.
//!
//! Cargo is told the single files, not their folder: beside them lives the emulator, whose sources have no part in the
//! binary. So a new kernel is seen when something here or there changes; a test says when the table lacks one.

#[path = "../../kernels/expand.rs"]
mod expand;

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let from = Path::new("../../kernels");
    let to = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut all = Vec::new();
    for file in expand::files(from)? {
        let text = expand::expand(from, &file).map_err(|error| format!("kernels/{error}"))?;
        // The head's budget goes along: it is what the stand-in driver counts registers by.
        let head = std::fs::read_to_string(from.join(&file))?;
        let budget = head.lines().find(|line| line.starts_with("// registers:")).unwrap_or_default();
        let name = file.trim_end_matches(".ptx");
        all.extend([name.to_owned(), format!("{budget}\n{text}")]);
    }
    let packed = miniz_oxide::deflate::compress_to_vec(all.join("\0").as_bytes(), 9);
    std::fs::write(to.join("kernels.deflate"), packed)?;

    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../kernels/expand.rs");
    for folder in [from, &from.join("fmt")] {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "ptx" || extension == "inc") {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    Ok(())
}
