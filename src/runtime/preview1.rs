//! Programs of the preview-1 era: Rust up to 1.90 puts an adapter between the program and WASI 0.2, and it runs as is.

use super::tests::{Bench, ending};
use super::{Ending, Quotas};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const WORLD: &str = r#"
    package inferlet:core;
    interface run { run: func() -> result<_, string>; }
    interface runtime { set-return: func(value: string); }
    world guest { import runtime; export run; }
"#;

/// What std calls before and around `main`, each answer checked, and a line on standard output.
const PROGRAM: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_get" (func $fd_prestat_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
    (import "inferlet:core/runtime" "set-return" (func $set_return (param i32 i32)))
    (memory (export "memory") 8)
    (global $top (mut i32) (i32.const 0x20000))
    (data (i32.const 64) "a line\n") (data (i32.const 80) "it ran")
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (global.set $top (i32.and (i32.add (global.get $top) (i32.sub (local.get 2) (i32.const 1)))
                                  (i32.sub (i32.const 0) (local.get 2))))
        (global.get $top)
        (global.set $top (i32.add (global.get $top) (local.get 3))))
    (func $must (param $got i32) (param $want i32)
        (if (i32.ne (local.get $got) (local.get $want)) (then unreachable)))
    (func (export "inferlet:core/run#run") (result i32)
        (call $must (call $environ_sizes_get (i32.const 256) (i32.const 260)) (i32.const 0))
        (call $must (i32.load (i32.const 256)) (i32.const 0))
        (call $must (call $args_sizes_get (i32.const 256) (i32.const 260)) (i32.const 0))
        (call $must (i32.load (i32.const 256)) (i32.const 3))
        (call $must (call $random_get (i32.const 272) (i32.const 64)) (i32.const 0))
        (call $must (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 512)) (i32.const 0))
        (call $must (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 520)) (i32.const 0))
        ;; No directory is open: EBADF.
        (call $must (call $fd_prestat_get (i32.const 3) (i32.const 256)) (i32.const 8))
        (i32.store (i32.const 600) (i32.const 64)) (i32.store (i32.const 604) (i32.const 7))
        (call $must (call $fd_write (i32.const 1) (i32.const 600) (i32.const 1) (i32.const 608)) (i32.const 0))
        (call $must (i32.load (i32.const 608)) (i32.const 7))
        ;; Sleep a millisecond: a clock subscription, which waits in the host.
        (i64.store (i32.const 1024) (i64.const 1)) (i32.store8 (i32.const 1032) (i32.const 0))
        (i32.store (i32.const 1040) (i32.const 1)) (i64.store (i32.const 1048) (i64.const 1000000))
        (call $must (call $poll_oneoff (i32.const 1024) (i32.const 1152) (i32.const 1) (i32.const 1280)) (i32.const 0))
        (call $set_return (i32.const 80) (i32.const 6))
        (i32.const 16))
    (func (export "cabi_post_inferlet:core/run#run") (param i32)))"#;

fn component() -> Vec<u8> {
    let mut module = wat::parse_str(PROGRAM).expect("sound text");
    let mut resolve = Resolve::default();
    let package = resolve.push_str("world.wit", WORLD).expect("sound WIT");
    let world = resolve.select_world(&[package], Some("guest")).expect("the world");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("metadata");
    let adapter = wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER;
    ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.adapter("wasi_snapshot_preview1", adapter))
        .and_then(|mut encoder| encoder.encode())
        .expect("a component")
}

#[test]
fn a_program_behind_the_adapter_runs_as_it_is() {
    let bench = Bench::new(1, Quotas::default());
    let component = component();
    let (_, events) = bench.launch(&component, &["two", "arguments"]);
    assert_eq!(ending(&events), Ending::Completed("it ran".into()));
}

/// A real component, cut and damaged at seeded places: refused or read, never a panic.
#[test]
fn damage_to_a_real_component_never_panics() {
    let seed = 0xda3a;
    println!("seed {seed:#x}");
    let mut random = crate::model::toy::Random::new(seed);
    let whole = component();
    for _ in 0..300 {
        let len = random.below(whole.len());
        let _ = crate::program::Code::of(&whole[..len]).map(|_| ());
        let mut damaged = whole.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(damaged.len());
            damaged[at] = random.next() as u8;
        }
        let _ = crate::program::Code::of(&damaged).map(|_| ());
    }
}
