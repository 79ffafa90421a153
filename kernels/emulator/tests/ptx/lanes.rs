//! What lanes of a warp owe each other: `bar.warp.sync` of some of them, and lanes that run independently.

use crate::faults::{beside, caught, fine};
use crate::harness::{HEAD, Run};
use ptx_emulator::{Kind, Options, Parameters};

/// bar.warp.sync orders its members, and what its members learnt from others; nobody else.
#[test]
fn some_lanes_synchronise() {
    let below = |mask: &str| {
        let some = format!("setp.ge.u32 %p, %lane, 16; @%p bra END; {}", beside(1, mask));
        some + " END:"
    };
    fine(1, 32, &below("bar.warp.sync 0xffff;"));
    let both = "selp.b32 %v3, 0xffff0000, 0xffff, %q; bar.warp.sync %v3;";
    fine(1, 32, &format!("setp.ge.u32 %q, %lane, 16; {}", beside(1, both)));
    let halves = |distance: u32, then: &str| {
        format!("setp.ge.u32 %q, %lane, 16; {}", beside(distance, both).replace('#', &format!("{then}\n#")))
    };
    fine(1, 32, &halves(15, ""));
    caught(Kind::SharedRace, 1, 32, &halves(16, ""));
    fine(1, 32, &halves(16, "bar.warp.sync -1;"));
    fine(1, 32, &halves(16, "bar.sync 0;"));
    let chain = |last: &str| {
        format!(
            "setp.eq.u32 %p, %lane, 20; @%p st.shared.u32 [%s], 1;
            setp.eq.u32 %p, %lane, 20; setp.eq.or.u32 %p, %lane, 10, %p; @%p bar.warp.sync 0x100400;
            setp.eq.u32 %p, %lane, 2; setp.eq.or.u32 %p, %lane, 10, %p; @%p bar.warp.sync 0x404;
            setp.eq.u32 %p, %lane, {last}; mov.u32 %v0, tile;
            #
            @%p st.shared.u32 [%v0 + 80], 2;"
        )
    };
    fine(1, 32, &chain("2"));
    caught(Kind::SharedRace, 1, 32, &chain("3"));
    // Readers before a write: all of them must have been met.
    let read = |mask: &str, then: &str| {
        format!(
            "mov.u32 %v0, tile; setp.eq.u32 %p, %lane, 0; @%p st.shared.u32 [%v0], 1; bar.warp.sync -1;
            setp.lt.u32 %q, %lane, 8; @%q ld.shared.u32 %v1, [%v0]; @%q bar.warp.sync {mask}; {then}
            #
            @%p st.shared.u32 [%v0], 2;"
        )
    };
    fine(1, 32, &read("0xff", ""));
    caught(Kind::SharedRace, 1, 32, &read("0xff", "setp.eq.u32 %q, %lane, 9; @%q ld.shared.u32 %v1, [%v0];"));
    // A fence orders no lanes.
    caught(Kind::SharedRace, 1, 32, &beside(1, "fence.acq_rel.gpu;"));
}

/// Lanes part at a branch and, where nothing synchronises them, stay apart.
#[test]
fn independent_lanes_meet_where_they_synchronise() {
    let run = |seed: u64, independent: bool, body: &str| {
        let text = format!(
            "{HEAD}.visible .entry part(.param .u64 to) {{
    .reg .pred %p, %q; .reg .b64 %to; .reg .b32 %lane, %v, %here, %n; .reg .f32 %d<4>;
    ld.param.u64 %to, [to];
    mov.u32 %lane, %laneid;
    mad.wide.u32 %to, %lane, 4, %to;
    setp.lt.u32 %p, %lane, 8;
    mov.u32 %v, %lane;
    @%p bra APART;
    add.u32 %v, %v, 100;
APART:
    {body}
    st.global.u32 [%to], %v;
    ret;
}}"
        );
        let mut run = Run::new(1, 32);
        run.options = Options { seed, independent, ..Options::default() };
        let to = run.memory.alloc(128, "to");
        run.go(&text, &Parameters::new().u64(to)).map(|_| run.words(to, 32))
    };
    let own = |lane: u32| if lane < 8 { lane } else { lane + 100 };
    let all = |of: &dyn Fn(u32) -> u32| (0..32).map(of).collect::<Vec<u32>>();
    for seed in 0..8 {
        let independent = |body: &str| run(seed, true, body);
        // Who is here is luck on a device; together they all are.
        let active = "activemask.b32 %v;";
        assert_eq!(run(seed, false, active).expect("no fault"), vec![u32::MAX; 32]);
        let apart = |lane: u32| if lane < 8 { 0xff } else { 0xffff_ff00 };
        assert_eq!(independent(active).expect("no fault"), all(&apart), "seed {seed}");
        // One that relies on that luck names too few or waits for those that never come.
        let fault = independent("setp.eq.u32 %q, %lane, 9; @%q bra END; bar.warp.sync -1;\nEND:");
        assert_eq!(fault.expect_err("lane 9 never comes").kind, Kind::MemberMask);
        let mma = "mov.f32 %d0, 0.0; setp.eq.u32 %q, %lane, 9; @%q bra END;
            mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3}, {%v, %v}, {%v}, {%d0, %d0, %d0, %d0};\nEND:";
        assert_eq!(independent(mma).expect_err("lane 9 never comes").kind, Kind::PartialWarp);
        assert_eq!(
            independent("setp.eq.u32 %q, %lane, 9; @%q bra END; bar.sync 0;\nEND: bar.sync 0;")
                .map_err(|fault| fault.kind),
            Err(Kind::BarrierDivergence)
        );
        // What is .sync waits for its members, and only for them.
        for sync in ["bar.warp.sync -1;", "bar.sync 0;", "vote.sync.any.pred %q, %p, -1;"] {
            assert_eq!(
                independent(&format!("{sync} {active}")).expect("no fault"),
                vec![u32::MAX; 32],
                "{sync}"
            );
        }
        let shuffle = independent("shfl.sync.bfly.b32 %v, %v, 8, 31, -1;").expect("no fault");
        assert_eq!(shuffle, all(&|lane| own(lane ^ 8)));
        let some = "setp.ge.u32 %q, %lane, 16; @%q bra END; shfl.sync.bfly.b32 %v, %v, 8, 31, 0xffff;\nEND:";
        let want = |lane: u32| if lane < 16 { own(lane ^ 8) } else { own(lane) };
        assert_eq!(independent(some).expect("no fault"), all(&want));
        let guarded = "setp.lt.u32 %q, %lane, 16; @%q shfl.sync.bfly.b32 %v, %v, 8, 31, 0xffff;";
        assert_eq!(independent(guarded).expect("no fault"), all(&want));
        // Each lane its own way and its own number of times.
        let loops = "mov.u32 %n, 0;\nAGAIN: add.u32 %n, %n, 1; add.u32 %v, %v, 1; setp.lt.u32 %q, %n, %lane; @%q bra AGAIN;
            shfl.sync.idx.b32 %v, %v, 31, 31, -1;";
        assert_eq!(independent(loops).expect("no fault"), vec![131 + 31; 32]);
        // A lane that exits is waited for no longer by what wants all that live.
        let leave =
            "setp.eq.u32 %q, %lane, 31; st.global.u32 [%to], 7; @%q ret; bar.sync 0; activemask.b32 %v;";
        let want = |lane: u32| if lane == 31 { 7 } else { 0x7fff_ffff };
        assert_eq!(independent(leave).expect("no fault"), all(&want));
    }
}

/// A lane waits for another of its warp: they take turns.
#[test]
fn independent_lanes_take_turns() {
    let text = format!(
        "{HEAD}.visible .entry turns(.param .u64 flag) {{
    .reg .pred %p; .reg .b64 %flag; .reg .b32 %lane, %v;
    ld.param.u64 %flag, [flag];
    mov.u32 %lane, %laneid;
    setp.eq.u32 %p, %lane, 31;
    @%p bra GIVE;
WAIT:
    ld.relaxed.gpu.global.u32 %v, [%flag];
    setp.eq.u32 %p, %v, 0;
    @%p bra WAIT;
    ret;
GIVE:
    st.relaxed.gpu.global.u32 [%flag], 1;
    ret;
}}"
    );
    for seed in 0..6 {
        let mut run = Run::new(1, 32);
        run.options = Options { seed, independent: true, ..Options::default() };
        let flag = run.memory.upload("flag", &[0; 4]);
        run.go(&text, &Parameters::new().u64(flag)).expect("no fault");
    }
}
