//! The command line: one table of verbs and flags, from which the parser and `--help` both come.
//!
//! Owns: the table, exit codes, and the step from words (`words.rs`) to one call. Never: what a verb does (the
//! appliance serves, the client runs programs, `auth` makes tokens), and never a token as an argument (`ps` shows those).

use crate::backend::cpu::KvFormat;
use crate::backend::{Which, cuda};
use crate::outgoing::Allowed;
use crate::quota::Caps;
use crate::{appliance, auth, bench, client, config, eval, model, selftest, synth};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::process::ExitCode;
use words::{Words, parse};

mod words;

/// The command line was not understood (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The device failed or cannot be used (`EX_SOFTWARE`): systemd starts the process afresh.
pub const EXIT_DEVICE: u8 = 70;
/// The configuration cannot be served (`EX_CONFIG`): starting again would not help.
pub const EXIT_CONFIG: u8 = 78;

struct Flag {
    long: &'static str,
    /// What stands for the value in the help; none: a switch.
    value: Option<&'static str>,
    help: &'static str,
    /// May be given more than once.
    many: bool,
}

struct Verb {
    /// One or two words.
    name: &'static str,
    /// Positional arguments as shown; their number is checked.
    positional: &'static [&'static str],
    /// Whether `-- ARGS` may follow, and for whom they are.
    rest: Option<&'static str>,
    flags: &'static [Flag],
    summary: &'static str,
    /// Paragraphs and examples below the flags.
    about: &'static str,
}

const fn value(long: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { long, value: Some(value), help, many: false }
}

const fn values(long: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { long, value: Some(value), help, many: true }
}

const fn switch(long: &'static str, help: &'static str) -> Flag {
    Flag { long, value: None, help, many: false }
}

const SERVER: Flag = value("server", "URL", "the server (default ws://127.0.0.1:8080)");
const TOKEN_FILE: Flag =
    value("token-file", "FILE", "the token to authenticate with (else the environment's TARTLET_TOKEN)");

const VERBS: &[Verb] = &[
    Verb {
        name: "serve",
        positional: &[],
        rest: None,
        flags: &[
            value(
                "config",
                "FILE",
                "read tartlet.toml from FILE (default: /etc/tartlet/tartlet.toml if it is there)",
            ),
            value("model", "FILE", "the GGUF file to serve"),
            value(
                "listen",
                "ADDR:PORT",
                "where clients connect (default 127.0.0.1:8080; port 0 takes a free one)",
            ),
            value("state", "DIR", "where uploaded programs and key-value pairs live"),
            values("public-key", "FILE", "accept tokens signed by this key (k4.public.…); may be repeated"),
            switch("no-auth", "accept everyone; only on a loopback address"),
            value("seed", "N", "make sampling repeatable: every instance draws from N"),
            value("backend", "auto|cuda|cpu", "what runs the model (default auto: a GPU that can be used, else the processor)"),
            value("libcuda", "PATH", "the CUDA driver's library, where it is not found by itself"),
            value("openai", "PORT", "serve the API of OpenAI on this port of 127.0.0.1 (port 0 takes a free one)"),
            switch("print-config", "print the default configuration, every key explained, and end"),
        ],
        summary: "serve a model to local apps over a WebSocket",
        about: "\
Flags win over the configuration file. The line `listening on ws://ADDR:PORT` on standard output says that
clients may connect, `openai on http://127.0.0.1:PORT/v1` where apps find that API; SIGINT or SIGTERM ends the
server cleanly.

  tartlet token keygen --out box.key
  tartlet serve --model models/SmolLM2-135M-Instruct.Q4_1.gguf --public-key box.key.pub
  tartlet serve --model model.gguf --no-auth          # a trial on your own machine
  tartlet serve --model model.gguf --no-auth --openai 8081",
    },
    Verb {
        name: "run",
        positional: &["PROGRAM.wasm"],
        rest: Some("arguments of the program"),
        flags: &[SERVER, TOKEN_FILE],
        summary: "upload a program when needed, launch it, print what it sends",
        about: "\
Messages of the program go to standard output as they come. Ctrl-C terminates the program. The exit status
is 0 when it completed, 1 when it failed; the reason goes to standard error.

  tartlet run chat.wasm -- --user \"Tell me the capital of France.\"",
    },
    Verb {
        name: "instances start",
        positional: &["PROGRAM.wasm"],
        rest: Some("arguments of the program"),
        flags: &[
            value("port", "PORT", "where it answers HTTP, on the server's loopback address alone"),
            SERVER,
            TOKEN_FILE,
        ],
        summary: "launch a program that answers HTTP",
        about: "\
The program is uploaded when needed. It answers until it is stopped, the token expires, or the server ends; each
request is an instance of its own.

  tartlet instances start --port 8090 hello.wasm && curl http://127.0.0.1:8090/",
    },
    Verb {
        name: "instances list",
        positional: &[],
        rest: None,
        flags: &[SERVER, TOKEN_FILE],
        summary: "list the programs that answer HTTP",
        about: "Those of the token's subject; with an admin's token, everybody's.\n\n  tartlet instances list",
    },
    Verb {
        name: "instances stop",
        positional: &["ID"],
        rest: None,
        flags: &[SERVER, TOKEN_FILE],
        summary: "stop one of them",
        about: "Requests that it answers are broken off.\n\n  tartlet instances stop 7f0c2a1e-6b1d-4a53-9c0e-2f7d8e4b6a10",
    },
    Verb {
        name: "token keygen",
        positional: &[],
        rest: None,
        flags: &[value(
            "out",
            "FILE",
            "write the secret key to FILE (mode 0600) and the public one to FILE.pub",
        )],
        summary: "make a key pair for tokens",
        about: "The server needs FILE.pub alone. Keep FILE off the box if you can.\n\n  tartlet token keygen --out box.key",
    },
    Verb {
        name: "token mint",
        positional: &[],
        rest: None,
        flags: &[
            value("key", "FILE", "the secret key"),
            value("sub", "NAME", "whose token: scopes its programs' keys, exports and topics"),
            value("role", "ROLE", "user or admin (default user)"),
            value("ttl", "TIME", "how long it is valid: 90s, 15m, 12h or 30d (default 30d)"),
            values(
                "quota",
                "NAME=VALUE",
                "lower a quota of what is launched with it (names: [quotas] in tartlet.toml); may be repeated",
            ),
            values("http", "HOST[:PORT]", "a host that its programs may call; may be repeated"),
            value("out", "FILE", "write the token to FILE (mode 0600) instead of standard output"),
        ],
        summary: "sign a token",
        about: "  tartlet token mint --key box.key --sub kitchen-app --ttl 12h --out app.token
  tartlet token mint --key box.key --sub guest --quota subject_instances=2 --quota subject_kv_pages=256",
    },
    Verb {
        name: "token inspect",
        positional: &[],
        rest: None,
        flags: &[
            value("token-file", "FILE", "the token (else the environment's TARTLET_TOKEN)"),
            value("public-key", "FILE", "also check the signature"),
        ],
        summary: "show what a token claims",
        about: "Ends with status 1 if the signature was to be checked and is not valid.\n\n  tartlet token inspect --token-file app.token --public-key box.key.pub",
    },
    Verb {
        name: "model",
        positional: &["FILE"],
        rest: None,
        flags: &[],
        summary: "describe a GGUF file",
        about: "  tartlet model models/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    Verb {
        name: "eval",
        positional: &["GOLDEN.json"],
        rest: None,
        flags: &[
            value("model", "FILE", "the GGUF file to evaluate"),
            switch(
                "plain",
                "take the plain path, the oracle of all kernels: exact f32 weights, f32 K/V, no vector code",
            ),
            value("kv", "f32|f16|q8", "how precisely keys and values are kept (f16)"),
            value("backend", "cpu|cuda", "what computes the logits (default cpu)"),
            value("libcuda", "PATH", "the CUDA driver's library, where it is not found by itself"),
            values("prompt", "NAME", "feed this prompt alone; may be repeated"),
            value("steps", "N", "compare the first N steps of each prompt alone"),
            switch("strict", "end with status 1 unless top1_clear is 1 and mean_kl at most 0.006"),
        ],
        summary: "compare the model's logits with a golden file",
        about: "\
Feeds each prompt and its golden greedy tokens, and prints one JSON object: ids_equal, max_logit_diff, top1,
top1_clear, mean_kl, and the same for each prompt. On a GPU the prompt goes through as one batch and each token behind it
as a batch of its own, as they do where a model is served.

  tartlet eval --model models/SmolLM2-135M-Instruct.Q4_1.gguf tests/golden/smollm2-135m-q4_1.json
  tartlet eval --backend cuda --strict --model model.gguf golden.json",
    },
    Verb {
        name: "synth",
        positional: &["OUT.gguf"],
        rest: None,
        flags: &[
            value("shape", "SHAPE", "whose shape: smollm2-135m, llama-1b, llama-8b or qwen3-8b"),
            value("quant", "TYPE", "the format of the matrices: q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, bf16, f16 or f32"),
            value("seed", "N", "other random weights (default 0); the same seed makes the same file"),
            switch("force", "replace OUT.gguf if it is there"),
        ],
        summary: "write a model file of a real shape with random weights",
        about: "\
For measuring where no real model is at hand: the file loads, serves and takes as long as a real one of its shape and
format, and what it says is noise. The matrix that makes the logits is in q6_k where the others have fewer bits. Until it
is whole, the file is called OUT.gguf.part.

  tartlet synth --shape llama-8b --quant q4_0 8b.gguf && tartlet bench --model 8b.gguf --only decode",
    },
    Verb {
        name: "bench",
        positional: &[],
        rest: None,
        flags: &[
            value("model", "FILE", "the GGUF file to measure with (default: the configuration's)"),
            value(
                "config",
                "FILE",
                "measure what this tartlet.toml serves: its model, and its [engine] in place of the defaults",
            ),
            value("threads", "N", "threads for batches and programs (default: the configuration's, or one per core)"),
            value("backend", "auto|cuda|cpu", "what is measured (default: the configuration's, or auto as for a server)"),
            value("libcuda", "PATH", "the CUDA driver's library, where it is not found by itself"),
            value("inferlets", "DIR", "the folder that `make inferlets` fills: completion, echo and rogue are run"),
            values("only", "SECTION", "measure this section alone, or this figure (prefill.300); may be repeated"),
            switch("json", "print one JSON object instead of a table"),
            value("against", "FILE", "also say what changed beyond noise since the run whose --json is FILE"),
        ],
        summary: "measure this machine, the backend, and what programs cost",
        about: "\
Medians and quartiles of at least five samples, and shares of what this machine does at most. The sections:
roof (memory, int8; of a GPU a copy), prefill, decode, sequences, tax (what a program costs per token, by stage), launch, kill (how
soon a program is gone), fair (a chat beside loops), socket, server (start, memory, idleness). Measure on a machine
that does nothing else. Without --inferlets, what needs programs is left out. Without --model and --config,
/etc/tartlet/tartlet.toml is measured, as `tartlet serve` would serve it. Temporary files lie in
TMPDIR, and what keeping a program adds is timed there.

  tartlet bench --model models/SmolLM2-135M-Instruct.Q4_1.gguf --json > before.json
  tartlet bench --model models/SmolLM2-135M-Instruct.Q4_1.gguf --only decode --against before.json",
    },
    Verb {
        name: "selftest",
        positional: &[],
        rest: None,
        flags: &[
            value("backend", "cuda|cpu", "what to check (default: the GPU, or without one the processor)"),
            value("libcuda", "PATH", "the CUDA driver's library, where it is not found by itself"),
            switch("hello", "open the GPU, run one small kernel on it, and no more"),
            switch("untimed", "measure no rates and give every step 10 minutes: under compute-sanitizer, say"),
            switch("json", "print one JSON object instead of a table"),
        ],
        summary: "check that this machine's GPU or processor computes what it should",
        about: "\
For a GPU: opens it, has the driver compile every kernel, shows the registers each takes and the bytes it spills,
runs the checks and measures how fast memory is copied. Ends with status 0 when all checks passed, 1 when one
did not, 70 when the device cannot be used, or fails on the way; the reason goes to standard error.

  tartlet selftest --backend cuda",
    },
];

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
            eprintln!("tartlet: {}", failure.sentence);
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

/// Help goes to a pipe as often as to a terminal; a closed one is no error.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
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
        print(config::TEMPLATE);
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
    print(&started.map_err(Failure::new)?);
    Ok(ExitCode::SUCCESS)
}

fn list_servers(words: &Words) -> Result<ExitCode, Failure> {
    let (server, token) = whom(words)?;
    print(&client::list_servers(&server, token).map_err(Failure::new)?);
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
    print(&format!("{public}\n"));
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
        None => print(&format!("{}\n", token.expose())),
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
    print(&auth::inspect(&token, key.as_ref()).map_err(Failure::new)?);
    Ok(ExitCode::SUCCESS)
}

fn describe(words: &Words) -> Result<ExitCode, Failure> {
    print(&model::describe(words.positional[0].as_ref()).map_err(Failure::new)?);
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
    print(&format!("{report}\n"));
    if words.has("strict") && !report.passed() {
        return Err(Failure::new(report.shortfall()));
    }
    Ok(ExitCode::SUCCESS)
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
    print(&told);
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
    print(&report);
    Ok(ExitCode::SUCCESS)
}

fn check(words: &Words) -> Result<ExitCode, Failure> {
    let backend = backend(words)?;
    let timed = !words.has("untimed");
    let hello = words.has("hello");
    if hello && backend == Some(Which::Cpu) {
        return Err(Failure::usage("--hello is for a GPU, and --backend is cpu."));
    }
    let options = selftest::Options { backend, libcuda: words.path("libcuda"), timed, hello };
    let report = selftest::run(&options, |sentence| eprintln!("tartlet: {sentence}"))
        .map_err(|error| Failure { sentence: error.to_string(), status: EXIT_DEVICE })?;
    print(&if words.has("json") { selftest::json(&report) } else { selftest::table(&report) });
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
