//! Guests that do nothing wrong: what they hold and hear must not depend on who runs beside them.
//!
//! Owns: a seeded script of passes over pages that stay, with exports of them; the checksums of these pages. Never:
//! what the others do.

use super::attempt::{Answer, Ask, Attempt, How, ask, mask, take};
use super::errand::KEPT;
use super::guest::{End, Guest, Others};
use super::watched::{PAGE, Watched};
use crate::backend::PageId;
use crate::host::bed::House;
use crate::identity::Subject;
use crate::model::toy::{Random, TOY_VOCAB};
use std::collections::BTreeSet;

/// Pages at most: with as many exported ones, of both, less than half of what there is.
const MOST: usize = 7;

/// A physical page, how many slots of it have something in them, and what that is.
type Sum = (PageId, u32, blake3::Hash);

pub struct Bystander {
    guest: Guest,
    name: &'static str,
    watched: Watched,
    seed: u64,
    random: Random,
    /// Tokens in its pages.
    len: u32,
    round: u64,
    running: Option<(Attempt, u32)>,
    held: Vec<Sum>,
    exported: Vec<Sum>,
}

impl Bystander {
    pub fn new(
        house: &House,
        watched: &Watched,
        name: &'static str,
        subject: &Subject,
        seed: u64,
        others: &Others,
    ) -> Bystander {
        let mut guest = Guest::new(house, subject, seed, others);
        guest.allocate(1, 2).expect("two embeddings");
        Bystander {
            guest,
            name,
            watched: watched.clone(),
            seed,
            random: Random::new(seed),
            len: 0,
            round: 0,
            running: None,
            held: Vec::new(),
            exported: Vec::new(),
        }
    }

    /// Submits the next pass of the script: a few tokens behind all that it holds.
    pub fn submit(&mut self) {
        let submitted = self.try_submit();
        self.running = Some(submitted.unwrap_or_else(|end| panic!("{} was ended: {end:?}", self.name)));
    }

    fn try_submit(&mut self) -> Result<(Attempt, u32), End> {
        let (guest, random) = (&mut self.guest, &mut self.random);
        guest.bed.forget_answers();
        self.round += 1;
        let rows = 1 + random.below(6) as u32;
        if self.len + rows > PAGE * MOST as u32 {
            let pages = guest.pages.clone();
            guest.deallocate(0, &pages)?;
            guest.freed.clear();
            self.len = 0;
        }
        let context = self.len;
        self.len += rows;
        let pages = self.len.div_ceil(PAGE);
        let more = pages - guest.pages.len() as u32;
        if more > 0 {
            guest.allocate(0, more)?;
        }
        let tokens = (0..rows).map(|_| random.below(TOY_VOCAB) as u32).collect();
        let last = self.len - PAGE * (pages - 1);
        let mut attempt = Attempt::of(guest.pages.clone(), last, tokens);
        if random.below(2) == 0 {
            attempt.mask = Some(mask(context as usize, rows as usize, random));
        }
        let (full, to) = (guest.embeds[0], guest.embeds[random.below(2)].0);
        if full.1 && rows > 1 && random.below(2) == 0 {
            attempt.tokens.pop();
            attempt.embeds.push(full.0);
            attempt.embed_positions.extend(attempt.positions.pop());
        }
        let how = How::YIELDING[random.below(5)];
        attempt.asks.push(ask(how, rows as usize, random));
        attempt.asks.push(Ask {
            k: 8,
            rows: vec![rows - 1],
            temperature: 0.7,
            ..ask(How::Distribution, 1, random)
        });
        attempt.asks.push(Ask { to: vec![to], rows: vec![0], ..ask(How::Embed, 1, random) });
        let result = attempt.submit(guest)?.expect("it asked for tokens");
        Ok((attempt, result))
    }

    /// Waits for the pass; what it answered. What its pages hold now is what they are to hold.
    pub fn collect(&mut self) -> Option<Answer> {
        let (attempt, result) = self.running.take()?;
        let answer = take(&mut self.guest, result);
        let answer = answer.unwrap_or_else(|end| panic!("{} was ended: {end:?}", self.name));
        attempt.check(&answer);
        self.held = self.sums();
        assert_eq!(self.held.len(), self.guest.pages.len());
        if self.round % 5 == 1 {
            self.export().unwrap_or_else(|end| panic!("{} was ended: {end:?}", self.name));
        }
        Some(answer)
    }

    /// What it holds is exported under a name that all of its subject may import. Whoever writes it then has a copy.
    fn export(&mut self) -> Result<(), End> {
        if self.guest.exports(0)?.iter().any(|name| name == KEPT) {
            self.guest.release(0, KEPT)?;
        }
        let pages = self.guest.pages.clone();
        self.guest.export(0, &pages, KEPT.as_bytes())?;
        self.exported = self.held.clone();
        Ok(())
    }

    /// Somebody of its subject released its export.
    pub fn forget_export(&mut self) {
        self.exported.clear();
    }

    fn sums(&self) -> Vec<Sum> {
        let sum = |(i, page): (usize, PageId)| {
            let slots = PAGE.min(self.len - PAGE * i as u32);
            (page, slots, self.watched.checksum(page, slots))
        };
        self.watched.pages_of(self.seed).into_iter().enumerate().map(sum).collect()
    }

    /// That its pages, and those that it exported, hold what they held when it last looked.
    pub fn check(&self) {
        // Meanwhile its own pass changes what it holds.
        let held = if self.running.is_some() { &[][..] } else { &self.held };
        for (page, slots, sum) in held.iter().chain(&self.exported) {
            assert_eq!(self.watched.checksum(*page, *slots), *sum, "{page:?} of {} has changed", self.name);
        }
    }

    /// Physical pages that it holds or has exported.
    pub fn pages(&self) -> BTreeSet<PageId> {
        self.held.iter().chain(&self.exported).map(|(page, ..)| *page).collect()
    }

    pub fn embeds(&self) -> usize {
        self.guest.embeds.len()
    }

    pub fn is(&self, instance: crate::identity::InstanceId) -> bool {
        self.guest.instance == instance
    }
}
