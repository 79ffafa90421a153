//! From claims to rights: who a token speaks for, as what, and until when.
//!
//! Owns: the claims (`sub`, `role`, `quotas`, `exp`, `nbf`, `iat`, `jti`; times as RFC 3339), their checks against a clock that is
//! passed in, and the list of withdrawn tokens. Never: signatures' arithmetic, sockets, the system clock.

use super::AuthError;
use super::paseto::{self, Malformed, PublicKey, SecretKey, Token};
use crate::identity::Subject;
use crate::limits;
use crate::quota::Caps;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How far the clock of who signs may be ahead of ours, for `iat`. `exp` and `nbf` are taken at their word.
const CLOCK_AHEAD: time::Duration = time::Duration::seconds(60);

/// What the bearer may do. Both roles run programs; an admin also sees and stops the server instances of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    User,
    Admin,
}

impl FromStr for Role {
    type Err = AuthError;
    fn from_str(text: &str) -> Result<Role, AuthError> {
        match text {
            "user" => Ok(Role::User),
            "admin" => Ok(Role::Admin),
            other => Err(AuthError::Role(other.to_owned())),
        }
    }
}

/// What a token says, as it is written. Unknown claims are ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub sub: String,
    #[serde(default)]
    pub role: Role,
    /// What of the box's quotas is lowered for the bearer.
    #[serde(default, skip_serializing_if = "Caps::is_empty")]
    pub quotas: Caps,
    /// Required; RFC 3339.
    pub exp: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<String>,
    /// Names the token, so that it can be withdrawn before it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

impl Claims {
    /// Claims from now on, for `ttl`, with a random `jti`.
    pub fn new(sub: &str, role: Role, ttl: Duration) -> Claims {
        Claims::at(OffsetDateTime::now_utc(), sub, role, ttl)
    }

    /// As [`Claims::new`], from `now` on.
    pub fn at(now: OffsetDateTime, sub: &str, role: Role, ttl: Duration) -> Claims {
        let now = now.replace_nanosecond(0).unwrap_or(now);
        // A time past the year 9999 has no text form; the far end of the calendar stands for it.
        let end = time::Duration::try_from(ttl).ok().and_then(|ttl| now.checked_add(ttl));
        let end = end.unwrap_or(FAR_FUTURE);
        Claims {
            sub: sub.to_owned(),
            role,
            quotas: Caps::default(),
            exp: rfc3339(end),
            nbf: None,
            iat: Some(rfc3339(now)),
            jti: Some(uuid::Uuid::new_v4().to_string()),
        }
    }
}

const FAR_FUTURE: OffsetDateTime = OffsetDateTime::new_utc(time::Date::MAX, time::Time::MIDNIGHT);

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// The rights of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub subject: Subject,
    pub role: Role,
    /// What is lowered for all that is launched with these rights.
    pub quotas: Caps,
    /// None: never (authentication is off).
    pub expires: Option<OffsetDateTime>,
}

impl Grant {
    /// Whose server instances the bearer sees and stops; none: everybody's.
    pub fn scope(&self) -> Option<&Subject> {
        (self.role == Role::User).then_some(&self.subject)
    }

    /// Authentication is off: everyone shares one scope.
    pub fn everyone() -> Grant {
        Grant { subject: Subject::everyone(), role: Role::Admin, quotas: Caps::default(), expires: None }
    }
}

/// Why a token is not accepted: for the log. Clients read `Invalid token` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    Malformed(Malformed),
    Claims(String),
    Time(&'static str),
    Subject,
    Expired,
    NotYet,
    IssuedAhead,
    Revoked,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Malformed(what) => what.fmt(f),
            Denial::Claims(what) => write!(f, "the token's claims do not read: {what}"),
            Denial::Time(claim) => {
                write!(f, "the claim {claim} is no RFC 3339 time like 2027-01-31T12:00:00Z")
            }
            Denial::Subject => write!(
                f,
                "the claim sub must have 1 to {} bytes and no control characters",
                limits::TOKEN_SUBJECT_BYTES
            ),
            Denial::Expired => f.write_str("the token has expired; mint a new one"),
            Denial::NotYet => f.write_str("the token is not valid yet (nbf); check the clocks"),
            Denial::IssuedAhead => f.write_str("the token was issued in the future (iat); check the clocks"),
            Denial::Revoked => f.write_str("the token was withdrawn"),
        }
    }
}

impl std::error::Error for Denial {}

/// Decides which tokens are good.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Vec<PublicKey>,
    revoked: HashSet<String>,
}

impl Verifier {
    /// `revoked`: the `jti` claims of withdrawn tokens.
    pub fn new(keys: Vec<PublicKey>, revoked: HashSet<String>) -> Verifier {
        Verifier { keys, revoked }
    }

    /// The rights that `token` gives at the time `now`.
    pub fn grant(&self, token: &str, now: OffsetDateTime) -> Result<Grant, Denial> {
        let opened = paseto::verify(&self.keys, token, b"").map_err(Denial::Malformed)?;
        let claims = read_claims(&opened.payload)?;
        let grant = check(&claims, now)?;
        match claims.jti.is_some_and(|jti| self.revoked.contains(&jti)) {
            true => Err(Denial::Revoked),
            false => Ok(grant),
        }
    }
}

fn read_claims(payload: &[u8]) -> Result<Claims, Denial> {
    serde_json::from_slice(payload).map_err(|e| Denial::Claims(e.to_string()))
}

fn check(claims: &Claims, now: OffsetDateTime) -> Result<Grant, Denial> {
    let at = |name, text: &str| OffsetDateTime::parse(text, &Rfc3339).map_err(|_| Denial::Time(name));
    let sub = &claims.sub;
    if sub.is_empty() || sub.len() > limits::TOKEN_SUBJECT_BYTES || sub.chars().any(char::is_control) {
        return Err(Denial::Subject);
    }
    let expires = at("exp", &claims.exp)?;
    if expires <= now {
        return Err(Denial::Expired);
    }
    if let Some(nbf) = &claims.nbf
        && at("nbf", nbf)? > now
    {
        return Err(Denial::NotYet);
    }
    if let Some(iat) = &claims.iat
        && at("iat", iat)? > now.saturating_add(CLOCK_AHEAD)
    {
        return Err(Denial::IssuedAhead);
    }
    Ok(Grant {
        subject: Subject::new(sub),
        role: claims.role,
        quotas: claims.quotas.clone(),
        expires: Some(expires),
    })
}

/// Signs `claims`, which must be ones that a server would accept some day.
pub fn mint(key: &SecretKey, claims: &Claims) -> Result<Token, AuthError> {
    match check(claims, OffsetDateTime::now_utc()) {
        Ok(_) | Err(Denial::NotYet) => {}
        Err(denial) => return Err(AuthError::Denied(denial)),
    }
    let payload = serde_json::to_vec(claims).map_err(|e| AuthError::Denied(Denial::Claims(e.to_string())))?;
    Ok(paseto::sign(key, &payload, b"", b""))
}

/// Lines for people: the claims, and whether a server with `key` (if given) would accept the token now.
pub fn inspect(token: &Token, key: Option<&PublicKey>) -> Result<String, AuthError> {
    let now = OffsetDateTime::now_utc();
    let opened = match key {
        Some(key) => paseto::verify(std::slice::from_ref(key), token.expose(), b""),
        None => paseto::read_unverified(token.expose()),
    };
    let opened = opened.map_err(|e| AuthError::Denied(Denial::Malformed(e)))?;
    let json: serde_json::Value = serde_json::from_slice(&opened.payload)
        .map_err(|e| AuthError::Denied(Denial::Claims(e.to_string())))?;
    let validity = match read_claims(&opened.payload).and_then(|claims| check(&claims, now)) {
        Ok(_) => "the times are good now".to_owned(),
        Err(denial) => denial.to_string(),
    };
    let signature = if key.is_some() { "good" } else { "not checked (give --public-key FILE)" };
    Ok(format!("{json:#}\nsignature: {signature}\nclaims: {validity}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::parse("2026-11-23T20:00:00Z", &Rfc3339).unwrap()
    }

    fn granted(payload: &str) -> Result<Grant, Denial> {
        let key = SecretKey::generate().unwrap();
        let token = paseto::sign(&key, payload.as_bytes(), b"", b"");
        let verifier = Verifier::new(vec![key.public()], HashSet::from(["gone".to_owned()]));
        verifier.grant(token.expose(), now())
    }

    #[test]
    fn claims_make_a_grant() {
        let grant = granted(r#"{"sub":"app","role":"admin","exp":"2026-11-23T21:00:00+01:00","more":[1]}"#);
        assert_eq!(grant, Err(Denial::Expired), "21:00 at +01:00 is now");
        let grant = granted(
            r#"{"sub":"app","exp":"2026-11-23T21:00:01+01:00","nbf":"2026-11-23T20:00:00Z","jti":"x"}"#,
        );
        let expires = Some(now() + Duration::from_secs(1));
        assert_eq!(
            grant,
            Ok(Grant { subject: Subject::new("app"), role: Role::User, quotas: Caps::default(), expires })
        );
    }

    #[test]
    fn a_quota_that_nobody_knows_refuses_the_token() {
        let exp = r#""exp":"2027-01-01T00:00:00Z""#;
        let with = |quotas: &str| granted(&format!(r#"{{"sub":"a",{exp},"quotas":{quotas}}}"#));
        let known = with(r#"{"fuel":7,"subject_instances":2}"#).map(|grant| grant.quotas);
        assert_eq!(known, Ok(Caps::read(["fuel=7", "subject_instances=2"]).unwrap()));
        for (quotas, part) in [
            (r#"{"fule":7}"#, "there is no quota \"fule\"; there are fuel"),
            (r#"{"total_instances":7}"#, "only the server's configuration sets it"),
            (r#"{"fuel":-7}"#, "-7"),
            ("[]", "map"),
        ] {
            let denial = with(quotas).expect_err(quotas).to_string();
            assert!(denial.contains("claims do not read") && denial.contains(part), "{quotas}: {denial}");
        }
    }

    #[test]
    fn bad_claims_are_told_apart() {
        let exp = r#""exp":"2027-01-01T00:00:00Z""#;
        for (payload, denial) in [
            (format!(r#"{{"sub":"",{exp}}}"#), Denial::Subject),
            (format!(r#"{{"sub":"a\nb",{exp}}}"#), Denial::Subject),
            (
                format!(r#"{{"sub":"{}",{exp}}}"#, "s".repeat(limits::TOKEN_SUBJECT_BYTES + 1)),
                Denial::Subject,
            ),
            (r#"{"sub":"a","exp":"2026-11-23T19:59:59Z"}"#.into(), Denial::Expired),
            (r#"{"sub":"a","exp":"tomorrow"}"#.into(), Denial::Time("exp")),
            (format!(r#"{{"sub":"a",{exp},"nbf":"2026-11-23T20:00:01Z"}}"#), Denial::NotYet),
            (format!(r#"{{"sub":"a",{exp},"nbf":"x"}}"#), Denial::Time("nbf")),
            (format!(r#"{{"sub":"a",{exp},"iat":"2026-11-23T20:01:01Z"}}"#), Denial::IssuedAhead),
            (format!(r#"{{"sub":"a",{exp},"jti":"gone"}}"#), Denial::Revoked),
        ] {
            assert_eq!(granted(&payload), Err(denial), "{payload}");
        }
        for payload in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"sub":"a"}"#,
            r#"{"sub":"a","exp":1798761600}"#,
            r#"{"sub":1,"exp":"2027-01-01T00:00:00Z"}"#,
            r#"{"sub":"a","role":"root","exp":"2027-01-01T00:00:00Z"}"#,
            r#"{"sub":"a","sub":"b","exp":"2027-01-01T00:00:00Z"}"#,
        ] {
            assert!(matches!(granted(payload), Err(Denial::Claims(_))), "{payload}");
        }
    }

    #[test]
    fn what_is_minted_is_granted_and_shown() {
        let key = SecretKey::generate().unwrap();
        let quotas = Caps::read(["kv_pages=12"]).unwrap();
        let claims = Claims { quotas, ..Claims::new("kitchen", Role::Admin, Duration::from_secs(3600)) };
        let token = mint(&key, &claims).unwrap();
        let now = OffsetDateTime::now_utc();
        let grant = Verifier::new(vec![key.public()], HashSet::new()).grant(token.expose(), now).unwrap();
        assert_eq!((grant.subject.as_str(), grant.role), ("kitchen", Role::Admin));
        let withdrawn = HashSet::from([claims.jti.clone().unwrap()]);
        let verifier = Verifier::new(vec![key.public()], withdrawn);
        assert_eq!(verifier.grant(token.expose(), now), Err(Denial::Revoked));

        let shown = inspect(&token, Some(&key.public())).unwrap();
        assert!(shown.contains("\"kv_pages\": 12"), "{shown}");
        assert!(shown.contains("\"kitchen\"") && shown.contains("signature: good"), "{shown}");
        assert!(inspect(&token, None).unwrap().contains("not checked"));
        let other = SecretKey::generate().unwrap().public();
        assert!(inspect(&token, Some(&other)).is_err());
        assert!(mint(&key, &Claims::new("", Role::User, Duration::from_secs(1))).is_err());
        assert!(mint(&key, &Claims::new("a", Role::User, Duration::MAX)).is_ok());
    }
}
