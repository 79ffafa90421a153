//! One guest, from launch to its last event.
//!
//! Owns: the order of a life: join the engine, build the instance by its program's plan, run, end, leave, tell. Never:
//! fuel and waiting (`slice.rs`), threads (`worker.rs`), what calls do (`host`).
//!
//! Whatever ends a guest first counts: itself, somebody's decision, the clock, a panic of ours. Then its store is
//! dropped, the engine told, and only then the client, exactly once. Only where the guest is in the middle of a long
//! instruction when somebody decides, that comes last: the engine and the client are told, and the guest, which cannot
//! say a word meanwhile, is dropped when the instruction is over.

use super::directory::Entry;
use super::quota::{Allowance, Name, Quotas};
use super::slice::Guest;
use super::table::Table;
use super::worker::{Slice, Starting};
use super::{Ending, Errand, InstanceEvent, Launch, Runtime, Traffic, What};
use crate::clock;
use crate::engine::Gone;
use crate::engine::credit::Credits;
use crate::engine::operation::{Command, Leave, PageQuotas};
use crate::host::abi::{Canon, Source};
use crate::host::wasi::http::{IncomingRequest, ResponseOutparam};
use crate::host::wasi::{cli::Log, random::Insecure};
use crate::host::{Cx, Trap, common, held};
use crate::limits;
use crate::program::plan::Item;

use crate::program::{self, Code};
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use crate::transfer::Call;
use smol::future::{FutureExt, or};
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use wasmi::{AsContextMut, Extern, Func, Instance, Memory, Store, Val};

/// The whole life of an instance, as a future for a worker; `run` is what its program does, to the program's own end.
pub(super) async fn live(
    runtime: &Runtime,
    entry: &Entry,
    quotas: &Quotas,
    run: impl Future<Output = Ending>,
) {
    let ending = {
        let decided = async { entry.end.wait().await.clone() };
        let late = async {
            clock::after(Duration::from_secs(quotas.get(Name::WallClock))).await;
            Ending::quota(quotas.over(Name::WallClock))
        };
        let run = AssertUnwindSafe(run).catch_unwind();
        let run = async { run.await.unwrap_or(Ending::trapped(Trap::Panicked)) };
        // First whoever can end it, so that a guest that never waits is ended at its next slice.
        or(or(decided, late), run).await
    };
    if entry.seat.is_told() {
        entry.told.wait().await;
        return;
    }
    #[cfg(test)]
    if planted(Bug::ToldTooEarly) {
        let _ = entry
            .events
            .send(InstanceEvent { instance: entry.instance, what: What::Ended(ending.clone()) })
            .await;
        smol::future::yield_now().await;
    }
    // The guest's store is gone.
    tell(runtime, entry, ending).await;
}

/// Tells the engine and the client of the instance's end.
pub(super) async fn tell(runtime: &Runtime, entry: &Entry, ending: Ending) {
    // What it has queued and holds in the engine goes.
    let how = match ending {
        Ending::Completed(_) => Leave::Completed,
        _ => Leave::Killed,
    };
    // An engine that is gone has nothing to forget.
    let _ = runtime.parts.engine.send(Command::Leave { instance: entry.instance, how }).await;
    match &ending {
        // What exactly went wrong, a panic for instance, stands in the lines before.
        Ending::ServerError(text) => tracing::error!(target: "runtime", instance = %entry.instance, "{text}"),
        _ => tracing::info!(target: "runtime", instance = %entry.instance, code = ending.code(), "ended"),
    }
    runtime.directory.end(entry.instance);
    #[cfg(test)]
    if planted(Bug::EndNotAwaited) || planted(Bug::ToldTooEarly) {
        let _ = entry.events.try_send(InstanceEvent { instance: entry.instance, what: What::Ended(ending) });
        return;
    }
    // A client that is gone wants no event.
    let _ = entry.events.send(InstanceEvent { instance: entry.instance, what: What::Ended(ending) }).await;
}

/// From the program to its own end.
pub(super) async fn run(
    runtime: &Runtime,
    entry: &Entry,
    launch: Launch,
    errand: Errand,
    (slice, starting): (Slice, Starting),
) -> Ending {
    let program = launch.program.clone();
    let code = &program.code;
    let seed = match join(runtime, entry, &launch.quotas).await {
        Ok(seed) => seed,
        Err(gone) => return Ending::ServerError(gone.to_string()),
    };
    let mut cx = context(runtime, entry, launch, seed);
    let crowded = starting.in_a_crowd();
    if crowded {
        cx.apart = Some(slice.heavy().await);
    }
    let end = slice.clone();
    let start = match &errand {
        Errand::Run => &code.plan.run,
        Errand::Answer(_) => &code.plan.handle,
    };
    let mut built = match start {
        Some(start) => Built::new(code, start, cx, slice),
        None => Err(missing("entry")), // whoever launches has asked for its kinds
    };
    if crowded {
        if let Ok(built) = &mut built {
            built.guest.store.data_mut().apart = None; // it is made, and this is a pause
        }
        // What it calls, and its end, take locks that others wait for.
        end.last().await;
    }
    let mut guest = match built {
        Ok(guest) => guest,
        Err(trap) => return Ending::not_instantiated(trap),
    };
    drop(starting);
    let outcome = match errand {
        Errand::Run => guest.run().await,
        Errand::Answer(call) => guest.answer(*call).await.map(Ok),
    };
    end.leave().await; // Thousands of handles take a while to drop.
    match outcome {
        Ok(Ok(())) | Err(Trap::Exit { ok: true }) => Ending::Completed(guest.returned()),
        Ok(Err(text)) => Ending::failed(&text),
        Err(trap) => Ending::trapped(trap),
    }
}

/// Makes the instance known to the engine. Answers its seed.
pub(super) async fn join(runtime: &Runtime, entry: &Entry, quotas: &Quotas) -> Result<u64, Gone> {
    let seed = match runtime.parts.seed {
        Some(seed) => seed,
        // Without the system's random numbers the id, random too, still tells instances apart.
        None => getrandom::u64().unwrap_or_default(),
    };
    tracing::info!(target: "runtime", instance = %entry.instance, program = %entry.program, seed, "launched");
    let (instance, subject) = (entry.instance, entry.subject.clone());
    let join = Command::Join { instance, subject, pages: PageQuotas::of(quotas), seed };
    runtime.parts.engine.send(join).await?;
    Ok(seed)
}

pub(super) fn context(runtime: &Runtime, entry: &Entry, launch: Launch, seed: u64) -> Cx {
    let parts = &runtime.parts;
    let held = held::Meter::new(&launch.quotas, entry.account.memory(&launch.quotas));
    Cx {
        instance: entry.instance,
        line: parts.outgoing.line(
            entry.instance,
            launch.subject.clone(),
            &launch.http,
            parts.workers.pacer(&launch.subject, Traffic::Own),
        ),
        subject: launch.subject,
        arguments: launch.arguments,
        seed,
        returned: String::new(),
        table: Table::new(&launch.quotas, &held),
        queues: common::Queues::default(),
        names: common::Names::default(),
        held,
        model: parts.model.clone(),
        engine: parts.engine.clone(),
        aside: parts.workers.aside().clone(),
        credits: Credits::new(&launch.quotas, entry.account.operations.clone()),
        exchange: parts.exchange.clone(),
        mailbox: entry.mailbox.clone(),
        events: launch.events,
        directory: runtime.directory.clone(),
        servers: runtime.servers.clone(),
        insecure: Insecure::seeded(seed),
        log: Log::new(entry.instance, &launch.quotas, entry.account.clone()),
        allowance: Allowance::new(launch.quotas, entry.account.clone()),
        pending: None,
        may_leave: true,
        apart: None,
        owed_fuel: 0,
    }
}

pub(super) fn store(code: &Code, cx: Cx) -> Store<Cx> {
    let mut store = Store::new(&code.engine, cx);
    store.limiter(|cx| &mut cx.allowance);
    store
}

/// A guest with all its core modules instantiated.
pub(super) struct Built {
    guest: Guest,
    start: Func,
    post_return: Option<Func>,
    memory: Option<Memory>,
}

impl Built {
    /// Follows the program's plan.
    pub(super) fn new(
        code: &Code,
        start: &program::plan::Entry,
        cx: Cx,
        slice: Slice,
    ) -> Result<Built, Trap> {
        Built::in_guest(code, start, Guest::new(store(code, cx), slice))
    }

    pub(super) fn in_guest(
        code: &Code,
        start: &program::plan::Entry,
        mut guest: Guest,
    ) -> Result<Built, Trap> {
        let mut instances: Vec<Instance> = Vec::with_capacity(code.plan.steps.len());
        for step in &code.plan.steps {
            let module = code.modules.get(step.module).ok_or_else(|| missing("module"))?;
            let imports =
                step.imports.iter().map(|import| resolve(&mut guest.store, &instances, &import.item));
            let imports = imports.collect::<Result<Vec<Extern>, Trap>>()?;
            guest.grant(limits::START_FUEL)?;
            let instance = Instance::new(&mut guest.store, module, &imports);
            instances.push(instance.map_err(|error| Trap::of(error, guest.store.data_mut()))?);
        }
        let run = function(&mut guest.store, &instances, &start.function)?;
        let post_return = start.post_return.as_ref().map(|item| function(&mut guest.store, &instances, item));
        let memory = start.memory.as_ref().map(|item| memory(&mut guest.store, &instances, item));
        Ok(Built { start: run, post_return: post_return.transpose()?, memory: memory.transpose()?, guest })
    }

    /// Calls `run` and lifts what it returns.
    pub(super) async fn run(&mut self) -> Result<Result<(), String>, Trap> {
        let mut place = [Val::I32(0)];
        self.guest.call(self.start, &[], &mut place).await?;
        let [Val::I32(pointer)] = place else { return Err(missing("result")) };
        let outcome = {
            let mut ctx = self.guest.store.as_context_mut();
            Source::new(&mut ctx, self.memory).load_at::<Result<(), String>>(pointer as u32)?
        };
        if let Some(post_return) = self.post_return {
            self.guest.store.data_mut().may_leave = false;
            self.guest.call(post_return, &place, &mut []).await?;
            self.guest.store.data_mut().may_leave = true;
        }
        Ok(outcome)
    }

    /// Calls `handle`.
    pub(super) async fn answer(&mut self, call: Call) -> Result<(), Trap> {
        let cx = self.guest.store.data_mut();
        let request = IncomingRequest::new(&cx.held, call.request)?;
        let (request, answer) = (cx.table.insert(request)?, cx.table.insert(ResponseOutparam(call.answer))?);
        let handles = [Val::I32(request as i32), Val::I32(answer as i32)];
        self.guest.call(self.start, &handles, &mut []).await?;
        match self.post_return {
            Some(post_return) => {
                self.guest.store.data_mut().may_leave = false;
                self.guest.call(post_return, &[], &mut []).await
            }
            None => Ok(()),
        }
    }

    /// What the guest gave to `set-return`.
    pub(super) fn returned(&mut self) -> String {
        std::mem::take(&mut self.guest.store.data_mut().returned)
    }
}

/// An item of the plan, in this store.
fn resolve(store: &mut Store<Cx>, instances: &[Instance], item: &Item) -> Result<Extern, Trap> {
    match item {
        Item::Export { instance, name } => {
            let instance = instances.get(*instance).ok_or_else(|| missing(name))?;
            instance.get_export(&*store, name).ok_or_else(|| missing(name))
        }
        Item::Lowered(lowered) => {
            let memory = lowered.memory.as_ref().map(|item| memory(store, instances, item)).transpose()?;
            let realloc =
                lowered.realloc.as_ref().map(|item| function(store, instances, item)).transpose()?;
            Ok(lowered.function.link(store, Canon { memory, realloc }).into())
        }
        Item::Drop(resource) => Ok(resource.link(store).into()),
    }
}

fn function(store: &mut Store<Cx>, instances: &[Instance], item: &Item) -> Result<Func, Trap> {
    resolve(store, instances, item)?.into_func().ok_or_else(|| missing("function"))
}

fn memory(store: &mut Store<Cx>, instances: &[Instance], item: &Item) -> Result<Memory, Trap> {
    resolve(store, instances, item)?.into_memory().ok_or_else(|| missing("memory"))
}

/// The validator has seen it, so this is a fault of ours; still only this guest ends.
fn missing(what: &str) -> Trap {
    Trap::error(format!("the program's {what} is not where its component says"))
}
