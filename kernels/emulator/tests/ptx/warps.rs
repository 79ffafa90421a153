//! Exchanges between lanes, votes, divergence, barriers, atomics, named barriers, blocks that wait for each
//! other.

use crate::harness::{HEAD, HEAD_90, Random, Run, bytes_of, each32};
use ptx_emulator::{Options, Parameters};

/// One operand per lane of one warp.
fn lanes(random: &mut Random) -> Vec<[u64; 3]> {
    (0..64).map(|_| [random.next(), random.next(), random.next()]).collect()
}

#[test]
fn shuffles_stay_in_their_segments() {
    let operands = lanes(&mut Random(1));
    for width in [32u32, 16, 8, 4, 2] {
        for by in [0u32, 1, 3, 5, 16] {
            let segment = 32 - width;
            for (mode, clamp) in [("up", 0), ("down", 31), ("bfly", 31), ("idx", 31)] {
                let c = segment << 8 | clamp;
                let body = format!(
                    "shfl.sync.{mode}.b32 %t|%p, %x, {by}, {c}, 0xffffffff; @%p xor.b32 %t, %t, 0x55555555;"
                );
                let got = each32(&body, &operands);
                for lane in 0..64u32 {
                    let (local, base) = (lane % 32, lane / 32 * 32);
                    let start = local / width * width;
                    let source = match mode {
                        "up" => local as i32 - by as i32,
                        "down" => (local + by) as i32,
                        "bfly" => (local ^ by) as i32,
                        _ => (start + by % width) as i32,
                    };
                    // bfly may read an earlier segment; nothing reads a later one.
                    let inside = match mode {
                        "up" => source >= start as i32,
                        _ => source < (start + width) as i32,
                    };
                    let from = if inside { source as u32 } else { local };
                    let value = operands[(base + from) as usize][0] as u32;
                    let want = if inside { value ^ 0x5555_5555 } else { value };
                    assert_eq!(got[lane as usize], want, "{mode} by {by} in {width} at {lane}");
                }
            }
        }
    }
}

#[test]
fn votes_matches_and_reductions() {
    let operands: Vec<[u64; 3]> = lanes(&mut Random(2)).into_iter().map(|[a, b, c]| [a % 5, b, c]).collect();
    let warp = |lane: usize| &operands[lane / 32 * 32..lane / 32 * 32 + 32];
    let check = |body: &str, of: &dyn Fn(usize) -> u32| {
        for (lane, got) in each32(body, &operands).into_iter().enumerate() {
            assert_eq!(got, of(lane), "{body} at {lane}");
        }
    };
    check("setp.lt.u32 %p, %x, 2; vote.sync.ballot.b32 %t, %p, -1;", &|lane| {
        (0..32).filter(|&i| warp(lane)[i][0] < 2).fold(0, |all, i| all | 1 << i)
    });
    check("setp.lt.u32 %p, %x, 5; vote.sync.all.pred %q, %p, -1; selp.b32 %t, 1, 0, %q;", &|_| 1);
    check("setp.gt.u32 %p, %x, 4; vote.sync.any.pred %q, %p, -1; selp.b32 %t, 1, 0, %q;", &|_| 0);
    check("match.any.sync.b32 %t, %x, -1;", &|lane| {
        let mine = operands[lane][0];
        (0..32).filter(|&i| warp(lane)[i][0] == mine).fold(0, |all, i| all | 1 << i)
    });
    check("match.all.sync.b32 %t|%p, %x, -1;", &|_| 0);
    check("redux.sync.add.s32 %t, %y, -1;", &|lane| {
        warp(lane).iter().fold(0u32, |sum, &[_, b, _]| sum.wrapping_add(b as u32))
    });
    check("redux.sync.min.s32 %t, %y, -1;", &|lane| {
        warp(lane).iter().map(|&[_, b, _]| b as i32).min().map_or(0, |least| least as u32)
    });
    check("redux.sync.max.u32 %t, %y, -1;", &|lane| {
        warp(lane).iter().map(|&[_, b, _]| b as u32).max().unwrap_or(0)
    });
    check("redux.sync.xor.b32 %t, %y, -1;", &|lane| {
        warp(lane).iter().fold(0, |all, &[_, b, _]| all ^ b as u32)
    });
    // Groups of equal operands sum for themselves, each with its own members.
    check("match.any.sync.b32 %s, %x, -1; redux.sync.add.u32 %t, %y, %s;", &|lane| {
        let mine = operands[lane][0];
        warp(lane)
            .iter()
            .filter(|each| each[0] == mine)
            .fold(0u32, |sum, &[_, b, _]| sum.wrapping_add(b as u32))
    });
    check("setp.lt.u32 %p, %x, 2; activemask.b32 %t; @%p activemask.b32 %t;", &|lane| {
        let few = (0..32).filter(|&i| warp(lane)[i][0] < 2).fold(0, |all, i| all | 1 << i);
        if operands[lane][0] < 2 { few } else { u32::MAX }
    });
}

#[test]
fn lanes_diverge_and_meet_again() {
    let operands = lanes(&mut Random(3));
    // Each lane takes as many rounds as it says, then all sum what they counted.
    let body = "and.b32 %n, %x, 15; mov.u32 %t, 0;
        LOOP: setp.eq.u32 %p, %n, 0; @%p bra DONE; add.u32 %t, %t, %n; sub.u32 %n, %n, 1; bra.uni LOOP;
        DONE: redux.sync.add.u32 %t, %t, -1;";
    let got = each32(body, &operands);
    for lane in 0..64 {
        let warp = &operands[lane / 32 * 32..lane / 32 * 32 + 32];
        let want: u32 = warp.iter().map(|each| each[0] as u32 & 15).map(|n| n * (n + 1) / 2).sum();
        assert_eq!(got[lane], want);
    }
    let body = "and.b32 %n, %x, 3;
        WAYS: .branchtargets A, B, C, D;
        brx.idx %n, WAYS;
        A: mov.u32 %t, 10; bra END;
        B: mov.u32 %t, 11; bra END;
        C: { .reg .b32 %t2; mov.u32 %t2, 12; mov.u32 %t, %t2; bra END; }
        D: mov.u32 %t, 13;
        END:";
    for (got, each) in each32(body, &operands).into_iter().zip(&operands) {
        assert_eq!(got, 10 + (each[0] as u32 & 3));
    }
}

#[test]
fn a_block_sums_by_shuffles_and_shared_memory_under_every_seed() {
    let text = format!(
        "{HEAD}.visible .entry sum(.param .u64 from, .param .u64 to) .maxntid 256, 1, 1 {{
    .reg .pred %first, %low;
    .reg .b64 %from, %to;
    .reg .b32 %thread, %lane, %warp, %at, %block;
    .reg .f32 %sum, %other;
    .shared .align 4 .f32 partial[8];
    ld.param.u64 %from, [from]; ld.param.u64 %to, [to];
    mov.u32 %thread, %tid.x; mov.u32 %lane, %laneid; mov.u32 %block, %ctaid.x;
    shr.u32 %warp, %thread, 5;
    mad.lo.u32 %at, %block, 256, %thread;
    mad.wide.u32 %from, %at, 4, %from;
    mad.wide.u32 %to, %block, 4, %to;
    ld.global.nc.f32 %sum, [%from];
    shfl.sync.bfly.b32 %other, %sum, 16, 31, -1; add.f32 %sum, %sum, %other;
    shfl.sync.bfly.b32 %other, %sum, 8, 31, -1; add.f32 %sum, %sum, %other;
    shfl.sync.bfly.b32 %other, %sum, 4, 31, -1; add.f32 %sum, %sum, %other;
    shfl.sync.bfly.b32 %other, %sum, 2, 31, -1; add.f32 %sum, %sum, %other;
    shfl.sync.bfly.b32 %other, %sum, 1, 31, -1; add.f32 %sum, %sum, %other;
    mov.u32 %at, partial;
    mad.lo.u32 %at, %warp, 4, %at;
    setp.eq.u32 %first, %lane, 0;
    @%first st.shared.f32 [%at], %sum;
    bar.sync 0;
    setp.lt.u32 %low, %thread, 8;
    @!%low ret;
    mov.u32 %at, partial;
    mad.lo.u32 %at, %lane, 4, %at;
    ld.shared.f32 %sum, [%at];
    shfl.sync.bfly.b32 %other, %sum, 4, 31, 0xff; add.f32 %sum, %sum, %other;
    shfl.sync.bfly.b32 %other, %sum, 2, 31, 0xff; add.f32 %sum, %sum, %other;
    shfl.sync.bfly.b32 %other, %sum, 1, 31, 0xff; add.f32 %sum, %sum, %other;
    setp.eq.u32 %first, %thread, 0;
    @%first st.global.f32 [%to], %sum;
    ret;
}}"
    );
    let values: Vec<u8> = (0..1024).flat_map(|n| (n as f32).to_le_bytes()).collect();
    for seed in 0..8 {
        for threads in [1, 3] {
            let mut run = Run::new(4, 256);
            run.options = Options { seed, threads, ..Options::default() };
            let from = run.memory.upload("values", &values);
            let to = run.memory.alloc(16, "sums");
            let counts = run.go(&text, &Parameters::new().u64(from).u64(to)).expect("no fault");
            for (block, got) in run.words(to, 4).into_iter().enumerate() {
                let want: u32 = (0..256).map(|n| (block * 256 + n) as u32).sum();
                assert_eq!(f32::from_bits(got), want as f32, "seed {seed}");
            }
            // 32 warps read 128 bytes each: 4 sectors; 4 results lie in one sector each.
            assert_eq!((counts.global_sectors, counts.global_bytes), (32 * 4 + 4, 4096 + 16));
            assert_eq!(counts.by_opcode["bar.sync"].threads, 1024);
        }
    }
}

#[test]
fn barriers_reduce_and_bear_names() {
    let text = format!(
        "{HEAD}.visible .entry bars(.param .u64 to) {{
    .reg .pred %odd, %low, %all;
    .reg .b64 %to;
    .reg .b32 %thread, %bit, %count, %at, %value;
    .shared .align 4 .b32 cell[2];
    ld.param.u64 %to, [to];
    mov.u32 %thread, %tid.x;
    mad.wide.u32 %to, %thread, 8, %to;
    and.b32 %bit, %thread, 1;
    setp.eq.u32 %odd, %bit, 1;
    bar.red.popc.u32 %count, 0, %odd;
    bar.red.or.pred %all, 0, %odd;
    @%all add.u32 %count, %count, 1000;
    bar.red.and.pred %all, 0, %odd;
    @%all add.u32 %count, %count, 1000;
    // Warp 0 hands a value to warp 1 by barrier 1; the others do not take part.
    mov.u32 %at, cell;
    mov.u32 %value, 0;
    setp.lt.u32 %low, %thread, 32;
    @!%low bra TAKE;
    setp.eq.u32 %odd, %thread, 0;
    @%odd st.shared.b32 [%at], 77;
    bar.arrive 1, 64;
    bra END;
TAKE:
    setp.ge.u32 %odd, %thread, 64;
    @%odd bra END;
    bar.sync 1, 64;
    ld.shared.b32 %value, [%at];
END:
    st.global.v2.b32 [%to], {{%count, %value}};
    ret;
}}"
    );
    for seed in 0..10 {
        let mut run = Run::new(1, 128);
        run.options.seed = seed;
        let to = run.memory.alloc(1024, "out");
        run.go(&text, &Parameters::new().u64(to)).expect("no fault");
        for (thread, pair) in run.words(to, 256).chunks(2).enumerate() {
            let value = if (32..64).contains(&thread) { 77 } else { 0 };
            assert_eq!(pair, [1064, value], "seed {seed}");
        }
    }
}

/// The last block to arrive combines what all have written: a fence, an atomic counter, a fence.
#[test]
fn the_last_block_combines() {
    let text = format!(
        "{HEAD}.visible .entry last(.param .u64 parts, .param .u64 counter, .param .u64 to) {{
    .reg .pred %p;
    .reg .b64 %parts, %counter, %to, %at;
    .reg .b32 %block, %blocks, %old, %sum, %part, %n, %thread, %flag;
    .shared .align 4 .b32 last;
    ld.param.u64 %parts, [parts]; ld.param.u64 %counter, [counter]; ld.param.u64 %to, [to];
    mov.u32 %thread, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %blocks, %nctaid.x;
    mad.lo.u32 %n, %block, 64, %thread;
    mad.wide.u32 %at, %n, 4, %parts;
    st.global.u32 [%at], %n;
    bar.sync 0;
    setp.ne.u32 %p, %thread, 0;
    @%p bra WAIT;
    membar.gl;
    sub.u32 %n, %blocks, 1;
    atom.global.inc.u32 %old, [%counter], %n;
    membar.gl;
    mov.u32 %flag, last;
    st.shared.u32 [%flag], %old;
WAIT:
    bar.sync 0;
    mov.u32 %flag, last;
    ld.shared.u32 %old, [%flag];
    sub.u32 %n, %blocks, 1;
    setp.ne.u32 %p, %old, %n;
    @%p ret;
    mov.u32 %sum, 0;
    mov.u32 %n, 0;
    mad.wide.u32 %at, %thread, 4, %parts;
LOOP:
    ld.global.u32 %part, [%at];
    add.u32 %sum, %sum, %part;
    add.u64 %at, %at, 256;
    add.u32 %n, %n, 1;
    setp.lt.u32 %p, %n, %blocks;
    @%p bra LOOP;
    mad.wide.u32 %at, %thread, 4, %to;
    st.global.u32 [%at], %sum;
    ret;
}}"
    );
    for seed in 0..6 {
        let mut run = Run::new(40, 64);
        run.options.seed = seed;
        let parts = run.memory.alloc(40 * 64 * 4, "parts");
        let counter = run.memory.upload("counter", &[0; 4]);
        let to = run.memory.alloc(256, "sums");
        let parameters = Parameters::new().u64(parts).u64(counter).u64(to);
        // Twice: the counter wraps by itself, and a new launch forgets who touched what.
        for _ in 0..2 {
            if let Err(fault) = run.go(&text, &parameters) {
                panic!("seed {seed}: {fault}");
            }
        }
        for (thread, got) in run.words(to, 64).into_iter().enumerate() {
            assert_eq!(got as usize, (0..40).map(|block| block * 64 + thread).sum::<usize>());
        }
    }
}

#[test]
fn atomics_of_every_kind() {
    let text = |body: &str| {
        format!(
            "{HEAD}.visible .entry atoms(.param .u64 cells) {{
    .reg .b64 %cells, %old, %new; .reg .b32 %thread, %at, %word; .reg .f32 %one; .reg .pred %p;
    .shared .align 8 .b64 local;
    ld.param.u64 %cells, [cells]; mov.u32 %thread, %tid.x; mov.f32 %one, 1.0;
    mov.u32 %at, local;
    cvt.u64.u32 %new, %thread;
    {body}
    ret;
}}"
        )
    };
    let cases: [(&str, u64, u64); 12] = [
        ("red.global.add.u32 [%cells], 3;", 5, 5 + 96 * 3),
        ("red.global.add.u64 [%cells], 0x100000000;", 1, 1 + (96 << 32)),
        ("atom.global.min.s32 %word, [%cells], %thread;", 0xffff_fff0, 0xffff_fff0),
        ("red.global.max.u64 [%cells], %new;", 7, 95),
        ("red.global.or.b32 [%cells], %thread;", 0, 127),
        ("red.global.and.b32 [%cells], 0x0f;", 0xff, 0x0f),
        ("red.global.xor.b32 [%cells], 1;", 4, 4),
        ("red.global.add.f32 [%cells], %one;", 0, u64::from(96f32.to_bits())),
        ("atom.global.inc.u32 %word, [%cells], 9;", 0, 6),
        ("atom.global.dec.u32 %word, [%cells], 9;", 0, 4),
        ("atom.global.exch.b32 %word, [%cells], 12;", 1, 12),
        (
            "AGAIN: atom.global.cas.b64 %old, [%cells], %new, 500; setp.lt.u64 %p, %old, 0; @%p bra AGAIN;",
            50,
            500,
        ),
    ];
    for (body, from, want) in cases {
        let mut run = Run::new(1, 96);
        run.options.seed = 3;
        let cells = run.memory.upload("cells", &from.to_le_bytes());
        if let Err(fault) = run.go(&text(body), &Parameters::new().u64(cells)) {
            panic!("{body}: {fault}");
        }
        let words = run.words(cells, 2);
        assert_eq!(u64::from(words[1]) << 32 | u64::from(words[0]), want, "{body}");
    }
    let shared = "setp.eq.u32 %p, %thread, 0; @%p st.shared.b64 [%at], 0; bar.sync 0;
        atom.shared.add.u64 %old, [%at], %new; bar.sync 0;
        ld.shared.b64 %new, [%at]; mad.wide.u32 %cells, %thread, 8, %cells; st.global.b64 [%cells], %new;";
    let mut run = Run::new(1, 96);
    let cells = run.memory.alloc(96 * 8, "cells");
    run.go(&text(shared), &Parameters::new().u64(cells)).expect("no fault");
    assert!(run.words(cells, 192).chunks(2).all(|pair| pair == [95 * 96 / 2, 0]));
}

/// A block waits for another by spinning on a flag: both must be at work.
#[test]
fn blocks_may_wait_for_each_other() {
    let text = format!(
        "{HEAD}.visible .entry spin(.param .u64 flag, .param .u64 data) {{
    .reg .pred %p; .reg .b64 %flag, %data; .reg .b32 %block, %value;
    ld.param.u64 %flag, [flag]; ld.param.u64 %data, [data];
    mov.u32 %block, %ctaid.x;
    setp.eq.u32 %p, %block, 1;
    @%p bra GIVE;
WAIT:
    ld.acquire.gpu.global.u32 %value, [%flag];
    setp.eq.u32 %p, %value, 0;
    @%p bra WAIT;
    ld.global.u32 %value, [%data];
    add.u32 %value, %value, 1;
    st.global.u32 [%data], %value;
    ret;
GIVE:
    st.global.u32 [%data], 41;
    st.release.gpu.global.u32 [%flag], 1;
    ret;
}}"
    );
    for seed in 0..5 {
        let mut run = Run::new(2, 1);
        run.options.seed = seed;
        let flag = run.memory.upload("flag", &bytes_of(&[0]));
        let data = run.memory.alloc(4, "data");
        if let Err(fault) = run.go(&text, &Parameters::new().u64(flag).u64(data)) {
            panic!("seed {seed}: {fault}");
        }
        assert_eq!(run.words(data, 1), [42]);
    }
}

#[test]
fn elect_names_the_first_member() {
    let text = format!(
        "{}.visible .entry elect(.param .u64 to) {{
    .reg .pred %p, %high; .reg .b64 %to; .reg .b32 %lane, %leader, %v;
    ld.param.u64 %to, [to];
    mov.u32 %lane, %laneid;
    mad.wide.u32 %to, %lane, 4, %to;
    setp.ge.u32 %high, %lane, 12;
    mov.u32 %leader, 7;
    setp.ne.u32 %p, 0, 0;
    @%high elect.sync %leader|%p, 0xfffff000;
    selp.u32 %v, 100, 0, %p;
    add.u32 %v, %v, %leader;
    st.global.u32 [%to], %v;
    ret;
}}",
        HEAD_90.replace("7.8", "8.0")
    );
    let mut run = Run::new(1, 32);
    let to = run.memory.alloc(128, "to");
    run.go(&text, &Parameters::new().u64(to)).expect("no fault");
    for (lane, got) in run.words(to, 32).into_iter().enumerate() {
        let want = [7, 112, 12][usize::from(lane >= 12) + usize::from(lane > 12)];
        assert_eq!(got, want, "lane {lane}");
    }
}
