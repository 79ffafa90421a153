//! What a check of a device found: plain data, for `tartlet selftest`.
//!
//! Owns: the vocabulary. Never: a check; each backend has its own.

/// The check whose rate is what memory does at most.
pub const BANDWIDTH: &str = "bandwidth";

/// A device and what it showed.
#[derive(Debug)]
pub struct Report {
    /// "cuda" or "cpu".
    pub backend: &'static str,
    /// For people: the device in a few words.
    pub device: String,
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
    /// Digest of all that the device computed: the same on every device.
    pub digest: Option<String>,
    /// Where devices differ in the last bits: some of the numbers.
    pub sample: Option<Sample>,
    /// Bytes per second that must be moved: what is read once and what is written.
    pub rate: Option<f64>,
    /// Multiplications and additions per second, where these may be the limit.
    pub operations: Option<f64>,
}

/// Numbers that are nearly the same on every device.
#[derive(Debug)]
pub struct Sample {
    pub numbers: Vec<f32>,
    /// Between two devices the root mean square of the differences is at most this share of that of the numbers.
    pub within: f64,
}

impl Sample {
    /// Every so many numbers one is taken: a prime, so that no row and no head is passed over.
    const STEP: usize = 17;

    pub fn of(numbers: impl Iterator<Item = f32>, within: f64) -> Sample {
        Sample { numbers: numbers.step_by(Sample::STEP).collect(), within }
    }
}

impl Found {
    pub fn right(cases: usize) -> Found {
        Found { cases, ..Found::default() }
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
