//! Which core a rank of the crew computes on.
//!
//! Owns: the cores that this process may use, and the one call that keeps a thread on one of them. Never: a thread.
//!
//! A batch has as many ranks as there are cores, and each waits for the others at every barrier. Linux gives a core to
//! whoever wakes, and moves busy threads to idle cores only every few milliseconds: beside other threads of ours that
//! compute at low priority it left two ranks on one core, in turns of 100 µs, for whole batches (one of ten took three
//! times as long). A rank that stays where it is also finds its caches again.

use std::cell::Cell;
use std::io;

/// Bits of the system's usual set of cores, 64 in a word.
type Set = [u64; 16];

/// A core for each rank, or none where the system knows better: where there are fewer ranks than cores, which may be two
/// threads of one.
pub struct Cores(Option<Box<[usize]>>);

thread_local! {
    /// The core that this thread stays on.
    static OWN: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Cores {
    /// For `ranks` ranks, of the cores that the calling thread may use.
    pub fn each(ranks: usize) -> Cores {
        let cores = allowed().unwrap_or_default();
        Cores((ranks > 1 && cores.len() == ranks).then(|| cores.into()))
    }

    /// From now on the calling thread, which is the rank's, stays on the rank's core. So do threads that it starts.
    #[inline]
    pub fn settle(&self, rank: usize) {
        let Some(core) = self.0.as_ref().and_then(|cores| cores.get(rank)) else { return };
        if OWN.get() == Some(*core) {
            return;
        }
        // Asked once, whatever comes of it: a core may have been taken away meanwhile.
        OWN.set(Some(*core));
        if let Err(error) = stay(*core) {
            tracing::debug!("a thread of batches goes from core to core: {error}");
        }
    }
}

/// The cores that the calling thread may use, by the system's numbers.
#[cfg(target_os = "linux")]
pub fn allowed() -> io::Result<Vec<usize>> {
    unsafe extern "C" {
        fn sched_getaffinity(thread: i32, bytes: usize, set: *mut Set) -> i32;
    }
    let mut set: Set = [0; 16];
    // SAFETY: sched_getaffinity(3) writes as many bytes as it is told, which the set has; 0 is the calling thread.
    match unsafe { sched_getaffinity(0, size_of::<Set>(), &mut set) } {
        0 => Ok((0..64 * set.len()).filter(|core| set[core / 64] >> (core % 64) & 1 == 1).collect()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_os = "linux")]
fn stay(core: usize) -> io::Result<()> {
    unsafe extern "C" {
        fn sched_setaffinity(thread: i32, bytes: usize, set: *const Set) -> i32;
    }
    let mut set: Set = [0; 16];
    set[core / 64] = 1 << (core % 64);
    // SAFETY: sched_setaffinity(3) reads as many bytes as it is told, which the set has; 0 is the calling thread.
    match unsafe { sched_setaffinity(0, size_of::<Set>(), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Elsewhere nobody is asked.
#[cfg(not(target_os = "linux"))]
pub fn allowed() -> io::Result<Vec<usize>> {
    Ok(Vec::new())
}

#[cfg(not(target_os = "linux"))]
fn stay(_core: usize) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn ranks_stay_on_cores_of_their_own_if_they_are_as_many() {
        let all = allowed().expect("the system tells");
        assert!(!all.is_empty());
        let cores = Cores::each(all.len());
        for (rank, core) in all.iter().enumerate() {
            thread::scope(|scope| {
                let own = scope.spawn(|| {
                    cores.settle(rank);
                    allowed().expect("the system tells")
                });
                let own = own.join().expect("no panic");
                assert_eq!(own, if all.len() > 1 { vec![*core] } else { all.clone() });
            });
        }
        for other in [1, all.len() + 1] {
            thread::scope(|scope| {
                let anywhere = scope.spawn(|| {
                    Cores::each(other).settle(0);
                    allowed().expect("the system tells")
                });
                assert_eq!(anywhere.join().expect("no panic"), all, "{other} ranks");
            });
        }
    }
}
