//! Malformed passes by the thousand, as a hostile guest submits them: through its memory and the host's functions, on
//! the CPU backend with a toy model, beside two guests that do nothing wrong.
//!
//! Owns: the run: who acts when, and what must be true after each step. Never: what can be wrong (`fault.rs`,
//! `errand.rs`).
//!
//! After each step: the engine lives; a malformed pass has ended its own guest at most, with a sentence that names the
//! argument, and a pass that is none has answered; no page that a bystander holds or has exported holds anything else
//! than before. The bystanders' own passes give the numbers that they give alone. At the end nothing is left over.
//!
//! One thread plays all guests, so a seed is replayed by `run(seed, PASSES)`; a failure prints both and the step.

mod attempt;
mod bystander;
mod errand;
mod fault;
mod guest;
mod watched;

use super::Trap;
use super::bed::House;
use crate::engine::operation::{Command, Leave, Notice, Reply, Status};
use crate::identity::Subject;
use crate::model::toy::{Random, Toy};
use attempt::{Answer, Attempt, Order, take};
use bystander::Bystander;
use errand::{ERRANDS, KEPT};
use fault::{ANY, FAULTS, Fate, Fault};
use guest::{End, Guest, Others, PATIENCE};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};
use watched::Watched;

/// Passes of one seed; together a few more than 20,000.
const PASSES: usize = 5_010;
const SEEDS: [u64; 4] = [1, 2, 3, 4];
/// Wasm pages of a guest's memory: every guest's is zeroed, and there are thousands.
const MEMORY: u32 = 64;
/// How many steps a bystander pauses between two passes, on average.
const PAUSE: usize = 6;

#[test]
fn malformed_passes_end_their_own_guest_and_change_nobody_elses_pages() {
    let since = Instant::now();
    let mut all = Counts::default();
    for seed in SEEDS {
        all.add(&run(seed, PASSES));
    }
    println!("{all:?} in {:.1?}", since.elapsed());
    assert!(all.passes >= 20_000);
    // The mix is honest: each kind of fault came often, alone and with others, and so did passes that are right.
    let often = |fault: &&Fault| all.alone.get(fault.name).is_some_and(|times| *times >= 5);
    let rare: Vec<&str> = FAULTS.iter().filter(|fault| !often(fault)).map(|fault| fault.name).collect();
    assert!(rare.is_empty(), "seldom tried alone: {rare:?}");
    assert!(all.answered > 3_000 && all.refused > 7_000 && all.shared_batches > 100, "{all:?}");
    assert!(all.out_of_pages < all.passes / 20, "{all:?}");
}

#[derive(Debug, Default)]
struct Counts {
    passes: usize,
    /// Executed without a complaint, and those of them that were waited for and asked for something.
    executed: usize,
    answered: usize,
    /// Ended their guest, by a call or by the engine's word.
    refused: usize,
    out_of_pages: usize,
    guests: usize,
    shared_batches: usize,
    bystander_passes: usize,
    /// How often a fault came alone, by name.
    alone: BTreeMap<&'static str, usize>,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.passes += other.passes;
        self.executed += other.executed;
        self.answered += other.answered;
        self.refused += other.refused;
        self.out_of_pages += other.out_of_pages;
        self.guests += other.guests;
        self.shared_batches += other.shared_batches;
        self.bystander_passes += other.bystander_passes;
        for (name, count) in &other.alone {
            *self.alone.entry(name).or_default() += count;
        }
    }
}

/// Says where a failure was.
struct Place {
    seed: u64,
    passes: usize,
    step: usize,
    what: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("run({}, {}) failed at step {}: {}", self.seed, self.passes, self.step, self.what);
        }
    }
}

/// Ends the process when there is no step for too long: a call that never answers cannot be left otherwise.
fn watch(steps: mpsc::Receiver<usize>, seed: u64) {
    let mut last = 0;
    loop {
        match steps.recv_timeout(PATIENCE) {
            Ok(step) => last = step,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!("run({seed}, {PASSES}) hangs at step {last}");
                std::process::abort();
            }
        }
    }
}

fn run(seed: u64, passes: usize) -> Counts {
    let (stepping, steps) = mpsc::channel();
    std::thread::spawn(move || watch(steps, seed));
    let mut place = Place { seed, passes, step: 0, what: "alone".to_owned() };
    let mut world = World::new(seed);
    while world.counts.passes < passes {
        place.step += 1;
        if place.step % 64 == 1 {
            stepping.send(place.step).expect("it watches");
        }
        world.step(&mut place.what);
    }
    place.what = "the end".to_owned();
    stepping.send(place.step).expect("it watches");
    world.finish()
}

struct World {
    random: Random,
    house: House,
    watched: Watched,
    /// Why the engine ended, should it.
    fault: Arc<Mutex<Option<String>>>,
    others: Others,
    hostile: Subject,
    bystanders: [Bystander; 2],
    /// How much each bystander has heard.
    heard: [usize; 2],
    guest: Option<Guest>,
    /// Results that the guest has not read.
    unread: Vec<(Attempt, u32)>,
    /// The engine may be late to say what is wrong with the guest's earlier passes: words of its sentence.
    suspected: Vec<&'static str>,
    counts: Counts,
}

fn house() -> (House, Watched, Arc<Mutex<Option<String>>>) {
    let model = Toy::default().model();
    let (watched, fault) = (Watched::new(&model), Arc::new(Mutex::new(None)));
    let note = fault.clone();
    let on_fault = move |why| *note.lock().expect("unpoisoned") = Some(why);
    (House::over(model, Box::new(watched.clone()), MEMORY, on_fault), watched, fault)
}

/// One of the subject that the hostile guests have, one of another.
fn bystanders(house: &House, watched: &Watched, others: &Others) -> [Bystander; 2] {
    [("beside", "hostile", 1), ("apart", "other", 2)].map(|(name, subject, seed)| {
        Bystander::new(house, watched, name, &Subject::new(subject), seed, others)
    })
}

/// What each bystander hears when it is alone.
static ALONE: LazyLock<[Vec<Answer>; 2]> = LazyLock::new(|| {
    let (house, watched, _) = house();
    bystanders(&house, &watched, &Others::default()).each_mut().map(|bystander| {
        let round = |_| {
            bystander.submit();
            bystander.collect().expect("it was submitted")
        };
        (0..2 * PASSES / PAUSE).map(round).collect()
    })
});

impl World {
    fn new(seed: u64) -> World {
        let (house, watched, fault) = house();
        let others = Others::default();
        World {
            random: Random::new(seed),
            bystanders: bystanders(&house, &watched, &others),
            house,
            watched,
            fault,
            others,
            hostile: Subject::new("hostile"),
            heard: [0; 2],
            guest: None,
            unread: Vec::new(),
            suspected: Vec::new(),
            counts: Counts::default(),
        }
    }

    fn step(&mut self, what: &mut String) {
        for bystander in &mut self.bystanders {
            if self.random.below(PAUSE) == 0 {
                bystander.submit();
            }
        }
        *what = "a new guest".to_owned();
        let mut guest = self.guest.take().unwrap_or_else(|| self.new_guest());
        let goes_on = self.provide(&mut guest).and_then(|()| match self.random.below(5) {
            0 => self.errand(&mut guest, what),
            _ => self.attempt(&mut guest, what),
        });
        guest.wild.clear();
        match goes_on {
            Ok(()) if self.random.below(12) > 0 => self.guest = Some(guest),
            Ok(()) => guest.leave([Leave::Completed, Leave::Killed][self.random.below(2)]),
            Err(end) => {
                self.count_end(&end);
                drop(guest);
            }
        }
        if self.guest.is_none() {
            self.unread.clear();
            self.suspected.clear();
        }
        self.look_at_bystanders();
    }

    fn new_guest(&mut self) -> Guest {
        self.counts.guests += 1;
        Guest::new(&self.house, &self.hostile, 1000 + self.counts.guests as u64, &self.others)
    }

    /// Sees that the guest has something to make a pass of.
    fn provide(&mut self, guest: &mut Guest) -> Result<(), End> {
        guest.bed.forget_answers();
        if guest.pages.is_empty() {
            guest.allocate(0, 1 + self.random.below(5) as u32)?;
        }
        if guest.embeds.is_empty() {
            guest.allocate(1, 2)?;
        }
        Ok(())
    }

    fn errand(&mut self, guest: &mut Guest, what: &mut String) -> Result<(), End> {
        let errand = &ERRANDS[self.random.below(ERRANDS.len())];
        *what = errand.name.to_owned();
        let done = (errand.run)(guest, &mut self.random);
        if done.is_ok() && errand.name == "releases what a bystander exported" {
            self.bystanders[0].forget_export();
        }
        self.judge(errand.fate, errand.words, &done);
        done
    }

    fn attempt(&mut self, guest: &mut Guest, what: &mut String) -> Result<(), End> {
        let mut attempt = Attempt::valid(guest, &mut self.random);
        let wanted = [0, 0, 0, 0, 1, 1, 1, 1, 2, 3][self.random.below(10)];
        let mut made: Vec<&Fault> = Vec::new();
        for _ in 0..wanted {
            let fault = &FAULTS[self.random.below(FAULTS.len())];
            let (mut tried, wild) = (attempt.clone(), guest.wild.len());
            if attempt.rows() > 0
                && !attempt.pages.is_empty()
                && fault.make(&mut tried, guest, &mut self.random)
            {
                attempt = tried;
                made.push(fault);
            } else {
                guest.wild.truncate(wild);
            }
        }
        *what = format!("{:?} {attempt:?} {:?}", made.iter().map(|f| f.name).collect::<Vec<_>>(), guest.wild);
        self.counts.passes += 1;
        let (fate, words) = match made[..] {
            [] => (Fate::Runs, &[][..]),
            [fault] => {
                *self.counts.alone.entry(fault.name).or_default() += 1;
                (fault.fate, fault.words)
            }
            _ => (Fate::Either, &ANY[..]),
        };
        let done = self.pass(guest, attempt, fate);
        if fate == Fate::Either {
            self.suspected.extend(words);
        }
        self.judge(fate, words, &done);
        match &done {
            Ok(()) => self.counts.executed += 1,
            Err(_) => self.counts.refused += 1,
        }
        done
    }

    /// Submits it, and reads what comes of it now or later.
    fn pass(&mut self, guest: &mut Guest, attempt: Attempt, fate: Fate) -> Result<(), End> {
        let result = attempt.submit(guest)?;
        if fate == Fate::Ends {
            // The host has let it pass: then the engine says so.
            return Err(End::Notice(guest.given_up()));
        }
        guest.wild.clear();
        if let Some(result) = result {
            self.unread.push((attempt, result));
        } else if attempt.order == Order::Usual {
            assert!(attempt.asks.iter().all(|ask| ask.how == attempt::How::Embed || ask.rows.is_empty()));
        }
        while self.unread.len() > self.random.below(4) {
            let (attempt, result) = self.unread.swap_remove(self.random.below(self.unread.len()));
            attempt.check(&take(guest, result)?);
            self.counts.answered += 1;
        }
        Ok(())
    }

    /// That a guest ended where it must, and only there, and by which sentence.
    fn judge(&self, fate: Fate, words: &[&str], done: &Result<(), End>) {
        let end = match done {
            Ok(()) => return assert_ne!(fate, Fate::Ends, "it lives"),
            Err(end) if is_out_of_pages(end) => return,
            Err(end) => end,
        };
        let (sentence, suspected) = match end {
            End::Trap(Trap::Panicked) => panic!("a host function panicked"),
            End::Trap(trap) => (trap.to_string(), &[][..]),
            End::Notice(Notice::Misuse { what, .. }) => (what.clone(), &self.suspected[..]),
            End::Notice(notice) => panic!("{notice:?}"),
        };
        assert!(fate != Fate::Runs || !suspected.is_empty(), "ended without reason: {sentence}");
        assert!(!sentence.contains('\n') && sentence.len() < 500, "{sentence}");
        let named = words.iter().chain(suspected).any(|word| sentence.contains(word));
        assert!(named, "it names none of {words:?}: {sentence}");
    }

    fn count_end(&mut self, end: &End) {
        self.counts.out_of_pages += usize::from(is_out_of_pages(end));
    }

    fn look_at_bystanders(&mut self) {
        for (i, bystander) in self.bystanders.iter_mut().enumerate() {
            if let Some(answer) = bystander.collect() {
                assert_eq!(answer, ALONE[i][self.heard[i]], "bystander {i}, pass {}", self.heard[i]);
                self.heard[i] += 1;
            }
        }
        self.bystanders.iter().for_each(Bystander::check);
        let mut others = self.others.lock().expect("unpoisoned");
        // Those of the guest that plays are kept: it hears of them at its next call.
        let playing = self.guest.as_ref().map(|guest| guest.instance);
        others.extend(std::iter::from_fn(|| self.house.notices.try_recv().ok()));
        others.retain(|notice| {
            let of = notice.instance();
            assert!(!self.bystanders.iter().any(|bystander| bystander.is(of)), "{notice:?}");
            Some(of) == playing
        });
        let gone = !others.is_empty();
        drop(others);
        if gone {
            let end = End::Notice(self.guest.take().expect("it plays").given_up());
            self.count_end(&end);
            self.judge(Fate::Runs, &[], &Err(end));
            self.unread.clear();
            self.suspected.clear();
        }
        let fault = self.fault.lock().expect("unpoisoned").clone();
        assert_eq!(fault, None, "the engine has ended");
    }

    /// Everybody hostile leaves, and gives back the names that outlive it.
    fn finish(mut self) -> Counts {
        drop(self.guest.take());
        for kind in [0, 1] {
            let mut last = self.new_guest();
            for name in last.exports(kind).expect("it may look") {
                if name != KEPT || kind == 1 {
                    last.release(kind, &name).expect("it is there");
                }
            }
        }
        let pages: BTreeSet<_> = self.bystanders.iter().flat_map(Bystander::pages).collect();
        let embeds: usize = self.bystanders.iter().map(Bystander::embeds).sum();
        self.wait_for(pages.len(), embeds, 2);
        self.counts.bystander_passes = self.heard.iter().sum();
        self.counts.shared_batches = self.watched.shared_batches();
        drop(self.bystanders);
        self.counts
    }

    /// What was sent before may still be on its way, and passes of the dead may still run.
    fn wait_for(&self, pages: usize, embeds: usize, instances: u32) {
        let since = Instant::now();
        loop {
            let reply: Reply<Status> = Reply::default();
            let ask = Command::Status { reply: reply.clone() };
            let status = smol::block_on(async {
                self.house.engine.send(ask).await.expect("the engine lives");
                reply.wait().await.clone()
            });
            let found = (status.pages.used as usize, status.embeds.used as usize, status.instances);
            if found == (pages, embeds, instances) {
                return;
            }
            assert!(
                since.elapsed() < Duration::from_secs(30),
                "{found:?}, not {:?}",
                (pages, embeds, instances)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The one end that a guest need not have earned.
fn is_out_of_pages(end: &End) -> bool {
    match end {
        End::Notice(Notice::Evict(_) | Notice::OutOfPages { .. }) => true,
        End::Notice(Notice::Misuse { .. } | Notice::Quota { .. }) => false,
        End::Trap(trap) => trap.to_string().starts_with("OOM unrecoverable: "),
    }
}
