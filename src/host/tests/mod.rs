//! The guest world as a guest meets it: each interface through real memory, its answers and its sentences.

mod costs;
mod crowd;
mod passes;

use super::bed::{Bed, House, float, number};
use super::common;
use crate::identity::Subject;
use crate::limits;
use crate::runtime::{What, events};
use std::sync::Arc;
use wasmi::Val;

const COMMON: &str = "inferlet:core/common";
const FORWARD: &str = "inferlet:core/forward";
const KVS: &str = "inferlet:core/kvs";
const MESSAGE: &str = "inferlet:core/message";
const POLL: &str = "wasi:io/poll@0.2.4";
const RUNTIME: &str = "inferlet:core/runtime";
const TOKENIZE: &str = "inferlet:core/tokenize";

fn model(bed: &mut Bed) -> [Val; 1] {
    let name = bed.text("toy");
    let at = bed.call(RUNTIME, "get-model", &[&name]).unwrap();
    assert_eq!(bed.u32_at(at) & 0xff, 1, "there is such a model");
    number(bed.u32_at(at + 4).into())
}

fn queue(bed: &mut Bed) -> [Val; 1] {
    let model = model(bed);
    number(bed.call(COMMON, "[method]model.create-queue", &[&model]).unwrap())
}

#[test]
fn the_runtime_tells_who_the_guest_is_and_what_models_there_are() {
    let mut bed = Bed::new();
    let at = bed.call(RUNTIME, "get-version", &[]).unwrap();
    assert_eq!(bed.text_at(at), format!("0.2.0+tartlet.{}", env!("CARGO_PKG_VERSION")));
    let at = bed.call(RUNTIME, "get-instance-id", &[]).unwrap();
    assert_eq!(bed.text_at(at), bed.store.data().instance.to_string());
    let at = bed.call(RUNTIME, "get-arguments", &[]).unwrap();
    assert_eq!(bed.texts_at(at), ["--name", "wert äöü"]);
    let at = bed.call(RUNTIME, "get-all-models", &[]).unwrap();
    assert_eq!(bed.texts_at(at), ["toy"]);

    let name = bed.text("other");
    let at = bed.call(RUNTIME, "get-model", &[&name]).unwrap();
    assert_eq!(bed.u32_at(at) & 0xff, 0);

    let pair = bed.text("tokenize");
    let Val::I32(place) = pair[0] else { panic!("a pointer") };
    let one = bed.list(&[place as u32, 8]);
    let at = bed.call(RUNTIME, "get-all-models-with-traits", &[&[one[0].clone(), Val::I32(1)]]).unwrap();
    assert_eq!(bed.texts_at(at), ["toy"]);
    let pair = bed.text("image");
    let Val::I32(place) = pair[0] else { panic!("a pointer") };
    let one = bed.list(&[place as u32, 5]);
    let at = bed.call(RUNTIME, "get-all-models-with-traits", &[&[one[0].clone(), Val::I32(1)]]).unwrap();
    assert!(bed.texts_at(at).is_empty());

    for (query, answer) in [("ping", "pong"), ("get_instance_count", "0"), ("list_running_instances", "")] {
        let text = bed.text(query);
        let result = number(bed.call(RUNTIME, "debug-query", &[&text]).unwrap());
        let at = bed.call(COMMON, "[method]debug-query-result.get", &[&result]).unwrap();
        assert_eq!((bed.u32_at(at) & 0xff, bed.text_at(at + 4).as_str()), (1, answer), "{query}");
    }
    let pages = bed.cx().engine.info().pages * bed.cx().engine.info().page_size;
    let text = bed.text("get_context_length");
    let result = number(bed.call(RUNTIME, "debug-query", &[&text]).unwrap());
    let at = bed.call(COMMON, "[method]debug-query-result.get", &[&result]).unwrap();
    assert_eq!(bed.text_at(at + 4), pages.min(512).to_string(), "the toy was made for 512 tokens");
    let text = bed.text("what?");
    let result = number(bed.call(RUNTIME, "debug-query", &[&text]).unwrap());
    let at = bed.call(COMMON, "[method]debug-query-result.get", &[&result]).unwrap();
    assert_eq!(bed.text_at(at + 4), "Unknown query: what?");
}

#[test]
fn the_last_return_value_counts_and_fits_a_frame() {
    let mut bed = Bed::new();
    for value in ["first", "last"] {
        let text = bed.text(value);
        bed.call(RUNTIME, "set-return", &[&text]).unwrap();
    }
    assert_eq!(bed.cx().returned, "last");
    let long = bed.text(&"x".repeat(limits::MESSAGE_BYTES + 1));
    let sentence = bed.sentence(RUNTIME, "set-return", &[&long]);
    assert!(sentence.contains(&limits::MESSAGE_BYTES.to_string()), "{sentence}");
}

#[test]
fn the_model_describes_itself() {
    let mut bed = Bed::new();
    let model = model(&mut bed);
    let at = bed.call(COMMON, "[method]model.get-name", &[&model]).unwrap();
    assert_eq!(bed.text_at(at), "toy");
    let at = bed.call(COMMON, "[method]model.get-traits", &[&model]).unwrap();
    assert_eq!(bed.texts_at(at), ["input_text", "tokenize", "output_text"]);
    let at = bed.call(COMMON, "[method]model.get-description", &[&model]).unwrap();
    assert!(bed.text_at(at).contains("llama"));
    let at = bed.call(COMMON, "[method]model.get-stop-tokens", &[&model]).unwrap();
    assert!(!bed.texts_at(at).is_empty());
    let at = bed.call(COMMON, "[method]model.get-prompt-template", &[&model]).unwrap();
    assert!(bed.text_at(at).contains("messages"));
    assert_eq!(bed.call(COMMON, "[method]model.get-kv-page-size", &[&model]), Ok(super::bed::PAGE.into()));
    assert_eq!(bed.call(COMMON, "[method]model.get-service-id", &[&model]), Ok(0));
}

#[test]
fn text_becomes_tokens_and_tokens_text() {
    let mut bed = Bed::new();
    let model = model(&mut bed);
    let tokenizer = number(bed.call(TOKENIZE, "get-tokenizer", &[&model]).unwrap());
    let text = bed.text("hé<|im_end|>");
    let at = bed.call(TOKENIZE, "[method]tokenizer.tokenize", &[&tokenizer, &text]).unwrap();
    let tokens = bed.list_at(at);
    assert_eq!(tokens, [b'h'.into(), 0xc3, 0xa9, 258]);
    let list = bed.list(&tokens);
    let at = bed.call(TOKENIZE, "[method]tokenizer.detokenize", &[&tokenizer, &list]).unwrap();
    assert_eq!(bed.text_at(at), "hé<|im_end|>");

    let long = "a".repeat(100_000);
    let text = bed.text(&long);
    let at = bed.call(TOKENIZE, "[method]tokenizer.tokenize", &[&tokenizer, &text]).unwrap();
    assert_eq!(bed.list_at(at).len(), long.len(), "long texts are tokenized elsewhere, to the same end");

    let bad = bed.list(&[1, 320]);
    let sentence = bed.sentence(TOKENIZE, "[method]tokenizer.detokenize", &[&tokenizer, &bad]);
    assert!(sentence.contains("320"), "{sentence}");

    let at = bed.call(TOKENIZE, "[method]tokenizer.get-vocabs", &[&tokenizer]).unwrap();
    let ids = bed.list_at(at);
    assert_eq!(ids, (0..256).collect::<Vec<u32>>(), "ascending, special and unused ones left out");
    let bytes = u64::from(bed.u32_at(at + 8));
    assert_eq!(bed.bytes_at(bytes + 8 * 0xc3), [0xc3]);
}

/// Bytes that the host holds for the guest beside its handles.
fn held(bed: &mut Bed) -> usize {
    bed.cx().held.held() - bed.cx().table.bytes()
}

#[test]
fn blobs_read_what_there_is() {
    let mut bed = Bed::new();
    let bytes = bed.bytes(b"0123456789");
    let blob = number(bed.call(COMMON, "[constructor]blob", &[&bytes]).unwrap());
    assert_eq!(bed.call(COMMON, "[method]blob.size", &[&blob]), Ok(10));
    for (offset, n, expected) in [
        (0, 10, "0123456789"),
        (8, 5, "89"),
        (10, 1, ""),
        (u64::MAX, u64::MAX, ""),
        (3, u64::MAX, "3456789"),
        (3, 0, ""),
    ] {
        let range = [Val::I64(offset as i64), Val::I64(n as i64)];
        let at = bed.call(COMMON, "[method]blob.read", &[&blob, &range]).unwrap();
        assert_eq!(bed.text_at(at), expected, "{offset} {n}");
    }
    assert_eq!(held(&mut bed), 10);
    bed.call(MESSAGE, "send-blob", &[&blob]).unwrap();
    assert_eq!(held(&mut bed), 10, "nobody has read it");
    assert!(matches!(bed.events.try_recv().unwrap().what, What::Blob(blob) if &*blob.bytes == b"0123456789"));
    assert_eq!(held(&mut bed), 0, "a blob that was sent is not held");
    let sentence = bed.sentence(COMMON, "[method]blob.size", &[&blob]);
    assert!(sentence.contains("blob"), "{sentence}");
}

#[test]
fn messages_come_in_order_and_an_abandoned_receive_loses_nothing() {
    let mut bed = Bed::new();
    let abandoned = bed.call(MESSAGE, "receive", &[]).unwrap();
    let kept = number(bed.call(MESSAGE, "receive", &[]).unwrap());
    let pollable = number(bed.call(MESSAGE, "[method]receive-result.pollable", &[&kept]).unwrap());
    bed.cx().mailbox.texts.push("first".to_owned()).unwrap();
    assert_eq!(bed.call(POLL, "[method]pollable.ready", &[&pollable]), Ok(0));
    let at = bed.call(MESSAGE, "[method]receive-result.get", &[&kept]).unwrap();
    assert_eq!(bed.u32_at(at) & 0xff, 0, "the first message belongs to the first receive");
    bed.cx().table.take::<super::message::ReceiveResult>(abandoned as u32).unwrap();
    assert_eq!(bed.call(POLL, "[method]pollable.ready", &[&pollable]), Ok(1));
    bed.call(POLL, "[method]pollable.block", &[&pollable]).unwrap();
    let at = bed.call(MESSAGE, "[method]receive-result.get", &[&kept]).unwrap();
    assert_eq!((bed.u32_at(at) & 0xff, bed.text_at(at + 4).as_str()), (1, "first"));

    let result = number(bed.call(MESSAGE, "receive-blob", &[]).unwrap());
    let pollable = number(bed.call(COMMON, "[method]blob-result.pollable", &[&result]).unwrap());
    assert_eq!(bed.call(POLL, "[method]pollable.ready", &[&pollable]), Ok(0));
    bed.cx().mailbox.blobs.push(Arc::from(&b"blob"[..])).unwrap();
    bed.call(POLL, "[method]pollable.block", &[&pollable]).unwrap();
    let at = bed.call(COMMON, "[method]blob-result.get", &[&result]).unwrap();
    let blob = number(bed.u32_at(at + 4).into());
    assert_eq!(bed.call(COMMON, "[method]blob.size", &[&blob]), Ok(4));
    let at = bed.call(COMMON, "[method]blob-result.get", &[&result]).unwrap();
    assert_eq!(bed.u32_at(at) & 0xff, 0, "a blob comes once");
}

#[test]
fn a_slow_client_makes_the_guest_wait_and_loses_nothing() {
    let mut bed = Bed::new();
    let events = std::mem::replace(&mut bed.events, events::bounded(1).1);
    let client = std::thread::spawn(move || {
        smol::block_on(async {
            let mut messages = vec![];
            while messages.len() < 20 {
                match events.recv().await.expect("the guest lives").what {
                    What::Message(text) => messages.push(text),
                    other => panic!("{other:?}"),
                }
            }
            messages
        })
    });
    for i in 0..20 {
        let text = bed.text(&i.to_string());
        bed.call(MESSAGE, "send", &[&text]).unwrap();
    }
    assert_eq!(client.join().unwrap(), (0..20).map(|i| i.to_string()).collect::<Vec<_>>());
    let long = bed.text(&"x".repeat(limits::MESSAGE_BYTES + 1));
    let sentence = bed.sentence(MESSAGE, "send", &[&long]);
    assert!(sentence.contains(&limits::MESSAGE_BYTES.to_string()), "{sentence}");
}

/// Each is more than half of what the host may hold for it: the next one fits once the one before has gone out.
#[test]
fn a_guest_that_sends_one_large_blob_after_the_other_has_each_counted_until_it_is_out() {
    const BYTES: usize = limits::HELD_BYTES / 2 + 1;
    const BLOBS: usize = 3;
    let mut bed = Bed::new();
    let events = std::mem::replace(&mut bed.events, events::bounded(1).1);
    let meter = bed.cx().held.clone();
    let client = std::thread::spawn(move || {
        smol::block_on(async {
            for _ in 0..BLOBS {
                let events::Weighed { event, weight } = events.recv_weighed().await.expect("the guest lives");
                assert!(matches!(&event.what, What::Blob(blob) if blob.bytes.len() == BYTES));
                assert!(meter.held() > BYTES, "and its handles");
                drop((event, weight));
            }
        })
    });
    for _ in 0..BLOBS {
        let blob = common::Blob::new(vec![7; BYTES].into(), &bed.cx().held.clone()).expect("there is room");
        let blob = bed.cx().table.insert(blob).unwrap();
        bed.call(MESSAGE, "send-blob", &[&number(blob.into())]).unwrap();
        assert_eq!(held(&mut bed), 0);
    }
    client.join().unwrap();
}

#[test]
fn guests_of_one_subject_share_topics_and_pairs_and_others_see_nothing() {
    let house = House::new();
    let (mine, other) = (Subject::new("me"), Subject::new("other"));
    let (mut a, mut b, mut c) = (Bed::of(&house, &mine), Bed::of(&house, &mine), Bed::of(&house, &other));
    let subscribe = |bed: &mut Bed| {
        let topic = bed.text("news");
        number(bed.call(MESSAGE, "subscribe", &[&topic]).unwrap())
    };
    let (at_b, at_c) = (subscribe(&mut b), subscribe(&mut c));
    let (topic, message) = (a.text("news"), a.text("hello"));
    a.call(MESSAGE, "broadcast", &[&topic, &message]).unwrap();
    let at = b.call(MESSAGE, "[method]subscription.get", &[&at_b]).unwrap();
    assert_eq!((b.u32_at(at) & 0xff, b.text_at(at + 4).as_str()), (1, "hello"));
    let at = c.call(MESSAGE, "[method]subscription.get", &[&at_c]).unwrap();
    assert_eq!(c.u32_at(at) & 0xff, 0);
    b.call(MESSAGE, "[method]subscription.unsubscribe", &[&at_b]).unwrap();
    let pollable = number(b.call(MESSAGE, "[method]subscription.pollable", &[&at_b]).unwrap());
    assert_eq!(b.call(POLL, "[method]pollable.ready", &[&pollable]), Ok(1), "it will never yield again");

    let (key, value) = (a.text("k"), a.text("v"));
    a.call(KVS, "store-set", &[&key, &value]).unwrap();
    let key = b.text("k");
    let at = b.call(KVS, "store-get", &[&key]).unwrap();
    assert_eq!((b.u32_at(at) & 0xff, b.text_at(at + 4).as_str()), (1, "v"));
    let at = b.call(KVS, "store-list-keys", &[]).unwrap();
    assert_eq!(b.texts_at(at), ["k"]);
    let key = c.text("k");
    assert_eq!(c.call(KVS, "store-exists", &[&key]), Ok(0));
    let key = b.text("k");
    b.call(KVS, "store-delete", &[&key]).unwrap();
    let key = a.text("k");
    assert_eq!(a.call(KVS, "store-exists", &[&key]), Ok(0));
    let (key, value) = (a.text(&"k".repeat(limits::KVS_KEY_BYTES + 1)), a.text(""));
    let sentence = a.sentence(KVS, "store-set", &[&key, &value]);
    assert!(sentence.contains(&limits::KVS_KEY_BYTES.to_string()), "{sentence}");
}

#[test]
fn what_the_model_cannot_do_ends_the_guest_with_a_sentence() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pass = number(bed.call(FORWARD, "create-forward-pass", &[&queue]).unwrap());
    let one = number(1);
    let none = bed.list(&[]);
    let blob = number(bed.call(COMMON, "[constructor]blob", &[&none]).unwrap());
    for (place, name, arguments) in [
        ("inferlet:adapter/common", "set-adapter", vec![&pass[..], &one]),
        ("inferlet:zo/evolve", "set-adapter-seed", vec![&pass, &[Val::I64(1)]]),
        ("inferlet:zo/evolve", "update-adapter", vec![&queue, &one, &none, &none, &float(1.0)]),
        (
            "inferlet:zo/evolve",
            "initialize-adapter",
            vec![&queue, &one, &one, &float(1.0), &one, &float(1.0), &float(1.0)],
        ),
        ("inferlet:adapter/common", "download-adapter", vec![&queue, &one, &none]),
        ("inferlet:adapter/common", "upload-adapter", vec![&queue, &one, &none, &blob]),
        ("inferlet:image/image", "calculate-embed-size", vec![&queue, &one, &one]),
        ("inferlet:image/image", "embed-image", vec![&queue, &none, &none, &one]),
    ] {
        let sentence = bed.sentence(place, name, &arguments);
        assert!(sentence.contains("does not support") && sentence.contains("toy"), "{name}: {sentence}");
    }
    let adapters = number(2);
    let sentence = bed.sentence(COMMON, "allocate-resources", &[&queue, &adapters, &one]);
    assert!(sentence.contains("adapters"), "{sentence}");
    let sentence = bed.sentence(COMMON, "allocate-resources", &[&queue, &number(7), &one]);
    assert!(sentence.contains("resource-type 7"), "{sentence}");
}
