//! Our own client: what `tartlet run` and the tests speak to a server with.
//!
//! Owns: one connection, requests matched with their answers, and the events of instances in order, blobs put together
//! again. Never: policy; a token is sent where it is asked for and shown nowhere. Errors are sentences.

use crate::auth::Token;
use crate::limits;
use crate::wire::{ClientMessage, ServerMessage};
use async_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use async_tungstenite::{WebSocketReceiver, WebSocketSender};
use smol::future::or;
use smol::net::TcpStream;
use smol::stream::StreamExt;
use std::collections::VecDeque;
use std::fmt;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::Duration;

/// Where `tartlet serve` listens unless told otherwise.
pub const DEFAULT_SERVER: &str = "ws://127.0.0.1:8080";

/// How long a program that was told to terminate may take to say so.
const TERMINATE_WAIT: Duration = Duration::from_secs(5);

/// Why the client cannot go on. `Display` is one sentence.
#[derive(Debug)]
pub enum ClientError {
    /// Not `ws://host:port`.
    Url(String),
    Connect {
        url: String,
        why: String,
    },
    /// Something listens there and does not open a WebSocket.
    Handshake {
        url: String,
        why: String,
    },
    /// The connection is over, with what was said at the end.
    Closed(String),
    /// The server answered no.
    Refused {
        what: &'static str,
        why: String,
    },
    /// A frame that no server of this protocol sends.
    Protocol(String),
    Program {
        path: String,
        why: String,
    },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Url(url) => {
                write!(f, "{url:?} is no server address; write one like {DEFAULT_SERVER}.")
            }
            ClientError::Connect { url, why } => {
                write!(f, "No server answers at {url} ({why}); start one with `tartlet serve`.")
            }
            ClientError::Handshake { url, why } => {
                write!(f, "What listens at {url} did not open a connection ({why}): is it `tartlet serve`?")
            }
            ClientError::Closed(why) => write!(f, "The connection to the server ended: {why}."),
            ClientError::Refused { why, .. } if why == "Not authenticated" => {
                f.write_str("The server asks for a token: give --token-file FILE or set TARTLET_TOKEN.")
            }
            ClientError::Refused { what, why } => write!(f, "The server did not {what}: {why}."),
            ClientError::Protocol(what) => write!(f, "The server does not speak this protocol: {what}."),
            ClientError::Program { path, why } => write!(f, "The program {path} cannot be read: {why}."),
        }
    }
}

impl std::error::Error for ClientError {}

/// What an instance sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Message(String),
    Blob(Vec<u8>),
    /// The last one; code 1 is `Completed`, whose text is the return value.
    Ended {
        code: u32,
        text: String,
    },
}

/// A connection to a server.
pub struct Client {
    sender: WebSocketSender<TcpStream>,
    receiver: WebSocketReceiver<TcpStream>,
    corr_id: u32,
    /// Events that came while something else was waited for, with their instance.
    early: VecDeque<(String, Event)>,
    download: Option<Download>,
    /// What the server said about frames it could not read.
    pub server_events: Vec<String>,
}

struct Download {
    hash: String,
    next: u64,
    bytes: Vec<u8>,
}

impl Client {
    /// Connects to `ws://host:port`.
    pub async fn connect(url: &str) -> Result<Client, ClientError> {
        let authority = url.strip_prefix("ws://").ok_or_else(|| ClientError::Url(url.to_owned()))?;
        let authority = authority.split('/').next().unwrap_or_default();
        if authority.is_empty() || authority.contains(char::is_whitespace) {
            return Err(ClientError::Url(url.to_owned()));
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let failed = |why: String| ClientError::Connect { url: url.to_owned(), why };
        let stream = TcpStream::connect(&address).await.map_err(|e| failed(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(limits::CLIENT_FRAME_BYTES))
            .max_frame_size(Some(limits::CLIENT_FRAME_BYTES));
        let (socket, _) = async_tungstenite::client_async_with_config(url, stream, Some(config))
            .await
            .map_err(|e| ClientError::Handshake { url: url.to_owned(), why: e.to_string() })?;
        let (sender, receiver) = socket.split();
        Ok(Client {
            sender,
            receiver,
            corr_id: 0,
            early: VecDeque::new(),
            download: None,
            server_events: Vec::new(),
        })
    }

    /// Gives the token; the answer is whose it is.
    pub async fn authenticate(&mut self, token: &Token) -> Result<String, ClientError> {
        let token = token.expose().to_owned();
        self.ask("accept the token", |corr_id| ClientMessage::Authenticate { corr_id, token }).await
    }

    pub async fn query(&mut self, subject: &str, record: &str) -> Result<String, ClientError> {
        let (subject, record) = (subject.to_owned(), record.to_owned());
        self.ask("answer the query", |corr_id| ClientMessage::Query { corr_id, subject, record }).await
    }

    pub async fn program_exists(&mut self, hash: &str) -> Result<bool, ClientError> {
        Ok(self.query("program_exists", hash).await? == "true")
    }

    /// Uploads a component; the answer is its hash.
    pub async fn upload_program(&mut self, component: &[u8]) -> Result<String, ClientError> {
        let hash = blake3::hash(component).to_hex().to_string();
        self.upload("take the program", component, |corr_id, chunk_index, total_chunks, chunk_data| {
            let program_hash = hash.clone();
            ClientMessage::UploadProgram { corr_id, program_hash, chunk_index, total_chunks, chunk_data }
        })
        .await
    }

    /// Gives an instance a blob.
    pub async fn upload_blob(&mut self, instance: &str, blob: &[u8]) -> Result<(), ClientError> {
        let hash = blake3::hash(blob).to_hex().to_string();
        let message = |corr_id, chunk_index, total_chunks, chunk_data| ClientMessage::UploadBlob {
            corr_id,
            instance_id: instance.to_owned(),
            blob_hash: hash.clone(),
            chunk_index,
            total_chunks,
            chunk_data,
        };
        self.upload("take the blob", blob, message).await.map(drop)
    }

    /// Launches an uploaded program; the answer is the instance's id.
    pub async fn launch(&mut self, program: &str, arguments: Vec<String>) -> Result<String, ClientError> {
        let program_hash = program.to_owned();
        self.ask("launch the program", |corr_id| ClientMessage::LaunchInstance {
            corr_id,
            program_hash,
            arguments,
        })
        .await
    }

    pub async fn signal(&mut self, instance: &str, message: &str) -> Result<(), ClientError> {
        let (instance_id, message) = (instance.to_owned(), message.to_owned());
        self.send(&ClientMessage::SignalInstance { instance_id, message }).await
    }

    pub async fn terminate(&mut self, instance: &str) -> Result<(), ClientError> {
        self.send(&ClientMessage::TerminateInstance { instance_id: instance.to_owned() }).await
    }

    /// The next event of `instance`. May be dropped and asked again; nothing is lost.
    pub async fn next_event(&mut self, instance: &str) -> Result<Event, ClientError> {
        loop {
            if let Some(at) = self.early.iter().position(|(id, _)| id == instance)
                && let Some((_, event)) = self.early.remove(at)
            {
                return Ok(event);
            }
            let message = self.receive().await?;
            self.sort(message)?;
        }
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        let _ = self.sender.close(None).await;
        let gone = async { while let Some(Ok(_)) = self.receiver.next().await {} };
        let late = async {
            smol::Timer::after(Duration::from_secs(1)).await;
        };
        or(gone, late).await;
    }

    async fn upload(
        &mut self,
        what: &'static str,
        bytes: &[u8],
        message: impl Fn(u32, u64, u64, Vec<u8>) -> ClientMessage,
    ) -> Result<String, ClientError> {
        let corr_id = self.next_corr_id();
        let chunks = bytes.len().div_ceil(limits::CHUNK_BYTES).max(1);
        for index in 0..chunks {
            let from = index * limits::CHUNK_BYTES;
            let to = (from + limits::CHUNK_BYTES).min(bytes.len());
            self.send(&message(corr_id, index as u64, chunks as u64, bytes[from..to].to_vec())).await?;
        }
        self.answer(what, corr_id).await
    }

    async fn ask(
        &mut self,
        what: &'static str,
        message: impl FnOnce(u32) -> ClientMessage,
    ) -> Result<String, ClientError> {
        let corr_id = self.next_corr_id();
        self.send(&message(corr_id)).await?;
        self.answer(what, corr_id).await
    }

    fn next_corr_id(&mut self) -> u32 {
        self.corr_id = self.corr_id.wrapping_add(1);
        self.corr_id
    }

    async fn answer(&mut self, what: &'static str, asked: u32) -> Result<String, ClientError> {
        loop {
            match self.receive().await? {
                ServerMessage::Response { corr_id, successful: true, result } if corr_id == asked => {
                    return Ok(result);
                }
                ServerMessage::Response { corr_id, result: why, .. } if corr_id == asked => {
                    return Err(ClientError::Refused { what, why });
                }
                other => self.sort(other)?,
            }
        }
    }

    async fn send(&mut self, message: &ClientMessage) -> Result<(), ClientError> {
        let frame = Message::Binary(message.encode().into());
        self.sender.send(frame).await.map_err(|e| ClientError::Closed(e.to_string()))
    }

    async fn receive(&mut self) -> Result<ServerMessage, ClientError> {
        loop {
            match self.receiver.next().await {
                Some(Ok(Message::Binary(frame))) => {
                    return ServerMessage::decode(&frame).map_err(|e| ClientError::Protocol(e.reason));
                }
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(ClientError::Closed(close.reason.to_string()));
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(ClientError::Closed(e.to_string())),
                None => return Err(ClientError::Closed("the server closed it".to_owned())),
            }
        }
    }

    /// Keeps what was not waited for.
    fn sort(&mut self, message: ServerMessage) -> Result<(), ClientError> {
        let (instance, event) = match message {
            // Of a request that was given up.
            ServerMessage::Response { .. } => return Ok(()),
            ServerMessage::ServerEvent { message } => {
                if self.server_events.len() < limits::SERVER_EVENTS_PER_CONNECTION {
                    self.server_events.push(message);
                }
                return Ok(());
            }
            ServerMessage::InstanceEvent { instance_id, event: 0, message } => {
                (instance_id, Event::Message(message))
            }
            ServerMessage::InstanceEvent { instance_id, event, message } => {
                (instance_id, Event::Ended { code: event, text: message })
            }
            ServerMessage::DownloadBlob {
                instance_id,
                blob_hash,
                chunk_index,
                total_chunks,
                chunk_data,
                ..
            } => match self.reassemble(blob_hash, chunk_index, total_chunks, &chunk_data)? {
                Some(blob) => (instance_id, Event::Blob(blob)),
                None => return Ok(()),
            },
        };
        if self.early.len() >= limits::CLIENT_EVENTS {
            let events = limits::CLIENT_EVENTS;
            return Err(ClientError::Protocol(format!("{events} events came that nobody waits for")));
        }
        self.early.push_back((instance, event));
        Ok(())
    }

    /// One blob at a time comes, its chunks in order, the last one empty.
    fn reassemble(
        &mut self,
        hash: String,
        index: u64,
        total: u64,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, ClientError> {
        if index == 0 {
            self.download = Some(Download { hash: hash.clone(), next: 0, bytes: Vec::new() });
        }
        let download =
            self.download.as_mut().filter(|download| download.hash == hash && download.next == index);
        let Some(download) = download else {
            return Err(ClientError::Protocol(format!("chunk {index} of a blob came out of order")));
        };
        if download.bytes.len() + data.len() > limits::CLIENT_BLOB_BYTES {
            return Err(ClientError::Protocol(format!(
                "a blob has more than {} bytes",
                limits::CLIENT_BLOB_BYTES
            )));
        }
        download.bytes.extend_from_slice(data);
        download.next += 1;
        if download.next < total {
            return Ok(None);
        }
        let blob = self.download.take().map(|download| download.bytes).unwrap_or_default();
        match blake3::hash(&blob).to_hex().as_str() == hash {
            true => Ok(Some(blob)),
            false => Err(ClientError::Protocol("a blob does not have the hash it came with".to_owned())),
        }
    }
}

/// Runs a program file on a server, its messages to standard output as they come, and gives the exit status: 0 when it
/// completed, 1 when it ended otherwise (the reason is on standard error), 130 when interrupted twice.
pub fn run_program(
    server: &str,
    token: Option<Token>,
    program: &Path,
    arguments: Vec<String>,
) -> Result<u8, ClientError> {
    let component = read_program(program)
        .map_err(|why| ClientError::Program { path: program.display().to_string(), why })?;
    smol::block_on(async {
        let mut client = Client::connect(server).await?;
        if let Some(token) = &token {
            client.authenticate(token).await?;
        }
        let hash = blake3::hash(&component).to_hex().to_string();
        if !client.program_exists(&hash).await? {
            client.upload_program(&component).await?;
        }
        let instance = client.launch(&hash, arguments).await?;
        let status = follow(&mut client, &instance).await?;
        client.close().await;
        Ok(status)
    })
}

/// No server takes a larger one, and whatever else was named may be of any size.
fn read_program(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let most = limits::PROGRAM_BYTES as u64;
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    match bytes.len() as u64 > most {
        true => Err(format!("it has more than the {} MiB of a program", most >> 20)),
        false => Ok(bytes),
    }
}

enum Step {
    Event(Result<Event, ClientError>),
    Interrupted,
    Late,
}

/// Prints what the instance sends until it ends.
async fn follow(client: &mut Client, instance: &str) -> Result<u8, ClientError> {
    use async_signal::{Signal, Signals};
    // Where signals cannot be had, Ctrl-C ends this process, and the server ends the program.
    let mut interrupts = Signals::new([Signal::Int, Signal::Term]).ok();
    let mut printer = Printer { said: String::new() };
    let mut terminating = None;
    loop {
        let event = async { Step::Event(client.next_event(instance).await) };
        let interrupted = async {
            if let Some(signals) = &mut interrupts
                && signals.next().await.is_some()
            {
                return Step::Interrupted;
            }
            std::future::pending().await
        };
        let late = async {
            match terminating {
                Some(since) => smol::Timer::at(since + TERMINATE_WAIT).await,
                None => std::future::pending().await,
            };
            Step::Late
        };
        match or(event, or(interrupted, late)).await {
            Step::Event(Err(lost)) => {
                printer.finish("");
                return Err(lost);
            }
            Step::Event(Ok(event)) => match event {
                Event::Message(text) => printer.print(&text),
                Event::Blob(blob) => eprintln!("tartlet: the program sent a blob of {} bytes.", blob.len()),
                Event::Ended { code: 1, text } => {
                    printer.finish(&text);
                    return Ok(0);
                }
                Event::Ended { text, .. } => {
                    printer.finish("");
                    eprintln!("tartlet: {}", printable(&text));
                    return Ok(1);
                }
            },
            Step::Interrupted if terminating.is_none() => {
                terminating = Some(std::time::Instant::now());
                client.terminate(instance).await?;
            }
            Step::Interrupted => {
                printer.finish("");
                return Ok(130);
            }
            Step::Late => {
                printer.finish("");
                eprintln!("tartlet: the program did not terminate in {} s.", TERMINATE_WAIT.as_secs());
                return Ok(1);
            }
        }
    }
}

/// Standard output, flushed after each message; a closed pipe is no error of the program.
struct Printer {
    /// The messages so far, up to the length of one.
    said: String,
}

impl Printer {
    fn print(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        // A terminal obeys control characters; a program's text must not move its cursor or change its title.
        let _ = match out.is_terminal() {
            true => out.write_all(printable(text).as_bytes()),
            false => out.write_all(text.as_bytes()),
        };
        let _ = out.flush();
        if self.said.len() + text.len() > limits::MESSAGE_BYTES {
            self.said.clear();
        }
        self.said.push_str(text);
    }

    /// Ends the line, and gives the return value one of its own unless it repeats what was said (programs that stream
    /// an answer often return it as well).
    fn finish(&mut self, value: &str) {
        let repeats = self.said == value;
        if !self.said.is_empty() && !self.said.ends_with('\n') {
            self.print("\n");
        }
        if !repeats && !value.is_empty() {
            self.print(value);
            self.print("\n");
        }
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        for url in ["", "localhost:8080", "wss://localhost", "ws://", "ws:// x", "http://localhost"] {
            let error = smol::block_on(Client::connect(url)).err().expect(url);
            assert!(matches!(error, ClientError::Url(_)), "{url}: {error}");
        }
    }
}
