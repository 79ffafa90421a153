//! Who may be asked: the hosts that are allowed by name, and the addresses that never are unless they are named.
//!
//! Owns: the grammar of an entry, and both judgements. Never: a lookup, a socket, or where the entries come from.

use crate::limits;
use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// The port of an entry that names none.
const HTTP_PORT: u16 = 80;

/// One host that may be asked, at one port: `api.example.com`, `nas.lan:8080`, `127.0.0.1:9000`, `[fd00::7]:80`.
///
/// A name stands for itself, not for what is below it. An address that is named may be connected to whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Lower case, without a dot at the end.
    Name(String),
    /// Never an IPv4 address in IPv6 clothes.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = ();

    fn from_str(text: &str) -> Result<Host, ()> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(v6) = inner {
            return v6
                .parse::<Ipv6Addr>()
                .map(|v6| Host::Address(IpAddr::V6(v6).to_canonical()))
                .map_err(drop);
        }
        if let Ok(v4) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Address(v4.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len()) && label.bytes().all(sound)
        };
        match name.len() <= 253 && name.split('.').all(label) {
            true => Ok(Host::Name(name)),
            false => Err(()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V4(address)) => address.fmt(f),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Entry, String> {
        let wrong = || {
            format!(
                "{text:?} is no host to allow; write a name or an address, with :PORT unless it is 80, like \
                 \"api.example.com\", \"127.0.0.1:9000\" or \"[fd00::7]:80\""
            )
        };
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                (host, port.parse().ok().filter(|port| digits && *port > 0).ok_or_else(wrong)?)
            }
            _ => (text, HTTP_PORT),
        };
        Ok(Entry { host: host.parse().map_err(|()| wrong())?, port })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            HTTP_PORT => self.host.fmt(f),
            port => write!(f, "{}:{port}", self.host),
        }
    }
}

/// Hosts that may be asked: of the configuration, or of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Arc<[Entry]>);

impl Allowed {
    /// The error is a sentence without its end.
    pub fn parse(texts: &[String]) -> Result<Allowed, String> {
        if texts.len() > limits::OUTGOING_HOSTS {
            let most = limits::OUTGOING_HOSTS;
            return Err(format!("{} hosts are allowed, and {most} is the most of one list", texts.len()));
        }
        texts
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Entry>, String>>()
            .map(|all| Allowed(all.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn names(&self, host: &Host, port: u16) -> bool {
        self.0.iter().any(|entry| entry.port == port && entry.host == *host)
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Allowed, D::Error> {
        Allowed::parse(&Vec::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl Serialize for Allowed {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(Entry::to_string))
    }
}

/// What one instance may ask: what the box allows everyone, and what its launcher's token allows beside.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub of_box: Allowed,
    pub of_token: Allowed,
}

impl Policy {
    /// Whether this host may be asked at all.
    pub fn allows(&self, host: &Host, port: u16) -> bool {
        self.of_box.names(host, port) || self.of_token.names(host, port)
    }

    /// Whether this address may be connected to, for a host that may be asked: it is of the public internet, or named.
    pub fn permits(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        is_public(ip) || self.allows(&Host::Address(ip), address.port())
    }
}

/// Whether an address is of the public internet. What embeds an IPv4 address is judged by that.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// All but the special purposes of RFC 6890 and its registry.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        (0 | 10 | 127, ..) => true,
        (100, 64..=127, _) => true, // shared by a carrier's customers
        (169, 254, _) => true,      // link-local; clouds tell secrets there
        (172, 16..=31, _) | (192, 168, _) => true,
        (192, 0, 0) => true,                                  // protocol assignments
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => true, // documentation
        (192, 88, 99) => true,                                // 6to4 relays
        (198, 18..=19, _) => true,                            // benchmarks
        (224.., ..) => true,                                  // multicast, reserved, broadcast
        _ => false,
    };
    !special
}

/// Global unicast, 2000::/3, less its special purposes, and NAT64's well-known prefix.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low), // 6to4
        [0x2001, 0..=0x1ff, ..] => false,               // protocol assignments, Teredo among them
        [0x2001, 0xdb8, ..] => false,                   // documentation
        [0x3fff, 0..=0xfff, ..] => false,               // documentation
        [first, .., 0 | 0x200, 0x5efe, high, low] => first >> 13 == 1 && embedded(high, low), // ISATAP
        [first, ..] => first >> 13 == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(of_box: &[&str], of_token: &[&str]) -> Policy {
        let list = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
            Allowed::parse(&texts).expect("sound entries")
        };
        Policy { of_box: list(of_box), of_token: list(of_token) }
    }

    #[test]
    fn an_entry_is_one_host_at_one_port() {
        for (text, shown) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.com.:8443", "api.example.com:8443"),
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[fd00::7]:81", "[fd00::7]:81"),
            ("[::1]", "[::1]"),
            ("[::ffff:10.0.0.1]:8", "10.0.0.1:8"),
        ] {
            assert_eq!(text.parse::<Entry>().expect(text).to_string(), shown);
        }
        let long = format!("{}.example", "a".repeat(64));
        for text in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "http://a",
            "a/b",
            "a b",
            "*.example.com",
            "*",
            "a..b",
            "::1",
            "fd00::7",
            "[::1",
            "[1.2.3.4]",
            "[]:80",
            "user@a",
            "a:1:2",
            "é",
            &long,
        ] {
            let sentence = text.parse::<Entry>().expect_err(text);
            assert!(sentence.contains("is no host to allow; write a name"), "{sentence}");
        }
        let many = vec!["a".to_owned(); limits::OUTGOING_HOSTS + 1];
        assert!(Allowed::parse(&many).is_err_and(|sentence| sentence.contains("the most of one list")));
    }

    #[test]
    fn a_host_is_allowed_by_its_whole_name_and_port_by_the_box_or_the_token() {
        let policy = policy(&["api.example.com", "127.0.0.1:9000"], &["other.example:8080"]);
        let allows = |host: &str, port| policy.allows(&host.parse().expect(host), port);
        assert!(allows("api.example.com", 80) && allows("API.EXAMPLE.COM.", 80));
        assert!(
            allows("127.0.0.1", 9000) && allows("[::ffff:127.0.0.1]", 9000) && allows("other.example", 8080)
        );
        for (host, port) in [
            ("api.example.com", 443),
            ("example.com", 80),
            ("x.api.example.com", 80),
            ("127.0.0.1", 9001),
            ("127.1", 9000), // a name for who resolves it, and not the one that is named
            ("0x7f000001", 9000),
            ("2130706433", 9000),
            ("localhost", 9000),
            ("other.example", 80),
        ] {
            assert!(!allows(host, port), "{host}:{port}");
        }
        assert!(!Policy::default().allows(&Host::Name("example.com".to_owned()), 80));
    }

    #[test]
    fn no_address_of_a_private_or_special_kind_is_public_whatever_it_wears() {
        let special = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
        ];
        for text in special {
            let v4: Ipv4Addr = text.parse().expect(text);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let worn = [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0, 0, !high, !low),
                Ipv6Addr::new(0x2a00, 1, 2, 3, 0, 0x5efe, high, low),
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0x200, 0x5efe, high, low),
            ];
            assert!(!is_public(v4.into()), "{v4}");
            for v6 in worn {
                assert!(!is_public(v6.into()), "{v6} wears {v4}");
            }
        }
        for text in [
            "::",
            "::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "2001:db8::1",
            "3fff::1",
            "2001::1",
            "2001:20::1",
            "64:ff9b:1::808:808",
            "4000::1",
            "::808:808",
            "fe80::5efe:808:808",
        ] {
            assert!(!is_public(text.parse().expect(text)), "{text}");
        }
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::200e",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_public(text.parse().expect(text)), "{text}");
        }
    }

    #[test]
    fn a_private_address_is_permitted_where_it_is_named_with_its_port() {
        let policy = policy(&["nas.lan"], &["192.168.1.5", "[fd00::7]:81"]);
        for (address, permitted) in [
            ("192.168.1.5:80", true),
            ("[::ffff:192.168.1.5]:80", true),
            ("192.168.1.5:81", false),
            ("192.168.1.6:80", false),
            ("[fd00::7]:81", true),
            ("[fd00::7]:80", false),
            ("8.8.8.8:80", true),
        ] {
            assert_eq!(policy.permits(address.parse().expect(address)), permitted, "{address}");
        }
    }
}
