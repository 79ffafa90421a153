//! Arithmetic of every width and format against Rust's.

use crate::harness::{Random, each, each_float, each32};

/// A binary operation on low words.
fn words(opcode: &str, of: impl Fn(u32, u32, u32) -> u32) {
    let operands = Random(opcode.len() as u64).triples(300);
    let sources =
        if opcode.starts_with("mad") || opcode.starts_with("sad") { "%x, %y, %z" } else { "%x, %y" };
    let got = each32(&format!("{opcode} %t, {sources};"), &operands);
    for (got, &[a, b, c]) in got.into_iter().zip(&operands) {
        let want = of(a as u32, b as u32, c as u32);
        assert_eq!(got, want, "{opcode} of {:#x}, {:#x}, {:#x}", a as u32, b as u32, c as u32);
    }
}

fn longs(opcode: &str, of: impl Fn(u64, u64, u64) -> u64) {
    let operands = Random(opcode.len() as u64).triples(300);
    let sources = if opcode.starts_with("mad") { "%a, %b, %c" } else { "%a, %b" };
    let got = each(&format!("{opcode} %d, {sources};"), &operands);
    for (got, &[a, b, c]) in got.into_iter().zip(&operands) {
        assert_eq!(got, of(a, b, c), "{opcode} of {a:#x}, {b:#x}, {c:#x}");
    }
}

#[test]
fn integers_wrap_as_in_rust() {
    words("add.u32", |a, b, _| a.wrapping_add(b));
    words("sub.s32", |a, b, _| a.wrapping_sub(b));
    words("add.sat.s32", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    words("sub.sat.s32", |a, b, _| (a as i32).saturating_sub(b as i32) as u32);
    words("mul.lo.u32", |a, b, _| a.wrapping_mul(b));
    words("mul.hi.u32", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    words("mul.hi.s32", |a, b, _| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    words("mad.lo.s32", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    words("mad.hi.u32", |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c));
    words("min.s32", |a, b, _| (a as i32).min(b as i32) as u32);
    words("max.u32", |a, b, _| a.max(b));
    words("div.u32", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    words("rem.u32", |a, b, _| a.checked_rem(b).unwrap_or(a));
    words("sad.u32", |a, b, c| c.wrapping_add(a.abs_diff(b)));
    longs("add.s64", |a, b, _| a.wrapping_add(b));
    longs("sub.u64", |a, b, _| a.wrapping_sub(b));
    longs("mul.lo.u64", |a, b, _| a.wrapping_mul(b));
    longs("mul.hi.u64", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    longs("mul.hi.s64", |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    longs("mad.lo.u64", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    longs("div.s64", |a, b, _| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 });
    longs("rem.s64", |a, b, _| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 });
    longs("min.u64", |a, b, _| a.min(b));
    longs("max.s64", |a, b, _| (a as i64).max(b as i64) as u64);
    longs("xor.b64", |a, b, _| a ^ b);
}

#[test]
fn wide_products_carries_and_shifts() {
    let operands = Random(1).triples(300);
    let wide = each("mad.wide.s32 %d, %x, %y, %c;", &operands);
    let unsigned = each("mul.wide.u32 %d, %x, %y;", &operands);
    // A 128-bit sum and difference, the high halves.
    let sum = each("add.cc.u64 %e, %a, %b; addc.u64 %d, %c, %a;", &operands);
    let difference = each("sub.cc.u32 %t, %x, %y; subc.u32 %s, %z, %x; mov.b64 %d, {%t, %s};", &operands);
    let product = each(
        "mul.lo.u32 %t, %x, %y; mad.lo.cc.u32 %t, %x, %y, %z; madc.hi.u32 %s, %x, %y, 0; \
            mov.b64 %d, {%t, %s};",
        &operands,
    );
    for (n, &[a, b, c]) in operands.iter().enumerate() {
        let [x, y, z] = [a as u32, b as u32, c as u32];
        assert_eq!(wide[n], (i64::from(x as i32) * i64::from(y as i32)).wrapping_add(c as i64) as u64);
        assert_eq!(unsigned[n], u64::from(x) * u64::from(y));
        assert_eq!(sum[n], c.wrapping_add(a).wrapping_add(u64::from(a.checked_add(b).is_none())));
        let high = z.wrapping_sub(x).wrapping_sub(u32::from(x < y));
        assert_eq!(difference[n], u64::from(high) << 32 | u64::from(x.wrapping_sub(y)));
        assert_eq!(product[n], (u64::from(x) * u64::from(y)).wrapping_add(u64::from(z)));
    }
    words("shl.b32", |a, b, _| a.checked_shl(b).unwrap_or(0));
    words("shr.u32", |a, b, _| a.checked_shr(b).unwrap_or(0));
    words("shr.s32", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    let shifted = each("shl.b64 %d, %a, %y;", &operands);
    let right = each("shr.s64 %d, %a, %y;", &operands);
    for (n, &[a, b, _]) in operands.iter().enumerate() {
        assert_eq!(shifted[n], a.checked_shl(b as u32).unwrap_or(0));
        assert_eq!(right[n], ((a as i64) >> (b as u32).min(63)) as u64);
    }
}

#[test]
fn floats_round_flush_and_order_as_ptx_says() {
    let operands = Random(2).float_triples(600);
    let check = |body: &str, of: &dyn Fn(f32, f32, f32) -> f32| {
        let got = each_float(body, &operands);
        for (got, &bits) in got.into_iter().zip(&operands) {
            let [a, b, c] = bits.map(|bits| f32::from_bits(bits as u32));
            let want = of(a, b, c);
            let same = got.to_bits() == want.to_bits() || want.is_nan() && got.to_bits() == 0x7fff_ffff;
            assert!(same, "{body} of {a:?}, {b:?}, {c:?}: {got:?} where {want:?} is right");
        }
    };
    let flush = |value: f32| if value.is_subnormal() { 0.0f32.copysign(value) } else { value };
    check("add.rn.f32 %l, %f, %g;", &|a, b, _| a + b);
    check("sub.f32 %l, %f, %g;", &|a, b, _| a - b);
    check("mul.rn.f32 %l, %f, %g;", &|a, b, _| a * b);
    check("mul.ftz.f32 %l, %f, %g;", &|a, b, _| flush(flush(a) * flush(b)));
    check("fma.rn.f32 %l, %f, %g, %h;", &|a, b, c| a.mul_add(b, c));
    check("div.rn.f32 %l, %f, %g;", &|a, b, _| a / b);
    check("sqrt.rn.f32 %l, %f;", &|a, _, _| a.sqrt());
    check("rcp.rn.f32 %l, %f;", &|a, _, _| 1.0 / a);
    check("neg.f32 %l, %f;", &|a, _, _| -a);
    check("abs.f32 %l, %f;", &|a, _, _| a.abs());
    check("add.sat.f32 %l, %f, %g;", &|a, b, _| {
        if (a + b).is_nan() { 0.0 } else { (a + b).clamp(0.0, 1.0) + 0.0 }
    });
    let least = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => a.min(b),
    };
    check("min.f32 %l, %f, %g;", &|a, b, _| least(a, b));
    check("max.f32 %l, %f, %g;", &|a, b, _| -least(-a, -b));
    check("max.NaN.f32 %l, %f, %g;", &|a, b, _| {
        if a.is_nan() || b.is_nan() { f32::NAN } else { -least(-a, -b) }
    });
    check("add.rz.f32 %l, %f, %g;", &|a, b, _| toward_zero(a, b));
}

/// The sum by integers of 2^-149 where it fits, else by f64, which is exact enough there.
fn toward_zero(a: f32, b: f32) -> f32 {
    let near = a + b;
    let exact = f64::from(a) + f64::from(b);
    if near.is_nan() || exact.is_infinite() {
        return near;
    }
    if near.is_infinite() {
        return f32::MAX.copysign(near);
    }
    // What rounding to nearest lost, exactly.
    let back = near - a;
    let rest = (a - (near - back)) + (b - back);
    let beyond = if rest == 0.0 {
        (f64::from(near) - exact) * exact.signum() > 0.0
    } else {
        (rest > 0.0) != (near > 0.0)
    };
    if beyond && near != 0.0 { f32::from_bits(near.to_bits() - 1) } else { near }
}

#[test]
fn fields_of_bits() {
    let operands = Random(4).triples(400);
    let word = |body: &str, of: &dyn Fn(u32, u32, u32) -> u32| {
        for (got, &[a, b, c]) in each32(body, &operands).into_iter().zip(&operands) {
            let [a, b, c] = [a as u32, b as u32, c as u32];
            assert_eq!(got, of(a, b, c), "{body} of {a:#x}, {b:#x}, {c:#x}");
        }
    };
    word("lop3.b32 %t, %x, %y, %z, 0xea;", &|a, b, c| (a & b) | c);
    word("lop3.b32 %t, %x, %y, %z, 0x96;", &|a, b, c| a ^ b ^ c);
    word("lop3.b32 %t, %x, %y, %z, 0x1b;", &|a, b, c| {
        (0..32).fold(0, |all, bit| {
            let entry = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
            all | (0x1b >> entry & 1) << bit
        })
    });
    let bytes = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    word("prmt.b32 %t, %x, %y, %z;", &|a, b, c| {
        (0..4).fold(0, |all, n| {
            let pick = c >> (4 * n);
            let byte = (bytes(a, b) >> (8 * (pick & 7))) as u8;
            let byte = if pick & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
            all | u32::from(byte) << (8 * n)
        })
    });
    word("prmt.b32 %t, %x, %y, 0x5410;", &|a, b, _| (b << 16) | (a & 0xffff));
    word("prmt.b32.rc16 %t, %x, %y, 1;", &|a, _, _| (a >> 16) * 0x10001);
    word("shf.l.wrap.b32 %t, %x, %y, %z;", &|a, b, c| (bytes(a, b) << (c & 31) >> 32) as u32);
    word("shf.r.wrap.b32 %t, %x, %y, %z;", &|a, b, c| (bytes(a, b) >> (c & 31)) as u32);
    word("shf.r.clamp.b32 %t, %x, %y, %z;", &|a, b, c| (bytes(a, b) >> c.min(32)) as u32);
    word("shf.l.clamp.b32 %t, %x, %y, %z;", &|a, b, c| (u128::from(bytes(a, b)) << c.min(32) >> 32) as u32);
    word("bfe.u32 %t, %x, %y, %z;", &|a, b, c| {
        let (start, length) = (b & 255, c & 255);
        (u128::from(a) >> start.min(100) & ((1u128 << length.min(64)) - 1)) as u32
    });
    word("bfe.s32 %t, %x, 4, 8;", &|a, _, _| i32::from((a >> 4) as i8) as u32);
    word("bfe.s32 %t, %x, 28, 8;", &|a, _, _| ((a as i32) >> 28) as u32);
    word("bfi.b32 %t, %x, %y, 5, 7;", &|a, b, _| (b & !(0x7f << 5)) | (a & 0x7f) << 5);
    word("bfi.b32 %t, %x, %y, 28, 9;", &|a, b, _| (b & 0x0fff_ffff) | a << 28);
    word("popc.b32 %t, %x;", &|a, _, _| a.count_ones());
    word("clz.b32 %t, %x;", &|a, _, _| a.leading_zeros());
    word("brev.b32 %t, %x;", &|a, _, _| a.reverse_bits());
    word("bfind.u32 %t, %x;", &|a, _, _| a.checked_ilog2().unwrap_or(u32::MAX));
    word("bfind.shiftamt.u32 %t, %x;", &|a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() });
    word("bfind.s32 %t, %x;", &|a, _, _| {
        (if (a as i32) < 0 { !a } else { a }).checked_ilog2().unwrap_or(u32::MAX)
    });
    let dot = |a: u32, b: u32, signs: [bool; 2]| -> i32 {
        let byte = |word: u32, n: usize, signed: bool| match signed {
            true => i32::from(word.to_le_bytes()[n] as i8),
            false => i32::from(word.to_le_bytes()[n]),
        };
        (0..4).map(|n| byte(a, n, signs[0]) * byte(b, n, signs[1])).sum()
    };
    word("dp4a.s32.s32 %t, %x, %y, %z;", &|a, b, c| c.wrapping_add(dot(a, b, [true, true]) as u32));
    word("dp4a.u32.s32 %t, %x, %y, %z;", &|a, b, c| c.wrapping_add(dot(a, b, [false, true]) as u32));
    word("dp4a.u32.u32 %t, %x, %y, %z;", &|a, b, c| c.wrapping_add(dot(a, b, [false, false]) as u32));
    word("dp2a.hi.s32.u32 %t, %x, %y, %z;", &|a, b, c| {
        let half = |n: u32| i32::from((a >> (16 * n)) as i16);
        let byte = |n: u32| i32::from((b >> (16 + 8 * n)) as u8);
        c.wrapping_add((half(0) * byte(0)).wrapping_add(half(1) * byte(1)) as u32)
    });
    word("and.b32 %t, %x, %y; not.b32 %t, %t; or.b32 %t, %t, %z;", &|a, b, c| !(a & b) | c);
    word("cnot.b32 %t, %x;", &|a, _, _| u32::from(a == 0));
    word("mov.b32 {%i, %m}, %x; mov.b32 %t, {%m, %i};", &|a, _, _| a.rotate_left(16));
    word("slct.b32.s32 %t, %x, %y, %z;", &|a, b, c| if (c as i32) < 0 { b } else { a });
    word("set.lt.u32.s32 %t, %x, %y;", &|a, b, _| if (a as i32) < b as i32 { u32::MAX } else { 0 });
    let both = "setp.ne.u32 %r, %z, 0; setp.gt.and.u32 %p|%q, %x, %y, %r;
        selp.b32 %t, 1, 2, %p; @%q add.u32 %t, %t, 8;";
    word(both, &|a, b, c| {
        let (p, q) = (a > b && c != 0, a <= b && c != 0);
        if p { 1 } else { 2 + if q { 8 } else { 0 } }
    });
    word(
        "setp.eq.u32 %p, %x, %y; setp.lt.u32 %q, %y, %z; xor.pred %p, %p, %q; not.pred %p, %p; \
            selp.b32 %t, %x, %y, !%p;",
        &|a, b, c| {
            if (a == b) != (b < c) { a } else { b }
        },
    );
    let longs = each("bfi.b64 %d, %a, %b, 20, 30;", &operands);
    let fields = each("bfe.s64 %d, %a, 40, 20;", &operands);
    let counts = each32("popc.b64 %t, %a; clz.b64 %s, %a; mad.lo.u32 %t, %s, 256, %t;", &operands);
    for (n, &[a, b, _]) in operands.iter().enumerate() {
        let mask = ((1u64 << 30) - 1) << 20;
        assert_eq!(longs[n], (b & !mask) | (a << 20 & mask));
        assert_eq!(counts[n], a.leading_zeros() * 256 + a.count_ones());
        assert_eq!(fields[n], ((a << 4) as i64 >> 44) as u64);
    }
}

#[test]
fn comparisons_know_nan() {
    let operands = Random(5).float_triples(400);
    let names = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];
    for name in names {
        let got = each32(&format!("setp.{name}.f32 %p, %f, %g; selp.b32 %t, 1, 0, %p;"), &operands);
        for (got, each) in got.into_iter().zip(&operands) {
            let (a, b) = (f32::from_bits(each[0] as u32), f32::from_bits(each[1] as u32));
            let nan = a.is_nan() || b.is_nan();
            let want = match name {
                "eq" => a == b,
                "ne" => a != b && !nan,
                "lt" => a < b,
                "le" => a <= b,
                "gt" => a > b,
                "ge" => a >= b,
                "equ" => a == b || nan,
                "neu" => a != b,
                "ltu" => a < b || nan,
                "leu" => a <= b || nan,
                "gtu" => a > b || nan,
                "geu" => a >= b || nan,
                "num" => !nan,
                _ => nan,
            };
            assert_eq!(got, u32::from(want), "{name} of {a} and {b}");
        }
    }
    let finite = each32("testp.finite.f32 %p, %f; selp.b32 %t, 1, 0, %p;", &operands);
    for (got, each) in finite.into_iter().zip(&operands) {
        assert_eq!(got, u32::from(f32::from_bits(each[0] as u32).is_finite()));
    }
    let doubles = each32("setp.lt.f64 %p, %u, %v; selp.b32 %t, 1, 0, %p;", &Random(6).triples(200));
    for (got, each) in doubles.into_iter().zip(&Random(6).triples(200)) {
        assert_eq!(got, u32::from(f64::from_bits(each[0]) < f64::from_bits(each[1])));
    }
}

#[test]
fn doubles() {
    let mut random = Random(7);
    let operands: Vec<[u64; 3]> = (0..200)
        .map(|_| std::array::from_fn(|_| (f64::from(random.float()) * 1.000_000_1).to_bits()))
        .collect();
    let check = |body: &str, of: &dyn Fn(f64, f64, f64) -> f64| {
        let got = each(&format!("{body} mov.b64 %d, %o;"), &operands);
        for (got, &bits) in got.into_iter().zip(&operands) {
            let [a, b, c] = bits.map(f64::from_bits);
            let want = of(a, b, c);
            let same = got == want.to_bits() || want.is_nan() && f64::from_bits(got).is_nan();
            assert!(same, "{body} of {a}, {b}, {c}: {} where {want} is right", f64::from_bits(got));
        }
    };
    check("add.f64 %o, %u, %v;", &|a, b, _| a + b);
    check("mul.rn.f64 %o, %u, %v;", &|a, b, _| a * b);
    check("fma.rn.f64 %o, %u, %v, %w;", &|a, b, c| a.mul_add(b, c));
    check("div.rn.f64 %o, %u, %v;", &|a, b, _| a / b);
    check("sqrt.rn.f64 %o, %u;", &|a, _, _| a.sqrt());
    check("abs.f64 %o, %u; neg.f64 %o, %o;", &|a, _, _| -a.abs());
}

#[test]
fn conversions_round_and_saturate() {
    let operands = Random(8).float_triples(400);
    let of_float = |body: &str, of: &dyn Fn(f32) -> u64| {
        for (got, each) in each(body, &operands).into_iter().zip(&operands) {
            let value = f32::from_bits(each[0] as u32);
            assert_eq!(got, of(value), "{body} of {value}");
        }
    };
    let word = |body: &str| format!("{body} cvt.u64.u32 %d, %t;");
    of_float(&word("cvt.rni.s32.f32 %t, %f;"), &|x| u64::from(x.round_ties_even() as i32 as u32));
    of_float(&word("cvt.rzi.s32.f32 %t, %f;"), &|x| u64::from(x as i32 as u32));
    of_float(&word("cvt.rmi.s32.f32 %t, %f;"), &|x| u64::from(x.floor() as i32 as u32));
    of_float(&word("cvt.rpi.u32.f32 %t, %f;"), &|x| u64::from(x.ceil() as u32));
    of_float(
        &word("cvt.rni.sat.s8.f32 %t, %f;"),
        &|x| u64::from(i32::from(x.round_ties_even() as i8) as u32),
    );
    of_float("cvt.rzi.s64.f32 %d, %f;", &|x| if x.is_nan() { 1 << 63 } else { x as i64 as u64 });
    of_float("cvt.rzi.u64.f32 %d, %f;", &|x| if x.is_nan() { 1 << 63 } else { x as u64 });
    of_float(&word("cvt.rni.f32.f32 %l, %f; mov.b32 %t, %l;"), &|x| match x.is_nan() {
        true => 0x7fff_ffff,
        false => u64::from(x.round_ties_even().to_bits()),
    });
    of_float(&word("cvt.sat.f32.f32 %l, %f; mov.b32 %t, %l;"), &|x| {
        u64::from(if x > 0.0 { x.min(1.0) } else { 0.0 }.to_bits())
    });
    of_float("cvt.f64.f32 %o, %f; mov.b64 %d, %o;", &|x| match x.is_nan() {
        true => 0x7fff_ffff_ffff_ffff,
        false => f64::from(x).to_bits(),
    });
    let integers = Random(9).triples(400);
    let of_integer = |body: &str, of: &dyn Fn(u64) -> u64| {
        for (got, each) in each(body, &integers).into_iter().zip(&integers) {
            assert_eq!(got, of(each[0]), "{body} of {:#x}", each[0]);
        }
    };
    let float = |body: &str| format!("{body} mov.b32 %t, %l; cvt.u64.u32 %d, %t;");
    let bits = |x: f32| u64::from(x.to_bits());
    of_integer(&float("cvt.rn.f32.s32 %l, %x;"), &|a| bits(a as i32 as f32));
    of_integer(&float("cvt.rn.f32.u32 %l, %x;"), &|a| bits(a as u32 as f32));
    of_integer(&float("cvt.rn.f32.u64 %l, %a;"), &|a| bits(a as f32));
    of_integer(&float("cvt.rn.f32.s64 %l, %a;"), &|a| bits(a as i64 as f32));
    of_integer(&float("cvt.rn.f32.s8 %l, %x;"), &|a| bits(f32::from(a as i8)));
    of_integer(&float("cvt.rz.f32.u32 %l, %x;"), &|a| {
        let near = a as u32 as f32;
        bits(if f64::from(near) > f64::from(a as u32) { f32::from_bits(near.to_bits() - 1) } else { near })
    });
    of_integer("cvt.rn.f64.s64 %o, %a; mov.b64 %d, %o;", &|a| (a as i64 as f64).to_bits());
    of_integer("cvt.s64.s32 %d, %x;", &|a| a as i32 as i64 as u64);
    of_integer("cvt.u64.u8 %d, %x;", &|a| a & 0xff);
    of_integer(&word("cvt.s32.s8 %t, %x;"), &|a| u64::from(i32::from(a as i8) as u32));
    of_integer(&word("cvt.sat.u8.s32 %t, %x;"), &|a| (a as i32).clamp(0, 255) as u64);
    of_integer(&word("cvt.sat.s16.s32 %t, %x;"), &|a| u64::from((a as i32).clamp(-32768, 32767) as u32));
    of_integer(&word("cvt.u32.u16 %t, %i;"), &|a| a & 0xffff);
    of_integer(&word("cvt.u16.u32 %i, %x; cvt.u32.u16 %t, %i;"), &|a| a & 0xffff);
}

/// The f16 or bf16 nearest to a value, by trying all of them: ties to the even one.
fn nearest(value: f64, wide: fn(u16) -> f64, infinity: u16, least_infinite: f64) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    if value.abs() >= least_infinite {
        return sign | infinity;
    }
    let (mut low, mut high) = (0, infinity - 1);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if wide(middle) <= value.abs() { low = middle } else { high = middle - 1 }
    }
    if low == infinity - 1 {
        return sign | low;
    }
    let (below, above) = (value.abs() - wide(low), wide(low + 1) - value.abs());
    let up = above < below || above == below && low % 2 == 1;
    sign | (low + u16::from(up))
}

pub fn wide_f16(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

pub fn wide_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

fn f16(value: f64) -> u16 {
    nearest(value, wide_f16, 0x7c00, 65520.0)
}

fn bf16(value: f64) -> u16 {
    nearest(value, wide_bf16, 0x7f80, 3.396_157_1e38)
}

#[test]
fn sixteen_bits_round_to_nearest_even() {
    let mut operands = Random(10).float_triples(800);
    operands.extend(
        (0..400u64).map(|n| [0x3380_0000 + n * 0x0123_4567 % 0x1400_0000, 0x4000_0000 + n * 77_777, 0]),
    );
    let check = |body: &str, of: &dyn Fn(f32, f32) -> u32| {
        for (got, each) in each32(body, &operands).into_iter().zip(&operands) {
            let (a, b) = (f32::from_bits(each[0] as u32), f32::from_bits(each[1] as u32));
            assert_eq!(got, of(a, b), "{body} of {a:e} and {b:e}");
        }
    };
    let pair = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
    check("cvt.rn.f16.f32 %m, %f; cvt.u32.u16 %t, %m;", &|a, _| u32::from(f16(f64::from(a))));
    check("cvt.rn.bf16.f32 %m, %f; cvt.u32.u16 %t, %m;", &|a, _| u32::from(bf16(f64::from(a))));
    check("cvt.rn.f16x2.f32 %t, %f, %g;", &|a, b| pair(f16(f64::from(a)), f16(f64::from(b))));
    check("cvt.rn.bf16x2.f32 %t, %f, %g;", &|a, b| pair(bf16(f64::from(a)), bf16(f64::from(b))));
    check("cvt.rn.relu.bf16.f32 %m, %f; cvt.u32.u16 %t, %m;", &|a, _| match a.is_nan() {
        true => 0x7fff,
        false => u32::from(bf16(f64::from(a.max(0.0)))),
    });
    // All 16-bit patterns widen exactly.
    let patterns: Vec<[u64; 3]> = (0..65536u64).step_by(7).map(|n| [n, n ^ 0x5a5a, n / 3]).collect();
    let widened = each_float("cvt.f32.f16 %l, %i;", &patterns);
    let brain = each_float("cvt.f32.bf16 %l, %i;", &patterns);
    for (n, each) in patterns.iter().enumerate() {
        let (wide, bf) = (wide_f16(each[0] as u16), wide_bf16(each[0] as u16));
        assert!(widened[n] == wide as f32 || wide.is_nan() && widened[n].is_nan());
        assert!(brain[n] == bf as f32 || bf.is_nan() && brain[n].is_nan());
    }
    let halves = |body: &str, of: &dyn Fn(f64, f64, f64) -> u16, wide: fn(u16) -> f64| {
        for (got, each) in each32(body, &patterns).into_iter().zip(&patterns) {
            let [a, b, c] = each.map(|bits| wide(bits as u16));
            let want = of(a, b, c);
            let nan = wide(want).is_nan() && wide(got as u16).is_nan();
            assert!(
                got == u32::from(want) || nan,
                "{body} of {a}, {b}, {c}: {got:#x} where {want:#x} is right"
            );
        }
    };
    let out = "cvt.u32.u16 %t, %m;";
    halves(&format!("add.rn.f16 %m, %i, %j; {out}"), &|a, b, _| f16(a + b), wide_f16);
    halves(&format!("mul.rn.f16 %m, %i, %j; {out}"), &|a, b, _| f16(a * b), wide_f16);
    halves(&format!("fma.rn.f16 %m, %i, %j, %k; {out}"), &|a, b, c| f16(a.mul_add(b, c)), wide_f16);
    halves(&format!("fma.rn.bf16 %m, %i, %j, %k; {out}"), &|a, b, c| bf16(a.mul_add(b, c)), wide_bf16);
    // The pairs do on each half what the single ones do.
    let twice = "mov.b32 %s, {%i, %j}; mov.b32 %n, {%j, %k};";
    let pairs = |op: &str, of: &dyn Fn(f64, f64) -> u16, wide: fn(u16) -> f64| {
        let got = each32(&format!("{twice} {op} %t, %s, %n;"), &patterns);
        for (got, each) in got.into_iter().zip(&patterns) {
            let [a, b, c] = each.map(|bits| wide(bits as u16));
            for (half, want) in [(got as u16, of(a, b)), ((got >> 16) as u16, of(b, c))] {
                let nan = wide(half).is_nan() && wide(want).is_nan();
                assert!(half == want || nan, "{op} of {a}, {b}, {c}");
            }
        }
    };
    pairs("mul.rn.f16x2", &|a, b| f16(a * b), wide_f16);
    // A number wins over NaN, +0 over -0 for the greater.
    let greater = |a: f64, b: f64| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        _ => a.max(b),
    };
    pairs("max.f16x2", &|a, b| f16(greater(a, b)), wide_f16);
    pairs("min.bf16x2", &|a, b| bf16(-greater(-a, -b)), wide_bf16);
}

#[test]
fn approximations_are_near() {
    let operands: Vec<[u64; 3]> = (0..300u32)
        .map(|n| [u64::from((n as f32 * 0.21 - 20.0).to_bits()), u64::from((n as f32 + 0.3).to_bits()), 0])
        .collect();
    let check = |body: &str, bound: f64, of: &dyn Fn(f64, f64) -> f64| {
        for seed in [0, 1, 7] {
            let full = format!("{body} mov.b32 %t, %l; cvt.u64.u32 %d, %t;");
            for (got, each) in crate::harness::each_seeded(&full, &operands, seed).into_iter().zip(&operands)
            {
                let [a, b] = [each[0], each[1]].map(|bits| f64::from(f32::from_bits(bits as u32)));
                let (got, want) = (f64::from(f32::from_bits(got as u32)), of(a, b));
                let error = (got - want).abs() / want.abs().max(1e-3);
                assert!(
                    error <= bound || want.is_nan() && got.is_nan(),
                    "{body} of {a}, {b}: {got} for {want}"
                );
            }
        }
    };
    check("ex2.approx.f32 %l, %f;", 4e-7, &|a, _| a.exp2());
    check("ex2.approx.ftz.f32 %l, %f;", 4e-7, &|a, _| a.exp2());
    check("lg2.approx.f32 %l, %g;", 6e-4, &|_, b| b.log2());
    check("rcp.approx.ftz.f32 %l, %g;", 3e-7, &|_, b| 1.0 / b);
    check("rsqrt.approx.f32 %l, %g;", 3e-7, &|_, b| 1.0 / b.sqrt());
    check("sqrt.approx.f32 %l, %g;", 3e-7, &|_, b| b.sqrt());
    check("div.approx.f32 %l, %f, %g;", 5e-7, &|a, b| a / b);
    check("div.full.f32 %l, %f, %g;", 5e-7, &|a, b| a / b);
    check("tanh.approx.f32 %l, %f;", 6e-4, &|a, _| a.tanh());
    // Absolute errors, compared with at least a thousandth.
    check("sin.approx.f32 %l, %f;", 5e-2, &|a, _| a.sin());
    check("cos.approx.f32 %l, %f;", 5e-2, &|a, _| a.cos());
    check("mul.f32 %f, %f, 0.1; sin.approx.f32 %l, %f;", 8e-4, &|a, _| f64::from(a as f32 * 0.1).sin());
    // The approximate quotient gives up where the full one does not.
    let quotients = |form: &str| {
        each_float(&format!("mov.b32 %g, 0x7f000000; div.{form}.f32 %l, %g, 0f7f400000;"), &operands[..1])
    };
    assert_eq!((quotients("approx")[0], quotients("full")[0]), (0.0, 2.0 / 3.0));
    let exact = each_float("mov.b32 %f, 0; ex2.approx.ftz.f32 %l, %f;", &operands);
    assert!(exact.iter().all(|&one| one == 1.0));
}
