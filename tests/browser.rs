//! What a web page can do to this machine: in a real browser, a page of another origin can neither open the WebSocket nor
//! have a program answer it; a page that the configuration names can do both.
//!
//! `make test-browser` runs it and says what to install where no browser is; `make test` needs none.

mod support;

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use support::client::Client;
use support::frame::Outgoing;
use support::{Folder, PATIENCE, Server, guest_bytes};

/// A page that tries everything a page can, and tells its own origin what it saw.
const PAGE: &str = include_str!("browser.html");

/// An origin: a port of its own that has the page, and takes what the page tells.
struct Origin {
    address: SocketAddr,
    told: Receiver<String>,
}

impl Origin {
    /// The page is filled in by whoever opens it.
    fn new() -> (Origin, std::sync::mpsc::Sender<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let ((page, pages), (tell, told)) = (channel::<String>(), channel());
        std::thread::spawn(move || {
            let Ok(page) = pages.recv() else { return };
            for mut stream in listener.incoming().flatten() {
                let request = request(&mut stream);
                if let Some((_, body)) =
                    request.strip_prefix("POST /told").and_then(|rest| rest.split_once("\r\n\r\n"))
                {
                    let _ = tell.send(body.to_owned()); // the test may have seen enough
                }
                let text = if request.starts_with("GET / ") { &page } else { "" };
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                ); // a browser opens connections that it does not use
            }
        });
        (Origin { address, told }, page)
    }
}

/// A request with its body, as text.
fn request(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).expect("TCP");
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .to_ascii_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0usize) {
                return text;
            }
        }
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => text += &String::from_utf8_lossy(&buffer[..read]),
            _ => return text,
        }
    }
}

struct Browser(Child, #[expect(dead_code, reason = "its profile")] Folder);

impl Browser {
    /// `evil.example` is this machine, as when a name has been rebound.
    fn open(url: &str) -> Browser {
        let program = std::env::var_os("TARTLET_BROWSER").expect("TARTLET_BROWSER: run `make test-browser`");
        let folder = Folder::new();
        let child = Command::new(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .arg("--host-resolver-rules=MAP evil.example 127.0.0.1")
            .args([
                "--remote-debugging-port=0",
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .arg(format!("--user-data-dir={}", folder.path("profile").display()))
            .arg(url)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        Browser(child, folder)
    }
}

/// Debian's command is a script that waits for the browser: the whole group goes.
impl Drop for Browser {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status(); // it may have ended
        let _ = self.0.wait();
    }
}

/// Opens the page, and answers what it saw.
fn visit(origin: &Origin, page: &std::sync::mpsc::Sender<String>, socket: u16, server: u16) -> Value {
    let filled = PAGE.replace("SOCKET_PORT", &socket.to_string()).replace("SERVER_PORT", &server.to_string());
    page.send(filled).expect("the origin waits for it");
    let browser = Browser::open(&format!("http://{}/", origin.address));
    let told = origin.told.recv_timeout(PATIENCE).expect("the page tells what it saw");
    drop(browser);
    serde_json::from_str(&told).expect("JSON")
}

/// How many requests programs were given.
async fn answered(client: &mut Client) -> u64 {
    let told = client.query("server_instances", "").await.expect("an answer");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    told[0]["requests"].as_u64().expect("one server instance")
}

#[test]
fn a_page_of_another_origin_opens_nothing_and_runs_nothing() {
    let ((foreign, foreign_page), (named, named_page)) = (Origin::new(), Origin::new());
    let server = Server::small_with(&format!("origins = [\"http://{}\"]\n", named.address));
    let socket = server.address().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    smol::block_on(async {
        let mut client = Client::connect(&server).await;
        let hash = client.upload(&guest_bytes("web")).await.expect("the server takes it");
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let launch = Outgoing::new("launch_server_instance")
            .with("program_hash", &hash[..])
            .with("port", i64::from(port));
        client.ask(launch.with("arguments", &[] as &[&str])).await.expect("launched");

        let saw = visit(&foreign, &foreign_page, socket, port);
        println!("a foreign page saw {saw:#}");
        let saw = saw.as_object().expect("what was tried, and what came of it");
        assert!(saw.len() >= 20, "everything was tried");
        for (what, came) in saw {
            let came = came.as_str().expect("a word");
            // A page may learn that something is there; never what it says.
            assert!(["refused", "opaque"].contains(&came), "{what}: {came}");
        }
        assert_eq!(answered(&mut client).await, 0, "no program was given a request");
        assert_eq!(server.log().matches(" launched instance").count(), 0, "no program ran: {}", server.log());

        let saw = visit(&named, &named_page, socket, port);
        println!("a page that is named saw {saw:#}");
        assert_eq!(saw["websocket 127.0.0.1"], "open");
        assert!(answered(&mut client).await > 0, "the page that may has reached a program");
    });
}
