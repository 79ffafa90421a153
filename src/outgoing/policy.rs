//! Whom programs may call: a list of hosts, and what an address is.
//!
//! Owns: the grammar of an entry, and the judgement of a host and of an address. Never: a lookup, a socket, a clock.
//!
//! An entry is `HOST` or `HOST:PORT`; without a port it is that of http, 80. `HOST` is a name in full, an IPv4 address, or
//! an IPv6 address in brackets. A name allows what is public among its addresses. An address that is not (loopback,
//! private, link-local and the like, whatever name leads there) must be an entry itself: so nobody who can answer for a
//! name opens the box's own network.

use crate::limits;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The port of http.
const PORT: u16 = 80;

/// Bytes of a name, by the rules of DNS.
const NAME_BYTES: usize = 253;
/// Bytes between two dots of it.
const LABEL_BYTES: usize = 63;

/// Where a request goes, or may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: Host,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// In lower case, without a dot at the end.
    Name(String),
    Address(IpAddr),
}

impl Target {
    /// The address as an entry of the list.
    pub fn literal(address: SocketAddr) -> Target {
        Target { host: Host::Address(address.ip()), port: address.port() }
    }
}

/// The error is a sentence about the entry, which goes on after its text.
impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!(
                "names the scheme {scheme}; only http is spoken, so write HOST or HOST:PORT"
            ));
        }
        let bracket = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = match bracket {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').unwrap_or(""))),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => PORT,
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or(
                "is not HOST:PORT with a port between 1 and 65535; an IPv6 address stands in brackets",
            )?,
        };
        let host = match bracket {
            Some(_) => {
                Host::Address(IpAddr::V6(host.parse().map_err(|_| "has no IPv6 address in its brackets")?))
            }
            None => match host.parse() {
                Ok(address) => Host::Address(IpAddr::V4(address)),
                Err(_) => Host::Name(name(host)?),
            },
        };
        Ok(Target { host, port })
    }
}

/// A name that a lookup cannot take for an address in a spelling of its own (`127.1`, `0x7f000001`).
fn name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let known = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let label = |label: &str| (1..=LABEL_BYTES).contains(&label.len()) && label.bytes().all(known);
    let last = name.rsplit('.').next().unwrap_or_default();
    if name.contains('*') {
        return Err("is a pattern; each host is named in full");
    }
    if name.len() > NAME_BYTES || !name.split('.').all(label) {
        return Err("has no host name of letters, digits, dots and hyphens");
    }
    if last.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("ends in a number as an address does, and is none");
    }
    Ok(name.to_ascii_lowercase())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => f.write_str(name)?,
            Host::Address(IpAddr::V4(address)) => address.fmt(f)?,
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        match self.port {
            PORT => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

/// The hosts that programs may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<Target>);

impl Allowed {
    /// The error is a sentence that names the entry.
    pub fn new(entries: &[String]) -> Result<Allowed, String> {
        if entries.len() > limits::HTTP_ALLOWED {
            return Err(format!("names {} hosts, and {} are the most", entries.len(), limits::HTTP_ALLOWED));
        }
        let target = |entry: &String| entry.parse().map_err(|what| format!("{entry:?} {what}"));
        entries.iter().map(target).collect::<Result<_, String>>().map(Allowed)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What either allows.
    pub fn and(&self, more: &Allowed) -> Allowed {
        Allowed(self.0.iter().chain(&more.0).cloned().collect())
    }

    /// Whether a request may be for this host.
    pub fn host(&self, target: &Target) -> bool {
        self.0.contains(target)
    }

    /// Whether somebody on the box itself is called at this port.
    pub fn is_own_port(&self, port: u16) -> bool {
        let own = |host: &Host| matches!(host, Host::Address(address) if is_loopback(*address));
        self.0.iter().any(|target| target.port == port && own(&target.host))
    }

    /// Whether a host that may be called may be at this address.
    pub fn address(&self, address: SocketAddr) -> bool {
        is_public(address.ip()) || self.host(&Target::literal(address))
    }
}

/// As a token's claim has it: a list of entries.
impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Allowed, D::Error> {
        Allowed::new(&Vec::deserialize(value)?).map_err(|what| de::Error::custom(format!("http: {what}")))
    }
}

impl Serialize for Allowed {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(Target::to_string))
    }
}

/// Whether an address leads to the box itself, whatever else it has: the unspecified one does, too.
fn is_loopback(address: IpAddr) -> bool {
    let v4 = |address: Ipv4Addr| address.is_loopback() || address.is_unspecified();
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unspecified() || embedded(address).is_some_and(v4)
        }
    }
}

/// Whether an address is one of the public network's, and stands for no other.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => public_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => public_v4(inner),
            None => public_v6(address),
        },
    }
}

/// What the registry of special-purpose IPv4 addresses (RFC 6890) does not claim.
fn public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: [(u32, u32); 16] = [
        (0x0000_0000, 8),  // this network, unspecified
        (0x0A00_0000, 8),  // private
        (0x6440_0000, 10), // shared by a carrier's customers
        (0x7F00_0000, 8),  // loopback
        (0xA9FE_0000, 16), // link-local
        (0xAC10_0000, 12), // private
        (0xC000_0000, 24), // protocol assignments
        (0xC000_0200, 24), // documentation
        (0xC058_6300, 24), // 6to4 relays
        (0xC0A8_0000, 16), // private
        (0xC612_0000, 15), // benchmarks
        (0xC633_6400, 24), // documentation
        (0xCB00_7100, 24), // documentation
        (0xE000_0000, 4),  // multicast
        (0xF000_0000, 4),  // reserved, broadcast
        (0xFFFF_FFFF, 32), // broadcast
    ];
    let bits = u32::from(address);
    !SPECIAL.iter().any(|(net, length)| (bits ^ net) >> (32 - length) == 0)
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible or translated, 6to4, NAT64, ISATAP.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(address);
    let low = Ipv4Addr::from(bits as u32);
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None, // unspecified, loopback
        [0, 0, 0, 0, 0, 0 | 0xFFFF, _, _] | [0, 0, 0, 0, 0xFFFF, 0, _, _] => Some(low),
        [0x64, 0xFF9B, 0, 0, 0, 0, _, _] | [_, _, _, _, 0 | 0x200, 0x5EFE, _, _] => Some(low),
        [0x2002, ..] => Some(Ipv4Addr::from((bits >> 80) as u32)),
        _ => None,
    }
}

/// Within the part of the address space that is given out for the public network, less what is special in it.
fn public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let given_out = first & 0xE000 == 0x2000;
    let protocols = first == 0x2001 && second < 0x200; // Teredo among them
    let documentation = first == 0x2001 && second == 0xDB8 || first == 0x3FFF && second < 0x1000;
    given_out && !protocols && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> Allowed {
        Allowed::new(&entries.iter().map(|entry| entry.to_string()).collect::<Vec<_>>()).unwrap()
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap_or_else(|what| panic!("{text} {what}"))
    }

    #[test]
    fn a_port_of_the_box_is_one_at_any_of_its_own_addresses() {
        for own in ["127.0.0.1:9000", "127.8.0.1:9000", "0.0.0.0:9000", "[::1]:9000", "[::]:9000"] {
            let own = allowed(&["api.example.com:9001", own]);
            assert!(own.is_own_port(9000) && !own.is_own_port(9001), "{own:?}");
        }
        assert!(allowed(&["[::ffff:127.0.0.1]:9000"]).is_own_port(9000));
        let others = ["api.example.com:9000", "192.168.1.20:9000", "[fd00::1]:9000", "8.8.8.8:9000"];
        assert!(!allowed(&others).is_own_port(9000));
    }

    #[test]
    fn an_entry_is_a_host_and_a_port() {
        for (text, shown) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.com.:80", "api.example.com"),
            ("api.example.com:8443", "api.example.com:8443"),
            ("box_2-a", "box_2-a"),
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("[::1]", "[::1]"),
            ("[FD00::1]:81", "[fd00::1]:81"),
        ] {
            assert_eq!(target(text).to_string(), shown);
            assert_eq!(target(shown), target(text));
        }
        for text in [
            "",
            ":",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:b",
            "a b",
            "a..b",
            "a/b",
            "u@a",
            "*",
            "*.example.com",
            "::1",
            "[::1",
            "[a]",
            "[127.0.0.1]",
            "[::1]80",
            "http://a",
            "https://a:1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "1.2.3.4.5",
            "é.example",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        assert!(format!("{}.a", "x".repeat(64)).parse::<Target>().is_err());
        assert!("a.".repeat(128).parse::<Target>().is_err());
    }

    #[test]
    fn only_what_is_listed_may_be_called_and_only_at_its_port() {
        let list = allowed(&["api.example.com", "api.example.com:8443", "127.0.0.1:9000"]);
        for (text, may) in [
            ("api.example.com", true),
            ("api.example.com:8443", true),
            ("api.example.com:81", false),
            ("x.api.example.com", false),
            ("example.com", false),
            ("127.0.0.1:9000", true),
            ("127.0.0.1", false),
            ("127.0.0.2:9000", false),
            ("[::ffff:127.0.0.1]:9000", false),
            ("localhost:9000", false),
        ] {
            assert_eq!(list.host(&target(text)), may, "{text}");
        }
        assert!(!Allowed::default().host(&target("api.example.com")));
        let both = list.and(&allowed(&["other.example"]));
        assert!(both.host(&target("other.example")) && both.host(&target("api.example.com")));
        assert!(Allowed::new(&vec!["a".to_owned(); limits::HTTP_ALLOWED + 1]).is_err());
    }

    #[test]
    fn an_address_that_is_not_public_must_be_listed_itself() {
        let list = allowed(&["api.example.com", "10.0.0.7:80", "[fd00::1]:81"]);
        for (address, may) in [
            ("8.8.8.8:80", true),
            ("10.0.0.7:80", true),
            ("10.0.0.7:81", false),
            ("10.0.0.8:80", false),
            ("[::ffff:10.0.0.7]:80", false),
            ("[fd00::1]:81", true),
            ("[fd00::2]:81", false),
        ] {
            assert_eq!(list.address(address.parse().unwrap()), may, "{address}");
        }
    }

    #[test]
    fn special_addresses_are_not_public_in_any_dress() {
        let special = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ];
        let public = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "223.255.255.255",
        ];
        for (list, expected) in [(&special[..], false), (&public[..], true)] {
            for text in list {
                let v4: Ipv4Addr = text.parse().unwrap();
                let [a, b, c, d] = v4.octets();
                let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                assert_eq!(is_public(v4.into()), expected, "{v4}");
                for dress in [
                    [0, 0, 0, 0, 0, 0xFFFF, high, low],
                    [0, 0, 0, 0, 0xFFFF, 0, high, low],
                    [0x64, 0xFF9B, 0, 0, 0, 0, high, low],
                    [0x2002, high, low, 0, 0, 0, 0, 1],
                    [0x2600, 1, 2, 3, 0, 0x5EFE, high, low],
                ] {
                    let dressed = Ipv6Addr::from(dress);
                    assert_eq!(is_public(dressed.into()), expected, "{v4} as {dressed}");
                }
                if u32::from(v4) > 1 {
                    let compatible = Ipv6Addr::from([0, 0, 0, 0, 0, 0, high, low]);
                    assert_eq!(is_public(compatible.into()), expected, "{v4} as {compatible}");
                }
            }
        }
        for text in [
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fc00::1",
            "fdff::1",
            "ff02::1",
            "64:ff9b:1::a00:1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "3fff::1",
            "4000::1",
            "1fff::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["2600::1", "2001:4860:4860::8888", "2a00:1450::1", "3ffe::1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
