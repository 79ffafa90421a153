//! A model as the file brings it: weights in the map, dimensions, tokenizer, prompt template.
//!
//! Owns: reading and checking a GGUF file. Never: computing with it (`backend/`). [`Model::open`] checks everything
//! that can be checked without reading the matrices; who holds a [`Model`] need not check again.

use std::fmt;
use std::path::Path;

mod architecture;
mod bytelevel;
pub mod chat;
mod composed;
mod cursor;
mod describe;
mod families;
pub mod gguf;
mod keys;
mod merge;
mod own_template;
pub mod quant;
mod sentencepiece;
pub mod shape;
mod shard;
mod sharded;
#[cfg(test)]
pub(crate) mod specimens;
mod split;
mod tensors;
pub mod tokenizer;
#[cfg(any(test, feature = "toys"))]
pub mod toy;
mod vocabulary;

pub use bytelevel::letters as byte_letters;
pub use chat::{Chat, ChatError};
pub use gguf::{Extent, Gguf, GgufError, Quant, Tensor};
pub use shape::{Layer, RopeFactors, Shape, ShapeError, Weights};
pub use tokenizer::{BadToken, Tokenizer, TokenizerError};

/// One model, shared as `Arc<Model>` by the backend and by every guest; immutable.
pub struct Model {
    /// What guests and clients call it: as configured, else the file's name without its extension and number.
    pub name: String,
    pub gguf: Gguf,
    pub shape: Shape,
    /// Where the tensors are in `gguf`.
    pub weights: Weights,
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
        let what = match &self.what {
            What::Gguf(error) => error.to_string(),
            What::Shape(error) => error.to_string(),
            What::Tokenizer(error) => error.to_string(),
            What::Chat(error) => error.to_string(),
            What::Vocabulary(tokens, rows) => {
                format!("the tokenizer has {tokens} tokens, but `token_embd.weight` has {rows} rows")
            }
        };
        // It may repeat names and texts of the file.
        write!(f, "{}: {}", self.path, describe::one_line(&what))
    }
}

impl std::error::Error for ModelError {}

impl Model {
    /// Opens and checks a model. `name` and `template` are the operator's; absent, the file's own serve.
    pub fn open(path: &Path, name: Option<&str>, template: Option<&str>) -> Result<Model, ModelError> {
        let fail = |what| ModelError { path: path.display().to_string(), what };
        let gguf = Gguf::open(path).map_err(|error| fail(What::Gguf(error)))?;
        let own = sharded::model_name(path, gguf.files());
        Model::read(gguf, name.unwrap_or(&own), template).map_err(fail)
    }

    /// The same from a file that is open already.
    pub(crate) fn read(gguf: Gguf, name: &str, template: Option<&str>) -> Result<Model, What> {
        let shape = Shape::read(&gguf).map_err(What::Shape)?;
        let weights = Weights::read(&gguf, &shape).map_err(What::Shape)?;
        let tokenizer = Tokenizer::read(&gguf).map_err(What::Tokenizer)?;
        if tokenizer.vocab() as usize != shape.vocab {
            return Err(What::Vocabulary(tokenizer.vocab() as usize, shape.vocab));
        }
        let chat = Chat::choose(&gguf, &tokenizer, template).map_err(What::Chat)?;
        let description = describe::line(&gguf);
        Ok(Model { name: name.to_owned(), gguf, shape, weights, tokenizer, chat, description })
    }
}

/// What `tartlet model FILE` prints: the file on one screen, also when Tartlet cannot serve it.
pub fn describe(path: &Path) -> Result<String, ModelError> {
    let gguf = Gguf::open(path)
        .map_err(|error| ModelError { path: path.display().to_string(), what: What::Gguf(error) })?;
    Ok(describe::describe(&gguf))
}

#[cfg(test)]
mod tests {
    use super::toy::{Random, Toy, Writer, real_model};
    use super::*;

    /// Everything that happens to a file, except the mapping.
    fn open_whole(bytes: Vec<u8>) -> Result<(), String> {
        let gguf = Gguf::from_bytes(bytes).map_err(|error| error.to_string())?;
        assert!(describe::describe(&gguf).len() < 1 << 20);
        Model::read(gguf, "toy", None).map(drop).map_err(|what| format!("{what:?}"))
    }

    fn small() -> Writer {
        let toy = Toy { layers: 1, heads: 1, kv_heads: 1, head_dim: 4, ffn: 4, ..Toy::default() };
        // Of no known family, so that the template itself is tried too.
        toy.writer().str(
            "tokenizer.chat_template",
            "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}",
        )
    }

    #[test]
    fn the_real_model_opens() {
        let model = Model::open(&real_model(), Some("smol"), None).unwrap();
        assert_eq!(model.name, "smol");
        assert_eq!(model.description, "Smollm2 135M 8k Lc100K Mix1 Ep2, llama, 134.5 M parameters, Q4_1");
        let shape = &model.shape;
        assert_eq!(
            (shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads),
            (30, 576, 1536, 9, 3)
        );
        assert_eq!((shape.head_dim, shape.rope.dims, shape.vocab, shape.context), (64, 64, 49152, 8192));
        assert_eq!((shape.rope.base, shape.norm_eps, shape.tied_head), (100_000.0, 1e-5, true));
        assert_eq!(model.chat.source, "ChatML");
        assert_eq!(model.chat.stops, ["<|im_end|>", "<|endoftext|>"]);
    }

    /// Three files that PyPI `gguf` wrote (tests/golden/kquants.py), opened by any of them.
    #[test]
    fn a_model_of_many_formats_in_several_files_opens() {
        for number in 1..=3 {
            let path = format!("../../tests/golden/kquants-0000{number}-of-00003.gguf");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let model = Model::open(&path, None, None).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((model.name.as_str(), model.gguf.files()), ("kquants", 3));
            assert_eq!(model.description, "K-quants, llama, 199.9 k parameters, Q4_K");
            assert_eq!((model.shape.hidden, model.shape.head_dim, model.tokenizer.vocab()), (256, 16, 264));
            let text = describe(&path).unwrap();
            assert!(text.contains("in 3 files, GGUF version 3") && text.contains("can serve it"), "{text}");
        }
    }

    #[test]
    fn the_error_names_the_file() {
        let error = Model::open(Path::new("/nonexistent.gguf"), None, None).err().expect("refused");
        assert!(error.to_string().starts_with("/nonexistent.gguf: cannot open"), "{error}");
        assert!(describe(Path::new("/nonexistent.gguf")).is_err());
    }

    /// A file cut short anywhere is refused, whatever the length.
    #[test]
    fn every_truncation_is_refused() {
        let whole = small().bytes();
        open_whole(whole.clone()).expect("the whole file is fine");
        // The last tensor's padding carries nothing.
        let end = whole.len() - 32 + 16;
        for len in 0..end {
            assert!(open_whole(whole[..len].to_vec()).is_err(), "cut to {len} of {} bytes", whole.len());
        }
    }

    /// Whatever byte or word of the header is something else: an answer, no panic, no endless loop.
    #[test]
    fn no_damage_to_the_header_panics() {
        const SEED: u64 = 20;
        let mut random = Random::new(SEED);
        let whole = small().bytes();
        let header = whole.len()
            - Gguf::from_bytes(whole.clone()).unwrap().tensors().filter_map(|t| t.bytes).sum::<usize>();
        let mut refused = 0;
        let mut run = |bytes: Vec<u8>, at: usize| {
            let outcome = std::panic::catch_unwind(|| open_whole(bytes));
            refused += usize::from(outcome.unwrap_or_else(|_| panic!("seed {SEED}, byte {at}")).is_err());
        };
        for at in 0..header {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << random.below(8);
            run(flipped, at);
            let mut inverted = whole.clone();
            inverted[at] ^= 0xff;
            run(inverted, at);
            let mut huge = whole.clone();
            let word = [u64::MAX, 1 << 62, 1 << 40, u64::from(u32::MAX)][random.below(4)];
            huge[at..at + 8].copy_from_slice(&word.to_le_bytes());
            run(huge, at);
        }
        assert!(refused > header, "{refused} of {}", 3 * header);
    }
}
