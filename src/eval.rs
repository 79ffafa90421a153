//! `tartlet eval`: how far our logits are from a golden file's, on the processor or a GPU.
//!
//! Owns: reading the golden file, feeding its prompts, and the comparison. Never: tokens of our own choice: every
//! step continues with the golden greedy token (teacher-forced), so one difference does not breed others.
//!
//! A golden file is a list of prompts: `text`, its token `ids`, and `steps`, each with the best tokens after what
//! was fed so far as `top` ([id, logit], descending) and the `logsumexp` of all logits. Step 0 follows the prompt,
//! step n + 1 the n-th `greedy` token. A `name` is welcome; other fields are passed over.

use crate::backend::choice::NotLoaded;
use crate::backend::cpu::{Cpu, CpuOptions, KvFormat};
use crate::backend::crew::Crew;
use crate::backend::cuda::{Cuda, CudaOptions};
use crate::backend::{
    Backend, Batch, DrawKey, Fault, Input, Mask, Outcome, PageId, Sequence, TokenId, Which,
};
use crate::limits;
use crate::model::{Model, ModelError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens per KV page and rows per batch while evaluating: as a server would have them.
const PAGE_SIZE: u32 = 16;
const BATCH_TOKENS: u32 = 256;
/// A step is clear if its best logit leads the second by more than this.
const CLEAR_GAP: f32 = 0.5;
/// What a backend that serves keeps to: the golden ids, of every clear step the golden token, and no more than this many nats.
const MEAN_KL_MOST: f64 = 0.006;

/// How the logits compare, of one prompt or of all.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    /// Whether our tokenizer gives the golden ids.
    pub ids_equal: bool,
    /// Largest difference over the listed tokens of all steps.
    pub max_logit_diff: f64,
    /// Share of the steps whose best token is the golden one.
    pub top1: f64,
    /// The same among the clear steps, whose golden best leads the second by more than 0.5; 1 if there are none.
    pub top1_clear: f64,
    pub clear_steps: usize,
    /// Mean over the steps of KL(golden || ours), in nats, over the listed tokens and one bucket for all others.
    pub mean_kl: f64,
    pub steps: usize,
}

/// What `tartlet eval` prints. `Display` is one JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub scores: Scores,
    /// What computed the logits.
    pub device: String,
    pub prompts: Vec<PromptReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PromptReport {
    pub name: String,
    #[serde(flatten)]
    pub scores: Scores,
}

impl Report {
    /// Whether the logits are known to be as near as those of a backend that serves must be: if not, why, a sentence.
    pub fn shortfall(&self) -> Option<String> {
        let Scores { ids_equal, top1_clear, clear_steps, mean_kl, .. } = self.scores;
        if !ids_equal {
            let differ = self.prompts.iter().filter(|prompt| !prompt.scores.ids_equal);
            let differ: Vec<&str> = differ.map(|prompt| prompt.name.as_str()).collect();
            return Some(format!(
                "ids_equal is false: the model's tokenizer gives other ids than the golden file has, of {}: take the golden file \
                 of this model.",
                differ.join(", ")
            ));
        }
        if clear_steps == 0 {
            return Some(format!(
                "clear_steps is 0: nothing is known of {}; take more prompts or steps.",
                self.device
            ));
        }
        let near = top1_clear == 1.0 && mean_kl <= MEAN_KL_MOST;
        (!near).then(|| {
            format!(
                "top1_clear is {top1_clear} and must be 1, mean_kl is {mean_kl:.4} and must be at most {MEAN_KL_MOST}: {} does not \
                 compute this model as it should.",
                self.device
            )
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?)
    }
}

/// Why there is no report. `Display` is one sentence.
#[derive(Debug)]
pub enum EvalError {
    Model(ModelError),
    Load(NotLoaded),
    /// The golden file cannot be read: path and reason.
    File(String, std::io::Error),
    /// The golden file is not of the form above: path and reason.
    Form(String, String),
    Fault(Fault),
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Model(error) => error.fmt(f),
            EvalError::Load(error) => error.fmt(f),
            EvalError::File(path, error) => write!(f, "cannot read the golden file {path}: {error}"),
            EvalError::Form(path, what) => write!(f, "{path} is not a golden file: {what}"),
            EvalError::Fault(fault) => write!(f, "the evaluation stopped: {fault}"),
        }
    }
}

impl std::error::Error for EvalError {}

impl EvalError {
    /// Whether the device is at fault, and neither the model nor the golden file.
    pub fn is_of_device(&self) -> bool {
        match self {
            EvalError::Load(error) => error.is_of_device(),
            EvalError::Fault(_) => true,
            _ => false,
        }
    }
}

/// How the logits are computed, and of what.
#[derive(Clone, Debug)]
pub struct Options {
    pub backend: Which,
    /// The CUDA driver's library; none: where it is usually found.
    pub libcuda: Option<PathBuf>,
    /// Exact f32 weights and plain Rust, on the processor.
    pub plain: bool,
    pub kv: KvFormat,
    /// The prompts by name; none: all.
    pub prompts: Vec<String>,
    /// The first so many steps of each; none: all.
    pub steps: Option<usize>,
}

impl Options {
    /// All of a golden file on the processor.
    pub fn on_processor(plain: bool, kv: KvFormat) -> Options {
        Options { backend: Which::Cpu, libcuda: None, plain, kv, prompts: Vec::new(), steps: None }
    }

    /// All of a golden file as a server computes it.
    pub fn as_served(backend: Which, libcuda: Option<PathBuf>) -> Options {
        Options { backend, libcuda, ..Options::on_processor(false, KvFormat::F16) }
    }
}

/// A model and a golden file that have been read.
pub struct Evaluation {
    model: Arc<Model>,
    prompts: Vec<Prompt>,
    /// Of the golden file, for sentences.
    path: String,
}

impl Evaluation {
    /// Reads the model file and what the options leave of the golden file. No device is asked.
    pub fn open(model: &Path, golden: &Path, options: &Options) -> Result<Evaluation, EvalError> {
        let path = golden.display().to_string();
        let prompts = read(golden).map_err(|error| EvalError::File(path.clone(), error))?;
        let prompts = parse(&prompts).and_then(|prompts| chosen(prompts, options));
        let prompts = prompts.map_err(|what| EvalError::Form(path.clone(), what))?;
        let model = Arc::new(Model::open(model, None, None).map_err(EvalError::Model)?);
        Ok(Evaluation { model, prompts, path })
    }

    /// Compares.
    pub fn run(self, options: &Options) -> Result<Report, EvalError> {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        evaluate(self.model, &self.prompts, options, Crew::threads(threads)).map_err(|error| match error {
            Stop::Form(what) => EvalError::Form(self.path, what),
            Stop::Load(error) => EvalError::Load(error),
            Stop::Fault(fault) => EvalError::Fault(fault),
        })
    }
}

/// Evaluates the model file against the golden file.
pub fn run(model: &Path, golden: &Path, options: &Options) -> Result<Report, EvalError> {
    Evaluation::open(model, golden, options)?.run(options)
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limits::GOLDEN_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits::GOLDEN_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {} bytes", limits::GOLDEN_BYTES)));
    }
    Ok(bytes)
}

/// A prompt as the file has it: what is missing is told by name in [`parse`].
#[derive(Deserialize)]
struct RawPrompt {
    name: Option<String>,
    text: Option<String>,
    ids: Option<Vec<u32>>,
    greedy: Option<Vec<u32>>,
    steps: Option<Vec<RawStep>>,
}

#[derive(Deserialize)]
struct RawStep {
    top: Option<Vec<(u32, f64)>>,
    logsumexp: Option<f64>,
}

struct Prompt {
    name: String,
    text: String,
    ids: Vec<u32>,
    /// What to feed after the prompt: one token fewer than there are steps.
    fed: Vec<u32>,
    steps: Vec<Step>,
}

struct Step {
    top: Vec<(u32, f64)>, // descending, at least one
    logsumexp: f64,
}

fn parse(bytes: &[u8]) -> Result<Vec<Prompt>, String> {
    let raw: Vec<RawPrompt> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if raw.is_empty() {
        return Err("it has no prompts".into());
    }
    raw.into_iter().enumerate().map(|(number, raw)| prompt(number, raw)).collect()
}

fn prompt(number: usize, raw: RawPrompt) -> Result<Prompt, String> {
    let name = raw.name.unwrap_or_else(|| format!("prompt {number}"));
    let lacks =
        |field: &str| format!("`{name}` lacks the field `{field}`; make the file again with the oracle");
    let steps = raw.steps.ok_or_else(|| lacks("steps"))?.into_iter().enumerate().map(|(step, raw)| {
        let top =
            raw.top.filter(|top| !top.is_empty()).ok_or_else(|| lacks(&format!("steps[{step}].top")))?;
        let logsumexp = raw.logsumexp.ok_or_else(|| lacks(&format!("steps[{step}].logsumexp")))?;
        Ok(Step { top, logsumexp })
    });
    let steps = steps.collect::<Result<Vec<Step>, String>>()?;
    if steps.is_empty() {
        return Err(format!("`{name}` has no steps"));
    }
    // The greedy token of a step is the first of its list: the field repeats it.
    let mut fed = raw.greedy.unwrap_or_else(|| steps.iter().map(|step| step.top[0].0).collect());
    if fed.len() + 1 < steps.len() {
        let (have, want) = (fed.len(), steps.len());
        return Err(format!("`{name}` has {have} greedy tokens for {want} steps; all but the last need one"));
    }
    fed.truncate(steps.len() - 1);
    let text = raw.text.ok_or_else(|| lacks("text"))?;
    let ids = raw.ids.ok_or_else(|| lacks("ids"))?;
    Ok(Prompt { name, text, ids, fed, steps })
}

/// What the options leave of the prompts.
fn chosen(mut prompts: Vec<Prompt>, options: &Options) -> Result<Vec<Prompt>, String> {
    if let Some(absent) =
        options.prompts.iter().find(|name| prompts.iter().all(|prompt| prompt.name != **name))
    {
        return Err(format!("it has no prompt `{absent}`"));
    }
    prompts.retain(|prompt| options.prompts.is_empty() || options.prompts.contains(&prompt.name));
    if let Some(steps) = options.steps {
        for prompt in &mut prompts {
            prompt.steps.truncate(steps.max(1));
            prompt.fed.truncate(prompt.steps.len() - 1);
        }
    }
    Ok(prompts)
}

enum Stop {
    Form(String),
    Load(NotLoaded),
    Fault(Fault),
}

fn evaluate(
    model: Arc<Model>,
    prompts: &[Prompt],
    options: &Options,
    crew: Arc<Crew>,
) -> Result<Report, Stop> {
    let ids: Vec<Vec<TokenId>> = prompts.iter().map(|prompt| model.tokenizer.encode(&prompt.text)).collect();
    let mut longest = 0;
    for (prompt, ids) in prompts.iter().zip(&ids) {
        if ids.is_empty() {
            return Err(Stop::Form(format!("`{}` has an empty text", prompt.name)));
        }
        let listed = prompt.steps.iter().flat_map(|step| step.top.iter().map(|(id, _)| id));
        if let Some(id) = listed.chain(&prompt.fed).find(|id| **id as usize >= model.shape.vocab) {
            let (name, vocab) = (&prompt.name, model.shape.vocab);
            return Err(Stop::Form(format!("`{name}` names token {id}, but the model has {vocab} tokens")));
        }
        longest = longest.max(ids.len() + prompt.fed.len());
    }
    let pages = longest.div_ceil(PAGE_SIZE as usize) as u32;
    let mut measured = Measured::load(model, pages, options, crew).map_err(Stop::Load)?;

    let mut all = Tally::default();
    let mut reports = Vec::with_capacity(prompts.len());
    for (prompt, ids) in prompts.iter().zip(&ids) {
        let ids_differ = !ids.iter().map(|id| id.0).eq(prompt.ids.iter().copied());
        let mut tally = Tally { ids_differ, ..Tally::default() };
        let fed: Vec<TokenId> = ids.iter().copied().chain(prompt.fed.iter().map(|&id| TokenId(id))).collect();
        let mut steps = prompt.steps.iter();
        let tell = |logits: &[f32]| {
            if let Some(step) = steps.next() {
                tally.add(step, logits);
            }
        };
        measured.logits_after(&fed, ids.len() - 1, tell).map_err(Stop::Fault)?;
        all.join(&tally);
        reports.push(PromptReport { name: prompt.name.clone(), scores: tally.scores() });
    }
    Ok(Report { scores: all.scores(), device: measured.device().to_owned(), prompts: reports })
}

/// The backend whose logits are measured: each has a way to hand them out that no guest has.
enum Measured {
    Cpu(Box<Cpu>),
    Cuda(Box<Cuda>),
}

impl Measured {
    fn load(
        model: Arc<Model>,
        pages: u32,
        options: &Options,
        crew: Arc<Crew>,
    ) -> Result<Measured, NotLoaded> {
        let (page_size, batch_tokens, kv) = (PAGE_SIZE, BATCH_TOKENS, options.kv);
        match options.backend {
            Which::Cpu => {
                let exact = options.plain;
                let options =
                    CpuOptions { pages: Some(pages), page_size, embeds: 0, batch_tokens, kv, exact };
                let loaded = Cpu::load(model, options, crew).map_err(NotLoaded::Cpu)?;
                Ok(Measured::Cpu(Box::new(loaded)))
            }
            Which::Cuda => {
                let (libcuda, kv_tokens) = (options.libcuda.clone(), Some(pages * PAGE_SIZE));
                let options = CudaOptions { libcuda, kv_tokens, page_size, embeds: 0, batch_tokens, kv };
                let loaded = Cuda::load(&model, &options).map_err(NotLoaded::Cuda)?;
                Ok(Measured::Cuda(Box::new(loaded)))
            }
        }
    }

    fn device(&self) -> &str {
        match self {
            Measured::Cpu(cpu) => &cpu.info().device,
            Measured::Cuda(cuda) => &cuda.info().device,
        }
    }

    /// Feeds a whole sequence and tells the logits of its rows from `first` on, in order. A batch's are dropped before the
    /// next is fed: all of a long prompt's would take gigabytes.
    fn logits_after(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        mut tell: impl FnMut(&[f32]),
    ) -> Result<(), Fault> {
        for rows in self.batches(tokens.len(), first) {
            let sequence = Sequence {
                pages: (0..rows.end.div_ceil(PAGE_SIZE as usize) as u32).map(PageId).collect(),
                len: rows.end as u32,
                inputs: tokens[rows.clone()].iter().map(|&token| Input::Token(token)).collect(),
                positions: rows.clone().map(|row| row as u32).collect(),
                mask: Mask::Causal,
                outputs: Vec::new(),
                draw: DrawKey { seed: 0, queue: 0, pass: 0 },
            };
            let wanted: Vec<usize> =
                rows.clone().filter(|row| *row >= first).map(|row| row - rows.start).collect();
            let batch = Batch { sequences: vec![sequence] };
            let logits = match self {
                Measured::Cpu(cpu) => cpu.run_with_logits(&batch, &wanted, &mut Outcome::default())?,
                Measured::Cuda(cuda) => cuda.run_with_logits(&batch, &wanted, &mut Outcome::default())?,
            };
            logits.iter().for_each(|logits| tell(logits));
        }
        Ok(())
    }

    /// Which rows go through together. On a GPU those behind the prompt come one by one, as a server decodes: other kernels
    /// take them. On the processor one path takes all, and the fewest batches are the fastest.
    fn batches(&self, rows: usize, first: usize) -> Vec<Range<usize>> {
        let together = match self {
            Measured::Cpu(_) => rows,
            Measured::Cuda(_) => first + 1,
        };
        let step = BATCH_TOKENS as usize;
        let prompt = (0..together).step_by(step).map(|begin| begin..together.min(begin + step));
        prompt.chain((together..rows).map(|row| row..row + 1)).collect()
    }
}

/// Sums over steps.
#[derive(Default)]
struct Tally {
    ids_differ: bool,
    steps: usize,
    top1: usize,
    clear: usize,
    top1_clear: usize,
    max_logit_diff: f64,
    kl: f64,
}

impl Tally {
    fn add(&mut self, step: &Step, logits: &[f32]) {
        let ours = |id: u32| f64::from(logits[id as usize]);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let best = logits.iter().position(|&logit| logit == largest);
        let right = best == Some(step.top[0].0 as usize);
        let clear = step.top.len() < 2 || step.top[0].1 - step.top[1].1 > f64::from(CLEAR_GAP);
        self.steps += 1;
        self.top1 += usize::from(right);
        self.clear += usize::from(clear);
        self.top1_clear += usize::from(right && clear);
        for &(id, golden) in &step.top {
            let diff = (ours(id) - golden).abs();
            self.max_logit_diff = if diff.is_nan() { f64::INFINITY } else { self.max_logit_diff.max(diff) };
        }

        let largest = f64::from(largest);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        let logsumexp = largest + sum.ln();
        let (mut kl, mut golden_rest, mut our_rest) = (0.0, 1.0, 1.0);
        for &(id, golden) in &step.top {
            let (p, q) = ((golden - step.logsumexp).exp(), (ours(id) - logsumexp).exp());
            kl += divergence(p, q);
            (golden_rest, our_rest) = (golden_rest - p, our_rest - q);
        }
        // The file's rounding may leave the rest a little below 0.
        self.kl += kl + divergence(golden_rest, our_rest);
    }

    fn join(&mut self, other: &Tally) {
        self.ids_differ |= other.ids_differ;
        self.steps += other.steps;
        self.top1 += other.top1;
        self.clear += other.clear;
        self.top1_clear += other.top1_clear;
        self.max_logit_diff = self.max_logit_diff.max(other.max_logit_diff);
        self.kl += other.kl;
    }

    fn scores(&self) -> Scores {
        let share = |part: usize, whole: usize| if whole == 0 { 1.0 } else { part as f64 / whole as f64 };
        Scores {
            ids_equal: !self.ids_differ,
            max_logit_diff: self.max_logit_diff,
            top1: share(self.top1, self.steps),
            top1_clear: share(self.top1_clear, self.clear),
            clear_steps: self.clear,
            mean_kl: self.kl / self.steps.max(1) as f64,
            steps: self.steps,
        }
    }
}

/// One term of KL(p || q); probabilities below 1e-12 count as that.
fn divergence(p: f64, q: f64) -> f64 {
    let (p, q) = (p.max(1e-12), q.max(1e-12));
    p * (p / q).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::toy::real_model;

    /// The demo model's report over the whole golden file.
    fn demo(options: Options) -> Report {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2-135m-q4_1.json");
        let report = run(&real_model(), &golden, &options).unwrap_or_else(|error| panic!("{error}"));
        assert!(report.scores.ids_equal && report.prompts.len() == 8, "{report}");
        report
    }

    #[test]
    fn the_plain_path_matches_the_golden_file() {
        let report = demo(Options::on_processor(true, KvFormat::F32));
        let Scores { max_logit_diff, top1_clear, mean_kl, .. } = report.scores;
        assert!(max_logit_diff <= 0.02 && top1_clear == 1.0 && mean_kl < 1e-5, "{report}");
    }

    /// The bar of the path that serves, with keys and values of each format.
    #[test]
    fn every_format_of_keys_and_values_keeps_the_quality_that_is_promised() {
        for kv in KvFormat::ALL {
            let report = demo(Options::on_processor(false, kv));
            let Scores { top1, .. } = report.scores;
            assert!(top1 >= 0.90 && report.shortfall().is_none(), "{}: {report}", kv.name());
        }
    }

    /// Eight formats in three files, written by PyPI `gguf` (tests/golden/kquants.py).
    #[test]
    fn every_format_gives_the_values_of_the_golden_file() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let (model, golden) = (folder.join("kquants-00001-of-00003.gguf"), folder.join("kquants.json"));
        for (plain, kv) in
            [(true, KvFormat::F32), (false, KvFormat::F32), (false, KvFormat::F16), (false, KvFormat::Q8)]
        {
            let report = run(&model, &golden, &Options::on_processor(plain, kv));
            let report = report.unwrap_or_else(|error| panic!("{error}"));
            let Scores { ids_equal, max_logit_diff, top1_clear, mean_kl, .. } = report.scores;
            assert!(ids_equal && top1_clear == 1.0, "{report}");
            // Weights of pure chance do not forgive 8-bit activations as those of a trained model do.
            let (diff, kl) = if plain { (1e-3, 1e-7) } else { (1.0, 0.01) };
            assert!(max_logit_diff <= diff && mean_kl <= kl, "{report}");
        }
    }

    #[test]
    fn what_a_golden_file_lacks_is_said() {
        let cases = [
            ("{}", "expected"),
            ("[]", "no prompts"),
            (r#"[{"name":"a"}]"#, "`a` lacks the field `steps`"),
            (r#"[{"steps":[{}]}]"#, "`prompt 0` lacks the field `steps[0].top`"),
            (r#"[{"steps":[{"top":[[1,2.0]]}]}]"#, "steps[0].logsumexp"),
            (r#"[{"steps":[]}]"#, "has no steps"),
            (r#"[{"steps":[{"top":[[1,2.0]],"logsumexp":3}]}]"#, "`text`"),
            (r#"[{"text":"x","steps":[{"top":[[1,2.0]],"logsumexp":3}]}]"#, "`ids`"),
        ];
        for (text, says) in cases {
            let said = parse(text.as_bytes()).err().unwrap_or_default();
            assert!(said.contains(says), "{text}: {said}");
        }
        let short = r#"[{"text":"x","ids":[1],"greedy":[],"steps":
            [{"top":[[1,2.0]],"logsumexp":3},{"top":[[1,2.0]],"logsumexp":3}]}]"#;
        assert!(parse(short.as_bytes()).err().unwrap_or_default().contains("0 greedy tokens for 2 steps"));
        let bare = short.replace(r#""greedy":[],"#, "");
        assert_eq!(parse(bare.as_bytes()).map(|prompts| prompts[0].fed.clone()), Ok(vec![1]));
    }

    #[test]
    fn scores_are_what_they_say() {
        let step = Step { top: vec![(2, 3.0), (0, 1.0)], logsumexp: (3f64.exp() + 1f64.exp() + 1.0).ln() };
        let mut tally = Tally::default();
        tally.add(&step, &[1.0, 0.0, 3.0]);
        let Scores { max_logit_diff, top1, top1_clear, mean_kl, .. } = tally.scores();
        assert!(max_logit_diff == 0.0 && top1 == 1.0 && top1_clear == 1.0 && mean_kl.abs() < 1e-12);
        tally.add(&step, &[3.5, 0.0, 3.0]);
        let Scores { max_logit_diff, top1, mean_kl, .. } = tally.scores();
        assert!(max_logit_diff == 2.5 && top1 == 0.5 && mean_kl > 0.1);
    }

    /// Strictness is of what is known: other ids, and no step that must come out so, are no pass.
    #[test]
    fn what_is_not_known_does_not_pass() {
        let all = |ids_differ: bool, clear: usize| {
            let tally = Tally { ids_differ, steps: 2, top1: 2, clear, top1_clear: clear, ..Tally::default() };
            let prompts = vec![PromptReport { name: "fox".to_owned(), scores: tally.scores() }];
            Report { scores: tally.scores(), device: "a device".to_owned(), prompts }.shortfall()
        };
        assert_eq!(all(false, 1), None);
        assert!(
            all(false, 0)
                .is_some_and(|why| why.starts_with("clear_steps is 0: nothing is known of a device"))
        );
        assert!(
            all(true, 2).is_some_and(|why| why.starts_with("ids_equal is false") && why.contains("of fox:"))
        );
    }
}
