//! What `make gpu-check` packs, in a folder of the test's own.
//!
//! Owns: its files, how it is run, and its table. Never: what it finds.

use super::finish::finish;
use super::stand_in::stand_in;
use super::{Folder, root};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// With a plan without models; its binary, a record and whatever else are the test's.
pub struct Bundle {
    pub folder: Folder,
}

impl Bundle {
    pub fn new() -> Bundle {
        let folder = Folder::new();
        for name in ["one/programs", "two"] {
            std::fs::create_dir_all(folder.path(name)).expect("a folder");
        }
        for entry in std::fs::read_dir(root().join("tests/gpu")).expect("tests/gpu") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                std::fs::copy(&path, folder.path("one").join(path.file_name().expect("a name")))
                    .expect("copied");
            }
        }
        let bundle = Bundle { folder };
        bundle.write("plan.json", &json!({ "models": [] }));
        bundle
    }

    pub fn write(&self, name: &str, value: &Value) {
        std::fs::write(self.one(name), value.to_string()).expect("written");
    }

    pub fn one(&self, name: &str) -> PathBuf {
        self.folder.path("one").join(name)
    }

    /// Runs the first call, the second, or both, on the stand-in driver, with programs of this folder before all others.
    pub fn check(&self, arguments: &[&str], told: &str) -> Output {
        let mut command = Command::new(self.one("check.sh"));
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.folder.path("bin").display()));
        command.args(["--seconds", "3000"]).args(arguments).arg("--libcuda").arg(stand_in());
        command.env("STAND_IN_DRIVER", told).env("PYTHONDONTWRITEBYTECODE", "1");
        finish(command)
    }

    pub fn result(&self) -> Value {
        let result = std::fs::read(self.one("result.json")).expect("the result");
        serde_json::from_slice(&result).expect("JSON")
    }

    /// A program of the bundle's own `bin`.
    pub fn program(&self, name: &str, script: &str) {
        std::fs::create_dir_all(self.folder.path("bin")).expect("a folder");
        let path = self.folder.path("bin").join(name);
        std::fs::write(&path, script).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    }
}

/// The state and the result of a row of the table.
pub fn row(table: &str, name: &str) -> (String, String) {
    // The last: kernels and checks are listed above.
    let line = table.lines().rfind(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no row {name}:\n{table}"));
    let mut words = line[name.len()..].trim_start().splitn(2, ' ');
    let mut next = || words.next().unwrap_or_default().trim().to_owned();
    (next(), next())
}
