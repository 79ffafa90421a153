//! The table of verbs and flags.
//!
//! Owns: their names and what the help says of them. Never: what a verb does.

pub(super) struct Flag {
    pub long: &'static str,
    /// What stands for the value in the help; none: a switch.
    pub value: Option<&'static str>,
    pub help: &'static str,
    /// May be given more than once.
    pub many: bool,
}

pub(super) struct Verb {
    /// One or two words.
    pub name: &'static str,
    /// Positional arguments as shown; their number is checked.
    pub positional: &'static [&'static str],
    /// Whether `-- ARGS` may follow, and for whom they are.
    pub rest: Option<&'static str>,
    pub flags: &'static [Flag],
    pub summary: &'static str,
    /// Paragraphs and examples below the flags.
    pub about: &'static str,
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

pub(super) const VERBS: &[Verb] = &[
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
clients may connect, `openai on http://127.0.0.1:PORT/v1` where apps find that API; SIGINT, SIGTERM or SIGHUP
ends the server cleanly.

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
            switch("strict", "end with status 1 unless ids_equal, top1_clear is 1 of some clear_steps, mean_kl at most 0.006"),
        ],
        summary: "compare the model's logits with a golden file",
        about: "\
Feeds each prompt and its golden greedy tokens, and prints one JSON object: ids_equal, max_logit_diff, top1,
top1_clear, mean_kl, and the same for each prompt. On a GPU the prompt goes through as one batch and each token
behind it as a batch of its own, as they do where a model is served.

  tartlet eval --model models/SmolLM2-135M-Instruct.Q4_1.gguf tests/golden/smollm2-135m-q4_1.json
  tartlet eval --backend cuda --strict --model model.gguf golden.json",
    },
    Verb {
        name: "synth",
        positional: &["OUT.gguf"],
        rest: None,
        flags: &[
            value("shape", "SHAPE", "whose shape: smollm2-135m, llama-1b, llama-8b or qwen3-8b"),
            value("quant", "TYPE", "of the matrices: q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, bf16, f16 or f32"),
            value("seed", "N", "other random weights (default 0); the same seed makes the same file"),
            switch("force", "replace OUT.gguf if it is there"),
        ],
        summary: "write a model file of a real shape with random weights",
        about: "\
For measuring where no real model is at hand: the file loads, serves and takes as long as a real one of its shape
and format, and what it says is noise. The matrix that makes the logits is in q6_k where the others have fewer
bits. Until it is whole, the file is called OUT.gguf.part.

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
Medians and quartiles of at least five samples, and shares of what this machine does at most. The sections: roof
(memory, int8; of a GPU a copy), prefill, decode, sequences, tax (what a program costs per token, by stage), launch,
kill (how soon a program is gone), fair (a chat beside loops), socket, server (start, memory, idleness). Measure on
a machine that does nothing else. Without --inferlets, what needs programs is left out. Without --model and --config,
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
            value("model", "FILE", "with --golden: also compare this model's logits with a golden file"),
            value("golden", "FILE", "the model's golden file, as `tartlet eval` reads it"),
            switch("hello", "open the GPU, run one small kernel on it, and no more"),
            switch("untimed", "measure no rates and give every step 10 minutes: under compute-sanitizer, say"),
            switch("json", "print one JSON object instead of a table"),
        ],
        summary: "check that this machine's GPU or processor computes what it should",
        about: "\
For a GPU: opens it, has the driver compile every kernel, shows the registers each takes and the bytes it spills,
runs the checks and measures how fast memory is copied. Ends with status 0 when all checks passed, 1 when one
did not, 70 when the device cannot be used, or fails on the way; the reason goes to standard error. The golden
prompts of a model are held to what `tartlet eval --strict` asks, after all else has passed.

  tartlet selftest --backend cuda
  tartlet selftest --model models/SmolLM2-135M-Instruct.Q4_1.gguf --golden tests/golden/smollm2-135m-q4_1.json",
    },
];
