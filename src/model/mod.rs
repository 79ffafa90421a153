//! A model as the file brings it: weights in the map, dimensions, tokenizer, prompt template.
//!
//! Owns: reading and checking a GGUF file. Never: computing with it (`backend/`).

mod cursor;
pub mod gguf;
pub mod quant;
pub mod shape;
