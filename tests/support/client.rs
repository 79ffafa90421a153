//! A client that can also be rude: it speaks the protocol, and lets a test send what no client should.
//!
//! Owns: one connection, and the order of what arrives on it. Never: the project's own client or vocabulary.

use super::frame::{Field, Incoming, Outgoing};
use super::{PATIENCE, Server};
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::Message;
use smol::future::FutureExt;
use smol::net::TcpStream;
use smol::stream::StreamExt;
use std::collections::VecDeque;
use std::time::Duration;

pub const CHUNK: usize = 256 * 1024;

/// How an instance ended, and what it said before.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub messages: Vec<String>,
    pub blobs: Vec<Vec<u8>>,
    pub event: u32,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Message(String),
    Blob(Vec<u8>),
    Ended(u32, String),
}

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    last_corr_id: u32,
    /// Frames that came while another was waited for.
    early: VecDeque<Incoming>,
}

impl Client {
    /// Connects, and authenticates if the server asks for it.
    pub async fn connect(server: &Server) -> Client {
        Client::connect_to(&server.url, server.token.as_deref()).await
    }

    pub async fn connect_to(url: &str, token: Option<&str>) -> Client {
        let mut client = Client::connect_only(url).await;
        if let Some(token) = token {
            client.ask(Outgoing::new("authenticate").with("token", token)).await.expect("a good token");
        }
        client
    }

    /// Connects and says nothing yet.
    pub async fn connect_only(url: &str) -> Client {
        let address = url.strip_prefix("ws://").expect("a WebSocket address");
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("TCP");
        let (socket, _) = async_tungstenite::client_async(url, stream).await.expect("the handshake succeeds");
        Client { socket, last_corr_id: 0, early: VecDeque::new() }
    }

    pub async fn send(&mut self, message: &Outgoing) {
        self.send_raw(Message::binary(message.bytes())).await;
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.expect("the connection takes the frame");
    }

    /// The next frame from the server; none: it closed the connection.
    pub async fn next_frame(&mut self) -> Option<Incoming> {
        let frame = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => {
                        assert!(bytes.len() <= 1_000_000, "a frame of {} bytes", bytes.len());
                        return Some(Incoming::read(&bytes));
                    }
                    Some(Ok(Message::Text(text))) => panic!("the server sent a text frame: {text}"),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {} // pings and pongs
                }
            }
        };
        let silence = async {
            smol::Timer::after(PATIENCE).await;
            panic!("nothing from the server for {PATIENCE:?}")
        };
        frame.or(silence).await
    }

    /// The next frame, or none within this time.
    pub async fn frame_within(&mut self, time: Duration) -> Option<Incoming> {
        if let Some(frame) = self.early.pop_front() {
            return Some(frame);
        }
        let silence = async {
            smol::Timer::after(time).await;
            None
        };
        self.next_frame().or(silence).await
    }

    /// The first frame, early ones first, that `wanted` takes.
    async fn find(&mut self, mut wanted: impl FnMut(&Incoming) -> bool) -> Incoming {
        if let Some(at) = self.early.iter().position(&mut wanted) {
            return self.early.remove(at).expect("it is there");
        }
        loop {
            let frame = self.next_frame().await.expect("the server keeps the connection");
            if wanted(&frame) {
                return frame;
            }
            self.early.push_back(frame);
        }
    }

    pub fn corr_id(&mut self) -> u32 {
        self.last_corr_id += 1;
        self.last_corr_id
    }

    /// The answer to a request.
    pub async fn answer(&mut self, corr_id: u32) -> Result<String, String> {
        let frame = self.find(|frame| frame.kind == "response" && frame.corr_id == Some(corr_id)).await;
        let result = frame.result.expect("a response has a result");
        if frame.successful.expect("a response says whether it went well") { Ok(result) } else { Err(result) }
    }

    /// Sends a request under a new corr_id and waits for its answer.
    pub async fn ask(&mut self, request: Outgoing) -> Result<String, String> {
        let corr_id = self.corr_id();
        self.send(&request.with("corr_id", i64::from(corr_id))).await;
        self.answer(corr_id).await
    }

    pub async fn query(&mut self, subject: &str, record: &str) -> Result<String, String> {
        self.ask(Outgoing::new("query").with("subject", subject).with("record", record)).await
    }

    /// Uploads a program; the answer is its hash, or why not.
    pub async fn upload(&mut self, program: &[u8]) -> Result<String, String> {
        let hash = blake3::hash(program).to_hex().to_string();
        self.upload_chunks("upload_program", &[("program_hash", (&hash).into())], program).await
    }

    pub async fn upload_blob(&mut self, instance: &str, blob: &[u8]) -> Result<String, String> {
        let hash = blake3::hash(blob).to_hex().to_string();
        let fields = [("instance_id", instance.into()), ("blob_hash", (&hash).into())];
        self.upload_chunks("upload_blob", &fields, blob).await
    }

    async fn upload_chunks(
        &mut self,
        kind: &str,
        fields: &[(&str, Field)],
        data: &[u8],
    ) -> Result<String, String> {
        let corr_id = self.corr_id();
        let chunks: Vec<&[u8]> = if data.is_empty() { vec![&[]] } else { data.chunks(CHUNK).collect() };
        for (index, chunk) in chunks.iter().enumerate() {
            let mut message = Outgoing::new(kind).with("corr_id", i64::from(corr_id));
            for (name, value) in fields {
                message = message.with(name, value.clone());
            }
            let message = message
                .with("chunk_index", index as i64)
                .with("total_chunks", chunks.len() as i64)
                .with("chunk_data", *chunk);
            self.send(&message).await;
        }
        self.answer(corr_id).await
    }

    /// How many of the frames that came early are such.
    pub fn early(&self, wanted: impl Fn(&Incoming) -> bool) -> usize {
        self.early.iter().filter(|frame| wanted(frame)).count()
    }

    /// Uploads if needed and launches; the instance's id.
    pub async fn launch(&mut self, guest: &str, arguments: &[&str]) -> String {
        let program = super::guest_bytes(guest);
        let hash = blake3::hash(&program).to_hex().to_string();
        if self.query("program_exists", &hash).await.expect("an answer") != "true" {
            assert_eq!(self.upload(&program).await.as_ref(), Ok(&hash));
        }
        self.launch_hash(&hash, arguments).await
    }

    pub async fn launch_hash(&mut self, hash: &str, arguments: &[&str]) -> String {
        let request =
            Outgoing::new("launch_instance").with("program_hash", hash).with("arguments", arguments);
        self.ask(request).await.expect("the program launches")
    }

    pub async fn signal(&mut self, instance: &str, message: &str) {
        self.send(&Outgoing::new("signal_instance").with("instance_id", instance).with("message", message))
            .await;
    }

    pub async fn terminate(&mut self, instance: &str) {
        self.send(&Outgoing::new("terminate_instance").with("instance_id", instance)).await;
    }

    /// The next event of an instance. A blob is checked against the framing and its hash.
    pub async fn event(&mut self, instance: &str) -> Event {
        let of_instance = |frame: &Incoming| frame.instance_id.as_deref() == Some(instance);
        let first = self.find(of_instance).await;
        if first.kind == "instance_event" {
            let text = first.message.expect("an event has a message");
            return match first.event.expect("an event has a code") {
                0 => Event::Message(text),
                code @ 1..=5 => Event::Ended(code, text),
                code => panic!("event code {code} is never sent"),
            };
        }
        assert_eq!(first.kind, "download_blob");
        let total = first.total_chunks.expect("a total");
        let hash = first.blob_hash.clone().expect("a hash");
        let mut blob = Vec::new();
        let mut chunk = first;
        for index in 0..total {
            if index > 0 {
                chunk = self.find(|frame| frame.kind == "download_blob").await;
            }
            assert_eq!(
                (chunk.corr_id, chunk.chunk_index, chunk.total_chunks, chunk.instance_id.as_deref()),
                (Some(0), Some(index), Some(total), Some(instance))
            );
            let data = chunk.chunk_data.take().expect("data");
            assert!(data.is_empty() || index + 1 < total, "the last chunk is empty");
            blob.extend_from_slice(&data);
        }
        assert_eq!(total, blob.len().div_ceil(CHUNK).max(1) + 1, "data chunks and one empty chunk");
        assert_eq!(blake3::hash(&blob).to_hex().as_str(), hash);
        Event::Blob(blob)
    }

    /// Everything of an instance up to its end.
    pub async fn end(&mut self, instance: &str) -> Ended {
        let (mut messages, mut blobs) = (Vec::new(), Vec::new());
        loop {
            match self.event(instance).await {
                Event::Message(text) => messages.push(text),
                Event::Blob(blob) => blobs.push(blob),
                Event::Ended(event, text) => return Ended { messages, blobs, event, text },
            }
        }
    }

    /// Launches a program and waits for its end.
    pub async fn run(&mut self, guest: &str, arguments: &[&str]) -> Ended {
        let instance = self.launch(guest, arguments).await;
        self.end(&instance).await
    }

    /// Launches an uploaded program and waits for its end.
    pub async fn run_hash(&mut self, hash: &str, arguments: &[&str]) -> Ended {
        let instance = self.launch_hash(hash, arguments).await;
        self.end(&instance).await
    }
}
