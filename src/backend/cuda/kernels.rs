//! The kernels' PTX, as `src/compute/build.rs` expands and packs it from `kernels/*.ptx`.
//!
//! Owns: the texts. Never: a launch, nor what a kernel computes: each file of `kernels/` says so in its head.

use super::Error;
use miniz_oxide::inflate::decompress_to_vec;

/// A module of one kernel: the entry is called like the file.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    /// PTX, lines marked with the source they stand for.
    pub text: String,
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
