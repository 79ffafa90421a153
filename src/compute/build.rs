//! Expands the kernels: each `kernels/*.ptx` to plain PTX, and packs all of them into one file of OUT_DIR, which
//! `src/backend/cuda/kernels.rs` embeds.
//!
//! They are long and much alike: a line is packed once, and a kernel as the numbers of its name and its lines.
//!
//! Cargo is told the single files, not their folder: beside them lives the emulator, whose sources have no part in the
//! binary. So a new kernel is seen when something here or there changes; a test says when the table lacks one.

#[path = "../../kernels/expand.rs"]
mod expand;

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let from = Path::new("../../kernels");
    let to = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let (mut lines, mut kernels) = (Lines::default(), Vec::new());
    for file in expand::files(from)? {
        let text = expand::expand(from, &file).map_err(|error| format!("kernels/{error}"))?;
        // The head's budget goes along: it is what the stand-in driver counts registers by.
        let head = std::fs::read_to_string(from.join(&file))?;
        let budget = head.lines().find(|line| line.starts_with("// registers:")).unwrap_or_default();
        let name = file.trim_end_matches(".ptx");
        kernels.push(lines.number(name)?);
        kernels.push(u16::try_from(text.lines().count() + 1)?);
        for line in std::iter::once(budget).chain(text.lines()) {
            kernels.push(lines.number(line)?);
        }
    }
    // The lines, a NUL, the numbers.
    let mut bytes = lines.text.into_bytes();
    bytes.push(0);
    bytes.extend(kernels.into_iter().flat_map(u16::to_le_bytes));
    let packed = miniz_oxide::deflate::compress_to_vec(&bytes, 9);
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

/// Lines that differ, numbered as they come.
#[derive(Default)]
struct Lines {
    known: HashMap<String, u16>,
    text: String,
}

impl Lines {
    fn number(&mut self, line: &str) -> Result<u16, Box<dyn Error>> {
        if let Some(number) = self.known.get(line) {
            return Ok(*number);
        }
        let number =
            u16::try_from(self.known.len()).map_err(|_| "the kernels have too many lines for 16 bits")?;
        self.known.insert(line.to_owned(), number);
        self.text += line;
        self.text.push('\n');
        Ok(number)
    }
}
