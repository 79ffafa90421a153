//! `inferlet:core/message`: between the guest and its client, and between guests of one subject.

use super::abi::{Borrow, Own};
use super::common::{Blob, BlobResult, given_up};
use super::wasi::io::{Pollable, Readiness};
use super::{Cx, Interface, Later, Trap};
use crate::exchange::mailbox::{Letter, Receive};
use crate::exchange::topics::{self, Refusal};
use crate::limits;
use crate::runtime::table::Resource;
use crate::runtime::{InstanceEvent, What};
use std::pin::Pin;
use std::sync::Arc;

pub fn interface() -> Interface {
    Interface::new("inferlet:core/message")
        .resource::<Subscription>()
        .resource::<ReceiveResult>()
        .call("[method]subscription.pollable", subscription_pollable)
        .call("[method]subscription.get", subscription_get)
        .call("[method]subscription.unsubscribe", unsubscribe)
        .call("[method]receive-result.pollable", receive_pollable)
        .call("[method]receive-result.get", receive_get)
        .wait("send", send)
        .call("receive", receive)
        .wait("send-blob", send_blob)
        .call("receive-blob", receive_blob)
        .call("broadcast", broadcast)
        .call("subscribe", subscribe)
}

/// A message that is to come from the client.
pub(super) struct ReceiveResult(Arc<Receive<String>>);

impl Resource for ReceiveResult {
    const NAME: &'static str = "receive-result";
}

impl Drop for ReceiveResult {
    fn drop(&mut self) {
        // A pollable of it may outlive it, and must not keep its message from the next receive.
        self.0.abandon();
    }
}

impl<T: Letter + 'static> Readiness for Receive<T> {
    fn ready(&self) -> bool {
        Receive::ready(self)
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(Receive::wait(self))
    }
}

struct Subscription(Arc<topics::Subscription>);

impl Resource for Subscription {
    const NAME: &'static str = "subscription";
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.unsubscribe();
    }
}

impl Readiness for topics::Subscription {
    fn ready(&self) -> bool {
        topics::Subscription::ready(self)
    }
    fn wait(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(topics::Subscription::wait(self))
    }
}

impl From<Refusal> for Trap {
    fn from(refusal: Refusal) -> Trap {
        Trap::error(refusal.to_string())
    }
}

/// Waits while the client is slow to read, and with a large blob until it has gone out: it counts with what the host holds for
/// the guest, which would end at its next ones if it went on. A client that is gone has the guest ended by its session.
fn emit(cx: &mut Cx, what: What) -> Later<()> {
    let event = InstanceEvent { instance: cx.instance, what };
    let sent = cx.events.try_send(event);
    if sent.is_ok() && !cx.events.is_overfull() {
        return Later::ready(());
    }
    let events = cx.events.clone();
    Later::wait(async move {
        if let Err(event) = sent
            && events.send(event).await.is_err()
        {
            return given_up("the client is gone".to_owned()).await;
        }
        events.caught_up().await;
        Ok(())
    })
}

fn send(cx: &mut Cx, message: String) -> Result<Later<()>, Trap> {
    if message.len() > limits::MESSAGE_BYTES {
        return Err(Trap::error(format!(
            "message has {} bytes; at most {} fit one frame (send it in parts, or as a blob)",
            message.len(),
            limits::MESSAGE_BYTES
        )));
    }
    Ok(emit(cx, What::Message(message)))
}

/// Fuel of a place in the row of those who wait, and of leaving it.
const RECEIVE_FUEL: u64 = 256;

fn too_many_receives() -> Trap {
    Trap::error(format!(
        "{} receives wait already, the most at a time; take or drop some first",
        limits::RECEIVES
    ))
}

fn receive(cx: &mut Cx) -> Result<Own<ReceiveResult>, Trap> {
    cx.owe(1, RECEIVE_FUEL);
    Ok(Own(ReceiveResult(Arc::new(cx.mailbox.texts.receive().ok_or_else(too_many_receives)?))))
}

/// Takes the blob, which counts until it has gone out.
fn send_blob(cx: &mut Cx, Own(blob): Own<Blob>) -> Result<Later<()>, Trap> {
    Ok(emit(cx, What::Blob(blob)))
}

fn receive_blob(cx: &mut Cx) -> Result<Own<BlobResult>, Trap> {
    cx.owe(1, RECEIVE_FUEL);
    Ok(Own(BlobResult(Arc::new(cx.mailbox.blobs.receive().ok_or_else(too_many_receives)?))))
}

fn receive_pollable(cx: &mut Cx, result: Borrow<ReceiveResult>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(cx.table.get(&result)?.0.clone())))
}

/// The message, once.
fn receive_get(cx: &mut Cx, result: Borrow<ReceiveResult>) -> Result<Option<String>, Trap> {
    Ok(cx.table.get(&result)?.0.take())
}

/// Fuel for each subscriber that a post may wake, and each topic that is looked at to make room for it.
const TOPIC_FUEL: u64 = 64;

/// Reaches every subscriber that lives; with none the message is gone.
fn broadcast(cx: &mut Cx, topic: String, message: String) -> Result<(), Trap> {
    let work = cx.exchange.topics.broadcast(&cx.subject, &topic, &message)?;
    cx.owe(work.reached + work.looked_at, TOPIC_FUEL);
    Ok(())
}

fn subscribe(cx: &mut Cx, topic: String) -> Result<Own<Subscription>, Trap> {
    cx.owe(4, TOPIC_FUEL);
    Ok(Own(Subscription(Arc::new(cx.exchange.topics.subscribe(&cx.subject, &topic)?))))
}

fn subscription_pollable(cx: &mut Cx, subscription: Borrow<Subscription>) -> Result<Own<Pollable>, Trap> {
    Ok(Own(Pollable::new(cx.table.get(&subscription)?.0.clone())))
}

/// The next message; a subscription goes on yielding.
fn subscription_get(cx: &mut Cx, subscription: Borrow<Subscription>) -> Result<Option<String>, Trap> {
    Ok(cx.table.get(&subscription)?.0.take().map(|message| message.to_string()))
}

fn unsubscribe(cx: &mut Cx, subscription: Borrow<Subscription>) -> Result<(), Trap> {
    cx.table.get(&subscription)?.0.unsubscribe();
    Ok(())
}
