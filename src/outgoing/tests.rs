//! Requests against servers on loopback, by names that resolve to whatever the test says.

use super::*;
use crate::pacer::Pacer;
use crate::transfer::{Outcome, Taken, empty, pipe};
use bytes::Bytes;
use http::{HeaderMap, Request};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A machine whose names have these addresses; each lookup takes the next list, and the last for ever.
struct Rig {
    outgoing: Outgoing,
    sending: Sending,
    lookups: Arc<AtomicU32>,
}

fn rig(allow: &[String], names: &[(&str, &[&str])]) -> Rig {
    let names: BTreeMap<String, Vec<Vec<IpAddr>>> = names
        .iter()
        .map(|(name, turns)| {
            let turn = |turn: &&str| turn.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
            (name.to_string(), turns.iter().map(turn).collect())
        })
        .collect();
    let lookups = Arc::new(AtomicU32::new(0));
    let counted = lookups.clone();
    let lookup: Lookup = Arc::new(move |_, name| {
        let turn = counted.fetch_add(1, Ordering::Relaxed) as usize;
        let found = names.get(&name).map(|turns| turns[turn.min(turns.len() - 1)].clone());
        Box::pin(async move { found.ok_or_else(|| std::io::Error::other("no such name")) })
    });
    let (outgoing, sending) = with_lookup(Allowed::new(allow).unwrap(), lookup);
    Rig { outgoing, sending, lookups }
}

impl Rig {
    fn line(&self) -> Line {
        self.outgoing.line(
            InstanceId::random(),
            Subject::new("somebody"),
            &Allowed::default(),
            Pacer::default(),
        )
    }

    /// Does `work` while requests are carried out.
    fn run<T>(self, work: impl AsyncFnOnce(&Line) -> T) -> T {
        let line = self.line();
        let sending = self.sending;
        smol::block_on(or(async { work(&line).await }, async {
            sending.run().await;
            unreachable!("it never ends")
        }))
    }
}

fn within() -> Within {
    Within::new(None, None, None)
}

fn get(url: &str) -> Request<Reader> {
    Request::get(url).body(empty()).unwrap()
}

async fn settled(sent: &Sent) -> Outcome {
    poll_fn(|context| sent.promised.poll_settled(context)).await;
    sent.promised.take().unwrap_or(Err(ErrorCode::ConnectionTerminated))
}

async fn outcome(line: &Line, request: Request<Reader>) -> Outcome {
    settled(&line.send(request, within())).await
}

/// Why the request has no response.
async fn refused(line: &Line, url: &str) -> ErrorCode {
    outcome(line, get(url)).await.err().unwrap_or_else(|| panic!("{url} was answered"))
}

/// All of a body.
async fn read(body: &Reader) -> Result<(Vec<u8>, Option<HeaderMap>), ErrorCode> {
    let mut whole = Vec::new();
    loop {
        poll_fn(|context| body.poll_ready(context)).await;
        match body.take(usize::MAX) {
            Taken::Bytes(bytes) => whole.extend_from_slice(&bytes),
            Taken::End => return Ok((whole, body.trailers())),
            Taken::Broken(why) => return Err(why),
            Taken::Nothing => {}
        }
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// What arrives up to `end`.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "{:?}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// A server that answers one request with these bytes and closes.
fn answering(bytes: &'static [u8]) -> (SocketAddr, smol::Task<()>) {
    let (listener, address) = smol::block_on(listener());
    let served = smol::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        until(&mut stream, "\r\n\r\n").await;
        let _ = stream.write_all(bytes).await; // it may have read enough
    });
    (address, served)
}

#[test]
fn a_request_and_its_response_stream_both_ways() {
    let (listener, address) = smol::block_on(listener());
    let server = smol::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = until(&mut stream, "\r\n\r\n").await;
        assert_eq!(until(&mut stream, "\r\n").await, "3\r\n");
        assert_eq!(until(&mut stream, "\r\n").await, "one\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\neno\r\n").await.unwrap();
        assert_eq!(until(&mut stream, "0\r\n\r\n").await, "3\r\ntwo\r\n0\r\n\r\n");
        stream.write_all(b"3\r\nowt\r\n0\r\nsum: 6\r\n\r\n").await.unwrap();
        head
    });
    rig(&[address.to_string()], &[]).run(async |line| {
        let (writer, reader) = pipe(None);
        let url = format!("http://{address}/a/b?c=d");
        let sent = line.send(Request::post(&url).header("x-y", "z").body(reader).unwrap(), within());
        writer.write(Bytes::from_static(b"one")).unwrap();
        let response = settled(&sent).await.unwrap();
        assert_eq!(response.status(), 200);
        let Sent { hold, .. } = sent;
        drop(hold); // as a guest that has its response
        let body = response.into_body();
        poll_fn(|context| body.poll_ready(context)).await;
        assert_eq!(body.take(9), Taken::Bytes(Bytes::from_static(b"eno")), "before the request is complete");
        writer.write(Bytes::from_static(b"two")).unwrap();
        writer.finish(None).unwrap();
        let (rest, trailers) = read(&body).await.unwrap();
        assert_eq!((&rest[..], trailers.unwrap()["sum"].as_bytes()), (&b"owt"[..], &b"6"[..]));
        let head = server.await;
        assert!(head.starts_with("POST /a/b?c=d HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {address}\r\n")) && head.contains("x-y: z\r\n"), "{head}");
    });
}

#[test]
fn what_is_not_allowed_is_denied_and_nobody_is_asked() {
    let rig = rig(&["api.example.com".to_owned(), "127.0.0.1:9".to_owned()], &[]);
    let lookups = rig.lookups.clone();
    rig.run(async |line| {
        for (url, why) in [
            ("http://other.example.com/", ErrorCode::HttpRequestDenied),
            ("http://api.example.com:81/", ErrorCode::HttpRequestDenied),
            ("http://127.0.0.1/", ErrorCode::HttpRequestDenied),
            ("http://[::1]:9/", ErrorCode::HttpRequestDenied),
            ("http://[::ffff:127.0.0.1]:9/", ErrorCode::HttpRequestDenied),
            ("http://localhost:9/", ErrorCode::HttpRequestDenied),
            ("http://127.1:9/", ErrorCode::HttpRequestUriInvalid),
            ("http://user@api.example.com/", ErrorCode::HttpRequestUriInvalid),
            ("ftp://api.example.com/", ErrorCode::HttpRequestUriInvalid),
            ("https://api.example.com/", ErrorCode::internal(NO_TLS)),
        ] {
            assert_eq!(refused(line, url).await, why, "{url}");
        }
        let mut tunnel = get("http://api.example.com/");
        *tunnel.method_mut() = Method::CONNECT;
        assert_eq!(outcome(line, tunnel).await.err(), Some(ErrorCode::HttpRequestMethodInvalid));
        // The body of a denied request goes nowhere, and its writer is not told before its reader is.
        let (writer, reader) = pipe(None);
        let sent = line.send(Request::post("http://other.example.com/").body(reader).unwrap(), within());
        assert_eq!(writer.write(Bytes::from_static(b"x")), Ok(()));
        assert_eq!(settled(&sent).await.err(), Some(ErrorCode::HttpRequestDenied));
    });
    assert_eq!(lookups.load(Ordering::Relaxed), 0);
}

/// The story: a name is allowed, and whoever answers for it lets it lead into the box's own network, at the second lookup
/// (after a check) or among honest addresses.
#[test]
fn a_name_does_not_lead_into_the_boxs_own_network() {
    let (inside, address) = smol::block_on(listener());
    let port = address.port();
    let hosts: Vec<String> = ["evil", "mixed", "mapped", "none", "unknown"]
        .iter()
        .map(|name| format!("{name}.example:{port}"))
        .chain([format!("named.example:{port}"), format!("127.0.0.1:{port}")])
        .collect();
    let names: &[(&str, &[&str])] = &[
        ("evil.example", &["127.0.0.2"]),
        ("mixed.example", &["10.0.0.1 169.254.169.254 ::1 fd00::1 64:ff9b::7f00:1"]),
        ("mapped.example", &["::ffff:127.0.0.1"]),
        ("none.example", &[""]),
        ("named.example", &["127.0.0.1"]),
    ];
    let rig = rig(&hosts, names);
    let lookups = rig.lookups.clone();
    rig.run(async |line| {
        for name in ["evil", "mixed", "mapped"] {
            let why = refused(line, &format!("http://{name}.example:{port}/")).await;
            assert_eq!(why, ErrorCode::DestinationIpProhibited, "{name}");
        }
        for name in ["none", "unknown"] {
            let why = refused(line, &format!("http://{name}.example:{port}/")).await;
            assert!(matches!(why, ErrorCode::DnsError(_)), "{name}: {why}");
        }
        // An address that the list names itself may be found by a name, too.
        let served = smol::spawn(async move {
            let (mut stream, _) = inside.accept().await.unwrap();
            let head = until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            head
        });
        let response = outcome(line, get(&format!("http://named.example:{port}/"))).await.unwrap();
        assert_eq!(response.status(), 204);
        let head = served.await; // the first that came through the door
        assert!(head.contains(&format!("host: named.example:{port}\r\n")), "{head}");
    });
    assert_eq!(lookups.load(Ordering::Relaxed), 6, "each name is looked up once a request");
}

/// A lookup that changes its mind is not asked a second time between the check and the connection.
#[test]
fn the_address_that_was_judged_is_the_one_that_is_connected_to() {
    let (inside, address) = smol::block_on(listener());
    let host = format!("rebinds.example:{}", address.port());
    let turns: &[&str] = &["127.0.0.1", "127.0.0.9"];
    let rig = rig(&[host.clone(), address.to_string()], &[("rebinds.example", turns)]);
    rig.run(async |line| {
        let served = smol::spawn(async move {
            let (mut stream, _) = inside.accept().await.unwrap();
            until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        });
        assert!(outcome(line, get(&format!("http://{host}/"))).await.is_ok());
        served.await;
        let why = refused(line, &format!("http://{host}/")).await;
        assert_eq!(why, ErrorCode::DestinationIpProhibited, "the second request's lookup is judged anew");
    });
}

#[test]
fn a_redirect_is_a_response() {
    let (address, served) =
        answering(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 2\r\n\r\nno");
    rig(&[address.to_string()], &[]).run(async |line| {
        let response = outcome(line, get(&format!("http://{address}/"))).await.unwrap();
        assert_eq!(response.status(), 302);
        assert_eq!(response.headers()["location"], "http://127.0.0.1:1/");
        assert_eq!(read(response.body()).await.unwrap().0, b"no");
        served.await;
    });
}

#[test]
fn what_a_server_does_wrong_has_its_name() {
    let long: &'static [u8] =
        [b"HTTP/1.1 200 OK\r\nx: ", &[b'a'; 2 * limits::HTTP_HEAD_BYTES][..]].concat().leak();
    let many: &'static [u8] =
        ["HTTP/1.1 200 OK\r\n".to_owned(), "a: b\r\n".repeat(limits::HTTP_HEAD_FIELDS + 1), "\r\n".into()]
            .concat()
            .leak()
            .as_bytes();
    let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", limits::OUTGOING_BODY_BYTES + 1);
    let too_large = ErrorCode::HttpResponseBodySize(Some(limits::OUTGOING_BODY_BYTES + 1));
    let head = ErrorCode::HttpResponseHeaderSectionSize(Some(limits::HTTP_HEAD_BYTES as u32));
    for (bytes, expected) in [
        (b"SSH-2.0-x\r\n\r\n" as &[u8], ErrorCode::HttpProtocolError),
        (b"", ErrorCode::HttpResponseIncomplete),
        (b"HTTP/1.1 200 OK\r\nx", ErrorCode::HttpResponseIncomplete),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", ErrorCode::HttpUpgradeFailed),
        (long, head.clone()),
        (many, head),
        (huge.leak().as_bytes(), too_large),
    ] {
        let (address, served) = answering(bytes);
        rig(&[address.to_string()], &[]).run(async |line| {
            let why = refused(line, &format!("http://{address}/")).await;
            assert_eq!(why, expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
            served.await;
        });
    }
    for (bytes, expected) in [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc" as &[u8], ErrorCode::HttpResponseIncomplete),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", ErrorCode::HttpProtocolError),
    ] {
        let (address, served) = answering(bytes);
        rig(&[address.to_string()], &[]).run(async |line| {
            let response = outcome(line, get(&format!("http://{address}/"))).await.unwrap();
            assert_eq!(read(response.body()).await.err(), Some(expected));
            served.await;
        });
    }
    let (gone, address) = smol::block_on(listener());
    drop(gone);
    rig(&[address.to_string()], &[]).run(async |line| {
        let why = refused(line, &format!("http://{address}/")).await;
        assert_eq!(why, ErrorCode::ConnectionRefused);
    });
}

#[test]
fn who_waits_too_long_is_told_what_for() {
    let (listener, address) = smol::block_on(listener());
    let short = Some(Duration::from_millis(20));
    rig(&[address.to_string()], &[]).run(async |line| {
        let url = format!("http://{address}/");
        let silent = line.send(get(&url), Within::new(None, short, None));
        assert_eq!(settled(&silent).await.err(), Some(ErrorCode::HttpResponseTimeout));
        let _first = listener.accept().await.unwrap();
        let stuck = line.send(get(&url), Within::new(None, None, short));
        let (mut stream, _) = listener.accept().await.unwrap();
        until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await.unwrap();
        let response = settled(&stuck).await.unwrap();
        assert_eq!(read(response.body()).await.err(), Some(ErrorCode::ConnectionReadTimeout));
    });
    let never: Lookup = Arc::new(|_, _| Box::pin(std::future::pending()));
    let (outgoing, sending) = with_lookup(Allowed::new(&["slow.example".to_owned()]).unwrap(), never);
    Rig { outgoing, sending, lookups: Arc::default() }.run(async |line| {
        let lost = line.send(get("http://slow.example/"), Within::new(short, None, None));
        assert_eq!(settled(&lost).await.err(), Some(ErrorCode::DnsTimeout));
    });
    let longer = Within::new(Some(Duration::MAX), Some(Duration::MAX), Some(Duration::MAX));
    assert_eq!(format!("{longer:?}"), format!("{:?}", within()), "never longer than the box would wait");
}

/// The story: names whose server never answers held all lookups, also after their guests had given up.
#[test]
fn names_that_nobody_answers_for_keep_only_their_subjects_lookups() {
    let (held, never) = smol::channel::bounded::<Infallible>(1);
    let (begun, begins) = smol::channel::unbounded();
    let lookup = connect::bounded(move |name| {
        let _ = begun.try_send(());
        if name == "silent.example" {
            let _ = never.recv_blocking();
        }
        Err(std::io::Error::other("no such name"))
    });
    let names = ["silent.example", "none.example"].map(str::to_owned);
    let (outgoing, sending) = with_lookup(Allowed::new(&names).unwrap(), lookup);
    let line = |subject: &str| {
        let instance = InstanceId::random();
        outgoing.line(instance, Subject::new(subject), &Allowed::default(), Pacer::default())
    };
    let rig = Rig { outgoing: outgoing.clone(), sending, lookups: Arc::default() };
    rig.run(async |_| {
        let lines: Vec<Line> =
            (0..limits::OUTGOING_PER_SUBJECT / limits::OUTGOING_PER_INSTANCE).map(|_| line("a")).collect();
        let silent = || get("http://silent.example/");
        let sent: Vec<Sent> = lines
            .iter()
            .flat_map(|line| [(); limits::OUTGOING_PER_INSTANCE].map(|_| line.send(silent(), within())))
            .collect();
        for _ in 0..limits::LOOKUPS_PER_SUBJECT {
            begins.recv().await.unwrap();
        }
        drop(sent);
        let other = refused(&line("b"), "http://none.example/").await;
        assert!(matches!(other, ErrorCode::DnsError(_)), "{other:?}");
        let own = line("a").send(get("http://none.example/"), within());
        begins.recv().await.unwrap(); // the other's
        drop(held);
        let own = settled(&own).await.err();
        assert!(matches!(own, Some(ErrorCode::DnsError(_))), "it had to wait for its own: {own:?}");
    });
}

#[test]
fn places_are_bounded_for_each_and_for_all_and_come_back() {
    let (listener, address) = smol::block_on(listener());
    let url = format!("http://{address}/");
    let rig = rig(&[address.to_string()], &[]);
    let (outgoing, places) = (rig.outgoing.clone(), rig.outgoing.on_their_way.of_subject.clone());
    rig.run(async |_| {
        let full =
            |sent: Sent| async move { settled(&sent).await.err() == Some(ErrorCode::ConnectionLimitReached) };
        let mut held = Vec::new();
        // One whose subject has too many is not even begun, and has its place all the same.
        let rests = Pacer::new(Arc::new(|_| Duration::from_secs(3600)));
        for (subject, pacer) in [("a", Pacer::default()), ("b", rests)] {
            for _ in 0..limits::OUTGOING_PER_SUBJECT / limits::OUTGOING_PER_INSTANCE {
                let (instance, subject) = (InstanceId::random(), Subject::new(subject));
                let line = outgoing.line(instance, subject, &Allowed::default(), pacer.clone());
                held.extend((0..limits::OUTGOING_PER_INSTANCE).map(|_| line.send(get(&url), within())));
                assert!(full(line.send(get(&url), within())).await, "the instance has its share");
            }
            let line = outgoing.line(
                InstanceId::random(),
                Subject::new(subject),
                &Allowed::default(),
                Pacer::default(),
            );
            assert!(full(line.send(get(&url), within())).await, "{subject} has its share");
        }
        let line =
            outgoing.line(InstanceId::random(), Subject::new("c"), &Allowed::default(), Pacer::default());
        assert!(full(line.send(get(&url), within())).await, "all are taken");
        assert_eq!(places.taken(), limits::OUTGOING);
        // A guest that lets go, or has ended, gives its places back, and its sockets with them.
        let (mut stream, _) = listener.accept().await.unwrap();
        until(&mut stream, "\r\n\r\n").await;
        held.clear();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
        while places.taken() > 0 {
            smol::future::yield_now().await;
        }
    });
}

#[test]
fn a_long_response_rests_between_its_pieces_and_its_silence_is_the_peers_alone() {
    // Shorter than a rest. The peer has sent all before the first one is over, so its silence is never as long.
    const PATIENCE: Duration = Duration::from_millis(50);
    let told = Arc::new(AtomicU32::new(0));
    let account = {
        let told = told.clone();
        // A piece asks before it, and takes what it takes.
        move |takes: Duration| match takes.is_zero() {
            true => {
                told.fetch_add(1, Ordering::Relaxed);
                Duration::from_secs(3600)
            }
            false => Duration::ZERO,
        }
    };
    let body: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
    let whole = [body.as_bytes(), &[7; 100_000]].concat();
    let (address, served) = answering(Vec::leak(whole));
    let rig = rig(&[address.to_string()], &[]);
    let line = rig.outgoing.line(
        InstanceId::random(),
        Subject::new("one"),
        &Allowed::default(),
        Pacer::new(Arc::new(account)),
    );
    rig.run(async |_| {
        let impatient = Within::new(None, None, Some(PATIENCE));
        let sent = line.send(get(&format!("http://{address}/")), impatient);
        let response = settled(&sent).await.unwrap();
        assert_eq!(read(response.body()).await.unwrap().0, [7; 100_000]);
        served.await;
    });
    assert!(told.load(Ordering::Relaxed) > 100_000 / 8192, "each piece of the response asks");
}

#[test]
fn a_response_that_nobody_reads_any_more_ends_its_connection() {
    let (listener, address) = smol::block_on(listener());
    rig(&[address.to_string()], &[]).run(async |line| {
        let sent = line.send(get(&format!("http://{address}/")), within());
        let (mut stream, _) = listener.accept().await.unwrap();
        until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await.unwrap();
        drop(settled(&sent).await.unwrap());
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
    });
}
