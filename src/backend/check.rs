//! What a check of a device found: plain data, for `tartlet selftest`.
//!
//! Owns: the vocabulary. Never: a check; each backend has its own.

/// A device and what it showed.
#[derive(Debug)]
pub struct Report {
    /// "cuda" or "cpu".
    pub backend: &'static str,
    /// For people: the device in a few words.
    pub device: String,
    /// Whether the device's compiler spilled registers of a kernel to memory: right, but slow.
    pub kernels: Vec<Compiled>,
    pub checks: Vec<Check>,
}

/// A kernel as the device's own compiler made it.
#[derive(Debug)]
pub struct Compiled {
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: above 0, registers were spilled.
    pub spilled: u32,
    /// Bytes of static shared memory of a CTA.
    pub shared: u32,
}

/// One property of the device.
#[derive(Debug)]
pub struct Check {
    pub name: String,
    /// What was shown or measured, or what was wrong.
    pub found: Result<Found, String>,
}

/// What a check that passed has to say.
#[derive(Debug)]
pub enum Found {
    /// So many cases were right.
    Right(usize),
    /// Bytes per second.
    Rate(f64),
}

impl Report {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.found.is_ok())
    }
}
