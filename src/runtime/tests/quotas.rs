//! Quotas of whole guests: what ends them, what makes them wait, and what a subject's instances have together.

use super::*;
use crate::limits;

#[test]
fn quotas_end_what_runs_away() {
    let tight = Quotas::default()
        .with(Name::MemoryBytes, 4 << 20)
        .with(Name::TableElements, 1000)
        .with(Name::Fuel, 3_000_000);
    let bench = Bench::new(1, tight);
    let quota = |text: &str| Ending::OutOfResources(format!("Quota exceeded: {text}"));
    let body = r#"(table $t 1 funcref) (func (export "run") (result i32)
        (loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1)))) (i32.const 16))"#;
    assert_eq!(bench.ending(&component(&[], ALLOCATOR, body)), quota("table elements, limit 1000"));
    let grows = simple(&[], "(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))");
    assert_eq!(bench.ending(&grows), quota("memory bytes, limit 4194304"));
    let huge = component(
        &[],
        ALLOCATOR,
        r#"(table 10000 funcref) (func (export "run") (result i32) (i32.const 16))"#,
    );
    assert_eq!(bench.ending(&huge), quota("table elements, limit 1000"));
    assert_eq!(bench.ending(&simple(&[], "(loop (br 0))")), quota("fuel, limit 3000000"));
    // What is left may be too little for the next stretch of code, and is then as good as nothing.
    let strides = "(local $i i64) (loop (local.set $i (i64.mul (i64.add (local.get $i) (i64.const 1)) (i64.const 7))) (br 0))";
    assert_eq!(bench.ending(&simple(&[], strides)), quota("fuel, limit 3000000"));
    // Host work is paid for too: this one does little else.
    let talks = simple(&[SET_RETURN], "(loop (call $set-return (i32.const 65536) (i32.const 65536)) (br 0))");
    assert_eq!(bench.ending(&talks), quota("fuel, limit 3000000"));

    let short = Quotas::default().with(Name::WallClock, 0);
    assert_eq!(Bench::new(1, short).ending(&waits()), quota("wall clock seconds, limit 0"));
}

#[test]
fn instances_are_bounded_by_subject_and_in_all_and_an_account_goes_with_the_last() {
    let bench = bench();
    let launch_of = |subject: &str, quotas: Quotas| bench.prepare(subject, quotas);
    let quotas = Quotas::default();
    let (first, half) = (launch_of("somebody", quotas).unwrap(), limits::INSTANCES_PER_SUBJECT);
    let full = |quotas: Quotas, name| Some(LaunchRefusal::Full(quotas.over(name)));
    // A token may let its bearer have fewer, whoever launched those that are there.
    let one = quotas.with(Name::SubjectInstances, 1);
    assert_eq!(launch_of("somebody", one).err(), full(one, Name::SubjectInstances));
    assert!(launch_of("somebody else", one).is_ok());
    let all: Vec<_> = (1..half).map(|_| launch_of("somebody", quotas).unwrap()).collect();
    assert_eq!(launch_of("somebody", quotas).err(), full(quotas, Name::SubjectInstances));
    let others = ["b", "c"]
        .map(|subject| -> Vec<_> { (0..half / 2).map(|_| launch_of(subject, quotas).unwrap()).collect() });
    assert_eq!(launch_of("d", quotas).err(), full(quotas, Name::TotalInstances));
    drop(first);
    assert!(launch_of("d", quotas).is_ok());
    drop(others);
    drop(all);
    let [(one, _), (two, _)] = [0, 1].map(|_| launch_of("somebody", quotas).unwrap());
    let account = Arc::downgrade(&one.entry.account);
    assert!(Arc::ptr_eq(&one.entry.account, &two.entry.account));
    drop(one);
    assert!(account.upgrade().is_some());
    drop(two);
    drop(launch_of("e", quotas).unwrap()); // only then is it looked for
    assert!(account.upgrade().is_none(), "nobody of the subject is left");
    drop(bench.house);
}

/// A rate ends nobody: who has used a second's share up goes on in the next, and the only thread is others' meanwhile.
#[test]
fn a_guest_beyond_its_rate_waits() {
    let spin = simple(&[], "(loop (br 0))");
    let total = |name, limit| Ending::quota(Quotas::default().with(name, limit).over(name));
    let own = Quotas::default().with(Name::FuelPerSecond, 1_000_000).with(Name::Fuel, 2_500_000);
    let bench = Bench::new(1, own);
    let started = std::time::Instant::now();
    let (_, slow) = bench.launch(&spin, &[]);
    assert_eq!(bench.ending(&simple(&[], "")), Ending::Completed("".into()), "the thread is free");
    assert_eq!(ending(&slow), total(Name::Fuel, 2_500_000));
    // Each second pays for one of the 2.5 million, whatever the machine: two seconds begin at least.
    assert!(started.elapsed() > Duration::from_secs(1));

    let pair = Quotas::default().with(Name::SubjectFuelPerSecond, 1_000_000).with(Name::Fuel, 1_200_000);
    let bench = Bench::new(1, pair);
    let started = std::time::Instant::now();
    let spinning = [0, 1].map(|_| bench.launch(&spin, &[]).1);
    for events in &spinning {
        assert_eq!(ending(events), total(Name::Fuel, 1_200_000));
    }
    assert!(started.elapsed() > Duration::from_secs(1));

    // What has been used by those that live counts for each; what has ended counts no more.
    let bench = Bench::new(1, Quotas::default().with(Name::SubjectFuel, 3_000_000));
    for _ in 0..2 {
        assert_eq!(bench.ending(&spin), total(Name::SubjectFuel, 3_000_000));
    }
}
