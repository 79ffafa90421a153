//! `tartlet bench`: the instrument for speed.
//!
//! Owns: what is measured in which order, what is left behind when it is interrupted (nothing), and the report. Never:
//! a figure that was not measured in this run, or a promise about one.
//!
//! ```text
//! roofs.rs            what the machine does at most                   measure.rs   samples to a figure
//! work.rs             what a batch needs: bytes, operations           table.rs     the report for people
//! steps.rs            the backend alone: prefill, decode, sequences   against.rs   what changed since another run
//! rig.rs              a server in this process: the tax, launches
//! fair.rs             the same beside programs that mean harm, and how soon these are gone
//! child.rs            a server as a process: start, memory, idleness, the socket        leavings.rs  nothing stays behind
//! others.rs           what else ran meanwhile
//! ```

mod against;
mod child;
mod fair;
mod leavings;
mod measure;
mod others;
mod rig;
mod roofs;
mod steps;
mod table;
mod work;

use crate::backend::choice::NotLoaded;
use crate::backend::cpu::{Cpu, free_memory, roof};
use crate::backend::crew::Crew;
use crate::backend::{Fault, Which, cuda};
use crate::client::ClientError;
use crate::config::{Config, EngineConfig, ModelConfig};
use crate::limits;
use crate::model::{Model, ModelError};
use crate::quota::Quotas;
use leavings::Leavings;
use measure::{Machine, Measure, Measured, Report};
use others::Ticks;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use steps::{Bare, Room, Steps};
use work::Roof;

/// No answer of our own server takes longer, whatever the model.
const PATIENCE: Duration = Duration::from_secs(300);
/// The longest prompt or context, and the most sequences, that can be asked for.
const FIGURE_MOST: usize = 1 << 17;

/// What is measured, in order.
pub const SECTIONS: &[&str] =
    &["roof", "prefill", "decode", "sequences", "tax", "launch", "kill", "fair", "socket", "server"];

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    pub model: PathBuf,
    /// What the backend and the servers run with.
    pub engine: EngineConfig,
    /// The folder with `completion.wasm`, `echo.wasm` and `rogue.wasm`.
    pub inferlets: Option<PathBuf>,
    /// Some of [`SECTIONS`], or a figure of the backend by its number (`prefill.512`); empty: all.
    pub only: Vec<String>,
    /// An earlier report to compare with.
    pub against: Option<PathBuf>,
}

/// Why there is no report. `Display` is one sentence.
#[derive(Debug)]
pub enum BenchError {
    /// The command line's fault.
    Option(String),
    Model(ModelError),
    Load(NotLoaded),
    /// The GPU cannot be used, or does not do its part.
    Device(String),
    /// Everything that was asked for is left out: why, in sentences.
    Nothing(Vec<String>),
    /// Megabytes of the weights and of free memory.
    TooLarge {
        weights: u64,
        free: u64,
    },
    /// A file that was named cannot be used: path and reason.
    File(PathBuf, String),
    Fault(Fault),
    Client(ClientError),
    /// Our own server did not do what it should.
    Server(String),
    System {
        what: &'static str,
        error: std::io::Error,
    },
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::Option(sentence) => f.write_str(sentence),
            BenchError::Model(error) => error.fmt(f),
            BenchError::Load(error) => error.fmt(f),
            BenchError::Device(sentence) => f.write_str(sentence),
            BenchError::Nothing(why) => write!(f, "nothing is left to measure: {}", why.join(" ")),
            BenchError::TooLarge { weights, free } => write!(
                f,
                "the model's weights take {weights} MB, but this machine has {free} MB free: measure a smaller one"
            ),
            BenchError::File(path, why) => write!(f, "{}: {why}", path.display()),
            BenchError::Fault(fault) => write!(f, "the backend failed: {fault}"),
            BenchError::Client(error) => error.fmt(f),
            BenchError::Server(what) => write!(f, "the measured server failed: {what}"),
            BenchError::System { what, error } => write!(f, "the system does not let us {what}: {error}"),
        }
    }
}

impl std::error::Error for BenchError {}

impl BenchError {
    /// Whether the device is at fault, and neither the command line nor the model.
    pub fn is_of_device(&self) -> bool {
        match self {
            BenchError::Load(error) => error.is_of_device(),
            BenchError::Device(_) | BenchError::Fault(_) => true,
            _ => false,
        }
    }
}

impl From<ClientError> for BenchError {
    fn from(error: ClientError) -> BenchError {
        BenchError::Client(error)
    }
}

/// Stock programs to measure with, as `make inferlets` builds them.
pub struct Programs {
    /// Generates text and sends nothing until it ends.
    completion: Vec<u8>,
    /// Sends back what it gets.
    echo: Vec<u8>,
    /// Does wrong, as its first argument says.
    rogue: Vec<u8>,
}

impl Programs {
    fn read(folder: &Path) -> Result<Programs, BenchError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| {
                BenchError::File(
                    path,
                    format!("{error}; --inferlets names the folder that `make inferlets` fills"),
                )
            })
        };
        let completion = read("completion.wasm")?;
        if completion.len() + 1024 > limits::CHUNK_BYTES {
            let path = folder.join("completion.wasm");
            return Err(BenchError::File(
                path,
                "it takes more than one upload chunk, so its launch cannot be timed".into(),
            ));
        }
        Ok(Programs { completion, echo: read("echo.wasm")?, rogue: read("rogue.wasm")? })
    }
}

/// The earlier report that `--against` names.
fn earlier(path: &Path) -> Result<Report, BenchError> {
    let bytes = std::fs::read(path).map_err(|error| BenchError::File(path.into(), error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        BenchError::File(path.into(), format!("it is not what `tartlet bench --json` writes: {error}"))
    })
}

/// Measures and gives the report, as a table or as JSON, and what changed since an earlier one.
pub fn run(options: &Options, json: bool) -> Result<String, BenchError> {
    let selection = Selection::of(&options.only)?;
    let before = options.against.as_deref().map(earlier).transpose()?;
    let report = measured(options, &selection)?;
    let mut text = match json {
        true => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        false => table::table(&report),
    };
    if let Some(before) = before {
        let changes = against::compare(&before, &report);
        match json {
            // Standard output stays one JSON object.
            true => {
                let _ = std::io::stderr().write_all(changes.as_bytes());
            }
            false => text += &format!("\n{changes}"),
        }
    }
    Ok(text)
}

/// What `--only` leaves.
struct Selection {
    /// Empty: all.
    sections: Vec<&'static str>,
    steps: Steps,
}

impl Selection {
    fn of(only: &[String]) -> Result<Selection, BenchError> {
        let mut selection = Selection { sections: Vec::new(), steps: Steps::usual() };
        let mut numbers: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
        let mut whole: Vec<&str> = Vec::new();
        for word in only {
            let (name, number) = word.split_once('.').map_or((word.as_str(), None), |(a, b)| (a, Some(b)));
            let section = SECTIONS.iter().find(|section| **section == name).ok_or_else(|| {
                BenchError::Option(format!("--only {word} is none of {}.", SECTIONS.join(", ")))
            })?;
            selection.sections.push(section);
            if let Some(number) = number {
                let number =
                    number.parse().ok().filter(|n| (1..=FIGURE_MOST).contains(n)).ok_or_else(|| {
                        BenchError::Option(format!(
                            "--only {word}: the number is not one from 1 to {FIGURE_MOST}."
                        ))
                    })?;
                let numbers = numbers.entry(section).or_default();
                if !numbers.contains(&number) {
                    numbers.push(number);
                }
            } else {
                whole.push(section);
            }
        }
        let Selection { sections, steps } = &mut selection;
        for (section, figures) in steps.sections() {
            match numbers.remove(section) {
                Some(asked) if whole.contains(&section) => {
                    figures.extend(
                        asked.into_iter().filter(|number| !figures.contains(number)).collect::<Vec<_>>(),
                    );
                }
                Some(asked) => *figures = asked,
                // What nobody asks for takes no room, and is not told as left out.
                None if !sections.is_empty() && !sections.contains(&section) => figures.clear(),
                None => {}
            }
        }
        if let Some(other) = numbers.keys().next() {
            let sentence = format!("--only {other} takes no number; prefill, decode and sequences do.");
            return Err(BenchError::Option(sentence));
        }
        Ok(selection)
    }

    fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.contains(&section)
    }
}

/// Takes the measures in their order.
fn measured(options: &Options, selection: &Selection) -> Result<Report, BenchError> {
    let programs = options.inferlets.as_deref().map(Programs::read).transpose()?;
    let model = Arc::new(Model::open(&options.model, None, None).map_err(BenchError::Model)?);
    let engine = &settled(&options.engine, &model);
    let weight_bytes = model.gguf.tensors().filter_map(|tensor| tensor.bytes).sum::<usize>() as u64;
    // A GPU says itself what it has no room for.
    let free = free_memory().filter(|_| engine.backend != Some(Which::Cuda));
    if let Some(free) = free.filter(|free| *free < weight_bytes) {
        return Err(BenchError::TooLarge { weights: weight_bytes / 1_000_000, free: free / 1_000_000 });
    }
    let mut steps = selection.steps.clone();
    let left_out = steps.fit(&Room {
        context: model.shape.context as usize,
        batch_tokens: engine.batch_tokens as usize,
        page_size: engine.page_size as usize,
        page_bytes: Cpu::page_bytes(&model.shape, engine.page_size, engine.kv_cache),
        free: free.map(|free| free - weight_bytes),
    });
    let leavings = Leavings::new()?;
    let before = Ticks::now();
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        date: now(),
        machine: machine(),
        model: Measured {
            name: model.name.clone(),
            description: model.description.clone(),
            weight_bytes,
            packed_bytes: None,
            device: None,
            threads: engine.threads,
        },
        others: None,
        measures: Vec::new(),
        notes: left_out,
    };
    backend(&model, engine, selection, &steps, &mut report)?;
    drop(model); // the servers open it themselves
    let among = Servers { model: &options.model, engine, leavings: &leavings };
    match programs {
        Some(programs) => among.with_programs(&programs, selection, &mut report)?,
        None if ["tax", "launch", "kill", "fair", "socket"]
            .iter()
            .any(|section| selection.wants(section)) =>
        {
            report.notes.push(
                "The tax, launches, kills, fairness and the socket were left out, for they need programs: give --inferlets DIR, the \
                 folder that `make inferlets` fills."
                    .to_owned(),
            );
        }
        None => {}
    }
    if selection.wants("server") {
        tell("a server by itself");
        let packed = report.model.packed_bytes.unwrap_or(0);
        child::server(&among, packed, &mut report)?;
    }
    tell("");
    if report.measures.is_empty() {
        return Err(BenchError::Nothing(report.notes));
    }
    report.notes.extend(roofs::above(&report.measures));
    report.others = before.zip(Ticks::now()).and_then(|(before, now)| now.others_since(&before));
    if let Some(others) = others::told(report.others, report.machine.cores) {
        report.notes.push(format!(
            "Others took {:.0} % of the processors' time meanwhile, {:.1} cores: measure again on a machine that does nothing \
             else.",
            100.0 * others,
            others * report.machine.cores as f64
        ));
    }
    Ok(report)
}

/// The same with the backend that `auto` means here, so that all sections measure the same one.
fn settled(engine: &EngineConfig, model: &Model) -> EngineConfig {
    let auto = || {
        let usable = cuda::usable(model, &steps::cuda_options(engine));
        if usable.is_ok() { Which::Cuda } else { Which::Cpu }
    };
    EngineConfig { backend: Some(engine.backend.unwrap_or_else(auto)), ..engine.clone() }
}

/// The machine's roof, and the backend under it.
fn backend(
    model: &Arc<Model>,
    engine: &EngineConfig,
    selection: &Selection,
    steps: &Steps,
    report: &mut Report,
) -> Result<(), BenchError> {
    type Section = fn(&mut Bare, &Steps, Roof) -> Result<Vec<Measure>, BenchError>;
    let sections: [(&str, Section); 3] =
        [("prefill", Bare::prefill), ("decode", Bare::decode), ("sequences", Bare::sequences)];
    let crew = Crew::threads(engine.threads);
    let mut roof = None;
    if !steps.is_empty() || selection.wants("roof") {
        tell("the roof");
        let (measures, found) = match engine.backend {
            Some(Which::Cuda) => roofs::of_gpu(engine.libcuda.as_deref())?,
            _ => {
                let weights = report.model.weight_bytes as usize;
                let (measures, found) = roofs::of_processor(&crew, weights)?;
                let (found, note) = roofs::cached(weights, found);
                report.notes.extend(note);
                (measures, found)
            }
        };
        roof = Some(found);
        report.measures.extend(measures.into_iter().filter(|_| selection.wants("roof")));
    }
    // What a server's memory holds beside the weights is told apart by what the backend packs them into.
    if !steps.is_empty() || selection.wants("server") {
        tell("the backend");
        let mut bare = Bare::load(model, engine, crew, steps)?;
        report.model.device = Some(bare.device().to_owned());
        report.model.packed_bytes = bare.packed_bytes().map(|bytes| bytes as u64);
        for (section, measure) in sections.into_iter().filter(|(section, _)| selection.wants(section)) {
            tell(section);
            if let Some(roof) = roof {
                report.measures.extend(measure(&mut bare, steps, roof)?);
            }
        }
    }
    Ok(())
}

/// What every server that is measured shares.
struct Servers<'a> {
    model: &'a Path,
    engine: &'a EngineConfig,
    leavings: &'a Leavings,
}

impl Servers<'_> {
    fn with_programs(
        &self,
        programs: &Programs,
        selection: &Selection,
        report: &mut Report,
    ) -> Result<(), BenchError> {
        if ["tax", "launch", "kill", "fair"].iter().any(|section| selection.wants(section)) {
            tell("what programs cost");
            let mut rig = rig::Rig::start(self.config())?;
            if selection.wants("tax") {
                let (measures, clock) = rig.tax(programs)?;
                report.measures.extend(measures);
                report.notes.push(clock);
            }
            if selection.wants("launch") {
                if !self.leavings.has_memory() {
                    report.notes.push(
                        "Programs were kept where temporary files lie while launches were timed, for this system has no \
                         file system in memory to write to: a cold launch waits for the disk too."
                            .to_owned(),
                    );
                }
                report.measures.extend(rig.launch(programs, self.leavings.folder())?);
            }
            if selection.wants("kill") {
                tell("how soon a program is gone");
                let (measures, slowest) = rig.kill(programs)?;
                report.measures.extend(measures);
                report.notes.push(slowest);
            }
            if selection.wants("fair") {
                tell("a chat beside loops");
                report.measures.extend(rig.fair(programs)?);
            }
            rig.stop()?;
        }
        if selection.wants("socket") {
            tell("the socket");
            report.measures.extend(child::socket(self, programs)?);
        }
        Ok(())
    }

    /// A server in this process: no authentication, a free loopback port, and its programs in memory, so that a launch
    /// does not measure the disk.
    fn config(&self) -> Config {
        Config {
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            hosts: Vec::new(),
            origins: Vec::new(),
            state: self.leavings.memory().join("rig"),
            auth: None,
            model: ModelConfig {
                path: self.model.to_owned(),
                name: None,
                template: None,
                public_prefixes: Vec::new(),
            },
            engine: self.engine.clone(),
            quotas: Quotas::default(),
            openai: None,
            allow: Default::default(),
            log: tracing::Level::WARN,
        }
    }
}

/// An answer of our own server, or an error when it does not come. Boxed, so that waiting for one is in the binary once.
fn within<'a, T: 'a>(
    answer: impl Future<Output = Result<T, ClientError>> + 'a,
) -> LocalBoxed<'a, Result<T, BenchError>> {
    fn patient<'a, T: 'a>(
        answer: LocalBoxed<'a, Result<T, ClientError>>,
    ) -> LocalBoxed<'a, Result<T, BenchError>> {
        let late = async {
            smol::Timer::after(PATIENCE).await;
            Err(BenchError::Server(format!("it gave no answer in {} s", PATIENCE.as_secs())))
        };
        Box::pin(smol::future::or(async { Ok(answer.await?) }, late))
    }
    patient(Box::pin(answer))
}

/// A future of one thread.
type LocalBoxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Says on a terminal what is being measured, over what was said before.
fn tell(what: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let line = if what.is_empty() { String::new() } else { format!("measuring {what} …") };
        let _ = write!(stderr, "\r\x1b[K{line}"); // only a courtesy
    }
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

fn machine() -> Machine {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        processor: name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mb: proc_bytes("/proc/meminfo", "MemTotal:").unwrap_or(0) / 1_000_000,
        instructions: roof::instructions().to_owned(),
    }
}

/// Bytes, by the line of a file of /proc that starts so and counts in kB.
fn proc_bytes(file: &str, line: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let kib = text.lines().find_map(|found| found.strip_prefix(line))?.split_whitespace().next()?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(only: &[&str]) -> Result<Selection, String> {
        let only: Vec<String> = only.iter().map(|word| word.to_string()).collect();
        Selection::of(&only).map_err(|error| error.to_string())
    }

    #[test]
    fn a_selection_names_sections_or_figures() {
        let all = selected(&[]).expect("nothing is all");
        assert!(SECTIONS.iter().all(|section| all.wants(section)));
        let some = selected(&["prefill.300", "prefill.7", "decode"]).expect("they exist");
        assert!(some.wants("prefill") && some.wants("decode") && !some.wants("roof"));
        assert_eq!(some.steps.prefill, [300, 7]);
        assert_eq!(some.steps.contexts, Steps::usual().contexts);
        assert!(some.steps.sequences.is_empty(), "what nobody asks for needs no room");
        let more = selected(&["prefill.300", "prefill", "prefill.512"]).expect("they exist");
        assert_eq!(more.steps.prefill, [128, 512, 2048, 300], "a figure more than the usual ones");
        let twice = selected(&["decode.9", "decode.9"]).expect("they exist");
        assert_eq!(twice.steps.contexts, [9]);
        for (only, part) in [
            ("taxes", "--only taxes is none of roof, prefill, decode"),
            ("prefill.0", "not one from 1 to"),
            ("decode.x", "not one from 1 to"),
            ("tax.5", "--only tax takes no number"),
        ] {
            let sentence = selected(&[only]).err().expect(only);
            assert!(sentence.contains(part), "{sentence}");
        }
    }
}
