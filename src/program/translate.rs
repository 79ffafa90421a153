//! The interpreter and its settings; core modules translated for it.
//!
//! Owns: the interpreter's settings, and [`Code`]. Never: fuel amounts or memory quotas; those belong to an instance.

use super::Program;
use super::plan::{Import, Plan, Step};
use super::rejected::Rejected;
use crate::identity::Subject;
use crate::limits;
use crate::places::Awaited;
use smol::lock::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use wasmi::{CompilationMode, Config, CustomFuelCosts, Engine, Module, OperatorCost};

/// A component ready to be instantiated any number of times.
pub struct Code {
    pub plan: Plan,
    /// As in [`Plan::modules`].
    pub modules: Vec<Module>,
    /// The program's own: an engine keeps what was translated for it until its end.
    pub engine: Engine,
    /// What it counts for, [`Code::bytes_of`] at least.
    pub bytes: usize,
}

/// Takes long; see [`Code::of`].
pub(super) type Work = Box<dyn FnOnce() -> Result<Arc<Program>, Rejected> + Send>;

/// Reads a component and makes a program of it.
pub struct Translation {
    work: Work,
    /// Held meanwhile; for what is done once, whoever else asks for it.
    alone: Arc<Mutex<()>>,
}

impl Translation {
    pub fn new(work: impl FnOnce() -> Result<Arc<Program>, Rejected> + Send + 'static) -> Translation {
        Translation { work: Box::new(work), alone: Arc::default() }
    }

    /// One at a time of those that hold this. Whoever waits for it waits beside those that translate, and takes no place.
    pub(super) fn alone(self, alone: Arc<Mutex<()>>) -> Translation {
        Translation { alone, ..self }
    }

    /// The same within something else.
    pub fn within(
        self,
        outer: impl FnOnce(Work) -> Result<Arc<Program>, Rejected> + Send + 'static,
    ) -> Translation {
        let Translation { work, alone } = self;
        Translation { work: Box::new(move || outer(work)), alone }
    }
}

impl Code {
    /// Runs a subject's `translation` off the caller's thread and a few at a time: uploads must not take all the cores. One that
    /// is begun goes on when nobody waits for it any more, and keeps its place until it is over.
    pub async fn translate(subject: &Subject, translation: Translation) -> Result<Arc<Program>, Rejected> {
        static PLACES: LazyLock<Awaited> =
            LazyLock::new(|| Awaited::new(limits::TRANSLATIONS, limits::TRANSLATIONS_PER_SUBJECT));
        // Nobody waits for a place with the program's lock in hand, or for the lock with a place: each is another's meanwhile.
        let held = loop {
            let place = PLACES.take(subject).await;
            if let Some(alone) = translation.alone.try_lock_arc() {
                break (alone, place);
            }
            drop(place);
            drop(translation.alone.lock_arc().await);
        };
        smol::unblock(move || {
            let _held = held;
            (translation.work)()
        })
        .await
    }

    /// Validates and translates, all of it. Takes tens of milliseconds per megabyte: not for the io thread.
    pub fn of(component: &[u8]) -> Result<Code, Rejected> {
        let mut plan = super::component::read(component)?;
        let engine = Engine::new(&config());
        let modules = plan.modules.iter().map(|range| {
            let bytes = component.get(range.clone()).unwrap_or_default();
            Module::new(&engine, bytes).map_err(|error| Rejected::Untranslatable(error.to_string()))
        });
        let modules: Vec<Module> = modules.collect::<Result<_, _>>()?;
        for step in &mut plan.steps {
            if let Some(module) = modules.get(step.module) {
                arrange(step, module);
            }
        }
        let bytes = Code::bytes_of(component.len()) + plan.bytes_beside;
        Ok(Code { plan, modules, engine, bytes })
    }

    /// What a component of so many bytes counts for in memory.
    pub fn bytes_of(component: usize) -> usize {
        component * limits::PROGRAM_CODE_BYTES_PER_BYTE + limits::VALUE_STACK_BYTES
    }

    #[cfg(test)]
    pub(super) fn none() -> Code {
        let plan = Plan { modules: vec![], bytes_beside: 0, steps: vec![], run: None, handle: None };
        Code { plan, modules: vec![], engine: Engine::new(&config()), bytes: 0 }
    }
}

/// wasmi takes a module's imports by kind, not as the module has them.
fn arrange(step: &mut Step, module: &Module) {
    let mut imports: HashMap<(String, String), Import> =
        step.imports.drain(..).map(|import| (import.name.clone(), import)).collect();
    let its = module.imports();
    step.imports.extend(
        its.filter_map(|import| imports.remove(&(import.module().to_owned(), import.name().to_owned()))),
    );
}

pub(super) fn config() -> Config {
    let mut config = Config::default();
    config
        .consume_fuel(true)
        // Nothing is translated while a guest runs; see the mode below.
        .fuel_cost(CustomFuelCosts {
            bytes_copied_per_fuel: 64,
            fuel_per_bytes_translated: 0,
            fuel_per_bytes_validated: 0,
        })
        // The dearest there are, and the two whose code keeps a frame on the native stack until the slice ends:
        // at this price a slice has some hundreds of them.
        .operator_cost(OperatorCost { memory_grow: u8::MAX, table_grow: u8::MAX, ..OperatorCost::default() })
        // Before anybody runs it, on a thread for which nobody waits but who brings or launches it. A function translated
        // at its first call is translated within a slice, which nothing can interrupt, and a few fuel call them all: a
        // program of 16 MiB held a worker for half a second. That could not be charged either: a call that lacks the
        // fuel for it is lost, and what an instance pays must not depend on who called first. It takes a stock program
        // 30 ms more each time that it comes into memory, and three times as much of that.
        .compilation_mode(CompilationMode::Eager)
        // One for the calls of the allocator while a guest waits. What ran has a stack of its own.
        .set_max_cached_stacks(1)
        .set_max_recursion_depth(limits::CALL_DEPTH)
        .set_max_stack_height(limits::VALUE_STACK_BYTES)
        .ignore_custom_sections(true)
        .wasm_multi_memory(false);
    config
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock;
    use crate::program::component::tests::MINIMAL;
    use smol::channel::bounded;
    use smol::future::{or, poll_once};
    use std::time::Duration;
    use wasmi::{Instance, Store};

    /// The story: functions were translated at their first calls, so a few fuel held a worker for as long as that took.
    #[test]
    fn a_call_translates_nothing() {
        let long = "(local.set 0 (i32.add (local.get 0) (i32.const 1))) ".repeat(15_000);
        let long = format!("(func (param i32) (if (local.get 0) (then {long})))");
        let calls: String = (0..8).map(|index| format!("(call {index} (i32.const 0)) ")).collect();
        let all = format!("(core module $main {} (func (export \"all\") {calls})", long.repeat(8));
        let component = wat::parse_str(MINIMAL.replace("(core module $main", &all)).expect("a component");
        let since = clock::computed();
        let code = Code::of(&component).expect("a sound one");
        let translated = clock::computed() - since;
        let mut store = Store::new(&code.engine, ());
        store.set_fuel(1000).expect("fuel is counted");
        let instance = Instance::new(&mut store, &code.modules[0], &[]).expect("it has no imports");
        let all = instance.get_typed_func::<(), ()>(&store, "all").expect("its export");
        let since = clock::computed();
        all.call(&mut store, ()).expect("with this fuel");
        let called = clock::computed() - since;
        assert!(called * 20 < translated, "{called:?} to call what it took {translated:?} to translate");
    }

    /// Held by a test that needs all places, which the whole process shares.
    pub static PLACES_TAKEN: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// A client that leaves, or ends its instance, while its program is translated: the work goes on, and counts.
    #[test]
    fn an_abandoned_translation_keeps_its_place_until_it_is_over() {
        let _taken = PLACES_TAKEN.lock();
        let nobody = Subject::everyone();
        let (begun, begins) = bounded(limits::TRANSLATIONS + 1);
        let (over, ends) = bounded::<()>(1);
        let held_up = || {
            let (begun, ends) = (begun.clone(), ends.clone());
            Code::translate(
                &nobody,
                Translation::new(move || {
                    begun.send_blocking(()).expect("the test listens");
                    let _closed = ends.recv_blocking();
                    Program::of(&wat::parse_str(MINIMAL).expect("a component"))
                }),
            )
        };
        smol::block_on(async {
            for _ in 0..limits::TRANSLATIONS {
                let mut abandoned = Box::pin(held_up());
                let began = async { begins.recv().await.expect("it begins") };
                or(async { drop((&mut abandoned).await) }, began).await;
            }
            let mut next = Box::pin(held_up());
            assert!(poll_once(&mut next).await.is_none());
            smol::Timer::after(Duration::from_millis(50)).await; // for one that must not begin to do so
            assert!(begins.try_recv().is_err(), "more than {} at a time", limits::TRANSLATIONS);
            over.close();
            assert!(next.await.is_ok());
        });
    }
}
