//! The names that cross every layer: which instance, whose, which program.
//!
//! Owns: the types and their text forms. Never: any state; nothing here knows who is alive.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// One running guest. On the wire: a UUID v4 in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(uuid::Uuid);

impl InstanceId {
    pub fn random() -> InstanceId {
        InstanceId(uuid::Uuid::new_v4())
    }

    pub const fn from_bits(bits: u128) -> InstanceId {
        InstanceId(uuid::Uuid::from_u128(bits))
    }

    pub const fn to_bits(self) -> u128 {
        self.0.as_u128()
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for InstanceId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<InstanceId, uuid::Error> {
        uuid::Uuid::try_parse(text).map(InstanceId)
    }
}

/// Whose: the `sub` claim of the token. It scopes kvs keys, exported names, topics and instance lists.
/// With authentication off everyone is [`Subject::everyone`], one scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(Arc<str>);

impl Subject {
    pub fn new(sub: &str) -> Subject {
        Subject(sub.into())
    }

    pub fn everyone() -> Subject {
        Subject("".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The BLAKE3 digest of a component's bytes. On the wire: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramHash(blake3::Hash);

impl ProgramHash {
    pub fn of(component: &[u8]) -> ProgramHash {
        ProgramHash(blake3::hash(component))
    }

    pub fn from_hex(text: &str) -> Option<ProgramHash> {
        blake3::Hash::from_hex(text).ok().map(ProgramHash)
    }
}

impl fmt::Display for ProgramHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl fmt::Debug for ProgramHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}
