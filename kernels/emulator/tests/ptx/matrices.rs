//! mma in every shape against plain products, ldmatrix both ways, the cp.async ring that feeds them.

use crate::arithmetic::{wide_bf16 as bf16, wide_f16 as f16};
use crate::harness::{HEAD, HEAD_90, Random, Run, bytes_of};
use ptx_emulator::{Options, Parameters};

/// D = A * B + C of one warp. The fragments are gathered by the kernel itself, element by element, from
/// row-major A (16 x k), column-major B (k x 8) and row-major C (16 x 8), by the tables of the ISA.
fn mma(shape: &str, types: [&str; 4], k: usize, a: &[u8], b: &[u8], c: &[u8]) -> Vec<u8> {
    mma_as(Options::default(), shape, types, k, [a, b, c])
}

fn mma_as(options: Options, shape: &str, types: [&str; 4], k: usize, [a, b, c]: [&[u8]; 3]) -> Vec<u8> {
    let size = if types[1].ends_with('8') { 1 } else { 2 };
    let per = 4 / size;
    let registers = 16 * k / 32 / per;
    let mut body = String::new();
    let list = |letter: &str, count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("%{letter}{n}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    for n in 0..registers {
        // Row g or g + 8; column q * per, the later half of the registers further right.
        let (row, column) = (n % 2 * 8, n / 2 * 4 * per);
        body += &format!(
            "add.u32 %s, %g, {row}; mad.lo.u32 %s, %s, {}, {}; mad.lo.u32 %s, %q, 4, %s;
             cvt.u64.u32 %at, %s; add.u64 %at, %at, %pa; ld.global.b32 %a{n}, [%at];\n",
            k * size,
            column * size
        );
    }
    for n in 0..registers / 2 {
        body += &format!(
            "mad.lo.u32 %s, %g, {}, {}; mad.lo.u32 %s, %q, 4, %s;
             cvt.u64.u32 %at, %s; add.u64 %at, %at, %pb; ld.global.b32 %b{n}, [%at];\n",
            k * size,
            n * 4 * per * size
        );
    }
    let half = types[0] == "f16";
    let (sums, width) = if half { (2, 2) } else { (4, 4) };
    for n in 0..sums {
        let (row, step) = if half { (n * 8, 0) } else { (n / 2 * 8, n % 2 * 4) };
        body += &format!(
            "add.u32 %s, %g, {row}; mul.lo.u32 %s, %s, {}; mad.lo.u32 %s, %q, {}, %s;
             add.u32 %o{n}, %s, {step};
             cvt.u64.u32 %at, %o{n}; add.u64 %at, %at, %pc; ld.global.b32 %c{n}, [%at];\n",
            8 * width,
            2 * width
        );
    }
    let (d, c_list) = (list("d", sums), list("c", sums));
    let (a_list, b_list) = (list("a", registers), list("b", registers / 2));
    body +=
        &format!("mma.sync.aligned.{shape}.row.col.{} {d}, {a_list}, {b_list}, {c_list};\n", types.join("."));
    for n in 0..sums {
        body += &format!("cvt.u64.u32 %at, %o{n}; add.u64 %at, %at, %pd; st.global.b32 [%at], %d{n};\n");
    }
    let text = format!(
        "{HEAD}.visible .entry mma(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) {{
    .reg .b64 %pa, %pb, %pc, %pd, %at;
    .reg .b32 %lane, %g, %q, %s, %o<4>, %a<4>, %b<2>;
    .reg .b32 %c<4>, %d<4>;
    ld.param.u64 %pa, [a]; ld.param.u64 %pb, [b]; ld.param.u64 %pc, [c]; ld.param.u64 %pd, [d];
    mov.u32 %lane, %laneid;
    shr.u32 %g, %lane, 2;
    and.b32 %q, %lane, 3;
    {body}
    ret;
}}"
    );
    let mut run = Run::new(1, 32);
    run.options = options;
    let parameters = Parameters::new()
        .u64(run.memory.upload("a", a))
        .u64(run.memory.upload("b", b))
        .u64(run.memory.upload("c", c));
    let out = run.memory.alloc(c.len(), "d");
    if let Err(fault) = run.go(&text, &parameters.u64(out)) {
        panic!("{fault}");
    }
    run.memory.read(out, c.len()).expect("all of D")
}

#[test]
fn bytes_multiply_exactly() {
    for (k, shape) in [(32, "m16n8k32"), (16, "m16n8k16")] {
        for (a_type, b_type) in [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")] {
            let mut random = Random(k as u64);
            let a: Vec<u8> = (0..16 * k).map(|_| random.next() as u8).collect();
            let b: Vec<u8> = (0..8 * k).map(|_| random.next() as u8).collect();
            let c: Vec<u32> = (0..128).map(|_| random.next() as u32).collect();
            let out = mma(shape, ["s32", a_type, b_type, "s32"], k, &a, &b, &bytes_of(&c));
            let number =
                |byte: u8, kind: &str| if kind == "s8" { i32::from(byte as i8) } else { i32::from(byte) };
            for row in 0..16 {
                for column in 0..8 {
                    let dot: i32 = (0..k)
                        .map(|i| number(a[row * k + i], a_type) * number(b[column * k + i], b_type))
                        .sum();
                    let at = row * 8 + column;
                    let got = i32::from_le_bytes(out[at * 4..at * 4 + 4].try_into().expect("4 bytes"));
                    assert_eq!(got, dot.wrapping_add(c[at] as i32), "{a_type} {b_type} {row} {column}");
                }
            }
        }
    }
}

#[test]
fn sixteen_bit_floats_multiply_with_one_rounding() {
    for (k, shape) in [(16, "m16n8k16"), (8, "m16n8k8")] {
        for (kind, wide) in [("f16", f16 as fn(u16) -> f64), ("bf16", bf16)] {
            let mut random = Random(3);
            // Exponents in the middle, so that nothing overflows.
            let mut element =
                || (random.next() as u16 & 0x83ff) | if kind == "f16" { 0x3400 } else { 0x3f00 };
            let a: Vec<u16> = (0..16 * k).map(|_| element()).collect();
            let b: Vec<u16> = (0..8 * k).map(|_| element()).collect();
            let c: Vec<f32> = (0..128).map(|n| n as f32 / 7.0).collect();
            let bytes = |all: &[u16]| all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            let sums: Vec<u8> = c.iter().flat_map(|x| x.to_le_bytes()).collect();
            let out = mma(shape, ["f32", kind, kind, "f32"], k, &bytes(&a), &bytes(&b), &sums);
            for row in 0..16 {
                for column in 0..8 {
                    let dot: f64 = (0..k).map(|i| wide(a[row * k + i]) * wide(b[column * k + i])).sum();
                    let at = row * 8 + column;
                    let got = f32::from_le_bytes(out[at * 4..at * 4 + 4].try_into().expect("4 bytes"));
                    assert_eq!(got, (f64::from(c[at]) + dot) as f32, "{kind} {row} {column}");
                }
            }
        }
    }
    let one = 0x3c00u16.to_le_bytes();
    let a: Vec<u8> = one.repeat(256);
    let out = mma("m16n8k16", ["f16", "f16", "f16", "f16"], 16, &a, &a[..256], &a[..256]);
    assert!(out.chunks(2).all(|half| f16(u16::from_le_bytes([half[0], half[1]])) == 17.0));
}

/// Seeds 0, 1 and 2: blocks of 4, 8 and 16 products, and as many bits more than those of f32.
#[test]
fn tensor_cores_cut_what_they_align() {
    let truncating = |seed| Options { seed, truncating: true, ..Options::default() };
    let sums = |seed, a: &[u16], old: f32| {
        let one = 0x3c00u16.to_le_bytes().repeat(128);
        let mut rows: Vec<u8> = a.iter().flat_map(|x| x.to_le_bytes()).collect();
        rows.resize(16 * 16 * 2, 0);
        let old = old.to_le_bytes().repeat(128);
        let out = mma_as(truncating(seed), "m16n8k16", ["f32", "f16", "f16", "f32"], 16, [&rows, &one, &old]);
        f32::from_le_bytes(out[..4].try_into().expect("4 bytes"))
    };
    let ulp = f32::EPSILON;
    // Products of 2^-24, each half a unit of 1: cut one by one, or added up first.
    assert_eq!([0, 1, 2].map(|seed| sums(seed, &[1; 4], 1.0)), [1.0, 1.0 + 2.0 * ulp, 1.0 + 2.0 * ulp]);
    // What is left of a sum is cut, not rounded.
    assert_eq!([0, 1, 2].map(|seed| sums(seed, &[1; 3], 1.0)), [1.0, 1.0 + ulp, 1.0 + ulp]);
    assert_eq!([0, 1, 2].map(|seed| sums(seed, &[1; 3], -1.0)), [-1.0, -1.0 + 1.5 * ulp, -1.0 + 1.5 * ulp]);
    // One in each block of 8 is lost in each, two of a block of 16 are not.
    let two = [1, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!([0, 1, 2].map(|seed| sums(seed, &two, 1.0)), [1.0, 1.0, 1.0 + ulp]);
    // Sums that are exact stay so; products that are no numbers too.
    for seed in 0..3 {
        assert_eq!(sums(seed, &[0x3c00, 0xbc00, 0x4000], 0.0), 2.0);
        assert_eq!(sums(seed, &[0x7bff; 16], -65504.0), 15.0 * 65504.0);
        assert_eq!(sums(seed, &[0x7c00], 1.0), f32::INFINITY);
        assert!(sums(seed, &[0x7c00, 0xfc00], 1.0).is_nan());
        assert_eq!(sums(seed, &[], 1e-40), 1e-40);
    }
    // As far from the exact sum as the cuts may bring it, and never beyond it where all have one sign.
    let mut random = Random(9);
    for (seed, (block, extra)) in [(4, 0), (8, 1), (16, 2)].into_iter().enumerate() {
        for _ in 0..20 {
            let a: Vec<u16> = (0..16).map(|_| random.next() as u16 & 0x3bff).collect();
            let old = (random.next() as u16) as f32 / 65536.0;
            let exact = a.iter().fold(f64::from(old), |sum, &a| sum + f16(a));
            let quantum = 2f64.powi(exact.log2().floor() as i32 - 23);
            let most = 16.0 / block as f64 * ((block as f64 + 1.0) * quantum / 2f64.powi(extra) + quantum);
            let got = f64::from(sums(seed as u64, &a, old));
            assert!(got <= exact && exact - got <= most, "seed {seed}: {got}, not {exact}");
        }
    }
}

/// A tile comes by a ring of cp.async, is read by ldmatrix, and stored as each lane has it.
fn ldmatrix(count: usize, transposed: bool) -> Vec<u32> {
    let list: Vec<String> = (0..count).map(|n| format!("%m{n}")).collect();
    let mut stores = String::new();
    for n in 0..count {
        stores += &format!("st.global.b32 [%out+{}], %m{n};\n", n * 128);
    }
    let text = format!(
        "{HEAD}.visible .entry tile(.param .u64 from, .param .u64 to) {{
    .reg .b64 %from, %out;
    .reg .b32 %lane, %at, %m<4>;
    .shared .align 16 .b8 tile[512];
    ld.param.u64 %from, [from];
    ld.param.u64 %out, [to];
    mov.u32 %lane, %tid.x;
    mad.wide.u32 %from, %lane, 16, %from;
    mad.wide.u32 %out, %lane, 4, %out;
    mov.u32 %at, tile;
    mad.lo.u32 %at, %lane, 16, %at;
    cp.async.cg.shared.global [%at], [%from], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{}.shared.b16 {{{}}}, [%at];
    {stores}
    ret;
}}",
        if transposed { ".trans" } else { "" },
        list.join(", ")
    );
    let elements: Vec<u8> = (0..256u16).flat_map(|n| n.to_le_bytes()).collect();
    for seed in 0..3 {
        let mut run = Run::new(1, 32);
        run.options = Options { seed, ..Options::default() };
        let from = run.memory.upload("tile", &elements);
        let to = run.memory.alloc(count * 128, "fragments");
        run.go(&text, &Parameters::new().u64(from).u64(to)).expect("no fault");
        if seed == 2 {
            return run.words(to, count * 32);
        }
    }
    Vec::new()
}

#[test]
fn ldmatrix_hands_out_rows_and_columns() {
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            let got = ldmatrix(count, transposed);
            for matrix in 0..count {
                for lane in 0..32 {
                    let element = |row: usize, column: usize| (matrix * 64 + row * 8 + column) as u32;
                    let (row, column) = (lane / 4, lane % 4 * 2);
                    let want = match transposed {
                        false => element(row, column) | element(row, column + 1) << 16,
                        true => element(column, row) | element(column + 1, row) << 16,
                    };
                    assert_eq!(got[matrix * 32 + lane], want, "matrix {matrix} lane {lane} {transposed}");
                }
            }
        }
    }
}

#[test]
fn stmatrix_puts_rows_and_columns() {
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            let list: Vec<String> = (0..count).map(|n| format!("%v{n}")).collect();
            let (list, trans) = (list.join(", "), if transposed { ".trans" } else { "" });
            // Matrix n holds 64n, 64n + 1, ... in the order of lanes and halves.
            let text = format!(
                "{HEAD_90}.visible .entry put(.param .u64 to) {{
    .reg .b64 %to; .reg .b32 %lane, %s, %v<4>;
    .shared .align 16 .b8 tile[512];
    ld.param.u64 %to, [to];
    mov.u32 %lane, %laneid;
    mad.lo.u32 %v0, %lane, 0x20002, 0x10000;
    add.u32 %v1, %v0, 0x400040; add.u32 %v2, %v1, 0x400040; add.u32 %v3, %v2, 0x400040;
    mov.u32 %s, tile; mad.lo.u32 %s, %lane, 16, %s;
    st.shared.v2.b64 [%s], {{0, 0}};
    bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%s], {{{list}}};
    bar.warp.sync -1;
    mad.wide.u32 %to, %lane, 16, %to;
    ld.shared.v4.b32 {{%v0, %v1, %v2, %v3}}, [%s]; st.global.v4.b32 [%to], {{%v0, %v1, %v2, %v3}};
    ret;
}}"
            );
            let mut run = Run::new(1, 32);
            let to = run.memory.alloc(512, "to");
            run.go(&text, &Parameters::new().u64(to)).expect("no fault");
            for (n, word) in run.words(to, 128).into_iter().enumerate() {
                let (matrix, row, column) = (n / 32, n / 4 % 8, n % 4 * 2);
                let element = |row: usize, column: usize| match transposed {
                    _ if matrix >= count => 0,
                    false => (matrix * 64 + row * 8 + column) as u32,
                    true => (matrix * 64 + column * 8 + row) as u32,
                };
                let want = element(row, column) | element(row, column + 1) << 16;
                assert_eq!(word, want, "x{count}{trans}: word {n}");
            }
        }
    }
}
