//! Faults below the SDK: the interfaces imported by hand, called with pointers, lengths and handles no
//! bindings would pass. Names and signatures are those of the canonical ABI.

use crate::Mode;
use inferlet::api;

const WILD: u32 = 0xFFFF_FFF0;
/// Far outside the memory, and aligned.
const FAR: u32 = 0x7000_0000;

#[link(wasm_import_module = "inferlet:core/message")]
unsafe extern "C" {
    #[link_name = "send"]
    fn send(text: u32, length: u32);
    #[link_name = "receive"]
    fn receive() -> u32;
    #[link_name = "send-blob"]
    fn send_blob(blob: u32);
    #[link_name = "[method]receive-result.get"]
    fn receive_get(receive: u32, result: u32);
    #[link_name = "[resource-drop]receive-result"]
    fn receive_drop(receive: u32);
}

#[link(wasm_import_module = "inferlet:core/common")]
unsafe extern "C" {
    #[link_name = "[method]model.get-name"]
    fn model_name(model: u32, result: u32);
    #[link_name = "[resource-drop]model"]
    fn model_drop(model: u32);
    #[link_name = "[method]queue.set-priority"]
    fn set_priority(queue: u32, priority: u32);
    #[link_name = "deallocate-resources"]
    fn deallocate(queue: u32, kind: u32, list: u32, length: u32);
    #[link_name = "[method]blob.read"]
    fn blob_read(blob: u32, offset: u64, n: u64, result: u32);
}

#[link(wasm_import_module = "inferlet:core/forward")]
unsafe extern "C" {
    #[link_name = "input-tokens"]
    fn input_tokens(pass: u32, tokens: u32, tokens_length: u32, positions: u32, positions_length: u32);
    #[link_name = "attention-mask"]
    fn attention_mask(pass: u32, rows: u32, length: u32);
    #[link_name = "output-distributions"]
    fn output_distributions(pass: u32, indices: u32, length: u32, temperature: f32, some: u32, top_k: u32);
}

#[link(wasm_import_module = "wasi:io/poll@0.2.0")]
unsafe extern "C" {
    #[link_name = "[method]pollable.block"]
    fn pollable_block(pollable: u32);
}

#[link(wasm_import_module = "wasi:io/poll@0.2.12")]
unsafe extern "C" {
    #[link_name = "poll"]
    fn poll(pollables: u32, length: u32, result: u32);
}

pub const MODES: &[Mode] = &[
    ("pointer-text", || call(|| unsafe { send(WILD, 64) })),
    ("pointer-far", || call(|| unsafe { send(FAR, 1) })),
    ("length-text", || call(|| unsafe { send(16, u32::MAX) })),
    ("length-wraps", || call(|| unsafe { send(WILD, 0x20) })),
    ("text-not-utf8", || {
        let bytes = [0x66u8, 0xFF, 0xC0, 0x80];
        call(|| unsafe { send(bytes.as_ptr() as u32, 4) })
    }),
    ("pointer-result", || call(|| unsafe { model_name(model(), WILD) })),
    ("pointer-result-unaligned", || call(|| unsafe { model_name(model(), 1025) })),
    ("pointer-list", || call(|| unsafe { input_tokens(pass(), FAR, 4, FAR, 4) })),
    ("pointer-list-unaligned", || call(|| unsafe { input_tokens(pass(), 1025, 1, 1025, 1) })),
    ("length-list", || call(|| unsafe { input_tokens(pass(), 1024, u32::MAX, 1024, u32::MAX) })),
    // 0x4000_0001 elements of 4 bytes are 4 bytes if the product wraps.
    ("length-list-wraps", || call(|| unsafe { input_tokens(pass(), 1024, 0x4000_0001, 1024, 0x4000_0001) })),
    ("pointer-nested", || {
        let row = [FAR, 4];
        call(|| unsafe { attention_mask(pass(), row.as_ptr() as u32, 1) })
    }),
    ("length-nested", || {
        // Many rows that share one memory: short to say, long to copy.
        let rows = vec![[0u32, 0x1_0000]; 0x8000];
        call(|| unsafe { attention_mask(pass(), rows.as_ptr() as u32, rows.len() as u32) })
    }),
    ("option-tag", || call(|| unsafe { output_distributions(pass(), 1024, 1, 0.0, 2, 5) })),
    ("enum-tag", || call(|| unsafe { set_priority(queue(), 77) })),
    ("handle-unknown", || call(|| unsafe { model_name(4711, 1024) })),
    ("handle-zero", || call(|| unsafe { model_name(0, 1024) })),
    ("handle-max", || call(|| unsafe { model_name(u32::MAX, 1024) })),
    ("handle-other-kind", || call(|| unsafe { model_name(queue(), 1024) })),
    ("handle-dropped", || {
        let model = model();
        call(|| unsafe {
            model_drop(model);
            model_name(model, 1024)
        })
    }),
    ("handle-dropped-twice", || {
        let model = model();
        call(|| unsafe {
            model_drop(model);
            model_drop(model)
        })
    }),
    ("handle-drop-other-kind", || call(|| unsafe { model_drop(queue()) })),
    ("handle-blob", || call(|| unsafe { send_blob(4711) })),
    ("handle-block", || call(|| unsafe { pollable_block(4711) })),
    ("receive-dropped", || {
        call(|| unsafe {
            let receive = receive();
            receive_drop(receive);
            receive_get(receive, 1024)
        })
    }),
    ("deallocate-list", || call(|| unsafe { deallocate(queue(), 0, FAR, 0x1000_0000) })),
    ("poll-empty", || call(|| unsafe { poll(1024, 0, 1024) })),
    ("poll-unknown", || {
        let handles = [4711u32];
        let result = [0u32; 2];
        call(|| unsafe { poll(handles.as_ptr() as u32, 1, result.as_ptr() as u32) })
    }),
    ("poll-length", || call(|| unsafe { poll(1024, u32::MAX, 1024) })),
    // Reading past a blob's end is allowed and gives what there is.
    ("blob-past-end", || {
        let blob = api::Blob::new(&[1, 2, 3]);
        format!(
            "{} {} {}",
            blob.read(1, u64::MAX).len(),
            blob.read(3, 1).len(),
            blob.read(u64::MAX, u64::MAX).len()
        )
    }),
    ("blob-result-pointer", || {
        let blob = api::Blob::new(&[1, 2, 3]);
        call(|| unsafe { blob_read(blob.handle(), 0, 3, WILD) })
    }),
];

fn call(wrong: impl FnOnce()) -> String {
    wrong();
    "survived".to_string()
}

fn open() -> api::Model {
    let name = api::runtime::get_all_models().swap_remove(0);
    api::runtime::get_model(&name).expect("a listed model is there")
}

/// Handles that live as long as the program.
fn model() -> u32 {
    open().take_handle()
}

fn queue() -> u32 {
    open().create_queue().take_handle()
}

fn pass() -> u32 {
    api::forward::create_forward_pass(&open().create_queue()).take_handle()
}
