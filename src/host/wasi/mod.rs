//! WASI 0.2 as far as Rust's std, wstd and the preview-1 adapter need it: one file per package.
//!
//! Owns: the list. Never: files, sockets. A guest has clocks, random numbers, a log, HTTP messages, and the host's own
//! interfaces; whatever else a component imports is refused when it is uploaded.

use super::Interface;

pub mod cli;
pub mod clocks;
pub mod filesystem;
pub mod http;
pub mod io;
pub mod random;
pub mod streams;

pub fn interfaces() -> Vec<Interface> {
    [
        cli::interfaces(),
        clocks::interfaces(),
        filesystem::interfaces(),
        http::interfaces(),
        io::interfaces(),
        random::interfaces(),
        vec![streams::interface()],
    ]
    .into_iter()
    .flatten()
    .collect()
}
