//! A plain HTTP/1.1 client that can also be rude: it writes what it is told, byte by byte.
//!
//! Owns: one connection and the framing of what comes back. Never: the project's own or anybody's HTTP library.

use super::PATIENCE;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

pub struct Http {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended as its framing says, trailers included in `fields`.
    pub whole: bool,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("UTF-8")
    }
}

impl Http {
    pub fn connect(port: u16) -> Http {
        Http::try_connect(port).expect("the port is served")
    }

    pub fn try_connect(port: u16) -> std::io::Result<Http> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Http { stream: BufReader::new(stream) })
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// A request with a `Host`, these further lines of the head, and this body.
    pub fn send(&mut self, method: &str, target: &str, lines: &[&str], body: &[u8]) {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
        self.write(&[head.as_bytes(), body].concat()).expect("the server reads");
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.send("GET", target, &[], &[]);
        self.response()
    }

    pub fn post(&mut self, target: &str, body: &[u8]) -> Response {
        self.send("POST", target, &[&format!("Content-Length: {}", body.len())], body);
        self.response()
    }

    pub fn chunk(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.write(&[format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
    }

    /// The next response, whole or as far as it came.
    pub fn response(&mut self) -> Response {
        let mut response = self.head().expect("a response");
        response.whole = self.body(&mut response).is_ok();
        response
    }

    /// None: the server closed the connection. That it says nothing is no answer.
    pub fn head(&mut self) -> Option<Response> {
        let line = match self.line() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing comes, and the connection is open")
            }
            line => line.ok().filter(|line| !line.is_empty())?,
        };
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("a status line: {line:?}"));
        let mut response = Response { status, fields: vec![], body: vec![], whole: false };
        self.fields(&mut response).expect("a head ends");
        Some(response)
    }

    fn fields(&mut self, response: &mut Response) -> std::io::Result<()> {
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(()) };
            response.fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn body(&mut self, response: &mut Response) -> std::io::Result<()> {
        if let Some(length) = response.field("content-length").map(|length| length.parse().expect("a number"))
        {
            return self.take(length, &mut response.body);
        }
        if response.field("transfer-encoding") != Some("chunked") {
            return Ok(());
        }
        while self.read_chunk(&mut response.body)? > 0 {}
        self.fields(response)
    }

    /// One chunk of a body; its length.
    pub fn read_chunk(&mut self, body: &mut Vec<u8>) -> std::io::Result<u64> {
        let line = self.line()?;
        let length = u64::from_str_radix(&line, 16).map_err(std::io::Error::other)?;
        if length > 0 {
            self.take(length, body)?;
            self.line()?;
        }
        Ok(length)
    }

    fn take(&mut self, length: u64, body: &mut Vec<u8>) -> std::io::Result<()> {
        let taken = (&mut self.stream).take(length).read_to_end(body)?;
        if taken as u64 == length { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// A line without its end; an error where there is none.
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }
}
