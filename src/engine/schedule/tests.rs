//! What the choice of a batch promises: order, fairness, and its bound in work.

use super::choose::{AGE_BATCHES, SHORT_ROWS};
use super::*;
use crate::backend::{DrawKey, Input, Mask, TokenId};
use crate::engine::pace::Pace;
use std::time::{Duration, Instant};

/// No bounds but those that a test sets.
const ANY: Budget = Budget {
    rows: 64,
    row: 1000,
    work: u64::MAX,
    beside: u64::MAX,
    apart: u64::MAX,
    lesson: 0,
    shared: u64::MAX,
    pause_part: 4,
    now: 0,
};

/// Guests with a queue each and passes without pages: only the choice is looked at.
struct World {
    schedule: Schedule,
    guests: Vec<QueueId>,
}

impl World {
    fn new(guests: usize) -> World {
        World::of(&vec![0; guests])
    }

    /// Guests of these subjects.
    fn of(subjects: &[usize]) -> World {
        let mut schedule = Schedule::new(0, 0);
        let guests: Vec<QueueId> =
            subjects.iter().map(|_| QueueId { instance: InstanceId::random(), ordinal: 0 }).collect();
        for (queue, subject) in guests.iter().zip(subjects) {
            schedule.join(queue.instance, Subject::new(&subject.to_string()));
            assert!(schedule.open(*queue));
        }
        World { schedule, guests }
    }

    /// A pass of `rows` rows, known in the batch by the guest's number.
    fn submit(&mut self, guest: usize, rows: u32) {
        self.submit_behind(0, guest, rows);
    }

    fn submit_behind(&mut self, context: u32, guest: usize, rows: u32) {
        let pass = PassWork {
            pages: Vec::new(),
            page_size: 1 << 20,
            context,
            begun: 0,
            inputs: vec![Input::Token(TokenId(0)); rows as usize],
            positions: vec![0; rows as usize],
            mask: Mask::Causal,
            outputs: Vec::new(),
            draw: DrawKey { seed: guest as u64, queue: 0, pass: 0 },
            yielded: Vec::new(),
            reply: Reply::default(),
        };
        let pass = PassWork { pages: vec![crate::backend::PageId(0)], ..pass };
        self.schedule.add_pass(self.guests[guest], pass, Vec::new(), None);
    }

    /// Guest and rows of each sequence of the next batch.
    fn batch(&mut self, rows: u32, beside: u32) -> Vec<(usize, u32)> {
        let row = 1 << 28; // Rows are all that counts, and half a row more for what they see.
        let work = |rows| u64::from(rows) * row + row / 2;
        self.batch_of(Budget { rows, row, work: work(rows), beside: work(beside), ..ANY })
    }

    fn batch_of(&mut self, budget: Budget) -> Vec<(usize, u32)> {
        self.schedule.plan(budget).map(|plan| self.finish(plan)).unwrap_or_default()
    }

    fn finish(&mut self, plan: Plan) -> Vec<(usize, u32)> {
        let sequences = plan.batch.sequences.iter();
        let chosen = sequences.map(|s| (s.draw.seed as usize, s.inputs.len() as u32)).collect();
        let produced = vec![Vec::new(); plan.batch.sequences.len()];
        self.schedule.finish(plan, &mut Outcome { produced }).expect("all answered");
        self.schedule.take_done();
        chosen
    }
}

#[test]
fn a_long_prompt_runs_in_chunks_and_never_holds_up_a_decode() {
    let mut w = World::new(3);
    w.submit(0, 100);
    assert_eq!(w.batch(64, 16), [(0, 64)], "alone it may have the whole batch");
    for _ in 0..2 {
        w.submit(1, 1);
        w.submit(2, 1);
        assert_eq!(w.batch(64, 16), [(1, 1), (2, 1), (0, 16)]);
    }
    w.submit(1, 1);
    w.submit(2, 1);
    let last = w.batch(64, 16);
    assert!(last.contains(&(0, 4)) && last.len() == 3, "{last:?}");
}

#[test]
fn rows_for_is_the_inverse_of_cost() {
    let budget = Budget { row: 700, ..ANY };
    for context in [0, 1, 4096, 1 << 20, u32::MAX] {
        for work in [0, 1, 700, 701, 100_000, 1 << 30, u64::from(u32::MAX) * 1000] {
            let rows = budget.rows_for(work, context);
            assert!(budget.cost(context, rows) <= work, "{rows} rows of {work} behind {context}");
            assert!(budget.cost(context, rows + 1) > work, "{rows} rows of {work} behind {context}");
        }
    }
}

#[test]
fn a_batch_is_bounded_in_attended_slots_too_and_everyone_gets_on() {
    let (row, deep) = (1000, 1 << 16);
    let budget = Budget { rows: 512, row, work: 200_000, beside: 50_000, ..ANY };
    let mut w = World::new(17);
    (0..15).for_each(|guest| w.submit_behind(deep, guest, 8));
    w.submit(15, 1);
    w.submit_behind(deep, 16, 40);
    let mut left = [8; 17];
    (left[15], left[16]) = (1, 40);
    let mut batches = 0;
    while left != [0; 17] {
        let chosen = w.batch_of(budget);
        let deep_rows: u32 = chosen.iter().filter(|(guest, _)| *guest != 15).map(|(_, rows)| rows).sum();
        assert!(deep_rows <= 4, "three fit, and one of a long pass: {chosen:?}");
        chosen.into_iter().for_each(|(guest, rows)| left[guest] -= rows);
        batches += 1;
        assert!(batches < 17 || left[15] == 0, "the shallow one has its turn");
    }
    assert!(w.schedule.is_idle());
}

/// Decodes that would fill every batch, by their number or by the depth of their contexts, and a prompt beside them.
#[test]
fn decodes_that_fill_the_batches_leave_a_prompt_its_part() {
    let deep = Budget { rows: 512, work: 400_000, beside: 100_000, ..ANY };
    for (budget, context, least) in [(ANY, 0, 16), (deep, 1 << 16, 24)] {
        let mut w = World::new(81);
        (0..80).for_each(|guest| w.submit_behind(context, guest, 1));
        w.submit(80, 3000);
        let (mut left, mut decodes) = (3000, [0; 80]);
        while left > SHORT_ROWS {
            let chosen = w.batch_of(budget);
            assert!(chosen.iter().any(|(guest, _)| *guest == 80), "it waits: {left} left");
            let mut work = 0;
            for &(guest, rows) in &chosen {
                if guest == 80 {
                    assert!(rows >= least.min(left), "{rows} rows of {left} left");
                    work += budget.cost(3000 - left, rows);
                    left -= rows;
                } else {
                    decodes[guest] += rows;
                    work += budget.cost(context, rows);
                    w.submit_behind(context, guest, 1);
                }
            }
            assert!(work <= budget.work && chosen.len() > 4, "{work} of {}: {chosen:?}", budget.work);
        }
        let (fewest, most) = (decodes.iter().min().unwrap(), decodes.iter().max().unwrap());
        assert!(most - fewest <= 1, "{decodes:?}");
    }
}

/// A quarter of two rows is no row; the prompt gets one all the same.
#[test]
fn a_prompt_gets_on_in_the_smallest_batches() {
    let mut w = World::new(3);
    (0..2).for_each(|guest| w.submit(guest, 1));
    w.submit(2, 3000);
    for _ in 0..10 {
        let chosen = w.batch_of(Budget { rows: 2, ..ANY });
        assert!(chosen.len() == 2 && chosen.contains(&(2, 1)), "{chosen:?}");
        chosen.iter().filter(|(guest, _)| *guest < 2).for_each(|(guest, _)| w.submit(*guest, 1));
    }
}

/// A whole batch would go into a decode's one row: the prompt gets one row too.
#[test]
fn a_decode_dearer_than_a_batch_does_not_shut_a_prompt_out() {
    let mut w = World::new(2);
    w.submit(1, 20);
    for _ in 0..12 {
        w.submit_behind(1 << 16, 0, 1);
        assert_eq!(w.batch_of(Budget { work: 5000, beside: 5000, ..ANY }), [(0, 1), (1, 1)]);
    }
}

#[test]
fn a_prompt_of_lower_priority_waits_for_the_decodes_but_not_for_ever() {
    let mut w = World::new(2);
    w.schedule.set_priority(w.guests[1], Priority::Low);
    w.submit(1, 100);
    let mut served = 0;
    for _ in 0..4 * AGE_BATCHES {
        w.submit_behind(1 << 16, 0, 1);
        let chosen = w.batch_of(Budget { work: 60_000, beside: 15_000, ..ANY });
        served += u64::from(chosen.iter().any(|(guest, _)| *guest == 1));
    }
    assert_eq!(served, 3, "once in {AGE_BATCHES} batches");
}

#[test]
fn equals_take_turns_when_the_batch_is_too_small() {
    let mut w = World::new(64);
    let mut served = [0u32; 64];
    (0..64).for_each(|guest| w.submit(guest, 1));
    for _ in 0..80 {
        for (guest, _) in w.batch(8, 8) {
            served[guest] += 1;
            w.submit(guest, 1);
        }
    }
    assert_eq!(served, [10; 64]);
}

#[test]
fn one_with_many_queued_passes_gets_no_more_than_one_with_few() {
    let mut w = World::new(2);
    (0..40).for_each(|_| w.submit(0, 1));
    (0..10).for_each(|_| w.submit(1, 1));
    let firsts: Vec<usize> = (0..10).flat_map(|_| w.batch(2, 2)).map(|(guest, _)| guest).collect();
    assert_eq!(firsts.iter().filter(|guest| **guest == 1).count(), 10);
}

#[test]
fn higher_priority_goes_first_and_lower_is_not_starved() {
    let mut w = World::new(2);
    w.schedule.set_priority(w.guests[0], Priority::High);
    w.schedule.set_priority(w.guests[1], Priority::Low);
    w.submit(1, 1);
    let mut waited = 0;
    loop {
        w.submit(0, 1);
        match w.batch(1, 1)[..] {
            [(0, 1)] => waited += 1,
            [(1, 1)] => break,
            ref other => panic!("{other:?}"),
        }
        assert!(waited <= 3 * AGE_BATCHES, "starved");
    }
    assert!(waited >= AGE_BATCHES, "priority means something");
}

#[test]
fn passes_of_one_queue_share_a_batch_in_order_and_synchronize_waits_for_them() {
    let mut w = World::new(1);
    let reply = Reply::default();
    w.submit(0, 20);
    w.submit(0, 1);
    w.schedule.add_synchronize(w.guests[0], reply, None);
    assert_eq!(w.batch(8, 8), [(0, 8)], "the second may not overtake the first");
    assert_eq!(w.batch(13, 13), [(0, 12), (0, 1)]);
    assert!(w.schedule.is_idle());
}

/// A subject with a hundred decodes and prompts beside one with a single decode: a step takes what both have apart.
#[test]
fn however_much_a_subject_asks_another_has_its_row_in_every_batch_and_the_batch_ends_soon() {
    let mut subjects = vec![0; 101];
    subjects[100] = 1;
    let mut w = World::of(&subjects);
    (0..50).for_each(|guest| w.submit(guest, 1));
    (50..100).for_each(|guest| w.submit(guest, 2000));
    (0..100).for_each(|guest| w.schedule.set_priority(w.guests[guest], Priority::High));
    w.schedule.set_priority(w.guests[100], Priority::Low);
    let mut budget = Budget { rows: 512, work: 1 << 20, beside: 1 << 19, apart: 12_000, ..ANY };
    for _ in 0..200 {
        w.submit(100, 1);
        budget.now += 12_000;
        let chosen = w.batch_of(budget);
        assert!(chosen.contains(&(100, 1)), "{chosen:?}");
        let rows: u32 = chosen.iter().map(|(_, rows)| rows).sum();
        assert!((2..=3).contains(&rows), "an eighth of twelve, and the one: {chosen:?}");
        chosen.iter().filter(|(guest, _)| *guest < 50).for_each(|(guest, _)| w.submit(*guest, 1));
    }
    // While the other pauses, which may be over any moment, a batch is no longer than beside one row of it, then than a quarter
    // of the pause so far, ...
    budget.shared = 30_000;
    budget.now += 12_000; // it ended
    let mut rows = |away: u64, guest: Option<usize>| -> u32 {
        guest.into_iter().for_each(|guest| w.submit(guest, 1));
        let budget = Budget { now: budget.now + away, ..budget };
        w.batch_of(budget).iter().map(|(_, rows)| rows).sum()
    };
    assert_eq!(rows(4000, None), 2, "a row costs a little more than a thousand; a prompt's is kept");
    assert_eq!(rows(4 * 12_000, None), 11);
    assert!((20..=30).contains(&rows(4 * 40_000, None)), "however long the pause");
    // ... which ends with a row of its own, ...
    assert!((2..=3).contains(&rows(4 * 41_000, Some(100))));
    assert_eq!(rows(4 * 42_000, None), 2);
    assert!((20..=30).contains(&rows(4 * 100_000, None)));
    // ... and with a guest that comes, though it asks for nothing.
    let late = InstanceId::random();
    w.schedule.join(late, Subject::new("1"));
    let rows = |w: &mut World, away: u64| -> u32 {
        let budget = Budget { now: budget.now + away, ..budget };
        w.batch_of(budget).iter().map(|(_, rows)| rows).sum()
    };
    assert_eq!(rows(&mut w, 4 * 140_000), 2);
    assert_eq!(rows(&mut w, 4 * 155_000), 11, "it came before the end of the batch before");
    // Who goes may be about to come back, as one who runs one program after another: only the pause counts, ...
    w.schedule.leave(w.guests[100].instance, |_, _| false);
    w.schedule.leave(late, |_, _| false);
    assert_eq!(rows(&mut w, 4 * 200_000), 2);
    assert!((35..=60).contains(&rows(&mut w, 4 * 262_000)), "and nobody is here to be shared with");
    // ... until it is so long that a batch is as long as any.
    let alone = rows(&mut w, 4 * (200_000 + (1 << 20)) + 12_000);
    assert!(alone > 100, "{alone}");
    assert_eq!(w.schedule.shares.len(), 1, "and then it is forgotten");
    // Who never computed anything is so at once.
    let idle = InstanceId::random();
    w.schedule.join(idle, Subject::new("2"));
    w.schedule.leave(idle, |_, _| false);
    assert_eq!(w.schedule.shares.len(), 1);
    // Against another crowd each has what both have apart.
    let mut w = World::of(&[vec![0; 40], vec![1; 20]].concat());
    (0..60).for_each(|guest| w.submit(guest, 1));
    let chosen = w.batch_of(budget);
    let of = |range: std::ops::Range<usize>| chosen.iter().filter(|(guest, _)| range.contains(guest)).count();
    assert_eq!((of(0..40), of(40..60)), (5, 11), "a row costs a little more than a thousand: {chosen:?}");
    // So it has while that one pauses.
    let mut w = World::of(&[vec![0; 40], vec![1; 20]].concat());
    (0..40).for_each(|guest| w.submit(guest, 1));
    assert_eq!(w.batch_of(budget).len(), 5);
}

/// A device takes two milliseconds for a step and a tenth of that for each row; the first sample is of a stalled machine, so
/// that a row seems to take as long as a step. A prompt beside another's decodes, or in the pauses of one whose guests come
/// all the time, is kept to a row a batch until lessons have corrected that.
#[test]
fn a_stalled_first_sample_does_not_keep_a_prompt_to_single_rows_for_ever() {
    for (beside, context) in [(true, 0), (true, 300), (false, 0), (false, 300)] {
        let mut w = World::of(&[0, 1]);
        let (mut pace, mut now) = (Pace::new(512, 1), Instant::now());
        let (mut left, mut had) = (0, Vec::new());
        for batch in 0..4000 {
            if left == 0 {
                w.submit_behind(context, 0, 64);
                left = 64;
            }
            if beside {
                w.submit(1, 1);
            } else {
                w.schedule.leave(w.guests[1].instance, |_, _| false);
                w.guests[1].instance = InstanceId::random();
                w.schedule.join(w.guests[1].instance, Subject::new("1"));
            }
            let plan = w.schedule.plan(pace.budget(now)).expect("a prompt waits");
            let rows = plan.batch.sequences.iter().map(|s| s.inputs.len() as u32);
            let took = Duration::from_micros(2000 + 200 * u64::from(rows.sum::<u32>()));
            let took = if batch == 0 { took * 10 } else { took };
            now += took;
            pace.learn(&plan.batch, took);
            let chosen = w.finish(plan);
            had.push(chosen.iter().filter(|(guest, _)| *guest == 0).map(|(_, rows)| rows).sum::<u32>());
            left -= had[batch];
        }
        let mean = |had: &[u32]| f64::from(had.iter().sum::<u32>()) / had.len() as f64;
        let (first, last) = (mean(&had[1..5]), mean(&had[3000..]));
        assert!(first <= 2.0, "{beside} {context}: the sample did no harm, {first} rows a batch");
        assert!((3.5..=10.0).contains(&last), "{beside} {context}: {last} rows a batch");
    }
}

/// Subjects of random sizes, with passes of random lengths at random priorities, in batches too small for all: each
/// subject gets the same work, within what one batch can hold, and within a subject nobody is forgotten.
#[test]
fn subjects_share_the_device_equally_whatever_they_ask() {
    for seed in 1..=40u64 {
        println!("seed {seed}");
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let sizes: Vec<usize> = (0..2 + below(4)).map(|_| 8 + below(40) as usize).collect();
        let subjects: Vec<usize> = sizes.iter().enumerate().flat_map(|(s, n)| vec![s; *n]).collect();
        let mut w = World::of(&subjects);
        let row = 1 << 20; // What a row sees costs next to nothing, and no more than the half row that is over.
        let rows = |n: u64| row * n + row / 2;
        let work = rows(1 + below(sizes.len() as u64 * 2));
        let budget = Budget { row, work, beside: work, ..ANY };
        let long: Vec<bool> = subjects.iter().map(|_| below(4) == 0).collect();
        for (guest, queue) in w.guests.clone().into_iter().enumerate() {
            let priority = [Priority::Low, Priority::Normal, Priority::High][below(3) as usize];
            w.schedule.set_priority(queue, priority);
            w.submit(guest, if long[guest] { 40 } else { 1 });
        }
        let (mut served, mut rows_of) = (vec![0u64; sizes.len()], vec![0u32; subjects.len()]);
        let mut left: Vec<u32> = long.iter().map(|long| if *long { 40 } else { 1 }).collect();
        for _ in 0..3000 {
            let chosen = w.batch_of(budget);
            assert!(!chosen.is_empty());
            for (guest, rows) in chosen {
                served[subjects[guest]] += u64::from(rows);
                rows_of[guest] += rows;
                left[guest] -= rows;
                if left[guest] == 0 {
                    left[guest] = if long[guest] { 40 } else { 1 };
                    w.submit(guest, left[guest]);
                }
            }
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(most - least <= 64, "{served:?} of {sizes:?}");
        assert!(rows_of.iter().all(|rows| *rows > 0), "{rows_of:?}");
    }
}

/// The story: 32 instances queued all they may, and every batch looked at all 8,192 passes before it took a handful.
#[test]
fn a_turn_looks_at_the_first_of_each_kind_and_not_at_all_that_waits() {
    let mut w = World::of(&(0..32).map(|guest| guest % 4).collect::<Vec<_>>());
    let queues: Vec<QueueId> = w.guests.clone();
    let mut waiting = 0;
    for (guest, queue) in queues.iter().enumerate() {
        for ordinal in 0..256 {
            w.guests[guest] = QueueId { ordinal, ..*queue };
            assert!(w.schedule.open(w.guests[guest]));
            w.submit(guest, if ordinal % 8 == 0 { 40 } else { 1 });
            waiting += 1;
        }
    }
    let mut batches = 0;
    while !w.schedule.is_idle() {
        let looked: usize = w.schedule.lots(ANY).iter().map(|lot| lot.rank.len()).sum();
        assert!((1..=2 * 32).contains(&looked), "{looked} of {waiting}");
        assert!(!w.batch_of(ANY).is_empty());
        batches += 1;
    }
    assert!(batches >= waiting / 64, "{batches}");
}

#[test]
fn a_priority_counts_for_what_waits_already() {
    let mut w = World::new(3);
    (0..3).for_each(|guest| w.submit(guest, 1));
    w.schedule.set_priority(w.guests[2], Priority::High);
    assert_eq!(w.batch(1, 1), [(2, 1)]);
    w.schedule.set_priority(w.guests[0], Priority::Low);
    assert_eq!(w.batch(1, 1), [(1, 1)]);
    assert_eq!(w.batch(1, 1), [(0, 1)]);
}

/// The story: each job that was dropped looked for itself among all the moves of everyone.
#[test]
fn moves_of_an_instance_that_left_are_passed_over() {
    let mut schedule = Schedule::new(4, 0);
    let instances = [0, 1].map(|_| InstanceId::random());
    for instance in instances {
        schedule.join(instance, Subject::everyone());
        for at in 0..2 {
            let touch = Touch { kind: Kind::Page, at: Physical(at), from: 0, to: 4, write: true };
            let page = Physical(at).into();
            schedule.add_move(instance, Move::Clear { page, from: 0 }, vec![touch]);
        }
    }
    assert_eq!(schedule.leave(instances[0], |_, _| false).len(), 2);
    assert_eq!(schedule.plan(ANY).map(|plan| plan.moves.len()), Some(2));
    assert!(schedule.is_idle() && schedule.plan(ANY).is_none());
}
