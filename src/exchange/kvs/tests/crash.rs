//! The power goes at any write and any sync, again and again: what was acknowledged is there, whole and in order.

use super::*;
use std::collections::BTreeMap;

type Pairs = BTreeMap<String, String>;

/// A write: key, and its value or that it goes.
type Step = (String, Option<String>);

fn steps(count: usize, random: &mut Random) -> Vec<Step> {
    let step = |number: usize| {
        let key = format!("key {}", random.below(12));
        let value = format!("{number} ").repeat(random.below(3_000));
        (key, (random.below(5) > 0).then_some(value))
    };
    (0..count).map(step).collect()
}

/// What there is after these writes.
fn pairs_after(steps: &[Step]) -> Pairs {
    let mut pairs = Pairs::new();
    for (key, value) in steps {
        match value {
            Some(value) => drop(pairs.insert(key.clone(), value.clone())),
            None => drop(pairs.remove(key)),
        }
    }
    pairs
}

fn found(kvs: &Kvs, subject: &Subject) -> Result<Pairs, Refusal> {
    let mut pairs = Pairs::new();
    for key in kvs.keys(subject) {
        let value = kvs.get(subject, &key)?.expect("a key that is listed has a value");
        pairs.insert(key.to_string(), value);
    }
    Ok(pairs)
}

/// Makes the writes from `from` on, a few at a time, until one is refused: how many were acknowledged, how many sent.
fn write(kvs: &Kvs, subject: &Subject, steps: &[Step], from: usize, random: &mut Random) -> (usize, usize) {
    let mut done = from;
    while done < steps.len() {
        let group = &steps[done..steps.len().min(done + 1 + random.below(5))];
        let mut sent: Vec<_> = group
            .iter()
            .map(|(key, value)| {
                Box::pin(async move {
                    match value {
                        Some(value) => kvs.set(subject, key, value.clone()).await,
                        None => kvs.delete(subject, key).await.map(drop),
                    }
                })
            })
            .collect();
        let early: Vec<_> = sent.iter_mut().map(|write| block_on(poll_once(write))).collect();
        let answers: Vec<_> = sent
            .into_iter()
            .zip(early)
            .map(|(write, early)| early.unwrap_or_else(|| block_on(write)))
            .collect();
        let kept = answers.iter().take_while(|answer| answer.is_ok()).count();
        for answer in &answers[kept..] {
            assert!(matches!(answer, Err(Refusal::NotKept(_))), "{answer:?}");
        }
        if kept < answers.len() {
            return (done + kept, done + answers.len());
        }
        done += kept;
    }
    (done, done)
}

#[test]
fn every_acknowledged_write_survives_power_cuts() {
    let (mut cuts, mut written) = (0, 0);
    for seed in 0..120 {
        let (mut random, subject) = (Random::new(seed), Subject::new("a"));
        let steps = steps(150, &mut random);
        let mut drive = Drive::default();
        drop(start(&drive)); // a file is made whole before it takes its place
        // The state is that after some write of these.
        let (mut acknowledged, mut sent) = (0, 0);
        for life in 0..40 {
            drive = drive.after_power_cut(&mut random);
            let last = life == 39;
            if !last {
                drive.stop_at(1 + random.below(if life % 4 == 0 { 20 } else { 90 }) as u64);
            }
            let kvs = match Kvs::start(Path::new("drive"), drive.open()) {
                Ok(kvs) => kvs,
                Err(KvsError::Unusable { what, .. }) if !last && what.contains("the power is gone") => {
                    continue;
                }
                Err(error) => panic!("seed {seed}, life {life}: {error}"),
            };
            let Ok(pairs) = found(&kvs, &subject) else {
                assert!(!last, "seed {seed}: not readable");
                continue; // the power went as soon as it was open
            };
            let at = (acknowledged..=sent).find(|at| pairs_after(&steps[..*at]) == pairs);
            let Some(at) = at else {
                panic!(
                    "seed {seed}, life {life}: not what {acknowledged} to {sent} writes leave: {:?}",
                    pairs.keys()
                );
            };
            (acknowledged, sent) = write(&kvs, &subject, &steps, at, &mut random);
            cuts += 1;
        }
        written += acknowledged;
    }
    println!("{cuts} power cuts, {written} writes acknowledged");
    assert!(written > 1_000, "the writes are under way when the power goes: {written}");
}
