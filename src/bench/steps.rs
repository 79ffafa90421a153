//! The backend alone: prefill, decode, many sequences, straight through [`Backend::run`].
//!
//! Owns: which batches are run and what is timed. Never: an engine, a guest, a socket.
//!
//! A context is filled by one short real prompt whose pages are copied on: values of the usual size, in pages of their
//! own, without waiting for a long prefill. What is decoded on it is not read by anybody.

use super::BenchError;
use super::measure::{Effort, Measure, Unit};
use super::work::{Part, Roof, Work};
use crate::backend::cpu::{Cpu, CpuOptions};
use crate::backend::crew::Crew;
use crate::backend::{
    Backend, Batch, DrawKey, Input, Mask, Outcome, Output, PageId, Sampler, Sequence, TokenId,
};
use crate::config::EngineConfig;
use crate::model::Model;
use std::sync::Arc;
use std::time::Instant;

/// What is measured of the backend.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Lengths of prompts.
    pub prefill: Vec<usize>,
    /// Slots in use before a decoded token.
    pub contexts: Vec<usize>,
    /// Sequences that decode together, each at the shortest context.
    pub sequences: Vec<usize>,
    /// Decoded tokens of one sample.
    pub tokens: usize,
    pub effort: Effort,
}

impl Steps {
    pub fn usual() -> Steps {
        Steps {
            prefill: vec![128, 512, 2048],
            contexts: vec![64, 1024, 4096],
            sequences: vec![1, 2, 4, 8, 16, 32],
            tokens: 16,
            effort: Effort::USUAL,
        }
    }

    fn shortest(&self) -> usize {
        self.contexts.iter().copied().min().unwrap_or(FILL)
    }
}

/// A prompt that fills a context, in tokens; longer contexts repeat its pages.
const FILL: usize = 64;

/// A backend of its own, without a server around it.
pub struct Bare {
    cpu: Cpu,
    work: Work,
    context: usize,
    page_size: usize,
    batch_tokens: usize,
    outcome: Outcome,
}

impl Bare {
    /// Loads the backend as a server would, with as many pages as `steps` need.
    pub fn load(
        model: &Arc<Model>,
        engine: &EngineConfig,
        crew: Arc<Crew>,
        steps: &Steps,
    ) -> Result<Bare, BenchError> {
        let page_size = engine.page_size as usize;
        let pages = |slots: usize| slots.div_ceil(page_size);
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        let needed = [
            pages(longest(&steps.prefill)),
            pages(longest(&steps.contexts) + steps.tokens),
            pages(steps.shortest() + steps.tokens) * longest(&steps.sequences),
            pages(FILL),
        ];
        let options = CpuOptions {
            pages: longest(&needed) as u32,
            page_size: engine.page_size,
            embeds: 1,
            batch_tokens: engine.batch_tokens,
            kv: engine.kv_cache,
            exact: false,
        };
        Ok(Bare {
            work: Work::of(&model.gguf, &model.shape, engine.page_size, engine.kv_cache),
            context: model.shape.context as usize,
            cpu: Cpu::load(model.clone(), options, crew).map_err(BenchError::Load)?,
            page_size,
            batch_tokens: engine.batch_tokens as usize,
            outcome: Outcome::default(),
        })
    }

    pub fn device(&self) -> &str {
        &self.cpu.info().device
    }

    /// Bytes of the weights as the backend keeps them.
    pub fn weight_bytes(&self) -> usize {
        self.cpu.weight_bytes()
    }

    /// Prompts of these lengths, the first token after each included.
    pub fn prefill(&mut self, steps: &Steps, roof: Roof) -> Result<Vec<Measure>, BenchError> {
        let mut measures = Vec::new();
        for &length in &steps.prefill {
            if length > self.context {
                continue;
            }
            let chunks = self.chunks(length);
            let ideal: f64 = chunks.iter().map(|chunk| roof.seconds(self.work.needs(&[*chunk]))).sum();
            let samples = steps.effort.sample(|| {
                let started = Instant::now();
                for chunk in &chunks {
                    self.run(&[*chunk], 0)?;
                }
                Ok::<_, BenchError>(length as f64 / started.elapsed().as_secs_f64())
            })?;
            let (name, label) = (format!("prefill.{length}"), format!("a prompt of {length} tokens"));
            let measure = Measure::of(name, label, Unit::TOKENS_PER_S, &samples);
            measures.push(measure.under(length as f64 / ideal));
        }
        Ok(measures)
    }

    /// One sequence behind contexts of these lengths.
    pub fn decode(&mut self, steps: &Steps, roof: Roof) -> Result<Vec<Measure>, BenchError> {
        let mut measures = Vec::new();
        for &context in &steps.contexts {
            if context <= self.context {
                let label = format!("one sequence at context {context}");
                measures.push(self.together(format!("decode.{context}"), label, 1, context, steps, roof)?);
            }
        }
        Ok(measures)
    }

    /// So many sequences at once, each behind the shortest context.
    pub fn sequences(&mut self, steps: &Steps, roof: Roof) -> Result<Vec<Measure>, BenchError> {
        let context = steps.shortest();
        let mut measures = Vec::new();
        for &count in &steps.sequences {
            if count <= self.batch_tokens {
                let label = format!("{count} sequences at context {context}, together");
                let name = format!("sequences.{count}");
                measures.push(self.together(name, label, count, context, steps, roof)?);
            }
        }
        Ok(measures)
    }

    fn together(
        &mut self,
        name: String,
        label: String,
        count: usize,
        context: usize,
        steps: &Steps,
        roof: Roof,
    ) -> Result<Measure, BenchError> {
        let per = (context + steps.tokens).div_ceil(self.page_size);
        self.fill(count * per)?;
        let rows = (context + 1..=context + steps.tokens).map(|len| Part { rows: 1, len, outputs: 1 });
        let batches: Vec<Vec<Part>> = rows.map(|row| vec![row; count]).collect();
        let ideal: f64 = batches.iter().map(|parts| roof.seconds(self.work.needs(parts))).sum();
        let tokens = (count * steps.tokens) as f64;
        let samples = steps.effort.sample(|| {
            let started = Instant::now();
            for parts in &batches {
                self.run(parts, per)?;
            }
            Ok::<_, BenchError>(tokens / started.elapsed().as_secs_f64())
        })?;
        Ok(Measure::of(name, label, Unit::TOKENS_PER_S, &samples).under(tokens / ideal))
    }

    /// A prompt in the chunks that a server would run it in.
    fn chunks(&self, length: usize) -> Vec<Part> {
        let ends =
            (0..length).step_by(self.batch_tokens).map(|from| (from, length.min(from + self.batch_tokens)));
        ends.map(|(from, len)| Part { rows: len - from, len, outputs: usize::from(len == length) }).collect()
    }

    /// Gives the first `pages` pages contents.
    fn fill(&mut self, pages: usize) -> Result<(), BenchError> {
        for chunk in self.chunks(FILL) {
            self.run(&[chunk], 0)?;
        }
        let real = FILL / self.page_size;
        if real > 0 {
            for page in real..pages {
                let (from, to) = (PageId((page % real) as u32), PageId(page as u32));
                self.cpu.copy_page(from, to).map_err(BenchError::Fault)?;
            }
        }
        Ok(())
    }

    /// Runs one batch; sequence number n has its pages from `n * per` on.
    fn run(&mut self, parts: &[Part], per: usize) -> Result<(), BenchError> {
        let sequences = parts.iter().enumerate().map(|(n, part)| self.sequence(*part, n * per, n)).collect();
        self.cpu.run(&Batch { sequences }, &mut self.outcome).map_err(BenchError::Fault)
    }

    /// The sequence number `number`, in the pages from `first` on.
    fn sequence(&self, part: Part, first: usize, number: usize) -> Sequence {
        let vocab = self.cpu.info().vocab;
        let slots = part.len - part.rows..part.len;
        // Any tokens will do as long as they differ; a multiplicative hash spreads them over the vocabulary.
        let token = |slot: usize| ((slot * 31 + number) as u32).wrapping_mul(2_654_435_761) % vocab;
        let sampler = Sampler::Multinomial { temperature: 0.0 };
        let row = part.rows as u32 - 1;
        let output = Output::Token { row, sampler, ordinal: 0 };
        Sequence {
            pages: (first..first + part.len.div_ceil(self.page_size))
                .map(|page| PageId(page as u32))
                .collect(),
            len: part.len as u32,
            inputs: slots.clone().map(|slot| Input::Token(TokenId(token(slot)))).collect(),
            positions: slots.map(|slot| slot as u32).collect(),
            mask: Mask::Causal,
            outputs: vec![output; part.outputs],
            draw: DrawKey { seed: 0, queue: number as u32, pass: part.len as u64 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::toy::Toy;
    use std::time::Duration;

    #[test]
    fn a_small_model_gives_every_figure_with_its_share() {
        let steps = Steps {
            prefill: vec![5, 40],
            contexts: vec![8, 20],
            sequences: vec![1, 3],
            tokens: 4,
            effort: Effort { least: 2, most: 2, within: Duration::ZERO },
        };
        let model = Toy::default().model();
        let engine = EngineConfig::usual(Some(2)).expect("the defaults are good");
        let engine = EngineConfig { page_size: 4, batch_tokens: 16, ..engine };
        let roof = Roof { read: 1e12, int8: 1e15 };
        let mut bare = Bare::load(&model, &engine, Crew::threads(2), &steps).expect("it fits");
        let mut measures = bare.prefill(&steps, roof).expect("no fault");
        measures.extend(bare.decode(&steps, roof).expect("no fault"));
        measures.extend(bare.sequences(&steps, roof).expect("no fault"));
        let names: Vec<&str> = measures.iter().map(|measure| measure.name.as_str()).collect();
        let all = ["prefill.5", "prefill.40", "decode.8", "decode.20", "sequences.1", "sequences.3"];
        assert_eq!(names, all);
        for measure in &measures {
            assert!(measure.median > 0.0 && measure.samples == 2, "{measure:?}");
            assert!(measure.share.is_some_and(|share| share > 0.0 && share < 1.0), "{measure:?}");
        }
    }
}
