//! What else ran on this machine while it was measured.
//!
//! Owns: the count of processor time that was not ours. Never: a correction; a figure stays what was measured, and whoever
//! reads it is told that the machine was busy.

use crate::backend::cores::allowed;

/// A larger share of the processors' time is told: on a machine that does nothing else, the system takes less.
const OTHERS_MOST: f64 = 0.05;
/// As are more cores than this, of however many: a batch waits for the slowest of its threads.
const CORES_MOST: f64 = 0.5;

/// Processor time since the system's start, in its own ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ticks {
    /// Of all processors that this process may use together, idle or not; of no more than it gets at a time, where a
    /// quota bounds that.
    all: u64,
    /// Of these, those that were spent; also by other guests of the same host, where it says so.
    spent: u64,
    /// Of these, those of this process and of the children that it has waited for.
    ours: u64,
}

impl Ticks {
    /// None where the system does not count.
    pub fn now() -> Option<Ticks> {
        let machine = std::fs::read_to_string("/proc/stat").ok()?;
        let process = std::fs::read_to_string("/proc/self/stat").ok()?;
        let cores = std::thread::available_parallelism().ok()?.get();
        Ticks::of(&machine, &process, &allowed().ok()?, cores as u64)
    }

    /// From the files that proc(5) describes.
    fn of(machine: &str, process: &str, allowed: &[usize], cores: u64) -> Option<Ticks> {
        let (mut all, mut idle, mut processors) = (0, 0, 0);
        for line in machine.lines().filter_map(|line| line.strip_prefix("cpu")) {
            let (number, line) = line.split_once(' ')?;
            if number.parse().is_ok_and(|number| allowed.contains(&number)) {
                // user nice system idle iowait irq softirq steal, and what is counted in these once more
                let own = line.split_whitespace().take(8).map(str::parse::<u64>);
                let own: Vec<u64> = own.collect::<Result<_, _>>().ok()?;
                (all, idle) = (all + own.iter().sum::<u64>(), idle + own.get(3)? + own.get(4)?);
                processors += 1;
            }
        }
        let spent = all - idle;
        let all = (all * cores.min(processors)).checked_div(processors)?;
        // The name in parentheses may hold anything. Behind it the state comes first, as the third field of all;
        // the times of the process and of its children are the 14th to the 17th.
        let (_, fields) = process.rsplit_once(')')?;
        let times = fields.split_whitespace().skip(11).take(4).map(str::parse::<u64>);
        let ours = times.collect::<Result<Vec<_>, _>>().ok()?.iter().sum();
        Some(Ticks { all, spent, ours })
    }

    /// Which part of the processors' time others have taken since `before`: of what was there for us, or of all that was
    /// spent where that is more.
    pub fn others_since(&self, before: &Ticks) -> Option<f64> {
        let spent = self.spent.saturating_sub(before.spent);
        let others = spent.saturating_sub(self.ours - before.ours);
        let all = self.all.saturating_sub(before.all).max(spent); // the count of idle time may fall
        (all > 0).then(|| others as f64 / all as f64)
    }
}

/// The part that others took of the time of so many cores, if it is to be told.
pub fn told(others: Option<f64>, cores: usize) -> Option<f64> {
    others.filter(|others| *others > OTHERS_MOST || others * cores as f64 > CORES_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_and_not_ours_is_others() {
        let machine = "cpu  900 9 9 9 9 9 9 9 9 9\ncpu0 60 10 25 380 10 5 5 5 3 0\ncpu1 40 0 25 420 10 0 0 5 4 0\n\
                       cpu2 1 1 1 1 1 1 1 1 1 1\nintr 3\n";
        let allowed = [0, 1, 17];
        let process = "4711 (a) b) (c) S 1 4711 4711 0 -1 4194304 9 9 9 9 60 20 5 5 20 0 9 0 1\n";
        let before = Ticks::of(machine, process, &allowed, 64).expect("it counts");
        assert_eq!(before, Ticks { all: 1000, spent: 180, ours: 90 });
        let now = Ticks { all: 1400, spent: 380, ours: 190 };
        assert_eq!(now.others_since(&before), Some(0.25));
        assert_eq!(now.others_since(&now), None, "no time has passed");
        // Of two processors a quota leaves one, and both are spent.
        let one = Ticks::of(machine, process, &allowed, 1).expect("it counts");
        assert_eq!(one, Ticks { all: 500, ..before });
        let now = Ticks { all: 600, spent: one.spent + 200, ours: one.ours + 50 };
        assert_eq!(now.others_since(&one), Some(0.75));
        assert_eq!(Ticks::of(machine, process, &[17], 2), None, "another numbering");
        // The system's own files are of that form.
        let (first, second) = (Ticks::now().expect("a Linux"), Ticks::now().expect("a Linux"));
        assert!(
            second.all >= first.all && second.ours >= first.ours && first.ours <= first.spent,
            "{first:?}"
        );
    }

    /// The story: a core that another program had was 2 % of a machine of 64, and the batches that waited for it were not told.
    #[test]
    fn a_core_is_told_of_however_many() {
        for (others, cores, is_told) in
            [(0.04, 2, false), (0.06, 2, true), (0.06, 1, true), (1.0 / 64.0, 64, true), (0.004, 64, false)]
        {
            assert_eq!(told(Some(others), cores).is_some(), is_told, "{others} of {cores}");
        }
        assert_eq!(told(None, 64), None);
    }
}
