//! Who owns which physical page: names, reference counts, exports.
//!
//! Owns: one [`Pool`] per [`Kind`](super::operation::Kind), each with its physical ids, the names (virtual ids) of
//! every instance, the exports of every subject. Never: an order in time (that is the schedule's), who gives way when
//! pages run short (the policy's), a thread, a tensor. All of it acts at once, in call order.
//!
//! A physical page is in use while it has an owner (a name of an instance, an entry of an export) or a hold (a queued
//! operation that names it); so a page given back waits for the last operation that uses it. Then it is free, or idle:
//! kept as long as there is room, because others may want what it holds (see [`Prefixes`]). Pages are shared only through
//! exports, which are scoped to a subject; so each page in use belongs to exactly one.
//!
//! Virtual ids count up from 0 per instance and kind and are never given twice: a stale id names nothing.

use crate::engine::operation::{PageQuotas, Refusal, VirtualId};
use crate::engine::prefix::Prefixes;
use crate::identity::{InstanceId, Subject};
use crate::limits::{
    EXPORT_NAME_BYTES, EXPORTED_PER_SUBJECT, EXPORTED_SHARE, EXPORTS_PER_SUBJECT, IDLE_SHARE,
    NAMES_PER_INSTANCE,
};
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
#[cfg(test)]
use std::collections::HashSet;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// A physical id of either kind; becomes a `PageId` or `EmbedId` at the border to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Physical(pub u32);

/// All pages (or embeds) of one backend.
pub struct Pool {
    entries: Vec<Entry>, // [physical]
    /// Last freed, first used: its memory is the warmest.
    free: Vec<Physical>,
    /// What the pages hold, and the idle ones.
    pub(super) prefixes: Prefixes,
    /// Entries without an owner that a queued operation still holds: free soon, without anyone giving way.
    pub(super) draining: u32,
    /// Counts what could give room to somebody who waits: owners, holds and instances that go, and charges, which may
    /// put a subject over its share.
    pub(super) changes: u64,
    pub(super) holders: BTreeMap<InstanceId, Holder>,
    pub(super) scopes: BTreeMap<Subject, Scope>,
}

#[derive(Clone, Default)]
struct Entry {
    owners: u32,
    holds: u32,
    /// Entries of exports among the owners.
    exported: u32,
    /// Whom it is charged to; `None` exactly when free or idle.
    subject: Option<Subject>,
    /// Slots `0..filled` have contents or will, once the queued operations have run.
    filled: u32,
}

pub(super) struct Holder {
    pub subject: Subject,
    /// Greater is newer.
    pub joined: u64,
    pub quotas: PageQuotas,
    pub names: HashMap<VirtualId, Physical, BuildHasherDefault<IdHasher>>,
    next: u32,
}

#[derive(Default)]
pub(super) struct Scope {
    /// Physical pages charged to the subject.
    pub used: u32,
    pub instances: u32,
    exports: BTreeMap<String, Export>,
    /// Pages in `exports`, all together.
    exported: usize,
    /// The same, each physical page once.
    distinct: u32,
}

struct Export {
    by: InstanceId,
    pages: Vec<Physical>,
}

impl Pool {
    pub fn new(capacity: u32, prefixes: Prefixes) -> Pool {
        Pool {
            prefixes,
            entries: vec![Entry::default(); capacity as usize],
            free: (0..capacity).rev().map(Physical).collect(),
            draining: 0,
            changes: 0,
            holders: BTreeMap::new(),
            scopes: BTreeMap::new(),
        }
    }

    pub fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    pub fn used(&self) -> u32 {
        self.capacity() - self.available()
    }

    /// Pages that can be given out now.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.prefixes.idle()
    }

    /// Distinct pages that some export holds.
    pub fn exported(&self) -> u32 {
        self.scopes.values().map(|scope| scope.distinct).sum()
    }

    // ---- instances ----

    /// `joined` orders the instances: greater is newer.
    pub fn join(&mut self, instance: InstanceId, subject: Subject, joined: u64, quotas: PageQuotas) {
        self.changes += 1;
        self.scopes.entry(subject.clone()).or_default().instances += 1;
        self.holders.insert(instance, Holder { subject, joined, quotas, names: HashMap::default(), next: 0 });
    }

    /// Drops all names of the instance. Its exports stay.
    pub fn leave(&mut self, instance: InstanceId) {
        let Some(holder) = self.holders.remove(&instance) else { return };
        self.changes += 1;
        let mut names: Vec<(VirtualId, Physical)> = holder.names.into_iter().collect();
        names.sort_unstable(); // So that a run can be replayed.
        for (_, page) in names {
            self.disown(page);
        }
        if let Some(scope) = self.scopes.get_mut(&holder.subject) {
            scope.instances -= 1;
        }
        self.forget_if_empty(&holder.subject);
    }

    // ---- names ----

    /// All or nothing. The caller has asked [`Pool::room`] and got [`Room::Fits`].
    pub fn allocate(&mut self, instance: InstanceId, count: u32) -> Result<Vec<VirtualId>, Refusal> {
        let (capacity, free) = (self.capacity(), self.available());
        let holder = self.holders.get(&instance).ok_or(Refusal::Ended)?;
        holder.room_for(count as usize)?;
        if count > free {
            return Err(Refusal::OutOfPages { asked: count, capacity, free });
        }
        let subject = holder.subject.clone();
        let pages: Vec<Physical> = (0..count).filter_map(|_| self.take_free(&subject)).collect();
        let holder = self.holders.get_mut(&instance).ok_or(Refusal::Ended)?;
        Ok(pages.into_iter().map(|page| holder.name(page)).collect())
    }

    /// Gives names back, one after the other; stops at the first that is not held, and says which.
    pub fn deallocate(&mut self, instance: InstanceId, ids: &[VirtualId]) -> Result<(), VirtualId> {
        for &id in ids {
            let holder = self.holders.get_mut(&instance).ok_or(id)?;
            let page = holder.names.remove(&id).ok_or(id)?;
            #[cfg(test)]
            if planted(Bug::Owners) {
                continue;
            }
            self.disown(page);
        }
        Ok(())
    }

    pub fn find(&self, instance: InstanceId, id: VirtualId) -> Option<Physical> {
        self.holders.get(&instance)?.names.get(&id).copied()
    }

    /// Names and export entries that refer to the page.
    pub fn owners(&self, page: Physical) -> u32 {
        self.entry(page).owners
    }

    /// Copy on write: the name gets a free page of its own, `(old, new)`. `None` when the pool is empty or the name
    /// unknown.
    pub fn replace(&mut self, instance: InstanceId, id: VirtualId) -> Option<(Physical, Physical)> {
        let holder = self.holders.get(&instance)?;
        let (subject, old) = (holder.subject.clone(), *holder.names.get(&id)?);
        let new = self.take_free(&subject)?;
        self.holders.get_mut(&instance)?.names.insert(id, new);
        self.disown(old);
        Some((old, new))
    }

    /// Whether nothing but one name refers to the page, and nothing queued: it can be exchanged.
    pub fn is_fresh(&self, page: Physical) -> bool {
        let entry = self.entry(page);
        (entry.owners, entry.holds) == (1, 0)
    }

    /// The name gets this page, if it is idle, in place of the one it has. So there are as many pages left as before: what
    /// is found again must not cost anybody a page.
    pub fn adopt(&mut self, instance: InstanceId, id: VirtualId, page: Physical) -> bool {
        let Some(holder) = self.holders.get_mut(&instance) else { return false };
        let Some(name) = holder.names.get_mut(&id).filter(|_| self.prefixes.wake(page)) else { return false };
        let (old, subject) = (std::mem::replace(name, page), holder.subject.clone());
        self.charge(page, &subject);
        self.entries[page.0 as usize].owners = 1;
        self.disown(old);
        true
    }

    /// Whose the instance is.
    pub fn subject_of(&self, instance: InstanceId) -> Option<&Subject> {
        self.holders.get(&instance).map(|holder| &holder.subject)
    }

    /// Orders instances: greater is newer; nothing for one that is not there.
    pub fn joined(&self, instance: InstanceId) -> Option<u64> {
        self.holders.get(&instance).map(|holder| holder.joined)
    }

    /// Whom a page is charged to that has no owner.
    pub fn charged_without_owner(&self, page: Physical) -> Option<&Subject> {
        let entry = &self.entries[page.0 as usize];
        entry.subject.as_ref().filter(|_| entry.owners == 0)
    }

    /// All that was to be written to the page has been: whoever shares its subject may find it by what it holds.
    pub fn written(&mut self, page: Physical) {
        if let Some(subject) = &self.entries[page.0 as usize].subject {
            self.prefixes.written(page, subject);
        }
    }

    // ---- exports ----

    /// A snapshot: the pages as they are named now; whoever writes one later gets a copy.
    pub fn export(
        &mut self,
        instance: InstanceId,
        ids: &[VirtualId],
        name: String,
    ) -> Result<Result<(), Refusal>, VirtualId> {
        let Some(holder) = self.holders.get(&instance) else { return Ok(Err(Refusal::Ended)) };
        let pages: Vec<Physical> =
            ids.iter().map(|id| holder.names.get(id).copied().ok_or(*id)).collect::<Result<_, _>>()?;
        let scope = self.scopes.entry(holder.subject.clone()).or_default();
        if scope.exports.contains_key(&name) {
            return Ok(Err(Refusal::NameTaken(name)));
        }
        if name.len() > EXPORT_NAME_BYTES {
            return Ok(Err(Refusal::Full("bytes in an exported name", EXPORT_NAME_BYTES)));
        }
        if scope.exports.len() >= EXPORTS_PER_SUBJECT {
            return Ok(Err(Refusal::Full("exported names per subject", EXPORTS_PER_SUBJECT)));
        }
        if scope.exported + pages.len() > EXPORTED_PER_SUBJECT {
            return Ok(Err(Refusal::Full("exported pages per subject", EXPORTED_PER_SUBJECT)));
        }
        let mut new: Vec<Physical> =
            pages.iter().copied().filter(|page| self.entries[page.0 as usize].exported == 0).collect();
        new.sort_unstable();
        new.dedup();
        let most = (self.entries.len() / EXPORTED_SHARE).max(1);
        if scope.distinct as usize + new.len() > most {
            return Ok(Err(Refusal::Full("pages in the exports of one subject", most)));
        }
        scope.distinct += new.len() as u32;
        scope.exported += pages.len();
        for page in &pages {
            let entry = &mut self.entries[page.0 as usize];
            entry.owners += 1;
            entry.exported += 1;
        }
        scope.exports.insert(name, Export { by: instance, pages });
        Ok(Ok(()))
    }

    /// New names of the importer for the exported pages.
    pub fn import(&mut self, instance: InstanceId, name: &str) -> Result<Vec<VirtualId>, Refusal> {
        let holder = self.holders.get(&instance).ok_or(Refusal::Ended)?;
        let export = self.scopes.get(&holder.subject).and_then(|s| s.exports.get(name));
        let export = export.ok_or_else(|| Refusal::NoSuchExport(name.into()))?;
        if let Some(quota) = self.over(instance, 0, export.pages.len() as u32) {
            return Err(Refusal::Quota(quota));
        }
        holder.room_for(export.pages.len())?;
        let holder = self.holders.get_mut(&instance).ok_or(Refusal::Ended)?;
        let entries = &mut self.entries;
        let names = export.pages.iter().map(|&page| {
            entries[page.0 as usize].owners += 1;
            holder.name(page)
        });
        Ok(names.collect())
    }

    /// Takes the name away; who imported it keeps the pages.
    pub fn release(&mut self, instance: InstanceId, name: &str) -> Result<(), Refusal> {
        let holder = self.holders.get(&instance).ok_or(Refusal::Ended)?;
        let subject = holder.subject.clone();
        self.remove_export(&subject, name).then_some(()).ok_or_else(|| Refusal::NoSuchExport(name.into()))
    }

    /// Names and page counts in the instance's scope, sorted by name.
    pub fn exports(&self, instance: InstanceId) -> Vec<(String, u32)> {
        let scope = self.holders.get(&instance).and_then(|h| self.scopes.get(&h.subject));
        let Some(scope) = scope else { return Vec::new() };
        scope.exports.iter().map(|(name, e)| (name.clone(), e.pages.len() as u32)).collect()
    }

    /// Withdraws the exports made by an instance that hold a page for which `unwritten` says yes; their names. It is asked
    /// once about each page: exports may list one a quarter of a million times, and the answer may be hundreds of jobs away.
    pub fn withdraw(
        &mut self,
        by: InstanceId,
        subject: &Subject,
        unwritten: impl Fn(Physical) -> bool,
    ) -> Vec<String> {
        let Some(scope) = self.scopes.get(subject) else { return Vec::new() };
        let mut known: HashMap<Physical, bool, BuildHasherDefault<IdHasher>> = HashMap::default();
        let mut unwritten = |page| *known.entry(page).or_insert_with(|| unwritten(page));
        let exports = scope.exports.iter();
        let doomed: Vec<String> = exports
            .filter(|(_, e)| e.by == by && e.pages.iter().any(|&page| unwritten(page)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &doomed {
            self.remove_export(subject, name);
        }
        doomed
    }

    fn remove_export(&mut self, subject: &Subject, name: &str) -> bool {
        let Some(scope) = self.scopes.get_mut(subject) else { return false };
        let Some(export) = scope.exports.remove(name) else { return false };
        scope.exported -= export.pages.len();
        for page in &export.pages {
            let entry = &mut self.entries[page.0 as usize];
            entry.exported -= 1;
            scope.distinct -= u32::from(entry.exported == 0);
        }
        for page in export.pages {
            self.disown(page);
        }
        self.forget_if_empty(subject);
        true
    }

    // ---- holds and contents ----

    /// A queued operation names the page.
    pub fn hold(&mut self, page: Physical) {
        self.entries[page.0 as usize].holds += 1;
    }

    /// The operation is done or dropped.
    pub fn unhold(&mut self, page: Physical) {
        let entry = &mut self.entries[page.0 as usize];
        entry.holds -= 1;
        if entry.holds == 0 && entry.owners == 0 {
            self.draining -= 1;
            self.set_free(page);
        }
    }

    /// Slots `0..filled` of the page have contents, those of queued operations included.
    pub fn filled(&self, page: Physical) -> u32 {
        self.entry(page).filled
    }

    pub fn set_filled(&mut self, page: Physical, filled: u32) {
        self.entries[page.0 as usize].filled = filled;
    }

    // ---- physical ids ----

    fn entry(&self, page: Physical) -> &Entry {
        &self.entries[page.0 as usize]
    }

    fn take_free(&mut self, subject: &Subject) -> Option<Physical> {
        let page = self.free.pop().or_else(|| self.prefixes.give_up())?;
        let entry = &mut self.entries[page.0 as usize];
        debug_assert!(entry.owners == 0 && entry.holds == 0 && entry.subject.is_none());
        *entry = Entry { owners: 1, ..Entry::default() };
        self.prefixes.empty(page);
        self.charge(page, subject);
        Some(page)
    }

    fn charge(&mut self, page: Physical, subject: &Subject) {
        self.changes += 1;
        self.entries[page.0 as usize].subject = Some(subject.clone());
        self.scopes.entry(subject.clone()).or_default().used += 1;
    }

    fn disown(&mut self, page: Physical) {
        self.changes += 1;
        let entry = &mut self.entries[page.0 as usize];
        entry.owners -= 1;
        match (entry.owners, entry.holds) {
            #[cfg(test)]
            (0, _) if planted(Bug::Holds) => self.set_free(page),
            (0, 0) => self.set_free(page),
            (0, _) => self.draining += 1,
            _ => {}
        }
    }

    fn set_free(&mut self, page: Physical) {
        self.changes += 1;
        if let Some(subject) = self.entries[page.0 as usize].subject.take() {
            if let Some(scope) = self.scopes.get_mut(&subject) {
                scope.used -= 1;
            }
            self.forget_if_empty(&subject);
        }
        if !self.prefixes.keep(page) {
            return self.free.push(page);
        }
        if self.prefixes.idle() as usize > self.entries.len() / IDLE_SHARE {
            self.free.extend(self.prefixes.give_up());
        }
    }

    fn forget_if_empty(&mut self, subject: &Subject) {
        let empty = |s: &Scope| s.used == 0 && s.instances == 0 && s.exports.is_empty();
        if self.scopes.get(subject).is_some_and(empty) {
            self.scopes.remove(subject);
        }
    }
}

/// Spreads ids that we gave ourselves, one after the other: no guest can choose keys that collide. A pass looks up
/// every page of its context, so this is on the way of each token.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15); // 2^64 over the golden ratio
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    }
}

impl Holder {
    fn room_for(&self, more: usize) -> Result<(), Refusal> {
        let names_left = NAMES_PER_INSTANCE.saturating_sub(self.names.len());
        let ids_left = (u32::MAX - self.next) as usize; // Ids are not given twice, so they can run out.
        if more > names_left.min(ids_left) {
            return Err(Refusal::Full("pages named by one instance", NAMES_PER_INSTANCE));
        }
        Ok(())
    }

    fn name(&mut self, page: Physical) -> VirtualId {
        let id = VirtualId(self.next);
        self.next += 1;
        self.names.insert(id, page);
        id
    }
}

#[cfg(test)]
impl Pool {
    pub fn exported_as(&self, subject: &Subject, name: &str) -> &[Physical] {
        let export = self.scopes.get(subject).and_then(|s| s.exports.get(name));
        export.map_or(&[], |e| &e.pages)
    }

    /// Every page is free or in use, never both; every reference is counted once; every charge is somebody's.
    pub fn check(&self, holds: &HashMap<Physical, u32>) {
        let mut owners: HashMap<Physical, u32> = HashMap::new();
        for page in self.holders.values().flat_map(|h| h.names.values()) {
            *owners.entry(*page).or_default() += 1;
        }
        for export in self.scopes.values().flat_map(|s| s.exports.values()) {
            export.pages.iter().for_each(|page| *owners.entry(*page).or_default() += 1);
        }
        let free: HashSet<Physical> = self.free.iter().copied().collect();
        assert_eq!(free.len(), self.free.len(), "a page is free twice");
        let (mut used, mut draining) = (BTreeMap::<&Subject, u32>::new(), 0);
        for (i, entry) in self.entries.iter().enumerate() {
            let page = Physical(i as u32);
            assert_eq!(entry.owners, owners.get(&page).copied().unwrap_or(0), "owners of {page:?}");
            assert_eq!(entry.holds, holds.get(&page).copied().unwrap_or(0), "holds of {page:?}");
            let unused = entry.owners == 0 && entry.holds == 0;
            let kept = self.prefixes.is_idle(page);
            assert!(!(kept && free.contains(&page)), "{page:?} is idle and free");
            assert_eq!(kept || free.contains(&page), unused, "{page:?} is lost or owned twice");
            assert_eq!(entry.subject.is_none(), unused, "the charge of {page:?}");
            if let Some(subject) = &entry.subject {
                *used.entry(subject).or_default() += 1;
            }
            draining += u32::from(entry.owners == 0 && entry.holds > 0);
        }
        assert_eq!(draining, self.draining);
        assert!(self.prefixes.idle() as usize <= self.entries.len() / IDLE_SHARE);
        self.prefixes.check(|page| self.entry(page).subject.as_ref());
        for holder in self.holders.values() {
            let mut names = holder.names.values();
            assert!(names.all(|&page| self.entry(page).subject.as_ref() == Some(&holder.subject)));
        }
        for (subject, scope) in &self.scopes {
            assert_eq!(scope.used, used.get(subject).copied().unwrap_or(0), "used by {subject:?}");
            let instances = self.holders.values().filter(|h| h.subject == *subject).count();
            assert_eq!(scope.instances as usize, instances);
            let mut pages = scope.exports.values().flat_map(|export| &export.pages);
            assert!(pages.all(|&page| self.entry(page).subject.as_ref() == Some(subject)));
            let exported: HashSet<_> = scope.exports.values().flat_map(|e| &e.pages).collect();
            assert_eq!(scope.distinct as usize, exported.len(), "exported by {subject:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::engine::policy::{Room, tests::World};

    #[test]
    fn exports_outlive_their_maker_and_are_a_snapshot() {
        let mut w = World::new(4);
        let maker = w.join("a", 2);
        let stranger = w.join("b", 0);
        let (a, b) = (VirtualId(0), VirtualId(1));
        assert_eq!(w.pool.export(maker, &[a, b], "x".into()), Ok(Ok(())));
        assert_eq!(w.pool.export(maker, &[a], "x".into()), Ok(Err(Refusal::NameTaken("x".into()))));
        assert_eq!(w.pool.import(stranger, "x"), Err(Refusal::NoSuchExport("x".into())));
        let (old, new) = w.pool.replace(maker, a).expect("a free page");
        assert_eq!((w.pool.owners(old), w.pool.owners(new)), (1, 1));
        w.pool.leave(maker);
        assert_eq!((w.pool.used(), w.pool.exported()), (2, 2));
        let reader = w.join("a", 1);
        let names = w.pool.import(reader, "x").expect("still there");
        assert_eq!(w.pool.find(reader, names[0]), Some(old));
        assert_eq!(w.pool.release(reader, "x"), Ok(()));
        assert_eq!(w.pool.deallocate(reader, &names), Ok(()));
        assert_eq!(w.pool.deallocate(reader, &names), Err(names[0]), "ids are not given twice");
        w.pool.check(&HashMap::new());
    }

    #[test]
    fn exports_hold_half_the_pool_at_most_each_page_counted_once() {
        let mut w = World::new(8);
        let maker = w.join("a", 6);
        let ids: Vec<VirtualId> = (0..6).map(VirtualId).collect();
        let full = Refusal::Full("pages in the exports of one subject", 4);
        assert_eq!(w.pool.export(maker, &ids[..5], "x".into()), Ok(Err(full.clone())));
        assert_eq!(w.pool.export(maker, &[ids[0], ids[1], ids[0]], "x".into()), Ok(Ok(())));
        assert_eq!(w.pool.export(maker, &ids[..4], "y".into()), Ok(Ok(())));
        assert_eq!(w.pool.export(maker, &ids[4..5], "z".into()), Ok(Err(full)));
        assert_eq!((w.pool.exported(), w.pool.release(maker, "y")), (4, Ok(())));
        assert_eq!(w.pool.export(maker, &ids[2..4], "z".into()), Ok(Ok(())));
        let other = w.join("b", 1);
        assert_eq!(w.pool.export(other, &[VirtualId(0)], "x".into()), Ok(Ok(())), "a half of its own");
        w.pool.check(&HashMap::new());
    }

    /// The story: exports listed one page 262,144 times, 256 passes were queued that wrote it, and a kill looked through all
    /// of them for each entry.
    #[test]
    fn what_is_to_become_of_exports_is_asked_once_about_each_page() {
        let mut w = World::new(8);
        let maker = w.join("a", 3);
        let names: Vec<VirtualId> = (0..3).map(VirtualId).collect();
        for (name, ids) in [("x", vec![names[0]; 1000]), ("y", names.clone()), ("z", vec![names[0]; 9])] {
            assert_eq!(w.pool.export(maker, &ids, name.into()), Ok(Ok(())));
        }
        let (asked, last) = (std::cell::Cell::new(0), w.pool.find(maker, names[2]));
        let unwritten = |page| {
            asked.set(asked.get() + 1);
            Some(page) == last
        };
        assert_eq!(w.pool.withdraw(maker, &Subject::new("a"), unwritten), ["y"]);
        assert_eq!(asked.get(), 3);
        w.pool.check(&HashMap::new());
    }

    #[test]
    fn a_page_given_back_waits_for_the_operation_that_names_it() {
        let mut w = World::new(1);
        let one = w.join("a", 1);
        let page = w.pool.find(one, VirtualId(0)).expect("held");
        w.pool.hold(page);
        w.pool.leave(one);
        let two = w.join("a", 0);
        assert_eq!(w.pool.room(two, 1), Room::Soon);
        w.pool.unhold(page);
        assert_eq!(w.pool.room(two, 1), Room::Fits);
        w.pool.check(&HashMap::new());
    }
}
