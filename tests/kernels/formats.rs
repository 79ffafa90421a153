//! Faults in the formats, and in what the loops do for some of them alone.
//!
//! Owns: which fault is put into which kernel. Never: what a product should be: `gemv.rs` and `gemm.rs` say so.

use crate::harness::{Caught, Fault, each_is_caught, fault};
use crate::{gemm, gemv};
use Caught::By;
use ptx_emulator::Kind;
use tartlet::model::quant::Quant;

const WRONG: Caught = Caught::WrongResult;

const FAULTS_OF_Q4_1: &[Fault] = &[
    fault!(
        "minima of the other block",
        "quant.inc",
        "%\\d\\()\\(6 + \\block), %even,",
        "%\\d\\()\\(7 - \\block), %even,",
        WRONG
    ),
    fault!(
        "minima and scales change places",
        "fmt/scales_dm.inc",
        "%\\d\\()1, %\\d\\()5, %\\w\\()_s1",
        "%\\d\\()5, %\\d\\()1, %\\w\\()_s1",
        WRONG
    ),
    fault!(
        "the minimum of the even token",
        "quant.inc",
        "mul.rn.f32  %odd, \\odd_d, %odd;",
        "mul.rn.f32  %odd, \\even_d, %odd;",
        WRONG
    ),
];

const FAULTS_OF_Q8_0: &[Fault] = &[
    fault!(
        "fragments a1 and a2 change places",
        "fmt/quants_8.inc",
        "%\\a\\()1, %\\w\\()_q\\(4 * \\block + 1)",
        "%\\a\\()1, %\\w\\()_q\\(4 * \\block + 2)",
        WRONG
    ),
    fault!(
        "the second block's quants lie 256 bytes on",
        "fmt/quants_8.inc",
        "\\(\\at + 512)",
        "\\(\\at + 256)",
        WRONG
    ),
    fault!(
        "sums start at a number that is none",
        "quant.inc",
        ".equ SUM_START, 0x4b400000",
        ".equ SUM_START, 0",
        WRONG
    ),
];

const FAULTS_OF_Q5_0: &[Fault] = &[
    fault!("an offset of 15", "fmt/q5_0.inc", ".equ OFFSET, 16", ".equ OFFSET, 15", WRONG),
    fault!(
        "row g's fifth bits twice",
        "fmt/quants_5.inc",
        "%\\a\\()1, %\\w\\()_h, \\(4 + \\block)",
        "%\\a\\()1, %\\w\\()_h, \\block",
        WRONG
    ),
    fault!("a fifth bit counts 8", "fmt/quants_5.inc", "0x10101010", "0x08080808", WRONG),
    fault!("nibbles for fifth bits", "gemv.inc", "    add.u64         %high, %high, PAIR_LOW;\n", "", WRONG),
    fault!(
        "the fifth bits of the batch before",
        "gemv.inc",
        "    add.u64         %high, %high, \\(BATCH * PAIR_QUANTS);\n",
        "",
        WRONG
    ),
];

const FAULTS_OF_Q5_1: &[Fault] = &[
    fault!(
        "the first sixteen's fifth bits twice",
        "fmt/quants_5.inc",
        "%\\a\\()2, %\\w\\()_h, \\(2 + \\block)",
        "%\\a\\()2, %\\w\\()_h, \\block",
        WRONG
    ),
    fault!(
        "block 0's scale and minimum for both",
        "fmt/scales_dm.inc",
        "%\\d\\()5, %\\w\\()_s1",
        "%\\d\\()5, %\\w\\()_s0",
        WRONG
    ),
    fault!(
        "the minimum before the token's scale",
        "quant.inc",
        "mul.rn.f32  %even, \\even_d, %even;",
        "mov.f32     %even, %even;",
        WRONG
    ),
];

const FAULTS_OF_Q4_K: &[Fault] = &[
    fault!(
        "upper bits of later scales where they lie",
        "fmt/scales_k.inc",
        "%\\s\\()\\(4 * \\row + 1), \\shift;",
        "%\\s\\()\\(4 * \\row + 1), 0;",
        WRONG
    ),
    fault!(
        "scales' nibbles for minima's",
        "fmt/scales_k.inc",
        "shr.u32     %minima, %\\s\\()\\(4 * \\row + 3), 4;",
        "shr.u32     %minima, %\\s\\()\\(4 * \\row + 3), 0;",
        WRONG
    ),
    fault!("minima are added", "fmt/scales_k.inc", "        neg.f32     %dmin, %dmin;\n", "", WRONG),
    fault!(
        "row g's d for both",
        "fmt/scales_k.inc",
        "%dmin, %\\s\\()\\(4 * \\row)",
        "%dmin, %\\s\\()0",
        WRONG
    ),
    fault!(
        "blocks of the pair beside",
        "gemv.inc",
        "\\(0x7440 + \\j % 2 * 2)",
        "\\(0x7442 - \\j % 2 * 2)",
        WRONG
    ),
    fault!("the superblocks of the batch before", "gemv.inc", "\\(BATCH / 4 * SUPER_SCALES)", "0", WRONG),
    fault!(
        "a superblock past the end",
        "gemv.inc",
        "setp.gt.s32     %more, %left, \\(4 * \\at);",
        "setp.ge.s32     %more, %left, \\(4 * \\at);",
        By(Kind::OutOfBounds)
    ),
    fault!(
        "runs that part superblocks",
        "gemv.inc",
        "1 + 3 * (SUPER_SCALES > 0)",
        "1",
        By(Kind::OutOfBounds)
    ),
];

const FAULTS_OF_Q5_K: &[Fault] = &[
    fault!(
        "the first sixteen's fifth bits for the others",
        "fmt/quants_5.inc",
        "%\\a\\()3, %\\w\\()_h, \\(6 + \\block)",
        "%\\a\\()3, %\\w\\()_h, \\(4 + \\block)",
        WRONG
    ),
    fault!(
        "row g's superblock twice",
        "fmt/scales_k.inc",
        "[\\scales + \\(\\at + 128)]",
        "[\\scales + \\(\\at)]",
        WRONG
    ),
    fault!(
        "the first block's minimum for both",
        "fmt/scales_k.inc",
        "%minima, \\second, %dmin",
        "%minima, \\first, %dmin",
        WRONG
    ),
    fault!(
        "a superblock too far on",
        "gemv.inc",
        "STREAM_SUPER    \\(\\j / 4), \\(\\j / 4 + 2)",
        "STREAM_SUPER    \\(\\j / 4), \\(\\j / 4 + 1)",
        WRONG
    ),
];

const FAULTS_OF_Q6_K: &[Fault] = &[
    fault!(
        "the uppermost bit is not flipped",
        "fmt/quants_6.inc",
        "0xc0c0c0c0, 0x80808080, 0x6a",
        "0xc0c0c0c0, 0, 0x6a",
        WRONG
    ),
    fault!(
        "the first sixteen's upper bits twice",
        "fmt/quants_6.inc",
        "%\\w\\()_h0, \\(2 - 2 * \\block)",
        "%\\w\\()_h0, \\(6 - 2 * \\block)",
        WRONG
    ),
    fault!(
        "the first sixteen's columns twice",
        "fmt/quants_6.inc",
        "%\\a\\()3, \\b1",
        "%\\a\\()3, \\b0",
        WRONG
    ),
    fault!(
        "scales without a sign",
        "fmt/scales_6.inc",
        "%\\w\\()_s\\row, 0x80808080;",
        "%\\w\\()_s\\row, 0;",
        WRONG
    ),
    fault!(
        "the first half's scale twice",
        "fmt/scales_6.inc",
        "_s\\(4 * \\row + 2 * \\block + 1), %number;",
        "_s\\(4 * \\row + 2 * \\block), %number;",
        WRONG
    ),
    fault!(
        "sums four times too large",
        "fmt/scales_6.inc",
        "0f3e800000, 0fca000080",
        "0f3f800000, 0fcb000080",
        WRONG
    ),
    fault!(
        "rows change their d",
        "fmt/scales_6.inc",
        "%\\d\\()_d0, %\\d\\()_d1,",
        "%\\d\\()_d1, %\\d\\()_d0,",
        WRONG
    ),
    fault!(
        "superblocks where the pairs' scales lie",
        "gemv.inc",
        "mad.wide.u32    %super, %pairs, PAIR_SCALES, %s;",
        "mov.u64         %super, %s;",
        WRONG
    ),
];

#[test]
fn faults_in_the_formats_are_caught() {
    for (kernel, quant, faults) in [
        ("gemv_q4_1.ptx", Quant::Q4_1, FAULTS_OF_Q4_1),
        ("gemv_q8_0.ptx", Quant::Q8_0, FAULTS_OF_Q8_0),
        ("gemv_q5_0.ptx", Quant::Q5_0, FAULTS_OF_Q5_0),
        ("gemv_q5_1.ptx", Quant::Q5_1, FAULTS_OF_Q5_1),
        ("gemv_q4_k.ptx", Quant::Q4_K, FAULTS_OF_Q4_K),
        ("gemv_q5_k.ptx", Quant::Q5_K, FAULTS_OF_Q5_K),
        ("gemv_q6_k.ptx", Quant::Q6_K, FAULTS_OF_Q6_K),
    ] {
        each_is_caught(kernel, faults, |module| gemv::cases(quant, module));
    }
}

const FAULTS_OF_BF16: &[Fault] = &[
    fault!("half of K", "gemv.inc", "STEPS_A_PAIR, 1 + FLOATS", "STEPS_A_PAIR, 1", WRONG),
    fault!("runs that part pairs", "gemv.inc", "\\(RUN_PAIRS * STEPS_A_PAIR)", "RUN_PAIRS", WRONG),
    fault!(
        "fragments a1 and a2 change places",
        "fmt/floats.inc",
        "%\\a\\()1, %\\w\\()_q\\(4 * \\block + 1)",
        "%\\a\\()1, %\\w\\()_q\\(4 * \\block + 2)",
        WRONG
    ),
    fault!(
        "copies go past the run's end",
        "gemv.inc",
        "setp.lt.s32     %some_q, %lane_step, %unstaged;",
        "setp.le.s32     %some_q, %lane_step, %unstaged;",
        By(Kind::OutOfBounds)
    ),
];

const FAULTS_OF_F16: &[Fault] = &[
    fault!("halves are taken for bf16", "fmt/f16.inc", ".equ HALF, 1", ".equ HALF, 0", WRONG),
    fault!(
        "the first columns twice",
        "fmt/floats.inc",
        "[\\quants + \\(\\quants_at + 512)]",
        "[\\quants + \\(\\quants_at)]",
        WRONG
    ),
    fault!(
        "weights are read a step past the end",
        "gemv.inc",
        "setp.gt.s32     %more, %left, \\j;",
        "setp.ge.s32     %more, %left, \\j;",
        By(Kind::OutOfBounds)
    ),
];

#[test]
fn faults_in_vectors_of_floats_are_caught() {
    for (kernel, faults) in gemm::VECTORS.iter().zip([FAULTS_OF_BF16, FAULTS_OF_F16]) {
        each_is_caught(kernel.file, faults, |module| gemm::vector_cases(kernel, module));
    }
}

const FAULTS_OF_HIGH_BITS: &[Fault] = &[
    fault!(
        "the last row tile has no upper bits",
        "gemm.inc",
        "HIGH_COPIERS, TILES * PAIR_HIGH",
        "HIGH_COPIERS, (TILES - 1) * PAIR_HIGH",
        By(Kind::UninitialisedShared)
    ),
    fault!(
        "upper bits past the end are read",
        "gemm.inc",
        "%high_size, 16, 0, %ok;",
        "%high_size, 16, 16, %ok;",
        By(Kind::OutOfBounds)
    ),
    fault!(
        "every upper bit of the first pair",
        "gemm.inc",
        "    add.u64         %high_from, %high_from, PAIR_QUANTS;\n",
        "",
        WRONG
    ),
    fault!(
        "upper bits of the lane beside",
        "gemm.inc",
        "%lane, \\(PAIR_HIGH / 32), %warp_high",
        "%thread, \\(PAIR_HIGH / 32), %warp_high",
        Caught::WrongResult
    ),
];

const FAULTS_OF_SUPERBLOCKS: &[Fault] = &[
    fault!(
        "two superblocks in one place",
        "gemm.inc",
        "and.b32         %to, %fetch, 4;",
        "and.b32         %to, %fetch, 0;",
        Caught::OneOf(&[Kind::SharedRace, Kind::CopyNotWaited])
    ),
    fault!(
        "the superblock in the other place",
        "gemm.inc",
        "and.b32         %super_at, %step, 4;",
        "and.b32         %super_at, %step, 0;",
        By(Kind::SharedRace)
    ),
    fault!(
        "superblocks past the end are read",
        "gemm.inc",
        "%super_size, 16, 0, %ok;",
        "%super_size, 16, 16, %ok;",
        By(Kind::OutOfBounds)
    ),
    fault!(
        "a superblock for two pairs",
        "gemm.inc",
        "and.b32         %to, %fetch, 3;",
        "and.b32         %to, %fetch, 1;",
        By(Kind::CopyNotWaited)
    ),
    fault!("runs that part superblocks", "gemm.inc", "1 + 3 * (SUPER_SCALES > 0)", "1", WRONG),
    fault!(
        "superblocks where the pairs' scales lie",
        "gemm.inc",
        "mul.wide.u32    %wide, %steps, PAIR_SCALES; ",
        "mov.u64         %wide, 16; ",
        WRONG
    ),
];

const FAULTS_OF_PAIRS: &[Fault] = &[
    fault!(
        "blocks of the pair beside",
        "gemm.inc",
        "mad.lo.u32      %first, %first, 2, 0x7440;",
        "mad.lo.u32      %first, %first, -2, 0x7442;",
        WRONG
    ),
    fault!(
        "the later pairs are taken for the first",
        "gemm.inc",
        "selp.b32        %mask, 0x0f0f0f0f, 0, %ok;",
        "mov.b32         %mask, 0;",
        WRONG
    ),
];

#[test]
fn faults_in_what_few_formats_have_are_caught() {
    for kernel in &gemm::KERNELS {
        let faults: &[&[Fault]] = match kernel.file {
            "gemm_q5_0.ptx" | "gemm_q5_1_narrow.ptx" => &[FAULTS_OF_HIGH_BITS],
            "gemm_q4_k.ptx" | "gemm_q4_k_narrow.ptx" => &[FAULTS_OF_PAIRS],
            "gemm_q6_k.ptx" | "gemm_q6_k_narrow.ptx" => &[FAULTS_OF_HIGH_BITS, FAULTS_OF_SUPERBLOCKS],
            _ => &[],
        };
        for faults in faults {
            each_is_caught(kernel.file, faults, |module| gemm::cases(kernel, module));
        }
    }
}
