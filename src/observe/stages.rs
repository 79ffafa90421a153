//! The stage clock: where the time between two batches of one instance goes.
//!
//! Owns: the marks that engine, runtime and host leave while somebody records ([`start`] to [`take`]), and what they
//! amount to per token ([`intervals`]). Never: a log, a metric; while nobody records, a mark is one relaxed load.
//!
//! ```text
//! Finished ── Resumed ── Called ── Returned ── Called ── Submitted ── Received ── Queued ── Started ── Finished
//! └── wake ──┘└ guest ──┘└─ host ─┘└─ guest ──┘└─ host ──┘└── queue ──┘└ validate ┘└─ queue ─┘└── batch ─┘
//! ```

use crate::identity::InstanceId;
use crate::limits::STAGE_MARKS;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What has just happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// A batch with rows of it goes to the backend, ...
    Started,
    /// ... which has computed it.
    Finished,
    /// What it waited for is there and a thread has taken it up: its answer is being lowered.
    Resumed,
    /// It called the host.
    Called,
    /// The host call is over and guest code runs.
    Returned,
    /// The host has checked an operation and sent it to the engine, ...
    Submitted,
    /// ... which has taken it out of its inbox, ...
    Received,
    /// ... checked it again, found its pages, and queued it.
    Queued,
}

const STAGES: [Stage; 8] = [
    Stage::Started,
    Stage::Finished,
    Stage::Resumed,
    Stage::Called,
    Stage::Returned,
    Stage::Submitted,
    Stage::Received,
    Stage::Queued,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub instance: InstanceId,
    pub stage: Stage,
    /// Since [`start`].
    pub at: Duration,
}

/// Written by whoever reads the lock, read by whoever writes it: so no slot is read half-written.
struct Ring {
    since: Instant,
    /// Marks that were asked for; those beyond the slots are not kept.
    asked: AtomicUsize,
    slots: Box<[Slot]>,
}

#[derive(Default)]
struct Slot {
    instance: [AtomicU64; 2],
    /// Nanoseconds, and the stage in the lowest 3 bits.
    at: AtomicU64,
}

static RECORDING: AtomicBool = AtomicBool::new(false);
static RING: RwLock<Option<Ring>> = RwLock::new(None);

/// Records from now on, `capacity` marks ([`STAGE_MARKS`] at most); what comes after is not kept. What an earlier
/// recording holds is lost.
pub fn start(capacity: usize) {
    let slots = (0..capacity.min(STAGE_MARKS)).map(|_| Slot::default()).collect();
    let ring = Ring { since: Instant::now(), asked: AtomicUsize::new(0), slots };
    *RING.write().unwrap_or_else(PoisonError::into_inner) = Some(ring);
    RECORDING.store(true, Relaxed);
}

/// Ends the recording; its marks, in the order of their times. Empty if nobody recorded.
pub fn take() -> Vec<Mark> {
    RECORDING.store(false, Relaxed);
    let Some(ring) = RING.write().unwrap_or_else(PoisonError::into_inner).take() else { return Vec::new() };
    let kept = ring.asked.into_inner().min(ring.slots.len());
    let mut marks: Vec<Mark> = ring.slots[..kept].iter().map(Slot::get).collect();
    marks.sort_by_key(|mark| mark.at);
    marks
}

/// Whether somebody records: for callers whose mark takes more than to ask.
#[inline]
pub fn recording() -> bool {
    RECORDING.load(Relaxed)
}

/// Notes that `stage` has come for `instance`, if somebody records.
#[inline]
pub fn mark(stage: Stage, instance: InstanceId) {
    if recording() {
        note(stage, instance);
    }
}

/// What one mark costs while somebody records, in nanoseconds: the mean over so many on one thread. Nothing that is
/// recorded meanwhile is kept.
pub fn cost(marks: usize) -> f64 {
    let instance = InstanceId::from_bits(0);
    start(marks);
    let since = Instant::now();
    (0..marks).for_each(|_| mark(Stage::Called, instance));
    let took = since.elapsed();
    take();
    took.as_nanos() as f64 / marks as f64
}

#[cold]
fn note(stage: Stage, instance: InstanceId) {
    let ring = RING.read().unwrap_or_else(PoisonError::into_inner);
    let Some(ring) = &*ring else { return };
    if let Some(slot) = ring.slots.get(ring.asked.fetch_add(1, Relaxed)) {
        slot.set(stage, instance, ring.since.elapsed());
    }
}

impl Slot {
    fn set(&self, stage: Stage, instance: InstanceId, at: Duration) {
        let id = instance.to_bits();
        self.instance[0].store(id as u64, Relaxed);
        self.instance[1].store((id >> 64) as u64, Relaxed);
        self.at.store((at.as_nanos() as u64) << 3 | stage as u64, Relaxed);
    }

    fn get(&self) -> Mark {
        let [low, high] = [0, 1].map(|half| u128::from(self.instance[half].load(Relaxed)));
        let at = self.at.load(Relaxed);
        Mark {
            instance: InstanceId::from_bits(high << 64 | low),
            stage: STAGES[(at & 7) as usize],
            at: Duration::from_nanos(at >> 3),
        }
    }
}

/// The time from the end of one batch of an instance to the end of its next, by stage. The parts sum to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// From the result to the thread that takes the guest up.
    pub wake: Duration,
    /// Guest code, until it has submitted the next pass.
    pub guest: Duration,
    /// Host calls until then, their lifting, checking and lowering included.
    pub host: Duration,
    /// The engine's own check of the pass, and finding its pages.
    pub validation: Duration,
    /// In the engine's inbox, and ready until the batch starts.
    pub queue: Duration,
    /// The backend's step.
    pub batch: Duration,
    /// When the step was over, since [`start`].
    pub ended: Duration,
}

impl Interval {
    pub fn total(&self) -> Duration {
        self.tax() + self.batch
    }

    /// What programmability costs: all but the backend's step.
    pub fn tax(&self) -> Duration {
        self.wake + self.guest + self.host + self.validation + self.queue
    }
}

/// Every interval of every instance in which it was resumed and submitted a pass that ran; those of a prompt's chunks,
/// or cut off by the recording's ends, are left out.
pub fn intervals(marks: &[Mark]) -> Vec<(InstanceId, Interval)> {
    let mut courses: HashMap<InstanceId, Course> = HashMap::new();
    let step = |mark: &Mark| {
        let course = courses.entry(mark.instance).or_default();
        course.step(mark.stage, mark.at).map(|interval| (mark.instance, interval))
    };
    marks.iter().filter_map(step).collect()
}

/// How far an instance has come since its last batch.
#[derive(Default)]
struct Course {
    finished: Option<Duration>,
    resumed: Option<Duration>,
    /// The host call in progress.
    called: Option<Duration>,
    host: Duration,
    /// When the last operation was submitted, and what the host had taken until then.
    submitted: Option<(Duration, Duration)>,
    received: Option<Duration>,
    queued: Option<Duration>,
    started: Option<Duration>,
}

impl Course {
    fn step(&mut self, stage: Stage, at: Duration) -> Option<Interval> {
        match stage {
            Stage::Started => self.started = Some(at),
            Stage::Resumed => {
                self.resumed.get_or_insert(at);
                self.called = Some(at);
            }
            Stage::Called => self.called = Some(at),
            Stage::Returned => self.host += self.called.take().map_or(Duration::ZERO, |from| at - from),
            Stage::Submitted => {
                let open = self.called.map_or(Duration::ZERO, |from| at - from);
                self.submitted = Some((at, self.host + open));
            }
            Stage::Received => self.received = Some(at),
            Stage::Queued => self.queued = Some(at),
            Stage::Finished => {
                let whole = self.interval(at);
                *self = Course { finished: Some(at), ..Course::default() };
                return whole;
            }
        }
        None
    }

    fn interval(&self, end: Duration) -> Option<Interval> {
        let (finished, resumed, started) = (self.finished?, self.resumed?, self.started?);
        let ((submitted, host), received, queued) = (self.submitted?, self.received?, self.queued?);
        Some(Interval {
            wake: resumed.checked_sub(finished)?,
            guest: submitted.checked_sub(resumed)?.checked_sub(host)?,
            host,
            validation: queued.checked_sub(received)?,
            queue: received.checked_sub(submitted)? + started.checked_sub(queued)?,
            batch: end.checked_sub(started)?,
            ended: end,
        })
    }
}

/// The recorder is the process's; tests that record take turns.
#[cfg(test)]
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_many_threads_are_kept_whole_up_to_the_capacity() {
        let _alone = alone();
        let instances: Vec<InstanceId> = (0..4).map(|_| InstanceId::random()).collect();
        let (each, capacity) = (10_000, 30_000);
        start(capacity);
        std::thread::scope(|scope| {
            for &instance in &instances {
                scope.spawn(move || (0..each).for_each(|i| mark(STAGES[i % STAGES.len()], instance)));
            }
        });
        let marks = take();
        assert_eq!(marks.len(), capacity, "every slot is used and none twice");
        assert!(marks.is_sorted_by_key(|mark| mark.at));
        // Of each instance the first are kept, in their order and with nothing of another's.
        let mut kept = 0;
        for instance in &instances {
            let of = marks.iter().filter(|mark| mark.instance == *instance);
            let stages: Vec<Stage> = of.map(|mark| mark.stage).collect();
            assert!(stages.iter().eq(STAGES.iter().cycle().take(stages.len())), "{stages:?}");
            kept += stages.len();
        }
        // Other tests of this process may run guests meanwhile, whose marks take slots too; far fewer than these.
        assert!((capacity / 2..=capacity).contains(&kept), "{kept}");
        mark(Stage::Called, instances[0]);
        assert!(!recording() && take().is_empty(), "nothing is kept when nobody records");
    }

    #[test]
    fn the_parts_of_an_interval_are_told_apart_and_sum_to_it() {
        let instance = InstanceId::random();
        let us = Duration::from_micros;
        let course = [
            (Stage::Called, 1), // the poll in which it waits
            (Stage::Finished, 10),
            (Stage::Resumed, 15),
            (Stage::Returned, 17),
            (Stage::Called, 20),
            (Stage::Returned, 21),
            (Stage::Called, 30),
            (Stage::Submitted, 34),
            (Stage::Returned, 35),
            (Stage::Received, 36),
            (Stage::Called, 37),
            (Stage::Queued, 39),
            (Stage::Started, 44),
            (Stage::Finished, 1044),
            (Stage::Started, 1050), // the next chunk of a prompt: no guest took part
            (Stage::Finished, 2050),
        ];
        let marks = course.map(|(stage, at)| Mark { instance, stage, at: us(at) });
        let interval = Interval {
            wake: us(5),
            host: us(2 + 1 + 4),
            guest: us(3 + 9),
            queue: us(2 + 5),
            validation: us(3),
            batch: us(1000),
            ended: us(1044),
        };
        assert_eq!(intervals(&marks), [(instance, interval)]);
        assert_eq!((interval.tax(), interval.total()), (us(34), us(1034)));
    }
}
