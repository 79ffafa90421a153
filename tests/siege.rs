//! Two honest apps beside a third that tries everything it can name. They lose nothing: every event comes, in order, with
//! the tokens of an undisturbed run; what they exported and stored is there; and when the third has gone, so have its
//! pages.
//!
//! Owns: the honest apps, and what is left when all is over. Never: what the third tries (`siege/attackers.rs`), nor what becomes
//! of it, which `hostile.rs` and `isolation.rs` look at one by one.
//!
//! `TARTLET_SIEGE` says for how many seconds (60), and that the real model is to answer: `make hostile` takes five minutes.
//! `TARTLET_SIEGE_KIND` names one of [`KINDS`], and nothing else is tried: how much of the honest ones' speed it takes.
//! How fast the honest ones are is printed, not asserted. The attackers are a process of their own, of the lowest priority, as
//! what they compute for themselves takes no more time from the server's cores than the system gives such a process, which is
//! not the server's to say. What it took is printed beside what the server did.

#[path = "siege/attackers.rs"]
mod attackers;
#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which only the random numbers are used
mod gguf;
mod support;

use attackers::{Attackers, KINDS, REACHED, Told};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::client::{Client, Ended};
use support::{PATIENCE, Server, guest_bytes, mint};

/// The one test here: the attackers' process is started as it, too.
const TEST: &str = "honest_apps_lose_nothing_beside_one_that_tries_everything";
/// Seconds of the siege in the suite.
const SECONDS: u64 = 60;
/// It comes in so many turns, with peace before and after each: the machine is another one every few seconds.
const TURNS: usize = 5;
/// Peace takes one part in so many of a turn.
const PEACE: f64 = 3.0;
/// Connections that attack at a time, each of which may open a few more.
const ATTACKERS: u64 = 6;
const PREFIX: &str = "Once upon a time there was a pie that nobody could eat.";

/// What an honest app does in one round, and everything that it hears.
type Round = Vec<Ended>;

/// An app that does the same again and again.
struct Honest {
    name: &'static str,
    client: Client,
    programs: BTreeMap<&'static str, String>,
    /// For those who want to end other people's instances.
    told: Told,
}

impl Honest {
    async fn new(server: &Server, name: &'static str, told: Told) -> Honest {
        let token = mint(&server.key(), name, &[]);
        let mut client = Client::connect_to(&server.url, Some(&token)).await;
        let mut programs = BTreeMap::new();
        for program in ["chat", "echo", "ledger", "prefix"] {
            programs.insert(program, client.upload(&guest_bytes(program)).await.expect("a good program"));
        }
        Honest { name, client, programs, told }
    }

    async fn run(&mut self, program: &str, arguments: &[&str]) -> Ended {
        let instance = self.client.launch_hash(&self.programs[program], arguments).await;
        self.told.launched(self.name, &instance);
        if program == "echo" {
            // What is said while it runs comes back, each word once and in order.
            for word in 0..20 {
                self.client.signal(&instance, &word.to_string()).await;
            }
        }
        let ended = self.client.end(&instance).await;
        assert_eq!(ended.event, 1, "{}: {program} {arguments:?}: {ended:?}", self.name);
        ended
    }

    /// What it keeps from round to round.
    async fn settle(&mut self) {
        self.run("prefix", &["--export", self.name, PREFIX]).await;
        self.run("ledger", &["write", self.name, "0", "6"]).await;
    }

    async fn round(&mut self) -> Round {
        let chat = ["--max-tokens", "24", "--temperature", "0.8", "--user", "Tell me of the sea."];
        vec![
            self.run("chat", &chat).await,
            self.run("prefix", &["--import", self.name, " Then"]).await,
            self.run("echo", &["--messages", "20"]).await,
            self.run("ledger", &["read", self.name]).await,
        ]
    }

    /// Rounds until `stop`, each equal to the `first`; the seconds of each.
    fn go_on(mut self, first: Round, stop: Arc<AtomicBool>) -> JoinHandle<(Honest, Vec<f64>)> {
        std::thread::spawn(move || {
            let mut rounds = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                let round = smol::block_on(self.round());
                assert_eq!(round, first, "round {} of {}", rounds.len(), self.name);
                rounds.push(since.elapsed().as_secs_f64());
            }
            (self, rounds)
        })
    }
}

/// Instances and KV pages in use, and pages that are exported.
async fn used(client: &mut Client) -> [usize; 3] {
    let status = client.query("model_status", "").await.expect("a status");
    let status: BTreeMap<String, String> = serde_json::from_str(&status).expect("JSON");
    [".active_count", ".0.used", ".0.exported_count"].map(|count| {
        let (_, value) = status.iter().find(|(name, _)| name.ends_with(count)).expect("the count");
        value.parse().expect("a number")
    })
}

async fn wait(ms: u64) {
    smol::Timer::after(Duration::from_millis(ms)).await;
}

/// Seconds of a processor that a process has taken so far.
fn seconds_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is there");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number"));
    ticks.sum::<u64>() as f64 / 100.0
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().expect("there were rounds")
}

#[test]
fn honest_apps_lose_nothing_beside_one_that_tries_everything() {
    if attackers::attacked() {
        return;
    }
    let asked = std::env::var("TARTLET_SIEGE").ok();
    let seconds = asked.as_ref().map_or(SECONDS, |text| text.parse().expect("a number"));
    let model = if asked.is_some() { support::model() } else { support::small_model() };
    // Every instance draws from one seed, so that the same run gives the same tokens.
    let mut server = Server::guarded_with(model, "[engine]\nseed = 7\n");
    let told = Told::default();
    let mut honest: Vec<(Honest, Round)> = ["alice", "bob"]
        .into_iter()
        .map(|name| {
            smol::block_on(async {
                let mut honest = Honest::new(&server, name, told.clone()).await;
                honest.settle().await;
                let first = honest.round().await;
                (honest, first)
            })
        })
        .collect();
    let mut watcher =
        smol::block_on(Client::connect_to(&server.url, Some(&mint(&server.key(), "watcher", &[]))));
    let kept = smol::block_on(used(&mut watcher));

    let mut medians = [Vec::new(), Vec::new()]; // [honest][phase]
    let mut tally = attackers::Tally::new();
    for phase in 0..=2 * TURNS as u64 {
        let besieged = phase % 2 == 1;
        let stop = Arc::new(AtomicBool::new(false));
        let seeds = phase * ATTACKERS..(phase + 1) * ATTACKERS;
        let attackers = besieged.then(|| {
            println!("attackers with the seeds {seeds:?}");
            Attackers::start(&server, seeds, &told)
        });
        let firsts: Vec<Round> = honest.iter().map(|(_, first)| first.clone()).collect();
        let running: Vec<_> =
            honest.drain(..).map(|(honest, first)| honest.go_on(first, stop.clone())).collect();
        let processor = || {
            let attackers = attackers.as_ref().map(|attackers| seconds_of(attackers.id()));
            [attackers.unwrap_or_default(), seconds_of(server.id())]
        };
        let before = processor();
        let turn = seconds as f64 / TURNS as f64;
        let until = Instant::now() + Duration::from_secs_f64(if besieged { turn } else { turn / PEACE });
        while Instant::now() < until && !running.iter().any(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let [own, theirs] = processor();
        println!(
            "processor: {:.1} s of the attackers, {:.1} s of the server",
            own - before[0],
            theirs - before[1]
        );
        stop.store(true, Ordering::Relaxed);
        for ((running, first), medians) in running.into_iter().zip(firsts).zip(&mut medians) {
            let (one, rounds) = running.join().expect("an honest app heard something else than alone");
            println!(
                "besieged {besieged}: {} had {} rounds of {:.2} s",
                one.name,
                rounds.len(),
                median(&rounds)
            );
            medians.push(median(&rounds));
            honest.push((one, first));
        }
        for (what, times) in attackers.map(Attackers::stop).into_iter().flatten() {
            *tally.entry(what).or_default() += times;
        }
    }
    println!("{tally:?}");
    for what in KINDS.iter().chain(&REACHED).filter(|_| attackers::only_kind().is_none()) {
        assert!(tally.contains_key(*what), "{what}: not once");
    }
    for ((honest, _), medians) in honest.iter().zip(&medians) {
        let turns = medians.windows(3).step_by(2);
        let mut kept: Vec<f64> = turns.map(|turn| 50.0 * (turn[0] + turn[2]) / turn[1]).collect();
        kept.sort_by(f64::total_cmp);
        println!(
            "{} has {:.0} % of the speed in peace ({:.0} to {:.0})",
            honest.name,
            median(&kept),
            kept[0],
            kept[TURNS - 1]
        );
    }

    // Its instances and pages are gone, but for what it exported; theirs are there.
    server.assert_alive();
    smol::block_on(async {
        let since = Instant::now();
        loop {
            let [instances, pages, exported] = used(&mut watcher).await;
            if instances == 0 && pages == exported && exported >= kept[2] {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{instances} instances, {pages} pages, {exported} exported");
            wait(50).await;
        }
        for (honest, first) in &mut honest {
            assert_eq!(honest.round().await, *first, "{} afterwards", honest.name);
        }
    });
}
