//! A whole server in this process, so that client, guest, engine and backend read the same clock: what programs cost.
//!
//! Owns: the tax per token, its stages, launch latency. Never: the backend's own speed, nor a figure of the process as
//! the operating system sees it (`child.rs`).

use super::measure::{Effort, Measure, Unit, quantile};
use super::{BenchError, Programs, within};
use crate::appliance::Appliance;
use crate::client::{Client, Event};
use crate::config::Config;
use crate::observe::stages::{self, Interval, Mark, Stage};
use smol::channel::Sender;
use smol::net::TcpListener;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Counting on has no end, so that no program stops early.
const PROMPT: &str = "1 2 3 4 5 6 7 8 9 10 11 12";
/// Tokens that one run of the program generates.
const TOKENS: usize = 64;
/// Launches of each kind, beside the one that warms up.
const LAUNCHES: usize = 9;
/// Programs of one client that decode side by side, ...
const TOGETHER: usize = 16;
/// ... and what each then generates.
const TOKENS_TOGETHER: usize = 16;
/// Marks of one recording: some 40 a token, and as many again.
const MARKS: usize = TOGETHER * TOKENS * 80;
const _: () = assert!(MARKS <= crate::limits::STAGE_MARKS);

/// A server on a thread of this process, with one connection to it.
pub struct Rig {
    pub client: Client,
    tell: Option<Sender<()>>,
    server: Option<JoinHandle<Result<(), BenchError>>>,
}

impl Rig {
    pub fn start(config: Config) -> Result<Rig, BenchError> {
        let appliance = Appliance::build(config).map_err(|failure| BenchError::Server(failure.sentence))?;
        let system = |what| move |error| BenchError::System { what, error };
        let listener =
            smol::block_on(TcpListener::bind("127.0.0.1:0")).map_err(system("listen on a loopback port"))?;
        let address = listener.local_addr().map_err(system("listen on a loopback port"))?;
        let (tell, told) = smol::channel::bounded::<()>(1);
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
        let client = smol::block_on(within(Client::connect(&format!("ws://{address}"))))?;
        Ok(Rig { client, tell: Some(tell), server: Some(server) })
    }

    /// Ends the server and waits for it.
    pub fn stop(mut self) -> Result<(), BenchError> {
        self.tell.take();
        match self.server.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            _ => Err(BenchError::Server("the server panicked".into())),
        }
    }

    /// The interval between two tokens of one running program, and what of it is not the backend's step.
    pub fn tax(&mut self, programs: &Programs) -> Result<Vec<Measure>, BenchError> {
        let program = smol::block_on(self.upload(&programs.completion))?;
        let mut runs = Vec::new();
        Effort::USUAL.sample(|| {
            runs.push(smol::block_on(self.generate(&program, 1, TOKENS))?);
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

        let rates = Effort::USUAL.sample(|| {
            let intervals = smol::block_on(self.generate(&program, TOGETHER, TOKENS_TOGETHER))?;
            Ok::<_, BenchError>(TOGETHER as f64 * 1e6 / quantile_of(&intervals, Interval::total, 0.5))
        })?;
        let label = format!("{TOGETHER} programs at once");
        measures.push(Measure::of("tax.together", label, Unit::TOKENS_PER_S, &rates));
        Ok(measures)
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
            let written = durable_write(scratch, &component)?;
            if run > 0 {
                cold.push(milliseconds(first));
                known.push(milliseconds(second));
                kept.push(milliseconds(written));
            }
        }
        Ok(vec![
            Measure::of("launch.cold", "last upload chunk to first pass, new program", Unit::MS, &cold),
            Measure::of("launch.durable", "  what keeping it on the disk adds", Unit::MS, &kept),
            Measure::of("launch.known", "launch to first pass, a known program", Unit::MS, &known),
        ])
    }

    async fn upload(&mut self, component: &[u8]) -> Result<String, BenchError> {
        within(self.client.upload_program(component)).await
    }

    /// Runs so many instances side by side to their ends; the intervals of all.
    async fn generate(
        &mut self,
        program: &str,
        count: usize,
        tokens: usize,
    ) -> Result<Vec<Interval>, BenchError> {
        let arguments = ["--max-tokens", &tokens.to_string(), PROMPT].map(str::to_owned);
        stages::start(MARKS);
        let mut instances = Vec::new();
        for _ in 0..count {
            instances.push(within(self.client.launch(program, arguments.to_vec())).await?);
        }
        for instance in &instances {
            self.ended(instance).await?;
        }
        let intervals: Vec<Interval> =
            stages::intervals(&stages::take()).into_iter().map(|(_, i)| i).collect();
        if intervals.len() + 2 * count < count * tokens {
            let got = intervals.len();
            return Err(BenchError::Server(format!("programs made {got} tokens, not {}", count * tokens)));
        }
        Ok(intervals)
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

/// One figure of each run's intervals, in microseconds.
fn quantile_of(run: &[Interval], what: impl Fn(&Interval) -> Duration, q: f64) -> f64 {
    let mut times: Vec<f64> = run.iter().map(|interval| what(interval).as_secs_f64() * 1e6).collect();
    times.sort_by(f64::total_cmp);
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

/// What the store does with a program before it answers, here on the disk: write, sync, rename, sync the folder.
fn durable_write(folder: &Path, bytes: &[u8]) -> Result<Duration, BenchError> {
    let write = || -> std::io::Result<Duration> {
        let started = Instant::now();
        let (beside, place) = (folder.join("probe.unfinished"), folder.join("probe"));
        let mut file = std::fs::File::create(&beside)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &place)?;
        std::fs::File::open(folder)?.sync_all()?;
        Ok(started.elapsed())
    };
    write().map_err(|error| BenchError::System { what: "write into the folder for temporary files", error })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
