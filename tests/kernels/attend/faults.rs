//! Mistakes put into attention's kernels on purpose, each with what notices it.

use super::{Case, Kernels, Row, Way, attend, bits, cases, odd_rows, prefill};
use crate::harness::{Caught, Fault, each_is_caught, module, same};
use ptx_emulator::Kind;

const FAULTS: &[Fault] = &[
    Fault {
        name: "no barrier before the warps' sums are joined",
        file: "attend.inc",
        find: "    .endr\n    bar.sync        0;\n\n    // --- the warps' sums",
        replace: "    .endr\n\n    // --- the warps' sums",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "no barrier after a copy",
        file: "attend.inc",
        find: "    bar.warp.sync   ALL;                        // what the other lanes copied is there\n",
        replace: "",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "no barrier before the next copy",
        file: "attend.inc",
        find: "    bar.warp.sync   ALL;                        // every lane has read it\n",
        replace: "",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "the wait lets one group more under way",
        file: "attend.inc",
        find: "(HALVES - \\half) - 1)",
        replace: "(HALVES - \\half))",
        caught: Caught::By(Kind::CopyNotWaited),
    },
    Fault {
        name: "the wait of the last that has a successor",
        file: "attend.inc",
        find: "((\\half + RING < HALVES) * RING",
        replace: "((\\half + RING <= HALVES) * RING",
        caught: Caught::By(Kind::CopyNotWaited),
    },
    Fault {
        name: "the last half page is never asked for",
        file: "attend.inc",
        find: "    .if \\half + RING < HALVES\n",
        replace: "    .if \\half + RING < HALVES - 1\n",
        caught: Caught::By(Kind::CopyNotWaited),
    },
    Fault {
        name: "the half page that was just read is asked for again",
        file: "attend.inc",
        find: "    FETCH           \\(\\half + RING)\n",
        replace: "    FETCH           \\half\n",
        caught: Caught::By(Kind::UninitialisedShared),
    },
    Fault {
        name: "the rings are one half page short",
        file: "attend.inc",
        find: "rings[\\(4 * WARP_BYTES)]",
        replace: "rings[\\(4 * WARP_BYTES - HALF_BYTES)]",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the warps' rings overlap by half a page",
        file: "attend.inc",
        find: "    mad.lo.u32      %ring, %warp, WARP_BYTES, %ring;",
        replace: "    mad.lo.u32      %ring, %warp, \\(WARP_BYTES - HALF_BYTES), %ring;",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "hidden slots are copied",
        file: "attend.inc",
        find: "    and.b32         %count, %count, 16;         // bytes",
        replace: "    or.b32          %count, %count, 16;\n    and.b32 %count, %count, 16; // bytes",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "hidden slots have scores",
        file: "attend_page.inc",
        find: "    selp.f32        \\score, 0fff800000, \\score, %none;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the last slot is not seen",
        file: "attend_page.inc",
        find: "    sub.s32         %count, %length, %slot; ",
        replace: "    sub.s32         %count, %length, %slot;\n    sub.s32 %count, %count, 1; ",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the window begins one slot early",
        file: "attend_page.inc",
        find: "    sub.s32         %count, %first, %slot; ",
        replace: "    sub.s32         %count, %first, %slot;\n    sub.s32 %count, %count, 1; ",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "a mask word serves its first 16 slots twice",
        file: "attend_page.inc",
        find: "    shr.u32         %bits, %bits, %word;\n",
        replace: "",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "masks are read beyond the row",
        file: "attend_page.inc",
        find: "    and.pred        %asks, %some, %masked;",
        replace: "    mov.pred        %asks, %masked;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the table is read beyond the row",
        file: "attend.inc",
        find: "    @%some ld.global.nc.u32 %page_\\page",
        replace: "    ld.global.nc.u32 %page_\\page",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "the units of a slot are not turned for the copies",
        file: "attend.inc",
        find: "    xor.b32         %word, %word, %bits;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "values are not transposed",
        file: "attend_page.inc",
        find: "m8n8.x4.trans.shared",
        replace: "m8n8.x4.shared",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the halves of keys change places",
        file: "attend_page.inc",
        find: "{%a2, %a3}, {%s4,",
        replace: "{%a3, %a2}, {%s4,",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "what f16 cut off of the query is left out",
        file: "attend_page.inc",
        find: "    add.rn.f32      %x1, %s1, %s3; ",
        replace: "    mov.f32         %x1, %s1; ",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the largest score of two lanes of four",
        file: "attend_page.inc",
        find: "    shfl.sync.bfly.b32 %y, %top, 2, 31, ALL;",
        replace: "    shfl.sync.bfly.b32 %y, %top, 4, 31, ALL;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the heads' factors change places",
        file: "attend_page.inc",
        find: "    add.u32         %odd_lane, %even_lane, 4;",
        replace: "    mov.u32         %odd_lane, %even_lane;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the old sum does not shrink",
        file: "attend_page.inc",
        find: "    fma.rn.f32      %l, %l, %old, %y;",
        replace: "    add.rn.f32      %l, %l, %y;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "no guard for warps that saw nothing",
        file: "attend_page.inc",
        find: "    selp.f32        %y, 0f00000000, %top, %none;",
        replace: "    mov.f32         %y, %top;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a row that sees nothing is divided by 0",
        file: "attend_page.inc",
        find: "    selp.f32        \\per, 0f00000000, \\per, %none;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "heads that are not there are written",
        file: "attend.inc",
        find: "    setp.ge.u32     %none, %join, %joins;\n    @%none bra      JOINED_",
        replace: "    setp.gt.u32     %none, %join, %joins;\n    @%none bra      JOINED_",
        caught: Caught::By(Kind::GlobalRace),
    },
    Fault {
        name: "every split of a long row writes the row",
        file: "attend.inc",
        find: "    setp.ne.u32     %several, %begin, %end;",
        replace: "    setp.lt.u32     %several, %end, %begin;",
        caught: Caught::By(Kind::GlobalRace),
    },
];

fn are_caught(head_dim: usize) {
    let combine = module("attend_combine.ptx");
    let name = format!("attend_{head_dim}.ptx");
    each_is_caught(&name, FAULTS, |attend| {
        cases(&Kernels { attend, combine: &combine, way: Way::Rows }, head_dim)
    });
}

#[test]
fn faults_in_attention_are_caught() {
    are_caught(64);
}

#[test]
fn faults_in_attention_with_wide_heads_are_caught() {
    are_caught(128);
}

const PREFILL_FAULTS: &[Fault] = &[
    Fault {
        name: "no barrier before a half page is used",
        file: "prefill.inc",
        find: "    cp.async.wait_group \\(2 * RING - 2);\n    bar.sync        0;\n",
        replace: "    cp.async.wait_group \\(2 * RING - 2);\n",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "the wait lets one group more under way",
        file: "prefill.inc",
        find: "wait_group \\(2 * RING - 2);",
        replace: "wait_group \\(2 * RING - 1);",
        caught: Caught::By(Kind::CopyNotWaited),
    },
    Fault {
        name: "no barrier after the list",
        file: "prefill.inc",
        find: "LISTED:\n    bar.sync        0;\n",
        replace: "LISTED:\n",
        caught: Caught::By(Kind::UninitialisedShared),
    },
    Fault {
        name: "values are asked for where the page's own are",
        file: "prefill.inc",
        find: "    add.u32         %ring_before, %ring_before, HALF_BYTES;",
        replace: "    add.u32         %ring_before, %ring_at, HALF_BYTES;",
        caught: Caught::OneOf(&[Kind::SharedRace, Kind::CopyNotWaited]),
    },
    Fault {
        name: "slots that nobody sees are copied",
        file: "prefill.inc",
        find: "    and.b32         %count, %count, 16;         // bytes",
        replace: "    or.b32          %count, %count, 16;\n    and.b32 %count, %count, 16; // bytes",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "the first rows of the tile decide alone what is copied",
        file: "prefill.inc",
        find: "    redux.sync.or.b32 %sees_2, %sees_2, ALL;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a class begins with each page",
        file: "prefill.inc",
        find: "    selp.b32        %info, BEGINS, 0, %none;",
        replace: "    mov.u32         %info, BEGINS;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "all pages are of one class",
        file: "prefill.inc",
        find: "    selp.b32        %info, BEGINS, 0, %none;",
        replace: "    mov.u32         %info, 0;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "pages of a class in another order",
        file: "prefill.inc",
        find: "    mad.lo.u32      %word, %turn, 4, %word;\n",
        replace: "    xor.b32         %slot, %turn, 1;\n    mad.lo.u32 %word, %slot, 4, %word;\n",
        caught: Caught::OneOf(&[Kind::UninitialisedGlobal, Kind::OutOfBounds]),
    },
    Fault {
        name: "a row in turn keeps the columns of all",
        file: "prefill.inc",
        find: "    setp.eq.u32     %even, %even_row, %turn;",
        replace: "    setp.ne.u32     %even, %turn, ALL;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the upper slots are hidden as the lower ones are",
        file: "prefill.inc",
        find: "    shr.u32         %bits, %bits, 8;\n    HALVES",
        replace: "    HALVES",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the last row of an octet is left out",
        file: "prefill.inc",
        find: "    setp.le.u32     %some, %turn, %last;",
        replace: "    setp.lt.u32     %some, %turn, %last;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "what is joined does not shrink",
        file: "prefill.inc",
        find: "    mul.rn.f32      %s1, %s1, %x1;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "octets have what is joined in one place",
        file: "prefill.inc",
        find: "    mad.lo.u32      %joined_at, %warp, \\(KEPT * 512), %joined_at;\n",
        replace: "",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "a head's row is its own number",
        file: "prefill.inc",
        find: "    div.u32         %pair_row, %pair, %group;",
        replace: "    mov.u32         %pair_row, %pair;",
        caught: Caught::OneOf(&[Kind::OutOfBounds, Kind::UninitialisedGlobal]),
    },
    Fault {
        name: "scratch begins with the step's first row",
        file: "prefill.inc",
        find: "    sub.u32         %word, %place, %word;\n",
        replace: "    mov.u32         %word, %place;\n",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "a row is written by splits that it does not have",
        file: "prefill.inc",
        find: "    selp.b32        %place, %place, ALL, %has;\n",
        replace: "",
        caught: Caught::OneOf(&[Kind::GlobalRace, Kind::OutOfBounds]),
    },
];

#[test]
fn faults_in_prefill_are_caught() {
    let (attend, combine) = (attend(64), module("attend_combine.ptx"));
    let mut rows = prefill::chunks(9, 1);
    rows.extend(odd_rows(1).into_iter().map(|row| Row { sequence: row.sequence + 4, ..row }));
    let case = Case::new(64, 2, 3, rows, 1);
    let by_rows = Kernels { attend: &attend, combine: &combine, way: Way::Rows };
    let Ok((want, _)) = case.run(&by_rows, 1) else { panic!("attention a row at a time") };
    each_is_caught("prefill_64.ptx", PREFILL_FAULTS, |prefill| {
        let (got, _) = case.run(&Kernels { attend: prefill, combine: &combine, way: Way::Tiles(64) }, 1)?;
        same("out", &bits(&got), &bits(&want))
    });
}
