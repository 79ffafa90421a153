//! WASI 0.2 as far as Rust's std, wstd and the preview-1 adapter need it: one file per package.

use super::Interface;

pub fn interfaces() -> Vec<Interface> {
    vec![]
}
