//! The stand-in driver: a `libcuda.so.1` whose device is the PTX emulator.
//!
//! Owns: that it is built, and where it lies. Never: what it is told (`STAND_IN_DRIVER`; its `script.rs` says how).

use super::root;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The stand-in driver, built by the cargo that runs this test, with the profile that it runs with.
pub fn stand_in() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/debug/tartlet, target/release/tartlet, or either below the folder of a target triple.
        let folder = Path::new(env!("CARGO_BIN_EXE_tartlet")).parent().expect("a binary lies in a folder");
        let target =
            Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the folder of all that is built");
        let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        let profile = name(folder);
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["build", "--locked", "--package", "stand-in-driver"]);
        cargo.args(["--profile", if profile == "debug" { "dev" } else { &profile }]);
        cargo.arg("--target-dir").arg(target).arg("--message-format=json-render-diagnostics");
        if folder.parent() != Some(target) {
            cargo.arg("--target").arg(name(folder.parent().expect("the folder of a triple")));
        }
        let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
        assert!(output.status.success(), "the stand-in driver does not build");
        let messages = String::from_utf8(output.stdout).expect("UTF-8");
        let made = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let library = made
            .filter(|message| message["target"]["name"] == "stand_in_driver")
            .find_map(|message| message["filenames"][0].as_str().map(PathBuf::from));
        library.expect("cargo says where the library lies")
    })
}
