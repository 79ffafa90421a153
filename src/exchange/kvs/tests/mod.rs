//! What callers of the key-value pairs may rely on, with a disk that does its work and with one that does not.

mod crash;
mod drive;

use super::*;
use crate::model::toy::Random;
use drive::Drive;
use smol::future::{block_on, poll_once};
use std::cell::RefCell;
use std::path::PathBuf;
use std::pin::Pin;

fn start(drive: &Drive) -> Kvs {
    Kvs::start(Path::new("drive"), drive.open()).unwrap()
}

fn set(kvs: &Kvs, subject: &Subject, key: &str, value: &str) -> Result<(), Refusal> {
    block_on(kvs.set(subject, key, value.to_owned()))
}

/// Sends these writes in this order and waits for none.
fn send<'a, T>(
    writes: impl IntoIterator<Item = impl Future<Output = T> + 'a>,
) -> Vec<Pin<Box<dyn Future<Output = T> + 'a>>> {
    let mut sent: Vec<Pin<Box<dyn Future<Output = T> + 'a>>> = Vec::new();
    for write in writes {
        let mut write = Box::pin(write);
        assert!(block_on(poll_once(&mut write)).is_none(), "it is not durable yet");
        sent.push(write);
    }
    sent
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("tartlet-kvs-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn pairs_are_per_subject_and_keys_come_sorted() {
    let kvs = Kvs::in_memory();
    let (a, b) = (Subject::new("a"), Subject::new("b"));
    for key in ["z", "", "m"] {
        set(&kvs, &a, key, &format!("value of {key}")).unwrap();
    }
    assert_eq!(kvs.keys(&a).iter().map(|k| &**k).collect::<Vec<_>>(), ["", "m", "z"]);
    assert_eq!(kvs.get(&a, "m").unwrap().as_deref(), Some("value of m"));
    assert!(kvs.exists(&a, "") && !kvs.exists(&b, "m") && kvs.keys(&b).is_empty());
    assert_eq!(block_on(kvs.delete(&b, "m")), Ok(false));
    assert_eq!(block_on(kvs.delete(&a, "m")), Ok(true));
    assert_eq!(kvs.get(&a, "m"), Ok(None));
}

#[test]
fn quotas_hold_and_a_refused_write_changes_nothing() {
    let kvs = Kvs::in_memory();
    let (a, b) = (Subject::new("a"), Subject::new("b"));
    let long = "k".repeat(limits::KVS_KEY_BYTES + 1);
    assert_eq!(set(&kvs, &a, &long, ""), Err(Refusal::KeyTooLong(long.len())));
    assert_eq!(block_on(kvs.delete(&a, &long)), Ok(false));
    let value = "v".repeat(limits::KVS_VALUE_BYTES);
    assert_eq!(set(&kvs, &a, "k", &format!("{value}v")), Err(Refusal::ValueTooLong(value.len() + 1)));
    let mut stored = 0;
    while set(&kvs, &a, &stored.to_string(), &value).is_ok() {
        stored += 1;
    }
    assert_eq!(set(&kvs, &a, "last", &value), Err(Refusal::SubjectFull));
    assert_eq!(kvs.keys(&a).len(), stored);
    assert_eq!(
        kvs.get(&a, "0").unwrap().as_deref(),
        Some(&*value),
        "a value of the longest kind is read whole"
    );
    set(&kvs, &a, "0", &value).expect("overwriting with as much always fits");
    set(&kvs, &b, "0", &value).expect("another subject has its own quota");
    for key in kvs.keys(&a) {
        block_on(kvs.delete(&a, &key)).unwrap();
    }
    block_on(kvs.delete(&b, "0")).unwrap();
    assert_eq!(kvs.shared.index().bytes(), 0);
}

#[test]
fn pairs_survive_a_restart_and_a_second_server_is_refused() {
    let dir = folder("restart");
    let (a, state) = (Subject::new("a"), dir.join("made/on the way"));
    let kvs = Kvs::open(&state).unwrap();
    set(&kvs, &a, "k", "wert äöü").unwrap();
    set(&kvs, &a, "gone", "").unwrap();
    block_on(kvs.delete(&a, "gone")).unwrap();
    let refused = Kvs::open(&state).err().expect("it is taken").to_string();
    assert!(refused.contains("kvs.redb") && refused.contains("another server"), "{refused}");
    kvs.close();
    assert_eq!(set(&kvs, &a, "k", "late"), Err(Refusal::Closed));
    assert!(matches!(kvs.get(&a, "k"), Err(Refusal::NotRead(_))));

    std::fs::write(state.join("kvs.redb.unfinished"), b"half").unwrap();
    let kvs = Kvs::open(&state).unwrap();
    assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some("wert äöü"));
    assert_eq!(kvs.keys(&a).len(), 1);
    drop(kvs);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn many_writers_share_one_commit() {
    const WRITERS: usize = 100;
    let drive = Drive::default();
    let kvs = start(&drive);
    drive.hold(true);
    let subjects: Vec<Subject> = (0..WRITERS).map(|i| Subject::new(&(i % 7).to_string())).collect();
    let keys: Vec<String> = (0..WRITERS).map(|i| i.to_string()).collect();
    let first = send([kvs.set(&subjects[0], "first", "1".into())]);
    drive.wait_for_sync();
    let others = send((0..WRITERS).map(|i| kvs.set(&subjects[i], &keys[i], "value".into())));
    drive.hold(false);
    for write in first.into_iter().chain(others) {
        block_on(write).unwrap();
    }
    assert_eq!(kvs.commits(), 2, "{} writes: one, and all that waited meanwhile", WRITERS + 1);
    for i in 0..WRITERS {
        assert_eq!(kvs.get(&subjects[i], &keys[i]).unwrap().as_deref(), Some("value"));
    }
}

/// The story: many instances of one subject overwrote long values without pause, four to a transaction, and whoever wanted to
/// keep a word waited for all of them.
#[test]
fn who_floods_the_disk_keeps_its_own_waiting_and_not_others() {
    let (drive, [a, b]) = (Drive::default(), ["a", "b"].map(Subject::new));
    let kvs = start(&drive);
    let value = "v".repeat(limits::KVS_VALUE_BYTES);
    let (answered, executor) = (RefCell::new(Vec::new()), smol::LocalExecutor::new());
    let set = |subject, key, value: &str, name| {
        let (value, kvs, answered) = (value.to_owned(), &kvs, &answered);
        executor.spawn(async move {
            kvs.set(subject, key, value).await.unwrap();
            answered.borrow_mut().push(name); // whoever is woken first is here first
        })
    };
    drive.hold(true);
    let mut sent = vec![set(&b, "first", "1", "first")];
    assert!(executor.try_tick());
    drive.wait_for_sync();
    sent.extend((0..limits::KVS_WRITES_PER_SUBJECT).map(|_| set(&a, "k", &value, "flood")));
    sent.push(set(&a, "k", "last", "beyond"));
    sent.push(set(&b, "word", "w", "word"));
    while executor.try_tick() {}
    drive.hold(false);
    while !sent.iter().all(|write| write.is_finished()) {
        block_on(executor.tick());
    }
    drop((sent, executor));
    let answered = answered.take();
    assert_eq!(answered[..3], ["first", "flood", "word"], "of {}", answered.len());
    assert!(kvs.commits() >= 16, "they do not fit a few");
    assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some("last"), "who has all its places waits for one");
}

/// The thread asks after each transaction, once its write is answered, and a rest loses none.
#[test]
fn a_thread_that_rests_keeps_all_the_same() {
    let kvs = Kvs::in_memory();
    let asked = Arc::new(AtomicU64::new(0));
    let counts = asked.clone();
    kvs.yield_while(move || counts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2));
    let a = Subject::new("a");
    for round in 0..40 {
        set(&kvs, &a, &(round % 7).to_string(), &round.to_string()).unwrap();
    }
    let last = (0..7).map(|key| kvs.get(&a, &key.to_string()).unwrap().unwrap());
    assert_eq!(last.collect::<Vec<_>>(), ["35", "36", "37", "38", "39", "33", "34"]);
    drop(kvs);
    assert_eq!(asked.load(Ordering::Relaxed), 40);
}

/// The story: a subject's next writes waited for a rest of 50 ms behind those that had been answered before it.
#[test]
fn a_place_is_given_back_with_the_answer_and_not_after_the_rest() {
    let (kvs, a) = (Kvs::in_memory(), Subject::new("a"));
    let (places, own) = (kvs.places.clone(), a.clone());
    let (tell, free) = smol::channel::unbounded();
    kvs.yield_while(move || {
        let taken = (0..limits::KVS_WRITES_PER_SUBJECT)
            .map_while(|_| block_on(poll_once(Box::pin(places.take(&own)))));
        let _ = tell.try_send(taken.collect::<Vec<_>>().len());
        false
    });
    set(&kvs, &a, "k", "v").unwrap();
    assert_eq!(free.recv_blocking(), Ok(limits::KVS_WRITES_PER_SUBJECT));
}

#[test]
fn a_write_is_seen_when_it_is_durable_and_not_before() {
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let kvs = start(&drive);
    set(&kvs, &a, "k", "old").unwrap();
    drive.hold(true);
    let sent = send([kvs.set(&a, "k", "new".into()), kvs.set(&a, "l", "new".into())]);
    drive.wait_for_sync();
    assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some("old"), "and the read does not wait for the sync");
    assert!(!kvs.exists(&a, "l") && kvs.keys(&a).len() == 1);
    drive.hold(false);
    for write in sent {
        block_on(write).unwrap();
    }
    assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some("new"));
    assert_eq!(kvs.keys(&a).len(), 2);
}

#[test]
fn writes_are_made_in_the_order_of_the_calls_though_their_guest_has_ended() {
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let kvs = start(&drive);
    drive.hold(true);
    drop(send((0..100).map(|i| kvs.set(&a, "k", i.to_string()))));
    let gone = send([kvs.delete(&a, "k")]);
    let last = send([kvs.set(&a, "l", "last".into())]);
    drive.hold(false);
    for write in last {
        block_on(write).unwrap();
    }
    for answer in gone {
        assert_eq!(block_on(answer), Ok(true));
    }
    assert_eq!(kvs.keys(&a).iter().map(|k| &**k).collect::<Vec<_>>(), ["l"]);
}

/// What the quotas do not allow within a batch is refused alone.
#[test]
fn a_batch_counts_its_own_writes() {
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let kvs = start(&drive);
    let value = "v".repeat(limits::KVS_VALUE_BYTES);
    let fit = limits::KVS_BYTES_PER_SUBJECT / (limits::KVS_VALUE_BYTES + limits::KVS_PAIR_OVERHEAD_BYTES + 2);
    let keys: Vec<String> = (0..fit + 3).map(|i| format!("{i:02}")).collect();
    drive.hold(true);
    let sent = send(keys.iter().map(|key| kvs.set(&a, key, value.clone())));
    drive.hold(false);
    let answers: Vec<_> = sent.into_iter().map(block_on).collect();
    assert!(answers[..fit].iter().all(Result::is_ok), "{answers:?}");
    assert!(answers[fit..].iter().all(|answer| *answer == Err(Refusal::SubjectFull)), "{answers:?}");
    assert_eq!(kvs.keys(&a).len(), fit);
}

#[test]
fn on_a_full_disk_the_old_value_stands_until_there_is_room_again() {
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let kvs = start(&drive);
    set(&kvs, &a, "k", "old").unwrap();
    drive.set_full(true);
    let large = "x".repeat(limits::KVS_VALUE_BYTES);
    let refused = set(&kvs, &a, "k", &large).unwrap_err();
    assert!(matches!(&refused, Refusal::NotKept(_)), "{refused}");
    assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some("old"), "it is read though the disk is full");
    drive.set_full(false);
    set(&kvs, &a, "k", &large).unwrap();
    assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some(&*large));
    drop(kvs);
    assert_eq!(start(&drive).get(&a, "k").unwrap().as_deref(), Some(&*large));
}

/// The header that names the new pairs is written before the sync that fails: what the file then says is the new value.
#[test]
fn after_a_sync_that_failed_the_old_values_are_put_back() {
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let kvs = start(&drive);
    set(&kvs, &a, "k", "old").unwrap();
    drive.hold(true);
    let first = send([kvs.set(&a, "first", "1".into())]);
    drive.wait_for_sync();
    drive.fail_next_sync();
    let failing = send([
        kvs.set(&a, "k", "new".into()),
        kvs.set(&a, "k", "newer".into()),
        kvs.set(&a, "l", "new".into()),
    ]);
    drive.hold(false);
    for write in first {
        block_on(write).unwrap();
    }
    for write in failing {
        assert!(matches!(block_on(write), Err(Refusal::NotKept(_))));
    }
    let check = |kvs: &Kvs| {
        assert_eq!(kvs.get(&a, "k").unwrap().as_deref(), Some("old"));
        assert_eq!(kvs.get(&a, "l"), Ok(None));
    };
    check(&kvs);
    set(&kvs, &a, "m", "more").unwrap();
    check(&kvs);
    drop(kvs);
    check(&start(&drive));
}

#[test]
fn a_read_that_failed_has_the_file_opened_afresh() {
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let value = "x".repeat(limits::KVS_VALUE_BYTES);
    let kvs = start(&drive);
    for i in 0..2 * limits::KVS_CACHE_BYTES / limits::KVS_VALUE_BYTES {
        set(&kvs, &a, &i.to_string(), &value).unwrap(); // more than is cached
    }
    drop(kvs);
    let kvs = start(&drive);
    drive.fail_next_read();
    let failed = kvs.keys(&a).iter().find_map(|key| kvs.get(&a, key).err()).expect("one is not in memory");
    assert!(matches!(failed, Refusal::NotRead(_)), "{failed}");
    set(&kvs, &a, "k", "v").unwrap();
    for key in kvs.keys(&a) {
        assert!(kvs.get(&a, &key).unwrap().is_some(), "{key}");
    }
}

#[test]
fn what_is_no_database_is_refused_with_the_file_and_the_mend() {
    let dir = folder("damaged");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("kvs.redb"), b"this is no database").unwrap();
    let refused = Kvs::open(&dir).err().expect("no database").to_string();
    assert!(refused.contains("kvs.redb") && refused.contains("move it away"), "{refused}");
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, b"no folder").unwrap();
    let refused = Kvs::open(&dir).err().expect("no folder").to_string();
    assert!(refused.contains("kvs.redb") && refused.contains("--state"), "{refused}");
    std::fs::remove_file(&dir).unwrap();
}

/// A damaged file is refused, or read as it is: never a panic, never another value.
#[test]
fn damage_is_a_sentence_or_does_no_harm() {
    const SEED: u64 = 7;
    println!("seed {SEED}");
    let (drive, a) = (Drive::default(), Subject::new("a"));
    let kvs = start(&drive);
    for i in 0..40 {
        set(&kvs, &a, &i.to_string(), &i.to_string().repeat(100 * i)).unwrap();
    }
    drop(kvs);
    let (whole, mut random) = (drive.bytes(), Random::new(SEED));
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut refused = 0;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        match random.below(3) {
            0 => bytes.truncate(random.below(used)),
            1 => bytes[random.below(used)] ^= 1 << random.below(8),
            _ => {
                let at = random.below(used);
                let end = (at + random.below(4096)).min(used);
                bytes[at..end].fill_with(|| random.next() as u8);
            }
        }
        if bytes.is_empty() {
            continue; // an empty file is a new database
        }
        match Kvs::start(Path::new("drive"), Drive::holding(bytes).open()) {
            Err(error) => {
                assert!(matches!(error, KvsError::Damaged { .. }), "{error}");
                refused += 1;
            }
            Ok(kvs) => {
                for key in kvs.keys(&a) {
                    let value = kvs.get(&a, &key).unwrap().expect("it is listed");
                    assert_eq!(value, key.repeat(100 * key.parse::<usize>().unwrap()), "{key}");
                }
            }
        }
    }
    assert!(refused > 0, "no damage was noticed");
}
