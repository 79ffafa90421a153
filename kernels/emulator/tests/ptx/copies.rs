//! cp.async: what it copies is waited for, where it goes and where it comes from.

use crate::faults::{caught, fine, run};
use ptx_emulator::Kind;

#[test]
fn copies_are_waited_for() {
    let ring = |wait: &str, barrier: &str| {
        format!(
            "mad.wide.u32 %at, %thread, 16, %data; cp.async.cg.shared.global [%t], [%at], 16; \
                cp.async.commit_group;
            cp.async.ca.shared.global [%t+1024], [%at], 16; cp.async.commit_group; {wait} {barrier}
            xor.b32 %v0, %thread, 32; mov.u32 %v1, tile; mad.lo.u32 %v1, %v0, 16, %v1;
            #
            ld.shared.u32 %v2, [%v1];
            cp.async.wait_all;"
        )
    };
    fine(1, 64, &ring("cp.async.wait_group 1;", "bar.sync 0;"));
    fine(1, 64, &ring("cp.async.wait_all;", "bar.sync 0;"));
    caught(Kind::CopyNotWaited, 1, 64, &ring("", "bar.sync 0;"));
    caught(Kind::CopyNotWaited, 1, 64, &ring("cp.async.wait_group 2;", "bar.sync 0;"));
    // The wait is the issuing thread's alone: others need the barrier.
    for seed in 0..5 {
        let fault = run(1, 64, seed, &ring("cp.async.wait_group 1;", "")).expect_err("a race");
        assert!(
            matches!(fault.kind, Kind::SharedRace | Kind::UninitialisedShared | Kind::CopyNotWaited),
            "{fault}"
        );
    }
    caught(
        Kind::CopyPending,
        1,
        32,
        "cp.async.ca.shared.global [%s], [%at], 4; cp.async.commit_group;\n#\nret;",
    );
    // Two copies to one place land in no order.
    caught(
        Kind::CopyNotWaited,
        1,
        32,
        "cp.async.ca.shared.global [%s], [%at], 4; cp.async.commit_group;\n#\ncp.async.ca.shared.global [%s], [%at], 4;",
    );
    // Until it lands, nobody writes where it comes from.
    let over = |wait: &str, write: &str| {
        format!(
            "cp.async.ca.shared.global [%s], [%at], 4; cp.async.commit_group; {wait}
            xor.b32 %v0, %thread, 32; mad.wide.u32 %at, %v0, 4, %data;
            #
            {write}
            cp.async.wait_all;"
        )
    };
    for write in ["st.global.u32 [%at], 1;", "red.global.add.u32 [%at], 1;", "st.u32 [%at], 1;"] {
        fine(1, 64, &over("cp.async.wait_all; bar.sync 0;", write));
        let fault = caught(Kind::CopyNotWaited, 1, 64, &over("bar.sync 0;", write));
        assert!(fault.sentence.contains("is still to read"), "{fault}");
    }
    fine(1, 64, &over("bar.sync 0;", "st.global.u32 [%at+2048], 1;"));
    // A slot of the ring is filled again while others may still read it.
    let refill = |barrier: &str| {
        format!(
            "cp.async.ca.shared.global [%s], [%at], 4; cp.async.wait_all; bar.sync 0;
            xor.b32 %v0, %thread, 32; mov.u32 %v1, tile; mad.lo.u32 %v1, %v0, 4, %v1; ld.shared.u32 %v2, [%v1];
            {barrier}
            #
            cp.async.ca.shared.global [%s], [%at], 4; cp.async.wait_all;"
        )
    };
    fine(1, 64, &refill("bar.sync 0;"));
    let failed = (0..8).filter(|&seed| run(1, 64, seed, &refill("")).is_err()).count();
    assert_eq!(failed, 8);
}
