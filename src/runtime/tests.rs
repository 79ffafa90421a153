//! Guests, whole: small components in text form, run by real workers beside a parroting engine.

mod quotas;

use super::instance::Built;
use super::slice::Guest;
use super::*;
use crate::host::bed::House;
use crate::model::toy::Toy;
use crate::program::Program;
use smol::channel::bounded;
use std::time::Duration;

/// What a guest of the tests imports: interface, function, its component type, its core parameters and results.
type Import<'a> = (&'a str, &'a str, &'a str, &'a str);

const SET_RETURN: Import<'_> =
    ("inferlet:core/runtime", "set-return", r#"(param "value" string)"#, "(param i32 i32)");
const ARGUMENTS: Import<'_> =
    ("inferlet:core/runtime", "get-arguments", "(result (list string))", "(param i32)");
const STORE_SET: Import<'_> = (
    "inferlet:core/kvs",
    "store-set",
    r#"(param "key" string) (param "value" string)"#,
    "(param i32 i32 i32 i32)",
);
const SEND: Import<'_> = ("inferlet:core/message", "send", r#"(param "message" string)"#, "(param i32 i32)");
const EXIT: Import<'_> = ("wasi:cli/exit@0.2.0", "exit", r#"(param "status" (result))"#, "(param i32)");

/// An allocator that never takes anything back.
const ALLOCATOR: &str = r#"(func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (global.set $top (i32.and (i32.add (global.get $top) (i32.sub (local.get 2) (i32.const 1)))
                              (i32.sub (i32.const 0) (local.get 2))))
    (global.get $top)
    (global.set $top (i32.add (global.get $top) (local.get 3))))"#;

/// A component: memory and allocator in one module, `body` in another. The body's `run` answers a pointer to its
/// result; zeroes at 16 are `ok`.
fn component(imports: &[Import<'_>], allocator: &str, body: &str) -> Vec<u8> {
    let each = |part: &dyn Fn(usize, &Import<'_>) -> String| -> String {
        imports.iter().enumerate().map(|(i, import)| part(i, import)).collect()
    };
    let mut exports = std::collections::BTreeMap::<&str, String>::new();
    for (from, name, ty, _) in imports {
        *exports.entry(from).or_default() += &format!(r#"(export "{name}" (func {ty}))"#);
    }
    let interfaces: String = exports
        .iter()
        .map(|(from, exports)| format!(r#"(import "{from}" (instance $"{from}" {exports}))"#))
        .collect();
    let text = format!(
        r#"(component
            {}
            (core module $mem
                (memory (export "memory") 2)
                (global $top (mut i32) (i32.const 0x10000))
                {allocator})
            (core instance $mem (instantiate $mem))
            (alias core export $mem "memory" (core memory $memory))
            {}
            (core module $main
                (import "mem" "memory" (memory 2))
                {}
                {body})
            (core instance $main (instantiate $main
                (with "mem" (instance $mem))
                (with "host" (instance {}))))
            (func $run (result (result (error string)))
                (canon lift (core func $main "run") (memory $memory)))
            (instance $entry (export "run" (func $run)))
            (export "inferlet:core/run" (instance $entry)))"#,
        interfaces,
        each(&|i, (from, name, ..)| format!(
            r#"(core func $f{i} (canon lower (func $"{from}" "{name}") (memory $memory) (realloc (core func $mem "realloc"))))"#
        )),
        each(&|_, (_, name, _, core)| format!(r#"(import "host" "{name}" (func ${name} {core}))"#)),
        each(&|i, (_, name, ..)| format!(r#"(export "{name}" (func $f{i}))"#)),
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A component of which only the body of `run` matters.
fn simple(imports: &[Import<'_>], run: &str) -> Vec<u8> {
    let data = r#"(data (i32.const 64) "hello, world") (data (i32.const 128) "a\ff\fe")"#;
    component(
        imports,
        ALLOCATOR,
        &format!(r#"{data} (func $run (export "run") (result i32) {run} (i32.const 16))"#),
    )
}

pub struct Bench {
    runtime: Runtime,
    house: House,
}

impl Bench {
    pub fn new(threads: usize, quotas: Quotas) -> Bench {
        let house = House::new();
        let runtime = Runtime::new(RuntimeParts {
            engine: house.engine.clone(),
            model: Toy::default().model(),
            workers: Workers::start(threads).unwrap(),
            exchange: house.exchange.clone(),
            quotas,
            outgoing: crate::outgoing::outgoing(Default::default()).0,
            seed: Some(1),
        });
        Bench { runtime, house }
    }

    pub fn launch(&self, component: &[u8], arguments: &[&str]) -> (InstanceId, events::Receiver) {
        let (events, receiver) = events::bounded(4);
        let program = Program::of(component).unwrap_or_else(|rejected| panic!("{rejected}"));
        let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
        let quotas = *self.runtime.quotas();
        let launch = Launch {
            program,
            arguments,
            subject: Subject::everyone(),
            quotas,
            http: Default::default(),
            events,
        };
        let prepared = self.runtime.prepare(launch).unwrap();
        let id = prepared.id();
        prepared.start();
        (id, receiver)
    }

    fn prepare(&self, subject: &str, quotas: Quotas) -> Result<(Prepared, events::Receiver), LaunchRefusal> {
        let (events, receiver) = events::bounded(1);
        let program = Program::of(&simple(&[], "")).unwrap();
        let (subject, http) = (Subject::new(subject), Default::default());
        let launch = Launch { program, arguments: vec![], subject, quotas, http, events };
        self.runtime.prepare(launch).map(|prepared| (prepared, receiver))
    }

    fn ending(&self, component: &[u8]) -> Ending {
        ending(&self.launch(component, &[]).1)
    }
}

/// Reads all events; checks that the last one, and only that, is the ending.
pub fn ending(events: &events::Receiver) -> Ending {
    let next = || smol::block_on(events.recv());
    loop {
        match next().expect("an ending").what {
            What::Ended(ending) => {
                assert!(next().is_err(), "nothing follows the ending");
                return ending;
            }
            What::Message(_) | What::Blob(_) => {}
        }
    }
}

fn bench() -> Bench {
    Bench::new(1, Quotas::default())
}

fn exception(text: &str) -> Ending {
    Ending::Exception(text.to_owned())
}

#[test]
fn a_guest_returns_what_it_set() {
    let run = "(call $set-return (i32.const 64) (i32.const 12))";
    assert_eq!(bench().ending(&simple(&[SET_RETURN], run)), Ending::Completed("hello, world".into()));
    assert_eq!(bench().ending(&simple(&[], "")), Ending::Completed("".into()));
}

#[test]
fn errors_and_exits_end_as_the_contract_says() {
    let bench = bench();
    // result<_, string>: tag 1, then pointer and length.
    let fail = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 20) (i32.const 64)) \
                (i32.store (i32.const 24) (i32.const 5))";
    assert_eq!(bench.ending(&simple(&[], fail)), exception("Runtime error: hello"));
    let exit = |status| simple(&[EXIT], &format!("(call $exit (i32.const {status})) unreachable"));
    assert_eq!(bench.ending(&exit(0)), Ending::Completed("".into()));
    assert_eq!(bench.ending(&exit(1)), exception("Runtime error: the program exited with an error"));
    let abort = bench.ending(&simple(&[], "unreachable"));
    assert!(abort.message().starts_with("Runtime error: Call error: the program aborted"), "{abort:?}");
    let wild = bench.ending(&simple(&[], "(drop (i32.load (i32.const -4)))"));
    assert_eq!(wild, exception("Runtime error: Call error: out of bounds memory access"));
    // A result pointer that lies outside memory, or is not aligned, or whose tag is no case.
    for (pointer, tag) in [("-8", 0), ("18", 0), ("131068", 0), ("16", 2)] {
        let body = format!(
            r#"(func (export "run") (result i32) (i32.store8 (i32.const 16) (i32.const {tag})) (i32.const {pointer}))"#
        );
        let ending = bench.ending(&component(&[], ALLOCATOR, &body));
        assert!(ending.message().starts_with("Runtime error: Call error: "), "{pointer}: {ending:?}");
    }
}

#[test]
fn what_never_ends_is_ended() {
    let bench = bench();
    let (spinning, spinning_events) = bench.launch(&simple(&[], "(loop (br 0))"), &[]);
    let (waiting, waiting_events) = bench.launch(&waits(), &[]);
    // Beside both, on the one thread, others complete.
    assert_eq!(bench.ending(&simple(&[], "")), Ending::Completed("".into()));
    assert_eq!(bench.runtime.directory().count(), 2);
    bench.runtime.end(spinning, Ending::Aborted);
    bench.runtime.end(spinning, Ending::Disconnected);
    bench.runtime.end(waiting, Ending::evicted());
    assert_eq!(ending(&spinning_events), Ending::Aborted, "the first decision counts");
    assert_eq!(ending(&waiting_events).code(), 5);
    assert_eq!(bench.runtime.directory().count(), 0);
}

/// Waits for a message that does not come.
fn waits() -> Vec<u8> {
    wat::parse_str(
        r#"(component
            (import "wasi:io/poll@0.2.0" (instance $poll
                (export "pollable" (type $pollable (sub resource)))
                (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
            (alias export $poll "pollable" (type $pollable))
            (import "inferlet:core/message" (instance $message
                (export "receive-result" (type $result (sub resource)))
                (alias outer 1 $pollable (type $outer))
                (export "pollable" (type $pollable (eq $outer)))
                (export "receive" (func (result (own $result))))
                (export "[method]receive-result.pollable" (func (param "self" (borrow $result)) (result (own $pollable))))))
            (core func $block (canon lower (func $poll "[method]pollable.block")))
            (core func $receive (canon lower (func $message "receive")))
            (core func $pollable (canon lower (func $message "[method]receive-result.pollable")))
            (core module $main
                (import "host" "block" (func $block (param i32)))
                (import "host" "receive" (func $receive (result i32)))
                (import "host" "pollable" (func $pollable (param i32) (result i32)))
                (memory (export "memory") 1)
                (func (export "run") (result i32) (call $block (call $pollable (call $receive))) (i32.const 16)))
            (core instance $main (instantiate $main (with "host" (instance
                (export "block" (func $block)) (export "receive" (func $receive)) (export "pollable" (func $pollable))))))
            (alias core export $main "memory" (core memory $memory))
            (func $run (result (result (error string))) (canon lift (core func $main "run") (memory $memory)))
            (instance $entry (export "run" (func $run)))
            (export "inferlet:core/run" (instance $entry)))"#,
    )
    .unwrap()
}

#[test]
fn a_waiting_guest_goes_on_when_its_message_comes() {
    let bench = bench();
    let (id, events) = bench.launch(&waits(), &[]);
    bench.runtime.signal(id, "go".into());
    assert_eq!(ending(&events), Ending::Completed("".into()));
    bench.runtime.signal(id, "too late: ignored".into());
}

#[test]
fn a_full_mailbox_ends_the_instance() {
    let bench = bench();
    // It reads nothing; whether it has run yet does not matter.
    let (id, events) = bench.launch(&simple(&[], "(loop (br 0))"), &[]);
    (0..=crate::limits::MAILBOX_MESSAGES).for_each(|i| bench.runtime.signal(id, i.to_string()));
    let ending = ending(&events);
    assert_eq!(ending.code(), 5);
    assert!(ending.message().contains(&crate::limits::MAILBOX_MESSAGES.to_string()), "{ending:?}");
}

#[test]
fn recursion_without_end_is_told_apart() {
    let body = r#"(func $deep (param i64) (result i64) (i64.add (call $deep (local.get 0)) (i64.const 1)))
        (func (export "run") (result i32) (drop (call $deep (i64.const 0))) (i32.const 16))"#;
    let ending = bench().ending(&component(&[], ALLOCATOR, body));
    assert_eq!(
        ending,
        exception("Runtime error: Call error: the call stack is exhausted (deep or endless recursion)")
    );
}

/// Instructions that keep a native frame until their slice ends may not be gathered until the thread's stack is full:
/// in `run`, in a start function, in an allocator.
#[test]
fn instructions_that_are_no_tail_calls_do_no_harm() {
    let bench = Bench::new(1, Quotas::default().with(Name::Fuel, 200_000_000));
    let grow = format!("(loop (i32.const 0) {} drop (br 0))", "memory.grow drop (i32.const 0)".repeat(50));
    let table =
        format!("(loop {} (br 0))", "(drop (table.grow $t (ref.null func) (i32.const 0)))".repeat(50));
    // A branch table that carries a value.
    let branch = "(i32.const 1) (loop $l (param i32) (br_table $l $l (i32.const 0)))";
    for code in [&grow, &table, branch] {
        let run = format!(r#"(table $t 1 funcref) (func (export "run") (result i32) {code} (i32.const 16))"#);
        assert_eq!(bench.ending(&component(&[], ALLOCATOR, &run)).code(), 5, "{code}");
        let start = format!(
            r#"(table $t 1 funcref) (func $start {code}) (start $start)
                (func (export "run") (result i32) (i32.const 16))"#
        );
        assert!(
            bench.ending(&component(&[], ALLOCATOR, &start)).message().contains("ran out of fuel"),
            "{code}"
        );
        let allocator = format!(
            r#"(table $t 1 funcref) (func (export "realloc") (param i32 i32 i32 i32) (result i32) {code} (i32.const 0))"#
        );
        let run = r#"(func (export "run") (result i32) (call $get-arguments (i32.const 32)) (i32.const 16))"#;
        let asks = component(&[ARGUMENTS], &allocator, run);
        assert!(bench.ending(&asks).message().contains("cabi_realloc: ran out of fuel"), "{code}");
    }
}

#[test]
fn start_functions_run_and_fail_in_bounds() {
    let bench = bench();
    let start = |imports: &[Import<'_>], code: &str| {
        let body = format!(
            r#"(func $start {code}) (start $start) (func (export "run") (result i32) (i32.const 16))"#
        );
        bench.ending(&component(imports, ALLOCATOR, &body))
    };
    assert_eq!(start(&[], "(i32.store (i32.const 1024) (i32.const 1))"), Ending::Completed("".into()));
    let failed = |ending: Ending, what: &str| {
        assert_eq!(ending.code(), 3);
        let text = ending.message();
        assert!(text.starts_with("Runtime error: Instantiation error: ") && text.contains(what), "{text}");
    };
    failed(start(&[], "unreachable"), "aborted");
    failed(start(&[], "(loop (br 0))"), "ran out of fuel");
    // The channel holds four messages and nobody reads: the fifth would have to wait.
    let send = "(call $send (i32.const 64) (i32.const 5))".repeat(5);
    let body =
        format!(r#"(func $start {send}) (start $start) (func (export "run") (result i32) (i32.const 16))"#);
    let (_, events) = bench.launch(&component(&[SEND], ALLOCATOR, &body), &[]);
    while bench.runtime.directory().count() > 0 {
        std::thread::yield_now();
    }
    failed(ending(&events), "would have to wait");
}

/// Any allocator a program brings: the host neither recurses nor writes outside nor hangs.
#[test]
fn allocators_are_not_trusted() {
    let bench = bench();
    let run = r#"(func (export "run") (result i32) (call $get-arguments (i32.const 32)) (i32.const 16))"#;
    let with = |code: &str| {
        let allocator = format!(r#"(func (export "realloc") (param i32 i32 i32 i32) (result i32) {code})"#);
        ending(&bench.launch(&component(&[ARGUMENTS], &allocator, run), &["an argument"]).1)
    };
    assert!(with("(i32.const -16)").message().contains("outside"));
    assert!(with("(i32.const 1023)").message().contains("not aligned"));
    assert!(with("(loop (br 0)) (i32.const 0)").message().contains("ran out of fuel"));
    assert!(with("unreachable").message().contains("cabi_realloc: the program aborted"));
    assert_eq!(with("(i32.const 1024)"), Ending::Completed("".into()));
}

/// Whatever the slice, down to one unit of fuel, the result is the same.
#[test]
fn slices_of_any_size_give_the_same_result() {
    // Bulk memory, growth, calls through a table, host calls that answer at once and that wait.
    let body = r#"
        (data (i32.const 64) "hello, world")
        (table 2 funcref) (elem (i32.const 0) $a $b)
        (func $a (param i32) (result i32) (i32.mul (local.get 0) (i32.const 31)))
        (func $b (param i32) (result i32) (i32.add (local.get 0) (i32.const 7)))
        (func (export "run") (result i32) (local $i i32) (local $sum i32)
            (loop
                (memory.fill (i32.const 4096) (local.get $i) (i32.const 8192))
                (memory.copy (i32.const 20000) (i32.const 4096) (i32.const 4096))
                (local.set $sum (i32.xor
                    (call_indirect (param i32) (result i32) (local.get $sum) (i32.and (local.get $i) (i32.const 1)))
                    (i32.load (i32.add (i32.const 20000) (local.get $i)))))
                (call $send (i32.const 64) (i32.const 12))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if 0 (i32.lt_u (local.get $i) (i32.const 40))))
            (drop (memory.grow (i32.const 3)))
            (call $get-arguments (i32.const 32))
            (i32.store (i32.const 1024) (local.get $sum))
            (i32.store8 (i32.const 1024) (i32.or (i32.const 0x40) (i32.and (local.get $sum) (i32.const 0x1f))))
            (call $set-return (i32.const 1024) (i32.const 1))
            (i32.const 16))"#;
    let wasm = component(&[SET_RETURN, ARGUMENTS, SEND], ALLOCATOR, body);
    let program = Program::of(&wasm).unwrap();
    let bench = bench();
    let run = |fuel: u64| {
        let (events, messages) = events::bounded(2);
        let launch = Launch {
            program: program.clone(),
            arguments: vec!["x".into(); 20],
            subject: Subject::everyone(),
            quotas: Quotas::default(),
            http: Default::default(),
            events,
        };
        let entry = bench
            .runtime
            .prepare(Launch { events: launch.events.clone(), ..copy(&launch) })
            .unwrap()
            .entry
            .clone();
        let cx = instance::context(&bench.runtime, &entry, launch, 1);
        let (done, finished) = bounded(1);
        let program = program.clone();
        let seat = bench.runtime.parts.workers.seat(&Subject::everyone());
        bench.runtime.parts.workers.spawn(&seat, move |slice| async move {
            let guest = Guest::with_slices(instance::store(&program.code, cx), slice, fuel);
            let mut built =
                Built::in_guest(&program.code, program.code.plan.run.as_ref().unwrap(), guest).unwrap();
            let outcome = built.run().await;
            done.send((outcome, built.returned())).await.unwrap();
        });
        smol::block_on(async {
            for _ in 0..40 {
                messages.recv().await.unwrap();
            }
        });
        smol::block_on(finished.recv()).unwrap()
    };
    let whole = run(u64::MAX / 2);
    assert_eq!(whole.0, Ok(Ok(())));
    for fuel in [1, 2, 3, 17, 100, 1000] {
        assert_eq!(run(fuel), whole, "slices of {fuel}");
    }
}

/// Growing and filling 32 MiB is one instruction each, and takes the fuel of five slices.
#[test]
fn an_instruction_of_many_slices_runs_apart() {
    let bench = Bench::new(1, Quotas::default());
    let fill = "(drop (memory.grow (i32.const 512))) (memory.fill (i32.const 65536) (i32.const 7) (i32.const 33554432))
        (memory.copy (i32.const 65536) (i32.const 65537) (i32.const 100000))";
    assert_eq!(bench.ending(&simple(&[], fill)), Ending::Completed("".into()));
    let turns = bench.runtime.parts.workers.heavy_turns();
    assert!((2..=4).contains(&turns), "{turns}");
    assert_eq!(bench.ending(&simple(&[], "")), Ending::Completed("".into()));
    assert_eq!(bench.runtime.parts.workers.heavy_turns(), turns, "others need no such thread");
}

/// A call right behind the instruction, which needs no fuel that the instruction has not paid for, comes too late as well.
#[test]
fn an_end_inside_a_long_instruction_is_told_before_that_is_over() {
    let bench = Bench::new(1, Quotas::default().with(Name::Fuel, u64::MAX));
    let fill = "(memory.fill (i32.const 65536) (i32.const 7) (i32.const 67108864))";
    let round = format!("{fill} (call $send (i32.const 64) (i32.const 5))");
    let fills =
        simple(&[SEND], &format!("(drop (memory.grow (i32.const 1024))) (loop $again {round} (br $again))"));
    let mut inside = 0;
    for round in 0..20 {
        let (instance, events) = bench.launch(&fills, &[]);
        smol::block_on(events.recv()).unwrap();
        let seat = bench.runtime.directory.find(instance).expect("it runs").seat;
        std::thread::sleep(Duration::from_millis(round));
        bench.runtime.end(instance, Ending::Aborted);
        assert!(matches!(ending(&events), Ending::Aborted));
        inside += u64::from(seat.is_told());
        // It had its place until it was gone.
        assert_eq!(bench.runtime.directory.count_of(&Subject::everyone()), 0);
    }
    assert!(inside >= 5, "{inside} of 20");
}

fn copy(launch: &Launch) -> Launch {
    Launch {
        program: launch.program.clone(),
        arguments: launch.arguments.clone(),
        subject: launch.subject.clone(),
        quotas: launch.quotas,
        http: launch.http.clone(),
        events: launch.events.clone(),
    }
}

/// Every argument position of a function with pointers, with values near every edge.
#[test]
fn wild_pointers_and_lengths_only_end_their_guest() {
    let bench = Bench::new(2, Quotas::default());
    let seed = 0x5eed;
    println!("seed {seed:#x}");
    let mut random = crate::model::toy::Random::new(seed);
    let edges = [
        0,
        1,
        7,
        64,
        128,
        0xffff,
        0x10000,
        0x1fffc,
        0x1ffff,
        0x20000,
        0x20001,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_fffc,
        0xffff_ffff_u32,
    ];
    let value = |random: &mut crate::model::toy::Random| match random.below(3) {
        0 => random.next() as u32,
        _ => edges[random.below(edges.len())],
    };
    for _ in 0..200 {
        let [a, b, c, d] = std::array::from_fn(|_| value(&mut random) as i32);
        let run =
            format!("(call $store-set (i32.const {a}) (i32.const {b}) (i32.const {c}) (i32.const {d}))");
        let ending = bench.ending(&simple(&[STORE_SET], &run));
        match &ending {
            Ending::Completed(_) => {}
            Ending::Exception(text) => {
                assert!(
                    text.starts_with("Runtime error: Call error: inferlet:core/kvs.store-set: "),
                    "{text}"
                );
            }
            other => panic!("{a:#x} {b:#x} {c:#x} {d:#x}: {other:?}"),
        }
        // The result pointer of a function that answers through memory.
        let run = format!("(call $get-arguments (i32.const {a}))");
        let ending = bench.ending(&simple(&[ARGUMENTS], &run));
        assert!(matches!(ending.code(), 1 | 3), "{a:#x}: {ending:?}");
    }
    let not_text = bench.ending(&simple(&[SET_RETURN], "(call $set-return (i32.const 128) (i32.const 3))"));
    assert_eq!(
        not_text,
        exception(
            "Runtime error: Call error: inferlet:core/runtime.set-return: the string is not UTF-8 at its byte 1"
        )
    );
}

#[test]
fn an_instance_can_be_named_before_it_runs_and_not_after() {
    let bench = bench();
    let launch = || bench.prepare("somebody", Quotas::default()).unwrap();
    let (prepared, _) = launch();
    let id = prepared.id();
    assert_eq!(bench.runtime.directory().of(&Subject::new("somebody")).len(), 1);
    assert!(bench.runtime.directory().of(&Subject::everyone()).is_empty());
    drop(prepared);
    assert!(bench.runtime.directory().find(id).is_none());
    assert_eq!(bench.runtime.directory().count(), 0);

    let (prepared, events) = launch();
    bench.runtime.end(prepared.id(), Ending::Disconnected);
    prepared.start();
    assert_eq!(ending(&events), Ending::Disconnected);
    drop(bench.house);
}

/// Programs given by `TARTLET_PROGRAMS` (a folder): run without arguments, to see that they link.
#[test]
fn real_programs() {
    let Some(folder) = std::env::var_os("TARTLET_PROGRAMS") else { return };
    let bench = bench();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "wasm") {
            let wasm = std::fs::read(&path).unwrap();
            let started = std::time::Instant::now();
            let (id, events) = bench.launch(&wasm, &["return"]);
            let translated = started.elapsed();
            let reaper = bench.runtime.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(3));
                reaper.end(id, Ending::Aborted);
            });
            let ending = ending(&events);
            println!(
                "{}: translated in {translated:?}, ended after {:?}: {ending:?}",
                path.display(),
                started.elapsed()
            );
        }
    }
}
