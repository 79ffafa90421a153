//! The engine without its thread: its state over the fake backend, with the oracle beside it.
//!
//! Owns: all replies that are still to come, and what must hold between any two turns. Never: what is asked of the
//! engine, or when it has its turn.

use super::fake::Fake;
use super::oracle::Oracle;
use super::random::{PAGE, Random};
use crate::backend::{Backend, Info, Outcome, TokenId};
use crate::engine::job::Move;
use crate::engine::operation::{
    Command, Kind, Leave, Notice, Operation, PageQuotas, PassResult, QueueId, Refusal, Reply, VirtualId,
};
use crate::engine::pages::Physical;
use crate::engine::prefix::Reuse;
use crate::engine::schedule::{Budget, Plan};
use crate::engine::state::State;
use crate::identity::{InstanceId, Subject};
use std::collections::{BTreeMap, VecDeque};

pub struct Rig {
    pub(super) state: State,
    pub(super) oracle: Oracle,
    fake: Fake,
    /// Batches under way, the first first.
    under_way: VecDeque<Plan>,
    passes: BTreeMap<QueueId, Vec<Reply<PassResult>>>,
    /// With the number of passes before it in its queue.
    synchronized: Vec<(QueueId, usize, Reply<bool>)>,
    allocated: Vec<Reply<Result<Vec<VirtualId>, Refusal>>>,
    /// Batches asked for.
    asked: u64,
}

impl Rig {
    /// With a backend that has so many batches under way at most.
    pub fn new(info: Info, depth: usize) -> Rig {
        Rig {
            // One whole page of what prompts often begin with is public.
            state: State::new(&info, &Reuse { on: true, public: vec![vec![TokenId(0); PAGE as usize]] }),
            fake: Fake::new(info.clone(), depth),
            under_way: VecDeque::new(),
            oracle: Oracle::new(info),
            passes: BTreeMap::new(),
            synchronized: Vec::new(),
            allocated: Vec::new(),
            asked: 0,
        }
    }

    /// Carries a command out. Whom that ended, if anybody.
    pub fn send(&mut self, command: Command) -> Vec<Notice> {
        match &command {
            Command::Submit { queue, operation: Operation::Pass(_, reply), .. } => {
                self.passes.entry(*queue).or_default().push(reply.clone());
            }
            Command::Submit { queue, operation: Operation::Synchronize(reply), .. } => {
                let before = self.passes.get(queue).map_or(0, Vec::len);
                self.synchronized.push((*queue, before, reply.clone()));
            }
            Command::Allocate { reply, .. } | Command::Import { reply, .. } => {
                self.allocated.push(reply.clone());
            }
            _ => {}
        }
        self.state.apply(command);
        self.follow()
    }

    /// One turn of the engine, and whom it ended; none if there was nothing to do. A batch may begin though one is under way
    /// whose end somebody waits for: that it does not is no rule of the state's.
    pub fn turn(&mut self, random: &mut Random) -> Option<Vec<Notice>> {
        if self.state.has_more() {
            self.state.go_on();
            return Some(self.follow());
        }
        let depth = self.fake.depth();
        let begins = match self.under_way.len() {
            0 => true,
            some => some < depth && random.one_in(2),
        };
        let begun = begins && self.begin(random);
        if !begun || depth == 1 {
            match self.under_way.pop_front() {
                Some(plan) => self.end(plan),
                None if !begun => return None,
                None => {}
            }
        }
        Some(self.follow())
    }

    /// False: there is nothing to begin with.
    fn begin(&mut self, random: &mut Random) -> bool {
        let rows = 1 + random.below(16);
        let (row, work) = (u64::from(random.below(16)), u64::from(1 + random.below(400)));
        let beside = u64::from(random.below(200));
        let (apart, shared) = ((7 * beside + work) % 200, (5 * work + beside) % 1000);
        let (lesson, now) = (if work % 16 == 0 { beside } else { 0 }, 50 * self.asked);
        self.asked += 1;
        let budget = Budget { rows, row, work, beside, apart, lesson, shared, pause_part: 4, now };
        let Some(plan) = self.state.plan(budget) else {
            return false;
        };
        for step in &plan.moves {
            let moved = match *step {
                Move::Copy { from, to } => self.fake.copy_page(from, to),
                Move::Clear { page, from } => self.fake.clear_page(page, from),
            };
            moved.expect("the fake does not fail");
        }
        if plan.batch.sequences.is_empty() {
            self.state.finish(plan, &mut Outcome::default()).expect("nothing was asked");
            return true;
        }
        self.fake.submit(&plan.batch).expect("the fake does not fail");
        self.under_way.push_back(plan);
        true
    }

    fn end(&mut self, plan: Plan) {
        let mut outcome = Outcome::default();
        assert!(self.fake.collect(&mut outcome, false).expect("the fake does not fail"));
        self.state.finish(plan, &mut outcome).expect("all is answered");
    }

    fn follow(&mut self) -> Vec<Notice> {
        for step in std::mem::take(&mut self.state.trace) {
            self.oracle.follow(step);
        }
        self.state.take_notices()
    }

    pub fn is_idle(&self) -> bool {
        self.state.is_idle()
    }

    pub fn knows(&self, instance: InstanceId) -> bool {
        self.state.members.contains_key(&instance)
    }

    pub fn waits(&self, instance: InstanceId) -> bool {
        self.state.waits(instance)
    }

    // ---- checks ----

    pub fn check(&self) {
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

    pub fn compare_contents(&self) {
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

    /// Everybody has left and nothing is queued: with the exports of these subjects given back nothing is held, and all
    /// that was asked is answered.
    pub fn check_the_end(&mut self, subjects: &[&str]) {
        assert!(self.state.members.is_empty() && self.state.is_idle());
        self.check();
        for (number, subject) in (1..).zip(subjects) {
            let instance = InstanceId::from_bits(u128::MAX - number);
            let subject = Subject::new(subject);
            self.send(Command::Join { instance, subject, pages: PageQuotas::default(), seed: 0 });
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
