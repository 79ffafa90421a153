//! State spaces, vectors, scopes, tables, parameters, and what is counted.

use crate::harness::{HEAD, Run, bytes_of, module};
use ptx_emulator::{Counts, Module, Options, Parameters};

#[test]
fn vectors_and_narrow_types_load_and_store() {
    let text = format!(
        "{HEAD}.visible .entry narrow(.param .u64 from, .param .u64 to) {{
    .reg .b64 %from, %to, %wide, %more; .reg .b32 %a, %b, %c, %d; .reg .b16 %h, %i; .reg .f32 %f;
    ld.param.u64 %from, [from]; ld.param.u64 %to, [to];
    ld.global.s8 %a, [%from+3]; st.global.b32 [%to], %a;
    ld.global.u8 %a, [%from+3]; st.global.b32 [%to+4], %a;
    ld.global.s16 %a, [%from+2]; st.global.b32 [%to+8], %a;
    ld.global.b16 %h, [%from+2]; st.global.b16 [%to+12], %h;
    ld.global.s8 %i, [%from+3]; st.global.b16 [%to+14], %i;
    ld.global.v2.b16 {{%h, _}}, [%from]; st.global.v2.b16 [%to+16], {{%h, %i}};
    ld.global.v4.b8 {{%a, %b, %c, %d}}, [%from]; st.global.v4.u8 [%to+20], {{%d, %c, %b, %a}};
    ld.global.v2.b64 {{%wide, %more}}, [%from+16]; st.global.v2.b64 [%to+32], {{%more, %wide}};
    ld.global.s32 %wide, [%from]; st.global.b64 [%to+24], %wide;
    ld.global.L1::no_allocate.L2::128B.v4.b32 {{%a, _, %c, %d}}, [%from];
    st.global.v4.b32 [%to+48], {{%d, %c, 7, %a}};
    ret;
}}"
    );
    let mut run = Run::new(1, 1);
    let from = run.memory.upload("from", &bytes_of(&[0x8081_8283, 1, 2, 3, 4, 5, 6, 7]));
    let to = run.memory.alloc(64, "to");
    run.go(&text, &Parameters::new().u64(from).u64(to)).expect("no fault");
    let want = [
        0xffff_ff80,
        0x80,
        0xffff_8081,
        0xff80_8081,
        0xff80_8283,
        0x8382_8180,
        0x8081_8283,
        0xffff_ffff,
        6,
        7,
        4,
        5,
        3,
        2,
        7,
        0x8081_8283,
    ];
    assert_eq!(run.words(to, 16), want);
}

#[test]
fn tables_structures_scopes_and_dynamic_memory() {
    let text = format!(
        "{HEAD}
.const .align 4 .b32 table[4] = {{ 10, 20, 0x1e, 5 * 8 }};
.const .f32 scale = 0f40000000;
.const .align 8 .u8 bytes[8] = {{ 1, 2, 3, 4, 5, 6, 7, 8 }};
.extern .shared .align 16 .b8 dynamic[];
/* the parameters are a structure
   over two lines */
.visible .entry spaces(.param .align 8 .b8 arg[24], .param .u32 last) .maxntid 32, 1, 1 .minnctapersm 2 {{
    .reg .pred %p; .reg .b64 %to, %generic; .reg .b32 %i, %at, %v, %sum, %base; .reg .f32 %f;
    .shared .align 4 .b32 fixed[32];
    ld.param.u64 %to, [arg+8];
    mov.u32 %i, %laneid;
    mad.wide.u32 %to, %i, 4, %to;
    and.b32 %v, %i, 3;
    mov.u32 %at, table;
    mad.lo.u32 %at, %v, 4, %at;
    ld.const.b32 %sum, [%at];
    ld.const.f32 %f, [scale];
    cvt.rzi.u32.f32 %v, %f;
    add.u32 %sum, %sum, %v;
    ld.const.u8 %v, [bytes+4];
    add.u32 %sum, %sum, %v;
    ld.param.u32 %v, [last];
    add.u32 %sum, %sum, %v;
    // Shared memory, static and dynamic, by its own and by generic addresses.
    mov.u32 %base, fixed;
    mad.lo.u32 %at, %i, 4, %base;
    st.shared.u32 [%at], 1;
    {{
        .reg .b32 %v;
        mov.u32 %v, dynamic;
        mad.lo.u32 %v, %i, 4, %v;
        st.shared.u32 [%v+16], 2;
    }}
    cvt.u64.u32 %generic, %at;
    cvta.shared.u64 %generic, %generic;
    ld.u32 %v, [%generic];
    add.u32 %sum, %sum, %v;
    mov.u32 %at, dynamic;
    mad.lo.u32 %at, %i, 4, %at;
    ld.shared.u32 %v, [%at+16];
    add.u32 %sum, %sum, %v;
    cvta.to.global.u64 %generic, %to;
    st.global.u32 [%generic], %sum;
    {{ bra INNER; INNER: }}
    {{ .reg .pred %p; setp.eq.u32 %p, %i, 0; @%p bra INNER; add.u32 %sum, %sum, 1;
       INNER: st.global.u32 [%to], %sum; }}
    ret;
}}"
    );
    let mut run = Run::new(1, 32);
    run.shared = 16 + 128;
    let to = run.memory.alloc(128, "to");
    let parameters = Parameters::new().u64(0).u64(to).u64(0).u32(1000);
    run.go(&text, &parameters).expect("no fault");
    for (lane, got) in run.words(to, 32).into_iter().enumerate() {
        let want = [10, 20, 30, 40][lane % 4] + 2 + 5 + 1000 + 1 + 2 + u32::from(lane > 0);
        assert_eq!(got, want, "lane {lane}");
    }
    let module = module(&text);
    let kernel = module.kernel("spaces").expect("the kernel");
    let parameters: Vec<(u32, u32)> =
        kernel.parameters().iter().map(|each| (each.offset, each.size)).collect();
    assert_eq!(parameters, [(0, 24), (24, 4)]);
    assert_eq!((kernel.shared_bytes(), kernel.max_threads()), (128, Some(32)));
    assert_eq!(kernel.directive("minnctapersm"), Some(&[2][..]));
}

#[test]
fn local_arrays_are_of_the_thread() {
    // Each thread fills its array, reverses it through generic addresses and folds it: base 3 digits.
    let text = format!(
        "{HEAD}.visible .entry fold(.param .u64 to) {{
    .reg .pred %p; .reg .b64 %to, %at, %other, %start; .reg .b32 %i, %k, %v, %w, %sum, %x;
    .local .align 4 .b8 pad[6];
    .local .align 16 .b32 list[8];
    ld.param.u64 %to, [to];
    mov.u32 %i, %tid.x;
    mov.u32 %v, %ctaid.x; mad.lo.u32 %i, %v, 40, %i;
    mad.wide.u32 %to, %i, 4, %to;
    mov.u64 %start, list;
    mov.u32 %k, 0;
FILL:
    mad.wide.u32 %at, %k, 4, %start;
    mad.lo.u32 %v, %i, 7, %k; rem.u32 %v, %v, 3;
    st.local.u32 [%at], %v;
    add.u32 %k, %k, 1; setp.lt.u32 %p, %k, 8; @%p bra FILL;
    st.local.v2.u16 [pad], {{1, 2}}; ld.local.u8 %x, [pad+2];
    cvta.local.u64 %start, %start;
    mov.u32 %k, 0;
SWAP:
    mad.wide.u32 %at, %k, 4, %start;
    sub.u32 %v, 7, %k; mad.wide.u32 %other, %v, 4, %start;
    ld.u32 %v, [%at]; ld.u32 %w, [%other]; st.u32 [%other], %v; st.u32 [%at], %w;
    add.u32 %k, %k, 1; setp.lt.u32 %p, %k, 4; @%p bra SWAP;
    cvta.to.local.u64 %start, %start;
    mov.u32 %k, 0; mov.u32 %sum, 0;
FOLD:
    mad.wide.u32 %at, %k, 4, %start;
    ld.local.u32 %v, [%at]; mad.lo.u32 %sum, %sum, 3, %v;
    add.u32 %k, %k, 1; setp.lt.u32 %p, %k, 8; @%p bra FOLD;
    mad.lo.u32 %sum, %x, 10000, %sum;
    st.global.u32 [%to], %sum;
    ret;
}}"
    );
    for seed in 0..4 {
        let mut run = Run::new(3, 40);
        run.options.seed = seed;
        let to = run.memory.alloc(480, "to");
        run.go(&text, &Parameters::new().u64(to)).expect("no fault");
        for (i, got) in run.words(to, 120).into_iter().enumerate() {
            let want = (0..8).rev().fold(0, |sum, k| sum * 3 + (i as u32 * 7 + k) % 3);
            assert_eq!(got, 20_000 + want, "thread {i}, seed {seed}");
        }
    }
}

fn count(body: &str) -> Counts {
    let text = format!(
        "{HEAD}.visible .entry counted(.param .u64 data) {{
    .reg .pred %p; .reg .b64 %data, %at; .reg .b32 %i, %s, %v<4>;
    .shared .align 16 .b8 tile[8192];
    ld.param.u64 %data, [data];
    mov.u32 %i, %laneid; mov.u32 %s, tile;
    {body}
    ret;
}}"
    );
    let mut run = Run::new(1, 32);
    let data = run.memory.upload("data", &[0; 16384]);
    run.go(&text, &Parameters::new().u64(data)).expect("no fault")
}

#[test]
fn sectors_and_bank_conflicts_are_counted() {
    let global = |stride: u32| {
        count(&format!("mad.wide.u32 %at, %i, {stride}, %data; ld.global.u32 %v0, [%at];")).global_sectors
    };
    assert_eq!([global(0), global(4), global(8), global(32), global(128)], [1, 4, 8, 32, 32]);
    let wide = count("mad.wide.u32 %at, %i, 16, %data; ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%at];");
    assert_eq!((wide.global_sectors, wide.global_bytes), (16, 512));
    let shared = |stride: u32| {
        let counts = count(&format!("mad.lo.u32 %s, %i, {stride}, %s; st.shared.u32 [%s], %i;"));
        (counts.shared_accesses, counts.bank_conflicts)
    };
    assert_eq!([shared(4), shared(8), shared(128), shared(132)], [(1, 0), (1, 1), (1, 31), (1, 0)]);
    let wide = |stride: u32| {
        count(&format!("mad.lo.u32 %s, %i, {stride}, %s; st.shared.v4.u32 [%s], {{%i, %i, %i, %i}};"))
            .bank_conflicts
    };
    // Quarters of the warp: 8 lanes fill all banks; at 32 bytes apart they take two passes, at 128 eight.
    assert_eq!([wide(16), wide(32), wide(128)], [0, 4, 28]);
}

#[test]
fn instructions_are_counted_by_warp_and_by_thread() {
    let counts = count("setp.lt.u32 %p, %i, 10; @%p add.u32 %v0, %i, 1; @%p bra END; mov.u32 %v1, 0; END:");
    let by = |name: &str| (counts.by_opcode[name].warps, counts.by_opcode[name].threads);
    assert_eq!(by("add.u32"), (1, 10));
    assert_eq!(by("bra"), (1, 10));
    assert_eq!(by("mov.u32"), (3, 32 + 32 + 22));
    assert_eq!(by("ret"), (1, 32));
    assert_eq!(counts.warp_instructions, 1 + 2 + 3 + 1 + 1);
    assert_eq!(counts.instructions, 32 * 3 + 32 + 20 + 22 + 32);
}

#[test]
fn errors_and_faults_name_the_source_line() {
    let text =
        format!("{HEAD}# 40 \"gemv.inc\"\n\n.visible .entry k() {{\n# 3 \"q4_0.inc\"\n  frob.u32 %a;\n}}");
    let error = Module::parse(&text).err().expect("an error");
    assert_eq!((error.file.as_str(), error.line), ("q4_0.inc", 3));
    let text = format!("{HEAD}.visible .entry k() {{\n  .reg .b32 %a;\n  add.u32 %a, %a, 1;\n}}");
    let fault = Run::new(1, 32).go(&text, &Parameters::new()).expect_err("a fault");
    // Without a marker it is the line of the text.
    assert_eq!((fault.file.as_str(), fault.line), ("", 6));
    assert!(
        fault.to_string().starts_with("ptx:6: thread (0,0,0) of block (0,0,0): reads register %a"),
        "{fault}"
    );
    let mut run = Run::new(3, 40);
    run.options = Options { seed: 5, ..Options::default() };
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{
    .reg .b64 %p; .reg .b32 %i, %j; .reg .pred %q;
    ld.param.u64 %p, [p];
    mov.u32 %i, %tid.x; mov.u32 %j, %ctaid.x;
    mad.lo.u32 %i, %j, 40, %i;
    setp.eq.u32 %q, %i, 77;
    @%q st.global.u32 [%p], 1;
    ret;
}}"
    );
    let p = run.memory.upload("p", &[0; 4]);
    run.memory.protect(p, true);
    let fault = run.go(&text, &Parameters::new().u64(p)).expect_err("a fault");
    assert_eq!((fault.cta, fault.thread), ([1, 0, 0], [37, 0, 0]));
}
