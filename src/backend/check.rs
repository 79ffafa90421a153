//! What a check of a device found: plain data, for `tartlet selftest`.
//!
//! Owns: the vocabulary. Never: a check; each backend has its own.

use super::Which;

/// The check whose rate is what memory does at most.
pub const BANDWIDTH: &str = "bandwidth";

/// A device and what it showed.
#[derive(Debug)]
pub struct Report {
    pub backend: Which,
    /// For people: the device in a few words.
    pub device: String,
    /// Whether a launch can begin before the one before it has ended (a GPU's alone): kernels have another module then.
    pub overlaps: bool,
    pub kernels: Vec<Compiled>,
    pub checks: Vec<Check>,
    /// Why the checks were broken off: the device did not do its part any more. The last check is the one it was in.
    pub broken_off: Option<String>,
}

/// A kernel as the device's own compiler made it.
#[derive(Debug)]
pub struct Compiled {
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: above 0, registers were spilled; right, but slow.
    pub spilled: u32,
    /// Bytes of static shared memory of a CTA.
    pub shared: u32,
}

/// One property of the device; the error says what was wrong.
#[derive(Debug)]
pub struct Check {
    pub name: String,
    pub found: Result<Found, String>,
}

/// What a check that passed has to say.
#[derive(Debug, Default)]
pub struct Found {
    /// So many cases were right.
    pub cases: usize,
    /// What each launch computed, for the comparison with another device.
    pub launches: Vec<Launched>,
    /// Bytes per second that must be moved: what is read once and what is written.
    pub rate: Option<f64>,
    /// Multiplications and additions per second, where these may be the limit.
    pub operations: Option<f64>,
}

/// One launch and what came out of it.
#[derive(Debug)]
pub struct Launched {
    /// The kernel and the shape; unlike every other of its check.
    pub name: String,
    /// What its data follow from.
    pub seed: u64,
    pub result: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    /// The digest of all its bits: the same on every device.
    Digest(String),
    /// Where devices differ in the last bits: some of the numbers.
    Sample(Sample),
}

impl Launched {
    /// A launch whose bits depend on no device.
    pub fn exact(name: String, seed: u64, bytes: &[u8]) -> Launched {
        Launched { name, seed, result: Outcome::Digest(blake3::hash(bytes).to_hex().to_string()) }
    }

    /// A launch whose numbers are nearly the same on every device, `within` what [`Sample`] says.
    pub fn near(name: String, seed: u64, bytes: &[u8], within: f64) -> Launched {
        let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Launched { name, seed, result: Outcome::Sample(Sample::of(numbers, within)) }
    }
}

/// Numbers that are nearly the same on every device.
#[derive(Debug)]
pub struct Sample {
    pub numbers: Vec<f32>,
    /// Between two devices the root mean square of the differences is at most this share of that of the numbers.
    pub within: f64,
}

impl Sample {
    /// Of more numbers than this some are taken: it is megabytes else.
    const ALL: usize = 1024;
    /// Every so many numbers one: a prime, so that no row and no head is passed over.
    const STEP: usize = 17;

    fn of(numbers: impl ExactSizeIterator<Item = f32>, within: f64) -> Sample {
        let step = if numbers.len() > Sample::ALL { Sample::STEP } else { 1 };
        Sample { numbers: numbers.step_by(step).collect(), within }
    }
}

impl Found {
    pub fn right(cases: usize) -> Found {
        Found { cases, ..Found::default() }
    }

    pub fn launches(launches: Vec<Launched>) -> Found {
        Found { cases: launches.len(), launches, ..Found::default() }
    }

    pub fn rate(rate: f64) -> Found {
        Found { rate: Some(rate), ..Found::default() }
    }
}

impl Report {
    pub fn passed(&self) -> bool {
        self.broken_off.is_none() && self.checks.iter().all(|check| check.found.is_ok())
    }
}
