//! The kernels' PTX, as `src/compute/build.rs` expands and packs it from `kernels/*.ptx`.
//!
//! Owns: the texts. Never: a launch, nor what a kernel computes: each file of `kernels/` says so in its head.

use super::{Device, Error};
use miniz_oxide::inflate::decompress_to_vec;

/// A module of one kernel: the entry is called like the file.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    /// PTX as it is expanded, lines marked with the source they stand for: [`plain`] and [`dependent`] of it are modules.
    pub text: String,
}

/// What stands in kernels that a launch before them may overlap, and only there.
const OVERLAPS: &str = "griddepcontrol";

/// The module for every device: without a word of launches that overlap.
pub fn plain(text: &str) -> String {
    let line = |line: &str| if is_overlap(line) { "\n".to_owned() } else { format!("{line}\n") };
    text.lines().map(line).collect()
}

/// The module whose launch may begin before the one before it has ended; none where a kernel has no use of it.
pub fn dependent(text: &str) -> Option<String> {
    let line = |line: &str| match line.trim_end() {
        ".version 7.4" => ".version 7.8\n".to_owned(),
        ".target sm_80" => ".target sm_90\n".to_owned(),
        _ => format!("{line}\n"),
    };
    text.lines().any(is_overlap).then(|| text.lines().map(line).collect())
}

fn is_overlap(line: &str) -> bool {
    line.trim_start().starts_with(OVERLAPS)
}

impl Source {
    /// What this device is given.
    pub fn module(&self, device: &Device) -> String {
        let later = if device.overlaps() { dependent(&self.text) } else { None };
        later.unwrap_or_else(|| plain(&self.text))
    }
}

/// Names and texts in turn, a NUL between each and the next.
const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.deflate"));

/// All of them, by name. An error says that the binary is not what was built.
pub fn all() -> Result<Vec<Source>, Error> {
    let torn = |why: String| Error::Launch { kernel: "of the binary".to_owned(), why };
    let bytes = decompress_to_vec(PACKED).map_err(|why| torn(why.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|why| torn(why.to_string()))?;
    let parts: Vec<&str> = text.split('\0').collect();
    let (pairs, _) = parts.as_chunks::<2>();
    Ok(pairs.iter().map(|[name, text]| Source { name: name.to_string(), text: text.to_string() }).collect())
}
