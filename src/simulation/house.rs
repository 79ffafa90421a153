//! What stands behind the simulated door: the real runtime, over guests that are scripted.
//!
//! Owns: the programs that are there, and the record of what connections have done. Never: a decision; all are the runtime's
//! and the engine's.

use super::guest::{Guest, Play};
use super::ledger::{Expect, Ledger};
use super::lock;
use super::tasks::Spawner;
use crate::auth::Grant;
use crate::clock;
use crate::engine;
use crate::engine::simulation::fake::mix;
use crate::identity::{InstanceId, ProgramHash, Subject};
use crate::pacer::Pacer;
use crate::program::Program;
use crate::runtime::{Ending, Launch, Runtime, events};
use crate::server::{House, Ready, house};
use crate::wire::upload::Upload;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What every client launches; there from the start.
pub const PROGRAM: &[u8] = b"program";
/// Writing a program takes a while, and so does translating it for a launch, if it is not in memory.
const DISK: Duration = Duration::from_millis(20);

pub struct Scripted {
    pub seed: u64,
    pub runtime: Runtime,
    pub engine: engine::Handle,
    pub spawner: Spawner,
    pub ledger: Arc<Mutex<Ledger>>,
    pub launched: Mutex<u64>,
}

impl House for Scripted {
    fn contains(&self, program: &ProgramHash) -> bool {
        *program == ProgramHash::of(PROGRAM)
    }

    async fn put(&self, program: Upload) -> Result<ProgramHash, String> {
        clock::after(DISK).await;
        match program.bytes.starts_with(b"bad") {
            true => Err("this is no component".to_owned()),
            false => Ok(ProgramHash::of(&program.bytes)),
        }
    }

    async fn prepare(
        &self,
        program: &ProgramHash,
        arguments: Vec<String>,
        grant: &Grant,
        events: events::Sender,
    ) -> Result<Ready, String> {
        let play = Play::read(&arguments);
        let number = {
            let mut launched = lock(&self.launched);
            *launched += 1;
            *launched
        };
        if mix(self.seed, number).is_multiple_of(4) {
            clock::after(DISK).await;
        }
        // In no order, as real ones are.
        let id = InstanceId::from_bits(u128::from(mix(self.seed, number)) << 32);
        let program = Program::named(*program);
        let quotas = self.runtime.quotas().lowered(&grant.quotas);
        let launch = Launch {
            program,
            arguments,
            subject: grant.subject.clone(),
            quotas,
            http: Default::default(),
            events,
        };
        let prepared = self.runtime.prepare_as(id, launch).map_err(|refusal| refusal.to_string())?;
        let entry = self.runtime.directory().find(id).expect("it has just entered");
        lock(&self.ledger).launched(play.client, &entry, play.talks());
        let (engine, ledger) = (self.engine.clone(), self.ledger.clone());
        let spawner = self.spawner.clone();
        let start = move || {
            let life = prepared.scripted({
                let ledger = ledger.clone();
                move |entry, launch| Guest::new(play, entry, launch, engine, ledger).act()
            });
            lock(&ledger).started(id);
            spawner.spawn(format!("guest {id}"), async move {
                life.await;
                lock(&ledger).life_is_over(id);
            });
        };
        Ok(Ready { instance: id, start: Box::new(start) })
    }

    fn pacer(&self, _subject: &Subject) -> Pacer {
        Pacer::default()
    }

    fn signal(&self, instance: InstanceId, message: String) {
        self.runtime.signal(instance, message);
    }

    fn give_blob(&self, instance: InstanceId, blob: Arc<[u8]>) {
        self.runtime.give_blob(instance, blob);
    }

    fn end(&self, instance: InstanceId, ending: Ending) {
        lock(&self.ledger).asked(instance, ending.clone());
        self.runtime.end(instance, ending);
    }

    async fn status(&self) -> BTreeMap<String, String> {
        house::status(&self.engine, &self.runtime, "m").await
    }
}

/// The question whether a program is here, and its answer.
pub fn exists(corr_id: u32, program: &[u8]) -> (String, Expect) {
    let here = program == PROGRAM;
    (ProgramHash::of(program).to_string(), Expect::Exactly(corr_id, Ok(here.to_string())))
}
