//! Whether a pass is well formed, as far as its own words and the model's sizes tell.
//!
//! Owns: the rules of "Geometry" and "Masks" in the contract, and the sentence for each. Never: who holds which page
//! (the pool's) or what a guest's memory says (the host's). The host asks at the call, so that the guest ends there;
//! the engine asks again, so that nothing malformed reaches a backend however it came.

use crate::backend::{Info, Mask, Sampler, TokenId};
use crate::engine::operation::{Pass, PassInput, PassOutput, VirtualId};

impl Pass {
    /// New rows of the pass.
    pub fn rows(&self) -> usize {
        self.inputs.len()
    }

    /// `Err` is a sentence that names the argument.
    pub fn check(&self, info: &Info) -> Result<(), String> {
        let rows = self.rows() as u64;
        if rows == 0 {
            return Err("inputs: a pass needs at least one token or embedding".into());
        }
        if self.positions.len() as u64 != rows {
            return Err(format!("positions: {} for {rows} inputs", self.positions.len()));
        }
        if self.pages.len() > info.pages as usize {
            let (named, all) = (self.pages.len(), info.pages);
            return Err(format!("kv-pages: {named} named, repeated ones counted, of {all} in all"));
        }
        let room = self.pages.len() as u64 * u64::from(info.page_size);
        let len = u64::from(self.len);
        if len > room || len + u64::from(info.page_size) <= room {
            let pages = self.pages.len();
            return Err(format!("kv-page-last-len: {len} tokens do not end in page {pages}"));
        }
        if rows > len {
            return Err(format!("kv-pages: {rows} new tokens in a sequence of {len}"));
        }
        for input in &self.inputs {
            if let PassInput::Token(TokenId(id)) = input
                && *id >= info.vocab
            {
                return Err(format!("tokens: {id} is not below the vocabulary size {}", info.vocab));
            }
        }
        self.check_mask(len - rows)?;
        self.check_outputs(info)
    }

    fn check_mask(&self, context: u64) -> Result<(), String> {
        let Mask::Runs(masks) = &self.mask else { return Ok(()) };
        if masks.len() != self.rows() {
            return Err(format!("mask: {} rows for {} inputs", masks.len(), self.rows()));
        }
        for (row, runs) in masks.iter().enumerate() {
            let covered: u64 = runs.iter().map(|&run| u64::from(run)).sum();
            let wanted = context + row as u64 + 1;
            if covered != wanted {
                return Err(format!("mask: row {row} covers {covered} tokens instead of {wanted}"));
            }
            if runs.iter().step_by(2).all(|&attended| attended == 0) {
                return Err(format!("mask: row {row} hides every token"));
            }
        }
        Ok(())
    }

    fn check_outputs(&self, info: &Info) -> Result<(), String> {
        let mut stored: Vec<VirtualId> = Vec::new();
        for output in &self.outputs {
            let row = match *output {
                PassOutput::Token { row, sampler } => {
                    check_sampler(sampler)?;
                    row
                }
                PassOutput::Distribution { row, temperature, top_k } => {
                    check_number("temperature", temperature)?;
                    if top_k == 0 || top_k > info.vocab {
                        return Err(format!("top-k: {top_k} is not in 1..={}", info.vocab));
                    }
                    row
                }
                PassOutput::Embed { row, to } => {
                    stored.push(to);
                    row
                }
            };
            if row as usize >= self.rows() {
                return Err(format!("indices: row {row} of {} inputs", self.rows()));
            }
        }
        stored.sort_unstable();
        match stored.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("output-embeddings: embed {} is written twice", pair[0].0)),
            None => Ok(()),
        }
    }
}

fn check_sampler(sampler: Sampler) -> Result<(), String> {
    let (temperature, p) = match sampler {
        Sampler::Multinomial { temperature } | Sampler::TopK { temperature, .. } => (temperature, 0.0),
        Sampler::TopP { temperature, p } | Sampler::MinP { temperature, p } => (temperature, p),
        Sampler::TopKTopP { temperature, p, .. } => (temperature, p),
    };
    check_number("temperature", temperature)?;
    check_number("p", p)
}

fn check_number(name: &str, value: f32) -> Result<(), String> {
    if value.is_nan() || value < 0.0 {
        return Err(format!("{name}: {value} is not zero or more"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Info {
        Info {
            device: "test".into(),
            page_size: 4,
            pages: 8,
            embeds: 8,
            batch_tokens: 16,
            vocab: 10,
            hidden: 1,
        }
    }

    /// Two new rows behind three: 5 slots in 2 pages of 4.
    fn pass() -> Pass {
        Pass {
            pages: vec![VirtualId(0), VirtualId(1)],
            len: 5,
            inputs: vec![PassInput::Token(TokenId(9)), PassInput::Embed(VirtualId(3))],
            positions: vec![3, 0],
            mask: Mask::Runs(vec![vec![4], vec![0, 1, 4]]),
            outputs: vec![PassOutput::Embed { row: 1, to: VirtualId(3) }],
        }
    }

    #[test]
    fn each_malformed_argument_is_named() {
        assert_eq!(pass().check(&info()), Ok(()));
        type Spoil = fn(&mut Pass);
        let spoilt: &[(&str, Spoil)] = &[
            ("inputs", |p| p.inputs.clear()),
            ("positions", |p| p.positions.push(0)),
            ("kv-page-last-len", |p| p.len = 9),
            ("kv-page-last-len", |p| p.len = 4),
            ("kv-page-last-len", |p| p.pages.clear()),
            ("kv-pages", |p| (p.len, p.pages) = (36, vec![VirtualId(0); 9])),
            ("kv-pages", |p| (p.len, p.pages) = (1, vec![VirtualId(0)])),
            ("tokens", |p| p.inputs[0] = PassInput::Token(TokenId(10))),
            ("mask", |p| p.mask = Mask::Runs(vec![vec![4]])),
            ("mask", |p| p.mask = Mask::Runs(vec![vec![4], vec![u32::MAX, u32::MAX]])),
            ("mask", |p| p.mask = Mask::Runs(vec![vec![4], vec![0, 5]])),
            ("indices", |p| p.outputs = vec![PassOutput::Embed { row: 2, to: VirtualId(0) }]),
            ("output-embeddings", |p| p.outputs.push(PassOutput::Embed { row: 0, to: VirtualId(3) })),
            ("top-k", |p| {
                p.outputs = vec![PassOutput::Distribution { row: 0, temperature: 1.0, top_k: 0 }];
            }),
            ("temperature", |p| {
                let sampler = Sampler::TopK { temperature: f32::NAN, k: 1 };
                p.outputs = vec![PassOutput::Token { row: 0, sampler }];
            }),
            ("p:", |p| {
                let sampler = Sampler::MinP { temperature: 1.0, p: -0.5 };
                p.outputs = vec![PassOutput::Token { row: 0, sampler }];
            }),
        ];
        for (name, spoil) in spoilt {
            let mut pass = pass();
            spoil(&mut pass);
            let said = pass.check(&info());
            assert!(said.as_ref().is_err_and(|s| s.starts_with(name)), "{name}: {said:?}");
        }
    }
}
