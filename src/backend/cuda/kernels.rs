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

/// Lines, a NUL, then 16 bits each: of a kernel the line with its name, how many lines it has, and those.
const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.deflate"));

/// All of them, by name. An error says that the binary is not what was built.
pub fn all() -> Result<Vec<Source>, Error> {
    let torn = |why: String| Error::Launch { kernel: "of the binary".to_owned(), why };
    let bytes = decompress_to_vec(PACKED).map_err(|why| torn(why.to_string()))?;
    unpacked(&bytes).ok_or_else(|| torn("what was packed is another".to_owned()))
}

fn unpacked(bytes: &[u8]) -> Option<Vec<Source>> {
    let (lines, numbers) = bytes.split_at_checked(bytes.iter().position(|byte| *byte == 0)?)?;
    let lines: Vec<&str> = std::str::from_utf8(lines).ok()?.split_terminator('\n').collect();
    let (numbers, _) = numbers.get(1..)?.as_chunks::<2>();
    let mut numbers = numbers.iter().map(|number| usize::from(u16::from_le_bytes(*number)));
    let mut sources = Vec::new();
    while let Some(name) = numbers.next() {
        let (name, count) = ((*lines.get(name)?).to_owned(), numbers.next()?);
        let mut text = String::new();
        for number in numbers.by_ref().take(count) {
            text += lines.get(number)?;
            text.push('\n');
        }
        sources.push(Source { name, text });
    }
    Some(sources)
}
