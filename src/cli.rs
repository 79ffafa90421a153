//! The command line: one table of verbs and flags (`cli/table.rs`), from which the parser and `--help` both come.
//!
//! Owns: exit codes, the help, and the step from words (`cli/words.rs`) to one call. Never: what a verb does (the
//! appliance serves, the client runs programs, `auth` makes tokens), and never a token as an argument (`ps` shows those).

use crate::backend::cpu::KvFormat;
use crate::backend::{Which, cuda};
use crate::outgoing::Allowed;
use crate::quota::Caps;
use crate::{appliance, auth, bench, client, config, eval, model, output, selftest, synth};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::process::ExitCode;
use table::{VERBS, Verb};
use words::{Words, parse};

mod table;
mod words;

/// The command line was not understood (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The device failed or cannot be used (`EX_SOFTWARE`): systemd starts the process afresh.
pub const EXIT_DEVICE: u8 = 70;
/// The configuration cannot be served (`EX_CONFIG`): starting again would not help.
pub const EXIT_CONFIG: u8 = 78;

/// How a verb ended when not well: a sentence for standard error and the exit status.
#[derive(Debug)]
pub struct Failure {
    pub sentence: String,
    pub status: u8,
}

impl Failure {
    pub fn new(sentence: impl ToString) -> Failure {
        Failure { sentence: sentence.to_string(), status: 1 }
    }

    pub fn usage(sentence: impl ToString) -> Failure {
        Failure { sentence: sentence.to_string(), status: EXIT_USAGE }
    }

    pub fn config(sentence: impl ToString) -> Failure {
        Failure { sentence: sentence.to_string(), status: EXIT_CONFIG }
    }
}

/// Runs the command line `arguments` (without the program's name). Failures are one sentence on standard error.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match dispatch(arguments.collect()) {
        Ok(code) => code,
        Err(failure) => {
            output::complain(&failure.sentence);
            cuda::leave(failure.status);
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    let Some(words) = parse(arguments)? else {
        return Ok(ExitCode::SUCCESS);
    };
    match words.verb.name {
        "serve" => serve(&words),
        "run" => run(words),
        "instances start" => start_server(words),
        "instances list" => list_servers(&words),
        "instances stop" => stop_server(&words),
        "token keygen" => keygen(&words),
        "token mint" => mint(&words),
        "token inspect" => inspect(&words),
        "model" => describe(&words),
        "eval" => evaluate(&words),
        "synth" => synthesise(&words),
        "bench" => measure(&words),
        "selftest" => check(&words),
        other => unreachable!("the table has a verb without an arm: {other}"),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    output::write(text.as_bytes()).map_err(Failure::new)
}

fn overview(within: Option<&str>) -> String {
    let mut text = String::from(
        "Tartlet: Pie, the programmable LLM serving system, as firmware for one edge GPU box.\n\nusage: tartlet COMMAND [FLAGS]\n\n",
    );
    for verb in VERBS.iter().filter(|verb| within.is_none_or(|first| verb.name.starts_with(first))) {
        let _ = writeln!(text, "  {:<15} {}", verb.name, verb.summary);
    }
    text.push_str(
        "\n`tartlet COMMAND --help` teaches one command. `tartlet --version` prints the version.\n\n\
         exit status: 0 done, 1 failed, 64 the command line, 70 the device, 78 the configuration.\n",
    );
    text
}

fn help(verb: &'static Verb) -> String {
    let mut text = format!("tartlet {}: {}\n\nusage: tartlet {}", verb.name, verb.summary, verb.name);
    if !verb.flags.is_empty() {
        text.push_str(" [FLAGS]");
    }
    for name in verb.positional {
        let _ = write!(text, " {name}");
    }
    if verb.rest.is_some() {
        text.push_str(" [-- ARGS]");
    }
    text.push_str("\n\n");
    for flag in verb.flags {
        let head = match flag.value {
            Some(shown) => format!("--{} {shown}", flag.long),
            None => format!("--{}", flag.long),
        };
        let _ = writeln!(text, "  {head:<22} {}", flag.help);
    }
    if let Some(rest) = verb.rest {
        let _ = writeln!(text, "  {:<22} {rest}", "-- ARGS");
    }
    if !verb.flags.is_empty() {
        text.push('\n');
    }
    text.push_str(verb.about);
    text.push('\n');
    text
}

fn serve(words: &Words) -> Result<ExitCode, Failure> {
    if words.has("print-config") {
        print(config::TEMPLATE)?;
        return Ok(ExitCode::SUCCESS);
    }
    let flags = config::Flags {
        config: words.path("config"),
        model: words.path("model"),
        listen: words.text("listen")?,
        state: words.path("state"),
        public_keys: words.paths("public-key"),
        no_auth: words.has("no-auth"),
        seed: words.text("seed")?,
        openai: words.text("openai")?,
        backend: words.text("backend")?,
        libcuda: words.path("libcuda"),
    };
    appliance::serve(config::Config::read(flags).map_err(Failure::config)?)
}

fn run(words: Words) -> Result<ExitCode, Failure> {
    let (server, token) = whom(&words)?;
    let code = client::run_program(&server, token, words.positional[0].as_ref(), words.rest)
        .map_err(Failure::new)?;
    Ok(ExitCode::from(code))
}

/// The server, and the token for it.
fn whom(words: &Words) -> Result<(String, Option<auth::Token>), Failure> {
    let server = words.text("server")?.unwrap_or_else(|| client::DEFAULT_SERVER.to_owned());
    Ok((server, auth::find_token(words.path("token-file").as_deref()).map_err(Failure::new)?))
}

fn start_server(words: Words) -> Result<ExitCode, Failure> {
    words.required("port")?;
    let port = words.text("port")?.unwrap_or_default();
    let number = port.parse().ok().filter(|port: &u16| *port > 0);
    let port = number.ok_or_else(|| Failure::usage(format!("--port {port} is not between 1 and 65535.")))?;
    let (server, token) = whom(&words)?;
    let started = client::start_server(&server, token, words.positional[0].as_ref(), port, words.rest);
    print(&started.map_err(Failure::new)?)?;
    Ok(ExitCode::SUCCESS)
}

fn list_servers(words: &Words) -> Result<ExitCode, Failure> {
    let (server, token) = whom(words)?;
    print(&client::list_servers(&server, token).map_err(Failure::new)?)?;
    Ok(ExitCode::SUCCESS)
}

fn stop_server(words: &Words) -> Result<ExitCode, Failure> {
    let (server, token) = whom(words)?;
    let id = words.positional[0].to_string_lossy();
    client::stop_server(&server, token, &id).map_err(Failure::new)?;
    Ok(ExitCode::SUCCESS)
}

fn keygen(words: &Words) -> Result<ExitCode, Failure> {
    let out = words.required("out")?;
    let public = auth::write_key_pair(&out).map_err(Failure::new)?;
    print(&format!("{public}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn mint(words: &Words) -> Result<ExitCode, Failure> {
    let key = auth::read_secret_key(&words.required("key")?).map_err(Failure::new)?;
    words.required("sub")?;
    let sub = words.text("sub")?.unwrap_or_default();
    let role = words.text("role")?.unwrap_or_else(|| "user".to_owned());
    let role = role.parse().map_err(Failure::usage)?;
    let ttl = words.text("ttl")?.unwrap_or_else(|| "30d".to_owned());
    let ttl = auth::parse_ttl(&ttl).map_err(Failure::usage)?;
    let quotas = words.texts("quota")?;
    let quotas = Caps::read(quotas.iter().map(String::as_str))
        .map_err(|what| Failure::usage(format!("--quota: {what}.")))?;
    let http =
        Allowed::new(&words.texts("http")?).map_err(|what| Failure::usage(format!("--http: {what}.")))?;
    let claims = auth::Claims { quotas, http, ..auth::Claims::new(&sub, role, ttl) };
    let token = auth::mint(&key, &claims).map_err(Failure::new)?;
    match words.path("out") {
        Some(path) => auth::write_private(&path, token.expose()).map_err(Failure::new)?,
        None => print(&format!("{}\n", token.expose()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(words: &Words) -> Result<ExitCode, Failure> {
    let token = auth::find_token(words.path("token-file").as_deref())
        .map_err(Failure::new)?
        .ok_or_else(|| Failure::usage("No token: give --token-file FILE or set TARTLET_TOKEN."))?;
    let key = words
        .path("public-key")
        .map(|path| auth::read_public_key(&path))
        .transpose()
        .map_err(Failure::new)?;
    print(&auth::inspect(&token, key.as_ref()).map_err(Failure::new)?)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(words: &Words) -> Result<ExitCode, Failure> {
    print(&model::describe(words.positional[0].as_ref()).map_err(Failure::new)?)?;
    Ok(ExitCode::SUCCESS)
}

fn evaluate(words: &Words) -> Result<ExitCode, Failure> {
    let plain = words.has("plain");
    let kv = words.text("kv")?.map(|name| config::kv_format(&name)).transpose();
    let kv = kv.map_err(|what| Failure::usage(format!("--kv {what}")))?;
    let default = if plain { KvFormat::F32 } else { KvFormat::F16 };
    let backend = backend(words)?.unwrap_or(Which::Cpu);
    if plain && backend == Which::Cuda {
        return Err(Failure::usage("--plain is a path of the processor, and --backend is cuda."));
    }
    let steps = words.text("steps")?.map(|text| match text.parse() {
        Ok(steps) if steps > 0 => Ok(steps),
        _ => Err(Failure::usage(format!("--steps {text} is not a whole number above 0."))),
    });
    let options = eval::Options {
        backend,
        libcuda: words.path("libcuda"),
        plain,
        kv: kv.unwrap_or(default),
        prompts: words.texts("prompt")?,
        steps: steps.transpose()?,
    };
    let report = eval::run(&words.required("model")?, words.positional[0].as_ref(), &options);
    let report = report.map_err(|error| Failure {
        sentence: error.to_string(),
        status: if error.is_of_device() { EXIT_DEVICE } else { 1 },
    })?;
    print(&format!("{report}\n"))?;
    match report.shortfall() {
        Some(why) if words.has("strict") => Err(Failure::new(why)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Which one `--backend` names.
fn backend(words: &Words) -> Result<Option<Which>, Failure> {
    let named = |name: String| {
        let refused = || Failure::usage(format!("--backend {name} is neither cuda nor cpu."));
        Which::named(&name).ok_or_else(refused)
    };
    words.text("backend")?.map(named).transpose()
}

fn synthesise(words: &Words) -> Result<ExitCode, Failure> {
    let named = |flag| {
        words.required(flag)?;
        Ok::<_, Failure>(words.text(flag)?.unwrap_or_default())
    };
    let seed = words.text("seed")?.map_or(Ok(0), |text| {
        text.parse().map_err(|_| Failure::usage(format!("--seed {text} is not a whole number below 2^64.")))
    })?;
    let options = synth::Options {
        shape: named("shape")?,
        quant: named("quant")?,
        seed,
        out: words.positional[0].clone().into(),
        force: words.has("force"),
    };
    let told = synth::run(&options).map_err(|error| match error {
        synth::SynthError::Option(sentence) => Failure::usage(sentence),
        error => Failure::new(error),
    })?;
    print(&told)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(words: &Words) -> Result<ExitCode, Failure> {
    let threads = words.text("threads")?.map(|text| {
        text.parse().map_err(|_| Failure::usage(format!("--threads {text} is not a whole number.")))
    });
    let threads = threads.transpose()?;
    let (model, engine) = match (words.path("model"), words.path("config")) {
        (Some(model), None) => (model, config::EngineConfig::usual(threads).map_err(Failure::usage)?),
        (model, config) => {
            // Its own servers let everyone in, on loopback, and keep nothing: what the file says of that is not read.
            let flags = config::Flags {
                config,
                model,
                listen: Some("127.0.0.1:0".to_owned()),
                state: Some(std::env::temp_dir()),
                no_auth: true,
                ..config::Flags::default()
            };
            let config = config::Config::read(flags).map_err(Failure::config)?;
            (config.model.path, config.engine.with_threads(threads).map_err(Failure::usage)?)
        }
    };
    let engine =
        engine.on(words.text("backend")?.as_deref(), words.path("libcuda")).map_err(Failure::usage)?;
    let options = bench::Options {
        model,
        engine,
        inferlets: words.path("inferlets"),
        only: words.texts("only")?,
        against: words.path("against"),
    };
    let report = bench::run(&options, words.has("json")).map_err(|error| match error {
        bench::BenchError::Option(sentence) => Failure::usage(sentence),
        error if error.is_of_device() => Failure { sentence: error.to_string(), status: EXIT_DEVICE },
        error => Failure::new(error),
    })?;
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn check(words: &Words) -> Result<ExitCode, Failure> {
    let backend = backend(words)?;
    let timed = !words.has("untimed");
    let hello = words.has("hello");
    if hello && backend == Some(Which::Cpu) {
        return Err(Failure::usage("--hello is for a GPU, and --backend is cpu."));
    }
    let golden = match (words.path("model"), words.path("golden")) {
        (None, None) => None,
        (Some(_), Some(_)) if hello => {
            return Err(Failure::usage("--hello runs one kernel, and --golden a model."));
        }
        (Some(model), Some(golden)) => Some((model, golden)),
        _ => {
            return Err(Failure::usage("--model and --golden go together: a model, and what it should say."));
        }
    };
    let options = selftest::Options { backend, libcuda: words.path("libcuda"), timed, hello, golden };
    let report = selftest::run(&options, |sentence| output::complain(sentence));
    let report = report.map_err(|error| Failure {
        sentence: error.to_string(),
        status: if matches!(error, selftest::SelftestError::Device(_)) { EXIT_DEVICE } else { 1 },
    })?;
    print(&if words.has("json") { selftest::json(&report) } else { selftest::table(&report) })?;
    if let Some(sentence) = report.broken_off {
        return Err(Failure { sentence, status: EXIT_DEVICE });
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_teaches() {
        for verb in VERBS {
            let text = help(verb);
            assert!(text.contains(&format!("tartlet {}", verb.name)), "{}", verb.name);
            for flag in verb.flags {
                assert!(text.contains(&format!("--{}", flag.long)));
            }
            assert!(text.lines().all(|line| line.chars().count() <= 125), "{}", verb.name);
        }
    }
}
