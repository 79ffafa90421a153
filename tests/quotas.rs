//! Each quota from outside: a token that lowers it, a program that goes over it, and the words of event 5; while a program
//! of another subject goes on as if nothing were.
//!
//! The model is no matter here: what is asked is who may use how much.

mod support;

use smol::future::zip;
use std::cell::RefCell;
use support::client::{Client, Ended, Event};
use support::frame::Outgoing;
use support::{Server, guest_bytes, mint, small_model};

/// A server whose programs have little of what they have together.
fn server() -> Server {
    Server::guarded_with(
        small_model(),
        "[engine]\nkv_tokens = 8192\n[quotas]\ntotal_unread_bytes = 2000000\nlog_bytes = 5000\n",
    )
}

/// A connection of this subject, whose token lowers these quotas.
async fn client(server: &Server, subject: &str, quotas: &[&str]) -> Client {
    let flags: Vec<&str> = quotas.iter().flat_map(|quota| ["--quota", quota]).collect();
    Client::connect_to(&server.url, Some(&mint(&server.key(), subject, &flags))).await
}

/// Talks to an echo of another subject before and after.
struct Neighbour {
    client: Client,
    echo: String,
    said: usize,
}

impl Neighbour {
    async fn of(server: &Server) -> Neighbour {
        let mut client = client(server, "neighbour", &[]).await;
        let echo = client.launch("echo", &["--messages", "forever"]).await;
        Neighbour { client, echo, said: 0 }
    }

    async fn answers(&mut self) {
        self.said += 1;
        let word = self.said.to_string();
        self.client.signal(&self.echo, &word).await;
        assert_eq!(self.client.event(&self.echo).await, Event::Message(word));
    }
}

fn over(ended: &Ended, what: &str) {
    assert_eq!((ended.event, &*ended.text), (5, &*format!("Quota exceeded: {what}")));
}

#[test]
fn a_program_over_a_quota_ends_with_its_name_and_value() {
    let mut server = server();
    smol::block_on(async {
        let mut neighbour = Neighbour::of(&server).await;
        for (quota, mode, what) in [
            ("fuel=50000000", "spin", "fuel, limit 50000000"),
            ("memory_bytes=4194304", "allocate", "memory bytes, limit 4194304"),
            ("table_elements=10", "return", "table elements, limit 10"),
            ("wall_clock_seconds=1", "sleep-long", "wall clock seconds, limit 1"),
            ("wall_clock_seconds=1", "spin", "wall clock seconds, limit 1"),
            ("kv_pages=100", "page-hoard", "KV pages, limit 100"),
            ("log_bytes=1000", "log", "log bytes, limit 1000"),
            ("handles=50", "handle-hoard", "handles, limit 50"),
            ("held_bytes=2500000", "blob-hoard", "bytes held by the host, limit 2500000"),
            ("subject_fuel=50000000", "spin", "fuel of one subject, limit 50000000"),
            ("subject_memory_bytes=3000000", "allocate", "memory bytes of one subject, limit 3000000"),
            ("subject_memory_bytes=3000000", "blob-hoard", "memory bytes of one subject, limit 3000000"),
            ("subject_kv_pages=100", "page-hoard", "KV pages of one subject, limit 100"),
            ("subject_log_bytes=1000", "log", "log bytes of one subject, limit 1000"),
            // A token raises nothing.
            ("log_bytes=1000000", "log", "log bytes, limit 5000"),
        ] {
            println!("{quota}: {mode}");
            let mut client = client(&server, quota, &[quota]).await;
            over(&client.run("rogue", &[mode]).await, what);
            neighbour.answers().await;
        }
    });
    server.assert_alive();
}

#[test]
fn messages_and_blobs_that_nobody_reads_end_who_does_not_read_them() {
    let mut server = server();
    smol::block_on(async {
        let mut neighbour = Neighbour::of(&server).await;
        let long = "x".repeat(300_000);
        for (quota, texts, blobs, what) in [
            ("unread_messages=3", [&*long; 4].as_slice(), [].as_slice(), "messages not read, limit 3"),
            ("unread_message_bytes=700000", &[&*long; 3], &[], "bytes of messages not read, limit 700000"),
            ("unread_blobs=2", &[], &[1; 3], "blobs not read, limit 2"),
            ("unread_blob_bytes=700000", &[], &[300_000; 3], "bytes of blobs not read, limit 700000"),
            (
                "subject_unread_bytes=700000",
                &[&*long; 2],
                &[300_000],
                "bytes not read by one subject, limit 700000",
            ),
            ("fuel=4000000000000", &[&*long; 4], &[900_000], "bytes not read by all together, limit 2000000"),
        ] {
            println!("{quota}");
            let mut client = client(&server, quota, &[quota]).await;
            let idle = client.launch("rogue", &["sleep-long"]).await;
            for text in texts {
                client.signal(&idle, text).await;
            }
            for bytes in blobs {
                let answer = client.upload_blob(&idle, &vec![7; *bytes]).await;
                println!("{answer:?}"); // it may have ended by now
            }
            over(&client.end(&idle).await, what);
            neighbour.answers().await;
        }
    });
    server.assert_alive();
}

/// Two of them are more than may be held for it: each has gone out before the guest has the next.
#[test]
fn an_echo_of_large_blobs_stays_within_what_is_held_for_it() {
    let mut server = Server::guarded_with(small_model(), "[engine]\nkv_tokens = 8192\n");
    smol::block_on(async {
        let mut client = client(&server, "echo", &["held_bytes=2500000"]).await;
        let blobs: Vec<Vec<u8>> = (0..4).map(|i| vec![i; 1_300_000]).collect();
        let echo = client.launch("echo", &["--blobs", "4"]).await;
        for blob in &blobs {
            client.upload_blob(&echo, blob).await.expect("it is taken");
        }
        for blob in blobs {
            assert!(client.event(&echo).await == Event::Blob(blob));
        }
        assert_eq!(client.end(&echo).await.text, "4");
    });
    server.assert_alive();
}

#[test]
fn more_connections_do_not_help_a_subject() {
    let server = Server::guarded_with(small_model(), "[quotas]\ntotal_instances = 5\n");
    let hash = blake3::hash(&guest_bytes("rogue")).to_hex().to_string();
    let refused = async |client: &mut Client, what: &str| {
        let launch =
            Outgoing::new("launch_instance").with("program_hash", &*hash).with("arguments", &["return"][..]);
        assert_eq!(client.ask(launch).await, Err(format!("Quota exceeded: {what}")));
    };
    smol::block_on(async {
        let mut clients = Vec::new();
        let mut idle = Vec::new();
        for _ in 0..2 {
            let mut client = client(&server, "many", &["subject_instances=2", "subject_kv_pages=100"]).await;
            idle.push(client.launch("rogue", &["sleep-long"]).await);
            clients.push(client);
        }
        for client in &mut clients {
            refused(client, "instances of one subject, limit 2").await;
        }
        // What another token of the subject lets it have is its own; what is there counts all the same.
        let mut wider = client(&server, "many", &["subject_instances=4"]).await;
        idle.push(wider.launch("rogue", &["sleep-long"]).await);
        refused(&mut clients[0], "instances of one subject, limit 2").await;
        let mut other = client(&server, "other", &[]).await;
        for _ in 0..2 {
            other.launch("rogue", &["sleep-long"]).await;
        }
        refused(&mut other, "instances of all together, limit 5").await;
        // Who leaves makes room, for the subject and for all.
        wider.terminate(&idle[2]).await;
        assert_eq!(wider.end(&idle[2]).await.event, 2);
        other.launch("rogue", &["sleep-long"]).await;
        clients[0].terminate(&idle[0]).await;
        assert_eq!(clients[0].end(&idle[0]).await.event, 2);
    });
}

#[test]
fn the_pages_of_a_subject_are_counted_over_its_connections_and_come_back() {
    let server = server();
    smol::block_on(async {
        let quota = &["subject_kv_pages=100"];
        let (mut one, mut two) =
            (client(&server, "pages", quota).await, client(&server, "pages", quota).await);
        let full = "KV pages of one subject, limit 100";
        let keeper = one.launch("rogue", &["page-keep"]).await;
        assert_eq!(one.event(&keeper).await, Event::Message("64 pages".to_owned()));
        over(&two.run("rogue", &["page-keep"]).await, full);
        one.terminate(&keeper).await;
        assert_eq!(one.end(&keeper).await.event, 2);
        let again = two.launch("rogue", &["page-keep"]).await;
        assert_eq!(two.event(&again).await, Event::Message("64 pages".to_owned()));
    });
}

/// A rate and a full queue make a program wait; neither ends it. That it waits shows in who is done first: others that were
/// launched later and have as much to compute, one after the other.
#[test]
fn who_is_fast_waits() {
    let server = server();
    let order = RefCell::new(Vec::new());
    let ends = async |who: &'static str, mut client: Client, instance: String, what: &str| {
        over(&client.end(&instance).await, what);
        order.borrow_mut().push(who);
    };
    let unhindered = async || {
        let mut client = client(&server, "quick", &["fuel=10000000"]).await;
        for _ in 0..2 {
            over(&client.run("rogue", &["spin"]).await, "fuel, limit 10000000");
            order.borrow_mut().push("quick");
        }
    };
    smol::block_on(async {
        let mut slow = client(&server, "slow", &["fuel_per_second=4000000", "fuel=10000000"]).await;
        let spin = slow.launch("rogue", &["spin"]).await;
        zip(ends("slow", slow, spin, "fuel, limit 10000000"), unhindered()).await;
        assert_eq!(order.take(), ["quick", "quick", "slow"]);

        let quotas = ["subject_fuel_per_second=4000000", "fuel=6000000"];
        let mut pair = Vec::new();
        for _ in 0..2 {
            let mut client = client(&server, "pair", &quotas).await;
            let spin = client.launch("rogue", &["spin"]).await;
            pair.push(ends("pair", client, spin, "fuel, limit 6000000"));
        }
        let [one, other] = pair.try_into().ok().expect("two");
        zip(zip(one, other), unhindered()).await;
        assert_eq!(order.take().last(), Some(&"pair"), "they have 12,000,000 together");

        for quota in ["queued_operations=2", "subject_queued_operations=2"] {
            let mut client = client(&server, quota, &[quota]).await;
            let ended = client.run("rogue", &["execute-flood"]).await;
            assert_eq!((ended.event, &*ended.text), (1, "executed"), "{quota}");
        }
    });
}

/// Lives so short that each would have a whole second's fuel for itself, if the count began anew with each. That they take
/// so long at least is no matter of the machine: three seconds' fuel is not there before the third second.
#[test]
fn a_row_of_short_lives_has_no_more_of_a_second_than_a_long_one() {
    let server = server();
    smol::block_on(async {
        let mut client = client(&server, "short", &["subject_fuel_per_second=4000000", "fuel=2000000"]).await;
        let since = std::time::Instant::now();
        for _ in 0..7 {
            over(&client.run("rogue", &["spin"]).await, "fuel, limit 2000000");
        }
        assert!(since.elapsed().as_secs() >= 1, "14,000,000 of fuel in {:?}", since.elapsed());
    });
}

/// A program that only ever asks the host for work runs out of fuel like one that works itself.
#[test]
fn work_of_the_host_is_paid_for() {
    let mut server = Server::guarded_with(small_model(), "");
    smol::block_on(async {
        let mut neighbour = Neighbour::of(&server).await;
        let mut client = client(&server, "costly", &["fuel=200000000"]).await;
        for mode in [
            "endless-tokenize",
            "endless-detokenize",
            "endless-vocabulary",
            "endless-mask",
            "endless-pages",
            "endless-priority",
            "endless-receive",
            "endless-broadcast",
            "endless-keys",
            "endless-questions",
            "endless-lines",
            "endless-blob",
        ] {
            println!("{mode}");
            over(&client.run("rogue", &[mode]).await, "fuel, limit 200000000");
            neighbour.answers().await;
        }
    });
    server.assert_alive();
}
