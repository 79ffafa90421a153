//! Settling from outside: for whom a batch waits, and whose batches are.

use super::super::tests::{attend, settle, spawn};
use super::super::*;
use super::{RECENT, WAKES_MOST};
use crate::engine::Settle;
use crate::identity::Subject;
use smol::channel;
use std::sync::atomic::AtomicBool;

/// The story: a client that started guests by the hundred had a quarter of each batch's time for them.
#[test]
fn the_next_batch_waits_for_whom_the_last_one_answered() {
    let workers = Workers::start(1).unwrap();
    let shared = &workers.0.shared;
    let answered = || shared.lock().answered;
    let guest = || {
        let (question, asked) = channel::bounded::<()>(1);
        spawn(&workers, |slice| async move {
            while asked.recv().await.is_ok() {
                slice.end().await;
            }
        });
        question
    };
    let (own, foreign) = (guest(), guest());
    settle(&workers);
    for _ in 0..50 {
        attend(&workers, "");
        foreign.send_blocking(()).unwrap(); // what it asked of the engine beside the batch
        assert_eq!((answered(), shared.lock().settled(false)), (0, true));
        settle(&workers);
        workers.deliver();
        thread::scope(|scope| {
            scope.spawn(|| foreign.send_blocking(()).unwrap()); // a client, say
        });
        assert_eq!((answered(), shared.lock().settled(false)), (0, true));
        own.send_blocking(()).unwrap();
        assert_eq!((answered(), shared.lock().settled(false)), (1, false));
        settle(&workers);
        assert_eq!((answered(), shared.lock().settled(true)), (0, true));
        foreign.send_blocking(()).unwrap(); // between batches: nothing that a batch has answered
        assert_eq!(answered(), 0);
        settle(&workers);
    }
}

/// The story: two guests of a client, once a batch had answered them, woke each other, and every batch waited as long for
/// them as it may.
#[test]
fn a_batch_does_not_wait_out_what_those_whom_it_answered_do_to_each_other() {
    let workers = Workers::start(1).unwrap();
    workers.rest();
    let ((to_a, for_a), (to_b, for_b)) = (channel::bounded::<()>(1), channel::bounded::<()>(1));
    let first = to_a.clone();
    spawn(&workers, |_| async move { while for_a.recv().await.is_ok() && to_b.send(()).await.is_ok() {} });
    spawn(&workers, |_| async move { while for_b.recv().await.is_ok() && to_a.send(()).await.is_ok() {} });
    attend(&workers, "");
    workers.deliver();
    first.send_blocking(()).unwrap();
    let others_part_is_over = Instant::now() - Duration::from_secs(60);
    workers.settle(others_part_is_over, Duration::from_secs(240));
    assert!(workers.0.shared.lock().settled(false));
}

/// Slices that end are no waits: those who compute a little longer are waited for all the same, and again when they have
/// waited for something else.
#[test]
fn a_batch_waits_out_the_slices_of_whom_it_answered() {
    let workers = Workers::start(1).unwrap();
    let (question, asked) = channel::bounded::<()>(1);
    let (page, pages) = channel::bounded::<()>(1);
    let done = Arc::new(AtomicBool::new(false));
    let says = done.clone();
    spawn(&workers, |slice| async move {
        asked.recv().await.unwrap();
        for _ in 0..WAKES_MOST + 4 {
            slice.end().await;
        }
        says.store(true, Ordering::Relaxed);
        pages.recv().await.unwrap();
    });
    settle(&workers);
    attend(&workers, "");
    workers.deliver();
    question.send_blocking(()).unwrap();
    let others_part_is_over = Instant::now() - Duration::from_secs(60);
    workers.settle(others_part_is_over, Duration::from_secs(240));
    assert!(done.load(Ordering::Relaxed));
    assert!(workers.0.shared.lock().settled(false), "it waits for a page");
    thread::sleep(8 * TURN_MOST * WAITED_PART); // it makes up for what the guest has computed
    page.send_blocking(()).unwrap();
    assert!(!workers.0.shared.lock().settled(false), "of its waits that was the first");
}

#[test]
fn a_crowd_of_starts_is_one_only_beside_others_whom_batches_are_for() {
    let workers = Workers::start(1).unwrap();
    let slice = |who: &'static str| Slice(workers.seat(&Subject::new(who)).0);
    let one = slice("one");
    let mut starts: Vec<_> = (0..STARTS_AT_ONCE).map(|_| slice("many").starting()).collect();
    starts.push(slice("many").starting());
    assert!(!starts[0].in_a_crowd(), "no batches");
    attend(&workers, "many");
    assert!(!starts[0].in_a_crowd(), "nobody else has part");
    attend(&workers, "one");
    assert!(starts[0].in_a_crowd() && !one.starting().in_a_crowd());
    drop(starts.pop());
    assert!(!starts[0].in_a_crowd());
    starts.push(slice("many").starting());
    // A long prompt: nobody is answered for many batches.
    (0..2 * RECENT).for_each(|_| attend(&workers, "one"));
    assert!(starts[0].in_a_crowd());
    (0..RECENT).for_each(|_| attend(&workers, "many"));
    assert!(!starts[0].in_a_crowd(), "the other has been done for some time");
    attend(&workers, "one");
    (0..2 * RECENT).for_each(|_| workers.attend(&mut [].iter()));
    assert!(starts[0].in_a_crowd(), "pages that are moved are no batch");
    workers.rest();
    assert!(!starts[0].in_a_crowd());
}

#[test]
fn a_number_brings_its_next_subject_no_batches() {
    let workers = Workers::start(1).unwrap();
    let model_is_for = || workers.0.shared.lock().model_is_for();
    let (first, stays) = (workers.seat(&Subject::new("first")), workers.seat(&Subject::new("stays")));
    let [number, other] = [&first, &stays].map(|seat| seat.0.number);
    attend(&workers, "stays");
    attend(&workers, "first");
    drop(first);
    let newcomer = workers.seat(&Subject::new("newcomer"));
    assert_eq!((newcomer.0.number, model_is_for()), (number, other));
    attend(&workers, "stays");
    assert_eq!(model_is_for(), other);
    attend(&workers, "newcomer");
    workers.attend(&mut ["stays", "stays", "gone"].map(Subject::new).iter());
    assert!(![number, other, NOBODY].contains(&model_is_for()), "there are two");
}
