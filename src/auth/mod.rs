//! Who may come in, and as whom: PASETO v4.public tokens, their keys, and the rights they give.
//!
//! Owns: [`paseto`] the format, [`grant`] claims to rights, [`files`] keys and tokens for the command line. Never: sockets
//! and sessions; a token or a secret key in a log or an error.

use std::fmt;
use std::path::PathBuf;

pub mod files;
pub mod grant;
pub mod paseto;

pub use files::{find_token, parse_ttl, read_public_key, read_secret_key, write_key_pair, write_private};
pub use grant::{Claims, Denial, Grant, Role, Verifier, inspect, mint};
pub use paseto::{Malformed, PublicKey, SecretKey, Token};

/// Why a key or a token could not be made, read or written. `Display` is a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthError {
    File {
        path: PathBuf,
        what: &'static str,
        error: String,
    },
    /// A key would be overwritten.
    Exists(PathBuf),
    Key {
        path: PathBuf,
        malformed: Malformed,
    },
    Denied(Denial),
    Role(String),
    Ttl(String),
    Random(String),
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthError::File { path, what, error } => {
                write!(f, "{} cannot be {what}: {error}.", path.display())
            }
            AuthError::Exists(path) => {
                write!(
                    f,
                    "{} is there already, and a key is not overwritten; name another file.",
                    path.display()
                )
            }
            AuthError::Key { path, malformed } => write!(f, "{}: {malformed}.", path.display()),
            AuthError::Denied(denial) => write!(f, "The token is not good: {denial}."),
            AuthError::Role(role) => write!(f, "There is no role {role:?}; use user or admin."),
            AuthError::Ttl(text) => write!(f, "{text:?} is no lifetime; write 90s, 15m, 12h or 30d."),
            AuthError::Random(error) => write!(f, "The system gives no random bytes: {error}."),
        }
    }
}

impl std::error::Error for AuthError {}
