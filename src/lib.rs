//! Tartlet: Pie, the programmable LLM serving system, as firmware for one edge GPU box.
//!
//! People upload small WebAssembly programs, *inferlets*, that run beside a language model and steer it pass by
//! pass: they own their KV pages, their masks, their samplers, their control flow, and talk to their app by messages.
//!
//! # The picture
//! ```text
//!  app ══ws══▶ server ──message──▶ session ──launch, signal──▶ runtime ──host call──▶ host ──operation──▶ engine ──batch──▶ backend
//!   ▲                                                             │                   ├──▶ exchange (kvs,         cuda │ cpu
//!   └══ws══ server ◀──event── session ◀──event── runtime ◀────────┘                   │     topics, mailboxes)
//!                                                   ▲                                 └──▶ directory (read only)
//!                                                   └──────────── result ◀──────────────── engine ◀──outcome
//!  anybody ═http═▶ server ──call: request, body──▶ runtime ──▶ guest ──promise: response, body──▶ server ═http═▶ anybody
//! ```
//! `wire` is the vocabulary that server and session share, not a stage; `identity` and `quota` hold the names that cross layers.
//! Commands go right and down; results and events come back through bounded channels. An upper layer holds handles
//! of the one below; a lower one never names an upper one: it returns a value or sends on a channel it was given.
//!
//! # Threads
//! `io`: smol, sockets, sessions and HTTP; while the model computes for others, who has used more than its part of it rests.
//! `engine`: alone owns the model's pages and device; no locks inside; subjects take turns at what they ask of it.
//! `worker`, as many as cores: runs slices of guests and, on the CPU backend, the shares of a batch, never both at once; while batches follow each other the engine's thread stands in for
//! the first worker, so that no token waits for a thread to wake. Who has computed a share of a batch stays on a core of its own
//! from then on, if the workers are as many as the cores.
//! `ender`: drops what there is of those that end and tells their clients, whatever the workers do.
//! `heavy` and two `aside`, of low priority: instructions of guests that take many slices; texts too long for a worker to
//! tokenize. Each computes for a thread of the usual priority (`for-heavy`, `for-aside`) and takes no lock of a queue: it loses
//! its core anywhere, and whoever wants the lock would wait until it has one again.
//! `disk`: alone writes key-value pairs, all that wait in one transaction with one sync; where they do not fit, subjects take
//! turns. `signals`: waits for the one that ends the server.
//! Heavy work on a program or a blob (hashes, validation, translation, its file) runs on smol's blocking pool; while the model
//! computes for others, the programs that a subject uploads or launches are translated one at a time and with rests between. A
//! panic is caught at the guest's and the session's border; one in the engine ends the process.
//!
//! # The life of a request
//! 1. A frame arrives and is decoded ([`wire`], [`server`]).
//! 2. The session checks what the token allows ([`auth`]).
//! 3. The program store hands over the validated component, translated once for as long as there is room ([`program`]).
//! 4. An instance starts: its own store, fuel, memory limit, handle table ([`runtime`]).
//! 5. The guest calls the host; a call that must wait suspends the guest and frees the worker ([`host`]).
//! 6. The operation is validated completely, its pages are found, rows that were computed before fall away; then it enters
//!    its queue, a stream.
//! 7. The engine, each time the device is free, takes what is ready: all priorities, all queues, up to a budget of
//!    rows and of measured time, long prompts in chunks; on a GPU the next chunk before the one before it has ended ([`engine`]).
//! 8. The backend runs the batch: append K/V, attend, gather the rows that have outputs, head, sample ([`backend`]).
//! 9. Results wake the guests.
//! 10. What a guest sends goes out as events, in order, the terminal one last and exactly once.
//!
//! # The map
//! | module | owns |
//! |---|---|
//! | [`cli`], [`config`], [`appliance`] | words, values, and what is built in which order |
//! | [`interrupts`] | the signals that end a command early, or a server |
//! | `output` | standard output of a command: what counts as written |
//! | [`limits`] | every capacity, with its reason |
//! | [`identity`], [`quota`], [`clock`] | instance, subject, program: the names; what each may use; what time it is, and waiting for another |
//! | `fair` | who of those that wait is next: the subject that was served least |
//! | [`places`] | places that subjects share, bounded for each and in all; waiting for one |
//! | [`pacer`] | what each subject uses of the io thread, the rests of who has used more than its part, the sockets that take them |
//! | [`wire`], [`server`], [`client`] | the protocol, its server side, our client |
//! | [`auth`] | PASETO tokens, what they grant |
//! | [`program`] | the store of components; component to instantiation plan |
//! | [`runtime`] | guests: fuel slices, run queues, handles, quotas, who runs |
//! | [`host`] | the guest contract: the canonical ABI, WASI, one file per interface |
//! | [`transfer`] | HTTP as plain data: bodies as bounded pipes, between a guest and who speaks HTTP for it |
//! | [`socket`] | a socket as hyper wants it |
//! | [`outgoing`] | HTTP requests that guests make: whom they may call, and the client |
//! | [`exchange`] | mailboxes, topics, the durable key-value pairs |
//! | [`engine`] | queues, pages, batches |
//! | [`model`], [`eval`] | GGUF, shape, tokenizer, prompt template; comparison with golden logits |
//! | [`backend`] | what computes a batch, and how tokens are drawn; `cpu`: vector kernels; `cuda`: a GPU, through the kernels of `kernels/` |
//! | [`bench`] | the instrument for speed: roofs, steps, what programs cost |
//! | [`synth`] | model files of real shapes with random weights, to measure with |
//! | [`selftest`] | whether this machine's device does what a backend counts on |
//! | [`observe`] | the log, the stage clock |
//! | `simulation` | tests only: the box on one thread, by a clock of its own |
//!
//! Numbers do not depend on neighbours: a row's bits follow from model, tokens, positions and mask alone.

pub mod appliance;
pub mod auth;
pub mod bench;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod engine;
pub mod eval;
pub mod exchange;
mod fair;
pub mod host;
pub mod identity;
pub mod interrupts;
pub mod observe;
pub mod outgoing;
mod output;
pub mod pacer;
pub mod places;
pub mod program;
pub mod quota;
pub mod runtime;
pub mod selftest;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod socket;
pub mod synth;
pub mod transfer;
pub mod wire;

// A package of their own, `src/compute`, which says why.
pub use tartlet_compute::{backend, limits, model};
