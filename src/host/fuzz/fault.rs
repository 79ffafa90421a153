//! What can be wrong with a pass: one line for each thing, with what must come of it.
//!
//! Owns: the faults, and the words of which one stands in the sentence that ends the guest. Never: how a pass is
//! submitted.

use super::attempt::{Ask, Attempt, How, Order, ask};
use super::guest::{Guest, Wild};
use super::watched::{PAGE, PAGES};
use crate::limits;
use crate::model::toy::{Random, TOY_VOCAB};

/// What comes of a fault that is alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// The guest ends.
    Ends,
    /// The pass may be a pass after all; where it is not, the guest ends.
    Either,
    /// It is odd, but it is a pass.
    Runs,
}
use Fate::*;

pub struct Fault {
    pub name: &'static str,
    pub fate: Fate,
    /// One of these is in the sentence.
    pub words: &'static [&'static str],
    /// False: it does not apply to this pass.
    make: fn(&mut Attempt, &mut Guest, &mut Random) -> bool,
}

impl Fault {
    pub fn make(&self, attempt: &mut Attempt, guest: &mut Guest, random: &mut Random) -> bool {
        (self.make)(attempt, guest, random)
    }
}

macro_rules! faults {
    ($($name:literal $fate:ident $words:expr, $make:expr;)*) => {
        pub const FAULTS: &[Fault] =
            &[$(Fault { name: $name, fate: $fate, words: &$words, make: $make }),*];
    };
}

faults! {
    // ---- pages ----
    "a page that is not held" Ends ["kv-page-ptrs"], |a, g, r| {
        let page = r.below(a.pages.len());
        a.pages[page] = g.pages.iter().max().map_or(0, |max| max + 1) + r.below(100) as u32;
        true
    };
    "a page that was given back" Ends ["kv-page-ptrs"], |a, g, r| {
        let named = a.pages[r.below(a.pages.len())];
        g.deallocate(0, &[named]).is_ok()
    };
    "a written page in two places" Ends ["twice"], |a, _, _| {
        a.mask = None;
        let last = a.pages[a.pages.len() - 1];
        a.pages.insert(0, last);
        true
    };
    "a read page in two places" Runs [], |a, _, _| {
        let read = (context(a) / PAGE) as usize;
        a.mask = None;
        let page = a.pages[0];
        a.pages.insert(0, page);
        read > 0
    };
    "any page names" Either ["kv-page-ptrs"], |a, _, r| {
        a.pages.iter_mut().for_each(|page| *page = r.next() as u32 >> r.below(32));
        true
    };
    "too few pages" Either ["kv-page", "kv pages", "mask"], |a, _, r| {
        a.pages.truncate(r.below(a.pages.len()));
        true
    };
    "more pages than there are" Ends ["kv-page-ptrs", "kv pages"], |a, _, r| {
        let many = [PAGES as usize + 1, limits::NAMES_PER_INSTANCE + 1, 300_000][r.below(3)];
        a.pages = (0..many).map(|i| a.pages[i % a.pages.len()]).collect();
        true
    };
    "no pages" Ends ["kv pages"], |a, _, _| {
        a.pages.clear();
        true
    };
    "nothing in the last page" Ends ["last-kv-page-len"], |a, _, _| {
        a.last = 0;
        true
    };
    "more in the last page than it holds" Ends ["last-kv-page-len"], |a, _, r| {
        a.last = [PAGE + 1, 2 * PAGE, 1 << 16, 1 << 31, u32::MAX - 1, u32::MAX][r.below(6)];
        true
    };
    "another length of the last page" Either ["kv pages", "mask"], |a, _, r| {
        a.last = 1 + r.below(PAGE as usize) as u32;
        true
    };
    // ---- tokens and positions ----
    "a token that there is not" Ends ["input-tokens"], |a, _, r| {
        let at = r.below(a.tokens.len());
        let token = [TOY_VOCAB as u32, TOY_VOCAB as u32 + 1, 1 << 20, u32::MAX][r.below(4)];
        a.tokens.get_mut(at).map(|place| *place = token).is_some()
    };
    "a position too few" Ends ["positions"], |a, _, _| a.positions.pop().is_some();
    "positions too many" Ends ["positions"], |a, _, r| {
        a.positions.extend((0..=r.below(1000) as u32).map(|i| i * 3));
        !a.tokens.is_empty()
    };
    "no inputs" Ends ["no input"], |a, _, _| {
        a.tokens.clear();
        a.positions.clear();
        a.embeds.clear();
        a.embed_positions.clear();
        true
    };
    "more rows than the pages hold" Ends ["kv pages hold", "mask"], |a, _, r| {
        let rows = PAGE as usize * a.pages.len() + 1 + r.below(2000);
        a.tokens = (0..rows).map(|_| r.below(TOY_VOCAB) as u32).collect();
        a.positions = (0..rows as u32).collect();
        true
    };
    "more rows than a pass may have" Ends ["inputs"], |a, _, r| {
        a.tokens = vec![1; limits::PASS_ROWS + 1];
        a.positions = vec![1; limits::PASS_ROWS + 1];
        r.below(20) == 0
    };
    "extreme positions" Runs [], |a, _, r| {
        a.positions.iter_mut().for_each(|at| *at = [0, 1 << 24, 1 << 31, u32::MAX - 1, u32::MAX][r.below(5)]);
        true
    };
    // ---- embeddings ----
    "an embedding that nothing is in" Ends ["input-embeddings"], |a, g, _| {
        let empty = g.embeds.iter().find(|(_, full)| !full).map(|(id, _)| *id);
        empty.is_some_and(|id| embed_for_token(a, id))
    };
    "an embedding that is not held" Ends ["emb-ptrs"], |a, _, r| embed_for_token(a, 1000 + r.below(1000) as u32);
    "embeddings without positions" Ends ["embeddings"], |a, g, _| {
        a.embeds.extend(g.embeds.iter().map(|(id, _)| *id).take(1));
        !a.embeds.is_empty() && a.embed_positions.len() != a.embeds.len()
    };
    "an embedding read again and again" Runs [], |a, g, _| {
        let full = g.embeds.iter().find(|(_, full)| *full).map(|(id, _)| *id);
        full.is_some_and(|id| { while embed_for_token(a, id) {} true })
    };
    "stored to what is not held" Ends ["emb-ptrs of output-embeddings"], |a, _, r| {
        store(a, &[4711], &[0], r)
    };
    "stored to one embedding twice" Ends ["emb-ptrs"], |a, g, r| {
        g.embeds.first().is_some_and(|(id, _)| store(a, &[*id, *id], &[0, 0], r))
    };
    "stored from no row" Ends ["output index"], |a, g, r| {
        g.embeds.last().is_some_and(|(id, _)| store(a, &[*id], &[u32::MAX], r))
    };
    "stored from more rows than to embeddings" Ends ["embeddings"], |a, g, r| {
        g.embeds.last().is_some_and(|(id, _)| store(a, &[*id], &[0, 0, 0], r))
    };
    // ---- masks ----
    "a mask with a row too many" Ends ["mask"], |a, _, _| {
        masked(a).push(vec![1]);
        true
    };
    "a mask with a row too few" Ends ["mask"], |a, _, _| {
        masked(a).pop();
        a.rows() > 1 // Without any row it is the causal one.
    };
    "a mask row of another sum" Ends ["mask"], |a, _, r| {
        let more = 1 + r.below(5) as u32;
        mask_row(a, r, |runs, _| runs.push(more))
    };
    "a mask row without runs" Ends ["mask"], |a, _, r| mask_row(a, r, |runs, _| runs.clear());
    "a mask row that hides everything" Ends ["hides every token"], |a, _, r| {
        mask_row(a, r, |runs, slots| *runs = vec![0, slots])
    };
    "a mask row that hides everything in parts" Ends ["hides every token"], |a, _, r| {
        mask_row(a, r, |runs, slots| *runs = (0..slots.min(4096)).flat_map(|_| [0, 1]).collect())
    };
    "a mask row of endless runs" Ends ["mask"], |a, _, r| {
        let count = 1 + r.below(9);
        mask_row(a, r, |runs, _| *runs = vec![u32::MAX; count])
    };
    "a mask row whose sum wraps to the right one" Ends ["mask"], |a, _, r| {
        let turn = r.below(3);
        mask_row(a, r, |runs, slots| {
            *runs = vec![u32::MAX, 1, slots];
            runs.rotate_left(turn);
        })
    };
    "a mask row of empty runs and the right sum" Runs [], |a, _, r| {
        let empty = 2 * r.below(2000);
        mask_row(a, r, |runs, slots| {
            *runs = vec![0; empty];
            runs.extend([slots - 1, 0, 1]);
        })
    };
    "a mask row that hides the row itself" Either ["mask"], |a, _, r| {
        mask_row(a, r, |runs, slots| *runs = vec![slots - 1, 1])
    };
    // ---- outputs ----
    "an output of a row that there is not" Ends ["output index"], |a, _, r| {
        let rows = a.rows() as u32;
        an_ask(a, r).rows.push([rows, rows + 1, 1 << 31, u32::MAX][r.below(4)]);
        true
    };
    "an output asked again and again" Runs [], |a, _, r| {
        let rows = &mut an_ask(a, r).rows;
        *rows = vec![rows[0]; 2 + r.below(20)];
        true
    };
    "thousands of outputs" Runs [], |a, _, r| {
        a.asks = vec![Ask { k: 2, rows: vec![0; 1000 + r.below(3000)], ..ask(How::YIELDING[r.below(6)], 1, r) }];
        r.below(8) == 0
    };
    "more outputs than a pass may have" Ends ["outputs"], |a, _, r| {
        an_ask(a, r).rows = vec![0; limits::PASS_OUTPUTS + 1];
        r.below(4) == 0
    };
    "more entries of distributions than a pass may have" Ends ["distribution entries"], |a, _, r| {
        let rows = vec![0; 1 + limits::PASS_DISTRIBUTION_ENTRIES / TOY_VOCAB];
        a.asks.push(Ask { k: u32::MAX, rows, ..ask(How::Distribution, 1, r) });
        r.below(4) == 0
    };
    "no outputs in a call" Runs [], |a, _, r| {
        an_ask(a, r).rows.clear();
        true
    };
    "a top-k of nothing" Ends ["top-k"], |a, _, r| {
        let how = [How::TopK, How::TopKTopP, How::Distribution][r.below(3)];
        a.asks.push(Ask { k: 0, ..ask(how, a.rows(), r) });
        true
    };
    "a top-k beyond everything" Runs [], |a, _, r| {
        let how = [How::TopK, How::TopKTopP, How::Distribution][r.below(3)];
        let k = [TOY_VOCAB as u32, TOY_VOCAB as u32 + 1, 1 << 31, u32::MAX][r.below(4)];
        a.asks.push(Ask { k, ..ask(how, a.rows(), r) });
        true
    };
    "a temperature that is none" Ends ["temperature"], |a, _, r| {
        an_ask(a, r).temperature = [-1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e-45][r.below(6)];
        true
    };
    "a temperature at the edge" Runs [], |a, _, r| {
        an_ask(a, r).temperature = [-0.0, 1e-45, f32::MIN_POSITIVE, 1e-30, 1e30, f32::MAX][r.below(6)];
        true
    };
    "a share that is none" Ends ["top-p", "min-p"], |a, _, r| {
        let p = [-1.0, f32::NAN, f32::NEG_INFINITY, -1e-45][r.below(4)];
        a.asks.push(Ask { p, ..ask([How::TopP, How::MinP, How::TopKTopP][r.below(3)], a.rows(), r) });
        true
    };
    "a share at the edge" Runs [], |a, _, r| {
        let p = [-0.0, 1e-45, 1.0 + f32::EPSILON, 1e30, f32::INFINITY][r.below(5)];
        a.asks.push(Ask { p, ..ask([How::TopP, How::MinP, How::TopKTopP][r.below(3)], a.rows(), r) });
        true
    };
    "an option of no case" Ends ["case"], |a, g, r| {
        a.asks.push(ask(How::Distribution, a.rows(), r));
        wild(g, "output-distributions", 4, 2 + r.next() as u32 % 1000)
    };
    // ---- order ----
    "executed twice" Ends ["no input"], |a, _, _| in_order(a, Order::ExecuteTwice);
    "set up again once it was executed" Runs [], |a, _, _| in_order(a, Order::SetAfterExecute);
    "its queue dropped before" Runs [], |a, _, _| in_order(a, Order::QueueDropped);
    "dropped before it is executed" Ends ["handle"], |a, _, _| in_order(a, Order::PassDropped);
    "dropped twice" Ends ["handle"], |a, _, _| in_order(a, Order::PassDroppedTwice);
    "its result dropped unread" Runs [], |a, _, _| in_order(a, Order::ResultDropped);
    "its pages given back behind it" Runs [], |a, _, _| in_order(a, Order::PagesFreedBehind);
    "never executed" Runs [], |a, _, _| in_order(a, Order::NeverExecuted);
    // ---- handles ----
    "a handle of nothing" Ends ["handle"], |_, g, r| {
        let handle = [0, 1000 + r.below(1000) as u32, 1 << 31, u32::MAX][r.below(4)];
        wild(g, CALLS[r.below(CALLS.len())], 0, handle)
    };
    "a handle of another kind" Ends ["handle"], |_, g, r| {
        let queue = g.queue;
        wild(g, CALLS[1 + r.below(CALLS.len() - 1)], 0, queue)
    };
    // ---- pointers and lengths ----
    "a list outside of memory" Ends ["outside"], |_, g, r| {
        let at = [4 << 20, (4 << 20) - 4, 1 << 31, u32::MAX - 3][r.below(4)];
        wild(g, "input-tokens", 1 + 2 * r.below(2), at) && wild(g, "input-tokens", 2, 2) && wild(g, "input-tokens", 4, 2)
    };
    "pages outside of memory" Ends ["outside"], |_, g, r| {
        let len = [1 << 23, 1 << 30, 1 << 31, u32::MAX][r.below(4)];
        wild(g, "kv-cache", 2, len)
    };
    "a list that is not aligned" Ends ["aligned"], |_, g, r| {
        let (function, at) = [("input-tokens", 1), ("input-tokens", 3), ("kv-cache", 1)][r.below(3)];
        wild(g, function, at, 4097 + r.below(3) as u32)
    };
    "two lists in one place" Either ["input-tokens", "positions", "kv-page-ptrs"], |_, g, r| {
        let (function, at) = [("input-tokens", 1), ("input-tokens", 3), ("kv-cache", 1)][r.below(3)];
        wild(g, function, at, 4096 + 4 * r.below(4) as u32)
    };
    "all of memory as tokens" Ends ["input-tokens"], |_, g, r| {
        r.below(8) == 0
            && [(1, 0), (2, 1 << 20), (3, 0), (4, 1 << 20)].into_iter().all(|(at, value)| wild(g, "input-tokens", at, value))
    };
    "a mask outside of memory" Ends ["outside"], |a, g, r| {
        masked(a);
        wild(g, "attention-mask", 1 + r.below(2), [1 << 25, 1 << 31, u32::MAX - 3][r.below(3)])
    };
    "a mask row outside of memory" Ends ["outside"], |a, _, r| {
        let rows = masked(a).len();
        a.mask_word = Some((r.below((2 * rows).max(1)), [1 << 25, 1 << 31, u32::MAX - 3][r.below(3)]));
        true
    };
    "a mask row that is not aligned" Ends ["aligned"], |a, _, r| {
        let rows = masked(a).len();
        a.mask_word = Some((2 * r.below(rows), 4097 + 2 * r.below(100) as u32));
        true
    };
    "a mask of more rows and runs than there can be" Ends ["attention mask rows", "outside"], |a, g, r| {
        // Rows of what lies behind the mask: most have nothing in them, the first has half of memory.
        masked(a);
        a.mask_word = Some((1, 1 << 19));
        wild(g, "attention-mask", 2, [1 << 20, 1 << 29, u32::MAX][r.below(3)])
    };
    "an answer outside of memory" Ends ["outside"], |_, g, r| {
        wild(g, EXECUTE, 1, [4 << 20, 1 << 31, u32::MAX - 3][r.below(3)])
    };
    "an answer where nothing is aligned" Ends ["aligned"], |_, g, r| wild(g, EXECUTE, 1, 1025 + r.below(3) as u32);
}

const EXECUTE: &str = "[method]forward-pass.execute";
/// Calls of every attempt whose first value is a handle.
const CALLS: [&str; 4] = ["create-forward-pass", "input-tokens", "kv-cache", EXECUTE];

/// Words of which at least one is in any sentence about a pass: for passes with more than one fault.
pub const ANY: [&str; 21] = [
    "kv-page",
    "kv pages",
    "page",
    "input",
    "positions",
    "embeddings",
    "emb-ptrs",
    "mask",
    "output index",
    "outputs",
    "distribution entries",
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "handle",
    "outside",
    "aligned",
    "case",
    "twice",
    "the most one call may pass",
];

/// Tokens behind which the new rows stand.
fn context(attempt: &Attempt) -> u32 {
    let before = PAGE * (attempt.pages.len() as u32).saturating_sub(1);
    before.saturating_add(attempt.last).saturating_sub(attempt.rows() as u32)
}

/// The mask of a pass; a causal one if it has none.
fn masked(attempt: &mut Attempt) -> &mut Vec<Vec<u32>> {
    let (context, rows) = (context(attempt), attempt.rows());
    attempt.mask.get_or_insert_with(|| (0..rows).map(|row| vec![slots(context, row)]).collect())
}

/// What a row's runs must add up to.
fn slots(context: u32, row: usize) -> u32 {
    context.saturating_add(row as u32 + 1)
}

/// Changes a row of the mask; false if another fault has taken them all.
fn mask_row(attempt: &mut Attempt, random: &mut Random, change: impl FnOnce(&mut Vec<u32>, u32)) -> bool {
    let (context, row) = (context(attempt), random.below(masked(attempt).len()));
    let runs = masked(attempt).get_mut(row);
    runs.map(|runs| change(runs, slots(context, row))).is_some()
}

/// Some call that asks for outputs.
fn an_ask<'a>(attempt: &'a mut Attempt, random: &mut Random) -> &'a mut Ask {
    let made = ask(How::YIELDING[random.below(6)], attempt.rows(), random);
    attempt.asks.push(made);
    let last = attempt.asks.len() - 1;
    &mut attempt.asks[last]
}

/// Has this embedding come in instead of the last token.
fn embed_for_token(attempt: &mut Attempt, id: u32) -> bool {
    let Some(position) = attempt.positions.pop() else { return false };
    attempt.tokens.pop();
    attempt.embeds.push(id);
    attempt.embed_positions.push(position);
    true
}

fn store(attempt: &mut Attempt, to: &[u32], rows: &[u32], random: &mut Random) -> bool {
    let sane = ask(How::Embed, attempt.rows(), random);
    attempt.asks.push(Ask { to: to.to_vec(), rows: rows.to_vec(), ..sane });
    true
}

fn in_order(attempt: &mut Attempt, order: Order) -> bool {
    attempt.order = order;
    true
}

fn wild(guest: &mut Guest, function: &'static str, at: usize, value: u32) -> bool {
    guest.wild.push(Wild { function, at, value });
    true
}
