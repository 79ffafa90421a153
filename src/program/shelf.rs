//! The translated programs that are in memory: bounded, whatever the store holds.
//!
//! Owns: which they are, and which goes for another. Never: the folder, or a translation.
//!
//! A program that nobody runs goes when its room is needed: one of the subject that has most of those, the one that was asked
//! for longest ago first. It is translated again when it is launched. One that has instances stays, and counts for every
//! subject that runs it: who runs so many that its share is full is refused another, whatever others run.

use super::{Code, Program, Rejected};
use crate::identity::{ProgramHash, Subject};
use crate::limits;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub(super) struct Shelf {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    programs: HashMap<ProgramHash, Entry>,
    /// How often somebody has asked for a program.
    asked: u64,
}

struct Entry {
    code: Arc<Code>,
    /// Each subject's program with this code, as long as it has instances of it. It can get another only here, under the lock.
    run: Vec<(Subject, Weak<Program>)>,
    /// Who asked for it last, and when.
    by: Subject,
    asked: u64,
}

impl Held {
    /// Which goes next, if there is one that nobody runs.
    fn goes(&self) -> Option<ProgramHash> {
        let idle = || self.programs.iter().filter(|(_, entry)| !entry.runs());
        let mut bytes: HashMap<&Subject, usize> = HashMap::new();
        idle().for_each(|(_, entry)| *bytes.entry(&entry.by).or_default() += entry.code.bytes);
        let of = |entry: &Entry| bytes.get(&entry.by).copied().unwrap_or_default();
        idle().max_by_key(|(_, entry)| (of(entry), Reverse(entry.asked))).map(|(hash, _)| *hash)
    }

    fn bytes(&self, of: impl Fn(&Entry) -> bool) -> usize {
        self.programs.values().filter(|entry| of(entry)).map(|entry| entry.code.bytes).sum()
    }
}

impl Entry {
    fn runs(&self) -> bool {
        self.run.iter().any(|(_, program)| program.strong_count() > 0)
    }

    fn runs_for(&self, subject: &Subject) -> bool {
        self.run.iter().any(|(of, program)| of == subject && program.strong_count() > 0)
    }
}

impl Default for Shelf {
    fn default() -> Shelf {
        Shelf::of(limits::PROGRAM_CODE_BYTES)
    }
}

impl Shelf {
    pub fn of(most: usize) -> Shelf {
        Shelf { most, held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Every change under the lock is complete before anything can panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program for the subject to run, if it is here.
    pub fn find(&self, hash: &ProgramHash, subject: &Subject) -> Result<Option<Arc<Program>>, Rejected> {
        self.find_in(&mut self.lock(), hash, subject)
    }

    fn find_in(
        &self,
        held: &mut Held,
        hash: &ProgramHash,
        subject: &Subject,
    ) -> Result<Option<Arc<Program>>, Rejected> {
        let Some(entry) = held.programs.get(hash) else { return Ok(None) };
        if !entry.runs_for(subject) {
            let (new, bytes) = (!entry.runs(), entry.code.bytes);
            self.room(held, subject, bytes, new)?;
        }
        held.asked += 1;
        let asked = held.asked;
        let Some(entry) = held.programs.get_mut(hash) else { return Ok(None) };
        (entry.asked, entry.by) = (asked, subject.clone());
        let its = entry.run.iter().find(|(of, _)| of == subject);
        if let Some(program) = its.and_then(|(_, program)| program.upgrade()) {
            return Ok(Some(program));
        }
        let program = Arc::new(Program { hash: *hash, code: entry.code.clone() });
        entry.run.retain(|(_, program)| program.strong_count() > 0);
        entry.run.push((subject.clone(), Arc::downgrade(&program)));
        Ok(Some(program))
    }

    /// Whether the subject may run a program more, of so many bytes, that nobody runs.
    pub fn has_room(&self, subject: &Subject, bytes: usize) -> Result<(), Rejected> {
        self.room(&self.lock(), subject, bytes, true)
    }

    /// `new`: nobody runs it yet.
    fn room(&self, held: &Held, subject: &Subject, bytes: usize, new: bool) -> Result<(), Rejected> {
        let own = held.bytes(|entry| entry.runs_for(subject));
        if *subject != Subject::everyone() && own + bytes > self.most / limits::PROGRAM_CODE_SHARE {
            return Err(Rejected::CodeShareFull);
        }
        let full = new && held.bytes(Entry::runs) + bytes > self.most;
        if full { Err(Rejected::CodeFull) } else { Ok(()) }
    }

    /// Puts a program here that has just been translated for the subject, and makes room for it. Answers the one that is
    /// here already, if there is one.
    pub fn keep(&self, program: Arc<Program>, subject: &Subject) -> Result<Arc<Program>, Rejected> {
        let bytes = program.code.bytes;
        let mut gone = Vec::new();
        let mut held = self.lock();
        if let Some(kept) = self.find_in(&mut held, &program.hash, subject)? {
            return Ok(kept);
        }
        self.room(&held, subject, bytes, true)?;
        let mut all = held.bytes(|_| true);
        while all + bytes > self.most {
            let Some(hash) = held.goes() else { break };
            let Some(entry) = held.programs.remove(&hash) else { break };
            all -= entry.code.bytes;
            gone.push(entry);
        }
        held.asked += 1;
        let run = vec![(subject.clone(), Arc::downgrade(&program))];
        let entry = Entry { code: program.code.clone(), run, by: subject.clone(), asked: held.asked };
        held.programs.insert(program.hash, entry);
        drop(held);
        drop(gone); // takes milliseconds
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::component::tests::MINIMAL;

    fn program(number: usize) -> Arc<Program> {
        let mut component = wat::parse_str(MINIMAL).unwrap();
        component.extend([0, 10, 1, b'n']); // a custom section: a name of one byte and eight of data
        component.extend(number.to_le_bytes());
        Program::of(&component).unwrap()
    }

    #[test]
    fn who_was_asked_for_longest_ago_goes_first_unless_it_runs() {
        let one = program(0).code.bytes;
        let (shelf, nobody) = (Shelf::of(3 * one), Subject::everyone());
        let programs: Vec<_> = (0..5).map(|number| program(number).hash).collect();
        let keep = |number| shelf.keep(program(number), &nobody).map(|kept| Arc::downgrade(&kept.code));
        let gone: Vec<_> = (0..3).map(|number| keep(number).unwrap()).collect();
        let runs = shelf.find(&programs[0], &nobody).unwrap().unwrap();
        let _ = shelf.find(&programs[1], &nobody).unwrap().unwrap();
        let third = keep(3).unwrap();
        assert!(gone[2].upgrade().is_none() && gone[1].upgrade().is_some(), "2 was asked for before 1");
        keep(4).unwrap();
        keep(2).unwrap();
        assert!(gone[1].upgrade().is_none() && third.upgrade().is_none());
        assert!(Arc::ptr_eq(&runs, &shelf.find(&programs[0], &nobody).unwrap().unwrap()), "it runs");
        drop(runs);
        for number in [1, 3, 4] {
            assert!(gone[0].upgrade().is_some(), "it was asked for last");
            keep(number).unwrap();
        }
        assert!(gone[0].upgrade().is_none(), "it does not run any more");
    }

    #[test]
    fn who_has_most_that_nobody_runs_makes_room() {
        let one = program(0).code.bytes;
        let (shelf, greedy, modest) = (Shelf::of(4 * one), Subject::new("greedy"), Subject::new("modest"));
        let modests = Arc::downgrade(&shelf.keep(program(0), &modest).unwrap().code);
        for number in 1..20 {
            shelf.keep(program(number), &greedy).unwrap();
        }
        assert!(modests.upgrade().is_some(), "though it was asked for longest ago");
    }

    #[test]
    fn one_subject_runs_its_share_and_all_what_there_is() {
        let one = program(0).code.bytes;
        let (shelf, greedy, modest) = (Shelf::of(4 * one), Subject::new("greedy"), Subject::new("modest"));
        let mut run: Vec<_> = (0..2).map(|number| shelf.keep(program(number), &greedy).unwrap()).collect();
        assert_eq!(shelf.keep(program(2), &greedy).err(), Some(Rejected::CodeShareFull));
        assert!(shelf.find(&run[0].hash, &greedy).is_ok(), "it runs already");
        run.extend((2..4).map(|number| shelf.keep(program(number), &modest).unwrap()));
        let other = Subject::new("other");
        assert_eq!(shelf.has_room(&other, one), Err(Rejected::CodeFull));
        assert_eq!(shelf.keep(program(4), &other).err(), Some(Rejected::CodeFull));
        run.clear();
        let idle = shelf.keep(program(4), &other).unwrap().hash;
        let _run: Vec<_> = (0..2).map(|number| shelf.keep(program(number), &greedy).unwrap()).collect();
        assert_eq!(shelf.find(&idle, &greedy).err(), Some(Rejected::CodeShareFull), "nor one that is here");
        assert!(shelf.find(&idle, &modest).unwrap().is_some());
    }

    /// The story: it counted for who had begun to run it, though only others did since.
    #[test]
    fn a_program_counts_for_those_who_run_it() {
        let one = program(0).code.bytes;
        let (shelf, first, second) = (Shelf::of(4 * one), Subject::new("first"), Subject::new("second"));
        let firsts: Vec<_> = (0..2).map(|number| shelf.keep(program(number), &first).unwrap()).collect();
        let seconds = [0, 1].map(|number| shelf.find(&firsts[number].hash, &second).unwrap().unwrap());
        assert!(Arc::ptr_eq(&firsts[0].code, &seconds[0].code), "one code for both");
        assert_eq!(shelf.has_room(&second, one), Err(Rejected::CodeShareFull), "those of others count too");
        drop(firsts);
        let run: Vec<_> = (2..4).map(|number| shelf.keep(program(number), &first).unwrap()).collect();
        assert_eq!(shelf.has_room(&first, one), Err(Rejected::CodeShareFull));
        assert!(
            shelf.find(&run[0].hash, &Subject::new("third")).is_ok(),
            "there is room for what runs already"
        );
        drop(seconds);
        assert_eq!(
            (shelf.has_room(&second, one), shelf.has_room(&first, one)),
            (Ok(()), Err(Rejected::CodeShareFull))
        );
    }
}
