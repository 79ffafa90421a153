//! `inferlet:image/image`, `inferlet:adapter/common`, `inferlet:zo/evolve`: what no model here can do yet.
//!
//! Owns: their types, so that programs link (the stock SDK imports some of them always), and a sentence that ends
//! the guest when one is called.

use super::abi::{Borrow, Own};
use super::common::{Blob, BlobResult, Queue};
use super::forward::ForwardPass;
use super::{Cx, Interface, Trap};

pub fn interfaces() -> Vec<Interface> {
    vec![
        Interface::new("inferlet:image/image")
            .call("embed-image", embed_image)
            .call("calculate-embed-size", calculate_embed_size),
        Interface::new("inferlet:adapter/common")
            .call("set-adapter", set_adapter)
            .call("download-adapter", download_adapter)
            .call("upload-adapter", upload_adapter),
        Interface::new("inferlet:zo/evolve")
            .call("set-adapter-seed", set_adapter_seed)
            .call("initialize-adapter", initialize_adapter)
            .call("update-adapter", update_adapter),
    ]
}

fn no_trait<R>(cx: &Cx, what: &str, name: &str) -> Result<R, Trap> {
    Err(Trap::error(format!(
        "the model {:?} does not support {what} (a program can see that from its traits, which lack {name:?})",
        cx.model.name
    )))
}

fn no_images<R>(cx: &Cx) -> Result<R, Trap> {
    no_trait(cx, "images", "image")
}

fn no_adapters<R>(cx: &Cx) -> Result<R, Trap> {
    no_trait(cx, "adapters", "adapter")
}

fn no_evolution<R>(cx: &Cx) -> Result<R, Trap> {
    no_trait(cx, "evolution of adapters", "evolve")
}

fn embed_image(cx: &mut Cx, _: Borrow<Queue>, _: Vec<u32>, _: Vec<u8>, _: u32) -> Result<(), Trap> {
    no_images(cx)
}

fn calculate_embed_size(cx: &mut Cx, _: Borrow<Queue>, _: u32, _: u32) -> Result<u32, Trap> {
    no_images(cx)
}

fn set_adapter(cx: &mut Cx, _: Borrow<ForwardPass>, _: u32) -> Result<(), Trap> {
    no_adapters(cx)
}

fn download_adapter(cx: &mut Cx, _: Borrow<Queue>, _: u32, _: String) -> Result<Own<BlobResult>, Trap> {
    no_adapters(cx)
}

fn upload_adapter(cx: &mut Cx, _: Borrow<Queue>, _: u32, _: String, _: Own<Blob>) -> Result<(), Trap> {
    no_adapters(cx)
}

fn set_adapter_seed(cx: &mut Cx, _: Borrow<ForwardPass>, _: i64) -> Result<(), Trap> {
    no_evolution(cx)
}

#[allow(clippy::too_many_arguments)] // as many as the WIT has
fn initialize_adapter(
    cx: &mut Cx,
    _: Borrow<Queue>,
    _: u32,
    _: u32,
    _: f32,
    _: u32,
    _: f32,
    _: f32,
) -> Result<(), Trap> {
    no_evolution(cx)
}

fn update_adapter(
    cx: &mut Cx,
    _: Borrow<Queue>,
    _: u32,
    _: Vec<f32>,
    _: Vec<i64>,
    _: f32,
) -> Result<(), Trap> {
    no_evolution(cx)
}
