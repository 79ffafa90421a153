//! Our own client: what the command line and the tests speak to a server with.
//!
//! Owns: one connection, requests matched with their answers, and the events of instances in order, blobs put together
//! again. Never: policy; a token is sent where it is asked for and shown nowhere. Errors are sentences.

use crate::auth::Token;
use crate::limits;
use crate::wire::{ClientMessage, ServerInstance, ServerMessage};
use async_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use async_tungstenite::{WebSocketReceiver, WebSocketSender};
use smol::future::or;
use smol::net::TcpStream;
use smol::stream::StreamExt;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

mod commands;

pub use commands::{list_servers, run_program, start_server, stop_server};

/// Where `tartlet serve` listens unless told otherwise.
pub const DEFAULT_SERVER: &str = "ws://127.0.0.1:8080";

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

    /// Connects, and gives the token if there is one.
    async fn let_in(url: &str, token: Option<Token>) -> Result<Client, ClientError> {
        let mut client = Client::connect(url).await?;
        if let Some(token) = &token {
            client.authenticate(token).await?;
        }
        Ok(client)
    }

    /// Uploads a component unless the server has it; the answer is its hash.
    async fn bring(&mut self, component: &[u8]) -> Result<String, ClientError> {
        let hash = blake3::hash(component).to_hex().to_string();
        if !self.program_exists(&hash).await? {
            self.upload_program(component).await?;
        }
        Ok(hash)
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

    /// Launches an uploaded program as a server instance on this loopback port of the server.
    pub async fn launch_server(
        &mut self,
        program: &str,
        port: u16,
        arguments: Vec<String>,
    ) -> Result<(), ClientError> {
        let program_hash = program.to_owned();
        let launch = |corr_id| ClientMessage::LaunchServerInstance {
            corr_id,
            port: port.into(),
            program_hash,
            arguments,
        };
        self.ask("launch the server instance", launch).await.map(drop)
    }

    /// The server instances that the token shows, as the server tells them.
    pub async fn server_instances(&mut self) -> Result<Vec<ServerInstance>, ClientError> {
        let told = self.query("server_instances", "").await?;
        serde_json::from_str(&told).map_err(|e| ClientError::Protocol(format!("{e} in {told:?}")))
    }

    pub async fn stop_server(&mut self, id: &str) -> Result<(), ClientError> {
        let server_id = id.to_owned();
        let stop = |corr_id| ClientMessage::StopServerInstance { corr_id, server_id };
        self.ask("stop the server instance", stop).await.map(drop)
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
