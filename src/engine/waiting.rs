//! Who waits for pages, and who goes before whom.
//!
//! Owns: for each subject a line of instances that wait, and what each has sent since. Never: how many pages there are, or
//! who gives way for them (the policy's); what a command does.
//!
//! Nobody overtakes another of its own subject. Between subjects whoever waits longest goes first, except that a request
//! inside its subject's share passes the others' lines: what they wait for may be hours of queued work. So one inside its
//! share waits for none but its own; one beyond it may find that others took what it waited for, as if it had come after
//! them.
//!
//! Pages that were given back and that queued operations still use are on their way, and waited for; but only for a while by
//! whoever is inside its share: operations may be queued for hours. Then whoever is over its share and keeps them gives way.

use crate::engine::operation::{Command, Kind, Notice};
use crate::engine::policy::Room;
use crate::engine::state::{Got, Held, State};
use crate::identity::{InstanceId, Subject};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// So many batches pages that are on their way may take, for one inside its share: 2 s of long ones. A pass that is under way
/// takes one or two.
const PATIENCE: u64 = if cfg!(test) { 2 } else { 16 };

#[derive(Default)]
pub(super) struct Waiting {
    /// Per subject its instances, longest first; no line is empty.
    lines: BTreeMap<Subject, VecDeque<Place>>,
    /// What each has sent since; the first is the command that waits. And what that lacked when it was last looked at: that look
    /// is dear for a long pass, this one is not.
    backlog: HashMap<InstanceId, (VecDeque<Command>, Lack)>,
    placed: u64,
    /// What [`State::changes`] said when all lines were last looked at in vain.
    seen: Option<(u64, u64)>,
    /// Some have been ended unseen for one who waits: the next look is another turn's.
    ended_unseen: bool,
    #[cfg(test)]
    looks: usize,
}

/// Pages that one waits for.
#[derive(Clone, Copy)]
pub(super) struct Lack {
    kind: Kind,
    count: u32,
    /// The batch since which it has waited for them, or since when somebody gave way for it.
    since: u64,
}

struct Place {
    /// Orders all places: greater is later.
    since: u64,
    instance: InstanceId,
}

/// Who waits before an instance.
#[derive(Debug, PartialEq, Eq)]
enum Ahead {
    Nobody,
    /// Other subjects' instances, and none of its own.
    Others,
    Own,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What the instance has sent since it began to wait, if it waits.
    pub fn backlog(&mut self, instance: InstanceId) -> Option<&mut VecDeque<Command>> {
        self.backlog.get_mut(&instance).map(|(sent, _)| sent)
    }

    /// The instance waits from now on, with this command.
    pub fn enter(&mut self, subject: Subject, instance: InstanceId, command: Command, lack: Lack) {
        self.place(subject, instance);
        self.backlog.insert(instance, (VecDeque::from([command]), lack));
    }

    /// It waits no longer: what it had sent.
    pub fn leave(&mut self, instance: InstanceId) -> VecDeque<Command> {
        let Some((sent, _)) = self.backlog.remove(&instance) else { return VecDeque::new() };
        self.unplace(instance);
        sent
    }

    /// Everything that was sent by those who wait.
    pub fn take_all(&mut self) -> impl Iterator<Item = Command> + use<> {
        self.lines.clear();
        std::mem::take(&mut self.backlog).into_values().flat_map(|(sent, _)| sent)
    }

    fn place(&mut self, subject: Subject, instance: InstanceId) {
        let place = Place { since: self.placed, instance };
        self.placed += 1;
        self.lines.entry(subject).or_default().push_back(place);
    }

    fn unplace(&mut self, instance: InstanceId) -> Option<Subject> {
        let is_it = |place: &Place| place.instance == instance;
        let (subject, line) = self.lines.iter_mut().find(|(_, line)| line.iter().any(is_it))?;
        let subject = subject.clone();
        line.retain(|place| !is_it(place));
        if line.is_empty() {
            self.lines.remove(&subject);
        }
        self.seen = None; // Whoever was behind it may have its turn.
        Some(subject)
    }

    /// It got some: others first now.
    fn step_back(&mut self, instance: InstanceId) {
        if let Some(subject) = self.unplace(instance) {
            self.place(subject, instance);
        }
    }

    /// The first of each line, longest first.
    fn firsts(&self) -> Vec<InstanceId> {
        let firsts = self.lines.values().filter_map(VecDeque::front);
        let mut firsts: Vec<(u64, InstanceId)> = firsts.map(|place| (place.since, place.instance)).collect();
        firsts.sort_unstable();
        firsts.into_iter().map(|(_, instance)| instance).collect()
    }

    fn ahead(&self, subject: &Subject, instance: InstanceId) -> Ahead {
        let own = self.lines.get(subject).and_then(VecDeque::front);
        if own.is_some_and(|first| first.instance != instance) {
            return Ahead::Own;
        }
        let since = own.map_or(u64::MAX, |place| place.since);
        let mut firsts = self.lines.values().filter_map(VecDeque::front);
        if firsts.any(|first| first.since < since) { Ahead::Others } else { Ahead::Nobody }
    }
}

impl State {
    /// Sees that `count` pages are free, ending others if the policy says so, unless others go first.
    pub(super) fn room(&mut self, instance: InstanceId, kind: Kind, count: u32) -> Got {
        if count == 0 {
            return Got::Room;
        }
        let lack = Lack { kind, count, since: self.schedule.batches() };
        if self.is_behind(instance, kind, count) {
            return Got::Wait(lack);
        }
        let mut room = self.pool(kind).room(instance, count);
        if let Room::AfterEnding(victims) = room {
            self.evict(victims);
            room = self.pool(kind).room(instance, count);
        }
        match room {
            Room::Fits => Got::Room,
            Room::Unseen(victims) => {
                self.evict(victims);
                self.waiting.ended_unseen = true;
                Got::Wait(lack)
            }
            // Ended instances' pages that the jobs of others still use.
            Room::Soon | Room::AfterEnding(_) => Got::Wait(lack),
            Room::Never(refusal) => Got::Never(refusal),
        }
    }

    fn evict(&mut self, victims: Vec<InstanceId>) {
        for victim in victims {
            self.end_with(Notice::Evict(victim));
        }
    }

    /// Whether others go before the instance with so many pages.
    fn is_behind(&self, instance: InstanceId, kind: Kind, count: u32) -> bool {
        // Whoever asks for more than there is at all need not wait to hear so.
        if count > self.pool(kind).capacity() {
            return false;
        }
        let Some(subject) = self.pages.subject_of(instance) else { return false };
        match self.waiting.ahead(subject, instance) {
            Ahead::Nobody => false,
            Ahead::Others => !self.pool(kind).is_within_share(instance, count),
            Ahead::Own => true,
        }
    }

    /// Whether the first command of an instance that waits would wait again. It may lack less by now, if others have let go of
    /// pages that it writes: then it waits until those come that it lacked, which are on their way, or until they do not.
    fn waits_on(&mut self, instance: InstanceId) -> bool {
        let now = self.schedule.batches();
        let Some(&(_, Lack { kind, count, since })) = self.waiting.backlog.get(&instance) else {
            return false;
        };
        if self.is_behind(instance, kind, count) {
            return true;
        }
        let soon = self.pool(kind).comes_soon(count);
        if soon && now - since >= PATIENCE && self.pool(kind).is_within_share(instance, count) {
            if let Some((_, lack)) = self.waiting.backlog.get_mut(&instance) {
                lack.since = now;
            }
            self.make_way(instance, kind, count);
        }
        soon
    }

    /// For one inside its share: ends the newest of those over theirs whose operations keep pages that nobody owns; or, if there is
    /// none, as many of those who own some as it takes.
    fn make_way(&mut self, instance: InstanceId, kind: Kind, count: u32) {
        let Some(subject) = self.pages.subject_of(instance).cloned() else { return };
        let pool = self.pool(kind);
        let over = pool.over_share(&subject);
        let keepers = self.schedule.whose_jobs_touch(kind, |page| pool.drains_of(page, &over));
        let mut keepers: Vec<(u64, InstanceId)> = keepers
            .into_iter()
            .map(|keeper| (self.pages.joined(keeper).unwrap_or_default(), keeper))
            .collect();
        keepers.sort_unstable();
        for (_, keeper) in keepers.into_iter().rev() {
            if self.members.contains_key(&keeper) {
                return self.end_with(Notice::Evict(keeper));
            }
            // It ended, and what it left queued is for its exports.
            if self.abandon(keeper) {
                return;
            }
        }
        self.evict(self.pool(kind).without_draining(instance, count));
    }

    /// Whether somebody waits who may have pages without anything else happening: [`State::go_on`].
    pub fn has_more(&self) -> bool {
        self.waiting.ended_unseen
    }

    /// Looks once more after those who wait, if some have just been ended unseen: a look takes the engine long, so there is one
    /// in a turn.
    pub fn go_on(&mut self) {
        if std::mem::take(&mut self.waiting.ended_unseen) {
            self.waiting.seen = None;
            self.serve_waiting();
        }
    }

    /// Goes on with those who wait, the first of each subject, as far as pages go.
    pub(super) fn serve_waiting(&mut self) {
        while !self.waiting.is_empty() && !self.waiting.ended_unseen {
            let now = Some((self.changes(), self.schedule.batches() / PATIENCE));
            if self.waiting.seen == now {
                return;
            }
            self.waiting.seen = now;
            for first in self.waiting.firsts() {
                if !self.waiting.ended_unseen {
                    self.serve(first);
                }
            }
        }
    }

    fn serve(&mut self, instance: InstanceId) {
        if self.waits_on(instance) {
            return;
        }
        #[cfg(test)]
        {
            self.waiting.looks += 1;
        }
        let mut progress = false;
        let held = loop {
            let next = self.waiting.backlog(instance).and_then(VecDeque::pop_front);
            let Some(command) = next else { break None };
            match self.carry_out(command) {
                Ok(()) => progress = true,
                Err(held) => break Some(held),
            }
        };
        match held {
            None => drop(self.waiting.leave(instance)),
            Some(Held::Ends(notice)) => self.end_with(notice),
            Some(Held::Back(command, lack)) => {
                if let Some((behind, known)) = self.waiting.backlog.get_mut(&instance) {
                    behind.push_front(*command);
                    let since = if progress { lack.since } else { known.since };
                    *known = Lack { since, ..lack };
                }
                if progress {
                    self.waiting.step_back(instance);
                }
            }
        }
    }

    /// Counts what could give room to somebody who waits.
    fn changes(&self) -> u64 {
        self.pages.changes + self.embeds.changes
    }
}

#[cfg(test)]
impl State {
    pub fn waits(&self, instance: InstanceId) -> bool {
        self.waiting.backlog.contains_key(&instance)
    }

    pub(super) fn check_waiting(&self) {
        let mut placed = self.waiting.lines.values().flatten().map(|place| place.instance);
        assert!(placed.all(|instance| self.waits(instance) && self.members.contains_key(&instance)));
        assert_eq!(self.waiting.lines.values().map(VecDeque::len).sum::<usize>(), self.waiting.backlog.len());
        assert!(self.waiting.lines.values().all(|line| !line.is_empty()));
        assert!(
            self.waiting.is_empty() || !self.is_idle() || self.has_more(),
            "waits for what will never come"
        );
    }
}

#[cfg(test)]
mod tests;
