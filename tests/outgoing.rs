//! Programs that ask hosts by HTTP, from outside: `inferlets/fetch` against servers of this test's own, on loopback.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::client::Client;
use support::{Server, mint};

/// A host that answers by the path of the request, and counts who came.
struct Peer {
    address: SocketAddr,
    came: Arc<AtomicUsize>,
}

impl Peer {
    fn new() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, came) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
        let counted = came.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || answer(&stream));
            }
        });
        Peer { address, came }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::Relaxed)
    }
}

/// What a client does not want any more it may leave, so nothing here has to succeed.
fn answer(mut stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while matches!(reader.read_line(&mut head), Ok(3..)) {}
    let mut bytes = 0;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut size = String::new();
        while matches!(reader.read_line(&mut size), Ok(1..)) {
            let chunk = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut taken = vec![0; chunk + 2];
            if reader.read_exact(&mut taken).is_err() || chunk == 0 {
                break;
            }
            bytes += chunk;
            size.clear();
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let _ = match path {
        "/silent" => reader.read(&mut [0; 16]).map(drop),
        "/short" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"),
        "/away" => stream
            .write_all(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"),
        "/flood" => stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n")
            .and_then(|()| (0..50).try_for_each(|_| stream.write_all(&[b'f'; 100_000]))),
        _ => {
            let marked = head.contains("x-program: fetch");
            let text = format!("{} marked {marked}, {bytes} bytes", head.lines().next().unwrap_or_default());
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
        }
    };
}

/// The messages of one request.
fn fetch(server: &Server, token: Option<&str>, arguments: &[&str]) -> Vec<String> {
    smol::block_on(async {
        let mut client = Client::connect_to(&server.url, token).await;
        let ended = client.run("fetch", arguments).await;
        assert_eq!(ended.event, 1, "{ended:?}");
        ended.messages
    })
}

#[test]
fn a_program_asks_a_host_that_the_configuration_names_and_no_other() {
    let (named, other) = (Peer::new(), Peer::new());
    let server = Server::small_with(&format!("[http]\nallow = [\"{}\"]\n", named.address));
    let ask = |arguments: &[&str]| fetch(&server, None, arguments);
    assert_eq!(
        ask(&["GET", &named.url("/a?b")]),
        ["status 200", "38 bytes, whole", "GET /a?b HTTP/1.1 marked true, 0 bytes"][..].to_vec()
    );
    let posted = ask(&["POST", &named.url("/"), "--body", "3000000"]);
    assert_eq!(posted.last().map(String::as_str), Some("POST / HTTP/1.1 marked true, 3000000 bytes"));
    assert_eq!(ask(&["GET", &named.url("/flood")])[..2], ["status 200", "5000000 bytes, whole"]);
    assert_eq!(ask(&["GET", &named.url("/away")])[0], "status 302");
    let short = ask(&["GET", &named.url("/short")]);
    assert!(short[0] == "status 200" && short[1].starts_with("5 bytes, broken"), "{short:?}");
    let silent = ask(&["GET", &named.url("/silent"), "--first-byte", "100"]);
    assert!(silent[0].contains("ConnectionReadTimeout"), "{silent:?}");

    let port = named.address.port();
    for url in [other.url("/"), format!("http://localhost:{port}/"), format!("http://127.1:{port}/")] {
        let denied = ask(&["GET", &url]);
        assert!(denied[0].contains("HttpRequestDenied"), "{url}: {denied:?}");
    }
    let secure = ask(&["GET", &format!("https://{}/", named.address)]);
    assert!(secure[0].contains("run a TLS proxy"), "{secure:?}");
    assert_eq!(other.came(), 0);
    let mend = format!(
        "{} is not asked for a program that may not: add \"{0}\" to allow under [http]",
        other.address
    );
    assert!(server.log().contains(&mend), "{}", server.log());
}

/// The name is allowed, and leads to this machine, which is not.
#[test]
fn a_name_is_no_way_to_this_machine() {
    let peer = Peer::new();
    let port = peer.address.port();
    let server = Server::small_with(&format!("[http]\nallow = [\"localhost:{port}\"]\n"));
    let denied = fetch(&server, None, &["GET", &format!("http://localhost:{port}/")]);
    assert!(denied[0].contains("DestinationIpProhibited"), "{denied:?}");
    assert_eq!(peer.came(), 0);
    assert!(server.log().contains("which is no address of the public internet: add \""), "{}", server.log());
}

#[test]
fn a_token_may_name_a_host_for_whoever_holds_it() {
    let peer = Peer::new();
    let server = Server::guarded_small();
    let more = mint(Path::new(&server.key()), "asker", &["--http", &peer.address.to_string()]);
    let asked = fetch(&server, Some(&more), &["GET", &peer.url("/")]);
    assert_eq!(asked[0], "status 200");
    let denied = fetch(&server, server.token.as_deref(), &["GET", &peer.url("/")]);
    assert!(denied[0].contains("HttpRequestDenied"), "{denied:?}");
    assert_eq!(peer.came(), 1);
}
