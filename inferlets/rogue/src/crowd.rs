//! Faults of number and size: too many of something, or one too large.

use crate::Mode;
use inferlet::api::{self, forward, message, tokenize};
use std::time::Duration;

pub const MODES: &[Mode] = &[
    ("send-giant", || {
        message::send(&"x".repeat(2 << 20));
        "survived".to_string()
    }),
    ("send-flood", || {
        for i in 0..5_000 {
            message::send(&format!("{i}"));
        }
        "sent".to_string()
    }),
    ("blob-giant", || {
        message::send_blob(api::Blob::new(&vec![7u8; 24 << 20]));
        "sent".to_string()
    }),
    ("blob-hoard", || {
        let mut kept = Vec::new();
        loop {
            kept.push(api::Blob::new(&vec![7u8; 1 << 20]));
        }
    }),
    ("return-giant", || "x".repeat(2 << 20)),
    ("handle-hoard", || {
        let mut kept = Vec::new();
        loop {
            kept.push(model().create_queue());
        }
    }),
    ("pass-hoard", || {
        let queue = model().create_queue();
        let mut kept = Vec::new();
        loop {
            kept.push(forward::create_forward_pass(&queue));
        }
    }),
    // More work at once than one instance may queue, and nobody who waits for it.
    ("execute-flood", || {
        let queue = model().create_queue();
        let page = api::allocate_resources(&queue, 0, 1)[0];
        for _ in 0..400 {
            let pass = forward::create_forward_pass(&queue);
            forward::input_tokens(&pass, &[1], &[0]);
            forward::kv_cache(&pass, &[page], 1);
            forward::output_tokens(&pass, &[0], 0.0);
            let _ = pass.execute();
        }
        "executed".to_string()
    }),
    ("page-hoard", || {
        let queue = model().create_queue();
        loop {
            api::allocate_resources(&queue, 0, 64);
        }
    }),
    ("page-keep", || {
        let queue = model().create_queue();
        let pages = api::allocate_resources(&queue, 0, 64);
        message::send(&format!("{} pages", pages.len()));
        std::thread::sleep(Duration::from_secs(1 << 40));
        "survived".to_string()
    }),
    ("input-giant", || {
        let pass = forward::create_forward_pass(&model().create_queue());
        let tokens = vec![1u32; 1 << 22];
        forward::input_tokens(&pass, &tokens, &tokens);
        let _ = pass.execute();
        "survived".to_string()
    }),
    ("tokenize-giant", || tokenize(64 << 20)),
    // As much as is allowed, of the kind that costs a byte-pair encoder most: one word without a break.
    ("tokenize-large", || tokenize(4 << 20)),
    ("vocabulary-flood", || {
        let tokenizer = tokenize::get_tokenizer(&model());
        for _ in 0..8 {
            let _ = tokenizer.get_vocabs();
        }
        "read".to_string()
    }),
    ("store-flood", || {
        // Each is synced to the disk: few and large ones fill the quota soonest.
        let value = "x".repeat(1 << 19);
        for i in 0..10_000_000 {
            api::kvs::store_set(&format!("flood {i}"), &value);
        }
        "survived".to_string()
    }),
    ("store-giant", || {
        api::kvs::store_set("giant", &"x".repeat(24 << 20));
        "survived".to_string()
    }),
    ("subscribe-hoard", || {
        let mut kept = Vec::new();
        loop {
            kept.push(message::subscribe(&format!("topic {}", kept.len())));
        }
    }),
    ("broadcast-flood", || {
        let _slow = message::subscribe("flood");
        for i in 0..50_000 {
            message::broadcast("flood", &format!("{i}"));
        }
        "sent".to_string()
    }),
    ("receive-forever", || {
        message::receive().pollable().block();
        "survived".to_string()
    }),
];

fn tokenize(bytes: usize) -> String {
    let tokens = tokenize::get_tokenizer(&model()).tokenize(&"ab".repeat(bytes / 2));
    format!("{} tokens", tokens.len())
}

pub fn model() -> api::Model {
    let name = api::runtime::get_all_models().swap_remove(0);
    api::runtime::get_model(&name).expect("a listed model is there")
}
