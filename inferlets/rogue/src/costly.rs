//! Host calls that cost the host more than the crossing, each again and again without end: only fuel ends them.

use crate::Mode;
use crate::crowd::model;
use inferlet::api::{self, forward, message, tokenize};
use std::io::Write;

pub const MODES: &[Mode] = &[
    ("endless-tokenize", || {
        let tokenizer = tokenize::get_tokenizer(&model());
        let text = "ab".repeat(8 << 10);
        endless(|| tokenizer.tokenize(&text))
    }),
    ("endless-detokenize", || {
        let tokenizer = tokenize::get_tokenizer(&model());
        let tokens = [1u32; 1 << 10];
        endless(|| tokenizer.detokenize(&tokens))
    }),
    ("endless-vocabulary", || {
        let tokenizer = tokenize::get_tokenizer(&model());
        endless(|| tokenizer.get_vocabs())
    }),
    ("endless-mask", || {
        let pass = forward::create_forward_pass(&model().create_queue());
        let mask = vec![vec![1u32]; 10_000];
        endless(|| forward::attention_mask(&pass, &mask))
    }),
    ("endless-pages", || {
        let queue = model().create_queue();
        endless(|| {
            let pages = api::allocate_resources(&queue, 0, 32);
            api::deallocate_resources(&queue, 0, &pages);
        })
    }),
    ("endless-priority", || {
        let queue = model().create_queue();
        endless(|| queue.set_priority(api::Priority::High))
    }),
    ("endless-receive", || endless(message::receive)),
    ("endless-broadcast", || {
        let _heard: Vec<_> = (0..64).map(|_| message::subscribe("all")).collect();
        endless(|| message::broadcast("all", "x"))
    }),
    ("endless-keys", || endless(api::kvs::store_list_keys)),
    ("endless-questions", || endless(|| api::runtime::debug_query("list_running_instances"))),
    ("endless-lines", || endless(|| std::io::stdout().write_all(b"a\nb\nc\n"))),
    ("endless-blob", || {
        let blob = api::Blob::new(&vec![7; 1 << 20]);
        endless(|| blob.read(0, 1 << 20))
    }),
];

fn endless<R>(mut call: impl FnMut() -> R) -> String {
    loop {
        drop(call());
    }
}
