//! A small seeded model of each family, as its converter would write it, with the logits that `transformers` computes
//! from it (tests/golden/families.json, made by families.py beside it).
//!
//! Owns: the weights, which follow from names, and the conversion from the layout of `transformers` to GGUF. Never:
//! part of the binary.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Model;
use super::gguf::{Gguf, Quant};
use super::toy::{Random, Writer, random_bytes};

/// One model of the golden file.
#[derive(serde::Deserialize)]
pub(crate) struct Specimen {
    pub name: String,
    architecture: String,
    keys: BTreeMap<String, serde_json::Value>,
    /// Tensors that come from the configuration: factors of the rope.
    extra: BTreeMap<String, Vec<f64>>,
    /// Names in `transformers`, with their dimensions there: rows first.
    tensors: BTreeMap<String, Vec<usize>>,
    pub tokens: Vec<u32>,
    /// Of each row's logits the file has ids 0, `every`, 2 `every`, ...
    pub every: usize,
    pub logits: Vec<Vec<f64>>,
}

/// All of them.
pub(crate) fn specimens() -> Vec<Specimen> {
    let golden = include_str!("../../tests/golden/families.json");
    serde_json::from_str(golden).unwrap_or_else(|error| panic!("families.json: {error}"))
}

impl Specimen {
    /// The model, ready to be loaded by a backend.
    pub fn model(&self) -> Arc<Model> {
        self.read(self.writer())
    }

    /// The same with matrices of a format, of other numbers: no golden logits belong to it.
    pub fn model_in(&self, format: Quant) -> Arc<Model> {
        let mut w = self.writer();
        for (name, dims) in &self.tensors {
            if let [rows, row] = dims[..] {
                let mut random = Random::new(fnv(&format!("{}/{name}/{format}", self.name)));
                let bytes = random_bytes(format, rows * row, 1.0 / (row as f32).sqrt(), &mut random);
                w = w.tensor(&self.gguf_name(name), &[row, rows], format, bytes);
            }
        }
        self.read(w)
    }

    fn read(&self, writer: Writer) -> Arc<Model> {
        let gguf = Gguf::from_bytes(writer.bytes()).expect("a specimen is a valid file");
        let model = Model::read(gguf, &self.name, None);
        Arc::new(model.unwrap_or_else(|what| panic!("{}: {what:?}", self.name)))
    }

    /// The file, still to be changed by a test.
    pub fn writer(&self) -> Writer {
        let name =
            |w: Writer| w.str("general.architecture", &self.architecture).str("general.name", &self.name);
        let mut w = name(Writer::new()).vocabulary();
        for (key, value) in &self.keys {
            w = match value {
                serde_json::Value::String(text) => w.str(key, text),
                value => match value.as_u64() {
                    Some(whole) => w.u32(key, whole as u32),
                    None => w.f32(key, value.as_f64().expect("a number") as f32),
                },
            };
        }
        for (name, factors) in &self.extra {
            let bytes = factors.iter().flat_map(|&factor| (factor as f32).to_le_bytes()).collect();
            w = w.tensor(name, &[factors.len()], Quant::F32, bytes);
        }
        for (name, dims) in &self.tensors {
            let rows = self.values(name, dims);
            let row: Vec<usize> = dims.iter().rev().copied().collect(); // GGUF counts from the row length
            let bytes = rows.into_iter().flatten().flat_map(f32::to_le_bytes).collect();
            w = w.tensor(&self.gguf_name(name), &row, Quant::F32, bytes);
        }
        w
    }

    fn size(&self, key: &str) -> usize {
        self.keys[&format!("{}.{key}", self.architecture)].as_u64().expect("a whole number") as usize
    }

    fn gemma(&self) -> bool {
        self.architecture.starts_with("gemma")
    }

    /// The rows of a tensor in GGUF's order; a vector is one row per value.
    fn values(&self, name: &str, dims: &[usize]) -> Vec<Vec<f32>> {
        let row = dims.get(1).copied().unwrap_or(1);
        let (middle, reach) = match dims {
            _ if name == "model.embed_tokens.weight" => (0.0, 1.0),
            [_, row] => (0.0, (3.0 / *row as f64).sqrt()),
            _ if name.ends_with(".bias") => (0.0, 0.5),
            _ => (if self.gemma() { 0.0 } else { 1.0 }, 0.25),
        };
        let mut random = Random::new(fnv(&format!("{}/{name}", self.name)));
        let mut value =
            || (middle + reach * ((random.next() >> 40) as f64 / f64::from(1 << 23) - 1.0)) as f32;
        let rows: Vec<Vec<f32>> = (0..dims[0]).map(|_| (0..row).map(|_| value()).collect()).collect();
        let heads = match () {
            () if self.architecture != "llama" => None,
            () if name.contains(".q_proj.") => Some(self.size("attention.head_count")),
            () if name.contains(".k_proj.") => Some(self.size("attention.head_count_kv")),
            () => None,
        };
        match heads {
            // Pairs (i, i + half) of `transformers` become pairs (2i, 2i + 1).
            Some(heads) => {
                let head = dims[0] / heads;
                let from = |to: usize| to / head * head + to % head / 2 + to % 2 * (head / 2);
                (0..dims[0]).map(|to| rows[from(to)].clone()).collect()
            }
            // Gemma's gains are stored less one.
            None if self.gemma() && dims.len() == 1 => {
                rows.into_iter().map(|row| row.into_iter().map(|gain| gain + 1.0).collect()).collect()
            }
            None => rows,
        }
    }

    fn gguf_name(&self, name: &str) -> String {
        let ends =
            [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
        let (whole, kind) = name.rsplit_once('.').expect("every name ends in its kind");
        if let Some((_, ours)) = ends.iter().find(|(theirs, _)| *theirs == whole) {
            return format!("{ours}.{kind}");
        }
        let part = whole.strip_prefix("model.layers.").expect("the other tensors are in layers");
        let (layer, part) = part.split_once('.').expect("a layer has parts");
        let ours = match part {
            "input_layernorm" => "attn_norm",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.qkv_proj" => "attn_qkv",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "self_attn.o_proj" => "attn_output",
            "post_attention_layernorm" if self.gemma() => "post_attention_norm",
            "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
            "post_feedforward_layernorm" => "post_ffw_norm",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            part => panic!("{part} has no name in GGUF"),
        };
        format!("blk.{layer}.{ours}.{kind}")
    }
}

/// The 64-bit FNV-1a hash: a seed of its own for each name.
fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
