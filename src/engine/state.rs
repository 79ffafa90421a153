//! Everything the engine knows, as data: commands in, plans out.
//!
//! Owns: the instances, their names (by [`Pool`]), their queued work (by [`Schedule`]), and who waits for pages (by
//! [`Waiting`]). Never: a thread, a channel, a tensor. Commands act in the order given, with one exception: an instance
//! that must wait for pages has its later commands kept behind the waiting one, so that its own order stays.

use crate::backend::{EmbedId, Fault, Info, Outcome, PageId};
use crate::engine::job::{Job, Work};
use crate::engine::operation::{
    Command, Kind, Leave, Lost, Notice, Operation, PageQuotas, QueueId, Refusal, Reply, Status, Usage,
    VirtualId,
};
use crate::engine::pages::{Physical, Pool};
use crate::engine::prefix::{Prefixes, Reuse};
use crate::engine::schedule::{Budget, Plan, Schedule};
use crate::engine::waiting::{Lack, Waiting};
use crate::identity::{InstanceId, Subject};
use crate::limits::BACKLOG_PER_INSTANCE;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use std::collections::HashMap;

/// The engine without its thread.
pub struct State {
    pub(super) info: Info,
    pub(super) pages: Pool,
    pub(super) embeds: Pool,
    pub(super) schedule: Schedule,
    pub(super) members: HashMap<InstanceId, Member>,
    joined: u64,
    pub(super) waiting: Waiting,
    notices: Vec<Notice>,
    answered: bool,
    /// Set once, when the device has failed: nothing is done any more.
    lost: Option<Lost>,
    #[cfg(test)]
    pub(super) trace: Vec<Trace>,
}

pub(super) struct Member {
    pub seed: u64,
}

/// Why a command was not carried out.
pub(super) enum Held {
    /// It must wait for pages; here it is back, with what it lacks.
    Back(Box<Command>, Lack),
    /// The guest did what it must not, or cannot have what it needs: it is ended.
    Ends(Notice),
}

/// What a request for pages comes to.
pub(super) enum Got {
    Room,
    Wait(Lack),
    Never(Refusal),
}

impl State {
    pub fn new(info: &Info, reuse: &Reuse) -> State {
        State {
            info: info.clone(),
            pages: Pool::new(info.pages, Prefixes::new(info.pages, info.page_size, reuse)),
            embeds: Pool::new(info.embeds, Prefixes::none()),
            schedule: Schedule::new(info.pages, info.embeds),
            members: HashMap::new(),
            joined: 0,
            waiting: Waiting::default(),
            notices: Vec::new(),
            answered: false,
            lost: None,
            #[cfg(test)]
            trace: Vec::new(),
        }
    }

    // ---- the turns of the engine ----

    /// Carries a command out, or keeps it behind the one its instance waits with.
    pub fn apply(&mut self, command: Command) {
        let instance = command.instance();
        if self.lost.is_some() {
            return self.refuse(command);
        }
        // Whoever has ended waits for nothing: nobody can see what its last commands would do.
        if let Some(instance) = instance
            && !matches!(command, Command::Leave { .. })
            && let Some(behind) = self.waiting.backlog(instance)
        {
            if behind.len() < BACKLOG_PER_INSTANCE {
                return behind.push_back(command);
            }
            let what = format!("more than {BACKLOG_PER_INSTANCE} calls while waiting for pages");
            self.refuse(command);
            self.end_with(Notice::Misuse { instance, what });
            return self.serve_waiting();
        }
        match self.carry_out(command) {
            Ok(()) => {}
            Err(Held::Ends(notice)) => self.end_with(notice),
            Err(Held::Back(command, lack)) => {
                if let Some(instance) = instance
                    && let Some(subject) = self.pages.subject_of(instance).cloned()
                {
                    self.waiting.enter(subject, instance, *command, lack);
                }
            }
        }
        self.serve_waiting();
    }

    pub fn subject_of(&self, instance: InstanceId) -> Option<&Subject> {
        self.pages.subject_of(instance)
    }

    /// The next turn's work; what was planned before may still be under way.
    pub fn plan(&mut self, budget: Budget) -> Option<Plan> {
        self.schedule.plan(budget)
    }

    /// Delivers what the batch made.
    pub fn finish(&mut self, plan: Plan, outcome: &mut Outcome) -> Result<(), Fault> {
        self.schedule.finish(plan, outcome)?;
        let dropped = self.schedule.take_dropped();
        self.let_go(dropped);
        self.settle_done();
        self.serve_waiting();
        Ok(())
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Whether anyone was answered since last asked.
    pub fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// Answers all that is queued with `why`, and from now on every command too.
    pub fn lose_everything(&mut self, why: &str) {
        let lost = Lost(why.into());
        self.lost = Some(lost.clone());
        for job in self.schedule.take_all() {
            self.answer_lost(job.work, &lost);
        }
        for command in self.waiting.take_all() {
            self.refuse(command);
        }
    }

    // ---- commands ----

    pub(super) fn carry_out(&mut self, command: Command) -> Result<(), Held> {
        if let Some(instance) = command.instance()
            && !self.members.contains_key(&instance)
            && !matches!(command, Command::Join { .. })
        {
            self.refuse(command); // Given up already: its end is on the way.
            return Ok(());
        }
        match command {
            Command::Join { instance, subject, pages, seed } => self.join(instance, subject, pages, seed),
            Command::Leave { instance, how } => self.end(instance, how),
            Command::Allocate { instance, kind, count, reply } => {
                return self.allocate(instance, kind, count, reply);
            }
            Command::Deallocate { instance, kind, ids } => {
                let given = self.pool_mut(kind).deallocate(instance, &ids);
                given.map_err(|id| not_held(instance, kind, id))?;
                #[cfg(test)]
                self.trace.push(Trace::Deallocated(instance, kind, ids));
            }
            Command::Export { instance, kind, ids, name, reply } => {
                let exported = self.pool_mut(kind).export(instance, &ids, name.clone());
                let answer = exported.unwrap_or_else(|id| Err(Refusal::NotHeld(kind, id)));
                #[cfg(test)]
                if answer.is_ok() {
                    self.trace.push(Trace::Exported(instance, kind, ids, name));
                }
                self.answer(&reply, answer);
            }
            Command::Import { instance, kind, name, reply } => {
                let answer = self.pool_mut(kind).import(instance, &name);
                #[cfg(test)]
                if let Ok(ids) = &answer {
                    self.trace.push(Trace::Imported(instance, kind, name, ids.clone()));
                }
                self.answer(&reply, answer);
            }
            Command::Release { instance, kind, name, reply } => {
                let answer = self.pool_mut(kind).release(instance, &name);
                #[cfg(test)]
                if answer.is_ok() {
                    self.trace.push(Trace::Released(instance, kind, name));
                }
                self.answer(&reply, answer);
            }
            Command::Exports { instance, kind, reply } => {
                let names = self.pool(kind).exports(instance);
                self.answer(&reply, names);
            }
            Command::Submit { queue, operation, credit } => {
                self.open(queue)?;
                match operation {
                    Operation::Pass(pass, reply) => {
                        return self.submit(queue, pass, reply, credit);
                    }
                    Operation::Synchronize(reply) => {
                        self.schedule.add_synchronize(queue, reply, Some(credit));
                        self.settle_done();
                    }
                }
            }
            Command::Close { queue } => self.schedule.close(queue),
            Command::SetPriority { queue, priority } => {
                self.open(queue)?;
                self.schedule.set_priority(queue, priority);
            }
            Command::Status { reply } => {
                let status = self.status();
                self.answer(&reply, status);
            }
        }
        Ok(())
    }

    fn join(&mut self, instance: InstanceId, subject: Subject, pages: PageQuotas, seed: u64) {
        if self.members.contains_key(&instance) {
            return; // Joining twice must not lose what the first holds.
        }
        self.joined += 1;
        self.members.insert(instance, Member { seed });
        self.pages.join(instance, subject.clone(), self.joined, pages);
        self.embeds.join(instance, subject.clone(), self.joined, PageQuotas::default());
        #[cfg(test)]
        self.trace.push(Trace::Joined(instance, subject.clone(), seed));
        self.schedule.join(instance, subject);
    }

    fn allocate(
        &mut self,
        instance: InstanceId,
        kind: Kind,
        count: u32,
        reply: Reply<Result<Vec<VirtualId>, Refusal>>,
    ) -> Result<(), Held> {
        let pool = self.pool(kind);
        // More than there is at all is no matter of quotas, and whoever waits for them need not.
        let over = (count <= pool.capacity()).then(|| pool.over(instance, count, count)).flatten();
        let got =
            over.map_or_else(|| self.room(instance, kind, count), |quota| Got::Never(Refusal::Quota(quota)));
        let answer = match got {
            Got::Wait(lack) => {
                let back = Command::Allocate { instance, kind, count, reply };
                return Err(Held::Back(Box::new(back), lack));
            }
            Got::Never(refusal) => Err(refusal),
            Got::Room => self.pool_mut(kind).allocate(instance, count),
        };
        #[cfg(test)]
        if let Ok(ids) = &answer {
            self.trace.push(Trace::Allocated(instance, kind, ids.clone()));
        }
        self.answer(&reply, answer);
        Ok(())
    }

    fn open(&mut self, queue: QueueId) -> Result<(), Held> {
        if self.schedule.open(queue) {
            return Ok(());
        }
        let what = format!("more than {} queues open", crate::limits::QUEUES_PER_INSTANCE);
        Err(Held::Ends(Notice::Misuse { instance: queue.instance, what }))
    }

    fn status(&self) -> Status {
        let usage =
            |pool: &Pool| Usage { capacity: pool.capacity(), used: pool.used(), exported: pool.exported() };
        Status {
            pages: usage(&self.pages),
            embeds: usage(&self.embeds),
            instances: self.members.len() as u32,
        }
    }

    // ---- ends ----

    /// Ends an instance and says so upward.
    pub(super) fn end_with(&mut self, notice: Notice) {
        let instance = notice.instance();
        self.end(instance, Leave::Killed);
        self.notices.push(notice);
    }

    /// Takes the instance out, whatever it was doing. What others need of its queued work still runs.
    fn end(&mut self, instance: InstanceId, how: Leave) {
        if self.members.remove(&instance).is_none() {
            return; // Ended before: by eviction, say.
        }
        let withdrawn = if how == Leave::Killed { self.withdraw(instance) } else { Vec::new() };
        #[cfg(test)]
        self.trace.push(Trace::Left(instance, how, withdrawn));
        #[cfg(not(test))]
        drop(withdrawn);
        self.pages.leave(instance);
        self.embeds.leave(instance);
        self.drop_unneeded(instance);
        for command in self.waiting.leave(instance) {
            self.refuse(command);
        }
    }

    /// An instance that has ended does without what it left queued for its exports, too. False: that changes nothing, for
    /// others need it.
    pub(super) fn abandon(&mut self, instance: InstanceId) -> bool {
        let withdrawn = self.withdraw(instance);
        let any = !withdrawn.is_empty();
        #[cfg(test)]
        self.trace.push(Trace::Left(instance, Leave::Killed, withdrawn));
        self.drop_unneeded(instance) || any || self.schedule.ends_with_the_batch(instance)
    }

    /// Takes out what an instance that has left has queued and nobody needs. Whether there was anything.
    fn drop_unneeded(&mut self, instance: InstanceId) -> bool {
        let (pages, embeds) = (&self.pages, &self.embeds);
        let dropped = self.schedule.leave(instance, |kind, page| match kind {
            Kind::Page => pages.owners(page) > 0,
            Kind::Embed => embeds.owners(page) > 0,
        });
        let any = !dropped.is_empty();
        self.let_go(dropped);
        any
    }

    /// Jobs of an instance that has ended, which will not be done.
    fn let_go(&mut self, dropped: Vec<Job>) {
        let lost = Lost("the instance has ended".into());
        for job in dropped {
            // A pass that is kept may have written there before.
            let written = job.touches.iter().filter(|t| t.write && t.kind == Kind::Page);
            #[cfg(test)]
            let written = written.filter(|_| !planted(Bug::PrefixDropped));
            written.for_each(|touch| self.pages.prefixes.empty(touch.at));
            self.unhold(&job);
            self.answer_lost(job.work, &lost);
        }
    }

    /// Takes back the instance's exports whose contents were not yet written; which.
    fn withdraw(&mut self, instance: InstanceId) -> Vec<(Kind, String)> {
        #[cfg(test)]
        if planted(Bug::Withdrawal) {
            return Vec::new();
        }
        let schedule = &self.schedule;
        let Some(subject) = schedule.subject_of(instance) else { return Vec::new() };
        let unwritten = |kind| move |page| schedule.will_write(instance, kind, page);
        let pages = self.pages.withdraw(instance, subject, unwritten(Kind::Page));
        let embeds = self.embeds.withdraw(instance, subject, unwritten(Kind::Embed));
        let pages = pages.into_iter().map(|name| (Kind::Page, name));
        pages.chain(embeds.into_iter().map(|name| (Kind::Embed, name))).collect()
    }

    // ---- answers ----

    pub(super) fn answer<T: std::fmt::Debug>(&mut self, reply: &Reply<T>, value: T) {
        self.answered = true;
        let first = reply.set_blocking(value).is_ok();
        debug_assert!(first, "answered twice");
    }

    fn settle_done(&mut self) {
        for mut job in self.schedule.take_done() {
            self.index(&job); // Before the pages are let go: those that nobody owns are kept for what they hold.
            self.unhold(&job);
            drop(job.credit.take()); // Before the guest runs: it finds the room.
            match job.work {
                Work::Pass(_, pass) => {
                    let yielded = pass.yielded.into_iter().flatten().collect();
                    let reply = pass.reply.bare(); // Before the guest runs, too: what it drops counts no more.
                    self.answer(&reply, Ok(yielded));
                }
                Work::Synchronize(reply) => self.answer(&reply, true),
                Work::Move(_) => {}
            }
        }
    }

    fn answer_lost(&mut self, work: Work, lost: &Lost) {
        match work {
            Work::Pass(_, pass) => self.answer(&pass.reply.bare(), Err(lost.clone())), // as above
            Work::Synchronize(reply) => self.answer(&reply, false),
            Work::Move(_) => {}
        }
    }

    /// Answers a command that will not be carried out.
    pub(super) fn refuse(&mut self, command: Command) {
        let lost = self.lost.clone().unwrap_or_else(|| Lost("the instance has ended".into()));
        match command {
            Command::Allocate { reply, .. } | Command::Import { reply, .. } => {
                self.answer(&reply, Err(Refusal::Ended));
            }
            Command::Export { reply, .. } | Command::Release { reply, .. } => {
                self.answer(&reply, Err(Refusal::Ended));
            }
            Command::Exports { reply, .. } => self.answer(&reply, Vec::new()),
            Command::Submit { operation: Operation::Pass(_, reply), .. } => {
                self.answer(&reply, Err(lost));
            }
            Command::Submit { operation: Operation::Synchronize(reply), .. } => {
                self.answer(&reply, false);
            }
            Command::Status { reply } => {
                let status = self.status();
                self.answer(&reply, status);
            }
            Command::Join { .. }
            | Command::Leave { .. }
            | Command::Deallocate { .. }
            | Command::Close { .. }
            | Command::SetPriority { .. } => {}
        }
    }

    /// What a pass has written whole may be found from now on, unless something queued is going to write there again.
    fn index(&mut self, job: &Job) {
        if !matches!(job.work, Work::Pass(..)) {
            return;
        }
        for touch in job.touches.iter().filter(|t| t.write && t.kind == Kind::Page) {
            if !self.schedule.is_written(touch.at) {
                self.pages.written(touch.at);
            }
        }
    }

    fn unhold(&mut self, job: &Job) {
        for touch in &job.touches {
            self.pool_mut(touch.kind).unhold(touch.at);
        }
    }

    pub(super) fn pool(&self, kind: Kind) -> &Pool {
        match kind {
            Kind::Page => &self.pages,
            Kind::Embed => &self.embeds,
        }
    }

    pub(super) fn pool_mut(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Page => &mut self.pages,
            Kind::Embed => &mut self.embeds,
        }
    }
}

pub(super) fn not_held(instance: InstanceId, kind: Kind, id: VirtualId) -> Held {
    let what = Refusal::NotHeld(kind, id).to_string();
    Held::Ends(Notice::Misuse { instance, what })
}

impl From<Physical> for PageId {
    fn from(page: Physical) -> PageId {
        PageId(page.0)
    }
}

impl From<Physical> for EmbedId {
    fn from(embed: Physical) -> EmbedId {
        EmbedId(embed.0)
    }
}

#[cfg(test)]
impl State {
    pub fn is_idle(&self) -> bool {
        self.schedule.is_idle()
    }

    pub fn check(&self) {
        self.pages.check(&self.schedule.holds(Kind::Page));
        self.embeds.check(&self.schedule.holds(Kind::Embed));
        self.check_waiting();
    }
}

/// What was carried out, in order: the serial executor of the simulation follows it.
#[cfg(test)]
pub(super) enum Trace {
    Joined(InstanceId, Subject, u64),
    /// With the exports that were withdrawn.
    Left(InstanceId, Leave, Vec<(Kind, String)>),
    Allocated(InstanceId, Kind, Vec<VirtualId>),
    Deallocated(InstanceId, Kind, Vec<VirtualId>),
    Exported(InstanceId, Kind, Vec<VirtualId>, String),
    Imported(InstanceId, Kind, String, Vec<VirtualId>),
    Released(InstanceId, Kind, String),
    /// With the number of rows that need not run.
    Submitted(QueueId, crate::engine::operation::Pass, u32, Reply<crate::engine::operation::PassResult>),
}
