//! A model as the file brings it: weights in the map, dimensions, tokenizer, prompt template.
//!
//! Owns: reading and checking a GGUF file. Never: computing with it (`backend/`). [`Model::open`] checks everything
//! that can be checked without reading the weights; who holds a [`Model`] need not check again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub mod chat;
mod cursor;
mod describe;
mod families;
pub mod gguf;
mod merge;
pub mod quant;
pub mod shape;
mod split;
pub mod tokenizer;
#[cfg(test)]
pub(crate) mod toy;

pub use chat::{Chat, ChatError};
pub use describe::describe;
pub use gguf::{Gguf, GgufError, Quant, Tensor};
pub use shape::{Layer, Shape, ShapeError, Weights};
pub use tokenizer::{BadToken, Tokenizer, TokenizerError};

/// One model, shared as `Arc<Model>` by the backend and by every guest; immutable.
pub struct Model {
    /// What guests and clients call it: as configured, else the file's name without its extension.
    pub name: String,
    pub gguf: Arc<Gguf>,
    pub shape: Shape,
    pub tokenizer: Tokenizer,
    pub chat: Chat,
    /// One line for people: "Smollm2 135M, llama, 134.5 M parameters, Q4_1".
    pub description: String,
}

/// Why a model cannot be served. `Display` is one sentence that names the file.
#[derive(Debug)]
pub struct ModelError {
    pub path: String,
    pub what: What,
}

/// Which part of the file is at fault.
#[derive(Debug)]
pub enum What {
    Gguf(GgufError),
    Shape(ShapeError),
    Tokenizer(TokenizerError),
    Chat(ChatError),
    /// Tokens of the tokenizer, rows of the embedding.
    Vocabulary(usize, usize),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path)?;
        match &self.what {
            What::Gguf(error) => error.fmt(f),
            What::Shape(error) => error.fmt(f),
            What::Tokenizer(error) => error.fmt(f),
            What::Chat(error) => error.fmt(f),
            What::Vocabulary(tokens, rows) => {
                write!(f, "the tokenizer has {tokens} tokens, but `token_embd.weight` has {rows} rows")
            }
        }
    }
}

impl std::error::Error for ModelError {}

impl Model {
    /// Opens and checks a model. `name` and `template` are the operator's; absent, the file's own serve.
    pub fn open(path: &Path, name: Option<&str>, template: Option<&str>) -> Result<Model, ModelError> {
        let fail = |what| ModelError { path: path.display().to_string(), what };
        let gguf = Gguf::open(path).map_err(|error| fail(What::Gguf(error)))?;
        let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Model::read(gguf, name.unwrap_or(&stem), template).map_err(fail)
    }

    /// The same from a file that is open already.
    pub(crate) fn read(gguf: Gguf, name: &str, template: Option<&str>) -> Result<Model, What> {
        let shape = Shape::read(&gguf).map_err(What::Shape)?;
        Weights::read(&gguf, &shape).map_err(What::Shape)?;
        let tokenizer = Tokenizer::read(&gguf).map_err(What::Tokenizer)?;
        if tokenizer.vocab() as usize != shape.vocab {
            return Err(What::Vocabulary(tokenizer.vocab() as usize, shape.vocab));
        }
        let chat = Chat::choose(&gguf, &tokenizer, template).map_err(What::Chat)?;
        let description = describe::line(&gguf);
        Ok(Model { name: name.to_owned(), gguf: Arc::new(gguf), shape, tokenizer, chat, description })
    }
}
