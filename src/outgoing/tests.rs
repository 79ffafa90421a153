//! Requests as an instance gives them, to servers on loopback, with a resolver that says what the test wants.

use super::*;
use crate::transfer::{Outcome, Taken, Writer, empty, pipe};
use connect::Found;
use http::{Method, Request};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;

/// Each lookup has the next of these answers, the last for good; and how many lookups there were.
struct Zone {
    answers: Mutex<Vec<Vec<&'static str>>>,
    lookups: AtomicUsize,
}

impl Zone {
    fn new(answers: &[&[&'static str]]) -> Arc<Zone> {
        let answers = answers.iter().rev().map(|answer| answer.to_vec()).collect();
        Arc::new(Zone { answers: Mutex::new(answers), lookups: AtomicUsize::new(0) })
    }
}

impl Resolve for Zone {
    fn resolve(&self, _: String, port: u16) -> Found {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop().unwrap() } else { answers[0].clone() };
        let found = answer.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect();
        Box::pin(async move { Ok(found) })
    }
}

/// A server that answers each connection, one after the other, by `serve`; and how many there were.
struct Peer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Peer {
    fn new(serve: impl Fn(TcpStream, String) + Send + 'static) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut head = String::new();
                // Byte by byte: what follows is the body's.
                let mut byte = [0];
                while !head.ends_with("\r\n\r\n") && matches!((&stream).read(&mut byte), Ok(1)) {
                    head.push(char::from(byte[0]));
                }
                serve(stream, head);
            }
        });
        Peer { address, connections }
    }

    fn saying(text: &'static str) -> Peer {
        Peer::new(move |mut stream, _| {
            let _ = stream.write_all(text.as_bytes()); // a client may be gone
        })
    }

    fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/a?b=c", self.address.port())
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// What an instance with this policy gets for its requests, in turn.
struct Desk(Asking);

impl Desk {
    fn of(allow: &[&str], resolver: Arc<dyn Resolve>) -> Desk {
        let allow: Vec<String> = allow.iter().map(|text| text.to_string()).collect();
        let (outgoing, sending) = outgoing(Allowed::parse(&allow).unwrap());
        let sending = sending.with(resolver);
        std::thread::spawn(move || smol::block_on(sending.run()));
        Desk(outgoing.instance(InstanceId::random(), Allowed::default()))
    }

    fn to(peer: &Peer) -> Desk {
        Desk::of(&[&peer.address.to_string()], Zone::new(&[&[]]))
    }

    fn get(&self, url: &str) -> Outcome {
        self.ask(request("GET", url, empty()), Times::default())
    }

    fn ask(&self, request: Request<Reader>, times: Times) -> Outcome {
        let (promised, _wanted) = self.0.send(request, times);
        smol::block_on(std::future::poll_fn(|context| promised.poll_settled(context)));
        promised.take().unwrap()
    }
}

fn request(method: &str, url: &str, body: Reader) -> Request<Reader> {
    Request::builder().method(method).uri(url).header("x-mark", "1").body(body).unwrap()
}

fn refusal(outcome: Outcome) -> ErrorCode {
    outcome.map(|response| response.status()).expect_err("no response")
}

/// The whole body.
fn text(outcome: Outcome) -> Result<String, ErrorCode> {
    let body = outcome?.into_body();
    let mut bytes = vec![];
    loop {
        smol::block_on(std::future::poll_fn(|context| body.poll_ready(context)));
        match body.take(usize::MAX) {
            Taken::Bytes(more) => bytes.extend(more),
            Taken::End(_) => return Ok(String::from_utf8(bytes).unwrap()),
            Taken::Broken(why) => return Err(why),
            Taken::Nothing => {}
        }
    }
}

fn write_all(writer: &Writer, bytes: &[u8]) -> Result<(), crate::transfer::Refused> {
    for chunk in bytes.chunks(4096) {
        smol::block_on(std::future::poll_fn(|context| writer.poll_room(context)));
        writer.write(chunk.to_vec().into())?;
    }
    Ok(())
}

#[test]
fn a_request_goes_out_as_it_was_made_and_its_answer_comes_whole() {
    let peer = Peer::new(|mut stream, head| {
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let mut body = Vec::new();
        // The last chunk, or nothing where there is no body.
        while chunked && !body.ends_with(b"0\r\n\r\n") {
            let mut byte = [0; 512];
            let read = stream.read(&mut byte).unwrap();
            body.extend(&byte[..read]);
        }
        let answer = format!("{head}{} bytes", body.iter().filter(|byte| **byte == b'z').count());
        let half = answer.len() / 2;
        let (first, rest) = answer.split_at(half);
        let chunks = format!("{half:x}\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len());
        write!(stream, "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").unwrap();
    });
    let desk = Desk::to(&peer);
    let got = desk.get(&peer.url("127.0.0.1"));
    assert_eq!(got.as_ref().unwrap().status(), 201);
    let got = text(got).unwrap();
    assert!(got.starts_with("GET /a?b=c HTTP/1.1\r\n") && got.ends_with("0 bytes"), "{got}");
    assert!(got.contains(&format!("host: {}\r\n", peer.address)) && got.contains("x-mark: 1\r\n"), "{got}");

    let (writer, reader) = pipe(None);
    let writing = std::thread::spawn(move || {
        write_all(&writer, &[b'z'; 200_000]).unwrap();
        writer.finish(None).unwrap();
    });
    let got = text(desk.ask(request("POST", &peer.url("127.0.0.1"), reader), Times::default())).unwrap();
    writing.join().unwrap();
    assert!(got.starts_with("POST ") && got.ends_with("200000 bytes"), "{got}");
}

/// The story of DNS rebinding: a name leads to a good address when it is judged, and to another when it is connected to.
#[test]
fn a_name_that_is_rebound_reaches_nothing_of_this_machine() {
    let peer = Peer::saying("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
    let allow = format!("evil.example:{}", peer.address.port());
    let inside: &[&[&'static str]] =
        &[&["127.0.0.1"], &["::1"], &["::ffff:127.0.0.1"], &["10.0.0.1", "169.254.169.254"]];
    let desk = Desk::of(&[&allow], Zone::new(inside));
    for _ in inside {
        assert_eq!(refusal(desk.get(&peer.url("evil.example"))), ErrorCode::DestinationIpProhibited);
    }
    // The first answer may be connected to, the second not. Each request asks once, and goes where it was told then.
    let zone = Zone::new(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let desk = Desk::of(&[&allow, &peer.address.to_string()], zone.clone());
    assert_eq!(text(desk.get(&peer.url("evil.example"))), Ok("secret".to_owned()));
    assert_eq!((zone.lookups.load(Ordering::Relaxed), peer.connections()), (1, 1));
    assert_eq!(refusal(desk.get(&peer.url("evil.example"))), ErrorCode::DestinationIpProhibited);
    assert_eq!((zone.lookups.load(Ordering::Relaxed), peer.connections()), (2, 1));
}

/// A name may lead to this network where the address is named too; what else it leads to is passed over.
#[test]
fn a_name_leads_to_an_address_that_is_named() {
    let peer = Peer::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let port = peer.address.port();
    let allow = [format!("nas.lan:{port}"), format!("127.0.0.1:{port}")];
    let zone = Zone::new(&[&["10.0.0.7", "::1", "127.0.0.1"]]);
    let desk = Desk::of(&[&allow[0], &allow[1]], zone);
    assert_eq!(text(desk.get(&peer.url("NAS.lan"))), Ok("hi".to_owned()));
    assert_eq!(refusal(desk.get("http://nas.lan/")), ErrorCode::HttpRequestDenied, "another port");
}

#[test]
fn what_is_not_allowed_or_makes_no_sense_reaches_nobody() {
    let peer = Peer::saying("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
    let port = peer.address.port();
    let zone = Zone::new(&[&["127.0.0.1"]]);
    let desk = Desk::of(&[], zone.clone());
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "example.com",
    ] {
        assert_eq!(
            refusal(desk.get(&format!("http://{host}:{port}/"))),
            ErrorCode::HttpRequestDenied,
            "{host}"
        );
    }
    let desk = Desk::of(&[&format!("127.0.0.1:{port}")], zone.clone());
    assert_eq!(refusal(desk.get(&format!("http://a@127.0.0.1:{port}/"))), ErrorCode::HttpRequestUriInvalid);
    assert_eq!(refusal(desk.get(&format!("ftp://127.0.0.1:{port}/"))), ErrorCode::HttpRequestUriInvalid);
    let secure = refusal(desk.get(&format!("https://127.0.0.1:{port}/")));
    assert!(
        matches!(&secure, ErrorCode::InternalError(Some(what)) if what.contains("run a TLS proxy")),
        "{secure:?}"
    );
    let mut connect = request("GET", &peer.url("127.0.0.1"), empty());
    *connect.method_mut() = Method::CONNECT;
    assert_eq!(refusal(desk.ask(connect, Times::default())), ErrorCode::HttpRequestMethodInvalid);
    assert_eq!((peer.connections(), zone.lookups.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn what_goes_wrong_at_the_other_end_has_its_own_code() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(limits::HTTP_HEAD_FIELDS + 1));
    let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(2 * limits::HTTP_HEAD_BYTES));
    let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", limits::OUTGOING_BODY_BYTES + 1);
    let head_size = ErrorCode::HttpResponseHeaderSectionSize(Some(limits::HTTP_HEAD_BYTES as u32));
    for (says, code) in [
        ("", ErrorCode::HttpResponseIncomplete),
        ("HTTP/1.1 20", ErrorCode::HttpResponseIncomplete),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", ErrorCode::HttpProtocolError),
        (&many, head_size.clone()),
        (&long, head_size),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            ErrorCode::HttpUpgradeFailed,
        ),
        (&huge, ErrorCode::HttpResponseBodySize(Some(limits::OUTGOING_BODY_BYTES + 1))),
    ] {
        let answer = says.to_owned();
        let peer = Peer::new(move |mut stream, _| {
            let _ = stream.write_all(answer.as_bytes()); // the client may have seen enough
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 16]);
        });
        assert_eq!(
            refusal(Desk::to(&peer).get(&peer.url("127.0.0.1"))),
            code,
            "{}",
            &says[..says.len().min(40)]
        );
    }
    let short = Peer::saying("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort");
    let broken = text(Desk::to(&short).get(&short.url("127.0.0.1")));
    assert_eq!(broken, Err(ErrorCode::HttpResponseIncomplete));
    // Bound and given back: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let desk = Desk::of(&[&free, "no.example"], Zone::new(&[&[]]));
    assert_eq!(refusal(desk.get(&format!("http://{free}/"))), ErrorCode::ConnectionRefused);
    assert_eq!(refusal(desk.get("http://no.example/")), ErrorCode::DestinationNotFound);
}

#[test]
fn a_redirect_is_the_guests_to_follow() {
    let peer = Peer::saying("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n");
    let response = Desk::to(&peer).get(&peer.url("127.0.0.1")).unwrap();
    assert_eq!((response.status().as_u16(), peer.connections()), (302, 1));
}

/// The peer holds each connection until the other side ends it, and counts those ends.
#[test]
fn a_guest_waits_no_longer_than_it_says_and_what_it_drops_ends() {
    let ends = Arc::new(AtomicUsize::new(0));
    let counted = ends.clone();
    let peer = Peer::new(move |mut stream, head| {
        let counted = counted.clone();
        std::thread::spawn(move || {
            if head.starts_with("PUT") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").unwrap();
            }
            while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
            counted.fetch_add(1, Ordering::Relaxed);
        });
    });
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let since = std::time::Instant::now();
        while !done() {
            assert!(since.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let ended = |count| until("a connection lives on", &|| ends.load(Ordering::Relaxed) == count);
    let desk = Desk::to(&peer);
    let ask = |method| request(method, &peer.url("127.0.0.1"), empty());
    let soon = Some(Duration::from_millis(100));
    let late = desk.ask(ask("GET"), Times { first_byte: soon, ..Times::default() });
    assert_eq!(refusal(late), ErrorCode::ConnectionReadTimeout);
    ended(1);
    let stalled = text(desk.ask(ask("PUT"), Times { between_bytes: soon, ..Times::default() }));
    assert_eq!(stalled, Err(ErrorCode::ConnectionReadTimeout));
    ended(2);
    let (_promised, wanted) = desk.0.send(ask("GET"), Times::default());
    until("no connection", &|| peer.connections() == 3);
    drop(wanted);
    ended(3);
    let response = desk.ask(ask("PUT"), Times::default()).unwrap();
    let (_promised, _wanted) = desk.0.send(ask("GET"), Times::default());
    until("no connection", &|| peer.connections() == 5);
    drop(desk);
    ended(5);
    drop(response);
}

#[test]
fn an_instance_has_so_many_requests_on_their_way_and_a_place_comes_back() {
    let peer = Peer::new(|stream, _| std::mem::forget(stream));
    let desk = Desk::to(&peer);
    let send = || desk.0.send(request("GET", &peer.url("127.0.0.1"), empty()), Times::default());
    let mut sent: Vec<_> = (0..limits::OUTGOING_REQUESTS_PER_INSTANCE).map(|_| send()).collect();
    assert_eq!(refusal(desk.get(&peer.url("127.0.0.1"))), ErrorCode::ConnectionLimitReached);
    sent.pop();
    let since = std::time::Instant::now();
    while send().0.take().is_some() {
        assert!(since.elapsed() < Duration::from_secs(60), "no place comes back");
        std::thread::sleep(Duration::from_millis(5));
    }
}
