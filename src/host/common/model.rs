//! `model`: what a guest may know of the model, and the way to its queues.

use super::{Queue, queue};
use crate::host::abi::{Borrow, Own};
use crate::host::{Cx, Interface, Later, Trap};
use crate::model::Model;
use crate::runtime::table::Resource;
use std::sync::Arc;

/// What every model here can do.
pub const TRAITS: [&str; 3] = ["input_text", "tokenize", "output_text"];

impl Resource for Arc<Model> {
    const NAME: &'static str = "model";
}

pub(super) fn functions(interface: Interface) -> Interface {
    interface
        .resource::<Arc<Model>>()
        .call("[method]model.get-name", name)
        .call("[method]model.get-traits", traits)
        .call("[method]model.get-description", description)
        .call("[method]model.get-prompt-template", prompt_template)
        .call("[method]model.get-stop-tokens", stop_tokens)
        .call("[method]model.get-service-id", service_id)
        .call("[method]model.get-kv-page-size", page_size)
        .wait("[method]model.create-queue", create_queue)
}

fn name(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<String, Trap> {
    Ok(cx.table.get(&model)?.name.clone())
}

fn traits(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<Vec<String>, Trap> {
    cx.table.get(&model)?;
    Ok(TRAITS.map(str::to_owned).to_vec())
}

fn description(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<String, Trap> {
    Ok(cx.table.get(&model)?.description.clone())
}

fn prompt_template(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<String, Trap> {
    Ok(cx.table.get(&model)?.chat.template.clone())
}

fn stop_tokens(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<Vec<String>, Trap> {
    Ok(cx.table.get(&model)?.chat.stops.clone())
}

/// There is one model service, number 0.
fn service_id(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<u32, Trap> {
    cx.table.get(&model).map(|_| 0)
}

fn page_size(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<u32, Trap> {
    cx.table.get(&model)?;
    Ok(cx.engine.info().page_size)
}

fn create_queue(cx: &mut Cx, model: Borrow<Arc<Model>>) -> Result<Later<Own<Queue>>, Trap> {
    cx.table.get(&model)?;
    queue::create(cx)
}
