//! Thousands of damaged model files: each loads or is refused by one sentence. None panics, none hangs, none takes
//! memory beyond a small multiple of its size, be it to read the file or for the weights in it.
//!
//! Owns: the damage, and the count of every byte that is allocated. Never: files of a kind that no damage makes; what
//! each refusal says is tested beside the code that says it.

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/models.rs"]
mod models;

use gguf::Random;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tartlet::backend::cpu::{Cpu, CpuOptions, KvFormat};
use tartlet::backend::crew::Crew;
use tartlet::backend::{
    Backend, Batch, DrawKey, Input, Mask, Outcome, Output, PageId, Sampler, Sequence, TokenId,
};
use tartlet::model::{Gguf, Model};

/// Damaged files.
const CASES: usize = 6000;
/// The bound on the memory that reading takes: so many bytes for each of the files, and a base for what has one size
/// (the tables of pre-tokenizers and letters, the renderer of templates).
const BYTES_PER_BYTE: usize = 4;
const BASE_BYTES: usize = 128 << 10;
/// The bound on the packed weights, which no allocator counts: so many bytes for each of the files. Sixteen rows stand
/// together, so a matrix of one row takes sixteen times its own; and a group is filled up to 64 bytes, twice the 32 of
/// sixteen halves.
const PACKED_PER_BYTE: usize = 16 * 2;
/// The same of exact weights: the 18 bytes of 32 values become 128.
const EXACT_PER_BYTE: usize = 16 * 8;
/// After so long without a next case the test says which one hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The system's allocator, counting.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A model to damage.
struct Good {
    files: BTreeMap<String, Vec<u8>>, // by name
    /// In each file, where the names of keys and tensors end: lengths, kinds and values follow.
    anchors: BTreeMap<String, Vec<usize>>,
    /// In each file, where the tensors' records say where their data begins, in their order.
    offsets: BTreeMap<String, Vec<usize>>,
    /// Bytes of the largest tensor.
    largest: usize,
}

impl Good {
    fn new(files: BTreeMap<String, Vec<u8>>, folder: &Path) -> Good {
        files.iter().for_each(|(name, bytes)| write(folder, name, bytes));
        let path = folder.join(files.keys().next().expect("a file"));
        let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Where a name ends, if it is in this file.
        let end = |bytes: &[u8], name: &str| {
            let text = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
            bytes.windows(text.len()).position(|found| found == text).map(|at| at + text.len())
        };
        let tensors = || gguf.tensors().map(|tensor| tensor.name);
        let anchors =
            |bytes: &[u8]| gguf.keys().chain(tensors()).filter_map(|name| end(bytes, name)).collect();
        let offsets = |bytes: &[u8]| {
            // After the name: the number of dimensions, each of them, the format.
            let past = |at: usize| at + 4 + 8 * usize::from(bytes[at]) + 4;
            tensors().filter_map(|name| end(bytes, name)).map(past).collect()
        };
        let of_each = |what: &dyn Fn(&[u8]) -> Vec<usize>| {
            files.iter().map(|(name, bytes)| (name.clone(), what(bytes))).collect()
        };
        let (anchors, offsets) = (of_each(&anchors), of_each(&offsets));
        let largest = gguf.tensors().filter_map(|tensor| tensor.bytes).max().expect("a tensor");
        Good { files, anchors, offsets, largest }
    }

    /// The first file, all of whose tensors lie in the bytes of one: small for what it says.
    fn hollow(&self) -> Vec<u8> {
        let (name, bytes) = self.files.first_key_value().expect("a file");
        let (mut bytes, offsets) = (bytes.clone(), &self.offsets[name]);
        offsets.iter().for_each(|&at| bytes[at..at + 8].fill(0));
        let data = (offsets.last().expect("a tensor") + 8).next_multiple_of(32);
        bytes.truncate(data + self.largest);
        bytes
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Some bytes of `bytes`, mostly few of them.
fn region(bytes: &[u8], random: &mut Random) -> Range<usize> {
    let start = random.below(bytes.len());
    let most = [8, 64, 4096][random.below(3)];
    start..(start + 1 + random.below(most)).min(bytes.len())
}

/// A number that somebody's arithmetic may not expect.
fn large(len: usize, random: &mut Random) -> u64 {
    let special = [0, 1, 31, 255, 1 << 16, 1 << 31, u64::from(u32::MAX), 1 << 40, 1 << 61, 1 << 62, 1 << 63];
    match random.below(4) {
        0 => u64::MAX - random.below(64) as u64,
        1 => (len as u64).wrapping_add(random.below(64) as u64).wrapping_sub(32),
        2 => 1 << random.below(64),
        _ => special[random.below(special.len())],
    }
}

/// Damages a file once.
fn damage(bytes: &mut Vec<u8>, anchors: &[usize], donor: &[u8], random: &mut Random) {
    // Most damage goes where structure is: before the end of the last tensor's record.
    let header = (anchors.iter().max().map_or(0, |at| at + 64)).min(bytes.len());
    let anywhere = |random: &mut Random, len: usize| {
        let rarely = random.below(8) == 0;
        random.below(if rarely { len } else { header.min(len) })
    };
    match random.below(12) {
        0 | 1 => {
            let at = anywhere(random, bytes.len());
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8));
        }
        2 => {
            let at = anywhere(random, bytes.len());
            let value = random.next() as u8;
            bytes.iter_mut().skip(at).take(1 + random.below(8)).for_each(|byte| *byte = value);
        }
        // A word anywhere, or after a name: its kind, its length, its value, a dimension, an offset.
        3..=6 => {
            let at = match anchors {
                [] => anywhere(random, bytes.len()),
                anchors => {
                    anchors[random.below(anchors.len())] + [0, 4, 4, 8, 12, 16, 20, 24][random.below(8)]
                }
            };
            let word = large(bytes.len(), random).to_le_bytes();
            let len = [4, 8][random.below(2)];
            bytes.iter_mut().skip(at).zip(&word[..len]).for_each(|(byte, &new)| *byte = new);
        }
        // The counts of tensors and of metadata.
        7 => {
            let word = large(bytes.len().min(300), random).to_le_bytes();
            bytes.iter_mut().skip([8, 16][random.below(2)]).zip(word).for_each(|(byte, new)| *byte = new);
        }
        8 => bytes.truncate(anywhere(random, bytes.len())),
        // A region goes, or comes twice, or a foreign one comes in.
        9 => {
            let cut = region(&bytes[..header.min(bytes.len())], random);
            bytes.drain(cut);
        }
        10 => {
            let source = if random.below(2) == 0 { donor } else { &bytes[..] };
            let piece = source[region(source, random)].to_vec();
            let at = anywhere(random, bytes.len());
            match random.below(2) {
                0 => drop(bytes.splice(at..at, piece)),
                _ => bytes.iter_mut().skip(at).zip(piece).for_each(|(byte, new)| *byte = new),
            }
        }
        _ => {
            let (one, other) = (region(bytes, random), region(bytes, random));
            for (a, b) in one.zip(other) {
                bytes.swap(a, b);
            }
        }
    }
}

/// Damages what a file says, not its structure: letters of names and texts, values, dimensions, weights.
fn distort(bytes: &mut [u8], anchors: &[usize], random: &mut Random) {
    let header = (anchors.iter().max().map_or(0, |at| at + 64)).min(bytes.len());
    let number = match random.below(4) {
        0 => f32::to_bits([0.0, -1.0, f32::NAN, f32::INFINITY, 1e30, 1e-30][random.below(6)]).into(),
        1 => large(bytes.len(), random),
        _ => random.below(300) as u64,
    };
    let put = |bytes: &mut [u8], at: usize, len: usize| {
        let number = number.to_le_bytes();
        bytes.iter_mut().skip(at).zip(&number[..len]).for_each(|(byte, &new)| *byte = new);
    };
    let anchor = if anchors.is_empty() { 0 } else { anchors[random.below(anchors.len())] };
    match random.below(6) {
        // Letters, some of them within a template, a token or a merge.
        0 | 1 => {
            let letters = b"ae0_ <>|%{}[]'~*\\";
            for _ in 0..1 + random.below(4) {
                let at = random.below(header);
                if bytes[at].is_ascii_graphic() {
                    bytes[at] = letters[random.below(letters.len())];
                }
            }
        }
        // The value of a key, or an item of its array.
        2 => put(bytes, anchor + 4, 4),
        3 => put(bytes, anchor + 16 + 4 * random.below(300), 4),
        // A dimension, a format or an offset of a tensor.
        4 => match random.below(3) {
            0 => put(bytes, anchor + 4 + 8 * random.below(2), 8),
            1 => put(bytes, anchor + 4 + 8 * (1 + random.below(2)), 4),
            _ => put(bytes, anchor + 8 + 8 * (1 + random.below(2)), 8),
        },
        // Weights: scales that are infinite or no numbers among them.
        _ => {
            for _ in 0..64 {
                let at = header + random.below(bytes.len() - header);
                let word = [[0, 0x7c], [0xff, 0xff], (random.next() as u16).to_le_bytes()][random.below(3)];
                bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
            }
        }
    }
}

/// Lets a tensor begin where another one does, or some way into it.
fn share(bytes: &mut [u8], offsets: &[usize], random: &mut Random) {
    let [from, to] = [(); 2].map(|()| offsets[random.below(offsets.len())]);
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[from..from + 8]);
    let shared = u64::from_le_bytes(word) + 32 * random.below(4) as u64;
    bytes[to..to + 8].copy_from_slice(&shared.to_le_bytes());
}

/// Damages a model: the files as they then are, by name.
fn damaged(good: &Good, donor: &Good, random: &mut Random) -> BTreeMap<String, Vec<u8>> {
    let mut files = good.files.clone();
    let names: Vec<String> = files.keys().cloned().collect();
    let pick = |random: &mut Random| &names[random.below(names.len())];
    let deep = random.below(2) == 0;
    if !deep && names.len() > 1 && random.below(4) == 0 {
        let (one, other) = (pick(random), pick(random));
        match random.below(3) {
            0 => drop(files.remove(one)),
            1 => drop(files.insert(one.clone(), good.files[other].clone())),
            _ => {
                files.insert(one.clone(), good.files[other].clone());
                files.insert(other.clone(), good.files[one].clone());
            }
        }
    }
    if random.below(16) == 0 {
        let name = pick(random);
        if let Some(bytes) = files.get_mut(name) {
            share(bytes, &good.offsets[name], random);
            return files;
        }
    }
    let donor = donor.files.values().next().expect("a file");
    for _ in 0..1 + random.below(3) {
        let name = pick(random);
        if let Some(bytes) = files.get_mut(name).filter(|bytes| !bytes.is_empty()) {
            match deep {
                true => distort(bytes, &good.anchors[name], random),
                false => damage(bytes, &good.anchors[name], donor, random),
            }
        }
    }
    files
}

/// Describes and opens a model, and sends text through its vocabulary.
fn open(path: &Path) -> Result<Model, String> {
    let described = tartlet::model::describe(path).map_err(|error| error.to_string())?;
    assert!(described.len() < 16 << 10, "{} bytes of description", described.len());
    assert!(described.lines().count() < 64 && !described.replace('\n', "").contains(char::is_control));
    let model = Model::open(path, None, None).map_err(|error| error.to_string());
    assert_eq!(described.ends_with("tartlet       can serve it\n"), model.is_ok(), "{described}");
    let model = model?;
    let tokens = model.tokenizer.encode("the <s> thé\n\u{1f967}<end_of_turn>12 \u{2581}");
    model.tokenizer.decode(&tokens).map_err(|bad| bad.to_string())?;
    Ok(model)
}

/// Packs the weights of a model of `size` bytes, and sends two tokens through them, whatever numbers they are.
fn run(model: Model, size: usize, crew: &Arc<Crew>, random: &mut Random) -> Result<(), String> {
    let kv = [KvFormat::F16, KvFormat::F32, KvFormat::Q8][random.below(3)];
    let exact = random.below(4) == 0;
    let options = CpuOptions { pages: Some(1), page_size: 4, embeds: 0, batch_tokens: 2, kv, exact };
    let mut cpu = Cpu::load(Arc::new(model), options, crew.clone()).map_err(|error| error.to_string())?;
    let limit = size * if exact { EXACT_PER_BYTE } else { PACKED_PER_BYTE };
    assert!(cpu.weight_bytes() <= limit, "{} bytes of weights from {size}", cpu.weight_bytes());
    let vocab = cpu.info().vocab;
    let sequence = Sequence {
        pages: vec![PageId(0)],
        len: 2,
        inputs: vec![Input::Token(TokenId(0)), Input::Token(TokenId(vocab - 1))],
        positions: vec![0, 1],
        mask: Mask::Causal,
        outputs: vec![
            Output::Token { row: 1, sampler: Sampler::TopP { temperature: 1.0, p: 0.9 }, ordinal: 0 },
            Output::Distribution { row: 0, temperature: 1.0, top_k: 4 },
        ],
        draw: DrawKey { seed: 1, queue: 0, pass: 0 },
    };
    let mut outcome = Outcome::default();
    let ran = cpu.run(&Batch { sequences: vec![sequence] }, &mut outcome);
    ran.map_err(|fault| fault.to_string())?;
    assert_eq!(outcome.produced[0].len(), 2);
    Ok(())
}

/// Opens a model of `size` bytes and runs it: what came of it, and the share of the memory bound that reading took.
fn attempt(path: &Path, size: usize, crew: &Arc<Crew>, random: &mut Random) -> (Result<(), String>, f64) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let opened = open(path);
    let taken = PEAK.load(Relaxed).saturating_sub(before);
    let limit = BASE_BYTES + BYTES_PER_BYTE * size;
    assert!(taken <= limit, "{taken} bytes taken to read {size}");
    (opened.and_then(|model| run(model, size, crew, random)), taken as f64 / limit as f64)
}

#[test]
fn every_damaged_file_loads_or_is_refused_by_a_sentence() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("corrupt-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the test");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let sharded = (1..=3).map(|number| {
        let name = format!("kquants-0000{number}-of-00003.gguf");
        let bytes = std::fs::read(golden.join(&name)).expect("a golden file");
        (name, bytes)
    });
    let one = |name: &str, bytes| BTreeMap::from([(name.to_owned(), bytes)]);
    let goods = [
        one("bytelevel.gguf", models::bytelevel()),
        one("sentencepiece.gguf", models::sentencepiece()),
        sharded.collect(),
    ]
    .map(|files| Good::new(files, &folder));

    let crew = Crew::threads(1);
    let case = Arc::new(AtomicUsize::new(0));
    let watched = case.clone();
    std::thread::spawn(move || {
        let mut seen = usize::MAX;
        loop {
            let now = watched.load(Relaxed);
            if now == seen {
                eprintln!("case {now} hangs");
                std::process::exit(1);
            }
            seen = now;
            std::thread::sleep(PATIENCE);
        }
    });

    let (mut served, mut refused, mut most) = (0, 0, 0.0f64);
    for number in 0..CASES {
        case.store(number, Relaxed);
        let mut random = Random::new(number as u64);
        let good = &goods[number % goods.len()];
        let donor = &goods[random.below(goods.len())];
        // The first round is undamaged: all of it serves.
        let files = if number < goods.len() { good.files.clone() } else { damaged(good, donor, &mut random) };
        for name in good.files.keys() {
            match files.get(name) {
                Some(bytes) => write(&folder, name, bytes),
                None if folder.join(name).exists() => {
                    std::fs::remove_file(folder.join(name)).expect("the file goes");
                }
                None => {}
            }
        }
        let names: Vec<&String> = good.files.keys().collect();
        let path = folder.join(names[random.below(names.len())]);
        let size: usize = files.values().map(Vec::len).sum();
        drop(files);

        let outcome = catch_unwind(AssertUnwindSafe(|| attempt(&path, size, &crew, &mut random)));
        let Ok((outcome, taken)) = outcome else { panic!("case {number} ({}) failed", path.display()) };
        most = most.max(taken);
        match outcome {
            Ok(()) => served += 1,
            Err(said) => {
                assert!(number >= goods.len(), "the whole file is refused: {said}");
                assert!(said.len() < 1000 && !said.contains(char::is_control), "case {number}: {said:?}");
                refused += 1;
            }
        }
    }
    println!("{served} served, {refused} refused, at most {most:.2} of the memory bound taken");
    assert!(served > CASES / 10 && refused > CASES / 2, "{served} served, {refused} refused");

    // Forty layers in the bytes of one, each of which would be packed for itself.
    let deep = Good::new(one("deep.gguf", models::deep()), &folder);
    let mut random = Random::new(CASES as u64);
    let mut last = |bytes: Vec<u8>| {
        write(&folder, "deep.gguf", &bytes);
        attempt(&folder.join("deep.gguf"), bytes.len(), &crew, &mut random).0
    };
    assert_eq!(last(deep.files["deep.gguf"].clone()), Ok(()));
    let said = last(deep.hollow()).expect_err("its tensors share their bytes");
    assert!(said.contains("begins there, within the 4734 bytes of tensor `token_embd.weight`"), "{said}");
    std::fs::remove_dir_all(&folder).expect("the folder goes");
}
