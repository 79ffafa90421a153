//! Mistakes put into the kernels of sampling on purpose, each with what notices it.

use super::{Kernels, Modules, cases};
use crate::harness::{Caught, Fault, each_is_caught};
use ptx_emulator::Kind;

const BEST_FAULTS: &[Fault] = &[
    Fault {
        name: "tokens beyond the vocabulary are read",
        file: "sample_best.ptx",
        find: "    @%there_\\i ld.global.nc.f32",
        replace: "    ld.global.nc.f32",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "tokens beyond the vocabulary count",
        file: "sample_best.ptx",
        find: "    @%there_\\i min.u64",
        replace: "    min.u64",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the shuffles all go the same distance",
        file: "sample.inc",
        find: "bfly, \\distance, 31\n    min.u64",
        replace: "bfly, 16, 31\n    min.u64",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "stretches beyond the last are written",
        file: "sample_best.ptx",
        find: "    setp.ge.u32     %none, %stretch, %stretches;",
        replace: "    setp.gt.u32     %none, %stretch, %stretches;",
        caught: Caught::By(Kind::GlobalRace),
    },
    Fault {
        name: "every lane writes the stretch's best",
        file: "sample_best.ptx",
        find: "    @%none st.global.u64",
        replace: "    st.global.u64",
        caught: Caught::By(Kind::GlobalRace),
    },
    Fault {
        name: "NaN is above all",
        file: "sample.inc",
        find: "    selp.f32        %ordered, 0fff800000, \\logit, %odd;",
        replace: "    mov.f32         %ordered, \\logit;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "-0 is below +0",
        file: "sample.inc",
        find: "    add.rn.f32      %ordered, %ordered, 0f00000000;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the order of negative numbers is turned",
        file: "sample.inc",
        find: "    xor.b32         %key, %key, %sign;\n    cvt.u64.u32",
        replace: "    xor.b32         %key, %key, 0x7fffffff;\n    cvt.u64.u32",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "ids are those of the stretch",
        file: "sample_best.ptx",
        find: "    add.u32         %id, %id, 32;",
        replace: "    add.u32         %id, %id, 31;",
        caught: Caught::WrongResult,
    },
];

#[test]
fn faults_in_the_best_are_caught() {
    let modules = Modules::new();
    each_is_caught("sample_best.ptx", BEST_FAULTS, |best| cases(&Kernels { best, ..modules.kernels() }));
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "no barrier before the cells are summed",
        file: "sample_select.inc",
        find: "    bar.sync        0;                          // the cells are made\n",
        replace: "",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "no barrier after the cells are cleared",
        file: "sample_select.inc",
        find: "    .endr\n    bar.sync        0;\n    WALK",
        replace: "    .endr\n    WALK",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "no barrier before the warps' sums are read",
        file: "sample_select.inc",
        find: "    bar.sync        0;\n    mov.u64         %total, 0;",
        replace: "    mov.u64         %total, 0;",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "no barrier before what was found is read",
        file: "sample_select.inc",
        find: "    bar.sync        0;\n    ld.shared.u64   %before, [found_before];",
        replace: "    ld.shared.u64   %before, [found_before];",
        caught: Caught::By(Kind::UninitialisedShared),
    },
    Fault {
        name: "measures are stored, not added",
        file: "sample_select.inc",
        find: "    @%there red.shared.add.u64 [%cell_at], %weight;",
        replace: "    @%there st.shared.u64 [%cell_at], %weight;",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "the cells are not cleared",
        file: "sample_select.inc",
        find: "    st.shared.u64   [%cell_at + \\(CELL * THREADS * 8)], %sum;\n",
        replace: "",
        caught: Caught::By(Kind::UninitialisedShared),
    },
    Fault {
        name: "the k-th token is not kept",
        file: "sample_draw.ptx",
        find: "    cvt.u64.u32     %target, %index;",
        replace: "    max.u32 %index, %index, 1;\n    sub.u32 %index, %index, 1;\n    cvt.u64.u32     %target, %index;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "k is heeded where it is no limit",
        file: "sample_draw.ptx",
        find: "    setp.ge.u32     %none, %index, %id;         //",
        replace: "    setp.lt.u32     %none, %index, %id;         //",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "the mass is rounded down",
        file: "sample_draw.ptx",
        find: "    @%there sub.u64 %target, %target, 1; ",
        replace: "    sub.u64 %target, %target, 1; ",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a share of 0 keeps nothing",
        file: "sample_draw.ptx",
        find: "    selp.u64        %target, 0, %target, %there;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the smallest weight that is kept is left out",
        file: "sample_draw.ptx",
        find: "    setp.ge.and.u64 %there, \\weight, %floor, %there;",
        replace: "    setp.gt.and.u64 %there, \\weight, %floor, %there;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "ties are not cut by id",
        file: "sample_select.inc",
        find: "    setp.eq.u64     %none, %low, %high;",
        replace: "    sub.u64 %place, %high, %low;\n    setp.lt.u64 %none, %place, 0x200000;\n    @%none mov.u64 %low, %high;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the quotient is not corrected",
        file: "sample.inc",
        find: "    .rept 2\n    neg.f32",
        replace: "    .rept 0\n    neg.f32",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a fused step in the exponential",
        file: "sample.inc",
        find: "    mul.rn.f32      %z, %z, %r;\n    add.rn.f32      %z, %z, \\coefficient;",
        replace: "    fma.rn.f32      %z, %z, %r, \\coefficient;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the weight is cut at -29",
        file: "sample.inc",
        find: "    setp.gt.f32     %odd, %quotient, 0fc1f00000;",
        replace: "    setp.gt.f32     %odd, %quotient, 0fc0800000;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "infinity has a weight of its own",
        file: "sample.inc",
        find: "    selp.f32        %z, 0f7f7fffff, \\logit, %odd;",
        replace: "    mov.f32         %z, \\logit;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the scan's last step is left out",
        file: "sample_select.inc",
        find: "    .irp distance, 1, 2, 4, 8, 16\n",
        replace: "    .irp distance, 1, 2, 4, 8\n",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "the running sum need only reach the target",
        file: "sample_select.inc",
        find: "    setp.gt.u64     %none, %other, %target;",
        replace: "    setp.ge.u64     %none, %other, %target;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "tokens beyond the vocabulary are read",
        file: "sample_select.inc",
        find: "    setp.lt.u32     %there, %index, %vocab;",
        replace: "    setp.le.u32     %there, %index, %vocab;",
        caught: Caught::WrongResult,
    },
];

#[test]
fn faults_in_the_draw_are_caught() {
    let modules = Modules::new();
    each_is_caught("sample_draw.ptx", FAULTS, |draw| cases(&Kernels { draw, ..modules.kernels() }));
}

const WEIGH_FAULTS: &[Fault] = &[
    Fault {
        name: "tokens beyond the vocabulary are read",
        file: "sample_weigh.ptx",
        find: "    @%there ld.global.nc.f32",
        replace: "    ld.global.nc.f32",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "tokens beyond the vocabulary weigh",
        file: "sample_weigh.ptx",
        find: "    mov.f32         %logit_\\i, 0f7fffffff; ",
        replace: "    mov.f32         %logit_\\i, %largest; ",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the floor is not heeded",
        file: "sample_weigh.ptx",
        find: "    @%there add.u64 %sum",
        replace: "    add.u64 %sum",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "no barrier before the warps' bests are joined",
        file: "sample.inc",
        find: "    bar.sync        0;\n",
        replace: "",
        caught: Caught::By(Kind::UninitialisedShared),
    },
    Fault {
        name: "the bests of the first stretches only",
        file: "sample.inc",
        find: "    setp.lt.u32     %there, %index, %stretches;",
        replace: "    setp.lt.u32     %there, %index, 2;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the largest logit may be infinite",
        file: "sample_weigh.ptx",
        find: "    min.f32         %largest, %largest, 0f7f7fffff; ",
        replace: "    // ",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the sum's shuffles all go the same distance",
        file: "sample.inc",
        find: "bfly, \\distance, 31\n    add.u64",
        replace: "bfly, 16, 31\n    add.u64",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "every lane writes the stretch's sum",
        file: "sample_weigh.ptx",
        find: "    @%none st.global.u64",
        replace: "    st.global.u64",
        caught: Caught::By(Kind::GlobalRace),
    },
    Fault {
        name: "rows with a k that is no limit are passed by",
        file: "sample_weigh.ptx",
        find: "    setp.lt.u32     %none, %index, %id;",
        replace: "    setp.ne.u32     %none, %k, 0;",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
];

#[test]
fn faults_in_the_weights_are_caught() {
    let modules = Modules::new();
    each_is_caught("sample_weigh.ptx", WEIGH_FAULTS, |weigh| cases(&Kernels { weigh, ..modules.kernels() }));
}
