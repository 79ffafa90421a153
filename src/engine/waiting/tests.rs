//! Subjects' lines beside each other: what one waits for holds no other up, and nobody waits after its end.

use crate::backend::{Info, Mask, Outcome, Produced, Sampler, TokenId};
use crate::engine::credit::Credits;
use crate::engine::operation::{
    Command, Kind, Leave, Notice, Operation, PageQuotas, Pass, PassInput, PassOutput, QueueId, Refusal,
    Reply, VirtualId,
};
use crate::engine::prefix::Reuse;
use crate::engine::schedule::{Budget, Plan};
use crate::engine::state::State;
use crate::engine::waiting::PATIENCE;
use crate::identity::{InstanceId, Subject};

const PAGE: u32 = 4;

/// A budget within which everything runs at once.
const WHOLE: Budget = Budget {
    rows: 1024,
    row: 1,
    work: 1 << 40,
    beside: 1 << 40,
    apart: 1 << 40,
    lesson: 0,
    shared: 1 << 40,
    pause_part: 1,
    now: 1 << 40,
};

type Given = Reply<Result<Vec<VirtualId>, Refusal>>;

struct World {
    state: State,
    joined: u64,
}

impl World {
    fn new(pages: u32) -> World {
        let info = Info {
            device: "none".into(),
            page_size: PAGE,
            pages,
            embeds: 1,
            batch_tokens: 1024,
            vocab: 10,
            hidden: 1,
        };
        World { state: State::new(&info, &Reuse::default()), joined: 0 }
    }

    fn join(&mut self, subject: &str) -> InstanceId {
        self.joined += 1;
        let instance = InstanceId::from_bits(u128::from(self.joined));
        let (subject, pages) = (Subject::new(subject), PageQuotas::default());
        self.state.apply(Command::Join { instance, subject, pages, seed: 0 });
        instance
    }

    fn leave(&mut self, instance: InstanceId, how: Leave) {
        self.state.apply(Command::Leave { instance, how });
        self.state.check();
    }

    fn ask(&mut self, instance: InstanceId, count: u32) -> Given {
        let (kind, reply) = (Kind::Page, Given::default());
        self.state.apply(Command::Allocate { instance, kind, count, reply: Reply::clone(&reply) });
        self.state.check();
        reply
    }

    /// A pass over the first `count` pages, of so many rows at their end.
    fn pass(&mut self, instance: InstanceId, count: u32, rows: u32) {
        let pass = Pass {
            pages: (0..count).map(VirtualId).collect(),
            len: count * PAGE,
            inputs: vec![PassInput::Token(TokenId(1)); rows as usize],
            positions: (0..rows).collect(),
            mask: Mask::Causal,
            outputs: vec![PassOutput::Token { row: 0, sampler: Sampler::Multinomial { temperature: 0.0 } }],
        };
        let operation = Operation::Pass(pass, Reply::default());
        let credit = Credits::default().try_take(operation.words()).expect("the first");
        self.state.apply(Command::Submit { queue: QueueId { instance, ordinal: 0 }, operation, credit });
        self.state.check();
    }

    /// An instance has `count` pages of which all are given back, and a pass over them is under way.
    fn draining(&mut self, subject: &str, count: u32) -> (InstanceId, Plan) {
        let instance = self.join(subject);
        assert!(has(&self.ask(instance, count)));
        self.pass(instance, count, count * PAGE);
        let plan = self.state.plan(WHOLE).expect("a pass is ready");
        let ids = (0..count).map(VirtualId).collect();
        self.state.apply(Command::Deallocate { instance, kind: Kind::Page, ids });
        (instance, plan)
    }

    fn finish(&mut self, plan: Plan) {
        let token = || Produced::Token(TokenId(1));
        let mut outcome = Outcome::default();
        let outputs = plan.batch.sequences.iter().map(|sequence| sequence.outputs.len());
        outcome.produced = outputs.map(|count| vec![token(); count]).collect();
        self.state.finish(plan, &mut outcome).expect("all is answered");
        self.state.check();
    }
}

fn has(given: &Given) -> bool {
    matches!(given.get(), Some(Ok(_)))
}

/// The story: an instance asked for more pages than were free and no more than some long pass would give back, and until
/// it had run nobody else got a page though thousands were free.
#[test]
fn what_one_subject_waits_for_holds_no_other_up_inside_its_share() {
    let mut w = World::new(16);
    let (_, plan) = w.draining("a", 4);
    let [first, second] = [w.join("a"), w.join("a")];
    let large = w.ask(first, 14);
    assert!(w.state.waits(first), "12 are free, 4 will be");
    let small = w.ask(second, 1);
    assert!(w.state.waits(second), "nobody overtakes another of its own subject");
    let other = w.join("b");
    assert!(has(&w.ask(other, 2)), "2 of 8");
    w.pass(other, 1, 1);
    assert!(has(&w.ask(other, 6)), "8 of 8");
    // Now it cannot be had any more, as if it had been asked for after the others.
    let refused = Refusal::OutOfPages { asked: 14, capacity: 16, free: 4 };
    assert_eq!(large.get(), Some(&Err(refused)));
    assert!(has(&small), "whoever was behind it has its turn");
    assert!(w.state.take_notices().is_empty());
    w.finish(plan);
}

#[test]
fn beyond_the_share_whoever_waits_longest_goes_first() {
    let mut w = World::new(16);
    let (_, plan) = w.draining("a", 4);
    let [first, other, third] = [w.join("a"), w.join("b"), w.join("c")];
    // A third of the pool, 5, is a share.
    let large = w.ask(first, 13);
    let beyond = w.ask(other, 6);
    assert!(w.state.waits(first) && w.state.waits(other), "12 are free, but 6 are more than b's share");
    assert!(has(&w.ask(third, 4)), "past both");
    assert!(matches!(large.get(), Some(Err(Refusal::OutOfPages { asked: 13, .. }))));
    assert!(has(&beyond), "first now");
    w.finish(plan);
}

/// Whoever waits is looked for behind others' requests, too, each time that something comes free.
#[test]
fn pages_that_come_free_go_past_a_request_that_they_are_too_few_for() {
    let mut w = World::new(16);
    let [(_, plan), (_, later)] = [w.draining("a", 6), w.draining("a", 6)];
    let [first, other] = [w.join("a"), w.join("b")];
    let large = w.ask(first, 14);
    let asked = w.ask(other, 6);
    assert!(w.state.waits(first) && w.state.waits(other), "4 are free, 12 will be");
    w.finish(plan);
    assert!(has(&asked), "6 of 8, and 10 were free");
    assert!(large.get().is_some());
    w.finish(later);
}

#[test]
fn one_that_waits_inside_its_share_is_not_starved_by_those_who_pass_it() {
    let mut w = World::new(16);
    let [greedy, modest, other] = ["b", "c", "d"].map(|subject| w.join(subject));
    assert!(has(&w.ask(greedy, 11)));
    let (_, plan) = w.draining("a", 2);
    let asked = w.ask(modest, 4);
    assert!(w.state.waits(modest), "3 are free, 2 will be");
    assert!(has(&w.ask(other, 2)), "2 of 4");
    assert_eq!(w.state.take_notices(), [Notice::Evict(greedy)], "what others left is too little now");
    assert!(has(&asked));
    w.finish(plan);
}

/// The story: it had returned, its last word waited in its own line, and every subject behind it.
#[test]
fn whoever_ends_waits_no_longer() {
    for how in [Leave::Completed, Leave::Killed] {
        let mut w = World::new(16);
        let (_, plan) = w.draining("a", 4);
        let [waits, behind] = [w.join("a"), w.join("a")];
        let never = w.ask(waits, 14);
        w.pass(waits, 1, 1); // it comes after, and would name what is not there yet
        let asked = w.ask(behind, 12);
        assert!(asked.get().is_none());
        w.leave(waits, how);
        assert_eq!(never.get(), Some(&Err(Refusal::Ended)));
        assert!(has(&asked) && !w.state.members.contains_key(&waits));
        assert_eq!(w.state.take_notices(), Vec::<Notice>::new());
        w.finish(plan);
    }
}

/// The story: each page that anybody gave back, though none came free, had the engine look at a waiting pass of a hundred
/// thousand rows again, for milliseconds each time.
#[test]
fn what_waits_is_looked_at_again_only_when_what_it_lacked_may_be_there() {
    let mut w = World::new(16);
    let (_, plan) = w.draining("a", 4);
    let [waits, gives] = [w.join("a"), w.join("a")];
    assert!(has(&w.ask(gives, 8)));
    let large = w.ask(waits, 8);
    let looks = w.state.waiting.looks;
    let names = (0..8).map(VirtualId);
    for ids in names.clone().take(3).map(|id| vec![id]) {
        w.state.apply(Command::Deallocate { instance: gives, kind: Kind::Page, ids });
        assert!(w.state.waits(waits), "4 are free, and 4 come");
    }
    assert_eq!(w.state.waiting.looks, looks);
    w.state.apply(Command::Deallocate { instance: gives, kind: Kind::Page, ids: vec![VirtualId(3)] });
    assert!(has(&large));
    w.finish(plan);
}

/// The story: whoever had the whole pool queued hours of work on it and gave all pages back: they were on their way, so nobody
/// else got any.
#[test]
fn pages_on_their_way_are_waited_for_only_so_long_inside_the_share() {
    for how in [None, Some(Leave::Completed)] {
        let mut w = World::new(16);
        let greedy = w.join("a");
        assert!(has(&w.ask(greedy, 14)));
        (0..4).for_each(|_| w.pass(greedy, 14, 56));
        match how {
            None => {
                let ids = (0..14).map(VirtualId).collect();
                w.state.apply(Command::Deallocate { instance: greedy, kind: Kind::Page, ids });
            }
            Some(how) => {
                let (ids, name, reply) = (vec![VirtualId(13)], "x".to_owned(), Reply::default());
                w.state.apply(Command::Export { instance: greedy, kind: Kind::Page, ids, name, reply });
                w.leave(greedy, how);
            }
        }
        let [modest, beyond] = [w.join("b"), w.join("c")];
        let asked = w.ask(modest, 5);
        let too_much = w.ask(beyond, 7);
        assert!(w.state.waits(modest) && w.state.waits(beyond), "2 are free, 5 is a share");
        let mut batches = 0;
        while !has(&asked) {
            let plan = w.state.plan(Budget { rows: 1, ..WHOLE }).expect("there is work for long");
            w.finish(plan);
            batches += 1;
        }
        assert!((PATIENCE..=2 * PATIENCE).contains(&batches), "{batches}");
        let told = w.state.take_notices();
        assert_eq!(told, if how.is_none() { vec![Notice::Evict(greedy)] } else { vec![] });
        assert!(has(&too_much), "and who waited behind it");
    }
}

/// Each look at so many names takes the engine long: there is one, and then whatever else there is to do.
#[test]
fn those_who_give_way_unseen_do_so_a_few_at_a_time() {
    let mut w = World::new(16);
    let (kind, reply) = (Kind::Page, Reply::default());
    let greedy = w.join("a");
    assert!(has(&w.ask(greedy, 14)));
    let ids = vec![VirtualId(0); 40];
    w.state.apply(Command::Export { instance: greedy, kind, ids, name: "x".into(), reply });
    let importers = [(); 6].map(|()| w.join("a"));
    for instance in importers {
        let (name, reply) = ("x".into(), Given::default());
        w.state.apply(Command::Import { instance, kind, name, reply: Reply::clone(&reply) });
        assert!(has(&reply));
    }
    let modest = w.join("b");
    let asked = w.ask(modest, 5);
    let mut looks = 0;
    while w.state.has_more() {
        assert!(w.state.waits(modest));
        w.state.go_on();
        w.state.check();
        looks += 1;
    }
    assert!(has(&asked) && looks == 3, "{looks}");
    let told = w.state.take_notices();
    assert_eq!(told.len(), 7, "all who had something: {told:?}");
}
