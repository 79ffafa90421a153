//! Why a program was not taken, in sentences that tell its author what to do.

use crate::limits;
use std::fmt;

/// `Display` is the answer to the upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    NotWasm,
    /// A core module: built for another target.
    CoreModule,
    /// The bytes are not a valid component.
    Malformed {
        offset: usize,
        what: String,
    },
    /// A feature of newer component formats, named.
    Asynchronous(&'static str),
    /// Anything else that is valid and not run here: a whole sentence.
    Unsupported(String),
    /// Imports that are neither of the guest world nor of the WASI set, all of them.
    UnknownImports(Vec<String>),
    /// Imports declared with another type than ours.
    OtherTypes(Vec<String>),
    /// Neither a `run` nor a `handle` export; what it exports instead.
    NoEntry(Vec<String>),
    /// A bound of `limits.rs`: what, how much it is, how much it may be.
    TooLarge(&'static str, usize, usize),
    /// The interpreter does not take a core module.
    Untranslatable(String),
    /// The store holds as much as it may.
    StoreFull,
    /// Its subject brought so many.
    ShareFull,
    /// The programs that run take all the memory there is for their code.
    CodeFull,
    /// Those of one subject take its part.
    CodeShareFull,
    /// The disk failed.
    NotKept(String),
}

impl std::error::Error for Rejected {}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejected::NotWasm => f.write_str(
                "Not a WebAssembly file: upload the .wasm that `cargo build --release --target wasm32-wasip2` makes",
            ),
            Rejected::CoreModule => f.write_str(
                "A core WebAssembly module, not a component: build it with `--target wasm32-wasip2`",
            ),
            Rejected::Malformed { offset, what } => write!(
                f,
                "Not a valid component (at byte {offset}: {what}): the file is damaged or truncated, or was made by newer \
                 tools; only the synchronous WASI 0.2 format is run here"
            ),
            Rejected::Asynchronous(what) => write!(
                f,
                "The component uses {what}, and only the synchronous WASI 0.2 format is run here: build it with `--target wasm32-wasip2`"
            ),
            Rejected::Unsupported(what) => f.write_str(what),
            Rejected::UnknownImports(names) => {
                write!(f, "The component imports what this server does not offer: {}", some(names))
            }
            Rejected::OtherTypes(names) => write!(
                f,
                "The component declares imports with other types than this server has: {}; build it against inferlet 0.2.0",
                some(names)
            ),
            Rejected::NoEntry(exports) => {
                f.write_str(
                    "The component exports neither inferlet:core/run, which is how an inferlet is started, nor \
                     wasi:http/incoming-handler, which is how one answers HTTP",
                )?;
                match exports.is_empty() {
                    true => f.write_str("; it exports nothing"),
                    false => write!(f, "; it exports {}", some(exports)),
                }
            }
            Rejected::TooLarge(what, is, limit) => {
                write!(f, "The component has {is} {what}, and {limit} is the most")
            }
            Rejected::Untranslatable(what) => write!(f, "The interpreter does not take the component's code: {what}"),
            Rejected::StoreFull => write!(
                f,
                "The program store is full ({} programs or {} bytes): remove some from its folder and restart the server",
                limits::PROGRAMS,
                limits::PROGRAM_STORE_BYTES
            ),
            Rejected::ShareFull => write!(
                f,
                "Your share of the program store is full ({} programs or {} bytes): have its operator remove some of yours",
                limits::PROGRAMS_PER_SUBJECT,
                limits::PROGRAM_STORE_BYTES_PER_SUBJECT
            ),
            Rejected::CodeFull => write!(
                f,
                "The programs that run now take all the memory there is for the code of programs ({} bytes): try again when \
                 some of their instances have ended",
                limits::PROGRAM_CODE_BYTES
            ),
            Rejected::CodeShareFull => write!(
                f,
                "The programs that you run now take your part of the memory for the code of programs ({} bytes): end the \
                 instances of some",
                limits::PROGRAM_CODE_BYTES / limits::PROGRAM_CODE_SHARE
            ),
            Rejected::NotKept(what) => write!(f, "The program could not be stored: {what}"),
        }
    }
}

/// All of them, unless they are so many or so long that no author wrote them: the sentence must fit a frame.
fn some(names: &[String]) -> String {
    const NAMES: usize = 200;
    const LETTERS: usize = 200;
    let mut listed: Vec<String> =
        names.iter().take(NAMES).map(|name| name.chars().take(LETTERS).collect()).collect();
    if names.len() > NAMES {
        listed.push(format!("and {} more", names.len() - NAMES));
    }
    listed.join(", ")
}
