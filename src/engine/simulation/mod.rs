//! Random histories against the serial executor: what guests may do in any order, on a box that is too small.
//!
//! After each step: no page is lost or owned twice, queues are in order, each answer is right and comes once; whenever
//! nothing is queued, all contents equal the oracle's. A failure prints its seed; `history(seed)` replays it. The
//! bugs of [`plant`](super::plant) are each found by it.

pub(super) mod fake;
mod oracle;

use crate::backend::{Backend, Info, Mask, Outcome, Sampler, TokenId};
use crate::engine::credit::Credits;
use crate::engine::job::Move;
use crate::engine::operation::{
    Command, Kind, Leave, Notice, Operation, Pass, PassInput, PassOutput, PassResult, Priority, QueueId,
    Refusal, Reply, VirtualId,
};
use crate::engine::pages::Physical;
use crate::engine::plant::{self, Bug};
use crate::engine::schedule::Budget;
use crate::engine::state::State;
use crate::identity::{InstanceId, Subject};
use fake::{Fake, mix};
use oracle::Oracle;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::catch_unwind;

/// Histories of one test run.
const HISTORIES: u64 = 10_000;
/// A planted bug must show within so many.
const HISTORIES_PER_BUG: u64 = 1_000;
const STEPS: u32 = 120;

#[test]
fn random_histories_equal_the_serial_executor() {
    for seed in 0..HISTORIES {
        if let Err(panic) = catch_unwind(|| history(seed)) {
            eprintln!("history({seed}) failed");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<Bug> = plant::ALL.into_iter().filter(|bug| !is_found(*bug)).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn is_found(bug: Bug) -> bool {
    (0..HISTORIES_PER_BUG).any(|seed| {
        let found = catch_unwind(|| {
            plant::plant(Some(bug));
            history(seed);
        });
        plant::plant(None);
        found.is_err()
    })
}

fn history(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        world.check();
    }
    world.run_dry();
    world.compare_contents();
    world.everyone_leaves();
}

struct World {
    random: Random,
    state: State,
    fake: Fake,
    oracle: Oracle,
    actors: Vec<Actor>,
    joined: u64,
    passes: BTreeMap<QueueId, Vec<Reply<PassResult>>>,
    /// With the number of passes before it in its queue.
    synchronized: Vec<(QueueId, usize, Reply<bool>)>,
    allocated: Vec<Reply<Result<Vec<VirtualId>, Refusal>>>,
    noticed: BTreeSet<InstanceId>,
}

struct Actor {
    id: InstanceId,
    /// Its open queues: `first_queue..queues`.
    first_queue: u32,
    queues: u32,
    credits: Credits,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let info = Info {
            device: "fake".into(),
            page_size: 4,
            pages: random.below(14) + 6,
            embeds: random.below(5) + 2,
            batch_tokens: 16,
            vocab: 100,
            hidden: 1,
        };
        World {
            state: State::new(&info),
            fake: Fake::new(info.clone()),
            oracle: Oracle::new(info),
            random,
            actors: Vec::new(),
            joined: 0,
            passes: BTreeMap::new(),
            synchronized: Vec::new(),
            allocated: Vec::new(),
            noticed: BTreeSet::new(),
        }
    }

    // ---- steps ----

    fn step(&mut self) {
        if self.actors.is_empty() || (self.actors.len() < 6 && self.random.one_in(15)) {
            return self.join();
        }
        let actor = self.random.below(self.actors.len() as u32) as usize;
        let waits = self.state.waits(self.actors[actor].id);
        match self.random.below(100) {
            0..25 => drop(self.turn()),
            25..60 => self.submit(actor),
            // A guest that waits for an answer does nothing else, but what it sent before may still come.
            _ if waits => self.submit(actor),
            60..72 => self.allocate(actor),
            72..80 => self.deallocate(actor),
            80..86 => self.export(actor),
            86..92 => self.import(actor),
            92..94 => self.release(actor),
            94..96 => self.synchronize(actor),
            96..98 => self.set_priority(actor),
            98 if self.random.one_in(4) => self.misuse(actor),
            98 => self.close(actor),
            _ => self.leave(actor),
        }
    }

    fn join(&mut self) {
        self.joined += 1;
        let n = self.joined;
        let id: InstanceId = format!("00000000-0000-4000-8000-{n:012x}").parse().expect("a well-formed id");
        let queues = 1 + self.random.below(3);
        self.actors.push(Actor { id, first_queue: 0, queues, credits: Credits::new() });
        let subject = Subject::new(["a", "a", "b"][self.random.below(3) as usize]);
        self.send(Command::Join { instance: id, subject, seed: n });
    }

    fn leave(&mut self, actor: usize) {
        let how = if self.random.one_in(2) { Leave::Killed } else { Leave::Completed };
        let actor = self.actors.remove(actor);
        self.send(Command::Leave { instance: actor.id, how });
    }

    fn allocate(&mut self, actor: usize) {
        let kind = self.random.kind();
        let count = self.random.below(if kind == Kind::Page { 5 } else { 3 });
        let (instance, reply) = (self.actors[actor].id, Reply::default());
        self.allocated.push(Reply::clone(&reply));
        self.send(Command::Allocate { instance, kind, count, reply });
    }

    fn deallocate(&mut self, actor: usize) {
        let kind = self.random.kind();
        let ids = self.some_held(actor, kind, 3);
        let instance = self.actors[actor].id;
        self.send(Command::Deallocate { instance, kind, ids });
    }

    fn export(&mut self, actor: usize) {
        let kind = self.random.kind();
        let ids = self.some_held(actor, kind, 3);
        let (instance, name) = (self.actors[actor].id, self.random.name());
        self.send(Command::Export { instance, kind, ids, name, reply: Reply::default() });
    }

    fn import(&mut self, actor: usize) {
        let (instance, kind, name) = (self.actors[actor].id, self.random.kind(), self.random.name());
        self.send(Command::Import { instance, kind, name, reply: Reply::default() });
    }

    fn release(&mut self, actor: usize) {
        let (instance, kind, name) = (self.actors[actor].id, self.random.kind(), self.random.name());
        self.send(Command::Release { instance, kind, name, reply: Reply::default() });
    }

    fn queue(&mut self, actor: usize) -> QueueId {
        let Actor { id, first_queue, queues, .. } = self.actors[actor];
        QueueId { instance: id, ordinal: first_queue + self.random.below(queues - first_queue) }
    }

    fn set_priority(&mut self, actor: usize) {
        let queue = self.queue(actor);
        let levels = [Priority::Low, Priority::Normal, Priority::High];
        let priority = levels[self.random.below(3) as usize];
        self.send(Command::SetPriority { queue, priority });
    }

    fn synchronize(&mut self, actor: usize) {
        let (queue, reply) = (self.queue(actor), Reply::default());
        let before = self.passes.get(&queue).map_or(0, Vec::len);
        self.synchronized.push((queue, before, Reply::clone(&reply)));
        self.send_operation(actor, queue, Operation::Synchronize(reply));
    }

    /// Drops a queue; what it holds still runs. The actor goes on with a new one.
    fn close(&mut self, actor: usize) {
        let queue = self.queue(actor);
        let Actor { first_queue, queues, .. } = &mut self.actors[actor];
        if queue.ordinal == *first_queue {
            (*first_queue, *queues) = (*first_queue + 1, *queues + 1);
            self.send(Command::Close { queue });
        }
    }

    fn misuse(&mut self, actor: usize) {
        let (instance, ids) = (self.actors[actor].id, vec![VirtualId(u32::MAX)]);
        self.send(Command::Deallocate { instance, kind: Kind::Page, ids });
        assert!(self.noticed.contains(&instance), "named what it does not hold");
    }

    fn submit(&mut self, actor: usize) {
        let queue = self.queue(actor);
        let Some(pass) = self.pass(actor) else { return };
        let reply = Reply::default();
        self.passes.entry(queue).or_default().push(Reply::clone(&reply));
        self.send_operation(actor, queue, Operation::Pass(pass, reply));
    }

    fn send_operation(&mut self, actor: usize, queue: QueueId, operation: Operation) {
        let credit = self.actors[actor].credits.try_take(operation.words());
        let credit = credit.expect("a history is shorter than the allowance");
        self.send(Command::Submit { queue, operation, credit });
    }

    /// A well-formed pass on what the actor holds.
    fn pass(&mut self, actor: usize) -> Option<Pass> {
        let size = 4;
        let mut pages = self.some_held(actor, Kind::Page, 5);
        let count = pages.len() as u32;
        if count == 0 {
            return None;
        }
        let len = size * (count - 1) + 1 + self.random.below(size);
        let rows = if self.random.one_in(2) { 1 } else { 1 + self.random.below(len.min(14)) };
        let context = len - rows;
        if context >= 2 * size && self.random.one_in(4) {
            pages[0] = pages[1]; // Seen twice, which is odd and allowed.
        }
        let (mut len, mut context) = (len, context);
        if context >= size && self.random.one_in(6) {
            let room = self.state.pages.capacity() - count; // No more pages than there are, repeats counted.
            let again = self.random.below(room.min(9) + 1);
            pages.splice(0..0, vec![pages[0]; again as usize]);
            (len, context) = (len + again * size, context + again * size);
        }
        let held = self.held(actor, Kind::Embed);
        let member = self.oracle.members.get(&self.actors[actor].id)?;
        let written = held.iter().filter(|id| member.names[&(Kind::Embed, **id)].slots[0].is_some());
        let written: Vec<VirtualId> = written.copied().collect();
        let random = &mut self.random;
        let input = |random: &mut Random| match random.pick(&written) {
            Some(&id) if random.one_in(3) => PassInput::Embed(id),
            _ => PassInput::Token(TokenId(random.below(100))),
        };
        let inputs = (0..rows).map(|_| input(random)).collect();
        let positions = (0..rows).map(|_| random.below(1000)).collect();
        let mask = if random.one_in(2) {
            Mask::Causal
        } else {
            Mask::Runs((0..rows).map(|row| random.runs(context + row + 1)).collect())
        };
        let mut free: Vec<VirtualId> = held;
        let outputs = (0..random.below(4)).filter_map(|_| {
            let row = random.below(rows);
            match random.below(3) {
                0 => {
                    let sampler = Sampler::Multinomial { temperature: 1.0 };
                    Some(PassOutput::Token { row, sampler })
                }
                1 => Some(PassOutput::Distribution { row, temperature: 1.0, top_k: 1 }),
                _ => free.pop().map(|to| PassOutput::Embed { row, to }),
            }
        });
        let outputs = outputs.collect();
        Some(Pass { pages, len, inputs, positions, mask, outputs })
    }

    fn held(&self, actor: usize, kind: Kind) -> Vec<VirtualId> {
        let member = self.oracle.members.get(&self.actors[actor].id);
        let names = member.into_iter().flat_map(|m| m.names.keys());
        names.filter(|(k, _)| *k == kind).map(|(_, id)| *id).collect()
    }

    /// Up to `most` distinct names in any order.
    fn some_held(&mut self, actor: usize, kind: Kind, most: u32) -> Vec<VirtualId> {
        let mut held = self.held(actor, kind);
        let count = (1 + self.random.below(most)).min(held.len() as u32);
        (0..count).map(|_| held.swap_remove(self.random.below(held.len() as u32) as usize)).collect()
    }

    fn send(&mut self, command: Command) {
        self.state.apply(command);
        self.follow();
    }

    /// One turn of the engine; false if there was nothing to do.
    fn turn(&mut self) -> bool {
        let rows = 1 + self.random.below(16);
        let (row, work) = (u64::from(self.random.below(16)), u64::from(1 + self.random.below(400)));
        let beside = u64::from(self.random.below(200));
        let Some(plan) = self.state.plan(Budget { rows, row, work, beside }) else { return false };
        for step in &plan.moves {
            let moved = match *step {
                Move::Copy { from, to } => self.fake.copy_page(from, to),
                Move::Clear { page, from } => self.fake.clear_page(page, from),
            };
            moved.expect("the fake does not fail");
        }
        let mut outcome = Outcome::default();
        self.fake.run(&plan.batch, &mut outcome).expect("the fake does not fail");
        self.state.finish(plan, &mut outcome).expect("all is answered");
        self.follow();
        true
    }

    fn follow(&mut self) {
        for step in std::mem::take(&mut self.state.trace) {
            self.oracle.follow(step);
        }
        for notice in self.state.take_notices() {
            let (Notice::Evict(id)
            | Notice::OutOfPages { instance: id, .. }
            | Notice::Misuse { instance: id, .. }) = notice;
            assert!(self.noticed.insert(id), "{id} is ended twice");
            self.actors.retain(|actor| actor.id != id);
            self.state.apply(Command::Leave { instance: id, how: Leave::Killed });
        }
    }

    // ---- checks ----

    fn check(&self) {
        self.state.check();
        for (queue, replies) in &self.passes {
            let done = |reply: &Reply<PassResult>| matches!(reply.get(), Some(Ok(_)));
            let first_open = replies.iter().position(|r| !r.is_initialized());
            let later = &replies[first_open.unwrap_or(replies.len())..];
            // What is left of an ended guest's queue has nobody to be in order for, except its contents.
            let listens = self.oracle.members.contains_key(&queue.instance);
            assert!(!listens || !later.iter().any(done), "{queue:?} is out of order");
        }
        for (queue, before, reply) in &self.synchronized {
            if reply.get() == Some(&true) {
                let earlier = &self.passes.get(queue).map_or(&[][..], |p| &p[..*before]);
                assert!(earlier.iter().all(|r| r.is_initialized()), "synchronized too early");
            }
        }
        for (queue, reply, expected) in &self.oracle.expected {
            match reply.get() {
                Some(Ok(produced)) => assert_eq!(produced, expected, "a pass of {queue:?}"),
                Some(Err(_)) => {
                    assert!(!self.oracle.members.contains_key(&queue.instance), "lost alive");
                }
                None => {}
            }
        }
        if self.state.is_idle() {
            self.compare_contents();
        }
    }

    fn compare_contents(&self) {
        for (&instance, member) in &self.oracle.members {
            for (&(kind, id), content) in &member.names {
                let at = self.state.pool(kind).find(instance, id).expect("a name is lost");
                self.compare(kind, at, &content.slots);
            }
        }
        for ((subject, kind, name), export) in &self.oracle.exports {
            let pages = self.state.pool(*kind).exported_as(subject, name);
            assert_eq!(pages.len(), export.pages.len(), "the export {name}");
            for (at, content) in pages.iter().zip(&export.pages) {
                self.compare(*kind, *at, &content.slots);
            }
        }
    }

    fn compare(&self, kind: Kind, at: Physical, slots: &[Option<u64>]) {
        let real = match kind {
            Kind::Page => &self.fake.pages[at.0 as usize][..],
            Kind::Embed => std::slice::from_ref(&self.fake.embeds[at.0 as usize]),
        };
        for (slot, (real, wanted)) in real.iter().zip(slots).enumerate() {
            assert!(wanted.is_none_or(|w| w == *real), "slot {slot} of {kind} {at:?}");
        }
    }

    fn run_dry(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                assert!(self.state.is_idle(), "queued work cannot run");
                return self.check();
            }
            self.check();
        }
        panic!("queued work does not end");
    }

    fn everyone_leaves(&mut self) {
        while !self.actors.is_empty() {
            self.leave(0);
        }
        self.run_dry();
        for subject in ["a", "b"] {
            let instance = InstanceId::random();
            let subject = Subject::new(subject);
            self.send(Command::Join { instance, subject, seed: 0 });
            for kind in [Kind::Page, Kind::Embed] {
                for (name, _) in self.state.pool(kind).exports(instance) {
                    self.send(Command::Release { instance, kind, name, reply: Reply::default() });
                }
            }
            self.send(Command::Leave { instance, how: Leave::Completed });
        }
        self.state.check();
        assert_eq!((self.state.pages.used(), self.state.embeds.used()), (0, 0), "pages are lost");
        assert!(self.passes.values().flatten().all(|r| r.is_initialized()), "a pass unanswered");
        assert!(self.synchronized.iter().all(|(.., r)| r.is_initialized()));
        assert!(self.allocated.iter().all(|r| r.is_initialized()), "an allocation unanswered");
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0, 77) % u64::from(bound)) as u32
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.below(items.len() as u32) as usize])
    }

    fn kind(&mut self) -> Kind {
        if self.one_in(4) { Kind::Embed } else { Kind::Page }
    }

    fn name(&mut self) -> String {
        ["x", "y", "z"][self.below(3) as usize].into()
    }

    /// Run lengths that sum to `total`.
    fn runs(&mut self, total: u32) -> Vec<u32> {
        let (mut left, mut runs) = (total, Vec::new());
        while left > 0 {
            let run = self.below(left + 1);
            runs.push(run);
            left -= run;
        }
        let attends = runs.iter().step_by(2).any(|&run| run > 0);
        if attends { runs } else { vec![total] } // A row that attends nothing is malformed.
    }
}
