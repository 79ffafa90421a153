//! Queues as streams, hazards between them, and the choice of the next batch.
//!
//! Owns: the queued jobs, the order among them, and who is served next. Never: a tensor, a clock, a name of a page
//! (it sees physical ids), a reply. Pure: the same calls give the same plans.
//!
//! Moves of pages go first, then the passes that `choose.rs` takes from those that are ready (`ready.rs`).

use crate::backend::{Batch, Fault, Outcome};
use crate::engine::credit::Credit;
use crate::engine::hazards::{Edge, Hazards, JobId, Touch};
use crate::engine::job::{Class, Job, Move, PassWork, Then, Work};
use crate::engine::operation::{Kind, Priority, QueueId, Reply};
use crate::engine::pages::Physical;
use crate::identity::{InstanceId, Subject};
use crate::limits::QUEUES_PER_INSTANCE;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
pub use choose::Budget;
use choose::SHORT_ROWS;
use ready::Ready;
use std::collections::{BTreeMap, HashMap, VecDeque};

mod choose;
mod ready;

/// Moves of one turn: of pages of a large model, some 25 ms. Whoever found a long prefix waits a few turns, not everybody
/// for it.
const MOVES: usize = 64;

/// One turn's work: the moves in order, then the batch.
#[derive(Default)]
pub struct Plan {
    pub moves: Vec<Move>,
    pub batch: Batch,
    /// Whether a pass ends with it, so that somebody hears of its end and may ask for more.
    pub wakes: bool,
    runs: Vec<Run>, // [sequence]
}

impl Plan {
    /// Whose rows are in the batch; an instance with several sequences comes several times.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> {
        self.runs.iter().map(|run| run.instance)
    }
}

struct Run {
    job: JobId,
    instance: InstanceId,
    /// Which of the pass's yielding outputs the sequence fills.
    fills: Vec<usize>,
}

pub struct Schedule {
    jobs: BTreeMap<JobId, Job>,
    hazards: Hazards,
    queues: BTreeMap<QueueId, Queue>,
    guests: HashMap<InstanceId, Guest>,
    shares: HashMap<Subject, Share>,
    /// Moves that may run now, in the order they became so; some may have been dropped since.
    moves: VecDeque<JobId>,
    done: Vec<Job>,
    /// What was dropped when the batches that had rows of it ended.
    dropped: Vec<Job>,
    /// Batches planned so far.
    batch: u64,
    /// Sequences planned so far.
    services: u64,
    /// What the subject chosen last had been served before.
    pace: u64,
    next: u64,
}

#[derive(Default)]
struct Queue {
    priority: Priority,
    /// The last pass submitted, while it is queued.
    tail: Option<JobId>,
    /// Its pass that may run now: there is one at the most, as each waits for the one before.
    ready: Option<JobId>,
    /// Passes submitted so far: the ordinal of the next.
    passes: u64,
    closed: bool,
}

struct Guest {
    subject: Subject,
    /// `services` when it was last served.
    served: u64,
    jobs: u32,
    queues: usize,
    left: bool,
    /// Its passes that may run now.
    ready: Ready,
}

/// What one subject has of the device.
#[derive(Default)]
struct Share {
    /// Work done for it. It saves nothing up: once it has been idle it is where the others are.
    served: u64,
    /// [`Budget::now`] at about the end of the batch in which it was last served, or of the first since a guest of it
    /// came or went; none until that is chosen.
    seen: Option<u64>,
    /// It has had part in a batch.
    computed: bool,
    jobs: u32,
    /// At zero it is remembered for a while: who runs one program after another is about to come back.
    guests: u32,
}

impl Schedule {
    pub fn new(pages: u32, embeds: u32) -> Schedule {
        Schedule {
            jobs: BTreeMap::new(),
            hazards: Hazards::new(pages, embeds),
            queues: BTreeMap::new(),
            guests: HashMap::new(),
            shares: HashMap::new(),
            moves: VecDeque::new(),
            done: Vec::new(),
            dropped: Vec::new(),
            batch: 0,
            services: 0,
            pace: 0,
            next: 0,
        }
    }

    // ---- submitting ----

    /// Once for each instance, before all else of it.
    pub fn join(&mut self, instance: InstanceId, subject: Subject) {
        let share = self.shares.entry(subject.clone()).or_default();
        share.guests += 1;
        share.seen = None;
        let ready = Ready::default();
        let guest = Guest { subject, served: 0, jobs: 0, queues: 0, left: false, ready };
        self.guests.insert(instance, guest);
    }

    /// Opens the queue if it is new. False: the instance has too many open.
    pub fn open(&mut self, queue: QueueId) -> bool {
        if self.queues.contains_key(&queue) {
            return true;
        }
        let Some(guest) = self.guests.get_mut(&queue.instance) else { return false };
        if guest.queues >= QUEUES_PER_INSTANCE {
            return false;
        }
        guest.queues += 1;
        self.queues.insert(queue, Queue::default());
        true
    }

    /// What is queued still runs; then the queue is forgotten.
    pub fn close(&mut self, queue: QueueId) {
        if let Some(open) = self.queues.get_mut(&queue) {
            open.closed = true;
        }
        self.forget_if_over(queue);
    }

    pub fn set_priority(&mut self, queue: QueueId, priority: Priority) {
        let Some(open) = self.queues.get_mut(&queue) else { return };
        open.priority = priority;
        if let Some(id) = open.ready {
            self.unready(id);
            self.make_ready(id);
        }
    }

    /// The ordinal of the queue's next pass; counts it.
    pub fn number_pass(&mut self, queue: QueueId) -> u64 {
        let queue = self.queues.entry(queue).or_default();
        queue.passes += 1;
        queue.passes - 1
    }

    pub fn add_pass(&mut self, queue: QueueId, pass: PassWork, touches: Vec<Touch>, credit: Option<Credit>) {
        let before = self.queues.get(&queue).and_then(|q| q.tail);
        #[cfg(test)]
        let before = before.filter(|_| !planted(Bug::QueueOrder));
        let id = self.add(queue.instance, Work::Pass(queue, Box::new(pass)), touches, before, credit);
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.tail = Some(id);
        }
    }

    pub fn add_synchronize(&mut self, queue: QueueId, reply: Reply<bool>, credit: Option<Credit>) {
        let before = self.queues.get(&queue).and_then(|q| q.tail);
        let work = Work::Synchronize(reply);
        self.add(queue.instance, work, Vec::new(), before, credit);
    }

    /// A move is in no queue: it is ordered by what it touches alone.
    pub fn add_move(&mut self, instance: InstanceId, step: Move, touches: Vec<Touch>) {
        self.add(instance, Work::Move(step), touches, None, None);
    }

    fn add(
        &mut self,
        instance: InstanceId,
        work: Work,
        touches: Vec<Touch>,
        before: Option<JobId>,
        credit: Option<Credit>,
    ) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        if let Some(guest) = self.guests.get_mut(&instance) {
            guest.jobs += 1;
            let share = self.shares.entry(guest.subject.clone()).or_default();
            if share.jobs == 0 {
                share.served = share.served.max(self.pace);
            }
            share.jobs += 1;
        }
        let is_pass = matches!(work, Work::Pass(..));
        let mut edges = self.hazards.enter(id, &touches);
        if let Some(first) = before
            && edges.iter().all(|edge| edge.first != first)
        {
            edges.push(Edge { first, planned_is_enough: true }); // The order of the queue, no hazard.
        }
        let (mut after_done, mut after_planned) = (0, 0);
        for edge in edges {
            let Some(first) = self.jobs.get_mut(&edge.first) else { continue };
            let planned = edge.planned_is_enough && is_pass && matches!(first.work, Work::Pass(..));
            if planned && matches!(&first.work, Work::Pass(_, pass) if pass.left() == 0) {
                continue; // Its last rows are under way: whoever comes now comes later.
            }
            first.then.push(Then { job: id, planned });
            *(if planned { &mut after_planned } else { &mut after_done }) += 1;
        }
        let (then, since) = (Vec::new(), self.batch);
        let (ready, under_way, dropped) = (None, 0, false);
        let job = Job {
            instance,
            work,
            touches,
            after_done,
            after_planned,
            then,
            under_way,
            dropped,
            since,
            ready,
            credit,
        };
        self.jobs.insert(id, job);
        self.place_if_free(id);
        id
    }

    /// Where a job goes once it waits for nobody.
    fn place_if_free(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.after_done + job.after_planned > 0 {
            return;
        }
        job.since = self.batch;
        match job.work {
            Work::Pass(..) => self.make_ready(id),
            Work::Move(_) => self.moves.push_back(id),
            Work::Synchronize(..) => self.complete(id),
        }
    }

    /// Puts the pass where its queue's priority and its length have it.
    fn make_ready(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Work::Pass(queue, pass) = &job.work else { return };
        let open = self.queues.get_mut(queue);
        let priority = open.as_ref().map_or(Priority::Normal, |open| open.priority);
        let class = Class { priority, long: pass.left() > SHORT_ROWS };
        job.ready = Some(class);
        if let Some(open) = open {
            open.ready = Some(id);
        }
        if let Some(guest) = self.guests.get_mut(&job.instance) {
            guest.ready.insert(class, id);
        }
    }

    fn unready(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (Some(class), Work::Pass(queue, _)) = (job.ready.take(), &job.work) else { return };
        if let Some(open) = self.queues.get_mut(queue).filter(|open| open.ready == Some(id)) {
            open.ready = None;
        }
        if let Some(guest) = self.guests.get_mut(&job.instance) {
            guest.ready.remove(class, id);
        }
    }

    // ---- choosing ----

    /// The next turn's work, if there is any.
    pub fn plan(&mut self, budget: Budget) -> Option<Plan> {
        let mut plan = Plan::default();
        while plan.moves.len() < MOVES
            && let Some(id) = self.moves.pop_front()
        {
            if let Some(Job { work: Work::Move(step), .. }) = self.jobs.get(&id) {
                plan.moves.push(*step);
            }
            self.complete(id); // Moves run before the batch, so whoever waits for one may join it.
        }
        self.choose(budget, &mut plan);
        let some = !plan.moves.is_empty() || !plan.runs.is_empty();
        self.batch += u64::from(some);
        some.then_some(plan)
    }

    /// Puts up to `allowed` rows of the pass into the plan. Rows taken, and the passes that may now follow it, if nothing else
    /// keeps them.
    fn take(&mut self, id: JobId, allowed: u32, plan: &mut Plan) -> Option<(u32, Vec<JobId>)> {
        let job = self.jobs.get_mut(&id)?;
        let Work::Pass(_, pass) = &mut job.work else { return None };
        let rows = pass.left().min(allowed);
        if rows == 0 {
            return None;
        }
        let (sequence, fills) = pass.slice(rows);
        let whole = pass.left() == 0;
        job.since = self.batch + 1;
        job.under_way += 1;
        plan.wakes |= whole;
        plan.batch.sequences.push(sequence);
        plan.runs.push(Run { job: id, instance: job.instance, fills });
        self.services += 1;
        let followers: Vec<JobId> = job.then.iter().filter(|t| t.planned).map(|t| t.job).collect();
        if let Some(guest) = self.guests.get_mut(&job.instance) {
            guest.served = self.services;
        }
        self.unready(id);
        if !whole {
            self.make_ready(id); // it may be short now
            return Some((rows, Vec::new()));
        }
        for &follower in &followers {
            if let Some(job) = self.jobs.get_mut(&follower) {
                job.after_planned -= 1;
            }
            self.place_if_free(follower);
        }
        Some((rows, followers))
    }

    // ---- finishing ----

    /// The batch ran: the one that was planned first of those that have not. Fails if the backend did not answer what was
    /// asked.
    pub fn finish(&mut self, plan: Plan, outcome: &mut Outcome) -> Result<(), Fault> {
        let (asked, made) = (plan.runs.len(), outcome.produced.len());
        if asked != made {
            return Err(Fault(format!("{made} sequences answered of {asked}")));
        }
        for (run, produced) in plan.runs.into_iter().zip(&mut outcome.produced) {
            let Some(job) = self.jobs.get_mut(&run.job) else { continue };
            job.under_way -= 1;
            let (ended, dropped) = (job.under_way == 0, job.dropped);
            let Work::Pass(_, pass) = &mut job.work else { continue };
            let (asked, made) = (run.fills.len(), produced.len());
            if asked != made {
                return Err(Fault(format!("{made} outputs answered of {asked}")));
            }
            for (fill, produced) in run.fills.into_iter().zip(produced.drain(..)) {
                pass.yielded[fill] = Some(produced);
            }
            #[cfg(test)]
            let ended = ended || planted(Bug::FirstOfTwo);
            if dropped && ended {
                let job = self.drop_job(run.job);
                self.dropped.extend(job);
            } else if pass.left() == 0 && ended {
                self.complete(run.job);
            }
        }
        Ok(())
    }

    /// Jobs of those who have left that were under way then, and have ended since last asked.
    pub fn take_dropped(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.dropped)
    }

    /// Jobs that are done since last asked, in the order they became so.
    pub fn take_done(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.done)
    }

    fn complete(&mut self, id: JobId) {
        let Some(mut job) = self.remove(id) else { return };
        // Those that only had to see it planned were let go then; a move is never planned, only done.
        let then = std::mem::take(&mut job.then);
        self.done.push(job);
        for then in then.into_iter().filter(|t| !t.planned) {
            if let Some(job) = self.jobs.get_mut(&then.job) {
                job.after_done -= 1;
            }
            self.place_if_free(then.job);
        }
    }

    fn remove(&mut self, id: JobId) -> Option<Job> {
        self.unready(id);
        let job = self.jobs.remove(&id)?;
        self.hazards.leave(id, &job.touches);
        if let Work::Pass(queue, _) = &job.work {
            if let Some(open) = self.queues.get_mut(queue)
                && open.tail == Some(id)
            {
                open.tail = None;
            }
            self.forget_if_over(*queue);
        }
        if let Some(guest) = self.guests.get_mut(&job.instance) {
            guest.jobs -= 1;
            if let Some(share) = self.shares.get_mut(&guest.subject) {
                share.jobs -= 1;
            }
            self.forget_if_gone(job.instance);
        }
        Some(job)
    }

    fn forget_if_over(&mut self, queue: QueueId) {
        if self.queues.get(&queue).is_some_and(|q| q.closed && q.tail.is_none()) {
            self.queues.remove(&queue);
            if let Some(guest) = self.guests.get_mut(&queue.instance) {
                guest.queues -= 1;
            }
        }
    }

    // ---- leaving ----

    /// Whether a queued pass of the instance writes the page.
    pub fn will_write(&self, instance: InstanceId, kind: Kind, at: Physical) -> bool {
        let is_its_pass = |job: &Job| job.instance == instance && matches!(job.work, Work::Pass(..));
        self.hazards.writers(kind, at).any(|id| self.jobs.get(&id).is_some_and(is_its_pass))
    }

    /// Whose an instance is, or was as long as anything of it is queued.
    pub fn subject_of(&self, instance: InstanceId) -> Option<&Subject> {
        self.guests.get(&instance).map(|guest| &guest.subject)
    }

    /// Batches that have been planned.
    pub fn batches(&self) -> u64 {
        self.batch
    }

    /// The instances whose queued jobs use such a page.
    pub fn whose_jobs_touch(&self, kind: Kind, such: impl Fn(Physical) -> bool) -> Vec<InstanceId> {
        let does = |job: &&Job| job.touches.iter().any(|touch| touch.kind == kind && such(touch.at));
        let mut all = Vec::new();
        for job in self.jobs.values().filter(does) {
            if !all.contains(&job.instance) {
                all.push(job.instance);
            }
        }
        all
    }

    /// Whether some job of the instance is done, or goes, with what is under way.
    pub fn ends_with_the_batch(&self, instance: InstanceId) -> bool {
        let ends = |job: &Job| job.under_way > 0 && (job.dropped || job.ready.is_none());
        self.jobs.values().any(|job| job.instance == instance && ends(job))
    }

    /// Whether anything queued writes the page.
    pub fn is_written(&self, page: Physical) -> bool {
        self.hazards.writers(Kind::Page, page).next().is_some()
    }

    /// The instance has left: its jobs that nobody else needs are taken out and returned; those with rows under way, when
    /// these have ended ([`Schedule::take_dropped`]): until then their pages are in use. Needed is what writes a page
    /// that is `owned` (the instance's own names are gone) or that another instance's operation reads, and what
    /// those depend on. What stays is ordered by its hazards; the chain of its queue may have lost a link, which
    /// nobody is left to see. Of one that has left before, it takes out what was needed then and is not any more.
    pub fn leave(&mut self, instance: InstanceId, owned: impl Fn(Kind, Physical) -> bool) -> Vec<Job> {
        let mine: Vec<JobId> =
            self.jobs.iter().filter(|(_, j)| j.instance == instance).map(|(&id, _)| id).collect();
        // Whether a page is needed; its readers are looked through once, however many of these jobs write it.
        let (mut needed, mut doomed) = (HashMap::new(), Vec::new());
        for &id in mine.iter().rev() {
            let job = &self.jobs[&id];
            let wanted = job.touches.iter().filter(|t| t.write).any(|t| {
                let for_others = || owned(t.kind, t.at) || self.others_read(instance, t.kind, t.at);
                *needed.entry((t.kind, t.at)).or_insert_with(for_others)
            });
            #[cfg(test)]
            let wanted = wanted && !planted(Bug::KeptWork);
            if wanted {
                needed.extend(job.touches.iter().map(|t| ((t.kind, t.at), true)));
            } else {
                doomed.push(id);
            }
        }
        self.forget_guest(instance);
        // Last first: else what waits for a dropped pass would count as having seen it done.
        let mut dropped = Vec::new();
        for id in doomed {
            match self.jobs.get_mut(&id) {
                // With its last rows under way it is as good as done.
                Some(job) if job.under_way > 0 => {
                    job.dropped |= job.ready.is_some();
                    self.unready(id);
                }
                _ => dropped.extend(self.drop_job(id)),
            }
        }
        dropped
    }

    fn others_read(&self, instance: InstanceId, kind: Kind, at: Physical) -> bool {
        let mut readers = self.hazards.readers(kind, at);
        readers.any(|id| self.jobs.get(&id).is_some_and(|job| job.instance != instance))
    }

    fn forget_guest(&mut self, instance: InstanceId) {
        let all = [0, u32::MAX].map(|ordinal| QueueId { instance, ordinal });
        let queues: Vec<QueueId> = self.queues.range(all[0]..=all[1]).map(|(queue, _)| *queue).collect();
        for queue in queues {
            self.close(queue);
        }
        if let Some(guest) = self.guests.get_mut(&instance) {
            guest.left = true;
        }
        self.forget_if_gone(instance);
    }

    fn forget_if_gone(&mut self, instance: InstanceId) {
        let Some(guest) = self.guests.get(&instance).filter(|guest| guest.left && guest.jobs == 0) else {
            return;
        };
        if let Some(share) = self.shares.get_mut(&guest.subject) {
            share.guests -= 1;
            share.seen = None;
            // Whose guests never computed anything need not be waited for.
            if share.guests == 0 && !share.computed {
                self.shares.remove(&guest.subject);
            }
        }
        self.guests.remove(&instance);
    }

    fn drop_job(&mut self, id: JobId) -> Option<Job> {
        let mut job = self.remove(id)?;
        for then in std::mem::take(&mut job.then) {
            if let Some(job) = self.jobs.get_mut(&then.job) {
                *(if then.planned { &mut job.after_planned } else { &mut job.after_done }) -= 1;
            }
            self.place_if_free(then.job);
        }
        Some(job)
    }

    /// Everything, done or not: the engine is ending.
    pub fn take_all(&mut self) -> Vec<Job> {
        self.moves.clear();
        let mut all = self.take_done();
        all.extend(self.take_dropped());
        all.extend(std::mem::take(&mut self.jobs).into_values());
        self.guests.clear();
        self.shares.clear();
        all
    }
}

#[cfg(test)]
impl Schedule {
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How often the queued jobs name each page; a job names one at most once to read and once to write.
    pub fn holds(&self, kind: Kind) -> HashMap<Physical, u32> {
        let all = || self.jobs.values().chain(&self.done);
        for job in all() {
            let once: std::collections::HashSet<_> =
                job.touches.iter().map(|t| (t.kind, t.at, t.write)).collect();
            assert_eq!(once.len(), job.touches.len(), "an access is noted twice");
        }
        let mut holds = HashMap::new();
        for touch in all().flat_map(|job| &job.touches).filter(|t| t.kind == kind) {
            *holds.entry(touch.at).or_default() += 1;
        }
        holds
    }
}

#[cfg(test)]
mod tests;
