//! Mistakes put into the fused kernels on purpose, and what notices them.

use super::*;
use ptx_emulator::Kind;

const WRONG: Caught = Caught::WrongResult;

/// In what all three share, seen by `fused_output`.
const SHARED_FAULTS: &[Fault] = &[
    fault!(
        "a warp's squares are another's",
        "fused.inc",
        "mad.lo.u32      %to, %warp, 4, %to;\n    setp",
        "mad.lo.u32      %to, %quarter, 4, %to;\n    setp",
        Caught::OneOf(&[Kind::SharedRace, Kind::UninitialisedShared])
    ),
    fault!(
        "no barrier behind the squares",
        "fused.inc",
        "    bar.sync        0;\n    ld.param.f32    %eps",
        "    ld.param.f32    %eps",
        Caught::OneOf(&[Kind::SharedRace, Kind::UninitialisedShared])
    ),
    fault!(
        "no barrier behind the rows",
        "fused.inc",
        "READY:\n    bar.sync        0;",
        "READY:",
        Caught::OneOf(&[Kind::SharedRace, Kind::UninitialisedShared])
    ),
    fault!(
        "sums where the rows are still read",
        "fused.inc",
        "    bar.sync        0;                                      // all have read",
        "                                                           // all have read",
        Caught::By(Kind::SharedRace)
    ),
    fault!(
        "sums are read before they are there",
        "fused.inc",
        "    bar.sync        0;\n    mov.u32         %token, %warp;",
        "    mov.u32         %token, %warp;",
        Caught::OneOf(&[Kind::SharedRace, Kind::UninitialisedShared])
    ),
    fault!(
        "a run of one step more",
        "fused.inc",
        "setp.ge.u32     %past, %step, %run;",
        "setp.gt.u32     %past, %step, %run;",
        Caught::OneOf(&[Kind::UninitialisedShared, Kind::SharedRace])
    ),
    fault!(
        "a run has a batch less",
        "fused.inc",
        "add.u32         %batches, %run, \\(BATCH - 1);",
        "add.u32         %batches, %run, 0;",
        Caught::OneOf(&[Kind::SharedRace, Kind::UninitialisedShared])
    ),
    fault!(
        "the second turn has the first one's gains",
        "fused.inc",
        "[%gains + \\(\\i * TURN * 4)]",
        "[%gains + 0]",
        WRONG
    ),
    fault!(
        "the later turns have the first ones' gains",
        "fused.inc",
        "    add.u64         %gains, %gains, \\(8 * TURN);\n",
        "",
        WRONG
    ),
    fault!(
        "a row's norm is the first one's",
        "fused.inc",
        "mad.lo.u32      %to, %token, 32, %to;\n    ld.shared",
        "mov.u32         %to, %to;\n    ld.shared",
        WRONG
    ),
    fault!(
        "all tokens are the first one",
        "fused.inc",
        "    add.u64         %x_row, %x_row, %stride;\n    add.u32         %token",
        "    add.u32         %token",
        WRONG
    ),
    fault!(
        "a block's two scales in one place",
        "fused.inc",
        "    mad.lo.u32      %to_scale, %next, 8, %to_scale;\n",
        "",
        Caught::OneOf(&[Kind::SharedRace, Kind::UninitialisedShared])
    ),
    fault!(
        "padding is not zeros",
        "fused.inc",
        "    setp.lt.u32     %inside, %next, %step;\n    div",
        "    setp.lt.u32     %inside, %next, %dim;\n    div",
        Caught::By(Kind::UninitialisedShared)
    ),
    fault!(
        "copies are not waited for",
        "fused.inc",
        "    cp.async.wait_group 0;\n",
        "",
        Caught::By(Kind::CopyNotWaited)
    ),
    fault!(
        "rows that are ready are one row",
        "fused.inc",
        "    add.u64         %from, %from, %stride;\n    sub.u32         %t, %t, 1;\n    setp.ne.u32     %more, %t, 0;\n    @%more bra      COPY_TOKEN;",
        "    sub.u32         %t, %t, 1;\n    setp.ne.u32     %more, %t, 0;\n    @%more bra      COPY_TOKEN;",
        WRONG
    ),
    fault!(
        "the second group has the first one's tile",
        "fused_output.inc",
        "mad.lo.u32      %tile, %cta, 2, %group;",
        "mad.lo.u32      %tile, %cta, 2, 0;",
        WRONG
    ),
    fault!(
        "a tile that is not there is read",
        "fused_output.inc",
        "selp.b32        %left, %left, 0, %tile_there;",
        "selp.b32        %left, %left, %left, %tile_there;",
        Caught::By(Kind::OutOfBounds)
    ),
    fault!(
        "rows that are not there are stored",
        "fused_output.inc",
        "setp.lt.u32     %row_there, %row, %n;",
        "setp.le.u32     %row_there, %row, %n;",
        Caught::OneOf(&[Kind::OutOfBounds, Kind::GlobalRace])
    ),
    fault!(
        "what is there is forgotten",
        "fused_output.inc",
        "add.rn.f32      %sum0, %old, %sum0;",
        "add.rn.f32      %sum0, %sum0, 0f00000000;",
        WRONG
    ),
];

const GATE_UP_FAULTS: &[Fault] = &[
    fault!(
        "up is gate",
        "fused_gate_up.inc",
        "add.u32         %tile, %tile, %tiles;",
        "add.u32         %tile, %tile, 0;",
        WRONG
    ),
    fault!(
        "gate and up change places",
        "fused.inc",
        "add.rn.f32      %sum\\m, %part0, %part3;",
        "add.rn.f32      %sum\\(1 - \\m), %part0, %part3;",
        WRONG
    ),
    fault!(
        "gelu is silu",
        "fused_gate_up.inc",
        "    GELU            %sum0, %sum0\n",
        "    SILU            %sum0, %sum0\n",
        WRONG
    ),
    fault!(
        "a block's largest value of half its lanes",
        "fused_gate_up.inc",
        ".irp distance, 16, 8, 4, 2, 1",
        ".irp distance, 8, 4, 2, 1",
        WRONG
    ),
    fault!(
        "rows are not filled up",
        "fused_gate_up.inc",
        "add.u32         %place, %n, 63;",
        "add.u32         %place, %n, 0;",
        Caught::OneOf(&[Kind::GlobalRace, Kind::UninitialisedGlobal])
    ),
    fault!(
        "every lane stores the scale",
        "fused_gate_up.inc",
        "setp.eq.u32     %some, %lane, 0;",
        "setp.ge.u32     %some, %lane, 0;",
        Caught::By(Kind::GlobalRace)
    ),
    fault!(
        "halves are infinite",
        "fused_gate_up.inc",
        "    max.f32         %sum0, %sum0, 0fc77fe000;\n",
        "    abs.f32         %sum0, %sum0;\n",
        WRONG
    ),
    fault!(
        "up's weights are gate's next ones",
        "fused.inc",
        "POINTER         %w\\m, weights",
        "POINTER         %w0, weights",
        Caught::By(Kind::UninitialisedRegister)
    ),
];

const QKV_FAULTS: &[Fault] = &[
    fault!(
        "pairs are neighbours",
        "fused_qkv.inc",
        "selp.b32        %distance, 16, 1, %some;",
        "selp.b32        %distance, 1, 1, %some;",
        WRONG
    ),
    fault!(
        "tiles of a head are neighbours",
        "fused_qkv.inc",
        "setp.lt.u32     %apart, %part_of, %pair;",
        "setp.lt.u32     %apart, %part_of, 0;",
        WRONG
    ),
    fault!(
        "a half has all tiles",
        "fused_qkv.inc",
        "shr.u32         %pair, %dims, 5;",
        "shr.u32         %pair, %dims, 4;",
        Caught::OneOf(&[Kind::OutOfBounds, Kind::GlobalRace])
    ),
    fault!(
        "a second value is a first one",
        "fused_qkv.inc",
        "setp.ne.u32     %is_second, %slot, 0;",
        "setp.ne.u32     %is_second, 0, 0;",
        WRONG
    ),
    fault!(
        "what is not turned is",
        "fused_qkv.inc",
        "setp.lt.u32     %turned, %value, %dims;",
        "setp.le.u32     %turned, %value, %dims;",
        Caught::OneOf(&[Kind::OutOfBounds, Kind::UninitialisedGlobal])
    ),
    fault!("a value is turned", "fused_qkv.inc", "    @%is_v bra.uni  KEEP;\n", "", WRONG),
    fault!(
        "a key's bias is a query's",
        "fused_qkv.inc",
        "FUSED_KIND      %address, q_bias, k_bias, v_bias",
        "FUSED_KIND      %address, q_bias, q_bias, v_bias",
        WRONG
    ),
    fault!(
        "values go to the keys",
        "fused_qkv.inc",
        "FUSED_KIND      %address, keys, keys, values",
        "FUSED_KIND      %address, keys, keys, keys",
        Caught::OneOf(&[Kind::GlobalRace])
    ),
    fault!(
        "a part begins with the first head",
        "fused_qkv.inc",
        "    add.u32         %head, %head, %place;\n    setp.ge.u32     %is_k",
        "    setp.ge.u32     %is_k",
        WRONG
    ),
    fault!(
        "all tokens turn by the first one's angles",
        "fused_qkv.inc",
        "mad.lo.u32      %place, %token, %page, %pair;",
        "mad.lo.u32      %place, 0, %page, %pair;",
        WRONG
    ),
    fault!(
        "a slot counts its page's heads",
        "fused_qkv.inc",
        "mad.lo.u32      %head, %page, %kv_heads, %head;",
        "mad.lo.u32      %head, %page, %heads, %head;",
        Caught::OneOf(&[Kind::OutOfBounds])
    ),
    fault!("a half's rounding is cut", "fused_qkv.inc", "cvt.rn.f16.f32", "cvt.rz.f16.f32", WRONG),
];

#[test]
fn faults_in_what_all_share_are_caught() {
    let parsed = Parsed::default();
    each_is_caught("fused_output_q4_0.ptx", SHARED_FAULTS, |module| outputs(&parsed, module, Quant::Q4_0));
}

fn later(text: &str) -> String {
    tartlet::backend::cuda::kernels::dependent(text).expect("its launches overlap")
}

/// Of launches that overlap, as they are on devices that can.
#[test]
fn rows_that_are_not_waited_for_are_noticed() {
    let parsed = Parsed { dependent: true, ..Parsed::default() };
    let caught = Caught::By(Kind::GridNotWaited);
    let find = "    griddepcontrol.wait; ";
    let one = |name, replace| Fault { name, file: "fused.inc", find, replace, caught };
    let faults = [
        one("one thread waits", "    setp.eq.u32     %more, %thread, 0;\n    @%more griddepcontrol.wait; "),
        one("one warp waits", "    setp.eq.u32     %more, %warp, 0;\n    @%more griddepcontrol.wait; "),
    ];
    let cases = |module: &Module| outputs(&parsed, module, Quant::Q4_0);
    each_is_caught_in("fused_output_q4_0.ptx", later, &faults, cases);

    let faults = [
        Fault {
            file: "gemv.inc",
            ..one("one warp waits", "    setp.eq.u32     %more, %warp, 0;\n    @%more griddepcontrol.wait; ")
        },
        Fault {
            name: "vectors set out before the wait",
            file: "gemv.inc",
            find: "    mov.u32         %unstaged, %left;\n    griddepcontrol.wait; ",
            replace: "    mov.u32         %unstaged, %left;\n    STAGE_BATCH\n    griddepcontrol.wait; ",
            caught,
        },
    ];
    each_is_caught_in("gemv_q4_0.ptx", later, &faults, |module| {
        let (quant, n, columns) = (Quant::Q4_0, 33, 576);
        for (seed, tokens) in (0..).zip([1, 3]) {
            let seeded = &mut Seeded::new(seed);
            let rows = Rows::seeded(quant, columns, tokens, true, seeded);
            let mut bed = Bed::new(&parsed, &rows, seed)?;
            let matrix = bed.matrix(quant, n, &blocks(quant, n, columns, seeded));
            let y = bed.memory.alloc(tokens * n * 4, "y");
            bed.products_by(module, quant, matrix, n, (y, false))?;
        }
        Ok(())
    });
}

#[test]
fn faults_in_gate_and_up_are_caught() {
    let parsed = Parsed::default();
    each_is_caught("fused_gate_up_q4_0.ptx", GATE_UP_FAULTS, |module| gates(&parsed, module, Quant::Q4_0));
}

#[test]
fn faults_in_queries_keys_and_values_are_caught() {
    let parsed = Parsed::default();
    each_is_caught("fused_qkv_q4_0.ptx", QKV_FAULTS, |module| projections(&parsed, module, Quant::Q4_0));
}
