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
//! one user what another has asked.

use crate::backend::{Input, TokenId};
use crate::engine::pages::Physical;
use crate::identity::Subject;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use std::collections::{BTreeMap, HashMap, HashSet};

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

/// Tokens and positions of slots, from a sequence's first: BLAKE3, cut to 128 bits. Two sequences with one digest take
/// 2^64 tries to find, and whoever finds them deceives nobody but its own subject; a second one for a public prefix
/// takes 2^128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    /// Of no slots.
    pub const EMPTY: Digest = Digest([0; 16]);

    /// Of one slot more.
    fn then(self, token: TokenId, position: u32) -> Digest {
        #[cfg(test)]
        let position = if planted(Bug::PrefixPositions) { 0 } else { position };
        let mut slot = [0; 24];
        slot[..16].copy_from_slice(&self.0);
        slot[16..20].copy_from_slice(&token.0.to_le_bytes());
        slot[20..].copy_from_slice(&position.to_le_bytes());
        let mut cut = [0; 16];
        cut.copy_from_slice(&blake3::hash(&slot).as_bytes()[..16]);
        Digest(cut)
    }
}

/// What the first `len` slots of a page hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Of all slots before the page.
    start: Digest,
    /// Of these and `len` of its own.
    pub end: Digest,
    pub len: u32,
}

/// What the pages of one pool hold.
pub struct Prefixes {
    on: bool,
    page_size: u32,
    /// Digests of whole pages that any subject may find.
    public: HashSet<Digest>,
    /// Once all that is queued has run; `None` where that does not follow from tokens alone.
    contents: Vec<Option<Content>>, // [physical page]
    /// Whole pages that have been written. Nobody's are public.
    found: HashMap<(Option<Subject>, Digest), Physical>,
    /// The keys of `found`.
    keys: HashMap<Physical, (Option<Subject>, Digest)>,
    /// Of these, those that nobody uses, least recently used first, ...
    idle: BTreeMap<u64, Physical>,
    /// ... and when each was last.
    since: HashMap<Physical, u64>,
    clock: u64,
}

impl Prefixes {
    pub fn new(pages: u32, page_size: u32, reuse: &Reuse) -> Prefixes {
        let mut public = HashSet::new();
        for tokens in &reuse.public {
            let mut digest = Digest::EMPTY;
            for (position, &token) in (0u32..).zip(tokens) {
                digest = digest.then(token, position);
                if (position + 1).is_multiple_of(page_size) {
                    public.insert(digest);
                }
            }
        }
        Prefixes {
            on: reuse.on,
            page_size,
            public,
            contents: vec![None; if reuse.on { pages as usize } else { 0 }],
            found: HashMap::new(),
            keys: HashMap::new(),
            idle: BTreeMap::new(),
            since: HashMap::new(),
            clock: 0,
        }
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
        if !self.on {
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
        let mut last = Content { start, end: start, len: 0 };
        if part > 0 {
            last = self.content(pages[whole]).filter(|c| c.start == start && c.len == part)?;
        }
        let mut contents = Vec::with_capacity(pages.len() - whole);
        for (input, &position) in inputs.iter().zip(positions) {
            let Input::Token(token) = *input else { return None };
            if last.len == self.page_size {
                contents.push(last);
                last = Content { start: last.end, end: last.end, len: 0 };
            }
            last.end = last.end.then(token, position);
            last.len += 1;
        }
        contents.push(last);
        Some(contents)
    }

    /// A queued pass writes the page from slot `from` on. It will hold `content`, if that is known.
    pub fn write(&mut self, page: Physical, from: u32, content: Option<Content>) {
        if !self.on {
            return;
        }
        #[cfg(test)]
        let forgotten = !planted(Bug::PrefixStale);
        #[cfg(not(test))]
        let forgotten = true;
        if forgotten {
            self.forget(page);
        }
        let held = &mut self.contents[page.0 as usize];
        // Slots before the first one written stay what they were.
        *held = content.or(held.filter(|c| c.len <= from && c.len > 0));
    }

    /// Whether the page is known to hold this whole, once all that is queued has run.
    pub fn holds(&self, page: Physical, content: &Content) -> bool {
        self.content(page) == Some(*content) && content.len == self.page_size
    }

    /// A queued move makes one page hold what another does.
    pub fn copy(&mut self, from: Physical, to: Physical) {
        if self.on {
            self.contents[to.0 as usize] = self.contents[from.0 as usize];
        }
    }

    fn content(&self, page: Physical) -> Option<Content> {
        self.contents[page.0 as usize]
    }

    // ---- what can be found ----

    /// The page that holds whole what `content` says, if one may be found by the subject.
    pub fn find(&self, subject: &Subject, content: &Content) -> Option<Physical> {
        if content.len < self.page_size {
            return None;
        }
        self.found.get(&self.key(subject, content.end)).copied()
    }

    /// All that was to be written to the page has been: from now on it may be found, if it holds a whole prefix.
    pub fn written(&mut self, page: Physical, subject: &Subject) {
        let whole = |c: &Content| c.len == self.page_size;
        if self.on
            && let Some(content) = self.content(page).filter(whole)
            && let key = self.key(subject, content.end)
            && !self.found.contains_key(&key)
        {
            self.found.insert(key.clone(), page);
            self.keys.insert(page, key);
        }
    }

    fn key(&self, subject: &Subject, digest: Digest) -> (Option<Subject>, Digest) {
        ((!self.public.contains(&digest)).then(|| subject.clone()), digest)
    }

    fn forget(&mut self, page: Physical) {
        if let Some(key) = self.keys.remove(&page) {
            self.found.remove(&key);
        }
    }

    // ---- pages that nobody uses ----

    /// How many there are.
    pub fn idle(&self) -> u32 {
        self.idle.len() as u32
    }

    /// Nobody uses the page any more. True: it is kept, for it can be found.
    pub fn keep(&mut self, page: Physical) -> bool {
        if !self.keys.contains_key(&page) {
            return false;
        }
        self.clock += 1;
        self.idle.insert(self.clock, page);
        self.since.insert(page, self.clock);
        true
    }

    /// Somebody uses an idle page again. False: it was not idle.
    pub fn wake(&mut self, page: Physical) -> bool {
        let since = self.since.remove(&page);
        since.is_some_and(|since| self.idle.remove(&since).is_some())
    }

    /// Gives up the idle page that was used longest ago.
    pub fn give_up(&mut self) -> Option<Physical> {
        let (_, page) = self.idle.pop_first()?;
        self.since.remove(&page);
        self.forget(page);
        Some(page)
    }

    /// Nothing is known of the page: it is given to somebody, or what was to be written to it will not be.
    pub fn empty(&mut self, page: Physical) {
        if let Some(content) = self.contents.get_mut(page.0 as usize) {
            *content = None;
        }
    }
}

#[cfg(test)]
impl Prefixes {
    pub fn is_idle(&self, page: Physical) -> bool {
        self.since.contains_key(&page)
    }

    pub fn check(&self) {
        assert_eq!(self.found.len(), self.keys.len());
        assert_eq!(self.idle.len(), self.since.len());
        for (page, key) in &self.keys {
            assert_eq!(self.found.get(key), Some(page));
            let held = self.content(*page).expect("what can be found is known");
            assert!(planted(Bug::PrefixStale) || (held.end, held.len) == (key.1, self.page_size), "{page:?}");
        }
        for (since, page) in &self.idle {
            assert!(self.since.get(page) == Some(since) && self.keys.contains_key(page), "{page:?}");
        }
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
    fn what_is_written_over_is_not_found_and_what_was_used_longest_ago_goes_first() {
        let a = Subject::new("a");
        let mut prefixes = Prefixes::new(4, 2, &Reuse::default());
        filled(&mut prefixes, &PAGES[..2], &a);
        assert!(prefixes.keep(PAGES[1]) && prefixes.keep(PAGES[0]) && !prefixes.keep(PAGES[2]));
        assert!(prefixes.wake(PAGES[1]) && !prefixes.wake(PAGES[1]) && prefixes.keep(PAGES[1]));
        assert_eq!((prefixes.idle(), prefixes.give_up()), (2, Some(PAGES[0])));
        assert_eq!(finds(&prefixes, &a), [None, Some(PAGES[1])]);
        assert!(prefixes.wake(PAGES[1]));
        prefixes.write(PAGES[1], 1, None);
        prefixes.check();
        assert_eq!((finds(&prefixes, &a), prefixes.give_up()), (vec![None, None], None));
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
