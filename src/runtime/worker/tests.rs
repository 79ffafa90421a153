//! The run queues from outside: who runs, who waits for whom, and that nobody starves.

use super::*;
use smol::channel;
use std::sync::atomic::AtomicUsize;

#[test]
fn a_guest_that_spins_does_not_starve_others_nor_they_it() {
    let workers = Workers::start(1).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let spins = Arc::new(AtomicUsize::new(0));
    workers.spawn(|slice| {
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
    workers.spawn(|_| async move {
        for _ in 0..10_000 {
            to_b.send(()).await.unwrap();
            from_b.recv().await.unwrap();
        }
        done.send(()).await.unwrap();
    });
    workers.spawn(|_| async move { while from_a.recv().await.is_ok() && to_a.send(()).await.is_ok() {} });
    smol::block_on(finished.recv()).unwrap();
    assert!(spins.load(Ordering::Relaxed) > 100);
    stop.store(true, Ordering::Relaxed);
}

#[test]
fn settling_waits_for_the_woken_and_not_for_the_spinning() {
    let workers = Workers::start(2).unwrap();
    workers.spawn(|slice| async move {
        loop {
            slice.end().await;
        }
    });
    for _ in 0..100 {
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..8 {
            let ran = ran.clone();
            workers.spawn(move |_| async move {
                ran.fetch_add(1, Ordering::Relaxed);
            });
        }
        workers.settle(Duration::from_secs(60));
        assert_eq!(ran.load(Ordering::Relaxed), 8);
    }
}

/// A guest may need several slices to ask for all that a batch is to do; a batch that does not wait gets half of it.
#[test]
fn settling_waits_for_a_burst_of_a_few_slices() {
    for size in [1, 2] {
        let workers = Workers::start(size).unwrap();
        let (question, asked) = channel::bounded::<()>(1);
        let rounds = Arc::new(AtomicUsize::new(0));
        workers.spawn(|slice| {
            let rounds = rounds.clone();
            async move {
                while asked.recv().await.is_ok() {
                    for _ in 1..BURST_SLICES {
                        slice.end().await;
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 1..=100 {
            workers.attend();
            question.send_blocking(()).unwrap();
            workers.settle(Duration::from_secs(60));
            assert_eq!(
                rounds.load(Ordering::Relaxed),
                round,
                "of {size} workers, each wake begins a new burst"
            );
        }
    }
}

#[test]
fn batches_and_guests_share_the_threads() {
    let workers = Workers::start(2).unwrap();
    let (sender, receiver) = channel::bounded::<()>(1);
    workers.spawn(|slice| async move {
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
        workers.spawn(|slice| {
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
        workers.spawn(|_| async move {
            while let Ok(round) = asked.recv().await {
                answer.send((round, thread::current().id() == here)).await.unwrap();
            }
        });
        let (mut shares, mut by_stand_in) = (0, 0);
        for round in 0..300 {
            workers.attend();
            let counted = AtomicUsize::new(0);
            crew.run(&|_rank| {
                counted.fetch_add(1, Ordering::Relaxed);
                crew.barrier();
            });
            shares += counted.into_inner();
            question.send_blocking(round).unwrap();
            workers.settle(Duration::from_secs(60));
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

#[test]
fn dropping_the_pool_drops_its_guests() {
    let workers = Workers::start(1).unwrap();
    let alive = Arc::new(());
    let guest = alive.clone();
    workers.spawn(|slice| async move {
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
