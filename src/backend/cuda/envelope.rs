//! What goes to the device with a step and what comes back of it: as many envelopes as steps may be under way.
//!
//! Owns: which envelope is in use, in which order they come back, and whose results are in them. Never: what is written in one
//! (`staging.rs`), nor the launches between (`step.rs`).
//!
//! On the device one copy of each is enough: there steps follow each other, the copies with them. Here the next step is
//! written while the device reads and writes those of the one before.

use super::room::{ENTRY, RESULT_BYTES, TOPS_AT};
use super::staging::{Sizes, Staging, Want, What};
use super::{Device, Error, Event, Pinned, Stream};
use crate::backend::{Outcome, Produced, TokenId};
use crate::limits::GPU_BATCHES;
use std::collections::VecDeque;
use std::time::Instant;

pub(super) struct Envelope {
    pub staging: Staging,
    pub results: Pinned,
    /// Past once the results are there.
    end: Event,
    /// What will be in the results, and of which batch.
    sizes: Sizes,
    wants: Vec<Want>,
    batch: u64,
}

/// A batch whose steps are under way.
struct Made {
    outcome: Outcome,
    /// Steps that are not back yet.
    steps: usize,
}

/// Batches under way, each in as many steps as it takes.
pub(super) struct Envelopes {
    all: Vec<Envelope>, // [GPU_BATCHES]
    /// Of those that are out, the first first.
    out: VecDeque<usize>,
    /// Since when the first of them is the device's next.
    since: Instant,
    batches: VecDeque<Made>,
    /// Batches collected so far: the number of the first in `batches`.
    collected: u64,
    vocab: u32,
}

impl Envelopes {
    /// Each with room for so many bytes to tell.
    pub fn new(device: &Device, bytes: usize, vocab: u32) -> Result<Envelopes, Error> {
        let envelope = || {
            Ok(Envelope {
                staging: Staging::new(device.pinned(bytes)?),
                results: device.pinned(RESULT_BYTES)?,
                end: device.event()?,
                sizes: Sizes::default(),
                wants: Vec::new(),
                batch: 0,
            })
        };
        Ok(Envelopes {
            all: (0..GPU_BATCHES).map(|_| envelope()).collect::<Result<_, Error>>()?,
            out: VecDeque::with_capacity(GPU_BATCHES),
            since: Instant::now(),
            batches: VecDeque::with_capacity(GPU_BATCHES),
            collected: 0,
            vocab,
        })
    }

    /// A new batch; the steps that are sent from now on are its.
    pub fn open(&mut self, outcome: Outcome) {
        self.batches.push_back(Made { outcome, steps: 0 });
    }

    /// One that is not out, and its number; waits for the first if all are.
    pub fn free(&mut self, stream: &Stream) -> Result<(usize, &mut Envelope), Error> {
        while self.out.len() == GPU_BATCHES {
            self.take_back(stream, true)?;
        }
        let number = (0..GPU_BATCHES).find(|number| !self.out.contains(number)).unwrap_or(0);
        Ok((number, &mut self.all[number]))
    }

    /// All that belongs to a step of the newest batch has been put into the stream: the envelope comes back with `wants`.
    pub fn sent(
        &mut self,
        number: usize,
        sizes: Sizes,
        wants: &[Want],
        stream: &Stream,
    ) -> Result<(), Error> {
        let envelope = &mut self.all[number];
        stream.record(&envelope.end)?;
        envelope.sizes = sizes;
        envelope.wants.clear();
        envelope.wants.extend_from_slice(wants);
        envelope.batch = self.collected + self.batches.len() as u64 - 1;
        if let Some(batch) = self.batches.back_mut() {
            batch.steps += 1;
        }
        if self.out.is_empty() {
            self.since = Instant::now();
        }
        self.out.push_back(number);
        Ok(())
    }

    /// The first batch's outcome, if all its steps are back. None: not yet, and the call may have taken a `pause`.
    pub fn collect(&mut self, stream: &Stream, pause: bool) -> Result<Option<Outcome>, Error> {
        while self.batches.front().is_some_and(|batch| batch.steps > 0) {
            if !self.take_back(stream, pause)? {
                return Ok(None);
            }
        }
        let batch = self.batches.pop_front();
        self.collected += u64::from(batch.is_some());
        Ok(batch.map(|batch| batch.outcome))
    }

    /// The first that is out, with what has come in it. False: it is not back yet.
    fn take_back(&mut self, stream: &Stream, pause: bool) -> Result<bool, Error> {
        let Some(&number) = self.out.front() else { return Ok(true) };
        let envelope = &self.all[number];
        if !stream.has_passed(&envelope.end, self.since, pause)? {
            return Ok(false);
        }
        self.out.pop_front();
        self.since = Instant::now();
        if let Some(batch) = self.batches.get_mut((envelope.batch - self.collected) as usize) {
            envelope.deliver(self.vocab, &mut batch.outcome);
            batch.steps -= 1;
        }
        Ok(true)
    }
}

impl Envelope {
    /// Hands over what a step has made.
    fn deliver(&self, vocab: u32, outcome: &mut Outcome) {
        let Envelope { results, sizes, wants, .. } = self;
        let word = |at: usize| -> [u8; 4] { std::array::from_fn(|byte| results[at + byte]) };
        for (at, want) in wants.iter().enumerate() {
            let made = match want.what {
                What::Token { .. } => Produced::Token(TokenId(u32::from_le_bytes(word(at * 4)))),
                What::Top { k, .. } => {
                    let begin = TOPS_AT + (at - sizes.tokens) * sizes.entries * ENTRY;
                    let entries = (0..k.min(vocab) as usize).map(|entry| begin + entry * ENTRY);
                    Produced::Distribution {
                        ids: entries.clone().map(|at| TokenId(u32::from_le_bytes(word(at)))).collect(),
                        probs: entries.map(|at| f32::from_le_bytes(word(at + 4))).collect(),
                    }
                }
            };
            outcome.produced[want.sequence][want.number] = made;
        }
    }
}
