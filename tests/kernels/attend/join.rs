//! The splits of a row joined by the last of its CTAs, and launches that overlap: the bits of `attend_combine`, what is waited
//! for, and mistakes in both.

use super::{Case, HEAD_DIMS, Kernels, Row, Way, attend, long_row, odd_rows};
use crate::harness::{
    Caught, Fault, dependent_module, each_is_caught, each_is_caught_in, fault, module, passes,
};
use ptx_emulator::Kind;

const RACE: Caught = Caught::By(Kind::GlobalRace);

/// Whichever CTA of a row comes last, it joins the splits to the bits that attend_combine gives.
#[test]
fn the_last_cta_joins_the_splits_as_a_launch_of_its_own_would() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let attend = attend(head_dim);
        let kernels = Kernels { attend: &attend, combine: &combine, way: Way::Again };
        for (group, seeds) in [(3, 0..4), (8, 4..5), (11, 5..6), (1, 6..7)] {
            for seed in seeds {
                let mut rows = odd_rows(seed);
                rows.push(Row::of(2, 600));
                rows.push(Row::of(3, 257));
                let case = Case { room: seed as usize % 3, ..Case::new(head_dim, 2, group, rows, seed) };
                let name = format!("heads of {head_dim}, groups of {group}, seed {seed}");
                passes(&name, case.run(&kernels, seed).map(drop));
            }
        }
        let long = Case::new(head_dim, 1, 5, vec![long_row(), Row::of(1, 2100)], 3);
        passes(&format!("heads of {head_dim}, 80 splits"), long.run(&kernels, 3).map(drop));
    }
}

/// Where launches overlap, what a launch before may still make or read is left alone until it is done.
#[test]
fn attention_waits_for_what_launches_before_it_make() {
    let combine = module("attend_combine.ptx");
    for head_dim in HEAD_DIMS {
        let file = format!("attend_{head_dim}.ptx");
        let later = dependent_module(&file).expect("its launches overlap");
        let kernels = Kernels { attend: &later, combine: &combine, way: Way::Overlapping };
        for seed in 0..2 {
            let case = Case::new(head_dim, 2, 3, odd_rows(seed), seed);
            passes(&file, case.check(&kernels, seed));
        }
    }
}

/// Of the join of splits by the last CTA, beside the bits of attend_combine.
const JOIN_FAULTS: &[Fault] = &[
    fault!(
        "no fence before the ticket",
        "attend.inc",
        "    fence.acq_rel.gpu;                          // before others see the ticket they see the split\n",
        "",
        RACE
    ),
    fault!(
        "no fence behind the last ticket",
        "attend.inc",
        "    @%last fence.acq_rel.gpu;                   // who sees all tickets sees all splits\n",
        "",
        RACE
    ),
    fault!(
        "a fence for the CTA alone before the ticket",
        "attend.inc",
        "    fence.acq_rel.gpu;                          // before others",
        "    fence.acq_rel.cta;                          // before others",
        RACE
    ),
    fault!(
        "a fence for the CTA alone behind it",
        "attend.inc",
        "    @%last fence.acq_rel.gpu; ",
        "    @%last fence.acq_rel.cta; ",
        RACE
    ),
    fault!(
        "a ticket for the CTA alone",
        "attend.inc",
        "    atom.relaxed.gpu.global",
        "    atom.relaxed.cta.global",
        RACE
    ),
    fault!(
        "a ticket that is not drawn at once",
        "attend.inc",
        "    atom.relaxed.gpu.global.inc.u32 %ticket, [%at], %word;\n",
        "    ld.global.u32 %ticket, [%at];\n    add.u32 %index, %ticket, 1;\n    st.global.u32 [%at], %index;\n",
        RACE
    ),
    fault!(
        "one that others may draw too",
        "attend.inc",
        "    atom.relaxed.gpu.global.inc.u32 %ticket, [%at], %word;\n",
        "    ld.relaxed.gpu.global.u32 %ticket, [%at];\n    add.u32 %index, %ticket, 1;\n    \
         st.relaxed.gpu.global.u32 [%at], %index;\n",
        RACE
    ),
    fault!(
        "tickets do not wrap",
        "attend.inc",
        "    atom.relaxed.gpu.global.inc.u32 %ticket, [%at], %word;\n",
        "    atom.relaxed.gpu.global.add.u32 %ticket, [%at], 1;\n",
        Caught::WrongResult
    ),
    fault!(
        "a ticket more than there are splits",
        "attend.inc",
        "    sub.u32         %word, %end, %begin;\n",
        "    sub.u32         %word, %end, %begin;\n    add.u32 %word, %word, 1;\n",
        Caught::WrongResult
    ),
    fault!(
        "a ticket less than there are splits",
        "attend.inc",
        "    sub.u32         %word, %end, %begin;\n",
        "    sub.u32         %word, %end, %begin;\n    sub.u32 %word, %word, 1;\n",
        Caught::OneOf(&[Kind::GlobalRace, Kind::UninitialisedGlobal])
    ),
    fault!(
        "a row's KV heads draw from one pile",
        "attend.inc",
        "    mad.lo.u32      %index, %row, %word, %index;\n",
        "    mov.u32         %index, %row;\n",
        Caught::OneOf(&[Kind::GlobalRace, Kind::UninitialisedGlobal])
    ),
    fault!(
        "no barrier before the ticket",
        "attend.inc",
        "    bar.sync        0;                          // all threads have left theirs\n",
        "",
        RACE
    ),
    fault!(
        "a warp joins alone",
        "attend.inc",
        "    bar.red.or.pred %last, 0, %last;\n",
        "    vote.sync.any.pred %last, %last, ALL;\n",
        RACE
    ),
    fault!(
        "no wait for the splits' values",
        "attend.inc",
        "    cp.async.wait_all;                          // a thread reads what it copied itself\n",
        "",
        Caught::By(Kind::CopyNotWaited)
    ),
    fault!(
        "no barrier before teams are joined",
        "attend.inc",
        "    bar.sync        0;                          // all teams have\n",
        "",
        Caught::By(Kind::SharedRace)
    ),
    fault!(
        "no barrier before the next heads",
        "attend.inc",
        "    bar.sync        0;                          // all have read the teams'\n",
        "",
        Caught::OneOf(&[Kind::SharedRace, Kind::CopyNotWaited])
    ),
    fault!(
        "splits beyond the last are copied",
        "attend.inc",
        "    selp.b32        %count, 16, 0, %some;\n",
        "    mov.u32         %count, 16;\n",
        Caught::OneOf(&[Kind::UninitialisedGlobal, Kind::OutOfBounds])
    ),
    fault!(
        "the last split is left out",
        "attend.inc",
        "    setp.le.u32     %some, %index, %end;\n",
        "    setp.lt.u32     %some, %index, %end;\n",
        Caught::WrongResult
    ),
    fault!(
        "teams change places",
        "attend.inc",
        "    add.u32         %begin, %begin, %team;\n",
        "    xor.b32         %word, %team, 1;\n    add.u32         %begin, %begin, %word;\n",
        Caught::WrongResult
    ),
    fault!(
        "teams take two splits at a time",
        "attend.inc",
        "    add.u32         %index, %next, \\(\\number * TEAMS);\n",
        "    mad.lo.u32      %index, %team, 3, %next;\n    add.u32 %index, %index, \\number;\n",
        Caught::WrongResult
    ),
    fault!(
        "two heads more begin where the first did",
        "attend.inc",
        "    add.u32         %head_0, %head_0, HEADS_AT_ONCE;\n",
        "",
        Caught::OneOf(&[Kind::UninitialisedGlobal, Kind::GlobalRace])
    ),
];

#[test]
fn faults_in_the_last_ctas_join_are_caught() {
    let combine = module("attend_combine.ptx");
    let rows = || vec![Row::of(0, 600), Row::of(1, 300), Row { first: 300, ..Row::of(2, 2500) }];
    each_is_caught("attend_64.ptx", JOIN_FAULTS, |attend| {
        for seed in 1..3 {
            let case = Case::new(64, 2, 5, rows(), seed);
            case.run(&Kernels { attend, combine: &combine, way: Way::Again }, seed)?;
        }
        Ok(())
    });
}

/// How attend.inc sends for the first keys and values.
macro_rules! set_out {
    () => {
        "    POINTER         %keys, keys
    POINTER         %values, values
    add.u64         %keys, %keys, %lane_from;   // of the lane's first unit in the page
    add.u64         %values, %values, %lane_from;
    .equ HALF, 0
    .rept RING
    FETCH           \\(HALF)
    .equ HALF, HALF + 1
    .endr
"
    };
}

/// The modules whose launches overlap, beside launches that run on.
#[test]
fn what_attention_does_not_wait_for_is_noticed() {
    let combine = module("attend_combine.ptx");
    let wait = "    griddepcontrol.wait;\n";
    let one = |name, replace| fault!(name, "attend.inc", wait, replace, Caught::By(Kind::GridNotWaited));
    let faults = [
        one("one thread waits", "    setp.eq.u32 %none, %thread, 0;\n    @%none griddepcontrol.wait;\n"),
        one("one warp waits", "    setp.eq.u32 %none, %warp, 0;\n    @%none griddepcontrol.wait;\n"),
        one(
            "queries are read before the wait",
            "    POINTER %q_at, q\n    ld.global.v2.f32 {%x0, %x1}, [%q_at];\n    griddepcontrol.wait;\n",
        ),
        fault!(
            "keys and values set out before the wait",
            "attend.inc",
            concat!("    griddepcontrol.wait;\n", set_out!()),
            concat!(set_out!(), "    griddepcontrol.wait;\n"),
            Caught::By(Kind::GridNotWaited)
        ),
        one(
            "the layer before's tickets are looked at",
            "    POINTER %at, tickets\n    ld.relaxed.gpu.global.u32 %word, [%at];\n    griddepcontrol.wait;\n",
        ),
    ];
    let later = |text: &str| tartlet::backend::cuda::kernels::dependent(text).expect("its launches overlap");
    each_is_caught_in("attend_64.ptx", later, &faults, |attend| {
        let case = Case::new(64, 2, 3, vec![Row::of(0, 300), Row::of(1, 20)], 1);
        case.check(&Kernels { attend, combine: &combine, way: Way::Overlapping }, 1)
    });
}

const COMBINE_FAULTS: &[Fault] = &[
    fault!(
        "no barrier before the teams are joined",
        "attend_combine.ptx",
        "    bar.sync        0;\n",
        "",
        Caught::By(Kind::SharedRace)
    ),
    fault!(
        "the last split is left out",
        "attend_combine.ptx",
        "    setp.le.u32     %there, %index, %end;",
        "    setp.lt.u32     %there, %index, %end;",
        Caught::WrongResult
    ),
    fault!(
        "splits beyond the last are read",
        "attend_combine.ptx",
        "    setp.le.u32     %there, %index, %end;",
        "    setp.le.u32     %there, %index, %index;",
        Caught::By(Kind::UninitialisedGlobal)
    ),
    fault!(
        "the window's splits begin at 0",
        "attend_combine.ptx",
        "    add.u32         %split, %begin, %number;",
        "    mov.u32         %split, %number;",
        Caught::By(Kind::UninitialisedGlobal)
    ),
    fault!(
        "teams take every split twice",
        "attend_combine.ptx",
        "    shl.b32         %step, %teams, 2;",
        "    shl.b32         %step, %teams, 1;",
        Caught::WrongResult
    ),
    fault!(
        "no guard for teams that saw nothing",
        "combine.inc",
        "    selp.f32        %top, 0f00000000, \\m, %none;",
        "    mov.f32         %top, \\m;",
        Caught::WrongResult
    ),
    fault!(
        "the sum does not shrink with l",
        "combine.inc",
        "    mul.rn.f32      \\l, \\l, %shrink;\n",
        "",
        Caught::WrongResult
    ),
    fault!(
        "a row in one split is combined",
        "attend_combine.ptx",
        "    setp.eq.u32     %none, %begin, %end;",
        "    setp.gt.u32     %none, %begin, %end;",
        Caught::By(Kind::UninitialisedGlobal)
    ),
    fault!(
        "one team less is joined",
        "combine.inc",
        "    @%more bra      JOIN_\\@;",
        "    setp.lt.u32 %more, %team, 7;\n    @%more bra JOIN_\\@;",
        Caught::WrongResult
    ),
];

#[test]
fn faults_in_the_combination_are_caught() {
    let attend = attend(64);
    each_is_caught("attend_combine.ptx", COMBINE_FAULTS, |combine| {
        let kernels = Kernels { attend: &attend, combine, way: Way::Again };
        Case::new(64, 2, 3, odd_rows(1), 1).check(&kernels, 1)?;
        Case::new(64, 1, 1, vec![long_row()], 4).check(&kernels, 4)
    });
}
