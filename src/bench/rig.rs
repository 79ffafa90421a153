//! A whole server in this process, so that client, guest, engine and backend read the same clock: what programs cost.
//!
//! Owns: the tax per token, its stages, launch latency. Never: the backend's own speed, nor a figure of the process as
//! the operating system sees it (`child.rs`).

use super::measure::{Effort, Measure, Unit, quantile};
use super::{BenchError, Programs, within};
use crate::appliance::Appliance;
use crate::auth::{self, Claims, Role, SecretKey};
use crate::client::{Client, Event};
use crate::config::{Config, Keys};
use crate::identity::InstanceId;
use crate::observe::stages::{self, Interval, Mark, Stage};
use crate::program::store::write_durably;
use smol::channel::{Receiver, Sender};
use smol::net::TcpListener;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Counting on has no end, so that no program stops early.
pub(super) const PROMPT: &str = "1 2 3 4 5 6 7 8 9 10 11 12";
/// Tokens that one run of the program generates.
pub(super) const TOKENS: usize = 64;
/// Launches of each kind, beside the one that warms up.
const LAUNCHES: usize = 9;
/// Programs of one client that decode side by side, ...
const TOGETHER: usize = 16;
/// ... and what each then generates.
const TOKENS_TOGETHER: usize = 48;
/// Longer than any bench.
const A_DAY: Duration = Duration::from_secs(86_400);
/// Marks of one recording: some 40 a token, and as many again.
const MARKS: usize = TOGETHER * TOKENS * 80;
const _: () = assert!(MARKS <= crate::limits::STAGE_MARKS && TOKENS_TOGETHER <= TOKENS);
/// Marks by which the clock itself is timed: some milliseconds.
const MARKS_TIMED: usize = 1 << 16;

/// A server on a thread of this process, which wants tokens, with one connection to it.
pub struct Rig {
    pub client: Client,
    url: String,
    key: SecretKey,
    tell: Sender<()>,
    server: JoinHandle<Result<(), BenchError>>,
    /// Closes when the engine has given the model's memory back.
    ended: Receiver<String>,
}

impl Rig {
    pub fn start(mut config: Config) -> Result<Rig, BenchError> {
        let key = SecretKey::generate().map_err(|error| BenchError::Server(error.to_string()))?;
        config.auth = Some(Keys { public: vec![key.public()], revoked: HashSet::new() });
        let appliance = Appliance::build(config).map_err(|failure| BenchError::Server(failure.sentence))?;
        let system = |what| move |error| BenchError::System { what, error };
        let listener =
            smol::block_on(TcpListener::bind("127.0.0.1:0")).map_err(system("listen on a loopback port"))?;
        let address = listener.local_addr().map_err(system("listen on a loopback port"))?;
        let (tell, told) = smol::channel::bounded::<()>(1);
        let ended = appliance.ended();
        let server = std::thread::Builder::new()
            .name("bench-server".into())
            .spawn(move || {
                let told = async {
                    let _ = told.recv().await; // told by a word, or by the end of the one who would say it
                };
                let ended = smol::block_on(appliance.run(listener, told));
                ended.map_err(|failure| BenchError::Server(failure.sentence))
            })
            .map_err(system("start a thread"))?;
        let url = format!("ws://{address}");
        let client = smol::block_on(connect(&url, &key, &claims()))?;
        Ok(Rig { client, url, key, tell, server, ended })
    }

    /// One more connection, of somebody with these claims.
    pub(super) async fn another(&self, claims: &Claims) -> Result<Client, BenchError> {
        connect(&self.url, &self.key, claims).await
    }

    /// Ends the server and waits for it and its engine: what is measured next has the memory and the cores to itself.
    pub fn stop(self) -> Result<(), BenchError> {
        let Rig { client, tell, server, ended, .. } = self;
        drop((tell, client));
        server.join().map_err(|_| BenchError::Server("the server panicked".into()))??;
        smol::block_on(within(async {
            while ended.recv().await.is_ok() {} // the last word of an engine that failed meanwhile
            Ok(())
        }))
    }

    /// The interval between two tokens of one running program, and what of it is not the backend's step. And a sentence
    /// on what the clock itself takes of it.
    pub fn tax(&mut self, programs: &Programs) -> Result<(Vec<Measure>, String), BenchError> {
        let program = smol::block_on(self.upload(&programs.completion))?;
        let (mut runs, mut marks) = (Vec::new(), Vec::new());
        Effort::USUAL.sample(|| {
            let run = smol::block_on(self.generate(&program, 1, TOKENS))?;
            runs.push(run.intervals.into_iter().map(|(_, interval)| interval).collect::<Vec<_>>());
            marks.push(run.marks);
            Ok::<_, BenchError>(0.0) // one run gives many figures
        })?;
        runs.remove(0); // it warmed up
        let mut measures = vec![
            median_of(&runs, "tax.interval", "from token to token", Interval::total),
            median_of(&runs, "tax.step", "the backend's step in it", |interval| interval.batch),
            median_of(&runs, "tax.total", "the tax: all but the step", Interval::tax),
        ];
        type Part = fn(&Interval) -> Duration;
        let stages: [(&str, &str, Part); 5] = [
            ("tax.stage_wake", "  from the result to the guest's thread", |interval| interval.wake),
            ("tax.stage_guest", "  guest code", |interval| interval.guest),
            ("tax.stage_host", "  host calls", |interval| interval.host),
            ("tax.stage_validation", "  the engine's check, its pages", |interval| interval.validation),
            ("tax.stage_queue", "  in the engine's queues", |interval| interval.queue),
        ];
        measures.extend(stages.map(|(name, label, stage)| median_of(&runs, name, label, stage)));
        let slow: Vec<f64> = runs.iter().map(|run| quantile_of(run, Interval::tax, 0.9)).collect();
        measures.push(Measure::of("tax.slow", "the tax of the slowest tenth", Unit::US, &slow));

        let mut rates = Vec::new();
        Effort::USUAL.sample(|| {
            let run = smol::block_on(self.generate(&program, TOGETHER, TOKENS_TOGETHER))?;
            rates.push(rate_together(&run.intervals, TOGETHER));
            Ok::<_, BenchError>(0.0)
        })?;
        let label = format!("{TOGETHER} programs at once");
        // The first warmed up.
        let left_out = match rates.drain(1..).collect::<Option<Vec<f64>>>() {
            Some(rates) => {
                measures.push(Measure::of("tax.together", label, Unit::TOKENS_PER_S, &rates));
                String::new()
            }
            None => format!(" Not measured: {label}, as some were over before the last was launched."),
        };
        marks.sort_unstable_by(f64::total_cmp);
        Ok((measures, clock_note(stages::cost(MARKS_TIMED), quantile(&marks, 0.5)) + &left_out))
    }

    /// From the last thing a client sends to the first pass of the program it asked for.
    pub fn launch(&mut self, programs: &Programs, scratch: &Path) -> Result<Vec<Measure>, BenchError> {
        let (mut cold, mut known, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=LAUNCHES {
            let component = renamed(&programs.completion, run);
            let (first, second) = smol::block_on(async {
                // The whole program is one chunk, the last: small enough that nothing is sent before the clock starts.
                let first = self.launched(Some(&component), &hash(&component)).await?;
                let second = self.launched(None, &hash(&component)).await?;
                Ok::<_, BenchError>((first, second))
            })?;
            let written = kept_in(scratch, &component)?;
            if run > 0 {
                cold.push(milliseconds(first));
                known.push(milliseconds(second));
                kept.push(milliseconds(written));
            }
        }
        // Whether that is a disk, whoever reads the name knows.
        let adds = format!("  keeping it in {} adds", scratch.parent().unwrap_or(scratch).display());
        Ok(vec![
            Measure::of("launch.cold", "last upload chunk to first pass, new program", Unit::MS, &cold),
            Measure::of("launch.durable", adds, Unit::MS, &kept),
            Measure::of("launch.known", "launch to first pass, a known program", Unit::MS, &known),
        ])
    }

    pub(super) async fn upload(&mut self, component: &[u8]) -> Result<String, BenchError> {
        within(self.client.upload_program(component)).await
    }

    /// Runs so many instances side by side to their ends.
    pub(super) async fn generate(
        &mut self,
        program: &str,
        count: usize,
        tokens: usize,
    ) -> Result<Run, BenchError> {
        let arguments = ["--max-tokens", &tokens.to_string(), PROMPT].map(str::to_owned);
        stages::start(MARKS);
        let mut instances = Vec::new();
        for _ in 0..count {
            instances.push(within(self.client.launch(program, arguments.to_vec())).await?);
        }
        for instance in &instances {
            self.ended(instance).await?;
        }
        let marks = stages::take();
        let intervals = stages::intervals(&marks);
        if intervals.len() + 2 * count < count * tokens {
            let got = intervals.len();
            return Err(BenchError::Server(format!("programs made {got} tokens, not {}", count * tokens)));
        }
        let ends = intervals.first().zip(intervals.last()).map(|(first, last)| (first.1.ended, last.1.ended));
        let (from, to) = ends.unwrap_or_default();
        let within = marks.iter().filter(|mark| from < mark.at && mark.at <= to).count();
        Ok(Run { marks: within as f64 / intervals.len().saturating_sub(1).max(1) as f64, intervals })
    }

    /// The time until the first pass of an instance is with the engine; it makes one token.
    async fn launched(&mut self, upload: Option<&[u8]>, hash: &str) -> Result<Duration, BenchError> {
        let arguments = ["--max-tokens", "1", PROMPT].map(str::to_owned);
        stages::start(MARKS);
        if let Some(component) = upload {
            self.upload(component).await?;
        }
        let instance = within(self.client.launch(hash, arguments.to_vec())).await?;
        self.ended(&instance).await?;
        let marks = stages::take();
        // The pass is the last operation that is queued before the first batch.
        let started = marks.iter().position(|mark| mark.stage == Stage::Started).unwrap_or(marks.len());
        let submitted = marks[..started].iter().rev().find(|mark: &&Mark| mark.stage == Stage::Submitted);
        submitted.map(|mark| mark.at).ok_or_else(|| BenchError::Server("a program made no pass".into()))
    }

    async fn ended(&mut self, instance: &str) -> Result<(), BenchError> {
        loop {
            if let Event::Ended { code, text } = within(self.client.next_event(instance)).await? {
                return match code {
                    1 => Ok(()),
                    _ => Err(BenchError::Server(format!("a program failed: {text}"))),
                };
            }
        }
    }
}

async fn connect(url: &str, key: &SecretKey, claims: &Claims) -> Result<Client, BenchError> {
    let token = auth::mint(key, claims).map_err(|error| BenchError::Server(error.to_string()))?;
    let mut client = within(Client::connect(url)).await?;
    within(client.authenticate(&token)).await?;
    Ok(client)
}

/// What one recording of running instances gave.
pub(super) struct Run {
    pub(super) intervals: Vec<(InstanceId, Interval)>,
    /// For each token, on average.
    marks: f64,
}

/// One figure of a run's intervals, in microseconds.
fn quantile_of(run: &[Interval], what: impl Fn(&Interval) -> Duration, q: f64) -> f64 {
    let mut times: Vec<f64> = run.iter().map(|interval| what(interval).as_secs_f64() * 1e6).collect();
    times.sort_unstable_by(f64::total_cmp);
    quantile(&times, q)
}

fn median_of(
    runs: &[Vec<Interval>],
    name: &str,
    label: &str,
    what: impl Fn(&Interval) -> Duration + Copy,
) -> Measure {
    let medians: Vec<f64> = runs.iter().map(|run| quantile_of(run, what, 0.5)).collect();
    Measure::of(name, label, Unit::US, &medians)
}

/// Tokens per second of `count` instances while all of them decode: from when the last one joins to when the first one
/// leaves. None where there is no such time.
fn rate_together(intervals: &[(InstanceId, Interval)], count: usize) -> Option<f64> {
    let mut lives: HashMap<InstanceId, (Duration, Duration)> = HashMap::new();
    for (instance, interval) in intervals {
        let life = lives.entry(*instance).or_insert((interval.ended, interval.ended));
        *life = (life.0.min(interval.ended), life.1.max(interval.ended));
    }
    let from = lives.values().map(|life| life.0).max()?;
    let to = lives.values().map(|life| life.1).min()?;
    if lives.len() != count || to <= from {
        return None;
    }
    let within = intervals.iter().filter(|(_, interval)| from < interval.ended && interval.ended <= to);
    Some(within.count() as f64 / (to - from).as_secs_f64())
}

/// What recording takes of a token, for whoever reads its tax.
fn clock_note(nanoseconds: f64, marks: f64) -> String {
    format!(
        "A stage mark costs {nanoseconds:.0} ns and a token has {marks:.0}: {:.1} µs of the tax are the clock's own.",
        nanoseconds * marks / 1e3
    )
}

/// Whom the rig's own connection speaks for.
pub(super) fn claims() -> Claims {
    Claims::new("bench", Role::User, A_DAY)
}

/// The component with a custom section more: the same program under another hash, so a server does not know it.
fn renamed(component: &[u8], run: usize) -> Vec<u8> {
    let name = format!("bench {} {run}", std::process::id());
    let mut bytes = component.to_vec();
    // Section 0: its size, then a name with its length, both as LEB128, which below 128 are one byte.
    bytes.extend([0, name.len() as u8 + 1, name.len() as u8]);
    bytes.extend(name.as_bytes());
    bytes
}

fn hash(component: &[u8]) -> String {
    blake3::hash(component).to_hex().to_string()
}

/// What the store does with a program before it answers, here in this folder.
fn kept_in(folder: &Path, bytes: &[u8]) -> Result<Duration, BenchError> {
    let started = Instant::now();
    let what = "write into the folder for temporary files";
    write_durably(&folder.join("probe"), bytes).map_err(|error| BenchError::System { what, error })?;
    Ok(started.elapsed())
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The story: the rate was the count over the median interval, as if all had been there from the first to the last.
    #[test]
    fn a_rate_counts_only_the_time_in_which_all_ran() {
        let ms = Duration::from_millis;
        let ended = |ended| Interval { ended: ms(ended), ..Interval::default() };
        let [a, b] = [InstanceId::from_bits(1), InstanceId::from_bits(2)];
        // The first decodes alone until 40, and every 20 ms from then on; the second ends last.
        let first = [10, 20, 30, 40, 60, 80].map(|at| (a, ended(at)));
        let second = [40, 60, 80, 90, 100].map(|at| (b, ended(at)));
        let both = [&first[..], &second[..]].concat();
        // Four tokens from 40 to 80 ms.
        assert_eq!(rate_together(&both, 2), Some(4.0 / 0.040));
        assert_eq!(rate_together(&both, 3), None, "the third made none");
        let late = [100, 110].map(|at| (b, ended(at)));
        assert_eq!(rate_together(&[&first[..], &late[..]].concat(), 2), None, "never both");
    }

    #[test]
    fn a_renamed_component_is_another_with_the_same_modules() {
        let component = b"\0asm\x0d\0\x01\0".to_vec();
        let (one, two) = (renamed(&component, 1), renamed(&component, 2));
        assert_ne!(hash(&one), hash(&two));
        for bytes in [one, two] {
            let payloads: Result<Vec<_>, _> = wasmparser::Parser::new(0).parse_all(&bytes).collect();
            let payloads = payloads.expect("it is a component");
            assert!(payloads.iter().any(|payload| matches!(payload, wasmparser::Payload::CustomSection(_))));
        }
    }
}
