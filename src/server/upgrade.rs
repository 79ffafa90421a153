//! From an HTTP request to a WebSocket, or a small refusal.
//!
//! Owns: which requests become a WebSocket. Never: sockets, this is a pure judgement of bytes; nor whose requests may pass
//! at all, which is `names.rs`.

use super::names::Names;
use crate::limits;
use async_tungstenite::tungstenite::handshake::derive_accept_key;
use std::net::IpAddr;

/// Headers that are looked at; more is refused.
const HEADERS: usize = 64;

/// What to do about the bytes read so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The head has not ended yet.
    More,
    /// Send `reply`; the WebSocket begins at byte `head` of what was read.
    Welcome { reply: Vec<u8>, head: usize },
    /// Send this and close.
    Refused(Vec<u8>),
}

/// Judges the head of a request that came in on the address `local`.
pub fn judge(read: &[u8], names: &Names, local: IpAddr) -> Judgement {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(read) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if read.len() < limits::REQUEST_HEAD_BYTES => return Judgement::More,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refused("431 Request Header Fields Too Large", "", "The request's head is too long.");
        }
        Err(_) => return refused("400 Bad Request", "", "This is not an HTTP request."),
    };
    let headers = &*request.headers;
    let all =
        |name: &'static str| headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    let one = |name| all(name).next().and_then(|header| str::from_utf8(header.value).ok()).map(str::trim);

    let values = |name| all(name).map(|header| header.value);
    if let Err(stranger) = names.admit(values("host"), values("origin"), values("sec-fetch-site"), local) {
        let status = if stranger.malformed { "400 Bad Request" } else { "403 Forbidden" };
        return refused(status, "", stranger.sentence);
    }
    if request.method != Some("GET") || request.version != Some(1) {
        return refused("400 Bad Request", "", "A WebSocket starts with a GET request of HTTP/1.1.");
    }
    let lists = |name, word: &str| {
        all(name)
            .filter_map(|header| str::from_utf8(header.value).ok())
            .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
    };
    if !lists("upgrade", "websocket") || !lists("connection", "upgrade") {
        return upgrade_required();
    }
    if one("sec-websocket-version") != Some("13") {
        return upgrade_required();
    }
    // 16 bytes in base64.
    let key = one("sec-websocket-key").filter(|key| key.len() == 24 && key.ends_with("==") && key.is_ascii());
    let Some(key) = key else {
        return refused("400 Bad Request", "", "The Sec-WebSocket-Key is missing or malformed.");
    };
    let reply = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    Judgement::Welcome { reply: reply.into_bytes(), head }
}

/// For a connection beyond the bound.
pub fn refusal(status: &str, sentence: &str) -> Vec<u8> {
    reply(status, "Retry-After: 5\r\n", sentence)
}

fn upgrade_required() -> Judgement {
    refused(
        "426 Upgrade Required",
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        "Tartlet speaks WebSocket (version 13) here.",
    )
}

fn refused(status: &str, headers: &str, sentence: &str) -> Judgement {
    Judgement::Refused(reply(status, headers, sentence))
}

fn reply(status: &str, headers: &str, sentence: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{sentence}\n",
        sentence.len() + 1
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET / HTTP/1.1\r\nHost: localhost:8080\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn of(request: &str) -> Judgement {
        let names =
            Names { hosts: vec!["box.lan".to_owned()], origins: vec!["https://app.example".to_owned()] };
        judge(request.as_bytes(), &names, "192.168.1.7".parse().unwrap())
    }

    /// "101", "403" and so on; "more".
    fn status(request: &str) -> String {
        match of(request) {
            Judgement::More => "more".into(),
            Judgement::Welcome { reply, .. } | Judgement::Refused(reply) => {
                let text = String::from_utf8(reply).unwrap();
                text.split(' ').nth(1).unwrap().to_owned()
            }
        }
    }

    #[test]
    fn a_websocket_is_welcome() {
        let Judgement::Welcome { reply, head } = of(&format!("{GOOD}\u{1}rest")) else { panic!() };
        assert_eq!(head, GOOD.len());
        // The key and its answer are the example of RFC 6455.
        assert!(
            String::from_utf8(reply)
                .unwrap()
                .contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")
        );
        for cut in 0..GOOD.len() {
            assert_eq!(of(&GOOD[..cut]), Judgement::More, "{cut}");
        }
    }

    #[test]
    fn host_and_origin_are_ours_or_absent() {
        let with = |host: &str| status(&GOOD.replace("Host: localhost:8080", host));
        for host in [
            "Host: LOCALHOST",
            "Host: 127.0.0.1:1",
            "Host: 127.9.9.9",
            "Host: [::1]:8080",
            "Host: [::1]",
            "Host: 192.168.1.7:8080",
            "Host: Box.LAN:80",
            "host: box.lan",
            "X: y",
        ] {
            assert_eq!(with(host), "101", "{host}");
        }
        for host in [
            "Host: evil.example",
            "Host: localhost.evil.example",
            "Host: evil.example:8080",
            "Host: 192.168.1.8",
            "Host: ",
            "Host: localhost@evil",
            "Host: localhost:80:80",
            "Host: [::1",
            "Host: localhost.",
            "Host: 0.0.0.0",
        ] {
            assert_eq!(with(host), "403", "{host}");
        }
        assert_eq!(with("Host: localhost\r\nHost: localhost"), "400");
        assert_eq!(with("Host: localhost\r\nOrigin: https://app.example"), "101");
        for (site, expected) in [
            ("cross-site", "403"),
            ("same-site", "403"),
            ("same-origin", "101"),
            ("none", "101"),
            ("x", "403"),
        ] {
            assert_eq!(with(&format!("Host: localhost\r\nSec-Fetch-Site: {site}")), expected, "{site}");
        }
        let both = "Host: localhost\r\nOrigin: https://app.example\r\nSec-Fetch-Site: cross-site";
        assert_eq!(with(both), "101", "a page that is named may be anywhere");
        for origin in ["https://evil.example", "null", "http://localhost:8080", "https://app.example:443", ""]
        {
            assert_eq!(with(&format!("Host: localhost\r\nOrigin: {origin}")), "403", "{origin}");
        }
    }

    #[test]
    fn everything_else_gets_a_small_answer() {
        for (from, to, expected) in [
            ("Upgrade: WebSocket\r\n", "", "426"),
            ("keep-alive, Upgrade", "close", "426"),
            ("Version: 13", "Version: 8", "426"),
            ("GET", "POST", "400"),
            ("HTTP/1.1", "HTTP/1.0", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short", "400"),
            ("GET / HTTP/1.1", "\u{16}\u{3}\u{1}", "400"),
        ] {
            assert_eq!(status(&GOOD.replace(from, to)), expected, "{from:?} -> {to:?}");
        }
        assert_eq!(status("GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n"), "403");
        assert_eq!(status(&format!("GET /{}", "a".repeat(limits::REQUEST_HEAD_BYTES))), "431");
        assert_eq!(
            status(&GOOD.replace("\r\n\r\n", &format!("\r\n{}\r\n", "A: b\r\n".repeat(HEADERS)))),
            "431"
        );
    }
}
