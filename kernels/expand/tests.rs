//! What the macro pass makes of small texts, and what it says about mistakes.

use super::*;

/// Expands the first of `files`: (name, text).
fn of(files: &[(&str, &str)]) -> Result<String, String> {
    let read = |name: &str| {
        let file = files.iter().find(|(file, _)| *file == name);
        file.map(|(_, text)| text.to_string()).ok_or_else(|| "it is not there".to_string())
    };
    expand_with(files[0].0, &read).map_err(|error| error.to_string())
}

fn one(text: &str) -> Result<String, String> {
    of(&[("a.ptx", text)])
}

/// The emitted lines as (file:line, text), by the markers.
fn placed(text: &str) -> Vec<(String, String)> {
    let (mut file, mut number) = (String::new(), 0);
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some((at, name)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            (file, number) = (name.trim_matches('"').to_string(), at.parse::<usize>().unwrap());
            continue;
        }
        if !line.is_empty() {
            found.push((format!("{file}:{number}"), line.to_string()));
        }
        number += 1;
    }
    found
}

fn lines(text: &str) -> Vec<String> {
    placed(&one(text).unwrap()).into_iter().map(|(_, line)| line).collect()
}

#[test]
fn plain_lines_stay_and_keep_their_numbers() {
    let text = "// head\n.version 7.4\n\n\n    add.s32 %a, %b, 1; // one more\n\n\n\n\n\n\n\n\n\n    ret;\n";
    let places = placed(&one(text).unwrap());
    let want = [(2, ".version 7.4"), (5, "add.s32 %a, %b, 1;"), (15, "ret;")];
    assert_eq!(places, want.map(|(at, line)| (format!("a.ptx:{at}"), line.to_string())));
}

#[test]
fn lines_of_a_macro_are_known_by_the_macros_file() {
    let files = [
        ("a.ptx", ".include \"sum.inc\"\nmov.u32 %x, 1;\nADD %x, 2\nret;\n"),
        ("sum.inc", "// sums\n.macro ADD to, what\n    add.u32 \\to, \\to, \\what;\n.endm\n"),
    ];
    let places = placed(&of(&files).unwrap());
    let want = [("a.ptx:2", "mov.u32 %x, 1;"), ("sum.inc:3", "add.u32 %x, %x, 2;"), ("a.ptx:4", "ret;")];
    assert_eq!(places, want.map(|(at, line)| (at.to_string(), line.to_string())));
}

#[test]
fn a_file_is_taken_once() {
    let files = [("a.ptx", ".include \"b.inc\"\n.include \"b.inc\"\n"), ("b.inc", "ret;\n")];
    assert_eq!(placed(&of(&files).unwrap()).len(), 1);
}

#[test]
fn arguments_have_defaults_names_and_brackets() {
    let text = ".macro LOAD to, from, hint=.nc\nld\\hint\\().v2 \\to, \\from;\n.endm\n\
                LOAD {%a, %b}, [%p + 8]\nLOAD from=[%q], to={%c, %d}, hint=\n";
    assert_eq!(lines(text), ["ld.nc.v2 {%a, %b}, [%p + 8];", "ld.v2 {%c, %d}, [%q];"]);
}

#[test]
fn loops_repeat_and_nest() {
    let text = ".irp i, 0, 1\n.irp j, a, b\nmov %\\j\\i, 0;\n.endr\n.endr\n.rept 1 + 1\nret;\n.endr\n";
    assert_eq!(lines(text), ["mov %a0, 0;", "mov %b0, 0;", "mov %a1, 0;", "mov %b1, 0;", "ret;", "ret;"]);
}

#[test]
fn each_expansion_has_its_own_number() {
    let text = ".macro SPIN\nL\\@:\nbra L\\@;\n.endm\nSPIN\nSPIN\n";
    assert_eq!(lines(text), ["L1:", "bra L1;", "L2:", "bra L2;"]);
}

#[test]
fn numbers_stand_for_names_but_not_within_words_or_registers() {
    let text = ".equ N, 4\nmov %N, N; // N\nadd.N %x, NN, N_;\n.file 1 \"N\"\n.equ N, N * 2\nst [%p+N];\n";
    assert_eq!(lines(text), ["mov %N, 4;", "add.N %x, NN, N_;", ".file 1 \"N\"", "st [%p+8];"]);
}

#[test]
fn expressions_follow_the_usual_order() {
    for (expression, want) in [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("-7 / 2", "-3"),
        ("7 % 4 << 2", "12"),
        ("0x10 | 1 & 3", "17"),
        ("256 >> 4 - 1", "32"),
        ("3 < 4", "1"),
        ("3 >= 4", "0"),
        ("1 << 2 == 4", "1"),
        ("2 != 2", "0"),
        ("--3", "3"),
    ] {
        assert_eq!(lines(&format!("mov \\({expression});\n")), [format!("mov {want};")], "{expression}");
    }
}

#[test]
fn one_part_of_a_condition_is_taken() {
    let text =
        ".equ K, 2\n.if K > 1\n.if K == 3\na;\n.else\nb;\n.endif\n.else\nc;\n.endif\n.if K - 2\nd;\n.endif\n";
    assert_eq!(lines(text), ["b;"]);
}

#[test]
fn a_macro_may_define_and_compute() {
    let text = ".macro AT base, step\n.equ OFFSET, \\base + 16 * \\step\nld [%p + OFFSET];\n.endm\n\
                .irp i, 1, 2\nAT 4, \\i\n.endr\n";
    assert_eq!(lines(text), ["ld [%p + 20];", "ld [%p + 36];"]);
}

#[test]
fn mistakes_name_file_and_line() {
    for (text, want) in [
        ("ret;\n.endm\n", "a.ptx:2: .endm without its beginning"),
        ("\n.macro A\nret;\n", "a.ptx:2: .macro without its .endm"),
        (".if 1\n.if 1\n.endif\n", "a.ptx:1: .if without its .endif"),
        (".include \"b.inc\"\n", "a.ptx:1: b.inc cannot be read: it is not there"),
        (".include b.inc\n", "a.ptx:1: .include wants a file name in quotes"),
        (".equ a, 1\n", "a.ptx:1: .equ wants a name in capitals, a comma, an expression"),
        (".equ A, B\n", "a.ptx:1: `B` is no number and no name of .equ"),
        (".equ A, (1\n", "a.ptx:1: a ) is missing in `(1`"),
        (".equ A, 1 2\n", "a.ptx:1: `2` is left over in `1 2`"),
        (".equ A, 1 +\n", "a.ptx:1: a number is missing in `1 +`"),
        (".equ A, 1 / 0\n", "a.ptx:1: `1 / 0` has no value"),
        (".macro A x\n.endm\n.macro A\n.endm\n", "a.ptx:3: the macro A is there already: a.ptx:1"),
        (".macro A x\nmov \\x;\n.endm\nA\n", "a.ptx:4: A wants its argument `x`"),
        (".macro A x\nmov \\x;\n.endm\nA 1, 2\n", "a.ptx:4: A takes 1 arguments at most"),
        (".macro A x\nmov \\x;\n.endm\nA 1, x=2\n", "a.ptx:4: A is given one argument twice"),
        (
            ".macro A x\nmov \\y;\n.endm\n\nA 1\n",
            "a.ptx:2: no parameter is called \\y here (in A, from a.ptx:5)",
        ),
        (
            ".macro A x\n{\n.reg .f32 %y, %z;\nmov \\x, %z;\n}\n.endm\nA %z\n",
            "a.ptx:7: the argument %z is hidden by A's own register of that name",
        ),
        ("mov \\(1;\n", "a.ptx:1: \\( is not closed"),
        ("ret; /* why */\n", "a.ptx:1: a comment starts with // here"),
    ] {
        assert_eq!(one(text).unwrap_err(), want, "{text}");
    }
}

#[test]
fn a_macro_that_calls_itself_ends() {
    let error = one(".macro A\nA\n.endm\nA\n").unwrap_err();
    assert!(error.starts_with("a.ptx:2: more than 64 expansions within each other"), "{error}");
}
