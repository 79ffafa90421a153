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
}

/// A prompt that fills a context, in tokens; longer contexts repeat its pages.
const FILL: usize = 64;

/// A backend of its own, without a server around it.
pub struct Bare {
    cpu: Cpu,
    work: Work,
    roof: Roof,
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
        roof: Roof,
        steps: &Steps,
    ) -> Result<Bare, BenchError> {
        let page_size = engine.page_size as usize;
        let pages = |slots: usize| slots.div_ceil(page_size);
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        let shortest = steps.contexts.iter().copied().min().unwrap_or(FILL);
        let needed = [
            pages(longest(&steps.prefill)),
            pages(longest(&steps.contexts) + steps.tokens),
            pages(shortest + steps.tokens) * longest(&steps.sequences),
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
            work: Work::of(&model.gguf, &model.shape, engine.kv_cache),
            context: model.shape.context as usize,
            cpu: Cpu::load(model.clone(), options, crew).map_err(BenchError::Load)?,
            roof,
            page_size,
            batch_tokens: engine.batch_tokens as usize,
            outcome: Outcome::default(),
        })
    }

    pub fn device(&self) -> &str {
        &self.cpu.info().device
    }

    /// Prompts of these lengths, the first token after each included.
    pub fn prefill(&mut self, steps: &Steps) -> Result<Vec<Measure>, BenchError> {
        let (mut measures, most) = (Vec::new(), self.context);
        for &length in steps.prefill.iter().filter(|length| **length <= most) {
            let mut ideal = 0.0;
            let samples = steps.effort.sample(|| {
                let started = Instant::now();
                ideal = self.prompt(length)?;
                Ok::<_, BenchError>(length as f64 / started.elapsed().as_secs_f64())
            })?;
            let (name, label) = (format!("prefill.{length}"), format!("a prompt of {length} tokens"));
            let measure = Measure::of(name, label, Unit::TOKENS_PER_S, &samples);
            measures.push(measure.under(length as f64 / ideal));
        }
        Ok(measures)
    }

    /// One sequence behind contexts of these lengths.
    pub fn decode(&mut self, steps: &Steps) -> Result<Vec<Measure>, BenchError> {
        let (mut measures, most) = (Vec::new(), self.context);
        for &context in steps.contexts.iter().filter(|context| **context <= most) {
            let (name, label) = (format!("decode.{context}"), format!("one sequence at context {context}"));
            measures.push(self.together(name, label, 1, context, steps)?);
        }
        Ok(measures)
    }

    /// So many sequences at once, each behind the shortest context.
    pub fn sequences(&mut self, steps: &Steps) -> Result<Vec<Measure>, BenchError> {
        let context = steps.contexts.iter().copied().min().unwrap_or(FILL);
        let (mut measures, most) = (Vec::new(), self.batch_tokens);
        for &count in steps.sequences.iter().filter(|count| **count <= most) {
            let name = format!("sequences.{count}");
            let label = format!("{count} sequences at context {context}, together");
            measures.push(self.together(name, label, count, context, steps)?);
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
    ) -> Result<Measure, BenchError> {
        let per = (context + steps.tokens).div_ceil(self.page_size);
        self.fill(count * per)?;
        let mut ideal = 0.0;
        let samples = steps.effort.sample(|| {
            ideal = 0.0;
            let started = Instant::now();
            for len in context + 1..=context + steps.tokens {
                let part = Part { rows: 1, len, outputs: 1 };
                let row = |n: usize| self.sequence(part, n * per, n);
                let batch = Batch { sequences: (0..count).map(row).collect() };
                ideal += self.run(&batch, &vec![part; count])?;
            }
            Ok::<_, BenchError>((count * steps.tokens) as f64 / started.elapsed().as_secs_f64())
        })?;
        let measure = Measure::of(name, label, Unit::TOKENS_PER_S, &samples);
        Ok(measure.under((count * steps.tokens) as f64 / ideal))
    }

    /// Runs a prompt in the chunks that a server would; the answer is the least that it can take, in seconds.
    fn prompt(&mut self, length: usize) -> Result<f64, BenchError> {
        let (mut len, mut ideal) = (0, 0.0);
        while len < length {
            let rows = self.batch_tokens.min(length - len);
            len += rows;
            let part = Part { rows, len, outputs: usize::from(len == length) };
            let batch = Batch { sequences: vec![self.sequence(part, 0, 0)] };
            ideal += self.run(&batch, &[part])?;
        }
        Ok(ideal)
    }

    /// Gives the first `pages` pages contents.
    fn fill(&mut self, pages: usize) -> Result<(), BenchError> {
        self.prompt(FILL)?;
        let real = FILL / self.page_size;
        if real > 0 {
            for page in real..pages {
                let (from, to) = (PageId((page % real) as u32), PageId(page as u32));
                self.cpu.copy_page(from, to).map_err(BenchError::Fault)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, batch: &Batch, parts: &[Part]) -> Result<f64, BenchError> {
        self.cpu.run(batch, &mut self.outcome).map_err(BenchError::Fault)?;
        Ok(self.roof.seconds(self.work.needs(parts)))
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
        let mut bare = Bare::load(&model, &engine, Crew::threads(2), roof, &steps).expect("it fits");
        let mut measures = bare.prefill(&steps).expect("no fault");
        measures.extend(bare.decode(&steps).expect("no fault"));
        measures.extend(bare.sequences(&steps).expect("no fault"));
        let names: Vec<&str> = measures.iter().map(|measure| measure.name.as_str()).collect();
        let all = ["prefill.5", "prefill.40", "decode.8", "decode.20", "sequences.1", "sequences.3"];
        assert_eq!(names, all);
        for measure in &measures {
            assert!(measure.median > 0.0 && measure.samples == 2, "{measure:?}");
            assert!(measure.share.is_some_and(|share| share > 0.0 && share < 1.0), "{measure:?}");
        }
    }
}
