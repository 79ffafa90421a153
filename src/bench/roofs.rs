//! What this machine does at most: its processor, or its GPU.
//!
//! Owns: these figures, and what one should know of them. Never: how they are taken (`backend::cpu::roof`, the self-test's
//! copy).

use super::BenchError;
use super::measure::{Effort, Measure, Unit};
use super::work::Roof;
use crate::backend::cpu::roof;
use crate::backend::crew::Crew;
use crate::backend::cuda;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How long the int8 roof is measured at least, per sample.
const ROOF_SAMPLE: Duration = Duration::from_millis(10);
/// Passes over the working set, per sample.
const ROOF_PASSES: u32 = 4;

/// Bandwidth, reading as many bytes as the weights have, and int8 operations, on one thread and on all of the crew.
pub fn of_processor(crew: &Crew, weights: usize) -> Result<(Vec<Measure>, Roof), BenchError> {
    let one = Crew::threads(1);
    let mut crews = vec![(&*one, "1 thread".to_owned())];
    if crew.size() > 1 {
        crews.push((crew, format!("{} threads", crew.size())));
    }
    let (mut read, mut int8) = (Vec::new(), Vec::new());
    for (crew, threads) in crews {
        let count = crew.size();
        let system = |error| BenchError::System { what: "have memory to read", error };
        let memory = roof::Memory::new(crew, weights).map_err(system)?;
        let samples = Effort::USUAL.sample(|| Ok::<_, BenchError>(memory.read(crew, ROOF_PASSES) / 1e9))?;
        let label = format!("reading memory, {threads}");
        read.push(Measure::of(format!("roof.read_{count}"), label, Unit::GB_PER_S, &samples));
        let samples = Effort::USUAL.sample(|| Ok::<_, BenchError>(roof::int8(crew, ROOF_SAMPLE) / 1e9))?;
        let label = format!("int8, {}, {threads}", roof::instructions());
        int8.push(Measure::of(format!("roof.int8_{count}"), label, Unit::GOP_PER_S, &samples));
    }
    let last = |measures: &[Measure]| measures.last().map_or(0.0, |measure| measure.median * 1e9);
    let roof = Roof { read: last(&read), int8: last(&int8) };
    Ok((read.into_iter().chain(int8).collect(), roof))
}

/// Bandwidth of a copy on the GPU, bytes that are read and bytes that are written: decoding reads as fast at most.
pub fn of_gpu(libcuda: Option<&Path>) -> Result<(Vec<Measure>, Roof), BenchError> {
    let device = |error: cuda::Error| BenchError::Device(error.to_string());
    let samples = Effort::USUAL.sample(|| {
        let rate = cuda::bandwidth(libcuda).map_err(device)?.map_err(BenchError::Device)?;
        Ok::<_, BenchError>(rate / 1e9)
    })?;
    let measure = Measure::of("roof.copy", "copying memory on the GPU", Unit::GB_PER_S, &samples);
    let roof = Roof { read: measure.median * 1e9, int8: f64::INFINITY };
    Ok((vec![measure], roof))
}

/// The roof of a model with so many bytes of weights, and a sentence where the last caches have to do with it.
pub fn cached(weights: usize, roof: Roof) -> (Roof, Option<String>) {
    beneath(last_caches("/sys/devices/system/cpu").unwrap_or(0), weights, roof)
}

fn beneath(caches: u64, weights: usize, roof: Roof) -> (Roof, Option<String>) {
    let (weights, read) = (weights as u64, roof::working_set(weights) as u64);
    let start = format!("The last caches of this machine hold {} MB, ", caches / 1_000_000);
    if caches >= read {
        let read = read / 1_000_000;
        let sentence = format!(
            "{start}the roof reads {read} MB: it may be the caches' roof, and a decode's share is one of what such a \
             model can be read from, not of memory."
        );
        return (roof, Some(sentence));
    }
    if caches >= weights {
        let weights = weights as f64 / 1e6;
        let sentence = format!(
            "{start}the weights take {weights:.1} MB: they are read from there, how fast nobody has measured, and what \
             decodes has no share of the roof."
        );
        return (Roof { read: f64::INFINITY, ..roof }, Some(sentence));
    }
    (roof, None)
}

/// A sentence on the figures above their roof.
pub fn above(measures: &[Measure]) -> Option<String> {
    let above = measures.iter().filter(|measure| measure.share.is_some_and(|share| share > 1.0));
    let names: Vec<&str> = above.map(|measure| &*measure.name).collect();
    (!names.is_empty()).then(|| {
        format!(
            "Over 100 % of the roof, for what they read lies nearer than what the roof reads: {}.",
            names.join(", ")
        )
    })
}

/// Bytes of all caches of level 3, where the system tells.
fn last_caches(folder: &str) -> Option<u64> {
    let mut caches = BTreeMap::new();
    for processor in std::fs::read_dir(folder).ok()?.flatten() {
        let cache = processor.path().join("cache/index3");
        let said = |what| Some(std::fs::read_to_string(cache.join(what)).ok()?.trim().to_owned());
        let (Some(size), Some(shared)) = (said("size"), said("shared_cpu_list")) else { continue };
        let kib: u64 = size.strip_suffix('K')?.parse().ok()?;
        caches.insert(shared, kib * 1024);
    }
    (!caches.is_empty()).then(|| caches.values().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The story: a toy that a cache holds decoded at several times the roof of memory.
    #[test]
    fn what_caches_hold_has_no_share_of_memorys_roof() {
        let roof = Roof { read: 1e9, int8: 1e9 };
        let megabytes = |caches: u64, weights: usize| beneath(caches * 1_000_000, weights * 1_000_000, roof);
        let (toys, said) = megabytes(32, 10);
        assert!(toys.read.is_infinite() && toys.int8 == roof.int8);
        assert!(said.is_some_and(|said| said.contains("hold 32 MB, the weights take 10.0 MB: ")));
        let (cached, said) = megabytes(480, 10);
        assert!(cached.read == roof.read && said.is_some_and(|said| said.contains("caches' roof")));
        for caches in [0, 32] {
            let (large, said) = megabytes(caches, 98);
            assert!(large.read == roof.read && said.is_none(), "{caches}");
        }

        let measure = |name: &str, rate| Measure::of(name, "", Unit::TOKENS_PER_S, &[rate]).under(2.0);
        let mut measures = vec![measure("decode.1", 1.0), measure("decode.2", 2.0)];
        assert_eq!(above(&measures), None);
        measures.push(measure("decode.3", 3.0));
        assert!(above(&measures).is_some_and(|said| said.ends_with(": decode.3.")));
    }
}
