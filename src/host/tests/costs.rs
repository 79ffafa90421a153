//! What calls cost a guest: work of the host is charged in proportion, and a long answer comes in pieces.

use super::*;
use crate::host::bed::PAGES;
use crate::runtime::slice::SLICE_FUEL;

const RANDOM: &str = "wasi:random/random@0.2.0";
const OUTPUT: &str = "wasi:io/streams@0.2.0";

/// Fuel of a call.
fn fuel(bed: &mut Bed, place: &str, name: &str, arguments: &[&[Val]]) -> u64 {
    let before = bed.store.get_fuel().unwrap();
    bed.forget_answers();
    bed.call(place, name, arguments).unwrap_or_else(|trap| panic!("{name}: {trap}"));
    before - bed.store.get_fuel().unwrap() + std::mem::take(&mut bed.cx().owed_fuel)
}

/// Each with the fuel that its work is worth: some units of something, so much for each.
#[test]
fn work_of_the_host_is_charged_in_proportion() {
    let mut bed = Bed::new();
    let mut told = Vec::new();
    let mut told_of = |name: &str, units: usize, each: u64, spent: u64| {
        let least = units as u64 * each;
        told.push(format!("{name}: {spent} for {units}"));
        assert!(spent >= least, "{name}: {spent} for {units} at {each}");
        assert!(spent < 20 * least + 2_000, "{name}: {spent} for {units} at {each}, far too much");
    };
    let (model, queue) = (model(&mut bed), queue(&mut bed));
    let tokenizer = number(bed.call(TOKENIZE, "get-tokenizer", &[&model]).unwrap());

    let text = bed.text(&"ab ".repeat(4_000));
    told_of(
        "tokenize",
        12_000,
        16,
        fuel(&mut bed, TOKENIZE, "[method]tokenizer.tokenize", &[&tokenizer, &text]),
    );
    let tokens = bed.list(&[5; 9_000]);
    let spent = fuel(&mut bed, TOKENIZE, "[method]tokenizer.detokenize", &[&tokenizer, &tokens]);
    told_of("detokenize", 9_000, 16, spent);
    let words = bed.store.data().model.tokenizer.vocabulary().count();
    told_of("vocabulary", words, 32, fuel(&mut bed, TOKENIZE, "[method]tokenizer.get-vocabs", &[&tokenizer]));

    // A mask costs by its rows where they are short, and its runs again when it is used.
    let pass = number(bed.call(FORWARD, "create-forward-pass", &[&queue]).unwrap());
    let mask = bed.lists(&vec![vec![1]; 2_000]);
    told_of("attention-mask", 2_000, 32, fuel(&mut bed, FORWARD, "attention-mask", &[&pass, &mask]));
    let [count, kind] = [number(u64::from(PAGES)), number(0)];
    let spent = fuel(&mut bed, COMMON, "allocate-resources", &[&queue, &kind, &count]);
    told_of("allocate", PAGES as usize, 32, spent);
    let pages: Vec<u32> = (0..PAGES).collect();
    // An import costs by what it gives, of which the call says nothing; the list by its names and their bytes.
    let (names, name) = (bed.list(&[0; 3_000]), bed.text("x"));
    bed.call(COMMON, "export-resources", &[&queue, &kind, &names, &name]).unwrap();
    let name = bed.text("x");
    let spent = fuel(&mut bed, COMMON, "import-resources", &[&queue, &kind, &name]);
    told_of("import", 3_000, 64, spent);
    let imported: Vec<u32> = (PAGES..PAGES + 3_000).collect();
    let names = bed.list(&imported);
    bed.call(COMMON, "deallocate-resources", &[&queue, &kind, &names]).unwrap();
    for i in 0..200 {
        let (names, name) = (bed.list(&[]), bed.text(&format!("{i:01000}")));
        bed.call(COMMON, "export-resources", &[&queue, &kind, &names, &name]).unwrap();
    }
    let spent = fuel(&mut bed, COMMON, "get-all-exported-resources", &[&queue, &kind]);
    told_of("exports", 200_000, 3, 16 * spent);
    for name in (0..200).map(|i| format!("{i:01000}")).chain(["x".to_owned()]) {
        let name = bed.text(&name);
        bed.call(COMMON, "release-exported-resources", &[&queue, &kind, &name]).unwrap();
    }
    let names = bed.list(&pages);
    let spent = fuel(&mut bed, FORWARD, "kv-cache", &[&pass, &names, &number(4)]);
    told_of("kv-cache", 1, 64, spent);
    let inputs: Vec<u32> = (0..2).collect();
    let (tokens, positions) = (bed.list(&inputs), bed.list(&inputs));
    bed.call(FORWARD, "input-tokens", &[&pass, &tokens, &positions]).unwrap();
    let slots = 4 * PAGES;
    let runs = |slots: u32| -> Vec<u32> { vec![1; slots as usize] };
    let mask = bed.lists(&[runs(slots - 1), runs(slots)]);
    bed.call(FORWARD, "attention-mask", &[&pass, &mask]).unwrap();
    let spent = fuel(&mut bed, FORWARD, "[method]forward-pass.execute", &[&pass]);
    told_of("execute", 2 * slots as usize, 4, spent);
    let names = bed.list(&pages);
    let spent = fuel(&mut bed, COMMON, "deallocate-resources", &[&queue, &kind, &names]);
    told_of("deallocate", PAGES as usize, 32, spent);
    told_of("set-priority", 1, 256, fuel(&mut bed, COMMON, "[method]queue.set-priority", &[&queue, &kind]));

    for i in 0..300 {
        let (key, value) = (bed.text(&format!("key {i}")), bed.text("v"));
        bed.call(KVS, "store-set", &[&key, &value]).unwrap();
    }
    told_of("list-keys", 300, 16, fuel(&mut bed, KVS, "store-list-keys", &[]));
    let key = bed.text("key 7");
    told_of("store-get", 1, 4_000, fuel(&mut bed, KVS, "store-get", &[&key]));

    let topic = bed.text("t");
    for _ in 0..100 {
        bed.call(MESSAGE, "subscribe", &[&topic]).unwrap();
    }
    let (topic, post) = (bed.text("t"), bed.text("x"));
    told_of("broadcast", 100, 64, fuel(&mut bed, MESSAGE, "broadcast", &[&topic, &post]));
    told_of("receive", 1, 256, fuel(&mut bed, MESSAGE, "receive", &[]));
    let question = bed.text("list_running_instances");
    told_of("debug-query", 1, 12_500, fuel(&mut bed, RUNTIME, "debug-query", &[&question]));
    let len = [Val::I64(100_000)];
    told_of("random", 100_000, 2, fuel(&mut bed, RANDOM, "get-random-bytes", &[&len]));

    let output = number(bed.call("wasi:cli/stdout@0.2.0", "get-stdout", &[]).unwrap());
    let lines = bed.text(&"a\n".repeat(1_000));
    let spent = fuel(&mut bed, OUTPUT, "[method]output-stream.write", &[&output, &lines]);
    told_of("lines", 1_000, 4_000, spent);
    println!("{}", told.join("\n"));
}

/// The story: one call that answered with many megabytes held its thread for all of them.
#[test]
fn a_long_answer_comes_in_pieces_and_whole() {
    let mut bed = Bed::new();
    let bytes: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let blob = bed.bytes(&bytes);
    let blob = number(bed.call(COMMON, "[constructor]blob", &[&blob]).unwrap());
    let at = bed.call(COMMON, "[method]blob.read", &[&blob, &[Val::I64(7)], &[Val::I64(4_999_000)]]).unwrap();
    assert!(bed.bytes_at(at) == bytes[7..4_999_007], "whole, in order");
    assert!(bed.goes >= 4, "{} goes", bed.goes);
    // A list of numbers, likewise.
    bed.forget_answers();
    let (model, text) = (model(&mut bed), "a".repeat(2_000_000));
    let tokenizer = number(bed.call(TOKENIZE, "get-tokenizer", &[&model]).unwrap());
    let tokens: Vec<u32> =
        bed.store.data().model.tokenizer.encode(&text).iter().map(|token| token.0).collect();
    let text = bed.text(&text);
    let at = bed.call(TOKENIZE, "[method]tokenizer.tokenize", &[&tokenizer, &text]).unwrap();
    assert!(bed.list_at(at) == tokens, "whole, in order");
    let pieces = (tokens.len() * 4).div_ceil(1 << 20);
    assert!((pieces - 1..=pieces).contains(&bed.goes), "{} goes for {pieces} pieces", bed.goes);
}

/// Work that is more than what is left of the slice ends it, and is owed.
#[test]
fn what_a_slice_cannot_pay_is_owed() {
    let mut bed = Bed::new();
    let len = [Val::I64(1_000_000)];
    bed.store.set_fuel(SLICE_FUEL).unwrap();
    bed.call(RANDOM, "get-random-bytes", &[&len]).unwrap();
    assert_eq!(bed.store.get_fuel().unwrap(), 0);
    assert!(bed.cx().owed_fuel >= 2_000_000 - SLICE_FUEL, "{}", bed.cx().owed_fuel);
}

/// The story: a mask of 1.4 million rows, each an allocation, was lifted in one go of 0.2 s, and 32 MiB of anything in one
/// of 20 ms.
#[test]
fn a_long_argument_comes_in_pieces_and_whole_or_not_at_all() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pass = number(bed.call(FORWARD, "create-forward-pass", &[&queue]).unwrap());
    let mask = bed.lists(&vec![vec![1]; 10_000]);
    bed.call(FORWARD, "attention-mask", &[&pass, &mask]).unwrap();
    assert!((9..20).contains(&bed.goes), "{} goes", bed.goes);
    assert!(held(&mut bed) >= 10_000 * 56, "each row is an allocation");
    let text: Vec<u8> = (0..5 << 20).map(|i| (i % 251) as u8).collect();
    let bytes = bed.bytes(&text);
    let blob = number(bed.call(COMMON, "[constructor]blob", &[&bytes]).unwrap());
    assert!((4..10).contains(&bed.goes), "{} goes", bed.goes);
    let range = [Val::I64(3 << 20), Val::I64(1000)];
    let at = bed.call(COMMON, "[method]blob.read", &[&blob, &range]).unwrap();
    assert_eq!(bed.bytes_at(at), text[3 << 20..(3 << 20) + 1000]);

    let before = held(&mut bed);
    let many = [Val::I32(4096), Val::I32(200_000)];
    let sentence = bed.sentence(FORWARD, "attention-mask", &[&pass, &many]);
    assert!(sentence.contains("200000 attention mask rows; at most 131072"), "{sentence}");
    // Rows that share one memory: short to say, long to copy.
    let long = bed.list(&[4096, 0x4_0000].repeat(1000));
    let sentence = bed.sentence(FORWARD, "attention-mask", &[&pass, &[long[0].clone(), Val::I32(1000)]]);
    let most = format!("more than {} bytes, the most one call may pass", crate::limits::LIFTED_BYTES);
    assert!(sentence.contains(&most) && sentence.contains("attention-mask"), "{sentence}");
    let sentence = bed.sentence(RUNTIME, "get-all-models-with-traits", &[&[Val::I32(4096), Val::I32(9000)]]);
    assert!(sentence.contains("more than 8192 lists or handles"), "{sentence}");
    assert_eq!(held(&mut bed), before, "what was not taken is not held");
}

/// The story: a request in the making held 24 KB of texts that counted nowhere, 65,536 times.
#[test]
fn the_texts_of_a_request_in_the_making_are_counted() {
    const HTTP: &str = "wasi:http/types@0.2.0";
    let mut bed = Bed::new();
    let fields = number(bed.call(HTTP, "[constructor]fields", &[]).unwrap());
    let request = number(bed.call(HTTP, "[constructor]outgoing-request", &[&fields]).unwrap());
    let before = held(&mut bed);
    for (name, text, valid) in [
        ("set-path-with-query", "/".repeat(8000), true),
        ("set-path-with-query", "/".repeat(7000), true),
        ("set-path-with-query", "/".repeat(9000), false),
        ("set-authority", "a".repeat(500), true),
    ] {
        let text = bed.text(&text);
        let set = bed.call(HTTP, &format!("[method]outgoing-request.{name}"), &[&request, &number(1), &text]);
        assert_eq!(set, Ok(u64::from(!valid)), "{name}");
    }
    assert_eq!(held(&mut bed), before + 7500);
    bed.drop_handle(HTTP, "outgoing-request", request[0].i32().unwrap() as u32).unwrap();
    assert_eq!(held(&mut bed), 0);
}
