//! `tartlet synth`: a model file of a real shape whose weights are random: what can be measured where no real one is at
//! hand.
//!
//! Owns: the order of what is written, and how far it is. Never: what stands in it (`header.rs`, `fill.rs`), of which shape
//! (`shapes.rs`), nor the file's name while it is not whole (`part.rs`).

mod fill;
mod header;
mod part;
mod shapes;

use crate::limits::SYNTH_BYTES;
use crate::model::Quant;
use fill::{Filler, Random};
use header::padding;
use part::Part;
use shapes::{Contents, PATTERNS, Pattern, Tensor};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks of the bar.
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR: usize = 30;

/// What the command line asks for.
pub struct Options {
    pub shape: String,
    pub quant: String,
    pub seed: u64,
    pub out: PathBuf,
    /// Whether a file that is there is replaced.
    pub force: bool,
}

/// Why there is no file. `Display` is one sentence.
#[derive(Debug)]
pub enum SynthError {
    /// The command line's fault.
    Option(String),
    /// A file that cannot be used, and why.
    File(PathBuf, String),
}

impl fmt::Display for SynthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SynthError::Option(sentence) => f.write_str(sentence),
            SynthError::File(path, why) => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl std::error::Error for SynthError {}

/// Writes the file; gives a line about it.
pub fn run(options: &Options) -> Result<String, SynthError> {
    let Options { shape, quant, seed, out, force } = options;
    let pattern = Pattern::named(shape).ok_or_else(|| {
        let known = PATTERNS.map(|pattern| pattern.name).join(", ");
        SynthError::Option(format!("--shape {shape} is none of {known}."))
    })?;
    let format = Quant::ALL.into_iter().find(|known| known.to_string().eq_ignore_ascii_case(quant));
    let format = format.ok_or_else(|| {
        let known = Quant::ALL.map(|known| known.to_string().to_lowercase()).join(", ");
        SynthError::Option(format!("--quant {quant} is none of {known}."))
    })?;
    let tensors = pattern.tensors(format);
    let header = header::header(pattern, format, *seed, &tensors);
    let bytes =
        header.len() + tensors.iter().map(|tensor| tensor.bytes() + padding(tensor.bytes())).sum::<usize>();
    let mut part = Part::create(out, *force)?;
    let mut progress = Progress::new(out, bytes);
    let mut put = |some: &[u8]| {
        part.put(some, bytes)?;
        progress.add(some.len());
        Ok(())
    };
    put(&header)?;
    let mut buffer = Vec::new();
    for (number, tensor) in tensors.iter().enumerate() {
        let mut random = Random::new(*seed, number);
        each_part(pattern, tensor, &mut random, &mut buffer, &mut put)?;
        put(&[0; 32][..padding(tensor.bytes())])?;
    }
    progress.tell("bringing it to the disk …");
    part.finish()?;
    progress.tell("");
    let head = tensors[usize::from(!pattern.tied_head)].quant;
    let head = if head == format { String::new() } else { format!(", its head in {head}") };
    Ok(format!(
        "{}: the shape of {} in {format}{head}, random weights of seed {seed}, {} MB\n",
        out.display(),
        pattern.of,
        bytes / 1_000_000
    ))
}

/// Hands out a tensor's bytes, some at a time.
fn each_part(
    pattern: &Pattern,
    tensor: &Tensor,
    random: &mut Random,
    buffer: &mut Vec<u8>,
    mut put: impl FnMut(&[u8]) -> Result<(), SynthError>,
) -> Result<(), SynthError> {
    buffer.clear();
    match tensor.contents {
        Contents::Factors => {
            let factors = pattern.factors(pattern.stretch.unwrap_or(1.0));
            buffer.extend(factors.iter().flat_map(|factor| factor.to_le_bytes()));
            put(buffer)
        }
        Contents::Gains => {
            buffer.resize(tensor.bytes(), 0);
            fill::gains(buffer, random);
            put(buffer)
        }
        Contents::Values(deviation) => {
            let filler = Filler::new(tensor.quant, deviation);
            let row = tensor.quant.row_bytes(tensor.row);
            let rows = (SYNTH_BYTES / row).max(1);
            for first in (0..tensor.rows).step_by(rows) {
                buffer.resize(row * rows.min(tensor.rows - first), 0);
                filler.fill(buffer, random);
                put(buffer)?;
            }
            Ok(())
        }
    }
}

/// How far it is: a bar on a terminal, else one line at the start.
struct Progress {
    total: usize,
    done: usize,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    fn new(out: &Path, total: usize) -> Progress {
        let progress = Progress { total, done: 0, shown: None, terminal: io::stderr().is_terminal() };
        if !progress.terminal {
            let _ = writeln!(io::stderr(), "writing {} MB to {}", total / 1_000_000, out.display());
        }
        progress
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes;
        if self.shown.is_none_or(|shown| shown.elapsed() >= SHOWN_EVERY) {
            self.shown = Some(Instant::now());
            let full = self.done * BAR / self.total;
            let mb = |bytes: usize| bytes / 1_000_000;
            self.tell(&format!(
                "[{}{}] {:>3} %, {} of {} MB",
                "#".repeat(full),
                ".".repeat(BAR - full),
                self.done * 100 / self.total,
                mb(self.done),
                mb(self.total)
            ));
        }
    }

    /// Over what was said before.
    fn tell(&self, line: &str) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{line}"); // only a courtesy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use std::fs::{self, File};
    use std::io::{Seek, SeekFrom};

    /// As many as the published models have.
    #[test]
    fn every_shape_has_its_parameters() {
        let counts = PATTERNS.map(|pattern| {
            let of_model = |tensor: &Tensor| tensor.contents != Contents::Factors;
            let tensors = pattern.tensors(Quant::BF16);
            tensors
                .iter()
                .filter(|tensor| of_model(tensor))
                .map(|tensor| tensor.row * tensor.rows)
                .sum::<usize>()
        });
        assert_eq!(counts, [134_515_008, 1_235_814_400, 8_030_261_248, 8_190_735_360]);
    }

    /// All that a model is refused for lies in the header and in the vectors: the matrices are holes of the file here.
    #[test]
    fn every_shape_opens_in_every_format() {
        let path = std::env::temp_dir().join(format!("tartlet-synth-{}.gguf", std::process::id()));
        for pattern in &PATTERNS {
            for quant in Quant::ALL {
                let tensors = pattern.tensors(quant);
                let header = header::header(pattern, quant, 0, &tensors);
                let mut file = File::create(&path).expect("created");
                file.write_all(&header).expect("written");
                let mut at = header.len() as u64;
                for tensor in &tensors {
                    if !matches!(tensor.contents, Contents::Values(_)) {
                        file.seek(SeekFrom::Start(at)).expect("sought");
                        let put = |bytes: &[u8]| {
                            file.write_all(bytes).expect("written");
                            Ok(())
                        };
                        each_part(pattern, tensor, &mut Random::new(0, 0), &mut Vec::new(), put)
                            .expect("made");
                    }
                    at += (tensor.bytes() + padding(tensor.bytes())) as u64;
                }
                file.set_len(at).expect("grown");
                let model = Model::open(&path, None, None);
                let model = model.unwrap_or_else(|error| panic!("{} in {quant}: {error}", pattern.name));
                assert_eq!(model.shape.tied_head, pattern.tied_head);
                assert!(!model.chat.stops.is_empty());
                let text = "the ox is";
                let ids = model.tokenizer.encode(text);
                let decoded = model.tokenizer.decode(&ids).expect("they are its own");
                assert!(decoded == text && ids.len() < text.len(), "{ids:?}");
            }
        }
        fs::remove_file(&path).expect("it was made here");
    }

    /// Of Llama 3.1: the fast pairs keep their angles, the slow ones turn 8 times slower.
    #[test]
    fn the_slow_pairs_are_stretched() {
        let factors = PATTERNS[2].factors(8.0);
        assert!(factors.len() == 64 && factors[0] == 1.0 && factors[63] == 8.0);
        assert!(factors.is_sorted(), "{factors:?}");
        // As the published files have them: 29 pairs are fast, 29 slow.
        assert!(factors[28] == 1.0 && (factors[29] - 1.207_484).abs() < 1e-5, "{factors:?}");
        assert!(factors[34] < 8.0 && factors[35] == 8.0, "{factors:?}");
    }
}
