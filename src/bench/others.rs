//! What else ran on this machine while it was measured.
//!
//! Owns: the count of processor time that was not ours. Never: a correction; a figure stays what was measured, and whoever
//! reads it is told that the machine was busy.

/// A larger share of all processors' time is told: on a machine that does nothing else, the system takes less.
pub const OTHERS_MOST: f64 = 0.05;

/// Processor time since the system's start, in its own ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ticks {
    /// Of all processors together, idle or not.
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
        Ticks::of(&machine, &process)
    }

    /// From the files that proc(5) describes.
    fn of(machine: &str, process: &str) -> Option<Ticks> {
        let all = machine.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal, and what is counted in these once more
        let all: Vec<u64> = all.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let idle = all.get(3)? + all.get(4)?;
        let all: u64 = all.iter().sum();
        // The name in parentheses may hold anything. Behind it the state comes first, as the third field of all;
        // the times of the process and of its children are the 14th to the 17th.
        let (_, fields) = process.rsplit_once(')')?;
        let times = fields.split_whitespace().skip(11).take(4).map(str::parse::<u64>);
        let ours = times.collect::<Result<Vec<_>, _>>().ok()?.iter().sum();
        Some(Ticks { all, spent: all - idle, ours })
    }

    /// Which part of all processors' time others have taken since `before`.
    pub fn others_since(&self, before: &Ticks) -> Option<f64> {
        let spent = self.spent.saturating_sub(before.spent).saturating_sub(self.ours - before.ours);
        let all = self.all.saturating_sub(before.all); // the count of idle time may fall
        (all > 0).then(|| spent as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_and_not_ours_is_others() {
        let machine = "cpu  100 10 50 800 20 5 5 10 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let process = "4711 (a) b) (c) S 1 4711 4711 0 -1 4194304 9 9 9 9 60 20 5 5 20 0 9 0 1\n";
        let before = Ticks::of(machine, process).expect("it counts");
        assert_eq!(before, Ticks { all: 1000, spent: 180, ours: 90 });
        let now = Ticks { all: 1400, spent: 380, ours: 190 };
        assert_eq!(now.others_since(&before), Some(0.25));
        assert_eq!(now.others_since(&now), None, "no time has passed");
        // The system's own files are of that form.
        let (first, second) = (Ticks::now().expect("a Linux"), Ticks::now().expect("a Linux"));
        assert!(
            second.all >= first.all && second.ours >= first.ours && first.ours <= first.spent,
            "{first:?}"
        );
    }
}
