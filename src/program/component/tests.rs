//! Components by hand: what is taken, and the sentences about the others.

use super::*;

/// The smallest inferlet: `run` answers ok.
pub const MINIMAL: &str = r#"
    (component
        (core module $main
            (memory (export "memory") 1)
            (func (export "run") (result i32) (i32.const 16)))
        (core instance $main (instantiate $main))
        (alias core export $main "memory" (core memory $memory))
        (func $run (result (result (error string)))
            (canon lift (core func $main "run") (memory $memory)))
        (instance $entry (export "run" (func $run)))
        (export "inferlet:core/run" (instance $entry)))
"#;

fn refusal(text: &str) -> String {
    match read(&wat::parse_str(text).unwrap()) {
        Ok(_) => panic!("not refused: {text}"),
        Err(rejected) => rejected.to_string(),
    }
}

/// The story: 6 KB made 12 MB that nobody counted, and a few hundred such programs filled the box.
#[test]
fn what_few_bytes_make_much_of_counts() {
    let beside = |text: &str| {
        let text = MINIMAL.replace("(core module $main", &format!("(core module $main {text}"));
        read(&wat::parse_str(text).unwrap()).unwrap().bytes_beside
    };
    let least = beside("");
    let values = 1000;
    let results = format!("(result{})", " i32".repeat(values));
    let branches = "(br_if 0 (local.get 0)) ".repeat(500);
    let wide = format!("(func (param i32) {results} {} {branches})", "(i32.const 1) ".repeat(values));
    assert!(beside(&wide) - least >= 500 * values * 24);
    let elements = format!("(table 1 funcref) (func) (elem (i32.const 0) func{})", " 0".repeat(10_000));
    assert!(beside(&elements) - least >= 10_000 * 12);
}

/// Whoever brings a program to life finds an import by its name.
#[test]
fn a_module_imports_each_name_once() {
    let twice = r#"(component
        (core module $m (import "a" "b" (func)) (import "a" "b" (func)))
        (core module $n (func (export "b")))
        (core instance $n (instantiate $n))
        (core instance (instantiate $m (with "a" (instance $n)))))"#;
    assert!(refusal(twice).contains("duplicate import name `a:b`"), "{}", refusal(twice));
}

#[test]
fn the_smallest_inferlet_is_one_step() {
    let plan = read(&wat::parse_str(MINIMAL).unwrap()).unwrap();
    assert_eq!((plan.modules.len(), plan.steps.len()), (1, 1));
    assert!(matches!(&plan.run.unwrap().function, Item::Export { instance: 0, name } if &**name == "run"));
}

#[test]
fn what_is_no_inferlet_is_told_so() {
    assert_eq!(read(b"").err().unwrap(), Rejected::NotWasm);
    assert_eq!(read(b"MZ\x90").err().unwrap(), Rejected::NotWasm);
    assert_eq!(read(&wat::parse_str("(module)").unwrap()).err().unwrap(), Rejected::CoreModule);
    assert!(refusal("(component)").contains("exports neither inferlet:core/run"));
    let http = MINIMAL.replace("inferlet:core/run", "wasi:http/incoming-handler@0.2.0");
    assert!(refusal(&http).contains("; it exports wasi:http/incoming-handler@0.2.0"), "it has no handle");
    let http = http.replace("\"run\"", "\"handle\"");
    assert!(refusal(&http).contains("handle is (incoming-request, response-outparam)"), "{}", refusal(&http));
    let typed = MINIMAL.replace("(result (error string))", "(result string (error string))");
    assert!(refusal(&typed).contains("() -> result<_, string>"));
    assert!(
        read(&wat::parse_str(MINIMAL.replace("inferlet:core/run", "pie:inferlet/run@0.1.0")).unwrap())
            .is_ok()
    );
}

#[test]
fn all_unknown_imports_are_listed_and_no_known_one() {
    let text = r#"
        (component
            (import "wasi:http/types@0.2.12" (instance $http
                (export "fields" (type (sub resource)))
                (export "poke" (func))))
            (import "wasi:io/poll@0.2.3" (instance (export "pollable" (type (sub resource)))))
            (import "wasi:cli/environment@0.2.0" (instance (export "get-everything" (func))))
            (import "wasi:cli/exit@0.3.0" (instance (export "exit" (func))))
            (alias export $http "fields" (type $fields))
            (core func (canon resource.drop $fields))
            (alias export $http "poke" (func $poke))
            (core func (canon lower (func $poke))))
    "#;
    assert_eq!(
        refusal(text),
        "The component imports what this server does not offer: wasi:cli/environment@0.2.0#get-everything, \
         wasi:cli/exit@0.3.0, wasi:http/types@0.2.12#poke"
    );
}

#[test]
fn value_types_are_compared_not_only_core_ones() {
    // list<u8> and string lower alike.
    let import = |ty: &str| {
        format!(
            r#"(component (import "wasi:cli/environment@0.2.0" (instance (export "get-arguments" (func (result (list {ty})))))))"#
        )
    };
    assert!(refusal(&import("string")).contains("it exports nothing"));
    assert!(
        refusal(&import("(list u8)"))
            .contains("wasi:cli/environment@0.2.0#get-arguments is () -> list<string> here")
    );
}

#[test]
fn shapes_that_are_not_run_are_named() {
    let two_memories = MINIMAL.replace("(core module $main", "(core module (memory 1)) (core module $main");
    assert!(refusal(&two_memories).contains("has 2 memories"));
    let wide = MINIMAL.replace("(memory (export \"memory\") 1)", "(memory (export \"memory\") i64 1)");
    assert!(refusal(&wide).contains("64-bit"));
    let utf16 = MINIMAL.replace("(memory $memory))", "(memory $memory) string-encoding=utf16)");
    assert!(refusal(&utf16).contains("UTF-16"));
    let composed = MINIMAL.replace("(core module $main", "(component (core module)) (core module $main");
    assert!(refusal(&composed).contains("composed"));
    let modules = MINIMAL.replace("(core module $main", &("(core module)".repeat(16) + "(core module $main"));
    assert!(refusal(&modules).contains("17 core modules"));
}

/// What a few bytes say much of, and translation takes seconds or gigabytes for.
#[test]
fn what_takes_too_much_to_translate_is_refused() {
    let with = |functions: &str| {
        let functions = format!("(core module $main {functions}");
        wat::parse_str(MINIMAL.replace("(core module $main", &functions)).unwrap()
    };
    let refused = |what: &str, functions: &str| match read(&with(functions)) {
        Err(Rejected::TooLarge(is, ..)) => assert_eq!(is, what),
        other => panic!("{:?}", other.err()),
    };
    let locals = |count: usize| format!("(func (local {}))", "i32 ".repeat(count));
    let (most, few) = (locals(limits::FUNCTION_LOCALS), limits::PROGRAM_LOCALS / limits::FUNCTION_LOCALS);
    let one = read(&with(&most.repeat(few - 1)));
    assert!(one.is_ok(), "with those that it has besides");
    refused("locals in its functions", &most.repeat(few + 1));
    refused("locals in one function", &locals(limits::FUNCTION_LOCALS + 1));

    let values = "values that instructions take and give beyond 4 each";
    let branching = |branches: &str| {
        let (results, before, after) =
            ("i32 ".repeat(1000), "(local.get 0) ".repeat(1000), "(drop) ".repeat(1000));
        format!("(func (local i32) (block (result {results}) {before} {branches}) {after})")
    };
    let perhaps = "(br_if 0 (local.get 0)) ";
    assert!(read(&with(&branching(&perhaps.repeat(500)))).is_ok());
    refused(values, &branching(&perhaps.repeat(600)));
    let table = format!("(br_table {} (local.get 0)) ", "0 ".repeat(1100));
    refused(values, &branching(&table));
    let plain = format!("(func (block (br_table {} (i32.const 0))))", "0 ".repeat(50_000));
    assert!(read(&with(&plain.repeat(30))).is_ok(), "ways without values cost what their bytes do");
}

/// Cut anywhere, or with any byte changed, a component is refused or read; it never panics.
#[test]
fn damage_never_panics() {
    let whole = wat::parse_str(MINIMAL).unwrap();
    for len in 0..whole.len() {
        // Cut between two sections it is a smaller, valid component.
        let _ = read(&whole[..len]).map(|_| ());
    }
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            let _ = read(&damaged).map(|_| ());
        }
    }
}
