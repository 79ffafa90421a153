//! Chunks back to bytes: the rules of "Uploads" in the protocol.
//!
//! Owns: the uploads of one connection that have begun and not been answered, and the memory they hold. Never: what an
//! upload is for, or I/O. An upload is known by its `corr_id`; it gets exactly one answer, with its last chunk (stock
//! clients listen only then, and reuse ids); the first error counts; chunk 0 always starts afresh. Memory follows
//! what has arrived, never what `total_chunks` claims.

use crate::identity::Subject;
use crate::limits;
use crate::places::Full;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One chunk as it came.
pub struct Chunk {
    pub corr_id: u32,
    /// What the client says the whole hashes to: BLAKE3, hex.
    pub hash: String,
    pub index: u64,
    pub total: u64,
    pub data: Vec<u8>,
}

/// What a chunk led to.
#[derive(Debug)]
pub enum Progress {
    /// Nothing to answer.
    Pending,
    Whole(Upload),
    /// The answer: the upload's first error.
    Failed(String),
}

/// A complete upload whose hash is what was claimed.
#[derive(Debug)]
pub struct Upload {
    pub bytes: Vec<u8>,
    pub hash: blake3::Hash,
    /// Counts the bytes against the budget; goes where they go, until they are dropped.
    pub held: Held,
}

impl Upload {
    /// Whose it is.
    pub fn who(&self) -> &Subject {
        &self.held.who
    }
}

impl AsRef<[u8]> for Upload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that all uploads of the server hold together, and of these each subject's, where there are several.
#[derive(Debug, Default)]
pub struct Budget(Mutex<BTreeMap<Subject, usize>>);

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    who: Subject,
    bytes: usize,
}

impl Budget {
    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.lock().values().sum()
    }

    /// Whole between any two statements here.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Subject, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// # Errors
    /// The most that there may be, of this subject's or in all, where it would be more.
    fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let mut held = self.budget.lock();
        if held.values().sum::<usize>() + bytes > limits::UPLOAD_BYTES_HELD {
            return Err(Full::All(limits::UPLOAD_BYTES_HELD));
        }
        let own = held.get(&self.who).copied().unwrap_or(0) + bytes;
        if own > limits::UPLOAD_BYTES_PER_SUBJECT && self.who != Subject::everyone() {
            return Err(Full::Each(limits::UPLOAD_BYTES_PER_SUBJECT));
        }
        held.insert(self.who.clone(), own);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.budget.lock();
        if let Some(own) = held.get_mut(&self.who) {
            *own -= self.bytes;
            if *own == 0 {
                held.remove(&self.who);
            }
        }
    }
}

/// The uploads of one kind on one connection.
pub struct Uploads {
    begun: heapless::Vec<(u32, State), { limits::UPLOADS_PER_CONNECTION }>,
    budget: Arc<Budget>,
}

enum State {
    Receiving(Box<Receiving>),
    /// Discards until the last chunk, then answers.
    Failed {
        error: String,
        total: u64,
    },
    /// Answered before its last chunk; discards what still comes.
    Answered {
        last: u64,
    },
}

struct Receiving {
    hash: String,
    total: u64,
    next: u64,
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    held: Held,
}

impl Uploads {
    pub fn new(budget: Arc<Budget>) -> Uploads {
        Uploads { begun: heapless::Vec::new(), budget }
    }

    /// Takes one chunk of somebody's. `objection`: what speaks against the upload whatever its chunks say.
    pub fn offer(&mut self, chunk: Chunk, who: &Subject, objection: Option<String>) -> Progress {
        let begun = self.take(chunk.corr_id);
        let begun = if chunk.index == 0 { None } else { begun };
        match begun {
            Some(State::Answered { last }) => {
                if chunk.index < last {
                    self.keep(chunk.corr_id, State::Answered { last });
                }
                Progress::Pending
            }
            Some(State::Failed { error, total }) => self.fail(&chunk, total, error),
            Some(State::Receiving(upload)) => self.receive(upload, chunk, objection),
            None => match self.refusal(&chunk, objection) {
                Some(error) => self.fail(&chunk, chunk.total, error),
                None => {
                    let upload = Receiving {
                        hash: clipped(&chunk.hash),
                        total: chunk.total,
                        next: 0,
                        bytes: Vec::new(),
                        hasher: blake3::Hasher::new(),
                        held: Held { budget: self.budget.clone(), who: who.clone(), bytes: 0 },
                    };
                    self.receive(Box::new(upload), chunk, None)
                }
            },
        }
    }

    /// Why no upload can start with `chunk`.
    fn refusal(&mut self, chunk: &Chunk, objection: Option<String>) -> Option<String> {
        if objection.is_some() {
            return objection;
        }
        if self.begun.is_full() && !self.forget_an_answered_one() {
            let limit = limits::UPLOADS_PER_CONNECTION;
            return Some(format!("{limit} uploads are under way on this connection, the most it may have"));
        }
        if chunk.data.len() > limits::CHUNK_BYTES {
            return Some(oversized(chunk));
        }
        if chunk.total == 0 {
            return Some("Chunk count must be at least 1".to_owned());
        }
        if chunk.total > limits::UPLOAD_CHUNKS {
            return Some(format!("Chunk count {} exceeds limit {}", chunk.total, limits::UPLOAD_CHUNKS));
        }
        (chunk.index != 0).then(|| "First chunk index must be 0".to_owned())
    }

    fn receive(&mut self, mut upload: Box<Receiving>, chunk: Chunk, objection: Option<String>) -> Progress {
        let total = upload.total;
        let error = if objection.is_some() {
            objection
        } else if chunk.data.len() > limits::CHUNK_BYTES {
            Some(oversized(&chunk))
        } else if chunk.total != total {
            Some(format!("Chunk count mismatch: expected {total}, got {}", chunk.total))
        } else if chunk.index != upload.next {
            Some(format!("Out-of-order chunk: expected {}, got {}", upload.next, chunk.index))
        } else if let Err(full) = upload.held.grow(chunk.data.len()) {
            Some(format!("Uploads hold too many bytes: {full}; try again later"))
        } else {
            None
        };
        if let Some(error) = error {
            drop(upload); // its memory goes now, not with the answer
            return self.fail(&chunk, total, error);
        }
        upload.hasher.update(&chunk.data);
        upload.next += 1;
        if upload.bytes.is_empty() {
            upload.bytes = chunk.data;
        } else {
            upload.bytes.extend_from_slice(&chunk.data);
        }
        if upload.next < total {
            self.keep(chunk.corr_id, State::Receiving(upload));
            return Progress::Pending;
        }
        let Receiving { hash: claimed, bytes, hasher, held, .. } = *upload;
        let hash = hasher.finalize();
        match hash.to_hex().as_str() == claimed {
            true => Progress::Whole(Upload { bytes, hash, held }),
            false => Progress::Failed(format!("Hash mismatch: expected {claimed}, got {hash}")),
        }
    }

    /// Answers now if `chunk` is the last by its own word or by the first chunk's (`total`), and later otherwise.
    fn fail(&mut self, chunk: &Chunk, total: u64, error: String) -> Progress {
        // A total of 0 names no last chunk at all: everything further is discarded.
        let last = |total: u64| total.checked_sub(1);
        let (own, first) = (last(chunk.total), last(total));
        let ends = |last: Option<u64>| last.is_none_or(|last| chunk.index >= last);
        if ends(own) || ends(first) {
            let last = own.zip(first).map_or(u64::MAX, |(own, first)| own.max(first));
            if chunk.index < last {
                self.keep(chunk.corr_id, State::Answered { last });
            }
            Progress::Failed(error)
        } else {
            self.keep(chunk.corr_id, State::Failed { error: clipped(&error), total });
            Progress::Pending
        }
    }

    fn take(&mut self, corr_id: u32) -> Option<State> {
        let at = self.begun.iter().position(|(id, _)| *id == corr_id)?;
        Some(self.begun.remove(at).1)
    }

    /// Remembers an upload. With a full table a failed one is forgotten: its last chunk is then refused afresh.
    fn keep(&mut self, corr_id: u32, state: State) {
        if self.begun.is_full() {
            self.forget_an_answered_one();
        }
        let _ = self.begun.push((corr_id, state));
    }

    fn forget_an_answered_one(&mut self) -> bool {
        let found = self.begun.iter().position(|(_, state)| matches!(state, State::Answered { .. }));
        found.map(|at| self.begun.remove(at)).is_some()
    }
}

/// What is kept of a text that the client chose: a claim or an error stays until the upload's last chunk, and must not
/// be a way around the budget. Anything honest is shorter.
fn clipped(text: &str) -> String {
    text.chars().take(limits::UPLOAD_TEXT_CHARS).collect()
}

fn oversized(chunk: &Chunk) -> String {
    format!("Chunk size {} exceeds limit {}", chunk.data.len(), limits::CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        uploads: Uploads,
        budget: Arc<Budget>,
    }

    impl Bench {
        fn new() -> Bench {
            let budget = Arc::new(Budget::default());
            Bench { uploads: Uploads::new(budget.clone()), budget }
        }

        fn offer(&mut self, corr_id: u32, index: u64, total: u64, hash: &str, data: &[u8]) -> Progress {
            let chunk = Chunk { corr_id, hash: hash.to_owned(), index, total, data: data.to_vec() };
            self.uploads.offer(chunk, &Subject::new("honest"), None)
        }

        /// "-": nothing to answer; "ok": whole; else the error.
        fn brief(&mut self, corr_id: u32, index: u64, total: u64) -> String {
            match self.offer(corr_id, index, total, &hash(b"abab"), b"ab") {
                Progress::Pending => "-".into(),
                Progress::Whole(_) => "ok".into(),
                Progress::Failed(error) => error,
            }
        }
    }

    fn hash(bytes: &[u8]) -> String {
        blake3::hash(bytes).to_hex().to_string()
    }

    #[test]
    fn interleaved_uploads_come_out_whole() {
        let mut bench = Bench::new();
        let (a, b) = (vec![1u8; 2 * limits::CHUNK_BYTES + 5], vec![2u8; limits::CHUNK_BYTES]);
        let mut whole = Vec::new();
        for index in 0..3 {
            for (corr_id, bytes) in [(7, &a), (8, &b)] {
                let chunks: Vec<&[u8]> = bytes.chunks(limits::CHUNK_BYTES).collect();
                if let Some(data) = chunks.get(index) {
                    match bench.offer(corr_id, index as u64, chunks.len() as u64, &hash(bytes), data) {
                        Progress::Pending => assert_eq!((corr_id, index < 2), (7, true)),
                        Progress::Whole(upload) => whole.push(upload),
                        Progress::Failed(error) => panic!("{error}"),
                    }
                }
            }
        }
        assert_eq!((whole[0].bytes == b, whole[1].bytes == a), (true, true));
        assert_eq!(whole[1].hash.to_hex().as_str(), hash(&a));
        assert_eq!(bench.budget.held(), a.len() + b.len());
        drop(whole);
        assert_eq!(bench.budget.held(), 0);
    }

    #[test]
    fn an_empty_upload_is_one_empty_chunk() {
        let mut bench = Bench::new();
        assert!(
            matches!(bench.offer(1, 0, 1, &hash(b""), b""), Progress::Whole(upload) if upload.bytes.is_empty())
        );
    }

    /// Each line: (corr_id, chunk_index, total_chunks) and what is answered.
    #[test]
    fn the_first_error_is_the_one_answer_and_comes_with_the_last_chunk() {
        let first = "First chunk index must be 0";
        let out_of_order = "Out-of-order chunk: expected 1, got 2";
        let mismatch = "Chunk count mismatch: expected 3, got 4";
        let over =
            format!("Chunk count {} exceeds limit {}", limits::UPLOAD_CHUNKS + 1, limits::UPLOAD_CHUNKS);
        let huge = format!("Chunk count {} exceeds limit {}", u64::MAX, limits::UPLOAD_CHUNKS);
        let script: &[(u32, u64, u64, &str)] = &[
            (1, 0, 2, "-"),
            (1, 1, 2, "ok"),
            // No chunk 0: told with the last one, once; the id serves again.
            (2, 1, 3, "-"),
            (2, 2, 3, first),
            (2, 1, 2, first),
            (2, 0, 2, "-"),
            (2, 1, 2, "ok"),
            // Out of order: chunks after the error are discarded, a second error does not count.
            (3, 0, 4, "-"),
            (3, 2, 4, "-"),
            (3, 1, 5, "-"),
            (3, 3, 4, out_of_order),
            // A repeated chunk.
            (4, 0, 3, "-"),
            (4, 1, 3, "-"),
            (4, 1, 3, "-"),
            (4, 2, 3, "Out-of-order chunk: expected 2, got 1"),
            // Another total: told with the last chunk by either word, and nothing after that.
            (5, 0, 3, "-"),
            (5, 1, 4, "-"),
            (5, 2, 4, mismatch),
            (5, 3, 4, "-"),
            (5, 0, 2, "-"),
            (5, 1, 2, "ok"),
            // Past the end: at once; the rest is discarded up to the last chunk.
            (6, 0, 3, "-"),
            (6, 9, 3, "Out-of-order chunk: expected 1, got 9"),
            (6, 3, 3, first),
            // No chunks at all: at once, once, until chunk 0 comes again.
            (7, 0, 0, "Chunk count must be at least 1"),
            (7, 1, 0, "-"),
            (7, 0, 2, "-"),
            (7, 1, 2, "ok"),
            // Too many: told with the last chunk, however far that is.
            (8, 0, limits::UPLOAD_CHUNKS + 1, "-"),
            (8, limits::UPLOAD_CHUNKS, limits::UPLOAD_CHUNKS + 1, &over),
            (9, 0, u64::MAX, "-"),
            (9, u64::MAX, u64::MAX, &huge),
            // Chunk 0 starts afresh in the middle of one.
            (10, 0, 3, "-"),
            (10, 1, 3, "-"),
            (10, 0, 2, "-"),
            (10, 1, 2, "ok"),
        ];
        let mut bench = Bench::new();
        for (line, &(corr_id, index, total, expected)) in script.iter().enumerate() {
            assert_eq!(
                bench.brief(corr_id, index, total),
                expected,
                "line {line}: {corr_id} {index} {total}"
            );
        }
        assert_eq!(bench.budget.held(), 0);
    }

    #[test]
    fn sizes_hashes_and_objections() {
        let mut bench = Bench::new();
        let long = vec![0; limits::CHUNK_BYTES + 1];
        let expected = "Chunk size 262145 exceeds limit 262144";
        assert!(matches!(bench.offer(1, 0, 1, "h", &long), Progress::Failed(e) if e == expected));
        assert!(matches!(bench.offer(1, 0, 2, "h", b"x"), Progress::Pending));
        assert!(matches!(bench.offer(1, 1, 2, "h", &long), Progress::Failed(e) if e == expected));
        let expected = format!("Hash mismatch: expected h, got {}", hash(b"x"));
        assert!(matches!(bench.offer(1, 0, 1, "h", b"x"), Progress::Failed(e) if e == expected));

        let chunk = |index| Chunk { corr_id: 1, hash: hash(b"xx"), index, total: 2, data: b"x".to_vec() };
        let who = Subject::everyone();
        assert!(matches!(bench.uploads.offer(chunk(0), &who, Some("no".into())), Progress::Pending));
        assert_eq!(bench.budget.held(), 0, "an upload that is refused holds nothing");
        assert!(matches!(bench.uploads.offer(chunk(1), &who, None), Progress::Failed(e) if e == "no"));
        assert!(matches!(bench.uploads.offer(chunk(0), &who, None), Progress::Pending));
        assert!(
            matches!(bench.uploads.offer(chunk(1), &who, Some("gone".into())), Progress::Failed(e) if e == "gone")
        );
    }

    #[test]
    fn number_and_memory_are_bounded_and_come_back() {
        let mut bench = Bench::new();
        let many = limits::UPLOADS_PER_CONNECTION as u32;
        for corr_id in 0..many {
            assert_eq!(bench.brief(corr_id, 0, 2), "-");
        }
        assert_eq!(bench.brief(many, 0, 2), "-");
        assert!(bench.brief(many, 1, 2).contains("uploads are under way"));
        assert_eq!(bench.brief(0, 1, 2), "ok");
        assert_eq!(bench.brief(many, 0, 2), "-");
        assert_eq!(bench.brief(many, 1, 2), "ok");

        // Somebody else holds everything.
        let held = |who: &str| Held { budget: bench.budget.clone(), who: Subject::new(who), bytes: 0 };
        let (mut greedy, mut greedier) = (held("greedy"), held("greedy"));
        assert_eq!(greedy.grow(limits::UPLOAD_BYTES_PER_SUBJECT - 1), Ok(()));
        let share = Full::Each(limits::UPLOAD_BYTES_PER_SUBJECT);
        assert_eq!((greedier.grow(1), greedier.grow(1), greedy.grow(1)), (Ok(()), Err(share), Err(share)));
        let mut other = held("other");
        assert_eq!(
            other.grow(limits::UPLOAD_BYTES_HELD - bench.budget.held() - 1),
            Ok(()),
            "what is left but for a byte"
        );
        assert_eq!(bench.brief(90, 0, 2), "-");
        assert!(bench.brief(90, 1, 2).contains("try again later"));
        drop((greedy, greedier, other));
        assert_eq!(bench.brief(90, 0, 2), "-");
        assert_eq!(bench.brief(90, 1, 2), "ok");
        let budget = bench.budget.clone();
        drop(bench);
        assert_eq!(budget.held(), 0, "a client that vanishes gives its memory back");
    }
}
