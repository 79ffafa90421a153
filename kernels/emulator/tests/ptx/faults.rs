//! Each check catches a small faulty kernel, and names the source line. Next to each faulty kernel stands the
//! right one, which runs.

use crate::harness::{HEAD, HEAD_90, Run, each, module};
use ptx_emulator::{Counts, Fault, Kind, Launch, Memory, Module, Options, Parameters, launch};

/// A kernel over `data` (4096 bytes, 0 1 2 ... as u32) and `out` (4096 bytes, unwritten). The line after `#`
/// is line 7 of small.ptx.
fn text(body: &str) -> String {
    let body = body.replace("#\n", "\n# 7 \"small.ptx\"\n");
    format!(
        "{HEAD}.visible .entry small(.param .u64 p_data, .param .u64 p_out) {{
    .reg .pred %p, %q;
    .reg .b64 %data, %out, %at, %mine;
    .reg .b32 %thread, %lane, %block, %warp, %s, %t, %v<4>, %never;
    .reg .f32 %f, %g;
    .shared .align 16 .b8 tile[2048];
    ld.param.u64 %data, [p_data];
    ld.param.u64 %out, [p_out];
    mov.u32 %thread, %tid.x; mov.u32 %lane, %laneid; mov.u32 %block, %ctaid.x;
    shr.u32 %warp, %thread, 5;
    mad.wide.u32 %at, %thread, 4, %data;
    mad.wide.u32 %mine, %thread, 4, %out;
    mov.u32 %s, tile;
    mad.lo.u32 %t, %thread, 16, %s;
    mad.lo.u32 %s, %thread, 4, %s;
    {body}
    ret;
}}"
    )
}

/// Half of the seeds have independent lanes.
pub fn run(grid: u32, block: u32, seed: u64, body: &str) -> Result<Counts, Fault> {
    let independent = seed % 2 == 1;
    run_on(grid, block, Options { seed, independent, ..Options::default() }, body, |_, _| {})
}

fn run_on(
    grid: u32,
    block: u32,
    options: Options,
    body: &str,
    prepare: impl Fn(&mut Memory, u64),
) -> Result<Counts, Fault> {
    let mut run = Run::new(grid, block);
    run.options = options;
    let words: Vec<u8> = (0..1024u32).flat_map(|n| n.to_le_bytes()).collect();
    let data = run.memory.upload("data", &words);
    let out = run.memory.alloc(4096, "out");
    prepare(&mut run.memory, data);
    run.go(&text(body), &Parameters::new().u64(data).u64(out))
}

/// Fails at line 7 with this kind, whatever the seed.
pub fn caught(kind: Kind, grid: u32, block: u32, body: &str) -> Fault {
    let mut last = None;
    for seed in 0..6 {
        match run(grid, block, seed, body) {
            Ok(_) => panic!("seed {seed}: nothing caught\n{body}"),
            Err(fault) => {
                assert_eq!((fault.kind, fault.line), (kind, 7), "seed {seed}: {fault}\n{body}");
                assert_eq!(fault.file, "small.ptx");
                last = Some(fault);
            }
        }
    }
    last.expect("a fault")
}

/// The same of one warp, for sm_90.
fn caught_90(kind: Kind, body: &str) {
    for seed in 0..5 {
        let mut run = Run::new(1, 32);
        run.options.seed = seed;
        let fault = run.go(&text(body).replace(HEAD, HEAD_90), &Parameters::new().u64(0).u64(0));
        let fault = fault.expect_err("a fault");
        assert_eq!((fault.kind, fault.line), (kind, 7), "seed {seed}: {fault}");
    }
}

pub fn fine(grid: u32, block: u32, body: &str) {
    for seed in 0..6 {
        if let Err(fault) = run(grid, block, seed, body) {
            panic!("seed {seed}: {fault}\n{body}");
        }
    }
}

/// Each lane writes a word, and reads at line 7 that of the lane `distance` beside it.
pub fn beside(distance: u32, between: &str) -> String {
    format!(
        "st.shared.u32 [%s], %lane; {between} xor.b32 %v0, %lane, {distance}; mov.u32 %v1, tile; \
            mad.lo.u32 %v1, %v0, 4, %v1;\n#\nld.shared.u32 %v2, [%v1];"
    )
}

#[test]
fn out_of_bounds() {
    fine(1, 32, "ld.global.u32 %v0, [%at+3968];");
    let fault = caught(Kind::OutOfBounds, 1, 32, "#\nld.global.u32 %v0, [%at+3972];");
    assert_eq!(fault.thread, [31, 0, 0]);
    assert_eq!(
        fault.to_string(),
        "small.ptx:7: thread (31,0,0) of block (0,0,0): reads bytes 4096 to 4100 of `data`, which has 4096"
    );
    caught(Kind::OutOfBounds, 1, 32, "#\nst.global.u32 [%mine+-4], 1;");
    caught(Kind::OutOfBounds, 1, 32, "#\nld.shared.u32 %v0, [%s+2048];");
    caught(Kind::OutOfBounds, 1, 32, "mov.u32 %s, 16;\n#\nst.shared.u32 [%s], 1;");
    caught(Kind::OutOfBounds, 1, 32, "#\nld.param.u32 %v0, [p_out+8];");
    caught(Kind::OutOfBounds, 1, 32, "#\ncp.async.ca.shared.global [%s], [%at+4096], 4;");
}

/// Two variables of shared memory adjoin on a device; who leaves the first one does not come out in the second here.
#[test]
fn a_variable_of_shared_memory_ends_where_it_ends() {
    let two = ".shared .align 4 .b8 small[100]; .shared .align 16 .b32 other[32];
        mov.u32 %v0, small; mov.u32 %v1, other; mad.lo.u32 %v1, %lane, 4, %v1; st.shared.u32 [%v1], %lane;
        setp.eq.u32 %q, %lane, 0;";
    let one = |body: &str| format!("{two}\n#\n@%q {body}");
    fine(1, 32, &one("st.shared.u32 [%v0+96], %lane;"));
    let fault = caught(Kind::OutOfBounds, 1, 32, &one("st.shared.u32 [%v0+100], %lane;"));
    assert!(fault.sentence.contains("bytes 100 to 104 of `small`"), "{fault}");
    assert_eq!(fault.kernel, "small");
    // Byte 112 is the first of `other` on a device, byte -4 one of `small`.
    caught(Kind::OutOfBounds, 1, 32, &one("ld.shared.u32 %v2, [%v0+112];"));
    caught(Kind::OutOfBounds, 1, 32, &one("red.shared.add.u32 [%v1+-16], 1;"));
    caught(Kind::OutOfBounds, 1, 32, &one("cp.async.ca.shared.global [%v0+100], [%data], 4;"));
    // The banks are a device's: there `small` starts at byte 2048, `other` at 2160, sixteen before the next round of banks.
    let meet = |at: u32| {
        let body =
            format!("{two} mov.u32 %v2, tile; @!%q add.u32 %v1, %v2, {at}; st.shared.u32 [%v1], %lane;");
        run(1, 2, 0, &body).expect("it runs").bank_conflicts
    };
    assert_eq!([meet(112), meet(116)], [1, 0]);
}

#[test]
fn local_memory() {
    let own = ".local .align 16 .b32 own[4]; .reg .b64 %l; mov.u64 %l, own;";
    let stored = format!("{own} st.local.u32 [%l+4], %thread;");
    fine(
        2,
        40,
        &format!("{stored} ld.local.u32 %v0, [own+4]; st.local.b64 [own], 7; ld.local.u64 %at, [%l];"),
    );
    let fault = caught(Kind::UninitialisedLocal, 1, 32, &format!("{stored}\n#\nld.local.u64 %at, [%l];"));
    assert!(fault.sentence.contains("local byte 0"), "{fault}");
    // What another block's thread left there is not this one's.
    let first = "setp.eq.u32 %p, %block, 0; @%p st.local.u32 [%l+4], 1;";
    caught(Kind::UninitialisedLocal, 2, 1, &format!("{own} {first}\n#\nld.local.u32 %v0, [%l+4];"));
    caught(Kind::OutOfBounds, 1, 32, &format!("{stored}\n#\nld.local.u32 %v0, [%l+16];"));
    caught(Kind::OutOfBounds, 1, 32, &format!("{own} mov.u64 %l, 4;\n#\nst.local.u32 [%l], 1;"));
    caught(Kind::Misaligned, 1, 32, &format!("{stored}\n#\nst.local.b64 [%l+4], %at;"));
    let generic = "cvta.local.u64 %l, %l;";
    caught(Kind::OutOfBounds, 1, 32, &format!("{stored} {generic}\n#\natom.add.u32 %v0, [%l+4], 1;"));
}

#[test]
fn freed_memory_has_its_name() {
    let free = |memory: &mut Memory, data| memory.free(data).expect("a buffer");
    let fault = run_on(1, 32, Options::default(), "ld.global.u32 %v0, [%at];", free).expect_err("a fault");
    assert!(fault.sentence.contains("`data`, which was freed"), "{fault}");
    let mut memory = Memory::new();
    let address = memory.alloc(16, "once");
    assert_eq!(memory.free(address + 4).expect_err("no start of a buffer").kind, Kind::Host);
    memory.free(address).expect("a buffer");
    assert_eq!(memory.free(address).expect_err("freed already").kind, Kind::Host);
    assert_eq!(memory.write(address, &[0]).expect_err("freed").kind, Kind::OutOfBounds);
}

#[test]
fn misaligned_vectors() {
    fine(1, 1, "ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%data+16];");
    caught(Kind::Misaligned, 1, 1, "#\nld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%data+8];");
    caught(Kind::Misaligned, 1, 1, "#\nst.global.v2.u32 [%out+4], {%s, %s};");
    caught(Kind::Misaligned, 1, 1, "#\nst.shared.v2.u32 [%s+4], {%thread, %thread};");
    caught(Kind::Misaligned, 1, 1, "#\ncp.async.cg.shared.global [%s+8], [%data], 16;");
}

#[test]
fn uninitialised_registers() {
    caught(Kind::UninitialisedRegister, 1, 32, "#\nadd.u32 %v0, %never, 1;");
    caught(Kind::UninitialisedRegister, 1, 32, "#\n@%p bra END;\nEND:");
    caught(Kind::UninitialisedRegister, 1, 32, "#\nst.global.u32 [%mine], %never;");
    let half = "setp.lt.u32 %p, %lane, 16; @%p mov.u32 %v0, 1;\n#\nadd.u32 %v1, %v0, 1;";
    assert_eq!(caught(Kind::UninitialisedRegister, 1, 32, half).thread, [16, 0, 0]);
}

#[test]
fn uninitialised_memory() {
    caught(Kind::UninitialisedShared, 1, 32, "#\nld.shared.u32 %v0, [%s];");
    caught(Kind::UninitialisedGlobal, 1, 32, "#\nld.global.u32 %v0, [%mine];");
    fine(1, 32, "st.global.u32 [%mine], 1; ld.global.u32 %v0, [%mine];");
    // Two of four bytes are not enough.
    caught(
        Kind::UninitialisedGlobal,
        1,
        1,
        "mov.b32 %v1, 0; st.global.u16 [%mine], %v1;\n#\nld.global.u32 %v0, [%mine];",
    );
    let mut memory = Memory::new();
    let address = memory.alloc(16, "scratch");
    memory.write(address, &[1; 8]).expect("in bounds");
    assert!(memory.read(address, 8).is_ok());
    assert_eq!(memory.read(address, 9).expect_err("unwritten").kind, Kind::UninitialisedGlobal);
    assert_eq!(memory.write(address + 9, &[0; 8]).expect_err("too long").kind, Kind::OutOfBounds);
}

#[test]
fn shared_races() {
    let exchange = |barrier: &str| {
        format!(
            "st.shared.u32 [%s], %thread; {barrier}\nxor.b32 %v0, %thread, 32; mov.u32 %v1, tile; \
                mad.lo.u32 %v1, %v0, 4, %v1;\n"
        )
    };
    // A read needs the barrier before it. Without it the read finds nothing or too much.
    fine(1, 64, &(exchange("bar.sync 0;") + "ld.shared.u32 %v2, [%v1];"));
    let twice = "st.shared.u32 [%s], 0; bar.sync 0;".to_string();
    let racing = twice.clone() + &exchange("") + "#\nld.shared.u32 %v2, [%v1];";
    for seed in 0..5 {
        let fault = run(1, 64, seed, &racing).expect_err("a race");
        assert_eq!(fault.kind, Kind::SharedRace, "{fault}");
    }
    // A write after others' reads needs one too.
    let again = exchange("bar.sync 0;") + "ld.shared.u32 %v2, [%v1];";
    fine(1, 64, &(again.clone() + "bar.sync 0; st.shared.u32 [%s], 1;"));
    for seed in 0..5 {
        let fault = run(1, 64, seed, &(again.clone() + "st.shared.u32 [%s], 1;")).expect_err("a race");
        assert_eq!(fault.kind, Kind::SharedRace, "{fault}");
    }
    // Two threads write the same word.
    caught(Kind::SharedRace, 1, 32, "mov.u32 %s, tile;\n#\nst.shared.u32 [%s], 1;");
    // Between lanes of a warp, bar.warp.sync orders and a shuffle does not.
    fine(1, 32, &beside(1, "bar.warp.sync -1;"));
    caught(Kind::SharedRace, 1, 32, &beside(1, "shfl.sync.bfly.b32 %v3, %lane, 1, 31, -1;"));
    // Halves of a word are no race; atomics are none with each other, but with plain accesses.
    fine(1, 32, "mov.u32 %v1, tile; mad.lo.u32 %v1, %thread, 2, %v1; st.shared.u16 [%v1], %thread;");
    fine(1, 64, "mov.u32 %v1, tile; st.shared.u32 [%s], 0; bar.sync 0; red.shared.add.u32 [%v1], 1;");
    caught(
        Kind::SharedRace,
        1,
        32,
        "mov.u32 %v1, tile; st.shared.u32 [%s], 0; bar.sync 0; \
            red.shared.add.u32 [%v1], 1;\n#\nld.shared.u32 %v0, [%v1];",
    );
}

#[test]
fn named_barriers_order_only_those_who_take_part() {
    // Warps 0 and 1 meet at barrier 1, warp 2 does not.
    let body = |warps: u32| {
        format!(
            "setp.ge.u32 %p, %warp, {warps}; @%p bra AWAY; st.shared.u32 [%s], %thread; bar.sync 1, 64;
            AWAY: setp.lt.u32 %p, %warp, {}; @%p bra END; mov.u32 %v0, tile;
            #
            ld.shared.u32 %v1, [%v0];
            END:",
            if warps == 2 { 1 } else { 2 }
        )
    };
    fine(1, 64, &body(2));
    for seed in 0..5 {
        let fault = run(1, 96, seed, &body(2)).expect_err("a race");
        assert!(matches!(fault.kind, Kind::SharedRace | Kind::UninitialisedShared), "{fault}");
    }
}

/// Many readers, and a barrier that only they and the writer share.
#[test]
fn readers_are_ordered_by_their_own_barrier() {
    let body = |count: u32, readers: u32| {
        format!(
            "mov.u32 %v0, tile; st.shared.u32 [%s], %thread; bar.sync 0;
            setp.lt.u32 %p, %warp, {readers}; @%p ld.shared.u32 %v1, [%v0];
            setp.ge.u32 %p, %warp, 2; @%p bra END;
            bar.sync 1, {count};
            setp.ne.u32 %p, %thread, 0; @%p bra END;
            #
            st.shared.u32 [%v0], 5;
            END:"
        )
    };
    fine(1, 128, &body(64, 2));
    for seed in 0..5 {
        let fault = run(1, 128, seed, &body(64, 3)).err();
        // The third warp reads too, and meets nobody behind the first barrier.
        assert_eq!(fault.map(|fault| fault.kind), Some(Kind::SharedRace), "seed {seed}");
    }
}

#[test]
fn global_races() {
    // Blocks write the same words.
    caught(Kind::GlobalRace, 2, 32, "#\nst.global.u32 [%mine], 1;");
    // Within a block a barrier orders global memory as well.
    let across = |barrier: &str| {
        format!(
            "st.global.u32 [%at], %thread; {barrier}\nxor.b32 %v0, %thread, 32; \
                mad.wide.u32 %at, %v0, 4, %data;\n#\nld.global.u32 %v1, [%at];"
        )
    };
    fine(1, 64, &across("bar.sync 0;"));
    for seed in 0..5 {
        let fault = run(1, 64, seed, &across("")).expect_err("a race");
        assert_eq!(fault.kind, Kind::GlobalRace, "{fault}");
    }
    // Bytes of one word belong to whom they belong.
    fine(
        2,
        32,
        "mad.lo.u32 %v0, %block, 32, %thread; cvt.u64.u32 %at, %v0; add.u64 %at, %out, %at; \
            st.global.u8 [%at], %v0;",
    );
    // Reading what another block writes.
    let read = "setp.eq.u32 %p, %block, 0; @%p st.global.u32 [%data], 1; @!%p ld.global.u32 %v0, [%data];";
    for seed in 0..5 {
        let fault = run(2, 1, seed, read).expect_err("a race");
        assert_eq!(fault.kind, Kind::GlobalRace, "{fault}");
    }
    fine(4, 32, "red.global.add.u32 [%at], 1;");
}

#[test]
fn races_between_blocks_on_several_threads() {
    for threads in [1, 2, 4] {
        let options = Options { threads, ..Options::default() };
        let fault = run_on(64, 32, options, "#\nst.global.u32 [%mine], 1;", |_, _| {}).expect_err("a race");
        assert_eq!((fault.kind, fault.line), (Kind::GlobalRace, 7), "{fault}");
    }
}

#[test]
fn barriers_want_whole_warps_and_all_of_them() {
    let some =
        "setp.lt.u32 %p, %lane, 16; @%p bra SOME; bra OTHER;\n#\nSOME: bar.sync 0; ret; OTHER: bar.sync 0;";
    caught(Kind::BarrierDivergence, 1, 32, some);
    caught(Kind::BarrierDivergence, 1, 32, "setp.lt.u32 %p, %lane, 16;\n#\n@%p bar.sync 0; @!%p bar.sync 0;");
    // A warp that waits for a count that never comes.
    caught(Kind::Deadlock, 1, 64, "setp.lt.u32 %p, %thread, 32; @!%p ret;\n#\nbar.sync 1, 64;");
    let apart = "setp.lt.u32 %p, %thread, 32; @%p bra ONE; bar.sync 1, 64; ret;\nONE:\n#\nbar.sync 2, 64;";
    for seed in 0..5 {
        assert_eq!(run(1, 64, seed, apart).expect_err("a deadlock").kind, Kind::Deadlock);
    }
    // Warps that exited are not waited for.
    fine(1, 64, "setp.lt.u32 %p, %thread, 32; @!%p ret; bar.sync 0;");
}

#[test]
fn uniform_branches_are_uniform() {
    let branch = |test: &str| format!("setp.lt.u32 %p, {test};\n#\n@%p bra.uni END;\nEND:");
    caught(Kind::NotUniform, 1, 32, &branch("%lane, 16"));
    fine(1, 32, &branch("%lane, 0"));
    fine(1, 32, &branch("%lane, 32"));
    // Of the lanes that are there.
    fine(1, 16, &branch("%lane, 16"));
}

#[test]
fn members_are_the_active_lanes() {
    caught(Kind::MemberMask, 1, 32, "#\nshfl.sync.bfly.b32 %v0, %lane, 1, 31, 0xffff;");
    let half = "setp.lt.u32 %p, %lane, 16; @!%p bra END;\n#\nshfl.sync.bfly.b32 %v0, %lane, 1, 31, -1;\nEND:";
    caught(Kind::MemberMask, 1, 32, half);
    let vote = "setp.eq.u32 %p, %lane, 1;\n#\nvote.sync.ballot.b32 %v0, %p, -1;";
    caught(Kind::MemberMask, 1, 16, vote);
    caught(Kind::MemberMask, 1, 32, "setp.lt.u32 %p, %lane, 16; @!%p bra END;\n#\nbar.warp.sync -1;\nEND:");
    fine(
        1,
        32,
        "setp.lt.u32 %p, %lane, 16; @!%p bra END; shfl.sync.bfly.b32 %v0, %lane, 1, 31, 0xffff;\nEND:",
    );
    // A lane that reads one outside its mask.
    caught(
        Kind::MemberMask,
        1,
        32,
        "setp.lt.u32 %p, %lane, 16; @!%p bra END;\n#\nshfl.sync.idx.b32 %v0, %lane, 20, 31, 0xffff;\nEND:",
    );
}

#[test]
fn matrices_want_the_whole_warp() {
    let tile = "mov.u32 %v0, 0; st.shared.v4.b32 [%t], {%v0, %v0, %v0, %v0}; bar.warp.sync -1;";
    fine(1, 32, &format!("{tile} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%v1}}, [%t];"));
    let some = "setp.lt.u32 %p, %lane, 31;\n#\n@%p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%v1}, [%t];";
    caught(Kind::PartialWarp, 1, 32, &format!("{tile} {some}"));
    let mma = "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%v0, %v1, %v2, %v3}, \
        {%s, %s}, {%s}, {%s, %s, %s, %s};";
    fine(1, 32, mma);
    let store = "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%t], {%lane, %thread};";
    caught_90(Kind::PartialWarp, &format!("setp.lt.u32 %p, %lane, 31;\n#\n@%p {store}"));
    caught_90(Kind::SharedRace, &format!("{store} xor.b32 %t, %t, 16;\n#\nld.shared.u32 %v0, [%t];"));
    caught_90(Kind::UninitialisedRegister, &format!("#\n{}", store.replace("%thread", "%never")));
    caught(Kind::PartialWarp, 1, 32, &format!("setp.gt.u32 %p, %lane, 0; @!%p bra END;\n#\n{mma}\nEND:"));
}

#[test]
fn what_must_not_change() {
    let protect = |memory: &mut Memory, data| memory.protect(data, true);
    let options = Options::default;
    assert!(run_on(1, 32, options(), "ld.global.u32 %v0, [%at];", protect).is_ok());
    let fault = run_on(1, 32, options(), "#\nst.global.u32 [%at], 1;", protect).expect_err("read-only");
    assert_eq!((fault.kind, fault.line), (Kind::ReadOnly, 7), "{fault}");
    let fault = run_on(1, 32, options(), "#\nred.global.add.u32 [%at], 1;", protect).expect_err("read-only");
    assert_eq!((fault.kind, fault.line), (Kind::ReadOnly, 7), "{fault}");
    fine(1, 32, "ld.global.nc.u32 %v0, [%at]; st.global.u32 [%mine], %v0;");
    caught(Kind::NotCoherent, 1, 32, "ld.global.nc.u32 %v0, [%at];\n#\nst.global.u32 [%at], %v0;");
    caught(Kind::NotCoherent, 1, 32, "st.global.u32 [%at], 1; bar.sync 0;\n#\nld.global.nc.u32 %v0, [%at];");
}

#[test]
fn endless_loops_and_traps_end() {
    let options = Options { limit: 1000, ..Options::default() };
    let fault = run_on(1, 32, options, "#\nAGAIN: bra.uni AGAIN;", |_, _| {}).expect_err("an end");
    assert_eq!((fault.kind, fault.line), (Kind::Endless, 7));
    caught(Kind::Trap, 1, 32, "setp.eq.u32 %p, %lane, 5;\n#\n@%p trap;");
}

#[test]
fn launches_that_a_driver_refuses() {
    let text = format!("{HEAD}.visible .entry k(.param .u64 a, .param .u32 b) .maxntid 64, 1, 1 {{ ret; }}");
    let module = module(&text);
    let kernel = module.kernel("k").expect("the kernel");
    assert_eq!((kernel.parameter_bytes(), kernel.max_threads()), (12, Some(64)));
    let try_it = |grid, block: u32, shared, bytes: usize| {
        let parameters = vec![0; bytes];
        let launched = Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared, parameters: &parameters };
        launch(kernel, &mut Memory::new(), &launched, &Options::default()).map_err(|fault| fault.kind)
    };
    assert!(try_it(1, 64, 0, 12).is_ok());
    for (grid, block, shared, bytes) in
        [(1, 65, 0, 12), (0, 64, 0, 12), (1, 0, 0, 12), (1, 64, 300_000, 12), (1, 64, 0, 16)]
    {
        assert_eq!(try_it(grid, block, shared, bytes), Err(Kind::Launch));
    }
}

#[test]
fn texts_that_ptxas_refuses() {
    let wrong = |body: &str, part: &str| {
        let error = Module::parse(&text(body)).err().unwrap_or_else(|| panic!("accepted: {body}"));
        assert!(error.sentence.contains(part), "{body}: {error}");
        assert_eq!((error.file.as_str(), error.line), ("small.ptx", 7), "{error}");
    };
    wrong("#\nadd.u32 %v0, %v9, 1;", "`%v9` is not declared");
    wrong("#\nadd.u32 %f, %v0, 1;", "`%f` is F32 where U32 is wanted");
    wrong("#\nadd.u64 %at, %v0, 1;", "`%v0` is B32 where U64 is wanted");
    wrong("#\nadd.u32 %v0, %tid.x, 1;", "special register");
    wrong("#\nadd.f32 %f, %f, 1;", "an integer where F32");
    wrong("#\nfma.f32 %f, %f, %f, %f;", "rounding");
    wrong("#\nmul.u32 %v0, %v0, 3;", ".lo");
    wrong("#\nadd.banana.u32 %v0, %v0, 3;", "`.banana`");
    for opcode in [
        "not.pred",
        "prefetch.global.L2",
        "mov.b32",
        "setp.eq.u32",
        "ld.global.u32",
        "atom.add.u32",
        "mma.sync",
    ] {
        wrong(&format!("#\n{opcode};"), opcode);
    }
    wrong("#\nbra NOWHERE;", "NOWHERE");
    wrong("#\nfrobnicate.b32 %v0, %v0;", "frobnicate");
    wrong("#\nld.global.v4.u32 {%v0, %v1}, [%at];", "vector of 4");
    wrong("#\nld.global.u32 %v0, [%v1];", "no address");
    wrong("#\nld.shared.u32 %v0, [%s-4];", "expected `]`");
    wrong("#\ncvt.s32.f32 %v0, %f;", "rounding");
    wrong("#\n.reg .b32 %v0, %v0;", "declared twice");
    wrong("#\ncp.async.cg.shared.global [%s], [%at], 8;", "16 bytes");
    wrong("#\n#define X 1\n", "preprocessor");
}

#[test]
fn seeds_move_approximations_within_their_bounds_and_nothing_else() {
    let operands: Vec<[u64; 3]> =
        (1..200u32).map(|n| [u64::from((n as f32 * 0.37).to_bits()), 0, 0]).collect();
    let exact = crate::harness::each_float("ex2.approx.ftz.f32 %l, %f;", &operands);
    let mut moved = 0;
    for seed in 1..5 {
        let body = "ex2.approx.ftz.f32 %l, %f; mov.b32 %t, %l; cvt.u64.u32 %d, %t;";
        let other = crate::harness::each_seeded(body, &operands, seed);
        for (a, b) in exact.iter().zip(&other) {
            let distance = (a.to_bits() as i64 - *b as i64).abs();
            assert!(distance <= 2, "seed {seed}: {distance} ulp");
            moved += u32::from(distance > 0);
        }
        assert_eq!(other, crate::harness::each_seeded(body, &operands, seed));
        let sums = "fma.rn.f32 %l, %f, %f, %f; mov.b32 %t, %l; cvt.u64.u32 %d, %t;";
        assert_eq!(each(sums, &operands), crate::harness::each_seeded(sums, &operands, seed));
    }
    assert!(moved > 100);
}
