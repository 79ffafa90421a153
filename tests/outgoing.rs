//! Programs that call HTTP, as seen from both ends: the program `call` on one, a server of the test's own on the other.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use support::client::{Client, Event};
use support::frame::Outgoing;
use support::{Server, guest_bytes, mint};

/// A server on loopback that answers by the path of a request; each request's head is told to the test.
struct Peer {
    address: String,
    heads: mpsc::Receiver<String>,
}

impl Peer {
    fn open() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (told, heads) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let told = told.clone();
                thread::spawn(move || answer(stream, &told));
            }
        });
        Peer { address, heads }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Heads of requests that came, and were not asked for yet.
    fn requests(&self) -> Vec<String> {
        self.heads.try_iter().collect()
    }

    fn config(&self) -> String {
        format!("[http]\nallow = [\"{}\"]\n", self.address)
    }
}

/// One connection, one request. A client that goes away ends it.
fn answer(stream: TcpStream, told: &mpsc::Sender<String>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let path = head.split(' ').nth(1)?.to_owned();
    let _ = told.send(head); // the test is over
    let mut say = |text: &str| stream.write_all(text.as_bytes()).ok();
    match path.as_str() {
        "/hello" => say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
        "/moved" => say("HTTP/1.1 302 Found\r\nlocation: /hello\r\ncontent-length: 0\r\n\r\n"),
        // Gives each piece back as it comes.
        "/echo" => {
            say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            loop {
                let mut size = String::new();
                reader.read_line(&mut size).ok()?;
                let bytes = usize::from_str_radix(size.trim(), 16).ok()?;
                let mut piece = vec![0; bytes + 2];
                reader.read_exact(&mut piece).ok()?;
                stream.write_all(size.as_bytes()).and_then(|()| stream.write_all(&piece)).ok()?;
                if bytes == 0 {
                    return Some(());
                }
            }
        }
        "/short" => say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"),
        "/huge" => say("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"),
        "/stuck" => {
            say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")?;
            gone(reader, told)
        }
        // Says nothing until the client gives up.
        _ => gone(reader, told),
    }
}

fn gone(mut reader: BufReader<TcpStream>, told: &mpsc::Sender<String>) -> Option<()> {
    let _ = reader.read(&mut [0]); // an end or a reset
    told.send("gone".to_owned()).ok()
}

async fn call(client: &mut Client, arguments: &[&str]) -> String {
    let ended = client.run("call", arguments).await;
    assert_eq!(ended.event, 1, "{arguments:?}: {}", ended.text);
    ended.text
}

#[test]
fn a_program_calls_whom_the_configuration_names() {
    let peer = Peer::open();
    let server = Server::small_with(&peer.config());
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        assert_eq!(call(&mut client, &["get", &peer.url("/hello")]).await, "200: hello");
        let heads = peer.requests();
        let [head] = &heads[..] else { panic!("{heads:?}") };
        assert!(head.starts_with("GET /hello HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("x-from: a program\r\n"), "{head}");
        assert!(head.contains(&format!("host: {}\r\n", peer.address)), "{head}");
        // More than is ever on its way: both bodies move while neither is complete.
        let told = call(&mut client, &["post", &peer.url("/echo"), "3000000"]).await;
        assert_eq!(told, "200: 3000000 bytes in order: true");
        assert_eq!(call(&mut client, &["get", &peer.url("/moved")]).await, "302 to \"/hello\": ");
        assert_eq!(peer.requests().len(), 2, "nobody followed the redirect");
    });
}

#[test]
fn nobody_is_called_whom_nobody_allows() {
    let peer = Peer::open();
    let server = Server::small_with("[http]\nallow = [\"localhost:9\", \"api.example.com\"]\n");
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let port = peer.address.rsplit(':').next().expect("a port");
        for url in [peer.url("/hello"), format!("http://localhost:{port}/"), "http://[::1]:9/".to_owned()] {
            let told = call(&mut client, &["get", &url]).await;
            assert!(told.contains("HttpRequestDenied"), "{url}: {told}");
            let told = call(&mut client, &["post", &url, "200000"]).await;
            assert!(told.contains("HttpRequestDenied"), "{url}: {told}");
        }
        // Its name is allowed, its address is not.
        let told = call(&mut client, &["get", "http://localhost:9/"]).await;
        assert!(told.contains("DestinationIpProhibited"), "{told}");
        let told = call(&mut client, &["get", "https://api.example.com/"]).await;
        assert!(told.contains("https is not spoken by this server") && told.contains("TLS proxy"), "{told}");
        // However often a program asks, the log stays short.
        call(&mut client, &["insist", &peer.url("/"), "1000"]).await;
    });
    assert_eq!(peer.requests(), Vec::<String>::new());
    let log = server.log();
    assert!(log.contains(&format!("add \"{}\" to allow under [http]", peer.address)), "{log}");
    assert!(
        log.contains("localhost:9 is at 127.0.0.1:9") || log.contains("localhost:9 is at [::1]:9"),
        "{log}"
    );
    assert!(log.matches("may not be called").count() < 30, "{log}");
}

#[test]
fn a_token_may_allow_more_to_its_bearer_alone() {
    let peer = Peer::open();
    let mut server = Server::guarded();
    let plain = server.token.take();
    server.token = Some(mint(&server.key(), "tester", &["--http", &peer.address]));
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        assert_eq!(call(&mut client, &["get", &peer.url("/hello")]).await, "200: hello");
    });
    server.token = plain;
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let told = call(&mut client, &["get", &peer.url("/hello")]).await;
        assert!(told.contains("HttpRequestDenied"), "{told}");
    });
    assert_eq!(peer.requests().len(), 1);
}

/// While whoever is called there is down, all that programs send him would be a stranger's.
#[test]
fn no_program_answers_where_programs_may_call_the_box() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let server = Server::small_with(&format!("[http]\nallow = [\"{closed}\"]\n"));
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let hash = client.upload(&guest_bytes("hello")).await.expect("a good program");
        for (port, part) in
            [(closed.port(), "is somebody's whom programs may call"), (80, "between 1024 and")]
        {
            let launch = Outgoing::new("launch_server_instance").with("program_hash", &*hash);
            let launch = launch.with("port", i64::from(port)).with("arguments", &[] as &[&str]);
            let refused = client.ask(launch).await.expect_err("a port that is another's");
            assert!(refused.contains(part) && refused.contains(&port.to_string()), "{refused}");
        }
    });
}

#[test]
fn what_goes_wrong_is_told_to_the_program() {
    let peer = Peer::open();
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let server = Server::small_with(&format!("[http]\nallow = [\"{}\", \"{closed}\"]\n", peer.address));
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (arguments, part) in [
            (&["get", &format!("http://{closed}/")] as &[&str], "ConnectionRefused"),
            (&["get", &peer.url("/huge")], "HttpResponseBodySize"),
            (&["get", &peer.url("/silent"), "--first-byte", "50"], "HttpResponseTimeout"),
            (&["get", &peer.url("/stuck"), "--between", "50"], "200, then failed"),
            (&["get", &peer.url("/short")], "200, then failed"),
        ] {
            let told = call(&mut client, arguments).await;
            assert!(told.contains(part), "{arguments:?}: {told}");
        }
        // As many at once as an instance may have; the others are told so, and the time of those runs out.
        let told = call(&mut client, &["crowd", &peer.url("/silent"), "11", "--first-byte", "300"]).await;
        assert!(told.contains("ConnectionLimitReached") && told.contains("\": 3"), "{told}");
        assert!(told.contains("HttpResponseTimeout") && told.contains("\": 8"), "{told}");
    });
}

#[test]
fn a_program_that_is_ended_leaves_no_request_behind() {
    let peer = Peer::open();
    let server = Server::small_with(&peer.config());
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        for (mode, path) in [("get", "/silent"), ("hold", "/stuck")] {
            let instance = client.launch("call", &[mode, &peer.url(path)]).await;
            assert!(peer.heads.recv().expect("the peer runs").contains(path));
            if mode == "hold" {
                assert_eq!(client.event(&instance).await, Event::Message("the head is there".to_owned()));
            }
            client.terminate(&instance).await;
            assert_eq!(client.end(&instance).await.event, 2);
            assert_eq!(peer.heads.recv().expect("the peer runs"), "gone", "{mode}");
        }
    });
}
