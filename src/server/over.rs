//! Why and when a connection ends.
//!
//! Owns: the reasons, with how instances end and what the client is told for each; the watch over token, patience and
//! shutdown. Never: ending anything.

use crate::clock;
use crate::limits;
use crate::runtime::Ending;
use async_tungstenite::tungstenite::error::Error as WsError;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use smol::channel::Receiver;
use smol::future::or;
use std::convert::Infallible;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Closed (never written) when the server stops.
pub type Closing = Receiver<Infallible>;

/// Why a conversation ended.
#[derive(Debug)]
pub enum Over {
    /// The client left, or cannot be written to.
    Gone,
    /// The client broke the carrier's rules.
    Refused(CloseCode, &'static str),
    /// Nobody authenticated in time.
    Stranger,
    TokenExpired,
    /// Too many frames that are no messages.
    Noise,
    Stopping,
}

impl Over {
    /// How the client's instances end, and what is said to the client.
    pub fn terms(&self) -> (Ending, Option<(CloseCode, &'static str)>) {
        match self {
            Over::Gone => (Ending::Disconnected, None),
            Over::Refused(code, reason) => (Ending::Disconnected, Some((*code, reason))),
            Over::Stranger => (Ending::Disconnected, Some((CloseCode::Policy, "not authenticated in time"))),
            Over::Noise => {
                let farewell = (CloseCode::Policy, "too many frames that are no messages");
                (Ending::Disconnected, Some(farewell))
            }
            Over::TokenExpired => (Ending::Expired, Some((CloseCode::Policy, "token expired"))),
            Over::Stopping => (Ending::Stopping, Some((CloseCode::Away, "server stopping"))),
        }
    }
}

/// What a broken frame says about its connection.
pub fn refused(error: &WsError) -> Over {
    match error {
        WsError::Capacity(_) => Over::Refused(CloseCode::Size, "a frame may have 1 MiB"),
        WsError::Protocol(_) => Over::Refused(CloseCode::Protocol, "not the WebSocket protocol"),
        WsError::Utf8(_) => Over::Refused(CloseCode::Invalid, "a text frame that is not UTF-8"),
        _ => Over::Gone,
    }
}

/// When a conversation must end whatever the client does.
#[derive(Clone, Copy)]
pub enum Until {
    Never,
    Instant(Instant),
    /// By the wall clock, which may be set while we wait.
    Date(OffsetDateTime),
}

pub struct Watch<'c> {
    pub until: Until,
    pub closing: &'c Closing,
}

impl Watch<'_> {
    pub fn passed(&self) -> Option<Over> {
        if self.closing.is_closed() {
            return Some(Over::Stopping);
        }
        match self.until {
            Until::Instant(at) if at <= clock::now() => Some(Over::Stranger),
            Until::Date(at) if at <= clock::date() => Some(Over::TokenExpired),
            _ => None,
        }
    }

    /// Waits until it has passed.
    pub async fn ring(&self) -> Over {
        loop {
            if let Some(over) = self.passed() {
                return over;
            }
            let rang = async {
                match self.until {
                    Until::Never => std::future::pending().await,
                    Until::Instant(at) => clock::at(at).await,
                    Until::Date(at) => {
                        // A clock that is set forward is noticed within the cap.
                        let left = Duration::try_from(at - clock::date()).unwrap_or_default();
                        clock::after(left.min(limits::CLOCK_CHECK) + Duration::from_millis(1)).await;
                    }
                }
            };
            let stopped = async {
                let _ = self.closing.recv().await; // an error: closed
            };
            or(stopped, rang).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_shutdown_are_noticed() {
        let (stop, closing) = smol::channel::bounded(1);
        let passed = |until| Watch { until, closing: &closing }.passed().map(|over| format!("{over:?}"));
        let (now, today) = (Instant::now(), OffsetDateTime::now_utc());
        assert_eq!(passed(Until::Never), None);
        assert_eq!(passed(Until::Instant(now + Duration::from_secs(60))), None);
        assert_eq!(passed(Until::Date(today + Duration::from_secs(60))), None);
        assert_eq!(passed(Until::Instant(now)).as_deref(), Some("Stranger"));
        assert_eq!(passed(Until::Date(today)).as_deref(), Some("TokenExpired"));
        let soon = Until::Instant(Instant::now() + Duration::from_millis(20));
        let rung = smol::block_on(Watch { until: soon, closing: &closing }.ring());
        assert!(matches!(rung, Over::Stranger));
        stop.close();
        let rung = smol::block_on(Watch { until: Until::Never, closing: &closing }.ring());
        assert!(matches!(rung, Over::Stopping));
    }
}
