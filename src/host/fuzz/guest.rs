//! One guest as the test plays it: what it holds, its calls, and how it is ended.
//!
//! Owns: the calls of one instance through a real memory, each with an eye on what the engine says of the instance
//! meanwhile, as the runtime has. Never: which calls are made.

use crate::engine::operation::{Command, Leave, Notice};
use crate::host::Trap;
use crate::host::bed::{Bed, House, RESULT, number};
use crate::identity::{InstanceId, Subject};
use smol::future::FutureExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wasmi::Val;

pub const COMMON: &str = "inferlet:core/common";
pub const FORWARD: &str = "inferlet:core/forward";
pub const POLL: &str = "wasi:io/poll@0.2.4";

/// Beyond what anything takes on a loaded machine: then it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why a guest goes no further.
#[derive(Debug)]
pub enum End {
    /// A call of its own ended it.
    Trap(Trap),
    /// The engine gave it up.
    Notice(Notice),
}

impl From<Trap> for End {
    fn from(trap: Trap) -> End {
        End::Trap(trap)
    }
}

/// Notices about others than the guest that waited.
pub type Others = Arc<Mutex<Vec<Notice>>>;

/// A core value of a call that is replaced by another: a handle, a pointer, a length, a discriminant.
#[derive(Clone, Debug)]
pub struct Wild {
    pub function: &'static str,
    /// Which value of the call; past the last it is the result's pointer.
    pub at: usize,
    pub value: u32,
}

pub struct Guest {
    pub bed: Bed,
    pub instance: InstanceId,
    pub queue: u32,
    /// Pages that it holds, and names that it gave back.
    pub pages: Vec<u32>,
    pub freed: Vec<u32>,
    /// Embeddings that it holds, and whether something is in them.
    pub embeds: Vec<(u32, bool)>,
    /// What goes wrong in the calls to come.
    pub wild: Vec<Wild>,
    others: Others,
    left: bool,
}

impl Guest {
    pub fn new(house: &House, subject: &Subject, seed: u64, others: &Others) -> Guest {
        let mut bed = Bed::seeded(house, subject, seed);
        let instance = bed.cx().instance;
        let mut guest = Guest {
            bed,
            instance,
            queue: 0,
            pages: Vec::new(),
            freed: Vec::new(),
            embeds: Vec::new(),
            wild: Vec::new(),
            others: others.clone(),
            left: false,
        };
        guest.queue = guest.new_queue().expect("a queue");
        guest
    }

    /// Calls to the end, or until the engine gives this instance up.
    pub fn call(&mut self, place: &str, name: &str, arguments: &[&[Val]]) -> Result<u64, End> {
        let (mut values, mut result) = (arguments.concat(), RESULT);
        for wild in self.wild.iter().filter(|wild| wild.function == name) {
            match values.get_mut(wild.at) {
                Some(value) => *value = Val::I32(wild.value as i32),
                None => result = wild.value,
            }
        }
        if let Some(notice) = self.told() {
            return Err(End::Notice(notice));
        }
        let notices = self.bed.house.notices.clone();
        let (instance, others) = (self.instance, self.others.clone());
        let ending = async move {
            loop {
                match notices.recv().await {
                    Ok(notice) if notice.instance() == instance => return Err(End::Notice(notice)),
                    Ok(notice) => others.lock().expect("unpoisoned").push(notice),
                    Err(_) => smol::future::pending().await,
                }
            }
        };
        self.bed.call_waiting(place, name, values, result, |pending| {
            // Not smol's own: that would look after timers and sockets at every call.
            smol::future::block_on(async { pending.await.map_err(End::Trap) }.or(ending))
        })
    }

    /// The engine's word that it has given this instance up.
    pub fn given_up(&mut self) -> Notice {
        let since = std::time::Instant::now();
        loop {
            if let Some(notice) = self.told() {
                return notice;
            }
            assert!(since.elapsed() < PATIENCE, "the engine lets it live");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// What the engine has said of this instance by now, to whomever.
    fn told(&self) -> Option<Notice> {
        let mut others = self.others.lock().expect("unpoisoned");
        others.extend(std::iter::from_fn(|| self.bed.house.notices.try_recv().ok()));
        let at = others.iter().position(|notice| notice.instance() == self.instance)?;
        Some(others.swap_remove(at))
    }

    pub fn new_queue(&mut self) -> Result<u32, End> {
        let name = self.bed.text("toy");
        let at = self.call("inferlet:core/runtime", "get-model", &[&name])?;
        let model = number(self.bed.u32_at(at + 4).into());
        let queue = self.call(COMMON, "[method]model.create-queue", &[&model])?;
        self.bed.drop_handle(COMMON, "model", model[0].i32().expect("a handle") as u32)?;
        Ok(queue as u32)
    }

    pub fn allocate(&mut self, kind: u64, count: u32) -> Result<Vec<u32>, End> {
        let queue = number(self.queue.into());
        let at = self.call(COMMON, "allocate-resources", &[&queue, &number(kind), &number(count.into())])?;
        Ok(self.note(kind, at))
    }

    /// Notes the names that a call answered.
    pub fn note(&mut self, kind: u64, at: u64) -> Vec<u32> {
        let names = self.bed.list_at(at);
        match kind {
            0 => self.pages.extend(&names),
            _ => self.embeds.extend(names.iter().map(|&name| (name, false))),
        }
        names
    }

    pub fn deallocate(&mut self, kind: u64, names: &[u32]) -> Result<(), End> {
        let (queue, list) = (number(self.queue.into()), self.bed.list(names));
        self.call(COMMON, "deallocate-resources", &[&queue, &number(kind), &list])?;
        match kind {
            0 => {
                self.pages.retain(|page| !names.contains(page));
                self.freed.extend(names);
            }
            _ => self.embeds.retain(|(embed, _)| !names.contains(embed)),
        }
        Ok(())
    }

    /// Exports, imports or releases under a name.
    pub fn export(&mut self, kind: u64, names: &[u32], name: &[u8]) -> Result<(), End> {
        let (queue, list, name) = (number(self.queue.into()), self.bed.list(names), self.bed.bytes(name));
        self.call(COMMON, "export-resources", &[&queue, &number(kind), &list, &name]).map(drop)
    }

    /// Pages are noted; of embeddings nobody knows whether something is in them.
    pub fn import(&mut self, kind: u64, name: &str) -> Result<(), End> {
        let (queue, name) = (number(self.queue.into()), self.bed.text(name));
        let at = self.call(COMMON, "import-resources", &[&queue, &number(kind), &name])?;
        if kind == 0 {
            self.note(kind, at);
        }
        Ok(())
    }

    pub fn release(&mut self, kind: u64, name: &str) -> Result<(), End> {
        let (queue, name) = (number(self.queue.into()), self.bed.text(name));
        self.call(COMMON, "release-exported-resources", &[&queue, &number(kind), &name]).map(drop)
    }

    /// What is exported in its subject's scope.
    pub fn exports(&mut self, kind: u64) -> Result<Vec<String>, End> {
        let queue = number(self.queue.into());
        let at = self.call(COMMON, "get-all-exported-resources", &[&queue, &number(kind)])?;
        let (entries, count) = (u64::from(self.bed.u32_at(at)), u64::from(self.bed.u32_at(at + 4)));
        Ok((0..count).map(|i| self.bed.text_at(entries + 12 * i)).collect())
    }

    /// It ends, as the runtime ends it.
    pub fn leave(&mut self, how: Leave) {
        self.left = true;
        let leave = Command::Leave { instance: self.instance, how };
        smol::block_on(self.bed.house.engine.send(leave)).expect("the engine lives");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.left && !std::thread::panicking() {
            self.leave(Leave::Killed);
        }
    }
}
