//! Pages and embeddings by name: allocate, give back, export, import. Each acts at once, in call order.

use super::queue::{COMMAND_FUEL, ask, given_up, tell};
use super::{Names, Queue, check_name};
use crate::engine::operation::{Command, Kind, Refusal, VirtualId};
use crate::host::abi::{Borrow, Charged, fuel_of_bytes};
use crate::host::{Cx, Interface, Later, Trap};
use crate::limits;

pub(super) fn functions(interface: Interface) -> Interface {
    interface
        .wait("allocate-resources", allocate)
        .wait("deallocate-resources", deallocate)
        .wait("get-all-exported-resources", exports)
        .wait("release-exported-resources", release)
        .wait("export-resources", export)
        .wait("import-resources", import)
}

/// Fuel for each name that is given, given back or exported: some 60 ns of the engine's thread.
const FUEL_PER_NAME: u64 = 32;
/// Fuel for each name that an import gives: as much, and again for the end of a guest that does not give it back. There may
/// be 65,536, whatever the guest holds itself.
const FUEL_PER_IMPORTED: u64 = 2 * FUEL_PER_NAME;

/// Charges a command and the names in it.
fn owe(cx: &mut Cx, names: usize) {
    cx.owe(1, COMMAND_FUEL);
    cx.owe(names, FUEL_PER_NAME);
}

/// The resource types of the contract.
fn kind(resource_type: u32) -> Result<Kind, Trap> {
    match resource_type {
        0 => Ok(Kind::Page),
        1 => Ok(Kind::Embed),
        2 => Err(Trap::error("resource-type 2 is adapters, which this model does not have")),
        other => Err(Trap::error(format!(
            "resource-type {other} is unknown; there are 0 (kv pages), 1 (embeddings) and 2 (adapters)"
        ))),
    }
}

fn ids(ptrs: Vec<u32>) -> Result<Vec<VirtualId>, Trap> {
    match ptrs.len() > limits::NAMES_PER_INSTANCE {
        true => Err(Trap::error(format!(
            "ptrs has {} items; an instance holds at most {}",
            ptrs.len(),
            limits::NAMES_PER_INSTANCE
        ))),
        false => Ok(ptrs.into_iter().map(VirtualId).collect()),
    }
}

/// What the guest is told when the engine refuses.
async fn answer<R>(answer: Result<R, Refusal>) -> Result<R, Trap> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(refusal @ Refusal::OutOfPages { .. }) => {
            Err(Trap::Exception(format!("OOM unrecoverable: {refusal}")))
        }
        Err(Refusal::Quota(quota)) => Err(Trap::Quota(quota)),
        Err(refusal @ Refusal::Ended) => given_up(refusal.to_string()).await,
        Err(refusal) => Err(Trap::error(refusal.to_string())),
    }
}

/// New names, noted and as the guest gets them.
fn given(names: &Names, kind: Kind, ids: Vec<VirtualId>) -> Vec<u32> {
    names.add(kind, &ids);
    ids.into_iter().map(|id| id.0).collect()
}

/// All or nothing.
fn allocate(
    cx: &mut Cx,
    queue: Borrow<Queue>,
    resource_type: u32,
    count: u32,
) -> Result<Later<Vec<u32>>, Trap> {
    cx.table.get(&queue)?;
    let (kind, instance, engine) = (kind(resource_type)?, cx.instance, cx.engine.clone());
    if count == 0 {
        return Ok(Later::ready(vec![]));
    }
    let most = cx.engine.info().pages.max(cx.engine.info().embeds); // of more nothing is given out
    owe(cx, count.min(most) as usize);
    let names = cx.names.clone();
    Ok(Later::wait(async move {
        let reply = ask(&engine, |reply| Command::Allocate { instance, kind, count, reply }).await?;
        Ok(given(&names, kind, answer(reply).await?))
    }))
}

fn deallocate(
    cx: &mut Cx,
    queue: Borrow<Queue>,
    resource_type: u32,
    ptrs: Vec<u32>,
) -> Result<Later<()>, Trap> {
    cx.table.get(&queue)?;
    let (instance, kind, ids) = (cx.instance, kind(resource_type)?, ids(ptrs)?);
    owe(cx, ids.len());
    cx.names.remove(kind, &ids, "ptrs")?;
    Ok(tell(cx, Command::Deallocate { instance, kind, ids }))
}

type Exports = Vec<(String, u32)>;

/// Paid for by the names and their bytes, which are copied twice.
fn exports(cx: &mut Cx, queue: Borrow<Queue>, resource_type: u32) -> Result<Later<Charged<Exports>>, Trap> {
    cx.table.get(&queue)?;
    owe(cx, 0);
    let (kind, instance, engine) = (kind(resource_type)?, cx.instance, cx.engine.clone());
    Ok(Later::wait(async move {
        let answer = ask(&engine, |reply| Command::Exports { instance, kind, reply }).await?;
        let bytes = answer.iter().map(|(name, _)| name.len()).sum::<usize>();
        let fuel = answer.len() as u64 * FUEL_PER_NAME + fuel_of_bytes(2 * bytes);
        Ok(Charged { answer, fuel })
    }))
}

fn release(cx: &mut Cx, queue: Borrow<Queue>, resource_type: u32, name: String) -> Result<Later<()>, Trap> {
    cx.table.get(&queue)?;
    check_name(&name, limits::EXPORT_NAME_BYTES)?;
    owe(cx, 0);
    let (kind, instance, engine) = (kind(resource_type)?, cx.instance, cx.engine.clone());
    Ok(Later::wait(async move {
        answer(ask(&engine, |reply| Command::Release { instance, kind, name, reply }).await?).await
    }))
}

fn export(
    cx: &mut Cx,
    queue: Borrow<Queue>,
    resource_type: u32,
    ptrs: Vec<u32>,
    name: String,
) -> Result<Later<()>, Trap> {
    cx.table.get(&queue)?;
    check_name(&name, limits::EXPORT_NAME_BYTES)?;
    let (kind, ids, instance, engine) = (kind(resource_type)?, ids(ptrs)?, cx.instance, cx.engine.clone());
    owe(cx, ids.len());
    cx.names.check(kind, ids.iter().copied(), "ptrs")?;
    Ok(Later::wait(async move {
        answer(ask(&engine, |reply| Command::Export { instance, kind, ids, name, reply }).await?).await
    }))
}

fn import(
    cx: &mut Cx,
    queue: Borrow<Queue>,
    resource_type: u32,
    name: String,
) -> Result<Later<Charged<Vec<u32>>>, Trap> {
    cx.table.get(&queue)?;
    check_name(&name, limits::EXPORT_NAME_BYTES)?;
    owe(cx, 0);
    let (kind, instance, engine) = (kind(resource_type)?, cx.instance, cx.engine.clone());
    let names = cx.names.clone();
    Ok(Later::wait(async move {
        let reply = ask(&engine, |reply| Command::Import { instance, kind, name, reply }).await?;
        let answer = given(&names, kind, answer(reply).await?);
        let fuel = answer.len() as u64 * FUEL_PER_IMPORTED;
        Ok(Charged { answer, fuel })
    }))
}
