//! Random histories against the serial executor: what guests may do in any order, on a box that is too small.
//!
//! After each step: no page is lost or owned twice, queues are in order, each answer is right and comes once; whenever
//! nothing is queued, all contents equal the oracle's. A failure prints its seed; `history(seed)` replays it. The
//! bugs of [`plant`] that are the engine's are each found by it.

pub mod fake;
mod oracle;
pub mod random;
pub mod rig;

use crate::backend::Info;
use crate::engine::credit::Credits;
use crate::engine::operation::{
    Command, Kind, Leave, Notice, Operation, Priority, QueueId, Reply, VirtualId,
};
use crate::identity::{InstanceId, Subject};
use crate::simulation::plant::{self, Bug};
use random::{Held, PAGE, Random};
use rig::Rig;
use std::collections::BTreeSet;
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
    let missed: Vec<Bug> = plant::ENGINE.into_iter().filter(|bug| !is_found(*bug)).collect();
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
    world.rig.compare_contents();
    world.everyone_leaves();
}

struct World {
    random: Random,
    rig: Rig,
    actors: Vec<Actor>,
    joined: u64,
    noticed: BTreeSet<InstanceId>,
    pages: u32,
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
            page_size: PAGE,
            pages: random.below(14) + 6,
            embeds: random.below(5) + 2,
            batch_tokens: 16,
            vocab: 100,
            hidden: 1,
        };
        let pages = info.pages;
        World { rig: Rig::new(info), random, actors: Vec::new(), joined: 0, noticed: BTreeSet::new(), pages }
    }

    // ---- steps ----

    fn step(&mut self) {
        if self.actors.is_empty() || (self.actors.len() < 6 && self.random.one_in(15)) {
            return self.join();
        }
        let actor = self.random.below(self.actors.len() as u32) as usize;
        let waits = self.rig.waits(self.actors[actor].id);
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
        let instance = self.actors[actor].id;
        self.send(Command::Allocate { instance, kind, count, reply: Reply::default() });
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
        let queue = self.queue(actor);
        self.send_operation(actor, queue, Operation::Synchronize(Reply::default()));
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
        let held = self.held(actor);
        let Some(pass) = self.random.pass(&held, self.pages) else { return };
        self.send_operation(actor, queue, Operation::Pass(pass, Reply::default()));
    }

    fn send_operation(&mut self, actor: usize, queue: QueueId, operation: Operation) {
        let credit = self.actors[actor].credits.try_take(operation.words());
        let credit = credit.expect("a history is shorter than the allowance");
        self.send(Command::Submit { queue, operation, credit });
    }

    fn held(&self, actor: usize) -> Held {
        let mut held = Held::default();
        let Some(member) = self.rig.oracle.members.get(&self.actors[actor].id) else { return held };
        for (&(kind, id), content) in &member.names {
            match kind {
                Kind::Page => held.pages.push(id),
                Kind::Embed => {
                    held.embeds.push(id);
                    held.written.extend(content.slots[0].map(|_| id));
                }
            }
        }
        held
    }

    /// Up to `most` distinct names in any order.
    fn some_held(&mut self, actor: usize, kind: Kind, most: u32) -> Vec<VirtualId> {
        let held = self.held(actor);
        self.random.some(if kind == Kind::Page { &held.pages } else { &held.embeds }, most)
    }

    fn send(&mut self, command: Command) {
        let notices = self.rig.send(command);
        self.end(notices);
    }

    /// One turn of the engine; false if there was nothing to do.
    fn turn(&mut self) -> bool {
        let notices = self.rig.turn(&mut self.random);
        notices.map(|notices| self.end(notices)).is_some()
    }

    fn end(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            let (Notice::Evict(id)
            | Notice::OutOfPages { instance: id, .. }
            | Notice::Misuse { instance: id, .. }) = notice;
            assert!(self.noticed.insert(id), "{id} is ended twice");
            self.actors.retain(|actor| actor.id != id);
            self.send(Command::Leave { instance: id, how: Leave::Killed });
        }
    }

    fn check(&self) {
        self.rig.check();
    }

    fn run_dry(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                assert!(self.rig.is_idle(), "queued work cannot run");
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
        self.rig.check_the_end(&["a", "b"]);
    }
}
