//! A guest that does wrong ends with a sentence of its own, and the chat beside it says exactly what it says alone.
//!
//! `inferlets/rogue` does the wrong; here stands what must come of it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::client::{Client, Ended, Event};
use support::{Server, mint};

/// What comes of a fault.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Event 3; the text starts with `Runtime error: Call error: ` and has this in it.
    Trap(&'static str),
    /// Event 3 with exactly this text.
    Exception(&'static str),
    /// Event 3: it asked for more than there can be; the text has this in it.
    Unrecoverable(&'static str),
    /// It takes all pages. Event 3 when nobody can help it, the text has this in it; or event 5, because the chat
    /// beside it, of another subject, asked for pages of its own share just then.
    TakesAllPages(&'static str),
    /// Event 5; the text has this in it.
    Quota(&'static str),
    /// Event 1 and a return value that starts so: no fault at all, or one that the program is told of.
    Lives(&'static str),
    /// It goes on until it is terminated.
    Endless,
}
use Fate::*;

const CHAT: [&str; 4] = ["--max-tokens", "12", "--user", "Tell me the capital of France."];

/// Chats again and again beside what the test does; each answer must be the one given alone.
struct Neighbour {
    stop: Arc<AtomicBool>,
    chats: std::thread::JoinHandle<usize>,
}

impl Neighbour {
    fn of(server: &Server) -> Neighbour {
        // Of another subject where there are subjects, so that no page of its share is anybody's to take.
        let token = server.token.is_some().then(|| mint(&server.key(), "neighbour", &[]));
        let url = server.url.clone();
        let alone = smol::block_on(async {
            Client::connect_to(&url, token.as_deref()).await.run("chat", &CHAT).await
        });
        assert!(alone.event == 1 && alone.text.contains("Paris"), "{alone:?}");
        let stop = Arc::new(AtomicBool::new(false));
        let ending = stop.clone();
        let chats = std::thread::spawn(move || {
            smol::block_on(async {
                let mut client = Client::connect_to(&url, token.as_deref()).await;
                let mut chats = 0;
                loop {
                    let ended = client.run("chat", &CHAT).await;
                    assert_eq!(ended, alone, "chat number {chats} beside others");
                    chats += 1;
                    if ending.load(Ordering::Relaxed) {
                        return chats;
                    }
                }
            })
        });
        Neighbour { stop, chats }
    }

    /// Waits for a chat that began before now and one that ends after.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let chats = self.chats.join().expect("the chats beside it went well");
        println!("{chats} chats beside it");
    }
}

/// Runs each mode in turn beside a chat.
fn fates(table: &[(&str, Fate)]) {
    let mut server = Server::guarded();
    let neighbour = Neighbour::of(&server);
    let mut wrong = Vec::new();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (mode, fate) in table {
            let since = Instant::now();
            let instance = client.launch("rogue", &[mode]).await;
            if matches!(fate, Endless) {
                smol::Timer::after(Duration::from_millis(500)).await;
                client.terminate(&instance).await;
            }
            let ended = client.end(&instance).await;
            println!("{mode}: event {} {:?} after {:.1?}", ended.event, short(&ended.text), since.elapsed());
            if !came_true(*fate, &ended) {
                wrong.push(format!(
                    "{mode}: expected {fate:?}, got event {} {:?}",
                    ended.event,
                    short(&ended.text)
                ));
            }
        }
    });
    server.assert_alive();
    neighbour.finish();
    assert!(wrong.is_empty(), "{} of {} fates are wrong:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

fn came_true(fate: Fate, ended: &Ended) -> bool {
    let text = &ended.text;
    match fate {
        // One sentence, for a person: no dump, no address of the server's own memory.
        Trap(part) => {
            ended.event == 3
                && text.strip_prefix("Runtime error: Call error: ").is_some_and(|what| what.contains(part))
                && text.len() < 500
                && !text.contains('\n')
        }
        Unrecoverable(part) => {
            ended.event == 3 && text.starts_with("OOM unrecoverable: ") && text.contains(part)
        }
        TakesAllPages(part) => {
            let gave_way = ended.event == 5 && text == "Terminated by OOM killer for an older instance";
            gave_way || came_true(Unrecoverable(part), ended)
        }
        Exception(whole) => ended.event == 3 && text == whole,
        Quota(part) => ended.event == 5 && text.contains(part),
        Lives(start) => ended.event == 1 && text.starts_with(start),
        Endless => ended.event == 2 && text == "Signal termination",
    }
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}

#[test]
fn code_without_end_bottom_or_bound() {
    fates(&[
        ("spin", Endless),
        ("recurse", Trap("recursion")),
        ("allocate", Quota("memory")),
        ("grow", Quota("memory")),
        ("fill", Endless),
        ("copy", Endless),
        ("panic", Trap("abort")),
        ("unreachable", Trap("abort")),
        ("load", Trap("out of bounds")),
        ("call-null", Trap("table")),
        ("exit", Exception("Runtime error: the program exited with an error")),
        ("exit-well", Lives("")),
        ("log", Quota("log bytes")),
        ("log-control", Lives("logged")),
        ("sleep", Lives("slept")),
        ("sleep-long", Endless),
        ("fail", Exception("Runtime error: failing as asked: the reason")),
        ("return", Lives("at once")),
        ("no such mode", Exception("Runtime error: there is no mode \"no such mode\"")),
    ]);
}

#[test]
fn wild_pointers_lengths_and_handles() {
    fates(&[
        ("pointer-text", Trap("send")),
        ("pointer-far", Trap("send")),
        ("length-text", Trap("send")),
        ("length-wraps", Trap("send")),
        ("text-not-utf8", Trap("UTF-8")),
        ("pointer-result", Trap("get-name")),
        ("pointer-result-unaligned", Trap("align")),
        ("pointer-list", Trap("input-tokens")),
        ("pointer-list-unaligned", Trap("align")),
        ("length-list", Trap("input-tokens")),
        ("length-list-wraps", Trap("input-tokens")),
        ("pointer-nested", Trap("attention-mask")),
        ("length-nested", Trap("attention-mask")),
        ("option-tag", Trap("output-distributions")),
        ("enum-tag", Trap("set-priority")),
        ("handle-unknown", Trap("handle")),
        ("handle-zero", Trap("handle")),
        ("handle-max", Trap("handle")),
        ("handle-other-kind", Trap("handle")),
        ("handle-dropped", Trap("handle")),
        ("handle-dropped-twice", Trap("handle")),
        ("handle-drop-other-kind", Trap("handle")),
        ("handle-blob", Trap("handle")),
        ("handle-block", Trap("handle")),
        ("receive-dropped", Trap("handle")),
        ("deallocate-list", Trap("deallocate-resources")),
        ("poll-empty", Trap("poll")),
        ("poll-unknown", Trap("handle")),
        ("poll-length", Trap("poll")),
        ("blob-past-end", Lives("2 0 0")),
        ("blob-result-pointer", Trap("blob.read")),
    ]);
}

#[test]
fn wrong_pages_masks_tokens_and_samplers() {
    fates(&[
        ("page-unknown", Trap("4711")),
        ("page-freed", Trap("page")),
        ("page-freed-twice", Trap("page")),
        ("page-twice-in-pass", Trap("page")),
        ("page-last-length-zero", Trap("last-kv-page-len")),
        ("page-last-length-long", Trap("last-kv-page-len")),
        ("page-too-short", Trap("page")),
        ("page-none", Trap("kv pages")),
        ("page-kind", Trap("7")),
        ("page-count", Unrecoverable("4294967295")),
        ("page-import-unknown", Trap("nobody exported this")),
        ("page-export-unknown", Trap("4711")),
        ("embed-count", Unrecoverable("4294967295")),
        ("embed-unknown", Trap("4711")),
        ("mask-too-few-rows", Trap("mask")),
        ("mask-too-many-rows", Trap("mask")),
        ("mask-row-short", Trap("mask")),
        ("mask-row-long", Trap("mask")),
        ("mask-row-empty", Trap("mask")),
        ("mask-row-overflow", Trap("mask")),
        ("token-unknown", Trap("4294967295")),
        ("token-just-outside", Trap("vocabulary")),
        ("token-none", Trap("input")),
        ("detokenize-unknown", Trap("4294967295")),
        ("position-missing", Trap("position")),
        ("position-extreme", Lives("survived")),
        ("index-outside", Trap("ind")),
        ("temperature-negative", Trap("temperature")),
        ("temperature-nan", Trap("temperature")),
        ("temperature-infinite", Trap("temperature")),
        ("temperature-distribution", Trap("temperature")),
        ("top-p-negative", Trap("top-p")),
        ("top-p-nan", Trap("top-p")),
        ("min-p-nan", Trap("min-p")),
        ("top-k-top-p-nan", Trap("top-p")),
        ("execute-twice", Trap("input")),
        ("image", Trap("image")),
        ("image-size", Trap("image")),
        ("adapter-set", Trap("adapter")),
        ("adapter-allocate", Trap("adapter")),
        ("adapter-upload", Trap("adapter")),
        ("adapter-download", Trap("adapter")),
        ("evolve-seed", Trap("adapter")),
        ("evolve-start", Trap("adapter")),
        ("evolve-update", Trap("adapter")),
    ]);
}

#[test]
fn too_many_and_too_large() {
    fates(&[
        ("send-giant", Trap("send")),
        ("send-flood", Lives("sent")),
        ("send-forever", Endless),
        ("blob-giant", Lives("sent")),
        ("blob-hoard", Quota("bytes held by the host")),
        ("return-giant", Trap("set-return")),
        ("handle-hoard", Quota("handles")),
        ("pass-hoard", Quota("handles")),
        ("execute-flood", Lives("executed")),
        ("page-hoard", TakesAllPages("64 asked")),
        ("input-giant", Trap("input-tokens")),
        ("tokenize-giant", Trap("tokenize")),
        ("tokenize-large", Lives("2097152 tokens")),
        ("tokenize-forever", Endless),
        ("vocabulary-flood", Lives("read")),
        ("store-flood", Trap("store-set")),
        ("store-giant", Trap("store-set")),
        ("subscribe-hoard", Trap("subscribe")),
        ("broadcast-flood", Lives("sent")),
        ("receive-forever", Endless),
    ]);
}

/// A flood is not lost either: every message comes, in order.
#[test]
fn a_flood_arrives_whole_and_in_order() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let ended = client.run("rogue", &["send-flood"]).await;
        let expected: Vec<String> = (0..5_000).map(|number| number.to_string()).collect();
        assert_eq!(ended.messages.len(), expected.len());
        assert_eq!(ended.messages, expected);
    });
}

/// Two that spin for ever on two cores leave room for everybody else.
#[test]
fn spinning_guests_do_not_hold_the_threads() {
    let mut server = Server::open();
    let neighbour = Neighbour::of(&server);
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let mut spinning = Vec::new();
        for _ in 0..4 {
            spinning.push(client.launch("rogue", &["spin"]).await);
        }
        let echo = client.launch("echo", &["--messages", "3"]).await;
        for word in ["one", "two", "three"] {
            client.signal(&echo, word).await;
            assert_eq!(client.event(&echo).await, Event::Message(word.to_owned()));
        }
        assert_eq!(client.end(&echo).await.event, 1);
        for instance in &spinning {
            client.terminate(instance).await;
        }
        for instance in &spinning {
            assert_eq!(client.end(instance).await.event, 2);
        }
    });
    server.assert_alive();
    neighbour.finish();
}

/// What guests print is for the log, and it cannot forge a line or clear a terminal there.
#[test]
fn a_log_line_stays_one_line() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        assert_eq!(client.run("rogue", &["log-control"]).await.event, 1);
    });
    // The guest's end comes by another way than the log, and may come first.
    let since = Instant::now();
    let said = |log: &str| log.lines().any(|line| line.contains("forged")) && log.contains("no end of line");
    let mut log = server.log();
    while !said(&log) {
        assert!(since.elapsed() < support::PATIENCE, "the guest's lines are not in the log:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
        log = server.log();
    }
    for line in log.lines() {
        assert!(!line.trim_start().starts_with("forged"), "{line:?}");
        assert!(!line.contains("\x1b[2J") && !line.contains('\0') && !line.contains('\u{202e}'), "{line:?}");
    }
}
