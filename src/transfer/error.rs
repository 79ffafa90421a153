//! Why an exchange failed: the cases of `wasi:http/types.error-code`, which name everything that can go wrong.

use std::fmt;

/// In WIT order, by which the ABI knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    DnsTimeout,
    /// The resolver's code as text, and its further code.
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
    /// The alert's number and its text.
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
    /// Anything else, in words.
    InternalError(Option<String>),
}

/// A field's name and its size in bytes, as far as they are known.
pub type FieldSize = (Option<String>, Option<u32>);

impl ErrorCode {
    pub fn internal(what: impl Into<String>) -> ErrorCode {
        ErrorCode::InternalError(Some(what.into()))
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErrorCode::InternalError(Some(what)) => f.write_str(what),
            named => write!(f, "{named:?}"),
        }
    }
}

impl std::error::Error for ErrorCode {}
