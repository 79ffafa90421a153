//! Clients that lie, stammer, stall and vanish. Each gets its answer or its end; the server goes on, and a chat
//! beside says what it always says.

mod support;

use async_tungstenite::tungstenite::Message;
use smol::stream::StreamExt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::client::{CHUNK, Client, Event};
use support::frame::{Field, Outgoing};
use support::{PATIENCE, Server, guest_bytes};

/// The sentence every test ends with: the server lives, takes a new client, and its model answers as ever.
fn still_well(mut server: Server) {
    server.assert_alive();
    let ended = smol::block_on(async {
        let mut client = Client::connect(&server).await;
        client.run("chat", &["--max-tokens", "12", "--user", "Tell me the capital of France."]).await
    });
    assert!(ended.event == 1 && ended.text.contains("Paris"), "{ended:?}");
}

/// Small, seeded, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// What stands for each field of a message: what it is, and what it is not.
fn not_text() -> Vec<Field> {
    vec![
        Field::Nil(()),
        Field::Flag(true),
        Field::Number(7),
        Field::Real(0.5),
        Field::List(vec![]),
        (&[0xFF, 0xFE][..]).into(),
    ]
}

fn not_a_count() -> Vec<Field> {
    vec![
        Field::Nil(()),
        Field::Flag(true),
        Field::Number(-1),
        Field::Real(0.5),
        "7".into(),
        Field::List(vec![]),
    ]
}

fn not_bytes() -> Vec<Field> {
    vec![Field::Nil(()), Field::Flag(true), Field::Number(7), Field::Real(0.5)]
}

fn not_words() -> Vec<Field> {
    vec![Field::Flag(true), Field::Number(7), "word".into(), Field::List(vec![Field::Number(7)])]
}

/// Fields of a message and wrong values for each.
type Wrong = Vec<(&'static str, Vec<Field>)>;

/// Every kind of message that has an answer, in words the server understands.
fn requests() -> Vec<(Outgoing, Wrong)> {
    let upload = |kind: &str, owner: &str| {
        let message = Outgoing::new(kind).with(owner, "0".repeat(64).as_str());
        let message = if owner == "blob_hash" { message.with("instance_id", "nobody") } else { message };
        message.with("chunk_index", 0).with("total_chunks", 1).with("chunk_data", &b"data"[..])
    };
    let chunk =
        || vec![("chunk_index", not_a_count()), ("total_chunks", not_a_count()), ("chunk_data", not_bytes())];
    vec![
        (Outgoing::new("authenticate").with("token", "x"), vec![("token", not_text())]),
        (
            Outgoing::new("query").with("subject", "program_exists").with("record", "x"),
            vec![("subject", not_text()), ("record", not_text())],
        ),
        (upload("upload_program", "program_hash"), [vec![("program_hash", not_text())], chunk()].concat()),
        (
            upload("upload_blob", "blob_hash"),
            [vec![("blob_hash", not_text()), ("instance_id", not_text())], chunk()].concat(),
        ),
        (
            Outgoing::new("launch_instance").with("program_hash", "x").with("arguments", &["a"][..]),
            vec![("program_hash", not_text()), ("arguments", not_words())],
        ),
        (
            Outgoing::new("launch_server_instance")
                .with("port", 0)
                .with("program_hash", "x")
                .with("arguments", &["a"][..]),
            vec![("port", not_a_count()), ("program_hash", not_text()), ("arguments", not_words())],
        ),
        (
            Outgoing::new("attach_remote_service")
                .with("endpoint", "tcp://127.0.0.1:1")
                .with("service_type", "model")
                .with("service_name", "x"),
            vec![("endpoint", not_text()), ("service_type", not_text()), ("service_name", not_text())],
        ),
    ]
}

#[test]
fn a_malformed_request_is_answered_no() {
    let server = Server::open();
    smol::block_on(async {
        for (request, fields) in requests() {
            let mut client = Client::connect(&server).await;
            for (field, wrong) in fields {
                for variant in
                    wrong.iter().map(|value| request.changed(field, value)).chain([request.without(field)])
                {
                    let answer = client.ask(variant.clone()).await;
                    let why = answer.expect_err(&format!("{field} is wrong in {variant:?}"));
                    assert!(!why.is_empty() && why.len() < 1000, "{variant:?}: {why:?}");
                }
            }
            // The connection is as good as before, and what it does not know it ignores.
            let query = Outgoing::new("query").with("subject", "program_exists").with("record", "x");
            assert_eq!(client.ask(query.with("mood", "fine")).await, Ok("false".to_owned()));
        }
        let mut client = Client::connect(&server).await;
        client.ask(Outgoing::new("no_such_type")).await.expect_err("there is no such type");
    });
    still_well(server);
}

#[test]
fn a_malformed_message_without_answer_harms_nothing() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let echo = client.launch("echo", &["--messages", "1"]).await;
        let signal = Outgoing::new("signal_instance").with("instance_id", &echo).with("message", "x");
        let terminate = Outgoing::new("terminate_instance").with("instance_id", &echo);
        let mut sent = 0;
        for (message, fields) in [(&signal, &["instance_id", "message"][..]), (&terminate, &["instance_id"])]
        {
            for field in fields {
                for value in not_text() {
                    client.send(&message.changed(field, &value)).await;
                    sent += 1;
                }
                client.send(&message.without(field)).await;
                sent += 1;
            }
        }
        for id in ["", "nobody", "00000000-0000-4000-8000-000000000000", &"9".repeat(10_000)] {
            client.send(&signal.changed("instance_id", &id.into())).await;
            client.send(&terminate.changed("instance_id", &id.into())).await;
        }
        // Requests whose number cannot be read have no answer either.
        for (request, _) in requests() {
            client.send(&request).await;
            client.send(&request.with("corr_id", "seven")).await;
            sent += 2;
        }
        assert!(sent > 16);
        assert_eq!(client.query("program_exists", "x").await, Ok("false".to_owned()));
        let told = client.early(|frame| frame.kind == "server_event");
        assert!((1..=16).contains(&told), "{told} server events; a stock client never drains them");
        client.signal(&echo, "the right one").await;
        assert_eq!(client.event(&echo).await, Event::Message("the right one".to_owned()));
        assert_eq!(client.end(&echo).await.event, 1);
    });
    still_well(server);
}

#[test]
fn frames_that_are_no_messages_harm_nothing() {
    let nested = |opening: &[u8]| opening.repeat(900_000 / opening.len());
    let with_type = |rest: &[u8]| [b"\x82\xa4type\xa5query\xa7corr_id".as_slice(), rest].concat();
    let frames: Vec<Vec<u8>> = vec![
        vec![],
        vec![0xC1],
        vec![0xDF, 0xFF, 0xFF, 0xFF, 0xFF],       // a map of four billion
        vec![0xDD, 0xFF, 0xFF, 0xFF, 0xFF],       // a list of four billion
        vec![0xC6, 0xFF, 0xFF, 0xFF, 0xFF],       // four gigabytes
        vec![0xDB, 0xFF, 0xFF, 0xFF, 0xFF],       // of text
        vec![0x81, 0xA4, b't', b'y', b'p', b'e'], // ends early
        b"\x81\xa4type\xa5\xff\xfe\xfd\xfc\xfb".to_vec(), // no UTF-8
        b"\x81\x07\xa5query".to_vec(),            // a key that is no text
        b"\x82\xa4type\xa5query\xa4type\xa5query".to_vec(), // twice the same
        nested(&[0x91]),
        nested(&[0x81, 0xA1, b'x']),
        with_type(&nested(&[0x91])),
        with_type(&[0xCE, 0xFF, 0xFF, 0xFF, 0xFF]),
        b"just text".to_vec(),
        vec![0x90],
        vec![0x80],
        vec![0xC0],
    ];
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for frame in frames {
            client.send_raw(Message::binary(frame.clone())).await;
            let answer = client.query("program_exists", "x").await;
            assert_eq!(answer, Ok("false".to_owned()), "after {:?}", &frame[..frame.len().min(16)]);
        }
        for _ in 0..100 {
            client.send_raw(Message::text("{\"type\":\"query\",\"corr_id\":1}")).await;
        }
        client.send_raw(Message::Ping(vec![1, 2, 3].into())).await;
        assert_eq!(client.query("program_exists", "x").await, Ok("false".to_owned()));
    });
    still_well(server);
}

/// Right messages with bytes flipped: whatever they mean now, nothing breaks.
#[test]
fn mutated_messages_harm_nothing() {
    const SEED: u64 = 0x7A27_1E7D_0C70_BE25;
    println!("seed {SEED:#x}");
    let mut dice = Dice(SEED);
    let server = Server::open();
    smol::block_on(async {
        for _ in 0..8 {
            let mut client = Client::connect(&server).await;
            for _ in 0..60 {
                let requests = requests();
                let (request, _) = &requests[dice.below(requests.len())];
                let mut frame = request.clone().with("corr_id", 4_000_000).bytes();
                for _ in 0..1 + dice.below(6) {
                    let at = dice.below(frame.len());
                    match dice.below(3) {
                        0 => frame[at] = dice.next() as u8,
                        1 => frame.insert(at, dice.next() as u8),
                        _ => frame.truncate(at.max(1)),
                    }
                }
                client.send_raw(Message::binary(frame)).await;
            }
            assert_eq!(client.query("program_exists", "x").await, Ok("false".to_owned()));
        }
    });
    still_well(server);
}

#[test]
fn an_oversized_frame_costs_its_sender_the_connection() {
    let server = Server::open();
    smol::block_on(async {
        for size in [1024 * 1024 + 1, 40 << 20] {
            let mut client = Client::connect(&server).await;
            let _ = client.socket.send(Message::binary(vec![0u8; size])).await;
            assert!(client.next_frame().await.is_none(), "a frame of {size} bytes is refused");
        }
        let mut client = Client::connect(&server).await;
        let large =
            Outgoing::new("query").with("subject", "x".repeat(1_000_000).as_str()).with("record", "x");
        client.ask(large).await.expect_err("within the limit, and answered");
    });
    still_well(server);
}

#[test]
fn nothing_is_done_before_authentication() {
    let server = Server::guarded();
    smol::block_on(async {
        let mut client = Client::connect_only(&server.url).await;
        for (request, _) in requests() {
            let kind = request.0[0].1.clone();
            let answer = client.ask(request).await;
            let expected = if kind == "authenticate".into() { "Invalid token" } else { "Not authenticated" };
            assert_eq!(answer, Err(expected.to_owned()), "{kind:?}");
        }
        // An upload of many chunks still has one answer, at its end.
        assert_eq!(client.upload(&vec![0; 3 * CHUNK]).await, Err("Not authenticated".to_owned()));
        client.signal("00000000-0000-4000-8000-000000000000", "hello").await;
        client.terminate("00000000-0000-4000-8000-000000000000").await;
        assert_eq!(client.query("program_exists", "x").await, Err("Not authenticated".to_owned()));
        assert_eq!(client.early(|_| true), 0, "nothing but the answers came");
    });
    still_well(server);
}

/// chunk_index, total_chunks, chunk_data
type Lie<'a> = (i64, i64, &'a [u8]);

/// One chunk of an upload.
fn chunk(corr_id: u32, hash: &str, index: i64, total: i64, data: &[u8]) -> Outgoing {
    Outgoing::new("upload_program")
        .with("corr_id", i64::from(corr_id))
        .with("program_hash", hash)
        .with("chunk_index", index)
        .with("total_chunks", total)
        .with("chunk_data", data)
}

#[test]
fn lying_chunks_have_one_answer_each() {
    let hash = blake3::hash(b"abc").to_hex().to_string();
    let long = vec![0; CHUNK + 1];
    let last = i64::from(u32::MAX);
    let cases: [(&[Lie], &str); 9] = [
        (&[(0, 2, &long), (1, 2, b"c")], "Chunk size 262145 exceeds limit 262144"),
        (&[(1, 3, b"b"), (2, 3, b"c")], "First chunk index must be 0"),
        (&[(0, 3, b"a"), (1, 4, b"b"), (2, 3, b"c")], "Chunk count mismatch: expected 3, got 4"),
        (&[(0, 4, b"a"), (2, 4, b"b"), (3, 4, b"c")], "Out-of-order chunk: expected 1, got 2"),
        (&[(0, 3, b"a"), (1, 3, b"b"), (1, 3, b"b"), (2, 3, b"c")], "Out-of-order chunk: expected 2, got 1"),
        (&[(0, 2, b"a"), (1, 2, b"b")], "Hash mismatch: expected {claimed}, got {computed}"),
        (&[(0, 0, b"a")], ""),
        (&[(7, 3, b"a")], ""),
        (&[(0, last, b"a"), (last - 1, last, b"c")], ""),
    ];
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let before = server.resident_mib();
        for (chunks, expected) in cases {
            let corr_id = client.corr_id();
            for (number, (index, total, data)) in chunks.iter().enumerate() {
                client.send(&chunk(corr_id, &hash, *index, *total, data)).await;
                if number + 1 < chunks.len() {
                    client.query("program_exists", &hash).await.expect("an answer");
                    assert_eq!(client.early(|_| true), 0, "too early: {expected:?}, chunk {number}");
                }
            }
            let why = client.answer(corr_id).await.expect_err(expected);
            let computed = blake3::hash(b"ab").to_hex();
            let expected = expected.replace("{claimed}", &hash).replace("{computed}", &computed);
            assert!(why == expected || expected.is_empty() && !why.is_empty(), "{expected:?}: {why:?}");
            assert_eq!(client.query("program_exists", &hash).await, Ok("false".to_owned()));
            assert_eq!(client.early(|_| true), 0, "one answer only: {expected:?}");
        }
        // A claim of four billion chunks costs nothing.
        assert!(server.resident_mib() < before + 64);

        // A number may be used again, and uploads may run side by side.
        let (echo, token) = (guest_bytes("echo"), guest_bytes("rogue"));
        let (a, b) = (client.corr_id(), client.corr_id());
        client.send(&chunk(a, &hash, 0, 2, b"given up")).await;
        let hashes = [&echo, &token].map(|program| blake3::hash(program).to_hex().to_string());
        let halves = |program: &'static [u8]| program.split_at(program.len() / 2);
        let (echo, token) = (halves(echo.leak()), halves(token.leak()));
        client.send(&chunk(a, &hashes[0], 0, 2, echo.0)).await;
        client.send(&chunk(b, &hashes[1], 0, 2, token.0)).await;
        client.send(&chunk(a, &hashes[0], 1, 2, echo.1)).await;
        client.send(&chunk(b, &hashes[1], 1, 2, token.1)).await;
        assert_eq!(client.answer(b).await.as_ref(), Ok(&hashes[1]));
        assert_eq!(client.answer(a).await.as_ref(), Ok(&hashes[0]));
    });
    still_well(server);
}

#[test]
fn uploads_without_end_are_bounded() {
    let server = Server::open();
    let before = server.resident_mib();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let data = vec![7; CHUNK];
        for _ in 0..1200 {
            let corr_id = client.corr_id();
            client.send(&chunk(corr_id, "x", 0, 3, &data)).await;
        }
        client.query("program_exists", "x").await.expect("an answer");
    });
    let grown = server.resident_mib().saturating_sub(before);
    assert!(grown < 200, "300 MiB of unfinished uploads took {grown} MiB");
    still_well(server);
}

#[test]
fn a_client_that_vanishes_in_mid_upload_leaves_nothing() {
    let server = Server::open();
    let echo = guest_bytes("chat");
    let hash = blake3::hash(&echo).to_hex().to_string();
    smol::block_on(async {
        for chunks in 0..3 {
            let mut client = Client::connect(&server).await;
            let corr_id = client.corr_id();
            for (index, data) in echo.chunks(CHUNK).take(chunks).enumerate() {
                client
                    .send(&chunk(corr_id, &hash, index as i64, echo.len().div_ceil(CHUNK) as i64, data))
                    .await;
            }
            drop(client); // no goodbye
        }
        // Half a frame, then nothing.
        let client = Client::connect(&server).await;
        let mut stream = client.socket.into_inner();
        smol::io::AsyncWriteExt::write_all(&mut stream, &[0x82, 0xFF, 0, 0, 0, 0, 0, 4, 0, 0, 1, 2, 3, 4, 5])
            .await
            .expect("half a frame");
        drop(stream);
        let mut client = Client::connect(&server).await;
        assert_eq!(client.query("program_exists", &hash).await, Ok("false".to_owned()));
        assert_eq!(client.upload(&echo).await, Ok(hash));
    });
    still_well(server);
}

/// Connections that never finish, or never begin, their handshake neither block others nor stay.
#[test]
fn stalled_handshakes_do_not_block_and_do_not_stay() {
    let server = Server::open();
    let mut stalled: Vec<TcpStream> = (0..32)
        .map(|number| {
            let mut stream = TcpStream::connect(server.address()).expect("accepted");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("TCP");
            if number % 2 == 1 {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgr").expect("a beginning");
            }
            stream
        })
        .collect();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        assert_eq!(client.query("program_exists", "x").await, Ok("false".to_owned()));
    });
    for stream in &mut stalled {
        // Whatever it is told, the end comes.
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert!(e.kind() == std::io::ErrorKind::ConnectionReset, "it stays: {e}"),
        }
    }
    still_well(server);
}

/// A client that launches talkative programs and never reads: its own programs wait or end, nobody else's.
#[test]
fn a_client_that_never_reads_harms_only_itself() {
    let server = Server::open();
    let before = server.resident_mib();
    let silent = smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for _ in 0..8 {
            let corr_id = client.corr_id();
            let hash = blake3::hash(&guest_bytes("rogue")).to_hex().to_string();
            if client.query("program_exists", &hash).await != Ok("true".to_owned()) {
                client.upload(&guest_bytes("rogue")).await.expect("a good program");
            }
            let launch = Outgoing::new("launch_instance").with("program_hash", &hash);
            let launch = launch.with("arguments", &["blob-giant"][..]).with("corr_id", i64::from(corr_id));
            client.send(&launch).await;
        }
        client
    });
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for _ in 0..3 {
            let ended =
                client.run("chat", &["--max-tokens", "8", "--user", "Tell me the capital of France."]).await;
            assert_eq!(ended.event, 1, "{ended:?}");
        }
        drop(silent);
        let since = Instant::now();
        loop {
            let status = client.query("model_status", "").await.expect("an answer");
            if status.contains("active_count\":\"0\"") || status.contains("active_count\": \"0\"") {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "its programs stay: {status}");
            smol::Timer::after(Duration::from_millis(100)).await;
        }
    });
    let grown = server.resident_mib().saturating_sub(before);
    assert!(grown < 700, "it took {grown} MiB");
    still_well(server);
}

/// Sends an HTTP request as it is and returns the beginning of what comes back.
fn http(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).expect("accepted");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("TCP");
    let _ = stream.write_all(request.as_bytes()); // it may be refused before its end
    let mut answer = [0; 1024];
    let read = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

/// Any web page may open `ws://localhost`; it must not get in, nor may one that rebinds a name of its own.
#[test]
fn web_pages_are_refused() {
    let server = Server::open();
    let upgrade = |headers: &str| {
        http(
            &server,
            &format!(
                "GET / HTTP/1.1\r\n{headers}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ),
        )
    };
    let host = format!("Host: {}\r\n", server.address());
    assert!(upgrade(&host).starts_with("HTTP/1.1 101"), "the plain one is right");
    for headers in [
        format!("{host}Origin: https://evil.example\r\n"),
        format!("{host}Origin: null\r\n"),
        format!("{host}Origin: http://127.0.0.1.evil.example\r\n"),
        "Host: evil.example\r\n".to_owned(),
        format!("Host: evil.example{}\r\n", server.address()),
        format!("Host: 127.0.0.1.evil.example:{}\r\n", server.address().rsplit(':').next().expect("a port")),
    ] {
        let answer = upgrade(&headers);
        assert!(answer.starts_with("HTTP/1.1 4"), "{headers:?}: {answer:?}");
    }
    still_well(server);
}

#[test]
fn http_that_is_no_websocket_harms_nothing() {
    let server = Server::open();
    for request in [
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
        "\r\n\r\n\r\n".to_owned(),
        "\0\u{1}\u{2}".repeat(1000),
        format!("GET / HTTP/1.1\r\n{}", "X-Long: y\r\n".repeat(20_000)),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000)),
    ] {
        let answer = http(&server, &request);
        assert!(!answer.starts_with("HTTP/1.1 101"), "{:.40}: {answer}", request);
    }
    still_well(server);
}

#[test]
fn a_close_and_a_reset_are_both_an_end() {
    let server = Server::open();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        client.launch("echo", &["--messages", "forever"]).await;
        client.socket.close(None).await.expect("a goodbye");
        while let Some(Ok(_)) = client.socket.next().await {}
        let mut client = Client::connect(&server).await;
        client.launch("echo", &["--messages", "forever"]).await;
        drop(client);
    });
    still_well(server);
}
