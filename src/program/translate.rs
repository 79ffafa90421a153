//! The interpreter and its settings; core modules translated for it.
//!
//! Owns: the one wasmi engine of the process. Never: fuel amounts or memory quotas; those belong to an instance.

use super::plan::{Plan, Step};
use super::rejected::Rejected;
use crate::limits;
use smol::lock::Semaphore;
use std::collections::HashMap;
use std::sync::LazyLock;
use wasmi::{CompilationMode, Config, CustomFuelCosts, Engine, Module, OperatorCost};

/// A component ready to be instantiated any number of times.
pub struct Code {
    pub plan: Plan,
    /// As in [`Plan::modules`].
    pub modules: Vec<Module>,
}

/// Reads a component and makes [`Code::of`] it.
pub type Translation = Box<dyn FnOnce() -> Result<Code, Rejected> + Send>;

impl Code {
    /// Runs `translation` off the caller's thread and a few at a time: uploads must not take all the cores. One that is
    /// begun goes on when nobody waits for it any more, and keeps its place until it is over.
    pub async fn translate(translation: Translation) -> Result<Code, Rejected> {
        static PLACES: Semaphore = Semaphore::new(limits::TRANSLATIONS);
        let place = PLACES.acquire().await;
        smol::unblock(move || {
            let _place = place;
            translation()
        })
        .await
    }

    /// Validates and translates. Takes milliseconds per megabyte: not for the io thread.
    pub fn of(component: &[u8]) -> Result<Code, Rejected> {
        let mut plan = super::component::read(component)?;
        let modules = plan.modules.iter().map(|range| {
            let bytes = component.get(range.clone()).unwrap_or_default();
            Module::new(interpreter(), bytes).map_err(|error| Rejected::Untranslatable(error.to_string()))
        });
        let modules: Vec<Module> = modules.collect::<Result<_, _>>()?;
        for step in &mut plan.steps {
            if let Some(module) = modules.get(step.module) {
                arrange(step, module);
            }
        }
        Ok(Code { plan, modules })
    }
}

/// wasmi takes a module's imports by kind, not as the module has them.
fn arrange(step: &mut Step, module: &Module) {
    let places: HashMap<(&str, &str), usize> = module
        .imports()
        .enumerate()
        .map(|(place, import)| ((import.module(), import.name()), place))
        .collect();
    step.imports.sort_by_key(|import| places.get(&(import.name.0.as_str(), import.name.1.as_str())).copied());
}

/// The wasmi engine that all programs share.
pub fn interpreter() -> &'static Engine {
    static INTERPRETER: LazyLock<Engine> = LazyLock::new(|| Engine::new(&config()));
    &INTERPRETER
}

pub(super) fn config() -> Config {
    let mut config = Config::default();
    config
        .consume_fuel(true)
        // Translation is free: running dry while a function is translated at its first call would lose the
        // call, and what an instance pays must not depend on who called first. The size of programs is bounded
        // instead.
        .fuel_cost(CustomFuelCosts {
            bytes_copied_per_fuel: 64,
            fuel_per_bytes_translated: 0,
            fuel_per_bytes_validated: 0,
        })
        // The dearest there are, and the two whose code keeps a frame on the native stack until the slice ends:
        // at this price a slice has some hundreds of them.
        .operator_cost(OperatorCost { memory_grow: u8::MAX, table_grow: u8::MAX, ..OperatorCost::default() })
        // Validated at upload by `component.rs`; translated at a function's first call: a stock program uses a
        // tenth of its functions, and keeps a third of the memory this way. The interpreter validates once more
        // what it translates, which is little.
        .compilation_mode(CompilationMode::Lazy)
        .set_max_recursion_depth(limits::CALL_DEPTH)
        .set_max_stack_height(limits::VALUE_STACK_BYTES)
        .ignore_custom_sections(true)
        .wasm_multi_memory(false);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::component::tests::MINIMAL;
    use smol::channel::bounded;
    use smol::future::{or, poll_once};
    use std::time::Duration;

    /// A client that leaves, or ends its instance, while its program is translated: the work goes on, and counts.
    #[test]
    fn an_abandoned_translation_keeps_its_place_until_it_is_over() {
        let (begun, begins) = bounded(limits::TRANSLATIONS + 1);
        let (over, ends) = bounded::<()>(1);
        let held_up = || {
            let (begun, ends) = (begun.clone(), ends.clone());
            Code::translate(Box::new(move || {
                begun.send_blocking(()).expect("the test listens");
                let _closed = ends.recv_blocking();
                Code::of(&wat::parse_str(MINIMAL).expect("a component"))
            }))
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
