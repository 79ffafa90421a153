//! tartlet.toml and the flags over it: raw text in, a checked [`Config`] out.
//!
//! Owns: every key, documented once, in [`TEMPLATE`]; the defaults; which file is read. Never: opening sockets,
//! models or stores; a `Config` is a promise that the values make sense together, not that the files are good.

use crate::auth::{self, PublicKey};
use crate::backend::Which;
use crate::backend::cpu::KvFormat;
use crate::limits;
use crate::outgoing::Allowed;
use crate::quota::{self, Name, Quotas};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The default configuration with every key explained; `tartlet serve --print-config` prints it, and a test
/// checks that it says what the code does.
pub const TEMPLATE: &str = include_str!("config.toml");

/// Read when no `--config` names another and it exists.
const SYSTEM_FILE: &str = "/etc/tartlet/tartlet.toml";

/// What the command line says; each value here wins over the file.
#[derive(Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub model: Option<PathBuf>,
    pub listen: Option<String>,
    pub state: Option<PathBuf>,
    pub public_keys: Vec<PathBuf>,
    pub no_auth: bool,
    pub seed: Option<String>,
    pub openai: Option<String>,
    pub backend: Option<String>,
    pub libcuda: Option<PathBuf>,
}

/// What the server serves, checked.
#[derive(Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// `Host` values that are ours besides the loopback names and `listen`; lower case, without port.
    pub hosts: Vec<String>,
    /// `Origin` values of web pages that may connect, exactly as browsers send them.
    pub origins: Vec<String>,
    pub state: PathBuf,
    /// None: everyone is let in, on loopback only.
    pub auth: Option<Keys>,
    pub model: ModelConfig,
    pub engine: EngineConfig,
    /// What everyone may use; a token lowers it for its bearer.
    pub quotas: Quotas,
    /// None: that API is not served.
    pub openai: Option<OpenaiConfig>,
    /// Whom every program may call.
    pub allow: Allowed,
    pub log: tracing::Level,
}

/// Who may sign tokens, and which tokens are withdrawn.
#[derive(Debug)]
pub struct Keys {
    pub public: Vec<PublicKey>,
    pub revoked: HashSet<String>,
}

#[derive(Debug)]
pub struct ModelConfig {
    pub path: PathBuf,
    /// The name guests see; none: the file's own.
    pub name: Option<String>,
    /// A prompt template in place of the built-in one.
    pub template: Option<String>,
    /// Texts whose keys and values any subject may find computed.
    pub public_prefixes: Vec<String>,
}

/// Our program that speaks the API of OpenAI, as a server instance from the start on.
#[derive(Debug)]
pub struct OpenaiConfig {
    /// On loopback; 0 takes a free one.
    pub port: u16,
    /// The program's file.
    pub program: PathBuf,
}

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// What runs batches. None: a GPU that can be used and knows the model, else the processor.
    pub backend: Option<Which>,
    /// The CUDA driver's library. None: where it is usually found.
    pub libcuda: Option<PathBuf>,
    /// Tokens in all KV pages together. None: as many as a share of the free memory holds.
    pub kv_tokens: Option<u32>,
    /// Tokens per page.
    pub page_size: u32,
    pub embeds: u32,
    /// Rows in one batch.
    pub batch_tokens: u32,
    /// How precisely keys and values are kept.
    pub kv_cache: KvFormat,
    /// Whether prefixes that were computed once are found again.
    pub prefix_reuse: bool,
    pub threads: usize,
    /// None: each server start draws its own.
    pub seed: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: Option<String>,
    hosts: Vec<String>,
    origins: Vec<String>,
    state: Option<PathBuf>,
    log: Option<String>,
    auth: RawAuth,
    model: RawModel,
    engine: RawEngine,
    quotas: BTreeMap<String, Number>,
    openai: RawOpenai,
    http: RawHttp,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "the section [http]")]
struct RawHttp {
    allow: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "the section [auth]")]
struct RawAuth {
    enabled: Option<bool>,
    public_keys: Vec<String>,
    revoked: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "the section [model]")]
struct RawModel {
    path: Option<PathBuf>,
    name: Option<String>,
    template: Option<PathBuf>,
    public_prefixes: Vec<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "the section [engine]")]
struct RawEngine {
    backend: Option<String>,
    libcuda: Option<PathBuf>,
    #[serde(deserialize_with = "whole")]
    kv_tokens: Option<u32>,
    #[serde(deserialize_with = "whole")]
    page_size: Option<u32>,
    #[serde(deserialize_with = "whole")]
    embeds: Option<u32>,
    #[serde(deserialize_with = "whole")]
    batch_tokens: Option<u32>,
    kv_cache: Option<String>,
    prefix_reuse: Option<bool>,
    #[serde(deserialize_with = "whole")]
    threads: Option<usize>,
    #[serde(deserialize_with = "whole")]
    seed: Option<u64>,
}

/// A whole number, zero or more.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Number, D::Error> {
        whole(value).map(|number| Number(number.unwrap_or_default()))
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "the section [openai]")]
struct RawOpenai {
    #[serde(deserialize_with = "whole")]
    port: Option<u16>,
    program: Option<PathBuf>,
}

/// A number that is there, refused in words that are not Rust's.
fn whole<'de, D: Deserializer<'de>, N: TryFrom<i64>>(value: D) -> Result<Option<N>, D::Error> {
    struct Whole;
    impl Visitor<'_> for Whole {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
            Ok(number)
        }
    }
    let number = value.deserialize_i64(Whole)?;
    let fits =
        N::try_from(number).map_err(|_| de::Error::custom(format!("{number} is below 0 or too large")));
    fits.map(Some)
}

impl Config {
    /// The configuration file under the flags. The error is one sentence that names the key and the mend.
    pub fn read(flags: Flags) -> Result<Config, String> {
        let path =
            flags.config.clone().or_else(|| Path::new(SYSTEM_FILE).exists().then(|| SYSTEM_FILE.into()));
        let raw = match &path {
            None => Raw::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| format!("The configuration {} cannot be read: {e}.", path.display()))?;
                toml::from_str(&text).map_err(|e| {
                    let before = text.get(..e.span().map_or(0, |span| span.start)).unwrap_or_default();
                    let line = before.matches('\n').count();
                    let shown = text.lines().nth(line).unwrap_or_default().trim();
                    let what = e.message().trim_end_matches('.');
                    format!("{}, line {}, `{shown}`: {what}.", path.display(), line + 1)
                })?
            }
        };
        // Files named in the configuration lie beside it, wherever the server was started.
        let beside = path.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        Config::check(raw, flags, beside)
    }

    fn check(raw: Raw, flags: Flags, beside: &Path) -> Result<Config, String> {
        let listen = flags.listen.or(raw.listen).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
        let listen: SocketAddr = listen.parse().map_err(|_| {
            format!("listen = \"{listen}\" is not ADDRESS:PORT with a numeric address, like 127.0.0.1:8080.")
        })?;
        let model = flags
            .model
            .or(raw.model.path.map(|path| beside.join(path)))
            .ok_or("No model: give --model FILE.gguf, or set path under [model] in the configuration.")?;
        let template = raw
            .model
            .template
            .map(|path| {
                let path = beside.join(path);
                std::fs::read_to_string(&path)
                    .map_err(|e| format!("The prompt template {} cannot be read: {e}.", path.display()))
            })
            .transpose()?;
        let public_prefixes = prefixes(raw.model.public_prefixes.iter().map(|path| beside.join(path)))?;
        if let Some(name) = raw.model.name.as_ref()
            && (name.is_empty() || name.contains(char::is_control))
        {
            return Err(format!(
                "[model] name = {name:?} is no name: write one of printable characters, or none."
            ));
        }
        let log = raw.log.as_deref().unwrap_or("info");
        let log = log
            .parse()
            .map_err(|_| format!("log = \"{log}\" is none of error, warn, info, debug, trace."))?;
        let enabled = raw.auth.enabled.unwrap_or(true) && !flags.no_auth;
        let auth = match enabled {
            true => Some(keys(&raw.auth.public_keys, &flags.public_keys, raw.auth.revoked)?),
            false if listen.ip().is_loopback() => None,
            false => {
                return Err(format!(
                    "Without authentication only a loopback address is served, not {listen}; listen on 127.0.0.1 or give --public-key FILE."
                ));
            }
        };
        // What the command line names lies where it was started, and what the file names beside the file.
        let engine = RawEngine {
            backend: flags.backend.or(raw.engine.backend),
            libcuda: flags.libcuda.or(raw.engine.libcuda.map(|path| beside.join(path))),
            ..raw.engine
        };
        let seed = match flags.seed {
            None => engine.seed,
            Some(text) => {
                Some(text.parse().map_err(|_| format!("--seed {text} is not a whole number below 2^64."))?)
            }
        };
        let port = match flags.openai {
            None => raw.openai.port,
            Some(text) => Some(text.parse().map_err(|_| format!("--openai {text} is no port: 0 to 65535."))?),
        };
        let program = raw.openai.program.map(|path| beside.join(path));
        let openai =
            port.map(|port| OpenaiConfig { port, program: program.unwrap_or_else(installed_openai) });
        Ok(Config {
            listen,
            hosts: raw.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: raw.origins,
            state: flags.state.or(raw.state.map(|path| beside.join(path))).map_or_else(default_state, Ok)?,
            auth,
            model: ModelConfig { path: model, name: raw.model.name, template, public_prefixes },
            engine: EngineConfig::check(&engine, seed)?,
            quotas: quotas(&raw.quotas, enabled)?,
            openai,
            allow: Allowed::new(&raw.http.allow).map_err(|what| format!("[http] allow: {what}."))?,
            log,
        })
    }
}

impl EngineConfig {
    /// What an empty configuration means, with this many threads (none: one per core).
    pub fn usual(threads: Option<usize>) -> Result<EngineConfig, String> {
        EngineConfig::check(&RawEngine { threads, ..RawEngine::default() }, None)
    }

    /// The same with this many threads (none: as they are).
    pub fn with_threads(self, threads: Option<usize>) -> Result<EngineConfig, String> {
        Ok(EngineConfig { threads: threads.map_or(Ok(self.threads), thread_count)?, ..self })
    }

    /// The same on this backend, by this driver (none: as they are).
    pub fn on(self, backend: Option<&str>, libcuda: Option<PathBuf>) -> Result<EngineConfig, String> {
        let backend = backend.map_or(Ok(self.backend), which)?;
        Ok(EngineConfig { backend, libcuda: libcuda.or(self.libcuda), ..self })
    }

    /// The section of a configuration that means this.
    pub fn section(&self) -> String {
        let mut text = format!(
            "[engine]\nbackend = \"{}\"\npage_size = {}\nembeds = {}\nbatch_tokens = {}\nkv_cache = \"{}\"\nprefix_reuse = {}\nthreads = {}\n",
            self.backend.map_or("auto", Which::name),
            self.page_size,
            self.embeds,
            self.batch_tokens,
            self.kv_cache.name(),
            self.prefix_reuse,
            self.threads,
        );
        if let Some(tokens) = self.kv_tokens {
            text += &format!("kv_tokens = {tokens}\n");
        }
        if let Some(path) = &self.libcuda {
            text += &format!("libcuda = {path:?}\n");
        }
        if let Some(seed) = self.seed {
            text += &format!("seed = {seed}\n");
        }
        text
    }

    fn check(raw: &RawEngine, seed: Option<u64>) -> Result<EngineConfig, String> {
        let within = |key: &str, value: u32, low: u32, high: u32| match (low..=high).contains(&value) {
            true => Ok(value),
            false => Err(format!("[engine] {key} = {value} is outside {low} to {high}.")),
        };
        let page_size = within("page_size", raw.page_size.unwrap_or(16), 1, limits::PAGE_TOKENS_MAX)?;
        let kv_tokens =
            raw.kv_tokens.map(|tokens| within("kv_tokens", tokens, page_size, limits::KV_TOKENS_MAX));
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = thread_count(raw.threads.unwrap_or_else(cores))?;
        let backend = raw.backend.as_deref().map_or(Ok(None), which)?;
        Ok(EngineConfig {
            backend,
            libcuda: raw.libcuda.clone(),
            kv_tokens: kv_tokens.transpose()?,
            page_size,
            embeds: within("embeds", raw.embeds.unwrap_or(1024), 1, limits::EMBEDS_MAX)?,
            batch_tokens: within(
                "batch_tokens",
                raw.batch_tokens.unwrap_or(256),
                1,
                limits::BATCH_TOKENS_MAX,
            )?,
            kv_cache: kv_format(raw.kv_cache.as_deref().unwrap_or("f16"))
                .map_err(|what| format!("[engine] kv_cache {what}"))?,
            prefix_reuse: raw.prefix_reuse.unwrap_or(true),
            threads,
            seed,
        })
    }
}

/// None: `auto`.
fn which(name: &str) -> Result<Option<Which>, String> {
    let refused = || format!("[engine] backend = {name:?} is none of auto, cuda, cpu.");
    if name == "auto" { Ok(None) } else { Which::named(name).map(Some).ok_or_else(refused) }
}

fn thread_count(threads: usize) -> Result<usize, String> {
    match (1..=limits::THREADS_MAX).contains(&threads) {
        true => Ok(threads),
        false => Err(format!("[engine] threads = {threads} is outside 1 to {}.", limits::THREADS_MAX)),
    }
}

/// Where everyone is let in, there is one subject, which may have all that there is.
fn quotas(raw: &BTreeMap<String, Number>, enabled: bool) -> Result<Quotas, String> {
    let mut quotas = Quotas::default();
    for (key, &Number(value)) in raw {
        let name = Name::of(key).ok_or_else(|| format!("[quotas] {key}: {}.", quota::unknown(key)))?;
        let most = name.row().most;
        if value > most {
            return Err(format!("[quotas] {key} = {value} is above {most}, the most that can be had."));
        }
        quotas = quotas.with(name, value);
    }
    let of_all = [
        (Name::SubjectInstances, Name::TotalInstances),
        (Name::SubjectMemoryBytes, Name::TotalMemoryBytes),
        (Name::SubjectUnreadBytes, Name::TotalUnreadBytes),
    ];
    for (own, total) in of_all {
        if !enabled && !raw.contains_key(own.row().key) {
            quotas = quotas.with(own, quotas.get(total));
        }
    }
    Ok(quotas)
}

/// The texts of the public prefixes.
fn prefixes(paths: impl Iterator<Item = PathBuf>) -> Result<Vec<String>, String> {
    let mut bytes = 0;
    let mut texts = Vec::new();
    for path in paths {
        let refused = |what: &dyn fmt::Display| {
            format!("[model] public_prefixes: {} cannot be read: {what}.", path.display())
        };
        // Its size first: what was named by mistake may be a model.
        bytes += std::fs::metadata(&path).map_err(|e| refused(&e))?.len();
        if bytes > limits::PUBLIC_PREFIX_BYTES {
            return Err(format!(
                "[model] public_prefixes: with {} they have more than {} bytes together; name shorter texts.",
                path.display(),
                limits::PUBLIC_PREFIX_BYTES
            ));
        }
        texts.push(std::fs::read_to_string(&path).map_err(|e| refused(&e))?);
    }
    Ok(texts)
}

/// A precision of keys and values by its name. The error goes on from the name of what was set.
pub fn kv_format(name: &str) -> Result<KvFormat, String> {
    KvFormat::named(name).ok_or_else(|| {
        let known = KvFormat::ALL.map(KvFormat::name).join(", ");
        format!("is {name:?}, but should be one of {known}.")
    })
}

fn keys(inline: &[String], files: &[PathBuf], revoked: Vec<String>) -> Result<Keys, String> {
    let mut public = Vec::new();
    for text in inline {
        public.push(PublicKey::from_paserk(text).map_err(|e| format!("[auth] public_keys: {e}"))?);
    }
    for path in files {
        public.push(auth::read_public_key(path).map_err(|e| e.to_string())?);
    }
    if public.is_empty() {
        return Err("Nobody could connect: no public key is known. Make a pair with `tartlet token keygen --out box.key` \
                    and give --public-key box.key.pub, or serve your own machine with --no-auth."
            .to_owned());
    }
    Ok(Keys { public, revoked: revoked.into_iter().collect() })
}

/// Beside the binary, as `make` leaves it, or where a box has what belongs to `bin/tartlet`: in `lib/tartlet/`.
fn installed_openai() -> PathBuf {
    const FILE: &str = "openai.wasm";
    let binary = std::env::current_exe().unwrap_or_default();
    let folder = binary.parent().unwrap_or(Path::new(""));
    let beside = folder.join(FILE);
    if beside.exists() { beside } else { folder.with_file_name("lib").join("tartlet").join(FILE) }
}

/// systemd's StateDirectory, else the user's state folder by the XDG rules.
fn default_state() -> Result<PathBuf, String> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("STATE_DIRECTORY")
        .or_else(|| folder("XDG_STATE_HOME").map(|home| home.join("tartlet")))
        .or_else(|| folder("HOME").map(|home| home.join(".local/state/tartlet")))
        .ok_or_else(|| {
            "No folder for programs and key-value pairs: give --state DIR or set state in the configuration."
                .to_owned()
        })
}

#[cfg(test)]
mod tests;
