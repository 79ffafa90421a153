//! Frames as they are on the wire: right ones, and every wrong one a test can think of.
//!
//! Owns: how a message is spelled in MessagePack. Never: the project's own types, so that a mistake in those shows.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_bytes::ByteBuf;

/// A value of a field; the tests put it where it does and does not belong.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Field {
    Nil(()),
    Flag(bool),
    Number(i64),
    Real(f64),
    Text(String),
    Bytes(ByteBuf),
    List(Vec<Field>),
}

impl From<&str> for Field {
    fn from(text: &str) -> Field {
        Field::Text(text.to_owned())
    }
}

impl From<&String> for Field {
    fn from(text: &String) -> Field {
        Field::Text(text.clone())
    }
}

impl From<i64> for Field {
    fn from(number: i64) -> Field {
        Field::Number(number)
    }
}

impl From<&[u8]> for Field {
    fn from(bytes: &[u8]) -> Field {
        Field::Bytes(ByteBuf::from(bytes))
    }
}

impl From<&[&str]> for Field {
    fn from(words: &[&str]) -> Field {
        Field::List(words.iter().map(|word| Field::from(*word)).collect())
    }
}

/// A message under construction: a map with a `type`.
#[derive(Clone, Debug)]
pub struct Outgoing(pub Vec<(String, Field)>);

impl Outgoing {
    pub fn new(kind: &str) -> Outgoing {
        Outgoing(vec![("type".to_owned(), kind.into())])
    }

    pub fn with(mut self, name: &str, value: impl Into<Field>) -> Outgoing {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// The same without a field.
    pub fn without(&self, name: &str) -> Outgoing {
        Outgoing(self.0.iter().filter(|(field, _)| field != name).cloned().collect())
    }

    /// The same with another value in a field.
    pub fn changed(&self, name: &str, value: &Field) -> Outgoing {
        let change = |(field, old): &(String, Field)| {
            (field.clone(), if field == name { value.clone() } else { old.clone() })
        };
        Outgoing(self.0.iter().map(change).collect())
    }

    pub fn bytes(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("a message can be written")
    }
}

impl Serialize for Outgoing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A message from the server, all its kinds in one.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Incoming {
    #[serde(rename = "type")]
    pub kind: String,
    pub corr_id: Option<u32>,
    pub successful: Option<bool>,
    pub result: Option<String>,
    pub instance_id: Option<String>,
    pub event: Option<u32>,
    pub message: Option<String>,
    pub blob_hash: Option<String>,
    pub chunk_index: Option<usize>,
    pub total_chunks: Option<usize>,
    pub chunk_data: Option<ByteBuf>,
}

impl Incoming {
    pub fn read(frame: &[u8]) -> Incoming {
        rmp_serde::from_slice(frame)
            .unwrap_or_else(|e| panic!("the server sent what is no message ({e}): {frame:?}"))
    }
}
