//! What others can do to a program, and how soon one is gone that is to go: in the server of `rig.rs`.
//!
//! Owns: the hostile programs that run meanwhile. Never: what a token costs on its own (`rig.rs`).
//!
//! The bars, on two cores that do nothing else: each end within 50 ms, the slowest of all too, which a note tells;
//! `fair.lost` at most 15 %, `fair.gap` at most 2.

use super::measure::{Measure, Unit, quantile};
use super::rig::{PROMPT, Rig, TOKENS, claims, milliseconds};
use super::{BenchError, Programs, within};
use crate::auth::{Claims, Role};
use crate::client::{Client, ClientError, Event};
use crate::observe::stages::Interval;
use crate::quota::Caps;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Instances that are ended in each state, beside the one that warms up; and of how many the slowest is a sample.
const KILLS: usize = 30;
const KILLS_OF: usize = 6;
const _: () = assert!(KILLS.is_multiple_of(KILLS_OF) && RUNS.is_multiple_of(RUNS_OF));
/// From launch to the state in which it is ended.
const UNDER_WAY: Duration = Duration::from_millis(60);
/// Words of a prompt that is computed while an instance is ended: half a second's work for two cores.
const LONG: usize = 1200;
const A_MINUTE: Duration = Duration::from_secs(60);
/// From one launch that was refused to the next.
const AGAIN: Duration = Duration::from_micros(200);
/// Instances that loop: two for each of two cores.
const LOOPS: usize = 4;
/// Runs of the chat, alone and beside them in turn; and of how many the waits, some hundred, give one sample.
const RUNS: usize = 10;
const RUNS_OF: usize = 2;

impl Rig {
    /// From `terminate_instance`, or whatever else ends it, to the instance's last event, while two programs loop and a prompt
    /// is computed. A sentence says which of all took the longest.
    pub fn kill(&mut self, programs: &Programs) -> Result<(Vec<Measure>, String), BenchError> {
        smol::block_on(async {
            let rogue = self.upload(&programs.rogue).await?;
            let completion = self.upload(&programs.completion).await?;
            let endless = ["--max-tokens", "1000000", PROMPT];
            // On a connection of their own: the victim's has nothing to wait for, and need not keep what comes meanwhile.
            let mut others = self.another(&claims()).await?;
            let loops = begin(&mut others, &rogue, &["spin"], 2).await?;
            let (mut measures, mut ends, mut slowest) = (Vec::new(), 0, (0.0, ""));
            for (name, label, program, arguments, way) in [
                ("loop", "in a tight loop", &rogue, &["spin"][..], Way::Asked),
                ("call", "in a host call", &rogue, &["tokenize-forever"], Way::Asked),
                ("pass", "waiting for a pass", &completion, &endless, Way::Asked),
                ("flood", "flooding its client", &rogue, &["send-forever"], Way::Asked),
                ("fill", "in an instruction of 100 MB", &rogue, &["fill"], Way::Asked),
                ("left", "looping, as its client left", &rogue, &["spin"], Way::Left),
                ("expired", "looping, as its token expired", &rogue, &["spin"], Way::Expired),
            ] {
                let mut times = Vec::new();
                for run in 0..=KILLS {
                    let mut victim = self.victim(way, program, arguments).await?;
                    self.wait(&victim, UNDER_WAY).await?;
                    if let Victim::Other(_, _, expires) = &victim {
                        let left =
                            Duration::try_from(*expires - OffsetDateTime::now_utc()).unwrap_or_default();
                        smol::Timer::after(left.saturating_sub(UNDER_WAY)).await;
                    }
                    // Another prompt each time, or it would be found.
                    let prompt = format!("{name} {run} {}", "one two ".repeat(LONG / 2));
                    let beside = launch(&mut others, &completion, &["--max-tokens", "1", &prompt]).await?;
                    self.wait(&victim, UNDER_WAY / 2).await?;
                    let took = match &mut victim {
                        Victim::Own(instance) => {
                            let since = Instant::now();
                            end(&mut self.client, instance).await?;
                            since.elapsed()
                        }
                        Victim::Other(other, instance, expires) => {
                            last_event(other, instance).await?;
                            let took = Duration::try_from(OffsetDateTime::now_utc() - *expires);
                            took.map_err(|_| BenchError::Server("it ended before its token expired".into()))?
                        }
                        Victim::Left(leaving, staying) => {
                            let since = Instant::now();
                            drop(leaving.take());
                            let next = place(staying, &rogue).await?;
                            let took = since.elapsed();
                            last_event(staying, &next).await?;
                            took
                        }
                    };
                    if run > 0 {
                        times.push(milliseconds(took));
                    }
                    end(&mut others, &beside).await?;
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
                end(&mut others, instance).await?;
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
                let loops = begin(&mut self.client, &rogue, &["spin"], LOOPS).await?;
                let second = self.generate(&completion, 1, TOKENS).await?.intervals;
                for instance in &loops {
                    end(&mut self.client, instance).await?;
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

    /// Waits so long, and reads meanwhile what the victim sends, as any client does.
    async fn wait(&mut self, victim: &Victim, time: Duration) -> Result<(), BenchError> {
        let since = Instant::now();
        let over = async {
            smol::Timer::after(time).await;
            Ok(())
        };
        let Victim::Own(instance) = victim else { return over.await };
        let read = async {
            while since.elapsed() < time {
                if let Event::Ended { text, .. } = self.client.next_event(instance).await? {
                    return Err(BenchError::Server(format!("a program that should go on ended: {text}")));
                }
            }
            Ok(())
        };
        smol::future::or(over, read).await
    }

    /// One that is to end in this way.
    async fn victim(&mut self, way: Way, program: &str, arguments: &[&str]) -> Result<Victim, BenchError> {
        if way == Way::Asked {
            return Ok(Victim::Own(launch(&mut self.client, program, arguments).await?));
        }
        let mut claims = Claims::new("another", Role::User, A_MINUTE);
        claims.quotas = Caps::read(["subject_instances=1"]).map_err(BenchError::Server)?;
        let expires = OffsetDateTime::now_utc() + 6 * UNDER_WAY;
        if way == Way::Expired {
            let text = expires.format(&Rfc3339);
            claims.exp = text.map_err(|error| BenchError::Server(error.to_string()))?;
        }
        let mut other = self.another(&claims).await?;
        let instance = launch(&mut other, program, arguments).await?;
        Ok(match way {
            Way::Left => Victim::Left(Some(other), self.another(&claims).await?),
            _ => Victim::Other(other, instance, expires),
        })
    }
}

/// What ends an instance.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Asked,
    Left,
    Expired,
}

/// An instance that is to end.
enum Victim {
    Own(String),
    /// Its client, and when that one's token expires.
    Other(Client, String, OffsetDateTime),
    /// Its client, and another of the same subject, which may have no instance beside that one.
    Left(Option<Client>, Client),
}

async fn launch(client: &mut Client, program: &str, arguments: &[&str]) -> Result<String, BenchError> {
    let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
    within(client.launch(program, arguments)).await
}

async fn begin(
    client: &mut Client,
    program: &str,
    arguments: &[&str],
    count: usize,
) -> Result<Vec<String>, BenchError> {
    let mut instances = Vec::new();
    for _ in 0..count {
        instances.push(launch(client, program, arguments).await?);
    }
    Ok(instances)
}

/// Ends it and waits until its last event is there.
async fn end(client: &mut Client, instance: &str) -> Result<(), BenchError> {
    within(client.terminate(instance)).await?;
    last_event(client, instance).await
}

async fn last_event(client: &mut Client, instance: &str) -> Result<(), BenchError> {
    while !matches!(within(client.next_event(instance)).await?, Event::Ended { .. }) {}
    Ok(())
}

/// Launches again and again until there is room for one more: that one.
async fn place(client: &mut Client, program: &str) -> Result<String, BenchError> {
    let since = Instant::now();
    loop {
        match within(client.launch(program, vec!["return".to_owned()])).await {
            Ok(instance) => return Ok(instance),
            Err(BenchError::Client(ClientError::Refused { .. })) if since.elapsed() < A_MINUTE => {
                smol::Timer::after(AGAIN).await;
            }
            Err(error) => return Err(error),
        }
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
