//! Programs that answer HTTP, from outside: plain sockets against their ports, polite ones and rude ones.

mod support;

use serde_json::Value;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::client::Client;
use support::frame::Outgoing;
use support::http::{Http, Response};
use support::{PATIENCE, Server, free_port, guest, guest_bytes, mint, tartlet};

/// As many requests as one server instance answers at a time.
const PLACES: usize = 64;

fn launch_request(hash: &str, port: u16, arguments: &[&str]) -> Outgoing {
    Outgoing::new("launch_server_instance")
        .with("program_hash", hash)
        .with("port", i64::from(port))
        .with("arguments", arguments)
}

/// Launches a guest as a server instance over a connection of its own; the port.
fn launch(server: &Server, guest: &str, arguments: &[&str]) -> u16 {
    smol::block_on(async {
        let mut client = Client::connect(server).await;
        let hash = client.upload(&guest_bytes(guest)).await.expect("the server takes it");
        loop {
            let port = free_port();
            match client.ask(launch_request(&hash, port, arguments)).await {
                Ok(answer) => {
                    assert_eq!(answer, "server launched");
                    return port;
                }
                Err(why) => assert!(why.contains("cannot be listened on"), "{why}"), // somebody was quicker
            }
        }
    })
}

/// The server instances that a client is told of.
fn listed(server: &Server, token: Option<&str>) -> Vec<Value> {
    let told = smol::block_on(async {
        let mut client = Client::connect_to(&server.url, token.or(server.token.as_deref())).await;
        client.query("server_instances", "").await.expect("an answer")
    });
    serde_json::from_str::<Value>(&told).expect("JSON").as_array().expect("a list").clone()
}

fn stop(server: &Server, token: Option<&str>, id: &str) -> Result<String, String> {
    smol::block_on(async {
        let mut client = Client::connect_to(&server.url, token.or(server.token.as_deref())).await;
        client.ask(Outgoing::new("stop_server_instance").with("server_id", id)).await
    })
}

/// A number that `model_status` tells.
fn status(server: &Server, key: &str) -> u64 {
    let told = smol::block_on(async {
        let mut client = Client::connect(server).await;
        client.query("model_status", "").await.expect("an answer")
    });
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let (_, value) =
        told.as_object().expect("an object").iter().find(|(name, _)| name.ends_with(key)).expect(key);
    value.as_str().and_then(|number| number.parse().ok()).expect("a number")
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}: not so after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nothing_is_left(server: &Server) {
    until("no instance is left", || status(server, "instances.active_count") == 0);
    until("no page is left", || status(server, "resource.0.used") == 0);
}

#[test]
fn a_program_of_published_crates_alone_answers_as_http_wants() {
    let server = Server::small();
    let port = launch(&server, "hello", &[]);
    let mut http = Http::connect(port);
    let hello = http.get("/");
    assert_eq!((hello.status, hello.text(), hello.whole), (200, "Hello, HTTP!\n", true));
    assert_eq!(hello.field("content-length"), Some("13"));

    // The same connection, again and again.
    assert_eq!(http.post("/echo", b"by length").text(), "by length");
    http.send("POST", "/echo", &["Transfer-Encoding: chunked"], b"");
    for piece in [&b"by "[..], b"chunks", b""] {
        http.chunk(piece).expect("the server reads");
    }
    let echoed = http.response();
    assert_eq!((echoed.text(), echoed.field("transfer-encoding")), ("by chunks", Some("chunked")));

    // Requests before their turn are answered in order.
    http.send("POST", "/echo", &["Content-Length: 3"], b"one");
    http.send("GET", "/nowhere", &[], b"");
    http.send("POST", "/echo", &["Content-Length: 3"], b"two");
    assert_eq!(http.response().text(), "one");
    assert_eq!(http.response().status, 404);
    assert_eq!(http.response().text(), "two");

    http.send("HEAD", "/", &[], b"");
    let head = http.head().expect("a head");
    assert_eq!((head.status, head.field("content-length")), (200, Some("13")));
    http.send("HEAD", "/echo", &[], b"");
    assert_eq!(http.head().map(|head| head.status), Some(200), "nothing came after the head");

    http.send("POST", "/echo", &["Expect: 100-continue", "Content-Length: 5"], b"");
    assert_eq!(http.head().map(|head| head.status), Some(100));
    http.write(b"after").expect("the server reads");
    assert_eq!(http.response().text(), "after");

    http.send("GET", "/echo-headers", &["X-Ours: a", "X-Ours: b", "Connection: keep-alive"], b"");
    let headers = http.response();
    let ours: Vec<_> = headers.fields.iter().filter(|(name, _)| name == "x-ours").collect();
    assert_eq!(ours.len(), 2, "{headers:?}");
    assert_eq!(
        headers.field("host"),
        None,
        "whom a request is for is no field of the program's: {headers:?}"
    );

    let trailing = ["Transfer-Encoding: chunked", "TE: trailers", "Trailer: X-After"];
    http.send("POST", "/echo-trailers", &trailing, b"3\r\nabc\r\n0\r\nX-After: all\r\n\r\n");
    let trailers = http.response();
    assert!(trailers.whole && trailers.body.is_empty(), "{trailers:?}");
    assert_eq!(trailers.field("x-after"), Some("all"), "{trailers:?}");
    http.send("POST", "/echo", &trailing, b"3\r\nabc\r\n0\r\nX-After: all\r\n\r\n");
    let trailers = http.response();
    assert_eq!(
        (trailers.text(), trailers.field("x-after")),
        ("abc", Some("all")),
        "behind a body that was read"
    );

    http.send("GET", "/", &["Connection: close"], b"");
    assert_eq!(http.response().status, 200);
    assert!(http.head().is_none(), "as it was asked to, the server closes");
    nothing_is_left(&server);
}

#[test]
fn a_program_sees_its_request_its_arguments_and_its_like() {
    let server = Server::small();
    let port = launch(&server, "web", &["--of", "the launch"]);
    let mut http = Http::connect(port);
    http.send("PURGE", "/seen?a=b%20c", &["X-Ours: 1"], b"");
    let seen = http.response();
    assert!(seen.text().starts_with("PURGE http://localhost/seen?a=b%20c\n"), "{}", seen.text());
    assert!(seen.text().contains("\nx-ours: 1\n"), "{}", seen.text());
    let arguments = r#"["--of", "the launch"] ["--of", "the launch"]"#;
    assert_eq!(http.get("/arguments").text().trim(), arguments);
    assert_eq!(http.get("/servers").text(), "1");
    let _second = launch(&server, "hello", &[]);
    assert_eq!(http.get("/servers").text(), "2");
}

/// Bodies larger than everything that could hold them, both ways, and a reader that takes its time.
#[test]
fn bodies_stream_and_a_slow_side_holds_the_other_back() {
    const MIB: u64 = 1 << 20;
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    assert_eq!(Http::connect(port).get("/flood?100000").body.len(), 100_000);
    let before = server.memory_kib("VmRSS") as u64 / 1024;

    let mut http = Http::connect(port);
    http.send("GET", &format!("/flood?{}", 64 * MIB), &[], b"");
    assert_eq!(http.head().expect("a head").status, 200);
    let (mut body, mut taken, mut most) = (vec![], 0, 0);
    loop {
        match http.read_chunk(&mut body).expect("the body goes on") {
            0 => break,
            more => taken += more,
        }
        body.clear();
        if taken / MIB % 16 == 1 {
            most = most.max(server.memory_kib("VmRSS") as u64 / 1024);
        }
    }
    assert_eq!(taken, 64 * MIB);
    assert!(most < before + 32, "{most} MiB while it floods, {before} before");

    let mut http = Http::connect(port);
    http.send("POST", "/count", &["Transfer-Encoding: chunked"], b"");
    let piece = vec![b'x'; 256 * 1024];
    for _ in 0..64 {
        http.chunk(&piece).expect("the server reads");
    }
    http.chunk(b"").expect("the server reads");
    assert_eq!(http.response().text(), format!("{} bytes\n", 16 * MIB));

    // One that reads nothing is answered for all the same.
    let mut http = Http::connect(port);
    http.send("POST", "/deaf", &["Content-Length: 1000000"], b"never mind");
    assert_eq!(http.response().text(), "not listening\n");
    nothing_is_left(&server);
}

#[test]
fn thirty_two_at_once_are_answered_with_tokens() {
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    let alone = Http::connect(port).get("/tokens?8");
    assert!(alone.whole && alone.status == 200, "{alone:?}");
    let threads: Vec<_> =
        (0..32).map(|_| std::thread::spawn(move || Http::connect(port).get("/tokens?8"))).collect();
    for thread in threads {
        let one = thread.join().expect("it does not panic");
        assert_eq!((one.status, &one.body, one.whole), (200, &alone.body, true));
    }
    nothing_is_left(&server);
}

#[test]
fn a_full_server_instance_says_so_and_has_room_again() {
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    let other = launch(&server, "hello", &[]);
    let waiting: Vec<Http> = (0..PLACES)
        .map(|_| {
            let mut http = Http::connect(port);
            http.send("GET", "/never", &[], b"");
            http
        })
        .collect();
    until("all places are taken", || status(&server, "instances.active_count") == PLACES as u64);
    let full = Http::connect(port).get("/seen");
    assert_eq!((full.status, full.field("retry-after")), (503, Some("1")), "{full:?}");
    assert_eq!(Http::connect(other).get("/").status, 200, "another server instance has places of its own");
    drop(waiting);
    nothing_is_left(&server);
    assert_eq!(Http::connect(port).get("/seen").status, 200);
}

/// However few files whoever starts the server would let it have: so many as its connections may need it takes itself.
#[test]
fn there_are_files_for_all_connections() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let few = rustix::process::Rlimit { current: Some(200), ..before };
    setrlimit(Resource::Nofile, few).expect("less is always possible");
    let server = Server::small();
    setrlimit(Resource::Nofile, before).expect("as it was");
    assert_eq!(server.most_files(), tartlet::limits::DESCRIPTORS);
    // More than one server instance may have; the next one is told so.
    let port = launch(&server, "hello", &[]);
    let idle: Vec<Http> = (0..tartlet::limits::HTTP_CONNECTIONS_PER_SERVER)
        .map(|_| {
            let mut http = Http::connect(port);
            assert_eq!(http.get("/").status, 200);
            http
        })
        .collect();
    assert_eq!(Http::connect(port).head().map(|head| head.status), Some(503));
    let other = launch(&server, "hello", &[]);
    assert_eq!(Http::connect(other).get("/").status, 200);
    drop(idle);
}

/// The requests that a web page of another site could make, whose name may even lead here.
#[test]
fn strangers_are_refused_before_an_instance_is_made() {
    let server = Server::small_with("hosts = [\"box.lan\"]\norigins = [\"https://app.example\"]\n");
    let port = launch(&server, "hello", &[]);
    let ask = |head: &str| {
        let mut http = Http::connect(port);
        http.write(head.as_bytes()).expect("the server reads");
        let answer: Response = http.response();
        answer.status
    };
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: box.lan:80\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
        ("GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: box.lan\r\nOrigin: https://app.example\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n", 403),
        ("OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403),
        ("CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    ] {
        assert_eq!(ask(head), expected, "{head:?}");
    }
    let requests = &listed(&server, None)[0]["requests"];
    assert_eq!(requests, 5, "the refused ones made no instance");
}

#[test]
fn too_much_and_too_slow_are_refused() {
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    // A head that never ends is closed in its time, and a body answered; they wait beside the others.
    let slow = |text: &'static [u8]| {
        std::thread::spawn(move || {
            let mut http = Http::connect(port);
            http.write(text).expect("the server reads");
            http.head().map(|head| head.status)
        })
    };
    let slow_head = slow(b"GET / HTTP/1.1\r\nHost: loc");
    let slow_body =
        slow(b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nfirst of all");
    // So is one that takes nothing of its answer, with its instance.
    let mut deaf = Http::connect(port);
    deaf.send("GET", "/flood?1000000000", &[], b"");
    let mut huge = Http::connect(port);
    let _ = huge.write(format!("GET /{} HTTP/1.1\r\n", "a".repeat(100_000)).as_bytes()); // it may not read all
    assert!(huge.head().is_none_or(|head| matches!(head.status, 414 | 431)));
    let many: Vec<String> = (0..200).map(|i| format!("X-{i}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut http = Http::connect(port);
    http.send("GET", "/seen", &many, b"");
    assert_eq!(http.head().map(|head| head.status), Some(431));

    let mut http = Http::connect(port);
    http.send("POST", "/count", &["Content-Length: 67108865"], b"");
    assert_eq!(http.response().status, 413);
    let mut http = Http::connect(port);
    http.send("POST", "/count", &["Transfer-Encoding: chunked"], b"");
    let piece = vec![b'x'; 1 << 20];
    let sent = (0..65).try_for_each(|_| http.chunk(&piece));
    assert!(sent.is_err() || http.head().is_none_or(|head| head.status == 413));
    assert_eq!(Http::connect(port).post("/count", b"fits").text(), "4 bytes\n");
    assert!(matches!(slow_head.join().expect("it does not panic"), None | Some(408)));
    assert_eq!(slow_body.join().expect("it does not panic"), Some(408));
    nothing_is_left(&server);
    assert_eq!(deaf.head().expect("what was sent before").status, 200);
    assert!(
        std::iter::repeat_with(|| deaf.read_chunk(&mut Vec::new())).any(|chunk| chunk.is_err()),
        "it breaks off"
    );
}

#[test]
fn a_client_that_goes_takes_its_instance_and_its_pages_along() {
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    for (target, holds) in [("/hold", true), ("/never", false), ("/spin", false), ("/drip?1", false)] {
        let mut http = Http::connect(port);
        http.send("GET", target, &[], b"");
        until("it runs", || status(&server, "instances.active_count") == 1);
        if holds {
            assert_eq!(http.head().expect("a head").status, 200);
            assert!(status(&server, "resource.0.used") > 0);
        }
        drop(http);
        nothing_is_left(&server);
    }
    let mut http = Http::connect(port);
    http.send("POST", "/echo", &["Content-Length: 100000"], b"and then no more");
    assert_eq!(http.head().expect("a head").status, 200);
    drop(http);
    nothing_is_left(&server);
    // Where something lies before the end of what it sent: a next request, a body that nobody reads, if the kernel takes it.
    let unread = vec![b'x'; 150_000];
    for (method, lines, behind) in
        [("GET", "X-No: body", &b"GET /seen HTTP/1.1\r\n"[..]), ("POST", "Content-Length: 1000000", &unread)]
    {
        let mut http = Http::connect(port);
        http.send(method, "/never", &[lines], behind);
        until("it runs", || status(&server, "instances.active_count") == 1);
        drop(http);
        nothing_is_left(&server);
    }
}

/// However a program ends, its client learns that the answer is none, or not whole, and the next request is answered.
#[test]
fn a_program_that_fails_is_told_as_what_it_is() {
    let mut server = Server::small();
    let port = launch(&server, "web", &[]);
    for target in ["/trap", "/silent"] {
        let failed = Http::connect(port).get(target);
        assert_eq!(failed.status, 500, "{target}");
        assert!(failed.text().contains("had not answered"), "{target}: {}", failed.text());
    }
    for target in ["/trap-late", "/unfinished"] {
        let broken = Http::connect(port).get(target);
        assert_eq!((broken.status, broken.text(), broken.whole), (200, "so far", false), "{target}");
    }
    assert_eq!(Http::connect(port).get("/seen").status, 200);
    assert!(server.log().contains("before the head"), "the log says why");
    server.assert_alive();
    nothing_is_left(&server);
}

/// An answer of which no body goes out is out at once, and so is one that breaks; a program may go on behind it for a while.
#[test]
fn who_has_answered_may_write_something_down_and_then_ends() {
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    for (method, status) in [("GET", 204), ("GET", 304), ("HEAD", 200), ("GET", 200)] {
        let query = format!("{status}&{method}");
        let mut http = Http::connect(port);
        http.send(method, &format!("/afterwards?{query}"), &[], b"");
        assert_eq!(http.head().expect("a head").status, status, "{query}");
        until("it has written", || Http::connect(port).get("/afterwards-kept").text() == query);
    }
    // These would be the server instance's last places.
    for _ in 0..PLACES {
        let mut http = Http::connect(port);
        http.send("HEAD", "/drip?1", &[], b"");
        assert_eq!(http.head().expect("a head").status, 200);
    }
    nothing_is_left(&server);

    let whole = Http::connect(port).get("/lives-on");
    assert_eq!((whole.status, whole.text(), whole.whole), (200, "all of it\n", true));
    let broken = Http::connect(port).get("/lives-on-broken");
    assert_eq!((broken.status, broken.text(), broken.whole), (200, "so far", false));
    let none = Http::connect(port).get("/lives-on-silent");
    assert_eq!(none.status, 500);
    assert!(none.text().contains("threw its way to answer away"), "{}", none.text());
    nothing_is_left(&server);
}

#[test]
fn a_stopped_server_instance_leaves_nothing() {
    let server = Server::small();
    let port = launch(&server, "web", &[]);
    let mut http = Http::connect(port);
    http.send("GET", "/drip?1", &[], b"");
    assert_eq!(http.head().expect("a head").status, 200);
    let mut waiting = Http::connect(port);
    waiting.send("GET", "/spin", &[], b"");
    until("both are answered", || status(&server, "instances.active_count") == 2);
    let all = listed(&server, None);
    assert_eq!((all.len(), &all[0]["port"], &all[0]["answering"]), (1, &Value::from(port), &Value::from(2)));
    let id = all[0]["id"].as_str().expect("an id");
    assert_eq!(stop(&server, None, id), Ok("server stopped".to_owned()));
    assert!(Http::try_connect(port).is_err(), "its port is free");
    let mut body = vec![];
    while http.read_chunk(&mut body).is_ok_and(|more| more > 0) {}
    assert!(http.read_chunk(&mut body).is_err(), "broken off");
    assert!(waiting.head().is_none());
    assert!(listed(&server, None).is_empty());
    assert_eq!(stop(&server, None, id), Err(format!("There is no server instance {id} of yours")));
    nothing_is_left(&server);
    drop(TcpListener::bind(("127.0.0.1", port)).expect("anybody can have the port"));
}

#[test]
fn launches_that_cannot_be_are_answered() {
    let server = Server::small();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let web = client.upload(&guest_bytes("web")).await.expect("it is taken");
        let echo = client.upload(&guest_bytes("echo")).await.expect("it is taken");
        let refused = client.ask(launch_request(&web, port, &[])).await.expect_err("the port is taken");
        assert!(refused.contains(&format!("Port {port} cannot be listened on")), "{refused}");
        let refused = client.ask(launch_request(&echo, free_port(), &[])).await.expect_err("no server");
        assert!(refused.contains("launch_instance"), "{refused}");
        let run =
            Outgoing::new("launch_instance").with("program_hash", &web).with("arguments", &[][..] as &[&str]);
        let refused = client.ask(run).await.expect_err("a server");
        assert!(refused.contains("launch_server_instance"), "{refused}");
        let unknown = "0".repeat(64);
        let refused = client.ask(launch_request(&unknown, free_port(), &[])).await.expect_err("unknown");
        assert_eq!(refused, format!("No such program with hash={unknown}"));
        assert_eq!(client.query("server_instances", "").await, Ok("[]".to_owned()));
    });
}

#[test]
fn a_subject_has_its_own_and_its_tokens_end_takes_them_along() {
    let server = Server::guarded();
    let mine = launch(&server, "hello", &[]);
    let token = |subject, more: &[&str]| mint(&server.key(), subject, more);
    let (other, admin) = (token("other", &[]), token("root", &["--role", "admin"]));
    let id = listed(&server, None)[0]["id"].as_str().expect("an id").to_owned();
    assert!(listed(&server, Some(&other)).is_empty());
    assert!(stop(&server, Some(&other), &id).is_err());
    assert_eq!(Http::connect(mine).get("/").status, 200, "its launcher has gone, and it serves");
    assert_eq!(listed(&server, Some(&admin))[0]["subject"], "tester");
    assert_eq!(stop(&server, Some(&admin), &id), Ok("server stopped".to_owned()));

    let short = token("short", &["--ttl", "3s"]);
    smol::block_on(async {
        let mut client = Client::connect_to(&server.url, Some(&short)).await;
        let hash = client.upload(&guest_bytes("hello")).await.expect("it is taken");
        client.ask(launch_request(&hash, mine, &[])).await.expect("the port is free again");
    });
    assert_eq!(listed(&server, Some(&admin)).len(), 1);
    until("the token has expired", || listed(&server, Some(&admin)).is_empty());
    assert!(Http::try_connect(mine).is_err());
}

#[test]
fn the_command_line_starts_lists_and_stops() {
    let server = Server::small();
    let run = |arguments: &[&str]| {
        let output = tartlet().args(arguments).args(["--server", &server.url]).output().expect("it runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
    };
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let hello = guest("hello");
    let port = loop {
        let port = free_port();
        let (started, said) =
            run(&["instances", "start", hello.to_str().expect("UTF-8"), "--port", &port.to_string()]);
        if started {
            assert_eq!(said, format!("serving on http://127.0.0.1:{port}\n"));
            break port;
        }
        assert!(
            TRIES.fetch_add(1, Ordering::Relaxed) < 10 && said.contains("cannot be listened on"),
            "{said}"
        );
    };
    assert_eq!(Http::connect(port).get("/").status, 200);
    let (ok, table) = run(&["instances", "list"]);
    let id = table.lines().nth(1).and_then(|line| line.split(' ').next()).expect("a line").to_owned();
    assert!(ok && table.contains(&port.to_string()), "{table}");
    assert_eq!(run(&["instances", "stop", &id]), (true, String::new()));
    assert!(Http::try_connect(port).is_err());
    let (ok, said) = run(&["instances", "stop", &id]);
    assert!(!ok && said.contains(&format!("There is no server instance {id} of yours")), "{said}");
}
