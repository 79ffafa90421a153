//! PASETO v4.public: signed tokens, and their keys in PASERK text form (`k4.public.…`, `k4.secret.…`).
//!
//! Owns: the format (<https://github.com/paseto-standard/paseto-spec>): header, PAE, base64url without padding, and
//! Ed25519 over them, verified strictly. Never: what a payload means, clocks, files. Sizes are checked before anything
//! is decoded, the signature before anything is parsed. Secrets do not print.

use crate::limits;
use base64ct::{Base64UrlUnpadded, Encoding};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::fmt;

const HEADER: &str = "v4.public.";
const PUBLIC: &str = "k4.public.";
const SECRET: &str = "k4.secret.";
/// Bytes of an Ed25519 signature.
const SIGNATURE: usize = 64;

/// Who signs. Wiped from memory when dropped.
pub struct SecretKey(SigningKey);

/// Whose signatures are accepted.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// The text of a token; a bearer secret, so only [`Token::expose`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// What a token carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub payload: Vec<u8>,
    pub footer: Vec<u8>,
}

/// Why a text is no token or key of ours. The texts hold nothing of the secret itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    TokenTooLong(usize),
    FooterTooLong(usize),
    Header,
    Encoding,
    TooShort,
    Signature,
    PublicKey,
    SecretKey,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::TokenTooLong(bytes) => {
                write!(f, "the token has {bytes} bytes; at most {} are read", limits::TOKEN_BYTES)
            }
            Malformed::FooterTooLong(bytes) => {
                write!(
                    f,
                    "the token's footer has {bytes} bytes; at most {} are read",
                    limits::TOKEN_FOOTER_BYTES
                )
            }
            Malformed::Header => f.write_str("the token does not start with v4.public."),
            Malformed::Encoding => f.write_str("the token is not base64url without padding"),
            Malformed::TooShort => f.write_str("the token is too short to hold a signature"),
            Malformed::Signature => f.write_str("the token's signature is not by a known key"),
            Malformed::PublicKey => f.write_str("this is no PASERK public key; one looks like k4.public.…"),
            Malformed::SecretKey => f.write_str("this is no PASERK secret key; one looks like k4.secret.…"),
        }
    }
}

impl std::error::Error for Malformed {}

impl SecretKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Result<SecretKey, getrandom::Error> {
        let mut seed = [0u8; 32];
        getrandom::fill(&mut seed)?;
        Ok(SecretKey(SigningKey::from_bytes(&seed)))
    }

    /// Reads `k4.secret.` + base64url(seed, public key); the halves must belong together.
    pub fn from_paserk(text: &str) -> Result<SecretKey, Malformed> {
        let mut pair = [0u8; 64];
        decode_exact(text, SECRET, &mut pair).ok_or(Malformed::SecretKey)?;
        SigningKey::from_keypair_bytes(&pair).map(SecretKey).map_err(|_| Malformed::SecretKey)
    }

    /// The PASERK text; the secret itself.
    pub fn expose_paserk(&self) -> String {
        format!("{SECRET}{}", Base64UrlUnpadded::encode_string(&self.0.to_keypair_bytes()))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(not shown)")
    }
}

impl PublicKey {
    /// Reads `k4.public.` + base64url(32 bytes); points of small order sign anything and are refused.
    pub fn from_paserk(text: &str) -> Result<PublicKey, Malformed> {
        let mut bytes = [0u8; 32];
        decode_exact(text, PUBLIC, &mut bytes).ok_or(Malformed::PublicKey)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| Malformed::PublicKey)?;
        if key.is_weak() { Err(Malformed::PublicKey) } else { Ok(PublicKey(key)) }
    }
}

/// The PASERK text.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", Base64UrlUnpadded::encode_string(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Token {
    pub fn new(text: impl Into<String>) -> Token {
        Token(text.into())
    }

    /// The text itself, for the one place that sends or writes it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

/// Signs `payload`. The footer travels with the token, unencrypted; the implicit assertion does not, and whoever
/// verifies must know it.
pub fn sign(key: &SecretKey, payload: &[u8], footer: &[u8], implicit: &[u8]) -> Token {
    let signature = key.0.sign(&pae(&[HEADER.as_bytes(), payload, footer, implicit]));
    let body = [payload, &signature.to_bytes()].concat();
    let mut text = format!("{HEADER}{}", Base64UrlUnpadded::encode_string(&body));
    if !footer.is_empty() {
        text.push('.');
        text.push_str(&Base64UrlUnpadded::encode_string(footer));
    }
    Token(text)
}

/// Checks `token` against each key in turn.
pub fn verify(keys: &[PublicKey], token: &str, implicit: &[u8]) -> Result<Opened, Malformed> {
    let (opened, signature) = split(token)?;
    let signed = pae(&[HEADER.as_bytes(), &opened.payload, &opened.footer, implicit]);
    match keys.iter().any(|key| key.0.verify_strict(&signed, &signature).is_ok()) {
        true => Ok(opened),
        false => Err(Malformed::Signature),
    }
}

/// What `token` says, believed by nobody: for people who look at their own tokens.
pub fn read_unverified(token: &str) -> Result<Opened, Malformed> {
    split(token).map(|(opened, _)| opened)
}

fn split(token: &str) -> Result<(Opened, Signature), Malformed> {
    if token.len() > limits::TOKEN_BYTES {
        return Err(Malformed::TokenTooLong(token.len()));
    }
    let rest = token.strip_prefix(HEADER).ok_or(Malformed::Header)?;
    let (body, footer) = match rest.split_once('.') {
        // "v4.public.body." would be a second spelling of a token without a footer.
        Some((_, "")) => return Err(Malformed::Encoding),
        Some((body, footer)) => (body, footer),
        None => (rest, ""),
    };
    if footer.len() > limits::TOKEN_FOOTER_BYTES {
        return Err(Malformed::FooterTooLong(footer.len()));
    }
    let decode = |text| Base64UrlUnpadded::decode_vec(text).map_err(|_| Malformed::Encoding);
    let (mut payload, footer) = (decode(body)?, decode(footer)?);
    let at = payload.len().checked_sub(SIGNATURE).ok_or(Malformed::TooShort)?;
    let signature = Signature::from_slice(&payload[at..]).map_err(|_| Malformed::Signature)?;
    payload.truncate(at);
    Ok((Opened { payload, footer }, signature))
}

/// Pre-authentication encoding: LE64(count), then LE64(length) and bytes of each piece, top bits cleared.
fn pae(pieces: &[&[u8]]) -> Vec<u8> {
    let le64 = |n: usize| (n as u64 & (u64::MAX >> 1)).to_le_bytes();
    let mut out = le64(pieces.len()).to_vec();
    for piece in pieces {
        out.extend_from_slice(&le64(piece.len()));
        out.extend_from_slice(piece);
    }
    out
}

/// Fills `out` from `prefix` + base64url; none if the text is anything else or of another length.
fn decode_exact(text: &str, prefix: &str, out: &mut [u8]) -> Option<()> {
    let body = text.strip_prefix(prefix)?;
    if body.len() != Base64UrlUnpadded::encoded_len(out) {
        return None;
    }
    let decoded = Base64UrlUnpadded::decode(body, out).ok()?.len();
    (decoded == out.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    fn paserk(prefix: &str, bytes: &[u8]) -> String {
        format!("{prefix}{}", Base64UrlUnpadded::encode_string(bytes))
    }

    /// The official vectors: the valid ones verify and are signed byte for byte the same, the others fail.
    #[test]
    fn official_vectors() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/paseto_v4.json")).unwrap();
        let tests = file["tests"].as_array().unwrap();
        let text = |test: &serde_json::Value, key: &str| test[key].as_str().unwrap_or_default().to_owned();
        let first = PublicKey::from_paserk(&paserk(PUBLIC, &hex(&text(&tests[0], "public-key")))).unwrap();
        let (mut valid, mut failed) = (0, 0);
        for test in tests {
            let (name, token) = (text(test, "name"), text(test, "token"));
            let (footer, implicit) = (text(test, "footer"), text(test, "implicit-assertion"));
            let opened = verify(std::slice::from_ref(&first), &token, implicit.as_bytes());
            if test["expect-fail"].as_bool().unwrap() {
                assert!(opened.is_err(), "{name}");
                failed += 1;
                continue;
            }
            let payload = text(test, "payload");
            let expected = Opened { payload: payload.clone().into(), footer: footer.clone().into() };
            assert_eq!(opened, Ok(expected), "{name}");
            let secret = SecretKey::from_paserk(&paserk(SECRET, &hex(&text(test, "secret-key")))).unwrap();
            let signed = sign(&secret, payload.as_bytes(), footer.as_bytes(), implicit.as_bytes());
            assert_eq!(signed.expose(), token, "{name}");
            valid += 1;
        }
        assert_eq!((valid, failed), (3, 5));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let key = SecretKey::generate().unwrap();
        let keys = [SecretKey::generate().unwrap().public(), key.public()];
        let token = sign(&key, b"{\"sub\":\"a\"}", b"foot", b"box 1");
        let text = token.expose();
        assert!(verify(&keys, text, b"box 1").is_ok());
        assert_eq!(verify(&keys[..1], text, b"box 1"), Err(Malformed::Signature));
        assert_eq!(verify(&keys, text, b"box 2"), Err(Malformed::Signature));
        for at in 0..text.len() {
            for replacement in ["A", "B", "_", ".", "=", "é", ""] {
                let changed = format!("{}{replacement}{}", &text[..at], &text[at + 1..]);
                if changed != text {
                    assert!(verify(&keys, &changed, b"box 1").is_err(), "{changed}");
                }
            }
        }
        for tail in [".", ".AA", "A", "=", "\n", " "] {
            assert!(verify(&keys, &format!("{text}{tail}"), b"box 1").is_err(), "{tail:?}");
        }
    }

    #[test]
    fn sizes_are_checked_before_decoding() {
        let long = format!("{HEADER}{}", "A".repeat(limits::TOKEN_BYTES));
        assert!(matches!(read_unverified(&long), Err(Malformed::TokenTooLong(_))));
        let footer = format!("{HEADER}{}.{}", "A".repeat(100), "A".repeat(limits::TOKEN_FOOTER_BYTES + 1));
        assert!(matches!(read_unverified(&footer), Err(Malformed::FooterTooLong(_))));
        assert_eq!(read_unverified("v4.public."), Err(Malformed::TooShort));
        assert_eq!(read_unverified("v4.public.AAAA"), Err(Malformed::TooShort));
        assert_eq!(read_unverified("v4.publi"), Err(Malformed::Header));
    }

    #[test]
    fn keys_read_back_and_hide() {
        let key = SecretKey::generate().unwrap();
        assert_eq!(SecretKey::from_paserk(&key.expose_paserk()).unwrap().public(), key.public());
        assert_eq!(PublicKey::from_paserk(&key.public().to_string()).unwrap(), key.public());
        assert!(!format!("{key:?} {:?}", Token::new("v4.public.x")).contains("k4.secret"));
        // The PASERK vector k4.secret-2, then halves that do not belong together, and a key of small order.
        let vector = "k4.secret.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8c5WpIyC_5kWKhS8VEYSZ05dYfuTF-ZdQFV4D9vLTcNQ";
        assert_eq!(SecretKey::from_paserk(vector).unwrap().expose_paserk(), vector);
        let mut pair = hex(&"70".repeat(64));
        assert!(SecretKey::from_paserk(&paserk(SECRET, &pair)).is_err());
        pair.truncate(63);
        assert!(SecretKey::from_paserk(&paserk(SECRET, &pair)).is_err());
        assert!(PublicKey::from_paserk(&paserk(PUBLIC, &[0; 32])).is_err());
        assert!(PublicKey::from_paserk(vector).is_err());
    }
}
