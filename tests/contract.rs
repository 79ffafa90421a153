//! The README's tables: of the guest contract every function once, its state, and a test that calls it; every quota with
//! its default.
//!
//! Owns: the comparison. Never: what a function does, which the named tests ask.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tartlet::host;
use tartlet::quota::{NONE, Name, Over};

/// Interfaces of which every function is refused by a sentence when it is called.
const REFUSED: [&str; 3] = ["inferlet:image/image", "inferlet:adapter/common", "inferlet:zo/evolve"];

struct Row {
    interface: String,
    functions: Vec<String>,
    state: String,
    tests: Vec<String>,
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words in backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table under the heading of the contract.
fn rows() -> Vec<Row> {
    let readme = read("README.md");
    let (_, section) = readme.split_once("## What a program may call\n").expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or(section);
    let table = section.lines().filter(|line| line.starts_with("| `"));
    let cells = table.map(|line| line.trim_matches('|').split('|').collect::<Vec<_>>());
    let rows: Vec<Row> = cells
        .map(|cells| {
            let [interface, functions, state, tests] = cells[..] else { panic!("four cells: {cells:?}") };
            let interface = quoted(interface).pop().expect("an interface");
            Row {
                interface: format!("inferlet:{interface}"),
                functions: quoted(functions),
                state: state.trim().to_owned(),
                tests: quoted(tests),
            }
        })
        .collect();
    assert!(!rows.is_empty(), "the table is there");
    rows
}

#[test]
fn every_function_of_the_contract_stands_in_the_table_once() {
    let mut listed = BTreeMap::new();
    for row in rows() {
        for function in row.functions {
            let name = format!("{} {function}", row.interface);
            assert!(listed.insert(name.clone(), row.state.clone()).is_none(), "{name} stands twice");
        }
    }
    let ours = host::interfaces().iter().filter(|interface| interface.name.starts_with("inferlet:"));
    for interface in ours {
        let state = if REFUSED.contains(&interface.name) { "refused" } else { "works" };
        for function in &interface.functions {
            let name = format!("{} {}", interface.name, function.name);
            let said = listed.remove(&name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(said, state, "{name}");
        }
    }
    assert!(listed.is_empty(), "these are no functions of the contract: {listed:?}");
}

#[test]
fn every_quota_stands_in_the_table_with_its_default() {
    let readme = read("README.md");
    let (_, section) = readme.split_once("## What a program may use\n").expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or(section);
    let told: Vec<String> =
        section.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
    assert_eq!(told.len(), Name::TABLE.len());
    for (row, told) in Name::TABLE.iter().zip(told) {
        let over = if row.over == Over::Waits { "waits" } else { "ends" };
        let cells: Vec<&str> = told.trim_matches('|').split('|').map(str::trim).collect();
        let default = cells[1].trim_end_matches(" (1)").replace(',', "");
        let expected = if row.default == NONE { "none".to_owned() } else { row.default.to_string() };
        assert_eq!((cells[0], &*default, cells[2]), (&*format!("`{}`", row.key), &*expected, over));
    }
}

/// Each file of tests of the host, split at its functions.
fn functions() -> Vec<(String, String)> {
    let files = ["src/host/tests/mod.rs", "src/host/tests/passes.rs"].map(read);
    let parts = files.iter().flat_map(|file| file.split("\n}\n"));
    let named = parts.filter_map(|part| {
        let (_, rest) = part.split_once("\nfn ").or_else(|| part.split_once("fn "))?;
        let name = rest.split('(').next()?.to_owned();
        Some((name, part.to_owned()))
    });
    named.collect()
}

/// Directly, or by a function of the same file that it calls.
#[test]
fn the_named_tests_call_their_functions() {
    let functions = functions();
    let text_of = |name: &str| functions.iter().find(|(own, _)| own == name).map(|(_, text)| text);
    for row in rows() {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = Vec::new();
        for test in &row.tests {
            let text = text_of(test).unwrap_or_else(|| panic!("there is no test {test}"));
            assert!(text.contains("#[test]"), "{test} is no test");
            open.push(text);
        }
        while let Some(text) = open.pop() {
            if reached.insert(text) {
                let called = functions.iter().filter(|(name, _)| text.contains(&format!("{name}(")));
                open.extend(called.map(|(_, text)| &**text));
            }
        }
        for function in &row.functions {
            let literal = format!("\"{function}\"");
            let found = reached.iter().any(|text| text.contains(&literal));
            assert!(found, "{} {function}: none of {:?} calls it", row.interface, row.tests);
        }
    }
}
