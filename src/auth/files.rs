//! Keys and tokens on disk and in the environment, for the command line.
//!
//! Owns: where they are read from, and that what is written is readable by its owner alone (mode 0600). Never: a
//! secret as a program argument, or a silent overwrite of a key.

use super::AuthError;
use super::paseto::{Malformed, PublicKey, SecretKey, Token};
use crate::limits;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Makes a key pair: the secret key in `out` (0600), the public one in `out` + `.pub`. Neither may exist yet.
pub fn write_key_pair(out: &Path) -> Result<PublicKey, AuthError> {
    let key = SecretKey::generate().map_err(|e| AuthError::Random(e.to_string()))?;
    let mut public_path = out.as_os_str().to_owned();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);
    let create = |path: &Path, mode| {
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => AuthError::Exists(path.to_owned()),
            _ => at(path, "made", e),
        })
    };
    let mut public_file = create(&public_path, 0o644)?;
    let mut secret_file = match create(out, 0o600) {
        Ok(file) => file,
        Err(e) => {
            let _ = std::fs::remove_file(&public_path); // ours, and empty
            return Err(e);
        }
    };
    writeln!(secret_file, "{}", key.expose_paserk()).map_err(|e| at(out, "written", e))?;
    writeln!(public_file, "{}", key.public()).map_err(|e| at(&public_path, "written", e))?;
    secret_file.sync_all().map_err(|e| at(out, "written", e))?;
    public_file.sync_all().map_err(|e| at(&public_path, "written", e))?;
    Ok(key.public())
}

/// Writes `text` and a newline to `path`, for its owner's eyes only.
pub fn write_private(path: &Path, text: &str) -> Result<(), AuthError> {
    let mut open = OpenOptions::new();
    let mut file = open
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| at(path, "made", e))?;
    // The file may have been there with a wider mode; narrow it before the secret goes in.
    file.set_permissions(Permissions::from_mode(0o600)).map_err(|e| at(path, "made private", e))?;
    writeln!(file, "{text}").map_err(|e| at(path, "written", e))
}

pub fn read_secret_key(path: &Path) -> Result<SecretKey, AuthError> {
    let text = read_line(path)?;
    SecretKey::from_paserk(&text).map_err(|e| not_a_key(path, e))
}

pub fn read_public_key(path: &Path) -> Result<PublicKey, AuthError> {
    let text = read_line(path)?;
    PublicKey::from_paserk(&text).map_err(|e| not_a_key(path, e))
}

/// The token in `file`, else the one in the environment's `TARTLET_TOKEN`, else none.
pub fn find_token(file: Option<&Path>) -> Result<Option<Token>, AuthError> {
    match file {
        Some(path) => read_line(path).map(|text| Some(Token::new(text))),
        None => Ok(std::env::var("TARTLET_TOKEN")
            .ok()
            .filter(|text| !text.is_empty())
            .map(|text| Token::new(text.trim()))),
    }
}

/// `90s`, `15m`, `12h` or `30d`.
pub fn parse_ttl(text: &str) -> Result<Duration, AuthError> {
    let bad = || AuthError::Ttl(text.to_owned());
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let ttl = count.checked_mul(seconds).filter(|&seconds| seconds > 0).ok_or_else(bad)?;
    Ok(Duration::from_secs(ttl))
}

/// The file's text without its line end. Keys and tokens are short: no more than a token's limit is read.
fn read_line(path: &Path) -> Result<String, AuthError> {
    let file = File::open(path).map_err(|e| at(path, "read", e))?;
    let mut text = String::new();
    file.take(limits::TOKEN_BYTES as u64 + 2).read_to_string(&mut text).map_err(|e| at(path, "read", e))?;
    Ok(text.trim().to_owned())
}

fn at(path: &Path, what: &'static str, error: io::Error) -> AuthError {
    AuthError::File { path: path.to_owned(), what, error: error.to_string() }
}

fn not_a_key(path: &Path, malformed: Malformed) -> AuthError {
    AuthError::Key { path: path.to_owned(), malformed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_private_and_never_overwritten() {
        let dir = std::env::temp_dir().join(format!("tartlet-keys-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("box.key");
        let public = write_key_pair(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_secret_key(&path).unwrap().public(), public);
        assert_eq!(read_public_key(&dir.join("box.key.pub")).unwrap(), public);
        assert!(write_key_pair(&path).is_err());
        assert_eq!(read_secret_key(&path).unwrap().public(), public, "the key is still there");
        assert!(read_public_key(&path).is_err(), "a secret key is no public key");

        let token = dir.join("token");
        std::fs::write(&token, "old").unwrap();
        std::fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
        write_private(&token, "v4.public.x").unwrap();
        assert_eq!(std::fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(find_token(Some(&token)).unwrap().unwrap().expose(), "v4.public.x");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn lifetimes() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)] {
            assert_eq!(parse_ttl(text).unwrap(), Duration::from_secs(seconds));
        }
        for text in
            ["", "s", "0s", "-1s", "1", "1w", "1 h", "é", "99999999999999999999d", "9999999999999999999d"]
        {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
