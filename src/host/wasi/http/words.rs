//! The words of `wasi:http/types`: methods, schemes, and why an exchange failed.

use crate::host::abi::Borrow;
use crate::host::wasi::io::IoError;
use crate::host::{Cx, Interface, Trap};
use crate::transfer::{ErrorCode, FieldSize};
use crate::wit_variant;

pub fn functions(interface: Interface) -> Interface {
    interface.call("http-error-code", error_code)
}

/// `method`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    Other(String),
}

wit_variant!(Method { Get, Head, Post, Put, Delete, Connect, Options, Trace, Patch, Other(String) });

const METHODS: [(Method, http::Method); 9] = [
    (Method::Get, http::Method::GET),
    (Method::Head, http::Method::HEAD),
    (Method::Post, http::Method::POST),
    (Method::Put, http::Method::PUT),
    (Method::Delete, http::Method::DELETE),
    (Method::Connect, http::Method::CONNECT),
    (Method::Options, http::Method::OPTIONS),
    (Method::Trace, http::Method::TRACE),
    (Method::Patch, http::Method::PATCH),
];

impl Method {
    pub fn of(method: &http::Method) -> Method {
        let known = METHODS.into_iter().find(|(_, theirs)| theirs == method);
        known.map_or_else(|| Method::Other(method.as_str().to_owned()), |(ours, _)| ours)
    }

    /// None: no method can be called so.
    pub fn as_http(&self) -> Option<http::Method> {
        match self {
            Method::Other(name) => http::Method::from_bytes(name.as_bytes()).ok(),
            known => METHODS.into_iter().find(|(ours, _)| ours == known).map(|(_, theirs)| theirs),
        }
    }
}

/// `scheme`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
    Other(String),
}

wit_variant!(Scheme { Http, Https, Other(String) });

impl Scheme {
    pub fn of(scheme: &http::uri::Scheme) -> Scheme {
        match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => Scheme::Other(other.to_owned()),
        }
    }

    /// None: no scheme can be called so.
    pub fn as_http(&self) -> Option<http::uri::Scheme> {
        match self {
            Scheme::Http => Some(http::uri::Scheme::HTTP),
            Scheme::Https => Some(http::uri::Scheme::HTTPS),
            Scheme::Other(name) => name.parse().ok(),
        }
    }
}

wit_variant!(ErrorCode {
    DnsTimeout,
    DnsError((Option<String>, Option<u16>)),
    DestinationNotFound,
    DestinationUnavailable,
    DestinationIpProhibited,
    DestinationIpUnroutable,
    ConnectionRefused,
    ConnectionTerminated,
    ConnectionTimeout,
    ConnectionReadTimeout,
    ConnectionWriteTimeout,
    ConnectionLimitReached,
    TlsProtocolError,
    TlsCertificateError,
    TlsAlertReceived((Option<u8>, Option<String>)),
    HttpRequestDenied,
    HttpRequestLengthRequired,
    HttpRequestBodySize(Option<u64>),
    HttpRequestMethodInvalid,
    HttpRequestUriInvalid,
    HttpRequestUriTooLong,
    HttpRequestHeaderSectionSize(Option<u32>),
    HttpRequestHeaderSize(Option<FieldSize>),
    HttpRequestTrailerSectionSize(Option<u32>),
    HttpRequestTrailerSize(FieldSize),
    HttpResponseIncomplete,
    HttpResponseHeaderSectionSize(Option<u32>),
    HttpResponseHeaderSize(FieldSize),
    HttpResponseBodySize(Option<u64>),
    HttpResponseTrailerSectionSize(Option<u32>),
    HttpResponseTrailerSize(FieldSize),
    HttpResponseTransferCoding(Option<String>),
    HttpResponseContentCoding(Option<String>),
    HttpResponseTimeout,
    HttpUpgradeFailed,
    HttpProtocolError,
    LoopDetected,
    ConfigurationError,
    InternalError(Option<String>),
});

/// Every error that a stream of ours has comes from an exchange.
fn error_code(cx: &mut Cx, error: Borrow<IoError>) -> Result<Option<ErrorCode>, Trap> {
    Ok(Some(cx.table.get(&error)?.0.clone()))
}
