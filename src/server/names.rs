//! Whose requests may pass: the one judgement of `Host`, `Origin` and `Sec-Fetch-Site`, for WebSockets and for HTTP alike.
//!
//! Owns: which names are ours. A request whose `Host` is not ours or whose `Origin` is foreign is refused on every path:
//! any web page can open ws://localhost, and a page whose name is made to resolve to this machine sends its own name
//! as `Host`. An image, a frame or a link of a foreign page sends no `Origin`; there `Sec-Fetch-Site`, which a page cannot set,
//! says where it comes from. Absence of each is fine; programs send none of them. Never: a request's other fields, or a reply.

use std::net::IpAddr;

/// The names that the configuration gives.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// `Host` names that are ours besides loopback ones and the address connected to; lower case, without port.
    pub hosts: Vec<String>,
    /// `Origin` values of web pages that may connect, exactly as browsers send them.
    pub origins: Vec<String>,
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// No judgement was possible.
    pub malformed: bool,
    pub sentence: &'static str,
}

impl Names {
    /// Judges a request by all values of its `Host`, `Origin` and `Sec-Fetch-Site` fields; it came in on the address `local`.
    pub fn admit<'h>(
        &self,
        mut hosts: impl Iterator<Item = &'h [u8]>,
        mut origins: impl Iterator<Item = &'h [u8]>,
        mut sites: impl Iterator<Item = &'h [u8]>,
        local: IpAddr,
    ) -> Result<(), Stranger> {
        let stranger = |malformed, sentence| Err(Stranger { malformed, sentence });
        let text = |value: &'h [u8]| str::from_utf8(value).map(str::trim);
        let (host, origin) = (hosts.next(), origins.next());
        if hosts.next().is_some() || origins.next().is_some() {
            return stranger(true, "The request names more than one Host or Origin.");
        }
        if host.is_some_and(|host| !text(host).is_ok_and(|host| is_ours(host, &self.hosts, local))) {
            return stranger(false, "This Host is not served here; add it to hosts in tartlet.toml.");
        }
        if origin
            .is_some_and(|origin| !text(origin).is_ok_and(|origin| self.origins.iter().any(|o| o == origin)))
        {
            return stranger(false, "This Origin may not connect; add it to origins in tartlet.toml.");
        }
        // One with an Origin was judged by that. A person who types an address has no site.
        if origin.is_none() && !sites.all(|site| [&b"same-origin"[..], b"none"].contains(&site)) {
            return stranger(false, "This comes from a page of another origin; open the address itself.");
        }
        Ok(())
    }
}

/// Loopback names and addresses, the address the client connected to, and the configured names; with any port.
fn is_ours(host: &str, hosts: &[String], local: IpAddr) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, after)) => (v6, after.strip_prefix(':').unwrap_or(after)),
        None => host.split_once(':').unwrap_or((host, "")),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    match name.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address.to_canonical() == local.to_canonical(),
        Err(_) => name == "localhost" || hosts.contains(&name),
    }
}
