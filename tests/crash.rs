//! What was acknowledged is there after the server was killed at whatever it did: key-value pairs, seen from outside.
//!
//! `inferlets/ledger` writes; here stands what its writes must have left.

#[path = "support/gguf.rs"]
#[allow(dead_code)] // of which only the random numbers are used
mod gguf;
mod support;

use gguf::Random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::client::{Client, Event};
use support::{PATIENCE, Server, small_model, tartlet_output};

/// As in the ledger.
const KEYS: u64 = 11;
/// Ledgers that are written side by side, so that commits have several writes.
const LEDGERS: [&str; 4] = ["a", "b", "c", "d"];
const KILLS: usize = 20;
/// A kill comes so many milliseconds after the first write was acknowledged, at most.
const KILL_WITHIN_MS: usize = 150;
/// Writes that can have been acknowledged to the guest, at most, while word of them was on its way to us.
const UNHEARD: u64 = 4096;

/// As in the ledger.
fn value(number: u64) -> String {
    format!("{number},").repeat((number * 37 % 600) as usize + 1)
}

/// The numbers of the pairs that the writes before `end` leave, by key.
fn numbers_after(end: u64) -> BTreeMap<u64, u64> {
    let last = |key| (end.saturating_sub(KEYS)..end).find(|number| number % KEYS == key);
    (0..KEYS).filter_map(|key| Some((key, last(key)?))).filter(|(_, number)| number % 5 != 4).collect()
}

/// One ledger: its writes up to `acknowledged` must be there, and none beyond `acknowledged` + [`UNHEARD`].
#[derive(Clone, Copy, Default)]
struct Ledger {
    acknowledged: u64,
}

impl Ledger {
    /// Checks what is there, and takes that as acknowledged.
    async fn check(&mut self, name: &str, client: &mut Client) {
        let ended = client.run("ledger", &["read", name]).await;
        assert_eq!(ended.event, 1, "{ended:?}");
        let mut found = BTreeMap::new();
        for pair in &ended.messages {
            let (key, text) = pair.split_once(' ').expect("KEY VALUE");
            let key = key.strip_prefix(name).and_then(|key| key.strip_prefix('/')).expect("NAME/KEY");
            let number: u64 =
                text.split(',').next().and_then(|number| number.parse().ok()).expect("a number");
            assert_eq!(text, value(number), "{name}/{key} is torn");
            found.insert(key.parse::<u64>().expect("a number"), number);
        }
        let writes = self.acknowledged..=self.acknowledged + UNHEARD;
        let end = writes.clone().find(|end| numbers_after(*end) == found);
        self.acknowledged = end.unwrap_or_else(|| {
            panic!(
                "ledger {name}: no number of writes in {writes:?} leaves this: {found:?}; {} would leave {:?}",
                self.acknowledged,
                numbers_after(self.acknowledged)
            )
        });
    }
}

#[test]
fn every_acknowledged_pair_is_there_after_each_of_many_kills() {
    const SEED: u64 = 20;
    println!("seed {SEED}");
    let mut random = Random::new(SEED);
    let mut server = Server::small();
    let mut ledgers = [Ledger::default(); LEDGERS.len()];
    for kill in 0..KILLS {
        let pause = Duration::from_millis(random.below(KILL_WITHIN_MS) as u64);
        smol::block_on(async {
            let mut client = Client::connect(&server).await;
            let mut instances = Vec::new();
            for (ledger, name) in ledgers.iter_mut().zip(LEDGERS) {
                ledger.check(name, &mut client).await;
                let from = ledger.acknowledged.to_string();
                instances.push(client.launch("ledger", &["write", name, &from]).await);
            }
            let mut deadline = None;
            let mut killed = false;
            loop {
                let left = match deadline {
                    None => PATIENCE,
                    Some(_) if killed => PATIENCE, // what is on its way to us was said before
                    Some(deadline) => Instant::saturating_duration_since(&deadline, Instant::now()),
                };
                match client.frame_within(left).await {
                    Some(frame) => {
                        assert_eq!(
                            (frame.kind.as_str(), frame.event),
                            ("instance_event", Some(0)),
                            "{frame:?}"
                        );
                        let of = instances.iter().position(|id| frame.instance_id.as_ref() == Some(id));
                        let number: u64 =
                            frame.message.as_deref().expect("a message").parse().expect("a number");
                        let ledger = &mut ledgers[of.expect("one of ours")];
                        assert_eq!(number, ledger.acknowledged, "writes are acknowledged in order");
                        ledger.acknowledged += 1;
                        deadline.get_or_insert_with(|| Instant::now() + pause);
                    }
                    None if killed => break,
                    None => {
                        assert!(deadline.is_some(), "no write was acknowledged in {PATIENCE:?}");
                        server.kill();
                        killed = true;
                    }
                }
            }
        });
        let counts = ledgers.map(|ledger| ledger.acknowledged);
        println!("kill {kill} after {pause:?}: {counts:?} writes acknowledged");
        server = server.start_again(&["--no-auth"]);
    }
    server = server.restart(&["--no-auth"]);
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (ledger, name) in ledgers.iter_mut().zip(LEDGERS) {
            ledger.check(name, &mut client).await;
        }
        // And it goes on as if nothing had been.
        let (from, to) = (ledgers[0].acknowledged, ledgers[0].acknowledged + 3);
        let instance =
            client.launch("ledger", &["write", LEDGERS[0], &from.to_string(), &to.to_string()]).await;
        for number in from..to {
            assert_eq!(client.event(&instance).await, Event::Message(number.to_string()));
        }
        assert_eq!(client.end(&instance).await.event, 1);
    });
    server.assert_alive();
}

/// Starts a server that must be refused because of its state folder: what it says.
fn refused(state: &std::path::Path) -> String {
    let (model, state) = (small_model(), state.to_str().expect("UTF-8"));
    let model = model.to_str().expect("UTF-8");
    let serve = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--model", model, "--state", state];
    let output = tartlet_output(&serve);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(said.lines().filter(|line| line.contains("kvs.redb")).count(), 1, "{said}");
    said
}

#[test]
fn a_second_server_on_one_state_folder_is_refused_by_a_sentence() {
    let mut server = Server::small();
    let said = refused(&server.folder.path("state"));
    assert!(said.contains("another server") && said.contains("--state"), "{said}");
    server.assert_alive();
}

#[test]
fn a_file_that_is_no_database_is_refused_by_a_sentence() {
    let folder = support::Folder::new();
    let state = folder.path("state");
    std::fs::create_dir_all(&state).expect("a folder");
    std::fs::write(state.join("kvs.redb"), b"this is no database").expect("a file");
    let said = refused(&state);
    assert!(said.contains("move it away"), "{said}");
}
