//! The run queues from outside: who runs, who waits for whom, and that nobody starves.

use super::*;
use crate::clock;
use crate::engine::Settle;
use crate::identity::Subject;
use crate::runtime::Traffic;
use smol::channel;
use smol::future::{or, poll_once};
use std::sync::atomic::AtomicBool;
use std::task::Poll;

/// A guest of a subject that all of a test's share.
pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(
    workers: &Workers,
    make: impl FnOnce(Slice) -> F,
) {
    workers.spawn(&workers.seat(&Subject::everyone()), make);
}

/// A batch for this subject alone.
pub(super) fn attend(workers: &Workers, whom: &'static str) {
    workers.attend(&mut [Subject::new(whom)].iter());
}

pub(super) fn settle(workers: &Workers) {
    workers.settle(Instant::now(), Duration::from_secs(60));
}

#[test]
fn a_guest_that_spins_does_not_starve_others_nor_they_it() {
    let workers = Workers::start(1).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let spins = Arc::new(AtomicUsize::new(0));
    spawn(&workers, |slice| {
        let (stop, spins) = (stop.clone(), spins.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                spins.fetch_add(1, Ordering::Relaxed);
                slice.end().await;
            }
        }
    });
    // Two guests that wake each other without end: the woken queue is never empty for long.
    let (to_b, from_a) = channel::bounded::<()>(1);
    let (to_a, from_b) = channel::bounded::<()>(1);
    let (done, finished) = channel::bounded(1);
    spawn(&workers, |_| async move {
        for _ in 0..10_000 {
            to_b.send(()).await.unwrap();
            from_b.recv().await.unwrap();
        }
        done.send(()).await.unwrap();
    });
    spawn(&workers, |_| async move { while from_a.recv().await.is_ok() && to_a.send(()).await.is_ok() {} });
    smol::block_on(finished.recv()).unwrap();
    assert!(spins.load(Ordering::Relaxed) > 100);
    stop.store(true, Ordering::Relaxed);
}

#[test]
fn settling_waits_for_the_woken_and_not_for_the_spinning() {
    let workers = Workers::start(2).unwrap();
    spawn(&workers, |slice| async move {
        loop {
            slice.end().await;
        }
    });
    for _ in 0..100 {
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..8 {
            let ran = ran.clone();
            spawn(&workers, move |_| async move {
                ran.fetch_add(1, Ordering::Relaxed);
            });
        }
        settle(&workers);
        assert_eq!(ran.load(Ordering::Relaxed), 8);
    }
}

/// While a batch is on a GPU nobody else has the only worker's place: its guests run there, the spinning too.
#[test]
fn who_watches_a_device_lends_its_thread() {
    for size in [1, 2] {
        let workers = Workers::start(size).unwrap();
        attend(&workers, "");
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        spawn(&workers, |slice| async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                slice.end().await;
            }
        });
        while turns.load(Ordering::Relaxed) < 100 {
            workers.lend();
        }
    }
}

/// What the io thread does for a subject, and its programs' translation, rest while the model computes for another, and only then.
#[test]
fn who_floods_the_io_thread_or_uploads_without_pause_rests_while_the_model_computes_for_others() {
    let workers = Workers::start(1).unwrap();
    let [one, other] = ["one", "other"].map(|name| workers.pacer(&Subject::new(name), Traffic::Own));
    let long = Duration::from_secs(1);
    assert!(one.turn(long).is_none(), "nobody waits for the model");
    attend(&workers, "one");
    assert!(one.turn(long).is_none(), "nobody else does");
    assert!(other.turn(long).is_some());
    let translates =
        |name: &'static str| smol::block_on(poll_once(Box::pin(workers.translation(&Subject::new(name)))));
    let first = translates("other").expect("it has had none");
    assert!(
        translates("other").is_none() && translates("one").is_some(),
        "one at a time of whoever does not compute"
    );
    first.of(|| {
        let since = clock::computed();
        while clock::computed() - since < Duration::from_millis(10) {}
    });
    assert!(translates("other").is_none(), "it rests");
    workers.rest();
    assert!(translates("other").is_some());
    assert!(other.turn(long).is_none(), "nobody does any more");
}

/// A guest may need several slices to ask for all that a batch is to do; a batch that does not wait gets half of it.
#[test]
fn settling_waits_for_a_burst_of_a_few_slices() {
    for size in [1, 2] {
        let workers = Workers::start(size).unwrap();
        let (question, asked) = channel::bounded::<()>(1);
        let rounds = Arc::new(AtomicUsize::new(0));
        spawn(&workers, |slice| {
            let rounds = rounds.clone();
            async move {
                while asked.recv().await.is_ok() {
                    for _ in 0..3 {
                        slice.end().await;
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 1..=30 {
            attend(&workers, "");
            thread::sleep(4 * TURN_MOST * WAITED_PART); // the batch: it makes up for what the guest computes
            question.send_blocking(()).unwrap();
            settle(&workers);
            assert_eq!(
                rounds.load(Ordering::Relaxed),
                round,
                "of {size} workers, each wake begins a new burst"
            );
        }
    }
}

/// Who computes and sleeps a moment in turn only computes; who waits most of the time, as for a model's tokens, does not.
#[test]
fn a_moment_of_sleep_makes_up_for_nothing() {
    let workers = Workers::start(1).unwrap();
    let Seat(seat) = workers.seat(&Subject::everyone());
    let mut now = Duration::from_secs(1);
    let mut turns = |slice: Duration, wait: Duration| {
        let exhausted = (0..100).filter(|_| {
            now += wait;
            let exhausted = seat.is_exhausted(now);
            now += slice;
            seat.computed(slice, now);
            exhausted
        });
        exhausted.count()
    };
    let (slice, moment) = (Duration::from_micros(200), Duration::from_micros(1));
    assert_eq!(turns(slice, 4 * slice), 0, "a fifth of the time");
    assert!(turns(slice, moment) >= 94);
    assert!(turns(slice, 8 * slice) <= 100);
    assert_eq!(turns(slice, 8 * slice), 0, "and is forgiven: of 20 ms a slice with each");
}

#[test]
fn batches_and_guests_share_the_threads() {
    let workers = Workers::start(2).unwrap();
    let (sender, receiver) = channel::bounded::<()>(1);
    spawn(&workers, |slice| async move {
        while receiver.try_recv().is_err() {
            slice.end().await;
        }
    });
    let crew = workers.crew();
    let shares = AtomicUsize::new(0);
    for _ in 0..50 {
        crew.run(&|_rank| {
            shares.fetch_add(1, Ordering::Relaxed);
            crew.barrier();
        });
    }
    assert_eq!(shares.load(Ordering::Relaxed), 100);
    smol::block_on(sender.send(())).unwrap();
}

/// A thread that runs batches and settles, as the engine does.
#[test]
fn while_batches_follow_each_other_one_thread_stands_in_and_nobody_starves() {
    for size in [1, 2, 3] {
        let workers = Workers::start(size).unwrap();
        let crew = workers.crew();
        let spins = Arc::new(AtomicUsize::new(0));
        spawn(&workers, |slice| {
            let spins = spins.clone();
            async move {
                loop {
                    spins.fetch_add(1, Ordering::Relaxed);
                    slice.end().await;
                }
            }
        });
        let (question, asked) = channel::bounded::<usize>(1);
        let (answer, answers) = channel::bounded(1);
        let here = thread::current().id();
        spawn(&workers, |_| async move {
            while let Ok(round) = asked.recv().await {
                answer.send((round, thread::current().id() == here)).await.unwrap();
            }
        });
        let (mut shares, mut by_stand_in) = (0, 0);
        for round in 0..300 {
            attend(&workers, "");
            let counted = AtomicUsize::new(0);
            crew.run(&|_rank| {
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(500)); // far more than an answer takes to compute
                crew.barrier();
            });
            shares += counted.into_inner();
            question.send_blocking(round).unwrap();
            settle(&workers);
            let (said, stood_in) = answers.try_recv().expect("whoever the batch woke has run");
            assert_eq!(said, round);
            by_stand_in += usize::from(stood_in);
            if round % 100 == 99 {
                workers.rest();
                let before = spins.load(Ordering::Relaxed);
                while spins.load(Ordering::Relaxed) < before + 100 {
                    thread::yield_now(); // the spinning guest has the workers to itself again
                }
            }
        }
        assert_eq!(shares, 300 * size, "every rank of every batch once");
        assert!(by_stand_in > 30, "{by_stand_in} of 300 stayed with the engine's thread of {size}");
        // The next question comes while nobody stands in.
        workers.rest();
        question.send_blocking(300).unwrap();
        assert_eq!(answers.recv_blocking().map(|(round, _)| round), Ok(300));
    }
}

/// The story: the end of one guest closed a channel at which another waited. That one was dropped where it was woken, with
/// the channel's lock held, which its own end asked for; and so the pool's end never came.
#[test]
fn a_pool_ends_beside_guests_that_wait_for_each_other() {
    for _ in 0..100 {
        let workers = Workers::start(1).unwrap();
        let ((to_a, for_a), (to_b, for_b)) = (channel::bounded::<()>(1), channel::bounded::<()>(1));
        let first = to_a.clone();
        let alive = Arc::new(());
        for (from, to) in [(for_a, to_b), (for_b, to_a)] {
            let alive = alive.clone();
            spawn(&workers, |_| async move {
                let _alive = alive;
                while from.recv().await.is_ok() && to.send(()).await.is_ok() {}
            });
        }
        first.send_blocking(()).unwrap();
        let shared = workers.0.shared.clone();
        drop((first, workers));
        while shared.lock().threads > 0 {
            thread::yield_now();
        }
        assert_eq!(Arc::strong_count(&alive), 1, "no thread is left that could drop a guest");
    }
}

#[test]
fn dropping_the_pool_drops_its_guests() {
    let workers = Workers::start(1).unwrap();
    let alive = Arc::new(());
    let guest = alive.clone();
    spawn(&workers, |slice| async move {
        let _guest = guest;
        loop {
            slice.end().await;
        }
    });
    drop(workers);
    while Arc::strong_count(&alive) > 1 {
        std::thread::yield_now();
    }
}

/// The count of turns that each of some guests has had.
type Turns = Arc<Vec<AtomicUsize>>;

/// One subject with two hundred guests that spin, and one with a single one: it has as many turns as they together.
#[test]
fn a_subject_with_many_guests_has_no_more_than_one_with_one() {
    for size in [1, 2] {
        let workers = Workers::start(size).unwrap();
        let turns: Turns = Arc::new((0..2).map(|_| AtomicUsize::new(0)).collect());
        for guest in 0..201 {
            let (subject, turns) = (usize::from(guest == 200), turns.clone());
            workers.spawn(&workers.seat(&Subject::new(&subject.to_string())), |slice| async move {
                loop {
                    turns[subject].fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(20)); // turns of one length, whatever the machine does
                    slice.end().await;
                }
            });
        }
        let had = |subject: usize| turns[subject].load(Ordering::Relaxed);
        let until = |count| {
            while had(0) < count {
                thread::yield_now();
            }
        };
        // At first each counts as woken, until it has computed a burst.
        until(200 * (BURST.as_micros() / 20) as usize);
        let before = [had(0), had(1)];
        until(before[0] + 2000);
        let turns = [had(0) - before[0], had(1) - before[1]];
        // Its only guest cannot be in two places, so of two threads' time it may have less than half, never a 200th.
        assert!(turns[1] > 500, "{turns:?}");
    }
}

/// Nobody runs: every worker has part in a batch that does not end. Whoever is ended hears of it all the same.
#[test]
fn an_end_waits_neither_for_a_turn_nor_for_a_batch() {
    let workers = Workers::start(2).unwrap();
    let (told, tells) = channel::bounded(400);
    let stop = Arc::new(AtomicBool::new(false));
    let mut seats = Vec::new();
    for guest in 0..200 {
        let seat = workers.seat(&Subject::everyone());
        let (ending, told) = (seat.clone(), told.clone());
        workers.spawn(&seat, |slice| async move {
            while !ending.0.ending.load(Ordering::Relaxed) {
                match guest % 2 {
                    0 => slice.end().await,
                    _ => {
                        std::future::poll_fn(|context| {
                            context.waker().wake_by_ref(); // woken without end
                            if ending.0.ending.load(Ordering::Relaxed) {
                                Poll::Ready(())
                            } else {
                                Poll::Pending
                            }
                        })
                        .await
                    }
                }
            }
            told.send((guest, thread::current().name().map(str::to_owned))).await.unwrap();
        });
        seats.push(seat);
    }
    let crew = workers.crew();
    let inside = Arc::new(AtomicUsize::new(0));
    let batch = thread::spawn({
        let (stop, inside) = (stop.clone(), inside.clone());
        move || {
            crew.run(&|_rank| {
                inside.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            });
        }
    });
    while inside.load(Ordering::Relaxed) < 2 {
        thread::yield_now();
    }
    assert!(!seats.iter().rev().any(Seat::end), "they wait");
    let mut ended: Vec<usize> = (0..200)
        .map(|_| {
            let (guest, thread) = tells.recv_blocking().unwrap();
            assert_eq!(thread.as_deref(), Some("ender"));
            guest
        })
        .collect();
    stop.store(true, Ordering::Relaxed);
    batch.join().unwrap();
    ended.sort_unstable();
    assert_eq!(ended, (0..200).collect::<Vec<_>>());
}

/// Says whose it was, and on which thread, when it is dropped, which takes until it may.
struct Remains(&'static str, channel::Sender<(&'static str, Option<String>)>, channel::Receiver<()>);

impl Drop for Remains {
    fn drop(&mut self) {
        let _closed = self.2.recv_blocking();
        self.1.send_blocking((self.0, thread::current().name().map(str::to_owned))).unwrap();
    }
}

/// The story: a hundred instances with as many handles as there may be were ended, and somebody else's end had to wait until
/// all of these were dropped: seconds.
#[test]
fn subjects_take_turns_at_their_end_and_no_worker_drops_what_is_left() {
    let workers = Workers::start(1).unwrap();
    let (dropped, drops) = channel::bounded(50);
    let (may, may_drop) = channel::bounded::<()>(1);
    let (end, ends) = channel::bounded::<()>(1);
    let mut seats = Vec::new();
    let begun = Arc::new(AtomicUsize::new(0));
    for guest in 0..21 {
        let who = if guest < 20 { "many" } else { "one" };
        let seat = workers.seat(&Subject::new(who));
        let (remains, ends) = (Remains(who, dropped.clone(), may_drop.clone()), ends.clone());
        let begun = begun.clone();
        workers.spawn(&seat, |_| async move {
            let _remains = remains;
            begun.fetch_add(1, Ordering::Relaxed);
            let _closed = ends.recv().await;
        });
        seats.push(seat);
    }
    while begun.load(Ordering::Relaxed) < 21 {
        thread::yield_now();
    }
    assert!(!seats.iter().any(Seat::end), "they wait");
    end.close(); // each is woken, and with the ender now
    let remains = Remains("itself", dropped.clone(), may_drop.clone());
    spawn(&workers, |slice| async move {
        let _remains = remains;
        slice.leave().await;
    });
    may.close();
    let order: Vec<_> = (0..22).map(|_| drops.recv_blocking().unwrap()).collect();
    let at = order.iter().position(|(who, _)| *who == "one");
    assert!(at <= Some(2), "{order:?}");
    assert!(order.iter().all(|(_, thread)| thread.as_deref() == Some("ender")), "{order:?}");
}

impl Workers {
    /// Turns on the thread for long instructions, about.
    pub fn heavy_turns(&self) -> u64 {
        self.0.shared.lock().heavy.entered()
    }
}

/// The story: one instruction that filled 256 MiB took 64 ms of a worker, for which every batch waited.
#[test]
fn what_takes_long_keeps_no_worker_and_its_guest_comes_back_or_ends() {
    let workers = Workers::start(1).unwrap();
    let (begun, begins) = channel::bounded(1);
    let (over, ends) = channel::bounded::<()>(1);
    let (told, tells) = channel::bounded(1);
    let name = || thread::current().name().map(str::to_owned);
    spawn(&workers, |slice| async move {
        let _apart = slice.heavy().await;
        begun.send(name()).await.unwrap();
        let _closed = ends.recv_blocking();
        slice.end().await;
        told.send(name()).await.unwrap();
    });
    assert_eq!(begins.recv_blocking().unwrap().as_deref(), Some("heavy"));
    // The worker is free meanwhile, and whoever waits for the same thread can be ended.
    let seat = workers.seat(&Subject::everyone());
    let (dropped, drops) = channel::bounded(1);
    let (here, comes) = channel::bounded(1);
    let (decide, decided) = channel::bounded::<()>(1);
    workers.spawn(&seat, |slice| async move {
        here.send(()).await.unwrap();
        let decided = async { while decided.recv().await.is_ok() {} };
        or(decided, async { drop(slice.heavy().await) }).await;
        dropped.send(name()).await.unwrap();
    });
    comes.recv_blocking().unwrap();
    settle(&workers);
    decide.close();
    assert!(!seat.end(), "it waits");
    assert_eq!(drops.recv_blocking().unwrap().as_deref(), Some("ender"));
    over.close();
    assert_eq!(tells.recv_blocking().unwrap().as_deref(), Some("worker-0"));
    assert_eq!(workers.heavy_turns(), 2);
}

/// The story: the client of a guest that was ended inside of such an instruction heard of it when that was over, which
/// beside a busy model was a second later.
#[test]
fn an_end_in_the_middle_of_what_takes_long_is_told_by_whoever_decides() {
    let workers = Workers::start(1).unwrap();
    let (begun, begins) = channel::bounded(1);
    let (over, ends) = channel::bounded::<()>(1);
    let (told, tells) = channel::bounded(1);
    let seat = workers.seat(&Subject::everyone());
    workers.spawn(&seat, |slice| async move {
        for _ in 0..2 {
            let apart = slice.heavy().await;
            begun.send(()).await.unwrap();
            let _closed = ends.recv_blocking();
            told.send(apart.is_back()).await.unwrap();
        }
    });
    begins.recv_blocking().unwrap();
    over.send_blocking(()).unwrap();
    assert!(tells.recv_blocking().unwrap() && !seat.is_told());
    begins.recv_blocking().unwrap();
    assert!(seat.end() && seat.is_told());
    assert!(!seat.end(), "once");
    over.close();
    assert!(!tells.recv_blocking().unwrap(), "it is too late for more");
}

/// A thread that ends by a panic must not count as one that could still drop a guest.
#[test]
fn a_thread_that_panics_is_one_less() {
    let workers = Workers::start(1).unwrap();
    let shared = workers.0.shared.clone();
    let threads = || shared.lock().threads;
    let before = threads();
    let (panic, panics) = channel::bounded::<()>(1);
    let thread = thread::Builder::new().name("planted".into());
    shared.start_thread(thread, move |_| panics.recv_blocking().expect("a planted panic")).unwrap();
    assert_eq!(threads(), before + 1);
    panic.close();
    let since = Instant::now();
    while threads() > before {
        assert!(since.elapsed() < Duration::from_secs(60), "it counts for ever");
        thread::yield_now();
    }
}
