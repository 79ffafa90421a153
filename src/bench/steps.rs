//! The backend alone: prefill, decode, many sequences, straight through [`Backend::run`].
//!
//! Owns: which batches are run and what is timed. Never: an engine, a guest, a socket.
//!
//! A context is filled by one short real prompt whose pages are copied on: values of the usual size, in pages of their
//! own, without waiting for a long prefill. What is decoded on it is not read by anybody.

use super::BenchError;
use super::measure::{Effort, Measure, Unit};
use super::work::{Part, Roof, Work};
use crate::backend::choice::NotLoaded;
use crate::backend::cpu::{Cpu, CpuOptions};
use crate::backend::crew::Crew;
use crate::backend::cuda::{Cuda, CudaOptions};
use crate::backend::{
    Backend, Batch, DrawKey, Input, Mask, Outcome, Output, PageId, Sampler, Sequence, TokenId, Which,
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
    /// Sequences that decode together, each behind [`BESIDE`] slots.
    pub sequences: Vec<usize>,
    /// Decoded tokens of one sample.
    pub tokens: usize,
    pub effort: Effort,
}

/// Slots in use before a token of each of many sequences: the same whatever else is measured, so that the figure of
/// one name is one measurement.
const BESIDE: usize = 64;
/// A prompt that fills a context, in tokens; longer contexts repeat its pages.
const FILL: usize = 64;

/// What limits a figure: a model, a batch, a machine.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Positions of the model's trained context.
    pub context: usize,
    /// Rows of one batch.
    pub batch_tokens: usize,
    /// Slots of a KV page.
    pub page_size: usize,
    pub page_bytes: usize,
    /// Bytes that are free for KV pages, where the system says so.
    pub free: Option<u64>,
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

    /// The figures of each section, by its name.
    pub fn sections(&mut self) -> [(&'static str, &mut Vec<usize>); 3] {
        [("prefill", &mut self.prefill), ("decode", &mut self.contexts), ("sequences", &mut self.sequences)]
    }

    pub fn is_empty(&self) -> bool {
        self.prefill.is_empty() && self.contexts.is_empty() && self.sequences.is_empty()
    }

    /// Takes out the figures for which there is no room; a sentence for each of them.
    pub fn fit(&mut self, room: &Room) -> Vec<String> {
        let tokens = self.tokens;
        let mut left_out = Vec::new();
        let mut keep = |section: &str, number: usize, context: usize, sequences: usize, slots: usize| {
            let bytes = (slots.div_ceil(room.page_size) * sequences) as u64 * room.page_bytes as u64;
            let why = if context > room.context {
                format!("the model's context has {} tokens, not {context}", room.context)
            } else if sequences > room.batch_tokens {
                format!("a batch has {} rows, one for each sequence", room.batch_tokens)
            } else if let Some(free) = room.free.filter(|free| bytes > *free) {
                let [needs, free] = [bytes, free].map(|bytes| bytes / 1_000_000);
                format!("its keys and values take {needs} MB, and {free} MB are free beside the weights")
            } else {
                return true;
            };
            left_out.push(format!("{section}.{number} is left out: {why}."));
            false
        };
        self.prefill.retain(|&length| keep("prefill", length, length, 1, length));
        // The few tokens that are decoded may lie behind the trained context: nobody reads them.
        self.contexts.retain(|&context| keep("decode", context, context, 1, context + tokens));
        self.sequences.retain(|&count| keep("sequences", count, BESIDE, count, BESIDE + tokens));
        left_out
    }

    /// Pages that any one of the figures needs at most.
    fn pages(&self, page_size: usize) -> usize {
        let pages = |slots: usize| slots.div_ceil(page_size);
        let longest = |numbers: &[usize]| numbers.iter().copied().max().unwrap_or(0);
        [
            pages(longest(&self.prefill)),
            pages(longest(&self.contexts) + self.tokens),
            pages(BESIDE + self.tokens) * longest(&self.sequences),
            pages(FILL),
        ]
        .into_iter()
        .fold(1, usize::max)
    }
}

/// What an engine's configuration asks of a GPU.
pub fn cuda_options(engine: &EngineConfig) -> CudaOptions {
    CudaOptions {
        libcuda: engine.libcuda.clone(),
        kv_tokens: engine.kv_tokens,
        page_size: engine.page_size,
        embeds: engine.embeds,
        batch_tokens: engine.batch_tokens,
        kv: engine.kv_cache,
    }
}

/// A backend of its own, without a server around it.
pub struct Bare {
    backend: Box<dyn Backend>,
    /// Bytes of this machine's memory that the packed weights take; none: they lie on a GPU.
    packed: Option<usize>,
    work: Work,
    page_size: usize,
    batch_tokens: usize,
    outcome: Outcome,
}

impl Bare {
    /// Loads the backend as a server would, with as many pages as `steps` need: those that [fit](Steps::fit).
    pub fn load(
        model: &Arc<Model>,
        engine: &EngineConfig,
        crew: Arc<Crew>,
        steps: &Steps,
    ) -> Result<Bare, BenchError> {
        let page_size = engine.page_size as usize;
        let pages = steps.pages(page_size) as u32;
        let &EngineConfig { page_size: slots, batch_tokens, kv_cache: kv, .. } = engine;
        let on_processor = || {
            let options = CpuOptions {
                pages: Some(pages),
                page_size: slots,
                embeds: 1,
                batch_tokens,
                kv,
                exact: false,
            };
            let cpu = Cpu::load(model.clone(), options, crew).map_err(NotLoaded::Cpu)?;
            let packed = cpu.weight_bytes();
            Ok::<(Box<dyn Backend>, _), NotLoaded>((Box::new(cpu), Some(packed)))
        };
        let (backend, packed) = match engine.backend {
            Some(Which::Cuda) => {
                let options =
                    CudaOptions { kv_tokens: Some(pages * slots), embeds: 1, ..cuda_options(engine) };
                let cuda = Cuda::load(model, &options).map_err(NotLoaded::Cuda).map_err(BenchError::Load)?;
                (Box::new(cuda) as Box<dyn Backend>, None)
            }
            _ => on_processor().map_err(BenchError::Load)?,
        };
        Ok(Bare {
            work: Work::of(&model.gguf, &model.shape, engine.page_size, engine.kv_cache),
            backend,
            packed,
            page_size,
            batch_tokens: engine.batch_tokens as usize,
            outcome: Outcome::default(),
        })
    }

    pub fn device(&self) -> &str {
        &self.backend.info().device
    }

    /// Bytes of this machine's memory that the weights take as the backend keeps them.
    pub fn packed_bytes(&self) -> Option<usize> {
        self.packed
    }

    /// Prompts of these lengths, the first token after each included.
    pub fn prefill(&mut self, steps: &Steps, roof: Roof) -> Result<Vec<Measure>, BenchError> {
        let mut measures = Vec::new();
        let roof = self.work.roof(roof);
        for &length in &steps.prefill {
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
            // Where nobody knows how much is multiplied at most, a prompt has no share.
            measures.push(if roof.int8.is_finite() { measure.under(length as f64 / ideal) } else { measure });
        }
        Ok(measures)
    }

    /// One sequence behind contexts of these lengths.
    pub fn decode(&mut self, steps: &Steps, roof: Roof) -> Result<Vec<Measure>, BenchError> {
        let mut measures = Vec::new();
        for &context in &steps.contexts {
            let label = format!("one sequence at context {context}");
            measures.push(self.together(format!("decode.{context}"), label, 1, context, steps, roof)?);
        }
        Ok(measures)
    }

    /// So many sequences at once, each behind [`BESIDE`] slots.
    pub fn sequences(&mut self, steps: &Steps, roof: Roof) -> Result<Vec<Measure>, BenchError> {
        let mut measures = Vec::new();
        for &count in &steps.sequences {
            let label = format!("{count} sequences at context {BESIDE}, together");
            let name = format!("sequences.{count}");
            measures.push(self.together(name, label, count, BESIDE, steps, roof)?);
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
        let roof = self.work.roof(roof);
        let ideal: f64 = batches.iter().map(|parts| roof.seconds(self.work.needs(parts))).sum();
        let tokens = (count * steps.tokens) as f64;
        let samples = steps.effort.sample(|| {
            let started = Instant::now();
            for parts in &batches {
                self.run(parts, per)?;
            }
            Ok::<_, BenchError>(tokens / started.elapsed().as_secs_f64())
        })?;
        let measure = Measure::of(name, label, Unit::TOKENS_PER_S, &samples);
        // Where nobody knows how fast is read at most, what decodes has no share.
        Ok(if roof.read.is_finite() { measure.under(tokens / ideal) } else { measure })
    }

    /// A prompt in chunks as long as batches may be. A server whose chunks would take long (`engine::engine`) cuts it finer.
    fn chunks(&self, length: usize) -> Vec<Part> {
        let ends =
            (0..length).step_by(self.batch_tokens).map(|from| (from, length.min(from + self.batch_tokens)));
        ends.map(|(from, len)| Part { rows: len - from, len, outputs: usize::from(len == length) }).collect()
    }

    /// Gives the first `pages` pages contents.
    fn fill(&mut self, pages: usize) -> Result<(), BenchError> {
        let real = FILL.div_ceil(self.page_size);
        for chunk in self.chunks(real * self.page_size) {
            self.run(&[chunk], 0)?;
        }
        for page in real..pages {
            let (from, to) = (PageId((page % real) as u32), PageId(page as u32));
            self.backend.copy_page(from, to).map_err(BenchError::Fault)?;
        }
        Ok(())
    }

    /// Runs one batch; sequence number n has its pages from `n * per` on.
    fn run(&mut self, parts: &[Part], per: usize) -> Result<(), BenchError> {
        let sequences = parts.iter().enumerate().map(|(n, part)| self.sequence(*part, n * per, n)).collect();
        self.backend.run(&Batch { sequences }, &mut self.outcome).map_err(BenchError::Fault)
    }

    /// The sequence number `number`, in the pages from `first` on.
    fn sequence(&self, part: Part, first: usize, number: usize) -> Sequence {
        let vocab = self.backend.info().vocab;
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
    use crate::model::quant::Quant;
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
        let model = Toy::of(Quant::Q4_1).model();
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
        assert!(measures[4].label.contains("context 64") && measures[5].label.contains("context 64"));

        // How fast floats are multiplied nobody has measured.
        let floats = Toy::of(Quant::F32).model();
        let mut bare = Bare::load(&floats, &engine, Crew::threads(2), &steps).expect("it fits");
        let prefill = bare.prefill(&steps, roof).expect("no fault");
        assert!(prefill.iter().all(|measure| measure.share.is_none()), "{prefill:?}");
        let decode = bare.decode(&steps, roof).expect("no fault");
        assert!(decode.iter().all(|measure| measure.share.is_some()), "{decode:?}");
        // Nor how fast weights are read that lie in a cache.
        let decode = bare.decode(&steps, Roof { read: f64::INFINITY, ..roof }).expect("no fault");
        assert!(decode.iter().all(|measure| measure.share.is_none()), "{decode:?}");
    }

    /// The story: what did not fit was dropped in silence, after its pages had been asked for.
    #[test]
    fn a_figure_without_room_is_left_out_by_a_sentence() {
        let mut steps = Steps {
            prefill: vec![512, 2048],
            contexts: vec![2000, 4096],
            sequences: vec![1, 16, 300],
            tokens: 16,
            effort: Effort::USUAL,
        };
        // One sequence behind 64 slots takes 5 pages, one behind 2,000 takes 126.
        let room = Room { context: 2048, batch_tokens: 256, page_size: 16, page_bytes: 1 << 20, free: None };
        let left_out = steps.fit(&room);
        assert_eq!(
            left_out,
            [
                "decode.4096 is left out: the model's context has 2048 tokens, not 4096.",
                "sequences.300 is left out: a batch has 256 rows, one for each sequence.",
            ]
        );
        assert_eq!(
            (&steps.prefill, &steps.contexts, &steps.sequences),
            (&vec![512, 2048], &vec![2000], &vec![1, 16])
        );
        assert_eq!(steps.pages(16), 2048 / 16, "nothing is sized by what is left out");
        let left_out = steps.fit(&Room { free: Some(100 << 20), ..room });
        let said = "its keys and values take 132 MB, and 104 MB are free beside the weights";
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        assert!(left_out[1].starts_with("decode.2000 ") && left_out[1].contains(said), "{left_out:?}");
        assert_eq!((&steps.prefill, &steps.sequences), (&vec![512], &vec![1, 16]));
        let left_out = steps.fit(&Room { context: 63, ..room });
        assert!(left_out.len() == 3 && steps.is_empty(), "{left_out:?}");
    }
}
