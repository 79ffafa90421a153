//! One measured figure: how it is sampled, what is kept of the samples, and what the machine was.
//!
//! Owns: [`Measure`], [`Report`] and their JSON, which `--against` reads back. Never: what is measured.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Everything that one run of `tartlet bench` has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    /// RFC 3339, UTC.
    pub date: String,
    pub machine: Machine,
    pub model: Measured,
    /// The part that others took meanwhile of the time of the processors that the bench may use, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub others: Option<f64>,
    pub measures: Vec<Measure>,
    /// What was left out, and what one should know of a figure: sentences.
    pub notes: Vec<String>,
}

/// Figures of different machines are not compared without saying so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_mb: u64,
    /// What the int8 roof was measured with.
    pub instructions: String,
}

/// What ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    pub description: String,
    /// Bytes of all tensors in the file.
    pub weight_bytes: u64,
    /// Bytes that the backend packs them into, where one was loaded in this process.
    pub packed_bytes: Option<u64>,
    /// The backend in its own words, where one was loaded in this process.
    pub device: Option<String>,
    pub threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    More,
    Less,
}

/// The median of some samples and how far they spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The section and what of it: `decode.1024`.
    pub name: String,
    /// For people: "at context 1,024".
    pub label: String,
    pub unit: String,
    pub better: Better,
    pub median: f64,
    /// The quartiles: half of the samples lie between them.
    pub low: f64,
    pub high: f64,
    pub samples: usize,
    /// Of the machine's roof, where there is one: 1 would be the roof.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share: Option<f64>,
}

impl Measure {
    /// # Panics
    /// Without samples: every section takes some or fails.
    pub fn of(name: impl Into<String>, label: impl Into<String>, unit: Unit, samples: &[f64]) -> Measure {
        assert!(!samples.is_empty(), "a measure has samples");
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Measure {
            name: name.into(),
            label: label.into(),
            unit: unit.name.to_owned(),
            better: unit.better,
            median: quantile(&sorted, 0.5),
            low: quantile(&sorted, 0.25),
            high: quantile(&sorted, 0.75),
            samples: sorted.len(),
            share: None,
        }
    }

    /// With the share that the median is of `roof`, in the same unit.
    pub fn under(self, roof: f64) -> Measure {
        let share = (roof > 0.0).then(|| self.median / roof);
        Measure { share, ..self }
    }

    /// What stands before the name's point.
    pub fn section(&self) -> &str {
        self.name.split('.').next().unwrap_or(&self.name)
    }
}

/// A unit and which way it is better.
#[derive(Clone, Copy)]
pub struct Unit {
    name: &'static str,
    better: Better,
}

impl Unit {
    pub const GB_PER_S: Unit = Unit { name: "GB/s", better: Better::More };
    pub const GOP_PER_S: Unit = Unit { name: "GOP/s", better: Better::More };
    pub const TOKENS_PER_S: Unit = Unit { name: "tokens/s", better: Better::More };
    pub const PER_S: Unit = Unit { name: "/s", better: Better::More };
    pub const MB_PER_S: Unit = Unit { name: "MB/s", better: Better::More };
    pub const US: Unit = Unit { name: "µs", better: Better::Less };
    pub const MS: Unit = Unit { name: "ms", better: Better::Less };
    pub const MB: Unit = Unit { name: "MB", better: Better::Less };
    pub const TIMES: Unit = Unit { name: "times", better: Better::Less };
    pub const PERCENT: Unit = Unit { name: "%", better: Better::Less };
}

/// Linear between the two nearest samples; `sorted` is not empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// How long one figure is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub least: usize,
    pub most: usize,
    /// Beyond `least`, no sample is begun after this.
    pub within: Duration,
}

impl Effort {
    pub const USUAL: Effort = Effort { least: 5, most: 25, within: Duration::from_secs(2) };

    /// One sample to warm up, then those that count.
    pub fn sample<E>(self, mut one: impl FnMut() -> Result<f64, E>) -> Result<Vec<f64>, E> {
        one()?;
        let started = Instant::now();
        let mut samples = Vec::with_capacity(self.most);
        while samples.len() < self.least || (samples.len() < self.most && started.elapsed() < self.within) {
            samples.push(one()?);
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_is_the_median_between_the_quartiles() {
        let measure =
            Measure::of("decode.64", "at context 64", Unit::TOKENS_PER_S, &[5.0, 1.0, 2.0, 4.0, 3.0]);
        assert_eq!((measure.low, measure.median, measure.high, measure.samples), (2.0, 3.0, 4.0, 5));
        assert_eq!(measure.clone().under(6.0).share, Some(0.5));
        assert_eq!(measure.section(), "decode");
        assert_eq!(Measure::of("a", "", Unit::MS, &[1.0, 2.0]).median, 1.5);
    }

    #[test]
    fn the_first_sample_warms_up_and_the_rest_is_bounded() {
        let mut count = 0.0;
        let effort = Effort { least: 5, most: 7, within: Duration::ZERO };
        let mut next = || {
            count += 1.0;
            Ok::<f64, ()>(count)
        };
        assert_eq!(effort.sample(&mut next), Ok(vec![2.0, 3.0, 4.0, 5.0, 6.0]));
        let effort = Effort { within: Duration::from_secs(3600), ..effort };
        assert_eq!(effort.sample(&mut next).map(|samples| samples.len()), Ok(7));
        assert_eq!(effort.sample(|| Err("broken")), Err("broken"));
    }
}
