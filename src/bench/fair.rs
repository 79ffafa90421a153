//! What others can do to a program, and how soon one is gone that is to go: in the server of `rig.rs`.
//!
//! Owns: the hostile programs that run meanwhile. Never: what a token costs on its own (`rig.rs`).
//!
//! The bars, on two cores that do nothing else: each end within 50 ms, the slowest of all too, which a note tells;
//! `fair.lost` at most 15 %, `fair.gap` at most 2.

use super::measure::{Measure, Unit, quantile};
use super::rig::{PROMPT, Rig, TOKENS, milliseconds};
use super::{BenchError, Programs, within};
use crate::client::Event;
use crate::observe::stages::Interval;
use std::time::{Duration, Instant};

/// Instances that are ended in each state, beside the one that warms up; and of how many the slowest is a sample.
const KILLS: usize = 30;
const KILLS_OF: usize = 6;
const _: () = assert!(KILLS.is_multiple_of(KILLS_OF) && RUNS.is_multiple_of(RUNS_OF));
/// From launch to the state in which it is ended.
const UNDER_WAY: Duration = Duration::from_millis(60);
/// Words of a prompt that is computed while an instance is ended: half a second's work for two cores.
const LONG: usize = 1200;
/// Instances that loop: two for each of two cores.
const LOOPS: usize = 4;
/// Runs of the chat, alone and beside them in turn; and of how many the waits, some hundred, give one sample.
const RUNS: usize = 10;
const RUNS_OF: usize = 2;

impl Rig {
    /// From `terminate_instance` to the instance's last event, while two programs loop and a prompt is computed. A sentence
    /// says which of all took the longest.
    pub fn kill(&mut self, programs: &Programs) -> Result<(Vec<Measure>, String), BenchError> {
        smol::block_on(async {
            let rogue = self.upload(&programs.rogue).await?;
            let completion = self.upload(&programs.completion).await?;
            let endless = ["--max-tokens", "1000000", PROMPT];
            let loops = self.begin(&rogue, &["spin"], 2).await?;
            let (mut measures, mut ends, mut slowest) = (Vec::new(), 0, (0.0, ""));
            for (name, label, program, arguments) in [
                ("loop", "in a tight loop", &rogue, &["spin"][..]),
                ("call", "in a host call", &rogue, &["tokenize-forever"]),
                ("pass", "waiting for a pass", &completion, &endless),
                ("flood", "flooding its client", &rogue, &["send-forever"]),
            ] {
                let mut times = Vec::new();
                for run in 0..=KILLS {
                    let instance = self.begin(program, arguments, 1).await?.remove(0);
                    smol::Timer::after(UNDER_WAY).await;
                    // Another prompt each time, or it would be found.
                    let prompt = format!("{name} {run} {}", "one two ".repeat(LONG / 2));
                    let beside = self.begin(&completion, &["--max-tokens", "1", &prompt], 1).await?.remove(0);
                    smol::Timer::after(UNDER_WAY / 2).await;
                    let since = Instant::now();
                    self.end(&instance).await?;
                    if run > 0 {
                        times.push(milliseconds(since.elapsed()));
                    }
                    self.end(&beside).await?;
                }
                ends += times.len();
                let slow: Vec<f64> = times.chunks(KILLS_OF).map(longest).collect();
                slowest = if longest(&slow) > slowest.0 { (longest(&slow), label) } else { slowest };
                measures.push(Measure::of(
                    format!("kill.{name}"),
                    format!("ended {label}"),
                    Unit::MS,
                    &times,
                ));
                measures.push(Measure::of(
                    format!("kill.{name}_slowest"),
                    format!("  the slowest of {KILLS_OF}"),
                    Unit::MS,
                    &slow,
                ));
            }
            for instance in &loops {
                self.end(instance).await?;
            }
            let (took, state) = slowest;
            Ok((measures, format!("Of {ends} instances the slowest was ended in {took:.1} ms, {state}.")))
        })
    }

    /// A chat alone, and beside programs that loop: its rate, and what 99 of 100 of its waits for a token do not exceed.
    pub fn fair(&mut self, programs: &Programs) -> Result<Vec<Measure>, BenchError> {
        smol::block_on(async {
            let rogue = self.upload(&programs.rogue).await?;
            let completion = self.upload(&programs.completion).await?;
            let (mut alone, mut beside) = (Vec::new(), Vec::new());
            for run in 0..=RUNS {
                // In turn, so that what else the machine does falls on both.
                let first = self.generate(&completion, 1, TOKENS).await?.intervals;
                let loops = self.begin(&rogue, &["spin"], LOOPS).await?;
                let second = self.generate(&completion, 1, TOKENS).await?.intervals;
                for instance in &loops {
                    self.end(instance).await?;
                }
                if run > 0 {
                    alone.push(first.into_iter().map(|(_, interval)| interval).collect::<Vec<_>>());
                    beside.push(second.into_iter().map(|(_, interval)| interval).collect::<Vec<_>>());
                }
            }
            let rates = |runs: &[Vec<Interval>]| runs.iter().map(|run| rate(run)).collect::<Vec<_>>();
            let (before, after) = (rates(&alone), rates(&beside));
            let lost: Vec<f64> =
                before.iter().zip(&after).map(|(before, after)| 100.0 * (1.0 - after / before)).collect();
            let [short, long] =
                [&alone, &beside].map(|runs| runs.chunks(RUNS_OF).map(wait).collect::<Vec<_>>());
            let gaps: Vec<f64> = short.iter().zip(&long).map(|(short, long)| long / short).collect();
            Ok(vec![
                Measure::of("fair.alone", "a chat alone", Unit::TOKENS_PER_S, &before),
                Measure::of("fair.beside", format!("beside {LOOPS} loops"), Unit::TOKENS_PER_S, &after),
                Measure::of("fair.lost", "  what it loses by them", Unit::PERCENT, &lost),
                Measure::of("fair.wait_alone", "from token to token, alone, 99 of 100", Unit::MS, &short),
                Measure::of("fair.wait_beside", "  beside them", Unit::MS, &long),
                Measure::of("fair.gap", "  so many times as long", Unit::TIMES, &gaps),
            ])
        })
    }

    async fn begin(
        &mut self,
        program: &str,
        arguments: &[&str],
        count: usize,
    ) -> Result<Vec<String>, BenchError> {
        let mut instances = Vec::new();
        for _ in 0..count {
            let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
            instances.push(within(self.client.launch(program, arguments)).await?);
        }
        Ok(instances)
    }

    /// Ends it and waits until its last event is there.
    async fn end(&mut self, instance: &str) -> Result<(), BenchError> {
        within(self.client.terminate(instance)).await?;
        while !matches!(within(self.client.next_event(instance)).await?, Event::Ended { .. }) {}
        Ok(())
    }
}

/// Tokens per second.
fn rate(run: &[Interval]) -> f64 {
    run.len() as f64 / run.iter().map(Interval::total).sum::<Duration>().as_secs_f64()
}

fn longest(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}

/// Milliseconds from token to token that 99 of 100 waits do not exceed.
fn wait(runs: &[Vec<Interval>]) -> f64 {
    let mut waits: Vec<f64> = runs.iter().flatten().map(|interval| milliseconds(interval.total())).collect();
    waits.sort_unstable_by(f64::total_cmp);
    quantile(&waits, 0.99)
}
