//! JSON that a schema allows, token by token: for programs that let a model write it.
//!
//! Owns: which token may come next, so that a text always ends, within its number of tokens, as JSON that its schema
//! allows. Never: the model.
//!
//! ```text
//! schema ──compile──▶ Grammar (nodes, texts) ──▶ State (stacks of frames, a byte at a time) ──▶ Writer (tokens)
//! ```
//!
//! Three rules make every output right. Where the grammar leaves no choice, its text is written without asking the
//! model. Else the likeliest, or the drawn, token of a distribution is taken that the grammar allows *and* behind which
//! the shortest end still fits the tokens that are left. And where the distribution has none such, the grammar takes the
//! next step of its own shortest end, which always exists. So no distribution needs to be complete: its first 1,024
//! entries do, and the server has no part in it.
//!
//! The form is fixed: one space behind each `,` and `:` and no other, properties in the order of the schema, no exponents.
//! What the schema allows beyond is not written, which is no violation; what it asks beyond the supported keywords is
//! refused by a sentence. Why not a library: those weigh a parser of every grammar, with regular expressions, against a
//! hundred kilobytes here that an interpreter runs, and none of them ends a text within a bound.

mod apart;
mod frame;
mod schema;
mod state;
mod vocabulary;
mod writer;

pub use schema::{Grammar, compile};
pub use vocabulary::Vocabulary;
pub use writer::{Random, Writer};
