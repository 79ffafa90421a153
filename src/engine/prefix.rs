//! Which pages hold the keys and values of which tokens, so that a prefix that was computed once is not computed again.
//!
//! Owns: for each page what it holds, as far as that follows from tokens alone; an index of the pages that may be found
//! by it, and by whom; the order in which those that nobody uses are given up. Never: who refers to a page (that is
//! [`Pool`](super::pages::Pool)'s), or when a pass runs.
//!
//! A slot's keys and values follow from the tokens and positions of all slots up to it, as long as each attends all before
//! it. So a slot is known by a digest of these, chained slot by slot. A page is found by the digest of its last slot, in
//! which all pages before it are contained, and only once what was to be written there has been. It is found by its
//! own subject; by others only if the operator has marked that prefix public, for how fast an answer comes would else tell
//! one user what another has asked. Of several pages that hold the same, the first that was written is found.

use crate::backend::{Input, TokenId};
use crate::engine::pages::Physical;
use crate::identity::Subject;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use std::cmp::Reverse;
use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Reuse {
    /// Whether pages are found by what they hold.
    pub on: bool,
    /// Prefixes that any subject may find, whoever has computed them; positions count from 0.
    pub public: Vec<Vec<TokenId>>,
}

impl Default for Reuse {
    fn default() -> Reuse {
        Reuse { on: true, public: Vec::new() }
    }
}

/// Tokens and positions of slots, from a sequence's first: 128 bits of SipHash under keys that nobody outside knows, so
/// nobody can look for two sequences with one digest. The engine's thread makes one for each row that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u64; 2]);

impl Digest {
    /// Of no slots.
    pub const EMPTY: Digest = Digest([0; 2]);
}

/// The keys of digests.
struct Keys([RandomState; 2]);

impl Keys {
    /// The digest of one slot more.
    fn then(&self, digest: Digest, token: TokenId, position: u32) -> Digest {
        #[cfg(test)]
        let position = if planted(Bug::PrefixPositions) { 0 } else { position };
        Digest(self.0.each_ref().map(|key| key.hash_one((digest.0, token.0, position))))
    }
}

/// What the first `len` slots of a page hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Of all slots before the page.
    start: Digest,
    /// Of these and `len` of its own.
    end: Digest,
    len: u32,
    /// Pages before it in its sequence.
    depth: u32,
}

/// What the pages of one pool hold.
pub struct Prefixes {
    page_size: u32,
    keys: Keys,
    /// Digests of whole pages that any subject may find.
    public: HashSet<Digest>,
    pages: Vec<Page>, // [physical page]; none where nothing is to be found
    /// Whole pages that have been written, by the digest of their last slot.
    found: HashMap<(Finder, Digest), Physical>,
    /// Of these, those that nobody uses, first to go first.
    idle: BTreeSet<Place>,
    /// Passes so far.
    passes: u64,
}

/// Who may find a page: a subject, or, where it is public, everybody.
type Finder = Option<Subject>;

/// The page whose sequence has gone longest without a pass goes first, and of one sequence the last: without what is before
/// it, a page cannot be found.
type Place = (u64, Reverse<u32>, Physical);

#[derive(Clone, Default)]
struct Page {
    /// Once all that is queued has run; `None` where that does not follow from tokens alone.
    content: Option<Content>,
    /// By whom it can be found, if it can.
    finder: Option<Finder>,
    /// The last pass that named it.
    used: u64,
}

impl Prefixes {
    pub fn new(pages: u32, page_size: u32, reuse: &Reuse) -> Prefixes {
        let keys = Keys([RandomState::new(), RandomState::new()]);
        let mut public = HashSet::new();
        for tokens in &reuse.public {
            let mut digest = Digest::EMPTY;
            for (position, &token) in (0u32..).zip(tokens) {
                digest = keys.then(digest, token, position);
                if (position + 1).is_multiple_of(page_size) {
                    public.insert(digest);
                }
            }
        }
        let pages = vec![Page::default(); if reuse.on { pages as usize } else { 0 }];
        Prefixes { page_size, keys, public, pages, found: HashMap::new(), idle: BTreeSet::new(), passes: 0 }
    }

    /// For what is no prefix.
    pub fn none() -> Prefixes {
        Prefixes::new(0, 1, &Reuse { on: false, public: Vec::new() })
    }

    // ---- contents, in the order submitted ----

    /// What the pages of a pass hold after it, from the one on that has its first new slot: `context` slots of `pages`
    /// come first. `None`: it does not follow from tokens alone.
    pub fn after(
        &self,
        pages: &[Physical],
        context: u32,
        inputs: &[Input],
        positions: &[u32],
    ) -> Option<Vec<Content>> {
        if self.pages.is_empty() {
            return None;
        }
        let (whole, part) = ((context / self.page_size) as usize, context % self.page_size);
        let mut start = Digest::EMPTY;
        for &page in &pages[..whole] {
            let content = self.content(page).filter(|c| c.len == self.page_size)?;
            let listed_so = content.start == start;
            #[cfg(test)]
            let listed_so = listed_so || planted(Bug::PrefixOrder);
            if !listed_so {
                return None; // It was computed behind other pages than those it is listed behind.
            }
            start = content.end;
        }
        let mut last = Content { start, end: start, len: 0, depth: whole as u32 };
        if part > 0 {
            last = self.content(pages[whole]).filter(|c| c.start == start && c.len == part)?;
        }
        let mut contents = Vec::with_capacity(pages.len() - whole);
        for (input, &position) in inputs.iter().zip(positions) {
            let Input::Token(token) = *input else { return None };
            if last.len == self.page_size {
                contents.push(last);
                last = Content { start: last.end, end: last.end, len: 0, depth: last.depth + 1 };
            }
            last.end = self.keys.then(last.end, token, position);
            last.len += 1;
        }
        contents.push(last);
        Some(contents)
    }

    /// A queued pass names these pages.
    pub fn name(&mut self, pages: &[Physical]) {
        self.passes += 1;
        for page in pages {
            if let Some(page) = self.pages.get_mut(page.0 as usize) {
                page.used = self.passes;
            }
        }
    }

    /// A queued pass writes the page from slot `from` on. It will hold `content`, if that is known.
    pub fn write(&mut self, page: Physical, from: u32, content: Option<Content>) {
        // Slots before the first one written stay what they were.
        let content = content.or(self.content(page).filter(|c| c.len <= from && c.len > 0));
        #[cfg(test)]
        if planted(Bug::PrefixStale) {
            return self.set(page, content);
        }
        self.forget(page);
        self.set(page, content);
    }

    fn set(&mut self, page: Physical, content: Option<Content>) {
        if let Some(page) = self.pages.get_mut(page.0 as usize) {
            page.content = content;
        }
    }

    /// Whether the page is known to hold this whole, once all that is queued has run.
    pub fn holds(&self, page: Physical, content: &Content) -> bool {
        self.content(page) == Some(*content) && content.len == self.page_size
    }

    /// A queued move makes one page hold what another does.
    pub fn copy(&mut self, from: Physical, to: Physical) {
        self.set(to, self.content(from));
    }

    /// Nothing is known of the page: it is given to somebody, or what was to be written to it will not be.
    pub fn empty(&mut self, page: Physical) {
        self.set(page, None);
    }

    fn content(&self, page: Physical) -> Option<Content> {
        self.pages.get(page.0 as usize)?.content
    }

    // ---- what can be found ----

    /// The page that holds whole what `content` says, if one may be found by the subject.
    pub fn find(&self, subject: &Subject, content: &Content) -> Option<Physical> {
        if content.len < self.page_size {
            return None;
        }
        self.found.get(&(self.finder(subject, content), content.end)).copied()
    }

    /// All that was to be written to the page has been: from now on it may be found, if it holds a whole prefix.
    pub fn written(&mut self, page: Physical, subject: &Subject) {
        let whole = |c: &Content| c.len == self.page_size;
        let Some(content) = self.content(page).filter(whole) else { return };
        let finder = self.finder(subject, &content);
        if let Entry::Vacant(place) = self.found.entry((finder.clone(), content.end)) {
            place.insert(page);
            self.pages[page.0 as usize].finder = Some(finder);
        }
    }

    fn finder(&self, subject: &Subject, content: &Content) -> Finder {
        #[cfg(test)]
        if planted(Bug::PrefixSubject) {
            return None;
        }
        (!self.public.contains(&content.end)).then(|| subject.clone())
    }

    fn forget(&mut self, page: Physical) {
        let Some(Page { content: Some(content), finder, .. }) = self.pages.get_mut(page.0 as usize) else {
            return;
        };
        if let Some(finder) = finder.take() {
            self.found.remove(&(finder, content.end));
        }
    }

    // ---- pages that nobody uses ----

    /// How many there are.
    pub fn idle(&self) -> u32 {
        self.idle.len() as u32
    }

    /// Nobody uses the page any more. True: it is kept, for it can be found.
    pub fn keep(&mut self, page: Physical) -> bool {
        let place = self.place(page);
        place.is_some_and(|place| self.idle.insert(place))
    }

    /// Somebody uses an idle page again. False: it was not idle.
    pub fn wake(&mut self, page: Physical) -> bool {
        let place = self.place(page);
        place.is_some_and(|place| self.idle.remove(&place))
    }

    /// Gives up the idle page that is the first to go.
    pub fn give_up(&mut self) -> Option<Physical> {
        let (.., page) = self.idle.pop_first()?;
        self.forget(page);
        Some(page)
    }

    /// Of a page that can be found, among the idle.
    fn place(&self, page: Physical) -> Option<Place> {
        let Page { content, finder, used } = self.pages.get(page.0 as usize)?;
        Some((*used, Reverse(content.filter(|_| finder.is_some())?.depth), page))
    }
}

#[cfg(test)]
impl Prefixes {
    pub fn is_idle(&self, page: Physical) -> bool {
        self.place(page).is_some_and(|place| self.idle.contains(&place))
    }

    /// Everything found is known, and by whom it may be found; a page that somebody uses, `user`, is found by nobody else.
    pub fn check<'s>(&self, user: impl Fn(Physical) -> Option<&'s Subject>) {
        let (mut known, mut idle) = (0, 0);
        for (at, page) in (0..).map(Physical).zip(&self.pages) {
            idle += usize::from(self.is_idle(at));
            let Some(finder) = &page.finder else { continue };
            known += 1;
            let content = page.content.expect("what can be found is known");
            assert_eq!(content.len, self.page_size, "{at:?}");
            assert_eq!(self.found.get(&(finder.clone(), content.end)), Some(&at));
            assert_eq!(finder.is_none(), self.public.contains(&content.end), "{at:?} is found by others");
            assert!(finder.is_none() || user(at).is_none_or(|user| finder.as_ref() == Some(user)), "{at:?}");
        }
        assert_eq!((known, idle), (self.found.len(), self.idle.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: [Physical; 4] = [Physical(0), Physical(1), Physical(2), Physical(3)];

    fn tokens(ids: std::ops::Range<u32>) -> (Vec<Input>, Vec<u32>) {
        (ids.clone().map(|id| Input::Token(TokenId(id))).collect(), ids.collect())
    }

    fn filled(prefixes: &mut Prefixes, pages: &[Physical], subject: &Subject) {
        let (inputs, positions) = tokens(0..pages.len() as u32 * 2);
        let contents = prefixes.after(pages, 0, &inputs, &positions).expect("tokens alone");
        prefixes.name(pages);
        for (&page, content) in pages.iter().zip(contents) {
            prefixes.write(page, 0, Some(content));
            prefixes.written(page, subject);
        }
    }

    /// What a pass of tokens 0.. behind nothing would find.
    fn finds(prefixes: &Prefixes, subject: &Subject) -> Vec<Option<Physical>> {
        let (inputs, positions) = tokens(0..4);
        let contents = prefixes.after(&PAGES[2..], 0, &inputs, &positions).expect("tokens alone");
        contents.iter().map(|content| prefixes.find(subject, content)).collect()
    }

    #[test]
    fn a_prefix_is_found_by_its_subject_and_a_public_one_by_all() {
        let [a, b] = ["a", "b"].map(Subject::new);
        let mut own = Prefixes::new(4, 2, &Reuse::default());
        filled(&mut own, &PAGES[..2], &a);
        assert_eq!(finds(&own, &a), [Some(PAGES[0]), Some(PAGES[1])]);
        assert_eq!(finds(&own, &b), [None, None]);

        // Three tokens are public: one whole page.
        let public = vec![(0..3).map(TokenId).collect()];
        let mut shared = Prefixes::new(4, 2, &Reuse { on: true, public });
        filled(&mut shared, &PAGES[..2], &a);
        assert_eq!(finds(&shared, &a), [Some(PAGES[0]), Some(PAGES[1])]);
        assert_eq!(finds(&shared, &b), [Some(PAGES[0]), None]);

        let mut off = Prefixes::new(4, 2, &Reuse { on: false, public: vec![] });
        off.written(PAGES[0], &a);
        let (inputs, positions) = tokens(0..4);
        assert_eq!(off.after(&PAGES, 0, &inputs, &positions), None);
    }

    #[test]
    fn what_is_written_over_is_not_found() {
        let a = Subject::new("a");
        let mut prefixes = Prefixes::new(4, 2, &Reuse::default());
        filled(&mut prefixes, &PAGES[..2], &a);
        prefixes.write(PAGES[1], 1, None);
        prefixes.check(|_| Some(&a));
        assert_eq!(finds(&prefixes, &a), [Some(PAGES[0]), None]);
        assert!(!prefixes.keep(PAGES[1]) && !prefixes.keep(PAGES[2]));
    }

    /// In whatever order pages come free: stock programs give the first back first.
    #[test]
    fn the_sequence_unused_for_longest_goes_first_and_of_it_the_last_page() {
        let a = Subject::new("a");
        let mut prefixes = Prefixes::new(4, 1, &Reuse::default());
        for (pages, first) in [(&PAGES[..2], 10), (&PAGES[2..], 20)] {
            let (inputs, positions) = tokens(first..first + 2);
            let contents = prefixes.after(pages, 0, &inputs, &positions).expect("tokens alone");
            prefixes.name(pages);
            for (&page, content) in pages.iter().zip(contents) {
                prefixes.write(page, 0, Some(content));
                prefixes.written(page, &a);
            }
        }
        prefixes.name(&PAGES[..2]);
        assert!(PAGES.iter().all(|&page| prefixes.keep(page)));
        assert!(prefixes.wake(PAGES[0]) && !prefixes.wake(PAGES[0]) && prefixes.keep(PAGES[0]));
        prefixes.check(|_| None);
        let gone: Vec<Physical> = std::iter::from_fn(|| prefixes.give_up()).collect();
        assert_eq!(gone, [PAGES[3], PAGES[2], PAGES[1], PAGES[0]]);
    }

    #[test]
    fn pages_in_another_order_or_in_part_are_another_prefix() {
        let a = Subject::new("a");
        let mut prefixes = Prefixes::new(4, 2, &Reuse::default());
        filled(&mut prefixes, &PAGES[..2], &a);
        let (inputs, positions) = tokens(4..5);
        let after = |pages: &[usize], context| {
            let pages: Vec<Physical> = pages.iter().map(|&i| PAGES[i]).collect();
            prefixes.after(&pages, context, &inputs, &positions).is_some()
        };
        assert!(after(&[0, 1, 2], 4) && after(&[0, 2], 2));
        assert!(!after(&[1, 0, 2], 4), "exchanged");
        assert!(!after(&[1, 2], 2), "without the first");
        assert!(!after(&[0, 0, 2], 4), "twice the first");
        assert!(!after(&[0, 1], 3), "behind the middle of a page that holds more");
        assert_eq!(prefixes.after(&PAGES[..3], 4, &[Input::Embed(crate::backend::EmbedId(0))], &[4]), None);
    }
}
