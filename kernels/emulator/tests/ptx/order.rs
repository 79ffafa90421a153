//! What orders accesses of several blocks: atomics, fences and barriers, each half of which is needed.

use crate::faults::{caught, fine, run};
use ptx_emulator::Kind;

/// The last block to arrive reads what the others wrote: each half of the protocol is needed.
#[test]
fn blocks_order_each_other_by_fences_and_atomics_alone() {
    let protocol = |before: &str, after: &str| {
        format!(
            "mad.wide.u32 %at, %block, 4, %out; st.global.u32 [%at], %block; {before}
            atom.global.add.u32 %v0, [%data], 1;
            {after}
            setp.ne.u32 %p, %v0, 3; @%p ret;
            #
            ld.global.v4.u32 {{%v0, %v1, %v2, %v3}}, [%out];"
        )
    };
    fine(4, 1, &protocol("membar.gl;", "fence.acq_rel.gpu;"));
    fine(4, 1, &protocol("", "").replace("atom.global", "atom.acq_rel.gpu.global"));
    caught(Kind::GlobalRace, 4, 1, &protocol("", "membar.gl;"));
    caught(Kind::GlobalRace, 4, 1, &protocol("membar.gl;", ""));
    // A scope that ends with the block orders no other, nor does a ticket that is not drawn at once.
    caught(Kind::GlobalRace, 4, 1, &protocol("membar.cta;", "membar.gl;"));
    caught(Kind::GlobalRace, 4, 1, &protocol("membar.gl;", "fence.acq_rel.cta;"));
    let narrow = |protocol: String| protocol.replace("atom.global", "atom.relaxed.cta.global");
    caught(Kind::GlobalRace, 4, 1, &narrow(protocol("membar.gl;", "membar.gl;")));
    let drawn = "atom.global.add.u32 %v0, [%data], 1;";
    for (load, store) in [("", ""), (".relaxed.gpu", ""), ("", ".relaxed.gpu")] {
        let apart = format!(
            "ld{load}.global.u32 %v0, [%data]; add.u32 %v1, %v0, 1; st{store}.global.u32 [%data], %v1;"
        );
        let protocol = protocol("membar.gl;", "membar.gl;").replace(drawn, &apart);
        for seed in 0..5 {
            let fault = run(4, 1, seed, &protocol).expect_err("a race");
            assert_eq!(fault.kind, Kind::GlobalRace, "{fault}");
        }
    }
    // What is written after the release is not covered by it.
    let late = "membar.gl; atom.global.add.u32 %v0, [%data], 1; mad.wide.u32 %at, %block, 4, %out; \
        st.global.u32 [%at], %block;
        membar.gl; setp.ne.u32 %p, %v0, 3; @%p ret;
        #
        ld.global.u32 %v0, [%out]; ld.global.u32 %v0, [%out+4]; ld.global.u32 %v0, [%out+8];";
    let fault = run(4, 1, 0, late).expect_err("a race");
    assert_eq!(fault.kind, Kind::GlobalRace, "{fault}");
    // The other threads' writes are covered only if a barrier stands before the release.
    let block = |barrier: &str| {
        format!(
            "mad.lo.u32 %v0, %block, 64, %thread; mad.wide.u32 %at, %v0, 4, %out; \
                st.global.u32 [%at], %block; {barrier}
            setp.ne.u32 %p, %thread, 0; @%p ret;
            membar.gl; atom.global.add.u32 %v0, [%data], 1; membar.gl;
            setp.ne.u32 %p, %v0, 1; @%p ret;
            #
            ld.global.u32 %v0, [%out+128]; ld.global.u32 %v0, [%out+384];"
        )
    };
    fine(2, 64, &block("bar.sync 0;"));
    let failed = (0..8).filter(|&seed| run(2, 64, seed, &block("")).is_err()).count();
    assert!(failed > 0, "a missing barrier before the release shows under some seed");
}

/// An atomic is one of the lane that does it, in shared memory too.
#[test]
fn atomics_of_shared_memory_are_their_lanes_own() {
    fine(1, 32, "st.shared.u32 [%s], 0; atom.shared.add.u32 %v0, [%s], 1; st.shared.u32 [%s], 2;");
    let others = |sync: &str| {
        format!(
            "st.shared.u32 [%s], 0; {sync} xor.b32 %v0, %lane, 1; mov.u32 %v1, tile; mad.lo.u32 %v1, %v0, 4, %v1;
            setp.ne.u32 %p, %lane, 4; @%p bra OUT;
            atom.shared.add.u32 %v2, [%v1], 1; OUT: ret;"
        )
    };
    fine(1, 32, &others("bar.warp.sync -1;"));
    assert_eq!(run(1, 32, 0, &others("")).expect_err("a race").kind, Kind::SharedRace);
}

/// Who reads what a strong store of the block's own scope wrote has acquired nothing that was there before it.
#[test]
fn a_narrow_store_ends_what_a_wide_one_had_published() {
    let flag = |again: &str, value: u32| {
        format!(
            "setp.eq.u32 %p, %block, 0; @%p bra WRITE;
            AGAIN: ld.acquire.gpu.global.u32 %v0, [%data]; setp.ne.u32 %p, %v0, {value}; @%p bra AGAIN;
            ld.global.u32 %v0, [%out]; ret;
            WRITE: st.global.u32 [%out], 7; st.release.gpu.global.u32 [%data], 98; {again}"
        )
    };
    fine(2, 1, &flag("", 98));
    for again in
        ["st.relaxed.cta.global.u32 [%data], 99;", "atom.relaxed.cta.global.exch.b32 %v0, [%data], 99;"]
    {
        for seed in 0..5 {
            let fault = run(2, 1, seed, &flag(again, 99)).expect_err("a race");
            assert_eq!(fault.kind, Kind::GlobalRace, "{fault}");
        }
    }
}

/// What one thread acquires the others of its block have behind a barrier, not before.
#[test]
fn what_a_thread_acquires_is_its_own_until_a_barrier() {
    let last = |at_once: &str, late: &str| {
        format!(
            "mad.lo.u32 %v0, %block, 64, %thread; mad.wide.u32 %at, %v0, 4, %out;
            st.global.u32 [%at], %block; bar.sync 0;
            setp.ne.u32 %p, %thread, 0; @%p bra DRAWN;
            membar.gl; atom.global.add.u32 %v0, [%data], 1; {at_once}
            st.shared.u32 [tile], %v0;
            DRAWN: bar.sync 0; {late}
            ld.shared.u32 %v0, [tile]; setp.ne.u32 %p, %v0, 1; @%p ret;
            ld.global.u32 %v0, [%out+128]; ld.global.u32 %v0, [%out+384];"
        )
    };
    fine(2, 64, &last("membar.gl;", ""));
    fine(
        2,
        64,
        &last("", "membar.gl; bar.sync 0;").replace("membar.gl; atom", "membar.gl; atom.acq_rel.gpu"),
    );
    for seed in 0..8 {
        for late in ["@%p bra READ; membar.gl; READ:", "@%p bra READ; membar.gl; READ: bar.warp.sync -1;"] {
            let fault = run(2, 64, seed, &last("", late)).expect_err("a race");
            assert_eq!(fault.kind, Kind::GlobalRace, "{fault}");
        }
    }
    // What a block has acquired it hands on with its own.
    let chain = |between: &str| {
        format!(
            "setp.ne.u32 %p, %thread, 0; @%p ret; mad.wide.u32 %at, %block, 4, %data; add.u32 %v1, %block, 1;
            setp.eq.u32 %p, %block, 0; @%p bra WRITE;
            AGAIN: ld.relaxed.gpu.global.u32 %v0, [%at]; setp.ne.u32 %p, %v0, 99; @%p bra AGAIN; {between}
            setp.lt.u32 %p, %block, 2; @%p bra TELL;
            ld.global.u32 %v0, [%out]; ret;
            WRITE: st.global.u32 [%out], 7;
            TELL: membar.gl; mad.wide.u32 %at, %v1, 4, %data; st.relaxed.gpu.global.u32 [%at], 99;"
        )
    };
    fine(3, 1, &chain("membar.gl;"));
    let missing = (0..8).filter(|&seed| run(3, 1, seed, &chain("")).is_err()).count();
    assert_eq!(missing, 8, "neither the second block nor the third has acquired");
}
