//! HTTP as plain data: what crosses between a guest and whoever speaks HTTP for it.
//!
//! Owns: bodies as bounded [`pipe`]s, an answer that is awaited ([`promise`]), and why an exchange failed
//! ([`ErrorCode`]); heads are those of the crate `http`. Never: sockets, guests, or the protocol.
//!
//! ```text
//!  server ──Call: Request<Reader>──▶ runtime ──▶ guest          guest ──Request<Reader>──▶ outgoing
//!     ▲                                            │               ▲                           │
//!     └──── Promised: Result<Response<Reader>> ◀── Promise         └──── Promised ◀── Promise ─┘
//! ```
//! Whoever makes a body holds its [`Writer`], and whoever takes it the [`Reader`]. Dropping the writer before
//! [`Writer::finish`] breaks the body; dropping the reader lets the writer know that nobody wants more.

mod body;
mod error;
mod promise;

pub use body::{Reader, Refused, Taken, Writer, empty, pipe};
pub use error::{ErrorCode, FieldSize};
pub use promise::{Promise, Promised, promise};

/// What an exchange comes to.
pub type Outcome = Result<http::Response<Reader>, ErrorCode>;

/// A request that came in, and where its answer goes. Dropping the promise unanswered is an answer too.
pub struct Call {
    /// Its URI has a path, and scheme and authority where they are known.
    pub request: http::Request<Reader>,
    pub answer: Promise,
}
