//! Who gives way when pages run short, and whose quota is full before that.
//!
//! Owns: the rule, and the count of what would come free. Never: an end (it names victims; the state ends them), a
//! change to the pool it looks at.
//!
//! The rule: a requester that stays inside its subject's share (an equal part of the pool for each subject that runs
//! or holds anything) takes from subjects over theirs, furthest over first, newest instance first, no further down
//! than their share. Then, and first if its own subject is over, newer instances of its own subject give way, newest
//! first. Nobody is ended unless that suffices, and nobody whose end would bring nothing; but for those who name so many pages
//! that it takes too long to see ([`NAMES_WALKED`]).

use crate::engine::operation::{PageQuotas, Refusal};
use crate::engine::pages::{Physical, Pool};
use crate::identity::{InstanceId, Subject};
use crate::limits;
use crate::quota::{Name, Quota};
use std::collections::{BinaryHeap, HashMap};

/// Names of those who may have to give way that are looked at in one go, three times at most: 25 ms of the engine's thread, for
/// which everybody waits. Beyond that those over their share give way unseen, for whoever is inside its share, and for
/// others nobody does. 100 instances of a subject may name a prefix of 20,000 tokens each.
const NAMES_WALKED: usize = if cfg!(test) { 64 } else { 2 * limits::NAMES_PER_INSTANCE };

/// Whether `asked` pages can be had.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// Now.
    Fits,
    /// When the queued operations that hold pages without an owner have run.
    Soon,
    /// When these instances have been ended.
    AfterEnding(Vec<InstanceId>),
    /// These have to be ended; whether that suffices is seen then.
    Unseen(Vec<InstanceId>),
    Never(Refusal),
}

impl Pool {
    /// The quota that so many more pages, and names of pages, would exceed. A page that was given back counts with its
    /// subject until the last queued operation that uses it is done, or a queue would be room without end.
    pub fn over(&self, instance: InstanceId, pages: u32, names: u32) -> Option<Quota> {
        let holder = self.holders.get(&instance)?;
        let used = self.scopes.get(&holder.subject).map_or(0, |scope| scope.used);
        let PageQuotas { own, subject } = holder.quotas;
        let named = holder.names.len() as u32;
        [(Name::KvPages, named, names, own), (Name::SubjectKvPages, used, pages, subject)]
            .into_iter()
            .find(|(_, held, more, most)| *more > 0 && held.saturating_add(*more) > *most)
            .map(|(name, _, _, most)| Quota { name, limit: u64::from(most) })
    }

    fn share(&self) -> u32 {
        let busy = self.scopes.values().filter(|s| s.used > 0 || s.instances > 0).count();
        self.capacity() / (busy.max(1) as u32)
    }

    /// Whether the instance's subject is inside its share with so many pages more.
    pub fn is_within_share(&self, instance: InstanceId, more: u32) -> bool {
        let scope = self.holders.get(&instance).and_then(|holder| self.scopes.get(&holder.subject));
        scope.is_some_and(|scope| scope.used.saturating_add(more) <= self.share())
    }

    /// How `instance` can have `asked` pages more.
    pub fn room(&self, instance: InstanceId, asked: u32) -> Room {
        let free = self.available();
        if asked <= free {
            return Room::Fits;
        }
        if self.comes_soon(asked) {
            return Room::Soon;
        }
        let refused = || Room::Never(Refusal::OutOfPages { asked, capacity: self.capacity(), free });
        self.victims(instance, asked, asked - free - self.draining).unwrap_or_else(refused)
    }

    /// Whether so many are not there now, and will be when what is queued has run.
    pub fn comes_soon(&self, asked: u32) -> bool {
        let free = self.available();
        (free + 1..=free + self.draining).contains(&asked)
    }

    /// Subjects over their share, without one.
    pub fn over_share(&self, without: &Subject) -> Vec<&Subject> {
        let share = self.share();
        let over = self.scopes.iter().filter(|(subject, scope)| *subject != without && scope.used > share);
        over.map(|(subject, _)| subject).collect()
    }

    /// Whether nobody owns the page, some queued operation uses it, and it is charged to one of these.
    pub fn drains_of(&self, page: Physical, subjects: &[&Subject]) -> bool {
        self.charged_without_owner(page).is_some_and(|subject| subjects.contains(&subject))
    }

    /// Who has to be ended for so many pages, if none of those on their way come; nobody if that does not help.
    pub fn without_draining(&self, instance: InstanceId, asked: u32) -> Vec<InstanceId> {
        match self.victims(instance, asked, asked.saturating_sub(self.available())) {
            Some(Room::AfterEnding(victims) | Room::Unseen(victims)) => victims,
            _ => Vec::new(),
        }
    }

    fn victims(&self, requester: InstanceId, asked: u32, missing: u32) -> Option<Room> {
        let holder = self.holders.get(&requester)?;
        let share = self.share();

        let mut fall = Fall::new(self);
        if self.is_within_share(requester, asked) {
            let over = |fall: &Fall, subject: &Subject| {
                let used = self.scopes.get(subject).map_or(0, |scope| scope.used);
                used.saturating_sub(fall.gained_from(subject)).checked_sub(share + 1)
            };
            let others = self.scopes.keys().filter(|subject| **subject != holder.subject);
            let mut most: BinaryHeap<(u32, &Subject)> =
                others.filter_map(|subject| Some((over(&fall, subject)?, subject))).collect();
            while fall.gained < missing
                && let Some((_, subject)) = most.pop()
            {
                // Nobody left of it: what it holds lies in exports.
                let Some(victim) = fall.newest(subject, 0) else { continue };
                fall.end(victim);
                if fall.walked > NAMES_WALKED && fall.gained < missing {
                    return Some(Room::Unseen(fall.ended));
                }
                most.extend(over(&fall, subject).map(|over| (over, subject)));
            }
        }
        while fall.gained < missing {
            if fall.walked > NAMES_WALKED {
                return None;
            }
            let victim = fall.newest(&holder.subject, holder.joined + 1)?;
            fall.end(victim);
        }
        Some(Room::AfterEnding(fall.least(missing)))
    }
}

/// What would come free if these instances were ended. Nothing is changed. Each name is looked at three times at most.
struct Fall<'a> {
    pool: &'a Pool,
    /// Those who hold anything and have not fallen, oldest first.
    left: HashMap<&'a Subject, Vec<(u64, InstanceId)>>,
    ended: Vec<InstanceId>,
    /// Names of these.
    walked: usize,
    /// Per page, how many of its owners would be gone.
    lost: HashMap<Physical, u32>,
    gained: u32,
    by_subject: HashMap<&'a Subject, u32>,
}

impl<'a> Fall<'a> {
    fn new(pool: &'a Pool) -> Fall<'a> {
        let mut left: HashMap<_, Vec<_>> = HashMap::new();
        for (&instance, holder) in pool.holders.iter().filter(|(_, h)| !h.names.is_empty()) {
            left.entry(&holder.subject).or_default().push((holder.joined, instance));
        }
        left.values_mut().for_each(|instances| instances.sort_unstable());
        let (lost, by_subject) = (HashMap::new(), HashMap::new());
        Fall { pool, left, ended: Vec::new(), walked: 0, lost, gained: 0, by_subject }
    }

    /// Takes the newest instance of the subject that has not fallen and joined at `since` or later.
    fn newest(&mut self, subject: &Subject, since: u64) -> Option<InstanceId> {
        let newest = self.left.get_mut(subject)?.pop_if(|(joined, _)| *joined >= since)?;
        Some(newest.1)
    }

    fn gained_from(&self, subject: &Subject) -> u32 {
        self.by_subject.get(subject).copied().unwrap_or(0)
    }

    fn end(&mut self, victim: InstanceId) {
        self.ended.push(victim);
        let Some(holder) = self.pool.holders.get(&victim) else { return };
        self.walked += holder.names.len();
        for &page in holder.names.values() {
            let lost = self.lost.entry(page).or_default();
            *lost += 1;
            if *lost == self.pool.owners(page) {
                self.gained += 1;
                *self.by_subject.entry(&holder.subject).or_default() += 1;
            }
        }
    }

    /// What would no longer come free if the victim were spared after all.
    fn spare(&mut self, victim: InstanceId) {
        let Some(holder) = self.pool.holders.get(&victim) else { return };
        for page in holder.names.values() {
            let Some(lost) = self.lost.get_mut(page) else { continue };
            self.gained -= u32::from(*lost == self.pool.owners(*page));
            *lost -= 1;
        }
    }

    /// The ended ones without whom it would not suffice: an instance that only shares pages gains nothing alone.
    fn least(mut self, missing: u32) -> Vec<InstanceId> {
        let ended = std::mem::take(&mut self.ended);
        let mut kept = ended.clone();
        for &spare in ended.iter().rev() {
            self.spare(spare);
            match self.gained >= missing {
                true => kept.retain(|v| *v != spare),
                false => self.end(spare), // It falls after all.
            }
        }
        kept
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::operation::VirtualId;
    use crate::engine::prefix::Prefixes;

    pub struct World {
        pub pool: Pool,
        joined: u64,
    }

    impl World {
        pub fn new(capacity: u32) -> World {
            World { pool: Pool::new(capacity, Prefixes::none()), joined: 0 }
        }

        pub fn join(&mut self, subject: &str, pages: u32) -> InstanceId {
            self.join_within(subject, pages, PageQuotas::default())
        }

        pub fn join_within(&mut self, subject: &str, pages: u32, quotas: PageQuotas) -> InstanceId {
            let instance = InstanceId::random();
            self.joined += 1;
            self.pool.join(instance, Subject::new(subject), self.joined, quotas);
            self.pool.allocate(instance, pages).expect("room");
            instance
        }
    }

    #[test]
    fn within_a_subject_newer_instances_give_way_newest_first_and_no_more_than_needed() {
        let mut w = World::new(10);
        let [old, mid, new] = [2, 4, 3].map(|pages| w.join("a", pages));
        assert_eq!(w.pool.room(old, 1), Room::Fits);
        assert_eq!(w.pool.room(old, 4), Room::AfterEnding(vec![new]));
        assert_eq!(w.pool.room(old, 8), Room::AfterEnding(vec![new, mid]));
        assert_eq!(w.pool.room(mid, 5), Room::Never(out_of(5, 10, 1)), "an older one is safe");
        assert_eq!(w.pool.room(old, 9), Room::Never(out_of(9, 10, 1)), "nobody is ended in vain");
    }

    #[test]
    fn a_subject_over_its_share_gives_way_and_one_inside_never_does() {
        let mut w = World::new(10);
        let greedy = [4, 4].map(|pages| w.join("greedy", pages));
        let modest = w.join("modest", 1);
        assert_eq!(w.pool.room(modest, 3), Room::AfterEnding(vec![greedy[1]]));
        assert_eq!(w.pool.room(modest, 5), Room::Never(out_of(5, 10, 1)), "5 + 1 is over 10 / 2");
        assert_eq!(w.pool.room(greedy[0], 3), Room::AfterEnding(vec![greedy[1]]));
        assert_eq!(w.pool.room(greedy[1], 2), Room::Never(out_of(2, 10, 1)));
    }

    #[test]
    fn an_instance_that_only_shares_pages_is_spared() {
        let mut w = World::new(6);
        let [old, sharer] = [3, 0].map(|pages| w.join("a", pages));
        let exported = w.pool.export(old, &[VirtualId(0)], "x".into());
        assert_eq!(exported, Ok(Ok(())));
        let imported = w.pool.import(sharer, "x");
        assert_eq!(imported, Ok(vec![VirtualId(0)]));
        let rich = w.join("a", 3);
        let poor = w.pool.room(old, 2);
        assert_eq!(poor, Room::AfterEnding(vec![rich]));
        let newest = w.join("a", 0);
        assert_eq!(w.pool.import(newest, "x"), Ok(vec![VirtualId(0)]));
        assert_eq!(w.pool.room(old, 2), Room::AfterEnding(vec![rich]));
    }

    /// The story: a hundred instances that named 65,536 pages each of one export, whose ends bring nothing, were all looked at
    /// anew for each page that another subject asked for, for a second each time.
    #[test]
    fn whoever_names_too_many_pages_to_see_what_its_end_brings_gives_way_unseen() {
        let mut w = World::new(10);
        let holder = w.join("greedy", 8);
        let page = vec![VirtualId(0); 40];
        assert_eq!(w.pool.export(holder, &page, "x".into()), Ok(Ok(())));
        let named: Vec<InstanceId> = (0..4).map(|_| w.join("greedy", 0)).collect();
        for &instance in &named {
            assert!(w.pool.import(instance, "x").is_ok());
        }
        let modest = w.join("modest", 1);
        assert_eq!(w.pool.room(modest, 3), Room::Unseen(vec![named[3], named[2]]));
        named[2..].iter().for_each(|instance| w.pool.leave(*instance));
        assert_eq!(w.pool.room(modest, 3), Room::Unseen(vec![named[1], named[0]]));
        named[..2].iter().for_each(|instance| w.pool.leave(*instance));
        assert_eq!(w.pool.room(modest, 3), Room::AfterEnding(vec![holder]));
        // Nobody gives way so to one of its own subject.
        let newer: Vec<InstanceId> = (0..4).map(|_| w.join("greedy", 0)).collect();
        newer.iter().for_each(|instance| assert!(w.pool.import(*instance, "x").is_ok()));
        assert!(matches!(w.pool.room(holder, 3), Room::Never(_)));
    }

    #[test]
    fn quotas_count_names_of_an_instance_and_pages_of_a_subject() {
        let mut w = World::new(9);
        let over = |name, limit| Some(Quota { name, limit });
        let maker = w.join_within("a", 3, PageQuotas { own: 4, subject: 6 });
        assert_eq!((w.pool.over(maker, 1, 1), w.pool.over(maker, 2, 2)), (None, over(Name::KvPages, 4)));
        let ids: Vec<VirtualId> = (0..3).map(VirtualId).collect();
        assert_eq!(w.pool.export(maker, &ids[..2], "x".into()), Ok(Ok(())));
        let other = w.join_within("a", 2, PageQuotas { own: 9, subject: 6 });
        assert_eq!(
            (w.pool.over(other, 1, 1), w.pool.over(other, 2, 2)),
            (None, over(Name::SubjectKvPages, 6))
        );
        assert_eq!(w.pool.over(other, 0, 8), over(Name::KvPages, 9));
        // Importing takes names and no page; a copy takes a page and no name.
        let few = w.join_within("a", 0, PageQuotas { own: 1, subject: 5 });
        let full = Refusal::Quota(Quota { name: Name::KvPages, limit: 1 });
        assert_eq!(w.pool.import(few, "x"), Err(full));
        assert!(w.pool.import(other, "x").is_ok());
        assert_eq!((w.pool.over(few, 1, 0), w.pool.over(other, 1, 0)), (over(Name::SubjectKvPages, 5), None));
        // What only an operation still holds is the subject's until it has run.
        let page = w.pool.find(maker, ids[2]).expect("held");
        w.pool.hold(page);
        assert_eq!(w.pool.deallocate(maker, &ids[2..]), Ok(()));
        assert_eq!(
            (w.pool.over(maker, 2, 2), w.pool.over(maker, 1, 1)),
            (over(Name::SubjectKvPages, 6), None)
        );
        w.pool.unhold(page);
        assert_eq!(w.pool.over(maker, 2, 2), None);
        let stranger = w.join_within("b", 0, PageQuotas { own: 2, subject: 2 });
        assert_eq!(w.pool.over(stranger, 2, 2), None);
        w.pool.check(&HashMap::new());
    }

    fn out_of(asked: u32, capacity: u32, free: u32) -> Refusal {
        Refusal::OutOfPages { asked, capacity, free }
    }
}
