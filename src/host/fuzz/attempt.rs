//! A pass as a guest attempts it: what it says of it, in which calls, and what comes back.
//!
//! Owns: the calls of one pass in their order, odd orders included. Never: what is wrong with it (`fault.rs`).

use super::guest::{COMMON, End, FORWARD, Guest, POLL};
use super::watched::PAGE;
use crate::host::bed::{float, number};
use crate::limits;
use crate::model::toy::{Random, TOY_VOCAB};
use wasmi::Val;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    Token,
    TopK,
    TopP,
    MinP,
    TopKTopP,
    Distribution,
    Embed,
}

impl How {
    pub const YIELDING: [How; 6] =
        [How::Token, How::TopK, How::TopP, How::MinP, How::TopKTopP, How::Distribution];

    pub fn function(self) -> &'static str {
        match self {
            How::Token => "output-tokens",
            How::TopK => "output-tokens-top-k",
            How::TopP => "output-tokens-top-p",
            How::MinP => "output-tokens-min-p",
            How::TopKTopP => "output-tokens-top-k-top-p",
            How::Distribution => "output-distributions",
            How::Embed => "output-embeddings",
        }
    }
}

/// One call that asks for outputs.
#[derive(Clone, Debug)]
pub struct Ask {
    pub how: How,
    pub rows: Vec<u32>,
    pub temperature: f32,
    pub k: u32,
    pub p: f32,
    /// Where rows are stored.
    pub to: Vec<u32>,
}

/// In which order things are done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    Usual,
    ExecuteTwice,
    /// Something is set once the pass was executed, and it is executed again.
    SetAfterExecute,
    QueueDropped,
    PassDropped,
    PassDroppedTwice,
    ResultDropped,
    /// Its pages are given back once it was executed, before it was waited for.
    PagesFreedBehind,
    NeverExecuted,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub pages: Vec<u32>,
    pub last: u32,
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    /// Inputs behind the tokens.
    pub embeds: Vec<u32>,
    pub embed_positions: Vec<u32>,
    pub mask: Option<Vec<Vec<u32>>>,
    /// A word of the mask's list of rows (pointer, length, pointer, ...) that is replaced.
    pub mask_word: Option<(usize, u32)>,
    pub asks: Vec<Ask>,
    pub order: Order,
}

/// Tokens and distributions of a pass.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub distributions: Vec<(Vec<u32>, Vec<f32>)>,
}

impl Attempt {
    /// A pass without outputs, all right, on these pages: the new rows end at `last` of the last page.
    pub fn of(pages: Vec<u32>, last: u32, tokens: Vec<u32>) -> Attempt {
        let context = PAGE * (pages.len() as u32 - 1) + last - tokens.len() as u32;
        Attempt {
            pages,
            last,
            positions: (context..context + tokens.len() as u32).collect(),
            tokens,
            embeds: Vec::new(),
            embed_positions: Vec::new(),
            mask: None,
            mask_word: None,
            asks: Vec::new(),
            order: Order::Usual,
        }
    }

    /// Any pass that this guest may run.
    pub fn valid(guest: &Guest, random: &mut Random) -> Attempt {
        let mut pages = guest.pages.clone();
        let count = 1 + random.below(pages.len().min(5));
        let pages: Vec<u32> = (0..count).map(|_| pages.swap_remove(random.below(pages.len()))).collect();
        let last = 1 + random.below(PAGE as usize) as u32;
        let len = PAGE * (count as u32 - 1) + last;
        let rows = 1 + random.below(len.min(8) as usize);
        let tokens = (0..rows).map(|_| random.below(TOY_VOCAB) as u32).collect();
        let mut attempt = Attempt::of(pages, last, tokens);
        if random.below(4) == 0 {
            attempt.positions.fill(random.next() as u32 >> random.below(32));
        }
        let written: Vec<u32> = guest.embeds.iter().filter(|(_, full)| *full).map(|(id, _)| *id).collect();
        if !written.is_empty() && rows > 1 && random.below(3) == 0 {
            attempt.tokens.pop();
            attempt.embed_positions.extend(attempt.positions.pop());
            attempt.embeds.push(written[random.below(written.len())]);
        }
        if random.below(3) == 0 {
            attempt.mask = Some(mask(len as usize - rows, rows, random));
        }
        for _ in 0..random.below(4) {
            attempt.asks.push(ask(How::YIELDING[random.below(6)], rows, random));
        }
        if !guest.embeds.is_empty() && random.below(4) == 0 {
            let to = guest.embeds[random.below(guest.embeds.len())].0;
            attempt.asks.push(Ask { to: vec![to], rows: vec![0], ..ask(How::Embed, rows, random) });
        }
        attempt
    }

    pub fn rows(&self) -> usize {
        self.tokens.len() + self.embeds.len()
    }

    /// Makes the calls up to `execute`; the result's handle, if there is one.
    pub fn submit(&self, guest: &mut Guest) -> Result<Option<u32>, End> {
        let queue = match self.order {
            Order::QueueDropped => guest.new_queue()?,
            _ => guest.queue,
        };
        let handle = guest.call(FORWARD, "create-forward-pass", &[&number(queue.into())])? as u32;
        if self.order == Order::QueueDropped {
            guest.bed.drop_handle(COMMON, "queue", queue)?;
        }
        self.set(guest, handle)?;
        match self.order {
            Order::PassDropped | Order::PassDroppedTwice | Order::NeverExecuted => {
                guest.bed.drop_handle(FORWARD, "forward-pass", handle)?;
            }
            _ => {}
        }
        match self.order {
            Order::NeverExecuted => return Ok(None),
            Order::PassDroppedTwice => guest.bed.drop_handle(FORWARD, "forward-pass", handle)?,
            _ => {}
        }
        let mut result = execute(guest, handle)?;
        match self.order {
            Order::ExecuteTwice => result = execute(guest, handle)?,
            Order::SetAfterExecute => {
                self.set(guest, handle)?;
                drop_result(guest, result)?;
                result = execute(guest, handle)?;
            }
            Order::PagesFreedBehind => guest.deallocate(0, &self.pages)?,
            _ => {}
        }
        guest.bed.drop_handle(FORWARD, "forward-pass", handle)?;
        if self.order == Order::ResultDropped {
            drop_result(guest, result.take())?;
        }
        for ask in self.asks.iter().filter(|ask| ask.how == How::Embed) {
            for (embed, full) in &mut guest.embeds {
                *full |= ask.to.contains(embed);
            }
        }
        Ok(result)
    }

    fn set(&self, guest: &mut Guest, handle: u32) -> Result<(), End> {
        let pass = number(handle.into());
        if self.rows() == 0 || !self.tokens.is_empty() {
            let (tokens, positions) = (guest.bed.list(&self.tokens), guest.bed.list(&self.positions));
            guest.call(FORWARD, "input-tokens", &[&pass, &tokens, &positions])?;
        }
        if !self.embeds.is_empty() {
            let (ids, positions) = (guest.bed.list(&self.embeds), guest.bed.list(&self.embed_positions));
            guest.call(FORWARD, "input-embeddings", &[&pass, &ids, &positions])?;
        }
        let pages = guest.bed.list(&self.pages);
        guest.call(FORWARD, "kv-cache", &[&pass, &pages, &number(self.last.into())])?;
        if let Some(mask) = &self.mask {
            let rows = guest.bed.lists(mask);
            if let Some((word, value)) = self.mask_word {
                guest.bed.poke(rows[0].i32().expect("a pointer") as u32 + 4 * word as u32, value);
            }
            guest.call(FORWARD, "attention-mask", &[&pass, &rows])?;
        }
        for ask in &self.asks {
            let rows = guest.bed.list(&ask.rows);
            let (t, k, p) = (float(ask.temperature), number(ask.k.into()), float(ask.p));
            // 32 is what no top-k means.
            let some = [Val::I32(i32::from(ask.k != 32)), k[0].clone()];
            let numbers: &[&[Val]] = match ask.how {
                How::Token => &[&t],
                How::TopK => &[&t, &k],
                How::TopP | How::MinP => &[&t, &p],
                How::TopKTopP => &[&t, &k, &p],
                How::Distribution => &[&t, &some],
                How::Embed => {
                    let to = guest.bed.list(&ask.to);
                    guest.call(FORWARD, ask.how.function(), &[&pass, &to, &rows])?;
                    continue;
                }
            };
            let arguments = [&[&pass[..], &rows], numbers].concat();
            guest.call(FORWARD, ask.how.function(), &arguments)?;
        }
        Ok(())
    }

    /// That an answer has the form of what was asked.
    pub fn check(&self, answer: &Answer) {
        let asked = |ask: &&Ask| !matches!(ask.how, How::Distribution | How::Embed);
        let tokens: usize = self.asks.iter().filter(asked).map(|ask| ask.rows.len()).sum();
        assert_eq!(answer.tokens.len(), tokens);
        assert!(answer.tokens.iter().all(|token| (*token as usize) < TOY_VOCAB), "{answer:?}");
        let mut distributions = answer.distributions.iter();
        for ask in self.asks.iter().filter(|ask| ask.how == How::Distribution) {
            let entries = ask.k.min(limits::DISTRIBUTION_TOKENS).min(TOY_VOCAB as u32) as usize;
            for (ids, probs) in distributions.by_ref().take(ask.rows.len()) {
                assert_eq!((ids.len(), probs.len()), (entries, entries));
                assert!(ids.iter().all(|id| (*id as usize) < TOY_VOCAB), "{ids:?}");
                assert!(probs.is_sorted_by(|a, b| a >= b) && probs.iter().all(|p| (0.0..=1.0).contains(p)));
                assert!(probs.iter().sum::<f32>() < 1.0001, "{probs:?}");
            }
        }
        assert!(distributions.next().is_none(), "no more than was asked");
    }
}

/// Outputs of one kind for some rows, as a sane program asks for them.
pub fn ask(how: How, rows: usize, random: &mut Random) -> Ask {
    Ask {
        how,
        rows: (0..1 + random.below(3)).map(|_| random.below(rows) as u32).collect(),
        temperature: [0.0, 0.5, 1.0, 1.7][random.below(4)],
        k: 1 + random.below(40) as u32,
        p: [0.0, 0.1, 0.9, 1.0][random.below(4)],
        to: Vec::new(),
    }
}

/// A mask in which each row sees itself and any part of what is before it. Some runs are empty.
pub fn mask(context: usize, rows: usize, random: &mut Random) -> Vec<Vec<u32>> {
    let row = |row: usize| {
        let slots = context + row + 1;
        let (mut runs, mut shown) = (vec![0], true);
        for slot in 0..slots {
            let last = slot + 1 == slots;
            if random.below(3) == 0 {
                runs.push(0);
                shown = !shown;
            }
            if last && !shown {
                runs.push(0);
                shown = true;
            }
            if let Some(run) = runs.last_mut() {
                *run += 1;
            }
        }
        runs
    };
    (0..rows).map(row).collect()
}

fn execute(guest: &mut Guest, pass: u32) -> Result<Option<u32>, End> {
    let at = guest.call(FORWARD, "[method]forward-pass.execute", &[&number(pass.into())])?;
    Ok((guest.bed.u32_at(at) & 0xff == 1).then(|| guest.bed.u32_at(at + 4)))
}

pub fn drop_result(guest: &mut Guest, result: Option<u32>) -> Result<(), End> {
    match result {
        Some(result) => Ok(guest.bed.drop_handle(FORWARD, "forward-pass-result", result)?),
        None => Ok(()),
    }
}

/// Waits for a result and takes all of it.
pub fn take(guest: &mut Guest, result: u32) -> Result<Answer, End> {
    let handle = number(result.into());
    let pollable = guest.call(FORWARD, "[method]forward-pass-result.pollable", &[&handle])? as u32;
    let one = guest.bed.list(&[pollable]);
    guest.call(POLL, "poll", &[&one])?;
    guest.bed.drop_handle(POLL, "pollable", pollable)?;
    let mut answer = Answer::default();
    let at = guest.call(FORWARD, "[method]forward-pass-result.get-tokens", &[&handle])?;
    assert_eq!(guest.bed.u32_at(at) & 0xff, 1, "it was waited for");
    answer.tokens = guest.bed.list_at(at + 4);
    let at = guest.call(FORWARD, "[method]forward-pass-result.get-distributions", &[&handle])?;
    assert_eq!(guest.bed.u32_at(at) & 0xff, 1, "it was waited for");
    let (entries, count) = (u64::from(guest.bed.u32_at(at + 4)), u64::from(guest.bed.u32_at(at + 8)));
    for entry in (0..count).map(|i| entries + 16 * i) {
        let probs = guest.bed.list_at(entry + 8).into_iter().map(f32::from_bits).collect();
        answer.distributions.push((guest.bed.list_at(entry), probs));
    }
    drop_result(guest, Some(result))?;
    Ok(answer)
}
