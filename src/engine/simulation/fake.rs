//! A backend whose contents are hashes: a slot is the hash of its input, its position and every slot it attends. One
//! wrong page, slot, order or mask anywhere changes what comes out.

use crate::backend::{
    Backend, Batch, DrawKey, EmbedId, Fault, Info, Input, Mask, Outcome, Output, PageId, Produced, Sequence,
    TokenId,
};
use std::collections::{HashSet, VecDeque};

/// The mixing step of SplitMix64.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a ^ b.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Contents of a slot, given what is in the slots before it.
pub fn slot(input: u64, position: u32, mask: &Mask, row: usize, before: &[u64]) -> u64 {
    let own = mix(input, u64::from(position));
    let attends = |slot: usize| match mask {
        Mask::Causal => true,
        Mask::Runs(masks) => {
            let mut end = 0;
            let run = masks[row].iter().position(|&run| {
                end += run as usize;
                slot < end
            });
            run.is_some_and(|run| run % 2 == 0)
        }
    };
    let seen = before.iter().enumerate().filter(|(i, _)| attends(*i));
    seen.fold(own, |hash, (_, &content)| mix(hash, content))
}

pub fn token_input(token: TokenId) -> u64 {
    mix(1, u64::from(token.0))
}

pub fn embedding(content: u64) -> u64 {
    mix(2, content)
}

pub fn token(content: u64, draw: DrawKey, ordinal: u32) -> Produced {
    let key = [draw.seed, u64::from(draw.queue), draw.pass, u64::from(ordinal)];
    Produced::Token(TokenId(key.into_iter().fold(content, mix) as u32))
}

pub fn distribution(content: u64) -> Produced {
    Produced::Distribution { ids: vec![TokenId(content as u32)], probs: vec![1.0] }
}

pub struct Fake {
    info: Info,
    depth: usize,
    /// What was asked and is not done yet, a batch first: none of it before somebody wants to know.
    asked: VecDeque<Asked>,
    /// What the batch has made that is to be collected next.
    made: Outcome,
    pub pages: Vec<Vec<u64>>, // [page][slot]
    pub embeds: Vec<u64>,
}

enum Asked {
    Batch(Batch),
    Copy(PageId, PageId),
    Clear(PageId, u32),
}

impl Fake {
    /// Full of what strangers left. So many batches may be under way at a time.
    pub fn new(info: Info, depth: usize) -> Fake {
        let page = |p| (0..info.page_size).map(|s| mix(p, u64::from(s) + 99)).collect();
        Fake {
            pages: (0..u64::from(info.pages)).map(page).collect(),
            embeds: (0..u64::from(info.embeds)).map(|e| mix(e, 98)).collect(),
            info,
            depth,
            asked: VecDeque::new(),
            made: Outcome::default(),
        }
    }

    fn at(&self, s: &Sequence, slot: u32) -> (PageId, usize) {
        let size = self.info.page_size;
        (s.pages[(slot / size) as usize], (slot % size) as usize)
    }
}

impl Backend for Fake {
    fn info(&self) -> &Info {
        &self.info
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let batches = self.asked.iter().filter(|asked| matches!(asked, Asked::Batch(_)));
        assert!(batches.count() < self.depth, "more batches than may be under way");
        self.asked.push_back(Asked::Batch(batch.clone()));
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome, _pause: bool) -> Result<bool, Fault> {
        let Some(Asked::Batch(batch)) = self.asked.pop_front() else { panic!("no batch was submitted") };
        self.compute(&batch);
        std::mem::swap(outcome, &mut self.made);
        while let Some(asked) = self.asked.pop_front_if(|asked| !matches!(asked, Asked::Batch(_))) {
            self.do_now(asked);
        }
        Ok(true)
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Fault> {
        self.ask(Asked::Copy(from, to));
        Ok(())
    }

    fn clear_page(&mut self, page: PageId, from: u32) -> Result<(), Fault> {
        self.ask(Asked::Clear(page, from));
        Ok(())
    }
}

impl Fake {
    /// Behind what is under way; at once if nothing is.
    fn ask(&mut self, asked: Asked) {
        if self.asked.is_empty() { self.do_now(asked) } else { self.asked.push_back(asked) }
    }

    fn do_now(&mut self, asked: Asked) {
        match asked {
            Asked::Copy(from, to) => self.pages[to.0 as usize] = self.pages[from.0 as usize].clone(),
            Asked::Clear(page, from) => self.pages[page.0 as usize][from as usize..].fill(0),
            Asked::Batch(batch) => unreachable!("{batch:?} is collected"),
        }
    }

    fn compute(&mut self, batch: &Batch) {
        let rows: usize = batch.sequences.iter().map(|s| s.inputs.len()).sum();
        assert!(rows <= self.info.batch_tokens as usize, "{rows} rows in a batch");
        let mut touched = HashSet::new();
        let mut stores: Vec<(EmbedId, u64)> = Vec::new();
        self.made.produced.clear();
        for s in &batch.sequences {
            assert!(!s.inputs.is_empty() && s.positions.len() == s.inputs.len());
            assert_eq!(s.pages.len(), s.len.div_ceil(self.info.page_size) as usize);
            let context = s.len - s.inputs.len() as u32;
            for slot in context..s.len {
                let at = self.at(s, slot);
                assert!(!touched.contains(&at), "{at:?} is written and used before in one batch");
            }
            touched.extend((0..s.len).map(|slot| self.at(s, slot)));
            let mut seen: Vec<u64> = Vec::new();
            for slot in 0..context {
                let (page, at) = self.at(s, slot);
                seen.push(self.pages[page.0 as usize][at]);
            }
            for (row, input) in s.inputs.iter().enumerate() {
                let input = match *input {
                    Input::Token(id) => token_input(id),
                    Input::Embed(id) => self.embeds[id.0 as usize],
                };
                let content = slot(input, s.positions[row], &s.mask, row, &seen);
                let (page, at) = self.at(s, context + row as u32);
                self.pages[page.0 as usize][at] = content;
                seen.push(content);
            }
            let content = |row: u32| seen[(context + row) as usize];
            let mut produced = Vec::new();
            for output in &s.outputs {
                match *output {
                    Output::Token { row, ordinal, .. } => {
                        produced.push(token(content(row), s.draw, ordinal));
                    }
                    Output::Distribution { row, .. } => produced.push(distribution(content(row))),
                    Output::Embed { row, to } => {
                        assert!(stores.iter().all(|(e, _)| *e != to), "{to:?} is stored twice");
                        stores.push((to, embedding(content(row))));
                    }
                }
            }
            self.made.produced.push(produced);
        }
        for (to, value) in stores {
            self.embeds[to.0 as usize] = value;
        }
    }
}
