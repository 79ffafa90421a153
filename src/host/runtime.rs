//! `inferlet:core/runtime`: who the guest is, what it was given, which models there are.

use super::abi::Own;
use super::common::{DebugQueryResult, TRAITS};
use super::{Cx, Interface, Trap};
use crate::limits;
use crate::model::Model;
use crate::quota::Name;
use std::sync::Arc;

pub fn interface() -> Interface {
    Interface::new("inferlet:core/runtime")
        .call("get-version", version)
        .call("get-instance-id", instance_id)
        .call("get-arguments", arguments)
        .call("set-return", set_return)
        .call("get-model", model)
        .call("get-all-models", all_models)
        .call("get-all-models-with-traits", models_with_traits)
        .call("debug-query", debug_query)
}

/// The contract's version, and ours.
const VERSION: &str = concat!("0.2.0+tartlet.", env!("CARGO_PKG_VERSION"));

fn version(_: &mut Cx) -> Result<String, Trap> {
    Ok(VERSION.to_owned())
}

fn instance_id(cx: &mut Cx) -> Result<String, Trap> {
    Ok(cx.instance.to_string())
}

fn arguments(cx: &mut Cx) -> Result<Vec<String>, Trap> {
    Ok(cx.arguments.clone())
}

/// Goes out in one frame, as a message does.
fn set_return(cx: &mut Cx, value: String) -> Result<(), Trap> {
    if value.len() > limits::MESSAGE_BYTES {
        return Err(Trap::error(format!(
            "value has {} bytes; a return value has at most {}",
            value.len(),
            limits::MESSAGE_BYTES
        )));
    }
    cx.returned = value;
    Ok(())
}

fn model(cx: &mut Cx, name: String) -> Result<Option<Own<Arc<Model>>>, Trap> {
    Ok((cx.model.name == name).then(|| Own(cx.model.clone())))
}

fn all_models(cx: &mut Cx) -> Result<Vec<String>, Trap> {
    Ok(vec![cx.model.name.clone()])
}

fn models_with_traits(cx: &mut Cx, traits: Vec<String>) -> Result<Vec<String>, Trap> {
    let has_all = traits.iter().all(|wanted| TRAITS.contains(&wanted.as_str()));
    Ok(if has_all { vec![cx.model.name.clone()] } else { vec![] })
}

/// Tokens of the longest sequence that this instance can have computed: what the model was made for, where so many fit the KV
/// pages that it may have, and one pass.
fn context_length(cx: &Cx) -> u64 {
    let (info, quotas) = (cx.engine.info(), &cx.allowance.quotas);
    let own = quotas.get(Name::KvPages).min(quotas.get(Name::SubjectKvPages));
    let pages = own.min(info.pages.into()).saturating_mul(info.page_size.into());
    pages.min(cx.model.shape.context.into()).min(limits::PASS_ROWS as u64)
}

/// Fuel of a question about all instances: some 50 µs for a full box.
const DEBUG_QUERY_FUEL: u64 = 12_500;

/// What the lists show is the subject's own.
fn debug_query(cx: &mut Cx, query: String) -> Result<Own<DebugQueryResult>, Trap> {
    let lines = |lines: Vec<String>| lines.join("\n");
    let running = || cx.directory.of(&cx.subject);
    let answer = match query.as_str() {
        "ping" => "pong".to_owned(),
        "get_instance_count" => cx.directory.count_of(&cx.subject).to_string(),
        "get_context_length" => context_length(cx).to_string(),
        "get_server_instance_count" => cx.servers.of(Some(&cx.subject)).len().to_string(),
        "list_running_instances" => lines(
            running()
                .iter()
                .map(|entry| format!("Instance ID: {}, Program Hash: {}", entry.instance, entry.program))
                .collect(),
        ),
        "list_in_memory_programs" => {
            let mut programs: Vec<String> = running().iter().map(|entry| entry.program.to_string()).collect();
            programs.sort_unstable();
            programs.dedup();
            lines(programs)
        }
        other => {
            format!("Unknown query: {}", other.chars().take(limits::DEBUG_QUERY_ECHO).collect::<String>())
        }
    };
    cx.owe(1, DEBUG_QUERY_FUEL);
    let charge = cx.held.charge(answer.len())?;
    Ok(Own(DebugQueryResult::now(answer, charge)))
}
