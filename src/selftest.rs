//! `tartlet selftest`: whether this machine's device does what a backend counts on.
//!
//! Owns: which device is checked, the table, the JSON, the verdict. Never: a check: each backend has its own, and
//! `eval` compares a model with its golden file.

use crate::backend::check::{BANDWIDTH, Check, Found, Launched, Outcome, Report};
use crate::backend::{Which, cpu, cuda};
use crate::eval;
use serde_json::json;
use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// Which device, and how it is found.
pub struct Options {
    /// None: the GPU if there is one that can be used, else the processor.
    pub backend: Option<Which>,
    /// The driver's library; none: where it is usually found.
    pub libcuda: Option<PathBuf>,
    /// Whether rates are measured, and steps must end in the time that a device takes.
    pub timed: bool,
    /// Whether a GPU is only greeted: one kernel, and no more.
    pub hello: bool,
    /// A model and its golden file: whether the device computes the model as it should, when all else is right.
    pub golden: Option<(PathBuf, PathBuf)>,
}

/// Why there is no report. `Display` is one sentence.
#[derive(Debug)]
pub enum SelftestError {
    Device(cuda::Error),
    /// The model or the golden file cannot be used.
    Golden(eval::EvalError),
}

impl fmt::Display for SelftestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SelftestError::Device(error) => error.fmt(f),
            SelftestError::Golden(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SelftestError {}

/// What was found, whatever it was. `tell` hears a sentence if another device is checked than could be expected.
pub fn run(options: &Options, tell: impl FnOnce(&str)) -> Result<Report, SelftestError> {
    // First of all, so that a wrong file is not told after minutes. The device is asked later, whichever it is.
    let served = eval::Options::as_served(Which::Cpu, options.libcuda.clone());
    let open = |(model, golden): &(PathBuf, PathBuf)| eval::Evaluation::open(model, golden, &served);
    let evaluation = options.golden.as_ref().map(open).transpose().map_err(SelftestError::Golden)?;
    let mut report = device(options, tell).map_err(SelftestError::Device)?;
    if let Some(evaluation) = evaluation
        && report.passed()
    {
        let found = evaluation.run(&eval::Options { backend: report.backend, ..served });
        if let Err(error) = &found
            && error.is_of_device()
        {
            report.broken_off = Some(error.to_string());
        }
        report.checks.push(Check { name: "golden prompts".to_owned(), found: computed(found) });
    }
    Ok(report)
}

/// What the golden prompts showed: their steps are the cases.
fn computed(found: Result<eval::Report, eval::EvalError>) -> Result<Found, String> {
    let report = found.map_err(|error| error.to_string())?;
    match report.shortfall() {
        Some(why) => Err(why),
        None => Ok(Found { cases: report.scores.steps, ..Found::default() }),
    }
}

/// What the device showed; the error says why it cannot be used at all.
fn device(options: &Options, tell: impl FnOnce(&str)) -> Result<Report, cuda::Error> {
    let gpu = || cuda::check(options.libcuda.as_deref(), options.timed);
    if options.hello {
        return cuda::hello(options.libcuda.as_deref());
    }
    match options.backend {
        Some(Which::Cuda) => gpu(),
        Some(Which::Cpu) => Ok(cpu::check(options.timed)),
        // A driver that was named is meant; without a GPU the processor is what a server would take.
        None if options.libcuda.is_some() => gpu(),
        None => gpu().or_else(|error| match error {
            cuda::Error::NoDriver { .. } | cuda::Error::NoDevice => {
                tell(&format!("{error} The processor is checked instead."));
                Ok(cpu::check(options.timed))
            }
            error => Err(error),
        }),
    }
}

/// The verdict in one word.
fn verdict(report: &Report) -> &'static str {
    if report.passed() { "passed" } else { "FAILED" }
}

/// What passed, in a few words; a rate also as a share of the bandwidth.
fn right(found: &Found, bandwidth: Option<f64>) -> String {
    let mut words = Vec::new();
    if found.cases > 0 {
        words.push(format!("passed, {} cases", found.cases));
    }
    if let Some(rate) = found.rate {
        let share = bandwidth.filter(|whole| *whole != rate);
        let share =
            share.map_or(String::new(), |whole| format!(", {:.0} % of the bandwidth", 100.0 * rate / whole));
        words.push(format!("{:.2} GB/s{share}", rate / 1e9));
    }
    if let Some(operations) = found.operations {
        words.push(format!("{:.2} TOP/s", operations / 1e12));
    }
    words.join(", ")
}

/// The report for people.
pub fn table(report: &Report) -> String {
    let mut text = format!("{}: {}\n", report.backend.name(), report.device);
    if !report.kernels.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<20} {:>9} {:>14} {:>14}",
            "kernel", "registers", "spilled bytes", "shared bytes"
        );
        for kernel in &report.kernels {
            let _ = writeln!(
                text,
                "{:<20} {:>9} {:>14} {:>14}",
                kernel.name, kernel.registers, kernel.spilled, kernel.shared
            );
        }
    }
    let bandwidth = report.checks.iter().find(|check| check.name == BANDWIDTH);
    let bandwidth = bandwidth.and_then(|check| check.found.as_ref().ok()?.rate);
    let _ = writeln!(text, "\n{:<28} result", "check");
    for Check { name, found } in &report.checks {
        let result = match found {
            Ok(found) => right(found, bandwidth),
            Err(wrong) => format!("FAILED: {wrong}"),
        };
        let _ = writeln!(text, "{name:<28} {result}");
    }
    for kernel in report.kernels.iter().filter(|kernel| kernel.spilled > 0) {
        let _ = writeln!(
            text,
            "\nnote: this driver's compiler spills {} bytes a thread of {} to memory: right, but slow; a newer driver may not.",
            kernel.spilled, kernel.name
        );
    }
    let _ = writeln!(text, "\nselftest {}", verdict(report));
    text
}

/// The bits of floats, little-endian, in hexadecimal digits: exact, and short.
fn hex(numbers: &[f32]) -> String {
    numbers.iter().fold(String::new(), |mut text, number| {
        let _ = write!(text, "{:08x}", number.to_bits().swap_bytes());
        text
    })
}

fn launched(Launched { name, seed, result }: &Launched) -> serde_json::Value {
    match result {
        Outcome::Digest(digest) => json!({ "launch": name, "seed": seed, "digest": digest }),
        Outcome::Sample(sample) => {
            json!({ "launch": name, "seed": seed, "numbers": hex(&sample.numbers), "within": sample.within })
        }
    }
}

/// The report for programs: one JSON object.
pub fn json(report: &Report) -> String {
    let kernels = report.kernels.iter().map(|kernel| {
        json!({
            "name": kernel.name,
            "registers": kernel.registers,
            "spilled_bytes": kernel.spilled,
            "shared_bytes": kernel.shared,
        })
    });
    let checks = report.checks.iter().map(|Check { name, found }| match found {
        Ok(found) => json!({
            "name": name,
            "passed": true,
            "cases": found.cases,
            "launches": found.launches.iter().map(launched).collect::<Vec<_>>(),
            "bytes_per_second": found.rate,
            "operations_per_second": found.operations,
        }),
        Err(wrong) => json!({ "name": name, "passed": false, "wrong": wrong }),
    });
    let object = json!({
        "backend": report.backend.name(),
        "device": report.device,
        "overlaps": report.overlaps,
        "kernels": kernels.collect::<Vec<_>>(),
        "checks": checks.collect::<Vec<_>>(),
        "broken_off": report.broken_off,
        "passed": report.passed(),
    });
    format!("{object:#}\n")
}
