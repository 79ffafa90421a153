//! The messages of the frozen protocol, as MessagePack maps with named fields and a string `type`.
//!
//! Owns: their fields, encoding, and decoding of frames that anybody may have sent: bounded, never a panic, and with
//! the `corr_id` to answer to where one can be read. Never: what a message does.

use super::outline::{self, Outline};
use crate::limits;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// From a client to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    Authenticate {
        corr_id: u32,
        token: String,
    },
    Query {
        corr_id: u32,
        subject: String,
        record: String,
    },
    UploadProgram {
        corr_id: u32,
        program_hash: String,
        chunk_index: u64,
        total_chunks: u64,
        #[serde(with = "serde_bytes")]
        chunk_data: Vec<u8>,
    },
    LaunchInstance {
        corr_id: u32,
        program_hash: String,
        arguments: Vec<String>,
    },
    LaunchServerInstance {
        corr_id: u32,
        port: u32,
        program_hash: String,
        arguments: Vec<String>,
    },
    SignalInstance {
        instance_id: String,
        message: String,
    },
    UploadBlob {
        corr_id: u32,
        instance_id: String,
        blob_hash: String,
        chunk_index: u64,
        total_chunks: u64,
        #[serde(with = "serde_bytes")]
        chunk_data: Vec<u8>,
    },
    TerminateInstance {
        instance_id: String,
    },
    /// An addition to the contract, like the query `server_instances` that gives the id.
    StopServerInstance {
        corr_id: u32,
        server_id: String,
    },
    AttachRemoteService {
        corr_id: u32,
        endpoint: String,
        service_type: String,
        service_name: String,
    },
}

/// From the server to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    Response {
        corr_id: u32,
        successful: bool,
        result: String,
    },
    InstanceEvent {
        instance_id: String,
        /// 0 Message, 1 Completed, 2 Aborted, 3 Exception, 4 ServerError, 5 OutOfResources.
        event: u32,
        message: String,
    },
    DownloadBlob {
        /// Always 0.
        corr_id: u32,
        instance_id: String,
        blob_hash: String,
        chunk_index: u64,
        total_chunks: u64,
        #[serde(with = "serde_bytes")]
        chunk_data: Vec<u8>,
    },
    ServerEvent {
        message: String,
    },
}

/// One of the answer to the query `server_instances`, which is a JSON list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInstance {
    pub id: String,
    pub port: u16,
    /// The program's hash.
    pub program: String,
    pub subject: String,
    /// Requests that are being answered, and all that there were.
    pub answering: usize,
    pub requests: u64,
    /// When the token that launched it does, as RFC 3339; none: never.
    pub expires: Option<String>,
}

/// A frame that is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// Whom to answer, where that can be read.
    pub corr_id: Option<u32>,
    /// A sentence for the client.
    pub reason: String,
}

impl ClientMessage {
    /// Decodes one frame of at most [`limits::CLIENT_FRAME_BYTES`].
    pub fn decode(frame: &[u8]) -> Result<ClientMessage, Undecodable> {
        decode(frame, from_client)
    }

    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl ServerMessage {
    /// Decodes one frame; for clients.
    pub fn decode(frame: &[u8]) -> Result<ServerMessage, Undecodable> {
        decode(frame, from_server)
    }

    /// One frame of at most [`limits::SERVER_FRAME_BYTES`]; a longer text is cut, and says so.
    pub fn encode(mut self) -> Vec<u8> {
        match &mut self {
            ServerMessage::Response { result: text, .. }
            | ServerMessage::InstanceEvent { message: text, .. }
            | ServerMessage::ServerEvent { message: text } => cut(text),
            ServerMessage::DownloadBlob { chunk_data, .. } => {
                debug_assert!(chunk_data.len() <= limits::CHUNK_BYTES)
            }
        }
        encode(&self)
    }
}

/// All fields of messages, and how a map of some of them is read.
macro_rules! fields {
    ($($field:ident: $type:ty,)*) => {
        #[derive(Default)]
        struct Fields {
            $($field: Option<$type>,)*
        }

        impl<'de> Visitor<'de> for Wanted {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields, M::Error> {
                let (mut fields, mut kinds) = (Fields::default(), 0);
                while let Some(name) = map.next_key::<&[u8]>()? {
                    let wanted = self.0.iter().any(|wanted| wanted.as_bytes() == name);
                    $(if wanted && name == stringify!($field).as_bytes() {
                        if fields.$field.replace(map.next_value()?).is_some() {
                            return Err(M::Error::duplicate_field(stringify!($field)));
                        }
                        continue;
                    })*
                    map.next_value::<IgnoredAny>()?;
                    kinds += u32::from(name == b"type");
                    if kinds > 1 {
                        return Err(M::Error::duplicate_field("type"));
                    }
                }
                Ok(fields)
            }
        }
    };
}

/// Which fields are read; all others are passed over, whatever they are.
struct Wanted(&'static [&'static str]);

fields! {
    corr_id: u32,
    token: String,
    subject: String,
    record: String,
    program_hash: String,
    blob_hash: String,
    chunk_index: u64,
    total_chunks: u64,
    chunk_data: Bytes,
    arguments: Vec<String>,
    port: u32,
    instance_id: String,
    server_id: String,
    endpoint: String,
    service_type: String,
    service_name: String,
    successful: bool,
    result: String,
    event: u32,
    message: String,
}

#[derive(Deserialize)]
struct Bytes(#[serde(with = "serde_bytes")] Vec<u8>);

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Vec<u8> {
        bytes.0
    }
}

/// Reads a frame as the message of its kind. Serde's own way to a tagged map goes through a tree of it, and takes 65 kB of code
/// more.
macro_rules! messages {
    ($name:ident, $of:ident: $($kind:literal $variant:ident { $($field:ident)* })*) => {
        fn $name(kind: &str, frame: &[u8]) -> Result<$of, String> {
            Ok(match kind {
                $($kind => {
                    let fields = read(frame, &[$(stringify!($field)),*])?;
                    $of::$variant {
                        $($field: fields.$field.ok_or(concat!("missing field `", stringify!($field), "`"))?.into(),)*
                    }
                })*
                other => {
                    let kinds = [$(concat!("`", $kind, "`")),*].join(", ");
                    return Err(format!("unknown variant `{other}`, expected one of {kinds}"));
                }
            })
        }
    };
}

messages! { from_client, ClientMessage:
    "authenticate" Authenticate { corr_id token }
    "query" Query { corr_id subject record }
    "upload_program" UploadProgram { corr_id program_hash chunk_index total_chunks chunk_data }
    "launch_instance" LaunchInstance { corr_id program_hash arguments }
    "launch_server_instance" LaunchServerInstance { corr_id port program_hash arguments }
    "signal_instance" SignalInstance { instance_id message }
    "upload_blob" UploadBlob { corr_id instance_id blob_hash chunk_index total_chunks chunk_data }
    "terminate_instance" TerminateInstance { instance_id }
    "stop_server_instance" StopServerInstance { corr_id server_id }
    "attach_remote_service" AttachRemoteService { corr_id endpoint service_type service_name }
}

messages! { from_server, ServerMessage:
    "response" Response { corr_id successful result }
    "instance_event" InstanceEvent { instance_id event message }
    "download_blob" DownloadBlob { corr_id instance_id blob_hash chunk_index total_chunks chunk_data }
    "server_event" ServerEvent { message }
}

fn read(frame: &[u8], wanted: &'static [&'static str]) -> Result<Fields, String> {
    let mut frame = rmp_serde::Deserializer::from_read_ref(frame);
    frame.deserialize_map(Wanted(wanted)).map_err(|e| e.to_string())
}

fn decode<T>(frame: &[u8], of: fn(&str, &[u8]) -> Result<T, String>) -> Result<T, Undecodable> {
    let mut seen = Outline::default();
    // The outline comes first, which bounds what is decoded.
    let failed = match outline::check(frame, &mut seen) {
        Err(what) => format!("the frame is {what}"),
        Ok(()) => match seen.kind {
            None => "missing field `type`, which is a string".to_owned(),
            Some(kind) => match of(&String::from_utf8_lossy(kind), frame) {
                Ok(message) => return Ok(message),
                Err(e) => first_words(&e),
            },
        },
    };
    Err(Undecodable { corr_id: seen.corr_id, reason: format!("Undecodable message: {failed}") })
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("strings, numbers and bytes always encode into memory")
}

/// Serde's errors may quote the frame; a few words of it are enough.
fn first_words(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cut(text: &mut String) {
    const MARK: &str = " … (cut)";
    if text.len() > limits::MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(limits::MESSAGE_BYTES - MARK.len()));
        text.push_str(MARK);
    }
}

const _: () = assert!(limits::MESSAGE_BYTES < limits::SERVER_FRAME_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn client_messages() -> Vec<ClientMessage> {
        let (corr_id, program_hash, instance_id) = (u32::MAX, "ab".repeat(32), "i".to_owned());
        let (chunk_index, total_chunks, chunk_data) = (u64::MAX, u64::MAX, vec![0xc1, 0, 255]);
        let arguments = vec![String::new(), "é".repeat(40), "--x".into()];
        vec![
            ClientMessage::Authenticate { corr_id: 0, token: "t".into() },
            ClientMessage::Query { corr_id: 127, subject: "s".into(), record: String::new() },
            ClientMessage::UploadProgram {
                corr_id: 128,
                program_hash: program_hash.clone(),
                chunk_index,
                total_chunks,
                chunk_data: vec![],
            },
            ClientMessage::LaunchInstance {
                corr_id,
                program_hash: program_hash.clone(),
                arguments: arguments.clone(),
            },
            ClientMessage::LaunchServerInstance { corr_id, port: u32::MAX, program_hash, arguments },
            ClientMessage::StopServerInstance { corr_id, server_id: "s".into() },
            ClientMessage::SignalInstance { instance_id: instance_id.clone(), message: "m".repeat(70_000) },
            ClientMessage::UploadBlob {
                corr_id,
                instance_id: instance_id.clone(),
                blob_hash: "b".into(),
                chunk_index: 0,
                total_chunks: 1,
                chunk_data,
            },
            ClientMessage::TerminateInstance { instance_id },
            ClientMessage::AttachRemoteService {
                corr_id,
                endpoint: "tcp://x".into(),
                service_type: "model".into(),
                service_name: "n".into(),
            },
        ]
    }

    #[test]
    fn every_client_message_comes_back() {
        for message in client_messages() {
            assert_eq!(ClientMessage::decode(&message.encode()).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn every_server_message_comes_back() {
        for message in [
            ServerMessage::Response { corr_id: 7, successful: true, result: "r".into() },
            ServerMessage::InstanceEvent { instance_id: "i".into(), event: 5, message: "m".into() },
            ServerMessage::DownloadBlob {
                corr_id: 0,
                instance_id: "i".into(),
                blob_hash: "h".into(),
                chunk_index: 1,
                total_chunks: 2,
                chunk_data: vec![1; limits::CHUNK_BYTES],
            },
            ServerMessage::ServerEvent { message: "e".into() },
        ] {
            let frame = message.clone().encode();
            assert!(frame.len() <= limits::SERVER_FRAME_BYTES);
            assert_eq!(ServerMessage::decode(&frame), Ok(message));
        }
    }

    #[test]
    fn a_long_text_is_cut_to_one_frame() {
        let result = "é".repeat(limits::CLIENT_FRAME_BYTES);
        let frame = ServerMessage::Response { corr_id: 1, successful: false, result }.encode();
        assert!(frame.len() <= limits::SERVER_FRAME_BYTES);
        assert!(
            matches!(ServerMessage::decode(&frame), Ok(ServerMessage::Response { result, .. }) if result.ends_with("(cut)"))
        );
    }

    /// What stock clients put on the wire: one literal frame each of msgpack-python and of the original's own shape.
    #[test]
    fn the_form_is_named_maps_and_bin() {
        let frame = b"\x86\xa4type\xaeupload_program\xacprogram_hash\xa1h\xa7corr_id\x05\xactotal_chunks\x01\xabchunk_index\x00\xaachunk_data\xc4\x02\x00\xff";
        let expected = ClientMessage::UploadProgram {
            corr_id: 5,
            program_hash: "h".into(),
            chunk_index: 0,
            total_chunks: 1,
            chunk_data: vec![0, 255],
        };
        assert_eq!(ClientMessage::decode(frame).as_ref(), Ok(&expected));
        let encoded = expected.encode();
        assert!(
            encoded.windows(14).any(|window| window == b"\xaachunk_data\xc4\x02\x00"),
            "bin, not an array"
        );
    }

    /// Unknown fields of any kind are passed over, wherever they stand: nested, ext (a timestamp), floats, nil.
    #[test]
    fn unknown_fields_are_ignored() {
        let extra: &[&[u8]] = &[
            b"\xa1a\xc0",
            b"\xa1b\xd6\xff\x00\x00\x00\x01",
            b"\xa1c\xcb\x40\x00\x00\x00\x00\x00\x00\x00",
            b"\xa1d\x93\x01\xa1x\x81\xa1k\xc4\x01\x00",
            b"\xa1e\x81\x01\x02",
            b"\xa1f\xc7\x03\x05abc",
            b"\xa1g\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
            // Those of other messages are unknown to this one.
            b"\xa7corr_id\xc0",
            b"\xa7corr_id\xff",
            b"\xa5token\x05",
            b"\xa7message\xc0",
            b"\xaachunk_data\x81\xa1x\x01",
        ];
        for field in extra {
            for first in [true, false] {
                let mut frame = b"\x83".to_vec();
                let known = b"\xa4type\xb2terminate_instance\xabinstance_id\xa1i";
                let (one, two): (&[u8], &[u8]) = if first { (field, known) } else { (known, field) };
                frame.extend_from_slice(one);
                frame.extend_from_slice(two);
                let expected = ClientMessage::TerminateInstance { instance_id: "i".into() };
                assert_eq!(ClientMessage::decode(&frame), Ok(expected), "{field:?}");
            }
        }
    }

    fn refused(frame: &[u8]) -> Undecodable {
        ClientMessage::decode(frame).expect_err("a malformed frame")
    }

    #[test]
    fn malformed_frames_are_refused_and_answered_where_possible() {
        // (frame, whom to answer, a part of the reason)
        let corpus: &[(&[u8], Option<u32>, &str)] = &[
            (b"", None, "cut short"),
            (b"\xc1", None, "not MessagePack"),
            (b"\x93\xacauthenticate\x01\xa1t", None, "no map"),
            (b"hello", None, "no map"),
            (b"\x80", None, "missing field `type`"),
            (
                b"\x81\xa4type\xa4nope",
                None,
                "unknown variant `nope`, expected one of `authenticate`, `query`",
            ),
            (b"\x82\xa7corr_id\x09\xa4type\xa4nope", Some(9), "unknown variant `nope`"),
            (b"\x82\xa7corr_id\x09\xa4type\x05", Some(9), "Undecodable"),
            (
                b"\x82\xa7corr_id\xce\xff\xff\xff\xff\xa4type\xacauthenticate",
                Some(u32::MAX),
                "missing field `token`",
            ),
            (
                b"\x83\xa7corr_id\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa4type\xacauthenticate\xa5token\xa1t",
                None,
                "u32",
            ),
            (b"\x83\xa7corr_id\xff\xa4type\xacauthenticate\xa5token\xa1t", None, "u32"),
            (b"\x83\xa7corr_id\xd1\x00\x07\xa4type\xacauthenticate\xa5token\xc0", Some(7), "string"),
            (b"\x83\xa7corr_id\x03\xa4type\xacauthenticate\xa5token\xa2\xff\xfe", Some(3), "Undecodable"),
            (
                b"\x84\xa7corr_id\x03\xa7corr_id\x04\xa4type\xacauthenticate\xa5token\xa1t",
                Some(3),
                "duplicate field",
            ),
            (
                b"\x84\xa4type\xa5query\xa7corr_id\x03\xa4type\xacauthenticate\xa5token\xa1t",
                Some(3),
                "duplicate field `type`",
            ),
            (b"\x83\xa7corr_id\x03\xa4type\xacauthenticate\xa5token\xa9short", Some(3), "cut short"),
            (b"\x83\xa7corr_id\x03\xa4type\xacauthenticate", Some(3), "cut short"),
            (
                b"\x83\xa7corr_id\x03\xa4type\xacauthenticate\xa5token\xa1t\x00",
                Some(3),
                "longer than its message",
            ),
            (b"\x84\xa7corr_id\x03\xa4type\xacauthenticate\xa5token\xa1t\x05\x05", Some(3), "no string"),
            (b"\x82\xa7corr_id\x03\xa4data\xc6\xff\xff\xff\xff", Some(3), "cut short"),
            (b"\x82\xa7corr_id\x03\xa4data\xdd\xff\xff\xff\xff", Some(3), "cut short"),
            (b"\x82\xa7corr_id\x03\xa4data\xdf\xff\xff\xff\xff\x01", Some(3), "cut short"),
            (b"\x82\xa7corr_id\x03\xa4data\xc9\xff\xff\xff\xff\x01", Some(3), "cut short"),
            (b"\xdf\xff\xff\xff\xff\xa7corr_id\x03", Some(3), "cut short"),
        ];
        for (frame, corr_id, part) in corpus {
            let undecodable = refused(frame);
            assert_eq!(undecodable.corr_id, *corr_id, "{undecodable:?} for {frame:?}");
            assert!(undecodable.reason.contains(part), "{undecodable:?} for {frame:?}");
        }
    }

    #[test]
    fn negative_chunk_numbers_are_refused() {
        let mut frame = b"\x86\xa4type\xaeupload_program\xacprogram_hash\xa1h\xa7corr_id\x05\xactotal_chunks\x01\xabchunk_index".to_vec();
        frame.extend_from_slice(b"\xff\xaachunk_data\xc4\x00");
        assert_eq!(refused(&frame).corr_id, Some(5));
    }

    #[test]
    fn hostile_shapes_are_bounded() {
        let prefix = b"\x82\xa7corr_id\x03\xa1x";
        let nested = [prefix.as_slice(), &[0x91; 500_000]].concat();
        assert!(refused(&nested).reason.contains("nested"));
        let mut wide = [prefix.as_slice(), b"\xdd\x00\x0e\x00\x00"].concat();
        wide.resize(limits::CLIENT_FRAME_BYTES, 0xc0);
        assert!(refused(&wide).reason.contains("more values"));
        let long_name = [b"\x81\xa4type\xdb\x00\x0f\x00\x00".as_slice(), &vec![b'n'; 0xf0000]].concat();
        assert!(refused(&long_name).reason.len() < 500);
    }

    /// Every prefix and every single-byte change of every message: an answer, never a panic.
    #[test]
    fn cut_and_changed_frames_never_panic() {
        let seed = 0x7a27_01e7_u64;
        let mut state = seed;
        for message in client_messages() {
            let frame = message.encode();
            for end in (0..frame.len()).take(300) {
                assert!(ClientMessage::decode(&frame[..end]).is_err());
            }
            for _ in 0..3000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % frame.len().min(300);
                let mut changed = frame.clone();
                changed[at] = (state >> 24) as u8;
                if let Ok(decoded) = ClientMessage::decode(&changed) {
                    assert_eq!(ClientMessage::decode(&decoded.encode()), Ok(decoded), "seed {seed:#x}");
                }
            }
        }
    }
}
