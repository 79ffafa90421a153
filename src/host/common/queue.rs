//! `queue` and the results that come through one: a stream of operations in order.

use crate::engine::credit::Credits;
use crate::engine::operation::{Command, Operation, Priority, QueueId, Reply};
use crate::engine::{Gone, Handle};
use crate::host::abi::{Borrow, Own};
use crate::host::held::Charge;
use crate::host::wasi::io::Pollable;
use crate::host::{Cx, Interface, Later, Trap};
use crate::observe::stages::{self, Stage};
use crate::runtime::table::Resource;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

crate::wit_enum!(Priority { Low, Normal, High });

/// How long a guest whose work the engine gave up waits for the ending that the engine announced.
const ENDING_WAIT: Duration = Duration::from_secs(5);

/// A stream of operations. A pass keeps the queue that it was made for alive, whatever the guest drops first.
pub struct Stream {
    pub id: QueueId,
    engine: Handle,
    credits: Credits,
    unclosed: Unclosed,
}

/// Queues that were dropped while too much was on its way to the engine; closed before the next one is made.
pub type Unclosed = Arc<Mutex<Vec<QueueId>>>;

/// The queues of one instance.
#[derive(Default)]
pub struct Queues {
    made: u32,
    unclosed: Unclosed,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Err(Command::Close { queue }) =
            self.engine.try_tell(&self.credits, Command::Close { queue: self.id })
        {
            self.unclosed.lock().unwrap_or_else(PoisonError::into_inner).push(queue);
        }
    }
}

pub struct Queue(pub Arc<Stream>);

impl Resource for Queue {
    const NAME: &'static str = "queue";
}

pub struct SynchronizationResult(Reply<bool>);

impl Resource for SynchronizationResult {
    const NAME: &'static str = "synchronization-result";
}

/// An answer to a question asked of a queue (ready when what was queued before is done) or of the runtime.
pub struct DebugQueryResult {
    answer: String,
    after: Reply<bool>,
    /// Counts the answer against what the host keeps for this guest.
    _held: Charge,
}

impl Resource for DebugQueryResult {
    const NAME: &'static str = "debug-query-result";
}

impl DebugQueryResult {
    /// There already.
    pub fn now(answer: String, held: Charge) -> DebugQueryResult {
        DebugQueryResult { answer, after: Reply::from(true), _held: held }
    }
}

pub(super) fn functions(interface: Interface) -> Interface {
    interface
        .resource::<Queue>()
        .resource::<SynchronizationResult>()
        .resource::<DebugQueryResult>()
        .call("[method]queue.get-service-id", service_id)
        .wait("[method]queue.synchronize", synchronize)
        .wait("[method]queue.set-priority", set_priority)
        .wait("[method]queue.debug-query", debug_query)
        .call("[method]synchronization-result.pollable", synchronization_pollable)
        .call("[method]synchronization-result.get", synchronization_get)
        .call("[method]debug-query-result.pollable", debug_pollable)
        .call("[method]debug-query-result.get", debug_get)
}

/// Makes the instance's next queue.
pub(super) fn create(cx: &mut Cx) -> Result<Later<Own<Queue>>, Trap> {
    let ordinal = cx.queues.made;
    cx.queues.made = ordinal.checked_add(1).ok_or_else(|| Trap::error("no more queues can be made"))?;
    let unclosed = cx.queues.unclosed.clone();
    let id = QueueId { instance: cx.instance, ordinal };
    let (engine, credits) = (cx.engine.clone(), cx.credits.clone());
    let queue = Own(Queue(Arc::new(Stream { id, engine, credits, unclosed: unclosed.clone() })));
    let late = std::mem::take(&mut *unclosed.lock().unwrap_or_else(PoisonError::into_inner));
    if late.is_empty() {
        return Ok(Later::ready(queue));
    }
    let (engine, credits) = (cx.engine.clone(), cx.credits.clone());
    Ok(Later::wait(async move {
        for queue in late {
            engine.tell(&credits, Command::Close { queue }).await?;
        }
        Ok(queue)
    }))
}

impl From<Gone> for Trap {
    fn from(gone: Gone) -> Trap {
        Trap::error(gone.to_string())
    }
}

/// Sends a command that has no reply, in call order; waits only while too much is on its way to the engine.
pub(super) fn tell(cx: &mut Cx, command: Command) -> Later<()> {
    cx.owe(1, COMMAND_FUEL);
    let Err(command) = cx.engine.try_tell(&cx.credits, command) else { return Later::ready(()) };
    let (engine, credits) = (cx.engine.clone(), cx.credits.clone());
    Later::wait(async move { Ok(engine.tell(&credits, command).await?) })
}

/// Fuel of a command: the engine's thread, for which everybody waits, has some 300 ns of work with it.
pub(super) const COMMAND_FUEL: u64 = 256;

/// Sends a command and waits for its reply.
pub(super) async fn ask<T: Clone>(
    engine: &Handle,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, Trap> {
    let reply = Reply::default();
    engine.send(command(reply.clone())).await?;
    Ok(reply.wait().await.clone())
}

/// Submits an operation; waits while this instance has too much queued. `then` is what the call answers.
pub fn submit<R: Send + 'static>(cx: &mut Cx, queue: QueueId, operation: Operation, then: R) -> Later<R> {
    let Some(credit) = cx.credits.try_take(operation.words()) else {
        let (engine, credits) = (cx.engine.clone(), cx.credits.clone());
        return Later::wait(async move {
            engine.submit(&credits, queue, operation).await?;
            Ok(then)
        });
    };
    // Before it is sent: the engine may have it the same moment.
    stages::mark(Stage::Submitted, queue.instance);
    cx.owe(1, COMMAND_FUEL);
    let Err(command) = cx.engine.try_send(Command::Submit { queue, operation, credit }) else {
        return Later::ready(then);
    };
    let engine = cx.engine.clone();
    Later::wait(async move {
        engine.send(command).await?;
        Ok(then)
    })
}

/// For a guest whose work the engine gave up: its real ending is on the way and says more than we could. If none
/// comes, `why` ends it.
pub async fn given_up<R>(why: String) -> Result<R, Trap> {
    smol::Timer::after(ENDING_WAIT).await;
    Err(Trap::error(why))
}

/// There is one model service, number 0.
fn service_id(cx: &mut Cx, queue: Borrow<Queue>) -> Result<u32, Trap> {
    cx.table.get(&queue).map(|_| 0)
}

fn synchronize(cx: &mut Cx, queue: Borrow<Queue>) -> Result<Later<Own<SynchronizationResult>>, Trap> {
    let id = cx.table.get(&queue)?.0.id;
    let reply = Reply::default();
    let operation = Operation::Synchronize(reply.clone());
    Ok(submit(cx, id, operation, Own(SynchronizationResult(reply))))
}

fn set_priority(cx: &mut Cx, queue: Borrow<Queue>, priority: Priority) -> Result<Later<()>, Trap> {
    let queue = cx.table.get(&queue)?.0.id;
    Ok(tell(cx, Command::SetPriority { queue, priority }))
}

fn debug_query(
    cx: &mut Cx,
    queue: Borrow<Queue>,
    query: String,
) -> Result<Later<Own<DebugQueryResult>>, Trap> {
    let id = cx.table.get(&queue)?.0.id;
    let answer = if query == "ping" { "pong" } else { "unknown query" }.to_owned();
    let after = Reply::default();
    let operation = Operation::Synchronize(after.clone());
    let held = cx.held.charge(answer.len())?;
    Ok(submit(cx, id, operation, Own(DebugQueryResult { answer, after, _held: held })))
}

fn synchronization_pollable(
    cx: &mut Cx,
    result: Borrow<SynchronizationResult>,
) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(Arc::new(cx.table.get(&result)?.0.clone()))))
}

fn synchronization_get(cx: &mut Cx, result: Borrow<SynchronizationResult>) -> Result<Option<bool>, Trap> {
    Ok(cx.table.get(&result)?.0.get().copied())
}

fn debug_pollable(cx: &mut Cx, result: Borrow<DebugQueryResult>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(Arc::new(cx.table.get(&result)?.after.clone()))))
}

fn debug_get(cx: &mut Cx, result: Borrow<DebugQueryResult>) -> Result<Option<String>, Trap> {
    let result = cx.table.get(&result)?;
    Ok(result.after.get().map(|_| result.answer.clone()))
}
