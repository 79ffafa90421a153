//! The habits of the house, kept by a test: each file says what it owns, none grows past reading, unsafe code stays
//! where it belongs, and the map of `lib.rs` is true.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Past this a file wants to be two.
const LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file below these folders, as (path from the root, text).
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() && entry.file_name().is_none_or(|name| name != "target") {
                walk(&entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push(entry);
            }
        }
    }
    let mut paths = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut paths);
    }
    paths.sort();
    let name = |path: &Path| path.strip_prefix(root()).expect("below the root").display().to_string();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("UTF-8"))).collect()
}

/// The code of a line: what stands before a comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("").trim()
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_owns_and_stays_readable() {
    let mut wrong = Vec::new();
    for (name, text) in sources(&["src", "tests", "inferlets", "kernels"]) {
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not open with a //! that says what it owns"));
        }
        let lines = text.lines().count();
        if lines > LINES {
            wrong.push(format!("{name} has {lines} lines; past {LINES} it wants to be two"));
        }
        if text.contains('\t') {
            wrong.push(format!("{name} has tabs"));
        }
    }
    none(&wrong);
}

#[test]
fn unsafe_code_stays_where_it_belongs_and_says_why() {
    let mut wrong = Vec::new();
    for (name, text) in sources(&["src"]) {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let words =
                code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            if !words || code(line).contains('"') {
                continue;
            }
            if !name.starts_with("src/backend/") && name != "src/model/gguf.rs" {
                wrong.push(format!("{name}:{} is unsafe", at + 1));
            }
            // A block or an impl gives its reason on the line or just above; a function in its documentation.
            let above = lines[at.saturating_sub(12)..=at].iter();
            if !above.clone().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                wrong.push(format!("{name}:{} is unsafe without a // SAFETY:", at + 1));
            }
        }
    }
    none(&wrong);
}

#[test]
fn nothing_is_left_for_later() {
    let mut wrong = Vec::new();
    for (name, text) in sources(&["src", "tests", "inferlets", "kernels"]) {
        if name == "tests/style.rs" {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            for left in ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME", "XXX"] {
                if line.contains(left) {
                    wrong.push(format!("{name}:{} has {left}", at + 1));
                }
            }
        }
    }
    none(&wrong);
}

/// Names that say nothing. A WIT interface that is called so by its authors keeps its name.
#[test]
fn names_are_the_fields() {
    let empty = ["manager", "helper", "helpers", "util", "utils", "misc"];
    let mut wrong = Vec::new();
    for (name, _) in sources(&["src", "tests", "inferlets", "kernels"]) {
        let stem = Path::new(&name).file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
        if empty.contains(&stem) || stem == "common" && !name.starts_with("src/host/") {
            wrong.push(format!("{name} has a name that says nothing"));
        }
    }
    none(&wrong);
}

#[test]
fn every_limit_has_its_reason() {
    let text = std::fs::read_to_string(root().join("src/limits.rs")).expect("limits.rs");
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("pub const ") {
            count += 1;
            if at == 0 || !lines[at - 1].starts_with("///") {
                wrong.push(format!("src/limits.rs:{}: {line}", at + 1));
            }
        }
    }
    assert!(count > 10, "the limits are here");
    none(&wrong);
}

/// The map names every module at the top, and nothing that is gone.
#[test]
fn the_map_of_lib_rs_is_true() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect(path);
    let (text, compute) = (read("src/lib.rs"), read("src/compute/lib.rs"));
    let modules: BTreeSet<&str> = text
        .lines()
        .chain(compute.lines())
        .filter_map(|line| code(line).strip_prefix("pub mod ").or_else(|| code(line).strip_prefix("mod ")))
        .filter_map(|rest| rest.strip_suffix(';'))
        .collect();
    let files: BTreeSet<String> = std::fs::read_dir(root().join("src"))
        .expect("src")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .filter(|name| name != "lib" && name != "main" && name != "compute")
        .collect();
    let mut wrong = Vec::new();
    let map: String = text.lines().filter(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
    for file in &files {
        if !modules.contains(file.as_str()) {
            wrong.push(format!("src/{file} is no module of lib.rs"));
        }
        if !map.contains(file.as_str()) {
            wrong.push(format!("the map of lib.rs does not name {file}"));
        }
    }
    for module in modules {
        if !files.contains(module) {
            wrong.push(format!("lib.rs names {module}, which is not there"));
        }
    }
    none(&wrong);
}

/// What may stand at the top: the user's list, and what the tools put there.
#[test]
fn the_top_level_is_the_users() {
    const TOP: &[&str] = &[
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "Makefile",
        "README.md",
        "build.rs",
        "inferlets",
        "kernels",
        "rust-toolchain.toml",
        "rustfmt.toml",
        "src",
        "systemd",
        "tests",
        // ignored by git: what is built and fetched
        "models",
        "target",
    ];
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(root()).expect("the root") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            wrong.push(format!("{name} at the top level"));
        }
    }
    none(&wrong);
}
