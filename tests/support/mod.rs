//! What every end-to-end test stands on: the built binary as a server of the test's own, with the real model, on a
//! free loopback port, in a folder that goes when the server does.
//!
//! Owns: processes, folders, paths. Never: what is being tested.

#![allow(dead_code)] // each test file uses a part of it

pub mod bundle;
pub mod client;
pub mod finish;
pub mod frame;
pub mod http;
pub mod stand_in;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// How long a test waits for anything before it fails: far beyond what a loaded machine takes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test: the one that was built with the tests, or the one that TARTLET_BIN names.
pub fn binary() -> PathBuf {
    std::env::var_os("TARTLET_BIN").map_or_else(|| env!("CARGO_BIN_EXE_tartlet").into(), PathBuf::from)
}

/// A command of the binary under test.
pub fn tartlet() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("TARTLET_TOKEN").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

/// Runs a command of the binary to its end.
pub fn tartlet_output(arguments: &[&str]) -> Output {
    tartlet().args(arguments).output().expect("the binary runs")
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A port that nobody has, for now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    listener.and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// The real model.
pub fn model() -> PathBuf {
    let path = std::env::var_os("TARTLET_MODEL")
        .map_or_else(|| root().join("models/SmolLM2-135M-Instruct.Q4_1.gguf"), PathBuf::from);
    assert!(path.is_file(), "there is no model at {}: run `make model` first", path.display());
    path
}

/// A model of a few kilobytes, where what it says is no matter: a server that starts in milliseconds.
pub fn small_model() -> PathBuf {
    root().join("tests/golden/kquants-00001-of-00003.gguf")
}

/// A built guest program of `inferlets/`.
pub fn guest(name: &str) -> PathBuf {
    let path = root().join("inferlets/target/wasm32-wasip2/release").join(format!("{name}.wasm"));
    assert!(path.is_file(), "there is no guest at {}: run `make inferlets` first", path.display());
    path
}

pub fn guest_bytes(name: &str) -> Vec<u8> {
    std::fs::read(guest(name)).expect("the guest is readable")
}

/// The Python that the unmodified client is installed in.
pub fn python() -> PathBuf {
    let path = std::env::var_os("TARTLET_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    assert!(path.is_file(), "there is no Python at {}: run `make venv` first", path.display());
    path
}

/// A folder that is removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server.
pub struct Server {
    child: Child,
    /// `ws://127.0.0.1:PORT`
    pub url: String,
    /// What clients authenticate with; none: authentication is off.
    pub token: Option<String>,
    pub folder: Folder,
    model: PathBuf,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// A server that accepts everyone.
    pub fn open() -> Server {
        Server::start(Folder::new(), model(), None, &["--no-auth"])
    }

    /// The same with more flags.
    pub fn open_with(flags: &[&str]) -> Server {
        Server::start(Folder::new(), model(), None, &[&["--no-auth"], flags].concat())
    }

    /// A server that accepts everyone, with a model that is no matter.
    pub fn small() -> Server {
        Server::start(Folder::new(), small_model(), None, &["--no-auth"])
    }

    /// The same with this configuration.
    pub fn small_with(config: &str) -> Server {
        Server::with(small_model(), config)
    }

    /// A server that accepts everyone, with this configuration.
    pub fn configured(config: &str) -> Server {
        Server::with(model(), config)
    }

    fn with(model: PathBuf, config: &str) -> Server {
        Server::of(model, config, &[])
    }

    /// A server that accepts everyone, with this model, configuration and flags.
    pub fn of(model: PathBuf, config: &str, flags: &[&str]) -> Server {
        let folder = Folder::new();
        let path = folder.path("tartlet.toml");
        std::fs::write(&path, config).expect("the folder can be written to");
        let flags = [&["--no-auth", "--config", path.to_str().expect("UTF-8")], flags].concat();
        Server::start_in(folder, model, None, &flags)
    }

    /// A server with a key pair of its own; the token is for the subject `tester`.
    pub fn guarded() -> Server {
        Server::guarded_with(model(), "")
    }

    /// The same with this model and configuration.
    pub fn guarded_with(model: PathBuf, config: &str) -> Server {
        let folder = Folder::new();
        let path = folder.path("tartlet.toml");
        std::fs::write(&path, config).expect("the folder can be written to");
        let path = path.to_str().expect("UTF-8").to_owned();
        let key = folder.path("key");
        let key = key.to_str().expect("UTF-8");
        let made = tartlet_output(&["token", "keygen", "--out", key]);
        assert!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
        let token = mint(Path::new(key), "tester", &[]);
        let key = format!("{key}.pub");
        Server::start(folder, model, Some(token), &["--config", &path, "--public-key", &key])
    }

    /// A second life on the same state.
    pub fn restart(mut self, flags: &[&str]) -> Server {
        self.stop();
        self.start_again(flags)
    }

    /// SIGKILL, at whatever it does. It stays dead until [`start_again`](Server::start_again).
    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// A second life on the same state, once the first is over.
    pub fn start_again(mut self, flags: &[&str]) -> Server {
        let folder = std::mem::replace(&mut self.folder, Folder::new());
        let (model, token) = (self.model.clone(), self.token.take());
        drop(self);
        Server::start(folder, model, token, flags)
    }

    fn start(folder: Folder, model: PathBuf, token: Option<String>, flags: &[&str]) -> Server {
        Server::start_in(folder, model, token, flags)
    }

    fn start_in(folder: Folder, model: PathBuf, token: Option<String>, flags: &[&str]) -> Server {
        Server::launch(tartlet(), folder, model, token, flags)
    }

    /// A server that accepts everyone, on the stand-in driver, which is told this.
    pub fn on_stand_in(model: PathBuf, told: &str, flags: &[&str]) -> Server {
        let mut command = tartlet();
        command.env("STAND_IN_DRIVER", told);
        let library = stand_in::stand_in().to_str().expect("UTF-8");
        let flags = [&["--no-auth", "--backend", "cuda", "--libcuda", library], flags].concat();
        Server::launch(command, Folder::new(), model, None, &flags)
    }

    fn launch(
        mut command: Command,
        folder: Folder,
        model: PathBuf,
        token: Option<String>,
        flags: &[&str],
    ) -> Server {
        let mut child = command
            .arg("serve")
            .arg("--model")
            .arg(&model)
            .args(["--listen", "127.0.0.1:0", "--state"])
            .arg(folder.path("state"))
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (said, listens) = mpsc::channel();
        collect(child.stdout.take().expect("piped"), log.clone(), Some(said));
        collect(child.stderr.take().expect("piped"), log.clone(), None);
        let Ok(url) = listens.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server does not listen:\n{}", log.lock().expect("unpoisoned"));
        };
        Server { child, url, token, folder, model, log }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        self.url.strip_prefix("ws://").expect("a WebSocket address")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path("key")
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the process is gone.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("our child") {
            panic!("the server ended ({status})");
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("unpoisoned").clone()
    }

    /// What the log says of each instance from its launch on, where one at a time was launched and `instances` ended.
    pub fn lives(&self, instances: usize) -> Vec<String> {
        let since = Instant::now();
        let mut log = self.log();
        while log.lines().filter(|line| line.contains(" ended ")).count() < instances {
            assert!(since.elapsed() < PATIENCE, "{instances} ends are not in the log");
            std::thread::sleep(Duration::from_millis(20));
            log = self.log();
        }
        log.split(" launched ").skip(1).map(str::to_owned).collect()
    }

    /// Resident memory in MiB.
    pub fn resident_mib(&self) -> usize {
        self.memory_kib("VmRSS") / 1024
    }

    /// A line of the kernel's account of the process: `VmRSS`, `RssAnon`, ...
    pub fn memory_kib(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(self.procfs("status")).expect("it runs");
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        let line = status.lines().find(of_name).expect("procfs");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// How many files the process has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(self.procfs("fd")).expect("it runs").count()
    }

    /// How many files it may have open.
    pub fn most_files(&self) -> usize {
        let limits = std::fs::read_to_string(self.procfs("limits")).expect("it runs");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("procfs");
        line.split_whitespace().next().and_then(|most| most.parse().ok()).expect("a number")
    }

    /// The names of its threads, sorted.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(self.procfs("task")).expect("it runs").flatten();
        // One that ends meanwhile has no name any more.
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        let mut names: Vec<String> = names.map(|name| name.trim_end().to_owned()).collect();
        names.sort();
        names
    }

    fn procfs(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }

    /// Asks the server to stop, as systemd does, and waits for it.
    pub fn stop(&mut self) -> ExitStatus {
        self.stop_by("-TERM")
    }

    /// As [`stop`](Server::stop), by this signal.
    pub fn stop_by(&mut self, signal: &str) -> ExitStatus {
        let process = self.child.id().to_string();
        let asked = Command::new("kill").args([signal, &process]).status().expect("kill runs");
        assert!(asked.success());
        self.ended()
    }

    /// Waits until the server has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "the server does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(4 * 1024);
            let tail = (tail..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("---- what the server said ----\n{}", &log[tail..]);
        }
    }
}

/// Keeps what a stream says and reports the address it names.
fn collect(
    stream: impl Read + Send + 'static,
    log: Arc<Mutex<String>>,
    listens: Option<mpsc::Sender<String>>,
) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line);
            if let (Some(listens), Some(url)) = (&listens, text.trim_end().strip_prefix("listening on ")) {
                let _ = listens.send(url.to_owned());
            }
            log.lock().expect("unpoisoned").push_str(&text);
            line.clear();
        }
    });
}

/// A token signed by the key in this file.
pub fn mint(key: &Path, subject: &str, more: &[&str]) -> String {
    let key = key.to_str().expect("UTF-8");
    let made = tartlet_output(&[&["token", "mint", "--key", key, "--sub", subject], more].concat());
    assert!(made.status.success(), "mint: {}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("a token is ASCII").trim().to_owned()
}
