//! `inferlet:core/kvs`: the subject's key-value pairs.

use super::lists::Made;
use super::{Cx, Interface, Later, Trap};
use crate::exchange::kvs::Refusal;

pub fn interface() -> Interface {
    Interface::new("inferlet:core/kvs")
        .call("store-get", get)
        .wait("store-set", set)
        .wait("store-delete", delete)
        .call("store-exists", exists)
        .call("store-list-keys", keys)
}

/// Fuel of finding a value on the disk, where it is in memory already: some 5 µs.
const READ_FUEL: u64 = 4_000;
/// Fuel of each key in a list.
const FUEL_PER_KEY: u64 = 16;

impl From<Refusal> for Trap {
    fn from(refusal: Refusal) -> Trap {
        Trap::error(refusal.to_string())
    }
}

fn get(cx: &mut Cx, key: String) -> Result<Option<String>, Trap> {
    cx.owe(1, READ_FUEL);
    Ok(cx.exchange.kvs.get(&cx.subject, &key)?)
}

/// The guest goes on when the pair is durable.
fn set(cx: &mut Cx, key: String, value: String) -> Result<Later<()>, Trap> {
    let (exchange, subject) = (cx.exchange.clone(), cx.subject.clone());
    Ok(Later::wait(async move { Ok(exchange.kvs.set(&subject, &key, value).await?) }))
}

fn delete(cx: &mut Cx, key: String) -> Result<Later<()>, Trap> {
    let (exchange, subject) = (cx.exchange.clone(), cx.subject.clone());
    Ok(Later::wait(async move {
        exchange.kvs.delete(&subject, &key).await?;
        Ok(())
    }))
}

fn exists(cx: &mut Cx, key: String) -> Result<bool, Trap> {
    Ok(cx.exchange.kvs.exists(&cx.subject, &key))
}

fn keys(cx: &mut Cx) -> Result<Made<String>, Trap> {
    let keys = cx.exchange.kvs.keys(&cx.subject);
    cx.owe(keys.len(), FUEL_PER_KEY);
    Ok(Made::new(keys.len(), move |i| keys[i].to_string()))
}
