//! Spellings: what ptxas takes is taken. Set PTXAS to hold the list against a ptxas.

use crate::harness::{HEAD, module};

const FORMS: &str = "
    cvt.u64.u32 %d1, %tid.x; cvt.u16.u32 %s1, %ntid.y; mov.u32 %r1, %nctaid.z; mov.u32 %r1, WARP_SZ;
    mov.u64 %d1, %clock64; mov.u32 %r1, %clock; mov.u32 %r1, %smid; mov.u32 %r1, %nsmid;
    mov.u32 %r1, %warpid;
    mov.u32 %r1, %lanemask_lt; mov.u32 %r1, %lanemask_ge; mov.u64 %d1, %globaltimer;
    mov.u32 %r1, %dynamic_smem_size;
    mov.b32 %f1, %r1; mov.b32 %r1, 0f3F800000; mov.f32 %f1, -1.5; mov.f32 %f1, 0.25;
    mov.f64 %e1, 0d3FF0000000000000;
    mov.pred %p1, 1; mov.pred %p1, %p2; mov.u32 %r1, tile; mov.u64 %d1, tile; mov.u32 %r1, -1;
    mov.u32 %r1, 077;
    mov.b64 {%r1, %r2}, %d1; mov.b64 %d1, {%r1, %r2}; mov.b32 %r1, {%h1, 0}; mov.b32 {_, %h1}, %r1;
    mov.b64 %d1, {%h1, %h1, %h2, %h2}; mov.b64 {%h1, %h2, _, _}, %d1; add.u32 %r1, %r1, WARP_SZ;
    and.b32 %r1, %f1, 3;
    ld.shared.u32 %r1, [%r1+-16]; ld.shared.b32 %f1, [tile+4*4]; ld.shared.b32 %r1, [%d1];
    ld.volatile.shared.u32 %r1, [tile];
    ld.global.u8 %r1, [%d1]; ld.global.s8 %h1, [%d1]; ld.global.b16 %f1, [%d1]; ld.global.nc.b64 %d1, [%d1];
    ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%r1, %r2, %r3, %r4}, [%d1], %d2;
    ld.global.L1::no_allocate.L2::128B.v4.f32 {%f1, %f2, %f3, %f4}, [%d1]; ld.global.cg.u32 %r1, [%d1];
    ld.global.L1::evict_last.u32 %r1, [%d1]; ld.acquire.gpu.global.u32 %r1, [%d1];
    ld.relaxed.sys.global.u32 %r1, [%d1];
    ld.volatile.global.v2.u32 {%r1, _}, [%d1]; ld.weak.global.u32 %r1, [%d1]; ldu.global.u32 %r1, [%d1];
    st.global.u8 [%d1], %r1; st.global.v2.u32 [%d1], {%r1, 0}; st.global.f32 [%d1], 0f00000000;
    st.global.cs.b32 [%d1], %f1;
    st.release.gpu.global.u32 [%d1], %r1; st.volatile.shared.u32 [tile], %r1;
    st.shared.v2.b64 [%r1], {%d1, %d2};
    prefetch.global.L2 [%d1]; prefetch.global.L1 [%d1+128]; nanosleep.u32 100;
    createpolicy.fractional.L2::evict_first.b64 %d2; createpolicy.fractional.L2::evict_last.b64 %d2, 0.5;
    setp.eq.u32 %p1|%p2, %r1, %r2; setp.eq.and.u32 %p1, %r1, %r2, !%p2; setp.ltu.f32 %p1, %f1, 0f00000000;
    setp.lt.f16 %p1, %h1, %h2; setp.lo.u32 %p1, %r1, 5; setp.ne.b64 %p1, %d1, 0;
    setp.gt.or.f64 %p1, %e1, %e1, %p2;
    and.pred %p1, %p1, !%p2; or.pred %p1, %p1, %p2; not.pred %p1, %p2; selp.f32 %f1, 0f00000000, %f1, !%p1;
    set.lt.u32.f32 %r1, %f1, %f2; set.lt.f32.f32 %f1, %f1, %f2; slct.f32.s32 %f1, %f1, %f2, %r1;
    testp.finite.f32 %p1, %f1;
    shfl.sync.bfly.b32 %f2, %f1, 16, 31, -1; shfl.sync.idx.b32 %f2|%p1, %f1, %r1, 0x1f, 0xffffffff;
    vote.sync.ballot.b32 %r1, !%p1, -1; vote.sync.uni.pred %p1, %p1, -1; activemask.b32 %r1;
    redux.sync.or.b32 %r1, %r1, -1;
    match.any.sync.b64 %r1, %d1, -1; match.all.sync.b32 %r1|%p1, %r2, -1;
    bar.sync 0; bar.sync %r1, 64; barrier.sync 0; bar.arrive 1, 64; bar.warp.sync 0xffffffff;
    bar.red.popc.u32 %r1, 0, %p1; barrier.red.and.pred %p1, 0, 64, !%p1; @%p1 bar.sync 0;
    membar.gl; membar.cta; fence.acq_rel.gpu; fence.sc.sys; fence.acq_rel.cta;
    atom.global.add.u64 %d1, [%d1], 1; red.global.add.f32 [%d1], %f1; red.shared.max.s32 [%r1], -5;
    atom.add.u32 %r1, [%d1], 1;
    atom.global.add.noftz.f16x2 %b1, [%d1], %b2; atom.acq_rel.gpu.global.inc.u32 %r1, [%d1], %r2;
    atom.global.acq_rel.gpu.inc.u32 %r1, [%d1], %r2; atom.global.cas.b32 %r1, [%d1], %r2, %r3;
    atom.shared.exch.b64 %d1, [%r1], %d2;
    red.release.gpu.global.add.u32 [%d1], 1; atom.global.min.s64 %l1, [%d1], %l1;
    red.global.add.f64 [%d1], %e1;
    cp.async.cg.shared.global [%r1], [%d1], 16; cp.async.ca.shared.global [%r1+16], [%d1+4], 4, %r2;
    cp.async.cg.shared.global.L2::128B [%r1], [%d1], 16, 0;
    cp.async.cg.shared.global.L2::cache_hint [%r1], [%d1], 16, %d2;
    cp.async.ca.shared.global.L2::256B [tile], [%d1], 8; cp.async.commit_group; cp.async.wait_group 2;
    cp.async.wait_all;
    mul.f32 %f1, %f1, %f1; mul.ftz.rn.f32 %f1, %f1, %f1; mul.sat.rn.f32 %f1, %f1, 2.0; sub.s32 %r1, 0, %r1;
    fma.rp.f32 %f1, %f1, %f1, %f1; mad.rn.f32 %f1, %f1, %f1, %f1; add.rm.f32 %f1, %f1, %f1;
    div.rz.f32 %f1, %f1, %f1;
    add.rn.f16 %h1, %h1, %h1; fma.rn.bf16 %h1, %h1, %h1, %h1; fma.rn.relu.f16x2 %b1, %b1, %b1, %b1;
    max.bf16x2 %b1, %b1, %b1;
    add.f16x2 %b1, %b1, %b1; neg.f16x2 %b1, %b1; neg.bf16x2 %b1, %b1; abs.f16 %h1, %h1;
    fma.rn.bf16x2 %b1, %b1, %b1, %b1;
    min.NaN.f32 %f1, %f1, %f1; copysign.f32 %f1, %f1, %f2; rcp.rn.f64 %e1, %e1;
    div.full.ftz.f32 %f1, %f1, %f1;
    ex2.approx.f16x2 %b1, %b1; ex2.approx.ftz.f32 %f1, %f1; tanh.approx.f32 %f1, %f1;
    tanh.approx.f16 %h1, %h1;
    rsqrt.approx.ftz.f32 %f1, %f1; sin.approx.f32 %f1, %f1; cos.approx.ftz.f32 %f1, %f1;
    lg2.approx.f32 %f1, %f1;
    cvt.rni.s32.f32 %r1, %f1; cvt.rzi.sat.s8.f32 %r1, %f1; cvt.sat.u8.s32 %r1, %r1;
    cvt.rni.f32.f32 %f1, %f1; cvt.f32.bf16 %f1, %h1;
    cvt.rn.f32.f64 %f1, %e1; cvt.rn.f32.u64 %f1, %d1; cvt.rz.bf16x2.f32 %b1, %f1, %f2;
    cvt.rn.f16.u32 %h1, %r1; cvt.rzi.u16.f16 %s1, %h1;
    cvt.rn.relu.f16x2.f32 %b1, %f1, %f2; cvt.ftz.sat.f32.f32 %f1, %f1; cvt.rpi.ftz.s32.f32 %r1, %f1;
    lop3.b32 %r1, %r1, %r2, %r3, 0xea; prmt.b32 %r1, %r1, %r2, 0x5410; prmt.b32.ecl %r1, %r1, %r2, %r3;
    dp2a.lo.s32.s32 %r1, %r1, %r1, %r1;
    add.cc.u32 %r1, %r1, %r2; addc.cc.u32 %r1, %r1, %r2; subc.u32 %r1, %r1, %r2;
    mad.hi.cc.u32 %r1, %r1, %r1, %r1; madc.lo.u32 %r1, %r1, %r1, 0;
    add.cc.s64 %l1, %l1, %l1; mad.wide.s16 %r1, %s1, %s1, %r1; mul.wide.s32 %l1, %r1, -4;
    sad.s32 %r1, %r1, %r2, %r3;
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%b1, %b2, %b3, %b4}, [%r1+32];
    mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%b1, %b2}, {%b1, %b2, %b3, %b4}, {%b1, %b2},
        {%b1, %b2};
    mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.s8.s32 {%r1, %r2, %r3, %r4}, {%b1, %b2, %b3, %b4},
        {%b1, %b2}, {%r1, %r2, %r3, %r4};
    mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%b1, %b2}, {%b1},
        {0f00000000, 0f00000000, %f3, %f4};
    bra.uni NEXT; NEXT: @!%p1 exit; trap;
";

fn text(forms: &str) -> String {
    format!(
        "{HEAD}.shared .align 16 .b8 tile[64];
.visible .entry forms(.param .u64 .ptr .global .align 16 a) .reqntid 128, 1, 1 .maxnreg 64 {{
    .reg .u32 %r<5>; .reg .b32 %b<5>; .reg .f32 %f<5>; .reg .pred %p<3>; .reg .b16 %h<3>; .reg .u16 %s<3>;
    .reg .b64 %d<3>; .reg .s64 %l<3>; .reg .f64 %e<3>;
    .loc 1 2 3
    ld.param.u64 %d1, [a];
    {forms}
    ret;
}}"
    )
}

#[test]
fn all_of_them_are_taken() {
    let module = module(&text(FORMS));
    let kernel = module.kernels().next().expect("the kernel");
    assert_eq!(kernel.required_block(), Some([128, 1, 1]));
    assert!(kernel.instructions() > 180);
}

/// Where a later instruction set has it, ptxas wants a later target.
#[test]
fn a_dependent_launch_is_taken_for_sm_90() {
    let text = text("griddepcontrol.wait; griddepcontrol.launch_dependents; elect.sync %r1|%p1, -1;");
    let text = text.replace("7.4", "8.0").replace("sm_80", "sm_90");
    assert!(ptx_emulator::Module::parse(&text).is_ok());
}

/// What is left of a text after a few of its characters are gone is a module or an error with a line.
#[test]
fn damaged_texts_end_in_an_error() {
    let whole = text(FORMS);
    for length in [1, 3, 9] {
        for start in (0..whole.len() - length).step_by(5) {
            let damaged = [&whole[..start], &whole[start + length..]].concat();
            if let Err(error) = ptx_emulator::Module::parse(&damaged) {
                assert!(error.line > 0 && !error.sentence.is_empty(), "{error}");
            }
        }
    }
}
