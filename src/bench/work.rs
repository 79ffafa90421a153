//! What a batch cannot do without: the bytes it must read and the operations it must do, from the model's shape and the
//! formats of its tensors; and how long that takes at the machine's roof.
//!
//! Owns: the count. Never: how the backend goes about it; a backend that reads something twice has a smaller share.

use crate::backend::cpu::{Cpu, KvFormat};
use crate::model::{Gguf, Shape};

/// What this machine does at most, with the threads that are measured, or its GPU.
#[derive(Clone, Copy, Debug)]
pub struct Roof {
    /// Bytes per second. Infinite: the weights lie in caches, and how fast these are read nobody has measured.
    pub read: f64,
    /// int8 operations per second; a multiplication and an addition are two. Infinite: nobody has measured them.
    pub int8: f64,
}

impl Roof {
    /// Seconds that `needs` take at least: reading and multiplying at the same time, both at their roof.
    pub fn seconds(&self, needs: Needs) -> f64 {
        (needs.bytes / self.read).max(needs.operations / self.int8)
    }
}

/// What one batch needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    pub bytes: f64,
    pub operations: f64,
}

/// New rows at the tail of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub rows: usize,
    /// Slots in use after them.
    pub len: usize,
    /// Rows whose logits are asked for.
    pub outputs: usize,
}

/// What a model's batches are counted by.
#[derive(Clone, Debug)]
pub struct Work {
    /// Bytes of every tensor but the head and the embedding: read once a batch.
    layers_bytes: f64,
    /// Multiplications of one row with all matrices of the layers.
    layers_values: f64,
    head_bytes: f64,
    head_values: f64,
    /// Bytes of K and V of one slot in all layers, as the backend keeps them.
    slot_bytes: f64,
    /// A matrix is of a format whose numbers are multiplied as floats.
    floats: bool,
    shape: Shape,
}

impl Work {
    /// `page_size` and `kv` as the backend keeps its pages: a page may hold more than its slots' numbers.
    pub fn of(gguf: &Gguf, shape: &Shape, page_size: u32, kv: KvFormat) -> Work {
        let head = if shape.tied_head { "token_embd.weight" } else { "output.weight" };
        let mut work = Work {
            layers_bytes: 0.0,
            layers_values: 0.0,
            head_bytes: 0.0,
            head_values: 0.0,
            floats: false,
            slot_bytes: Cpu::page_bytes(shape, page_size, kv) as f64 / f64::from(page_size),
            shape: shape.clone(),
        };
        for tensor in gguf.tensors() {
            let bytes = tensor.bytes.unwrap_or(0) as f64; // known: a model that loads has no unknown format
            let values = tensor.dims.iter().product::<usize>() as f64;
            let matrix = tensor.dims[1] > 1 && (tensor.name != "token_embd.weight" || head == tensor.name);
            work.floats |= matrix && ["F32", "F16", "BF16"].contains(&&*tensor.format);
            match tensor.name {
                name if name == head => (work.head_bytes, work.head_values) = (bytes, values),
                "token_embd.weight" => {} // one row of it per token
                _ => {
                    work.layers_bytes += bytes;
                    // One row is a vector: a norm, a bias. It is added or scaled by, not multiplied with.
                    work.layers_values += if tensor.dims[1] > 1 { values } else { 0.0 };
                }
            }
        }
        work
    }

    /// The part of the roof that the model's batches can come under: how fast floats are multiplied nobody has measured.
    pub fn roof(&self, roof: Roof) -> Roof {
        Roof { int8: if self.floats { f64::INFINITY } else { roof.int8 }, ..roof }
    }

    /// What a batch of these parts needs. Weights and each sequence's K/V are read once; a row is multiplied with every
    /// matrix of the layers and, for scores and values, with every slot that it sees; the head comes only for outputs.
    pub fn needs(&self, parts: &[Part]) -> Needs {
        let mut needs = Needs { bytes: self.layers_bytes, operations: 0.0 };
        let outputs: usize = parts.iter().map(|part| part.outputs).sum();
        if outputs > 0 {
            needs.bytes += self.head_bytes;
            needs.operations += 2.0 * self.head_values * outputs as f64;
        }
        // A score and a weighted sum: two products with every value of a head.
        let slot_operations = 4.0 * self.shape.q_width() as f64;
        let layer_bytes = self.slot_bytes / self.shape.layers as f64;
        for part in parts {
            needs.operations += 2.0 * self.layers_values * part.rows as f64;
            for layer in 0..self.shape.layers {
                let window = self.shape.window_of(layer).unwrap_or(usize::MAX);
                let seen: usize = (part.len - part.rows + 1..=part.len).map(|slots| slots.min(window)).sum();
                needs.operations += slot_operations * seen as f64;
                // The first row's window begins where the last row's does, and `rows - 1` slots before.
                needs.bytes += layer_bytes * part.len.min(window.saturating_add(part.rows - 1)) as f64;
            }
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::model::quant::Quant;
    use crate::model::toy::{Toy, real_model};

    /// The figures that the roof of the demo model was worked out with by hand.
    #[test]
    fn the_real_models_work_is_counted_as_by_hand() {
        let model = Model::open(&real_model(), None, None).expect("the model opens");
        let work = Work::of(&model.gguf, &model.shape, 16, KvFormat::F16);
        let weights = work.layers_bytes + work.head_bytes;
        assert!((weights / 1e6 - 96.6).abs() < 0.1, "{weights}");
        assert!((work.layers_values / 1e6 - 106.2).abs() < 0.1, "{}", work.layers_values);
        assert_eq!(work.head_values, 49152.0 * 576.0);
        assert_eq!(work.slot_bytes, 23_040.0);

        let roof = Roof { read: 1.0, int8: 1.0 };
        assert_eq!(work.roof(roof).int8, 1.0);
        for (quant, floats) in [(Quant::Q4_1, false), (Quant::BF16, true)] {
            let toy = Toy::of(quant).model();
            let work = Work::of(&toy.gguf, &toy.shape, 16, KvFormat::F16);
            assert_eq!(work.roof(roof).int8.is_infinite(), floats, "{quant:?}");
        }

        let one = work.needs(&[Part { rows: 1, len: 65, outputs: 1 }]);
        assert_eq!(one.bytes, weights + 65.0 * work.slot_bytes);
        // 2 x 938 GOP/s: the prompt of 512 at 4,078 tokens/s, 16 sequences at 3,488 without their attention.
        let roof = Roof { read: 42.7e9, int8: 938e9 };
        let prompt = work.needs(&[Part { rows: 512, len: 512, outputs: 1 }]);
        assert!((512.0 / roof.seconds(prompt) - 4078.0).abs() < 15.0, "{}", 512.0 / roof.seconds(prompt));
        let many = work.needs(&[Part { rows: 1, len: 1, outputs: 1 }; 16]);
        assert!((16.0 / roof.seconds(many) - 3488.0).abs() < 15.0, "{}", 16.0 / roof.seconds(many));
    }
}
